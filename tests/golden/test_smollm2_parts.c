// SPDX-License-Identifier: Apache-2.0
/* SmolLM2-135M-Instruct Q4_1 in three parts (its 9 heads share 3 KV heads), against the tokens that transformers chose
 * from the same weights (smollm2.json), and in two stages of three parts each: the same bits. In stages of one part and of
 * three, either first: the numbers of one rank within rounding, and the same bits in every run. Needs the model:
 * THAW_TEST_MODEL. As in test_smollm2_logits.c, `reference` has every token, and `cpu`, which rounds activations to 8
 * bits, the first one in at least 6 of 8 cases. */
#include "tests/lib/testing.h"

#include <math.h>
#include <string.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "tests/lib/fleet_model.h"

#define MAX_PROMPT 128u
#define MAKE 16u
#define CASES 8u
/* Of log probabilities, from the order of sums and what half floats of KV make of it: three parts in every stage are 1.7e-3
 * away from one rank. A wrong part makes whole numbers. */
#define BOUND 5e-3

struct golden_case {
	uint32_t ids[MAX_PROMPT], count;
	uint32_t greedy[64], greedy_count;
};

static struct fleet_model model;

static uint32_t read_ids(json_object *o, const char *key, uint32_t *out, uint32_t most)
{
	json_object *list = NULL;
	assert_true(json_object_object_get_ex(o, key, &list));
	uint32_t n = (uint32_t)json_object_array_length(list);
	assert_true(n <= most);
	for (uint32_t i = 0; i < n; i++)
		out[i] = (uint32_t)json_object_get_int64(json_object_array_get_idx(list, i));
	return n;
}

static uint32_t read_cases(struct golden_case *out)
{
	json_object *root = json_object_from_file(THAW_GOLDEN "/smollm2.json"), *cases = NULL;
	assert_non_null(root);
	assert_true(json_object_object_get_ex(root, "cases", &cases));
	uint32_t n = (uint32_t)json_object_array_length(cases);
	assert_true(n <= CASES);
	for (uint32_t i = 0; i < n; i++) {
		json_object *o = json_object_array_get_idx(cases, i);
		out[i].count = read_ids(o, "ids", out[i].ids, MAX_PROMPT);
		out[i].greedy_count = read_ids(o, "greedy", out[i].greedy, 64);
	}
	json_object_put(root);
	return n;
}

static void generate(const struct rank_shape *shape, const char *backend, bool cold, const struct golden_case *cases,
	uint32_t count, uint32_t make, struct sample_result out[][MAKE])
{
	static struct fleet f;
	uint64_t number = 0;
	fleet_model_start(&model, &(struct fleet_run){*shape, backend, cold, 64, 256}, &f);
	for (uint32_t i = 0; i < count; i++)
		number = fleet_model_generate(&f, number, cases[i].ids, cases[i].count, 64, out[i], make);
	fleet_stop(&f, 0);
}

static const struct rank_shape one_rank = {1, {1}}, three_parts = {1, {3}}, two_of_three = {2, {3, 3}};

static void three_parts_choose_the_golden_tokens(void **state)
{
	static struct golden_case cases[CASES];
	static struct sample_result out[CASES][MAKE];
	read_cases(cases);
	generate(&three_parts, "reference", false, cases, 1, 8, out);
	for (uint32_t k = 0; k < 8 && k < cases[0].greedy_count; k++)
		assert_int_equal(out[0][k].token, cases[0].greedy[k]);
}

static void parts_and_stages_make_the_same_bits(void **state)
{
	static struct golden_case cases[CASES];
	static struct sample_result three[CASES][MAKE], again[CASES][MAKE], six[CASES][MAKE];
	uint32_t n = read_cases(cases), same = 0, prefix = 0, greedy = 0;
	generate(&three_parts, "cpu", false, cases, n, MAKE, three);
	generate(&three_parts, "cpu", true, cases, n, MAKE, again);
	generate(&two_of_three, "cpu", true, cases, n, MAKE, six);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t most = cases[i].greedy_count < MAKE ? cases[i].greedy_count : MAKE, k = 0;
		assert_memory_equal(again[i], three[i], sizeof three[i]);
		assert_memory_equal(six[i], three[i], sizeof three[i]);
		while (k < most && three[i][k].token == cases[i].greedy[k])
			k++;
		same += k > 0;
		prefix += k;
		greedy += most;
	}
	printf("smollm2 in 3 parts: first token %u of %u, greedy prefix %u of %u tokens\n", same, n, prefix, greedy);
	assert_true(same >= 6);
}

static void stages_of_one_and_of_three(void **state)
{
	static const struct rank_shape shapes[] = {{2, {1, 3}}, {2, {3, 1}}};
	static struct golden_case cases[CASES];
	static struct sample_result one[CASES][MAKE], uneven[CASES][MAKE], again[CASES][MAKE];
	read_cases(cases);
	generate(&one_rank, "reference", false, cases, 1, 8, one);
	for (size_t i = 0; i < base_array_size(shapes); i++) {
		double worst = 0;
		generate(&shapes[i], "reference", false, cases, 1, 8, uneven);
		for (uint32_t k = 0; k < 8; k++) {
			assert_int_equal(uneven[0][k].token, one[0][k].token);
			worst = fmax(worst, fabs((double)uneven[0][k].logprob - (double)one[0][k].logprob));
		}
		printf("smollm2 in %u and %u parts: worst difference of log probabilities %.2g (bound %.2g)\n",
			shapes[i].parts[0], shapes[i].parts[1], worst, BOUND);
		assert_true(worst <= BOUND);
		generate(&shapes[i], "cpu", false, cases, 2, MAKE, uneven);
		generate(&shapes[i], "cpu", i == 0, cases, 2, MAKE, again);
		assert_memory_equal(again, uneven, 2 * sizeof again[0]);
	}
}

int main(void)
{
	const char *path = getenv("THAW_TEST_MODEL");
	if (!path || !path[0]) {
		printf("THAW_TEST_MODEL is not set: skipped\n");
		return 77;
	}
	fleet_model_init(&model, path);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(three_parts_choose_the_golden_tokens),
		cmocka_unit_test(parts_and_stages_make_the_same_bits),
		cmocka_unit_test(stages_of_one_and_of_three),
	};
	int failed = cmocka_run_group_tests_name("smollm2_parts", tests, NULL, NULL);
	fleet_model_release(&model);
	return failed;
}
