// SPDX-License-Identifier: Apache-2.0
// Verbs that work on files: topology --topology, plan --fleet. No daemon is there to be asked.
#include "tests/lib/testing.h"

#include <string.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "daemon/ctl/ctl.h"

#define MODEL THAW_GOLDEN "/llama.gguf"
#define MACHINE THAW_GOLDEN "/topologies/2s8g8n.xml"

struct shown {
	char *out, *err;
	int exit;
};

static struct shown run(const char *const *words)
{
	struct shown s = {0};
	size_t out_bytes, err_bytes, count = 0;
	char *argv[32] = {(char *)"thawctl"};
	for (; words[count]; count++)
		argv[count + 1] = (char *)words[count];
	struct ctl c = {.in = fopen("/dev/null", "r"),
		.out = open_memstream(&s.out, &out_bytes),
		.err = open_memstream(&s.err, &err_bytes)};
	s.exit = ctl_run(&c, (int)count + 1, argv);
	fclose(c.in);
	fclose(c.out);
	fclose(c.err);
	return s;
}

#define RUN(...) run((const char *const[]){__VA_ARGS__, NULL})

static void drop(struct shown *s)
{
	free(s->out);
	free(s->err);
}

static void expect_error(struct shown s, int exit, const char *err)
{
	if (s.exit != exit || s.out[0] || strcmp(s.err, err) != 0)
		fail_msg("exit %d\nout:\n%s\nerr:\n%s\nwanted %d\n%s", s.exit, s.out, s.err, exit, err);
	drop(&s);
}

static void expect_in(struct shown s, const char *text)
{
	if (s.exit != CTL_OK || !strstr(s.out, text))
		fail_msg("exit %d\nout:\n%s\nerr:\n%s\nwanted %s", s.exit, s.out, s.err, text);
	drop(&s);
}

static char fleet_path[] = "/tmp/thaw-fleet-XXXXXX";

static int write_fleet(void **state)
{
	int fd = mkstemp(fleet_path);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f)
		return -1;
	fprintf(f,
		"machines:\n"
		"  - {name: node, count: 2, rack: \"r<1>\", memory: 64MiB, drive: 100MB/s, memory_bandwidth: 10GB/s, "
		"compute: 50Gmac/s}\n"
		"links: {rack: {latency: 20us, bandwidth: 2GB/s}}\n");
	return fclose(f);
}

static int remove_fleet(void **state)
{
	return unlink(fleet_path);
}

// As much of XML as a browser would stumble over: one root, every tag closed, no bare "<" or "&".
static void check_svg(const char *text)
{
	int depth = 0;
	assert_int_equal(strncmp(text, "<svg xmlns=", 11), 0);
	for (const char *p = text; *p; p++) {
		if (*p == '&')
			assert_true(strncmp(p, "&lt;", 4) == 0 || strncmp(p, "&gt;", 4) == 0 ||
				    strncmp(p, "&amp;", 5) == 0);
		if (*p != '<')
			continue;
		const char *end = strchr(p, '>');
		assert_non_null(end);
		assert_null(memchr(p + 1, '<', (size_t)(end - p - 1)));
		depth += p[1] == '/' ? -1 : end[-1] == '/' ? 0 : 1;
		assert_true(depth >= 0);
		p = end;
	}
	assert_int_equal(depth, 0);
}

static void a_recorded_machine_is_a_table_json_or_a_drawing(void **state)
{
	expect_in(RUN("topology", "--topology", MACHINE), "gpu    gpu7        1  79.2G     -  NVIDIA H100 80GB HBM3\n");
	struct shown s = RUN("topology", "--topology", MACHINE, "-o", "json");
	struct json_object *o = json_tokener_parse(s.out);
	assert_non_null(o);
	assert_int_equal(json_object_array_length(json_object_object_get(o, "devices")), 24);
	assert_int_equal(json_object_array_length(json_object_object_get(o, "cpu_ids")), 64);
	json_object_put(o);
	drop(&s);
	s = RUN("topology", "--topology", MACHINE, "-o", "svg");
	assert_int_equal(s.exit, CTL_OK);
	check_svg(s.out);
	assert_non_null(strstr(s.out, "NUMA node 1: 512 GiB"));
	assert_non_null(strstr(s.out, "nvme7n1"));
	drop(&s);
	s = RUN("topology", "--topology", "/nowhere.xml");
	assert_int_equal(s.exit, CTL_NOT_FOUND);
	drop(&s);
}

