/* SPDX-License-Identifier: Apache-2.0
 * A description of machines, links and a device map: what `thawctl plan --fleet` works on when no daemon runs. YAML
 * (and so JSON), strict; thaw-fleet.yaml(5) describes it. Parsing reads nothing but the text given. One thread.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "daemon/config_map.h"

#define CONFIG_FLEET_MACHINES 1024u // entries; each may count for many
#define CONFIG_FLEET_RULES FLEET_ENTRIES
#define CONFIG_FLEET_PATH_BYTES 512u

struct config_machine { // an entry of `machines`
	char name[FLEET_NAME_BYTES], rack[FLEET_NAME_BYTES];
	char topology[CONFIG_FLEET_PATH_BYTES]; // recorded hwloc XML, as written; "" for none
	uint32_t count, first_device, devices; // devices: of each of them, the machine's own included
	uint64_t memory_bytes; // 0: not given
};

struct config_fleet {
	struct config_machine *machines;
	uint32_t machines_count;
	struct fleet_device *devices; // (devices_count), machine by machine
	uint32_t devices_count;
	struct fleet_link links[FLEET_LINK_CLASSES];
	enum fleet_map map;
	struct config_rule *rules; // (rules_count): of the map if it is explicit, else pins
	uint32_t rules_count;
	char name[256]; // of the file, for messages
};

/* -EINVAL with file:line:column. A machine without `memory` has memory_bytes 0 in its devices until somebody fills
 * it. */
int config_fleet_parse(
	const char *text, size_t bytes, const char *name, struct config_fleet *ret_fleet, struct base_error *e);
int config_fleet_read(const char *path, struct config_fleet *ret_fleet, struct base_error *e);
void config_fleet_finish(struct config_fleet *f);

/* The rules with device numbers, for a model. ret_entries: (FLEET_ENTRIES). */
int config_fleet_resolve(const struct config_fleet *f, uint32_t layers, struct fleet_map_entry *ret_entries,
	uint32_t *ret_count, struct base_error *e);
/* -ENOENT names it. */
int config_fleet_find(const struct config_fleet *f, const char *name, uint32_t *ret_device, struct base_error *e);
