/* SPDX-License-Identifier: Apache-2.0
 * Memory in huge pages, taken once and counted.
 *
 * hugetlb pages if the system has them free, else transparent huge pages, else ordinary ones; the caller tells
 * the operator (a loud warning) when it got ordinary ones. Any thread; touch of one memory from several at a time.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum offload_pages { OFFLOAD_PAGES_HUGETLB, OFFLOAD_PAGES_TRANSPARENT, OFFLOAD_PAGES_SMALL };

struct offload_memory {
	void *data; // aligned to 2 MiB
	size_t bytes; // rounded up to 2 MiB
	enum offload_pages pages;
};

/* All pages are touched before the call returns, so nothing can fail later. */
int offload_memory_map(size_t bytes, struct offload_memory *ret_memory, struct base_error *e);

/* The same in parts, for one who fills the memory while the rest is still being touched (the kernel zeroes pages at
 * about the speed of a few drives): reserve takes the address space, touch the pages of a range, look finds out what
 * pages it became. A touch of hugetlb pages may be refused (-ENOMEM: a cgroup's or node's share): then reserve
 * without. */
int offload_memory_reserve(size_t bytes, bool hugetlb, struct offload_memory *ret_memory, struct base_error *e);
int offload_memory_touch(const struct offload_memory *m, size_t from, size_t bytes, struct base_error *e);
void offload_memory_look(struct offload_memory *m);

void offload_memory_unmap(struct offload_memory *m); // of a zeroed struct: nothing
const char *offload_pages_name(enum offload_pages pages);
