/* SPDX-License-Identifier: Apache-2.0
 * The coordinator of a cluster: which nodes are there, and which of them run which layers of which model.
 *
 *   sessions     connections of nodes (daemon/rpc/rpc_node.c brings their messages), heartbeats, one clear refusal
 *   membership   the table of nodes: READY, LOST (heard nothing for lost_ns, or its connection ended), LEFT; drained or not
 *   fleets       one for each model: plan -> Assign -> Prepared -> Start -> a group of ranks, and again with a higher epoch
 *                when a node of it is lost (fleet.c)
 *
 * Threads: all calls, any thread; one lock, held for copies and small work. A thread of its own watches the clocks,
 * sends heartbeats, writes the record (state.h) and prepares plans in the background. Callbacks say whose thread they
 * are on. Bounds: CLUSTER_MAX_NODES nodes, twice as many connections, CLUSTER_MAILBOX messages on their way to each.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "base/error.h"
#include "daemon/cluster/identity.h"
#include "daemon/cluster/message.h"
#include "daemon/cluster/state.h"
#include "topology/fleet/fleet.h"

#define CLUSTER_HEARTBEAT_NS (200 * 1000000ull)
#define CLUSTER_LOST_NS (2000 * 1000000ull)
#define CLUSTER_MAILBOX 64u

struct cluster_coordinator;

struct cluster_events { // any thread; must not block
	void (*event)(void *context, const char *severity, const char *kind, const char *model, const char *text);
	void *context;
};

struct cluster_coordinator_config {
	const char *cluster, *node; // this one
	const char *version; // only nodes of the same one may join
	const char *host; // of this node, where nodes that join from here are reached
	uint32_t replicas; // nodes keep what plans need after replicas - 1 losses; 0, 1: nothing
	uint64_t spare_ns; // that a group runs before its spares are asked for; 0: 5 s
	uint32_t nodes; // that compute, before a model without an earlier plan is planned
	uint64_t heartbeat_ns, lost_ns; // 0: as above
	uint64_t return_ns; // after a start, for the nodes of the last plan to come back; 0: 10 s
	/* Links between nodes are measured, one after the other, and what came of it is kept in this directory; NULL:
	 * they are not. */
	const char *links;
	struct cluster_events events;
};

/* Takes state over on success: its record says who was there, and what the next epoch is. */
int cluster_coordinator_create(const struct cluster_coordinator_config *config, struct cluster_state *state,
	struct cluster_coordinator **ret_coordinator, struct base_error *e);
/* This process stops: nodes that go from now on are neither news nor a reason for another plan. */
void cluster_coordinator_quiet(struct cluster_coordinator *c);
void cluster_coordinator_destroy(struct cluster_coordinator *c); // after all sessions and fleets are closed

/* ---- sessions: rpc ---- */

struct cluster_session;
/* peer: what the node's certificate says; NULL: it comes over this host's unix socket. wake(context): there is
 * something for cluster_session_next; any thread, must not block. -ENOSPC. */
int cluster_session_open(struct cluster_coordinator *c, const struct cluster_identity *peer,
	void (*wake)(void *context), void *context, struct cluster_session **ret_session, struct base_error *e);
/* A message of the node. An error is the session's end, and the node is told it: -EPERM another cluster or certificate,
 * -EEXIST a node of that name is there, -EINVAL another version or a clock that is off, -EBADMSG, -EPROTO out of
 * turn. */
int cluster_session_message(struct cluster_session *s, const Thaw__Node__V1__NodeMessage *m, struct base_error *e);
/* 1 with a packed message (the caller frees), 0 for none now, -errno with text: the session is over. */
int cluster_session_next(struct cluster_session *s, uint8_t **ret_data, size_t *ret_bytes, struct base_error *e);
void cluster_session_close(struct cluster_session *s); // no wake after it; NULL is fine

/* ---- membership ---- */

enum cluster_node_state { CLUSTER_NODE_LOST, CLUSTER_NODE_READY, CLUSTER_NODE_LEFT };
const char *cluster_node_state_name(enum cluster_node_state s);

struct cluster_node_work { // one part of a model
	char model[CLUSTER_MODEL_BYTES];
	struct cluster_slice slice;
	uint32_t stage; // its part is in slice
	char phase[16]; // digest, pack, prepared, running
	uint64_t done_bytes, total_bytes;
};

