// SPDX-License-Identifier: Apache-2.0
// Spare layers: nodes that are made up are asked for what they will need after a loss, and after it they have it.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "proto/check.h"
#include "tests/lib/wait.h"
#include "tests/lib/world.h"

#define LAYERS 12u
#define SIZES 4u // of tensor groups, 1 to 3

struct files { // of a store
	bool layer[SIZES][SIZES][LAYERS]; // by size of the group, and place in it
};

struct node { // what it was told
	uint64_t assignment, released;
	struct cluster_slice slice;
	struct cluster_start start;
	uint64_t spare; // the last such assignment
	struct cluster_slice spare_slice;
	uint32_t spares; // how many it had
	struct files has; // of its own and spare ones
	bool asked; // the spare one is not answered yet
	uint32_t forgets;
	uint32_t beats;
};

struct scene {
	struct world world;
	struct node node[WORLD_NODES];
	uint32_t nodes; // that were there from the beginning
	/* What plan() does: */
	uint32_t parts; // in a stage; 0: 1
	uint32_t most, least; // nodes; 0: no limit
	const char *needed; // without it nothing fits
	bool strange; // after losses the first node has another part each time
	_Atomic bool hold, held; // what would be is thought about for long
	_Atomic uint32_t plans, what_ifs;
	_Atomic uint32_t skipped, failed;
	_Atomic uint32_t stored; // how often nodes had all they were asked for
	char skipped_text[512], stored_text[512]; // written before the counts
	struct cluster_group group;
};

static bool is_there(const struct cluster_view *view, const char *name)
{
	uint32_t i = 0;
	while (i < view->count && strcmp(view->nodes[i].name, name) != 0)
		i++;
	return i < view->count;
}

/* As the server: nodes of the plan before keep their order, others come behind them. */
static uint32_t order_nodes(const struct cluster_view *view, uint32_t *order)
{
	bool taken[CLUSTER_MAX_NODES] = {0};
	uint32_t n = 0;
	for (uint32_t i = 0; view->previous && i < view->previous->stages_count; i++) {
		for (uint32_t k = 0; k < view->count; k++) {
			if (strcmp(view->nodes[k].name, view->previous->stages[i].node) != 0)
				continue;
			taken[k] = true;
			order[n++] = k;
		}
	}
	for (uint32_t k = 0; k < view->count; k++) {
		if (!taken[k])
			order[n++] = k;
	}
	return n;
}

/* Layers as stages have CPUs. */
static int lay_out(
	const struct scene *s, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	uint32_t order[CLUSTER_MAX_NODES], n = order_nodes(view, order), parts = s->parts ? s->parts : 1;
	uint32_t cpus = 0, before = 0;
	n = s->most && s->most < n ? s->most : n;
	n -= n % parts;
	if (!n || n < s->least || (s->needed && !is_there(view, s->needed)))
		return base_error_set(e, -ENOMEM, "1 byte short");
	for (uint32_t i = 0; i < n; i += parts)
		cpus += view->nodes[order[i]].facts->cpus;
	ret->stages_count = n;
	for (uint32_t i = 0; i < n; i += parts) {
		uint32_t first = LAYERS * before / cpus;
		before += view->nodes[order[i]].facts->cpus;
		for (uint32_t k = 0; k < parts; k++)
			ret->stages[i + k] = (struct cluster_plan_stage){
				.node = order[i + k], .slice = {first, LAYERS * before / cpus - first, k, parts}};
	}
	return 0;
}

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	struct scene *s = context;
	uint32_t number = atomic_fetch_add(view->what_if ? &s->what_ifs : &s->plans, 1);
	while (view->what_if && atomic_load(&s->hold)) {
		atomic_store(&s->held, true);
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	int status = lay_out(s, view, ret, e);
	if (!status && view->what_if && s->strange)
		ret->stages[0].slice = (struct cluster_slice){
			2 * (number / CLUSTER_MAX_MEMBERS), 1, number % CLUSTER_MAX_MEMBERS, CLUSTER_MAX_MEMBERS};
	return status;
}

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	struct scene *s = context;
	if (strcmp(kind, "spares_skipped") == 0) {
		snprintf(s->skipped_text, sizeof s->skipped_text, "%s", text);
		atomic_fetch_add(&s->skipped, 1);
	} else if (strcmp(kind, "spares_stored") == 0) {
		snprintf(s->stored_text, sizeof s->stored_text, "%s", text);
		atomic_fetch_add(&s->stored, 1);
	} else if (strcmp(kind, "spares_failed") == 0) {
		atomic_fetch_add(&s->failed, 1);
	}
}

