// SPDX-License-Identifier: Apache-2.0
#include "topology/draw.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "base/utf8.h"

#define MARGIN 12
#define LINE 18
#define PAD 6 // between a box and its text
#define SIZE_TITLE 15 // of letters, as in begin()
#define SIZE_LABEL 12
#define SIZE_SMALL 10
#define CELL_WIDTH 190
#define CELL_HEIGHT 46
#define NODE_HEAD 22 // for its name
#define KINDS 3 // of devices
#define COLUMNS 4 // of devices in a node, at most
#define COLUMNS_LEAST 2
#define STUB_WIDTH 280 // of a wire, where its label is
#define STUB_NAME_WIDTH 100
#define STUB_HEIGHT 16
#define LANE_WIDTH 10
#define BAR_WIDTH 640
#define BAR_HEIGHT 16
#define LABEL_WIDTH 260
#define ROW_HEIGHT 62

static const char *const colors[] = { // of wires, by lane
	"#4d7fb8", "#e0803c", "#5a9a56", "#a06bb4", "#b8923a", "#3f9c9c", "#c0585c", "#6b6b6b"};

/* ---- pieces ---- */

// Text from files and peers: escaped, without control characters, which XML does not allow, and without what is no
// UTF-8.
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

/* How wide a text will be, near enough, and rather too wide: there are no fonts here. Thousandths of the size, after
 * DejaVu Sans, a wide font. */
static double text_width(const char *text, int size, bool bold)
{
	uint32_t sum = 0;
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p < 0x80)
			sum += strchr("iljI.,:;|'! /-()[]tfr", *p) ? 410
			       : strchr("mwMW@%", *p)              ? 990
			       : *p >= 'A' && *p <= 'Z'            ? 730
								   : 640;
		else if ((*p & 0xc0) != 0x80)
			sum += *p < 0xe0 ? 700 : 1050;
	}
	return (bold ? 1.12 : 1.0) * sum * size / 1000;
}

static void label_cut(int x, int y, int width, const char *style, const char *anchor, const char *text, FILE *out)
{
	if (!text[0])
		return;
	bool bold = strcmp(style, "title") == 0;
	int size = bold ? SIZE_TITLE : strcmp(style, "small") == 0 ? SIZE_SMALL : SIZE_LABEL;
	char cut[256];
	snprintf(cut, sizeof cut - 4, "%s", text);
	size_t n = strlen(cut);
	bool whole = strlen(text) == n && text_width(cut, size, bold) <= width;
	while (!whole && n > 0 &&
		(text_width(cut, size, bold) + size > width || ((unsigned char)text[n] & 0xc0) == 0x80))
		cut[--n] = '\0';
	fprintf(out, "<text x=\"%d\" y=\"%d\" class=\"%s\"%s>", x, y, style, anchor);
	put_text(cut, out);
	if (!whole) {
		fputs("\xe2\x80\xa6<title>", out); // an ellipsis
		put_text(text, out);
		fputs("</title>", out);
	}
	fprintf(out, "</text>\n");
}

// Cut to that width.
static void label_within(int x, int y, int width, const char *style, const char *text, FILE *out)
{
	label_cut(x, y, width, style, "", text, out);
}

// The same, to the left of x.
static void label_end(int x, int y, int width, const char *style, const char *text, FILE *out)
{
	label_cut(x, y, width, style, " text-anchor=\"end\"", text, out);
}

