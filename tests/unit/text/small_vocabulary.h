/* SPDX-License-Identifier: Apache-2.0
 * A small byte-level vocabulary for tests: token i < 256 is byte i, then the results of a few merges, then special
 * tokens.
 */
#pragma once

#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/vocabulary.h"

static const char *const small_merges[] = {
	// "left right" in GPT-2's alphabet; U+0120 stands for the space
	"h e",
	"l l",
	"he ll",
	"hell o",
	"\u0120 w",
	"o r",
	"\u0120w or",
	"l d",
	"\u0120wor ld",
	"a a",
	"aa aa",
	"aaaa aaaa",
	"\u00c3 \u00a9",
	"a b",
	"b a",
	"ba b",
};

static const struct {
	const char *text;
	enum text_token_type type;
} small_specials[] = {
	{"<|im_start|>", TEXT_TOKEN_CONTROL},
	{"<|im_end|>", TEXT_TOKEN_CONTROL},
	{"<|im", TEXT_TOKEN_CONTROL},
	{"<|im_start|>user", TEXT_TOKEN_CONTROL},
	{"<tool>", TEXT_TOKEN_USER_DEFINED},
	{"<unk>", TEXT_TOKEN_UNKNOWN},
};

#define SMALL_MERGES ((uint32_t)base_array_size(small_merges))
#define SMALL_SPECIALS ((uint32_t)base_array_size(small_specials))
#define SMALL_FIRST_MERGE 256u
#define SMALL_FIRST_SPECIAL (SMALL_FIRST_MERGE + SMALL_MERGES)
#define SMALL_VOCAB (SMALL_FIRST_SPECIAL + SMALL_SPECIALS)

struct small_vocabulary {
	char text[SMALL_VOCAB][32];
	struct format_gguf_string tokens[SMALL_VOCAB], merges[SMALL_MERGES];
	uint32_t types[SMALL_VOCAB];
	struct text_vocabulary v;
};

static inline void small_vocabulary_init(struct small_vocabulary *s, const char *pre)
{
	uint32_t hidden = 256;
	memset(s, 0, sizeof *s);
	for (uint32_t b = 0; b < 256; b++) {
		uint32_t c = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae ? b : hidden++;
		if (c < 0x80)
			s->text[b][0] = (char)c;
		else
			snprintf(s->text[b], sizeof s->text[b], "%c%c", (int)(0xc0 | c >> 6), (int)(0x80 | (c & 0x3f)));
	}
	for (uint32_t i = 0; i < SMALL_MERGES; i++) {
		const char *m = small_merges[i], *gap = strchr(m, ' ');
		s->merges[i] = (struct format_gguf_string){m, strlen(m)};
		snprintf(s->text[SMALL_FIRST_MERGE + i], 32, "%.*s%s", (int)(gap - m), m, gap + 1);
	}
	for (uint32_t i = 0; i < SMALL_SPECIALS; i++)
		snprintf(s->text[SMALL_FIRST_SPECIAL + i], 32, "%s", small_specials[i].text);
	for (uint32_t i = 0; i < SMALL_VOCAB; i++) {
		s->tokens[i] = (struct format_gguf_string){s->text[i], strlen(s->text[i])};
		s->types[i] =
			i < SMALL_FIRST_SPECIAL ? TEXT_TOKEN_NORMAL : small_specials[i - SMALL_FIRST_SPECIAL].type;
	}
	s->v = (struct text_vocabulary){.model = {"gpt2", 4},
		.pre = {pre, strlen(pre)},
		.tokens = s->tokens,
		.types = s->types,
		.merges = s->merges,
		.tokens_count = SMALL_VOCAB,
		.merges_count = SMALL_MERGES,
		.bos = SMALL_FIRST_SPECIAL,
		.eos = SMALL_FIRST_SPECIAL + 1,
		.eot = TEXT_NO_TOKEN,
		.eom = TEXT_NO_TOKEN,
		.add_bos = -1};
}
