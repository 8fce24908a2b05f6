// SPDX-License-Identifier: Apache-2.0
// Why nothing fits, and what would: found by asking the search again with more memory, or with a shorter context.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/text.h"
#include "base/units.h"
#include "topology/fleet/internal.h"

#define MOST_MORE (1ull << 44)
#define GRAIN (1ull << 20) // what is asked for is this exact

struct trial {
	const struct fleet_work *f;
	struct fleet_device *devices; // copies
	struct fleet_cut *stages;
	uint32_t stages_count;
};

// Every budget that is set grows too: whichever is too small.
static bool fits_with(struct trial *t, uint64_t more, uint32_t context)
{
	struct fleet_model model = *t->f->in->model;
	struct fleet_input in = *t->f->in;
	struct fleet_work f = *t->f;
	model.context_tokens = context;
	in.model = &model;
	in.devices = t->devices;
	in.objective = FLEET_OBJECTIVE_ONE;
	f.in = &in;
	f.kv_blocks = fleet_blocks_of_sequence(&model);
	for (uint32_t i = 0; i < in.devices_count; i++) {
		const struct fleet_device *from = &t->f->in->devices[i];
		struct fleet_device *d = &t->devices[i];
		d->memory_bytes = from->memory_bytes + more;
		d->weights_budget_bytes = from->weights_budget_bytes ? from->weights_budget_bytes + more : 0;
		d->kv_budget_bytes = from->kv_budget_bytes ? from->kv_budget_bytes + more : 0;
		d->workspace_budget_bytes = from->workspace_budget_bytes ? from->workspace_budget_bytes + more : 0;
	}
	struct fleet_limits limits = fleet_limits_of(&in);
	limits.quick = true;
	struct fleet_found found;
	if (fleet_search(&f, &limits, t->stages, &found) < 0)
		return false;
	t->stages_count = found.count;
	return true;
}

static uint64_t memory_that_fits(struct trial *t, uint32_t context)
{
	uint64_t high = GRAIN, low = 0;
	while (high < MOST_MORE && !fits_with(t, high, context))
		high *= 2;
	if (high >= MOST_MORE)
		return 0;
	low = high / 2;
	while (high - low > GRAIN) {
		uint64_t middle = low + (high - low) / 2;
		if (fits_with(t, middle, context))
			high = middle;
		else
			low = middle;
	}
	return fits_with(t, high, context) ? high : 0;
}

static uint32_t context_that_fits(struct trial *t)
{
	const struct fleet_model *m = t->f->in->model;
	uint32_t low = 0, high = m->context_tokens, step = m->kv_block_tokens ? m->kv_block_tokens : 1;
	if (!m->kv_block_bytes || !fits_with(t, 0, step))
		return 0;
	for (low = step; high - low > step;) {
		uint32_t middle = low + (high - low) / 2 / step * step;
		middle = middle == low ? low + step : middle;
		if (fits_with(t, 0, middle))
			low = middle;
		else
			high = middle;
	}
	return low;
}

// Each device of the placement that would fit with its share, by what it lacks.
static void say_devices(struct trial *t, struct base_text *text)
{
	const struct fleet_input *in = t->f->in;
	unsigned said = 0;
	for (uint32_t i = 0; i < t->stages_count; i++) {
		const struct fleet_cut *s = &t->stages[i];
		for (uint32_t k = 0; k < s->tp; k++) {
			struct topology_plan_input x;
			fleet_share_input(t->f, s->devices[k], s->first, s->end, s->tp, t->f->kv_blocks, &x);
			uint64_t least =
				x.weights_min_bytes < x.weights_all_bytes ? x.weights_min_bytes : x.weights_all_bytes;
			uint64_t need = (x.weights_budget_bytes > least ? x.weights_budget_bytes : least) +
					x.kv_budget_bytes + x.workspace_bytes;
			if (need <= x.memory_bytes)
				continue;
			if (said == 4) {
				base_text_add(text, ", and others");
				return;
			}
			base_text_add(text, "%s%s (layers %" PRIu32 "-%" PRIu32 ") %" PRIu64 " bytes",
				said++ ? ", " : "", in->devices[s->devices[k]].name, s->first, s->end - 1,
				need - x.memory_bytes);
		}
	}
	if (!said)
		base_text_add(text, "a budget that is set");
}

int fleet_refuse(const struct fleet_work *f, struct base_error *e)
{
	const struct fleet_input *in = f->in;
	char message[BASE_ERROR_BYTES - 1], a[BASE_UNITS_TEXT_BYTES];
	struct base_text text = {message, sizeof message};
	if (in->devices_count == 1 && in->entries_count == 0) { // its own words say it best
		struct fleet_run run;
		int r = fleet_run_cost(f, 0, 0, f->layers, 1, &run, NULL, e);
		return r < 0 ? r : -ENOMEM;
	}
	struct trial t = {.f = f};
	_cleanup_free_ struct fleet_device *devices = NULL;
	_cleanup_free_ struct fleet_cut *stages = calloc(FLEET_STAGES, sizeof *stages);
	devices = calloc(in->devices_count, sizeof *devices);
	if (!devices || !stages || !e)
		return base_error_set(e, -ENOMEM, "does not fit");
	memcpy(devices, in->devices, in->devices_count * sizeof *devices);
	t.devices = devices;
	t.stages = stages;
	uint64_t more = memory_that_fits(&t, in->model->context_tokens);
	if (!more)
		return base_error_set(e, -ENOMEM, "does not fit: no amount of memory would do; the pins leave no way");
	base_text_add(&text, "does not fit: short on ");
	say_devices(&t, &text);
	base_text_add(&text, "; would help: %s more on each device", base_units_format_bytes(more, a));
	uint32_t context = context_that_fits(&t);
	if (context)
		base_text_add(&text, ", or a context of %" PRIu32 " tokens instead of %" PRIu32, context,
			in->model->context_tokens);
	if (fleet_sequences(in) > 1)
		base_text_add(&text, ", or fewer sequences (workspace)");
	base_text_add(&text, ", or one device more");
	return base_error_set(e, -ENOMEM, "%s", message);
}
