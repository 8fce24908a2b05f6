// SPDX-License-Identifier: Apache-2.0
// The executor: the same bits for any budget, engine, chunking, company and staging; what bad data and bad passes get.
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shard/pack/layout.h"
#include "tests/lib/model_fixture.h"
#include "tests/lib/tiny_gguf.h"

#define MIB (1ull << 20)
#define PROMPT 21u

struct suite { // one packed model of about 13 MiB for all tests
	char gguf[64];
	struct model_fixture f;
};

static uint32_t prompt_token(uint32_t i)
{
	return (i * 37 + 11) % 320;
}

static void save_model(char path[64], struct tiny_model *m)
{
	snprintf(path, 64, "/tmp/thaw-rank.XXXXXX");
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(tiny_model_save(m, path), 0);
}

static int suite_create(void **state)
{
	struct suite *s = calloc(1, sizeof *s);
	struct tiny_model m = {
		.type = 8, .layers = 4, .width = 512, .ffn_width = 1536, .heads = 8, .kv_heads = 2, .seed = 3};
	save_model(s->gguf, &m);
	model_fixture_init(&s->f, s->gguf);
	snprintf(s->f.config.backend, sizeof s->f.config.backend, "cpu");
	*state = s;
	return 0;
}

static int suite_destroy(void **state)
{
	struct suite *s = *state;
	model_fixture_release(&s->f);
	unlink(s->gguf);
	free(s);
	return 0;
}

static struct rank *open_rank(const struct rank_config *config)
{
	const struct sample_params greedy = model_greedy();
	struct base_error e = {0};
	struct rank *r = NULL;
	if (rank_create(config, &r, &e, NULL, NULL))
		fail_msg("%s", base_error_text(&e));
	assert_int_equal(rank_sequence_open(r, 0, &greedy, PROMPT), 0);
	return r;
}

/* Prompt, then `steps` greedy tokens; all logits of the last position of each pass to out (steps + 1, vocab). */
static void generate(struct rank *r, uint32_t steps, float *out)
{
	uint32_t vocab = rank_program(r)->config.vocab, tokens[PROMPT], token;
	for (uint32_t i = 0; i < PROMPT; i++)
		tokens[i] = prompt_token(i);
	token = model_step(r, tokens, PROMPT, 0);
	memcpy(out, rank_logits(r), vocab * sizeof *out);
	for (uint32_t i = 1; i <= steps; i++) {
		token = model_step(r, &token, 1, PROMPT + i - 1);
		memcpy(out + (size_t)i * vocab, rank_logits(r), vocab * sizeof *out);
	}
}

static float *generate_with(const struct rank_config *config, uint32_t steps, struct rank_placement *ret_placement)
{
	struct rank *r = open_rank(config);
	float *out = calloc((size_t)(steps + 1) * rank_program(r)->config.vocab, sizeof *out);
	generate(r, steps, out);
	if (ret_placement)
		rank_get_placement(r, ret_placement);
	rank_destroy(r);
	return out;
}

/* The same shapes with other numbers in the header: its weights would fit, and its rotation or its eps be wrong. */
static void another_model_file_is_refused(void **state)
{
	struct suite *s = *state;
	struct rank_config config = s->f.config;
	struct format_gguf *g = NULL;
	struct base_error e = {0};
	struct rank *r = NULL;
	assert_int_equal(format_gguf_open(s->gguf, &g, &e), 0);
	config.header_hash = format_gguf_header_hash(g);
	format_gguf_close(g);
	rank_destroy(open_rank(&config));
	config.header_hash ^= 1;
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -ESTALE);
	assert_non_null(strstr(e.message, "is another file"));
}

/* Logits that are no numbers fail the request: token 0 for ever would look like an answer. */
static void weights_that_are_no_numbers_fail_their_request(void **state)
{
	struct model_fixture f;
	struct tiny_model m = {0};
	struct format_gguf *g = NULL;
	char path[64];
	float nan = NAN;
	save_model(path, &m);
	assert_int_equal(format_gguf_open(path, &g, NULL), 0);
	int fd = open(path, O_RDWR);
	off_t at = (off_t)format_gguf_find_tensor(g, "output_norm.weight")->offset_bytes;
	assert_int_equal(pwrite(fd, &nan, sizeof nan, at), sizeof nan);
	close(fd);
	format_gguf_close(g);
	model_fixture_init(&f, path);
	struct rank *r = open_rank(&f.config);
	uint32_t token = 5, block = 0;
	struct rank_entry entry = {.tokens = 1, .blocks = 1, .want = RANK_WANT_SAMPLE};
	struct rank_pass pass = {.entries = &entry,
		.entries_count = 1,
		.tokens = &token,
		.tokens_count = 1,
		.blocks = &block,
		.blocks_count = 1};
	struct rank_output output;
	int status = 0;
	struct rank_pass_result result = {.outputs = &output, .entry_status = &status};
	struct base_error e = {0};
	assert_int_equal(rank_run(r, &pass, &result, &e), 0);
	assert_int_equal(status, -EBADMSG);
	assert_non_null(strstr(e.message, "not numbers"));
	rank_destroy(r);
	model_fixture_release(&f);
	unlink(path);
}

