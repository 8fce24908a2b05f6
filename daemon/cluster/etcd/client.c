// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/etcd/answer.h"
#include "daemon/cluster/etcd/etcd.h"
#include "daemon/rpc/client.h"
#include "proto/etcd/etcd.pb-c.h"

#define KV_RANGE "/etcdserverpb.KV/Range"
#define KV_PUT "/etcdserverpb.KV/Put"
#define KV_TXN "/etcdserverpb.KV/Txn"
#define LEASE_GRANT "/etcdserverpb.Lease/LeaseGrant"
#define LEASE_KEEP "/etcdserverpb.Lease/LeaseKeepAlive"
#define LEASE_REVOKE "/etcdserverpb.Lease/LeaseRevoke"
#define LEASE_LENGTH "/etcdserverpb.Lease/LeaseTimeToLive"
#define WATCH "/etcdserverpb.Watch/Watch"

/* Status codes of gRPC that are told apart; the others are etcd's refusals. */
enum { CODE_OK = 0, CODE_DEADLINE = 4, CODE_NOT_FOUND = 5, CODE_UNAVAILABLE = 14 };

struct etcd_client {
	char endpoint[ETCD_MAX_ENDPOINTS][BASE_ADDRESS_HOST_BYTES + 10];
	uint32_t endpoints, at;
	char ca[1024], cert[1024], key[1024];
	uint64_t timeout_ns;
	struct rpc_client *rpc; // NULL: not connected
	struct rpc_client_stream *keep, *watch; // NULL: not open
	char watched[160];
};

struct reply {
	uint8_t *data; // freed with it
	size_t bytes;
};

static void reply_finish(struct reply *r)
{
	free(r->data);
}
#define _cleanup_reply_ _cleanup_(reply_finish)

/* ---- the connection ---- */

static void close_watch(struct etcd_client *c)
{
	rpc_client_stream_close(c->watch);
	c->watch = NULL;
}

static void disconnect(struct etcd_client *c)
{
	rpc_client_stream_close(c->keep);
	c->keep = NULL;
	close_watch(c);
	rpc_client_destroy(c->rpc);
	c->rpc = NULL;
}

/* The next call finds another endpoint. */
static int give_up(struct etcd_client *c, int status, const char *method, const char *why, struct base_error *e)
{
	base_error_set(e, status, "etcd %s, %s: %.300s", c->endpoint[c->at], strrchr(method, '/') + 1, why);
	disconnect(c);
	c->at = (c->at + 1) % c->endpoints;
	return status;
}

static int connect_client(struct etcd_client *c, struct base_error *e)
{
	const struct rpc_client_tls tls = {c->ca, c->cert[0] ? c->cert : NULL, c->key[0] ? c->key : NULL};
	if (c->rpc)
		return 0;
	int status = rpc_client_create(c->endpoint[c->at], c->ca[0] ? &tls : NULL, &c->rpc, e);
	/* A member that has lost the others says so, instead of serving what it remembers. */
	return status ? status : rpc_client_set_metadata(c->rpc, "hasleader", "true");
}

static int translate(
	struct etcd_client *c, int status, const struct rpc_client_status *s, const char *method, struct base_error *e)
{
	if (status == 0 && s->code == CODE_OK)
		return 0;
	if (status < 0 && status != -EHOSTUNREACH)
		return base_error_set(e, status, "etcd %s, %s: %s", c->endpoint[c->at], strrchr(method, '/') + 1,
			strerrordesc_np(-status));
	if (s->code == CODE_DEADLINE)
		return give_up(c, -ETIMEDOUT, method, "no answer in time", e);
	if (s->code == CODE_UNAVAILABLE || status < 0)
		return give_up(c, -EHOSTUNREACH, method, s->message[0] ? s->message : "it went away", e);
	return base_error_set(e, s->code == CODE_NOT_FOUND ? -ENOENT : -EREMOTEIO, "etcd %s, %s: %.300s (status %d)",
		c->endpoint[c->at], strrchr(method, '/') + 1, s->message, s->code);
}

/* What an answer came to, with who gave it. One that is none ends the connection. */
static int judge(
	struct etcd_client *c, int status, const char *method, const struct base_error *why, struct base_error *e)
{
	if (!status)
		return 0;
	if (status == -EBADMSG)
		return give_up(c, status, method, base_error_text(why), e);
	return base_error_set(
		e, status, "etcd %s, %s: %.300s", c->endpoint[c->at], strrchr(method, '/') + 1, base_error_text(why));
}

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_bytes)
{
	uint8_t *data = malloc(protobuf_c_message_get_packed_size(m) + 1);
	if (data)
		*ret_bytes = protobuf_c_message_pack(m, data);
	return data;
}

