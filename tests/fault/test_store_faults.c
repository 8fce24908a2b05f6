// SPDX-License-Identifier: Apache-2.0
// Store files that lost a writer, a drive's space, or a part of themselves.
#include "tests/unit/offload/fixture.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "base/size.h"
#include "offload/hash.h"

#define EXTENT (256u << 10)
#define PIECES 40u
#define PIECE_BYTES (250u << 10)

static size_t read_most; // that a pread says it has read; 0: all

// In the place of the C library's, for the store files' reader.
ssize_t pread(int fd, void *data, size_t bytes, off_t offset)
{
	ssize_t n = syscall(SYS_pread64, fd, data, bytes, offset);
	return read_most && n > (ssize_t)read_most ? (ssize_t)read_most : n;
}

// All bytes of a store file against what fixture_store wrote.
static void check_whole(struct fixture *f, const char *name)
{
	struct offload_store_identity want = fixture_identity(EXTENT);
	struct offload_store *s = NULL;
	struct base_error e = {0};
	if (offload_store_open(f->fd, name, &want, &s, &e) < 0)
		fail_msg("%s", e.message);
	uint32_t n;
	const struct offload_store_extent *x = offload_store_extents(s, &n);
	assert_int_equal(n, PIECES);
	uint8_t *got = aligned_alloc(4096, EXTENT);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(pread(offload_store_fd(s), got, x[i].length_bytes, (off_t)x[i].offset_bytes),
			x[i].length_bytes);
		assert_true(offload_hash(got, x[i].length_bytes) == x[i].xxh3);
	}
	free(got);
	offload_store_close(s);
}

static void killed_writers_leave_nothing_that_opens(void **state)
{
	struct fixture *f = *state;
	uint64_t seed = 11;
	int whole = 0, absent = 0;
	for (int round = 0; round < 24; round++) {
		pid_t child = fork();
		assert_true(child >= 0);
		uint64_t most = fixture_random(&seed) % (PIECES * PIECE_BYTES);
		if (child == 0) {
			struct rlimit limit = {most, most}, none = {0};
			setrlimit(RLIMIT_CORE, &none);
			signal(SIGXFSZ, SIG_DFL);
			if (round % 4 == 0) // killed at a byte, and not at a time
				setrlimit(RLIMIT_FSIZE, &limit);
			fixture_store(f->fd, "layer", EXTENT, PIECES, PIECE_BYTES, 5);
			_exit(0);
		}
		long ns = (long)(fixture_random(&seed) % 40000000);
		nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
		kill(child, SIGKILL);
		assert_int_equal(waitpid(child, NULL, 0), child);
		if (faccessat(f->fd, "layer", F_OK, 0) == 0) {
			check_whole(f, "layer");
			unlinkat(f->fd, "layer", 0);
			whole++;
		} else {
			struct offload_store *s = NULL;
			int r = offload_store_open(f->fd, "layer.tmp", NULL, &s, NULL);
			if (r == 0) // complete, killed just before the rename
				offload_store_close(s);
			else
				assert_true(r == -EBADMSG || r == -ENOENT);
			absent++;
		}
	}
	print_message("%d rounds ended whole, %d without the file\n", whole, absent);
	assert_true(absent > 0);
	fixture_store(f->fd, "layer", EXTENT, PIECES, PIECE_BYTES, 5); // what is left over does not matter
	check_whole(f, "layer");
	assert_int_equal(faccessat(f->fd, "layer.tmp", F_OK, 0), -1);
}

static void zeroed_and_swapped_pages_are_found(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 8192, 300, 3000, 1);
	int fd = openat(f->fd, "layer", O_RDWR);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	struct offload_store *s = NULL;
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, NULL), 0);
	off_t tables = 4096 + (off_t)offload_store_data_bytes(s);
	offload_store_close(s);
	assert_true(st.st_size - tables > 4096);
	static uint8_t a[4096], b[4096], zero[4096];
	for (off_t at = 0; at < st.st_size; at = at == 0 ? tables : at + 4096) {
		off_t other = at == 0 ? tables : at + 4096 < st.st_size ? at + 4096 : tables;
		assert_int_equal(pread(fd, a, 4096, at), 4096);
		assert_int_equal(pread(fd, b, 4096, other), 4096);
		assert_int_equal(pwrite(fd, zero, 4096, at), 4096);
		assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, NULL), -EBADMSG);
		assert_int_equal(pwrite(fd, b, 4096, at), 4096);
		assert_int_equal(pwrite(fd, a, 4096, other), 4096);
		assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, NULL), -EBADMSG);
		assert_int_equal(pwrite(fd, a, 4096, at), 4096);
		assert_int_equal(pwrite(fd, b, 4096, other), 4096);
	}
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, NULL), 0);
	offload_store_close(s);
	close(fd);
}

