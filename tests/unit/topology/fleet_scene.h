/* SPDX-License-Identifier: Apache-2.0
 * Models and devices that tests of the planner share.
 */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "topology/fleet/fleet.h"

#define MIB (1ull << 20)

static inline uint64_t random_next(uint64_t *seed) // splitmix64
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15);
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static inline uint64_t draw(uint64_t *seed, uint64_t from, uint64_t to)
{
	return from + random_next(seed) % (to - from + 1);
}

struct scene {
	struct fleet_layer layers[126];
	struct fleet_model model;
	struct fleet_device devices[128];
	struct fleet_input in;
};

static inline struct fleet_model model_of(const struct fleet_layer *layers, uint32_t count)
{
	return (struct fleet_model){
		.layers = layers,
		.layers_count = count,
		.extent_bytes = MIB / 2,
		.slots_most_bytes = 24 * MIB,
		.slots_share = 8,
		.workspace_bytes = 4 * MIB,
		.width = 576,
		.vocab = 49152,
		.heads = 9,
		.kv_heads = 3,
		.head_dim = 64,
		.block_columns = 32,
		.mlp_blocks = 48,
		.context_tokens = 2048,
		.kv_block_tokens = 16,
	};
}

static inline void make_scene(uint64_t seed, struct scene *s)
{
	uint32_t layers = (uint32_t)draw(&seed, 1, 5), devices = (uint32_t)draw(&seed, 1, 4);
	struct fleet_device kinds[2];
	bool together = draw(&seed, 0, 3) == 0;
	memset(s, 0, sizeof *s);
	for (uint32_t l = 0; l < layers; l++)
		s->layers[l] = (struct fleet_layer){.attention_bytes = draw(&seed, 1, 40) * MIB,
			.mlp_bytes = draw(&seed, 1, 60) * MIB,
			.whole_bytes = draw(&seed, 0, 3) * 4096,
			.macs = draw(&seed, 1, 100) * 1000000};
	s->model = model_of(s->layers, layers);
	s->model.head =
		(struct fleet_layer){.mlp_bytes = draw(&seed, 0, 40) * MIB, .macs = draw(&seed, 0, 60) * 1000000};
	s->model.lookup_bytes = draw(&seed, 0, 1) ? s->model.head.mlp_bytes : draw(&seed, 0, 40) * MIB;
	s->model.tied = s->model.lookup_bytes == s->model.head.mlp_bytes;
	if (draw(&seed, 0, 1)) {
		s->model.heads = 8;
		s->model.kv_heads = 4;
	}
	if (draw(&seed, 0, 3) == 0) // block columns that the heads do not fit
		s->model.block_columns = 256;
	for (unsigned k = 0; k < 2; k++)
		kinds[k] = (struct fleet_device){
			.memory_bytes = (draw(&seed, 0, 3) ? draw(&seed, 20, 200) : draw(&seed, 4, 8)) * MIB,
			.bandwidths = {.drive_bytes_per_s = (double)draw(&seed, 100, 3000) * 1e6,
				.memory_bytes_per_s = (double)draw(&seed, 5, 50) * 1e9,
				.compute_macs_per_s = (double)draw(&seed, 5, 500) * 1e9}};
	for (uint32_t d = 0; d < devices; d++) {
		s->devices[d] = kinds[draw(&seed, 0, 1)];
		snprintf(s->devices[d].name, FLEET_NAME_BYTES, "d%u", d);
		snprintf(s->devices[d].host, FLEET_NAME_BYTES, "h%u", together ? d / 2 : d);
		snprintf(s->devices[d].rack, FLEET_NAME_BYTES, "r%u", (unsigned)(draw(&seed, 0, 3) == 0));
	}
	s->in = (struct fleet_input){.model = &s->model,
		.devices = s->devices,
		.devices_count = devices,
		.objective = draw(&seed, 0, 2) ? FLEET_OBJECTIVE_FULL : FLEET_OBJECTIVE_ONE,
		.sequences = (uint32_t)draw(&seed, 1, 8),
		.overhead_ns = (double)draw(&seed, 0, 100) * 1000};
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c] = (struct fleet_link){.latency_ns = (double)draw(&seed, 1, 60) * 1000 * (c + 1),
			.bytes_per_s = (double)draw(&seed, c ? 0 : 1, 100) * 1e8};
}

/* ---- a model like SmolLM2 135M on hosts of two cores ---- */

static inline void add_device(struct scene *s, const char *host, uint64_t memory_bytes, double drive)
{
	struct fleet_device *d = &s->devices[s->in.devices_count++];
	*d = (struct fleet_device){.memory_bytes = memory_bytes,
		.bandwidths = {.drive_bytes_per_s = drive, .memory_bytes_per_s = 20e9, .compute_macs_per_s = 100e9}};
	snprintf(d->name, sizeof d->name, "%s", host);
	snprintf(d->host, sizeof d->host, "%s", host);
}

static inline struct scene *small_model(uint32_t hosts, uint64_t memory_bytes)
{
	struct scene *s = calloc(1, sizeof *s);
	assert_non_null(s);
	for (unsigned l = 0; l < 30; l++)
		s->layers[l] = (struct fleet_layer){
			.attention_bytes = 800000, .mlp_bytes = 1800000, .whole_bytes = 8192, .macs = 3500000};
	s->model = model_of(s->layers, 30);
	s->model.head = (struct fleet_layer){.mlp_bytes = 30 * MIB, .whole_bytes = 4096, .macs = 28000000};
	s->model.lookup_bytes = 30 * MIB;
	s->model.tied = true;
	s->model.kv_block_bytes = 2ull * 3 * 64 * 16 * 2;
	s->in = (struct fleet_input){.model = &s->model, .devices = s->devices, .sequences = 8, .overhead_ns = 50000};
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c] = (struct fleet_link){.latency_ns = c ? 20000 : 3000, .bytes_per_s = 2e9};
	for (uint32_t i = 0; i < hosts; i++) {
		char name[8] = {'n', (char)('a' + (char)i)};
		add_device(s, name, memory_bytes, 1e9);
	}
	return s;
}
