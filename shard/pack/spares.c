// SPDX-License-Identifier: Apache-2.0
#include "shard/pack/spares.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "shard/pack/pack.h"
#include "shard/pack/sources.h"

#define NAME "spares"
#define NAME_BYTES 64u
#define DIGEST_DIGITS 32u
#define MAX_BYTES (PACK_MAX_SPARES * NAME_BYTES)

struct list {
	char name[PACK_MAX_SPARES][NAME_BYTES];
	uint32_t count;
};

/* ---- the file ---- */

/* A name that the packer gives, whatever is in the file: nothing else is deleted. */
static bool is_store_file(const char *name, size_t bytes)
{
	char text[NAME_BYTES];
	uint32_t layer, rank, size;
	if (bytes >= sizeof text)
		return false;
	memcpy(text, name, bytes);
	text[bytes] = '\0';
	return pack_file_parse(text, &layer, &rank, &size) == 0;
}

/* What cannot be read is no list: then nothing is deleted. */
static void read_list(int dir_fd, struct list *ret_list)
{
	_cleanup_close_ int fd = openat(dir_fd, NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;
	ret_list->count = 0;
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size > MAX_BYTES)
		return;
	_cleanup_free_ char *text = calloc(1, (size_t)st.st_size + 1);
	if (!text || read(fd, text, (size_t)st.st_size) != st.st_size)
		return;
	for (const char *at = text; *at && ret_list->count < PACK_MAX_SPARES;) {
		size_t n = strcspn(at, "\n");
		if (is_store_file(at, n)) {
			char *name = ret_list->name[ret_list->count++];
			memcpy(name, at, n);
			name[n] = '\0';
		}
		at += n + (at[n] == '\n');
	}
}

static int write_list(int dir_fd, const struct list *list, struct base_error *e)
{
	_cleanup_free_ char *text = malloc(list->count * NAME_BYTES + 1);
	char *at = text;
	if (!text)
		return base_error_set(e, -ENOMEM, "no memory to list spare files with");
	if (!list->count) {
		if (unlinkat(dir_fd, NAME, 0) == 0 || errno == ENOENT)
			return 0;
		return base_error_set(e, -errno, "cannot remove %s in the store: %s", NAME, strerrordesc_np(errno));
	}
	for (uint32_t i = 0; i < list->count; i++) {
		at = stpcpy(at, list->name[i]);
		*at++ = '\n';
	}
	*at = '\0';
	return pack_write_file(dir_fd, NAME, text, e);
}

static bool is_among(const char *name, char (*names)[NAME_BYTES], uint32_t count)
{
	uint32_t i = 0;
	while (i < count && strcmp(names[i], name) != 0)
		i++;
	return i < count;
}

void pack_spares_look(int dir_fd, char (*names)[64], uint32_t count, bool *ret_listed)
{
	_cleanup_free_ struct list *list = malloc(sizeof *list);
	if (list)
		read_list(dir_fd, list);
	for (uint32_t i = 0; i < count; i++)
		ret_listed[i] = list && is_among(names[i], list->name, list->count);
}

int pack_spares_add(int dir_fd, char (*names)[64], uint32_t count, struct base_error *e)
{
	_cleanup_free_ struct list *list = malloc(sizeof *list);
	if (!list)
		return base_error_set(e, -ENOMEM, "no memory to list spare files with");
	read_list(dir_fd, list);
	uint32_t before = list->count;
	for (uint32_t i = 0; i < count && list->count < PACK_MAX_SPARES; i++) {
		if (!is_among(names[i], list->name, list->count))
			memcpy(list->name[list->count++], names[i], NAME_BYTES);
	}
	return list->count == before ? 0 : write_list(dir_fd, list, e);
}