static int call(struct etcd_client *c, const char *method, const ProtobufCMessage *request, struct reply *ret_reply,
	struct base_error *e)
{
	struct rpc_client_status s = {0};
	size_t bytes = 0;
	_cleanup_free_ uint8_t *data = pack(request, &bytes);
	if (!data)
		return base_error_set(e, -ENOMEM, "etcd: no memory for a request");
	int status = connect_client(c, e);
	if (status)
		return status;
	status = rpc_client_call(c->rpc, method, data, bytes, c->timeout_ns, &ret_reply->data, &ret_reply->bytes, &s);
	status = translate(c, status, &s, method, e);
	return !status && !ret_reply->data ? give_up(c, -EBADMSG, method, "an answer without a message", e) : status;
}

/* One message out, and one back within `wait_ns`, on a stream that stays open. -ETIMEDOUT leaves it open. */
static int open_stream(struct etcd_client *c, const char *method, const ProtobufCMessage *request,
	struct rpc_client_stream **stream, struct base_error *e)
{
	size_t bytes = 0;
	_cleanup_free_ uint8_t *data = pack(request, &bytes);
	int status = data ? connect_client(c, e) : base_error_set(e, -ENOMEM, "etcd: no memory for a request");
	if (status)
		return status;
	if (!*stream && (status = rpc_client_stream_open_both(c->rpc, method, stream)) < 0)
		return base_error_set(e, status, "etcd: no memory for a stream");
	status = rpc_client_stream_send(*stream, data, bytes, c->timeout_ns);
	if (status == -ETIMEDOUT)
		return give_up(c, status, method, "no answer in time", e);
	return 0; // of a stream that is over the read says why
}

/* The bytes are valid until the next call. */
static int next_answer(struct etcd_client *c, const char *method, struct rpc_client_stream *stream, uint64_t wait_ns,
	const uint8_t **ret_data, size_t *ret_bytes, struct base_error *e)
{
	struct rpc_client_status s = {0};
	int status = rpc_client_stream_wait(stream, wait_ns, ret_data, ret_bytes, &s);
	if (status == -ETIMEDOUT)
		return status;
	if (status == 1)
		return 0;
	status = translate(c, status, &s, method, e);
	return status && status != -EREMOTEIO && status != -ENOENT
		       ? status
		       : give_up(c, -EHOSTUNREACH, method, s.message[0] ? s.message : "it ended the stream", e);
}

/* ---- life ---- */

static int add_endpoint(struct etcd_client *c, const char *text, size_t bytes, struct base_error *e)
{
	struct base_address a;
	char *out = c->endpoint[c->endpoints];
	if (c->endpoints == ETCD_MAX_ENDPOINTS)
		return base_error_set(e, -EINVAL, "at most %u endpoints", ETCD_MAX_ENDPOINTS);
	if (bytes >= sizeof c->endpoint[0])
		return base_error_set(e, -EINVAL, "%.80s: too long for an endpoint", text);
	memcpy(out, text, bytes);
	out[bytes] = '\0';
	int status = base_address_parse(out, &a, e);
	if (!status && !a.number)
		status = base_error_set(e, -EINVAL, "%s: a port is wanted", out);
	c->endpoints += !status;
	return status;
}

static int add_endpoints(struct etcd_client *c, const char *list, struct base_error *e)
{
	int status = 0;
	while (!status) {
		size_t n = strcspn(list, ",");
		status = add_endpoint(c, list, n, e);
		list += n;
		if (*list++ != ',')
			return status;
	}
	return status;
}

static int copy_path(char *out, size_t room, const char *path, struct base_error *e)
{
	if (!path)
		path = "";
	return (size_t)snprintf(out, room, "%s", path) < room
		       ? 0
		       : base_error_set(e, -ENAMETOOLONG, "%.80s: too long for a path", path);
}

int etcd_client_create(const struct etcd_config *config, struct etcd_client **ret_client, struct base_error *e)
{
	struct etcd_client *c = calloc(1, sizeof *c);
	if (!c)
		return base_error_set(e, -ENOMEM, "no memory for a client of etcd");
	c->timeout_ns = config->timeout_ns;
	int status = add_endpoints(c, config->endpoints, e);
	if (!status)
		status = copy_path(c->ca, sizeof c->ca, config->ca, e);
	if (!status)
		status = copy_path(c->cert, sizeof c->cert, config->cert, e);
	if (!status)
		status = copy_path(c->key, sizeof c->key, config->key, e);
	if (!status)
		status = connect_client(c, e); // reads the PEM files; dials with the first call
	if (status) {
		etcd_client_destroy(c);
		return status;
	}
	*ret_client = c;
	return 0;
}

