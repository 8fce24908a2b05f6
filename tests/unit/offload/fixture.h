/* SPDX-License-Identifier: Apache-2.0
 * A directory for the test's files and stores full of reproducible bytes. For tests of offload only.
 */
#pragma once

#include "tests/lib/testing.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "offload/store.h"

struct fixture {
	char path[64];
	int fd; // of the directory
};

static inline int fixture_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof *f);
	// The build folder lies on a real drive more often than /tmp does.
	snprintf(f->path, sizeof f->path, "offload-test-XXXXXX");
	assert_non_null(mkdtemp(f->path));
	f->fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(f->fd >= 0);
	*state = f;
	return 0;
}

static inline int fixture_teardown(void **state)
{
	struct fixture *f = *state;
	DIR *d = fdopendir(f->fd);
	struct dirent *x;
	while ((x = readdir(d)))
		unlinkat(f->fd, x->d_name, 0);
	rmdir(f->path);
	closedir(d);
	free(f);
	return 0;
}

static inline uint64_t fixture_random(uint64_t *state) // splitmix64
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static inline void fixture_fill(void *out, size_t bytes, uint64_t seed)
{
	uint8_t *p = out;
	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t v = fixture_random(&seed);
		memcpy(p + i, &v, bytes - i < 8 ? bytes - i : 8);
	}
}

static inline struct offload_store_identity fixture_identity(uint32_t extent_bytes)
{
	return (struct offload_store_identity){
		.source_digest = {1, 2, 3},
		.layer = 7,
		.tp_rank = 0,
		.tp_size = 1,
		.layout = 1,
		.extent_bytes = extent_bytes,
	};
}

/* One tensor; piece i has the bytes of fixture_fill with seed + i. */
static inline void fixture_store(
	int dirfd, const char *name, uint32_t extent_bytes, uint32_t pieces, uint32_t piece_bytes, uint64_t seed)
{
	struct offload_store_identity id = fixture_identity(extent_bytes);
	struct offload_store_writer *w = NULL;
	struct base_error e = {0};
	assert_int_equal(offload_store_writer_create(dirfd, name, &id, &w, &e), 0);
	struct offload_store_tensor t = {
		.name = "blk.7.ffn_up.weight", .type = 2, .step = 5, .rows = pieces, .cols = 64};
	uint32_t index;
	assert_int_equal(offload_store_writer_tensor(w, &t, &index, &e), 0);
	uint8_t *data = malloc(piece_bytes);
	for (uint32_t i = 0; i < pieces; i++) {
		fixture_fill(data, piece_bytes, seed + i);
		assert_int_equal(offload_store_writer_piece(w, index, i, 1, data, piece_bytes, &e), 0);
	}
	free(data);
	assert_int_equal(offload_store_writer_commit(w, &e), 0);
	offload_store_writer_destroy(w);
}
