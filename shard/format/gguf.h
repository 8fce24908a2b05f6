/* SPDX-License-Identifier: Apache-2.0
 * GGUF v2 and v3 files: metadata and tensor table, checked; tensor data by offset.
 * Format: ggml/docs/gguf.md.
 *
 * Only the header part is read into memory (bounded by FORMAT_GGUF_MAX_HEADER_BYTES); tensor data stays in the file.
 * All counts, sizes, offsets, types and strings are checked before open returns: duplicate keys and names, overlap,
 * alignment, ends beyond the file, absurd counts, nested arrays. Read-only after open: any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define FORMAT_GGUF_MAX_HEADER_BYTES (256ull << 20)
#define FORMAT_GGUF_MAX_TENSORS 65536u
#define FORMAT_GGUF_MAX_KEYS 65536u
#define FORMAT_GGUF_MAX_NAME_BYTES 64u

enum format_gguf_type {
	FORMAT_GGUF_U8,
	FORMAT_GGUF_I8,
	FORMAT_GGUF_U16,
	FORMAT_GGUF_I16,
	FORMAT_GGUF_U32,
	FORMAT_GGUF_I32,
	FORMAT_GGUF_F32,
	FORMAT_GGUF_BOOL,
	FORMAT_GGUF_STRING,
	FORMAT_GGUF_ARRAY,
	FORMAT_GGUF_U64,
	FORMAT_GGUF_I64,
	FORMAT_GGUF_F64,
};

struct format_gguf_string { // not NUL-terminated, points into the header
	const char *data;
	size_t bytes;
};

struct format_gguf_tensor {
	const char *name; // NUL-terminated
	uint32_t type; // GGUF type id, maybe one that quant does not know
	uint32_t dims_count;
	uint64_t dims[4]; // dims[0] is the contiguous one: columns; missing ones are 1
	uint64_t offset_bytes; // in the file
	uint64_t size_bytes; // 0 when the type is unknown
};

struct format_gguf;
int format_gguf_open(const char *path, struct format_gguf **ret_gguf, struct base_error *e);
/* The same from memory (tests, fuzzing): data must outlive the object. */
int format_gguf_open_memory(
	const void *data, size_t bytes, const char *name, struct format_gguf **ret_gguf, struct base_error *e);
void format_gguf_close(struct format_gguf *g);

const char *format_gguf_path(const struct format_gguf *g);
uint64_t format_gguf_file_bytes(const struct format_gguf *g);
/* The open file's own descriptor, for fstat: its path may name another file by now. -1 of a file in memory. */
int format_gguf_fd(const struct format_gguf *g);
uint32_t format_gguf_tensor_count(const struct format_gguf *g);
const struct format_gguf_tensor *format_gguf_tensor(const struct format_gguf *g, uint32_t index);
const struct format_gguf_tensor *format_gguf_find_tensor(const struct format_gguf *g, const char *name); // or NULL
/* Reads part of a tensor's data. -EINVAL outside of it, -EIO. Any thread (pread). */
int format_gguf_read(const struct format_gguf *g, const struct format_gguf_tensor *t, uint64_t offset, void *out,
	uint64_t bytes, struct base_error *e);

/* Gives the page cache of a tensor's data back: for readers that are through with it. */
void format_gguf_forget(const struct format_gguf *g, const struct format_gguf_tensor *t);

bool format_gguf_has(const struct format_gguf *g, const char *key);
/* -ENOENT if the key is missing, -EINVAL (with the key and both types in e) if it has another type. Integers of any
 * width are accepted where the value fits. */
int format_gguf_get_u32(const struct format_gguf *g, const char *key, uint32_t *ret, struct base_error *e);
int format_gguf_get_f32(const struct format_gguf *g, const char *key, float *ret, struct base_error *e);
int format_gguf_get_bool(const struct format_gguf *g, const char *key, bool *ret, struct base_error *e);
int format_gguf_get_string(
	const struct format_gguf *g, const char *key, struct format_gguf_string *ret, struct base_error *e);
/* Arrays: element count, then elements by index (strings are indexed at open, so access is O(1)). */
int format_gguf_get_array(const struct format_gguf *g, const char *key, enum format_gguf_type type, uint64_t *ret_count,
	struct base_error *e);
struct format_gguf_string format_gguf_array_string(const struct format_gguf *g, const char *key, uint64_t index);
int format_gguf_array_u32s(const struct format_gguf *g, const char *key, uint32_t *out, uint64_t count);

/* Of metadata and tensor table, from the file's first byte on. */
uint64_t format_gguf_header_bytes(const struct format_gguf *g);
/* XXH3-64 of that: quick, and different when anything but the weights' bytes is. */
uint64_t format_gguf_header_hash(const struct format_gguf *g);
/* XXH3-128 of the whole file: what names a model in the store. Reads it all; progress may be NULL and stops the work
 * by returning non-zero (-ECANCELED). */
int format_gguf_digest(const struct format_gguf *g, uint8_t ret_digest[static 16],
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context, struct base_error *e);
