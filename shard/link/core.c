// SPDX-License-Identifier: Apache-2.0
#include "shard/link/core.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

#define SPIN_NS 30000u
#define YIELD_NS 3000u // a yield that takes longer gave the core to somebody
#define PULL_PIECES 64 // then other peers and deadlines have their turn
#define KICK_ID LINK_MAX_MEMBERS // in the epoll set, where peers have their numbers
#define ENGINE_ID (LINK_MAX_MEMBERS + 1)
#define FLUSH_MS 10 // between two looks: no engine says when a socket has room again
#define EXCHANGE_MEMBERS 4u // allreduce: up to here everybody sends everything to everybody

// ---- queues and ends of requests

static void queue_append(struct link_core_queue *q, struct link_request *r)
{
	r->next = NULL;
	if (q->last)
		q->last->next = r;
	else
		q->first = r;
	q->last = r;
}

static bool queue_remove(struct link_core_queue *q, struct link_request *r)
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

static void end_request(struct link_core *c, struct link_request *r, int status)
{
	r->next = NULL;
	r->status = status;
	c->ended++;
}

static void end_queue(struct link_core *c, struct link_core_queue *q)
{
	while (q->first) {
		struct link_request *r = q->first;
		queue_remove(q, r);
		end_request(c, r, -ECONNRESET);
	}
}

/* Any thread. The shutdown tells the peers, the event wakes the owner for good. */
void link_core_revoke(struct link_group *group)
{
	struct link_core *c = link_core_of(group);
	if (atomic_exchange(&c->dead, true))
		return;
	for (uint32_t i = 0; i < group->members; i++) {
		if (c->peers[i].fd >= 0)
			shutdown(c->peers[i].fd, SHUT_RDWR);
	}
	(void)eventfd_write(c->kick_fd, 1);
}

static void end_all(struct link_core *c)
{
	if (c->ended_all)
		return;
	c->ended_all = true;
	if (c->engine->stop)
		c->engine->stop(c);
	for (uint32_t i = 0; i < c->group.members; i++) {
		struct link_core_peer *p = &c->peers[i];
		if (p->incoming.active && p->incoming.request)
			end_request(c, p->incoming.request, -ECONNRESET);
		p->incoming.active = false;
		end_queue(c, &p->sends);
		end_queue(c, &p->receives);
	}
}

void link_core_fail(struct link_core *c)
{
	link_core_revoke(&c->group);
	end_all(c);
}

// ---- wake and sleep

static void drain_socket(struct link_core *c, uint32_t peer, uint32_t events)
{
	struct link_core_peer *p = &c->peers[peer];
	uint8_t bytes[256];
	ssize_t n = recv(p->fd, bytes, sizeof bytes, MSG_DONTWAIT);
	if (n > 0) { // what is left raises the event again
		if (c->engine->socket_bytes)
			c->engine->socket_bytes(c, peer, bytes, (size_t)n);
		return;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR) && !(events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP)))
		return;
	p->gone = true;
	epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, p->fd, NULL);
}

/* Whoever sleeps on the event fd is told by progress() that nothing is left to do. A verb that moved something since
 * then has perhaps taken the wake away with it, or ended a request that is looked at only after the next wake: so it
 * wakes. */
static void kick(struct link_core *c)
{
	if (atomic_load_explicit(&c->watched, memory_order_relaxed))
		(void)eventfd_write(c->kick_fd, 1);
}

static void drain_kick(struct link_core *c)
{
	eventfd_t count;
	(void)eventfd_read(c->kick_fd, &count);
	if (link_core_is_dead(c)) // then it stays readable
		(void)eventfd_write(c->kick_fd, 1);
}

bool link_core_poll(struct link_core *c, int timeout_ms)
{
	struct epoll_event events[LINK_MAX_MEMBERS + 2];
	int n = epoll_wait(c->epoll_fd, events, LINK_MAX_MEMBERS + 2, timeout_ms);
	for (int i = 0; i < n; i++) {
		uint32_t id = events[i].data.u32;
		if (id == KICK_ID)
			drain_kick(c);
		else if (id < c->group.members)
			drain_socket(c, id, events[i].events);
	}
	return n > 0;
}

// ---- sending

