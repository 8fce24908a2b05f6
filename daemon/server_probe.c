// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "daemon/server_internal.h"
#include "offload/engine.h"
#include "offload/memory.h"
#include "shard/backend/backend.h"

#define DRIVE_WARM_NS 50000000ull // not counted: what a drive's own memory, or its allowance for bursts, gives at first
#define DRIVE_NS 200000000ull
/* Of a slow drive that is too few reads, and the allowance too much of them: longer windows, a third if two do not
 * agree. */
#define DRIVE_SLOW_BYTES_PER_S 500e6
#define DRIVE_SLOW_NS 500000000ull
#define DRIVE_SLOW_WINDOWS 3u
#define DRIVE_AGREES 1.25
#define DRIVE_PATIENCE_NS (5 * BASE_NS_PER_SECOND)
#define DRIVE_DEPTH 16u
#define DRIVE_BLOCK_BYTES (1u << 20)
#define COMPUTE_NS 100000000ull
#define COMPUTE_ROWS 1024u
#define COMPUTE_COLS 2048u
#define COMPUTE_TOKENS 32u

struct largest {
	int fd; // -1: none yet
	uint64_t bytes;
};

/* The largest file of a directory and of those in it, `depth` below: the longest run to read. Takes fd over. */
static void find_largest(int fd, unsigned depth, struct largest *l)
{
	DIR *d = fdopendir(fd);
	if (!d) {
		close(fd);
		return;
	}
	for (struct dirent *n; (n = readdir(d));) {
		struct stat st;
		if (n->d_name[0] == '.' || fstatat(dirfd(d), n->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		bool larger = S_ISREG(st.st_mode) && (uint64_t)st.st_size > l->bytes;
		int flags = S_ISDIR(st.st_mode) ? O_DIRECTORY : O_DIRECT;
		if (!larger && !(S_ISDIR(st.st_mode) && depth))
			continue;
		int found = openat(dirfd(d), n->d_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | flags);
		if (found >= 0 && !larger) {
			find_largest(found, depth - 1, l);
		} else if (found >= 0) {
			if (l->fd >= 0)
				close(l->fd);
			*l = (struct largest){found, (uint64_t)st.st_size};
		}
	}
	closedir(d);
}

struct server_drive {
	struct offload_engine *engine;
	struct offload_memory memory;
	int fd;
	struct offload_read read[DRIVE_DEPTH];
	uint32_t in_flight;
	uint64_t offset, end;
	uint32_t block;
	uint64_t done_bytes;
};

static int submit_next(struct server_drive *d, struct offload_read *r)
{
	if (d->offset + d->block > d->end)
		d->offset = 0;
	r->offset_bytes = d->offset;
	r->length_bytes = d->block;
	d->offset += d->block;
	int n = d->engine->ops->submit(d->engine, &r, 1);
	d->in_flight += n == 1;
	return n == 1 ? 0 : n < 0 ? n : -EAGAIN;
}

struct window {
	uint64_t warm_ns, from_ns, from_bytes; // from_ns 0: still warming up
	bool slow;
	double rate[DRIVE_SLOW_WINDOWS];
	uint32_t count;
};

/* After a completion, the clock of which decides: many may come at once. True: there is a rate. */
static bool look(struct window *w, uint64_t now, uint64_t bytes, double *ret_bytes_per_s)
{
	if (w->from_ns ? now < w->from_ns + (w->slow ? DRIVE_SLOW_NS : DRIVE_NS) : now < w->warm_ns)
		return false;
	double rate = w->from_ns ? (double)(bytes - w->from_bytes) * 1e9 / (double)(now - w->from_ns) : 0;
	bool first = !w->from_ns, was_slow = w->slow;
	w->from_ns = now;
	w->from_bytes = bytes;
	if (first)
		return false;
	*ret_bytes_per_s = rate;
	w->slow = was_slow || rate < DRIVE_SLOW_BYTES_PER_S;
	if (!was_slow)
		return !w->slow;
	w->rate[w->count++] = rate;
	if (w->count < 2)
		return false;
	double low = w->rate[0] < w->rate[1] ? w->rate[0] : w->rate[1], high = w->rate[0] + w->rate[1] - low;
	if (w->count == 2) {
		*ret_bytes_per_s = (low + high) / 2;
		return high <= low * DRIVE_AGREES;
	}
	*ret_bytes_per_s = rate < low ? low : rate > high ? high : rate; // the one in the middle
	return true;
}

/* What came back; 0 of it: nothing did in that time. */
static int reap(struct server_drive *d, struct offload_read **ret_reads, uint64_t timeout_ns)
{
	uint64_t until = base_clock_now_ns() + timeout_ns, now = until - timeout_ns;
	int n = 0;
	for (; !n && now <= until; now = base_clock_now_ns()) // an engine may be woken for nothing
		n = d->engine->ops->reap(d->engine, ret_reads, DRIVE_DEPTH, until - now);
	d->in_flight -= n > 0 ? (uint32_t)n : 0;
	return n;
}

static int read_for(struct server_drive *d, uint64_t patience_ns, double *ret_bytes_per_s)
{
	struct window w = {.warm_ns = base_clock_now_ns() + DRIVE_WARM_NS};
	bool over = false;
	int status = 0;
	for (uint32_t i = 0; i < DRIVE_DEPTH && !status; i++)
		status = submit_next(d, &d->read[i]);
	while (d->in_flight) {
		struct offload_read *done[DRIVE_DEPTH];
		int n = reap(d, done, patience_ns);
		if (n <= 0)
			return n ? n : -ETIMEDOUT;
		for (int i = 0; i < n; i++) {
			if (done[i]->result < 0)
				status = done[i]->result;
			else
				d->done_bytes += (uint64_t)done[i]->result;
		}
		over = over || look(&w, base_clock_now_ns(), d->done_bytes, ret_bytes_per_s);
		for (int i = 0; i < n && !status && !over; i++)
			status = submit_next(d, done[i]);
	}
	return status;
}

static void drive_free(struct server_drive *d)
{
	if (d->engine)
		d->engine->ops->destroy(d->engine);
	offload_memory_unmap(&d->memory);
	close(d->fd);
	free(d);
}

static int drive_open(const struct server_drive_config *c, int fd, uint64_t bytes, struct server_drive **ret_drive)
{
	struct server_drive *d = calloc(1, sizeof *d);
	struct base_error fallback;
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	d->fd = fd;
	d->end = bytes;
	d->block = DRIVE_BLOCK_BYTES;
	while (d->block > bytes / 2)
		d->block /= 2;
	int status = offload_memory_map((size_t)d->block * DRIVE_DEPTH, &d->memory, NULL);
	for (uint32_t i = 0; i < DRIVE_DEPTH && !status; i++)
		d->read[i].buffer = (char *)d->memory.data + (size_t)i * d->block;
	const struct offload_engine_config engine = {.depth = DRIVE_DEPTH,
		.files = &d->fd,
		.files_count = 1,
		.buffers = d->memory.data,
		.buffers_bytes = d->memory.bytes};
	if (!status)
		status = c->ops ? c->ops->create(&engine, &d->engine, NULL)
				: offload_engine_create(c->engine, &engine, &d->engine, &fallback, NULL);
	if (status) {
		drive_free(d);
		return status;
	}
	*ret_drive = d;
	return 0;
}

int server_probe_drive(const struct server_drive_config *c, struct server_drive **left, double *ret_bytes_per_s)
{
	struct offload_read *back[DRIVE_DEPTH];
	struct largest l = {.fd = -1};
	*ret_bytes_per_s = 0;
	while (*left && (*left)->in_flight) {
		if (reap(*left, back, 0) <= 0)
			return -ETIMEDOUT; // it is as it was
	}
	if (*left)
		drive_free(*left);
	*left = NULL;
	int at = open(c->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (at >= 0)
		find_largest(at, 1, &l);
	if (l.bytes < 64 * BASE_PAGE_BYTES) {
		if (l.fd >= 0)
			close(l.fd);
		return 0;
	}
	struct server_drive *d;
	int status = drive_open(c, l.fd, l.bytes, &d);
	if (status)
		return status;
	status = read_for(d, c->patience_ns ? c->patience_ns : DRIVE_PATIENCE_NS, ret_bytes_per_s);
	if (d->in_flight) // the kernel may still write to its memory, and destroy would wait for that
		*left = d;
	else
		drive_free(d);
	return status;
}

/* One matrix of 8-bit blocks, many tokens: what prefill does. */
static int multiply(const struct backend_ops *ops, struct backend *b, double *ret_macs_per_s)
{
	void *weights = NULL, *x = NULL, *y = NULL;
	struct backend_input *input = NULL;
	uint64_t row;
	int status = quant_row_bytes(QUANT_Q8_0, COMPUTE_COLS, &row);
	if (!status)
		status = ops->alloc(b, COMPUTE_ROWS * row, &weights);
	if (!status)
		status = ops->alloc(b, (size_t)COMPUTE_TOKENS * COMPUTE_COLS * sizeof(float), &x);
	if (!status)
		status = ops->alloc(b, (size_t)COMPUTE_TOKENS * COMPUTE_ROWS * sizeof(float), &y);
	if (!status)
		status = ops->input_create(b, &input);
	if (!status) {
		const struct backend_part part = {
			.type = QUANT_Q8_0, .rows = COMPUTE_ROWS, .weights = weights, .y = y, .y_stride = COMPUTE_ROWS};
		uint64_t from = base_clock_now_ns(), now = from, rounds = 0;
		ops->input_load(b, input, x, COMPUTE_TOKENS, COMPUTE_COLS);
		for (; now < from + COMPUTE_NS; now = base_clock_now_ns(), rounds++)
			ops->matmul(b, input, &part, 1);
		*ret_macs_per_s =
			(double)rounds * COMPUTE_TOKENS * COMPUTE_ROWS * COMPUTE_COLS * 1e9 / (double)(now - from);
		ops->input_destroy(b, input);
	}
	ops->free(b, y);
	ops->free(b, x);
	ops->free(b, weights);
	return status;
}

int server_probe_compute(
	const struct topology_machine *m, const char *backend, uint32_t threads, double *ret_macs_per_s)
{
	const struct backend_ops *ops = backend_find(backend);
	const struct backend_config c = {
		.threads = threads,
		.cpus = m->cpu,
		.cpus_count = m->cpus,
		.max_tokens = COMPUTE_TOKENS,
		.max_cols = COMPUTE_COLS,
	};
	struct backend *b;
	if (!ops)
		return -ENOENT;
	int status = ops->create(&c, &b, NULL);
	if (status)
		return status;
	status = multiply(ops, b, ret_macs_per_s);
	ops->destroy(b);
	return status;
}
