// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "shard/rank/shape.h"

static void each_rank_has_one_place(void **state)
{
	static const struct rank_shape shapes[] = {
		{1, {1}}, {2, {1, 3}}, {3, {3, 1, 2}}, {4, {2, 2, 2, 2}}, {2, {5, 16}}};
	for (size_t i = 0; i < base_array_size(shapes); i++) {
		const struct rank_shape *s = &shapes[i];
		uint32_t rank = 0;
		assert_int_equal(rank_shape_check(s, RANK_MAX_RANKS), 0);
		for (uint32_t stage = 0; stage < s->stages; stage++) {
			for (uint32_t part = 0; part < s->parts[stage]; part++, rank++) {
				struct rank_place p = rank_shape_place(s, rank);
				assert_int_equal(p.stage, stage);
				assert_int_equal(p.part, part);
				assert_int_equal(rank_shape_rank(s, p), rank);
			}
		}
		assert_int_equal(rank_shape_ranks(s), rank);
		assert_int_equal(rank_shape_check(s, rank), 0);
		assert_int_equal(rank_shape_check(s, rank - 1), -EINVAL);
		assert_int_equal(rank_shape_answers(s), rank - s->parts[s->stages - 1]);
	}
}

/* Each rank of a later stage has hidden rows from exactly one of the stage before, which says the same; the first one
 * from the first one, where what went wrong is collected. */
static void hidden_rows_come_once(void **state)
{
	uint32_t to[RANK_MAX_PARTS];
	for (uint8_t n = 1; n <= RANK_MAX_PARTS; n++) {
		for (uint8_t m = 1; m <= RANK_MAX_PARTS; m++) {
			const struct rank_shape s = {3, {1, n, m}};
			uint32_t had[RANK_MAX_PARTS] = {0};
			for (uint32_t part = 0; part < n; part++) {
				uint32_t from = 1 + part, count = rank_shape_receivers(&s, from, to);
				for (uint32_t k = 0; k < count; k++) {
					struct rank_place p = rank_shape_place(&s, to[k]);
					assert_int_equal(p.stage, 2);
					assert_true(!k || to[k] > to[k - 1]);
					assert_int_equal(rank_shape_sender(&s, p), from);
					had[p.part]++;
				}
				if (n == m) {
					assert_int_equal(count, 1);
					assert_int_equal(to[0], from + n);
				}
			}
			for (uint32_t part = 0; part < m; part++)
				assert_int_equal(had[part], 1);
			assert_int_equal(rank_shape_sender(&s, (struct rank_place){2, 0}), 1);
			assert_int_equal(rank_shape_receivers(&s, 1u + n, to), 0); // the last stage
		}
	}
}

static void what_is_no_shape(void **state)
{
	static const struct rank_shape bad[] = {{0}, {1, {0}}, {2, {1}}, {1, {RANK_MAX_PARTS + 1}}, {1, {255}},
		{RANK_MAX_RANKS + 1, {1}}, {UINT32_MAX, {1}}, {4, {16, 16, 16, 16}}};
	static const char *const texts[] = {"", ",", "0", "01", "-1", "1,", ",1", "1,,1", "1 ", " 1", "+1", "1x", "17",
		"4294967297", "16,16,16,16", "1,0"};
	struct rank_shape s = {7, {1}}, before = s;
	char text[RANK_SHAPE_TEXT_BYTES];
	for (size_t i = 0; i < base_array_size(bad); i++)
		assert_int_equal(rank_shape_check(&bad[i], RANK_MAX_RANKS), -EINVAL);
	for (size_t i = 0; i < base_array_size(texts); i++)
		assert_int_equal(rank_shape_parse(texts[i], &s), -EINVAL);
	assert_int_equal(rank_shape_even(0, 1, &s), -EINVAL);
	assert_int_equal(rank_shape_even(1, 0, &s), -EINVAL);
	assert_int_equal(rank_shape_even(4, 16, &s), -EINVAL);
	assert_int_equal(rank_shape_even(UINT32_MAX, 1, &s), -EINVAL);
	assert_int_equal(rank_shape_even(1, 257, &s), -EINVAL);
	assert_memory_equal(&s, &before, sizeof s);
	assert_int_equal(rank_shape_parse("1,3,16", &s), 0);
	assert_string_equal(rank_shape_print(&s, text), "1,3,16");
	assert_int_equal(rank_shape_even(3, 16, &s), 0);
	assert_string_equal(rank_shape_print(&s, text), "16,16,16");
	assert_int_equal(rank_shape_even(RANK_MAX_RANKS, 1, &s), 0);
	assert_int_equal(strlen(rank_shape_print(&s, text)), 2 * RANK_MAX_RANKS - 1);
	assert_int_equal(rank_shape_parse(text, &before), 0);
	assert_memory_equal(&s, &before, sizeof s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_rank_has_one_place),
		cmocka_unit_test(hidden_rows_come_once),
		cmocka_unit_test(what_is_no_shape),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
