// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <string.h>

#include "base/units.h"
#include "topology/fleet/internal.h"

static void print_cell(uint64_t bytes, FILE *out)
{
	char text[BASE_UNITS_TEXT_BYTES];
	fprintf(out, "  %-9s", bytes ? base_units_format_bytes(bytes, text) : "-");
}

static void print_rank(const struct fleet_input *in, const struct fleet_plan *p, uint32_t number, int width, FILE *out)
{
	const struct fleet_rank *r = &p->ranks[number];
	const struct fleet_stage *s = &p->stages[r->stage];
	const struct fleet_device *d = &in->devices[r->device];
	uint64_t used = r->share.weights_bytes + r->share.kv_bytes + r->share.workspace_bytes + d->reserve_bytes +
			in->model->process_bytes;
	char layers[32], tp[24];
	snprintf(layers, sizeof layers, "%" PRIu32 "-%" PRIu32, s->first_layer, s->first_layer + s->layers - 1);
	snprintf(tp, sizeof tp, "%" PRIu32 "/%" PRIu32, r->tp_rank, s->tp);
	fprintf(out, "%-5" PRIu32 "  %-5s  %-9s  %-*s", r->stage, tp, layers, width, d->name);
	print_cell(r->share.hot_bytes, out);
	print_cell(r->share.host_bytes, out);
	print_cell(r->share.cold_bytes, out);
	print_cell(r->share.slots_bytes, out);
	print_cell(r->share.kv_bytes, out);
	print_cell(r->share.workspace_bytes, out);
	print_cell(d->memory_bytes > used ? d->memory_bytes - used : 0, out);
	if (number + 1 < p->ranks_count && p->ranks[number + 1].stage != r->stage)
		fprintf(out, "  %s", fleet_link_class_name(s->link_next));
	else if (s->tp > 1 && r->tp_rank + 1 < s->tp)
		fprintf(out, "  (%s)", fleet_link_class_name(s->link));
	else
		fprintf(out, "  -");
	fprintf(out, "\n");
}

static void print_stage_times(const struct fleet_input *in, const struct fleet_plan *p, FILE *out)
{
	struct fleet_work f = {.in = in, .layers = in->model->layers_count};
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES];
	char title[40];
	snprintf(title, sizeof title, "MICRO-BATCH OF %" PRIu32, p->full.positions);
	fprintf(out, "\nSTAGE  ONE STREAM  %-16s  BINDS    HOP\n", title);
	for (uint32_t i = 0; i < p->stages_count; i++) {
		struct fleet_stage_time one = fleet_time_stage(&f, p, i, 1),
					full = fleet_time_stage(&f, p, i, p->full.positions);
		fprintf(out, "%-5" PRIu32 "  %-10s  %-16s  %-7s  %s\n", i,
			base_units_format_duration((uint64_t)one.active, a),
			base_units_format_duration((uint64_t)full.service, b), topology_resource_name(full.binding),
			i + 1 < p->stages_count ? base_units_format_duration((uint64_t)p->stages[i].hop_ns, c) : "-");
	}
}

static const char *binding_device(
	const struct fleet_input *in, const struct fleet_plan *p, const struct fleet_timing *t)
{
	return in->devices[p->ranks[p->stages[t->binding_stage].first_rank].device].name;
}

static void print_prediction(const struct fleet_input *in, const struct fleet_plan *p, FILE *out)
{
	uint32_t sequences = in->sequences ? in->sequences : 1;
	if (!p->measured) {
		fprintf(out, "predicted: %s\n", p->lift);
		return;
	}
	fprintf(out, "predicted: %.2f tokens/s with 1 stream (%s of %s)", p->one.tokens_per_s,
		topology_resource_name(p->one.binding), binding_device(in, p, &p->one));
	fprintf(out, ", %.2f tokens/s with %" PRIu32 " in %" PRIu32 " micro-batch%s (%s of %s)\n", p->full.tokens_per_s,
		sequences, p->full.micro_batches, p->full.micro_batches == 1 ? "" : "es",
		topology_resource_name(p->full.binding), binding_device(in, p, &p->full));
	fprintf(out, "to lift it: %s\n", p->lift);
}

static void print_alternatives(const struct fleet_plan *p, FILE *out)
{
	if (p->alternatives_count == 0)
		return;
	fprintf(out, "\nNOT CHOSEN                  ONE       FULL      WHY (with as many KV blocks)\n");
	for (uint32_t i = 0; i < p->alternatives_count; i++) {
		const struct fleet_alternative *a = &p->alternatives[i];
		char one[24] = "-", full[24] = "-";
		if (a->tokens_per_s_one > 0)
			snprintf(one, sizeof one, "%.2f", a->tokens_per_s_one);
		if (a->tokens_per_s_full > 0)
			snprintf(full, sizeof full, "%.2f", a->tokens_per_s_full);
		fprintf(out, "%-26s  %-8s  %-8s  %s\n", a->name, one, full, a->reason);
	}
}

