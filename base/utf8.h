/* SPDX-License-Identifier: Apache-2.0
 * UTF-8 by the Unicode standard's table of well-formed byte sequences: no overlong forms, no surrogates, nothing past
 * U+10FFFF. Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum base_utf8 { BASE_UTF8_VALID, BASE_UTF8_INVALID, BASE_UTF8_PARTIAL };

/* Looks at the first sequence of p[0..n), n > 0. Returns its bytes: of the code point if VALID; of what one U+FFFD
 * stands for if INVALID (the Unicode standard's maximal subpart); n if PARTIAL, that is, more bytes could make it
 * valid. */
size_t base_utf8_sequence(const uint8_t *p, size_t n, enum base_utf8 *ret_kind);

/* The offset of the first byte that is not UTF-8, or bytes. NUL bytes are fine here. */
size_t base_utf8_prefix(const void *text, size_t bytes);
