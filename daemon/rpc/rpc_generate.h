/* SPDX-License-Identifier: Apache-2.0
 * Generate, GenerateStream and Score: from a request to the engine, and from its events to messages.
 *
 * The engine's thread writes each event into the call's ring as a record and wakes the queue; the queue's thread makes
 * messages of them. A ring that is full means a reader that is far behind: the engine is told to end the request.
 */
#pragma once

#include "daemon/rpc/rpc_core.h"

void rpc_generate_start(struct rpc_call *c, const ProtobufCMessage *request); // of Generate and GenerateStream
void rpc_generate_stream_next(struct rpc_call *c, struct rpc_next *out);
void rpc_generate_unary_next(struct rpc_call *c, struct rpc_next *out);
void rpc_generate_score_start(struct rpc_call *c, const ProtobufCMessage *request);
void rpc_generate_score_next(struct rpc_call *c, struct rpc_next *out);
void rpc_generate_closed(struct rpc_call *c);
void rpc_generate_destroy(struct rpc_call *c);

/* The model that a request names, or the call has failed and NULL comes back. */
const struct server_model *rpc_generate_acquire(struct rpc_call *c, const char *name);
