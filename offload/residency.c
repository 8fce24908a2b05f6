// SPDX-License-Identifier: Apache-2.0
#include "offload/residency.h"

#include <errno.h>

#include "base/size.h"

int offload_residency_choose(const struct offload_residency_extent *extents, uint32_t count, uint64_t budget_bytes,
	bool *ret_hot, uint64_t *ret_hot_bytes)
{
	uint64_t pinned = 0, rest = 0; // count * bytes fits 64 bits
	for (uint32_t i = 0; i < count; i++)
		*(extents[i].pinned ? &pinned : &rest) += extents[i].bytes;
	if (pinned > budget_bytes)
		return -ENOSPC;

	// Error diffusion: an extent is hot when the hot bytes so far, with it, stay within the fraction's share of the
	// bytes so far. So the hot share lags the exact line by less than one extent and never passes it.
	uint64_t share = budget_bytes - pinned;
	if (share > rest)
		share = rest;
	uint64_t hot = 0, seen = 0;
	for (uint32_t i = 0; i < count; i++) {
		if (extents[i].pinned) {
			ret_hot[i] = true;
			continue;
		}
		seen += extents[i].bytes;
		// hot / seen <= share / rest, in 128 bits
		ret_hot[i] = (unsigned __int128)(hot + extents[i].bytes) * rest <= (unsigned __int128)seen * share;
		if (ret_hot[i])
			hot += extents[i].bytes;
	}
	*ret_hot_bytes = pinned + hot;
	return 0;
}
