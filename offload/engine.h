/* SPDX-License-Identifier: Apache-2.0
 * Engines that read extents: `uring` (io_uring, registered files and buffers, O_DIRECT) and `sync` (a small
 * pool of threads with pread), the fallback and the reference.
 *
 * The caller owns every offload_read from submit until it comes back from reap. All submits and reaps from one thread
 * (the I/O thread of a stream, or the stage thread for row reads), destroy too while reads are in flight; the others
 * from any. Depth is fixed at create: submit beyond it is -EAGAIN. Buffers, offsets and lengths are multiples of 4096
 * when the file is O_DIRECT.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define OFFLOAD_ENGINE_MAX_DEPTH 4096u
#define OFFLOAD_ENGINE_FOREVER UINT64_MAX // a reap timeout

struct offload_read {
	uint32_t file; // index of engine config's files
	uint32_t length_bytes;
	uint64_t offset_bytes;
	void *buffer;
	int result; // after reap: bytes read (short only at the end of the file) or -errno
	uint64_t submitted_ns, completed_ns; // set by the engine
	void *user;
};

struct offload_engine_config {
	uint32_t depth; // most reads in flight
	const int *files; // fds, opened by the caller, owned by it, kept open until destroy
	uint32_t files_count;
	void *buffers; // the one region that reads go to: registered if the engine can; NULL: none
	size_t buffers_bytes;
};

struct offload_engine;

struct offload_engine_ops {
	const char *name;
	int (*create)(
		const struct offload_engine_config *config, struct offload_engine **ret_engine, struct base_error *e);
	void (*destroy)(struct offload_engine *e); // waits for the reads in flight; NULL is fine
	int (*submit)(struct offload_engine *e, struct offload_read *const *reads,
		uint32_t count); // count accepted, or -errno
	/* Up to max finished reads; waits at most timeout_ns for the first one (0: only looks). 0 on timeout. */
	int (*reap)(struct offload_engine *e, struct offload_read **ret_reads, uint32_t max, uint64_t timeout_ns);
	/* Makes a reap that waits, or the next one, return early; the one call allowed from any thread. */
	void (*wake)(struct offload_engine *e);
	/* CPU time of the engine's own threads; from any thread. NULL: it has none. */
	uint64_t (*cpu_ns)(const struct offload_engine *e);
};

struct offload_engine {
	const struct offload_engine_ops *ops;
	int buffers_refused; // -errno when the kernel would not register the buffers
};

extern const struct offload_engine_ops offload_engine_uring;
extern const struct offload_engine_ops offload_engine_sync;

/* name: "uring", "sync" or "auto" (uring, else sync when the kernel refuses it). ret_fallback: why reads cost more than
 * they must, the reason for sync or for io_uring without registered buffers; the caller tells it. */
int offload_engine_create(const char *name, const struct offload_engine_config *config,
	struct offload_engine **ret_engine, struct base_error *ret_fallback, struct base_error *e);
