// SPDX-License-Identifier: Apache-2.0
#include "tests/fault/engine_faulty.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

#define MAX_DEPTH 64u
#define MAX_FAULTS 64u

struct fault { // the last transient failure of a buffer: the next read of the same place succeeds
	void *buffer;
	uint64_t offset;
	uint32_t file;
};

struct faulty {
	struct offload_engine base;
	struct faulty_plan plan;
	uint64_t random;
	uint32_t depth, pending_count;
	struct offload_read *pending[MAX_DEPTH];
	struct fault faults[MAX_FAULTS];
	uint64_t served;
	pthread_mutex_t lock;
	pthread_cond_t woken_up;
	bool woken;
};

static struct faulty_plan next_plan; // read by create
static _Atomic bool spoken; // until the next faulty_set

void faulty_set(const struct faulty_plan *plan)
{
	next_plan = *plan;
	atomic_store(&spoken, false);
}

void faulty_speak(void)
{
	atomic_store(&spoken, true);
}

static uint64_t mix(uint64_t z)
{
	z += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t draw(struct faulty *f)
{
	return mix(f->random++);
}

void faulty_bytes(uint32_t file, uint64_t offset_bytes, uint32_t length_bytes, void *out)
{
	for (uint32_t at = 0; at < length_bytes; at += 8) {
		uint64_t v = mix((uint64_t)file << 48 ^ (offset_bytes + at));
		memcpy((char *)out + at, &v, 8);
	}
}

static enum faulty_kind some_kind(const struct faulty_plan *plan, uint64_t random)
{
	return (enum faulty_kind)(1 + random % (plan->corrupt ? FAULTY_KINDS - 1 : FAULTY_FLIP - 1));
}

enum faulty_kind faulty_kind_of(const struct faulty_plan *plan, uint32_t file, uint64_t offset_bytes)
{
	uint64_t r = mix(plan->seed ^ mix((uint64_t)file << 48 ^ offset_bytes));
	return r % 100 < plan->bad_percent ? some_kind(plan, r >> 8) : FAULTY_NONE;
}

static struct fault *fault_of(struct faulty *f, const struct offload_read *r)
{
	for (uint32_t i = 0; i < MAX_FAULTS; i++) {
		if (f->faults[i].buffer == r->buffer || !f->faults[i].buffer) {
			f->faults[i].buffer = r->buffer;
			return &f->faults[i];
		}
	}
	abort();
}

static enum faulty_kind choose(struct faulty *f, const struct offload_read *r)
{
	enum faulty_kind kind = faulty_kind_of(&f->plan, r->file, r->offset_bytes);
	if (kind != FAULTY_NONE)
		return kind;
	struct fault *last = fault_of(f, r);
	bool again = last->offset == r->offset_bytes + 1 && last->file == r->file;
	last->offset = 0;
	if (again || draw(f) % 100 >= f->plan.transient_percent)
		return FAULTY_NONE;
	*last = (struct fault){r->buffer, r->offset_bytes + 1, r->file};
	return some_kind(&f->plan, draw(f));
}

static void serve(struct faulty *f, struct offload_read *r)
{
	enum faulty_kind kind = choose(f, r);
	uint32_t length = r->length_bytes;
	uint32_t part = (uint32_t)(draw(f) % (length / FAULTY_BLOCK)) * FAULTY_BLOCK; // less than all
	r->result = (int)length;
	switch (kind) {
	case FAULTY_EIO:
		r->result = -EIO;
		memset(r->buffer, 0xee, length);
		break;
	case FAULTY_SHORT:
		r->result = (int)part;
		faulty_bytes(r->file, r->offset_bytes, part, r->buffer);
		break;
	case FAULTY_EMPTY:
		r->result = 0;
		break;
	case FAULTY_FLIP:
		faulty_bytes(r->file, r->offset_bytes, length, r->buffer);
		((uint8_t *)r->buffer)[draw(f) % length] ^= (uint8_t)(1u << draw(f) % 8);
		break;
	case FAULTY_STALE: // a part is never written: what was in the buffer stays
		memset((char *)r->buffer + part, 0x55, FAULTY_BLOCK);
		faulty_bytes(r->file, r->offset_bytes, part, r->buffer);
		break;
	default:
		faulty_bytes(r->file, r->offset_bytes, length, r->buffer);
	}
	r->completed_ns = base_clock_now_ns();
	f->served++;
}

static int faulty_create(
	const struct offload_engine_config *config, struct offload_engine **ret_engine, struct base_error *e)
{
	if (config->depth > MAX_DEPTH)
		return base_error_set(e, -EINVAL, "the faulty engine is at most %u deep", MAX_DEPTH);
	struct faulty *f = calloc(1, sizeof *f);
	if (!f)
		return -ENOMEM;
	f->base.ops = &faulty_ops;
	f->plan = next_plan;
	f->random = next_plan.seed << 20;
	f->depth = config->depth;
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->woken_up, NULL);
	*ret_engine = &f->base;
	return 0;
}

