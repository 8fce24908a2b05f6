/* SPDX-License-Identifier: Apache-2.0
 * The two halves of the local engine: local_hello.c makes a pair of rings, local.c moves bytes through them.
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

#include "shard/link/core.h"

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

struct link_local_pair {
	struct link_local_shared *shared; // NULL: no pair
	size_t map_bytes;
	struct link_local_cursors *in, *out;
	_Atomic uint32_t *my_asleep, *its_asleep;
	uint8_t *in_data, *out_data; // (ring_bytes)
	uint64_t in_tail, out_head; // my own cursors; the shared copies are for the peer
};

struct link_local_group {
	struct link_core core; // first: link_core_of
	struct link_local_pair pairs[LINK_MAX_MEMBERS];
};

/* Agrees with every peer on epoch and ring, and maps the memory. On failure whatever was mapped is in g for the
 * destructor. */
int link_local_hello(
	struct link_local_group *g, const int *fds, const struct link_patience *patience, struct base_error *e);
