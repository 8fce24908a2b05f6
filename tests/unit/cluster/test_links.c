// SPDX-License-Identifier: Apache-2.0
// Which links a coordinator has measured, with nodes that are made up: one after the other, kept in a file, and what a plan gets of it.
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "proto/check.h"

#define MS 1000000ull
#define WAIT_NS (60 * BASE_NS_PER_SECOND)
#define NODES 10u

struct node {
	struct cluster_session *session;
	char name[16];
	uint64_t incarnation;
};

struct world {
	char folder[64];
	struct cluster_coordinator *c;
	struct cluster_fleet *fleet;
	struct node node[NODES];
	uint32_t probes, running, most_running;
	bool refuse; // nodes cannot measure
	char seen[NODES][NODES]; // pairs that were asked for
	struct cluster_view_links view; // as plan() saw it
	pthread_mutex_t lock; // events
	char events[4096];
};

static void wake(void *context)
{
}

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	struct world *w = context;
	pthread_mutex_lock(&w->lock);
	strncat(w->events, kind, sizeof w->events - strlen(w->events) - 1);
	strncat(w->events, text, sizeof w->events - strlen(w->events) - 1);
	pthread_mutex_unlock(&w->lock);
}

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	((struct world *)context)->view = view->links;
	ret->stages_count = 1;
	ret->stages[0] = (struct cluster_plan_stage){.slice = {0, 1, 0, 1}};
	return 0;
}

static int listen_here(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	*ret_self = (struct cluster_member){.host = "127.0.0.1", .port = 999};
	return 0;
}

static void regather(void *context, const char *why)
{
}

static void broken(void *context)
{
}

static void world_open(struct world *w)
{
	struct cluster_state *s;
	struct base_error e = {0};
	const struct cluster_state_config file = {.who = "head", .directory = w->folder};
	const struct cluster_coordinator_config c = {.cluster = "lab",
		.node = "head",
		.version = "1",
		.host = "127.0.0.1",
		.heartbeat_ns = 60000 * MS,
		.lost_ns = 600000 * MS,
		.return_ns = 1,
		.links = w->folder,
		.events = {on_event, w}};
	const struct cluster_fleet_config f = {.model = "m",
		.path = "/m",
		.file_fd = -1,
		.plan = plan,
		.listen = listen_here,
		.regather = regather,
		.broken = broken,
		.context = w};
	if (cluster_state_file_ops.open(&file, &s, &e) || cluster_coordinator_create(&c, s, &w->c, &e) ||
		cluster_fleet_create(w->c, &f, &w->fleet, &e))
		fail_msg("%s", base_error_text(&e));
	w->probes = w->running = 0;
	memset(w->seen, 0, sizeof w->seen);
}

static struct world *world_create(void)
{
	struct world *w = calloc(1, sizeof *w);
	pthread_mutex_init(&w->lock, NULL);
	snprintf(w->folder, sizeof w->folder, "/tmp/thaw-links-XXXXXX");
	assert_non_null(mkdtemp(w->folder));
	world_open(w);
	return w;
}

static void world_close(struct world *w)
{
	for (uint32_t i = 0; i < NODES; i++) {
		cluster_session_close(w->node[i].session);
		w->node[i].session = NULL;
	}
	cluster_fleet_destroy(w->fleet);
	cluster_coordinator_destroy(w->c);
}

static void world_destroy(struct world *w)
{
	char command[96];
	world_close(w);
	snprintf(command, sizeof command, "rm -r %s", w->folder);
	FILE *p = popen(command, "r");
	assert_true(p && pclose(p) == 0);
	free(w);
}

static void join(struct world *w, uint32_t i, uint32_t cpus)
{
	struct node *n = &w->node[i];
	struct cluster_identity peer = {.cluster = "lab", .role = CLUSTER_ROLE_WORKER};
	_cleanup_free_ struct cluster_facts *f = calloc(1, sizeof *f);
	_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
	snprintf(n->name, sizeof n->name, "n%u", i);
	snprintf(peer.name, sizeof peer.name, "%s", n->name);
	assert_int_equal(cluster_session_open(w->c, &peer, wake, n, &n->session, NULL), 0);
	*f = (struct cluster_facts){.version = "1", .cluster = "lab", .cpus = cpus, .incarnation = ++n->incarnation};
	f->wall_ns = base_clock_wall_ns();
	snprintf(f->node, sizeof f->node, "%s", n->name);
	snprintf(f->address, sizeof f->address, "10.0.0.%u", i);
	cluster_fill_register(f, m);
	assert_int_equal(cluster_session_message(n->session, &m->message, NULL), 0);
}

static int answer(struct world *w, struct node *n, const struct cluster_probe *p)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__ProbeReady ready = THAW__NODE__V1__PROBE_READY__INIT;
	Thaw__Node__V1__ProbeDone done = THAW__NODE__V1__PROBE_DONE__INIT;
	ready.probe = done.probe = p->probe;
	ready.port = 1234;
	if (p->me == 0) {
		m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_READY;
		m.probe_ready = &ready;
		return cluster_session_message(n->session, &m, NULL);
	}
	int a = atoi(strrchr(p->members[0].host, '.') + 1), b = atoi(strrchr(p->members[1].host, '.') + 1);
	assert_int_equal(p->members[0].port, 1234);
	w->running--;
	w->probes++;
	w->seen[a][b] = w->seen[b][a] = 1;
	done.latency_ns = 1000.0 * (a + b);
	done.bytes_per_second = 1e9 / (a + b);
	done.error = (char *)(w->refuse ? "no UCX here" : "");
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE;
	m.probe_done = &done;
	return cluster_session_message(n->session, &m, NULL);
}

