// SPDX-License-Identifier: Apache-2.0
// What was not chosen and why, and what would lift what binds: answers to questions that people ask of a plan.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "base/units.h"
#include "topology/fleet/internal.h"

#define LEFT_OUT_NAMED 3u
#define TP_NAMED 4u
#define MOST_FASTER 20 // times: what is worth to be said of a drive
#define CLOSE 0.999 // of the plan's speed: as good

struct fleet_alternative *fleet_alternative_add(struct fleet_plan *p, const char *fmt, ...)
{
	if (p->alternatives_count == FLEET_ALTERNATIVES)
		return NULL;
	struct fleet_alternative *a = &p->alternatives[p->alternatives_count++];
	*a = (struct fleet_alternative){0};
	va_list args;
	va_start(args, fmt);
	vsnprintf(a->name, sizeof a->name, fmt, args);
	va_end(args);
	return a;
}

static bool same_stages(const struct fleet_plan *a, const struct fleet_plan *b)
{
	if (a->stages_count != b->stages_count || a->ranks_count != b->ranks_count)
		return false;
	for (uint32_t i = 0; i < a->stages_count; i++) {
		if (a->stages[i].first_layer != b->stages[i].first_layer || a->stages[i].tp != b->stages[i].tp)
			return false;
	}
	return true;
}

// In words why another placement was not taken.
static void compare(const struct fleet_work *f, const struct fleet_plan *p, const struct fleet_plan *other,
	struct fleet_alternative *a)
{
	bool one = f->in->objective == FLEET_OBJECTIVE_ONE;
	double mine = one ? p->one.period_ns : p->full.period_ns,
	       theirs = one ? other->one.period_ns : other->full.period_ns;
	const struct fleet_timing *t = one ? &other->one : &other->full;
	a->tokens_per_s_one = other->one.tokens_per_s;
	a->tokens_per_s_full = other->full.tokens_per_s;
	const char *device = f->in->devices[other->ranks[other->stages[t->binding_stage].first_rank].device].name;
	if (same_stages(p, other))
		snprintf(a->reason, sizeof a->reason, "the same stages");
	else if (theirs * CLOSE <= mine)
		snprintf(a->reason, sizeof a->reason, "as fast, with %" PRIu32 " device%s instead of %" PRIu32,
			other->ranks_count, other->ranks_count == 1 ? "" : "s", p->ranks_count);
	else
		snprintf(a->reason, sizeof a->reason, "slower: %s of %s binds", topology_resource_name(t->binding),
			device);
}

// A placement by other limits, as an alternative. False: there is no room, or it does not fit.
static void add_search(const struct fleet_work *f, const struct fleet_limits *limits, struct fleet_plan *p,
	struct fleet_alternative *a)
{
	_cleanup_free_ struct fleet_cut *stages = calloc(FLEET_STAGES, sizeof *stages);
	struct fleet_plan other;
	struct fleet_found found;
	if (!a || !stages)
		return;
	if (fleet_search(f, limits, stages, &found) < 0 || fleet_cut_plan(f, stages, found.count, &other, NULL) < 0) {
		snprintf(a->reason, sizeof a->reason, "does not fit");
		return;
	}
	compare(f, p, &other, a);
	fleet_plan_finish(&other);
}

static void add_map(const struct fleet_work *f, enum fleet_map map, struct fleet_plan *p)
{
	_cleanup_free_ struct fleet_cut *stages = calloc(FLEET_STAGES, sizeof *stages);
	struct fleet_plan other;
	uint32_t count = 0;
	struct fleet_alternative *a = stages ? fleet_alternative_add(p, "%s", fleet_map_name(map)) : NULL;
	if (!a)
		return;
	if (map == FLEET_MAP_BALANCED)
		fleet_map_balanced(f, stages, &count);
	else
		fleet_map_sequential(f, stages, &count);
	if (count == 0 || fleet_cut_plan(f, stages, count, &other, NULL) < 0) {
		snprintf(a->reason, sizeof a->reason, "does not fit");
		return;
	}
	compare(f, p, &other, a);
	fleet_plan_finish(&other);
}

static void add_tp(const struct fleet_work *f, uint32_t most, struct fleet_plan *p)
{
	uint32_t named = 0, chosen = 1;
	for (uint32_t i = 0; i < p->stages_count; i++)
		chosen = p->stages[i].tp > chosen ? p->stages[i].tp : chosen;
	for (uint32_t t = f->in->tp_least > 2 ? f->in->tp_least : 2;
		t <= most && t <= f->in->devices_count && named < TP_NAMED; t++) {
		char reason[192];
		if (t == chosen)
			continue;
		struct fleet_alternative *a = fleet_alternative_add(p, "%" PRIu32 " ranks in a stage", t);
		named++;
		if (!a)
			return;
		if (!fleet_tp_possible(f->in->model, t, reason, sizeof reason)) {
			snprintf(a->reason, sizeof a->reason, "%s", reason);
			continue;
		}
		struct fleet_limits limits = {.use = FLEET_NONE, .tp_least = t, .tp_most = t, .quick = true};
		add_search(f, &limits, p, a);
		if (strcmp(a->reason, "does not fit") == 0)
			snprintf(a->reason, sizeof a->reason,
				"no %" PRIu32 " equal devices with a link that was measured, or it does not fit", t);
	}
}

static bool is_used(const struct fleet_plan *p, uint32_t device)
{
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		if (p->ranks[i].device == device)
			return true;
	}
	return false;
}

