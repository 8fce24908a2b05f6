/* SPDX-License-Identifier: Apache-2.0
 * The messages of thaw.node.v1 as plain data: what a peer sent is checked field by field before anyone looks at it, and
 * an error names the field. Strings have been checked by proto_unpack. Pure functions: any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "daemon/cluster/identity.h"
#include "daemon/machine_message.h"
#include "proto/thaw/node/v1/node.pb-c.h"
#include "shard/pack/pack.h"
#include "shard/rank/shape.h"
#include "topology/machine.h"

#define CLUSTER_PROTOCOL 1u
#define CLUSTER_MAX_NODES 64u
#define CLUSTER_MAX_MEMBERS 17u // of a group: the coordinator and its ranks
#define CLUSTER_MAX_STORED 64u
#define CLUSTER_PATH_BYTES 512u
#define CLUSTER_HOST_BYTES 256u
#define CLUSTER_SECRET_BYTES 32u
#define CLUSTER_DIGEST_BYTES 16u
#define CLUSTER_TEXT_BYTES 256u
#define CLUSTER_MODEL_BYTES 128u
#define CLUSTER_MAX_CLOCK_NS (30 * 1000000000ull) // that a node's clock may be off

struct cluster_budgets { // 0: chosen by the plan
	uint64_t weights_bytes, kv_bytes, workspace_bytes;
};

struct cluster_stored {
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	uint32_t files;
	uint64_t bytes;
	bool copy; // of the model's own file
};

struct cluster_facts { // what a node says of itself
	char version[32], cluster[CLUSTER_NAME_BYTES], node[CLUSTER_NAME_BYTES];
	char rack[CLUSTER_NAME_BYTES]; // "": none
	uint64_t incarnation, wall_ns;
	char address[CLUSTER_HOST_BYTES]; // "": the coordinator's own host
	char host[64], cpu_model[96];
	uint32_t packages, cores, cpus, drives, gpus, nics;
	uint64_t memory_bytes, memory_limit_bytes, memory_available_bytes;
	struct topology_bandwidths bandwidths;
	struct cluster_budgets budgets;
	struct cluster_stored store[CLUSTER_MAX_STORED];
	uint32_t store_count;
	uint64_t store_free_bytes;
	uint16_t pull_port; // 0: it gives out no files
};

struct cluster_slice {
	uint32_t first_layer, layers, tp_rank, tp_size;
};

#define CLUSTER_MAX_SOURCES 4u

struct cluster_pull_source { // a node that has a model's file
	char node[CLUSTER_NAME_BYTES], host[CLUSTER_HOST_BYTES];
	uint16_t port;
};

struct cluster_assign {
	uint64_t assignment, epoch;
	char model[CLUSTER_MODEL_BYTES], path[CLUSTER_PATH_BYTES];
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	uint64_t header_hash, header_bytes, file_bytes;
	bool check, spare;
	bool forget; // none: the model's spare layers are to be deleted
	struct cluster_slice slice;
	struct cluster_pull_source sources[CLUSTER_MAX_SOURCES];
	uint32_t sources_count;
};

struct cluster_prepared {
	uint64_t assignment;
	char store_directory[CLUSTER_PATH_BYTES], model_path[CLUSTER_PATH_BYTES];
	uint32_t port, threads;
	uint32_t cpus_count, cpus[TOPOLOGY_MAX_CPUS];
	char repaired[CLUSTER_TEXT_BYTES]; // files
	bool copy; // the model's file is there
	struct topology_bandwidths bandwidths;
};

struct cluster_member {
	char host[CLUSTER_HOST_BYTES];
	uint16_t port; // 0: nobody connects to it
};

struct cluster_start {
	uint64_t assignment, epoch;
	struct rank_shape shape;
	struct rank_place place; // of this node's rank
	struct cluster_member members[CLUSTER_MAX_MEMBERS]; // 0: the coordinator; rank_member() of shard/rank/shape.h
	uint32_t members_count;
	uint8_t secret[CLUSTER_SECRET_BYTES];
};

#define CLUSTER_CHUNK_BYTES (512u << 10) // of a model's file in one message

struct cluster_pull { // what of a file is asked for
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	struct pack_runs runs; // not beyond 2^64
	uint64_t skip_bytes; // less than all
};

struct cluster_probe {
	uint64_t probe;
	uint32_t me;
	struct cluster_member members[2]; // only 1 connects, to the port of 0
	uint8_t secret[CLUSTER_SECRET_BYTES];
};

struct cluster_probe_done {
	uint64_t probe;
	double latency_ns, bytes_per_s; // both above 0 unless
	char error[CLUSTER_TEXT_BYTES]; // says why not
};

/* All of them: -EBADMSG with text that names the field. */
int cluster_read_register(const Thaw__Node__V1__Register *m, struct cluster_facts *ret, struct base_error *e);
/* The same message: its machine with all that is in it. */
int cluster_read_machine(const Thaw__Node__V1__Register *m, struct topology_machine *ret, struct base_error *e);
int cluster_read_assign(const Thaw__Node__V1__Assign *m, struct cluster_assign *ret, struct base_error *e);
int cluster_read_prepared(const Thaw__Node__V1__Prepared *m, struct cluster_prepared *ret, struct base_error *e);
int cluster_read_start(const Thaw__Node__V1__Start *m, struct cluster_start *ret, struct base_error *e);
int cluster_read_probe(const Thaw__Node__V1__Probe *m, struct cluster_probe *ret, struct base_error *e);
int cluster_read_probe_ready(
	const Thaw__Node__V1__ProbeReady *m, uint64_t *ret_probe, uint16_t *ret_port, struct base_error *e);
