// SPDX-License-Identifier: Apache-2.0
// A small real model in one, two and three stages over the link: the same tokens and the same bits of their log
// probabilities, with all weights hot and with most of them cold.
#include "tests/lib/testing.h"

#include <errno.h>
#include <ftw.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/tiny_gguf.h"
#include "tests/lib/fleet.h"

#define LAYERS 6u
#define PROMPT 37u
#define MAKE 12u
#define BATCH 16u // the prompt takes three passes

struct model {
	char directory[64], gguf[80], store[80];
	struct rank_config config[STAGES]; // of the stages of one staging
};

static void check(int status, const struct base_error *e)
{
	if (status)
		fail_msg("%s", base_error_text(e));
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static int setup(void **state)
{
	struct model *m = calloc(1, sizeof *m);
	struct tiny_model tiny = {
		.type = 8, .layers = LAYERS, .width = 512, .ffn_width = 1536, .heads = 8, .kv_heads = 2, .seed = 7};
	snprintf(m->directory, sizeof m->directory, "/tmp/thaw-pipeline.XXXXXX");
	assert_non_null(mkdtemp(m->directory));
	snprintf(m->gguf, sizeof m->gguf, "%s/model.gguf", m->directory);
	snprintf(m->store, sizeof m->store, "%s/store", m->directory);
	assert_int_equal(tiny_model_save(&tiny, m->gguf), 0);
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	struct model *m = *state;
	nftw(m->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	free(m);
	return 0;
}

/* Packs what each stage needs and takes budgets from what it says it needs. */
static void prepare(struct model *m, uint32_t stages, const char *backend, bool cold)
{
	struct base_error e = {0};
	struct format_gguf *g;
	struct program *p;
	check(format_gguf_open(m->gguf, &g, &e), &e);
	check(program_build(g, &p, &e), &e);
	for (uint32_t i = 0; i < stages; i++) {
		struct rank_config *c = &m->config[i];
		struct pack_config pack = {
			.store_path = m->store, .slice = {i * (LAYERS / stages), LAYERS / stages, 0, 1}};
		struct pack_result packed;
		struct rank_needs needs;
		check(pack_model(g, p, &pack, &packed, &e), &e);
		memset(c, 0, sizeof *c);
		snprintf(c->store_directory, sizeof c->store_directory, "%s", packed.directory);
		snprintf(c->model_path, sizeof c->model_path, "%s", m->gguf);
		snprintf(c->backend, sizeof c->backend, "%s", backend);
		snprintf(c->engine, sizeof c->engine, "sync");
		memcpy(c->digest, packed.digest, sizeof c->digest);
		c->slice = pack.slice;
		c->batch_tokens = BATCH;
		c->logits_rows = 8;
		c->sequences = 2;
		c->context_tokens = 128;
		c->verify_every = 1;
		c->threads = 1;
		check(rank_get_needs(p, c, &needs, &e), &e);
		c->weights_budget_bytes = cold ? needs.weights_min_bytes : needs.weights_all_bytes;
		c->workspace_budget_bytes = needs.workspace_bytes;
		c->kv_budget_bytes = needs.kv_block_bytes * 16;
	}
	program_destroy(p);
	format_gguf_close(g);
}

static void load(struct fleet *f, const struct model *m, bool cold)
{
	for (uint32_t i = 0; i < f->shape.stages; i++) {
		struct rank_message a = {.type = RANK_MESSAGE_ASSIGN};
		a.assign = (struct rank_assign){.epoch = EPOCH, .shape = f->shape, .stage = i, .config = m->config[i]};
		fleet_tell(f, i, &a);
	}
	for (uint32_t i = 0; i < f->shape.stages; i++) {
		assert_int_equal(fleet_hear(f, i), 0);
		if (f->in.type == RANK_MESSAGE_FAILED)
			fail_msg("stage %u: %s", i, f->in.failed.message);
		assert_int_equal(f->in.type, RANK_MESSAGE_READY);
		assert_int_equal(f->in.ready.cold_bytes > 0, cold);
	}
}

static void pass(
	struct fleet *f, uint64_t number, uint32_t position, const uint32_t *tokens, uint32_t count, bool sample)
{
	const uint32_t blocks[8] = {3, 1, 4, 0, 5, 9, 2, 6};
	const struct rank_entry entry = {.first_position = position,
		.tokens = count,
		.blocks = 8,
		.want = sample ? RANK_WANT_SAMPLE : RANK_WANT_NOTHING};
	struct rank_message m = {.type = RANK_MESSAGE_PASS};
	m.pass = (struct rank_pass){.pass = number,
		.entries = &entry,
		.entries_count = 1,
		.tokens = tokens,
		.tokens_count = count,
		.blocks = blocks,
		.blocks_count = 8};
	fleet_tell_all(f, &m);
}

/* The prompt in pieces, all queued at once, then tokens one by one. */
static void generate(struct fleet *f, struct sample_result *out)
{
	uint32_t tokens[PROMPT], last = f->shape.stages - 1;
	uint64_t number = 0;
	struct rank_message m = {.type = RANK_MESSAGE_OPEN};
	m.open.prompt_tokens = PROMPT;
	m.open.params = (struct sample_params){.top_p = 1, .repetition_penalty = 1, .logprobs = SAMPLE_MAX_LOGPROBS};
	fleet_tell_all(f, &m);
	for (uint32_t i = 0; i < PROMPT; i++)
		tokens[i] = (i * 37 + 11) % 300;
	for (uint32_t at = 0; at < PROMPT; at += BATCH) {
		uint32_t count = PROMPT - at < BATCH ? PROMPT - at : BATCH;
		pass(f, number++, at, tokens + at, count, at + count == PROMPT);
	}
	uint64_t heard = 0;
	for (uint32_t made = 0; made < MAKE;) {
		assert_int_equal(fleet_hear(f, last), 0);
		assert_int_equal(f->in.type, RANK_MESSAGE_RESULT);
		assert_int_equal(f->in.result.pass, heard++);
		if (f->in.result.status)
			fail_msg("pass %u: %s", (unsigned)heard - 1, f->in.result.e.message);
		assert_int_equal(f->in.result.entry_status[0], 0);
		if (heard < number)
			continue;
		assert_int_equal(f->in.result.outputs_count, 1);
		out[made] = f->in.result.outputs[0].result;
		pass(f, number++, PROMPT + made, &out[made].token, 1, true);
		made++;
	}
	assert_int_equal(fleet_hear(f, last), 0);
}

static void same_bits(struct model *m, const char *backend)
{
	static struct sample_result want[MAKE], have[MAKE];
	static struct fleet f;
	for (uint32_t stages = 1; stages <= STAGES; stages++) {
		for (int cold = 0; cold < 2; cold++) {
			memset(have, 0, sizeof have);
			prepare(m, stages, backend, cold);
			fleet_start(&f, stages, 65536);
			load(&f, m, cold);
			generate(&f, have);
			fleet_stop(&f, 0);
			if (stages == 1 && !cold)
				memcpy(want, have, sizeof want);
			for (uint32_t i = 0; i < MAKE; i++) {
				assert_int_equal(have[i].token, want[i].token);
				assert_memory_equal(&have[i].logprob, &want[i].logprob, sizeof want[i].logprob);
				assert_int_equal(have[i].top_count, SAMPLE_MAX_LOGPROBS);
				assert_memory_equal(have[i].top, want[i].top, sizeof want[i].top);
			}
		}
	}
}

static void test_reference(void **state)
{
	same_bits(*state, "reference");
}

static void test_cpu(void **state)
{
	same_bits(*state, "cpu");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reference),
		cmocka_unit_test(test_cpu),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