static const char *name_of(uint32_t i, char out[static 16])
{
	snprintf(out, 16, "n%u", i);
	return out;
}

static void join(struct scene *s, uint32_t i, uint32_t cpus)
{
	char name[16];
	s->node[i] = (struct node){0};
	world_join(&s->world, i, name_of(i, name), cpus);
}

/* cpus: NULL: one each. */
static struct scene *scene_create(uint32_t nodes, const uint32_t *cpus, uint32_t replicas)
{
	struct scene *s = calloc(1, sizeof *s);
	world_init(&s->world, plan, s);
	s->nodes = nodes;
	s->world.config.nodes = nodes;
	s->world.config.replicas = replicas;
	s->world.config.spare_ns = 1000000;
	s->world.config.events = (struct cluster_events){on_event, s};
	world_open(&s->world);
	for (uint32_t i = 0; i < nodes; i++)
		join(s, i, cpus ? cpus[i] : 1);
	return s;
}

static void scene_destroy(struct scene *s)
{
	atomic_store(&s->hold, false);
	world_finish(&s->world);
	free(s);
}

static void add_files(struct files *f, const struct cluster_slice *x)
{
	for (uint32_t l = x->first_layer; l < x->first_layer + x->layers && x->tp_size < SIZES; l++)
		f->layer[x->tp_size][x->tp_rank][l] = true;
}

static bool has_all(const struct files *has, const struct files *wanted)
{
	const bool *a = &has->layer[0][0][0], *b = &wanted->layer[0][0][0];
	size_t i = 0;
	while (i < sizeof *has / sizeof *a && (a[i] || !b[i]))
		i++;
	return i == sizeof *has / sizeof *a;
}

static void hear(void *context, uint32_t i, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct node *n = context;
	struct cluster_assign a;
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN) {
		assert_int_equal(cluster_read_assign(m->assign, &a, NULL), 0);
		if (!a.spare) {
			n->assignment = a.assignment;
			n->slice = a.slice;
			return;
		}
		assert_false(n->asked); // one after the other
		n->asked = true;
		n->spare = a.assignment;
		n->spare_slice = a.slice;
		n->spares++;
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START) {
		assert_int_equal(cluster_read_start(m->start, &n->start, NULL), 0);
		add_files(&n->has, &n->slice);
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_RELEASE) {
		n->released = m->release->assignment;
		n->asked = n->asked && n->released != n->spare;
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET) {
		assert_int_equal(cluster_read_forget(m->forget, &a, NULL), 0);
		assert_string_equal(a.model, "m");
		assert_memory_equal(a.digest, ((const uint8_t[16]){1, 2, 3}), 16);
		n->forgets++;
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_HEARTBEAT) {
		n->beats++;
	}
}

static void listen_to(struct scene *s, uint32_t i)
{
	world_hear(&s->world, i, hear, &s->node[i]);
}

static void stored(struct scene *s, uint32_t i, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Stored x = THAW__NODE__V1__STORED__INIT;
	x.assignment = s->node[i].spare;
	x.layers = text[0] ? 0 : s->node[i].spare_slice.layers;
	x.written_bytes = 1 << 20;
	x.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_STORED;
	m.stored = &x;
	assert_int_equal(world_say(&s->world, i, &m), 0);
}

