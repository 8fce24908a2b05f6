/* SPDX-License-Identifier: Apache-2.0
 * An engine without a drive that fails on purpose, by seed. The bytes of a file are a function of their place, so a
 * test knows them without reading. One engine at a time: its faults are set before the stream is made.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "offload/engine.h"

#define FAULTY_BLOCK 4096u

enum faulty_kind { FAULTY_NONE, FAULTY_EIO, FAULTY_SHORT, FAULTY_EMPTY, FAULTY_FLIP, FAULTY_STALE, FAULTY_KINDS };

struct faulty_plan {
	uint64_t seed;
	uint32_t bad_percent; // of places that fail at every read, always in the same way
	uint32_t transient_percent; // of reads that fail, though never twice in a row
	uint32_t busy_percent; // of submits that are refused with -EAGAIN
	bool corrupt; // FLIP and STALE are among the ways to fail
	bool delays; // completions wait a little
	uint64_t reads_to_death; // then the engine fails as a whole; 0: never
	uint64_t reads_to_silence; // then no read comes back until faulty_speak; 0: never
};

extern const struct offload_engine_ops faulty_ops;
void faulty_set(const struct faulty_plan *plan);
void faulty_speak(void); // ends the silence of all engines
enum faulty_kind faulty_kind_of(const struct faulty_plan *plan, uint32_t file, uint64_t offset_bytes);
void faulty_bytes(uint32_t file, uint64_t offset_bytes, uint32_t length_bytes, void *out);
