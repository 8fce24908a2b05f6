// SPDX-License-Identifier: Apache-2.0
// What the look-ahead stream gets out of the drive, and what it costs. The figure comes last.
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "offload/hash.h"
#include "offload/stream.h"

#define STORE_NAME "bench-stream"
#define MAX_ROUNDS 31

static const char usage[] =
	"usage: bench_stream cold-stream DIR   bytes/s of the stream / fio's (bar 0.95)\n"
	"       bench_stream io-cpu DIR        CPU seconds per cold GB without and with checksums (bars 0.03, 0.07)\n"
	"       bench_stream hash              CPU seconds per GB of checksums\n"
	"options: --engine auto|uring|sync  --block BYTES  --depth N  --slots N  --gib N  --rounds N  --seconds N\n"
	"         --verify N  checks every N-th read in cold-stream (default 1: all; 0: none)\n"
	"DIR holds a store of random bytes, made when it is not there (2 GiB, or --gib).\n";

struct options {
	const char *verb, *dir, *engine;
	uint32_t block, depth, slots, gib, rounds, seconds, verify;
};

struct bed {
	const struct options *options;
	struct offload_store *store;
	int fd;
	struct offload_stream_item *items;
	uint32_t count;
	char path[4096], name[64];
};

struct figures {
	double bytes_per_s, cpu_per_gb, io_cpu_per_gb, verify_per_gb, stall;
};

static int fail(const char *what, const struct base_error *e)
{
	fprintf(stderr, "%s: %s\n", what, base_error_text(e));
	return -1;
}

// Random bytes, so that no drive can compress them; one extent per piece.
static int make_store(struct bed *b, int dirfd, struct base_error *e)
{
	const struct options *o = b->options;
	struct offload_store_identity id = {.tp_size = 1, .extent_bytes = o->block};
	struct offload_store_writer *w;
	uint32_t index, rows = (uint32_t)(((uint64_t)o->gib << 30) / o->block);
	struct offload_store_tensor t = {.name = "random", .rows = rows, .cols = o->block};
	uint64_t *data = malloc(o->block), random = 88172645463325252ull;
	if (!data)
		return base_error_set(e, -ENOMEM, "no memory");
	int r = offload_store_writer_create(dirfd, b->name, &id, &w, e);
	if (r < 0) {
		free(data);
		return r;
	}
	fprintf(stderr, "making %s\n", b->path);
	r = offload_store_writer_tensor(w, &t, &index, e);
	for (uint32_t i = 0; r == 0 && i < rows; i++) {
		for (uint32_t k = 0; k < o->block / 8; k++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			data[k] = random;
		}
		r = offload_store_writer_piece(w, index, i, 1, data, o->block, e);
	}
	if (r == 0)
		r = offload_store_writer_commit(w, e);
	offload_store_writer_destroy(w);
	free(data);
	return r;
}

static int open_store(struct bed *b)
{
	const struct options *o = b->options;
	struct base_error e = {0};
	int dirfd = open(o->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0) {
		perror(o->dir);
		return -1;
	}
	snprintf(b->name, sizeof b->name, STORE_NAME "-%u-%u", o->block, o->gib);
	snprintf(b->path, sizeof b->path, "%s/%s", o->dir, b->name);
	int r = offload_store_open(dirfd, b->name, NULL, &b->store, &e);
	if (r == -ENOENT) {
		r = make_store(b, dirfd, &e);
		if (r == 0)
			r = offload_store_open(dirfd, b->name, NULL, &b->store, &e);
	}
	close(dirfd);
	if (r < 0)
		return fail("store", &e);
	const struct offload_store_extent *x = offload_store_extents(b->store, &b->count);
	b->fd = offload_store_fd(b->store);
	b->items = calloc(b->count, sizeof *b->items);
	for (uint32_t i = 0; b->items && i < b->count; i++)
		b->items[i] = (struct offload_stream_item){0, &x[i]};
	if (!offload_store_direct(b->store))
		fprintf(stderr, "warning: the file system refuses O_DIRECT\n");
	return b->items ? 0 : -1;
}

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

