/* SPDX-License-Identifier: Apache-2.0
 * Calls and queues: all that daemon/rpc's services need to know of gRPC-core.
 *
 * Threads. Each rpc_queue is a GRPC_CQ_NEXT queue with a thread of its own; a call is bound to one queue, and
 * everything that is not marked otherwise runs on that thread. Slow starts (files, long texts) run on the worker's
 * thread and reads of models' files for nodes on the reader's, while the queue leaves the call alone. Engine threads
 * only call rpc_call_wake and rpc_call_hand_back.
 *
 * Life of a call. NEW (armed, waiting for a client) -> OPEN (start() runs) -> ENDING (status handed to gRPC) -> CLOSED
 * (the RECV_CLOSE that is armed first has come back: finished or cancelled) -> freed when the last reference goes: one
 * for being open, one for each batch under way, one for an engine that still holds the sink, one for the ready list.
 *
 * Sending. One batch with sends is in flight at a time. The first message goes with the initial metadata, the last one
 * with the status; in between GRPC_WRITE_BUFFER_HINT says that more is waiting (never with initial metadata: such a
 * batch does not complete). A send that is in flight for longer than the limit means a reader that stalls:
 * RESOURCE_EXHAUSTED.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/log.h"
#include "daemon/request.h"
#include "daemon/rpc/grpc_core.h"
#include "daemon/rpc/rpc_status.h"
#include "daemon/server.h"

#define RPC_QUEUES 2u
#define RPC_MAX_CALLS 1024u // open at once, of all queues
#define RPC_OUTBOX 16u // messages of a call that wait, for services that make their own
#define RPC_WORKER_QUEUE 64u
#define RPC_WORKER_BYTES (64u << 10) // requests from that size on start on the worker thread
#define RPC_MAX_STREAMS 256 // per connection
#define RPC_MAX_METADATA_BYTES (16 << 10)
#define RPC_TICK_NS 100000000ull
#define RPC_STALL_NS (30 * 1000000000ull)
#define RPC_METADATA_BYTES 64u

struct rpc_call;
struct rpc_queue;
struct rpc_server;

struct rpc_back { // a reference on its way back to the queue's thread
	struct rpc_call *call;
	struct rpc_back *next;
};

struct rpc_tag { // what a batch carries: whom to tell
	void (*done)(struct rpc_tag *tag, bool ok);
	struct rpc_call *call;
};

enum rpc_flags {
	RPC_STREAM = 1, // server streaming
	RPC_BIDI = 2, // both ways: messages come one by one through message()
	RPC_WORKER = 4, // start() may block: it runs on the worker thread
	RPC_ADMIN = 8, // not on plaintext TCP
	RPC_NODE = 16, // for nodes of the cluster: where they join, and on the unix socket
	RPC_ANYWHERE = 32, // also where nodes join
};

struct rpc_next { // what next() gives
	grpc_slice message;
	bool has_message;
	bool more; // another is ready: this one may wait in a buffer
	bool end; // the status of rpc_call_end follows at once
};

struct rpc_method {
	const char *path; // "/thaw.v1.Inference/Generate"
	uint32_t flags; // enum rpc_flags
	const ProtobufCMessageDescriptor *request;
	/* A checked request, valid during the call. Ends with rpc_call_end sometime. */
	void (*start)(struct rpc_call *c, const ProtobufCMessage *request);
	void (*message)(struct rpc_call *c,
		const ProtobufCMessage *request); // BIDI, instead of start; NULL at the client's end
	void (*next)(struct rpc_call *c, struct rpc_next *out); // NULL: the outbox
	void (*tick)(struct rpc_call *c); // about every RPC_TICK_NS while open; may be NULL
	void (*closed)(struct rpc_call *c); // the client is gone or has its status: stop the work; may be NULL
	void (*destroy)(struct rpc_call *c); // frees context; may be NULL
};

