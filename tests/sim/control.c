// SPDX-License-Identifier: Apache-2.0
/* The control plane: what worker.c calls as a gRPC client, and what rpc_node.c does on the coordinator's side. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/cluster/coordinator_internal.h"
#include "daemon/rpc/client.h"
#include "daemon/server.h"
#include "offload/hash.h"
#include "proto/check.h"
#include "tests/sim/net.h"
#include "tests/sim/node.h"

#define LOOK_NS (5 * SIM_MS) // at a path that is blocked
#define MOST_CHUNKS 2u // of a pull on their way
#define BAD_CHUNKS 5u // of a thousand: a bit is another

struct message {
	struct message *next;
	uint64_t due_ns;
	size_t bytes;
	bool end; // of what the sender says
	struct base_error error; // of the server: why
	uint8_t data[];
};

struct queue {
	struct message *first, *last;
	uint64_t last_due_ns;
	uint32_t from, to; // nodes
};

struct rpc_client {
	uint32_t node; // SIM_NOWHERE: there is none of that address
};

struct rpc_client_stream { // a call
	struct rpc_client_stream *next;
	struct sim_place client, server;
	struct queue up, down;
	struct cluster_session *session;
	struct cluster_pull *pull; // Pull; NULL: Join
	bool reset; // by the network
	bool woken; // rpc_client_stream_wake
	bool client_over, server_over; // closed, its fiber has ended
	struct message *held; // that wait() gave out last
};

static struct rpc_client_stream *calls;
static bool open_for_calls[SIM_MAX_NODES];

// ---- messages on their way

static void push(struct queue *q, const void *data, size_t bytes, bool end, const struct base_error *e)
{
	struct message *m = malloc(sizeof *m + bytes);
	if (!m)
		sim_fail("no memory for a message");
	*m = (struct message){.bytes = bytes, .end = end};
	if (e)
		m->error = *e;
	if (bytes)
		memcpy(m->data, data, bytes);
	m->due_ns = sim_now() + sim_net_delay(q->from, q->to);
	m->due_ns = m->due_ns > q->last_due_ns ? m->due_ns : q->last_due_ns + 1;
	q->last_due_ns = m->due_ns;
	*(q->last ? &q->last->next : &q->first) = m;
	q->last = m;
}

/* What has arrived; NULL: nothing now. */
static struct message *pop(struct queue *q)
{
	struct message *m = q->first;
	if (!m || m->due_ns > sim_now() || sim_net_blocked(q->from, q->to))
		return NULL;
	q->first = m->next;
	if (!q->first)
		q->last = NULL;
	return m;
}

static uint64_t patience(const struct queue *q, uint64_t most_ns)
{
	uint64_t ns = SIM_NEVER;
	if (q->first)
		ns = q->first->due_ns > sim_now() ? q->first->due_ns - sim_now() : LOOK_NS;
	return ns < most_ns ? ns : most_ns;
}

static void drop(struct queue *q)
{
	for (struct message *m; (m = q->first);) {
		q->first = m->next;
		free(m);
	}
	q->last = NULL;
}

static void forget(struct rpc_client_stream *s)
{
	if (!s->client_over || !s->server_over)
		return;
	struct rpc_client_stream **at = &calls;
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	drop(&s->up);
	drop(&s->down);
	free(s->held);
	free(s->pull);
	free(s);
}

static uint32_t waiting(const struct queue *q)
{
	uint32_t n = 0;
	for (const struct message *m = q->first; m; m = m->next)
		n++;
	return n;
}

// ---- the coordinator's side

static void on_wake(void *context)
{
	sim_wake(context, true); // the fiber of the server waits on the call
}

/* 0, or the end. */
static int take(struct rpc_client_stream *s, const struct message *m, struct base_error *e)
{
	struct proto_budget budget;
	ProtobufCMessage *p;
	struct cluster_identity peer = {.role = CLUSTER_ROLE_WORKER};
	struct cluster_coordinator *c = sim_node_coordinator(s->server.node);
	int status = 0;
	if (m->end)
		return -ECANCELED;
	if (!s->session) {
		snprintf(peer.cluster, sizeof peer.cluster, "%s", SIM_CLUSTER);
		snprintf(peer.name, sizeof peer.name, "n%u", s->client.node);
		bool own = s->client.node == s->server.node;
		status = cluster_session_open(c, own ? NULL : &peer, on_wake, s, &s->session, e);
	}
	if (status)
		return status;
	status = proto_unpack(&thaw__node__v1__node_message__descriptor, m->data, m->bytes, &budget, &p, NULL, e);
	if (status)
		return status;
	status = cluster_session_message(s->session, (const Thaw__Node__V1__NodeMessage *)p, e);
	protobuf_c_message_free_unpacked(p, &budget.allocator);
	return status;
}

