/* SPDX-License-Identifier: Apache-2.0
 * What worker.c (the connection), task.c (assignments), task_pack.c (their files) and probe.c (links that are measured)
 * share. Not for other rooms.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/cluster/worker.h"
#include "daemon/supervisor.h"

#define CLUSTER_SOURCES_BYTES 3072u
#define CLUSTER_MAX_LOOSE 1024u // more stay in the store, and are not spare
#define CLUSTER_WAY_BYTES 288u // HOST:PORT or unix:PATH

/* PREPARING -> PREPARED -> STARTING -> RUNNING -> ENDED; any -> FAILED; a spare one:
 * PREPARING -> STORED. The thread ends after `release`; that of one that forgets by itself, which nobody is told. */
enum task_state { TASK_PREPARING, TASK_PREPARED, TASK_STARTING, TASK_RUNNING, TASK_ENDED, TASK_FAILED, TASK_STORED };

struct cluster_task {
	struct cluster_worker *worker;
	struct cluster_assign assign; // const
	pthread_t thread;
	int listen_fd, cancel_fd; // the thread's; cancel_fd is readable once it is released
	char sources[CLUSTER_SOURCES_BYTES]; // const: who is asked for what this node has not
	_Atomic bool release;
	/* The worker's lock: */
	enum task_state state, told;
	bool finished; // the thread has ended
	bool start_wanted;
	struct cluster_start start;
	struct cluster_prepared prepared;
	bool pulls; // what is packed comes from another node
	char phase[16];
	uint64_t done_bytes, total_bytes, told_bytes;
	uint32_t stored_layers; // of a spare one
	uint64_t stored_bytes; // written
	int code;
	char text[CLUSTER_TEXT_BYTES]; // FAILED, ENDED, STORED
	struct supervisor *supervisor; // for pids
};

/* A store file that a plan took from the spare ones, or had packed, and that no rank has had since: it is a spare one
 * again when nobody will have it. */
struct cluster_loose {
	uint8_t digest[CLUSTER_DIGEST_BYTES];
	char name[64];
};

/* A link that is measured: listens or connects, and starts a process that measures; 15 s at most. */
struct cluster_probing {
	struct cluster_worker *worker;
	struct cluster_probe probe; // const
	pthread_t thread;
	int cancel_fd; // readable once it is to end
	/* The worker's lock: */
	uint16_t port; // of member 0, once it listens
	bool told_port, finished;
	struct cluster_probe_done done;
};

struct cluster_worker {
	struct cluster_worker_config config;
	pthread_t thread;
	_Atomic bool stop, drain;
	uint64_t incarnation;
	_Atomic uint64_t pulled_bytes;
	pthread_mutex_t header_lock; // who pulls a model's metadata into the store; no other is taken under it

	pthread_mutex_t lock;
	pthread_cond_t changed; // CLOCK_MONOTONIC
	struct cluster_task *task[CLUSTER_MAX_TASKS];
	struct cluster_loose loose[CLUSTER_MAX_LOOSE];
	uint32_t loose_count;
	struct cluster_worker_status status;
	struct rpc_client_stream *stream; // to be woken; NULL: none

	/* The thread's: */
	struct cluster_probing *probing; // NULL: none
	uint64_t epoch, lost_ns, heartbeat_ns, beats, next_beat_ns, next_memory_ns, memory_bytes;
	char address[CLUSTER_HOST_BYTES];
	char join[CLUSTER_WAY_BYTES]; // of config.join, the way that is tried
	size_t join_at; // where the next one begins
	uint32_t failures; // ways that failed since it was joined last
	bool told_address; // that nobody knows config.address
	struct topology_bandwidths bandwidths;
};

/* task.c; create: lock held; the others: not */
int cluster_task_create(struct cluster_worker *w, const struct cluster_assign *a, struct cluster_task **ret_task);
void cluster_task_release(struct cluster_task *t); // asks it to end
void cluster_task_destroy(struct cluster_task *t); // its thread has ended, and nobody finds it any more

/* task_pack.c: the task's thread. Layers of the assignment in the store, from this node's copy of the model, or pulled;
 * and a file that has the model's metadata at least. */
int cluster_task_pack(struct cluster_task *t, char ret_path[static CLUSTER_PATH_BYTES], struct pack_result *ret_result,
	struct base_error *e);

/* The same of a spare one, as far as the drive has room: sets stored_layers, stored_bytes and text. */
int cluster_task_spare(struct cluster_task *t, struct base_error *e);

/* Of one that is told to start, lock held: a rank has its files. */
void cluster_task_used(const struct cluster_task *t);
/* Of one that is over, after used() or without: files that nobody has had or will have are spare again. */
void cluster_task_settle(struct cluster_task *t);

/* Of an assignment that is to forget: deletes what was packed as spare. */
int cluster_task_forget(struct cluster_task *t, struct base_error *e);

/* worker.c: the worker's thread: the coordinator of this connection, then the nodes that it names, then the other
 * coordinators. */
void cluster_worker_sources(
	const struct cluster_worker *w, const struct cluster_assign *a, char out[static CLUSTER_SOURCES_BYTES]);
/* probe.c; lock not held */
int cluster_probing_create(
	struct cluster_worker *w, const struct cluster_probe *p, struct cluster_probing **ret_probing);
void cluster_probing_destroy(struct cluster_probing *p); // ends it; NULL is fine

/* worker.c: any thread, lock not held: there is something to be told. */
void cluster_worker_wake(struct cluster_worker *w);
