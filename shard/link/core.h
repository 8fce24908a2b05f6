/* SPDX-License-Identifier: Apache-2.0
 * What the engines have in common: requests, matching by tag, messages set aside, waiting, and the end of a group.
 * An engine moves bytes only: for each peer an ordered stream each way with room for ring_bytes, in which a message is
 * its header and then its bytes. local.c keeps the streams in shared memory, ucx.c in active messages with credits.
 *
 * All but link_core_revoke belong to the thread that owns the group.
 */
#pragma once

#include <stdatomic.h>

#include "shard/link/link.h"

#define LINK_CORE_MAX_ASIDE 32u // messages set aside for each peer
#define LINK_CORE_SUM_FLOATS 16384u
#define LINK_CORE_HEADER_BYTES sizeof(struct link_core_header)

struct link_core_header { // of a message, in its stream
	uint64_t epoch, length;
	uint32_t tag, zero;
};

struct link_core_aside { // a message of a tag that nobody received yet
	uint32_t tag;
	size_t offset, length, got; // in peer.aside_data
};

struct link_core_queue {
	struct link_request *first, *last;
};

struct link_core_incoming { // the message that is coming out of the stream
	bool active;
	struct link_core_header header;
	uint64_t got;
	struct link_request *request; // or
	bool aside; // the last of the messages set aside; or neither: dropped
};

struct link_core_peer {
	int fd; // -1: no pair
	bool gone; // it closed its end; what it sent may still be on its way
	struct link_core_queue sends, receives;
	struct link_core_incoming incoming;
	struct link_core_aside aside[LINK_CORE_MAX_ASIDE]; // oldest first
	uint32_t aside_count;
	size_t aside_used; // bytes; the messages lie one after the other
	uint8_t *aside_data; // (ring_bytes)
};

struct link_core;

struct link_core_engine {
	/* Fetches what has come; true when something moved. NULL: nothing to fetch. */
	bool (*pump)(struct link_core *c);
	/* Bytes of the peer's stream that can be read now. A lie of the peer ends the group with link_core_fail. */
	size_t (*available)(struct link_core *c, uint32_t peer);
	void (*read)(struct link_core *c, uint32_t peer, void *out, size_t n); // leaves them there
	void (*consume)(struct link_core *c, uint32_t peer, size_t n);
	size_t (*space)(struct link_core *c, uint32_t peer); // that write() takes now; 0 while busy()
	/* A message's header (or NULL) and n of its bytes, together at most space(). */
	void (*write)(struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t n);
	bool (*busy)(struct link_core *c, uint32_t peer); // the bytes written last are still being read; may be NULL
	bool (*settled)(struct link_core *c); // nothing that was written waits in here; NULL: it never does
	/* No byte of a peer that is gone can come any more. NULL: what it left is all there. */
	bool (*drained)(struct link_core *c, uint32_t peer);
	/* From here on whatever moves makes the epoll set readable; false: something has moved meanwhile. */
	bool (*arm)(struct link_core *c);
	void (*disarm)(struct link_core *c);
	void (*socket_bytes)(struct link_core *c, uint32_t peer, const uint8_t *bytes, size_t n); // may be NULL
	void (*leave)(struct link_core *c); // an orderly close begins: what was sent goes out; may be NULL
	void (*stop)(struct link_core *c); // after it, no request's buffer is touched; may be NULL
	void (*destroy)(
		struct link_core *c); // of whatever is there, half-built too, and the memory of c; fds stay open
};

struct link_core {
	struct link_group group;
	const struct link_core_engine *engine;
	size_t ring_bytes; // power of two
	size_t piece_bytes; // a message goes out in pieces of at most this,
	bool whole; // unless it fits at once
	bool spin;
	_Atomic bool dead;
	bool ended_all; // after death: every request was ended
	int epoll_fd;
	int kick_fd; // eventfd in the epoll set: readable for good after revoke
	_Atomic bool watched; // event_fd() was called
	uint64_t ended; // requests, ever
	float *sums; // (members, LINK_CORE_SUM_FLOATS)
	struct link_core_peer peers[LINK_MAX_MEMBERS];
};

static inline struct link_core *link_core_of(struct link_group *g)
{
	return (struct link_core *)g; // its first member
}

static inline bool link_core_is_dead(struct link_core *c)
{
	return atomic_load_explicit(&c->dead, memory_order_acquire);
}

/* What members tell each other first, whatever the engine adds. */
struct link_core_hello {
	uint32_t magic, version, members, from, to, zero;
	uint64_t epoch, ring_bytes;
};

/* Checks a peer's hello against the group, and takes over epoch and ring where the group has none. -EPROTO with
 * text. */
int link_core_agree(struct link_core *c, uint32_t peer, const struct link_core_hello *h, uint32_t magic,
	uint32_t version, struct base_error *e);
/* Checks what create() was given and rounds the ring's size up. */
int link_core_check(
	const int *fds, uint32_t members, uint32_t me, size_t ring_bytes, size_t *ret_ring_bytes, struct base_error *e);
/* Fills in what link_core_finish and the engine's destroy can undo; allocates nothing. */
void link_core_init(struct link_core *c, const struct link_ops *ops, const struct link_core_engine *engine,
	uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes);
/* Once epoch and ring are agreed: memory, and the epoll set with the fds, which become the group's. -errno with
 * text. */
int link_core_start(struct link_core *c, const int *fds, struct base_error *e);
/* Gives the fds back to the caller: for a create that fails after link_core_start. */
void link_core_forget_fds(struct link_core *c);
void link_core_finish(struct link_core *c); // for the engine's destroy; does not close the peers' fds

int link_core_watch(struct link_core *c, int fd, uint32_t events); // an fd of the engine that arm() speaks of
/* Waits for the epoll set; reads wakes and the sockets. True: something was there. */
bool link_core_poll(struct link_core *c, int timeout_ms);
void link_core_fail(struct link_core *c);
/* What came of a peer's stream when nothing before it waits: takes header and bytes where a receive wants them. False:
 * none was taken, the engine keeps them to be read(). */
bool link_core_deliver(
	struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t n);

void link_core_close(struct link_group *g);
void link_core_send(
	struct link_group *g, uint32_t to, uint32_t tag, const void *data, size_t bytes, struct link_request *r);
void link_core_receive(
	struct link_group *g, uint32_t from, uint32_t tag, void *data, size_t room_bytes, struct link_request *r);
int link_core_allreduce(struct link_group *g, float *x, size_t count, uint64_t deadline_ns);
int link_core_flush(struct link_group *g, uint64_t deadline_ns);
int link_core_test(struct link_group *g, struct link_request *r);
int link_core_wait(struct link_group *g, struct link_request *r, uint64_t deadline_ns);
void link_core_cancel(struct link_group *g, struct link_request *r);
void link_core_revoke(struct link_group *g);
int link_core_progress(struct link_group *g, uint32_t budget);
int link_core_event_fd(struct link_group *g);
int link_core_peek(struct link_group *g, uint32_t from, uint32_t tag, size_t *ret_bytes);
