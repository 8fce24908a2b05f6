// SPDX-License-Identifier: Apache-2.0
// backend: every operation of every backend and instruction set against plain double arithmetic, and batch invariance.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "shard/backend/backend.h"
#include "shard/backend/cpu/kernels.h"

static const uint32_t types[] = {QUANT_F32, QUANT_F16, QUANT_BF16, QUANT_Q4_0, QUANT_Q4_1, QUANT_Q5_0, QUANT_Q5_1,
	QUANT_Q8_0, QUANT_Q4_K, QUANT_Q5_K, QUANT_Q6_K};
#define TYPES (sizeof(types) / sizeof(types[0]))
#define MAX_TOKENS 128u
#define MAX_COLS 1024u

struct subject {
	const char *backend, *isa;
};
static const struct subject subjects[] = {{"reference", NULL}, {"cpu", "avx512"}, {"cpu", "avx2"}, {"cpu", "generic"}};
#define SUBJECTS (sizeof(subjects) / sizeof(subjects[0]))

static uint32_t seed;

static uint32_t random_bits(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 17;
	seed ^= seed << 5;
	return seed;
}

/* About normal, sigma 1. */
static float random_normal(void)
{
	float sum = 0;
	for (int i = 0; i < 4; i++)
		sum += (float)(random_bits() >> 8) * 0x1p-24f - 0.5f;
	return sum * 1.732f;
}

static float *random_floats(size_t n)
{
	float *x = malloc(n * sizeof(float));
	assert_non_null(x);
	for (size_t i = 0; i < n; i++)
		x[i] = random_normal();
	return x;
}

/* With a few values that stand out, as activations have them. */
static float *random_activations(size_t n)
{
	float *x = random_floats(n);
	for (size_t i = 0; i < n; i++)
		if (random_bits() % 128 == 0)
			x[i] *= 40;
	return x;
}

/* NULL if this CPU lacks the instruction set. */
static struct backend *open_backend(const struct subject *s, uint32_t threads)
{
	struct backend_config config = {
		.threads = threads, .max_tokens = MAX_TOKENS, .max_cols = MAX_COLS, .isa = s->isa};
	const struct backend_ops *ops = backend_find(s->backend);
	struct backend *b = NULL;
	struct base_error e = {0};
	assert_non_null(ops);
	int r = ops->create(&config, &b, &e);
	if (r == -ENOTSUP)
		return NULL;
	assert_int_equal(r, 0);
	return b;
}

/* A matrix in both layouts. Scales are made normal: random bits would be NaN or overflow. */
struct matrix {
	uint32_t type, rows, cols;
	uint8_t *source, *packed;
	size_t row_bytes;
};

static uint16_t random_scale(void)
{
	return quant_f32_to_f16((random_normal() + 2.5f) * 0.01f);
}

static void fill_block(uint32_t type, uint8_t *p)
{
	uint16_t d = random_scale(), m = random_scale();
	if (random_bits() % 16 == 0)
		d = 0; // a block of zeros, as quantizers make them
	if (type == QUANT_F32) {
		float f = random_normal();
		memcpy(p, &f, 4);
	} else if (type == QUANT_F16) {
		d = quant_f32_to_f16(random_normal());
		memcpy(p, &d, 2);
	} else if (type == QUANT_BF16) {
		float f = random_normal();
		memcpy(p, (char *)&f + 2, 2);
	} else if (type == QUANT_Q6_K) {
		memcpy(p + 208, &d, 2);
	} else {
		memcpy(p, &d, 2);
		if (type != QUANT_Q4_0 && type != QUANT_Q5_0 && type != QUANT_Q8_0)
			memcpy(p + 2, &m, 2);
	}
}

