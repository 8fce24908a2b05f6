// SPDX-License-Identifier: Apache-2.0
// plan --fleet FILE: the planner over a model file and a description of machines, with no daemon anywhere.
#include <errno.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/trace.h"
#include "base/units.h"
#include "daemon/config.h"
#include "daemon/config_fleet.h"
#include "daemon/ctl/ctl.h"
#include "daemon/plan_model.h"
#include "topology/draw.h"
#include "topology/fleet/simulate.h"
#include "topology/scan.h"

#define LOGITS_ROWS 64u // of a pass at most, as the daemon takes them
#define PROCESS_BYTES ((8ull << 20) + BASE_TRACE_RING_BYTES) // of a rank, beside its budgets

struct offline {
	struct ctl *c;
	struct config_fleet fleet;
	struct format_gguf *gguf;
	struct program *program;
	struct plan_model model;
	struct fleet_map_entry *entries; // (FLEET_ENTRIES)
	struct fleet_input in;
	struct fleet_plan plan;
};

bool ctl_offline(const struct ctl *c)
{
	return c->options.fleet || c->options.topologies.count;
}

static int failed(struct ctl *c, int r, const struct base_error *e)
{
	int exit = r == -ENOMEM ? CTL_DOES_NOT_FIT : r == -ENOENT ? CTL_NOT_FOUND : CTL_ERROR;
	return ctl_fail(c, exit, "%s", base_error_text(e));
}

/* ---- input ---- */

int ctl_fleet_scan(struct ctl *c, const struct config_machine *m, struct topology_machine *ret_machine)
{
	_cleanup_free_ char *file = strdup(c->options.fleet);
	struct base_error e = {0};
	char path[PATH_MAX];
	if (!file)
		return ctl_fail(c, CTL_ERROR, "no memory");
	int n = snprintf(path, sizeof path, "%s%s%s", m->topology[0] == '/' ? "" : dirname(file),
		m->topology[0] == '/' ? "" : "/", m->topology);
	int r = n < 0 || (size_t)n >= sizeof path ? -ENAMETOOLONG : topology_scan(path, ret_machine, &e);
	if (r == 0)
		return CTL_OK;
	base_error_prefix(&e, "machine %s", m->name);
	return failed(c, r == -ENOMEM ? -EINVAL : r, &e);
}

// Memory of machines that give a recorded topology instead.
static int fill_memory(struct offline *o)
{
	_cleanup_free_ struct topology_machine *machine = calloc(1, sizeof *machine);
	if (!machine)
		return ctl_fail(o->c, CTL_ERROR, "no memory");
	for (uint32_t i = 0; i < o->fleet.machines_count; i++) {
		const struct config_machine *m = &o->fleet.machines[i];
		if (m->memory_bytes || !m->topology[0])
			continue;
		int r = ctl_fleet_scan(o->c, m, machine);
		if (r != CTL_OK)
			return r;
		for (uint32_t d = m->first_device; d < m->first_device + m->devices * m->count; d++) {
			if (!o->fleet.devices[d].card)
				o->fleet.devices[d].memory_bytes = machine->memory_limit_bytes;
		}
	}
	return CTL_OK;
}

// "NAME=VALUE": the device, and the rest in *ret_left of the text before the last "=".
static int split(struct ctl *c, const char *option, const char *text, char *left, size_t room, const char **ret_right)
{
	const char *equals = strrchr(text, '=');
	size_t n = equals ? (size_t)(equals - text) : 0;
	if (!equals || n == 0 || n >= room || !equals[1])
		return ctl_fail(c, CTL_USAGE, "--%s: \"%s\" is not of the form A=B", option, text);
	snprintf(left, room, "%.*s", (int)n, text);
	*ret_right = equals + 1;
	return CTL_OK;
}

