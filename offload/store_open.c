// SPDX-License-Identifier: Apache-2.0
#include "offload/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "offload/store_format.h"

struct offload_store {
	int fd;
	bool direct;
	struct store_header header;
	struct store_tables tables;
};

static bool refuses_direct(int r)
{
	return r == -EINVAL || r == -EOPNOTSUPP;
}

static int open_file(struct offload_store *s, int dirfd, const char *name)
{
	s->direct = true;
	s->fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_DIRECT);
	if (s->fd < 0 && refuses_direct(-errno)) {
		s->direct = false;
		s->fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	}
	return s->fd < 0 ? -errno : 0;
}

// Whole pages into an aligned buffer. Some file systems let a file be opened O_DIRECT and refuse the first read.
static int try_range(struct offload_store *s, uint64_t offset, uint64_t length, uint8_t *out, uint64_t *ret_done)
{
	uint64_t at = 0;
	while (at < length) {
		size_t want = length - at < (1u << 30) ? (size_t)(length - at) : 1u << 30;
		ssize_t n = pread(s->fd, out + at, want, (off_t)(offset + at));
		*ret_done = at;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && s->direct && refuses_direct(-errno)) {
			int flags = fcntl(s->fd, F_GETFL);
			if (flags < 0 || fcntl(s->fd, F_SETFL, flags & ~O_DIRECT) < 0)
				return -errno;
			s->direct = false;
			continue;
		}
		if (n < 0)
			return -errno;
		at += (uint64_t)n;
		if (s->direct && at < length) // a direct read may go on at a page's border only
			at -= at % BASE_PAGE_BYTES;
		if (at == *ret_done)
			return -ENODATA;
	}
	if (!s->direct)
		posix_fadvise(s->fd, (off_t)offset, (off_t)length, POSIX_FADV_DONTNEED);
	return 0;
}

static int read_range(
	struct offload_store *s, const char *what, uint64_t offset, uint64_t length, uint8_t *out, struct base_error *e)
{
	uint64_t done = 0;
	int r = try_range(s, offset, length, out, &done);
	return r < 0 ? base_error_set(e, r, "cannot read %llu bytes at %llu, of the %s: %s",
			       (unsigned long long)(length - done), (unsigned long long)(offset + done), what,
			       r == -ENODATA ? "the file ends there" : strerrordesc_np(-r))
		     : 0;
}

static int read_header(struct offload_store *s, struct base_error *e)
{
	struct stat st;
	if (fstat(s->fd, &st) < 0)
		return base_error_set(e, -errno, "cannot be examined: %s", strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode))
		return base_error_set(e, -EBADMSG, "not a regular file");
	// O_NONBLOCK was for opening what turns out a pipe; io_uring would take it as "fail rather than wait".
	if (fcntl(s->fd, F_SETFL, s->direct ? O_DIRECT : 0) < 0)
		return base_error_set(e, -errno, "cannot be set up: %s", strerrordesc_np(errno));
	if (st.st_size < (off_t)STORE_HEADER_BYTES)
		return base_error_set(
			e, -EBADMSG, "no store file, or half written: it has %lld bytes", (long long)st.st_size);
	_cleanup_free_ uint8_t *bytes = aligned_alloc(BASE_PAGE_BYTES, STORE_HEADER_BYTES);
	if (!bytes)
		return base_error_set(e, -ENOMEM, "no memory for the header");
	int r = read_range(s, "header", 0, STORE_HEADER_BYTES, bytes, e);
	if (r < 0)
		return r;
	return offload_store_header_decode(bytes, (uint64_t)st.st_size, &s->header, e);
}

static int read_tables(struct offload_store *s, struct base_error *e)
{
	uint64_t length = s->header.tables_bytes; // bounded by the counts' limits, and the file has them
	_cleanup_free_ uint8_t *bytes = aligned_alloc(BASE_PAGE_BYTES, length);
	if (!bytes)
		return base_error_set(e, -ENOMEM, "no memory for tables of %llu bytes", (unsigned long long)length);
	int r = read_range(s, "tables", s->header.tables_offset_bytes, length, bytes, e);
	if (r < 0)
		return r;
	return offload_store_tables_decode(&s->header, bytes, &s->tables, e);
}

static int compare(
	const struct offload_store_identity *have, const struct offload_store_identity *want, struct base_error *e)
{
	if (memcmp(have->source_digest, want->source_digest, sizeof have->source_digest) != 0)
		return base_error_set(e, -ESTALE, "packed from another model file");
	const struct {
		const char *what;
		uint32_t have, want;
	} fields[] = {
		{"layer", have->layer, want->layer},
		{"slice", have->tp_rank, want->tp_rank},
		{"number of slices", have->tp_size, want->tp_size},
		{"layout", have->layout, want->layout},
		{"extent size", have->extent_bytes, want->extent_bytes},
	};
	for (size_t i = 0; i < base_array_size(fields); i++) {
		if (fields[i].have != fields[i].want)
			return base_error_set(
				e, -ESTALE, "has %s %u, wanted is %u", fields[i].what, fields[i].have, fields[i].want);
	}
	return 0;
}

int offload_store_open(int dirfd, const char *name, const struct offload_store_identity *want,
	struct offload_store **ret_store, struct base_error *e)
{
	char path[512];
	struct offload_store *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "%s: no memory", name);
	int r = open_file(s, dirfd, name);
	if (r < 0) {
		base_error_set(e, r, "cannot be opened: %s", strerrordesc_np(-r));
		goto fail;
	}
	r = read_header(s, e);
	if (r == 0 && want)
		r = compare(&s->header.identity, want, e);
	if (r == 0)
		r = read_tables(s, e);
	if (r < 0)
		goto fail;
	*ret_store = s;
	return 0;
fail:
	offload_store_close(s);
	base_error_prefix(e, "store file %s", offload_store_path(dirfd, name, path, sizeof path));
	return r;
}

void offload_store_close(struct offload_store *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	offload_store_tables_finish(&s->tables);
	free(s);
}

int offload_store_fd(const struct offload_store *s)
{
	return s->fd;
}

bool offload_store_direct(const struct offload_store *s)
{
	return s->direct;
}

const struct offload_store_identity *offload_store_identity(const struct offload_store *s)
{
	return &s->header.identity;
}

const struct offload_store_tensor *offload_store_tensors(const struct offload_store *s, uint32_t *ret_count)
{
	*ret_count = s->header.tensors_count;
	return s->tables.tensors;
}

const struct offload_store_extent *offload_store_extents(const struct offload_store *s, uint32_t *ret_count)
{
	*ret_count = s->header.extents_count;
	return s->tables.extents;
}

const struct offload_store_piece *offload_store_pieces(const struct offload_store *s, uint32_t *ret_count)
{
	*ret_count = s->header.pieces_count;
	return s->tables.pieces;
}

uint64_t offload_store_data_bytes(const struct offload_store *s)
{
	return s->header.data_bytes;
}
