// SPDX-License-Identifier: Apache-2.0
// Plans for devices that are measured, and so never quite equal: those that share layers count with what all of them
// have. Stages with one number of ranks each, and with numbers of their own, one search for each way to level devices.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "topology/fleet/internal.h"

#define NEAR                                                                                                           \
	2.0 // times: two devices that differ by less may share layers; by less than twice as much where these are too few, and so on:
#define FAR 1e6 // what a measurement is worth on a busy machine is left to what comes of the plan
#define CLOSE 1.25 // times: the first that is tried where stages may differ, so that a strong device stays what it is
#define GAIN                                                                                                           \
	1.2 // times: what sharing layers has to bring, for their sums wait for the last of the ranks in every layer
#define BETTER 1.001 // times: what numbers of ranks that differ have to bring, so that it is no accident of a search
#define NAMED 4u
#define GROUPS 5u // of devices, where numbers of ranks may differ: the search is slow with many kinds

/* ---- devices that are nearly equal ---- */

static bool near(double a, double b, double times)
{
	return a <= b * times && b <= a * times;
}

static bool near_rate(double a, double b, double times) // 0: not measured
{
	return a <= 0 || b <= 0 || near(a, b, times);
}

static bool alike(const struct fleet_device *a, const struct fleet_device *b, double times)
{
	const struct topology_bandwidths *x = &a->bandwidths, *y = &b->bandwidths;
	const uint64_t sizes[][2] = {{a->memory_bytes, b->memory_bytes}, {a->reserve_bytes, b->reserve_bytes},
		{a->host_memory_bytes, b->host_memory_bytes}, {a->weights_budget_bytes, b->weights_budget_bytes},
		{a->kv_budget_bytes, b->kv_budget_bytes}, {a->workspace_budget_bytes, b->workspace_budget_bytes}};
	bool same = a->card == b->card && strcmp(a->rack, b->rack) == 0;
	for (size_t i = 0; i < base_array_size(sizes) && same; i++)
		same = near((double)sizes[i][0], (double)sizes[i][1], times);
	return same && near_rate(a->pcie_bytes_per_s, b->pcie_bytes_per_s, times) &&
	       near_rate(x->drive_bytes_per_s, y->drive_bytes_per_s, times) &&
	       near_rate(x->memory_bytes_per_s, y->memory_bytes_per_s, times) &&
	       near_rate(x->compute_macs_per_s, y->compute_macs_per_s, times);
}

static void lower(uint64_t *a, uint64_t b)
{
	*a = b < *a ? b : *a;
}

static void lower_rate(double *a, double b)
{
	*a = b > 0 && b < *a ? b : *a; // what was not measured stays so
}

/* What both can count on, of what b has, into a. */
static void level(struct fleet_device *a, const struct fleet_device *b)
{
	lower(&a->memory_bytes, b->memory_bytes);
	lower(&a->host_memory_bytes, b->host_memory_bytes);
	lower(&a->weights_budget_bytes, b->weights_budget_bytes);
	lower(&a->kv_budget_bytes, b->kv_budget_bytes);
	lower(&a->workspace_budget_bytes, b->workspace_budget_bytes);
	a->reserve_bytes = b->reserve_bytes > a->reserve_bytes ? b->reserve_bytes : a->reserve_bytes;
	lower_rate(&a->pcie_bytes_per_s, b->pcie_bytes_per_s);
	lower_rate(&a->bandwidths.drive_bytes_per_s, b->bandwidths.drive_bytes_per_s);
	lower_rate(&a->bandwidths.memory_bytes_per_s, b->bandwidths.memory_bytes_per_s);
	lower_rate(&a->bandwidths.compute_macs_per_s, b->bandwidths.compute_macs_per_s);
}

/* Groups of devices that are like their first one, whose number is the group's; returns how many the largest has, 0
 * without memory. */
static uint32_t level_all(const struct fleet_input *in, double times, struct fleet_device *out, uint32_t *ret_leader)
{
	uint32_t largest = 0;
	_cleanup_free_ uint32_t *size = calloc(in->devices_count, sizeof *size);
	if (!size)
		return 0;
	for (uint32_t i = 0; i < in->devices_count; i++) {
		uint32_t k = 0;
		while (k < i && !(ret_leader[k] == k && alike(&in->devices[k], &in->devices[i], times)))
			k++;
		ret_leader[i] = k;
		largest = ++size[k] > largest ? size[k] : largest;
	}
	for (uint32_t i = 0; i < in->devices_count; i++) {
		out[i] = in->devices[i];
		for (uint32_t k = 0; k < in->devices_count; k++) {
			if (ret_leader[k] == ret_leader[i])
				level(&out[i], &in->devices[k]);
		}
	}
	return largest;
}