static int apply_options(struct offline *o)
{
	struct ctl *c = o->c;
	struct base_error e = {0};
	char left[128];
	const char *right = "";
	uint32_t device = 0;
	if (c->options.device_map) {
		if (fleet_map_find(c->options.device_map, &o->in.map) < 0 || o->in.map == FLEET_MAP_EXPLICIT)
			return ctl_fail(c, CTL_USAGE, "--device-map: \"%s\" is none of auto, balanced, sequential",
				c->options.device_map);
		if (o->fleet.map == FLEET_MAP_EXPLICIT)
			o->in.entries_count = 0; // the file's map is set aside
	}
	for (uint32_t i = 0; i < c->options.max_memory.count; i++) {
		int r = split(c, "max-memory", c->options.max_memory.items[i], left, sizeof left, &right);
		if (r != CTL_OK)
			return r;
		if (config_fleet_find(&o->fleet, left, &device, &e) < 0)
			return ctl_fail(c, CTL_NOT_FOUND, "--max-memory: %s", base_error_text(&e));
		if (base_units_parse_bytes(right, &o->fleet.devices[device].memory_bytes) < 0)
			return ctl_fail(
				c, CTL_USAGE, "--max-memory: \"%s\" is not a size; write 700MiB, for example", right);
	}
	for (uint32_t i = 0; i < c->options.pins.count; i++) {
		int r = split(c, "pin", c->options.pins.items[i], left, sizeof left, &right);
		if (r != CTL_OK)
			return r;
		if (o->in.map != FLEET_MAP_AUTO)
			return ctl_fail(c, CTL_USAGE, "--pin is for device_map auto");
		if (o->in.entries_count == FLEET_ENTRIES)
			return ctl_fail(c, CTL_USAGE, "--pin: more than %u pins", FLEET_ENTRIES);
		struct fleet_map_entry *x = &o->entries[o->in.entries_count];
		*x = (struct fleet_map_entry){.devices_count = 1};
		if (fleet_map_parse_modules(left, o->program->config.layers, x, &e) < 0 ||
			config_fleet_find(&o->fleet, right, &x->devices[0], &e) < 0)
			return ctl_fail(c, CTL_USAGE, "--pin: %s", base_error_text(&e));
		o->in.entries_count++;
	}
	return CTL_OK;
}

static int read_model(struct offline *o, struct base_error *e)
{
	_cleanup_free_ struct config *defaults = calloc(1, sizeof *defaults);
	const struct ctl_options *given = &o->c->options;
	if (!defaults)
		return base_error_set(e, -EIO, "no memory");
	config_defaults(defaults);
	int r = format_gguf_open(o->c->args[0], &o->gguf, e);
	if (r == 0)
		r = program_build(o->gguf, &o->program, e);
	if (r < 0)
		return r;
	uint32_t own = o->program->config.context_tokens;
	struct rank_config rank = {
		.batch_tokens = defaults->scheduler.batch_tokens,
		.sequences = given->streams ? given->streams : defaults->scheduler.max_sequences,
		.context_tokens = given->context && given->context < own ? given->context : own,
		.kv_type = strcmp(defaults->compute.kv_type, "q8") == 0 ? KV_Q8 : KV_F16,
	};
	rank.batch_tokens = rank.batch_tokens > rank.sequences ? rank.batch_tokens : rank.sequences;
	rank.logits_rows = rank.sequences > LOGITS_ROWS ? rank.sequences : LOGITS_ROWS;
	rank.logits_rows = rank.logits_rows < rank.batch_tokens ? rank.logits_rows : rank.batch_tokens;
	r = plan_model_init(o->program, &rank, PROCESS_BYTES, &o->model, e);
	o->in.sequences = rank.sequences;
	return r;
}