/* ---- identical bits ---- */

static bool uring_works(void)
{
	struct offload_engine_config config = {.depth = 1};
	struct offload_engine *engine = NULL;
	struct base_error fallback;
	if (offload_engine_create("uring", &config, &engine, &fallback, NULL))
		return false; // refused here: the other engine is tested alone
	engine->ops->destroy(engine);
	return true;
}

#ifdef __SANITIZE_THREAD__ // kernels take fifty times as long, and the threads meet in every token
#define STEPS 8u
#else
#define STEPS 64u
#endif

// STEPS tokens of a model with all, half and a tenth of its weights hot, on both engines.
static void budgets_and_engines_do_not_change_a_bit(const char *gguf, const char *backend, uint32_t steps)
{
	static const char *const engines[] = {"uring", "sync"};
	static const uint32_t percents[] = {100, 50, 10};
	struct model_fixture f;
	struct rank_needs needs;
	struct rank_placement placement;
	float *want = NULL;
	model_fixture_init(&f, gguf);
	snprintf(f.config.backend, sizeof f.config.backend, "%s", backend);
	f.config.logits_rows = 1;
	struct rank *all = open_rank(&f.config);
	size_t bytes = (size_t)(steps + 1) * rank_program(all)->config.vocab * sizeof(float);
	assert_int_equal(rank_get_needs(rank_program(all), &f.config, &needs, NULL), 0);
	rank_destroy(all);
	for (uint32_t i = 0; i < 6; i++) {
		if (i % 2 == 0 && !uring_works())
			continue;
		f.config.weights_budget_bytes = needs.weights_all_bytes * percents[i / 2] / 100;
		bool least =
			f.config.weights_budget_bytes < needs.weights_min_bytes; // of a model that is too small for it
		if (least)
			f.config.weights_budget_bytes = needs.weights_min_bytes;
		snprintf(f.config.engine, sizeof f.config.engine, "%s", engines[i % 2]);
		float *have = generate_with(&f.config, steps, &placement);
		assert_string_equal(placement.engine, engines[i % 2]);
		if (percents[i / 2] == 100)
			assert_int_equal(placement.cold_bytes, 0);
		else
			assert_true(
				placement.cold_bytes > 0 &&
				(least || placement.cold_bytes * 100 >= needs.pass_bytes * (100 - percents[i / 2])));
		if (want)
			assert_memory_equal(want, have, bytes);
		else
			want = have;
		if (want != have)
			free(have);
	}
	free(want);
	model_fixture_release(&f);
}

static void identical_bits_cpu(void **state)
{
	struct tiny_model m = {
		.type = 8, .layers = 14, .width = 512, .ffn_width = 1536, .heads = 8, .kv_heads = 2, .tied = true};
	char path[64];
	save_model(path, &m);
	budgets_and_engines_do_not_change_a_bit(path, "cpu", STEPS);
	unlink(path);
}

static void identical_bits_reference(void **state)
{
	struct suite *s = *state;
	budgets_and_engines_do_not_change_a_bit(s->gguf, "reference", 4);
}

static void identical_bits_real_model(void **state)
{
	const char *model = getenv("THAW_TEST_MODEL");
	if (!model || !model[0] || STEPS < 64)
		skip();
	budgets_and_engines_do_not_change_a_bit(model, "cpu", STEPS);
}

