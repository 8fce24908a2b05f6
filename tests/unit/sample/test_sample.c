// SPDX-License-Identifier: Apache-2.0
// Sampling: each option against a plain computation, distributions, determinism.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "shard/sample/sample.h"

static const struct sample_params neutral = {.top_p = 1, .repetition_penalty = 1};

static uint32_t draw(struct sample_scratch *s, const struct sample_params *p, const float *logits, uint32_t index)
{
	struct sample_result r;
	static uint32_t history[100000]; // token 0 throughout: no penalties, so only its length matters
	sample_draw(s, p, logits, history, index, 0, &r);
	return r.token;
}

static void greedy_takes_the_first_of_the_best(void **state)
{
	struct sample_scratch *s;
	float logits[37];
	for (int i = 0; i < 37; i++)
		logits[i] = (float)(i % 7);
	logits[20] = logits[30] = 9;
	assert_int_equal(sample_scratch_create(37, &s), 0);
	struct sample_result r;
	struct sample_params p = neutral;
	p.logprobs = 3;
	sample_draw(s, &p, logits, NULL, 0, 0, &r);
	assert_int_equal(r.token, 20);
	assert_int_equal(r.top_count, 3);
	assert_int_equal(r.top[0].token, 20);
	assert_int_equal(r.top[1].token, 30);
	assert_int_equal(r.top[2].token, 6);
	double sum = 0;
	for (int i = 0; i < 37; i++)
		sum += exp((double)logits[i]);
	assert_true(fabs((double)r.logprob - (9 - log(sum))) < 1e-5);
	assert_true(fabs((double)r.top[2].logprob - (6 - log(sum))) < 1e-5);
	sample_score(s, logits, 5, 0, &r);
	assert_true(fabs((double)r.logprob - (5 - log(sum))) < 1e-5);
	assert_int_equal(r.top_count, 0);
	sample_scratch_destroy(s);
}

// Log probabilities over a vocabulary of real size, with a wide range of logits, against doubles.
static void scores_are_exact(void **state)
{
	enum { VOCAB = 49152 };
	struct sample_scratch *s;
	float *logits = malloc(VOCAB * sizeof *logits);
	uint32_t x = 1;
	double sum = 0;
	for (int i = 0; i < VOCAB; i++) {
		x = x * 1664525 + 1013904223;
		logits[i] = (float)(x >> 8) / (float)(1 << 24) * 200 - 170;
		sum += exp((double)logits[i]);
	}
	assert_int_equal(sample_scratch_create(VOCAB, &s), 0);
	for (uint32_t t = 0; t < VOCAB; t += 5001) {
		struct sample_result r;
		sample_score(s, logits, t, 1, &r);
		assert_true(fabs((double)r.logprob - ((double)logits[t] - log(sum))) < 2e-5);
	}
	sample_scratch_destroy(s);
	free(logits);
}

/* The distribution that the options define, by sorting everything. */
struct entry {
	double weight;
	uint32_t token;
};

static int descending(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	return x->weight != y->weight ? (x->weight < y->weight ? 1 : -1)
				      : (x->token > y->token) - (x->token < y->token);
}

static void expect(const struct sample_params *p, const float *logits, uint32_t vocab, double *probability)
{
	struct entry *all = calloc(vocab, sizeof *all);
	double max = -INFINITY, sum = 0, kept = 0;
	for (uint32_t i = 0; i < vocab; i++)
		max = fmax(max, (double)logits[i]);
	for (uint32_t i = 0; i < vocab; i++)
		all[i] = (struct entry){exp(((double)logits[i] - max) / (double)p->temperature), i};
	qsort(all, vocab, sizeof *all, descending);
	uint32_t n = p->top_k && p->top_k < vocab ? p->top_k : vocab, cut = 0;
	for (uint32_t i = 0; i < n; i++)
		sum += all[i].weight;
	for (; cut < n; cut++) {
		if (cut > 0 && ((p->top_p < 1 && kept >= (double)p->top_p * sum) || all[cut].weight < (double)p->min_p))
			break;
		kept += all[cut].weight;
	}
	memset(probability, 0, vocab * sizeof *probability);
	for (uint32_t i = 0; i < cut; i++)
		probability[all[i].token] = all[i].weight / kept;
	free(all);
}

