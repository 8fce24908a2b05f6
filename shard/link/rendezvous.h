/* SPDX-License-Identifier: Apache-2.0
 * How the members of a group on several hosts get the connected sockets that link_ucx_ops.create wants.
 *
 * The control plane gives every member the same list of members with their TCP addresses, an epoch, and a secret of
 * 32 bytes. A member listens, connects to all members below it and accepts those above it. Both sides prove that they
 * know the secret: HMAC-SHA256 over what was said and both sides' random nonces. Nobody's bytes are trusted before
 * that, and a connection that says something else, nothing, or too little in 2 s is refused and forgotten while the
 * listener goes on. Nothing is encrypted: it keeps strangers out, it does not hide the traffic from the network between
 * the hosts.
 *
 * Any thread, one at a time for each listener.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "shard/link/link.h"

#define LINK_RENDEZVOUS_SECRET_BYTES 32u
#define LINK_RENDEZVOUS_HELLO_BYTES 64u
#define LINK_RENDEZVOUS_ANSWER_BYTES 80u

struct link_rendezvous_member {
	const char *address; // IPv4 or IPv6; the control plane resolves names
	uint16_t port;
};

struct link_rendezvous_group {
	uint64_t epoch;
	uint32_t members, me;
	const struct link_rendezvous_member *list; // (members); that of `me` is not looked at
	uint8_t secret[LINK_RENDEZVOUS_SECRET_BYTES];
	/* Called for each connection that is refused, with its address and the reason; may be NULL. */
	void (*refused)(void *context, const struct base_error *e);
	int (*look)(void *context, struct base_error *e); // as that of link_patience
	void *context;
};

/* Listens at the first free port of first..last (0, 0: any). -EADDRINUSE, -EADDRNOTAVAIL, ... with text. */
int link_rendezvous_listen(
	const char *address, uint16_t first, uint16_t last, int *ret_fd, uint16_t *ret_port, struct base_error *e);

/* ret_fds[members]: connected, authenticated, non-blocking TCP sockets that notice a silent peer (-1 at my own place).
 * A member that does not listen yet is tried again until the deadline. The listener stays the caller's and can be used
 * for the next epoch.
 * cancel_fd: -1, or one that becomes readable when the caller wants it to end.
 * -EACCES: another secret. -ESTALE: the member is in a later epoch. -EPROTO: it has another list. -ETIMEDOUT: the text
 * says who is missing, and what was refused meanwhile. -ECANCELED. What look() says. */
int link_rendezvous_connect(int listen_fd, const struct link_rendezvous_group *g, int cancel_fd, uint64_t deadline_ns,
	int *ret_fds, struct base_error *e);

/* The two frames that carry more than a proof, for the tests. 0 or -EPROTO with text. */
struct link_rendezvous_hello {
	uint32_t members, from, to;
	uint64_t epoch;
	uint8_t nonce[32];
};
struct link_rendezvous_answer {
	uint32_t status;
	uint64_t epoch;
	uint8_t nonce[32], proof[32];
};
int link_rendezvous_read_hello(const uint8_t *bytes, struct link_rendezvous_hello *ret_hello, struct base_error *e);
int link_rendezvous_read_answer(const uint8_t *bytes, struct link_rendezvous_answer *ret_answer, struct base_error *e);
