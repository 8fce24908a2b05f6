// SPDX-License-Identifier: Apache-2.0
// Descriptions of machines: what they become, and what is said of bad ones.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/config_fleet.h"

static int parse(const char *text, struct config_fleet *f, struct base_error *e)
{
	return config_fleet_parse(text, strlen(text), "f.yaml", f, e);
}

static void machines_become_devices(void **state)
{
	struct config_fleet f;
	struct base_error e = {0};
	uint32_t device;
	int r = parse("machines:\n"
		      "  - {name: n, count: 2, rack: r, memory: 16GiB, drive: 2.5GB/s, memory_bandwidth: 20GB/s, "
		      "compute: 400Gmac/s, "
		      "kv: 1GiB}\n"
		      "  - name: g\n"
		      "    memory: 64GiB\n"
		      "    drive: 6GB/s\n"
		      "    cards: [{count: 2, memory: 80GiB, pcie: 25GB/s}, {name: big, memory: 141GiB}]\n"
		      "links: {rack: {latency: 20us, bandwidth: 2GB/s}}\n",
		&f, &e);
	if (r < 0)
		fail_msg("%s", base_error_text(&e));
	static const char *const names[] = {"n-0", "n-1", "g/gpu0-0", "g/gpu0-1", "g/big"};
	assert_int_equal(f.devices_count, 5); // only the cards of g were measured
	for (unsigned i = 0; i < 5; i++)
		assert_string_equal(f.devices[i].name, names[i]);
	assert_string_equal(f.devices[1].host, "n-1");
	assert_string_equal(f.devices[1].rack, "r");
	assert_true(f.devices[0].memory_bytes == 16ull << 30 && f.devices[0].kv_budget_bytes == 1ull << 30);
	assert_true(f.devices[0].bandwidths.drive_bytes_per_s == 2.5e9);
	assert_true(f.devices[0].bandwidths.compute_macs_per_s == 400e9);
	assert_true(f.devices[3].card && !f.devices[0].card);
	assert_true(f.devices[3].bandwidths.drive_bytes_per_s == 2e9); // three share the drive
	assert_true(f.devices[3].pcie_bytes_per_s == 25e9 && f.devices[4].memory_bytes == 141ull << 30);
	assert_true(f.links[FLEET_LINK_RACK].latency_ns == 20000 && f.links[FLEET_LINK_RACK].bytes_per_s == 2e9);
	assert_int_equal(config_fleet_find(&f, "g/big", &device, &e), 0);
	assert_int_equal(device, 4);
	assert_int_equal(config_fleet_find(&f, "g", &device, &e), -ENOENT);
	config_fleet_finish(&f);
}

static void bad_files_are_refused_with_their_place(void **state)
{
	static const struct {
		const char *text, *error;
	} cases[] = {
		{"", "f.yaml: expected \"machines:\" at the top"}, {"[]", "f.yaml: expected \"machines:\" at the top"},
		{"links: {}", "f.yaml: no machines"},
		{"machines: []", "f.yaml:1:11: machines must be a list: lines that start with \"- name: ...\""},
		{"machines:\n  - {memory: 1GiB}", "f.yaml:2:5: a machine without a name"},
		{"machines:\n  - {name: a}",
			"f.yaml:2:5: machine a: memory is missing (or topology, a recorded machine)"},
		{"machines:\n  - {name: a, memory: 64}",
			"f.yaml:2:23: memory: \"64\" is not a size, 16GiB for example"},
		{"machines:\n  - {name: a, memory: 1GiB, drive: 2GB}",
			"f.yaml:2:36: drive: \"2GB\" is not a rate, 2.5GB/s for example"},
		{"machines:\n  - {name: a, memory: 1GiB, compute: fast}",
			"f.yaml:2:38: compute: \"fast\" is not a rate, 400Gmac/s for example"},
		{"machines:\n  - {name: a, memory: 1GiB, count: 0}",
			"f.yaml:2:36: count: \"0\" is not a number from 1 to 16384"},
		{"machines:\n  - {name: a, memory: 1GiB, colour: red}",
			"f.yaml:2:29: unknown key \"colour\" in a machine"},
		{"machines:\n  - {name: a, name: b}", "f.yaml:2:15: duplicate key \"name\""},
		{"machines:\n  - {name: [a], memory: 1GiB}", "f.yaml:2:12: name: expected a name"},
		{"machines:\n  - {name: a, memory: 1GiB, cards: [{count: 1}]}",
			"f.yaml:2:37: card gpu0: memory is missing"},
		{"machines: [{name: a, memory: 1GiB}]\nlinks: {wifi: {latency: 1ms}}",
			"f.yaml:2:9: link class \"wifi\" is none of host, rack, cluster"},
		{"machines: [{name: a, memory: 1GiB}]\ndevice_map: fast",
			"f.yaml:2:13: device_map: \"fast\" is none of auto, balanced, sequential, and no map"},
		{"machines: [{name: a, memory: 1GiB}]\ndevice_map: {head: {device: a, tier: tape}}",
			"f.yaml:2:38: tier \"tape\" is none of auto, device, host, nvme"},
		{"machines: [{name: a, memory: 1GiB}]\ndevice_map: {head: a}\npins: {embed: a}",
			"f.yaml:3:7: pins are for device_map: auto"},
		{"machines: [{name: a, memory: 1GiB}]\nmachine: 1",
			"f.yaml:2:1: unknown key \"machine\"; machines, links, device_map and pins are known"},
		{"machines: [{name: a", NULL}, // libyaml's own words
	};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct config_fleet f;
		struct base_error e = {0};
		assert_int_equal(parse(cases[i].text, &f, &e), -EINVAL);
		if (cases[i].error)
			assert_string_equal(e.message, cases[i].error);
	}
}

static void rules_are_resolved_or_refused(void **state)
{
	struct config_fleet f;
	struct fleet_map_entry entries[FLEET_ENTRIES];
	uint32_t count;
	struct base_error e = {0};
	assert_int_equal(parse("machines: [{name: a, memory: 1GiB}, {name: b, memory: 1GiB}]\n"
			       "device_map:\n  layers.0-3: [a, b]\n  layers.4-9: {device: b, tier: nvme}\n",
				 &f, &e),
		0);
	assert_int_equal(f.map, FLEET_MAP_EXPLICIT);
	assert_int_equal(config_fleet_resolve(&f, 10, entries, &count, &e), 0);
	assert_int_equal(count, 2);
	assert_int_equal(entries[0].devices_count, 2);
	assert_int_equal(entries[1].devices[0], 1);
	assert_int_equal(entries[1].tier, FLEET_TIER_NVME);
	assert_int_equal(config_fleet_resolve(&f, 8, entries, &count, &e), -EINVAL);
	assert_string_equal(e.message, "f.yaml:4: device_map: layers.4-9: the model has layers 0 to 7");
	config_fleet_finish(&f);
	assert_int_equal(parse("machines: [{name: a, memory: 1GiB}]\npins: {layers.1: c}\n", &f, &e), 0);
	assert_int_equal(config_fleet_resolve(&f, 8, entries, &count, &e), -EINVAL);
	assert_string_equal(e.message, "f.yaml:2: there is no device \"c\"");
	config_fleet_finish(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(machines_become_devices),
		cmocka_unit_test(bad_files_are_refused_with_their_place),
		cmocka_unit_test(rules_are_resolved_or_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