// Pearson's chi-square over the tokens that may come; those that may not must never come.
static void drawn_as_expected(const struct sample_params *p, uint32_t vocab)
{
	enum { DRAWS = 20000 };
	struct sample_scratch *s;
	float *logits = malloc(vocab * sizeof *logits);
	double *probability = malloc(vocab * sizeof *probability);
	uint32_t *count = calloc(vocab, sizeof *count);
	for (uint32_t i = 0; i < vocab; i++)
		logits[i] = 3 * sinf((float)(i * 12.9898)) - (i % 5 == 0 ? 25.0f : 0);
	expect(p, logits, vocab, probability);
	assert_int_equal(sample_scratch_create(vocab, &s), 0);
	for (uint32_t i = 0; i < DRAWS; i++)
		count[draw(s, p, logits, i)]++;
	double chi = 0, rest = 0, rest_count = 0;
	uint32_t cells = 0;
	for (uint32_t i = 0; i < vocab; i++) {
		double want = probability[i] * DRAWS;
		if (want == 0)
			assert_int_equal(count[i], 0);
		if (want < 5) {
			rest += want;
			rest_count += count[i];
			continue;
		}
		chi += (count[i] - want) * (count[i] - want) / want;
		cells++;
	}
	if (rest > 1)
		chi += (rest_count - rest) * (rest_count - rest) / rest;
	// Mean `cells`, deviation sqrt(2 cells): five of them are far from chance, and the seed is fixed.
	if (chi > cells + 5 * sqrt(2.0 * cells + 2) + 5)
		fail_msg("chi-square %g over %u cells", chi, cells);
	sample_scratch_destroy(s);
	free(logits);
	free(probability);
	free(count);
}

static void distributions(void **state)
{
	struct sample_params p = neutral;
	p.seed = 11;
	p.temperature = 1;
	drawn_as_expected(&p, 60);
	p.temperature = 0.6f;
	drawn_as_expected(&p, 1000);
	p.top_k = 12;
	drawn_as_expected(&p, 1000);
	p.top_p = 0.7f;
	drawn_as_expected(&p, 1000);
	p.top_k = 0;
	drawn_as_expected(&p, 1000);
	p.top_p = 1;
	p.min_p = 0.5f;
	drawn_as_expected(&p, 1000);
	p.min_p = 0;
	p.top_k = 1;
	drawn_as_expected(&p, 60);
}

static void the_number_depends_on_seed_and_index_alone(void **state)
{
	struct sample_scratch *s, *other;
	float logits[256];
	for (int i = 0; i < 256; i++)
		logits[i] = (float)(i % 3);
	struct sample_params p = neutral;
	p.temperature = 1;
	p.seed = 42;
	assert_int_equal(sample_scratch_create(256, &s), 0);
	assert_int_equal(sample_scratch_create(256, &other), 0);
	uint32_t same_seed = 0, other_seed = 0, neighbours = 0;
	for (uint32_t i = 0; i < 200; i++) {
		uint32_t t = draw(s, &p, logits, i);
		(void)draw(other, &p, logits, 199 - i);
		same_seed += draw(other, &p, logits, i) == t;
		p.seed = 43;
		other_seed += draw(s, &p, logits, i) == t;
		p.seed = 42;
		neighbours += draw(s, &p, logits, i + 1) == t;
	}
	assert_int_equal(same_seed, 200);
	assert_true(other_seed < 20);
	assert_true(neighbours < 20);
	sample_scratch_destroy(s);
	sample_scratch_destroy(other);
}

