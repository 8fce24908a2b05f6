// SPDX-License-Identifier: Apache-2.0
// Properties of plans over many budgets; the texts are in tests/golden/plan.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "topology/plan.h"

#define MIB (1ull << 20)

static struct topology_plan_input input(void)
{
	return (struct topology_plan_input){
		.pass_bytes = 3000 * MIB,
		.weights_all_bytes = 3200 * MIB,
		.weights_min_bytes = 300 * MIB,
		.slots_bytes = 128 * MIB,
		.workspace_bytes = 200 * MIB,
		.kv_block_bytes = 2 * MIB,
		.kv_block_tokens = 16,
		.context_tokens = 4096,
		.sequences = 8,
		.token_macs = 6000000000,
		.memory_bytes = 16384 * MIB,
		.bandwidths = {.drive_bytes_per_s = 2.5e9, .memory_bytes_per_s = 20e9, .compute_macs_per_s = 400e9},
	};
}

static void budgets_hold_and_more_is_never_colder(void **state)
{
	struct topology_plan_input in = input();
	uint64_t before = 0;
	unsigned plans = 0;
	for (in.memory_bytes = 512 * MIB; in.memory_bytes <= 10000 * MIB; in.memory_bytes += 7 * MIB) {
		struct topology_plan p;
		struct base_error e = {0};
		if (topology_plan_build(&in, &p, &e) < 0) {
			assert_int_equal(before, 0); // what fits once fits with more
			assert_non_null(strstr(e.message, "bytes short"));
			continue;
		}
		assert_true(p.weights_bytes + p.kv_bytes + p.workspace_bytes <= in.memory_bytes);
		assert_true(p.weights_bytes >= in.weights_min_bytes && p.kv_bytes >= 512 * MIB);
		assert_int_equal(p.hot_bytes + p.cold_bytes, in.pass_bytes);
		assert_int_equal(p.kv_blocks * in.kv_block_bytes, p.kv_bytes);
		assert_true(p.weights_bytes + 2 * MIB >= before);
		before = p.weights_bytes;
		plans++;
	}
	assert_true(plans > 1000);
	assert_int_equal(before, in.weights_all_bytes);
}

// What the message offers must be enough.
static void the_help_in_a_refusal_helps(void **state)
{
	struct topology_plan_input in = input();
	struct topology_plan p;
	struct base_error e = {0};
	in.memory_bytes = 900 * MIB;
	assert_int_equal(topology_plan_build(&in, &p, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "117440512 bytes short"));
	assert_non_null(strstr(e.message, "from 4096 to 3200 tokens"));
	in.context_tokens = 3200;
	assert_int_equal(topology_plan_build(&in, &p, &e), 0);
	in = input();
	in.weights_budget_bytes = in.weights_min_bytes - 1;
	assert_int_equal(topology_plan_build(&in, &p, &e), -ENOMEM);
	assert_non_null(strstr(e.message, ": 1 bytes short"));
	in.weights_budget_bytes++;
	assert_int_equal(topology_plan_build(&in, &p, &e), 0);
	in.kv_budget_bytes = 256 * MIB;
	assert_int_equal(topology_plan_build(&in, &p, &e), -ENOMEM);
	in.context_tokens = 2048;
	assert_int_equal(topology_plan_build(&in, &p, &e), 0);
}

static void the_bound_is_the_largest_of_three(void **state)
{
	struct topology_plan_input in = input();
	struct topology_plan p;
	enum topology_resource r;
	in.weights_budget_bytes = 1128 * MIB; // 1000 MiB hot, 2000 MiB cold
	assert_int_equal(topology_plan_build(&in, &p, NULL), 0);
	assert_int_equal(p.hot_bytes, 1000 * MIB);
	double disk = 2000.0 * MIB / 2.5e9 * 1e9;
	assert_true(fabs(topology_plan_bound_ns(&p, 1, &r) - disk) < 1);
	assert_int_equal(r, TOPOLOGY_RESOURCE_DISK);
	assert_true(fabs(p.pass_ns_memory - 5000.0 * MIB / 20e9 * 1e9) < 1);
	assert_true(fabs(p.token_ns_compute - 15e6) < 1);
	assert_true(fabs(topology_plan_bound_ns(&p, 100, &r) - 1500e6) < 1);
	assert_int_equal(r, TOPOLOGY_RESOURCE_COMPUTE);
	assert_true(fabs(p.tokens_per_s_full - 8 * p.tokens_per_s_one) < 1e-6); // company is free below n*
	in.weights_budget_bytes = 0;
	assert_int_equal(topology_plan_build(&in, &p, NULL), 0);
	topology_plan_bound_ns(&p, 1, &r);
	assert_int_equal(r, TOPOLOGY_RESOURCE_MEMORY);
}

// 400 GB cold on a drive of 2 GB/s: a healthy pass takes longer than the default of scheduler.stuck.
static void slow_plans_get_patience(void **state)
{
	struct topology_plan p = {.hot_bytes = 1000000000, .pass_ns_disk = 200e9, .token_ns_compute = 1e9};
	assert_true(topology_plan_patience_ns(&p, 1, 120000000000) >= 8 * 200000000000);
	assert_true(topology_plan_patience_ns(&p, 4096, 120000000000) >= 8 * 4096000000000);
	p = (struct topology_plan){.hot_bytes = 1000000000, .pass_ns_memory = 1e8};
	assert_int_equal(topology_plan_patience_ns(&p, 256, 120000000000), 120000000000);
	assert_int_equal(topology_plan_patience_ns(&(struct topology_plan){0}, 256, 7), 7);
}

static void what_cannot_be_used_does_not_count(void **state)
{
	struct topology_plan_input in = input();
	struct topology_plan p;
	in.weights_budget_bytes = in.kv_budget_bytes = in.workspace_budget_bytes = 1ull << 50;
	in.memory_bytes = in.weights_all_bytes + in.workspace_bytes + (1ull << 40);
	assert_int_equal(topology_plan_build(&in, &p, NULL), 0);
	assert_int_equal(p.weights_bytes, in.weights_all_bytes);
	assert_int_equal(p.workspace_bytes, in.workspace_bytes);
	assert_int_equal(p.cold_bytes, 0);
}

static void hostile_sizes_are_refused(void **state)
{
	struct topology_plan_input in = input();
	struct topology_plan p;
	in.kv_block_bytes = UINT64_MAX / 2;
	assert_int_equal(topology_plan_build(&in, &p, NULL), -EOVERFLOW);
	in = input();
	in.weights_all_bytes = in.weights_budget_bytes = UINT64_MAX;
	assert_int_equal(topology_plan_build(&in, &p, NULL), -EOVERFLOW);
	in = input();
	in.kv_block_tokens = 0;
	assert_int_equal(topology_plan_build(&in, &p, NULL), -EINVAL);
	in = input();
	in.pass_bytes = in.weights_all_bytes + 1;
	assert_int_equal(topology_plan_build(&in, &p, NULL), -EINVAL);
}

static void names_are_for_people(void **state)
{
	assert_string_equal(topology_resource_name(TOPOLOGY_RESOURCE_DISK), "disk");
	assert_string_equal(topology_resource_name((enum topology_resource)9), "unknown");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(budgets_hold_and_more_is_never_colder),
		cmocka_unit_test(the_help_in_a_refusal_helps),
		cmocka_unit_test(the_bound_is_the_largest_of_three),
		cmocka_unit_test(slow_plans_get_patience),
		cmocka_unit_test(what_cannot_be_used_does_not_count),
		cmocka_unit_test(hostile_sizes_are_refused),
		cmocka_unit_test(names_are_for_people),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
