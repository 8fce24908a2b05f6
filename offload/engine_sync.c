// SPDX-License-Identifier: Apache-2.0
// The plain engine: threads that call pread. What the other engine is measured and tested against.
#include "offload/engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define MAX_THREADS 16u

struct sync_engine {
	struct offload_engine base;
	uint32_t depth;
	uint32_t files_count;
	int *files; // (files_count)
	bool *cached; // (files_count): not O_DIRECT, reads leave pages in the page cache

	pthread_mutex_t lock; // of all below
	pthread_cond_t work; // todo has something, or stop
	pthread_cond_t finished; // done has something, or woken
	struct offload_read **todo, **done; // (depth) rings
	uint32_t todo_first, todo_count, done_first, done_count;
	uint32_t inflight; // submitted and not reaped
	bool woken, stop;

	uint32_t threads_count;
	pthread_t threads[MAX_THREADS];
};

static int read_all(struct sync_engine *s, const struct offload_read *r)
{
	uint32_t at = 0;
	while (at < r->length_bytes) {
		ssize_t n = pread(
			s->files[r->file], (char *)r->buffer + at, r->length_bytes - at, (off_t)(r->offset_bytes + at));
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		at += (uint32_t)n;
	}
	// What was read is in our own memory now: a second copy in the page cache would escape the budget.
	if (s->cached[r->file])
		posix_fadvise(s->files[r->file], (off_t)r->offset_bytes, r->length_bytes, POSIX_FADV_DONTNEED);
	return (int)at;
}

static void *worker(void *arg)
{
	struct sync_engine *s = arg;
	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (s->todo_count == 0 && !s->stop)
			pthread_cond_wait(&s->work, &s->lock);
		if (s->todo_count == 0)
			break;
		struct offload_read *r = s->todo[s->todo_first];
		s->todo_first = (s->todo_first + 1) % s->depth;
		s->todo_count--;
		pthread_mutex_unlock(&s->lock);
		r->result = read_all(s, r);
		r->completed_ns = base_clock_now_ns();
		pthread_mutex_lock(&s->lock);
		s->done[(s->done_first + s->done_count) % s->depth] = r;
		s->done_count++;
		pthread_cond_signal(&s->finished);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static void sync_destroy(struct offload_engine *base)
{
	if (!base)
		return;
	struct sync_engine *s = (struct sync_engine *)base;
	pthread_mutex_lock(&s->lock);
	s->stop = true; // workers finish what is queued first
	pthread_cond_broadcast(&s->work);
	pthread_mutex_unlock(&s->lock);
	for (uint32_t i = 0; i < s->threads_count; i++)
		pthread_join(s->threads[i], NULL);
	pthread_cond_destroy(&s->finished);
	pthread_cond_destroy(&s->work);
	pthread_mutex_destroy(&s->lock);
	free(s->done);
	free(s->todo);
	free(s->cached);
	free(s->files);
	free(s);
}

static int start_threads(struct sync_engine *s)
{
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); // signals are for the process's own threads
	int r = 0;
	uint32_t want = s->depth < MAX_THREADS ? s->depth : MAX_THREADS;
	while (r == 0 && s->threads_count < want) {
		r = -pthread_create(&s->threads[s->threads_count], NULL, worker, s);
		if (r == 0) {
			pthread_setname_np(s->threads[s->threads_count], "thaw-read");
			s->threads_count++;
		}
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return s->threads_count > 0 ? 0 : r; // fewer threads read slower, but they read
}

static int sync_create(
	const struct offload_engine_config *config, struct offload_engine **ret_engine, struct base_error *e)
{
	if (config->depth == 0 || config->depth > OFFLOAD_ENGINE_MAX_DEPTH || config->files_count == 0)
		return base_error_set(e, -EINVAL,
			"sync engine: depth %u with %u files: at least 1 of each, depth at most %u", config->depth,
			config->files_count, OFFLOAD_ENGINE_MAX_DEPTH);
	struct sync_engine *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "sync engine: no memory");
	s->base.ops = &offload_engine_sync;
	s->depth = config->depth;
	s->files_count = config->files_count;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_t attr;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->finished, &attr);
	pthread_condattr_destroy(&attr);
	pthread_cond_init(&s->work, NULL);
	s->files = calloc(s->files_count, sizeof *s->files);
	s->cached = calloc(s->files_count, sizeof *s->cached);
	s->todo = calloc(s->depth, sizeof(struct offload_read *));
	s->done = calloc(s->depth, sizeof(struct offload_read *));
	int r = s->files && s->cached && s->todo && s->done ? 0 : -ENOMEM;
	for (uint32_t i = 0; r == 0 && i < s->files_count; i++) {
		s->files[i] = config->files[i];
		int flags = fcntl(s->files[i], F_GETFL);
		s->cached[i] = flags >= 0 && !(flags & O_DIRECT);
	}
	if (r == 0)
		r = start_threads(s);
	if (r < 0) {
		sync_destroy(&s->base);
		return base_error_set(e, r, "sync engine: cannot start its threads: %s", strerrordesc_np(-r));
	}
	*ret_engine = &s->base;
	return 0;
}

