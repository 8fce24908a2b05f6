// SPDX-License-Identifier: Apache-2.0
#include "base/utf8.h"

#include <string.h>

size_t base_utf8_sequence(const uint8_t *p, size_t n, enum base_utf8 *ret_kind)
{
	uint8_t low = 0x80, high = 0xbf; // of the second byte: no overlong forms, no surrogates, nothing past U+10FFFF
	size_t more;
	*ret_kind = BASE_UTF8_VALID;
	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf) {
		more = 1;
	} else if (p[0] >= 0xe0 && p[0] <= 0xef) {
		more = 2;
		low = p[0] == 0xe0 ? 0xa0 : low;
		high = p[0] == 0xed ? 0x9f : high;
	} else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
		more = 3;
		low = p[0] == 0xf0 ? 0x90 : low;
		high = p[0] == 0xf4 ? 0x8f : high;
	} else {
		*ret_kind = BASE_UTF8_INVALID;
		return 1;
	}
	for (size_t i = 1; i <= more; i++, low = 0x80, high = 0xbf) {
		if (i == n) {
			*ret_kind = BASE_UTF8_PARTIAL;
			return n;
		}
		if (p[i] < low || p[i] > high) {
			*ret_kind = BASE_UTF8_INVALID;
			return i;
		}
	}
	return more + 1;
}

size_t base_utf8_prefix(const void *text, size_t bytes)
{
	const uint8_t *p = text;
	size_t at = 0;
	while (at < bytes) {
		uint64_t eight;
		enum base_utf8 kind;
		if (bytes - at >= 8 && (memcpy(&eight, p + at, 8), (eight & 0x8080808080808080ull) == 0)) {
			at += 8;
			continue;
		}
		size_t n = base_utf8_sequence(p + at, bytes - at, &kind);
		if (kind != BASE_UTF8_VALID)
			return at;
		at += n;
	}
	return at;
}
