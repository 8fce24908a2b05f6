// SPDX-License-Identifier: Apache-2.0
#include "daemon/scheduler.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "shard/kv/kv.h"

#define LEAST_PIECE 64u // positions of a prompt: fewer cost a pass almost as much

struct list {
	struct scheduler_sequence *first, *last;
	uint32_t count;
};

struct scheduler {
	struct scheduler_config config;
	struct kv_allocator *allocator; // NULL before the first reset
	bool cold;
	struct list waiting, running; // ascending keys
	struct scheduler_job *first_job, *last_job;
	uint32_t running_jobs, waiting_jobs;
	uint32_t *free_slots, free_slots_count; // (max_running)
	uint32_t *closes, closes_count; // (max_running)
	struct scheduler_pass *passes; // (passes_room), a ring in the order of sending
	uint32_t passes_room; // config.stages of these are in use
	uint32_t passes_first, passes_count;
	uint64_t last_pass; // number
	uint64_t preemptions;
};

/* ---- jobs ---- */

static int sequence_init(struct scheduler_sequence *q, struct scheduler_job *j, const struct request *r,
	uint32_t output, uint32_t max_new_tokens)
{
	q->job = j;
	q->output = output;
	q->slot = SCHEDULER_NO_SLOT;
	q->prompt_tokens = q->tokens_count = r->prompt_tokens;
	q->limit_tokens = r->prompt_tokens + max_new_tokens;
	q->blocks_room = (uint32_t)base_size_div_up(q->limit_tokens, KV_BLOCK_TOKENS);
	q->tokens = calloc(q->limit_tokens, sizeof *q->tokens);
	q->blocks = calloc(q->blocks_room, sizeof *q->blocks);
	if (!q->tokens || !q->blocks)
		return -ENOMEM;
	memcpy(q->tokens, r->prompt, r->prompt_tokens * sizeof *q->tokens);
	return 0;
}

int scheduler_job_create(const struct request *r, uint32_t max_new_tokens, struct scheduler_job **ret_job)
{
	if (!r->prompt_tokens || r->prompt_tokens > UINT32_MAX / 2 || max_new_tokens > UINT32_MAX / 2)
		return -EINVAL;
	struct scheduler_job *j = calloc(1, sizeof *j);
	if (!j)
		return -ENOMEM;
	j->score = r->score;
	j->score_first = r->score_first;
	j->score_top = r->score_top;
	j->priority = r->priority;
	j->deadline_ns = r->deadline_ns;
	j->sequences_count = r->score ? 1 : r->num_sequences;
	j->sequences = calloc(j->sequences_count, sizeof *j->sequences);
	int status = j->sequences && j->sequences_count ? 0 : -ENOMEM;
	for (uint32_t i = 0; !status && i < j->sequences_count; i++)
		status = sequence_init(&j->sequences[i], j, r, i, r->score ? 0 : max_new_tokens);
	if (status)
		scheduler_job_destroy(j);
	else
		*ret_job = j;
	return status;
}

uint64_t scheduler_job_bytes(const struct scheduler_job *j)
{
	uint64_t bytes = sizeof *j;
	for (uint32_t i = 0; i < j->sequences_count; i++) {
		const struct scheduler_sequence *q = &j->sequences[i];
		bytes += sizeof *q + (uint64_t)q->limit_tokens * sizeof *q->tokens +
			 (uint64_t)q->blocks_room * sizeof *q->blocks;
	}
	return bytes;
}

void scheduler_job_destroy(struct scheduler_job *j)
{
	if (!j)
		return;
	for (uint32_t i = 0; j->sequences && i < j->sequences_count; i++) {
		free(j->sequences[i].tokens);
		free(j->sequences[i].blocks);
	}
	free(j->sequences);
	free(j);
}

/* ---- lists ---- */

