/* SPDX-License-Identifier: Apache-2.0
 * The share of one device: from sizes, bandwidths and budgets to hot bytes, KV blocks and a prediction, or to a refusal
 * with the bytes that are short and what would help. A pure function: no I/O, no clock.
 *
 * The bound of a pass with n positions (docs/ARCHITECTURE.md "the bound"):
 *   T = max( (W-R)/B, (R + 2(W-R))/M, n*macs/C )      and with a card also (W-Rcard)/PCIe
 *
 * Which layers a device has, and with whom it shares them, is decided by topology/fleet/fleet.h, which asks this
 * function for each device and range that it considers; a single machine is a fleet of one.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "topology/machine.h"

enum topology_resource {
	TOPOLOGY_RESOURCE_DISK,
	TOPOLOGY_RESOURCE_MEMORY,
	TOPOLOGY_RESOURCE_COMPUTE,
	TOPOLOGY_RESOURCE_PCIE,
	TOPOLOGY_RESOURCE_LINK, // between devices: of a fleet only
};

struct topology_plan_input {
	uint64_t pass_bytes; // W
	uint64_t weights_all_bytes, weights_min_bytes; // see rank_needs
	uint64_t slots_bytes; // taken by the stream when anything is cold; at least, with slots_share
	uint64_t slots_share, slots_most_bytes; // it takes 1/share of the weights budget, up to most; 0: slots_bytes
	uint64_t rows_bytes; // buffers for rows of an embedding, unless all of it is hot
	uint64_t workspace_bytes;
	uint64_t kv_block_bytes;
	uint32_t kv_block_tokens;
	uint32_t context_tokens, sequences;
	uint64_t token_macs;
	uint64_t weights_budget_bytes, kv_budget_bytes,
		workspace_budget_bytes; // 0: what is left of memory_bytes; what is beyond the model's use does not count
	uint64_t memory_bytes; // that may be used in all
	/* Of a card: memory of its host for weights that do not fit on it, and the way there; 0: no card. */
	uint64_t host_memory_bytes;
	double pcie_bytes_per_s;
	struct topology_bandwidths bandwidths;
};

struct topology_plan {
	uint64_t epoch;
	uint64_t hot_bytes, cold_bytes; // of pass_bytes; what lies in a card's host is neither
	uint64_t host_bytes; // of pass_bytes, in the host's memory, read over PCIe in each pass
	uint64_t slots_bytes; // of weights_bytes, for the stream
	uint64_t weights_bytes, kv_bytes, workspace_bytes; // budgets as decided
	uint32_t kv_blocks;
	double pass_ns_disk, pass_ns_memory, token_ns_compute, pass_ns_pcie; // parts of the bound; 0 when not measured
	double tokens_per_s_one, tokens_per_s_full; // predicted: one stream, `sequences` streams
	enum topology_resource binding_one, binding_full;
	char lift[256]; // what would lift the binding resource
};

/* -ENOMEM: it does not fit; e names each budget, the bytes short, and the changes that would fit. */
int topology_plan_build(const struct topology_plan_input *input, struct topology_plan *ret_plan, struct base_error *e);
/* The same without the text of `lift`, which takes most of the time. */
int topology_plan_place(const struct topology_plan_input *input, struct topology_plan *ret_plan, struct base_error *e);
/* The bound for n positions and which resource it is. */
double topology_plan_bound_ns(const struct topology_plan *p, uint32_t positions, enum topology_resource *ret_binding);
/* How long nothing may be heard of a rank that loads or runs a pass of n positions: `least`, or more where the plan
 * itself predicts long silences: eight times the bound, and a second for each GB that has to become resident. */
uint64_t topology_plan_patience_ns(const struct topology_plan *p, uint32_t positions, uint64_t least_ns);
void topology_plan_explain(const struct topology_plan_input *input, const struct topology_plan *p, FILE *out);
const char *topology_resource_name(enum topology_resource r);
