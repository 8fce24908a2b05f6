// SPDX-License-Identifier: Apache-2.0
// Programs: what a model becomes, and what is refused by name.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "shard/program/program.h"
#include "tests/lib/tiny_gguf.h"

static int build(const struct tiny_gguf *t, struct program **ret, struct base_error *e)
{
	struct format_gguf *g = NULL;
	assert_int_equal(format_gguf_open_memory(t->data, t->bytes, "t.gguf", &g, e), 0);
	int status = program_build(g, ret, e);
	format_gguf_close(g);
	return status;
}

static struct program *build_good(struct tiny_model *m)
{
	struct tiny_gguf t;
	struct program *p = NULL;
	struct base_error e = {0};
	tiny_model_build(m, &t);
	if (build(&t, &p, &e))
		fail_msg("%s", base_error_text(&e));
	tiny_gguf_release(&t);
	return p;
}

static void llama_has_its_steps_and_shapes(void **state)
{
	struct tiny_model m = {.layers = 3, .width = 64, .heads = 4, .kv_heads = 2, .ffn_width = 96, .vocab = 300};
	struct program *p = build_good(&m);
	assert_int_equal(p->config.layers, 3);
	assert_int_equal(p->config.head_dim, 16);
	assert_int_equal(p->config.vocab, 300);
	assert_false(p->config.tied_head);
	assert_false(p->config.rope_halves);
	assert_int_equal(p->steps_count, 1 + 3 * 15 + 3);
	assert_int_equal(p->weights_count, 1 + 3 * 9 + 2);
	assert_int_equal(p->steps[0].op, PROGRAM_EMBED);
	assert_int_equal(p->steps[0].layer, PROGRAM_NONE);
	assert_int_equal(p->steps[1].op, PROGRAM_NORM);
	assert_int_equal(p->steps[p->steps_count - 3].op, PROGRAM_SELECT);
	const struct program_step *head = &p->steps[p->steps_count - 1];
	assert_int_equal(head->op, PROGRAM_MATMUL);
	assert_string_equal(p->weights[head->weight].name, "output.weight");
	assert_int_equal(head->out, p->logits);
	assert_int_equal(p->values[p->logits].width, 300);
	uint64_t layer = 4 * (64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 96 * 64 + 2 * 64);
	assert_int_equal(program_layer_bytes(p, 1), layer);
	assert_int_equal(program_weight_bytes(p), 3 * layer + 4 * (300 * 64 + 64));
	assert_int_equal(program_token_macs(p), 3 * (layer / 4 - 2 * 64) + 300 * 64);
	program_destroy(p);
}

// No buffer may be written while somebody still wants what is in it: run the program on names of results.
static void shared_values_keep_their_contents(void **state)
{
	struct tiny_model m = {.layers = 3};
	struct program *p = build_good(&m);
	// x, norm, q; k, v; gate, up, their product; selected, normed, logits: few buffers, not one for each step.
	assert_true(p->values_count <= 12);
	uint32_t *writer = calloc(p->values_count, sizeof *writer);
	for (uint32_t s = 0; s < p->steps_count; s++) {
		const struct program_step *step = &p->steps[s];
		if (step->op == PROGRAM_ATTEND) {
			assert_true(
				step->in[0] != step->in[1] && step->in[1] != step->in[2] && step->in[0] != step->in[2]);
			assert_int_equal(p->steps[writer[step->in[0]]].op, PROGRAM_ROPE);
			assert_int_equal(p->steps[writer[step->in[1]]].op, PROGRAM_ROPE);
			assert_int_equal(p->steps[writer[step->in[2]]].op, PROGRAM_MATMUL);
		}
		if (step->op == PROGRAM_SILU_GATE) {
			assert_non_null(strstr(p->weights[p->steps[writer[step->in[0]]].weight].name, "ffn_gate"));
			assert_non_null(strstr(p->weights[p->steps[writer[step->in[1]]].weight].name, "ffn_up"));
		}
		if (step->op == PROGRAM_ADD)
			assert_int_equal(step->in[0], p->steps[0].out); // the residual stays where it is
		writer[step->out] = s;
	}
	free(writer);
	program_destroy(p);
}

