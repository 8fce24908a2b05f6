// SPDX-License-Identifier: Apache-2.0
#include "offload/store_format.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/size.h"
#include "offload/hash.h"

#define MAGIC "thawstor"
#define MAGIC_BYTES 8u
#define TABLES_XXH3_AT 88u
#define HEADER_XXH3_AT (STORE_HEADER_BYTES - 8u)
#define MAX_ROWS (1ull << 40)

uint64_t offload_store_tables_bytes(uint32_t tensors, uint32_t extents, uint32_t pieces)
{
	uint64_t bytes = (uint64_t)tensors * STORE_TENSOR_BYTES + (uint64_t)extents * STORE_EXTENT_BYTES +
			 (uint64_t)pieces * STORE_PIECE_BYTES;
	return base_size_align(bytes, BASE_PAGE_BYTES);
}

void offload_store_header_encode(const struct store_header *h, uint8_t out[static STORE_HEADER_BYTES])
{
	const struct offload_store_identity *id = &h->identity;
	memset(out, 0, STORE_HEADER_BYTES);
	struct base_writer w;
	base_writer_init(&w, out, STORE_HEADER_BYTES);
	base_writer_bytes(&w, MAGIC, MAGIC_BYTES);
	base_writer_u32(&w, OFFLOAD_STORE_VERSION);
	base_writer_bytes(&w, id->source_digest, sizeof id->source_digest);
	base_writer_u32(&w, id->layer);
	base_writer_u32(&w, id->tp_rank);
	base_writer_u32(&w, id->tp_size);
	base_writer_u32(&w, id->layout);
	base_writer_u32(&w, id->extent_bytes);
	base_writer_u32(&w, h->tensors_count);
	base_writer_u32(&w, h->extents_count);
	base_writer_u32(&w, h->pieces_count);
	base_writer_u32(&w, 0);
	base_writer_u64(&w, h->data_bytes);
	base_writer_u64(&w, h->tables_offset_bytes);
	base_writer_u64(&w, h->tables_bytes);
	base_writer_u64(&w, h->tables_xxh3);
	w.at = HEADER_XXH3_AT;
	base_writer_u64(&w, offload_hash(out, HEADER_XXH3_AT));
}

static uint64_t u64_at(const uint8_t *bytes)
{
	struct base_reader r;
	base_reader_init(&r, bytes, 8);
	return base_reader_u64(&r);
}

static int check_identity(const struct offload_store_identity *id, struct base_error *e)
{
	if (id->tp_size == 0 || id->tp_rank >= id->tp_size)
		return base_error_set(e, -EBADMSG, "header: slice %u of %u", id->tp_rank, id->tp_size);
	if (id->extent_bytes == 0 || id->extent_bytes % BASE_PAGE_BYTES != 0 ||
		id->extent_bytes > OFFLOAD_STORE_MAX_EXTENT_BYTES)
		return base_error_set(e, -EBADMSG, "header: extents of %u bytes (a multiple of %u up to %u is right)",
			id->extent_bytes, BASE_PAGE_BYTES, OFFLOAD_STORE_MAX_EXTENT_BYTES);
	return 0;
}

static int check_lengths(const struct store_header *h, uint64_t file_bytes, struct base_error *e)
{
	if (h->tensors_count == 0 || h->tensors_count > OFFLOAD_STORE_MAX_TENSORS || h->extents_count == 0 ||
		h->extents_count > OFFLOAD_STORE_MAX_EXTENTS || h->pieces_count < h->extents_count ||
		h->pieces_count > OFFLOAD_STORE_MAX_PIECES)
		return base_error_set(e, -EBADMSG, "header: %u tensors, %u extents, %u pieces", h->tensors_count,
			h->extents_count, h->pieces_count);
	uint64_t tables_at, end;
	if (h->tables_bytes != offload_store_tables_bytes(h->tensors_count, h->extents_count, h->pieces_count) ||
		base_size_add(STORE_HEADER_BYTES, h->data_bytes, &tables_at) < 0 ||
		tables_at != h->tables_offset_bytes || base_size_add(tables_at, h->tables_bytes, &end) < 0)
		return base_error_set(e, -EBADMSG,
			"header: %llu bytes of data and %llu of tables at %llu do not fit together",
			(unsigned long long)h->data_bytes, (unsigned long long)h->tables_bytes,
			(unsigned long long)h->tables_offset_bytes);
	if (end != file_bytes)
		return base_error_set(e, -EBADMSG, "the file has %llu bytes, its header says %llu: it is %s",
			(unsigned long long)file_bytes, (unsigned long long)end,
			file_bytes < end ? "cut off" : "too long");
	return 0;
}

