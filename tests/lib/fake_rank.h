/* SPDX-License-Identifier: Apache-2.0
 * Ranks as threads that speak the real messages over the local link, with a hash of the cached tokens for a model and
 * faults on demand. What they write goes through the block tables of the passes, so a wrong table gives wrong tokens.
 * Tests only; running out of memory aborts.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/engine.h"

#define FAKE_RANKS 4u
#define FAKE_SPANS 1500u // of the trace of each rank

struct fake_ranks {
	/* Set by the test before the engine is created. */
	uint32_t vocab, kv_blocks;
	struct rank_shape shape;
	uint64_t cold_bytes;
	const uint32_t *script; // what is drawn, by the index after the prompt; NULL: the hash
	uint32_t script_count;
	uint64_t delay_ns; // of each pass
	uint32_t refuse_starts; // start() fails that often, first
	bool fail_assign;
	bool corrupt_always; // each pass
	bool other_build; // its messages are of another version
	bool poor; // it got no io_uring, no huge pages and no O_DIRECT
	/* May be set while it runs; count passes of the last stage over all lives. */
	_Atomic uint32_t die_at, hang_at, corrupt_at, garbage_at; // 0: never
	_Atomic uint32_t io_dies_at; // from that pass to the end of that life nothing can be read
	int io_error; // what it says then; 0: -EIO
	_Atomic uint32_t refuse_at; // that pass
	_Atomic bool die_always; // at the first pass of every life
	_Atomic uint32_t mute_starts; // so many ranks that are started next say nothing, not even hello
	_Atomic bool die_next; // once, at the next pass
	_Atomic bool hold; // passes wait
	/* At each pass that carries this position of a sequence with a prompt of die_prompt tokens (0: never). */
	_Atomic uint32_t die_prompt, die_position;
	/* What happened. */
	_Atomic uint32_t passes, starts, opens, closes, largest_batch, mutes;
	_Atomic uint64_t positions;

	struct fake_rank {
		struct fake_ranks *all;
		uint32_t rank, ranks;
		bool answers;
		int fd;
		pthread_t thread;
		bool running, mute;
		int stop_pipe[2];
	} rank[FAKE_RANKS];
};

struct engine_starter fake_ranks_starter(struct fake_ranks *f);
/* The token that the hash gives after these. */
uint32_t fake_rank_next(const struct fake_ranks *f, const uint32_t *tokens, uint32_t count);
