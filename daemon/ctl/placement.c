// SPDX-License-Identifier: Apache-2.0
// placement, plan, top.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "topology/draw.h"

#define TOP_NS BASE_NS_PER_SECOND
#define TOP_MODELS 16u
#define TOP_RANKS 16u

static void add_shard(struct ctl_table *t, const Thaw__Admin__V1__Placement *p, const Thaw__Admin__V1__Shard *s)
{
	char size[CTL_SIZE_BYTES];
	const uint64_t sizes[] = {s->hot_bytes, s->cold_bytes, s->slot_bytes, s->kv_bytes, s->workspace_bytes};
	uint64_t pass = s->hot_bytes + s->cold_bytes;
	ctl_table_cell(t, "%s", p->model);
	ctl_table_cell(t, "%" PRIu32, s->stage);
	ctl_table_cell(t, "%" PRIu32, s->tp_rank);
	ctl_table_cell(t, "%" PRIu32 "-%" PRIu32, s->first_layer, s->last_layer);
	ctl_table_cell(t, "%s", s->node);
	ctl_table_cell(t, "%s", s->device);
	for (size_t i = 0; i < base_array_size(sizes); i++)
		ctl_table_cell(t, "%s", ctl_size(sizes[i], size));
	ctl_table_cell(t, "%.0f %%", pass ? 100.0 * (double)s->hot_bytes / (double)pass : 100.0);
	ctl_table_cell(t, "%" PRIu32, s->kv_blocks);
	ctl_table_cell(t, "%" PRIu32 "/%" PRIu32, s->hot_extents, s->extents);
	ctl_table_cell(t, "%s%s", s->engine[0] ? s->engine : "-", s->engine[0] && s->direct_io ? "+direct" : "");
	ctl_table_cell(t, "%s", s->pages[0] ? s->pages : "-");
	ctl_table_cell(t, "%s", s->isa[0] ? s->isa : "-");
}

static bool several_nodes(const Thaw__Admin__V1__GetPlacementReply *reply)
{
	const char *first = NULL;
	for (size_t i = 0; i < reply->n_placements; i++) {
		for (size_t s = 0; s < reply->placements[i]->n_shards; s++) {
			const char *node = reply->placements[i]->shards[s]->node;
			if (first && strcmp(first, node) != 0)
				return true;
			first = node;
		}
	}
	return false;
}

static void print_prediction(struct ctl *c, const Thaw__Admin__V1__Placement *p)
{
	const Thaw__Admin__V1__Plan *plan = p->plan;
	if (!plan || plan->tokens_per_second_one <= 0)
		return;
	fprintf(c->out, "%s: %.1f tokens/s for one stream (%s), %.1f for %" PRIu32 " (%s)", p->model,
		plan->tokens_per_second_one, plan->binding_one, plan->tokens_per_second_full,
		p->input ? p->input->sequences : 0, plan->binding_full);
	fprintf(c->out, "%s%s\n", plan->lift[0] ? "; " : "", plan->lift);
}

static void print_placements(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__GetPlacementReply *reply = message;
	Thaw__Admin__V1__Placement *const *placements = reply->placements;
	size_t count = reply->n_placements;
	struct ctl_column columns[] = {{"MODEL", false, false}, {"STAGE", true, false}, {"TP", true, false},
		{"LAYERS", false, false}, {"NODE", false, !several_nodes(reply)}, {"DEV", false, false},
		{"HOT", true, false}, {"COLD", true, false}, {"STREAM", true, false}, {"KV", true, false},
		{"WORKSPACE", true, false}, {"HOT%", true, false}, {"KVBLOCKS", true, true}, {"EXTENTS", true, true},
		{"ENGINE", false, false}, {"PAGES", false, true}, {"ISA", false, true}};
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < count; i++)
		for (size_t s = 0; s < placements[i]->n_shards; s++)
			add_shard(&t, placements[i], placements[i]->shards[s]);
	ctl_table_print(&t, c);
	for (size_t i = 0; i < count; i++) {
		print_prediction(c, placements[i]);
		if (c->options.explain)
			fprintf(c->out, "%s", placements[i]->explanation);
	}
}

