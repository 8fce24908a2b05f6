// SPDX-License-Identifier: Apache-2.0
// What a coordinator does with its claim, over a state whose claim the test turns: two coordinators over one record.
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/claim.h"
#include "daemon/cluster/coordinator.h"
#include "tests/lib/wait.h"

#define MS 1000000ull

struct fake_state {
	struct cluster_state state;
	const char *who;
};

static struct {
	pthread_mutex_t lock;
	struct cluster_record record;
	_Atomic bool written;
	const char *holder; // who has the claim
	uint64_t term;
	const char *away; // from whom the state is away: it is in doubt
	int read_error;
	char events[16384];
} world;

static void fake_close(struct cluster_state *s)
{
}

static int fake_read(struct cluster_state *s, struct cluster_record *ret_record, struct base_error *e)
{
	pthread_mutex_lock(&world.lock);
	int status = world.read_error ? world.read_error : world.written ? 0 : -ENOENT;
	if (!status)
		*ret_record = world.record;
	pthread_mutex_unlock(&world.lock);
	return status ? base_error_set(e, status, "fake: no record") : 0;
}

static void claim_of(const struct fake_state *f, struct cluster_claim *ret)
{
	*ret = (struct cluster_claim){.kind = CLUSTER_CLAIM_NONE, .term = world.term};
	bool away = world.away && strcmp(world.away, f->who) == 0;
	if (away)
		snprintf(ret->why, sizeof ret->why, "etcd 1.2.3.4:5: no answer");
	if (world.holder && strcmp(world.holder, f->who) == 0) {
		ret->kind = away ? CLUSTER_CLAIM_DOUBT : CLUSTER_CLAIM_HELD;
	} else if (world.holder) {
		ret->kind = CLUSTER_CLAIM_OTHER;
		snprintf(ret->holder, sizeof ret->holder, "%s", world.holder);
		snprintf(ret->address, sizeof ret->address, "10.0.0.1:50152");
	}
}

static void fake_claim(struct cluster_state *s, struct cluster_claim *ret)
{
	pthread_mutex_lock(&world.lock);
	claim_of(base_container_of(s, struct fake_state, state), ret);
	pthread_mutex_unlock(&world.lock);
}

static int fake_write(struct cluster_state *s, const struct cluster_record *record, struct base_error *e)
{
	struct cluster_claim claim;
	pthread_mutex_lock(&world.lock);
	claim_of(base_container_of(s, struct fake_state, state), &claim);
	bool held = claim.kind == CLUSTER_CLAIM_HELD;
	if (held) {
		world.record = *record;
		world.written = true;
	}
	pthread_mutex_unlock(&world.lock);
	return held ? 0 : base_error_set(e, -ESTALE, "the claim is not held");
}

static const struct cluster_state_ops fake_ops = {
	.name = "fake", .close = fake_close, .read = fake_read, .write = fake_write, .claim = fake_claim};

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	pthread_mutex_lock(&world.lock);
	size_t n = strlen(world.events);
	snprintf(world.events + n, sizeof world.events - n, "%s %s: %s\n", (const char *)context, kind, text);
	pthread_mutex_unlock(&world.lock);
}

static bool had_event(const char *text)
{
	pthread_mutex_lock(&world.lock);
	bool found = strstr(world.events, text) != NULL;
	pthread_mutex_unlock(&world.lock);
	return found;
}

static void expect_event(const char *text)
{
	testing_wait_until(had_event(text));
}

static uint32_t recorded_nodes(void)
{
	pthread_mutex_lock(&world.lock);
	uint32_t n = world.record.nodes_count;
	pthread_mutex_unlock(&world.lock);
	return n;
}

static void turn(const char *holder, const char *away, bool fresh)
{
	pthread_mutex_lock(&world.lock);
	world.holder = holder;
	world.away = away;
	world.term += fresh;
	pthread_mutex_unlock(&world.lock);
}

/* ---- a coordinator with one node and one model ---- */

struct side {
	struct fake_state state;
	struct cluster_coordinator *coordinator;
	struct cluster_session *session;
	struct cluster_fleet *fleet;
	uint32_t plans, messages[16]; // of the session, by their case
	struct base_error why;
};

static int on_plan(void *context, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e)
{
	struct side *s = context;
	s->plans++;
	ret_plan->stages_count = 1;
	ret_plan->stages[0].node = 0;
	ret_plan->stages[0].slice = (struct cluster_slice){.layers = 4, .tp_size = 1};
	return 0;
}

static int on_listen(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	*ret_self = (struct cluster_member){.host = "127.0.0.1", .port = 1};
	return 0;
}

static void on_regather(void *context, const char *why)
{
}

