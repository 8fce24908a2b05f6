// SPDX-License-Identifier: Apache-2.0
// The builders: each appends a step to the program. Shared by all architectures.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "shard/program/internal.h"
#include "shard/quant/quant.h"

static uint32_t fail(struct program_builder *b, int status)
{
	b->status = status;
	return PROGRAM_NONE;
}

static uint32_t out_of_memory(struct program_builder *b)
{
	return fail(b, base_error_set(b->error, -ENOMEM, "no memory for the program"));
}

// Tables double; a program has few thousand steps at most.
static void *grown(void *table, uint32_t count, size_t size)
{
	if (count & (count - 1))
		return table;
	if (count == 0)
		return malloc(size);
	return reallocarray(table, 2 * (size_t)count, size);
}

static uint32_t add_value(struct program_builder *b, uint32_t width)
{
	struct program *p = b->p;
	struct program_value *values = grown(p->values, p->values_count, sizeof *values);
	if (!values)
		return out_of_memory(b);
	p->values = values;
	values[p->values_count] = (struct program_value){.width = width};
	return p->values_count++;
}

static void add_step(struct program_builder *b, const struct program_step *step)
{
	struct program *p = b->p;
	struct program_step *steps = grown(p->steps, p->steps_count, sizeof *steps);
	if (!steps) {
		out_of_memory(b);
		return;
	}
	p->steps = steps;
	steps[p->steps_count++] = *step;
}

static struct program_step new_step(const struct program_builder *b, enum program_op op)
{
	return (struct program_step){
		.op = op,
		.layer = b->layer,
		.in = {PROGRAM_NONE, PROGRAM_NONE, PROGRAM_NONE},
		.out = PROGRAM_NONE,
		.weight = PROGRAM_NONE,
		.bias = PROGRAM_NONE,
	};
}

// Of the size in use: sizes of an error message, e.g. "(576 x 1536)".
static const char *shape_text(uint64_t rows, uint64_t cols, bool vector, char out[static 64])
{
	if (vector)
		snprintf(out, 64, "(%" PRIu64 ")", cols);
	else
		snprintf(out, 64, "(%" PRIu64 " x %" PRIu64 ")", rows, cols);
	return out;
}

static int check_shape(struct program_builder *b, const struct format_gguf_tensor *t, uint32_t rows, uint32_t cols)
{
	bool vector = rows == 1;
	char have[64], want[64];
	if (t->dims[0] == cols && t->dims[1] == rows && t->dims[2] == 1 && t->dims[3] == 1)
		return 0;
	if (t->dims_count > 2)
		return base_error_set(b->error, -EINVAL, "%s: tensor %s has %u dimensions, but %s is needed",
			format_gguf_path(b->source), t->name, t->dims_count, shape_text(rows, cols, vector, want));
	return base_error_set(b->error, -EINVAL, "%s: tensor %s is %s, but its model's config needs %s",
		format_gguf_path(b->source), t->name, shape_text(t->dims[1], t->dims[0], t->dims_count == 1, have),
		shape_text(rows, cols, vector, want));
}

static int check_type(struct program_builder *b, const struct format_gguf_tensor *t, bool vector)
{
	char name[16];
	const struct quant_traits *traits = quant_traits(t->type);
	if (!traits)
		return base_error_set(b->error, -ENOTSUP,
			"%s: tensor %s has the type %s, which is not supported (supported: F32 F16 BF16 Q4_0 Q4_1 Q5_0 "
			"Q5_1 Q8_0 "
			"Q4_K Q5_K Q6_K)",
			format_gguf_path(b->source), t->name, quant_type_name(t->type, name));
	if (vector && traits->block_cols != 1)
		return base_error_set(b->error, -ENOTSUP, "%s: vector %s has the type %s; F32, F16 or BF16 is needed",
			format_gguf_path(b->source), t->name, quant_type_name(t->type, name));
	if (t->dims[0] % traits->block_cols)
		return base_error_set(b->error, -EINVAL,
			"%s: tensor %s has %" PRIu64 " columns, not a multiple of %s's block of %u",
			format_gguf_path(b->source), t->name, t->dims[0], traits->name, traits->block_cols);
	return 0;
}

static uint32_t find_weight(const struct program *p, const char *name)
{
	for (uint32_t i = 0; i < p->weights_count; i++) {
		if (strcmp(p->weights[i].name, name) == 0)
			return i;
	}
	return PROGRAM_NONE;
}

