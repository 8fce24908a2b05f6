// SPDX-License-Identifier: Apache-2.0
/* A model over the nodes of a cluster: what the planner says goes to the coordinator's fleet, and what the fleet has
 * gathered becomes a group of the engine. plan() may be called by the engine's thread and by the coordinator's, one at
 * a time; the rest is the engine's, but for create, wait and destroy, which are the loader's. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "base/units.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/resolve.h"
#include "daemon/plan_model.h"
#include "daemon/server_internal.h"
#include "shard/link/rendezvous.h"
#include "topology/fleet/fleet.h"

#define LOOK_NS 50000000
#define RING_BYTES (256u << 10)

struct summary { // of a plan, for status, placement and metrics
	uint64_t number;
	struct topology_plan plan;
	struct topology_plan_input input;
	char explanation[SERVER_EXPLANATION_BYTES];
};

struct remarks { // on a plan, for those that come to be
	char left_out[CLUSTER_MAX_NODES * CLUSTER_NAME_BYTES / 8]; // names
	struct base_error fewer; // there are not enough nodes for compute.tensor; code 0: there are
};

struct server_fleet {
	struct server_entry *entry;
	struct cluster_fleet *fleet;
	struct plan_model sizes;
	bool has_sizes, context_fixed;
	enum fleet_map map;
	struct config_rule *rules; // (FLEET_ENTRIES): the map if it is explicit, else pins
	uint32_t rules_count;
	struct config_size reserve[CONFIG_SIZES];
	uint32_t reserve_count;
	struct fleet_map_entry *entries; // (FLEET_ENTRIES), plan_lock: the rules, of the devices that are planned with
	uint64_t weights_bytes, kv_bytes; // asked for on each node, instead of its budgets; 0: as they are
	struct cluster_view_links links; // plan_lock; of the plan that is made
	struct summary next; // lock; of the last plan
	bool ran; // lock; a group: what is shown is its plan, until the next group's
	struct remarks told; // plan_lock
	int listen_fd, cancel_fd;
	struct cluster_member self;
	struct cluster_group group; // scratch of gather
	const struct link_patience *patience; // of the gather() under way
	struct rank_assign assign[ENGINE_MAX_RANKS];
};

/* ---- plan ---- */

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void add_most(const struct server_entry *y, const char *node, struct server_holding *sum)
{
	const struct server_holding *const lists[] = {y->planned, y->running};
	struct server_holding h[2] = {0};
	for (size_t l = 0; l < base_array_size(lists); l++) {
		for (uint32_t i = 0; i < ENGINE_MAX_RANKS; i++) {
			const struct server_holding *x = &lists[l][i];
			if (strcmp(x->node, node) != 0)
				continue;
			h[l].weights_bytes += x->weights_bytes;
			h[l].kv_bytes += x->kv_bytes;
			h[l].workspace_bytes += x->workspace_bytes;
			h[l].process_bytes += x->process_bytes;
		}
	}
	sum->weights_bytes += larger(h[0].weights_bytes, h[1].weights_bytes);
	sum->kv_bytes += larger(h[0].kv_bytes, h[1].kv_bytes);
	sum->workspace_bytes += larger(h[0].workspace_bytes, h[1].workspace_bytes);
	sum->process_bytes += larger(h[0].process_bytes, h[1].process_bytes);
}

/* What other models have of a node, or will have when their next plan runs. */
static struct server_holding others_hold(const struct server_fleet *f, const char *node)
{
	struct server *s = f->entry->server;
	struct server_holding sum = {0};
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i] && s->entry[i] != f->entry)
			add_most(s->entry[i], node, &sum);
	}
	pthread_mutex_unlock(&s->lock);
	return sum;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static uint64_t stored_bytes(const struct server_fleet *f, const struct cluster_facts *facts)
{
	for (uint32_t i = 0; i < facts->store_count; i++) {
		if (memcmp(facts->store[i].digest, f->entry->rank.digest, CLUSTER_DIGEST_BYTES) == 0)
			return facts->store[i].bytes;
	}
	return 0;
}

/* Nodes of the last plan first, in its order, then those that had the most of the model when they joined: where the
 * order is free, layers stay where their files are. Returns how many the former are. */
static uint32_t order_nodes(
	const struct server_fleet *f, const struct cluster_view *view, uint32_t order[static CLUSTER_MAX_NODES])
{
	bool taken[CLUSTER_MAX_NODES] = {0};
	uint32_t n = 0;
	for (uint32_t i = 0; view->previous && i < view->previous->stages_count; i++) {
		for (uint32_t k = 0; k < view->count; k++) {
			if (taken[k] || strcmp(view->nodes[k].name, view->previous->stages[i].node) != 0)
				continue;
			taken[k] = true;
			order[n++] = k;
		}
	}
	for (uint32_t k = 0, count = n; k < view->count; k++) {
		if (taken[k])
			continue;
		uint64_t bytes = stored_bytes(f, view->nodes[k].facts);
		uint32_t at = count++;
		for (; at > n && stored_bytes(f, view->nodes[order[at - 1]].facts) < bytes; at--)
			order[at] = order[at - 1];
		order[at] = k;
	}
	return n;
}