static void on_broken(void *context)
{
}

static void side_open(struct side *s, const char *who)
{
	struct base_error e = {0};
	*s = (struct side){.state = {.state.ops = &fake_ops, .who = who}};
	const struct cluster_coordinator_config c = {.cluster = "lab",
		.node = who,
		.version = "1",
		.host = "127.0.0.1",
		.nodes = 1,
		.heartbeat_ns = 500 * MS,
		.lost_ns = 600000 * MS,
		.return_ns = 1,
		.events = {on_event, (void *)who}};
	const struct cluster_fleet_config f = {.model = "m",
		.path = "/m.gguf",
		.file_bytes = 2,
		.header_bytes = 1,
		.file_fd = -1,
		.plan = on_plan,
		.listen = on_listen,
		.regather = on_regather,
		.broken = on_broken,
		.context = s};
	if (cluster_coordinator_create(&c, &s->state.state, &s->coordinator, &e) ||
		cluster_fleet_create(s->coordinator, &f, &s->fleet, &e))
		fail_msg("%s", base_error_text(&e));
}

static void side_close(struct side *s)
{
	cluster_session_close(s->session);
	cluster_fleet_destroy(s->fleet);
	cluster_coordinator_destroy(s->coordinator);
}

static void wake(void *context)
{
}

/* The node of that name, over its unix socket. */
static int side_join(struct side *s)
{
	static struct cluster_register_message m;
	static struct cluster_facts f;
	cluster_session_close(s->session);
	f = (struct cluster_facts){.version = "1", .cluster = "lab", .cpus = 2, .wall_ns = base_clock_wall_ns()};
	snprintf(f.node, sizeof f.node, "%s", s->state.who);
	f.incarnation = base_clock_now_ns();
	cluster_fill_register(&f, &m);
	assert_int_equal(cluster_session_open(s->coordinator, NULL, wake, NULL, &s->session, NULL), 0);
	memset(&s->why, 0, sizeof s->why);
	return cluster_session_message(s->session, &m.message, &s->why);
}

/* What the coordinator has sent: 1 if the session goes on. */
static int side_read(struct side *s)
{
	uint8_t *data;
	size_t bytes;
	int status;
	while ((status = cluster_session_next(s->session, &data, &bytes, &s->why)) == 1) {
		Thaw__Node__V1__CoordinatorMessage *m = thaw__node__v1__coordinator_message__unpack(NULL, bytes, data);
		s->messages[m->what_case]++;
		thaw__node__v1__coordinator_message__free_unpacked(m, NULL);
		free(data);
	}
	return status;
}

/* A node that missed some beats is not planned with. */
static void side_beat(struct side *s)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Heartbeat h = THAW__NODE__V1__HEARTBEAT__INIT;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_HEARTBEAT;
	m.heartbeat = &h;
	if (s->session)
		cluster_session_message(s->session, &m, NULL);
}

static int side_gather(struct side *s)
{
	static struct cluster_group g;
	side_beat(s);
	memset(&s->why, 0, sizeof s->why);
	return cluster_fleet_gather(s->fleet, &g, &s->why);
}

static uint32_t assigns(struct side *s)
{
	side_read(s);
	return s->messages[THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN];
}

static uint32_t heartbeats(struct side *s)
{
	assert_int_equal(side_read(s), 0);
	return s->messages[THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_HEARTBEAT];
}

/* The epoch goes on from that of the record. */
static void hand_over(const char *holder, uint64_t epoch)
{
	pthread_mutex_lock(&world.lock);
	world.record.epoch = epoch;
	world.holder = holder;
	world.term++;
	pthread_mutex_unlock(&world.lock);
}

static int setup(void **state)
{
	memset(&world, 0, sizeof world);
	pthread_mutex_init(&world.lock, NULL);
	world.holder = "a";
	world.term = 1;
	return 0;
}

/* ---- when a claim may be taken ---- */

#define S (1000 * MS)

static void a_claim_is_free_when_its_lease_is_over(void **state)
{
	struct cluster_claim_watch w = {.own_ns = 2 * S};
	cluster_claim_watch_heard(&w, 10 * S);
	assert_true(cluster_claim_watch_free(&w, 10 * S)); // nobody was ever seen
	cluster_claim_watch_seen(&w, 7, 60 * S);
	cluster_claim_watch_heard(&w, 11 * S);
	assert_false(cluster_claim_watch_free(&w, 11 * S)); // the key may go alone
	assert_false(cluster_claim_watch_free(&w, 1000 * S));
	cluster_claim_watch_over(&w);
	assert_true(cluster_claim_watch_free(&w, 11 * S));
	cluster_claim_watch_seen(&w, 8, 60 * S); // another was faster
	assert_false(cluster_claim_watch_free(&w, 1000 * S));
}

