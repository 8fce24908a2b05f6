/* SPDX-License-Identifier: Apache-2.0
 * A trace as a file in the JSON trace event format, which ui.perfetto.dev and chrome://tracing load: the engine and
 * each rank are a process, each of their tracks a thread, spans that overlap on a track go to further threads ("drive
 * 2"), so that no two spans of one thread overlap. Times are microseconds since the start of the trace, of the engine's
 * clock. One thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "daemon/engine.h"
#include "daemon/rpc/rpc_core.h"

#define RPC_TRACE_RECORD_BYTES 1024u // most of one record: room that write() needs
#define RPC_TRACE_LANES 256u // of a track; spans that overlap with as many others are left out, and counted

struct rpc_trace_writer {
	struct engine_trace *trace; // not its own; the spans are sorted in place
	enum { RPC_TRACE_HEAD, RPC_TRACE_PROCESS, RPC_TRACE_SPANS, RPC_TRACE_TAIL, RPC_TRACE_OVER } at;
	uint32_t process, span;
	bool any; // record: a comma is due
	uint32_t lanes[BASE_TRACE_TRACKS];
	uint64_t ends_ns[BASE_TRACE_TRACKS][RPC_TRACE_LANES];
	uint64_t left_out;
};

/* As many whole records as fit; 0 when all is written. room: at least RPC_TRACE_RECORD_BYTES. */
size_t rpc_trace_write(struct rpc_trace_writer *w, char *out, size_t room);

/* StartTrace and StopTrace of thaw.admin.v1.Admin. */
void rpc_trace_start(struct rpc_call *c, const ProtobufCMessage *request);
void rpc_trace_stop(struct rpc_call *c, const ProtobufCMessage *request);
void rpc_trace_next(struct rpc_call *c, struct rpc_next *out);
void rpc_trace_destroy(struct rpc_call *c);
