// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_core.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/check.h"

#define CORE_IDLE_NS BASE_NS_PER_SECOND // between ticks of a queue without calls

static void call_arm(struct rpc_listener *l, struct rpc_queue *q, const struct rpc_method *m, void *registered);

/* References. The last one always goes on the queue's thread: see hand_back. */

void rpc_call_ref(struct rpc_call *c)
{
	atomic_fetch_add_explicit(&c->references, 1, memory_order_relaxed);
}

void rpc_call_drop(struct rpc_call *c)
{
	int before = atomic_fetch_sub_explicit(&c->references, 1, memory_order_acq_rel);
	assert(before > 1);
}

static void call_unref(struct rpc_call *c)
{
	if (atomic_fetch_sub_explicit(&c->references, 1, memory_order_acq_rel) != 1)
		return;
	if (c->method && c->method->destroy)
		c->method->destroy(c);
	if (c->call)
		grpc_call_unref(c->call);
	for (; c->outbox_count; c->outbox_count--, c->outbox_first = (c->outbox_first + 1) % RPC_OUTBOX)
		grpc_slice_unref(c->outbox[c->outbox_first]);
	if (c->payload)
		grpc_byte_buffer_destroy(c->payload);
	grpc_metadata_array_destroy(&c->metadata);
	grpc_call_details_destroy(&c->details);
	atomic_fetch_sub(&c->queue->server->calls_all, 1);
	free(c);
}

void rpc_queue_wake(struct rpc_queue *q)
{
	/* One event however often it is asked for: the queue's thread clears the flag before it looks at its lists. */
	if (!atomic_exchange(&q->waking, true))
		grpc_call_start_batch(q->wake_call, NULL, 0, rpc_tag_started(&q->tag_wake), NULL);
}

void rpc_call_wake(struct rpc_call *c)
{
	struct rpc_queue *q = c->queue;
	if (atomic_exchange(&c->ready, true))
		return;
	atomic_fetch_add(&q->wakers, 1);
	rpc_call_ref(c);
	c->ready_next = atomic_load(&q->ready);
	while (!atomic_compare_exchange_weak(&q->ready, &c->ready_next, c))
		;
	rpc_queue_wake(q);
	atomic_fetch_sub(&q->wakers, 1);
}

void rpc_call_hand_back(struct rpc_call *c, struct rpc_back *b)
{
	struct rpc_queue *q = c->queue;
	atomic_fetch_add(&q->wakers, 1);
	b->call = c;
	b->next = atomic_load(&q->back);
	while (!atomic_compare_exchange_weak(&q->back, &b->next, b))
		;
	/* From here on c may be gone. */
	rpc_queue_wake(q);
	atomic_fetch_sub(&q->wakers, 1);
}

/* What is to be said. */

grpc_slice rpc_pack(const ProtobufCMessage *m)
{
	grpc_slice out = grpc_slice_malloc(protobuf_c_message_get_packed_size(m));
	protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(out));
	return out;
}

int rpc_call_send(struct rpc_call *c, const ProtobufCMessage *m)
{
	if (!rpc_call_room(c))
		return -ENOBUFS;
	c->outbox[(c->outbox_first + c->outbox_count++) % RPC_OUTBOX] = rpc_pack(m);
	return 0;
}

void rpc_call_end(struct rpc_call *c)
{
	c->ended = true;
}

void rpc_call_fail(struct rpc_call *c, const struct rpc_fault *f)
{
	if (c->ended)
		return;
	c->fault = *f;
	c->ended = true;
}

void rpc_call_reply(struct rpc_call *c, const ProtobufCMessage *m)
{
	size_t bytes = protobuf_c_message_get_packed_size(m);
	struct rpc_fault f;
	if (bytes > RPC_MAX_MESSAGE_BYTES) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE", NULL,
			"the reply has %zu bytes, the limit is %u: ask for less", bytes, RPC_MAX_MESSAGE_BYTES);
		rpc_call_fail(c, &f);
		return;
	}
	rpc_call_send(c, m);
	rpc_call_end(c);
}

