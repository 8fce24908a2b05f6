// SPDX-License-Identifier: Apache-2.0
// cluster.pins in the plan of a fleet, whose nodes are made up: what is pinned is on its node or there is no plan.
#include "tests/lib/testing.h"

#include "tests/unit/server/plan_scene.h"

static int plan(struct scene *s, const char *pins, const char *device_map)
{
	snprintf(s->server.config.cluster.pins, sizeof s->server.config.cluster.pins, "%s", pins);
	return scene_plan(s, device_map);
}

/* "0-2:b 3-7:a": who has which layers, as the operator is shown it. */
static void expect(struct scene *s, const char *pins, const char *device_map, const char *want)
{
	char got[128] = "", layers[16], node[16];
	if (plan(s, pins, device_map))
		fail_msg("%s", base_error_text(&s->e));
	for (const char *line = strchr(s->info.explanation, '\n'); line; line = strchr(line + 1, '\n')) {
		size_t n = strlen(got);
		if (sscanf(line, "\n%*u %*u/%*u %15s %15s ", layers, node) != 2)
			break;
		snprintf(got + n, sizeof got - n, "%s%s:%s", n ? " " : "", layers, node);
	}
	if (strcmp(got, want) != 0)
		fail_msg("%s, not %s:\n%s", got, want, s->info.explanation);
}

static void pinned_layers_are_on_their_node(void **state)
{
	struct scene *s = scene_create(false);
	world_join(&s->world, 0, "a", 4);
	world_join(&s->world, 1, "b", 4);
	expect(s, "", "", "0-7:a"); // all fits in one
	expect(s, "{head: b}", "", "0-7:b");
	expect(s, "{layers.0-2: b, layers.3: a}", "", "0-2:b 3-7:a");
	expect(s, "{layers.0-2: b, layers.3: a}", "sequential", "0-7:a"); // they are of auto
	scene_destroy(s);
}

static void a_node_that_is_pinned_to_is_waited_for(void **state)
{
	struct scene *s = scene_create(false);
	world_join(&s->world, 0, "a", 4);
	assert_int_equal(plan(s, "{layers.0: b}", ""), -EHOSTDOWN);
	assert_string_equal(s->e.message,
		"cluster.pins: layers.0 is on node b, which is not there, is drained or cannot do it: thawctl nodes");
	world_join(&s->world, 1, "b", 4);
	assert_int_equal(plan(s, "{layers.0: b}", ""), 0);
	assert_int_equal(plan(s, "{layers.8: b}", ""), -EINVAL); // it has eight
	assert_non_null(strstr(s->e.message, "cluster.pins: "));
	world_leave(&s->world, 1);
	assert_int_equal(plan(s, "{layers.0: b}", ""), -EHOSTDOWN);
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pinned_layers_are_on_their_node),
		cmocka_unit_test(a_node_that_is_pinned_to_is_waited_for),
	};
	return cmocka_run_group_tests_name("server_pins", tests, NULL, NULL);
}
