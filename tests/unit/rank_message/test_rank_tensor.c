// SPDX-License-Identifier: Apache-2.0
/* A small real model in stages of several parts each, over the link. Against one rank: the reference backend, whose
 * parts differ from the whole in the order of additions only, within rounding; and every run, chunking and budget the
 * same bits. */
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tests/lib/fleet_model.h"
#include "tests/lib/tiny_gguf.h"

#define LAYERS 4u
#define VOCAB 320u
#define PROMPT 37u
#define MAKE 8u
#define BATCH 16u
#define BOUND 1e-3 // of log probabilities; a wrong part makes whole numbers

struct model {
	char gguf[64];
	struct fleet_model m;
};

static void model_create(struct model *m, struct tiny_model *tiny)
{
	snprintf(m->gguf, sizeof m->gguf, "/tmp/thaw-tensor.XXXXXX");
	int fd = mkstemp(m->gguf);
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(tiny_model_save(tiny, m->gguf), 0);
	fleet_model_init(&m->m, m->gguf);
}

static void model_destroy(struct model *m)
{
	fleet_model_release(&m->m);
	unlink(m->gguf);
}

static void run_shape(struct model *m, const struct rank_shape *shape, const char *backend, bool cold, uint32_t chunk,
	struct sample_result *out)
{
	static struct fleet f;
	uint32_t tokens[PROMPT];
	for (uint32_t i = 0; i < PROMPT; i++)
		tokens[i] = (i * 37 + 11) % 300;
	memset(out, 0, MAKE * sizeof *out);
	fleet_model_start(&m->m, &(struct fleet_run){*shape, backend, cold, BATCH, 128}, &f);
	fleet_model_generate(&f, 0, tokens, PROMPT, chunk, out, MAKE);
	fleet_stop(&f, 0);
}

static void run(struct model *m, uint32_t stages, uint32_t parts, const char *backend, bool cold, uint32_t chunk,
	struct sample_result *out)
{
	struct rank_shape shape;
	assert_int_equal(rank_shape_even(stages, parts, &shape), 0);
	run_shape(m, &shape, backend, cold, chunk, out);
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
	run(&m, 1, 1, "reference", false, BATCH, one);
	run(&m, 1, parts, "reference", false, BATCH, want);
	within(want, one);
	run(&m, 1, parts, "reference", true, 5, have);
	same_bits(have, want);
	run(&m, 2, parts, "reference", false, BATCH, have);
	same_bits(have, want);
	run(&m, 1, parts, "cpu", false, BATCH, want);
	run(&m, 2, parts, "cpu", true, 7, have);
	same_bits(have, want);
	run(&m, 1, parts, "cpu", true, 1, have);
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

/* Stages with numbers of parts of their own, the tied head in one with more of them than the embedding's. */
static void stages_of_different_widths(void **state)
{
	static const struct rank_shape shapes[] = {{2, {1, 3}}, {3, {3, 1, 2}}};
	static struct sample_result one[MAKE], want[MAKE], have[MAKE];
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 384,
		.ffn_width = 768,
		.heads = 6,
		.kv_heads = 6,
		.head_dim = 64,
		.vocab = VOCAB,
		.tied = true,
		.seed = 9};
	struct model m;
	model_create(&m, &tiny);
	run(&m, 1, 1, "reference", false, BATCH, one);
	for (uint32_t i = 0; i < base_array_size(shapes); i++) {
		run_shape(&m, &shapes[i], "reference", false, BATCH, want);
		within(want, one);
		run_shape(&m, &shapes[i], "cpu", false, BATCH, want);
		run_shape(&m, &shapes[i], "cpu", true, 7, have);
		same_bits(have, want);
	}
	model_destroy(&m);
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
	assert_int_equal(format_gguf_open(m.gguf, &g, &e), 0);
	assert_int_equal(program_build(g, &p, &e), 0);
	assert_int_equal(rank_get_needs(p, &c, &needs, &e), -EINVAL);
	assert_string_equal(e.message,
		"the model cannot be cut into 2 parts: its 9 heads, which share 3 KV heads, do not divide by 2 "
		"(possible: 1, 3, 9)");
	program_destroy(p);
	format_gguf_close(g);
	model_destroy(&m);
}