/* A node is told to prepare, or to start, only while it is there and stays, and to start only what it has prepared. The
 * coordinator's lock is held, so all is as it is now. */
static void check_order(const struct cluster_session *s, const Thaw__Node__V1__CoordinatorMessage *m)
{
	bool assign = m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN && !m->assign->spare;
	bool start = m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START;
	const struct cluster_node *n = s->node;
	if (!assign && !start)
		return;
	if (!n || n->state != CLUSTER_NODE_READY || n->draining || n->leaving)
		sim_fail("node %s is told to %s, and is %s", n ? n->name : "?", start ? "start" : "prepare",
			!n || n->state != CLUSTER_NODE_READY ? "gone"
			: n->draining                        ? "drained"
							     : "leaving");
	for (const struct cluster_fleet *f = s->coordinator->fleets; f && start; f = f->next) {
		for (uint32_t i = 0; i < f->running.parts; i++) {
			const struct fleet_part *p = &f->running.part[i];
			if (p->assignment == m->start->assignment && (!p->ready || p->node != n))
				sim_fail("node %s is told to start what it has not prepared", n->name);
		}
	}
}

__typeof__(cluster_session_post) __wrap_cluster_session_post, __real_cluster_session_post;
int __wrap_cluster_session_post(struct cluster_session *s, uint8_t *data, size_t bytes)
{
	struct proto_budget budget;
	ProtobufCMessage *m;
	if (data && s->state == SESSION_JOINED) {
		if (proto_unpack(
			    &thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget, &m, NULL, NULL))
			sim_fail("the coordinator says what is no message");
		check_order(s, (const Thaw__Node__V1__CoordinatorMessage *)m);
		protobuf_c_message_free_unpacked(m, &budget.allocator);
	}
	return __real_cluster_session_post(s, data, bytes);
}

static int give(struct rpc_client_stream *s, struct base_error *e)
{
	uint8_t *data;
	size_t bytes;
	int status;
	while (s->session && (status = cluster_session_next(s->session, &data, &bytes, e)) != 0) {
		if (status < 0)
			return status;
		push(&s->down, data, bytes, false, NULL);
		free(data);
		sim_wake(&s->down, true);
	}
	return 0;
}

/* 0, or why the call ends by what is not the coordinator's. */
static int look_at_ends(const struct rpc_client_stream *s, struct base_error *e)
{
	if (!sim_net_alive(s->client) && !sim_node_dark(s->client.node))
		return -ECONNRESET; // its kernel says that nobody is there
	if (s->reset || !sim_net_alive(s->server) || !open_for_calls[s->server.node])
		return base_error_set(e, -EHOSTDOWN, "the coordinator is stopping");
	return 0;
}

static void end_call(struct rpc_client_stream *s, const struct base_error *e)
{
	if (sim_net_alive(s->server)) {
		push(&s->down, NULL, 0, true, e);
		sim_wake(&s->down, true);
	}
	s->server_over = true;
	forget(s);
}

/* As rpc_pull.c. */
static int give_chunk(struct rpc_client_stream *s, const struct cluster_source *source, struct base_error *e)
{
	Thaw__Node__V1__PullChunk m = THAW__NODE__V1__PULL_CHUNK__INIT;
	_cleanup_free_ uint8_t *data = malloc(CLUSTER_CHUNK_BYTES), *packed = NULL;
	int status = cluster_source_read(
		source, &s->pull->runs, s->pull->skip_bytes, data, CLUSTER_CHUNK_BYTES, &m.data.len, e);
	if (status)
		return status;
	m.data.data = data;
	m.xxh3 = offload_hash(data, m.data.len);
	if (sim_chance(BAD_CHUNKS))
		data[sim_draw(m.data.len)] ^= 1;
	s->pull->skip_bytes += m.data.len;
	size_t bytes = thaw__node__v1__pull_chunk__get_packed_size(&m);
	packed = malloc(bytes);
	thaw__node__v1__pull_chunk__pack(&m, packed);
	push(&s->down, packed, bytes, false, NULL);
	sim_wake(&s->down, true);
	return 0;
}