static void outbox_next(struct rpc_call *c, struct rpc_next *out)
{
	if (c->outbox_count) {
		out->has_message = true;
		out->message = c->outbox[c->outbox_first];
		c->outbox_first = (c->outbox_first + 1) % RPC_OUTBOX;
		c->outbox_count--;
	}
	out->more = c->outbox_count > 0;
	out->end = c->ended && !out->more;
}

static size_t header_ops(struct rpc_call *c, grpc_metadata metadata[2], grpc_op *op)
{
	size_t n = 0;
	if (c->request_id[0])
		metadata[n++] = (grpc_metadata){.key = grpc_slice_from_static_string("x-request-id"),
			.value = grpc_slice_from_copied_string(c->request_id)};
	if (c->traceparent[0])
		metadata[n++] = (grpc_metadata){.key = grpc_slice_from_static_string("traceparent"),
			.value = grpc_slice_from_copied_string(c->traceparent)};
	*op = (grpc_op){
		.op = GRPC_OP_SEND_INITIAL_METADATA, .data.send_initial_metadata = {.count = n, .metadata = metadata}};
	return n;
}

static void call_start_send(struct rpc_call *c, const struct rpc_next *n)
{
	grpc_op ops[3] = {0};
	size_t count = 0, headers = 0;
	grpc_metadata metadata[2], details = {0};
	grpc_byte_buffer *buffer = NULL;
	grpc_slice text = grpc_empty_slice();

	bool first = !c->header_sent;
	if (first)
		headers = header_ops(c, metadata, &ops[count++]);
	if (n->has_message) {
		buffer = grpc_raw_byte_buffer_create((grpc_slice *)&n->message, 1);
		ops[count++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE,
			.data.send_message.send_message = buffer,
			.flags = n->more && !first && !n->end ? GRPC_WRITE_BUFFER_HINT : 0};
	}
	if (n->end) {
		bool bad = c->fault.status != GRPC_STATUS_OK;
		if (bad) {
			details.key = grpc_slice_from_static_string("grpc-status-details-bin");
			details.value = rpc_fault_pack(&c->fault);
			text = grpc_slice_from_copied_string(c->fault.message);
		}
		ops[count++] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
			.data.send_status_from_server = {.trailing_metadata_count = bad,
				.trailing_metadata = &details,
				.status = c->fault.status,
				.status_details = bad ? &text : NULL}};
	}
	c->header_sent = true;
	c->status_sent = n->end;
	c->sending = true;
	c->send_started_ns = base_clock_now_ns();
	rpc_call_ref(c);
	if (grpc_call_start_batch(c->call, ops, count, rpc_tag_started(&c->tag_send), NULL) != GRPC_CALL_OK) {
		c->sending = false;
		c->status_sent = true;
		grpc_call_cancel(c->call, NULL);
		rpc_call_drop(c);
	}
	for (size_t i = 0; i < headers; i++)
		grpc_slice_unref(metadata[i].value);
	if (buffer) {
		grpc_byte_buffer_destroy(buffer);
		grpc_slice_unref(n->message);
	}
	if (n->end && c->fault.status != GRPC_STATUS_OK) {
		grpc_slice_unref(details.value);
		grpc_slice_unref(text);
	}
}

static void call_pump(struct rpc_call *c)
{
	while (!c->sending && !c->status_sent && !atomic_load(&c->closed)) {
		struct rpc_next n = {.message = grpc_empty_slice()};
		if (c->method && c->method->next && !c->ended)
			c->method->next(c, &n);
		else
			outbox_next(c, &n);
		if (!n.has_message && !n.end)
			break;
		call_start_send(c, &n);
	}
}

static void on_read(struct rpc_tag *tag, bool ok);

/* BIDI: the next message, when there is room for what it will be answered with. */
static void call_read(struct rpc_call *c)
{
	if (c->reading || c->ended || c->status_sent || atomic_load(&c->closed) || !rpc_call_room(c))
		return;
	grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->payload};
	c->reading = true;
	rpc_call_ref(c);
	if (grpc_call_start_batch(c->call, &op, 1, rpc_tag_started(&c->tag_read), NULL) != GRPC_CALL_OK) {
		c->reading = false;
		rpc_call_drop(c);
	}
}

