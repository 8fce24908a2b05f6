/* SPDX-License-Identifier: Apache-2.0
 * The two halves of the ucx engine: ucx_hello.c is what members tell each other over their sockets, ucx.c moves bytes.
 *
 * The sockets stay open beside UCX: they carry hellos, the word that all is connected, the goodbye of a member that
 * closes, and their end is how a death is noticed; UCX's own failure detection takes seconds to never.
 *
 * A stream goes out as active messages of one piece each. Every one carries the sender's stream cursor as credit, a
 * sequence number, and a token that the receiver chose and told over the socket: UCX authenticates nobody, and what
 * comes without the token is dropped. Pieces are small enough to be sent from a copy at once (eager), so UCX never
 * reads or writes a request's buffer later, except for one piece for each peer that waits for a full socket.
 */
#pragma once

#include <ucp/api/ucp.h>

#include "shard/link/core.h"

/* What is used of it. */
#define LINK_UCX_FUNCTIONS(F)                                                                                          \
	F(ucp_, get_version)                                                                                           \
	F(ucp_, config_read)                                                                                           \
	F(ucp_, config_modify)                                                                                         \
	F(ucp_, config_release)                                                                                        \
	F(ucp_, init_version)                                                                                          \
	F(ucp_, cleanup)                                                                                               \
	F(ucp_, worker_create)                                                                                         \
	F(ucp_, worker_destroy)                                                                                        \
	F(ucp_, worker_set_am_recv_handler)                                                                            \
	F(ucp_, worker_get_address)                                                                                    \
	F(ucp_, worker_release_address)                                                                                \
	F(ucp_, worker_get_efd)                                                                                        \
	F(ucp_, worker_arm)                                                                                            \
	F(ucp_, worker_progress)                                                                                       \
	F(ucp_, ep_create)                                                                                             \
	F(ucp_, ep_close_nbx)                                                                                          \
	F(ucp_, ep_print_info)                                                                                         \
	F(ucp_, am_send_nbx)                                                                                           \
	F(ucp_, request_free)                                                                                          \
	F(ucs_, status_string)

struct link_ucx_library {
#define FUNCTION(prefix, name) __typeof__(prefix##name) *name;
	LINK_UCX_FUNCTIONS(FUNCTION)
#undef FUNCTION
};

#define LINK_UCX_PIECE_BYTES (64u << 10)
#define LINK_UCX_MAX_ADDRESS_BYTES 8192u

struct link_ucx_hello { // then address_bytes
	uint32_t magic, version, ucx_version, members, from, to;
	uint64_t epoch, ring_bytes;
	uint64_t token; // for messages to me
	uint32_t address_bytes, zero;
};

enum link_ucx_flags { LINK_UCX_BEGIN = 1, LINK_UCX_READY = 2 };

struct link_ucx_wire { // header of each active message
	uint64_t token, epoch, sequence;
	uint64_t consumed; // of the stream that comes the other way
	uint64_t message_bytes; // with BEGIN: the piece is the first one of a message
	uint32_t tag;
	uint16_t from, flags;
};

struct link_ucx_pair {
	struct link_ucx_group *owner;
	ucp_ep_h ep; // NULL: no pair
	bool failed; // the endpoint says so
	bool busy; // UCX still reads the piece written last, and `out`
	bool credit_last; // that piece is of credit alone
	struct link_ucx_wire out;
	uint64_t my_token, its_token;
	uint64_t sent, got; // messages
	uint64_t out_head, out_tail; // stream bytes: written, and consumed as the peer says
	uint64_t in_head, in_tail, in_told; // come, consumed, consumed as the peer knows
	uint8_t *in_data; // (ring_bytes): what no receive has taken
	bool ready; // its first message came
	uint8_t control[9]; // what came over the socket and is no whole word yet
	uint32_t control_used;
	bool connected; // its word that all is connected
	bool goodbye;
	uint64_t goodbye_messages; // that it sent before it closed
	uint64_t drain_until_ns;
};

struct link_ucx_group {
	struct link_core core; // first: link_core_of
	struct link_ucx_library ucp;
	uint32_t version; // of UCX: major, minor
	ucp_context_h context;
	ucp_worker_h worker; // NULL after the end
	ucp_address_t *address; // until all know it
	size_t address_bytes;
	uint16_t port; // where UCX listens
	int timer_fd; // ends the wait for what a goodbye promised
	bool broken; // a peer broke the rules, or UCX failed
	uint32_t outstanding; // requests of UCX
	struct link_ucx_pair pairs[LINK_MAX_MEMBERS];
};

/* -ENOENT with text where UCX is not installed. */
int link_ucx_library_load(struct link_ucx_library *ret_library, struct base_error *e);
/* Of untrusted bytes. Takes over epoch and ring where g has none. */
int link_ucx_check_hello(struct link_ucx_group *g, const struct link_ucx_hello *h, uint32_t peer, struct base_error *e);
/* Exchanges hellos and addresses with every peer and makes the endpoints (with connect). */
int link_ucx_hello(struct link_ucx_group *g, const int *fds,
	int (*connect)(struct link_ucx_group *g, uint32_t peer, const void *address, struct base_error *e),
	const struct link_patience *patience, struct base_error *e);

/* A port for UCX to listen at, of UCX_TCP_PORT_RANGE where the environment has it. -EADDRINUSE, -EINVAL. */
int link_ucx_guard_pick_port(uint16_t *ret_port);
/* Lets only the hosts at the other ends of fds connect to this process's listener at the port; fds NULL: nobody. */
int link_ucx_guard(uint16_t port, const int *fds, uint32_t members);
