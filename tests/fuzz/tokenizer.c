// SPDX-License-Identifier: Apache-2.0
// First byte: which pre-tokenizer, whether special text is parsed, and whether the rest is a text (its pieces must add
// up to it again) or a vocabulary, one token or merge per line (accepted or refused, no more).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "daemon/text/tokenizer.h"
#include "tests/unit/text/small_vocabulary.h"

#define MAX_LINES 512u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char *const names[] = {"gpt-2", "smollm", "llama-bpe", "qwen2"};

static void check_pieces(
	const struct text_tokenizer *t, const char *text, size_t bytes, const uint32_t *tokens, size_t count)
{
	size_t at = 0;
	for (size_t i = 0; i < count; i++) {
		size_t n;
		const char *piece = text_tokenizer_piece(t, tokens[i], true, &n);
		if (n > bytes - at || memcmp(piece, text + at, n) != 0)
			abort();
		at += n;
	}
	if (at != bytes)
		abort();
}

static void fuzz_text(const char *pre, const char *text, size_t bytes, bool special)
{
	struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	uint32_t *tokens = NULL;
	size_t count;
	struct base_error e = {0};
	small_vocabulary_init(&s, pre);
	if (text_tokenizer_build(&s.v, &t, &e) < 0)
		abort();
	if (text_tokenizer_encode(t, text, bytes, special, &tokens, &count, &e) == 0)
		check_pieces(t, text, bytes, tokens, count);
	else if (!e.message[0] || base_utf8_prefix(text, bytes) == bytes)
		abort();
	free(tokens);
	text_tokenizer_destroy(t);
}

static void fuzz_vocabulary(const char *pre, const char *text, size_t bytes)
{
	struct small_vocabulary s;
	struct format_gguf_string tokens[SMALL_VOCAB + MAX_LINES], merges[MAX_LINES];
	uint32_t types[SMALL_VOCAB + MAX_LINES], tokens_count = 256, merges_count = 0;
	small_vocabulary_init(&s, pre);
	memcpy(tokens, s.tokens, sizeof s.tokens);
	memcpy(types, s.types, sizeof s.types);
	for (uint32_t i = 0; i < MAX_LINES && bytes > 0; i++) {
		const char *end = memchr(text, '\n', bytes);
		size_t n = end ? (size_t)(end - text) : bytes;
		if (n > 0 && memchr(text, ' ', n)) {
			merges[merges_count++] = (struct format_gguf_string){text, n};
		} else {
			types[tokens_count] = n > 0 ? (uint8_t)text[0] % 8 : 1;
			tokens[tokens_count++] = (struct format_gguf_string){text + (n > 0), n - (n > 0)};
		}
		text += n + (end != NULL);
		bytes -= n + (end != NULL);
	}
	s.v.tokens = tokens;
	s.v.types = types;
	s.v.merges = merges;
	s.v.tokens_count = tokens_count;
	s.v.merges_count = merges_count;
	s.v.eos = s.v.bos = 0;
	struct text_tokenizer *t = NULL;
	struct base_error e = {0};
	uint32_t *ids = NULL;
	size_t count;
	static const char sample[] = "hello world <tool> 123 aaaa";
	if (text_tokenizer_build(&s.v, &t, &e) < 0) {
		if (!e.message[0])
			abort();
		return;
	}
	if (text_tokenizer_encode(t, sample, sizeof sample - 1, true, &ids, &count, &e) == 0)
		check_pieces(t, sample, sizeof sample - 1, ids, count);
	free(ids);
	text_tokenizer_destroy(t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	if (bytes == 0)
		return 0;
	if (data[0] & 8)
		fuzz_vocabulary(names[data[0] % 4], (const char *)data + 1, bytes - 1);
	else
		fuzz_text(names[data[0] % 4], (const char *)data + 1, bytes - 1, data[0] & 4);
	return 0;
}
