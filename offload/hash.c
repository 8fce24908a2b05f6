// SPDX-License-Identifier: Apache-2.0
#include "offload/hash.h"

uint64_t offload_hash_baseline(const void *data, size_t bytes);
uint64_t offload_hash_avx2(const void *data, size_t bytes);
uint64_t offload_hash_avx512(const void *data, size_t bytes);

uint64_t offload_hash(const void *data, size_t bytes)
{
#ifdef __x86_64__
	// Looked up per call: it reads one word that the C library filled before main, nothing next to an extent.
	if (__builtin_cpu_supports("avx512f"))
		return offload_hash_avx512(data, bytes);
	if (__builtin_cpu_supports("avx2"))
		return offload_hash_avx2(data, bytes);
#endif
	return offload_hash_baseline(data, bytes);
}
