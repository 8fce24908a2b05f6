// SPDX-License-Identifier: Apache-2.0
// Plans and epochs of the coordinator, with nodes that are made up: what each is told, in which order, and what comes
// of losses.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "proto/check.h"
#include "tests/lib/wait.h"
#include "tests/lib/world.h"

#define LAYERS 12u

struct node { // what it was told
	struct scene *scene;
	uint32_t number;
	const char *name;
	uint64_t assignment, released;
	struct cluster_slice slice;
	struct cluster_start start; // the last
	uint32_t assigns, starts, releases;
	bool check; // asked for with the last assignment
	struct cluster_assign assign; // the last
	bool copy; // what it says when it is prepared
};

struct scene {
	struct world world;
	struct node node[4];
	uint32_t most; // nodes that the plan uses; 0: all
	struct rank_shape shape; // of the plan, where it has as many ranks as nodes; no stages: one for each node
	bool too_small;
	_Atomic uint32_t regathers, broken, plans;
	char previous[256]; // nodes of the plan before, as plan() saw them
	struct cluster_group group;
};

static struct rank_shape shape_for(const struct scene *s, uint32_t nodes)
{
	struct rank_shape shape = s->shape;
	if (!shape.stages)
		assert_int_equal(rank_shape_even(nodes, 1, &shape), 0);
	return shape;
}

/* Even, by name. */
static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	struct scene *s = context;
	uint32_t n = s->most && s->most < view->count ? s->most : view->count;
	struct rank_shape shape = shape_for(s, n);
	atomic_fetch_add(&s->plans, 1);
	s->previous[0] = '\0';
	for (uint32_t i = 0; view->previous && i < view->previous->stages_count; i++)
		strncat(s->previous, view->previous->stages[i].node, 16);
	if (s->too_small)
		return base_error_set(e, -ENOMEM, "1 byte short");
	ret->stages_count = n;
	for (uint32_t i = 0; i < n; i++) {
		struct rank_place p = rank_shape_place(&shape, i);
		uint32_t first = LAYERS * p.stage / shape.stages, end = LAYERS * (p.stage + 1) / shape.stages;
		ret->stages[i] = (struct cluster_plan_stage){
			.node = i, .slice = {first, end - first, p.part, shape.parts[p.stage]}};
	}
	return 0;
}

static void regather(void *context, const char *why)
{
	atomic_fetch_add(&((struct scene *)context)->regathers, 1);
}

static void broken(void *context)
{
	atomic_fetch_add(&((struct scene *)context)->broken, 1);
}

static struct scene *scene_create(uint32_t nodes)
{
	struct scene *s = calloc(1, sizeof *s);
	world_init(&s->world, plan, s);
	s->world.model.regather = regather;
	s->world.model.broken = broken;
	s->world.config.nodes = nodes;
	world_open(&s->world);
	return s;
}

static void scene_destroy(struct scene *s)
{
	world_finish(&s->world);
	free(s);
}

static void leave(struct scene *s, uint32_t i)
{
	world_leave(&s->world, i);
}

static int send_node(struct node *n, Thaw__Node__V1__NodeMessage *m)
{
	return world_say(&n->scene->world, n->number, m);
}

static void join_as(struct scene *s, uint32_t i, const char *name)
{
	s->node[i] = (struct node){.scene = s, .number = i, .name = s->world.node[i].name};
	world_join(&s->world, i, name, 1);
}

static void join(struct scene *s, uint32_t i)
{
	char name[8];
	snprintf(name, sizeof name, "n%u", i);
	join_as(s, i, name);
}

static void hear(void *context, uint32_t i, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct node *n = context;
	struct cluster_assign a;
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN) {
		assert_int_equal(cluster_read_assign(m->assign, &a, NULL), 0);
		n->assignment = a.assignment;
		n->slice = a.slice;
		n->check = a.check;
		n->assign = a;
		n->assigns++;
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START) {
		assert_int_equal(cluster_read_start(m->start, &n->start, NULL), 0);
		assert_int_equal(n->start.assignment, n->assignment);
		n->starts++;
	} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_RELEASE) {
		n->released = m->release->assignment;
		n->releases++;
	}
}

