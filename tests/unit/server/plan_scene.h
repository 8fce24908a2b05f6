/* SPDX-License-Identifier: Apache-2.0
 * A coordinator's server without rpc and engine, whose nodes are made up, and a model of eight layers to plan. Include
 * tests/lib/testing.h first.
 */
#pragma once

#include <errno.h>
#include <string.h>

#include "daemon/server_internal.h"
#include "tests/lib/tiny_gguf.h"
#include "tests/lib/world.h"

#define PLAN_SCENE_BUDGET (64ull << 20)

struct scene {
	struct world world;
	struct server server;
	struct server_model_info info;
	char path[96];
	struct base_error e;
};

static inline int scene_no_plan(
	void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	return base_error_set(e, -ENOMEM, "1 byte short");
}

/* measures: links are, once nodes are there. */
static inline struct scene *scene_create(bool measures)
{
	struct scene *s = calloc(1, sizeof *s);
	struct tiny_model m = {.layers = 8, .vocab = 320};
	world_init(&s->world, scene_no_plan, s);
	if (measures)
		s->world.config.links = s->world.folder;
	world_open(&s->world); // beside its own model
	config_defaults(&s->server.config);
	s->server.coordinator = s->world.coordinator;
	pthread_mutex_init(&s->server.lock, NULL);
	pthread_mutex_init(&s->server.plan_lock, NULL);
	assert_int_equal(server_events_init(&s->server), 0);
	snprintf(s->path, sizeof s->path, "%s/tiny.gguf", s->world.folder);
	assert_int_equal(tiny_model_save(&m, s->path), 0);
	return s;
}

static inline void scene_destroy(struct scene *s)
{
	world_finish(&s->world);
	server_events_finish(&s->server);
	pthread_mutex_destroy(&s->server.plan_lock);
	pthread_mutex_destroy(&s->server.lock);
	free(s);
}

static inline int scene_plan(struct scene *s, const char *device_map)
{
	return server_plan_model(
		&s->server, s->path, device_map, PLAN_SCENE_BUDGET, PLAN_SCENE_BUDGET, &s->info, &s->e);
}
