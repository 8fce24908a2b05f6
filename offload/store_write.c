// SPDX-License-Identifier: Apache-2.0
// Extents are filled in a buffer of a few megabytes and written from it with O_DIRECT, so that packing a model larger
// than memory leaves the page cache alone; without O_DIRECT each write is pushed out and dropped.
#include "offload/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "offload/hash.h"
#include "offload/store_format.h"

#define BUFFER_BYTES (4u << 20) // or one extent if that is longer
#define SUFFIX ".tmp"

struct offload_store_writer {
	int dirfd, fd;
	bool direct, committed;
	char *name, *tmp; // tmp: NULL until it is ours
	struct store_header header;
	struct store_tables tables;
	uint32_t extents_room, pieces_room;
	uint64_t next_rows[OFFLOAD_STORE_MAX_TENSORS];

	uint8_t *buffer; // (buffer_bytes), aligned
	uint32_t buffer_bytes;
	uint32_t closed_bytes; // at its start: extents that are complete
	uint32_t open_bytes; // after them: the extent that grows
	bool open;
	uint64_t written_bytes; // in the file, header included
	int failed; // the first -errno; nothing goes on after it
};

// Names the file and remembers that the writer is of no use any more.
static int fail(struct offload_store_writer *w, int r, const char *what, struct base_error *e)
{
	char path[512];
	w->failed = r;
	return base_error_set(e, r, "store file %s: cannot %s: %s",
		offload_store_path(w->dirfd, w->tmp ? w->tmp : w->name, path, sizeof path), what,
		r == -EBUSY ? "another process is writing it" : strerrordesc_np(-r));
}

static int misuse(struct offload_store_writer *w, int r, const char *what, struct base_error *e)
{
	char path[512];
	return base_error_set(
		e, r, "store file %s: %s", offload_store_path(w->dirfd, w->name, path, sizeof path), what);
}

static int open_tmp(struct offload_store_writer *w)
{
	const int flags = O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW;
	w->direct = true;
	w->fd = openat(w->dirfd, w->tmp, flags | O_DIRECT, 0644);
	if (w->fd < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) {
		w->direct = false;
		w->fd = openat(w->dirfd, w->tmp, flags, 0644);
	}
	return w->fd < 0 ? -errno : 0;
}

