// SPDX-License-Identifier: Apache-2.0
// Sampling. No full sort: candidates are cut by a threshold that a histogram gives, and only the few that are left
// are sorted.
#include "shard/sample/sample.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 2048u

struct candidate {
	float logit;
	uint32_t token;
};

static const struct sample_loops *choose_loops(void);

struct sample_scratch {
	uint32_t vocab;
	const struct sample_loops *loops;
	float *logits; // (vocab): adjusted copy
	float *weights; // (vocab): exp((logit - max) / temperature)
	uint16_t *counts; // (vocab): occurrences in the history, zero between calls; saturates
	uint8_t *in_prompt; // (vocab): seen at all, zero between calls
	struct candidate *candidates; // (vocab)
	double mass[BUCKETS];
	uint32_t population[BUCKETS];
};

static int out_of_range(struct base_error *e, const char *field, double value, const char *allowed)
{
	return base_error_set(e, -EINVAL, "%s is %g; %s", field, value, allowed);
}

static bool within(float v, float least, float most)
{
	return v >= least && v <= most; // false for NaN
}

static int check_tokens(const struct sample_params *p, uint32_t vocab, struct base_error *e)
{
	if (p->bias_count > SAMPLE_MAX_BIAS)
		return out_of_range(e, "the number of logit biases", p->bias_count, "at most 256 are allowed");
	if (p->banned_count > SAMPLE_MAX_BANNED)
		return out_of_range(e, "the number of stop tokens", p->banned_count, "at most 64 are allowed");
	for (uint32_t i = 0; i < p->bias_count; i++) {
		if (p->bias[i].token >= vocab)
			return base_error_set(e, -EINVAL, "logit_bias names token %u, but the vocabulary has %u",
				p->bias[i].token, vocab);
		if (!within(p->bias[i].bias, -1000, 1000))
			return out_of_range(e, "logit_bias", (double)p->bias[i].bias, "-1000 to 1000 are allowed");
	}
	for (uint32_t i = 0; i < p->banned_count; i++) {
		if (p->banned[i] >= vocab)
			return base_error_set(
				e, -EINVAL, "stop token %u, but the vocabulary has %u", p->banned[i], vocab);
	}
	return 0;
}

int sample_params_check(const struct sample_params *p, uint32_t vocab, struct base_error *e)
{
	if (!within(p->temperature, 0, 100))
		return out_of_range(e, "temperature", (double)p->temperature, "0 to 100 are allowed");
	if (!within(p->top_p, 0, 1) || p->top_p == 0)
		return out_of_range(e, "top_p", (double)p->top_p, "more than 0, up to 1 are allowed");
	if (!within(p->min_p, 0, 1))
		return out_of_range(e, "min_p", (double)p->min_p, "0 to 1 are allowed");
	if (!within(p->presence_penalty, -2, 2))
		return out_of_range(e, "presence_penalty", (double)p->presence_penalty, "-2 to 2 are allowed");
	if (!within(p->frequency_penalty, -2, 2))
		return out_of_range(e, "frequency_penalty", (double)p->frequency_penalty, "-2 to 2 are allowed");
	if (!within(p->repetition_penalty, 0.01f, 100))
		return out_of_range(e, "repetition_penalty", (double)p->repetition_penalty, "0.01 to 100 are allowed");
	if (p->logprobs > SAMPLE_MAX_LOGPROBS)
		return out_of_range(e, "logprobs", p->logprobs, "at most 20 are allowed");
	return check_tokens(p, vocab, e);
}

int sample_scratch_create(uint32_t vocab, struct sample_scratch **ret_scratch)
{
	struct sample_scratch *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->vocab = vocab;
	s->loops = choose_loops();
	s->logits = malloc(vocab * sizeof *s->logits);
	s->weights = malloc(vocab * sizeof *s->weights);
	s->counts = calloc(vocab, sizeof *s->counts);
	s->in_prompt = calloc(vocab, 1);
	s->candidates = malloc(vocab * sizeof *s->candidates);
	if (!s->logits || !s->weights || !s->counts || !s->in_prompt || !s->candidates) {
		sample_scratch_destroy(s);
		return -ENOMEM;
	}
	*ret_scratch = s;
	return 0;
}

void sample_scratch_destroy(struct sample_scratch *s)
{
	if (!s)
		return;
	free(s->logits);
	free(s->weights);
	free(s->counts);
	free(s->in_prompt);
	free(s->candidates);
	free(s);
}

