/* SPDX-License-Identifier: Apache-2.0
 * What the calls of nodes share (rpc_node.c: Join; rpc_pull.c: Pull). The queue's thread.
 */
#pragma once

#include "daemon/cluster/coordinator.h"
#include "daemon/rpc/rpc_core.h"

#define RPC_MAX_PULLS RPC_WORKER_QUEUE // at once: each has one read under way at most

/* Who calls: false in ret_tls is the unix socket, which knows no names. False: the call is refused, with f. */
bool rpc_node_peer(struct rpc_call *c, bool *ret_tls, struct cluster_identity *ret_peer, struct rpc_fault *f);
/* The coordinator, and who calls it: false in ret_tls is the unix socket, which knows no names. NULL: it is refused,
 * with f. */
struct cluster_coordinator *rpc_node_find(
	struct rpc_call *c, bool *ret_tls, struct cluster_identity *ret_peer, struct rpc_fault *f);
/* A refusal of the coordinator as a status. */
void rpc_node_fault(struct rpc_fault *f, int status, const struct base_error *e);

void rpc_pull_start(struct rpc_call *c, const ProtobufCMessage *request);
void rpc_pull_next(struct rpc_call *c, struct rpc_next *out);
void rpc_pull_destroy(struct rpc_call *c);
