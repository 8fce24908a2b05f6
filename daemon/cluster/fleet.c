// SPDX-License-Identifier: Apache-2.0
/* The way of a plan: IDLE -> plan() -> Assign to each node -> PREPARING, nodes pack -> PREPARED -> gather: the epoch
 * goes up, each node gets Start with the addresses of all -> running. A node that is lost on the way sends it back to
 * IDLE; one that cannot do its part is left out from then on. While a group runs, the next plan is prepared beside it
 * when a node is drained. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator_internal.h"

#define STEADY_NS                                                                                                      \
	(5 * BASE_NS_PER_SECOND) // that a node has to be there before a running plan is looked at again for it
#define BUSY_TRIES 6u // of a node that is busy: 1 s after the first, each time twice as long
#define BUSY_FIRST_NS BASE_NS_PER_SECOND
#define FULL_TRIES 4u // of one whose drive is full, or that could not pull
#define FULL_FIRST_NS (30 * BASE_NS_PER_SECOND)
#define SILENT_BEATS 3u // a node that missed that many is waited for until it is lost, or speaks again

/* ---- messages to nodes; lock held ---- */

void cluster_fleet_release_node(const struct cluster_node *n, uint64_t assignment)
{
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Release r = THAW__NODE__V1__RELEASE__INIT;
	size_t bytes = 0;
	if (!assignment || !n->session)
		return;
	r.assignment = assignment;
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_RELEASE;
	m.release = &r;
	uint8_t *data = cluster_pack_coordinator(&m, &bytes);
	cluster_session_post(n->session, data, bytes);
}

static void release(struct fleet_try *t)
{
	for (uint32_t i = 0; i < t->parts; i++)
		cluster_fleet_release_node(t->part[i].node, t->part[i].assignment);
	t->parts = 0;
}

static bool uses(const struct fleet_try *t, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < t->parts; i++) {
		if (t->part[i].node == n)
			return true;
	}
	return false;
}

uint64_t cluster_fleet_send(
	struct cluster_fleet *f, struct cluster_node *n, const struct cluster_slice *slice, bool spare)
{
	struct cluster_coordinator *c = f->coordinator;
	struct cluster_assign a = {.epoch = c->record.epoch,
		.header_hash = f->config.header_hash,
		.header_bytes = f->config.header_bytes,
		.file_bytes = f->config.file_bytes,
		.check = f->check,
		.spare = spare,
		.slice = *slice};
	size_t bytes = 0;
	snprintf(a.model, sizeof a.model, "%s", f->model);
	snprintf(a.path, sizeof a.path, "%s", f->path);
	memcpy(a.digest, f->config.digest, sizeof a.digest);
	a.assignment = ++c->last_assignment;
	cluster_sources_fill(c, n, &a);
	uint8_t *data = cluster_pack_assign(&a, &bytes);
	if (n->session)
		cluster_session_post(n->session, data, bytes);
	else
		free(data);
	return a.assignment;
}

/* Spares hold the store's lock: they are over first. */
static void send_assigns(struct cluster_fleet *f)
{
	cluster_spares_cancel(f);
	for (uint32_t i = 0; i < f->coming.parts; i++) {
		struct fleet_part *p = &f->coming.part[i];
		snprintf(p->phase, sizeof p->phase, "assigned");
		p->assignment = cluster_fleet_send(f, p->node, &p->slice, false);
	}
}

/* ---- who can be used; lock held ---- */

static const struct fleet_unfit *unfit(const struct cluster_fleet *f, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < f->unfit_count; i++) {
		const struct fleet_unfit *u = &f->unfit[i];
		if (u->node == n && n->facts && u->incarnation == n->facts->incarnation)
			return u->again_ns && base_clock_now_ns() >= u->again_ns ? NULL : u;
	}
	return NULL;
}

static void forget_unfit(struct cluster_fleet *f, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < f->unfit_count; i++) {
		if (f->unfit[i].node == n)
			f->unfit[i--] = f->unfit[--f->unfit_count];
	}
}

bool cluster_fleet_usable(const struct cluster_fleet *f, const struct cluster_node *n)
{
	return n->state == CLUSTER_NODE_READY && !n->draining && !n->leaving && !unfit(f, n);
}

static const struct cluster_state_plan *previous_plan(const struct cluster_fleet *f)
{
	const struct cluster_record *r = &f->coordinator->record;
	for (uint32_t i = 0; i < r->plans_count; i++) {
		if (strcmp(r->plans[i].model, f->model) == 0 &&
			memcmp(r->plans[i].digest, f->config.digest, CLUSTER_DIGEST_BYTES) == 0)
			return &r->plans[i];
	}
	return NULL;
}