static void failed(struct scene *s, uint32_t i, uint64_t assignment)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Failed f = THAW__NODE__V1__FAILED__INIT;
	f.assignment = assignment;
	f.code = -EROFS;
	f.text = (char *)"its drive is read-only";
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_FAILED;
	m.failed = &f;
	assert_int_equal(world_say(&s->world, i, &m), 0);
}

static void prepared(struct scene *s, uint32_t i)
{
	struct cluster_prepared p = {.assignment = s->node[i].assignment, .port = 4000, .threads = 1, .cpus_count = 1};
	snprintf(p.store_directory, sizeof p.store_directory, "/store");
	snprintf(p.model_path, sizeof p.model_path, "/m.gguf");
	size_t bytes;
	struct proto_budget budget;
	ProtobufCMessage *m;
	_cleanup_free_ uint8_t *data = cluster_pack_prepared(&p, &bytes);
	assert_int_equal(
		proto_unpack(&thaw__node__v1__node_message__descriptor, data, bytes, &budget, &m, NULL, NULL), 0);
	assert_int_equal(world_say(&s->world, i, (Thaw__Node__V1__NodeMessage *)m), 0);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
}

/* A plan is made; who is in it has what it is told to prepare. only_kept: it had it before. */
static void run(struct scene *s, bool only_kept)
{
	struct base_error e = {0};
	for (uint32_t i = 0; i < WORLD_NODES; i++)
		s->node[i].assignment = 0;
	testing_wait_until(cluster_fleet_gather(s->world.fleet, &s->group, &e) == -EAGAIN &&
			   strstr(e.message, "prepares its layers")); // not while another thinks about losses
	for (uint32_t i = 0; i < WORLD_NODES; i++) {
		struct files wanted = {0};
		listen_to(s, i);
		if (!s->node[i].assignment)
			continue;
		add_files(&wanted, &s->node[i].slice);
		if (only_kept && !has_all(&s->node[i].has, &wanted))
			fail_msg("n%u lacks some of layers %u to %u, part %u of %u", i, s->node[i].slice.first_layer,
				s->node[i].slice.first_layer + s->node[i].slice.layers - 1, s->node[i].slice.tp_rank,
				s->node[i].slice.tp_size);
		prepared(s, i);
	}
	if (cluster_fleet_gather(s->world.fleet, &s->group, &e))
		fail_msg("%s", base_error_text(&e));
	for (uint32_t i = 0; i < WORLD_NODES; i++)
		listen_to(s, i);
}

/* Nodes keep what they are asked for. */
static void keep(struct scene *s)
{
	for (uint32_t i = 0; i < WORLD_NODES; i++) {
		struct node *n = &s->node[i];
		listen_to(s, i);
		if (!n->asked)
			continue;
		add_files(&n->has, &n->spare_slice);
		uint64_t spare = n->spare;
		stored(s, i, "");
		listen_to(s, i);
		assert_int_equal(n->released, spare);
	}
}

/* What each node computes after the loss, in addition. */
static void add_wanted(const struct scene *s, const uint32_t *cpus, uint32_t lost, struct files *wanted)
{
	static struct cluster_facts facts[WORLD_NODES];
	static struct cluster_view view;
	static struct cluster_state_plan previous;
	static struct cluster_plan p;
	char name[WORLD_NODES][16];
	uint32_t at[WORLD_NODES];
	memset(&view, 0, sizeof view);
	memset(&p, 0, sizeof p);
	for (uint32_t i = 0; i < s->nodes; i++) {
		if (lost >> i & 1)
			continue;
		at[view.count] = i;
		facts[i].cpus = cpus ? cpus[i] : 1;
		view.nodes[view.count++] = (struct cluster_view_node){.name = name_of(i, name[i]), .facts = &facts[i]};
	}
	previous = (struct cluster_state_plan){.stages_count = s->group.ranks};
	for (uint32_t i = 0; i < s->group.ranks; i++)
		memcpy(previous.stages[i].node, s->group.node[i], sizeof previous.stages[i].node);
	view.previous = &previous;
	if (lay_out(s, &view, &p, NULL))
		return;
	for (uint32_t i = 0; i < p.stages_count; i++)
		add_files(&wanted[at[p.stages[i].node]], &p.stages[i].slice);
}

