// SPDX-License-Identifier: Apache-2.0
// Store files: what is written comes back, and nothing else is accepted.
#include "tests/unit/offload/fixture.h"

#include <errno.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/size.h"
#include "offload/hash.h"
#include "tests/unit/offload/refuse.h"

static void round_trip(void **state)
{
	struct fixture *f = *state;
	struct offload_store_identity id = fixture_identity(64 << 10);
	struct offload_store_writer *w;
	struct base_error e = {0};
	assert_int_equal(offload_store_writer_create(f->fd, "layer", &id, &w, &e), 0);
	struct offload_store_tensor a = {.name = "a", .type = 3, .step = 1, .rows = 40, .cols = 96};
	struct offload_store_tensor b = {.name = "b", .type = 0, .step = 2, .rows = 1, .cols = 25};
	uint32_t ia, ib;
	assert_int_equal(offload_store_writer_tensor(w, &a, &ia, &e), 0);
	assert_int_equal(offload_store_writer_tensor(w, &b, &ib, &e), 0);
	static uint8_t data[64 << 10];
	const uint32_t lengths[] = {30000, 30000, 30000, 65536, 100};
	uint64_t row = 0;
	for (uint32_t i = 0; i < 4; i++, row += 10) {
		fixture_fill(data, lengths[i], i);
		assert_int_equal(offload_store_writer_piece(w, ia, row, 10, data, lengths[i], &e), 0);
	}
	fixture_fill(data, 100, 4);
	assert_int_equal(offload_store_writer_piece(w, ib, 0, 1, data, 100, &e), 0);
	assert_int_equal(offload_store_writer_commit(w, &e), 0);
	offload_store_writer_destroy(w);
	assert_int_equal(faccessat(f->fd, "layer.tmp", F_OK, 0), -1);

	struct offload_store *s;
	assert_int_equal(offload_store_open(f->fd, "layer", &id, &s, &e), 0);
	uint32_t tensors, extents, pieces;
	const struct offload_store_tensor *t = offload_store_tensors(s, &tensors);
	const struct offload_store_extent *x = offload_store_extents(s, &extents);
	const struct offload_store_piece *p = offload_store_pieces(s, &pieces);
	assert_int_equal(tensors, 2);
	assert_string_equal(t[1].name, "b");
	assert_int_equal(t[0].cols, 96);
	assert_int_equal(pieces, 5);
	assert_int_equal(extents, 4); // two of 30,000; one; the whole one; the small one
	assert_int_equal(x[0].length_bytes, 61440);
	assert_int_equal(p[1].extent, 0);
	assert_int_equal(p[1].offset_bytes, 30016); // next multiple of 64
	assert_int_equal(offload_store_data_bytes(s), 61440 + 32768 + 65536 + 4096);
	int fd = offload_store_fd(s);
	uint8_t *got = aligned_alloc(4096, 64 << 10);
	for (uint32_t i = 0; i < pieces; i++) {
		const struct offload_store_extent *of = &x[p[i].extent];
		assert_int_equal(pread(fd, got, of->length_bytes, (off_t)of->offset_bytes), of->length_bytes);
		assert_true(offload_hash(got, of->length_bytes) == of->xxh3);
		assert_true(offload_hash(got + p[i].offset_bytes, p[i].length_bytes) == p[i].xxh3);
		fixture_fill(data, p[i].length_bytes, i);
		assert_memory_equal(got + p[i].offset_bytes, data, p[i].length_bytes);
	}
	free(got);
	offload_store_close(s);
}

// More than the writer's buffer, so that it is written in several rounds.
static void longer_than_the_buffer(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "big", 1 << 20, 13, 1000 << 10, 99);
	struct offload_store *s;
	struct base_error e;
	assert_int_equal(offload_store_open(f->fd, "big", NULL, &s, &e), 0);
	uint32_t n;
	const struct offload_store_extent *x = offload_store_extents(s, &n);
	assert_int_equal(n, 13);
	uint8_t *got = aligned_alloc(4096, 1 << 20), *want = malloc(1000 << 10);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(pread(offload_store_fd(s), got, x[i].length_bytes, (off_t)x[i].offset_bytes),
			x[i].length_bytes);
		fixture_fill(want, 1000 << 10, 99 + i);
		assert_memory_equal(got, want, 1000 << 10);
	}
	free(got);
	free(want);
	offload_store_close(s);
}

