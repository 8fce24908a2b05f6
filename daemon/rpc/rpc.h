/* SPDX-License-Identifier: Apache-2.0
 * The gRPC server: everything of gRPC-core behind four calls. See docs/ARCHITECTURE.md for threads and bounds.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/server.h"

struct rpc_server;
/* Binds and listens at once (before any model is loaded). -EADDRINUSE names the socket and the pid that holds it. */
int rpc_server_start(struct server *server, struct base_log *log, struct rpc_server **ret_rpc, struct base_error *e);
/* NOT_SERVING, stop accepting, wait up to grace_ns for calls to end, cancel the rest, join. */
void rpc_server_stop(struct rpc_server *r, uint64_t grace_ns);
/* Any thread: health changed; watchers are told. */
void rpc_server_update_health(struct rpc_server *r);
