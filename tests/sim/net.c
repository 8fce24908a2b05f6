// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/net.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/core.h"
#include "shard/link/rendezvous.h"

#define WIRE_SILENT_NS (3 * SIM_SECOND)
#define MAX_LIVES 64u
#define MAX_OLD 64u
#define MEET_NS (2 * SIM_MS)
#define HELLO_MAGIC 0x73696d6cu

struct piece {
	struct piece *next;
	uint64_t due_ns;
	size_t bytes;
	bool old; // a message of an earlier epoch
	bool end; // of the stream
	uint8_t data[];
};

struct wire;
struct end {
	struct wire *wire;
	struct sim_place place;
	ino_t inode; // of the socket that production code has
	int net_fd; // the other end of that; -1: over
	struct piece *first, *last; // on their way here
	uint64_t last_due_ns;
	size_t coming_bytes;
	uint8_t *in; // arrived, not consumed
	size_t in_bytes, in_room;
	uint64_t consumed, old_at; // bytes ever; where a message of an earlier epoch begins, 0: nowhere
	bool closed; // by its owner
	bool told; // its owner was told the end
};

struct wire {
	struct wire *next;
	struct end end[2];
	uint64_t quiet_ns; // blocked since then; 0: not
	bool over;
	struct sim_fiber *fiber;
};

struct path {
	bool blocked;
	uint64_t base_ns, more_ns;
};

struct old { // a whole message of some epoch
	uint32_t from, to;
	uint64_t epoch;
	size_t bytes;
	uint8_t *data;
};

struct meeting {
	struct meeting *next;
	uint8_t secret[LINK_RENDEZVOUS_SECRET_BYTES];
	uint64_t epoch;
	struct {
		bool here;
		struct sim_place place;
		int fds[LINK_MAX_MEMBERS];
	} member[LINK_MAX_MEMBERS];
};

static struct {
	uint32_t nodes;
	struct path path[SIM_MAX_NODES][SIM_MAX_NODES];
	uint8_t dead[SIM_MAX_NODES][MAX_LIVES]; // 1 + enum sim_death
	struct wire *wires;
	struct meeting *meetings;
	struct old old[MAX_OLD];
	uint32_t old_next;
	uint16_t last_port;
} n;

// ---- paths and processes

void sim_net_init(uint32_t nodes, bool near)
{
	uint64_t most = (near ? 1 : sim_between(1, 12)) * SIM_MS;
	n.nodes = nodes;
	for (uint32_t a = 0; a < nodes; a++) {
		for (uint32_t b = 0; b < nodes; b++)
			n.path[a][b].base_ns = sim_between(SIM_MS / 20, a == b ? 2 * SIM_MS : most);
	}
}

static uint8_t death(struct sim_place p)
{
	return n.dead[p.node][p.life % MAX_LIVES];
}

bool sim_net_alive(struct sim_place p)
{
	return !death(p);
}

bool sim_net_blocked(uint32_t from, uint32_t to)
{
	return n.path[from][to].blocked;
}

uint64_t sim_net_delay(uint32_t from, uint32_t to)
{
	const struct path *p = &n.path[from][to];
	return p->base_ns + sim_draw(p->base_ns) + (p->more_ns ? sim_draw(p->more_ns) : 0);
}

static void wake_wires(void)
{
	for (struct wire *w = n.wires; w; w = w->next)
		sim_wake(w, true);
	sim_control_look();
}

void sim_net_block(uint32_t from, uint32_t to, bool on)
{
	n.path[from][to].blocked = on;
	wake_wires();
}

void sim_net_slow(uint32_t from, uint32_t to, uint64_t more_ns)
{
	n.path[from][to].more_ns = more_ns;
}

// ---- wires

