/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives with AVX-512 F, BW, VL, DQ and VNNI. See vec_generic.h for their meaning.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_NAME avx512
#ifdef VEC_SMALL // quick to compile
#define VEC_TILE_TOKENS 2
#define VEC_QUERIES 2
#else
#define VEC_TILE_TOKENS 10 // tokens whose sums fit the registers
#define VEC_QUERIES 8
#endif
#define VEC_TEXT "avx512-vnni"

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef uint16_t vec_mask;

#define VEC static inline __attribute__((always_inline))

VEC vf vec_set(float x)
{
	return (vf)_mm512_set1_ps(x);
}

VEC vi vec_seti(int32_t x)
{
	return (vi)_mm512_set1_epi32(x);
}

VEC vf vec_load(const float *p)
{
	return (vf)_mm512_loadu_ps(p);
}

VEC void vec_store(float *p, vf x)
{
	_mm512_storeu_ps(p, (__m512)x);
}

VEC vec_mask vec_first(uint32_t n)
{
	return (vec_mask)(0xffffu >> (16 - n));
}

VEC vf vec_load_first(const float *p, uint32_t n)
{
	return (vf)_mm512_maskz_loadu_ps(vec_first(n), p);
}

VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	_mm512_mask_storeu_ps(p, vec_first(n), (__m512)x);
}

VEC vu vec_loadu(const void *p)
{
	return (vu)_mm512_loadu_si512(p);
}

VEC vf vec_load_f16(const void *p)
{
	return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
}

VEC vf vec_load_bf16(const void *p)
{
	return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
}

VEC vf vec_load_i8(const void *p)
{
	return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}

VEC vf vec_fma(vf a, vf b, vf c)
{
	return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

VEC vf vec_max(vf a, vf b)
{
	return (vf)_mm512_max_ps((__m512)a, (__m512)b);
}

VEC vf vec_round(vf a)
{
	return (vf)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

VEC vf vec_float(vi a)
{
	return (vf)_mm512_cvtepi32_ps((__m512i)a);
}

VEC vi vec_int(vf a)
{
	return (vi)_mm512_cvtps_epi32((__m512)a);
}

VEC vi vec_dot(vi acc, vu w, int32_t x)
{
	return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
}

#define vec_dot_wide vec_dot

VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return (vf)_mm512_mask_blend_ps(keep, (__m512)b, (__m512)a);
}

VEC vec_mask vec_less(vf a, vf b)
{
	return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
}

VEC void vec_store_i8(int8_t *p, vi a)
{
	_mm_storeu_si128((__m128i *)p, _mm512_cvtsepi32_epi8((__m512i)a));
}
