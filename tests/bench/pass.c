// SPDX-License-Identifier: Apache-2.0
// bench_pass MODE MODEL.gguf STORE: one rank in this process, without daemon, link or scheduler.
//   disk-bound  time of a decode pass / (cold bytes / what fio reads from the same drive), half of the weights hot
//   stall       share of time that compute waits for the drive when prefill makes a pass compute-bound
//   load        time from rank_create to the first token / raw time to read the hot bytes
// Rounds of both sides are interleaved; the figure is the median of the rounds' ratios.
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/error.h"
#include "offload/memory.h"
#include "shard/rank/rank.h"

#define ROUNDS 5
#define DISK_ROUNDS 11
#define BATCH_TOKENS 256

struct bench {
	struct rank_config config;
	struct rank_needs needs;
	struct rank *rank;
	uint32_t position; // of the one sequence
	uint32_t token;
	char layer_file[640]; // what fio reads
	char all_files[16 << 10]; // with a colon between them
};

static void die(const char *what, const struct base_error *e)
{
	fprintf(stderr, "bench_pass: %s: %s\n", what, base_error_text(e));
	exit(1);
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
	qsort(v, n, sizeof *v, compare_doubles);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static void list_files(struct bench *b, const char *directory)
{
	glob_t found;
	char pattern[640];
	size_t at = 0;
	snprintf(pattern, sizeof pattern, "%s/*.tp0of1", directory);
	if (glob(pattern, 0, NULL, &found))
		die(pattern, &(struct base_error){.message = "no such files"});
	for (size_t i = 0; i < found.gl_pathc && at < sizeof b->all_files; i++)
		at += (size_t)snprintf(
			b->all_files + at, sizeof b->all_files - at, "%s%s", i ? ":" : "", found.gl_pathv[i]);
	if (at >= sizeof b->all_files)
		die(directory, &(struct base_error){.message = "too many files"});
	globfree(&found);
}

static void prepare(struct bench *b, const char *model, const char *store)
{
	struct base_error e = {0};
	struct format_gguf *g = NULL;
	struct program *p = NULL;
	if (format_gguf_open(model, &g, &e) || program_build(g, &p, &e))
		die(model, &e);
	struct pack_config pack = {.store_path = store, .slice = {.layers = p->config.layers, .tp_size = 1}};
	struct pack_result packed;
	if (pack_model(g, p, &pack, &packed, &e))
		die("pack", &e);
	struct rank_config *c = &b->config;
	snprintf(c->store_directory, sizeof c->store_directory, "%s", packed.directory);
	snprintf(c->model_path, sizeof c->model_path, "%s", model);
	snprintf(c->backend, sizeof c->backend, "cpu");
	snprintf(c->engine, sizeof c->engine, "auto");
	memcpy(c->digest, packed.digest, sizeof c->digest);
	c->slice = pack.slice;
	c->batch_tokens = BATCH_TOKENS;
	c->logits_rows = 8;
	c->sequences = 1;
	c->context_tokens = 1024;
	c->verify_every = 1;
	if (rank_get_needs(p, c, &b->needs, &e))
		die("needs", &e);
	c->kv_budget_bytes = b->needs.kv_block_bytes * (c->context_tokens / KV_BLOCK_TOKENS);
	c->workspace_budget_bytes = b->needs.workspace_bytes;
	char name[64];
	snprintf(b->layer_file, sizeof b->layer_file, "%s/%s", packed.directory, pack_file_name(0, 0, 1, name));
	list_files(b, packed.directory);
	program_destroy(p);
	format_gguf_close(g);
}

static void start(struct bench *b, double hot_share)
{
	struct base_error e = {0};
	b->config.weights_budget_bytes = (uint64_t)((double)b->needs.weights_all_bytes * hot_share);
	if (b->config.weights_budget_bytes < b->needs.weights_min_bytes)
		b->config.weights_budget_bytes = b->needs.weights_min_bytes;
	if (rank_create(&b->config, &b->rank, &e, NULL, NULL))
		die("rank", &e);
	struct sample_params params = {.top_p = 1, .repetition_penalty = 1};
	if (rank_sequence_open(b->rank, 0, &params, 1))
		die("open", &e);
	b->position = 0;
	b->token = 1;
}

static void stop(struct bench *b)
{
	rank_destroy(b->rank);
	b->rank = NULL;
}

// One pass of n positions of the sequence, which starts again when its context is full.
static void run(struct bench *b, uint32_t n, struct rank_pass_result *ret)
{
	static uint32_t tokens[BATCH_TOKENS], blocks[1024 / KV_BLOCK_TOKENS];
	static struct rank_output outputs[8];
	static int status[1];
	struct base_error e = {0};
	if (b->position + n > b->config.context_tokens)
		b->position = 0;
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = i == 0 ? b->token : (b->position + i * 7) % 1000 + 20;
	uint32_t blocks_count = (b->position + n + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	for (uint32_t i = 0; i < blocks_count; i++)
		blocks[i] = i;
	struct rank_entry entry = {
		.first_position = b->position, .tokens = n, .blocks = blocks_count, .want = RANK_WANT_SAMPLE};
	struct rank_pass pass = {.entries = &entry,
		.entries_count = 1,
		.tokens = tokens,
		.tokens_count = n,
		.blocks = blocks,
		.blocks_count = blocks_count};
	*ret = (struct rank_pass_result){.outputs = outputs, .entry_status = status};
	if (rank_run(b->rank, &pass, ret, &e) || status[0])
		die("pass", &e);
	b->token = outputs[0].result.token;
	b->position += n;
}

// Of files for that long; 0: of all their bytes, once.
static double fio_bytes_per_s(const char *files, unsigned seconds)
{
	char line[20 << 10], text[64] = "";
	const char *dir = getenv("THAW_BENCH_DIR");
	snprintf(line, sizeof line, "%s/fio-ceiling '%s' 1M 16 %u", dir ? dir : "tests/bench", files, seconds);
	FILE *f = popen(line, "r");
	if (!f || !fgets(text, sizeof text, f) || pclose(f)) {
		fprintf(stderr, "bench_pass: fio-ceiling failed\n");
		exit(1);
	}
	return strtod(text, NULL);
}

// Passes for about a second; how long one took.
static double decode_for_a_second(struct bench *b)
{
	struct rank_stats from, to;
	struct rank_pass_result r;
	rank_get_stats(b->rank, &from);
	uint64_t t = base_clock_now_ns(), n = 0;
	while (n < 3 || base_clock_now_ns() - t < BASE_NS_PER_SECOND) {
		run(b, 1, &r);
		n++;
	}
	double ns = (double)(base_clock_now_ns() - t);
	rank_get_stats(b->rank, &to);
	// By Little's law; fewer than the depth says that the passes, not the drive, hold the reads up.
	double inflight = (double)(to.stream.read_latency_ns - from.stream.read_latency_ns) / ns;
	fprintf(stderr, "%.4f s a pass, %.1f reads in flight, %.3f of the time stalled\n", ns / 1e9 / (double)n,
		inflight, (double)(to.stream.stall_ns - from.stream.stall_ns) / ns);
	return ns / 1e9 / (double)n;
}

// Short rounds, each between two of fio's and against their mean: a drive that is shared drifts by a tenth within
// seconds.
static void disk_bound(struct bench *b)
{
	double ratios[DISK_ROUNDS], rates[DISK_ROUNDS + 1], seconds[DISK_ROUNDS];
	struct rank_placement placement;
	struct rank_pass_result r;
	start(b, 0.5);
	rank_get_placement(b->rank, &placement);
	rates[0] = fio_bytes_per_s(b->layer_file, 1);
	for (int i = 0; i < DISK_ROUNDS; i++) {
		run(b, 1, &r); // what was read ahead while fio ran is no part of the next ones
		seconds[i] = decode_for_a_second(b);
		rates[i + 1] = fio_bytes_per_s(b->layer_file, 1);
		ratios[i] = seconds[i] * (rates[i] + rates[i + 1]) / 2 / (double)placement.cold_bytes;
		fprintf(stderr, "round %d: fio %.0f MB/s, ratio %.3f\n", i, rates[i + 1] / 1e6, ratios[i]);
	}
	printf("disk-bound ratio=%.3f seconds_per_pass=%.4f cold_bytes=%llu fio_bytes_per_s=%.0f\n",
		median(ratios, DISK_ROUNDS), median(seconds, DISK_ROUNDS), (unsigned long long)placement.cold_bytes,
		median(rates, DISK_ROUNDS + 1));
	stop(b);
}

static void stall(struct bench *b)
{
	double shares[ROUNDS];
	struct rank_pass_result r;
	start(b, 0.5);
	run(b, BATCH_TOKENS, &r);
	for (int i = 0; i < ROUNDS; i++) {
		run(b, BATCH_TOKENS, &r);
		shares[i] = (double)r.stall_ns / (double)r.total_ns;
		fprintf(stderr, "round %d: %.3f s a pass of %d positions, stalled %.4f\n", i, (double)r.total_ns / 1e9,
			BATCH_TOKENS, shares[i]);
	}
	printf("stall ratio=%.4f\n", median(shares, ROUNDS));
	stop(b);
}

/* A virtual machine that gives free pages back to its host pays for each page's first touch there, far more than for
 * the read. To take as much memory and free it again just before leaves that out: reported beside the plain figure. */
static void warm_memory(size_t bytes)
{
	struct offload_memory m = {0};
	struct base_error e = {0};
	if (offload_memory_map(bytes, &m, &e))
		die("warm", &e);
	offload_memory_unmap(&m);
}

struct touch {
	const struct offload_memory *memory;
	size_t from, bytes;
	pthread_t thread;
};

static void *touch(void *arg)
{
	struct touch *t = arg;
	struct base_error e = {0};
	if (offload_memory_touch(t->memory, t->from, t->bytes, &e))
		die("touch", &e);
	return NULL;
}

// What is left of a load when nothing is read: a thread on each CPU takes its share of as much memory. Over the raw
// read.
static double touch_once(struct bench *b)
{
	struct offload_memory memory;
	struct base_error e = {0};
	struct touch parts[64];
	int count = get_nprocs() < 64 ? get_nprocs() : 64;
	size_t bytes = b->needs.weights_all_bytes, share = bytes / (size_t)count;
	double rate = fio_bytes_per_s(b->all_files, 0);
	uint64_t t = base_clock_now_ns();
	if (offload_memory_reserve(bytes, false, &memory, &e))
		die("touch", &e);
	for (int i = 0; i < count; i++) {
		parts[i] = (struct touch){.memory = &memory, .from = (size_t)i * share, .bytes = share};
		if (pthread_create(&parts[i].thread, NULL, touch, &parts[i]))
			die("thread", &e);
	}
	for (int i = 0; i < count; i++)
		pthread_join(parts[i].thread, NULL);
	double seconds = (double)(base_clock_now_ns() - t) / 1e9;
	offload_memory_unmap(&memory);
	fprintf(stderr, "touched in %.3f s, ratio %.3f\n", seconds, seconds * rate / (double)bytes);
	return seconds * rate / (double)bytes;
}

// From rank_create to the first token, over the time fio needs for the same bytes: all are hot here.
static double load_once(struct bench *b, bool warmed)
{
	struct rank_pass_result r;
	struct rank_placement placement;
	double rate = fio_bytes_per_s(b->all_files, 0);
	if (warmed)
		warm_memory(b->needs.weights_all_bytes);
	uint64_t t = base_clock_now_ns();
	start(b, 1.0);
	run(b, 1, &r);
	double seconds = (double)(base_clock_now_ns() - t) / 1e9;
	rank_get_placement(b->rank, &placement);
	stop(b);
	double raw = (double)placement.hot_bytes / rate;
	fprintf(stderr, "%s: first token after %.3f s, raw read %.3f s, ratio %.3f\n", warmed ? "warmed" : "plain",
		seconds, raw, seconds / raw);
	return seconds / raw;
}

static void load(struct bench *b)
{
	double plain[ROUNDS], warmed[ROUNDS], touched[ROUNDS];
	for (int i = 0; i < ROUNDS; i++) {
		plain[i] = load_once(b, false);
		touched[i] = touch_once(b);
		warmed[i] = load_once(b, true);
	}
	double ratio = median(plain, ROUNDS);
	printf("load ratio=%.3f touch_ratio=%.3f warmed_ratio=%.3f\n", ratio, median(touched, ROUNDS),
		median(warmed, ROUNDS));
}

int main(int argc, char **argv)
{
	static struct bench b;
	static const struct {
		const char *name;
		void (*run)(struct bench *);
	} modes[] = {{"disk-bound", disk_bound}, {"stall", stall}, {"load", load}};
	if (argc == 4) {
		for (size_t i = 0; i < base_array_size(modes); i++) {
			if (strcmp(argv[1], modes[i].name) == 0) {
				prepare(&b, argv[2], argv[3]);
				modes[i].run(&b);
				return 0;
			}
		}
	}
	fprintf(stderr, "usage: bench_pass disk-bound|stall|load MODEL.gguf STORE\n");
	return 2;
}
