// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/tiny_gguf.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/format/gguf.h"

static void grow(uint8_t **data, size_t *room, size_t need)
{
	if (need <= *room)
		return;
	size_t more = *room ? *room : 4096;
	while (more < need)
		more *= 2;
	*data = realloc(*data, more);
	if (!*data)
		abort();
	*room = more;
}

static void put(struct tiny_gguf *t, const void *data, size_t bytes)
{
	grow(&t->data, &t->room, t->bytes + bytes);
	if (bytes)
		memcpy(t->data + t->bytes, data, bytes);
	t->bytes += bytes;
}

static void put_u32(struct tiny_gguf *t, uint32_t v)
{
	put(t, &v, sizeof v);
}

static void put_u64(struct tiny_gguf *t, uint64_t v)
{
	put(t, &v, sizeof v);
}

static void put_string(struct tiny_gguf *t, const char *s)
{
	put_u64(t, strlen(s));
	put(t, s, strlen(s));
}

void tiny_gguf_init(struct tiny_gguf *t)
{
	static const uint8_t counts[16] = {0};
	*t = (struct tiny_gguf){.version = 3};
	put(t, "GGUF", 4);
	put_u32(t, 3);
	put(t, counts, sizeof counts);
}

void tiny_gguf_release(struct tiny_gguf *t)
{
	free(t->data);
	free(t->payload);
	*t = (struct tiny_gguf){0};
}

static void put_key(struct tiny_gguf *t, const char *key, enum format_gguf_type type)
{
	put_string(t, key);
	put_u32(t, (uint32_t)type);
	t->keys++;
}

void tiny_gguf_key_u32(struct tiny_gguf *t, const char *key, uint32_t v)
{
	put_key(t, key, FORMAT_GGUF_U32);
	put_u32(t, v);
}

void tiny_gguf_key_f32(struct tiny_gguf *t, const char *key, float v)
{
	put_key(t, key, FORMAT_GGUF_F32);
	put(t, &v, sizeof v);
}

void tiny_gguf_key_bool(struct tiny_gguf *t, const char *key, bool v)
{
	uint8_t byte = v;
	put_key(t, key, FORMAT_GGUF_BOOL);
	put(t, &byte, 1);
}

void tiny_gguf_key_string(struct tiny_gguf *t, const char *key, const char *v)
{
	put_key(t, key, FORMAT_GGUF_STRING);
	put_string(t, v);
}

void tiny_gguf_key_strings(struct tiny_gguf *t, const char *key, const char *const *v, uint64_t count)
{
	put_key(t, key, FORMAT_GGUF_ARRAY);
	put_u32(t, FORMAT_GGUF_STRING);
	put_u64(t, count);
	for (uint64_t i = 0; i < count; i++)
		put_string(t, v[i]);
}

void tiny_gguf_key_i32s(struct tiny_gguf *t, const char *key, const int32_t *v, uint64_t count)
{
	put_key(t, key, FORMAT_GGUF_ARRAY);
	put_u32(t, FORMAT_GGUF_I32);
	put_u64(t, count);
	put(t, v, count * sizeof *v);
}

void tiny_gguf_tensor(struct tiny_gguf *t, const char *name, uint32_t dims_count, const uint64_t *dims, uint32_t type,
	const void *data, size_t bytes)
{
	size_t at = (t->payload_bytes + 31) / 32 * 32;
	grow(&t->payload, &t->payload_room, at + bytes);
	memset(t->payload + t->payload_bytes, 0, at - t->payload_bytes);
	memcpy(t->payload + at, data, bytes);
	t->payload_bytes = at + bytes;
	put_string(t, name);
	put_u32(t, dims_count);
	for (uint32_t i = 0; i < dims_count; i++)
		put_u64(t, dims[i]);
	put_u32(t, type);
	put_u64(t, at);
	t->tensors++;
}

void tiny_gguf_finish(struct tiny_gguf *t)
{
	static const uint8_t zeros[32] = {0};
	memcpy(t->data + 4, &t->version, 4);
	memcpy(t->data + 8, &t->tensors, 8);
	memcpy(t->data + 16, &t->keys, 8);
	put(t, zeros, (32 - t->bytes % 32) % 32);
	put(t, t->payload, t->payload_bytes);
}

