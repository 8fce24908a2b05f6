// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "topology/probe.h"

#define CHUNK_BYTES (256u << 10)
#define WINDOWS 3u
#define WINDOW_NS 25000000ull
#define TOUCH_LEAST_BYTES (16ull << 20)
#define TOUCH_NS 1000000000ull // where the kernel gives memory more slowly than this, what has been given has to do
#define MIN_BUFFER_BYTES (2ull << 20)
#define MIN_TOTAL_BYTES (256ull << 20)
#define MAX_TOTAL_BYTES (1ull << 30)

typedef uint64_t lanes __attribute__((vector_size(64), may_alias));

// Keeps eight independent sums so that loads do not wait for each other. bytes: a multiple of 512.
#define READ_BODY                                                                                                      \
	lanes s[8] = {0};                                                                                              \
	const lanes *p = data, *end = (const lanes *)((const char *)data + bytes);                                     \
	for (; p < end; p += 8)                                                                                        \
		for (int i = 0; i < 8; i++)                                                                            \
			s[i] ^= p[i];                                                                                  \
	for (int i = 1; i < 8; i++)                                                                                    \
		s[0] ^= s[i];                                                                                          \
	uint64_t sum = 0;                                                                                              \
	for (int i = 0; i < 8; i++)                                                                                    \
		sum ^= s[0][i];                                                                                        \
	return sum

static uint64_t read_plain(const void *data, size_t bytes)
{
	READ_BODY;
}

typedef uint64_t reader(const void *data, size_t bytes);

#ifdef __x86_64__
__attribute__((target("avx2"))) static uint64_t read_avx2(const void *data, size_t bytes)
{
	READ_BODY;
}

__attribute__((target("avx512f"))) static uint64_t read_avx512(const void *data, size_t bytes)
{
	READ_BODY;
}
#endif

static reader *choose_reader(void)
{
#ifdef __x86_64__
	if (__builtin_cpu_supports("avx512f"))
		return read_avx512;
	if (__builtin_cpu_supports("avx2"))
		return read_avx2;
#endif
	return read_plain;
}

enum gate { GATE_SHUT, GATE_OPEN, GATE_ABANDONED };

struct shared {
	pthread_mutex_t mutex;
	pthread_cond_t changed;
	enum gate gate; // opens when all threads exist: only then does the barrier's count hold
	pthread_barrier_t barrier;
	reader *read;
	uint64_t buffer_bytes;
	atomic_bool failed;
};

struct worker {
	pthread_t thread;
	struct shared *shared;
	uint32_t cpu;
	double bytes_per_s[WINDOWS];
	uint64_t sum; // keeps the reads from being optimised away
};

static void bind_to(uint32_t cpu)
{
	cpu_set_t *set = CPU_ALLOC(cpu + 1);
	size_t bytes = CPU_ALLOC_SIZE(cpu + 1);
	if (!set)
		return;
	CPU_ZERO_S(bytes, set);
	CPU_SET_S(cpu, bytes, set);
	sched_setaffinity(0, bytes, set); // without it the figure is a little lower, no more
	CPU_FREE(set);
}

// Memory that was never written is one page of zeroes in the cache: write to it first. Returns the bytes that are real.
static uint64_t touch(char *buffer, uint64_t bytes)
{
	uint64_t start = base_clock_now_ns(), at = 0;
	while (at < bytes && (at < TOUCH_LEAST_BYTES || base_clock_now_ns() - start < TOUCH_NS)) {
		for (uint64_t i = 0; i < BASE_HUGE_PAGE_BYTES; i += BASE_PAGE_BYTES)
			buffer[at + i] = (char)(1 + i);
		at += BASE_HUGE_PAGE_BYTES;
	}
	return at;
}

static bool pass_gate(struct shared *s)
{
	pthread_mutex_lock(&s->mutex);
	while (s->gate == GATE_SHUT)
		pthread_cond_wait(&s->changed, &s->mutex);
	bool open = s->gate == GATE_OPEN;
	pthread_mutex_unlock(&s->mutex);
	return open;
}

