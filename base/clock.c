// SPDX-License-Identifier: Apache-2.0
#include "base/clock.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"

static uint64_t now(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * BASE_NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t base_clock_now_ns(void)
{
	return now(CLOCK_MONOTONIC);
}

uint64_t base_clock_wall_ns(void)
{
	return now(CLOCK_REALTIME);
}

uint64_t base_clock_thread_cpu_ns(void)
{
	return now(CLOCK_THREAD_CPUTIME_ID);
}

static uint64_t hash(uint64_t h, const char *text, ssize_t bytes)
{
	for (ssize_t i = 0; i < bytes; i++)
		h = (h ^ (uint8_t)text[i]) * 0x100000001b3ull;
	return h;
}

uint64_t base_clock_boot(void)
{
	char text[64];
	_cleanup_close_ int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text);
	if (n <= 0)
		return 0;
	uint64_t h = hash(0xcbf29ce484222325ull, text, n);
	n = readlink("/proc/self/ns/time", text, sizeof text); // a kernel without them has one
	h = hash(h, text, n);
	return h ? h : 1;
}
