/* SPDX-License-Identifier: Apache-2.0
 * Matrix kernels over the primitives of the vec_*.h included before. Layout of weights: quant/r16.c; order of
 * operations and layout of activations: kernels.h. Functions with a constant `type` or `count` argument are
 * templates: they are inlined where it is known.
 */

/* 32 columns of a group, ready for the dot product. */
struct columns {
	vu q[8]; // unsigned
	vf scale, scale_high; // scale_high: of the upper 16 columns of Q6_K
	vf min;
};

VEC bool has_min(uint32_t type)
{
	return type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
}

VEC bool is_float(uint32_t type)
{
	return type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16;
}

VEC bool is_super(uint32_t type)
{
	return type == QUANT_Q4_K || type == QUANT_Q5_K || type == QUANT_Q6_K;
}

/* Bytes of a group for `blocks` 32-column blocks. */
VEC size_t group_block_bytes(uint32_t type)
{
	switch (type) {
	case QUANT_Q4_0:
		return 16 * 18;
	case QUANT_Q4_1:
		return 16 * 20;
	case QUANT_Q5_0:
		return 16 * 22;
	case QUANT_Q5_1:
		return 16 * 24;
	case QUANT_Q8_0:
		return 16 * 34;
	case QUANT_Q4_K:
		return 16 * 18;
	case QUANT_Q5_K:
		return 16 * 22;
	default:
		return 0; // Q6_K: 26.25 bytes; not used
	}
}

VEC void unpack_nibbles(const uint8_t *p, vu *q)
{
	for (int v = 0; v < 4; v++) {
		vu x = vec_loadu(p + 64 * v);
		q[2 * v] = x & 0x0f0f0f0f;
		q[2 * v + 1] = (x >> 4) & 0x0f0f0f0f;
	}
}

VEC void unpack_fifth(const uint8_t *p, vu *q)
{
	vu x = vec_loadu(p);
#pragma GCC unroll 8
	for (int k = 0; k < 8; k++)
		q[k] |= (k < 4 ? x << (k < 4 ? 4 - k : 0) : x >> (k < 4 ? 0 : k - 4)) & 0x10101010;
}

VEC void unpack_pairs(const uint8_t *p, vu *q)
{
#pragma GCC unroll 2
	for (int u = 0; u < 2; u++) {
		vu x = vec_loadu(p + 64 * u);
#pragma GCC unroll 4
		for (int k = 0; k < 4; k++)
			q[4 * u + k] |=
				(k < 2 ? x << (k < 2 ? 4 - 2 * k : 0) : x >> (k < 2 ? 0 : 2 * k - 4)) & 0x30303030;
	}
}

VEC void unpack_bytes(const uint8_t *p, vu *q)
{
	for (int k = 0; k < 8; k++)
		q[k] = vec_loadu(p + 64 * k) ^ 0x80808080;
}

/* Value i of the 16 six-bit scales and minima. */
VEC vf k_scale(const uint8_t *p, uint32_t i)
{
	vu v;
	if (i < 15)
		v = (vec_loadu(p + i / 5 * 64) >> (6 * (i % 5))) & 63;
	else
		v = (vec_loadu(p) >> 30) | ((vec_loadu(p + 64) >> 30) << 2) | ((vec_loadu(p + 128) >> 30) << 4);
	return vec_float((vi)v);
}

