// SPDX-License-Identifier: Apache-2.0
// Making and unmaking a rank; its sequences and statistics.
#include "shard/rank/rank.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "base/units.h"
#include "shard/rank/internal.h"

static int no_memory(struct base_error *e)
{
	return base_error_set(e, -ENOMEM, "no memory for the workspace");
}

/* What this rank runs of the whole program. */
static int take_part(struct rank *r, struct base_error *e)
{
	const struct pack_slice *s = &r->config.slice;
	struct program *part = NULL;
	int status = s->tp_size > 1 ? program_slice(r->program, s->tp_rank, s->tp_size, &part, e) : 0;
	if (status || !part)
		return status;
	program_destroy(r->program);
	r->program = part;
	return 0;
}

static int load_program(struct rank *r, struct base_error *e)
{
	struct format_gguf *g = NULL;
	int status = format_gguf_open(r->config.model_path, &g, e);
	// A file that took the name since would lend its numbers (rope, eps) to the weights that were packed from the
	// other.
	if (!status && r->config.header_hash && r->config.header_hash != format_gguf_header_hash(g))
		status = base_error_set(e, -ESTALE,
			"model %s is another file than the one that was packed: unload the model and load it again",
			r->config.model_path);
	if (!status)
		status = program_build(g, &r->program, e);
	format_gguf_close(g);
	for (uint32_t i = 0; !status && i < r->program->weights_count; i++)
		r->program->weights[i].source = NULL;
	if (!status)
		status = rank_check_config(r->program, &r->config, e);
	if (!status)
		status = pack_layout_build(r->program, &r->config.slice, &r->layout, e);
	if (!status)
		status = take_part(r, e);
	if (status)
		return status;
	const struct pack_slice *s = &r->config.slice;
	r->first_stage = s->first_layer == 0;
	r->last_stage = s->first_layer + s->layers == r->program->config.layers;
	rank_sum_sizes(r->program, s, r->layout, &r->sizes);
	return rank_spend_budget(&r->config, &r->sizes, &r->budget, e);
}

static int create_backend(struct rank *r, struct base_error *e)
{
	r->ops = backend_find(r->config.backend);
	if (!r->ops)
		return base_error_set(e, -EINVAL, "there is no backend '%s'", r->config.backend);
	struct backend_config config = {
		.threads = r->config.threads,
		.cpus = r->config.cpus_count ? r->config.cpus : NULL,
		.cpus_count = r->config.cpus_count,
		.max_tokens = r->config.batch_tokens,
		.max_cols = rank_max_cols(r->program),
	};
	int status = r->ops->create(&config, &r->backend, e);
	if (status)
		return status;
	snprintf(r->placement.isa, sizeof r->placement.isa, "%s", r->ops->isa(r->backend));
	status = r->ops->input_create(r->backend, &r->input);
	return status ? base_error_set(e, status, "no memory for the input of matmuls") : 0;
}

static int take_kv(struct rank *r, struct base_error *e)
{
	const struct program_config *c = &r->program->config;
	const struct rank_config *config = &r->config;
	uint64_t block = 0, wanted;
	int status = kv_block_bytes(config->kv_type, config->slice.layers, c->kv_heads, c->head_dim, &block);
	if (status)
		return base_error_set(e, status, "heads of %u elements do not fit the KV cache's type", c->head_dim);
	wanted = base_size_div_up(config->context_tokens, KV_BLOCK_TOKENS) * config->sequences;
	uint64_t blocks = config->kv_budget_bytes / block;
	blocks = blocks < wanted ? blocks : wanted;
	if (blocks == 0)
		return base_error_set(e, -ENOMEM,
			"the KV budget of %llu bytes is %llu bytes short of one block of %u positions",
			(unsigned long long)config->kv_budget_bytes,
			(unsigned long long)(block - config->kv_budget_bytes), KV_BLOCK_TOKENS);
	r->placement.kv_blocks = (uint32_t)blocks;
	r->placement.kv_bytes = blocks * block;
	r->kv_layer_bytes = blocks * (block / config->slice.layers / 2);
	r->written_by = calloc(blocks, sizeof *r->written_by);
	if (!r->written_by)
		return no_memory(e);
	status = r->ops->alloc(r->backend, r->placement.kv_bytes, (void **)&r->kv);
	return status ? base_error_set(e, status, "no memory for a KV cache of %llu bytes",
				(unsigned long long)r->placement.kv_bytes)
		      : 0;
}

