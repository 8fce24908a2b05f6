/* SPDX-License-Identifier: Apache-2.0
 * The cpu backend's kernels: one table per instruction set. The build compiles kernels.c, activations.c, matvec.c,
 * matmul.c, attend.c and rows.c once for each set; they are written in the 16-lane primitives of vec_*.h.
 *
 * 8-bit activations: for 16 columns x = scale * q, q int8, scale = max |x| / 127. A block of 32 columns with an |x|
 * above CPU_FINE_SIGMAS times the root mean square of its row has a second plane: the same for what the first one
 * leaves of x, with scale / 254. Few blocks (4 to 12 % in SmolLM2-135M) have nearly all of the rounding noise of a row,
 * as their large values come from a few channels; the second plane costs as much as the block did.
 * Logits of SmolLM2-135M Q4_1 against float32, root mean square of the errors over 72 values: one scale for 32 columns
 * 0.23, for 16 columns 0.13 to 0.21, with second planes 0.07 to 0.11.
 *
 * Order of operations for one (row, token), the same in every kernel; low and high are the dot products of 16 columns:
 *   acc = 0; per 32 columns and plane: sum = fma(float(high), scale of high, float(low) * scale of low);
 *   acc = fma(sum, weight scale, acc); then for types with minima acc = fma(min, scale_sum, acc).
 *   Q6_K, with a weight scale for each 16: acc = fma(float(low) * scale of low, weight scale, acc), and so for high.
 *   Float types: acc = fma(w, x, acc) per column.
 * dot is an exact integer: the offsets of Q4_0 (8), Q5_0 (16), Q8_0 (128), Q6_K (32) are taken off in it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shard/backend/backend.h"

#define CPU_TILE_TOKENS 12u // most tokens of a register tile
#define CPU_FINE_SIGMAS 6.0f // |x| by its row's root mean square from which a block has a second plane
#define CPU_CHUNK_BLOCKS 8u // 32-column blocks that are unpacked at a time; at most 8, bits of fine

/* What belongs to 32 columns of one token. */
struct cpu_block {
	int32_t sum8[2]; // -8 * sum of q, of each 16 columns
	float scale[2];
	float scale_sum; // sum of scale * q of all 32
};

/*
 * The activations of a matmul. Tokens are in tiles of up to CPU_TILE_TOKENS; tile i has tokens tile[i] .. tile[i+1].
 * Columns are in chunks of CPU_CHUNK_BLOCKS blocks of 32, the last one shorter. The arrays are (chunk, tile, block in
 * the chunk, token in the tile), so a chunk by all tokens, the innermost work on one piece of weights, is read in one
 * line; each entry of q is 32 bytes.
 */
struct cpu_activations {
	uint32_t tokens, cols, tiles;
	uint32_t *tile; // (tiles + 1)
	const float *x; // (tokens, cols)
	int8_t *q;
	struct cpu_block *block;
	/* Of a chunk of a tile, at its first entry: bit i if a token has a second plane of block i. */
	uint8_t *fine;
	size_t plane; // entries from an entry of q or block to its second plane
};

/* Entry of the arrays where block `first` (of a chunk with `count` blocks) begins for the tile from token `t`. */
static inline size_t cpu_activations_at(const struct cpu_activations *a, uint32_t first, uint32_t count, uint32_t t)
{
	return (size_t)first * a->tokens + (size_t)count * t;
}

/* Room for one thread's unpacked weights, aligned to 64. */
#define CPU_SCRATCH_BYTES (32u << 10)
/* Groups that one call of matmul takes at most: their sums, (groups, tokens, 16) floats, stay in the L2 cache. */
#define CPU_GROUPS 8u

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

	/* Fills the arrays for the tokens of a tile from x; cols % 32 == 0. */
	void (*quantize)(const struct cpu_activations *to, uint32_t tile);
	/* One group by one token: y (rows <= 16). */
	void (*matvec)(uint32_t type, const void *group, const struct cpu_activations *x, uint32_t rows, float *y);
	/* `groups` groups, group_bytes apart, with `rows` rows, by all tokens: y (tokens, y_stride). sums: room for
	 * (groups, tokens, 16) floats. */
	void (*matmul)(uint32_t type, const void *group, size_t group_bytes, uint32_t groups,
		const struct cpu_activations *x, uint32_t rows, float *y, size_t y_stride, void *scratch, float *sums);

	void (*attend)(const struct backend_attend *a, const uint32_t *blocks, uint32_t kv_head,
		const struct cpu_query *queries, uint32_t count);
	void (*norm)(const float *x, const float *w, float eps, uint32_t width, float *y);
	void (*rope)(float *x, uint32_t heads, uint32_t head_dim, uint32_t dims, enum backend_rope_mode mode,
		const float *cos_sin);
	void (*add)(float *x, const float *y, size_t count);
	void (*silu_gate)(const float *gate, const float *up, size_t count, float *y);
	void (*exp)(const float *x, size_t count, float *y); // what silu and attention use; for tests
};

extern const struct cpu_kernels cpu_avx512_kernels, cpu_avx2_kernels, cpu_generic_kernels;