/* Block b (of 32 columns) of `blocks`. */
VEC void unpack(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t b, struct columns *c)
{
	if (is_super(type) && type != QUANT_Q6_K) {
		uint32_t sub = b % 8;
		size_t sub_bytes = type == QUANT_Q5_K ? 320 : 256;
		const uint8_t *p = group + b / 8 * (256 + 8 * sub_bytes);
		c->scale = vec_load_f16(p) * k_scale(p + 64, sub);
		c->min = -(vec_load_f16(p + 32) * k_scale(p + 64, 8 + sub));
		p += 256 + sub * sub_bytes;
		unpack_nibbles(p + sub_bytes - 256, c->q);
		if (type == QUANT_Q5_K)
			unpack_fifth(p, c->q);
		return;
	}
	if (type == QUANT_Q6_K) {
		uint32_t sub = b % 8, super = b / 8, supers = blocks / 8;
		const uint8_t *pair = group + (size_t)(super / 2) * 6720, *d = pair + 32 * (super & 1), *p;
		p = (super | 1) >= supers ? pair + 32 : pair + 64 + 3328 * (super & 1);
		vf scale = vec_load_f16(d);
		c->scale = scale * vec_load_i8(p + 32 * sub);
		c->scale_high = scale * vec_load_i8(p + 32 * sub + 16);
		p += 256 + 384 * sub;
		unpack_nibbles(p, c->q);
		unpack_pairs(p + 256, c->q);
		return;
	}
	size_t bytes = group_block_bytes(type);
	const uint8_t *d, *p;
	if (has_min(type)) {
		d = group + b * bytes;
		p = d + 64;
		c->min = vec_load_f16(d + 32);
	} else {
		const uint8_t *pair = group + (size_t)(b / 2) * (2 * bytes);
		d = pair + 32 * (b & 1);
		p = (b | 1) >= blocks ? pair + 32 : pair + 64 + (b & 1) * (bytes - 32);
	}
	c->scale = vec_load_f16(d);
	if (type == QUANT_Q8_0) {
		unpack_bytes(p, c->q);
	} else if (type == QUANT_Q5_0 || type == QUANT_Q5_1) {
		unpack_nibbles(p + 64, c->q);
		unpack_fifth(p, c->q);
	} else {
		unpack_nibbles(p, c->q);
	}
}

/* The dot product's start: the offset of the quants by the sum of the activations, from -8 * sum. */
VEC vi dot_start(uint32_t type, int32_t sum8)
{
	switch (type) {
	case QUANT_Q4_0:
		return vec_seti(sum8);
	case QUANT_Q5_0:
		return vec_seti(sum8) << 1;
	case QUANT_Q6_K:
		return vec_seti(sum8) << 2;
	case QUANT_Q8_0:
		return vec_seti(sum8) << 4;
	default:
		return vec_seti(0);
	}
}

VEC vi dot_step(uint32_t type, vi acc, vu w, const int8_t *x)
{
	int32_t four;
	memcpy(&four, x, 4);
	return type == QUANT_Q8_0 ? vec_dot_wide(acc, w, four) : vec_dot(acc, w, four);
}

/* ---- one token ---- */

/* The 32 columns' part of a sum, from the dot products of each 16. */
VEC vf add_block(uint32_t type, vf acc, vi low, vi high, vf scale, vf scale_high, vf min, const struct cpu_block *x)
{
	if (type == QUANT_Q6_K) {
		acc = vec_fma(vec_float(low) * vec_set(x->scale[0]), scale, acc);
		return vec_fma(vec_float(high) * vec_set(x->scale[1]), scale_high, acc);
	}
	vf sum = vec_fma(vec_float(high), vec_set(x->scale[1]), vec_float(low) * vec_set(x->scale[0]));
	acc = vec_fma(sum, scale, acc);
	return has_min(type) ? vec_fma(min, vec_set(x->scale_sum), acc) : acc;
}

/* A block by the activations of entry `at`. */
VEC vf matvec_plane(uint32_t type, const struct columns *c, const struct cpu_activations *x, size_t at, vf acc)
{
	const int8_t *q = x->q + 32 * at;
	const struct cpu_block *block = x->block + at;
	vi low = dot_start(type, block->sum8[0]), high = dot_start(type, block->sum8[1]);
#pragma GCC unroll 4
	for (int k = 0; k < 4; k++) {
		low = dot_step(type, low, c->q[k], q + 4 * k);
		high = dot_step(type, high, c->q[k + 4], q + 4 * k + 16);
	}
	vf scale_high = type == QUANT_Q6_K ? c->scale_high : c->scale, min = has_min(type) ? c->min : c->scale;
	return add_block(type, acc, low, high, c->scale, scale_high, min, block);
}

