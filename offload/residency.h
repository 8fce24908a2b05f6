/* SPDX-License-Identifier: Apache-2.0
 * Which extents stay hot: an even fraction of every group (layer), spread evenly inside it.
 *
 * The access to a dense model is a cycle, where LRU hits nothing and any fixed set hits its share. Spread evenly,
 * the drive never idles while hot steps compute. Pure function.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct offload_residency_extent {
	uint32_t bytes;
	uint32_t group; // layer; extents of a group are contiguous
	bool pinned; // must be hot (norms and other small tensors live in it)
};

/* Marks extents hot with at most budget_bytes in all; returns -ENOSPC if the pinned ones alone exceed it. Of those that
 * are not pinned, in every prefix of the cycle, and so in every group, the hot bytes differ from the whole's share by
 * less than the longest one: the groups need no look of their own. */
int offload_residency_choose(const struct offload_residency_extent *extents, uint32_t count, uint64_t budget_bytes,
	bool *ret_hot /* (count) */, uint64_t *ret_hot_bytes);
