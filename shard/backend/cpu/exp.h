/* SPDX-License-Identifier: Apache-2.0
 * What rows and attention share.
 */
#pragma once

#include "shard/backend/cpu/vec.h"

static VEC float sum_lanes(vf x)
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
 * r^7 (its error is 0.3 * 2^-24 there). Within 2 units in the last place of float; 0 below -87.33 (where results would
 * be subnormal), and cut at 88.37, 2.4e38, above.
 */
static VEC vf vec_exp(vf x)
{
	vec_mask tiny = vec_less(x, vec_set(-87.33f));
	x = vec_select(tiny, vec_set(-87.33f), x);
	x = vec_select(vec_less(vec_set(88.37f), x), vec_set(88.37f), x);
	vf n = vec_round(vec_mul(x, vec_set(0x1.715476p0f)));
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
	return vec_select(tiny, vec_set(0), vec_mul(p, vec_power2(vec_int(n))));
}