void etcd_client_destroy(struct etcd_client *c)
{
	if (!c)
		return;
	disconnect(c);
	free(c);
}

const char *etcd_client_endpoint(const struct etcd_client *c)
{
	return c->endpoint[c->at];
}

/* ---- KV ---- */

static ProtobufCBinaryData text_of(const char *key)
{
	return (ProtobufCBinaryData){strlen(key), (uint8_t *)key};
}

static int check_size(const char *key, size_t bytes, struct base_error *e)
{
	if (bytes <= ETCD_MAX_VALUE_BYTES)
		return 0;
	return base_error_set(
		e, -EMSGSIZE, "etcd: %s would have %zu bytes, at most %u fit", key, bytes, ETCD_MAX_VALUE_BYTES);
}

int etcd_get(struct etcd_client *c, const char *key, struct etcd_value *ret_value, int64_t *ret_revision,
	struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	Etcdserverpb__RangeRequest m = ETCDSERVERPB__RANGE_REQUEST__INIT;
	m.key = text_of(key);
	m.limit = 1;
	int status = call(c, KV_RANGE, &m.base, &r, e);
	if (status)
		return status == -ENOENT ? -EREMOTEIO : status;
	return judge(c, etcd_answer_range(r.data, r.bytes, key, ret_value, ret_revision, &why), KV_RANGE, &why, e);
}

int etcd_put(
	struct etcd_client *c, const char *key, const void *data, size_t bytes, int64_t lease, struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	Etcdserverpb__PutRequest m = ETCDSERVERPB__PUT_REQUEST__INIT;
	int status = check_size(key, bytes, e);
	if (status)
		return status;
	m.key = text_of(key);
	m.value = (ProtobufCBinaryData){bytes, (uint8_t *)data};
	m.lease = lease;
	status = call(c, KV_PUT, &m.base, &r, e);
	return status ? status : judge(c, etcd_answer_put(r.data, r.bytes, &why), KV_PUT, &why, e);
}

/* `then`, if `guard` is the key that was created at that revision (0: there is none); `miss` if not. */
static int transact(struct etcd_client *c, const char *guard, int64_t create_revision, Etcdserverpb__RequestOp *then,
	int miss, int64_t *ret_revision, struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	bool succeeded = false;
	int64_t revision = 0;
	Etcdserverpb__TxnRequest m = ETCDSERVERPB__TXN_REQUEST__INIT;
	Etcdserverpb__Compare is = ETCDSERVERPB__COMPARE__INIT, *compare = &is;
	is.target = ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE;
	is.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL;
	is.key = text_of(guard);
	is.target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION;
	is.create_revision = create_revision;
	m.compare = &compare;
	m.success = &then;
	m.n_compare = m.n_success = 1;
	int status = call(c, KV_TXN, &m.base, &r, e);
	if (!status)
		status = judge(c, etcd_answer_txn(r.data, r.bytes, &succeeded, &revision, &why), KV_TXN, &why, e);
	if (status)
		return status;
	if (!succeeded)
		return base_error_set(e, miss, "etcd %s: %s is %s", c->endpoint[c->at], guard,
			miss == -EEXIST ? "there already" : "another's now");
	*ret_revision = revision;
	return 0;
}

static int transact_put(struct etcd_client *c, const char *guard, int64_t create_revision, int miss,
	Etcdserverpb__PutRequest *put, int64_t *ret_revision, struct base_error *e)
{
	Etcdserverpb__RequestOp op = ETCDSERVERPB__REQUEST_OP__INIT;
	op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
	op.request_put = put;
	return transact(c, guard, create_revision, &op, miss, ret_revision, e);
}

int etcd_create(struct etcd_client *c, const char *key, const void *data, size_t bytes, int64_t lease,
	int64_t *ret_create_revision, struct base_error *e)
{
	Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
	int status = check_size(key, bytes, e);
	if (status)
		return status;
	put.key = text_of(key);
	put.value = (ProtobufCBinaryData){bytes, (uint8_t *)data};
	put.lease = lease;
	return transact_put(c, key, 0, -EEXIST, &put, ret_create_revision, e);
}

int etcd_put_guarded(struct etcd_client *c, const char *guard, int64_t create_revision, const char *key,
	const void *data, size_t bytes, struct base_error *e)
{
	Etcdserverpb__PutRequest put = ETCDSERVERPB__PUT_REQUEST__INIT;
	int64_t revision;
	int status = check_size(key, bytes, e);
	if (status)
		return status;
	put.key = text_of(key);
	put.value = (ProtobufCBinaryData){bytes, (uint8_t *)data};
	return transact_put(c, guard, create_revision, -ESTALE, &put, &revision, e);
}

