// SPDX-License-Identifier: Apache-2.0
// The kernels with plain C. The build gives this file its own instruction set flags.
#include <math.h>
#include <stdbool.h>

#include "shard/backend/cpu/kernels.h"

#include "shard/backend/cpu/vec_generic.h"

#include "shard/backend/cpu/matmul.inc.h"

#include "shard/backend/cpu/rows.inc.h"

#include "shard/backend/cpu/attend.inc.h"

const struct cpu_kernels cpu_kernels_generic = {
	.name = VEC_TEXT,
	.tile_tokens = VEC_TILE_TOKENS,
	.queries = VEC_QUERIES,
	.quantize = quantize,
	.matvec = matvec,
	.matmul = matmul,
	.attend = attend,
	.norm = norm,
	.rope = rope,
	.add = add,
	.silu_gate = silu_gate,
	.exp = exp_row,
};
