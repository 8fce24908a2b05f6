// SPDX-License-Identifier: Apache-2.0
/* The scheduler against a fake model with a fake clock: a token is a hash of the tokens before it, so every mistake in
 * positions, block tables or order changes the output. */
#include "tests/lib/testing.h"

#include <string.h>

#include "daemon/scheduler.h"
#include "shard/kv/kv.h"

#define MAX_BLOCKS 4096

struct world { // what the ranks would know
	struct scheduler *s;
	struct scheduler_config config;
	uint32_t blocks;
	uint32_t memory[MAX_BLOCKS * KV_BLOCK_TOKENS]; // the token that was written at each place of the cache
	bool open[RANK_MAX_SEQUENCES];
	uint64_t now_ns;
	uint64_t passes, positions;
};

static uint32_t next_token(const uint32_t *tokens, uint32_t count)
{
	uint64_t h = 1469598103934665603ull;
	for (uint32_t i = 0; i < count; i++)
		h = (h ^ tokens[i]) * 1099511628211ull;
	return (uint32_t)(h >> 32) % 50000;
}

static struct scheduler_config small_config(void)
{
	return (struct scheduler_config){
		.max_running = 4,
		.batch_tokens = 32,
		.logits_rows = 8,
		.context_tokens = 256,
		.stages = 1,
		.batch_wait_ns = 20000000,
		.aging_ns = 1000000000,
	};
}

static struct world *world_create(const struct scheduler_config *config, uint32_t blocks, bool cold)
{
	struct world *w = calloc(1, sizeof *w);
	w->config = *config;
	w->blocks = blocks;
	w->now_ns = 1000000000;
	assert_int_equal(scheduler_create(config, &w->s), 0);
	assert_int_equal(scheduler_reset(w->s, blocks, w->config.stages, cold), 0);
	return w;
}

static void world_destroy(struct world *w)
{
	scheduler_destroy(w->s);
	free(w);
}

static struct scheduler_job *add_job(struct world *w, uint32_t prompt, uint32_t max_new, uint32_t sequences,
	enum request_priority priority, bool score)
{
	uint32_t tokens[512];
	for (uint32_t i = 0; i < prompt; i++)
		tokens[i] = (uint32_t)(w->now_ns / 1000 * 31 + i * 7 + prompt) % 50000;
	struct request r = {
		.prompt = tokens,
		.prompt_tokens = prompt,
		.num_sequences = sequences,
		.priority = priority,
		.score = score,
		.score_first = 1,
	};
	struct scheduler_job *j;
	assert_int_equal(scheduler_job_create(&r, max_new, &j), 0);
	scheduler_add(w->s, j, w->now_ns);
	return j;
}

/* No block shared, none lost, no slot twice. */
static void check_invariants(struct world *w)
{
	static bool taken[MAX_BLOCKS];
	bool slot[RANK_MAX_SEQUENCES] = {0};
	uint32_t used = 0, running = 0;
	memset(taken, 0, sizeof taken);
	for (struct scheduler_job *j = scheduler_first_job(w->s); j; j = j->next) {
		for (uint32_t i = 0; i < j->sequences_count; i++) {
			struct scheduler_sequence *q = &j->sequences[i];
			if (q->state != SCHEDULER_RUNNING) {
				assert_int_equal(q->blocks_count, 0);
				continue;
			}
			running++;
			assert_true(q->slot < w->config.max_running && !slot[q->slot]);
			slot[q->slot] = true;
			for (uint32_t b = 0; b < q->blocks_count; b++) {
				assert_true(q->blocks[b] < w->blocks && !taken[q->blocks[b]]);
				taken[q->blocks[b]] = true;
				used++;
			}
		}
	}
	struct scheduler_counts c;
	scheduler_get_counts(w->s, &c);
	assert_int_equal(c.running, running);
	assert_int_equal(c.blocks_used, used);
}

/* What a rank would do and refuse: writes the tokens into its cache. */
static void execute(struct world *w, const struct scheduler_pass *p)
{
	const struct rank_pass *m = &p->pass;
	uint32_t rows = 0;
	assert_true(m->tokens_count && m->tokens_count <= w->config.batch_tokens);
	assert_true(m->entries_count <= w->config.max_running);
	for (uint32_t i = 0; i < m->entries_count; i++) {
		const struct rank_entry *e = &m->entries[i];
		assert_true(w->open[e->sequence]);
		assert_true(e->tokens && e->first_token + e->tokens <= m->tokens_count);
		assert_true((uint64_t)e->blocks * KV_BLOCK_TOKENS >= e->first_position + e->tokens);
		rows += e->want == RANK_WANT_SAMPLE ? 1 : e->want == RANK_WANT_SCORES ? e->tokens : 0;
		for (uint32_t t = 0; t < e->tokens; t++) {
			uint32_t at = e->first_position + t;
			uint32_t block = m->blocks[e->first_block + at / KV_BLOCK_TOKENS];
			w->memory[block * KV_BLOCK_TOKENS + at % KV_BLOCK_TOKENS] = m->tokens[e->first_token + t];
		}
	}
	assert_true(rows <= w->config.logits_rows);
	w->passes++;
	w->positions += m->tokens_count;
}

