/* SPDX-License-Identifier: Apache-2.0
 * A small blocking gRPC client over gRPC-core, for thawctl, tests and benchmarks. One thread per client object.
 * Messages are packed protobuf bytes; the caller packs and unpacks.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct rpc_client_tls {
	const char *ca, *cert, *key; // PEM files
};

struct rpc_client;
/* address: unix:PATH or HOST:PORT. Connects lazily. */
int rpc_client_create(const char *address, const struct rpc_client_tls *tls, struct rpc_client **ret_client, struct base_error *e);
void rpc_client_destroy(struct rpc_client *c);

struct rpc_client_status {
	int code; // gRPC status
	char message[512];
	char reason[64]; // of google.rpc.ErrorInfo, "" if none
	uint64_t retry_after_ns; // of RetryInfo, 0 if none
};

/* Unary: the reply is the caller's to free. 0 also when the server answered with an error: look at status. -EHOSTUNREACH when there is no server. */
int rpc_client_call(struct rpc_client *c, const char *method, const void *request, size_t request_bytes, uint64_t timeout_ns,
	uint8_t **ret_reply, size_t *ret_reply_bytes, struct rpc_client_status *ret_status);

/* Server streaming. next(): 1 with a message (valid until the next call), 0 at the end with status. */
struct rpc_client_stream;
int rpc_client_stream_open(struct rpc_client *c, const char *method, const void *request, size_t request_bytes,
	uint64_t timeout_ns, struct rpc_client_stream **ret_stream);
int rpc_client_stream_next(struct rpc_client_stream *s, const uint8_t **ret_message, size_t *ret_bytes,
	struct rpc_client_status *ret_status);
void rpc_client_stream_cancel(struct rpc_client_stream *s); // any thread
void rpc_client_stream_close(struct rpc_client_stream *s);
