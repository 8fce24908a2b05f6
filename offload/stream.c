// SPDX-License-Identifier: Apache-2.0
// One mutex guards the slots and the order; reads, checksums and system calls happen outside it. The I/O thread is the
// only one that talks to the engine, apart from wake.
#include "offload/stream.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "offload/check.h"

#define MAX_SLOTS (1u << 16)
#define REAP_BATCH 8u
#define RETRY_NS 1000000ull // between looks at an engine that takes nothing
#define MAX_REFUSALS 1000u // in a row, by an engine with nothing in flight: about a second
#define CLOCK_EVERY_BYTES (512u << 10) // of checksums
#define SPINS 20 // looks of next() before it sleeps: about half a microsecond

enum slot_state {
	SLOT_FREE, // -> READING (I/O thread)
	SLOT_READING, // -> READY, FAILED (I/O thread), DROPPED (rewind); in the order
	SLOT_DROPPED, // -> FREE (I/O thread, when the read comes back)
	SLOT_READY, // -> HELD (next), FREE (rewind); in the order
	SLOT_FAILED, // -> FREE (next, rewind); in the order
	SLOT_HELD, // -> FREE (release)
};

struct slot {
	struct offload_read read; // the I/O thread's while READING or DROPPED
	enum slot_state state; // under lock
	uint32_t item; // set while FREE -> READING
	int error; // FAILED: why
	uint8_t tries; // I/O thread: that came to nothing
	bool verify; // I/O thread: check this read
};

struct offload_stream {
	struct offload_stream_config config; // its pointers are not used after create
	struct offload_stream_item *items; // (items_count)
	int *files; // (files_count)
	uint32_t *cpus; // (cpus_count)
	struct offload_memory memory;
	struct slot *slots; // (slots)

	pthread_mutex_t lock; // of all below, down to the I/O thread's own
	pthread_cond_t arrived; // the front of the order is READY or FAILED, or the engine is dead, or started
	uint32_t *free; // (slots) stack
	uint32_t free_count;
	uint32_t *order; // (slots) ring of slots in ring order, as next() will give them
	uint32_t order_first, order_count;
	uint32_t next_item; // that the I/O thread takes next
	uint32_t held;
	bool hungry; // the I/O thread has nothing to do until a slot is free
	bool stop;
	int dead; // -errno: the engine failed as a whole
	bool hung; // patience ended, and nothing has come back since
	int started; // 1: not yet, else the result of creating the engine

	// the I/O thread's own
	pthread_t thread;
	struct offload_engine *engine; // NULL while there is none
	uint32_t *queue; // (slots) ring: to be submitted
	uint32_t queue_first, queue_count;
	uint32_t inflight, refusals;
	uint64_t verify_turn, verified;
	struct base_error *fallback, *error; // only until started

	_Atomic uint32_t arrivals; // bumped when something reaches the front
	_Atomic uint64_t read_bytes, reads, stall_ns, late, verify_bytes, verify_ns, errors, rereads, reread_bytes,
		read_latency_ns;
	_Atomic uint32_t inflight_now;
};

#define add(counter, n) atomic_fetch_add_explicit(&(counter), (n), memory_order_relaxed)
#define get(counter) atomic_load_explicit(&(counter), memory_order_relaxed)

// The one place where a slot changes state; lock is held.
static void set_state(struct offload_stream *s, uint32_t slot, enum slot_state to)
{
	static const unsigned allowed[] = {
		[SLOT_FREE] = 1u << SLOT_READING,
		[SLOT_READING] = 1u << SLOT_READY | 1u << SLOT_FAILED | 1u << SLOT_DROPPED,
		[SLOT_DROPPED] = 1u << SLOT_FREE,
		[SLOT_READY] = 1u << SLOT_HELD | 1u << SLOT_FREE,
		[SLOT_FAILED] = 1u << SLOT_FREE,
		[SLOT_HELD] = 1u << SLOT_FREE,
	};
	enum slot_state from = s->slots[slot].state;
	assert(allowed[from] & 1u << to);
	s->slots[slot].state = to;
	if (to == SLOT_FREE)
		s->free[s->free_count++] = slot;
	if (to == SLOT_HELD)
		s->held++;
	if (from == SLOT_HELD)
		s->held--;
}

static void *slot_data(const struct offload_stream *s, uint32_t slot)
{
	return (char *)s->memory.data + (size_t)slot * s->config.slot_bytes;
}