struct rpc_call {
	const struct rpc_method *method; // NULL: unknown to us
	struct rpc_queue *queue;
	struct rpc_listener *listener;
	void *registered;
	atomic_int references;
	grpc_call *call;
	gpr_timespec deadline;
	grpc_call_details details; // unknown methods only
	grpc_metadata_array metadata;
	grpc_byte_buffer *payload;
	struct rpc_tag tag_new, tag_close, tag_send, tag_read;
	int cancelled;
	bool sending, reading, header_sent, status_sent;
	bool open, told_closed, busy; // busy: the worker has it
	atomic_bool closed; // any thread may look
	uint64_t send_started_ns;
	char request_id[RPC_METADATA_BYTES], traceparent[RPC_METADATA_BYTES];
	enum request_priority priority;
	/* What is to be said. */
	grpc_slice outbox[RPC_OUTBOX];
	uint32_t outbox_first, outbox_count;
	bool ended;
	struct rpc_fault fault;
	/* From other threads. */
	atomic_bool ready; // in the queue's ready list
	struct rpc_call *ready_next;
	struct rpc_back worker_back;
	struct rpc_call *previous, *next; // open calls of the queue
	void *context; // the service's
};

#define RPC_MAX_LISTENERS 3u
#define RPC_MAX_METHODS 48u

struct rpc_listener { // a grpc_server and who may reach it
	struct rpc_server *server;
	grpc_server *grpc;
	bool admin; // unix socket, or TLS with a client certificate
	bool node; // where nodes join: TLS with the cluster's certificates
	void *registered[RPC_MAX_METHODS];
	atomic_bool down; // its shutdown has ended
	struct rpc_tag tag_down;
};

struct rpc_queue {
	struct rpc_server *server;
	grpc_completion_queue *grpc;
	pthread_t thread;
	bool thread_runs;
	grpc_call *wake_call; // of a lame channel: a batch without operations on it is an event on this queue and
		// nothing else
	struct rpc_tag tag_wake;
	atomic_bool waking;
	atomic_uint wakers; // threads inside wake or hand_back
	struct rpc_call *_Atomic ready;
	struct rpc_back *_Atomic back;
	struct rpc_call *calls; // open ones
	atomic_bool tick_now;
};

struct rpc_worker;
struct rpc_accept;

struct rpc_server {
	struct server *daemon;
	struct base_log *log;
	struct rpc_queue queues[RPC_QUEUES];
	struct rpc_listener listeners[RPC_MAX_LISTENERS];
	uint32_t listeners_count;
	const struct rpc_method *methods[RPC_MAX_METHODS];
	uint32_t methods_count;
	grpc_channel *lame;
	struct rpc_worker *worker;
	struct rpc_worker *reader; // of models' files, for nodes
	atomic_uint pulls_open;
	struct rpc_accept *accept;
	uint64_t stall_ns;
	atomic_bool stopping;
	atomic_uint calls_open, calls_all; // all: armed ones too
};

/* rpc_core.c */
int rpc_queue_create(struct rpc_server *r, struct rpc_queue *q);
int rpc_queue_run(struct rpc_queue *q, struct base_error *e); // after the servers have started
void rpc_queue_stop(struct rpc_queue *q); // after all calls are gone; joins
/* Arms one call of each method, and of unknown ones, on each queue. */
void rpc_listener_arm(struct rpc_listener *l);
/* From any thread. */
void rpc_queue_wake(struct rpc_queue *q);
void rpc_call_wake(struct rpc_call *c); // its queue will ask next(); the caller holds a reference, and keeps it
/* The caller's reference goes back: the queue's thread drops it, so that a call is never freed on another thread. */
void rpc_call_hand_back(struct rpc_call *c, struct rpc_back *b);
void rpc_call_ref(struct rpc_call *c); // for a later hand_back
void rpc_call_drop(struct rpc_call *c); // takes a ref back that turned out not to be needed; never the last one