static uint64_t reserve_of(const struct server_fleet *f, const char *node)
{
	for (uint32_t i = 0; i < f->reserve_count; i++) {
		if (strcmp(f->reserve[i].node, node) == 0)
			return f->reserve[i].bytes;
	}
	return 0;
}

/* Explicit budgets are taken at their word, against the limit; without them it is what the node has now, where all
 * ranks' own memory is counted as free: what other models have of it is not this one's. Returns that. */
static uint64_t fill_device(const struct server_fleet *f, const struct cluster_view_node *n, struct fleet_device *d)
{
	const struct cluster_budgets *b = &n->facts->budgets;
	const struct server_holding others = others_hold(f, n->name);
	uint64_t held = others.weights_bytes + others.kv_bytes + others.workspace_bytes + others.process_bytes;
	*d = (struct fleet_device){
		.weights_budget_bytes = server_left_of(f->weights_bytes, b->weights_bytes, others.weights_bytes),
		.kv_budget_bytes = server_left_of(f->kv_bytes, b->kv_bytes, others.kv_bytes),
		.workspace_budget_bytes = server_left_of(0, b->workspace_bytes, others.workspace_bytes),
		.bandwidths = n->facts->bandwidths,
	};
	d->memory_bytes = d->weights_budget_bytes && d->kv_budget_bytes
				  ? minus(n->facts->memory_limit_bytes, held)
				  : minus(n->memory_available_bytes - n->memory_available_bytes / 16, held);
	d->memory_bytes = minus(d->memory_bytes, reserve_of(f, n->name));
	snprintf(d->name, sizeof d->name, "%s", n->name);
	snprintf(d->host, sizeof d->host, "%s", n->name);
	return held;
}

static double slower(double a, double b)
{
	return a > b ? a : b;
}

/* Drives work at the same time; memory and compute of one stream do so stage by stage. */
static void take_stage(
	const struct fleet_plan *p, const struct fleet_stage *s, const uint32_t *order, struct cluster_plan *ret)
{
	double memory = 0, compute = 0;
	for (uint32_t i = s->first_rank; i < s->first_rank + s->tp; i++) {
		const struct fleet_rank *r = &p->ranks[i];
		const struct topology_plan *x = &r->share;
		ret->stages[i] = (struct cluster_plan_stage){
			.node = order[r->device],
			.slice = {s->first_layer, s->layers, r->tp_rank, s->tp},
			.weights_bytes = x->weights_bytes,
			.kv_bytes = p->kv_blocks * r->kv_block_bytes,
			.workspace_bytes = x->workspace_bytes,
			.hot_bytes = x->hot_bytes,
			.cold_bytes = x->cold_bytes,
		};
		ret->pass_ns_disk = slower(ret->pass_ns_disk, x->pass_ns_disk);
		memory = slower(memory, x->pass_ns_memory);
		compute = slower(compute, x->token_ns_compute);
	}
	ret->pass_ns_memory += memory;
	ret->token_ns_compute += compute;
}

static void take_plan(const struct fleet_plan *p, const uint32_t *order, struct cluster_plan *ret)
{
	ret->stages_count = p->ranks_count;
	ret->kv_blocks = p->kv_blocks;
	ret->passes = p->full.micro_batches;
	ret->tokens_per_s_one = p->one.tokens_per_s;
	ret->tokens_per_s_full = p->full.tokens_per_s;
	for (uint32_t i = 0; i < p->stages_count; i++)
		take_stage(p, &p->stages[i], order, ret);
}

/* Nodes that say no rack are in none that others are in. Where nothing was measured inside a rack there is nothing to
 * tell racks apart by. */
static void fill_racks(const struct server_fleet *f, const struct cluster_view *view, const uint32_t *order,
	struct fleet_device *devices)
{
	for (uint32_t i = 0; i < view->count && f->links.of[FLEET_LINK_RACK].measured; i++) {
		const char *rack = view->nodes[order[i]].facts->rack;
		if (rack[0])
			snprintf(devices[i].rack, sizeof devices[i].rack, "%s", rack);
		else
			snprintf(devices[i].rack, sizeof devices[i].rack, "/%u", i); // the name of none
	}
}

static struct fleet_link link_of(const struct cluster_view_link *l)
{
	return (struct fleet_link){l->latency_ns, l->bytes_per_s};
}

