// SPDX-License-Identifier: Apache-2.0
// thaw.node.v1.Coordinator: brings the messages of nodes to the coordinator, and its messages to them. Pull:
// rpc_pull.c.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/rpc/rpc_core.h"
#include "daemon/rpc/rpc_node.h"

struct node_call {
	struct cluster_session *session; // NULL: closed
};

static const struct {
	int error;
	grpc_status_code status;
	const char *reason;
	bool retry; // the same node may be welcome later
} refusals[] = {
	{-EPERM, GRPC_STATUS_PERMISSION_DENIED, "WRONG_IDENTITY", false},
	{-EEXIST, GRPC_STATUS_ALREADY_EXISTS, "SAME_NAME", true},
	{-EINVAL, GRPC_STATUS_FAILED_PRECONDITION, "DOES_NOT_MATCH", false},
	{-EBADMSG, GRPC_STATUS_INVALID_ARGUMENT, "MALFORMED", false},
	{-EPROTO, GRPC_STATUS_INVALID_ARGUMENT, "OUT_OF_TURN", false},
	{-ENOSPC, GRPC_STATUS_RESOURCE_EXHAUSTED, "TOO_MANY_NODES", true},
	{-ETIMEDOUT, GRPC_STATUS_UNAVAILABLE, "SILENT", true},
	{-ENOBUFS, GRPC_STATUS_UNAVAILABLE, "SLOW", true},
	{-ESTALE, GRPC_STATUS_FAILED_PRECONDITION, "FILE_CHANGED", false},
};

void rpc_node_fault(struct rpc_fault *f, int status, const struct base_error *e)
{
	for (size_t i = 0; i < base_array_size(refusals); i++) {
		if (refusals[i].error != status)
			continue;
		rpc_fault_set(f, refusals[i].status, refusals[i].reason, NULL, "%s", base_error_text(e));
		f->retry_after_ns = refusals[i].retry ? BASE_NS_PER_SECOND : 0;
		return;
	}
	rpc_fault_from(f, status, e, 0, NULL);
}

static void wake(void *context)
{
	rpc_call_wake(context);
}

