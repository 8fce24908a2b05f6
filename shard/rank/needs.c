// SPDX-License-Identifier: Apache-2.0
// What a rank needs and how a budget is spent: pure functions, so that the planner's numbers are the executor's.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/units.h"
#include "shard/quant/quant.h"
#include "shard/rank/internal.h"

#define ROW_BUFFER_BYTES (512u << 10)
#define MIN_ROW_SLOTS 2u
#define MAX_ROW_SLOTS 32u
#define MIN_SLOTS 2u
#define MAX_DEPTH 64u
// Backend memory of a matmul input, for each element: the floats, 8-bit values and their scales.
#define INPUT_ELEMENT_BYTES 6u

static uint64_t huge_up(uint64_t bytes)
{
	return base_size_align(bytes, BASE_HUGE_PAGE_BYTES);
}

static uint64_t huge_down(uint64_t bytes)
{
	return bytes / BASE_HUGE_PAGE_BYTES * BASE_HUGE_PAGE_BYTES;
}

int rank_check_config(const struct program *p, const struct rank_config *c, struct base_error *e)
{
	if (c->slice.tp_size > 1 && program_check_parts(p, c->slice.tp_size, e))
		return -EINVAL;
	if (c->batch_tokens == 0 || c->batch_tokens > RANK_MAX_BATCH_TOKENS)
		return base_error_set(
			e, -EINVAL, "%u tokens in a pass; 1 to %u are allowed", c->batch_tokens, RANK_MAX_BATCH_TOKENS);
	if (c->logits_rows == 0 || c->logits_rows > c->batch_tokens)
		return base_error_set(e, -EINVAL, "logits of %u positions; 1 to the %u tokens of a pass are allowed",
			c->logits_rows, c->batch_tokens);
	if (c->sequences == 0 || c->sequences > RANK_MAX_SEQUENCES)
		return base_error_set(
			e, -EINVAL, "%u sequences; 1 to %u are allowed", c->sequences, RANK_MAX_SEQUENCES);
	if (c->context_tokens == 0 || c->context_tokens > p->config.context_tokens)
		return base_error_set(e, -EINVAL, "a context of %u tokens; the model was made for 1 to %u",
			c->context_tokens, p->config.context_tokens);
	return 0;
}

bool rank_file_in_pass(const struct program *p, const struct pack_slice *slice, uint32_t layer)
{
	if (layer == PACK_LAYER_EMBED)
		return false;
	return layer != PACK_LAYER_HEAD || slice->first_layer + slice->layers == p->config.layers;
}

void rank_sum_sizes(
	const struct program *p, const struct pack_slice *slice, const struct pack_layout *l, struct rank_sizes *ret)
{
	struct rank_sizes s = {0};
	uint32_t row_piece = 0;
	for (uint32_t i = 0; i < l->extents_count; i++) {
		const struct pack_layout_extent *x = &l->extents[i];
		if (!rank_file_in_pass(p, slice, l->files[x->file].layer)) {
			s.lookup_bytes += x->length_bytes;
			continue;
		}
		s.pass_bytes += x->length_bytes;
		s.pinned_bytes += x->pinned ? x->length_bytes : 0;
		if (!x->pinned && x->length_bytes > s.longest_bytes)
			s.longest_bytes = x->length_bytes;
	}
	for (uint32_t i = 0; i < l->pieces_count; i++) {
		const struct pack_layout_piece *piece = &l->pieces[i];
		if (piece->weight == p->steps[0].weight && piece->length_bytes > row_piece)
			row_piece = piece->length_bytes;
	}
	if (row_piece && slice->first_layer == 0) {
		// A piece starts anywhere in its first page.
		s.row_span_bytes = (uint32_t)base_size_align(row_piece, BASE_PAGE_BYTES) + BASE_PAGE_BYTES;
		s.row_slots = ROW_BUFFER_BYTES / s.row_span_bytes;
		s.row_slots = s.row_slots < MIN_ROW_SLOTS ? MIN_ROW_SLOTS : s.row_slots;
		s.row_slots = s.row_slots > MAX_ROW_SLOTS ? MAX_ROW_SLOTS : s.row_slots;
	}
	*ret = s;
}

static void choose_slots(const struct rank_config *c, const struct rank_sizes *s, struct rank_memory *m)
{
	uint64_t bytes = huge_down(c->weights_budget_bytes / RANK_SLOTS_SHARE);
	bytes = bytes < BASE_HUGE_PAGE_BYTES ? BASE_HUGE_PAGE_BYTES : bytes;
	bytes = bytes > RANK_SLOTS_MOST_BYTES ? RANK_SLOTS_MOST_BYTES : bytes;
	uint64_t slots = c->slots ? c->slots : bytes / s->longest_bytes;
	if (!c->slots && slots > MAX_DEPTH + MAX_DEPTH / 2)
		slots = MAX_DEPTH + MAX_DEPTH / 2;
	m->slots = slots < MIN_SLOTS ? MIN_SLOTS : (uint32_t)slots;
	m->depth = c->depth ? c->depth : m->slots - m->slots / 3; // a third is being computed with or waits its turn
	m->depth = m->depth > m->slots ? m->slots : m->depth;
	m->depth = !c->depth && m->depth > MAX_DEPTH ? MAX_DEPTH : m->depth;
	m->slots_bytes = huge_up((uint64_t)m->slots * s->longest_bytes);
}