/* None of class host: what is measured is the way that ranks' messages take, also between nodes of one machine. */
static void fill_input(
	const struct server_fleet *f, const struct fleet_device *devices, uint32_t count, struct fleet_input *ret_input)
{
	const struct cluster_view_links *l = &f->links;
	bool racks = count && devices[0].rack[0]; // all have one, or none: fill_racks, and plans that leave them aside
	*ret_input = (struct fleet_input){
		.model = &f->sizes.sizes,
		.devices = devices,
		.devices_count = count,
		.links[FLEET_LINK_CLUSTER] = link_of(racks ? &l->of[FLEET_LINK_CLUSTER] : &l->all),
		/* The engine is on another host than the ranks. */
		.overhead_ns = PLAN_MODEL_PASS_NS + 2 * l->all.latency_ns,
		.objective = FLEET_OBJECTIVE_FULL,
		.sequences = f->entry->rank.sequences,
		.map = f->map,
		.entries = f->entries,
		.entries_count = f->rules_count,
	};
	if (racks)
		ret_input->links[FLEET_LINK_RACK] = link_of(&l->of[FLEET_LINK_RACK]);
}

/* As many ranks in a stage as compute.tensor says; where there are not so many nodes, fewer are better than none. The
 * other maps are of whole layers, unless it says how many share them, and an explicit one says that itself. */
static int build(struct server_fleet *f, const struct fleet_device *devices, uint32_t count, struct remarks *remarks,
	struct fleet_device *ret_planned, struct fleet_plan *ret_plan, struct base_error *e)
{
	bool is_explicit = f->map == FLEET_MAP_EXPLICIT;
	uint32_t wanted = is_explicit ? 0 : f->entry->server->config.compute.tensor;
	struct base_error why;
	struct fleet_input in;
	fill_input(f, devices, count, &in);
	in.tp_even = wanted > 0;
	in.tp_least = in.tp_most = wanted || is_explicit || in.map == FLEET_MAP_AUTO ? wanted : 1;
	int status = fleet_plan_build_racks(&in, ret_planned, ret_plan, &why);
	if (status == -ENOMEM && wanted > 1) {
		remarks->fewer = why;
		in.tp_least = 1;
		in.tp_most = in.map == FLEET_MAP_AUTO ? wanted - 1 : 1;
		status = fleet_plan_build_racks(&in, ret_planned, ret_plan, &why);
	} else if (!status) {
		remarks->fewer.code = 0;
	}
	if (status && e)
		*e = why;
	if (status == -EINVAL && (wanted > 1 || is_explicit))
		base_error_prefix(e, is_explicit ? "cluster.map" : "compute.tensor");
	return status;
}

/* Lock held. */
static void show(struct server_fleet *f)
{
	struct server_model_info *info = f->entry->info;
	info->plan = f->next.plan;
	info->plan_input = f->next.input;
	memcpy(info->explanation, f->next.explanation, sizeof info->explanation);
}

static void explain_link(const char *where, const struct cluster_view_link *l, bool others, FILE *out)
{
	char age[BASE_UNITS_TEXT_BYTES];
	uint64_t now = base_clock_wall_ns();
	if (!l->measured)
		fprintf(out, "links %s: not measured, %.0f us and %.2f GB/s %s\n", where, l->latency_ns / 1e3,
			l->bytes_per_s / 1e9, others ? "as of the others" : "are assumed");
	else
		fprintf(out,
			"links %s: %.1f us and %.2f GB/s, the slowest of %u that were measured (%u more are "
			"taken to be like it), the oldest %s ago\n",
			where, l->latency_ns / 1e3, l->bytes_per_s / 1e9, l->measured, l->pairs - l->measured,
			base_units_format_duration(now > l->oldest_wall_ns ? now - l->oldest_wall_ns : 0, age));
}

static void explain_links(const struct cluster_view_links *l, FILE *out)
{
	const struct cluster_view_link *rack = &l->of[FLEET_LINK_RACK], *cluster = &l->of[FLEET_LINK_CLUSTER];
	if (rack->pairs && cluster->pairs) {
		explain_link("inside racks", rack, l->all.measured > 0, out);
		explain_link("between racks", cluster, l->all.measured > 0, out);
	} else if (l->all.pairs) {
		explain_link("between nodes", &l->all, false, out);
	}
}