int tiny_gguf_save(const struct tiny_gguf *t, const char *path)
{
	FILE *f = fopen(path, "we");
	if (!f)
		return -errno;
	size_t n = fwrite(t->data, 1, t->bytes, f);
	return fclose(f) == 0 && n == t->bytes ? 0 : -EIO;
}

/* ---- random tensors ---- */

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static void fill_bytes(uint64_t *state, uint8_t *out, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t v = next_random(state);
		memcpy(out + i, &v, bytes - i < 8 ? bytes - i : 8);
	}
}

// Uniform in (-range, range).
static float uniform(uint64_t *state, float range)
{
	return ((float)(next_random(state) >> 40) / (float)(1 << 23) - 1.0f) * range;
}

// The half float 2^e.
static void put_half_power(uint8_t *out, int e, int sign)
{
	if (e < -14)
		e = -14;
	uint16_t h = (uint16_t)((e + 15) << 10 | (sign < 0 ? 0x8000 : 0));
	memcpy(out, &h, 2);
}

struct block_type {
	uint32_t type, cols, bytes;
	int scale_at, min_at; // offsets of the half floats, -1: none
	int spread; // log2 of the spread of the numbers that the scale multiplies
	int min_power; // the minimum's power over the scale's
	int min_sign;
};

static const struct block_type block_types[] = {
	{2, 32, 18, 0, -1, 2, 0, 0}, // Q4_0
	{3, 32, 20, 0, 2, 2, 3, -1}, // Q4_1
	{6, 32, 22, 0, -1, 3, 0, 0}, // Q5_0
	{7, 32, 24, 0, 2, 3, 4, -1}, // Q5_1
	{8, 32, 34, 0, -1, 6, 0, 0}, // Q8_0
	{12, 256, 144, 0, 2, 8, 3, 1}, // Q4_K
	{13, 256, 176, 0, 2, 9, 4, 1}, // Q5_K
	{14, 256, 210, 208, -1, 10, 0, 0}, // Q6_K
};

static int log2_floor(uint32_t v)
{
	return 31 - __builtin_clz(v);
}

// Weights of about 1 / sqrt(cols), so that activations keep their size.
static void add_matrix(
	struct tiny_gguf *t, uint64_t *state, const char *name, uint32_t type, uint32_t rows, uint32_t cols)
{
	uint64_t dims[2] = {cols, rows};
	size_t count = (size_t)rows * cols, bytes = count * 4;
	float range = 1.7f / __builtin_sqrtf((float)cols);
	uint8_t *data = malloc(bytes);
	if (!data)
		abort();
	if (type == 0) {
		for (size_t i = 0; i < count; i++)
			((float *)(void *)data)[i] = uniform(state, range);
	} else if (type == 30) {
		bytes = count * 2;
		for (size_t i = 0; i < count; i++) {
			float f = uniform(state, range);
			memcpy(data + 2 * i, (const uint8_t *)&f + 2, 2);
		}
	} else if (type == 1) {
		bytes = count * 2;
		for (size_t i = 0; i < count; i++) {
			uint64_t v = next_random(state);
			int e = 14 - log2_floor(cols) / 2 - (int)(v >> 60) % 3;
			uint16_t h = (uint16_t)((uint32_t)e << 10 | (v & 0x83ff));
			memcpy(data + 2 * i, &h, 2);
		}
	} else {
		const struct block_type *b = block_types;
		while (b->type != type)
			b++;
		bytes = count / b->cols * b->bytes;
		fill_bytes(state, data, bytes);
		int power = -log2_floor(cols) / 2 - b->spread;
		for (size_t at = 0; at < bytes; at += b->bytes) {
			put_half_power(data + at + b->scale_at, power, 1);
			if (b->min_at >= 0)
				put_half_power(data + at + b->min_at, power + b->min_power, b->min_sign);
		}
	}
	tiny_gguf_tensor(t, name, 2, dims, type, data, bytes);
	free(data);
}

static void add_vector(
	struct tiny_gguf *t, uint64_t *state, const char *name, uint32_t count, float around, float range)
{
	uint64_t dims[1] = {count};
	float *data = malloc(count * sizeof *data);
	if (!data)
		abort();
	for (uint32_t i = 0; i < count; i++)
		data[i] = around + uniform(state, range);
	tiny_gguf_tensor(t, name, 1, dims, 0, data, count * sizeof *data);
	free(data);
}