/* What the coordinator said to a node. */
static void serve(struct world *w, struct node *n)
{
	uint8_t *data;
	size_t bytes;
	while (n->session && cluster_session_next(n->session, &data, &bytes, NULL) == 1) {
		struct proto_budget budget;
		ProtobufCMessage *x;
		struct cluster_probe p;
		assert_int_equal(proto_unpack(&thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget,
					 &x, NULL, NULL),
			0);
		const Thaw__Node__V1__CoordinatorMessage *m = (const Thaw__Node__V1__CoordinatorMessage *)x;
		if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE) {
			assert_int_equal(cluster_read_probe(m->probe, &p, NULL), 0);
			w->running += p.me == 0;
			w->most_running = w->running > w->most_running ? w->running : w->most_running;
			assert_int_equal(answer(w, n, &p), 0);
		}
		protobuf_c_message_free_unpacked(x, &budget.allocator);
		free(data);
	}
}

static void serve_until(struct world *w, bool (*reached)(struct world *w))
{
	uint64_t until = base_clock_now_ns() + WAIT_NS;
	while (!reached(w)) {
		assert_true(base_clock_now_ns() < until);
		for (uint32_t i = 0; i < NODES; i++)
			serve(w, &w->node[i]);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

static bool is_planned(struct world *w)
{
	static struct cluster_group g;
	struct base_error e = {0};
	int status = cluster_fleet_gather(w->fleet, &g, &e);
	assert_int_equal(status, -EAGAIN); // nobody packs
	return w->view.pairs > 0;
}

static uint32_t links_measured(struct world *w)
{
	static struct cluster_link_info links[CLUSTER_MAX_LINKS];
	return cluster_coordinator_links(w->c, links, CLUSTER_MAX_LINKS);
}

static bool three_are_measured(struct world *w)
{
	return links_measured(w) == 3 && !w->running;
}

static bool of_the_new_machine(struct world *w)
{
	return w->probes == 2;
}

static bool all_of_ten(struct world *w)
{
	return links_measured(w) == 24;
}

static bool was_told(struct world *w)
{
	pthread_mutex_lock(&w->lock);
	bool told = strstr(w->events, "link_not_measured");
	pthread_mutex_unlock(&w->lock);
	return told;
}

/* ---- tests ---- */

static void the_first_plan_knows_the_links(void **state)
{
	struct world *w = world_create();
	for (uint32_t i = 1; i < 4; i++)
		join(w, i, 2);
	serve_until(w, three_are_measured);
	serve_until(w, is_planned);
	assert_int_equal(w->view.pairs, 3);
	assert_int_equal(w->view.measured, 3);
	assert_int_equal(w->probes, 3);
	assert_int_equal(w->most_running, 1);
	assert_true(w->view.latency_ns == 5000); // of n2 and n3
	assert_true(w->view.bytes_per_s == 1e9 / 5);
	assert_true(w->view.oldest_wall_ns <= base_clock_wall_ns());
	world_close(w);
	/* What was measured is kept, but not for a machine that is another one now. */
	w->view = (struct cluster_view_links){0};
	world_open(w);
	join(w, 1, 2);
	join(w, 2, 2);
	join(w, 3, 64);
	serve_until(w, of_the_new_machine);
	serve_until(w, is_planned);
	assert_int_equal(w->view.measured, 3);
	assert_int_equal(w->probes, 2);
	assert_false(w->seen[1][2]);
	world_destroy(w);
}

static void a_link_that_cannot_be_measured_is_assumed(void **state)
{
	struct world *w = world_create();
	w->refuse = true;
	join(w, 1, 2);
	join(w, 2, 2);
	serve_until(w, was_told);
	serve_until(w, is_planned);
	assert_int_equal(w->view.pairs, 1);
	assert_int_equal(w->view.measured, 0);
	assert_non_null(strstr(w->events, "between nodes n1 and n2: n2: no UCX here; planned with"));
	struct cluster_link_info link;
	assert_int_equal(cluster_coordinator_links(w->c, &link, 1), 1);
	assert_true(link.bytes_per_s == 0);
	assert_string_equal(link.error, "n2: no UCX here");
	assert_int_equal(w->probes, 1); // not again at once
	world_destroy(w);
}

/* Nodes that never answer keep no plan waiting for long. */
static void silence_is_not_waited_for(void **state)
{
	struct world *w = world_create();
	join(w, 1, 2);
	join(w, 2, 2);
	uint64_t until = base_clock_now_ns() + WAIT_NS;
	while (!is_planned(w)) {
		assert_true(base_clock_now_ns() < until);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	assert_int_equal(w->view.measured, 0);
	world_destroy(w);
}

/* Of ten nodes not all 45 pairs are measured: each with the first one and with two on each side. */
static void of_many_nodes_some_pairs_are_measured(void **state)
{
	struct world *w = world_create();
	for (uint32_t i = 0; i < NODES; i++)
		join(w, i, 2);
	serve_until(w, all_of_ten);
	for (uint32_t i = 1; i < NODES; i++)
		assert_true(w->seen[0][i]);
	assert_true(w->seen[9][1] && w->seen[4][6]);
	assert_false(w->seen[4][7]);
	assert_int_equal(w->most_running, 1);
	world_destroy(w);
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