/* When nothing of gRPC's is under way any more. The caller holds a reference. */
static void call_retire(struct rpc_call *c)
{
	if (!c->open || !atomic_load(&c->closed) || c->sending || c->reading || c->busy)
		return;
	struct rpc_queue *q = c->queue;
	c->open = false;
	if (c->previous)
		c->previous->next = c->next;
	else
		q->calls = c->next;
	if (c->next)
		c->next->previous = c->previous;
	grpc_call_unref(c->call);
	c->call = NULL;
	atomic_fetch_sub(&q->server->calls_open, 1);
	call_unref(c);
}

/* The one place that moves a call on. The caller holds a reference. */
static void call_progress(struct rpc_call *c)
{
	if (!c->open || c->busy)
		return;
	if (atomic_load(&c->closed) && !c->told_closed) {
		c->told_closed = true;
		if (c->method && c->method->closed && c->context)
			c->method->closed(c);
	}
	call_pump(c);
	if (c->method && (c->method->flags & RPC_BIDI))
		call_read(c);
	call_retire(c);
}

static void on_send(struct rpc_tag *tag, bool ok)
{
	struct rpc_call *c = tag->call;
	c->sending = false;
	call_progress(c);
	call_unref(c);
}

static void on_close(struct rpc_tag *tag, bool ok)
{
	struct rpc_call *c = tag->call;
	atomic_store(&c->closed, true);
	call_progress(c);
	call_unref(c);
}

/* Requests. */

static void fail_unpack(struct rpc_call *c, int r, const char *field, const struct base_error *e)
{
	struct rpc_fault f;
	if (r == -EILSEQ)
		rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "NOT_UTF8", field, "%s", base_error_text(e));
	else if (r == -E2BIG)
		rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "TOO_LONG", NULL, "%s", base_error_text(e));
	else
		rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "MALFORMED", NULL, "%s", base_error_text(e));
	rpc_call_fail(c, &f);
}

/* Takes the payload: the queue's thread, or the worker's. */
static void call_deliver(struct rpc_call *c, void (*deliver)(struct rpc_call *c, const ProtobufCMessage *m))
{
	grpc_byte_buffer *payload = base_steal(c->payload);
	if (!payload) {
		struct rpc_fault f;
		rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "MALFORMED", NULL, "the request has no message");
		rpc_call_fail(c, &f);
		return;
	}
	struct proto_budget budget;
	struct base_error e = {0};
	char field[PROTO_FIELD_BYTES];
	ProtobufCMessage *m;
	grpc_slice s = rpc_buffer_slice(payload);
	int r = proto_unpack(c->method->request, GRPC_SLICE_START_PTR(s), GRPC_SLICE_LENGTH(s), &budget, &m, field, &e);
	grpc_slice_unref(s);
	grpc_byte_buffer_destroy(payload);
	if (r < 0) {
		fail_unpack(c, r, field, &e);
		return;
	}
	deliver(c, m);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
}

static void call_work(struct rpc_call *c)
{
	call_deliver(c, c->method->start);
}

int rpc_call_work(struct rpc_call *c, struct rpc_worker *w, void (*work)(struct rpc_call *c))
{
	c->busy = true;
	rpc_call_ref(c);
	int r = rpc_worker_submit(w, c, work);
	if (r < 0) {
		c->busy = false;
		rpc_call_drop(c);
	}
	return r;
}

static void call_start(struct rpc_call *c)
{
	size_t bytes = c->payload ? grpc_byte_buffer_length(c->payload) : 0;
	if (!(c->method->flags & RPC_WORKER) && bytes < RPC_WORKER_BYTES) {
		call_work(c);
		return;
	}
	if (rpc_call_work(c, c->queue->server->worker, call_work) < 0) {
		struct rpc_fault f;
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "QUEUE_FULL", NULL,
			"%u calls wait for the thread that reads files and long texts", RPC_WORKER_QUEUE);
		f.retry_after_ns = BASE_NS_PER_SECOND;
		rpc_call_fail(c, &f);
	}
}