int offload_store_header_decode(const uint8_t bytes[static STORE_HEADER_BYTES], uint64_t file_bytes,
	struct store_header *ret_header, struct base_error *e)
{
	struct store_header h = {0};
	struct base_reader r;
	base_reader_init(&r, bytes, STORE_HEADER_BYTES);
	const uint8_t *magic = base_reader_bytes(&r, MAGIC_BYTES);
	if (memcmp(magic, MAGIC, MAGIC_BYTES) != 0)
		return base_error_set(e, -EBADMSG, "no store file, or half written: the header has no magic number");
	if (u64_at(bytes + HEADER_XXH3_AT) != offload_hash(bytes, HEADER_XXH3_AT))
		return base_error_set(e, -EBADMSG, "header: its checksum does not match");
	uint32_t version = base_reader_u32(&r);
	if (version != OFFLOAD_STORE_VERSION)
		return base_error_set(e, -ESTALE,
			"version %u of the store format, this program reads %u: pack the model again", version,
			OFFLOAD_STORE_VERSION);
	base_reader_copy(&r, h.identity.source_digest, sizeof h.identity.source_digest);
	h.identity.layer = base_reader_u32(&r);
	h.identity.tp_rank = base_reader_u32(&r);
	h.identity.tp_size = base_reader_u32(&r);
	h.identity.layout = base_reader_u32(&r);
	h.identity.extent_bytes = base_reader_u32(&r);
	h.tensors_count = base_reader_u32(&r);
	h.extents_count = base_reader_u32(&r);
	h.pieces_count = base_reader_u32(&r);
	uint32_t zero = base_reader_u32(&r);
	h.data_bytes = base_reader_u64(&r);
	h.tables_offset_bytes = base_reader_u64(&r);
	h.tables_bytes = base_reader_u64(&r);
	h.tables_xxh3 = base_reader_u64(&r);
	for (size_t i = r.at; i < HEADER_XXH3_AT; i++)
		zero |= bytes[i];
	if (zero != 0)
		return base_error_set(e, -EBADMSG, "header: reserved bytes are not zero");
	int rc = check_identity(&h.identity, e);
	if (rc == 0)
		rc = check_lengths(&h, file_bytes, e);
	if (rc == 0)
		*ret_header = h;
	return rc;
}

void offload_store_tables_encode(const struct store_header *h, const struct store_tables *t, uint8_t *out)
{
	struct base_writer w;
	base_writer_init(&w, out, h->tables_bytes);
	for (uint32_t i = 0; i < h->tensors_count; i++) {
		const struct offload_store_tensor *x = &t->tensors[i];
		base_writer_bytes(&w, x->name, sizeof x->name);
		base_writer_u32(&w, x->type);
		base_writer_u32(&w, x->step);
		base_writer_u64(&w, x->rows);
		base_writer_u64(&w, x->cols);
	}
	for (uint32_t i = 0; i < h->extents_count; i++) {
		const struct offload_store_extent *x = &t->extents[i];
		base_writer_u64(&w, x->offset_bytes);
		base_writer_u32(&w, x->length_bytes);
		base_writer_u32(&w, x->first_piece);
		base_writer_u32(&w, x->pieces);
		base_writer_u32(&w, 0);
		base_writer_u64(&w, x->xxh3);
	}
	for (uint32_t i = 0; i < h->pieces_count; i++) {
		const struct offload_store_piece *x = &t->pieces[i];
		base_writer_u32(&w, x->extent);
		base_writer_u32(&w, x->offset_bytes);
		base_writer_u32(&w, x->length_bytes);
		base_writer_u32(&w, x->tensor);
		base_writer_u64(&w, x->first_row);
		base_writer_u32(&w, x->rows);
		base_writer_u32(&w, 0);
		base_writer_u64(&w, x->xxh3);
	}
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_tensors(const struct store_header *h, const struct store_tables *t, struct base_error *e)
{
	const char **names = calloc(h->tensors_count, sizeof *names);
	if (!names)
		return base_error_set(e, -ENOMEM, "no memory for %u tensors", h->tensors_count);
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < h->tensors_count; i++) {
		const struct offload_store_tensor *x = &t->tensors[i];
		uint64_t count;
		names[i] = x->name;
		if (!memchr(x->name, 0, sizeof x->name) || x->name[0] == 0)
			r = base_error_set(e, -EBADMSG, "tensor %u: its name has no end or is empty", i);
		else if (x->rows == 0 || x->cols == 0 || x->rows > MAX_ROWS ||
			 base_size_mul(x->rows, x->cols, &count) < 0)
			r = base_error_set(e, -EBADMSG, "tensor %u: %llu rows of %llu", i, (unsigned long long)x->rows,
				(unsigned long long)x->cols);
	}
	if (r == 0) {
		qsort(names, h->tensors_count, sizeof *names, compare_names);
		for (uint32_t i = 1; r == 0 && i < h->tensors_count; i++) {
			if (strcmp(names[i - 1], names[i]) == 0)
				r = base_error_set(e, -EBADMSG, "two tensors have the same name");
		}
	}
	free(names);
	return r;
}

