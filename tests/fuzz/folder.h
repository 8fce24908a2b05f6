/* SPDX-License-Identifier: Apache-2.0
 * A directory of the process's own, for targets that read files by name; it goes when the process ends. One thread.
 */
#pragma once

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define FOLDER_FILES 4

static char folder_path[32], folder_file[FOLDER_FILES][64];

static void folder_remove(void)
{
	for (int i = 0; i < FOLDER_FILES; i++)
		unlink(folder_file[i]);
	rmdir(folder_path);
}

/* The path of file number i, which is called `name` from the first call on. */
static const char *folder_name(int i, const char *name)
{
	if (!folder_path[0]) {
		snprintf(folder_path, sizeof folder_path, "/tmp/thaw-fuzz-XXXXXX");
		if (!mkdtemp(folder_path) || atexit(folder_remove))
			abort();
	}
	snprintf(folder_file[i], sizeof folder_file[i], "%s/%s", folder_path, name);
	return folder_file[i];
}

/* Writes it. Returns its path. */
static const char *folder_put(int i, const char *name, const void *data, size_t bytes)
{
	const char *path = folder_name(i, name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes || close(fd))
		abort();
	return path;
}
