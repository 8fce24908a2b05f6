/* SPDX-License-Identifier: Apache-2.0
 * What libc.c asks the rest of the simulator.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct sim_drive_fault { // of one read
	uint64_t delay_ns;
	int error; // errno, 0: none
	size_t bytes; // less than asked for; 0: all
	bool flip; // one bit is another
};
void sim_drive_read(uint32_t node, size_t bytes, struct sim_drive_fault *ret_fault);
bool sim_file_there(uint32_t node, const char *path);
