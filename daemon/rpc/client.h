/* SPDX-License-Identifier: Apache-2.0
 * A small blocking gRPC client over gRPC-core, for thawctl, tests and benchmarks. One thread per client object.
 * Messages are packed protobuf bytes; the caller packs and unpacks. Methods are paths: "/thaw.v1.Inference/Generate".
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct rpc_client_tls {
	const char *ca, *cert, *key; // PEM files; cert and key may be NULL where the server does not ask for them
	const char *name; // that the server's certificate has to have; NULL: that of the address
};

struct rpc_client;
/* address: unix:PATH or HOST:PORT; tls NULL: plaintext. Connects lazily. -EINVAL for an address that is neither, -errno
 * of a file. */
int rpc_client_create(
	const char *address, const struct rpc_client_tls *tls, struct rpc_client **ret_client, struct base_error *e);
void rpc_client_destroy(struct rpc_client *c); // after its streams are closed

/* Sent with every later call (x-request-id, x-thaw-priority, traceparent). key is a literal; at most 4: -ENOSPC. value
 * NULL removes it. */
int rpc_client_set_metadata(struct rpc_client *c, const char *key, const char *value);

struct rpc_client_status {
	int code; // gRPC status
	char message[512];
	char reason[64]; // of google.rpc.ErrorInfo, "" if none
	char field[64]; // of google.rpc.BadRequest, "" if none
	uint64_t retry_after_ns; // of RetryInfo, 0 if none
	char request_id[64]; // that the server sent back, "" if none
};

/* Unary: the reply is the caller's to free (NULL unless status is 0). 0 also when the server answered with an error:
 * look at status. -EHOSTUNREACH when there is no server, or it went away; status says more. timeout_ns 0: none. */
int rpc_client_call(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, uint8_t **ret_reply, size_t *ret_reply_bytes, struct rpc_client_status *ret_status);

/* Server streaming. next(): 1 with a message (valid until the next call), 0 at the end with status, -EHOSTUNREACH
 * (status is set then too) when there is no server, or it went away. */
struct rpc_client_stream;
int rpc_client_stream_open(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, struct rpc_client_stream **ret_stream);
int rpc_client_stream_next(struct rpc_client_stream *s, const uint8_t **ret_message, size_t *ret_bytes,
	struct rpc_client_status *ret_status);
void rpc_client_stream_cancel(struct rpc_client_stream *s); // any thread
void rpc_client_stream_close(struct rpc_client_stream *s); // cancels what is left

/* Both ways: messages go out with send() and come in with wait(), until close(). send() waits for the last message to
 * be taken by the connection, at most until timeout_ns: -ETIMEDOUT. -EHOSTUNREACH when the stream is over: wait() says
 * why. */
int rpc_client_stream_open_both(struct rpc_client *c, const char *method, struct rpc_client_stream **ret_stream);
int rpc_client_stream_send(struct rpc_client_stream *s, const void *message, size_t bytes, uint64_t timeout_ns);
/* As next(), but -ETIMEDOUT after timeout_ns, and -EAGAIN when rpc_client_stream_wake() was called. */
int rpc_client_stream_wait(struct rpc_client_stream *s, uint64_t timeout_ns, const uint8_t **ret_message,
	size_t *ret_bytes, struct rpc_client_status *ret_status);
/* Any thread, while the stream is open: wait() returns soon. */
void rpc_client_stream_wake(struct rpc_client_stream *s);
/* What the server's certificate has as URIs, by index; -ENOENT when there are no more. After the first message has
 * come. */
int rpc_client_stream_uri(struct rpc_client_stream *s, uint32_t index, char *out, size_t room);
