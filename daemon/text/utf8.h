/* SPDX-License-Identifier: Apache-2.0
 * One UTF-8 sequence at a time. Internal to daemon/text.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum text_utf8 { TEXT_UTF8_VALID, TEXT_UTF8_INVALID, TEXT_UTF8_PARTIAL };

/* Looks at the first sequence of p[0..n), n > 0. Returns its bytes: of the code point if VALID; of what one U+FFFD
 * stands for if INVALID (the Unicode standard's maximal subpart); n if PARTIAL, that is, more bytes could make it
 * valid. */
size_t text_utf8_sequence(const uint8_t *p, size_t n, enum text_utf8 *ret_kind);
