/* SPDX-License-Identifier: Apache-2.0
 * Which tokens go into the next pass: continuous batching at pass granularity over a paged KV cache.
 *
 * A pure object: one thread (the engine's), no clock (time is passed in), no I/O; so its tests are simulations.
 * The unit of scheduling is a sequence, an output of a request (a job). A sequence waits, then runs: it holds a slot of
 * the ranks and KV blocks, first for its prefill in chunks, then one token in each pass. It goes back to waiting when
 * it is preempted or when the ranks were lost, and is then recomputed from the tokens that it has; a token depends on
 * its sequence alone, so nobody sees that in the output.
 *
 * Order: a sequence's key is its arrival plus `aging_ns` for each class below HIGH. So a request of a lower class is
 * overtaken only by those that come within that time after it, and nothing starves. The waiting sequence with the least
 * key is admitted first or nobody is; when blocks run out the running sequence with the greatest key gives its own
 * back. The running sequence with the least key is never preempted, so the work always goes on.
 *
 * Lost ranks: whoever was in flight when SCHEDULER_ALONE_LOSSES ranks in a row were lost may be what kills them. Such a
 * sequence gets passes of its own, with nothing else in flight, until it has a token: so the others go on, and it is
 * known who it is.
 *
 * Memory: a job's at scheduler_job_create (any thread), the rest at scheduler_create.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/request.h"
#include "shard/rank/rank.h"

#define SCHEDULER_NO_SLOT UINT32_MAX
#define SCHEDULER_NEVER UINT64_MAX
#define SCHEDULER_MAX_STAGES 16u
#define SCHEDULER_ALONE_LOSSES 2u
#define SCHEDULER_MAX_LOSSES 3u // then the engine ends the request

struct scheduler_config {
	uint32_t max_running; // sequences: slots of the ranks
	uint32_t batch_tokens, logits_rows; // of a pass; at least max_running each
	uint32_t context_tokens; // of a sequence
	uint32_t stages; // passes in flight
	uint64_t batch_wait_ns; // the batching window
	uint64_t aging_ns; // waiting that long is worth a class
};

/* What a sequence may be:
 * NEW -> WAITING (scheduler_add), WAITING -> RUNNING (admitted in scheduler_build),
 * RUNNING -> WAITING (preempted, reset), any -> DONE (scheduler_finish). */
enum scheduler_state { SCHEDULER_NEW, SCHEDULER_WAITING, SCHEDULER_RUNNING, SCHEDULER_DONE };

struct scheduler_job;

struct scheduler_sequence {
	struct scheduler_job *job;
	uint32_t output; // number in the job
	enum scheduler_state state;
	uint32_t *tokens; // prompt and generated, (limit_tokens)
	uint32_t tokens_count, prompt_tokens, limit_tokens;
	uint32_t sent; // positions that passes in flight or done have carried since it was last admitted
	uint32_t cached; // of those, done
	uint32_t *blocks; // its block table, (blocks_room)
	uint32_t blocks_count, blocks_room;
	uint32_t slot;
	bool opened; // the ranks know the slot: the engine sets it when it sends OPEN
	uint32_t in_flight; // passes
	uint32_t preemptions;
	uint32_t losses; // of ranks while it was in flight, since its last token
	uint64_t key;
	struct scheduler_sequence *next, *previous; // in the waiting or the running list, by key
	void *user; // the engine's
};

struct scheduler_job {
	struct scheduler_job *next, *previous; // all jobs, by arrival
	uint64_t arrival_ns, deadline_ns; // deadline 0: none
	uint64_t admitted_ns; // of its first sequence; 0: none yet
	bool score; // all positions' scores, nothing is generated
	uint32_t score_first, score_top;
	enum request_priority priority;
	uint32_t sequences_count, done_count;
	struct scheduler_sequence *sequences;
	void *user; // the engine's
};

/* For a request that was checked: each sequence starts as the prompt and has room for max_new_tokens more (score:
 * none). */
