// SPDX-License-Identifier: Apache-2.0
/*
 * R16: where every field of every type lies in a group of 16 rows.
 *
 * Notation: row r is 0..15; column c of a 32-column block is byte c % 4 of chunk c / 4 (8 chunks a block). A
 * "line" is 64 bytes: 16 lanes of 4 bytes, lane r for row r. "halves" is 16 float16, one per row (32 bytes).
 * A dot-product instruction multiplies a line of quants with one chunk of activations broadcast to all lanes.
 *
 *   F32            per column: 16 floats
 *   F16, BF16      per column: 16 halves
 *   nibbles        4 lines for 32 columns: byte (r, i) of line v holds chunk 2v in its low four bits and
 *                  chunk 2v+1 in its high four
 *   fifth bits     1 line for 32 columns: byte (r, i) holds the bit of chunk k at bit k
 *   upper pairs    2 lines for 32 columns (Q6_K's bits 4 and 5): byte (r, i) of line u holds chunk 4u+k at bits 2k, 2k+1
 *   Q4_1           per block: d halves, m halves, nibbles
 *   Q5_1           per block: d halves, m halves, fifth bits, nibbles
 *   Q4_0 Q5_0 Q8_0 blocks in pairs, so that lines stay aligned: d halves of both blocks, then their bodies.
 *                  An odd last block has its 32 bytes of d alone. Bodies: nibbles; fifth bits, nibbles; 8 lines
 *                  (int8, line k is chunk k).
 *   Q4_K, Q5_K     per 256 columns: d halves, dmin halves, 3 lines of scales, 8 x ([fifth bits,] nibbles).
 *                  With v[0..7] the 6-bit scales and v[8..15] the 6-bit minima of a row's 8 sub-blocks, word k
 *                  (lane r of line k) holds v[5k+i] at bits 6i..6i+5 for i = 0..4, and bits 2k, 2k+1 of v[15] at
 *                  bits 30, 31.
 *   Q6_K           in pairs as Q4_0. Body: 16 x 16 int8 scales (scale s of rows 0..15), then per 32 columns
 *                  nibbles and upper pairs (16 scales for 256 columns: scale s is for columns 16s..16s+15)
 *
 * Every bit of the source has its place, so the size is the same, and rows that do not exist are zero bytes.
 */
#include "shard/quant/quant.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#define ROWS QUANT_GROUP_ROWS

/* One row's block with its fields apart: the form between the two layouts and float. */
struct block {
	uint16_t d, m; // float16: scale, and minimum (Q4_1, Q5_1) or scale of minima (Q4_K, Q5_K)
	uint8_t scale[16]; // Q4_K, Q5_K: 8 scales, 8 minima; Q6_K: 16 int8
	uint8_t q[256]; // quants as stored: unsigned, for Q8_0 the bits of int8
};

struct scheme {
	uint32_t bits; // of a quant
	bool has_min; // m in the source
	bool paired; // d halves of two blocks share a line
	bool super; // 256 columns
};

static const struct scheme *scheme_of(uint32_t type)
{
	static const struct scheme schemes[] = {
		[QUANT_Q4_0] = {4, .paired = true},
		[QUANT_Q4_1] = {4, .has_min = true},
		[QUANT_Q5_0] = {5, .paired = true},
		[QUANT_Q5_1] = {5, .has_min = true},
		[QUANT_Q8_0] = {8, .paired = true},
		[QUANT_Q4_K] = {4, .has_min = true, .super = true},
		[QUANT_Q5_K] = {5, .has_min = true, .super = true},
		[QUANT_Q6_K] = {6, .paired = true, .super = true},
	};
	if (type >= sizeof(schemes) / sizeof(schemes[0]) || schemes[type].bits == 0)
		return NULL;
	return &schemes[type];
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static uint32_t get32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)v);
	put16(p + 2, (uint16_t)(v >> 16));
}

