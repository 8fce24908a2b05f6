/* SPDX-License-Identifier: Apache-2.0
 * What the files of the coordinator share: coordinator.c (sessions, membership, the thread), claim.c (who coordinates),
 * fleet.c (plans), links.c (links that are measured), source.c (files that nodes pull), spare.c (spare layers). Fields
 * are the lock's unless a comment says otherwise. Not for other rooms.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/cluster/coordinator.h"

#define CLUSTER_MAX_SESSIONS (2 * CLUSTER_MAX_NODES)

struct cluster_node {
	char name[CLUSTER_NAME_BYTES];
	enum cluster_node_state state;
	bool draining;
	bool leaving; // it stops once its work is elsewhere; READY only
	char why[CLUSTER_TEXT_BYTES];
	struct cluster_facts *facts; // NULL: not seen since the start
	struct topology_machine *machine; // as it was when it joined last; NULL as facts
	struct cluster_session *session; // READY only
	uint64_t heard_ns, since_ns, memory_available_bytes;
	uint32_t losses;
};

/* OPEN (Register is awaited) -> JOINED -> OVER (error is to be told) -> closed by rpc. */
enum session_state { SESSION_OPEN, SESSION_JOINED, SESSION_OVER };

struct cluster_session {
	struct cluster_coordinator *coordinator;
	struct cluster_session *next;
	enum session_state state;
	bool local;
	struct cluster_identity peer;
	void (*wake)(void *context);
	void *context;
	uint64_t opened_ns, beat_ns, beats;
	struct cluster_node *node; // JOINED
	struct {
		uint8_t *data;
		size_t bytes;
	} box[CLUSTER_MAILBOX];
	uint32_t box_first, box_count;
	struct base_error error;
};

struct cluster_coordinator {
	struct cluster_coordinator_config config;
	char cluster[CLUSTER_NAME_BYTES], node_name[CLUSTER_NAME_BYTES], version[32], host[CLUSTER_HOST_BYTES];
	uint64_t started_ns;
	pthread_mutex_t lock;
	pthread_cond_t changed; // CLOCK_MONOTONIC
	pthread_t thread;
	bool stop, quiet;
	struct cluster_node
		nodes[CLUSTER_MAX_NODES]; // a place is used again for another one when no fleet points to it
	uint32_t nodes_count;
	struct cluster_session *sessions;
	uint32_t sessions_count;
	struct cluster_fleet *fleets;
	uint64_t last_assignment;
	struct cluster_record record;
	bool dirty; // the record has changed since it was written

	_Atomic uint64_t served_bytes; // not the lock's

	pthread_mutex_t state_lock; // of state; taken without `lock`
	struct cluster_state *state;

	struct cluster_links *links; // NULL: they are not measured

	/* claim.c */
	bool active; // this node coordinates, and has read the record
	uint64_t term; // of the claim that it is active by
	struct cluster_claim claim; // as it was at the last look
	bool told_wrong; // what is wrong with the claim was said
	uint64_t take_after_ns, save_after_ns; // not before, after a failure
};

enum fleet_state {
	FLEET_IDLE, // nothing is prepared
	FLEET_PLANNING, // plan() runs, without the lock
	FLEET_PREPARING, // nodes pack
	FLEET_PREPARED, // gather may start it
};

struct fleet_part { // of a plan: one rank
	struct cluster_node *node;
	struct cluster_slice slice;
	uint64_t assignment; // 0: none
	bool ready;
	struct cluster_prepared prepared;
	char phase[16];
	uint64_t done_bytes, total_bytes;
};

struct fleet_try {
	struct fleet_part part[CLUSTER_MAX_STAGES];
	uint32_t parts;
	struct rank_shape shape; // that the slices make
	struct cluster_plan plan;
};

struct fleet_unfit { // a node that could not prepare its part, as long as it is the same process
	const struct cluster_node *node;
	uint64_t incarnation;
	uint64_t again_ns; // it is tried again then; 0: never
	bool busy; // it is only waited for: its part is not given to others
	uint32_t tries;
	char why[CLUSTER_TEXT_BYTES];
};

