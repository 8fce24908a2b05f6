/* SPDX-License-Identifier: Apache-2.0
 * From the daemon's snapshots to messages. The messages point into the snapshot. Any thread.
 */
#pragma once

#include "daemon/rpc/rpc_core.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"

void rpc_convert_model(const struct server_model_info *i, Thaw__V1__Model *ret_model);
/* 0, or the call has failed (NOT_FOUND) and -1. name "": the only one. */
int rpc_convert_find_model(struct rpc_call *c, const char *name, struct server_model_info *ret_info);

struct rpc_convert_load { // a load and what it points to
	Thaw__Admin__V1__ModelLoad load;
	Thaw__Admin__V1__RankLoad ranks[16], *rank_list[16];
	Thaw__Admin__V1__Latency first_token, inter_token;
};
void rpc_convert_load(const struct server_model_info *i, const struct engine_histograms *h,
	const struct topology_machine *machine, struct rpc_convert_load *out);

struct rpc_convert_placement {
	Thaw__Admin__V1__Placement placement;
	Thaw__Admin__V1__PlanInput input;
	Thaw__Admin__V1__Bandwidths bandwidths;
	Thaw__Admin__V1__Plan plan;
	Thaw__Admin__V1__Shard shards[16], *shard_list[16];
	char devices[16][16];
	char *explanation; // freed by finish
};
void rpc_convert_placement(
	const struct server_model_info *i, const struct topology_machine *machine, struct rpc_convert_placement *out);
void rpc_convert_placement_finish(struct rpc_convert_placement *p);
