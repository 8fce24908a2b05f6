/* SPDX-License-Identifier: Apache-2.0
 * Messages between the coordinator and its ranks, and their encoding: little-endian, length-checked, versioned.
 *
 * Coordinator -> rank (tag RANK_TAG_COMMAND): ASSIGN once, then OPEN / CLOSE of sequences and PASS, TRACE, in order;
 * STOP. Rank -> coordinator (tag RANK_TAG_REPLY): PROGRESS and then READY or FAILED after ASSIGN; a RESULT for each
 * PASS (last stage, its first rank), STATS about once a second and after STATS_REQUEST, a TRACE_PIECE after each TRACE
 * that reads. Stage -> next stage, each rank to its receivers of shape.h (tag RANK_TAG_HIDDEN): HIDDEN for each pass,
 * with what went wrong so far; after it, when its status is 0, a second message with the hidden rows, raw float32
 * (tokens, width). Decoding never trusts: counts and indices are checked, nothing may follow the last field, and
 * padding is zero, so that what decodes has one encoding. Pure functions on the caller's memory: any thread.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "shard/rank/rank.h"
#include "shard/rank/shape.h"

#define RANK_MESSAGE_VERSION 5u // a test fails when the format changes and this does not
#define RANK_TAG_COMMAND 1u
#define RANK_TAG_REPLY 2u
#define RANK_TAG_HIDDEN 3u
#define RANK_MAX_MESSAGE_BYTES (16u << 20)
#define RANK_TRACE_PIECE_EVENTS 1024u // of a TRACE_PIECE: 32 KiB

enum rank_message_type {
	RANK_MESSAGE_ASSIGN = 1,
	RANK_MESSAGE_OPEN,
	RANK_MESSAGE_CLOSE,
	RANK_MESSAGE_PASS,
	RANK_MESSAGE_STATS_REQUEST,
	RANK_MESSAGE_STOP,
	RANK_MESSAGE_TRACE,
	RANK_MESSAGE_PROGRESS = 64,
	RANK_MESSAGE_READY,
	RANK_MESSAGE_FAILED,
	RANK_MESSAGE_RESULT,
	RANK_MESSAGE_STATS,
	RANK_MESSAGE_TRACE_PIECE,
	RANK_MESSAGE_HIDDEN = 128,
};

const char *rank_message_name(enum rank_message_type type); // "PASS"; "?" for others

struct rank_assign {
	uint64_t epoch;
	/* Of all ranks of the group; this one is part config.slice.tp_rank of its stage, and the parts of a stage have
	 * a group of their own, in their order. */
	struct rank_shape shape;
	uint32_t stage;
	uint64_t patience_ns; // that a rank waits for the others of its stage; 0: without end
	struct rank_config config;
};

struct rank_open {
	uint32_t sequence, prompt_tokens;
	struct sample_params params;
};

struct rank_outcome { // of a pass, up to and with the stage that sends it
	uint64_t pass;
	int status; // 0, or -EINVAL with text in e: the pass was not well-formed
	// with status 0: the file, layer and place of the first cold data that failed
	struct base_error e;
	uint32_t entries_count; // 0 when status is not
	const int32_t *entry_status; // the first stage's failure counts
	uint32_t outputs_count; // RESULT only
	const struct rank_output *outputs;
	uint64_t total_ns; // of the slowest stage
	uint64_t stall_ns, cold_bytes; // of all stages
};

enum rank_trace_step { RANK_TRACE_START, RANK_TRACE_STOP, RANK_TRACE_READ, RANK_TRACE_END };
struct rank_trace {
	enum rank_trace_step step; // START takes the memory, STOP keeps it to be read, END gives it back
	uint32_t first; // READ: the piece from this span on
};

struct rank_trace_piece {
	uint32_t first, total; // spans
	uint64_t lost; // that were overwritten
	uint64_t now_ns, wall_ns; // this host's clocks at the same moment: the times are of the first
	uint64_t boot; // the same on two ranks that share the first clock
	char host[64];
	uint32_t events_count;
	const struct base_trace_event *events;
};

/* Decoded arrays point into the message's bytes or into the scratch: valid until the next decode with the same. */
struct rank_message {
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
		struct rank_outcome result; // RESULT, and HIDDEN without outputs
		struct rank_stats stats;
		struct rank_trace trace;
		struct rank_trace_piece trace_piece;
	};
};

/* Decoded arrays that need converting: taken once, for the largest message. */
struct rank_message_scratch;
int rank_message_scratch_create(struct rank_message_scratch **ret_scratch);
void rank_message_scratch_destroy(struct rank_message_scratch *s);

/* Bytes written to out; -ENOBUFS, or -EINVAL when the message would not decode. */
int64_t rank_message_encode(const struct rank_message *m, void *out, size_t room_bytes);
/* data is 4-byte-aligned. -EBADMSG with text that names the field; -EPROTONOSUPPORT: from an end of another version. */
int rank_message_decode(const void *data, size_t bytes, struct rank_message_scratch *scratch,
	struct rank_message *ret_message, struct base_error *e);
