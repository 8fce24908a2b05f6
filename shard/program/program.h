/* SPDX-License-Identifier: Apache-2.0
 * Programs: a model's forward pass as pure data. See docs/ARCHITECTURE.md, "the program is the schedule".
 *
 * An architecture is a row of the table in program/program.c: its GGUF name and a function that reads the config
 * from metadata and builds the program. Planner, packer, stream and executor read the result;
 * none of them knows an architecture by name. Built once, then read-only: any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/format/gguf.h"

#define PROGRAM_MAX_LAYERS 1024u
#define PROGRAM_NAME_BYTES 64u
#define PROGRAM_NONE UINT32_MAX
#define PROGRAM_MAX_PARTS 16u // of a layer

struct program_config {
	char architecture[32];
	char name[128]; // general.name, cleaned up for printing
	uint32_t layers, width, ffn_width, heads, kv_heads, head_dim, vocab;
	uint32_t context_tokens; // that the model was trained for
	uint32_t rope_dims;
	float rope_base;
	float rope_scale; // 1, or 1/factor of linear scaling
	bool rope_halves; // NeoX order
	float norm_eps;
	uint32_t window; // sliding attention window, 0: none
	bool tied_head; // the head is the embedding matrix
};

enum program_op {
	PROGRAM_EMBED, // out = rows of weight, by token id
	PROGRAM_NORM, // out = rmsnorm(in0) * weight
	PROGRAM_MATMUL, // out = weight * in0 (+ bias)
	PROGRAM_ROPE, // in place on in0: heads
	PROGRAM_ATTEND, // out = attention(in0 q, in1 k, in2 v), appends to the KV cache of `layer`
	PROGRAM_ADD, // in0 += in1
	PROGRAM_SILU_GATE, // out = silu(in0) * in1
	PROGRAM_SELECT, // out = the rows of in0 that logits are wanted of
	PROGRAM_REDUCE, // in0 becomes the sum over the parts, in the order of the parts; only in a slice
};

/* How tensor parallelism cuts a weight, and so where an allreduce belongs (after SPLIT_INPUT). */
enum program_split {
	PROGRAM_SPLIT_NONE, // every rank has all of it
	PROGRAM_SPLIT_OUTPUT, // rows, in multiples of 16
	PROGRAM_SPLIT_HEADS, // rows, whole heads
	PROGRAM_SPLIT_KV_HEADS, // rows, whole KV heads
	PROGRAM_SPLIT_INPUT, // columns, at block borders, matching the rows of what feeds it
};

struct program_weight {
	char name[PROGRAM_NAME_BYTES]; // in the source file, e.g. "blk.3.attn_q.weight"
	uint32_t rows, cols; // rows 1: a vector
	uint32_t type; // quant type in the source
	uint32_t step; // that reads it; of a tied head the matmul, not the look-up
	uint32_t layer; // PROGRAM_NONE: outside of the layers
	enum program_split split;
	const struct format_gguf_tensor *source; // valid while the gguf is open; NULL in a program without source
};

struct program_step {
	enum program_op op;
	uint32_t layer; // PROGRAM_NONE before the first and after the last layer
	uint32_t in[3]; // value ids, PROGRAM_NONE if unused
	uint32_t out;
	uint32_t weight; // index, PROGRAM_NONE if none
	uint32_t bias; // MATMUL: index of the bias vector, PROGRAM_NONE if none
	uint32_t heads; // ROPE: heads of in0
};

struct program_value { // an activation buffer, (tokens, width); ids are reused by later steps
	uint32_t width;
};

struct program {
	struct program_config config;
	struct program_weight *weights;
	struct program_step *steps;
	struct program_value *values;
	uint32_t weights_count, steps_count, values_count;
	float *rope_factors; // (rope_dims/2) divisors of the frequencies (rope_freqs.weight), NULL if none
	uint32_t logits; // the value that holds them
};

/* The one tensor whose data program_build reads; a model may have it. */
#define PROGRAM_ROPE_FREQS "rope_freqs.weight"
/* Refuses by name what is not supported: architecture, tensor type, rope scaling, shapes that do not match. */
int program_build(const struct format_gguf *g, struct program **ret_program, struct base_error *e);
void program_destroy(struct program *p);

/* Bytes of weights, and multiply-adds for one token. */
uint64_t program_weight_bytes(const struct program *p); // all but an untied embedding matrix: what a pass reads
uint64_t program_layer_bytes(const struct program *p, uint32_t layer); // PROGRAM_NONE: outside of the layers
uint64_t program_token_macs(const struct program *p);

/* ---- parts of a program: slice.c ----
 * Part r of n has whole KV heads with the query heads that use them (or, with more parts than KV heads, shares one),
 * runs of rows of gate and up with the same columns of down, columns of attn_output, and rows of the head. Columns are
 * cut at the borders of their type's blocks only, so every block of weights and of activations is what it is in the
 * whole model: the parts' sums differ from the whole's in the order of additions alone. */

struct program_shape { // what decides whether a model can be cut: plain numbers, for the planner
	uint32_t heads, kv_heads, head_dim, ffn_width, vocab;
	uint32_t attention_block, ffn_block; // most columns of a block of attn_output and of ffn_down
};
void program_get_shape(const struct program *p, struct program_shape *ret_shape);
/* -EINVAL with the reason, its numbers, and the numbers of parts that are possible. */
int program_shape_check(const struct program_shape *s, uint32_t parts, struct base_error *e);
int program_check_parts(const struct program *p, uint32_t parts, struct base_error *e);

/* Has attention written the input of the matmul that reads this weight? Of those that are split by PROGRAM_SPLIT_INPUT
 * it tells attn_output from ffn_down. */
bool program_follows_attention(const struct program *p, uint32_t weight);

struct program_cut { // the part of a weight
	uint32_t first_row, rows, first_col, cols;
};
/* For parts that program_check_parts finds possible. */
void program_cut_weight(
	const struct program *p, uint32_t part, uint32_t parts, uint32_t weight, struct program_cut *ret_cut);
/* The program that one part runs: weights (same indices), values and heads of its size, a REDUCE after each matmul that
 * is cut by columns and after look-ups in a cut matrix. config.heads and kv_heads are the part's, width and vocab the
 * model's. */
int program_slice(
	const struct program *p, uint32_t part, uint32_t parts, struct program **ret_program, struct base_error *e);

/* Builders, used by the architectures. Each appends a step and returns the id of the value that it makes. They record
 * the first failure (missing tensor, wrong shape, unsupported type) in the builder, after which all are no-ops. */
struct program_builder {
	struct program *p;
	const struct format_gguf *source;
	struct base_error *error;
	int status;
	uint32_t layer;
};
uint32_t program_embed(struct program_builder *b, const char *weight);
uint32_t program_norm(struct program_builder *b, uint32_t x, const char *weight);
uint32_t program_matmul(struct program_builder *b, uint32_t x, const char *weight, uint32_t rows,
	enum program_split split); // a tensor "<name>.bias" beside "<name>.weight" is added
uint32_t program_rope(struct program_builder *b, uint32_t x, uint32_t heads);
uint32_t program_attend(struct program_builder *b, uint32_t q, uint32_t k, uint32_t v);
uint32_t program_add(struct program_builder *b, uint32_t x, uint32_t y);
uint32_t program_silu_gate(struct program_builder *b, uint32_t gate, uint32_t up);
uint32_t program_select(struct program_builder *b, uint32_t x);

struct program_architecture {
	const char *name; // general.architecture
	int (*build)(struct program_builder *b);
};
extern const struct program_architecture program_architectures[]; // ends with name NULL
