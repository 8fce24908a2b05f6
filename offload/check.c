// SPDX-License-Identifier: Apache-2.0
#include "offload/check.h"

#include <errno.h>
#include <string.h>

#include "offload/hash.h"

#define TRIES 2u

int offload_check_read(const struct offload_read *read, const void *data, uint32_t hashed, uint64_t xxh3,
	uint8_t *tries, bool *ret_again)
{
	int r = 0;
	if (read->result < 0)
		r = read->result;
	else if ((uint32_t)read->result != read->length_bytes)
		r = -ENODATA;
	else if (hashed > 0 && offload_hash(data, hashed) != xxh3)
		r = -EBADMSG;
	*ret_again = r < 0 && ++*tries < TRIES;
	return r;
}

int offload_check_error(const char *path, uint64_t offset_bytes, uint32_t length_bytes, int why, struct base_error *e)
{
	unsigned long long at = offset_bytes;
	if (why == -EBADMSG)
		return base_error_set(e, -EBADMSG,
			"%s: checksum of %u bytes at %llu does not match, read twice: the store file is damaged; "
			"remove the file to have it packed again",
			path, length_bytes, at);
	if (why == -ETIMEDOUT)
		return base_error_set(e, -ETIMEDOUT,
			"%s: no answer to a read of %u bytes at %llu for %llu s: the drive hangs", path, length_bytes,
			at, OFFLOAD_CHECK_PATIENCE_NS / 1000000000ull);
	return base_error_set(e, -EIO, "%s: cannot read %u bytes at %llu, tried twice: %s", path, length_bytes, at,
		why == -ENODATA ? "the file ends there" : strerrordesc_np(-why));
}