struct cluster_node_info {
	char name[CLUSTER_NAME_BYTES];
	enum cluster_node_state state;
	bool draining, drained; // draining: for good, or as it stops; drained: nothing runs there any more
	bool self; // the coordinator's own
	char why[CLUSTER_TEXT_BYTES]; // LOST: what happened
	struct cluster_facts facts; // zero when it was not seen since the start
	uint64_t heard_ns, since_ns; // base_clock; 0: never
	uint64_t memory_available_bytes;
	uint32_t losses;
	struct cluster_node_work work[CLUSTER_MAX_PLANS];
	uint32_t work_count;
};
uint32_t cluster_coordinator_nodes(struct cluster_coordinator *c, struct cluster_node_info *ret_infos, uint32_t room);
/* What a node said of its machine when it joined last. -ENOENT: it has not come since the start. */
int cluster_coordinator_machine(struct cluster_coordinator *c, const char *node, struct topology_machine *ret_machine);
uint64_t cluster_coordinator_epoch(struct cluster_coordinator *c);
/* Moves work off the node, or lets it have some again. -ENOENT; -EHOSTDOWN when nothing else could do its work. */
int cluster_coordinator_drain(struct cluster_coordinator *c, const char *node, bool on, struct base_error *e);

#define CLUSTER_MAX_LINKS 256u
struct cluster_link_info { // between two nodes
	char node[2][CLUSTER_NAME_BYTES];
	double latency_ns, bytes_per_s; // 0: not measured
	uint64_t measured_wall_ns;
	char error[CLUSTER_TEXT_BYTES]; // of the last try, if it failed
	enum fleet_link_class class; // rack, or cluster
};
uint32_t cluster_coordinator_links(struct cluster_coordinator *c, struct cluster_link_info *ret_links, uint32_t room);

/* Of links that were not measured: what a plain network has. They weigh little against drives and memory. */
#define CLUSTER_LINK_LATENCY_NS 50e3
#define CLUSTER_LINK_BYTES_PER_S 1e9
struct cluster_view_link { // of pairs of nodes
	uint32_t pairs, measured;
	double latency_ns, bytes_per_s; // of the slowest that were measured
	uint64_t oldest_wall_ns;
};
/* Between nodes that a plan may use. A class of which nothing was measured counts as the next wider one of which
 * something was, or as all; and all as above, if nothing was at all. */
struct cluster_view_links {
	struct cluster_view_link all, of[FLEET_LINK_CLASSES]; // of: nodes of a rack, all others; no pairs of a host
};
/* What a plan that is made now counts. */
void cluster_coordinator_plan_link(struct cluster_coordinator *c, struct cluster_view_links *ret_links);

/* ---- fleets: the server's models ---- */

struct cluster_view_node { // that can be used
	const char *name;
	const struct cluster_facts *facts;
	uint64_t memory_available_bytes;
};

struct cluster_view {
	struct cluster_view_node nodes[CLUSTER_MAX_NODES]; // by name
	uint32_t count;
	struct cluster_view_links links;
	bool what_if; // asked what would be planned: it is not to come, so it is not shown and nobody is told
	const struct cluster_state_plan
		*previous; // the last plan of this model, NULL if none: layer files lie where it had them
};

struct cluster_plan_stage {
	uint32_t node; // in the view
	struct cluster_slice slice;
	uint64_t weights_bytes, kv_bytes, workspace_bytes; // budgets
	uint64_t hot_bytes, cold_bytes; // of a pass
};

struct cluster_plan {
	uint64_t number; // plan()'s own, to know it again
	struct cluster_plan_stage
		stages[CLUSTER_MAX_STAGES]; // one for each rank: all parts of a stage, then the next one's
	uint32_t stages_count;
	uint32_t kv_blocks;
	uint32_t passes; // in flight, of a full batch
	double pass_ns_disk, pass_ns_memory, token_ns_compute; // parts of the bound
	double tokens_per_s_one, tokens_per_s_full; // predicted
};

