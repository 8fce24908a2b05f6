// SPDX-License-Identifier: Apache-2.0
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl/ctl.h"

void ctl_table_init(struct ctl_table *t, const struct ctl_column *columns, size_t count)
{
	*t = (struct ctl_table){.columns = columns, .columns_count = count};
}

void ctl_table_cell(struct ctl_table *t, const char *fmt, ...)
{
	if (t->cells_count == t->cells_room) {
		size_t room = t->cells_room ? t->cells_room * 2 : 64;
		char **cells = reallocarray(t->cells, room, sizeof *cells);
		if (!cells)
			return;
		t->cells = cells;
		t->cells_room = room;
	}
	char *text = NULL;
	va_list ap;
	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		text = NULL;
	va_end(ap);
	// A model's name must not move the cursor or start a line.
	for (char *p = text; p && *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	t->cells[t->cells_count++] = text;
}

// Columns on the screen, near enough: code points.
static size_t width(const char *text)
{
	size_t n = 0;
	for (; text && *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void print_row(const struct ctl_table *t, const char *const *texts, const size_t *widths, bool wide, FILE *out)
{
	size_t pending = 0; // spaces that only count if something follows
	for (size_t i = 0; i < t->columns_count; i++) {
		if (t->columns[i].wide && !wide)
			continue;
		const char *text = texts[i] ? texts[i] : "";
		size_t pad = widths[i] - width(text);
		size_t before = pending + (t->columns[i].right ? pad : 0);
		fprintf(out, "%*s%s", (int)before, "", text);
		pending = 2 + (t->columns[i].right ? 0 : pad);
	}
	fputc('\n', out);
}

void ctl_table_print(struct ctl_table *t, struct ctl *c)
{
	const char *titles[32];
	size_t widths[32] = {0}, n = t->columns_count;
	bool wide = c->output == CTL_OUTPUT_WIDE;
	for (size_t i = 0; i < n && i < 32; i++) {
		titles[i] = t->columns[i].title;
		widths[i] = c->options.no_headers ? 0 : width(titles[i]);
	}
	for (size_t i = 0; i < t->cells_count; i++)
		if (width(t->cells[i]) > widths[i % n])
			widths[i % n] = width(t->cells[i]);
	if (!c->options.no_headers)
		print_row(t, titles, widths, wide, c->out);
	for (size_t i = 0; i + n <= t->cells_count; i += n)
		print_row(t, (const char *const *)t->cells + i, widths, wide, c->out);
	for (size_t i = 0; i < t->cells_count; i++)
		free(t->cells[i]);
	free(t->cells);
	*t = (struct ctl_table){0};
}

char *ctl_size(uint64_t bytes, char out[static CTL_SIZE_BYTES])
{
	static const char units[] = "BKMGTPE";
	double v = (double)bytes;
	size_t u = 0;
	while (v >= 1000 && u < 6) {
		v /= 1024;
		u++;
	}
	if (bytes == 0)
		snprintf(out, CTL_SIZE_BYTES, "-");
	else
		snprintf(out, CTL_SIZE_BYTES, u == 0 || v >= 99.95 ? "%.0f%c" : "%.1f%c", v, units[u]);
	return out;
}

char *ctl_rate(double per_second, char out[static CTL_SIZE_BYTES])
{
	if (per_second <= 0)
		snprintf(out, CTL_SIZE_BYTES, "-");
	else if (per_second >= 1e9)
		snprintf(out, CTL_SIZE_BYTES, "%.1fGB/s", per_second / 1e9);
	else if (per_second >= 1e6)
		snprintf(out, CTL_SIZE_BYTES, "%.0fMB/s", per_second / 1e6);
	else
		snprintf(out, CTL_SIZE_BYTES, "%.0fKB/s", per_second / 1e3);
	return out;
}

char *ctl_seconds(double seconds, char out[static CTL_SIZE_BYTES])
{
	if (seconds <= 0)
		snprintf(out, CTL_SIZE_BYTES, "-");
	else if (seconds < 1e-3)
		snprintf(out, CTL_SIZE_BYTES, "%.0fus", seconds * 1e6);
	else if (seconds < 1)
		snprintf(out, CTL_SIZE_BYTES, seconds < 0.01 ? "%.1fms" : "%.0fms", seconds * 1e3);
	else if (seconds < 120)
		snprintf(out, CTL_SIZE_BYTES, "%.1fs", seconds);
	else if (seconds < 7200)
		snprintf(out, CTL_SIZE_BYTES, "%.0fm", seconds / 60);
	else
		snprintf(out, CTL_SIZE_BYTES, "%.1fh", seconds / 3600);
	return out;
}
