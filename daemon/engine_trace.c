// SPDX-License-Identifier: Apache-2.0
/* A trace: the ranks are told to record, told to stop, and then read piece by piece, all ranks in step, so that at any
 * time one piece of each is on its way. The memory is taken at the start and belongs to whoever takes the result. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/engine_internal.h"

#define KEEP_NS (60 * 1000000000ull) // a result that nobody takes

void engine_trace_destroy(struct engine_trace *t)
{
	for (uint32_t i = 0; t && i < t->processes; i++)
		free(t->process[i].events);
	free(t);
}

static struct engine_trace *trace_create(const struct engine *e)
{
	struct engine_trace *t = calloc(1, sizeof *t);
	if (!t)
		return NULL;
	snprintf(t->model, sizeof t->model, "%s", e->model_name);
	t->epoch = e->epoch;
	t->shape = e->shape;
	t->started_ns = base_clock_now_ns();
	t->started_wall_ns = base_clock_wall_ns();
	for (uint32_t i = 0; i < 1 + e->ranks; i++) {
		struct engine_trace_process *p = &t->process[t->processes++];
		p->events = calloc(BASE_TRACE_EVENTS, sizeof *p->events);
		p->same_clock = true;
		if (!p->events) {
			engine_trace_destroy(t);
			return NULL;
		}
	}
	return t;
}

/* ---- any thread ---- */

int engine_trace_start(struct engine *e, uint64_t duration_ns, struct base_error *error)
{
	if (!duration_ns || duration_ns > ENGINE_TRACE_MOST_NS)
		return base_error_set(error, -EINVAL, "duration: %.3f s; up to %llu s can be traced",
			(double)duration_ns / 1e9, ENGINE_TRACE_MOST_NS / BASE_NS_PER_SECOND);
	int r = 0;
	pthread_mutex_lock(&e->lock);
	if (e->load.state != ENGINE_READY) {
		r = base_error_set(
			error, -EHOSTDOWN, "model %s is not ready: there are no ranks to trace", e->model_name);
	} else if (e->tracing >= ENGINE_TRACING_WANTED && e->tracing <= ENGINE_TRACING_READING) {
		r = base_error_set(error, -EBUSY,
			"model %s is being traced for somebody else: try again when that is over", e->model_name);
	} else {
		engine_trace_destroy(e->trace);
		e->trace = NULL;
		e->trace_over = false;
		e->trace_until_ns = duration_ns;
		e->tracing = ENGINE_TRACING_WANTED;
	}
	pthread_mutex_unlock(&e->lock);
	if (!r)
		engine_wake(e);
	return r;
}

int engine_trace_take(struct engine *e, struct engine_trace **ret_trace, struct base_error *error)
{
	int r = -EAGAIN;
	pthread_mutex_lock(&e->lock);
	switch (e->tracing) {
	case ENGINE_TRACING_NONE:
		r = base_error_set(error, -ENOENT,
			"nothing of model %s was traced, or it was taken, or dropped after %llu s", e->model_name,
			KEEP_NS / BASE_NS_PER_SECOND);
		break;
	case ENGINE_TRACING_WANTED:
	case ENGINE_TRACING_RUNNING:
	case ENGINE_TRACING_READING:
		e->trace_over = true;
		break;
	case ENGINE_TRACING_FAILED:
		r = e->trace_failure;
		base_error_set(error, r, "the trace of model %s came to nothing: %s", e->model_name,
			r == -ENOMEM ? "no memory" : "its ranks were lost meanwhile");
		e->tracing = ENGINE_TRACING_NONE;
		break;
	case ENGINE_TRACING_DONE:
		r = 0;
		*ret_trace = e->trace;
		e->trace = NULL;
		e->tracing = ENGINE_TRACING_NONE;
		break;
	}
	pthread_mutex_unlock(&e->lock);
	if (r == -EAGAIN)
		engine_wake(e);
	return r;
}

/* ---- the engine's thread ---- */

/* trace_failure 0: there is a result. */
static void settle(struct engine *e, int failure)
{
	base_trace_clear(&e->spans);
	pthread_mutex_lock(&e->lock);
	if (failure) {
		engine_trace_destroy(e->trace);
		e->trace = NULL;
	}
	e->trace_failure = failure;
	e->trace_until_ns = base_clock_now_ns() + KEEP_NS;
	e->tracing = failure ? ENGINE_TRACING_FAILED : ENGINE_TRACING_DONE;
	pthread_mutex_unlock(&e->lock);
}

static void set_tracing(struct engine *e, enum engine_tracing tracing)
{
	pthread_mutex_lock(&e->lock);
	e->tracing = tracing;
	pthread_mutex_unlock(&e->lock);
}

static bool tell(struct engine *e, enum rank_trace_step step, uint32_t first)
{
	e->out = (struct rank_message){.type = RANK_MESSAGE_TRACE, .trace = {.step = step, .first = first}};
	return engine_link_send(e, false);
}

