/* SPDX-License-Identifier: Apache-2.0
 * The compute pool: `threads` threads that run one function together, the calling (stage) thread as thread 0.
 *
 * create, run and destroy belong to the stage thread. Between runs workers spin for a short, bounded time (a
 * decode pass starts a region every few tens of microseconds) and then sleep in a futex; when there are more
 * threads than CPUs for them they sleep at once.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"

#define CPU_POOL_THREADS_MAX 1024u

struct cpu_pool;

/* threads 0: cpus_count, or if that is 0 too the CPUs of the calling thread's affinity mask. With cpus, thread i is
 * bound to cpus[i % cpus_count], the calling one too until destroy. -EINVAL: too many threads, or a CPU that this
 * process may not use. */
int cpu_pool_create(
	uint32_t threads, const uint32_t *cpus, uint32_t cpus_count, struct cpu_pool **ret_pool, struct base_error *e);
void cpu_pool_destroy(struct cpu_pool *p);
uint32_t cpu_pool_threads(const struct cpu_pool *p);

/* Calls run(context, thread) once for each thread 0..threads-1, and returns when all have returned. */
void cpu_pool_run(struct cpu_pool *p, void (*run)(void *context, uint32_t thread), void *context);
