/* SPDX-License-Identifier: Apache-2.0
 * A node: a whole server of daemon/server.h as thawd's main runs it, its ranks as fibers, and what it finds of its
 * machine.
 */
#pragma once

#include "daemon/server.h"
#include "tests/sim/net.h"

#define SIM_CLUSTER "sim"
#define SIM_MODEL "tiny"
#define SIM_CONTEXT_TOKENS 160u
#define SIM_COLD_BYTES (4200u << 10) // of weights on a node: two huge pages are the least for a stream

struct sim_setup { // of a run
	const char *directory; // stores are made below
	const char *model_path; // larger than SIM_COLD_BYTES on two nodes, if cold
	uint32_t nodes;
	bool head_computes, copies; // copies: of the model on each node, else layers are pulled from the head
	const char *device_map;
	bool cold; // weights are read in every pass
	uint32_t tensor; // ranks that share each layer, where there are enough nodes
	uint32_t replicas; // store.replicas
	uint64_t spare_ns; // that a group runs before its spares are asked for
	uint64_t plan_ns; // that a plan takes, at most
	uint32_t max_sequences, batch_tokens;
	uint64_t kv_bytes;
	int null_fd; // what is logged goes there, unless it is to be seen
};

void sim_nodes_init(const struct sim_setup *setup);
void sim_node_start(uint32_t node); // -> up, or it fails the run
void sim_node_stop(uint32_t node); // in good order: drains, leaves
void sim_node_kill(uint32_t node, enum sim_death how); // returns once nothing of it is left to hold its store
bool sim_node_up(uint32_t node);
bool sim_node_dark(uint32_t node); // its host is gone
struct sim_place sim_node_place(uint32_t node); // of its present life
uint32_t sim_node_at(const char *address); // HOST:PORT
struct cluster_coordinator *sim_node_coordinator(uint32_t node);
/* NULL while node 0 has none. Counts as a call until sim_server_release. */
struct server *sim_server_acquire(uint32_t *ret_life);
void sim_server_release(uint32_t life);

uint32_t sim_ranks(void); // that run on nodes that live
bool sim_rank_kill(uint32_t which); // as kill -9
/* SIGSTOP; returns what names it to the others. */
uint64_t sim_rank_stop(uint32_t which, uint32_t *ret_node);
bool sim_rank_stopped(uint64_t id); // it is, still: its node has not ended it
void sim_rank_continue(uint64_t id); // SIGCONT, if it is there
/* Of groups of ranks that were started: how many, and a bit for each number of ranks that shared their layers. */
uint32_t sim_groups(void);
uint32_t sim_group_parts(void);

/* Drives, clocks and paths are as they should be from now on. */
struct sim_drives {
	uint32_t error, cut, flip, slow; // of a thousand reads
	uint64_t slow_ns;
};
extern struct sim_drives sim_drives[SIM_MAX_NODES];
extern uint64_t sim_drive_faults; // reads that were not what was asked for