static uint32_t draw(struct world *w, const struct rank_pass *m, const struct rank_entry *e)
{
	uint32_t history[512], count = e->first_position + e->tokens;
	for (uint32_t i = 0; i < count; i++)
		history[i] = w->memory[m->blocks[e->first_block + i / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS +
				       i % KV_BLOCK_TOKENS];
	return next_token(history, count);
}

/* Sends what can be sent; then the oldest pass comes back. Returns false when there was nothing to do. */
static bool step(struct world *w, uint32_t *scores)
{
	uint64_t wake;
	struct scheduler_pass *p;
	while ((p = scheduler_build(w->s, w->now_ns, &wake))) {
		uint32_t closes[RANK_MAX_SEQUENCES];
		uint32_t n = scheduler_take_closes(w->s, closes);
		for (uint32_t i = 0; i < n; i++) {
			assert_true(w->open[closes[i]]);
			w->open[closes[i]] = false;
		}
		for (uint32_t i = 0; i < p->pass.entries_count; i++) {
			struct scheduler_sequence *q = p->entries[i].sequence;
			if (!q->opened) {
				assert_false(w->open[q->slot]);
				w->open[q->slot] = q->opened = true;
			}
		}
		execute(w, p);
		check_invariants(w);
	}
	p = scheduler_oldest_pass(w->s);
	if (!p)
		return false;
	const struct rank_pass m = p->pass;
	scheduler_complete(w->s, p);
	for (uint32_t i = 0; i < m.entries_count; i++) {
		struct scheduler_sequence *q = p->entries[i].sequence;
		if (!q)
			continue;
		if (p->entries[i].want == RANK_WANT_SCORES) {
			for (uint32_t t = 0; t < m.entries[i].tokens; t++)
				assert_int_equal(m.targets[m.entries[i].first_target + t],
					q->tokens[m.entries[i].first_position + t + 1]);
			*(scores ? scores : &(uint32_t){0}) += m.entries[i].tokens;
			if (q->cached == q->prompt_tokens - 1)
				scheduler_finish(w->s, q);
		} else if (p->entries[i].want == RANK_WANT_SAMPLE) {
			uint32_t token = draw(w, &m, &m.entries[i]);
			if (!scheduler_append(q, token))
				scheduler_finish(w->s, q);
		}
	}
	check_invariants(w);
	return true;
}

static void check_output(const struct scheduler_sequence *q)
{
	assert_int_equal(q->tokens_count, q->limit_tokens);
	for (uint32_t i = q->prompt_tokens; i < q->tokens_count; i++)
		assert_int_equal(q->tokens[i], next_token(q->tokens, i));
}

static void check_empty(struct world *w)
{
	struct scheduler_counts c;
	scheduler_get_counts(w->s, &c);
	assert_int_equal(c.blocks_used, 0);
	assert_int_equal(c.running + c.waiting + c.running_jobs + c.waiting_jobs, 0);
	assert_null(scheduler_first_job(w->s));
}

static void end(struct world *w, struct scheduler_job *j)
{
	scheduler_remove(w->s, j);
	scheduler_job_destroy(j);
}

/* Decoding sequences come first in a pass, and a long prompt shares it with them. */
static void test_mixes_decode_and_prefill(void **state)
{
	struct scheduler_config config = small_config();
	struct world *w = world_create(&config, 64, false);
	struct scheduler_job *a = add_job(w, 5, 20, 1, REQUEST_PRIORITY_NORMAL, false);
	assert_true(step(w, NULL));
	assert_int_equal(a->sequences[0].tokens_count, 6);
	struct scheduler_job *b = add_job(w, 100, 4, 1, REQUEST_PRIORITY_NORMAL, false);
	uint64_t before = w->positions;
	assert_true(step(w, NULL));
	assert_int_equal(w->positions - before, 32); // 1 of a, 31 of b's prompt
	assert_int_equal(a->sequences[0].tokens_count, 7);
	assert_int_equal(b->sequences[0].cached, 31);
	while (step(w, NULL))
		;
	check_output(&a->sequences[0]);
	check_output(&b->sequences[0]);
	end(w, a);
	end(w, b);
	check_empty(w);
	world_destroy(w);
}

/* The youngest is preempted when blocks run out, and its output is what it would have been. */
static void test_preempts_the_youngest(void **state)
{
	struct scheduler_config config = small_config();
	struct world *w = world_create(&config, 8, false); // 128 positions for 3 x 60
	struct scheduler_job *j[3];
	for (int i = 0; i < 3; i++) {
		j[i] = add_job(w, 20, 40, 1, REQUEST_PRIORITY_NORMAL, false);
		w->now_ns += 1000;
	}
	while (step(w, NULL))
		;
	assert_int_equal(j[0]->sequences[0].preemptions, 0);
	assert_true(j[2]->sequences[0].preemptions > 0);
	for (int i = 0; i < 3; i++) {
		check_output(&j[i]->sequences[0]);
		end(w, j[i]);
	}
	check_empty(w);
	world_destroy(w);
}

/* A window only with cold weights, only from idle, and it ends early when the batch is full. */
static void test_batching_window(void **state)
{
	struct scheduler_config config = small_config();
	for (int cold = 0; cold < 2; cold++) {
		struct world *w = world_create(&config, 64, cold);
		uint64_t wake, start = w->now_ns;
		struct scheduler_job *a = add_job(w, 5, 5, 1, REQUEST_PRIORITY_NORMAL, false);
		struct scheduler_pass *p = scheduler_build(w->s, w->now_ns, &wake);
		assert_int_equal(p != NULL, !cold);
		if (cold) {
			assert_int_equal(wake, start + config.batch_wait_ns);
			struct scheduler_job *b = add_job(w, 5, 5, 3, REQUEST_PRIORITY_NORMAL, false);
			p = scheduler_build(w->s, w->now_ns, &wake);
			assert_non_null(p);
			assert_int_equal(p->pass.entries_count, 4);
			end(w, b);
		}
		end(w, a);
		world_destroy(w);
	}
	struct world *w = world_create(&config, 64, true);
	struct scheduler_job *a = add_job(w, 5, 5, 1, REQUEST_PRIORITY_NORMAL, false);
	w->now_ns += config.batch_wait_ns;
	assert_true(step(w, NULL));
	struct scheduler_job *b = add_job(w, 5, 5, 1, REQUEST_PRIORITY_NORMAL, false);
	assert_true(step(w, NULL)); // something runs: no wait
	assert_int_equal(b->sequences[0].tokens_count, 6);
	end(w, a);
	end(w, b);
	world_destroy(w);
}

/* A class is worth aging_ns: a low one that came that much earlier goes first. */
static void test_priorities_age(void **state)
{
	struct scheduler_config config = small_config();
	config.max_running = 1;
	struct world *w = world_create(&config, 64, false);
	struct scheduler_job *first = add_job(w, 5, 3, 1, REQUEST_PRIORITY_NORMAL, false);
	assert_true(step(w, NULL));
	struct scheduler_job *low = add_job(w, 5, 3, 1, REQUEST_PRIORITY_LOW, false);
	w->now_ns += config.aging_ns;
	struct scheduler_job *high = add_job(w, 5, 3, 1, REQUEST_PRIORITY_HIGH, false);
	struct scheduler_job *late_high;
	while (high->sequences[0].state != SCHEDULER_DONE) {
		assert_true(step(w, NULL));
		assert_int_equal(low->sequences[0].state, SCHEDULER_WAITING);
	}
	w->now_ns += config.aging_ns + 1;
	late_high = add_job(w, 5, 3, 1, REQUEST_PRIORITY_HIGH, false);
	while (low->sequences[0].state != SCHEDULER_DONE) {
		assert_true(step(w, NULL));
		assert_int_equal(late_high->sequences[0].state, SCHEDULER_WAITING);
	}
	end(w, first);
	end(w, low);
	end(w, high);
	end(w, late_high);
	check_empty(w);
	world_destroy(w);
}

/* Every position but the last scores its successor, in chunks that fit the rows of logits. */
static void test_scores_in_chunks(void **state)
{
	struct scheduler_config config = small_config();
	struct world *w = world_create(&config, 64, false);
	struct scheduler_job *a = add_job(w, 100, 0, 1, REQUEST_PRIORITY_NORMAL, true);
	uint32_t scores = 0;
	while (step(w, &scores))
		;
	assert_int_equal(scores, 99);
	assert_int_equal(a->sequences[0].state, SCHEDULER_DONE);
	end(w, a);
	check_empty(w);
	world_destroy(w);
}

/* Taken out in the middle of its prefill, with the pass still under way. */
static void test_abort_in_prefill(void **state)
{
	struct scheduler_config config = small_config();
	struct world *w = world_create(&config, 64, false);
	uint64_t wake;
	struct scheduler_job *a = add_job(w, 100, 5, 1, REQUEST_PRIORITY_NORMAL, false);
	assert_true(step(w, NULL));
	struct scheduler_pass *p = scheduler_build(w->s, w->now_ns, &wake);
	assert_non_null(p);
	end(w, a);
	assert_null(p->entries[0].sequence);
	scheduler_complete(w->s, p);
	check_empty(w);
	uint32_t closes[4];
	assert_int_equal(scheduler_take_closes(w->s, closes), 1);
	world_destroy(w);
}

static void test_deadlines(void **state)
{
	struct scheduler_config config = small_config();
	struct world *w = world_create(&config, 64, false);
	struct scheduler_job *a = add_job(w, 5, 5, 1, REQUEST_PRIORITY_NORMAL, false);
	assert_true(scheduler_next_deadline(w->s) == SCHEDULER_NEVER);
	a->deadline_ns = w->now_ns + 10;
	assert_null(scheduler_expired(w->s, w->now_ns + 9));
	assert_ptr_equal(scheduler_expired(w->s, w->now_ns + 10), a);
	end(w, a);
	world_destroy(w);
}

/* With as many sequences as stages or more, each stage has a pass to work on, and the sequences are dealt over them. */
static void test_passes_fill_the_stages(void **state)
{
	struct scheduler_config config = small_config();
	struct scheduler_counts c;
	config.stages = 3;
	config.max_running = 7;
	struct world *w = world_create(&config, 64, false);
	struct scheduler_job *j[7];
	for (int i = 0; i < 7; i++)
		j[i] = add_job(w, 3 + (uint32_t)i, 40, 1, REQUEST_PRIORITY_NORMAL, false);
	for (int i = 0; i < 7; i++)
		assert_true(step(w, NULL)); // the prompts
	for (int i = 0; i < 60; i++) {
		uint64_t passes = w->passes, positions = w->positions;
		assert_true(step(w, NULL));
		scheduler_get_counts(w->s, &c);
		assert_int_equal(w->passes - passes, 1);
		assert_int_equal(c.in_flight, 2); // the third has just come back
		assert_in_range(w->positions - positions, 1, 3);
	}
	while (step(w, NULL))
		;
	for (int i = 0; i < 7; i++) {
		check_output(&j[i]->sequences[0]);
		end(w, j[i]);
	}
	world_destroy(w);
}

/* A long prompt comes to the stages in pieces that follow each other, but where passes read the drive in one. */
static void test_a_prompt_fills_the_stages(void **state)
{
	static const uint32_t pieces[2][3] = {{100, 100, 100}, {300}};
	struct scheduler_config config = small_config();
	uint64_t wake;
	config.stages = 3;
	config.batch_tokens = config.context_tokens = 512;
	for (int cold = 0; cold < 2; cold++) {
		struct world *w = world_create(&config, 64, cold);
		struct scheduler_job *j = add_job(w, 300, 4, 1, REQUEST_PRIORITY_NORMAL, false);
		w->now_ns += config.batch_wait_ns;
		for (int i = 0; i < 3 && pieces[cold][i]; i++) {
			struct scheduler_pass *p = scheduler_build(w->s, w->now_ns, &wake);
			assert_non_null(p);
			assert_int_equal(p->pass.tokens_count, pieces[cold][i]);
		}
		assert_null(scheduler_build(w->s, w->now_ns, &wake));
		end(w, j);
		world_destroy(w);
	}
}

/* New ranks: everybody starts over from the tokens that it has. */
static void test_reset_recomputes(void **state)
{
	struct scheduler_config config = small_config();
	config.stages = 2;
	struct world *w = world_create(&config, 64, true);
	struct scheduler_job *j[4];
	for (int i = 0; i < 4; i++)
		j[i] = add_job(w, 10 + (uint32_t)i * 20, 30, 1, REQUEST_PRIORITY_NORMAL, false);
	for (int i = 0; i < 40 && step(w, NULL); i++) {
		if (i % 9 == 8) {
			assert_int_equal(scheduler_reset(w->s, 64, w->config.stages, true), 0);
			memset(w->open, 0, sizeof w->open);
			memset(w->memory, 0xff, sizeof w->memory);
			for (int k = 0; k < 4; k++)
				for (uint32_t n = 0; n < j[k]->sequences_count; n++)
					assert_int_equal(j[k]->sequences[n].sent, 0);
		}
	}
	while (step(w, NULL))
		;
	for (int i = 0; i < 4; i++) {
		check_output(&j[i]->sequences[0]);
		end(w, j[i]);
	}
	check_empty(w);
	world_destroy(w);
}

static uint32_t random_below(uint64_t *seed, uint32_t n)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(*seed >> 33) % n;
}