// One model: bars of several would not be comparable.
static int draw_placement(struct ctl *c, const Thaw__Admin__V1__GetPlacementReply *reply)
{
	if (reply->n_placements != 1)
		return ctl_fail(
			c, CTL_USAGE, "-o svg draws one model, and %zu are loaded: name it", reply->n_placements);
	const Thaw__Admin__V1__Placement *p = reply->placements[0];
	_cleanup_free_ struct topology_draw_shard *shards = calloc(p->n_shards + 1, sizeof *shards);
	char note[160] = "";
	if (!shards)
		return ctl_fail(c, CTL_ERROR, "no memory");
	for (size_t i = 0; i < p->n_shards; i++) {
		const Thaw__Admin__V1__Shard *s = p->shards[i];
		uint32_t tp = 0;
		for (size_t k = 0; k < p->n_shards; k++)
			tp += p->shards[k]->stage == s->stage;
		shards[i] = (struct topology_draw_shard){.host = s->node,
			.device = s->device,
			.stage = s->stage,
			.tp_rank = s->tp_rank,
			.tp = tp,
			.first_layer = s->first_layer,
			.last_layer = s->last_layer,
			.hot_bytes = s->hot_bytes,
			.ring_bytes = s->slot_bytes,
			.kv_bytes = s->kv_bytes,
			.workspace_bytes = s->workspace_bytes,
			.cold_bytes = s->cold_bytes};
	}
	if (p->plan && p->plan->tokens_per_second_one > 0)
		snprintf(note, sizeof note, "predicted: %.1f tokens/s with one stream (%s)",
			p->plan->tokens_per_second_one, p->plan->binding_one);
	topology_draw_placement(p->model, note, shards, (uint32_t)p->n_shards, c->out);
	return CTL_OK;
}

int ctl_verb_placement(struct ctl *c)
{
	Thaw__Admin__V1__GetPlacementRequest request = THAW__ADMIN__V1__GET_PLACEMENT_REQUEST__INIT;
	if (c->args_count)
		request.model = (char *)c->args[0];
	if (c->output == CTL_OUTPUT_SVG) {
		Thaw__Admin__V1__GetPlacementReply *reply = NULL;
		int r = ctl_call(
			c, "Admin/GetPlacement", &request, &thaw__admin__v1__get_placement_reply__descriptor, &reply);
		r = r == CTL_OK ? draw_placement(c, reply) : r;
		ctl_free(reply);
		return r;
	}
	return ctl_call_show(
		c, "Admin/GetPlacement", &request, &thaw__admin__v1__get_placement_reply__descriptor, print_placements);
}

static void print_explanations(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__GetPlacementReply *reply = message;
	for (size_t i = 0; i < reply->n_placements; i++) {
		print_prediction(c, reply->placements[i]);
		fprintf(c->out, "%s", reply->placements[i]->explanation);
	}
}

int ctl_verb_explain(struct ctl *c)
{
	Thaw__Admin__V1__GetPlacementRequest request = THAW__ADMIN__V1__GET_PLACEMENT_REQUEST__INIT;
	if (c->args_count)
		request.model = (char *)c->args[0];
	return ctl_call_show(c, "Admin/GetPlacement", &request, &thaw__admin__v1__get_placement_reply__descriptor,
		print_explanations);
}

static void print_plan(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__Placement *p = ((const Thaw__Admin__V1__PlanPlacementReply *)message)->placement;
	static const struct ctl_column columns[] = {{"MODEL", false, false}, {"LAYERS", true, false},
		{"HOT", true, false}, {"COLD", true, false}, {"WEIGHTS", true, false}, {"KV", true, false},
		{"WORKSPACE", true, false}, {"MEMORY", true, false}, {"KVBLOCKS", true, true},
		{"VERDICT", false, false}};
	const Thaw__Admin__V1__Plan *plan = p ? p->plan : NULL;
	if (!plan || !p->input)
		return;
	struct ctl_table t;
	char size[CTL_SIZE_BYTES];
	const uint64_t sizes[] = {plan->hot_bytes, plan->cold_bytes, plan->weights_bytes, plan->kv_bytes,
		plan->workspace_bytes, p->input->memory_bytes};
	ctl_table_init(&t, columns, base_array_size(columns));
	ctl_table_cell(&t, "%s", p->model);
	ctl_table_cell(&t, "%" PRIu32, p->layers);
	for (size_t i = 0; i < base_array_size(sizes); i++)
		ctl_table_cell(&t, "%s", ctl_size(sizes[i], size));
	ctl_table_cell(&t, "%" PRIu32, plan->kv_blocks);
	ctl_table_cell(&t, "%s", plan->cold_bytes ? "fits, streamed" : "fits, all hot");
	ctl_table_print(&t, c);
	print_prediction(c, p);
	if (c->options.explain)
		fprintf(c->out, "%s", p->explanation);
}

