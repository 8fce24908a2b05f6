// SPDX-License-Identifier: Apache-2.0
#include "daemon/config_map.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <yaml.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "daemon/cluster/identity.h"

/* ---- the tree ---- */

int config_tree_fail(const struct config_tree *t, const yaml_node_t *n, const char *fmt, ...)
{
	char text[320];
	va_list args;
	va_start(args, fmt);
	vsnprintf(text, sizeof text, fmt, args);
	va_end(args);
	return base_error_set(
		t->e, -EINVAL, "%s:%zu:%zu: %s", t->name, n->start_mark.line + 1, n->start_mark.column + 1, text);
}

yaml_node_t *config_tree_node(const struct config_tree *t, int index)
{
	return yaml_document_get_node(t->document, index);
}

const char *config_tree_scalar(const yaml_node_t *n)
{
	if (!n || n->type != YAML_SCALAR_NODE)
		return NULL;
	const char *text = (const char *)n->data.scalar.value;
	for (size_t i = 0; i < n->data.scalar.length; i++) {
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return NULL;
	}
	return text;
}

const char *config_tree_key(const struct config_tree *t, yaml_node_t *mapping, const yaml_node_pair_t *pair)
{
	const yaml_node_t *n = config_tree_node(t, pair->key);
	const char *text = config_tree_scalar(n);
	if (!text) {
		config_tree_fail(t, n, "a key must be a word");
		return NULL;
	}
	for (const yaml_node_pair_t *p = mapping->data.mapping.pairs.start; p < pair; p++) {
		const char *other = config_tree_scalar(config_tree_node(t, p->key));
		if (other && strcmp(other, text) == 0) {
			config_tree_fail(t, n, "duplicate key \"%.60s\"", text);
			return NULL;
		}
	}
	return text;
}

/* ---- rules ---- */

static int add_device(const struct config_tree *t, const yaml_node_t *n, struct config_rule *rule)
{
	const char *name = config_tree_scalar(n);
	if (!name || !name[0] || strlen(name) >= FLEET_NAME_BYTES)
		return config_tree_fail(t, n, "expected the name of a device");
	if (rule->devices_count == FLEET_TP)
		return config_tree_fail(t, n, "more than %u devices for one entry", FLEET_TP);
	snprintf(rule->devices[rule->devices_count++], FLEET_NAME_BYTES, "%s", name);
	return 0;
}

static int walk_devices(const struct config_tree *t, yaml_node_t *n, struct config_rule *rule)
{
	if (n->type != YAML_SEQUENCE_NODE)
		return add_device(t, n, rule);
	for (yaml_node_item_t *i = n->data.sequence.items.start; i < n->data.sequence.items.top; i++) {
		int r = add_device(t, config_tree_node(t, *i), rule);
		if (r < 0)
			return r;
	}
	return 0;
}

// NAME, [NAME, NAME], or {devices: ..., tier: ...}
static int walk_rule(const struct config_tree *t, yaml_node_t *n, struct config_rule *rule)
{
	if (n->type != YAML_MAPPING_NODE)
		return walk_devices(t, n, rule);
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(t, n, p);
		yaml_node_t *value = config_tree_node(t, p->value);
		int r;
		if (!name)
			return -EINVAL;
		if (strcmp(name, "devices") == 0 || strcmp(name, "device") == 0) {
			r = walk_devices(t, value, rule);
		} else if (strcmp(name, "tier") == 0) {
			struct base_error inner = {0};
			const char *tier = config_tree_scalar(value);
			r = fleet_map_parse_tier(tier ? tier : "", &rule->tier, &inner);
			if (r < 0)
				return config_tree_fail(t, value, "%s", inner.message);
		} else {
			return config_tree_fail(t, config_tree_node(t, p->key),
				"unknown key \"%.60s\"; devices and tier are known", name);
		}
		if (r < 0)
			return r;
	}
	return 0;
}

