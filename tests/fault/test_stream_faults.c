// SPDX-License-Identifier: Apache-2.0
// The stream over an engine that fails by seed: right bytes or the right error for the right extent, never wrong data,
// never a hang. A failure names its seed.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "offload/hash.h"
#include "offload/stream.h"
#include "tests/fault/engine_faulty.h"
#include "tests/lib/wait.h"

#define MAX_ITEMS 24u
#define MAX_SLOTS 9u
#define SLOT_BYTES (4 * FAULTY_BLOCK)
#define SEEDS 400u
#define PATIENCE_NS 200000000ull
#define FAILURES 1200u // to wait for each of them would take 240 s, four times as long as the test gives all of them

struct sea {
	uint64_t seed, random;
	struct faulty_plan plan;
	struct offload_store_extent extents[MAX_ITEMS];
	struct offload_stream_item items[MAX_ITEMS];
	uint32_t count, slots;
	struct offload_stream *stream;
	uint32_t held[MAX_SLOTS], held_items[MAX_SLOTS], held_count;
	const void *held_data[MAX_SLOTS];
	uint32_t errors;
};

static uint64_t draw(struct sea *s, uint64_t below)
{
	s->random = s->random * 6364136223846793005ull + 1442695040888963407ull;
	return (s->random >> 33) % below;
}

static void make_patient(
	struct sea *s, uint64_t seed, const struct faulty_plan *plan, uint32_t verify_every, uint64_t patience_ns)
{
	*s = (struct sea){.seed = seed, .random = seed * 7919 + 13, .plan = *plan};
	s->count = 1 + (uint32_t)draw(s, MAX_ITEMS);
	s->slots = 2 + (uint32_t)draw(s, MAX_SLOTS - 1);
	static uint8_t bytes[SLOT_BYTES];
	for (uint32_t i = 0; i < s->count; i++) {
		struct offload_store_extent *x = &s->extents[i];
		x->offset_bytes = FAULTY_BLOCK + (uint64_t)i * SLOT_BYTES;
		x->length_bytes = (1 + (uint32_t)draw(s, 4)) * FAULTY_BLOCK;
		s->items[i] = (struct offload_stream_item){i % 2, x};
		faulty_bytes(i % 2, x->offset_bytes, x->length_bytes, bytes);
		x->xxh3 = offload_hash(bytes, x->length_bytes);
	}
	const int files[2] = {STDIN_FILENO, STDIN_FILENO};
	struct offload_stream_config c = {
		.files = files,
		.files_count = 2,
		.items = s->items,
		.items_count = s->count,
		.slots = s->slots,
		.slot_bytes = SLOT_BYTES,
		.depth = 1 + (uint32_t)draw(s, s->slots),
		.verify_every = verify_every,
		.engine_ops = &faulty_ops,
		.patience_ns = patience_ns,
	};
	struct base_error e = {0};
	faulty_set(&s->plan);
	if (offload_stream_create(&c, &s->stream, NULL, &e) < 0)
		fail_msg("seed %lu: %s", (unsigned long)seed, e.message);
}

static void make(struct sea *s, uint64_t seed, const struct faulty_plan *plan, uint32_t verify_every)
{
	make_patient(s, seed, plan, verify_every, 0);
}

static void check_data(struct sea *s, uint32_t item, const void *data)
{
	static uint8_t want[SLOT_BYTES];
	const struct offload_store_extent *x = &s->extents[item];
	faulty_bytes(item % 2, x->offset_bytes, x->length_bytes, want);
	if (memcmp(data, want, x->length_bytes) != 0)
		fail_msg("seed %lu: item %u has wrong bytes", (unsigned long)s->seed, item);
}

static void release_one(struct sea *s)
{
	uint32_t k = (uint32_t)draw(s, s->held_count);
	check_data(s, s->held_items[k], s->held_data[k]); // nobody wrote into it while it was held
	offload_stream_release(s->stream, s->held[k]);
	s->held_count--;
	s->held[k] = s->held[s->held_count];
	s->held_items[k] = s->held_items[s->held_count];
	s->held_data[k] = s->held_data[s->held_count];
}

static void take_one(struct sea *s, uint32_t item)
{
	const void *data = NULL;
	uint32_t slot;
	struct base_error e = {0};
	int r = offload_stream_next(s->stream, &data, &slot, &e);
	enum faulty_kind bad = faulty_kind_of(&s->plan, item % 2, s->extents[item].offset_bytes);
	int want = bad == FAULTY_NONE ? 0 : bad == FAULTY_FLIP || bad == FAULTY_STALE ? -EBADMSG : -EIO;
	if (r != want || (r < 0 && !e.message[0]))
		fail_msg("seed %lu: item %u gives %d, not %d: %s", (unsigned long)s->seed, item, r, want, e.message);
	if (r < 0) {
		s->errors++;
		return;
	}
	check_data(s, item, data);
	s->held[s->held_count] = slot;
	s->held_items[s->held_count] = item;
	s->held_data[s->held_count++] = data;
}

