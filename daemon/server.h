/* SPDX-License-Identifier: Apache-2.0
 * The daemon's state as rpc, metrics and ctl see it: the table of models and what can be asked of it. rpc knows this
 * header and no other part of the daemon.
 *
 * All calls: any thread. Getters copy a snapshot. Loading and unloading run on a thread each; progress is read with
 * get_model.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/engine.h"
#include "daemon/text/chat.h"
#include "daemon/text/tokenizer.h"
#include "topology/machine.h"
#include "topology/plan.h"

struct server;

enum server_phase {
	SERVER_PHASE_QUEUED,
	SERVER_PHASE_DIGEST,
	SERVER_PHASE_PACK,
	SERVER_PHASE_LOAD,
	SERVER_PHASE_READY,
	SERVER_PHASE_FAILED,
	SERVER_PHASE_UNLOADED
};
const char *server_phase_name(enum server_phase p);

#define SERVER_EXPLANATION_BYTES 6144u // cut beyond

struct server_model_info {
	char name[128], path[512], digest[33], architecture[32];
	char chat_template[16]; // name or "unknown"
	enum server_phase phase;
	uint64_t done_bytes, total_bytes, eta_ns; // of the phase
	struct base_error error; // FAILED: why; READY: what makes its requests fail, if anything does
	uint32_t context_tokens, vocab, layers;
	uint64_t weights_bytes; // of a pass
	struct topology_plan_input plan_input;
	struct topology_plan plan;
	char explanation
		[SERVER_EXPLANATION_BYTES]; // of a plan over nodes, whose input and plan above are sums; "": of one machine
	struct engine_load load; // zero until the engine is there
	uint32_t bos, eos; // TEXT_NO_TOKEN if none
	char node[ENGINE_MAX_RANKS][64]; // of each rank, in a cluster; "": this one
};

/* A model in use: keeps tokenizer, template and engine alive until released. */
struct server_model {
	const struct text_tokenizer *tokenizer;
	struct text_chat_template chat;
	const char *const *specials; // for text_chat_render
	struct engine *engine;
	char name[128];
	uint32_t context_tokens;
};

int server_create(const struct config *config, struct base_log *log, struct server **ret_server, struct base_error *e);
void server_destroy(struct server *s);

/* That it is a directory, or can be made in one: of store.path, without making it. */
int server_check_store(const char *path, struct base_error *e);

uint32_t server_list_models(struct server *s, struct server_model_info *ret_infos, uint32_t room);
int server_get_model(
	struct server *s, const char *name, struct server_model_info *ret_info); // -ENOENT; name "": the only one
/* -ENOENT unknown, -EHOSTDOWN not ready (text says why; retry_after_ns), -ENOTRECOVERABLE failed: waiting does not
 * help. */
int server_acquire_model(struct server *s, const char *name, const struct server_model **ret_model,
	uint64_t *ret_retry_after_ns, struct base_error *e);
void server_release_model(struct server *s, const struct server_model *m);

/* Checks file, program, tokenizer and budgets (so up to some 100 ms, not for a thread that must not block), then starts
 * loading; -EEXIST name in use, also by a call that is at it now, -ENOENT no such file, -ENOMEM does not fit,
 * -EINVAL. */
int server_load_model(struct server *s, const struct config_model *model, struct base_error *e);
/* The models of the config, each as by server_load_model; one that cannot be loaded stays listed as FAILED. */
void server_load_configured(struct server *s);
/* Returns at once; a load under way is given up. Running requests get daemon.drain to finish; meanwhile the model is
 * listed as UNLOADED, then it is gone. */
int server_unload_model(struct server *s, const char *name, struct base_error *e);
/* Can a dry run ask for this device_map ("": the configured one)? -EINVAL. */
int server_check_map(const struct server *s, const char *device_map, struct base_error *e);
/* Dry run for a file, with budgets as given (0: the configured ones), of a coordinator: of each node, and with
 * device_map, which server_check_map has found good. -EHOSTDOWN: nodes are missing. -EINVAL: cluster.map is not one of
 * this model. */
