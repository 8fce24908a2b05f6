// SPDX-License-Identifier: Apache-2.0
#include "topology/fleet/fleet.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "topology/fleet/internal.h"

#define KV_ROUNDS 2u
#define ALL_THE_SAME 1.01
#define COMMON_DRIVE 1e9 // of what nobody measured
#define COMMON_MEMORY 10e9
#define COMMON_COMPUTE 50e9
#define MAX_TOTAL (1ull << 56) // bytes and multiply-adds of a model: far from where sums end

const char *fleet_link_class_name(enum fleet_link_class c)
{
	static const char *const names[] = {"host", "rack", "cluster"};
	return (unsigned)c < base_array_size(names) ? names[c] : "?";
}

/* ---- what is given ---- */

bool fleet_tp_possible(const struct fleet_model *m, uint32_t ranks, char *reason, size_t room)
{
	uint32_t heads = m->heads, kv = m->kv_heads;
	if (ranks <= 1)
		return true;
	if (!heads || !kv || heads % ranks || (kv % ranks && ranks % kv)) {
		snprintf(reason, room,
			"its %" PRIu32 " heads share %" PRIu32 " KV heads, which do not divide by %" PRIu32, heads, kv,
			ranks);
		return false;
	}
	if (m->block_columns && (uint64_t)heads / ranks * m->head_dim % m->block_columns) {
		snprintf(reason, room,
			"%" PRIu32 " heads of %" PRIu32
			" columns do not end at a border of the quantization's blocks of %" PRIu32,
			heads / ranks, m->head_dim, m->block_columns);
		return false;
	}
	if (m->vocab && m->vocab / 16 < ranks) {
		snprintf(reason, room, "the %" PRIu32 " rows of its vocabulary are too few", m->vocab);
		return false;
	}
	if (m->mlp_blocks && m->mlp_blocks < ranks) {
		snprintf(reason, room, "the MLP's width has only %" PRIu32 " blocks", m->mlp_blocks);
		return false;
	}
	return true;
}

static int add(uint64_t *sum, uint64_t more)
{
	return base_size_add(*sum, more, sum) < 0 || *sum > MAX_TOTAL ? -EOVERFLOW : 0;
}

static int check_model(const struct fleet_model *m, struct base_error *e)
{
	uint64_t bytes = 0, macs = 0, kv = 0;
	if (!m || m->layers_count == 0 || m->layers_count > FLEET_LAYERS || !m->layers)
		return base_error_set(e, -EINVAL, "plan: a model of 1 to %u layers is needed", FLEET_LAYERS);
	if (m->kv_block_bytes && !m->kv_block_tokens)
		return base_error_set(e, -EINVAL, "plan: kv_block_tokens is 0");
	int r = add(&bytes, m->lookup_bytes) | add(&bytes, m->head.mlp_bytes) | add(&bytes, m->head.whole_bytes) |
		add(&bytes, m->rows_bytes) | add(&bytes, m->workspace_bytes) | add(&bytes, m->process_bytes) |
		add(&macs, m->head.macs) | add(&bytes, m->extent_bytes);
	for (uint32_t l = 0; l < m->layers_count && r == 0; l++) {
		const struct fleet_layer *x = &m->layers[l];
		r = add(&bytes, x->attention_bytes) | add(&bytes, x->mlp_bytes) | add(&bytes, x->whole_bytes) |
		    add(&macs, x->macs);
	}
	uint64_t blocks = fleet_blocks_of_sequence(m);
	if (r == 0 && base_size_mul(blocks, m->kv_block_bytes, &kv) == 0 &&
		base_size_mul(kv, m->layers_count, &kv) == 0 && kv <= MAX_TOTAL)
		return 0;
	return base_error_set(e, -EOVERFLOW, "plan: the sizes of the model are beyond 2^56");
}

static int check(const struct fleet_input *in, struct base_error *e)
{
	int r = check_model(in->model, e);
	if (r < 0)
		return r;
	if (in->devices_count == 0 || in->devices_count > FLEET_DEVICES)
		return base_error_set(
			e, -EINVAL, "plan: %" PRIu32 " devices; 1 to %u are needed", in->devices_count, FLEET_DEVICES);
	for (int c = 0; c < FLEET_LINK_CLASSES; c++) {
		if (!(in->links[c].latency_ns >= 0) || !(in->links[c].bytes_per_s >= 0))
			return base_error_set(e, -EINVAL, "plan: link class %s has a negative measure",
				fleet_link_class_name((enum fleet_link_class)c));
	}
	return fleet_map_check(in, e);
}