// Writes until it fails; 0 if the failure is the right one and the directory is clean afterwards.
static int write_until(int dirfd, int want)
{
	struct offload_store_identity id = fixture_identity(EXTENT);
	struct offload_store_writer *w;
	struct base_error e = {0};
	if (offload_store_writer_create(dirfd, "layer", &id, &w, &e) < 0)
		return 1;
	struct offload_store_tensor t = {.name = "t", .rows = 200, .cols = 1};
	uint32_t index;
	offload_store_writer_tensor(w, &t, &index, &e);
	static uint8_t data[EXTENT];
	int r = 0;
	for (uint32_t i = 0; r == 0 && i < t.rows; i++)
		r = offload_store_writer_piece(w, index, i, 1, data, EXTENT, &e);
	const char *place = strstr(e.message, "layer.tmp: cannot write ");
	unsigned long long bytes = 0, at = 0;
	if (r != want || !place || sscanf(place, "layer.tmp: cannot write %llu bytes at %llu: ", &bytes, &at) != 2 ||
		!bytes || !at || !strstr(place, strerrordesc_np(-want)))
		return 2;
	if (offload_store_writer_piece(w, index, 0, 1, data, 10, &e) != want ||
		offload_store_writer_commit(w, &e) != want)
		return 3;
	offload_store_writer_destroy(w);
	if (faccessat(dirfd, "layer.tmp", F_OK, 0) == 0 || faccessat(dirfd, "layer", F_OK, 0) == 0)
		return 4;
	fixture_store(dirfd, "small", 8192, 4, 3000, 1); // there is room for this
	struct offload_store *s;
	if (offload_store_open(dirfd, "small", NULL, &s, &e) < 0)
		return 5;
	offload_store_close(s);
	return 0;
}

static void wait_for(pid_t child)
{
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static void a_full_drive_is_named(void **state)
{
	struct fixture *f = *state;
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) { // a drive of 8 MiB in a mount namespace of its own
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
			mount("tmpfs", f->path, "tmpfs", 0, "size=8m") < 0) {
			fprintf(stderr, "skipped: mounting needs privileges\n");
			_exit(77);
		}
		int fd = open(f->path, O_RDONLY | O_DIRECTORY);
		_exit(write_until(fd, -ENOSPC));
	}
	wait_for(child);
}

static void a_file_size_limit_is_named(void **state)
{
	struct fixture *f = *state;
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		signal(SIGXFSZ, SIG_IGN);
		struct rlimit limit = {8 << 20, 8 << 20};
		setrlimit(RLIMIT_FSIZE, &limit);
		_exit(write_until(f->fd, -EFBIG));
	}
	wait_for(child);
}

// Packing a large model must not push everything else out of memory, nor may opening it.
static void the_page_cache_stays_empty(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", EXTENT, PIECES, PIECE_BYTES, 5);
	struct offload_store *s;
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, NULL), 0);
	bool direct = offload_store_direct(s);
	offload_store_close(s);
	int fd = openat(f->fd, "layer", O_RDONLY);
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	size_t pages = (size_t)st.st_size / 4096, cached = 0;
	void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	unsigned char *in = calloc(pages, 1);
	assert_int_equal(mincore(map, (size_t)st.st_size, in), 0);
	for (size_t i = 0; i < pages; i++)
		cached += in[i] & 1;
	free(in);
	munmap(map, (size_t)st.st_size);
	close(fd);
	if (!direct || cached == pages) {
		print_message("skipped: a file system in memory\n");
		skip();
	}
	assert_true(cached <= 16);
}

// Signals and drives make short reads, which need not end at a page. The file is read to its end, and still past the
// page cache.
static void short_reads_go_on(void **state)
{
	struct fixture *f = *state;
	fixture_store(f->fd, "layer", 4096, 300, 3000, 5); // tables of many pages
	struct offload_store *s;
	struct base_error e = {0};
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), 0);
	bool direct = offload_store_direct(s);
	offload_store_close(s);
	read_most = 4096 + 1000;
	int status = offload_store_open(f->fd, "layer", NULL, &s, &e);
	read_most = 0;
	if (status)
		fail_msg("%s", e.message);
	assert_int_equal(offload_store_direct(s), direct);
	uint32_t extents;
	offload_store_extents(s, &extents);
	assert_int_equal(extents, 300);
	offload_store_close(s);
	/* A read that brings nothing more than is there ends, too. */
	read_most = 1000;
	assert_int_equal(offload_store_open(f->fd, "layer", NULL, &s, &e), direct ? -ENODATA : 0);
	read_most = 0;
	if (!direct)
		offload_store_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(short_reads_go_on, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(
			killed_writers_leave_nothing_that_opens, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(zeroed_and_swapped_pages_are_found, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_full_drive_is_named, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(a_file_size_limit_is_named, fixture_setup, fixture_teardown),
		cmocka_unit_test_setup_teardown(the_page_cache_stays_empty, fixture_setup, fixture_teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
