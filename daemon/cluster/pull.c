// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/pull.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/check.h"

#define PULL "/thaw.node.v1.Coordinator/Pull"
#define LOOK_NS (200 * 1000000ull) // between looks whether it is cancelled
#define PAUSE_FIRST_NS (100 * 1000000ull)
#define PAUSE_MOST_NS (2 * BASE_NS_PER_SECOND)
#define PAUSE_DOUBLED 10u // times at most

struct cluster_puller {
	struct cluster_puller_config config;
	char *sources;
	size_t source_at; // of the next one
	uint32_t tries; // without a new byte
	char source[CLUSTER_ADDRESS_BYTES + CLUSTER_NAME_BYTES]; // that is asked now
	char node[CLUSTER_NAME_BYTES]; // its name; "": it has to be a coordinator
	struct rpc_client *client; // NULL: not connected
	struct rpc_client_stream *stream; // NULL: no range is on its way
	bool known; // its certificate was looked at
	uint32_t failures; // since the last byte

	struct cluster_pull what; // skip_bytes: what has come
	uint64_t total_bytes;
	char name[64]; // of what

	struct proto_budget budget;
	ProtobufCMessage *message; // the chunk that is given out
	size_t given_bytes; // of it
};

static void find_identity(struct rpc_client_stream *s, struct cluster_identity *ret_identity)
{
	char uri[CLUSTER_URI_BYTES];
	*ret_identity = (struct cluster_identity){0};
	for (uint32_t n = 0; rpc_client_stream_uri(s, n, uri, sizeof uri) == 0; n++) {
		if (cluster_identity_parse(uri, strlen(uri), ret_identity) == 0)
			break;
	}
}

int cluster_check_coordinator(
	const char *cluster, const char *address, struct rpc_client_stream *s, struct base_error *e)
{
	struct cluster_identity i;
	if (strncmp(address, "unix:", 5) == 0)
		return 0;
	find_identity(s, &i);
	if (strcmp(i.cluster, cluster) == 0 && cluster_role_coordinates(i.role))
		return 0;
	return base_error_set(e, -EPERM,
		"%s has the certificate of %s, role %s, cluster %s: that is not this cluster's coordinator", address,
		i.name[0] ? i.name : "no node", cluster_role_name(i.role), i.cluster);
}

/* ---- one source ---- */

static void end_stream(struct cluster_puller *p)
{
	rpc_client_stream_close(p->stream);
	p->stream = NULL;
}

static void hang_up(struct cluster_puller *p)
{
	end_stream(p);
	rpc_client_destroy(p->client);
	p->client = NULL;
	p->known = false;
}

static void choose_source(struct cluster_puller *p)
{
	if (!p->sources[p->source_at])
		p->source_at = 0;
	size_t n = strcspn(p->sources + p->source_at, ",");
	snprintf(p->source, sizeof p->source, "%.*s", (int)n, p->sources + p->source_at);
	p->node[0] = '\0';
	char *name = strncmp(p->source, "unix:", 5) == 0 ? NULL : strchr(p->source, '=');
	if (name) {
		*name++ = '\0';
		snprintf(p->node, sizeof p->node, "%s", name);
	}
	p->source_at += n;
	p->source_at += p->sources[p->source_at] == ',';
}

static int ask(struct cluster_puller *p, struct base_error *e)
{
	size_t bytes;
	if (!p->client) {
		choose_source(p);
		struct rpc_client_tls tls = p->config.tls;
		tls.name = p->node[0] ? p->node : NULL; // its address may be one that no certificate knows
		int status = rpc_client_create(p->source, &tls, &p->client, e);
		if (status)
			return status;
	}
	_cleanup_free_ uint8_t *request = cluster_pack_pull(&p->what, &bytes);
	if (!request || rpc_client_stream_open(p->client, PULL, request, bytes, 0, &p->stream) < 0)
		return base_error_set(e, -ENOMEM, "no memory to pull with");
	return 0;
}

static int check_source(struct cluster_puller *p, struct base_error *e)
{
	struct cluster_identity i;
	if (!p->node[0])
		return cluster_check_coordinator(p->config.cluster, p->source, p->stream, e);
	find_identity(p->stream, &i);
	if (strcmp(i.cluster, p->config.cluster) == 0 && strcmp(i.name, p->node) == 0 && cluster_role_works(i.role))
		return 0;
	return base_error_set(e, -EPERM,
		"%s has the certificate of %s, role %s, cluster %s: that is not node %s of this cluster", p->source,
		i.name[0] ? i.name : "no node", cluster_role_name(i.role), i.cluster, p->node);
}

static int take_chunk(struct cluster_puller *p, const uint8_t *data, size_t bytes, struct base_error *e)
{
	int status = p->known ? 0 : check_source(p, e);
	if (status)
		return status;
	p->known = true;
	status = proto_unpack(&thaw__node__v1__pull_chunk__descriptor, data, bytes, &p->budget, &p->message, NULL, e);
	if (status) {
		p->message = NULL;
		return status;
	}
	const Thaw__Node__V1__PullChunk *m = (const Thaw__Node__V1__PullChunk *)p->message;
	status = cluster_check_chunk(m, p->total_bytes - p->what.skip_bytes, e);
	if (status) {
		protobuf_c_message_free_unpacked(base_steal(p->message), &p->budget.allocator);
		return status;
	}
	p->given_bytes = 0;
	p->what.skip_bytes += m->data.len;
	p->failures = 0;
	if (p->config.pulled_bytes)
		atomic_fetch_add(p->config.pulled_bytes, m->data.len);
	return 0;
}

