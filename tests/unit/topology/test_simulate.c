// SPDX-License-Identifier: Apache-2.0
// The simulation against the closed form: equal where all is hot, near where extents have a grain; and how far it goes.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>

#include "tests/unit/topology/fleet_scene.h"
#include "topology/fleet/simulate.h"

static bool all_hot(const struct fleet_plan *p)
{
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		if (p->ranks[i].share.cold_bytes)
			return false;
	}
	return true;
}

// Over random plans and numbers of micro-batches.
static void hot_plans_take_what_the_closed_form_says(void **state)
{
	struct scene *s = calloc(1, sizeof *s);
	unsigned checked = 0, pipelines = 0, groups = 0;
	assert_non_null(s);
	for (uint64_t seed = 1; seed <= 400; seed++) {
		struct fleet_plan p;
		make_scene(seed, s);
		for (uint32_t d = 0; d < s->in.devices_count; d++)
			s->devices[d].memory_bytes += 1024 * MIB;
		s->in.map = seed % 2 ? FLEET_MAP_AUTO : FLEET_MAP_BALANCED;
		assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
		assert_true(all_hot(&p));
		for (uint32_t k = 1; k <= 9; k += 2) {
			struct fleet_simulation sim;
			assert_int_equal(fleet_simulate(&s->in, &p, k, 1 + (uint32_t)seed % 5, 128, &sim, NULL), 0);
			if (fabs(sim.period_ns / sim.predicted_ns - 1) > 1e-9)
				fail_msg("seed %lu, %u micro-batches: simulated %.3f, predicted %.3f",
					(unsigned long)seed, k, sim.period_ns, sim.predicted_ns);
			checked++;
			pipelines += p.stages_count > 1;
			groups += p.ranks_count > p.stages_count;
			fleet_simulate_finish(&sim);
		}
		fleet_plan_finish(&p);
	}
	free(s);
	assert_true(checked == 2000 && pipelines > 500 && groups > 100);
}

// Extents of 512 KiB of stages of some MiB: up to one extent for each stage may be waited for that the formula has not.
static void cold_plans_come_near(void **state)
{
	struct scene *s = calloc(1, sizeof *s);
	unsigned checked = 0;
	assert_non_null(s);
	for (uint64_t seed = 1; seed <= 400; seed++) {
		struct fleet_plan p;
		make_scene(seed, s);
		if (fleet_plan_build(&s->in, &p, NULL) < 0)
			continue;
		for (uint32_t k = 1; k <= 3 && !all_hot(&p); k++) {
			struct fleet_simulation sim;
			double grain = 0;
			for (uint32_t i = 0; i < p.ranks_count; i++) {
				const struct topology_plan *share = &p.ranks[i].share;
				double reads = ceil((double)share->cold_bytes / (double)s->model.extent_bytes);
				grain += reads > 0
						 ? 2 * share->pass_ns_disk / reads + 2 * share->pass_ns_memory / reads +
							   2 * share->token_ns_compute / reads
						 : 0;
			}
			assert_int_equal(fleet_simulate(&s->in, &p, k, 1, 64, &sim, NULL), 0);
			if (fabs(sim.period_ns - sim.predicted_ns) > 1e-6 * sim.predicted_ns + k * grain)
				fail_msg("seed %lu, %u micro-batches: simulated %.0f, predicted %.0f, grain %.0f",
					(unsigned long)seed, k, sim.period_ns, sim.predicted_ns, grain);
			checked++;
			fleet_simulate_finish(&sim);
		}
		fleet_plan_finish(&p);
	}
	free(s);
	assert_true(checked > 100);
}

// One disk-bound stage: the drive never idles, whatever the ring.
static void a_disk_bound_stage_keeps_its_drive_busy(void **state)
{
	struct scene *s = small_model(1, 60 * MIB);
	struct fleet_plan p;
	struct fleet_simulation sim;
	s->devices[0].bandwidths.drive_bytes_per_s = 1e8;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(fleet_simulate(&s->in, &p, 1, 1, 64, &sim, NULL), 0);
	assert_true(fabs(sim.period_ns / p.ranks[0].share.pass_ns_disk - 1) < 1e-3);
	assert_true(sim.stages[0].drive > 0.999 && sim.stages[0].stall > 0.5);
	fleet_simulate_finish(&sim);
	fleet_plan_finish(&p);
	free(s);
}

