// SPDX-License-Identifier: Apache-2.0
#include "shard/kv/kv.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "shard/quant/quant.h"

int kv_vector_bytes(enum kv_type type, uint32_t head_dim, uint32_t *ret_bytes)
{
	if (head_dim == 0 || head_dim > UINT32_MAX / 2)
		return -EINVAL;
	switch (type) {
	case KV_F16:
		*ret_bytes = head_dim * 2;
		return 0;
	case KV_Q8:
		if (head_dim % 32)
			return -EINVAL;
		*ret_bytes = head_dim / 32 * 34;
		return 0;
	}
	return -EINVAL;
}

int kv_block_bytes(enum kv_type type, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, uint64_t *ret_bytes)
{
	uint32_t vector;
	int r = kv_vector_bytes(type, head_dim, &vector);
	if (r)
		return r;
	if (layers == 0 || kv_heads == 0)
		return -EINVAL;
	uint64_t bytes = (uint64_t)vector * KV_BLOCK_TOKENS * 2; // K and V
	if (base_size_mul(bytes, kv_heads, &bytes) || base_size_mul(bytes, layers, &bytes))
		return -EOVERFLOW;
	*ret_bytes = bytes;
	return 0;
}

/* 32 elements: the scale to *d, the int8 `stride` apart. */
static void store_q8(const float *x, uint8_t *d, uint8_t *q, uint32_t stride)
{
	float max = 0;
	for (uint32_t i = 0; i < 32; i++)
		max = fmaxf(max, fabsf(x[i]));
	uint16_t half = quant_f32_to_f16(max / 127);
	float scale = quant_f16_to_f32(half), inverse = scale > 0 ? 1 / scale : 0;
	memcpy(d, &half, 2);
	for (uint32_t i = 0; i < 32; i++) {
		// The scale is rounded, so the largest element can come out as 128; and a subnormal one is coarse.
		float v = rintf(x[i] * inverse);
		q[(size_t)i * stride] = (uint8_t)(int8_t)(v > 127 ? 127 : v < -127 ? -127 : v);
	}
}

static void load_q8(const uint8_t *d, const uint8_t *q, uint32_t stride, float *x)
{
	uint16_t half;
	memcpy(&half, d, 2);
	float scale = quant_f16_to_f32(half);
	for (uint32_t i = 0; i < 32; i++)
		x[i] = scale * (float)(int8_t)q[(size_t)i * stride];
}

static void store_f16(const float *x, uint32_t head_dim, uint8_t *p, uint32_t stride)
{
	for (uint32_t i = 0; i < head_dim; i++, p += stride) {
		uint16_t half = quant_f32_to_f16(x[i]);
		memcpy(p, &half, 2);
	}
}

static void load_f16(const uint8_t *p, uint32_t stride, uint32_t head_dim, float *x)
{
	for (uint32_t i = 0; i < head_dim; i++, p += stride) {
		uint16_t half;
		memcpy(&half, p, 2);
		x[i] = quant_f16_to_f32(half);
	}
}

void kv_value_store(enum kv_type type, const float *x, uint32_t head_dim, uint32_t slot, void *block)
{
	if (type == KV_F16) {
		store_f16(x, head_dim, (uint8_t *)block + (size_t)slot * head_dim * 2, 2);
		return;
	}
	uint8_t *p = (uint8_t *)block + (size_t)slot * (head_dim / 32 * 34);
	for (uint32_t i = 0; i < head_dim; i += 32, p += 34)
		store_q8(x + i, p, p + 2, 1);
}

void kv_value_load(enum kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x)
{
	if (type == KV_F16) {
		load_f16((const uint8_t *)block + (size_t)slot * head_dim * 2, 2, head_dim, x);
		return;
	}
	const uint8_t *p = (const uint8_t *)block + (size_t)slot * (head_dim / 32 * 34);
	for (uint32_t i = 0; i < head_dim; i += 32, p += 34)
		load_q8(p, p + 2, 1, x + i);
}

#define KEY_Q8_BYTES (34 * KV_BLOCK_TOKENS)

void kv_key_store(enum kv_type type, const float *x, uint32_t head_dim, uint32_t slot, void *block)
{
	uint8_t *p = block;
	if (type == KV_F16) {
		store_f16(x, head_dim, p + 2 * slot, 2 * KV_BLOCK_TOKENS);
		return;
	}
	for (uint32_t i = 0; i < head_dim; i += 32, p += KEY_Q8_BYTES)
		store_q8(x + i, p + 2 * slot, p + 2 * KV_BLOCK_TOKENS + slot, KV_BLOCK_TOKENS);
}

void kv_key_load(enum kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x)
{
	const uint8_t *p = block;
	if (type == KV_F16) {
		load_f16(p + 2 * slot, 2 * KV_BLOCK_TOKENS, head_dim, x);
		return;
	}
	for (uint32_t i = 0; i < head_dim; i += 32, p += KEY_Q8_BYTES)
		load_q8(p + 2 * slot, p + 2 * KV_BLOCK_TOKENS + slot, KV_BLOCK_TOKENS, x + i);
}

/* A stack of free numbers; the lowest is on top at first, so that a lightly used cache stays in few pages. */
struct kv_allocator {
	uint32_t total, free;
	uint32_t *stack; // (total), the first `free` are free
	bool *taken; // (total)
};

int kv_allocator_create(uint32_t blocks, struct kv_allocator **ret_allocator)
{
	struct kv_allocator *a = calloc(1, sizeof(*a));
	if (!a)
		return -ENOMEM;
	a->total = a->free = blocks;
	a->stack = calloc((size_t)blocks + 1, sizeof(*a->stack));
	a->taken = calloc((size_t)blocks + 1, sizeof(*a->taken));
	if (!a->stack || !a->taken) {
		kv_allocator_destroy(a);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < blocks; i++)
		a->stack[i] = blocks - 1 - i;
	*ret_allocator = a;
	return 0;
}

void kv_allocator_destroy(struct kv_allocator *a)
{
	if (!a)
		return;
	free(a->stack);
	free(a->taken);
	free(a);
}

uint32_t kv_allocator_free_blocks(const struct kv_allocator *a)
{
	return a->free;
}

uint32_t kv_allocator_total_blocks(const struct kv_allocator *a)
{
	return a->total;
}

int kv_allocator_take(struct kv_allocator *a, uint32_t count, uint32_t *ret_blocks)
{
	if (count > a->free)
		return -ENOSPC;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t block = a->stack[--a->free];
		a->taken[block] = true;
		ret_blocks[i] = block;
	}
	return 0;
}

void kv_allocator_give(struct kv_allocator *a, const uint32_t *blocks, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		assert(blocks[i] < a->total && a->taken[blocks[i]]);
		a->taken[blocks[i]] = false;
		a->stack[a->free++] = blocks[i];
	}
}