static void types_stream_as_they_are_hot(void **state)
{
	static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 12, 13, 14, 30};
	for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
		struct tiny_model m = {.type = types[i],
			.layers = 4,
			.width = 768,
			.ffn_width = 1536,
			.heads = 6,
			.kv_heads = 3,
			.tied = i % 2 == 0,
			.seed = i};
		struct model_fixture f;
		struct rank_placement hot, cold;
		char path[64];
		save_model(path, &m);
		model_fixture_init(&f, path);
		snprintf(f.config.backend, sizeof f.config.backend, "cpu");
		float *want = generate_with(&f.config, 3, &hot);
		f.config.weights_budget_bytes = 6 * MIB;
		float *have = generate_with(&f.config, 3, &cold);
		assert_true(hot.cold_bytes == 0 && cold.cold_bytes > 0);
		assert_memory_equal(want, have, 4 * 320 * sizeof *want);
		free(want);
		free(have);
		model_fixture_release(&f);
		unlink(path);
	}
}

/* ---- company and chunks ---- */

#define SEQUENCES 5u

struct batch {
	struct rank_entry entries[SEQUENCES];
	uint32_t tokens[128], blocks[SEQUENCES * 8], targets[128];
	struct rank_output outputs[64];
	int status[SEQUENCES];
	struct rank_pass pass;
	struct rank_pass_result result;
};