// The temporary file, empty and locked. A writer that was killed left one without a lock; one that finished in the
// meantime has renamed what was opened here, which the inode tells.
static int take_tmp(struct offload_store_writer *w)
{
	for (int tries = 0; tries < 16; tries++) {
		int r = open_tmp(w);
		if (r < 0)
			return r;
		while ((r = flock(w->fd, LOCK_EX | LOCK_NB)) < 0 && errno == EINTR)
			;
		if (r < 0)
			return errno == EWOULDBLOCK ? -EBUSY : -errno;
		struct stat mine, named;
		if (fstat(w->fd, &mine) == 0 && fstatat(w->dirfd, w->tmp, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
			mine.st_ino == named.st_ino && mine.st_dev == named.st_dev)
			return ftruncate(w->fd, 0) < 0 ? -errno : 0;
		close(w->fd);
		w->fd = -1;
	}
	return -EBUSY;
}

static int check_name(const char *name)
{
	size_t n = strlen(name);
	if (n == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strchr(name, '/'))
		return -EINVAL;
	return n + strlen(SUFFIX) > NAME_MAX ? -ENAMETOOLONG : 0;
}

static int take_memory(struct offload_store_writer *w)
{
	uint32_t extent = w->header.identity.extent_bytes;
	w->buffer_bytes = extent > BUFFER_BYTES ? extent : BUFFER_BYTES;
	w->buffer = aligned_alloc(BASE_PAGE_BYTES, w->buffer_bytes);
	w->tables.tensors = calloc(OFFLOAD_STORE_MAX_TENSORS, sizeof *w->tables.tensors);
	return w->buffer && w->tables.tensors ? 0 : -ENOMEM;
}

int offload_store_writer_create(int dirfd, const char *name, const struct offload_store_identity *identity,
	struct offload_store_writer **ret_writer, struct base_error *e)
{
	int r = check_name(name);
	if (r < 0)
		return base_error_set(e, r, "'%.300s' cannot be the name of a store file", name);
	if (identity->extent_bytes == 0 || identity->extent_bytes % BASE_PAGE_BYTES != 0 ||
		identity->extent_bytes > OFFLOAD_STORE_MAX_EXTENT_BYTES || identity->tp_rank >= identity->tp_size)
		return base_error_set(e, -EINVAL, "store file %s: slice %u of %u, extents of %u bytes", name,
			identity->tp_rank, identity->tp_size, identity->extent_bytes);
	struct offload_store_writer *w = calloc(1, sizeof *w);
	if (!w)
		return base_error_set(e, -ENOMEM, "store file %s: no memory", name);
	w->dirfd = -1;
	w->fd = -1;
	w->header.identity = *identity;
	w->written_bytes = STORE_HEADER_BYTES;
	w->name = strdup(name);
	char *tmp = NULL;
	if (!w->name || asprintf(&tmp, "%s%s", name, SUFFIX) < 0) {
		offload_store_writer_destroy(w);
		return base_error_set(e, -ENOMEM, "store file %s: no memory", name);
	}
	// The directory is needed until commit, and the caller's number may be AT_FDCWD.
	w->dirfd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (w->dirfd < 0) {
		r = fail(w, -errno, "open its directory", e);
		goto out;
	}
	if (faccessat(w->dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
		r = fail(w, -EEXIST, "create it", e);
		goto out;
	}
	r = take_memory(w);
	if (r == 0) {
		w->tmp = tmp;
		r = take_tmp(w);
		if (r < 0)
			fail(w, r, "create it", e);
		w->tmp = r < 0 ? NULL : base_steal(tmp);
	} else {
		fail(w, r, "take its buffers", e);
	}
out:
	free(tmp);
	if (r < 0) {
		offload_store_writer_destroy(w);
		return r;
	}
	*ret_writer = w;
	return 0;
}

int offload_store_writer_tensor(struct offload_store_writer *w, const struct offload_store_tensor *tensor,
	uint32_t *ret_index, struct base_error *e)
{
	uint32_t n = w->header.tensors_count;
	uint64_t count;
	if (n == OFFLOAD_STORE_MAX_TENSORS)
		return misuse(w, -E2BIG, "too many tensors", e);
	if (!memchr(tensor->name, 0, sizeof tensor->name) || tensor->name[0] == 0)
		return misuse(w, -EINVAL, "a tensor's name is empty or too long", e);
	if (tensor->rows == 0 || tensor->rows > 1ull << 40 || tensor->cols == 0 ||
		base_size_mul(tensor->rows, tensor->cols, &count) < 0)
		return misuse(w, -EINVAL, "a tensor has no rows, or too many", e);
	for (uint32_t i = 0; i < n; i++) {
		if (strcmp(w->tables.tensors[i].name, tensor->name) == 0)
			return misuse(w, -EEXIST, "two tensors have the same name", e);
	}
	struct offload_store_tensor *t = &w->tables.tensors[n];
	*t = *tensor;
	size_t used = strlen(t->name);
	memset(t->name + used, 0, sizeof t->name - used);
	w->header.tensors_count++;
	*ret_index = n;
	return 0;
}

static int grow(void **array, uint32_t count, uint32_t *room, size_t size)
{
	if (count < *room)
		return 0;
	uint32_t more = *room ? *room * 2 : 256; // at most 2^23
	void *p = realloc(*array, more * size);
	if (!p)
		return -ENOMEM;
	*array = p;
	*room = more;
	return 0;
}

static int try_range(
	struct offload_store_writer *w, const uint8_t *data, uint64_t length, uint64_t offset, uint64_t *ret_done)
{
	uint64_t at = 0;
	while (at < length) {
		ssize_t n = pwrite(w->fd, data + at, length - at, (off_t)(offset + at));
		*ret_done = at;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EINVAL && w->direct) {
			int flags = fcntl(w->fd, F_GETFL);
			if (flags < 0 || fcntl(w->fd, F_SETFL, flags & ~O_DIRECT) < 0)
				return -errno;
			w->direct = false;
			continue;
		}
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ENOSPC;
		at += (uint64_t)n;
	}
	if (!w->direct) {
		sync_file_range(w->fd, (off_t)offset, (off_t)length,
			SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
		posix_fadvise(w->fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
	}
	return 0;
}

static int write_range(
	struct offload_store_writer *w, const uint8_t *data, uint64_t length, uint64_t offset, struct base_error *e)
{
	char what[80];
	uint64_t done = 0;
	int r = try_range(w, data, length, offset, &done);
	if (r == 0)
		return 0;
	snprintf(what, sizeof what, "write %llu bytes at %llu", (unsigned long long)(length - done),
		(unsigned long long)(offset + done));
	return fail(w, r, what, e);
}

static int flush(struct offload_store_writer *w, struct base_error *e)
{
	if (w->closed_bytes == 0)
		return 0;
	int r = write_range(w, w->buffer, w->closed_bytes, w->written_bytes, e);
	if (r < 0)
		return r;
	w->written_bytes += w->closed_bytes;
	w->closed_bytes = 0;
	return 0;
}

static void close_extent(struct offload_store_writer *w)
{
	if (!w->open)
		return;
	struct offload_store_extent *x = &w->tables.extents[w->header.extents_count - 1];
	uint32_t length = (uint32_t)base_size_align(w->open_bytes, BASE_PAGE_BYTES);
	uint8_t *data = w->buffer + w->closed_bytes;
	memset(data + w->open_bytes, 0, length - w->open_bytes);
	x->length_bytes = length;
	x->xxh3 = offload_hash(data, length);
	w->header.data_bytes += length;
	w->closed_bytes += length;
	w->open_bytes = 0;
	w->open = false;
}

static int open_extent(struct offload_store_writer *w, struct base_error *e)
{
	if (w->header.extents_count == OFFLOAD_STORE_MAX_EXTENTS)
		return misuse(w, -E2BIG, "too many extents", e);
	if (w->buffer_bytes - w->closed_bytes < w->header.identity.extent_bytes) {
		int r = flush(w, e);
		if (r < 0)
			return r;
	}
	int r = grow((void **)&w->tables.extents, w->header.extents_count, &w->extents_room, sizeof *w->tables.extents);
	if (r < 0)
		return fail(w, r, "extend its tables", e);
	w->tables.extents[w->header.extents_count++] = (struct offload_store_extent){
		.offset_bytes = w->written_bytes + w->closed_bytes,
		.first_piece = w->header.pieces_count,
	};
	w->open = true;
	return 0;
}

int offload_store_writer_piece(struct offload_store_writer *w, uint32_t tensor, uint64_t first_row, uint32_t rows,
	const void *data, uint32_t length_bytes, struct base_error *e)
{
	uint32_t extent_bytes = w->header.identity.extent_bytes;
	if (w->failed < 0)
		return misuse(w, w->failed, "an earlier write failed", e);
	if (tensor >= w->header.tensors_count || length_bytes == 0 || rows == 0 || first_row != w->next_rows[tensor] ||
		rows > w->tables.tensors[tensor].rows - first_row)
		return misuse(w, -EINVAL, "a piece is empty, of no tensor, or not the tensor's next rows", e);
	if (length_bytes > extent_bytes)
		return misuse(w, -EMSGSIZE, "a piece is longer than an extent", e);
	if (w->header.pieces_count == OFFLOAD_STORE_MAX_PIECES)
		return misuse(w, -E2BIG, "too many pieces", e);
	int r = grow((void **)&w->tables.pieces, w->header.pieces_count, &w->pieces_room, sizeof *w->tables.pieces);
	if (r < 0)
		return fail(w, r, "extend its tables", e);

	uint32_t at = (uint32_t)base_size_align(w->open_bytes, STORE_PIECE_ALIGN);
	if (w->open && (at > extent_bytes || length_bytes > extent_bytes - at))
		close_extent(w);
	if (!w->open) {
		r = open_extent(w, e);
		if (r < 0)
			return r;
		at = 0;
	}
	uint8_t *to = w->buffer + w->closed_bytes;
	memset(to + w->open_bytes, 0, at - w->open_bytes);
	memcpy(to + at, data, length_bytes);
	w->open_bytes = at + length_bytes;
	w->tables.pieces[w->header.pieces_count++] = (struct offload_store_piece){
		.extent = w->header.extents_count - 1,
		.offset_bytes = at,
		.length_bytes = length_bytes,
		.tensor = tensor,
		.first_row = first_row,
		.rows = rows,
		.xxh3 = offload_hash(to + at, length_bytes),
	};
	w->tables.extents[w->header.extents_count - 1].pieces++;
	w->next_rows[tensor] += rows;
	return 0;
}

void offload_store_writer_break(struct offload_store_writer *w)
{
	close_extent(w);
}

static int write_tables(struct offload_store_writer *w, struct base_error *e)
{
	struct store_header *h = &w->header;
	h->tables_offset_bytes = w->written_bytes;
	h->tables_bytes = offload_store_tables_bytes(h->tensors_count, h->extents_count, h->pieces_count);
	_cleanup_free_ uint8_t *bytes = aligned_alloc(BASE_PAGE_BYTES, h->tables_bytes);
	if (!bytes)
		return fail(w, -ENOMEM, "take memory for its tables", e);
	memset(bytes, 0, h->tables_bytes);
	offload_store_tables_encode(h, &w->tables, bytes);
	h->tables_xxh3 = offload_hash(bytes, h->tables_bytes);
	int r = write_range(w, bytes, h->tables_bytes, h->tables_offset_bytes, e);
	if (r < 0)
		return r;
	offload_store_header_encode(h, w->buffer); // empty by now
	return write_range(w, w->buffer, STORE_HEADER_BYTES, 0, e);
}

static int publish(struct offload_store_writer *w, struct base_error *e)
{
	if (fsync(w->fd) < 0)
		return fail(w, -errno, "write it to the drive", e);
	int r = renameat2(w->dirfd, w->tmp, w->dirfd, w->name, RENAME_NOREPLACE);
	if (r < 0 && errno == EINVAL) // a file system without that flag
		r = renameat(w->dirfd, w->tmp, w->dirfd, w->name);
	if (r < 0)
		return fail(w, -errno, "give it its name", e);
	w->committed = true;
	if (fsync(w->dirfd) < 0)
		return fail(w, -errno, "write its directory to the drive", e);
	return 0;
}

int offload_store_writer_commit(struct offload_store_writer *w, struct base_error *e)
{
	if (w->failed < 0)
		return misuse(w, w->failed, "an earlier write failed", e);
	if (w->committed || w->header.pieces_count == 0)
		return misuse(w, -EINVAL, "there is nothing to commit", e);
	for (uint32_t i = 0; i < w->header.tensors_count; i++) {
		if (w->next_rows[i] != w->tables.tensors[i].rows)
			return misuse(w, -EINVAL, "a tensor lacks rows", e);
	}
	close_extent(w);
	int r = flush(w, e);
	if (r == 0)
		r = write_tables(w, e);
	if (r == 0)
		r = publish(w, e);
	return r;
}

void offload_store_writer_destroy(struct offload_store_writer *w)
{
	if (!w)
		return;
	if (w->tmp && !w->committed)
		unlinkat(w->dirfd, w->tmp, 0);
	if (w->fd >= 0)
		close(w->fd);
	if (w->dirfd >= 0)
		close(w->dirfd);
	offload_store_tables_finish(&w->tables);
	free(w->buffer);
	free(w->tmp);
	free(w->name);
	free(w);
}
