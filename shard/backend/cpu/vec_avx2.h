/* SPDX-License-Identifier: Apache-2.0
 * 16-lane primitives with AVX2, FMA and F16C: two vectors of 8 lanes, as gcc keeps vectors that are larger than the
 * registers in memory. See vec_generic.h for their meaning.
 */
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define VEC_SYMBOL(name) cpu_avx2_##name
#define VEC_TEXT "avx2"
#ifdef VEC_SMALL // quick to compile
#define VEC inline
#define VEC_TILE_TOKENS 2
#define VEC_QUERIES 2
#define VEC_UNROLL_BLOCKS _Pragma("GCC unroll 1")
#else
#define VEC inline __attribute__((always_inline))
#define VEC_TILE_TOKENS 4 // tokens whose sums fit the registers
#define VEC_QUERIES 4
#define VEC_UNROLL_BLOCKS _Pragma("GCC unroll 8")
#endif

typedef struct {
	__m256 lo, hi;
} vf;
typedef struct {
	__m256i lo, hi;
} vi;
typedef vi vu;
typedef vf vec_mask; // all bits of a lane or none

static VEC vf vec_set(float x)
{
	__m256 all = _mm256_set1_ps(x);
	return (vf){all, all};
}

static VEC vi vec_seti(int32_t x)
{
	__m256i all = _mm256_set1_epi32(x);
	return (vi){all, all};
}

static VEC vf vec_load(const float *p)
{
	return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

static VEC void vec_store(float *p, vf x)
{
	_mm256_storeu_ps(p, x.lo);
	_mm256_storeu_ps(p + 8, x.hi);
}

/* Lanes from `low` on, and up to `high`, of the half that begins with lane `first`. */
static VEC __m256i vec_range_half(uint32_t low, uint32_t high, int32_t first)
{
	__m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
	return _mm256_andnot_si256(_mm256_cmpgt_epi32(lane, _mm256_set1_epi32((int32_t)high)),
		_mm256_cmpgt_epi32(lane, _mm256_set1_epi32((int32_t)low - 1)));
}

static VEC vec_mask vec_range(uint32_t low, uint32_t high)
{
	return (vec_mask){
		_mm256_castsi256_ps(vec_range_half(low, high, 0)), _mm256_castsi256_ps(vec_range_half(low, high, 8))};
}

static VEC vf vec_load_first(const float *p, uint32_t n)
{
	return (vf){_mm256_maskload_ps(p, vec_range_half(0, n - 1, 0)),
		_mm256_maskload_ps(p + 8, vec_range_half(0, n - 1, 8))};
}

static VEC void vec_store_first(float *p, vf x, uint32_t n)
{
	_mm256_maskstore_ps(p, vec_range_half(0, n - 1, 0), x.lo);
	_mm256_maskstore_ps(p + 8, vec_range_half(0, n - 1, 8), x.hi);
}

static VEC vu vec_loadu(const void *p)
{
	return (vu){_mm256_loadu_si256(p), _mm256_loadu_si256((const __m256i *)p + 1)};
}

static VEC vf vec_load_f16(const void *p)
{
	return (vf){_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p + 1))};
}

static VEC __m256 vec_bf16_half(const void *p)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}

static VEC vf vec_load_bf16(const void *p)
{
	return (vf){vec_bf16_half(p), vec_bf16_half((const __m128i *)p + 1)};
}

static VEC vf vec_load_i8(const void *p)
{
	__m128i bytes = _mm_loadu_si128(p);
	return (vf){_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
		_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes)))};
}

static VEC vf vec_neg(vf a)
{
	return (vf){-a.lo, -a.hi};
}