static void poke(struct end *e)
{
	if (e->net_fd >= 0)
		(void)!send(e->net_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static struct piece *push(struct end *to, const void *head, size_t head_bytes, const void *data, size_t bytes, bool end)
{
	struct end *from = &to->wire->end[to == &to->wire->end[0]];
	struct piece *p = malloc(sizeof *p + head_bytes + bytes);
	if (!p)
		sim_fail("no memory for a message");
	*p = (struct piece){.bytes = head_bytes + bytes, .end = end};
	if (head_bytes)
		memcpy(p->data, head, head_bytes);
	if (bytes)
		memcpy(p->data + head_bytes, data, bytes);
	p->due_ns = sim_now() + sim_net_delay(from->place.node, to->place.node);
	if (p->due_ns <= to->last_due_ns)
		p->due_ns = to->last_due_ns + 1; // TCP keeps the order
	to->last_due_ns = p->due_ns;
	to->coming_bytes += p->bytes;
	*(to->last ? &to->last->next : &to->first) = p;
	to->last = p;
	sim_wake(to->wire, true);
	return p;
}

static struct piece *pop(struct end *to)
{
	struct piece *p = to->first;
	to->first = p->next;
	if (!to->first)
		to->last = NULL;
	to->coming_bytes -= p->bytes;
	return p;
}

static void arrive(struct end *to, const uint8_t *data, size_t bytes)
{
	if (to->in_bytes + bytes > to->in_room) {
		to->in_room = 2 * (to->in_bytes + bytes);
		to->in = realloc(to->in, to->in_room);
		if (!to->in)
			sim_fail("no memory for a stream");
	}
	if (bytes)
		memcpy(to->in + to->in_bytes, data, bytes);
	to->in_bytes += bytes;
}

static void tell_end(struct end *to)
{
	if (to->told)
		return;
	to->told = true;
	if (to->net_fd >= 0)
		shutdown(to->net_fd, SHUT_RDWR);
}

static void drop_pieces(struct end *to)
{
	while (to->first)
		free(pop(to));
}

/* What was on its way comes in part: the end is in the middle of a message, or between two. */
static void reset(struct wire *w, bool both)
{
	for (uint32_t side = 0; side < 2; side++) {
		struct end *to = &w->end[side];
		uint64_t left = to->coming_bytes ? sim_draw(to->coming_bytes + 1) : 0;
		if (!both && !sim_net_alive(to->place))
			left = 0;
		while (to->first && !to->told) {
			struct piece *p = pop(to);
			size_t bytes = p->bytes < left ? p->bytes : (size_t)left;
			arrive(to, p->data, bytes);
			left -= bytes;
			free(p);
		}
		drop_pieces(to);
		tell_end(to);
	}
}

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);

static bool hung_up(const struct end *e)
{
	struct pollfd p = {.fd = e->net_fd, .events = POLLRDHUP};
	return e->net_fd < 0 || (__real_poll(&p, 1, 0) > 0 && p.revents);
}

static void deliver(struct wire *w, struct end *to)
{
	const struct end *from = &w->end[to == &w->end[0]];
	bool moved = false;
	while (to->first && to->first->due_ns <= sim_now() && !sim_net_blocked(from->place.node, to->place.node)) {
		struct piece *p = pop(to);
		if (p->old && !to->old_at)
			to->old_at = 1 + to->consumed + to->in_bytes;
		arrive(to, p->data, p->bytes);
		if (p->end)
			tell_end(to);
		moved = true;
		free(p);
	}
	if (moved)
		poke(to);
}

static void look_at_silence(struct wire *w)
{
	uint32_t a = w->end[0].place.node, b = w->end[1].place.node;
	bool gone = death(w->end[0].place) == 1 + SIM_GONE || death(w->end[1].place) == 1 + SIM_GONE;
	bool blocked = gone || sim_net_blocked(a, b) || sim_net_blocked(b, a);
	if (!blocked)
		w->quiet_ns = 0;
	else if (!w->quiet_ns)
		w->quiet_ns = sim_now();
	else if (sim_now() >= w->quiet_ns + WIRE_SILENT_NS)
		reset(w, false);
}

static uint64_t next_due(const struct wire *w)
{
	uint64_t due = w->quiet_ns ? w->quiet_ns + WIRE_SILENT_NS : SIM_NEVER;
	for (uint32_t side = 0; side < 2; side++) {
		const struct end *to = &w->end[side], *from = &w->end[!side];
		if (to->first && to->first->due_ns < due && !sim_net_blocked(from->place.node, to->place.node))
			due = to->first->due_ns;
	}
	return due;
}

static void *wire_run(void *argument)
{
	struct wire *w = argument;
	while (!w->end[0].closed || !w->end[1].closed) {
		struct pollfd fds[2];
		uint32_t count = 0;
		for (uint32_t side = 0; side < 2; side++) {
			struct end *e = &w->end[side];
			if (!e->closed && hung_up(e)) {
				e->closed = true;
				if (!e->told)
					push(&w->end[!side], NULL, 0, NULL, 0, true);
				e->told = true;
			}
			if (!e->closed)
				fds[count++] = (struct pollfd){.fd = e->net_fd, .events = POLLRDHUP};
		}
		look_at_silence(w);
		deliver(w, &w->end[0]);
		deliver(w, &w->end[1]);
		if (w->end[0].closed && w->end[1].closed)
			break;
		uint64_t due = next_due(w);
		if (due > sim_now())
			sim_wait(w, fds, count, due);
	}
	for (uint32_t side = 0; side < 2; side++) {
		drop_pieces(&w->end[side]);
		close(w->end[side].net_fd);
		w->end[side].net_fd = -1;
	}
	w->over = true;
	return NULL;
}

static int make_end(struct wire *w, uint32_t side, struct sim_place place)
{
	int pair[2];
	struct stat st;
	struct end *e = &w->end[side];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0 || fstat(pair[0], &st) < 0)
		sim_fail("no socket: %s", strerrordesc_np(errno));
	e->wire = w;
	e->place = place;
	e->inode = st.st_ino;
	e->net_fd = pair[1];
	return pair[0];
}

