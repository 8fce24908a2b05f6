/* SPDX-License-Identifier: Apache-2.0
 * The planner: which device of which host has which layers, how many share them, how much of them stays hot, and what
 * comes of it. A pure function of sizes, devices, measured bandwidths, budgets and constraints: no I/O, no clock, the
 * same plan for the same input. Any thread. A single machine is a fleet of one.
 *
 * How to call it:
 *   struct fleet_input in = {.model = &sizes, .devices = d, .devices_count = n, .links = {...}, .sequences = 8};
 *   struct fleet_plan plan;
 *   int r = fleet_plan_build(&in, &plan, &error);        // -ENOMEM: does not fit, the text says what would help
 *   for each plan.ranks[i]: plan.stages[rank.stage].first_layer and .layers, rank.tp_rank of .tp, devices[rank.device],
 *       rank.share.weights_bytes, plan.kv_blocks * rank.kv_block_bytes, rank.share.workspace_bytes are its budgets
 *   fleet_plan_finish(&plan);
 * The sizes of a model come from its program: daemon/plan_model.h. A rate that is 0 was not measured: it is planned
 * with as if it were the least that is known of the other devices, and plan.measured is then false, with predictions of
 * 0.
 *
 * What is searched: every way to cut the layers into runs, each run on one device or on a tensor-parallel group of
 * equal devices that links connect, the devices in any order, none or some of them left out; micro-batches from 1 to
 * the batch. The search is exact (dynamic programming) over runs of layers always, and over the order of devices where
 * the devices fall into few kinds; else several orders are tried and improved by swaps, and plan.order_exact is false.
 * Of more than FLEET_SEARCHED devices of many kinds, only the fastest are searched.
 *
 * What it costs (ns), for a stage of cold bytes c, ring S, drive B, and a pass of n positions:
 *   work     w = max(memory, PCIe, n * compute) + allreduces      (largest of the ranks of the stage)
 *   service  t = max(c / B, w)               the least time between two passes through it
 *   active   a = max((c - S) / B, w)         what a pass takes that finds the ring full
 * With k micro-batches of n positions on their way, a round of all of them takes
 *   period = max(k * max t, sum(a) + sum(hops) + overhead)
 * which is exact for even stages without jitter (topology/fleet/simulate.h plays it), and 1e9 / period tokens/s for
 * each sequence.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "topology/plan.h"

#define FLEET_DEVICES 16384u // most
#define FLEET_SEARCHED 64u
#define FLEET_TP 16u // most ranks of a stage
#define FLEET_LAYERS 1024u
#define FLEET_ENTRIES 256u // of an explicit map, and of pins
#define FLEET_NAME_BYTES 64u

/* ---- the model: sizes from the program ---- */

struct fleet_layer {
	uint64_t attention_bytes, mlp_bytes; // matrices: cut by KV heads, by blocks of columns
	uint64_t whole_bytes; // vectors: every rank of the stage has them, always hot
	uint64_t macs; // multiply-adds for a position
};

struct fleet_model {
	const struct fleet_layer *layers; // (layers_count)
	uint32_t layers_count;
	struct fleet_layer head; // of the last stage; its matrix in mlp_bytes
	uint64_t lookup_bytes; // of the first stage: the matrix that rows are looked up in
	bool tied; // it is the head's: a stage that has both holds it once, and its ranks have parts of it
	uint64_t rows_bytes; // buffers for rows of it
	uint64_t extent_bytes; // longest read
	uint64_t slots_most_bytes; // the ring takes 1/slots_share of the weights budget, at most this much
	uint32_t slots_share;
	uint64_t workspace_bytes, process_bytes; // of each rank; process: beside the budgets' contents
	uint64_t tp_workspace_bytes[FLEET_TP + 1]; // of a rank of so many; 0: workspace_bytes
	uint64_t kv_block_bytes; // of one layer
	uint32_t kv_block_tokens, context_tokens;
	uint32_t width, vocab; // activations are floats
	uint32_t heads, kv_heads, head_dim;
	uint32_t block_columns; // of the matrices that are cut by columns: a cut is at a block's border
	uint32_t mlp_blocks; // units that the MLP's width can be cut into
};

