// SPDX-License-Identifier: Apache-2.0
// One traversal: checking the pass, walking the ops, sampling.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "shard/rank/internal.h"

/* ---- is it well-formed? ---- */

static int check_blocks(struct rank *r, const struct rank_pass *pass, uint32_t i, struct base_error *e)
{
	const struct rank_entry *x = &pass->entries[i];
	uint32_t end = x->first_position + x->tokens;
	if (x->first_block > pass->blocks_count || x->blocks > pass->blocks_count - x->first_block)
		return base_error_set(e, -EINVAL, "entry %u: its blocks are not in the pass's list", i);
	if ((uint64_t)x->blocks * KV_BLOCK_TOKENS < end)
		return base_error_set(e, -EINVAL, "entry %u: %u KV blocks do not hold %u positions", i, x->blocks, end);
	for (uint32_t b = 0; b < x->blocks; b++) {
		uint32_t block = pass->blocks[x->first_block + b];
		if (block >= r->placement.kv_blocks)
			return base_error_set(
				e, -EINVAL, "entry %u: KV block %u; there are %u", i, block, r->placement.kv_blocks);
		if (b < x->first_position / KV_BLOCK_TOKENS || b > (end - 1) / KV_BLOCK_TOKENS)
			continue; // only read
		if (r->written_by[block] == r->pass_stamp)
			return base_error_set(
				e, -EINVAL, "entry %u: KV block %u is written twice in one pass", i, block);
		r->written_by[block] = r->pass_stamp;
	}
	return 0;
}

static int check_wants(struct rank *r, const struct rank_pass *pass, uint32_t i, uint32_t *rows, struct base_error *e)
{
	const struct rank_entry *x = &pass->entries[i];
	if (x->want == RANK_WANT_SAMPLE)
		*rows += 1;
	if (x->want == RANK_WANT_SCORES) {
		*rows += x->tokens;
		if (x->first_target > pass->targets_count || x->tokens > pass->targets_count - x->first_target)
			return base_error_set(e, -EINVAL, "entry %u: its targets are not in the pass's list", i);
		for (uint32_t t = 0; t < x->tokens; t++) {
			if (pass->targets[x->first_target + t] >= r->program->config.vocab)
				return base_error_set(e, -EINVAL, "entry %u: target %u is not in the vocabulary of %u",
					i, pass->targets[x->first_target + t], r->program->config.vocab);
		}
		if (x->score_top > SAMPLE_MAX_LOGPROBS)
			return base_error_set(e, -EINVAL, "entry %u: %u top log probabilities; at most %u are allowed",
				i, x->score_top, SAMPLE_MAX_LOGPROBS);
	} else if (x->want != RANK_WANT_SAMPLE && x->want != RANK_WANT_NOTHING) {
		return base_error_set(
			e, -EINVAL, "entry %u wants %u, which is nothing that there is", i, (unsigned)x->want);
	}
	if (*rows > r->config.logits_rows)
		return base_error_set(e, -EINVAL, "logits of more than %u positions are wanted", r->config.logits_rows);
	return 0;
}

static int check_entry(struct rank *r, const struct rank_pass *pass, uint32_t i, uint32_t *tokens, struct base_error *e)
{
	const struct rank_entry *x = &pass->entries[i];
	const struct rank_sequence *s = x->sequence < r->config.sequences ? &r->sequences[x->sequence] : NULL;
	if (!s || !s->open)
		return base_error_set(e, -EINVAL, "entry %u: sequence %u is not open", i, x->sequence);
	if (x->tokens == 0 || x->first_token != *tokens || x->tokens > pass->tokens_count - *tokens)
		return base_error_set(e, -EINVAL, "entry %u: its tokens are not the next ones of the pass", i);
	*tokens += x->tokens;
	if (x->first_position > r->config.context_tokens || x->tokens > r->config.context_tokens - x->first_position)
		return base_error_set(e, -EINVAL, "entry %u: positions %u to %llu; the context has %u", i,
			x->first_position, (unsigned long long)x->first_position + x->tokens, r->config.context_tokens);
	if (x->first_position > s->known_tokens)
		return base_error_set(e, -EINVAL, "entry %u: position %u, but only %u tokens of sequence %u have come",
			i, x->first_position, s->known_tokens, x->sequence);
	for (uint32_t j = 0; j < i; j++) {
		if (pass->entries[j].sequence == x->sequence)
			return base_error_set(e, -EINVAL, "entry %u: sequence %u is in the pass twice", i, x->sequence);
	}
	return check_blocks(r, pass, i, e);
}