static void a_tied_head_reads_the_embedding(void **state)
{
	struct tiny_model m = {.tied = true};
	struct program *p = build_good(&m);
	const struct program_step *head = &p->steps[p->steps_count - 1];
	assert_true(p->config.tied_head);
	assert_int_equal(head->weight, p->steps[0].weight);
	assert_int_equal(p->weights[head->weight].step, p->steps_count - 1);
	assert_true(program_weight_bytes(p) > 4ull * p->config.vocab * p->config.width);
	program_destroy(p);
}

static void families(void **state)
{
	struct tiny_model qwen = {.architecture = "qwen2", .biases = true};
	struct program *p = build_good(&qwen);
	assert_true(p->config.rope_halves);
	uint32_t biases = 0;
	for (uint32_t s = 0; s < p->steps_count; s++)
		biases += p->steps[s].bias != PROGRAM_NONE;
	assert_int_equal(biases, 2 * 3);
	program_destroy(p);
	struct tiny_model mistral = {.architecture = "mistral", .window = 40, .rope_freqs = true};
	p = build_good(&mistral);
	assert_int_equal(p->config.window, 40);
	assert_non_null(p->rope_factors);
	assert_true(p->rope_factors[0] >= 1 && p->rope_factors[0] <= 3);
	program_destroy(p);
}

/* ---- refusals ---- */

struct edit { // replaces a string of the file by one of the same length
	const char *from, *to;
	int code;
	const char *text;
};

static void replace(struct tiny_gguf *t, const char *from, const char *to)
{
	char *at = memmem(t->data, t->bytes, from, strlen(from));
	assert_non_null(at);
	assert_int_equal(strlen(from), strlen(to));
	memcpy(at, to, strlen(to));
}

static void refusals_name_what_is_wrong(void **state)
{
	static const struct edit edits[] = {
		{"blk.1.ffn_up.weight", "blk.1.ffn_ap.weight", -EINVAL, "tensor blk.1.ffn_up.weight"},
		{"output_norm.weight", "output_nurm.weight", -EINVAL, "tensor output_norm.weight"},
		{"llama.block_count", "llama.block_kount", -EINVAL, "llama.block_count is missing"},
		{"token_embd.weight", "token_embe.weight", -EINVAL, "token_embd.weight"},
		{"llama.attention.key_length", "llama.attention.kee_length", 0, NULL},
	};
	for (size_t i = 0; i < sizeof edits / sizeof edits[0]; i++) {
		struct tiny_model m = {.layers = 2};
		struct tiny_gguf t;
		struct program *p = NULL;
		struct base_error e = {0};
		tiny_model_build(&m, &t);
		replace(&t, edits[i].from, edits[i].to);
		assert_int_equal(build(&t, &p, &e), edits[i].code);
		if (edits[i].text && !strstr(e.message, edits[i].text))
			fail_msg("'%s' lacks '%s'", e.message, edits[i].text);
		program_destroy(p);
		tiny_gguf_release(&t);
	}
}

