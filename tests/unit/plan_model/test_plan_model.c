// SPDX-License-Identifier: Apache-2.0
// The planner's bytes are the rank's: shares of a plan against rank_get_needs for the same slices.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/plan_model.h"

static const struct rank_config config = {
	.batch_tokens = 64, .logits_rows = 8, .sequences = 4, .context_tokens = 128, .kv_type = KV_F16};

static struct program *open_program(const char *path, struct format_gguf **ret_gguf)
{
	struct program *p = NULL;
	struct base_error e = {0};
	if (format_gguf_open(path, ret_gguf, &e) < 0 || program_build(*ret_gguf, &p, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	return p;
}

static void check_split(const struct program *p, const struct plan_model *m, uint32_t border)
{
	struct fleet_device devices[2] = {{.name = "a", .host = "a", .memory_bytes = 1ull << 40},
		{.name = "b", .host = "b", .memory_bytes = 1ull << 40}};
	const struct fleet_map_entry map[2] = {{.last_layer = border - 1, .devices = {0}, .devices_count = 1},
		{.first_layer = border, .last_layer = p->config.layers - 1, .devices = {1}, .devices_count = 1}};
	struct fleet_input in = {.model = &m->sizes, .devices = devices, .devices_count = 2, .sequences = 4};
	uint32_t stages = border < p->config.layers ? 2 : 1;
	for (int least = 0; least < 2; least++) {
		struct fleet_plan plan;
		struct base_error e = {0};
		if (fleet_plan_evaluate(&in, map, stages, &plan, &e) < 0)
			fail_msg("%s", base_error_text(&e));
		for (uint32_t i = 0; i < stages; i++) {
			const struct topology_plan *share = &plan.ranks[i].share;
			struct rank_config c = config;
			struct rank_needs n;
			c.slice = (struct pack_slice){.first_layer = plan.stages[i].first_layer,
				.layers = plan.stages[i].layers,
				.tp_size = 1};
			assert_int_equal(rank_get_needs(p, &c, &n, NULL), 0);
			assert_int_equal(plan.ranks[i].kv_block_bytes, n.kv_block_bytes);
			assert_int_equal(share->workspace_bytes, n.workspace_bytes);
			assert_int_equal(share->hot_bytes + share->cold_bytes, n.pass_bytes);
			uint64_t least_bytes =
				n.weights_min_bytes < n.weights_all_bytes ? n.weights_min_bytes : n.weights_all_bytes;
			assert_int_equal(share->weights_bytes, least ? least_bytes : n.weights_all_bytes);
			devices[i].weights_budget_bytes = least_bytes;
		}
		fleet_plan_finish(&plan);
	}
	// One byte less than the least is refused, as the rank would.
	struct fleet_plan plan;
	struct base_error e = {0};
	devices[0].weights_budget_bytes--;
	assert_int_equal(fleet_plan_evaluate(&in, map, stages, &plan, &e), -ENOMEM);
	assert_non_null(strstr(e.message, ": 1 bytes short"));
}

static void shares_are_what_ranks_need(void **state)
{
	static const char *const models[] = {THAW_GOLDEN "/llama.gguf", THAW_GOLDEN "/llama-rope3.gguf"};
	for (unsigned i = 0; i < sizeof models / sizeof models[0]; i++) {
		struct format_gguf *g;
		struct program *p = open_program(models[i], &g);
		struct plan_model m;
		struct base_error e = {0};
		if (plan_model_init(p, &config, 0, &m, &e) < 0)
			fail_msg("%s", base_error_text(&e));
		uint64_t macs = m.sizes.head.macs;
		for (uint32_t l = 0; l < m.sizes.layers_count; l++) {
			macs += m.layers[l].macs;
			assert_true(m.layers[l].attention_bytes > 0 && m.layers[l].mlp_bytes > 0);
		}
		assert_int_equal(macs, program_token_macs(p));
		for (uint32_t border = 1; border <= p->config.layers; border++)
			check_split(p, &m, border);
		plan_model_finish(&m);
		program_destroy(p);
		format_gguf_close(g);
	}
}

// Largest of the ranks that share all layers, against what the planner counts for each of them: never less than a rank
// needs at least, and off by no more than the borders of extents.
static void parts_are_what_ranks_need(void **state)
{
	struct format_gguf *g;
	struct program *p = open_program(THAW_GOLDEN "/llama.gguf", &g);
	struct plan_model m;
	struct base_error e = {0};
	unsigned checked = 0;
	assert_int_equal(plan_model_init(p, &config, 0, &m, &e), 0);
	for (uint32_t tp = 2; tp <= 8; tp++) {
		char reason[192];
		bool possible = fleet_tp_possible(&m.sizes, tp, reason, sizeof reason);
		assert_int_equal(possible, program_check_parts(p, tp, NULL) == 0);
		if (!possible)
			continue;
		struct fleet_device devices[8];
		struct fleet_map_entry map = {.last_layer = p->config.layers - 1, .devices_count = tp};
		for (uint32_t i = 0; i < tp; i++) {
			devices[i] = (struct fleet_device){.memory_bytes = 1ull << 40};
			snprintf(devices[i].name, sizeof devices[i].name, "d%u", i);
			map.devices[i] = i;
		}
		struct fleet_input in = {.model = &m.sizes, .devices = devices, .devices_count = tp, .sequences = 4};
		struct fleet_plan plan;
		assert_int_equal(fleet_plan_evaluate(&in, &map, 1, &plan, &e), 0);
		for (uint32_t i = 0; i < tp; i++) {
			struct rank_config c = config;
			struct rank_needs n;
			c.slice = (struct pack_slice){.layers = p->config.layers, .tp_rank = i, .tp_size = tp};
			assert_int_equal(rank_get_needs(p, &c, &n, NULL), 0);
			assert_int_equal(plan.ranks[i].kv_block_bytes, n.kv_block_bytes);
			assert_true(plan.ranks[i].share.workspace_bytes >= n.workspace_bytes);
			assert_true(plan.ranks[i].share.weights_bytes + (2u << 20) >= n.weights_all_bytes);
			uint64_t pass = plan.ranks[i].share.hot_bytes + (uint64_t)p->config.layers * 8192 + 65536;
			if (pass < n.pass_bytes)
				fail_msg("%u of %u: %lu planned, %lu needed", i, tp, (unsigned long)pass,
					(unsigned long)n.pass_bytes);
		}
		fleet_plan_finish(&plan);
		checked++;
	}
	assert_true(checked > 0);
	plan_model_finish(&m);
	program_destroy(p);
	format_gguf_close(g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(shares_are_what_ranks_need), cmocka_unit_test(parts_are_what_ranks_need)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
