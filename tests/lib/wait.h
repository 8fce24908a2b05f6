/* SPDX-License-Identifier: Apache-2.0
 * Waiting for a state in a test. Never for a time: what a machine does in a second depends on what else it does.
 */
#pragma once

#include <time.h>

#include "base/clock.h"

/* Longer than anything that ends takes on a machine that has ten other things to do, under a sanitizer. */
#define TESTING_PATIENCE_NS (60 * BASE_NS_PER_SECOND)

/* Until the condition holds; it is evaluated again and again, and may do something. */
#define testing_wait_until(condition)                                                                                  \
	do {                                                                                                           \
		uint64_t end_ns_ = base_clock_now_ns() + TESTING_PATIENCE_NS;                                          \
		while (!(condition)) {                                                                                 \
			if (base_clock_now_ns() > end_ns_)                                                             \
				fail_msg("not within %llu s: %s", TESTING_PATIENCE_NS / BASE_NS_PER_SECOND,            \
					#condition);                                                                   \
			nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);                                       \
		}                                                                                                      \
	} while (0)
