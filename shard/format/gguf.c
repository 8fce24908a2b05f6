// SPDX-License-Identifier: Apache-2.0
// GGUF: opening and parsing. Reading values and data is in gguf_read.c.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/size.h"
#include "shard/format/gguf_internal.h"

#define FIRST_READ_BYTES (4ull << 20)
#define MAX_KEY_BYTES 65535u
#define MAX_ALIGNMENT (1u << 20)
#define DEFAULT_ALIGNMENT 32u
// What one entry takes at least: bounds counts by the size of the file before anything is allocated.
#define MIN_KEY_ENTRY_BYTES 13u
#define MIN_TENSOR_ENTRY_BYTES 33u

struct geometry {
	uint16_t block_cols, block_bytes;
};

// Of every GGUF tensor type, the ones that thaw cannot compute with too: sizes and overlap are checked for all.
static const struct geometry geometries[] = {
	[0] = {1, 4},
	[1] = {1, 2},
	[2] = {32, 18},
	[3] = {32, 20},
	[6] = {32, 22},
	[7] = {32, 24},
	[8] = {32, 34},
	[9] = {32, 36},
	[10] = {256, 84},
	[11] = {256, 110},
	[12] = {256, 144},
	[13] = {256, 176},
	[14] = {256, 210},
	[15] = {256, 292},
	[16] = {256, 66},
	[17] = {256, 74},
	[18] = {256, 98},
	[19] = {256, 50},
	[20] = {32, 18},
	[21] = {256, 110},
	[22] = {256, 82},
	[23] = {256, 136},
	[24] = {1, 1},
	[25] = {1, 2},
	[26] = {1, 4},
	[27] = {1, 8},
	[28] = {1, 8},
	[29] = {256, 56},
	[30] = {1, 2},
	[34] = {256, 54},
	[35] = {256, 66},
	[39] = {32, 17},
};

static const uint8_t scalar_bytes[] = {
	[FORMAT_GGUF_U8] = 1,
	[FORMAT_GGUF_I8] = 1,
	[FORMAT_GGUF_U16] = 2,
	[FORMAT_GGUF_I16] = 2,
	[FORMAT_GGUF_U32] = 4,
	[FORMAT_GGUF_I32] = 4,
	[FORMAT_GGUF_F32] = 4,
	[FORMAT_GGUF_BOOL] = 1,
	[FORMAT_GGUF_U64] = 8,
	[FORMAT_GGUF_I64] = 8,
	[FORMAT_GGUF_F64] = 8,
};

uint32_t format_gguf_scalar_bytes(uint32_t type)
{
	return type < base_array_size(scalar_bytes) ? scalar_bytes[type] : 0;
}

// Hostile bytes never reach a terminal or a log as they are.
char *format_gguf_printable(const char *data, size_t bytes, char out[static FORMAT_GGUF_PRINTABLE_BYTES])
{
	size_t n = bytes < FORMAT_GGUF_PRINTABLE_BYTES - 1 ? bytes : FORMAT_GGUF_PRINTABLE_BYTES - 1;
	for (size_t i = 0; i < n; i++)
		out[i] = data[i] >= 0x20 && data[i] < 0x7f ? data[i] : '?';
	out[n] = '\0';
	return out;
}

/* ---- index ---- */

static uint64_t hash(const struct format_gguf *g, const char *data, size_t bytes)
{
	return XXH3_64bits_withSeed(data, bytes, g->hash_seed);
}

static int index_create(uint32_t count, struct format_gguf_index *ret)
{
	uint32_t room = 8;
	while (room < count * 2)
		room *= 2;
	uint32_t *slots = malloc((size_t)room * sizeof *slots);
	if (!slots)
		return -ENOMEM;
	memset(slots, 0xff, (size_t)room * sizeof *slots);
	*ret = (struct format_gguf_index){.slots = slots, .mask = room - 1};
	return 0;
}

static bool entry_is(const struct format_gguf_entry *entry, const char *key, size_t bytes)
{
	return entry->key.bytes == bytes && memcmp(entry->key.data, key, bytes) == 0;
}

