/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives with AVX2, FMA and F16C: two 8-lane halves. See vec_generic.h for their meaning.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_NAME avx2
#define VEC_TILE_TOKENS 4 // tokens whose sums fit the registers
#define VEC_QUERIES 4
#define VEC_TEXT "avx2"

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef vi vec_mask; // all bits of a lane or none

#define VEC static inline __attribute__((always_inline))

/* A vector by halves; compilers keep both in registers. */
union vec_halves {
	vf f;
	vi i;
	vu u;
	__m256 ps[2];
	__m256i si[2];
};

#define VEC_EACH(type, field, expression)                                                                              \
	({                                                                                                             \
		union vec_halves r_;                                                                                   \
		for (int h = 0; h < 2; h++)                                                                            \
			r_.field[h] = (expression);                                                                    \
		r_.type;                                                                                               \
	})

VEC vf vec_set(float x)
{
	return VEC_EACH(f, ps, _mm256_set1_ps(x));
}

VEC vi vec_seti(int32_t x)
{
	return VEC_EACH(i, si, _mm256_set1_epi32(x));
}

VEC vf vec_load(const float *p)
{
	return VEC_EACH(f, ps, _mm256_loadu_ps(p + 8 * h));
}

VEC void vec_store(float *p, vf x)
{
	union vec_halves a = {.f = x};
	_mm256_storeu_ps(p, a.ps[0]);
	_mm256_storeu_ps(p + 8, a.ps[1]);
}

VEC vec_mask vec_first(uint32_t n)
{
	return (vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} < vec_seti((int32_t)n);
}

VEC vf vec_load_first(const float *p, uint32_t n)
{
	union vec_halves m = {.i = vec_first(n)};
	return VEC_EACH(f, ps, _mm256_maskload_ps(p + 8 * h, m.si[h]));
}

VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	union vec_halves a = {.f = x}, m = {.i = vec_first(n)};
	_mm256_maskstore_ps(p, m.si[0], a.ps[0]);
	_mm256_maskstore_ps(p + 8, m.si[1], a.ps[1]);
}

VEC vu vec_loadu(const void *p)
{
	return VEC_EACH(u, si, _mm256_loadu_si256((const __m256i *)p + h));
}

VEC vf vec_load_f16(const void *p)
{
	return VEC_EACH(f, ps, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + h)));
}

VEC vf vec_load_bf16(const void *p)
{
	return VEC_EACH(f, si, _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p + h)), 16));
}

VEC vf vec_load_i8(const void *p)
{
	return VEC_EACH(f, ps,
		_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)((const char *)p + 8 * h)))));
}

VEC vf vec_fma(vf a, vf b, vf c)
{
	union vec_halves x = {.f = a}, y = {.f = b}, z = {.f = c};
	return VEC_EACH(f, ps, _mm256_fmadd_ps(x.ps[h], y.ps[h], z.ps[h]));
}

VEC vf vec_max(vf a, vf b)
{
	union vec_halves x = {.f = a}, y = {.f = b};
	return VEC_EACH(f, ps, _mm256_max_ps(x.ps[h], y.ps[h]));
}

VEC vf vec_round(vf a)
{
	union vec_halves x = {.f = a};
	return VEC_EACH(f, ps, _mm256_round_ps(x.ps[h], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

VEC vf vec_float(vi a)
{
	union vec_halves x = {.i = a};
	return VEC_EACH(f, ps, _mm256_cvtepi32_ps(x.si[h]));
}

VEC vi vec_int(vf a)
{
	union vec_halves x = {.f = a};
	return VEC_EACH(i, si, _mm256_cvtps_epi32(x.ps[h]));
}

/* Bytes of w up to 63, so that the pair sums fit 16 bits. */
VEC vi vec_dot(vi acc, vu w, int32_t x)
{
	union vec_halves a = {.i = acc}, b = {.u = w};
	return VEC_EACH(i, si,
		_mm256_add_epi32(a.si[h],
			_mm256_madd_epi16(_mm256_maddubs_epi16(b.si[h], _mm256_set1_epi32(x)), _mm256_set1_epi16(1))));
}

VEC vi vec_dot_wide(vi acc, vu w, int32_t x)
{
	union vec_halves a = {.i = acc}, b = {.u = w};
	__m256i all = _mm256_set1_epi32(x);
	__m256i even = _mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), odd = _mm256_srai_epi16(all, 8);
	return VEC_EACH(i, si,
		_mm256_add_epi32(a.si[h],
			_mm256_add_epi32(_mm256_madd_epi16(_mm256_and_si256(b.si[h], _mm256_set1_epi16(255)), even),
				_mm256_madd_epi16(_mm256_srli_epi16(b.si[h], 8), odd))));
}

VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return (vf)(((vi)a & keep) | ((vi)b & ~keep));
}

VEC vec_mask vec_less(vf a, vf b)
{
	return a < b;
}

VEC void vec_store_i8(int8_t *p, vi a)
{
	union vec_halves x = {.i = a};
	__m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.si[0], x.si[1]), 0xd8);
	_mm_storeu_si128(
		(__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
