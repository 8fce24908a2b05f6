// SPDX-License-Identifier: Apache-2.0
#include "daemon/text/bpe.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define MERGED (UINT32_MAX - 1) // token of a symbol that became part of its left neighbour

static uint32_t slots_for(uint32_t count)
{
	uint32_t slots = 16;
	while (slots / 2 < count && slots < 1u << 31)
		slots *= 2;
	return slots;
}

static uint32_t *slots_create(uint32_t slots)
{
	uint32_t *p = malloc((size_t)slots * sizeof *p);
	if (p)
		memset(p, 0xff, (size_t)slots * sizeof *p);
	return p;
}

int text_bpe_init(struct text_bpe *b, const char *blob, const uint32_t *offsets, uint32_t tokens, uint32_t merges)
{
	uint32_t token_slots = slots_for(tokens), pair_slots = slots_for(merges);
	b->blob = blob;
	b->offsets = offsets;
	b->tokens = slots_create(token_slots);
	b->token_mask = token_slots - 1;
	b->pairs = slots_create(pair_slots);
	b->pair_mask = pair_slots - 1;
	b->merges = calloc(merges ? merges : 1, sizeof *b->merges);
	b->merges_count = 0;
	memset(b->bytes, 0xff, sizeof b->bytes);
	return b->tokens && b->pairs && b->merges ? 0 : -ENOMEM;
}

void text_bpe_finish(struct text_bpe *b)
{
	free(b->tokens);
	free(b->pairs);
	free(b->merges);
	memset(b, 0, sizeof *b);
}

// The slot that holds these bytes, or the free one where they would go.
static uint32_t token_slot(const struct text_bpe *b, const char *bytes, size_t count)
{
	uint32_t s = (uint32_t)XXH3_64bits(bytes, count) & b->token_mask;
	for (;; s = (s + 1) & b->token_mask) {
		uint32_t t = b->tokens[s];
		if (t == TEXT_BPE_NONE)
			return s;
		uint32_t n = b->offsets[t + 1] - b->offsets[t];
		if (n == count && memcmp(b->blob + b->offsets[t], bytes, count) == 0)
			return s;
	}
}

static uint32_t pair_slot(const struct text_bpe *b, uint32_t left, uint32_t right)
{
	uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;
	uint32_t s = (uint32_t)(h >> 32) & b->pair_mask;
	for (;; s = (s + 1) & b->pair_mask) {
		uint32_t m = b->pairs[s];
		if (m == TEXT_BPE_NONE || (b->merges[m].left == left && b->merges[m].right == right))
			return s;
	}
}

int text_bpe_add_token(struct text_bpe *b, uint32_t token, uint32_t *ret_other)
{
	const char *bytes = b->blob + b->offsets[token];
	uint32_t count = b->offsets[token + 1] - b->offsets[token];
	uint32_t s = token_slot(b, bytes, count);
	if (b->tokens[s] != TEXT_BPE_NONE) {
		*ret_other = b->tokens[s];
		return -EEXIST;
	}
	b->tokens[s] = token;
	if (count == 1)
		b->bytes[(uint8_t)bytes[0]] = token;
	return 0;
}

void text_bpe_add_merge(struct text_bpe *b, uint32_t left, uint32_t right, uint32_t result)
{
	uint32_t s = pair_slot(b, left, right), rank = b->merges_count++;
	b->merges[rank] = (struct text_bpe_merge){left, right, result};
	if (b->pairs[s] == TEXT_BPE_NONE)
		b->pairs[s] = rank;
}

uint32_t text_bpe_find(const struct text_bpe *b, const char *bytes, size_t count)
{
	return b->tokens[token_slot(b, bytes, count)];
}

void text_bpe_work_finish(struct text_bpe_work *w)
{
	free(w->symbols);
	free(w->heap);
	free(w->tokens);
	memset(w, 0, sizeof *w);
}

