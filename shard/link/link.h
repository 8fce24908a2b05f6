/* SPDX-License-Identifier: Apache-2.0
 * Links: how messages and tensors move between a coordinator and ranks, and between ranks.
 *
 * The verbs are those of a group that stops as a whole: after the first failure, or revoke(), every operation under
 * way and every later one ends with -ECONNRESET, and a new group with a higher epoch has to be made. Messages carry
 * the epoch; one of another epoch reaches no receive. Sends and receives are requests: test() polls one, wait() blocks
 * with a deadline. Sends to one member arrive in order, for each tag. Completion of a send means that the buffer is
 * free again. allreduce sums in member order, so the result is the same bits on every member.
 *
 * Engines: `local`, for processes of one host or threads of one process: a unix socket per pair to find, wake and
 * notice the death of the peer, and rings in shared memory for the data. `ucx`, between hosts: a TCP connection per
 * pair (rendezvous.h makes and authenticates it) to find and notice the death of the peer, and UCX active messages for
 * the data. A later engine for GPUs fits the same table; a request may then complete as a stream event.
 * A group belongs to one thread, except for revoke() and the event fd, which any thread may use (until close).
 * Memory is bounded and taken at create: ring_bytes each way for each peer; a send that does not fit waits. A message
 * that no receive is posted for stays in the ring; when a receive of another tag waits behind it, it is set aside, up
 * to ring_bytes for each peer, after which the ring waits for its receive.
 * A peer that closes or dies: requests that wait for it end with -ECONNRESET; what it had sent whole can still be
 * received; when nothing of it is left, the group fails.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define LINK_MAX_MEMBERS 64u
#define LINK_MAX_MESSAGE_BYTES (256ull << 20)
#define LINK_NO_DEADLINE UINT64_MAX // deadlines are of base_clock_now_ns
#define LINK_MIN_RING_BYTES 4096u
#define LINK_MAX_RING_BYTES (1ull << 30)
#define LINK_TAG_ALLREDUCE UINT32_MAX // not for others

#define LINK_LOOK_NS (20 * 1000000ull)

/* How long a create() waits for the others, and what its thread has to do meanwhile. */
struct link_patience {
	uint64_t deadline_ns;
	/* Called between two waits, which last LINK_LOOK_NS at most; other than 0 ends create() with that, and its
	 * text. NULL: nothing. */
	int (*look)(void *context, struct base_error *e);
	void *context;
};
#define LINK_UNTIL(deadline) (&(const struct link_patience){.deadline_ns = (deadline)})

struct link_capabilities {
	const char *name;
	bool host_memory, device_memory;
	bool stream_ordered; // completion is an event of a device stream
};

struct link_group;

struct link_request { // caller's memory, untouched by the caller between start and completion
	struct link_group *group;
	int status; // -EINPROGRESS, 0, or -errno
	uint32_t peer, tag;
	uint8_t *data;
	size_t room_bytes; // receive: room; send: length
	size_t bytes; // done so far; after completion of a receive: the message's length
	uint64_t private_[4];
	struct link_request *next;
};

struct link_ops {
	struct link_capabilities capabilities;
	/* fds[i]: a connected stream socket to member i (-1 at my own place, and at both ends of a pair that never
	 * talks): unix for local, unix or TCP for ucx, which sets a TCP socket to notice a silent peer within 3 s. The
	 * group owns them from success on. All members call create at the same time; it exchanges what the engine needs
	 * and the epoch. ring_bytes is rounded up to a power of two. epoch 0 and ring_bytes 0 mean "as the lowest
	 * member says".
	 * -EPROTO, -ETIMEDOUT, -ECONNRESET, what patience->look() says; with text. */
	int (*create)(const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes,
		const struct link_patience *patience, struct link_group **ret_group, struct base_error *e);
	void (*close)(struct link_group *g); // ends what is under way: those requests must still be there
	void (*send)(struct link_group *g, uint32_t to, uint32_t tag, const void *data, size_t bytes,
		struct link_request *r);
	/* -EMSGSIZE when the message is longer than room: it is dropped. */
	void (*receive)(struct link_group *g, uint32_t from, uint32_t tag, void *data, size_t room_bytes,
		struct link_request *r);
	/* In place: x becomes the sum over all members, added in member order. An error ends the group. */
	int (*allreduce)(struct link_group *g, float *x, size_t count, uint64_t deadline_ns);
	/* A send that is complete may still wait inside the engine for a full socket, and moves on with the group's
	 * next verb. This waits until it does not: for who goes on to wait elsewhere, while the peers wait for it.
	 * -ETIMEDOUT, -ECONNRESET. */
	int (*flush)(struct link_group *g, uint64_t deadline_ns);
	int (*test)(struct link_group *g, struct link_request *r); // -EINPROGRESS, or its end
	int (*wait)(
		struct link_group *g, struct link_request *r, uint64_t deadline_ns); // -ETIMEDOUT leaves it under way
	void (*cancel)(
		struct link_group *g, struct link_request *r); // a receive that has not begun; then its memory is free
	void (*revoke)(struct link_group *g); // any thread
	/* Moves data until nothing moves or `budget` requests have ended; returns how many ended. Below budget, the
	 * event fd becomes readable when there is work again, when any other verb has moved something since, and for
	 * good after a failure; so sleep on it only after a progress() below budget, and look at the requests after
	 * each. */
	int (*progress)(struct link_group *g, uint32_t budget);
	int (*event_fd)(struct link_group *g); // one epoll-able fd, to be watched for reading only
	/* The length of the next message of a tag from a peer, once its header is there: -EAGAIN before that,
	 * -ECONNRESET. */
	int (*peek)(struct link_group *g, uint32_t from, uint32_t tag, size_t *ret_bytes);
};

extern const struct link_ops link_local_ops, link_ucx_ops;

struct link_group {
	const struct link_ops *ops;
	uint64_t epoch; // as agreed
	uint32_t members, me;
};