// Extents lie one after the other and have the pieces one after the other.
static int check_extents(const struct store_header *h, const struct store_tables *t, struct base_error *e)
{
	uint64_t at = STORE_HEADER_BYTES, pieces = 0;
	for (uint32_t i = 0; i < h->extents_count; i++) {
		const struct offload_store_extent *x = &t->extents[i];
		if (x->offset_bytes != at || x->length_bytes == 0 || x->length_bytes % BASE_PAGE_BYTES != 0 ||
			x->length_bytes > h->identity.extent_bytes)
			return base_error_set(e, -EBADMSG, "extent %u: %u bytes at %llu, where one is expected at %llu",
				i, x->length_bytes, (unsigned long long)x->offset_bytes, (unsigned long long)at);
		if (x->first_piece != pieces || x->pieces == 0 || x->pieces > h->pieces_count - pieces)
			return base_error_set(e, -EBADMSG, "extent %u: pieces %u and %u more, of %u", i, x->first_piece,
				x->pieces, h->pieces_count);
		at += x->length_bytes; // at most 2^20 times 2^26
		pieces += x->pieces;
	}
	if (at != h->tables_offset_bytes || pieces != h->pieces_count)
		return base_error_set(e, -EBADMSG, "extents end at %llu with %llu pieces, the header says %llu and %u",
			(unsigned long long)at, (unsigned long long)pieces, (unsigned long long)h->tables_offset_bytes,
			h->pieces_count);
	return 0;
}

static int check_piece(const struct store_header *h, const struct store_tables *t, uint32_t i, uint64_t *next_rows,
	uint32_t free_from, struct base_error *e)
{
	const struct offload_store_piece *x = &t->pieces[i];
	uint32_t room = t->extents[x->extent].length_bytes;
	if (x->offset_bytes % STORE_PIECE_ALIGN != 0 || x->offset_bytes < free_from || x->offset_bytes >= room ||
		x->length_bytes == 0 || x->length_bytes > room - x->offset_bytes)
		return base_error_set(e, -EBADMSG, "piece %u: %u bytes at %u of extent %u, where %u to %u are free", i,
			x->length_bytes, x->offset_bytes, x->extent, free_from, room);
	if (x->tensor >= h->tensors_count)
		return base_error_set(
			e, -EBADMSG, "piece %u: of tensor %u, there are %u", i, x->tensor, h->tensors_count);
	const struct offload_store_tensor *tensor = &t->tensors[x->tensor];
	uint64_t next = next_rows[x->tensor];
	if (x->first_row != next || x->rows == 0 || x->rows > tensor->rows - next)
		return base_error_set(e, -EBADMSG,
			"piece %u: rows %llu and %u more of tensor %s, where row %llu of %llu is next", i,
			(unsigned long long)x->first_row, x->rows, tensor->name, (unsigned long long)next,
			(unsigned long long)tensor->rows);
	next_rows[x->tensor] = next + x->rows;
	return 0;
}

// In each extent in order and apart; every tensor complete, its rows in order.
static int check_pieces(const struct store_header *h, const struct store_tables *t, struct base_error *e)
{
	uint64_t *next_rows = calloc(h->tensors_count, sizeof *next_rows);
	if (!next_rows)
		return base_error_set(e, -ENOMEM, "no memory for %u tensors", h->tensors_count);
	int r = 0;
	for (uint32_t x = 0; r == 0 && x < h->extents_count; x++) {
		uint32_t free_from = 0;
		for (uint32_t k = 0; r == 0 && k < t->extents[x].pieces; k++) {
			uint32_t i = t->extents[x].first_piece + k;
			if (t->pieces[i].extent != x)
				r = base_error_set(e, -EBADMSG, "piece %u: says extent %u, but is of extent %u", i,
					t->pieces[i].extent, x);
			else
				r = check_piece(h, t, i, next_rows, free_from, e);
			free_from = t->pieces[i].offset_bytes + t->pieces[i].length_bytes;
		}
	}
	for (uint32_t i = 0; r == 0 && i < h->tensors_count; i++) {
		if (next_rows[i] != t->tensors[i].rows)
			r = base_error_set(e, -EBADMSG, "tensor %s: has %llu rows of %llu", t->tensors[i].name,
				(unsigned long long)next_rows[i], (unsigned long long)t->tensors[i].rows);
	}
	free(next_rows);
	return r;
}