static bool all_have(const struct scene *s, const struct files *wanted)
{
	uint32_t i = 0;
	while (i < s->nodes && has_all(&s->node[i].has, &wanted[i]))
		i++;
	return i == s->nodes;
}

/* ---- tests ---- */

static const struct {
	const char *what;
	uint32_t nodes, cpus[WORLD_NODES], replicas, parts, most;
} cases[] = {
	{"even", 3, {1, 1, 1}, 2, 1, 0},
	{"uneven", 4, {1, 5, 2, 4}, 2, 1, 0},
	{"two at once", 4, {3, 1, 2, 2}, 3, 1, 0},
	{"one that computes nothing", 4, {1, 1, 1, 1}, 2, 1, 3},
	{"parts, and one that computes nothing", 4, {1, 1, 1, 1}, 2, 3, 0},
	{"two stages of parts, and one that computes nothing", 5, {2, 2, 1, 1, 1}, 2, 2, 0},
	{"all copies", 3, {1, 1, 2}, 16, 1, 0},
};

/* Whatever is lost, the next plan finds all that it needs; and nobody has more than some loss would need. */
static void a_loss_needs_no_transfer(void **state)
{
	for (size_t i = 0; i < base_array_size(cases); i++) {
		uint32_t n = cases[i].nodes;
		for (uint32_t lost = 1; lost < 1u << n; lost++) {
			uint32_t count = (uint32_t)__builtin_popcount(lost);
			if (count >= cases[i].replicas || count == n || (cases[i].parts == 1 && lost % 4 && lost % 5))
				continue; // of whole layers some will do
			struct scene *s = scene_create(n, cases[i].cpus, cases[i].replicas);
			struct files wanted[WORLD_NODES] = {0};
			s->parts = cases[i].parts;
			s->most = cases[i].most;
			print_message("%s: %#x is lost\n", cases[i].what, lost);
			run(s, false);
			for (uint32_t set = 1; set < 1u << n; set++) {
				if ((uint32_t)__builtin_popcount(set) < cases[i].replicas)
					add_wanted(s, cases[i].cpus, set, wanted);
			}
			for (uint32_t k = 0; k < s->group.ranks; k++) // what they compute now
				add_files(
					&wanted[s->group.node[k][1] - '0'], &s->node[s->group.node[k][1] - '0'].slice);
			testing_wait_until((keep(s), all_have(s, wanted)));
			for (uint32_t k = 0; k < n; k++)
				assert_memory_equal(&s->node[k].has, &wanted[k], sizeof wanted[k]);
			for (uint32_t k = 0; k < n; k++) {
				if (lost >> k & 1)
					world_leave(&s->world, k);
			}
			cluster_fleet_scatter(s->world.fleet);
			run(s, true);
			assert_int_equal(s->skipped, 0);
			scene_destroy(s);
		}
	}
}