struct name {
	const char *text;
	uint32_t device;
};

static int by_text(const void *a, const void *b)
{
	const struct name *x = a, *y = b;
	int c = strcmp(x->text, y->text);
	return c ? c : x->device < y->device ? -1 : x->device > y->device;
}

// Equal texts get equal numbers; which: 0 name, 1 host, 2 rack. -EEXIST: names that must differ do not.
static int number_names(const struct fleet_input *in, int which, uint32_t *ret, struct base_error *e)
{
	uint32_t n = in->devices_count, number = 0;
	_cleanup_free_ struct name *names = calloc(n, sizeof *names);
	if (!names)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	for (uint32_t i = 0; i < n; i++) {
		const struct fleet_device *d = &in->devices[i];
		names[i] = (struct name){which == 0 ? d->name : which == 1 ? d->host : d->rack, i};
	}
	qsort(names, n, sizeof *names, by_text);
	for (uint32_t i = 0; i < n; i++) {
		bool same = i && strcmp(names[i].text, names[i - 1].text) == 0;
		if (same && which == 0)
			return base_error_set(e, -EEXIST, "plan: two devices are called \"%s\"", names[i].text);
		number += i && !same;
		if (which)
			ret[names[i].device] = number;
	}
	return 0;
}

static void sum_layers(struct fleet_work *f)
{
	const struct fleet_model *m = f->in->model;
	for (uint32_t l = 0; l < f->layers; l++) {
		const struct fleet_layer *x = &m->layers[l];
		f->attention[l + 1] = f->attention[l] + x->attention_bytes;
		f->mlp[l + 1] = f->mlp[l] + x->mlp_bytes;
		f->whole[l + 1] = f->whole[l] + x->whole_bytes;
		f->macs[l + 1] = f->macs[l] + x->macs;
		f->pin[l] = FLEET_NONE;
	}
}

static void apply_entry(struct fleet_work *f, const struct fleet_map_entry *x)
{
	if (x->module != FLEET_MODULE_LAYERS)
		return;
	for (uint32_t l = x->first_layer; l <= x->last_layer; l++) {
		const struct fleet_layer *layer = &f->in->model->layers[l];
		uint64_t bytes = layer->attention_bytes + layer->mlp_bytes;
		if (x->tier == FLEET_TIER_NVME)
			f->streamed[l + 1] = bytes;
		else if (x->tier != FLEET_TIER_AUTO)
			f->kept[l + 1] = bytes;
		if (f->in->map == FLEET_MAP_AUTO && x->devices_count)
			f->pin[l] = x->devices[0];
	}
}

static void apply_entries(struct fleet_work *f)
{
	for (uint32_t i = 0; i < f->in->entries_count; i++)
		apply_entry(f, &f->in->entries[i]);
	for (uint32_t i = 0; i < f->in->entries_count && f->in->map == FLEET_MAP_AUTO; i++) {
		const struct fleet_map_entry *x = &f->in->entries[i];
		if (x->devices_count == 0)
			continue;
		f->pinned[x->devices[0]] = true;
		if (x->module == FLEET_MODULE_EMBED)
			f->pin[0] = x->devices[0];
		if (x->module == FLEET_MODULE_HEAD)
			f->pin[f->layers - 1] = x->devices[0];
	}
	for (uint32_t l = 0; l < f->layers; l++) {
		f->streamed[l + 1] += f->streamed[l];
		f->kept[l + 1] += f->kept[l];
	}
}

/* ---- what was not measured ---- */

// A rate that is not known must not look like one without limit: it counts as the least that is known of another
// device, or as a common one.
static double assume(const struct fleet_input *in, double (*rate)(const struct fleet_device *d), double common)
{
	double least = 0;
	for (uint32_t i = 0; i < in->devices_count; i++) {
		double r = rate(&in->devices[i]);
		least = r > 0 && (least == 0 || r < least) ? r : least;
	}
	return least > 0 ? least : common;
}

static double drive_rate(const struct fleet_device *d)
{
	return d->bandwidths.drive_bytes_per_s;
}

static double memory_rate(const struct fleet_device *d)
{
	return d->bandwidths.memory_bytes_per_s;
}

static double compute_rate(const struct fleet_device *d)
{
	return d->bandwidths.compute_macs_per_s;
}