static void set_rope_frequencies(struct rank *r)
{
	const struct program_config *c = &r->program->config;
	for (uint32_t i = 0; i < c->rope_dims / 2; i++) {
		double f = pow((double)c->rope_base, -2.0 * i / c->rope_dims) * (double)c->rope_scale;
		r->rope_frequencies[i] = r->program->rope_factors ? f / (double)r->program->rope_factors[i] : f;
	}
}

static int take_values(struct rank *r)
{
	bool *selected = calloc(r->program->values_count, sizeof *selected);
	r->values = calloc(r->program->values_count, sizeof *r->values);
	int status = selected && r->values ? 0 : -ENOMEM;
	if (!status)
		rank_mark_selected(r->program, selected);
	for (uint32_t i = 0; i < r->program->values_count && !status; i++) {
		size_t rows = selected[i] ? r->config.logits_rows : r->config.batch_tokens;
		status = r->ops->alloc(
			r->backend, rows * r->program->values[i].width * sizeof(float), (void **)&r->values[i]);
	}
	free(selected);
	return status;
}

static int take_workspace(struct rank *r, struct base_error *e)
{
	const struct rank_config *c = &r->config;
	size_t tokens = c->batch_tokens, rope = tokens * r->program->config.rope_dims * sizeof(float);
	uint64_t bytes = rank_workspace_bytes(r->program, c);
	if (bytes > c->workspace_budget_bytes) {
		char needs[BASE_UNITS_TEXT_BYTES];
		return base_error_set(e, -ENOMEM,
			"the workspace budget of %llu bytes is %llu bytes short: %u tokens in a pass, logits of %u and "
			"%u sequences need %s",
			(unsigned long long)c->workspace_budget_bytes,
			(unsigned long long)(bytes - c->workspace_budget_bytes), c->batch_tokens, c->logits_rows,
			c->sequences, base_units_format_bytes(bytes, needs));
	}
	r->placement.workspace_bytes = bytes;
	r->rope_frequencies = calloc(r->program->config.rope_dims / 2, sizeof *r->rope_frequencies);
	r->attend_tokens = calloc(tokens, sizeof *r->attend_tokens);
	r->embed_rows = calloc(tokens, sizeof *r->embed_rows);
	r->selected = calloc(c->logits_rows, sizeof *r->selected);
	r->sequences = calloc(c->sequences, sizeof *r->sequences);
	r->history = calloc((size_t)c->sequences * c->context_tokens, sizeof *r->history);
	if (!r->rope_frequencies || !r->attend_tokens || !r->embed_rows || !r->selected || !r->sequences ||
		!r->history || take_values(r) || r->ops->alloc(r->backend, rope, (void **)&r->cos_sin) ||
		sample_scratch_create(r->program->config.vocab, &r->scratch))
		return no_memory(e);
	// Both backends so far compute in host memory: what they hold is read and written in place.
	r->cos_sin_host = r->cos_sin;
	r->logits_host = r->values[r->program->logits];
	if (rank_tensor_create(r))
		return no_memory(e);
	for (uint32_t i = 0; i < c->sequences; i++)
		r->sequences[i].history = r->history + (size_t)i * c->context_tokens;
	set_rope_frequencies(r);
	return 0;
}