static int sync_submit(struct offload_engine *base, struct offload_read *const *reads, uint32_t count)
{
	struct sync_engine *s = (struct sync_engine *)base;
	for (uint32_t i = 0; i < count; i++) {
		if (reads[i]->file >= s->files_count)
			return -EBADF;
	}
	uint64_t now = base_clock_now_ns();
	pthread_mutex_lock(&s->lock);
	uint32_t n = s->depth - s->inflight < count ? s->depth - s->inflight : count;
	for (uint32_t i = 0; i < n; i++) {
		reads[i]->submitted_ns = now;
		s->todo[(s->todo_first + s->todo_count) % s->depth] = reads[i];
		s->todo_count++;
		s->inflight++;
		pthread_cond_signal(&s->work);
	}
	pthread_mutex_unlock(&s->lock);
	return n > 0 || count == 0 ? (int)n : -EAGAIN;
}

static struct timespec deadline(uint64_t timeout_ns)
{
	uint64_t at = base_clock_now_ns() + timeout_ns;
	return (struct timespec){
		.tv_sec = (time_t)(at / BASE_NS_PER_SECOND), .tv_nsec = (long)(at % BASE_NS_PER_SECOND)};
}

static int sync_reap(struct offload_engine *base, struct offload_read **ret_reads, uint32_t max, uint64_t timeout_ns)
{
	struct sync_engine *s = (struct sync_engine *)base;
	// A timeout of more than a century is "for ever" and would overflow.
	bool forever = timeout_ns > UINT64_MAX / 4;
	struct timespec until = forever ? (struct timespec){0} : deadline(timeout_ns);
	pthread_mutex_lock(&s->lock);
	int r = 0;
	while (s->done_count == 0 && !s->woken && timeout_ns > 0 && r == 0)
		r = forever ? pthread_cond_wait(&s->finished, &s->lock)
			    : pthread_cond_timedwait(&s->finished, &s->lock, &until);
	s->woken = false;
	uint32_t n = s->done_count < max ? s->done_count : max;
	for (uint32_t i = 0; i < n; i++) {
		ret_reads[i] = s->done[s->done_first];
		s->done_first = (s->done_first + 1) % s->depth;
	}
	s->done_count -= n;
	s->inflight -= n;
	pthread_mutex_unlock(&s->lock);
	return (int)n;
}

static void sync_wake(struct offload_engine *base)
{
	struct sync_engine *s = (struct sync_engine *)base;
	pthread_mutex_lock(&s->lock);
	s->woken = true;
	pthread_cond_signal(&s->finished);
	pthread_mutex_unlock(&s->lock);
}

static uint64_t sync_cpu_ns(const struct offload_engine *base)
{
	const struct sync_engine *s = (const struct sync_engine *)base;
	uint64_t sum = 0;
	for (uint32_t i = 0; i < s->threads_count; i++) {
		clockid_t clock;
		struct timespec t;
		if (pthread_getcpuclockid(s->threads[i], &clock) == 0 && clock_gettime(clock, &t) == 0)
			sum += (uint64_t)t.tv_sec * BASE_NS_PER_SECOND + (uint64_t)t.tv_nsec;
	}
	return sum;
}

const struct offload_engine_ops offload_engine_sync = {
	.name = "sync",
	.create = sync_create,
	.destroy = sync_destroy,
	.submit = sync_submit,
	.reap = sync_reap,
	.wake = sync_wake,
	.cpu_ns = sync_cpu_ns,
};
