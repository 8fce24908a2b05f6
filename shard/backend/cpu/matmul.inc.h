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

#define PREFETCH_BYTES 4096

VEC vf matvec_block(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t b, const struct cpu_tile *x, vf acc)
{
	struct columns c;
	unpack(type, group, blocks, b, &c);
	const int8_t *q = x->q + 32 * (size_t)b;
	bool halves = type == QUANT_Q6_K;
	// Two sums, for latency: integers add up the same in any order.
	vi low = dot_start(type, halves ? x->sum8_low[b] : x->sum8[b]);
	vi high = halves ? dot_start(type, x->sum8_high[b]) : vec_seti(0);
#pragma GCC unroll 4
	for (int k = 0; k < 4; k++) {
		low = dot_step(type, low, c.q[k], q + 4 * k);
		high = dot_step(type, high, c.q[k + 4], q + 4 * k + 16);
	}
	vf scale = vec_set(x->scale[b]);
	if (halves) {
		acc = vec_fma(vec_float(low), c.scale * scale, acc);
		return vec_fma(vec_float(high), c.scale_high * scale, acc);
	}
	acc = vec_fma(vec_float(low + high), c.scale * scale, acc);
	if (has_min(type))
		acc = vec_fma(c.min, vec_set(x->scale_sum[b]), acc);
	return acc;
}

VEC void prefetch(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64)
		__builtin_prefetch(p + i, 0, 3);
}

VEC vf matvec_group(uint32_t type, const uint8_t *group, uint32_t cols, const struct cpu_tile *x)
{
	vf acc = vec_set(0);
	uint32_t blocks = cols / 32, b = 0;
	if (is_super(type)) {
		size_t bytes = type == QUANT_Q4_K ? 2304 : type == QUANT_Q5_K ? 2816 : 3360;
		for (; b < blocks; b += 8) {
			const uint8_t *p = group + b / 8 * bytes + PREFETCH_BYTES;
#pragma GCC unroll 8
			for (uint32_t k = 0; k < 8; k++) {
				prefetch(p + k * bytes / 8, bytes / 8);
				acc = matvec_block(type, group, blocks, b + k, x, acc);
			}
		}
		return acc;
	}
	size_t bytes = group_block_bytes(type);
	for (; b + 2 <= blocks; b += 2) {
		prefetch(group + b * bytes + PREFETCH_BYTES, 2 * bytes);
		acc = matvec_block(type, group, blocks, b, x, acc);
		acc = matvec_block(type, group, blocks, b + 1, x, acc);
	}
	if (b < blocks)
		acc = matvec_block(type, group, blocks, b, x, acc);
	return acc;
}

VEC vf load_column(uint32_t type, const uint8_t *group, uint32_t c)
{
	if (type == QUANT_F32)
		return vec_load((const float *)(const void *)(group + 64 * (size_t)c));
	return type == QUANT_F16 ? vec_load_f16(group + 32 * (size_t)c) : vec_load_bf16(group + 32 * (size_t)c);
}

VEC vf matvec_float(uint32_t type, const uint8_t *group, uint32_t cols, const struct cpu_tile *x)
{
	vf acc = vec_set(0);
	size_t bytes = type == QUANT_F32 ? 64 : 32;
	uint32_t c = 0;
	for (; c + 8 <= cols; c += 8) {
		prefetch(group + c * bytes + PREFETCH_BYTES, 8 * bytes);
#pragma GCC unroll 8
		for (uint32_t k = 0; k < 8; k++)
			acc = vec_fma(load_column(type, group, c + k), vec_set(x->x[c + k]), acc);
	}
	for (; c < cols; c++)
		acc = vec_fma(load_column(type, group, c), vec_set(x->x[c]), acc);
	return acc;
}