static bool make_matrix(struct matrix *m, uint32_t type, uint32_t rows, uint32_t cols)
{
	uint64_t row_bytes;
	if (quant_row_bytes(type, cols, &row_bytes))
		return false;
	const struct quant_traits *t = quant_traits(type);
	size_t group_bytes = row_bytes * 16, groups = (rows + 15) / 16;
	*m = (struct matrix){type, rows, cols, malloc(row_bytes * rows), .row_bytes = row_bytes};
	// Not a byte more than the groups have: AddressSanitizer sees a kernel that reads beyond them.
	assert_int_equal(posix_memalign((void **)&m->packed, 64, groups * group_bytes), 0);
	assert_non_null(m->source);
	for (size_t i = 0; i < row_bytes * rows; i++)
		m->source[i] = (uint8_t)(random_bits() >> 11);
	for (size_t i = 0; i < row_bytes * rows; i += t->block_bytes)
		fill_block(type, m->source + i);
	for (uint32_t g = 0; g < groups; g++)
		assert_int_equal(quant_pack_r16(type, m->source + g * group_bytes,
					 rows - g * 16 < 16 ? rows - g * 16 : 16, cols, m->packed + g * group_bytes),
			0);
	return true;
}

static void free_matrix(struct matrix *m)
{
	free(m->source);
	free(m->packed);
}

static void multiply(struct backend *b, const struct matrix *m, const float *x, uint32_t tokens, float *y)
{
	struct backend_input *input;
	assert_int_equal(b->ops->input_create(b, &input), 0);
	b->ops->input_load(b, input, x, tokens, m->cols);
	struct backend_part part = {m->type, m->rows, m->packed, y, m->rows};
	b->ops->matmul(b, input, &part, 1);
	b->ops->input_destroy(b, input);
}

/*
 * |y - exact| <= tolerance * sqrt(sum (w x)^2) style bounds are loose for tests; here the error of each element is at
 * most what rounding of the activations explains. 16 columns have a step of max|x| / 127, or 1 / 254 of that if they
 * stand out in the row (kernels.h), so an error of half of it, and the errors of a row add up in random signs: 6 sigma
 * of step / sqrt(12) * |w| is the bound, plus float32's own rounding, 1e-5 of the sum of |w x|.
 */
static void check_matmul(const struct matrix *m, const float *x, uint32_t tokens, const float *y, bool floats)
{
	float *w = malloc(m->cols * sizeof(float));
	assert_non_null(w);
	for (uint32_t r = 0; r < m->rows; r++) {
		assert_int_equal(quant_dequantize_row(m->type, m->source + r * m->row_bytes, m->cols, w), 0);
		for (uint32_t t = 0; t < tokens; t++) {
			const float *v = x + (size_t)t * m->cols;
			double sum = 0, magnitude = 0, noise = 0, square = 0;
			for (uint32_t c = 0; c < m->cols; c++)
				square += (double)v[c] * v[c];
			double limit = 1.0001 * CPU_FINE_SIGMAS * sqrt(square / m->cols);
			for (uint32_t c = 0; c < m->cols; c++) {
				float max = 0;
				for (uint32_t k = c / 16 * 16; k < c / 16 * 16 + 16 && k < m->cols; k++)
					max = fmaxf(max, fabsf(v[k]));
				double step = max > limit ? max / 127 / 254 : max / 127;
				sum += (double)w[c] * v[c];
				magnitude += fabs((double)w[c] * v[c]);
				noise += step * step / 12 * w[c] * w[c];
			}
			double bound = 1e-5 * magnitude + (floats ? 0 : 6 * sqrt(noise)) + 1e-30;
			double error = fabs(y[(size_t)t * m->rows + r] - sum);
			if (!(error <= bound))
				fail_msg("type %s row %u token %u: %g, exact %g, bound %g", quant_traits(m->type)->name,
					r, t, y[(size_t)t * m->rows + r], sum, bound);
		}
	}
	free(w);
}

static void matmul_is_right(void **state)
{
	static const struct {
		uint32_t rows, cols, tokens;
	} shapes[] = {{16, 32, 1}, {16, 256, 2}, {37, 576, 3}, {50, 768, 13}, {5, 512, 60}, {33, 96, 7}, {17, 288, 50}};
	seed = 1;
	for (size_t s = 0; s < SUBJECTS; s++) {
		struct backend *b = open_backend(&subjects[s], 2);
		if (!b)
			continue;
		for (size_t i = 0; i < TYPES; i++)
			for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
				struct matrix m = {0};
				if (!make_matrix(&m, types[i], shapes[k].rows, shapes[k].cols))
					continue;
				uint32_t tokens = shapes[k].tokens;
				float *x = random_activations((size_t)tokens * m.cols);
				float *y = random_floats((size_t)tokens * m.rows);
				multiply(b, &m, x, tokens, y);
				bool floats =
					s == 0 || m.type == QUANT_F32 || m.type == QUANT_F16 || m.type == QUANT_BF16;
				check_matmul(&m, x, tokens, y, floats);
				free(x);
				free(y);
				free_matrix(&m);
			}
		b->ops->destroy(b);
	}
}

