// SPDX-License-Identifier: Apache-2.0
// Plans of fleets: tests/golden/fleet/NAME.yaml describes the machines (thaw-fleet.yaml(5)), its first line names a
// model below and options; NAME.txt is what is explained, or the refusal.
#include "tests/lib/testing.h"

#include <inttypes.h>

#include "daemon/config_fleet.h"
#include "tests/golden/compare.h"
#include "topology/fleet/simulate.h"

#define MIB (1ull << 20)
#define GIB (1ull << 30)

struct model {
	const char *name;
	uint32_t layers;
	struct fleet_layer layer, head;
	struct fleet_model sizes;
};

static const struct model models[] = {
	{"smollm2-135m", 30, {640000, 1660000, 8192, 3540000}, {0, 30 * MIB, 4096, 28311552},
		{.lookup_bytes = 30 * MIB + 4096,
			.tied = true,
			.rows_bytes = 512 << 10,
			.extent_bytes = 128 << 10,
			.slots_most_bytes = 24 * MIB,
			.slots_share = 8,
			.workspace_bytes = 20 * MIB,
			.process_bytes = 8 * MIB,
			.kv_block_bytes = 12288,
			.kv_block_tokens = 16,
			.context_tokens = 2048,
			.width = 576,
			.vocab = 49152,
			.heads = 9,
			.kv_heads = 3,
			.head_dim = 64,
			.block_columns = 32,
			.mlp_blocks = 48}},
	{"llama-405b", 126, {600 * MIB, 1270 * MIB, 131072, 3160000000}, {0, 1200 * MIB, 65536, 2101346304},
		{.lookup_bytes = 1200 * MIB,
			.rows_bytes = 512 << 10,
			.extent_bytes = 1 * MIB,
			.slots_most_bytes = 24 * MIB,
			.slots_share = 8,
			.workspace_bytes = 512 * MIB,
			.process_bytes = 8 * MIB,
			.kv_block_bytes = 65536,
			.kv_block_tokens = 16,
			.context_tokens = 32768,
			.width = 16384,
			.vocab = 128256,
			.heads = 128,
			.kv_heads = 8,
			.head_dim = 128,
			.block_columns = 256,
			.mlp_blocks = 208}},
};

static const struct model *find_model(const char *name)
{
	for (size_t i = 0; i < base_array_size(models); i++) {
		if (strcmp(models[i].name, name) == 0)
			return &models[i];
	}
	fail_msg("no model %s", name);
	return NULL;
}

static int plan(
	const struct model *m, const char *options, const struct config_fleet *f, FILE *out, struct base_error *e)
{
	struct fleet_layer layers[126];
	struct fleet_model sizes = m->sizes;
	struct fleet_map_entry entries[FLEET_ENTRIES];
	struct fleet_plan p;
	for (uint32_t l = 0; l < m->layers; l++)
		layers[l] = m->layer;
	sizes.layers = layers;
	sizes.layers_count = m->layers;
	sizes.head = m->head;
	struct fleet_input in = {.model = &sizes,
		.devices = f->devices,
		.devices_count = f->devices_count,
		.map = f->map,
		.entries = entries,
		.sequences = 8,
		.objective = strstr(options, "one-stream") ? FLEET_OBJECTIVE_ONE : FLEET_OBJECTIVE_FULL,
		.overhead_ns = 50000};
	memcpy(in.links, f->links, sizeof in.links);
	int r = config_fleet_resolve(f, m->layers, entries, &in.entries_count, e);
	if (r == 0)
		r = fleet_plan_build(&in, &p, e);
	if (r < 0)
		return r;
	fleet_plan_explain(&in, &p, out);
	if (strstr(options, "simulate")) {
		struct fleet_simulation s;
		assert_int_equal(fleet_simulate(&in, &p, p.full.micro_batches, p.full.positions, 0, &s, e), 0);
		fleet_simulate_print(&in, &p, &s, out);
		fleet_simulate_finish(&s);
	}
	fleet_plan_finish(&p);
	return 0;
}

static void check_fleet(const char *stem)
{
	char path[1100], first[256] = "", name[64] = "", *text = NULL;
	size_t bytes;
	struct config_fleet f;
	struct base_error e = {0};
	snprintf(path, sizeof path, "%s.yaml", stem);
	_cleanup_fclose_ FILE *in = fopen(path, "re");
	assert_non_null(in);
	assert_non_null(fgets(first, sizeof first, in));
	assert_int_equal(sscanf(first, "# %63[a-z0-9-]", name), 1);
	FILE *out = open_memstream(&text, &bytes);
	assert_non_null(out);
	if (config_fleet_read(path, &f, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	int r = plan(find_model(name), first, &f, out, &e);
	if (r < 0)
		fprintf(out, "%s\n%s\n", strerror(-r),
			strncmp(e.message, stem, strlen(stem)) == 0 ? e.message + strlen(stem) : e.message);
	config_fleet_finish(&f);
	fclose(out);
	snprintf(path, sizeof path, "%s.txt", stem);
	golden_compare(path, text);
	free(text);
}

static void fleets_are_planned_as_recorded(void **state)
{
	assert_true(golden_each(THAW_GOLDEN "/fleet", ".yaml", check_fleet) >= 8);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(fleets_are_planned_as_recorded)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
