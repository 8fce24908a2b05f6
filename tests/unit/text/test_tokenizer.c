// SPDX-License-Identifier: Apache-2.0
// Tokenizer and detokenizer over a small vocabulary; merging against a naive one.
#include "tests/lib/testing.h"

#include <errno.h>

#include "base/utf8.h"
#include "daemon/text/tokenizer.h"
#include "tests/unit/text/small_vocabulary.h"

static struct text_tokenizer *create(const char *pre)
{
	static struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	struct base_error e = {0};
	small_vocabulary_init(&s, pre);
	if (text_tokenizer_build(&s.v, &t, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	return t;
}

static void expect(const struct text_tokenizer *t, const char *text, bool special, const char *const *pieces)
{
	uint32_t *tokens = NULL;
	size_t count = 0, i = 0, at = 0;
	assert_int_equal(text_tokenizer_encode(t, text, strlen(text), special, &tokens, &count, NULL), 0);
	for (; pieces[i]; i++) {
		size_t n;
		assert_true(i < count);
		const char *p = text_tokenizer_piece(t, tokens[i], true, &n);
		if (n != strlen(pieces[i]) || memcmp(p, pieces[i], n) != 0)
			fail_msg("%s: token %zu is \"%.*s\", not \"%s\"", text, i, (int)n, p, pieces[i]);
		at += n;
	}
	assert_int_equal(i, count);
	assert_int_equal(at, strlen(text));
	free(tokens);
}

#define EXPECT(t, text, special, ...) expect(t, text, special, (const char *const[]){__VA_ARGS__, NULL})

static void merges_are_applied_best_first(void **state)
{
	struct text_tokenizer *t = create("gpt-2");
	EXPECT(t, "hello world", false, "hello", " world");
	EXPECT(t, "hellhello", false, "hell", "hello");
	EXPECT(t, "aaaaaaa", false, "aaaa", "aa", "a");
	EXPECT(t, "abab", false, "ab", "ab"); // "a b" ranks before "b a"
	EXPECT(t, "\u00e9", false, "\u00e9");
	EXPECT(t, "\u4e2d", false, "\xe4", "\xb8", "\xad");
	text_tokenizer_destroy(t);
}

static void special_tokens_need_parse_special(void **state)
{
	struct text_tokenizer *t = create("gpt-2");
	EXPECT(t, "<|im_start|>hello", true, "<|im_start|>", "hello");
	EXPECT(t, "<|im_start|>user", true, "<|im_start|>user"); // the longest wins
	EXPECT(t, "<|im_start|>use", true, "<|im_start|>", "u", "s", "e");
	EXPECT(t, "<|im_", true, "<|im", "_");
	EXPECT(t, "<tool>", false, "<tool>"); // user-defined: always
	uint32_t *tokens;
	size_t count;
	assert_int_equal(text_tokenizer_encode(t, "<|im_start|>", 12, false, &tokens, &count, NULL), 0);
	assert_int_equal(count, 12);
	free(tokens);
	size_t n;
	text_tokenizer_piece(t, SMALL_FIRST_SPECIAL, false, &n);
	assert_int_equal(n, 0);
	text_tokenizer_piece(t, SMALL_VOCAB + 5, true, &n);
	assert_int_equal(n, 0);
	text_tokenizer_destroy(t);
}

static void stops_are_eos_and_the_well_known(void **state)
{
	struct text_tokenizer *t = create("qwen2");
	uint32_t count;
	const uint32_t *stops = text_tokenizer_stops(t, &count);
	assert_int_equal(count, 1);
	assert_int_equal(stops[0], SMALL_FIRST_SPECIAL + 1);
	assert_true(text_tokenizer_is_stop(t, SMALL_FIRST_SPECIAL + 1));
	assert_false(text_tokenizer_is_stop(t, SMALL_FIRST_SPECIAL));
	assert_false(text_tokenizer_add_bos(t));
	text_tokenizer_destroy(t);
	t = create("llama-bpe");
	assert_true(text_tokenizer_add_bos(t));
	text_tokenizer_destroy(t);
}

static uint32_t random_next(uint32_t *seed)
{
	*seed = *seed * 1664525u + 1013904223u;
	return *seed >> 8;
}

// The definition: again and again, the pair of the lowest rank, the leftmost first. Tokens of the small vocabulary.
static size_t naive_bpe(const struct text_tokenizer *t, const char *word, size_t n, uint32_t *out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = (uint8_t)word[i];
	for (uint32_t rank = 0; rank < SMALL_MERGES; rank++) {
		size_t want;
		const char *result = text_tokenizer_piece(t, SMALL_FIRST_MERGE + rank, false, &want);
		const char *gap = strchr(small_merges[rank], ' ');
		size_t visible = 0; // characters of the left part: one byte each in the raw form
		for (const char *p = small_merges[rank]; p < gap; p++)
			visible += (*p & 0xc0) != 0x80;
		for (size_t i = 0; i + 1 < n; i++) {
			size_t a, b;
			const char *left = text_tokenizer_piece(t, out[i], false, &a);
			const char *right = text_tokenizer_piece(t, out[i + 1], false, &b);
			if (a != visible || a + b != want || memcmp(left, result, a) || memcmp(right, result + a, b))
				continue;
			out[i] = SMALL_FIRST_MERGE + rank;
			memmove(out + i + 1, out + i + 2, (n - i - 2) * sizeof *out);
			n--;
			rank = UINT32_MAX; // start over
			break;
		}
	}
	return n;
}

static void merging_equals_the_naive_definition(void **state)
{
	static const char letters[] = "helowrdab";
	struct text_tokenizer *t = create("gpt-2");
	uint32_t seed = 7;
	for (unsigned round = 0; round < 3000; round++) {
		char word[40];
		uint32_t naive[40], *tokens;
		size_t n = 1 + random_next(&seed) % 39, count;
		for (size_t i = 0; i < n; i++)
			word[i] = letters[random_next(&seed) % 9];
		size_t want = naive_bpe(t, word, n, naive);
		assert_int_equal(text_tokenizer_encode(t, word, n, false, &tokens, &count, NULL), 0);
		assert_int_equal(count, want);
		assert_memory_equal(tokens, naive, want * sizeof *naive);
		free(tokens);
	}
	text_tokenizer_destroy(t);
}

static void one_long_word_is_not_quadratic(void **state)
{
	struct text_tokenizer *t = create("gpt-2");
	size_t n = 1u << 20, count;
	char *text = malloc(n);
	uint32_t *tokens;
	memset(text, 'a', n);
	assert_int_equal(text_tokenizer_encode(t, text, n, false, &tokens, &count, NULL), 0);
	assert_int_equal(count, n / 8);
	free(tokens);
	free(text);
	text_tokenizer_destroy(t);
}

static void bad_text_is_refused_with_its_place(void **state)
{
	struct text_tokenizer *t = create("gpt-2");
	struct base_error e = {0};
	uint32_t *tokens;
	size_t count;
	assert_int_equal(text_tokenizer_encode(t, "ab\xc3(", 4, false, &tokens, &count, &e), -EILSEQ);
	assert_non_null(strstr(e.message, "byte 2"));
	assert_int_equal(text_tokenizer_encode(t, "", TEXT_MAX_INPUT_BYTES + 1, false, &tokens, &count, &e), -E2BIG);
	assert_int_equal(text_tokenizer_encode(t, "", 0, true, &tokens, &count, &e), 0);
	assert_int_equal(count, 0);
	free(tokens);
	text_tokenizer_destroy(t);
}

static void utf8_check_knows_the_forbidden_forms(void **state)
{
	static const struct {
		const char *text;
		size_t bytes, bad; // bad: offset, SIZE_MAX if valid
	} cases[] = {
		{"a\0b", 3, SIZE_MAX},
		{"\xf4\x8f\xbf\xbf", 4, SIZE_MAX},
		{"\xed\x9f\xbf", 3, SIZE_MAX},
		{"x\xc0\x80", 3, 1},
		{"\xe0\x80\x80", 3, 0},
		{"\xed\xa0\x80", 3, 0},
		{"\xf4\x90\x80\x80", 4, 0},
		{"ab\x80", 3, 2},
		{"\xe4\xb8", 2, 0},
		{"\xf5\x80\x80\x80", 4, 0},
		{"\xff", 1, 0},
	};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		size_t bad = cases[i].bad == SIZE_MAX ? cases[i].bytes : cases[i].bad;
		assert_int_equal(base_utf8_prefix(cases[i].text, cases[i].bytes), bad);
	}
}

static void expect_refused(void (*spoil)(struct small_vocabulary *s), const char *words)
{
	struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	struct base_error e = {0};
	small_vocabulary_init(&s, "gpt-2");
	spoil(&s);
	assert_int_equal(text_tokenizer_build(&s.v, &t, &e), -EINVAL);
	assert_null(t);
	if (!strstr(e.message, words))
		fail_msg("\"%s\" does not say \"%s\"", e.message, words);
}

static void spoil_model(struct small_vocabulary *s)
{
	s->v.model = (struct format_gguf_string){"llama", 5};
}

static void spoil_pre(struct small_vocabulary *s)
{
	s->v.pre = (struct format_gguf_string){"tekken", 6};
}

static void spoil_no_pre(struct small_vocabulary *s)
{
	s->v.pre.bytes = 0;
}

static void spoil_eos(struct small_vocabulary *s)
{
	s->v.eos = SMALL_VOCAB;
}

static void spoil_type(struct small_vocabulary *s)
{
	s->types[3] = 99;
}

static void spoil_twice(struct small_vocabulary *s)
{
	s->tokens[260] = s->tokens['h'];
}

static void spoil_merge(struct small_vocabulary *s)
{
	s->merges[1] = (struct format_gguf_string){"z z", 3};
}

static void spoil_merge_form(struct small_vocabulary *s)
{
	s->merges[1] = (struct format_gguf_string){"zz", 2};
}

static void spoil_bos(struct small_vocabulary *s)
{
	s->v.add_bos = 1;
	s->v.bos = TEXT_NO_TOKEN;
}

static void spoil_count(struct small_vocabulary *s)
{
	s->v.tokens_count = 0;
}

static void bad_vocabularies_are_refused_by_name(void **state)
{
	expect_refused(spoil_model, "tokenizer.ggml.model \"llama\"");
	expect_refused(spoil_pre, "tokenizer.ggml.pre \"tekken\"");
	expect_refused(spoil_no_pre, "tokenizer.ggml.pre is missing");
	expect_refused(spoil_eos, "tokenizer.ggml.eos_token_id");
	expect_refused(spoil_type, "unknown type 99");
	expect_refused(spoil_twice, "tokens 104 and 260");
	expect_refused(spoil_merge, "merge 1");
	expect_refused(spoil_merge_form, "merge 1");
	expect_refused(spoil_bos, "bos_token_id is missing");
	expect_refused(spoil_count, "0 entries");
}

static void a_space_goes_in_front_if_the_file_says_so(void **state)
{
	struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	uint32_t *tokens;
	size_t count;
	small_vocabulary_init(&s, "gpt-2");
	s.v.add_space_prefix = true;
	assert_int_equal(text_tokenizer_build(&s.v, &t, NULL), 0);
	assert_int_equal(text_tokenizer_encode(t, "world", 5, false, &tokens, &count, NULL), 0);
	assert_int_equal(count, 1);
	free(tokens);
	text_tokenizer_destroy(t);
}

static void missing_bytes_use_byte_tokens_or_are_left_out(void **state)
{
	struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	uint32_t *tokens;
	size_t count;
	small_vocabulary_init(&s, "gpt-2");
	s.tokens[1] = (struct format_gguf_string){"<0x01>", 6};
	s.types[1] = TEXT_TOKEN_BYTE;
	s.tokens[2] = (struct format_gguf_string){"", 0};
	assert_int_equal(text_tokenizer_build(&s.v, &t, NULL), 0);
	assert_int_equal(text_tokenizer_encode(t, "x\x01\x02y", 4, false, &tokens, &count, NULL), 0);
	assert_int_equal(count, 3);
	assert_int_equal(tokens[1], 1);
	size_t n;
	assert_memory_equal(text_tokenizer_piece(t, 1, false, &n), "\x01", 1);
	assert_int_equal(n, 1);
	free(tokens);
	text_tokenizer_destroy(t);
}

// Decodes in one go with U+FFFD for what is bad: what the stream must add up to.
static size_t decode_whole(const uint8_t *in, size_t n, char *out)
{
	size_t at = 0, written = 0;
	while (at < n) {
		size_t good = base_utf8_prefix(in + at, n - at);
		memcpy(out + written, in + at, good);
		written += good;
		at += good;
		if (at == n)
			break;
		// The maximal subpart: the longest stretch that some ending would make valid.
		size_t skip = 1;
		static const char *const endings[] = {
			"\x80", "\x80\x80", "\x90\x80", "\xa0\x80", "\x90\x80\x80", "\xa0"};
		for (size_t length = 1; length < 4 && at + length <= n; length++) {
			for (size_t i = 0; i < base_array_size(endings); i++) {
				char whole[8];
				memcpy(whole, in + at, length);
				memcpy(whole + length, endings[i], strlen(endings[i]));
				size_t all = length + strlen(endings[i]);
				if (base_utf8_prefix(whole, all) == all && in[at] >= 0x80)
					skip = length;
			}
		}
		memcpy(out + written, "\xef\xbf\xbd", 3);
		written += 3;
		at += skip;
	}
	return written;
}

static void detokenizer_never_emits_half_a_code_point(void **state)
{
	static const uint8_t awkward[] = {'a', 0x80, 0xbf, 0xc3, 0xa9, 0xe4, 0xb8, 0xad, 0xf0, 0x9f, 0x98, 0x80, 0xed,
		0xa0, 0xe0, 0xff, 0xc0, 0xf4, 0x90};
	struct text_tokenizer *t = create("gpt-2");
	uint32_t seed = 3;
	for (unsigned round = 0; round < 20000; round++) {
		struct text_detokenizer d = {0};
		uint8_t in[64];
		char got[256], want[256];
		size_t n = 0, written = 0, tokens = 1 + random_next(&seed) % 20;
		for (size_t i = 0; i < tokens; i++) {
			uint32_t token = awkward[random_next(&seed) % sizeof awkward];
			if (random_next(&seed) % 8 == 0)
				token = SMALL_FIRST_MERGE + 12; // e with acute accent, whole
			size_t bytes;
			const char *piece = text_tokenizer_piece(t, token, false, &bytes);
			memcpy(in + n, piece, bytes);
			n += bytes;
			int r = text_detokenizer_push(&d, t, token, false, got + written, TEXT_DETOKENIZER_ROOM(bytes));
			assert_true(r >= 0 && d.held_bytes < 4);
			assert_int_equal(base_utf8_prefix(got + written, (size_t)r), r);
			written += (size_t)r;
		}
		int r = text_detokenizer_flush(&d, got + written, 3);
		assert_true(r >= 0);
		written += (size_t)r;
		assert_int_equal(written, decode_whole(in, n, want));
		assert_memory_equal(got, want, written);
	}
	text_tokenizer_destroy(t);
}

static void detokenizer_without_room_changes_nothing(void **state)
{
	struct text_tokenizer *t = create("gpt-2");
	struct text_detokenizer d = {0};
	char out[4];
	assert_int_equal(text_detokenizer_push(&d, t, 0xc3, false, out, 0), 0);
	assert_int_equal(text_detokenizer_push(&d, t, 0xa9, false, out, 1), -ENOBUFS);
	assert_int_equal(text_detokenizer_push(&d, t, 0xa9, false, out, 2), 2);
	assert_memory_equal(out, "\u00e9", 2);
	assert_int_equal(text_detokenizer_flush(&d, out, 0), 0);
	text_tokenizer_destroy(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(merges_are_applied_best_first),
		cmocka_unit_test(special_tokens_need_parse_special),
		cmocka_unit_test(stops_are_eos_and_the_well_known),
		cmocka_unit_test(merging_equals_the_naive_definition),
		cmocka_unit_test(one_long_word_is_not_quadratic),
		cmocka_unit_test(bad_text_is_refused_with_its_place),
		cmocka_unit_test(utf8_check_knows_the_forbidden_forms),
		cmocka_unit_test(bad_vocabularies_are_refused_by_name),
		cmocka_unit_test(a_space_goes_in_front_if_the_file_says_so),
		cmocka_unit_test(missing_bytes_use_byte_tokens_or_are_left_out),
		cmocka_unit_test(detokenizer_never_emits_half_a_code_point),
		cmocka_unit_test(detokenizer_without_room_changes_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