/* Source layout to fields: 32-column types. */
static void load_simple(const struct scheme *s, const uint8_t *p, struct block *b)
{
	b->d = get16(p);
	p += 2;
	if (s->has_min) {
		b->m = get16(p);
		p += 2;
	}
	if (s->bits == 8) {
		memcpy(b->q, p, 32);
		return;
	}
	uint32_t high = 0;
	if (s->bits == 5) {
		high = get32(p);
		p += 4;
	}
	for (uint32_t i = 0; i < 16; i++) {
		b->q[i] = (uint8_t)((p[i] & 15) | (high >> i & 1) << 4);
		b->q[i + 16] = (uint8_t)((p[i] >> 4) | (high >> (i + 16) & 1) << 4);
	}
}

/* Q4_K, Q5_K. */
static void load_k45(const struct scheme *s, const uint8_t *p, struct block *b)
{
	b->d = get16(p);
	b->m = get16(p + 2);
	const uint8_t *sc = p + 4;
	for (uint32_t i = 0; i < 4; i++) {
		b->scale[i] = sc[i] & 63;
		b->scale[8 + i] = sc[4 + i] & 63;
		b->scale[4 + i] = (uint8_t)((sc[8 + i] & 15) | (sc[i] >> 6) << 4);
		b->scale[12 + i] = (uint8_t)((sc[8 + i] >> 4) | (sc[4 + i] >> 6) << 4);
	}
	const uint8_t *high = p + 16, *low = s->bits == 5 ? p + 48 : p + 16;
	for (uint32_t sub = 0; sub < 8; sub++)
		for (uint32_t i = 0; i < 32; i++) {
			uint8_t v = low[sub / 2 * 32 + i];
			v = sub & 1 ? v >> 4 : v & 15;
			if (s->bits == 5)
				v |= (uint8_t)((high[i] >> sub & 1) << 4);
			b->q[sub * 32 + i] = v;
		}
}

static void load_k6(const uint8_t *p, struct block *b)
{
	memcpy(b->scale, p + 192, 16);
	b->d = get16(p + 208);
	for (uint32_t half = 0; half < 2; half++) {
		const uint8_t *low = p + 64 * half, *high = p + 128 + 32 * half;
		uint8_t *q = b->q + 128 * half;
		for (uint32_t i = 0; i < 32; i++) {
			q[i] = (uint8_t)((low[i] & 15) | (high[i] & 3) << 4);
			q[i + 32] = (uint8_t)((low[i + 32] & 15) | (high[i] >> 2 & 3) << 4);
			q[i + 64] = (uint8_t)((low[i] >> 4) | (high[i] >> 4 & 3) << 4);
			q[i + 96] = (uint8_t)((low[i + 32] >> 4) | (high[i] >> 6) << 4);
		}
	}
}

static void load_block(uint32_t type, const struct scheme *s, const uint8_t *p, struct block *b)
{
	if (type == QUANT_Q6_K)
		load_k6(p, b);
	else if (s->super)
		load_k45(s, p, b);
	else
		load_simple(s, p, b);
}

/* The meaning of each format. */
static void block_to_float(uint32_t type, const struct block *b, float *out)
{
	float d = quant_f16_to_f32(b->d), m = quant_f16_to_f32(b->m);
	switch (type) {
	case QUANT_Q4_0:
	case QUANT_Q5_0: {
		int offset = type == QUANT_Q4_0 ? 8 : 16;
		for (uint32_t i = 0; i < 32; i++)
			out[i] = (float)(b->q[i] - offset) * d;
		break;
	}
	case QUANT_Q4_1:
	case QUANT_Q5_1:
		for (uint32_t i = 0; i < 32; i++)
			out[i] = (float)b->q[i] * d + m;
		break;
	case QUANT_Q8_0:
		for (uint32_t i = 0; i < 32; i++)
			out[i] = (float)(int8_t)b->q[i] * d;
		break;
	case QUANT_Q4_K:
	case QUANT_Q5_K:
		for (uint32_t sub = 0; sub < 8; sub++) {
			float scale = d * (float)b->scale[sub], min = m * (float)b->scale[8 + sub];
			for (uint32_t i = sub * 32; i < sub * 32 + 32; i++)
				out[i] = scale * (float)b->q[i] - min;
		}
		break;
	case QUANT_Q6_K:
		for (uint32_t sub = 0; sub < 16; sub++) {
			float scale = d * (float)(int8_t)b->scale[sub];
			for (uint32_t i = sub * 16; i < sub * 16 + 16; i++)
				out[i] = scale * (float)((int)b->q[i] - 32);
		}
		break;
	}
}

