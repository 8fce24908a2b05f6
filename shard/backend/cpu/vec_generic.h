/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives in plain C over the compiler's vector types: the definition that the other vec_*.h follow.
 * Here a fused multiply-add is a multiplication and an addition, each rounded.
 * Four vectors of 16 bytes, which every CPU has: gcc keeps larger ones in memory.
 */
#pragma once

#include <stdint.h>
#include <string.h>

#define VEC_SYMBOL(name) cpu_generic_##name
#define VEC_TEXT "generic"
#define VEC_TILE_TOKENS 2 // tokens whose sums fit the registers
#define VEC_QUERIES 2
#define VEC_UNROLL_BLOCKS _Pragma("GCC unroll 1")

typedef float vec_quarter_f __attribute__((vector_size(16)));
typedef int32_t vec_quarter_i __attribute__((vector_size(16)));
typedef uint32_t vec_quarter_u __attribute__((vector_size(16)));
typedef int16_t vec_quarter_s __attribute__((vector_size(16)));
typedef uint16_t vec_four_u16 __attribute__((vector_size(8)));

typedef struct {
	vec_quarter_f p[4];
} vf;
typedef struct {
	vec_quarter_i p[4];
} vi;
typedef vi vu;
typedef vi vec_mask; // all bits of a lane or none

#ifdef VEC_SMALL // quick to compile
#define VEC inline
#else
#define VEC inline __attribute__((always_inline))
#endif

/* The vector whose quarter h is `expression`. */
#define VEC_EACH(type, expression)                                                                                     \
	({                                                                                                             \
		type r_;                                                                                               \
		_Pragma("GCC unroll 4") for (int h = 0; h < 4; h++) r_.p[h] = (expression);                            \
		r_;                                                                                                    \
	})

static VEC vf vec_set(float x)
{
	return VEC_EACH(vf, x - (vec_quarter_f){0});
}

static VEC vi vec_seti(int32_t x)
{
	return VEC_EACH(vi, x - (vec_quarter_i){0});
}

static VEC vf vec_load(const float *p)
{
	vf x;
	memcpy(&x, p, 64);
	return x;
}

static VEC void vec_store(float *p, vf x)
{
	memcpy(p, &x, 64);
}

/* The first n lanes; the others zero, and not touched in memory. 1 <= n <= 16. */
static VEC vf vec_load_first(const float *p, uint32_t n)
{
	vf x = vec_set(0);
	memcpy(&x, p, 4 * (size_t)n);
	return x;
}

static VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	memcpy(p, &x, 4 * (size_t)n);
}

/* Lanes low .. high. */
static VEC vec_mask vec_range(uint32_t low, uint32_t high)
{
	vec_quarter_i lanes = {0, 1, 2, 3}, first = (int32_t)low - (vec_quarter_i){0},
		      last = (int32_t)high - (vec_quarter_i){0};
	return VEC_EACH(vi, (lanes + 4 * h >= first) & (lanes + 4 * h <= last));
}

static VEC vu vec_loadu(const void *p)
{
	vu x;
	memcpy(&x, p, 64);
	return x;
}

/* Four 16-bit numbers, without sign. */
static VEC vec_quarter_u vec_load_u16(const void *p)
{
	vec_four_u16 x;
	memcpy(&x, p, 8);
	return __builtin_convertvector(x, vec_quarter_u);
}

/* The bits of a half as those of a float are the number by 2^-112, but for infinities and NaN. */
static VEC vec_quarter_f vec_f16_quarter(const void *p)
{
	vec_quarter_u x = vec_load_u16(p), bits = x << 13 & 0x0fffe000, sign = x << 16 & 0x80000000;
	vec_quarter_f scaled = (vec_quarter_f)bits * 0x1p112f;
	vec_quarter_u special = (vec_quarter_u)(bits >= 0x0f800000) & (bits | 0x7f800000);
	return (vec_quarter_f)((vec_quarter_u)scaled | special | sign);
}

static VEC vf vec_load_f16(const void *p)
{
	return VEC_EACH(vf, vec_f16_quarter((const char *)p + 8 * h));
}

static VEC vf vec_load_bf16(const void *p)
{
	return VEC_EACH(vf, (vec_quarter_f)(vec_load_u16((const char *)p + 8 * h) << 16));
}

static VEC vf vec_load_i8(const void *p)
{
	int8_t b[16];
	float x[16];
	memcpy(b, p, 16);
	for (int i = 0; i < 16; i++)
		x[i] = b[i];
	return vec_load(x);
}

static VEC vf vec_neg(vf a)
{
	return VEC_EACH(vf, -a.p[h]);
}

static VEC vf vec_add(vf a, vf b)
{
	return VEC_EACH(vf, a.p[h] + b.p[h]);
}

static VEC vf vec_sub(vf a, vf b)
{
	return VEC_EACH(vf, a.p[h] - b.p[h]);
}

static VEC vf vec_mul(vf a, vf b)
{
	return VEC_EACH(vf, a.p[h] * b.p[h]);
}

static VEC vf vec_div(vf a, vf b)
{
	return VEC_EACH(vf, a.p[h] / b.p[h]);
}

/* a * b + c, fused where the hardware can. */
static VEC vf vec_fma(vf a, vf b, vf c)
{
	return vec_add(vec_mul(a, b), c);
}

static VEC vf vec_max(vf a, vf b)
{
	return VEC_EACH(vf, (vec_quarter_f)(((vec_quarter_i)a.p[h] & (a.p[h] > b.p[h])) |
					    ((vec_quarter_i)b.p[h] & ~(a.p[h] > b.p[h]))));
}

