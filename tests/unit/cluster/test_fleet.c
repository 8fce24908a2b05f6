// SPDX-License-Identifier: Apache-2.0
// Plans and epochs of the coordinator, with nodes that are made up: what each is told, in which order, and what comes of losses.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "proto/check.h"

#define MS 1000000ull
#define LAYERS 12u

struct node {
	struct cluster_session *session;
	char name[16];
	uint64_t assignment, released, incarnation;
	struct cluster_slice slice;
	struct cluster_start start; // the last
	uint32_t assigns, starts, releases;
	bool check; // asked for with the last assignment
	uint64_t spare; // the last such assignment
	struct cluster_slice spare_slice;
	struct cluster_assign assign; // the last
	bool copy; // what it says when it is prepared
	uint32_t forgets;
};

struct world {
	char folder[64];
	struct cluster_coordinator *c;
	struct cluster_fleet *fleet;
	struct node node[4];
	uint32_t most; // nodes that the plan uses; 0: all
	uint32_t parts; // of them in a stage; 0: 1
	bool too_small;
	_Atomic uint32_t regathers, broken, plans;
	char previous[256]; // nodes of the plan before, as plan() saw them
	struct cluster_group group;
	uint32_t replicas;
	uint32_t copies; // bits of nodes that say that they have one when they join
};

static void wake(void *context)
{
}

/* Even, by name. */
static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	struct world *w = context;
	uint32_t n = w->most && w->most < view->count ? w->most : view->count, parts = w->parts ? w->parts : 1;
	atomic_fetch_add(&w->plans, 1);
	w->previous[0] = '\0';
	for (uint32_t i = 0; view->previous && i < view->previous->stages_count; i++)
		strncat(w->previous, view->previous->stages[i].node, 16);
	if (w->too_small)
		return base_error_set(e, -ENOMEM, "1 byte short");
	ret->stages_count = n;
	ret->parts = w->parts;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t stage = i / parts, stages = n / parts;
		uint32_t first = LAYERS * stage / stages, end = LAYERS * (stage + 1) / stages;
		ret->stages[i] =
			(struct cluster_plan_stage){.node = i, .slice = {first, end - first, i % parts, parts}};
	}
	return 0;
}

static int listen_here(void *context, struct cluster_member *ret_self, struct base_error *e)
{
	*ret_self = (struct cluster_member){.host = "127.0.0.1", .port = 999};
	return 0;
}

static void regather(void *context, const char *why)
{
	atomic_fetch_add(&((struct world *)context)->regathers, 1);
}

static void broken(void *context)
{
	atomic_fetch_add(&((struct world *)context)->broken, 1);
}

static int open_state(const struct world *w, const char *who, struct cluster_state **ret_state, struct base_error *e)
{
	const struct cluster_state_config c = {.who = who, .directory = w->folder, .cluster = "lab"};
	return cluster_state_file_ops.open(&c, ret_state, e);
}

static void open_coordinator(struct world *w, uint32_t nodes)
{
	struct cluster_state *s;
	struct base_error e = {0};
	const struct cluster_coordinator_config c = {.cluster = "lab",
		.node = "head",
		.version = "1",
		.host = "127.0.0.1",
		.nodes = nodes,
		.replicas = w->replicas,
		.spare_ns = MS,
		.heartbeat_ns = 1000 * MS,
		.lost_ns = 60000 * MS,
		.return_ns = 300 * MS};
	if (open_state(w, "head", &s, &e) || cluster_coordinator_create(&c, s, &w->c, &e))
		fail_msg("%s", base_error_text(&e));
}

static void open_fleet_of(struct world *w, const char *model)
{
	const struct cluster_fleet_config f = {.model = model,
		.path = "/m.gguf",
		.file_bytes = 2,
		.header_bytes = 1,
		.file_fd = -1,
		.digest = {1, 2, 3},
		.plan = plan,
		.listen = listen_here,
		.regather = regather,
		.broken = broken,
		.context = w};
	assert_int_equal(cluster_fleet_create(w->c, &f, &w->fleet, NULL), 0);
}