int config_map_walk(const struct config_tree *t, yaml_node_t *n, const char *what, struct config_rule *ret_rules,
	uint32_t *ret_count)
{
	uint32_t count = 0;
	if (!n) {
		*ret_count = 0;
		return 0;
	}
	if (n->type != YAML_MAPPING_NODE)
		return config_tree_fail(t, n, "%s must hold modules: \"layers.0-9: NAME\"", what);
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(t, n, p);
		const yaml_node_t *key = config_tree_node(t, p->key);
		if (!name)
			return -EINVAL;
		if (count == FLEET_ENTRIES)
			return config_tree_fail(t, key, "more than %u entries in %s", FLEET_ENTRIES, what);
		struct config_rule *rule = &ret_rules[count++];
		*rule = (struct config_rule){
			.line = (unsigned)key->start_mark.line + 1, .column = (unsigned)key->start_mark.column + 1};
		if (strlen(name) >= sizeof rule->modules)
			return config_tree_fail(t, key, "module \"%.40s...\" is too long", name);
		snprintf(rule->modules, sizeof rule->modules, "%s", name);
		int r = walk_rule(t, config_tree_node(t, p->value), rule);
		if (r < 0)
			return r;
	}
	*ret_count = count;
	return 0;
}

int config_map_resolve(const struct config_rule *rule, uint32_t layers, const struct fleet_device *devices,
	uint32_t devices_count, struct fleet_map_entry *ret_entry, struct base_error *e)
{
	struct fleet_map_entry x = {.tier = rule->tier, .devices_count = rule->devices_count};
	int r = fleet_map_parse_modules(rule->modules, layers, &x, e);
	for (uint32_t k = 0; k < rule->devices_count && r == 0; k++) {
		uint32_t i = 0;
		while (i < devices_count && strcmp(devices[i].name, rule->devices[k]) != 0)
			i++;
		x.devices[k] = i;
		if (i == devices_count)
			r = base_error_set(e, -ENOENT, "there is no device \"%.60s\"", rule->devices[k]);
	}
	if (r == 0)
		*ret_entry = x;
	return r;
}

/* ---- as a line ---- */

static void print_rule(const struct config_rule *rule, FILE *out)
{
	bool braces = rule->tier != FLEET_TIER_AUTO || rule->devices_count == 0, list = rule->devices_count > 1;
	fprintf(out, "%s: %s", rule->modules[0] ? rule->modules : "layers", braces ? "{" : "");
	if (braces && rule->devices_count)
		fprintf(out, "%s: ", list ? "devices" : "device");
	for (uint32_t i = 0; i < rule->devices_count; i++)
		fprintf(out, "%s%s", i ? ", " : list ? "[" : "", rule->devices[i]);
	fprintf(out, "%s", list ? "]" : "");
	if (braces)
		fprintf(out, "%stier: %s}", rule->devices_count ? ", " : "", fleet_tier_name(rule->tier));
}

static int print_rules(const struct config_tree *t, const char *what, const struct config_rule *rules, uint32_t count,
	char ret_text[static CONFIG_MAP_BYTES])
{
	_cleanup_free_ char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (!out)
		return base_error_set(t->e, -ENOMEM, "%s: out of memory", t->name);
	for (uint32_t i = 0; i < count; i++) {
		fprintf(out, "%s", i ? ", " : "{");
		print_rule(&rules[i], out);
	}
	fprintf(out, "%s", count ? "}" : "");
	if (fclose(out))
		return base_error_set(t->e, -ENOMEM, "%s: out of memory", t->name);
	if (bytes >= CONFIG_MAP_BYTES)
		return base_error_set(t->e, -E2BIG, "%s: %s has %zu bytes, at most %u fit", t->name, what, bytes,
			CONFIG_MAP_BYTES - 1);
	memcpy(ret_text, text, bytes + 1);
	return 0;
}

/* What every map of nodes must hold to. */
static int check_rule(const struct config_tree *t, const struct config_rule *rule)
{
	struct fleet_map_entry unused;
	struct base_error inner = {0};
	int r = fleet_map_parse_modules(rule->modules, FLEET_LAYERS, &unused, &inner);
	for (uint32_t i = 0; i < rule->devices_count && r == 0; i++)
		r = cluster_name_check(rule->modules, rule->devices[i], &inner);
	if (r < 0)
		return base_error_set(t->e, -EINVAL, "%s:%u:%u: %s", t->name, rule->line, rule->column, inner.message);
	return 0;
}

int config_map_take(
	const struct config_tree *t, yaml_node_t *n, const char *what, char ret_text[static CONFIG_MAP_BYTES])
{
	_cleanup_free_ struct config_rule *rules = calloc(FLEET_ENTRIES, sizeof *rules);
	uint32_t count = 0;
	if (!rules)
		return base_error_set(t->e, -ENOMEM, "%s: out of memory", t->name);
	int r = config_map_walk(t, n, what, rules, &count);
	for (uint32_t i = 0; i < count && r == 0; i++)
		r = check_rule(t, &rules[i]);
	return r < 0 ? r : print_rules(t, what, rules, count, ret_text);
}

