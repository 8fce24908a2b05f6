// SPDX-License-Identifier: Apache-2.0
// Plans whose stages all have the same number of ranks: one search for each number, and the best of them.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "topology/fleet/internal.h"

#define NEAR                                                                                                           \
	2.0 // times: two devices that differ by less may share layers; by less than twice as much where these are too few, and so on:
#define FAR 1e6 // what a measurement is worth on a busy machine is left to what comes of the plan
#define GAIN                                                                                                           \
	1.2 // times: what sharing layers has to bring, for their sums wait for the last of the ranks in every layer
#define NAMED 4u

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

/* Groups of devices that are like their first one; returns how many the largest has. */
static uint32_t level_all(const struct fleet_input *in, double times, struct fleet_device *out)
{
	uint32_t largest = 0;
	_cleanup_free_ uint32_t *leader = calloc(in->devices_count, sizeof *leader);
	_cleanup_free_ uint32_t *size = calloc(in->devices_count, sizeof *size);
	if (!leader || !size)
		return 0;
	for (uint32_t i = 0; i < in->devices_count; i++) {
		uint32_t k = 0;
		while (k < i && !(leader[k] == k && alike(&in->devices[k], &in->devices[i], times)))
			k++;
		leader[i] = k;
		largest = ++size[k] > largest ? size[k] : largest;
	}
	for (uint32_t i = 0; i < in->devices_count; i++) {
		out[i] = in->devices[i];
		for (uint32_t k = 0; k < in->devices_count; k++) {
			if (leader[k] == leader[i])
				level(&out[i], &in->devices[k]);
		}
	}
	return largest;
}

/* ---- a plan for each number of ranks ---- */

struct
try {
	struct fleet_plan plan;
	int status;
	char reason[sizeof((struct fleet_alternative *)0)->reason];
};

static double period(const struct fleet_input *in, const struct fleet_plan *p)
{
	return in->objective == FLEET_OBJECTIVE_ONE ? p->one.period_ns : p->full.period_ns;
}

static int build(const struct fleet_input *given, const struct fleet_device *devices, uint32_t ranks, struct try *t,
	struct base_error *e)
{
	struct fleet_input in = *given;
	in.devices = devices;
	in.tp_least = in.tp_most = ranks;
	t->status = fleet_plan_build(&in, &t->plan, e);
	if (t->status)
		snprintf(t->reason, sizeof t->reason, "does not fit");
	return t->status;
}

/* Devices as `ranks` of them that are most alike can count on; returns how many are alike. */
static uint32_t level_for(const struct fleet_input *in, uint32_t ranks, struct fleet_device *out)
{
	uint32_t largest = level_all(in, NEAR, out);
	for (double times = 2 * NEAR; largest && largest < ranks && times < FAR; times *= 2)
		largest = level_all(in, times, out);
	return largest;
}

static int try_ranks(const struct fleet_input *in, struct fleet_device *levelled, uint32_t ranks, struct try *t,
	struct base_error *e)
{
	if (!fleet_tp_possible(in->model, ranks, t->reason, sizeof t->reason))
		return t->status = base_error_set(e, -EINVAL, "%" PRIu32 " ranks in a stage: %s", ranks, t->reason);
	if (ranks == 1)
		return build(in, in->devices, ranks, t, e);
	uint32_t largest = level_for(in, ranks, levelled);
	if (ranks > largest) {
		snprintf(t->reason, sizeof t->reason, "there are %" PRIu32 " devices that are alike, not %" PRIu32,
			largest, ranks);
		return t->status = base_error_set(e, -ENOMEM, "%" PRIu32 " ranks in a stage: %s", ranks, t->reason);
	}
	return build(in, levelled, ranks, t, e);
}

static void add_others(const struct fleet_input *in, const struct try *tries, uint32_t least, uint32_t most,
	uint32_t best, struct fleet_plan *p)
{
	uint32_t named = 0;
	for (uint32_t ranks = least; ranks <= most && named < NAMED; ranks++) {
		const struct try *t = &tries[ranks];
		if (ranks == best || p->alternatives_count == FLEET_ALTERNATIVES)
			continue;
		struct fleet_alternative *a = &p->alternatives[p->alternatives_count++];
		*a = (struct fleet_alternative){0};
		named++;
		snprintf(a->name, sizeof a->name, "%" PRIu32 " rank%s in every stage", ranks, ranks == 1 ? "" : "s");
		if (t->status) {
			memcpy(a->reason, t->reason, sizeof a->reason);
			continue;
		}
		a->tokens_per_s_one = t->plan.one.tokens_per_s;
		a->tokens_per_s_full = t->plan.full.tokens_per_s;
		snprintf(a->reason, sizeof a->reason,
			period(in, &t->plan) < period(in, p) ? "faster by less than sums in every layer have to bring"
							     : "slower");
	}
}

int fleet_plan_build_even(const struct fleet_input *in, struct fleet_device *ret_devices, struct fleet_plan *ret_plan,
	struct base_error *e)
{
	uint32_t least = in->tp_least ? in->tp_least : 1, best = 0;
	uint32_t most = in->tp_most && in->tp_most < FLEET_TP ? in->tp_most : FLEET_TP;
	_cleanup_free_ struct fleet_device *levelled = calloc(in->devices_count + 1, sizeof *levelled);
	_cleanup_free_ struct try *tries = calloc(FLEET_TP + 1, sizeof *tries);
	if (!tries || !levelled)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	most = most > in->devices_count ? in->devices_count : most;
	most = most < least ? least : most;
	for (uint32_t t = least; t <= most && t <= FLEET_TP; t++) {
		if (try_ranks(in, levelled, t, &tries[t], t == least ? e : NULL) < 0)
			continue;
		if (!best || period(in, &tries[t].plan) * (best == 1 ? GAIN : 1) < period(in, &tries[best].plan))
			best = t;
	}
	if (!best)
		return tries[least].status;
	if (least < most)
		add_others(in, tries, least, most, best, &tries[best].plan);
	*ret_plan = tries[best].plan;
	tries[best].plan = (struct fleet_plan){0};
	for (uint32_t t = 0; t <= FLEET_TP; t++)
		fleet_plan_finish(&tries[t].plan);
	if (best == 1)
		memcpy(ret_devices, in->devices, in->devices_count * sizeof *ret_devices);
	else
		level_for(in, best, ret_devices);
	return 0;
}
