// SPDX-License-Identifier: Apache-2.0
// Groups of weights by several tokens.
#include "shard/backend/cpu/blocks.h"

/* A chunk of columns of one group, unpacked. */
struct chunk {
	vu q[CPU_CHUNK_BLOCKS][8];
	vf scale[CPU_CHUNK_BLOCKS], scale_high[CPU_CHUNK_BLOCKS], min[CPU_CHUNK_BLOCKS];
};
_Static_assert(sizeof(struct chunk) <= CPU_SCRATCH_BYTES, "scratch");

static VEC void chunk_fill(
	uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t first, uint32_t count, struct chunk *to)
{
	for (uint32_t i = 0; i < count; i++) {
		struct columns c;
		columns_at(type, group, blocks, first + i, &c);
		unpack_half(type, c.p, 0, to->q[i]);
		unpack_half(type, c.p, 1, to->q[i] + 4);
		to->scale[i] = c.scale;
		if (type == QUANT_Q6_K)
			to->scale_high[i] = c.scale_high;
		if (has_min(type))
			to->min[i] = c.min;
	}
}

/* A chunk by a tile: where the tile's activations begin, its sums so far, and its results. */
struct tile_work {
	const struct chunk *w;
	const struct cpu_activations *x;
	size_t at;
	uint32_t count; // blocks
	bool first, last; // chunk: sums begin at zero; results go to y
	uint32_t rows;
	float *sums; // (tokens of the tile, 16)
	float *y;
	size_t y_stride;
};

static VEC void tile_finish(uint32_t tokens, const struct tile_work *k, const vf *acc)
{
	if (k->last) {
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			vec_store_first(k->y + t * k->y_stride, acc[t], k->rows);
	} else {
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			vec_store(k->sums + 16 * t, acc[t]);
	}
}

/* 16 columns of a block by the tile's tokens. */
static VEC void tile_half(
	uint32_t tokens, uint32_t kind, const vu *w, uint32_t half, const int8_t *q, const struct cpu_block *x, vi *dot)
{
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		dot[t] = dot_start(kind, x[t].sum8[half]);
	vec_dot(tokens, dot_bits(kind), w + 4 * half, q + 16 * half, dot);
}

/* Block i of the chunk by the tile's tokens. */
static VEC void tile_block(uint32_t tokens, uint32_t kind, const struct chunk *w, uint32_t i, const int8_t *q,
	const struct cpu_block *x, vf *acc)
{
	vi dot[VEC_TILE_TOKENS];
	vf sum[VEC_TILE_TOKENS];
	tile_half(tokens, kind, w->q[i], 0, q, x, dot);
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = add_low(kind, acc[t], dot[t], w->scale[i], &x[t], &sum[t]);
	tile_half(tokens, kind, w->q[i], 1, q, x, dot);
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++) {
		acc[t] = add_high(
			kind, acc[t], dot[t], kind == QUANT_Q6_K ? w->scale_high[i] : w->scale[i], &x[t], sum[t]);
		if (has_min(kind))
			acc[t] = vec_fma(w->min[i], vec_set(x[t].scale_sum), acc[t]);
	}
}

/* kind is any type that has the same form. */
static VEC void tile_chunk(uint32_t tokens, uint32_t kind, const struct tile_work *work)
{
	vf acc[VEC_TILE_TOKENS];
	const struct chunk *w = work->w;
	const int8_t *q = work->x->q + 32 * work->at;
	const struct cpu_block *x = work->x->block + work->at;
	size_t plane = work->x->plane;
	uint32_t count = work->count;
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = work->first ? vec_set(0) : vec_load(work->sums + 16 * t);
	// Up to each block with a second plane: the inner loop tests nothing.
	uint32_t fine = work->x->fine[work->at], i = 0;
	for (;; fine &= fine - 1) {
		uint32_t end = fine ? (uint32_t)__builtin_ctz(fine) + 1 : count;
		for (; i < end; i++) {
			tile_block(tokens, kind, w, i, q, x, acc);
			// The next tile's block, if that tile is as large: 3 % here. Beyond the end it does no harm.
#pragma GCC unroll 6
			for (uint32_t j = 0; j < tokens / 2; j++)
				__builtin_prefetch(q + (size_t)32 * tokens * CPU_CHUNK_BLOCKS + 64 * j);
			q += 32 * tokens;
			x += tokens;
		}
		if (!fine)
			break;
		tile_block(tokens, kind, w, i - 1, q + 32 * (plane - tokens), x + (plane - tokens), acc);
	}
	tile_finish(tokens, work, acc);
}