static void connect_two(struct sim_place a, struct sim_place b, int *ret_a, int *ret_b)
{
	struct wire *w = calloc(1, sizeof *w);
	if (!w)
		sim_fail("no memory for a connection");
	*ret_a = make_end(w, 0, a);
	*ret_b = make_end(w, 1, b);
	w->next = n.wires;
	n.wires = w;
	w->fiber = sim_start(SIM_NOWHERE, "wire", wire_run, w);
	sim_detach(w->fiber);
}

static struct end *find_end(int fd)
{
	struct stat st;
	if (fstat(fd, &st) < 0)
		return NULL;
	for (struct wire *w = n.wires; w; w = w->next) {
		for (uint32_t side = 0; side < 2 && !w->over; side++) {
			if (w->end[side].inode == st.st_ino)
				return &w->end[side];
		}
	}
	return NULL;
}

void sim_net_die(struct sim_place p, enum sim_death how)
{
	n.dead[p.node][p.life % MAX_LIVES] = (uint8_t)(1 + how);
	for (struct wire *w = n.wires; w; w = w->next) {
		for (uint32_t side = 0; side < 2 && !w->over; side++) {
			struct end *e = &w->end[side];
			if (e->place.node != p.node || e->place.life != p.life)
				continue;
			if (how == SIM_KILLED)
				reset(w, false);
			drop_pieces(e);
			drop_pieces(&w->end[!side]);
			tell_end(e);
			e->closed = true; // what it still says reaches nobody
			break;
		}
	}
	wake_wires();
}

void sim_net_cut(uint32_t a, uint32_t b)
{
	for (struct wire *w = n.wires; w; w = w->next) {
		uint32_t x = w->end[0].place.node, y = w->end[1].place.node;
		if (!w->over && ((x == a && y == b) || (x == b && y == a)))
			reset(w, true);
	}
	wake_wires();
}

void sim_net_reset_socket(int fd)
{
	struct end *e = find_end(fd);
	if (e)
		reset(e->wire, true);
	wake_wires();
}

// ---- messages of earlier epochs

