// SPDX-License-Identifier: Apache-2.0
// GGUF: values of metadata, data of tensors, digest.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "shard/format/gguf_internal.h"

#define DIGEST_READ_BYTES (8u << 20)

static const char *const type_names[] = {
	"u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

const char *format_gguf_path(const struct format_gguf *g)
{
	return g->path;
}

uint64_t format_gguf_file_bytes(const struct format_gguf *g)
{
	return g->file_bytes;
}

int format_gguf_fd(const struct format_gguf *g)
{
	return g->fd;
}

uint32_t format_gguf_tensor_count(const struct format_gguf *g)
{
	return g->tensors_count;
}

const struct format_gguf_tensor *format_gguf_tensor(const struct format_gguf *g, uint32_t index)
{
	return index < g->tensors_count ? &g->tensors[index] : NULL;
}

bool format_gguf_has(const struct format_gguf *g, const char *key)
{
	return format_gguf_find(g, key) != NULL;
}

static int missing(const struct format_gguf *g, const char *key, struct base_error *e)
{
	return base_error_set(e, -ENOENT, "%s: metadata key %s is missing", g->path, key);
}

static int wrong_type(const struct format_gguf *g, const struct format_gguf_entry *entry, const char *key,
	const char *wanted, struct base_error *e)
{
	return base_error_set(e, -EINVAL, "%s: metadata key %s is %s%s, but %s is needed", g->path, key,
		entry->is_array ? "an array of " : "", type_names[entry->type], wanted);
}

static bool is_integer(uint32_t type)
{
	return type <= FORMAT_GGUF_I32 || type == FORMAT_GGUF_U64 || type == FORMAT_GGUF_I64;
}

// Element i as u32: false if it does not fit.
static bool element_u32(const struct format_gguf_entry *entry, uint64_t i, uint32_t *ret)
{
	uint32_t bytes = format_gguf_scalar_bytes(entry->type);
	uint64_t v = 0;
	memcpy(&v, entry->data + i * bytes, bytes);
	bool is_signed = entry->type == FORMAT_GGUF_I8 || entry->type == FORMAT_GGUF_I16 ||
			 entry->type == FORMAT_GGUF_I32 || entry->type == FORMAT_GGUF_I64;
	if (v > UINT32_MAX || (is_signed && v >> (8 * bytes - 1)))
		return false;
	*ret = (uint32_t)v;
	return true;
}

static float element_f32(const struct format_gguf_entry *entry, uint64_t i)
{
	if (entry->type == FORMAT_GGUF_F64) {
		double d;
		memcpy(&d, entry->data + i * sizeof d, sizeof d);
		return (float)d;
	}
	float f;
	memcpy(&f, entry->data + i * sizeof f, sizeof f);
	return f;
}

int format_gguf_get_u32(const struct format_gguf *g, const char *key, uint32_t *ret, struct base_error *e)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return missing(g, key, e);
	if (entry->is_array || !is_integer(entry->type))
		return wrong_type(g, entry, key, "an integer", e);
	if (!element_u32(entry, 0, ret))
		return base_error_set(
			e, -EINVAL, "%s: metadata key %s is negative or does not fit 32 bits", g->path, key);
	return 0;
}

int format_gguf_get_f32(const struct format_gguf *g, const char *key, float *ret, struct base_error *e)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return missing(g, key, e);
	if (entry->is_array || (entry->type != FORMAT_GGUF_F32 && entry->type != FORMAT_GGUF_F64))
		return wrong_type(g, entry, key, "f32", e);
	*ret = element_f32(entry, 0);
	return 0;
}

int format_gguf_get_bool(const struct format_gguf *g, const char *key, bool *ret, struct base_error *e)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return missing(g, key, e);
	if (entry->is_array || entry->type != FORMAT_GGUF_BOOL)
		return wrong_type(g, entry, key, "bool", e);
	*ret = entry->data[0] != 0;
	return 0;
}

int format_gguf_get_string(
	const struct format_gguf *g, const char *key, struct format_gguf_string *ret, struct base_error *e)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return missing(g, key, e);
	if (entry->is_array || entry->type != FORMAT_GGUF_STRING)
		return wrong_type(g, entry, key, "a string", e);
	*ret = (struct format_gguf_string){.data = (const char *)entry->data, .bytes = (size_t)entry->count};
	return 0;
}

// Integers of any width stand for each other, and so do the two floats.
static bool array_serves(uint32_t have, uint32_t wanted)
{
	if (is_integer(wanted))
		return is_integer(have);
	if (wanted == FORMAT_GGUF_F32 || wanted == FORMAT_GGUF_F64)
		return have == FORMAT_GGUF_F32 || have == FORMAT_GGUF_F64;
	return have == wanted;
}

int format_gguf_get_array(const struct format_gguf *g, const char *key, enum format_gguf_type type, uint64_t *ret_count,
	struct base_error *e)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return missing(g, key, e);
	if (!entry->is_array || !array_serves(entry->type, type)) {
		char wanted[32];
		snprintf(wanted, sizeof wanted, "an array of %s", type_names[type]);
		return wrong_type(g, entry, key, wanted, e);
	}
	*ret_count = entry->count;
	return 0;
}

struct format_gguf_string format_gguf_array_string(const struct format_gguf *g, const char *key, uint64_t index)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry || !entry->strings || index >= entry->count)
		return (struct format_gguf_string){.data = "", .bytes = 0};
	const uint8_t *at = g->header + entry->strings[index];
	uint64_t bytes;
	memcpy(&bytes, at, sizeof bytes);
	return (struct format_gguf_string){.data = (const char *)at + sizeof bytes, .bytes = (size_t)bytes};
}

