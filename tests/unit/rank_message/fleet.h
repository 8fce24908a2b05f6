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
#define EPOCH 5u

struct stage {
	pthread_t thread;
	int fds[1 + STAGES];
	uint32_t members, me;
	int status;
	struct base_error error;
	_Atomic bool stop;
};

struct fleet { // the coordinator and its ranks
	uint32_t stages;
	struct stage stage[STAGES];
	struct link_group *group;
	struct rank_message_scratch *scratch;
	struct rank_message in;
	uint32_t room[1 << 16], out[1 << 14];
	uint32_t stats, progress; // messages seen on the way
};

void fleet_start(struct fleet *f, uint32_t stages, size_t ring_bytes);
void fleet_tell(struct fleet *f, uint32_t stage, const struct rank_message *m); // to one stage
void fleet_tell_all(struct fleet *f, const struct rank_message *m);
/* The next reply of a stage into f->in; STATS and PROGRESS are counted and skipped. 0 or the link's -errno. */
int fleet_hear(struct fleet *f, uint32_t stage);
/* STOP when 0 is what the ranks shall end with, else revoke. */
void fleet_stop(struct fleet *f, int expected);
