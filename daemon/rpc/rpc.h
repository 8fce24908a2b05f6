/* SPDX-License-Identifier: Apache-2.0
 * The gRPC server: everything of gRPC-core behind a few calls. See rpc_core.h for threads and bounds.
 *
 * Where: listen.grpc is a unix socket (mode 0660, PATH.lock beside it holds the pid). listen.tcp is plaintext on the
 * loopback; elsewhere it needs tls_cert, tls_key and tls_ca (mutual TLS), or insecure_tcp. Admin is not served over
 * plaintext TCP.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/server.h"

struct rpc_server;
/* Binds and listens at once (before any model is loaded). -EADDRINUSE names the socket and the pid that holds it.
 * server and log outlive it, and so do server's engines. */
int rpc_server_start(struct server *server, struct base_log *log, struct rpc_server **ret_rpc, struct base_error *e);
/* NOT_SERVING, stop accepting, wait up to grace_ns for calls to end, cancel the rest, join. The engines must still run:
 * each hands back the calls that it holds. False: some call was not handed back in time; then threads of the server
 * still run and use `server`, which must not be destroyed before the process ends. */
bool rpc_server_stop(struct rpc_server *r, uint64_t grace_ns);
/* Any thread: health changed; watchers are told. */
void rpc_server_update_health(struct rpc_server *r);
/* The TCP port that is listened on (for port 0 the one that the system chose), 0 for none. */
uint16_t rpc_server_tcp_port(const struct rpc_server *r);
uint16_t rpc_server_cluster_port(const struct rpc_server *r); // the same for cluster.listen
