// SPDX-License-Identifier: Apache-2.0
// Table of architectures, building, and what is summed over a program.
#include "shard/program/program.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "shard/program/internal.h"
#include "shard/quant/quant.h"

const struct program_architecture program_architectures[] = {
	{"llama", program_llama_build}, // SmolLM2 and most mistrals too
	{"mistral", program_llama_build},
	{"qwen2", program_qwen2_build},
	{NULL, NULL},
};

static const struct program_architecture *find_architecture(const struct format_gguf_string *name)
{
	for (const struct program_architecture *a = program_architectures; a->name; a++) {
		if (strlen(a->name) == name->bytes && memcmp(a->name, name->data, name->bytes) == 0)
			return a;
	}
	return NULL;
}

static int refuse_architecture(const struct format_gguf *g, const struct format_gguf_string *name, struct base_error *e)
{
	char known[128] = "", text[33] = {0};
	size_t at = 0;
	for (const struct program_architecture *a = program_architectures; a->name && at < sizeof known; a++)
		at += (size_t)snprintf(known + at, sizeof known - at, "%s%s", at ? ", " : "", a->name);
	for (size_t i = 0; i < name->bytes && i < sizeof text - 1; i++)
		text[i] = name->data[i] > 0x20 && name->data[i] < 0x7f ? name->data[i] : '?';
	return base_error_set(e, -ENOTSUP, "%s: architecture '%s' is not supported (supported: %s)",
		format_gguf_path(g), text, known);
}

// A tensor that no step reads may change what the model says: better refused than ignored.
static int check_all_used(const struct format_gguf *g, const struct program *p, struct base_error *e)
{
	uint32_t count = format_gguf_tensor_count(g), used = p->weights_count + (p->rope_factors != NULL);
	if (count == used)
		return 0;
	_cleanup_free_ bool *seen = calloc(count, sizeof *seen);
	if (!seen)
		return base_error_set(e, -ENOMEM, "no memory for the program");
	for (uint32_t i = 0; i < p->weights_count; i++)
		seen[p->weights[i].source - format_gguf_tensor(g, 0)] = true;
	for (uint32_t i = 0; i < count; i++) {
		const char *name = format_gguf_tensor(g, i)->name;
		if (!seen[i] && strcmp(name, PROGRAM_ROPE_FREQS) != 0)
			return base_error_set(e, -ENOTSUP, "%s: tensor %s is not part of a %s model that is supported",
				format_gguf_path(g), name, p->config.architecture);
	}
	return 0;
}

/* ---- values ---- */

struct life {
	uint32_t last; // step that reads it last
	uint32_t to; // its new id
	bool rows; // after SELECT: rows that logits are wanted of
};

static void find_lives(const struct program *p, struct life *lives)
{
	bool rows = false;
	for (uint32_t s = 0; s < p->steps_count; s++) {
		const struct program_step *step = &p->steps[s];
		rows |= step->op == PROGRAM_SELECT;
		lives[step->out].last = s;
		lives[step->out].rows = rows;
		for (uint32_t i = 0; i < 3; i++) {
			if (step->in[i] != PROGRAM_NONE)
				lives[step->in[i]].last = s;
		}
	}
	lives[p->logits].last = UINT32_MAX;
}

static uint32_t take_buffer(const struct program *p, const struct life *lives, const struct life *life, uint32_t width,
	struct program_value *values, uint64_t *busy_until, bool *rows, uint32_t step, uint32_t *count)
{
	for (uint32_t i = 0; i < *count; i++) {
		if (values[i].width == width && rows[i] == life->rows && busy_until[i] < step)
			return i;
	}
	values[*count].width = width;
	rows[*count] = life->rows;
	return (*count)++;
}

