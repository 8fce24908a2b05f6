// SPDX-License-Identifier: Apache-2.0
// Plans of devices that stand in several racks: with them, and as if there were none.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "topology/fleet/internal.h"

#define GAIN 1.2 // times: what leaving racks aside has to bring, as sharing layers has

static bool in_several(const struct fleet_input *in)
{
	for (uint32_t i = 1; i < in->devices_count; i++) {
		if (strcmp(in->devices[i].rack, in->devices[0].rack) != 0)
			return true;
	}
	return false;
}

// One rack, whose links are the slowest of all.
static struct fleet_input flatten(const struct fleet_input *in, struct fleet_device *devices)
{
	struct fleet_input flat = *in;
	struct fleet_link *slowest = &flat.links[FLEET_LINK_CLUSTER];
	for (uint32_t i = 0; i < in->devices_count; i++) {
		devices[i] = in->devices[i];
		devices[i].rack[0] = '\0';
	}
	for (int c = FLEET_LINK_RACK; c < FLEET_LINK_CLASSES; c++) {
		const struct fleet_link *l = &in->links[c];
		if (l->bytes_per_s <= 0)
			continue;
		slowest->latency_ns = l->latency_ns > slowest->latency_ns ? l->latency_ns : slowest->latency_ns;
		if (slowest->bytes_per_s <= 0 || l->bytes_per_s < slowest->bytes_per_s)
			slowest->bytes_per_s = l->bytes_per_s;
	}
	flat.links[FLEET_LINK_RACK] = (struct fleet_link){0};
	flat.devices = devices;
	return flat;
}

// other: NULL, there is none.
static void add_other(struct fleet_plan *p, const char *name, const struct fleet_plan *other, const char *reason)
{
	struct fleet_alternative *a = fleet_alternative_add(p, "%s", name);
	if (!a)
		return;
	snprintf(a->reason, sizeof a->reason, "%s", reason);
	if (other) {
		a->tokens_per_s_one = other->one.tokens_per_s;
		a->tokens_per_s_full = other->full.tokens_per_s;
	}
}

int fleet_plan_build_racks(const struct fleet_input *in, struct fleet_device *ret_devices, struct fleet_plan *ret_plan,
	struct base_error *e)
{
	struct fleet_plan p = {0}, other = {0};
	int status = fleet_plan_build_levelled(in, ret_devices, &p, e);
	bool fits = status == 0, open = in->map == FLEET_MAP_AUTO; // other maps say themselves who shares
	if ((status && status != -ENOMEM) || (fits && !open) || in->tp_most == 1 || !in_several(in)) {
		if (fits)
			*ret_plan = p;
		return status;
	}
	_cleanup_free_ struct fleet_device *devices = calloc(2 * (size_t)in->devices_count, sizeof *devices);
	if (!devices) {
		fleet_plan_finish(&p);
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	}
	struct fleet_device *planned = devices + in->devices_count;
	struct fleet_input flat = flatten(in, devices);
	if (fits && flat.tp_least < 2)
		flat.tp_least = 2; // whole layers gain nothing by slower links
	status = fleet_plan_build_levelled(&flat, planned, &other, fits ? NULL : e);
	if (status && !fits)
		return status;
	bool aside = !fits || (!status && fleet_plan_period(in, &other) * GAIN < fleet_plan_period(in, &p));
	if (aside) {
		memcpy(ret_devices, planned, in->devices_count * sizeof *planned);
		add_other(&other, "parts of a stage in one rack", fits ? &p : NULL, fits ? "slower" : "does not fit");
		fleet_plan_finish(&p);
		*ret_plan = other;
		return 0;
	}
	if (!status)
		add_other(&p, "racks left aside", &other,
			fleet_plan_period(in, &other) < fleet_plan_period(in, &p)
				? "faster by less than a fifth"
				: "slower: every link counts as the slowest");
	fleet_plan_finish(&other);
	*ret_plan = p;
	return 0;
}
