/* SPDX-License-Identifier: Apache-2.0
 * A packed model in a temporary store, and ranks on it. Failures end the cmocka test.
 */
#pragma once

#include "shard/pack/pack.h"
#include "shard/rank/rank.h"

struct model_fixture {
	char store[64]; // removed by release
	char path[512];
	struct pack_result packed;
	struct rank_config config; // defaults; change before model_rank
};

/* Packs all layers of the GGUF. */
void model_fixture_init(struct model_fixture *f, const char *gguf_path);
void model_fixture_release(struct model_fixture *f);
void model_remove_tree(const char *path);

struct rank *model_rank(const struct model_fixture *f);
/* A greedy neutral sampler. */
struct sample_params model_greedy(void);

/* Runs `tokens` of sequence 0 from a position on and wants a sample after the last one. Block table: identity.
 * Returns the sampled token; logits of it are row 0 of rank_logits. */
uint32_t model_step(struct rank *r, const uint32_t *tokens, uint32_t count, uint32_t position);