/* Takes what the coordinator said. */
static void read_node(struct node *n)
{
	if (n->scene)
		world_hear(&n->scene->world, n->number, hear, n);
}

static void prepared(struct node *n)
{
	struct cluster_prepared p = {
		.assignment = n->assignment, .port = 4000, .threads = 1, .cpus_count = 1, .copy = n->copy};
	snprintf(p.store_directory, sizeof p.store_directory, "/store/%s", n->name);
	snprintf(p.model_path, sizeof p.model_path, "/m.gguf");
	size_t bytes;
	struct proto_budget budget;
	ProtobufCMessage *m;
	_cleanup_free_ uint8_t *data = cluster_pack_prepared(&p, &bytes);
	assert_int_equal(
		proto_unpack(&thaw__node__v1__node_message__descriptor, data, bytes, &budget, &m, NULL, NULL), 0);
	assert_int_equal(send_node(n, (Thaw__Node__V1__NodeMessage *)m), 0);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
}

static void failed(struct node *n, int code, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Failed f = THAW__NODE__V1__FAILED__INIT;
	f.assignment = n->assignment;
	f.code = code;
	f.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_FAILED;
	m.failed = &f;
	assert_int_equal(send_node(n, &m), 0);
}

static int gather(struct scene *s, struct base_error *e)
{
	return cluster_fleet_gather(s->world.fleet, &s->group, e);
}

/* The whole way to a group of these nodes. */
static void run(struct scene *s, const uint32_t *nodes, uint32_t count)
{
	struct base_error e = {0};
	assert_int_equal(gather(s, &e), -EAGAIN);
	for (uint32_t i = 0; i < count; i++) {
		read_node(&s->node[nodes[i]]);
		prepared(&s->node[nodes[i]]);
	}
	if (gather(s, &e))
		fail_msg("%s", base_error_text(&e));
	struct rank_shape shape = shape_for(s, count);
	assert_memory_equal(&s->group.shape, &shape, sizeof shape);
	assert_int_equal(s->group.ranks, count);
	for (uint32_t i = 0; i < count; i++) {
		struct node *n = &s->node[nodes[i]];
		read_node(n);
		assert_int_equal(n->start.epoch, s->group.epoch);
		struct rank_place p = rank_shape_place(&shape, i);
		assert_memory_equal(&n->start.shape, &shape, sizeof shape);
		assert_memory_equal(&n->start.place, &p, sizeof p);
		assert_int_equal(n->start.members_count, 1 + count);
		assert_int_equal(n->slice.first_layer, LAYERS * p.stage / shape.stages);
		assert_int_equal(n->slice.tp_rank, p.part);
		assert_int_equal(n->slice.tp_size, shape.parts[p.stage]);
		assert_memory_equal(n->start.secret, s->group.secret, CLUSTER_SECRET_BYTES);
		assert_string_equal(s->group.node[i], n->name);
	}
}

/* ---- tests ---- */

static void two_nodes_and_a_loss(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	assert_int_equal(gather(s, &e), -EAGAIN);
	assert_non_null(strstr(e.message, "0 of 2 nodes are there"));
	join(s, 0);
	assert_int_equal(gather(s, &e), -EAGAIN);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	assert_int_equal(s->group.epoch, 1);
	assert_string_equal(s->group.members[2].host, "10.0.0.1");
	assert_int_equal(s->group.members[0].port, 999);
	assert_int_equal(s->regathers, 0);
	/* Lost: the engine is told, and the next plan is for what is left. */
	leave(s, 1);
	assert_int_equal(s->regathers, 1);
	assert_int_equal(s->broken, 1);
	assert_true(cluster_fleet_broken(s->world.fleet));
	cluster_fleet_scatter(s->world.fleet);
	run(s, (uint32_t[]){0}, 1);
	assert_int_equal(s->group.epoch, 2);
	assert_int_equal(s->node[0].releases, 1);
	assert_string_equal(s->previous, "n0n1");
	/* Nothing is left. */
	leave(s, 0);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "n0 is lost"));
	join(s, 1);
	run(s, (uint32_t[]){1}, 1);
	scene_destroy(s);
}