/* ---- the cluster ---- */

struct fleet_link { // of a message: latency + bytes / bandwidth; measured. bandwidth 0: there is none
	double latency_ns, bytes_per_s;
};
enum fleet_link_class { // between two devices; the nearest that holds
	FLEET_LINK_HOST, // shared memory
	FLEET_LINK_RACK,
	FLEET_LINK_CLUSTER,
	FLEET_LINK_CLASSES,
};
const char *fleet_link_class_name(enum fleet_link_class c); // host, rack, cluster

struct fleet_device { // what one rank computes on; CPUs of a host, a NUMA node of it, or a card
	char name[FLEET_NAME_BYTES]; // one in the fleet: "node-a", "node-a/gpu0"
	char host[FLEET_NAME_BYTES], rack[FLEET_NAME_BYTES];
	bool card; // memory_bytes is its own; host_memory_bytes of its host hold what does not fit
	uint64_t memory_bytes; // that may be used
	uint64_t reserve_bytes; // of it, left free
	uint64_t host_memory_bytes;
	double pcie_bytes_per_s;
	uint64_t weights_budget_bytes, kv_budget_bytes,
		workspace_budget_bytes; // 0: what is left, as in topology/plan.h
	struct topology_bandwidths bandwidths; // its part of what it shares with others
};

/* ---- constraints ---- */

enum fleet_map { // device_map
	FLEET_MAP_AUTO,
	FLEET_MAP_BALANCED, // every device in the order given, with even use of memory
	FLEET_MAP_SEQUENTIAL, // each device full before the next one is used
	FLEET_MAP_EXPLICIT,
};
int fleet_map_find(const char *name, enum fleet_map *ret_map); // -EINVAL
const char *fleet_map_name(enum fleet_map m);

enum fleet_module { FLEET_MODULE_LAYERS, FLEET_MODULE_EMBED, FLEET_MODULE_HEAD };
enum fleet_tier { FLEET_TIER_AUTO, FLEET_TIER_DEVICE, FLEET_TIER_HOST, FLEET_TIER_NVME };

struct fleet_map_entry { // modules and where they go; a pin of mode auto is one too, with one device
	enum fleet_module module;
	uint32_t first_layer, last_layer;
	uint32_t devices[FLEET_TP], devices_count; // more than one: tensor parallel
	enum fleet_tier tier; // nvme: streamed. device, host: hot there, or it is refused
};
/* "embed", "head", "layers.7", "layers.0-9", also "model.layers.7", "model.embed_tokens", "lm_head", and "" for all. */
int fleet_map_parse_modules(const char *text, uint32_t layers, struct fleet_map_entry *ret, struct base_error *e);
int fleet_map_parse_tier(const char *text, enum fleet_tier *ret_tier, struct base_error *e);
const char *fleet_tier_name(enum fleet_tier t);

struct fleet_input;
/* What is wrong with the entries as an explicit map, as far as it shows without sizes; input: devices and entries.
 * -EINVAL, by name. */
int fleet_map_check_layers(const struct fleet_input *input, uint32_t layers, struct base_error *e);

enum fleet_objective { FLEET_OBJECTIVE_FULL, FLEET_OBJECTIVE_ONE }; // tokens/s of a full batch, of one stream

struct fleet_input {
	const struct fleet_model *model;
	const struct fleet_device *devices;
	uint32_t devices_count;
	struct fleet_link links[FLEET_LINK_CLASSES];
	enum fleet_map map;
	const struct fleet_map_entry *entries; // explicit: the map; else pins
	uint32_t entries_count;
	enum fleet_objective objective;
	uint32_t sequences; // of a full batch
	uint32_t tp_least; // ranks of a stage, at least; 0: 1. balanced and sequential give every stage so many
	uint32_t tp_most; // at most; 0: FLEET_TP, 1: no tensor parallelism
	bool tp_even; // fleet_plan_build_levelled: as many in every stage
	uint32_t micro_batches_most; // 0: chosen
	double overhead_ns; // of a pass beside the stages: scheduling, sampling, the way back
};

/* ---- the plan ---- */