static void several_machines_are_a_fleet(void **state)
{
	struct shown s = RUN("topology", "--fleet", fleet_path, "-o", "json");
	struct json_object *o = json_tokener_parse(s.out);
	assert_non_null(o);
	struct json_object *machines = json_object_object_get(o, "machines"),
			   *links = json_object_object_get(o, "links");
	assert_int_equal(json_object_array_length(machines), 2);
	struct json_object *second = json_object_array_get_idx(machines, 1),
			   *link = json_object_array_get_idx(links, 0);
	assert_string_equal(json_object_get_string(json_object_object_get(second, "name")), "node-1");
	assert_int_equal(json_object_get_int64(json_object_object_get(second, "memory_limit_bytes")), 64ll << 20);
	assert_string_equal(json_object_get_string(json_object_object_get(link, "class")), "rack");
	assert_int_equal(json_object_get_int64(json_object_object_get(link, "latency_ns")), 20000);
	json_object_put(o);
	drop(&s);
	s = RUN("topology", "--topology", MACHINE, "--topology", MACHINE, "-o", "svg");
	assert_int_equal(s.exit, CTL_OK);
	check_svg(s.out);
	drop(&s);
	expect_error(RUN("topology", "--fleet", "/nowhere.yaml"), CTL_NOT_FOUND,
		"thawctl: /nowhere.yaml: No such file or directory\n");
	expect_error(RUN("topology", "--fleet", fleet_path, "--topology", MACHINE), CTL_USAGE,
		"thawctl: --fleet and --topology: one of them (machines of a fleet's file name their own)\n");
}

static void a_plan_needs_no_daemon(void **state)
{
	expect_in(RUN("plan", MODEL, "--fleet", fleet_path), "DEVICE");
	expect_in(RUN("plan", MODEL, "--fleet", fleet_path, "--explain", "--simulate"), "simulated: ");
	expect_in(RUN("plan", MODEL, "--fleet", fleet_path, "--device-map", "balanced", "-o", "wide"), "node-1");
	expect_in(RUN("plan", MODEL, "--fleet", fleet_path, "--pin", "head=node-1", "--one-stream"), "node-1");
	struct shown s = RUN("plan", MODEL, "--fleet", fleet_path, "-o", "json", "--simulate");
	struct json_object *o = json_tokener_parse(s.out);
	assert_non_null(o);
	struct json_object *plan = json_object_object_get(o, "plan"), *stage;
	assert_int_equal(json_object_get_int(json_object_object_get(o, "schema_version")), 1);
	stage = json_object_array_get_idx(json_object_object_get(plan, "stages"), 0);
	assert_int_equal(json_object_get_int(json_object_object_get(stage, "first_layer")), 0);
	assert_true(json_object_get_int64(
			    json_object_object_get(json_object_object_get(o, "simulated_one"), "period_ns")) > 0);
	json_object_put(o);
	drop(&s);
	s = RUN("plan", MODEL, "--fleet", fleet_path, "-o", "svg", "--device-map", "balanced");
	assert_int_equal(s.exit, CTL_OK);
	check_svg(s.out);
	assert_non_null(strstr(s.out, "stage 1, layers"));
	drop(&s);
}

static void what_cannot_be_planned_is_said(void **state)
{
	struct shown s =
		RUN("plan", MODEL, "--fleet", fleet_path, "--max-memory", "node-0=1MiB", "--max-memory", "node-1=1MiB");
	assert_int_equal(s.exit, CTL_DOES_NOT_FIT);
	assert_non_null(strstr(s.err, "does not fit: short on "));
	drop(&s);
	expect_error(RUN("plan", MODEL, "--fleet", "/nowhere.yaml"), CTL_NOT_FOUND,
		"thawctl: /nowhere.yaml: No such file or directory\n");
	expect_error(RUN("plan", MODEL, "--fleet", fleet_path, "--max-memory", "node-7=1GiB"), CTL_NOT_FOUND,
		"thawctl: --max-memory: there is no device \"node-7\"\n");
	expect_error(RUN("plan", MODEL, "--fleet", fleet_path, "--max-memory", "node-0"), CTL_USAGE,
		"thawctl: --max-memory: \"node-0\" is not of the form A=B\n");
	expect_error(RUN("plan", MODEL, "--fleet", fleet_path, "--pin", "head=x"), CTL_USAGE,
		"thawctl: --pin: there is no device \"x\"\n");
	expect_error(RUN("plan", MODEL, "--fleet", fleet_path, "--device-map", "explicit"), CTL_USAGE,
		"thawctl: --device-map: \"explicit\" is none of auto, balanced, sequential\n");
	expect_error(
		RUN("models", "-o", "svg"), CTL_USAGE, "thawctl: --output: \"svg\" is none of table, wide, json\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_recorded_machine_is_a_table_json_or_a_drawing),
		cmocka_unit_test(several_machines_are_a_fleet),
		cmocka_unit_test(a_plan_needs_no_daemon),
		cmocka_unit_test(what_cannot_be_planned_is_said),
	};
	return cmocka_run_group_tests(tests, write_fleet, remove_fleet);
}