/* What is said when nothing can hold the model: each node, and why not. */
static int nobody(struct cluster_fleet *f, struct base_error *e)
{
	const struct cluster_coordinator *c = f->coordinator;
	char text[300] = "";
	size_t at = 0;
	for (uint32_t i = 0; i < c->nodes_count && at < sizeof text - 1; i++) {
		const struct cluster_node *n = &c->nodes[i];
		const struct fleet_unfit *u = unfit(f, n);
		at += (size_t)snprintf(text + at, sizeof text - at, "%s%s is %s%s%s", at ? "; " : "", n->name,
			n->state != CLUSTER_NODE_READY ? cluster_node_state_name(n->state)
			: n->draining                  ? "drained"
			: n->leaving                   ? "stopping"
						       : "unfit",
			u || n->state == CLUSTER_NODE_LOST ? ": " : "",
			u                               ? u->why
			: n->state == CLUSTER_NODE_LOST ? n->why
							: "");
	}
	return base_error_set(e, -EHOSTDOWN, "no node can compute: %s", at ? text : "none has joined yet");
}

/* Nodes of the last plan get a while after the coordinator's start; a model without one needs cluster.nodes. */
static int wait_for_nodes(struct cluster_fleet *f, uint32_t count, uint64_t now, struct base_error *e)
{
	const struct cluster_coordinator *c = f->coordinator;
	const struct cluster_state_plan *p = previous_plan(f);
	if (f->planned)
		return 0;
	if (!p && count < c->config.nodes)
		return base_error_set(e, -EAGAIN, "%u of %u nodes are there (cluster.nodes)", count, c->config.nodes);
	if (!p || now > c->started_ns + c->config.return_ns)
		return 0;
	for (uint32_t i = 0; i < p->stages_count; i++) {
		for (uint32_t k = 0; k < c->nodes_count; k++) {
			const struct cluster_node *n = &c->nodes[k];
			if (strcmp(n->name, p->stages[i].node) == 0 && n->state == CLUSTER_NODE_LOST && !n->draining)
				return base_error_set(
					e, -EAGAIN, "node %s, which the last plan used, is waited for", n->name);
		}
	}
	if (count < c->config.nodes)
		return base_error_set(e, -EAGAIN, "%u of %u nodes are there (cluster.nodes)", count, c->config.nodes);
	return 0;
}

static int check_nodes(struct cluster_fleet *f, struct base_error *e)
{
	const struct cluster_coordinator *c = f->coordinator;
	uint64_t now = base_clock_now_ns();
	uint32_t count = 0;
	int claimed = cluster_claim_check(c, e);
	if (claimed)
		return claimed;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		const struct cluster_node *n = &c->nodes[i];
		const struct fleet_unfit *u = unfit(f, n);
		if (u && u->busy && u->again_ns && n->state == CLUSTER_NODE_READY && !n->draining && !n->leaving)
			return base_error_set(e, -EAGAIN, "node %s is tried again soon: %s", n->name, u->why);
		if (!cluster_fleet_usable(f, n))
			continue;
		count++;
		if (now > n->heard_ns + SILENT_BEATS * c->config.heartbeat_ns)
			return base_error_set(e, -EAGAIN, "node %s is silent", n->name);
	}
	int status = wait_for_nodes(f, count, now, e);
	return status || count ? status : nobody(f, e);
}

/* ---- planning ---- */

struct snapshot { // of the nodes, for plan(), which runs without the lock
	struct cluster_view view;
	char name[CLUSTER_MAX_NODES][CLUSTER_NAME_BYTES];
	struct cluster_facts facts[CLUSTER_MAX_NODES];
	struct cluster_node *node[CLUSTER_MAX_NODES];
	struct cluster_state_plan previous;
};

static int by_name(const void *a, const void *b)
{
	return strcmp((*(struct cluster_node *const *)a)->name, (*(struct cluster_node *const *)b)->name);
}

static bool is_one_of(const struct cluster_node *n, struct cluster_node *const *list, uint32_t count)
{
	uint32_t i = 0;
	while (i < count && list[i] != n)
		i++;
	return i < count;
}

static void take_snapshot(
	struct cluster_fleet *f, struct cluster_node *const *without, uint32_t without_count, struct snapshot *s)
{
	struct cluster_coordinator *c = f->coordinator;
	uint32_t n = 0;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		struct cluster_node *x = &c->nodes[i];
		if (cluster_fleet_usable(f, x) && !is_one_of(x, without, without_count))
			s->node[n++] = x;
	}
	qsort(s->node, n, sizeof s->node[0], by_name);
	for (uint32_t i = 0; i < n; i++) {
		s->facts[i] = *s->node[i]->facts;
		memcpy(s->name[i], s->node[i]->name, sizeof s->name[i]);
		s->view.nodes[i] =
			(struct cluster_view_node){s->name[i], &s->facts[i], s->node[i]->memory_available_bytes};
	}
	s->view.count = n;
	cluster_links_view(c, s->node, n, &s->view.links);
	const struct cluster_state_plan *p = previous_plan(f);
	if (p) {
		s->previous = *p;
		s->view.previous = &s->previous;
	}
}

