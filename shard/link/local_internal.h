/* SPDX-License-Identifier: Apache-2.0
 * The two halves of the local engine: local_hello.c makes a pair of rings, local.c moves messages through them.
 *
 * Shared memory of a pair (a memfd, sealed against resizing, made by the lower member):
 *   one page of cursors and sleep flags, the ring lower -> higher, the ring higher -> lower.
 * Cursors count bytes since create and never wrap. The peer's cursors are hostile: each use checks that the distance
 * to one's own is at most the ring.
 */
#pragma once

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "shard/link/link.h"

#define LINK_LOCAL_MAX_ASIDE 32u // messages set aside for each peer

enum link_local_asleep { LINK_LOCAL_ASLEEP_DATA = 1, LINK_LOCAL_ASLEEP_SPACE = 2 };

struct link_local_cursors {
	alignas(64) _Atomic uint64_t head; // written by the producer
	alignas(64) _Atomic uint64_t tail; // written by the consumer
};

struct link_local_shared {
	struct link_local_cursors ring[2]; // [0] lower -> higher
	struct {
		alignas(64) _Atomic uint32_t bits; // what the side wants to be woken for; a waker clears them
	} asleep[2]; // [0] the lower member
};
_Static_assert(sizeof(struct link_local_shared) <= 4096, "the cursors fit their page");

struct link_local_header { // of a message, in the ring
	uint64_t epoch, length;
	uint32_t tag, zero;
};

struct link_local_aside { // a message of a tag that nobody received yet
	uint32_t tag;
	size_t offset, length, got; // in peer.aside_data
};

struct link_local_queue {
	struct link_request *first, *last;
};

struct link_local_peer {
	int fd; // -1: no pair
	bool gone; // it closed its end; what it sent may still be in the ring
	struct link_local_shared *shared;
	size_t map_bytes;
	struct link_local_cursors *in, *out;
	_Atomic uint32_t *my_asleep, *its_asleep;
	uint8_t *in_data, *out_data; // (ring_bytes)
	uint64_t in_tail, out_head; // my own cursors; the shared copies are for the peer
	struct link_local_queue sends, receives;

	struct { // the message that is coming out of the ring
		bool active;
		struct link_local_header header;
		uint64_t got;
		struct link_request *request; // or
		bool aside; // the last of the messages set aside; or neither: dropped
	} incoming;
	struct link_local_aside aside[LINK_LOCAL_MAX_ASIDE]; // oldest first
	uint32_t aside_count;
	size_t aside_used; // bytes; the messages lie one after the other
	uint8_t *aside_data; // (ring_bytes)
};

struct link_local_group {
	struct link_group group;
	size_t ring_bytes; // power of two
	bool spin;
	_Atomic bool dead;
	bool ended_all; // after death: every request was ended
	int epoll_fd;
	int kick_fd; // eventfd in the epoll set: readable for good after revoke
	_Atomic bool watched; // event_fd() was called
	uint64_t ended; // requests, ever
	float *sums; // (members, LINK_LOCAL_SUM_FLOATS)
	struct link_local_peer peers[LINK_MAX_MEMBERS];
};

#define LINK_LOCAL_SUM_FLOATS 16384u

/* Agrees with every peer on epoch and ring, and maps the memory. On failure whatever was mapped is in g for the destructor. */
int link_local_hello(struct link_local_group *g, const int *fds, uint64_t deadline_ns, struct base_error *e);
