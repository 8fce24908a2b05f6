// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/coordinator_internal.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define TICK_NS (50 * 1000000ull)
#define REGISTER_NS (5 * BASE_NS_PER_SECOND) // for the first message to come
#define RETURN_NS (10 * BASE_NS_PER_SECOND)
#define SPARE_NS (5 * BASE_NS_PER_SECOND)
#define SAVE_AGAIN_NS (500 * 1000000ull)

const char *cluster_node_state_name(enum cluster_node_state s)
{
	static const char *const names[] = {"lost", "ready", "left"};
	return (size_t)s < base_array_size(names) ? names[s] : "?";
}

void cluster_coordinator_emit(
	struct cluster_coordinator *c, const char *severity, const char *kind, const char *model, const char *fmt, ...)
{
	char text[384];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (c->config.events.event)
		c->config.events.event(c->config.events.context, severity, kind, model, text);
}

/* ---- the record ---- */

/* Lock held. */
static void note_nodes(struct cluster_coordinator *c)
{
	c->record.nodes_count = c->nodes_count;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		memcpy(c->record.nodes[i].name, c->nodes[i].name, sizeof c->record.nodes[i].name);
		c->record.nodes[i].draining = c->nodes[i].draining;
	}
	c->dirty = true;
}

int cluster_coordinator_save(struct cluster_coordinator *c, struct base_error *e)
{
	_cleanup_free_ struct cluster_record *copy = malloc(sizeof *copy);
	if (!copy)
		return base_error_set(e, -ENOMEM, "no memory");
	pthread_mutex_lock(&c->state_lock);
	pthread_mutex_lock(&c->lock);
	*copy = c->record;
	c->dirty = false;
	pthread_mutex_unlock(&c->lock);
	int status = c->state->ops->write(c->state, copy, e);
	pthread_mutex_unlock(&c->state_lock);
	if (status) {
		pthread_mutex_lock(&c->lock);
		c->dirty = true;
		pthread_mutex_unlock(&c->lock);
	}
	return status;
}

/* ---- nodes; lock held ---- */

static struct cluster_node *find_node(struct cluster_coordinator *c, const char *name)
{
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		if (strcmp(c->nodes[i].name, name) == 0)
			return &c->nodes[i];
	}
	return NULL;
}

static struct cluster_node *add_node(struct cluster_coordinator *c, const char *name)
{
	struct cluster_node *n =
		c->nodes_count < CLUSTER_MAX_NODES ? &c->nodes[c->nodes_count++] : cluster_fleets_evict(c);
	if (!n)
		return NULL;
	free(n->facts);
	free(n->machine);
	*n = (struct cluster_node){.state = CLUSTER_NODE_LOST};
	snprintf(n->name, sizeof n->name, "%s", name);
	snprintf(n->why, sizeof n->why, "it has not come since the coordinator started");
	return n;
}

static void end_session(struct cluster_session *s, const struct base_error *e)
{
	if (s->state == SESSION_OVER)
		return;
	s->state = SESSION_OVER;
	s->error = *e;
	s->wake(s->context);
}

/* The node's work goes elsewhere; its session may still be there, to be told why. */
static void node_gone(
	struct cluster_coordinator *c, struct cluster_node *n, enum cluster_node_state state, const char *why)
{
	if (n->state != CLUSTER_NODE_READY)
		return;
	n->state = state;
	n->leaving = false;
	n->since_ns = base_clock_now_ns();
	snprintf(n->why, sizeof n->why, "%.*s", (int)sizeof n->why - 1, why);
	if (n->session)
		n->session->node = NULL;
	n->session = NULL;
	n->losses += state == CLUSTER_NODE_LOST;
	if (c->quiet)
		return;
	bool lost = state == CLUSTER_NODE_LOST;
	cluster_coordinator_emit(
		c, lost ? "warning" : "notice", lost ? "node_lost" : "node_left", "", "node %s: %s", n->name, why);
	cluster_fleets_node_lost(c, n);
	pthread_cond_broadcast(&c->changed);
}

/* ---- sessions ---- */

int cluster_session_post(struct cluster_session *s, uint8_t *data, size_t bytes)
{
	if (!data || s->state != SESSION_JOINED || s->box_count == CLUSTER_MAILBOX) {
		free(data);
		if (data && s->state == SESSION_JOINED && s->node) {
			struct base_error e = {0};
			base_error_set(&e, -ENOBUFS, "the node does not read: %u messages wait for it", s->box_count);
			node_gone(s->coordinator, s->node, CLUSTER_NODE_LOST, e.message);
			end_session(s, &e);
		}
		return -ENOBUFS;
	}
	uint32_t at = (s->box_first + s->box_count++) % CLUSTER_MAILBOX;
	s->box[at].data = data;
	s->box[at].bytes = bytes;
	s->wake(s->context);
	return 0;
}

