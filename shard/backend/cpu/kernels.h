/* SPDX-License-Identifier: Apache-2.0
 * The cpu backend's kernels: one table per instruction set, all made from the same templates (matmul.inc.h,
 * attend.inc.h, rows.inc.h) over the 16-lane primitives of vec_*.h.
 *
 * 8-bit activations: for 32 columns x = scale * q, q int8. scale is rounded up to (1 + f/16) * 2^k, so that it has
 * five significant bits and scale * (scale of weights) is exact in float32: a weight scale has 11 bits (float16), or
 * 11 + 8 with the sub-block scales of K types. That makes the product free of rounding, and lets the multi-token
 * kernel make it with an integer add from a table of 16 mantissas instead of a multiplication on the port that dot
 * products need. The larger step costs 2 % of rounding noise.
 *
 * Order of operations for one (row, token), the same in every kernel:
 *   acc = 0; per 32 columns: acc = fma(float(dot), weight scale * scale, acc), then for types with minima
 *   acc = fma(min, scale * sum, acc). Q6_K: the same per 16 columns. Float types: acc = fma(w, x, acc) per column.
 * dot is an exact integer: the offsets of Q4_0 (8), Q5_0 (16), Q8_0 (128), Q6_K (32) are taken off in it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shard/backend/backend.h"

#define CPU_TILE_TOKENS 12u // most tokens of a register tile
#define CPU_CHUNK_BLOCKS 8u // 32-column blocks that are unpacked at a time

/* Activations of up to CPU_TILE_TOKENS tokens, `tokens` apart in every array. */
struct cpu_tile {
	uint32_t tokens;
	const float *x; // (tokens, cols), x_stride apart
	size_t x_stride;
	const int8_t *q; // (blocks, tokens, 32)
	const int32_t *sum8; // (blocks, tokens): -8 * sum of q
	const int32_t *sum8_low, *sum8_high; // the same of each 16 columns
	const int32_t *code; // (blocks, tokens): k << 23 | f * 64
	const float *scale; // (blocks, tokens)
	const float *scale_sum; // (blocks, tokens): scale * sum of q
};

/* A tile's arrays while they are filled. */
struct cpu_tile_store {
	int8_t *q;
	int32_t *sum8, *sum8_low, *sum8_high, *code;
	float *scale, *scale_sum;
};

/* Opaque room for one thread's unpacked weights, aligned to 64. */
#define CPU_SCRATCH_BYTES (32u << 10)

/* Queries of one sequence that share a K/V head, positions ascending. */
struct cpu_query {
	const float *q; // (head_dim)
	float *out; // (head_dim)
	uint32_t position;
};

struct cpu_kernels {
	const char *name;
	uint32_t tile_tokens; // most tokens of a tile, at most CPU_TILE_TOKENS
	uint32_t queries; // most queries of one call of attend

	/* Token `t` of a tile of `tokens`: cols % 32 == 0. */
	void (*quantize)(const float *x, uint32_t cols, uint32_t tokens, uint32_t t, const struct cpu_tile_store *to);
	/* One group by one token: y (rows <= 16). */
	void (*matvec)(
		uint32_t type, const void *group, uint32_t cols, const struct cpu_tile *x, uint32_t rows, float *y);
	/* `groups` groups, group_bytes apart, by all tiles: y (tokens, y_stride), the tiles' tokens one after another. */
	void (*matmul)(uint32_t type, const void *group, size_t group_bytes, uint32_t groups, uint32_t cols,
		const struct cpu_tile *tiles, uint32_t tile_count, uint32_t rows, float *y, size_t y_stride,
		void *scratch);

	void (*attend)(const struct backend_attend *a, const uint32_t *blocks, uint32_t kv_head,
		const struct cpu_query *queries, uint32_t count);
	void (*norm)(const float *x, const float *w, float eps, uint32_t width, float *y);
	void (*rope)(float *x, uint32_t heads, uint32_t head_dim, uint32_t dims, enum backend_rope_mode mode,
		const float *cos_sin);
	void (*add)(float *x, const float *y, size_t count);
	void (*silu_gate)(const float *gate, const float *up, size_t count, float *y);
	void (*exp)(const float *x, size_t count, float *y); // what silu and attention use; for tests
};

extern const struct cpu_kernels cpu_kernels_avx512, cpu_kernels_avx2, cpu_kernels_generic;