static int prepare(struct offline *o)
{
	struct base_error e = {0};
	struct ctl *c = o->c;
	o->entries = calloc(FLEET_ENTRIES, sizeof *o->entries);
	if (!o->entries)
		return ctl_fail(c, CTL_ERROR, "no memory");
	int r = config_fleet_read(c->options.fleet, &o->fleet, &e);
	if (r == 0)
		r = read_model(o, &e);
	if (r == 0)
		r = config_fleet_resolve(&o->fleet, o->program->config.layers, o->entries, &o->in.entries_count, &e);
	if (r < 0)
		return failed(c, r == -ENOMEM ? -EINVAL : r, &e);
	o->in.model = &o->model.sizes;
	o->in.devices = o->fleet.devices;
	o->in.devices_count = o->fleet.devices_count;
	memcpy(o->in.links, o->fleet.links, sizeof o->in.links);
	o->in.map = o->fleet.map;
	o->in.entries = o->entries;
	o->in.objective = c->options.one_stream ? FLEET_OBJECTIVE_ONE : FLEET_OBJECTIVE_FULL;
	o->in.overhead_ns = PLAN_MODEL_PASS_NS;
	for (uint32_t i = 0; i < o->fleet.devices_count; i++) {
		struct fleet_device *d = &o->fleet.devices[i];
		d->weights_budget_bytes = c->options.weights_bytes ? c->options.weights_bytes : d->weights_budget_bytes;
		d->kv_budget_bytes = c->options.kv_bytes ? c->options.kv_bytes : d->kv_budget_bytes;
	}
	r = fill_memory(o);
	return r == CTL_OK ? apply_options(o) : r;
}

static void release(struct offline *o)
{
	fleet_plan_finish(&o->plan);
	plan_model_finish(&o->model);
	program_destroy(o->program);
	format_gguf_close(o->gguf);
	config_fleet_finish(&o->fleet);
	free(o->entries);
}

/* ---- output ---- */

static void print_table(struct offline *o)
{
	static const struct ctl_column columns[] = {{"STAGE", true, false}, {"TP", false, false},
		{"LAYERS", false, false}, {"DEVICE", false, false}, {"HOT", true, false}, {"PINNED", true, true},
		{"NVME", true, false}, {"RING", true, true}, {"KV", true, false}, {"WORKSPACE", true, true},
		{"WEIGHTS", true, true}, {"MEMORY", true, false}, {"LINK", false, false}};
	struct ctl_table t;
	char size[CTL_SIZE_BYTES];
	const struct fleet_plan *p = &o->plan;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		const struct fleet_rank *r = &p->ranks[i];
		const struct fleet_stage *s = &p->stages[r->stage];
		const uint64_t sizes[] = {r->share.hot_bytes, r->share.host_bytes, r->share.cold_bytes,
			r->share.slots_bytes, r->share.kv_bytes, r->share.workspace_bytes, r->share.weights_bytes,
			o->fleet.devices[r->device].memory_bytes};
		bool last = i + 1 == p->ranks_count, ends = !last && p->ranks[i + 1].stage != r->stage;
		ctl_table_cell(&t, "%" PRIu32, r->stage);
		ctl_table_cell(&t, "%" PRIu32 "/%" PRIu32, r->tp_rank, s->tp);
		ctl_table_cell(&t, "%" PRIu32 "-%" PRIu32, s->first_layer, s->first_layer + s->layers - 1);
		ctl_table_cell(&t, "%s", o->fleet.devices[r->device].name);
		for (size_t k = 0; k < base_array_size(sizes); k++)
			ctl_table_cell(&t, "%s", ctl_size(sizes[k], size));
		ctl_table_cell(&t, "%s", last ? "-" : fleet_link_class_name(ends ? s->link_next : s->link));
	}
	ctl_table_print(&t, o->c);
	if (!p->measured) {
		fprintf(o->c->out, "no prediction: %s\n", p->lift);
		return;
	}
	fprintf(o->c->out,
		"%.2f tokens/s for one stream (%s), %.2f for %" PRIu32 " in %" PRIu32 " micro-batch%s (%s); %s\n",
		p->one.tokens_per_s, topology_resource_name(p->one.binding), p->full.tokens_per_s, o->in.sequences,
		p->full.micro_batches, p->full.micro_batches == 1 ? "" : "es", topology_resource_name(p->full.binding),
		p->lift);
}