int cluster_session_open(struct cluster_coordinator *c, const struct cluster_identity *peer,
	void (*wake)(void *context), void *context, struct cluster_session **ret_session, struct base_error *e)
{
	struct cluster_session *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory for a node's connection");
	s->coordinator = c;
	s->local = !peer;
	if (peer)
		s->peer = *peer;
	s->wake = wake;
	s->context = context;
	s->opened_ns = base_clock_now_ns();
	pthread_mutex_lock(&c->lock);
	bool full = c->sessions_count == CLUSTER_MAX_SESSIONS;
	if (!full) {
		s->next = c->sessions;
		c->sessions = s;
		c->sessions_count++;
	}
	pthread_mutex_unlock(&c->lock);
	if (full) {
		free(s);
		return base_error_set(e, -ENOSPC, "%u nodes are connected, which is the most", CLUSTER_MAX_SESSIONS);
	}
	*ret_session = s;
	return 0;
}

void cluster_session_close(struct cluster_session *s)
{
	if (!s)
		return;
	struct cluster_coordinator *c = s->coordinator;
	pthread_mutex_lock(&c->lock);
	struct cluster_session **at = &c->sessions;
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	c->sessions_count--;
	if (s->node)
		node_gone(c, s->node, CLUSTER_NODE_LOST, "its connection ended");
	pthread_mutex_unlock(&c->lock);
	for (; s->box_count; s->box_count--, s->box_first = (s->box_first + 1) % CLUSTER_MAILBOX)
		free(s->box[s->box_first].data);
	free(s);
}

int cluster_session_next(struct cluster_session *s, uint8_t **ret_data, size_t *ret_bytes, struct base_error *e)
{
	struct cluster_coordinator *c = s->coordinator;
	int status = 0;
	pthread_mutex_lock(&c->lock);
	if (s->state == SESSION_OVER) {
		if (e)
			*e = s->error;
		status = s->error.code;
	} else if (s->box_count) {
		*ret_data = s->box[s->box_first].data;
		*ret_bytes = s->box[s->box_first].bytes;
		s->box_first = (s->box_first + 1) % CLUSTER_MAILBOX;
		s->box_count--;
		status = 1;
	}
	pthread_mutex_unlock(&c->lock);
	return status;
}

/* ---- Register ---- */

static int check_identity(const struct cluster_session *s, const struct cluster_facts *f, struct base_error *e)
{
	const struct cluster_coordinator *c = s->coordinator;
	if (strcmp(f->cluster, c->cluster) != 0)
		return base_error_set(
			e, -EPERM, "node %s is of cluster %s, this is cluster %s", f->node, f->cluster, c->cluster);
	if (s->local)
		return strcmp(f->node, c->node_name) == 0
			       ? 0
			       : base_error_set(e, -EPERM,
					 "node %s comes over the unix socket of %s: cluster.join is for others",
					 f->node, c->node_name);
	if (strcmp(s->peer.cluster, c->cluster) != 0)
		return base_error_set(e, -EPERM, "the certificate of node %s is for cluster %s, this is cluster %s",
			f->node, s->peer.cluster, c->cluster);
	if (!cluster_role_works(s->peer.role))
		return base_error_set(e, -EPERM,
			"the certificate of %s has the role %s: a node that computes needs worker or both",
			s->peer.name, cluster_role_name(s->peer.role));
	if (strcmp(s->peer.name, f->node) != 0)
		return base_error_set(e, -EPERM, "node %s has the certificate of %s", f->node, s->peer.name);
	return 0;
}

static int check_register(const struct cluster_session *s, const struct cluster_facts *f, struct base_error *e)
{
	const struct cluster_coordinator *c = s->coordinator;
	int status = check_identity(s, f, e);
	if (status)
		return status;
	if (strcmp(f->version, c->version) != 0)
		return base_error_set(e, -EINVAL, "node %s runs thaw %s, its coordinator %s: all nodes need the same",
			f->node, f->version, c->version);
	uint64_t now = base_clock_wall_ns(), off = now > f->wall_ns ? now - f->wall_ns : f->wall_ns - now;
	if (off > CLUSTER_MAX_CLOCK_NS)
		return base_error_set(e, -EINVAL,
			"the clock of node %s is %.0f s %s that of %s: at most %.0f s are accepted; is NTP running?",
			f->node, (double)off / 1e9, now > f->wall_ns ? "behind" : "ahead of", c->node_name,
			(double)CLUSTER_MAX_CLOCK_NS / 1e9);
	return 0;
}

