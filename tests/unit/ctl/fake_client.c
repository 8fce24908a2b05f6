// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/ctl/fake_client.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc/client.h"

struct fake fake;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; // bench calls from threads

struct rpc_client {
	int unused;
};

struct rpc_client_stream {
	const struct fake_answer *answer;
	size_t next;
	uint8_t *message;
};

int rpc_client_create(
	const char *address, const struct rpc_client_tls *tls, struct rpc_client **ret_client, struct base_error *e)
{
	pthread_mutex_lock(&lock);
	snprintf(fake.address, sizeof fake.address, "%s", address);
	pthread_mutex_unlock(&lock);
	*ret_client = calloc(1, sizeof **ret_client);
	return 0;
}

void rpc_client_destroy(struct rpc_client *c)
{
	free(c);
}

static const struct fake_answer *find(const char *method, const void *request, size_t bytes)
{
	static const struct fake_answer none = {.r = -EHOSTUNREACH};
	const struct fake_answer *found = &none;
	pthread_mutex_lock(&lock);
	if (fake.requests_count < FAKE_MAX_REQUESTS) {
		struct fake_request *q = &fake.requests[fake.requests_count++];
		snprintf(q->method, sizeof q->method, "%s", method);
		q->count = bytes < sizeof q->bytes ? bytes : sizeof q->bytes;
		memcpy(q->bytes, request, q->count);
	}
	for (size_t i = 0; i < fake.answers_count; i++)
		if (strcmp(fake.answers[i].method, method) == 0)
			found = &fake.answers[i];
	pthread_mutex_unlock(&lock);
	return found;
}

static uint8_t *pack(const void *message, size_t *ret_bytes)
{
	uint8_t *bytes = malloc(protobuf_c_message_get_packed_size(message) + 1);
	*ret_bytes = protobuf_c_message_pack(message, bytes);
	return bytes;
}

static int end(const struct fake_answer *a, struct rpc_client_status *status)
{
	*status = (struct rpc_client_status){.code = a->code};
	snprintf(status->message, sizeof status->message, "%s", a->message ? a->message : "");
	snprintf(status->reason, sizeof status->reason, "%s", a->reason ? a->reason : "");
	return a->r;
}

int rpc_client_call(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, uint8_t **ret_reply, size_t *ret_reply_bytes, struct rpc_client_status *ret_status)
{
	const struct fake_answer *a = find(method, request, request_bytes);
	*ret_reply = NULL;
	*ret_reply_bytes = 0;
	if (a->r == 0 && a->code == 0)
		*ret_reply = pack(a->messages[0], ret_reply_bytes);
	return end(a, ret_status);
}

int rpc_client_stream_open(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, struct rpc_client_stream **ret_stream)
{
	*ret_stream = calloc(1, sizeof **ret_stream);
	(*ret_stream)->answer = find(method, request, request_bytes);
	return 0;
}

int rpc_client_stream_next(struct rpc_client_stream *s, const uint8_t **ret_message, size_t *ret_bytes,
	struct rpc_client_status *ret_status)
{
	free(s->message);
	s->message = NULL;
	if (s->next == s->answer->count)
		return end(s->answer, ret_status);
	s->message = pack(s->answer->messages[s->next++], ret_bytes);
	*ret_message = s->message;
	return 1;
}

void rpc_client_stream_cancel(struct rpc_client_stream *s)
{
}

void rpc_client_stream_close(struct rpc_client_stream *s)
{
	if (s)
		free(s->message);
	free(s);
}
