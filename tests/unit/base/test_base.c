// SPDX-License-Identifier: Apache-2.0
// base: errors, checked sizes, byte readers, units.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/size.h"
#include "base/units.h"

static void error_prefix_adds_where(void **state)
{
	struct base_error e = {0};
	assert_int_equal(base_error_set(&e, -EINVAL, "bad count %d", 7), -EINVAL);
	assert_int_equal(base_error_prefix(&e, "model.gguf"), -EINVAL);
	assert_string_equal(base_error_text(&e), "model.gguf: bad count 7");
	assert_int_equal(base_error_set(NULL, -EIO, "nobody listens"), -EIO);
}

static void error_text_falls_back_to_errno(void **state)
{
	struct base_error e = {.code = -ENOENT};
	assert_string_equal(base_error_text(&e), "No such file or directory");
}

static void size_overflow_is_refused(void **state)
{
	uint64_t r = 1;
	assert_int_equal(base_size_add(UINT64_MAX, 1, &r), -EOVERFLOW);
	assert_int_equal(base_size_mul(1ull << 40, 1ull << 40, &r), -EOVERFLOW);
	assert_int_equal(base_size_round_up(UINT64_MAX - 5, 4096, &r), -EOVERFLOW);
	assert_int_equal(r, 1);
	assert_int_equal(base_size_round_up(4097, 4096, &r), 0);
	assert_int_equal(r, 8192);
}

static void reader_is_sticky_and_bounded(void **state)
{
	const uint8_t data[] = {1, 0, 2, 0, 0, 0, 9};
	struct base_reader r;
	base_reader_init(&r, data, sizeof data);
	assert_int_equal(base_reader_u16(&r), 1);
	assert_int_equal(base_reader_u32(&r), 2);
	assert_int_equal(base_reader_left(&r), 1);
	assert_int_equal(base_reader_u32(&r), 0);
	assert_int_equal(r.status, -EBADMSG);
	assert_int_equal(base_reader_u8(&r), 0);
	assert_null(base_reader_bytes(&r, UINT64_MAX));
}

static void writer_stops_at_its_room(void **state)
{
	uint8_t out[6];
	struct base_writer w;
	base_writer_init(&w, out, sizeof out);
	base_writer_u32(&w, 0x01020304);
	base_writer_u32(&w, 5);
	assert_int_equal(w.status, -ENOBUFS);
	assert_int_equal(w.at, 4);
	assert_int_equal(out[0], 4);
}

static void units_need_their_unit(void **state)
{
	uint64_t v = 0;
	assert_int_equal(base_units_parse_bytes("70GiB", &v), 0);
	assert_true(v == 70ull << 30);
	assert_int_equal(base_units_parse_bytes("1.5MiB", &v), 0);
	assert_true(v == 3ull << 19);
	assert_int_equal(base_units_parse_bytes("0", &v), 0);
	assert_true(v == 0);
	assert_int_equal(base_units_parse_bytes("70", &v), -EINVAL);
	assert_int_equal(base_units_parse_bytes("-1B", &v), -EINVAL);
	assert_int_equal(base_units_parse_bytes("1gib", &v), -EINVAL);
	assert_int_equal(base_units_parse_bytes("99999999999TiB", &v), -ERANGE);
	char shown[BASE_UNITS_TEXT_BYTES];
	assert_string_equal(base_units_format_duration(1967000000, shown), "2.0 s");
	assert_string_equal(base_units_format_duration(999400000, shown), "999.4 ms");
	assert_int_equal(base_units_parse_duration("250ms", &v), 0);
	assert_true(v == 250000000);
	assert_int_equal(base_units_parse_duration("2s", &v), 0);
	assert_true(v == 2000000000);
	char text[BASE_UNITS_TEXT_BYTES];
	assert_string_equal(base_units_format_bytes(3ull << 29, text), "1.5 GiB");
	assert_string_equal(base_units_format_bytes(512, text), "512 B");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_prefix_adds_where),
		cmocka_unit_test(error_text_falls_back_to_errno),
		cmocka_unit_test(size_overflow_is_refused),
		cmocka_unit_test(reader_is_sticky_and_bounded),
		cmocka_unit_test(writer_stops_at_its_room),
		cmocka_unit_test(units_need_their_unit),
	};
	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