/* Float weights and columns that are no multiple of anything. */
static void matmul_of_odd_columns(void **state)
{
	seed = 2;
	for (size_t s = 0; s < SUBJECTS; s++) {
		struct backend *b = open_backend(&subjects[s], 2);
		struct matrix m = {0};
		if (!b)
			continue;
		assert_true(make_matrix(&m, QUANT_F16, 19, 301));
		float *x = random_activations(5 * 301), y[5 * 19];
		multiply(b, &m, x, 5, y);
		check_matmul(&m, x, 5, y, true);
		free(x);
		free_matrix(&m);
		b->ops->destroy(b);
	}
}

/* Rows beyond the matrix and columns of y between rows are not written. */
static void matmul_keeps_to_its_rows(void **state)
{
	seed = 3;
	for (size_t s = 0; s < SUBJECTS; s++) {
		struct backend *b = open_backend(&subjects[s], 1);
		struct matrix m = {0};
		if (!b)
			continue;
		for (uint32_t tokens = 1; tokens <= 5; tokens += 2) {
			assert_true(make_matrix(&m, QUANT_Q4_0, 21, 64));
			float *x = random_activations((size_t)tokens * 64), y[5 * 40];
			for (int i = 0; i < 200; i++)
				y[i] = 12345;
			struct backend_input *input;
			assert_int_equal(b->ops->input_create(b, &input), 0);
			b->ops->input_load(b, input, x, tokens, 64);
			struct backend_part part = {m.type, 21, m.packed, y, 40};
			b->ops->matmul(b, input, &part, 1);
			for (uint32_t t = 0; t < 5; t++)
				for (uint32_t r = 0; r < 40; r++)
					assert_true((y[t * 40 + r] == 12345) == (t >= tokens || r >= 21));
			b->ops->input_destroy(b, input);
			free(x);
			free_matrix(&m);
		}
		b->ops->destroy(b);
	}
}

/* Cuts a matrix into parts of whole groups, the tokens into batches, on several numbers of threads. */
static void check_invariance(struct backend *b, const struct matrix *m, const float *x, uint32_t tokens, uint32_t batch,
	uint32_t cut, const float *expected)
{
	struct backend_input *input;
	struct backend_part parts[16];
	float *y = random_floats((size_t)tokens * m->rows);
	assert_int_equal(b->ops->input_create(b, &input), 0);
	for (uint32_t t = 0; t < tokens; t += batch) {
		uint32_t n = tokens - t < batch ? tokens - t : batch, count = 0;
		for (uint32_t row = 0; row < m->rows; row += cut * 16, count++)
			parts[count] =
				(struct backend_part){m->type, m->rows - row < cut * 16 ? m->rows - row : cut * 16,
					m->packed + row * m->row_bytes, y + (size_t)t * m->rows + row, m->rows};
		b->ops->input_load(b, input, x + (size_t)t * m->cols, n, m->cols);
		b->ops->matmul(b, input, parts, count);
	}
	assert_memory_equal(y, expected, (size_t)tokens * m->rows * sizeof(float));
	b->ops->input_destroy(b, input);
	free(y);
}

static void matmul_does_not_depend_on_the_batch(void **state)
{
	static const uint32_t batches[] = {1, 2, 7, 48, 50, 64};
	seed = 4;
	for (size_t s = 1; s < SUBJECTS; s++)
		for (uint32_t threads = 1; threads <= 3; threads++) {
			struct backend *b = open_backend(&subjects[s], threads);
			if (!b)
				continue;
			for (size_t i = 0; i < TYPES; i++) {
				struct matrix m = {0};
				assert_true(make_matrix(&m, types[i], 75, 768));
				float *x = random_activations((size_t)64 * 768), *y = random_floats((size_t)64 * 75);
				for (uint32_t c = 0; c < 64; c++)
					x[c] = 0; // blocks of zeros too
				x[64] = 1e-30f;
				x[96] = 3e30f;
				multiply(b, &m, x, 64, y);
				for (size_t k = 0; k < sizeof(batches) / sizeof(batches[0]); k++)
					check_invariance(b, &m, x, 64, batches[k], 1 + (uint32_t)k, y);
				free(x);
				free(y);
				free_matrix(&m);
			}
			b->ops->destroy(b);
		}
}