static int fill_rates(struct fleet_work *f, struct base_error *e)
{
	const struct fleet_input *in = f->in;
	double drive = assume(in, drive_rate, COMMON_DRIVE), memory = assume(in, memory_rate, COMMON_MEMORY);
	double compute = assume(in, compute_rate, COMMON_COMPUTE);
	f->devices = malloc(in->devices_count * sizeof *f->devices);
	if (!f->devices)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	memcpy(f->devices, in->devices, in->devices_count * sizeof *f->devices);
	for (uint32_t i = 0; i < in->devices_count; i++) {
		struct topology_bandwidths *b = &f->devices[i].bandwidths;
		b->drive_bytes_per_s = b->drive_bytes_per_s > 0 ? b->drive_bytes_per_s : drive;
		b->memory_bytes_per_s = b->memory_bytes_per_s > 0 ? b->memory_bytes_per_s : memory;
		b->compute_macs_per_s = b->compute_macs_per_s > 0 ? b->compute_macs_per_s : compute;
	}
	f->filled = *in;
	f->filled.devices = f->devices;
	f->in = &f->filled;
	return 0;
}

static bool is_measured(const struct fleet_device *d, const struct topology_plan *share)
{
	const struct topology_bandwidths *b = &d->bandwidths;
	return b->memory_bytes_per_s > 0 && b->compute_macs_per_s > 0 &&
	       (b->drive_bytes_per_s > 0 || share->cold_bytes == 0);
}

// In what is handed out, only what was measured counts.
static void forget_assumed(const struct fleet_work *f, struct fleet_plan *p)
{
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		const struct topology_bandwidths *b = &f->given->devices[p->ranks[i].device].bandwidths;
		struct topology_plan *share = &p->ranks[i].share;
		share->pass_ns_disk = b->drive_bytes_per_s > 0 ? share->pass_ns_disk : 0;
		share->pass_ns_memory = b->memory_bytes_per_s > 0 ? share->pass_ns_memory : 0;
		share->token_ns_compute = b->compute_macs_per_s > 0 ? share->token_ns_compute : 0;
	}
}

int fleet_work_init(struct fleet_work *f, const struct fleet_input *in, struct base_error *e)
{
	*f = (struct fleet_work){.given = in, .in = in};
	int r = check(in, e);
	if (r < 0)
		return r;
	r = fill_rates(f, e);
	if (r < 0)
		return r;
	uint32_t l = f->layers = in->model->layers_count;
	uint64_t **const sums[] = {&f->attention, &f->mlp, &f->whole, &f->macs, &f->streamed, &f->kept};
	for (size_t i = 0; i < base_array_size(sums); i++) {
		*sums[i] = calloc(l + 1, sizeof(uint64_t));
		r = *sums[i] ? r : -ENOMEM;
	}
	f->pin = calloc(l, sizeof *f->pin);
	f->host = calloc(in->devices_count, sizeof *f->host);
	f->rack = calloc(in->devices_count, sizeof *f->rack);
	f->pinned = calloc(in->devices_count, sizeof *f->pinned);
	f->on_host = calloc(in->devices_count, sizeof *f->on_host);
	if (r < 0 || !f->pin || !f->host || !f->rack || !f->pinned || !f->on_host)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	r = number_names(in, 0, NULL, e);
	if (r == 0)
		r = number_names(in, 1, f->host, e);
	if (r == 0)
		r = number_names(in, 2, f->rack, e);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < in->devices_count; i++)
		f->on_host[f->host[i]]++;
	sum_layers(f);
	apply_entries(f);
	f->kv_blocks = fleet_blocks_of_sequence(in->model);
	return 0;
}

void fleet_work_finish(struct fleet_work *f)
{
	void *const all[] = {f->attention, f->mlp, f->whole, f->macs, f->streamed, f->kept, f->pin, f->host, f->rack,
		f->pinned, f->on_host};
	for (size_t i = 0; i < base_array_size(all); i++)
		free(all[i]);
	free(f->devices);
}

/* ---- timing of a plan ---- */

// Of one rank, in the terms of fleet_run_time.
static struct fleet_run run_of(const struct fleet_input *in, const struct fleet_rank *r)
{
	double drive = in->devices[r->device].bandwidths.drive_bytes_per_s;
	const struct topology_plan *p = &r->share;
	return (struct fleet_run){
		.disk = p->pass_ns_disk,
		.ring = drive > 0 ? (double)p->slots_bytes / drive * 1e9 : 0,
		.memory = p->pass_ns_memory > p->pass_ns_pcie ? p->pass_ns_memory : p->pass_ns_pcie,
		.token = p->token_ns_compute,
	};
}

