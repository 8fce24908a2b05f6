/* SPDX-License-Identifier: Apache-2.0
 * The packer: a GGUF model to store files in program order and kernel layout, one file per layer.
 *
 * STORE/<digest as 32 hex digits>/ holds `model.json` (config, tensors, source path, written last), and
 * `embed`, `layer-NNNN`, `head` with suffix `.tpRofN` each. A tied embedding is the head's data: rows are looked up
 * there. A file that is whole is reused, so packing resumes after a kill. Before it writes it checks that the drive has
 * room (-ENOSPC with the bytes short), and deletes spare files first if that is enough, whose room it waits for as long
 * as 5 s. One packs into a store at a time: a lock file has the others, of this process or another, wait.
 * STORE/sources.json remembers (path, device, inode, size, mtime) -> digest, so an unchanged file is not read again.
 * One thread; the work may be cancelled by progress.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/program/program.h"

#define PACK_LAYOUT_R16 1u
#define PACK_LAYER_EMBED 0xfffffff0u
#define PACK_LAYER_HEAD 0xfffffff1u

struct pack_slice {
	uint32_t first_layer, layers; // of the program
	uint32_t tp_rank, tp_size; // 0 of 1: whole
};

#define PACK_WAIT_NS (600 * 1000000000ull)

enum pack_phase { PACK_PHASE_DIGEST, PACK_PHASE_PACK, PACK_PHASE_WAIT /* for another packer; no bytes */ };

/* Bytes of the model's file: runs of one length, each so far from the one before. */
struct pack_runs {
	uint64_t offset_bytes, run_bytes, stride_bytes, runs;
};

/* Where data of tensors comes from that is not in the file that was opened. The packer's thread. */
struct pack_source {
	/* read() gives these from now on, one after the other, once; what: the tensor's name, for errors. */
	int (*begin)(void *context, const struct pack_runs *runs, const char *what, struct base_error *e);
	int (*read)(void *context, void *out, uint64_t bytes, struct base_error *e);
	void *context;
};

struct pack_config {
	const char *store_path;
	struct pack_slice slice;
	/* Digest of a store whose data failed; NULL: files that open are taken as whole. All their data is read then,
	 * those that do not match their checksums are packed anew, each by itself, and only after the whole source was
	 * read and has this digest (-ESTALE). */
	const uint8_t *repair; // (16)
	/* NULL: of the file that was opened. Else of that only the metadata is read, and `digest` (16) is what its
	 * owner says: */
	const struct pack_source *source;
	const uint8_t *digest;
	bool spare; // a tenth of the drive stays free; the files go when others need their room
	bool digest_only; // nothing is packed: only which directory it would be
	uint64_t wait_ns; // the longest for another packer, then -EBUSY naming its pid; 0: PACK_WAIT_NS
	/* Under the packer's lock, of each file of a slice that is not spare; may be NULL. loose: nobody else has
	 * packed or used it since it was a spare one, or it is not there yet. */
	void (*relied)(void *context, const uint8_t digest[16], const char *name, bool loose);
	/* Spare files of this model or others made room; may be NULL. */
	void (*dropped)(void *context, uint32_t files, uint64_t bytes);
	/* non-zero stops: -ECANCELED */
	int (*progress)(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes);
	void *context;
};

struct pack_result {
	uint8_t digest[16];
	char directory[512]; // STORE/<digest>
	uint32_t extent_bytes;
	uint64_t written_bytes, reused_bytes;
	uint32_t repaired_files;
	char repaired[256]; // their names, as many as fit
};

int pack_model(const struct format_gguf *g, const struct program *p, const struct pack_config *config,
	struct pack_result *ret_result, struct base_error *e);

/* Deletes all spare files of the model with config->digest that no plan has had since they were packed: in `dropped`.
 * Waits as pack_model does for others that pack. 0 also where there is nothing. */
int pack_drop_spares(const struct pack_config *config, struct base_error *e);

/* These files of the model with config->digest are spare ones again: nobody uses them. names() is asked under the
 * packer's lock. Waits as above. 0 also where there is nothing. */
int pack_spare_again(const struct pack_config *config,
	uint32_t (*names)(void *context, char (*ret_names)[64], uint32_t room), struct base_error *e);

/* What STORE/sources.json remembers. Any thread.
 * The file with this digest, if it is still as it was, open for reading, its path in `path`; -ENOENT. */
int pack_open_copy(const char *store_path, const uint8_t digest[static 16], char *path, size_t path_room, int *ret_fd);
/* Digests of all of them, each once, whether the files are still there or not: only the store is read, no drive of
 * others that may hang. Returns how many, at most `room`. */
uint32_t pack_list_copies(const char *store_path, uint8_t (*ret_digests)[16], uint32_t room);

/* Most bytes of an extent for a model: a power of two, 64 KiB to 1 MiB, so that a layer has at least about 16. */
uint32_t pack_extent_bytes(const struct program *p);
/* The part that a file of a slice has: of an embedding of its own, which every part looks up rows in, all; so it is
 * there once. */
struct pack_slice pack_file_slice(uint32_t layer, const struct pack_slice *slice);
/* "layer-0003.tp0of1" into out. layer: a number or PACK_LAYER_*. */
char *pack_file_name(uint32_t layer, uint32_t tp_rank, uint32_t tp_size, char out[static 64]);
/* The reverse, of exactly the names that it gives for models that there can be: else -EINVAL. */
int pack_file_parse(const char *name, uint32_t *ret_layer, uint32_t *ret_tp_rank, uint32_t *ret_tp_size);
