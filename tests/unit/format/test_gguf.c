// SPDX-License-Identifier: Apache-2.0
// GGUF: what is read, and what each kind of bad file gets.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <xxhash.h>

#include "shard/format/gguf.h"
#include "tests/lib/tiny_gguf.h"

static struct format_gguf *open_good(const struct tiny_gguf *t)
{
	struct format_gguf *g = NULL;
	struct base_error e = {0};
	if (format_gguf_open_memory(t->data, t->bytes, "t.gguf", &g, &e))
		fail_msg("%s", base_error_text(&e));
	return g;
}

// The file is refused with the code, and the message has the text.
static void refused(const struct tiny_gguf *t, int code, const char *text)
{
	struct format_gguf *g = NULL;
	struct base_error e = {0};
	assert_int_equal(format_gguf_open_memory(t->data, t->bytes, "t.gguf", &g, &e), code);
	assert_null(g);
	if (!strstr(e.message, text))
		fail_msg("'%s' lacks '%s'", e.message, text);
	assert_non_null(strstr(e.message, "t.gguf"));
}

static void two_tensors(struct tiny_gguf *t)
{
	uint64_t dims[2] = {32, 2}, vector[1] = {8};
	float floats[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	uint8_t blocks[36];
	for (size_t i = 0; i < sizeof blocks; i++)
		blocks[i] = (uint8_t)i;
	tiny_gguf_tensor(t, "a", 2, dims, 2, blocks, sizeof blocks);
	tiny_gguf_tensor(t, "b", 1, vector, 0, floats, sizeof floats);
}

static void reads_what_is_there(void **state)
{
	struct tiny_gguf t;
	const char *strings[] = {"x", "", "longer"};
	int32_t numbers[] = {3, 1, 2};
	tiny_gguf_init(&t);
	tiny_gguf_key_u32(&t, "number", 7);
	tiny_gguf_key_f32(&t, "float", 1.5f);
	tiny_gguf_key_bool(&t, "yes", true);
	tiny_gguf_key_string(&t, "text", "hello");
	tiny_gguf_key_strings(&t, "strings", strings, 3);
	tiny_gguf_key_i32s(&t, "numbers", numbers, 3);
	two_tensors(&t);
	tiny_gguf_finish(&t);
	struct format_gguf *g = open_good(&t);
	uint32_t u = 0, us[3];
	float f = 0;
	bool b = false;
	uint64_t n = 0;
	struct format_gguf_string s;
	assert_int_equal(format_gguf_get_u32(g, "number", &u, NULL), 0);
	assert_int_equal(u, 7);
	assert_int_equal(format_gguf_get_f32(g, "float", &f, NULL), 0);
	assert_true(f == 1.5f);
	assert_int_equal(format_gguf_get_bool(g, "yes", &b, NULL), 0);
	assert_true(b);
	assert_int_equal(format_gguf_get_string(g, "text", &s, NULL), 0);
	assert_int_equal(s.bytes, 5);
	assert_memory_equal(s.data, "hello", 5);
	assert_int_equal(format_gguf_get_array(g, "strings", FORMAT_GGUF_STRING, &n, NULL), 0);
	assert_int_equal(n, 3);
	s = format_gguf_array_string(g, "strings", 2);
	assert_int_equal(s.bytes, 6);
	assert_memory_equal(s.data, "longer", 6);
	assert_int_equal(format_gguf_array_string(g, "strings", 1).bytes, 0);
	assert_int_equal(format_gguf_array_string(g, "strings", 3).bytes, 0);
	assert_int_equal(format_gguf_get_array(g, "numbers", FORMAT_GGUF_U32, &n, NULL), 0);
	assert_int_equal(format_gguf_array_u32s(g, "numbers", us, 3), 0);
	assert_int_equal(us[0], 3);
	assert_int_equal(format_gguf_tensor_count(g), 2);
	const struct format_gguf_tensor *a = format_gguf_find_tensor(g, "a");
	assert_non_null(a);
	assert_int_equal(a->dims[0], 32);
	assert_int_equal(a->dims[1], 2);
	assert_int_equal(a->dims[2], 1);
	assert_int_equal(a->size_bytes, 36);
	uint8_t two[2];
	assert_int_equal(format_gguf_read(g, a, 17, two, 2, NULL), 0);
	assert_int_equal(two[0], 17);
	assert_int_equal(format_gguf_read(g, a, 35, two, 2, NULL), -EINVAL);
	assert_null(format_gguf_find_tensor(g, "c"));
	format_gguf_close(g);
	tiny_gguf_release(&t);
}

static void names_key_and_types_when_they_differ(void **state)
{
	struct tiny_gguf t;
	int32_t negative = -1;
	tiny_gguf_init(&t);
	tiny_gguf_key_string(&t, "text", "hello");
	tiny_gguf_key_i32s(&t, "numbers", &negative, 1);
	tiny_gguf_finish(&t);
	struct format_gguf *g = open_good(&t);
	struct base_error e = {0};
	uint32_t u = 9;
	assert_int_equal(format_gguf_get_u32(g, "text", &u, &e), -EINVAL);
	assert_string_equal(e.message, "t.gguf: metadata key text is string, but an integer is needed");
	assert_int_equal(format_gguf_get_u32(g, "gone", &u, &e), -ENOENT);
	assert_string_equal(e.message, "t.gguf: metadata key gone is missing");
	assert_int_equal(u, 9);
	assert_int_equal(format_gguf_array_u32s(g, "numbers", &u, 1), -EINVAL);
	assert_int_equal(format_gguf_array_u32s(g, "numbers", &u, 2), -EINVAL);
	format_gguf_close(g);
	tiny_gguf_release(&t);
}

static void every_truncation_is_refused(void **state)
{
	struct tiny_model m = {.layers = 1};
	struct tiny_gguf t;
	tiny_model_build(&m, &t);
	size_t step = t.bytes / 397 + 1;
	for (size_t bytes = 0; bytes < t.bytes; bytes += bytes < 1024 ? 1 : step) {
		// A copy of the exact size, so that a sanitizer sees a read past it.
		uint8_t *copy = malloc(bytes ? bytes : 1);
		memcpy(copy, t.data, bytes);
		struct format_gguf *g = NULL;
		struct base_error e = {0};
		assert_int_equal(format_gguf_open_memory(copy, bytes, "cut.gguf", &g, &e), -EBADMSG);
		assert_non_null(strstr(e.message, "cut.gguf"));
		free(copy);
	}
	tiny_gguf_release(&t);
}

static void bad_headers_are_refused(void **state)
{
	struct tiny_gguf t;
	tiny_gguf_init(&t);
	two_tensors(&t);
	t.version = 1;
	tiny_gguf_finish(&t);
	refused(&t, -ENOTSUP, "GGUF version 1");
	t.data[4] = 0, t.data[7] = 3;
	refused(&t, -ENOTSUP, "little-endian only");
	t.data[4] = 3, t.data[7] = 0;
	t.data[0] = 'X';
	refused(&t, -EBADMSG, "not a GGUF file");
	t.data[0] = 'G';
	t.data[8 + 5] = 1;
	refused(&t, -EBADMSG, "tensors, which cannot be");
	t.data[8 + 5] = 0;
	t.data[16 + 7] = 0x80;
	refused(&t, -EBADMSG, "metadata keys, which cannot be");
	tiny_gguf_release(&t);
}

static void version_2_is_read(void **state)
{
	struct tiny_gguf t;
	tiny_gguf_init(&t);
	two_tensors(&t);
	t.version = 2;
	tiny_gguf_finish(&t);
	format_gguf_close(open_good(&t));
	tiny_gguf_release(&t);
}

static void duplicates_are_refused(void **state)
{
	struct tiny_gguf t;
	tiny_gguf_init(&t);
	tiny_gguf_key_u32(&t, "k", 1);
	tiny_gguf_key_u32(&t, "k", 2);
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "key k is there twice");
	tiny_gguf_release(&t);
	tiny_gguf_init(&t);
	two_tensors(&t);
	two_tensors(&t);
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "tensor a is there twice");
	tiny_gguf_release(&t);
}