int format_gguf_array_u32s(const struct format_gguf *g, const char *key, uint32_t *out, uint64_t count)
{
	const struct format_gguf_entry *entry = format_gguf_find(g, key);
	if (!entry)
		return -ENOENT;
	if (!entry->is_array || !is_integer(entry->type) || count > entry->count)
		return -EINVAL;
	for (uint64_t i = 0; i < count; i++) {
		if (!element_u32(entry, i, &out[i]))
			return -EINVAL;
	}
	return 0;
}

int format_gguf_read(const struct format_gguf *g, const struct format_gguf_tensor *t, uint64_t offset, void *out,
	uint64_t bytes, struct base_error *e)
{
	if (offset > t->size_bytes || bytes > t->size_bytes - offset)
		return base_error_set(e, -EINVAL, "%s: read of tensor %s beyond its end", g->path, t->name);
	uint64_t at = t->offset_bytes + offset;
	if (g->fd < 0) {
		memcpy(out, g->memory + at, bytes);
		return 0;
	}
	for (uint64_t done = 0; done < bytes;) {
		ssize_t n = pread(g->fd, (char *)out + done, bytes - done, (off_t)(at + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return base_error_set(e, -EIO, "%s: cannot read %llu bytes at %llu, of tensor %s: %s", g->path,
				(unsigned long long)(bytes - done), (unsigned long long)(at + done), t->name,
				n < 0 ? strerrordesc_np(errno) : "the file became shorter");
		done += (uint64_t)n;
	}
	return 0;
}

void format_gguf_forget(const struct format_gguf *g, const struct format_gguf_tensor *t)
{
	if (g->fd >= 0)
		posix_fadvise(g->fd, (off_t)t->offset_bytes, (off_t)t->size_bytes, POSIX_FADV_DONTNEED);
}

/* ---- digest ---- */

uint64_t format_gguf_header_bytes(const struct format_gguf *g)
{
	return g->header_bytes;
}

uint64_t format_gguf_header_hash(const struct format_gguf *g)
{
	return XXH3_64bits(g->header, g->header_bytes);
}

struct digest_reader {
	int fd;
	bool direct; // else through the page cache, giving pages back behind us
	uint8_t *buffer;
};

static void digest_reader_finish(struct digest_reader *r)
{
	if (r->fd >= 0)
		close(r->fd);
	if (r->buffer)
		munmap(r->buffer, DIGEST_READ_BYTES);
}

static int digest_reader_init(struct digest_reader *r, const struct format_gguf *g, struct base_error *e)
{
	char path[64];
	*r = (struct digest_reader){.fd = -1};
	void *buffer = mmap(NULL, DIGEST_READ_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		return base_error_set(e, -ENOMEM, "%s: no memory to read it", g->path);
	r->buffer = buffer;
	// By descriptor, not by path: the path may name another file by now.
	snprintf(path, sizeof path, "/proc/self/fd/%d", g->fd);
	r->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
	r->direct = r->fd >= 0;
	if (!r->direct)
		r->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (r->fd < 0)
		r->fd = dup(g->fd);
	if (r->fd < 0)
		return base_error_set(e, -errno, "%s: cannot open it again: %s", g->path, strerrordesc_np(errno));
	if (!r->direct)
		posix_fadvise(r->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	return 0;
}

static ssize_t digest_read(struct digest_reader *r, uint64_t at)
{
	for (;;) {
		ssize_t n = pread(r->fd, r->buffer, DIGEST_READ_BYTES, (off_t)at);
		if (n >= 0) {
			if (!r->direct && n > 0)
				posix_fadvise(r->fd, (off_t)at, n, POSIX_FADV_DONTNEED);
			return n;
		}
		if (errno == EINTR)
			continue;
		if (errno == EINVAL && r->direct && fcntl(r->fd, F_SETFL, 0) == 0) {
			r->direct = false; // a file system that takes the flag and then refuses the read
			continue;
		}
		return -errno;
	}
}

static int digest_file(const struct format_gguf *g, XXH3_state_t *state,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context, struct base_error *e)
{
	_cleanup_(digest_reader_finish) struct digest_reader r;
	int status = digest_reader_init(&r, g, e);
	if (status)
		return status;
	for (uint64_t at = 0; at < g->file_bytes;) {
		ssize_t n = digest_read(&r, at);
		if (n <= 0)
			return base_error_set(e, -EIO, "%s: cannot read %u bytes at %llu: %s", g->path,
				(unsigned)DIGEST_READ_BYTES, (unsigned long long)at,
				n < 0 ? strerrordesc_np((int)-n) : "the file became shorter");
		uint64_t take = (uint64_t)n < g->file_bytes - at ? (uint64_t)n : g->file_bytes - at;
		XXH3_128bits_update(state, r.buffer, take);
		at += take;
		if (progress && progress(context, at, g->file_bytes))
			return base_error_set(e, -ECANCELED, "%s: reading it was cancelled", g->path);
		// A short direct read leaves an offset that O_DIRECT does not take.
		if (at < g->file_bytes && at % BASE_PAGE_BYTES && r.direct && fcntl(r.fd, F_SETFL, 0) == 0)
			r.direct = false;
	}
	return 0;
}

int format_gguf_digest(const struct format_gguf *g, uint8_t ret_digest[static 16],
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context, struct base_error *e)
{
	XXH3_state_t *state = XXH3_createState();
	if (!state)
		return base_error_set(e, -ENOMEM, "%s: no memory", g->path);
	XXH3_128bits_reset(state);
	int status = 0;
	if (g->fd < 0)
		XXH3_128bits_update(state, g->memory, g->file_bytes);
	else
		status = digest_file(g, state, progress, context, e);
	if (!status) {
		XXH128_canonical_t canonical;
		XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
		memcpy(ret_digest, canonical.digest, 16);
	}
	XXH3_freeState(state);
	return status;
}
