// SPDX-License-Identifier: Apache-2.0
/*
 * The reference backend: what each operation means, in float32, one thread. Fast backends are tested against it.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "shard/backend/backend.h"

struct reference {
	struct backend b;
	uint32_t max_tokens, max_cols;
	uint32_t row_floats;
	float *row; // (row_floats): one weight row, or one K or V vector
};

struct backend_input {
	uint32_t tokens, cols;
	float *x; // (max_tokens, max_cols), packed (tokens, cols)
};

static void reference_destroy(struct backend *b)
{
	struct reference *r = (struct reference *)b;
	if (!r)
		return;
	free(r->row);
	free(r);
}

static int reference_create(const struct backend_config *config, struct backend **ret_backend, struct base_error *e)
{
	struct reference *r = calloc(1, sizeof(*r));
	if (!r)
		return base_error_set(e, -ENOMEM, "no memory for the reference backend");
	r->b.ops = &backend_reference_ops;
	r->max_tokens = config->max_tokens;
	r->max_cols = config->max_cols;
	r->row_floats = config->max_cols > 1024 ? config->max_cols : 1024;
	r->row = calloc(r->row_floats, sizeof(float));
	if (!r->row) {
		reference_destroy(&r->b);
		return base_error_set(e, -ENOMEM, "no memory for a row of %u columns", config->max_cols);
	}
	*ret_backend = &r->b;
	return 0;
}

static const char *reference_isa(const struct backend *b)
{
	return "float32";
}

static int reference_alloc(struct backend *b, size_t bytes, void **ret_address)
{
	uint64_t size;
	if (base_size_round_up(bytes ? bytes : 1, 64, &size))
		return -ENOMEM;
	void *p = aligned_alloc(64, size);
	if (!p)
		return -ENOMEM;
	memset(p, 0, size);
	*ret_address = p;
	return 0;
}

static void reference_free(struct backend *b, void *address)
{
	free(address);
}

static void reference_copy(struct backend *b, void *to, const void *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

static int reference_input_create(struct backend *b, struct backend_input **ret_input)
{
	const struct reference *r = (const struct reference *)b;
	uint64_t bytes;
	if (base_size_mul(r->max_tokens, r->max_cols, &bytes) || base_size_mul(bytes, sizeof(float), &bytes))
		return -EOVERFLOW;
	struct backend_input *input = calloc(1, sizeof(*input));
	if (!input)
		return -ENOMEM;
	input->x = malloc(bytes + 1);
	if (!input->x) {
		free(input);
		return -ENOMEM;
	}
	*ret_input = input;
	return 0;
}

static void reference_input_destroy(struct backend *b, struct backend_input *input)
{
	if (!input)
		return;
	free(input->x);
	free(input);
}

static void reference_input_load(
	struct backend *b, struct backend_input *input, const float *x, uint32_t tokens, uint32_t cols)
{
	input->tokens = tokens;
	input->cols = cols;
	memcpy(input->x, x, (size_t)tokens * cols * sizeof(float));
}

/* Sixteen partial sums: less rounding than one, and the compiler can use vectors. */
static float dot(const float *a, const float *b, uint32_t n)
{
	float sum[16] = {0};
	uint32_t i = 0;
	for (; i + 16 <= n; i += 16)
		for (uint32_t k = 0; k < 16; k++)
			sum[k] += a[i + k] * b[i + k];
	for (uint32_t k = 0; i < n; i++, k++)
		sum[k] += a[i] * b[i];
	for (uint32_t k = 8; k; k /= 2)
		for (uint32_t j = 0; j < k; j++)
			sum[j] += sum[j + k];
	return sum[0];
}

static void reference_matmul(
	struct backend *b, const struct backend_input *input, const struct backend_part *parts, uint32_t count)
{
	const struct reference *r = (const struct reference *)b;
	for (uint32_t i = 0; i < count; i++) {
		const struct backend_part *p = &parts[i];
		uint64_t row_bytes = 0;
		(void)quant_row_bytes(p->type, input->cols, &row_bytes);
		for (uint32_t row = 0; row < p->rows; row++) {
			const char *group =
				(const char *)p->weights + row / QUANT_GROUP_ROWS * QUANT_GROUP_ROWS * row_bytes;
			(void)quant_dequantize_r16(p->type, group, row % QUANT_GROUP_ROWS, input->cols, r->row);
			for (uint32_t t = 0; t < input->tokens; t++)
				p->y[(size_t)t * p->y_stride + row] =
					dot(r->row, input->x + (size_t)t * input->cols, input->cols);
		}
	}
}

static void reference_embed(struct backend *b, uint32_t type, uint32_t cols, const struct backend_embed_row *rows,
	uint32_t tokens, float *y)
{
	for (uint32_t t = 0; t < tokens; t++)
		(void)quant_dequantize_r16(type, rows[t].group, rows[t].row, cols, y + (size_t)t * cols);
}

static void reference_norm(
	struct backend *b, const float *x, const float *w, float eps, uint32_t tokens, uint32_t width, float *y)
{
	for (uint32_t t = 0; t < tokens; t++, x += width, y += width) {
		float scale = 1 / sqrtf(dot(x, x, width) / (float)width + eps);
		for (uint32_t i = 0; i < width; i++)
			y[i] = x[i] * scale * w[i];
	}
}