// The slot of the key, or the free one where it belongs.
static uint32_t *find_key_slot(const struct format_gguf *g, const char *key, size_t bytes)
{
	for (uint32_t i = (uint32_t)hash(g, key, bytes) & g->keys.mask;; i = (i + 1) & g->keys.mask) {
		uint32_t *slot = &g->keys.slots[i];
		if (*slot == FORMAT_GGUF_FREE_SLOT || entry_is(&g->entries[*slot], key, bytes))
			return slot;
	}
}

static uint32_t *find_tensor_slot(const struct format_gguf *g, const char *name)
{
	for (uint32_t i = (uint32_t)hash(g, name, strlen(name)) & g->names.mask;; i = (i + 1) & g->names.mask) {
		uint32_t *slot = &g->names.slots[i];
		if (*slot == FORMAT_GGUF_FREE_SLOT || strcmp(g->tensors[*slot].name, name) == 0)
			return slot;
	}
}

const struct format_gguf_entry *format_gguf_find(const struct format_gguf *g, const char *key)
{
	uint32_t slot = *find_key_slot(g, key, strlen(key));
	return slot == FORMAT_GGUF_FREE_SLOT ? NULL : &g->entries[slot];
}

const struct format_gguf_tensor *format_gguf_find_tensor(const struct format_gguf *g, const char *name)
{
	uint32_t slot = *find_tensor_slot(g, name);
	return slot == FORMAT_GGUF_FREE_SLOT ? NULL : &g->tensors[slot];
}

/* ---- parsing ---- */

// A string that is longer than the file is wrong however much of the header is read.
static int read_string(const struct format_gguf *g, struct base_reader *r, const char *what,
	struct format_gguf_string *ret, struct base_error *e)
{
	uint64_t bytes = base_reader_u64(r);
	if (bytes > g->file_bytes)
		return base_error_set(e, -EBADMSG, "%s: %s at byte %zu claims %llu bytes, more than the file has",
			g->path, what, r->at, (unsigned long long)bytes);
	ret->data = base_reader_bytes(r, bytes);
	ret->bytes = ret->data ? (size_t)bytes : 0;
	return 0;
}

static int check_bools(const struct format_gguf *g, const struct format_gguf_entry *entry, struct base_error *e)
{
	char key[FORMAT_GGUF_PRINTABLE_BYTES];
	for (uint64_t i = 0; entry->data && i < entry->count; i++) {
		if (entry->data[i] > 1)
			return base_error_set(e, -EBADMSG, "%s: key %s holds a boolean of value %u", g->path,
				format_gguf_printable(entry->key.data, entry->key.bytes, key), entry->data[i]);
	}
	return 0;
}

static int read_string_array(
	const struct format_gguf *g, struct base_reader *r, struct format_gguf_entry *entry, struct base_error *e)
{
	if (r->status || entry->count == 0)
		return 0;
	if (entry->count > base_reader_left(r) / sizeof(uint64_t)) {
		r->status = -EBADMSG; // maybe only not read yet
		return 0;
	}
	entry->strings = malloc((size_t)entry->count * sizeof *entry->strings);
	if (!entry->strings)
		return -ENOMEM;
	for (uint64_t i = 0; i < entry->count && !r->status; i++) {
		struct format_gguf_string s;
		entry->strings[i] = (uint32_t)r->at;
		int status = read_string(g, r, "a string of an array", &s, e);
		if (status)
			return status;
	}
	return 0;
}

static int read_array(
	const struct format_gguf *g, struct base_reader *r, struct format_gguf_entry *entry, struct base_error *e)
{
	char key[FORMAT_GGUF_PRINTABLE_BYTES];
	entry->is_array = true;
	entry->type = base_reader_u32(r);
	entry->count = base_reader_u64(r);
	if (r->status)
		return 0;
	if (entry->type != FORMAT_GGUF_STRING && !format_gguf_scalar_bytes(entry->type))
		return base_error_set(e, -EBADMSG, "%s: key %s is an array of type %u%s", g->path,
			format_gguf_printable(entry->key.data, entry->key.bytes, key), entry->type,
			entry->type == FORMAT_GGUF_ARRAY ? " (nested arrays are not supported)" : "");
	if (entry->count > g->file_bytes)
		return base_error_set(e, -EBADMSG,
			"%s: key %s claims an array of %llu elements, more than the file holds", g->path,
			format_gguf_printable(entry->key.data, entry->key.bytes, key),
			(unsigned long long)entry->count);
	if (entry->type == FORMAT_GGUF_STRING)
		return read_string_array(g, r, entry, e);
	entry->data = base_reader_bytes(r, entry->count * format_gguf_scalar_bytes(entry->type));
	return entry->type == FORMAT_GGUF_BOOL ? check_bools(g, entry, e) : 0;
}

