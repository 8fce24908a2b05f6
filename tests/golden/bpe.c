// SPDX-License-Identifier: Apache-2.0
// Small vocabularies of all four families encode as the reference does, and decode to the text again
// (tests/golden/bpe.json).
#include "tests/lib/testing.h"

#include <json-c/json.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/vocabulary.h"

#define MAX_ENTRIES 1024u

struct fixture {
	struct json_object *file;
	struct format_gguf_string tokens[MAX_ENTRIES], merges[MAX_ENTRIES];
	uint32_t types[MAX_ENTRIES];
};

static uint32_t strings(struct json_object *array, struct format_gguf_string *out)
{
	size_t n = json_object_array_length(array);
	assert_true(n <= MAX_ENTRIES);
	for (size_t i = 0; i < n; i++) {
		struct json_object *s = json_object_array_get_idx(array, i);
		out[i] = (struct format_gguf_string){json_object_get_string(s), (size_t)json_object_get_string_len(s)};
	}
	return (uint32_t)n;
}

static struct text_tokenizer *create(struct fixture *f, const char *name, struct json_object *family)
{
	struct text_tokenizer *t = NULL;
	struct base_error e = {0};
	int specials = json_object_get_int(json_object_object_get(f->file, "specials"));
	struct text_vocabulary v = {.model = {"gpt2", 4},
		.pre = {name, strlen(name)},
		.tokens = f->tokens,
		.types = f->types,
		.merges = f->merges,
		.bos = 0,
		.eos = 0,
		.eot = TEXT_NO_TOKEN,
		.eom = TEXT_NO_TOKEN,
		.add_bos = -1};
	v.tokens_count = strings(json_object_object_get(family, "tokens"), f->tokens);
	v.merges_count = strings(json_object_object_get(family, "merges"), f->merges);
	for (uint32_t i = 0; i < v.tokens_count; i++)
		f->types[i] = (int)i < specials ? TEXT_TOKEN_CONTROL : TEXT_TOKEN_NORMAL;
	if (text_tokenizer_build(&v, &t, &e) < 0)
		fail_msg("%s: %s", name, base_error_text(&e));
	return t;
}

static void check_text(
	const struct text_tokenizer *t, const char *name, struct json_object *text, struct json_object *ids)
{
	_cleanup_free_ uint32_t *tokens = NULL;
	const char *bytes = json_object_get_string(text);
	size_t length = (size_t)json_object_get_string_len(text), count = 0, at = 0;
	assert_int_equal(text_tokenizer_encode(t, bytes, length, true, &tokens, &count, NULL), 0);
	bool equal = count == json_object_array_length(ids);
	for (size_t i = 0; equal && i < count; i++)
		equal = tokens[i] == (uint32_t)json_object_get_int(json_object_array_get_idx(ids, i));
	if (!equal)
		fail_msg("%s: %s has other tokens than %s", name, json_object_to_json_string(text),
			json_object_to_json_string(ids));
	for (size_t i = 0; i < count; i++) {
		size_t n;
		const char *piece = text_tokenizer_piece(t, tokens[i], true, &n);
		assert_true(n <= length - at);
		assert_memory_equal(piece, bytes + at, n);
		at += n;
	}
	assert_int_equal(at, length);
}

static void vocabularies_encode_as_the_reference(void **state)
{
	struct fixture *f = *state;
	struct json_object *texts = json_object_object_get(f->file, "texts");
	unsigned families = 0;
	json_object_object_foreach(json_object_object_get(f->file, "families"), name, family)
	{
		struct text_tokenizer *t = create(f, name, family);
		for (size_t i = 0; i < json_object_array_length(texts); i++)
			check_text(t, name, json_object_array_get_idx(texts, i),
				json_object_array_get_idx(json_object_object_get(family, "ids"), i));
		text_tokenizer_destroy(t);
		families++;
	}
	assert_int_equal(families, 4);
}

int main(void)
{
	static struct fixture f;
	f.file = json_object_from_file(THAW_GOLDEN "/bpe.json");
	if (!f.file) {
		perror(THAW_GOLDEN "/bpe.json");
		return 1;
	}
	const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(vocabularies_encode_as_the_reference, &f)};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	json_object_put(f.file);
	return failed;
}
