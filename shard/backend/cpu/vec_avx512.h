/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives with AVX-512 F, BW, VL, DQ and VNNI. See vec_generic.h for their meaning.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_SYMBOL(name) cpu_avx512_##name
#define VEC_TEXT "avx512-vnni"
#ifdef VEC_SMALL // quick to compile
#define VEC inline
#define VEC_TILE_TOKENS 2
#define VEC_QUERIES 2
#define VEC_UNROLL_BLOCKS _Pragma("GCC unroll 1")
#else
#define VEC inline __attribute__((always_inline))
#define VEC_TILE_TOKENS 10 // tokens whose sums fit the registers
#define VEC_QUERIES 8
#define VEC_UNROLL_BLOCKS _Pragma("GCC unroll 8")
#endif

typedef __m512 vf;
typedef __m512i vi;
typedef __m512i vu;
typedef __mmask16 vec_mask;

static VEC vf vec_set(float x)
{
	return _mm512_set1_ps(x);
}

static VEC vi vec_seti(int32_t x)
{
	return _mm512_set1_epi32(x);
}

static VEC vf vec_load(const float *p)
{
	return _mm512_loadu_ps(p);
}

static VEC void vec_store(float *p, vf x)
{
	_mm512_storeu_ps(p, x);
}

static VEC vec_mask vec_range(uint32_t low, uint32_t high)
{
	return (vec_mask)((0xffffu >> (15 - high)) & (0xffffu << low));
}

static VEC vf vec_load_first(const float *p, uint32_t n)
{
	return _mm512_maskz_loadu_ps(vec_range(0, n - 1), p);
}

static VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	_mm512_mask_storeu_ps(p, vec_range(0, n - 1), x);
}

static VEC vu vec_loadu(const void *p)
{
	return _mm512_loadu_si512(p);
}

static VEC vf vec_load_f16(const void *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

static VEC vf vec_load_bf16(const void *p)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}

static VEC vf vec_load_i8(const void *p)
{
	return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}

static VEC vf vec_neg(vf a)
{
	return -a;
}

static VEC vf vec_add(vf a, vf b)
{
	return _mm512_add_ps(a, b);
}

static VEC vf vec_sub(vf a, vf b)
{
	return _mm512_sub_ps(a, b);
}

static VEC vf vec_mul(vf a, vf b)
{
	return _mm512_mul_ps(a, b);
}

static VEC vf vec_div(vf a, vf b)
{
	return _mm512_div_ps(a, b);
}

static VEC vf vec_fma(vf a, vf b, vf c)
{
	return _mm512_fmadd_ps(a, b, c);
}

static VEC vf vec_max(vf a, vf b)
{
	return _mm512_max_ps(a, b);
}

static VEC vf vec_round(vf a)
{
	return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static VEC vf vec_float(vi a)
{
	return _mm512_cvtepi32_ps(a);
}

static VEC vi vec_int(vf a)
{
	return _mm512_cvtps_epi32(a);
}

static VEC vf vec_power2(vi n)
{
	return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, vec_seti(127)), 23));
}

static VEC vu vec_and(vu a, uint32_t b)
{
	return _mm512_and_si512(a, vec_seti((int32_t)b));
}

static VEC vu vec_or(vu a, vu b)
{
	return _mm512_or_si512(a, b);
}

static VEC vu vec_shr(vu a, int n)
{
	return _mm512_srli_epi32(a, (uint32_t)n);
}

static VEC vu vec_shl(vu a, int n)
{
	return _mm512_slli_epi32(a, (uint32_t)n);
}

#define VEC_BYTES_OFFSET 128

static VEC vu vec_bytes(vu a)
{
	return _mm512_xor_si512(a, vec_seti((int32_t)0x80808080));
}

/* Columns in the outer loop: the tokens' sums do not wait for one another. */
static VEC void vec_dot(uint32_t tokens, uint32_t bits, const vu *w, const int8_t *x, vi *acc)
{
#pragma GCC unroll 4
	for (int k = 0; k < 4; k++) {
		vu column = w[k];
#pragma GCC unroll 12
		for (uint32_t t = 0; t < tokens; t++) {
			int32_t four;
			memcpy(&four, x + 32 * t + 4 * k, 4);
			acc[t] = _mm512_dpbusd_epi32(acc[t], column, vec_seti(four));
		}
	}
}

static VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return _mm512_mask_blend_ps(keep, b, a);
}

static VEC vec_mask vec_less(vf a, vf b)
{
	return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}

static VEC float vec_first_lane(vf a)
{
	return _mm512_cvtss_f32(a);
}

static VEC float vec_max_lane(vf a)
{
	__m256 x = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
	__m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
	y = _mm_max_ps(y, _mm_movehl_ps(y, y));
	return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* Lanes of both halves of a vector added up. */
static VEC __m256i vec_fold(vi a)
{
	return _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
}

static VEC void vec_sum_pair(vi a, vi b, int32_t *ret_a, int32_t *ret_b)
{
	__m256i s = _mm256_hadd_epi32(vec_fold(a), vec_fold(b));
	__m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)); // a a b b
	t = _mm_hadd_epi32(t, t);
	*ret_a = _mm_cvtsi128_si32(t);
	*ret_b = _mm_extract_epi32(t, 1);
}

static VEC void vec_store_i8(int8_t *p, vi a)
{
	_mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8(a));
}