/* Its slices say it: all parts of a stage, in their order, have the same layers. */
static int read_shape(const struct cluster_plan *p, struct rank_shape *ret_shape, struct base_error *e)
{
	struct rank_shape s = {0};
	uint32_t count = p->stages_count;
	for (uint32_t i = 0, part = 0; i < count; i++) {
		const struct cluster_slice *x = &p->stages[i].slice, *first = &p->stages[i - part].slice;
		if (x->tp_rank != part || x->tp_size != first->tp_size || x->first_layer != first->first_layer ||
			x->layers != first->layers || x->tp_size > count - (i - part))
			return base_error_set(
				e, -EPROTO, "a plan whose rank %u is part %u of %u", i, x->tp_rank, x->tp_size);
		s.parts[s.stages] = (uint8_t)x->tp_size;
		part = part + 1 < x->tp_size ? part + 1 : 0;
		s.stages += !part;
	}
	if (rank_shape_check(&s, CLUSTER_MAX_STAGES) < 0)
		return base_error_set(e, -EPROTO, "a plan of stages that have no rank, or too many");
	*ret_shape = s;
	return 0;
}

static int check_plan(const struct snapshot *s, const struct cluster_plan *p, struct base_error *e)
{
	if (!p->stages_count || p->stages_count > CLUSTER_MAX_STAGES)
		return base_error_set(e, -EPROTO, "a plan of %u ranks, 1 to %u", p->stages_count, CLUSTER_MAX_STAGES);
	for (uint32_t i = 0; i < p->stages_count; i++) {
		if (p->stages[i].node >= s->view.count)
			return base_error_set(
				e, -EPROTO, "a plan with node %u of %u", p->stages[i].node, s->view.count);
	}
	return 0;
}

static int take_plan(
	struct cluster_fleet *f, const struct snapshot *s, const struct cluster_plan *p, struct base_error *e)
{
	struct fleet_try *t = &f->coming;
	*t = (struct fleet_try){0};
	int status = check_plan(s, p, e);
	if (!status)
		status = read_shape(p, &t->shape, e);
	if (status)
		return status;
	for (uint32_t i = 0; i < p->stages_count; i++) {
		t->part[i].node = s->node[p->stages[i].node];
		t->part[i].slice = p->stages[i].slice;
	}
	t->parts = p->stages_count;
	t->plan = *p;
	return 0;
}

/* Lock held; dropped while plan() runs. */
static int call_plan(struct cluster_fleet *f, const struct snapshot *s, struct cluster_plan *ret_plan,
	bool *ret_changed, struct base_error *e)
{
	struct cluster_coordinator *c = f->coordinator;
	f->state = FLEET_PLANNING;
	uint64_t changes = f->changes;
	pthread_mutex_unlock(&c->lock);
	int status = f->config.plan(f->config.context, &s->view, ret_plan, e);
	pthread_mutex_lock(&c->lock);
	f->state = FLEET_IDLE;
	pthread_cond_broadcast(&c->changed); // who destroys the fleet waits for that
	*ret_changed = changes != f->changes;
	return status;
}

int cluster_fleet_foresee(struct cluster_fleet *f, struct cluster_node *const *lost, uint32_t count,
	struct fleet_ahead *ret_ahead, struct base_error *e)
{
	_cleanup_free_ struct snapshot *s = calloc(1, sizeof *s);
	struct cluster_plan plan = {0};
	bool changed = false;
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory for a plan");
	take_snapshot(f, lost, count, s);
	s->view.what_if = true;
	int status = s->view.count ? call_plan(f, s, &plan, &changed, e)
				   : base_error_set(e, -EHOSTDOWN, "no other node is there");
	if (changed)
		return base_error_set(e, -ESTALE, "the nodes changed meanwhile");
	if (!status)
		status = check_plan(s, &plan, e);
	if (status)
		return status;
	ret_ahead->parts = plan.stages_count;
	for (uint32_t i = 0; i < plan.stages_count; i++) {
		ret_ahead->node[i] = s->node[plan.stages[i].node];
		ret_ahead->slice[i] = plan.stages[i].slice;
	}
	return 0;
}

