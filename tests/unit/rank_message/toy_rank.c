// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/rank_message/toy_rank.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/rank/rank.h"

#define PRIME 65521u

struct settings {
	int vocab, layers, width, blocks, load_ms, pass_ms, cold, fail_load, fail_token, fail_layer, crash_token, say,
		meet;
};

struct rank {
	struct rank_config config;
	struct settings set;
	struct program program;
	uint32_t *kv; // (layers, blocks, KV_BLOCK_TOKENS)
	bool open[RANK_MAX_SEQUENCES];
	struct sample_params params[RANK_MAX_SEQUENCES];
	uint32_t prompt_tokens[RANK_MAX_SEQUENCES];
	struct rank_stats stats;
	struct base_trace trace;
};

static void setting(const char *text, const char *name, int *value)
{
	const char *at = strstr(text, name);
	if (at && at[strlen(name)] == '=')
		*value = atoi(at + strlen(name) + 1);
}

static struct settings parse(const char *text)
{
	struct settings s = {258, 4, 8, 64, 0, 0, 0, 0, -1, 0, -1, 0, 0};
	setting(text, "vocab", &s.vocab);
	setting(text, "layers", &s.layers);
	setting(text, "width", &s.width);
	setting(text, "blocks", &s.blocks);
	setting(text, "load_ms", &s.load_ms);
	setting(text, "pass_ms", &s.pass_ms);
	setting(text, "cold", &s.cold);
	setting(text, "fail_load", &s.fail_load);
	setting(text, "fail_token", &s.fail_token);
	setting(text, "fail_layer", &s.fail_layer);
	setting(text, "crash_token", &s.crash_token);
	setting(text, "say", &s.say);
	setting(text, "meet", &s.meet);
	return s;
}

static void sleep_ms(int ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	while (nanosleep(&t, &t) < 0)
		;
}

// ---- the model

static uint32_t embed(uint32_t token, uint32_t column)
{
	return (token * 31 + column * 7 + 1) % PRIME;
}

/* What a layer keeps of a position, and what it makes of the row with the sum over all positions so far. */
static uint32_t key(const uint32_t *row, uint32_t width, uint32_t position)
{
	uint32_t k = position + 1;
	for (uint32_t c = 0; c < width; c++)
		k = (k * 257 + row[c]) % PRIME;
	return k;
}

static void step(uint32_t *row, uint32_t width, uint32_t layer, uint32_t context)
{
	for (uint32_t c = 0; c < width; c++)
		row[c] = (row[c] * 37 + context * (c + 3) + layer + 1) % PRIME;
}

static uint32_t head(const uint32_t *row, uint32_t width, uint32_t vocab)
{
	return key(row, width, 0) % vocab;
}

uint32_t toy_rank_next(uint32_t vocab, uint32_t layers, uint32_t width, const uint32_t *tokens, uint32_t count)
{
	uint32_t *context = calloc(layers, sizeof *context), *row = malloc(width * sizeof *row), next = 0;
	for (uint32_t i = 0; context && row && i < count; i++) {
		for (uint32_t c = 0; c < width; c++)
			row[c] = embed(tokens[i], c);
		for (uint32_t l = 0; l < layers; l++) {
			context[l] = (context[l] + key(row, width, i)) % PRIME;
			step(row, width, l, context[l]);
		}
		next = head(row, width, vocab);
	}
	free(context);
	free(row);
	return next;
}

// ---- rank.h

int rank_create(const struct rank_config *config, struct rank **ret_rank, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context)
{
	struct settings set = parse(config->model_path);
	if (set.fail_load)
		return base_error_set(e, -ENOMEM, "toy rank: told to fail");
	for (int ms = 0; ms <= set.load_ms; ms += 10) {
		int r = progress ? progress(context, (uint64_t)ms, (uint64_t)set.load_ms) : 0;
		if (r)
			return base_error_set(e, r, "toy rank: loading was cancelled");
		sleep_ms(set.load_ms ? 10 : 0);
	}
	struct rank *r = calloc(1, sizeof *r);
	r->config = *config;
	r->set = set;
	base_trace_init(&r->trace);
	r->program.config.width = (uint32_t)set.width;
	r->program.config.vocab = (uint32_t)set.vocab;
	r->program.config.layers = (uint32_t)set.layers;
	r->kv = calloc((size_t)set.layers * (size_t)set.blocks * KV_BLOCK_TOKENS, sizeof *r->kv);
	*ret_rank = r;
	return 0;
}

