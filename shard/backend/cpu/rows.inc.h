/* SPDX-License-Identifier: Apache-2.0
 * Operations on rows of activations over the primitives of the vec_*.h included before.
 */

VEC float sum_lanes(vf x)
{
	float l[16];
	vec_store(l, x);
	for (int k = 8; k; k /= 2)
		for (int i = 0; i < k; i++)
			l[i] += l[i + k];
	return l[0];
}

/*
 * e^x = 2^n * e^r, n = round(x / ln 2), r in [-ln 2 / 2, ln 2 / 2] with ln 2 in two parts, e^r by its Taylor sum to
 * r^7 (its error is 0.3 * 2^-24 there). Within 2 units in the last place of float; 0 below -87.33 (where results would be
 * subnormal), and cut at 88.37, 2.4e38, above.
 */
VEC vf vec_exp(vf x)
{
	vec_mask tiny = vec_less(x, vec_set(-87.33f));
	x = vec_select(tiny, vec_set(-87.33f), x);
	x = vec_select(vec_less(vec_set(88.37f), x), vec_set(88.37f), x);
	vf n = vec_round(x * vec_set(0x1.715476p0f));
	vf r = vec_fma(n, vec_set(-0x1.62e4p-1f), x); // n * 0x1.62e4p-1 is exact
	r = vec_fma(n, vec_set(-0x1.7f7d1cp-20f), r);
	vf p = vec_set(0x1.a01a02p-13f);
	p = vec_fma(p, r, vec_set(0x1.6c16c2p-10f));
	p = vec_fma(p, r, vec_set(0x1.111112p-7f));
	p = vec_fma(p, r, vec_set(0x1.555556p-5f));
	p = vec_fma(p, r, vec_set(0x1.555556p-3f));
	p = vec_fma(p, r, vec_set(0.5f));
	p = vec_fma(p, r, vec_set(1));
	p = vec_fma(p, r, vec_set(1));
	vi power = (vec_int(n) + vec_seti(127)) << 23;
	return vec_select(tiny, vec_set(0), p * (vf)power);
}

static void exp_row(const float *x, size_t count, float *y)
{
	size_t i = 0;
	for (; i + 16 <= count; i += 16)
		vec_store(y + i, vec_exp(vec_load(x + i)));
	if (i < count)
		vec_store_first(y + i, vec_exp(vec_load_first(x + i, (uint32_t)(count - i))), (uint32_t)(count - i));
}

static void norm(const float *x, const float *w, float eps, uint32_t width, float *y)
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
	vf scale = vec_set(1 / sqrtf(sum_lanes(sum0 + sum1) / (float)width + eps));
	for (i = 0; i + 16 <= width; i += 16)
		vec_store(y + i, vec_load(x + i) * scale * vec_load(w + i));
	for (; i < width; i++)
		y[i] = x[i] * scale[0] * w[i];
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

static void rope(
	float *x, uint32_t heads, uint32_t head_dim, uint32_t dims, enum backend_rope_mode mode, const float *cos_sin)
{
	for (uint32_t h = 0; h < heads; h++, x += head_dim)
		(mode == BACKEND_ROPE_PAIRS ? rope_pairs : rope_halves)(x, dims / 2, cos_sin);
}

static void add(float *x, const float *y, size_t count)
{
	for (size_t i = 0; i < count; i++)
		x[i] += y[i];
}

VEC vf vec_silu_gate(vf gate, vf up)
{
	return gate / (vec_set(1) + vec_exp(-gate)) * up;
}

static void silu_gate(const float *gate, const float *up, size_t count, float *y)
{
	size_t i = 0;
	for (; i + 16 <= count; i += 16)
		vec_store(y + i, vec_silu_gate(vec_load(gate + i), vec_load(up + i)));
	if (i < count) {
		uint32_t n = (uint32_t)(count - i);
		vec_store_first(y + i, vec_silu_gate(vec_load_first(gate + i, n), vec_load_first(up + i, n)), n);
	}
}