typedef void tile_function(const struct tile_work *work);

#define TILE(tokens, kind)                                                                                             \
	static void tile_##kind##_##tokens(const struct tile_work *work)                                               \
	{                                                                                                              \
		tile_chunk(tokens, kind, work);                                                                        \
	}
#define TILES_1_2(f, kind) f(1, kind) f(2, kind)
#define TILES_1_4(f, kind) TILES_1_2(f, kind) f(3, kind) f(4, kind)
#define TILES_1_8(f, kind) TILES_1_4(f, kind) f(5, kind) f(6, kind) f(7, kind) f(8, kind)
#define TILES_1_9(f, kind) TILES_1_8(f, kind) f(9, kind)
#define TILES_1_10(f, kind) TILES_1_9(f, kind) f(10, kind)
#define TILE_ENTRY(tokens, kind) [tokens] = tile_##kind##_##tokens,
#define TILES(each, kind) each(TILE, kind) static tile_function *const tiles_##kind[] = {each(TILE_ENTRY, kind)};

#if VEC_TILE_TOKENS == 10
#define EACH_TILE TILES_1_10
#elif VEC_TILE_TOKENS == 9
#define EACH_TILE TILES_1_9
#elif VEC_TILE_TOKENS == 8
#define EACH_TILE TILES_1_8
#elif VEC_TILE_TOKENS == 4
#define EACH_TILE TILES_1_4
#else
#define EACH_TILE TILES_1_2
#endif
TILES(EACH_TILE, QUANT_Q4_0)
TILES(EACH_TILE, QUANT_Q4_1)
TILES(EACH_TILE, QUANT_Q5_0)
TILES(EACH_TILE, QUANT_Q6_K)
TILES(EACH_TILE, QUANT_Q8_0)

struct matmul_work {
	const uint8_t *group;
	size_t group_bytes;
	uint32_t groups;
	const struct cpu_activations *x;
	uint32_t rows;
	float *y;
	size_t y_stride;
	void *scratch;
	float *sums;
};

/* Group g's chunk, unpacked, by all tiles. */
static VEC void all_tiles(
	const struct matmul_work *m, uint32_t g, struct tile_work *k, uint32_t first, tile_function *const *tile)
{
	const struct cpu_activations *x = m->x;
	k->rows = m->rows - g * 16 < 16 ? m->rows - g * 16 : 16;
	for (uint32_t i = 0; i < x->tiles; i++) {
		uint32_t t = x->tile[i];
		k->at = cpu_activations_at(x, first, k->count, t);
		k->sums = m->sums + 16 * ((size_t)g * x->tokens + t);
		k->y = m->y + t * m->y_stride + g * 16;
		tile[x->tile[i + 1] - t](k);
	}
}

/* Weights that come next in memory, while the tiles compute: the processor's own prefetch stops between two bursts of
 * chunk_fill. Into the L2 cache; into the L1 it gains half as much. From memory, Q4_0: 8 tokens + 30 %, 16 + 23 %. */
static VEC void prefetch_next(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64)
		__builtin_prefetch(p + i, 0, 2);
}

static VEC void matmul_quant(uint32_t type, tile_function *const *tile, const struct matmul_work *m)
{
	struct chunk *w = m->scratch;
	uint32_t blocks = m->x->cols / 32;
	struct tile_work k = {.w = w, .x = m->x, .y_stride = m->y_stride};
	for (uint32_t first = 0; first < blocks; first += CPU_CHUNK_BLOCKS) {
		k.count = blocks - first < CPU_CHUNK_BLOCKS ? blocks - first : CPU_CHUNK_BLOCKS;
		k.first = first == 0;
		k.last = first + k.count == blocks;
		for (uint32_t g = 0; g < m->groups; g++) {
			const uint8_t *group = m->group + g * m->group_bytes;
			chunk_fill(type, group, blocks, first, k.count, w);
			prefetch_next(
				group + m->group_bytes * (first + k.count) / blocks, m->group_bytes * k.count / blocks);
			all_tiles(m, g, &k, first, tile);
		}
	}
}

