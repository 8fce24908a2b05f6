/* SPDX-License-Identifier: Apache-2.0
 * STORE/<digest>/spares: names of files that were packed as spare ones and that nothing else was packed for since, one
 * in each line. Only these are ever deleted to make room. A spare file's name is put there before the file is written,
 * and taken out before a plan uses the file: after a kill a name may have no file, but what a rank has open is not
 * listed. One thread, under the packer's lock.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define PACK_MAX_SPARES 4096u // in a model; more are not remembered as spare, and stay

struct pack_dropped {
	uint32_t files;
	uint64_t bytes;
};

/* Which of the names are listed. */
void pack_spares_look(int dir_fd, char (*names)[64], uint32_t count, bool *ret_listed);
/* Lists the names, or takes them out. */
int pack_spares_add(int dir_fd, char (*names)[64], uint32_t count, struct base_error *e);
int pack_spares_remove(int dir_fd, char (*names)[64], uint32_t count, struct base_error *e);

/* Deletes spare files of any model, of the one with this digest (as hex digits) last and none that is named, until so
 * many bytes are free that were not; none if all of them were not enough. */
int pack_spares_make_room(int store_fd, const char *digest, char (*keep)[64], uint32_t keep_count, uint64_t bytes,
	struct pack_dropped *ret_dropped, struct base_error *e);
/* All of one model. */
int pack_spares_drop(int dir_fd, struct pack_dropped *ret_dropped, struct base_error *e);