/* ---- vocabulary ---- */

#define TOKEN_BYTES 24

// The letter that stands for a byte in byte-level BPE vocabularies: printable bytes for themselves, the others from 256
// up.
static void byte_letter(uint32_t byte, char out[static TOKEN_BYTES])
{
	uint32_t code = byte, skipped = 0;
	for (uint32_t b = 0; b <= byte; b++) {
		bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
		if (b == byte && !itself)
			code = 256 + skipped;
		skipped += !itself;
	}
	if (code < 0x80) {
		snprintf(out, TOKEN_BYTES, "%c", (char)code);
	} else {
		out[0] = (char)(0xc0 | code >> 6);
		out[1] = (char)(0x80 | (code & 0x3f));
		out[2] = '\0';
	}
}

static void add_vocabulary(struct tiny_gguf *t, uint32_t vocab, bool control_rest)
{
	char(*text)[TOKEN_BYTES] = calloc(vocab, TOKEN_BYTES), (*merge)[TOKEN_BYTES] = calloc(vocab, TOKEN_BYTES);
	const char **tokens = calloc(vocab, sizeof *tokens), **merges = calloc(vocab, sizeof *merges);
	int32_t *types = calloc(vocab, sizeof *types);
	static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
	uint64_t merges_count = 0;
	if (!text || !merge || !tokens || !merges || !types)
		abort();
	for (uint32_t i = 0; i < vocab; i++) {
		types[i] = i < 3 ? 3 : 1;
		if (i < 3) {
			snprintf(text[i], TOKEN_BYTES, "%s", special[i]);
		} else if (i < 259) {
			byte_letter(i - 3, text[i]);
		} else if (i - 259 < 676) {
			uint32_t n = i - 259;
			snprintf(text[i], TOKEN_BYTES, "%c%c", (char)('a' + n / 26), (char)('a' + n % 26));
			snprintf(merge[merges_count], TOKEN_BYTES, "%c %c", (char)('a' + n / 26), (char)('a' + n % 26));
			merges[merges_count] = merge[merges_count];
			merges_count++;
		} else {
			types[i] = control_rest ? 3 : 5; // unused
			snprintf(text[i], TOKEN_BYTES, "<unused%u>", i);
		}
		tokens[i] = text[i];
	}
	tiny_gguf_key_string(t, "tokenizer.ggml.model", "gpt2");
	tiny_gguf_key_string(t, "tokenizer.ggml.pre", "smollm");
	tiny_gguf_key_strings(t, "tokenizer.ggml.tokens", tokens, vocab);
	tiny_gguf_key_i32s(t, "tokenizer.ggml.token_type", types, vocab);
	tiny_gguf_key_strings(t, "tokenizer.ggml.merges", merges, merges_count);
	tiny_gguf_key_u32(t, "tokenizer.ggml.bos_token_id", 1);
	tiny_gguf_key_u32(t, "tokenizer.ggml.eos_token_id", 2);
	tiny_gguf_key_bool(t, "tokenizer.ggml.add_bos_token", false);
	free(text);
	free(merge);
	free(tokens);
	free(merges);
	free(types);
}

/* ---- model ---- */

static void defaults(struct tiny_model *m)
{
	m->architecture = m->architecture ? m->architecture : "llama";
	m->layers = m->layers ? m->layers : 2;
	m->width = m->width ? m->width : 64;
	m->ffn_width = m->ffn_width ? m->ffn_width : 2 * m->width;
	m->heads = m->heads ? m->heads : 4;
	m->kv_heads = m->kv_heads ? m->kv_heads : (m->heads + 1) / 2;
	m->head_dim = m->head_dim ? m->head_dim : m->width / m->heads;
	m->vocab = m->vocab ? m->vocab : 320;
	m->context = m->context ? m->context : 256;
	if (!m->chat_template)
		m->chat_template =
			"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
			"+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' "
			"}}"
			"{% endif %}";
}

static void arch_u32(struct tiny_gguf *t, const struct tiny_model *m, const char *key, uint32_t v)
{
	char name[96];
	snprintf(name, sizeof name, "%s.%s", m->architecture, key);
	tiny_gguf_key_u32(t, name, v);
}

