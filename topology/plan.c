// SPDX-License-Identifier: Apache-2.0
#include "topology/plan.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/size.h"
#include "base/text.h"
#include "base/units.h"

// Where weights and KV share what is left, KV gets no more than this part of it beyond one full sequence: a hot byte is
// read in every pass, a spare KV block only when there is company.
#define KV_SHARE 4

const char *topology_resource_name(enum topology_resource r)
{
	static const char *const names[] = {"disk", "memory", "compute", "pcie", "link"};
	return (unsigned)r < sizeof names / sizeof names[0] ? names[r] : "unknown";
}

struct need { // of KV
	uint64_t one_bytes, all_bytes; // one sequence at full context, all of them
};

static int kv_need(const struct topology_plan_input *in, struct need *ret, struct base_error *e)
{
	struct need n = {0};
	if (in->kv_block_bytes == 0) { // nothing to cache
		*ret = n;
		return 0;
	}
	if (in->kv_block_tokens == 0)
		return base_error_set(e, -EINVAL, "plan: kv_block_tokens is 0");
	uint64_t blocks = base_size_div_up(in->context_tokens, in->kv_block_tokens);
	if (base_size_mul(blocks, in->kv_block_bytes, &n.one_bytes) < 0 ||
		base_size_mul(n.one_bytes, in->sequences ? in->sequences : 1, &n.all_bytes) < 0)
		return base_error_set(
			e, -EOVERFLOW, "plan: KV of %" PRIu32 " tokens is beyond 64 bits", in->context_tokens);
	*ret = n;
	return 0;
}

// The largest context whose KV fits into so many bytes.
static uint64_t context_for(const struct topology_plan_input *in, uint64_t bytes)
{
	uint64_t tokens = in->kv_block_bytes ? bytes / in->kv_block_bytes * in->kv_block_tokens : in->context_tokens;
	return tokens < in->context_tokens ? tokens : in->context_tokens;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

// One budget that the config sets and that is too small.
static int refuse_budget(const char *name, uint64_t have, uint64_t need, const char *help, struct base_error *e)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES];
	uint64_t gap = need - have;
	return base_error_set(e, -ENOMEM,
		"does not fit: %s is %s and needs at least %s: %" PRIu64 " bytes short; raise %s by %s%s", name,
		base_units_format_bytes(have, a), base_units_format_bytes(need, b), gap, name,
		base_units_format_bytes(gap, c), help);
}

// The budgets fit one by one but not all of them into the memory.
static int refuse_sum(const struct topology_plan_input *in, const struct need *kv, uint64_t weights, uint64_t kv_bytes,
	uint64_t workspace, struct base_error *e)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES], d[BASE_UNITS_TEXT_BYTES];
	uint64_t gap = weights + kv_bytes + workspace - in->memory_bytes;
	char message[BASE_ERROR_BYTES];
	struct base_text t = {message, sizeof message};
	base_text_add(&t,
		"does not fit: %" PRIu64
		" bytes short: memory.weights %s + memory.kv %s + memory.workspace %s of %s; would help:",
		gap, base_units_format_bytes(weights, a), base_units_format_bytes(kv_bytes, b),
		base_units_format_bytes(workspace, c), base_units_format_bytes(in->memory_bytes, d));
	const char *comma = "";
	if (minus(weights, in->weights_min_bytes) >= gap) {
		base_text_add(&t, " lower memory.weights by %s", base_units_format_bytes(gap, a));
		comma = ", or";
	}
	if (in->kv_budget_bytes && minus(kv_bytes, kv->one_bytes) >= gap) {
		base_text_add(&t, "%s lower memory.kv by %s (fewer sequences at a time)", comma,
			base_units_format_bytes(gap, a));
		comma = ", or";
	} else if (kv_bytes > gap && context_for(in, kv_bytes - gap) > 0) {
		base_text_add(&t, "%s lower the context from %" PRIu32 " to %" PRIu64 " tokens", comma,
			in->context_tokens,
			context_for(in, minus(kv_bytes < kv->one_bytes ? kv_bytes : kv->one_bytes, gap)));
		comma = ", or";
	}
	base_text_add(&t, "%s give it %s more memory", comma, base_units_format_bytes(gap, a));
	if (in->sequences > 1)
		base_text_add(&t, "; fewer sequences lower the workspace");
	return base_error_set(e, -ENOMEM, "%s", message);
}