static int node_width(int columns)
{
	return columns * (CELL_WIDTH + MARGIN) + MARGIN;
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
		"fill:#8fc08a}.workspace{fill:#c9a6d6}.free{fill:#fff}.cold{fill:#4d7fb8}.wire{fill:"
		"none;stroke-width:1.5}.assumed{stroke-dasharray:5 4}</style>\n",
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

static void kinds_of(const struct topology_machine *m, struct kind out[KINDS])
{
	out[0] = (struct kind){"gpu", m->gpus, m->gpus_count};
	out[1] = (struct kind){"drive", m->drives, m->drives_count};
	out[2] = (struct kind){"nic", m->nics, m->nics_count};
}

// Which of the machine's nodes a device is near; -1: none, or one that is not there.
static int place_of(const struct topology_machine *m, const struct topology_device *d)
{
	for (uint32_t i = 0; i < m->nodes_count; i++) {
		if (d->numa_node >= 0 && m->nodes[i].os_index == (uint32_t)d->numa_node)
			return (int)i;
	}
	return -1;
}

static int count_near(const struct topology_machine *m, int node)
{
	struct kind kinds[KINDS];
	int n = 0;
	kinds_of(m, kinds);
	for (int k = 0; k < KINDS; k++) {
		for (uint32_t i = 0; i < kinds[k].count; i++)
			n += place_of(m, &kinds[k].devices[i]) == node;
	}
	return n;
}

static int node_height(const struct topology_machine *m, int node, int columns)
{
	int rows = (count_near(m, node) + columns - 1) / columns;
	return NODE_HEAD + (node >= 0 ? CELL_HEIGHT + MARGIN : 0) + rows * (CELL_HEIGHT + MARGIN);
}

static int head_height(const struct topology_draw_machine *d)
{
	return MARGIN + 2 * LINE + (d->bandwidths ? LINE : 0);
}

static int machine_height(const struct topology_draw_machine *d, int columns)
{
	const struct topology_machine *m = d->machine;
	int height = head_height(d);
	for (int i = 0; i < (int)m->nodes_count; i++)
		height += node_height(m, i, columns) + MARGIN;
	if (count_near(m, -1))
		height += node_height(m, -1, columns) + MARGIN;
	return height;
}

static void draw_device(const struct topology_device *d, const char *style, int x, int y, FILE *out)
{
	char size[BASE_UNITS_TEXT_BYTES], title[128];
	int room = CELL_WIDTH - 2 * PAD;
	box(x, y, CELL_WIDTH, CELL_HEIGHT, style, out);
	snprintf(title, sizeof title, "%s%s%s", d->name, d->size_bytes ? "  " : "",
		d->size_bytes ? base_units_format_bytes(d->size_bytes, size) : "");
	label_within(x + PAD, y + 15, room, "label", title, out);
	label_within(x + PAD, y + 28, room, "small", d->model, out);
	label_within(x + PAD, y + (d->model[0] ? 40 : 28), room, "small", d->pci_path, out);
}

static void draw_node(const struct topology_machine *m, int node, int columns, int y, FILE *out)
{
	struct kind kinds[KINDS];
	char text[96], size[BASE_UNITS_TEXT_BYTES];
	int x = 2 * MARGIN, top = y + NODE_HEAD, width = node_width(columns), room = width - 2 * MARGIN - 2 * PAD;
	box(x, y, width, node_height(m, node, columns), "node", out);
	if (node >= 0)
		snprintf(text, sizeof text, "NUMA node %" PRIu32 ": %s", m->nodes[node].os_index,
			base_units_format_bytes(m->nodes[node].memory_bytes, size));
	else
		snprintf(text, sizeof text, "near no single NUMA node");
	label(x + MARGIN, y + 15, "label", text, out);
	if (node >= 0) {
		box(x + MARGIN, top, width - 2 * MARGIN, CELL_HEIGHT, "cpu", out);
		snprintf(text, sizeof text, "%" PRIu32 " CPUs to use", m->nodes[node].cpus);
		label(x + MARGIN + PAD, top + 15, "label", text, out);
		label_within(x + MARGIN + PAD, top + 28, room, "small", m->cpu_model, out);
		top += CELL_HEIGHT + MARGIN;
	}
	int at = 0;
	kinds_of(m, kinds);
	for (int k = 0; k < KINDS; k++) {
		for (uint32_t i = 0; i < kinds[k].count; i++) {
			const struct topology_device *d = &kinds[k].devices[i];
			if (place_of(m, d) != node)
				continue;
			draw_device(d, kinds[k].style, x + MARGIN + at % columns * (CELL_WIDTH + MARGIN),
				top + at / columns * (CELL_HEIGHT + MARGIN), out);
			at++;
		}
	}
}

// "2 packages, 64 cores, 1008 GiB installed, 900 GiB may be used"; what is not known is left out.
static void describe(const struct topology_machine *m, char *out, size_t room)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	int n = 0;
	out[0] = '\0';
	if (m->cores)
		n = snprintf(out, room, "%" PRIu32 " package%s, %" PRIu32 " core%s", m->packages,
			m->packages == 1 ? "" : "s", m->cores, m->cores == 1 ? "" : "s");
	if (m->memory_bytes)
		n += snprintf(out + n, room - (size_t)n, "%s%s installed", n ? ", " : "",
			base_units_format_bytes(m->memory_bytes, a));
	if (m->memory_limit_bytes)
		snprintf(out + n, room - (size_t)n, "%s%s may be used", n ? ", " : "",
			base_units_format_bytes(m->memory_limit_bytes, b));
}