/* Where block b of a group's row has its d halves and its body. */
struct place {
	size_t d, body;
};

static struct place place_of(const struct scheme *s, uint32_t block_bytes, uint32_t blocks, uint32_t b)
{
	size_t size = (size_t)ROWS * block_bytes;
	if (!s->paired)
		return (struct place){b * size, b * size + 64};
	size_t pair = b / 2 * (2 * size), body = size - 32;
	if ((b | 1) >= blocks) // the odd last one
		return (struct place){pair, pair + 32};
	return (struct place){pair + (b & 1) * 32, pair + 64 + (b & 1) * body};
}

/* 32 columns of one row, `at` its first byte (lane r of the first line). Both return the bytes of a group that they
 * cover. */
static size_t scatter_quants(uint32_t bits, const uint8_t *q, uint8_t *at)
{
	uint8_t *p = at;
	if (bits == 8) {
		for (uint32_t c = 0; c < 32; c++)
			p[c / 4 * 64 + c % 4] = q[c];
		return 512;
	}
	if (bits == 5) {
		for (uint32_t i = 0; i < 4; i++) {
			uint32_t v = 0;
			for (uint32_t k = 0; k < 8; k++)
				v |= (uint32_t)(q[4 * k + i] >> 4) << k;
			p[i] = (uint8_t)v;
		}
		p += 64;
	}
	for (uint32_t v = 0; v < 4; v++, p += 64)
		for (uint32_t i = 0; i < 4; i++)
			p[i] = (uint8_t)((q[8 * v + i] & 15) | (q[8 * v + 4 + i] & 15) << 4);
	if (bits == 6)
		for (uint32_t u = 0; u < 2; u++, p += 64)
			for (uint32_t i = 0; i < 4; i++) {
				const uint8_t *s = q + 16 * u + i;
				p[i] = (uint8_t)(s[0] >> 4 | (s[4] >> 4) << 2 | (s[8] >> 4) << 4 | (s[12] >> 4) << 6);
			}
	return (size_t)(p - at);
}

static size_t gather_quants(uint32_t bits, const uint8_t *at, uint8_t *q)
{
	const uint8_t *p = at, *high = at;
	if (bits == 8) {
		for (uint32_t c = 0; c < 32; c++)
			q[c] = p[c / 4 * 64 + c % 4];
		return 512;
	}
	if (bits == 5)
		p += 64;
	for (uint32_t v = 0; v < 4; v++, p += 64)
		for (uint32_t i = 0; i < 4; i++) {
			q[8 * v + i] = p[i] & 15;
			q[8 * v + 4 + i] = p[i] >> 4;
		}
	if (bits == 5)
		for (uint32_t c = 0; c < 32; c++)
			q[c] |= (uint8_t)((high[c % 4] >> (c / 4) & 1) << 4);
	if (bits == 6) {
		for (uint32_t c = 0; c < 32; c++)
			q[c] |= (uint8_t)((p[c / 16 * 64 + c % 4] >> (c / 4 % 4 * 2) & 3) << 4);
		p += 128;
	}
	return (size_t)(p - at);
}

static void scatter_block(
	uint32_t type, const struct scheme *s, const struct block *b, uint32_t row, struct place at, uint8_t *group)
{
	put16(group + at.d + 2 * row, b->d);
	if (s->has_min)
		put16(group + at.d + 32 + 2 * row, b->m);
	uint8_t *p = group + at.body;
	if (type == QUANT_Q6_K) {
		for (uint32_t k = 0; k < 16; k++)
			p[16 * k + row] = b->scale[k];
		p += 256;
	} else if (s->super) {
		for (uint32_t k = 0; k < 3; k++, p += 64) {
			uint32_t word = (uint32_t)(b->scale[15] >> 2 * k & 3) << 30;
			for (uint32_t i = 0; i < 5; i++)
				word |= (uint32_t)b->scale[5 * k + i] << 6 * i;
			put32(p + 4 * row, word);
		}
	}
	for (uint32_t c = 0; c < (s->super ? 256 : 32); c += 32)
		p += scatter_quants(s->bits, b->q + c, p + 4 * row);
}

