// SPDX-License-Identifier: Apache-2.0
// The stream and the engines below it, with real files: every case runs through both engines.
#include "tests/unit/offload/fixture.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "base/clock.h"
#include "offload/hash.h"
#include "offload/stream.h"
#include "tests/lib/wait.h"

#define EXTENT (64u << 10)
#define FILES 3u
#define PER_FILE 10u

struct ring {
	struct fixture *fixture;
	struct offload_store *stores[FILES];
	int files[FILES];
	struct offload_stream_item items[FILES * PER_FILE];
	uint32_t count;
	struct offload_stream *stream;
};

// Extents of different lengths; item i starts with the bytes of seed (file * 1000 + piece).
static void make_ring(struct ring *g, struct fixture *f)
{
	g->fixture = f;
	for (uint32_t k = 0; k < FILES; k++) {
		char name[16];
		snprintf(name, sizeof name, "layer%u", k);
		fixture_store(f->fd, name, EXTENT, PER_FILE, 40000 + 9000 * k, 1000 * k);
		struct base_error e;
		assert_int_equal(offload_store_open(f->fd, name, NULL, &g->stores[k], &e), 0);
		g->files[k] = offload_store_fd(g->stores[k]);
		uint32_t n;
		const struct offload_store_extent *x = offload_store_extents(g->stores[k], &n);
		assert_int_equal(n, PER_FILE);
		for (uint32_t i = 0; i < n; i++)
			g->items[g->count++] = (struct offload_stream_item){k, &x[i]};
	}
}

static struct offload_stream_config ring_config(struct ring *g, const char *engine)
{
	return (struct offload_stream_config){
		.engine = engine,
		.files = g->files,
		.files_count = FILES,
		.items = g->items,
		.items_count = g->count,
		.slots = 6,
		.slot_bytes = EXTENT,
		.depth = 4,
		.verify_every = 1,
	};
}

static void start(struct ring *g, struct fixture *f, const char *engine)
{
	*g = (struct ring){0};
	make_ring(g, f);
	struct offload_stream_config c = ring_config(g, engine);
	struct base_error e = {0};
	int r = offload_stream_create(&c, &g->stream, NULL, &e);
	if (r == -EPERM || r == -ENOSYS || r == -EACCES) {
		print_message("skipped: %s\n", e.message);
		skip();
	}
	assert_int_equal(r, 0);
	assert_string_equal(offload_stream_engine(g->stream), engine);
}

static void finish(struct ring *g)
{
	offload_stream_destroy(g->stream);
	for (uint32_t k = 0; k < FILES; k++)
		offload_store_close(g->stores[k]);
}

static void expect(struct ring *g, uint32_t i, uint32_t *ret_slot)
{
	const void *data = NULL;
	struct base_error e = {0};
	int r = offload_stream_next(g->stream, &data, ret_slot, &e);
	if (r < 0)
		fail_msg("item %u: %s", i, e.message);
	const struct offload_store_extent *x = g->items[i].extent;
	assert_true(offload_hash(data, x->length_bytes) == x->xxh3);
	uint8_t want[64];
	fixture_fill(want, sizeof want, 1000 * (i / PER_FILE) + i % PER_FILE);
	assert_memory_equal(data, want, sizeof want);
}

static void delivers_in_order_round_and_round(struct ring *g)
{
	for (uint32_t k = 0; k < 5 * g->count; k++) {
		uint32_t slot;
		expect(g, k % g->count, &slot);
		offload_stream_release(g->stream, slot);
	}
	struct offload_stream_stats stats;
	offload_stream_get_stats(g->stream, &stats);
	assert_true(stats.reads >= 5 * g->count && stats.reads <= 5 * g->count + 6);
	assert_int_equal(stats.errors, 0);
	assert_true(stats.read_bytes > 0 && stats.verify_ns > 0 && stats.io_cpu_ns >= stats.verify_ns);
	assert_true(stats.read_latency_ns > 0);
}

static void releases_out_of_order(struct ring *g)
{
	uint32_t held[5], n = 0;
	uint64_t seed = 5;
	for (uint32_t k = 0; k < 4 * g->count; k++) {
		if (n == 5 || (n > 0 && fixture_random(&seed) % 3 == 0)) {
			uint32_t pick = (uint32_t)(fixture_random(&seed) % n);
			offload_stream_release(g->stream, held[pick]);
			held[pick] = held[--n];
		}
		expect(g, k % g->count, &held[n]);
		n++;
	}
	while (n > 0)
		offload_stream_release(g->stream, held[--n]);
}