static void add_left_out(const struct fleet_work *f, struct fleet_plan *p)
{
	uint32_t named = 0;
	for (uint32_t d = 0; d < f->in->devices_count && named < LEFT_OUT_NAMED && p->left_out_count; d++) {
		if (is_used(p, d))
			continue;
		struct fleet_limits limits = fleet_limits_of(f->in);
		limits.use = d;
		limits.quick = true;
		for (uint32_t i = 0; i < p->ranks_count; i++)
			limits.use_least += fleet_same_kind(f, p->ranks[i].device, d);
		struct fleet_alternative *a = fleet_alternative_add(p, "with %s", f->in->devices[d].name);
		add_search(f, &limits, p, a);
		named++;
	}
}

// Every stage in several runs of layers, one after the other over all devices: each drive then reads for its next run
// while others compute, which one run after a whole pass cannot, its ring being small.
static void add_dealt(const struct fleet_work *f, struct fleet_plan *p)
{
	double rounds = 1, work = f->in->overhead_ns, hops = 0, disk = 0;
	for (uint32_t i = 0; i < p->stages_count; i++) {
		struct fleet_stage_time t = fleet_time_stage(f, p, i, 1);
		const struct topology_plan *share = &p->ranks[p->stages[i].first_rank].share;
		if (share->slots_bytes)
			rounds = fmax(rounds, ceil((double)share->cold_bytes / (double)share->slots_bytes));
		rounds = fmin(rounds, p->stages[i].layers);
		work += t.work;
		hops += p->stages[i].hop_ns;
		disk = fmax(disk, share->pass_ns_disk);
	}
	double period = fmax(disk, work + rounds * hops);
	if (p->stages_count < 2 || !p->measured || rounds < 2 || period > 0.9 * p->one.period_ns)
		return;
	struct fleet_alternative *a = fleet_alternative_add(p, "layers dealt in %.0f rounds", rounds);
	if (!a)
		return;
	a->tokens_per_s_one = 1e9 / period;
	snprintf(a->reason, sizeof a->reason,
		"a stage has one run of layers: with one stream drives wait for their turn once their ring is full");
}

void fleet_add_alternatives(const struct fleet_work *f, struct fleet_plan *p)
{
	uint32_t most = f->in->tp_most && f->in->tp_most < FLEET_TP ? f->in->tp_most : FLEET_TP;
	if (f->in->devices_count == 1)
		return;
	if (f->in->map == FLEET_MAP_AUTO) {
		if (p->ranks_count > 1) {
			struct fleet_limits alone = {.use = FLEET_NONE, .tp_least = 1, .tp_most = 1, .one_stage = true};
			add_search(f, &alone, p, fleet_alternative_add(p, "one device alone"));
		}
		add_tp(f, most, p);
		add_left_out(f, p);
		if (f->in->entries_count == 0 && f->in->devices_count <= FLEET_SEARCHED) {
			add_map(f, FLEET_MAP_BALANCED, p);
			add_map(f, FLEET_MAP_SEQUENTIAL, p);
		}
	}
	add_dealt(f, p);
}

void fleet_advise(const struct fleet_work *f, struct fleet_plan *p)
{
	struct base_text t = {p->lift, sizeof p->lift};
	const struct fleet_timing *time = f->in->objective == FLEET_OBJECTIVE_ONE ? &p->one : &p->full;
	const struct fleet_stage *s = &p->stages[time->binding_stage];
	const struct fleet_rank *r = &p->ranks[s->first_rank];
	const struct fleet_device *d = &f->in->devices[r->device];
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	if (!p->measured || time->period_ns <= 0) {
		base_text_add(&t, "not all of it was measured: run the probe");
		return;
	}
	switch (time->binding) {
	case TOPOLOGY_RESOURCE_DISK: {
		double other = r->share.pass_ns_memory / 1e9;
		base_text_add(&t, "%s more memory on %s keeps all of its layers hot",
			base_units_format_bytes(r->share.cold_bytes + r->share.slots_bytes, a), d->name);
		double rate = other > 0 ? (double)r->share.cold_bytes / other : 0;
		if (rate > 0 && rate < MOST_FASTER * d->bandwidths.drive_bytes_per_s)
			base_text_add(&t, ", or a drive of %s/s there", base_units_format_bytes((uint64_t)rate, b));
		break;
	}
	case TOPOLOGY_RESOURCE_MEMORY:
		base_text_add(&t, "faster memory on %s, fewer bits per weight, or one device more", d->name);
		break;
	case TOPOLOGY_RESOURCE_PCIE:
		base_text_add(
			&t, "%s more memory on the card %s", base_units_format_bytes(r->share.host_bytes, a), d->name);
		break;
	case TOPOLOGY_RESOURCE_COMPUTE:
		base_text_add(&t, "more cores on %s, or one device more", d->name);
		break;
	case TOPOLOGY_RESOURCE_LINK:
		base_text_add(&t, "a faster link (%s) at %s", fleet_link_class_name(s->tp > 1 ? s->link : s->link_next),
			d->name);
		break;
	}
	if (f->in->devices_count == 1)
		return;
	for (uint32_t i = 0; i < p->alternatives_count; i++) {
		const struct fleet_alternative *x = &p->alternatives[i];
		if (strncmp(x->name, "layers dealt", 12) == 0)
			base_text_add(&t, "; for one stream %s would give %.1f tokens/s", x->name, x->tokens_per_s_one);
	}
}