// Two hosts, one stream: each drive waits for its turn once its ring is full; two streams keep both busy.
static void one_stream_leaves_drives_idle_and_two_do_not(void **state)
{
	struct scene *s = small_model(2, 35 * MIB);
	const struct fleet_map_entry map[2] = {{.last_layer = 17, .devices = {0}, .devices_count = 1},
		{.first_layer = 18, .last_layer = 29, .devices = {1}, .devices_count = 1}};
	struct fleet_plan p;
	struct fleet_simulation one, two;
	s->devices[0].bandwidths.drive_bytes_per_s = s->devices[1].bandwidths.drive_bytes_per_s = 1e8;
	assert_int_equal(fleet_plan_evaluate(&s->in, map, 2, &p, NULL), 0);
	assert_int_equal(fleet_simulate(&s->in, &p, 1, 1, 64, &one, NULL), 0);
	assert_int_equal(fleet_simulate(&s->in, &p, 2, 1, 64, &two, NULL), 0);
	assert_true(one.stages[0].drive < 0.8);
	assert_true(two.stages[0].drive > 0.95 || two.stages[1].drive > 0.95);
	assert_true(two.tokens_per_s > 1.3 * one.tokens_per_s);
	fleet_simulate_finish(&one);
	fleet_simulate_finish(&two);
	fleet_plan_finish(&p);
	free(s);
}

// 1000 stages of 10 ranks, each with cold weights: reads are made longer, so that their number stays bounded.
static void ten_thousand_ranks_are_simulated(void **state)
{
	struct scene *s = small_model(1, 64 * MIB);
	struct fleet_layer *layers = calloc(1000, sizeof *layers);
	struct fleet_plan p = {.stages_count = 1000, .ranks_count = 10000, .measured = true};
	struct fleet_simulation sim;
	p.stages = calloc(p.stages_count, sizeof *p.stages);
	p.ranks = calloc(p.ranks_count, sizeof *p.ranks);
	assert_true(layers && p.stages && p.ranks);
	s->model.layers = layers;
	s->model.layers_count = 1000;
	for (uint32_t i = 0; i < p.stages_count; i++)
		p.stages[i] = (struct fleet_stage){.first_layer = i,
			.layers = 1,
			.tp = 10,
			.first_rank = 10 * i,
			.link = FLEET_LINK_RACK,
			.link_next = FLEET_LINK_CLUSTER};
	for (uint32_t i = 0; i < p.ranks_count; i++)
		p.ranks[i] = (struct fleet_rank){.stage = i / 10,
			.tp_rank = i % 10,
			.device = 0,
			.share = {.hot_bytes = 16 * MIB,
				.cold_bytes = 32 * MIB,
				.slots_bytes = 8 * MIB,
				.pass_ns_disk = 32e6,
				.pass_ns_memory = 5e6,
				.token_ns_compute = 1e6}};
	assert_int_equal(fleet_simulate(&s->in, &p, 64, 1, 8, &sim, NULL), 0);
	assert_true(sim.events >= 7ull * 64 * 1000 && sim.reads > 10000000 &&
		    sim.reads < FLEET_SIMULATE_STEPS + 10000 * 100);
	assert_true(sim.tokens_per_s > 0);
	fleet_simulate_finish(&sim);
	fleet_plan_finish(&p);
	free(layers);
	free(s);
}

static void what_is_out_of_range_is_refused(void **state)
{
	struct scene *s = small_model(1, 300 * MIB);
	struct fleet_plan p;
	struct fleet_simulation sim;
	struct base_error e = {0};
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(fleet_simulate(&s->in, &p, 1, 1, 100000, &sim, &e), -EINVAL);
	assert_int_equal(fleet_simulate(&s->in, &p, 0, 1, 8, &sim, &e), -EINVAL);
	assert_int_equal(fleet_simulate(&s->in, &p, 5000, 1, 8, &sim, &e), -EINVAL);
	assert_int_equal(fleet_simulate(&s->in, &p, 1, 0, 8, &sim, &e), -EINVAL);
	fleet_plan_finish(&p);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hot_plans_take_what_the_closed_form_says),
		cmocka_unit_test(cold_plans_come_near),
		cmocka_unit_test(a_disk_bound_stage_keeps_its_drive_busy),
		cmocka_unit_test(one_stream_leaves_drives_idle_and_two_do_not),
		cmocka_unit_test(ten_thousand_ranks_are_simulated),
		cmocka_unit_test(what_is_out_of_range_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