static bool push(struct link_core *c, uint32_t peer)
{
	struct link_core_peer *p = &c->peers[peer];
	const struct link_core_engine *engine = c->engine;
	bool moved = false;
	struct link_request *r;
	while ((r = p->sends.first) && !link_core_is_dead(c)) {
		if (engine->busy && engine->busy(c, peer))
			break;
		bool begun = r->private_[0];
		size_t left = r->room_bytes - r->bytes;
		if (!begun || left) {
			size_t head = begun ? 0 : LINK_CORE_HEADER_BYTES, space = engine->space(c, peer);
			if (space < head || space == 0)
				break;
			size_t n = left;
			if (n > space - head || !c->whole)
				n = n < c->piece_bytes ? n : c->piece_bytes;
			n = n < space - head ? n : space - head;
			struct link_core_header h = {c->group.epoch, r->room_bytes, r->tag, 0};
			engine->write(c, peer, begun ? NULL : &h, r->data + r->bytes, n);
			r->private_[0] = 1;
			r->bytes += n;
			left -= n;
			moved = true;
		}
		if (left == 0 && !(engine->busy && engine->busy(c, peer))) {
			queue_remove(&p->sends, r);
			end_request(c, r, 0);
			moved = true;
		}
	}
	return moved;
}

// ---- receiving

static struct link_request *find_receive(const struct link_core_peer *p, uint32_t tag)
{
	struct link_request *r = p->receives.first;
	while (r && r->tag != tag)
		r = r->next;
	return r;
}

static void drop_aside(struct link_core_peer *p, uint32_t i)
{
	struct link_core_aside *a = &p->aside[i];
	size_t offset = a->offset, length = a->length;
	memmove(p->aside_data + offset, p->aside_data + offset + length, p->aside_used - offset - length);
	p->aside_used -= length;
	p->aside_count--;
	memmove(a, a + 1, (p->aside_count - i) * sizeof *a);
	for (; i < p->aside_count; i++)
		p->aside[i].offset -= length;
}

/* Gives what was set aside to receives that were posted since. */
static bool match_aside(struct link_core *c, struct link_core_peer *p)
{
	bool moved = false;
	for (uint32_t i = 0; i < p->aside_count;) {
		struct link_core_aside *a = &p->aside[i];
		struct link_request *r = find_receive(p, a->tag);
		if (!r || a->got < a->length) {
			i++;
			continue;
		}
		queue_remove(&p->receives, r);
		r->bytes = a->length;
		if (a->length && a->length <= r->room_bytes)
			memcpy(r->data, p->aside_data + a->offset, a->length);
		end_request(c, r, a->length > r->room_bytes ? -EMSGSIZE : 0);
		drop_aside(p, i);
		moved = true;
	}
	return moved;
}

static bool is_aside(const struct link_core_peer *p, uint32_t tag)
{
	for (uint32_t i = 0; i < p->aside_count; i++) {
		if (p->aside[i].tag == tag)
			return true;
	}
	return false;
}

static bool is_header(const struct link_core *c, const struct link_core_header *h)
{
	return h->length <= LINK_MAX_MESSAGE_BYTES && h->epoch == c->group.epoch && !h->zero;
}

/* Decides where the message at the stream's head goes: to a receive, aside, or nowhere (then it stays in the
 * stream). */
static bool begin_incoming(
	struct link_core *c, struct link_core_peer *p, const struct link_core_header *h, bool set_aside)
{
	struct link_core_incoming *in = &p->incoming;
	struct link_request *r = is_aside(p, h->tag) ? NULL : find_receive(p, h->tag);
	in->header = *h;
	in->got = 0;
	in->request = NULL;
	in->aside = false;
	if (r) {
		queue_remove(&p->receives, r);
		if (h->length > r->room_bytes) {
			r->bytes = (size_t)h->length;
			end_request(c, r, -EMSGSIZE);
		} else {
			in->request = r;
		}
	} else {
		if (!set_aside || p->aside_count == LINK_CORE_MAX_ASIDE || h->length > c->ring_bytes - p->aside_used)
			return false;
		p->aside[p->aside_count++] = (struct link_core_aside){h->tag, p->aside_used, (size_t)h->length, 0};
		p->aside_used += (size_t)h->length;
		in->aside = true;
	}
	in->active = true;
	return true;
}

