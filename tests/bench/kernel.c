// SPDX-License-Identifier: Apache-2.0
/*
 * bench_kernel decode TYPE [MIB]    weight bytes/s of one-token matmul by the plain read bandwidth of the same memory and
 *                                   threads; rounds interleaved, medians. First a line of its own, decode-kernel-planes,
 *                                   with activations of which a share of blocks stands out (kernels.h, second planes)
 * bench_kernel prefill TYPE [N [MIB]]
 *                                   multiply-adds/s of an N-token matmul (default 512) by a matrix of 4096 columns and
 *                                   4096 rows, which the caches hold, or of MIB, which they do not if it is large
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "shard/backend/backend.h"
#include "shard/backend/cpu/pool.h"

#define ROUNDS 15

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, int n)
{
	qsort(v, (size_t)n, sizeof(*v), compare);
	return v[n / 2];
}

static double seconds(void)
{
	return (double)base_clock_now_ns() * 1e-9;
}

static int type_of(const char *name)
{
	for (uint32_t t = 0; t < 64; t++) {
		const struct quant_traits *traits = quant_traits(t);
		if (traits && strcasecmp(traits->name, name) == 0)
			return (int)t;
	}
	return -1;
}

struct bench {
	struct backend *b;
	const struct backend_ops *ops;
	struct backend_input *input;
	void *weights;
	float *x, *y;
	uint32_t type, tokens, cols, rows;
	size_t bytes;
	struct cpu_pool *pool; // decode: for plain reading
};

static int setup(struct bench *s, uint64_t most_bytes)
{
	struct backend_config config = {.max_tokens = s->tokens, .max_cols = s->cols};
	struct base_error e = {0};
	uint64_t row_bytes;
	s->ops = &backend_cpu_ops;
	const char *isa = getenv("THAW_BENCH_ISA"), *threads = getenv("THAW_BENCH_THREADS");
	config.isa = isa;
	config.threads = threads ? (uint32_t)atoi(threads) : 0;
	int r = s->ops->create(&config, &s->b, &e);
	if (r) {
		fprintf(stderr, "%s\n", base_error_text(&e));
		return r;
	}
	if (quant_row_bytes(s->type, s->cols, &row_bytes))
		return -EINVAL;
	if (most_bytes)
		s->rows = (uint32_t)(most_bytes / row_bytes) / 64 * 64;
	s->bytes = row_bytes * s->rows;
	if (s->ops->alloc(s->b, s->bytes, &s->weights) || s->ops->input_create(s->b, &s->input) ||
		s->ops->alloc(s->b, (size_t)s->tokens * s->cols * 4, (void **)&s->x) ||
		s->ops->alloc(s->b, (size_t)s->tokens * s->rows * 4, (void **)&s->y))
		return -ENOMEM;
	// Any bits are weights; these are no NaN in any type.
	for (size_t i = 0; i < s->bytes; i++)
		((uint8_t *)s->weights)[i] = (uint8_t)((i * 2654435761u >> 13) & 0x37);
	for (size_t i = 0; i < (size_t)s->tokens * s->cols; i++)
		s->x[i] = (float)((int)(i * 2654435761u >> 20 & 255) - 128);
	s->ops->input_load(s->b, s->input, s->x, s->tokens, s->cols);
	return 0;
}

/* Every twelfth block of 32 gets a value that stands out: 8 % have a second plane, as activations of SmolLM2-135M have
 * 4 to 12 %. */
static void stand_out(struct bench *s)
{
	for (size_t i = 0; i < (size_t)s->tokens * s->cols; i += 12 * 32)
		s->x[i + i / 32 % 32] = 1000;
	s->ops->input_load(s->b, s->input, s->x, s->tokens, s->cols);
}

static void teardown(struct bench *s)
{
	s->ops->input_destroy(s->b, s->input);
	s->ops->free(s->b, s->weights);
	s->ops->free(s->b, s->x);
	s->ops->free(s->b, s->y);
	s->ops->destroy(s->b);
}

static void multiply(const struct bench *s)
{
	struct backend_part part = {s->type, s->rows, s->weights, s->y, s->rows};
	s->ops->matmul(s->b, s->input, &part, 1);
}

/* Plain reading: each thread adds up the 64-byte vectors of its share, in order. (Software prefetch and several
 * streams a thread were tried: slower, or the same.) */
struct reading {
	const char *p;
	size_t bytes;
	uint32_t threads;
	uint64_t sum[64][8];
};

typedef uint64_t line __attribute__((vector_size(64)));