static void reference_rope(struct backend *b, float *x, uint32_t tokens, uint32_t heads, uint32_t head_dim,
	uint32_t dims, enum backend_rope_mode mode, const float *cos_sin)
{
	uint32_t half = dims / 2;
	for (uint32_t t = 0; t < tokens; t++, cos_sin += dims)
		for (uint32_t h = 0; h < heads; h++, x += head_dim)
			for (uint32_t i = 0; i < half; i++) {
				float *p = mode == BACKEND_ROPE_PAIRS ? x + 2 * i : x + i;
				float *q = mode == BACKEND_ROPE_PAIRS ? p + 1 : p + half;
				float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = *p, v = *q;
				*p = u * c - v * s;
				*q = u * s + v * c;
			}
}

/* Byte offset of the (block, kv head) that holds a position in a layer's K or V. */
static size_t cache_offset(const struct backend_attend *a, const struct backend_attend_token *t, uint32_t kv_head,
	uint32_t position, uint32_t vector_bytes)
{
	size_t block = t->blocks[position / KV_BLOCK_TOKENS];
	return (block * a->kv_heads + kv_head) * KV_BLOCK_TOKENS * vector_bytes;
}

static void attend_head(
	const struct reference *r, const struct backend_attend *a, uint32_t token, uint32_t head, uint32_t vector_bytes)
{
	const struct backend_attend_token *t = &a->token[token];
	uint32_t kv_head = head / (a->heads / a->kv_heads), dim = a->head_dim;
	const float *q = a->q + ((size_t)token * a->heads + head) * dim;
	float *out = a->out + ((size_t)token * a->heads + head) * dim;
	uint32_t first = a->window && t->position >= a->window ? t->position - a->window + 1 : 0;
	float max = -INFINITY, sum = 0;
	for (uint32_t p = first; p <= t->position; p++) {
		const char *k = (const char *)a->k_cache + cache_offset(a, t, kv_head, p, vector_bytes);
		kv_key_load(a->kv_type, k, p % KV_BLOCK_TOKENS, dim, r->row);
		max = fmaxf(max, dot(q, r->row, dim) * a->scale);
	}
	memset(out, 0, dim * sizeof(float));
	for (uint32_t p = first; p <= t->position; p++) {
		size_t offset = cache_offset(a, t, kv_head, p, vector_bytes);
		kv_key_load(a->kv_type, (const char *)a->k_cache + offset, p % KV_BLOCK_TOKENS, dim, r->row);
		float weight = expf(dot(q, r->row, dim) * a->scale - max);
		sum += weight;
		kv_value_load(a->kv_type, (const char *)a->v_cache + offset, p % KV_BLOCK_TOKENS, dim, r->row);
		for (uint32_t i = 0; i < dim; i++)
			out[i] += weight * r->row[i];
	}
	for (uint32_t i = 0; i < dim; i++)
		out[i] /= sum;
}

static void reference_attend(struct backend *b, const struct backend_attend *a)
{
	assert(a->head_dim <= ((const struct reference *)b)->row_floats);
	uint32_t vector_bytes = 0;
	(void)kv_vector_bytes(a->kv_type, a->head_dim, &vector_bytes);
	for (uint32_t t = 0; t < a->tokens; t++)
		for (uint32_t h = 0; h < a->kv_heads; h++) {
			size_t from = ((size_t)t * a->kv_heads + h) * a->head_dim;
			uint32_t position = a->token[t].position, slot = position % KV_BLOCK_TOKENS;
			size_t to = cache_offset(a, &a->token[t], h, position, vector_bytes);
			kv_key_store(a->kv_type, a->k + from, a->head_dim, slot, (char *)a->k_cache + to);
			kv_value_store(a->kv_type, a->v + from, a->head_dim, slot, (char *)a->v_cache + to);
		}
	for (uint32_t t = 0; t < a->tokens; t++)
		for (uint32_t h = 0; h < a->heads; h++)
			attend_head((const struct reference *)b, a, t, h, vector_bytes);
}

static void reference_add(struct backend *b, float *x, const float *y, size_t count)
{
	for (size_t i = 0; i < count; i++)
		x[i] += y[i];
}

static void reference_add_bias(struct backend *b, float *x, const float *bias, uint32_t tokens, uint32_t width)
{
	for (uint32_t t = 0; t < tokens; t++, x += width)
		for (uint32_t i = 0; i < width; i++)
			x[i] += bias[i];
}

static void reference_silu_gate(struct backend *b, const float *gate, const float *up, size_t count, float *y)
{
	for (size_t i = 0; i < count; i++)
		y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void reference_select(
	struct backend *b, const float *x, uint32_t width, const uint32_t *rows, uint32_t count, float *y)
{
	for (uint32_t i = 0; i < count; i++)
		memcpy(y + (size_t)i * width, x + (size_t)rows[i] * width, width * sizeof(float));
}

static uint64_t reference_fence(struct backend *b)
{
	return 0;
}

static int reference_wait(struct backend *b, uint64_t fence)
{
	return 0;
}

const struct backend_ops backend_reference_ops = {
	.name = "reference",
	.create = reference_create,
	.destroy = reference_destroy,
	.isa = reference_isa,
	.alloc = reference_alloc,
	.free = reference_free,
	.upload = reference_copy,
	.download = reference_copy,
	.input_create = reference_input_create,
	.input_destroy = reference_input_destroy,
	.input_load = reference_input_load,
	.matmul = reference_matmul,
	.embed = reference_embed,
	.norm = reference_norm,
	.rope = reference_rope,
	.attend = reference_attend,
	.add = reference_add,
	.add_bias = reference_add_bias,
	.silu_gate = reference_silu_gate,
	.select = reference_select,
	.fence = reference_fence,
	.wait = reference_wait,
};