int server_plan_model(struct server *s, const char *path, const char *device_map, uint64_t weights_bytes,
	uint64_t kv_bytes, struct server_model_info *ret_info, struct base_error *e);
int server_abort(struct server *s, const char *request_id); // -ENOENT

void server_drain(struct server *s, bool on);
bool server_draining(const struct server *s);
/* Live: the process. Ready: some model can answer: it has its ranks, and its last pass could read all of its weights. A
 * worker, which has no models of its own: it has joined. */
bool server_ready(struct server *s);
/* Every engine's thread came round lately: the watchdog may be fed. */
bool server_healthy(struct server *s);
void server_set_drain(struct server *s, uint64_t drain_ns); // daemon.drain was reloaded
/* Between two readings of a model's whole store, counted from the next repair on: ten minutes, but for tests. */
void server_set_repair_pause(struct server *s, uint64_t pause_ns);
struct cluster_coordinator;
/* A node that computes joins its coordinator, which may be in this process: so after rpc listens. No-op for others. */
int server_cluster_join(struct server *s, struct base_error *e);
/* "worker of lab: joined head, 1 rank", for people; false: this node is no mere worker. */
bool server_worker_text(struct server *s, char *out, size_t room);
void server_cluster_leave(struct server *s); // before rpc stops
#define SERVER_MAX_PEERS 64u
struct server_cluster_load {
	uint32_t ready, lost, draining; // nodes
	uint64_t epoch, losses;
	struct {
		char name[64];
		bool up; // heard of lately
	} peers[SERVER_MAX_PEERS]; // this node too, if it computes; none that left
	uint32_t peers_count;
};
struct server_transfer { // of models' files between nodes, bytes since the start
	bool pulls, serves; // this node computes, coordinates
	uint64_t pulled_bytes, served_bytes;
};
void server_get_transfer(struct server *s, struct server_transfer *ret_transfer);
/* SIGTERM: a worker's layers go to other nodes before it stops. True while they are on their way, or it has not left
 * yet. */
void server_cluster_drain(struct server *s);
bool server_cluster_leaves(struct server *s);
bool server_cluster_load(struct server *s, struct server_cluster_load *ret_load); // false: no coordinator
struct cluster_coordinator *server_coordinator(struct server *s); // NULL: this node is none
struct cluster_identity;
struct cluster_pull;
struct cluster_source;
/* A model's file for a node that pulls: one that is loaded here, or of which this node has a copy. peer NULL: over the
 * unix socket. Reads the drive. -EPERM, -ENOENT, -EBADMSG: see cluster_source_open. */
int server_open_source(struct server *s, const struct cluster_identity *peer, const struct cluster_pull *pull,
	struct cluster_source *ret_source, struct base_error *e);
const struct config *server_config(const struct server *s);
const struct topology_machine *server_machine(const struct server *s);
struct topology_bandwidths server_bandwidths(struct server *s);
/* Name of the block device that the store lies on, a disk as in topology; "unknown" where the file system does not
 * say. */
const char *server_store_drive(const struct server *s);
uint64_t server_started_wall_ns(const struct server *s);
uint64_t server_memory_bytes(struct server *s); // resident now: thawd and ranks, huge pages included

/* Has main read the configuration again, as for SIGHUP, and waits for it: -errno of a configuration that is not good,
 * with its line,
 * -ETIMEDOUT; else a text that says what needs a restart, or "done". */
int server_reload(struct server *s, char *ret_text, size_t room, struct base_error *e);
bool server_reload_wanted(struct server *s); // main: reload now, then say how it went
void server_reload_done(struct server *s, int status, const char *text);

struct server_event {
	uint64_t sequence; // 1, 2, ...
	uint64_t wall_ns;
	char severity[12], kind[32], model[128], text[384];
};
/* Events after `sequence` (oldest first) from a ring of the last 1024; blocks up to timeout_ns for the first. */
uint32_t server_read_events(
	struct server *s, uint64_t after, struct server_event *ret_events, uint32_t room, uint64_t timeout_ns);
void server_emit_event(struct server *s, const char *severity, const char *kind, const char *model, const char *text);