static void on_read(struct rpc_tag *tag, bool ok)
{
	struct rpc_call *c = tag->call;
	c->reading = false;
	if (!ok || !c->payload)
		c->method->message(c, NULL);
	else
		call_deliver(c, c->method->message);
	call_progress(c);
	call_unref(c);
}

static bool metadata_text(grpc_slice s, char *out, size_t room)
{
	size_t n = GRPC_SLICE_LENGTH(s);
	const uint8_t *p = GRPC_SLICE_START_PTR(s);
	if (n == 0 || n >= room)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isgraph(p[i]))
			return false;
	memcpy(out, p, n);
	out[n] = 0;
	return true;
}

static void read_metadata(struct rpc_call *c)
{
	static const char *const words[] = {"high", "normal", "low"};
	c->priority = REQUEST_PRIORITY_NORMAL;
	for (size_t i = 0; i < c->metadata.count; i++) {
		const grpc_metadata *m = &c->metadata.metadata[i];
		if (grpc_slice_str_cmp(m->key, "x-request-id") == 0)
			metadata_text(m->value, c->request_id, sizeof(c->request_id));
		else if (grpc_slice_str_cmp(m->key, "traceparent") == 0)
			metadata_text(m->value, c->traceparent, sizeof(c->traceparent));
		else if (grpc_slice_str_cmp(m->key, "x-thaw-priority") == 0)
			for (size_t w = 0; w < base_array_size(words); w++)
				if (grpc_slice_str_cmp(m->value, words[w]) == 0)
					c->priority = (enum request_priority)w;
	}
}

/* Calls that are refused without a look at their message. */
static bool call_refuse(struct rpc_call *c)
{
	struct rpc_server *r = c->queue->server;
	struct rpc_fault f;
	if (!c->method) {
		char path[128];
		snprintf(path, sizeof(path), "%.*s", (int)GRPC_SLICE_LENGTH(c->details.method),
			(const char *)GRPC_SLICE_START_PTR(c->details.method));
		rpc_fault_set(&f, GRPC_STATUS_UNIMPLEMENTED, "UNKNOWN_METHOD", NULL, "there is no method %s", path);
	} else if (c->listener->node && !(c->method->flags & (RPC_NODE | RPC_ANYWHERE))) {
		rpc_fault_set(&f, GRPC_STATUS_PERMISSION_DENIED, "NODES_ONLY", NULL,
			"%s is not served where nodes join (cluster.listen)", c->method->path);
	} else if ((c->method->flags & RPC_ADMIN) && !c->listener->admin) {
		rpc_fault_set(&f, GRPC_STATUS_PERMISSION_DENIED, "ADMIN_NOT_HERE", NULL,
			"thaw.admin.v1.Admin is served on the unix socket and over TLS with a client certificate, not "
			"over "
			"plaintext TCP");
	} else if ((c->method->flags & RPC_NODE) && !c->listener->node && !c->listener->admin) {
		rpc_fault_set(&f, GRPC_STATUS_PERMISSION_DENIED, "NODES_NOT_HERE", NULL,
			"nodes join at cluster.listen, over TLS");
	} else if (atomic_load(&r->stopping)) {
		rpc_fault_set(&f, GRPC_STATUS_UNAVAILABLE, "STOPPING", NULL, "the daemon is stopping");
		f.retry_after_ns = BASE_NS_PER_SECOND;
	} else if (atomic_load(&r->calls_open) > RPC_MAX_CALLS) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "TOO_MANY_CALLS", NULL,
			"%u calls are open, which is the limit", RPC_MAX_CALLS);
		f.retry_after_ns = BASE_NS_PER_SECOND;
	} else {
		return false;
	}
	rpc_call_fail(c, &f);
	return true;
}

