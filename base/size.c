// SPDX-License-Identifier: Apache-2.0
#include "base/size.h"

#include <errno.h>

int base_size_add(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
	uint64_t r;
	if (__builtin_add_overflow(a, b, &r))
		return -EOVERFLOW;
	*ret_sum = r;
	return 0;
}

int base_size_mul(uint64_t a, uint64_t b, uint64_t *ret_product)
{
	uint64_t r;
	if (__builtin_mul_overflow(a, b, &r))
		return -EOVERFLOW;
	*ret_product = r;
	return 0;
}

int base_size_round_up(uint64_t a, uint64_t align, uint64_t *ret_rounded)
{
	uint64_t r;
	if (base_size_add(a, align - 1, &r))
		return -EOVERFLOW;
	*ret_rounded = r & ~(align - 1);
	return 0;
}