static int ask_plan(struct cluster_fleet *f, struct snapshot *s, struct cluster_plan *ret_plan, struct base_error *e)
{
	bool changed;
	take_snapshot(f, NULL, 0, s);
	f->seen_count = s->view.count;
	for (uint32_t i = 0; i < s->view.count; i++)
		f->seen[i] = (struct fleet_seen){s->node[i], s->facts[i].incarnation};
	int status = call_plan(f, s, ret_plan, &changed, e);
	if (!status && changed)
		return base_error_set(e, -EAGAIN, "the nodes changed meanwhile");
	if (status == -ENOMEM && (f->planned || previous_plan(f))) { // it did fit once: nodes are missing
		base_error_prefix(e, "the nodes that are left cannot hold the model");
		return -EHOSTDOWN;
	}
	return status;
}

static int make_plan(struct cluster_fleet *f, struct base_error *e)
{
	_cleanup_free_ struct snapshot *s = calloc(1, sizeof *s);
	struct cluster_plan plan = {0};
	int status = s ? ask_plan(f, s, &plan, e) : base_error_set(e, -ENOMEM, "no memory for a plan");
	if (!status)
		status = take_plan(f, s, &plan, e);
	if (status)
		return status;
	f->planned = true;
	send_assigns(f);
	f->state = FLEET_PREPARING;
	return 0;
}

int cluster_fleet_try(struct cluster_fleet *f, struct base_error *e)
{
	_cleanup_free_ struct snapshot *s = calloc(1, sizeof *s);
	struct cluster_plan plan = {0};
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory for a plan");
	pthread_mutex_lock(&f->coordinator->lock);
	int status = f->state == FLEET_IDLE ? check_nodes(f, e) : base_error_set(e, -EAGAIN, "a plan is being made");
	if (!status)
		status = ask_plan(f, s, &plan, e);
	pthread_mutex_unlock(&f->coordinator->lock);
	return status;
}

static int preparing(const struct cluster_fleet *f, struct base_error *e)
{
	for (uint32_t i = 0; i < f->coming.parts; i++) {
		const struct fleet_part *p = &f->coming.part[i];
		if (!p->ready)
			return base_error_set(e, -EAGAIN, "node %s prepares its layers (%s, %.0f %%)", p->node->name,
				p->phase,
				p->total_bytes ? 100.0 * (double)p->done_bytes / (double)p->total_bytes : 0.0);
	}
	return 0;
}

/* One step towards PREPARED; lock held, dropped for plan(). */
static int step(struct cluster_fleet *f, struct base_error *e)
{
	int status;
	switch (f->state) {
	case FLEET_IDLE:
		status = check_nodes(f, e);
		if (!status && !f->planned && cluster_links_pending(f->coordinator))
			status = base_error_set(e, -EAGAIN, "the links between the nodes are being measured");
		if (!status)
			status = make_plan(f, e);
		return status ? status : preparing(f, e);
	case FLEET_PLANNING:
		return base_error_set(e, -EAGAIN, "a plan is being made");
	case FLEET_PREPARING:
		return preparing(f, e);
	case FLEET_PREPARED:
		return cluster_claim_check(f->coordinator, e);
	}
	return -EAGAIN;
}

static void drop_coming(struct cluster_fleet *f)
{
	release(&f->coming);
	if (f->state != FLEET_PLANNING)
		f->state = FLEET_IDLE;
}

/* ---- the group ---- */

/* The place of this model's plan in the record. When it is full, that of a model that is not there any more is given
 * up; NULL: all are there. */
static struct cluster_state_plan *plan_place(struct cluster_fleet *f)
{
	struct cluster_record *r = &f->coordinator->record;
	uint32_t gone = CLUSTER_MAX_PLANS;
	for (uint32_t i = 0; i < r->plans_count; i++) {
		const struct cluster_fleet *x = f->coordinator->fleets;
		if (strcmp(r->plans[i].model, f->model) == 0)
			return &r->plans[i];
		while (x && strcmp(r->plans[i].model, x->model) != 0)
			x = x->next;
		if (!x && gone == CLUSTER_MAX_PLANS)
			gone = i;
	}
	if (r->plans_count < CLUSTER_MAX_PLANS)
		return &r->plans[r->plans_count++];
	if (gone == CLUSTER_MAX_PLANS)
		return NULL;
	// Behind the others, so that the next one to go is another.
	memmove(&r->plans[gone], &r->plans[gone + 1], (CLUSTER_MAX_PLANS - 1 - gone) * sizeof r->plans[0]);
	return &r->plans[CLUSTER_MAX_PLANS - 1];
}