struct fleet_seen {
	const struct cluster_node *node;
	uint64_t incarnation;
};

#define CLUSTER_MAX_SPARES 16u // ranges that a node is asked for
#define CLUSTER_MAX_AHEAD 136u // plans for losses: of each one and each two of CLUSTER_MAX_STAGES nodes

struct fleet_ahead { // what would be planned after a loss
	uint32_t parts;
	struct cluster_node *node[CLUSTER_MAX_STAGES];
	struct cluster_slice slice[CLUSTER_MAX_STAGES];
};

struct fleet_keeper { // a node that is to have layers for plans that may come
	struct cluster_node *node;
	struct cluster_slice slice[CLUSTER_MAX_SPARES];
	uint32_t slices, asked; // asked for, one after the other
	uint64_t assignment; // of the last that was; 0: it is over
	uint32_t stored_layers;
	uint64_t written_bytes;
	bool cut; // there is no place for all slices
};

/* What the nodes of a group keep for losses. None -> quiet for spare_ns -> asking, a plan in each step of the
 * coordinator's thread -> the keepers are asked for. Another group, or other nodes that are there, begin it anew. */
struct fleet_spares {
	uint64_t epoch; // of the group; 0: none
	struct fleet_seen seen[CLUSTER_MAX_NODES]; // that can be used
	uint32_t seen_count;
	uint64_t quiet_ns; // since when it is so
	struct cluster_node *member[CLUSTER_MAX_STAGES]; // of the group, each once
	uint32_t members;
	uint32_t lost, most; // bits of the members that the next plan is without, 0: all are asked; as many at most
	uint32_t refused[CLUSTER_MAX_AHEAD]; // without these there is no plan
	uint32_t refused_count;
	struct base_error why; // the first
	struct fleet_keeper keeper[CLUSTER_MAX_NODES];
	uint32_t keepers;
};

struct cluster_fleet {
	struct cluster_coordinator *coordinator;
	struct cluster_fleet *next;
	struct cluster_fleet_config config;
	char model[CLUSTER_MODEL_BYTES], path[CLUSTER_PATH_BYTES];
	enum fleet_state state; // of `coming`
	struct fleet_try coming, running; // running.parts 0: no group
	uint64_t running_epoch, running_ns; // since when
	struct fleet_spares spares;
	struct timespec changed; // the file, when the fleet was made
	bool broken; // a node of running is lost
	bool planned; // once, since the start
	bool check; // the next assignments have all data read
	bool replan; // in the background, while running goes on
	char replan_why[CLUSTER_TEXT_BYTES];
	struct fleet_seen seen[CLUSTER_MAX_NODES]; // by the last plan
	uint32_t seen_count;
	uint64_t changes; // of membership, while plan() runs: its view is stale
	struct fleet_unfit unfit[CLUSTER_MAX_NODES];
	uint32_t unfit_count;
};