static void *work(void *argument)
{
	struct worker *w = argument;
	struct shared *s = w->shared;
	if (!pass_gate(s))
		return NULL;
	bind_to(w->cpu);
	char *map = mmap(NULL, s->buffer_bytes + BASE_HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *buffer = NULL;
	uint64_t bytes = 0;
	if (map == MAP_FAILED) {
		atomic_store(&s->failed, true);
	} else {
		buffer = (char *)base_size_align((uintptr_t)map, BASE_HUGE_PAGE_BYTES);
		madvise(buffer, s->buffer_bytes, MADV_HUGEPAGE);
		bytes = touch(buffer, s->buffer_bytes);
	}
	uint64_t at = 0;
	for (unsigned i = 0; i < WINDOWS; i++) {
		pthread_barrier_wait(&s->barrier);
		if (atomic_load(&s->failed))
			break;
		uint64_t start = base_clock_now_ns(), now, read = 0;
		do {
			w->sum ^= s->read(buffer + at, CHUNK_BYTES);
			at = at + CHUNK_BYTES < bytes ? at + CHUNK_BYTES : 0;
			read += CHUNK_BYTES;
			now = base_clock_now_ns();
		} while (now - start < WINDOW_NS);
		w->bytes_per_s[i] = (double)read / (double)(now - start) * 1e9;
	}
	if (map != MAP_FAILED)
		munmap(map, s->buffer_bytes + BASE_HUGE_PAGE_BYTES);
	return NULL;
}

static uint64_t buffer_size(const struct topology_machine *m, uint32_t threads)
{
	long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
	uint64_t total = cache > 0 ? (uint64_t)cache * (m->packages ? m->packages : 1) * 5 / 4 : 0;
	total = total < MIN_TOTAL_BYTES ? MIN_TOTAL_BYTES : total > MAX_TOTAL_BYTES ? MAX_TOTAL_BYTES : total;
	if (m->memory_available_bytes && total > m->memory_available_bytes / 16)
		total = m->memory_available_bytes / 16;
	uint64_t each = total / threads / BASE_HUGE_PAGE_BYTES * BASE_HUGE_PAGE_BYTES;
	return each < MIN_BUFFER_BYTES ? MIN_BUFFER_BYTES : each;
}

static int run(struct shared *s, struct worker *workers, uint32_t threads)
{
	uint32_t started = 0;
	int r = -pthread_barrier_init(&s->barrier, NULL, threads);
	if (r < 0)
		return r;
	while (started < threads && r == 0) {
		r = -pthread_create(&workers[started].thread, NULL, work, &workers[started]);
		started += r == 0;
	}
	pthread_mutex_lock(&s->mutex);
	s->gate = r == 0 ? GATE_OPEN : GATE_ABANDONED;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->mutex);
	for (uint32_t i = 0; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	pthread_barrier_destroy(&s->barrier);
	return r == 0 && atomic_load(&s->failed) ? -ENOMEM : r;
}

int topology_probe_memory(
	const struct topology_machine *m, uint32_t threads, double *ret_bytes_per_s, struct base_error *e)
{
	if (m->cpus == 0 || m->cpus > TOPOLOGY_MAX_CPUS)
		return base_error_set(e, -EINVAL, "probe: a machine without CPUs");
	if (threads == 0 || threads > m->cpus)
		threads = m->cpus;
	struct worker *workers = calloc(threads, sizeof *workers);
	if (!workers)
		return base_error_set(e, -ENOMEM, "probe: out of memory");
	struct shared s = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	s.read = choose_reader();
	s.buffer_bytes = buffer_size(m, threads);
	for (uint32_t i = 0; i < threads; i++) {
		workers[i].shared = &s;
		workers[i].cpu = m->cpu[i];
	}
	int r = run(&s, workers, threads);
	double best = 0;
	for (unsigned w = 0; w < WINDOWS; w++) {
		double sum = 0;
		for (uint32_t i = 0; i < threads; i++)
			sum += workers[i].bytes_per_s[w];
		best = sum > best ? sum : best;
	}
	free(workers);
	if (r < 0)
		return base_error_set(
			e, r, "probe: memory bandwidth with %u threads: %s", threads, strerrordesc_np(-r));
	*ret_bytes_per_s = best;
	return 0;
}
