/* SPDX-License-Identifier: Apache-2.0
 * A sentence that is put together in the caller's room: it grows to the end of it and no further, and ends in a zero.
 */
#pragma once

#include <stddef.h>

struct base_text { // {out, sizeof out} at first
	char *at;
	size_t room; // > 0
};

void base_text_add(struct base_text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
