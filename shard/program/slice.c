// SPDX-License-Identifier: Apache-2.0
// A part of a program for tensor parallelism: what is cut where, and the steps that one part runs.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "shard/program/internal.h"
#include "shard/quant/quant.h"

/* ---- can it be cut? ---- */

static uint32_t block_of(const struct program_weight *w)
{
	const struct quant_traits *traits = quant_traits(w->type);
	return traits ? traits->block_cols : 1;
}

bool program_follows_attention(const struct program *p, uint32_t weight)
{
	uint32_t s = p->weights[weight].step, value = p->steps[s].in[0];
	while (s-- > 0) {
		if (p->steps[s].out == value)
			return p->steps[s].op == PROGRAM_ATTEND;
	}
	return false;
}

void program_get_shape(const struct program *p, struct program_shape *ret_shape)
{
	struct program_shape s = {
		.heads = p->config.heads,
		.kv_heads = p->config.kv_heads,
		.head_dim = p->config.head_dim,
		.ffn_width = p->config.ffn_width,
		.vocab = p->config.vocab,
		.attention_block = 1,
		.ffn_block = QUANT_GROUP_ROWS,
	};
	for (uint32_t i = 0; i < p->weights_count; i++) {
		const struct program_weight *w = &p->weights[i];
		if (w->split != PROGRAM_SPLIT_INPUT)
			continue;
		uint32_t *block = program_follows_attention(p, i) ? &s.attention_block : &s.ffn_block;
		*block = block_of(w) > *block ? block_of(w) : *block;
	}
	*ret_shape = s;
}

// NULL when it can be cut, or else why not.
static const char *why_not(const struct program_shape *s, uint32_t parts, char out[static 192])
{
	if (parts <= 1)
		return parts ? NULL : "there is at least one";
	if (s->heads % parts || (s->kv_heads % parts && parts % s->kv_heads))
		snprintf(out, 192, "its %u heads, which share %u KV heads, do not divide by %u", s->heads, s->kv_heads,
			parts);
	else if ((uint64_t)s->heads / parts * s->head_dim % s->attention_block)
		snprintf(out, 192,
			"the %u columns of attn_output for %u heads do not end at a border of its type's blocks of %u",
			s->heads / parts * s->head_dim, s->heads / parts, s->attention_block);
	else if (base_size_div_up(s->ffn_width, s->ffn_block) < parts)
		snprintf(out, 192, "the %u columns of ffn_down are only %u blocks of %u", s->ffn_width,
			(uint32_t)base_size_div_up(s->ffn_width, s->ffn_block), s->ffn_block);
	else if (base_size_div_up(s->vocab, QUANT_GROUP_ROWS) < parts)
		snprintf(out, 192, "the %u rows of its vocabulary are too few", s->vocab);
	else
		return NULL;
	return out;
}

int program_shape_check(const struct program_shape *s, uint32_t parts, struct base_error *e)
{
	char why[192], other[192], possible[96] = "1";
	const char *reason = why_not(s, parts, why);
	if (!reason)
		return 0;
	size_t at = 1;
	for (uint32_t n = 2; n <= PROGRAM_MAX_PARTS && at < sizeof possible; n++) {
		if (!why_not(s, n, other))
			at += (size_t)snprintf(possible + at, sizeof possible - at, ", %u", n);
	}
	return base_error_set(
		e, -EINVAL, "the model cannot be cut into %u parts: %s (possible: %s)", parts, reason, possible);
}

int program_check_parts(const struct program *p, uint32_t parts, struct base_error *e)
{
	struct program_shape s;
	program_get_shape(p, &s);
	return program_shape_check(&s, parts, e);
}

/* ---- cuts ---- */

// Part r of n of `units`, spread evenly.
static void share(uint32_t units, uint32_t r, uint32_t n, uint32_t *ret_first, uint32_t *ret_count)
{
	uint32_t first = (uint32_t)((uint64_t)units * r / n);
	*ret_first = first;
	*ret_count = (uint32_t)((uint64_t)units * (r + 1) / n) - first;
}