static bool before(const struct scheduler_sequence *a, const struct scheduler_sequence *b)
{
	if (a->key != b->key)
		return a->key < b->key;
	if (a->job->arrival_ns != b->job->arrival_ns)
		return a->job->arrival_ns < b->job->arrival_ns;
	return a->job == b->job && a->output < b->output;
}

/* From the end: most newcomers belong there. */
static void list_insert(struct list *l, struct scheduler_sequence *q)
{
	struct scheduler_sequence *after = l->last;
	while (after && before(q, after))
		after = after->previous;
	q->previous = after;
	q->next = after ? after->next : l->first;
	*(q->next ? &q->next->previous : &l->last) = q;
	*(after ? &after->next : &l->first) = q;
	l->count++;
}

static void list_remove(struct list *l, struct scheduler_sequence *q)
{
	*(q->previous ? &q->previous->next : &l->first) = q->next;
	*(q->next ? &q->next->previous : &l->last) = q->previous;
	q->next = q->previous = NULL;
	l->count--;
}

/* ---- the object ---- */

static int pass_init(struct scheduler_pass *p, const struct scheduler_config *c)
{
	size_t table = base_size_div_up(c->context_tokens, KV_BLOCK_TOKENS);
	p->entries = calloc(c->max_running, sizeof *p->entries);
	p->rank_entries = calloc(c->max_running, sizeof *p->rank_entries);
	p->tokens = calloc(c->batch_tokens, sizeof *p->tokens);
	p->targets = calloc(c->batch_tokens, sizeof *p->targets);
	p->blocks = calloc(c->max_running * table, sizeof *p->blocks);
	return p->entries && p->rank_entries && p->tokens && p->targets && p->blocks ? 0 : -ENOMEM;
}

int scheduler_create(const struct scheduler_config *config, struct scheduler **ret_scheduler)
{
	const struct scheduler_config *c = config;
	if (!c->max_running || c->max_running > RANK_MAX_SEQUENCES || c->batch_tokens < c->max_running ||
		c->logits_rows < c->max_running || c->batch_tokens > RANK_MAX_BATCH_TOKENS || !c->stages ||
		c->stages > SCHEDULER_MAX_STAGES || !c->context_tokens)
		return -EINVAL;
	struct scheduler *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->config = *c;
	s->free_slots = calloc(c->max_running, sizeof *s->free_slots);
	s->closes = calloc(c->max_running, sizeof *s->closes);
	s->passes_room = c->stages;
	s->passes = calloc(c->stages, sizeof *s->passes);
	int status = s->free_slots && s->closes && s->passes ? 0 : -ENOMEM;
	for (uint32_t i = 0; !status && i < c->stages; i++)
		status = pass_init(&s->passes[i], c);
	if (status)
		scheduler_destroy(s);
	else
		*ret_scheduler = s;
	return status;
}

void scheduler_destroy(struct scheduler *s)
{
	if (!s)
		return;
	for (uint32_t i = 0; s->passes && i < s->passes_room; i++) {
		struct scheduler_pass *p = &s->passes[i];
		free(p->entries);
		free(p->rank_entries);
		free(p->tokens);
		free(p->targets);
		free(p->blocks);
	}
	free(s->passes);
	free(s->free_slots);
	free(s->closes);
	kv_allocator_destroy(s->allocator);
	free(s);
}

/* The one place where a sequence gives its blocks and its slot back and leaves the running list. */
static void release(struct scheduler *s, struct scheduler_sequence *q)
{
	assert(q->state == SCHEDULER_RUNNING);
	for (uint32_t i = 0; q->in_flight && i < s->passes_count; i++) {
		struct scheduler_pass *p = &s->passes[(s->passes_first + i) % s->config.stages];
		for (uint32_t k = 0; k < p->pass.entries_count; k++) {
			if (p->entries[k].sequence == q)
				p->entries[k].sequence = NULL;
		}
	}
	q->in_flight = 0;
	kv_allocator_give(s->allocator, q->blocks, q->blocks_count);
	q->blocks_count = 0;
	q->sent = q->cached = 0;
	if (q->opened)
		s->closes[s->closes_count++] = q->slot;
	q->opened = false;
	s->free_slots[s->free_slots_count++] = q->slot;
	q->slot = SCHEDULER_NO_SLOT;
	list_remove(&s->running, q);
}

