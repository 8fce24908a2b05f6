// SPDX-License-Identifier: Apache-2.0
/* A small real model in stages of several parts each, over the link. Against one rank: the reference backend, whose parts differ
 * from the whole in the order of additions only, within rounding; and every run, chunking and budget the same bits. */
#include "tests/lib/testing.h"

#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "tests/lib/tiny_gguf.h"
#include "tests/unit/rank_message/fleet.h"

#define LAYERS 4u
#define VOCAB 320u
#define PROMPT 37u
#define MAKE 8u
#define BATCH 16u
#define BOUND 1e-3 // of log probabilities; a wrong part makes whole numbers

struct model {
	char directory[64], gguf[80], store[80];
	struct rank_config config[RANKS];
};

struct run {
	uint32_t stages, parts, chunk; // chunk: positions of a pass of the prompt
	const char *backend;
	bool cold;
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

static void model_create(struct model *m, struct tiny_model *tiny)
{
	memset(m, 0, sizeof *m);
	snprintf(m->directory, sizeof m->directory, "/tmp/thaw-tensor.XXXXXX");
	assert_non_null(mkdtemp(m->directory));
	snprintf(m->gguf, sizeof m->gguf, "%s/model.gguf", m->directory);
	snprintf(m->store, sizeof m->store, "%s/store", m->directory);
	assert_int_equal(tiny_model_save(tiny, m->gguf), 0);
}

static void model_destroy(struct model *m)
{
	nftw(m->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static struct pack_slice slice_of(const struct run *x, uint32_t rank)
{
	uint32_t stage = rank / x->parts, first = LAYERS * stage / x->stages;
	return (struct pack_slice){first, LAYERS * (stage + 1) / x->stages - first, rank % x->parts, x->parts};
}

static void prepare(struct model *m, const struct run *x)
{
	struct base_error e = {0};
	struct format_gguf *g;
	struct program *p;
	check(format_gguf_open(m->gguf, &g, &e), &e);
	check(program_build(g, &p, &e), &e);
	for (uint32_t i = 0; i < x->stages * x->parts; i++) {
		struct rank_config *c = &m->config[i];
		struct pack_config pack = {.store_path = m->store, .slice = slice_of(x, i)};
		struct pack_result packed;
		struct rank_needs needs;
		check(pack_model(g, p, &pack, &packed, &e), &e);
		memset(c, 0, sizeof *c);
		snprintf(c->store_directory, sizeof c->store_directory, "%s", packed.directory);
		snprintf(c->model_path, sizeof c->model_path, "%s", m->gguf);
		snprintf(c->backend, sizeof c->backend, "%s", x->backend);
		snprintf(c->engine, sizeof c->engine, "sync");
		memcpy(c->digest, packed.digest, sizeof c->digest);
		c->slice = pack.slice;
		c->batch_tokens = BATCH;
		c->logits_rows = BATCH;
		c->sequences = 2;
		c->context_tokens = 128;
		c->verify_every = 1;
		c->threads = 1;
		check(rank_get_needs(p, c, &needs, &e), &e);
		c->weights_budget_bytes = x->cold ? needs.weights_min_bytes : needs.weights_all_bytes;
		c->workspace_budget_bytes = needs.workspace_bytes;
		c->kv_budget_bytes = needs.kv_block_bytes * 16;
	}
	program_destroy(p);
	format_gguf_close(g);
}

static void load(struct fleet *f, const struct model *m, bool cold)
{
	for (uint32_t i = 0; i < f->ranks; i++) {
		struct rank_message a = {.type = RANK_MESSAGE_ASSIGN};
		a.assign = (struct rank_assign){.epoch = EPOCH,
			.stage = i / f->parts,
			.stages = f->stages,
			.patience_ns = 20 * BASE_NS_PER_SECOND,
			.config = m->config[i]};
		fleet_tell(f, i, &a);
	}
	for (uint32_t i = 0; i < f->ranks; i++) {
		assert_int_equal(fleet_hear(f, i), 0);
		if (f->in.type == RANK_MESSAGE_FAILED)
			fail_msg("rank %u: %s", i, f->in.failed.message);
		assert_int_equal(f->in.type, RANK_MESSAGE_READY);
		assert_true(
			f->in.ready.cold_bytes > 0 || !cold || f->stages > 1); // a small share may fit the least budget
	}
}

static void pass(struct fleet *f, uint64_t number, const struct rank_entry *entry, const uint32_t *tokens)
{
	static const uint32_t blocks[8] = {3, 1, 4, 0, 5, 9, 2, 6};
	struct rank_message m = {.type = RANK_MESSAGE_PASS};
	m.pass = (struct rank_pass){.pass = number,
		.entries = entry,
		.entries_count = 1,
		.tokens = tokens,
		.tokens_count = entry->tokens,
		.blocks = blocks,
		.blocks_count = 8,
		.targets = tokens,
		.targets_count = entry->want == RANK_WANT_SCORES ? entry->tokens : 0};
	fleet_tell_all(f, &m);
}

static void hear_result(struct fleet *f, uint64_t number)
{
	assert_int_equal(fleet_hear(f, fleet_last(f)), 0);
	assert_int_equal(f->in.type, RANK_MESSAGE_RESULT);
	assert_int_equal(f->in.result.pass, number);
	if (f->in.result.status)
		fail_msg("pass %u: %s", (unsigned)number, f->in.result.e.message);
	assert_int_equal(f->in.result.entry_status[0], 0);
}

static void open_sequence(struct fleet *f)
{
	struct rank_message m = {.type = RANK_MESSAGE_OPEN};
	m.open.prompt_tokens = PROMPT;
	m.open.params = (struct sample_params){.top_p = 1, .repetition_penalty = 1, .logprobs = SAMPLE_MAX_LOGPROBS};
	fleet_tell_all(f, &m);
}

/* The prompt in chunks, then tokens one by one. */
static void generate(struct fleet *f, uint32_t chunk, struct sample_result *out)
{
	uint32_t tokens[PROMPT], count;
	uint64_t number = 0;
	for (uint32_t i = 0; i < PROMPT; i++)
		tokens[i] = (i * 37 + 11) % 300;
	open_sequence(f);
	for (uint32_t at = 0; at < PROMPT; at += count) {
		count = PROMPT - at < chunk ? PROMPT - at : chunk;
		struct rank_entry n = {.first_position = at, .tokens = count, .blocks = 8};
		n.want = at + count == PROMPT ? RANK_WANT_SAMPLE : RANK_WANT_NOTHING;
		pass(f, number, &n, tokens + at);
		hear_result(f, number++);
	}
	for (uint32_t made = 0; made < MAKE; made++) {
		assert_int_equal(f->in.result.outputs_count, 1);
		out[made] = f->in.result.outputs[0].result;
		struct rank_entry n = {
			.first_position = PROMPT + made, .tokens = 1, .blocks = 8, .want = RANK_WANT_SAMPLE};
		pass(f, number, &n, &out[made].token);
		hear_result(f, number++);
	}
}

static void run(struct model *m, const struct run *x, struct sample_result *out)
{
	static struct fleet f;
	memset(out, 0, MAKE * sizeof *out);
	prepare(m, x);
	fleet_start_parts(&f, x->stages, x->parts, 65536);
	load(&f, m, x->cold);
	generate(&f, x->chunk, out);
	fleet_stop(&f, 0);
}

static void same_bits(const struct sample_result *have, const struct sample_result *want)
{
	for (uint32_t i = 0; i < MAKE; i++) {
		assert_int_equal(have[i].token, want[i].token);
		assert_memory_equal(&have[i].logprob, &want[i].logprob, sizeof want[i].logprob);
		assert_int_equal(have[i].top_count, SAMPLE_MAX_LOGPROBS);
		assert_memory_equal(have[i].top, want[i].top, sizeof want[i].top);
	}
}

// The KV cache keeps half floats, so a last bit here can be one of 2^-11 there.
static void within(const struct sample_result *have, const struct sample_result *want)
{
	double worst = 0;
	for (uint32_t i = 0; i < MAKE; i++) {
		assert_int_equal(have[i].token, want[i].token);
		worst = fmax(worst, fabs((double)have[i].logprob - (double)want[i].logprob));
	}
	print_message("worst difference %.2g (bound %.2g)\n", worst, BOUND);
	assert_true(worst <= BOUND);
}

/* Parts, with a head of its own and with a tied one, whose rows are looked up by the part that has them. */
static void check_parts(struct tiny_model *tiny, uint32_t parts)
{
	static struct sample_result one[MAKE], want[MAKE], have[MAKE];
	struct model m;
	model_create(&m, tiny);
	run(&m, &(struct run){1, 1, BATCH, "reference", false}, one);
	run(&m, &(struct run){1, parts, BATCH, "reference", false}, want);
	within(want, one);
	run(&m, &(struct run){1, parts, 5, "reference", true}, have);
	same_bits(have, want);
	run(&m, &(struct run){2, parts, BATCH, "reference", false}, have);
	same_bits(have, want);
	run(&m, &(struct run){1, parts, BATCH, "cpu", false}, want);
	run(&m, &(struct run){2, parts, 7, "cpu", true}, have);
	same_bits(have, want);
	run(&m, &(struct run){1, parts, 1, "cpu", true}, have);
	same_bits(have, want);
	model_destroy(&m);
}

static void two_parts(void **state)
{
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 512,
		.ffn_width = 1568, // 49 blocks: uneven
		.heads = 4,
		.kv_heads = 2,
		.head_dim = 128,
		.vocab = VOCAB,
		.biases = true,
		.seed = 7};
	check_parts(&tiny, 2);
}

static void three_parts_with_a_tied_head(void **state)
{
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 576,
		.ffn_width = 1536,
		.heads = 9,
		.kv_heads = 3,
		.head_dim = 64,
		.vocab = VOCAB,
		.tied = true,
		.seed = 9};
	check_parts(&tiny, 3);
}

static void more_parts_than_kv_heads(void **state)
{
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 512,
		.ffn_width = 1536,
		.heads = 4,
		.kv_heads = 1,
		.head_dim = 128,
		.vocab = VOCAB,
		.seed = 5};
	check_parts(&tiny, 2);
}