static void matvec(uint32_t type, const void *group, uint32_t cols, const struct cpu_tile *x, uint32_t rows, float *y)
{
	vf acc = vec_set(0);
	switch (type) {
#define TYPE(t, f)                                                                                                     \
	case t:                                                                                                        \
		acc = f(t, group, cols, x);                                                                            \
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
	vec_mask nonzero[CPU_CHUNK_BLOCKS];
	/* scale * (1 + f/16), less 64 * f in its bits, for an activation's code to be added. */
	vf table[CPU_CHUNK_BLOCKS][16];
};
_Static_assert(sizeof(struct chunk) <= CPU_SCRATCH_BYTES, "scratch");

VEC void chunk_fill(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t first, uint32_t count, bool table,
	struct chunk *to)
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
		if (!table)
			continue;
		to->nonzero[i] = vec_nonzero(c.scale);
		for (int f = 0; f < 16; f++)
			to->table[i][f] = (vf)((vi)(c.scale * vec_set(1 + (float)f / 16)) - vec_seti(64 * f));
	}
}

/* Weight scale by the activation's scale of block i, token t. */
VEC vf scale_of(bool table, const struct chunk *w, uint32_t i, vf scale, float x_scale, int32_t code)
{
	if (!table)
		return scale * vec_set(x_scale);
	vf entry;
	memcpy(&entry, (const char *)w->table[i] + (code & 1023), 64);
	return vec_add_bits(w->nonzero[i], entry, code);
}

/* `tokens` tokens by a chunk, added to y; kind is any type that has the same form. */
VEC void tile_chunk(uint32_t tokens, uint32_t kind, bool table, const struct chunk *w, uint32_t count,
	const struct cpu_tile *x, uint32_t first, uint32_t rows, float *y, size_t y_stride)
{
	vf acc[VEC_TILE_TOKENS];
	size_t at = (size_t)first * tokens;
	const int8_t *q = x->q + 32 * at;
	const int32_t *low = (kind == QUANT_Q6_K ? x->sum8_low : x->sum8) + at, *high = x->sum8_high + at;
	const int32_t *code = x->code + at;
	const float *scale = x->scale + at, *scale_sum = x->scale_sum + at;
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = first ? vec_load_first(y + t * y_stride, rows) : vec_set(0);
	for (uint32_t i = 0; i < count; i++) {
		vi dot[VEC_TILE_TOKENS];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			dot[t] = dot_start(kind, low[t]);
#pragma GCC unroll 8
		for (uint32_t k = 0; k < 8; k++) {
			if (kind == QUANT_Q6_K && k == 4) {
#pragma GCC unroll 12
				for (uint32_t t = 0; t < tokens; t++) {
					acc[t] = vec_fma(vec_float(dot[t]), w->scale[i] * vec_set(scale[t]), acc[t]);
					dot[t] = dot_start(kind, high[t]);
				}
			}
			vu column = w->q[i][k];
#pragma GCC unroll 12
			for (uint32_t t = 0; t < tokens; t++)
				dot[t] = dot_step(kind, dot[t], column, q + 32 * t + 4 * k);
		}
		vf last = kind == QUANT_Q6_K ? w->scale_high[i] : w->scale[i];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++) {
			acc[t] = vec_fma(vec_float(dot[t]), scale_of(table, w, i, last, scale[t], code[t]), acc[t]);
			if (has_min(kind))
				acc[t] = vec_fma(w->min[i], vec_set(scale_sum[t]), acc[t]);
		}
		q += 32 * tokens;
		low += tokens;
		high += tokens;
		code += tokens;
		scale += tokens;
		scale_sum += tokens;
	}
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		vec_store_first(y + t * y_stride, acc[t], rows);
}

typedef void tile_function(const struct chunk *w, uint32_t count, const struct cpu_tile *x, uint32_t first,
	uint32_t rows, float *y, size_t y_stride);

#define TILE(tokens, kind, table)                                                                                      \
	static void tile_##kind##_##table##_##tokens(const struct chunk *w, uint32_t count, const struct cpu_tile *x,  \
		uint32_t first, uint32_t rows, float *y, size_t y_stride)                                              \
	{                                                                                                              \
		tile_chunk(tokens, kind, table, w, count, x, first, rows, y, y_stride);                                \
	}
#define TILES_4(f, kind, table) f(1, kind, table) f(2, kind, table) f(3, kind, table) f(4, kind, table)
#define TILES_12(f, kind, table)                                                                                       \
	TILES_4(f, kind, table)                                                                                        \
	f(5, kind, table) f(6, kind, table) f(7, kind, table) f(8, kind, table) f(9, kind, table) f(10, kind, table)   \
		f(11, kind, table) f(12, kind, table)
