// SPDX-License-Identifier: Apache-2.0
// The engines by themselves, each case through both, and what happens where the kernel refuses io_uring or O_DIRECT.
#include "tests/unit/offload/fixture.h"
#include "tests/unit/offload/refuse.h"

#include <pthread.h>
#include <sys/resource.h>
#include <time.h>

#include "base/clock.h"
#include "offload/engine.h"
#include "offload/hash.h"
#include "offload/memory.h"
#include "offload/stream.h"

#define BLOCK 8192u
#define BLOCKS 32u
#define TAIL 4096u // the file ends in the middle of a block
#define DEPTH 8u

struct bed {
	const struct offload_engine_ops *ops;
	struct offload_engine *engine;
	struct offload_memory memory;
	int files[2];
	uint8_t *want; // the file
	struct offload_read reads[64];
};

static void bed_make(struct bed *b, struct fixture *f, const struct offload_engine_ops *ops)
{
	*b = (struct bed){.ops = ops};
	size_t bytes = BLOCKS * BLOCK + TAIL;
	b->want = aligned_alloc(4096, bytes);
	fixture_fill(b->want, bytes, 77);
	int fd = openat(f->fd, "blocks", O_CREAT | O_WRONLY, 0644);
	assert_int_equal(write(fd, b->want, bytes), bytes);
	assert_int_equal(fsync(fd), 0);
	close(fd);
	b->files[0] = openat(f->fd, "blocks", O_RDONLY | O_DIRECT);
	b->files[1] = openat(f->fd, "blocks", O_RDONLY); // through the page cache
	if (b->files[0] < 0)
		b->files[0] = openat(f->fd, "blocks", O_RDONLY);
	struct base_error e = {0};
	assert_int_equal(offload_memory_map(2 << 20, &b->memory, &e), 0);
	struct offload_engine_config c = {
		.depth = DEPTH,
		.files = b->files,
		.files_count = 2,
		.buffers = b->memory.data,
		.buffers_bytes = b->memory.bytes,
	};
	int r = ops->create(&c, &b->engine, &e);
	if (r == -EPERM || r == -ENOSYS || r == -EACCES) {
		print_message("skipped: %s\n", e.message);
		skip();
	}
	assert_int_equal(r, 0);
}

static void bed_finish(struct bed *b)
{
	b->ops->destroy(b->engine);
	offload_memory_unmap(&b->memory);
	close(b->files[0]);
	close(b->files[1]);
	free(b->want);
}

static struct offload_read *bed_read(struct bed *b, uint32_t i, uint32_t file, uint32_t block)
{
	b->reads[i] = (struct offload_read){
		.file = file,
		.length_bytes = BLOCK,
		.offset_bytes = (uint64_t)block * BLOCK,
		.buffer = (char *)b->memory.data + (size_t)i * BLOCK,
		.result = -1,
		.user = b,
	};
	return &b->reads[i];
}

static void check_block(struct bed *b, const struct offload_read *r)
{
	assert_ptr_equal(r->user, b);
	assert_true(r->completed_ns >= r->submitted_ns && r->submitted_ns > 0);
	assert_true(r->result > 0);
	assert_memory_equal(r->buffer, b->want + r->offset_bytes, (size_t)r->result);
}

static void reads_all_blocks(struct bed *b)
{
	uint32_t sent = 0, got = 0, idle = 0;
	while (got < 64) {
		while (sent < 64) {
			struct offload_read *r = bed_read(b, sent, sent % 2, sent % BLOCKS);
			int n = b->ops->submit(b->engine, &r, 1);
			if (n == -EAGAIN)
				break;
			assert_int_equal(n, 1);
			sent++;
		}
		assert_true(sent - got <= DEPTH);
		struct offload_read *done[3];
		int n = b->ops->reap(b->engine, done, 3, BASE_NS_PER_SECOND);
		assert_true(n >= 0 && n <= 3);
		for (int k = 0; k < n; k++) {
			check_block(b, done[k]);
			assert_int_equal(done[k]->result, BLOCK);
		}
		got += (uint32_t)n;
		assert_true(n > 0 || ++idle < 60);
	}
}

static void more_than_depth_is_refused(struct bed *b)
{
	struct offload_read *r[DEPTH + 3];
	for (uint32_t i = 0; i < DEPTH + 3; i++)
		r[i] = bed_read(b, i, 0, i);
	assert_int_equal(b->ops->submit(b->engine, r, DEPTH + 3), DEPTH);
	assert_int_equal(b->ops->submit(b->engine, &r[DEPTH], 3), -EAGAIN);
	uint32_t got = 0;
	while (got < DEPTH) {
		struct offload_read *done[DEPTH];
		int n = b->ops->reap(b->engine, done, DEPTH, OFFLOAD_ENGINE_FOREVER);
		assert_true(n >= 0);
		got += (uint32_t)n;
	}
	assert_int_equal(b->ops->submit(b->engine, &r[DEPTH], 3), 3); // destroy waits for them
}

