/* SPDX-License-Identifier: Apache-2.0
 * What a human needs to know about a failure: one line that names what, where and what would help.
 *
 * A function that can fail returns 0 or -errno. Where the number is not enough it also fills a
 * `struct base_error`, which lives with the caller (usually on its stack). NULL is accepted everywhere
 * and means "the caller wants the number only". Any thread; no locks, no allocation.
 */
#pragma once

#include <stdarg.h>

#define BASE_ERROR_BYTES 512

struct base_error {
	int code; // 0, or the -errno that was returned with it
	char message[BASE_ERROR_BYTES];
};

/* Writes the message (cut at BASE_ERROR_BYTES) and returns code, so that `return base_error_set(...)` reads well. */
int base_error_set(struct base_error *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the message that is there and returns its code: for adding where to what. */
int base_error_prefix(struct base_error *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The message, or the text of the errno if there is none. Never NULL. */
const char *base_error_text(const struct base_error *e);