/* One range after the other; a drive that is full or a failure ends it for that node, and touches no group. */
static void ranges_come_one_after_the_other(void **state)
{
	struct scene *s = scene_create(4, (uint32_t[]){1, 1, 1, 1}, 2);
	struct node *n = s->node;
	run(s, false);
	for (uint32_t i = 0; i < 4; i++)
		testing_wait_until((listen_to(s, i), n[i].asked));
	assert_int_equal(n[1].slice.first_layer, 3); // 3 to 5; without n0 it has 0 to 3, without n3 4 to 7
	assert_int_equal(n[1].spares, 1);
	uint64_t first = n[1].spare;
	stored(s, 1, "");
	listen_to(s, 1);
	assert_int_equal(n[1].released, first);
	assert_int_equal(n[1].spares, 2);
	assert_true(n[1].asked);
	assert_int_equal(s->stored, 0);
	stored(s, 1, "");
	listen_to(s, 1);
	assert_false(n[1].asked);
	assert_int_equal(s->stored, 1);
	assert_non_null(strstr(s->stored_text, "node n1 has 5 of 5 layers"));
	assert_non_null(strstr(s->stored_text, "(0 to 2, 6 to 7), 2.0 MiB of them new"));
	stored(s, 1, ""); // said twice
	assert_int_equal(s->stored, 1);
	stored(s, 2, "the drive is full");
	listen_to(s, 2);
	assert_int_equal(n[2].spares, 1);
	assert_false(n[2].asked);
	assert_int_equal(s->stored, 2);
	assert_non_null(strstr(s->stored_text, "node n2 has 0 of 5 layers"));
	assert_non_null(strstr(s->stored_text, ": the drive is full"));
	failed(s, 0, n[0].spare);
	listen_to(s, 0);
	assert_false(n[0].asked);
	assert_int_equal(s->failed, 1);
	assert_false(cluster_fleet_broken(s->world.fleet));
	assert_int_equal(s->plans, 1); // what would be is no plan
	assert_int_equal(s->what_ifs, 4);
	scene_destroy(s);
}

/* Losses that no plan follows are named once for each group, by the smallest sets; others are prepared for. */
static void losses_that_no_plan_follows(void **state)
{
	struct scene *s = scene_create(3, NULL, 3);
	s->needed = "n1";
	s->least = 2;
	for (uint32_t groups = 1; groups <= 2; groups++) {
		run(s, false);
		testing_wait_until(atomic_load(&s->skipped) == groups);
		assert_string_equal(s->skipped_text,
			"no spare layers for losses that no plan would follow: n1; n0 and n2: 1 byte short");
		testing_wait_until((keep(s), s->node[1].has.layer[1][0][0] && s->node[1].has.layer[1][0][LAYERS - 1]));
		assert_int_equal(s->what_ifs, 4 * groups); // not n1 with another
		cluster_fleet_scatter(s->world.fleet);
	}
	scene_destroy(s);

	s = scene_create(2, NULL, 2); // no parts without both
	s->parts = 2;
	run(s, false);
	testing_wait_until(atomic_load(&s->skipped) == 1);
	assert_string_equal(
		s->skipped_text, "no spare layers for losses that no plan would follow: n0; n1: 1 byte short");
	keep(s);
	assert_int_equal(s->node[0].spares + s->node[1].spares, 0);
	scene_destroy(s);

	s = scene_create(1, NULL, 2); // with one node alone nothing can be kept, which needs no words
	s->most = 1;
	run(s, false);
	join(s, 1, 1);
	s->nodes = 2;
	testing_wait_until((keep(s), s->node[1].has.layer[1][0][LAYERS - 1]));
	assert_int_equal(s->skipped, 0);
	scene_destroy(s);
}

/* A loss while it is asked what a loss would be: the engine waits for no more than that one answer, and nothing comes of
 * it. The next group has spares of its own; a plan has those that are under way released before its own work. */
static void a_loss_ends_the_asking(void **state)
{
	struct scene *s = scene_create(3, NULL, 2);
	struct base_error e = {0};
	atomic_store(&s->hold, true);
	run(s, false);
	testing_wait_until(atomic_load(&s->held));
	world_leave(&s->world, 2);
	assert_true(cluster_fleet_broken(s->world.fleet));
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(cluster_fleet_gather(s->world.fleet, &s->group, &e), -EAGAIN);
	assert_string_equal(e.message, "a plan is being made");
	atomic_store(&s->hold, false);
	run(s, false);
	testing_wait_until((listen_to(s, 0), listen_to(s, 1), s->node[0].asked && s->node[1].asked));
	assert_int_equal(s->what_ifs, 1 + 2);
	assert_int_equal(s->node[0].spares, 1);
	uint64_t spare = s->node[0].spare;
	world_leave(&s->world, 1);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(cluster_fleet_gather(s->world.fleet, &s->group, &e), -EAGAIN);
	listen_to(s, 0);
	assert_int_equal(s->node[0].released, spare);
	assert_false(s->node[0].asked);
	scene_destroy(s);
}