void fleet_plan_explain(const struct fleet_input *in, const struct fleet_plan *p, FILE *out)
{
	int width = 6;
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		int length = (int)strlen(in->devices[p->ranks[i].device].name);
		width = length > width ? length : width;
	}
	fprintf(out,
		"STAGE  TP     LAYERS     %-*s  HOT        PINNED     NVME       RING       KV         WORKSPACE  FREE "
		"      LINK\n",
		width, "DEVICE");
	for (uint32_t i = 0; i < p->ranks_count; i++)
		print_rank(in, p, i, width, out);
	uint64_t blocks = fleet_blocks_of_sequence(in->model);
	if (blocks)
		fprintf(out, "kv: %" PRIu32 " blocks, %.1f sequences of %" PRIu32 " tokens\n", p->kv_blocks,
			(double)p->kv_blocks / (double)blocks, in->model->context_tokens);
	print_stage_times(in, p, out);
	fprintf(out, "\n");
	print_prediction(in, p, out);
	if (in->map == FLEET_MAP_AUTO && in->devices_count > 1)
		fprintf(out, "%" PRIu32 " of %" PRIu32 " devices used; %s\n", p->ranks_count, in->devices_count,
			p->order_exact ? "no other order or cut is faster by these figures"
				       : "cuts are exact, the order of the devices is the best of those tried");
	print_alternatives(p, out);
}

static void sum_rank(const struct fleet_work *f, const struct fleet_plan *p, uint32_t rank,
	struct topology_plan_input *in, struct topology_plan *plan)
{
	const struct fleet_rank *r = &p->ranks[rank];
	const struct fleet_stage *s = &p->stages[r->stage];
	const struct topology_bandwidths *w = &f->given->devices[r->device].bandwidths;
	struct topology_plan_input x;
	fleet_share_input(f, r->device, s->first_layer, s->first_layer + s->layers, s->tp, 0, &x);
	in->pass_bytes += x.pass_bytes;
	in->weights_all_bytes += x.weights_all_bytes;
	in->weights_min_bytes += x.weights_min_bytes;
	in->slots_bytes += x.slots_bytes;
	in->rows_bytes += x.rows_bytes;
	in->workspace_bytes += x.workspace_bytes;
	in->kv_block_bytes += x.kv_block_bytes;
	in->token_macs += x.token_macs;
	in->memory_bytes += x.memory_bytes;
	uint64_t *const sums[] = {&in->weights_budget_bytes, &in->kv_budget_bytes, &in->workspace_budget_bytes};
	const uint64_t budgets[] = {x.weights_budget_bytes, x.kv_budget_bytes, x.workspace_budget_bytes};
	for (size_t i = 0; i < 3; i++)
		*sums[i] = budgets[i] && (*sums[i] || !rank) ? *sums[i] + budgets[i] : 0;
	in->bandwidths.drive_bytes_per_s += w->drive_bytes_per_s;
	in->bandwidths.memory_bytes_per_s += w->memory_bytes_per_s;
	in->bandwidths.compute_macs_per_s += w->compute_macs_per_s;
	plan->hot_bytes += r->share.hot_bytes;
	plan->cold_bytes += r->share.cold_bytes;
	plan->host_bytes += r->share.host_bytes;
	plan->slots_bytes += r->share.slots_bytes;
	plan->weights_bytes += r->share.weights_bytes;
	plan->kv_bytes += p->kv_blocks * r->kv_block_bytes;
	plan->workspace_bytes += r->share.workspace_bytes;
	/* Drives work at the same time; memory and compute of one stream do so one after the other. */
	if (r->share.pass_ns_disk > plan->pass_ns_disk)
		plan->pass_ns_disk = r->share.pass_ns_disk;
	plan->pass_ns_memory += r->share.pass_ns_memory / s->tp;
	plan->token_ns_compute += r->share.token_ns_compute / s->tp;
}

int fleet_plan_sum(const struct fleet_input *input, const struct fleet_plan *p, struct topology_plan_input *ret_input,
	struct topology_plan *ret_plan)
{
	struct fleet_work f;
	int status = fleet_work_init(&f, input, NULL);
	if (status == 0) {
		*ret_input = (struct topology_plan_input){.kv_block_tokens = input->model->kv_block_tokens,
			.context_tokens = input->model->context_tokens,
			.sequences = fleet_sequences(input)};
		*ret_plan = (struct topology_plan){.epoch = p->epoch,
			.kv_blocks = p->kv_blocks,
			.tokens_per_s_one = p->one.tokens_per_s,
			.tokens_per_s_full = p->full.tokens_per_s,
			.binding_one = p->one.binding,
			.binding_full = p->full.binding};
		memcpy(ret_plan->lift, p->lift, sizeof ret_plan->lift);
		for (uint32_t i = 0; i < p->ranks_count; i++)
			sum_rank(&f, p, i, ret_input, ret_plan);
	}
	fleet_work_finish(&f);
	return status;
}
