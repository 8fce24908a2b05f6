// SPDX-License-Identifier: Apache-2.0
#include "shard/backend/cpu/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#define SPIN_NS 40000u

struct worker {
	struct cpu_pool *pool;
	uint32_t thread;
	pthread_t id;
};

struct cpu_pool {
	uint32_t threads, started;
	bool spin, bound;
	cpu_set_t caller; // what the stage thread had before
	void (*run)(void *context, uint32_t thread); // both written before epoch, read after it
	void *context;
	bool stop;
	_Alignas(64) _Atomic uint32_t epoch; // counts regions; workers wait for it to change
	_Atomic uint32_t sleepers; // workers that may be in futex_wait
	_Alignas(64) _Atomic uint32_t pending; // workers still in the region
	_Atomic uint32_t waiting; // the stage thread may be in futex_wait on pending
	struct worker *workers; // (threads - 1)
};

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	syscall(SYS_futex, (uint32_t *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
	syscall(SYS_futex, (uint32_t *)word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#else
	atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* Spins while *word == value, SPIN_NS at most. */
static bool spin_while(const struct cpu_pool *p, _Atomic uint32_t *word, uint32_t value)
{
	if (!p->spin)
		return atomic_load_explicit(word, memory_order_acquire) == value;
	uint64_t start = 0;
	for (uint32_t i = 0;; i++) {
		if (atomic_load_explicit(word, memory_order_acquire) != value)
			return false;
		relax();
		if (i % 32 == 31) {
			uint64_t now = base_clock_now_ns();
			if (start == 0)
				start = now;
			else if (now - start > SPIN_NS)
				return true;
		}
	}
}

static void *worker_main(void *argument)
{
	const struct worker *w = argument;
	struct cpu_pool *p = w->pool;
	uint32_t seen = 0;
	for (;;) {
		while (spin_while(p, &p->epoch, seen)) {
			atomic_fetch_add(&p->sleepers, 1);
			futex_wait(&p->epoch, seen);
			atomic_fetch_sub(&p->sleepers, 1);
		}
		seen = atomic_load_explicit(&p->epoch, memory_order_acquire);
		if (p->stop)
			return NULL;
		p->run(p->context, w->thread);
		if (atomic_fetch_sub(&p->pending, 1) == 1 && atomic_load(&p->waiting))
			futex_wake(&p->pending, 1);
	}
}

static void start_region(struct cpu_pool *p)
{
	atomic_store(&p->pending, p->started);
	atomic_fetch_add(&p->epoch, 1);
	if (atomic_load(&p->sleepers))
		futex_wake(&p->epoch, INT32_MAX);
}

void cpu_pool_run(struct cpu_pool *p, void (*run)(void *context, uint32_t thread), void *context)
{
	if (p->threads == 1) {
		run(context, 0);
		return;
	}
	p->run = run;
	p->context = context;
	start_region(p);
	run(context, 0);
	for (uint32_t left; (left = atomic_load(&p->pending));) {
		if (!spin_while(p, &p->pending, left))
			continue;
		atomic_store(&p->waiting, 1);
		left = atomic_load(&p->pending);
		// The last worker either sees `waiting` or has already changed the word that the futex compares.
		if (left)
			futex_wait(&p->pending, left);
		atomic_store(&p->waiting, 0);
	}
}

static int bind_thread(pthread_t id, uint32_t cpu, struct base_error *e)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	if (cpu >= CPU_SETSIZE)
		return base_error_set(e, -EINVAL, "CPU %u: this system's limit is %d", cpu, CPU_SETSIZE - 1);
	CPU_SET(cpu, &set);
	int r = pthread_setaffinity_np(id, sizeof(set), &set);
	if (r)
		return base_error_set(e, -r,
			"cannot bind a compute thread to CPU %u: %s; is it online and in this process's cpuset?", cpu,
			strerrordesc_np(r));
	return 0;
}

static int start_workers(struct cpu_pool *p, const uint32_t *cpus, uint32_t cpus_count, struct base_error *e)
{
	// Signals are the control thread's business.
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	int r = 0;
	for (uint32_t i = 0; i + 1 < p->threads && r == 0; i++) {
		struct worker *w = &p->workers[i];
		*w = (struct worker){.pool = p, .thread = i + 1};
		r = pthread_create(&w->id, NULL, worker_main, w);
		if (r) {
			r = base_error_set(e, -r, "cannot start compute thread %u of %u: %s", i + 1, p->threads,
				strerrordesc_np(r));
			break;
		}
		p->started++;
		if (cpus)
			r = bind_thread(w->id, cpus[(i + 1) % cpus_count], e);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r;
}

int cpu_pool_create(
	uint32_t threads, const uint32_t *cpus, uint32_t cpus_count, struct cpu_pool **ret_pool, struct base_error *e)
{
	cpu_set_t mask;
	uint32_t available = 1;
	if (sched_getaffinity(0, sizeof(mask), &mask) == 0)
		available = (uint32_t)CPU_COUNT(&mask);
	if (cpus_count == 0)
		cpus = NULL;
	if (cpus)
		available = cpus_count;
	if (threads == 0)
		threads = available;
	if (threads > CPU_POOL_THREADS_MAX)
		return base_error_set(e, -EINVAL, "%u compute threads: at most %u", threads, CPU_POOL_THREADS_MAX);
	struct cpu_pool *p = aligned_alloc(64, sizeof(*p));
	if (!p)
		return base_error_set(e, -ENOMEM, "no memory for the compute pool");
	*p = (struct cpu_pool){.threads = threads, .spin = threads <= available, .caller = mask};
	p->workers = calloc(threads, sizeof(*p->workers));
	int r = p->workers ? 0 : base_error_set(e, -ENOMEM, "no memory for the compute pool");
	if (r == 0 && cpus) {
		r = bind_thread(pthread_self(), cpus[0], e);
		p->bound = r == 0;
	}
	if (r == 0)
		r = start_workers(p, cpus, cpus_count, e);
	if (r) {
		cpu_pool_destroy(p);
		return r;
	}
	*ret_pool = p;
	return 0;
}

void cpu_pool_destroy(struct cpu_pool *p)
{
	if (!p)
		return;
	p->stop = true;
	start_region(p);
	for (uint32_t i = 0; i < p->started; i++)
		pthread_join(p->workers[i].id, NULL);
	if (p->bound)
		pthread_setaffinity_np(pthread_self(), sizeof(p->caller), &p->caller);
	free(p->workers);
	free(p);
}

uint32_t cpu_pool_threads(const struct cpu_pool *p)
{
	return p->threads;
}
