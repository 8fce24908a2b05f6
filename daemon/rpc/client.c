// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/client.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/rpc/grpc_core.h"
#include "proto/check.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"

#define CLIENT_MAX_METADATA 4u

struct metadata {
	const char *key;
	char value[128];
};

struct rpc_client {
	grpc_completion_queue *queue;
	grpc_channel *channel;
	struct metadata metadata[CLIENT_MAX_METADATA];
	uint32_t metadata_count;
};

struct operation { // the tag of a batch
	bool done;
	bool success;
};

struct rpc_client_stream {
	struct rpc_client *client;
	grpc_call *call;
	struct operation open, header, read, end;
	struct operation write, wake; // both ways
	atomic_bool waking, woken;
	grpc_metadata_array initial, trailing;
	grpc_byte_buffer *buffer;
	grpc_slice message; // the one that next() gave out
	grpc_status_code code;
	grpc_slice details;
};

static int read_tls(const struct rpc_client_tls *tls, grpc_channel_credentials **ret_credentials, struct base_error *e)
{
	_cleanup_free_ char *ca = NULL, *cert = NULL, *key = NULL;
	if (!tls->ca)
		return base_error_set(e, -EINVAL, "a client over TLS needs the file of the CA");
	if (!tls->cert != !tls->key)
		return base_error_set(e, -EINVAL, "a certificate and its key come together");
	int r = rpc_read_pem(tls->ca, &ca, e);
	if (r == 0 && tls->cert)
		r = rpc_read_pem(tls->cert, &cert, e);
	if (r == 0 && tls->key)
		r = rpc_read_pem(tls->key, &key, e);
	if (r < 0)
		return r;
	grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
	*ret_credentials = grpc_ssl_credentials_create(ca, cert ? &pair : NULL, NULL, NULL);
	return *ret_credentials ? 0 : base_error_set(e, -EINVAL, "%s: gRPC does not take these certificates", tls->ca);
}

int rpc_client_create(
	const char *address, const struct rpc_client_tls *tls, struct rpc_client **ret_client, struct base_error *e)
{
	bool local = strncmp(address, "unix:", 5) == 0;
	struct base_address parts;
	if (!(local ? address[5] != 0 : base_address_parse(address, &parts, NULL) == 0))
		return base_error_set(e, -EINVAL, "%s: an address is unix:PATH or HOST:PORT", address);
	struct rpc_client *c = calloc(1, sizeof(*c));
	if (!c)
		return base_error_set(e, -ENOMEM, "no memory for a client");
	rpc_grpc_init();
	grpc_channel_credentials *credentials = NULL;
	if (tls && !local) {
		int r = read_tls(tls, &credentials, e);
		if (r < 0) {
			rpc_client_destroy(c);
			return r;
		}
	} else {
		credentials = grpc_insecure_credentials_create();
	}
	/* Several clients of one process share no connection; proxies of the environment are for the web, not for a
	 * control socket. */
	grpc_arg args[] = {
		rpc_arg_int(RPC_ARG_COMPRESSIONS, RPC_COMPRESSIONS_IDENTITY),
		rpc_arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)RPC_MAX_MESSAGE_BYTES),
		rpc_arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1), rpc_arg_int(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
		rpc_arg_int(GRPC_ARG_ENABLE_RETRIES, 0), rpc_arg_int(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
		rpc_arg_int(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000), {0}, // a name
	};
	grpc_channel_args channel_args = {base_array_size(args) - 1, args};
	if (tls && !local && tls->name) {
		args[channel_args.num_args++] = (grpc_arg){.type = GRPC_ARG_STRING,
			.key = (char *)GRPC_SSL_TARGET_NAME_OVERRIDE_ARG,
			.value.string = (char *)tls->name};
	}
	c->queue = grpc_completion_queue_create_for_next(NULL);
	c->channel = grpc_channel_create(address, credentials, &channel_args);
	grpc_channel_credentials_release(credentials);
	*ret_client = c;
	return 0;
}

void rpc_client_destroy(struct rpc_client *c)
{
	if (!c)
		return;
	if (c->channel)
		grpc_channel_destroy(c->channel);
	if (c->queue) {
		grpc_completion_queue_shutdown(c->queue);
		while (rpc_queue_next(c->queue, gpr_inf_future(GPR_CLOCK_REALTIME)).type != GRPC_QUEUE_SHUTDOWN)
			;
		grpc_completion_queue_destroy(c->queue);
	}
	rpc_grpc_finish();
	free(c);
}

