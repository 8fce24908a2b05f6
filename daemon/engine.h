/* SPDX-License-Identifier: Apache-2.0
 * The engine of one loaded model: scheduler, KV blocks and the link to its ranks, on one thread.
 *
 * Any thread may call submit, abort and the getters; they put work into a bounded queue or read a snapshot under a
 * lock that the engine's thread holds only to copy. A lost rank is a pause: the engine asks its `starter` for a
 * new one, reloads, and goes on from the tokens that each sequence has.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"
#include "base/trace.h"
#include "daemon/request.h"
#include "daemon/text/tokenizer.h"
#include "shard/link/link.h"
#include "shard/rank/message.h"

enum engine_state { ENGINE_LOADING, ENGINE_READY, ENGINE_RECOVERING, ENGINE_DRAINING, ENGINE_FAILED, ENGINE_STOPPED };

#define ENGINE_MAX_RANKS 16u

struct engine_gathered { // the ranks of one epoch, on several hosts
	struct link_group *group; // the engine's from now on: member 0 is this process
	uint64_t epoch; // higher than any before
	struct rank_shape shape; // at most engine_config.stages
	uint32_t passes; // in flight at most; 0: one for each stage
	const struct rank_assign *assign; // (ranks), copied
	double bound_pass_ns_disk, bound_pass_ns_memory, bound_token_ns_compute;
};

/* How ranks come to life: processes in thawd, threads in tests. start() is called for each rank in order and returns
 * a connected socket; ranks are numbered as in shard/rank/shape.h. */
struct engine_starter {
	int (*start)(void *context, uint32_t rank, int *ret_fd, struct base_error *e);
	void (*stop)(void *context, uint32_t rank); // makes sure that it is gone; called before a restart
	/* Or, where the ranks are on other hosts too: all at once, for a new plan each time. -EAGAIN: not yet, ask
	 * again; -EHOSTDOWN: the hosts that are there cannot do it, and requests are refused until they can. Both with
	 * text. It may take as long as `patience` has, and looks up meanwhile: deadlines of requests, aborts and the
	 * engine's end do not wait for ranks. */
	int (*gather)(void *context, const struct link_patience *patience, struct engine_gathered *ret_gathered,
		struct base_error *e);
	void (*scatter)(void *context); // the group that gather() gave is closed
	void *context;
};

struct engine_events { // engine's thread; must not block
	void (*event)(void *context, const char *severity, const char *kind, const char *text);
	void *context;
};

/* Why a request was refused at the door: reason of requests_rejected_total. */
enum engine_reject {
	ENGINE_REJECT_QUEUE_FULL,
	ENGINE_REJECT_QUEUE_MEMORY,
	ENGINE_REJECT_NOT_READY,
	ENGINE_REJECT_DRAINING,
	ENGINE_REJECT_FAILED,
	ENGINE_REJECT_TOO_LONG,
	ENGINE_REJECT_INVALID,
	ENGINE_REJECT_DUPLICATE,
	ENGINE_REJECT_NO_MEMORY,
	ENGINE_REJECTS,
};

struct engine_config {
	const char *model_name;
	uint32_t stages; // with gather(): the most that there can be
	uint32_t parts; // of the layers of each stage (tensor parallelism), without gather(); 0 is 1
	/* For each rank; epoch, shape, stage and patience_ns are filled in by the engine. config.slice says what it
	 * has. */
	struct rank_assign assign[ENGINE_MAX_RANKS];
	const struct text_tokenizer *tokenizer; // outlives the engine
	uint32_t max_waiting; // requests in the queue
	uint64_t max_waiting_bytes; // of memory that they hold; one that waits alone may have more. 0: no limit
	uint32_t max_running; // sequences in a batch
	uint32_t batch_tokens, logits_rows;
	uint32_t context_tokens;
	uint32_t max_new_tokens; // a request that asks for none or more gets this
	uint64_t batch_wait_ns; // batching window, used when weights are cold
	uint64_t stuck_ns; // no result for that long: the rank is given up as lost
	uint64_t connect_ns; // for ranks to start and say hello; 0: 20 s
	uint32_t max_restarts; // in a row without a pass in between, or requests that end for it in a row; then FAILED
	double bound_pass_ns_disk, bound_pass_ns_memory; // the parts of the bound that do not depend on positions
	double bound_token_ns_compute; // and the one that does, for each position
	struct engine_starter starter;
	struct engine_events events;
	struct base_log *log;
};

struct engine;
int engine_create(const struct engine_config *config, struct engine **ret_engine,
	struct base_error *e); // starts the thread, returns at once
void engine_destroy(struct engine *e); // aborts what is left, stops ranks, joins