static void the_end_of_the_file_is_a_short_read(struct bed *b)
{
	for (uint32_t file = 0; file < 2; file++) {
		struct offload_read *r[2] = {bed_read(b, 0, file, BLOCKS), bed_read(b, 1, file, BLOCKS + 10)}, *done[2];
		assert_int_equal(b->ops->submit(b->engine, r, 2), 2);
		for (int got = 0; got < 2;)
			got += b->ops->reap(b->engine, done, 2, OFFLOAD_ENGINE_FOREVER);
		assert_int_equal(b->reads[0].result, TAIL);
		check_block(b, &b->reads[0]);
		assert_int_equal(b->reads[1].result, 0);
	}
}

static void errors_come_back_with_their_read(struct bed *b)
{
	struct offload_read *r = bed_read(b, 0, 2, 0), *done;
	assert_int_equal(b->ops->submit(b->engine, &r, 1), -EBADF);
	r = bed_read(b, 0, 0, 0);
	r->buffer = (void *)4096; // nobody's memory
	assert_int_equal(b->ops->submit(b->engine, &r, 1), 1);
	while (b->ops->reap(b->engine, &done, 1, OFFLOAD_ENGINE_FOREVER) == 0)
		;
	assert_ptr_equal(done, r);
	assert_int_equal(r->result, -EFAULT);
}

static void a_buffer_outside_the_region_works(struct bed *b)
{
	struct offload_read *r = bed_read(b, 0, 0, 3), *done;
	r->buffer = aligned_alloc(4096, BLOCK);
	assert_int_equal(b->ops->submit(b->engine, &r, 1), 1);
	while (b->ops->reap(b->engine, &done, 1, OFFLOAD_ENGINE_FOREVER) == 0)
		;
	check_block(b, r);
	free(r->buffer);
}

static void *wake_soon(void *arg)
{
	struct bed *b = arg;
	nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	b->ops->wake(b->engine);
	return NULL;
}

static void wake_ends_a_wait(struct bed *b)
{
	struct offload_read *done;
	for (int i = 0; i < 3; i++) {
		pthread_t t;
		assert_int_equal(pthread_create(&t, NULL, wake_soon, b), 0);
		assert_int_equal(b->ops->reap(b->engine, &done, 1, OFFLOAD_ENGINE_FOREVER), 0);
		pthread_join(t, NULL);
	}
	b->ops->wake(b->engine); // before the wait: it is not lost
	assert_int_equal(b->ops->reap(b->engine, &done, 1, OFFLOAD_ENGINE_FOREVER), 0);
	uint64_t start = base_clock_now_ns();
	assert_int_equal(b->ops->reap(b->engine, &done, 1, 30000000), 0);
	assert_true(base_clock_now_ns() - start >= 29000000);
	for (int i = 0; i < 100; i++)
		assert_int_equal(b->ops->reap(b->engine, &done, 1, 0), 0);
}

static void *read_here(void *arg)
{
	reads_all_blocks(arg);
	return NULL;
}

static void used_by_another_thread_than_its_maker(struct bed *b)
{
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, read_here, b), 0);
	pthread_join(t, NULL);
}

#define through_both(name)                                                                                             \
	static void name##_uring(void **state)                                                                         \
	{                                                                                                              \
		struct bed b;                                                                                          \
		bed_make(&b, *state, &offload_engine_uring);                                                           \
		name(&b);                                                                                              \
		bed_finish(&b);                                                                                        \
	}                                                                                                              \
	static void name##_sync(void **state)                                                                          \
	{                                                                                                              \
		struct bed b;                                                                                          \
		bed_make(&b, *state, &offload_engine_sync);                                                            \
		name(&b);                                                                                              \
		bed_finish(&b);                                                                                        \
	}
