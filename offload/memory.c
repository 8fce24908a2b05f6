// SPDX-License-Identifier: Apache-2.0
#include "offload/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/mman.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/units.h"

const char *offload_pages_name(enum offload_pages pages)
{
	switch (pages) {
	case OFFLOAD_PAGES_HUGETLB:
		return "hugetlb";
	case OFFLOAD_PAGES_TRANSPARENT:
		return "transparent";
	case OFFLOAD_PAGES_SMALL:
		return "small";
	}
	return "unknown";
}

// A page that cannot be had is an error number here, where a plain touch would be a SIGBUS (hugetlb beyond a cgroup's
// or node's share). Kernels older than 5.14 do not know it: there ordinary memory is touched by hand.
static int populate(void *data, size_t bytes, bool hugetlb)
{
	if (madvise(data, bytes, MADV_POPULATE_WRITE) == 0)
		return 0;
	if (errno != EINVAL || hugetlb)
		return -errno;
	for (size_t at = 0; at < bytes; at += BASE_PAGE_BYTES)
		((volatile char *)data)[at] = 0;
	return 0;
}

static void *map_hugetlb(size_t bytes)
{
	void *data = mmap(
		NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1, 0);
	if (data == MAP_FAILED)
		return NULL;
	if (populate(data, bytes, true) < 0) {
		munmap(data, bytes);
		return NULL;
	}
	return data;
}

// bytes at a multiple of 2 MiB: maps one huge page more and gives the ends back.
static int map_aligned(size_t bytes, void **ret_data)
{
	uint64_t room;
	if (base_size_add(bytes, BASE_HUGE_PAGE_BYTES, &room) < 0 || room > SIZE_MAX)
		return -ENOMEM;
	char *at = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return -errno;
	char *data = (char *)base_size_align((uintptr_t)at, BASE_HUGE_PAGE_BYTES);
	if (data > at)
		munmap(at, (size_t)(data - at));
	size_t after = (size_t)(at + room - (data + bytes));
	if (after > 0)
		munmap(data + bytes, after);
	*ret_data = data;
	return 0;
}

// What the kernel really gave, as its own books say: madvise accepts the wish also where huge pages are switched off
// or memory is too fragmented. The kernel may have merged the range with a neighbour, so a share decides.
static bool mostly_huge(const void *data, size_t bytes)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/smaps", "re");
	if (!f)
		return false;
	uintptr_t first = (uintptr_t)data, last = first + bytes;
	uint64_t huge = 0, size = 0;
	bool inside = false;
	char line[512];
	while (fgets(line, sizeof line, f)) {
		uintptr_t from, to;
		uint64_t kib;
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
			inside = from < last && first < to;
			size += inside ? to - from : 0;
		} else if (inside && sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1) {
			huge += kib << 10;
		}
	}
	return size > 0 && huge >= size - size / 4;
}

int offload_memory_map(size_t bytes, struct offload_memory *ret_memory, struct base_error *e)
{
	uint64_t rounded;
	if (bytes == 0)
		return base_error_set(e, -EINVAL, "cannot take 0 bytes of memory");
	if (base_size_round_up(bytes, BASE_HUGE_PAGE_BYTES, &rounded) < 0 || rounded > SIZE_MAX / 2)
		return base_error_set(
			e, -ENOMEM, "cannot take %zu bytes of memory: no address space is that large", bytes);

	struct offload_memory m = {.bytes = rounded, .pages = OFFLOAD_PAGES_HUGETLB};
	m.data = map_hugetlb(m.bytes);
	if (!m.data) {
		int r = map_aligned(m.bytes, &m.data);
		bool wish = r == 0 && madvise(m.data, m.bytes, MADV_HUGEPAGE) == 0;
		if (r == 0) {
			r = populate(m.data, m.bytes, false);
			if (r < 0)
				munmap(m.data, m.bytes);
		}
		if (r < 0) {
			char text[BASE_UNITS_TEXT_BYTES];
			return base_error_set(e, r == -EFAULT ? -ENOMEM : r,
				"cannot take %s (%zu bytes) of memory: %s; lower the budget or free memory",
				base_units_format_bytes(m.bytes, text), m.bytes, strerrordesc_np(-r));
		}
		m.pages = wish && mostly_huge(m.data, m.bytes) ? OFFLOAD_PAGES_TRANSPARENT : OFFLOAD_PAGES_SMALL;
	}
	*ret_memory = m;
	return 0;
}

void offload_memory_unmap(struct offload_memory *m)
{
	if (!m || !m->data)
		return;
	munmap(m->data, m->bytes);
	*m = (struct offload_memory){0};
}