int rpc_client_set_metadata(struct rpc_client *c, const char *key, const char *value)
{
	uint32_t i = 0;
	while (i < c->metadata_count && strcmp(c->metadata[i].key, key))
		i++;
	if (!value) {
		if (i < c->metadata_count)
			c->metadata[i] = c->metadata[--c->metadata_count];
		return 0;
	}
	if (i == CLIENT_MAX_METADATA || strlen(value) >= sizeof(c->metadata[0].value))
		return -ENOSPC;
	if (i == c->metadata_count)
		c->metadata_count++;
	c->metadata[i].key = key;
	snprintf(c->metadata[i].value, sizeof(c->metadata[i].value), "%s", value);
	return 0;
}

/* One event, or none before `until`. */
static bool take_event(struct rpc_client *c, gpr_timespec until)
{
	grpc_event event = rpc_queue_next(c->queue, until);
	if (event.type != GRPC_OP_COMPLETE)
		return false;
	struct operation *ended = event.tag;
	ended->success = event.success;
	ended->done = true;
	return true;
}

static void wait_for(struct rpc_client *c, struct operation *o)
{
	while (!o->done && take_event(c, gpr_inf_future(GPR_CLOCK_REALTIME)))
		;
}

static gpr_timespec after(uint64_t ns)
{
	if (ns > INT64_MAX / 2)
		return gpr_inf_future(GPR_CLOCK_MONOTONIC);
	return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos((int64_t)ns, GPR_TIMESPAN));
}

static void start_read(struct rpc_client_stream *s)
{
	grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &s->buffer};
	s->read = (struct operation){0};
	if (grpc_call_start_batch(s->call, &op, 1, rpc_tag_started(&s->read), NULL) != GRPC_CALL_OK)
		s->read = (struct operation){.done = true};
}

static struct rpc_client_stream *stream_create(struct rpc_client *c, const char *method, uint64_t timeout_ns)
{
	struct rpc_client_stream *s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->client = c;
	s->message = grpc_empty_slice();
	s->details = grpc_empty_slice();
	s->open.done = s->write.done = true; // nothing is under way
	grpc_metadata_array_init(&s->initial);
	grpc_metadata_array_init(&s->trailing);
	gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_REALTIME);
	if (timeout_ns && timeout_ns < INT64_MAX)
		deadline = after(timeout_ns);
	// A copy: the header table knows static slices by their address, and the caller's text may be another one
	// tomorrow.
	grpc_slice path = grpc_slice_from_copied_string(method);
	s->call = grpc_channel_create_call(
		c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->queue, path, NULL, deadline, NULL);
	grpc_slice_unref(path);
	return s;
}

/* Header, and the message and the end of what the client says, where `buffer` is all of it. */
static void start_stream(struct rpc_client_stream *s, grpc_byte_buffer *buffer)
{
	struct rpc_client *c = s->client;
	grpc_metadata metadata[CLIENT_MAX_METADATA];
	for (uint32_t i = 0; i < c->metadata_count; i++)
		metadata[i] = (grpc_metadata){.key = grpc_slice_from_static_string(c->metadata[i].key),
			.value = grpc_slice_from_copied_string(c->metadata[i].value)};
	grpc_op open[] = {
		{.op = GRPC_OP_SEND_INITIAL_METADATA,
			.data.send_initial_metadata = {.count = c->metadata_count, .metadata = metadata}},
		{.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer},
		{.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
	};
	grpc_op header = {
		.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &s->initial};
	grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
		.data.recv_status_on_client = {
			.trailing_metadata = &s->trailing, .status = &s->code, .status_details = &s->details}};
	/* The status is asked for on its own: it comes whatever happens to the rest. */
	grpc_call_start_batch(s->call, &end, 1, rpc_tag_started(&s->end), NULL);
	grpc_call_start_batch(s->call, &header, 1, rpc_tag_started(&s->header), NULL);
	s->open = (struct operation){0};
	if (grpc_call_start_batch(s->call, open, buffer ? base_array_size(open) : 1, rpc_tag_started(&s->open), NULL) !=
		GRPC_CALL_OK) {
		s->open.done = true; // metadata that HTTP/2 does not allow
		grpc_call_cancel(s->call, NULL);
	}
	start_read(s);
	for (uint32_t i = 0; i < c->metadata_count; i++)
		grpc_slice_unref(metadata[i].value);
}

int rpc_client_stream_open(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, struct rpc_client_stream **ret_stream)
{
	struct rpc_client_stream *s = stream_create(c, method, timeout_ns);
	if (!s)
		return -ENOMEM;
	grpc_slice bytes = grpc_slice_from_copied_buffer(request, request_bytes);
	grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&bytes, 1);
	start_stream(s, buffer);
	grpc_byte_buffer_destroy(buffer);
	grpc_slice_unref(bytes);
	*ret_stream = s;
	return 0;
}