static void enqueue(struct offload_stream *s, uint32_t slot)
{
	s->queue[(s->queue_first + s->queue_count++) % s->config.slots] = slot;
}

// Gives free slots the next items; lock is held.
static void refill(struct offload_stream *s)
{
	while (s->free_count > 0 && s->inflight + s->queue_count < s->config.depth) {
		uint32_t i = s->free[--s->free_count];
		struct slot *slot = &s->slots[i];
		const struct offload_stream_item *item = &s->items[s->next_item];
		slot->item = s->next_item;
		slot->tries = 0;
		slot->verify = s->config.verify_every > 0 && s->verify_turn++ % s->config.verify_every == 0;
		slot->read = (struct offload_read){
			.file = item->file,
			.length_bytes = item->extent->length_bytes,
			.offset_bytes = item->extent->offset_bytes,
			.buffer = slot_data(s, i),
			.user = slot,
		};
		set_state(s, i, SLOT_READING);
		s->order[(s->order_first + s->order_count++) % s->config.slots] = i;
		s->next_item = s->next_item + 1 == s->config.items_count ? 0 : s->next_item + 1;
		enqueue(s, i);
	}
}

// The read of a slot is over for good: r is 0 or why not.
static void publish(struct offload_stream *s, uint32_t i, int r)
{
	pthread_mutex_lock(&s->lock);
	struct slot *slot = &s->slots[i];
	s->hung = false;
	if (slot->state == SLOT_DROPPED) {
		set_state(s, i, SLOT_FREE);
	} else {
		slot->error = r;
		set_state(s, i, r < 0 ? SLOT_FAILED : SLOT_READY);
		if (s->order[s->order_first] == i) {
			atomic_fetch_add_explicit(&s->arrivals, 1, memory_order_release);
			pthread_cond_signal(&s->arrived);
		}
	}
	pthread_mutex_unlock(&s->lock);
}

static bool dropped(struct offload_stream *s, uint32_t i)
{
	pthread_mutex_lock(&s->lock);
	bool is = s->slots[i].state == SLOT_DROPPED;
	pthread_mutex_unlock(&s->lock);
	return is;
}

static int check(struct offload_stream *s, struct slot *slot, bool *ret_again)
{
	// The clock is a system call: for short extents it would cost as much as it measures, so one of several is
	// measured and stands for all.
	uint32_t length = slot->read.length_bytes, hashed = slot->verify ? length : 0;
	uint64_t stands_for = length >= CLOCK_EVERY_BYTES ? 1 : CLOCK_EVERY_BYTES / length;
	bool measure = hashed && s->verified++ % stands_for == 0;
	uint64_t start = measure ? base_clock_thread_cpu_ns() : 0;
	int r = offload_check_read(
		&slot->read, slot->read.buffer, hashed, s->items[slot->item].extent->xxh3, &slot->tries, ret_again);
	if (measure)
		add(s->verify_ns, (base_clock_thread_cpu_ns() - start) * stands_for);
	add(s->verify_bytes, hashed);
	return r;
}

// A read came back, or could not be sent (result says so).
static void finish(struct offload_stream *s, struct slot *slot, int result)
{
	uint32_t i = (uint32_t)(slot - s->slots);
	if (dropped(s, i)) {
		publish(s, i, 0);
		return;
	}
	bool again;
	slot->read.result = result;
	int r = check(s, slot, &again);
	if (r < 0)
		add(s->errors, 1);
	if (again) {
		add(s->rereads, 1);
		add(s->reread_bytes, slot->read.length_bytes);
		slot->verify = s->config.verify_every > 0; // one failure is reason enough to look
		enqueue(s, i);
		return;
	}
	publish(s, i, r);
}

static void die(struct offload_stream *s, int r)
{
	pthread_mutex_lock(&s->lock);
	s->dead = r;
	atomic_fetch_add_explicit(&s->arrivals, 1, memory_order_release);
	pthread_cond_signal(&s->arrived);
	pthread_mutex_unlock(&s->lock);
}