static void gather_block(
	uint32_t type, const struct scheme *s, const uint8_t *group, uint32_t row, struct place at, struct block *b)
{
	b->d = get16(group + at.d + 2 * row);
	if (s->has_min)
		b->m = get16(group + at.d + 32 + 2 * row);
	const uint8_t *p = group + at.body;
	if (type == QUANT_Q6_K) {
		for (uint32_t k = 0; k < 16; k++)
			b->scale[k] = p[16 * k + row];
		p += 256;
	} else if (s->super) {
		b->scale[15] = 0;
		for (uint32_t k = 0; k < 3; k++, p += 64) {
			uint32_t word = get32(p + 4 * row);
			for (uint32_t i = 0; i < 5; i++)
				b->scale[5 * k + i] = word >> 6 * i & 63;
			b->scale[15] |= (uint8_t)(word >> 30 << 2 * k);
		}
	}
	for (uint32_t c = 0; c < (s->super ? 256 : 32); c += 32)
		p += gather_quants(s->bits, p + 4 * row, b->q + c);
}

static void plain_to_float(uint32_t type, const uint8_t *p, size_t stride, uint32_t cols, float *out)
{
	for (uint32_t c = 0; c < cols; c++, p += stride) {
		if (type == QUANT_F32) {
			uint32_t bits = get32(p);
			memcpy(out + c, &bits, 4);
		} else {
			out[c] = type == QUANT_F16 ? quant_f16_to_f32(get16(p)) : quant_bf16_to_f32(get16(p));
		}
	}
}

int quant_dequantize_row(uint32_t type, const void *row, uint32_t cols, float *out)
{
	const struct quant_traits *t = quant_traits(type);
	if (!t)
		return -ENOTSUP;
	if (cols % t->block_cols)
		return -EINVAL;
	const struct scheme *s = scheme_of(type);
	if (!s) {
		plain_to_float(type, row, t->block_bytes, cols, out);
		return 0;
	}
	struct block b = {0};
	const uint8_t *p = row;
	for (uint32_t c = 0; c < cols; c += t->block_cols, p += t->block_bytes) {
		load_block(type, s, p, &b);
		block_to_float(type, &b, out + c);
	}
	return 0;
}

int quant_dequantize_r16(uint32_t type, const void *group, uint32_t row, uint32_t cols, float *out)
{
	const struct quant_traits *t = quant_traits(type);
	if (!t)
		return -ENOTSUP;
	if (cols % t->block_cols || row >= ROWS)
		return -EINVAL;
	const struct scheme *s = scheme_of(type);
	if (!s) {
		plain_to_float(
			type, (const uint8_t *)group + row * t->block_bytes, (size_t)ROWS * t->block_bytes, cols, out);
		return 0;
	}
	struct block b = {0};
	uint32_t blocks = cols / t->block_cols;
	for (uint32_t i = 0; i < blocks; i++) {
		gather_block(type, s, group, row, place_of(s, t->block_bytes, blocks, i), &b);
		block_to_float(type, &b, out + (size_t)i * t->block_cols);
	}
	return 0;
}

int quant_pack_r16(uint32_t type, const void *source, uint32_t rows, uint32_t cols, void *group)
{
	const struct quant_traits *t = quant_traits(type);
	if (!t)
		return -ENOTSUP;
	if (cols % t->block_cols || rows == 0 || rows > ROWS)
		return -EINVAL;
	const struct scheme *s = scheme_of(type);
	uint32_t blocks = cols / t->block_cols;
	size_t row_bytes = (size_t)blocks * t->block_bytes;
	uint8_t *out = group;
	if (rows < ROWS)
		memset(out, 0, ROWS * row_bytes);
	struct block b = {0};
	for (uint32_t i = 0; i < blocks; i++) {
		const uint8_t *p = (const uint8_t *)source + (size_t)i * t->block_bytes;
		if (!s) {
			for (uint32_t r = 0; r < rows; r++, p += row_bytes)
				memcpy(out + ((size_t)i * ROWS + r) * t->block_bytes, p, t->block_bytes);
			continue;
		}
		struct place at = place_of(s, t->block_bytes, blocks, i);
		for (uint32_t r = 0; r < rows; r++, p += row_bytes) {
			load_block(type, s, p, &b);
			scatter_block(type, s, &b, r, at, out);
		}
	}
	return 0;
}
