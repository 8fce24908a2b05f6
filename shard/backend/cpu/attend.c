// SPDX-License-Identifier: Apache-2.0
/*
 * Attention over the paged cache for up to VEC_QUERIES queries of one sequence and one K/V head: cache blocks in the
 * order of positions, softmax kept up to date block by block (running maximum, sum, weighted V).
 *
 * What is computed for a query, and in which order, depends on the query alone; several of them only share the loads.
 * Per block: scores, lane = position, two sums over even and odd dimensions; the maximum; if it grew, sum and output
 * are scaled; then the output takes up V row by row, positions that the query does not see left out.
 */
#include <math.h>
#include <stdbool.h>

#include "shard/backend/cpu/exp.h"

struct attend_state {
	float max;
	vf sum; // lane = position in the block
	uint32_t first; // first position seen
	uint32_t low, high; // lanes of the current block, both included
	float weight[16];
};

/* Dimensions first .. first + count of n queries; K of the block as halves or int8, 16 positions a dimension. */
static VEC void key_products(
	uint32_t n, bool q8, const uint8_t *k, const struct cpu_query *queries, uint32_t first, uint32_t count, vf *ret)
{
	vf even[VEC_QUERIES], odd[VEC_QUERIES];
	uint32_t step = q8 ? 16 : 32;
#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++)
		even[i] = odd[i] = vec_set(0);
	uint32_t d = 0;
	for (; d + 2 <= count; d += 2, k += 2 * step) {
		vf k0 = q8 ? vec_load_i8(k) : vec_load_f16(k), k1 = q8 ? vec_load_i8(k + step) : vec_load_f16(k + step);
#pragma GCC unroll 8
		for (uint32_t i = 0; i < n; i++) {
			even[i] = vec_fma(vec_set(queries[i].q[first + d]), k0, even[i]);
			odd[i] = vec_fma(vec_set(queries[i].q[first + d + 1]), k1, odd[i]);
		}
	}
	if (d < count) {
		vf k0 = q8 ? vec_load_i8(k) : vec_load_f16(k);
#pragma GCC unroll 8
		for (uint32_t i = 0; i < n; i++)
			even[i] = vec_fma(vec_set(queries[i].q[first + d]), k0, even[i]);
	}
#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++)
		ret[i] = vec_add(even[i], odd[i]);
}

static VEC void scores(
	uint32_t n, bool q8, const uint8_t *k, const struct cpu_query *queries, uint32_t head_dim, vf *ret)
{
	if (!q8) {
		key_products(n, false, k, queries, 0, head_dim, ret);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		ret[i] = vec_set(0);
	for (uint32_t d = 0; d < head_dim; d += 32, k += 544) {
		vf part[VEC_QUERIES], scale = vec_load_f16(k);
		key_products(n, true, k + 32, queries, d, 32, part);
#pragma GCC unroll 8
		for (uint32_t i = 0; i < n; i++)
			ret[i] = vec_fma(part[i], scale, ret[i]);
	}
}

/* out[d..d+16*width) of n queries += weight * V, positions low..high. */
static VEC void add_values(uint32_t n, uint32_t width, bool q8, const uint8_t *v, uint32_t vector_bytes,
	const struct cpu_query *queries, const struct attend_state *s, uint32_t d, uint32_t low, uint32_t high)
{
	vf acc[VEC_QUERIES][2];
#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < width; j++)
			acc[i][j] = vec_load(queries[i].out + d + 16 * j);
	for (uint32_t p = low; p <= high; p++) {
		const uint8_t *row = v + p * vector_bytes + (q8 ? d / 32 * 34 : 2 * d);
		vf value[2];
		if (q8) {
			uint16_t half;
			memcpy(&half, row, 2);
			vf scale = vec_set(quant_f16_to_f32(half));
			for (uint32_t j = 0; j < width; j++)
				value[j] = vec_mul(vec_load_i8(row + 2 + 16 * j), scale);
		} else {
			for (uint32_t j = 0; j < width; j++)
				value[j] = vec_load_f16(row + 32 * j);
		}
#pragma GCC unroll 8
		for (uint32_t i = 0; i < n; i++) {
			vf weight = vec_set(s[i].weight[p]);
			for (uint32_t j = 0; j < width; j++)
				acc[i][j] = vec_fma(weight, value[j], acc[i][j]);
		}
	}
#pragma GCC unroll 8
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < width; j++)
			vec_store(queries[i].out + d + 16 * j, acc[i][j]);
}

static VEC void values(uint32_t n, bool q8, const uint8_t *v, uint32_t vector_bytes, uint32_t head_dim,
	const struct cpu_query *queries, const struct attend_state *s)
{
	uint32_t low = s[0].low, high = s[0].high, d = 0;
	for (; d + 32 <= head_dim; d += 32)
		add_values(n, 2, q8, v, vector_bytes, queries, s, d, low, high);
	if (q8)
		return; // whole 32s
	for (; d + 16 <= head_dim; d += 16)
		add_values(n, 1, false, v, vector_bytes, queries, s, d, low, high);
	for (; d < head_dim; d++)
		for (uint32_t p = low; p <= high; p++) {
			uint16_t half;
			memcpy(&half, v + p * vector_bytes + 2 * d, 2);
			float value = quant_f16_to_f32(half);
			for (uint32_t i = 0; i < n; i++)
				queries[i].out[d] += s[i].weight[p] * value;
		}
}