// Sends what is queued, as far as the engine takes it.
static void submit(struct offload_stream *s)
{
	while (s->queue_count > 0) {
		struct offload_read *reads[REAP_BATCH];
		uint32_t n = s->queue_count < REAP_BATCH ? s->queue_count : REAP_BATCH;
		for (uint32_t k = 0; k < n; k++)
			reads[k] = &s->slots[s->queue[(s->queue_first + k) % s->config.slots]].read;
		int r = s->engine->ops->submit(s->engine, reads, n);
		if (r == -EAGAIN || r == 0) {
			if (s->inflight == 0 && ++s->refusals > MAX_REFUSALS)
				die(s, -EAGAIN);
			return;
		}
		uint32_t gone = r < 0 ? 1 : (uint32_t)r;
		uint32_t first = s->queue[s->queue_first];
		s->queue_first = (s->queue_first + gone) % s->config.slots;
		s->queue_count -= gone;
		if (r < 0) {
			finish(s, &s->slots[first], r);
			continue;
		}
		s->refusals = 0;
		s->inflight += gone;
		add(s->reads, gone);
		atomic_store_explicit(&s->inflight_now, s->inflight, memory_order_relaxed);
	}
}

static void pump(struct offload_stream *s)
{
	pthread_mutex_lock(&s->lock);
	refill(s);
	pthread_mutex_unlock(&s->lock);
	submit(s);
}

static void trace_read(struct offload_stream *s, const struct slot *slot)
{
	if (base_trace_on(s->config.trace))
		base_trace_record(s->config.trace,
			&(struct base_trace_event){.start_ns = slot->read.submitted_ns,
				.end_ns = slot->read.completed_ns,
				.amount = slot->read.length_bytes,
				.kind = slot->read.result < 0 ? BASE_TRACE_READ_FAILED : BASE_TRACE_READ,
				.place = s->items[slot->item].layer});
}

// One round; false to stop.
static bool turn(struct offload_stream *s)
{
	pump(s);
	pthread_mutex_lock(&s->lock);
	bool stop = s->stop || s->dead != 0;
	bool room = s->inflight + s->queue_count < s->config.depth;
	bool more = room && s->free_count > 0; // released since pump
	s->hungry = room && !more;
	pthread_mutex_unlock(&s->lock);
	if (stop)
		return false;
	if (more)
		return true;

	struct offload_read *reads[REAP_BATCH];
	uint64_t timeout_ns = s->queue_count > 0 && s->inflight == 0 ? RETRY_NS : OFFLOAD_ENGINE_FOREVER;
	int n = s->engine->ops->reap(s->engine, reads, REAP_BATCH, timeout_ns);
	if (n < 0) {
		die(s, n);
		return false;
	}
	s->inflight -= (uint32_t)n;
	atomic_store_explicit(&s->inflight_now, s->inflight, memory_order_relaxed);
	for (int k = 0; k < n; k++) {
		// The drive must not wait for checksums: what may be sent goes before each.
		pump(s);
		struct slot *slot = reads[k]->user;
		add(s->read_latency_ns, reads[k]->completed_ns - reads[k]->submitted_ns);
		trace_read(s, slot);
		if (reads[k]->result > 0)
			add(s->read_bytes, (uint64_t)reads[k]->result);
		finish(s, slot, reads[k]->result);
	}
	return true;
}

static int set_cpus(const uint32_t *cpus, uint32_t count, struct base_error *e)
{
	if (count == 0)
		return 0;
	cpu_set_t set;
	CPU_ZERO(&set);
	for (uint32_t i = 0; i < count; i++) {
		if (cpus[i] >= CPU_SETSIZE)
			return base_error_set(
				e, -EINVAL, "CPU %u for the I/O thread: numbers end at %d", cpus[i], CPU_SETSIZE - 1);
		CPU_SET(cpus[i], &set);
	}
	int r = -pthread_setaffinity_np(pthread_self(), sizeof set, &set);
	return r < 0 ? base_error_set(e, r, "cannot run the I/O thread on the CPUs that it was given (first: %u): %s",
			       cpus[0], strerrordesc_np(-r))
		     : 0;
}

static int make_engine(struct offload_stream *s)
{
	const struct offload_stream_config *c = &s->config;
	struct offload_engine_config config = {
		.depth = c->depth,
		.files = s->files,
		.files_count = c->files_count,
		.buffers = s->memory.data,
		.buffers_bytes = s->memory.bytes,
	};
	int r = set_cpus(s->cpus, c->cpus_count, s->error);
	if (r < 0)
		return r;
	if (c->engine_ops)
		return c->engine_ops->create(&config, &s->engine, s->error);
	return offload_engine_create(c->engine ? c->engine : "auto", &config, &s->engine, s->fallback, s->error);
}

