// SPDX-License-Identifier: Apache-2.0
// base: errors, checked sizes, byte readers, units.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/address.h"
#include "base/bytes.h"
#include "base/error.h"
#include "base/file.h"
#include "base/size.h"
#include "base/trace.h"
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
	assert_int_equal(base_reader_u8(&r), 1);
	assert_int_equal(base_reader_u8(&r), 0);
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
	assert_string_equal(base_units_exact_bytes(3ull << 29, text), "1536MiB");
	assert_string_equal(base_units_exact_bytes(5000ull << 40, text), "5000TiB");
	assert_string_equal(base_units_exact_bytes(1025, text), "1025B");
	assert_string_equal(base_units_exact_bytes(0, text), "0B");
}

static void addresses_are_taken_apart_in_one_way(void **state)
{
	static const struct {
		const char *text, *host, *port;
		bool six, loopback;
	} good[] = {
		{"127.0.0.1:50151", "127.0.0.1", "50151", false, true},
		{"127.8.9.1:1", "127.8.9.1", "1", false, true},
		{"localhost:0", "localhost", "0", false, true},
		{"[::1]:1", "::1", "1", true, true},
		{"[::]:65535", "::", "65535", true, false},
		{"[fe80::1]:9", "fe80::1", "9", true, false},
		{"gpu-a.example.org:50151", "gpu-a.example.org", "50151", false, false},
		{"10.0.0.1:1", "10.0.0.1", "1", false, false},
	};
	static const struct {
		const char *text, *word;
	} bad[] = {{"", "HOST:PORT"}, {":1", "HOST:PORT"}, {"localhost", "HOST:PORT"}, {"localhost:", "not a port"},
		{"localhost:http", "not a port"}, {"localhost:65536", "not a port"}, {"localhost:-1", "not a port"},
		{"localhost:1 ", "not a port"}, {"localhost:000001", "not a port"}, {"::1:1", "[::1]:1"},
		{"[::1]", "HOST:PORT"}, {"[::1]1:1", "HOST:PORT"}, {"[::1:1", "HOST:PORT"}, {"[]:1", "IPv6"},
		{"[localhost]:1", "IPv6"}, {"[1.2.3.4]:1", "IPv6"}, {"dns://x:1", "in brackets"}};
	struct base_address a;
	char longest[400];
	for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
		assert_int_equal(base_address_parse(good[i].text, &a, NULL), 0);
		assert_string_equal(a.host, good[i].host);
		assert_string_equal(a.port, good[i].port);
		assert_int_equal(a.number, atoi(good[i].port));
		assert_int_equal(a.six, good[i].six);
		assert_int_equal(base_address_is_loopback(&a), good[i].loopback);
	}
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		struct base_error e = {0};
		assert_int_equal(base_address_parse(bad[i].text, &a, &e), -EINVAL);
		assert_non_null(strstr(e.message, bad[i].word));
	}
	memset(longest, 'a', sizeof longest);
	snprintf(longest + 300, sizeof longest - 300, ":1");
	assert_int_equal(base_address_parse(longest, &a, NULL), -EINVAL);
}

static void a_file_is_replaced_as_a_whole(void **state)
{
	char folder[] = "/tmp/thaw-base-XXXXXX", text[16] = "";
	assert_non_null(mkdtemp(folder));
	int dir = open(folder, O_RDONLY | O_DIRECTORY);
	assert_int_equal(base_file_replace(dir, "a.json", "old", 3), 0);
	assert_int_equal(base_file_replace(dir, "a.json", "newer", 5), 0);
	int fd = openat(dir, "a.json", O_RDONLY);
	assert_int_equal(read(fd, text, sizeof text), 5);
	assert_string_equal(text, "newer");
	assert_int_equal(faccessat(dir, "a.json.tmp", F_OK, 0), -1);
	// A folder that has the name: nothing is changed and nothing is left over.
	assert_int_equal(mkdirat(dir, "b", 0700), 0);
	assert_true(base_file_replace(dir, "b", "x", 1) < 0);
	assert_int_equal(faccessat(dir, "b.tmp", F_OK, 0), -1);
	close(fd);
	unlinkat(dir, "a.json", 0);
	unlinkat(dir, "b", AT_REMOVEDIR);
	close(dir);
	rmdir(folder);
}