static void bias_bans_and_penalties(void **state)
{
	struct sample_scratch *s;
	float logits[8] = {0, 1, 2, 3, 4, 5, 6, 7};
	const uint32_t history[] = {7, 6, 6, 5};
	struct sample_result r;
	struct sample_params p = neutral;
	assert_int_equal(sample_scratch_create(8, &s), 0);
	p.bias_count = 1;
	p.bias[0] = (struct sample_bias){2, 6};
	sample_draw(s, &p, logits, NULL, 0, 0, &r);
	assert_int_equal(r.token, 2);
	assert_true(r.logprob < -4); // of the model's own distribution
	p.bias_count = 0;
	p.banned_count = 2;
	p.banned[0] = 7;
	p.banned[1] = 6;
	p.min_new_tokens = 3;
	sample_draw(s, &p, logits, history, 3, 1, &r);
	assert_int_equal(r.token, 5);
	sample_draw(s, &p, logits, history, 4, 1, &r);
	assert_int_equal(r.token, 7);
	p.banned_count = 0;
	// Repetition counts the prompt too: 7 -> 3.5, 6 -> 3, 5 -> 2.5.
	p.repetition_penalty = 2;
	sample_draw(s, &p, logits, history, 4, 4, &r);
	assert_int_equal(r.token, 4);
	p.repetition_penalty = 1;
	// Frequency counts the output alone: 6 twice, 5 once, 7 only in the prompt.
	p.frequency_penalty = 4;
	sample_draw(s, &p, logits, history, 4, 1, &r);
	assert_int_equal(r.token, 7);
	sample_draw(s, &p, logits, history, 4, 0, &r);
	assert_int_equal(r.token, 4);
	p.frequency_penalty = 0;
	p.presence_penalty = 4;
	sample_draw(s, &p, logits, history, 4, 0, &r); // 7 -> 3, 6 -> 2 (once, though seen twice)
	assert_int_equal(r.token, 4);
	assert_true(r.logprob > -4);
	sample_draw(s, &neutral, logits, history, 4, 0, &r); // nothing is left behind
	assert_int_equal(r.token, 7);
	sample_scratch_destroy(s);
}

// Temperatures down to the smallest number that a client can write give the best token, whatever else is asked for.
static void tiny_temperatures_are_greedy(void **state)
{
	static const float temperatures[] = {1e-4f, 1e-6f, 1e-20f, 1e-38f, 1e-40f, 1e-45f};
	static const struct sample_params cuts[] = {
		{.top_p = 1, .repetition_penalty = 1},
		{.top_p = 1, .repetition_penalty = 1, .top_k = 5},
		{.top_p = 0.5f, .repetition_penalty = 1},
		{.top_p = 1, .repetition_penalty = 1, .min_p = 0.1f},
		{.top_p = 1e-40f, .repetition_penalty = 1, .min_p = 1, .top_k = 1},
	};
	struct sample_scratch *s;
	float logits[50];
	for (int i = 0; i < 50; i++)
		logits[i] = (float)((i * 7) % 50) / 10 - 3;
	logits[31] = 4;
	assert_int_equal(sample_scratch_create(50, &s), 0);
	for (size_t t = 0; t < sizeof temperatures / sizeof temperatures[0]; t++) {
		for (size_t c = 0; c < sizeof cuts / sizeof cuts[0]; c++) {
			struct sample_params p = cuts[c];
			p.temperature = temperatures[t];
			assert_int_equal(sample_params_check(&p, 50, NULL), 0);
			for (uint32_t i = 0; i < 20; i++)
				assert_int_equal(draw(s, &p, logits, i), 31);
		}
	}
	sample_scratch_destroy(s);
}

static void bad_fields_are_named(void **state)
{
	struct base_error e;
	struct sample_params p = neutral;
	assert_int_equal(sample_params_check(&p, 10, &e), 0);
	p.temperature = NAN;
	assert_int_equal(sample_params_check(&p, 10, &e), -EINVAL);
	assert_non_null(strstr(e.message, "temperature"));
	p = neutral;
	p.top_p = 0;
	assert_int_equal(sample_params_check(&p, 10, &e), -EINVAL);
	assert_string_equal(e.message, "top_p is 0; more than 0, up to 1 are allowed");
	p = neutral;
	p.bias_count = 1;
	p.bias[0].token = 10;
	assert_int_equal(sample_params_check(&p, 10, &e), -EINVAL);
	assert_non_null(strstr(e.message, "token 10"));
	p = neutral;
	p.logprobs = 21;
	assert_int_equal(sample_params_check(&p, 10, &e), -EINVAL);
	assert_non_null(strstr(e.message, "logprobs"));
	p = neutral;
	p.banned_count = 65;
	assert_int_equal(sample_params_check(&p, 10, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(greedy_takes_the_first_of_the_best),
		cmocka_unit_test(scores_are_exact),
		cmocka_unit_test(distributions),
		cmocka_unit_test(the_number_depends_on_seed_and_index_alone),
		cmocka_unit_test(bias_bans_and_penalties),
		cmocka_unit_test(tiny_temperatures_are_greedy),
		cmocka_unit_test(bad_fields_are_named),
	};
	return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
