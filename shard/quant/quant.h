/* SPDX-License-Identifier: Apache-2.0
 * Quantized tensor types: sizes, reference dequantization, and the kernel layout R16.
 *
 * Types and their block formats are GGUF's (ggml/docs/gguf.md); the numbers are the file's type ids.
 *
 * R16, the layout that shard files hold: rows are taken in groups of 16 (the last one filled up with zero
 * rows), and a group holds its rows' blocks interleaved so that one 64-byte vector carries the same few
 * columns of all 16 rows. A group is exactly 16 * quant_row_bytes(type, cols) bytes, so a packed tensor
 * never holds more bits per weight than the source. Groups are contiguous and in row order; a run of whole
 * groups is what a kernel, an extent piece and an embedding look-up address. quant/r16.c documents the
 * position of every field for each type.
 *
 * Pure functions, any thread, no allocation.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum quant_type {
	QUANT_F32 = 0,
	QUANT_F16 = 1,
	QUANT_Q4_0 = 2,
	QUANT_Q4_1 = 3,
	QUANT_Q5_0 = 6,
	QUANT_Q5_1 = 7,
	QUANT_Q8_0 = 8,
	QUANT_Q4_K = 12,
	QUANT_Q5_K = 13,
	QUANT_Q6_K = 14,
	QUANT_BF16 = 30,
};

#define QUANT_GROUP_ROWS 16u

struct quant_traits {
	const char *name; // "Q4_0"
	uint32_t block_cols; // columns per block: 1, 32 or 256
	uint32_t block_bytes;
};

/* NULL for a type that thaw does not compute with. */
const struct quant_traits *quant_traits(uint32_t type);

/* The name of any GGUF type id, known ones that are unsupported too ("IQ2_XXS"), or "type 99". */
const char *quant_type_name(uint32_t type, char out[static 16]);

/* Bytes of one row; cols must be a multiple of block_cols (-EINVAL), -EOVERFLOW, -ENOTSUP for an unknown type. */
int quant_row_bytes(uint32_t type, uint64_t cols, uint64_t *ret_bytes);

/* Source layout to float: the definition of each format's meaning; everything else is tested against it. */
int quant_dequantize_row(uint32_t type, const void *row, uint32_t cols, float *out /* (cols) */);

/* 16 source rows (row_bytes apart, `rows` of them present, 1..16) to one R16 group of 16 * row_bytes bytes. */
int quant_pack_r16(uint32_t type, const void *source, uint32_t rows, uint32_t cols, void *group);

/* One row (0..15) of an R16 group to float: embedding look-ups and the reference backend. Equals
 * quant_dequantize_row of the source row exactly. */
int quant_dequantize_r16(uint32_t type, const void *group, uint32_t row, uint32_t cols, float *out /* (cols) */);

float quant_f16_to_f32(uint16_t h);
uint16_t quant_f32_to_f16(float f); // round to nearest even
float quant_bf16_to_f32(uint16_t h);