/* Without the lock, so that the epoch is on the drive before anyone hears of it. */
static int raise_epoch(struct cluster_fleet *f, uint64_t *ret_epoch, struct base_error *e)
{
	struct cluster_coordinator *c = f->coordinator;
	pthread_mutex_lock(&c->lock);
	if (f->state != FLEET_PREPARED) { // what is left of `coming` must not replace the plan that the record has
		pthread_mutex_unlock(&c->lock);
		return base_error_set(e, -EAGAIN, "a node was lost meanwhile");
	}
	struct cluster_record *r = &c->record;
	*ret_epoch = ++r->epoch;
	struct cluster_state_plan *p = plan_place(f);
	if (p) {
		*p = (struct cluster_state_plan){.stages_count = f->coming.parts};
		snprintf(p->model, sizeof p->model, "%s", f->model);
		memcpy(p->digest, f->config.digest, sizeof p->digest);
		for (uint32_t i = 0; i < f->coming.parts; i++) {
			memcpy(p->stages[i].node, f->coming.part[i].node->name, sizeof p->stages[i].node);
			p->stages[i].slice = f->coming.part[i].slice;
		}
	}
	pthread_mutex_unlock(&c->lock);
	int status = cluster_coordinator_save(c, e);
	if (!status)
		return 0;
	base_error_prefix(e, "the next epoch");
	return status == -ESTALE || status == -EHOSTUNREACH || status == -ETIMEDOUT ? -EAGAIN
										    : status; // etcd comes back
}

/* Lock held: tells every node of `coming`, which is `running` from then on. */
static int send_starts(struct cluster_fleet *f, uint64_t epoch, struct cluster_group *g, struct base_error *e)
{
	struct fleet_try *t = &f->coming;
	struct cluster_start s = {.epoch = epoch, .shape = t->shape, .members_count = rank_member(t->parts)};
	if (f->state != FLEET_PREPARED)
		return base_error_set(e, -EAGAIN, "a node was lost meanwhile");
	if (getrandom(g->secret, sizeof g->secret, 0) != (ssize_t)sizeof g->secret)
		return base_error_set(e, -EIO, "no random bytes");
	memcpy(s.secret, g->secret, sizeof s.secret);
	g->epoch = epoch;
	g->shape = t->shape;
	g->ranks = t->parts;
	for (uint32_t i = 0; i < t->parts; i++) {
		memcpy(g->members[1 + i].host, t->part[i].node->facts->address, sizeof g->members[0].host);
		g->members[1 + i].port = (uint16_t)t->part[i].prepared.port;
		memcpy(g->node[i], t->part[i].node->name, sizeof g->node[i]);
		g->prepared[i] = t->part[i].prepared;
	}
	g->plan = t->plan;
	memcpy(s.members, g->members, sizeof s.members);
	f->running = *t;
	f->running_epoch = epoch;
	f->running_ns = base_clock_now_ns();
	f->broken = false;
	f->coming.parts = 0;
	f->state = FLEET_IDLE;
	f->replan = f->check = false;
	for (uint32_t i = 0; i < f->running.parts; i++) {
		struct fleet_part *p = &f->running.part[i];
		size_t bytes = 0;
		s.assignment = p->assignment;
		s.place = rank_shape_place(&s.shape, i);
		snprintf(p->phase, sizeof p->phase, "running");
		uint8_t *data = cluster_pack_start(&s, &bytes);
		if (p->node->session)
			cluster_session_post(p->node->session, data, bytes);
		else
			free(data);
	}
	return 0;
}

int cluster_fleet_gather(struct cluster_fleet *f, struct cluster_group *ret_group, struct base_error *e)
{
	struct cluster_coordinator *c = f->coordinator;
	struct base_error own = {0};
	uint64_t epoch = 0;
	e = e ? e : &own;
	memset(ret_group, 0, sizeof *ret_group);
	pthread_mutex_lock(&c->lock);
	int status = step(f, e);
	if (status && status != -EAGAIN && status != -EHOSTDOWN)
		drop_coming(f);
	pthread_mutex_unlock(&c->lock);
	if (status)
		return status;
	status = f->config.listen(f->config.context, &ret_group->members[0], e);
	if (!status)
		status = raise_epoch(f, &epoch, e);
	if (status)
		return status;
	pthread_mutex_lock(&c->lock);
	status = send_starts(f, epoch, ret_group, e);
	pthread_mutex_unlock(&c->lock);
	return status;
}

void cluster_fleet_mend(struct cluster_fleet *f)
{
	struct cluster_coordinator *c = f->coordinator;
	pthread_mutex_lock(&c->lock);
	f->check = true;
	drop_coming(f); // it was assigned before
	pthread_mutex_unlock(&c->lock);
}

void cluster_fleet_scatter(struct cluster_fleet *f)
{
	struct cluster_coordinator *c = f->coordinator;
	pthread_mutex_lock(&c->lock);
	release(&f->running);
	pthread_mutex_unlock(&c->lock);
}