static void expect_source(const struct node *n, const char *name, const char *host, uint16_t port)
{
	const struct cluster_pull_source *s = n->assign.sources;
	assert_int_equal(n->assign.sources_count, 1);
	assert_string_equal(s->node, name);
	assert_string_equal(s->host, host);
	assert_int_equal(s->port, port);
}

/* By what they said last; nobody is told to pull from itself, nor from a node that is gone. */
static void pullers_are_told_who_has_a_copy(void **state)
{
	struct scene *s = scene_create(3);
	struct node *n = s->node;
	s->world.copies = 1 << 1;
	for (uint32_t i = 0; i < 3; i++)
		join(s, i);
	n[2].copy = true; // it has digested what it found
	run(s, (uint32_t[]){0, 1, 2}, 3);
	expect_source(&n[0], "n1", "10.0.0.1", 5001);
	assert_int_equal(n[1].assign.sources_count, 0);
	expect_source(&n[2], "n1", "10.0.0.1", 5001);
	leave(s, 0);
	cluster_fleet_scatter(s->world.fleet);
	run(s, (uint32_t[]){1, 2}, 2);
	expect_source(&n[1], "n2", "10.0.0.2", 5002); // its own is gone
	assert_int_equal(n[2].assign.sources_count, 0);
	leave(s, 2);
	cluster_fleet_scatter(s->world.fleet);
	run(s, (uint32_t[]){1}, 1);
	assert_int_equal(n[1].assign.sources_count, 0);
	scene_destroy(s);
}

/* Ranks met damaged data: the next assignments have the stores read, also when one was under way, until a group comes
 * of it. */
static void stores_are_mended(void **state)
{
	struct scene *s = scene_create(1);
	struct base_error e = {0};
	join(s, 0);
	run(s, (uint32_t[]){0}, 1);
	assert_false(s->node[0].check);
	cluster_fleet_mend(s->world.fleet);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[0]);
	assert_true(s->node[0].check);
	uint64_t first = s->node[0].assignment;
	cluster_fleet_mend(s->world.fleet);
	read_node(&s->node[0]);
	assert_int_equal(s->node[0].released, first);
	run(s, (uint32_t[]){0}, 1);
	assert_true(s->node[0].check);
	cluster_fleet_scatter(s->world.fleet);
	run(s, (uint32_t[]){0}, 1);
	assert_false(s->node[0].check);
	scene_destroy(s);
}

static void a_loss_while_it_is_prepared(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[0]);
	uint64_t first = s->node[0].assignment;
	prepared(&s->node[0]);
	leave(s, 1);
	assert_int_equal(s->regathers, 0);
	read_node(&s->node[0]);
	assert_int_equal(s->node[0].released, first);
	prepared(&s->node[0]); // too late: of a plan that is over
	run(s, (uint32_t[]){0}, 1);
	assert_int_equal(s->node[0].assigns, 2);
	scene_destroy(s);
}

static int lose_one(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	leave(context, 1);
	*ret_self = (struct cluster_member){.host = "127.0.0.1", .port = 999};
	return 0;
}

