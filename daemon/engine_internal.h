/* SPDX-License-Identifier: Apache-2.0
 * What the files of the engine share. Only daemon/engine*.c include this.
 *
 *   engine.c         create, destroy, submit, abort, the thread's loop
 *   engine_link.c    ranks: start, ASSIGN, messages out and in, loss and recovery
 *   engine_pass.c    passes: build, send, results to tokens, text and events
 *   engine_stats.c   snapshots, rates, histograms
 *   engine_trace.c   spans of the ranks and of passes
 *
 * Fields are the engine thread's unless a comment says otherwise. `lock` is held for copies and list operations only.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/engine.h"
#include "daemon/scheduler.h"
#include "daemon/sequence.h"

#define ENGINE_RATE_SLOTS 6u // seconds that tokens_per_second looks at
#define ENGINE_AGING_NS (10 * 1000000000ull) // waiting that long is worth a priority class
#define ENGINE_CONNECT_NS (20 * 1000000000ull) // for ranks to start and say hello
#define ENGINE_DOWN_NS (30 * 1000000000ull) // that running requests wait for hosts to come back
#define ENGINE_FLEET_LOSSES 6u // of a request's ranks, where links and hosts are lost for reasons of their own
#define ENGINE_RETRY_NS (1000000000ull) // advice to a client that was refused
#define ENGINE_LOSSES 16u
#define ENGINE_LOSS_NS (60 * 1000000000ull) // between two events of the same place
#define ENGINE_RING_BYTES (256u << 10)

struct engine_output {
	struct sequence text;
	bool ended; // its finish was given out
	uint64_t last_token_ns;
};

/* A request inside the engine. The lock guards next, previous, next_incoming, abort and counted; the rest is the
 * engine thread's. */
struct engine_stream {
	struct engine_stream *next, *previous; // of all that live
	struct engine_stream *next_incoming;
	bool abort;
	bool counted; // in engine.waiting, its bytes in engine.waiting_bytes
	uint64_t bytes; // of memory that it holds; const
	struct request *request;
	struct scheduler_job *job;
	struct engine_output *outputs; // (request->num_sequences)
	uint64_t submitted_ns, first_token_ns;
	bool told_prompt;
	uint32_t ended_count; // outputs
	uint32_t next_score; // position; earlier ones were given out before the ranks were lost or it was preempted
	enum request_finish finish; // of the first output
	bool over; // to be ended at the end of the flush, with:
	int status;
	char reason[BASE_ERROR_BYTES];
	double read_bytes, bound_ns, pass_ns;
	uint64_t stall_ns, network_ns;
	uint32_t bindings[3]; // passes by enum engine_binding
	struct engine_stream *next_over;
};

enum engine_binding { ENGINE_BINDING_DISK, ENGINE_BINDING_MEMORY, ENGINE_BINDING_COMPUTE };

struct engine_fresh { // a result that was not given out yet; the result points into the decoded message
	struct engine_stream *stream;
	struct scheduler_sequence *sequence;
	const struct sample_result *result;
	bool score;
	uint32_t position; // of the token that is scored
};

struct engine_message { // on its way to all ranks
	uint8_t *data; // (room_bytes)
	size_t room_bytes;
	struct link_request request[ENGINE_MAX_RANKS];
	uint32_t requests; // how many of request[] are in use
};

/* NONE -> WANTED (start), WANTED -> RUNNING or FAILED, RUNNING -> READING -> DONE (the thread), RUNNING, READING ->
 * FAILED (ranks lost), DONE, FAILED -> NONE (taken, or too old), WANTED (another start). */
enum engine_tracing {
	ENGINE_TRACING_NONE,
	ENGINE_TRACING_WANTED,
	ENGINE_TRACING_RUNNING,
	ENGINE_TRACING_READING,
	ENGINE_TRACING_DONE,
	ENGINE_TRACING_FAILED,
};

struct engine {
	struct engine_config config;
	char model_name[128];
	uint32_t vocab;
	pthread_t thread;
	int wake_fd;
	_Atomic bool stop;

	pthread_mutex_t lock;
	struct engine_stream *live; // lock
	uint32_t live_count; // lock
	struct engine_stream *incoming_first, *incoming_last; // lock
	uint32_t waiting; // lock: requests of which nothing was ever admitted
	uint64_t waiting_bytes; // lock: memory of those
	bool aborts; // lock: some stream has its abort flag set
	bool draining; // lock
	uint32_t limit_tokens; // lock: of a sequence
	uint64_t next_id; // lock
	struct engine_load load; // lock for writes of the thread and reads of others
	struct engine_histograms histograms; // the same
	uint64_t rate[ENGINE_RATE_SLOTS]; // the same; tokens by second
	uint64_t rate_second[ENGINE_RATE_SLOTS]; // the same