/* A chunk with second planes, or one that is short. */
VEC vf matvec_chunk(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t first, uint32_t count,
	const struct cpu_activations *x, vf acc)
{
	uint32_t fine = x->fine[first];
	for (uint32_t b = first; b < first + count; b++, fine >>= 1) {
		struct columns c;
		unpack(type, group, blocks, b, &c);
		acc = matvec_plane(type, &c, x, b, acc);
		if (fine & 1)
			acc = matvec_plane(type, &c, x, x->plane + b, acc);
	}
	return acc;
}

/* No software prefetch: one line of addresses is what the hardware's prefetcher is best at, and prefetches to the first
 * cache take its few miss buffers from it (measured: 10 to 30 % slower). */
VEC vf matvec_group(uint32_t type, const uint8_t *group, const struct cpu_activations *x)
{
	vf acc = vec_set(0);
	uint32_t blocks = x->cols / 32, first = 0;
	for (; first + CPU_CHUNK_BLOCKS <= blocks; first += CPU_CHUNK_BLOCKS) {
		if (__builtin_expect(x->fine[first] != 0, 0)) {
			acc = matvec_chunk(type, group, blocks, first, CPU_CHUNK_BLOCKS, x, acc);
			continue;
		}
#pragma GCC unroll 8
		for (uint32_t k = 0; k < CPU_CHUNK_BLOCKS; k++) {
			struct columns c;
			if (((first + k) | 1) >= blocks)
				__builtin_unreachable(); // whole pairs: unpack needs no test
			unpack(type, group, blocks, first + k, &c);
			acc = matvec_plane(type, &c, x, first + k, acc);
		}
	}
	if (is_super(type) || first == blocks)
		return acc;
	return matvec_chunk(type, group, blocks, first, blocks - first, x, acc);
}

VEC vf load_column(uint32_t type, const uint8_t *group, uint32_t c)
{
	if (type == QUANT_F32)
		return vec_load((const float *)(const void *)(group + 64 * (size_t)c));
	return type == QUANT_F16 ? vec_load_f16(group + 32 * (size_t)c) : vec_load_bf16(group + 32 * (size_t)c);
}

VEC vf matvec_float(uint32_t type, const uint8_t *group, const struct cpu_activations *x)
{
	vf acc = vec_set(0);
	for (uint32_t c = 0; c < x->cols; c++)
		acc = vec_fma(load_column(type, group, c), vec_set(x->x[c]), acc);
	return acc;
}

static void matvec(uint32_t type, const void *group, const struct cpu_activations *x, uint32_t rows, float *y)
{
	vf acc = vec_set(0);
	switch (type) {
#define TYPE(t, f)                                                                                                     \
	case t:                                                                                                        \
		acc = f(t, group, x);                                                                                  \
		break;
		TYPE(QUANT_F32, matvec_float)
		TYPE(QUANT_F16, matvec_float)
		TYPE(QUANT_BF16, matvec_float)
		TYPE(QUANT_Q4_0, matvec_group)
		TYPE(QUANT_Q4_1, matvec_group)
		TYPE(QUANT_Q5_0, matvec_group)
		TYPE(QUANT_Q5_1, matvec_group)
		TYPE(QUANT_Q8_0, matvec_group)
		TYPE(QUANT_Q4_K, matvec_group)
		TYPE(QUANT_Q5_K, matvec_group)
		TYPE(QUANT_Q6_K, matvec_group)
#undef TYPE
	}
	vec_store_first(y, acc, rows);
}

/* ---- several tokens ---- */

/* A chunk of columns of one group, unpacked. */
struct chunk {
	vu q[CPU_CHUNK_BLOCKS][8];
	vf scale[CPU_CHUNK_BLOCKS], scale_high[CPU_CHUNK_BLOCKS], min[CPU_CHUNK_BLOCKS];
};
_Static_assert(sizeof(struct chunk) <= CPU_SCRATCH_BYTES, "scratch");

