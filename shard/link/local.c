// SPDX-License-Identifier: Apache-2.0
#include "shard/link/local_internal.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"

#define SPIN_NS 30000u
#define PULL_PIECES 64 // then other peers and deadlines have their turn
#define KICK_ID LINK_MAX_MEMBERS // in the epoll set, where peers have their numbers
#define HEADER_BYTES sizeof(struct link_local_header)

static struct link_local_group *local(struct link_group *g)
{
	return base_container_of(g, struct link_local_group, group);
}

// ---- queues and ends of requests

static void queue_append(struct link_local_queue *q, struct link_request *r)
{
	r->next = NULL;
	if (q->last)
		q->last->next = r;
	else
		q->first = r;
	q->last = r;
}

static bool queue_remove(struct link_local_queue *q, struct link_request *r)
{
	struct link_request *before = NULL;
	for (struct link_request *i = q->first; i; before = i, i = i->next) {
		if (i != r)
			continue;
		if (before)
			before->next = r->next;
		else
			q->first = r->next;
		if (q->last == r)
			q->last = before;
		r->next = NULL;
		return true;
	}
	return false;
}

static void end_request(struct link_local_group *g, struct link_request *r, int status)
{
	r->next = NULL;
	r->status = status;
	g->ended++;
}

static void end_queue(struct link_local_group *g, struct link_local_queue *q)
{
	while (q->first) {
		struct link_request *r = q->first;
		queue_remove(q, r);
		end_request(g, r, -ECONNRESET);
	}
}

static bool is_dead(struct link_local_group *g)
{
	return atomic_load_explicit(&g->dead, memory_order_acquire);
}

/* Any thread. The shutdown tells the peers, the event wakes the owner for good. */
static void local_revoke(struct link_group *group)
{
	struct link_local_group *g = local(group);
	if (atomic_exchange(&g->dead, true))
		return;
	for (uint32_t i = 0; i < group->members; i++) {
		if (g->peers[i].fd >= 0)
			shutdown(g->peers[i].fd, SHUT_RDWR);
	}
	(void)eventfd_write(g->kick_fd, 1);
}

static void end_all(struct link_local_group *g)
{
	if (g->ended_all)
		return;
	g->ended_all = true;
	for (uint32_t i = 0; i < g->group.members; i++) {
		struct link_local_peer *p = &g->peers[i];
		if (p->incoming.active && p->incoming.request)
			end_request(g, p->incoming.request, -ECONNRESET);
		p->incoming.active = false;
		end_queue(g, &p->sends);
		end_queue(g, &p->receives);
	}
}

static void fail(struct link_local_group *g)
{
	local_revoke(&g->group);
	end_all(g);
}

// ---- wake and sleep