#define TILE_ENTRY(tokens, kind, table) [tokens] = tile_##kind##_##table##_##tokens,
#if VEC_TILE_TOKENS == 12
#define EACH_TILE TILES_12
#else
#define EACH_TILE TILES_4
#endif
#define TILES(kind, table)                                                                                             \
	EACH_TILE(TILE, kind, table)                                                                                   \
	static tile_function *const tiles_##kind##_##table[] = {EACH_TILE(TILE_ENTRY, kind, table)};

TILES(QUANT_Q4_0, 0)
TILES(QUANT_Q4_0, 1)
TILES(QUANT_Q4_1, 0)
TILES(QUANT_Q4_1, 1)
TILES(QUANT_Q5_0, 0)
TILES(QUANT_Q5_0, 1)
TILES(QUANT_Q8_0, 0)
TILES(QUANT_Q8_0, 1)
TILES(QUANT_Q6_K, 0)

/* Tokens from which the table pays for its making. */
#define TABLE_TOKENS 48

VEC void matmul_quant(uint32_t type, tile_function *const *tile, bool table, const uint8_t *group, size_t group_bytes,
	uint32_t groups, uint32_t cols, const struct cpu_tile *tiles, uint32_t tile_count, uint32_t rows, float *y,
	size_t y_stride, struct chunk *w)
{
	uint32_t blocks = cols / 32;
	for (uint32_t first = 0; first < blocks; first += CPU_CHUNK_BLOCKS)
		for (uint32_t g = 0; g < groups; g++) {
			uint32_t count = blocks - first < CPU_CHUNK_BLOCKS ? blocks - first : CPU_CHUNK_BLOCKS;
			uint32_t group_rows = rows - g * 16 < 16 ? rows - g * 16 : 16;
			float *to = y + g * 16;
			chunk_fill(type, group + g * group_bytes, blocks, first, count, table, w);
			for (uint32_t i = 0; i < tile_count; i++) {
				tile[tiles[i].tokens](w, count, &tiles[i], first, group_rows, to, y_stride);
				to += tiles[i].tokens * y_stride;
			}
		}
}

#define FLOAT_CHUNK 256u

VEC void float_tile(uint32_t tokens, const vf *w, uint32_t count, const struct cpu_tile *x, uint32_t first,
	uint32_t rows, float *y, size_t y_stride)
{
	vf acc[VEC_TILE_TOKENS];
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = first ? vec_load_first(y + t * y_stride, rows) : vec_set(0);
	for (uint32_t c = 0; c < count; c++) {
		vf column = w[c];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++)
			acc[t] = vec_fma(column, vec_set(x->x[t * x->x_stride + first + c]), acc[t]);
	}
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		vec_store_first(y + t * y_stride, acc[t], rows);
}

static void float_tile_any(
	const vf *w, uint32_t count, const struct cpu_tile *x, uint32_t first, uint32_t rows, float *y, size_t y_stride)
{
	switch (x->tokens) {
#define FLOAT_TILE(tokens, kind, table)                                                                                \
	case tokens:                                                                                                   \
		float_tile(tokens, w, count, x, first, rows, y, y_stride);                                             \
		break;
		EACH_TILE(FLOAT_TILE, , )
	}
}

VEC void matmul_float(uint32_t type, const uint8_t *group, size_t group_bytes, uint32_t groups, uint32_t cols,
	const struct cpu_tile *tiles, uint32_t tile_count, uint32_t rows, float *y, size_t y_stride, vf *w)
{
	for (uint32_t first = 0; first < cols; first += FLOAT_CHUNK)
		for (uint32_t g = 0; g < groups; g++) {
			uint32_t count = cols - first < FLOAT_CHUNK ? cols - first : FLOAT_CHUNK;
			uint32_t group_rows = rows - g * 16 < 16 ? rows - g * 16 : 16;
			float *to = y + g * 16;
			for (uint32_t c = 0; c < count; c++)
				w[c] = load_column(type, group + g * group_bytes, first + c);
			for (uint32_t i = 0; i < tile_count; i++) {
				float_tile_any(w, count, &tiles[i], first, group_rows, to, y_stride);
				to += tiles[i].tokens * y_stride;
			}
		}
}