int ctl_verb_plan(struct ctl *c)
{
	static const char *const for_files[] = {"max-memory", "pin", "one-stream", "simulate", "context", "streams"};
	if (c->options.fleet)
		return ctl_plan_offline(c);
	for (size_t i = 0; i < base_array_size(for_files); i++) {
		if (ctl_given(c, for_files[i]))
			return ctl_fail(c, CTL_USAGE, "--%s is for plan --fleet FILE", for_files[i]);
	}
	if (c->output == CTL_OUTPUT_SVG)
		return ctl_fail(
			c, CTL_USAGE, "-o svg is for plan --fleet FILE; thawctl placement -o svg draws what is loaded");
	_cleanup_free_ char *path = NULL;
	int r = ctl_daemon_path(c, c->args[0], &path);
	if (r != CTL_OK)
		return r;
	Thaw__Admin__V1__PlanPlacementRequest request = THAW__ADMIN__V1__PLAN_PLACEMENT_REQUEST__INIT;
	request.path = path;
	request.weights_bytes = c->options.weights_bytes;
	request.kv_bytes = c->options.kv_bytes;
	if (c->options.device_map)
		request.device_map = (char *)c->options.device_map;
	return ctl_call_show(
		c, "Admin/PlanPlacement", &request, &thaw__admin__v1__plan_placement_reply__descriptor, print_plan);
}

/* top: rates are of the time between two looks, or since the start in the first one. */

struct sums { // of a rank, or of all of a model
	uint64_t wall_ns, read_bytes, stall_ns, compute_ns, pass_ns;
};

struct before { // of a model, as it was the last time
	struct sums all, ranks[TOP_RANKS];
};

static void add_rank(struct sums *s, const Thaw__Admin__V1__RankLoad *r)
{
	s->read_bytes += r->read_bytes;
	s->stall_ns += r->stall_ns;
	s->compute_ns += r->compute_ns;
	s->pass_ns += r->pass_ns;
}

/* What came since `before`, which becomes now; wall_ns of it is the time between. */
static struct sums take_difference(struct sums now, struct sums *before)
{
	struct sums d = now;
	bool restarted = now.pass_ns < before->pass_ns || now.compute_ns < before->compute_ns ||
			 now.stall_ns < before->stall_ns || now.read_bytes < before->read_bytes;
	d.wall_ns = now.pass_ns;
	if (before->wall_ns && !restarted) {
		d.read_bytes -= before->read_bytes;
		d.stall_ns -= before->stall_ns;
		d.compute_ns -= before->compute_ns;
		d.pass_ns -= before->pass_ns;
		d.wall_ns = now.wall_ns - before->wall_ns;
	}
	*before = now;
	return d;
}

static double share(uint64_t part, uint64_t whole)
{
	return whole ? 100.0 * (double)part / (double)whole : 0;
}

// BUBBLE%, STALL%, NVMe
static void add_rates(struct ctl_table *t, const struct sums *d)
{
	char text[CTL_SIZE_BYTES];
	ctl_table_cell(t, "%.0f", share(d->pass_ns > d->compute_ns ? d->pass_ns - d->compute_ns : 0, d->pass_ns));
	ctl_table_cell(t, "%.0f", share(d->stall_ns, d->pass_ns));
	ctl_table_cell(t, "%s", ctl_rate(d->wall_ns ? (double)d->read_bytes * 1e9 / (double)d->wall_ns : 0, text));
}

static void add_load(struct ctl_table *t, const Thaw__Admin__V1__ModelLoad *m, uint64_t wall_ns, struct sums *before)
{
	static const char *const states[] = {"loading", "ready", "recovering", "draining", "failed", "stopped"};
	char text[CTL_SIZE_BYTES];
	struct sums now = {.wall_ns = wall_ns};
	for (size_t i = 0; i < m->n_ranks; i++)
		add_rank(&now, m->ranks[i]);
	struct sums d = take_difference(now, before);
	ctl_table_cell(t, "%s", m->model);
	ctl_table_cell(t, "%" PRIu32, m->running);
	ctl_table_cell(t, "%" PRIu32, m->waiting);
	ctl_table_cell(t, "%s", ctl_seconds(m->time_to_first_token ? m->time_to_first_token->p95_seconds : 0, text));
	ctl_table_cell(t, "%s", ctl_seconds(m->inter_token ? m->inter_token->p95_seconds : 0, text));
	ctl_table_cell(t, "%.1f", m->tokens_per_second);
	ctl_table_cell(t, "%.0f", 100 * m->kv_usage_ratio);
	add_rates(t, &d);
	ctl_table_cell(t, "%.2f", m->achieved_ratio);
	ctl_table_cell(t, "%s", m->binding[0] ? m->binding : "-");
	ctl_table_cell(t, "%" PRIu64, m->generated_tokens_total);
	ctl_table_cell(t, "%" PRIu64, m->restarts);
	ctl_table_cell(t, "%s", m->state < base_array_size(states) ? states[m->state] : "?");
}

