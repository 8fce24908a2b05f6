/* SPDX-License-Identifier: Apache-2.0
 * A small GGUF writer, and small random models made with it. Tests only; running out of memory aborts.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- any file: keys first, then tensors, then finish ---- */

struct tiny_gguf {
	uint8_t *data; // after finish: the file
	size_t bytes, room;
	uint64_t keys, tensors;
	uint32_t version; // set after init to write another than 3
	uint8_t *payload;
	size_t payload_bytes, payload_room;
};
void tiny_gguf_init(struct tiny_gguf *t);
void tiny_gguf_release(struct tiny_gguf *t);
void tiny_gguf_key_u32(struct tiny_gguf *t, const char *key, uint32_t v);
void tiny_gguf_key_f32(struct tiny_gguf *t, const char *key, float v);
void tiny_gguf_key_bool(struct tiny_gguf *t, const char *key, bool v);
void tiny_gguf_key_string(struct tiny_gguf *t, const char *key, const char *v);
void tiny_gguf_key_strings(struct tiny_gguf *t, const char *key, const char *const *v, uint64_t count);
void tiny_gguf_key_i32s(struct tiny_gguf *t, const char *key, const int32_t *v, uint64_t count);
/* The data is copied; its offset is the next multiple of 32. */
void tiny_gguf_tensor(struct tiny_gguf *t, const char *name, uint32_t dims_count, const uint64_t *dims, uint32_t type,
	const void *data, size_t bytes);
void tiny_gguf_finish(struct tiny_gguf *t);
/* 0 or -errno. */
int tiny_gguf_save(const struct tiny_gguf *t, const char *path);

/* ---- a model ---- */

struct tiny_model {
	const char *architecture; // NULL: llama
	uint32_t layers, width, ffn_width, heads, kv_heads, head_dim, vocab, context; // 0: small defaults
	uint32_t type; // of the matrices (GGUF type id): 0 is F32
	bool tied; // no output.weight
	bool biases; // of q, k and v
	bool rope_freqs;
	uint32_t window; // 0: none
	uint64_t seed;
	bool control_rest; // what the vocabulary has beyond bytes and pairs is control tokens, "<unusedN>"
	const char *chat_template; // NULL: ChatML
};
/* Fills the zero fields of m with the defaults and builds the file (release it). The vocabulary is byte-level BPE
 * ("gpt2", pre-tokenizer "smollm"): 0 <|endoftext|>, 1 <|im_start|>, 2 <|im_end|>, then the 256 bytes, then pairs
 * of letters with their merges. At least 259 tokens. Tensor types: those that thaw computes with. */
void tiny_model_build(struct tiny_model *m, struct tiny_gguf *ret);
int tiny_model_save(struct tiny_model *m, const char *path);
