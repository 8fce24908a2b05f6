/* SPDX-License-Identifier: Apache-2.0
 * Paged KV cache: geometry, and the allocator of blocks.
 *
 * A block holds KV_BLOCK_TOKENS positions of one sequence for every layer of a shard. The coordinator owns the
 * allocator and sends block numbers with each pass; a rank only owns the memory. Per layer, K and V are arrays
 * (blocks, kv_heads) of KV_BLOCK_TOKENS vectors of kv_vector_bytes each. Inside, V lies vector by vector and K by
 * dimensions, so that one vector register takes the same dimension of 16 positions:
 *   KV_F16: V (16, head_dim), K (head_dim, 16) half floats;
 *   KV_Q8:  per 32 elements a float16 scale and 32 int8 (34 bytes, as GGUF's Q8_0), head_dim % 32 == 0;
 *           V (16, head_dim / 32) of them; K per 32 dimensions 16 scales, then (32, 16) int8.
 * The allocator: one thread (the engine's), memory taken at create.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define KV_BLOCK_TOKENS 16u

enum kv_type { KV_F16 = 0, KV_Q8 = 1 };

/* Bytes of one (head, position) vector; -EINVAL if head_dim does not fit the type. */
int kv_vector_bytes(enum kv_type type, uint32_t head_dim, uint32_t *ret_bytes);
/* Bytes of one block for `layers` layers, K and V; -EOVERFLOW, -EINVAL. */
int kv_block_bytes(enum kv_type type, uint32_t layers, uint32_t kv_heads, uint32_t head_dim, uint64_t *ret_bytes);

/* A V or K vector of one (block, head) to position slot and back; Q8: scale = max |x| / 127 rounded to float16,
 * elements to nearest even. */
void kv_value_store(enum kv_type type, const float *x, uint32_t head_dim, uint32_t slot, void *block);
void kv_value_load(enum kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x /* (head_dim) */);
void kv_key_store(enum kv_type type, const float *x, uint32_t head_dim, uint32_t slot, void *block);
void kv_key_load(enum kv_type type, const void *block, uint32_t slot, uint32_t head_dim, float *x /* (head_dim) */);

struct kv_allocator;
int kv_allocator_create(uint32_t blocks, struct kv_allocator **ret_allocator);
void kv_allocator_destroy(struct kv_allocator *a);
uint32_t kv_allocator_free_blocks(const struct kv_allocator *a);
uint32_t kv_allocator_total_blocks(const struct kv_allocator *a);
/* Takes count blocks or none: -ENOSPC. */
int kv_allocator_take(struct kv_allocator *a, uint32_t count, uint32_t *ret_blocks /* (count) */);
/* Giving back a block that is not taken is a bug and asserts. */
void kv_allocator_give(struct kv_allocator *a, const uint32_t *blocks, uint32_t count);