/* Takes r over on success. -EAGAIN queue full, by number or by bytes, -EHOSTDOWN loading or draining, -ENOTRECOVERABLE
 * failed, -E2BIG prompt too long (text says the limits),
 * -EINVAL, -EEXIST for an id that is running. retry_after_ns is set with -EAGAIN and -EHOSTDOWN. */
int engine_submit(struct engine *e, struct request *r, uint64_t *ret_retry_after_ns, struct base_error *error);
int engine_abort(struct engine *e, const char *id); // -ENOENT
void engine_abort_all(struct engine *e);
void engine_drain(struct engine *e, bool on); // no new requests; running ones finish
/* The ranks are to be gathered anew, with the next plan, or started anew where they are on this host: requests go on
 * there. Nobody is to blame for it. */
void engine_regather(struct engine *e, const char *why);

struct engine_load {
	enum engine_state state;
	uint64_t load_done_bytes, load_total_bytes;
	char failure[BASE_ERROR_BYTES];
	int failure_code; // -errno of a first load that failed, 0 otherwise
	/* Bad data of the last pass, "" when it was whole: every pass reads all that is cold, so the next will most
	 * likely fail, too. */
	char data_loss[BASE_ERROR_BYTES];
	uint64_t epoch, restarts;
	bool down; // no hosts can hold the model: `failure` says what is missing
	uint32_t running, waiting; // requests
	uint64_t waiting_tokens;
	uint64_t waiting_bytes; // of memory, of the waiting requests
	uint32_t kv_blocks, kv_blocks_used;
	uint64_t last_pass_wall_ns; // 0: none yet
	uint64_t last_turn_ns; // base_clock: when the engine's thread last came round
	uint64_t prompt_tokens_total, generated_tokens_total, requests_total[4] /* by request_finish */,
		preemptions_total;
	uint64_t rejected_total, rejected[ENGINE_REJECTS], failed_total;
	uint64_t link_sent_bytes, link_received_bytes, link_errors;
	double tokens_per_second; // last seconds
	double achieved_ratio; // of the last passes
	char binding[16];
	struct rank_placement placement[ENGINE_MAX_RANKS];
	struct rank_stats stats[ENGINE_MAX_RANKS];
	struct pack_slice slice[ENGINE_MAX_RANKS]; // what each rank has of the model
	struct rank_shape shape; // of the ranks that are there, or were there last
	uint32_t ranks;
};
void engine_get_load(struct engine *e, struct engine_load *ret_load);

/* What the ranks and the engine did in some time. Of each rank, and of the engine itself, at most BASE_TRACE_EVENTS
 * spans, the latest. */
#define ENGINE_TRACE_MOST_NS (60 * 1000000000ull)
struct engine_trace_process {
	char host[64];
	uint64_t ahead_ns; // what to add to a span's times for those of the engine's clock, modulo 2^64
	bool same_clock; // ahead_ns is 0; otherwise it is as good as the agreement of the hosts' wall clocks
	uint64_t lost; // spans that were overwritten
	uint32_t count;
	struct base_trace_event *events; // (count)
};
struct engine_trace {
	char model[128];
	uint64_t epoch;
	uint64_t started_ns, ended_ns; // of the engine's clock
	uint64_t started_wall_ns;
	struct rank_shape shape;
	uint32_t processes; // 0: the engine, 1 + rank: that rank
	struct engine_trace_process process[1 + ENGINE_MAX_RANKS];
};
/* Begins to trace; it ends by itself after duration_ns (at most ENGINE_TRACE_MOST_NS), and what nobody takes within a
 * minute is dropped. -EINVAL, -EBUSY: one is under way, -EHOSTDOWN: the ranks are not ready. */
int engine_trace_start(struct engine *e, uint64_t duration_ns, struct base_error *error);
/* Ends the one that runs, if one does, and gives what there is: -EAGAIN until the ranks have handed it over, -ENOENT:
 * nothing was started,
 * -ECANCELED: the ranks were lost meanwhile, -ENOMEM. With text but for -EAGAIN. */
int engine_trace_take(struct engine *e, struct engine_trace **ret_trace, struct base_error *error);
void engine_trace_destroy(struct engine_trace *t);

/* Histograms for /metrics; the same snapshot lock. */
#define ENGINE_BUCKETS 16
struct engine_histogram {
	uint64_t count, buckets[ENGINE_BUCKETS + 1];
	double sum;
};
extern const double engine_bucket_seconds[ENGINE_BUCKETS]; // upper bounds
struct engine_histograms {
	struct engine_histogram time_to_first_token, inter_token, duration, queue, batch_tokens;
};
void engine_get_histograms(struct engine *e, struct engine_histograms *ret_histograms);