/* Until a group has run, what is planned is shown: a plan beside one that runs may never come to be. */
static int summarise(struct server_fleet *f, const struct fleet_device *devices, uint32_t count,
	const struct fleet_plan *p, struct cluster_plan *plan, struct base_error *e)
{
	_cleanup_free_ struct summary *s = calloc(1, sizeof *s);
	_cleanup_free_ char *text = NULL;
	size_t bytes = 0;
	struct fleet_input in;
	fill_input(f, devices, count, &in);
	FILE *out = s ? open_memstream(&text, &bytes) : NULL;
	if (!out)
		return base_error_set(e, -ENOMEM, "no memory for a plan");
	fleet_plan_explain(&in, p, out);
	explain_links(&f->links, out);
	int status = fclose(out) ? -ENOMEM : fleet_plan_sum(&in, p, &s->input, &s->plan);
	if (status)
		return base_error_set(e, status, "no memory for a plan");
	snprintf(s->explanation, sizeof s->explanation, "%s", text);
	pthread_mutex_lock(&f->entry->server->lock);
	s->number = plan->number = f->next.number + 1;
	f->next = *s;
	if (!f->ran)
		show(f);
	pthread_mutex_unlock(&f->entry->server->lock);
	return 0;
}

static void hold(
	const struct server_fleet *f, struct server_holding *h, const char *node, const struct cluster_plan_stage *s)
{
	*h = (struct server_holding){
		.weights_bytes = s->weights_bytes,
		.kv_bytes = s->kv_bytes,
		.workspace_bytes = s->workspace_bytes,
		.process_bytes = server_process_bytes(f->entry),
	};
	snprintf(h->node, sizeof h->node, "%s", node);
}

static int set_context(struct server_fleet *f, uint32_t context, struct base_error *e)
{
	struct server_entry *x = f->entry;
	uint8_t digest[sizeof x->rank.digest];
	memcpy(digest, x->rank.digest, sizeof digest);
	if (f->has_sizes)
		plan_model_finish(&f->sizes);
	server_fill_rank_config(x, context);
	memcpy(x->rank.digest, digest, sizeof digest);
	int status = plan_model_init(x->program, &x->rank, server_process_bytes(x), &f->sizes, e);
	f->has_sizes = status == 0;
	if (status)
		return status;
	pthread_mutex_lock(&x->server->lock);
	x->info->context_tokens = x->model.context_tokens = context;
	pthread_mutex_unlock(&x->server->lock);
	return 0;
}

static int plan_for(struct server_fleet *f, const struct fleet_device *devices, uint32_t count, struct remarks *remarks,
	struct fleet_device *ret_planned, struct fleet_plan *ret_plan, struct base_error *e)
{
	struct server_entry *x = f->entry;
	struct base_error later;
	int status = build(f, devices, count, remarks, ret_planned, ret_plan, e);
	/* Only the first plan may choose the context: requests count on it later. Until there is one nobody asks what
	 * another would be. */
	while (status == -ENOMEM && !f->context_fixed && !x->server->config.scheduler.context_tokens &&
		x->rank.context_tokens / 2 >= SERVER_MIN_AUTO_CONTEXT) {
		status = set_context(f, x->rank.context_tokens / 2, e);
		if (!status)
			status = build(f, devices, count, remarks, ret_planned, ret_plan, &later);
	}
	return status;
}

static uint64_t room_of(const struct fleet_device *d)
{
	return d->weights_budget_bytes && d->weights_budget_bytes < d->memory_bytes ? d->weights_budget_bytes
										    : d->memory_bytes;
}

static bool is_named(const struct server_fleet *f, const char *node)
{
	for (uint32_t i = 0; i < f->rules_count; i++) {
		for (uint32_t k = 0; k < f->rules[i].devices_count; k++) {
			if (strcmp(f->rules[i].devices[k], node) == 0)
				return true;
		}
	}
	return false;
}

/* Who goes next: with the least room of those that the last plan had not, else of all; never a node that a rule
 * names. */
static uint32_t least_of(const struct server_fleet *f, const struct fleet_device *devices, uint32_t used, uint32_t n)
{
	uint32_t least = n;
	for (uint32_t from = used; least == n; from = 0) {
		for (uint32_t i = from; i < n; i++) {
			if (!is_named(f, devices[i].name) &&
				(least == n || room_of(&devices[i]) < room_of(&devices[least])))
				least = i;
		}
		if (from == 0)
			break;
	}
	return least;
}

/* A group has so many stages at most: of more nodes those are taken that the last plan had, then those with the most
 * room. An explicit map has those that it names, which are not more. */
static uint32_t leave_out(const struct server_fleet *f, struct fleet_device *devices, uint32_t *order, uint32_t used,
	uint32_t n, struct remarks *remarks)
{
	char *names = remarks->left_out;
	size_t at = 0, room = sizeof remarks->left_out;
	bool is_explicit = f->map == FLEET_MAP_EXPLICIT;
	_Static_assert(CONFIG_MAP_NODES <= CLUSTER_MAX_STAGES);
	for (uint32_t least; n > CLUSTER_MAX_STAGES || is_explicit; n--) {
		least = least_of(f, devices, used, n);
		if (least == n)
			break;
		if (at < room && !is_explicit)
			at += (size_t)snprintf(names + at, room - at, "%s%s", at ? ", " : "", devices[least].name);
		used -= least < used;
		memmove(devices + least, devices + least + 1, (n - least - 1) * sizeof *devices);
		memmove(order + least, order + least + 1, (n - least - 1) * sizeof *order);
	}
	return n;
}

