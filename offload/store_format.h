/* SPDX-License-Identifier: Apache-2.0
 * The bytes of a store file's header and tables: what writing, opening and the fuzz target share. Internal to
 * offload. Pure functions over the caller's memory; any thread.
 */
#pragma once

#include "base/bytes.h"
#include "offload/store.h"

#define STORE_HEADER_BYTES 4096u
#define STORE_TENSOR_BYTES 88u // in the file
#define STORE_EXTENT_BYTES 32u
#define STORE_PIECE_BYTES 40u
#define STORE_PIECE_ALIGN 64u

struct store_header {
	struct offload_store_identity identity;
	uint32_t tensors_count, extents_count, pieces_count;
	uint64_t data_bytes; // of all extents; they lie between header and tables
	uint64_t tables_offset_bytes, tables_bytes, tables_xxh3;
};

struct store_tables {
	struct offload_store_tensor *tensors; // (header.tensors_count)
	struct offload_store_extent *extents; // (header.extents_count)
	struct offload_store_piece *pieces; // (header.pieces_count)
};

/* Length of the tables in the file, padding included; -EOVERFLOW never for counts within the limits. */
uint64_t offload_store_tables_bytes(uint32_t tensors, uint32_t extents, uint32_t pieces);

/* Checks everything that the header says, against the file's length too. -EBADMSG; -ESTALE for another version of
 * the format. */
int offload_store_header_decode(const uint8_t bytes[static STORE_HEADER_BYTES], uint64_t file_bytes,
	struct store_header *ret_header, struct base_error *e);
void offload_store_header_encode(const struct store_header *h, uint8_t out[static STORE_HEADER_BYTES]);

/* bytes: header.tables_bytes of them. Allocates the tables (freed by offload_store_tables_finish, also after an
 * error). */
int offload_store_tables_decode(
	const struct store_header *h, const uint8_t *bytes, struct store_tables *tables, struct base_error *e);
/* out: header.tables_bytes, zeroed. */
void offload_store_tables_encode(const struct store_header *h, const struct store_tables *tables, uint8_t *out);
void offload_store_tables_finish(struct store_tables *tables);

/* Puts right the checksums of header and tables (a file's bytes as they are): lets a fuzzer past them. */
void offload_store_format_seal(uint8_t header[static STORE_HEADER_BYTES], const uint8_t *tables, uint64_t tables_bytes);

/* "DIR/NAME" for messages. */
char *offload_store_path(int dirfd, const char *name, char *out, size_t out_bytes);