static void *serve_pull(void *argument)
{
	struct rpc_client_stream *s = argument;
	struct base_error e = {0};
	struct cluster_source source = {.fd = -1};
	struct cluster_identity peer = {.role = CLUSTER_ROLE_WORKER};
	bool own = s->client.node == s->server.node;
	snprintf(peer.cluster, sizeof peer.cluster, "%s", SIM_CLUSTER);
	snprintf(peer.name, sizeof peer.name, "n%u", s->client.node);
	sim_sleep(sim_net_delay(s->client.node, s->server.node));
	int status = look_at_ends(s, &e);
	if (!status)
		status = cluster_source_open(
			sim_node_coordinator(s->server.node), own ? NULL : &peer, s->pull, &source, &e);
	while (!status && s->pull->skip_bytes < s->pull->runs.run_bytes * s->pull->runs.runs) {
		status = look_at_ends(s, &e);
		if (s->client_over)
			status = -ECANCELED;
		else if (!status && waiting(&s->down) >= MOST_CHUNKS)
			sim_wait_for(s, LOOK_NS);
		else if (!status)
			status = give_chunk(s, &source, &e);
	}
	cluster_source_close(&source);
	end_call(s, &e);
	return NULL;
}

static void *serve(void *argument)
{
	struct rpc_client_stream *s = argument;
	struct base_error e = {0};
	int status = 0;
	while (!status) {
		struct message *m = pop(&s->up);
		status = look_at_ends(s, &e);
		if (!status && m)
			status = take(s, m, &e);
		free(m);
		if (!status)
			status = give(s, &e);
		if (!status && !m)
			sim_wait_for(s, patience(&s->up, SIM_NEVER));
	}
	if (s->session)
		cluster_session_close(base_steal(s->session));
	end_call(s, &e);
	return NULL;
}

void sim_control_open(uint32_t node, bool on)
{
	open_for_calls[node] = on;
	sim_control_look();
}

uint32_t sim_control_calls(struct sim_place server)
{
	uint32_t n = 0;
	for (struct rpc_client_stream *s = calls; s; s = s->next)
		n += s->server.node == server.node && s->server.life == server.life && !s->server_over;
	return n;
}

void sim_control_look(void)
{
	for (struct rpc_client_stream *s = calls; s; s = s->next) {
		sim_wake(s, true);
		sim_wake(&s->down, true);
	}
}

void sim_control_cut(uint32_t a, uint32_t b)
{
	for (struct rpc_client_stream *s = calls; s; s = s->next) {
		uint32_t x = s->client.node, y = s->server.node;
		s->reset = s->reset || (x == a && y == b) || (x == b && y == a);
	}
	sim_control_look();
}

void sim_control_finish(void)
{
	if (calls)
		sim_fail("a call of node %u was left open", calls->client.node);
}

// ---- the node's side: daemon/rpc/client.h

__typeof__(rpc_client_create) __wrap_rpc_client_create;
int __wrap_rpc_client_create(
	const char *address, const struct rpc_client_tls *tls, struct rpc_client **ret_client, struct base_error *e)
{
	struct rpc_client *c = calloc(1, sizeof *c);
	if (!c)
		return base_error_set(e, -ENOMEM, "no memory");
	c->node = strncmp(address, "unix:", 5) == 0 ? sim_here() : sim_node_at(address);
	*ret_client = c;
	return 0;
}

__typeof__(rpc_client_destroy) __wrap_rpc_client_destroy;
void __wrap_rpc_client_destroy(struct rpc_client *c)
{
	free(c);
}

static int open_call(struct rpc_client *c, struct cluster_pull *pull, struct rpc_client_stream **ret_stream)
{
	struct rpc_client_stream *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->client = sim_place();
	s->next = calls;
	calls = s;
	s->server = sim_node_place(c->node);
	s->up.from = s->down.to = s->client.node;
	s->up.to = s->down.from = s->server.node;
	s->pull = pull;
	*ret_stream = s;
	if (open_for_calls[c->node] && sim_net_alive(s->server)) {
		sim_detach(sim_start(s->server.node, "rpc", pull ? serve_pull : serve, s));
		return 0;
	}
	struct base_error e = {0};
	base_error_set(&e, -EHOSTUNREACH, "nobody listens there");
	s->server_over = true;
	if (!sim_node_dark(c->node))
		push(&s->down, NULL, 0, true, &e);
	return 0;
}