static void *io_main(void *arg)
{
	struct offload_stream *s = arg;
	int r = make_engine(s);
	pthread_mutex_lock(&s->lock);
	s->started = r;
	pthread_cond_signal(&s->arrived);
	pthread_mutex_unlock(&s->lock);
	if (r < 0)
		return NULL;
	while (turn(s))
		;
	// After a death this waits too: stop is what ends the thread, and others may still call wake until then.
	pthread_mutex_lock(&s->lock);
	while (!s->stop)
		pthread_cond_wait(&s->arrived, &s->lock);
	pthread_mutex_unlock(&s->lock);
	s->engine->ops->destroy(s->engine);
	return NULL;
}

static int check_config(const struct offload_stream_config *c, struct base_error *e)
{
	if (c->items_count == 0 || c->files_count == 0)
		return base_error_set(e, -EINVAL, "stream of %u extents in %u files: nothing to read", c->items_count,
			c->files_count);
	if (c->slots < 2 || c->slots > MAX_SLOTS || c->depth == 0 || c->depth > c->slots)
		return base_error_set(e, -EINVAL, "stream with %u slots and depth %u: 2 to %u slots, depth 1 to slots",
			c->slots, c->depth, MAX_SLOTS);
	if (c->slot_bytes == 0 || c->slot_bytes % BASE_PAGE_BYTES != 0 ||
		c->slot_bytes > OFFLOAD_STORE_MAX_EXTENT_BYTES)
		return base_error_set(e, -EINVAL, "stream slots of %u bytes: multiples of %u up to %u", c->slot_bytes,
			BASE_PAGE_BYTES, OFFLOAD_STORE_MAX_EXTENT_BYTES);
	for (uint32_t i = 0; i < c->items_count; i++) {
		const struct offload_store_extent *x = c->items[i].extent;
		if (c->items[i].file >= c->files_count)
			return base_error_set(
				e, -EINVAL, "stream item %u: file %u of %u", i, c->items[i].file, c->files_count);
		if (x->length_bytes == 0 || x->length_bytes > c->slot_bytes || x->length_bytes % BASE_PAGE_BYTES != 0 ||
			x->offset_bytes % BASE_PAGE_BYTES != 0 || x->offset_bytes > (1ull << 62))
			return base_error_set(e, -EINVAL,
				"stream item %u: %u bytes at %llu do not suit slots of %u bytes", i, x->length_bytes,
				(unsigned long long)x->offset_bytes, c->slot_bytes);
	}
	return 0;
}

// The arrays; extents are copied behind the items, so that the caller may close its tables.
static int take_arrays(struct offload_stream *s, const struct offload_stream_config *c)
{
	size_t items_bytes = c->items_count * sizeof *s->items;
	s->items = malloc(items_bytes + c->items_count * sizeof(struct offload_store_extent));
	s->files = calloc(c->files_count, sizeof *s->files);
	s->cpus = calloc(c->cpus_count + 1, sizeof *s->cpus);
	s->slots = calloc(c->slots, sizeof *s->slots);
	s->free = calloc(c->slots, sizeof *s->free);
	s->order = calloc(c->slots, sizeof *s->order);
	s->queue = calloc(c->slots, sizeof *s->queue);
	if (!s->items || !s->files || !s->cpus || !s->slots || !s->free || !s->order || !s->queue)
		return -ENOMEM;
	struct offload_store_extent *extents = (struct offload_store_extent *)((char *)s->items + items_bytes);
	for (uint32_t i = 0; i < c->items_count; i++) {
		extents[i] = *c->items[i].extent;
		s->items[i] = (struct offload_stream_item){c->items[i].file, &extents[i], c->items[i].layer};
	}
	memcpy(s->files, c->files, c->files_count * sizeof *s->files);
	if (c->cpus_count > 0)
		memcpy(s->cpus, c->cpus, c->cpus_count * sizeof *s->cpus);
	for (uint32_t i = c->slots; i-- > 0;)
		s->free[s->free_count++] = i;
	return 0;
}

static void finish_stream(struct offload_stream *s)
{
	pthread_cond_destroy(&s->arrived);
	pthread_mutex_destroy(&s->lock);
	offload_memory_unmap(&s->memory);
	free(s->queue);
	free(s->order);
	free(s->free);
	free(s->slots);
	free(s->cpus);
	free(s->files);
	free(s->items);
	free(s);
}

