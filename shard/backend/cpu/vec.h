/* SPDX-License-Identifier: Apache-2.0
 * The primitives of the instruction set that a file is compiled for (the build compiles each kernel file once for each
 * set, with one of these macros), and the functions that the files have for the set's table (kernels.c).
 */
#pragma once

#include "shard/backend/cpu/kernels.h"

#if defined(CPU_AVX512)
#include "shard/backend/cpu/vec_avx512.h"
#elif defined(CPU_AVX2)
#include "shard/backend/cpu/vec_avx2.h"
#else
#include "shard/backend/cpu/vec_generic.h"
#endif

#define cpu_quantize VEC_SYMBOL(quantize)
#define cpu_matvec VEC_SYMBOL(matvec)
#define cpu_matmul VEC_SYMBOL(matmul)
#define cpu_attend VEC_SYMBOL(attend)
#define cpu_norm VEC_SYMBOL(norm)
#define cpu_rope VEC_SYMBOL(rope)
#define cpu_add VEC_SYMBOL(add)
#define cpu_silu_gate VEC_SYMBOL(silu_gate)
#define cpu_exp VEC_SYMBOL(exp)

void cpu_quantize(const struct cpu_activations *to, uint32_t tile);
void cpu_matvec(uint32_t type, const void *group, const struct cpu_activations *x, uint32_t rows, float *y);
void cpu_matmul(uint32_t type, const void *group, size_t group_bytes, uint32_t groups, const struct cpu_activations *x,
	uint32_t rows, float *y, size_t y_stride, void *scratch, float *sums);
void cpu_attend(const struct backend_attend *a, const uint32_t *blocks, uint32_t kv_head,
	const struct cpu_query *queries, uint32_t count);
void cpu_norm(const float *x, const float *w, float eps, uint32_t width, float *y);
void cpu_rope(
	float *x, uint32_t heads, uint32_t head_dim, uint32_t dims, enum backend_rope_mode mode, const float *cos_sin);
void cpu_add(float *x, const float *y, size_t count);
void cpu_silu_gate(const float *gate, const float *up, size_t count, float *y);
void cpu_exp(const float *x, size_t count, float *y);
