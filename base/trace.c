// SPDX-License-Identifier: Apache-2.0
#include "base/trace.h"

#include <errno.h>
#include <stdlib.h>

static const struct {
	const char *name;
	enum base_trace_track track;
} kinds[BASE_TRACE_KINDS] = {
	[BASE_TRACE_EMBED] = {"embed", BASE_TRACE_COMPUTE},
	[BASE_TRACE_NORM] = {"norm", BASE_TRACE_COMPUTE},
	[BASE_TRACE_MATMUL] = {"matmul", BASE_TRACE_COMPUTE},
	[BASE_TRACE_ROPE] = {"rope", BASE_TRACE_COMPUTE},
	[BASE_TRACE_ATTEND] = {"attend", BASE_TRACE_COMPUTE},
	[BASE_TRACE_ADD] = {"add", BASE_TRACE_COMPUTE},
	[BASE_TRACE_SILU_GATE] = {"silu_gate", BASE_TRACE_COMPUTE},
	[BASE_TRACE_SELECT] = {"select", BASE_TRACE_COMPUTE},
	[BASE_TRACE_SAMPLE] = {"sample", BASE_TRACE_COMPUTE},
	[BASE_TRACE_READ] = {"read", BASE_TRACE_DRIVE},
	[BASE_TRACE_READ_ROWS] = {"read rows", BASE_TRACE_DRIVE},
	[BASE_TRACE_READ_FAILED] = {"failed read", BASE_TRACE_DRIVE},
	[BASE_TRACE_SEND] = {"send", BASE_TRACE_LINK},
	[BASE_TRACE_RECEIVE] = {"receive", BASE_TRACE_LINK},
	[BASE_TRACE_SEND_PART] = {"send part", BASE_TRACE_LINK},
	[BASE_TRACE_RECEIVE_PART] = {"receive part", BASE_TRACE_LINK},
	[BASE_TRACE_ALLREDUCE] = {"allreduce", BASE_TRACE_LINK},
	[BASE_TRACE_STALL] = {"stall", BASE_TRACE_WAIT},
	[BASE_TRACE_PASS] = {"pass", BASE_TRACE_PASSES},
};

const char *base_trace_kind_name(uint32_t kind)
{
	return kind < BASE_TRACE_KINDS ? kinds[kind].name : "?";
}

enum base_trace_track base_trace_kind_track(uint32_t kind)
{
	return kind < BASE_TRACE_KINDS ? kinds[kind].track : BASE_TRACE_COMPUTE;
}

const char *base_trace_track_name(enum base_trace_track track)
{
	static const char *const names[BASE_TRACE_TRACKS] = {"compute", "drive", "link", "wait", "passes"};
	return track < BASE_TRACE_TRACKS ? names[track] : "?";
}

void base_trace_init(struct base_trace *t)
{
	*t = (struct base_trace){0};
	pthread_mutex_init(&t->lock, NULL);
}

void base_trace_finish(struct base_trace *t)
{
	free(t->events);
	t->events = NULL;
	pthread_mutex_destroy(&t->lock);
}

int base_trace_start(struct base_trace *t, uint32_t room)
{
	if (room == 0 || room > BASE_TRACE_EVENTS)
		return -EINVAL;
	struct base_trace_event *events = calloc(room, sizeof *events), *old;
	if (!events)
		return -ENOMEM;
	pthread_mutex_lock(&t->lock);
	old = t->events;
	t->events = events;
	t->room = room;
	t->recorded = 0;
	t->since_ns = base_clock_now_ns();
	atomic_store_explicit(&t->on, true, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
	free(old);
	return 0;
}

void base_trace_stop(struct base_trace *t)
{
	pthread_mutex_lock(&t->lock);
	atomic_store_explicit(&t->on, false, memory_order_relaxed);
	pthread_mutex_unlock(&t->lock);
}

void base_trace_clear(struct base_trace *t)
{
	pthread_mutex_lock(&t->lock);
	struct base_trace_event *old = t->events;
	atomic_store_explicit(&t->on, false, memory_order_relaxed);
	t->events = NULL;
	t->room = 0;
	t->recorded = 0;
	pthread_mutex_unlock(&t->lock);
	free(old);
}

// `on` is looked at again: a span that began before stop may end after it.
void base_trace_record(struct base_trace *t, const struct base_trace_event *event)
{
	pthread_mutex_lock(&t->lock);
	if (atomic_load_explicit(&t->on, memory_order_relaxed) && event->start_ns >= t->since_ns &&
		event->end_ns >= event->start_ns)
		t->events[t->recorded++ % t->room] = *event;
	pthread_mutex_unlock(&t->lock);
}

uint32_t base_trace_read(struct base_trace *t, uint32_t first, struct base_trace_event *out, uint32_t out_room,
	uint32_t *ret_total, uint64_t *ret_lost)
{
	uint32_t n = 0;
	pthread_mutex_lock(&t->lock);
	uint64_t lost = t->recorded > t->room ? t->recorded - t->room : 0;
	uint32_t total = (uint32_t)(t->recorded - lost);
	for (; first < total && n < out_room; first++)
		out[n++] = t->events[(lost + first) % t->room];
	pthread_mutex_unlock(&t->lock);
	*ret_total = total;
	*ret_lost = lost;
	return n;
}
