/* SPDX-License-Identifier: Apache-2.0
 * Time in nanoseconds. Any thread.
 */
#pragma once

#include <stdint.h>

#define BASE_NS_PER_SECOND 1000000000ull

/* CLOCK_MONOTONIC. */
uint64_t base_clock_now_ns(void);

/* CLOCK_REALTIME, for what people read. */
uint64_t base_clock_wall_ns(void);

/* The same number in two processes whose CLOCK_MONOTONIC is the same clock: one boot of one kernel, one time namespace.
 * 0: unknown. */
uint64_t base_clock_boot(void);

/* CPU time of the calling thread. */
uint64_t base_clock_thread_cpu_ns(void);