static void begin(struct engine *e)
{
	struct engine_trace *t = trace_create(e);
	if (!t || base_trace_start(&e->spans, BASE_TRACE_EVENTS) < 0) {
		engine_trace_destroy(t);
		settle(e, -ENOMEM);
		return;
	}
	gethostname(t->process[0].host, sizeof t->process[0].host - 1);
	pthread_mutex_lock(&e->lock);
	e->trace = t;
	e->trace_until_ns += t->started_ns;
	e->tracing = ENGINE_TRACING_RUNNING;
	pthread_mutex_unlock(&e->lock);
	if (!tell(e, RANK_TRACE_START, 0))
		settle(e, -ECANCELED);
}

static bool ask(struct engine *e, uint32_t first)
{
	e->trace_first = first;
	memset(e->trace_had, 0, sizeof e->trace_had);
	return tell(e, RANK_TRACE_READ, first);
}

static void end(struct engine *e)
{
	struct engine_trace_process *p = &e->trace->process[0];
	uint32_t total;
	base_trace_stop(&e->spans);
	p->count = base_trace_read(&e->spans, 0, p->events, BASE_TRACE_EVENTS, &total, &p->lost);
	e->trace->ended_ns = base_clock_now_ns();
	set_tracing(e, ENGINE_TRACING_READING);
	if (!tell(e, RANK_TRACE_STOP, 0) || !ask(e, 0))
		settle(e, -ECANCELED);
}

/* A host that was started at another time has another clock; then the wall clocks say how far they are apart. */
static void set_clock(struct engine_trace_process *p, const struct rank_trace_piece *piece)
{
	uint64_t now = base_clock_now_ns(), wall = base_clock_wall_ns();
	p->same_clock = piece->boot && piece->boot == base_clock_boot();
	p->ahead_ns = p->same_clock ? 0 : (piece->wall_ns - piece->now_ns) - (wall - now);
}

bool engine_trace_piece(struct engine *e, uint32_t rank)
{
	const struct rank_trace_piece *piece = &e->in.trace_piece;
	pthread_mutex_lock(&e->lock);
	bool reading = e->tracing == ENGINE_TRACING_READING;
	pthread_mutex_unlock(&e->lock);
	if (!reading || e->trace->epoch != e->epoch || e->trace_had[rank] || piece->first != e->trace_first)
		return false;
	struct engine_trace_process *p = &e->trace->process[1 + rank];
	if (piece->first == p->count && piece->events_count) {
		memcpy(p->events + p->count, piece->events, piece->events_count * sizeof *p->events);
		p->count += piece->events_count; // first + count <= total <= BASE_TRACE_EVENTS: decoded so
	}
	if (!piece->first) {
		p->lost = piece->lost;
		memcpy(p->host, piece->host, sizeof p->host);
		set_clock(p, piece);
	}
	e->trace_had[rank] = true;
	return true;
}

/* All have answered: the next pieces, until no rank had a full one. */
static void go_on(struct engine *e)
{
	bool more = false;
	for (uint32_t i = 0; i < e->ranks; i++) {
		if (!e->trace_had[i])
			return;
		more |= e->trace->process[1 + i].count >= e->trace_first + RANK_TRACE_PIECE_EVENTS;
	}
	if (more && e->trace_first + RANK_TRACE_PIECE_EVENTS < BASE_TRACE_EVENTS) {
		if (!ask(e, e->trace_first + RANK_TRACE_PIECE_EVENTS))
			settle(e, -ECANCELED);
		return;
	}
	settle(e, tell(e, RANK_TRACE_END, 0) ? 0 : -ECANCELED);
}

uint64_t engine_trace_pump(struct engine *e)
{
	uint64_t now = base_clock_now_ns();
	pthread_mutex_lock(&e->lock);
	enum engine_tracing tracing = e->tracing;
	uint64_t until = e->trace_until_ns;
	bool over = e->trace_over || now >= until;
	bool drop = (tracing == ENGINE_TRACING_DONE || tracing == ENGINE_TRACING_FAILED) && now >= until;
	if (drop) {
		engine_trace_destroy(e->trace);
		e->trace = NULL;
		e->tracing = ENGINE_TRACING_NONE;
	}
	pthread_mutex_unlock(&e->lock);
	if (tracing < ENGINE_TRACING_WANTED || tracing > ENGINE_TRACING_READING)
		return SCHEDULER_NEVER; // the thread comes round each second
	if (e->state != ENGINE_READY || !e->group || (e->trace && e->trace->epoch != e->epoch))
		settle(e, -ECANCELED);
	else if (tracing == ENGINE_TRACING_WANTED)
		begin(e);
	else if (tracing == ENGINE_TRACING_RUNNING && over)
		end(e);
	else if (tracing == ENGINE_TRACING_READING)
		go_on(e);
	pthread_mutex_lock(&e->lock);
	until = e->tracing == ENGINE_TRACING_RUNNING ? e->trace_until_ns
						     : SCHEDULER_NEVER; // the next piece wakes the thread
	pthread_mutex_unlock(&e->lock);
	return until;
}

void engine_trace_finish(struct engine *e)
{
	engine_trace_destroy(e->trace);
	base_trace_finish(&e->spans);
}