/* What was told of the plan before is not told again. */
static void tell(struct server_fleet *f, const struct remarks *r)
{
	struct server *s = f->entry->server;
	char text[sizeof r->left_out + 96];
	if (r->left_out[0] && strcmp(r->left_out, f->told.left_out) != 0) {
		snprintf(text, sizeof text, "a model uses %u nodes at most: not %s, which have the least memory",
			CLUSTER_MAX_STAGES, r->left_out);
		server_emit_event(s, "warning", "nodes_left_out", f->entry->info->name, text);
	}
	if (r->fewer.code && !f->told.fewer.code)
		server_emit_event(s, "warning", "fewer_parts", f->entry->info->name, r->fewer.message);
	f->told = *r;
}

/* What a rule names is there, or there is no plan: it is a constraint. */
static int find_named(struct server_fleet *f, const struct fleet_device *devices, uint32_t count, struct base_error *e)
{
	const char *key = f->map == FLEET_MAP_EXPLICIT ? "cluster.map" : "cluster.pins";
	for (uint32_t i = 0; i < f->rules_count; i++) {
		const struct config_rule *r = &f->rules[i];
		int status = config_map_resolve(r, f->entry->program->config.layers, devices, count, &f->entries[i], e);
		for (uint32_t k = 0; status == -ENOENT && k < r->devices_count; k++) {
			uint32_t at = 0;
			while (at < count && strcmp(devices[at].name, r->devices[k]) != 0)
				at++;
			if (at == count)
				return base_error_set(e, -EHOSTDOWN,
					"%s: %s is on node %s, which is not there, is drained or cannot do it: thawctl "
					"nodes",
					key, r->modules, r->devices[k]);
		}
		if (status) {
			base_error_prefix(e, "%s", key);
			return status;
		}
	}
	return 0;
}

/* The plan is made, and comes to be if its nodes can prepare it: it is shown, and other models count on it. */
static int settle(struct server_fleet *f, const struct cluster_view *view, const struct fleet_device *planned,
	uint32_t count, const struct fleet_plan *p, struct cluster_plan *plan, struct base_error *e)
{
	struct server_entry *x = f->entry;
	int status = summarise(f, planned, count, p, plan, e);
	if (status)
		return status;
	f->context_fixed = true;
	pthread_mutex_lock(&x->server->lock);
	memset(x->planned, 0, sizeof x->planned);
	for (uint32_t i = 0; i < plan->stages_count; i++)
		hold(f, &x->planned[i], view->nodes[plan->stages[i].node].name, &plan->stages[i]);
	pthread_mutex_unlock(&x->server->lock);
	return 0;
}

/* plan_lock held. */
static int plan_alone(
	struct server_fleet *f, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e)
{
	_cleanup_free_ struct fleet_device *devices = calloc(2 * (view->count + 1), sizeof *devices);
	struct fleet_device *planned = devices + view->count + 1;
	struct fleet_plan p = {0};
	struct remarks remarks = {.fewer = f->told.fewer};
	uint64_t others = 0;
	uint32_t order[CLUSTER_MAX_NODES], used = order_nodes(f, view, order);
	f->links = view->links;
	if (!devices)
		return base_error_set(e, -ENOMEM, "no memory for a plan");
	for (uint32_t i = 0; i < view->count; i++)
		others += fill_device(f, &view->nodes[order[i]], &devices[i]);
	fill_racks(f, view, order, devices);
	uint32_t n = leave_out(f, devices, order, used, view->count, &remarks);
	int status = find_named(f, devices, n, e);
	if (!status)
		status = plan_for(f, devices, n, &remarks, planned, &p, e);
	if (status == -ENOMEM && others)
		base_error_prefix(e, "beside the models that are loaded");
	if (!status)
		take_plan(&p, order, ret_plan);
	if (!view->what_if)
		tell(f, &remarks);
	if (!status && !view->what_if)
		status = settle(f, view, planned, n, &p, ret_plan, e);
	fleet_plan_finish(&p);
	return status;
}

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e)
{
	struct server_fleet *f = context;
	pthread_mutex_lock(&f->entry->server->plan_lock);
	int status = plan_alone(f, view, ret_plan, e);
	pthread_mutex_unlock(&f->entry->server->plan_lock);
	return status;
}

