/* SPDX-License-Identifier: Apache-2.0
 * A coordinator with one model and nodes that are made up, in memory, for tests: what the nodes say, the test says;
 * what they are told, it reads. Nobody beats: no node is lost but by world_leave. What fails here fails the test.
 */
#pragma once

#include <stdint.h>

#include "daemon/cluster/coordinator.h"

#define WORLD_NODES 10u

struct world_node {
	struct cluster_session *session; // NULL: not there
	char name[16];
	uint64_t incarnation; // of its last join
};

struct world {
	char folder[64]; // the coordinator's state
	/* The test may change them before world_open; world_init has set what all tests want. */
	struct cluster_coordinator_config config;
	struct cluster_fleet_config model;
	struct cluster_coordinator *coordinator;
	struct cluster_fleet *fleet;
	struct world_node node[WORLD_NODES];
	const char *rack[WORLD_NODES]; // what they say when they join; NULL: none
	uint32_t copies; // bits of the nodes that say that they have a copy of the model when they join
};

/* plan: of config.model; called with context, as are its regather and broken, which do nothing unless they are set. */
void world_init(struct world *w,
	int (*plan)(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e),
	void *context);
void world_open(struct world *w); // a coordinator that finds the state of the one before
void world_open_model(struct world *w, const char *name); // in the place of the one that is open
void world_close(struct world *w); // all but the state
void world_finish(struct world *w);

/* 10.0.0.i, with 8 GiB of memory and no budgets; another process than before. */
void world_join(struct world *w, uint32_t i, const char *name, uint32_t cpus);
void world_leave(struct world *w, uint32_t i);
int world_say(struct world *w, uint32_t i, Thaw__Node__V1__NodeMessage *m);
/* Calls hear() with all that the coordinator has told it. */
void world_hear(struct world *w, uint32_t i,
	void (*hear)(void *context, uint32_t i, const Thaw__Node__V1__CoordinatorMessage *m), void *context);