/* A pass that is not well-formed is refused by all parts, and the next one is computed. Scores need rows of logits of
 * all parts. */
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
	struct model m;
	uint32_t tokens[6] = {5, 6, 7, 8, 9, 10};
	model_create(&m, &tiny);
	fleet_model_start(&m.m, &(struct fleet_run){{2, {2, 2}}, "cpu", false, BATCH, 128}, &f);
	fleet_model_pass(&f, 0, 0, tokens, 6, RANK_WANT_SCORES);
	assert_int_equal(fleet_hear(&f, fleet_last(&f)), 0);
	assert_int_equal(f.in.result.status, -EINVAL);
	assert_non_null(strstr(f.in.result.e.message, "sequence 0 is not open"));
	fleet_model_open(&f, 6);
	fleet_model_pass(&f, 1, 0, tokens, 6, RANK_WANT_SCORES);
	fleet_model_hear(&f, 1);
	assert_int_equal(f.in.result.outputs_count, 6);
	for (uint32_t i = 0; i < 6; i++) {
		assert_int_equal(f.in.result.outputs[i].result.token, tokens[i]);
		assert_true(f.in.result.outputs[i].result.logprob < 0);
		assert_int_equal(f.in.result.outputs[i].result.top_count, 2);
	}
	fleet_stop(&f, 0);
	model_destroy(&m);
}

/* The sums are those of the group, whatever carries them: the same bits over UCX. */
static void over_ucx(void **state)
{
	static struct fleet f;
	static struct sample_result want[MAKE], have[MAKE];
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 128,
		.heads = 4,
		.kv_heads = 2,
		.head_dim = 32,
		.vocab = VOCAB,
		.tied = true,
		.seed = 8};
	struct model m;
	const uint32_t tokens[6] = {5, 6, 7, 8, 9, 10};
	model_create(&m, &tiny);
	for (int i = 0; i < 2; i++) {
		const struct link_ops *link = i ? &link_ucx_ops : &link_local_ops;
		fleet_model_start(&m.m, &(struct fleet_run){{2, {2, 2}}, "cpu", false, BATCH, 128, link}, &f);
		fleet_model_generate(&f, 0, tokens, 6, BATCH, i ? have : want, MAKE);
		fleet_stop(&f, 0);
	}
	same_bits(have, want);
	model_destroy(&m);
}

/* What the drive of a rank has read once all is quiet, and at least so much was read. */
static uint64_t read_when_quiet(struct fleet *f, uint32_t rank, uint64_t least)
{
	uint64_t last = 0, end = SECONDS(60);
	for (uint32_t quiet = 0; quiet < 10 || (last < least && base_clock_now_ns() < end);) {
		usleep(20000);
		fleet_tell(f, rank, &(struct rank_message){.type = RANK_MESSAGE_STATS_REQUEST});
		fleet_hear_stats(f, rank);
		quiet = f->in.stats.stream.read_bytes == last && !f->in.stats.stream.inflight ? quiet + 1 : 0;
		last = f->in.stats.stream.read_bytes;
	}
	return last;
}

/* One stream: a stage reads ahead of its next pass while others compute, as far as its slots go, without waiting for
 * the pass. */
static void stages_read_ahead(void **state)
{
	static struct fleet f;
	struct tiny_model tiny = {.type = 8,
		.layers = LAYERS,
		.width = 512,
		.ffn_width = 3072,
		.heads = 8,
		.kv_heads = 2,
		.head_dim = 64,
		.vocab = VOCAB,
		.seed = 4};
	struct model m;
	uint32_t token = 5;
	model_create(&m, &tiny);
	fleet_model_start(&m.m, &(struct fleet_run){{2, {1, 1}}, "cpu", true, BATCH, 128}, &f);
	fleet_model_open(&f, 1);
	for (uint32_t passes = 0; passes < 3; passes++) {
		if (passes) {
			fleet_model_pass(&f, passes, passes - 1, &token, 1, RANK_WANT_SAMPLE);
			fleet_model_hear(&f, passes);
		}
		for (uint32_t i = 0; i < f.ranks; i++) {
			const struct rank_placement *p = &m.m.placement[i];
			uint64_t room = p->slot_bytes < p->cold_bytes ? p->slot_bytes : p->cold_bytes;
			uint64_t used = passes * p->cold_bytes;
			uint64_t ahead = read_when_quiet(&f, i, used + room / 2) - used;
			assert_true(ahead <= room && ahead >= room / 2); // extents are not all as long as a slot
		}
	}
	fleet_stop(&f, 0);
	model_destroy(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_parts),
		cmocka_unit_test(three_parts_with_a_tied_head),
		cmocka_unit_test(stages_of_different_widths),
		cmocka_unit_test(more_parts_than_kv_heads),
		cmocka_unit_test(the_reason_why_not),
		cmocka_unit_test(refusals_and_scores),
		cmocka_unit_test(over_ucx),
		cmocka_unit_test(stages_read_ahead),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
