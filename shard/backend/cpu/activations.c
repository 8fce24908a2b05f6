// SPDX-License-Identifier: Apache-2.0
// Activations to 8-bit blocks.
#include <math.h>
#include <stdbool.h>

#include "shard/backend/cpu/vec.h"

/* max / 127, within 2^-60 .. 2^60 so that products stay normal numbers. */
static VEC float scale_of(float max)
{
	float scale = max * (1.0f / 127);
	scale = scale > 0x1p-60f ? scale : 0x1p-60f; // zero and NaN too
	return scale < 0x1p60f ? scale : 0x1p60f;
}

/* x (16) to q and its scale; what is left of x stays in *x. Returns q. */
static VEC vi quantize_half(vf *x, float scale, int8_t *q)
{
	vi v = vec_int(vec_mul(*x, vec_set(1 / scale)));
	vec_store_i8(q, v);
	*x = vec_fma(vec_float(v), vec_set(-scale), *x);
	return v;
}

static VEC void quantize_block(vf *x, const float *scale, int8_t *q, struct cpu_block *to)
{
	int32_t sum[2];
	vi low = quantize_half(&x[0], scale[0], q), high = quantize_half(&x[1], scale[1], q + 16);
	vec_sum_pair(low, high, &sum[0], &sum[1]);
	to->scale[0] = scale[0];
	to->scale[1] = scale[1];
	to->sum8[0] = (int32_t)(-8 * (uint32_t)sum[0]);
	to->sum8[1] = (int32_t)(-8 * (uint32_t)sum[1]);
	to->scale_sum = scale[0] * (float)sum[0] + scale[1] * (float)sum[1];
}

/* Both planes of a block; the second only where `limit` is exceeded. Returns whether it is. */
static VEC bool quantize_planes(const float *x, float limit, const struct cpu_activations *to, size_t at)
{
	vf v[2] = {vec_load(x), vec_load(x + 16)};
	float max[2], scale[2];
	for (int h = 0; h < 2; h++) {
		max[h] = vec_max_lane(vec_max(v[h], vec_neg(v[h])));
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
static VEC bool quantize_tokens(
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

static VEC float square_mean(const float *x, uint32_t cols)
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

void cpu_quantize(const struct cpu_activations *to, uint32_t tile)
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