static int check_budgets(const struct topology_plan_input *in, const struct need *kv, struct base_error *e)
{
	if (in->workspace_budget_bytes && in->workspace_budget_bytes < in->workspace_bytes)
		return refuse_budget("memory.workspace", in->workspace_budget_bytes, in->workspace_bytes,
			in->sequences > 1 ? ", or take fewer sequences or shorter prefill chunks" : "", e);
	if (in->weights_budget_bytes && in->weights_budget_bytes < in->weights_min_bytes)
		return refuse_budget("memory.weights", in->weights_budget_bytes, in->weights_min_bytes, "", e);
	if (in->kv_budget_bytes && in->kv_budget_bytes < kv->one_bytes) {
		char help[96];
		snprintf(help, sizeof help, ", or lower the context from %" PRIu32 " to %" PRIu64 " tokens",
			in->context_tokens, context_for(in, in->kv_budget_bytes));
		return refuse_budget("memory.kv", in->kv_budget_bytes, kv->one_bytes, help, e);
	}
	return 0;
}

// What a model cannot use does not count, and is left to others.
static void cap_budgets(struct topology_plan_input *in, const struct need *kv)
{
	if (in->weights_budget_bytes > in->weights_all_bytes)
		in->weights_budget_bytes = in->weights_all_bytes;
	if (in->kv_budget_bytes > kv->all_bytes)
		in->kv_budget_bytes = kv->all_bytes;
	if (in->workspace_budget_bytes > in->workspace_bytes)
		in->workspace_budget_bytes = in->workspace_bytes;
}

static int divide(
	const struct topology_plan_input *in, const struct need *kv, struct topology_plan *p, struct base_error *e)
{
	p->workspace_bytes = in->workspace_budget_bytes ? in->workspace_budget_bytes : in->workspace_bytes;
	uint64_t least_weights = in->weights_budget_bytes ? in->weights_budget_bytes : in->weights_min_bytes;
	uint64_t least_kv = in->kv_budget_bytes ? in->kv_budget_bytes : kv->one_bytes, sum;
	if (base_size_add(least_weights, least_kv, &sum) < 0 || base_size_add(sum, p->workspace_bytes, &sum) < 0)
		return base_error_set(e, -EOVERFLOW, "plan: the budgets together are beyond 64 bits");
	if (sum > in->memory_bytes)
		return refuse_sum(in, kv, least_weights, least_kv, p->workspace_bytes, e);
	uint64_t spare = in->memory_bytes - sum;
	p->kv_bytes = least_kv;
	if (!in->kv_budget_bytes) {
		uint64_t wanted_weights = in->weights_budget_bytes ? 0 : minus(in->weights_all_bytes, least_weights);
		uint64_t share = minus(spare, wanted_weights); // what nobody else wants
		share = share > spare / KV_SHARE ? share : spare / KV_SHARE;
		uint64_t more = kv->all_bytes - kv->one_bytes;
		more = more < share ? more : share;
		p->kv_bytes += more;
		spare -= more;
	}
	p->kv_blocks = in->kv_block_bytes ? (uint32_t)(p->kv_bytes / in->kv_block_bytes) : 0;
	if (in->kv_block_bytes && p->kv_bytes / in->kv_block_bytes > UINT32_MAX)
		return base_error_set(e, -EOVERFLOW, "plan: memory.kv has more than 2^32 blocks");
	p->kv_bytes = p->kv_blocks * in->kv_block_bytes;
	p->weights_bytes = in->weights_budget_bytes ? in->weights_budget_bytes : least_weights + spare;
	if (p->weights_bytes > in->weights_all_bytes)
		p->weights_bytes = in->weights_all_bytes;
	return 0;
}

static uint64_t slots_of(const struct topology_plan_input *in, uint64_t weights_bytes)
{
	if (!in->slots_share)
		return in->slots_bytes;
	uint64_t bytes = weights_bytes / in->slots_share / BASE_HUGE_PAGE_BYTES * BASE_HUGE_PAGE_BYTES;
	bytes = bytes < in->slots_most_bytes ? bytes : in->slots_most_bytes;
	return bytes > in->slots_bytes ? bytes : in->slots_bytes;
}