/* Who the certificate says it is. False over the unix socket, which has none. */
static bool find_peer(const struct rpc_call *c, bool *ret_tls, struct cluster_identity *ret_peer)
{
	bool found = false;
	grpc_auth_context *context = grpc_call_auth_context(c->call);
	*ret_tls = c->listener->node;
	if (!context)
		return false;
	grpc_auth_property_iterator i =
		grpc_auth_context_find_properties_by_name(context, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
	const grpc_auth_property *p = grpc_auth_property_iterator_next(&i);
	*ret_tls = *ret_tls || (p && p->value_length == 3 && memcmp(p->value, "ssl", 3) == 0);
	i = grpc_auth_context_find_properties_by_name(context, GRPC_PEER_URI_PROPERTY_NAME);
	while (!found && (p = grpc_auth_property_iterator_next(&i)))
		found = cluster_identity_parse(p->value, p->value_length, ret_peer) == 0;
	grpc_auth_context_release(context);
	return found;
}

bool rpc_node_peer(struct rpc_call *c, bool *ret_tls, struct cluster_identity *ret_peer, struct rpc_fault *f)
{
	bool known = find_peer(c, ret_tls, ret_peer);
	if (known || !*ret_tls)
		return true;
	rpc_fault_set(f, GRPC_STATUS_PERMISSION_DENIED, "WRONG_IDENTITY", NULL,
		"the certificate names no node (thaw://CLUSTER/ROLE/NAME): `thawctl pki node` makes such ones");
	return false;
}

struct cluster_coordinator *rpc_node_find(
	struct rpc_call *c, bool *ret_tls, struct cluster_identity *ret_peer, struct rpc_fault *f)
{
	struct cluster_coordinator *coordinator = server_coordinator(c->queue->server->daemon);
	if (!coordinator) {
		rpc_fault_set(f, GRPC_STATUS_FAILED_PRECONDITION, "NO_COORDINATOR", NULL,
			"this thawd is no coordinator: see cluster.role");
		return NULL;
	}
	return rpc_node_peer(c, ret_tls, ret_peer, f) ? coordinator : NULL;
}

static struct node_call *open_session(struct rpc_call *c, struct rpc_fault *f)
{
	struct cluster_identity peer = {0};
	struct base_error e = {0};
	bool tls;
	struct cluster_coordinator *coordinator = rpc_node_find(c, &tls, &peer, f);
	if (!coordinator)
		return NULL;
	struct node_call *n = calloc(1, sizeof(*n));
	rpc_call_ref(c); // for the wakes of the session
	int status = n ? cluster_session_open(coordinator, tls ? &peer : NULL, wake, c, &n->session, &e)
		       : base_error_set(&e, -ENOMEM, "no memory for a node's connection");
	if (status < 0) {
		rpc_call_drop(c);
		free(n);
		rpc_node_fault(f, status, &e);
		return NULL;
	}
	return n;
}

static void join_message(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct rpc_fault f;
	struct base_error e = {0};
	struct node_call *n = c->context;
	if (!request) { // the client's end
		rpc_call_end(c);
		return;
	}
	if (!n && c->told_closed)
		return; // its end was seen before its first message: nobody would close the session
	if (!n) {
		n = open_session(c, &f);
		if (!n) {
			rpc_call_fail(c, &f);
			return;
		}
		c->context = n;
	}
	if (!n->session)
		return;
	int status = cluster_session_message(n->session, (const Thaw__Node__V1__NodeMessage *)request, &e);
	if (status == -ECANCELED) {
		rpc_call_end(c);
	} else if (status < 0) {
		rpc_node_fault(&f, status, &e);
		rpc_call_fail(c, &f);
	}
}

static void join_next(struct rpc_call *c, struct rpc_next *out)
{
	struct node_call *n = c->context;
	struct base_error e = {0};
	struct rpc_fault f;
	uint8_t *data;
	size_t bytes;
	int status = n && n->session ? cluster_session_next(n->session, &data, &bytes, &e) : 0;
	if (status > 0) {
		out->message = grpc_slice_from_copied_buffer((const char *)data, bytes);
		out->has_message = true;
		free(data);
	} else if (status < 0) {
		rpc_node_fault(&f, status, &e);
		rpc_call_fail(c, &f);
		out->end = true;
	}
}

static void end_when_stopping(struct rpc_call *c)
{
	struct rpc_fault f;
	if (!atomic_load(&c->queue->server->stopping))
		return;
	rpc_fault_set(&f, GRPC_STATUS_UNAVAILABLE, "STOPPING", NULL, "the coordinator is stopping");
	f.retry_after_ns = BASE_NS_PER_SECOND;
	rpc_call_fail(c, &f);
}

static void join_closed(struct rpc_call *c)
{
	struct node_call *n = c->context;
	if (!n->session)
		return;
	cluster_session_close(base_steal(n->session));
	rpc_call_drop(c);
}

static void join_destroy(struct rpc_call *c)
{
	free(c->context);
}

const struct rpc_method rpc_node_methods[] = {
	{.path = "/thaw.node.v1.Coordinator/Join",
		.flags = RPC_BIDI | RPC_NODE,
		.request = &thaw__node__v1__node_message__descriptor,
		.message = join_message,
		.next = join_next,
		.tick = end_when_stopping,
		.closed = join_closed,
		.destroy = join_destroy},
	{.path = "/thaw.node.v1.Coordinator/Pull",
		.flags = RPC_STREAM | RPC_NODE,
		.request = &thaw__node__v1__pull_request__descriptor,
		.start = rpc_pull_start,
		.next = rpc_pull_next,
		.tick = end_when_stopping,
		.destroy = rpc_pull_destroy},
};
const uint32_t rpc_node_methods_count = base_array_size(rpc_node_methods);
