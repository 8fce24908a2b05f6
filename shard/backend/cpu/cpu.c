// SPDX-License-Identifier: Apache-2.0
/*
 * The cpu backend: cuts each operation into pieces for the compute pool and calls the kernels of the chosen
 * instruction set. Results do not depend on the cut: a piece is always whole (row, token) or (token, head) results.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/size.h"
#include "shard/backend/backend.h"
#include "shard/backend/cpu/kernels.h"
#include "shard/backend/cpu/pool.h"

/* A thread's share of the units of an operation; a thread that is done takes from the others'. */
struct share {
	_Alignas(64) _Atomic uint32_t next;
	uint32_t end;
};

struct cpu {
	struct backend b;
	const struct cpu_kernels *kernels;
	struct cpu_pool *pool;
	uint32_t threads, max_tokens, max_cols;
	struct share *shares; // (threads)
	uint8_t *scratch; // (threads, CPU_SCRATCH_BYTES)
	float *sums; // (threads, CPU_GROUPS, max_tokens, 16)
	uint32_t *runs; // (max_tokens + 1): first tokens of the runs that attend works on
};

struct backend_input {
	struct cpu_activations a;
};

/* ---- life ---- */

static const struct cpu_kernels *choose(const char *isa, struct base_error *e)
{
	struct {
		const char *name;
		bool supported;
		const struct cpu_kernels *kernels;
	} all[] = {
#if defined(__x86_64__)
		{"avx512",
			__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
				__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
				__builtin_cpu_supports("avx512vnni"),
			&cpu_avx512_kernels},
		{"avx2",
			// Every CPU with AVX2 has F16C, which clang 14 cannot be asked about.
			__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"), &cpu_avx2_kernels},
#endif
		{"generic", true, &cpu_generic_kernels},
	};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		if (isa && strcmp(isa, all[i].name) != 0)
			continue;
		if (all[i].supported)
			return all[i].kernels;
		if (isa) {
			base_error_set(e, -ENOTSUP, "instruction set %s: this CPU lacks it", isa);
			return NULL;
		}
	}
	base_error_set(e, -EINVAL, "instruction set \"%s\": known are avx512, avx2 and generic", isa);
	return NULL;
}

static void cpu_destroy(struct backend *b)
{
	struct cpu *c = (struct cpu *)b;
	if (!c)
		return;
	cpu_pool_destroy(c->pool);
	free(c->shares);
	free(c->scratch);
	free(c->sums);
	free(c->runs);
	free(c);
}

static size_t thread_sums(const struct cpu *c)
{
	return (size_t)CPU_GROUPS * c->max_tokens * QUANT_GROUP_ROWS;
}

static int cpu_create(const struct backend_config *config, struct backend **ret_backend, struct base_error *e)
{
	struct base_error own = {0};
	const struct cpu_kernels *kernels = choose(config->isa, &own);
	if (!kernels)
		return base_error_set(e, own.code, "%s", own.message);
	struct cpu *c = calloc(1, sizeof(*c));
	if (!c)
		return base_error_set(e, -ENOMEM, "no memory for the cpu backend");
	c->b.ops = &backend_cpu_ops;
	c->kernels = kernels;
	c->max_tokens = config->max_tokens;
	c->max_cols = config->max_cols;
	int r = cpu_pool_create(config->threads, config->cpus, config->cpus_count, &c->pool, e);
	if (r) {
		cpu_destroy(&c->b);
		return r;
	}
	c->threads = cpu_pool_threads(c->pool);
	c->shares = aligned_alloc(64, c->threads * sizeof(*c->shares));
	c->scratch = aligned_alloc(4096, (size_t)c->threads * CPU_SCRATCH_BYTES);
	c->sums = aligned_alloc(64, thread_sums(c) * c->threads * sizeof(float) + 64);
	c->runs = calloc((size_t)c->max_tokens + 1, sizeof(*c->runs));
	if (!c->shares || !c->scratch || !c->sums || !c->runs) {
		cpu_destroy(&c->b);
		return base_error_set(e, -ENOMEM, "no memory for the cpu backend");
	}
	*ret_backend = &c->b;
	return 0;
}

static const char *cpu_isa(const struct backend *b)
{
	return ((const struct cpu *)b)->kernels->name;
}

static int cpu_alloc(struct backend *b, size_t bytes, void **ret_address)
{
	size_t align = bytes >= BASE_HUGE_PAGE_BYTES ? BASE_HUGE_PAGE_BYTES : 64;
	uint64_t size;
	if (base_size_round_up(bytes ? bytes : 1, align, &size))
		return -ENOMEM;
	void *p = aligned_alloc(align, size);
	if (!p)
		return -ENOMEM;
	if (align == BASE_HUGE_PAGE_BYTES)
		(void)madvise(p, size, MADV_HUGEPAGE); // a wish
	memset(p, 0, size);
	*ret_address = p;
	return 0;
}