static VEC vf vec_add(vf a, vf b)
{
	return (vf){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

static VEC vf vec_sub(vf a, vf b)
{
	return (vf){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}

static VEC vf vec_mul(vf a, vf b)
{
	return (vf){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}

static VEC vf vec_div(vf a, vf b)
{
	return (vf){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}

static VEC vf vec_fma(vf a, vf b, vf c)
{
	return (vf){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

static VEC vf vec_max(vf a, vf b)
{
	return (vf){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}

static VEC vf vec_round(vf a)
{
	return (vf){_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
		_mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

static VEC vf vec_float(vi a)
{
	return (vf){_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}

static VEC vi vec_int(vf a)
{
	return (vi){_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)};
}

static VEC __m256 vec_power2_half(__m256i n)
{
	return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

static VEC vf vec_power2(vi n)
{
	return (vf){vec_power2_half(n.lo), vec_power2_half(n.hi)};
}

static VEC vu vec_and(vu a, uint32_t b)
{
	__m256i all = _mm256_set1_epi32((int32_t)b);
	return (vu){_mm256_and_si256(a.lo, all), _mm256_and_si256(a.hi, all)};
}

static VEC vu vec_or(vu a, vu b)
{
	return (vu){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}

static VEC vu vec_shr(vu a, int n)
{
	return (vu){_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
}

static VEC vu vec_shl(vu a, int n)
{
	return (vu){_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}

#define VEC_BYTES_OFFSET 0 // |w| by x with the sign of w

static VEC vu vec_bytes(vu a)
{
	return a;
}

/* Four activations to all lanes. */
static VEC __m256i vec_four(const int8_t *x)
{
	int32_t four;
	memcpy(&four, x, 4);
	return _mm256_set1_epi32(four);
}

/* Two bytes' products in 16 bits: with all eight of a 16-bit lane added they fit up to 5 bits, with four up to 6, with
 * two for int8, as long as no x is -128. */
static VEC vi vec_dot_one(uint32_t bits, vi acc, const vu *w, const int8_t *x)
{
	__m256i ones = _mm256_set1_epi16(1), lo[4], hi[4];
#pragma GCC unroll 4
	for (int k = 0; k < 4; k++) {
		__m256i four = vec_four(x + 4 * k);
		if (bits == 8) {
			lo[k] = _mm256_maddubs_epi16(_mm256_abs_epi8(w[k].lo), _mm256_sign_epi8(four, w[k].lo));
			hi[k] = _mm256_maddubs_epi16(_mm256_abs_epi8(w[k].hi), _mm256_sign_epi8(four, w[k].hi));
		} else {
			lo[k] = _mm256_maddubs_epi16(w[k].lo, four);
			hi[k] = _mm256_maddubs_epi16(w[k].hi, four);
		}
		if (bits < 8 && (k & 1)) {
			lo[k] = _mm256_add_epi16(lo[k], lo[k - 1]);
			hi[k] = _mm256_add_epi16(hi[k], hi[k - 1]);
		}
		if (bits < 6 && k == 3) {
			lo[3] = _mm256_add_epi16(lo[3], lo[1]);
			hi[3] = _mm256_add_epi16(hi[3], hi[1]);
		}
		if (k == 3 || bits == 8 || (bits == 6 && k == 1)) {
			acc.lo = _mm256_add_epi32(acc.lo, _mm256_madd_epi16(lo[k], ones));
			acc.hi = _mm256_add_epi32(acc.hi, _mm256_madd_epi16(hi[k], ones));
		}
	}
	return acc;
}

static VEC void vec_dot(uint32_t tokens, uint32_t bits, const vu *w, const int8_t *x, vi *acc)
{
#pragma GCC unroll 12
	for (uint32_t t = 0; t < tokens; t++)
		acc[t] = vec_dot_one(bits, acc[t], w, x + 32 * t);
}

static VEC vf vec_select(vec_mask keep, vf a, vf b)
{
	return (vf){_mm256_blendv_ps(b.lo, a.lo, keep.lo), _mm256_blendv_ps(b.hi, a.hi, keep.hi)};
}

static VEC vec_mask vec_less(vf a, vf b)
{
	return (vec_mask){_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}

static VEC float vec_first_lane(vf a)
{
	return _mm256_cvtss_f32(a.lo);
}

static VEC float vec_max_lane(vf a)
{
	__m256 x = _mm256_max_ps(a.lo, a.hi);
	__m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
	y = _mm_max_ps(y, _mm_movehl_ps(y, y));
	return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

static VEC void vec_sum_pair(vi a, vi b, int32_t *ret_a, int32_t *ret_b)
{
	__m256i s = _mm256_hadd_epi32(_mm256_add_epi32(a.lo, a.hi), _mm256_add_epi32(b.lo, b.hi));
	__m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1)); // a a b b
	t = _mm_hadd_epi32(t, t);
	*ret_a = _mm_cvtsi128_si32(t);
	*ret_b = _mm_extract_epi32(t, 1);
}

static VEC void vec_store_i8(int8_t *p, vi a)
{
	__m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
	_mm_storeu_si128(
		(__m128i *)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