struct simulation {
	struct world *w;
	uint64_t seed;
	struct scheduler_job *jobs[24];
	uint64_t added_steps[24];
	uint32_t live, ended, added;
};

static void simulate_event(struct simulation *m, uint64_t now_step)
{
	struct world *w = m->w;
	uint32_t limit = scheduler_limit_tokens(w->s);
	if (m->live < 24 && m->added < 120 && random_below(&m->seed, 3) == 0) {
		bool score = random_below(&m->seed, 6) == 0;
		uint32_t prompt = 2 + random_below(&m->seed, limit / 2);
		m->jobs[m->live] = add_job(w, prompt, 1 + random_below(&m->seed, limit - prompt),
			1 + random_below(&m->seed, 3), (enum request_priority)random_below(&m->seed, 3), score);
		m->added_steps[m->live++] = now_step;
		m->added++;
	}
	if (m->live && random_below(&m->seed, 40) == 0) { // abort
		uint32_t i = random_below(&m->seed, m->live);
		end(w, m->jobs[i]);
		m->jobs[i] = m->jobs[--m->live];
		m->added_steps[i] = m->added_steps[m->live];
		m->ended++;
	}
	if (random_below(&m->seed, 300) == 0) {
		assert_int_equal(scheduler_reset(w->s, w->blocks, w->config.stages, random_below(&m->seed, 2)), 0);
		memset(w->open, 0, sizeof w->open);
		memset(w->memory, 0xff, sizeof w->memory);
	}
}

