// SPDX-License-Identifier: Apache-2.0
// cluster.rack in the plan of a fleet, whose nodes and links are made up: who shares layers, and what it says of links.
#include "tests/lib/testing.h"

#include "base/cleanup.h"
#include "tests/lib/wait.h"
#include "tests/unit/server/plan_scene.h"

static struct scene *racks_create(const char *const *racks, uint32_t nodes)
{
	struct scene *s = scene_create(true);
	s->server.config.compute.tensor = 2;
	for (uint32_t i = 0; i < nodes; i++) {
		char name[2] = {(char)('a' + (char)i)};
		s->world.rack[i] = racks[i];
		world_join(&s->world, i, name, 4);
	}
	return s;
}

/* 2 us inside a rack, 5 ms otherwise. */
static void answer(void *context, uint32_t node, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct scene *s = context;
	struct cluster_probe p;
	Thaw__Node__V1__NodeMessage reply = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__ProbeReady ready = THAW__NODE__V1__PROBE_READY__INIT;
	Thaw__Node__V1__ProbeDone done = THAW__NODE__V1__PROBE_DONE__INIT;
	if (m->what_case != THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE)
		return;
	assert_int_equal(cluster_read_probe(m->probe, &p, NULL), 0);
	ready.probe = done.probe = p.probe;
	ready.port = 1234;
	int a = atoi(strrchr(p.members[0].host, '.') + 1), b = atoi(strrchr(p.members[1].host, '.') + 1);
	bool inside = s->world.rack[a] && s->world.rack[b] && strcmp(s->world.rack[a], s->world.rack[b]) == 0;
	done.latency_ns = inside ? 2e3 : 5e6;
	done.bytes_per_second = inside ? 4e9 : 5e8;
	reply.what_case =
		p.me ? THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE : THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_READY;
	if (p.me)
		reply.probe_done = &done;
	else
		reply.probe_ready = &ready;
	assert_int_equal(world_say(&s->world, node, &reply), 0);
}

static bool are_measured(struct scene *s, uint32_t links)
{
	static struct cluster_link_info list[CLUSTER_MAX_LINKS];
	for (uint32_t i = 0; i < WORLD_NODES; i++)
		world_hear(&s->world, i, answer, s);
	uint32_t n = cluster_coordinator_links(s->world.coordinator, list, CLUSTER_MAX_LINKS), measured = 0;
	for (uint32_t i = 0; i < n; i++)
		measured += list[i].bytes_per_s > 0; // one that a busy machine was too late for is tried again
	return measured == links;
}

static void explain(struct scene *s)
{
	if (scene_plan(s, ""))
		fail_msg("%s", base_error_text(&s->e));
}

static void expect(struct scene *s, const char *want)
{
	if (!strstr(s->info.explanation, want))
		fail_msg("no %s in\n%s", want, s->info.explanation);
}

static void parts_are_of_a_rack(void **state)
{
	static const char *const racks[] = {"east", "west", "west"};
	struct scene *s = racks_create(racks, 3);
	testing_wait_until(are_measured(s, 3));
	explain(s);
	expect(s, "\n0      0/2    0-7        b ");
	expect(s, "\n0      1/2    0-7        c ");
	expect(s, "  (rack)\n");
	expect(s, "\nlinks inside racks: 2.0 us and 4.00 GB/s, the slowest of 1 that were measured");
	expect(s, "\nlinks between racks: 5000.0 us and 0.50 GB/s, the slowest of 2 that were measured");
	scene_destroy(s);
}

/* Two that must share and stand apart, one of them nowhere: as if nobody had said a rack. */
static void nobody_is_kept_from_sharing(void **state)
{
	static const char *const racks[][2] = {{"east", "west"}, {"east", NULL}, {NULL, NULL}};
	for (size_t i = 0; i < base_array_size(racks); i++) {
		struct scene *s = racks_create(racks[i], 2);
		testing_wait_until(are_measured(s, 1));
		explain(s);
		expect(s, "\n0      0/2    0-7        a ");
		expect(s, "  (cluster)\n");
		expect(s, "\nlinks between nodes: 5000.0 us and 0.50 GB/s, the slowest of 1 that were measured");
		scene_destroy(s);
	}
}

/* Four parts where each rack has two nodes. */
static void racks_are_left_aside_for_what_is_wanted(void **state)
{
	static const char *const racks[] = {"east", "west", "west", "east"};
	struct scene *s = racks_create(racks, 4);
	testing_wait_until(are_measured(s, 6));
	struct tiny_model m = {.layers = 8, .vocab = 320, .heads = 4, .kv_heads = 4};
	assert_int_equal(tiny_model_save(&m, s->path), 0);
	s->server.config.compute.tensor = 4;
	explain(s);
	expect(s, "\n0      3/4    0-7        d ");
	expect(s, "  (cluster)\n");
	expect(s, "\nparts of a stage in one rack");
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parts_are_of_a_rack),
		cmocka_unit_test(nobody_is_kept_from_sharing),
		cmocka_unit_test(racks_are_left_aside_for_what_is_wanted),
	};
	return cmocka_run_group_tests_name("server_racks", tests, NULL, NULL);
}