int scheduler_job_create(const struct request *r, uint32_t max_new_tokens, struct scheduler_job **ret_job);
/* Memory that the job holds. */
uint64_t scheduler_job_bytes(const struct scheduler_job *j);
void scheduler_job_destroy(struct scheduler_job *j); // not while it is in a scheduler

struct scheduler_pass_entry {
	struct scheduler_sequence *sequence; // NULL: it ended or was preempted since
	uint32_t tokens;
	enum rank_want want;
};

struct scheduler_pass {
	uint64_t number; // 1, 2, ...; 0: the record is free
	struct rank_pass pass; // the message's content
	struct scheduler_pass_entry *entries;
	uint64_t sent_ns;
	struct rank_entry *rank_entries;
	uint32_t *tokens, *blocks, *targets;
};

struct scheduler;
int scheduler_create(const struct scheduler_config *config, struct scheduler **ret_scheduler);
void scheduler_destroy(struct scheduler *s); // jobs left in it are the caller's

/* New ranks (the first ones, too): all blocks are free, no slot is open, no pass is in flight, and running sequences
 * wait again. stages: at most config.stages. Cold: passes read weights from the drive, so company is worth waiting for.
 * -ENOMEM. */
int scheduler_reset(struct scheduler *s, uint32_t kv_blocks, uint32_t stages, bool cold);

/* The ranks are gone: counts that for every sequence in flight. scheduler_reset follows when there are new ones. */
void scheduler_lost(struct scheduler *s);

/* Takes the job in: all its sequences wait. It stays the caller's memory, untouched by others, until
 * scheduler_remove. */
void scheduler_add(struct scheduler *s, struct scheduler_job *j, uint64_t now_ns);
/* Ends one sequence: blocks and slot are free at once (passes run in order, so one in flight does no harm). */
void scheduler_finish(struct scheduler *s, struct scheduler_sequence *q);
/* Ends what is left of a job and forgets it. */
void scheduler_remove(struct scheduler *s, struct scheduler_job *j);

/* A job whose deadline is not after now, or NULL. */
struct scheduler_job *scheduler_expired(const struct scheduler *s, uint64_t now_ns);
uint64_t scheduler_next_deadline(const struct scheduler *s); // SCHEDULER_NEVER

/* The next pass, or NULL when there is nothing to send now; then *ret_wake_ns says when the batching window ends (else
 * SCHEDULER_NEVER). Before its pass, the engine sends CLOSE for scheduler_take_closes and OPEN for the entries'
 * sequences that are not opened. The record stays until scheduler_complete or reset. */
struct scheduler_pass *scheduler_build(struct scheduler *s, uint64_t now_ns, uint64_t *ret_wake_ns);
uint32_t scheduler_take_closes(struct scheduler *s, uint32_t *ret_slots /* (max_running) */);
/* The oldest pass in flight, or NULL: results come back in order. */
struct scheduler_pass *scheduler_oldest_pass(struct scheduler *s);
/* The pass is done: its positions count as cached. The entries may still be read until the next scheduler_build. */
void scheduler_complete(struct scheduler *s, struct scheduler_pass *pass);
/* The token drawn for a sequence; the next pass carries it, and its losses are forgotten. False when there is no room
 * left (limit_tokens). */
bool scheduler_append(struct scheduler_sequence *q, uint32_t token);

struct scheduler_counts {
	uint32_t running_jobs, waiting_jobs; // waiting: no sequence of it has ever been admitted
	uint32_t running, waiting; // sequences
	uint64_t waiting_tokens; // positions that waiting sequences have to compute
	uint32_t blocks, blocks_used, in_flight;
	uint64_t preemptions;
};
void scheduler_get_counts(const struct scheduler *s, struct scheduler_counts *ret_counts);
/* Most positions that any sequence can have: context and blocks; 0 before the first reset. */
uint32_t scheduler_limit_tokens(const struct scheduler *s);
struct scheduler_job *scheduler_first_job(const struct scheduler *s);