/* Where the next bytes of the message go; NULL: nowhere. */
static uint8_t *incoming_place(struct link_core_peer *p)
{
	struct link_core_incoming *in = &p->incoming;
	if (in->request)
		return in->request->data + in->got;
	return in->aside ? p->aside_data + p->aside[p->aside_count - 1].offset + in->got : NULL;
}

static void incoming_advance(struct link_core *c, struct link_core_peer *p, size_t n)
{
	struct link_core_incoming *in = &p->incoming;
	in->got += n;
	if (in->request)
		in->request->bytes += n;
	if (in->got < in->header.length)
		return;
	in->active = false;
	if (in->aside)
		p->aside[p->aside_count - 1].got = (size_t)in->header.length;
	if (in->request)
		end_request(c, in->request, 0);
}

bool link_core_deliver(struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t n)
{
	struct link_core_peer *p = &c->peers[peer];
	if (link_core_is_dead(c) || p->incoming.active == (h != NULL))
		return false;
	if (h && (!is_header(c, h) || n > h->length || !begin_incoming(c, p, h, false)))
		return false;
	if (n > p->incoming.header.length - p->incoming.got)
		return false;
	uint8_t *place = incoming_place(p);
	if (n && place)
		memcpy(place, data, n);
	incoming_advance(c, p, n);
	return true;
}

/* set_aside: something is waited for, so a message of another tag must not stand in its way. */
static bool pull(struct link_core *c, uint32_t peer, bool set_aside)
{
	struct link_core_peer *p = &c->peers[peer];
	const struct link_core_engine *engine = c->engine;
	bool moved = match_aside(c, p);
	for (int i = 0; i < PULL_PIECES && !link_core_is_dead(c); i++) {
		size_t available = engine->available(c, peer);
		if (p->incoming.active) {
			uint64_t left = p->incoming.header.length - p->incoming.got;
			size_t n = left < available ? (size_t)left : available;
			n = n < c->ring_bytes / 4 ? n : c->ring_bytes / 4; // so that both ends copy at the same time
			if (!n && left)
				break;
			uint8_t *place = incoming_place(p);
			if (n && place)
				engine->read(c, peer, place, n);
			if (n)
				engine->consume(c, peer, n);
			incoming_advance(c, p, n);
		} else {
			if (available < LINK_CORE_HEADER_BYTES)
				break;
			struct link_core_header h;
			engine->read(c, peer, &h, LINK_CORE_HEADER_BYTES);
			if (!is_header(c, &h)) {
				link_core_fail(c);
				break;
			}
			if (!begin_incoming(c, p, &h, set_aside || p->receives.first))
				break;
			engine->consume(c, peer, LINK_CORE_HEADER_BYTES);
		}
		moved = true;
		match_aside(c, p);
	}
	return moved;
}

/* After a quiet pull: what still waits for a peer that is gone waits in vain. What it left in the stream may be asked
 * for later; when nothing is left, the group ends. */
static bool check_gone(struct link_core *c, uint32_t peer)
{
	struct link_core_peer *p = &c->peers[peer];
	if (!p->gone || link_core_is_dead(c) || (c->engine->drained && !c->engine->drained(c, peer)))
		return false;
	bool ended = p->receives.first || p->sends.first;
	bool empty = !p->aside_count && c->engine->available(c, peer) < LINK_CORE_HEADER_BYTES;
	if (p->incoming.active || empty || (p->sends.first && c->engine->busy && c->engine->busy(c, peer))) {
		link_core_fail(c);
		return ended;
	}
	end_queue(c, &p->receives);
	end_queue(c, &p->sends);
	return ended;
}

static bool move(struct link_core *c)
{
	bool moved = false;
	if (link_core_is_dead(c)) {
		end_all(c);
		return false;
	}
	if (c->engine->pump)
		moved = c->engine->pump(c);
	for (uint32_t i = 0; i < c->group.members && !link_core_is_dead(c); i++) {
		if (c->peers[i].fd < 0)
			continue;
		// `gone` was set before this pull, so the pull sees all that the peer ever wrote.
		bool quiet = !pull(c, i, false);
		quiet &= !push(c, i);
		if (quiet && check_gone(c, i))
			quiet = false;
		moved |= !quiet;
	}
	if (link_core_is_dead(c)) // also when another thread revoked meanwhile
		end_all(c);
	return moved;
}

