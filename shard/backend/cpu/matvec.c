// SPDX-License-Identifier: Apache-2.0
// One group of weights by one token.
#include "shard/backend/cpu/blocks.h"

/* A block by the activations of entry `at`. */
static VEC vf matvec_plane(uint32_t type, const struct columns *c, const struct cpu_activations *x, size_t at, vf acc)
{
	const int8_t *q = x->q + 32 * at;
	const struct cpu_block *block = x->block + at;
	vu w[4];
	vi low = dot_start(type, block->sum8[0]), high = dot_start(type, block->sum8[1]);
	unpack_half(type, c->p, 0, w);
	vec_dot(1, dot_bits(type), w, q, &low);
	unpack_half(type, c->p, 1, w);
	vec_dot(1, dot_bits(type), w, q + 16, &high);
	vf sum;
	acc = add_low(type, acc, low, c->scale, block, &sum);
	acc = add_high(type, acc, high, type == QUANT_Q6_K ? c->scale_high : c->scale, block, sum);
	return has_min(type) ? vec_fma(c->min, vec_set(block->scale_sum), acc) : acc;
}

/* A chunk with second planes, or one that is short. */
static VEC vf matvec_chunk(uint32_t type, const uint8_t *group, uint32_t blocks, uint32_t first, uint32_t count,
	const struct cpu_activations *x, vf acc)
{
	uint32_t fine = x->fine[first];
	for (uint32_t b = first; b < first + count; b++, fine >>= 1) {
		struct columns c;
		columns_at(type, group, blocks, b, &c);
		acc = matvec_plane(type, &c, x, b, acc);
		if (fine & 1)
			acc = matvec_plane(type, &c, x, x->plane + b, acc);
	}
	return acc;
}

/* No software prefetch: one line of addresses is what the hardware's prefetcher is best at, and prefetches to the first
 * cache take its few miss buffers from it (measured: 10 to 30 % slower). */
static VEC vf matvec_group(uint32_t type, const uint8_t *group, const struct cpu_activations *x)
{
	vf acc = vec_set(0);
	uint32_t blocks = x->cols / 32, first = 0;
	for (; first + CPU_CHUNK_BLOCKS <= blocks; first += CPU_CHUNK_BLOCKS) {
		if (__builtin_expect(x->fine[first] != 0, 0)) {
			acc = matvec_chunk(type, group, blocks, first, CPU_CHUNK_BLOCKS, x, acc);
			continue;
		}
		VEC_UNROLL_BLOCKS
		for (uint32_t k = 0; k < CPU_CHUNK_BLOCKS; k++) {
			struct columns c;
			if (((first + k) | 1) >= blocks)
				__builtin_unreachable(); // whole pairs: unpack needs no test
			columns_at(type, group, blocks, first + k, &c);
			acc = matvec_plane(type, &c, x, first + k, acc);
		}
	}
	if (is_super(type) || first == blocks)
		return acc;
	return matvec_chunk(type, group, blocks, first, blocks - first, x, acc);
}

static VEC vf matvec_float(uint32_t type, const uint8_t *group, const struct cpu_activations *x)
{
	vf acc = vec_set(0);
	for (uint32_t c = 0; c < x->cols; c++)
		acc = vec_fma(load_column(type, group, c), vec_set(x->x[c]), acc);
	return acc;
}

void cpu_matvec(uint32_t type, const void *group, const struct cpu_activations *x, uint32_t rows, float *y)
{
	vf acc = vec_set(0);
	switch (type) {
#define TYPE(t, f)                                                                                                     \
	case t:                                                                                                        \
		acc = f(t, group, x);                                                                                  \
		break;
		TYPE(QUANT_F32, matvec_float)
		TYPE(QUANT_F16, matvec_float)
		TYPE(QUANT_BF16, matvec_float)
		TYPE(QUANT_Q4_0, matvec_group)
		TYPE(QUANT_Q4_1, matvec_group)
		TYPE(QUANT_Q5_0, matvec_group)
		TYPE(QUANT_Q5_1, matvec_group)
		TYPE(QUANT_Q8_0, matvec_group)
		TYPE(QUANT_Q4_K, matvec_group)
		TYPE(QUANT_Q5_K, matvec_group)
		TYPE(QUANT_Q6_K, matvec_group)
#undef TYPE
	}
	vec_store_first(y, acc, rows);
}