static void remember(const struct end *to, const struct link_core_header *h, const void *data, size_t bytes)
{
	const struct end *from = &to->wire->end[to == &to->wire->end[0]];
	struct old *o = &n.old[n.old_next++ % MAX_OLD];
	free(o->data);
	*o = (struct old){
		.from = from->place.node, .to = to->place.node, .epoch = h->epoch, .bytes = sizeof *h + bytes};
	o->data = malloc(o->bytes);
	if (!o->data)
		sim_fail("no memory for a message");
	memcpy(o->data, h, sizeof *h);
	memcpy(o->data + sizeof *h, data, bytes);
}

/* At the end of the stream, where no message has begun and not ended. */
static bool replay_into(struct end *to, uint64_t epoch)
{
	const struct end *from = &to->wire->end[to == &to->wire->end[0]];
	for (uint32_t i = 0; i < MAX_OLD; i++) {
		const struct old *o = &n.old[(n.old_next + i) % MAX_OLD];
		if (!o->data || o->from != from->place.node || o->to != to->place.node || o->epoch >= epoch)
			continue;
		push(to, o->data, o->bytes, NULL, 0, false)->old = true;
		return true;
	}
	return false;
}

// ---- the engine under link_core

struct group {
	struct link_core core; // first: link_core_of
	struct end *end[LINK_MAX_MEMBERS];
	size_t owed[LINK_MAX_MEMBERS]; // of the message that is going out
	struct group *next;
};

static struct group *groups;

static struct group *group(struct link_core *c)
{
	return (struct group *)c;
}

static struct end *other(struct end *e)
{
	return &e->wire->end[e == &e->wire->end[0]];
}

static size_t available(struct link_core *c, uint32_t peer)
{
	return group(c)->end[peer]->in_bytes;
}

static void read_in(struct link_core *c, uint32_t peer, void *out, size_t bytes)
{
	memcpy(out, group(c)->end[peer]->in, bytes);
}

static void consume(struct link_core *c, uint32_t peer, size_t bytes)
{
	struct end *e = group(c)->end[peer];
	memmove(e->in, e->in + bytes, e->in_bytes - bytes);
	e->in_bytes -= bytes;
	e->consumed += bytes;
	if (e->old_at && e->consumed >= e->old_at)
		sim_fail("member %u of epoch %llu takes a message of an earlier epoch", c->group.me,
			(unsigned long long)c->group.epoch);
	if (!e->wire->over && !e->closed && !other(e)->told)
		push(other(e), NULL, 0, NULL, 0, false); // there is room again
}

static size_t space(struct link_core *c, uint32_t peer)
{
	const struct end *to = other(group(c)->end[peer]);
	size_t used = to->coming_bytes + to->in_bytes;
	return used < c->ring_bytes ? c->ring_bytes - used : 0;
}

static void write_out(
	struct link_core *c, uint32_t peer, const struct link_core_header *h, const void *data, size_t bytes)
{
	struct end *e = group(c)->end[peer], *to = other(e);
	if (h)
		group(c)->owed[peer] = (size_t)h->length;
	group(c)->owed[peer] -= bytes;
	if (e->wire->over || e->closed || to->told || e->told)
		return;
	push(to, h, h ? sizeof *h : 0, data, bytes, false);
	if (h && h->length == bytes)
		remember(to, h, data, bytes);
}

static bool arm(struct link_core *c)
{
	return true; // what arrives makes a socket readable, and that stays so until it is read
}

static void disarm(struct link_core *c)
{
}

static void destroy(struct link_core *c)
{
	struct group **at = &groups;
	while (*at && *at != group(c))
		at = &(*at)->next;
	if (*at)
		*at = group(c)->next;
	link_core_finish(c);
	free(c);
}

static const struct link_core_engine engine = {
	.available = available,
	.read = read_in,
	.consume = consume,
	.space = space,
	.write = write_out,
	.arm = arm,
	.disarm = disarm,
	.destroy = destroy,
};