static void a_trace_keeps_the_latest_spans(void **state)
{
	struct base_trace t;
	struct base_trace_event out[16];
	uint32_t total;
	uint64_t lost;
	base_trace_init(&t);
	assert_false(base_trace_on(NULL));
	assert_int_equal(base_trace_begin(&t), 0); // off
	base_trace_end(&t, 0, BASE_TRACE_MATMUL, 1, 1);
	assert_int_equal(base_trace_read(&t, 0, out, 16, &total, &lost), 0);
	assert_int_equal(base_trace_start(&t, 0), -EINVAL);
	assert_int_equal(base_trace_start(&t, BASE_TRACE_EVENTS + 1), -EINVAL);

	uint64_t early = base_clock_now_ns();
	assert_int_equal(base_trace_start(&t, 8), 0);
	base_trace_end(&t, early, BASE_TRACE_MATMUL, 99, 0); // began before
	uint64_t begin = base_trace_begin(&t);
	base_trace_record(
		&t, &(struct base_trace_event){.start_ns = begin + 1, .end_ns = begin}); // ends before it begins
	for (uint32_t i = 0; i < 20; i++)
		base_trace_end(&t, begin, BASE_TRACE_READ, i, 4096);
	base_trace_stop(&t);
	base_trace_end(&t, begin, BASE_TRACE_READ, 99, 0); // after the end
	assert_int_equal(base_trace_read(&t, 0, out, 16, &total, &lost), 8);
	assert_int_equal(total, 8);
	assert_int_equal(lost, 12);
	for (uint32_t i = 0; i < 8; i++) {
		assert_int_equal(out[i].place, 12 + i);
		assert_true(out[i].start_ns == begin && out[i].end_ns >= begin);
	}
	assert_int_equal(base_trace_read(&t, 6, out, 16, &total, &lost), 2); // the last piece
	assert_int_equal(out[0].place, 18);
	assert_int_equal(base_trace_read(&t, 9, out, 16, &total, &lost), 0);
	assert_int_equal(base_trace_start(&t, 4), 0); // anew: nothing of before
	assert_int_equal(base_trace_read(&t, 0, out, 16, &total, &lost), 0);
	base_trace_clear(&t);
	base_trace_end(&t, begin, BASE_TRACE_READ, 99, 0);
	assert_int_equal(base_trace_read(&t, 0, out, 16, &total, &lost), 0);
	base_trace_finish(&t);
}

static void *trace_on_and_on(void *argument)
{
	struct base_trace *t = argument;
	for (uint32_t i = 1; i < 20000; i++)
		base_trace_end(t, base_trace_begin(t), BASE_TRACE_SEND, i, i);
	return NULL;
}

/* Two threads record while a third starts, stops, reads and clears. */
static void threads_trace_whole_spans(void **state)
{
	struct base_trace t;
	struct base_trace_event out[64];
	pthread_t thread[2];
	uint32_t total;
	uint64_t lost;
	base_trace_init(&t);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, trace_on_and_on, &t), 0);
	for (int round = 0; round < 100; round++) {
		assert_int_equal(base_trace_start(&t, 64), 0);
		sched_yield();
		base_trace_stop(&t);
		uint32_t n = base_trace_read(&t, 0, out, 64, &total, &lost);
		assert_int_equal(n, total);
		for (uint32_t i = 0; i < n; i++)
			assert_true(out[i].place == out[i].amount && out[i].start_ns <= out[i].end_ns &&
				    out[i].kind == BASE_TRACE_SEND);
		base_trace_clear(&t);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	base_trace_finish(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(error_prefix_adds_where),
		cmocka_unit_test(error_text_falls_back_to_errno),
		cmocka_unit_test(size_overflow_is_refused),
		cmocka_unit_test(reader_is_sticky_and_bounded),
		cmocka_unit_test(writer_stops_at_its_room),
		cmocka_unit_test(addresses_are_taken_apart_in_one_way),
		cmocka_unit_test(a_file_is_replaced_as_a_whole),
		cmocka_unit_test(units_need_their_unit),
		cmocka_unit_test(a_trace_keeps_the_latest_spans),
		cmocka_unit_test(threads_trace_whole_spans),
	};
	return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