void rank_destroy(struct rank *r)
{
	if (!r)
		return;
	base_trace_finish(&r->trace);
	free(r->kv);
	free(r);
}

void rank_get_placement(const struct rank *r, struct rank_placement *ret_placement)
{
	*ret_placement = (struct rank_placement){.hot_bytes = 1000,
		.cold_bytes = (uint64_t)r->set.cold,
		.kv_blocks = (uint32_t)r->set.blocks,
		.engine = "toy",
		.pages = "none",
		.isa = "none"};
}

const struct program *rank_program(const struct rank *r)
{
	return &r->program;
}

int rank_sequence_open(struct rank *r, uint32_t sequence, const struct sample_params *params, uint32_t prompt_tokens)
{
	if (sequence >= r->config.sequences)
		return -ENOSPC;
	if (r->open[sequence])
		return -EEXIST;
	r->open[sequence] = true;
	r->params[sequence] = *params;
	r->prompt_tokens[sequence] = prompt_tokens;
	return 0;
}

void rank_sequence_close(struct rank *r, uint32_t sequence)
{
	if (sequence < RANK_MAX_SEQUENCES)
		r->open[sequence] = false;
}

int rank_join(struct rank *r, struct link_group *tensor, uint64_t patience_ns, struct base_error *e)
{
	return 0; // each part computes all
}

static int check_pass(const struct rank *r, const struct rank_pass *pass, struct base_error *e)
{
	for (uint32_t i = 0; i < pass->entries_count; i++) {
		const struct rank_entry *n = &pass->entries[i];
		if (n->sequence >= r->config.sequences || !r->open[n->sequence])
			return base_error_set(e, -EINVAL, "entry %u: sequence %u is not open", i, n->sequence);
		if ((uint64_t)n->first_position + n->tokens > (uint64_t)n->blocks * KV_BLOCK_TOKENS)
			return base_error_set(e, -EINVAL, "entry %u: %u blocks are too few", i, n->blocks);
		for (uint32_t b = 0; b < n->blocks; b++) {
			if (pass->blocks[n->first_block + b] >= (uint32_t)r->set.blocks)
				return base_error_set(e, -EINVAL, "entry %u: there is no block %u", i,
					pass->blocks[n->first_block + b]);
		}
	}
	for (uint32_t t = 0; t < pass->tokens_count; t++) {
		if (pass->tokens[t] >= (uint32_t)r->set.vocab)
			return base_error_set(e, -EINVAL, "there is no token %u", pass->tokens[t]);
	}
	return 0;
}

