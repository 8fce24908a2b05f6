/* SPDX-License-Identifier: Apache-2.0
 * Which modules go to which devices: an explicit map, and pins. The same entries in a file of machines (config_fleet.h)
 * and in the configuration of a coordinator (cluster.map, cluster.pins), which keeps them as one line of YAML. Any
 * thread.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "topology/fleet/fleet.h"

#define CONFIG_MAP_BYTES 4096u // of a map as a line
#define CONFIG_MAP_NODES 16u // in a map
#define CONFIG_SIZES 64u // nodes with a size

struct config_rule { // of a map, or a pin
	char modules[64];
	char devices[FLEET_TP][FLEET_NAME_BYTES];
	uint32_t devices_count;
	enum fleet_tier tier;
	unsigned line, column;
};

struct config_size { // of a node
	char node[FLEET_NAME_BYTES];
	uint64_t bytes;
};

/* ---- libyaml's tree; only config*.c ---- */

struct yaml_document_s;
struct yaml_node_s;
struct yaml_node_pair_s;

struct config_tree {
	struct yaml_document_s *document;
	const char *name; // of the file, for messages
	struct base_error *e;
};

struct yaml_node_s *config_tree_node(const struct config_tree *t, int index);
/* The text of a scalar without control characters or NUL, NULL for others. */
const char *config_tree_scalar(const struct yaml_node_s *n);
/* The key of a pair as text, after duplicates were looked for; NULL after a message. */
const char *config_tree_key(
	const struct config_tree *t, struct yaml_node_s *mapping, const struct yaml_node_pair_s *pair);
/* -EINVAL, with the node's place. */
int config_tree_fail(const struct config_tree *t, const struct yaml_node_s *n, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ret_rules: (FLEET_ENTRIES). n NULL: none. what: the key, for messages. */
int config_map_walk(const struct config_tree *t, struct yaml_node_s *n, const char *what, struct config_rule *ret_rules,
	uint32_t *ret_count);

/* ---- of the configuration: devices are nodes ---- */

/* The tree as a line: modules and names are checked. n NULL: none, "". */
int config_map_take(
	const struct config_tree *t, struct yaml_node_s *n, const char *what, char ret_text[static CONFIG_MAP_BYTES]);
/* Any flow or block mapping as the same line; what: the key, whose place in the text is in messages. */
int config_map_normalise(
	const char *text, const char *what, char ret_text[static CONFIG_MAP_BYTES], struct base_error *e);
/* ret_rules: (FLEET_ENTRIES). */
int config_map_parse(
	const char *text, const char *what, struct config_rule *ret_rules, uint32_t *ret_count, struct base_error *e);
/* The same two of nodes and sizes: {node-a: 4GiB}. */
int config_sizes_take(
	const struct config_tree *t, struct yaml_node_s *n, const char *what, char ret_text[static CONFIG_MAP_BYTES]);
int config_sizes_normalise(
	const char *text, const char *what, char ret_text[static CONFIG_MAP_BYTES], struct base_error *e);
int config_sizes_parse(const char *text, const char *what, struct config_size ret_sizes[static CONFIG_SIZES],
	uint32_t *ret_count, struct base_error *e);
/* What an explicit map lacks, or has twice: of a model of so many layers; 0: as far as that shows without one.
 * ret_parts: nodes that share each layer; 0: not as many everywhere. -EINVAL. */
int config_map_check(const char *text, const char *what, uint32_t layers, uint32_t *ret_parts, struct base_error *e);
/* The same of pins. */
int config_map_check_pins(const char *text, const char *what, struct base_error *e);

/* ---- names to numbers ---- */

/* -ENOENT: there is no such device, by name. -EINVAL: the model has no such layers. */
int config_map_resolve(const struct config_rule *rule, uint32_t layers, const struct fleet_device *devices,
	uint32_t devices_count, struct fleet_map_entry *ret_entry, struct base_error *e);
