/* SPDX-License-Identifier: Apache-2.0
 * A small client of etcd's v3 API (proto/etcd/etcd.proto) over daemon/rpc's client: what one leased key and one record
 * need.
 *
 * One thread per client object. Every call is over within the client's timeout, and is tried once, at one endpoint:
 * after a failure the next call goes to the next endpoint, over a new connection, and the caller decides when. Errors
 * name the endpoint and what was asked: -EHOSTUNREACH (no etcd there, or none that has a leader), -ETIMEDOUT (whether
 * it was done is not known),
 * -EBADMSG (what came is no answer), -EREMOTEIO (etcd said no: its words), -EMSGSIZE, -ENOMEM.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define ETCD_MAX_ENDPOINTS 8u
#define ETCD_ENDPOINTS_BYTES 512u
#define ETCD_MAX_VALUE_BYTES (1u << 20) // etcd itself takes requests of 1.5 MiB
#define ETCD_MAX_TTL_S 86400 // of a lease

struct etcd_config {
	const char *endpoints; // HOST:PORT, several with commas between
	const char *ca, *cert, *key; // PEM files; ca NULL or "": plaintext
	uint64_t timeout_ns; // of a call
};

struct etcd_client;
/* Connects nowhere yet. -EINVAL with the endpoint that is none, or too many; -errno of a PEM file. */
int etcd_client_create(const struct etcd_config *config, struct etcd_client **ret_client, struct base_error *e);
void etcd_client_destroy(struct etcd_client *c); // NULL is fine
const char *etcd_client_endpoint(const struct etcd_client *c); // that the next call goes to

struct etcd_value {
	char *data; // the caller frees; a NUL byte follows
	size_t bytes;
	int64_t create_revision, mod_revision, lease;
};
/* As the majority of etcd's members has it. -ENOENT; ret_revision (of all of etcd, for a watch) is set then too. */
int etcd_get(struct etcd_client *c, const char *key, struct etcd_value *ret_value, int64_t *ret_revision,
	struct base_error *e);
int etcd_put(
	struct etcd_client *c, const char *key, const void *data, size_t bytes, int64_t lease, struct base_error *e);
/* Only when there is no such key: -EEXIST. */
int etcd_create(struct etcd_client *c, const char *key, const void *data, size_t bytes, int64_t lease,
	int64_t *ret_create_revision, struct base_error *e);
/* Only while `guard` is the key that was created at that revision: -ESTALE. */
int etcd_put_guarded(struct etcd_client *c, const char *guard, int64_t create_revision, const char *key,
	const void *data, size_t bytes, struct base_error *e);

/* ret_until_ns: on base_clock, when the lease is over unless it is kept alive again; counted from before it was asked
 * for, so etcd never ends it earlier. */
int etcd_lease_grant(
	struct etcd_client *c, uint64_t ttl_ns, int64_t *ret_lease, uint64_t *ret_until_ns, struct base_error *e);
int etcd_lease_keep(
	struct etcd_client *c, int64_t lease, uint64_t *ret_until_ns, struct base_error *e); // -ENOENT: it is over
/* How long it lives from each time that it is kept alive, whosever it is. -ENOENT: it is over. */
int etcd_lease_length(struct etcd_client *c, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e);
int etcd_lease_revoke(struct etcd_client *c, int64_t lease, struct base_error *e); // its keys go with it

/* Waits for a change of the key after `revision`: 1 when there was one, 0 when there was none within wait_ns. Stays
 * open at etcd between calls for the same key; what happened between them is not missed. Changes may come bundled, and
 * once more than they happened: look at the key. */
int etcd_watch(struct etcd_client *c, const char *key, int64_t revision, uint64_t wait_ns, struct base_error *e);
