// SPDX-License-Identifier: Apache-2.0
// Any bytes as a description of machines: refused with a message, or planned for a small model without harm.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/config_fleet.h"

#define DEVICES 12u // that are planned with: the search itself is not what is fuzzed
#define LAYERS 6u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void plan(const struct config_fleet *f)
{
	static const struct fleet_layer layer = {
		.attention_bytes = 1 << 20, .mlp_bytes = 3 << 20, .whole_bytes = 4096, .macs = 4000000};
	struct fleet_layer layers[LAYERS];
	struct fleet_map_entry entries[FLEET_ENTRIES];
	struct base_error e = {0};
	struct fleet_plan p;
	for (unsigned i = 0; i < LAYERS; i++)
		layers[i] = layer;
	struct fleet_model model = {.layers = layers,
		.layers_count = LAYERS,
		.extent_bytes = 65536,
		.heads = 8,
		.kv_heads = 4,
		.head_dim = 64,
		.width = 512,
		.kv_block_bytes = 4096,
		.kv_block_tokens = 16,
		.context_tokens = 256};
	struct fleet_input in = {.model = &model,
		.devices = f->devices,
		.devices_count = f->devices_count < DEVICES ? f->devices_count : DEVICES,
		.map = f->map,
		.entries = entries,
		.sequences = 2};
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		in.links[c] = f->links[c];
	if (config_fleet_resolve(f, LAYERS, entries, &in.entries_count, &e) < 0 || fleet_plan_build(&in, &p, &e) < 0) {
		if (!e.message[0])
			abort();
		return;
	}
	fleet_plan_finish(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct config_fleet f;
	struct base_error e = {0};
	if (config_fleet_parse((const char *)data, bytes, "fuzz.yaml", &f, &e) < 0) {
		if (!e.message[0])
			abort();
		return 0;
	}
	plan(&f);
	config_fleet_finish(&f);
	return 0;
}