/* ---- the random number of a token ---- */

static uint64_t mix(uint64_t z)
{
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

// In [0, 1), from the seed and the token's index alone (SplitMix64's finalizer over both).
static double uniform(uint64_t seed, uint64_t index)
{
	uint64_t h = mix(mix(seed + 0x9e3779b97f4a7c15ull) + (index + 1) * 0x9e3779b97f4a7c15ull);
	return (double)(h >> 11) * 0x1p-53;
}

/* ---- log probabilities ---- */

/* The two loops over the vocabulary that every draw makes, once for each instruction set. Lanes and the order of
 * additions are part of the source, so all give the same bits. */
#define CHUNK 1024u

/* exp(x) for x <= 0 to about 1e-7, in operations that vectorize: 2^n * 2^f with n = round(x / ln 2) and a polynomial.
 * The order of all additions is fixed, so the result is the same whatever vectors the compiler uses. */
static inline __attribute__((always_inline)) float exp_of(float x)
{
	x = x > -87 ? x : -87;
	float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
	float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
	float y = 1.9875691500e-4f;
	y = y * r + 1.3981999507e-3f;
	y = y * r + 8.3334519073e-3f;
	y = y * r + 4.1665795894e-2f;
	y = y * r + 1.6666665459e-1f;
	y = y * r + 5.0000001201e-1f;
	y = y * r * r + r + 1;
	int32_t bits = ((int32_t)n + 127) << 23;
	float scale;
	memcpy(&scale, &bits, sizeof scale);
	return y * scale;
}

// The sum of exp((x - max) * inverse) over one chunk; the terms go to out unless it is NULL.
static inline __attribute__((always_inline)) float chunk_sum(
	const float *x, uint32_t n, float max, float inverse, float *out)
{
	float term[CHUNK], lane[16] = {0}, sum = 0;
	for (uint32_t i = 0; i < n; i++)
		term[i] = exp_of((x[i] - max) * inverse);
	for (uint32_t i = n; i < CHUNK; i++)
		term[i] = 0;
	for (uint32_t i = 0; i < CHUNK; i += 16) {
		for (uint32_t j = 0; j < 16; j++)
			lane[j] += term[i + j];
	}
	for (uint32_t j = 0; j < 16; j++)
		sum += lane[j];
	if (out)
		memcpy(out, term, n * sizeof *out);
	return sum;
}

static inline __attribute__((always_inline)) float lanes_max(const float *x, uint32_t n)
{
	float best[16], max = -INFINITY;
	for (uint32_t j = 0; j < 16; j++)
		best[j] = -INFINITY;
	uint32_t i = 0;
	for (; i + 16 <= n; i += 16) {
		for (uint32_t j = 0; j < 16; j++)
			best[j] = x[i + j] > best[j] ? x[i + j] : best[j];
	}
	for (uint32_t j = 0; j < 16; j++)
		max = best[j] > max ? best[j] : max;
	for (; i < n; i++)
		max = x[i] > max ? x[i] : max;
	return max;
}

struct sample_loops {
	float (*chunk_sum)(const float *x, uint32_t n, float max, float inverse, float *out);
	float (*max)(const float *x, uint32_t n);
};

#define LOOPS(isa, attribute)                                                                                          \
	attribute static float chunk_sum_##isa(const float *x, uint32_t n, float max, float inverse, float *out)       \
	{                                                                                                              \
		return chunk_sum(x, n, max, inverse, out);                                                             \
	}                                                                                                              \
	attribute static float max_##isa(const float *x, uint32_t n)                                                   \
	{                                                                                                              \
		return lanes_max(x, n);                                                                                \
	}                                                                                                              \
	static const struct sample_loops loops_##isa = {.chunk_sum = chunk_sum_##isa, .max = max_##isa}

LOOPS(generic, );
#ifdef __x86_64__
LOOPS(avx2, __attribute__((target("avx2"))));
LOOPS(avx512, __attribute__((target("avx512f"))));
#endif

static const struct sample_loops *choose_loops(void)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f"))
		return &loops_avx512;
	if (__builtin_cpu_supports("avx2"))
		return &loops_avx2;
#endif
	return &loops_generic;
}

static uint32_t find_first(const float *x, uint32_t n, float value)
{
	for (uint32_t i = 0; i < n; i++) {
		if (x[i] == value)
			return i;
	}
	return 0;
}