static void preempt(struct scheduler *s, struct scheduler_sequence *q)
{
	release(s, q);
	q->state = SCHEDULER_WAITING;
	list_insert(&s->waiting, q);
}

void scheduler_lost(struct scheduler *s)
{
	for (struct scheduler_sequence *q = s->running.first; q; q = q->next)
		q->losses += q->in_flight > 0;
}

int scheduler_reset(struct scheduler *s, uint32_t kv_blocks, uint32_t stages, bool cold)
{
	struct kv_allocator *fresh;
	int status = kv_blocks && stages && stages <= s->passes_room ? kv_allocator_create(kv_blocks, &fresh) : -EINVAL;
	if (status)
		return status;
	while (s->running.last)
		preempt(s, s->running.last);
	kv_allocator_destroy(s->allocator);
	s->allocator = fresh;
	s->cold = cold;
	for (uint32_t i = 0; i < s->passes_room; i++)
		s->passes[i].number = 0;
	s->config.stages = stages;
	s->passes_first = s->passes_count = 0;
	s->closes_count = 0;
	/* The lowest slot on top. */
	s->free_slots_count = s->config.max_running;
	for (uint32_t i = 0; i < s->config.max_running; i++)
		s->free_slots[i] = s->config.max_running - 1 - i;
	return 0;
}

void scheduler_add(struct scheduler *s, struct scheduler_job *j, uint64_t now_ns)
{
	j->arrival_ns = now_ns;
	j->next = NULL;
	j->previous = s->last_job;
	*(s->last_job ? &s->last_job->next : &s->first_job) = j;
	s->last_job = j;
	s->waiting_jobs++;
	for (uint32_t i = 0; i < j->sequences_count; i++) {
		struct scheduler_sequence *q = &j->sequences[i];
		assert(q->state == SCHEDULER_NEW);
		q->key = now_ns + (uint64_t)j->priority * s->config.aging_ns;
		q->state = SCHEDULER_WAITING;
		list_insert(&s->waiting, q);
	}
}

void scheduler_finish(struct scheduler *s, struct scheduler_sequence *q)
{
	if (q->state == SCHEDULER_DONE)
		return;
	if (q->state == SCHEDULER_RUNNING)
		release(s, q);
	else
		list_remove(&s->waiting, q);
	q->state = SCHEDULER_DONE;
	q->job->done_count++;
}

void scheduler_remove(struct scheduler *s, struct scheduler_job *j)
{
	for (uint32_t i = 0; i < j->sequences_count; i++)
		scheduler_finish(s, &j->sequences[i]);
	*(j->previous ? &j->previous->next : &s->first_job) = j->next;
	*(j->next ? &j->next->previous : &s->last_job) = j->previous;
	j->next = j->previous = NULL;
	if (j->admitted_ns)
		s->running_jobs--;
	else
		s->waiting_jobs--;
}

struct scheduler_job *scheduler_expired(const struct scheduler *s, uint64_t now_ns)
{
	for (struct scheduler_job *j = s->first_job; j; j = j->next) {
		if (j->deadline_ns && j->deadline_ns <= now_ns)
			return j;
	}
	return NULL;
}

uint64_t scheduler_next_deadline(const struct scheduler *s)
{
	uint64_t next = SCHEDULER_NEVER;
	for (const struct scheduler_job *j = s->first_job; j; j = j->next) {
		if (j->deadline_ns && j->deadline_ns < next)
			next = j->deadline_ns;
	}
	return next;
}

/* ---- passes ---- */

/* Positions of q that have to be computed: a score needs no position after the last one whose successor it scores. */
static uint32_t wanted(const struct scheduler_sequence *q)
{
	return q->job->score ? q->tokens_count - 1 : q->tokens_count;
}

