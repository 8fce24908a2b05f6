// SPDX-License-Identifier: Apache-2.0
#include "base/error.h"

#include <stdio.h>
#include <string.h>

int base_error_set(struct base_error *e, int code, const char *fmt, ...)
{
	if (!e)
		return code;
	va_list ap;
	va_start(ap, fmt);
	e->code = code;
	vsnprintf(e->message, sizeof e->message, fmt, ap);
	va_end(ap);
	return code;
}

int base_error_prefix(struct base_error *e, const char *fmt, ...)
{
	if (!e)
		return 0;
	char old[BASE_ERROR_BYTES];
	memcpy(old, e->message, sizeof old);
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(e->message, sizeof e->message, fmt, ap);
	va_end(ap);
	if (n >= 0 && (size_t)n < sizeof e->message)
		snprintf(e->message + n, sizeof e->message - (size_t)n, ": %s", old);
	return e->code;
}

const char *base_error_text(const struct base_error *e)
{
	if (!e)
		return "no details";
	if (e->message[0])
		return e->message;
	const char *text = strerrordesc_np(e->code < 0 ? -e->code : e->code);
	return text ? text : "unknown error";
}