static void after_an_absence_the_holder_has_the_length_of_its_own_lease(void **state)
{
	static const struct {
		uint64_t own_ns, holder_ns, wait_ns;
	} cases[] = {{2 * S, 60 * S, 61 * S}, {60 * S, 2 * S, 3 * S}, {4 * S, 4 * S, 5 * S}, {4 * S, 0, 5 * S}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct cluster_claim_watch w = {.own_ns = cases[i].own_ns};
		uint64_t back = 100 * S, free_ns = back + cases[i].wait_ns;
		if (cases[i].holder_ns)
			cluster_claim_watch_seen(&w, 7, cases[i].holder_ns);
		cluster_claim_watch_heard(&w, back - 100 * MS);
		cluster_claim_watch_missed(&w);
		cluster_claim_watch_over(&w);
		assert_false(cluster_claim_watch_free(&w, 1000 * S)); // nothing was heard since
		cluster_claim_watch_heard(&w, back);
		assert_false(cluster_claim_watch_free(&w, back));
		for (uint64_t now = back; now < free_ns; now += cluster_claim_watch_period(&w))
			cluster_claim_watch_heard(&w, now);
		assert_false(cluster_claim_watch_free(&w, free_ns - 1));
		assert_true(cluster_claim_watch_free(&w, free_ns));
	}
}

/* Etcd may have been away between two answers: for so long that a holder's lease ran out, or not. */
static void a_long_time_between_two_answers_is_an_absence(void **state)
{
	static const struct {
		uint64_t own_ns, holder_ns, gap_ns;
		bool free;
	} cases[] = {{60 * S, 2 * S, 700 * MS, true}, {60 * S, 2 * S, 1249 * MS, true},
		{60 * S, 2 * S, 1250 * MS, false}, {60 * S, 2 * S, 15 * S, false}, {2 * S, 60 * S, 15 * S, true},
		{2 * S, 60 * S, 45 * S, false}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct cluster_claim_watch w = {.own_ns = cases[i].own_ns};
		uint64_t now = 100 * S;
		cluster_claim_watch_seen(&w, 7, cases[i].holder_ns);
		cluster_claim_watch_heard(&w, now);
		now += cases[i].gap_ns;
		cluster_claim_watch_heard(&w, now);
		cluster_claim_watch_over(&w);
		if (cluster_claim_watch_free(&w, now) != cases[i].free)
			fail_msg("case %zu", i);
	}
}

/* Whoever came back for the claim after etcd had been away is a holder as any other when it goes later. */
static void test_claim_of_one_who_came_back(void **state)
{
	for (uint64_t held = 11 * S; held <= 12 * S; held += S) {
		struct cluster_claim_watch w = {.own_ns = 60 * S};
		cluster_claim_watch_seen(&w, 7, 2 * S);
		cluster_claim_watch_missed(&w);
		cluster_claim_watch_heard(&w, 10 * S);
		for (uint64_t now = 10 * S; now <= 12 * S; now += 500 * MS)
			cluster_claim_watch_heard(&w, now);
		cluster_claim_watch_held(&w, held);
		cluster_claim_watch_over(&w);
		assert_int_equal(cluster_claim_watch_free(&w, 12 * S + 100 * MS), held == 12 * S);
	}
}

/* So that an absence that ends a holder's lease is longer than the time between two looks. */
static void who_stands_by_looks_as_often_as_the_holder_renews(void **state)
{
	struct cluster_claim_watch w = {.own_ns = 60 * S};
	assert_int_equal(cluster_claim_watch_period(&w), 15 * S);
	cluster_claim_watch_seen(&w, 7, 2 * S);
	assert_int_equal(cluster_claim_watch_period(&w), 500 * MS);
	w = (struct cluster_claim_watch){.own_ns = 2 * S};
	cluster_claim_watch_seen(&w, 7, 60 * S);
	assert_int_equal(cluster_claim_watch_period(&w), 500 * MS);
}

/* ---- tests ---- */

static void who_stands_by_takes_nobody_and_plans_nothing(void **state)
{
	struct side a, b;
	side_open(&a, "a");
	side_open(&b, "b");
	expect_event("b coordinator_standby: node a at 10.0.0.1:50152 coordinates cluster lab; this one stands by");
	assert_int_equal(side_join(&b), -EHOSTDOWN);
	assert_non_null(strstr(b.why.message, "node a (10.0.0.1:50152) coordinates cluster lab"));
	assert_int_equal(side_gather(&b), -EAGAIN);
	assert_non_null(strstr(b.why.message, "this one stands by"));
	assert_int_equal(cluster_fleet_try(b.fleet, &b.why), -EAGAIN);
	assert_int_equal(b.plans, 0);
	assert_int_equal(side_join(&a), 0);
	assert_int_equal(side_gather(&a), -EAGAIN); // the node prepares
	assert_int_equal(assigns(&a), 1);
	side_close(&b);
	side_close(&a);
}