/* Scores of one query and block to weights. */
static VEC void soften(const struct backend_attend *a, const struct cpu_query *q, vf score, struct attend_state *s)
{
	vec_mask seen = vec_range(s->low, s->high);
	score = vec_select(seen, vec_mul(score, vec_set(a->scale)), vec_set(-INFINITY));
	float max = vec_max_lane(score);
	if (max > s->max) {
		vf shrink = vec_exp(vec_set(s->max - max));
		s->sum = vec_mul(s->sum, shrink);
		s->max = max;
		float factor = vec_first_lane(shrink);
		for (uint32_t d = 0; d < a->head_dim; d++)
			q->out[d] *= factor;
	}
	vf weight = vec_select(seen, vec_exp(vec_sub(score, vec_set(s->max))), vec_set(0));
	s->sum = vec_add(s->sum, weight);
	vec_store(s->weight, weight);
}

#if VEC_QUERIES == 8
#define EACH_COUNT(f) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8)
#elif VEC_QUERIES == 4
#define EACH_COUNT(f) f(1) f(2) f(3) f(4)
#else
#define EACH_COUNT(f) f(1) f(2)
#endif

static VEC void attend_block(const struct backend_attend *a, bool q8, const uint8_t *k, const uint8_t *v,
	uint32_t vector_bytes, const struct cpu_query *queries, struct attend_state *s, uint32_t count)
{
	vf score[VEC_QUERIES];
	switch (count) {
#define CASE(n)                                                                                                        \
	case n:                                                                                                        \
		scores(n, q8, k, queries, a->head_dim, score);                                                         \
		break;
		EACH_COUNT(CASE)
#undef CASE
	}
	for (uint32_t i = 0; i < count; i++)
		soften(a, &queries[i], score[i], &s[i]);
	for (uint32_t i = 0, n; i < count; i += n) {
		n = 1;
		while (i + n < count && s[i + n].low == s[i].low && s[i + n].high == s[i].high)
			n++;
		switch (n) {
#define CASE(m)                                                                                                        \
	case m:                                                                                                        \
		values(m, q8, v, vector_bytes, a->head_dim, queries + i, s + i);                                       \
		break;
			EACH_COUNT(CASE)
#undef CASE
		}
	}
}

static void attend_f16(const struct backend_attend *a, const uint8_t *k, const uint8_t *v,
	const struct cpu_query *queries, struct attend_state *s, uint32_t count)
{
	attend_block(a, false, k, v, 2 * a->head_dim, queries, s, count);
}

static void attend_q8(const struct backend_attend *a, const uint8_t *k, const uint8_t *v,
	const struct cpu_query *queries, struct attend_state *s, uint32_t count)
{
	attend_block(a, true, k, v, a->head_dim / 32 * 34, queries, s, count);
}

static VEC void prefetch(const uint8_t *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i += 64)
		__builtin_prefetch(p + i, 0, 3);
}

void cpu_attend(const struct backend_attend *a, const uint32_t *blocks, uint32_t kv_head,
	const struct cpu_query *queries, uint32_t count)
{
	struct attend_state s[VEC_QUERIES] = {0};
	size_t vector_bytes = a->kv_type == KV_Q8 ? a->head_dim / 32 * 34 : 2 * a->head_dim;
	size_t bytes = vector_bytes * KV_BLOCK_TOKENS;
	if (count == 0)
		return;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t p = queries[i].position;
		s[i].max = -INFINITY;
		s[i].sum = vec_set(0);
		s[i].first = a->window && p >= a->window ? p - a->window + 1 : 0;
		memset(queries[i].out, 0, a->head_dim * sizeof(float));
	}
	uint32_t from = 0, to = 0, last = queries[count - 1].position / 16;
	for (uint32_t block = s[0].first / 16; block <= last; block++) {
		// Positions ascend, so the queries that see a block are neighbours.
		while (to < count && s[to].first / 16 <= block)
			to++;
		while (from < to && queries[from].position / 16 < block)
			from++;
		if (from == to)
			continue;
		for (uint32_t i = from; i < to; i++) {
			s[i].low = s[i].first > block * 16 ? s[i].first - block * 16 : 0;
			s[i].high = queries[i].position - block * 16 < 15 ? queries[i].position - block * 16 : 15;
		}
		size_t at = ((size_t)blocks[block] * a->kv_heads + kv_head) * bytes;
		const uint8_t *k = (const uint8_t *)a->k_cache + at, *v = (const uint8_t *)a->v_cache + at;
		if (block < last) {
			size_t next = ((size_t)blocks[block + 1] * a->kv_heads + kv_head) * bytes;
			prefetch((const uint8_t *)a->k_cache + next, bytes);
			prefetch((const uint8_t *)a->v_cache + next, bytes);
		}
		(a->kv_type == KV_Q8 ? attend_q8 : attend_f16)(a, k, v, queries + from, s + from, to - from);
	}
	for (uint32_t i = 0; i < count; i++) {
		float inverse = 1 / sum_lanes(s[i].sum);
		for (uint32_t d = 0; d < a->head_dim; d++)
			queries[i].out[d] *= inverse;
	}
}