static void describe_bandwidths(const struct topology_bandwidths *b, char *out, size_t room)
{
	const struct {
		const char *name;
		double value;
		const char *unit;
	} all[] = {{"drive", b->drive_bytes_per_s, "GB/s"}, {"memory", b->memory_bytes_per_s, "GB/s"},
		{"compute", b->compute_macs_per_s, "Gmac/s"}};
	int n = 0;
	snprintf(out, room, "not measured");
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		if (all[i].value > 0)
			n += snprintf(out + n, room - (size_t)n, "%s%s %.3g %s", n ? ", " : "", all[i].name,
				all[i].value / 1e9, all[i].unit);
	}
}

static void draw_machine(const struct topology_draw_machine *d, int columns, int y, FILE *out)
{
	const struct topology_machine *m = d->machine;
	const char *name = d->name[0] ? d->name : m->host[0] ? m->host : "machine";
	char text[192];
	int width = node_width(columns), x = 2 * MARGIN, at = y + head_height(d), note = 0;
	box(MARGIN, y, width + 2 * MARGIN, machine_height(d, columns), "machine", out);
	if (d->note[0]) {
		note = (int)text_width(d->note, SIZE_LABEL, false) + MARGIN;
		note = note < width / 2 ? note : width / 2;
		label_end(x + width, y + 20, note, "label", d->note, out);
	}
	label_within(x, y + 20, width - note, "title", name, out);
	describe(m, text, sizeof text);
	label_within(x, y + 20 + LINE, width, "label", text, out);
	if (d->bandwidths) {
		describe_bandwidths(d->bandwidths, text, sizeof text);
		label_within(x, y + 20 + 2 * LINE, width, "label", text, out);
	}
	for (int i = 0; i < (int)m->nodes_count; i++) {
		draw_node(m, i, columns, at, out);
		at += node_height(m, i, columns) + MARGIN;
	}
	if (count_near(m, -1))
		draw_node(m, -1, columns, at, out);
}

/* ---- a fleet ---- */

/* Each link is a wire beside the machines: out of one, down its lane, into the other. Its label stands on it at both
 * ends, so that nobody has to follow it. */
struct wire {
	const struct topology_draw_link *link;
	uint32_t ends[2]; // the upper one first
	int lane, y[2];
};

struct sheet {
	const struct topology_draw_machine *machines;
	int count, columns, lanes, height;
	int y[TOPOLOGY_DRAW_MACHINES], stubs[TOPOLOGY_DRAW_MACHINES];
	struct wire wires[TOPOLOGY_DRAW_LINKS];
	int wires_count;
};

static int columns_of(const struct topology_draw_machine *machines, int count)
{
	int most = COLUMNS_LEAST;
	for (int i = 0; i < count; i++) {
		for (int k = -1; k < (int)machines[i].machine->nodes_count; k++) {
			int n = count_near(machines[i].machine, k);
			most = n > most ? n : most;
		}
	}
	return most < COLUMNS ? most : COLUMNS;
}

static void take_links(struct sheet *s, const struct topology_draw_link *links, uint32_t count)
{
	for (uint32_t i = 0; i < count && s->wires_count < (int)TOPOLOGY_DRAW_LINKS; i++) {
		uint32_t a = links[i].ends[0], b = links[i].ends[1];
		if (a == b || a >= (uint32_t)s->count || b >= (uint32_t)s->count)
			continue;
		s->wires[s->wires_count++] = (struct wire){.link = &links[i], .ends = {a < b ? a : b, a < b ? b : a}};
		s->stubs[a]++;
		s->stubs[b]++;
	}
}

// From the top of a machine: wires that go up, the nearest first, then those that go down, the farthest first: they
// nest.
static int stub_before(const struct wire *x, const struct wire *y, uint32_t machine)
{
	bool up[2] = {x->ends[1] == machine, y->ends[1] == machine};
	if (up[0] != up[1])
		return up[0];
	uint32_t other[2] = {x->ends[!up[0] ? 1 : 0], y->ends[!up[1] ? 1 : 0]};
	return other[0] != other[1] ? other[0] > other[1] : x < y;
}