static void batch_add(struct batch *b, uint32_t sequence, uint32_t position, uint32_t count, enum rank_want want)
{
	struct rank_pass *p = &b->pass;
	uint32_t blocks = (position + count + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	b->entries[p->entries_count++] = (struct rank_entry){
		.sequence = sequence,
		.first_position = position,
		.tokens = count,
		.first_token = p->tokens_count,
		.first_block = p->blocks_count,
		.blocks = blocks,
		.want = want,
		.first_target = p->targets_count,
		.score_top = 2,
	};
	for (uint32_t i = 0; i < count; i++) {
		b->tokens[p->tokens_count++] = prompt_token(sequence * 100 + position + i);
		if (want == RANK_WANT_SCORES)
			b->targets[p->targets_count++] = prompt_token(sequence * 100 + position + i + 1);
	}
	for (uint32_t i = 0; i < blocks; i++)
		b->blocks[p->blocks_count++] = i * SEQUENCES + sequence; // spread over the cache
	p->entries = b->entries;
	p->tokens = b->tokens;
	p->blocks = b->blocks;
	p->targets = b->targets;
	b->result.outputs = b->outputs;
	b->result.entry_status = b->status;
}

static void batch_run(struct batch *b, struct rank *r)
{
	struct base_error e = {0};
	if (rank_run(r, &b->pass, &b->result, &e))
		fail_msg("%s", base_error_text(&e));
	for (uint32_t i = 0; i < b->pass.entries_count; i++)
		assert_int_equal(b->status[i], 0);
}

static struct rank *open_for_batches(const struct rank_config *config)
{
	const struct sample_params greedy = model_greedy();
	struct rank *r = open_rank(config);
	for (uint32_t i = 1; i < SEQUENCES; i++)
		assert_int_equal(rank_sequence_open(r, i, &greedy, PROMPT), 0);
	return r;
}

static void company_chunks_and_threads_do_not_change_a_bit(void **state)
{
	struct suite *s = *state;
	struct rank_config config = s->f.config;
	float *want = calloc(SEQUENCES * 320, sizeof *want);
	config.threads = 1;
	struct rank *r = open_for_batches(&config);
	for (uint32_t i = 0; i < SEQUENCES; i++) { // each alone, whole
		struct batch b = {0};
		batch_add(&b, i, 0, PROMPT, RANK_WANT_SAMPLE);
		batch_run(&b, r);
		memcpy(want + (size_t)i * 320, rank_logits(r), 320 * sizeof *want);
	}
	rank_destroy(r);
	config.threads = 3;
	config.weights_budget_bytes = 6 * MIB;
	r = open_for_batches(&config);
	for (uint32_t part = 0; part < 3; part++) { // all together, in chunks of 8, 8 and 5
		struct batch b = {0};
		for (uint32_t i = 0; i < SEQUENCES; i++)
			batch_add(&b, i, part * 8, part < 2 ? 8 : PROMPT - 16,
				part < 2 ? RANK_WANT_NOTHING : RANK_WANT_SAMPLE);
		batch_run(&b, r);
		assert_int_equal(b.result.outputs_count, part < 2 ? 0 : SEQUENCES);
		if (part == 2)
			assert_memory_equal(want, rank_logits(r), SEQUENCES * 320 * sizeof *want);
	}
	rank_destroy(r);
	free(want);
}

static void scores_are_of_the_next_tokens(void **state)
{
	struct suite *s = *state;
	struct rank *r = open_for_batches(&s->f.config);
	struct batch b = {0}, alone = {0};
	batch_add(&b, 1, 0, 9, RANK_WANT_SAMPLE);
	batch_add(&b, 2, 0, PROMPT, RANK_WANT_SCORES);
	batch_run(&b, r);
	assert_int_equal(b.result.outputs_count, 1 + PROMPT);
	for (uint32_t i = 0; i < PROMPT; i++) {
		const struct rank_output *o = &b.outputs[1 + i];
		assert_int_equal(o->entry, 1);
		assert_int_equal(o->token_index, i);
		assert_int_equal(o->result.token, prompt_token(200 + i + 1));
		assert_int_equal(o->result.top_count, 2);
		assert_true(o->result.logprob <= o->result.top[0].logprob && o->result.logprob < 0);
	}
	// The last one is what a sample at the same place reports of its best token.
	batch_add(&alone, 2, 0, PROMPT, RANK_WANT_SAMPLE);
	batch_run(&alone, r);
	assert_int_equal(alone.outputs[0].result.token, b.outputs[PROMPT].result.top[0].token);
	assert_true(alone.outputs[0].result.logprob == b.outputs[PROMPT].result.top[0].logprob);
	rank_destroy(r);
}

/* ---- stages ---- */

static void two_stages_equal_one(void **state)
{
	struct suite *s = *state;
	struct rank_config first = s->f.config, second = s->f.config;
	float *want = generate_with(&s->f.config, 0, NULL), *hidden = calloc(PROMPT * 512, sizeof *hidden);
	first.slice = (struct pack_slice){0, 1, 0, 1};
	second.slice = (struct pack_slice){1, 3, 0, 1};
	second.weights_budget_bytes = 6 * MIB;
	struct rank *a = open_for_batches(&first), *b = open_for_batches(&second);
	struct batch pass = {0};
	batch_add(&pass, 0, 0, PROMPT, RANK_WANT_SAMPLE);
	pass.result.hidden_out = hidden;
	batch_run(&pass, a);
	assert_int_equal(pass.result.outputs_count, 0);
	pass.pass.hidden_in = hidden;
	batch_run(&pass, b);
	assert_int_equal(pass.result.outputs_count, 1);
	assert_memory_equal(want, rank_logits(b), 320 * sizeof *want);
	// A stage that misses what the one before computed says so.
	pass.pass.hidden_in = NULL;
	assert_int_equal(rank_run(b, &pass.pass, &pass.result, NULL), -EINVAL);
	rank_destroy(a);
	rank_destroy(b);
	free(want);
	free(hidden);
}

/* ---- bad data ---- */

static void flip(const struct model_fixture *f, const char *name, off_t at)
{
	char path[640];
	uint8_t byte;
	snprintf(path, sizeof path, "%s/%s", f->packed.directory, name);
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	assert_int_equal(fsync(fd), 0);
	close(fd);
}

// A place in a cold extent of layer 2 under the budget of the tests below: found by trying.
static void cold_corruption_fails_passes_and_nothing_else(void **state)
{
	struct suite *s = *state;
	struct rank_config config = s->f.config;
	config.weights_budget_bytes = 6 * MIB;
	float *want = generate_with(&config, 0, NULL);
	struct stat st;
	char path[640];
	snprintf(path, sizeof path, "%s/layer-0002.tp0of1", s->f.packed.directory);
	assert_int_equal(stat(path, &st), 0);
	struct rank *r = open_for_batches(&config);
	for (off_t at = st.st_size / 3; at < st.st_size * 2 / 3; at += 65536)
		flip(&s->f, "layer-0002.tp0of1", at);
	uint32_t failed = 0, good = 0;
	for (uint32_t i = 0; i < 6; i++) { // what was read ahead before may still be good
		struct batch b = {0};
		struct base_error e = {0};
		batch_add(&b, 0, 0, PROMPT, RANK_WANT_SAMPLE);
		batch_add(&b, 1, 0, 3, RANK_WANT_SAMPLE);
		assert_int_equal(rank_run(r, &b.pass, &b.result, &e), 0);
		assert_int_equal(b.status[0], b.status[1]);
		if (b.status[0]) {
			assert_int_equal(b.status[0], -EBADMSG);
			assert_int_equal(b.result.outputs_count, 0);
			assert_non_null(strstr(e.message, "layer 2: "));
			assert_non_null(strstr(e.message, "layer-0002.tp0of1: checksum"));
			failed++;
		} else {
			assert_memory_equal(want, rank_logits(r), 320 * sizeof *want);
			good++;
		}
	}
	assert_true(failed >= 4);
	for (off_t at = st.st_size / 3; at < st.st_size * 2 / 3; at += 65536)
		flip(&s->f, "layer-0002.tp0of1", at);
	for (uint32_t i = 0; i < 3; i++) { // whole again: after what was read ahead is used up, all is well
		struct batch b = {0};
		batch_add(&b, 0, 0, PROMPT, RANK_WANT_SAMPLE);
		assert_int_equal(rank_run(r, &b.pass, &b.result, NULL), 0);
		if (i == 2)
			assert_int_equal(b.status[0], 0);
	}
	assert_memory_equal(want, rank_logits(r), 320 * sizeof *want);
	rank_destroy(r);
	free(want);
}

static void cold_embedding_rows_are_checked(void **state)
{
	struct suite *s = *state;
	struct rank_config config = s->f.config;
	config.weights_budget_bytes = 6 * MIB;
	struct rank *r = open_for_batches(&config);
	struct rank_stats stats;
	struct batch b = {0};
	for (off_t at = 4096; at < 170000; at += 4096)
		flip(&s->f, "embed.tp0of1", at);
	batch_add(&b, 0, 0, PROMPT, RANK_WANT_SAMPLE);
	struct base_error e = {0};
	assert_int_equal(rank_run(r, &b.pass, &b.result, &e), 0);
	assert_int_equal(b.status[0], -EBADMSG);
	assert_non_null(strstr(e.message, "embed.tp0of1"));
	assert_int_equal(b.result.outputs_count, 0);
	for (off_t at = 4096; at < 170000; at += 4096)
		flip(&s->f, "embed.tp0of1", at);
	batch_run(&b, r);
	rank_get_stats(r, &stats);
	assert_true(stats.embed_read_bytes > 0);
	assert_int_equal(stats.passes, 2);
	rank_destroy(r);
}

static void hot_corruption_is_refused_at_load(void **state)
{
	struct suite *s = *state;
	struct rank *r = NULL;
	struct base_error e = {0};
	flip(&s->f, "layer-0001.tp0of1", 500000);
	assert_int_equal(rank_create(&s->f.config, &r, &e, NULL, NULL), -EBADMSG);
	assert_non_null(strstr(e.message, "layer-0001.tp0of1"));
	assert_non_null(strstr(e.message, "checksum"));
	flip(&s->f, "layer-0001.tp0of1", 500000);
	struct rank_config config = s->f.config;
	config.digest[0] ^= 1;
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -ESTALE);
}

