// SPDX-License-Identifier: Apache-2.0
// quant: what each format means, half floats, and that the R16 layout loses nothing.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "shard/quant/quant.h"

static const uint32_t types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1,
	QUANT_Q8_0, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};
#define TYPES (sizeof(types) / sizeof(types[0]))

static uint32_t random_next(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

static void half_floats_round_trip(void **state)
{
	for (uint32_t h = 0; h < 65536; h++) {
		float f = quant_f16_to_f32((uint16_t)h);
		if (isnan(f)) {
			assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff));
			assert_true(isnan(quant_f16_to_f32(quant_f32_to_f16(f))));
		} else {
			assert_int_equal(quant_f32_to_f16(f), h);
		}
	}
	assert_true(quant_f16_to_f32(0x3c00) == 1.0f);
	assert_true(quant_f16_to_f32(0xc000) == -2.0f);
	assert_true(quant_f16_to_f32(0x7bff) == 65504.0f);
	assert_true(quant_f16_to_f32(1) == 0x1p-24f);
	assert_true(isinf(quant_f16_to_f32(0x7c00)));
	assert_true(quant_bf16_to_f32(0xbf80) == -1.0f);
}

static void half_floats_round_to_nearest_even(void **state)
{
	// Every half-way point between neighbours goes to the even one; a hair more or less to the nearer one.
	for (uint32_t h = 0; h < 0x7bff; h++) {
		float low = quant_f16_to_f32((uint16_t)h), high = quant_f16_to_f32((uint16_t)(h + 1));
		float middle = (float)(((double)low + high) / 2);
		assert_int_equal(quant_f32_to_f16(middle), h & 1 ? h + 1 : h);
		assert_int_equal(quant_f32_to_f16(nextafterf(middle, 0)), h);
		assert_int_equal(quant_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
		assert_int_equal(quant_f32_to_f16(-middle), 0x8000 | (h & 1 ? h + 1 : h));
	}
	assert_int_equal(quant_f32_to_f16(65520.0f), 0x7c00);
	assert_int_equal(quant_f32_to_f16(65519.0f), 0x7bff);
	assert_int_equal(quant_f32_to_f16(1e-30f), 0);
}

static void sizes_are_checked(void **state)
{
	uint64_t bytes = 1;
	assert_int_equal(quant_row_bytes(QUANT_Q4_0, 576, &bytes), 0);
	assert_int_equal(bytes, 324);
	assert_int_equal(quant_row_bytes(QUANT_Q6_K, 512, &bytes), 0);
	assert_int_equal(bytes, 420);
	assert_int_equal(quant_row_bytes(QUANT_Q4_0, 33, &bytes), -EINVAL);
	assert_int_equal(quant_row_bytes(QUANT_Q4_K, 576, &bytes), -EINVAL);
	assert_int_equal(quant_row_bytes(QUANT_F32, UINT64_MAX, &bytes), -EOVERFLOW);
	assert_int_equal(quant_row_bytes(16, 256, &bytes), -ENOTSUP);
	assert_int_equal(quant_row_bytes(UINT32_MAX, 256, &bytes), -ENOTSUP);
	assert_int_equal(bytes, 420);
	char name[16];
	assert_string_equal(quant_type_name(16, name), "IQ2_XXS");
	assert_string_equal(quant_type_name(QUANT_Q5_K, name), "Q5_K");
	assert_string_equal(quant_type_name(99, name), "type 99");
	assert_string_equal(quant_type_name(UINT32_MAX, name), "type 4294967295");
}

static void packing_refuses_what_does_not_fit(void **state)
{
	uint8_t source[64] = {0}, group[1024];
	float out[64];
	assert_int_equal(quant_pack_r16(QUANT_Q4_0, source, 17, 32, group), -EINVAL);
	assert_int_equal(quant_pack_r16(QUANT_Q4_0, source, 0, 32, group), -EINVAL);
	assert_int_equal(quant_pack_r16(QUANT_Q4_0, source, 1, 31, group), -EINVAL);
	assert_int_equal(quant_pack_r16(11, source, 1, 32, group), -ENOTSUP);
	assert_int_equal(quant_dequantize_r16(QUANT_Q4_0, group, 16, 32, out), -EINVAL);
	assert_int_equal(quant_dequantize_row(QUANT_Q4_K, source, 32, out), -EINVAL);
}

/* Known blocks, worked out by hand from the format's description. */
static void formats_mean_what_gguf_says(void **state)
{
	float out[256];
	uint8_t q4_0[18] = {0x00, 0x38}; // d = 0.5
	q4_0[2] = 0xf0; // column 0: 0, column 16: 15
	q4_0[17] = 0x8a; // column 15: 10, column 31: 8
	assert_int_equal(quant_dequantize_row(QUANT_Q4_0, q4_0, 32, out), 0);
	assert_true(out[0] == -4 && out[16] == 3.5f && out[15] == 1 && out[31] == 0 && out[1] == -4);

	uint8_t q5_1[24] = {0x00, 0x3c, 0x00, 0xc0}; // d = 1, m = -2
	q5_1[4] = 1; // bit 0: column 0
	q5_1[7] = 0x80; // bit 31: column 31
	q5_1[8] = 0x03; // column 0: 3 + 16
	q5_1[23] = 0x70; // column 31: 7 + 16
	assert_int_equal(quant_dequantize_row(QUANT_Q5_1, q5_1, 32, out), 0);
	assert_true(out[0] == 17 && out[31] == 21 && out[15] == -2);

	uint8_t q8_0[34] = {0x00, 0x40, 0x80, 0x7f}; // d = 2; -128, 127
	assert_int_equal(quant_dequantize_row(QUANT_Q8_0, q8_0, 32, out), 0);
	assert_true(out[0] == -256 && out[1] == 254 && out[2] == 0);

	uint8_t q4_k[144] = {0x00, 0x3c, 0x00, 0x3c}; // d = dmin = 1
	q4_k[4 + 0] = 0xc1; // scale 0 = 1, upper bits of scale 4 = 3
	q4_k[4 + 4] = 0x42; // min 0 = 2, upper bits of min 4 = 1
	q4_k[4 + 8] = 0x35; // scale 4 = 5 + 48, min 4 = 3 + 16
	q4_k[16] = 0x07; // column 0
	q4_k[16 + 64] = 0x01; // column 128
	assert_int_equal(quant_dequantize_row(QUANT_Q4_K, q4_k, 256, out), 0);
	assert_true(out[0] == 5 && out[1] == -2 && out[128] == 53 - 19 && out[129] == -19 && out[32] == 0);

	uint8_t q6_k[210] = {0};
	q6_k[209] = 0x3c; // d = 1
	memset(q6_k + 192, 1, 16);
	q6_k[192 + 15] = 0xfe; // scale 15 = -2
	q6_k[0] = 0x21; // column 0: 1, column 64: 2
	q6_k[127] = 0xf0; // columns 128 + 63: 0, 255: 15
	q6_k[128] = 0x31; // column 0: +16, column 64: +48
	q6_k[128 + 63] = 0xc0; // column 255: +48
	assert_int_equal(quant_dequantize_row(QUANT_Q6_K, q6_k, 256, out), 0);
	assert_true(out[0] == 17 - 32 && out[64] == 50 - 32 && out[255] == -2 * (63 - 32) && out[240] == 64);
}

/* Random bytes are valid blocks of every type: each bit pattern has a meaning (NaN included, so bits are compared). */
static void r16_loses_nothing(void **state)
{
	static const uint32_t all_cols[] = {32, 64, 96, 256, 512, 576, 768};
	uint32_t seed = 1;
	for (size_t i = 0; i < TYPES; i++)
		for (size_t k = 0; k < sizeof(all_cols) / sizeof(all_cols[0]); k++) {
			uint32_t cols = all_cols[k], rows = k % 2 ? 16 : 11;
			uint64_t row_bytes;
			if (quant_row_bytes(types[i], cols, &row_bytes))
				continue;
			uint8_t *source = malloc(rows * row_bytes), *group = malloc(16 * row_bytes);
			float *a = malloc(cols * sizeof(float)), *b = malloc(cols * sizeof(float));
			assert_true(source && group && a && b);
			for (uint64_t n = 0; n < rows * row_bytes; n++)
				source[n] = (uint8_t)random_next(&seed);
			memset(group, 0xa5, 16 * row_bytes);
			assert_int_equal(quant_pack_r16(types[i], source, rows, cols, group), 0);
			for (uint32_t r = 0; r < 16; r++) {
				assert_int_equal(quant_dequantize_r16(types[i], group, r, cols, b), 0);
				if (r < rows)
					assert_int_equal(
						quant_dequantize_row(types[i], source + r * row_bytes, cols, a), 0);
				else
					memset(source, 0, row_bytes), quant_dequantize_row(types[i], source, cols, a);
				assert_memory_equal(a, b, cols * sizeof(float));
			}
			free(source);
			free(group);
			free(a);
			free(b);
		}
}

/* Each bit of the source changes the group: the layout has room for all of them and nothing overlaps. */
static void r16_keeps_every_bit(void **state)
{
	for (size_t i = 0; i < TYPES; i++) {
		const struct quant_traits *t = quant_traits(types[i]);
		uint32_t cols = t->block_cols * 3;
		uint8_t source[3 * 256] = {0}, group[3 * 256 * 16], seen[3 * 256 * 16] = {0};
		size_t bytes = (size_t)t->block_bytes * 3;
		for (size_t bit = 0; bit < bytes * 8; bit++) {
			source[bit / 8] = (uint8_t)(1 << bit % 8);
			assert_int_equal(quant_pack_r16(types[i], source, 1, cols, group), 0);
			source[bit / 8] = 0;
			uint32_t set = 0;
			for (size_t n = 0; n < bytes * 16; n++) {
				set += (uint32_t)__builtin_popcount(group[n]);
				assert_int_equal(seen[n] & group[n], 0);
				seen[n] |= group[n];
			}
			assert_int_equal(set, 1);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(half_floats_round_trip),
		cmocka_unit_test(half_floats_round_to_nearest_even),
		cmocka_unit_test(sizes_are_checked),
		cmocka_unit_test(packing_refuses_what_does_not_fit),
		cmocka_unit_test(formats_mean_what_gguf_says),
		cmocka_unit_test(r16_loses_nothing),
		cmocka_unit_test(r16_keeps_every_bit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
