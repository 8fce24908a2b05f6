/* SPDX-License-Identifier: Apache-2.0
 * A node that computes: dials its coordinator, again and again until it is told to stop, and does what it is assigned.
 *
 * Threads: one of its own talks to the coordinator; each assignment has one that packs, connects the group, starts the
 * rank and watches it (task.c). All calls: any thread. At most CLUSTER_MAX_TASKS assignments; what was assigned ends
 * when the connection does, since whoever assigned it cannot be told any more: the store stays.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/rpc/client.h"
#include "topology/machine.h"

#define CLUSTER_MAX_TASKS 32u

struct cluster_worker_config {
	const char *cluster, *node, *version;
	const char *rack; // where it stands; NULL, "": in none
	/* HOST:PORT, or unix:PATH of the coordinator in this process; several with commas between where some stand by:
	 * they are tried in turn. */
	const char *join;
	struct rpc_client_tls tls; // for HOST:PORT
	const char *address; // where other nodes reach this one, by number or name; "": the way to the coordinator
	uint16_t pull_port; // where they pull from it; 0: nowhere
	const char *store_path, *sources, *rank_path;
	const struct topology_machine *machine; // outlives the worker
	struct cluster_budgets budgets;
	uint32_t threads; // 0: one for each CPU
	/* The drive is measured with files of the directory; "": with any of the store. Any thread. */
	int (*probe)(
		void *context, const char *directory, struct topology_bandwidths *ret_bandwidths, struct base_error *e);
	/* Memory that a new plan could have: what is available, and what the ranks with these pids hold now. */
	uint64_t (*memory)(void *context, const pid_t *pids, uint32_t count);
	void *context;
	struct cluster_events events;
	struct base_log *log;
};

struct cluster_worker;
int cluster_worker_start(
	const struct cluster_worker_config *config, struct cluster_worker **ret_worker, struct base_error *e);
/* Its work goes to other nodes first, as far as there are any; then it leaves, and comes no more: `left`. Returns at
 * once. */
void cluster_worker_drain(struct cluster_worker *w);
void cluster_worker_stop(struct cluster_worker *w); // says Leave, ends its ranks, joins; NULL is fine

/* ---- files that other nodes pull from this one (copy.c); any thread ---- */

struct cluster_copies {
	const char *cluster, *node, *store_path;
	_Atomic uint64_t *served_bytes;
};
/* As cluster_source_open, of a file that this node has digested and that is as it was then. Reads the drive. */
int cluster_copy_open(const struct cluster_copies *c, const struct cluster_identity *peer,
	const struct cluster_pull *pull, struct cluster_source *ret_source, struct base_error *e);

/* A store file that something else than a coordinator's plans uses from now on, as pack_config.relied says it. Any
 * thread. */
void cluster_worker_relied(
	struct cluster_worker *w, const uint8_t digest[static CLUSTER_DIGEST_BYTES], const char *name);

struct cluster_worker_status {
	bool joined;
	bool left; // drained, and gone
	char coordinator[CLUSTER_NAME_BYTES];
	char why[CLUSTER_TEXT_BYTES]; // not joined: what the last attempt said
	uint64_t epoch;
	uint32_t ranks; // that run
	uint64_t pulled_bytes; // of models that are not here, since the start
};
void cluster_worker_get_status(struct cluster_worker *w, struct cluster_worker_status *ret_status);
uint32_t cluster_worker_pids(struct cluster_worker *w, pid_t *ret_pids, uint32_t room);
