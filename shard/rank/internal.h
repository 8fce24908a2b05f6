/* SPDX-License-Identifier: Apache-2.0
 * The executor's own structures, shared by needs.c, load.c, rows.c, pass.c and rank.c. Not for other rooms.
 */
#pragma once

#include "offload/engine.h"
#include "offload/memory.h"
#include "offload/store.h"
#include "shard/backend/backend.h"
#include "shard/pack/layout.h"
#include "shard/rank/rank.h"

/* ---- sizes, from program and config alone: needs.c ---- */

struct rank_sizes {
	uint64_t pass_bytes; // extents that a pass reads
	uint64_t pinned_bytes; // of them: vectors
	uint64_t lookup_bytes; // extents that only row look-ups read: an untied embedding
	uint32_t longest_bytes; // of the pass's extents
	uint32_t row_span_bytes, row_slots; // buffers for look-ups of cold rows
};
struct rank_memory { // how the weights budget is spent
	uint64_t hot_room_bytes; // for extents of the pass, the rest of `lookup` and the row buffers
	uint64_t hot_budget_bytes; // of the pass's extents
	uint64_t lookup_budget_bytes;
	uint64_t row_bytes; // 0: no cold rows
	uint32_t slots, depth; // 0: no stream
	uint64_t slots_bytes;
};

bool rank_file_in_pass(const struct program *p, const struct pack_slice *slice, uint32_t layer);
void rank_sum_sizes(const struct program *p, const struct pack_slice *slice, const struct pack_layout *layout,
	struct rank_sizes *ret);
/* -ENOMEM with the bytes that are short. */
int rank_spend_budget(const struct rank_config *config, const struct rank_sizes *sizes, struct rank_memory *ret,
	struct base_error *e);
uint64_t rank_workspace_bytes(const struct program *p, const struct rank_config *config);
uint32_t rank_max_cols(const struct program *p);
/* For each value whether it has only the rows that logits are wanted of. */
void rank_mark_selected(const struct program *p, bool *ret_selected /* (values) */);
int rank_check_config(const struct program *p, const struct rank_config *config, struct base_error *e);

/* ---- the rank ---- */

struct rank_sequence {
	bool open;
	uint32_t prompt_tokens, known_tokens;
	struct sample_params params;
	uint32_t *history; // (context_tokens), in rank.history
};

/* Parts of a matmul that are computed in one call. */
struct rank_run {
	uint32_t first_part, parts;
	bool cold; // its weights are in the extent of the stream that is held
	bool acquire, release; // the extent is taken before it, given back after it
};

struct rank_op { // a step of the pass, or several matmuls of one input
	const struct program_step *step; // the first one
	uint32_t steps;
	uint32_t first_run, runs;
	bool selected; // works on the rows that logits are wanted of
};

struct rank_row_slot {
	struct offload_read read;
	uint32_t piece;
	uint8_t tries;
};

struct rank {
	struct rank_config config;
	struct program *program;
	struct pack_layout *layout;
	struct rank_sizes sizes;
	struct rank_memory budget;
	struct rank_placement placement;
	bool first_stage, last_stage;

	struct offload_store **stores; // (layout files)
	int *fds; // (layout files)
	const uint8_t **hot; // (layout extents), NULL: cold
	struct offload_memory memory;
	struct offload_stream *stream; // NULL: nothing is cold
	struct offload_stream_item *ring; // (ring_count)
	uint32_t ring_count;

	struct offload_engine *row_engine; // NULL: no cold rows
	struct rank_row_slot *row_slots; // (sizes.row_slots)
	uint8_t *row_memory; // (row_slots, row_span_bytes)
	uint32_t rows_flying; // reads that the engine has
	uint32_t lookup_weight; // PROGRAM_NONE when rows are not looked up on this stage
	uint32_t *lookup_piece; // (row groups): piece of the layout
	uint64_t lookup_group_bytes;

