// SPDX-License-Identifier: Apache-2.0
#include "shard/link/local_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/size.h"

static struct link_local_group *local(struct link_core *c)
{
	return (struct link_local_group *)c;
}

// ---- wake and sleep

/* A peer that is gone cannot be woken, and what it sent may still be wanted: its death is noticed by the socket, not
 * here. */
static void wake(struct link_core *c, uint32_t peer, uint32_t bits)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	if (!(atomic_load(p->its_asleep) & bits) || !(atomic_exchange(p->its_asleep, 0) & bits))
		return;
	// A full socket means that the peer has wakes that it has not read yet.
	(void)!send(c->peers[peer].fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static bool arm(struct link_core *c)
{
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (c->peers[i].fd >= 0)
			atomic_store(local(c)->pairs[i].my_asleep,
				LINK_LOCAL_ASLEEP_DATA | (c->peers[i].sends.first ? LINK_LOCAL_ASLEEP_SPACE : 0u));
	}
	return true;
}

static void disarm(struct link_core *c)
{
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (c->peers[i].fd >= 0)
			atomic_store_explicit(local(c)->pairs[i].my_asleep, 0, memory_order_relaxed);
	}
}

// ---- rings

static void ring_write(uint8_t *ring, size_t ring_bytes, uint64_t at, const void *data, size_t n)
{
	size_t from = (size_t)(at & (ring_bytes - 1));
	size_t first = n < ring_bytes - from ? n : ring_bytes - from;
	memcpy(ring + from, data, first);
	memcpy(ring, (const uint8_t *)data + first, n - first);
}

static size_t available(struct link_core *c, uint32_t peer)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	uint64_t n = atomic_load(&p->in->head) - p->in_tail;
	if (n <= c->ring_bytes)
		return (size_t)n;
	link_core_fail(c); // an impossible cursor
	return 0;
}

static void ring_read(struct link_core *c, uint32_t peer, void *out, size_t n)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	size_t from = (size_t)(p->in_tail & (c->ring_bytes - 1));
	size_t first = n < c->ring_bytes - from ? n : c->ring_bytes - from;
	memcpy(out, p->in_data + from, first);
	memcpy((uint8_t *)out + first, p->in_data, n - first);
}

static void consume(struct link_core *c, uint32_t peer, size_t n)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	p->in_tail += n;
	atomic_store(&p->in->tail, p->in_tail);
	wake(c, peer, LINK_LOCAL_ASLEEP_SPACE);
}

static size_t space(struct link_core *c, uint32_t peer)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	uint64_t used = p->out_head - atomic_load(&p->out->tail);
	if (used <= c->ring_bytes)
		return c->ring_bytes - (size_t)used;
	link_core_fail(c);
	return 0;
}

static void write_both(struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t n)
{
	struct link_local_pair *p = &local(c)->pairs[peer];
	uint64_t head = p->out_head;
	if (h) {
		ring_write(p->out_data, c->ring_bytes, head, h, LINK_CORE_HEADER_BYTES);
		head += LINK_CORE_HEADER_BYTES;
	}
	if (n)
		ring_write(p->out_data, c->ring_bytes, head, data, n);
	p->out_head = head + n; // all at once: one wake
	atomic_store(&p->out->head, p->out_head);
	wake(c, peer, LINK_LOCAL_ASLEEP_DATA);
}

// ---- life

static void destroy(struct link_core *c)
{
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (local(c)->pairs[i].shared)
			munmap(local(c)->pairs[i].shared, local(c)->pairs[i].map_bytes);
	}
	link_core_finish(c);
	free(c);
}

static const struct link_core_engine engine = {
	.available = available,
	.read = ring_read,
	.consume = consume,
	.space = space,
	.write = write_both,
	.arm = arm,
	.disarm = disarm,
	.destroy = destroy,
};

static int create(const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes,
	const struct link_patience *patience, struct link_group **ret_group, struct base_error *e)
{
	int r = link_core_check(fds, members, me, ring_bytes, &ring_bytes, e);
	if (r < 0)
		return r;
	struct link_local_group *g = aligned_alloc(64, base_size_align(sizeof *g, 64));
	if (!g)
		return base_error_set(e, -ENOMEM, "link: no memory for a group");
	memset(g->pairs, 0, sizeof g->pairs);
	link_core_init(&g->core, &link_local_ops, &engine, members, me, epoch, ring_bytes);
	r = link_local_hello(g, fds, patience, e);
	if (r == 0)
		r = link_core_start(&g->core, fds, e);
	if (r < 0) {
		destroy(&g->core);
		return r;
	}
	*ret_group = &g->core.group;
	return 0;
}

const struct link_ops link_local_ops = {
	.capabilities = {.name = "local", .host_memory = true},
	.create = create,
	.close = link_core_close,
	.send = link_core_send,
	.receive = link_core_receive,
	.allreduce = link_core_allreduce,
	.flush = link_core_flush,
	.test = link_core_test,
	.wait = link_core_wait,
	.cancel = link_core_cancel,
	.revoke = link_core_revoke,
	.progress = link_core_progress,
	.event_fd = link_core_event_fd,
	.peek = link_core_peek,
};
