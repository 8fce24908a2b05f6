// SPDX-License-Identifier: Apache-2.0
/* A model over the nodes of a cluster: what the planner says goes to the coordinator's fleet, and what the fleet has gathered
 * becomes a group of the engine. plan() may be called by the engine's thread and by the coordinator's, one at a time; the rest is the
 * engine's, but for create, wait and destroy, which are the loader's. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/resolve.h"
#include "daemon/plan_model.h"
#include "daemon/server_internal.h"
#include "shard/link/rendezvous.h"
#include "topology/fleet/fleet.h"

#define CONNECT_NS (20 * BASE_NS_PER_SECOND)
#define LOOK_NS 50000000
#define RING_BYTES (256u << 10)
/* Links between nodes are not measured yet: what a plain network has. They weigh little against drives and memory. */
#define LINK_LATENCY_NS 50e3
#define LINK_BYTES_PER_S 1e9

struct server_fleet {
	struct server_entry *entry;
	struct cluster_fleet *fleet;
	struct plan_model sizes;
	bool has_sizes, context_fixed;
	int listen_fd, cancel_fd;
	struct cluster_member self;
	struct cluster_group group; // scratch of gather
	struct rank_assign assign[ENGINE_MAX_RANKS];
};

/* ---- plan ---- */

static uint64_t usable_memory(const struct cluster_view_node *n)
{
	const struct cluster_budgets *b = &n->facts->budgets;
	if (b->weights_bytes && b->kv_bytes)
		return n->facts->memory_limit_bytes;
	return n->memory_available_bytes - n->memory_available_bytes / 16;
}

/* Nodes of the last plan first, in its order: where the order is free, layers stay where their files are. */
static uint32_t order_nodes(const struct cluster_view *view, uint32_t order[static CLUSTER_MAX_NODES])
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
	for (uint32_t k = 0; k < view->count; k++) {
		if (!taken[k])
			order[n++] = k;
	}
	return n;
}

static void fill_device(const struct cluster_view_node *n, struct fleet_device *d)
{
	const struct cluster_budgets *b = &n->facts->budgets;
	*d = (struct fleet_device){
		.memory_bytes = usable_memory(n),
		.weights_budget_bytes = b->weights_bytes,
		.kv_budget_bytes = b->kv_bytes,
		.workspace_budget_bytes = b->workspace_bytes,
		.bandwidths = n->facts->bandwidths,
	};
	snprintf(d->name, sizeof d->name, "%s", n->name);
	snprintf(d->host, sizeof d->host, "%s", n->name);
}

static void take_plan(const struct fleet_plan *p, const uint32_t *order, struct cluster_plan *ret)
{
	ret->stages_count = p->stages_count;
	ret->kv_blocks = p->kv_blocks;
	ret->tokens_per_s_one = p->one.tokens_per_s;
	ret->tokens_per_s_full = p->full.tokens_per_s;
	for (uint32_t i = 0; i < p->stages_count; i++) {
		const struct fleet_rank *r = &p->ranks[p->stages[i].first_rank];
		const struct topology_plan *s = &r->share;
		ret->stages[i] = (struct cluster_plan_stage){
			.node = order[r->device],
			.slice = {p->stages[i].first_layer, p->stages[i].layers, 0, 1},
			.weights_bytes = s->weights_bytes,
			.kv_bytes = p->kv_blocks * r->kv_block_bytes,
			.workspace_bytes = s->workspace_bytes,
			.hot_bytes = s->hot_bytes,
			.cold_bytes = s->cold_bytes,
		};
		/* Drives work at the same time; memory and compute of one stream do so one after the other. */
		ret->pass_ns_disk = s->pass_ns_disk > ret->pass_ns_disk ? s->pass_ns_disk : ret->pass_ns_disk;
		ret->pass_ns_memory += s->pass_ns_memory;
		ret->token_ns_compute += s->token_ns_compute;
	}
}

