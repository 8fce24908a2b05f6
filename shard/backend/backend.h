/* SPDX-License-Identifier: Apache-2.0
 * A backend implements the step operations of a program once, for one kind of device.
 *
 * Contract, the same for `reference` (plain C, float32), `cpu` (run-time dispatch over AVX-512 VNNI, AVX2,
 * generic C) and a later GPU:
 * - Addresses (`void *` from alloc) belong to the backend. The caller adds offsets to them but never reads
 *   through them: upload and download do. On CPU backends they are host memory.
 * - Calls submit work; work runs in the order of submission. fence() marks a point, wait() returns when it
 *   has passed. CPU backends finish the work before the call returns, so every fence is passed at once.
 *   Weights and inputs of a call must stay until a fence taken after it has passed.
 * - All calls come from one thread, the stage thread. The cpu backend has its own pool of compute threads
 *   and the stage thread is one of them.
 * - Batch invariance: row t of a result depends on row t of the inputs alone, bit for bit: not on n, not on
 *   how rows of a matrix are cut into parts, not on the number of threads. Kernels for one token and for many
 *   therefore do the same floating-point operations in the same order per (weight row, token), and attention
 *   adds up cache blocks in the order of positions from the sequence's first one in the window.
 * - Activations are float32, (tokens, width), rows `width` apart unless a stride is given.
 * Errors: -errno; a backend that computes in host memory fails only in create and alloc.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/kv/kv.h"
#include "shard/quant/quant.h"

struct backend_config {
	uint32_t threads; // compute threads, the stage thread among them; 0: one for each CPU of `cpus`
	const uint32_t *cpus; // the CPUs that the plan gives (thread i is bound to cpus[i]); NULL: no binding
	uint32_t cpus_count;
	uint32_t max_tokens; // most token rows of any call
	uint32_t max_cols; // most columns of any matmul input
	const char *isa; // cpu backend: NULL for the best, or "avx512", "avx2", "generic"
};

/* The activations of a matmul in the form that the kernels want (the cpu backend: float and 8-bit blocks). */
struct backend_input;

/* A run of whole R16 groups of one matrix: y[t][row0 .. row0+rows) = W[rows][cols] * x[t]. */
struct backend_part {
	uint32_t type; // enum quant_type
	uint32_t rows; // real rows; the last group may be partly padding
	const void *weights; // R16 groups
	float *y; // (tokens, y_stride), already at row0
	uint32_t y_stride;
};

struct backend_embed_row {
	const void *group; // the R16 group that holds the token's row
	uint32_t row; // 0..15
};

enum backend_rope_mode {
	BACKEND_ROPE_PAIRS, // rotates (2i, 2i+1): llama in GGUF
	BACKEND_ROPE_HALVES, // rotates (i, i + dims/2): NeoX, qwen
};

struct backend_attend_token {
	const uint32_t *blocks; // the sequence's block table: block of position p is blocks[p / KV_BLOCK_TOKENS]
	uint32_t position;
};

struct backend_attend {
	const float *q; // (tokens, heads, head_dim), rotated
	const float *k, *v; // (tokens, kv_heads, head_dim), k rotated: stored to the cache first, for all tokens
	float *out; // (tokens, heads, head_dim)
	uint32_t tokens, heads, kv_heads, head_dim;
	float scale; // of q.k, usually 1/sqrt(head_dim)
	uint32_t window; // positions that a token sees, itself included; 0: all
	const struct backend_attend_token *token; // (tokens); tokens of one sequence have ascending positions
	enum kv_type kv_type;
	void *k_cache, *v_cache; // of this layer: (blocks, kv_heads, KV_BLOCK_TOKENS, head_dim), see kv.h
};

struct backend; // create() makes it; its first member is `const struct backend_ops *ops`

struct backend_ops {
	const char *name;
	int (*create)(const struct backend_config *config, struct backend **ret_backend, struct base_error *e);
	void (*destroy)(struct backend *b); // NULL is fine
	const char *(*isa)(const struct backend *b); // what was chosen: "avx512-vnni", ...

	int (*alloc)(struct backend *b, size_t bytes, void **ret_address); // zeroed, aligned to 64
	void (*free)(struct backend *b, void *address);
	void (*upload)(struct backend *b, void *to, const void *from_host, size_t bytes);
	void (*download)(struct backend *b, void *to_host, const void *from, size_t bytes);

	int (*input_create)(struct backend *b, struct backend_input **ret_input);
	void (*input_destroy)(struct backend *b, struct backend_input *input);
	/* x (tokens, cols) as input of the matmuls that follow, until the next load: x must stay as it is till then. */
	void (*input_load)(
		struct backend *b, struct backend_input *input, const float *x, uint32_t tokens, uint32_t cols);

	/* All parts share the input (q, k and v; gate and up; pieces of one matrix), one parallel region. */
	void (*matmul)(
		struct backend *b, const struct backend_input *input, const struct backend_part *parts, uint32_t count);
	void (*embed)(struct backend *b, uint32_t type, uint32_t cols, const struct backend_embed_row *rows,
		uint32_t tokens, float *y /* (tokens, cols) */);
	/* y = x / sqrt(mean(x^2) + eps) * w; w (width) float32. */
	void (*norm)(struct backend *b, const float *x, const float *w, float eps, uint32_t tokens, uint32_t width,
		float *y);
	/* In place on x (tokens, heads, head_dim). cos_sin (tokens, dims/2, 2); columns from dims on stay. */
	void (*rope)(struct backend *b, float *x, uint32_t tokens, uint32_t heads, uint32_t head_dim, uint32_t dims,
		enum backend_rope_mode mode, const float *cos_sin);
	void (*attend)(struct backend *b, const struct backend_attend *a);
	void (*add)(struct backend *b, float *x, const float *y, size_t count); // x += y
	void (*add_bias)(struct backend *b, float *x, const float *bias, uint32_t tokens, uint32_t width);
	void (*silu_gate)(
		struct backend *b, const float *gate, const float *up, size_t count, float *y); // silu(gate)*up
	/* y[i] = x[rows[i]]: the token rows that logits are wanted of. */
	void (*select)(
		struct backend *b, const float *x, uint32_t width, const uint32_t *rows, uint32_t count, float *y);

	uint64_t (*fence)(struct backend *b);
	int (*wait)(struct backend *b, uint64_t fence);
};

struct backend {
	const struct backend_ops *ops;
};

extern const struct backend_ops backend_reference_ops;
extern const struct backend_ops backend_cpu_ops;

extern const struct backend_ops *const backend_all[]; // NULL comes last
/* By name ("reference", "cpu"); NULL if there is none. */
const struct backend_ops *backend_find(const char *name);