static void doubt_keeps_what_runs_and_begins_nothing(void **state)
{
	struct side a;
	side_open(&a, "a");
	assert_int_equal(side_join(&a), 0);
	turn("a", "a", false);
	expect_event("a coordinator_doubt");
	assert_int_equal(side_gather(&a), -EAGAIN);
	assert_non_null(strstr(a.why.message, "etcd 1.2.3.4:5: no answer"));
	assert_int_equal(a.plans, 0);
	testing_wait_until(heartbeats(&a)); // the node's session goes on
	struct cluster_session *first = a.session;
	a.session = NULL;
	assert_int_equal(side_join(&a), -EHOSTDOWN); // but nobody comes in
	cluster_session_close(a.session);
	a.session = first;
	turn("a", NULL, false);
	expect_event("can be reached again");
	testing_wait_until(side_gather(&a) == -EAGAIN && assigns(&a));
	assert_int_equal(assigns(&a), 1);
	side_close(&a);
}

static void regained_without_another_between(void **state)
{
	struct side a;
	side_open(&a, "a");
	assert_int_equal(side_join(&a), 0);
	turn("a", NULL, true); // the lease was lost, and had anew
	expect_event("a coordinator_active: this node goes on to coordinate cluster lab");
	assert_int_equal(side_read(&a), 0);
	assert_int_equal(side_gather(&a), -EAGAIN);
	assert_int_equal(assigns(&a), 1);
	side_close(&a);
}

static void the_other_takes_over_and_the_first_sends_its_nodes_away(void **state)
{
	struct side a, b;
	side_open(&a, "a");
	side_open(&b, "b");
	assert_int_equal(side_join(&a), 0);
	testing_wait_until(recorded_nodes());
	hand_over("b", 40); // which a had used
	expect_event("b coordinator_active: this node coordinates cluster lab, epoch 40");
	expect_event("a coordinator_lost: node b coordinates cluster lab now");
	assert_int_equal(side_read(&a), -EHOSTDOWN);
	assert_non_null(strstr(a.why.message, "node b coordinates cluster lab now"));
	assert_int_equal(side_join(&a), -EHOSTDOWN);
	static struct cluster_node_info infos[CLUSTER_MAX_NODES];
	assert_int_equal(cluster_coordinator_nodes(b.coordinator, infos, CLUSTER_MAX_NODES), 1); // of the record
	assert_string_equal(infos[0].name, "a");
	assert_int_equal(side_join(&b), 0);
	assert_int_equal(cluster_coordinator_epoch(b.coordinator), 40);
	turn("a", NULL, true); // and back
	expect_event("a coordinator_active: this node coordinates cluster lab, epoch 40");
	assert_int_equal(side_join(&a), 0);
	side_close(&b);
	side_close(&a);
}

static void a_record_that_cannot_be_read_is_said_and_read_again(void **state)
{
	struct side a;
	world.holder = NULL;
	side_open(&a, "a");
	world.read_error = -EBADMSG;
	turn("a", NULL, true);
	expect_event("a cluster_state: this node cannot take over: fake: no record");
	assert_int_equal(side_join(&a), -EHOSTDOWN);
	pthread_mutex_lock(&world.lock);
	world.read_error = 0;
	pthread_mutex_unlock(&world.lock);
	expect_event("a coordinator_active: this node coordinates cluster lab, epoch 0");
	assert_int_equal(side_join(&a), 0);
	side_close(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_claim_of_one_who_came_back),
		cmocka_unit_test(a_claim_is_free_when_its_lease_is_over),
		cmocka_unit_test(after_an_absence_the_holder_has_the_length_of_its_own_lease),
		cmocka_unit_test(a_long_time_between_two_answers_is_an_absence),
		cmocka_unit_test(who_stands_by_looks_as_often_as_the_holder_renews),
		cmocka_unit_test_setup(who_stands_by_takes_nobody_and_plans_nothing, setup),
		cmocka_unit_test_setup(doubt_keeps_what_runs_and_begins_nothing, setup),
		cmocka_unit_test_setup(regained_without_another_between, setup),
		cmocka_unit_test_setup(the_other_takes_over_and_the_first_sends_its_nodes_away, setup),
		cmocka_unit_test_setup(a_record_that_cannot_be_read_is_said_and_read_again, setup),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
