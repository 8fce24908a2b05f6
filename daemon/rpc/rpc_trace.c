// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_trace.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/utf8.h"
#include "daemon/rpc/rpc_core.h"
#include "daemon/rpc/rpc_generate.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"

#define CHUNK_BYTES (64u << 10)
#define TEXT_BYTES 800u // six for each of the 128 bytes of a name

/* ---- the file ---- */

struct out {
	char *text;
	size_t room, at;
};

static void put(struct out *o, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(struct out *o, const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	int n = vsnprintf(o->text + o->at, o->room - o->at, fmt, args);
	va_end(args);
	if (n > 0)
		o->at += (size_t)n < o->room - o->at ? (size_t)n : o->room - o->at - 1;
}

/* Names come from clients and from other hosts. What is not UTF-8 becomes U+FFFD. */
static const char *escape(const char *text, char out[static TEXT_BYTES])
{
	size_t left = strnlen(text, 128), at = 0;
	const uint8_t *p = (const uint8_t *)text;
	while (left) {
		enum base_utf8 kind;
		size_t n = base_utf8_sequence(p, left, &kind);
		if (kind != BASE_UTF8_VALID)
			at += (size_t)snprintf(out + at, TEXT_BYTES - at, "\\ufffd");
		else if (*p < 0x20 || *p == '"' || *p == '\\' || *p == 0x7f)
			at += (size_t)snprintf(out + at, TEXT_BYTES - at, "\\u%04x", *p);
		else
			at += (size_t)snprintf(out + at, TEXT_BYTES - at, "%.*s", (int)n, (const char *)p);
		p += n;
		left -= n;
	}
	out[at] = '\0';
	return out;
}

static void comma(struct rpc_trace_writer *w, struct out *o)
{
	put(o, "%s\n", w->any ? "," : "");
	w->any = true;
}

/* Microseconds with three places: exact, so that spans that do not overlap do not overlap in the file. */
static void put_time(struct out *o, const char *name, uint64_t ns)
{
	bool negative = ns >> 63;
	uint64_t v = negative ? -ns : ns;
	put(o, ",\"%s\":%s%" PRIu64 ".%03u", name, negative ? "-" : "", v / 1000, (unsigned)(v % 1000));
}

static void write_head(struct rpc_trace_writer *w, struct out *o)
{
	const struct engine_trace *t = w->trace;
	char text[TEXT_BYTES];
	put(o,
		"{\"displayTimeUnit\":\"ms\",\"otherData\":{\"version\":\"thaw "
		"%s\",\"model\":\"%s\",\"epoch\":\"%" PRIu64 "\",\"started_wall_ns\":\"%" PRIu64
		"\"},\"traceEvents\":[",
		THAW_VERSION, escape(t->model, text), t->epoch, t->started_wall_ns);
}

static void write_process_name(struct rpc_trace_writer *w, struct out *o)
{
	const struct engine_trace *t = w->trace;
	uint32_t rank = w->process - 1;
	struct rank_place p = rank_shape_place(&t->shape, rank);
	char text[TEXT_BYTES];
	comma(w, o);
	put(o, "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"name\":\"process_name\",\"args\":{\"name\":\"", w->process + 1);
	if (w->process == 0)
		put(o, "engine of %s", escape(t->model, text));
	else if (t->shape.parts[p.stage] > 1)
		put(o, "rank %" PRIu32 ": stage %" PRIu32 " part %" PRIu32, rank, p.stage, p.part);
	else
		put(o, "rank %" PRIu32 ": stage %" PRIu32, rank, p.stage);
	put(o, " on %s\"}}", escape(t->process[w->process].host, text));
}

/* Records of the process itself. What is not complete, and whose times are only nearly the others', says so where it is
 * looked at. */
static void write_process(struct rpc_trace_writer *w, struct out *o)
{
	const struct engine_trace_process *p = &w->trace->process[w->process];
	write_process_name(w, o);
	comma(w, o);
	put(o,
		"{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"name\":\"process_sort_index\",\"args\":{\"sort_index\":%" PRIu32
		"}}",
		w->process + 1, w->process);
	if (!p->lost && p->same_clock)
		return;
	comma(w, o);
	put(o, "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"name\":\"process_labels\",\"args\":{\"labels\":\"", w->process + 1);
	if (p->lost)
		put(o, "%" PRIu64 " older spans lost", p->lost);
	put(o, "%s%s\"}}", p->lost && !p->same_clock ? ", " : "", p->same_clock ? "" : "aligned by wall clocks");
}

static int compare(const void *a, const void *b)
{
	const struct base_trace_event *x = a, *y = b;
	int tracks = (int)base_trace_kind_track(x->kind) - (int)base_trace_kind_track(y->kind);
	if (tracks)
		return tracks;
	if (x->start_ns != y->start_ns)
		return x->start_ns < y->start_ns ? -1 : 1;
	return (x->end_ns > y->end_ns) - (x->end_ns < y->end_ns);
}

/* The first thread of the track that is free; UINT32_MAX: none. Spans come in the order of their starts. */
static uint32_t take_lane(struct rpc_trace_writer *w, struct out *o, const struct base_trace_event *x)
{
	enum base_trace_track track = base_trace_kind_track(x->kind);
	uint32_t lane = 0;
	while (lane < w->lanes[track] && w->ends_ns[track][lane] > x->start_ns)
		lane++;
	if (lane == RPC_TRACE_LANES)
		return UINT32_MAX;
	w->ends_ns[track][lane] = x->end_ns;
	uint32_t thread = 1 + track * RPC_TRACE_LANES + lane;
	if (lane < w->lanes[track])
		return thread;
	w->lanes[track]++;
	comma(w, o);
	put(o, "{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":%" PRIu32 ",\"name\":\"thread_name\",\"args\":{\"name\":\"%s",
		w->process + 1, thread, base_trace_track_name(track));
	if (lane)
		put(o, " %" PRIu32, lane + 1);
	put(o, "\"}}");
	comma(w, o);
	put(o,
		"{\"ph\":\"M\",\"pid\":%" PRIu32 ",\"tid\":%" PRIu32
		",\"name\":\"thread_sort_index\",\"args\":{\"sort_index\":%" PRIu32 "}}",
		w->process + 1, thread, thread);
	return thread;
}

static void put_arguments(struct out *o, const struct base_trace_event *x)
{
	enum base_trace_track track = base_trace_kind_track(x->kind);
	bool place = x->place != BASE_TRACE_NO_PLACE;
	const char *between = "";
	put(o, ",\"args\":{");
	if (track == BASE_TRACE_DRIVE || track == BASE_TRACE_LINK) {
		put(o, "\"bytes\":%" PRIu64, x->amount);
		between = ",";
	}
	if (track == BASE_TRACE_PASSES)
		put(o, "\"pass\":%" PRIu32 ",\"tokens\":%" PRIu64, x->place, x->amount);
	else if (track == BASE_TRACE_LINK && x->place == BASE_TRACE_COORDINATOR)
		put(o, "%s\"peer\":\"coordinator\"", between);
	else if (track == BASE_TRACE_LINK && place)
		put(o, "%s\"peer\":\"%s %" PRIu32 "\"", between,
			x->kind == BASE_TRACE_SEND_PART || x->kind == BASE_TRACE_RECEIVE_PART ? "part" : "rank",
			x->place);
	else if (track == BASE_TRACE_LINK)
		put(o, "%s\"peer\":\"all parts\"", between);
	else if (place && x->place < PROGRAM_MAX_LAYERS)
		put(o, "%s\"layer\":%" PRIu32, between, x->place);
	put(o, "}}");
}

static void write_span(struct rpc_trace_writer *w, struct out *o)
{
	const struct engine_trace_process *p = &w->trace->process[w->process];
	const struct base_trace_event *x = &p->events[w->span];
	uint32_t thread = take_lane(w, o, x);
	if (thread == UINT32_MAX) {
		w->left_out++;
		return;
	}
	comma(w, o);
	put(o, "{\"ph\":\"X\",\"pid\":%" PRIu32 ",\"tid\":%" PRIu32 ",\"name\":\"%s\",\"cat\":\"%s\"", w->process + 1,
		thread, base_trace_kind_name(x->kind), base_trace_track_name(base_trace_kind_track(x->kind)));
	put_time(o, "ts", x->start_ns + p->ahead_ns - w->trace->started_ns);
	put_time(o, "dur", x->end_ns - x->start_ns);
	put_arguments(o, x);
}

/* One step: less than RPC_TRACE_RECORD_BYTES. */
static void write_step(struct rpc_trace_writer *w, struct out *o)
{
	struct engine_trace_process *p = &w->trace->process[w->process];
	switch (w->at) {
	case RPC_TRACE_HEAD:
		write_head(w, o);
		w->at = w->trace->processes ? RPC_TRACE_PROCESS : RPC_TRACE_TAIL;
		break;
	case RPC_TRACE_PROCESS:
		write_process(w, o);
		if (p->count) // of none there is no list
			qsort(p->events, p->count, sizeof *p->events, compare);
		memset(w->lanes, 0, sizeof w->lanes);
		w->span = 0;
		w->at = RPC_TRACE_SPANS;
		break;
	case RPC_TRACE_SPANS:
		if (w->span < p->count) {
			write_span(w, o);
			w->span++;
		} else {
			w->process++;
			w->at = w->process < w->trace->processes ? RPC_TRACE_PROCESS : RPC_TRACE_TAIL;
		}
		break;
	case RPC_TRACE_TAIL:
		put(o, "\n],\"spans_left_out\":%" PRIu64 "}\n", w->left_out);
		w->at = RPC_TRACE_OVER;
		break;
	case RPC_TRACE_OVER:
		break;
	}
}

size_t rpc_trace_write(struct rpc_trace_writer *w, char *out, size_t room)
{
	struct out o = {.text = out, .room = room};
	while (w->at != RPC_TRACE_OVER && o.at + RPC_TRACE_RECORD_BYTES <= room)
		write_step(w, &o);
	return o.at;
}

/* ---- the calls ---- */

struct tracing {
	const struct server_model *model;
	struct engine_trace *trace; // NULL: not there yet
	struct rpc_trace_writer writer;
	char chunk[CHUNK_BYTES];
};

static void fail(struct rpc_call *c, int r, const struct base_error *e, const char *field)
{
	struct rpc_fault f;
	rpc_fault_from(&f, r, e, 0, field);
	rpc_call_fail(c, &f);
}

void rpc_trace_start(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__StartTraceRequest *m = (const Thaw__Admin__V1__StartTraceRequest *)request;
	Thaw__Admin__V1__StartTraceReply reply = THAW__ADMIN__V1__START_TRACE_REPLY__INIT;
	struct base_error e = {0};
	const struct server_model *model = rpc_generate_acquire(c, m->model);
	if (!model)
		return;
	int r = engine_trace_start(model->engine, m->duration_ns ? m->duration_ns : BASE_NS_PER_SECOND, &e);
	server_release_model(c->queue->server->daemon, model);
	if (r < 0)
		fail(c, r, &e, "duration_ns");
	else
		rpc_call_reply(c, &reply.base);
}

void rpc_trace_stop(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__StopTraceRequest *m = (const Thaw__Admin__V1__StopTraceRequest *)request;
	const struct server_model *model = rpc_generate_acquire(c, m->model);
	if (!model)
		return;
	struct tracing *t = calloc(1, sizeof(*t));
	if (!t) {
		struct base_error e = {0};
		server_release_model(c->queue->server->daemon, model);
		base_error_set(&e, -ENOMEM, "no memory for the call");
		fail(c, -ENOMEM, &e, NULL);
		return;
	}
	t->model = model;
	c->context = t;
}

/* The ranks hand theirs over between passes: until then each tick asks again. */
static bool have_trace(struct rpc_call *c, struct rpc_next *out)
{
	struct tracing *t = c->context;
	struct base_error e = {0};
	if (t->trace)
		return true;
	int r = engine_trace_take(t->model->engine, &t->trace, &e);
	if (r == 0) {
		t->writer.trace = t->trace;
		return true;
	}
	if (r == -EAGAIN && atomic_load(&c->queue->server->stopping))
		r = base_error_set(&e, -ECANCELED, "the daemon is stopping");
	if (r != -EAGAIN) {
		fail(c, r, &e, "model");
		out->end = true;
	}
	return false;
}

void rpc_trace_next(struct rpc_call *c, struct rpc_next *out)
{
	struct tracing *t = c->context;
	Thaw__Admin__V1__TraceChunk m = THAW__ADMIN__V1__TRACE_CHUNK__INIT;
	if (!t || !have_trace(c, out))
		return;
	m.data.data = (uint8_t *)t->chunk;
	m.data.len = rpc_trace_write(&t->writer, t->chunk, sizeof(t->chunk));
	out->message = rpc_pack(&m.base);
	out->has_message = true;
	if (t->writer.at == RPC_TRACE_OVER) {
		rpc_call_end(c);
		out->end = true;
	} else {
		out->more = true;
	}
}

void rpc_trace_destroy(struct rpc_call *c)
{
	struct tracing *t = c->context;
	if (!t)
		return;
	engine_trace_destroy(t->trace);
	server_release_model(c->queue->server->daemon, t->model);
	free(t);
}