static uint64_t least_bytes(const struct rank_sizes *s)
{
	uint64_t all = huge_up(s->pass_bytes + s->lookup_bytes);
	uint64_t least = huge_up(s->pinned_bytes + (uint64_t)s->row_slots * s->row_span_bytes) +
			 huge_up((uint64_t)MIN_SLOTS * s->longest_bytes);
	return least < all ? least : all; // of a tiny model even the least stream is larger
}

int rank_spend_budget(
	const struct rank_config *c, const struct rank_sizes *s, struct rank_memory *ret, struct base_error *e)
{
	struct rank_memory m = {0};
	uint64_t budget = c->weights_budget_bytes, rows = (uint64_t)s->row_slots * s->row_span_bytes;
	if (budget >= huge_up(s->pass_bytes + s->lookup_bytes)) {
		m.hot_budget_bytes = s->pass_bytes;
		m.lookup_budget_bytes = s->lookup_bytes;
	} else if (budget >= huge_up(s->pass_bytes + rows)) {
		m.hot_budget_bytes = s->pass_bytes;
		m.lookup_budget_bytes = huge_down(budget) - s->pass_bytes - rows;
		m.row_bytes = rows;
	} else {
		choose_slots(c, s, &m);
		if (budget < least_bytes(s) || huge_down(budget) < m.slots_bytes + s->pinned_bytes + rows) {
			uint64_t least = c->slots ? m.slots_bytes + huge_up(s->pinned_bytes + rows) : least_bytes(s);
			char needs[BASE_UNITS_TEXT_BYTES];
			return base_error_set(e, -ENOMEM,
				"the weights budget of %llu bytes is %llu bytes short: norms, buffers for rows and the "
				"least stream need %s",
				(unsigned long long)budget, (unsigned long long)(least > budget ? least - budget : 0),
				base_units_format_bytes(least, needs));
		}
		m.row_bytes = rows;
		m.hot_budget_bytes = huge_down(budget) - m.slots_bytes - rows;
	}
	m.hot_room_bytes = m.hot_budget_bytes + m.lookup_budget_bytes + m.row_bytes;
	*ret = m;
	return 0;
}

void rank_mark_selected(const struct program *p, bool *selected)
{
	bool after = false;
	for (uint32_t i = 0; i < p->steps_count; i++) {
		after |= p->steps[i].op == PROGRAM_SELECT;
		selected[p->steps[i].out] = after;
	}
}

uint32_t rank_max_cols(const struct program *p)
{
	uint32_t cols = 0;
	for (uint32_t i = 0; i < p->weights_count; i++) {
		if (p->weights[i].rows > 1 && p->weights[i].cols > cols)
			cols = p->weights[i].cols;
	}
	return cols;
}

// Counts are bounded by the config's checks and the program's: nothing here comes near 64 bits.
uint64_t rank_workspace_bytes(const struct program *p, const struct rank_config *c)
{
	uint64_t bytes = 0, tokens = c->batch_tokens;
	_cleanup_free_ bool *selected = calloc(p->values_count, sizeof *selected);
	if (!selected)
		return UINT64_MAX;
	rank_mark_selected(p, selected);
	for (uint32_t i = 0; i < p->values_count; i++)
		bytes += base_size_align(
			(selected[i] ? c->logits_rows : tokens) * p->values[i].width * sizeof(float), 64);
	bytes += tokens * rank_max_cols(p) * INPUT_ELEMENT_BYTES;
	bytes += 2 * tokens * p->config.rope_dims * sizeof(float);
	bytes += tokens * (sizeof(struct backend_attend_token) + sizeof(struct backend_embed_row));
	bytes += (uint64_t)c->logits_rows * sizeof(uint32_t);
	bytes += (uint64_t)c->sequences *
		 (sizeof(struct rank_sequence) + (uint64_t)c->context_tokens * sizeof(uint32_t));
	bytes += (uint64_t)p->config.vocab * 20; // sampling
	return bytes + rank_tensor_bytes(p, c);
}

int rank_get_needs(
	const struct program *p, const struct rank_config *config, struct rank_needs *ret_needs, struct base_error *e)
{
	struct pack_layout *l = NULL;
	struct program *part = NULL; // that this rank runs
	struct rank_sizes sizes;
	struct rank_memory m = {0};
	int status = rank_check_config(p, config, e);
	if (!status)
		status = pack_layout_build(p, &config->slice, &l, e);
	if (!status)
		status = program_slice(p, config->slice.tp_rank, config->slice.tp_size, &part, e);
	if (status) {
		pack_layout_destroy(l);
		return status;
	}
	rank_sum_sizes(p, &config->slice, l, &sizes);
	pack_layout_destroy(l);
	choose_slots(config, &sizes, &m);
	struct rank_needs needs = {
		.weights_all_bytes = huge_up(sizes.pass_bytes + sizes.lookup_bytes),
		.weights_min_bytes = least_bytes(&sizes),
		.slots_bytes = m.slots_bytes,
		.workspace_bytes = rank_workspace_bytes(part, config),
		.pass_bytes = sizes.pass_bytes,
		.token_macs = program_token_macs(p),
		.pinned_bytes = sizes.pinned_bytes,
		.rows_bytes = (uint64_t)sizes.row_slots * sizes.row_span_bytes,
		.extent_bytes = sizes.longest_bytes,
	};
	status = kv_block_bytes(config->kv_type, config->slice.layers, part->config.kv_heads, p->config.head_dim,
		&needs.kv_block_bytes);
	program_destroy(part);
	if (status)
		return base_error_set(
			e, status, "heads of %u elements do not fit the KV cache's type", p->config.head_dim);
	*ret_needs = needs;
	return 0;
}