static double exp_sum(const struct sample_scratch *s, const float *x, float max, float inverse, float *out)
{
	double sum = 0;
	for (uint32_t i = 0; i < s->vocab; i += CHUNK) {
		uint32_t n = s->vocab - i < CHUNK ? s->vocab - i : CHUNK;
		sum += (double)s->loops->chunk_sum(x + i, n, max, inverse, out ? out + i : NULL);
	}
	return sum;
}

static double log_sum(const struct sample_scratch *s, const float *x)
{
	float max = s->loops->max(x, s->vocab);
	return log(exp_sum(s, x, max, 1, NULL)) + (double)max;
}

// Descending by logit, then ascending by token: a total order, so that results never depend on the method.
static bool comes_before(const struct candidate *a, const struct candidate *b)
{
	return a->logit > b->logit || (a->logit == b->logit && a->token < b->token);
}

static int compare(const void *a, const void *b)
{
	return comes_before(a, b) ? -1 : comes_before(b, a) ? 1 : 0;
}

// The `top` best by insertion into a short sorted list: nearly every element fails the first comparison.
static uint32_t find_top(const float *x, uint32_t n, uint32_t top, struct candidate *best)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < n && top; i++) {
		struct candidate c = {.logit = x[i], .token = i};
		if (count == top && !comes_before(&c, &best[count - 1]))
			continue;
		uint32_t at = count < top ? count++ : count - 1;
		for (; at > 0 && comes_before(&c, &best[at - 1]); at--)
			best[at] = best[at - 1];
		best[at] = c;
	}
	return count;
}

void sample_score(
	struct sample_scratch *s, const float *logits, uint32_t token, uint32_t top, struct sample_result *ret_result)
{
	struct candidate best[SAMPLE_MAX_LOGPROBS];
	if (top > SAMPLE_MAX_LOGPROBS)
		top = SAMPLE_MAX_LOGPROBS;
	double total = log_sum(s, logits);
	ret_result->token = token;
	ret_result->logprob = (float)((double)logits[token] - total);
	ret_result->top_count = find_top(logits, s->vocab, top, best);
	for (uint32_t i = 0; i < ret_result->top_count; i++)
		ret_result->top[i] = (struct sample_logprob){best[i].token, (float)((double)best[i].logit - total)};
}

/* ---- adjusting ---- */

static bool has_penalties(const struct sample_params *p)
{
	return p->presence_penalty != 0 || p->frequency_penalty != 0 || p->repetition_penalty != 1;
}

static void penalize(struct sample_scratch *s, const struct sample_params *p, float *x, const uint32_t *history,
	uint32_t history_tokens, uint32_t prompt_tokens)
{
	for (uint32_t i = 0; i < history_tokens; i++) {
		uint32_t t = history[i];
		if (i >= prompt_tokens && s->counts[t] < UINT16_MAX)
			s->counts[t]++;
		s->in_prompt[t] = 1;
	}
	for (uint32_t i = 0; i < history_tokens; i++) {
		uint32_t t = history[i];
		if (!s->in_prompt[t])
			continue; // done
		x[t] = x[t] > 0 ? x[t] / p->repetition_penalty : x[t] * p->repetition_penalty;
		x[t] -= p->frequency_penalty * (float)s->counts[t] + (s->counts[t] ? p->presence_penalty : 0);
		s->in_prompt[t] = 0;
		s->counts[t] = 0;
	}
}

// The logits that are drawn from: the model's own where nothing changes them.
static const float *adjust(struct sample_scratch *s, const struct sample_params *p, const float *logits,
	const uint32_t *history, uint32_t history_tokens, uint32_t prompt_tokens)
{
	bool ban = p->banned_count && history_tokens < (uint64_t)prompt_tokens + p->min_new_tokens;
	if (!p->bias_count && !ban && !has_penalties(p))
		return logits;
	memcpy(s->logits, logits, s->vocab * sizeof *logits);
	for (uint32_t i = 0; i < p->bias_count; i++)
		s->logits[p->bias[i].token] += p->bias[i].bias;
	if (has_penalties(p))
		penalize(s, p, s->logits, history, history_tokens, prompt_tokens);
	for (uint32_t i = 0; ban && i < p->banned_count; i++)
		s->logits[p->banned[i]] = -INFINITY; // last, so that nothing lifts them again
	return s->logits;
}

/* ---- drawing ---- */

// Beyond this many natural logarithms from the best one, a candidate is not told from nothing.
#define DEPTH 40.0f
// Below it the best one is drawn anyway; a smaller one has no reciprocal, and 0 times infinity no place in the
// histogram.
#define COLDEST 1e-6f