static int read_entry(struct format_gguf *g, struct base_reader *r, struct base_error *e)
{
	struct format_gguf_entry *entry = &g->entries[g->entries_count];
	*entry = (struct format_gguf_entry){.count = 1};
	int status = read_string(g, r, "a key", &entry->key, e);
	if (status)
		return status;
	uint32_t type = base_reader_u32(r);
	if (r->status)
		return 0;
	char key[FORMAT_GGUF_PRINTABLE_BYTES];
	format_gguf_printable(entry->key.data, entry->key.bytes, key);
	if (entry->key.bytes == 0 || entry->key.bytes > MAX_KEY_BYTES || memchr(entry->key.data, 0, entry->key.bytes))
		return base_error_set(
			e, -EBADMSG, "%s: key %u is empty, too long or holds a zero byte", g->path, g->entries_count);
	g->entries_count++; // from here its strings are freed with the rest
	entry->type = type;
	if (type == FORMAT_GGUF_ARRAY) {
		status = read_array(g, r, entry, e);
	} else if (type == FORMAT_GGUF_STRING) {
		struct format_gguf_string s = {0};
		status = read_string(g, r, "a value", &s, e);
		entry->data = (const uint8_t *)s.data;
		entry->count = s.bytes;
	} else if (format_gguf_scalar_bytes(type)) {
		entry->data = base_reader_bytes(r, format_gguf_scalar_bytes(type));
		status = type == FORMAT_GGUF_BOOL ? check_bools(g, entry, e) : 0;
	} else {
		return base_error_set(e, -EBADMSG, "%s: key %s has the unknown type %u", g->path, key, type);
	}
	if (status || r->status)
		return status;
	uint32_t *slot = find_key_slot(g, entry->key.data, entry->key.bytes);
	if (*slot != FORMAT_GGUF_FREE_SLOT)
		return base_error_set(e, -EBADMSG, "%s: key %s is there twice", g->path, key);
	*slot = g->entries_count - 1;
	return 0;
}

static int tensor_size(const struct format_gguf *g, struct format_gguf_tensor *t, struct base_error *e)
{
	uint64_t rows = 1, bytes = 0, elements;
	for (uint32_t i = 1; i < 4; i++) {
		if (base_size_mul(rows, t->dims[i], &rows))
			return base_error_set(
				e, -EBADMSG, "%s: tensor %s has more elements than 64 bits count", g->path, t->name);
	}
	if (base_size_mul(rows, t->dims[0], &elements) || elements > INT64_MAX)
		return base_error_set(
			e, -EBADMSG, "%s: tensor %s has more elements than 64 bits count", g->path, t->name);
	const struct geometry *geometry = t->type < base_array_size(geometries) ? &geometries[t->type] : NULL;
	if (!geometry || !geometry->block_cols) {
		t->size_bytes = 0;
		return 0;
	}
	if (t->dims[0] % geometry->block_cols)
		return base_error_set(e, -EBADMSG,
			"%s: tensor %s has rows of %llu elements, not a multiple of its type's block of %u", g->path,
			t->name, (unsigned long long)t->dims[0], geometry->block_cols);
	if (base_size_mul(elements / geometry->block_cols, geometry->block_bytes, &bytes))
		return base_error_set(e, -EBADMSG, "%s: tensor %s has more bytes than 64 bits count", g->path, t->name);
	t->size_bytes = bytes;
	return 0;
}