/* ---- refusals ---- */

static void malformed_passes_are_refused(void **state)
{
	struct suite *s = *state;
	struct rank *r = open_for_batches(&s->f.config);
	static const char *const texts[] = {"sequence 7 is not open", "its tokens are not the next ones",
		"KV blocks do not hold", "KV block 4000000000", "token 320 is not in the vocabulary",
		"only 0 tokens of sequence 0 have come", "is in the pass twice", "wants 9", "is written twice",
		"target 320", "a pass of 0 entries", "belong to no entry", "logits of more than 64", "positions 0 to"};
	for (uint32_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
		struct batch b = {0};
		struct base_error e = {0};
		batch_add(&b, 0, 0, 20, i == 9 ? RANK_WANT_SCORES : RANK_WANT_SAMPLE);
		batch_add(&b, 1, 0, 20, i == 12 ? RANK_WANT_SCORES : RANK_WANT_NOTHING);
		if (i == 12) {
			batch_add(&b, 2, 0, 20, RANK_WANT_SCORES);
			batch_add(&b, 3, 0, 30, RANK_WANT_SCORES);
		}
		if (i == 0)
			b.entries[0].sequence = 7;
		if (i == 1)
			b.entries[1].first_token = 0;
		if (i == 2)
			b.entries[1].blocks = 1;
		if (i == 3)
			b.blocks[1] = 4000000000;
		if (i == 4)
			b.tokens[7] = 320;
		if (i == 5)
			b.entries[0].first_position = 1;
		if (i == 6)
			b.entries[1].sequence = 0;
		if (i == 7)
			b.entries[1].want = (enum rank_want)9;
		if (i == 8)
			b.blocks[3] = b.blocks[0];
		if (i == 9)
			b.targets[3] = 320;
		if (i == 10)
			b.pass.entries_count = 0;
		if (i == 11)
			b.pass.tokens_count++;
		if (i == 13)
			b.entries[0].tokens = b.pass.tokens_count = 40, b.pass.entries_count = 1,
			b.entries[0].first_position = 0;
		if (i == 13) {
			rank_destroy(r);
			struct rank_config config = s->f.config;
			config.context_tokens = 30;
			r = open_for_batches(&config);
		}
		assert_int_equal(rank_run(r, &b.pass, &b.result, &e), -EINVAL);
		if (!strstr(e.message, texts[i]))
			fail_msg("'%s' lacks '%s'", e.message, texts[i]);
	}
	struct batch b = {0};
	batch_add(&b, 0, 0, 20, RANK_WANT_SAMPLE); // and it goes on
	batch_run(&b, r);
	struct rank_stats stats;
	rank_get_stats(r, &stats);
	assert_int_equal(stats.passes, 1);
	rank_destroy(r);
}

