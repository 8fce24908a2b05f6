/* SPDX-License-Identifier: Apache-2.0
 * STORE/sources.json: digests of model files that were read before. Only a cache: a file that is missing, damaged or
 * from elsewhere means that the model is read again. One thread, under the packer's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/error.h"

bool pack_sources_find(int store_fd, const char *path, const struct stat *st, uint8_t ret_digest[static 16]);
int pack_sources_put(
	int store_fd, const char *path, const struct stat *st, const uint8_t digest[static 16], struct base_error *e);

/* Writes NAME in the directory as a whole or not at all: temporary, sync, rename. */
int pack_write_file(int dirfd, const char *name, const char *text, struct base_error *e);
char *pack_hex(const uint8_t digest[static 16], char out[static 33]);