static void place_stubs(struct sheet *s)
{
	for (int i = 0; i < s->wires_count; i++) {
		for (int e = 0; e < 2; e++) {
			uint32_t machine = s->wires[i].ends[e];
			int before = 0;
			for (int k = 0; k < s->wires_count; k++) {
				const struct wire *w = &s->wires[k];
				before += k != i && (w->ends[0] == machine || w->ends[1] == machine) &&
					  stub_before(w, &s->wires[i], machine);
			}
			s->wires[i].y[e] = s->y[machine] + MARGIN + (before + 1) * STUB_HEIGHT;
		}
	}
}

static bool lane_is_free(const struct sheet *s, const struct wire *w, int lane)
{
	for (int i = 0; i < s->wires_count; i++) {
		const struct wire *x = &s->wires[i];
		if (x->lane == lane && x->y[0] <= w->y[1] && w->y[0] <= x->y[1])
			return false;
	}
	return true;
}

// Short ones first, and so next to the machines.
static void place_lanes(struct sheet *s)
{
	for (int i = 0; i < s->wires_count; i++)
		s->wires[i].lane = -1;
	for (int span = 1; span < s->count; span++) {
		for (int i = 0; i < s->wires_count; i++) {
			struct wire *w = &s->wires[i];
			int lane = 0;
			if ((int)(w->ends[1] - w->ends[0]) != span)
				continue;
			while (!lane_is_free(s, w, lane))
				lane++;
			w->lane = lane;
			s->lanes = lane + 1 > s->lanes ? lane + 1 : s->lanes;
		}
	}
}

static const char *name_of(const struct topology_draw_machine *d)
{
	return d->name[0] ? d->name : d->machine->host;
}

static void draw_wire(const struct sheet *s, const struct wire *w, FILE *out)
{
	int x = node_width(s->columns) + 3 * MARGIN, turn = x + STUB_WIDTH + w->lane * LANE_WIDTH;
	fprintf(out, "<path d=\"M%d %dH%dV%dH%d\" class=\"wire%s\" stroke=\"%s\"/>\n", x, w->y[0], turn, w->y[1], x,
		w->link->assumed ? " assumed" : "", colors[w->lane % (int)(sizeof colors / sizeof colors[0])]);
	for (int e = 0; e < 2; e++) {
		label_within(
			x + PAD, w->y[e] - 3, STUB_NAME_WIDTH - PAD, "small", name_of(&s->machines[w->ends[!e]]), out);
		label_within(x + PAD + STUB_NAME_WIDTH, w->y[e] - 3, STUB_WIDTH - STUB_NAME_WIDTH - 2 * PAD, "small",
			w->link->label, out);
	}
}

int topology_draw_fleet(const char *title, const struct topology_draw_machine *machines, uint32_t count,
	const struct topology_draw_link *links, uint32_t links_count, FILE *out)
{
	_cleanup_free_ struct sheet *s = calloc(1, sizeof *s);
	char text[64];
	if (!s)
		return -ENOMEM;
	s->machines = machines;
	s->count = (int)(count < TOPOLOGY_DRAW_MACHINES ? count : TOPOLOGY_DRAW_MACHINES);
	s->columns = columns_of(machines, s->count);
	s->height = MARGIN + (title[0] ? LINE + MARGIN : 0);
	take_links(s, links, links_count);
	for (int i = 0; i < s->count; i++) {
		int height = machine_height(&machines[i], s->columns), wires = (s->stubs[i] + 1) * STUB_HEIGHT;
		s->y[i] = s->height;
		s->height += (height > wires ? height : wires) + (s->count > 1 ? 2 * MARGIN : MARGIN);
	}
	place_stubs(s);
	place_lanes(s);
	int width = node_width(s->columns) + 4 * MARGIN;
	width += s->wires_count ? STUB_WIDTH + s->lanes * LANE_WIDTH : 0;
	begin(width, s->height + (count > TOPOLOGY_DRAW_MACHINES ? LINE : 0), out);
	if (title[0])
		label_within(MARGIN, MARGIN + 12, width - 2 * MARGIN, "title", title, out);
	for (int i = 0; i < s->count; i++)
		draw_machine(&machines[i], s->columns, s->y[i], out);
	for (int i = 0; i < s->wires_count; i++)
		draw_wire(s, &s->wires[i], out);
	snprintf(text, sizeof text, "and %" PRIu32 " more", count - (uint32_t)s->count);
	if (count > (uint32_t)s->count)
		label(MARGIN, s->height + 4, "label", text, out);
	fprintf(out, "</svg>\n");
	return 0;
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