static void open_fleet(struct world *w)
{
	open_fleet_of(w, "m");
}

static struct world *world_create_with(uint32_t nodes, uint32_t replicas)
{
	struct world *w = calloc(1, sizeof *w);
	w->replicas = replicas;
	snprintf(w->folder, sizeof w->folder, "/tmp/thaw-fleet-XXXXXX");
	assert_non_null(mkdtemp(w->folder));
	open_coordinator(w, nodes);
	open_fleet(w);
	return w;
}

static struct world *world_create(uint32_t nodes)
{
	return world_create_with(nodes, 1);
}

static void leave(struct world *w, uint32_t i)
{
	cluster_session_close(w->node[i].session);
	w->node[i].session = NULL;
}

static void close_all(struct world *w)
{
	for (uint32_t i = 0; i < 4; i++)
		leave(w, i);
	cluster_fleet_destroy(w->fleet);
	cluster_coordinator_destroy(w->c);
}

static void world_destroy(struct world *w)
{
	char command[96];
	close_all(w);
	snprintf(command, sizeof command, "rm -r %s", w->folder);
	FILE *p = popen(command, "r");
	assert_true(p && pclose(p) == 0);
	free(w);
}

static int send_node(struct node *n, Thaw__Node__V1__NodeMessage *m)
{
	return cluster_session_message(n->session, m, NULL);
}

static void join_as(struct world *w, uint32_t i, const char *name)
{
	struct node *n = &w->node[i];
	struct cluster_identity peer = {.cluster = "lab", .role = CLUSTER_ROLE_WORKER};
	_cleanup_free_ struct cluster_facts *f = calloc(1, sizeof *f);
	_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
	*n = (struct node){.incarnation = n->incarnation + 1};
	snprintf(n->name, sizeof n->name, "%s", name);
	snprintf(peer.name, sizeof peer.name, "%s", n->name);
	assert_int_equal(cluster_session_open(w->c, &peer, wake, n, &n->session, NULL), 0);
	*f = (struct cluster_facts){.version = "1", .cluster = "lab", .cpus = 1, .incarnation = n->incarnation};
	f->wall_ns = base_clock_wall_ns();
	snprintf(f->node, sizeof f->node, "%s", n->name);
	snprintf(f->address, sizeof f->address, "10.0.0.%u", i);
	f->pull_port = (uint16_t)(5000 + i);
	f->store[0] = (struct cluster_stored){.digest = {1, 2, 3}, .copy = w->copies >> i & 1};
	f->store_count = 1;
	cluster_fill_register(f, m);
	assert_int_equal(send_node(n, &m->message), 0);
}

static void join(struct world *w, uint32_t i)
{
	char name[8];
	snprintf(name, sizeof name, "n%u", i);
	join_as(w, i, name);
}

/* Takes what the coordinator said. */
static void read_node(struct node *n)
{
	uint8_t *data;
	size_t bytes;
	while (n->session && cluster_session_next(n->session, &data, &bytes, NULL) == 1) {
		struct proto_budget budget;
		ProtobufCMessage *p;
		assert_int_equal(proto_unpack(&thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget,
					 &p, NULL, NULL),
			0);
		const Thaw__Node__V1__CoordinatorMessage *m = (const Thaw__Node__V1__CoordinatorMessage *)p;
		struct cluster_assign a;
		if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN) {
			assert_int_equal(cluster_read_assign(m->assign, &a, NULL), 0);
			if (a.spare) {
				n->spare = a.assignment;
				n->spare_slice = a.slice;
			} else {
				n->assignment = a.assignment;
				n->slice = a.slice;
				n->check = a.check;
				n->assign = a;
				n->assigns++;
			}
		} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START) {
			assert_int_equal(cluster_read_start(m->start, &n->start, NULL), 0);
			assert_int_equal(n->start.assignment, n->assignment);
			n->starts++;
		} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_RELEASE) {
			n->released = m->release->assignment;
			n->releases++;
		} else if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET) {
			assert_int_equal(cluster_read_forget(m->forget, &a, NULL), 0);
			assert_string_equal(a.model, "m");
			assert_memory_equal(a.digest, ((const uint8_t[16]){1, 2, 3}), 16);
			n->forgets++;
		}
		protobuf_c_message_free_unpacked(p, &budget.allocator);
		free(data);
	}
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

