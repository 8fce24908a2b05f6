// SPDX-License-Identifier: Apache-2.0
#include "base/units.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct unit {
	const char *name;
	double factor;
};

static const struct unit byte_units[] = {
	{"B", 1},
	{"KiB", 0x1p10},
	{"MiB", 0x1p20},
	{"GiB", 0x1p30},
	{"TiB", 0x1p40},
	{"KB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{NULL, 0},
};

static const struct unit time_units[] = {
	{"ns", 1},
	{"us", 1e3},
	{"ms", 1e6},
	{"s", 1e9},
	{"m", 60e9},
	{"h", 3600e9},
	{NULL, 0},
};

static int parse(const char *text, const struct unit *units, uint64_t *ret)
{
	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	size_t digits = strspn(text, "0123456789");
	size_t number = digits;
	if (text[number] == '.') {
		size_t fraction = strspn(text + number + 1, "0123456789");
		if (!fraction)
			return -EINVAL;
		number += 1 + fraction;
	}
	if (strcmp(text, "0") == 0) {
		*ret = 0;
		return 0;
	}
	const char *name = text + number;
	while (*name == ' ')
		name++;
	for (const struct unit *u = units; u->name; u++) {
		if (strcmp(name, u->name) != 0)
			continue;
		// Whole numbers stay exact beyond 2^53.
		if (number == digits) {
			errno = 0;
			unsigned long long whole = strtoull(text, NULL, 10);
			uint64_t r;
			if (errno == ERANGE || __builtin_mul_overflow(whole, (uint64_t)u->factor, &r))
				return -ERANGE;
			*ret = r;
			return 0;
		}
		double v = strtod(text, NULL) * u->factor;
		if (v >= 0x1p64)
			return -ERANGE;
		*ret = (uint64_t)llround(v);
		return 0;
	}
	return -EINVAL;
}

int base_units_parse_bytes(const char *text, uint64_t *ret_bytes)
{
	return parse(text, byte_units, ret_bytes);
}

int base_units_parse_duration(const char *text, uint64_t *ret_ns)
{
	return parse(text, time_units, ret_ns);
}

char *base_units_format_bytes(uint64_t bytes, char out[static BASE_UNITS_TEXT_BYTES])
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	size_t i = 0;
	while (v >= 1024 && i < 6) {
		v /= 1024;
		i++;
	}
	snprintf(out, BASE_UNITS_TEXT_BYTES, i == 0 || v >= 100 ? "%.0f %s" : "%.1f %s", v, names[i]);
	return out;
}

char *base_units_exact_bytes(uint64_t bytes, char out[static BASE_UNITS_TEXT_BYTES])
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	uint64_t v = bytes;
	size_t i = 0;
	for (; v && v % 1024 == 0 && i + 1 < sizeof names / sizeof *names; v /= 1024)
		i++;
	snprintf(out, BASE_UNITS_TEXT_BYTES, "%" PRIu64 "%s", v, names[i]);
	return out;
}

char *base_units_format_duration(uint64_t ns, char out[static BASE_UNITS_TEXT_BYTES])
{
	if (ns < 10000)
		snprintf(out, BASE_UNITS_TEXT_BYTES, "%u ns", (unsigned)ns);
	else if (ns < 10000000)
		snprintf(out, BASE_UNITS_TEXT_BYTES, "%.1f us", (double)ns / 1e3);
	else if (ns < 1000000000)
		snprintf(out, BASE_UNITS_TEXT_BYTES, "%.1f ms", (double)ns / 1e6);
	else
		snprintf(out, BASE_UNITS_TEXT_BYTES, "%.1f s", (double)ns / 1e9);
	return out;
}
