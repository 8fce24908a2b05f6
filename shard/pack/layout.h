/* SPDX-License-Identifier: Apache-2.0
 * What a shard's store files hold, from the program and the slice alone: files, their extents, and the pieces in them.
 *
 * The packer writes this layout, the executor compares it with the tables of the files that it opens, and needs are
 * summed over it; so all three agree. In each file the vectors (norms, biases; float32) come first, in extents of
 * their own that stay hot; then the matrices in program order, cut into runs of whole R16 groups. A matrix that rows
 * are looked up in has pieces of one group (two where one is no multiple of 64 bytes), so that a look-up reads and
 * checks little. Pure function; the result is read-only: any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/pack/pack.h"
#include "shard/program/program.h"

struct pack_layout_piece {
	uint32_t weight; // of the program
	uint32_t extent;
	uint32_t offset_bytes, length_bytes; // in the extent
	uint32_t first_row, rows; // of the slice's matrix
};

struct pack_layout_extent {
	uint32_t file;
	uint32_t length_bytes; // multiple of 4096
	uint32_t first_piece, pieces;
	bool pinned; // vectors
};

struct pack_layout_file {
	uint32_t layer; // number or PACK_LAYER_*
	uint32_t first_extent, extents;
	uint32_t first_piece, pieces;
	uint64_t data_bytes;
};

struct pack_layout {
	uint32_t extent_bytes; // most
	struct pack_layout_file *files;
	struct pack_layout_extent *extents;
	struct pack_layout_piece *pieces;
	struct program_cut *cuts; // (weights of the program)
	uint32_t files_count, extents_count, pieces_count;
};

/* -EINVAL: a slice that is not of this program or cannot be cut (names the weight); -EOVERFLOW, -ENOMEM. */
int pack_layout_build(
	const struct program *p, const struct pack_slice *slice, struct pack_layout **ret_layout, struct base_error *e);
void pack_layout_destroy(struct pack_layout *l);

/* The file that holds a weight: a layer's number or PACK_LAYER_*. */
uint32_t pack_weight_file(const struct program *p, uint32_t weight);