/* ---- leases ---- */

int etcd_lease_grant(
	struct etcd_client *c, uint64_t ttl_ns, int64_t *ret_lease, uint64_t *ret_until_ns, struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	Etcdserverpb__LeaseGrantRequest m = ETCDSERVERPB__LEASE_GRANT_REQUEST__INIT;
	uint64_t asked = base_clock_now_ns(), ttl = 0;
	m.ttl = (int64_t)((ttl_ns + BASE_NS_PER_SECOND - 1) / BASE_NS_PER_SECOND);
	int status = call(c, LEASE_GRANT, &m.base, &r, e);
	if (!status)
		status = judge(c, etcd_answer_grant(r.data, r.bytes, ret_lease, &ttl, &why), LEASE_GRANT, &why, e);
	if (!status)
		*ret_until_ns = asked + ttl;
	return status;
}

int etcd_lease_keep(struct etcd_client *c, int64_t lease, uint64_t *ret_until_ns, struct base_error *e)
{
	struct base_error why = {0};
	Etcdserverpb__LeaseKeepAliveRequest m = ETCDSERVERPB__LEASE_KEEP_ALIVE_REQUEST__INIT;
	uint64_t asked = base_clock_now_ns(), ttl = 0;
	const uint8_t *data;
	size_t bytes;
	m.id = lease;
	int status = open_stream(c, LEASE_KEEP, &m.base, &c->keep, e);
	if (!status)
		status = next_answer(c, LEASE_KEEP, c->keep, c->timeout_ns, &data, &bytes, e);
	if (status == -ETIMEDOUT && c->keep) // a late answer must not be taken for that of the next question
		return give_up(c, status, LEASE_KEEP, "no answer in time", e);
	if (!status)
		status = judge(c, etcd_answer_keep(data, bytes, lease, &ttl, &why), LEASE_KEEP, &why, e);
	if (!status)
		*ret_until_ns = asked + ttl;
	return status;
}

int etcd_lease_length(struct etcd_client *c, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	Etcdserverpb__LeaseTimeToLiveRequest m = ETCDSERVERPB__LEASE_TIME_TO_LIVE_REQUEST__INIT;
	m.id = lease;
	int status = call(c, LEASE_LENGTH, &m.base, &r, e);
	return status ? status
		      : judge(c, etcd_answer_length(r.data, r.bytes, lease, ret_ttl_ns, &why), LEASE_LENGTH, &why, e);
}

int etcd_lease_revoke(struct etcd_client *c, int64_t lease, struct base_error *e)
{
	_cleanup_reply_ struct reply r = {0};
	struct base_error why = {0};
	Etcdserverpb__LeaseRevokeRequest m = ETCDSERVERPB__LEASE_REVOKE_REQUEST__INIT;
	m.id = lease;
	int status = call(c, LEASE_REVOKE, &m.base, &r, e);
	return status ? status : judge(c, etcd_answer_revoke(r.data, r.bytes, &why), LEASE_REVOKE, &why, e);
}

/* ---- watch ---- */

static int open_watch(struct etcd_client *c, const char *key, int64_t revision, struct base_error *e)
{
	Etcdserverpb__WatchRequest m = ETCDSERVERPB__WATCH_REQUEST__INIT;
	Etcdserverpb__WatchCreateRequest create = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
	close_watch(c);
	if ((size_t)snprintf(c->watched, sizeof c->watched, "%s", key) >= sizeof c->watched)
		return base_error_set(e, -ENAMETOOLONG, "%.80s: too long for a key", key);
	create.key = text_of(key);
	create.start_revision = revision + 1;
	m.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
	m.create_request = &create;
	return open_stream(c, WATCH, &m.base, &c->watch, e);
}

int etcd_watch(struct etcd_client *c, const char *key, int64_t revision, uint64_t wait_ns, struct base_error *e)
{
	uint64_t now = base_clock_now_ns(), until = now + wait_ns;
	int status = 0;
	if (!c->watch || strcmp(c->watched, key) != 0)
		status = open_watch(c, key, revision, e);
	for (; !status; now = base_clock_now_ns()) {
		struct base_error why = {0};
		struct etcd_watched w;
		const uint8_t *data;
		size_t bytes;
		status = next_answer(c, WATCH, c->watch, until > now ? until - now : 0, &data, &bytes, e);
		if (status == -ETIMEDOUT)
			return 0;
		if (!status)
			status = judge(c, etcd_answer_watch(data, bytes, &w, &why), WATCH, &why, e);
		if (status)
			return status;
		if (w.canceled) { // compacted away, or this member stops: the next call starts anew
			close_watch(c);
			return 1;
		}
		if (w.changed)
			return 1;
	}
	return status;
}
