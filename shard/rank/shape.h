/* SPDX-License-Identifier: Apache-2.0
 * The shape of a group of ranks: how many stages there are, and how many ranks share the layers of each. Ranks are
 * numbered stage by stage, all parts of a stage and then those of the next; a rank is member 1 + rank of the group,
 * member 0 the coordinator.
 *
 * All parts of a stage have the same hidden rows at its end, so any of them may send them on: part j of the next stage
 * has them from part j % n of the n before it. Where both stages have as many parts that is its own part; from a stage
 * of fewer a part sends to several, and from one of more some send to none. Pure functions, any thread; but for _check,
 * _even and _parse, shapes are good ones, and ranks and places are in them.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shard/link/link.h"

#define RANK_MAX_RANKS (LINK_MAX_MEMBERS - 1)
#define RANK_MAX_PARTS 16u // of a stage
#define RANK_SHAPE_TEXT_BYTES (3 * RANK_MAX_RANKS)

struct rank_shape {
	uint32_t stages;
	uint8_t parts[RANK_MAX_RANKS]; // (stages): 1 to RANK_MAX_PARTS; 0 behind them
};

struct rank_place {
	uint32_t stage, part;
};

static inline uint32_t rank_member(uint32_t rank)
{
	return 1 + rank;
}

/* -EINVAL: it has no stage, a stage without parts or with too many, or more than `most` ranks. */
int rank_shape_check(const struct rank_shape *s, uint32_t most);
/* All stages with as many parts. -EINVAL. */
int rank_shape_even(uint32_t stages, uint32_t parts, struct rank_shape *ret_shape);

uint32_t rank_shape_ranks(const struct rank_shape *s);
uint32_t rank_shape_rank(const struct rank_shape *s, struct rank_place place);
struct rank_place rank_shape_place(const struct rank_shape *s, uint32_t rank);
uint32_t rank_shape_answers(const struct rank_shape *s); // the rank that has the results: the first of the last stage
/* The rank that a part of a stage, not of the first one, has its hidden rows from. */
uint32_t rank_shape_sender(const struct rank_shape *s, struct rank_place to);
/* The ranks of the next stage that have them from this one, in their order; returns how many. */
uint32_t rank_shape_receivers(const struct rank_shape *s, uint32_t rank, uint32_t ret_ranks[static RANK_MAX_PARTS]);

/* "1,3": parts of each stage. */
const char *rank_shape_print(const struct rank_shape *s, char out[static RANK_SHAPE_TEXT_BYTES]);
int rank_shape_parse(const char *text, struct rank_shape *ret_shape); // -EINVAL