/* While the coordinator opens its socket, without its lock: the plan of the record stays the one of the last group. */
static void a_loss_before_the_epoch(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	assert_int_equal(s->group.epoch, 1);
	world_close(&s->world);
	int (*listen)(void *, struct cluster_member *, struct base_error *) = s->world.model.listen;
	s->world.model.listen = lose_one;
	world_open(&s->world);
	join(s, 0);
	join(s, 1);
	assert_int_equal(gather(s, &e), -EAGAIN);
	for (uint32_t i = 0; i < 2; i++) {
		read_node(&s->node[i]);
		prepared(&s->node[i]);
	}
	assert_int_equal(gather(s, &e), -EAGAIN);
	assert_non_null(strstr(e.message, "a node was lost meanwhile"));
	/* A coordinator that starts again knows whom it waits for. */
	world_close(&s->world);
	s->world.model.listen = listen;
	world_open(&s->world);
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	assert_string_equal(s->previous, "n0n1");
	assert_int_equal(s->group.epoch, 2);
	scene_destroy(s);
}

static void a_node_that_cannot(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[0]);
	read_node(&s->node[1]);
	failed(&s->node[1], -ESTALE, "another file");
	run(s, (uint32_t[]){0}, 1);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[0]);
	failed(&s->node[0], -ESTALE, "here, too");
	assert_int_equal(gather(s, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "n1 is unfit: another file"));
	/* Another process of it may be able to. */
	leave(s, 1);
	join(s, 1);
	run(s, (uint32_t[]){1}, 1);
	scene_destroy(s);
}

static void wait_until_gathered(struct scene *s)
{
	struct base_error e = {0};
	testing_wait_until(gather(s, &e) == -EAGAIN && (read_node(&s->node[0]), s->node[0].assigns >= 2));
	assert_int_equal(s->node[0].assigns, 2);
}

/* Another model is packed there: nothing that a second attempt would not mend. */
static void a_node_that_is_busy(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[0]);
	read_node(&s->node[1]);
	failed(&s->node[1], -EBUSY, "process 1 is packing");
	assert_int_equal(gather(s, &e), -EAGAIN); // its part is not given to n0
	assert_non_null(strstr(e.message, "n1 is tried again soon: process 1 is packing"));
	wait_until_gathered(s);
	run(s, (uint32_t[]){0, 1}, 2);
	/* A full drive: the others are asked meanwhile. */
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), -EAGAIN);
	read_node(&s->node[1]);
	failed(&s->node[1], -ENOSPC, "its drive is full");
	run(s, (uint32_t[]){0}, 1);
	scene_destroy(s);
}

static void what_does_not_fit(void **state)
{
	struct scene *s = scene_create(1);
	struct base_error e = {0};
	join(s, 0);
	s->too_small = true;
	assert_int_equal(gather(s, &e), -ENOMEM); // the first plan: for good
	s->too_small = false;
	run(s, (uint32_t[]){0}, 1);
	cluster_fleet_scatter(s->world.fleet);
	s->too_small = true;
	assert_int_equal(gather(s, &e), -EHOSTDOWN); // it did fit once
	assert_non_null(strstr(e.message, "cannot hold the model: 1 byte short"));
	scene_destroy(s);
}

static void wait_for(_Atomic uint32_t *count, uint32_t want)
{
	testing_wait_until(atomic_load(count) >= want);
}

static void drain_prepares_beside(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n9", true, &e), -ENOENT);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n1", true, &e), 0);
	wait_for(&s->plans, 2); // the coordinator's thread
	testing_wait_until((read_node(&s->node[0]), s->node[0].assigns >= 2));
	assert_int_equal(s->regathers, 0); // it still runs
	prepared(&s->node[0]);
	wait_for(&s->regathers, 1);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), 0);
	assert_int_equal(s->group.shape.stages, 1);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n0", true, &e), -EHOSTDOWN);
	scene_destroy(s);
}

static void say_leave(struct node *n)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Leave l = THAW__NODE__V1__LEAVE__INIT;
	l.when_free = true;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_LEAVE;
	m.leave = &l;
	assert_int_equal(send_node(n, &m), 0);
}