static uint32_t bucket_of(float distance)
{
	return (uint32_t)(distance * ((float)BUCKETS / DEPTH));
}

/* The candidates that top-k or top-p may keep, with few more: all in the buckets (by distance from the maximum) up to
 * the one in which the limit is met. Exact cutting is done on the sorted few. */
static uint32_t gather(
	struct sample_scratch *s, const struct sample_params *p, const float *x, float max, float inverse, double total)
{
	float depth = DEPTH;
	if (p->min_p > 0) // rounding may not lose one that is right at the limit
		depth = -logf(p->min_p) * 1.0001f + 1e-4f < DEPTH ? -logf(p->min_p) * 1.0001f + 1e-4f : DEPTH;
	memset(s->mass, 0, sizeof s->mass);
	memset(s->population, 0, sizeof s->population);
	for (uint32_t i = 0; i < s->vocab; i++) {
		float distance = (max - x[i]) * inverse;
		if (distance < depth) {
			uint32_t b = bucket_of(distance);
			s->mass[b] += (double)s->weights[i];
			s->population[b]++;
		}
	}
	double mass = 0, wanted_mass = p->top_p < 1 ? (double)p->top_p * total * (1 + 1e-5) : INFINITY;
	uint32_t have = 0, last = 0, count = 0;
	for (; last < BUCKETS - 1; last++) {
		have += s->population[last];
		mass += s->mass[last];
		if (p->top_k ? have >= p->top_k : mass >= wanted_mass)
			break;
	}
	for (uint32_t i = 0; i < s->vocab; i++) {
		float distance = (max - x[i]) * inverse;
		if (distance < depth && bucket_of(distance) <= last)
			s->candidates[count++] = (struct candidate){.logit = x[i], .token = i};
	}
	return count;
}

// Temperature alone: every token keeps its weight, in the order of the vocabulary.
static uint32_t draw_from_all(const struct sample_scratch *s, double target)
{
	double at = 0;
	uint32_t token = 0;
	for (uint32_t i = 0; i < s->vocab; i++) {
		at += (double)s->weights[i];
		if (s->weights[i] > 0)
			token = i;
		if (at > target)
			break;
	}
	return token;
}

static uint32_t draw(struct sample_scratch *s, const struct sample_params *p, const float *x, double u)
{
	float max = s->loops->max(x, s->vocab);
	if (!isfinite(max))
		return 0; // nothing to choose between
	float temperature = p->temperature > COLDEST ? p->temperature : COLDEST;
	double inverse = 1 / (double)temperature;
	double sum = exp_sum(s, x, max, 1 / temperature, s->weights);
	if (!p->top_k && p->top_p == 1 && p->min_p == 0)
		return draw_from_all(s, u * sum);
	uint32_t count = gather(s, p, x, max, 1 / temperature, sum);
	struct candidate *c = s->candidates;
	qsort(c, count, sizeof *c, compare);
	if (p->top_k && count > p->top_k)
		count = p->top_k;
	if (p->top_k) { // top-p counts what top-k left
		sum = 0;
		for (uint32_t i = 0; i < count; i++)
			sum += exp(((double)c[i].logit - (double)max) * inverse);
	}
	double kept = 0, at = 0;
	uint32_t n = 0;
	for (; n < count; n++) {
		double weight = exp(((double)c[n].logit - (double)max) * inverse);
		if (n > 0 && ((p->top_p < 1 && kept >= (double)p->top_p * sum) || weight < (double)p->min_p))
			break; // the best one always stays
		kept += weight;
	}
	for (uint32_t i = 0; i < n; i++) {
		at += exp(((double)c[i].logit - (double)max) * inverse);
		if (at > u * kept)
			return c[i].token;
	}
	return c[n - 1].token;
}

void sample_draw(struct sample_scratch *s, const struct sample_params *p, const float *logits, const uint32_t *history,
	uint32_t history_tokens, uint32_t prompt_tokens, struct sample_result *ret_result)
{
	const float *x = adjust(s, p, logits, history, history_tokens, prompt_tokens);
	uint32_t token;
	if (p->temperature == 0)
		token = find_first(x, s->vocab, s->loops->max(x, s->vocab));
	else
		token = draw(s, p, x, uniform(p->seed, history_tokens));
	sample_score(s, logits, token, p->logprobs, ret_result);
}