// Of one rank the model's row has said all.
static void print_ranks(struct ctl *c, const Thaw__Admin__V1__GetLoadReply *reply, struct before *before)
{
	static const struct ctl_column columns[] = {{"NODE", false, false}, {"MODEL", false, false},
		{"STAGE", false, false}, {"BUSY%", true, false}, {"BUBBLE%", true, false}, {"STALL%", true, false},
		{"NVMe", true, false}, {"PASSES", true, true}};
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < reply->n_models && i < TOP_MODELS; i++) {
		const Thaw__Admin__V1__ModelLoad *m = reply->models[i];
		for (size_t k = 0; m->n_ranks > 1 && k < m->n_ranks && k < TOP_RANKS; k++) {
			const Thaw__Admin__V1__RankLoad *r = m->ranks[k];
			struct sums now = {.wall_ns = reply->wall_ns};
			add_rank(&now, r);
			struct sums d = take_difference(now, &before[i].ranks[k]);
			ctl_table_cell(&t, "%s", r->node[0] ? r->node : "-");
			ctl_table_cell(&t, "%s", m->model);
			ctl_table_cell(&t, "%" PRIu32 ".%" PRIu32, r->stage, r->tp_rank);
			ctl_table_cell(&t, "%.0f", share(d.compute_ns, d.wall_ns));
			add_rates(&t, &d);
			ctl_table_cell(&t, "%" PRIu64, r->passes);
		}
	}
	if (!t.cells_count)
		return;
	fprintf(c->out, "\n");
	ctl_table_print(&t, c);
}

static int top_once(struct ctl *c, struct before *before)
{
	static const struct ctl_column columns[] = {{"MODEL", false, false}, {"RUN", true, false},
		{"WAIT", true, false}, {"TTFTp95", true, false}, {"ITLp95", true, false}, {"TOK/S", true, false},
		{"KV%", true, false}, {"BUBBLE%", true, false}, {"STALL%", true, false}, {"NVMe", true, false},
		{"OF-BOUND", true, false}, {"BINDS", false, false}, {"TOKENS", true, true}, {"RESTARTS", true, true},
		{"STATE", false, false}};
	Thaw__Admin__V1__GetLoadRequest request = THAW__ADMIN__V1__GET_LOAD_REQUEST__INIT;
	Thaw__Admin__V1__GetLoadReply *reply = NULL;
	int r = ctl_call(c, "Admin/GetLoad", &request, &thaw__admin__v1__get_load_reply__descriptor, &reply);
	if (r != CTL_OK)
		return r;
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(reply));
		ctl_json_line(c, o);
	} else {
		struct ctl_table t;
		if (c->out_terminal && !c->options.once)
			fprintf(c->out, "\033[H\033[2J");
		ctl_table_init(&t, columns, base_array_size(columns));
		for (size_t i = 0; i < reply->n_models && i < TOP_MODELS; i++)
			add_load(&t, reply->models[i], reply->wall_ns, &before[i].all);
		ctl_table_print(&t, c);
		print_ranks(c, reply, before);
		fflush(c->out);
	}
	ctl_free(reply);
	return ferror(c->out) ? CTL_ERROR : CTL_OK;
}

int ctl_verb_top(struct ctl *c)
{
	struct before before[TOP_MODELS] = {0};
	uint64_t pause_ns = c->options.watch_ns ? c->options.watch_ns : TOP_NS;
	bool once = c->options.once || (!c->out_terminal && !c->options.watch_ns);
	struct timespec pause = {(time_t)(pause_ns / BASE_NS_PER_SECOND), (long)(pause_ns % BASE_NS_PER_SECOND)};
	for (;;) {
		int r = top_once(c, before);
		if (r != CTL_OK || once)
			return r;
		nanosleep(&pause, NULL);
	}
}