// The table of a file with one tensor, written by hand: name, dimensions, type, offset.
static void one_tensor(struct tiny_gguf *t, const char *name, uint32_t dims_count, const uint64_t *dims, uint32_t type,
	uint64_t offset)
{
	static const uint8_t data[256];
	tiny_gguf_init(t);
	tiny_gguf_tensor(t, name, dims_count, dims, type, data, sizeof data);
	memcpy(t->data + t->bytes - 8, &offset, 8);
	tiny_gguf_finish(t);
}

static void bad_tensors_are_refused(void **state)
{
	static const struct {
		const char *text;
		uint64_t dims[4];
		uint64_t offset;
		uint32_t dims_count, type;
	} cases[] = {
		{"0 dimensions", {0}, 0, 0, 0},
		{"dimension of size 0", {32, 0}, 0, 2, 0},
		{"more elements than 64 bits", {1ull << 40, 1ull << 40}, 0, 2, 0},
		{"more elements than 64 bits", {2, 1ull << 31, 1ull << 31, 1ull << 31}, 0, 4, 0},
		{"ends beyond the file", {1ull << 30}, 0, 1, 0},
		{"ends beyond the file", {8}, UINT64_MAX - 31, 1, 0},
		{"not a multiple of its type's block of 32", {31, 1}, 0, 2, 2},
		{"not a multiple of 32", {8}, 8, 1, 0},
	};
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct tiny_gguf t;
		one_tensor(&t, "w", cases[i].dims_count, cases[i].dims, cases[i].type, cases[i].offset);
		refused(&t, -EBADMSG, cases[i].text);
		tiny_gguf_release(&t);
	}
	struct tiny_gguf t;
	one_tensor(
		&t, "a name that is longer than the sixty-three bytes that one may have...", 1, (uint64_t[]){8}, 0, 0);
	refused(&t, -EBADMSG, "has a name of");
	tiny_gguf_release(&t);
	one_tensor(&t, "bad\x1b[2J", 1, (uint64_t[]){8}, 0, 0);
	refused(&t, -EBADMSG, "unprintable");
	tiny_gguf_release(&t);
}