// ---- the verbs

static int start(struct link_core *c, struct link_request *r, uint32_t peer, uint32_t tag, void *data, size_t bytes)
{
	*r = (struct link_request){.group = &c->group,
		.status = -EINPROGRESS,
		.peer = peer,
		.tag = tag,
		.data = data,
		.room_bytes = bytes};
	if (peer >= c->group.members || c->peers[peer].fd < 0)
		r->status = -ENOTCONN;
	else if (link_core_is_dead(c))
		r->status = -ECONNRESET;
	return r->status;
}

void link_core_send(
	struct link_group *group, uint32_t to, uint32_t tag, const void *data, size_t bytes, struct link_request *r)
{
	struct link_core *c = link_core_of(group);
	if (start(c, r, to, tag, (void *)data, bytes) != -EINPROGRESS)
		return;
	struct link_core_peer *p = &c->peers[to];
	if (bytes > LINK_MAX_MESSAGE_BYTES) {
		r->status = -EMSGSIZE;
	} else if (p->gone) {
		r->status = -ECONNRESET; // the group lives until what the peer left has been received
	} else {
		queue_append(&p->sends, r);
		push(c, to);
		if (r->status == -EINPROGRESS)
			kick(c); // progress() did not arm for the space that it waits for
	}
}

void link_core_receive(
	struct link_group *group, uint32_t from, uint32_t tag, void *data, size_t room_bytes, struct link_request *r)
{
	struct link_core *c = link_core_of(group);
	if (start(c, r, from, tag, data, room_bytes) != -EINPROGRESS)
		return;
	queue_append(&c->peers[from].receives, r);
	if (pull(c, from, false))
		kick(c);
}

