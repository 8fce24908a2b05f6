// SPDX-License-Identifier: Apache-2.0
#include "topology/draw.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "base/utf8.h"

#define MARGIN 12
#define LINE 18
#define CELL_WIDTH 190
#define CELL_HEIGHT 46
#define MODEL_BYTES 32
#define COLUMNS 4 // of devices in a node
#define BAR_WIDTH 640
#define BAR_HEIGHT 16
#define LABEL_WIDTH 260
#define ROW_HEIGHT 62

/* ---- pieces ---- */

// Text from files and peers: escaped, without control characters, which XML does not allow, and without what is no UTF-8.
static void put_text(const char *text, FILE *out)
{
	size_t bytes = strlen(text), good = base_utf8_prefix(text, bytes);
	for (size_t i = 0; i < bytes; i++) {
		char c = text[i];
		if (c == '<')
			fputs("&lt;", out);
		else if (c == '&')
			fputs("&amp;", out);
		else if (c == '>')
			fputs("&gt;", out);
		else
			fputc((unsigned char)c < 0x20 || c == 0x7f || (i >= good && (unsigned char)c >= 0x80) ? '?' : c,
				out);
	}
}

static void label(int x, int y, const char *style, const char *text, FILE *out)
{
	fprintf(out, "<text x=\"%d\" y=\"%d\" class=\"%s\">", x, y, style);
	put_text(text, out);
	fprintf(out, "</text>\n");
}

static void box(int x, int y, int width, int height, const char *style, FILE *out)
{
	fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\" class=\"%s\"/>\n", x, y, width,
		height, style);
}

static void begin(int width, int height, FILE *out)
{
	fprintf(out,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n"
		"<style>text{font:12px "
		"sans-serif;fill:#222}.title{font-size:15px;font-weight:bold}.small{font-size:10px;"
		"fill:#555}rect{stroke:#555;stroke-width:1}.machine{fill:#fff}.node{fill:#f3f3ea}.cpu{fill:#dcdcd2}."
		"gpu{fill:"
		"#cfe3c6}.drive{fill:#c9dcf0}.nic{fill:#e6d6ee}.hot{fill:#e0803c}.rows{fill:#f2bd94}.pinned{fill:#"
		"ecc06a}.ring{fill:#"
		"9fb8d9}.kv{"
		"fill:#8fc08a}.workspace{fill:#c9a6d6}.free{fill:#fff}.cold{fill:#4d7fb8}</style>\n",
		width, height, width, height);
	fprintf(out, "<rect x=\"0\" y=\"0\" width=\"%d\" height=\"%d\" fill=\"#fff\" stroke=\"none\"/>\n", width,
		height);
}

/* ---- a machine ---- */

struct kind {
	const char *style;
	const struct topology_device *devices;
	uint32_t count;
};

static uint32_t count_near(const struct kind kinds[3], int32_t node)
{
	uint32_t n = 0;
	for (int k = 0; k < 3; k++) {
		for (uint32_t i = 0; i < kinds[k].count; i++)
			n += kinds[k].devices[i].numa_node == node;
	}
	return n;
}

static int node_height(const struct kind kinds[3], int32_t node, bool cpus)
{
	uint32_t rows = (count_near(kinds, node) + COLUMNS - 1) / COLUMNS;
	return MARGIN + LINE + (cpus ? CELL_HEIGHT + MARGIN : 0) + (int)rows * (CELL_HEIGHT + MARGIN);
}

static void draw_device(const struct topology_device *d, const char *style, int x, int y, FILE *out)
{
	char size[BASE_UNITS_TEXT_BYTES], title[128], model[40];
	box(x, y, CELL_WIDTH, CELL_HEIGHT, style, out);
	snprintf(title, sizeof title, "%s%s%s", d->name, d->size_bytes ? "  " : "",
		d->size_bytes ? base_units_format_bytes(d->size_bytes, size) : "");
	label(x + 6, y + 15, "label", title, out);
	int most = MODEL_BYTES; // a cut must not part a character
	while ((size_t)most < strlen(d->model) && most > 0 && ((unsigned char)d->model[most] & 0xc0) == 0x80)
		most--;
	snprintf(model, sizeof model, "%.*s", most, d->model);
	label(x + 6, y + 28, "small", model, out);
	label(x + 6, y + 40, "small", d->pci_path, out);
}