/* To the nearest integer, ties to even. |a| < 2^22. */
static VEC vf vec_round(vf a)
{
	vf magic = vec_set(0x1.8p23f);
	return vec_sub(vec_add(a, magic), magic);
}

static VEC vf vec_float(vi a)
{
	return VEC_EACH(vf, __builtin_convertvector(a.p[h], vec_quarter_f));
}

static VEC vi vec_int(vf a)
{
	vf rounded = vec_round(a);
	return VEC_EACH(vi, __builtin_convertvector(rounded.p[h], vec_quarter_i));
}

/* 2^n, -126 <= n <= 127. */
static VEC vf vec_power2(vi n)
{
	return VEC_EACH(vf, (vec_quarter_f)((n.p[h] + 127) << 23));
}

static VEC vu vec_and(vu a, uint32_t b)
{
	return VEC_EACH(vu, a.p[h] & (int32_t)b);
}

static VEC vu vec_or(vu a, vu b)
{
	return VEC_EACH(vu, a.p[h] | b.p[h]);
}

/* Zeros come in. */
static VEC vu vec_shr(vu a, int n)
{
	return VEC_EACH(vu, (vec_quarter_i)((vec_quarter_u)a.p[h] >> n));
}

static VEC vu vec_shl(vu a, int n)
{
	return VEC_EACH(vu, (vec_quarter_i)((vec_quarter_u)a.p[h] << n));
}

/* ---- dot products of 16 columns, w[4], by 16 activations; exact ---- */

/* int8 lanes in the form that vec_dot wants with 8 bits: with VEC_BYTES_OFFSET added. */
#define VEC_BYTES_OFFSET 128

static VEC vu vec_bytes(vu a)
{
	return VEC_EACH(vu, a.p[h] ^ (int32_t)0x80808080);
}

/* Even or odd 16-bit lanes, or their sums, to the 32-bit sum of each pair. */
static VEC vec_quarter_i vec_widen(vec_quarter_s a)
{
	return ((vec_quarter_i)((vec_quarter_u)(vec_quarter_i)a << 16) >> 16) + ((vec_quarter_i)a >> 16);
}

/* A quarter of vec_dot. 16 bits hold the products of two bytes of up to 6 bits, and of eight of up to 5 bits. */
static VEC vec_quarter_i vec_dot_quarter(uint32_t bits, vec_quarter_i acc, const vu *w, int h, const int8_t *x)
{
	vec_quarter_s pairs = {0};
	_Pragma("GCC unroll 4") for (int k = 0; k < 4; k++)
	{
		int32_t four;
		memcpy(&four, x + 4 * k, 4);
		vec_quarter_i all = four - (vec_quarter_i){0};
		vec_quarter_s even = (vec_quarter_s)((vec_quarter_u)all << 8 & 0xff00ff00) >> 8,
			      odd = (vec_quarter_s)all >> 8;
		even *= (vec_quarter_s)(w[k].p[h] & 0x00ff00ff);
		odd *= (vec_quarter_s)(w[k].p[h] >> 8 & 0x00ff00ff);
		if (bits > 6) {
			acc += vec_widen(even) + vec_widen(odd);
		} else {
			pairs += even + odd;
			if (bits == 6 || k == 3) {
				acc += vec_widen(pairs);
				pairs -= pairs;
			}
		}
	}
	return acc;
}

/* Lane by lane and for each token: acc plus the unsigned bytes of w[0..3], of up to `bits` bits, by the 16 of x. Tokens
 * are 32 bytes apart in x. */
static VEC void vec_dot(uint32_t tokens, uint32_t bits, const vu *w, const int8_t *x, vi *acc)
{
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = VEC_EACH(vi, vec_dot_quarter(bits, acc[t].p[h], w, h, x + 32 * t));
}

static VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return VEC_EACH(
		vf, (vec_quarter_f)(((vec_quarter_i)a.p[h] & keep.p[h]) | ((vec_quarter_i)b.p[h] & ~keep.p[h])));
}

static VEC vec_mask vec_less(vf a, vf b)
{
	return VEC_EACH(vi, a.p[h] < b.p[h]);
}

static VEC float vec_first_lane(vf a)
{
	return a.p[0][0];
}

static VEC float vec_max_lane(vf a)
{
	float l[16], max;
	vec_store(l, a);
	max = l[0];
	for (int i = 1; i < 16; i++)
		max = max > l[i] ? max : l[i];
	return max;
}

static VEC int32_t vec_sum(vi a)
{
	vec_quarter_u sum = {0}; // unsigned: activations that are no numbers may overflow it
	for (int h = 0; h < 4; h++)
		sum += (vec_quarter_u)a.p[h];
	return (int32_t)(sum[0] + sum[1] + sum[2] + sum[3]);
}

/* Sums of two vectors' lanes. */
static VEC void vec_sum_pair(vi a, vi b, int32_t *ret_a, int32_t *ret_b)
{
	*ret_a = vec_sum(a);
	*ret_b = vec_sum(b);
}

/* With saturation. */
static VEC void vec_store_i8(int8_t *p, vi a)
{
	int32_t l[16];
	memcpy(l, &a, 64);
	for (int i = 0; i < 16; i++)
		p[i] = (int8_t)(l[i] > 127 ? 127 : l[i] < -128 ? -128 : l[i]);
}