static void wait_for_end(struct node *n)
{
	uint8_t *data;
	size_t bytes;
	struct base_error e = {0};
	int status = 0;
	testing_wait_until(
		(status = cluster_session_next(n->scene->world.node[n->number].session, &data, &bytes, &e)) < 0 ||
		(status == 1 && (free(data), false)));
	assert_int_equal(status, -ECANCELED);
	assert_string_equal(e.message, "left");
}

/* A node that stops has its work done by others before it is let go; the last one is let go at once. */
static void a_node_leaves_when_it_is_free(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	say_leave(&s->node[1]);
	testing_wait_until((read_node(&s->node[0]), s->node[0].assigns >= 2));
	read_node(&s->node[1]);
	assert_int_equal(s->node[1].releases, 0); // it still computes
	assert_int_equal(s->regathers, 0);
	prepared(&s->node[0]);
	wait_for(&s->regathers, 1);
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), 0);
	assert_int_equal(s->group.shape.stages, 1);
	wait_for_end(&s->node[1]);
	assert_int_equal(s->broken, 0);
	say_leave(&s->node[0]);
	wait_for_end(&s->node[0]);
	assert_int_equal(s->broken, 1);
	scene_destroy(s);
}

/* A second drain, of a node without work, does not undo the first. */
static void two_drains(void **state)
{
	struct scene *s = scene_create(3);
	struct base_error e = {0};
	s->most = 2;
	for (uint32_t i = 0; i < 3; i++)
		join(s, i);
	run(s, (uint32_t[]){0, 1}, 2);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n1", true, &e), 0);
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "n2", true, &e), 0);
	/* The first plan may have been for n0 and n2. */
	testing_wait_until((read_node(&s->node[0]), prepared(&s->node[0]), s->regathers));
	cluster_fleet_scatter(s->world.fleet);
	assert_int_equal(gather(s, &e), 0);
	assert_int_equal(s->group.shape.stages, 1);
	assert_string_equal(s->group.node[0], "n0");
	scene_destroy(s);
}

static bool knows(struct scene *s, const char *name)
{
	static struct cluster_node_info infos[CLUSTER_MAX_NODES];
	uint32_t n = cluster_coordinator_nodes(s->world.coordinator, infos, CLUSTER_MAX_NODES);
	for (uint32_t i = 0; i < n; i++) {
		if (strcmp(infos[i].name, name) == 0)
			return true;
	}
	return false;
}

/* Names come and go: those that are gone make room, but not those that are drained or have work. */
static void more_names_than_places(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	char name[16];
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	leave(s, 1); // it is of the group still
	join_as(s, 2, "drained");
	assert_int_equal(cluster_coordinator_drain(s->world.coordinator, "drained", true, &e), 0);
	leave(s, 2);
	for (uint32_t i = 0; i < 2 * CLUSTER_MAX_NODES; i++) {
		snprintf(name, sizeof name, "x%u", i);
		join_as(s, 3, name);
		leave(s, 3);
	}
	assert_true(knows(s, "n0") && knows(s, "n1") && knows(s, "drained") && knows(s, name));
	assert_false(knows(s, "x0"));
	world_close(&s->world);
	s->world.config.nodes = 2;
	world_open(&s->world);
	assert_true(knows(s, "n1") && knows(s, "drained"));
	join_as(s, 3, "another");
	assert_true(knows(s, "another"));
	scene_destroy(s);
}

static void more_models_than_plans(void **state)
{
	struct scene *s = scene_create(1);
	char name[16];
	join(s, 0);
	for (uint32_t i = 0; i < CLUSTER_MAX_PLANS + 3; i++) {
		snprintf(name, sizeof name, "m%u", i);
		world_open_model(&s->world, name);
		run(s, (uint32_t[]){0}, 1);
	}
	assert_string_equal(s->previous, "");
	world_close(&s->world);
	s->world.config.nodes = 1;
	world_open(&s->world);
	join(s, 0);
	run(s, (uint32_t[]){0}, 1);
	assert_string_equal(s->previous, "n0");
	scene_destroy(s);
}