/* ---- the group ---- */

/* The number that was found for cluster.address at the start serves as long as it is this machine's: then the resolver
 * is not asked while a group connects. */
static int listen_for_group(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	struct server_fleet *f = context;
	const struct server *s = f->entry->server;
	char address[CLUSTER_RESOLVED_BYTES];
	int status = 0;
	if (f->listen_fd >= 0 && !cluster_resolve_is_here(f->self.host)) {
		close(f->listen_fd);
		f->listen_fd = -1;
	}
	if (f->listen_fd < 0) {
		const struct link_patience *p = f->patience;
		const char *host = cluster_resolve_is_here(s->address) ? s->address : s->config.cluster.address;
		status = cluster_resolve_looking(host, p->look, p->context, address, e);
		if (!status)
			status = link_rendezvous_listen(address, 0, 0, &f->listen_fd, &f->self.port, e);
		if (!status)
			snprintf(f->self.host, sizeof f->self.host, "%s", address);
	}
	if (!status)
		*ret_self = f->self;
	return status;
}

static void on_regather(void *context, const char *why)
{
	struct server_entry *x = ((struct server_fleet *)context)->entry;
	pthread_mutex_lock(&x->server->lock);
	if (x->model.engine)
		engine_regather(x->model.engine, why);
	pthread_mutex_unlock(&x->server->lock);
}

static void on_broken(void *context)
{
	(void)eventfd_write(((struct server_fleet *)context)->cancel_fd, 1);
}

static void on_refused(void *context, const struct base_error *e)
{
	struct server_entry *x = ((struct server_fleet *)context)->entry;
	server_emit_event(x->server, "warning", "link_refused", x->info->name, base_error_text(e));
}

/* While a member says nothing the engine's requests go on, and so does what has become of the plan. */
static int look(void *context, struct base_error *e)
{
	const struct server_fleet *f = context;
	struct pollfd broken = {.fd = f->cancel_fd, .events = POLLIN};
	if (poll(&broken, 1, 0) > 0)
		return base_error_set(e, -ECANCELED, "the group was called off while it connected");
	return f->patience->look ? f->patience->look(f->patience->context, e) : 0;
}

