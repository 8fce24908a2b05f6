/* SPDX-License-Identifier: Apache-2.0
 * Small files, whole or not at all. Any thread.
 */
#pragma once

#include <stddef.h>

/* All of it, however the kernel cuts it. 0 or -errno. */
int base_file_write(int fd, const void *data, size_t bytes);
/* Writes NAME in the directory: NAME.tmp, synced, renamed, and the directory synced. What was there stays on failure.
 * Two at a time must not write the same name. */
int base_file_replace(int dirfd, const char *name, const void *data, size_t bytes);