#define tests_of(name)                                                                                                 \
	cmocka_unit_test_setup_teardown(name##_uring, fixture_setup, fixture_teardown),                                \
		cmocka_unit_test_setup_teardown(name##_sync, fixture_setup, fixture_teardown)

through_both(reads_all_blocks) through_both(more_than_depth_is_refused)
	through_both(the_end_of_the_file_is_a_short_read) through_both(errors_come_back_with_their_read)
		through_both(a_buffer_outside_the_region_works) through_both(wake_ends_a_wait)
			through_both(used_by_another_thread_than_its_maker)

				struct refused {
	struct fixture *fixture;
	const char *engine;
	bool direct; // what the store must say
	bool fallback; // whether there must be a reason
};

// Opens a store and streams it twice; what a rank does at its start.
static const char *stream_all(void *argument)
{
	const struct refused *x = argument;
	struct offload_store *store;
	struct base_error e = {0}, fallback = {0};
	if (offload_store_open(x->fixture->fd, "layer", NULL, &store, &e) < 0)
		return "the store does not open";
	if (offload_store_direct(store) != x->direct)
		return "the store is wrong about O_DIRECT";
	int fd = offload_store_fd(store);
	uint32_t count;
	const struct offload_store_extent *extents = offload_store_extents(store, &count);
	struct offload_stream_item items[16];
	for (uint32_t i = 0; i < count && i < 16; i++)
		items[i] = (struct offload_stream_item){0, &extents[i]};
	struct offload_stream_config c = {.engine = "auto",
		.files = &fd,
		.files_count = 1,
		.items = items,
		.items_count = count,
		.slots = 3,
		.slot_bytes = 16384,
		.depth = 3,
		.verify_every = 1};
	struct offload_stream *s;
	if (offload_stream_create(&c, &s, &fallback, &e) < 0)
		return "the stream does not start";
	if (strcmp(offload_stream_engine(s), x->engine) != 0)
		return "another engine was chosen";
	if ((fallback.code != 0) != x->fallback || (x->fallback && !strstr(fallback.message, "io_uring")))
		return "the reason of the fallback is wrong";
	for (uint32_t i = 0; i < 2 * count; i++) {
		const void *data;
		uint32_t slot;
		if (offload_stream_next(s, &data, &slot, &e) < 0)
			return "an extent does not come";
		if (offload_hash(data, extents[i % count].length_bytes) != extents[i % count].xxh3)
			return "an extent is wrong";
		offload_stream_release(s, slot);
	}
	offload_stream_destroy(s);
	c.engine = "uring";
	if (x->fallback && offload_stream_create(&c, &s, NULL, &e) != -EPERM)
		return "io_uring alone must be refused";
	offload_store_close(store);
	return NULL;
}

static void io_uring_refused_falls_back_and_says_why(void **state)
{
	struct refused x = {.fixture = *state, .engine = "sync", .fallback = true};
	fixture_store(x.fixture->fd, "layer", 16384, 12, 15000, 3);
	struct offload_store *s;
	assert_int_equal(offload_store_open(x.fixture->fd, "layer", NULL, &s, NULL), 0);
	x.direct = offload_store_direct(s);
	offload_store_close(s);
	refuse_run((struct refuse){.io_uring = true}, stream_all, &x);
}

static void both_refused(void **state)
{
	struct refused x = {.fixture = *state, .engine = "sync", .fallback = true};
	fixture_store(x.fixture->fd, "layer", 16384, 12, 15000, 3);
	refuse_run((struct refuse){.io_uring = true, .direct = true}, stream_all, &x);
}

// As a user without CAP_IPC_LOCK whose limit holds the ring and not the buffers.
static const char *create_with_little_locked_memory(void *argument)
{
	struct fixture *f = argument;
	struct offload_store *store;
	struct offload_engine *engine;
	struct base_error e = {0}, fallback = {0};
	struct offload_memory memory;
	struct rlimit little = {256 << 10, 256 << 10};
	if (offload_store_open(f->fd, "layer", NULL, &store, &e) < 0 || offload_memory_map(4 << 20, &memory, &e) < 0)
		return "it cannot be prepared";
	int fd = offload_store_fd(store);
	if (setrlimit(RLIMIT_MEMLOCK, &little) < 0 || (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0))
		return "the limit cannot be set";
	struct offload_engine_config c = {
		.depth = 4, .files = &fd, .files_count = 1, .buffers = memory.data, .buffers_bytes = memory.bytes};
	if (offload_engine_create("auto", &c, &engine, &fallback, &e) < 0)
		return "no engine";
	if (strcmp(engine->ops->name, "uring") != 0)
		return "another engine was chosen";
	if (!strstr(fallback.message, "RLIMIT_MEMLOCK"))
		return "nothing is said of the limit";
	struct offload_read read = {.length_bytes = 4096, .buffer = memory.data}, *back, *one = &read;
	if (engine->ops->submit(engine, &one, 1) != 1 ||
		engine->ops->reap(engine, &back, 1, 10 * BASE_NS_PER_SECOND) != 1 || back->result != 4096)
		return "it does not read";
	engine->ops->destroy(engine);
	offload_memory_unmap(&memory);
	offload_store_close(store);
	return NULL;
}

static void buffers_that_are_not_registered_are_told(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 16384, 12, 15000, 3);
	refuse_run((struct refuse){0}, create_with_little_locked_memory, f);
}

static const char *write_and_open(void *argument)
{
	const struct refused *x = argument;
	fixture_store(x->fixture->fd, "buffered", 16384, 12, 15000, 3);
	struct offload_store *s;
	if (offload_store_open(x->fixture->fd, "buffered", NULL, &s, NULL) < 0)
		return "the store does not open";
	bool direct = offload_store_direct(s);
	offload_store_close(s);
	return direct ? "it cannot be direct" : NULL;
}

static void stores_are_written_without_direct_io(void **state)
{
	struct refused x = {.fixture = *state};
	refuse_run((struct refuse){.direct = true}, write_and_open, &x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		tests_of(reads_all_blocks),
		tests_of(more_than_depth_is_refused),
		tests_of(the_end_of_the_file_is_a_short_read),
		tests_of(errors_come_back_with_their_read),
		tests_of(a_buffer_outside_the_region_works),
		tests_of(wake_ends_a_wait),
		tests_of(used_by_another_thread_than_its_maker),
		cmocka_unit_test_setup_teardown(
			buffers_that_are_not_registered_are_told, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			io_uring_refused_falls_back_and_says_why, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(both_refused, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(stores_are_written_without_direct_io, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
