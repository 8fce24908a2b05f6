/* SPDX-License-Identifier: Apache-2.0
 * What the files of the server share. Only daemon/server*.c and tests include this.
 *
 *   server.c         create, destroy, table of models, getters
 *   server_load.c    the loader thread: checks, pack, plan, engine; repair of the store
 *   server_unload.c  the unloader thread
 *   server_cluster.c this node's part in a cluster
 *   server_fleet.c   a model over the nodes of a cluster
 *   server_events.c  the ring of events
 *   server_reload.c  a call that has the configuration read again
 *   server_probe.c   what the topology probe asks of offload and backend
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/server.h"
#include "daemon/supervisor.h"
#include "offload/engine.h"
#include "shard/format/gguf.h"
#include "shard/pack/pack.h"
#include "shard/program/program.h"
#include "shard/rank/rank.h"

#define SERVER_EVENTS 1024u
#define SERVER_MAX_ENTRIES (2 * CONFIG_MAX_MODELS) // those that are being unloaded among them

struct server_holding { // what a model has of a node of the cluster
	char node[64];
	uint64_t weights_bytes, kv_bytes, workspace_bytes; // of its budgets
	uint64_t process_bytes; // beside them
};

/* phase: QUEUED -> DIGEST -> PACK -> LOAD -> READY; any -> FAILED; any -> UNLOADED, after which the unloader takes it
 * out of the table. The fields below `gguf` are the loader's while it is busy, then the unloader's; the others are the
 * lock's. */
struct server_entry {
	struct server *server;
	struct server_model model; // handed out; const once engine is set
	struct server_model_info *info;
	struct config_model config;
	uint32_t references;
	bool unload; // asked for
	bool preparing; // its name is taken, and nothing else is known yet: only the caller that loads it sees it
	bool busy; // the loader is at it
	bool damaged; // cold data of it failed since the last repair
	uint64_t repair_after_ns; // not before
	bool hidden; // a failed one whose name was taken by another
	uint64_t queued; // order of loading
	uint64_t phase_ns; // when the phase began, for eta
	uint64_t rejected[ENGINE_REJECTS]; // requests, before there was an engine
	bool counts_daemon; // its plan has the memory of thawd itself: one model's does

	struct format_gguf *gguf;
	struct program *program;
	struct text_tokenizer *tokenizer;
	char **specials;
	struct rank_config rank; // of the whole model
	struct rank_needs needs[ENGINE_MAX_RANKS];
	uint32_t packing_part; // for progress
	struct supervisor *supervisor; // lock, for pids
	struct server_fleet *fleet; // of a coordinator, instead
	/* lock; of what nodes may keep spare layers of under this name, which a failed model may have had before */
	bool has_spares;
	uint8_t spares[16]; // its digest
	struct server_holding planned[ENGINE_MAX_RANKS],
		running[ENGINE_MAX_RANKS]; // lock; of the last plan, of the group
};

struct server {
	struct config config;
	struct base_log *log;
	struct topology_machine machine;
	char rank_path[512];
	char drive[64]; // of the store
	char address
		[CONFIG_TEXT_BYTES]; // cluster.address as a number, at the start: nobody asks a resolver while a group connects
	struct cluster_coordinator *coordinator; // NULL: none
	char join[2 * CONFIG_TEXT_BYTES]; // of the worker: this node's socket, other coordinators
	struct cluster_worker *worker; // lock; NULL: none
	_Atomic uint64_t served_bytes; // of copies that other nodes pulled from, beside the coordinator's
	int lock_fd; // of the store
	uint64_t started_wall_ns;

	pthread_mutex_t lock;
	pthread_cond_t changed; // for the loader and the unloader; CLOCK_MONOTONIC
	pthread_mutex_t
		plan_lock; // before lock: of models that are planned over the nodes at once, each sees what the others take
	pthread_mutex_t probe_lock; // before lock: measuring would disturb measuring
	struct server_drive *drive_left; // probe_lock
	struct server_entry *entry[SERVER_MAX_ENTRIES];
	uint64_t queued; // ever
	_Atomic bool draining;
	_Atomic uint64_t drain_ns; // reloadable
	_Atomic uint64_t repair_pause_ns; // between two readings of a whole store
	bool stop;
	struct topology_bandwidths bandwidths;
	pthread_t loader, unloader;
	bool loader_gone;