// The same of `count` elements in whole units; the last unit may be cut short.
static void share_in_units(
	uint32_t count, uint32_t unit, uint32_t r, uint32_t n, uint32_t *ret_first, uint32_t *ret_count)
{
	uint32_t first, units;
	share((uint32_t)base_size_div_up(count, unit), r, n, &first, &units);
	*ret_first = first * unit;
	*ret_count = (first + units) * unit < count ? units * unit : count - first * unit;
}

// Rows of gate and up go together with columns of the matrix that follows them, so both borders must fit both.
static uint32_t output_unit(const struct program *p, uint32_t weight)
{
	const struct program_weight *w = &p->weights[weight];
	for (uint32_t i = weight + 1; i < p->weights_count && p->weights[i].layer == w->layer; i++) {
		const struct program_weight *next = &p->weights[i];
		if (next->split == PROGRAM_SPLIT_INPUT && next->cols == w->rows && !program_follows_attention(p, i))
			return block_of(next) > QUANT_GROUP_ROWS ? block_of(next) : QUANT_GROUP_ROWS;
	}
	return QUANT_GROUP_ROWS;
}

// Whole KV heads, or with more parts than KV heads one that several parts share; query heads follow them.
static void cut_heads(const struct program_config *c, bool kv, uint32_t part, uint32_t parts, uint32_t *ret_first,
	uint32_t *ret_count)
{
	if (kv && parts > c->kv_heads) {
		*ret_first = (uint32_t)((uint64_t)c->kv_heads * part / parts);
		*ret_count = 1;
	} else {
		share(kv ? c->kv_heads : c->heads, part, parts, ret_first, ret_count);
	}
	*ret_first *= c->head_dim;
	*ret_count *= c->head_dim;
}

static void cut_input(
	const struct program *p, uint32_t part, uint32_t parts, uint32_t weight, struct program_cut *ret_cut)
{
	const struct program_weight *w = &p->weights[weight];
	if (program_follows_attention(p, weight))
		cut_heads(&p->config, false, part, parts, &ret_cut->first_col, &ret_cut->cols);
	else
		share_in_units(w->cols, block_of(w) > QUANT_GROUP_ROWS ? block_of(w) : QUANT_GROUP_ROWS, part, parts,
			&ret_cut->first_col, &ret_cut->cols);
}

void program_cut_weight(
	const struct program *p, uint32_t part, uint32_t parts, uint32_t weight, struct program_cut *ret_cut)
{
	const struct program_weight *w = &p->weights[weight];
	uint32_t first = 0, count = w->rows == 1 ? w->cols : w->rows; // of a bias: its elements
	*ret_cut = (struct program_cut){.rows = w->rows, .cols = w->cols};
	if (parts == 1 || w->split == PROGRAM_SPLIT_NONE)
		return;
	if (w->split == PROGRAM_SPLIT_INPUT) {
		cut_input(p, part, parts, weight, ret_cut);
		return;
	}
	if (w->split == PROGRAM_SPLIT_OUTPUT)
		share_in_units(count, output_unit(p, weight), part, parts, &first, &count);
	else
		cut_heads(&p->config, w->split == PROGRAM_SPLIT_KV_HEADS, part, parts, &first, &count);
	if (w->rows == 1) {
		ret_cut->first_col = first;
		ret_cut->cols = count;
	} else {
		ret_cut->first_row = first;
		ret_cut->rows = count;
	}
}

/* ---- the steps of a part ---- */

struct slicer {
	const struct program *from;
	struct program *to;
	uint32_t *names; // (values of from): what they are called in `to` at this step
};

static bool in_place(enum program_op op)
{
	return op == PROGRAM_ROPE || op == PROGRAM_ADD || op == PROGRAM_REDUCE;
}

static uint32_t out_width(const struct slicer *k, const struct program_step *s)
{
	if (s->op == PROGRAM_EMBED)
		return k->to->config.width;
	if (s->op == PROGRAM_MATMUL)
		return k->to->weights[s->weight].rows;
	return k->to->values[s->in[0]].width; // of NORM, SELECT, ATTEND (q) and SILU_GATE (gate)
}

