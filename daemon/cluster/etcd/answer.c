// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/etcd/answer.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/check.h"
#include "proto/etcd/etcd.pb-c.h"

#define MAX_HOLDER_BYTES 1024u

struct answer {
	ProtobufCMessage *message;
	struct proto_budget budget;
};

static void answer_finish(struct answer *a)
{
	if (a->message)
		protobuf_c_message_free_unpacked(a->message, &a->budget.allocator);
}
#define _cleanup_answer_ _cleanup_(answer_finish)

static int unpack(const ProtobufCMessageDescriptor *d, const void *data, size_t bytes, struct answer *ret_answer,
	struct base_error *e)
{
	struct base_error why = {0};
	if (!proto_unpack(d, data, bytes, &ret_answer->budget, &ret_answer->message, NULL, &why))
		return 0;
	ret_answer->message = NULL;
	return base_error_set(e, -EBADMSG, "%s", base_error_text(&why));
}

static int64_t revision_of(const Etcdserverpb__ResponseHeader *h)
{
	return h ? h->revision : 0;
}

/* ---- KV ---- */

int etcd_answer_range(const void *data, size_t bytes, const char *key, struct etcd_value *ret_value,
	int64_t *ret_revision, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__range_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__RangeResponse *r = (const Etcdserverpb__RangeResponse *)a.message;
	if (!r->n_kvs) {
		*ret_revision = revision_of(r->header);
		return base_error_set(e, -ENOENT, "there is no key %s", key);
	}
	const Etcdserverpb__KeyValue *kv = r->kvs[0];
	if (kv->key.len != strlen(key) || memcmp(kv->key.data, key, kv->key.len) != 0 ||
		kv->value.len > ETCD_MAX_VALUE_BYTES)
		return base_error_set(e, -EBADMSG, "another key than was asked for, or too large a value");
	char *value = malloc(kv->value.len + 1);
	if (!value)
		return base_error_set(e, -ENOMEM, "no memory for %s", key);
	if (kv->value.len)
		memcpy(value, kv->value.data, kv->value.len);
	value[kv->value.len] = '\0';
	*ret_revision = revision_of(r->header);
	*ret_value = (struct etcd_value){value, kv->value.len, kv->create_revision, kv->mod_revision, kv->lease};
	return 0;
}

int etcd_answer_put(const void *data, size_t bytes, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	return unpack(&etcdserverpb__put_response__descriptor, data, bytes, &a, e);
}

int etcd_answer_txn(const void *data, size_t bytes, bool *ret_succeeded, int64_t *ret_revision, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__txn_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__TxnResponse *r = (const Etcdserverpb__TxnResponse *)a.message;
	*ret_succeeded = r->succeeded;
	*ret_revision = revision_of(r->header);
	return 0;
}

/* ---- leases ---- */

static int take_ttl(int64_t ttl_s, uint64_t *ret_ttl_ns, struct base_error *e)
{
	if (ttl_s < 1 || ttl_s > ETCD_MAX_TTL_S)
		return base_error_set(e, -EBADMSG, "a lease without a sound time to live");
	*ret_ttl_ns = (uint64_t)ttl_s * BASE_NS_PER_SECOND;
	return 0;
}

int etcd_answer_grant(const void *data, size_t bytes, int64_t *ret_lease, uint64_t *ret_ttl_ns, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__lease_grant_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__LeaseGrantResponse *r = (const Etcdserverpb__LeaseGrantResponse *)a.message;
	if (r->error[0] || !r->id)
		return base_error_set(e, -EREMOTEIO, "%.300s", r->error[0] ? r->error : "no lease came");
	status = take_ttl(r->ttl, ret_ttl_ns, e);
	if (!status)
		*ret_lease = r->id;
	return status;
}

int etcd_answer_keep(const void *data, size_t bytes, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__lease_keep_alive_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__LeaseKeepAliveResponse *r = (const Etcdserverpb__LeaseKeepAliveResponse *)a.message;
	if (r->id != lease)
		return base_error_set(e, -EBADMSG, "the answer is about another lease");
	return r->ttl ? take_ttl(r->ttl, ret_ttl_ns, e) : base_error_set(e, -ENOENT, "the lease is over");
}

int etcd_answer_revoke(const void *data, size_t bytes, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	return unpack(&etcdserverpb__lease_revoke_response__descriptor, data, bytes, &a, e);
}

/* TTL is what is left of it, in seconds that are cut off: 0 in its last one, and below when etcd has not yet dropped
 * it. One that etcd does not know has -1, and was granted nothing. */
int etcd_answer_length(const void *data, size_t bytes, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__lease_time_to_live_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__LeaseTimeToLiveResponse *r = (const Etcdserverpb__LeaseTimeToLiveResponse *)a.message;
	if (r->id != lease)
		return base_error_set(e, -EBADMSG, "the answer is about another lease");
	if (r->ttl < 0 && !r->grantedttl)
		return base_error_set(e, -ENOENT, "the lease is over");
	return take_ttl(r->grantedttl, ret_ttl_ns, e);
}

/* ---- watch ---- */

int etcd_answer_watch(const void *data, size_t bytes, struct etcd_watched *ret_watched, struct base_error *e)
{
	_cleanup_answer_ struct answer a = {0};
	int status = unpack(&etcdserverpb__watch_response__descriptor, data, bytes, &a, e);
	if (status)
		return status;
	const Etcdserverpb__WatchResponse *r = (const Etcdserverpb__WatchResponse *)a.message;
	*ret_watched = (struct etcd_watched){.canceled = r->canceled, .changed = r->n_events > 0};
	return 0;
}

/* ---- who coordinates ---- */

static void copy_text(struct json_object *o, const char *key, char *out, size_t room)
{
	struct json_object *x;
	if (!json_object_object_get_ex(o, key, &x) || !json_object_is_type(x, json_type_string))
		return;
	size_t n = (size_t)json_object_get_string_len(x);
	const char *text = json_object_get_string(x);
	if (!n)
		return;
	for (size_t i = 0; i < n; i++) {
		if (n >= room || text[i] <= ' ' || text[i] > '~')
			return;
	}
	memcpy(out, text, n);
	out[n] = '\0';
}

void etcd_answer_holder(const struct etcd_value *v, struct cluster_claim *claim)
{
	struct json_tokener *t = json_tokener_new_ex(4);
	struct json_object *o =
		t && v->bytes <= MAX_HOLDER_BYTES ? json_tokener_parse_ex(t, v->data, (int)v->bytes) : NULL;
	snprintf(claim->holder, sizeof claim->holder, "another");
	if (o && json_object_is_type(o, json_type_object)) {
		copy_text(o, "node", claim->holder, sizeof claim->holder);
		copy_text(o, "address", claim->address, sizeof claim->address);
	}
	json_object_put(o);
	if (t)
		json_tokener_free(t);
}
