// SPDX-License-Identifier: Apache-2.0
// Operations on rows of activations.
#include <math.h>

#include "shard/backend/cpu/exp.h"

void cpu_exp(const float *x, size_t count, float *y)
{
	size_t i = 0;
	for (; i + 16 <= count; i += 16)
		vec_store(y + i, vec_exp(vec_load(x + i)));
	if (i < count)
		vec_store_first(y + i, vec_exp(vec_load_first(x + i, (uint32_t)(count - i))), (uint32_t)(count - i));
}

void cpu_norm(const float *x, const float *w, float eps, uint32_t width, float *y)
{
	vf sum0 = vec_set(0), sum1 = sum0;
	uint32_t i = 0;
	for (; i + 32 <= width; i += 32) {
		vf a = vec_load(x + i), b = vec_load(x + i + 16);
		sum0 = vec_fma(a, a, sum0);
		sum1 = vec_fma(b, b, sum1);
	}
	for (; i < width; i += 16) {
		vf a = vec_load_first(x + i, width - i < 16 ? width - i : 16);
		sum0 = vec_fma(a, a, sum0);
	}
	vf scale = vec_set(1 / sqrtf(sum_lanes(vec_add(sum0, sum1)) / (float)width + eps));
	for (i = 0; i + 16 <= width; i += 16)
		vec_store(y + i, vec_mul(vec_mul(vec_load(x + i), scale), vec_load(w + i)));
	for (; i < width; i++)
		y[i] = x[i] * vec_first_lane(scale) * w[i];
}

static void rope_halves(float *x, uint32_t half, const float *cos_sin)
{
	for (uint32_t i = 0; i < half; i++) {
		float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = x[i], v = x[i + half];
		x[i] = u * c - v * s;
		x[i + half] = u * s + v * c;
	}
}

static void rope_pairs(float *x, uint32_t half, const float *cos_sin)
{
	for (uint32_t i = 0; i < half; i++) {
		float c = cos_sin[2 * i], s = cos_sin[2 * i + 1], u = x[2 * i], v = x[2 * i + 1];
		x[2 * i] = u * c - v * s;
		x[2 * i + 1] = u * s + v * c;
	}
}

void cpu_rope(
	float *x, uint32_t heads, uint32_t head_dim, uint32_t dims, enum backend_rope_mode mode, const float *cos_sin)
{
	for (uint32_t h = 0; h < heads; h++, x += head_dim)
		(mode == BACKEND_ROPE_PAIRS ? rope_pairs : rope_halves)(x, dims / 2, cos_sin);
}

void cpu_add(float *x, const float *y, size_t count)
{
	for (size_t i = 0; i < count; i++)
		x[i] += y[i];
}

static VEC vf vec_silu_gate(vf gate, vf up)
{
	return vec_mul(vec_div(gate, vec_add(vec_set(1), vec_exp(vec_neg(gate)))), up);
}

void cpu_silu_gate(const float *gate, const float *up, size_t count, float *y)
{
	size_t i = 0;
	for (; i + 16 <= count; i += 16)
		vec_store(y + i, vec_silu_gate(vec_load(gate + i), vec_load(up + i)));
	if (i < count) {
		uint32_t n = (uint32_t)(count - i);
		vec_store_first(y + i, vec_silu_gate(vec_load_first(gate + i, n), vec_load_first(up + i, n)), n);
	}
}