static int reserve(void **array, size_t *room, size_t need, size_t element_bytes)
{
	if (need <= *room)
		return 0;
	size_t n = *room + *room / 2;
	n = n < need ? need : n;
	n = n < 64 ? 64 : n;
	void *p = reallocarray(*array, n, element_bytes);
	if (!p)
		return -ENOMEM;
	*array = p;
	*room = n;
	return 0;
}

int text_bpe_append(struct text_bpe_work *w, uint32_t token)
{
	int r = reserve((void **)&w->tokens, &w->tokens_room, w->tokens_count + 1, sizeof *w->tokens);
	if (r == 0)
		w->tokens[w->tokens_count++] = token;
	return r;
}

static int heap_push(struct text_bpe_work *w, uint64_t key)
{
	int r = reserve((void **)&w->heap, &w->heap_room, w->heap_count + 1, sizeof *w->heap);
	if (r < 0)
		return r;
	size_t i = w->heap_count++;
	for (; i > 0 && w->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
		w->heap[i] = w->heap[(i - 1) / 2];
	w->heap[i] = key;
	return 0;
}

static uint64_t heap_pop(struct text_bpe_work *w)
{
	uint64_t top = w->heap[0], key = w->heap[--w->heap_count];
	size_t i = 0;
	for (size_t child; (child = 2 * i + 1) < w->heap_count; i = child) {
		if (child + 1 < w->heap_count && w->heap[child + 1] < w->heap[child])
			child++;
		if (w->heap[child] >= key)
			break;
		w->heap[i] = w->heap[child];
	}
	w->heap[i] = key;
	return top;
}

static int propose(const struct text_bpe *b, struct text_bpe_work *w, uint32_t left)
{
	if (left == TEXT_BPE_NONE || w->symbols[left].next == TEXT_BPE_NONE)
		return 0;
	uint32_t rank = b->pairs[pair_slot(b, w->symbols[left].token, w->symbols[w->symbols[left].next].token)];
	return rank == TEXT_BPE_NONE ? 0 : heap_push(w, (uint64_t)rank << 32 | left);
}

static int merge_best(const struct text_bpe *b, struct text_bpe_work *w)
{
	uint64_t key = heap_pop(w);
	uint32_t at = (uint32_t)key;
	const struct text_bpe_merge *m = &b->merges[key >> 32];
	struct text_bpe_symbol *left = &w->symbols[at];
	// A candidate outlives the symbols that it was proposed for; the rank names the pair, so looking again is
	// enough.
	if (left->token != m->left || left->next == TEXT_BPE_NONE || w->symbols[left->next].token != m->right)
		return 0;
	struct text_bpe_symbol *right = &w->symbols[left->next];
	left->token = m->result;
	left->next = right->next;
	right->token = MERGED;
	if (left->next != TEXT_BPE_NONE)
		w->symbols[left->next].previous = at;
	int r = propose(b, w, left->previous);
	return r < 0 ? r : propose(b, w, at);
}

int text_bpe_word(const struct text_bpe *b, const char *word, size_t bytes, struct text_bpe_work *w)
{
	int r = reserve((void **)&w->symbols, &w->symbols_room, bytes, sizeof *w->symbols);
	if (r < 0 || bytes == 0)
		return r;
	for (uint32_t i = 0; i < bytes; i++) {
		w->symbols[i].token = b->bytes[(uint8_t)word[i]];
		w->symbols[i].previous = i - 1; // of the first: NONE
		w->symbols[i].next = i + 1 < bytes ? i + 1 : TEXT_BPE_NONE;
	}
	w->heap_count = 0;
	for (uint32_t i = 0; i + 1 < bytes; i++) {
		r = propose(b, w, i);
		if (r < 0)
			return r;
	}
	while (w->heap_count > 0) {
		r = merge_best(b, w);
		if (r < 0)
			return r;
	}
	for (uint32_t i = 0; i != TEXT_BPE_NONE; i = w->symbols[i].next) {
		r = w->symbols[i].token == TEXT_BPE_NONE ? 0 : text_bpe_append(w, w->symbols[i].token);
		if (r < 0)
			return r;
	}
	return 0;
}
