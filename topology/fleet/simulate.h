/* SPDX-License-Identifier: Apache-2.0
 * A plan played as events: micro-batches that go round through stages, hops and back; in each rank extents that are
 * read one after the other into the slots of a ring, across the borders of passes, and freed when they were computed
 * with; allreduces at which the ranks of a stage wait for each other. No randomness: the same plan, the same events.
 * Where everything is hot the period is that of fleet_plan_time exactly; with cold weights it differs by the grain of
 * extents.
 *
 * What it leaves out: ranks that share a drive take turns in the real world and have their part of its rate here;
 * memory bandwidth that reads and kernels compete for is in the plan's own figures. Pure: any thread.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "topology/fleet/fleet.h"

#define FLEET_SIMULATE_ROUNDS 4096u // most
#define FLEET_SIMULATE_STEPS 200000000ull // reads and computations, about; longer reads are simulated beyond

struct fleet_simulate_stage { // shares of the time that is measured, 0 to 1
	double busy; // computing, or waiting for the drive with a micro-batch at hand
	double stall; // of it, waiting for the drive
	double bubble; // no micro-batch at hand
	double drive, link; // of the busiest rank's drive; of the hop to the next stage
};

struct fleet_simulation {
	uint32_t micro_batches, positions, rounds; // rounds: of all micro-batches, half of them measured
	double period_ns, tokens_per_s;
	double predicted_ns; // the closed form
	uint64_t events, reads, extent_bytes; // extent: the largest that was simulated
	struct fleet_simulate_stage *stages; // (stages_count of the plan)
};

/* rounds 0: 64. -ENOMEM, -EINVAL for rounds or micro-batches that are out of range. */
int fleet_simulate(const struct fleet_input *in, const struct fleet_plan *p, uint32_t micro_batches, uint32_t positions,
	uint32_t rounds, struct fleet_simulation *ret, struct base_error *e);
void fleet_simulate_finish(struct fleet_simulation *s);
void fleet_simulate_print(
	const struct fleet_input *in, const struct fleet_plan *p, const struct fleet_simulation *s, FILE *out);