/* coordinator.c; lock held */
int cluster_session_post(struct cluster_session *s, uint8_t *data, size_t bytes); // takes data over
void cluster_coordinator_emit(struct cluster_coordinator *c, const char *severity, const char *kind, const char *model,
	const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Without the lock: the record as it is now, on the drive. */
int cluster_coordinator_save(struct cluster_coordinator *c, struct base_error *e);
/* Lock held: a node of the record. */
void cluster_coordinator_know(struct cluster_coordinator *c, const struct cluster_state_node *n);
/* Lock held: every node is told that, and goes. */
void cluster_coordinator_dismiss(struct cluster_coordinator *c, const struct base_error *e);

/* claim.c */
/* At the start: reads the record if the claim is held. */
int cluster_claim_start(struct cluster_coordinator *c, struct base_error *e);
/* Lock held, and dropped to read: takes over, steps down, stands by. The coordinator's thread. */
void cluster_claim_follow(struct cluster_coordinator *c);
/* Lock held: may something new be planned, assigned or let in? -EAGAIN with the reason if not. */
int cluster_claim_check(const struct cluster_coordinator *c, struct base_error *e);

/* fleet.c; lock held */
/* Another coordinator may have planned since: the nodes of the record's plans are waited for again. */
void cluster_fleets_forget(struct cluster_coordinator *c);
/* Of the nodes that are gone and have no work, the one that is missed least; no fleet knows it afterwards. NULL: there
 * is none. */
struct cluster_node *cluster_fleets_evict(struct cluster_coordinator *c);
void cluster_fleets_node_lost(struct cluster_coordinator *c, struct cluster_node *n);
void cluster_fleets_prepared(struct cluster_coordinator *c, struct cluster_node *n, const struct cluster_prepared *p);
void cluster_fleets_progress(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Progress *p);
void cluster_fleets_failed(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Failed *m);
void cluster_fleets_rank_ended(
	struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__RankEnded *m);
void cluster_fleets_describe(struct cluster_coordinator *c, const struct cluster_node *n, struct cluster_node_info *i);
/* Prepares plans that were asked for in the background. May drop the lock and take it again. */
void cluster_fleets_step(struct cluster_coordinator *c);
bool cluster_fleets_planning(const struct cluster_coordinator *c); // some plan() runs
/* Is the node's work on its way to others? False as well where there is none, and where nobody else could do it. */
bool cluster_fleets_move(const struct cluster_coordinator *c, const struct cluster_node *n);
void cluster_fleets_replan(struct cluster_coordinator *c, const struct cluster_node *n, const char *why);

/* links.c; lock held */
int cluster_links_create(const char *directory, struct cluster_links **ret_links); // free() ends it
void cluster_links_joined(struct cluster_coordinator *c, const struct cluster_node *n);
void cluster_links_ready(struct cluster_coordinator *c, const struct cluster_node *n, uint64_t probe, uint16_t port);
void cluster_links_done(
	struct cluster_coordinator *c, const struct cluster_node *n, const struct cluster_probe_done *d);
/* The coordinator's thread: the next probe. May drop the lock and take it again. */
void cluster_links_step(struct cluster_coordinator *c, uint64_t now);
/* Will the first figures of a link be there soon? Not for longer than 3 s after a node joined. */
bool cluster_links_pending(const struct cluster_coordinator *c);
void cluster_links_view(struct cluster_coordinator *c, struct cluster_node *const *nodes, uint32_t nodes_count,
	struct cluster_view_links *ret_links);

/* source.c; lock held: nodes that other ones than this coordinator may pull the file from, for an assignment of
 * `to`. */
void cluster_sources_fill(
	const struct cluster_coordinator *c, const struct cluster_node *to, struct cluster_assign *assign);
void cluster_sources_note(struct cluster_node *n, const uint8_t digest[static CLUSTER_DIGEST_BYTES], bool copy);

/* fleet.c; lock held */
bool cluster_fleet_usable(const struct cluster_fleet *f, const struct cluster_node *n);
/* One Assign; its number. */
uint64_t cluster_fleet_send(
	struct cluster_fleet *f, struct cluster_node *n, const struct cluster_slice *slice, bool spare);
void cluster_fleet_release_node(const struct cluster_node *n, uint64_t assignment); // 0 is fine
/* What would be planned now if these nodes were lost: nothing comes of it. The lock is dropped while plan() runs, the
 * fleet stays. -ESTALE: the nodes are others by now. Other errors: there is no plan. */
int cluster_fleet_foresee(struct cluster_fleet *f, struct cluster_node *const *lost, uint32_t count,
	struct fleet_ahead *ret_ahead, struct base_error *e);

/* spare.c; lock held: copies of layers that other nodes compute, so that the next plan finds them where it needs
 * them. */
/* A step of the coordinator's thread for a group that runs. True: it asked for a plan, and dropped the lock meanwhile. */
bool cluster_spares_step(struct cluster_fleet *f);
void cluster_spares_cancel(struct cluster_fleet *f); // what is under way is released, and it begins anew
void cluster_spares_stored(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Stored *m);
/* True: it was about a spare. */
bool cluster_spares_failed(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Failed *m);
void cluster_spares_node_lost(struct cluster_fleet *f, const struct cluster_node *n);