static void cpu_free(struct backend *b, void *address)
{
	free(address);
}

static void cpu_copy(struct backend *b, void *to, const void *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

/* ---- pieces of work ---- */

struct work {
	struct cpu *cpu;
	void (*unit)(void *context, uint32_t unit, uint32_t thread);
	void *context;
};

static void work_thread(void *context, uint32_t thread)
{
	const struct work *w = context;
	uint32_t threads = w->cpu->threads;
	for (uint32_t i = 0; i < threads; i++) {
		struct share *s = &w->cpu->shares[(thread + i) % threads];
		for (;;) {
			uint32_t unit = atomic_fetch_add_explicit(&s->next, 1, memory_order_relaxed);
			if (unit >= s->end)
				break;
			w->unit(w->context, unit, thread);
		}
	}
}

/* Units 0..count-1, each once, on all threads; each thread starts with its own consecutive share. */
static void work_run(
	struct cpu *c, uint32_t count, void (*unit)(void *context, uint32_t unit, uint32_t thread), void *context)
{
	if (c->threads == 1 || count <= 1) {
		for (uint32_t i = 0; i < count; i++)
			unit(context, i, 0);
		return;
	}
	for (uint32_t i = 0; i < c->threads; i++) {
		atomic_store_explicit(
			&c->shares[i].next, (uint32_t)((uint64_t)count * i / c->threads), memory_order_relaxed);
		c->shares[i].end = (uint32_t)((uint64_t)count * (i + 1) / c->threads);
	}
	struct work w = {c, unit, context};
	cpu_pool_run(c->pool, work_thread, &w);
}

/* Token rows, several to a unit. */
struct rows {
	void (*row)(const struct rows *r, uint32_t row);
	uint32_t count, per_unit;
	const struct cpu_kernels *kernels;
	const void *arguments;
};

static void rows_unit(void *context, uint32_t unit, uint32_t thread)
{
	const struct rows *r = context;
	uint32_t end = (unit + 1) * r->per_unit < r->count ? (unit + 1) * r->per_unit : r->count;
	for (uint32_t i = unit * r->per_unit; i < end; i++)
		r->row(r, i);
}

/* Floats that one thread handles in about the time that a region costs. */
#define ALONE_FLOATS 8192u

static void rows_run(struct cpu *c, uint32_t count, size_t row_floats, void (*row)(const struct rows *r, uint32_t row),
	const void *arguments)
{
	size_t per_unit = row_floats >= ALONE_FLOATS ? 1 : ALONE_FLOATS / (row_floats ? row_floats : 1);
	struct rows r = {row, count, (uint32_t)per_unit, c->kernels, arguments};
	work_run(c, (uint32_t)base_size_div_up(count, per_unit), rows_unit, &r);
}

/* ---- matmul ---- */

static void cpu_input_destroy(struct backend *b, struct backend_input *input)
{
	if (!input)
		return;
	free(input->a.tile);
	free(input->a.q);
	free(input->a.block);
	free(input->a.fine);
	free(input);
}

static int cpu_input_create(struct backend *b, struct backend_input **ret_input)
{
	const struct cpu *c = (const struct cpu *)b;
	uint64_t bytes;
	if (base_size_mul(c->max_tokens, base_size_align(c->max_cols, 64), &bytes) || bytes > SIZE_MAX / 8)
		return -EOVERFLOW;
	struct backend_input *input = calloc(1, sizeof(*input));
	if (!input)
		return -ENOMEM;
	struct cpu_activations *a = &input->a;
	a->tile = calloc((size_t)c->max_tokens + 2, sizeof(*a->tile));
	a->plane = bytes / 32;
	a->q = aligned_alloc(64, 2 * bytes + 64);
	a->block = aligned_alloc(64, base_size_align(2 * a->plane * sizeof(*a->block) + 64, 64));
	a->fine = calloc(a->plane + 1, 1);
	if (!a->tile || !a->q || !a->block || !a->fine) {
		cpu_input_destroy(b, input);
		return -ENOMEM;
	}
	*ret_input = input;
	return 0;
}

static void load_tile(const struct rows *r, uint32_t tile)
{
	r->kernels->quantize(r->arguments, tile);
}

static void cpu_input_load(
	struct backend *b, struct backend_input *input, const float *x, uint32_t tokens, uint32_t cols)
{
	struct cpu *c = (struct cpu *)b;
	struct cpu_activations *a = &input->a;
	a->tokens = tokens;
	a->cols = cols;
	a->x = x;
	a->tiles = (uint32_t)base_size_div_up(tokens, c->kernels->tile_tokens);
	// Even sizes: a tile of one token would use a fraction of the dot product's rate.
	for (uint32_t i = 0; i <= a->tiles; i++)
		a->tile[i] = a->tiles ? (uint32_t)((uint64_t)tokens * i / a->tiles) : 0;
	if (cols % 32 == 0) // else only float weights can follow
		rows_run(c, a->tiles, (size_t)cols * c->kernels->tile_tokens, load_tile, a);
}

struct matmul {
	const struct cpu *cpu;
	const struct cpu_activations *x;
	const struct backend_part *parts;
	uint32_t unit_groups;
};

static uint32_t part_groups(const struct backend_part *p)
{
	return (uint32_t)base_size_div_up(p->rows, QUANT_GROUP_ROWS);
}

/* Tokens from which a chunk of columns serves several groups in turn, to find the activations in the L2 cache. Below
 * it the groups follow one another, and weights are read in one line. */
#define GROUPS_TOGETHER_TOKENS 48u

static void matmul_unit(void *context, uint32_t unit, uint32_t thread)
{
	const struct matmul *m = context;
	const struct cpu_activations *x = m->x;
	const struct backend_part *p = m->parts;
	for (uint32_t units; unit >= (units = (uint32_t)base_size_div_up(part_groups(p), m->unit_groups)); p++)
		unit -= units;
	uint64_t row_bytes = 0;
	(void)quant_row_bytes(p->type, x->cols, &row_bytes);
	size_t group_bytes = row_bytes * QUANT_GROUP_ROWS;
	uint32_t group = unit * m->unit_groups, end = group + m->unit_groups;
	if (end > part_groups(p))
		end = part_groups(p);
	const struct cpu_kernels *k = m->cpu->kernels;
	uint32_t step = x->tokens >= GROUPS_TOGETHER_TOKENS ? end - group : 1;
	for (; group < end; group += step) {
		uint32_t row = group * QUANT_GROUP_ROWS, rows = p->rows - row;
		const uint8_t *weights = (const uint8_t *)p->weights + group * group_bytes;
		if (rows > step * QUANT_GROUP_ROWS)
			rows = step * QUANT_GROUP_ROWS;
		if (x->tokens == 1)
			k->matvec(p->type, weights, x, rows, p->y + row);
		else
			k->matmul(p->type, weights, group_bytes, step, x, rows, p->y + row, p->y_stride,
				m->cpu->scratch + (size_t)thread * CPU_SCRATCH_BYTES,
				m->cpu->sums + thread * thread_sums(m->cpu));
	}
}

/* Groups of a unit: large enough to make the counter's cost small, small enough to even out the threads. */
static uint32_t choose_unit(const struct cpu *c, const struct cpu_activations *x, uint32_t groups)
{
	uint32_t unit;
	if (x->tokens >= GROUPS_TOGETHER_TOKENS)
		unit = CPU_GROUPS;
	else
		unit = 1 + (64u << 10) / (x->cols * 9 + 1); // about 64 KiB of 4-bit weights
	uint32_t most = groups / (c->threads * 4);
	if (unit > most)
		unit = most;
	return unit ? unit : 1;
}

static void cpu_matmul(
	struct backend *b, const struct backend_input *input, const struct backend_part *parts, uint32_t count)
{
	struct cpu *c = (struct cpu *)b;
	uint32_t groups = 0, units = 0;
	const struct cpu_activations *x = &input->a;
	if (x->tokens == 0)
		return;
	for (uint32_t i = 0; i < count; i++)
		groups += part_groups(&parts[i]);
	struct matmul m = {c, x, parts, choose_unit(c, x, groups)};
	for (uint32_t i = 0; i < count; i++)
		units += (uint32_t)base_size_div_up(part_groups(&parts[i]), m.unit_groups);
	work_run(c, units, matmul_unit, &m);
}

/* ---- attention ---- */

struct attention {
	const struct cpu *cpu;
	const struct backend_attend *a;
	size_t block_bytes; // of one K/V head
	uint32_t heads_per_unit, units_per_head; // of a K/V head's queries
};

static void store_kv(const struct attention *at, uint32_t t)
{
	const struct backend_attend *a = at->a;
	uint32_t position = a->token[t].position, slot = position % KV_BLOCK_TOKENS;
	size_t block = a->token[t].blocks[position / KV_BLOCK_TOKENS];
	for (uint32_t h = 0; h < a->kv_heads; h++) {
		size_t from = ((size_t)t * a->kv_heads + h) * a->head_dim,
		       to = (block * a->kv_heads + h) * at->block_bytes;
		kv_key_store(a->kv_type, a->k + from, a->head_dim, slot, (char *)a->k_cache + to);
		kv_value_store(a->kv_type, a->v + from, a->head_dim, slot, (char *)a->v_cache + to);
	}
}

static void store_kv_row(const struct rows *r, uint32_t row)
{
	store_kv(r->arguments, row);
}

static void attend_unit(void *context, uint32_t unit, uint32_t thread)
{
	const struct attention *at = context;
	const struct backend_attend *a = at->a;
	uint32_t heads = a->heads / a->kv_heads;
	uint32_t part = unit % at->units_per_head, kv_head = unit / at->units_per_head % a->kv_heads;
	const uint32_t *run = at->cpu->runs + unit / at->units_per_head / a->kv_heads;
	struct cpu_query queries[16];
	uint32_t count = 0, first = part * at->heads_per_unit, last = first + at->heads_per_unit;
	for (uint32_t t = run[0]; t < run[1]; t++)
		for (uint32_t h = first; h < last && h < heads; h++) {
			size_t offset = ((size_t)t * a->heads + kv_head * heads + h) * a->head_dim;
			queries[count++] = (struct cpu_query){a->q + offset, a->out + offset, a->token[t].position};
			if (count == at->cpu->kernels->queries) {
				at->cpu->kernels->attend(a, a->token[run[0]].blocks, kv_head, queries, count);
				count = 0;
			}
		}
	if (count)
		at->cpu->kernels->attend(a, a->token[run[0]].blocks, kv_head, queries, count);
}

/* Runs of tokens of one sequence, at most `most` long. */
static uint32_t find_runs(struct cpu *c, const struct backend_attend *a, uint32_t most)
{
	uint32_t runs = 0;
	for (uint32_t t = 0; t < a->tokens; t++)
		if (t == 0 || a->token[t].blocks != a->token[t - 1].blocks ||
			a->token[t].position < a->token[t - 1].position || t - c->runs[runs - 1] >= most)
			c->runs[runs++] = t;
	c->runs[runs] = a->tokens;
	return runs;
}

static void cpu_attend(struct backend *b, const struct backend_attend *a)
{
	struct cpu *c = (struct cpu *)b;
	uint32_t vector_bytes = 0, heads = a->heads / a->kv_heads, queries = c->kernels->queries;
	(void)kv_vector_bytes(a->kv_type, a->head_dim, &vector_bytes);
	struct attention at = {c, a, (size_t)vector_bytes * KV_BLOCK_TOKENS};
	rows_run(c, a->tokens, (size_t)a->kv_heads * a->head_dim * 8, store_kv_row, &at);

	at.heads_per_unit = heads < queries ? heads : queries;
	uint32_t runs = find_runs(c, a, at.heads_per_unit < queries ? queries / at.heads_per_unit : 1);
	uint32_t lanes = runs * a->kv_heads;
	while (at.heads_per_unit > 1 && lanes * (uint32_t)base_size_div_up(heads, at.heads_per_unit) < 4 * c->threads)
		at.heads_per_unit = (at.heads_per_unit + 1) / 2;
	at.units_per_head = (uint32_t)base_size_div_up(heads, at.heads_per_unit);
	work_run(c, lanes * at.units_per_head, attend_unit, &at);
}

/* ---- rows ---- */

struct embed_arguments {
	uint32_t type, cols;
	const struct backend_embed_row *rows;
	float *y;
};

static void embed_row(const struct rows *r, uint32_t row)
{
	const struct embed_arguments *a = r->arguments;
	(void)quant_dequantize_r16(
		a->type, a->rows[row].group, a->rows[row].row, a->cols, a->y + (size_t)row * a->cols);
}

static void cpu_embed(struct backend *b, uint32_t type, uint32_t cols, const struct backend_embed_row *rows,
	uint32_t tokens, float *y)
{
	struct embed_arguments a = {type, cols, rows, y};
	rows_run((struct cpu *)b, tokens, (size_t)cols * 8, embed_row, &a);
}

struct norm_arguments {
	const float *x, *w;
	float eps;
	uint32_t width;
	float *y;
};

static void norm_row(const struct rows *r, uint32_t row)
{
	const struct norm_arguments *a = r->arguments;
	size_t at = (size_t)row * a->width;
	r->kernels->norm(a->x + at, a->w, a->eps, a->width, a->y + at);
}

static void cpu_norm(
	struct backend *b, const float *x, const float *w, float eps, uint32_t tokens, uint32_t width, float *y)
{
	struct norm_arguments a = {x, w, eps, width, y};
	rows_run((struct cpu *)b, tokens, width, norm_row, &a);
}

struct rope_arguments {
	float *x;
	uint32_t heads, head_dim, dims;
	enum backend_rope_mode mode;
	const float *cos_sin;
};

static void rope_row(const struct rows *r, uint32_t row)
{
	const struct rope_arguments *a = r->arguments;
	r->kernels->rope(a->x + (size_t)row * a->heads * a->head_dim, a->heads, a->head_dim, a->dims, a->mode,
		a->cos_sin + (size_t)row * a->dims);
}

static void cpu_rope(struct backend *b, float *x, uint32_t tokens, uint32_t heads, uint32_t head_dim, uint32_t dims,
	enum backend_rope_mode mode, const float *cos_sin)
{
	struct rope_arguments a = {x, heads, head_dim, dims, mode, cos_sin};
	rows_run((struct cpu *)b, tokens, (size_t)heads * head_dim, rope_row, &a);
}

struct pointwise_arguments {
	float *x;
	const float *y, *z;
	size_t count; // floats
	uint32_t width; // add_bias
};

#define PIECE_FLOATS 4096u

static size_t piece(const struct pointwise_arguments *a, uint32_t row, size_t *ret_count)
{
	size_t at = (size_t)row * PIECE_FLOATS;
	*ret_count = a->count - at < PIECE_FLOATS ? a->count - at : PIECE_FLOATS;
	return at;
}

static void add_piece(const struct rows *r, uint32_t row)
{
	const struct pointwise_arguments *a = r->arguments;
	size_t count, at = piece(a, row, &count);
	r->kernels->add(a->x + at, a->y + at, count);
}

static void cpu_add(struct backend *b, float *x, const float *y, size_t count)
{
	struct pointwise_arguments a = {.x = x, .y = y, .count = count};
	rows_run((struct cpu *)b, (uint32_t)base_size_div_up(count, PIECE_FLOATS), PIECE_FLOATS, add_piece, &a);
}

static void add_bias_row(const struct rows *r, uint32_t row)
{
	const struct pointwise_arguments *a = r->arguments;
	r->kernels->add(a->x + (size_t)row * a->width, a->y, a->width);
}

static void cpu_add_bias(struct backend *b, float *x, const float *bias, uint32_t tokens, uint32_t width)
{
	struct pointwise_arguments a = {.x = x, .y = bias, .width = width};
	rows_run((struct cpu *)b, tokens, width, add_bias_row, &a);
}

static void silu_gate_piece(const struct rows *r, uint32_t row)
{
	const struct pointwise_arguments *a = r->arguments;
	size_t count, at = piece(a, row, &count);
	r->kernels->silu_gate(a->y + at, a->z + at, count, a->x + at);
}

static void cpu_silu_gate(struct backend *b, const float *gate, const float *up, size_t count, float *y)
{
	struct pointwise_arguments a = {.x = y, .y = gate, .z = up, .count = count};
	rows_run((struct cpu *)b, (uint32_t)base_size_div_up(count, PIECE_FLOATS), PIECE_FLOATS, silu_gate_piece, &a);
}

static void cpu_select(
	struct backend *b, const float *x, uint32_t width, const uint32_t *rows, uint32_t count, float *y)
{
	for (uint32_t i = 0; i < count; i++)
		memcpy(y + (size_t)i * width, x + (size_t)rows[i] * width, width * sizeof(float));
}

static uint64_t cpu_fence(struct backend *b)
{
	return 0;
}

static int cpu_wait(struct backend *b, uint64_t fence)
{
	return 0;
}

const struct backend_ops backend_cpu_ops = {
	.name = "cpu",
	.create = cpu_create,
	.destroy = cpu_destroy,
	.isa = cpu_isa,
	.alloc = cpu_alloc,
	.free = cpu_free,
	.upload = cpu_copy,
	.download = cpu_copy,
	.input_create = cpu_input_create,
	.input_destroy = cpu_input_destroy,
	.input_load = cpu_input_load,
	.matmul = cpu_matmul,
	.embed = cpu_embed,
	.norm = cpu_norm,
	.rope = cpu_rope,
	.attend = cpu_attend,
	.add = cpu_add,
	.add_bias = cpu_add_bias,
	.silu_gate = cpu_silu_gate,
	.select = cpu_select,
	.fence = cpu_fence,
	.wait = cpu_wait,
};
