/* SPDX-License-Identifier: Apache-2.0
 * What a cluster has to remember when its coordinator is gone: members, plans, the epoch. It lies behind one ops table:
 * `file`, one file in the coordinator's store, is the engine here.
 *
 * The record is read and written as a whole, by whoever holds the claim to be the coordinator. A claim is a lease: file holds it
 * as long as the process lives (a lock), another engine would have to keep it alive, and lost() says when it could not. Who
 * stands by reads, and watches changed_fd. One thread at a time.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/cluster/message.h"

#define CLUSTER_MAX_PLANS 16u
#define CLUSTER_MAX_STAGES 16u

struct cluster_state_node {
	char name[CLUSTER_NAME_BYTES];
	bool draining;
};

struct cluster_state_stage {
	char node[CLUSTER_NAME_BYTES];
	struct cluster_slice slice;
};

struct cluster_state_plan { // the last that ran, of one model
	char model[CLUSTER_MODEL_BYTES];
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	struct cluster_state_stage stages[CLUSTER_MAX_STAGES];
	uint32_t stages_count;
};

struct cluster_record {
	char cluster[CLUSTER_NAME_BYTES], coordinator[CLUSTER_NAME_BYTES];
	uint64_t epoch; // the highest that was ever used
	struct cluster_state_node nodes[CLUSTER_MAX_NODES];
	uint32_t nodes_count;
	struct cluster_state_plan plans[CLUSTER_MAX_PLANS];
	uint32_t plans_count;
};

struct cluster_state;

struct cluster_state_ops {
	const char *name;
	/* where: of file, a directory. Takes the claim for `who`: -EBUSY with the holder. */
	int (*open)(const char *where, const char *who, struct cluster_state **ret_state, struct base_error *e);
	void (*close)(struct cluster_state *s); // gives the claim back; NULL is fine
	/* -ENOENT when nothing was ever written; -EBADMSG with the place for what is no record. */
	int (*read)(struct cluster_state *s, struct cluster_record *ret_record, struct base_error *e);
	/* Whole and durable, or not at all. -ESTALE when the claim is lost. */
	int (*write)(struct cluster_state *s, const struct cluster_record *record, struct base_error *e);
	bool (*lost)(struct cluster_state *s); // the claim
	int (*changed_fd)(struct cluster_state *s); // readable when another wrote; -1: nobody else can
};

extern const struct cluster_state_ops cluster_state_file_ops;

struct cluster_state {
	const struct cluster_state_ops *ops;
};

/* The record as JSON; the caller frees. NULL: no memory. */
char *cluster_record_print(const struct cluster_record *r);
/* -EBADMSG with the field. */
int cluster_record_parse(const char *text, size_t bytes, struct cluster_record *ret_record, struct base_error *e);