static uint32_t pending(const struct scheduler_sequence *q)
{
	return wanted(q) - q->sent;
}

static bool decoding(const struct scheduler_sequence *q)
{
	return q->tokens_count > q->prompt_tokens && pending(q) == 1;
}

/* A block for the next token of each decoding sequence, oldest first; the youngest pay. */
static void grow(struct scheduler *s)
{
	for (struct scheduler_sequence *q = s->running.first, *next; q; q = next) {
		bool self = false;
		uint32_t need = (uint32_t)base_size_div_up(wanted(q), KV_BLOCK_TOKENS);
		while (!self && q->blocks_count < need &&
			kv_allocator_take(s->allocator, need - q->blocks_count, &q->blocks[q->blocks_count]) < 0) {
			struct scheduler_sequence *victim = s->running.last;
			assert(victim != s->running.first);
			self = victim == q;
			victim->preemptions++;
			s->preemptions++;
			preempt(s, victim);
		}
		if (self)
			return;
		q->blocks_count = need > q->blocks_count ? need : q->blocks_count;
		next = q->next;
	}
}

struct room { // left in the pass under construction
	uint32_t tokens, rows;
};

/* How many positions of q the pass can take, and what is wanted of them. */
static uint32_t cut(const struct scheduler_sequence *q, const struct room *room, enum rank_want *ret_want)
{
	uint32_t n = pending(q), left = n;
	*ret_want = RANK_WANT_NOTHING;
	if (n > room->tokens)
		n = room->tokens;
	if (q->job->score) {
		uint32_t first = q->job->score_first - 1; // the first position that scores its successor
		if (q->sent < first)
			return n < first - q->sent ? n : first - q->sent;
		*ret_want = RANK_WANT_SCORES;
		return n < room->rows ? n : room->rows;
	}
	if (n && n == left) {
		if (room->rows)
			*ret_want = RANK_WANT_SAMPLE;
		else
			n--; // its last token waits for a pass with a row of logits to spare
	}
	return n;
}

static void put(struct scheduler_pass *p, struct scheduler_sequence *q, struct room *room)
{
	enum rank_want want;
	uint32_t n = cut(q, room, &want);
	if (!n)
		return;
	struct rank_pass *m = &p->pass;
	struct rank_entry *e = &p->rank_entries[m->entries_count];
	uint32_t blocks = (uint32_t)base_size_div_up(q->sent + n, KV_BLOCK_TOKENS);
	*e = (struct rank_entry){
		.sequence = q->slot,
		.first_position = q->sent,
		.tokens = n,
		.first_token = m->tokens_count,
		.first_block = m->blocks_count,
		.blocks = blocks,
		.want = want,
		.first_target = m->targets_count,
		.score_top = want == RANK_WANT_SCORES ? q->job->score_top : 0,
	};
	memcpy(&p->tokens[m->tokens_count], &q->tokens[q->sent], n * sizeof *p->tokens);
	memcpy(&p->blocks[m->blocks_count], q->blocks, blocks * sizeof *p->blocks);
	if (want == RANK_WANT_SCORES) {
		memcpy(&p->targets[m->targets_count], &q->tokens[q->sent + 1], n * sizeof *p->targets);
		m->targets_count += n;
	}
	p->entries[m->entries_count++] = (struct scheduler_pass_entry){.sequence = q, .tokens = n, .want = want};
	m->tokens_count += n;
	m->blocks_count += blocks;
	room->tokens -= n;
	room->rows -= want == RANK_WANT_SCORES ? n : want == RANK_WANT_SAMPLE;
	q->sent += n;
	q->in_flight++;
}

static bool suspect(const struct scheduler_sequence *q)
{
	return q->losses >= SCHEDULER_ALONE_LOSSES;
}

/* One that waits, if there is a slot and blocks for all that it has, and one spare for each that runs: else a newcomer
 * would push somebody out at the next block border. */
