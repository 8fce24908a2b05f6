/* SPDX-License-Identifier: Apache-2.0
 * What becomes of a read that came back: the one rule for all who read a store (stream, loader, embedding rows).
 * A read that failed, came back short or does not match its checksum is made once more, then given up. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "offload/engine.h"

/* How long a reader waits for any of its reads before it calls the drive lost: longer than the kernel's own tries. */
#define OFFLOAD_CHECK_PATIENCE_NS (60ull * 1000000000ull)

/* 0: all bytes are there and `hashed` bytes at data match xxh3 (0 hashed: not checked). Else -EBADMSG, -ENODATA (short)
 * or the read's own error; *ret_again says whether to submit it once more, for which *tries counts (0 before the
 * first). */
int offload_check_read(const struct offload_read *read, const void *data, uint32_t hashed, uint64_t xxh3,
	uint8_t *tries, bool *ret_again);

/* The text of a read that was given up: -EBADMSG (not what was written), -ETIMEDOUT (no answer) or -EIO. */
int offload_check_error(const char *path, uint64_t offset_bytes, uint32_t length_bytes, int why, struct base_error *e);