int link_core_test(struct link_group *group, struct link_request *r)
{
	struct link_core *c = link_core_of(group);
	if (r->status == -EINPROGRESS) {
		bool woken = link_core_poll(c, 0);
		if (move(c) || woken)
			kick(c);
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

/* Lets a moment pass. Now and then it offers the core to whoever else is runnable, perhaps the one that is waited for;
 * false when somebody took it: then spinning costs more than it saves. */
static bool relax(uint32_t *turns)
{
#if defined(__x86_64__)
	for (int i = 0; i < 8; i++)
		__builtin_ia32_pause();
#endif
	if (++*turns % 8)
		return true;
	uint64_t before = base_clock_now_ns();
	sched_yield();
	return base_clock_now_ns() - before < YIELD_NS;
}

int link_core_wait(struct link_group *group, struct link_request *r, uint64_t deadline_ns)
{
	struct link_core *c = link_core_of(group);
	bool spin = c->spin;
	uint32_t turns = 0;
	uint64_t quiet_since = spin ? base_clock_now_ns() : 0;
	while (r->status == -EINPROGRESS) {
		bool moved = move(c);
		if (r->status != -EINPROGRESS)
			break;
		uint64_t now = base_clock_now_ns();
		if (now >= deadline_ns) {
			link_core_test(group, r);
			return r->status == -EINPROGRESS ? -ETIMEDOUT : r->status;
		}
		if (moved) {
			quiet_since = now;
			continue;
		}
		if (spin && now - quiet_since < SPIN_NS) {
			spin = relax(&turns);
			continue;
		}
		bool armed = c->engine->arm(c);
		if (armed && !move(c) && r->status == -EINPROGRESS) {
			link_core_poll(c, timeout_ms(now, deadline_ns));
			quiet_since = spin ? base_clock_now_ns() : 0;
		}
		c->engine->disarm(c);
	}
	kick(c);
	return r->status;
}

void link_core_cancel(struct link_group *group, struct link_request *r)
{
	struct link_core *c = link_core_of(group);
	if (r->status == -EINPROGRESS && r->peer < group->members && queue_remove(&c->peers[r->peer].receives, r))
		r->status = -ECANCELED;
}

int link_core_progress(struct link_group *group, uint32_t budget)
{
	struct link_core *c = link_core_of(group);
	uint64_t before = c->ended;
	c->engine->disarm(c);
	link_core_poll(c, 0);
	for (;;) {
		bool moved = move(c);
		if (c->ended - before >= budget)
			break;
		if (moved)
			continue;
		bool armed = c->engine->arm(c);
		if (armed && !move(c))
			break;
		c->engine->disarm(c);
	}
	return (int)(c->ended - before);
}

int link_core_event_fd(struct link_group *group)
{
	struct link_core *c = link_core_of(group);
	if (!atomic_exchange(&c->watched, true))
		kick(c);
	return c->epoll_fd;
}

int link_core_peek(struct link_group *group, uint32_t from, uint32_t tag, size_t *ret_bytes)
{
	struct link_core *c = link_core_of(group);
	if (from >= group->members || c->peers[from].fd < 0)
		return -ENOTCONN;
	struct link_core_peer *p = &c->peers[from];
	for (int pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < p->aside_count; i++) {
			if (p->aside[i].tag == tag) {
				*ret_bytes = p->aside[i].length;
				return 0;
			}
		}
		struct link_core_header h;
		if (!link_core_is_dead(c) && !p->incoming.active &&
			c->engine->available(c, from) >= LINK_CORE_HEADER_BYTES) {
			c->engine->read(c, from, &h, LINK_CORE_HEADER_BYTES);
			if (h.tag == tag && is_header(c, &h)) {
				*ret_bytes = (size_t)h.length;
				return 0;
			}
		}
		if (pass == 0) { // what is in front has another tag
			link_core_poll(c, 0);
			if (c->engine->pump && !link_core_is_dead(c))
				c->engine->pump(c);
			pull(c, from, true);
			check_gone(c, from);
			kick(c);
		}
	}
	return link_core_is_dead(c) ? -ECONNRESET : -EAGAIN;
}

// ---- allreduce

struct exchange {
	struct link_request sends[LINK_MAX_MEMBERS], receives[LINK_MAX_MEMBERS];
};

/* Begins with one peer; nothing is sent or received where there are no floats. */
static void exchange_begin(struct link_core *c, struct exchange *x, uint32_t peer, const float *out, size_t out_count,
	float *in, size_t in_count)
{
	x->sends[peer].status = x->receives[peer].status = 0;
	x->receives[peer].bytes = x->receives[peer].room_bytes = 0;
	if (in_count)
		link_core_receive(&c->group, peer, LINK_TAG_ALLREDUCE, in, in_count * sizeof *in, &x->receives[peer]);
	if (out_count)
		link_core_send(&c->group, peer, LINK_TAG_ALLREDUCE, out, out_count * sizeof *out, &x->sends[peer]);
}

/* The requests must have ended when this returns: an error ends the group. */
static int exchange_end(struct link_core *c, struct exchange *x, uint64_t deadline_ns)
{
	int status = 0;
	for (uint32_t i = 0; i < c->group.members && !status; i++) {
		if (i == c->group.me)
			continue;
		status = link_core_wait(&c->group, &x->receives[i], deadline_ns);
		if (!status && x->receives[i].bytes != x->receives[i].room_bytes)
			status = -EPROTO; // the members do not agree about the count
		if (!status)
			status = link_core_wait(&c->group, &x->sends[i], deadline_ns);
	}
	if (status)
		link_core_fail(c);
	return status;
}

/* sums[i] is member i's; own are mine. Always in member order. */
static void add_members(const struct link_core *c, const float *own, float *out, size_t count)
{
	uint32_t members = c->group.members, me = c->group.me;
	const float *first = me == 0 ? own : c->sums;
	if (out != first)
		memmove(out, first, count * sizeof *out); // `out` may be `own` only for member 0, see the callers
	for (uint32_t i = 1; i < members; i++) {
		const float *term = i == me ? own : c->sums + (size_t)i * LINK_CORE_SUM_FLOATS;
		for (size_t k = 0; k < count; k++)
			out[k] += term[k];
	}
}

/* Every member gets every other's numbers and adds all of them in the same order. */
static int allreduce_exchange(struct link_core *c, float *x, size_t count, uint64_t deadline_ns)
{
	struct exchange e;
	uint32_t me = c->group.me;
	float *own = c->sums + (size_t)me * LINK_CORE_SUM_FLOATS;
	for (uint32_t i = 0; i < c->group.members; i++) {
		if (i != me)
			exchange_begin(c, &e, i, x, count, c->sums + (size_t)i * LINK_CORE_SUM_FLOATS, count);
	}
	if (me)
		memcpy(own, x, count * sizeof *x); // while the messages are on their way
	int r = exchange_end(c, &e, deadline_ns);
	if (r == 0)
		add_members(c, me ? own : x, x, count);
	return r;
}

/* Every member adds a share of the numbers, in member order like above, and sends it to all: two steps, but a member
 * sends each number twice and not once to everybody. */
static int allreduce_shares(struct link_core *c, float *x, size_t count, uint64_t deadline_ns)
{
	struct exchange e;
	uint32_t me = c->group.me, members = c->group.members;
	size_t share = (count + members - 1) / members, at[LINK_MAX_MEMBERS + 1];
	for (uint32_t i = 0; i <= members; i++)
		at[i] = i * share < count ? i * share : count;
	size_t mine = at[me + 1] - at[me];
	for (uint32_t i = 0; i < members; i++) {
		if (i != me)
			exchange_begin(c, &e, i, x + at[i], at[i + 1] - at[i],
				c->sums + (size_t)i * LINK_CORE_SUM_FLOATS, mine);
	}
	int r = exchange_end(c, &e, deadline_ns);
	if (r < 0)
		return r;
	float *own = c->sums + (size_t)me * LINK_CORE_SUM_FLOATS;
	memcpy(own, x + at[me], mine * sizeof *x);
	add_members(c, own, x + at[me], mine);
	for (uint32_t i = 0; i < members; i++) {
		if (i != me)
			exchange_begin(c, &e, i, x + at[me], mine, x + at[i], at[i + 1] - at[i]);
	}
	return exchange_end(c, &e, deadline_ns);
}

int link_core_allreduce(struct link_group *group, float *x, size_t count, uint64_t deadline_ns)
{
	struct link_core *c = link_core_of(group);
	for (size_t done = 0; done < count;) {
		size_t n = count - done < LINK_CORE_SUM_FLOATS ? count - done : LINK_CORE_SUM_FLOATS;
		int r = group->members > EXCHANGE_MEMBERS ? allreduce_shares(c, x + done, n, deadline_ns)
							  : allreduce_exchange(c, x + done, n, deadline_ns);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

int link_core_flush(struct link_group *group, uint64_t deadline_ns)
{
	struct link_core *c = link_core_of(group);
	while (c->engine->settled && !link_core_is_dead(c) && !c->engine->settled(c)) {
		uint64_t now = base_clock_now_ns();
		if (now >= deadline_ns)
			return -ETIMEDOUT;
		if (!move(c) && !link_core_is_dead(c) && c->engine->arm(c)) {
			int ms = timeout_ms(now, deadline_ns);
			link_core_poll(c, ms < 0 || ms > FLUSH_MS ? FLUSH_MS : ms);
		}
		c->engine->disarm(c);
		kick(c);
	}
	return link_core_is_dead(c) ? -ECONNRESET : 0;
}

// ---- life

int link_core_check(
	const int *fds, uint32_t members, uint32_t me, size_t ring_bytes, size_t *ret_ring_bytes, struct base_error *e)
{
	if (members == 0 || members > LINK_MAX_MEMBERS || me >= members || fds[me] >= 0)
		return base_error_set(e, -EINVAL, "link: member %u of %u, at most %u, none linked to itself", me,
			members, LINK_MAX_MEMBERS);
	if (ring_bytes > LINK_MAX_RING_BYTES)
		return base_error_set(
			e, -EINVAL, "link: rings of %zu bytes, at most %llu", ring_bytes, LINK_MAX_RING_BYTES);
	size_t n = ring_bytes ? LINK_MIN_RING_BYTES : 0;
	while (n < ring_bytes)
		n *= 2;
	*ret_ring_bytes = n;
	return 0;
}

int link_core_agree(struct link_core *c, uint32_t peer, const struct link_core_hello *h, uint32_t magic,
	uint32_t version, struct base_error *e)
{
	if (h->magic != magic)
		return base_error_set(e, -EPROTO, "link: what member %u sent is not a hello", peer);
	if (h->version != version)
		return base_error_set(e, -EPROTO,
			"link: member %u speaks version %u, this is version %u: restart both with the same build", peer,
			h->version, version);
	if (h->members != c->group.members || h->from != peer || h->to != c->group.me)
		return base_error_set(e, -EPROTO, "link: member %u of %u is told of as member %u of %u to %u", peer,
			c->group.members, h->from, h->members, h->to);
	if (h->epoch == 0 || (c->group.epoch && h->epoch != c->group.epoch))
		return base_error_set(e, -EPROTO, "link: member %u is of epoch %llu, this is epoch %llu", peer,
			(unsigned long long)h->epoch, (unsigned long long)c->group.epoch);
	if (h->ring_bytes < LINK_MIN_RING_BYTES || h->ring_bytes > LINK_MAX_RING_BYTES ||
		(h->ring_bytes & (h->ring_bytes - 1)) || (c->ring_bytes && h->ring_bytes != c->ring_bytes))
		return base_error_set(e, -EPROTO, "link: member %u wants rings of %llu bytes, this is for %zu", peer,
			(unsigned long long)h->ring_bytes, c->ring_bytes);
	c->group.epoch = h->epoch;
	c->ring_bytes = (size_t)h->ring_bytes;
	return 0;
}

void link_core_init(struct link_core *c, const struct link_ops *ops, const struct link_core_engine *engine,
	uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes)
{
	*c = (struct link_core){
		.group = {ops, epoch, members, me}, .engine = engine, .ring_bytes = ring_bytes, .whole = true};
	c->epoll_fd = c->kick_fd = -1;
	for (uint32_t i = 0; i < members; i++)
		c->peers[i].fd = -1;
	// Spinning takes the CPU from whoever would do the work that is waited for, unless there are CPUs to spare.
	cpu_set_t cpus;
	c->spin = sched_getaffinity(0, sizeof cpus, &cpus) == 0 && (uint32_t)CPU_COUNT(&cpus) >= members;
}

static int watch(struct link_core *c, int fd, uint32_t events, uint32_t id)
{
	struct epoll_event ev = {.events = events, .data.u32 = id};
	return epoll_ctl(c->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

int link_core_watch(struct link_core *c, int fd, uint32_t events)
{
	return watch(c, fd, events, ENGINE_ID);
}

static int take_resources(struct link_core *c, const int *fds)
{
	c->piece_bytes = c->ring_bytes / 4; // pieces, so that both ends copy at the same time
	c->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	c->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->epoll_fd < 0 || c->kick_fd < 0)
		return -errno;
	int r = watch(c, c->kick_fd, EPOLLIN, KICK_ID);
	c->sums = malloc(c->group.members * LINK_CORE_SUM_FLOATS * sizeof *c->sums);
	if (!c->sums)
		return -ENOMEM;
	for (uint32_t i = 0; i < c->group.members && !r; i++) {
		if (fds[i] < 0)
			continue;
		c->peers[i].aside_data = malloc(c->ring_bytes);
		if (!c->peers[i].aside_data)
			return -ENOMEM;
		r = watch(c, fds[i], EPOLLIN | EPOLLRDHUP, i);
	}
	return r;
}

int link_core_start(struct link_core *c, const int *fds, struct base_error *e)
{
	int r = take_resources(c, fds);
	if (r < 0)
		return base_error_set(e, r, "link: %s for %u members", strerrordesc_np(-r), c->group.members);
	for (uint32_t i = 0; i < c->group.members; i++)
		c->peers[i].fd = fds[i];
	return 0;
}

void link_core_forget_fds(struct link_core *c)
{
	for (uint32_t i = 0; i < c->group.members; i++)
		c->peers[i].fd = -1;
}

void link_core_finish(struct link_core *c)
{
	for (uint32_t i = 0; i < c->group.members; i++)
		free(c->peers[i].aside_data);
	free(c->sums);
	if (c->epoll_fd >= 0)
		close(c->epoll_fd);
	if (c->kick_fd >= 0)
		close(c->kick_fd);
}

void link_core_close(struct link_group *group)
{
	if (!group)
		return;
	struct link_core *c = link_core_of(group);
	if (c->engine->leave && !link_core_is_dead(c))
		c->engine->leave(c);
	link_core_fail(c);
	for (uint32_t i = 0; i < group->members; i++) {
		if (c->peers[i].fd >= 0)
			close(c->peers[i].fd);
	}
	c->engine->destroy(c);
}