static void accept_node(struct cluster_session *s)
{
	struct cluster_coordinator *c = s->coordinator;
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Accepted a = THAW__NODE__V1__ACCEPTED__INIT;
	size_t bytes = 0;
	a.epoch = c->record.epoch;
	a.coordinator = c->node_name;
	a.heartbeat_ns = c->config.heartbeat_ns;
	a.lost_ns = c->config.lost_ns;
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ACCEPTED;
	m.accepted = &a;
	uint8_t *data = cluster_pack_coordinator(&m, &bytes);
	cluster_session_post(s, data, bytes);
}

/* Lock held. */
static int join(struct cluster_session *s, struct cluster_facts **facts, struct topology_machine **machine,
	struct base_error *e)
{
	struct cluster_coordinator *c = s->coordinator;
	struct cluster_facts *f = *facts;
	if (cluster_claim_check(c, e) < 0)
		return -EHOSTDOWN;
	struct cluster_node *n = find_node(c, f->node);
	if (n && n->state == CLUSTER_NODE_READY && n->facts->incarnation != f->incarnation)
		return base_error_set(e, -EEXIST,
			"a node called %s is here already (host %s): give each node a name of its own", n->name,
			n->facts->host);
	if (n && n->state == CLUSTER_NODE_READY)
		node_gone(c, n, CLUSTER_NODE_LOST, "it connected anew");
	bool fresh = !n;
	if (!n && !(n = add_node(c, f->node)))
		return base_error_set(
			e, -ENOSPC, "%u nodes are there or have work, which is the most", CLUSTER_MAX_NODES);
	if (!f->address[0])
		snprintf(f->address, sizeof f->address, "%s", c->host);
	free(n->facts);
	free(n->machine);
	n->facts = f;
	n->machine = *machine;
	*facts = NULL;
	*machine = NULL;
	n->state = CLUSTER_NODE_READY;
	n->why[0] = '\0';
	n->session = s;
	n->heard_ns = n->since_ns = base_clock_now_ns();
	n->memory_available_bytes = f->memory_available_bytes;
	s->node = n;
	s->state = SESSION_JOINED;
	accept_node(s);
	cluster_links_joined(c, n);
	if (fresh)
		note_nodes(c);
	cluster_coordinator_emit(c, "notice", "node_joined", "", "node %s: %u CPUs, host %s, address %s%s%s%s", n->name,
		f->cpus, f->host, f->address, f->rack[0] ? ", rack " : "", f->rack, n->draining ? ", drained" : "");
	pthread_cond_broadcast(&c->changed);
	return 0;
}

static int on_register(struct cluster_session *s, const Thaw__Node__V1__Register *m, struct base_error *e)
{
	struct cluster_coordinator *c = s->coordinator;
	_cleanup_free_ struct cluster_facts *f = malloc(sizeof *f);
	_cleanup_free_ struct topology_machine *machine = malloc(sizeof *machine);
	if (!f || !machine)
		return base_error_set(e, -ENOMEM, "no memory for a node");
	int status = s->state == SESSION_OPEN ? 0 : base_error_set(e, -EPROTO, "a second Register");
	if (!status)
		status = cluster_read_register(m, f, e);
	if (!status)
		status = cluster_read_machine(m, machine, e);
	if (!status)
		status = check_register(s, f, e);
	if (!status)
		status = join(s, &f, &machine, e);
	if (status && status != -EHOSTDOWN) // nodes of a coordinator that stands by come again and again
		cluster_coordinator_emit(c, "warning", "node_refused", "", "%s", base_error_text(e));
	return status;
}

/* ---- other messages; lock held ---- */

static int on_probe_ready(struct cluster_session *s, const Thaw__Node__V1__ProbeReady *m, struct base_error *e)
{
	uint64_t probe;
	uint16_t port;
	int status = cluster_read_probe_ready(m, &probe, &port, e);
	if (!status)
		cluster_links_ready(s->coordinator, s->node, probe, port);
	return status;
}

static int on_probe_done(struct cluster_session *s, const Thaw__Node__V1__ProbeDone *m, struct base_error *e)
{
	struct cluster_probe_done d;
	int status = cluster_read_probe_done(m, &d, e);
	if (!status)
		cluster_links_done(s->coordinator, s->node, &d);
	return status;
}

