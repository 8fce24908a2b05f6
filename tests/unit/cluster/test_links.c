// SPDX-License-Identifier: Apache-2.0
// Which links a coordinator has measured, with nodes that are made up: one after the other, kept in a file, and what a
// plan gets of it.
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "tests/lib/wait.h"
#include "tests/lib/world.h"

#define NODES WORLD_NODES

struct scene {
	struct world world;
	uint32_t probes, running, most_running;
	bool refuse; // nodes cannot measure
	bool refuse_inside, refuse_between; // in a rack, and of different ones
	char seen[NODES][NODES]; // pairs that were asked for
	struct cluster_view_links view; // as plan() saw it
	pthread_mutex_t lock; // events
	char events[4096];
};

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	struct scene *s = context;
	pthread_mutex_lock(&s->lock);
	strncat(s->events, kind, sizeof s->events - strlen(s->events) - 1);
	strncat(s->events, text, sizeof s->events - strlen(s->events) - 1);
	pthread_mutex_unlock(&s->lock);
}

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	((struct scene *)context)->view = view->links;
	ret->stages_count = 1;
	ret->stages[0] = (struct cluster_plan_stage){.slice = {0, 1, 0, 1}};
	return 0;
}

static void scene_open(struct scene *s)
{
	world_open(&s->world);
	s->probes = s->running = 0;
	memset(s->seen, 0, sizeof s->seen);
}

static struct scene *scene_create(void)
{
	struct scene *s = calloc(1, sizeof *s);
	pthread_mutex_init(&s->lock, NULL);
	world_init(&s->world, plan, s);
	s->world.config.return_ns = 1;
	s->world.config.links = s->world.folder;
	s->world.config.events = (struct cluster_events){on_event, s};
	scene_open(s);
	return s;
}

static void scene_destroy(struct scene *s)
{
	world_finish(&s->world);
	free(s);
}

static void join(struct scene *s, uint32_t i, uint32_t cpus)
{
	char name[16];
	snprintf(name, sizeof name, "n%u", i);
	world_join(&s->world, i, name, cpus);
}

static int answer(struct scene *s, uint32_t node, const struct cluster_probe *p)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__ProbeReady ready = THAW__NODE__V1__PROBE_READY__INIT;
	Thaw__Node__V1__ProbeDone done = THAW__NODE__V1__PROBE_DONE__INIT;
	ready.probe = done.probe = p->probe;
	ready.port = 1234;
	if (p->me == 0) {
		m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_READY;
		m.probe_ready = &ready;
		return world_say(&s->world, node, &m);
	}
	int a = atoi(strrchr(p->members[0].host, '.') + 1), b = atoi(strrchr(p->members[1].host, '.') + 1);
	assert_int_equal(p->members[0].port, 1234);
	s->running--;
	s->probes++;
	s->seen[a][b] = s->seen[b][a] = 1;
	const char *const *rack = s->world.rack;
	bool between = rack[a] && rack[b] && strcmp(rack[a], rack[b]) != 0;
	done.latency_ns = 1000.0 * (a + b) * (between ? 10 : 1);
	done.bytes_per_second = 1e9 / (a + b) / (between ? 10 : 1);
	bool refuse = s->refuse || (between ? s->refuse_between : s->refuse_inside);
	done.error = (char *)(refuse ? "no UCX here" : "");
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE;
	m.probe_done = &done;
	return world_say(&s->world, node, &m);
}

static void serve(void *context, uint32_t node, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct scene *s = context;
	struct cluster_probe p;
	if (m->what_case != THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE)
		return;
	assert_int_equal(cluster_read_probe(m->probe, &p, NULL), 0);
	s->running += p.me == 0;
	s->most_running = s->running > s->most_running ? s->running : s->most_running;
	assert_int_equal(answer(s, node, &p), 0);
}

static bool serve_all(struct scene *s)
{
	for (uint32_t i = 0; i < NODES; i++)
		world_hear(&s->world, i, serve, s);
	return true;
}

static void serve_until(struct scene *s, bool (*reached)(struct scene *s))
{
	testing_wait_until(serve_all(s) && reached(s));
}

static bool is_planned(struct scene *s)
{
	static struct cluster_group g;
	struct base_error e = {0};
	int status = cluster_fleet_gather(s->world.fleet, &g, &e);
	assert_int_equal(status, -EAGAIN); // nobody packs
	return s->view.all.pairs > 0;
}

