/* SPDX-License-Identifier: Apache-2.0
 * The tables of a byte-level BPE vocabulary and the merging of one word. Internal to daemon/text (and its tests).
 *
 * Merging keeps symbols in a linked list and candidate merges in a heap: O(n log n) for a word of n bytes. Tables do
 * not change after the last token and merge were added: any thread. The workspace belongs to one thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define TEXT_BPE_NONE UINT32_MAX

struct text_bpe_merge { // rank: its index
	uint32_t left, right, result;
};

struct text_bpe {
	const char *blob; // the caller's: bytes of all tokens
	const uint32_t *offsets; // (tokens + 1) into blob, the caller's
	uint32_t *tokens; // (token_slots) open addressing: token id or NONE
	uint32_t token_mask;
	struct text_bpe_merge *merges; // (merges_count)
	uint32_t merges_count;
	uint32_t *pairs; // (pair_mask + 1) open addressing: merge rank or NONE
	uint32_t pair_mask;
	uint32_t bytes[256]; // token of each byte, or NONE
};

/* Tables for so many tokens and merges; blob and offsets must outlive b. -ENOMEM. Zero b before. */
int text_bpe_init(struct text_bpe *b, const char *blob, const uint32_t *offsets, uint32_t tokens, uint32_t merges);
void text_bpe_finish(struct text_bpe *b);
/* -EEXIST with the other token in ret_other if the same bytes are there already. */
int text_bpe_add_token(struct text_bpe *b, uint32_t token, uint32_t *ret_other);
/* Call in the order of rank, after all tokens. A pair that is there already keeps its first rank. */
void text_bpe_add_merge(struct text_bpe *b, uint32_t left, uint32_t right, uint32_t result);
uint32_t text_bpe_find(const struct text_bpe *b, const char *bytes, size_t count); // or NONE

struct text_bpe_symbol {
	uint32_t token, previous, next;
};

struct text_bpe_work { // zero it before; grows to the longest word
	struct text_bpe_symbol *symbols;
	size_t symbols_room;
	uint64_t *heap; // rank << 32 | left symbol
	size_t heap_count, heap_room;
	uint32_t *tokens; // the result, in order
	size_t tokens_count, tokens_room;
};

void text_bpe_work_finish(struct text_bpe_work *w);
/* Appends a token. -ENOMEM. */
int text_bpe_append(struct text_bpe_work *w, uint32_t token);
/* Appends the tokens of one word (fewer than 2^31 bytes). Bytes that the vocabulary has no token for are left out.
 * -ENOMEM. */
int text_bpe_word(const struct text_bpe *b, const char *word, size_t bytes, struct text_bpe_work *w);