static void on_new(struct rpc_tag *tag, bool ok)
{
	struct rpc_call *c = tag->call;
	struct rpc_queue *q = c->queue;
	if (!ok) { // the server is going down
		call_unref(c);
		return;
	}
	call_arm(c->listener, q, c->method, c->registered);
	c->open = true; // the reference of the armed batch becomes that of being open
	c->next = q->calls;
	if (c->next)
		c->next->previous = c;
	q->calls = c;
	atomic_fetch_add(&q->server->calls_open, 1);

	grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &c->cancelled};
	rpc_call_ref(c);
	rpc_call_ref(c); // this function's
	grpc_call_error started = grpc_call_start_batch(c->call, &close, 1, rpc_tag_started(&c->tag_close), NULL);
	assert(started == GRPC_CALL_OK);
	read_metadata(c);
	if (!call_refuse(c) && !(c->method->flags & RPC_BIDI))
		call_start(c);
	call_progress(c);
	call_unref(c);
}

static void call_arm(struct rpc_listener *l, struct rpc_queue *q, const struct rpc_method *m, void *registered)
{
	struct rpc_call *c = calloc(1, sizeof(*c));
	if (!c) {
		base_log_error(
			l->server->log, "rpc: no memory to take more calls of %s", m ? m->path : "unknown methods");
		return;
	}
	c->method = m;
	c->registered = registered;
	c->listener = l;
	c->queue = q;
	atomic_init(&c->references, 1);
	c->tag_new = (struct rpc_tag){on_new, c};
	c->tag_close = (struct rpc_tag){on_close, c};
	c->tag_send = (struct rpc_tag){on_send, c};
	c->tag_read = (struct rpc_tag){on_read, c};
	grpc_metadata_array_init(&c->metadata);
	grpc_call_details_init(&c->details);
	atomic_fetch_add(&l->server->calls_all, 1);
	grpc_call_error e =
		m ? grpc_server_request_registered_call(l->grpc, registered, &c->call, &c->deadline, &c->metadata,
			    m->flags & RPC_BIDI ? NULL : &c->payload, q->grpc, q->grpc, rpc_tag_started(&c->tag_new))
		  : grpc_server_request_call(l->grpc, &c->call, &c->details, &c->metadata, q->grpc, q->grpc,
			    rpc_tag_started(&c->tag_new));
	if (e != GRPC_CALL_OK)
		call_unref(c);
}

void rpc_listener_arm(struct rpc_listener *l)
{
	struct rpc_server *r = l->server;
	for (uint32_t i = 0; i < RPC_QUEUES; i++) {
		for (uint32_t m = 0; m < r->methods_count; m++)
			call_arm(l, &r->queues[i], r->methods[m], l->registered[m]);
		call_arm(l, &r->queues[i], NULL, NULL);
	}
}

/* The queue's thread. */

static void queue_lists(struct rpc_queue *q)
{
	struct rpc_back *b = atomic_exchange(&q->back, NULL);
	while (b) {
		struct rpc_call *c = b->call;
		if (b == &c->worker_back)
			c->busy = false; // not before it is off this list: the next work puts it there again
		b = b->next; // before the call, and b with it, may go
		call_progress(c);
		call_unref(c);
	}
	struct rpc_call *c = atomic_exchange(&q->ready, NULL);
	while (c) {
		struct rpc_call *next = c->ready_next;
		atomic_store(&c->ready, false); // what is written from now on wakes again
		call_progress(c);
		call_unref(c);
		c = next;
	}
}

static void on_wake(struct rpc_tag *tag, bool ok)
{
	struct rpc_queue *q = base_container_of(tag, struct rpc_queue, tag_wake);
	atomic_store(&q->waking, false);
	queue_lists(q);
}