static void a_coordinator_that_starts_again(void **state)
{
	struct scene *s = scene_create(2);
	struct base_error e = {0};
	join(s, 0);
	join(s, 1);
	run(s, (uint32_t[]){0, 1}, 2);
	leave(s, 0);
	cluster_fleet_scatter(s->world.fleet);
	run(s, (uint32_t[]){1}, 1);
	uint64_t epoch = s->group.epoch;
	world_close(&s->world);
	s->world.config.nodes = 2;
	world_open(&s->world);
	assert_int_equal(gather(s, &e), -EAGAIN); // n1, which the last plan used, is waited for
	assert_non_null(strstr(e.message, "n1"));
	join(s, 1);
	assert_int_equal(gather(s, &e), -EAGAIN); // and the other, for a while
	assert_non_null(strstr(e.message, "1 of 2 nodes are there"));
	world_close(&s->world);
	s->world.config.return_ns = 1; // which is over
	s->world.config.nodes = 2;
	world_open(&s->world);
	join(s, 1);
	run(s, (uint32_t[]){1}, 1);
	assert_string_equal(s->previous, "n1");
	assert_int_equal(s->group.epoch, epoch + 1);
	scene_destroy(s);
}

/* Two stages of two parts; one part's node is lost, and what is left is one stage of two parts. Then a stage of one, and
 * one of two. */