/* What status, placement and the next plans of other models see. */
static void publish(struct server_fleet *f, const struct cluster_plan *p)
{
	struct server_entry *x = f->entry;
	struct topology_plan t = {.kv_blocks = p->kv_blocks,
		.pass_ns_disk = p->pass_ns_disk,
		.pass_ns_memory = p->pass_ns_memory,
		.token_ns_compute = p->token_ns_compute,
		.tokens_per_s_one = p->tokens_per_s_one,
		.tokens_per_s_full = p->tokens_per_s_full};
	for (uint32_t i = 0; i < p->stages_count; i++) {
		t.weights_bytes += p->stages[i].weights_bytes;
		t.kv_bytes += p->stages[i].kv_bytes;
		t.workspace_bytes += p->stages[i].workspace_bytes;
		t.hot_bytes += p->stages[i].hot_bytes;
		t.cold_bytes += p->stages[i].cold_bytes;
	}
	pthread_mutex_lock(&x->server->lock);
	x->info->plan = t;
	x->info->plan_input.pass_bytes = t.hot_bytes + t.cold_bytes;
	x->info->plan_input.context_tokens = x->rank.context_tokens;
	x->info->plan_input.sequences = x->rank.sequences;
	pthread_mutex_unlock(&x->server->lock);
}

static int build(struct server_fleet *f, const struct fleet_device *devices, uint32_t count,
	struct fleet_plan *ret_plan, struct base_error *e)
{
	struct server_entry *x = f->entry;
	struct fleet_input in = {
		.model = &f->sizes.sizes,
		.devices = devices,
		.devices_count = count,
		.links[FLEET_LINK_CLUSTER] = {LINK_LATENCY_NS, LINK_BYTES_PER_S},
		.objective = FLEET_OBJECTIVE_FULL,
		.sequences = x->rank.sequences,
		.tp_most = 1,
	};
	int status = fleet_map_find(x->server->config.cluster.device_map, &in.map);
	return status ? base_error_set(
				e, status, "cluster.device_map: %s is none", x->server->config.cluster.device_map)
		      : fleet_plan_build(&in, ret_plan, e);
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

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e)
{
	struct server_fleet *f = context;
	struct server_entry *x = f->entry;
	_cleanup_free_ struct fleet_device *devices = calloc(view->count + 1, sizeof *devices);
	struct fleet_plan p = {0};
	struct base_error first = {0};
	uint32_t order[CLUSTER_MAX_NODES], n = order_nodes(view, order);
	if (!devices)
		return base_error_set(e, -ENOMEM, "no memory for a plan");
	n = n > CLUSTER_MAX_STAGES ? CLUSTER_MAX_STAGES : n;
	for (uint32_t i = 0; i < n; i++)
		fill_device(&view->nodes[order[i]], &devices[i]);
	int status = build(f, devices, n, &p, &first);
	/* Only the first plan may choose the context: requests count on it later. */
	while (status == -ENOMEM && !f->context_fixed && !x->server->config.scheduler.context_tokens &&
		x->rank.context_tokens / 2 >= SERVER_MIN_AUTO_CONTEXT) {
		status = set_context(f, x->rank.context_tokens / 2, e);
		if (!status)
			status = build(f, devices, n, &p, e);
	}
	if (status) {
		if (e && first.message[0])
			*e = first;
		fleet_plan_finish(&p);
		return status;
	}
	f->context_fixed = true;
	take_plan(&p, order, ret_plan);
	fleet_plan_finish(&p);
	publish(f, ret_plan);
	return 0;
}

/* ---- the group ---- */