static void holding_all_slots_is_an_error_not_a_hang(struct ring *g)
{
	uint32_t held[6], slot;
	const void *data;
	struct base_error e = {0};
	for (uint32_t k = 0; k < 6; k++)
		expect(g, k, &held[k]);
	assert_int_equal(offload_stream_next(g->stream, &data, &slot, &e), -EDEADLK);
	offload_stream_release(g->stream, held[3]);
	expect(g, 6, &held[3]);
	for (uint32_t k = 0; k < 6; k++)
		offload_stream_release(g->stream, held[k]);
	expect(g, 7, &slot);
	offload_stream_release(g->stream, slot);
}

static void rewinds_from_anywhere(struct ring *g)
{
	uint64_t seed = 3;
	for (uint32_t round = 0; round < 60; round++) {
		uint32_t n = (uint32_t)(fixture_random(&seed) % (2 * g->count)), slot;
		if (round % 7 == 0)
			n = g->count; // exactly a pass: nothing is lost
		for (uint32_t k = 0; k < n; k++) {
			expect(g, k % g->count, &slot);
			offload_stream_release(g->stream, slot);
		}
		if (round % 3 == 0)
			sched_yield();
		offload_stream_rewind(g->stream);
		if (round % 5 == 0)
			offload_stream_rewind(g->stream);
	}
}

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static struct offload_stream_stats stats_of(struct ring *g)
{
	struct offload_stream_stats s;
	offload_stream_get_stats(g->stream, &s);
	return s;
}

static bool has_read(struct ring *g, uint64_t reads)
{
	struct offload_stream_stats s = stats_of(g);
	return s.reads == reads && !s.inflight;
}

/* Whether the first item of the next pass was there when it was asked for, so long after the last read. */
static bool was_there(struct ring *g, uint64_t *used, long ms)
{
	uint32_t slot;
	do {
		expect(g, *used % g->count, &slot);
		offload_stream_release(g->stream, slot);
	} while (++*used % g->count);
	uint64_t want = *used + 6;
	testing_wait_until(has_read(g, want)); // all slots are full again
	sleep_ms(ms); // the last checksum
	offload_stream_rewind(g->stream); // a no-op here
	uint64_t late = stats_of(g).late;
	expect(g, 0, &slot);
	bool there = stats_of(g).late == late;
	assert_int_equal(stats_of(g).reads, want);
	offload_stream_release(g->stream, slot);
	++*used;
	return there;
}

static void looks_ahead_across_the_end_of_a_pass(struct ring *g)
{
	uint64_t used = 0;
	bool there = false;
	for (long ms = 20; ms < 1000 && !there; ms *= 2) // the machine may have other things to do
		there = was_there(g, &used, ms);
	assert_true(there);
}

static uint64_t cpu_of_an_idle_while(struct ring *g)
{
	uint64_t before = stats_of(g).io_cpu_ns;
	sleep_ms(300);
	return stats_of(g).io_cpu_ns - before;
}

static void an_idle_stream_costs_nothing(struct ring *g)
{
	testing_wait_until(cpu_of_an_idle_while(g) < 3000000); // 1 %, as soon as its slots are full
}

static void may_be_destroyed_at_any_time(struct ring *g)
{
	struct base_error e;
	struct offload_stream_config c = ring_config(g, offload_stream_engine(g->stream));
	for (uint32_t n = 0; n < 20; n++) {
		struct offload_stream *s;
		assert_int_equal(offload_stream_create(&c, &s, NULL, &e), 0);
		const void *data;
		uint32_t slot;
		for (uint32_t k = 0; k < n % 7; k++) {
			if (k == 6)
				break;
			assert_int_equal(offload_stream_next(s, &data, &slot, &e), 0);
			if (n % 2)
				offload_stream_release(s, slot);
		}
		offload_stream_destroy(s);
	}
}

static void damage_is_reported_for_its_extent_only(struct ring *g)
{
	// Items 12 and 13 lie in the slots no longer than 6 items ahead, so damage is done before they are read.
	char name[80];
	snprintf(name, sizeof name, "%s/layer1", g->fixture->path);
	int fd = open(name, O_WRONLY);
	assert_int_equal(pwrite(fd, "x", 1, (off_t)g->items[12].extent->offset_bytes + 777), 1);
	assert_int_equal(fsync(fd), 0);
	close(fd);
	for (uint32_t k = 0; k < 3 * g->count; k++) {
		uint32_t slot;
		if (k % g->count != 12) {
			expect(g, k % g->count, &slot);
			offload_stream_release(g->stream, slot);
			continue;
		}
		const void *data;
		struct base_error e = {0};
		assert_int_equal(offload_stream_next(g->stream, &data, &slot, &e), -EBADMSG);
		assert_non_null(strstr(e.message, "layer1: checksum"));
	}
	struct offload_stream_stats stats;
	offload_stream_get_stats(g->stream, &stats);
	assert_true(stats.rereads >= 3 && stats.errors == 2 * stats.rereads);
}

