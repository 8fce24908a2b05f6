/* SPDX-License-Identifier: Apache-2.0
 * Messages between the coordinator and its ranks, and their encoding: little-endian, length-checked, versioned.
 *
 * Coordinator -> rank (tag RANK_TAG_COMMAND): ASSIGN once, then OPEN / CLOSE of sequences and PASS, in order; STOP.
 * Rank -> coordinator (tag RANK_TAG_REPLY): PROGRESS and then READY or FAILED after ASSIGN; a RESULT for each PASS (last stage),
 * STATS about once a second and after STATS_REQUEST.
 * Stage -> next stage (tag RANK_TAG_HIDDEN): hidden rows of a pass, raw float32.
 * Decoding never trusts: counts are bounded before use and arrays point into the message.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "shard/rank/rank.h"

#define RANK_MESSAGE_VERSION 1u
#define RANK_TAG_COMMAND 1u
#define RANK_TAG_REPLY 2u
#define RANK_TAG_HIDDEN 3u
#define RANK_MAX_MESSAGE_BYTES (16u << 20)

enum rank_message_type {
	RANK_MESSAGE_ASSIGN = 1,
	RANK_MESSAGE_OPEN,
	RANK_MESSAGE_CLOSE,
	RANK_MESSAGE_PASS,
	RANK_MESSAGE_STATS_REQUEST,
	RANK_MESSAGE_STOP,
	RANK_MESSAGE_PROGRESS = 64,
	RANK_MESSAGE_READY,
	RANK_MESSAGE_FAILED,
	RANK_MESSAGE_RESULT,
	RANK_MESSAGE_STATS,
};

struct rank_assign {
	uint64_t epoch;
	uint32_t stage, stages; // member 0 of the group is the coordinator, member 1 + stage the ranks
	struct rank_config config;
};

struct rank_open {
	uint32_t sequence, prompt_tokens;
	struct sample_params params;
};

struct rank_message { // decoded; arrays point into scratch, valid until the next decode with it
	enum rank_message_type type;
	union {
		struct rank_assign assign;
		struct rank_open open;
		uint32_t close; // sequence
		struct rank_pass pass;
		struct {
			uint64_t done_bytes, total_bytes;
		} progress;
		struct rank_placement ready;
		struct base_error failed; // ASSIGN could not be done: text and -errno
		struct {
			uint64_t pass;
			int status; // 0, or -EINVAL with text in e: the pass was not well-formed
			struct base_error e;
			uint32_t entries_count;
			const int32_t *entry_status;
			uint32_t outputs_count;
			const struct rank_output *outputs;
			uint64_t total_ns, stall_ns, cold_bytes;
		} result;
		struct rank_stats stats;
	};
};

/* Encoding: bytes written to out, or -ENOBUFS. Decoding: -EBADMSG with text. The scratch holds decoded arrays. */
struct rank_message_scratch;
int rank_message_scratch_create(struct rank_message_scratch **ret_scratch);
void rank_message_scratch_destroy(struct rank_message_scratch *s);
int64_t rank_message_encode(const struct rank_message *m, void *out, size_t room_bytes);
int rank_message_decode(const void *data, size_t bytes, struct rank_message_scratch *scratch,
	struct rank_message *ret_message, struct base_error *e);