static struct scheduler_sequence *admit(struct scheduler *s, struct scheduler_sequence *q, uint64_t now_ns)
{
	if (!q || !s->free_slots_count)
		return NULL;
	uint32_t need = (uint32_t)base_size_div_up(wanted(q), KV_BLOCK_TOKENS);
	uint32_t free_blocks = kv_allocator_free_blocks(s->allocator);
	if (need > free_blocks || (s->running.count && free_blocks - need < s->running.count))
		return NULL;
	if (kv_allocator_take(s->allocator, need, q->blocks) < 0)
		return NULL;
	list_remove(&s->waiting, q);
	q->blocks_count = need;
	q->slot = s->free_slots[--s->free_slots_count];
	q->state = SCHEDULER_RUNNING;
	list_insert(&s->running, q);
	if (!q->job->admitted_ns) {
		q->job->admitted_ns = now_ns ? now_ns : 1;
		s->waiting_jobs--;
		s->running_jobs++;
	}
	return q;
}

/* With cold weights a pass costs the same for one sequence as for many: the first ones wait a moment for company. */
static bool window_open(const struct scheduler *s, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	if (!s->cold || s->running.count || !s->waiting.count || s->waiting.count >= s->config.max_running)
		return false;
	uint64_t first = UINT64_MAX;
	for (const struct scheduler_sequence *q = s->waiting.first; q; q = q->next) {
		if (q->job->admitted_ns)
			return false; // it has waited before
		first = q->job->arrival_ns < first ? q->job->arrival_ns : first;
	}
	if (now_ns >= first + s->config.batch_wait_ns)
		return false;
	*ret_wake_ns = first + s->config.batch_wait_ns;
	return true;
}

/* Prompts are dealt, too, one piece for each pass that may still be sent, so that a long one does not visit the stages
 * one by one. Not where passes read the drive: there each piece costs as much as the whole. */
static uint32_t prompt_share(const struct scheduler *s)
{
	uint64_t left = 0;
	if (s->config.stages == 1 || s->cold)
		return UINT32_MAX;
	for (const struct scheduler_sequence *q = s->running.first; q; q = q->next)
		left += decoding(q) ? 0 : pending(q);
	for (const struct scheduler_sequence *q = s->waiting.first; q; q = q->next)
		left += wanted(q);
	uint64_t share = base_size_div_up(left, s->config.stages - s->passes_count);
	return share < LEAST_PIECE ? LEAST_PIECE : share > UINT32_MAX ? UINT32_MAX : (uint32_t)share;
}

static void fill(struct scheduler *s, struct scheduler_pass *p, uint64_t now_ns)
{
	struct room room = {.tokens = s->config.batch_tokens, .rows = s->config.logits_rows};
	/* With several stages the decoding sequences are dealt over the passes in flight, so that no stage idles. */
	uint32_t share = (uint32_t)base_size_div_up(s->running.count, s->config.stages);
	for (struct scheduler_sequence *q = s->running.first; q && share; q = q->next) {
		if (decoding(q)) {
			put(p, q, &room);
			share--;
		}
	}
	uint32_t prompts = prompt_share(s);
	room.tokens = room.tokens < prompts ? room.tokens : prompts;
	for (struct scheduler_sequence *q = s->running.first; q && room.tokens; q = q->next) {
		if (!decoding(q))
			put(p, q, &room);
	}
	while (room.tokens && room.rows) {
		struct scheduler_sequence *q = s->waiting.first;
		if (!q || suspect(q) || !admit(s, q, now_ns))
			break;
		put(p, q, &room);
	}
}

/* The first sequence that has to run alone, admitted; NULL: there is none, or no room for it. */
static struct scheduler_sequence *take_suspect(struct scheduler *s, uint64_t now_ns)
{
	for (struct scheduler_sequence *q = s->running.first; q; q = q->next) {
		if (suspect(q))
			return q;
	}
	struct scheduler_sequence *q = s->waiting.first;
	while (q && !suspect(q))
		q = q->next;
	return s->passes_count ? q : admit(s, q, now_ns);
}

