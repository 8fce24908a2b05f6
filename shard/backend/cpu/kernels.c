// SPDX-License-Identifier: Apache-2.0
// The table of one instruction set.
#include "shard/backend/cpu/vec.h"

const struct cpu_kernels VEC_SYMBOL(kernels) = {
	.name = VEC_TEXT,
	.tile_tokens = VEC_TILE_TOKENS,
	.queries = VEC_QUERIES,
	.quantize = cpu_quantize,
	.matvec = cpu_matvec,
	.matmul = cpu_matmul,
	.attend = cpu_attend,
	.norm = cpu_norm,
	.rope = cpu_rope,
	.add = cpu_add,
	.silu_gate = cpu_silu_gate,
	.exp = cpu_exp,
};
