/* SPDX-License-Identifier: Apache-2.0
 * Byte-level BPE from GGUF metadata: text to token ids and back.
 *
 * Pre-tokenizers: gpt2, smollm, llama-bpe, qwen2 (hand-written splitters over utf8proc's character classes; the regular
 * expressions they implement stand beside them). Special tokens, token types, bos/eos come from the metadata; anything
 * else (tokenizer.ggml.model or .pre) is refused by name. Immutable after create: any thread. Encoding allocates from
 * the heap, bounded by the text's length.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/format/gguf.h"

#define TEXT_MAX_INPUT_BYTES (16u << 20)
#define TEXT_NO_TOKEN UINT32_MAX

struct text_tokenizer;
int text_tokenizer_create(const struct format_gguf *g, struct text_tokenizer **ret_tokenizer, struct base_error *e);
void text_tokenizer_destroy(struct text_tokenizer *t);

uint32_t text_tokenizer_vocab(const struct text_tokenizer *t);
uint32_t text_tokenizer_bos(const struct text_tokenizer *t); // TEXT_NO_TOKEN if none
uint32_t text_tokenizer_eos(const struct text_tokenizer *t);
bool text_tokenizer_add_bos(const struct text_tokenizer *t);
/* Ends generation: eos, eot and end-of-message tokens of the metadata and the well-known ones (<|im_end|>, <|eot_id|>,
 * <|endoftext|>...). */
bool text_tokenizer_is_stop(const struct text_tokenizer *t, uint32_t token);
/* All stop tokens, for min_new_tokens. */
const uint32_t *text_tokenizer_stops(const struct text_tokenizer *t, uint32_t *ret_count);

/* parse_special: text of special tokens ("<|im_start|>") becomes those tokens (the longest one at each place);
 * user-defined tokens are found either way. No BOS is put in front: that is the caller's, by text_tokenizer_add_bos.
 * Bytes that the vocabulary has no token for are left out, as the reference tokenizers do. ret_tokens is the caller's
 * to free (NULL if there is none).
 * -EILSEQ with the byte offset if the text is not UTF-8, -E2BIG beyond TEXT_MAX_INPUT_BYTES. */
int text_tokenizer_encode(const struct text_tokenizer *t, const char *text, size_t bytes, bool parse_special,
	uint32_t **ret_tokens, size_t *ret_count, struct base_error *e);
/* The raw bytes of a token (may be part of a code point; special tokens: empty unless special is true), valid as long
 * as t. */
const char *text_tokenizer_piece(const struct text_tokenizer *t, uint32_t token, bool special, size_t *ret_bytes);

/* Streaming detokenizer: never emits half a code point; invalid bytes become U+FFFD at the end at the latest. */
struct text_detokenizer {
	uint8_t held[4];
	uint32_t held_bytes;
};
/* Appends token and writes what is complete to out; returns the number of bytes. -ENOBUFS, and nothing changed, if they
 * do not fit: valid text needs at most piece + 3 bytes, any token TEXT_DETOKENIZER_ROOM(piece) (each bad byte may
 * become U+FFFD). */
#define TEXT_DETOKENIZER_ROOM(piece_bytes) (3 * ((size_t)(piece_bytes) + 4))
int text_detokenizer_push(struct text_detokenizer *d, const struct text_tokenizer *t, uint32_t token, bool special,
	char *out, size_t room_bytes);
/* What is held back at the end of a stream: 0 or 3 bytes; -ENOBUFS. */
int text_detokenizer_flush(struct text_detokenizer *d, char *out, size_t room_bytes);