struct scheduler_pass *scheduler_build(struct scheduler *s, uint64_t now_ns, uint64_t *ret_wake_ns)
{
	*ret_wake_ns = SCHEDULER_NEVER;
	if (!s->allocator || s->passes_count == s->config.stages || window_open(s, now_ns, ret_wake_ns))
		return NULL;
	struct scheduler_sequence *alone = take_suspect(s, now_ns);
	if (alone && s->passes_count)
		return NULL;
	grow(s);
	if (alone && alone->state != SCHEDULER_RUNNING)
		alone = NULL; // it gave its blocks to an older one
	struct scheduler_pass *p = &s->passes[(s->passes_first + s->passes_count) % s->config.stages];
	p->pass = (struct rank_pass){
		.entries = p->rank_entries,
		.tokens = p->tokens,
		.blocks = p->blocks,
		.targets = p->targets,
	};
	if (alone)
		put(p, alone, &(struct room){.tokens = s->config.batch_tokens, .rows = s->config.logits_rows});
	else
		fill(s, p, now_ns);
	if (!p->pass.entries_count)
		return NULL;
	p->number = p->pass.pass = ++s->last_pass;
	p->sent_ns = now_ns;
	s->passes_count++;
	return p;
}

uint32_t scheduler_take_closes(struct scheduler *s, uint32_t *ret_slots)
{
	uint32_t n = s->closes_count;
	memcpy(ret_slots, s->closes, n * sizeof *ret_slots);
	s->closes_count = 0;
	return n;
}

struct scheduler_pass *scheduler_oldest_pass(struct scheduler *s)
{
	return s->passes_count ? &s->passes[s->passes_first] : NULL;
}

void scheduler_complete(struct scheduler *s, struct scheduler_pass *pass)
{
	assert(pass == scheduler_oldest_pass(s));
	for (uint32_t i = 0; i < pass->pass.entries_count; i++) {
		struct scheduler_sequence *q = pass->entries[i].sequence;
		if (!q)
			continue;
		q->cached += pass->entries[i].tokens;
		q->in_flight--;
	}
	pass->number = 0;
	s->passes_first = (s->passes_first + 1) % s->config.stages;
	s->passes_count--;
}

bool scheduler_append(struct scheduler_sequence *q, uint32_t token)
{
	if (q->tokens_count == q->limit_tokens)
		return false;
	q->tokens[q->tokens_count++] = token;
	q->losses = 0;
	return q->tokens_count < q->limit_tokens;
}

/* ---- figures ---- */

void scheduler_get_counts(const struct scheduler *s, struct scheduler_counts *ret_counts)
{
	*ret_counts = (struct scheduler_counts){
		.running_jobs = s->running_jobs,
		.waiting_jobs = s->waiting_jobs,
		.running = s->running.count,
		.waiting = s->waiting.count,
		.in_flight = s->passes_count,
		.preemptions = s->preemptions,
	};
	for (const struct scheduler_sequence *q = s->waiting.first; q; q = q->next)
		ret_counts->waiting_tokens += wanted(q);
	if (s->allocator) {
		ret_counts->blocks = kv_allocator_total_blocks(s->allocator);
		ret_counts->blocks_used = ret_counts->blocks - kv_allocator_free_blocks(s->allocator);
	}
}

uint32_t scheduler_limit_tokens(const struct scheduler *s)
{
	if (!s->allocator)
		return 0;
	uint64_t tokens = (uint64_t)kv_allocator_total_blocks(s->allocator) * KV_BLOCK_TOKENS;
	return tokens < s->config.context_tokens ? (uint32_t)tokens : s->config.context_tokens;
}

struct scheduler_job *scheduler_first_job(const struct scheduler *s)
{
	return s->first_job;
}