// Starts the I/O thread and waits until its engine stands.
static int start(struct offload_stream *s)
{
	sigset_t all, old;
	sigfillset(&all);
	s->started = 1;
	pthread_sigmask(SIG_SETMASK, &all, &old); // signals are for the process's own threads
	int r = -pthread_create(&s->thread, NULL, io_main, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r < 0)
		return base_error_set(s->error, r, "cannot start the I/O thread: %s", strerrordesc_np(-r));
	pthread_setname_np(s->thread, "thaw-io");
	pthread_mutex_lock(&s->lock);
	while (s->started == 1)
		pthread_cond_wait(&s->arrived, &s->lock);
	r = s->started;
	pthread_mutex_unlock(&s->lock);
	if (r < 0)
		pthread_join(s->thread, NULL);
	return r;
}

int offload_stream_create(const struct offload_stream_config *config, struct offload_stream **ret_stream,
	struct base_error *ret_fallback, struct base_error *e)
{
	if (ret_fallback)
		*ret_fallback = (struct base_error){0};
	int r = check_config(config, e);
	if (r < 0)
		return r;
	struct offload_stream *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "stream: no memory");
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&s->arrived, &attributes);
	pthread_condattr_destroy(&attributes);
	s->config = *config;
	if (s->config.patience_ns == 0)
		s->config.patience_ns = OFFLOAD_CHECK_PATIENCE_NS;
	s->fallback = ret_fallback;
	s->error = e;
	r = take_arrays(s, config);
	if (r < 0)
		base_error_set(
			e, r, "stream of %u extents and %u slots: no memory", config->items_count, config->slots);
	if (r == 0)
		r = offload_memory_map((size_t)config->slots * config->slot_bytes, &s->memory, e);
	if (r == 0)
		r = start(s);
	if (r < 0) {
		finish_stream(s);
		return r;
	}
	*ret_stream = s;
	return 0;
}

void offload_stream_destroy(struct offload_stream *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->arrived);
	s->engine->ops->wake(s->engine); // under the lock: once stop is seen, the engine goes
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	finish_stream(s);
}

// lock is held
static bool front_arrived(const struct offload_stream *s)
{
	if (s->order_count == 0)
		return false;
	enum slot_state state = s->slots[s->order[s->order_first]].state;
	return state == SLOT_READY || state == SLOT_FAILED;
}

// Called and left with the lock held; sleeps until the front of the order has arrived, the engine is dead or patience
// ends.
static void wait_for_front(struct offload_stream *s)
{
	uint64_t start = base_clock_now_ns();
	// A drive that hangs is waited for once, not once for each extent of the pass.
	uint64_t until = start + (s->hung ? 0 : s->config.patience_ns);
	uint32_t layer = s->items[s->order_count ? s->slots[s->order[s->order_first]].item : s->next_item].layer;
	uint32_t seen = atomic_load_explicit(&s->arrivals, memory_order_acquire);
	pthread_mutex_unlock(&s->lock);
	for (int i = 0; i < SPINS && atomic_load_explicit(&s->arrivals, memory_order_acquire) == seen; i++) {
#ifdef __x86_64__
		__builtin_ia32_pause();
#endif
	}
	struct timespec deadline = {
		.tv_sec = (time_t)(until / BASE_NS_PER_SECOND), .tv_nsec = (long)(until % BASE_NS_PER_SECOND)};
	int r = 0;
	pthread_mutex_lock(&s->lock);
	while (!front_arrived(s) && s->dead == 0 && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&s->arrived, &s->lock, &deadline);
	add(s->stall_ns, base_clock_now_ns() - start);
	if (base_trace_on(s->config.trace))
		base_trace_end(s->config.trace, start, BASE_TRACE_STALL, layer, 0);
	add(s->late, 1);
}

static void pop(struct offload_stream *s)
{
	s->order_first = (s->order_first + 1) % s->config.slots;
	s->order_count--;
}

// Nothing came in time: the ring moves on without the front; its slot is free again when its read comes back.
static uint32_t give_up_front(struct offload_stream *s)
{
	uint32_t item = s->next_item;
	s->hung = true;
	if (s->order_count > 0) {
		uint32_t i = s->order[s->order_first];
		item = s->slots[i].item;
		pop(s);
		set_state(s, i, SLOT_DROPPED);
	} else { // all slots wait for such reads
		s->next_item = s->next_item + 1 == s->config.items_count ? 0 : s->next_item + 1;
	}
	return item;
}