static int gather(struct world *w, struct base_error *e)
{
	return cluster_fleet_gather(w->fleet, &w->group, e);
}

/* The whole way to a group of these nodes. */
static void run(struct world *w, const uint32_t *nodes, uint32_t count)
{
	struct base_error e = {0};
	assert_int_equal(gather(w, &e), -EAGAIN);
	for (uint32_t i = 0; i < count; i++) {
		read_node(&w->node[nodes[i]]);
		prepared(&w->node[nodes[i]]);
	}
	if (gather(w, &e))
		fail_msg("%s", base_error_text(&e));
	uint32_t parts = w->parts ? w->parts : 1, stages = count / parts;
	assert_int_equal(w->group.stages, stages);
	assert_int_equal(w->group.parts, parts);
	assert_int_equal(w->group.ranks, count);
	for (uint32_t i = 0; i < count; i++) {
		struct node *n = &w->node[nodes[i]];
		read_node(n);
		assert_int_equal(n->start.epoch, w->group.epoch);
		assert_int_equal(n->start.stage, i / parts);
		assert_int_equal(n->start.stages, stages);
		assert_int_equal(n->start.part, i % parts);
		assert_int_equal(n->start.parts, parts);
		assert_int_equal(n->start.members_count, 1 + count);
		assert_int_equal(n->slice.first_layer, LAYERS * (i / parts) / stages);
		assert_int_equal(n->slice.tp_rank, i % parts);
		assert_int_equal(n->slice.tp_size, parts);
		assert_memory_equal(n->start.secret, w->group.secret, CLUSTER_SECRET_BYTES);
		assert_string_equal(w->group.node[i], n->name);
	}
}

/* ---- tests ---- */

static void two_nodes_and_a_loss(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	assert_int_equal(gather(w, &e), -EAGAIN);
	assert_non_null(strstr(e.message, "0 of 2 nodes are there"));
	join(w, 0);
	assert_int_equal(gather(w, &e), -EAGAIN);
	join(w, 1);
	run(w, (uint32_t[]){0, 1}, 2);
	assert_int_equal(w->group.epoch, 1);
	assert_string_equal(w->group.members[2].host, "10.0.0.1");
	assert_int_equal(w->group.members[0].port, 999);
	assert_int_equal(w->regathers, 0);
	/* Lost: the engine is told, and the next plan is for what is left. */
	leave(w, 1);
	assert_int_equal(w->regathers, 1);
	assert_int_equal(w->broken, 1);
	assert_true(cluster_fleet_broken(w->fleet));
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){0}, 1);
	assert_int_equal(w->group.epoch, 2);
	assert_int_equal(w->node[0].releases, 1);
	assert_string_equal(w->previous, "n0n1");
	/* Nothing is left. */
	leave(w, 0);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "n0 is lost"));
	join(w, 1);
	run(w, (uint32_t[]){1}, 1);
	world_destroy(w);
}

/* What equal nodes need after the loss of any one of them is next to what they have: they keep it. */
static void spares_are_what_a_loss_needs(void **state)
{
	for (uint32_t n = 2; n <= 9; n++) {
		for (uint32_t layers = n; layers <= 80; layers++) {
			struct cluster_slice stage[9], keep;
			uint32_t copies[80] = {0};
			for (uint32_t i = 0; i < n; i++) {
				uint32_t first = layers * i / n, end = layers * (i + 1) / n;
				stage[i] = (struct cluster_slice){first, end - first, 0, 1};
			}
			for (uint32_t i = 0; i < n; i++) {
				cluster_spare_range(stage, n, i, 1, &keep);
				assert_memory_equal(&keep, &stage[i], sizeof keep);
				cluster_spare_range(stage, n, i, 16, &keep);
				assert_int_equal(keep.layers, layers);
				cluster_spare_range(stage, n, i, n == 2 ? 2 : 3, &keep);
				for (uint32_t l = keep.first_layer; l < keep.first_layer + keep.layers; l++)
					copies[l]++;
				for (uint32_t lost = 0; lost < n; lost++) {
					uint32_t at = i - (i > lost), m = n - 1;
					if (lost == i)
						continue;
					assert_true(layers * at / m >= keep.first_layer);
					assert_true(layers * (at + 1) / m <= keep.first_layer + keep.layers);
				}
			}
			for (uint32_t l = 0; l < layers; l++)
				assert_true(copies[l] >= 2);
		}
	}
}

