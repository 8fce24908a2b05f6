// SPDX-License-Identifier: Apache-2.0
// Plans: tests/golden/plan/NAME.in holds "field value" lines, NAME.txt what is explained, or the refusal.
#include "tests/lib/testing.h"

#include <inttypes.h>

#include "base/units.h"
#include "tests/golden/compare.h"
#include "topology/plan.h"

struct field {
	const char *name;
	uint64_t *bytes;
	uint32_t *count;
	double *rate;
};

static void set_field(const struct field *f, const char *value)
{
	if (f->bytes)
		assert_int_equal(base_units_parse_bytes(value, f->bytes), 0);
	else if (f->count)
		*f->count = (uint32_t)strtoul(value, NULL, 10);
	else
		*f->rate = strtod(value, NULL);
}

static void read_input(const char *path, struct topology_plan_input *in)
{
	double macs = 0;
	const struct field fields[] = {
		{"pass", .bytes = &in->pass_bytes},
		{"weights_all", .bytes = &in->weights_all_bytes},
		{"weights_min", .bytes = &in->weights_min_bytes},
		{"slots", .bytes = &in->slots_bytes},
		{"workspace", .bytes = &in->workspace_bytes},
		{"kv_block", .bytes = &in->kv_block_bytes},
		{"kv_block_tokens", .count = &in->kv_block_tokens},
		{"context", .count = &in->context_tokens},
		{"sequences", .count = &in->sequences},
		{"token_macs", .rate = &macs},
		{"memory.weights", .bytes = &in->weights_budget_bytes},
		{"memory.kv", .bytes = &in->kv_budget_bytes},
		{"memory.workspace", .bytes = &in->workspace_budget_bytes},
		{"memory", .bytes = &in->memory_bytes},
		{"drive", .rate = &in->bandwidths.drive_bytes_per_s},
		{"bandwidth", .rate = &in->bandwidths.memory_bytes_per_s},
		{"compute", .rate = &in->bandwidths.compute_macs_per_s},
	};
	char name[64], value[64], line[256];
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	assert_non_null(f);
	while (fgets(line, sizeof line, f)) {
		if (line[0] == '#' || sscanf(line, "%63s %63s", name, value) != 2)
			continue;
		size_t i = 0;
		while (i < base_array_size(fields) && strcmp(fields[i].name, name) != 0)
			i++;
		if (i == base_array_size(fields))
			fail_msg("%s: unknown field %s", path, name);
		set_field(&fields[i], value);
	}
	in->token_macs = (uint64_t)macs;
}

static void check_plan(const char *stem)
{
	char path[1100], *text = NULL;
	size_t bytes;
	struct topology_plan_input in = {0};
	struct topology_plan p;
	struct base_error e = {0};
	snprintf(path, sizeof path, "%s.in", stem);
	read_input(path, &in);
	FILE *out = open_memstream(&text, &bytes);
	assert_non_null(out);
	int r = topology_plan_build(&in, &p, &e);
	if (r < 0)
		fprintf(out, "%s\n%s\n", strerror(-r), base_error_text(&e));
	else
		topology_plan_explain(&in, &p, out);
	fclose(out);
	snprintf(path, sizeof path, "%s.txt", stem);
	golden_compare(path, text);
	free(text);
}

static void plans_are_as_recorded(void **state)
{
	assert_true(golden_each(THAW_GOLDEN "/plan", ".in", check_plan) >= 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(plans_are_as_recorded)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
