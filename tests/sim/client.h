/* SPDX-License-Identifier: Apache-2.0
 * Clients that ask for what was answered before, without faults, and take no other answer.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SIM_KINDS 16u // of requests
#define SIM_MAX_OUTPUTS 2u
#define SIM_MAX_TOKENS 96u

struct sim_answer {
	bool known;
	uint32_t count[SIM_MAX_OUTPUTS];
	uint32_t token[SIM_MAX_OUTPUTS][SIM_MAX_TOKENS];
	uint32_t logprob[SIM_MAX_OUTPUTS][SIM_MAX_TOKENS]; // bits
};

/* Answers are filled in by a run without faults (learn), and compared with in all others. */
void sim_clients_init(struct sim_answer *answers /* (SIM_KINDS) */, bool learn);
/* Asks again and again while things go wrong, `most` times at most. */
void sim_client_start(uint32_t kind, uint32_t most, uint64_t after_ns);
uint32_t sim_clients_left(void);
/* Lets answers fail for bad data: a drive lost it. */
void sim_clients_expect_loss(void);
struct sim_client_counts {
	uint32_t answers, refused, unavailable, lost, aborted;
};
extern struct sim_client_counts sim_client_counts;
