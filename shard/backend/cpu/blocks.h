/* SPDX-License-Identifier: Apache-2.0
 * What the matrix kernels share: the blocks of a group (their places: quant/r16.c) and their part of a sum (order of
 * operations: kernels.h). Functions with a constant `type` or `count` argument are templates: they are inlined where it
 * is known.
 */
#pragma once

#include <stdbool.h>

#include "shard/backend/cpu/vec.h"

/* 32 columns of a group. */
struct columns {
	const uint8_t *p; // of the quants
	vf scale, scale_high; // scale_high: of the upper 16 columns of Q6_K
	vf min;
};

static VEC bool has_min(uint32_t type)
{
	return type == QUANT_Q4_1 || type == QUANT_Q5_1 || type == QUANT_Q4_K || type == QUANT_Q5_K;
}

static VEC bool is_float(uint32_t type)
{
	return type == QUANT_F32 || type == QUANT_F16 || type == QUANT_BF16;
}

static VEC bool is_super(uint32_t type)
{
	return type == QUANT_Q4_K || type == QUANT_Q5_K || type == QUANT_Q6_K;
}

/* Bytes of a group for `blocks` 32-column blocks. */
static VEC size_t group_block_bytes(uint32_t type)
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

/* Bits of a quant as the dot product needs to know it. */
static VEC uint32_t dot_bits(uint32_t type)
{
	return type == QUANT_Q8_0 ? 8 : type == QUANT_Q6_K ? 6 : 5;
}

/* Value i of the 16 six-bit scales and minima. */
static VEC vf k_scale(const uint8_t *p, uint32_t i)
{
	if (i < 15)
		return vec_float(vec_and(vec_shr(vec_loadu(p + i / 5 * 64), (int)(6 * (i % 5))), 63));
	vu v = vec_shr(vec_loadu(p), 30);
	v = vec_or(v, vec_shl(vec_shr(vec_loadu(p + 64), 30), 2));
	return vec_float(vec_or(v, vec_shl(vec_shr(vec_loadu(p + 128), 30), 4)));
}

/* Block b (of 32 columns) of `blocks`. */
static VEC void columns_at(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t b, struct columns *c)
{
	if (is_super(type) && type != QUANT_Q6_K) {
		uint32_t sub = b % 8;
		size_t sub_bytes = type == QUANT_Q5_K ? 320 : 256;
		const uint8_t *p = group + b / 8 * (256 + 8 * sub_bytes);
		c->scale = vec_mul(vec_load_f16(p), k_scale(p + 64, sub));
		c->min = vec_neg(vec_mul(vec_load_f16(p + 32), k_scale(p + 64, 8 + sub)));
		c->p = p + 256 + sub * sub_bytes;
		return;
	}
	if (type == QUANT_Q6_K) {
		uint32_t sub = b % 8, super = b / 8, supers = blocks / 8;
		const uint8_t *pair = group + (size_t)(super / 2) * 6720, *d = pair + 32 * (super & 1), *p;
		p = (super | 1) >= supers ? pair + 32 : pair + 64 + 3328 * (super & 1);
		vf scale = vec_load_f16(d);
		c->scale = vec_mul(scale, vec_load_i8(p + 32 * sub));
		c->scale_high = vec_mul(scale, vec_load_i8(p + 32 * sub + 16));
		c->p = p + 256 + 384 * sub;
		return;
	}
	size_t bytes = group_block_bytes(type);
	const uint8_t *d;
	if (has_min(type)) {
		d = group + b * bytes;
		c->p = d + 64;
		c->min = vec_load_f16(d + 32);
	} else {
		const uint8_t *pair = group + (size_t)(b / 2) * (2 * bytes);
		d = pair + 32 * (b & 1);
		c->p = (b | 1) >= blocks ? pair + 32 : pair + 64 + (b & 1) * (bytes - 32);
	}
	c->scale = vec_load_f16(d);
}

/* x shifted so that its bit `from` comes to bit `to`. */
static VEC vu shift(vu x, int from, int to)
{
	return from < to ? vec_shl(x, to - from) : vec_shr(x, from - to);
}

/* Chunks 4 * half .. 4 * half + 3 of a block, each a line of unsigned bytes. */
static VEC void unpack_half(uint32_t type, const uint8_t *p, int half, vu *w)
{
	if (type == QUANT_Q8_0) {
#pragma GCC unroll 4
		for (int k = 0; k < 4; k++)
			w[k] = vec_bytes(vec_loadu(p + 64 * (4 * half + k)));
		return;
	}
	bool fifth = type == QUANT_Q5_0 || type == QUANT_Q5_1 || type == QUANT_Q5_K;
	const uint8_t *nibbles = p + (fifth ? 64 : 0) + 128 * half;
#pragma GCC unroll 2
	for (int v = 0; v < 2; v++) {
		vu x = vec_loadu(nibbles + 64 * v);
		w[2 * v] = vec_and(x, 0x0f0f0f0f);
		w[2 * v + 1] = vec_and(vec_shr(x, 4), 0x0f0f0f0f);
	}
	if (fifth) {
		vu x = vec_loadu(p);
#pragma GCC unroll 4
		for (int k = 0; k < 4; k++)
			w[k] = vec_or(w[k], vec_and(shift(x, 4 * half + k, 4), 0x10101010));
	}
	if (type == QUANT_Q6_K) {
		vu x = vec_loadu(p + 256 + 64 * half);
#pragma GCC unroll 4
		for (int k = 0; k < 4; k++)
			w[k] = vec_or(w[k], vec_and(shift(x, 2 * k, 4), 0x30303030));
	}
}

/* The dot product's start: the offset of the quants by the sum of the activations, from -8 * sum. */
static VEC vi dot_start(uint32_t type, int32_t sum8)
{
	switch (type) {
	case QUANT_Q4_0:
		return vec_seti(sum8);
	case QUANT_Q5_0:
		return vec_shl(vec_seti(sum8), 1);
	case QUANT_Q6_K:
		return vec_shl(vec_seti(sum8), 2);
	case QUANT_Q8_0:
		return VEC_BYTES_OFFSET ? vec_shl(vec_seti(sum8), 4) : vec_seti(0);
	default:
		return vec_seti(0);
	}
}

/* A block's part of a sum: from the dot product of its lower 16 columns, which Q6_K adds at once, ... */
static VEC vf add_low(uint32_t type, vf acc, vi dot, vf scale, const struct cpu_block *x, vf *ret_sum)
{
	*ret_sum = vec_mul(vec_float(dot), vec_set(x->scale[0]));
	return type == QUANT_Q6_K ? vec_fma(*ret_sum, scale, acc) : acc;
}

/* ... and of the upper 16; minima come after it. */
static VEC vf add_high(uint32_t type, vf acc, vi dot, vf scale, const struct cpu_block *x, vf sum)
{
	vf high = vec_float(dot), x_scale = vec_set(x->scale[1]);
	return vec_fma(type == QUANT_Q6_K ? vec_mul(high, x_scale) : vec_fma(high, x_scale, sum), scale, acc);
}

static VEC vf load_column(uint32_t type, const uint8_t *group, uint32_t c)
{
	if (type == QUANT_F32)
		return vec_load((const float *)(const void *)(group + 64 * (size_t)c));
	return type == QUANT_F16 ? vec_load_f16(group + 32 * (size_t)c) : vec_load_bf16(group + 32 * (size_t)c);
}
