// SPDX-License-Identifier: Apache-2.0
/* thaw.node.v1.Coordinator/Pull: bytes of a model's file, for nodes without a copy. A thread of its own reads the
 * drive, one chunk for each call in turn, so that heartbeats and requests wait for no drive, and a call has two chunks
 * at most: one read, one being sent. */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "daemon/rpc/rpc_node.h"
#include "offload/hash.h"

struct pull {
	struct cluster_pull what;
	struct cluster_identity peer;
	bool tls; // peer is known
	struct cluster_source source; // the reader's
	uint64_t total_bytes;
	/* The reader's while the call is busy: */
	bool have;
	grpc_slice message;
	int status;
	struct base_error error;
};

static int read_message(struct pull *p, struct base_error *e)
{
	Thaw__Node__V1__PullChunk m = THAW__NODE__V1__PULL_CHUNK__INIT;
	_cleanup_free_ uint8_t *data = malloc(CLUSTER_CHUNK_BYTES);
	if (!data)
		return base_error_set(e, -ENOMEM, "no memory to read a model's file with");
	int status = cluster_source_read(
		&p->source, &p->what.runs, p->what.skip_bytes, data, CLUSTER_CHUNK_BYTES, &m.data.len, e);
	if (status)
		return status;
	m.data.data = data;
	m.xxh3 = offload_hash(data, m.data.len);
	p->what.skip_bytes += m.data.len;
	p->message = rpc_pack(&m.base);
	p->have = true;
	return 0;
}

/* The reader's thread. */
static void read_chunk(struct rpc_call *c)
{
	struct pull *p = c->context;
	if (p->source.fd < 0)
		p->status = server_open_source(
			c->queue->server->daemon, p->tls ? &p->peer : NULL, &p->what, &p->source, &p->error);
	if (!p->status)
		p->status = read_message(p, &p->error);
}

static void fail(struct rpc_call *c, int status, const struct base_error *e)
{
	struct rpc_fault f;
	rpc_node_fault(&f, status, e);
	rpc_call_fail(c, &f);
}

static void read_next(struct rpc_call *c)
{
	struct base_error e = {0};
	if (rpc_call_work(c, c->queue->server->reader, read_chunk) < 0)
		fail(c, -EAGAIN, &e);
}

void rpc_pull_start(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct rpc_server *r = c->queue->server;
	struct cluster_identity peer = {0};
	struct base_error e = {0};
	struct rpc_fault f;
	bool tls;
	if (!rpc_node_peer(c, &tls, &peer, &f)) {
		rpc_call_fail(c, &f);
		return;
	}
	struct pull *p = calloc(1, sizeof(*p));
	int status = p ? cluster_read_pull((const Thaw__Node__V1__PullRequest *)request, &p->what, &e)
		       : base_error_set(&e, -ENOMEM, "no memory for a pull");
	if (!status && atomic_fetch_add(&r->pulls_open, 1) >= RPC_MAX_PULLS) {
		atomic_fetch_sub(&r->pulls_open, 1);
		status = base_error_set(&e, -EAGAIN, "%u nodes pull at once, which is the most", RPC_MAX_PULLS);
	}
	if (status) {
		free(p);
		fail(c, status, &e);
		return;
	}
	p->source.fd = -1;
	p->peer = peer;
	p->tls = tls;
	p->total_bytes = p->what.runs.run_bytes * p->what.runs.runs;
	c->context = p;
}

void rpc_pull_next(struct rpc_call *c, struct rpc_next *out)
{
	struct pull *p = c->context;
	if (!p)
		return;
	if (p->status) {
		fail(c, p->status, &p->error);
		out->end = true;
		return;
	}
	if (p->have) {
		out->message = p->message;
		out->has_message = true;
		p->have = false;
		if (p->what.skip_bytes == p->total_bytes) {
			rpc_call_end(c);
			out->end = true;
			return;
		}
	}
	read_next(c); // while that is sent
}

void rpc_pull_destroy(struct rpc_call *c)
{
	struct pull *p = c->context;
	if (!p)
		return;
	if (p->have)
		grpc_slice_unref(p->message);
	cluster_source_close(&p->source);
	atomic_fetch_sub(&c->queue->server->pulls_open, 1);
	free(p);
}