static void queue_tick(struct rpc_queue *q, uint64_t now)
{
	for (struct rpc_call *c = q->calls, *next; c; c = next) {
		next = c->next;
		rpc_call_ref(c);
		if (c->sending && now - c->send_started_ns > q->server->stall_ns && !atomic_load(&c->closed)) {
			c->send_started_ns = now;
			grpc_call_cancel_with_status(c->call, GRPC_STATUS_RESOURCE_EXHAUSTED,
				"the reader has taken nothing for too long", NULL);
		}
		if (!c->busy && !c->ended && c->method && c->method->tick && !atomic_load(&c->closed))
			c->method->tick(c);
		call_progress(c);
		call_unref(c);
	}
}

static void *queue_run(void *context)
{
	struct rpc_queue *q = context;
	uint64_t tick_at = 0;
	gpr_timespec until = gpr_now(GPR_CLOCK_MONOTONIC);
	pthread_setname_np(pthread_self(), "rpc");
	for (;;) {
		grpc_event event = rpc_queue_next(q->grpc, until);
		if (event.type == GRPC_QUEUE_SHUTDOWN)
			return NULL;
		if (event.type == GRPC_OP_COMPLETE) {
			struct rpc_tag *tag = event.tag;
			tag->done(tag, event.success);
		}
		uint64_t now = base_clock_now_ns();
		if (now < tick_at && !atomic_load(&q->tick_now))
			continue;
		atomic_store(&q->tick_now, false);
		queue_tick(q, now);
		uint64_t period = q->calls ? RPC_TICK_NS : CORE_IDLE_NS;
		tick_at = now + period;
		until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos((int64_t)period, GPR_TIMESPAN));
	}
}

int rpc_queue_create(struct rpc_server *r, struct rpc_queue *q)
{
	q->server = r;
	q->tag_wake = (struct rpc_tag){on_wake, NULL};
	q->grpc = grpc_completion_queue_create_for_next(NULL);
	q->wake_call = grpc_channel_create_call(r->lame, NULL, GRPC_PROPAGATE_DEFAULTS, q->grpc,
		grpc_slice_from_static_string("/wake"), NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
	return q->wake_call ? 0 : -ENOMEM;
}

int rpc_queue_run(struct rpc_queue *q, struct base_error *e)
{
	int r = pthread_create(&q->thread, NULL, queue_run, q);
	if (r)
		return base_error_set(e, -r, "a thread for gRPC: %s", strerrordesc_np(r));
	q->thread_runs = true;
	return 0;
}

void rpc_queue_stop(struct rpc_queue *q)
{
	if (!q->grpc)
		return;
	while (atomic_load(&q->wakers)) // a thread that has just given a call back is on its way out
		sched_yield();
	grpc_call_unref(q->wake_call);
	grpc_completion_queue_shutdown(q->grpc);
	if (q->thread_runs)
		pthread_join(q->thread, NULL);
	else
		while (rpc_queue_next(q->grpc, gpr_inf_future(GPR_CLOCK_REALTIME)).type != GRPC_QUEUE_SHUTDOWN)
			;
	grpc_completion_queue_destroy(q->grpc);
	q->grpc = NULL;
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *c)
{
	gpr_timespec never = gpr_inf_future(c->deadline.clock_type);
	if (gpr_time_cmp(c->deadline, never) == 0)
		return 0;
	gpr_timespec left = gpr_time_sub(c->deadline, gpr_now(c->deadline.clock_type));
	if (left.tv_sec < 0)
		return base_clock_now_ns();
	if (left.tv_sec > 100ll * 365 * 86400)
		return 0;
	return base_clock_now_ns() + (uint64_t)left.tv_sec * BASE_NS_PER_SECOND + (uint64_t)left.tv_nsec;
}

void rpc_call_identity(const struct rpc_call *c, char *out, size_t room)
{
	*out = 0;
	grpc_auth_context *context = grpc_call_auth_context(c->call);
	if (!context)
		return;
	grpc_auth_property_iterator i =
		grpc_auth_context_find_properties_by_name(context, GRPC_X509_SUBJECT_PROPERTY_NAME);
	const grpc_auth_property *p = grpc_auth_property_iterator_next(&i);
	if (p)
		snprintf(out, room, "%.*s", (int)p->value_length, p->value);
	grpc_auth_context_release(context);
}