/* The same bits from 1, 2 and 3 threads. */
static void matmul_does_not_depend_on_threads(void **state)
{
	for (size_t s = 1; s < SUBJECTS; s++)
		for (uint32_t tokens = 1; tokens <= 64; tokens += 21) {
			float y[3][64 * 75];
			for (uint32_t threads = 1; threads <= 3; threads++) {
				struct backend *b = open_backend(&subjects[s], threads);
				struct matrix m = {0};
				seed = 5;
				if (!b)
					continue;
				assert_true(make_matrix(&m, QUANT_Q4_K, 75, 512));
				float *x = random_activations((size_t)64 * 512);
				multiply(b, &m, x, tokens, y[threads - 1]);
				assert_memory_equal(y[0], y[threads - 1], tokens * 75 * sizeof(float));
				free(x);
				free_matrix(&m);
				b->ops->destroy(b);
			}
		}
}

/* ---- attention ---- */

struct scene {
	uint32_t heads, kv_heads, head_dim, window, positions;
	enum kv_type type;
};

/* Positions 0.. of one sequence, its blocks not in order, written `batch` tokens at a time. */
static void run_attention(struct backend *b, const struct scene *s, const float *q, const float *k, const float *v,
	uint32_t batch, float *out)
{
	uint32_t vector, blocks = (s->positions + 15) / 16, table[64];
	assert_int_equal(kv_vector_bytes(s->type, s->head_dim, &vector), 0);
	void *kc, *vc;
	size_t bytes = (size_t)vector * 16 * s->kv_heads * (blocks + 2);
	assert_int_equal(b->ops->alloc(b, bytes, &kc), 0);
	assert_int_equal(b->ops->alloc(b, bytes, &vc), 0);
	for (uint32_t i = 0; i < blocks; i++)
		table[i] = blocks + 1 - i;
	struct backend_attend_token token[MAX_TOKENS];
	for (uint32_t p = 0; p < s->positions; p += batch) {
		uint32_t n = s->positions - p < batch ? s->positions - p : batch;
		for (uint32_t i = 0; i < n; i++)
			token[i] = (struct backend_attend_token){table, p + i};
		size_t qo = (size_t)p * s->heads * s->head_dim, ko = (size_t)p * s->kv_heads * s->head_dim;
		struct backend_attend a = {.q = q + qo,
			.k = k + ko,
			.v = v + ko,
			.out = out + qo,
			.tokens = n,
			.heads = s->heads,
			.kv_heads = s->kv_heads,
			.head_dim = s->head_dim,
			.scale = 1 / sqrtf((float)s->head_dim),
			.window = s->window,
			.token = token,
			.kv_type = s->type,
			.k_cache = kc,
			.v_cache = vc};
		b->ops->attend(b, &a);
	}
	b->ops->free(b, kc);
	b->ops->free(b, vc);
}

/* In double, K and V as the cache stores them. */
static void exact_attention(
	const struct scene *s, const float *q, const float *k, const float *v, uint32_t p, uint32_t h, double *out)
{
	uint32_t kh = h / (s->heads / s->kv_heads), first = s->window && p + 1 > s->window ? p + 1 - s->window : 0;
	double weight[512], max = -INFINITY, sum = 0;
	float stored[256];
	uint8_t block[256 * 2 * 16];
	for (uint32_t i = first; i <= p; i++) {
		kv_value_store(s->type, k + ((size_t)i * s->kv_heads + kh) * s->head_dim, s->head_dim, 0, block);
		kv_value_load(s->type, block, 0, s->head_dim, stored);
		weight[i] = 0;
		for (uint32_t d = 0; d < s->head_dim; d++)
			weight[i] += (double)q[((size_t)p * s->heads + h) * s->head_dim + d] * stored[d];
		weight[i] /= sqrt(s->head_dim);
		max = fmax(max, weight[i]);
	}
	memset(out, 0, s->head_dim * sizeof(double));
	for (uint32_t i = first; i <= p; i++)
		sum += weight[i] = exp(weight[i] - max);
	for (uint32_t i = first; i <= p; i++) {
		kv_value_store(s->type, v + ((size_t)i * s->kv_heads + kh) * s->head_dim, s->head_dim, 0, block);
		kv_value_load(s->type, block, 0, s->head_dim, stored);
		for (uint32_t d = 0; d < s->head_dim; d++)
			out[d] += weight[i] / sum * stored[d];
	}
}

