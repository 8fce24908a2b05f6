/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives in plain C over the compiler's vector types: the definition that the other vec_*.h follow.
 * Here a fused multiply-add is a multiplication and an addition, each rounded.
 */
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "shard/quant/quant.h"

#define VEC_NAME generic
#define VEC_TILE_TOKENS 2 // tokens whose sums fit the registers
#define VEC_QUERIES 2
#define VEC_TEXT "generic"

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef vi vec_mask; // all bits of a lane or none

#define VEC static inline __attribute__((always_inline))

VEC vf vec_set(float x)
{
	return x - (vf){0};
}

VEC vi vec_seti(int32_t x)
{
	return x - (vi){0};
}

VEC vf vec_load(const float *p)
{
	vf x;
	memcpy(&x, p, 64);
	return x;
}

VEC void vec_store(float *p, vf x)
{
	memcpy(p, &x, 64);
}

/* The first n lanes; the others zero, and not touched in memory. 1 <= n <= 16. */
VEC vf vec_load_first(const float *p, uint32_t n)
{
	vf x = {0};
	memcpy(&x, p, 4 * (size_t)n);
	return x;
}

VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	memcpy(p, &x, 4 * (size_t)n);
}

VEC vec_mask vec_first(uint32_t n)
{
	return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < vec_seti((int32_t)n);
}

VEC vu vec_loadu(const void *p)
{
	vu x;
	memcpy(&x, p, 64);
	return x;
}

VEC vf vec_load_f16(const void *p)
{
	uint16_t h[16];
	vf x;
	memcpy(h, p, 32);
	for (int i = 0; i < 16; i++)
		x[i] = quant_f16_to_f32(h[i]);
	return x;
}

VEC vf vec_load_bf16(const void *p)
{
	uint16_t h[16];
	vu x;
	memcpy(h, p, 32);
	for (int i = 0; i < 16; i++)
		x[i] = (uint32_t)h[i] << 16;
	return (vf)x;
}

VEC vf vec_load_i8(const void *p)
{
	int8_t b[16];
	vf x;
	memcpy(b, p, 16);
	for (int i = 0; i < 16; i++)
		x[i] = b[i];
	return x;
}

/* a * b + c, fused where the hardware can. */
VEC vf vec_fma(vf a, vf b, vf c)
{
	vf product = a * b;
	return product + c;
}

VEC vf vec_max(vf a, vf b)
{
	vi greater = a > b;
	return (vf)(((vi)a & greater) | ((vi)b & ~greater));
}

/* To the nearest integer, ties to even. |a| < 2^22. */
VEC vf vec_round(vf a)
{
	vf magic = vec_set(0x1.8p23f), sum = a + magic;
	return sum - magic;
}

VEC vf vec_float(vi a)
{
	return __builtin_convertvector(a, vf);
}

VEC vi vec_int(vf a)
{
	return __builtin_convertvector(vec_round(a), vi);
}

/* Lane by lane: acc + the four unsigned bytes of w by the four signed bytes of x. Bytes of w up to 63; _wide: any. */
VEC vi vec_dot_wide(vi acc, vu w, int32_t x)
{
	for (int i = 0; i < 4; i++)
		acc += (vi)((w >> (8 * i)) & 255) * (int32_t)(int8_t)((uint32_t)x >> (8 * i));
	return acc;
}

#define vec_dot vec_dot_wide

VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return (vf)(((vi)a & keep) | ((vi)b & ~keep));
}

VEC vec_mask vec_less(vf a, vf b)
{
	return a < b;
}

/* With saturation. */
VEC void vec_store_i8(int8_t *p, vi a)
{
	for (int i = 0; i < 16; i++)
		p[i] = (int8_t)(a[i] > 127 ? 127 : a[i] < -128 ? -128 : a[i]);
}