static int leave_when_free(struct cluster_coordinator *c, struct cluster_node *n)
{
	char why[CLUSTER_TEXT_BYTES];
	if (n->leaving)
		return 0;
	n->leaving = true;
	cluster_coordinator_emit(
		c, "notice", "node_leaving", "", "node %s stops: its work goes to other nodes", n->name);
	snprintf(why, sizeof why, "node %s stops", n->name);
	cluster_fleets_replan(c, n, why);
	pthread_cond_broadcast(&c->changed);
	return 0;
}

static void beat(struct cluster_session *s, uint64_t now)
{
	struct cluster_coordinator *c = s->coordinator;
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Heartbeat h = THAW__NODE__V1__HEARTBEAT__INIT;
	size_t bytes = 0;
	h.epoch = c->record.epoch;
	h.sequence = ++s->beats;
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_HEARTBEAT;
	m.heartbeat = &h;
	s->beat_ns = now;
	uint8_t *data = cluster_pack_coordinator(&m, &bytes);
	cluster_session_post(s, data, bytes);
}

/* The coordinator's thread, which beats, may think about a plan for longer than nodes wait: who beats then is answered. */
static void beat_while_planning(struct cluster_session *s, uint64_t now)
{
	const struct cluster_coordinator *c = s->coordinator;
	if (now >= s->beat_ns + c->config.heartbeat_ns && cluster_fleets_planning(c))
		beat(s, now);
}

static int on_message(struct cluster_session *s, const Thaw__Node__V1__NodeMessage *m, struct base_error *e)
{
	struct cluster_coordinator *c = s->coordinator;
	struct cluster_node *n = s->node;
	if (m->what_case == THAW__NODE__V1__NODE_MESSAGE__WHAT_REGISTER)
		return on_register(s, m->register_, e);
	if (!n)
		return base_error_set(e, -EPROTO, "message %d before Register", (int)m->what_case);
	n->heard_ns = base_clock_now_ns();
	switch (m->what_case) {
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_HEARTBEAT:
		n->memory_available_bytes = m->heartbeat->memory_available_bytes;
		beat_while_planning(s, n->heard_ns);
		return 0;
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_PROGRESS:
		cluster_fleets_progress(c, n, m->progress);
		return 0;
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_PREPARED: {
		struct cluster_prepared p;
		int status = cluster_read_prepared(m->prepared, &p, e);
		if (!status)
			cluster_fleets_prepared(c, n, &p);
		return status;
	}
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_STORED:
		cluster_spares_stored(c, n, m->stored);
		return 0;
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_FAILED:
		cluster_fleets_failed(c, n, m->failed);
		return 0;
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_RANK_ENDED:
		cluster_fleets_rank_ended(c, n, m->rank_ended);
		return 0;
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_READY:
		return on_probe_ready(s, m->probe_ready, e);
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE:
		return on_probe_done(s, m->probe_done, e);
	case THAW__NODE__V1__NODE_MESSAGE__WHAT_LEAVE:
		if (m->leave->when_free)
			return leave_when_free(c, n);
		node_gone(c, n, CLUSTER_NODE_LEFT, "it stops in good order");
		return base_error_set(e, -ECANCELED, "left");
	default:
		return base_error_set(e, -EPROTO, "a message without content, or of a kind that is not known here");
	}
}

int cluster_session_message(struct cluster_session *s, const Thaw__Node__V1__NodeMessage *m, struct base_error *e)
{
	struct cluster_coordinator *c = s->coordinator;
	struct base_error own = {0};
	pthread_mutex_lock(&c->lock);
	int status = 0;
	if (s->state != SESSION_OVER) {
		status = on_message(s, m, &own);
		if (status) {
			own.code = status;
			if (s->node)
				node_gone(c, s->node, CLUSTER_NODE_LOST, own.message);
			end_session(s, &own);
		}
	}
	pthread_mutex_unlock(&c->lock);
	if (status && e)
		*e = own;
	return status;
}

/* ---- the thread ---- */

static void let_go(struct cluster_session *s)
{
	struct base_error e = {0};
	base_error_set(&e, -ECANCELED, "left");
	node_gone(s->coordinator, s->node, CLUSTER_NODE_LEFT, "it stops in good order");
	end_session(s, &e);
}

