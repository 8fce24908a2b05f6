/* SPDX-License-Identifier: Apache-2.0
 * What goes wrong, by seed: a list of faults with their times, each mended after a while.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct sim_setup;
void sim_fate_start(
	const struct sim_setup *setup, uint32_t faults, const char *only); // only: kinds whose names begin so, or NULL
bool sim_fate_over(void);
void sim_fate_wait(void); // for the end of the last one; everything is well from then on
