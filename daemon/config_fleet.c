// SPDX-License-Identifier: Apache-2.0
// The document as libyaml's tree, walked by tables of keys: nothing deeper or of another kind gets in.
#include "daemon/config_fleet.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "base/cleanup.h"
#include "base/units.h"

#define MAX_BYTES (1u << 20)
#define MAX_CARDS 64u

struct walk {
	struct config_tree tree;
	struct config_fleet *f;
	uint32_t machines_room, devices_room;
};

enum value {
	VALUE_NAME,
	VALUE_PATH,
	VALUE_COUNT,
	VALUE_BYTES, // 16GiB
	VALUE_RATE, // 2.5GB/s, in bytes
	VALUE_MACS, // 400Gmac/s
	VALUE_TIME, // 3us, in ns, a double
};

struct key {
	const char *name;
	enum value value;
	size_t offset;
	size_t room; // NAME, PATH
};

struct machine { // as written, before it becomes devices
	struct config_machine m;
	struct fleet_device d;
	yaml_node_t *cards;
};

struct card {
	char name[FLEET_NAME_BYTES];
	uint32_t count;
	struct fleet_device d;
};

#define OWN(member) offsetof(struct machine, m.member)
#define DEVICE(member) offsetof(struct machine, d.member)
#define CARD(member) offsetof(struct card, member)

static const struct key machine_keys[] = {
	{"name", VALUE_NAME, OWN(name), FLEET_NAME_BYTES},
	{"rack", VALUE_NAME, OWN(rack), FLEET_NAME_BYTES},
	{"topology", VALUE_PATH, OWN(topology), CONFIG_FLEET_PATH_BYTES},
	{"count", VALUE_COUNT, OWN(count), 0},
	{"memory", VALUE_BYTES, OWN(memory_bytes), 0},
	{"reserve", VALUE_BYTES, DEVICE(reserve_bytes), 0},
	{"weights", VALUE_BYTES, DEVICE(weights_budget_bytes), 0},
	{"kv", VALUE_BYTES, DEVICE(kv_budget_bytes), 0},
	{"workspace", VALUE_BYTES, DEVICE(workspace_budget_bytes), 0},
	{"drive", VALUE_RATE, DEVICE(bandwidths.drive_bytes_per_s), 0},
	{"memory_bandwidth", VALUE_RATE, DEVICE(bandwidths.memory_bytes_per_s), 0},
	{"compute", VALUE_MACS, DEVICE(bandwidths.compute_macs_per_s), 0},
	{NULL, VALUE_NAME, 0, 0},
};

static const struct key card_keys[] = {
	{"name", VALUE_NAME, CARD(name), FLEET_NAME_BYTES},
	{"count", VALUE_COUNT, CARD(count), 0},
	{"memory", VALUE_BYTES, CARD(d.memory_bytes), 0},
	{"reserve", VALUE_BYTES, CARD(d.reserve_bytes), 0},
	{"host_memory", VALUE_BYTES, CARD(d.host_memory_bytes), 0},
	{"pcie", VALUE_RATE, CARD(d.pcie_bytes_per_s), 0},
	{"memory_bandwidth", VALUE_RATE, CARD(d.bandwidths.memory_bytes_per_s), 0},
	{"compute", VALUE_MACS, CARD(d.bandwidths.compute_macs_per_s), 0},
	{NULL, VALUE_NAME, 0, 0},
};

static const struct key link_keys[] = {
	{"latency", VALUE_TIME, offsetof(struct fleet_link, latency_ns), 0},
	{"bandwidth", VALUE_RATE, offsetof(struct fleet_link, bytes_per_s), 0},
	{NULL, VALUE_NAME, 0, 0},
};

/* ---- messages ---- */

static int fail_at(struct walk *w, yaml_mark_t mark, const char *text)
{
	return base_error_set(w->tree.e, -EINVAL, "%s:%zu:%zu: %s", w->f->name, mark.line + 1, mark.column + 1, text);
}

/* ---- scalars ---- */