static void overlap_is_refused(void **state)
{
	struct tiny_gguf t;
	tiny_gguf_init(&t);
	two_tensors(&t);
	memset(t.data + t.bytes - 8, 0, 8); // b on top of a
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "overlap");
	tiny_gguf_release(&t);
}

static void unknown_tensor_types_are_left_to_the_program(void **state)
{
	struct tiny_gguf t;
	one_tensor(&t, "w", 1, (uint64_t[]){32}, 4711, 0);
	struct format_gguf *g = open_good(&t);
	assert_int_equal(format_gguf_find_tensor(g, "w")->type, 4711);
	assert_int_equal(format_gguf_find_tensor(g, "w")->size_bytes, 0);
	format_gguf_close(g);
	tiny_gguf_release(&t);
}

static void bad_values_are_refused(void **state)
{
	struct tiny_gguf t;
	uint64_t huge = 1ull << 60;
	tiny_gguf_init(&t);
	tiny_gguf_key_string(&t, "k", "abc");
	memcpy(t.data + 24 + 9 + 4, &huge, 8);
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "more than the file has");
	tiny_gguf_release(&t);
	uint32_t nested = 9, unknown = 99;
	tiny_gguf_init(&t);
	tiny_gguf_key_i32s(&t, "k", (const int32_t[]){1}, 1);
	memcpy(t.data + 24 + 9 + 4, &nested, 4);
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "nested arrays");
	memcpy(t.data + 24 + 9 + 4, &(uint32_t){5}, 4);
	memcpy(t.data + 24 + 9 + 8, &huge, 8);
	refused(&t, -EBADMSG, "claims an array of");
	memcpy(t.data + 24 + 9, &unknown, 4);
	refused(&t, -EBADMSG, "key k has the unknown type 99");
	tiny_gguf_release(&t);
	tiny_gguf_init(&t);
	tiny_gguf_key_bool(&t, "k", true);
	t.data[t.bytes - 1] = 2;
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "boolean of value 2");
	tiny_gguf_release(&t);
	tiny_gguf_init(&t);
	tiny_gguf_key_u32(&t, "general.alignment", 48);
	two_tensors(&t);
	tiny_gguf_finish(&t);
	refused(&t, -EBADMSG, "general.alignment is 48");
	tiny_gguf_release(&t);
}

// A header beyond the first read, in a real file; its digest, and a file that is not there.
static void files(void **state)
{
	char path[] = "/tmp/test_gguf.XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	close(fd);
	struct tiny_gguf t;
	tiny_gguf_init(&t);
	char *big = malloc(6 << 20);
	memset(big, 'x', 6 << 20);
	big[(6 << 20) - 1] = '\0';
	tiny_gguf_key_string(&t, "big", big);
	two_tensors(&t);
	tiny_gguf_finish(&t);
	assert_int_equal(tiny_gguf_save(&t, path), 0);
	struct format_gguf *g = NULL;
	struct base_error e = {0};
	assert_int_equal(format_gguf_open(path, &g, &e), 0);
	assert_int_equal(format_gguf_file_bytes(g), t.bytes);
	float floats[8];
	assert_int_equal(format_gguf_read(g, format_gguf_find_tensor(g, "b"), 0, floats, sizeof floats, &e), 0);
	assert_true(floats[7] == 8.0f);
	uint8_t digest[16];
	XXH128_canonical_t want;
	assert_int_equal(format_gguf_digest(g, digest, NULL, NULL, &e), 0);
	XXH128_canonicalFromHash(&want, XXH3_128bits(t.data, t.bytes));
	assert_memory_equal(digest, want.digest, 16);
	format_gguf_close(g);
	unlink(path);
	assert_int_equal(format_gguf_open(path, &g, &e), -ENOENT);
	assert_non_null(strstr(e.message, path));
	assert_int_equal(format_gguf_open("/tmp", &g, &e), -EISDIR);
	free(big);
	tiny_gguf_release(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_what_is_there),
		cmocka_unit_test(names_key_and_types_when_they_differ),
		cmocka_unit_test(every_truncation_is_refused),
		cmocka_unit_test(bad_headers_are_refused),
		cmocka_unit_test(version_2_is_read),
		cmocka_unit_test(duplicates_are_refused),
		cmocka_unit_test(bad_tensors_are_refused),
		cmocka_unit_test(overlap_is_refused),
		cmocka_unit_test(unknown_tensor_types_are_left_to_the_program),
		cmocka_unit_test(bad_values_are_refused),
		cmocka_unit_test(files),
	};
	return cmocka_run_group_tests_name("format", tests, NULL, NULL);
}