// Takes and gives back extents until the time is over.
static int consume(struct offload_stream *s, uint64_t ns)
{
	uint64_t end = base_clock_now_ns() + ns;
	while (base_clock_now_ns() < end) {
		const void *data;
		uint32_t slot;
		struct base_error e = {0};
		if (offload_stream_next(s, &data, &slot, &e) < 0)
			return fail("next", &e);
		offload_stream_release(s, slot);
	}
	return 0;
}

static int measure(const struct bed *b, uint32_t verify_every, struct figures *ret)
{
	const struct options *o = b->options;
	struct offload_stream_config c = {
		.engine = o->engine,
		.files = &b->fd,
		.files_count = 1,
		.items = b->items,
		.items_count = b->count,
		.slots = o->slots,
		.slot_bytes = o->block,
		.depth = o->depth,
		.verify_every = verify_every,
	};
	struct offload_stream *s;
	struct base_error e = {0}, fallback = {0};
	if (offload_stream_create(&c, &s, &fallback, &e) < 0)
		return fail("stream", &e);
	if (fallback.code)
		fprintf(stderr, "warning: %s\n", fallback.message);
	struct offload_stream_stats from, to;
	int r = consume(s, BASE_NS_PER_SECOND / 5); // until it is steady
	offload_stream_get_stats(s, &from);
	uint64_t start = base_clock_now_ns();
	double cpu = cpu_seconds();
	if (r == 0)
		r = consume(s, o->seconds * BASE_NS_PER_SECOND);
	cpu = cpu_seconds() - cpu;
	double wall = 1e-9 * (double)(base_clock_now_ns() - start);
	offload_stream_get_stats(s, &to);
	double gb = 1e-9 * (double)(to.read_bytes - from.read_bytes);
	*ret = (struct figures){
		.bytes_per_s = 1e9 * gb / wall,
		.cpu_per_gb = cpu / gb,
		.io_cpu_per_gb = 1e-9 * (double)(to.io_cpu_ns - from.io_cpu_ns) / gb,
		.verify_per_gb = 1e-9 * (double)(to.verify_ns - from.verify_ns) / gb,
		.stall = 1e-9 * (double)(to.stall_ns - from.stall_ns) / wall,
	};
	fprintf(stderr,
		"%s, %s pages, block %u, depth %u, verify %u: %.3f GB/s; CPU s/GB: process %.4f, I/O thread %.4f, "
		"checksums %.4f\n",
		offload_stream_engine(s), offload_pages_name(offload_stream_pages(s)), o->block, o->depth, verify_every,
		1e-9 * ret->bytes_per_s, ret->cpu_per_gb, ret->io_cpu_per_gb, ret->verify_per_gb);
	offload_stream_destroy(s);
	return r;
}