static void arch_f32(struct tiny_gguf *t, const struct tiny_model *m, const char *key, float v)
{
	char name[96];
	snprintf(name, sizeof name, "%s.%s", m->architecture, key);
	tiny_gguf_key_f32(t, name, v);
}

static void add_keys(struct tiny_gguf *t, const struct tiny_model *m)
{
	tiny_gguf_key_string(t, "general.architecture", m->architecture);
	tiny_gguf_key_string(t, "general.name", "tiny");
	arch_u32(t, m, "block_count", m->layers);
	arch_u32(t, m, "embedding_length", m->width);
	arch_u32(t, m, "feed_forward_length", m->ffn_width);
	arch_u32(t, m, "attention.head_count", m->heads);
	arch_u32(t, m, "attention.head_count_kv", m->kv_heads);
	arch_u32(t, m, "attention.key_length", m->head_dim);
	arch_u32(t, m, "attention.value_length", m->head_dim);
	arch_u32(t, m, "rope.dimension_count", m->head_dim);
	arch_u32(t, m, "context_length", m->context);
	arch_f32(t, m, "rope.freq_base", 10000.0f);
	arch_f32(t, m, "attention.layer_norm_rms_epsilon", 1e-5f);
	if (m->window)
		arch_u32(t, m, "attention.sliding_window", m->window);
	tiny_gguf_key_string(t, "tokenizer.chat_template", m->chat_template);
	add_vocabulary(t, m->vocab, m->control_rest);
}

static void layer_matrix(struct tiny_gguf *t, const struct tiny_model *m, uint64_t *state, uint32_t layer,
	const char *name, uint32_t rows, uint32_t cols)
{
	char full[64];
	snprintf(full, sizeof full, "blk.%u.%s.weight", layer, name);
	add_matrix(t, state, full, m->type, rows, cols);
}

static void layer_vector(
	struct tiny_gguf *t, uint64_t *state, uint32_t layer, const char *name, uint32_t count, float around)
{
	char full[64];
	snprintf(full, sizeof full, "blk.%u.%s", layer, name);
	add_vector(t, state, full, count, around, 0.25f);
}

static void add_layer(struct tiny_gguf *t, const struct tiny_model *m, uint64_t *state, uint32_t l)
{
	uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
	layer_vector(t, state, l, "attn_norm.weight", m->width, 1);
	layer_matrix(t, m, state, l, "attn_q", q, m->width);
	layer_matrix(t, m, state, l, "attn_k", kv, m->width);
	layer_matrix(t, m, state, l, "attn_v", kv, m->width);
	if (m->biases) {
		layer_vector(t, state, l, "attn_q.bias", q, 0);
		layer_vector(t, state, l, "attn_k.bias", kv, 0);
		layer_vector(t, state, l, "attn_v.bias", kv, 0);
	}
	layer_matrix(t, m, state, l, "attn_output", m->width, q);
	layer_vector(t, state, l, "ffn_norm.weight", m->width, 1);
	layer_matrix(t, m, state, l, "ffn_gate", m->ffn_width, m->width);
	layer_matrix(t, m, state, l, "ffn_up", m->ffn_width, m->width);
	layer_matrix(t, m, state, l, "ffn_down", m->width, m->ffn_width);
}

void tiny_model_build(struct tiny_model *m, struct tiny_gguf *t)
{
	uint64_t state = m->seed;
	defaults(m);
	tiny_gguf_init(t);
	add_keys(t, m);
	add_matrix(t, &state, "token_embd.weight", m->type, m->vocab, m->width);
	if (m->rope_freqs)
		add_vector(t, &state, "rope_freqs.weight", m->head_dim / 2, 2, 1);
	for (uint32_t l = 0; l < m->layers; l++)
		add_layer(t, m, &state, l);
	add_vector(t, &state, "output_norm.weight", m->width, 1, 0.25f);
	if (!m->tied)
		add_matrix(t, &state, "output.weight", m->type, m->vocab, m->width);
	tiny_gguf_finish(t);
}

int tiny_model_save(struct tiny_model *m, const char *path)
{
	struct tiny_gguf t;
	tiny_model_build(m, &t);
	int status = tiny_gguf_save(&t, path);
	tiny_gguf_release(&t);
	return status;
}