/* -ECANCELED is final, all else is this attempt's. */
static int hear(struct cluster_puller *p, struct base_error *e)
{
	struct rpc_client_status end = {0};
	const uint8_t *data;
	size_t bytes;
	uint64_t until = base_clock_now_ns() + (p->config.silent_ns ? p->config.silent_ns : CLUSTER_PULL_SILENT_NS);
	for (;;) {
		int r = rpc_client_stream_wait(p->stream, LOOK_NS, &data, &bytes, &end);
		if (r == 1)
			return take_chunk(p, data, bytes, e);
		if (r != -ETIMEDOUT && r != -EAGAIN)
			return base_error_set(e, -EREMOTEIO, "%s", end.code ? end.message : "it ended early");
		if (p->config.cancelled(p->config.context))
			return base_error_set(e, -ECANCELED, "pulling was cancelled");
		if (base_clock_now_ns() >= until)
			return base_error_set(e, -ETIMEDOUT, "it is silent");
	}
}

/* ---- again and again ---- */

static int pause_before_next(struct cluster_puller *p, struct base_error *e)
{
	uint32_t doubled = p->failures < PAUSE_DOUBLED ? p->failures - 1 : PAUSE_DOUBLED;
	uint64_t ns = (p->config.pause_ns ? p->config.pause_ns : PAUSE_FIRST_NS) << doubled;
	uint64_t until = base_clock_now_ns() + (ns < PAUSE_MOST_NS ? ns : PAUSE_MOST_NS);
	while (base_clock_now_ns() < until) {
		if (p->config.cancelled(p->config.context))
			return base_error_set(e, -ECANCELED, "pulling was cancelled");
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
	}
	return 0;
}

static int failed(struct cluster_puller *p, const struct base_error *why, struct base_error *e)
{
	struct base_error told;
	p->failures++;
	base_error_set(&told, -EREMOTEIO, "%s: bytes %llu to %llu of %s of %s: %.200s", p->source,
		(unsigned long long)p->what.skip_bytes, (unsigned long long)p->total_bytes, p->name, p->config.path,
		base_error_text(why));
	hang_up(p);
	if (p->failures == p->tries) {
		p->failures = 0;
		return base_error_set(e, -EREMOTEIO, "pulled %u times without success: %s", p->tries, told.message);
	}
	if (p->config.retried)
		p->config.retried(p->config.context, &told);
	return pause_before_next(p, e);
}

static int next_chunk(struct cluster_puller *p, struct base_error *e)
{
	for (;;) {
		struct base_error why = {0};
		int status = p->stream ? 0 : ask(p, &why);
		if (!status)
			status = hear(p, &why);
		if (status == -ECANCELED && e)
			*e = why;
		if (!status || status == -ECANCELED)
			return status;
		status = failed(p, &why, e);
		if (status)
			return status;
	}
}

/* ---- as a source of the packer ---- */

static void drop_chunk(struct cluster_puller *p)
{
	if (p->message)
		protobuf_c_message_free_unpacked(base_steal(p->message), &p->budget.allocator);
}

static int begin(void *context, const struct pack_runs *runs, const char *what, struct base_error *e)
{
	struct cluster_puller *p = context;
	end_stream(p);
	drop_chunk(p);
	p->what.runs = *runs;
	p->what.skip_bytes = 0;
	p->total_bytes = runs->run_bytes * runs->runs; // of a file that is there: no overflow
	p->failures = 0;
	snprintf(p->name, sizeof p->name, "%s", what);
	return 0;
}

static int read_bytes(void *context, void *out, uint64_t bytes, struct base_error *e)
{
	struct cluster_puller *p = context;
	uint8_t *to = out;
	while (bytes) {
		const Thaw__Node__V1__PullChunk *m = (const Thaw__Node__V1__PullChunk *)p->message;
		size_t left = m ? m->data.len - p->given_bytes : 0;
		size_t n = left < bytes ? left : (size_t)bytes;
		if (n) {
			memcpy(to, m->data.data + p->given_bytes, n);
			p->given_bytes += n;
			to += n;
			bytes -= n;
			continue;
		}
		drop_chunk(p);
		if (p->what.skip_bytes == p->total_bytes)
			return base_error_set(e, -EINVAL, "%s: read beyond what is pulled", p->name);
		int status = next_chunk(p, e);
		if (status)
			return status;
	}
	if (p->what.skip_bytes == p->total_bytes)
		end_stream(p); // whatever else it would say
	return 0;
}

const struct pack_source cluster_puller_source = {.begin = begin, .read = read_bytes};

/* ---- life ---- */

int cluster_puller_create(
	const struct cluster_puller_config *config, struct cluster_puller **ret_puller, struct base_error *e)
{
	struct cluster_puller *p = calloc(1, sizeof *p);
	if (p)
		p->sources = strdup(config->sources);
	if (!p || !p->sources) {
		free(p);
		return base_error_set(e, -ENOMEM, "no memory to pull with");
	}
	p->config = *config;
	p->tries = 1;
	for (const char *s = config->sources; (s = strchr(s, ',')); s++)
		p->tries++;
	p->tries = p->tries > CLUSTER_PULL_TRIES ? p->tries : CLUSTER_PULL_TRIES;
	memcpy(p->what.digest, config->digest, sizeof p->what.digest);
	*ret_puller = p;
	return 0;
}

void cluster_puller_destroy(struct cluster_puller *p)
{
	if (!p)
		return;
	drop_chunk(p);
	hang_up(p);
	free(p->sources);
	free(p);
}