static void faulty_destroy(struct offload_engine *base)
{
	struct faulty *f = (struct faulty *)base;
	if (!f)
		return;
	pthread_cond_destroy(&f->woken_up);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static int faulty_submit(struct offload_engine *base, struct offload_read *const *reads, uint32_t count)
{
	struct faulty *f = (struct faulty *)base;
	if (draw(f) % 100 < f->plan.busy_percent)
		return -EAGAIN;
	uint32_t n = f->depth - f->pending_count < count ? f->depth - f->pending_count : count;
	if (n > 1 && f->plan.busy_percent > 0)
		n = 1 + (uint32_t)(draw(f) % n); // takes only some
	for (uint32_t i = 0; i < n; i++) {
		reads[i]->submitted_ns = base_clock_now_ns();
		f->pending[f->pending_count++] = reads[i];
	}
	return n > 0 ? (int)n : -EAGAIN;
}

static void wait_for_wake(struct faulty *f, uint64_t timeout_ns)
{
	if (timeout_ns != OFFLOAD_ENGINE_FOREVER) {
		nanosleep(&(struct timespec){.tv_nsec = (long)(timeout_ns < 20000 ? timeout_ns : 20000)}, NULL);
		return;
	}
	pthread_mutex_lock(&f->lock);
	while (!f->woken)
		pthread_cond_wait(&f->woken_up, &f->lock);
	f->woken = false;
	pthread_mutex_unlock(&f->lock);
}

// Any of the reads, in any order, any number of them.
static int faulty_reap(struct offload_engine *base, struct offload_read **ret_reads, uint32_t max, uint64_t timeout_ns)
{
	struct faulty *f = (struct faulty *)base;
	if (f->plan.reads_to_death > 0 && f->served >= f->plan.reads_to_death)
		return -ENODEV;
	bool silent = f->plan.reads_to_silence > 0 && f->served >= f->plan.reads_to_silence && !atomic_load(&spoken);
	if (silent) { // looks again, as wakes come only for slots and the end
		wait_for_wake(f, 20000);
		return 0;
	}
	if (f->pending_count == 0) {
		wait_for_wake(f, timeout_ns);
		return 0;
	}
	if (f->plan.delays && draw(f) % 4 == 0)
		nanosleep(&(struct timespec){.tv_nsec = (long)(draw(f) % 50000)}, NULL);
	uint32_t n = (uint32_t)(draw(f) % (f->pending_count + 1));
	n = n < max ? n : max;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = (uint32_t)(draw(f) % f->pending_count);
		ret_reads[i] = f->pending[k];
		f->pending[k] = f->pending[--f->pending_count];
		serve(f, ret_reads[i]);
	}
	return (int)n;
}

static void faulty_wake(struct offload_engine *base)
{
	struct faulty *f = (struct faulty *)base;
	pthread_mutex_lock(&f->lock);
	f->woken = true;
	pthread_cond_signal(&f->woken_up);
	pthread_mutex_unlock(&f->lock);
}

const struct offload_engine_ops faulty_ops = {
	.name = "faulty",
	.create = faulty_create,
	.destroy = faulty_destroy,
	.submit = faulty_submit,
	.reap = faulty_reap,
	.wake = faulty_wake,
};