static void simulate(uint64_t seed)
{
	struct simulation m = {.seed = seed * 977 + 1};
	struct scheduler_config config = small_config();
	config.stages = 1 + random_below(&m.seed, 3);
	config.max_running = 1 + random_below(&m.seed, 6);
	config.logits_rows = config.max_running + random_below(&m.seed, 8);
	config.batch_tokens = config.max_running + random_below(&m.seed, 40);
	config.context_tokens = 32 + random_below(&m.seed, 200);
	m.w = world_create(&config, 2 + random_below(&m.seed, 30), random_below(&m.seed, 2));
	uint64_t steps = 0;
	while (m.added < 120 || m.live) {
		simulate_event(&m, steps);
		step(m.w, NULL);
		m.w->now_ns += random_below(&m.seed, 20000000);
		steps++;
		for (uint32_t i = 0; i < m.live;) {
			struct scheduler_job *j = m.jobs[i];
			/* With at most 24 jobs of at most 3 x 232 positions, nobody may wait longer than it takes to
			 * run all of them one by one, several times over. */
			assert_true(steps - m.added_steps[i] < 24ull * 3 * 232 * 4);
			if (j->done_count < j->sequences_count) {
				i++;
				continue;
			}
			for (uint32_t k = 0; k < j->sequences_count; k++)
				check_output(&j->sequences[k]);
			end(m.w, j);
			m.ended++;
			m.jobs[i] = m.jobs[--m.live];
			m.added_steps[i] = m.added_steps[m.live];
		}
	}
	while (step(m.w, NULL))
		;
	assert_int_equal(m.ended, 120);
	check_empty(m.w);
	world_destroy(m.w);
}

static void test_random_simulation(void **state)
{
	for (uint64_t seed = 1; seed <= 40; seed++)
		simulate(seed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mixes_decode_and_prefill),
		cmocka_unit_test(test_preempts_the_youngest),
		cmocka_unit_test(test_batching_window),
		cmocka_unit_test(test_priorities_age),
		cmocka_unit_test(test_scores_in_chunks),
		cmocka_unit_test(test_abort_in_prefill),
		cmocka_unit_test(test_deadlines),
		cmocka_unit_test(test_passes_fill_the_stages),
		cmocka_unit_test(test_a_prompt_fills_the_stages),
		cmocka_unit_test(test_reset_recomputes),
		cmocka_unit_test(test_random_simulation),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