struct cluster_group { // what a group is, and how its members connect; large: not on the stack
	uint64_t epoch;
	struct rank_shape shape;
	uint32_t ranks; // of the shape, in the order of the plan
	char node[CLUSTER_MAX_STAGES][CLUSTER_NAME_BYTES];
	struct cluster_plan plan;
	struct cluster_prepared prepared[CLUSTER_MAX_STAGES];
	struct cluster_member members[CLUSTER_MAX_MEMBERS]; // 0: this process
	uint8_t secret[CLUSTER_SECRET_BYTES];
};

struct cluster_fleet_config {
	const char *model, *path;
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	uint64_t header_hash, header_bytes, file_bytes;
	int file_fd; // of path, as it is now, open as long as the fleet is: nodes without a copy pull from it; -1: they cannot
	/* The engine's thread or the coordinator's, one at a time, without the lock: what goes where. -ENOMEM: these
	 * nodes cannot hold it. The same of the same view, and it changes nothing if that says what_if. */
	int (*plan)(
		void *context, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e);
	/* The engine's thread, once for each plan, before listen: a port for the group's connections. */
	int (*listen)(void *context, struct cluster_member *ret_self, struct base_error *e);
	/* Any thread, with the lock, must not block: regather: another plan is ready or needed, gather it. broken: a
	 * node of the group that is being connected, or its rank, is gone. */
	void (*regather)(void *context, const char *why);
	void (*broken)(void *context);
	void *context;
};

struct cluster_fleet;
int cluster_fleet_create(struct cluster_coordinator *c, const struct cluster_fleet_config *config,
	struct cluster_fleet **ret_fleet, struct base_error *e);
void cluster_fleet_destroy(struct cluster_fleet *f); // releases what it has on nodes; NULL is fine
/* One step towards a group: -EAGAIN (text: what is waited for), -EHOSTDOWN (what is missing), other errors of the plan.
 * 0: each node was told to start; the caller connects as member 0. The engine's thread. */
int cluster_fleet_gather(struct cluster_fleet *f, struct cluster_group *ret_group, struct base_error *e);
void cluster_fleet_scatter(struct cluster_fleet *f); // the group is gone, or never came to be
/* One look whether a plan can be made now, and plan() called with what there is: nothing is assigned. As gather; 0:
 * there is a plan. */
int cluster_fleet_try(struct cluster_fleet *f, struct base_error *e);
/* Ranks met data that is not what was written: with the next plan nodes read all that they have of it, and pack anew
 * what is damaged. */
void cluster_fleet_mend(struct cluster_fleet *f);
/* Is a node of the group that gather gave last lost? To end a connecting that cannot succeed. */
bool cluster_fleet_broken(struct cluster_fleet *f);

/* ---- spare copies (spare.c) ---- */

/* A model that is not to come back soon: nodes that are there delete what they keep of it as spare, unless a fleet has
 * it, too. After the destruction of its own, if it had one. */
void cluster_coordinator_forget(
	struct cluster_coordinator *c, const char *model, const uint8_t digest[static CLUSTER_DIGEST_BYTES]);

/* ---- files that nodes pull from (source.c; of a node that computes: worker.h) ---- */

struct cluster_source {
	_Atomic uint64_t *served_bytes; // counts
	int fd; // its own
	char path[CLUSTER_PATH_BYTES];
	uint64_t file_bytes;
	struct timespec changed; // when it was loaded
};
/* May this node have models' files? NULL: it came over the unix socket. -EPERM. */
int cluster_source_check_peer(const char *cluster, const struct cluster_identity *peer, struct base_error *e);
/* Do the runs lie in the file? -EBADMSG. */
int cluster_source_check_end(const struct cluster_source *s, const struct pack_runs *runs, struct base_error *e);
/* The file of a model that is loaded, by digest. peer: as for sessions. -EPERM, -ENOENT. */
int cluster_source_open(struct cluster_coordinator *c, const struct cluster_identity *peer,
	const struct cluster_pull *pull, struct cluster_source *ret_source, struct base_error *e);
void cluster_source_close(struct cluster_source *s);
/* What follows skip_bytes, at most `room`: one read of the drive, and it blocks. -EIO, -ESTALE: the file is another one
 * by now. */
int cluster_source_read(const struct cluster_source *s, const struct pack_runs *runs, uint64_t skip_bytes, void *out,
	size_t room, size_t *ret_bytes, struct base_error *e);
/* What nodes were given since the start. */
uint64_t cluster_coordinator_served(struct cluster_coordinator *c);