int rank_check_pass(
	struct rank *r, const struct rank_pass *pass, const struct rank_pass_result *result, struct base_error *e)
{
	uint32_t tokens = 0, rows = 0;
	if (pass->entries_count == 0 || pass->entries_count > r->config.sequences)
		return base_error_set(e, -EINVAL, "a pass of %u entries; 1 to %u are allowed", pass->entries_count,
			r->config.sequences);
	if (pass->tokens_count > r->config.batch_tokens)
		return base_error_set(e, -EINVAL, "a pass of %u tokens; at most %u are allowed", pass->tokens_count,
			r->config.batch_tokens);
	if (!pass->hidden_in != r->first_stage || (!r->last_stage && !result->hidden_out))
		return base_error_set(
			e, -EINVAL, "the activations of the stage before, or room for the next one's, are missing");
	for (uint32_t i = 0; i < pass->tokens_count; i++) {
		if (pass->tokens[i] >= r->program->config.vocab)
			return base_error_set(e, -EINVAL, "token %u is not in the vocabulary of %u", pass->tokens[i],
				r->program->config.vocab);
	}
	if (++r->pass_stamp == 0) { // once in 2^32 passes
		memset(r->written_by, 0, r->placement.kv_blocks * sizeof *r->written_by);
		r->pass_stamp = 1;
	}
	for (uint32_t i = 0; i < pass->entries_count; i++) {
		int status = check_entry(r, pass, i, &tokens, e);
		if (!status)
			status = check_wants(r, pass, i, &rows, e);
		if (status)
			return status;
	}
	if (tokens != pass->tokens_count)
		return base_error_set(
			e, -EINVAL, "%u tokens of the pass belong to no entry", pass->tokens_count - tokens);
	return 0;
}

/* ---- before the ops ---- */

struct walk {
	struct rank *r;
	const struct rank_pass *pass;
	struct rank_pass_result *result;
	uint32_t tokens, rows; // rows: that logits are wanted of
	int failed; // of cold data: the rest of the ring is taken and given back, nothing is computed
	struct base_error *e; // of the first failure
	const uint8_t *cold; // the extent that is held
	uint32_t slot;
	uint64_t begin_ns; // of the span under way; 0: nothing is traced
	int ended; // what ended the group of the parts: nothing can be done any more
};

// Sine and cosine in double precision: a float angle at position 100,000 would be off by thousandths.
static void set_rope_row(struct rank *r, uint32_t position, float *row)
{
	for (uint32_t i = 0; i < r->program->config.rope_dims / 2; i++) {
		double sine, cosine;
		sincos(position * r->rope_frequencies[i], &sine, &cosine);
		row[2 * i] = (float)cosine;
		row[2 * i + 1] = (float)sine;
	}
}

static void prepare(struct walk *k)
{
	struct rank *r = k->r;
	const struct rank_pass *pass = k->pass;
	uint32_t dims = r->program->config.rope_dims;
	for (uint32_t i = 0, t = 0; i < pass->entries_count; i++) {
		const struct rank_entry *x = &pass->entries[i];
		struct rank_sequence *s = &r->sequences[x->sequence];
		memcpy(s->history + x->first_position, pass->tokens + x->first_token, x->tokens * sizeof *s->history);
		s->known_tokens = x->first_position + x->tokens;
		for (uint32_t j = 0; j < x->tokens; j++, t++) {
			r->attend_tokens[t] = (struct backend_attend_token){
				.blocks = pass->blocks + x->first_block,
				.position = x->first_position + j,
			};
			set_rope_row(r, x->first_position + j, r->cos_sin_host + (size_t)t * dims);
			if (x->want == RANK_WANT_SCORES || (x->want == RANK_WANT_SAMPLE && j == x->tokens - 1))
				r->selected[k->rows++] = t;
		}
	}
	k->tokens = pass->tokens_count;
	if (!r->last_stage)
		k->rows = 0;
	if (r->cos_sin != r->cos_sin_host)
		r->ops->upload(r->backend, r->cos_sin, r->cos_sin_host, (size_t)k->tokens * dims * sizeof(float));
}

/* ---- the ops ---- */

static void cold_failed(struct walk *k, uint32_t layer, int status, const struct base_error *e)
{
	if (k->failed)
		return;
	k->failed = status == -EBADMSG || status == -ETIMEDOUT ? status : -EIO;
	if (layer < k->r->program->config.layers)
		base_error_set(k->e, k->failed, "layer %u: %s", layer, base_error_text(e));
	else
		base_error_set(k->e, k->failed, "%s", base_error_text(e));
}