static void draw_node(const struct topology_machine *m, const struct kind kinds[3],
	const struct topology_numa_node *node, int y, int width, FILE *out)
{
	int32_t number = node ? (int32_t)node->os_index : -1;
	char text[96], size[BASE_UNITS_TEXT_BYTES];
	int x = 2 * MARGIN, top = y + LINE + 4;
	box(x, y, width, node_height(kinds, number, node != NULL), "node", out);
	if (node)
		snprintf(text, sizeof text, "NUMA node %" PRIu32 ": %s", node->os_index,
			base_units_format_bytes(node->memory_bytes, size));
	else
		snprintf(text, sizeof text, "near no single NUMA node");
	label(x + MARGIN, y + 15, "label", text, out);
	if (node) {
		box(x + MARGIN, top, width - 2 * MARGIN, CELL_HEIGHT, "cpu", out);
		snprintf(text, sizeof text, "%" PRIu32 " CPUs to use", node->cpus);
		label(x + MARGIN + 6, top + 15, "label", text, out);
		label(x + MARGIN + 6, top + 28, "small", m->cpu_model, out);
		top += CELL_HEIGHT + MARGIN;
	}
	uint32_t at = 0;
	for (int k = 0; k < 3; k++) {
		for (uint32_t i = 0; i < kinds[k].count; i++) {
			const struct topology_device *d = &kinds[k].devices[i];
			if (d->numa_node != number)
				continue;
			draw_device(d, kinds[k].style, x + MARGIN + (int)(at % COLUMNS) * (CELL_WIDTH + MARGIN),
				top + (int)(at / COLUMNS) * (CELL_HEIGHT + MARGIN), out);
			at++;
		}
	}
}

void topology_draw_machine(const struct topology_machine *m, FILE *out)
{
	const struct kind kinds[3] = {{"gpu", m->gpus, m->gpus_count}, {"drive", m->drives, m->drives_count},
		{"nic", m->nics, m->nics_count}};
	int width = COLUMNS * (CELL_WIDTH + MARGIN) + MARGIN, height = 2 * LINE + 3 * MARGIN;
	bool elsewhere = count_near(kinds, -1) > 0;
	char text[160], a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	for (uint32_t i = 0; i < m->nodes_count; i++)
		height += node_height(kinds, (int32_t)m->nodes[i].os_index, true) + MARGIN;
	if (elsewhere)
		height += node_height(kinds, -1, false) + MARGIN;
	begin(width + 4 * MARGIN, height, out);
	box(MARGIN, MARGIN, width + 2 * MARGIN, height - 2 * MARGIN, "machine", out);
	label(2 * MARGIN, 2 * MARGIN + 8, "title", m->host[0] ? m->host : "machine", out);
	snprintf(text, sizeof text, "%" PRIu32 " package%s, %" PRIu32 " cores, %s installed, %s may be used",
		m->packages, m->packages == 1 ? "" : "s", m->cores, base_units_format_bytes(m->memory_bytes, a),
		base_units_format_bytes(m->memory_limit_bytes, b));
	label(2 * MARGIN, 2 * MARGIN + 8 + LINE, "label", text, out);
	int y = 2 * LINE + 2 * MARGIN;
	for (uint32_t i = 0; i < m->nodes_count; i++) {
		draw_node(m, kinds, &m->nodes[i], y, width, out);
		y += node_height(kinds, (int32_t)m->nodes[i].os_index, true) + MARGIN;
	}
	if (elsewhere)
		draw_node(m, kinds, NULL, y, width, out);
	fprintf(out, "</svg>\n");
}

/* ---- a placement ---- */

struct part {
	const char *style, *name;
	uint64_t bytes;
};

#define PARTS 7

static void parts_of(const struct topology_draw_shard *s, struct part out[PARTS])
{
	const struct part parts[] = {{"hot", "hot", s->hot_bytes}, {"rows", "embedding rows", s->rows_bytes},
		{"pinned", "pinned in host", s->pinned_bytes}, {"ring", "ring", s->ring_bytes},
		{"kv", "KV cache", s->kv_bytes}, {"workspace", "workspace", s->workspace_bytes},
		{"free", "free", s->free_bytes}};
	static_assert(sizeof parts == PARTS * sizeof parts[0]);
	memcpy(out, parts, sizeof parts);
}

static double memory_of(const struct topology_draw_shard *s)
{
	struct part parts[PARTS];
	double sum = 0;
	parts_of(s, parts);
	for (int i = 0; i < PARTS; i++)
		sum += (double)parts[i].bytes;
	return sum;
}