static const struct scene scenes[] = {
	{9, 3, 64, 0, 83, KV_F16}, {9, 3, 64, 0, 83, KV_Q8}, {8, 1, 128, 40, 100, KV_F16}, {4, 4, 32, 17, 70, KV_Q8},
	{6, 2, 80, 0, 37, KV_F16}, {2, 1, 20, 5, 33, KV_F16}, // no multiple of 16
	{20, 2, 64, 0, 20, KV_F16}, // more heads than a kernel takes at once
};
#define SCENES (sizeof(scenes) / sizeof(scenes[0]))

static void attention_is_right(void **state)
{
	seed = 6;
	for (size_t i = 0; i < SCENES; i++) {
		const struct scene *s = &scenes[i];
		size_t n = (size_t)s->positions * s->heads * s->head_dim,
		       kn = (size_t)s->positions * s->kv_heads * s->head_dim;
		float *q = random_floats(n), *k = random_floats(kn), *v = random_floats(kn), *out = random_floats(n);
		for (size_t j = 0; j < SUBJECTS; j++) {
			struct backend *b = open_backend(&subjects[j], 2);
			if (!b)
				continue;
			run_attention(b, s, q, k, v, MAX_TOKENS, out);
			for (uint32_t p = 0; p < s->positions; p++)
				for (uint32_t h = 0; h < s->heads; h++) {
					double exact[256];
					exact_attention(s, q, k, v, p, h, exact);
					// float32 sums of at most 128 products, and exp within 2 units: 1e-5 is ten
					// times that.
					for (uint32_t d = 0; d < s->head_dim; d++)
						if (fabs(out[((size_t)p * s->heads + h) * s->head_dim + d] - exact[d]) >
							1e-5)
							fail_msg(
								"scene %zu %s position %u head %u dim %u: %g, exact %g",
								i, b->ops->isa(b), p, h, d,
								out[((size_t)p * s->heads + h) * s->head_dim + d],
								exact[d]);
				}
			b->ops->destroy(b);
		}
		free(q);
		free(k);
		free(v);
		free(out);
	}
}

static void attention_does_not_depend_on_the_batch(void **state)
{
	static const uint32_t batches[] = {1, 2, 7, 33};
	seed = 7;
	for (size_t i = 0; i < SCENES; i++) {
		const struct scene *s = &scenes[i];
		size_t n = (size_t)s->positions * s->heads * s->head_dim,
		       kn = (size_t)s->positions * s->kv_heads * s->head_dim;
		float *q = random_floats(n), *k = random_floats(kn), *v = random_floats(kn);
		float *first = random_floats(n), *out = random_floats(n);
		for (size_t j = 1; j < SUBJECTS; j++)
			for (uint32_t threads = 1; threads <= 3; threads++) {
				struct backend *b = open_backend(&subjects[j], threads);
				if (!b)
					continue;
				if (threads == 1)
					run_attention(b, s, q, k, v, MAX_TOKENS, first);
				for (size_t m = 0; m < sizeof(batches) / sizeof(batches[0]); m++) {
					run_attention(b, s, q, k, v, batches[m], out);
					assert_memory_equal(first, out, n * sizeof(float));
				}
				b->ops->destroy(b);
			}
		free(q);
		free(k);
		free(v);
		free(first);
		free(out);
	}
}