static void place(const struct topology_plan_input *in, struct topology_plan *p)
{
	p->hot_bytes = in->pass_bytes;
	// Between these two only rows of the embedding are cold, and there is no stream.
	if (p->weights_bytes < in->weights_all_bytes &&
		p->weights_bytes < base_size_align(in->pass_bytes + in->rows_bytes, BASE_HUGE_PAGE_BYTES)) {
		p->slots_bytes = slots_of(in, p->weights_bytes);
		uint64_t resident = minus(p->weights_bytes, p->slots_bytes + in->rows_bytes);
		p->hot_bytes = resident < in->pass_bytes ? resident : in->pass_bytes;
	}
	uint64_t rest = in->pass_bytes - p->hot_bytes;
	p->host_bytes = rest < in->host_memory_bytes ? rest : in->host_memory_bytes;
	p->cold_bytes = rest - p->host_bytes;
}

double topology_plan_bound_ns(const struct topology_plan *p, uint32_t positions, enum topology_resource *ret_binding)
{
	double bound = p->pass_ns_disk, compute = positions * p->token_ns_compute;
	enum topology_resource binding = TOPOLOGY_RESOURCE_DISK;
	if (p->pass_ns_memory > bound || p->pass_ns_disk == 0) {
		bound = p->pass_ns_memory;
		binding = TOPOLOGY_RESOURCE_MEMORY;
	}
	if (p->pass_ns_pcie > bound) {
		bound = p->pass_ns_pcie;
		binding = TOPOLOGY_RESOURCE_PCIE;
	}
	if (compute > bound) {
		bound = compute;
		binding = TOPOLOGY_RESOURCE_COMPUTE;
	}
	if (ret_binding)
		*ret_binding = binding;
	return bound;
}

uint64_t topology_plan_patience_ns(const struct topology_plan *p, uint32_t positions, uint64_t least_ns)
{
	double ns = 8 * topology_plan_bound_ns(p, positions, NULL) + (double)p->hot_bytes;
	return ns > (double)least_ns && ns < 0x1p62 ? (uint64_t)ns : least_ns;
}

static void predict(const struct topology_plan_input *in, struct topology_plan *p)
{
	const struct topology_bandwidths *b = &in->bandwidths;
	uint32_t full = in->sequences ? in->sequences : 1;
	if (b->drive_bytes_per_s > 0)
		p->pass_ns_disk = (double)p->cold_bytes / b->drive_bytes_per_s * 1e9;
	// A byte that is not hot crosses the memory twice: it is written, then read by the kernel.
	double rest = (double)p->cold_bytes + (double)p->host_bytes;
	if (b->memory_bytes_per_s > 0)
		p->pass_ns_memory = ((double)p->hot_bytes + 2.0 * rest) / b->memory_bytes_per_s * 1e9;
	if (in->pcie_bytes_per_s > 0)
		p->pass_ns_pcie = rest / in->pcie_bytes_per_s * 1e9;
	if (b->compute_macs_per_s > 0)
		p->token_ns_compute = (double)in->token_macs / b->compute_macs_per_s * 1e9;
	double one = topology_plan_bound_ns(p, 1, &p->binding_one),
	       all = topology_plan_bound_ns(p, full, &p->binding_full);
	p->tokens_per_s_one = one > 0 ? 1e9 / one : 0;
	p->tokens_per_s_full = all > 0 ? full * 1e9 / all : 0;
}

// How many positions a pass carries before compute binds: n* of the design.
static uint64_t free_positions(const struct topology_plan *p)
{
	double weights = p->pass_ns_disk > p->pass_ns_memory ? p->pass_ns_disk : p->pass_ns_memory;
	double n = p->token_ns_compute > 0 ? weights / p->token_ns_compute : 0;
	return n < 1e9 ? (uint64_t)n : 1000000000u;
}