static void keys_out_of_range(void **state)
{
	static const struct {
		const char *key;
		uint32_t value;
		int code;
		const char *text;
	} cases[] = {
		{"llama.block_count", 0, -EINVAL, "llama.block_count is 0"},
		{"llama.block_count", 5000, -EINVAL, "llama.block_count is 5000"},
		{"llama.block_count", 1, -ENOTSUP, "tensor blk.1."},
		{"llama.block_count", 3, -EINVAL, "blk.2.attn_norm.weight"},
		{"llama.attention.head_count_kv", 3, -EINVAL, "4 heads cannot share 3 KV heads"},
		{"llama.attention.head_count", 8, -EINVAL, "needs (128 x 64)"},
		{"llama.embedding_length", 32, -EINVAL,
			"tensor token_embd.weight is (320 x 64), but its model's config needs (320 x 32)"},
		{"llama.rope.dimension_count", 17, -EINVAL, "rope.dimension_count is 17"},
		{"llama.attention.value_length", 8, -ENOTSUP, "different lengths"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct tiny_model m = {.layers = 2};
		struct tiny_gguf t;
		struct program *p = NULL;
		struct base_error e = {0};
		tiny_model_build(&m, &t);
		uint8_t *at = memmem(t.data, t.bytes, cases[i].key, strlen(cases[i].key));
		// The key that ends here, not one that goes on.
		while (memcmp(at + strlen(cases[i].key), &(uint32_t){4}, 4) != 0)
			at = memmem(at + 1, t.bytes - (size_t)(at + 1 - t.data), cases[i].key, strlen(cases[i].key));
		memcpy(at + strlen(cases[i].key) + 4, &cases[i].value, 4);
		assert_int_equal(build(&t, &p, &e), cases[i].code);
		if (!strstr(e.message, cases[i].text))
			fail_msg("'%s' lacks '%s'", e.message, cases[i].text);
		tiny_gguf_release(&t);
	}
}

// A matrix of one row looks like a vector to everybody who reads the program, and would be laid out as one.
static void matrices_of_one_row_are_refused(void **state)
{
	struct tiny_model m = {.ffn_width = 1};
	struct tiny_gguf t;
	struct program *p = NULL;
	struct base_error e = {0};
	tiny_model_build(&m, &t);
	assert_int_equal(build(&t, &p, &e), -EINVAL);
	assert_non_null(strstr(e.message, "llama.feed_forward_length is 1; 2 to"));
	tiny_gguf_release(&t);
	static const float zeros[32];
	tiny_gguf_init(&t);
	tiny_gguf_key_string(&t, "general.architecture", "llama");
	tiny_gguf_key_u32(&t, "llama.block_count", 1);
	tiny_gguf_key_u32(&t, "llama.embedding_length", 32);
	tiny_gguf_key_u32(&t, "llama.feed_forward_length", 32);
	tiny_gguf_key_u32(&t, "llama.attention.head_count", 2);
	tiny_gguf_key_u32(&t, "llama.context_length", 32);
	tiny_gguf_tensor(&t, "token_embd.weight", 2, (uint64_t[]){32, 1}, 0, zeros, sizeof zeros);
	tiny_gguf_finish(&t);
	assert_int_equal(build(&t, &p, &e), -EINVAL);
	assert_non_null(strstr(e.message, "a vocabulary of 1 tokens"));
	tiny_gguf_release(&t);
}

static void minimal(struct tiny_gguf *t, const char *architecture, const char *scaling, uint32_t type)
{
	static const float zeros[64 * 64];
	tiny_gguf_init(t);
	tiny_gguf_key_string(t, "general.architecture", architecture);
	tiny_gguf_key_u32(t, "llama.block_count", 1);
	tiny_gguf_key_u32(t, "llama.embedding_length", 32);
	tiny_gguf_key_u32(t, "llama.feed_forward_length", 32);
	tiny_gguf_key_u32(t, "llama.attention.head_count", 2);
	tiny_gguf_key_u32(t, "llama.context_length", 32);
	if (scaling) {
		tiny_gguf_key_string(t, "llama.rope.scaling.type", scaling);
		tiny_gguf_key_f32(t, "llama.rope.scaling.factor", 4);
	}
	tiny_gguf_tensor(t, "token_embd.weight", 2, (uint64_t[]){32, 16}, type, zeros, 32 * 16 * 4);
	tiny_gguf_finish(t);
}

static void unsupported_things_are_refused_by_name(void **state)
{
	static const struct {
		const char *architecture, *scaling;
		uint32_t type;
		const char *text;
	} cases[] = {
		{"mamba", NULL, 0, "architecture 'mamba' is not supported (supported: llama, mistral, qwen2)"},
		{"\x1b[2J", NULL, 0, "architecture '?[2J' is not supported"},
		{"llama", "yarn", 0, "rope scaling 'yarn' is not supported"},
		{"llama", "longrope", 0, "rope scaling 'longrope' is not supported"},
		{"llama", "linear", 20, "tensor token_embd.weight has the type IQ4_NL"},
		{"llama", "none", 99, "tensor token_embd.weight has the type type 99"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct tiny_gguf t;
		struct program *p = NULL;
		struct base_error e = {0};
		minimal(&t, cases[i].architecture, cases[i].scaling, cases[i].type);
		assert_int_equal(build(&t, &p, &e), -ENOTSUP);
		if (!strstr(e.message, cases[i].text))
			fail_msg("'%s' lacks '%s'", e.message, cases[i].text);
		tiny_gguf_release(&t);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(llama_has_its_steps_and_shapes),
		cmocka_unit_test(shared_values_keep_their_contents),
		cmocka_unit_test(a_tied_head_reads_the_embedding),
		cmocka_unit_test(families),
		cmocka_unit_test(refusals_name_what_is_wrong),
		cmocka_unit_test(keys_out_of_range),
		cmocka_unit_test(matrices_of_one_row_are_refused),
		cmocka_unit_test(unsupported_things_are_refused_by_name),
	};
	return cmocka_run_group_tests_name("program", tests, NULL, NULL);
}