static void run_token(
	struct rank *r, const struct rank_pass *pass, const struct rank_entry *n, uint32_t k, uint32_t *row)
{
	uint32_t width = (uint32_t)r->set.width, token = n->first_token + k, position = n->first_position + k;
	for (uint32_t c = 0; c < width; c++)
		row[c] = pass->hidden_in ? (uint32_t)pass->hidden_in[token * width + c] : embed(pass->tokens[token], c);
	for (uint32_t l = 0; l < r->config.slice.layers; l++) {
		uint32_t layer = r->config.slice.first_layer + l, context = 0;
		uint32_t *kv = r->kv + (size_t)layer * (size_t)r->set.blocks * KV_BLOCK_TOKENS;
		const uint32_t *table = pass->blocks + n->first_block;
		kv[table[position / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + position % KV_BLOCK_TOKENS] =
			key(row, width, position);
		for (uint32_t p = 0; p <= position; p++)
			context = (context + kv[table[p / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS + p % KV_BLOCK_TOKENS]) %
				  PRIME;
		step(row, width, layer, context);
	}
}

static uint32_t allowed(const struct rank *r, const struct rank_entry *n, uint32_t k, uint32_t token)
{
	const struct sample_params *p = &r->params[n->sequence];
	uint32_t made = n->first_position + k + 1 - r->prompt_tokens[n->sequence];
	for (uint32_t i = 0; made < p->min_new_tokens && i < p->banned_count; i++) {
		if (p->banned[i] == token) {
			token = (token + 1) % (uint32_t)r->set.vocab;
			i = UINT32_MAX; // from the start
		}
	}
	return token;
}

static void output(struct rank *r, const struct rank_pass *pass, uint32_t entry, uint32_t k, const uint32_t *row,
	struct rank_pass_result *result)
{
	const struct rank_entry *n = &pass->entries[entry];
	uint32_t next = head(row, (uint32_t)r->set.width, (uint32_t)r->set.vocab);
	bool last = k + 1 == n->tokens;
	if (n->want == RANK_WANT_NOTHING || (n->want == RANK_WANT_SAMPLE && !last) ||
		result->outputs_count == r->config.logits_rows)
		return;
	struct rank_output *o = &result->outputs[result->outputs_count++];
	*o = (struct rank_output){.entry = entry};
	if (n->want == RANK_WANT_SAMPLE) {
		o->result.token = allowed(r, n, k, next);
		o->result.logprob = -0.5f;
		return;
	}
	o->token_index = k;
	o->result.token = pass->targets[n->first_target + k];
	o->result.logprob = o->result.token == next ? -0.25f : -8.0f;
}

/* All stages are in a pass at the same time, or never: the first in the last pass, ... the last in the first one. */
static int meet(const struct rank *r, const struct rank_pass *pass, struct base_error *e)
{
	static _Atomic uint32_t here; // threads of a test
	uint32_t all = (uint32_t)r->set.meet, stage = r->config.slice.first_layer / r->config.slice.layers;
	if (pass->pass + stage + 1 != all)
		return 0;
	uint64_t end = base_clock_now_ns() + 60 * BASE_NS_PER_SECOND;
	atomic_fetch_add(&here, 1);
	while (atomic_load(&here) < all) {
		if (base_clock_now_ns() > end)
			return base_error_set(
				e, -ETIMEDOUT, "stage %u is alone in pass %llu", stage, (unsigned long long)pass->pass);
		sleep_ms(1);
	}
	return 0;
}

int rank_run(struct rank *r, const struct rank_pass *pass, struct rank_pass_result *result, struct base_error *e)
{
	uint64_t start = base_clock_now_ns();
	int status = check_pass(r, pass, e);
	if (!status && r->set.meet)
		status = meet(r, pass, e);
	if (status)
		return status;
	if (r->set.say && write(STDOUT_FILENO, "pass\n", 5) != 5)
		return base_error_set(e, -EIO, "nobody listens");
	sleep_ms(r->set.pass_ms);
	uint32_t width = (uint32_t)r->set.width, *row = malloc(width * sizeof *row);
	uint32_t end = r->config.slice.first_layer + r->config.slice.layers, fail = (uint32_t)r->set.fail_layer;
	bool fails_here = fail >= r->config.slice.first_layer && fail < end;
	result->outputs_count = 0;
	for (uint32_t i = 0; i < pass->entries_count; i++) {
		const struct rank_entry *n = &pass->entries[i];
		result->entry_status[i] = 0;
		for (uint32_t k = 0; k < n->tokens; k++) {
			int token = (int)pass->tokens[n->first_token + k];
			if (token == r->set.crash_token)
				raise(SIGKILL);
			if (token == r->set.fail_token && fails_here)
				result->entry_status[i] = -EIO;
			run_token(r, pass, n, k, row);
			for (uint32_t c = 0; result->hidden_out && c < width; c++)
				result->hidden_out[(n->first_token + k) * width + c] = (float)row[c];
			if (!result->hidden_out && result->outputs)
				output(r, pass, i, k, row, result);
		}
	}
	free(row);
	base_trace_end(&r->trace, base_trace_on(&r->trace) ? start : 0, BASE_TRACE_MATMUL, 0, 0);
	result->total_ns = base_clock_now_ns() - start;
	result->stall_ns = 0;
	result->cold_bytes = (uint64_t)r->set.cold;
	r->stats.passes++;
	r->stats.pass_ns += result->total_ns;
	return 0;
}

const float *rank_logits(const struct rank *r)
{
	return NULL;
}

void rank_get_stats(const struct rank *r, struct rank_stats *ret_stats)
{
	*ret_stats = r->stats;
}

struct base_trace *rank_trace(struct rank *r)
{
	return &r->trace;
}