/* Two sequences in one call, and tokens that are not in the order of their sequences' blocks. */
static void attention_of_two_sequences(void **state)
{
	seed = 8;
	for (size_t j = 0; j < SUBJECTS; j++) {
		struct backend *b = open_backend(&subjects[j], 2);
		if (!b)
			continue;
		enum { HEADS = 4, KV = 2, DIM = 32, BLOCK = 16 * DIM * 2 };
		float *q = random_floats(6 * HEADS * DIM), *k = random_floats(6 * KV * DIM),
		      *v = random_floats(6 * KV * DIM);
		float both[6 * HEADS * DIM], alone[6 * HEADS * DIM];
		uint32_t a_blocks[] = {2}, b_blocks[] = {0};
		struct backend_attend_token token[] = {
			{a_blocks, 0}, {a_blocks, 1}, {a_blocks, 2}, {b_blocks, 0}, {b_blocks, 1}, {a_blocks, 3}};
		void *kc, *vc;
		for (int round = 0; round < 2; round++) {
			assert_int_equal(b->ops->alloc(b, 3 * KV * BLOCK, &kc), 0);
			assert_int_equal(b->ops->alloc(b, 3 * KV * BLOCK, &vc), 0);
			struct backend_attend at = {.tokens = round ? 1 : 6,
				.heads = HEADS,
				.kv_heads = KV,
				.head_dim = DIM,
				.scale = 0.2f,
				.kv_type = KV_F16,
				.k_cache = kc,
				.v_cache = vc};
			for (uint32_t t = 0; t < 6; t += at.tokens) {
				at.q = q + t * HEADS * DIM;
				at.k = k + t * KV * DIM;
				at.v = v + t * KV * DIM;
				at.out = (round ? alone : both) + t * HEADS * DIM;
				at.token = token + t;
				b->ops->attend(b, &at);
			}
			b->ops->free(b, kc);
			b->ops->free(b, vc);
		}
		assert_memory_equal(both, alone, sizeof(both));
		free(q);
		free(k);
		free(v);
		b->ops->destroy(b);
	}
}

/* ---- rows ---- */

static void near(const char *what, float got, double exact, double relative)
{
	if (!(fabs(got - exact) <= fabs(exact) * relative + 1e-30))
		fail_msg("%s: %.9g, exact %.9g", what, got, exact);
}

static void rows_are_right(void **state)
{
	seed = 9;
	for (size_t j = 0; j < SUBJECTS; j++) {
		struct backend *b = open_backend(&subjects[j], 2);
		if (!b)
			continue;
		enum { N = 40, W = 577 };
		float *x = random_floats(N * W), *w = random_floats(W), *y = random_floats(N * W),
		      *z = random_floats(N * W);
		b->ops->norm(b, x, w, 1e-5f, N, W, y);
		for (uint32_t t = 0; t < N; t++) {
			double sum = 0;
			for (uint32_t i = 0; i < W; i++)
				sum += (double)x[t * W + i] * x[t * W + i];
			for (uint32_t i = 0; i < W; i++)
				near("norm", y[t * W + i], x[t * W + i] / sqrt(sum / W + 1e-5) * w[i], 1e-6);
		}
		x[0] = 100;
		x[1] = -100;
		x[2] = 0;
		b->ops->silu_gate(b, x, z, N * W, y);
		for (uint32_t i = 0; i < N * W; i++)
			if (x[i] > -85) // below, e^-x is near float's end and the result rounds to nothing
				near("silu", y[i], x[i] / (1 + exp(-(double)x[i])) * z[i], 2e-6);
			else
				assert_true(fabsf(y[i]) < 1e-30f);
		memcpy(y, x, N * W * sizeof(float));
		b->ops->add(b, y, z, N * W);
		for (uint32_t i = 0; i < N * W; i++)
			assert_true(y[i] == x[i] + z[i]);
		b->ops->add_bias(b, y, w, N, W);
		for (uint32_t i = 0; i < N * W; i++)
			assert_true(y[i] == x[i] + z[i] + w[i % W]);
		uint32_t rows[] = {39, 0, 7};
		b->ops->select(b, x, W, rows, 3, y);
		assert_memory_equal(y, x + 39 * W, W * sizeof(float));
		assert_memory_equal(y + 2 * W, x + 7 * W, W * sizeof(float));
		assert_int_equal(b->ops->wait(b, b->ops->fence(b)), 0);
		free(x);
		free(w);
		free(y);
		free(z);
		b->ops->destroy(b);
	}
}

