// SPDX-License-Identifier: Apache-2.0
// Tokens and chat prompts of SmolLM2 against recorded ones. THAW_TEST_MODEL names its GGUF file; without it: skipped.
#include "tests/lib/testing.h"

#include <json-c/json.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/chat.h"
#include "daemon/text/tokenizer.h"

struct fixture {
	struct format_gguf *gguf;
	struct text_tokenizer *tokenizer;
};

static void encodes_as_recorded(const struct text_tokenizer *t, struct json_object *text, struct json_object *ids)
{
	_cleanup_free_ uint32_t *tokens = NULL;
	size_t count = 0;
	struct base_error e = {0};
	if (text_tokenizer_encode(t, json_object_get_string(text), (size_t)json_object_get_string_len(text), true,
		    &tokens, &count, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	bool equal = count == json_object_array_length(ids);
	for (size_t i = 0; equal && i < count; i++)
		equal = tokens[i] == (uint32_t)json_object_get_int(json_object_array_get_idx(ids, i));
	if (!equal)
		fail_msg("%s: %zu tokens differ from the recorded %s", json_object_to_json_string(text), count,
			json_object_to_json_string(ids));
}

static void tokens_equal_the_recorded_ones(void **state)
{
	struct fixture *f = *state;
	struct json_object *file = json_object_from_file(THAW_GOLDEN "/smollm2-tokens.json");
	assert_non_null(file);
	struct json_object *cases = json_object_object_get(file, "cases");
	assert_int_equal(json_object_array_length(cases), 150);
	for (size_t i = 0; i < json_object_array_length(cases); i++) {
		struct json_object *c = json_object_array_get_idx(cases, i);
		encodes_as_recorded(f->tokenizer, json_object_array_get_idx(c, 0), json_object_array_get_idx(c, 1));
	}
	print_message("150 of 150 texts have the recorded tokens\n");
	json_object_put(file);
}

static void decoding_gives_the_text_back(void **state)
{
	struct fixture *f = *state;
	struct json_object *file = json_object_from_file(THAW_GOLDEN "/smollm2-tokens.json");
	struct json_object *cases = json_object_object_get(file, "cases");
	for (size_t i = 0; i < json_object_array_length(cases); i++) {
		struct json_object *c = json_object_array_get_idx(cases, i), *ids = json_object_array_get_idx(c, 1);
		char out[4096];
		size_t at = 0;
		struct text_detokenizer d = {0};
		for (size_t k = 0; k < json_object_array_length(ids); k++) {
			uint32_t token = (uint32_t)json_object_get_int(json_object_array_get_idx(ids, k));
			int n = text_detokenizer_push(&d, f->tokenizer, token, true, out + at, sizeof out - 4 - at);
			assert_true(n >= 0);
			at += (size_t)n;
		}
		assert_int_equal(d.held_bytes, 0);
		out[at] = '\0';
		assert_string_equal(out, json_object_get_string(json_object_array_get_idx(c, 0)));
	}
	json_object_put(file);
}

static void chat_prompts_equal_the_recorded_ones(void **state)
{
	struct fixture *f = *state;
	struct format_gguf_string s;
	struct text_chat_template t;
	assert_int_equal(format_gguf_get_string(f->gguf, "tokenizer.chat_template", &s, NULL), 0);
	_cleanup_free_ char *jinja = strndup(s.data, s.bytes);
	text_chat_recognise(jinja, &t);
	struct json_object *file = json_object_from_file(THAW_GOLDEN "/smollm2.json");
	assert_non_null(file);
	struct json_object *cases = json_object_object_get(file, "cases");
	size_t chats = 0;
	for (size_t i = 0; i < json_object_array_length(cases); i++) {
		struct json_object *c = json_object_array_get_idx(cases, i), *want = json_object_object_get(c, "text");
		encodes_as_recorded(f->tokenizer, want, json_object_object_get(c, "ids"));
		if (strcmp(json_object_get_string(json_object_object_get(c, "kind")), "chat") != 0)
			continue;
		_cleanup_free_ char *text = NULL;
		const struct text_chat_message m = {
			"user", json_object_get_string(json_object_object_get(c, "prompt"))};
		assert_int_equal(text_chat_render(&t, &m, 1, NULL, &text, NULL), 0);
		assert_string_equal(text, json_object_get_string(want));
		chats++;
	}
	assert_true(chats > 0);
	json_object_put(file);
}

int main(void)
{
	struct fixture f = {0};
	struct base_error e = {0};
	const char *model = getenv("THAW_TEST_MODEL");
	if (!model) {
		puts("THAW_TEST_MODEL is not set (SmolLM2-135M-Instruct.Q4_1.gguf): skipped");
		return 77;
	}
	if (format_gguf_open(model, &f.gguf, &e) < 0 || text_tokenizer_create(f.gguf, &f.tokenizer, &e) < 0) {
		fprintf(stderr, "%s: %s\n", model, base_error_text(&e));
		return 1;
	}
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(tokens_equal_the_recorded_ones, &f),
		cmocka_unit_test_prestate(decoding_gives_the_text_back, &f),
		cmocka_unit_test_prestate(chat_prompts_equal_the_recorded_ones, &f),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	text_tokenizer_destroy(f.tokenizer);
	format_gguf_close(f.gguf);
	return failed;
}