static void stored(struct node *n, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Stored x = THAW__NODE__V1__STORED__INIT;
	x.assignment = n->spare;
	x.layers = 5;
	x.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_STORED;
	m.stored = &x;
	assert_int_equal(send_node(n, &m), 0);
}

static void expect_spare(struct node *n, uint64_t after)
{
	for (int i = 0; i < 6000 && n->spare <= after; i++) {
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		read_node(n);
	}
	assert_true(n->spare > after);
}

/* While a group runs its nodes are asked for spares, once; a plan has those that are under way released before its own work. */
static void spares_of_a_group(void **state)
{
	struct world *w = world_create_with(3, 2);
	struct node *n = w->node;
	for (uint32_t i = 0; i < 3; i++)
		join(w, i);
	run(w, (uint32_t[]){0, 1, 2}, 3);
	for (uint32_t i = 0; i < 3; i++)
		expect_spare(&n[i], 0);
	assert_int_equal(n[0].spare_slice.first_layer, 0);
	assert_int_equal(n[0].spare_slice.layers, 8);
	assert_int_equal(n[1].spare_slice.first_layer, 2);
	assert_int_equal(n[1].spare_slice.layers, 8);
	assert_int_equal(n[2].spare_slice.first_layer, 4);
	stored(&n[0], ""); // done: forgotten
	read_node(&n[0]);
	assert_int_equal(n[0].released, n[0].spare);
	stored(&n[0], ""); // said twice
	uint64_t assignment = n[1].assignment;
	n[1].assignment = n[1].spare;
	failed(&n[1], -EROFS, "its drive is read-only"); // of a spare: nothing comes of it
	n[1].assignment = assignment;
	assert_false(cluster_fleet_broken(w->fleet));
	uint64_t last = n[2].spare;
	leave(w, 1);
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){0, 2}, 2);
	assert_int_equal(n[2].releases, 2); // of its part, and of the spare that was under way
	expect_spare(&n[2], last); // of the new group
	assert_int_equal(n[2].spare_slice.layers, 12);
	world_destroy(w);
}

/* When a model is unloaded, and not when its coordinator stops or another name of it is left. */
static void spares_are_forgotten(void **state)
{
	struct world *w = world_create(1);
	struct cluster_fleet *first = w->fleet;
	join(w, 0);
	cluster_fleet_destroy(first);
	open_fleet_of(w, "again");
	first = w->fleet;
	open_fleet(w);
	cluster_fleet_forget(w->fleet);
	cluster_fleet_destroy(w->fleet);
	read_node(&w->node[0]);
	assert_int_equal(w->node[0].forgets, 0);
	cluster_fleet_destroy(first);
	open_fleet(w);
	cluster_fleet_forget(w->fleet);
	cluster_fleet_destroy(w->fleet);
	w->fleet = NULL;
	read_node(&w->node[0]);
	assert_int_equal(w->node[0].forgets, 1);
	world_destroy(w);
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
	struct world *w = world_create(3);
	struct node *n = w->node;
	w->copies = 1 << 1;
	for (uint32_t i = 0; i < 3; i++)
		join(w, i);
	n[2].copy = true; // it has digested what it found
	run(w, (uint32_t[]){0, 1, 2}, 3);
	expect_source(&n[0], "n1", "10.0.0.1", 5001);
	assert_int_equal(n[1].assign.sources_count, 0);
	expect_source(&n[2], "n1", "10.0.0.1", 5001);
	leave(w, 0);
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){1, 2}, 2);
	expect_source(&n[1], "n2", "10.0.0.2", 5002); // its own is gone
	assert_int_equal(n[2].assign.sources_count, 0);
	leave(w, 2);
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){1}, 1);
	assert_int_equal(n[1].assign.sources_count, 0);
	world_destroy(w);
}