static void draw(struct offline *o)
{
	const struct fleet_plan *p = &o->plan;
	_cleanup_free_ struct topology_draw_shard *shards = calloc(p->ranks_count, sizeof *shards);
	char note[256];
	if (!shards)
		return;
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		const struct fleet_rank *r = &p->ranks[i];
		const struct fleet_stage *s = &p->stages[r->stage];
		const struct fleet_device *d = &o->fleet.devices[r->device];
		uint64_t used = r->share.weights_bytes + r->share.kv_bytes + r->share.workspace_bytes;
		shards[i] = (struct topology_draw_shard){.host = d->host,
			.device = d->name,
			.stage = r->stage,
			.tp_rank = r->tp_rank,
			.tp = s->tp,
			.first_layer = s->first_layer,
			.last_layer = s->first_layer + s->layers - 1,
			.hot_bytes = r->share.hot_bytes,
			.rows_bytes = r->share.weights_bytes - r->share.hot_bytes - r->share.slots_bytes,
			.pinned_bytes = r->share.host_bytes,
			.ring_bytes = r->share.slots_bytes,
			.kv_bytes = r->share.kv_bytes,
			.workspace_bytes = r->share.workspace_bytes,
			.free_bytes = d->memory_bytes > used ? d->memory_bytes - used : 0,
			.cold_bytes = r->share.cold_bytes};
		bool ends = i + 1 < p->ranks_count && p->ranks[i + 1].stage != r->stage;
		if (ends)
			snprintf(shards[i].link, sizeof shards[i].link, "%s, %.0f us",
				fleet_link_class_name(s->link_next), s->hop_ns / 1e3);
	}
	snprintf(note, sizeof note, "%.2f tokens/s for one stream (%s), %.2f for %" PRIu32 " (%s)", p->one.tokens_per_s,
		topology_resource_name(p->one.binding), p->full.tokens_per_s, o->in.sequences,
		topology_resource_name(p->full.binding));
	topology_draw_placement(o->program->config.name, note, shards, p->ranks_count, o->c->out);
}

static void put_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

static void put_number(struct json_object *o, const char *key, uint64_t v)
{
	json_object_object_add(o, key, json_object_new_uint64(v));
}

static void put_real(struct json_object *o, const char *key, double v)
{
	json_object_object_add(o, key, ctl_json_real(v));
}

static struct json_object *json_rank(const struct offline *o, const struct fleet_rank *r)
{
	struct json_object *x = json_object_new_object();
	put_text(x, "device", o->fleet.devices[r->device].name);
	put_text(x, "host", o->fleet.devices[r->device].host);
	put_number(x, "tp_rank", r->tp_rank);
	put_number(x, "hot_bytes", r->share.hot_bytes);
	put_number(x, "pinned_bytes", r->share.host_bytes);
	put_number(x, "nvme_bytes", r->share.cold_bytes);
	put_number(x, "ring_bytes", r->share.slots_bytes);
	put_number(x, "kv_bytes", r->share.kv_bytes);
	put_number(x, "workspace_bytes", r->share.workspace_bytes);
	put_number(x, "weights_budget_bytes", r->share.weights_bytes);
	return x;
}

static struct json_object *json_stage(const struct offline *o, const struct fleet_stage *s, bool last)
{
	struct json_object *x = json_object_new_object(), *ranks = json_object_new_array();
	put_number(x, "first_layer", s->first_layer);
	put_number(x, "last_layer", s->first_layer + s->layers - 1);
	put_number(x, "tp", s->tp);
	if (!last) {
		put_text(x, "link_next", fleet_link_class_name(s->link_next));
		put_number(x, "hop_ns", (uint64_t)s->hop_ns);
	}
	for (uint32_t i = 0; i < s->tp; i++)
		json_object_array_add(ranks, json_rank(o, &o->plan.ranks[s->first_rank + i]));
	json_object_object_add(x, "ranks", ranks);
	return x;
}

static struct json_object *json_timing(const struct offline *o, const struct fleet_timing *t)
{
	struct json_object *x = json_object_new_object();
	put_real(x, "tokens_per_second", t->tokens_per_s);
	put_number(x, "period_ns", (uint64_t)t->period_ns);
	put_number(x, "micro_batches", t->micro_batches);
	put_number(x, "positions", t->positions);
	put_text(x, "binding", topology_resource_name(t->binding));
	put_text(x, "device", o->fleet.devices[o->plan.ranks[o->plan.stages[t->binding_stage].first_rank].device].name);
	return x;
}

