/* SPDX-License-Identifier: Apache-2.0
 * What topology/fleet/fleet.h wants to know of a model, summed over its program and the layout of its store files, so
 * that the planner's bytes are the rank's. Any thread.
 */
#pragma once

#include "shard/rank/rank.h"
#include "topology/fleet/fleet.h"

/* Of a pass beside its stages: scheduling, sampling and the way back, with ranks on one host. */
#define PLAN_MODEL_PASS_NS 50e3

struct plan_model {
	struct fleet_model sizes; // its layers are below
	struct fleet_layer *layers;
};

/* config: batch_tokens, logits_rows, sequences, context_tokens, kv_type and slots count; its slice does not.
 * process_bytes: what a rank's process takes beside its budgets. -ENOMEM, -EINVAL with the reason. */
int plan_model_init(const struct program *p, const struct rank_config *config, uint64_t process_bytes,
	struct plan_model *ret_model, struct base_error *e);
void plan_model_finish(struct plan_model *m);
