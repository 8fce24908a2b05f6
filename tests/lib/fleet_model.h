/* SPDX-License-Identifier: Apache-2.0
 * A model in stages and parts: packed, loaded by the ranks of a fleet, and asked. Failures end the cmocka test.
 */
#pragma once

#include "tests/lib/fleet.h"

struct fleet_run {
	struct rank_shape shape;
	const char *backend;
	bool cold; // the least budget, else all hot
	uint32_t batch_tokens, context_tokens;
	const struct link_ops *link; // NULL: local
};

struct fleet_model {
	char directory[64], store[80]; // removed by release
	char path[512];
	struct rank_config config[RANKS];
	struct rank_placement placement[RANKS]; // of those that were started last
};

void fleet_model_init(struct fleet_model *m, const char *gguf_path);
void fleet_model_release(struct fleet_model *m);
/* Packs what each rank needs, and starts and loads a fleet with the budgets that the ranks say they need. */
void fleet_model_start(struct fleet_model *m, const struct fleet_run *run, struct fleet *f);

/* Sequence 0, greedy, with the most log probabilities. */
void fleet_model_open(struct fleet *f, uint32_t prompt_tokens);
void fleet_model_close(struct fleet *f);
/* Sends a pass of one entry of sequence 0: its tokens from a position on; blocks in an order of their own. */
void fleet_model_pass(struct fleet *f, uint64_t number, uint32_t position, const uint32_t *tokens, uint32_t count,
	enum rank_want want);
/* The good result of a pass into f->in. */
void fleet_model_hear(struct fleet *f, uint64_t number);
/* The prompt in chunks, and then `count` tokens, each made from the one before; returns the number of the next pass. */
uint64_t fleet_model_generate(struct fleet *f, uint64_t number, const uint32_t *prompt, uint32_t prompt_tokens,
	uint32_t chunk, struct sample_result *out, uint32_t count);
