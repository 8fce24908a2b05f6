// SPDX-License-Identifier: Apache-2.0
// The small parts: memory, hash, residency.
#include "tests/unit/offload/fixture.h"

#include <errno.h>
#include <stdbool.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/size.h"
#include "offload/hash.h"
#include "offload/memory.h"
#include "offload/residency.h"

uint64_t offload_hash_baseline(const void *data, size_t bytes);
uint64_t offload_hash_avx2(const void *data, size_t bytes);
uint64_t offload_hash_avx512(const void *data, size_t bytes);

static void hash_is_the_same_for_every_instruction_set(void **state)
{
	static uint8_t data[70000];
	fixture_fill(data, sizeof data, 1);
	for (size_t n = 0; n <= sizeof data; n += n < 600 ? 1 : 997) {
		uint64_t want = XXH3_64bits(data, n);
		assert_true(offload_hash(data, n) == want);
		assert_true(offload_hash_baseline(data, n) == want);
#ifdef __x86_64__
		if (__builtin_cpu_supports("avx2"))
			assert_true(offload_hash_avx2(data, n) == want);
		if (__builtin_cpu_supports("avx512f"))
			assert_true(offload_hash_avx512(data, n) == want);
#endif
	}
}

static void memory_is_aligned_whole_and_zero(void **state)
{
	struct offload_memory m = {0};
	struct base_error e = {0};
	assert_int_equal(offload_memory_map((5 << 20) + 1, &m, &e), 0);
	assert_int_equal(m.bytes, 6 << 20);
	assert_int_equal((uintptr_t)m.data % BASE_HUGE_PAGE_BYTES, 0);
	for (size_t i = 0; i < m.bytes; i++)
		assert_int_equal(((uint8_t *)m.data)[i], 0);
	memset(m.data, 1, m.bytes);
	print_message("pages: %s\n", offload_pages_name(m.pages));
	offload_memory_unmap(&m);
	assert_null(m.data);
	offload_memory_unmap(&m);
}

static void memory_that_is_not_there_is_an_error_with_bytes(void **state)
{
	struct offload_memory m = {0};
	struct base_error e = {0};
	assert_int_equal(offload_memory_map(0, &m, &e), -EINVAL);
	assert_int_equal(offload_memory_map(SIZE_MAX - 5, &m, &e), -ENOMEM);
	assert_int_equal(offload_memory_map(1ull << 50, &m, &e), -ENOMEM); // beyond the address space
	assert_non_null(strstr(e.message, "1125899906842624"));
	assert_null(m.data);
}

#define MAX 400u

// What residency promises, for one random model and budget.
static void check_choice(uint64_t seed)
{
	struct offload_residency_extent x[MAX];
	bool hot[MAX];
	uint32_t groups = 1 + (uint32_t)(fixture_random(&seed) % 12), count = 0;
	uint64_t total = 0, pinned = 0, longest = 0;
	bool equal = fixture_random(&seed) % 2;
	for (uint32_t g = 0; g < groups; g++) {
		uint32_t n = 1 + (uint32_t)(fixture_random(&seed) % (MAX / 12));
		for (uint32_t i = 0; i < n; i++, count++) {
			x[count].bytes = equal ? 1 << 20 : 4096 * (uint32_t)(1 + fixture_random(&seed) % 256);
			x[count].group = g;
			x[count].pinned = fixture_random(&seed) % 16 == 0;
			total += x[count].bytes;
			pinned += x[count].pinned ? x[count].bytes : 0;
			if (!x[count].pinned && x[count].bytes > longest)
				longest = x[count].bytes;
		}
	}
	uint64_t budget = fixture_random(&seed) % (total + total / 8), hot_bytes = 12345;
	int r = offload_residency_choose(x, count, budget, hot, &hot_bytes);
	if (budget < pinned) {
		assert_int_equal(r, -ENOSPC);
		return;
	}
	assert_int_equal(r, 0);
	double rest = (double)(total - pinned), share = budget >= total ? 1
							: rest > 0      ? (double)(budget - pinned) / rest
									: 0;
	uint64_t sum = 0, seen = 0, chosen = 0, group_seen = 0, group_chosen = 0;
	for (uint32_t i = 0; i < count; i++) {
		sum += hot[i] ? x[i].bytes : 0;
		if (i == 0 || x[i].group != x[i - 1].group)
			group_seen = group_chosen = 0;
		if (x[i].pinned) {
			assert_true(hot[i]);
			continue;
		}
		seen += x[i].bytes;
		chosen += hot[i] ? x[i].bytes : 0;
		group_seen += x[i].bytes;
		group_chosen += hot[i] ? x[i].bytes : 0;
		double off = share * (double)seen - (double)chosen; // 1 byte: doubles round
		assert_true(off > -1 && off < (double)longest + 1);
		double group_off = share * (double)group_seen - (double)group_chosen;
		assert_true(group_off > -(double)longest - 1 && group_off < (double)longest + 1);
	}
	assert_true(sum == hot_bytes && sum <= budget);
	assert_true(budget < total || sum == total);
	assert_true(budget >= total || budget - sum < longest);
}

static void residency_is_even(void **state)
{
	for (uint64_t seed = 0; seed < 3000; seed++)
		check_choice(seed);
}

static void residency_alternates_at_one_half(void **state)
{
	struct offload_residency_extent x[8];
	bool hot[8];
	uint64_t bytes;
	for (int i = 0; i < 8; i++)
		x[i] = (struct offload_residency_extent){.bytes = 4096};
	assert_int_equal(offload_residency_choose(x, 8, 4 * 4096, hot, &bytes), 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(hot[i], i % 2);
	assert_int_equal(offload_residency_choose(x, 0, 0, hot, &bytes), 0);
	assert_int_equal(bytes, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hash_is_the_same_for_every_instruction_set),
		cmocka_unit_test(memory_is_aligned_whole_and_zero),
		cmocka_unit_test(memory_that_is_not_there_is_an_error_with_bytes),
		cmocka_unit_test(residency_is_even),
		cmocka_unit_test(residency_alternates_at_one_half),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