VEC void chunk_fill(
	uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t first, uint32_t count, struct chunk *to)
{
	for (uint32_t i = 0; i < count; i++) {
		struct columns c;
		unpack(type, group, blocks, first + i, &c);
		for (int k = 0; k < 8; k++)
			to->q[i][k] = c.q[k];
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

VEC void tile_finish(uint32_t tokens, const struct tile_work *k, const vf *acc)
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
VEC void tile_half(
	uint32_t tokens, uint32_t kind, const vu *w, uint32_t half, const int8_t *q, const struct cpu_block *x, vi *dot)
{
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		dot[t] = dot_start(kind, x[t].sum8[half]);
#pragma GCC unroll 4
	for (uint32_t k = 4 * half; k < 4 * half + 4; k++) {
		vu column = w[k];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			dot[t] = dot_step(kind, dot[t], column, q + 32 * t + 4 * k);
	}
}

/* Block i of the chunk by the tile's tokens. */
VEC void tile_block(uint32_t tokens, uint32_t kind, const struct chunk *w, uint32_t i, const int8_t *q,
	const struct cpu_block *x, vf *acc)
{
	vi dot[VEC_TILE_TOKENS];
	vf sum[VEC_TILE_TOKENS];
	tile_half(tokens, kind, w->q[i], 0, q, x, dot);
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++) {
		sum[t] = vec_float(dot[t]) * vec_set(x[t].scale[0]);
		if (kind == QUANT_Q6_K)
			acc[t] = vec_fma(sum[t], w->scale[i], acc[t]);
	}
	tile_half(tokens, kind, w->q[i], 1, q, x, dot);
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++) {
		vf high = vec_float(dot[t]), scale = vec_set(x[t].scale[1]);
		sum[t] = kind == QUANT_Q6_K ? high * scale : vec_fma(high, scale, sum[t]);
		acc[t] = vec_fma(sum[t], kind == QUANT_Q6_K ? w->scale_high[i] : w->scale[i], acc[t]);
		if (has_min(kind))
			acc[t] = vec_fma(w->min[i], vec_set(x[t].scale_sum), acc[t]);
	}
}

