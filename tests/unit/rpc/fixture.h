/* SPDX-License-Identifier: Apache-2.0
 * What the rpc tests share: a server over the fake daemon on a socket of its own, and a client.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "daemon/rpc/client.h"
#include "daemon/rpc/rpc.h"
#include "tests/unit/rpc/fake_server.h"

#define FIXTURE_TIMEOUT_NS (60 * 1000000000ull)

struct fixture {
	char directory[64], socket[96], address[112];
	struct base_log log;
	struct server *daemon;
	struct fake *fake;
	struct rpc_server *rpc;
	struct rpc_client *client;
};

/* options NULL: the unix socket alone. */
int fixture_open(struct fixture *f, const struct fake_options *options);
void fixture_close(struct fixture *f);
/* cmocka's setup and teardown of one test: *state is the fixture. */
int fixture_setup(void **state);
int fixture_teardown(void **state);

/* Packs, calls, unpacks. NULL unless the status is OK; the caller frees with protobuf_c_message_free_unpacked. */
ProtobufCMessage *fixture_call(struct rpc_client *c, const char *method, const ProtobufCMessage *request,
	const ProtobufCMessageDescriptor *reply, struct rpc_client_status *ret_status);
struct rpc_client_stream *fixture_stream(
	struct rpc_client *c, const char *method, const ProtobufCMessage *request, uint64_t timeout_ns);
/* The next message of a stream, or NULL at its end with the status. */
ProtobufCMessage *fixture_next(
	struct rpc_client_stream *s, const ProtobufCMessageDescriptor *d, struct rpc_client_status *ret_status);
/* Waits up to 60 s for a count to become `want`. */
bool fixture_wait(atomic_uint *count, unsigned want);
