// SPDX-License-Identifier: Apache-2.0
// Pre-tokenizers cut texts exactly as the published regular expressions do (tests/golden/splits.json).
#include "tests/lib/testing.h"

#include <json-c/json.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/split.h"

static const char *const names[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};

static void check_case(const char *name, struct json_object *c)
{
	struct json_object *text_object = json_object_object_get(c, "text"), *pieces = json_object_object_get(c, name);
	const char *text = json_object_get_string(text_object);
	size_t bytes = (size_t)json_object_get_string_len(text_object), at = 0;
	enum text_split kind;
	assert_int_equal(text_split_find(name, strlen(name), &kind), 0);
	for (size_t i = 0; i < json_object_array_length(pieces); i++) {
		struct json_object *piece = json_object_array_get_idx(pieces, i);
		size_t want = (size_t)json_object_get_string_len(piece);
		assert_true(at < bytes);
		size_t n = text_split_next(kind, text + at, bytes - at);
		if (n != want || memcmp(text + at, json_object_get_string(piece), n) != 0)
			fail_msg("%s: %s: piece %zu has %zu bytes, the reference has %s", name,
				json_object_to_json_string(text_object), i, n, json_object_to_json_string(piece));
		at += n;
	}
	assert_int_equal(at, bytes);
}

static void pieces_are_those_of_the_regular_expressions(void **state)
{
	struct json_object *file = json_object_from_file(THAW_GOLDEN "/splits.json");
	assert_non_null(file);
	struct json_object *cases = json_object_object_get(file, "cases");
	assert_true(json_object_array_length(cases) > 200);
	for (size_t i = 0; i < json_object_array_length(cases); i++) {
		for (size_t k = 0; k < base_array_size(names); k++)
			check_case(names[k], json_object_array_get_idx(cases, i));
	}
	json_object_put(file);
}

static void other_names_are_not_known(void **state)
{
	enum text_split kind;
	assert_true(text_split_find("tekken", 6, &kind) < 0);
	assert_true(text_split_find("", 0, &kind) < 0);
	assert_true(text_split_find("qwen", 4, &kind) < 0);
	assert_int_equal(text_split_find("llama3", 6, &kind), 0);
	assert_int_equal(kind, TEXT_SPLIT_LLAMA_BPE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pieces_are_those_of_the_regular_expressions),
		cmocka_unit_test(other_names_are_not_known),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