static int ceiling(const struct bed *b, double *ret_bytes_per_s)
{
	const struct options *o = b->options;
	char command[9000], line[64] = "";
	const char *scripts = getenv("THAW_BENCH_DIR"); // set by tests/bench/run
	snprintf(command, sizeof command, "'%s/fio-ceiling' '%s' %u %u %u", scripts ? scripts : BENCH_DIR, b->path,
		o->block, o->depth, o->seconds);
	FILE *p = popen(command, "re");
	if (!p || !fgets(line, sizeof line, p))
		line[0] = 0;
	int status = p ? pclose(p) : -1;
	*ret_bytes_per_s = strtod(line, NULL);
	if (status != 0 || *ret_bytes_per_s <= 0) {
		fprintf(stderr, "fio-ceiling failed (is fio installed?)\n");
		return -1;
	}
	fprintf(stderr, "fio: %.3f GB/s\n", 1e-9 * *ret_bytes_per_s);
	return 0;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, uint32_t n)
{
	qsort(v, n, sizeof *v, compare);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

// Short rounds, each between two of fio's and against their mean: a drive that is shared drifts by a tenth within
// seconds.
static int cold_stream(const struct bed *b)
{
	double ours[MAX_ROUNDS], fio[MAX_ROUNDS + 1], ratio[MAX_ROUNDS];
	uint32_t n = b->options->rounds;
	if (ceiling(b, &fio[0]) < 0)
		return -1;
	for (uint32_t i = 0; i < n; i++) {
		struct figures f;
		if (measure(b, b->options->verify, &f) < 0 || ceiling(b, &fio[i + 1]) < 0)
			return -1;
		ours[i] = f.bytes_per_s;
		ratio[i] = 2 * ours[i] / (fio[i] + fio[i + 1]);
	}
	printf("cold-stream ratio=%.3f ours=%.0f fio=%.0f\n", median(ratio, n), median(ours, n), median(fio, n + 1));
	return 0;
}

static int io_cpu(const struct bed *b)
{
	double plain[MAX_ROUNDS], verified[MAX_ROUNDS];
	for (uint32_t i = 0; i < b->options->rounds; i++) {
		struct figures f;
		if (measure(b, 0, &f) < 0)
			return -1;
		plain[i] = f.cpu_per_gb;
		if (measure(b, 1, &f) < 0)
			return -1;
		verified[i] = f.cpu_per_gb;
	}
	printf("io-cpu plain=%.4f verified=%.4f\n", median(plain, b->options->rounds),
		median(verified, b->options->rounds));
	return 0;
}

// Over memory that does not stay in the caches, as extents that come from the drive.
static int hash_cpu(const struct options *o)
{
	struct offload_memory m;
	struct base_error e = {0};
	if (offload_memory_map(256u << 20, &m, &e) < 0)
		return fail("memory", &e);
	memset(m.data, 7, m.bytes);
	double cost[MAX_ROUNDS];
	uint64_t sum = 0;
	for (uint32_t i = 0; i < o->rounds; i++) {
		uint64_t start = base_clock_thread_cpu_ns();
		for (size_t at = 0; at < m.bytes; at += o->block)
			sum += offload_hash((const char *)m.data + at, o->block);
		cost[i] = (double)(base_clock_thread_cpu_ns() - start) / (double)m.bytes;
	}
	offload_memory_unmap(&m);
	printf("hash cpu_s_per_gb=%.4f (%08" PRIx64 ")\n", median(cost, o->rounds), sum & 0xffffffff);
	return 0;
}

static bool parse(int argc, char **argv, struct options *o)
{
	*o = (struct options){
		.engine = "auto", .block = 1 << 20, .depth = 16, .gib = 2, .rounds = 15, .seconds = 1, .verify = 1};
	for (int i = 1; i < argc; i++) {
		struct {
			const char *name;
			uint32_t *value;
		} numbers[] = {{"--block", &o->block}, {"--depth", &o->depth}, {"--slots", &o->slots},
			{"--gib", &o->gib}, {"--rounds", &o->rounds}, {"--seconds", &o->seconds},
			{"--verify", &o->verify}};
		bool found = false;
		for (size_t k = 0; k < sizeof numbers / sizeof numbers[0]; k++) {
			if (strcmp(argv[i], numbers[k].name) == 0 && i + 1 < argc) {
				*numbers[k].value = (uint32_t)strtoul(argv[++i], NULL, 10);
				found = true;
				break;
			}
		}
		if (found)
			continue;
		if (strcmp(argv[i], "--engine") == 0 && i + 1 < argc)
			o->engine = argv[++i];
		else if (argv[i][0] == '-')
			return false;
		else if (!o->verb)
			o->verb = argv[i];
		else if (!o->dir)
			o->dir = argv[i];
		else
			return false;
	}
	if (o->slots == 0)
		o->slots = o->depth + o->depth / 2 + 2;
	return o->verb && o->rounds > 0 && o->rounds <= MAX_ROUNDS && o->block >= 4096 && o->block % 4096 == 0 &&
	       o->gib > 0 && o->depth > 0 && o->seconds > 0 && (strcmp(o->verb, "hash") == 0 || o->dir);
}

int main(int argc, char **argv)
{
	struct options o;
	if (!parse(argc, argv, &o)) {
		fputs(usage, stderr);
		return 2;
	}
	if (strcmp(o.verb, "hash") == 0)
		return hash_cpu(&o) < 0 ? 1 : 0;
	struct bed b = {.options = &o, .fd = -1};
	int r = open_store(&b);
	if (r == 0 && strcmp(o.verb, "cold-stream") == 0)
		r = cold_stream(&b);
	else if (r == 0 && strcmp(o.verb, "io-cpu") == 0)
		r = io_cpu(&b);
	else if (r == 0) {
		fputs(usage, stderr);
		r = -1;
	}
	free(b.items);
	offload_store_close(b.store);
	return r < 0 ? 1 : 0;
}
