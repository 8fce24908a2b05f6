// SPDX-License-Identifier: Apache-2.0
#include "shard/quant/quant.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/size.h"

/* Indexed by the file's type id. block_cols 0: a name that thaw knows, of a type that it does not compute with. */
static const struct quant_traits traits[] = {
	[QUANT_F32] = {"F32", 1, 4},
	[QUANT_F16] = {"F16", 1, 2},
	[QUANT_Q4_0] = {"Q4_0", 32, 18},
	[QUANT_Q4_1] = {"Q4_1", 32, 20},
	[4] = {"Q4_2", 0, 0},
	[5] = {"Q4_3", 0, 0},
	[QUANT_Q5_0] = {"Q5_0", 32, 22},
	[QUANT_Q5_1] = {"Q5_1", 32, 24},
	[QUANT_Q8_0] = {"Q8_0", 32, 34},
	[9] = {"Q8_1", 0, 0},
	[10] = {"Q2_K", 0, 0},
	[11] = {"Q3_K", 0, 0},
	[QUANT_Q4_K] = {"Q4_K", 256, 144},
	[QUANT_Q5_K] = {"Q5_K", 256, 176},
	[QUANT_Q6_K] = {"Q6_K", 256, 210},
	[15] = {"Q8_K", 0, 0},
	[16] = {"IQ2_XXS", 0, 0},
	[17] = {"IQ2_XS", 0, 0},
	[18] = {"IQ3_XXS", 0, 0},
	[19] = {"IQ1_S", 0, 0},
	[20] = {"IQ4_NL", 0, 0},
	[21] = {"IQ3_S", 0, 0},
	[22] = {"IQ2_S", 0, 0},
	[23] = {"IQ4_XS", 0, 0},
	[24] = {"I8", 0, 0},
	[25] = {"I16", 0, 0},
	[26] = {"I32", 0, 0},
	[27] = {"I64", 0, 0},
	[28] = {"F64", 0, 0},
	[29] = {"IQ1_M", 0, 0},
	[QUANT_BF16] = {"BF16", 1, 2},
	[34] = {"TQ1_0", 0, 0},
	[35] = {"TQ2_0", 0, 0},
	[39] = {"MXFP4", 0, 0},
};

const struct quant_traits *quant_traits(uint32_t type)
{
	if (type >= sizeof(traits) / sizeof(traits[0]) || traits[type].block_cols == 0)
		return NULL;
	return &traits[type];
}

const char *quant_type_name(uint32_t type, char out[static 16])
{
	if (type < sizeof(traits) / sizeof(traits[0]) && traits[type].name)
		snprintf(out, 16, "%s", traits[type].name);
	else
		snprintf(out, 16, "type %u", type);
	return out;
}

int quant_row_bytes(uint32_t type, uint64_t cols, uint64_t *ret_bytes)
{
	const struct quant_traits *t = quant_traits(type);
	if (!t)
		return -ENOTSUP;
	if (cols % t->block_cols)
		return -EINVAL;
	return base_size_mul(cols / t->block_cols, t->block_bytes, ret_bytes);
}

float quant_f16_to_f32(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff, bits;
	if (exponent == 31) {
		bits = sign | 0x7f800000 | mantissa << 13;
		if (mantissa)
			bits |= 0x00400000; // quiet, as the hardware's conversion does
	} else if (exponent) {
		bits = sign | (exponent + 112) << 23 | mantissa << 13;
	} else {
		// Zero and subnormals: mantissa * 2^-24 is exact in float.
		float f = (float)mantissa * 0x1p-24f;
		memcpy(&bits, &f, 4);
		bits |= sign;
	}
	float f;
	memcpy(&f, &bits, 4);
	return f;
}

uint16_t quant_f32_to_f16(float f)
{
	uint32_t bits;
	memcpy(&bits, &f, 4);
	uint16_t sign = (bits >> 16) & 0x8000;
	bits &= 0x7fffffff;
	if (bits > 0x7f800000)
		return sign | 0x7e00 | ((bits >> 13) & 0x3ff);
	if (bits >= 0x477ff000) // 65520, half way to the first value that is too large
		return sign | 0x7c00;
	if (bits < 0x38800000) {
		// Subnormal: adding 0.5 leaves the 24-bit sum's low bits in units of 2^-24, rounded to even by the FPU.
		float a;
		memcpy(&a, &bits, 4);
		a += 0.5f;
		memcpy(&bits, &a, 4);
		return sign | (uint16_t)(bits - 0x3f000000);
	}
	bits += 0xfff + ((bits >> 13) & 1);
	return sign | (uint16_t)((bits - 0x38000000) >> 13);
}

float quant_bf16_to_f32(uint16_t h)
{
	uint32_t bits = (uint32_t)h << 16;
	float f;
	memcpy(&f, &bits, 4);
	return f;
}