/* Each device as it is, but for those that the plan has in one stage. */
static void level_stages(const struct fleet_input *in, const struct fleet_plan *p, struct fleet_device *out)
{
	memcpy(out, in->devices, in->devices_count * sizeof *out);
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		const struct fleet_stage *s = &p->stages[p->ranks[i].stage];
		for (uint32_t k = s->first_rank; k < s->first_rank + s->tp; k++)
			level(&out[p->ranks[i].device], &in->devices[p->ranks[k].device]);
	}
}

/* ---- plans ---- */

struct candidate {
	struct fleet_plan plan;
	struct fleet_device *devices; // (devices_count): that it was made with; NULL: there is no plan
	char reason[sizeof((struct fleet_alternative *)0)->reason];
};

struct levelling { // what all of it needs
	const struct fleet_input *in;
	uint32_t least, most; // ranks of a stage
	struct fleet_device *devices; // (devices_count)
	uint32_t *leader, *leader_before; // (devices_count)
	struct candidate even[FLEET_TP + 1], uneven; // by the number of ranks; with numbers that may differ
};

/* Kept if it is better than what t has. */
static int build(const struct fleet_input *given, const struct fleet_device *devices, uint32_t least, uint32_t most,
	struct candidate *t, struct base_error *e)
{
	struct fleet_input in = *given;
	struct fleet_plan p = {0};
	in.devices = devices;
	in.tp_least = least;
	in.tp_most = most;
	int status = fleet_plan_build(&in, &p, e);
	if (status) {
		if (!t->devices)
			snprintf(t->reason, sizeof t->reason, "does not fit");
		return status;
	}
	if (t->devices && fleet_plan_period(given, &p) >= fleet_plan_period(given, &t->plan)) {
		fleet_plan_finish(&p);
		return 0;
	}
	if (!t->devices)
		t->devices = calloc(given->devices_count, sizeof *t->devices);
	if (!t->devices) {
		fleet_plan_finish(&p);
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	}
	memcpy(t->devices, devices, given->devices_count * sizeof *devices);
	fleet_plan_finish(&t->plan);
	t->plan = p;
	return 0;
}

/* Devices as `ranks` of them that are most alike can count on; returns how many are alike. */
static uint32_t level_for(struct levelling *l, uint32_t ranks)
{
	uint32_t largest = level_all(l->in, NEAR, l->devices, l->leader);
	for (double times = 2 * NEAR; largest && largest < ranks && times < FAR; times *= 2)
		largest = level_all(l->in, times, l->devices, l->leader);
	return largest;
}

/* The same number of ranks in every stage. */
static int try_even(struct levelling *l, uint32_t ranks, struct base_error *e)
{
	struct candidate *t = &l->even[ranks];
	if (!fleet_tp_possible(l->in->model, ranks, t->reason, sizeof t->reason))
		return base_error_set(e, -EINVAL, "%" PRIu32 " ranks in a stage: %s", ranks, t->reason);
	if (ranks == 1)
		return build(l->in, l->in->devices, 1, 1, t, e);
	uint32_t largest = level_for(l, ranks);
	if (ranks > largest) {
		snprintf(t->reason, sizeof t->reason, "there are %" PRIu32 " devices that are alike, not %" PRIu32,
			largest, ranks);
		return base_error_set(e, -ENOMEM, "%" PRIu32 " ranks in a stage: %s", ranks, t->reason);
	}
	return build(l->in, l->devices, ranks, ranks, t, e);
}

/* Numbers of ranks that may differ: with devices levelled more and more, once there are few groups, as long as that makes
 * other ones. A device that turns out to share nothing, or with others than it was levelled with, has more than it was
 * planned with: so once more with what comes of that. */
static void try_uneven(struct levelling *l)
{
	uint32_t count = l->in->devices_count, largest = 0, groups;
	size_t bytes = count * sizeof *l->leader;
	struct candidate *t = &l->uneven;
	memset(l->leader_before, 0xff, bytes);
	for (double times = CLOSE; largest < count && times < FAR; times = times < NEAR ? NEAR : 2 * times) {
		largest = level_all(l->in, times, l->devices, l->leader);
		groups = 0;
		for (uint32_t i = 0; i < count; i++)
			groups += l->leader[i] == i;
		if (!largest)
			break;
		if (largest < 2 || groups > GROUPS || memcmp(l->leader, l->leader_before, bytes) == 0)
			continue;
		memcpy(l->leader_before, l->leader, bytes);
		build(l->in, l->devices, l->least, l->most, t, NULL);
	}
	if (!t->devices || t->plan.stages_count + t->plan.left_out_count > GROUPS)
		return;
	level_stages(l->in, &t->plan, l->devices);
	build(l->in, l->devices, l->least, l->most, t, NULL);
}

static bool differs(const struct fleet_plan *p)
{
	for (uint32_t i = 1; i < p->stages_count; i++) {
		if (p->stages[i].tp != p->stages[0].tp)
			return true;
	}
	return false;
}