static enum topology_resource what_binds(const struct fleet_rank *r, double allreduce, uint32_t n, double t)
{
	enum topology_resource of;
	double bound = topology_plan_bound_ns(&r->share, n, &of);
	return t > bound && allreduce > bound ? TOPOLOGY_RESOURCE_LINK : of;
}

struct fleet_stage_time fleet_time_stage(
	const struct fleet_work *f, const struct fleet_plan *p, uint32_t number, uint32_t n)
{
	const struct fleet_stage *s = &p->stages[number];
	struct fleet_stage_time t = {0};
	double allreduce =
		fleet_allreduce_ns(f, &f->in->links[s->link], s->tp, s->first_layer, s->first_layer + s->layers, n);
	for (uint32_t i = 0; i < s->tp; i++) {
		const struct fleet_rank *r = &p->ranks[s->first_rank + i];
		struct fleet_run run = run_of(f->in, r);
		double service, active;
		fleet_run_time(&run, allreduce, n, &service, &active);
		if (service > t.service || i == 0) {
			t.service = service;
			t.binding = what_binds(r, allreduce, n, service);
		}
		t.active = active > t.active ? active : t.active;
		run.ring = run.disk; // as if nothing had to be waited for
		fleet_run_time(&run, allreduce, n, &service, &active);
		t.work = active > t.work ? active : t.work;
	}
	return t;
}

static void time_plan(
	const struct fleet_work *f, const struct fleet_plan *p, uint32_t k, uint32_t n, struct fleet_timing *ret)
{
	struct fleet_timing t = {.micro_batches = k, .positions = n};
	double sum = f->in->overhead_ns, hops = f->in->overhead_ns, most = 0, longest = 0;
	uint32_t longest_stage = 0;
	enum topology_resource longest_binding = TOPOLOGY_RESOURCE_DISK;
	for (uint32_t i = 0; i < p->stages_count; i++) {
		struct fleet_stage_time s = fleet_time_stage(f, p, i, n);
		sum += s.active;
		if (s.service > most || i == 0) {
			most = s.service;
			t.binding = s.binding;
			t.binding_stage = i;
		}
		if (s.active > longest || i == 0) {
			longest = s.active;
			longest_stage = i;
			longest_binding = s.binding;
		}
		if (i + 1 == p->stages_count)
			break;
		double busy = fleet_hop_busy_ns(f, p->stages[i].link_next, n);
		sum += busy + f->in->links[p->stages[i].link_next].latency_ns;
		hops += busy + f->in->links[p->stages[i].link_next].latency_ns;
		if (busy > most) {
			most = busy;
			t.binding = TOPOLOGY_RESOURCE_LINK;
			t.binding_stage = i;
		}
	}
	t.period_ns = k * most;
	if (sum > t.period_ns) { // the way through all of them binds: its longest part is named
		t.period_ns = sum;
		t.binding = hops > sum / 2 ? TOPOLOGY_RESOURCE_LINK : longest_binding;
		t.binding_stage = longest_stage;
	}
	t.tokens_per_s = p->measured && t.period_ns > 0 ? 1e9 / t.period_ns * k * n : 0;
	*ret = t;
}

void fleet_plan_time(const struct fleet_input *in, const struct fleet_plan *p, uint32_t micro_batches,
	uint32_t positions, struct fleet_timing *ret)
{
	struct fleet_work f = {.in = in, .layers = in->model->layers_count};
	time_plan(&f, p, micro_batches, positions, ret);
}

// The micro-batches that are best for a plan; where it is all the same, one for each stage, which bears what the costs
// leave out. A batch that k does not divide is counted as what it is.
static void time_full(const struct fleet_work *f, struct fleet_plan *p)
{
	uint32_t k[FLEET_MICRO], count = fleet_micro_batches(f->in, k), sequences = fleet_sequences(f->in);
	struct fleet_timing even = {0};
	for (uint32_t i = 0; i < count; i++) {
		struct fleet_timing t;
		time_plan(f, p, k[i], (sequences + k[i] - 1) / k[i], &t);
		t.tokens_per_s = p->measured && t.period_ns > 0 ? 1e9 / t.period_ns * sequences : 0;
		if (i == 0 || t.period_ns < p->full.period_ns)
			p->full = t;
		if (k[i] == p->stages_count)
			even = t;
	}
	if (even.micro_batches && even.period_ns <= p->full.period_ns * ALL_THE_SAME)
		p->full = even;
}