static void advise(const struct topology_plan_input *in, struct topology_plan *p)
{
	struct base_text t = {p->lift, sizeof p->lift};
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	uint64_t n = free_positions(p);
	if (topology_plan_bound_ns(p, 1, NULL) <= 0) {
		base_text_add(&t, "nothing was measured: run the probe");
		return;
	}
	switch (p->binding_one) {
	case TOPOLOGY_RESOURCE_DISK:
		base_text_add(&t, "raise memory.weights by %s to %s: then all is hot",
			base_units_format_bytes(in->weights_all_bytes - p->weights_bytes, a),
			base_units_format_bytes(in->weights_all_bytes, b));
		uint64_t whole = in->weights_all_bytes + p->kv_bytes + p->workspace_bytes;
		if (whole > in->memory_bytes)
			base_text_add(
				&t, " (with %s more memory)", base_units_format_bytes(whole - in->memory_bytes, a));
		double other = p->pass_ns_memory > p->token_ns_compute ? p->pass_ns_memory : p->token_ns_compute;
		if (other > 0)
			base_text_add(&t, "; a drive of %s/s would do as well",
				base_units_format_bytes((uint64_t)((double)p->cold_bytes / other * 1e9), a));
		break;
	case TOPOLOGY_RESOURCE_MEMORY:
		base_text_add(&t, "%s", p->cold_bytes ? "keep more hot, or " : "");
		base_text_add(&t, "fewer bits per weight, or faster memory");
		break;
	case TOPOLOGY_RESOURCE_PCIE:
		base_text_add(&t, "more memory on the card");
		break;
	case TOPOLOGY_RESOURCE_COMPUTE:
	case TOPOLOGY_RESOURCE_LINK:
		base_text_add(&t, "more cores or a faster backend");
		return;
	}
	if (n > 1)
		base_text_add(&t, "; up to %" PRIu64 " positions in a pass cost no more than one", n);
}

int topology_plan_place(const struct topology_plan_input *input, struct topology_plan *ret_plan, struct base_error *e)
{
	struct topology_plan p = {0};
	struct topology_plan_input in = *input;
	struct need kv = {0};
	if (in.pass_bytes > in.weights_all_bytes)
		return base_error_set(e, -EINVAL, "plan: a pass reads more than all weights");
	// Of a tiny model the least stream is larger than all that there is to stream.
	if (in.weights_min_bytes > in.weights_all_bytes)
		in.weights_min_bytes = in.weights_all_bytes;
	int r = kv_need(&in, &kv, e);
	if (r == 0)
		r = check_budgets(&in, &kv, e);
	if (r == 0)
		cap_budgets(&in, &kv);
	if (r == 0)
		r = divide(&in, &kv, &p, e);
	if (r < 0)
		return r;
	place(&in, &p);
	predict(&in, &p);
	*ret_plan = p;
	return 0;
}

int topology_plan_build(const struct topology_plan_input *input, struct topology_plan *ret_plan, struct base_error *e)
{
	struct topology_plan p;
	int r = topology_plan_place(input, &p, e);
	if (r < 0)
		return r;
	struct topology_plan_input in = *input;
	struct need kv = {0};
	if (kv_need(&in, &kv, NULL) == 0)
		cap_budgets(&in, &kv); // advice counts what the model can use
	advise(&in, &p);
	*ret_plan = p;
	return 0;
}

static void print_row(const char *name, uint64_t given, uint64_t least, uint64_t all, uint64_t decided, FILE *out)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES], d[BASE_UNITS_TEXT_BYTES];
	fprintf(out, "%-9s  %-9s  %-9s  %-9s  %-9s  ", name, given ? base_units_format_bytes(given, a) : "auto",
		base_units_format_bytes(least, b), base_units_format_bytes(all, c),
		base_units_format_bytes(decided, d));
}