bool cluster_fleet_broken(struct cluster_fleet *f)
{
	pthread_mutex_lock(&f->coordinator->lock);
	bool broken = f->broken;
	pthread_mutex_unlock(&f->coordinator->lock);
	return broken;
}

/* ---- what nodes say; lock held ---- */

static void set_broken(struct cluster_fleet *f)
{
	f->broken = true;
	f->config.broken(f->config.context);
}

/* The part of a plan that a message is about; those of plans that are over are dropped. */
static struct fleet_part *find_part(struct cluster_coordinator *c, const struct cluster_node *n, uint64_t assignment,
	struct cluster_fleet **ret_fleet)
{
	for (struct cluster_fleet *f = c->fleets; f; f = f->next) {
		struct fleet_try *const tries[] = {&f->coming, &f->running};
		for (size_t k = 0; k < base_array_size(tries); k++) {
			for (uint32_t i = 0; i < tries[k]->parts; i++) {
				struct fleet_part *p = &tries[k]->part[i];
				if (p->node != n || p->assignment != assignment || !assignment)
					continue;
				*ret_fleet = f;
				return p;
			}
		}
	}
	return NULL;
}

static bool is_coming(const struct cluster_fleet *f, const struct fleet_part *p)
{
	return p >= f->coming.part && p < f->coming.part + f->coming.parts;
}

void cluster_fleets_prepared(struct cluster_coordinator *c, struct cluster_node *n, const struct cluster_prepared *m)
{
	struct cluster_fleet *f;
	struct fleet_part *p = find_part(c, n, m->assignment, &f);
	if (!p || !is_coming(f, p) || f->state != FLEET_PREPARING)
		return;
	p->prepared = *m;
	p->ready = true;
	snprintf(p->phase, sizeof p->phase, "prepared");
	forget_unfit(f, n);
	n->facts->bandwidths = m->bandwidths;
	cluster_sources_note(n, f->config.digest, m->copy);
	if (m->repaired[0])
		cluster_coordinator_emit(c, "warning", "store_repaired", f->model,
			"node %s packed anew: %s; look at the drive's health", n->name, m->repaired);
	for (uint32_t i = 0; i < f->coming.parts; i++) {
		if (!f->coming.part[i].ready)
			return;
	}
	f->state = FLEET_PREPARED;
	pthread_cond_broadcast(&c->changed);
}

void cluster_fleets_progress(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Progress *m)
{
	struct cluster_fleet *f;
	struct fleet_part *p = find_part(c, n, m->assignment, &f);
	if (!p || p->ready)
		return;
	snprintf(p->phase, sizeof p->phase, "%.15s", m->phase);
	p->done_bytes = m->done_bytes < m->total_bytes ? m->done_bytes : m->total_bytes;
	p->total_bytes = m->total_bytes;
}

/* The node cannot do this part: it is left out for this model until it starts again; what may pass is tried again some
 * times. */
static void add_unfit(struct cluster_fleet *f, const struct cluster_node *n, int code, const char *why)
{
	bool busy = code == -EBUSY || code == -EAGAIN, passes = busy || code == -ENOSPC || code == -EREMOTEIO;
	uint32_t at = 0;
	while (at < f->unfit_count && f->unfit[at].node != n)
		at++;
	if (at == CLUSTER_MAX_NODES)
		return;
	struct fleet_unfit *u = &f->unfit[at];
	if (at == f->unfit_count || u->incarnation != n->facts->incarnation)
		*u = (struct fleet_unfit){.node = n, .incarnation = n->facts->incarnation};
	f->unfit_count += at == f->unfit_count;
	uint64_t wait_ns = (busy ? BUSY_FIRST_NS : FULL_FIRST_NS) << u->tries;
	bool again = passes && u->tries < (busy ? BUSY_TRIES : FULL_TRIES);
	u->tries++;
	u->busy = busy;
	u->again_ns = again ? base_clock_now_ns() + wait_ns : 0;
	snprintf(u->why, sizeof u->why, "%s", why);
	if (again)
		cluster_coordinator_emit(f->coordinator, "warning", "node_retry", f->model,
			"node %s, tried again in %.0f s: %.300s", n->name, (double)wait_ns / BASE_NS_PER_SECOND, why);
	else
		cluster_coordinator_emit(
			f->coordinator, "error", "node_unfit", f->model, "node %s: %.300s", n->name, why);
}