/* However long that takes: else they would take the coordinator for lost. */
static void nodes_hear_while_losses_are_thought_about(void **state)
{
	struct scene *s = scene_create(3, NULL, 2);
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Heartbeat h = THAW__NODE__V1__HEARTBEAT__INIT;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_HEARTBEAT;
	m.heartbeat = &h;
	atomic_store(&s->hold, true);
	run(s, false);
	testing_wait_until(atomic_load(&s->held));
	join(s, 3, 1); // a first beat is due at once
	listen_to(s, 3);
	assert_int_equal(s->node[3].beats, 0);
	assert_int_equal(world_say(&s->world, 3, &m), 0);
	listen_to(s, 3);
	assert_int_equal(s->node[3].beats, 1);
	assert_int_equal(world_say(&s->world, 3, &m), 0);
	listen_to(s, 3);
	assert_int_equal(s->node[3].beats, 1); // not more than without a plan
	scene_destroy(s);
}

/* A node that comes may have to compute after a loss, though the group goes on without it. */
static void a_node_that_comes_keeps_some(void **state)
{
	struct scene *s = scene_create(2, NULL, 2);
	s->most = 2;
	run(s, false);
	testing_wait_until((keep(s), atomic_load(&s->stored) == 2));
	join(s, 2, 1);
	s->nodes = 3;
	testing_wait_until((keep(s), s->node[2].has.layer[1][0][LAYERS - 1]));
	scene_destroy(s);
}

/* Sets of losses are as many as can be asked about soon, and ranges as many as a node can have. */
static void bounds(void **state)
{
	struct scene *s = scene_create(10, NULL, 4);
	run(s, false);
	testing_wait_until(atomic_load(&s->skipped) == 1);
	assert_string_equal(s->skipped_text,
		"store.replicas is 4: spare layers are kept for the loss of any 2 nodes of 10, not of more");
	scene_destroy(s);

	s = scene_create(7, NULL, 3);
	s->strange = true;
	run(s, false);
	testing_wait_until((keep(s), s->node[0].spares == 16 && strstr(s->stored_text, "node n0")));
	assert_non_null(strstr(s->stored_text, "others are too many ranges"));
	assert_int_equal(s->what_ifs, 7 + 21);
	scene_destroy(s);
}

/* When a model is unloaded, and not when its coordinator stops or another name of it is left. */
static void spares_are_forgotten(void **state)
{
	struct scene *s = scene_create(1, NULL, 1);
	world_open_model(&s->world, "again");
	struct cluster_fleet *again = base_steal(s->world.fleet);
	world_open_model(&s->world, "m");
	cluster_fleet_destroy(base_steal(s->world.fleet));
	cluster_coordinator_forget(s->world.coordinator, "m", s->world.model.digest);
	listen_to(s, 0);
	assert_int_equal(s->node[0].forgets, 0);
	cluster_fleet_destroy(again);
	world_open_model(&s->world, "m");
	cluster_fleet_destroy(base_steal(s->world.fleet));
	cluster_coordinator_forget(s->world.coordinator, "m", s->world.model.digest);
	listen_to(s, 0);
	assert_int_equal(s->node[0].forgets, 1);
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_loss_needs_no_transfer),
		cmocka_unit_test(ranges_come_one_after_the_other),
		cmocka_unit_test(losses_that_no_plan_follows),
		cmocka_unit_test(a_loss_ends_the_asking),
		cmocka_unit_test(nodes_hear_while_losses_are_thought_about),
		cmocka_unit_test(a_node_that_comes_keeps_some),
		cmocka_unit_test(bounds),
		cmocka_unit_test(spares_are_forgotten),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
