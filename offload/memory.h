/* SPDX-License-Identifier: Apache-2.0
 * Memory in huge pages, taken once and counted.
 *
 * hugetlb pages if the system has them free, else transparent huge pages, else ordinary ones; the caller tells
 * the operator (a loud warning) when it got ordinary ones. All pages are touched before the call returns, so
 * nothing can fail later. Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum offload_pages { OFFLOAD_PAGES_HUGETLB, OFFLOAD_PAGES_TRANSPARENT, OFFLOAD_PAGES_SMALL };

struct offload_memory {
	void *data; // aligned to 2 MiB
	size_t bytes; // rounded up to 2 MiB
	enum offload_pages pages;
};

int offload_memory_map(size_t bytes, struct offload_memory *ret_memory, struct base_error *e);
void offload_memory_unmap(struct offload_memory *m); // of a zeroed struct: nothing
const char *offload_pages_name(enum offload_pages pages);