static void budgets_that_are_too_small_say_by_how_much(void **state)
{
	struct suite *s = *state;
	struct rank_config config = s->f.config;
	struct rank *r = open_rank(&config);
	struct rank_needs needs;
	struct rank_placement placement;
	struct base_error e = {0};
	assert_int_equal(rank_get_needs(rank_program(r), &config, &needs, &e), 0);
	rank_destroy(r);
	config.weights_budget_bytes = needs.weights_all_bytes;
	free(generate_with(&config, 0, &placement));
	assert_int_equal(placement.cold_bytes, 0);
	assert_int_equal(placement.slot_bytes, 0);
	config.weights_budget_bytes = needs.weights_min_bytes;
	free(generate_with(&config, 0, &placement));
	assert_true(placement.cold_bytes > 0 && placement.hot_bytes + placement.slot_bytes <= needs.weights_min_bytes);
	config.weights_budget_bytes = needs.weights_min_bytes - 1;
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -ENOMEM);
	assert_non_null(strstr(e.message, "is 1 bytes short"));
	config.weights_budget_bytes = needs.weights_all_bytes;
	config.workspace_budget_bytes = needs.workspace_bytes - 7;
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -ENOMEM);
	assert_non_null(strstr(e.message, "is 7 bytes short"));
	config.workspace_budget_bytes = needs.workspace_bytes;
	config.kv_budget_bytes = needs.kv_block_bytes - 3;
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -ENOMEM);
	assert_non_null(strstr(e.message, "is 3 bytes short"));
	config.kv_budget_bytes = 5 * needs.kv_block_bytes;
	free(generate_with(&config, 0, &placement));
	assert_int_equal(placement.kv_blocks, 5);
	snprintf(config.backend, sizeof config.backend, "abacus");
	assert_int_equal(rank_create(&config, &r, &e, NULL, NULL), -EINVAL);
	assert_non_null(strstr(e.message, "abacus"));
}

static void sequences_have_their_limits(void **state)
{
	struct suite *s = *state;
	struct rank *r = open_rank(&s->f.config);
	struct sample_params p = model_greedy();
	assert_int_equal(rank_sequence_open(r, 0, &p, 1), -EEXIST);
	assert_int_equal(rank_sequence_open(r, s->f.config.sequences, &p, 1), -ENOSPC);
	p.top_p = 7;
	assert_int_equal(rank_sequence_open(r, 1, &p, 1), -EINVAL);
	rank_sequence_close(r, 0);
	p.top_p = 1;
	assert_int_equal(rank_sequence_open(r, 0, &p, 1), 0);
	rank_destroy(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(another_model_file_is_refused),
		cmocka_unit_test(weights_that_are_no_numbers_fail_their_request),
		cmocka_unit_test(identical_bits_cpu),
		cmocka_unit_test(identical_bits_reference),
		cmocka_unit_test(identical_bits_real_model),
		cmocka_unit_test(types_stream_as_they_are_hot),
		cmocka_unit_test(company_chunks_and_threads_do_not_change_a_bit),
		cmocka_unit_test(scores_are_of_the_next_tokens),
		cmocka_unit_test(two_stages_equal_one),
		cmocka_unit_test(cold_corruption_fails_passes_and_nothing_else),
		cmocka_unit_test(cold_embedding_rows_are_checked),
		cmocka_unit_test(hot_corruption_is_refused_at_load),
		cmocka_unit_test(malformed_passes_are_refused),
		cmocka_unit_test(budgets_that_are_too_small_say_by_how_much),
		cmocka_unit_test(sequences_have_their_limits),
	};
	return cmocka_run_group_tests_name("rank", tests, suite_create, suite_destroy);
}
