/* SPDX-License-Identifier: Apache-2.0
 * Checked arithmetic on sizes that come from files, peers and clients: 0 or -EOVERFLOW, the result set only
 * on success. Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define BASE_PAGE_BYTES 4096u
#define BASE_HUGE_PAGE_BYTES (2u << 20)

int base_size_add(uint64_t a, uint64_t b, uint64_t *ret_sum);
int base_size_mul(uint64_t a, uint64_t b, uint64_t *ret_product);

/* Rounds up to a multiple of align, a power of two. */
int base_size_round_up(uint64_t a, uint64_t align, uint64_t *ret_rounded);

/* For sizes already known to be small: no check. */
static inline uint64_t base_size_align(uint64_t a, uint64_t align)
{
	return (a + align - 1) & ~(align - 1);
}

static inline uint64_t base_size_div_up(uint64_t a, uint64_t b)
{
	return a / b + (a % b != 0);
}
