/* SPDX-License-Identifier: Apache-2.0
 * A rank: one device running one shard. This is the executor: it loads the hot extents, streams the cold ones and
 * walks the program for each pass. No process, link or message here (rank/serve.h does that), so a test calls it
 * directly.
 *
 * Threads: the caller is the stage thread for every call but rank_get_stats and rank_trace (any thread). It owns the
 * backend, KV memory, workspace and stream; all memory is taken in create, within the budgets, or create fails with the
 * bytes that are short.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/trace.h"
#include "offload/stream.h"
#include "shard/kv/kv.h"
#include "shard/link/link.h"
#include "shard/pack/pack.h"
#include "shard/program/program.h"
#include "shard/sample/sample.h"
#include "topology/machine.h"

#define RANK_MAX_SEQUENCES 256u
#define RANK_MAX_BATCH_TOKENS 4096u

struct rank_config {
	char store_directory[512]; // STORE/<digest>
	char model_path[512]; // the GGUF: metadata for the program
	uint64_t header_hash; // of the GGUF that was packed (format_gguf_header_hash): -ESTALE for another; 0: any
	uint8_t digest[16];
	struct pack_slice slice;
	char backend[16]; // "cpu", "reference"
	char engine[16]; // "auto", "uring", "sync"
	uint64_t weights_budget_bytes; // hot extents + stream slots + small tensors
	uint64_t workspace_budget_bytes; // activations, logits, sampling
	uint64_t kv_budget_bytes;
	enum kv_type kv_type;
	uint32_t batch_tokens; // most token positions of a pass
	uint32_t logits_rows; // most positions of a pass that logits are wanted of
	uint32_t sequences; // most sequences open at once
	uint32_t context_tokens; // most positions of a sequence
	uint32_t slots, depth; // of the stream; 0: chosen
	uint32_t verify_every;
	uint32_t threads; // 0: one for each CPU
	uint32_t cpus_count;
	uint32_t cpus[TOPOLOGY_MAX_CPUS];
};

/* What rank_create will need, from the program alone: for the planner and for refusals with numbers. */
struct rank_needs {
	uint64_t weights_all_bytes; // everything hot, no stream
	uint64_t
		slots_bytes; // of the stream, part of the budget when anything is cold; for config.weights_budget_bytes
	uint64_t weights_min_bytes; // the least budget that runs: pinned extents and the least stream
	uint64_t workspace_bytes;
	uint64_t kv_block_bytes; // one block of KV_BLOCK_TOKENS
	uint64_t pass_bytes; // W of the bound: weight bytes that a pass reads
	uint64_t token_macs;
	/* What these are made of, for a planner that sums over other slices: vectors, buffers for rows, the longest
	 * read. */
	uint64_t pinned_bytes, rows_bytes, extent_bytes;
};
/* The stream takes 1/SHARE of the weights budget and at most MOST, unless config.slots says otherwise: more would cost
 * more hot bytes than look-ahead gains. */
#define RANK_SLOTS_SHARE 8u
#define RANK_SLOTS_MOST_BYTES (24u << 20)
int rank_get_needs(
	const struct program *p, const struct rank_config *config, struct rank_needs *ret_needs, struct base_error *e);

struct rank_placement { // what came out
	uint64_t hot_bytes, cold_bytes, slot_bytes; // cold: read in every pass
	uint64_t workspace_bytes, kv_bytes;
	uint32_t kv_blocks;
	uint32_t extents, hot_extents;
	char engine[16], pages[16], isa[16];
	bool direct_io;
	char fallback[192]; // why reads cost more than they must (offload_engine_create), "" if they do not
};

enum rank_want { RANK_WANT_NOTHING, RANK_WANT_SAMPLE, RANK_WANT_SCORES };

struct rank_entry { // some positions of one sequence in a pass
	uint32_t sequence; // slot number of an open sequence
	uint32_t first_position;
	uint32_t tokens; // > 0
	uint32_t first_token; // index into the pass's token ids
	uint32_t first_block, blocks; // in the pass's block list: the sequence's whole table up to its last position
	enum rank_want want; // SAMPLE: draw after the last token. SCORES: log probability of each target
	uint32_t first_target; // SCORES: index into targets, one for each token: the token that should follow
	uint32_t score_top; // SCORES: how many top log probabilities
};

struct rank_pass {
	uint64_t pass;
	const struct rank_entry *entries;
	uint32_t entries_count;
	const uint32_t *tokens;
	uint32_t tokens_count;
	const uint32_t *blocks;
	uint32_t blocks_count;
	const uint32_t *targets;
	uint32_t targets_count;
	const float *hidden_in; // (tokens, width): from the stage before; NULL on the first stage
};

struct rank_output {
	uint32_t entry;
	uint32_t token_index; // SCORES: which of the entry's tokens; SAMPLE: 0
	struct sample_result result;
};

struct rank_pass_result {
	struct rank_output *outputs; // caller's room: logits_rows of them; NULL where tp_rank is not 0
	uint32_t outputs_count;
	float *hidden_out; // (tokens, width): room for the next stage; NULL on the last stage
	int *entry_status; // caller's room, (entries): 0 or -EBADMSG, -EIO, -ETIMEDOUT (the pass failed for this entry)
	uint64_t total_ns, stall_ns, cold_bytes; // of this pass
};

struct rank;
int rank_create(const struct rank_config *config, struct rank **ret_rank, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context);
void rank_destroy(struct rank *r);
void rank_get_placement(const struct rank *r, struct rank_placement *ret_placement);
const struct program *rank_program(const struct rank *r);

/* A rank with slice.tp_size > 1 computes with the other parts of its layers: member i of the group is the rank with
 * slice.tp_rank i. Before the first pass; the group stays the caller's, and is used by rank_run alone from then on. No
 * member waits for another one longer than patience_ns (0: without end). -EINVAL when the group does not fit the
 * slice. */
int rank_join(struct rank *r, struct link_group *tensor, uint64_t patience_ns, struct base_error *e);

/* A sequence's sampling state: params and the prompt's length. Its tokens are learnt from the passes. -ENOSPC, -EEXIST,
 * -EINVAL. */
int rank_sequence_open(struct rank *r, uint32_t sequence, const struct sample_params *params, uint32_t prompt_tokens);
void rank_sequence_close(struct rank *r, uint32_t sequence);

/* One traversal. -EINVAL with text for a pass that is not well-formed (nothing ran); 0 otherwise, even when cold data
 * failed: entry_status says so, and e the layer, the file and the place in it.
 * With other parts of the layers: all members run the same passes. What one of them refuses all refuse; outputs, the
 * first failure and the sums of times and bytes are with member 0, hidden rows are the same bits on each. -ECONNRESET,
 * -ETIMEDOUT, -EPROTO with text: the group ended, and the rank can only be destroyed. */
int rank_run(struct rank *r, const struct rank_pass *pass, struct rank_pass_result *result, struct base_error *e);

/* For tests: the logits rows of the last run, (logits rows, vocab), in the order of outputs. */
const float *rank_logits(const struct rank *r);

struct rank_stats {
	struct offload_stream_stats stream; // zero when nothing is cold
	uint64_t passes, pass_ns, compute_ns;
	uint64_t embed_read_bytes;
};
void rank_get_stats(const struct rank *r, struct rank_stats *ret_stats);

/* Off until somebody starts it: spans of compute, drive, stalls and, with other parts, links. Any thread. */
struct base_trace *rank_trace(struct rank *r);