__typeof__(rpc_client_stream_open_both) __wrap_rpc_client_stream_open_both;
int __wrap_rpc_client_stream_open_both(struct rpc_client *c, const char *method, struct rpc_client_stream **ret_stream)
{
	return open_call(c, NULL, ret_stream);
}

__typeof__(rpc_client_stream_open) __wrap_rpc_client_stream_open;
int __wrap_rpc_client_stream_open(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, struct rpc_client_stream **ret_stream)
{
	struct proto_budget budget;
	ProtobufCMessage *m;
	struct base_error e = {0};
	struct cluster_pull *pull = calloc(1, sizeof *pull);
	int status = pull ? proto_unpack(&thaw__node__v1__pull_request__descriptor, request, request_bytes, &budget, &m,
				    NULL, &e)
			  : -ENOMEM;
	if (!status) {
		status = cluster_read_pull((const Thaw__Node__V1__PullRequest *)m, pull, &e);
		protobuf_c_message_free_unpacked(m, &budget.allocator);
	}
	if (status)
		sim_fail("a pull that is none: %s", base_error_text(&e));
	return open_call(c, pull, ret_stream);
}

static bool lost(const struct rpc_client_stream *s)
{
	return s->reset || !sim_net_alive(s->client) || (!sim_net_alive(s->server) && !sim_node_dark(s->server.node));
}

__typeof__(rpc_client_stream_send) __wrap_rpc_client_stream_send;
int __wrap_rpc_client_stream_send(struct rpc_client_stream *s, const void *message, size_t bytes, uint64_t timeout_ns)
{
	sim_step();
	if (lost(s))
		return -EHOSTUNREACH;
	push(&s->up, message, bytes, false, NULL);
	sim_wake(s, true);
	return 0;
}

__typeof__(rpc_client_stream_wait) __wrap_rpc_client_stream_wait;
int __wrap_rpc_client_stream_wait(struct rpc_client_stream *s, uint64_t timeout_ns, const uint8_t **ret_message,
	size_t *ret_bytes, struct rpc_client_status *ret_status)
{
	uint64_t until = sim_node_clock(sim_here(), CLOCK_MONOTONIC) + timeout_ns;
	for (;;) {
		uint64_t now = sim_node_clock(sim_here(), CLOCK_MONOTONIC);
		struct message *m = lost(s) ? NULL : pop(&s->down);
		if (lost(s) || (m && m->end)) {
			*ret_status = (struct rpc_client_status){.code = 14};
			snprintf(ret_status->message, sizeof ret_status->message, "%s",
				m ? base_error_text(&m->error) : "the connection is gone");
			free(m);
			return -EHOSTUNREACH;
		}
		if (m) {
			free(s->held);
			s->held = m;
			*ret_message = m->data;
			*ret_bytes = m->bytes;
			return 1;
		}
		if (s->woken) {
			s->woken = false;
			return -EAGAIN;
		}
		if (now >= until)
			return -ETIMEDOUT;
		sim_wait_for(&s->down, patience(&s->down, until - now));
	}
}

__typeof__(rpc_client_stream_wake) __wrap_rpc_client_stream_wake;
void __wrap_rpc_client_stream_wake(struct rpc_client_stream *s)
{
	s->woken = true;
	sim_wake(&s->down, true);
}

__typeof__(rpc_client_stream_uri) __wrap_rpc_client_stream_uri;
int __wrap_rpc_client_stream_uri(struct rpc_client_stream *s, uint32_t index, char *out, size_t room)
{
	if (index)
		return -ENOENT;
	snprintf(out, room, "thaw://" SIM_CLUSTER "/both/n%u", s->server.node);
	return 0;
}

__typeof__(rpc_client_stream_close) __wrap_rpc_client_stream_close;
void __wrap_rpc_client_stream_close(struct rpc_client_stream *s)
{
	if (!s)
		return;
	if (!lost(s))
		push(&s->up, NULL, 0, true, NULL);
	s->client_over = true;
	sim_wake(s, true);
	forget(s);
}