void cluster_fleets_failed(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Failed *m)
{
	struct cluster_fleet *f;
	if (cluster_spares_failed(c, n, m))
		return;
	struct fleet_part *p = find_part(c, n, m->assignment, &f);
	if (!p)
		return;
	p->assignment = 0; // it has forgotten it
	if (!is_coming(f, p)) {
		cluster_coordinator_emit(c, "error", "rank_failed", f->model, "node %s: %.300s", n->name, m->text);
		set_broken(f);
		return;
	}
	if (f->running.parts && !f->broken && uses(&f->running, n)) {
		// It does its part of what runs: the plan beside that is given up, the node is not.
		f->replan = false;
		cluster_coordinator_emit(c, "error", "replan_failed", f->model,
			"node %s cannot do its part of another plan, what runs goes on: %.300s", n->name, m->text);
	} else {
		add_unfit(f, n, m->code, m->text);
	}
	drop_coming(f);
	pthread_cond_broadcast(&c->changed);
}

void cluster_fleets_rank_ended(
	struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__RankEnded *m)
{
	struct cluster_fleet *f;
	struct fleet_part *p = find_part(c, n, m->assignment, &f);
	if (!p || is_coming(f, p) || m->epoch != f->running_epoch)
		return;
	set_broken(f);
	cluster_coordinator_emit(c, "warning", "rank_ended", f->model, "node %s, epoch %llu: %.300s", n->name,
		(unsigned long long)m->epoch, m->text);
}

/* ---- what the coordinator's thread does; lock held ---- */

void cluster_fleets_node_lost(struct cluster_coordinator *c, struct cluster_node *n)
{
	char why[CLUSTER_TEXT_BYTES + CLUSTER_NAME_BYTES + 16];
	for (struct cluster_fleet *f = c->fleets; f; f = f->next) {
		f->changes++;
		cluster_spares_node_lost(f, n);
		if (uses(&f->coming, n))
			drop_coming(f);
		if (!uses(&f->running, n))
			continue;
		set_broken(f);
		snprintf(why, sizeof why, "node %s: %s", n->name, n->why);
		f->config.regather(f->config.context, why);
	}
}

void cluster_fleets_forget(struct cluster_coordinator *c)
{
	for (struct cluster_fleet *f = c->fleets; f; f = f->next) {
		f->planned = false;
		f->changes++;
	}
}

void cluster_fleets_replan(struct cluster_coordinator *c, const struct cluster_node *n, const char *why)
{
	for (struct cluster_fleet *f = c->fleets; f; f = f->next) {
		f->changes++;
		if (uses(&f->coming, n))
			drop_coming(f);
		if (!f->running.parts || ((n->draining || n->leaving) && !uses(&f->running, n)))
			continue; // what is asked for already stays so
		f->replan = true;
		snprintf(f->replan_why, sizeof f->replan_why, "%s", why);
	}
}

bool cluster_fleets_move(const struct cluster_coordinator *c, const struct cluster_node *n)
{
	for (const struct cluster_fleet *f = c->fleets; f; f = f->next) {
		if (uses(&f->running, n) && (f->replan || f->broken || f->state != FLEET_IDLE))
			return true;
	}
	return false;
}

/* How much a node that is gone is missed; drained: that somebody wanted it so would be forgotten. */
static uint32_t worth(const struct cluster_coordinator *c, const struct cluster_node *n)
{
	const struct cluster_record *r = &c->record;
	for (uint32_t i = 0; i < r->plans_count; i++) {
		for (uint32_t k = 0; k < r->plans[i].stages_count; k++) {
			if (strcmp(r->plans[i].stages[k].node, n->name) == 0)
				return 2;
		}
	}
	return n->draining;
}

static bool has_work(const struct cluster_coordinator *c, const struct cluster_node *n)
{
	for (const struct cluster_fleet *f = c->fleets; f; f = f->next) {
		if (uses(&f->coming, n) || uses(&f->running, n))
			return true;
	}
	return false;
}

struct cluster_node *cluster_fleets_evict(struct cluster_coordinator *c)
{
	struct cluster_node *least = NULL;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		struct cluster_node *n = &c->nodes[i];
		if (n->state == CLUSTER_NODE_READY || has_work(c, n))
			continue;
		if (!least || worth(c, n) < worth(c, least) ||
			(worth(c, n) == worth(c, least) && n->since_ns < least->since_ns))
			least = n;
	}
	for (struct cluster_fleet *f = c->fleets; least && f; f = f->next) {
		forget_unfit(f, least);
		for (uint32_t i = 0; i < f->seen_count; i++) {
			if (f->seen[i].node == least)
				f->seen[i--] = f->seen[--f->seen_count];
		}
	}
	return least;
}

static bool was_seen(const struct cluster_fleet *f, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < f->seen_count; i++) {
		if (f->seen[i].node == n && f->seen[i].incarnation == n->facts->incarnation)
			return true;
	}
	return false;
}