static void a_file_that_ends_early_is_an_io_error(struct ring *g)
{
	char name[80];
	snprintf(name, sizeof name, "%s/layer2", g->fixture->path);
	assert_int_equal(truncate(name, (off_t)g->items[25].extent->offset_bytes + 8192), 0);
	for (uint32_t k = 0; k < 2 * g->count; k++) {
		uint32_t slot;
		if (k % g->count < 25) {
			expect(g, k % g->count, &slot);
			offload_stream_release(g->stream, slot);
			continue;
		}
		const void *data;
		struct base_error e = {0};
		assert_int_equal(offload_stream_next(g->stream, &data, &slot, &e), -EIO);
		assert_non_null(strstr(e.message, "ends there"));
	}
}

struct counting {
	struct ring *ring;
	_Atomic bool stop;
};

static void *read_stats(void *arg)
{
	struct counting *c = arg;
	uint64_t last = 0;
	while (!c->stop) {
		struct offload_stream_stats stats;
		offload_stream_get_stats(c->ring->stream, &stats);
		assert(stats.read_bytes >= last);
		last = stats.read_bytes;
		sched_yield();
	}
	return NULL;
}

static void stats_from_another_thread(struct ring *g)
{
	struct counting c = {.ring = g};
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, read_stats, &c), 0);
	delivers_in_order_round_and_round(g);
	c.stop = true;
	pthread_join(t, NULL);
}

#define through_both(name)                                                                                             \
	static void name##_uring(void **state)                                                                         \
	{                                                                                                              \
		struct ring g;                                                                                         \
		start(&g, *state, "uring");                                                                            \
		name(&g);                                                                                              \
		finish(&g);                                                                                            \
	}                                                                                                              \
	static void name##_sync(void **state)                                                                          \
	{                                                                                                              \
		struct ring g;                                                                                         \
		start(&g, *state, "sync");                                                                             \
		name(&g);                                                                                              \
		finish(&g);                                                                                            \
	}
#define tests_of(name)                                                                                                 \
	cmocka_unit_test_setup_teardown(name##_uring, fixture_setup, fixture_teardown),                                \
		cmocka_unit_test_setup_teardown(name##_sync, fixture_setup, fixture_teardown)

through_both(delivers_in_order_round_and_round) through_both(releases_out_of_order)
	through_both(holding_all_slots_is_an_error_not_a_hang) through_both(rewinds_from_anywhere)
		through_both(looks_ahead_across_the_end_of_a_pass) through_both(an_idle_stream_costs_nothing)
			through_both(may_be_destroyed_at_any_time) through_both(damage_is_reported_for_its_extent_only)
				through_both(a_file_that_ends_early_is_an_io_error)
					through_both(stats_from_another_thread)

						static void bad_configs_are_refused(void **state)
{
	struct ring g = {0};
	make_ring(&g, *state);
	struct offload_stream *s = NULL;
	struct base_error e = {0};
	struct offload_stream_config c[8];
	for (int i = 0; i < 8; i++)
		c[i] = ring_config(&g, "auto");
	c[0].items_count = 0;
	c[1].slots = 1;
	c[2].depth = 7;
	c[3].slot_bytes = EXTENT - 1;
	c[4].slot_bytes = 32 << 10; // shorter than the extents
	c[5].files_count = 2;
	c[6].engine = "aio";
	c[7].cpus = (const uint32_t[]){100000};
	c[7].cpus_count = 1;
	for (int i = 0; i < 8; i++) {
		e = (struct base_error){0};
		assert_int_equal(offload_stream_create(&c[i], &s, NULL, &e), -EINVAL);
		assert_true(e.message[0] != 0);
	}
	assert_null(s);
	offload_stream_destroy(NULL);
	finish(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		tests_of(delivers_in_order_round_and_round),
		tests_of(releases_out_of_order),
		tests_of(holding_all_slots_is_an_error_not_a_hang),
		tests_of(rewinds_from_anywhere),
		tests_of(looks_ahead_across_the_end_of_a_pass),
		tests_of(an_idle_stream_costs_nothing),
		tests_of(may_be_destroyed_at_any_time),
		tests_of(damage_is_reported_for_its_extent_only),
		tests_of(a_file_that_ends_early_is_an_io_error),
		tests_of(stats_from_another_thread),
		cmocka_unit_test_setup_teardown(bad_configs_are_refused, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
