// SPDX-License-Identifier: Apache-2.0
// A tokenizer out of a GGUF file: what is read, and what each missing or wrong key is told.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "daemon/text/tokenizer.h"
#include "tests/lib/tiny_gguf.h"

static const char *const tokens[] = {"a", "b", "ab", "<s>", "</s>"};
static const char *const merges[] = {"a b"};
static const int32_t types[] = {1, 1, 1, 3, 3};

enum fault {
	NO_FAULT,
	MODEL_LLAMA,
	MODEL_MISSING,
	PRE_MISSING,
	TOKENS_MISSING,
	MERGES_MISSING,
	TYPES_SHORT,
	TYPES_NEGATIVE,
	EOS_FAR,
	BOS_STRING,
};

static void write_keys(struct tiny_gguf *g, enum fault fault)
{
	static const int32_t negative[] = {1, 1, -1, 3, 3};
	tiny_gguf_init(g);
	tiny_gguf_key_string(g, "general.architecture", "llama");
	if (fault != MODEL_MISSING)
		tiny_gguf_key_string(g, "tokenizer.ggml.model", fault == MODEL_LLAMA ? "llama" : "gpt2");
	if (fault != PRE_MISSING && fault != MODEL_LLAMA)
		tiny_gguf_key_string(g, "tokenizer.ggml.pre", "llama-bpe");
	if (fault != TOKENS_MISSING)
		tiny_gguf_key_strings(g, "tokenizer.ggml.tokens", tokens, 5);
	if (fault != MERGES_MISSING && fault != MODEL_LLAMA)
		tiny_gguf_key_strings(g, "tokenizer.ggml.merges", merges, 1);
	tiny_gguf_key_i32s(g, "tokenizer.ggml.token_type", fault == TYPES_NEGATIVE ? negative : types,
		fault == TYPES_SHORT ? 4 : 5);
	if (fault == BOS_STRING)
		tiny_gguf_key_string(g, "tokenizer.ggml.bos_token_id", "3");
	else
		tiny_gguf_key_u32(g, "tokenizer.ggml.bos_token_id", 3);
	tiny_gguf_key_u32(g, "tokenizer.ggml.eos_token_id", fault == EOS_FAR ? 5 : 4);
	const float one = 1;
	tiny_gguf_tensor(g, "x", 1, (const uint64_t[]){1}, 0, &one, sizeof one);
	tiny_gguf_finish(g);
}

static int load(enum fault fault, struct text_tokenizer **ret, struct base_error *e)
{
	struct tiny_gguf g;
	struct format_gguf *file = NULL;
	write_keys(&g, fault);
	if (format_gguf_open_memory(g.data, g.bytes, "tiny.gguf", &file, e) < 0)
		fail_msg("%s", base_error_text(e));
	int r = text_tokenizer_create(file, ret, e);
	format_gguf_close(file);
	tiny_gguf_release(&g);
	return r;
}

static void a_tokenizer_outlives_its_file(void **state)
{
	struct text_tokenizer *t = NULL;
	struct base_error e = {0};
	uint32_t *ids;
	size_t count;
	if (load(NO_FAULT, &t, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	assert_int_equal(text_tokenizer_vocab(t), 5);
	assert_int_equal(text_tokenizer_bos(t), 3);
	assert_int_equal(text_tokenizer_eos(t), 4);
	assert_true(text_tokenizer_add_bos(t)); // llama 3's files do so without saying it
	assert_int_equal(text_tokenizer_encode(t, "abba</s>", 8, true, &ids, &count, &e), 0);
	const uint32_t want[] = {2, 1, 0, 4};
	assert_int_equal(count, 4);
	assert_memory_equal(ids, want, sizeof want);
	free(ids);
	text_tokenizer_destroy(t);
}

static void bad_metadata_is_refused_by_name(void **state)
{
	static const struct {
		enum fault fault;
		const char *words;
	} cases[] = {
		{MODEL_LLAMA, "tokenizer.ggml.model \"llama\" is not supported"},
		{MODEL_MISSING, "tokenizer.ggml.model is missing"},
		{PRE_MISSING, "tokenizer.ggml.pre is missing"},
		{TOKENS_MISSING, "tokenizer.ggml.tokens is missing"},
		{MERGES_MISSING, "tokenizer.ggml.merges is missing"},
		{TYPES_SHORT, "tokenizer.ggml.token_type has 4 entries"},
		{TYPES_NEGATIVE, "tokenizer.ggml.token_type"},
		{EOS_FAR, "tokenizer.ggml.eos_token_id is 5"},
		{BOS_STRING, "tokenizer.ggml.bos_token_id"},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct text_tokenizer *t = NULL;
		struct base_error e = {0};
		assert_true(load(cases[i].fault, &t, &e) < 0);
		assert_null(t);
		if (!strstr(e.message, cases[i].words))
			fail_msg("\"%s\" does not say \"%s\"", e.message, cases[i].words);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_tokenizer_outlives_its_file),
		cmocka_unit_test(bad_metadata_is_refused_by_name),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