	pthread_mutex_t events_lock;
	pthread_cond_t events_changed; // CLOCK_MONOTONIC
	struct server_event *events; // (SERVER_EVENTS), a ring
	uint64_t events_last; // sequence
	uint64_t reloads_wanted, reloads_taken, reloads_done; // events_lock, and below
	int reload_status;
	char reload_text[BASE_ERROR_BYTES];
};

/* server_events.c */
void server_cond_init(pthread_cond_t *c); // CLOCK_MONOTONIC
int server_events_init(struct server *s);
void server_events_finish(struct server *s);

/* server_load.c */
void *server_loader_thread(void *server);
void server_stop_engine(struct server_entry *x); // and its ranks; nobody holds a reference
/* The model has its name. */
struct server_entry *server_entry_create(struct server *s, const struct config_model *model);
void server_entry_destroy(struct server_entry *x);
/* Opens and checks the file, and plans it with the memory that the other models leave. No lock held. */
int server_entry_prepare(struct server_entry *x, uint64_t weights_bytes, uint64_t kv_bytes, struct base_error *e);
/* Lock held: when the model that counted thawd's own memory is gone, another one does. */
void server_count_daemon(struct server *s);
void server_set_phase(struct server_entry *x, enum server_phase phase, const struct base_error *error);

/* Measures drive (with files of the directory; "": with any of the store), memory and compute, or reads what was
 * measured lately. The last result is server_bandwidths. */
int server_probe(
	struct server *s, const char *directory, struct topology_bandwidths *ret_bandwidths, struct base_error *e);
void server_fill_rank_config(struct server_entry *x, uint32_t context_tokens);
/* What the processes of a rank and its thawd hold beside the budgets' contents. */
uint64_t server_process_bytes(const struct server_entry *x);
/* What is left of a budget (0: none is set) of which so much is used, or what was asked for instead. */
uint64_t server_left_of(uint64_t asked, uint64_t budget, uint64_t used);
#define SERVER_MIN_AUTO_CONTEXT 2048u

/* server.c */
uint64_t server_process_memory(pid_t pid);

/* server_unload.c */
void *server_unloader_thread(void *server);

/* server_cluster.c: after the store is locked. */
int server_cluster_start(struct server *s, struct base_error *e);
void server_cluster_stop(struct server *s); // after all models are gone

/* server_fleet.c: a model over the nodes of the cluster. The loader's thread. */
struct server_fleet;
/* device_map: a mode instead of the configured one, "" for that. -EINVAL: an explicit map that is not one of this
 * model, by layer. */
int server_fleet_create(
	struct server_entry *x, const char *device_map, struct server_fleet **ret_fleet, struct base_error *e);
void server_fleet_destroy(struct server_fleet *f); // after the engine; NULL is fine
/* Until the nodes are there and a plan fits: says what is waited for. -ECANCELED, -ENOMEM with the numbers. */
int server_fleet_wait(struct server_fleet *f, bool (*cancelled)(struct server_entry *x), struct base_error *e);
/* Nodes read their layers before the next group, and mend them. Any thread that holds no lock. */
void server_fleet_mend(struct server_fleet *f);
/* Nodes delete spare layers of what has or had this entry's name. When it is unloaded for good, after destroy. */
void server_fleet_forget(struct server_entry *x);
/* Its digest is known: nodes may have spare layers of it from now on, or from before; those of another that had its
 * name are forgotten. */
void server_fleet_keep(struct server_entry *x);
/* Lock held: x has the name of a failed one. */
void server_fleet_replace(struct server_entry *x, const struct server_entry *old);
struct engine_starter server_fleet_starter(struct server_fleet *f);
/* Only to see what would come of it: the plan with what the nodes have now, into the entry's info. Any thread.
 * -EHOSTDOWN, -ENOMEM. */
int server_fleet_plan(struct server_entry *x, const char *device_map, uint64_t weights_bytes, uint64_t kv_bytes,
	struct base_error *e);

/* server_probe.c */
struct server_drive; // reads that did not come back, with all that they need
struct server_drive_config {
	const char *directory; // files in it are read
	const char *engine;
	const struct offload_engine_ops *ops; // instead, for tests
	uint64_t patience_ns; // 0: five seconds
};
/* -ETIMEDOUT: the drive does not answer. *left (NULL at first) has then what the kernel may still write to; the next
 * call, of the same thread, looks whether it came back before it reads again. It is never waited for, so it may be
 * there when the process ends. */
int server_probe_drive(const struct server_drive_config *c, struct server_drive **left, double *ret_bytes_per_s);
int server_probe_compute(
	const struct topology_machine *m, const char *backend, uint32_t threads, double *ret_macs_per_s);
