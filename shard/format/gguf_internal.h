/* SPDX-License-Identifier: Apache-2.0
 * What gguf.c and gguf_read.c share. Not for other rooms.
 */
#pragma once

#include "shard/format/gguf.h"

#define FORMAT_GGUF_FREE_SLOT UINT32_MAX
#define FORMAT_GGUF_PRINTABLE_BYTES 96u

struct format_gguf_entry {
	struct format_gguf_string key;
	bool is_array;
	uint32_t type; // of the value, or of an array's elements
	uint64_t count; // elements; for a string its bytes
	const uint8_t *data; // in the header; may be unaligned
	uint32_t *strings; // array of strings: where each one's length stands in the header
};

struct format_gguf_index { // open addressing, entry numbers; the seed is random, so nobody can choose collisions
	uint32_t *slots;
	uint32_t mask;
};

struct format_gguf {
	char *path;
	int fd; // -1: in memory
	const uint8_t *memory;
	uint64_t file_bytes;
	uint64_t hash_seed;
	uint8_t *buffer; // the part of the file that holds the header
	const uint8_t *header; // buffer or memory
	uint64_t header_bytes; // without the padding before the data
	struct format_gguf_entry *entries;
	uint32_t entries_count;
	struct format_gguf_tensor *tensors;
	uint32_t tensors_count;
	char *names_room; // (tensors, FORMAT_GGUF_MAX_NAME_BYTES)
	struct format_gguf_index keys, names;
};

uint32_t format_gguf_scalar_bytes(uint32_t type); // 0: not a scalar
char *format_gguf_printable(const char *data, size_t bytes, char out[static FORMAT_GGUF_PRINTABLE_BYTES]);
const struct format_gguf_entry *format_gguf_find(const struct format_gguf *g, const char *key);