struct fleet_rank {
	uint32_t device, stage, tp_rank;
	uint64_t kv_block_bytes; // of its layers and heads
	struct topology_plan share; // its budgets, and its part of the bound
};

struct fleet_stage {
	uint32_t first_layer, layers, tp, first_rank;
	enum fleet_link_class link; // among its ranks
	enum fleet_link_class link_next; // to the next stage
	double hop_ns, hop_busy_ns; // to the next stage, one position: in all, and of it what keeps the link busy
	double allreduce_ns; // of a pass of one position, all of its layers
};

struct fleet_timing { // of one way to run the plan
	uint32_t micro_batches, positions; // k and n
	double period_ns, tokens_per_s; // 0: not measured
	enum topology_resource binding;
	uint32_t binding_stage;
};

struct fleet_alternative { // what was not chosen
	char name[96], reason[192];
	double tokens_per_s_one, tokens_per_s_full; // 0: impossible, or not measured
};
#define FLEET_ALTERNATIVES 16u

struct fleet_plan {
	uint64_t epoch;
	struct fleet_stage *stages; // (stages_count), in the order of the layers
	struct fleet_rank *ranks; // (ranks_count), stage by stage
	uint32_t stages_count, ranks_count;
	uint32_t kv_blocks;
	struct fleet_timing one, full;
	uint32_t left_out_count;
	bool order_exact, measured;
	char lift[256]; // what would lift the binding resource of `full`
	struct fleet_alternative alternatives[FLEET_ALTERNATIVES];
	uint32_t alternatives_count;
};

/* -ENOMEM: does not fit; e names the bytes short and what would fit. -EINVAL: bad input, by name. */
int fleet_plan_build(const struct fleet_input *input, struct fleet_plan *ret_plan, struct base_error *e);
void fleet_plan_finish(struct fleet_plan *p); // half-built and zero are fine
/* For devices that were measured, of which no two are equal: the best plan with tp_least to tp_most ranks in a stage,
 * -EINVAL if the model cannot be cut by tp_least. More than one have to bring a fifth against one in every stage. Devices
 * that differ by less than twice may share layers, others where there are too few of these, and count with the least that
 * those have that share; ret_devices (devices_count): as they were planned with, for what is said of the plan. An explicit
 * map says who shares, and its devices count as they are. */
int fleet_plan_build_levelled(const struct fleet_input *input, struct fleet_device *ret_devices,
	struct fleet_plan *ret_plan, struct base_error *e);
/* As fleet_plan_build_levelled, of devices in several racks: where the map is free, parts of a stage are of one rack,
 * unless leaving racks aside, where every link counts as the slowest of all classes, brings a fifth; or it is all that
 * fits. ret_devices then have no rack, and input's links are to be told as that slowest one, of the class cluster. */
int fleet_plan_build_racks(const struct fleet_input *input, struct fleet_device *ret_devices,
	struct fleet_plan *ret_plan, struct base_error *e);

/* Why a stage of so many ranks is impossible for the model, into reason; true if it is possible. */
bool fleet_tp_possible(const struct fleet_model *m, uint32_t ranks, char *reason, size_t room);
/* A placement of the caller's: devices of each stage in order, its layers; timings and shares as build would have
 * them. */
int fleet_plan_evaluate(const struct fleet_input *input, const struct fleet_map_entry *stages, uint32_t stages_count,
	struct fleet_plan *ret_plan, struct base_error *e);
/* The timing of k micro-batches of n positions. */
void fleet_plan_time(const struct fleet_input *input, const struct fleet_plan *p, uint32_t micro_batches,
	uint32_t positions, struct fleet_timing *ret);

/* The plan as of one machine: sizes, budgets (0 if one of them is), memory and rates of its ranks added up. -ENOMEM. */
int fleet_plan_sum(const struct fleet_input *input, const struct fleet_plan *p, struct topology_plan_input *ret_input,
	struct topology_plan *ret_plan);

/* Text: the table of ranks, timings, alternatives, who is left out and why. */
void fleet_plan_explain(const struct fleet_input *input, const struct fleet_plan *p, FILE *out);