static void matmul(uint32_t type, const void *group, size_t group_bytes, uint32_t groups, uint32_t cols,
	const struct cpu_tile *tiles, uint32_t tile_count, uint32_t rows, float *y, size_t y_stride, void *scratch)
{
	uint32_t tokens = 0;
	for (uint32_t i = 0; i < tile_count; i++)
		tokens += tiles[i].tokens;
	bool table = tokens >= TABLE_TOKENS;
	switch (type) {
#define TYPE(t, tiles_of)                                                                                              \
	case t:                                                                                                        \
		matmul_quant(t, tiles_of, table, group, group_bytes, groups, cols, tiles, tile_count, rows, y,         \
			y_stride, scratch);                                                                            \
		break;
#define CHOOSE(kind) table ? tiles_##kind##_1 : tiles_##kind##_0
		TYPE(QUANT_Q4_0, CHOOSE(QUANT_Q4_0))
		TYPE(QUANT_Q5_0, CHOOSE(QUANT_Q5_0))
		TYPE(QUANT_Q8_0, CHOOSE(QUANT_Q8_0))
		TYPE(QUANT_Q4_1, CHOOSE(QUANT_Q4_1))
		TYPE(QUANT_Q5_1, CHOOSE(QUANT_Q4_1))
		TYPE(QUANT_Q4_K, CHOOSE(QUANT_Q4_1))
		TYPE(QUANT_Q5_K, CHOOSE(QUANT_Q4_1))
		TYPE(QUANT_Q6_K, tiles_QUANT_Q6_K_0)
#undef TYPE
#define TYPE(t)                                                                                                        \
	case t:                                                                                                        \
		matmul_float(t, group, group_bytes, groups, cols, tiles, tile_count, rows, y, y_stride, scratch);      \
		break;
		TYPE(QUANT_F32)
		TYPE(QUANT_F16)
		TYPE(QUANT_BF16)
#undef TYPE
	}
}

/* ---- activations ---- */

VEC int32_t sum_of(const int8_t *q, int n)
{
	int32_t sum = 0;
	for (int i = 0; i < n; i++)
		sum += q[i];
	return sum;
}

VEC float max_lane(vf x)
{
	float lanes[16], max;
	vec_store(lanes, x);
	max = lanes[0];
	for (int i = 1; i < 16; i++)
		max = lanes[i] > max ? lanes[i] : max;
	return max;
}

/* max / 127 rounded up to five significant bits, as a code: 2^-60 .. 2^60, so that products stay normal numbers. */
VEC int32_t scale_code(float max, float *ret_scale)
{
	float scale = max * (1.0f / 127);
	scale = scale > 0x1p-60f ? scale : 0x1p-60f; // zero and NaN too
	scale = scale < 0x1p60f ? scale : 0x1p60f;
	uint32_t bits;
	memcpy(&bits, &scale, 4);
	bits = (bits + 0x7ffff) & ~0x7ffffu;
	memcpy(ret_scale, &bits, 4);
	int32_t power = (int32_t)(bits >> 23) - 127, f = bits >> 19 & 15;
	return (int32_t)((uint32_t)power << 23) + 64 * f;
}

static void quantize(const float *x, uint32_t cols, uint32_t tokens, uint32_t t, const struct cpu_tile_store *to)
{
	for (uint32_t b = 0; b < cols / 32; b++, x += 32) {
		size_t at = (size_t)b * tokens + t;
		vf low = vec_load(x), high = vec_load(x + 16);
		vf max = vec_max(vec_max(low, -low), vec_max(high, -high));
		float scale;
		to->code[at] = scale_code(max_lane(max), &scale);
		vf inverse = vec_set(1 / scale);
		int8_t *q = to->q + 32 * at;
		vec_store_i8(q, vec_int(low * inverse));
		vec_store_i8(q + 16, vec_int(high * inverse));
		int32_t sum_low = sum_of(q, 16), sum_high = sum_of(q + 16, 16);
		to->sum8_low[at] = -8 * sum_low;
		to->sum8_high[at] = -8 * sum_high;
		to->sum8[at] = -8 * (sum_low + sum_high);
		to->scale[at] = scale;
		to->scale_sum[at] = scale * (float)(sum_low + sum_high);
	}
}