static void end_span(struct walk *k, enum base_trace_kind kind, uint32_t layer)
{
	base_trace_end(
		&k->r->trace, k->begin_ns, kind, layer < k->r->program->config.layers ? layer : BASE_TRACE_NO_PLACE, 0);
	k->begin_ns = 0;
}

static void do_run(struct walk *k, const struct rank_run *run, uint32_t layer, bool compute)
{
	struct rank *r = k->r;
	struct backend_part *parts = &r->parts[run->first_part];
	if (run->acquire) {
		const void *data = NULL;
		struct base_error e = {0};
		end_span(k, BASE_TRACE_MATMUL, layer); // waiting for the drive is no computing
		int status = offload_stream_next(r->stream, &data, &k->slot, &e);
		k->begin_ns = base_trace_begin(&r->trace);
		k->cold = status ? NULL : data;
		if (status)
			cold_failed(k, layer, status, &e);
	}
	if (compute && !k->failed) {
		for (uint32_t i = 0; run->cold && i < run->parts; i++)
			parts[i].weights = k->cold + r->part_offsets[run->first_part + i];
		r->ops->matmul(r->backend, r->input, parts, run->parts);
	}
	if (run->release && k->cold) {
		if (compute && !k->failed)
			r->ops->wait(r->backend, r->ops->fence(r->backend));
		offload_stream_release(r->stream, k->slot);
		k->cold = NULL;
	}
}

static void do_matmul(struct walk *k, const struct rank_op *op, uint32_t n)
{
	struct rank *r = k->r;
	const struct program_step *step = op->step;
	bool compute = n > 0 && !k->failed;
	k->begin_ns = base_trace_begin(&r->trace);
	if (compute)
		r->ops->input_load(
			r->backend, r->input, r->values[step->in[0]], n, r->program->weights[step->weight].cols);
	for (uint32_t i = 0; i < op->runs; i++) {
		const struct rank_run *run = &r->runs[op->first_run + i];
		// The number of tokens goes with the input, so parts need no change for it.
		if (run->cold || compute)
			do_run(k, run, step->layer, compute);
	}
	for (uint32_t s = 0; s < op->steps && compute && !k->failed; s++) {
		if (step[s].bias != PROGRAM_NONE)
			r->ops->add_bias(r->backend, r->values[step[s].out], r->vectors[step[s].bias], n,
				r->program->values[step[s].out].width);
	}
	end_span(k, BASE_TRACE_MATMUL, step->layer);
}

static void do_attend(struct walk *k, const struct program_step *step)
{
	struct rank *r = k->r;
	const struct program_config *c = &r->program->config;
	uint8_t *kv = r->kv + 2 * r->kv_layer_bytes * (step->layer - r->config.slice.first_layer);
	struct backend_attend a = {
		.q = r->values[step->in[0]],
		.k = r->values[step->in[1]],
		.v = r->values[step->in[2]],
		.out = r->values[step->out],
		.tokens = k->tokens,
		.heads = c->heads,
		.kv_heads = c->kv_heads,
		.head_dim = c->head_dim,
		.scale = (float)(1 / sqrt((double)c->head_dim)),
		.window = c->window,
		.token = r->attend_tokens,
		.kv_type = r->config.kv_type,
		.k_cache = kv,
		.v_cache = kv + r->kv_layer_bytes,
	};
	r->ops->attend(r->backend, &a);
}

// Also after a failure: the others wait for this part's numbers, whatever they are.
static void do_reduce(struct walk *k, const struct program_step *step, uint32_t n)
{
	struct rank *r = k->r;
	if (k->ended || n == 0)
		return;
	k->ended = rank_tensor_sum(r, r->values[step->out], (size_t)n * r->program->values[step->out].width, k->e);
	if (k->ended)
		k->failed = k->ended;
}

// Without a default: a step that is new does not compile until it has a kind.
static enum base_trace_kind span_kind(enum program_op op)
{
	switch (op) {
	case PROGRAM_EMBED:
		return BASE_TRACE_EMBED;
	case PROGRAM_NORM:
		return BASE_TRACE_NORM;
	case PROGRAM_MATMUL:
		return BASE_TRACE_MATMUL;
	case PROGRAM_ROPE:
		return BASE_TRACE_ROPE;
	case PROGRAM_ATTEND:
		return BASE_TRACE_ATTEND;
	case PROGRAM_ADD:
		return BASE_TRACE_ADD;
	case PROGRAM_SILU_GATE:
		return BASE_TRACE_SILU_GATE;
	case PROGRAM_SELECT:
		return BASE_TRACE_SELECT;
	case PROGRAM_REDUCE:
		return BASE_TRACE_ALLREDUCE;
	}
	return BASE_TRACE_MATMUL;
}