/* ---- what is told of the others ---- */

static void add_other(const struct fleet_input *in, const struct candidate *t, const char *name, struct fleet_plan *p)
{
	struct fleet_alternative *a = fleet_alternative_add(p, "%s", name);
	if (!a)
		return;
	if (!t->devices) {
		memcpy(a->reason, t->reason, sizeof a->reason);
		return;
	}
	a->tokens_per_s_one = t->plan.one.tokens_per_s;
	a->tokens_per_s_full = t->plan.full.tokens_per_s;
	snprintf(a->reason, sizeof a->reason,
		fleet_plan_period(in, &t->plan) < fleet_plan_period(in, p)
			? "faster by less than sums in every layer have to bring"
			: "slower");
}

static void add_others(const struct levelling *l, const struct candidate *best, struct fleet_plan *p)
{
	char name[sizeof p->alternatives[0].name];
	uint32_t named = 0;
	if (best != &l->uneven && differs(&l->uneven.plan)) {
		struct base_text text = {name, sizeof name};
		for (uint32_t i = 0; i < l->uneven.plan.stages_count; i++)
			base_text_add(&text, "%s%" PRIu32, i ? "," : "", l->uneven.plan.stages[i].tp);
		base_text_add(&text, " ranks in its stages");
		add_other(l->in, &l->uneven, name, p);
	}
	for (uint32_t ranks = l->least; ranks <= l->most && named < NAMED; ranks++) {
		if (best == &l->even[ranks])
			continue;
		named++;
		snprintf(name, sizeof name, "%" PRIu32 " rank%s in every stage", ranks, ranks == 1 ? "" : "s");
		add_other(l->in, &l->even[ranks], name, p);
	}
}

/* ---- the choice ---- */

/* Sharing layers has to bring a fifth against not doing it. */
static bool is_better(const struct levelling *l, const struct candidate *t, const struct candidate *best)
{
	if (!t->devices || !best)
		return t->devices;
	double least = best == &l->even[1] ? GAIN : t == &l->uneven ? BETTER : 1;
	return fleet_plan_period(l->in, &t->plan) * least < fleet_plan_period(l->in, &best->plan);
}

static int choose(
	struct levelling *l, struct fleet_device *ret_devices, struct fleet_plan *ret_plan, struct base_error *e)
{
	struct candidate *best = NULL;
	int status = 0;
	for (uint32_t t = l->least; t <= l->most; t++) {
		int r = try_even(l, t, t == l->least ? e : NULL);
		status = t == l->least ? r : status;
		if (is_better(l, &l->even[t], best))
			best = &l->even[t];
	}
	if (l->least < l->most && !l->in->tp_even)
		try_uneven(l);
	if (is_better(l, &l->uneven, best))
		best = &l->uneven;
	if (!best)
		return status;
	struct fleet_plan p = best->plan;
	best->plan = (struct fleet_plan){0};
	if (l->least < l->most)
		add_others(l, best, &p);
	memcpy(ret_devices, best->devices, l->in->devices_count * sizeof *ret_devices);
	*ret_plan = p;
	return 0;
}

int fleet_plan_build_levelled(const struct fleet_input *in, struct fleet_device *ret_devices,
	struct fleet_plan *ret_plan, struct base_error *e)
{
	if (in->map == FLEET_MAP_EXPLICIT) { // it says who shares what
		memcpy(ret_devices, in->devices, in->devices_count * sizeof *ret_devices);
		return fleet_plan_build(in, ret_plan, e);
	}
	uint32_t most = in->tp_most && in->tp_most < FLEET_TP ? in->tp_most : FLEET_TP, count = in->devices_count + 1;
	_cleanup_free_ struct levelling *l = calloc(1, sizeof *l);
	_cleanup_free_ struct fleet_device *devices = calloc(count, sizeof *devices);
	_cleanup_free_ uint32_t *leader = calloc(count, sizeof *leader), *before = calloc(count, sizeof *before);
	if (!l || !devices || !leader || !before)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	l->in = in;
	l->least = in->tp_least ? in->tp_least : 1;
	l->most = most > in->devices_count ? in->devices_count : most;
	l->most = l->most < l->least ? l->least : l->most;
	l->devices = devices;
	l->leader = leader;
	l->leader_before = before;
	int status = l->least <= FLEET_TP ? choose(l, ret_devices, ret_plan, e)
					  : base_error_set(e, -EINVAL, "plan: more than %u ranks in a stage", FLEET_TP);
	for (uint32_t t = 0; t <= FLEET_TP; t++) {
		fleet_plan_finish(&l->even[t].plan);
		free(l->even[t].devices);
	}
	fleet_plan_finish(&l->uneven.plan);
	free(l->uneven.devices);
	return status;
}