/* ---- nodes and sizes ---- */

static int walk_sizes(const struct config_tree *t, yaml_node_t *n, const char *what,
	struct config_size ret_sizes[static CONFIG_SIZES], uint32_t *ret_count)
{
	uint32_t count = 0;
	if (!n) {
		*ret_count = 0;
		return 0;
	}
	if (n->type != YAML_MAPPING_NODE)
		return config_tree_fail(t, n, "%s must hold nodes: \"NAME: 4GiB\"", what);
	for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++) {
		const char *name = config_tree_key(t, n, p), *size = config_tree_scalar(config_tree_node(t, p->value));
		struct base_error inner = {0};
		if (!name)
			return -EINVAL;
		if (count == CONFIG_SIZES)
			return config_tree_fail(
				t, config_tree_node(t, p->key), "more than %u nodes in %s", CONFIG_SIZES, what);
		if (cluster_name_check(what, name, &inner) < 0)
			return config_tree_fail(t, config_tree_node(t, p->key), "%s", inner.message);
		struct config_size *x = &ret_sizes[count++];
		snprintf(x->node, sizeof x->node, "%s", name);
		if (!size || base_units_parse_bytes(size, &x->bytes) < 0)
			return config_tree_fail(t, config_tree_node(t, p->value),
				"%s: \"%.60s\" is not a size, 4GiB for example", name, size ? size : "");
	}
	*ret_count = count;
	return 0;
}

int config_sizes_take(
	const struct config_tree *t, yaml_node_t *n, const char *what, char ret_text[static CONFIG_MAP_BYTES])
{
	struct config_size sizes[CONFIG_SIZES];
	uint32_t count = 0;
	char text[CONFIG_MAP_BYTES] = "", size[BASE_UNITS_TEXT_BYTES];
	size_t at = 0;
	int r = walk_sizes(t, n, what, sizes, &count);
	for (uint32_t i = 0; i < count && r == 0 && at < sizeof text; i++) {
		at += (size_t)snprintf(text + at, sizeof text - at, "%s%s: %s%s", i ? ", " : "{", sizes[i].node,
			base_units_exact_bytes(sizes[i].bytes, size), i + 1 == count ? "}" : "");
	}
	if (r == 0 && at >= sizeof text)
		r = base_error_set(t->e, -E2BIG, "%s: %s: at most %u bytes fit", t->name, what, CONFIG_MAP_BYTES - 1);
	if (r == 0)
		memcpy(ret_text, text, at + 1);
	return r;
}

/* ---- from text ---- */

struct parsed {
	yaml_document_t document;
	struct config_tree tree; // its document NULL: none is there
	yaml_node_t *root; // NULL: the text is empty
};

static void finish(struct parsed *x)
{
	if (x->tree.document)
		yaml_document_delete(x->tree.document);
}

static int parse(const char *text, const char *what, struct parsed *ret, struct base_error *e)
{
	yaml_parser_t parser;
	int r = 0;
	if (!yaml_parser_initialize(&parser))
		return base_error_set(e, -ENOMEM, "%s: out of memory", what);
	yaml_parser_set_input_string(&parser, (const unsigned char *)text, strlen(text));
	if (!yaml_parser_load(&parser, &ret->document))
		r = base_error_set(e, -EINVAL, "%s:%zu:%zu: %s", what, parser.problem_mark.line + 1,
			parser.problem_mark.column + 1, parser.problem ? parser.problem : "not YAML");
	yaml_parser_delete(&parser);
	if (r < 0)
		return r;
	ret->tree = (struct config_tree){&ret->document, what, e};
	ret->root = yaml_document_get_root_node(&ret->document);
	return 0;
}

int config_map_normalise(
	const char *text, const char *what, char ret_text[static CONFIG_MAP_BYTES], struct base_error *e)
{
	_cleanup_(finish) struct parsed x = {0};
	int r = parse(text, what, &x, e);
	return r < 0 ? r : config_map_take(&x.tree, x.root, what, ret_text);
}