/* kind is any type that has the same form. */
VEC void tile_chunk(uint32_t tokens, uint32_t kind, const struct tile_work *work)
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
VEC void all_tiles(
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

VEC void matmul_quant(uint32_t type, tile_function *const *tile, const struct matmul_work *m)
{
	struct chunk *w = m->scratch;
	uint32_t blocks = m->x->cols / 32;
	struct tile_work k = {.w = w, .x = m->x, .y_stride = m->y_stride};
	for (uint32_t first = 0; first < blocks; first += CPU_CHUNK_BLOCKS) {
		k.count = blocks - first < CPU_CHUNK_BLOCKS ? blocks - first : CPU_CHUNK_BLOCKS;
		k.first = first == 0;
		k.last = first + k.count == blocks;
		for (uint32_t g = 0; g < m->groups; g++) {
			chunk_fill(type, m->group + g * m->group_bytes, blocks, first, k.count, w);
			all_tiles(m, g, &k, first, tile);
		}
	}
}

#define FLOAT_CHUNK 256u

/* Columns first .. first + count, converted to w. */
VEC void float_tile(
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

VEC void matmul_float(uint32_t type, const struct matmul_work *m)
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

static void matmul(uint32_t type, const void *group, size_t group_bytes, uint32_t groups,
	const struct cpu_activations *x, uint32_t rows, float *y, size_t y_stride, void *scratch, float *sums)
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

/* ---- activations ---- */

VEC float max_lane(vf x)
{
	x = vec_max(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
	x = vec_max(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
	x = vec_max(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
	x = vec_max(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
	return x[0];
}

/* max / 127, within 2^-60 .. 2^60 so that products stay normal numbers. */
VEC float scale_of(float max)
{
	float scale = max * (1.0f / 127);
	scale = scale > 0x1p-60f ? scale : 0x1p-60f; // zero and NaN too
	return scale < 0x1p60f ? scale : 0x1p60f;
}

/* Sums of two vectors' lanes. */
VEC void sum_pair(vi a, vi b, int32_t *ret_a, int32_t *ret_b)
{
	vi low = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
	vi high = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
	vi s = low + high;
	s += __builtin_shufflevector(s, s, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
	s += __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
	s += __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
	*ret_a = s[0];
	*ret_b = s[8];
}

/* x (16) to q and its scale; what is left of x stays in *x. Returns q. */
VEC vi quantize_half(vf *x, float scale, int8_t *q)
{
	vi v = vec_int(*x * vec_set(1 / scale));
	vec_store_i8(q, v);
	*x = vec_fma(vec_float(v), vec_set(-scale), *x);
	return v;
}

VEC void quantize_block(vf *x, const float *scale, int8_t *q, struct cpu_block *to)
{
	int32_t sum[2];
	vi low = quantize_half(&x[0], scale[0], q), high = quantize_half(&x[1], scale[1], q + 16);
	sum_pair(low, high, &sum[0], &sum[1]);
	to->scale[0] = scale[0];
	to->scale[1] = scale[1];
	to->sum8[0] = (int32_t)(-8 * (uint32_t)sum[0]);
	to->sum8[1] = (int32_t)(-8 * (uint32_t)sum[1]);
	to->scale_sum = scale[0] * (float)sum[0] + scale[1] * (float)sum[1];
}

/* Both planes of a block; the second only where `limit` is exceeded. Returns whether it is. */
VEC bool quantize_planes(const float *x, float limit, const struct cpu_activations *to, size_t at)
{
	vf v[2] = {vec_load(x), vec_load(x + 16)};
	float max[2], scale[2];
	for (int h = 0; h < 2; h++) {
		max[h] = max_lane(vec_max(v[h], -v[h]));
		scale[h] = scale_of(max[h]);
	}
	quantize_block(v, scale, to->q + 32 * at, &to->block[at]);
	if (!(max[0] > limit) && !(max[1] > limit))
		return false;
	scale[0] *= 1.0f / 254;
	scale[1] *= 1.0f / 254;
	quantize_block(v, scale, to->q + 32 * (at + to->plane), &to->block[at + to->plane]);
	return true;
}

/* A block by all tokens of a tile. Returns whether one needs a second plane; the others get zeros, which change no
 * bit. */
VEC bool quantize_tokens(
	const float *x, const float *limit, uint32_t tokens, const struct cpu_activations *to, size_t at)
{
	bool fine[CPU_TILE_TOKENS], any = false;
	for (uint32_t t = 0; t < tokens; t++)
		any |= fine[t] = quantize_planes(x + (size_t)t * to->cols, limit[t], to, at + t);
	for (uint32_t t = 0; any && t < tokens; t++) {
		if (fine[t])
			continue;
		to->block[at + t + to->plane] = (struct cpu_block){0};
		memset(to->q + 32 * (at + t + to->plane), 0, 32);
	}
	return any;
}

VEC float square_mean(const float *x, uint32_t cols)
{
	vf sum = vec_set(0);
	for (uint32_t c = 0; c < cols; c += 16) {
		vf v = vec_load(x + c);
		sum = vec_fma(v, v, sum);
	}
	float l[16], total = 0;
	vec_store(l, sum);
	for (int i = 0; i < 16; i++)
		total += l[i];
	return total / (float)cols;
}

static void quantize(const struct cpu_activations *to, uint32_t tile)
{
	uint32_t blocks = to->cols / 32, t0 = to->tile[tile], tokens = to->tile[tile + 1] - t0;
	const float *x = to->x + (size_t)t0 * to->cols;
	float limit[CPU_TILE_TOKENS];
	for (uint32_t t = 0; t < tokens; t++)
		limit[t] = CPU_FINE_SIGMAS * sqrtf(square_mean(x + (size_t)t * to->cols, to->cols));
	for (uint32_t first = 0; first < blocks; first += CPU_CHUNK_BLOCKS) {
		uint32_t count = blocks - first < CPU_CHUNK_BLOCKS ? blocks - first : CPU_CHUNK_BLOCKS;
		size_t at = cpu_activations_at(to, first, count, t0);
		uint32_t fine = 0;
		for (uint32_t b = 0; b < count; b++, x += 32)
			fine |= (uint32_t)quantize_tokens(x, limit, tokens, to, at + (size_t)tokens * b) << b;
		to->fine[at] = (uint8_t)fine;
	}
}