static uint32_t links_measured(struct scene *s)
{
	static struct cluster_link_info links[CLUSTER_MAX_LINKS];
	return cluster_coordinator_links(s->world.coordinator, links, CLUSTER_MAX_LINKS);
}

static bool three_are_measured(struct scene *s)
{
	return links_measured(s) == 3 && !s->running;
}

static bool of_the_new_machine(struct scene *s)
{
	return s->probes == 2;
}

static bool all_of_ten(struct scene *s)
{
	return links_measured(s) == 24;
}

/* Measured, or refused by its nodes: one that a busy machine was too late for is tried again. */
static bool all_of_four(struct scene *s)
{
	struct cluster_link_info links[8];
	uint32_t n = cluster_coordinator_links(s->world.coordinator, links, 8), settled = 0;
	for (uint32_t i = 0; i < n; i++)
		settled += links[i].bytes_per_s > 0 || strstr(links[i].error, "no UCX here");
	return settled == 6;
}

static bool all_of_five_racks(struct scene *s)
{
	return links_measured(s) == 27; // 1 with 8, 2 with 7 and 3 with 6, beside those of any ten
}

static bool was_told(struct scene *s)
{
	pthread_mutex_lock(&s->lock);
	bool told = strstr(s->events, "link_not_measured");
	pthread_mutex_unlock(&s->lock);
	return told;
}

/* ---- tests ---- */

static void the_first_plan_knows_the_links(void **state)
{
	struct scene *s = scene_create();
	for (uint32_t i = 1; i < 4; i++)
		join(s, i, 2);
	serve_until(s, three_are_measured);
	serve_until(s, is_planned);
	assert_int_equal(s->view.all.pairs, 3);
	assert_int_equal(s->view.all.measured, 3);
	assert_int_equal(s->probes, 3);
	assert_int_equal(s->most_running, 1);
	assert_true(s->view.all.latency_ns == 5000); // of n2 and n3
	assert_true(s->view.all.bytes_per_s == 1e9 / 5);
	assert_true(s->view.all.oldest_wall_ns <= base_clock_wall_ns());
	struct cluster_view_links now; // as for a plan that would be made now: without a node that is drained
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n2", true, NULL), 0);
	cluster_coordinator_plan_link(s->world.coordinator, &now);
	assert_int_equal(now.all.pairs, 1);
	assert_int_equal(now.all.measured, 1);
	assert_true(now.all.latency_ns < 5000);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n2", false, NULL), 0);
	world_close(&s->world);
	/* What was measured is kept, but not for a machine that is another one now. */
	s->view = (struct cluster_view_links){0};
	scene_open(s);
	join(s, 1, 2);
	join(s, 2, 2);
	join(s, 3, 64);
	serve_until(s, of_the_new_machine);
	serve_until(s, is_planned);
	assert_int_equal(s->view.all.measured, 3);
	assert_int_equal(s->probes, 2);
	assert_false(s->seen[1][2]);
	scene_destroy(s);
}

static void a_link_that_cannot_be_measured_is_assumed(void **state)
{
	struct scene *s = scene_create();
	s->refuse = true;
	join(s, 1, 2);
	join(s, 2, 2);
	serve_until(s, was_told);
	serve_until(s, is_planned);
	assert_int_equal(s->view.all.pairs, 1);
	assert_int_equal(s->view.all.measured, 0);
	assert_true(s->view.all.latency_ns == 50e3 && s->view.all.bytes_per_s == 1e9);
	assert_non_null(strstr(s->events, "between nodes n1 and n2: n2: no UCX here; planned with"));
	struct cluster_link_info link;
	assert_int_equal(cluster_coordinator_links(s->world.coordinator, &link, 1), 1);
	assert_true(link.bytes_per_s == 0);
	assert_string_equal(link.error, "n2: no UCX here");
	assert_int_equal(s->probes, 1); // not again at once
	scene_destroy(s);
}

/* Nodes that never answer keep no plan waiting for long. */
static void silence_is_not_waited_for(void **state)
{
	struct scene *s = scene_create();
	join(s, 1, 2);
	join(s, 2, 2);
	testing_wait_until(is_planned(s));
	assert_int_equal(s->view.all.measured, 0);
	scene_destroy(s);
}