static void a_break_starts_another_extent(void **state)
{
	struct fixture *f = *state;
	struct offload_store_identity id = fixture_identity(16384);
	struct offload_store_writer *w;
	struct base_error e = {0};
	assert_int_equal(offload_store_writer_create(f->fd, "layer", &id, &w, &e), 0);
	struct offload_store_tensor t = {.name = "t", .rows = 4, .cols = 100};
	uint32_t index;
	assert_int_equal(offload_store_writer_tensor(w, &t, &index, &e), 0);
	offload_store_writer_break(w); // with nothing to end
	for (uint32_t i = 0; i < 4; i++) {
		assert_int_equal(offload_store_writer_piece(w, index, i, 1, "0123456789", 10, &e), 0);
		if (i % 2)
			offload_store_writer_break(w);
	}
	assert_int_equal(offload_store_writer_commit(w, &e), 0);
	offload_store_writer_destroy(w);
	struct offload_store *s;
	assert_int_equal(offload_store_open(f->fd, "layer", &id, &s, &e), 0);
	uint32_t n;
	const struct offload_store_extent *x = offload_store_extents(s, &n);
	assert_int_equal(n, 2);
	assert_int_equal(x[0].pieces, 2);
	assert_int_equal(x[1].first_piece, 2);
	offload_store_close(s);
}

static void identity_is_compared(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 8192, 2, 4096, 1);
	struct offload_store *s = NULL;
	struct base_error e = {0};
	struct offload_store_identity want[6];
	for (int i = 0; i < 6; i++)
		want[i] = fixture_identity(8192);
	want[0].source_digest[15] = 1;
	want[1].layer++;
	want[2].tp_rank++;
	want[3].tp_size++;
	want[4].layout++;
	want[5].extent_bytes *= 2;
	for (int i = 0; i < 6; i++) {
		assert_int_equal(offload_store_open(f->fd, "layer", &want[i], &s, &e), -ESTALE);
		assert_non_null(strstr(e.message, "/layer: "));
	}
	assert_int_equal(offload_store_open(f->fd, "none", NULL, &s, &e), -ENOENT);
	assert_non_null(strstr(e.message, "none"));
	assert_null(s);
	offload_store_close(NULL);
}

static void names_that_exist_or_are_in_work_are_refused(void **state)
{
	struct fixture *f = *state;
	struct offload_store_identity id = fixture_identity(4096);
	struct offload_store_writer *w = NULL, *second = NULL;
	struct base_error e = {0};
	fixture_store(f->fd, "there", 4096, 1, 4096, 1);
	assert_int_equal(offload_store_writer_create(f->fd, "there", &id, &w, &e), -EEXIST);
	assert_int_equal(offload_store_writer_create(f->fd, "../x", &id, &w, &e), -EINVAL);
	assert_int_equal(offload_store_writer_create(f->fd, "", &id, &w, &e), -EINVAL);
	assert_int_equal(offload_store_writer_create(f->fd, "new", &id, &w, &e), 0);
	assert_int_equal(offload_store_writer_create(f->fd, "new", &id, &second, &e), -EBUSY);
	assert_non_null(strstr(e.message, "another process"));
	assert_int_equal(faccessat(f->fd, "new.tmp", F_OK, 0), 0);
	offload_store_writer_destroy(w);
	assert_int_equal(faccessat(f->fd, "new.tmp", F_OK, 0), -1);
}

static void a_left_over_tmp_does_not_matter(void **state)
{
	struct fixture *f = *state;
	int fd = openat(f->fd, "layer.tmp", O_CREAT | O_WRONLY, 0644);
	static char junk[100000];
	memset(junk, 'j', sizeof junk);
	assert_int_equal(write(fd, junk, sizeof junk), sizeof junk);
	close(fd);
	fixture_store(f->fd, "layer", 8192, 3, 5000, 1);
	struct offload_store *s;
	struct base_error e;
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), 0);
	offload_store_close(s);
}