/* Ranks met damaged data: the next assignments have the stores read, also when one was under way, until a group comes of it. */
static void stores_are_mended(void **state)
{
	struct world *w = world_create(1);
	struct base_error e = {0};
	join(w, 0);
	run(w, (uint32_t[]){0}, 1);
	assert_false(w->node[0].check);
	cluster_fleet_mend(w->fleet);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[0]);
	assert_true(w->node[0].check);
	uint64_t first = w->node[0].assignment;
	cluster_fleet_mend(w->fleet);
	read_node(&w->node[0]);
	assert_int_equal(w->node[0].released, first);
	run(w, (uint32_t[]){0}, 1);
	assert_true(w->node[0].check);
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){0}, 1);
	assert_false(w->node[0].check);
	world_destroy(w);
}

static void a_loss_while_it_is_prepared(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[0]);
	uint64_t first = w->node[0].assignment;
	prepared(&w->node[0]);
	leave(w, 1);
	assert_int_equal(w->regathers, 0);
	read_node(&w->node[0]);
	assert_int_equal(w->node[0].released, first);
	prepared(&w->node[0]); // too late: of a plan that is over
	run(w, (uint32_t[]){0}, 1);
	assert_int_equal(w->node[0].assigns, 2);
	world_destroy(w);
}

static void a_node_that_cannot(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[0]);
	read_node(&w->node[1]);
	failed(&w->node[1], -ESTALE, "another file");
	run(w, (uint32_t[]){0}, 1);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[0]);
	failed(&w->node[0], -ESTALE, "here, too");
	assert_int_equal(gather(w, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "n1 is unfit: another file"));
	/* Another process of it may be able to. */
	leave(w, 1);
	join(w, 1);
	run(w, (uint32_t[]){1}, 1);
	world_destroy(w);
}

static void wait_until_gathered(struct world *w)
{
	struct base_error e = {0};
	for (int i = 0; i < 1000 && w->node[0].assigns < 2; i++) {
		assert_int_equal(gather(w, &e), -EAGAIN);
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
		read_node(&w->node[0]);
	}
	assert_int_equal(w->node[0].assigns, 2);
}

/* Another model is packed there: nothing that a second attempt would not mend. */
static void a_node_that_is_busy(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[0]);
	read_node(&w->node[1]);
	failed(&w->node[1], -EBUSY, "process 1 is packing");
	assert_int_equal(gather(w, &e), -EAGAIN); // its part is not given to n0
	assert_non_null(strstr(e.message, "n1 is tried again soon: process 1 is packing"));
	wait_until_gathered(w);
	run(w, (uint32_t[]){0, 1}, 2);
	/* A full drive: the others are asked meanwhile. */
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), -EAGAIN);
	read_node(&w->node[1]);
	failed(&w->node[1], -ENOSPC, "its drive is full");
	run(w, (uint32_t[]){0}, 1);
	world_destroy(w);
}

static void what_does_not_fit(void **state)
{
	struct world *w = world_create(1);
	struct base_error e = {0};
	join(w, 0);
	w->too_small = true;
	assert_int_equal(gather(w, &e), -ENOMEM); // the first plan: for good
	w->too_small = false;
	run(w, (uint32_t[]){0}, 1);
	cluster_fleet_scatter(w->fleet);
	w->too_small = true;
	assert_int_equal(gather(w, &e), -EHOSTDOWN); // it did fit once
	assert_non_null(strstr(e.message, "cannot hold the model: 1 byte short"));
	world_destroy(w);
}

static void wait_for(_Atomic uint32_t *count, uint32_t want)
{
	for (int i = 0; i < 2000 && atomic_load(count) < want; i++)
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	assert_int_equal(atomic_load(count), want);
}