static int read_tensor(struct format_gguf *g, struct base_reader *r, uint32_t index, struct base_error *e)
{
	struct format_gguf_tensor *t = &g->tensors[index];
	struct format_gguf_string name = {0};
	int status = read_string(g, r, "a tensor name", &name, e);
	if (status)
		return status;
	t->dims_count = base_reader_u32(r);
	if (r->status)
		return 0;
	char text[FORMAT_GGUF_PRINTABLE_BYTES];
	format_gguf_printable(name.data, name.bytes, text);
	if (name.bytes == 0 || name.bytes >= FORMAT_GGUF_MAX_NAME_BYTES)
		return base_error_set(e, -EBADMSG, "%s: tensor %u has a name of %zu bytes; 1 to %u are allowed",
			g->path, index, name.bytes, FORMAT_GGUF_MAX_NAME_BYTES - 1);
	if (strlen(text) != name.bytes || memcmp(text, name.data, name.bytes) != 0)
		return base_error_set(
			e, -EBADMSG, "%s: the name of tensor %u has unprintable bytes: %s", g->path, index, text);
	char *copy = g->names_room + (size_t)index * FORMAT_GGUF_MAX_NAME_BYTES;
	memcpy(copy, name.data, name.bytes);
	copy[name.bytes] = '\0';
	t->name = copy;
	if (t->dims_count == 0 || t->dims_count > 4)
		return base_error_set(e, -EBADMSG, "%s: tensor %s has %u dimensions; 1 to 4 are allowed", g->path, copy,
			t->dims_count);
	for (uint32_t i = 0; i < 4; i++) {
		t->dims[i] = i < t->dims_count ? base_reader_u64(r) : 1;
		if (!r->status && t->dims[i] == 0)
			return base_error_set(e, -EBADMSG, "%s: tensor %s has a dimension of size 0", g->path, copy);
	}
	t->type = base_reader_u32(r);
	t->offset_bytes = base_reader_u64(r);
	if (r->status)
		return 0;
	uint32_t *slot = find_tensor_slot(g, copy);
	if (*slot != FORMAT_GGUF_FREE_SLOT)
		return base_error_set(e, -EBADMSG, "%s: tensor %s is there twice", g->path, copy);
	*slot = index;
	return tensor_size(g, t, e);
}

static int compare_offsets(const void *a, const void *b)
{
	const struct format_gguf_tensor *x = *(const struct format_gguf_tensor *const *)a;
	const struct format_gguf_tensor *y = *(const struct format_gguf_tensor *const *)b;
	if (x->offset_bytes != y->offset_bytes)
		return x->offset_bytes < y->offset_bytes ? -1 : 1;
	return (x->size_bytes > y->size_bytes) - (x->size_bytes < y->size_bytes);
}

static int check_overlap(const struct format_gguf *g, struct base_error *e)
{
	if (g->tensors_count == 0)
		return 0;
	_cleanup_free_ const struct format_gguf_tensor **order = malloc(g->tensors_count * sizeof *order);
	if (!order)
		return -ENOMEM;
	for (uint32_t i = 0; i < g->tensors_count; i++)
		order[i] = &g->tensors[i];
	qsort(order, g->tensors_count, sizeof *order, compare_offsets);
	for (uint32_t i = 1; i < g->tensors_count; i++) {
		if (order[i - 1]->offset_bytes + order[i - 1]->size_bytes > order[i]->offset_bytes)
			return base_error_set(e, -EBADMSG, "%s: tensors %s and %s overlap", g->path, order[i - 1]->name,
				order[i]->name);
	}
	return 0;
}

// Turns offsets from the start of the data into offsets in the file and checks that the data is there.
static int place_tensors(struct format_gguf *g, size_t header_bytes, struct base_error *e)
{
	uint32_t alignment = DEFAULT_ALIGNMENT;
	int status = format_gguf_get_u32(g, "general.alignment", &alignment, e);
	if (status && status != -ENOENT)
		return status;
	if (alignment == 0 || alignment > MAX_ALIGNMENT || (alignment & (alignment - 1)))
		return base_error_set(e, -EBADMSG, "%s: general.alignment is %u; a power of two up to %u is needed",
			g->path, alignment, MAX_ALIGNMENT);
	uint64_t data = base_size_align(header_bytes, alignment);
	for (uint32_t i = 0; i < g->tensors_count; i++) {
		struct format_gguf_tensor *t = &g->tensors[i];
		uint64_t start, end;
		if (t->offset_bytes % alignment)
			return base_error_set(e, -EBADMSG, "%s: tensor %s is at offset %llu, not a multiple of %u",
				g->path, t->name, (unsigned long long)t->offset_bytes, alignment);
		if (base_size_add(data, t->offset_bytes, &start) || base_size_add(start, t->size_bytes, &end) ||
			end > g->file_bytes)
			return base_error_set(e, -EBADMSG,
				"%s: tensor %s ends beyond the file of %llu bytes: the file is truncated or not what "
				"it says",
				g->path, t->name, (unsigned long long)g->file_bytes);
		t->offset_bytes = start;
	}
	return check_overlap(g, e);
}