static void writer_refuses_misuse(void **state)
{
	struct fixture *f = *state;
	struct offload_store_identity id = fixture_identity(8192);
	struct offload_store_writer *w;
	struct base_error e = {0};
	assert_int_equal(offload_store_writer_create(f->fd, "w", &id, &w, &e), 0);
	struct offload_store_tensor t = {.name = "t", .rows = 4, .cols = 8};
	uint32_t i;
	assert_int_equal(offload_store_writer_commit(w, &e), -EINVAL);
	assert_int_equal(offload_store_writer_tensor(w, &t, &i, &e), 0);
	assert_int_equal(offload_store_writer_tensor(w, &t, &i, &e), -EEXIST);
	struct offload_store_tensor bad = {.rows = 1, .cols = 1};
	assert_int_equal(offload_store_writer_tensor(w, &bad, &i, &e), -EINVAL);
	memset(bad.name, 'x', sizeof bad.name);
	assert_int_equal(offload_store_writer_tensor(w, &bad, &i, &e), -EINVAL);
	static uint8_t data[8193];
	assert_int_equal(offload_store_writer_piece(w, 0, 0, 1, data, 8193, &e), -EMSGSIZE);
	assert_int_equal(offload_store_writer_piece(w, 1, 0, 1, data, 10, &e), -EINVAL);
	assert_int_equal(offload_store_writer_piece(w, 0, 1, 1, data, 10, &e), -EINVAL);
	assert_int_equal(offload_store_writer_piece(w, 0, 0, 5, data, 10, &e), -EINVAL);
	assert_int_equal(offload_store_writer_piece(w, 0, 0, 3, data, 10, &e), 0);
	assert_int_equal(offload_store_writer_commit(w, &e), -EINVAL); // row 3 is missing
	assert_int_equal(offload_store_writer_piece(w, 0, 3, 1, data, 10, &e), 0);
	assert_int_equal(offload_store_writer_commit(w, &e), 0);
	assert_int_equal(offload_store_writer_commit(w, &e), -EINVAL);
	offload_store_writer_destroy(w);
	offload_store_writer_destroy(NULL);
}

// Every byte of header and tables counts; a byte of data is for the checksum of its extent.
static void every_flipped_byte_is_found(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 8192, 5, 3000, 1);
	int fd = openat(f->fd, "layer", O_RDWR);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	struct offload_store *s = NULL;
	struct base_error e;
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), 0);
	off_t data_end = 4096 + (off_t)offload_store_data_bytes(s);
	offload_store_close(s);
	for (off_t at = 0; at < st.st_size; at += at < 200 || (at >= data_end && at < data_end + 400) ? 1 : 509) {
		if (at >= 4096 && at < data_end)
			continue;
		uint8_t byte, other;
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		other = byte ^ 0x10;
		assert_int_equal(pwrite(fd, &other, 1, at), 1);
		assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), -EBADMSG);
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), 0);
	offload_store_close(s);
	close(fd);
}

static void truncated_files_are_refused(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 8192, 5, 3000, 1);
	int fd = openat(f->fd, "layer", O_RDWR);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	struct offload_store *s = NULL;
	struct base_error e = {0};
	assert_int_equal(ftruncate(fd, st.st_size + 4096), 0);
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), -EBADMSG);
	assert_non_null(strstr(e.message, "too long"));
	for (off_t size = st.st_size - 1; size >= 0; size = size > 4097 ? size - 2048 : size - 1500) {
		assert_int_equal(ftruncate(fd, size), 0);
		assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), -EBADMSG);
		assert_non_null(strstr(e.message, "layer"));
	}
	close(fd);
	assert_int_equal(mkdirat(f->fd, "folder", 0755), 0);
	assert_true(offload_store_open(f->fd, "folder", NULL, &s, &e) < 0);
	unlinkat(f->fd, "folder", AT_REMOVEDIR);
	assert_int_equal(mkfifoat(f->fd, "pipe", 0600), 0);
	assert_int_equal(offload_store_open(f->fd, "pipe", NULL, &s, &e), -EBADMSG);
	assert_non_null(strstr(e.message, "regular file"));
}

static const char *write_without_locks(void *argument)
{
	const struct fixture *f = argument;
	struct offload_store_identity id = fixture_identity(64 << 10);
	struct offload_store_writer *w = NULL;
	struct base_error e = {0};
	int r = offload_store_writer_create(f->fd, "locked", &id, &w, &e);
	offload_store_writer_destroy(w);
	return r != -ENOLCK                  ? "a lock that cannot be had is taken for one that was"
	       : strstr(e.message, "locked") ? NULL
					     : "no name";
}

static void without_locks_nothing_is_written(void **state)
{
	refuse_run((struct refuse){.flock = true}, write_without_locks, *state);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(round_trip, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(longer_than_the_buffer, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_break_starts_another_extent, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(identity_is_compared, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			names_that_exist_or_are_in_work_are_refused, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_left_over_tmp_does_not_matter, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(without_locks_nothing_is_written, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(writer_refuses_misuse, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(every_flipped_byte_is_found, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(truncated_files_are_refused, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