/* ---- a plan of a placement ---- */

uint64_t fleet_choose_blocks(const struct fleet_work *f, const struct fleet_cut *stages, uint32_t count)
{
	uint64_t blocks = UINT32_MAX;
	for (uint32_t i = 0; i < count; i++) {
		for (uint32_t t = 0; t < stages[i].tp; t++) {
			struct topology_plan_input in;
			struct topology_plan p;
			fleet_share_input(
				f, stages[i].devices[t], stages[i].first, stages[i].end, stages[i].tp, 0, &in);
			if (topology_plan_place(&in, &p, NULL) < 0)
				return f->kv_blocks;
			blocks = p.kv_blocks < blocks ? p.kv_blocks : blocks;
		}
	}
	return blocks > f->kv_blocks ? blocks : f->kv_blocks;
}

static int make_rank(const struct fleet_work *f, const struct fleet_cut *s, uint32_t stage, uint32_t t,
	struct fleet_rank *ret, struct base_error *e)
{
	struct fleet_run run;
	*ret = (struct fleet_rank){.device = s->devices[t],
		.stage = stage,
		.tp_rank = t,
		.kv_block_bytes = fleet_kv_block_bytes(f, s->first, s->end, s->tp)};
	int r = fleet_run_cost(f, s->devices[t], s->first, s->end, s->tp, &run, &ret->share, e);
	if (r < 0 && f->in->devices_count > 1)
		base_error_prefix(
			e, "%s, layers %" PRIu32 "-%" PRIu32, f->in->devices[s->devices[t]].name, s->first, s->end - 1);
	return r;
}

static void fill_stage(const struct fleet_work *f, const struct fleet_cut *stages, uint32_t i, uint32_t count,
	uint32_t first_rank, struct fleet_stage *ret)
{
	const struct fleet_cut *s = &stages[i];
	*ret = (struct fleet_stage){
		.first_layer = s->first, .layers = s->end - s->first, .tp = s->tp, .first_rank = first_rank};
	for (uint32_t t = 1; t < s->tp; t++) {
		enum fleet_link_class c = fleet_link_between(f, s->devices[0], s->devices[t]);
		ret->link = c > ret->link ? c : ret->link;
	}
	ret->allreduce_ns = fleet_allreduce_ns(f, &f->in->links[ret->link], s->tp, s->first, s->end, 1);
	if (i + 1 == count)
		return;
	ret->link_next = fleet_link_between(f, s->devices[s->tp - 1], stages[i + 1].devices[0]);
	ret->hop_busy_ns = fleet_hop_busy_ns(f, ret->link_next, 1);
	ret->hop_ns = ret->hop_busy_ns + f->in->links[ret->link_next].latency_ns;
}

int fleet_cut_plan(const struct fleet_work *f, const struct fleet_cut *stages, uint32_t count,
	struct fleet_plan *ret_plan, struct base_error *e)
{
	struct fleet_plan p = {.stages_count = count, .measured = true, .kv_blocks = (uint32_t)f->kv_blocks};
	for (uint32_t i = 0; i < count; i++)
		p.ranks_count += stages[i].tp;
	p.stages = calloc(count, sizeof *p.stages);
	p.ranks = calloc(p.ranks_count, sizeof *p.ranks);
	int r = p.stages && p.ranks ? 0 : base_error_set(e, -ENOMEM, "plan: out of memory");
	for (uint32_t i = 0, rank = 0; i < count && r == 0; i++) {
		fill_stage(f, stages, i, count, rank, &p.stages[i]);
		for (uint32_t t = 0; t < stages[i].tp && r == 0; t++, rank++) {
			r = make_rank(f, &stages[i], i, t, &p.ranks[rank], e);
			p.measured &= is_measured(&f->given->devices[stages[i].devices[t]], &p.ranks[rank].share);
		}
	}
	if (r < 0) {
		fleet_plan_finish(&p);
		return r;
	}
	time_plan(f, &p, 1, 1, &p.one);
	time_full(f, &p);
	*ret_plan = p;
	return 0;
}

void fleet_plan_finish(struct fleet_plan *p)
{
	free(p->stages);
	free(p->ranks);
	*p = (struct fleet_plan){0};
}

