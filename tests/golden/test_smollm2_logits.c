// SPDX-License-Identifier: Apache-2.0
/* SmolLM2-135M-Instruct Q4_1 against logits that transformers computed from the same weights in float32
 * (smollm2.json names versions). Needs the model: THAW_TEST_MODEL.
 *
 * `reference` keeps float32 all the way, so only the order of additions differs: top-1 in all cases, differences of the
 * top ten to the top within 0.05. `cpu` rounds activations to 8 bits (shard/backend/cpu/kernels.h), as llama.cpp does
 * with differences of 0.46, and flips near-ties: top-1 in at least 6 of 8 there, the same bound for the differences.
 */
#include "tests/lib/testing.h"

#include <math.h>
#include <string.h>

#include <json-c/json.h>

#include "shard/backend/backend.h"
#include "tests/lib/model_fixture.h"

#define MAX_PROMPT 512

struct golden_case {
	uint32_t ids[MAX_PROMPT], count;
	uint32_t top_token[10];
	double top_logit[10];
	uint32_t greedy[64], greedy_count;
};

static json_object *member(json_object *o, const char *key)
{
	json_object *v = NULL;
	assert_true(json_object_object_get_ex(o, key, &v));
	return v;
}

static uint32_t read_ids(json_object *list, uint32_t *out, uint32_t most)
{
	uint32_t n = (uint32_t)json_object_array_length(list);
	assert_true(n <= most);
	for (uint32_t i = 0; i < n; i++)
		out[i] = (uint32_t)json_object_get_int64(json_object_array_get_idx(list, i));
	return n;
}

static void read_case(json_object *o, struct golden_case *c)
{
	json_object *top = member(o, "top10");
	c->count = read_ids(member(o, "ids"), c->ids, MAX_PROMPT);
	c->greedy_count = read_ids(member(o, "greedy"), c->greedy, 64);
	for (uint32_t i = 0; i < 10; i++) {
		json_object *pair = json_object_array_get_idx(top, i);
		c->top_token[i] = (uint32_t)json_object_get_int64(json_object_array_get_idx(pair, 0));
		c->top_logit[i] = json_object_get_double(json_object_array_get_idx(pair, 1));
	}
}

static struct rank *open_rank(struct model_fixture *f, const char *backend)
{
	const struct sample_params greedy = model_greedy();
	snprintf(f->config.backend, sizeof f->config.backend, "%s", backend);
	f->config.logits_rows = 1;
	f->config.batch_tokens = MAX_PROMPT;
	struct rank *r = model_rank(f);
	assert_int_equal(rank_sequence_open(r, 0, &greedy, 0), 0);
	return r;
}

// Returns whether top-1 is the same; *worst: the largest error of (logit - top logit) over the ten.
static bool compare(struct rank *r, const struct golden_case *c, double *worst)
{
	uint32_t top = model_step(r, c->ids, c->count, 0);
	const float *logits = rank_logits(r);
	for (uint32_t i = 1; i < 10; i++) {
		double want = c->top_logit[i] - c->top_logit[0];
		double have = (double)logits[c->top_token[i]] - (double)logits[c->top_token[0]];
		*worst = fmax(*worst, fabs(want - have));
	}
	return top == c->top_token[0];
}

static uint32_t greedy_prefix(struct rank *r, const struct golden_case *c, uint32_t most)
{
	uint32_t n = 0, token = model_step(r, c->ids, c->count, 0);
	while (n < c->greedy_count && n < most && token == c->greedy[n]) {
		token = model_step(r, &c->greedy[n], 1, c->count + n);
		n++;
	}
	return n;
}

static int check(struct model_fixture *f, json_object *cases, const char *backend, double bound, uint32_t least)
{
	struct rank *r = open_rank(f, backend);
	uint32_t same = 0, n = (uint32_t)json_object_array_length(cases), prefix = 0, greedy = 0;
	double worst = 0;
	for (uint32_t i = 0; i < n; i++) {
		struct golden_case c = {0};
		read_case(json_object_array_get_idx(cases, i), &c);
		same += compare(r, &c, &worst);
		if (strcmp(backend, "reference") == 0 && i > 0)
			continue; // slow: one case of greedy tokens is enough
		prefix += greedy_prefix(r, &c, 16);
		greedy += c.greedy_count < 16 ? c.greedy_count : 16;
	}
	rank_destroy(r);
	printf("smollm2 %s: top-1 %u of %u, worst difference %.4f (bound %.2f), greedy prefix %u of %u tokens\n",
		backend, same, n, worst, bound, prefix, greedy);
	return same >= least && worst <= bound ? 0 : 1;
}

static void reference_agrees(void **state)
{
	struct model_fixture *f = *state;
	json_object *root = json_object_from_file(THAW_GOLDEN "/smollm2.json");
	assert_non_null(root);
	assert_int_equal(check(f, member(root, "cases"), "reference", 0.05, 8), 0);
	json_object_put(root);
}

static void cpu_agrees(void **state)
{
	struct model_fixture *f = *state;
	if (!backend_find("cpu"))
		skip();
	json_object *root = json_object_from_file(THAW_GOLDEN "/smollm2.json");
	assert_non_null(root);
	assert_int_equal(check(f, member(root, "cases"), "cpu", 0.46, 6), 0);
	json_object_put(root);
}

int main(void)
{
	const char *model = getenv("THAW_TEST_MODEL");
	if (!model || !model[0]) {
		printf("THAW_TEST_MODEL is not set: skipped\n");
		return 77;
	}
	static struct model_fixture f;
	model_fixture_init(&f, model);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(reference_agrees, &f),
		cmocka_unit_test_prestate(cpu_agrees, &f),
	};
	int failed = cmocka_run_group_tests_name("smollm2_logits", tests, NULL, NULL);
	model_fixture_release(&f);
	return failed;
}
