/* SPDX-License-Identifier: Apache-2.0
 * What a cluster has to remember when its coordinator is gone: members, plans, the epoch. It lies behind one ops table
 * with two engines: `file`, one file in the coordinator's store, and `etcd` (daemon/cluster/etcd), where other
 * coordinators stand by.
 *
 * The record is read and written as a whole, by whoever holds the claim to be the coordinator. file has it as long as
 * the process lives (a lock); etcd has it by a lease, which a thread of the engine keeps alive, and which can be lost
 * and come back: each time it is had anew it has another term. open, read, write and close: one thread at a time;
 * claim: any.
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

/* What is known of the claim. NONE: it is not ours, and etcd does not say whose -> HELD, OTHER. OTHER: another node has
 * it -> NONE, HELD. HELD: ours, nobody else can have it -> DOUBT, OTHER. DOUBT: it was ours, and the lease could not be
 * kept alive: another may have it by now -> HELD with the same term (it lived on), HELD with another, OTHER. */
enum cluster_claim_kind { CLUSTER_CLAIM_NONE, CLUSTER_CLAIM_OTHER, CLUSTER_CLAIM_HELD, CLUSTER_CLAIM_DOUBT };

struct cluster_claim {
	enum cluster_claim_kind kind;
	uint64_t term; // HELD and DOUBT
	char holder[CLUSTER_NAME_BYTES], address[CLUSTER_ADDRESS_BYTES]; // OTHER: where nodes join it; "": not known
	char why[CLUSTER_TEXT_BYTES]; // what is wrong; "": nothing
};

struct cluster_state_config {
	const char *who; // this node
	const char *directory; // file
	/* etcd */
	const char *cluster;
	const char *address; // where nodes join this one, HOST:PORT
	const char *endpoints; // HOST:PORT, with commas between
	const char *ca, *cert, *key; // PEM files; "": plaintext
	uint64_t lease_ns; // the claim is free that long after its holder's end
};

struct cluster_state_ops {
	const char *name;
	/* file takes the claim: -EBUSY with the holder. etcd only starts to try. */
	int (*open)(const struct cluster_state_config *config, struct cluster_state **ret_state, struct base_error *e);
	void (*close)(struct cluster_state *s); // gives the claim back; NULL is fine
	/* -ENOENT when nothing was ever written; -EBADMSG with the place for what is no record. */
	int (*read)(struct cluster_state *s, struct cluster_record *ret_record, struct base_error *e);
	/* Whole and durable, or not at all (-ETIMEDOUT: one of them). -ESTALE when the claim is not held. */
	int (*write)(struct cluster_state *s, const struct cluster_record *record, struct base_error *e);
	void (*claim)(struct cluster_state *s, struct cluster_claim *ret_claim); // as it is known now; does not block
};

extern const struct cluster_state_ops cluster_state_file_ops;

struct cluster_state {
	const struct cluster_state_ops *ops;
};

/* The record as JSON; the caller frees. NULL: no memory. */
char *cluster_record_print(const struct cluster_record *r);
/* -EBADMSG with the field. */
int cluster_record_parse(const char *text, size_t bytes, struct cluster_record *ret_record, struct base_error *e);