int pack_spares_remove(int dir_fd, char (*names)[64], uint32_t count, struct base_error *e)
{
	_cleanup_free_ struct list *list = malloc(sizeof *list);
	if (!list)
		return base_error_set(e, -ENOMEM, "no memory to list spare files with");
	read_list(dir_fd, list);
	uint32_t left = 0;
	for (uint32_t i = 0; i < list->count; i++) {
		if (is_among(list->name[i], names, count))
			continue;
		if (left != i)
			memcpy(list->name[left], list->name[i], NAME_BYTES);
		left++;
	}
	if (left == list->count)
		return 0;
	list->count = left;
	int status = write_list(dir_fd, list, e);
	// No room for a list: then none of them is spare, which is safe. A plan that finds all of its files needs no
	// room.
	if (status == -ENOSPC && unlinkat(dir_fd, NAME, 0) == 0)
		status = 0;
	return status;
}

/* ---- deleting ---- */

struct drop {
	uint64_t wanted_bytes;
	bool only_count;
	struct pack_dropped dropped;
};

/* The last ones first: they are the furthest from what the node computed then. */
static int drop_files(int dir_fd, char (*keep)[NAME_BYTES], uint32_t keep_count, struct drop *d, struct base_error *e)
{
	_cleanup_free_ struct list *list = malloc(sizeof *list);
	struct stat st;
	if (!list)
		return base_error_set(e, -ENOMEM, "no memory to list spare files with");
	read_list(dir_fd, list);
	uint32_t before = list->count;
	for (uint32_t i = list->count; i-- > 0 && d->dropped.bytes < d->wanted_bytes;) {
		const char *name = list->name[i];
		if (is_among(name, keep, keep_count))
			continue;
		bool there = fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode);
		if (there && !d->only_count && unlinkat(dir_fd, name, 0) < 0)
			return base_error_set(
				e, -errno, "cannot remove the spare file %s: %s", name, strerrordesc_np(errno));
		if (there) {
			d->dropped.files++;
			d->dropped.bytes += (uint64_t)st.st_blocks * 512;
		}
		if (!d->only_count) {
			memmove(list->name[i], list->name[i + 1], (list->count - i - 1) * sizeof list->name[0]);
			list->count--;
		}
	}
	return list->count == before ? 0 : write_list(dir_fd, list, e);
}

/* own: only the model with this digest, or all but that one. */
static int drop_models(int store_fd, const char *digest, bool own, char (*keep)[NAME_BYTES], uint32_t keep_count,
	struct drop *d, struct base_error *e)
{
	int status = 0, fd = openat(store_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir && fd >= 0)
		close(fd);
	if (!dir)
		return base_error_set(e, -EIO, "cannot read the store directory");
	for (struct dirent *n; !status && (n = readdir(dir));) {
		if (strlen(n->d_name) != DIGEST_DIGITS || strspn(n->d_name, "0123456789abcdef") != DIGEST_DIGITS ||
			(strcmp(n->d_name, digest) == 0) != own)
			continue;
		_cleanup_close_ int at = openat(store_fd, n->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
		if (at >= 0)
			status = drop_files(at, own ? keep : NULL, own ? keep_count : 0, d, e);
	}
	closedir(dir);
	return status;
}

static int drop_all(int store_fd, const char *digest, char (*keep)[NAME_BYTES], uint32_t keep_count, struct drop *d,
	struct base_error *e)
{
	int status = drop_models(store_fd, digest, false, NULL, 0, d, e);
	return status ? status : drop_models(store_fd, digest, true, keep, keep_count, d, e);
}

int pack_spares_make_room(int store_fd, const char *digest, char (*keep)[64], uint32_t keep_count, uint64_t bytes,
	struct pack_dropped *ret_dropped, struct base_error *e)
{
	struct drop d = {.wanted_bytes = bytes, .only_count = true};
	int status = drop_all(store_fd, digest, keep, keep_count, &d, e);
	bool enough = d.dropped.bytes >= bytes;
	d = (struct drop){.wanted_bytes = bytes};
	if (!status && enough)
		status = drop_all(store_fd, digest, keep, keep_count, &d, e);
	if (!status)
		*ret_dropped = d.dropped;
	return status;
}

int pack_spares_drop(int dir_fd, struct pack_dropped *ret_dropped, struct base_error *e)
{
	struct drop d = {.wanted_bytes = UINT64_MAX};
	int status = drop_files(dir_fd, NULL, 0, &d, e);
	if (!status)
		*ret_dropped = d.dropped;
	return status;
}
