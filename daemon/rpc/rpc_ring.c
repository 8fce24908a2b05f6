// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_ring.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/size.h"

#define RING_SKIP UINT32_MAX // in place of a length: nothing up to the end of the ring

struct ring_header {
	uint32_t bytes; // of the record, without header
	uint32_t pad; // keeps records aligned to 8
};

int rpc_ring_init(struct rpc_ring *r, uint64_t bytes)
{
	if (bytes > (1u << 30))
		return -EINVAL;
	uint32_t size = 4096;
	while (size < bytes)
		size *= 2;
	*r = (struct rpc_ring){.data = aligned_alloc(64, size), .bytes = size};
	return r->data ? 0 : -ENOMEM;
}

void rpc_ring_finish(struct rpc_ring *r)
{
	free(r->data);
	r->data = NULL;
}

static uint32_t record_bytes(uint32_t bytes)
{
	return (uint32_t)base_size_align((uint64_t)bytes + sizeof(struct ring_header), RPC_RING_ALIGN);
}

void *rpc_ring_reserve(struct rpc_ring *r, uint32_t bytes)
{
	if (bytes > r->bytes / 2)
		return NULL;
	uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
	uint32_t at = head & (r->bytes - 1), need = record_bytes(bytes);
	uint32_t skip = r->bytes - at < need ? r->bytes - at : 0;
	if (r->bytes - (head - r->tail_seen) < need + skip) {
		r->tail_seen = atomic_load_explicit(&r->tail, memory_order_acquire);
		if (r->bytes - (head - r->tail_seen) < need + skip)
			return NULL;
	}
	if (skip) {
		((struct ring_header *)(r->data + at))->bytes = RING_SKIP;
		/* Not told to the reader yet: commit's release covers it. */
		at = 0;
	}
	struct ring_header *h = (struct ring_header *)(r->data + at);
	h->bytes = bytes;
	h->pad = 0;
	return h + 1;
}

void rpc_ring_commit(struct rpc_ring *r, uint32_t bytes)
{
	uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
	uint32_t at = head & (r->bytes - 1), need = record_bytes(bytes);
	uint32_t skip = r->bytes - at < need ? r->bytes - at : 0;
	atomic_store_explicit(&r->head, head + skip + need, memory_order_release);
}

const void *rpc_ring_peek(struct rpc_ring *r, uint32_t *ret_bytes)
{
	uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
	uint32_t head = atomic_load_explicit(&r->head, memory_order_acquire);
	if (tail == head)
		return NULL;
	const struct ring_header *h = (const struct ring_header *)(r->data + (tail & (r->bytes - 1)));
	if (h->bytes == RING_SKIP) {
		tail += r->bytes - (tail & (r->bytes - 1));
		atomic_store_explicit(&r->tail, tail, memory_order_release);
		assert(tail != head); // a skip is committed with the record after it
		h = (const struct ring_header *)r->data;
	}
	*ret_bytes = h->bytes;
	return h + 1;
}

void rpc_ring_release(struct rpc_ring *r)
{
	uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
	const struct ring_header *h = (const struct ring_header *)(r->data + (tail & (r->bytes - 1)));
	atomic_store_explicit(&r->tail, tail + record_bytes(h->bytes), memory_order_release);
}

bool rpc_ring_is_last(const struct rpc_ring *r)
{
	uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
	const struct ring_header *h = (const struct ring_header *)(r->data + (tail & (r->bytes - 1)));
	return atomic_load_explicit(&r->head, memory_order_acquire) - tail == record_bytes(h->bytes);
}

uint32_t rpc_ring_used(const struct rpc_ring *r)
{
	return atomic_load_explicit(&r->head, memory_order_relaxed) -
	       atomic_load_explicit(&r->tail, memory_order_relaxed);
}