static void do_small_step(struct walk *k, const struct program_step *step, uint32_t n)
{
	struct rank *r = k->r;
	const struct program_config *c = &r->program->config;
	float *out = r->values[step->out];
	uint32_t width = r->program->values[step->out].width;
	const float *in0 = step->in[0] == PROGRAM_NONE ? NULL : r->values[step->in[0]];
	const float *in1 = step->in[1] == PROGRAM_NONE ? NULL : r->values[step->in[1]];
	k->begin_ns = base_trace_begin(&r->trace);
	switch (step->op) {
	case PROGRAM_NORM:
		r->ops->norm(r->backend, in0, r->vectors[step->weight], c->norm_eps, n, width, out);
		break;
	case PROGRAM_ROPE:
		r->ops->rope(r->backend, out, n, step->heads, c->head_dim, c->rope_dims,
			c->rope_halves ? BACKEND_ROPE_HALVES : BACKEND_ROPE_PAIRS, r->cos_sin);
		break;
	case PROGRAM_ATTEND:
		do_attend(k, step);
		break;
	case PROGRAM_ADD:
		r->ops->add(r->backend, out, in1, (size_t)n * width);
		break;
	case PROGRAM_SILU_GATE:
		r->ops->silu_gate(r->backend, in0, in1, (size_t)n * width, out);
		break;
	case PROGRAM_SELECT:
		r->ops->select(r->backend, in0, width, r->selected, n, out);
		break;
	case PROGRAM_EMBED:
	case PROGRAM_MATMUL:
	case PROGRAM_REDUCE:
		return; // done elsewhere
	}
	end_span(k, span_kind(step->op), step->layer);
}

static void embed(struct walk *k, float *x)
{
	struct rank *r = k->r;
	bool cut = r->program->weights[r->program->steps[0].weight].rows < r->program->config.vocab;
	k->begin_ns = base_trace_begin(&r->trace);
	k->failed = cut ? rank_tensor_embed(r, k->pass->tokens, k->tokens, x, k->e)
			: rank_rows_embed(r, k->pass->tokens, k->tokens, x, k->e);
	end_span(k, BASE_TRACE_EMBED, BASE_TRACE_NO_PLACE);
}

static void walk_ops(struct walk *k)
{
	struct rank *r = k->r;
	float *x = r->values[r->program->steps[0]
				     .out]; // the residual: what goes from layer to layer, and from stage to stage
	size_t hidden_bytes = (size_t)k->tokens * r->program->config.width * sizeof(float);
	if (r->first_stage)
		embed(k, x);
	else
		r->ops->upload(r->backend, x, k->pass->hidden_in, hidden_bytes);
	bool leave_ring = k->failed; // nothing of it is taken yet: the stream stays where it is
	for (uint32_t i = 0; i < r->op_count; i++) {
		const struct rank_op *op = &r->op[i];
		uint32_t n = op->selected ? k->rows : k->tokens;
		if (op->step->op == PROGRAM_REDUCE)
			do_reduce(k, op->step, n);
		else if (op->step->op == PROGRAM_MATMUL && !leave_ring)
			do_matmul(k, op, n);
		else if (!k->failed && n > 0)
			do_small_step(k, op->step, n);
	}
	if (!r->last_stage && !k->failed)
		r->ops->download(r->backend, k->result->hidden_out, x, hidden_bytes);
}

/* ---- after the ops ---- */

// Weights that are no numbers, or too large ones, make logits that are none: there is no token that would be right.
static void refuse_not_a_number(struct walk *k, uint32_t entry)
{
	base_error_set(
		k->e, -EBADMSG, "model %s: its weights give logits that are not numbers", k->r->config.model_path);
	k->result->entry_status[entry] = -EBADMSG;
}

static void write_outputs(struct walk *k)
{
	struct rank *r = k->r;
	const struct rank_pass *pass = k->pass;
	uint32_t row = 0, vocab = r->program->config.vocab;
	if (k->rows && !r->gathered && r->logits_host != r->values[r->program->logits])
		r->ops->download(r->backend, r->logits_host, r->values[r->program->logits],
			(size_t)k->rows * vocab * sizeof(float));
	for (uint32_t i = 0; i < pass->entries_count && r->last_stage; i++) {
		const struct rank_entry *x = &pass->entries[i];
		const struct rank_sequence *s = &r->sequences[x->sequence];
		uint32_t count = x->want == RANK_WANT_SAMPLE ? 1 : x->want == RANK_WANT_SCORES ? x->tokens : 0;
		for (uint32_t j = 0; j < count; j++, row++) {
			const float *logits = r->logits_host + (size_t)row * vocab;
			struct rank_output *out = &k->result->outputs[k->result->outputs_count++];
			out->entry = i;
			out->token_index = j;
			if (x->want == RANK_WANT_SAMPLE)
				sample_draw(r->scratch, &s->params, logits, s->history, s->known_tokens,
					s->prompt_tokens, &out->result);
			else
				sample_score(r->scratch, logits, pass->targets[x->first_target + j], x->score_top,
					&out->result);
			if (!isfinite(out->result.logprob))
				refuse_not_a_number(k, i);
		}
	}
}