	struct backend *backend;
	const struct backend_ops *ops;
	struct backend_input *input;
	float **values; // (values)
	const float **vectors; // (weights): hot vectors, NULL for matrices
	uint8_t *kv;
	uint64_t kv_layer_bytes; // of K or of V
	struct rank_op *op;
	uint32_t op_count;
	struct rank_run *runs;
	uint32_t runs_count;
	struct backend_part *parts; // hot ones are complete, cold ones lack the address
	uint32_t *part_offsets; // (parts): of cold ones in their extent
	uint32_t parts_count;

	double *rope_frequencies; // (rope_dims / 2)
	float *cos_sin; // (batch_tokens, rope_dims / 2, 2), the backend's
	float *cos_sin_host;
	struct backend_attend_token *attend_tokens; // (batch_tokens)
	struct backend_embed_row *embed_rows; // (batch_tokens)
	uint32_t *selected; // (logits_rows)
	uint32_t *written_by; // (kv blocks): the pass that last wrote to it, for the check
	uint32_t pass_stamp;
	float *logits_host; // (logits_rows, vocab): the backend's memory where that is the host's
	float *gathered; // the same where rows come from all parts, else NULL

	// With other parts of the layers, else NULL and 0.
	struct link_group *tensor;
	uint64_t patience_ns;
	struct program_cut head; // rows of the head, and of a tied embedding, that this part has
	uint32_t *embed_tokens; // (batch_tokens): rows of this part in place of the others' tokens
	float *zeros; // (width)
	uint8_t *tail; // of a member's pass, encoded
	struct sample_scratch *scratch;
	struct rank_sequence *sequences; // (sequences)
	uint32_t *history; // (sequences, context_tokens)

	struct base_trace trace;
	_Atomic uint64_t passes, pass_ns, compute_ns, embed_read_bytes;
};

/* load.c: opens and checks the store's files, decides what is hot, reads it, makes the stream. */
int rank_open_files(struct rank *r, struct base_error *e);
int rank_load(struct rank *r, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context);
int rank_start_stream(struct rank *r, struct base_error *e);

/* plan.c: the ops, runs and parts of a pass, and with them the ring. */
int rank_plan_pass(struct rank *r, struct base_error *e);

/* rows.c: embedding rows of tokens into y. -EBADMSG, -EIO, -ETIMEDOUT with text. */
int rank_rows_create(struct rank *r, struct base_error *e);
int rank_rows_embed(struct rank *r, const uint32_t *tokens, uint32_t count, float *y, struct base_error *e);

/* tensor.c: what the parts of a layer do together. Each returns 0, or the error that ended the group, with text. */
#define RANK_TAIL_BYTES (BASE_ERROR_BYTES + 64u)
struct rank_tail { // of a pass of one member; after the exchange, at member 0, of all
	int status; // 0, -EINVAL (refused), -EBADMSG, -EIO or -ETIMEDOUT (cold data)
	struct base_error e;
	uint64_t total_ns, stall_ns, cold_bytes;
};
uint64_t rank_tensor_bytes(const struct program *p, const struct rank_config *config); // of workspace
int rank_tensor_create(struct rank *r);
int rank_tensor_sum(struct rank *r, float *x, size_t count, struct base_error *e);
/* True for all members when any refuses. */
int rank_tensor_agree(struct rank *r, bool refuse, bool *ret_refuse, struct base_error *e);
int rank_tensor_tails(struct rank *r, struct rank_tail *tail, struct base_error *e);
/* Before anything else is waited for: the others wait for what was sent here. */
int rank_tensor_leave(struct rank *r, struct base_error *e);
/* The rows of logits of all parts to member 0's logits_host. */
int rank_tensor_gather(struct rank *r, uint32_t rows, struct base_error *e);
/* Embedding rows where every part has some: zeros for the others' tokens, so that a sum makes them whole. -EBADMSG,
 * -EIO. */
int rank_tensor_embed(struct rank *r, const uint32_t *tokens, uint32_t count, float *y, struct base_error *e);

/* pass.c */
int rank_check_pass(
	struct rank *r, const struct rank_pass *pass, const struct rank_pass_result *result, struct base_error *e);