static void rope_rotates(void **state)
{
	seed = 10;
	for (size_t j = 0; j < SUBJECTS; j++)
		for (int mode = BACKEND_ROPE_PAIRS; mode <= BACKEND_ROPE_HALVES; mode++) {
			struct backend *b = open_backend(&subjects[j], 2);
			if (!b)
				continue;
			enum { N = 30, HEADS = 5, DIM = 64, DIMS = 48 };
			float *x = random_floats(N * HEADS * DIM), *y = malloc(N * HEADS * DIM * sizeof(float));
			float *cs = random_floats(N * DIMS);
			memcpy(y, x, N * HEADS * DIM * sizeof(float));
			b->ops->rope(b, y, N, HEADS, DIM, DIMS, mode, cs);
			for (uint32_t i = 0; i < N * HEADS * DIM; i++) {
				uint32_t t = i / (HEADS * DIM), d = i % DIM, pairs = mode == BACKEND_ROPE_PAIRS;
				if (d >= DIMS) {
					assert_true(y[i] == x[i]);
					continue;
				}
				uint32_t n = pairs ? d / 2 : d % (DIMS / 2);
				bool second = pairs ? d % 2 : d >= DIMS / 2;
				uint32_t other = pairs ? i ^ 1 : second ? i - DIMS / 2 : i + DIMS / 2;
				double c = cs[t * DIMS + 2 * n], s = cs[t * DIMS + 2 * n + 1];
				double exact = second ? x[other] * s + x[i] * c : x[i] * c - x[other] * s;
				if (fabs(y[i] - exact) > 1e-6)
					fail_msg("rope: %g, exact %g", y[i], exact);
			}
			free(x);
			free(y);
			free(cs);
			b->ops->destroy(b);
		}
}

static void embedding_rows_come_out(void **state)
{
	seed = 11;
	for (size_t j = 0; j < SUBJECTS; j++)
		for (size_t i = 0; i < TYPES; i++) {
			struct backend *b = open_backend(&subjects[j], 2);
			struct matrix m = {0};
			if (!b)
				continue;
			assert_true(make_matrix(&m, types[i], 40, 256));
			struct backend_embed_row rows[3] = {
				{m.packed + 32 * m.row_bytes, 7}, {m.packed, 0}, {m.packed + 16 * m.row_bytes, 15}};
			static const uint32_t source[] = {39, 0, 31};
			float y[3 * 256], expected[256];
			b->ops->embed(b, m.type, 256, rows, 3, y);
			for (uint32_t t = 0; t < 3; t++) {
				assert_int_equal(
					quant_dequantize_row(m.type, m.source + source[t] * m.row_bytes, 256, expected),
					0);
				assert_memory_equal(y + t * 256, expected, sizeof(expected));
			}
			free_matrix(&m);
			b->ops->destroy(b);
		}
}

/* The documented accuracy of the vector exponential, over all of float's range that gives normal numbers. */
static void exponential_is_accurate(void **state)
{
	static const char *const isa[] = {"avx512-vnni", "avx2", "generic"};
	const struct cpu_kernels *kernels[] = {&cpu_avx512_kernels, &cpu_avx2_kernels, &cpu_generic_kernels};
	for (size_t k = 0; k < 3; k++) {
		struct backend *b = open_backend(&subjects[k + 1], 1);
		if (!b)
			continue;
		assert_string_equal(b->ops->isa(b), isa[k]);
		b->ops->destroy(b);
		for (float x = -87.3f; x < 88.3f; x += 0.00371f) {
			float y;
			kernels[k]->exp(&x, 1, &y);
			double exact = exp((double)x);
			float rounded = (float)exact;
			double unit = nextafterf(rounded, INFINITY) - rounded;
			if (fabs(y - exact) > 2 * unit)
				fail_msg("exp(%.9g) = %.9g, exact %.9g, %.2f units", x, y, exact,
					fabs(y - exact) / unit);
		}
		float x[] = {-100, -INFINITY, 0, -88}, y[4];
		kernels[k]->exp(x, 4, y);
		assert_true(y[0] == 0 && y[1] == 0 && y[2] == 1 && y[3] == 0);
	}
}

