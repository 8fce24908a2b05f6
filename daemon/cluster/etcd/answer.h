/* SPDX-License-Identifier: Apache-2.0
 * What etcd answers, from the bytes of its messages: they come from a peer, and nothing in them is trusted. No I/O. Any
 * thread.
 *
 * -EBADMSG: not the message that was asked for, or not about what was asked; the error has what is wrong, and the
 * caller adds who said it.
 * -ENOMEM. Anything else is etcd's own no.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "daemon/cluster/etcd/etcd.h"
#include "daemon/cluster/state.h"

/* -ENOENT: there is no such key. ret_revision is set then, too. */
int etcd_answer_range(const void *data, size_t bytes, const char *key, struct etcd_value *ret_value,
	int64_t *ret_revision, struct base_error *e);
int etcd_answer_put(const void *data, size_t bytes, struct base_error *e);
int etcd_answer_revoke(const void *data, size_t bytes, struct base_error *e);
/* Whether what was compared was so, and the revision that it was done at. */
int etcd_answer_txn(const void *data, size_t bytes, bool *ret_succeeded, int64_t *ret_revision, struct base_error *e);

/* Times to live are whole seconds, 1 to ETCD_MAX_TTL_S. -EREMOTEIO with etcd's words: it gives none. */
int etcd_answer_grant(const void *data, size_t bytes, int64_t *ret_lease, uint64_t *ret_ttl_ns, struct base_error *e);
/* -ENOENT: the lease is over. */
int etcd_answer_keep(const void *data, size_t bytes, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e);
/* How long the lease lives from each time that it is kept alive. -ENOENT: it is over. */
int etcd_answer_length(const void *data, size_t bytes, int64_t lease, uint64_t *ret_ttl_ns, struct base_error *e);

struct etcd_watched {
	bool canceled; // the watch is over; the connection is not
	bool changed;
};
int etcd_answer_watch(const void *data, size_t bytes, struct etcd_watched *ret_watched, struct base_error *e);

/* Whom the value of `coordinator` names: holder and address of the claim. Whatever stands there, it is another's
 * key. */
void etcd_answer_holder(const struct etcd_value *v, struct cluster_claim *claim);