static void drain_prepares_beside(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	run(w, (uint32_t[]){0, 1}, 2);
	assert_int_equal(cluster_coordinator_drain(w->c, "n9", true, &e), -ENOENT);
	assert_int_equal(cluster_coordinator_drain(w->c, "n1", true, &e), 0);
	wait_for(&w->plans, 2); // the coordinator's thread
	for (int i = 0; i < 2000 && w->node[0].assigns < 2; i++) {
		read_node(&w->node[0]);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	assert_int_equal(w->regathers, 0); // it still runs
	prepared(&w->node[0]);
	wait_for(&w->regathers, 1);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), 0);
	assert_int_equal(w->group.stages, 1);
	assert_int_equal(cluster_coordinator_drain(w->c, "n0", true, &e), -EHOSTDOWN);
	world_destroy(w);
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
	for (int i = 0; i < 6000 && status >= 0; i++) {
		status = cluster_session_next(n->session, &data, &bytes, &e);
		if (status == 1)
			free(data);
		else
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	assert_int_equal(status, -ECANCELED);
	assert_string_equal(e.message, "left");
}

/* A node that stops has its work done by others before it is let go; the last one is let go at once. */
static void a_node_leaves_when_it_is_free(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	run(w, (uint32_t[]){0, 1}, 2);
	say_leave(&w->node[1]);
	for (int i = 0; i < 6000 && w->node[0].assigns < 2; i++) {
		read_node(&w->node[0]);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	read_node(&w->node[1]);
	assert_int_equal(w->node[1].releases, 0); // it still computes
	assert_int_equal(w->regathers, 0);
	prepared(&w->node[0]);
	wait_for(&w->regathers, 1);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), 0);
	assert_int_equal(w->group.stages, 1);
	wait_for_end(&w->node[1]);
	assert_int_equal(w->broken, 0);
	say_leave(&w->node[0]);
	wait_for_end(&w->node[0]);
	assert_int_equal(w->broken, 1);
	world_destroy(w);
}

