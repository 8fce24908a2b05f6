/* SPDX-License-Identifier: Apache-2.0
 * What happened when: a bounded ring of spans that is off until somebody wants to look. Off, a place that may record
 * costs one relaxed load, and there is no memory; on, two looks at the clock and a short lock for each span. When the
 * ring is full the oldest spans go, and are counted. Any thread may record; times are of base_clock_now_ns, so of one
 * host.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"

#define BASE_TRACE_EVENTS 32768u // of a ring: BASE_TRACE_RING_BYTES
#define BASE_TRACE_NO_PLACE UINT32_MAX
#define BASE_TRACE_COORDINATOR (UINT32_MAX - 1) // a peer that is no rank

enum base_trace_track {
	BASE_TRACE_COMPUTE, // place: layer
	BASE_TRACE_DRIVE, // place: layer; amount: bytes; from submission to completion
	BASE_TRACE_LINK, // place: peer (rank or part); amount: bytes
	BASE_TRACE_WAIT, // place: layer
	BASE_TRACE_PASSES, // place: number of the pass; amount: token positions
	BASE_TRACE_TRACKS,
};

enum base_trace_kind { // the order is that of the table in trace.c, and part of the rank messages' format
	BASE_TRACE_EMBED,
	BASE_TRACE_NORM,
	BASE_TRACE_MATMUL,
	BASE_TRACE_ROPE,
	BASE_TRACE_ATTEND,
	BASE_TRACE_ADD,
	BASE_TRACE_SILU_GATE,
	BASE_TRACE_SELECT,
	BASE_TRACE_SAMPLE,
	BASE_TRACE_READ,
	BASE_TRACE_READ_ROWS,
	BASE_TRACE_READ_FAILED,
	BASE_TRACE_SEND,
	BASE_TRACE_RECEIVE,
	BASE_TRACE_SEND_PART,
	BASE_TRACE_RECEIVE_PART,
	BASE_TRACE_ALLREDUCE,
	BASE_TRACE_STALL,
	BASE_TRACE_PASS,
	BASE_TRACE_KINDS,
};

struct base_trace_event {
	uint64_t start_ns, end_ns;
	uint64_t amount;
	uint32_t kind; // enum base_trace_kind
	uint32_t place;
};

#define BASE_TRACE_RING_BYTES (BASE_TRACE_EVENTS * sizeof(struct base_trace_event)) // 1 MiB

struct base_trace {
	_Atomic bool on;
	pthread_mutex_t lock; // of all below
	struct base_trace_event *events; // (room), NULL when there was no start since the last clear
	uint32_t room;
	uint64_t recorded; // since start
	uint64_t since_ns;
};

const char *base_trace_kind_name(uint32_t kind);
const char *base_trace_track_name(enum base_trace_track track);
enum base_trace_track base_trace_kind_track(uint32_t kind);

void base_trace_init(struct base_trace *t);
void base_trace_finish(struct base_trace *t);
/* Takes memory for `room` spans (at most BASE_TRACE_EVENTS) and forgets what was there. -EINVAL, -ENOMEM. */
int base_trace_start(struct base_trace *t, uint32_t room);
void base_trace_stop(struct base_trace *t); // what was recorded stays to be read
void base_trace_clear(struct base_trace *t); // stops, and gives the memory back
/* Spans from number `first` of those that are there, in the order of their ends or nearly so; returns how many of
 * `total` were copied. Stop first: a ring that still turns gives what it has at the moment. */
uint32_t base_trace_read(struct base_trace *t, uint32_t first, struct base_trace_event *out, uint32_t out_room,
	uint32_t *ret_total, uint64_t *ret_lost);

/* A span that began before start, or whose end is before its start, is dropped. */
void base_trace_record(struct base_trace *t, const struct base_trace_event *event);

static inline bool base_trace_on(const struct base_trace *t)
{
	return t && atomic_load_explicit(&t->on, memory_order_relaxed);
}

/* 0 when nothing is recorded; for end(). */
static inline uint64_t base_trace_begin(const struct base_trace *t)
{
	return base_trace_on(t) ? base_clock_now_ns() : 0;
}

static inline void base_trace_end(
	struct base_trace *t, uint64_t begin_ns, enum base_trace_kind kind, uint32_t place, uint64_t amount)
{
	if (begin_ns)
		base_trace_record(t, &(struct base_trace_event){.start_ns = begin_ns,
					     .end_ns = base_clock_now_ns(),
					     .amount = amount,
					     .kind = kind,
					     .place = place});
}
