/* SPDX-License-Identifier: Apache-2.0
 * Pulls parts of a model's file from a node that has it: ranges of bytes over thaw.node.v1's Pull.
 *
 * What does not come (a node that is gone or silent, another number of bytes, a checksum that does not match) is asked
 * for again from where it was, of the next source, CLUSTER_PULL_TRIES times without a new byte, and at least once of
 * each; then it is given up with -EREMOTEIO. One range at a time, and at most what gRPC's window and one chunk hold is
 * on its way. One thread.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/cluster/message.h"
#include "daemon/rpc/client.h"

#define CLUSTER_PULL_TRIES 6u
#define CLUSTER_PULL_SILENT_NS (10 * 1000000000ull)

struct cluster_puller_config {
	const char *cluster; // whose coordinator, or node, a source's certificate has to name
	/* As cluster.join, tried in turn, the first one first: coordinators; HOST:PORT=NAME is another node, of that
	 * name. */
	const char *sources;
	struct rpc_client_tls tls; // for HOST:PORT
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	const char *path; // of the file at its owner, for errors
	uint64_t silent_ns; // 0: CLUSTER_PULL_SILENT_NS
	uint64_t pause_ns; // before the second try, each time twice as long; 0: 100 ms
	bool (*cancelled)(void *context);
	void (*retried)(void *context, const struct base_error *why); // may be NULL
	void *context;
	_Atomic uint64_t *pulled_bytes; // counts
};

struct cluster_puller;
int cluster_puller_create(
	const struct cluster_puller_config *config, struct cluster_puller **ret_puller, struct base_error *e);
void cluster_puller_destroy(struct cluster_puller *p); // NULL is fine
/* The context of these two is the puller. -ECANCELED, -EREMOTEIO naming node, file and range. */
extern const struct pack_source cluster_puller_source;

/* Has this stream's other end the certificate of the cluster's coordinator? Over a unix socket it is this host's. After
 * its first message. */
int cluster_check_coordinator(
	const char *cluster, const char *address, struct rpc_client_stream *s, struct base_error *e);