static void sail(struct sea *s)
{
	uint32_t at = 0;
	for (uint32_t step = 0; step < 3 * MAX_ITEMS; step++) {
		while (s->held_count == s->slots || (s->held_count > 0 && draw(s, 3) == 0))
			release_one(s);
		if (draw(s, 16) == 0) {
			while (s->held_count > 0)
				release_one(s);
			offload_stream_rewind(s->stream);
			at = 0;
		}
		take_one(s, at);
		at = (at + 1) % s->count;
	}
	if (draw(s, 2)) { // else it is destroyed with slots held
		while (s->held_count > 0)
			release_one(s);
	}
	offload_stream_destroy(s->stream);
}

static void every_fault_with_checksums(void **state)
{
	uint32_t errors = 0;
	for (uint64_t seed = 1; seed <= SEEDS; seed++) {
		struct faulty_plan plan = {
			.seed = seed,
			.bad_percent = seed % 4 == 0 ? 0 : 10,
			.transient_percent = (uint32_t)(seed % 3) * 20,
			.busy_percent = (uint32_t)(seed % 5) * 10,
			.corrupt = true,
			.delays = seed % 8 == 0,
		};
		struct sea s;
		make(&s, seed, &plan, 1);
		sail(&s);
		errors += s.errors;
	}
	assert_true(errors > SEEDS); // the faults were really there
}

static void failing_reads_without_checksums(void **state)
{
	for (uint64_t seed = 1; seed <= SEEDS / 2; seed++) {
		struct faulty_plan plan = {
			.seed = seed, .bad_percent = 10, .transient_percent = 30, .busy_percent = 20};
		struct sea s;
		make(&s, seed, &plan, seed % 2 ? 0 : 3);
		sail(&s);
	}
}

static void sound_engine_gives_no_errors(void **state)
{
	for (uint64_t seed = 1; seed <= 50; seed++) {
		struct faulty_plan plan = {.seed = seed, .delays = seed % 4 == 0};
		struct sea s;
		make(&s, seed, &plan, 1);
		sail(&s);
		assert_int_equal(s.errors, 0);
	}
}

// The engine fails as a whole in the middle: what had arrived is good, then there is an error for ever, and no hang.
static void a_dead_engine_is_an_error(void **state)
{
	for (uint64_t seed = 1; seed <= 100; seed++) {
		struct faulty_plan plan = {.seed = seed, .reads_to_death = 1 + seed % 40};
		struct sea s;
		make(&s, seed, &plan, 1);
		uint32_t got = 0, failures = 0;
		struct base_error e = {0};
		while (failures < 3) {
			const void *data;
			uint32_t slot;
			if (offload_stream_next(s.stream, &data, &slot, &e) == 0) {
				assert_int_equal(failures, 0);
				check_data(&s, got++ % s.count, data);
				offload_stream_release(s.stream, slot);
			} else {
				assert_int_equal(e.code, -EIO);
				assert_non_null(strstr(e.message, "faulty engine failed"));
				failures++;
			}
			assert_true(got < 100);
		}
		offload_stream_rewind(s.stream);
		offload_stream_destroy(s.stream);
	}
}

// The drive stops answering: an error in bounded time, once; then at once for the rest; then, when it is back, the
// right bytes.
static void a_drive_that_hangs_is_an_error(void **state)
{
	for (uint64_t seed = 1; seed <= 7; seed++) {
		struct faulty_plan plan = {.seed = seed, .reads_to_silence = 1 + seed % 7};
		struct sea s;
		make_patient(&s, seed, &plan, 1, PATIENCE_NS);
		struct base_error e = {0};
		const void *data;
		uint32_t slot, at = 0, failures = 0;
		uint64_t start = base_clock_now_ns();
		while (failures < FAILURES) {
			int r = offload_stream_next(s.stream, &data, &slot, &e);
			if (r == 0) {
				check_data(&s, at, data);
				offload_stream_release(s.stream, slot);
			} else {
				assert_int_equal(r, -ETIMEDOUT);
				assert_non_null(strstr(e.message, "no answer"));
				failures++;
			}
			assert_true(base_clock_now_ns() - start < TESTING_PATIENCE_NS);
			at = (at + 1) % s.count;
		}
		start = base_clock_now_ns();
		faulty_speak();
		for (uint32_t good = 0; good < 2 * s.count;) {
			if (offload_stream_next(s.stream, &data, &slot, &e) == 0) {
				check_data(&s, at, data);
				offload_stream_release(s.stream, slot);
				good++;
			} else {
				nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
			}
			assert_true(base_clock_now_ns() < start + TESTING_PATIENCE_NS);
			at = (at + 1) % s.count;
		}
		offload_stream_destroy(s.stream);
	}
}

// It takes no read at all: bounded tries, then an error.
static void an_engine_that_takes_nothing_is_an_error(void **state)
{
	struct faulty_plan plan = {.seed = 1, .busy_percent = 100};
	struct sea s;
	make(&s, 1, &plan, 1);
	const void *data;
	uint32_t slot;
	struct base_error e = {0};
	assert_int_equal(offload_stream_next(s.stream, &data, &slot, &e), -EIO);
	offload_stream_destroy(s.stream);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_fault_with_checksums),
		cmocka_unit_test(failing_reads_without_checksums),
		cmocka_unit_test(sound_engine_gives_no_errors),
		cmocka_unit_test(a_dead_engine_is_an_error),
		cmocka_unit_test(a_drive_that_hangs_is_an_error),
		cmocka_unit_test(an_engine_that_takes_nothing_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
