/* SPDX-License-Identifier: Apache-2.0
 * A coordinator and its ranks as threads of one process over the local link; the test is the coordinator. What fails
 * here fails the test.
 */
#pragma once

#include <pthread.h>
#include <stdbool.h>

#include "base/clock.h"
#include "shard/link/link.h"
#include "shard/rank/message.h"

#define SECONDS(n) (base_clock_now_ns() + (n)*BASE_NS_PER_SECOND)
#define STAGES 3u // at most
#define RANKS 6u // at most
#define EPOCH 5u

struct stage {
	pthread_t thread;
	int fds[1 + RANKS]; // of the group of all
	int part_fds[RANKS]; // of the group of its stage
	uint32_t members, me, parts, part;
	const struct link_ops *ops;
	int status;
	struct base_error error;
	_Atomic bool stop;
};

struct fleet { // the coordinator and its ranks
	struct rank_shape shape;
	uint32_t ranks;
	struct stage stage[RANKS];
	const struct link_ops *ops;
	struct link_group *group;
	struct rank_message_scratch *scratch;
	struct rank_message in;
	uint32_t room[1 << 16], out[1 << 14];
	uint32_t stats, progress; // messages seen on the way
};

void fleet_start(struct fleet *f, uint32_t stages, size_t ring_bytes);
void fleet_start_shape(struct fleet *f, const struct link_ops *ops, const struct rank_shape *shape, size_t ring_bytes);
void fleet_tell(struct fleet *f, uint32_t rank, const struct rank_message *m); // to one rank
void fleet_tell_all(struct fleet *f, const struct rank_message *m);
/* The next reply of a rank into f->in; STATS and PROGRESS are counted and skipped. 0 or the link's -errno. */
int fleet_hear(struct fleet *f, uint32_t rank);
void fleet_hear_stats(struct fleet *f, uint32_t rank); // the next STATS instead
uint32_t fleet_last(const struct fleet *f); // the rank that answers
/* STOP when 0 is what the ranks shall end with, else revoke. */
void fleet_stop(struct fleet *f, int expected);
