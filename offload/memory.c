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
static enum offload_pages look_pages(const void *data, size_t bytes)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/smaps", "re");
	if (!f)
		return OFFLOAD_PAGES_SMALL;
	uintptr_t first = (uintptr_t)data, last = first + bytes;
	uint64_t hugetlb = 0, transparent = 0, size = 0;
	bool inside = false;
	char line[512];
	while (fgets(line, sizeof line, f)) {
		uintptr_t from, to;
		uint64_t kib;
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2) {
			inside = from < last && first < to;
			size += inside ? to - from : 0;
		} else if (inside && sscanf(line, "AnonHugePages: %" SCNu64, &kib) == 1) {
			transparent += kib << 10;
		} else if (inside && sscanf(line, "Private_Hugetlb: %" SCNu64, &kib) == 1) {
			hugetlb += kib << 10;
		}
	}
	if (hugetlb >= bytes)
		return OFFLOAD_PAGES_HUGETLB;
	return size > 0 && hugetlb + transparent >= size - size / 4 ? OFFLOAD_PAGES_TRANSPARENT : OFFLOAD_PAGES_SMALL;
}

static int no_memory(size_t bytes, int r, struct base_error *e)
{
	char text[BASE_UNITS_TEXT_BYTES];
	return base_error_set(e, r == -EFAULT ? -ENOMEM : r,
		"cannot take %s (%zu bytes) of memory: %s; lower the budget or free memory",
		base_units_format_bytes(bytes, text), bytes, strerrordesc_np(-r));
}

int offload_memory_reserve(size_t bytes, bool hugetlb, struct offload_memory *ret_memory, struct base_error *e)
{
	uint64_t rounded;
	if (bytes == 0)
		return base_error_set(e, -EINVAL, "cannot take 0 bytes of memory");
	if (base_size_round_up(bytes, BASE_HUGE_PAGE_BYTES, &rounded) < 0 || rounded > SIZE_MAX / 2)
		return base_error_set(
			e, -ENOMEM, "cannot take %zu bytes of memory: no address space is that large", bytes);

	struct offload_memory m = {.bytes = rounded, .pages = OFFLOAD_PAGES_HUGETLB};
	// The mapping reserves the pages, so that no other process takes them before they are touched.
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB;
	m.data = hugetlb ? mmap(NULL, m.bytes, PROT_READ | PROT_WRITE, flags, -1, 0) : MAP_FAILED;
	if (m.data == MAP_FAILED) {
		int r = map_aligned(m.bytes, &m.data);
		if (r < 0)
			return no_memory(m.bytes, r, e);
		m.pages =
			madvise(m.data, m.bytes, MADV_HUGEPAGE) == 0 ? OFFLOAD_PAGES_TRANSPARENT : OFFLOAD_PAGES_SMALL;
	}
	*ret_memory = m;
	return 0;
}

int offload_memory_touch(const struct offload_memory *m, size_t from, size_t bytes, struct base_error *e)
{
	bool hugetlb = m->pages == OFFLOAD_PAGES_HUGETLB;
	size_t unit = hugetlb ? BASE_HUGE_PAGE_BYTES : BASE_PAGE_BYTES, first = from / unit * unit;
	char *data = (char *)m->data + first;
	bytes = base_size_align(from + bytes, unit) - first;
	int r = populate(data, bytes, hugetlb);
	return r < 0 ? no_memory(bytes, r, e) : 0;
}

void offload_memory_look(struct offload_memory *m)
{
	m->pages = look_pages(m->data, m->bytes);
}

int offload_memory_map(size_t bytes, struct offload_memory *ret_memory, struct base_error *e)
{
	struct offload_memory m = {0};
	int r = offload_memory_reserve(bytes, true, &m, e);
	if (r < 0)
		return r;
	r = offload_memory_touch(&m, 0, m.bytes, e);
	if (r < 0 && m.pages == OFFLOAD_PAGES_HUGETLB) {
		offload_memory_unmap(&m);
		r = offload_memory_reserve(bytes, false, &m, e);
		if (r == 0)
			r = offload_memory_touch(&m, 0, m.bytes, e);
	}
	if (r < 0) {
		offload_memory_unmap(&m);
		return r;
	}
	offload_memory_look(&m);
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