static void check_session(struct cluster_session *s, uint64_t now)
{
	struct cluster_coordinator *c = s->coordinator;
	struct base_error e = {0};
	if (s->state == SESSION_OPEN && now > s->opened_ns + REGISTER_NS) {
		base_error_set(&e, -ETIMEDOUT, "no Register within %.0f s", (double)REGISTER_NS / 1e9);
		end_session(s, &e);
	}
	if (s->state != SESSION_JOINED || !s->node)
		return;
	if (s->node->leaving && !cluster_fleets_move(c, s->node)) {
		let_go(s);
	} else if (now > s->node->heard_ns + c->config.lost_ns) {
		base_error_set(&e, -ETIMEDOUT, "no heartbeat for %.1f s", (double)(now - s->node->heard_ns) / 1e9);
		node_gone(c, s->node, CLUSTER_NODE_LOST, e.message);
		end_session(s, &e);
	} else if (now >= s->beat_ns + c->config.heartbeat_ns) {
		beat(s, now);
	}
}

static void *coordinator_thread(void *argument)
{
	struct cluster_coordinator *c = argument;
	bool told = false;
	pthread_setname_np(pthread_self(), "cluster");
	pthread_mutex_lock(&c->lock);
	while (!c->stop) {
		uint64_t now = base_clock_now_ns(),
			 tick = TICK_NS < c->config.heartbeat_ns / 2 ? TICK_NS : c->config.heartbeat_ns / 2;
		for (struct cluster_session *s = c->sessions; s; s = s->next)
			check_session(s, now);
		cluster_claim_follow(c);
		cluster_links_step(c, now);
		cluster_fleets_step(c);
		if (c->dirty && c->active && now >= c->save_after_ns) {
			struct base_error e = {0};
			pthread_mutex_unlock(&c->lock);
			int status = cluster_coordinator_save(c, &e);
			pthread_mutex_lock(&c->lock);
			if (status && !told)
				cluster_coordinator_emit(c, "error", "cluster_state", "",
					"the cluster's state cannot be written: %s", base_error_text(&e));
			told = status != 0;
			c->save_after_ns = status ? base_clock_now_ns() + SAVE_AGAIN_NS : 0;
		}
		uint64_t until = now + tick;
		struct timespec t = {
			.tv_sec = (time_t)(until / BASE_NS_PER_SECOND), .tv_nsec = (long)(until % BASE_NS_PER_SECOND)};
		pthread_cond_timedwait(&c->changed, &c->lock, &t);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* ---- what is asked from outside ---- */

uint32_t cluster_coordinator_nodes(struct cluster_coordinator *c, struct cluster_node_info *ret_infos, uint32_t room)
{
	uint32_t n = 0;
	pthread_mutex_lock(&c->lock);
	for (; n < c->nodes_count && n < room; n++) {
		const struct cluster_node *x = &c->nodes[n];
		struct cluster_node_info *i = &ret_infos[n];
		memset(i, 0, sizeof *i);
		memcpy(i->name, x->name, sizeof i->name);
		memcpy(i->why, x->why, sizeof i->why);
		i->state = x->state;
		i->draining = x->draining || x->leaving;
		i->self = strcmp(x->name, c->node_name) == 0;
		i->heard_ns = x->heard_ns;
		i->since_ns = x->since_ns;
		i->losses = x->losses;
		i->memory_available_bytes = x->memory_available_bytes;
		if (x->facts)
			i->facts = *x->facts;
		cluster_fleets_describe(c, x, i);
		i->drained = i->draining && !i->work_count;
	}
	pthread_mutex_unlock(&c->lock);
	return n;
}

int cluster_coordinator_machine(struct cluster_coordinator *c, const char *node, struct topology_machine *ret_machine)
{
	int status = -ENOENT;
	pthread_mutex_lock(&c->lock);
	const struct cluster_node *n = find_node(c, node);
	if (n && n->machine) {
		*ret_machine = *n->machine;
		ret_machine->memory_available_bytes = n->memory_available_bytes;
		status = 0;
	}
	pthread_mutex_unlock(&c->lock);
	return status;
}

uint64_t cluster_coordinator_epoch(struct cluster_coordinator *c)
{
	pthread_mutex_lock(&c->lock);
	uint64_t epoch = c->record.epoch;
	pthread_mutex_unlock(&c->lock);
	return epoch;
}

int cluster_coordinator_drain(struct cluster_coordinator *c, const char *node, bool on, struct base_error *e)
{
	char why[CLUSTER_TEXT_BYTES];
	int status = 0;
	pthread_mutex_lock(&c->lock);
	struct cluster_node *n = find_node(c, node);
	uint32_t others = 0;
	for (uint32_t i = 0; i < c->nodes_count; i++)
		others += &c->nodes[i] != n && c->nodes[i].state == CLUSTER_NODE_READY && !c->nodes[i].draining &&
			  !c->nodes[i].leaving;
	if (!n)
		status = base_error_set(e, -ENOENT, "no node is called %s", node);
	else if (on && !others && c->fleets)
		status = base_error_set(e, -EHOSTDOWN, "node %s is the only one left: nothing could do its work", node);
	else if (n->draining != on) {
		n->draining = on;
		note_nodes(c);
		cluster_coordinator_emit(c, "notice", on ? "node_drain" : "node_undrain", "", "node %s: %s", node,
			on ? "its work goes to other nodes" : "it may have work again");
		snprintf(why, sizeof why, on ? "node %s is drained" : "node %s is there again", node);
		cluster_fleets_replan(c, n, why);
		pthread_cond_broadcast(&c->changed);
	}
	pthread_mutex_unlock(&c->lock);
	return status;
}

/* ---- life ---- */

void cluster_coordinator_know(struct cluster_coordinator *c, const struct cluster_state_node *x)
{
	struct cluster_node *n = find_node(c, x->name);
	if (!n && c->nodes_count < CLUSTER_MAX_NODES)
		n = add_node(c, x->name);
	if (n)
		n->draining = x->draining;
}

void cluster_coordinator_dismiss(struct cluster_coordinator *c, const struct base_error *e)
{
	for (struct cluster_session *s = c->sessions; s; s = s->next) {
		if (s->node)
			node_gone(c, s->node, CLUSTER_NODE_LOST, e->message);
		end_session(s, e);
	}
}

static void coordinator_free(struct cluster_coordinator *c)
{
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		free(c->nodes[i].facts);
		free(c->nodes[i].machine);
	}
	free(c->links);
	pthread_cond_destroy(&c->changed);
	pthread_mutex_destroy(&c->lock);
	pthread_mutex_destroy(&c->state_lock);
	free(c);
}

int cluster_coordinator_create(const struct cluster_coordinator_config *config, struct cluster_state *state,
	struct cluster_coordinator **ret_coordinator, struct base_error *e)
{
	pthread_condattr_t attributes;
	struct cluster_coordinator *c = calloc(1, sizeof *c);
	if (!c)
		return base_error_set(e, -ENOMEM, "no memory for the cluster");
	c->config = *config;
	c->config.heartbeat_ns = config->heartbeat_ns ? config->heartbeat_ns : CLUSTER_HEARTBEAT_NS;
	c->config.lost_ns = config->lost_ns ? config->lost_ns : CLUSTER_LOST_NS;
	c->config.return_ns = config->return_ns ? config->return_ns : RETURN_NS;
	c->config.spare_ns = config->spare_ns ? config->spare_ns : SPARE_NS;
	snprintf(c->cluster, sizeof c->cluster, "%s", config->cluster);
	snprintf(c->node_name, sizeof c->node_name, "%s", config->node);
	snprintf(c->version, sizeof c->version, "%s", config->version);
	snprintf(c->host, sizeof c->host, "%s", config->host);
	c->state = state;
	c->started_ns = base_clock_now_ns();
	c->last_assignment = base_clock_wall_ns(); // another run's numbers are lower
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&c->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	pthread_mutex_init(&c->lock, NULL);
	pthread_mutex_init(&c->state_lock, NULL);
	int status = config->links ? cluster_links_create(config->links, &c->links) : 0;
	status = status ? base_error_set(e, status, "no memory for the cluster") : cluster_claim_start(c, e);
	if (!status && (status = -pthread_create(&c->thread, NULL, coordinator_thread, c)) < 0)
		base_error_set(e, status, "no thread for the cluster: %s", strerrordesc_np(-status));
	if (status) {
		coordinator_free(c);
		return status;
	}
	*ret_coordinator = c;
	return 0;
}

void cluster_coordinator_quiet(struct cluster_coordinator *c)
{
	pthread_mutex_lock(&c->lock);
	c->quiet = true;
	pthread_mutex_unlock(&c->lock);
}

void cluster_coordinator_destroy(struct cluster_coordinator *c)
{
	if (!c)
		return;
	assert(!c->sessions && !c->fleets);
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->thread, NULL);
	if (c->dirty && c->active)
		cluster_coordinator_save(c, NULL);
	c->state->ops->close(c->state);
	coordinator_free(c);
}