int rpc_client_stream_open_both(struct rpc_client *c, const char *method, struct rpc_client_stream **ret_stream)
{
	struct rpc_client_stream *s = stream_create(c, method, 0);
	if (!s)
		return -ENOMEM;
	start_stream(s, NULL);
	*ret_stream = s;
	return 0;
}

int rpc_client_stream_send(struct rpc_client_stream *s, const void *message, size_t bytes, uint64_t timeout_ns)
{
	gpr_timespec until = after(timeout_ns);
	while (!s->open.done || !s->write.done) {
		if (!take_event(s->client, until))
			return -ETIMEDOUT;
	}
	if (s->end.done || !s->open.success)
		return -EHOSTUNREACH;
	grpc_slice slice = grpc_slice_from_copied_buffer(message, bytes);
	grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
	grpc_op op = {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer};
	s->write = (struct operation){0};
	bool started = grpc_call_start_batch(s->call, &op, 1, rpc_tag_started(&s->write), NULL) == GRPC_CALL_OK;
	s->write.done = !started;
	grpc_byte_buffer_destroy(buffer);
	grpc_slice_unref(slice);
	return started ? 0 : -EHOSTUNREACH;
}

void rpc_client_stream_wake(struct rpc_client_stream *s)
{
	atomic_store(&s->woken, true);
	if (!atomic_exchange(&s->waking, true))
		grpc_call_start_batch(s->call, NULL, 0, rpc_tag_started(&s->wake), NULL);
}

static void copy_slice(grpc_slice s, char *out, size_t room)
{
	snprintf(out, room, "%.*s", (int)GRPC_SLICE_LENGTH(s), (const char *)GRPC_SLICE_START_PTR(s));
}

static void read_detail(const Google__Protobuf__Any *any, struct rpc_client_status *status)
{
	struct proto_budget budget;
	ProtobufCMessage *m = NULL;
	const char *slash = strrchr(any->type_url, '/');
	const char *type = slash ? slash + 1 : any->type_url;
	const ProtobufCMessageDescriptor *known[] = {&google__rpc__error_info__descriptor,
		&google__rpc__retry_info__descriptor, &google__rpc__bad_request__descriptor};
	for (size_t i = 0; i < base_array_size(known) && !m; i++)
		if (strcmp(type, known[i]->name) == 0 &&
			proto_unpack(known[i], any->value.data, any->value.len, &budget, &m, NULL, NULL) < 0)
			return;
	if (!m)
		return;
	if (m->descriptor == &google__rpc__error_info__descriptor) {
		snprintf(status->reason, sizeof(status->reason), "%s", ((Google__Rpc__ErrorInfo *)m)->reason);
	} else if (m->descriptor == &google__rpc__retry_info__descriptor) {
		const Google__Protobuf__Duration *d = ((Google__Rpc__RetryInfo *)m)->retry_delay;
		if (d && d->seconds >= 0 && d->seconds < INT32_MAX && d->nanos >= 0)
			status->retry_after_ns = (uint64_t)d->seconds * BASE_NS_PER_SECOND + (uint64_t)d->nanos;
	} else {
		const Google__Rpc__BadRequest *b = (const Google__Rpc__BadRequest *)m;
		if (b->n_field_violations)
			snprintf(status->field, sizeof(status->field), "%s", b->field_violations[0]->field);
	}
	protobuf_c_message_free_unpacked(m, &budget.allocator);
}

static const grpc_metadata *find_metadata(const grpc_metadata_array *a, const char *key)
{
	for (size_t i = 0; i < a->count; i++)
		if (grpc_slice_str_cmp(a->metadata[i].key, key) == 0)
			return &a->metadata[i];
	return NULL;
}

/* -EHOSTUNREACH: UNAVAILABLE that gRPC itself made up. Our server's own always says why in its details. */
static int read_status(struct rpc_client_stream *s, struct rpc_client_status *status)
{
	*status = (struct rpc_client_status){.code = (int)s->code};
	copy_slice(s->details, status->message, sizeof(status->message));
	const grpc_metadata *id = find_metadata(&s->initial, "x-request-id");
	if (!id)
		id = find_metadata(&s->trailing, "x-request-id");
	if (id)
		copy_slice(id->value, status->request_id, sizeof(status->request_id));
	const grpc_metadata *bin = find_metadata(&s->trailing, "grpc-status-details-bin");
	if (!bin)
		return s->code == GRPC_STATUS_UNAVAILABLE ? -EHOSTUNREACH : 0;
	struct proto_budget budget;
	ProtobufCMessage *m;
	if (proto_unpack(&google__rpc__status__descriptor, GRPC_SLICE_START_PTR(bin->value),
		    GRPC_SLICE_LENGTH(bin->value), &budget, &m, NULL, NULL) < 0)
		return 0;
	const Google__Rpc__Status *details = (const Google__Rpc__Status *)m;
	for (size_t i = 0; i < details->n_details; i++)
		read_detail(details->details[i], status);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
	return 0;
}