/* The queue's thread, or the worker's during start(). */
int rpc_call_send(struct rpc_call *c, const ProtobufCMessage *m); // -ENOBUFS: the outbox is full
void rpc_call_end(struct rpc_call *c); // OK
void rpc_call_fail(struct rpc_call *c, const struct rpc_fault *f);
void rpc_call_reply(struct rpc_call *c, const ProtobufCMessage *m); // send and end
static inline bool rpc_call_room(const struct rpc_call *c)
{
	return c->outbox_count < RPC_OUTBOX;
}
/* When the call's deadline is over, on base_clock; 0: none. */
uint64_t rpc_call_deadline_ns(const struct rpc_call *c);
/* A packed message as a slice. */
grpc_slice rpc_pack(const ProtobufCMessage *m);
/* The subject of the client's certificate, "" without TLS. */
void rpc_call_identity(const struct rpc_call *c, char *out, size_t room);

/* The queue's thread, from next(): work(c) runs on a worker's thread, and the queue leaves the call alone until it is
 * done; then next() is asked again. -EAGAIN. */
int rpc_call_work(struct rpc_call *c, struct rpc_worker *w, void (*work)(struct rpc_call *c));

/* rpc_worker.c: a thread for what may block. A server has two: worker for starts, reader for files that nodes pull. */
int rpc_worker_create(struct rpc_worker **ret_worker);
void rpc_worker_destroy(struct rpc_worker *w);
/* Runs work(call) there; -EAGAIN when RPC_WORKER_QUEUE calls wait. The caller gives it a reference. */
int rpc_worker_submit(struct rpc_worker *w, struct rpc_call *c, void (*work)(struct rpc_call *c));

/* rpc_listen.c: sockets. */
int rpc_listen_start(struct rpc_server *r, struct base_error *e); // binds; the servers are not started yet
int rpc_listen_accept(struct rpc_server *r, struct base_error *e); // starts to accept
void rpc_listen_stop(struct rpc_server *r); // stops accepting, removes the socket
void rpc_listen_finish(struct rpc_server *r);
uint16_t rpc_listen_tcp_port(const struct rpc_server *r); // 0: none
uint16_t rpc_listen_cluster_port(const struct rpc_server *r); // where nodes join
/* Is every address of host:port on this machine's loopback? -EINVAL for what is no address. */
int rpc_listen_is_loopback(const char *address, bool *ret_loopback, struct base_error *e);

/* Services. */
extern const struct rpc_method rpc_inference_methods[];
extern const uint32_t rpc_inference_methods_count;
void rpc_admin_get_nodes(struct rpc_call *c, const ProtobufCMessage *request);
void rpc_admin_get_topology(struct rpc_call *c, const ProtobufCMessage *request);
struct cluster_coordinator;
struct Thaw__Admin__V1__NodeLink;
struct Thaw__Admin__V1__PlanLink;
struct rpc_admin_links { // as replies have them; free() ends it
	struct Thaw__Admin__V1__NodeLink **list;
	size_t count;
	struct Thaw__Admin__V1__PlanLink *plan; // NULL: no two nodes can be used
	struct Thaw__Admin__V1__PlanLink **plans; // of each class, where there are several
	size_t plans_count;
};
/* NULL when this is no coordinator, or memory is short: there are none then. */
struct rpc_admin_links *rpc_admin_links_create(struct cluster_coordinator *coordinator);
void rpc_admin_drain_node(struct rpc_call *c, const ProtobufCMessage *request);
extern const struct rpc_method rpc_admin_methods[];
extern const uint32_t rpc_admin_methods_count;
extern const struct rpc_method rpc_node_methods[];
extern const uint32_t rpc_node_methods_count;
extern const struct rpc_method rpc_health_methods[];
extern const uint32_t rpc_health_methods_count;
extern const struct rpc_method rpc_reflection_methods[];
extern const uint32_t rpc_reflection_methods_count;

/* The bytes of a generating call's ring that are free: for sources that pace themselves (benchmarks). Any thread. */
uint32_t rpc_sink_room_bytes(const struct request_sink *sink);