static int create(struct rank *r, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context)
{
	int status;
	// Everything that can be refused is refused before the long read of the hot extents.
	if ((status = load_program(r, e)) || (status = rank_open_files(r, e)) || (status = create_backend(r, e)) ||
		(status = take_workspace(r, e)) || (status = take_kv(r, e)) ||
		(status = rank_load(r, e, progress, context)) || (status = rank_plan_pass(r, e)) ||
		(status = rank_start_stream(r, e)))
		return status;
	snprintf(r->placement.pages, sizeof r->placement.pages, "%s", offload_pages_name(r->memory.pages));
	return rank_rows_create(r, e);
}

int rank_create(const struct rank_config *config, struct rank **ret_rank, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context)
{
	struct rank *r = calloc(1, sizeof *r);
	if (!r)
		return no_memory(e);
	r->config = *config;
	base_trace_init(&r->trace);
	int status = create(r, e, progress, context);
	if (status) {
		rank_destroy(r);
		return status;
	}
	*ret_rank = r;
	return 0;
}

static void free_backend(struct rank *r)
{
	if (!r->backend)
		return;
	for (uint32_t i = 0; r->values && i < r->program->values_count; i++)
		r->ops->free(r->backend, r->values[i]);
	r->ops->free(r->backend, r->cos_sin);
	r->ops->free(r->backend, r->kv);
	if (r->input)
		r->ops->input_destroy(r->backend, r->input);
	r->ops->destroy(r->backend);
}

void rank_destroy(struct rank *r)
{
	if (!r)
		return;
	offload_stream_destroy(r->stream);
	if (r->row_engine)
		r->row_engine->ops->destroy(r->row_engine);
	free_backend(r);
	offload_memory_unmap(&r->memory);
	for (uint32_t i = 0; r->stores && i < r->layout->files_count; i++)
		offload_store_close(r->stores[i]);
	sample_scratch_destroy(r->scratch);
	pack_layout_destroy(r->layout);
	program_destroy(r->program);
	void *tables[] = {r->stores, r->fds, r->hot, r->ring, r->row_slots, r->lookup_piece, r->values, r->vectors,
		r->op, r->runs, r->parts, r->part_offsets, r->rope_frequencies, r->attend_tokens, r->embed_rows,
		r->selected, r->written_by, r->sequences, r->history, r->gathered, r->embed_tokens, r->zeros, r->tail};
	for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
		free(tables[i]);
	base_trace_finish(&r->trace);
	free(r);
}

void rank_get_placement(const struct rank *r, struct rank_placement *ret_placement)
{
	*ret_placement = r->placement;
}

const struct program *rank_program(const struct rank *r)
{
	return r->program;
}

const float *rank_logits(const struct rank *r)
{
	return r->logits_host;
}

int rank_sequence_open(struct rank *r, uint32_t sequence, const struct sample_params *params, uint32_t prompt_tokens)
{
	if (sequence >= r->config.sequences)
		return -ENOSPC;
	struct rank_sequence *s = &r->sequences[sequence];
	if (s->open)
		return -EEXIST;
	if (prompt_tokens > r->config.context_tokens || sample_params_check(params, r->program->config.vocab, NULL))
		return -EINVAL;
	s->open = true;
	s->params = *params;
	s->prompt_tokens = prompt_tokens;
	s->known_tokens = 0;
	return 0;
}

void rank_sequence_close(struct rank *r, uint32_t sequence)
{
	if (sequence < r->config.sequences)
		r->sequences[sequence].open = false;
}

void rank_get_stats(const struct rank *r, struct rank_stats *ret_stats)
{
	struct rank_stats s = {
		.passes = atomic_load_explicit(&r->passes, memory_order_relaxed),
		.pass_ns = atomic_load_explicit(&r->pass_ns, memory_order_relaxed),
		.compute_ns = atomic_load_explicit(&r->compute_ns, memory_order_relaxed),
		.embed_read_bytes = atomic_load_explicit(&r->embed_read_bytes, memory_order_relaxed),
	};
	if (r->stream)
		offload_stream_get_stats(r->stream, &s.stream);
	*ret_stats = s;
}

struct base_trace *rank_trace(struct rank *r)
{
	return &r->trace;
}