static int connect_group(struct server_fleet *f, struct link_group **ret_group, struct base_error *e)
{
	const struct cluster_group *g = &f->group;
	char address[CLUSTER_MAX_MEMBERS][CLUSTER_RESOLVED_BYTES];
	struct link_rendezvous_member list[CLUSTER_MAX_MEMBERS];
	struct link_rendezvous_group r = {.epoch = g->epoch,
		.members = g->ranks + 1,
		.list = list,
		.refused = on_refused,
		.look = look,
		.context = f};
	const struct link_patience patience = {f->patience->deadline_ns, look, f};
	int fds[LINK_MAX_MEMBERS];
	memcpy(r.secret, g->secret, sizeof r.secret);
	for (uint32_t i = 0; i <= g->ranks; i++) {
		int status = cluster_resolve_looking(g->members[i].host, look, f, address[i], e);
		if (status)
			return status;
		list[i] = (struct link_rendezvous_member){address[i], g->members[i].port};
	}
	int status = link_rendezvous_connect(f->listen_fd, &r, f->cancel_fd, patience.deadline_ns, fds, e);
	if (status)
		return status;
	size_t rows = (size_t)f->entry->rank.batch_tokens * f->entry->program->config.width * sizeof(float);
	status = link_ucx_ops.create(
		fds, g->ranks + 1, 0, g->epoch, rows > RING_BYTES ? rows : RING_BYTES, &patience, ret_group, e);
	for (uint32_t i = 0; status && i <= g->ranks; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	return status;
}

static void fill_assign(struct server_fleet *f, uint32_t rank)
{
	const struct cluster_plan_stage *p = &f->group.plan.stages[rank];
	const struct cluster_prepared *n = &f->group.prepared[rank];
	struct rank_config *r = &f->assign[rank].config;
	f->assign[rank] = (struct rank_assign){.config = f->entry->rank};
	r->slice = (struct pack_slice){p->slice.first_layer, p->slice.layers, p->slice.tp_rank, p->slice.tp_size};
	_Static_assert(sizeof r->store_directory == CLUSTER_PATH_BYTES && sizeof r->model_path == CLUSTER_PATH_BYTES);
	memcpy(r->store_directory, n->store_directory, sizeof r->store_directory);
	memcpy(r->model_path, n->model_path, sizeof r->model_path);
	r->weights_budget_bytes = p->weights_bytes;
	r->kv_budget_bytes = p->kv_bytes;
	r->workspace_budget_bytes = p->workspace_bytes;
	r->threads = n->threads;
	r->cpus_count = n->cpus_count;
	memcpy(r->cpus, n->cpus, n->cpus_count * sizeof *r->cpus);
}

/* Ranks take their memory from here on. */
static void started(struct server_fleet *f)
{
	struct server_entry *x = f->entry;
	pthread_mutex_lock(&x->server->lock);
	memset(x->running, 0, sizeof x->running);
	for (uint32_t i = 0; i < f->group.ranks; i++)
		hold(f, &x->running[i], f->group.node[i], &f->group.plan.stages[i]);
	pthread_mutex_unlock(&x->server->lock);
}

static void connected(struct server_fleet *f)
{
	struct server_entry *x = f->entry;
	pthread_mutex_lock(&x->server->lock);
	for (uint32_t i = 0; i < f->group.ranks; i++)
		memcpy(x->info->node[i], f->group.node[i], sizeof x->info->node[i]);
	if (f->next.number == f->group.plan.number) // else a newer one follows soon
		show(f);
	f->ran = true;
	pthread_mutex_unlock(&x->server->lock);
}

static void scatter(void *context)
{
	struct server_fleet *f = context;
	cluster_fleet_scatter(f->fleet);
	pthread_mutex_lock(&f->entry->server->lock);
	memset(f->entry->running, 0, sizeof f->entry->running);
	pthread_mutex_unlock(&f->entry->server->lock);
}

static int gather(
	void *context, const struct link_patience *patience, struct engine_gathered *ret_gathered, struct base_error *e)
{
	struct server_fleet *f = context;
	f->patience = patience;
	eventfd_t count;
	(void)eventfd_read(f->cancel_fd, &count);
	int status = cluster_fleet_gather(f->fleet, &f->group, e);
	if (status)
		return status;
	const struct cluster_plan *p = &f->group.plan;
	started(f);
	status = connect_group(f, &ret_gathered->group, e);
	if (status) {
		scatter(f);
		base_error_prefix(e, "epoch %llu", (unsigned long long)f->group.epoch);
		return status == -EAGAIN || status == -EHOSTDOWN ? -ECONNRESET : status;
	}
	for (uint32_t i = 0; i < f->group.ranks; i++)
		fill_assign(f, i);
	connected(f);
	ret_gathered->epoch = f->group.epoch;
	ret_gathered->shape = f->group.shape;
	ret_gathered->passes = p->passes;
	ret_gathered->assign = f->assign;
	ret_gathered->bound_pass_ns_disk = p->pass_ns_disk;
	ret_gathered->bound_pass_ns_memory = p->pass_ns_memory;
	ret_gathered->bound_token_ns_compute = p->token_ns_compute;
	return 0;
}

struct engine_starter server_fleet_starter(struct server_fleet *f)
{
	return (struct engine_starter){.gather = gather, .scatter = scatter, .context = f};
}

void server_fleet_mend(struct server_fleet *f)
{
	cluster_fleet_mend(f->fleet);
}

/* ---- spare layers ---- */

void server_fleet_forget(struct server_entry *x)
{
	uint8_t digest[sizeof x->spares];
	pthread_mutex_lock(&x->server->lock);
	bool has = x->has_spares;
	memcpy(digest, x->spares, sizeof digest);
	x->has_spares = false;
	pthread_mutex_unlock(&x->server->lock);
	if (has)
		cluster_coordinator_forget(x->server->coordinator, x->info->name, digest);
}

void server_fleet_replace(struct server_entry *x, const struct server_entry *old)
{
	x->has_spares = old->has_spares;
	memcpy(x->spares, old->spares, sizeof x->spares);
}

void server_fleet_keep(struct server_entry *x)
{
	if (memcmp(x->spares, x->rank.digest, sizeof x->spares) != 0)
		server_fleet_forget(x);
	pthread_mutex_lock(&x->server->lock);
	memcpy(x->spares, x->rank.digest, sizeof x->spares);
	x->has_spares = true;
	pthread_mutex_unlock(&x->server->lock);
}

/* ---- life ---- */

void server_fleet_destroy(struct server_fleet *f)
{
	if (!f)
		return;
	cluster_fleet_destroy(f->fleet);
	pthread_mutex_lock(&f->entry->server->lock);
	memset(f->entry->planned, 0, sizeof f->entry->planned);
	memset(f->entry->running, 0, sizeof f->entry->running);
	pthread_mutex_unlock(&f->entry->server->lock);
	if (f->has_sizes)
		plan_model_finish(&f->sizes);
	if (f->listen_fd >= 0)
		close(f->listen_fd);
	if (f->cancel_fd >= 0)
		close(f->cancel_fd);
	free(f->rules);
	free(f->entries);
	free(f);
}

/* name "": as configured. */
static int find_map(const struct server *s, const char *name, enum fleet_map *ret_map, struct base_error *e)
{
	enum fleet_map map;
	int status = fleet_map_find(name[0] ? name : s->config.cluster.device_map, &map);
	if (status)
		return base_error_set(
			e, status, "device_map: \"%.40s\" is none of auto, balanced, sequential, explicit", name);
	if (map == FLEET_MAP_EXPLICIT && !s->config.cluster.map[0])
		return base_error_set(e, -EINVAL, "device_map: explicit: cluster.map is not set");
	*ret_map = map;
	return 0;
}

int server_check_map(const struct server *s, const char *device_map, struct base_error *e)
{
	enum fleet_map unused;
	if (device_map[0] && !s->coordinator)
		return base_error_set(
			e, -EINVAL, "device_map: is the coordinator's of a cluster, which this daemon is not");
	return s->coordinator ? find_map(s, device_map, &unused, e) : 0;
}

/* device_map "": as configured. What is wrong with a map of this model is said before any node is waited for. */
static int choose_map(struct server_fleet *f, const char *device_map, struct base_error *e)
{
	const struct config *c = &f->entry->server->config;
	const char *text = "", *key = "cluster.pins";
	int status = find_map(f->entry->server, device_map, &f->map, e);
	if (status)
		return status;
	if (f->map == FLEET_MAP_EXPLICIT) {
		key = "cluster.map";
		text = c->cluster.map;
		uint32_t parts;
		status = config_map_check(text, key, f->entry->program->config.layers, &parts, e);
		if (status)
			return status;
	} else if (f->map == FLEET_MAP_AUTO) {
		text = c->cluster.pins;
	}
	f->rules = calloc(FLEET_ENTRIES, sizeof *f->rules);
	f->entries = calloc(FLEET_ENTRIES, sizeof *f->entries);
	if (!f->rules || !f->entries)
		return base_error_set(e, -ENOMEM, "no memory");
	status = config_sizes_parse(c->cluster.reserve, "cluster.reserve", f->reserve, &f->reserve_count, e);
	return status ? status : config_map_parse(text, key, f->rules, &f->rules_count, e);
}

int server_fleet_create(
	struct server_entry *x, const char *device_map, struct server_fleet **ret_fleet, struct base_error *e)
{
	struct server_fleet *f = calloc(1, sizeof *f);
	if (!f)
		return base_error_set(e, -ENOMEM, "no memory");
	f->entry = x;
	f->listen_fd = -1;
	f->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct cluster_fleet_config c = {
		.model = x->info->name,
		.path = x->config.path,
		.header_hash = format_gguf_header_hash(x->gguf),
		.header_bytes = format_gguf_header_bytes(x->gguf),
		.file_bytes = format_gguf_file_bytes(x->gguf),
		.file_fd = format_gguf_fd(x->gguf),
		.plan = plan,
		.listen = listen_for_group,
		.regather = on_regather,
		.broken = on_broken,
		.context = f,
	};
	memcpy(c.digest, x->rank.digest, sizeof c.digest);
	int status = f->cancel_fd < 0 ? base_error_set(e, -errno, "no eventfd: %s", strerrordesc_np(errno))
				      : choose_map(f, device_map, e);
	if (!status)
		status = set_context(f, x->rank.context_tokens, e);
	if (!status)
		status = cluster_fleet_create(x->server->coordinator, &c, &f->fleet, e);
	if (status)
		server_fleet_destroy(f);
	else
		*ret_fleet = f;
	return status;
}

int server_fleet_wait(struct server_fleet *f, bool (*cancelled)(struct server_entry *x), struct base_error *e)
{
	struct server_entry *x = f->entry;
	char told[BASE_ERROR_BYTES] = "";
	for (;;) {
		struct base_error why = {0};
		int status = cluster_fleet_try(f->fleet, &why);
		if (status != -EAGAIN && status != -EHOSTDOWN) {
			if (status && e)
				*e = why;
			return status;
		}
		if (cancelled(x))
			return -ECANCELED;
		if (strcmp(told, why.message) != 0)
			server_emit_event(x->server, "notice", "waits_for_nodes", x->info->name, base_error_text(&why));
		memcpy(told, why.message, sizeof told);
		nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
	}
}

int server_fleet_plan(
	struct server_entry *x, const char *device_map, uint64_t weights_bytes, uint64_t kv_bytes, struct base_error *e)
{
	struct server_fleet *f;
	int status = server_fleet_create(x, device_map, &f, e);
	if (status)
		return status;
	f->weights_bytes = weights_bytes;
	f->kv_bytes = kv_bytes;
	status = cluster_fleet_try(f->fleet, e);
	server_fleet_destroy(f);
	return status == -EAGAIN ? -EHOSTDOWN : status;
}