static int read_counts(
	struct format_gguf *g, struct base_reader *r, uint64_t *ret_tensors, uint64_t *ret_keys, struct base_error *e)
{
	const char *magic = base_reader_bytes(r, 4);
	uint32_t version = base_reader_u32(r);
	if (!magic || memcmp(magic, "GGUF", 4) != 0)
		return base_error_set(e, -EBADMSG, "%s: not a GGUF file", g->path);
	if (r->status == 0 && version != 2 && version != 3)
		return base_error_set(e, -ENOTSUP, "%s: GGUF version %u; versions 2 and 3 are supported%s", g->path,
			__builtin_bswap32(version) <= 3 ? __builtin_bswap32(version) : version,
			__builtin_bswap32(version) <= 3 ? ", little-endian only" : "");
	*ret_tensors = base_reader_u64(r);
	*ret_keys = base_reader_u64(r);
	if (r->status)
		return base_error_set(e, -EBADMSG, "%s: the file ends in its first 24 bytes", g->path);
	if (*ret_tensors > FORMAT_GGUF_MAX_TENSORS || *ret_tensors * MIN_TENSOR_ENTRY_BYTES > g->file_bytes)
		return base_error_set(e, -EBADMSG, "%s: claims %llu tensors, which cannot be", g->path,
			(unsigned long long)*ret_tensors);
	if (*ret_keys > FORMAT_GGUF_MAX_KEYS || *ret_keys * MIN_KEY_ENTRY_BYTES > g->file_bytes)
		return base_error_set(e, -EBADMSG, "%s: claims %llu metadata keys, which cannot be", g->path,
			(unsigned long long)*ret_keys);
	return 0;
}

static void forget_tables(struct format_gguf *g)
{
	for (uint32_t i = 0; i < g->entries_count; i++)
		free(g->entries[i].strings);
	free(g->entries);
	free(g->tensors);
	free(g->names_room);
	free(g->keys.slots);
	free(g->names.slots);
	g->entries = NULL;
	g->entries_count = 0;
	g->tensors = NULL;
	g->tensors_count = 0;
	g->names_room = NULL;
	g->keys = g->names = (struct format_gguf_index){0};
}

// -EAGAIN: all right so far, but the header goes on after the bytes given.
static int parse(struct format_gguf *g, const void *data, size_t bytes, struct base_error *e)
{
	struct base_reader r;
	uint64_t tensors = 0, keys = 0;
	base_reader_init(&r, data, bytes);
	g->header = data;
	int status = read_counts(g, &r, &tensors, &keys, e);
	if (status)
		return status;
	g->entries = calloc(keys + 1, sizeof *g->entries);
	g->tensors = calloc(tensors + 1, sizeof *g->tensors);
	g->names_room = malloc((tensors + 1) * FORMAT_GGUF_MAX_NAME_BYTES);
	if (!g->entries || !g->tensors || !g->names_room || index_create((uint32_t)keys, &g->keys) ||
		index_create((uint32_t)tensors, &g->names))
		return -ENOMEM;
	for (uint64_t i = 0; i < keys && !r.status && !status; i++)
		status = read_entry(g, &r, e);
	for (uint64_t i = 0; i < tensors && !r.status && !status; i++)
		status = read_tensor(g, &r, (uint32_t)i, e);
	if (status)
		return status;
	if (r.status) {
		if (bytes < g->file_bytes && bytes < FORMAT_GGUF_MAX_HEADER_BYTES)
			return -EAGAIN;
		return base_error_set(e, -EBADMSG,
			"%s: the header goes on beyond %s: the file is truncated or not what it says", g->path,
			bytes < g->file_bytes ? "256 MiB" : "the end of the file");
	}
	g->tensors_count = (uint32_t)tensors;
	g->header_bytes = r.at;
	return place_tensors(g, r.at, e);
}

