// SPDX-License-Identifier: Apache-2.0
#include "shard/pack/sources.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "shard/pack/pack.h"

#define NAME "sources.json"
#define MAX_BYTES (1u << 20)
#define MAX_SOURCES 256u

char *pack_hex(const uint8_t digest[static 16], char out[static 33])
{
	for (uint32_t i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", digest[i]);
	return out;
}

static bool from_hex(const char *text, uint8_t ret[static 16])
{
	if (strlen(text) != 32 || strspn(text, "0123456789abcdef") != 32)
		return false;
	for (uint32_t i = 0; i < 16; i++) {
		unsigned v;
		sscanf(text + 2 * i, "%2x", &v);
		ret[i] = (uint8_t)v;
	}
	return true;
}

int pack_write_file(int dirfd, const char *name, const char *text, struct base_error *e)
{
	int status = base_file_replace(dirfd, name, text, strlen(text));
	return status ? base_error_set(e, status, "cannot write %s in the store: %s", name, strerrordesc_np(-status))
		      : 0;
}

static json_object *read_json(int store_fd)
{
	_cleanup_close_ int fd = openat(store_fd, NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) || st.st_size > MAX_BYTES)
		return NULL;
	_cleanup_free_ char *text = calloc(1, (size_t)st.st_size + 1);
	if (!text || read(fd, text, (size_t)st.st_size) != st.st_size)
		return NULL;
	return json_tokener_parse(text);
}

static json_object *sources_of(json_object *root)
{
	json_object *list;
	if (!root || !json_object_object_get_ex(root, "sources", &list) || !json_object_is_type(list, json_type_array))
		return NULL;
	return list;
}

static const char *string_of(json_object *o, const char *key)
{
	json_object *v;
	return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string)
		       ? json_object_get_string(v)
		       : "";
}

static bool has_number(json_object *o, const char *key, uint64_t want)
{
	json_object *v;
	return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_int) &&
	       (uint64_t)json_object_get_int64(v) == want;
}

static uint64_t mtime_ns(const struct stat *st)
{
	return (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
}

bool pack_sources_find(int store_fd, const char *path, const struct stat *st, uint8_t ret_digest[static 16])
{
	json_object *root = read_json(store_fd), *list = sources_of(root);
	bool found = false;
	for (size_t i = 0; list && i < json_object_array_length(list) && !found; i++) {
		json_object *o = json_object_array_get_idx(list, i);
		found = json_object_is_type(o, json_type_object) && strcmp(string_of(o, "path"), path) == 0 &&
			has_number(o, "device", st->st_dev) && has_number(o, "inode", st->st_ino) &&
			has_number(o, "size", (uint64_t)st->st_size) && has_number(o, "mtime_ns", mtime_ns(st)) &&
			from_hex(string_of(o, "digest"), ret_digest);
	}
	json_object_put(root);
	return found;
}

/* The file that one is about, if that has this digest and is as it was; else -ENOENT. Others are not even opened: they
 * may lie on a drive that hangs. */
static int open_source(json_object *o, const uint8_t digest[static 16])
{
	struct stat st;
	uint8_t has[16];
	if (!json_object_is_type(o, json_type_object) || !from_hex(string_of(o, "digest"), has) ||
		memcmp(has, digest, sizeof has) != 0)
		return -ENOENT;
	_cleanup_close_ int fd = open(string_of(o, "path"), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || !has_number(o, "device", st.st_dev) ||
		!has_number(o, "inode", st.st_ino) || !has_number(o, "size", (uint64_t)st.st_size) ||
		!has_number(o, "mtime_ns", mtime_ns(&st)))
		return -ENOENT;
	return base_steal_fd(fd);
}

static json_object *read_store(const char *store_path)
{
	_cleanup_close_ int fd = open(store_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? NULL : read_json(fd);
}

int pack_open_copy(const char *store_path, const uint8_t digest[static 16], char *path, size_t path_room, int *ret_fd)
{
	json_object *root = read_store(store_path), *list = sources_of(root);
	int status = -ENOENT;
	for (size_t i = 0; list && i < json_object_array_length(list) && i < MAX_SOURCES && status; i++) {
		json_object *o = json_object_array_get_idx(list, i);
		_cleanup_close_ int fd = open_source(o, digest);
		if (fd < 0)
			continue;
		snprintf(path, path_room, "%s", string_of(o, "path"));
		*ret_fd = base_steal_fd(fd);
		status = 0;
	}
	json_object_put(root);
	return status;
}

static bool is_among(const uint8_t digest[static 16], uint8_t (*list)[16], uint32_t count)
{
	uint32_t i = 0;
	while (i < count && memcmp(list[i], digest, 16) != 0)
		i++;
	return i < count;
}

uint32_t pack_list_copies(const char *store_path, uint8_t (*ret_digests)[16], uint32_t room)
{
	json_object *root = read_store(store_path), *list = sources_of(root);
	uint32_t count = 0;
	for (size_t i = 0; list && i < json_object_array_length(list) && i < MAX_SOURCES && count < room; i++) {
		json_object *o = json_object_array_get_idx(list, i);
		uint8_t has[16];
		if (json_object_is_type(o, json_type_object) && from_hex(string_of(o, "digest"), has) &&
			!is_among(has, ret_digests, count))
			memcpy(ret_digests[count++], has, sizeof has);
	}
	json_object_put(root);
	return count;
}

static json_object *new_source(const char *path, const struct stat *st, const uint8_t digest[static 16])
{
	char hex[33];
	json_object *o = json_object_new_object();
	json_object_object_add(o, "path", json_object_new_string(path));
	json_object_object_add(o, "device", json_object_new_int64((int64_t)st->st_dev));
	json_object_object_add(o, "inode", json_object_new_int64((int64_t)st->st_ino));
	json_object_object_add(o, "size", json_object_new_int64(st->st_size));
	json_object_object_add(o, "mtime_ns", json_object_new_int64((int64_t)mtime_ns(st)));
	json_object_object_add(o, "digest", json_object_new_string(pack_hex(digest, hex)));
	return o;
}

int pack_sources_put(
	int store_fd, const char *path, const struct stat *st, const uint8_t digest[static 16], struct base_error *e)
{
	json_object *old = read_json(store_fd), *list = sources_of(old), *root = json_object_new_object();
	json_object *sources = json_object_new_array();
	json_object_array_add(sources, new_source(path, st, digest)); // newest first
	for (size_t i = 0; list && i < json_object_array_length(list) && i < MAX_SOURCES - 1; i++) {
		json_object *o = json_object_array_get_idx(list, i);
		if (json_object_is_type(o, json_type_object) && strcmp(string_of(o, "path"), path) != 0)
			json_object_array_add(sources, json_object_get(o));
	}
	json_object_object_add(root, "sources", sources);
	int status = pack_write_file(store_fd, NAME, json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY), e);
	json_object_put(root);
	json_object_put(old);
	return status;
}
