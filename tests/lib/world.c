// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include "tests/lib/world.h"

#include <ftw.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/check.h"

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

static void wake(void *context)
{
}

void world_init(struct world *w,
	int (*plan)(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e),
	void *context)
{
	*w = (struct world){.folder = "/tmp/thaw-world-XXXXXX",
		.config = {.cluster = "lab",
			.node = "head",
			.version = "1",
			.host = "127.0.0.1",
			.heartbeat_ns = 60 * BASE_NS_PER_SECOND,
			.lost_ns = 600 * BASE_NS_PER_SECOND,
			.return_ns = 600 * BASE_NS_PER_SECOND},
		.model = {.model = "m",
			.path = "/m.gguf",
			.file_bytes = 2,
			.header_bytes = 1,
			.file_fd = -1,
			.digest = {1, 2, 3},
			.plan = plan,
			.listen = listen_here,
			.regather = regather,
			.broken = broken,
			.context = context}};
	assert_non_null(mkdtemp(w->folder));
}

void world_open(struct world *w)
{
	struct cluster_state *s;
	struct base_error e = {0};
	const struct cluster_state_config file = {
		.who = w->config.node, .directory = w->folder, .cluster = w->config.cluster};
	if (cluster_state_file_ops.open(&file, &s, &e) ||
		cluster_coordinator_create(&w->config, s, &w->coordinator, &e))
		fail_msg("%s", base_error_text(&e));
	world_open_model(w, w->model.model);
}

void world_open_model(struct world *w, const char *name)
{
	struct base_error e = {0};
	cluster_fleet_destroy(w->fleet);
	w->model.model = name;
	if (cluster_fleet_create(w->coordinator, &w->model, &w->fleet, &e))
		fail_msg("%s", base_error_text(&e));
}

void world_close(struct world *w)
{
	for (uint32_t i = 0; i < WORLD_NODES; i++)
		world_leave(w, i);
	cluster_fleet_destroy(w->fleet);
	cluster_coordinator_destroy(w->coordinator);
	w->fleet = NULL;
	w->coordinator = NULL;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void world_finish(struct world *w)
{
	world_close(w);
	assert_int_equal(nftw(w->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS), 0);
}

void world_join(struct world *w, uint32_t i, const char *name, uint32_t cpus)
{
	struct world_node *n = &w->node[i];
	struct cluster_identity peer = {.cluster = "lab", .role = CLUSTER_ROLE_WORKER};
	_cleanup_free_ struct cluster_facts *f = calloc(1, sizeof *f);
	_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
	snprintf(n->name, sizeof n->name, "%s", name);
	snprintf(peer.name, sizeof peer.name, "%s", name);
	assert_int_equal(cluster_session_open(w->coordinator, &peer, wake, n, &n->session, NULL), 0);
	*f = (struct cluster_facts){.version = "1", .cluster = "lab", .cpus = cpus, .incarnation = ++n->incarnation};
	f->wall_ns = base_clock_wall_ns();
	f->memory_bytes = f->memory_limit_bytes = f->memory_available_bytes = 8ull << 30;
	snprintf(f->node, sizeof f->node, "%s", name);
	snprintf(f->address, sizeof f->address, "10.0.0.%u", i);
	snprintf(f->rack, sizeof f->rack, "%s", w->rack[i] ? w->rack[i] : "");
	f->pull_port = (uint16_t)(5000 + i);
	f->store[0].copy = w->copies >> i & 1;
	memcpy(f->store[0].digest, w->model.digest, sizeof f->store[0].digest);
	f->store_count = 1;
	cluster_fill_register(f, m);
	assert_int_equal(cluster_session_message(n->session, &m->message, NULL), 0);
}

void world_leave(struct world *w, uint32_t i)
{
	cluster_session_close(w->node[i].session);
	w->node[i].session = NULL;
}

int world_say(struct world *w, uint32_t i, Thaw__Node__V1__NodeMessage *m)
{
	return cluster_session_message(w->node[i].session, m, NULL);
}

void world_hear(struct world *w, uint32_t i,
	void (*hear)(void *context, uint32_t i, const Thaw__Node__V1__CoordinatorMessage *m), void *context)
{
	uint8_t *data;
	size_t bytes;
	while (w->node[i].session && cluster_session_next(w->node[i].session, &data, &bytes, NULL) == 1) {
		struct proto_budget budget;
		ProtobufCMessage *m;
		assert_int_equal(proto_unpack(&thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget,
					 &m, NULL, NULL),
			0);
		hear(context, i, (const Thaw__Node__V1__CoordinatorMessage *)m);
		protobuf_c_message_free_unpacked(m, &budget.allocator);
		free(data);
	}
}
