// SPDX-License-Identifier: Apache-2.0
// What a run of layers needs on a device and what a pass through it costs.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "topology/fleet/internal.h"

#define ROW_GROUP 16u // rows of the head that stay together

static uint64_t huge_up(uint64_t bytes)
{
	return base_size_align(bytes, BASE_HUGE_PAGE_BYTES);
}

// The largest of t parts of bytes that are made of `units` pieces.
static uint64_t part(uint64_t bytes, uint32_t units, uint32_t t)
{
	if (t == 1)
		return bytes;
	units = units ? units : t;
	unsigned __int128 most = (unsigned __int128)bytes * base_size_div_up(units, t);
	return (uint64_t)((most + units - 1) / units);
}

uint64_t fleet_blocks_of_sequence(const struct fleet_model *m)
{
	return m->kv_block_bytes && m->kv_block_tokens ? base_size_div_up(m->context_tokens, m->kv_block_tokens) : 0;
}

uint64_t fleet_kv_block_bytes(const struct fleet_work *f, uint32_t first, uint32_t end, uint32_t tp)
{
	const struct fleet_model *m = f->in->model;
	uint64_t heads = m->kv_heads ? m->kv_heads : 1, own = tp < heads ? base_size_div_up(heads, tp) : 1;
	return tp == 1 ? m->kv_block_bytes * (end - first) : m->kv_block_bytes / heads * own * (end - first);
}

// Matrices of a run for each of tp ranks, in ret_all those of one.
static uint64_t matrices(const struct fleet_work *f, const uint64_t *attention, const uint64_t *mlp, uint32_t first,
	uint32_t end, uint32_t tp)
{
	const struct fleet_model *m = f->in->model;
	return part(attention[end] - attention[first], m->kv_heads, tp) +
	       part(mlp[end] - mlp[first], m->mlp_blocks, tp);
}

void fleet_share_input(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end, uint32_t tp,
	uint64_t kv_blocks, struct topology_plan_input *ret)
{
	const struct fleet_model *m = f->in->model;
	const struct fleet_device *d = &f->in->devices[device];
	bool has_head = end == f->layers, has_rows = first == 0;
	uint64_t cut = matrices(f, f->attention, f->mlp, first, end, tp);
	uint64_t uncut = matrices(f, f->attention, f->mlp, first, end, 1), whole = f->whole[end] - f->whole[first];
	uint64_t macs = f->macs[end] - f->macs[first];
	macs = uncut ? (uint64_t)((unsigned __int128)macs * cut / uncut) : macs;
	if (has_head) {
		cut += part(m->head.mlp_bytes, m->vocab / ROW_GROUP, tp);
		whole += m->head.whole_bytes;
		macs += part(m->head.macs, m->vocab / ROW_GROUP, tp);
	}
	uint64_t pass = cut + whole, lookup = has_rows && !(m->tied && has_head) ? m->lookup_bytes : 0;
	lookup = m->tied ? part(lookup, m->vocab / ROW_GROUP, tp) : lookup;
	uint64_t rows = has_rows ? m->rows_bytes : 0, used = d->reserve_bytes + m->process_bytes;
	*ret = (struct topology_plan_input){
		.pass_bytes = pass,
		.weights_all_bytes = huge_up(pass + lookup),
		.weights_min_bytes = huge_up(whole + rows) + huge_up(2 * m->extent_bytes),
		.slots_bytes = huge_up(2 * m->extent_bytes),
		.slots_share = m->slots_share,
		.slots_most_bytes = m->slots_most_bytes,
		.rows_bytes = rows,
		.workspace_bytes =
			tp <= FLEET_TP && m->tp_workspace_bytes[tp] ? m->tp_workspace_bytes[tp] : m->workspace_bytes,
		.kv_block_bytes = fleet_kv_block_bytes(f, first, end, tp),
		.kv_block_tokens = m->kv_block_tokens,
		.context_tokens = m->context_tokens,
		.sequences = fleet_sequences(f->in),
		.token_macs = macs,
		.weights_budget_bytes = d->weights_budget_bytes,
		.kv_budget_bytes = kv_blocks ? kv_blocks * fleet_kv_block_bytes(f, first, end, tp) : d->kv_budget_bytes,
		.workspace_budget_bytes = d->workspace_budget_bytes,
		.memory_bytes = d->memory_bytes > used ? d->memory_bytes - used : 0,
		.host_memory_bytes = d->host_memory_bytes,
		.pcie_bytes_per_s = d->pcie_bytes_per_s,
		.bandwidths = d->bandwidths,
	};
	uint64_t away = part(f->streamed[end] - f->streamed[first], 0, tp);
	if (away) { // to the drive by the map
		uint64_t least = ret->weights_min_bytes;
		uint64_t most = ret->weights_all_bytes > away ? ret->weights_all_bytes - away : 0;
		most = most > least ? most : least;
		if (!ret->weights_budget_bytes || ret->weights_budget_bytes > most)
			ret->weights_budget_bytes = most;
	}
}