#define FLOAT_CHUNK 256u

/* Columns first .. first + count, converted to w. */
static VEC void float_tile(
	uint32_t tokens, const vf *w, uint32_t count, const float *x, size_t x_stride, const struct tile_work *k)
{
	vf acc[VEC_TILE_TOKENS];
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = k->first ? vec_set(0) : vec_load(k->sums + 16 * t);
	for (uint32_t c = 0; c < count; c++) {
		vf column = w[c];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			acc[t] = vec_fma(column, vec_set(x[t * x_stride + c]), acc[t]);
	}
	tile_finish(tokens, k, acc);
}

static void float_tile_any(
	uint32_t tokens, const vf *w, uint32_t count, const float *x, size_t x_stride, const struct tile_work *k)
{
	switch (tokens) {
#define FLOAT_TILE(n, kind)                                                                                            \
	case n:                                                                                                        \
		float_tile(n, w, count, x, x_stride, k);                                                               \
		break;
		EACH_TILE(FLOAT_TILE, )
	}
}

static VEC void matmul_float(uint32_t type, const struct matmul_work *m)
{
	vf *w = m->scratch;
	const struct cpu_activations *x = m->x;
	struct tile_work k = {.y_stride = m->y_stride};
	for (uint32_t first = 0; first < x->cols; first += FLOAT_CHUNK) {
		uint32_t count = x->cols - first < FLOAT_CHUNK ? x->cols - first : FLOAT_CHUNK;
		k.first = first == 0;
		k.last = first + count == x->cols;
		for (uint32_t g = 0; g < m->groups; g++) {
			k.rows = m->rows - g * 16 < 16 ? m->rows - g * 16 : 16;
			for (uint32_t c = 0; c < count; c++)
				w[c] = load_column(type, m->group + g * m->group_bytes, first + c);
			for (uint32_t i = 0; i < x->tiles; i++) {
				uint32_t t = x->tile[i];
				k.sums = m->sums + 16 * ((size_t)g * x->tokens + t);
				k.y = m->y + t * m->y_stride + g * 16;
				float_tile_any(
					x->tile[i + 1] - t, w, count, x->x + (size_t)t * x->cols + first, x->cols, &k);
			}
		}
	}
}

void cpu_matmul(uint32_t type, const void *group, size_t group_bytes, uint32_t groups, const struct cpu_activations *x,
	uint32_t rows, float *y, size_t y_stride, void *scratch, float *sums)
{
	struct matmul_work m = {group, group_bytes, groups, x, rows, y, y_stride, scratch, sums};
	switch (type) {
#define TYPE(t, tiles_of)                                                                                              \
	case t:                                                                                                        \
		matmul_quant(t, tiles_of, &m);                                                                         \
		break;
		TYPE(QUANT_Q4_0, tiles_QUANT_Q4_0)
		TYPE(QUANT_Q5_0, tiles_QUANT_Q5_0)
		TYPE(QUANT_Q8_0, tiles_QUANT_Q8_0)
		TYPE(QUANT_Q4_1, tiles_QUANT_Q4_1)
		TYPE(QUANT_Q5_1, tiles_QUANT_Q4_1)
		TYPE(QUANT_Q4_K, tiles_QUANT_Q4_1)
		TYPE(QUANT_Q5_K, tiles_QUANT_Q4_1)
		TYPE(QUANT_Q6_K, tiles_QUANT_Q6_K)
#undef TYPE
#define TYPE(t)                                                                                                        \
	case t:                                                                                                        \
		matmul_float(t, &m);                                                                                   \
		break;
		TYPE(QUANT_F32)
		TYPE(QUANT_F16)
		TYPE(QUANT_BF16)
#undef TYPE
	}
}