// "2.5GB/s" without its last two characters.
static int parse_rate(const char *text, double *ret)
{
	char bytes[64];
	uint64_t v;
	size_t n = strlen(text);
	if (n < 3 || n >= sizeof bytes || strcmp(text + n - 2, "/s") != 0)
		return -EINVAL;
	snprintf(bytes, sizeof bytes, "%.*s", (int)(n - 2), text);
	int r = base_units_parse_bytes(bytes, &v);
	*ret = (double)v;
	return r;
}

static int parse_macs(const char *text, double *ret)
{
	static const struct {
		const char *unit;
		double factor;
	} units[] = {{"mac/s", 1}, {"kmac/s", 1e3}, {"Mmac/s", 1e6}, {"Gmac/s", 1e9}, {"Tmac/s", 1e12}};
	size_t digits = strspn(text, "0123456789.");
	const char *unit = text + digits + strspn(text + digits, " ");
	char *end;
	double v = strtod(text, &end);
	for (size_t i = 0; i < base_array_size(units) && digits && end == text + digits; i++) {
		if (strcmp(unit, units[i].unit) == 0 && v <= 1e9) {
			*ret = v * units[i].factor;
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_count(const char *text, uint32_t *ret)
{
	size_t digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 5 || text[digits])
		return -EINVAL;
	unsigned long v = strtoul(text, NULL, 10);
	if (v == 0 || v > FLEET_DEVICES)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

static const char *example(enum value v)
{
	static const char *const examples[] = {"a name", "a path", "a number from 1 to 16384",
		"a size, 16GiB for example", "a rate, 2.5GB/s for example", "a rate, 400Gmac/s for example",
		"a time, 20us for example"};
	return examples[v];
}

static int assign(struct walk *w, const yaml_node_t *n, const struct key *k, void *base)
{
	const char *text = config_tree_scalar(n);
	void *at = (char *)base + k->offset;
	uint64_t ns;
	int r = -EINVAL;
	if (!text || !text[0])
		return config_tree_fail(&w->tree, n, "%s: expected %s", k->name, example(k->value));
	switch (k->value) {
	case VALUE_NAME:
	case VALUE_PATH:
		if (strlen(text) < k->room) {
			snprintf(at, k->room, "%s", text);
			r = 0;
		}
		break;
	case VALUE_COUNT:
		r = parse_count(text, at);
		break;
	case VALUE_BYTES:
		r = base_units_parse_bytes(text, at);
		break;
	case VALUE_RATE:
		r = parse_rate(text, at);
		break;
	case VALUE_MACS:
		r = parse_macs(text, at);
		break;
	case VALUE_TIME:
		r = base_units_parse_duration(text, &ns);
		if (r == 0)
			*(double *)at = (double)ns;
		break;
	}
	return r < 0 ? config_tree_fail(&w->tree, n, "%s: \"%.60s\" is not %s", k->name, text, example(k->value)) : 0;
}

/* ---- mappings ---- */

// A mapping of the keys of a table. extra: a key whose value is handed back as a node.
static int walk_keys(struct walk *w, yaml_node_t *mapping, const char *what, const struct key *keys, void *base,
	const char *extra, yaml_node_t **ret_extra)
{
	if (mapping->type != YAML_MAPPING_NODE)
		return config_tree_fail(&w->tree, mapping, "%s must hold keys", what);
	for (yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < mapping->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(&w->tree, mapping, p);
		if (!name)
			return -EINVAL;
		const struct key *k = keys;
		while (k->name && strcmp(k->name, name) != 0)
			k++;
		if (extra && strcmp(name, extra) == 0) {
			*ret_extra = config_tree_node(&w->tree, p->value);
			continue;
		}
		if (!k->name)
			return config_tree_fail(&w->tree, config_tree_node(&w->tree, p->key),
				"unknown key \"%.60s\" in %s", name, what);
		int r = assign(w, config_tree_node(&w->tree, p->value), k, base);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- machines ---- */

static int add_device(struct walk *w, const yaml_node_t *n, const struct fleet_device *d)
{
	struct config_fleet *f = w->f;
	if (f->devices_count == FLEET_DEVICES)
		return config_tree_fail(&w->tree, n, "more than %u devices", FLEET_DEVICES);
	if (f->devices_count == w->devices_room) {
		uint32_t room = w->devices_room ? w->devices_room * 2 : 16;
		struct fleet_device *all = reallocarray(f->devices, room, sizeof *all);
		if (!all)
			return base_error_set(w->tree.e, -ENOMEM, "%s: out of memory", f->name);
		f->devices = all;
		w->devices_room = room;
	}
	f->devices[f->devices_count++] = *d;
	return 0;
}

static int join_name(struct walk *w, const yaml_node_t *n, char out[FLEET_NAME_BYTES], const char *base, char between,
	const char *number)
{
	int bytes = snprintf(out, FLEET_NAME_BYTES, "%s%c%s", base, between, number);
	return bytes < 0 || bytes >= (int)FLEET_NAME_BYTES
		       ? config_tree_fail(&w->tree, n, "the name \"%.40s...\" is too long", base)
		       : 0;
}

// Devices of one machine; its drive's rate is shared by them all.
static int add_machine_devices(struct walk *w, const yaml_node_t *n, const struct machine *m, const char *host,
	const struct card *cards, uint32_t cards_count, bool own)
{
	uint32_t total = own;
	for (uint32_t i = 0; i < cards_count; i++)
		total += cards[i].count;
	struct fleet_device d = m->d;
	d.memory_bytes = m->m.memory_bytes;
	d.bandwidths.drive_bytes_per_s /= total;
	snprintf(d.name, sizeof d.name, "%s", host);
	snprintf(d.host, sizeof d.host, "%s", host);
	snprintf(d.rack, sizeof d.rack, "%s", m->m.rack);
	int r = own ? add_device(w, n, &d) : 0;
	for (uint32_t i = 0; i < cards_count; i++) {
		for (uint32_t c = 0; c < cards[i].count && r == 0; c++) {
			struct fleet_device card = cards[i].d;
			char name[FLEET_NAME_BYTES], number[16];
			snprintf(number, sizeof number, "%u", c);
			snprintf(name, sizeof name, "%s", cards[i].name);
			if (cards[i].count > 1)
				r = join_name(w, n, name, cards[i].name, '-', number);
			if (r == 0)
				r = join_name(w, n, card.name, host, '/', name);
			card.card = true;
			snprintf(card.host, sizeof card.host, "%s", host);
			snprintf(card.rack, sizeof card.rack, "%s", m->m.rack);
			card.bandwidths.drive_bytes_per_s = d.bandwidths.drive_bytes_per_s;
			if (r == 0)
				r = add_device(w, n, &card);
		}
	}
	return r;
}

static int walk_cards(struct walk *w, const struct machine *m, struct card *cards, uint32_t *ret_count)
{
	uint32_t count = 0;
	if (m->cards && m->cards->type != YAML_SEQUENCE_NODE)
		return config_tree_fail(&w->tree, m->cards, "cards must be a list");
	for (yaml_node_item_t *i = m->cards ? m->cards->data.sequence.items.start : NULL;
		m->cards && i < m->cards->data.sequence.items.top; i++) {
		yaml_node_t *n = config_tree_node(&w->tree, *i);
		if (count == MAX_CARDS)
			return config_tree_fail(&w->tree, n, "more than %u entries in cards", MAX_CARDS);
		struct card *c = &cards[count];
		*c = (struct card){.count = 1};
		snprintf(c->name, sizeof c->name, "gpu%u", count++);
		int r = walk_keys(w, n, "a card", card_keys, c, NULL, NULL);
		if (r < 0)
			return r;
		if (!c->d.memory_bytes)
			return config_tree_fail(&w->tree, n, "card %s: memory is missing", c->name);
	}
	*ret_count = count;
	return 0;
}

static int check_machine(struct walk *w, const yaml_node_t *n, const struct machine *m)
{
	if (!m->m.name[0])
		return config_tree_fail(&w->tree, n, "a machine without a name");
	if (!m->m.memory_bytes && !m->m.topology[0])
		return config_tree_fail(
			&w->tree, n, "machine %s: memory is missing (or topology, a recorded machine)", m->m.name);
	if (w->f->machines_count == CONFIG_FLEET_MACHINES)
		return config_tree_fail(&w->tree, n, "more than %u entries in machines", CONFIG_FLEET_MACHINES);
	return 0;
}

static int walk_machine(struct walk *w, yaml_node_t *n)
{
	struct machine m = {.m.count = 1};
	uint32_t cards_count = 0;
	_cleanup_free_ struct card *cards = calloc(MAX_CARDS, sizeof *cards);
	if (!cards)
		return base_error_set(w->tree.e, -ENOMEM, "%s: out of memory", w->f->name);
	int r = walk_keys(w, n, "a machine", machine_keys, &m, "cards", &m.cards);
	if (r == 0)
		r = check_machine(w, n, &m);
	if (r == 0)
		r = walk_cards(w, &m, cards, &cards_count);
	if (r < 0)
		return r;
	// A machine computes itself unless only its cards were measured.
	bool own = cards_count == 0 || m.d.bandwidths.memory_bytes_per_s > 0 || m.d.bandwidths.compute_macs_per_s > 0;
	m.m.first_device = w->f->devices_count;
	for (uint32_t i = 0; i < m.m.count && r == 0; i++) {
		char host[FLEET_NAME_BYTES], number[16];
		snprintf(number, sizeof number, "%u", i);
		snprintf(host, sizeof host, "%s", m.m.name);
		if (m.m.count > 1)
			r = join_name(w, n, host, m.m.name, '-', number);
		if (r == 0)
			r = add_machine_devices(w, n, &m, host, cards, cards_count, own);
	}
	if (r < 0)
		return r;
	m.m.devices = (w->f->devices_count - m.m.first_device) / m.m.count;
	w->f->machines[w->f->machines_count++] = m.m;
	return 0;
}

static int walk_machines(struct walk *w, yaml_node_t *n)
{
	if (n->type != YAML_SEQUENCE_NODE || n->data.sequence.items.start == n->data.sequence.items.top)
		return config_tree_fail(&w->tree, n, "machines must be a list: lines that start with \"- name: ...\"");
	for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++) {
		int r = walk_machine(w, config_tree_node(&w->tree, *i));
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- links, maps ---- */

static int walk_links(struct walk *w, yaml_node_t *n)
{
	if (n->type != YAML_MAPPING_NODE)
		return config_tree_fail(&w->tree, n, "links must hold host, rack or cluster");
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(&w->tree, n, p);
		if (!name)
			return -EINVAL;
		int c = 0;
		while (c < FLEET_LINK_CLASSES && strcmp(fleet_link_class_name((enum fleet_link_class)c), name) != 0)
			c++;
		if (c == FLEET_LINK_CLASSES)
			return config_tree_fail(&w->tree, config_tree_node(&w->tree, p->key),
				"link class \"%.40s\" is none of host, rack, cluster", name);
		int r = walk_keys(
			w, config_tree_node(&w->tree, p->value), "a link", link_keys, &w->f->links[c], NULL, NULL);
		if (r < 0)
			return r;
	}
	return 0;
}

static int walk_rules(struct walk *w, yaml_node_t *n, const char *what)
{
	struct config_fleet *f = w->f;
	if (f->rules_count)
		return config_tree_fail(&w->tree, n, "pins are for device_map: auto");
	return config_map_walk(&w->tree, n, what, f->rules, &f->rules_count);
}

static int walk_map(struct walk *w, yaml_node_t *n)
{
	const char *text = config_tree_scalar(n);
	if (!text) {
		w->f->map = FLEET_MAP_EXPLICIT;
		return walk_rules(w, n, "device_map");
	}
	if (fleet_map_find(text, &w->f->map) < 0 || w->f->map == FLEET_MAP_EXPLICIT)
		return config_tree_fail(
			&w->tree, n, "device_map: \"%.40s\" is none of auto, balanced, sequential, and no map", text);
	return 0;
}

static int walk_top(struct walk *w, yaml_node_t *root)
{
	bool machines = false;
	if (!root || root->type != YAML_MAPPING_NODE)
		return base_error_set(w->tree.e, -EINVAL, "%s: expected \"machines:\" at the top", w->f->name);
	for (yaml_node_pair_t *p = root->data.mapping.pairs.start; p < root->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(&w->tree, root, p);
		yaml_node_t *value = config_tree_node(&w->tree, p->value);
		int r;
		if (!name)
			return -EINVAL;
		if (strcmp(name, "machines") == 0)
			r = walk_machines(w, value);
		else if (strcmp(name, "links") == 0)
			r = walk_links(w, value);
		else if (strcmp(name, "device_map") == 0)
			r = walk_map(w, value);
		else if (strcmp(name, "pins") == 0)
			r = walk_rules(w, value, "pins");
		else
			return config_tree_fail(&w->tree, config_tree_node(&w->tree, p->key),
				"unknown key \"%.60s\"; machines, links, device_map and pins are known", name);
		if (r < 0)
			return r;
		machines |= strcmp(name, "machines") == 0;
	}
	return machines ? 0 : base_error_set(w->tree.e, -EINVAL, "%s: no machines", w->f->name);
}

static int load(struct walk *w, const char *text, size_t bytes)
{
	yaml_parser_t parser;
	if (!yaml_parser_initialize(&parser))
		return base_error_set(w->tree.e, -ENOMEM, "%s: out of memory", w->f->name);
	yaml_parser_set_input_string(&parser, (const unsigned char *)text, bytes);
	int r = 0;
	if (!yaml_parser_load(&parser, w->tree.document)) {
		r = fail_at(w, parser.problem_mark, parser.problem ? parser.problem : "not YAML");
	} else {
		r = walk_top(w, yaml_document_get_root_node(w->tree.document));
		yaml_document_delete(w->tree.document);
	}
	yaml_parser_delete(&parser);
	return r;
}

int config_fleet_parse(
	const char *text, size_t bytes, const char *name, struct config_fleet *ret_fleet, struct base_error *e)
{
	struct config_fleet f = {0};
	if (bytes > MAX_BYTES)
		return base_error_set(e, -EFBIG, "%s: larger than %u bytes", name, MAX_BYTES);
	snprintf(f.name, sizeof f.name, "%s", name);
	f.machines = calloc(CONFIG_FLEET_MACHINES, sizeof *f.machines);
	f.rules = calloc(CONFIG_FLEET_RULES, sizeof *f.rules);
	yaml_document_t document;
	struct walk w = {.tree = {&document, f.name, e}, .f = &f};
	int r = f.machines && f.rules ? load(&w, text, bytes) : base_error_set(e, -ENOMEM, "%s: out of memory", name);
	if (r < 0) {
		config_fleet_finish(&f);
		return r;
	}
	*ret_fleet = f;
	return 0;
}

int config_fleet_read(const char *path, struct config_fleet *ret_fleet, struct base_error *e)
{
	_cleanup_fclose_ FILE *in = fopen(path, "re");
	_cleanup_free_ char *text = malloc(MAX_BYTES + 1);
	if (!in)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (!text)
		return base_error_set(e, -ENOMEM, "%s: out of memory", path);
	size_t n = fread(text, 1, MAX_BYTES + 1, in);
	if (ferror(in))
		return base_error_set(e, -EIO, "%s: cannot be read", path);
	return config_fleet_parse(text, n, path, ret_fleet, e);
}

void config_fleet_finish(struct config_fleet *f)
{
	free(f->machines);
	free(f->devices);
	free(f->rules);
	*f = (struct config_fleet){0};
}

/* ---- names to numbers ---- */

int config_fleet_find(const struct config_fleet *f, const char *name, uint32_t *ret_device, struct base_error *e)
{
	for (uint32_t i = 0; i < f->devices_count; i++) {
		if (strcmp(f->devices[i].name, name) == 0) {
			*ret_device = i;
			return 0;
		}
	}
	return base_error_set(e, -ENOENT, "there is no device \"%.60s\"", name);
}

int config_fleet_resolve(const struct config_fleet *f, uint32_t layers, struct fleet_map_entry *ret_entries,
	uint32_t *ret_count, struct base_error *e)
{
	for (uint32_t i = 0; i < f->rules_count; i++) {
		int r = config_map_resolve(&f->rules[i], layers, f->devices, f->devices_count, &ret_entries[i], e);
		if (r < 0) {
			base_error_prefix(e, "%s:%u", f->name, f->rules[i].line);
			return -EINVAL;
		}
	}
	*ret_count = f->rules_count;
	return 0;
}
