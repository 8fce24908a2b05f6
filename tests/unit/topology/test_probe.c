// SPDX-License-Identifier: Apache-2.0
// The probe and its cache: what is reused, what is measured again, and what a broken cache does.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "topology/probe.h"
#include "topology/scan.h"

struct source {
	double busy;
	double drive;
	unsigned drives, computes;
	int fail;
};

static int drive(void *context, double *ret)
{
	struct source *s = context;
	s->drives++;
	*ret = s->drive;
	return s->fail;
}

static int compute(void *context, double *ret)
{
	((struct source *)context)->computes++;
	*ret = 3e11;
	return 0;
}

struct fixture {
	struct topology_machine machine;
	char folder[64], cache[96];
};

static double busy(void *context)
{
	return ((struct source *)context)->busy;
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	*state = f;
	snprintf(f->folder, sizeof f->folder, "/tmp/thaw-probe-XXXXXX");
	if (!mkdtemp(f->folder) || topology_scan(NULL, &f->machine, NULL) < 0)
		return -1;
	snprintf(f->cache, sizeof f->cache, "%s/probe.json", f->folder);
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	unlink(f->cache);
	int r = rmdir(f->folder); // no temporary file may be left
	free(f);
	return r;
}

static struct topology_bandwidths probe(struct fixture *f, struct source *s)
{
	const struct topology_probe_source source = {drive, compute, busy, s};
	struct topology_bandwidths b = {0};
	struct base_error e = {0};
	if (topology_probe(&f->machine, f->cache, &source, &b, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	return b;
}

static void memory_is_measured_within_its_time(void **state)
{
	struct fixture *f = *state;
	double rate = 0;
	uint64_t start = base_clock_now_ns();
	assert_int_equal(topology_probe_memory(&f->machine, 0, &rate, NULL), 0);
	print_message("memory %.1f GB/s in %.0f ms\n", rate / 1e9, (double)(base_clock_now_ns() - start) / 1e6);
	assert_true(rate > 1e7 && rate < 1e14);
	assert_int_equal(topology_probe_memory(&f->machine, 1, &rate, NULL), 0);
	f->machine.cpus = 0;
	assert_int_equal(topology_probe_memory(&f->machine, 1, &rate, NULL), -EINVAL);
}

static void the_second_start_reads_the_cache(void **state)
{
	struct source s = {.drive = 2e9};
	struct topology_bandwidths a = probe(*state, &s), b = probe(*state, &s);
	assert_int_equal(s.drives, 1);
	assert_int_equal(s.computes, 1);
	assert_true(a.drive_bytes_per_s == 2e9 && a.compute_macs_per_s == 3e11);
	assert_memory_equal(&a, &b, sizeof a);
}

static void a_drive_with_nothing_to_read_is_asked_again(void **state)
{
	struct source s = {.drive = 0};
	struct topology_bandwidths a = probe(*state, &s), b;
	assert_true(a.drive_bytes_per_s == 0);
	s.drive = 1e9;
	b = probe(*state, &s);
	assert_true(b.drive_bytes_per_s == 1e9 && b.memory_bytes_per_s == a.memory_bytes_per_s);
	probe(*state, &s);
	assert_int_equal(s.drives, 2);
	assert_int_equal(s.computes, 1);
}

static void another_machine_is_measured_anew(void **state)
{
	struct fixture *f = *state;
	struct source s = {.drive = 2e9};
	probe(f, &s);
	f->machine.memory_available_bytes -= 4096; // changes all the time: no reason
	probe(f, &s);
	assert_int_equal(s.computes, 1);
	f->machine.memory_bytes += 1u << 30;
	probe(f, &s);
	assert_int_equal(s.computes, 2);
}

static void a_bad_cache_is_ignored_and_replaced(void **state)
{
	static const char *const bad[] = {
		"", "{", "[]", "{\"version\": 99}", "{\"version\": 1, \"machine\": 5}", "\xff\xfe"};
	struct fixture *f = *state;
	struct source s = {.drive = 2e9};
	for (size_t i = 0; i < base_array_size(bad); i++) {
		FILE *out = fopen(f->cache, "w");
		fputs(bad[i], out);
		fclose(out);
		probe(f, &s);
		assert_int_equal(s.computes, i + 1);
	}
	probe(f, &s);
	assert_int_equal(s.computes, base_array_size(bad));
}

static void a_cached_figure_out_of_range_is_not_believed(void **state)
{
	struct fixture *f = *state;
	struct source s = {.drive = 2e9};
	char text[2048];
	probe(f, &s);
	FILE *in = fopen(f->cache, "r");
	size_t n = fread(text, 1, sizeof text - 1, in);
	fclose(in);
	text[n] = '\0';
	char *sign = strstr(strstr(text, "memory_bytes_per_s"), ":") + 1;
	*sign = '-';
	FILE *out = fopen(f->cache, "w");
	fputs(text, out);
	fclose(out);
	probe(f, &s);
	assert_int_equal(s.computes, 2);
}

/* What a busy machine measured must not stay for good. */
static void an_old_cache_is_measured_again(void **state)
{
	struct fixture *f = *state;
	struct source s = {.drive = 2e9};
	char text[2048];
	probe(f, &s);
	FILE *in = fopen(f->cache, "r");
	size_t n = fread(text, 1, sizeof text - 1, in);
	fclose(in);
	text[n] = '\0';
	char *wall = strstr(strstr(text, "measured_wall_ns"), ":") + 1;
	unsigned long long measured = strtoull(wall, NULL, 10);
	for (int old = 0; old < 2; old++) {
		FILE *out = fopen(f->cache, "w");
		fprintf(out, "%.*s %llu%s", (int)(wall - text), text,
			measured - (old ? 25ull : 23ull) * 3600000000000ull, wall + strcspn(wall, ",\n"));
		fclose(out);
		probe(f, &s);
		assert_int_equal(s.computes, 1 + old);
	}
}

/* Figures of a busy machine are used while it stays busy, and measured again as soon as it is not. */
static void a_busy_machine_is_measured_again(void **state)
{
	struct source s = {.drive = 1e9, .busy = 0.8};
	struct topology_bandwidths b = probe(*state, &s);
	assert_true(b.busy_ratio == 0.8 && b.drive_bytes_per_s == 1e9);
	s.drive = 3e9;
	b = probe(*state, &s);
	assert_true(b.drive_bytes_per_s == 1e9);
	assert_int_equal(s.computes, 1);
	s.busy = 0.01;
	b = probe(*state, &s);
	assert_true(b.drive_bytes_per_s == 3e9 && b.busy_ratio == 0.01);
	s.drive = 4e9;
	b = probe(*state, &s);
	assert_true(b.drive_bytes_per_s == 3e9);
	assert_int_equal(s.computes, 2);
	double now = topology_probe_busy();
	assert_true(now >= 0 && now <= 1);
}

static void a_failing_drive_is_named(void **state)
{
	struct fixture *f = *state;
	struct source s = {.fail = -EIO};
	const struct topology_probe_source source = {drive, compute, busy, &s};
	struct topology_bandwidths b = {0};
	struct base_error e = {0};
	assert_int_equal(topology_probe(&f->machine, f->cache, &source, &b, &e), -EIO);
	assert_non_null(strstr(e.message, "drive"));
	assert_true(access(f->cache, F_OK) < 0);
}

static void an_unwritable_cache_is_no_error(void **state)
{
	struct fixture *f = *state;
	struct topology_bandwidths b = {0};
	assert_int_equal(topology_probe(&f->machine, "/nonexistent/probe.json", NULL, &b, NULL), 0);
	assert_true(b.memory_bytes_per_s > 0 && b.drive_bytes_per_s == 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(memory_is_measured_within_its_time, setup, teardown),
		cmocka_unit_test_setup_teardown(the_second_start_reads_the_cache, setup, teardown),
		cmocka_unit_test_setup_teardown(a_drive_with_nothing_to_read_is_asked_again, setup, teardown),
		cmocka_unit_test_setup_teardown(another_machine_is_measured_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(a_bad_cache_is_ignored_and_replaced, setup, teardown),
		cmocka_unit_test_setup_teardown(a_cached_figure_out_of_range_is_not_believed, setup, teardown),
		cmocka_unit_test_setup_teardown(an_old_cache_is_measured_again, setup, teardown),
		cmocka_unit_test_setup_teardown(a_busy_machine_is_measured_again, setup, teardown),
		cmocka_unit_test_setup_teardown(a_failing_drive_is_named, setup, teardown),
		cmocka_unit_test_setup_teardown(an_unwritable_cache_is_no_error, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
