/* SPDX-License-Identifier: Apache-2.0
 * Store files: one layer (or the embedding, or the head) of one model in one slicing and one layout.
 *
 * File, little-endian, every part 4 KiB-aligned:
 *   header (4096 bytes), extents' data in order, tables (tensors, extents, pieces). The header is
 *   written last and carries the tables' offset, length and xxh3, and its own; so a file without a good header
 *   is half written. Files are written to NAME.tmp, synced, renamed to NAME: what has its name is whole.
 * An extent is the unit of reading, residency and checking: at most extent_bytes, filled with pieces in program
 * order. A piece is a run of whole row groups of one tensor (or a small tensor as it is); a tensor's pieces come in
 * the order of its rows, and a file has all rows of the tensors that it names. Every size in a file
 * is hostile: opening checks all tables (order, bounds, overlap, arithmetic, limits) before it returns.
 * Writers and open files belong to one thread at a time; an open store is read-only and may be shared.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define OFFLOAD_STORE_VERSION 1u
#define OFFLOAD_STORE_NAME_BYTES 64u
#define OFFLOAD_STORE_MAX_TENSORS 4096u
#define OFFLOAD_STORE_MAX_EXTENTS (1u << 20)
#define OFFLOAD_STORE_MAX_PIECES (1u << 22)
#define OFFLOAD_STORE_MAX_EXTENT_BYTES (64u << 20)

struct offload_store_identity { // what a file must be to be the one that is wanted
	uint8_t source_digest[16];
	uint32_t layer; // layer number, or one of the packer's ids for embedding and head
	uint32_t tp_rank, tp_size;
	uint32_t layout; // the packer's number of the kernel layout
	uint32_t extent_bytes; // most bytes of an extent
};

struct offload_store_tensor {
	char name[OFFLOAD_STORE_NAME_BYTES]; // NUL-terminated
	uint32_t type; // quant type
	uint32_t step; // the program step that reads it
	uint64_t rows, cols; // of this slice
};

struct offload_store_extent {
	uint64_t offset_bytes; // in the file, multiple of 4096
	uint32_t length_bytes; // multiple of 4096
	uint32_t first_piece, pieces;
	uint64_t xxh3; // of the length_bytes
};

struct offload_store_piece {
	uint32_t extent;
	uint32_t offset_bytes; // in the extent, multiple of 64
	uint32_t length_bytes;
	uint32_t tensor;
	uint64_t first_row;
	uint32_t rows;
	uint64_t xxh3; // of the length_bytes, for reads of single pieces (embedding rows)
};

struct offload_store_writer;
/* -EEXIST if NAME is there, -EBUSY if another writer is at it. What a killed writer left is started again. Buffers take
 * the longer of 4 MiB and an extent. ENOSPC and other I/O errors name the file. */
int offload_store_writer_create(int dirfd, const char *name, const struct offload_store_identity *identity,
	struct offload_store_writer **ret_writer, struct base_error *e);
int offload_store_writer_tensor(struct offload_store_writer *w, const struct offload_store_tensor *tensor,
	uint32_t *ret_index, struct base_error *e);
/* Appends a piece to the open extent, or to a new one if it does not fit. -EMSGSIZE if it is larger than an extent,
 * -EINVAL if first_row is not the tensor's next row. */
int offload_store_writer_piece(struct offload_store_writer *w, uint32_t tensor, uint64_t first_row, uint32_t rows,
	const void *data, uint32_t length_bytes, struct base_error *e);
/* Ends the open extent: the next piece begins another one. */
void offload_store_writer_break(struct offload_store_writer *w);
/* Syncs and renames. -EINVAL if a tensor lacks rows. The writer is of no further use, whatever it returns. */
int offload_store_writer_commit(struct offload_store_writer *w, struct base_error *e);
void offload_store_writer_destroy(struct offload_store_writer *w); // removes the .tmp of an uncommitted file

struct offload_store; // an open, checked file
/* want: NULL to accept any identity, else -ESTALE if it is of another model, slice or layout. -EBADMSG if corrupt
 * or half written, -ENOENT. The fd is O_DIRECT unless the file system refuses (then -> offload_store_direct false). */
int offload_store_open(int dirfd, const char *name, const struct offload_store_identity *want,
	struct offload_store **ret_store, struct base_error *e);
void offload_store_close(struct offload_store *s);

int offload_store_fd(const struct offload_store *s);
bool offload_store_direct(const struct offload_store *s);
const struct offload_store_identity *offload_store_identity(const struct offload_store *s);
const struct offload_store_tensor *offload_store_tensors(const struct offload_store *s, uint32_t *ret_count);
const struct offload_store_extent *offload_store_extents(const struct offload_store *s, uint32_t *ret_count);
const struct offload_store_piece *offload_store_pieces(const struct offload_store *s, uint32_t *ret_count);
uint64_t offload_store_data_bytes(const struct offload_store *s); // sum of extent lengths