/* A peer that is gone cannot be woken, and what it sent may still be wanted: its death is noticed by the socket, not here. */
static void wake(struct link_local_peer *p, uint32_t bits)
{
	if (!(atomic_load(p->its_asleep) & bits) || !(atomic_exchange(p->its_asleep, 0) & bits))
		return;
	// A full socket means that the peer has wakes that it has not read yet.
	(void)!send(p->fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void arm(struct link_local_group *g)
{
	for (uint32_t i = 0; i < g->group.members; i++) {
		struct link_local_peer *p = &g->peers[i];
		if (p->fd >= 0)
			atomic_store(
				p->my_asleep, LINK_LOCAL_ASLEEP_DATA | (p->sends.first ? LINK_LOCAL_ASLEEP_SPACE : 0u));
	}
}

static void disarm(struct link_local_group *g)
{
	for (uint32_t i = 0; i < g->group.members; i++) {
		if (g->peers[i].fd >= 0)
			atomic_store_explicit(g->peers[i].my_asleep, 0, memory_order_relaxed);
	}
}

static void drain_socket(struct link_local_group *g, struct link_local_peer *p, uint32_t events)
{
	char bytes[256];
	ssize_t n = recv(p->fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n > 0)
		return; // what is left raises the event again
	if (n < 0 && (errno == EAGAIN || errno == EINTR) && !(events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
		return;
	p->gone = true;
	epoll_ctl(g->epoll_fd, EPOLL_CTL_DEL, p->fd, NULL);
}

/* Whoever sleeps on the event fd is told by progress() that nothing is left to do. A verb that moved something since then has
 * perhaps taken the wake away with it, or ended a request that is looked at only after the next wake: so it wakes. */
static void kick(struct link_local_group *g)
{
	if (atomic_load_explicit(&g->watched, memory_order_relaxed))
		(void)eventfd_write(g->kick_fd, 1);
}

static void drain_kick(struct link_local_group *g)
{
	eventfd_t count;
	(void)eventfd_read(g->kick_fd, &count);
	if (is_dead(g)) // then it stays readable
		(void)eventfd_write(g->kick_fd, 1);
}

/* Waits for the sockets and reads the wakes from them. */
static bool poll_sockets(struct link_local_group *g, int timeout_ms)
{
	struct epoll_event events[LINK_MAX_MEMBERS + 1];
	int n = epoll_wait(g->epoll_fd, events, LINK_MAX_MEMBERS + 1, timeout_ms);
	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == KICK_ID)
			drain_kick(g);
		else
			drain_socket(g, &g->peers[events[i].data.u32], events[i].events);
	}
	return n > 0;
}

// ---- rings

static void ring_read(const uint8_t *ring, size_t ring_bytes, uint64_t at, void *out, size_t n)
{
	size_t from = (size_t)(at & (ring_bytes - 1));
	size_t first = n < ring_bytes - from ? n : ring_bytes - from;
	memcpy(out, ring + from, first);
	memcpy((uint8_t *)out + first, ring, n - first);
}

static void ring_write(uint8_t *ring, size_t ring_bytes, uint64_t at, const void *data, size_t n)
{
	size_t from = (size_t)(at & (ring_bytes - 1));
	size_t first = n < ring_bytes - from ? n : ring_bytes - from;
	memcpy(ring + from, data, first);
	memcpy(ring, (const uint8_t *)data + first, n - first);
}

/* Bytes that can be read. Fails the group when the peer's cursor is impossible. */
static size_t ring_available(struct link_local_group *g, struct link_local_peer *p)
{
	uint64_t n = atomic_load(&p->in->head) - p->in_tail;
	if (n <= g->ring_bytes)
		return (size_t)n;
	fail(g);
	return 0;
}

static size_t ring_space(struct link_local_group *g, struct link_local_peer *p)
{
	uint64_t used = p->out_head - atomic_load(&p->out->tail);
	if (used <= g->ring_bytes)
		return g->ring_bytes - (size_t)used;
	fail(g);
	return 0;
}

static void consume(struct link_local_peer *p, size_t n)
{
	p->in_tail += n;
	atomic_store(&p->in->tail, p->in_tail);
	wake(p, LINK_LOCAL_ASLEEP_SPACE);
}

static void produce(struct link_local_peer *p, size_t n)
{
	p->out_head += n;
	atomic_store(&p->out->head, p->out_head);
	wake(p, LINK_LOCAL_ASLEEP_DATA);
}

// ---- sending

static bool push(struct link_local_group *g, struct link_local_peer *p)
{
	bool moved = false;
	struct link_request *r;
	while ((r = p->sends.first) && !is_dead(g)) {
		size_t space = ring_space(g, p);
		if (!r->private_[0]) {
			if (space < HEADER_BYTES)
				break;
			struct link_local_header h = {g->group.epoch, r->room_bytes, r->tag, 0};
			ring_write(p->out_data, g->ring_bytes, p->out_head, &h, HEADER_BYTES);
			r->private_[0] = 1;
			if (r->room_bytes > space - HEADER_BYTES) {
				produce(p, HEADER_BYTES);
				space -= HEADER_BYTES;
			} else { // all at once: one wake
				ring_write(
					p->out_data, g->ring_bytes, p->out_head + HEADER_BYTES, r->data, r->room_bytes);
				r->bytes = r->room_bytes;
				produce(p, HEADER_BYTES + r->room_bytes);
			}
			moved = true;
		}
		size_t n = r->room_bytes - r->bytes;
		n = n < space ? n : space;
		n = n < g->ring_bytes / 4 ? n : g->ring_bytes / 4; // pieces, so that both ends copy at the same time
		if (n) {
			ring_write(p->out_data, g->ring_bytes, p->out_head, r->data + r->bytes, n);
			r->bytes += n;
			produce(p, n);
			moved = true;
		}
		if (r->bytes == r->room_bytes) {
			queue_remove(&p->sends, r);
			end_request(g, r, 0);
		} else if (!n) {
			break;
		}
	}
	return moved;
}

// ---- receiving

static struct link_request *find_receive(const struct link_local_peer *p, uint32_t tag)
{
	struct link_request *r = p->receives.first;
	while (r && r->tag != tag)
		r = r->next;
	return r;
}

static void finish_receive(struct link_local_group *g, struct link_request *r, size_t length)
{
	r->bytes = length;
	end_request(g, r, 0);
}

static void drop_aside(struct link_local_peer *p, uint32_t i)
{
	struct link_local_aside *a = &p->aside[i];
	size_t offset = a->offset, length = a->length;
	memmove(p->aside_data + offset, p->aside_data + offset + length, p->aside_used - offset - length);
	p->aside_used -= length;
	p->aside_count--;
	memmove(a, a + 1, (p->aside_count - i) * sizeof *a);
	for (; i < p->aside_count; i++)
		p->aside[i].offset -= length;
}

/* Gives what was set aside to receives that were posted since. */
static bool match_aside(struct link_local_group *g, struct link_local_peer *p)
{
	bool moved = false;
	for (uint32_t i = 0; i < p->aside_count;) {
		struct link_local_aside *a = &p->aside[i];
		struct link_request *r = find_receive(p, a->tag);
		if (!r || a->got < a->length) {
			i++;
			continue;
		}
		queue_remove(&p->receives, r);
		if (a->length > r->room_bytes) {
			r->bytes = a->length;
			end_request(g, r, -EMSGSIZE);
		} else {
			if (a->length)
				memcpy(r->data, p->aside_data + a->offset, a->length);
			finish_receive(g, r, a->length);
		}
		drop_aside(p, i);
		moved = true;
	}
	return moved;
}

static bool is_aside(const struct link_local_peer *p, uint32_t tag)
{
	for (uint32_t i = 0; i < p->aside_count; i++) {
		if (p->aside[i].tag == tag)
			return true;
	}
	return false;
}

/* Decides where the message at the ring's head goes: to a receive, aside, or nowhere (then it stays in the ring). */
static bool begin_incoming(
	struct link_local_group *g, struct link_local_peer *p, const struct link_local_header *h, bool set_aside)
{
	__typeof__(p->incoming) *in = &p->incoming;
	struct link_request *r = is_aside(p, h->tag) ? NULL : find_receive(p, h->tag);
	in->header = *h;
	in->got = 0;
	in->request = NULL;
	in->aside = false;
	if (r) {
		queue_remove(&p->receives, r);
		if (h->length > r->room_bytes) {
			r->bytes = (size_t)h->length;
			end_request(g, r, -EMSGSIZE);
		} else {
			in->request = r;
		}
	} else {
		if (!set_aside || p->aside_count == LINK_LOCAL_MAX_ASIDE || h->length > g->ring_bytes - p->aside_used)
			return false;
		p->aside[p->aside_count++] = (struct link_local_aside){h->tag, p->aside_used, (size_t)h->length, 0};
		p->aside_used += (size_t)h->length;
		in->aside = true;
	}
	in->active = true;
	consume(p, HEADER_BYTES);
	return true;
}

static void take_piece(struct link_local_group *g, struct link_local_peer *p, size_t n)
{
	__typeof__(p->incoming) *in = &p->incoming;
	if (n && in->request) {
		ring_read(p->in_data, g->ring_bytes, p->in_tail, in->request->data + in->got, n);
		in->request->bytes += n;
	} else if (n && in->aside) {
		struct link_local_aside *a = &p->aside[p->aside_count - 1];
		ring_read(p->in_data, g->ring_bytes, p->in_tail, p->aside_data + a->offset + in->got, n);
	}
	in->got += n;
	if (n)
		consume(p, n);
	if (in->got < in->header.length)
		return;
	in->active = false;
	if (in->aside)
		p->aside[p->aside_count - 1].got = (size_t)in->header.length;
	if (in->request)
		finish_receive(g, in->request, (size_t)in->header.length);
}

/* set_aside: something is waited for, so a message of another tag must not stand in its way. */
static bool pull(struct link_local_group *g, struct link_local_peer *p, bool set_aside)
{
	bool moved = match_aside(g, p);
	for (int i = 0; i < PULL_PIECES && !is_dead(g); i++) {
		size_t available = ring_available(g, p);
		if (p->incoming.active) {
			uint64_t left = p->incoming.header.length - p->incoming.got;
			size_t n = left < available ? (size_t)left : available;
			n = n < g->ring_bytes / 4 ? n : g->ring_bytes / 4;
			if (!n && left)
				break;
			take_piece(g, p, n);
		} else {
			if (available < HEADER_BYTES)
				break;
			struct link_local_header h;
			ring_read(p->in_data, g->ring_bytes, p->in_tail, &h, HEADER_BYTES);
			if (h.length > LINK_MAX_MESSAGE_BYTES || h.epoch != g->group.epoch || h.zero) {
				fail(g);
				break;
			}
			if (!begin_incoming(g, p, &h, set_aside || p->receives.first))
				break;
		}
		moved = true;
		match_aside(g, p);
	}
	return moved;
}

/* After a quiet pull: what still waits for a peer that is gone waits in vain. What it left in the ring may be asked for
 * later; when nothing is left, the group ends. */
static bool check_gone(struct link_local_group *g, struct link_local_peer *p)
{
	if (!p->gone || is_dead(g))
		return false;
	bool ended = p->receives.first || p->sends.first;
	end_queue(g, &p->receives);
	end_queue(g, &p->sends);
	if (p->incoming.active || (!p->aside_count && ring_available(g, p) < HEADER_BYTES))
		fail(g);
	return ended;
}

static bool move(struct link_local_group *g)
{
	bool moved = false;
	if (is_dead(g)) {
		end_all(g);
		return false;
	}
	for (uint32_t i = 0; i < g->group.members && !is_dead(g); i++) {
		struct link_local_peer *p = &g->peers[i];
		if (p->fd < 0)
			continue;
		// `gone` was set before this pull, so the pull sees all that the peer ever wrote.
		bool quiet = !pull(g, p, false);
		quiet &= !push(g, p);
		if (quiet && check_gone(g, p))
			quiet = false;
		moved |= !quiet;
	}
	if (is_dead(g)) // also when another thread revoked meanwhile
		end_all(g);
	return moved;
}

// ---- the verbs

static int start(
	struct link_local_group *g, struct link_request *r, uint32_t peer, uint32_t tag, void *data, size_t bytes)
{
	*r = (struct link_request){.group = &g->group,
		.status = -EINPROGRESS,
		.peer = peer,
		.tag = tag,
		.data = data,
		.room_bytes = bytes};
	if (peer >= g->group.members || g->peers[peer].fd < 0)
		r->status = -ENOTCONN;
	else if (is_dead(g))
		r->status = -ECONNRESET;
	return r->status;
}

static void local_send(
	struct link_group *group, uint32_t to, uint32_t tag, const void *data, size_t bytes, struct link_request *r)
{
	struct link_local_group *g = local(group);
	if (start(g, r, to, tag, (void *)data, bytes) != -EINPROGRESS)
		return;
	struct link_local_peer *p = &g->peers[to];
	if (bytes > LINK_MAX_MESSAGE_BYTES) {
		r->status = -EMSGSIZE;
	} else if (p->gone) {
		r->status = -ECONNRESET; // the group lives until what the peer left has been received
	} else {
		queue_append(&p->sends, r);
		push(g, p);
		if (r->status == -EINPROGRESS)
			kick(g); // progress() did not arm for the space that it waits for
	}
}

static void local_receive(
	struct link_group *group, uint32_t from, uint32_t tag, void *data, size_t room_bytes, struct link_request *r)
{
	struct link_local_group *g = local(group);
	if (start(g, r, from, tag, data, room_bytes) != -EINPROGRESS)
		return;
	queue_append(&g->peers[from].receives, r);
	if (pull(g, &g->peers[from], false))
		kick(g);
}

static int local_test(struct link_group *group, struct link_request *r)
{
	struct link_local_group *g = local(group);
	if (r->status == -EINPROGRESS) {
		bool woken = poll_sockets(g, 0);
		if (move(g) || woken)
			kick(g);
	}
	return r->status;
}

static int timeout_ms(uint64_t now, uint64_t deadline_ns)
{
	if (deadline_ns == LINK_NO_DEADLINE)
		return -1;
	uint64_t ms = deadline_ns > now ? (deadline_ns - now + 999999) / 1000000 : 0;
	return ms > 3600000 ? 3600000 : (int)ms;
}

static void relax(void)
{
#if defined(__x86_64__)
	for (int i = 0; i < 16; i++)
		__builtin_ia32_pause();
#else
	sched_yield();
#endif
}

static int local_wait(struct link_group *group, struct link_request *r, uint64_t deadline_ns)
{
	struct link_local_group *g = local(group);
	uint64_t spin_until = g->spin ? base_clock_now_ns() + SPIN_NS : 0;
	while (r->status == -EINPROGRESS) {
		bool moved = move(g);
		if (r->status != -EINPROGRESS)
			break;
		uint64_t now = base_clock_now_ns();
		if (now >= deadline_ns) {
			local_test(group, r);
			return r->status == -EINPROGRESS ? -ETIMEDOUT : r->status;
		}
		if (moved)
			continue;
		if (now < spin_until) {
			relax();
			continue;
		}
		arm(g);
		if (!move(g) && r->status == -EINPROGRESS)
			poll_sockets(g, timeout_ms(now, deadline_ns));
		disarm(g);
	}
	kick(g);
	return r->status;
}

static void local_cancel(struct link_group *group, struct link_request *r)
{
	struct link_local_group *g = local(group);
	if (r->status == -EINPROGRESS && r->peer < group->members && queue_remove(&g->peers[r->peer].receives, r))
		r->status = -ECANCELED;
}

static int local_progress(struct link_group *group, uint32_t budget)
{
	struct link_local_group *g = local(group);
	uint64_t before = g->ended;
	disarm(g);
	poll_sockets(g, 0);
	for (;;) {
		bool moved = move(g);
		if (g->ended - before >= budget)
			break;
		if (moved)
			continue;
		arm(g);
		if (!move(g))
			break;
		disarm(g);
	}
	return (int)(g->ended - before);
}

static int local_event_fd(struct link_group *group)
{
	struct link_local_group *g = local(group);
	if (!atomic_exchange(&g->watched, true))
		kick(g);
	return g->epoll_fd;
}

int link_local_peek(struct link_group *group, uint32_t from, uint32_t tag, size_t *ret_bytes)
{
	struct link_local_group *g = local(group);
	if (from >= group->members || g->peers[from].fd < 0)
		return -ENOTCONN;
	struct link_local_peer *p = &g->peers[from];
	for (int pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < p->aside_count; i++) {
			if (p->aside[i].tag == tag) {
				*ret_bytes = p->aside[i].length;
				return 0;
			}
		}
		struct link_local_header h;
		if (!is_dead(g) && !p->incoming.active && ring_available(g, p) >= HEADER_BYTES) {
			ring_read(p->in_data, g->ring_bytes, p->in_tail, &h, HEADER_BYTES);
			if (h.tag == tag && h.length <= LINK_MAX_MESSAGE_BYTES && h.epoch == group->epoch) {
				*ret_bytes = (size_t)h.length;
				return 0;
			}
		}
		if (pass == 0) { // what is in front has another tag
			poll_sockets(g, 0);
			pull(g, p, true);
			check_gone(g, p);
			kick(g);
		}
	}
	return is_dead(g) ? -ECONNRESET : -EAGAIN;
}

// ---- allreduce

/* A whole exchange: every member gets every other's numbers and adds all of them in the same order. Fine for few members,
 * which is what one host has. The requests must have ended when this returns: an error ends the group. */
static int allreduce_piece(struct link_local_group *g, float *x, size_t count, uint64_t deadline_ns)
{
	struct link_request sends[LINK_MAX_MEMBERS], receives[LINK_MAX_MEMBERS];
	struct link_group *group = &g->group;
	uint32_t members = group->members, me = group->me;
	size_t bytes = count * sizeof *x;
	int status = 0;
	for (uint32_t i = 0; i < members; i++) {
		if (i == me)
			continue;
		local_receive(
			group, i, LINK_TAG_ALLREDUCE, g->sums + (size_t)i * LINK_LOCAL_SUM_FLOATS, bytes, &receives[i]);
		local_send(group, i, LINK_TAG_ALLREDUCE, x, bytes, &sends[i]);
	}
	for (uint32_t i = 0; i < members && !status; i++) {
		if (i == me)
			continue;
		status = local_wait(group, &receives[i], deadline_ns);
		if (!status && receives[i].bytes != bytes)
			status = -EPROTO; // the members do not agree about the count
		if (!status)
			status = local_wait(group, &sends[i], deadline_ns);
	}
	if (status) {
		fail(g);
		return status;
	}
	memcpy(g->sums + (size_t)me * LINK_LOCAL_SUM_FLOATS, x, bytes);
	for (size_t k = 0; k < count; k++) {
		float sum = g->sums[k];
		for (uint32_t i = 1; i < members; i++)
			sum += g->sums[(size_t)i * LINK_LOCAL_SUM_FLOATS + k];
		x[k] = sum;
	}
	return 0;
}

static int local_allreduce(struct link_group *group, float *x, size_t count, uint64_t deadline_ns)
{
	struct link_local_group *g = local(group);
	for (size_t done = 0; done < count;) {
		size_t n = count - done < LINK_LOCAL_SUM_FLOATS ? count - done : LINK_LOCAL_SUM_FLOATS;
		int r = allreduce_piece(g, x + done, n, deadline_ns);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

// ---- life

static void destroy(struct link_local_group *g)
{
	for (uint32_t i = 0; i < g->group.members; i++) {
		if (g->peers[i].shared)
			munmap(g->peers[i].shared, g->peers[i].map_bytes);
		free(g->peers[i].aside_data);
	}
	free(g->sums);
	if (g->epoll_fd >= 0)
		close(g->epoll_fd);
	if (g->kick_fd >= 0)
		close(g->kick_fd);
	free(g);
}

static void local_close(struct link_group *group)
{
	if (!group)
		return;
	struct link_local_group *g = local(group);
	local_revoke(group);
	end_all(g);
	for (uint32_t i = 0; i < group->members; i++) {
		if (g->peers[i].fd >= 0)
			close(g->peers[i].fd);
	}
	destroy(g);
}

static int watch(struct link_local_group *g, int fd, uint32_t events, uint32_t id)
{
	struct epoll_event ev = {.events = events, .data.u32 = id};
	return epoll_ctl(g->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

static int take_resources(struct link_local_group *g, const int *fds)
{
	g->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	g->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (g->epoll_fd < 0 || g->kick_fd < 0)
		return -errno;
	int r = watch(g, g->kick_fd, EPOLLIN, KICK_ID);
	g->sums = malloc(g->group.members * LINK_LOCAL_SUM_FLOATS * sizeof *g->sums);
	for (uint32_t i = 0; i < g->group.members && !r; i++) {
		if (fds[i] < 0)
			continue;
		g->peers[i].aside_data = malloc(g->ring_bytes);
		if (!g->peers[i].aside_data)
			return -ENOMEM;
		r = watch(g, fds[i], EPOLLIN | EPOLLRDHUP, i);
	}
	return g->sums ? r : -ENOMEM;
}

static int check_create(
	const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t *ring_bytes, struct base_error *e)
{
	if (members == 0 || members > LINK_MAX_MEMBERS || me >= members || fds[me] >= 0)
		return base_error_set(e, -EINVAL, "link: member %u of %u, at most %u, none linked to itself", me,
			members, LINK_MAX_MEMBERS);
	if (*ring_bytes > LINK_MAX_RING_BYTES)
		return base_error_set(
			e, -EINVAL, "link: rings of %zu bytes, at most %llu", *ring_bytes, LINK_MAX_RING_BYTES);
	if (*ring_bytes) {
		size_t n = LINK_MIN_RING_BYTES;
		while (n < *ring_bytes)
			n *= 2;
		*ring_bytes = n;
	}
	return 0;
}

static int local_create(const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes,
	uint64_t deadline_ns, struct link_group **ret_group, struct base_error *e)
{
	int r = check_create(fds, members, me, epoch, &ring_bytes, e);
	if (r < 0)
		return r;
	struct link_local_group *g = aligned_alloc(64, base_size_align(sizeof *g, 64));
	if (!g)
		return base_error_set(e, -ENOMEM, "link: no memory for a group");
	*g = (struct link_local_group){.group = {&link_local_ops, epoch, members, me}, .ring_bytes = ring_bytes};
	g->epoll_fd = g->kick_fd = -1;
	for (uint32_t i = 0; i < members; i++)
		g->peers[i].fd = -1;
	// Spinning takes the CPU from whoever would do the work that is waited for, unless there are CPUs to spare.
	cpu_set_t cpus;
	g->spin = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && (uint32_t)CPU_COUNT(&cpus) > members;
	r = link_local_hello(g, fds, deadline_ns, e);
	if (r == 0) {
		r = take_resources(g, fds);
		if (r < 0)
			base_error_set(e, r, "link: %s for %u members", strerrordesc_np(-r), members);
	}
	if (r < 0) {
		destroy(g);
		return r;
	}
	for (uint32_t i = 0; i < members; i++)
		g->peers[i].fd = fds[i];
	*ret_group = &g->group;
	return 0;
}

const struct link_ops link_local_ops = {
	.capabilities = {.name = "local", .host_memory = true},
	.create = local_create,
	.close = local_close,
	.send = local_send,
	.receive = local_receive,
	.allreduce = local_allreduce,
	.test = local_test,
	.wait = local_wait,
	.cancel = local_cancel,
	.revoke = local_revoke,
	.progress = local_progress,
	.event_fd = local_event_fd,
};
