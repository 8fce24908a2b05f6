// SPDX-License-Identifier: Apache-2.0
// kv: geometry, stored vectors, and the allocator.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>

#include "shard/kv/kv.h"

static void geometry(void **state)
{
	uint32_t vector = 7;
	uint64_t block = 7;
	assert_int_equal(kv_vector_bytes(KV_F16, 64, &vector), 0);
	assert_int_equal(vector, 128);
	assert_int_equal(kv_vector_bytes(KV_Q8, 64, &vector), 0);
	assert_int_equal(vector, 68);
	assert_int_equal(kv_vector_bytes(KV_Q8, 80, &vector), -EINVAL);
	assert_int_equal(kv_vector_bytes(KV_F16, 0, &vector), -EINVAL);
	assert_int_equal(kv_vector_bytes((enum kv_type)9, 64, &vector), -EINVAL);
	assert_int_equal(vector, 68);
	assert_int_equal(kv_block_bytes(KV_F16, 30, 3, 64, &block), 0);
	assert_int_equal(block, 30ull * 3 * 64 * 2 * 2 * 16);
	assert_int_equal(kv_block_bytes(KV_F16, UINT32_MAX, UINT32_MAX, 1u << 20, &block), -EOVERFLOW);
	assert_int_equal(kv_block_bytes(KV_F16, 0, 3, 64, &block), -EINVAL);
}

static void fill(float *x, int seed)
{
	for (int i = 0; i < 64; i++)
		x[i] = sinf((float)(i + seed) * 0.7f) * (i < 32 ? 3.0f : 100.0f);
}

static void check(enum kv_type type, const float *x, const float *y)
{
	for (int i = 0; i < 64; i++) {
		float max = i < 32 ? 3.0f : 100.0f;
		// float16: half of its last place. Q8: half a step of max/127, and the scale's own rounding of 2^-11.
		float bound = type == KV_F16 ? fabsf(x[i]) * 0x1p-11f : max * (0.51f / 127 + 0x1p-11f);
		assert_true(fabsf(x[i] - y[i]) <= bound);
	}
}

/* All 16 positions of a block, so that one that overwrites another is noticed. */
static void vectors_come_back(void **state)
{
	for (int type = KV_F16; type <= KV_Q8; type++) {
		float x[64], y[64];
		unsigned char k[64 * 2 * 16], v[64 * 2 * 16];
		for (uint32_t slot = 0; slot < 16; slot++) {
			fill(x, (int)slot);
			kv_key_store(type, x, 64, slot, k);
			kv_value_store(type, x, 64, slot, v);
		}
		for (uint32_t slot = 0; slot < 16; slot++) {
			fill(x, (int)slot);
			kv_key_load(type, k, slot, 64, y);
			check(type, x, y);
			kv_value_load(type, v, slot, 64, y);
			check(type, x, y);
		}
	}
	float zero[32] = {0}, y[32];
	unsigned char stored[34];
	kv_value_store(KV_Q8, zero, 32, 0, stored);
	kv_value_load(KV_Q8, stored, 0, 32, y);
	assert_memory_equal(zero, y, sizeof(zero));
}

static void blocks_are_taken_once(void **state)
{
	struct kv_allocator *a;
	uint32_t first[5], second[5], more[1];
	assert_int_equal(kv_allocator_create(8, &a), 0);
	assert_int_equal(kv_allocator_total_blocks(a), 8);
	assert_int_equal(kv_allocator_take(a, 5, first), 0);
	assert_int_equal(kv_allocator_take(a, 5, second), -ENOSPC);
	assert_int_equal(kv_allocator_free_blocks(a), 3); // all or none
	assert_int_equal(kv_allocator_take(a, 3, second), 0);
	assert_int_equal(kv_allocator_take(a, 1, more), -ENOSPC);
	assert_int_equal(kv_allocator_take(a, 0, more), 0);
	uint32_t seen = 0;
	for (int i = 0; i < 8; i++) {
		uint32_t block = i < 5 ? first[i] : second[i - 5];
		assert_true(block < 8);
		seen |= 1u << block;
	}
	assert_int_equal(seen, 0xff);
	kv_allocator_give(a, first, 5);
	assert_int_equal(kv_allocator_free_blocks(a), 5);
	kv_allocator_destroy(a);
	kv_allocator_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(geometry),
		cmocka_unit_test(vectors_come_back),
		cmocka_unit_test(blocks_are_taken_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