static int listen_for_group(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	struct server_fleet *f = context;
	const char *host = f->entry->server->config.cluster.address;
	char address[CLUSTER_RESOLVED_BYTES];
	int status = 0;
	if (f->listen_fd < 0) {
		status = cluster_resolve(host, address, e);
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

static int connect_group(struct server_fleet *f, struct link_group **ret_group, struct base_error *e)
{
	const struct cluster_group *g = &f->group;
	char address[CLUSTER_MAX_MEMBERS][CLUSTER_RESOLVED_BYTES];
	struct link_rendezvous_member list[CLUSTER_MAX_MEMBERS];
	struct link_rendezvous_group r = {
		.epoch = g->epoch, .members = g->stages + 1, .list = list, .refused = on_refused, .context = f};
	int fds[LINK_MAX_MEMBERS];
	uint64_t deadline = base_clock_now_ns() + CONNECT_NS;
	memcpy(r.secret, g->secret, sizeof r.secret);
	for (uint32_t i = 0; i <= g->stages; i++) {
		int status = cluster_resolve(g->members[i].host, address[i], e);
		if (status)
			return status;
		list[i] = (struct link_rendezvous_member){address[i], g->members[i].port};
	}
	int status = link_rendezvous_connect(f->listen_fd, &r, f->cancel_fd, deadline, fds, e);
	if (status)
		return status;
	size_t rows = (size_t)f->entry->rank.batch_tokens * f->entry->program->config.width * sizeof(float);
	status = link_ucx_ops.create(
		fds, g->stages + 1, 0, g->epoch, rows > RING_BYTES ? rows : RING_BYTES, deadline, ret_group, e);
	for (uint32_t i = 0; status && i <= g->stages; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	return status;
}

static void fill_assign(struct server_fleet *f, uint32_t stage)
{
	const struct cluster_plan_stage *p = &f->group.plan.stages[stage];
	const struct cluster_prepared *n = &f->group.prepared[stage];
	struct rank_config *r = &f->assign[stage].config;
	f->assign[stage] = (struct rank_assign){.config = f->entry->rank};
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

static int gather(void *context, struct engine_gathered *ret_gathered, struct base_error *e)
{
	struct server_fleet *f = context;
	eventfd_t count;
	(void)eventfd_read(f->cancel_fd, &count);
	int status = cluster_fleet_gather(f->fleet, &f->group, e);
	if (status)
		return status;
	const struct cluster_plan *p = &f->group.plan;
	status = connect_group(f, &ret_gathered->group, e);
	if (status) {
		cluster_fleet_scatter(f->fleet);
		base_error_prefix(e, "epoch %llu", (unsigned long long)f->group.epoch);
		return status == -EAGAIN || status == -EHOSTDOWN ? -ECONNRESET : status;
	}
	for (uint32_t i = 0; i < f->group.stages; i++)
		fill_assign(f, i);
	pthread_mutex_lock(&f->entry->server->lock);
	for (uint32_t i = 0; i < f->group.stages; i++)
		memcpy(f->entry->info->node[i], f->group.node[i], sizeof f->entry->info->node[i]);
	pthread_mutex_unlock(&f->entry->server->lock);
	ret_gathered->epoch = f->group.epoch;
	ret_gathered->stages = f->group.stages;
	ret_gathered->parts = 1;
	ret_gathered->assign = f->assign;
	ret_gathered->bound_pass_ns_disk = p->pass_ns_disk;
	ret_gathered->bound_pass_ns_memory = p->pass_ns_memory;
	ret_gathered->bound_token_ns_compute = p->token_ns_compute;
	publish(f, p);
	return 0;
}

static void scatter(void *context)
{
	cluster_fleet_scatter(((struct server_fleet *)context)->fleet);
}

struct engine_starter server_fleet_starter(struct server_fleet *f)
{
	return (struct engine_starter){.gather = gather, .scatter = scatter, .context = f};
}

/* ---- life ---- */

void server_fleet_destroy(struct server_fleet *f)
{
	if (!f)
		return;
	cluster_fleet_destroy(f->fleet);
	if (f->has_sizes)
		plan_model_finish(&f->sizes);
	if (f->listen_fd >= 0)
		close(f->listen_fd);
	if (f->cancel_fd >= 0)
		close(f->cancel_fd);
	free(f);
}

int server_fleet_create(struct server_entry *x, struct server_fleet **ret_fleet, struct base_error *e)
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
		.plan = plan,
		.listen = listen_for_group,
		.regather = on_regather,
		.broken = on_broken,
		.context = f,
	};
	memcpy(c.digest, x->rank.digest, sizeof c.digest);
	int status = f->cancel_fd < 0 ? base_error_set(e, -errno, "no eventfd: %s", strerrordesc_np(errno))
				      : set_context(f, x->rank.context_tokens, e);
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
