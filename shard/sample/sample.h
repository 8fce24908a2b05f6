/* SPDX-License-Identifier: Apache-2.0
 * From logits to a token. Deterministic: the random number of a token is a hash of (seed, index of the token in the
 * sequence), so a sequence gives the same tokens whatever else is in the batch and after any restart.
 *
 * Order of operations: logit bias, banned tokens, repetition / presence / frequency penalties (over prompt and output
 * for repetition, over output for the other two, as in vLLM), then greedy (temperature 0) or temperature, top-k, top-p,
 * min-p, draw. Log probabilities are of the model's own distribution (before any of it). Stage thread; scratch
 * is the caller's.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

#define SAMPLE_MAX_BIAS 256u
#define SAMPLE_MAX_BANNED 64u
#define SAMPLE_MAX_LOGPROBS 20u

struct sample_bias {
	uint32_t token;
	float bias;
};

struct sample_params {
	float temperature; // 0: greedy
	uint32_t top_k; // 0: all
	float top_p; // 1: all
	float min_p; // 0: all
	float presence_penalty, frequency_penalty; // 0: none
	float repetition_penalty; // 1: none
	uint64_t seed;
	uint32_t
		logprobs; // how many of the top ones to report, 0..SAMPLE_MAX_LOGPROBS; the chosen one is always reported
	uint32_t bias_count;
	struct sample_bias bias[SAMPLE_MAX_BIAS];
	uint32_t min_new_tokens; // until then `banned` (the stop tokens) cannot be drawn
	uint32_t banned_count;
	uint32_t banned[SAMPLE_MAX_BANNED];
};

/* Names the field that is out of range: -EINVAL. */
int sample_params_check(const struct sample_params *p, uint32_t vocab, struct base_error *e);

struct sample_logprob {
	uint32_t token;
	float logprob;
};

struct sample_result {
	uint32_t token;
	float logprob;
	uint32_t top_count;
	struct sample_logprob top[SAMPLE_MAX_LOGPROBS]; // descending
};

struct sample_scratch; // for one vocabulary size
int sample_scratch_create(uint32_t vocab, struct sample_scratch **ret_scratch);
void sample_scratch_destroy(struct sample_scratch *s);

/* logits (vocab), read only. history: prompt_tokens + output tokens so far. */
void sample_draw(struct sample_scratch *s, const struct sample_params *p, const float *logits, const uint32_t *history,
	uint32_t history_tokens, uint32_t prompt_tokens, struct sample_result *ret_result);
/* log softmax(logits)[token], and the top `top` of them. */
void sample_score(
	struct sample_scratch *s, const float *logits, uint32_t token, uint32_t top, struct sample_result *ret_result);