static void read_share(void *context, uint32_t thread)
{
	struct reading *r = context;
	size_t share = r->bytes / r->threads / 4096 * 4096;
	const line *p = (const line *)(const void *)(r->p + share * thread);
	line a = {0}, b = a, c = a, d = a;
	for (size_t i = 0; i < share / 64; i += 4) {
		a += p[i];
		b += p[i + 1];
		c += p[i + 2];
		d += p[i + 3];
	}
	a += b + c + d;
	memcpy(r->sum[thread % 64], &a, 64);
}

static void decode_rounds(const struct bench *s, const char *what, unsigned long long mib)
{
	double kernel[ROUNDS], plain[ROUNDS], ratio[ROUNDS];
	struct reading r = {.p = s->weights, .bytes = s->bytes, .threads = cpu_pool_threads(s->pool)};
	multiply(s);
	for (int i = 0; i < ROUNDS; i++) {
		double t0 = seconds();
		multiply(s);
		double t1 = seconds();
		cpu_pool_run(s->pool, read_share, &r);
		double t2 = seconds();
		kernel[i] = (double)s->bytes / (t1 - t0) * 1e-9;
		plain[i] = (double)s->bytes / (t2 - t1) * 1e-9;
		ratio[i] = kernel[i] / plain[i];
	}
	double k = median(kernel, ROUNDS), p = median(plain, ROUNDS);
	printf("%s-%s ratio=%.3f kernel_gb_s=%.2f read_gb_s=%.2f median_of_pairs=%.3f isa=%s mib=%llu rounds=%d\n",
		what, quant_traits(s->type)->name, k / p, k, p, median(ratio, ROUNDS), s->ops->isa(s->b), mib, ROUNDS);
}

static int decode(uint32_t type, uint64_t mib)
{
	struct bench s = {.type = type, .tokens = 1, .cols = 4096};
	if (setup(&s, mib << 20))
		return 1;
	const char *threads = getenv("THAW_BENCH_THREADS");
	if (cpu_pool_create(threads ? (uint32_t)atoi(threads) : 0, NULL, 0, &s.pool, NULL))
		return 1;
	float *x = malloc(s.cols * sizeof(*x));
	if (!x)
		return 1;
	memcpy(x, s.x, s.cols * sizeof(*x));
	stand_out(&s);
	decode_rounds(&s, "decode-kernel-planes", mib);
	memcpy(s.x, x, s.cols * sizeof(*x));
	s.ops->input_load(s.b, s.input, s.x, s.tokens, s.cols);
	decode_rounds(&s, "decode-kernel", mib);
	free(x);
	cpu_pool_destroy(s.pool);
	teardown(&s);
	return 0;
}

static int prefill(uint32_t type, uint32_t tokens, uint64_t mib)
{
	struct bench s = {.type = type, .tokens = tokens, .cols = 4096, .rows = 4096};
	double rate[ROUNDS], load[ROUNDS];
	if (setup(&s, mib << 20))
		return 1;
	multiply(&s);
	for (int i = 0; i < ROUNDS; i++) {
		double t0 = seconds();
		s.ops->input_load(s.b, s.input, s.x, s.tokens, s.cols);
		double t1 = seconds();
		multiply(&s);
		double t2 = seconds();
		rate[i] = (double)s.rows * s.cols * s.tokens / (t2 - t1) * 1e-9;
		load[i] = (t1 - t0) * 1e6;
	}
	printf("prefill-kernel-%s gmac_s=%.1f input_load_us=%.0f tokens=%u mib=%.0f isa=%s\n", quant_traits(type)->name,
		median(rate, ROUNDS), median(load, ROUNDS), tokens, (double)s.bytes / 0x1p20, s.ops->isa(s.b));
	teardown(&s);
	return 0;
}

static int usage(void)
{
	fprintf(stderr, "usage: bench_kernel decode TYPE [MIB] | prefill TYPE [TOKENS [MIB]]\n");
	return 2;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return usage();
	int type = type_of(argv[2]);
	long n = argc > 3 ? atol(argv[3]) : 0, mib = argc > 4 ? atol(argv[4]) : 0;
	if (type < 0 || n < 0 || n > 65536 || mib < 0 || mib > 65536)
		return usage();
	if (strcmp(argv[1], "decode") == 0)
		return decode((uint32_t)type, n ? (uint64_t)n : 1024);
	if (strcmp(argv[1], "prefill") == 0)
		return prefill((uint32_t)type, n ? (uint32_t)n : 512, (uint64_t)mib);
	return usage();
}