static void print_bound(const struct topology_plan_input *in, const struct topology_plan *p, FILE *out)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	uint32_t full = in->sequences ? in->sequences : 1;
	const double ns[] = {p->pass_ns_disk, p->pass_ns_memory, p->token_ns_compute};
	const struct topology_bandwidths *w = &in->bandwidths;
	fprintf(out, "\nRESOURCE  MEASURED         PASS OF 1   PASS OF %" PRIu32 "\n", full);
	for (int r = TOPOLOGY_RESOURCE_DISK; r <= TOPOLOGY_RESOURCE_COMPUTE; r++) {
		char measured[40] = "not measured";
		double rate = r == TOPOLOGY_RESOURCE_DISK ? w->drive_bytes_per_s : w->memory_bytes_per_s;
		if (r == TOPOLOGY_RESOURCE_COMPUTE && w->compute_macs_per_s > 0)
			snprintf(measured, sizeof measured, "%.1f Gmac/s", w->compute_macs_per_s / 1e9);
		else if (r != TOPOLOGY_RESOURCE_COMPUTE && rate > 0)
			snprintf(measured, sizeof measured, "%.2f GB/s", rate / 1e9);
		double all = r == TOPOLOGY_RESOURCE_COMPUTE ? ns[r] * full : ns[r];
		bool known = strcmp(measured, "not measured") != 0;
		fprintf(out, "%-8s  %-15s  %-10s  %s\n", topology_resource_name((enum topology_resource)r), measured,
			known ? base_units_format_duration((uint64_t)ns[r], a) : "-",
			known ? base_units_format_duration((uint64_t)all, b) : "-");
	}
	if (p->tokens_per_s_one <= 0) {
		fprintf(out, "predicted: %s\n", p->lift);
		return;
	}
	fprintf(out, "predicted: %.2f tokens/s with 1 stream (%s), %.2f tokens/s with %" PRIu32 " (%s)\n",
		p->tokens_per_s_one, topology_resource_name(p->binding_one), p->tokens_per_s_full, full,
		topology_resource_name(p->binding_full));
	fprintf(out, "to lift the %s bound: %s\n", topology_resource_name(p->binding_one), p->lift);
}

void topology_plan_explain(const struct topology_plan_input *in, const struct topology_plan *p, FILE *out)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES];
	struct need kv = {0};
	kv_need(in, &kv, NULL);
	fprintf(out, "BUDGET     GIVEN      LEAST      ALL        DECIDED    VERDICT\n");
	uint64_t least = in->weights_min_bytes < in->weights_all_bytes ? in->weights_min_bytes : in->weights_all_bytes;
	print_row("weights", in->weights_budget_bytes, least, in->weights_all_bytes, p->weights_bytes, out);
	if (p->cold_bytes == 0)
		fprintf(out, "all hot\n");
	else
		fprintf(out, "%.0f %% of a pass hot\n", 100.0 * (double)p->hot_bytes / (double)in->pass_bytes);
	print_row("kv", in->kv_budget_bytes, kv.one_bytes, kv.all_bytes, p->kv_bytes, out);
	fprintf(out, "%" PRIu32 " blocks, %.1f sequences of %" PRIu32 " tokens\n", p->kv_blocks,
		kv.one_bytes ? (double)p->kv_bytes / (double)kv.one_bytes : 0, in->context_tokens);
	print_row("workspace", in->workspace_budget_bytes, in->workspace_bytes, in->workspace_bytes, p->workspace_bytes,
		out);
	fprintf(out, "fits\n");
	uint64_t used = p->weights_bytes + p->kv_bytes + p->workspace_bytes;
	fprintf(out, "memory     %s = %s used + %s free\n", base_units_format_bytes(in->memory_bytes, a),
		base_units_format_bytes(used, b), base_units_format_bytes(in->memory_bytes - used, c));
	fprintf(out, "\na pass reads %s = %s hot + %s cold\n", base_units_format_bytes(in->pass_bytes, a),
		base_units_format_bytes(p->hot_bytes, b), base_units_format_bytes(p->cold_bytes, c));
	if (p->cold_bytes) {
		uint64_t gap = in->weights_all_bytes - p->weights_bytes;
		fprintf(out, "resident if: memory.weights + %s", base_units_format_bytes(gap, a));
		uint64_t fewer = minus(p->kv_bytes, gap);
		if (!in->weights_budget_bytes && in->sequences && fewer > 0 &&
			context_for(in, fewer / in->sequences) > 0)
			fprintf(out, ", or kv <= %s (context %" PRIu32 " -> %" PRIu64 " with %" PRIu32 " sequences)",
				base_units_format_bytes(fewer, b), in->context_tokens,
				context_for(in, fewer / in->sequences), in->sequences);
		fprintf(out, "\n");
	}
	print_bound(in, p, out);
}