// What the other parts made of the pass, to the first one.
static int finish_together(struct walk *k)
{
	struct rank_pass_result *result = k->result;
	struct rank_tail tail = {
		.status = k->failed,
		.total_ns = result->total_ns,
		.stall_ns = result->stall_ns,
		.cold_bytes = result->cold_bytes,
	};
	if (k->failed)
		tail.e = *k->e;
	int status = rank_tensor_tails(k->r, &tail, k->e);
	if (!status && k->rows)
		status = rank_tensor_gather(k->r, k->rows, k->e);
	if (!status)
		status = rank_tensor_leave(k->r, k->e);
	if (status)
		return status;
	if (!k->failed && tail.status)
		*k->e = tail.e;
	k->failed = tail.status;
	result->total_ns = tail.total_ns;
	result->stall_ns = tail.stall_ns;
	result->cold_bytes = tail.cold_bytes;
	return 0;
}

/* A pass that one part refuses all refuse, for the first one's reason. */
static int agree(struct rank *r, int refused, struct base_error *e)
{
	bool refuse = false;
	struct base_error why = *e;
	int status = rank_tensor_agree(r, refused, &refuse, e);
	if (status || !refuse)
		return status;
	struct rank_tail tail = {.status = refused, .e = why};
	status = rank_tensor_tails(r, &tail, e);
	if (!status)
		status = rank_tensor_leave(r, e);
	if (status)
		return status;
	return base_error_set(e, -EINVAL, "%s", tail.status ? tail.e.message : "another part refused the pass");
}

static void run(struct walk *k)
{
	struct rank *r = k->r;
	uint64_t start = base_clock_now_ns();
	struct offload_stream_stats before = {0}, after = {0};
	uint64_t rows = atomic_load_explicit(&r->embed_read_bytes, memory_order_relaxed);
	if (r->stream)
		offload_stream_get_stats(r->stream, &before);
	prepare(k);
	walk_ops(k);
	if (r->stream)
		offload_stream_get_stats(r->stream, &after);
	k->result->total_ns = base_clock_now_ns() - start;
	k->result->stall_ns = after.stall_ns - before.stall_ns;
	// The extents that it took (some were read ahead, as some of the next pass are now), second reads, and rows.
	k->result->cold_bytes = r->placement.cold_bytes + after.reread_bytes - before.reread_bytes +
				atomic_load_explicit(&r->embed_read_bytes, memory_order_relaxed) - rows;
}

int rank_run(struct rank *r, const struct rank_pass *pass, struct rank_pass_result *result, struct base_error *e)
{
	uint64_t start = base_clock_now_ns();
	struct base_error own = {0};
	e = e ? e : &own;
	if (r->config.slice.tp_size > 1 && !r->tensor)
		return base_error_set(e, -EINVAL, "a part of layers without the other parts");
	int status = rank_check_pass(r, pass, result, e);
	if (r->tensor)
		status = agree(r, status, e);
	if (status)
		return status;
	struct walk k = {.r = r, .pass = pass, .result = result, .e = e};
	result->outputs_count = 0;
	run(&k);
	uint64_t stall_ns = result->stall_ns;
	status = k.ended;
	if (r->tensor && !status)
		status = finish_together(&k);
	if (status)
		return status;
	for (uint32_t i = 0; i < pass->entries_count; i++)
		result->entry_status[i] = k.failed;
	k.begin_ns = base_trace_begin(&r->trace);
	if (!k.failed && r->config.slice.tp_rank == 0)
		write_outputs(&k);
	if (r->last_stage && r->config.slice.tp_rank == 0)
		end_span(&k, BASE_TRACE_SAMPLE, BASE_TRACE_NO_PLACE);
	uint64_t took_ns = base_clock_now_ns() - start;
	result->total_ns = took_ns > result->total_ns ? took_ns : result->total_ns;
	atomic_fetch_add_explicit(&r->passes, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&r->pass_ns, took_ns, memory_order_relaxed);
	atomic_fetch_add_explicit(&r->compute_ns, took_ns - stall_ns, memory_order_relaxed);
	return 0;
}