int config_map_parse(
	const char *text, const char *what, struct config_rule *ret_rules, uint32_t *ret_count, struct base_error *e)
{
	_cleanup_(finish) struct parsed x = {0};
	int r = parse(text, what, &x, e);
	return r < 0 ? r : config_map_walk(&x.tree, x.root, what, ret_rules, ret_count);
}

int config_sizes_normalise(
	const char *text, const char *what, char ret_text[static CONFIG_MAP_BYTES], struct base_error *e)
{
	_cleanup_(finish) struct parsed x = {0};
	int r = parse(text, what, &x, e);
	return r < 0 ? r : config_sizes_take(&x.tree, x.root, what, ret_text);
}

int config_sizes_parse(const char *text, const char *what, struct config_size ret_sizes[static CONFIG_SIZES],
	uint32_t *ret_count, struct base_error *e)
{
	_cleanup_(finish) struct parsed x = {0};
	int r = parse(text, what, &x, e);
	return r < 0 ? r : walk_sizes(&x.tree, x.root, what, ret_sizes, ret_count);
}

/* ---- what shows without the nodes ---- */

struct check {
	struct config_rule rules[FLEET_ENTRIES];
	struct fleet_map_entry entries[FLEET_ENTRIES];
	struct fleet_device nodes[CONFIG_MAP_NODES];
};

static int name_nodes(
	struct check *c, const struct config_rule *rule, const char *what, uint32_t *in_out_count, struct base_error *e)
{
	for (uint32_t k = 0; k < rule->devices_count; k++) {
		uint32_t i = 0;
		while (i < *in_out_count && strcmp(c->nodes[i].name, rule->devices[k]) != 0)
			i++;
		if (i < *in_out_count)
			continue;
		if (i == CONFIG_MAP_NODES)
			return base_error_set(e, -EINVAL, "%s: more than %u nodes", what, CONFIG_MAP_NODES);
		memcpy(c->nodes[i].name, rule->devices[k], sizeof c->nodes[i].name);
		++*in_out_count;
	}
	return 0;
}

/* Nodes that share each layer; 0: not as many everywhere. */
static uint32_t parts_of(const struct fleet_map_entry *entries, uint32_t count)
{
	const struct fleet_map_entry *first = NULL;
	for (uint32_t i = 0; i < count; i++) {
		if (entries[i].module != FLEET_MODULE_LAYERS)
			continue;
		first = first ? first : &entries[i];
		if (entries[i].devices_count != first->devices_count)
			return 0;
	}
	return first ? first->devices_count : 1;
}

int config_map_check_pins(const char *text, const char *what, struct base_error *e)
{
	_cleanup_free_ struct check *c = calloc(1, sizeof *c);
	uint32_t count = 0, nodes = 0;
	if (!c)
		return base_error_set(e, -ENOMEM, "%s: out of memory", what);
	int r = config_map_parse(text, what, c->rules, &count, e);
	for (uint32_t i = 0; i < count && r == 0; i++) {
		r = name_nodes(c, &c->rules[i], what, &nodes, e);
		if (r == 0 && c->rules[i].devices_count > 1)
			r = base_error_set(e, -EINVAL, "%s: %s: a pin names one node", what, c->rules[i].modules);
	}
	return r;
}

int config_map_check(const char *text, const char *what, uint32_t layers, uint32_t *ret_parts, struct base_error *e)
{
	_cleanup_free_ struct check *c = calloc(1, sizeof *c);
	uint32_t count = 0, nodes = 0, highest = 0;
	if (!c)
		return base_error_set(e, -ENOMEM, "%s: out of memory", what);
	int r = config_map_parse(text, what, c->rules, &count, e);
	for (uint32_t i = 0; i < count && r == 0; i++)
		r = name_nodes(c, &c->rules[i], what, &nodes, e);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < count && r == 0; i++) {
		r = config_map_resolve(
			&c->rules[i], layers ? layers : FLEET_LAYERS, c->nodes, nodes, &c->entries[i], e);
		if (r == 0 && c->entries[i].module == FLEET_MODULE_LAYERS && c->entries[i].last_layer > highest)
			highest = c->entries[i].last_layer;
	}
	const struct fleet_input in = {
		.devices = c->nodes, .devices_count = nodes, .entries = c->entries, .entries_count = count};
	if (r == 0)
		r = fleet_map_check_layers(&in, layers ? layers : highest + 1, e);
	if (r < 0) {
		base_error_prefix(e, "%s", what);
		return r;
	}
	*ret_parts = parts_of(c->entries, count);
	return 0;
}