bool sim_net_replay(void)
{
	for (struct group *g = groups; g; g = g->next) {
		for (uint32_t i = 0; i < g->core.group.members; i++) {
			struct end *e = g->end[i];
			if (!e || e->wire->over || e->told || e->closed || g->owed[i] || other(e)->told ||
				!sim_chance(300))
				continue;
			if (replay_into(other(e), g->core.group.epoch))
				return true;
		}
	}
	return false;
}

// ---- hellos, as local_hello.c says them

static void tell(struct group *g, uint32_t peer)
{
	struct link_core_hello h = {HELLO_MAGIC, 1, g->core.group.members, g->core.group.me, peer, 0,
		g->core.group.epoch, g->core.ring_bytes};
	struct end *e = g->end[peer];
	if (!e->closed && !e->told)
		push(other(e), NULL, 0, &h, sizeof h, false);
}

static int hear(struct group *g, uint32_t peer, int fd, const struct link_patience *patience, struct base_error *e)
{
	struct link_core_hello h;
	struct end *x = g->end[peer];
	char bytes[64];
	while (x->in_bytes < sizeof h) {
		struct pollfd p = {.fd = fd, .events = POLLIN | POLLRDHUP};
		uint64_t now = base_clock_now_ns();
		ssize_t got = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
		if (x->in_bytes >= sizeof h)
			break;
		if (got == 0 || (got < 0 && errno != EAGAIN))
			return base_error_set(e, -ECONNRESET, "link: member %u closed before its hello", peer);
		if (now >= patience->deadline_ns)
			return base_error_set(e, -ETIMEDOUT, "link: no hello of member %u", peer);
		uint64_t left = patience->deadline_ns - now;
		if (got < 0)
			poll(&p, 1, (int)((left < LINK_LOOK_NS ? left : LINK_LOOK_NS) / SIM_MS + 1));
		int status = patience->look ? patience->look(patience->context, e) : 0;
		if (status)
			return status;
	}
	memcpy(&h, x->in, sizeof h);
	consume(&g->core, peer, sizeof h);
	return link_core_agree(&g->core, peer, &h, HELLO_MAGIC, 1, e);
}

static int greet(struct group *g, const int *fds, const struct link_patience *patience, struct base_error *e)
{
	uint32_t me = g->core.group.me;
	int r = 0;
	for (uint32_t i = 0; i < g->core.group.members; i++) {
		g->end[i] = fds[i] < 0 ? NULL : find_end(fds[i]);
		if (fds[i] >= 0 && !g->end[i])
			return base_error_set(e, -ENOTCONN, "link: member %u is not connected any more", i);
	}
	for (uint32_t i = 0; i < me && !r; i++) {
		if (!g->end[i])
			continue;
		r = hear(g, i, fds[i], patience, e);
		if (!r)
			tell(g, i);
	}
	for (uint32_t i = me + 1; i < g->core.group.members && !r; i++) {
		if (g->end[i])
			tell(g, i);
	}
	for (uint32_t i = me + 1; i < g->core.group.members && !r; i++) {
		if (g->end[i])
			r = hear(g, i, fds[i], patience, e);
	}
	return r;
}

static int create(const int *fds, uint32_t members, uint32_t me, uint64_t epoch, size_t ring_bytes,
	const struct link_patience *patience, struct link_group **ret_group, struct base_error *e)
{
	int r = link_core_check(fds, members, me, ring_bytes, &ring_bytes, e);
	if (r < 0)
		return r;
	struct group *g = calloc(1, sizeof *g);
	if (!g)
		return base_error_set(e, -ENOMEM, "link: no memory for a group");
	link_core_init(&g->core, &sim_link_ops, &engine, members, me, epoch, ring_bytes);
	r = greet(g, fds, patience, e);
	if (r == 0)
		r = link_core_start(&g->core, fds, e);
	if (r < 0) {
		destroy(&g->core);
		return r;
	}
	g->next = groups;
	groups = g;
	*ret_group = &g->core.group;
	return 0;
}