int fleet_plan_evaluate(const struct fleet_input *in, const struct fleet_map_entry *stages, uint32_t count,
	struct fleet_plan *ret_plan, struct base_error *e)
{
	struct fleet_input explicit = *in;
	struct fleet_work f;
	explicit.map = FLEET_MAP_EXPLICIT;
	explicit.entries = stages;
	explicit.entries_count = count;
	_cleanup_free_ struct fleet_cut *made = calloc(FLEET_STAGES, sizeof *made);
	if (!made)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	int r = fleet_work_init(&f, &explicit, e);
	if (r == 0)
		r = fleet_map_explicit(&f, made, &count, e);
	if (r == 0)
		r = fleet_cut_plan(&f, made, count, ret_plan, e);
	if (r == 0)
		forget_assumed(&f, ret_plan);
	fleet_work_finish(&f);
	return r;
}

/* ---- the planner ---- */

static int place(const struct fleet_work *f, const struct fleet_limits *limits, struct fleet_cut *stages,
	struct fleet_found *found, struct base_error *e)
{
	found->order_exact = true;
	switch (f->in->map) {
	case FLEET_MAP_BALANCED:
		fleet_map_balanced(f, stages, &found->count);
		return 0;
	case FLEET_MAP_SEQUENTIAL:
		fleet_map_sequential(f, stages, &found->count);
		return 0;
	case FLEET_MAP_EXPLICIT:
		return fleet_map_explicit(f, stages, &found->count, e);
	case FLEET_MAP_AUTO:
		break;
	}
	int r = fleet_search(f, limits, stages, found);
	return r == -ENOMEM ? fleet_refuse(f, e) : r < 0 ? base_error_set(e, r, "plan: the search is too large") : 0;
}

double fleet_plan_period(const struct fleet_input *in, const struct fleet_plan *p)
{
	return in->objective == FLEET_OBJECTIVE_ONE ? p->one.period_ns : p->full.period_ns;
}

// KV blocks and layers depend on each other: room for one sequence first, then layers again with as many blocks as the
// shares that came out leave room for.
static int settle(struct fleet_work *f, const struct fleet_limits *limits, struct fleet_plan *ret, struct base_error *e)
{
	_cleanup_free_ struct fleet_cut *stages = calloc(FLEET_STAGES, sizeof *stages);
	struct fleet_plan p = {0};
	int r = stages ? 0 : base_error_set(e, -ENOMEM, "plan: out of memory");
	for (unsigned round = 0; r == 0 && round < KV_ROUNDS; round++) {
		struct fleet_found found = {0};
		struct fleet_plan next;
		uint64_t before = f->kv_blocks;
		r = place(f, limits, stages, &found, round ? NULL : e);
		if (r == 0) {
			f->kv_blocks = round ? before : fleet_choose_blocks(f, stages, found.count);
			r = fleet_cut_plan(f, stages, found.count, &next, round ? NULL : e);
		}
		if (r < 0 && round) { // the first one stands
			r = 0;
			break;
		}
		if (r < 0)
			break;
		next.order_exact = found.order_exact;
		bool better = round == 0 || fleet_plan_period(f->in, &next) < fleet_plan_period(f->in, &p);
		fleet_plan_finish(better ? &p : &next);
		p = better ? next : p;
		if (f->kv_blocks == before || f->in->map != FLEET_MAP_AUTO)
			break;
	}
	if (r == 0)
		*ret = p;
	return r;
}

struct fleet_limits fleet_limits_of(const struct fleet_input *in)
{
	uint32_t most = in->tp_most && in->tp_most < FLEET_TP ? in->tp_most : FLEET_TP;
	return (struct fleet_limits){.use = FLEET_NONE, .tp_least = in->tp_least ? in->tp_least : 1, .tp_most = most};
}

int fleet_plan_build(const struct fleet_input *input, struct fleet_plan *ret_plan, struct base_error *e)
{
	struct fleet_work f;
	struct fleet_plan p = {0};
	struct fleet_limits limits = fleet_limits_of(input);
	int r = fleet_work_init(&f, input, e);
	if (r == 0)
		r = settle(&f, &limits, &p, e);
	if (r == 0) {
		p.left_out_count = input->devices_count - p.ranks_count;
		fleet_add_alternatives(&f, &p);
		fleet_advise(&f, &p);
		forget_assumed(&f, &p);
		*ret_plan = p;
	}
	fleet_work_finish(&f);
	return r;
}