static void draw_bar(const struct part *p, int x, int y, double scale, double *at, FILE *out)
{
	char size[BASE_UNITS_TEXT_BYTES];
	double width = (double)p->bytes * scale;
	if (width < 0.5)
		return;
	fprintf(out,
		"<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" class=\"%s\"><title>%s %s</title></rect>\n",
		x + *at, y, width, BAR_HEIGHT, p->style, p->name, base_units_format_bytes(p->bytes, size));
	if (width > 62)
		label(x + (int)*at + 3, y + 12, "small", base_units_format_bytes(p->bytes, size), out);
	*at += width;
}

static void draw_shard(const struct topology_draw_shard *s, int y, double scale, FILE *out)
{
	struct part parts[PARTS];
	char text[128];
	double at = 0, cold_at = 0;
	int x = 2 * MARGIN;
	label(x + 6, y + 14, "label", s->device, out);
	snprintf(text, sizeof text, "stage %" PRIu32 ", layers %" PRIu32 "-%" PRIu32, s->stage, s->first_layer,
		s->last_layer);
	label(x + 6, y + 29, "small", text, out);
	if (s->tp > 1) {
		snprintf(text, sizeof text, "part %" PRIu32 " of %" PRIu32, s->tp_rank, s->tp);
		label(x + 6, y + 42, "small", text, out);
	}
	parts_of(s, parts);
	for (int i = 0; i < PARTS; i++)
		draw_bar(&parts[i], x + LABEL_WIDTH, y + 2, scale, &at, out);
	const struct part cold = {"cold", "on the drive", s->cold_bytes};
	draw_bar(&cold, x + LABEL_WIDTH, y + 6 + BAR_HEIGHT, scale, &cold_at, out);
	if (s->link[0]) {
		char link[80];
		snprintf(link, sizeof link, "\xe2\x86\x93 %s", s->link);
		label(x + LABEL_WIDTH, y + 54, "small", link, out);
	}
}

static void draw_legend(int y, FILE *out)
{
	static const struct topology_draw_shard none;
	struct part parts[PARTS];
	int x = 2 * MARGIN;
	parts_of(&none, parts);
	for (int i = 0; i <= PARTS; i++) {
		const struct part p = i < PARTS ? parts[i] : (struct part){"cold", "on the drive", 0};
		box(x, y, 12, 12, p.style, out);
		label(x + 17, y + 11, "small", p.name, out);
		x += 115;
	}
}

void topology_draw_placement(
	const char *title, const char *note, const struct topology_draw_shard *shards, uint32_t count, FILE *out)
{
	uint32_t shown = count < TOPOLOGY_DRAW_SHARDS ? count : TOPOLOGY_DRAW_SHARDS;
	double most = 1;
	int hosts = 0;
	for (uint32_t i = 0; i < shown; i++) {
		double memory = memory_of(&shards[i]), cold = (double)shards[i].cold_bytes;
		most = memory > most ? memory : most;
		most = cold > most ? cold : most;
		hosts += i == 0 || strcmp(shards[i].host, shards[i - 1].host) != 0;
	}
	double scale = BAR_WIDTH / most;
	int width = LABEL_WIDTH + BAR_WIDTH + 5 * MARGIN;
	int height = 4 * MARGIN + 3 * LINE + (int)shown * ROW_HEIGHT + hosts * (LINE + 2 * MARGIN);
	begin(width, height, out);
	label(MARGIN, MARGIN + 12, "title", title, out);
	label(MARGIN, MARGIN + 12 + LINE, "label", note, out);
	int y = 2 * MARGIN + 2 * LINE;
	for (uint32_t i = 0; i < shown; i++) {
		if (i == 0 || strcmp(shards[i].host, shards[i - 1].host) != 0) {
			uint32_t same = 1;
			while (i + same < shown && strcmp(shards[i].host, shards[i + same].host) == 0)
				same++;
			box(MARGIN, y, width - 2 * MARGIN, (int)same * ROW_HEIGHT + LINE + MARGIN, "node", out);
			label(2 * MARGIN, y + 15, "label", shards[i].host, out);
			y += LINE + 4;
		}
		draw_shard(&shards[i], y, scale, out);
		y += ROW_HEIGHT;
		if (i + 1 == shown || strcmp(shards[i].host, shards[i + 1].host) != 0)
			y += 2 * MARGIN - 4;
	}
	draw_legend(y, out);
	if (count > shown) {
		char text[64];
		snprintf(text, sizeof text, "and %" PRIu32 " more", count - shown);
		label(width - 120, y + 11, "small", text, out);
	}
	fprintf(out, "</svg>\n");
}