/* Of ten nodes not all 45 pairs are measured: each with the first one and with two on each side. */
static void of_many_nodes_some_pairs_are_measured(void **state)
{
	struct scene *s = scene_create();
	for (uint32_t i = 0; i < NODES; i++)
		join(s, i, 2);
	serve_until(s, all_of_ten);
	for (uint32_t i = 1; i < NODES; i++)
		assert_true(s->seen[0][i]);
	assert_true(s->seen[9][1] && s->seen[4][6]);
	assert_false(s->seen[4][7]);
	assert_int_equal(s->most_running, 1);
	scene_destroy(s);
}

static void check_view(const struct cluster_view_link *v, uint32_t pairs, uint32_t measured, uint32_t names)
{
	assert_int_equal(v->pairs, pairs);
	assert_int_equal(v->measured, measured);
	assert_true(v->latency_ns == (names ? 1000.0 * names : 50e3));
	assert_true(
		v->bytes_per_s > (names ? 1e9 / names : 1e9) - 1 && v->bytes_per_s < (names ? 1e9 / names : 1e9) + 1);
}

/* Two racks of two: what was measured inside counts inside, and what between them between them. Where nothing was, as the
 * next wider, and where nothing is wider, as all. */
static void links_of_a_rack_count_by_themselves(void **state)
{
	static const struct { // figures are the sum of two nodes' numbers, between racks ten times that
		bool refuse_inside, refuse_between;
		uint32_t inside, between, all;
	} cases[] = {
		{false, false, 7, 60, 60}, {true, false, 60, 60, 60}, {false, true, 7, 7, 7}, {true, true, 0, 0, 0}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct scene *s = scene_create();
		uint32_t inside = cases[i].refuse_inside ? 0 : 2, between = cases[i].refuse_between ? 0 : 4;
		s->refuse_inside = cases[i].refuse_inside;
		s->refuse_between = cases[i].refuse_between;
		for (uint32_t n = 1; n < 5; n++) {
			s->world.rack[n] = n < 3 ? "east" : "west";
			join(s, n, 2);
		}
		serve_until(s, all_of_four);
		serve_until(s, is_planned);
		check_view(&s->view.all, 6, inside + between, cases[i].all);
		check_view(&s->view.of[FLEET_LINK_RACK], 2, inside, cases[i].inside);
		check_view(&s->view.of[FLEET_LINK_CLUSTER], 4, between, cases[i].between);
		struct cluster_link_info links[8];
		assert_int_equal(cluster_coordinator_links(s->world.coordinator, links, 8), 6);
		for (uint32_t k = 0; k < 6; k++) {
			bool first = links[k].node[0][1] < '3', second = links[k].node[1][1] < '3';
			assert_int_equal(links[k].class, first == second ? FLEET_LINK_RACK : FLEET_LINK_CLUSTER);
		}
		/* A node that says none is in none, with nobody. */
		struct cluster_view_links now;
		world_leave(&s->world, 2);
		world_leave(&s->world, 4);
		s->world.rack[2] = s->world.rack[4] = NULL;
		join(s, 2, 2);
		join(s, 4, 2);
		cluster_coordinator_plan_link(s->world.coordinator, &now);
		assert_int_equal(now.of[FLEET_LINK_RACK].pairs, 0);
		assert_int_equal(now.of[FLEET_LINK_CLUSTER].pairs, 6);
		scene_destroy(s);
	}
}

/* Of ten nodes in five racks those of each are measured, too, where they are no neighbours. */
static void no_rack_is_taken_to_be_like_another(void **state)
{
	static const char *const racks[] = {"a", "b", "c", "d", "e", "e", "d", "c", "b", "a"};
	struct scene *s = scene_create();
	for (uint32_t i = 0; i < NODES; i++) {
		s->world.rack[i] = racks[i];
		join(s, i, 2);
	}
	serve_until(s, all_of_five_racks);
	for (uint32_t i = 0; i < NODES; i++)
		assert_true(s->seen[i][9 - i]);
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_plan_knows_the_links),
		cmocka_unit_test(a_link_that_cannot_be_measured_is_assumed),
		cmocka_unit_test(silence_is_not_waited_for),
		cmocka_unit_test(of_many_nodes_some_pairs_are_measured),
		cmocka_unit_test(links_of_a_rack_count_by_themselves),
		cmocka_unit_test(no_rack_is_taken_to_be_like_another),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