static uint32_t read_tables(const struct store_header *h, const uint8_t *bytes, struct store_tables *t)
{
	uint32_t zero = 0;
	struct base_reader r;
	base_reader_init(&r, bytes, h->tables_bytes);
	for (uint32_t i = 0; i < h->tensors_count; i++) {
		struct offload_store_tensor *x = &t->tensors[i];
		base_reader_copy(&r, x->name, sizeof x->name);
		x->type = base_reader_u32(&r);
		x->step = base_reader_u32(&r);
		x->rows = base_reader_u64(&r);
		x->cols = base_reader_u64(&r);
	}
	for (uint32_t i = 0; i < h->extents_count; i++) {
		struct offload_store_extent *x = &t->extents[i];
		x->offset_bytes = base_reader_u64(&r);
		x->length_bytes = base_reader_u32(&r);
		x->first_piece = base_reader_u32(&r);
		x->pieces = base_reader_u32(&r);
		zero |= base_reader_u32(&r);
		x->xxh3 = base_reader_u64(&r);
	}
	for (uint32_t i = 0; i < h->pieces_count; i++) {
		struct offload_store_piece *x = &t->pieces[i];
		x->extent = base_reader_u32(&r);
		x->offset_bytes = base_reader_u32(&r);
		x->length_bytes = base_reader_u32(&r);
		x->tensor = base_reader_u32(&r);
		x->first_row = base_reader_u64(&r);
		x->rows = base_reader_u32(&r);
		zero |= base_reader_u32(&r);
		x->xxh3 = base_reader_u64(&r);
	}
	while (base_reader_left(&r) > 0)
		zero |= base_reader_u8(&r);
	return zero;
}

int offload_store_tables_decode(
	const struct store_header *h, const uint8_t *bytes, struct store_tables *t, struct base_error *e)
{
	if (offload_hash(bytes, h->tables_bytes) != h->tables_xxh3)
		return base_error_set(e, -EBADMSG, "tables: their checksum does not match");
	t->tensors = calloc(h->tensors_count, sizeof *t->tensors);
	t->extents = calloc(h->extents_count, sizeof *t->extents);
	t->pieces = calloc(h->pieces_count, sizeof *t->pieces);
	if (!t->tensors || !t->extents || !t->pieces)
		return base_error_set(
			e, -ENOMEM, "no memory for tables of %llu bytes", (unsigned long long)h->tables_bytes);
	if (read_tables(h, bytes, t) != 0)
		return base_error_set(e, -EBADMSG, "tables: reserved bytes are not zero");
	int r = check_tensors(h, t, e);
	if (r == 0)
		r = check_extents(h, t, e);
	if (r == 0)
		r = check_pieces(h, t, e);
	return r;
}

void offload_store_tables_finish(struct store_tables *t)
{
	free(t->tensors);
	free(t->extents);
	free(t->pieces);
	*t = (struct store_tables){0};
}

void offload_store_format_seal(uint8_t header[static STORE_HEADER_BYTES], const uint8_t *tables, uint64_t tables_bytes)
{
	struct base_writer w;
	base_writer_init(&w, header, STORE_HEADER_BYTES);
	if (tables) {
		w.at = TABLES_XXH3_AT;
		base_writer_u64(&w, offload_hash(tables, tables_bytes));
	}
	w.at = HEADER_XXH3_AT;
	base_writer_u64(&w, offload_hash(header, HEADER_XXH3_AT));
}

char *offload_store_path(int dirfd, const char *name, char *out, size_t out_bytes)
{
	char link[64], directory[256];
	snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd);
	ssize_t n = dirfd == AT_FDCWD || name[0] == '/' ? -1 : readlink(link, directory, sizeof directory - 1);
	if (n < 0)
		snprintf(out, out_bytes, "%s", name);
	else
		snprintf(out, out_bytes, "%.*s/%s", (int)n, directory, name);
	return out;
}