static void add_reduce(struct slicer *k, uint32_t layer, uint32_t value)
{
	k->to->steps[k->to->steps_count++] = (struct program_step){
		.op = PROGRAM_REDUCE,
		.layer = layer,
		.in = {value, PROGRAM_NONE, PROGRAM_NONE},
		.out = value,
		.weight = PROGRAM_NONE,
		.bias = PROGRAM_NONE,
	};
}

static void slice_step(struct slicer *k, const struct program_step *from, uint32_t part)
{
	struct program *to = k->to;
	struct program_step s = *from;
	for (uint32_t i = 0; i < 3; i++)
		s.in[i] = s.in[i] == PROGRAM_NONE ? PROGRAM_NONE : k->names[s.in[i]];
	if (in_place(s.op)) {
		s.out = s.in[0];
	} else {
		to->values[to->values_count].width = out_width(k, &s);
		s.out = k->names[from->out] = to->values_count++;
	}
	if (s.op == PROGRAM_ROPE)
		s.heads = to->values[s.out].width / to->config.head_dim;
	enum program_split split = s.weight == PROGRAM_NONE ? PROGRAM_SPLIT_NONE : to->weights[s.weight].split;
	bool sums = s.op == PROGRAM_MATMUL && split == PROGRAM_SPLIT_INPUT;
	if (sums && part > 0)
		s.bias = PROGRAM_NONE; // the first part adds it, once
	if (s.weight != PROGRAM_NONE && from == &k->from->steps[k->from->weights[s.weight].step])
		to->weights[s.weight].step = to->steps_count;
	to->steps[to->steps_count++] = s;
	// Rows of a cut matrix are looked up by the part that has them; the others add nothing.
	if (sums || (s.op == PROGRAM_EMBED && split != PROGRAM_SPLIT_NONE))
		add_reduce(k, s.layer, s.out);
}

static int take_tables(struct slicer *k)
{
	const struct program *p = k->from;
	struct program *to = k->to;
	size_t factors = p->rope_factors ? p->config.rope_dims / 2 : 0;
	to->weights = calloc(p->weights_count, sizeof *to->weights);
	to->steps = calloc(2 * (size_t)p->steps_count, sizeof *to->steps);
	to->values = calloc(p->steps_count, sizeof *to->values);
	to->rope_factors = factors ? calloc(factors, sizeof *to->rope_factors) : NULL;
	if (!to->weights || !to->steps || !to->values || (factors && !to->rope_factors))
		return -ENOMEM;
	if (factors)
		memcpy(to->rope_factors, p->rope_factors, factors * sizeof *to->rope_factors);
	memcpy(to->weights, p->weights, p->weights_count * sizeof *to->weights);
	to->weights_count = p->weights_count;
	return 0;
}

static int slice(struct slicer *k, uint32_t part, uint32_t parts, struct base_error *e)
{
	const struct program *p = k->from;
	struct program *to = k->to;
	if (take_tables(k))
		return base_error_set(e, -ENOMEM, "no memory for the program");
	to->config = p->config;
	to->config.heads /= parts;
	to->config.kv_heads = parts > p->config.kv_heads ? 1 : p->config.kv_heads / parts;
	for (uint32_t i = 0; i < p->weights_count; i++) {
		struct program_cut cut;
		program_cut_weight(p, part, parts, i, &cut);
		to->weights[i].rows = cut.rows;
		to->weights[i].cols = cut.cols;
	}
	for (uint32_t s = 0; s < p->steps_count; s++)
		slice_step(k, &p->steps[s], part);
	to->logits = k->names[p->logits];
	return program_share_values(to, e);
}

int program_slice(
	const struct program *p, uint32_t part, uint32_t parts, struct program **ret_program, struct base_error *e)
{
	int status = program_check_parts(p, parts, e);
	if (status)
		return status;
	if (part >= parts)
		return base_error_set(e, -EINVAL, "part %u of %u", part, parts);
	_cleanup_free_ uint32_t *names = calloc(p->values_count, sizeof *names);
	struct slicer k = {.from = p, .to = calloc(1, sizeof *k.to), .names = names};
	status = names && k.to ? slice(&k, part, parts, e) : base_error_set(e, -ENOMEM, "no memory for the program");
	if (status) {
		program_destroy(k.to);
		return status;
	}
	*ret_program = k.to;
	return 0;
}