static void parts_of_stages(void **state)
{
	struct scene *s = scene_create(4);
	struct cluster_start start;
	Thaw__Node__V1__Start bad = THAW__NODE__V1__START__INIT;
	struct base_error e = {0};
	s->shape = (struct rank_shape){2, {2, 2}};
	for (uint32_t i = 0; i < 4; i++)
		join(s, i);
	run(s, (uint32_t[]){0, 1, 2, 3}, 4);
	assert_string_equal(s->group.members[3].host, "10.0.0.2");
	leave(s, 1);
	assert_true(cluster_fleet_broken(s->world.fleet));
	cluster_fleet_scatter(s->world.fleet);
	s->most = 2;
	s->shape = (struct rank_shape){1, {2}};
	run(s, (uint32_t[]){0, 2}, 2);
	assert_string_equal(s->previous, "n0n1n2n3");
	assert_int_equal(s->node[3].releases, 0);
	read_node(&s->node[3]);
	assert_int_equal(s->node[3].releases, 1);
	/* A plan that lacks a part. */
	leave(s, 0);
	cluster_fleet_scatter(s->world.fleet);
	s->most = 0;
	s->shape = (struct rank_shape){2, {2, 2}};
	join(s, 1);
	assert_int_equal(gather(s, &e), -EPROTO);
	assert_string_equal(e.message, "a plan whose rank 2 is part 0 of 2");
	s->shape = (struct rank_shape){2, {1, 2}};
	run(s, (uint32_t[]){1, 2, 3}, 3);
	/* And messages that are none. */
	static uint32_t ones[CLUSTER_MAX_MEMBERS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
	static uint32_t none[1], lacks[2] = {1, 0}, many[2] = {16, 1}, wide[1] = {17}, most[2] = {UINT32_MAX, 1},
				 wraps[2] = {256 + 1, 1};
	const struct {
		uint32_t *parts, count;
	} shapes[] = {{ones, 0}, {ones, CLUSTER_MAX_MEMBERS}, {none, 1}, {lacks, 2}, {many, 2}, {wide, 1}, {most, 2},
		{wraps, 2}};
	bad.epoch = 1;
	for (size_t i = 0; i < base_array_size(shapes); i++) {
		bad.parts = shapes[i].parts;
		bad.n_parts = shapes[i].count;
		assert_int_equal(cluster_read_start(&bad, &start, &e), -EBADMSG);
		assert_memory_equal(e.message, "parts: ", 7);
	}
	bad.n_parts = 2;
	bad.parts = (uint32_t[]){1, 3};
	bad.stage = 2;
	assert_int_equal(cluster_read_start(&bad, &start, &e), -EBADMSG);
	assert_string_equal(e.message, "stage: 2 of 2 in epoch 1");
	bad.stage = 0;
	bad.part = 1;
	assert_int_equal(cluster_read_start(&bad, &start, &e), -EBADMSG);
	assert_string_equal(e.message, "part: 1 of 1 in stage 0");
	bad.stage = 1;
	assert_int_equal(cluster_read_start(&bad, &start, &e), -EBADMSG);
	assert_string_equal(e.message, "members: 0 for 4 ranks");
	scene_destroy(s);
}

static void records(void **state)
{
	static const char *const bad[] = {"", "[]", "{}", "{\"format\": 2}", "{\"format\": 1, \"cluster\": \"A\"}",
		"{\"format\": 1, \"cluster\": \"a\", \"coordinator\": \"b\", \"epoch\": -1, \"nodes\": [], \"plans\": "
		"[]}",
		"{\"format\": 1, \"cluster\": \"a\", \"coordinator\": \"b\", \"epoch\": 1, \"nodes\": [3], \"plans\": "
		"[]}",
		"{\"format\": 1, \"cluster\": \"a\", \"coordinator\": \"b\", \"epoch\": 1, \"nodes\": [], \"plans\": "
		"{}}"};
	_cleanup_free_ struct cluster_record *r = calloc(1, sizeof *r), *back = calloc(1, sizeof *back);
	snprintf(r->cluster, sizeof r->cluster, "lab");
	snprintf(r->coordinator, sizeof r->coordinator, "head");
	r->epoch = 1ull << 40;
	r->nodes_count = 2;
	snprintf(r->nodes[0].name, sizeof r->nodes[0].name, "a");
	snprintf(r->nodes[1].name, sizeof r->nodes[1].name, "b");
	r->nodes[1].draining = true;
	r->plans_count = 1;
	snprintf(r->plans[0].model, sizeof r->plans[0].model, "a \"model\"");
	r->plans[0].digest[15] = 0xfe;
	r->plans[0].stages_count = 1;
	r->plans[0].stages[0] = (struct cluster_state_stage){.node = "a", .slice = {3, 4, 0, 1}};
	_cleanup_free_ char *text = cluster_record_print(r);
	assert_int_equal(cluster_record_parse(text, strlen(text), back, NULL), 0);
	assert_memory_equal(r, back, sizeof *r);
	for (size_t i = 0; i < base_array_size(bad); i++)
		assert_int_equal(cluster_record_parse(bad[i], strlen(bad[i]), back, NULL), -EBADMSG);
}

static void one_coordinator_for_a_store(void **state)
{
	struct scene *s = scene_create(1);
	struct cluster_state *state_file;
	struct base_error e = {0};
	const struct cluster_state_config c = {.who = "other", .directory = s->world.folder, .cluster = "lab"};
	assert_int_equal(cluster_state_file_ops.open(&c, &state_file, &e), -EBUSY);
	assert_non_null(strstr(e.message, "head coordinates this cluster already"));
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_nodes_and_a_loss),
		cmocka_unit_test(a_loss_while_it_is_prepared),
		cmocka_unit_test(a_loss_before_the_epoch),
		cmocka_unit_test(stores_are_mended),
		cmocka_unit_test(pullers_are_told_who_has_a_copy),
		cmocka_unit_test(a_node_that_cannot),
		cmocka_unit_test(a_node_that_is_busy),
		cmocka_unit_test(what_does_not_fit),
		cmocka_unit_test(drain_prepares_beside),
		cmocka_unit_test(two_drains),
		cmocka_unit_test(a_node_leaves_when_it_is_free),
		cmocka_unit_test(more_names_than_places),
		cmocka_unit_test(more_models_than_plans),
		cmocka_unit_test(a_coordinator_that_starts_again),
		cmocka_unit_test(parts_of_stages),
		cmocka_unit_test(records),
		cmocka_unit_test(one_coordinator_for_a_store),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