static int read_header(struct format_gguf *g, uint64_t from, uint64_t to, struct base_error *e)
{
	while (from < to) {
		ssize_t n = pread(g->fd, g->buffer + from, to - from, (off_t)from);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return base_error_set(e, n < 0 ? -errno : -EIO,
				"%s: cannot read %llu bytes at %llu, of its header: %s", g->path,
				(unsigned long long)(to - from), (unsigned long long)from,
				n < 0 ? strerrordesc_np(errno) : "the file became shorter");
		from += (uint64_t)n;
	}
	return 0;
}

// Reads more of the file until the header is whole. Parsing starts anew each time: twice the work at worst.
static int load(struct format_gguf *g, struct base_error *e)
{
	uint64_t have = 0, want = FIRST_READ_BYTES;
	for (;;) {
		uint64_t limit =
			g->file_bytes < FORMAT_GGUF_MAX_HEADER_BYTES ? g->file_bytes : FORMAT_GGUF_MAX_HEADER_BYTES;
		want = want < limit ? want : limit;
		uint8_t *more = realloc(g->buffer, want ? want : 1);
		if (!more)
			return base_error_set(e, -ENOMEM, "%s: no memory for a header of %llu bytes", g->path,
				(unsigned long long)want);
		g->buffer = more;
		int status = read_header(g, have, want, e);
		if (status)
			return status;
		have = want;
		status = parse(g, g->buffer, have, e);
		if (status != -EAGAIN)
			return status;
		forget_tables(g);
		want *= 4;
	}
}

static int create(const char *path, struct format_gguf **ret)
{
	struct format_gguf *g = calloc(1, sizeof *g);
	if (!g)
		return -ENOMEM;
	g->fd = -1;
	g->path = strdup(path);
	if (!g->path || getrandom(&g->hash_seed, sizeof g->hash_seed, 0) != sizeof g->hash_seed) {
		format_gguf_close(g);
		return -ENOMEM;
	}
	*ret = g;
	return 0;
}

static int open_file(struct format_gguf *g, struct base_error *e)
{
	struct stat st;
	g->fd = open(g->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (g->fd < 0)
		return base_error_set(e, -errno, "cannot open model %s: %s", g->path, strerrordesc_np(errno));
	if (fstat(g->fd, &st))
		return base_error_set(e, -errno, "cannot look at model %s: %s", g->path, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode))
		return base_error_set(
			e, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL, "model %s is not a regular file", g->path);
	g->file_bytes = (uint64_t)st.st_size;
	return load(g, e);
}

int format_gguf_open(const char *path, struct format_gguf **ret_gguf, struct base_error *e)
{
	struct format_gguf *g;
	int status = create(path, &g);
	if (status)
		return base_error_set(e, status, "%s: no memory", path);
	status = open_file(g, e);
	if (status) {
		if (status == -ENOMEM)
			base_error_set(e, status, "%s: no memory for its tables", path);
		format_gguf_close(g);
		return status;
	}
	*ret_gguf = g;
	return 0;
}

int format_gguf_open_memory(
	const void *data, size_t bytes, const char *name, struct format_gguf **ret_gguf, struct base_error *e)
{
	struct format_gguf *g;
	int status = create(name, &g);
	if (status)
		return base_error_set(e, status, "%s: no memory", name);
	g->file_bytes = bytes;
	g->memory = data;
	status = parse(g, data, bytes < FORMAT_GGUF_MAX_HEADER_BYTES ? bytes : FORMAT_GGUF_MAX_HEADER_BYTES, e);
	if (status) {
		if (status == -ENOMEM)
			base_error_set(e, status, "%s: no memory for its tables", name);
		format_gguf_close(g);
		return status;
	}
	*ret_gguf = g;
	return 0;
}

void format_gguf_close(struct format_gguf *g)
{
	if (!g)
		return;
	forget_tables(g);
	if (g->fd >= 0)
		close(g->fd);
	free(g->buffer);
	free(g->path);
	free(g);
}
