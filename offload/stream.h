/* SPDX-License-Identifier: Apache-2.0
 * The look-ahead stream: cold extents, read in the order of use into a pool of slots, round and round.
 *
 * The ring is the list of cold extents of a pass in program order. One I/O thread keeps as many reads in flight
 * as there are free slots, across the end of the pass: when the last slots of a pass are released, the first
 * extents of the next one are already there. The stage thread calls next() in ring order and releases a slot when
 * the fence of the last step that reads it has passed; slots may be released out of order.
 * A checksum that does not match is read once more; then next() says -EBADMSG, for this extent, each time that
 * it comes round, and the stream goes on. verify_every 1 checks all reads, n every n-th, 0 none.
 * Memory: slots * slot_bytes in huge pages, taken at create and counted by the caller's budget. More slots than depth
 * keep depth reads in flight while the stage thread holds some.
 */
#pragma once

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "base/trace.h"
#include "offload/engine.h"
#include "offload/memory.h"
#include "offload/store.h"

struct offload_stream_item {
	uint32_t file; // index into files
	const struct offload_store_extent *extent;
	uint32_t layer; // for the trace alone
};

struct offload_stream_config {
	const char *engine; // "auto", "uring", "sync"
	const int *files;
	uint32_t files_count;
	const struct offload_stream_item *items; // the ring; copied
	uint32_t items_count; // > 0
	uint32_t slots; // >= 2
	uint32_t slot_bytes; // >= the longest extent, multiple of 4096
	uint32_t depth; // most reads in flight, <= slots
	uint32_t verify_every;
	const uint32_t *cpus; // where the I/O thread may run; NULL: anywhere
	uint32_t cpus_count;
	uint64_t patience_ns; // next() waits for an extent at most so long; 0: OFFLOAD_CHECK_PATIENCE_NS
	struct base_trace *trace; // of the rank; outlives the stream; may be NULL
	const struct offload_engine_ops *engine_ops; // tests: an engine that fails on purpose; NULL: by name
};

struct offload_stream_stats { // totals since create
	uint64_t read_bytes, reads;
	uint64_t stall_ns; // the stage thread waited in next()
	uint64_t late; // next() calls that had to wait
	uint64_t verify_bytes, verify_ns; // CPU time of checksums (sampled when extents are short)
	uint64_t io_cpu_ns; // CPU time of the I/O thread(s), checksums included
	uint64_t errors, rereads, reread_bytes;
	uint64_t read_latency_ns; // sum over reads
	uint32_t inflight;
};

struct offload_stream;
int offload_stream_create(const struct offload_stream_config *config, struct offload_stream **ret_stream,
	struct base_error *ret_fallback, struct base_error *e);
/* At any time, slots held or not; waits for the reads in flight. Not while another thread is in a call. */
void offload_stream_destroy(struct offload_stream *s);

/* Stage thread: the next extent of the ring. 0 with data and a slot number; -EBADMSG, -ETIMEDOUT or -EIO when the
 * extent cannot be had (no slot is held then and the ring has moved on), with text in e that names file and place. -EIO
 * at every call once the engine itself has failed, or where a read does not come back in time (the later ones are then
 * not waited for until one has come back); -EDEADLK when all slots are held, where waiting would never end. */
int offload_stream_next(struct offload_stream *s, const void **ret_data, uint32_t *ret_slot, struct base_error *e);
void offload_stream_release(struct offload_stream *s, uint32_t slot);
/* Stage thread: the next call of next() yields the first item again. For a pass that was given up: every slot that is
 * held must have been released. What was read ahead of the next first item stays. */
void offload_stream_rewind(struct offload_stream *s);

const char *offload_stream_engine(const struct offload_stream *s); // what was chosen
enum offload_pages offload_stream_pages(const struct offload_stream *s);
/* Any thread, until destroy. */
void offload_stream_get_stats(const struct offload_stream *s, struct offload_stream_stats *ret_stats);