/* When read is done. */
static int take_message(struct rpc_client_stream *s, const uint8_t **ret_message, size_t *ret_bytes)
{
	if (!s->read.success || !s->buffer)
		return 0;
	s->message = rpc_buffer_slice(s->buffer);
	grpc_byte_buffer_destroy(s->buffer);
	s->buffer = NULL;
	start_read(s);
	*ret_message = GRPC_SLICE_START_PTR(s->message);
	*ret_bytes = GRPC_SLICE_LENGTH(s->message);
	return 1;
}

int rpc_client_stream_next(struct rpc_client_stream *s, const uint8_t **ret_message, size_t *ret_bytes,
	struct rpc_client_status *ret_status)
{
	grpc_slice_unref(s->message);
	s->message = grpc_empty_slice();
	wait_for(s->client, &s->read);
	if (take_message(s, ret_message, ret_bytes))
		return 1;
	wait_for(s->client, &s->end);
	wait_for(s->client, &s->header);
	return read_status(s, ret_status);
}

int rpc_client_stream_wait(struct rpc_client_stream *s, uint64_t timeout_ns, const uint8_t **ret_message,
	size_t *ret_bytes, struct rpc_client_status *ret_status)
{
	gpr_timespec until = after(timeout_ns);
	grpc_slice_unref(s->message);
	s->message = grpc_empty_slice();
	while (!s->read.done) {
		if (s->wake.done) { // the next one may be started
			s->wake.done = false;
			atomic_store(&s->waking, false);
		}
		if (atomic_exchange(&s->woken, false))
			return -EAGAIN;
		if (!take_event(s->client, until))
			return -ETIMEDOUT;
	}
	if (take_message(s, ret_message, ret_bytes))
		return 1;
	wait_for(s->client, &s->end);
	wait_for(s->client, &s->header);
	return read_status(s, ret_status);
}

int rpc_client_stream_uri(struct rpc_client_stream *s, uint32_t index, char *out, size_t room)
{
	int status = -ENOENT;
	grpc_auth_context *context = grpc_call_auth_context(s->call);
	if (!context)
		return -ENOENT;
	grpc_auth_property_iterator i = grpc_auth_context_find_properties_by_name(context, GRPC_PEER_URI_PROPERTY_NAME);
	const grpc_auth_property *p;
	while ((p = grpc_auth_property_iterator_next(&i)) && index)
		index--;
	if (p && p->value_length < room) {
		snprintf(out, room, "%.*s", (int)p->value_length, p->value);
		status = 0;
	}
	grpc_auth_context_release(context);
	return status;
}

void rpc_client_stream_cancel(struct rpc_client_stream *s)
{
	grpc_call_cancel(s->call, NULL);
}

void rpc_client_stream_close(struct rpc_client_stream *s)
{
	if (!s)
		return;
	if (!s->end.done)
		grpc_call_cancel(s->call, NULL);
	wait_for(s->client, &s->end);
	wait_for(s->client, &s->header);
	wait_for(s->client, &s->open);
	wait_for(s->client, &s->read);
	wait_for(s->client, &s->write);
	while (atomic_load(&s->waking) && !s->wake.done)
		take_event(s->client, gpr_inf_future(GPR_CLOCK_REALTIME));
	if (s->buffer)
		grpc_byte_buffer_destroy(s->buffer);
	grpc_slice_unref(s->message);
	grpc_slice_unref(s->details);
	grpc_metadata_array_destroy(&s->initial);
	grpc_metadata_array_destroy(&s->trailing);
	grpc_call_unref(s->call);
	free(s);
}

int rpc_client_call(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, uint8_t **ret_reply, size_t *ret_reply_bytes, struct rpc_client_status *ret_status)
{
	struct rpc_client_stream *s;
	int r = rpc_client_stream_open(c, method, request, request_bytes, timeout_ns, &s);
	if (r < 0)
		return r;
	_cleanup_free_ uint8_t *reply = NULL;
	size_t reply_bytes = 0, bytes;
	const uint8_t *message;
	while ((r = rpc_client_stream_next(s, &message, &bytes, ret_status)) == 1) {
		free(reply);
		reply = malloc(bytes + 1);
		if (!reply) {
			r = -ENOMEM;
			break;
		}
		memcpy(reply, message, bytes);
		reply_bytes = bytes;
	}
	rpc_client_stream_close(s);
	if (r < 0)
		return r;
	*ret_reply = ret_status->code == GRPC_STATUS_OK ? base_steal(reply) : NULL;
	*ret_reply_bytes = *ret_reply ? reply_bytes : 0;
	return 0;
}