/* Every float16 as a weight, infinities and subnormals too. */
static void halves_are_exact(void **state)
{
	enum { COUNT = 65536 };
	uint16_t *w = malloc(COUNT * sizeof(*w));
	float *y = malloc(COUNT * sizeof(*y)), one = 1;
	assert_true(w && y);
	for (uint32_t i = 0; i < COUNT; i++)
		w[i] = (uint16_t)i;
	for (size_t j = 0; j < SUBJECTS; j++) {
		struct backend *b = open_backend(&subjects[j], 1);
		if (!b)
			continue;
		struct matrix m = {QUANT_F16, COUNT, 1, NULL, (uint8_t *)w, 2};
		multiply(b, &m, &one, 1, y);
		for (uint32_t i = 0; i < COUNT; i++) {
			float exact = quant_f16_to_f32((uint16_t)i);
			assert_true(isnan(exact) ? isnan(y[i]) : y[i] == exact);
		}
		b->ops->destroy(b);
	}
	free(w);
	free(y);
}

/* Activations that are no numbers, or huge, must not crash anything. */
static void strange_activations_do_no_harm(void **state)
{
	seed = 12;
	for (size_t j = 0; j < SUBJECTS; j++) {
		struct backend *b = open_backend(&subjects[j], 2);
		struct matrix m = {0};
		if (!b)
			continue;
		assert_true(make_matrix(&m, QUANT_Q4_1, 16, 64));
		float *x = random_floats(2 * 64), y[2 * 16];
		x[0] = NAN;
		x[40] = INFINITY;
		x[64] = 1e38f;
		multiply(b, &m, x, 2, y);
		free(x);
		free_matrix(&m);
		b->ops->destroy(b);
	}
}

static void creation_refuses_nonsense(void **state)
{
	struct base_error e = {0};
	struct backend *b = NULL;
	struct backend_config config = {.threads = 1, .max_tokens = 4, .max_cols = 64, .isa = "z80"};
	assert_int_equal(backend_cpu_ops.create(&config, &b, &e), -EINVAL);
	assert_non_null(strstr(e.message, "z80"));
	config.isa = "generic";
	config.threads = 100000;
	assert_int_equal(backend_cpu_ops.create(&config, &b, &e), -EINVAL);
	uint32_t cpus[] = {1000};
	config.threads = 1;
	config.cpus = cpus;
	config.cpus_count = 1;
	assert_int_equal(backend_cpu_ops.create(&config, &b, &e), -EINVAL);
	assert_non_null(strstr(e.message, "1000"));
	assert_null(b);
	assert_null(backend_find("abacus"));
	backend_cpu_ops.destroy(NULL);
	backend_reference_ops.destroy(NULL);
}

static void every_backend_is_among_the_subjects(void **state)
{
	for (size_t i = 0; backend_all[i]; i++) {
		bool found = false;
		for (size_t k = 0; k < SUBJECTS; k++)
			found = found || strcmp(subjects[k].backend, backend_all[i]->name) == 0;
		if (!found)
			fail_msg("no case runs over the backend \"%s\": add it to subjects", backend_all[i]->name);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_backend_is_among_the_subjects),
		cmocka_unit_test(matmul_is_right),
		cmocka_unit_test(matmul_of_odd_columns),
		cmocka_unit_test(matmul_keeps_to_its_rows),
		cmocka_unit_test(matmul_does_not_depend_on_the_batch),
		cmocka_unit_test(matmul_does_not_depend_on_threads),
		cmocka_unit_test(attention_is_right),
		cmocka_unit_test(attention_does_not_depend_on_the_batch),
		cmocka_unit_test(attention_of_two_sequences),
		cmocka_unit_test(rows_are_right),
		cmocka_unit_test(rope_rotates),
		cmocka_unit_test(embedding_rows_come_out),
		cmocka_unit_test(exponential_is_accurate),
		cmocka_unit_test(halves_are_exact),
		cmocka_unit_test(strange_activations_do_no_harm),
		cmocka_unit_test(creation_refuses_nonsense),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