/* A second drain, of a node without work, does not undo the first. */
static void two_drains(void **state)
{
	struct world *w = world_create(3);
	struct base_error e = {0};
	w->most = 2;
	for (uint32_t i = 0; i < 3; i++)
		join(w, i);
	run(w, (uint32_t[]){0, 1}, 2);
	assert_int_equal(cluster_coordinator_drain(w->c, "n1", true, &e), 0);
	assert_int_equal(cluster_coordinator_drain(w->c, "n2", true, &e), 0);
	for (int i = 0; i < 2000 && !w->regathers; i++) { // the first plan may have been for n0 and n2
		read_node(&w->node[0]);
		prepared(&w->node[0]);
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	wait_for(&w->regathers, 1);
	cluster_fleet_scatter(w->fleet);
	assert_int_equal(gather(w, &e), 0);
	assert_int_equal(w->group.stages, 1);
	assert_string_equal(w->group.node[0], "n0");
	world_destroy(w);
}

static bool knows(struct world *w, const char *name)
{
	static struct cluster_node_info infos[CLUSTER_MAX_NODES];
	uint32_t n = cluster_coordinator_nodes(w->c, infos, CLUSTER_MAX_NODES);
	for (uint32_t i = 0; i < n; i++) {
		if (strcmp(infos[i].name, name) == 0)
			return true;
	}
	return false;
}

/* Names come and go: those that are gone make room, but not those that are drained or have work. */
static void more_names_than_places(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	char name[16];
	join(w, 0);
	join(w, 1);
	run(w, (uint32_t[]){0, 1}, 2);
	leave(w, 1); // it is of the group still
	join_as(w, 2, "drained");
	assert_int_equal(cluster_coordinator_drain(w->c, "drained", true, &e), 0);
	leave(w, 2);
	for (uint32_t i = 0; i < 2 * CLUSTER_MAX_NODES; i++) {
		snprintf(name, sizeof name, "x%u", i);
		join_as(w, 3, name);
		leave(w, 3);
	}
	assert_true(knows(w, "n0") && knows(w, "n1") && knows(w, "drained") && knows(w, name));
	assert_false(knows(w, "x0"));
	close_all(w);
	open_coordinator(w, 2);
	open_fleet(w);
	assert_true(knows(w, "n1") && knows(w, "drained"));
	join_as(w, 3, "another");
	assert_true(knows(w, "another"));
	world_destroy(w);
}

static void more_models_than_plans(void **state)
{
	struct world *w = world_create(1);
	char name[16];
	join(w, 0);
	for (uint32_t i = 0; i < CLUSTER_MAX_PLANS + 3; i++) {
		cluster_fleet_destroy(w->fleet);
		snprintf(name, sizeof name, "m%u", i);
		open_fleet_of(w, name);
		run(w, (uint32_t[]){0}, 1);
	}
	assert_string_equal(w->previous, "");
	close_all(w);
	open_coordinator(w, 1);
	open_fleet_of(w, name);
	join(w, 0);
	run(w, (uint32_t[]){0}, 1);
	assert_string_equal(w->previous, "n0");
	world_destroy(w);
}

static void a_coordinator_that_starts_again(void **state)
{
	struct world *w = world_create(2);
	struct base_error e = {0};
	join(w, 0);
	join(w, 1);
	run(w, (uint32_t[]){0, 1}, 2);
	leave(w, 0);
	cluster_fleet_scatter(w->fleet);
	run(w, (uint32_t[]){1}, 1);
	uint64_t epoch = w->group.epoch;
	close_all(w);
	open_coordinator(w, 2);
	open_fleet(w);
	assert_int_equal(gather(w, &e), -EAGAIN); // n1, which the last plan used, is waited for
	assert_non_null(strstr(e.message, "n1"));
	join(w, 1);
	nanosleep(&(struct timespec){.tv_nsec = 350000000}, NULL); // for the others not forever
	run(w, (uint32_t[]){1}, 1);
	assert_string_equal(w->previous, "n1");
	assert_int_equal(w->group.epoch, epoch + 1);
	world_destroy(w);
}

/* Two stages of two parts; one part's node is lost, and what is left is one stage of two parts. */
static void parts_of_stages(void **state)
{
	struct world *w = world_create(4);
	struct cluster_start s;
	Thaw__Node__V1__Start bad = THAW__NODE__V1__START__INIT;
	struct base_error e = {0};
	w->parts = 2;
	for (uint32_t i = 0; i < 4; i++)
		join(w, i);
	run(w, (uint32_t[]){0, 1, 2, 3}, 4);
	assert_string_equal(w->group.members[3].host, "10.0.0.2");
	leave(w, 1);
	assert_true(cluster_fleet_broken(w->fleet));
	cluster_fleet_scatter(w->fleet);
	w->most = 2;
	run(w, (uint32_t[]){0, 2}, 2);
	assert_string_equal(w->previous, "n0n1n2n3");
	assert_int_equal(w->node[3].releases, 0);
	read_node(&w->node[3]);
	assert_int_equal(w->node[3].releases, 1);
	/* A plan that is no rectangle. */
	leave(w, 0);
	cluster_fleet_scatter(w->fleet);
	w->most = 0;
	w->parts = 2;
	join(w, 1);
	assert_int_equal(gather(w, &e), -EPROTO);
	assert_non_null(strstr(e.message, "3 ranks, 2 of each stage"));
	/* And messages that are none. */
	bad.epoch = 1;
	bad.stages = 9;
	bad.parts = 2;
	assert_int_equal(cluster_read_start(&bad, &s, &e), -EBADMSG);
	bad.stages = bad.part = 2;
	assert_int_equal(cluster_read_start(&bad, &s, &e), -EBADMSG);
	assert_string_equal(e.message, "part: 2 of 2 in 2 stages");
	world_destroy(w);
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
	struct world *w = world_create(1);
	struct cluster_state *s;
	struct base_error e = {0};
	assert_int_equal(open_state(w, "other", &s, &e), -EBUSY);
	assert_non_null(strstr(e.message, "head coordinates this cluster already"));
	world_destroy(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(two_nodes_and_a_loss),
		cmocka_unit_test(a_loss_while_it_is_prepared),
		cmocka_unit_test(stores_are_mended),
		cmocka_unit_test(spares_are_what_a_loss_needs),
		cmocka_unit_test(spares_of_a_group),
		cmocka_unit_test(spares_are_forgotten),
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
