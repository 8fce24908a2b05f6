// SPDX-License-Identifier: Apache-2.0
#include "base/clock.h"

#include <time.h>

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
