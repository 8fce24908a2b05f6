// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set, with OFFLOAD_HASH_NAME naming the function and the compiler's flags choosing
// the vectors: xxHash's header picks its widest code from the flags alone.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <stddef.h>
#include <stdint.h>

uint64_t OFFLOAD_HASH_NAME(const void *data, size_t bytes);

uint64_t OFFLOAD_HASH_NAME(const void *data, size_t bytes)
{
	return XXH3_64bits(data, bytes);
}
