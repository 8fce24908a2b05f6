/* SPDX-License-Identifier: Apache-2.0
 * Reading and writing little-endian fields in a byte range that is not trusted.
 *
 * Both sides are sticky: after the first failure every later call is a no-op that yields zero, and
 * `status` keeps the -errno (-EBADMSG past the end, -ENOBUFS when the writer's room ends). So a parser
 * reads all fields and checks once. Caller's memory; any one thread at a time.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct base_reader {
	const uint8_t *data;
	size_t size_bytes;
	size_t at; // next byte
	int status;
};

void base_reader_init(struct base_reader *r, const void *data, size_t size_bytes);
uint8_t base_reader_u8(struct base_reader *r);
uint32_t base_reader_u32(struct base_reader *r);
uint64_t base_reader_u64(struct base_reader *r);
float base_reader_f32(struct base_reader *r);
/* A pointer to the next n bytes inside the range, or NULL. */
const void *base_reader_bytes(struct base_reader *r, uint64_t n);
/* Copies n bytes; zeroes out on failure. */
void base_reader_copy(struct base_reader *r, void *out, size_t n);
size_t base_reader_left(const struct base_reader *r);

struct base_writer {
	uint8_t *data;
	size_t room_bytes;
	size_t at; // bytes written
	int status;
};

void base_writer_init(struct base_writer *w, void *data, size_t room_bytes);
void base_writer_u32(struct base_writer *w, uint32_t v);
void base_writer_u64(struct base_writer *w, uint64_t v);
void base_writer_f32(struct base_writer *w, float v);
void base_writer_bytes(struct base_writer *w, const void *data, size_t n);