	struct scheduler *scheduler;
	enum engine_state state; // the thread's; load.state is the copy for others
	struct link_group *group; // NULL between ranks
	uint64_t epoch;
	uint64_t starts; // of the ranks, ever
	struct rank_shape shape; // of this epoch
	uint32_t ranks;
	uint32_t passes; // in flight at most
	uint64_t down_ns; // since when no hosts can hold the model, or lose it again and again; 0: some can
	bool regather; // lock: asked for, with:
	char regather_why[128]; // lock
	uint32_t restarts_in_a_row;
	uint32_t killers_in_a_row; // requests ended for the ranks that they cost, without a pass in between
	uint32_t io_failures; // passes in a row of which nothing could be read
	uint64_t retry_ns; // when lost ranks are started again
	uint64_t heard_ns; // last message of any rank; what `stuck` is measured from
	struct rank_message_scratch *scratch;
	uint8_t *reply[ENGINE_MAX_RANKS]; // (reply_bytes)
	size_t reply_bytes;
	struct link_request receive[ENGINE_MAX_RANKS];
	bool ready[ENGINE_MAX_RANKS];
	uint64_t rank_done[ENGINE_MAX_RANKS], rank_total[ENGINE_MAX_RANKS]; // bytes loaded
	uint32_t kv_blocks; // of the first epoch: a later one must not have fewer
	struct engine_message *messages; // (messages_count)
	uint32_t messages_count, large_count; // the first large_count are for passes
	uint32_t *closes; // (max_running)

	struct engine_fresh *fresh; // (logits_rows)
	uint32_t fresh_count;
	struct engine_stream *over;
	struct request_event event; // scratch: large
	struct rank_message out, in; // scratch: large
	char data_loss[BASE_ERROR_BYTES]; // of the pass whose result is being taken
	struct { // places of which an event was given out lately
		uint64_t place; // hash of the words, 0: none
		uint64_t told_ns;
		uint32_t quiet; // requests since
	} losses[ENGINE_LOSSES];
	double recent_bound_ns, recent_pass_ns; // decaying sums

	enum engine_tracing tracing; // lock, and below
	bool trace_over; // asked for
	uint64_t trace_until_ns; // RUNNING: its end; DONE, FAILED: when it is dropped
	struct engine_trace *trace; // the thread's while RUNNING and READING
	int trace_failure;
	struct base_trace spans; // of passes
	uint32_t trace_first; // READING: that was asked for
	bool trace_had[ENGINE_MAX_RANKS]; // the answer to that
};

/* engine.c */
void engine_set_state(struct engine *e, enum engine_state state, const char *failure);
void engine_end(struct engine *e, struct engine_stream *s, int status, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void engine_emit_event(struct engine *e, const char *severity, const char *kind, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
void engine_uncount(struct engine *e, struct engine_stream *s); // admitted or ended: no longer waiting

void engine_wake(struct engine *e); // any thread
/* For a wait of the engine's thread without a group: what is due for requests meanwhile. -ECANCELED: the engine is to
 * end. */
int engine_look_up(void *context, struct base_error *error);

/* engine_trace.c */
uint64_t engine_trace_pump(struct engine *e); // when to come again
bool engine_trace_piece(struct engine *e, uint32_t rank); // e->in is a TRACE_PIECE; false: it was not asked for
void engine_trace_finish(struct engine *e);

/* engine_link.c. A lost rank is handled inside: callers look at state and group afterwards. */
int engine_link_init(struct engine *e);
void engine_link_finish(struct engine *e);
void engine_link_start(struct engine *e); // new epoch: ranks, group, ASSIGN
void engine_link_stop(struct engine *e);
void engine_link_poll(struct engine *e); // messages in
bool engine_link_often_lost(const struct engine *e); // in a row, without a pass in between
void engine_link_lost(struct engine *e, const char *why);
void engine_link_leave(struct engine *e, const char *why); // the same without a failure
void engine_link_set_ranks(struct engine *e, const struct rank_shape *shape); // of the next epoch
/* Encodes e->out and sends it to every rank. False: the ranks were lost meanwhile. */
bool engine_link_send(struct engine *e, bool large);

/* engine_pass.c */
uint64_t engine_pass_pump(struct engine *e); // sends what can be sent; when to come again
void engine_pass_result(struct engine *e); // e->in is a RESULT of the last stage
void engine_pass_flush(struct engine *e); // text and events of fresh results
bool engine_pass_emit(struct engine *e, struct engine_stream *s); // e->event; false: the reader is too slow

/* engine_stats.c */
void engine_stats_ended(struct engine *e, struct engine_stream *s, int status);
void engine_stats_pass(
	struct engine *e, uint32_t positions, uint32_t generated, uint32_t prompt, double bound_ns, double pass_ns);
void engine_stats_first_token(struct engine *e, const struct engine_stream *s);
void engine_stats_token(struct engine *e, uint64_t gap_ns);
void engine_stats_publish(struct engine *e);
double engine_stats_bound(const struct engine *e, uint32_t positions, enum engine_binding *ret_binding);
const char *engine_binding_name(enum engine_binding b);