int cluster_read_probe_done(const Thaw__Node__V1__ProbeDone *m, struct cluster_probe_done *ret, struct base_error *e);

/* As an assignment of number 0, with `forget`. */
int cluster_read_forget(const Thaw__Node__V1__Forget *m, struct cluster_assign *ret, struct base_error *e);
int cluster_read_pull(const Thaw__Node__V1__PullRequest *m, struct cluster_pull *ret, struct base_error *e);
/* Is it the next of so many bytes that are still to come, and whole? */
int cluster_check_chunk(const Thaw__Node__V1__PullChunk *m, uint64_t left_bytes, struct base_error *e);

/* Packed, malloced: the caller's to free. NULL: no memory. The message's one member is filled in by the caller. */
uint8_t *cluster_pack_node(Thaw__Node__V1__NodeMessage *m, size_t *ret_bytes);
uint8_t *cluster_pack_coordinator(Thaw__Node__V1__CoordinatorMessage *m, size_t *ret_bytes);
/* Pointers of what is filled in point into the plain data. */
struct cluster_register_message {
	Thaw__Node__V1__NodeMessage message;
	Thaw__Node__V1__Register reg;
	Thaw__Node__V1__Machine machine;
	Thaw__Admin__V1__Bandwidths bandwidths;
	Thaw__Node__V1__Budgets budgets;
	Thaw__Node__V1__StoredModel stored[CLUSTER_MAX_STORED], *list[CLUSTER_MAX_STORED];
	struct machine_message_lists lists;
};
void cluster_fill_register(const struct cluster_facts *f, struct cluster_register_message *ret);
/* After that: what the machine has. Without it the node joins, and nobody sees its devices. */
void cluster_fill_machine(const struct topology_machine *m, struct cluster_register_message *ret);
uint8_t *cluster_pack_assign(const struct cluster_assign *a, size_t *ret_bytes);
uint8_t *cluster_pack_forget(const char *model, const uint8_t digest[static CLUSTER_DIGEST_BYTES], size_t *ret_bytes);
uint8_t *cluster_pack_pull(const struct cluster_pull *p, size_t *ret_bytes);
uint8_t *cluster_pack_prepared(const struct cluster_prepared *p, size_t *ret_bytes);
uint8_t *cluster_pack_start(const struct cluster_start *s, size_t *ret_bytes);
uint8_t *cluster_pack_probe(const struct cluster_probe *p, size_t *ret_bytes);