int program_share_values(struct program *p, struct base_error *e)
{
	_cleanup_free_ struct life *lives = calloc(p->values_count, sizeof *lives);
	_cleanup_free_ uint64_t *busy_until = calloc(p->values_count, sizeof *busy_until);
	_cleanup_free_ bool *rows = calloc(p->values_count, sizeof *rows);
	struct program_value *values = calloc(p->values_count, sizeof *values);
	uint32_t count = 0;
	if (!lives || !busy_until || !rows || !values) {
		free(values);
		return base_error_set(e, -ENOMEM, "no memory for the program");
	}
	find_lives(p, lives);
	for (uint32_t i = 0; i < p->values_count; i++)
		lives[i].to = PROGRAM_NONE;
	for (uint32_t s = 0; s < p->steps_count; s++) {
		struct program_step *step = &p->steps[s];
		struct life *out = &lives[step->out];
		if (out->to == PROGRAM_NONE) {
			out->to = take_buffer(
				p, lives, out, p->values[step->out].width, values, busy_until, rows, s, &count);
			busy_until[out->to] = out->last;
		}
		step->out = out->to;
		for (uint32_t i = 0; i < 3; i++) {
			if (step->in[i] != PROGRAM_NONE)
				step->in[i] = lives[step->in[i]].to;
		}
	}
	p->logits = lives[p->logits].to;
	free(p->values);
	p->values = values;
	p->values_count = count;
	return 0;
}

int program_build(const struct format_gguf *g, struct program **ret_program, struct base_error *e)
{
	struct format_gguf_string name;
	int status = format_gguf_get_string(g, "general.architecture", &name, e);
	if (status)
		return status == -ENOENT
			       ? base_error_set(e, -EINVAL, "%s: metadata key general.architecture is missing",
					 format_gguf_path(g))
			       : status;
	const struct program_architecture *architecture = find_architecture(&name);
	if (!architecture)
		return refuse_architecture(g, &name, e);
	struct program *p = calloc(1, sizeof *p);
	if (!p)
		return base_error_set(e, -ENOMEM, "no memory for the program");
	snprintf(p->config.architecture, sizeof p->config.architecture, "%s", architecture->name);
	struct program_builder b = {.p = p, .source = g, .error = e, .layer = PROGRAM_NONE};
	status = architecture->build(&b);
	if (!status)
		status = check_all_used(g, p, e);
	if (!status)
		status = program_share_values(p, e);
	if (status) {
		program_destroy(p);
		return status == -ENOENT ? -EINVAL : status; // a missing key is a bad model, not a missing file
	}
	*ret_program = p;
	return 0;
}

void program_destroy(struct program *p)
{
	if (!p)
		return;
	free(p->weights);
	free(p->steps);
	free(p->values);
	free(p->rope_factors);
	free(p);
}

/* ---- sums ---- */

static uint64_t weight_bytes(const struct program_weight *w)
{
	uint64_t row = 0;
	if (w->rows == 1)
		return (uint64_t)w->cols * sizeof(float); // vectors are kept as floats
	if (quant_row_bytes(w->type, w->cols, &row))
		return 0; // cannot be: checked when it was built
	return row * w->rows;
}

static bool is_looked_up(const struct program *p, uint32_t weight)
{
	return p->steps[p->weights[weight].step].op == PROGRAM_EMBED;
}

uint64_t program_weight_bytes(const struct program *p)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < p->weights_count; i++)
		sum += is_looked_up(p, i) ? 0 : weight_bytes(&p->weights[i]);
	return sum;
}

uint64_t program_layer_bytes(const struct program *p, uint32_t layer)
{
	uint64_t sum = 0;
	for (uint32_t i = 0; i < p->weights_count; i++)
		sum += p->weights[i].layer == layer ? weight_bytes(&p->weights[i]) : 0;
	return sum;
}

uint64_t program_token_macs(const struct program *p)
{
	uint64_t sum = 0;
	for (uint32_t s = 0; s < p->steps_count; s++) {
		const struct program_step *step = &p->steps[s];
		if (step->op == PROGRAM_MATMUL)
			sum += (uint64_t)p->weights[step->weight].rows * p->weights[step->weight].cols;
	}
	return sum;
}