static void the_reason_why_not(void **state)
{
	struct tiny_model tiny = {.type = 8, .width = 576, .heads = 9, .kv_heads = 3, .head_dim = 64, .vocab = VOCAB};
	struct base_error e = {0};
	struct format_gguf *g;
	struct program *p;
	struct rank_needs needs;
	struct rank_config c = {
		.slice = {0, 2, 0, 2}, .batch_tokens = 4, .logits_rows = 4, .sequences = 1, .context_tokens = 16};
	struct model m;
	model_create(&m, &tiny);
	check(format_gguf_open(m.gguf, &g, &e), &e);
	check(program_build(g, &p, &e), &e);
	assert_int_equal(rank_get_needs(p, &c, &needs, &e), -EINVAL);
	assert_string_equal(e.message,
		"the model cannot be cut into 2 parts: its 9 heads, which share 3 KV heads, do not "
		"divide by 2 (possible: 1, 3, 9)");
	program_destroy(p);
	format_gguf_close(g);
	model_destroy(&m);
}

/* A pass that is not well-formed is refused by all parts, and the next one is computed. Scores need rows of logits of all parts. */
static void refusals_and_scores(void **state)
{
	static struct fleet f;
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 128,
		.heads = 4,
		.kv_heads = 2,
		.head_dim = 32,
		.vocab = VOCAB,
		.seed = 3};
	struct run x = {2, 2, BATCH, "cpu", false};
	struct model m;
	uint32_t tokens[6] = {5, 6, 7, 8, 9, 10};
	model_create(&m, &tiny);
	prepare(&m, &x);
	fleet_start_parts(&f, 2, 2, 65536);
	load(&f, &m, false);
	open_sequence(&f);
	struct rank_entry n = {.sequence = 1, .tokens = 6, .blocks = 8, .want = RANK_WANT_SCORES, .score_top = 2};
	pass(&f, 0, &n, tokens);
	assert_int_equal(fleet_hear(&f, fleet_last(&f)), 0);
	assert_int_equal(f.in.result.status, -EINVAL);
	assert_non_null(strstr(f.in.result.e.message, "sequence 1 is not open"));
	n.sequence = 0;
	pass(&f, 1, &n, tokens);
	hear_result(&f, 1);
	assert_int_equal(f.in.result.outputs_count, 6);
	for (uint32_t i = 0; i < 6; i++) {
		assert_int_equal(f.in.result.outputs[i].result.token, tokens[i]);
		assert_true(f.in.result.outputs[i].result.logprob < 0);
		assert_int_equal(f.in.result.outputs[i].result.top_count, 2);
	}
	fleet_stop(&f, 0);
	model_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_parts),
		cmocka_unit_test(three_parts_with_a_tied_head),
		cmocka_unit_test(more_parts_than_kv_heads),
		cmocka_unit_test(the_reason_why_not),
		cmocka_unit_test(refusals_and_scores),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
