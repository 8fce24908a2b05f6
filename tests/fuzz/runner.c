// SPDX-License-Identifier: Apache-2.0
// Feeds files to a fuzz target: each argument is a file or a folder of files. Every file also goes in cut at a few
// places and with single bytes changed, so that a small corpus reaches more than its happy paths. The bytes to change
// are chosen by a fixed sequence: a failure repeats.
#include <dirent.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"

#define MAX_BYTES (4u << 20)
#define CUTS 16u
#define CHANGES 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 33;
}

// An exact heap copy, so that a sanitizer sees every read past the end.
static int feed(const uint8_t *data, size_t bytes)
{
	_cleanup_free_ uint8_t *copy = malloc(bytes ? bytes : 1);
	if (!copy)
		return -1;
	if (bytes)
		memcpy(copy, data, bytes);
	LLVMFuzzerTestOneInput(copy, bytes);
	return 0;
}

static int run_file(const char *path)
{
	_cleanup_fclose_ FILE *f = fopen(path, "rb");
	_cleanup_free_ uint8_t *data = malloc(MAX_BYTES);
	if (!f || !data) {
		perror(path);
		return -1;
	}
	size_t bytes = fread(data, 1, MAX_BYTES, f);
	if (feed(data, bytes) < 0)
		return -1;
	for (size_t i = 0; i < CUTS; i++)
		if (feed(data, bytes * i / CUTS) < 0)
			return -1;
	uint64_t state = bytes;
	for (size_t i = 0; bytes && i < CHANGES; i++) {
		size_t at = next_random(&state) % bytes;
		uint8_t before = data[at];
		data[at] = i % 4 == 0 ? 0xff : (uint8_t)next_random(&state);
		if (feed(data, bytes) < 0)
			return -1;
		data[at] = before;
	}
	return 0;
}

static int run_folder(const char *path, size_t *files)
{
	DIR *d = opendir(path);
	if (!d) {
		perror(path);
		return -1;
	}
	int r = 0;
	for (struct dirent *entry; r == 0 && (entry = readdir(d));) {
		if (entry->d_name[0] == '.')
			continue;
		char file[4096];
		snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
		r = run_file(file);
		(*files)++;
	}
	closedir(d);
	return r;
}

int main(int argc, char **argv)
{
	size_t files = 0;
	for (int i = 1; i < argc; i++) {
		struct stat st;
		int r = stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode) ? run_folder(argv[i], &files)
								       : run_file(argv[i]);
		files += !S_ISDIR(st.st_mode);
		if (r < 0)
			return EXIT_FAILURE;
	}
	if (!files) {
		fprintf(stderr, "no corpus\n");
		return EXIT_FAILURE;
	}
	printf("%zu files\n", files);
	return EXIT_SUCCESS;
}