static bool pins_allow(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end)
{
	for (uint32_t l = first; l < end; l++) {
		if (f->pin[l] != FLEET_NONE && f->pin[l] != device)
			return false;
	}
	return true;
}

int fleet_run_cost(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end, uint32_t tp,
	struct fleet_run *ret_run, struct topology_plan *ret_share, struct base_error *e)
{
	const struct fleet_device *d = &f->in->devices[device];
	struct topology_plan_input in;
	struct topology_plan p;
	if (!pins_allow(f, device, first, end))
		return base_error_set(e, -EXDEV, "layers %" PRIu32 "-%" PRIu32 " are pinned elsewhere", first, end - 1);
	fleet_share_input(f, device, first, end, tp, f->kv_blocks, &in);
	if (d->kv_budget_bytes && in.kv_budget_bytes > d->kv_budget_bytes)
		return base_error_set(e, -ENOMEM,
			"does not fit: memory.kv is %" PRIu64 " bytes short: one sequence of %" PRIu32
			" tokens needs %" PRIu64,
			in.kv_budget_bytes - d->kv_budget_bytes, in.context_tokens, in.kv_budget_bytes);
	int r = topology_plan_place(&in, &p, e);
	if (r < 0)
		return r;
	uint64_t away = part(f->streamed[end] - f->streamed[first], 0, tp);
	if (f->kept[end] - f->kept[first] && p.cold_bytes > away + p.slots_bytes)
		return base_error_set(e, -ENOMEM,
			"does not fit: %" PRIu64 " bytes short for what the device_map keeps in memory",
			p.cold_bytes - away);
	double drive = d->bandwidths.drive_bytes_per_s;
	*ret_run = (struct fleet_run){
		.disk = p.pass_ns_disk,
		.ring = drive > 0 ? (double)p.slots_bytes / drive * 1e9 : 0,
		.memory = p.pass_ns_memory > p.pass_ns_pcie ? p.pass_ns_memory : p.pass_ns_pcie,
		.token = p.token_ns_compute,
	};
	if (ret_share)
		*ret_share = p;
	return 0;
}

// Up to four ranks send to each other and sum in rank order; more go by recursive doubling.
double fleet_reduce_ns(const struct fleet_work *f, const struct fleet_link *link, uint32_t tp, uint32_t positions)
{
	double bytes = 4.0 * f->in->model->width * positions;
	double wire = link->bytes_per_s > 0 ? bytes / link->bytes_per_s * 1e9 : 0;
	if (tp <= 4)
		return tp == 1 ? 0 : link->latency_ns + (tp - 1) * wire;
	uint32_t rounds = 0;
	while (1u << rounds < tp)
		rounds++;
	return rounds * (link->latency_ns + wire);
}