static int extent_error(const struct offload_stream *s, uint32_t item, int why, struct base_error *e)
{
	const struct offload_stream_item *x = &s->items[item];
	char link[64], path[256];
	snprintf(link, sizeof link, "/proc/self/fd/%d", s->files[x->file]);
	ssize_t n = readlink(link, path, sizeof path - 1);
	path[n < 0 ? 0 : n] = 0;
	return offload_check_error(path, x->extent->offset_bytes, x->extent->length_bytes, why, e);
}

// Wakes the I/O thread if it waits for a slot; called with the lock held, which it lets go.
static void unlock_and_feed(struct offload_stream *s)
{
	bool hungry = s->hungry && s->free_count > 0;
	if (hungry)
		s->hungry = false;
	pthread_mutex_unlock(&s->lock);
	if (hungry)
		s->engine->ops->wake(s->engine);
}

int offload_stream_next(struct offload_stream *s, const void **ret_data, uint32_t *ret_slot, struct base_error *e)
{
	pthread_mutex_lock(&s->lock);
	if (s->held == s->config.slots) {
		pthread_mutex_unlock(&s->lock);
		return base_error_set(
			e, -EDEADLK, "all %u slots are held: release one before the next extent", s->held);
	}
	if (!front_arrived(s) && s->dead == 0)
		wait_for_front(s);
	if (!front_arrived(s) && s->dead == 0) {
		uint32_t item = give_up_front(s);
		pthread_mutex_unlock(&s->lock);
		return extent_error(s, item, -ETIMEDOUT, e);
	}
	if (!front_arrived(s)) {
		int dead = s->dead;
		pthread_mutex_unlock(&s->lock);
		return base_error_set(
			e, -EIO, "the %s engine failed: %s", s->engine->ops->name, strerrordesc_np(-dead));
	}
	uint32_t i = s->order[s->order_first];
	pop(s);
	if (s->slots[i].state == SLOT_FAILED) {
		uint32_t item = s->slots[i].item;
		int why = s->slots[i].error;
		set_state(s, i, SLOT_FREE);
		unlock_and_feed(s);
		return extent_error(s, item, why, e);
	}
	set_state(s, i, SLOT_HELD);
	pthread_mutex_unlock(&s->lock);
	*ret_data = slot_data(s, i);
	*ret_slot = i;
	return 0;
}

void offload_stream_release(struct offload_stream *s, uint32_t slot)
{
	assert(slot < s->config.slots);
	pthread_mutex_lock(&s->lock);
	set_state(s, slot, SLOT_FREE);
	unlock_and_feed(s);
}

void offload_stream_rewind(struct offload_stream *s)
{
	pthread_mutex_lock(&s->lock);
	assert(s->held == 0);
	// What was read ahead beyond the end of the pass is the start of the next one: it stays.
	while (s->order_count > 0 && s->slots[s->order[s->order_first]].item != 0) {
		uint32_t i = s->order[s->order_first];
		pop(s);
		set_state(s, i, s->slots[i].state == SLOT_READING ? SLOT_DROPPED : SLOT_FREE);
	}
	if (s->order_count == 0)
		s->next_item = 0;
	unlock_and_feed(s);
}

const char *offload_stream_engine(const struct offload_stream *s)
{
	return s->engine->ops->name;
}

enum offload_pages offload_stream_pages(const struct offload_stream *s)
{
	return s->memory.pages;
}

static uint64_t thread_cpu_ns(pthread_t thread)
{
	clockid_t clock;
	struct timespec t;
	if (pthread_getcpuclockid(thread, &clock) != 0 || clock_gettime(clock, &t) < 0)
		return 0;
	return (uint64_t)t.tv_sec * BASE_NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

void offload_stream_get_stats(const struct offload_stream *s, struct offload_stream_stats *ret_stats)
{
	const struct offload_engine_ops *ops = s->engine->ops;
	*ret_stats = (struct offload_stream_stats){
		.read_bytes = get(s->read_bytes),
		.reads = get(s->reads),
		.stall_ns = get(s->stall_ns),
		.late = get(s->late),
		.verify_bytes = get(s->verify_bytes),
		.verify_ns = get(s->verify_ns),
		.io_cpu_ns = thread_cpu_ns(s->thread) + (ops->cpu_ns ? ops->cpu_ns(s->engine) : 0),
		.errors = get(s->errors),
		.rereads = get(s->rereads),
		.reread_bytes = get(s->reread_bytes),
		.read_latency_ns = get(s->read_latency_ns),
		.inflight = get(s->inflight_now),
	};
}
