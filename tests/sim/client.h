/* SPDX-License-Identifier: Apache-2.0
 * Clients that ask for what was answered before, without faults, and take no other answer.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define SIM_KINDS 16u // of requests
#define SIM_MAX_OUTPUTS 2u
#define SIM_MAX_TOKENS 96u
#define SIM_MAX_TENSOR 4u // ranks that share layers: 1, 2 or 4

struct sim_answer {
	uint32_t count[SIM_MAX_OUTPUTS];
	uint32_t token[SIM_MAX_OUTPUTS][SIM_MAX_TOKENS];
	uint32_t logprob[SIM_MAX_OUTPUTS][SIM_MAX_TOKENS]; // bits
};

/* Answers are filled in by a run without faults (learn), and compared with in all others: known is by tensor - 1. Where
 * more than one rank was to share layers (their sums differ in the last bits), each token has the bits of one of the
 * numbers of ranks that did, and that number changes with a new group only. */
void sim_clients_init(struct sim_answer (*known)[SIM_KINDS] /* (SIM_MAX_TENSOR) */, uint32_t tensor, bool learn);
/* Asks again and again while things go wrong, `most` times at most. */
void sim_client_start(uint32_t kind, uint32_t most, uint64_t after_ns);
uint32_t sim_clients_left(void);
/* Lets answers fail for bad data: a drive lost it. */
void sim_clients_expect_loss(void);
struct sim_client_counts {
	uint32_t answers, refused, unavailable, lost, aborted;
};
extern struct sim_client_counts sim_client_counts;
