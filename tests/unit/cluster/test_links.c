// SPDX-License-Identifier: Apache-2.0
// Which links a coordinator has measured, with nodes that are made up: one after the other, kept in a file, and what a
// plan gets of it.
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "tests/lib/wait.h"
#include "tests/lib/world.h"

#define NODES WORLD_NODES

struct scene {
	struct world world;
	uint32_t probes, running, most_running;
	bool refuse; // nodes cannot measure
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
	done.latency_ns = 1000.0 * (a + b);
	done.bytes_per_second = 1e9 / (a + b);
	done.error = (char *)(s->refuse ? "no UCX here" : "");
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
	return s->view.pairs > 0;
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
	assert_int_equal(s->view.pairs, 3);
	assert_int_equal(s->view.measured, 3);
	assert_int_equal(s->probes, 3);
	assert_int_equal(s->most_running, 1);
	assert_true(s->view.latency_ns == 5000); // of n2 and n3
	assert_true(s->view.bytes_per_s == 1e9 / 5);
	assert_true(s->view.oldest_wall_ns <= base_clock_wall_ns());
	struct cluster_view_links now; // as for a plan that would be made now: without a node that is drained
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n2", true, NULL), 0);
	cluster_coordinator_plan_link(s->world.coordinator, &now);
	assert_int_equal(now.pairs, 1);
	assert_int_equal(now.measured, 1);
	assert_true(now.latency_ns < 5000);
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
	assert_int_equal(s->view.measured, 3);
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
	assert_int_equal(s->view.pairs, 1);
	assert_int_equal(s->view.measured, 0);
	assert_true(s->view.latency_ns == 50e3 && s->view.bytes_per_s == 1e9);
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
	assert_int_equal(s->view.measured, 0);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_first_plan_knows_the_links),
		cmocka_unit_test(a_link_that_cannot_be_measured_is_assumed),
		cmocka_unit_test(silence_is_not_waited_for),
		cmocka_unit_test(of_many_nodes_some_pairs_are_measured),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