const struct link_ops sim_link_ops = {
	.capabilities = {.name = "sim", .host_memory = true},
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

/* What production code calls the engine between hosts. */
extern const struct link_ops __wrap_link_ucx_ops __attribute__((alias("sim_link_ops")));

// ---- rendezvous

__typeof__(link_rendezvous_listen) __wrap_link_rendezvous_listen;
int __wrap_link_rendezvous_listen(
	const char *address, uint16_t first, uint16_t last, int *ret_fd, uint16_t *ret_port, struct base_error *e)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (fd < 0)
		sim_fail("no eventfd");
	*ret_fd = fd;
	*ret_port = (uint16_t)(20000 + n.last_port++ % 40000);
	return 0;
}

static struct meeting *find_meeting(const struct link_rendezvous_group *g)
{
	for (struct meeting *m = n.meetings; m; m = m->next) {
		if (memcmp(m->secret, g->secret, sizeof m->secret) == 0)
			return m;
	}
	struct meeting *m = calloc(1, sizeof *m);
	if (!m)
		sim_fail("no memory for a meeting");
	memcpy(m->secret, g->secret, sizeof m->secret);
	m->epoch = g->epoch;
	m->next = n.meetings;
	n.meetings = m;
	return m;
}

/* Connects whoever is there and can hear each other; true: nobody is missing to me. */
static bool meet(struct meeting *m, const struct link_rendezvous_group *g)
{
	bool all = true;
	for (uint32_t i = 0; i < g->members; i++) {
		if (i == g->me || m->member[g->me].fds[i] >= 0)
			continue;
		uint32_t a = m->member[g->me].place.node, b = m->member[i].place.node;
		if (!m->member[i].here || !sim_net_alive(m->member[i].place) ||
			!sim_net_alive(m->member[g->me].place) || sim_net_blocked(a, b) || sim_net_blocked(b, a)) {
			all = false;
			continue;
		}
		connect_two(
			m->member[g->me].place, m->member[i].place, &m->member[g->me].fds[i], &m->member[i].fds[g->me]);
	}
	return all;
}

__typeof__(link_rendezvous_connect) __wrap_link_rendezvous_connect;
int __wrap_link_rendezvous_connect(int listen_fd, const struct link_rendezvous_group *g, int cancel_fd,
	uint64_t deadline_ns, int *ret_fds, struct base_error *e)
{
	struct meeting *m = find_meeting(g);
	struct pollfd cancel = {.fd = cancel_fd, .events = POLLIN};
	int status = 0;
	if (m->epoch != g->epoch)
		sim_fail("epoch %llu has the secret of epoch %llu", (unsigned long long)g->epoch,
			(unsigned long long)m->epoch);
	for (uint32_t i = 0; i < g->members; i++)
		m->member[g->me].fds[i] = -1;
	m->member[g->me].place = sim_place();
	m->member[g->me].here = true;
	while (!status && !meet(m, g)) {
		if (poll(&cancel, 1, MEET_NS / SIM_MS) > 0 && cancel.revents)
			status = base_error_set(e, -ECANCELED, "rendezvous: given up");
		else if (base_clock_now_ns() >= deadline_ns)
			status = base_error_set(e, -ETIMEDOUT, "rendezvous: not all members came");
		else if (g->look)
			status = g->look(g->context, e);
	}
	m->member[g->me].here = false;
	for (uint32_t i = 0; i < g->members; i++) {
		if (status && m->member[g->me].fds[i] >= 0)
			close(m->member[g->me].fds[i]);
		else
			ret_fds[i] = m->member[g->me].fds[i];
	}
	return status;
}

void sim_net_finish(void)
{
	for (struct wire *w = n.wires, *next; w; w = next) {
		next = w->next;
		if (!w->over)
			sim_fail("a connection between nodes %u and %u was left open", w->end[0].place.node,
				w->end[1].place.node);
		free(w->end[0].in);
		free(w->end[1].in);
		free(w);
	}
	for (struct meeting *m = n.meetings, *next; m; m = next) {
		next = m->next;
		free(m);
	}
	for (uint32_t i = 0; i < MAX_OLD; i++)
		free(n.old[i].data);
}