static struct json_object *json_alternative(const struct fleet_alternative *a)
{
	struct json_object *x = json_object_new_object();
	put_text(x, "name", a->name);
	put_text(x, "reason", a->reason);
	put_real(x, "tokens_per_second_one", a->tokens_per_s_one);
	put_real(x, "tokens_per_second_full", a->tokens_per_s_full);
	return x;
}

static struct json_object *json_plan(const struct offline *o)
{
	const struct fleet_plan *p = &o->plan;
	struct json_object *x = json_object_new_object(), *stages = json_object_new_array(),
			   *others = json_object_new_array();
	for (uint32_t i = 0; i < p->stages_count; i++)
		json_object_array_add(stages, json_stage(o, &p->stages[i], i + 1 == p->stages_count));
	for (uint32_t i = 0; i < p->alternatives_count; i++)
		json_object_array_add(others, json_alternative(&p->alternatives[i]));
	put_text(x, "device_map", fleet_map_name(o->in.map));
	put_number(x, "kv_blocks", p->kv_blocks);
	put_number(x, "context_tokens", o->model.sizes.context_tokens);
	put_number(x, "sequences", o->in.sequences);
	put_number(x, "devices_left_out", p->left_out_count);
	json_object_object_add(x, "order_exact", json_object_new_boolean(p->order_exact));
	json_object_object_add(x, "one", json_timing(o, &p->one));
	json_object_object_add(x, "full", json_timing(o, &p->full));
	put_text(x, "lift", p->lift);
	json_object_object_add(x, "stages", stages);
	json_object_object_add(x, "alternatives", others);
	return x;
}

static struct json_object *json_simulation(const struct fleet_simulation *s)
{
	struct json_object *x = json_object_new_object();
	put_real(x, "tokens_per_second", s->tokens_per_s);
	put_number(x, "period_ns", (uint64_t)s->period_ns);
	put_number(x, "predicted_ns", (uint64_t)s->predicted_ns);
	put_number(x, "micro_batches", s->micro_batches);
	put_number(x, "positions", s->positions);
	put_number(x, "events", s->events);
	put_number(x, "reads", s->reads);
	return x;
}

// One stream, and the full batch.
static int simulate(struct offline *o, struct json_object *json)
{
	struct base_error e = {0};
	const struct fleet_timing *const ways[] = {&o->plan.one, &o->plan.full};
	static const char *const names[] = {"simulated_one", "simulated_full"};
	if (!o->plan.measured)
		return ctl_fail(o->c, CTL_ERROR, "--simulate: the bandwidths of the machines are needed");
	for (size_t i = 0; i < base_array_size(ways); i++) {
		struct fleet_simulation s;
		int r = fleet_simulate(&o->in, &o->plan, ways[i]->micro_batches, ways[i]->positions, 0, &s, &e);
		if (r < 0)
			return ctl_fail(o->c, CTL_ERROR, "%s", base_error_text(&e));
		if (json)
			json_object_object_add(json, names[i], json_simulation(&s));
		else
			fleet_simulate_print(&o->in, &o->plan, &s, o->c->out);
		fleet_simulate_finish(&s);
	}
	return CTL_OK;
}

static int show(struct offline *o)
{
	struct ctl *c = o->c;
	if (c->output == CTL_OUTPUT_SVG) {
		draw(o);
		return CTL_OK;
	}
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *json = ctl_json_new();
		json_object_object_add(json, "plan", json_plan(o));
		int r = c->options.simulate ? simulate(o, json) : CTL_OK;
		if (r == CTL_OK)
			return ctl_json_print(c, json);
		json_object_put(json);
		return r;
	}
	if (c->options.explain)
		fleet_plan_explain(&o->in, &o->plan, c->out);
	else
		print_table(o);
	return c->options.simulate ? simulate(o, NULL) : CTL_OK;
}

int ctl_plan_offline(struct ctl *c)
{
	struct offline o = {.c = c};
	struct base_error e = {0};
	int r = prepare(&o);
	if (r == CTL_OK) {
		int status = fleet_plan_build(&o.in, &o.plan, &e);
		r = status < 0 ? failed(c, status, &e) : show(&o);
	}
	release(&o);
	return r;
}