// Two for each layer; one after rows of a cut embedding; and the parts of the logits come together at the first rank.
double fleet_allreduce_ns(const struct fleet_work *f, const struct fleet_link *link, uint32_t tp, uint32_t first,
	uint32_t end, uint32_t positions)
{
	const struct fleet_model *m = f->in->model;
	if (tp == 1)
		return 0;
	double sum = (2.0 * (end - first) + (first == 0 && m->tied)) * fleet_reduce_ns(f, link, tp, positions);
	if (end == f->layers && link->bytes_per_s > 0)
		sum += link->latency_ns + 4.0 * m->vocab * positions * (tp - 1) / tp / link->bytes_per_s * 1e9;
	return sum;
}

void fleet_run_time(
	const struct fleet_run *r, double allreduce_ns, uint32_t positions, double *ret_service, double *ret_active)
{
	double compute = positions * r->token, work = (r->memory > compute ? r->memory : compute) + allreduce_ns;
	double late = r->disk - r->ring;
	*ret_service = r->disk > work ? r->disk : work;
	*ret_active = late > work ? late : work;
}

double fleet_hop_busy_ns(const struct fleet_work *f, enum fleet_link_class c, uint32_t positions)
{
	const struct fleet_link *l = &f->in->links[c];
	return l->bytes_per_s > 0 ? 4.0 * f->in->model->width * positions / l->bytes_per_s * 1e9 : 0;
}

uint32_t fleet_sequences(const struct fleet_input *in)
{
	return in->sequences ? in->sequences : 1;
}

uint32_t fleet_micro_batches(const struct fleet_input *in, uint32_t ret_k[FLEET_MICRO])
{
	static const uint32_t tried[] = {1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128};
	uint32_t sequences = fleet_sequences(in), count = 0;
	uint32_t most = in->micro_batches_most ? in->micro_batches_most : sequences;
	for (size_t i = 0; i < sizeof tried / sizeof tried[0]; i++) {
		if (tried[i] <= sequences && tried[i] <= most && tried[i] <= 2 * in->devices_count)
			ret_k[count++] = tried[i];
	}
	return count;
}

static bool same_numbers(const struct fleet_device *a, const struct fleet_device *b)
{
	return a->card == b->card && a->memory_bytes == b->memory_bytes && a->reserve_bytes == b->reserve_bytes &&
	       a->host_memory_bytes == b->host_memory_bytes && a->pcie_bytes_per_s == b->pcie_bytes_per_s &&
	       a->weights_budget_bytes == b->weights_budget_bytes && a->kv_budget_bytes == b->kv_budget_bytes &&
	       a->workspace_budget_bytes == b->workspace_budget_bytes &&
	       a->bandwidths.drive_bytes_per_s == b->bandwidths.drive_bytes_per_s &&
	       a->bandwidths.memory_bytes_per_s == b->bandwidths.memory_bytes_per_s &&
	       a->bandwidths.compute_macs_per_s == b->bandwidths.compute_macs_per_s;
}

bool fleet_same_kind(const struct fleet_work *f, uint32_t first, uint32_t second)
{
	uint32_t a = f->host[first], b = f->host[second];
	if (f->pinned[first] || f->pinned[second] || f->rack[first] != f->rack[second])
		return false;
	if (a != b && (f->on_host[a] > 1 || f->on_host[b] > 1))
		return false;
	return same_numbers(&f->in->devices[first], &f->in->devices[second]);
}

enum fleet_link_class fleet_link_between(const struct fleet_work *f, uint32_t a, uint32_t b)
{
	enum fleet_link_class c = f->host[a] == f->host[b]   ? FLEET_LINK_HOST
				  : f->rack[a] == f->rack[b] ? FLEET_LINK_RACK
							     : FLEET_LINK_CLUSTER;
	while (c < FLEET_LINK_CLUSTER && f->in->links[c].bytes_per_s <= 0)
		c++; // not measured: as far as the next class is
	return c;
}
