// SPDX-License-Identifier: Apache-2.0
// backend/cpu/pool: every thread runs once per region, sleeps and wakes, and ends.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <time.h>

#include "shard/backend/cpu/pool.h"

struct count {
	uint32_t calls[8]; // plain: the pool itself must order them
	_Atomic uint32_t all;
};

static void count_call(void *context, uint32_t thread)
{
	struct count *c = context;
	c->calls[thread]++;
	atomic_fetch_add(&c->all, 1);
}

static void each_thread_runs_once_per_region(void **state)
{
	for (uint32_t threads = 1; threads <= 5; threads++) {
		struct cpu_pool *p;
		struct count c = {0};
		assert_int_equal(cpu_pool_create(threads, NULL, 0, &p, NULL), 0);
		assert_int_equal(cpu_pool_threads(p), threads);
		for (uint32_t round = 1; round <= 2000; round++) {
			cpu_pool_run(p, count_call, &c);
			for (uint32_t i = 0; i < threads; i++)
				assert_int_equal(c.calls[i], round);
			// Now and then long enough for the workers to sleep.
			if (round % 200 == 0)
				nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
		}
		assert_int_equal(c.all, 2000 * threads);
		cpu_pool_destroy(p);
	}
}

static void slow_worker(void *context, uint32_t thread)
{
	if (thread)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	count_call(context, thread);
}

/* The stage thread sleeps until the last worker is done. */
static void waits_for_slow_workers(void **state)
{
	struct cpu_pool *p;
	struct count c = {0};
	assert_int_equal(cpu_pool_create(4, NULL, 0, &p, NULL), 0);
	for (uint32_t round = 1; round <= 20; round++) {
		cpu_pool_run(p, slow_worker, &c);
		for (uint32_t i = 0; i < 4; i++)
			assert_int_equal(c.calls[i], round);
	}
	cpu_pool_destroy(p);
}

static void unused_pool_ends(void **state)
{
	struct cpu_pool *p;
	assert_int_equal(cpu_pool_create(3, NULL, 0, &p, NULL), 0);
	cpu_pool_destroy(p);
	cpu_pool_destroy(NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_thread_runs_once_per_region),
		cmocka_unit_test(waits_for_slow_workers),
		cmocka_unit_test(unused_pool_ends),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