/* A node that the last plan did not know, and that stays, is worth another one. */
static void look_for_new_nodes(struct cluster_fleet *f)
{
	const struct cluster_coordinator *c = f->coordinator;
	uint64_t now = base_clock_now_ns();
	for (uint32_t i = 0; i < c->nodes_count && !f->replan; i++) {
		const struct cluster_node *n = &c->nodes[i];
		if (!cluster_fleet_usable(f, n) || was_seen(f, n) || now < n->since_ns + STEADY_NS)
			continue;
		f->replan = true;
		snprintf(f->replan_why, sizeof f->replan_why, "node %s is there", n->name);
	}
}

static bool same_plan(const struct fleet_try *a, const struct fleet_try *b)
{
	bool same = a->parts == b->parts;
	for (uint32_t i = 0; i < a->parts && same; i++)
		same = a->part[i].node == b->part[i].node &&
		       memcmp(&a->part[i].slice, &b->part[i].slice, sizeof a->part[i].slice) == 0;
	return same;
}

bool cluster_fleets_planning(const struct cluster_coordinator *c)
{
	const struct cluster_fleet *f = c->fleets;
	while (f && f->state != FLEET_PLANNING)
		f = f->next;
	return f;
}

void cluster_fleets_step(struct cluster_coordinator *c)
{
	bool asked = false; // one plan that may come in a round: nodes are looked after in between
	for (struct cluster_fleet *f = c->fleets; f; f = f->next) {
		struct base_error e = {0};
		if (!f->running.parts || f->broken)
			continue;
		look_for_new_nodes(f);
		if (!f->replan) {
			asked = asked || cluster_spares_step(f);
			continue;
		}
		int status = step(f, &e);
		if (status == -EAGAIN && !(f->coming.parts && same_plan(&f->coming, &f->running)))
			continue;
		f->replan = false;
		if (f->coming.parts && same_plan(&f->coming, &f->running)) {
			drop_coming(f);
			continue;
		}
		if (!status) {
			f->config.regather(f->config.context, f->replan_why);
			continue;
		}
		drop_coming(f);
		cluster_coordinator_emit(c, "error", "replan_failed", f->model,
			"%s, but another plan cannot be made: %s", f->replan_why, base_error_text(&e));
	}
}

static void describe_try(const struct cluster_fleet *f, const struct fleet_try *t, const struct cluster_node *n,
	struct cluster_node_info *i)
{
	for (uint32_t k = 0; k < t->parts && i->work_count < CLUSTER_MAX_PLANS; k++) {
		const struct fleet_part *p = &t->part[k];
		if (p->node != n)
			continue;
		struct cluster_node_work *w = &i->work[i->work_count++];
		*w = (struct cluster_node_work){.slice = p->slice,
			.stage = rank_shape_place(&t->shape, k).stage,
			.done_bytes = p->done_bytes,
			.total_bytes = p->total_bytes};
		memcpy(w->model, f->model, sizeof w->model);
		memcpy(w->phase, p->phase, sizeof w->phase);
	}
}

void cluster_fleets_describe(struct cluster_coordinator *c, const struct cluster_node *n, struct cluster_node_info *i)
{
	for (const struct cluster_fleet *f = c->fleets; f; f = f->next) {
		describe_try(f, &f->running, n, i);
		describe_try(f, &f->coming, n, i);
	}
}

/* ---- life ---- */

int cluster_fleet_create(struct cluster_coordinator *c, const struct cluster_fleet_config *config,
	struct cluster_fleet **ret_fleet, struct base_error *e)
{
	struct cluster_fleet *f = calloc(1, sizeof *f);
	if (!f)
		return base_error_set(e, -ENOMEM, "no memory for a fleet");
	f->coordinator = c;
	f->config = *config;
	snprintf(f->model, sizeof f->model, "%s", config->model);
	snprintf(f->path, sizeof f->path, "%s", config->path);
	struct stat st = {0};
	if (config->file_fd >= 0 && fstat(config->file_fd, &st) == 0)
		f->changed = st.st_mtim;
	pthread_mutex_lock(&c->lock);
	f->next = c->fleets;
	c->fleets = f;
	pthread_mutex_unlock(&c->lock);
	*ret_fleet = f;
	return 0;
}

void cluster_fleet_destroy(struct cluster_fleet *f)
{
	if (!f)
		return;
	struct cluster_coordinator *c = f->coordinator;
	pthread_mutex_lock(&c->lock);
	f->replan = false;
	while (f->state == FLEET_PLANNING)
		pthread_cond_wait(&c->changed, &c->lock);
	struct cluster_fleet **at = &c->fleets;
	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	release(&f->coming);
	release(&f->running);
	cluster_spares_cancel(f);
	pthread_mutex_unlock(&c->lock);
	free(f);
}
