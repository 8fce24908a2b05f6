// SPDX-License-Identifier: Apache-2.0
#include "daemon/text/split.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <utf8proc.h>

#include "base/cleanup.h"

enum kind { END, SPACE, NEWLINE, LETTER, NUMBER, OTHER }; // NEWLINE: \r and \n, which are \s too

struct cursor {
	const uint8_t *text;
	size_t end;
	bool numbers_end; // smollm: a number ends the text that the gpt2 rules see
};

static const struct {
	const char *name;
	enum text_split kind;
} names[] = {
	{"gpt-2", TEXT_SPLIT_GPT2},
	{"smollm", TEXT_SPLIT_SMOLLM},
	{"llama-bpe", TEXT_SPLIT_LLAMA_BPE},
	{"llama3", TEXT_SPLIT_LLAMA_BPE},
	{"llama-v3", TEXT_SPLIT_LLAMA_BPE},
	{"qwen2", TEXT_SPLIT_QWEN2},
	{"deepseek-r1-qwen", TEXT_SPLIT_QWEN2},
};

int text_split_find(const char *name, size_t bytes, enum text_split *ret_kind)
{
	for (size_t i = 0; i < base_array_size(names); i++) {
		if (strlen(names[i].name) == bytes && memcmp(names[i].name, name, bytes) == 0) {
			*ret_kind = names[i].kind;
			return 0;
		}
	}
	return -EINVAL;
}

// \s is the property White_Space, which utf8proc's categories do not give (Cc holds tab and newline).
static bool is_space(int32_t c)
{
	return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
	       (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

static enum kind classify(int32_t c)
{
	if (c < 0x80) {
		if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
			return LETTER;
		if (c >= '0' && c <= '9')
			return NUMBER;
		if (c == '\n' || c == '\r')
			return NEWLINE;
		return is_space(c) ? SPACE : OTHER;
	}
	if (is_space(c))
		return SPACE;
	switch (utf8proc_category(c)) {
	case UTF8PROC_CATEGORY_LU:
	case UTF8PROC_CATEGORY_LL:
	case UTF8PROC_CATEGORY_LT:
	case UTF8PROC_CATEGORY_LM:
	case UTF8PROC_CATEGORY_LO:
		return LETTER;
	case UTF8PROC_CATEGORY_ND:
	case UTF8PROC_CATEGORY_NL:
	case UTF8PROC_CATEGORY_NO:
		return NUMBER;
	default:
		return OTHER;
	}
}

// Class of the character at `at` and where the next one begins.
static enum kind look(const struct cursor *c, size_t at, size_t *ret_next)
{
	*ret_next = at;
	if (at >= c->end)
		return END;
	utf8proc_int32_t point = c->text[at];
	utf8proc_ssize_t n = 1;
	if (point >= 0x80)
		n = utf8proc_iterate(c->text + at, (utf8proc_ssize_t)(c->end - at), &point);
	// Callers check UTF-8 first; a stray byte still has to be one piece and not an endless loop.
	enum kind k = n > 0 ? classify(point) : OTHER;
	if (k == NUMBER && c->numbers_end)
		return END;
	*ret_next = at + (n > 0 ? (size_t)n : 1);
	return k;
}

static bool in_set(enum kind k, unsigned set)
{
	return k != END && (set & 1u << k);
}

#define SET(k) (1u << (k))
#define SPACES (SET(SPACE) | SET(NEWLINE))

// The end of the longest run of at most `most` characters of the set.
static size_t run(const struct cursor *c, size_t at, unsigned set, size_t most)
{
	size_t next;
	for (size_t i = 0; i < most && in_set(look(c, at, &next), set); i++)
		at = next;
	return at;
}

// 's 't 're 've 'm 'll 'd; any_case: ASCII letters of either case. Bytes, or 0.
static size_t contraction(const struct cursor *c, bool any_case)
{
	if (c->text[0] != '\'' || c->end < 2)
		return 0;
	uint8_t a = c->text[1], b = c->end > 2 ? c->text[2] : 0;
	if (any_case) {
		a |= a >= 'A' && a <= 'Z' ? 0x20 : 0;
		b |= b >= 'A' && b <= 'Z' ? 0x20 : 0;
	}
	if (a == 's' || a == 't' || a == 'm' || a == 'd')
		return 2;
	if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l'))
		return 3;
	return 0;
}

// \s+(?!\S)|\s+ : a run leaves its last character to the word that follows, unless it is alone or at the end.
static size_t whitespace(const struct cursor *c)
{
	size_t at = 0, last = 0, next;
	while (in_set(look(c, at, &next), SPACES)) {
		last = at;
		at = next;
	}
	return look(c, at, &next) == END || last == 0 ? at : last;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
static size_t next_gpt2(const struct cursor *c)
{
	size_t n = contraction(c, false), next;
	if (n)
		return n;
	size_t at = c->text[0] == ' ' ? 1 : 0;
	enum kind k = look(c, at, &next);
	if (k == LETTER || k == NUMBER || k == OTHER)
		return run(c, at, SET(k), SIZE_MAX);
	return whitespace(c);
}

// \p{N} by itself, and the gpt2 rules in each stretch between such characters
static size_t next_smollm(const struct cursor *c)
{
	size_t next;
	if (look(c, 0, &next) == NUMBER)
		return next;
	struct cursor between = *c;
	between.numbers_end = true;
	return next_gpt2(&between);
}

// (?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,NUMBERS}
// | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// NUMBERS: 3 for llama-bpe, 1 for qwen2.
static size_t next_llama_bpe(const struct cursor *c, size_t numbers)
{
	size_t n = contraction(c, true), next, after;
	if (n)
		return n;
	enum kind first = look(c, 0, &next);
	if (first == LETTER)
		return run(c, 0, SET(LETTER), SIZE_MAX);
	if (first == NUMBER)
		return run(c, 0, SET(NUMBER), numbers);
	if (first != NEWLINE && look(c, next, &after) == LETTER)
		return run(c, next, SET(LETTER), SIZE_MAX);
	size_t at = c->text[0] == ' ' ? 1 : 0;
	if (look(c, at, &after) == OTHER)
		return run(c, run(c, at, SET(OTHER), SIZE_MAX), SET(NEWLINE), SIZE_MAX);
	size_t newline_end = 0;
	for (at = 0; in_set(first = look(c, at, &next), SPACES); at = next) {
		if (first == NEWLINE)
			newline_end = next;
	}
	return newline_end ? newline_end : whitespace(c);
}

size_t text_split_next(enum text_split kind, const char *text, size_t bytes)
{
	const struct cursor c = {.text = (const uint8_t *)text, .end = bytes};
	switch (kind) {
	case TEXT_SPLIT_GPT2:
		return next_gpt2(&c);
	case TEXT_SPLIT_SMOLLM:
		return next_smollm(&c);
	case TEXT_SPLIT_LLAMA_BPE:
		return next_llama_bpe(&c, 3);
	case TEXT_SPLIT_QWEN2:
		return next_llama_bpe(&c, 1);
	}
	return bytes;
}