// The table's entry for a tensor that must be there with this shape.
static uint32_t add_weight(
	struct program_builder *b, const char *name, uint32_t rows, uint32_t cols, enum program_split split)
{
	struct program *p = b->p;
	const struct format_gguf_tensor *t = format_gguf_find_tensor(b->source, name);
	if (!t)
		return fail(b, base_error_set(b->error, -EINVAL, "%s: tensor %s, which a %s model needs, is missing",
				       format_gguf_path(b->source), name, p->config.architecture));
	int status = check_shape(b, t, rows, cols);
	if (!status)
		status = check_type(b, t, rows == 1);
	if (status)
		return fail(b, status);
	struct program_weight *weights = grown(p->weights, p->weights_count, sizeof *weights);
	if (!weights)
		return out_of_memory(b);
	p->weights = weights;
	struct program_weight *w = &weights[p->weights_count];
	*w = (struct program_weight){
		.rows = rows,
		.cols = cols,
		.type = t->type,
		.step = p->steps_count,
		.layer = b->layer,
		.split = split,
		.source = t,
	};
	snprintf(w->name, sizeof w->name, "%s", name);
	return p->weights_count++;
}

static const char *full_name(
	const struct program_builder *b, const char *name, const char *suffix, char out[static PROGRAM_NAME_BYTES])
{
	if (b->layer == PROGRAM_NONE)
		snprintf(out, PROGRAM_NAME_BYTES, "%s.%s", name, suffix);
	else
		snprintf(out, PROGRAM_NAME_BYTES, "blk.%u.%s.%s", b->layer, name, suffix);
	return out;
}

uint32_t program_embed(struct program_builder *b, const char *weight)
{
	if (b->status)
		return PROGRAM_NONE;
	char name[PROGRAM_NAME_BYTES];
	struct program_step step = new_step(b, PROGRAM_EMBED);
	step.weight = add_weight(
		b, full_name(b, weight, "weight", name), b->p->config.vocab, b->p->config.width, PROGRAM_SPLIT_NONE);
	if (!b->status)
		step.out = add_value(b, b->p->config.width);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}

uint32_t program_norm(struct program_builder *b, uint32_t x, const char *weight)
{
	if (b->status)
		return PROGRAM_NONE;
	char name[PROGRAM_NAME_BYTES];
	uint32_t width = b->p->values[x].width;
	struct program_step step = new_step(b, PROGRAM_NORM);
	step.in[0] = x;
	step.weight = add_weight(b, full_name(b, weight, "weight", name), 1, width, PROGRAM_SPLIT_NONE);
	if (!b->status)
		step.out = add_value(b, width);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}

uint32_t program_matmul(
	struct program_builder *b, uint32_t x, const char *weight, uint32_t rows, enum program_split split)
{
	if (b->status)
		return PROGRAM_NONE;
	char name[PROGRAM_NAME_BYTES];
	struct program *p = b->p;
	struct program_step step = new_step(b, PROGRAM_MATMUL);
	step.in[0] = x;
	full_name(b, weight, "weight", name);
	step.weight = b->layer == PROGRAM_NONE ? find_weight(p, name) : PROGRAM_NONE;
	if (step.weight == PROGRAM_NONE) {
		step.weight = add_weight(b, name, rows, p->values[x].width, split);
	} else { // a tied head: the pass reads it here, look-ups take single rows
		p->weights[step.weight].step = p->steps_count;
		p->weights[step.weight].split = split;
	}
	if (!b->status && format_gguf_find_tensor(b->source, full_name(b, weight, "bias", name)))
		step.bias = add_weight(b, name, 1, rows, split == PROGRAM_SPLIT_INPUT ? PROGRAM_SPLIT_NONE : split);
	if (!b->status)
		step.out = add_value(b, rows);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}

uint32_t program_rope(struct program_builder *b, uint32_t x, uint32_t heads)
{
	if (b->status)
		return PROGRAM_NONE;
	struct program_step step = new_step(b, PROGRAM_ROPE);
	step.in[0] = step.out = x;
	step.heads = heads;
	add_step(b, &step);
	return x;
}

uint32_t program_attend(struct program_builder *b, uint32_t q, uint32_t k, uint32_t v)
{
	if (b->status)
		return PROGRAM_NONE;
	struct program_step step = new_step(b, PROGRAM_ATTEND);
	step.in[0] = q;
	step.in[1] = k;
	step.in[2] = v;
	step.out = add_value(b, b->p->values[q].width);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}

uint32_t program_add(struct program_builder *b, uint32_t x, uint32_t y)
{
	if (b->status)
		return PROGRAM_NONE;
	struct program_step step = new_step(b, PROGRAM_ADD);
	step.in[0] = step.out = x;
	step.in[1] = y;
	add_step(b, &step);
	return x;
}

uint32_t program_silu_gate(struct program_builder *b, uint32_t gate, uint32_t up)
{
	if (b->status)
		return PROGRAM_NONE;
	struct program_step step = new_step(b, PROGRAM_SILU_GATE);
	step.in[0] = gate;
	step.in[1] = up;
	step.out = add_value(b, b->p->values[gate].width);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}

uint32_t program_select(struct program_builder *b, uint32_t x)
{
	if (b->status)
		return PROGRAM_NONE;
	struct program_step step = new_step(b, PROGRAM_SELECT);
	step.in[0] = x;
	step.out = add_value(b, b->p->values[x].width);
	if (!b->status)
		add_step(b, &step);
	return step.out;
}
