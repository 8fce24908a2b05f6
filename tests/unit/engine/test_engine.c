// SPDX-License-Identifier: Apache-2.0
/* The engine with ranks that are threads of this process: real messages, real link, a hash for a model. */
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/engine.h"
#include "tests/lib/fake_rank.h"
#include "tests/lib/tiny_gguf.h"

#define READERS 16
#define SECOND BASE_NS_PER_SECOND

struct reader { // a sink that keeps everything
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint32_t tokens[REQUEST_MAX_SEQUENCES][1024], tokens_count[REQUEST_MAX_SEQUENCES];
	char text[REQUEST_MAX_SEQUENCES][8192];
	uint32_t text_bytes[REQUEST_MAX_SEQUENCES];
	enum request_finish finish[REQUEST_MAX_SEQUENCES];
	uint32_t events, infos, prompt_tokens, max_new_tokens, scores, finals, next_score;
	uint32_t refuse_after; // events, 0: never
	struct base_error error;
	struct request_timing timing;
};

static const char *const poor_kinds[] = {"io_uring_refused", "huge_pages_refused", "direct_io_refused"};

struct bench {
	char poor[3][BASE_ERROR_BYTES]; // texts of the events of these kinds
	struct tiny_gguf file;
	struct format_gguf *gguf;
	struct text_tokenizer *tokenizer;
	struct fake_ranks ranks;
	struct engine_config config;
	struct engine *engine;
	struct reader reader[READERS];
	_Atomic uint32_t events, losses;
};

static bool emit(void *context, const struct request_event *v)
{
	struct reader *r = context;
	pthread_mutex_lock(&r->lock);
	assert_int_equal(r->finals, 0);
	bool room = !r->refuse_after || r->events < r->refuse_after;
	r->events++;
	if (v->prompt_info) {
		assert_int_equal(r->events, 1);
		r->infos++;
		r->prompt_tokens = v->prompt_tokens;
		r->max_new_tokens = v->max_new_tokens;
	}
	if (v->score) {
		assert_int_equal(v->score_position, r->next_score);
		r->next_score++;
		r->scores++;
	}
	if (v->token_count && !v->score)
		r->tokens[v->output][r->tokens_count[v->output]++] = v->token;
	memcpy(r->text[v->output] + r->text_bytes[v->output], v->text, v->text_bytes);
	r->text_bytes[v->output] += v->text_bytes;
	if (v->finish) {
		assert_int_equal(r->finish[v->output], REQUEST_FINISH_NONE);
		r->finish[v->output] = v->finish;
	}
	if (v->final) {
		r->finals++;
		r->error = v->error;
		r->timing = v->timing;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return room;
}

/* Until it has that many events, or its final one if 0. */
static void wait_reader(struct reader *r, uint32_t events)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60;
	pthread_mutex_lock(&r->lock);
	while (!r->finals && (!events || r->events < events))
		assert_int_equal(pthread_cond_timedwait(&r->changed, &r->lock, &until), 0);
	pthread_mutex_unlock(&r->lock);
}

static void on_event(void *context, const char *severity, const char *kind, const char *text)
{
	struct bench *b = context;
	for (uint32_t i = 0; i < 3 && strcmp(severity, "warning") == 0; i++) {
		if (strcmp(kind, poor_kinds[i]) == 0)
			snprintf(b->poor[i], sizeof b->poor[i], "%s", text);
	}
	if (strcmp(kind, "data_loss") == 0)
		atomic_fetch_add(&b->losses, 1);
	atomic_fetch_add(&((struct bench *)context)->events, 1);
}

static struct bench *bench_create(void)
{
	struct bench *b = calloc(1, sizeof *b);
	struct tiny_model m = {0};
	tiny_model_build(&m, &b->file);
	assert_int_equal(format_gguf_open_memory(b->file.data, b->file.bytes, "tiny", &b->gguf, NULL), 0);
	assert_int_equal(text_tokenizer_create(b->gguf, &b->tokenizer, NULL), 0);
	b->ranks = (struct fake_ranks){.vocab = text_tokenizer_vocab(b->tokenizer), .kv_blocks = 200, .stages = 1};
	b->config = (struct engine_config){
		.model_name = "tiny",
		.stages = 1,
		.tokenizer = b->tokenizer,
		.max_waiting = 16,
		.max_running = 8,
		.batch_tokens = 64,
		.logits_rows = 16,
		.context_tokens = 512,
		.max_new_tokens = 256,
		.batch_wait_ns = 5000000,
		.stuck_ns = 20 * SECOND,
		.max_restarts = 3,
		.bound_pass_ns_disk = 500,
		.events = {.event = on_event, .context = b},
	};
	for (int i = 0; i < READERS; i++) {
		pthread_mutex_init(&b->reader[i].lock, NULL);
		pthread_cond_init(&b->reader[i].changed, NULL);
		b->reader[i].next_score = 1;
	}
	return b;
}

static void wait_state(struct bench *b, enum engine_state state)
{
	struct engine_load load;
	for (uint64_t end = base_clock_now_ns() + 60 * SECOND; base_clock_now_ns() < end;) {
		engine_get_load(b->engine, &load);
		if (load.state == state)
			return;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	fail_msg("state %d did not come, it is %d: %s", (int)state, (int)load.state, load.failure);
}

static void start(struct bench *b)
{
	uint32_t parts = b->config.parts ? b->config.parts : 1;
	b->ranks.stages = b->config.stages;
	b->ranks.parts = parts;
	for (uint32_t i = 0; i < b->config.stages * parts; i++) {
		b->config.assign[i].config.slice.tp_rank = i % parts;
		b->config.assign[i].config.slice.tp_size = parts;
	}
	b->config.starter = fake_ranks_starter(&b->ranks);
	struct base_error e = {0};
	bool fails = b->ranks.fail_assign || b->ranks.refuse_starts || b->ranks.other_build;
	assert_int_equal(engine_create(&b->config, &b->engine, &e), 0);
	wait_state(b, fails ? ENGINE_FAILED : ENGINE_READY);
}

static void bench_destroy(struct bench *b)
{
	engine_destroy(b->engine);
	free((void *)b->ranks.script);
	text_tokenizer_destroy(b->tokenizer);
	format_gguf_close(b->gguf);
	tiny_gguf_release(&b->file);
	for (int i = 0; i < READERS; i++) {
		pthread_mutex_destroy(&b->reader[i].lock);
		pthread_cond_destroy(&b->reader[i].changed);
	}
	free(b);
}

static struct request *make_request(struct bench *b, uint32_t reader, uint32_t prompt, uint32_t max_new)
{
	struct request *r = calloc(1, sizeof *r);
	r->prompt = calloc(prompt, sizeof *r->prompt);
	r->prompt_tokens = prompt;
	for (uint32_t i = 0; i < prompt; i++)
		r->prompt[i] = 3 + (i * 5 + reader * 11 + prompt) % (b->ranks.vocab - 3);
	r->num_sequences = 1;
	r->max_new_tokens = max_new;
	r->priority = REQUEST_PRIORITY_NORMAL;
	r->sampling = (struct sample_params){.top_p = 1, .repetition_penalty = 1};
	r->sink = (struct request_sink){.emit = emit, .context = &b->reader[reader]};
	return r;
}

static int submit(struct bench *b, struct request *r)
{
	uint64_t retry = 0;
	struct base_error e = {0};
	int status = engine_submit(b->engine, r, &retry, &e);
	if (status) {
		assert_true(e.message[0]);
		assert_int_equal(
			retry > 0, status == -EAGAIN || status == -EHOSTDOWN); // nothing retries a failed engine
		request_destroy(r);
	}
	return status;
}

static void check_hash_output(struct bench *b, uint32_t reader, uint32_t prompt, uint32_t max_new)
{
	struct reader *r = &b->reader[reader];
	assert_int_equal(r->finals, 1);
	assert_int_equal(r->infos, 1);
	if (r->error.code)
		fail_msg("%s", r->error.message);
	assert_int_equal(r->finish[0], REQUEST_FINISH_LENGTH);
	assert_int_equal(r->tokens_count[0], max_new);
	assert_int_equal(r->max_new_tokens, max_new);
	uint32_t history[1024];
	for (uint32_t i = 0; i < prompt; i++)
		history[i] = 3 + (i * 5 + reader * 11 + prompt) % (b->ranks.vocab - 3);
	for (uint32_t i = 0; i < max_new; i++) {
		history[prompt + i] = fake_rank_next(&b->ranks, history, prompt + i);
		assert_int_equal(r->tokens[0][i], history[prompt + i]);
	}
}

/* The script for the fake: the text's tokens, each of one byte or a pair. */
static void set_script(struct bench *b, const char *text)
{
	uint32_t *tokens;
	size_t count;
	assert_int_equal(text_tokenizer_encode(b->tokenizer, text, strlen(text), true, &tokens, &count, NULL), 0);
	b->ranks.script = tokens;
	b->ranks.script_count = (uint32_t)count;
}

/* ---- tests ---- */

static void eight_streams(uint32_t stages, uint32_t parts, uint32_t die_at, uint32_t hang_at, uint32_t kv_blocks)
{
	struct bench *b = bench_create();
	b->config.stages = stages;
	b->config.parts = parts;
	b->ranks.kv_blocks = kv_blocks;
	b->ranks.die_at = die_at;
	b->ranks.hang_at = hang_at;
	if (hang_at)
		b->config.stuck_ns = SECOND / 2;
	start(b);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(submit(b, make_request(b, i, 10 + i * 20, 40)), 0);
	for (uint32_t i = 0; i < 8; i++) {
		wait_reader(&b->reader[i], 0);
		check_hash_output(b, i, 10 + i * 20, 40);
	}
	struct engine_load load;
	engine_get_load(b->engine, &load);
	assert_int_equal(load.restarts, die_at || hang_at ? 1 : 0);
	assert_int_equal(load.requests_total[REQUEST_FINISH_LENGTH], 8);
	assert_int_equal(load.ranks, stages * parts);
	assert_int_equal(load.slice[load.ranks - 1].tp_rank, parts - 1);
	assert_int_equal(load.waiting, 0);
	if (kv_blocks < 50)
		assert_true(load.preemptions_total > 0);
	assert_true(b->ranks.largest_batch > 1);
	bench_destroy(b);
}

static void test_eight_streams(void **state)
{
	eight_streams(1, 1, 0, 0, 200);
}

static void test_killed_rank_is_a_pause(void **state)
{
	eight_streams(1, 1, 25, 0, 200);
	eight_streams(1, 1, 1, 0, 200);
	eight_streams(1, 1, 7, 0, 200); // in the prefill
}

static void test_two_stages(void **state)
{
	eight_streams(2, 1, 0, 0, 200);
	eight_streams(2, 1, 30, 0, 200);
}

static void test_parts(void **state)
{
	eight_streams(1, 3, 0, 0, 200);
	eight_streams(2, 2, 30, 0, 200);
	eight_streams(2, 2, 0, 30, 200);
}

/* Ranks of several hosts: another number of them in each life. */
struct fleet {
	struct bench *bench;
	uint32_t lives, scattered;
	_Atomic uint32_t questions;
	_Atomic bool away;
	_Atomic uint32_t unlucky; // times that nobody can be connected
	struct rank_assign assign[FAKE_RANKS];
};

static int gather(void *context, struct engine_gathered *ret_gathered, struct base_error *e)
{
	static const uint32_t stages[] = {2, 3, 1, 2};
	struct fleet *f = context;
	struct fake_ranks *ranks = &f->bench->ranks;
	struct engine_starter one = fake_ranks_starter(ranks);
	int fds[1 + FAKE_RANKS] = {-1};
	atomic_fetch_add(&f->questions, 1);
	if (f->away)
		return base_error_set(e, -EHOSTDOWN, "node-b is missing");
	if (f->unlucky && atomic_fetch_sub(&f->unlucky, 1))
		return base_error_set(e, -ECONNRESET, "node-b does not come");
	if (f->questions < 3)
		return base_error_set(e, -EAGAIN, "node-b packs");
	for (uint32_t i = 0; i < FAKE_RANKS; i++)
		one.stop(one.context, i);
	ranks->stages = stages[f->lives % 4];
	for (uint32_t i = 0; i < ranks->stages; i++) {
		assert_int_equal(one.start(one.context, i, &fds[1 + i], e), 0);
		f->assign[i] = (struct rank_assign){.config.slice.tp_size = 1};
	}
	uint64_t epoch = 100 + f->lives++;
	*ret_gathered = (struct engine_gathered){.epoch = epoch, .stages = ranks->stages, .assign = f->assign};
	return link_local_ops.create(
		fds, 1 + ranks->stages, 0, epoch, 65536, base_clock_now_ns() + 10 * SECOND, &ret_gathered->group, e);
}

static void scatter(void *context)
{
	((struct fleet *)context)->scattered++;
}

static struct bench *fleet_create(struct fleet *f)
{
	struct bench *b = f->bench = bench_create();
	b->config.stages = FAKE_RANKS;
	b->config.max_restarts = 1;
	b->config.starter = (struct engine_starter){.gather = gather, .scatter = scatter, .context = f};
	b->ranks.delay_ns = 1000000;
	assert_int_equal(engine_create(&b->config, &b->engine, NULL), 0);
	wait_state(b, ENGINE_READY);
	return b;
}

static void fleet_destroy(struct fleet *f)
{
	struct engine_starter one = fake_ranks_starter(&f->bench->ranks);
	engine_destroy(f->bench->engine);
	f->bench->engine = NULL;
	assert_int_equal(f->scattered, f->lives);
	for (uint32_t i = 0; i < FAKE_RANKS; i++)
		one.stop(one.context, i);
	bench_destroy(f->bench);
}

/* Hosts that are lost again and again are as none: requests are refused, but the model is there when the hosts are. */
static void test_gathered_ranks_often_lost(void **state)
{
	struct fleet f = {0};
	struct bench *b = fleet_create(&f);
	struct engine_load load;
	assert_int_equal(submit(b, make_request(b, 0, 10, 60)), 0);
	f.unlucky = 3;
	engine_regather(b->engine, "node-b is lost");
	do
		engine_get_load(b->engine, &load);
	while (!load.down);
	struct request *r = make_request(b, 1, 10, 5);
	struct base_error e = {0};
	assert_int_equal(engine_submit(b->engine, r, NULL, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "node-b does not come"));
	wait_state(b, ENGINE_READY);
	assert_int_equal(submit(b, r), 0);
	for (uint32_t i = 0; i < 2; i++)
		wait_reader(&b->reader[i], 0);
	check_hash_output(b, 0, 10, 60);
	check_hash_output(b, 1, 10, 5);
	fleet_destroy(&f);
}

static void test_gathered_ranks(void **state)
{
	struct fleet f = {0};
	struct bench *b = fleet_create(&f);
	struct engine_load load;
	assert_true(f.questions >= 3);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.epoch, 100);
	assert_int_equal(load.stages, 2);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(submit(b, make_request(b, i, 10 + i * 20, 60)), 0);
	wait_reader(&b->reader[0], 5);
	engine_regather(b->engine, "node-c joined");
	wait_reader(&b->reader[0], 25);
	b->ranks.die_at = b->ranks.passes + 1;
	for (uint32_t i = 0; i < 8; i++) {
		wait_reader(&b->reader[i], 0);
		check_hash_output(b, i, 10 + i * 20, 60);
	}
	engine_get_load(b->engine, &load);
	assert_int_equal(load.epoch, 102);
	assert_int_equal(load.stages, 1);
	/* Nothing can hold the model: requests are refused with the reason until it can. */
	f.away = true;
	engine_regather(b->engine, "node-b is lost");
	do
		engine_get_load(b->engine, &load);
	while (!load.down);
	struct request *r = make_request(b, 8, 10, 5);
	struct base_error e = {0};
	uint64_t retry = 0;
	assert_int_equal(engine_submit(b->engine, r, &retry, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "node-b is missing"));
	assert_true(retry > 0);
	f.away = false;
	wait_state(b, ENGINE_READY);
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[8], 0);
	check_hash_output(b, 8, 10, 5);
	fleet_destroy(&f);
}

static void test_hung_rank_is_replaced(void **state)
{
	eight_streams(1, 1, 0, 20, 200);
}

static void test_few_blocks(void **state)
{
	eight_streams(1, 1, 0, 0, 30);
	eight_streams(2, 1, 40, 0, 30);
}

static void stop_case(const char *script, const char *stop, bool include, const char *want, enum request_finish finish)
{
	struct bench *b = bench_create();
	set_script(b, script);
	start(b);
	struct request *r = make_request(b, 0, 5, b->ranks.script_count);
	r->stop_count = stop ? 1 : 0;
	if (stop)
		snprintf(r->stops[0], sizeof r->stops[0], "%s", stop);
	r->include_stop = include;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[0], 0);
	assert_string_equal(b->reader[0].text[0], want);
	assert_int_equal(b->reader[0].finish[0], finish);
	struct engine_load load;
	engine_get_load(b->engine, &load);
	bench_destroy(b);
}

static void test_stop_strings(void **state)
{
	stop_case("one two three", NULL, false, "one two three", REQUEST_FINISH_LENGTH);
	stop_case("one two three", "o th", false, "one tw", REQUEST_FINISH_STOP);
	stop_case("one two three", "o th", true, "one two th", REQUEST_FINISH_STOP);
	stop_case("a##b###c", "###", false, "a##b", REQUEST_FINISH_STOP);
	stop_case("a##b##", "###", false, "a##b##", REQUEST_FINISH_LENGTH); // held back, then given out
	stop_case("aaab", "aab", false, "a", REQUEST_FINISH_STOP);
	stop_case("caf\xc3\xa9 \xe2\x82\xac", "\xe2\x82\xac", false, "caf\xc3\xa9 ", REQUEST_FINISH_STOP);
	stop_case("caf\xc3\xa9", NULL, false, "caf\xc3\xa9", REQUEST_FINISH_LENGTH);
	stop_case("the end<|im_end|>never", NULL, false, "the end", REQUEST_FINISH_STOP);
}

static void test_several_outputs(void **state)
{
	struct bench *b = bench_create();
	start(b);
	struct request *r = make_request(b, 0, 20, 30);
	r->num_sequences = 3;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[0], 0);
	check_hash_output(b, 0, 20, 30);
	for (int i = 1; i < 3; i++)
		assert_memory_equal(b->reader[0].tokens[i], b->reader[0].tokens[0], 30 * sizeof(uint32_t));
	bench_destroy(b);
}

static void test_scores(void **state)
{
	struct bench *b = bench_create();
	b->ranks.die_at = 3;
	start(b);
	struct request *r = make_request(b, 0, 100, 0);
	r->score = true;
	r->score_first = 1;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].error.code, 0);
	assert_int_equal(b->reader[0].scores, 99);
	bench_destroy(b);
}

static void test_refusals(void **state)
{
	struct bench *b = bench_create();
	start(b);
	struct request *r = make_request(b, 0, 600, 10);
	assert_int_equal(submit(b, r), -E2BIG);
	r = make_request(b, 0, 10, 10);
	r->prompt[3] = b->ranks.vocab;
	assert_int_equal(submit(b, r), -EINVAL);
	r = make_request(b, 0, 10, 10);
	r->num_sequences = 0;
	assert_int_equal(submit(b, r), -EINVAL);
	r = make_request(b, 0, 10, 10);
	r->sampling.top_p = 7;
	assert_int_equal(submit(b, r), -EINVAL);
	r = make_request(b, 0, 1, 0);
	r->score = true;
	r->score_first = 1;
	assert_int_equal(submit(b, r), -EINVAL);
	r = make_request(b, 0, 600, 10);
	r->truncate_prompt_tokens = 20;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].prompt_tokens, 20);
	assert_int_equal(b->reader[0].tokens_count[0], 10);
	engine_drain(b->engine, true);
	wait_state(b, ENGINE_DRAINING);
	assert_int_equal(submit(b, make_request(b, 1, 10, 10)), -EHOSTDOWN);
	engine_drain(b->engine, false);
	assert_int_equal(submit(b, make_request(b, 1, 10, 10)), 0);
	wait_reader(&b->reader[1], 0);
	bench_destroy(b);
}

/* With slow passes: the queue fills, ids are unique, aborts work in the queue, in prefill and in decode, deadlines count queueing. */
static void test_queue_abort_deadline(void **state)
{
	struct bench *b = bench_create();
	b->ranks.delay_ns = 20000000;
	b->config.max_running = 1;
	b->config.max_waiting = 4;
	b->config.batch_tokens = 16;
	start(b);
	struct request *r = make_request(b, 0, 400, 10); // 25 passes of prefill
	snprintf(r->id, sizeof r->id, "first");
	assert_int_equal(submit(b, r), 0);
	r = make_request(b, 1, 10, 10);
	snprintf(r->id, sizeof r->id, "first");
	assert_int_equal(submit(b, r), -EEXIST);
	struct engine_load load = {0};
	while (!load.running)
		engine_get_load(b->engine, &load);
	for (uint32_t i = 1; i <= 4; i++) {
		r = make_request(b, i, 10, 50);
		snprintf(r->id, sizeof r->id, "id-%u", i);
		if (i == 2)
			r->deadline_ns = base_clock_now_ns() + 50000000;
		assert_int_equal(submit(b, r), 0);
	}
	assert_int_equal(submit(b, make_request(b, 5, 10, 10)), -EAGAIN);
	wait_reader(&b->reader[2], 0);
	assert_int_equal(b->reader[2].error.code, -ETIME);
	assert_int_equal(engine_abort(b->engine, "id-3"), 0);
	wait_reader(&b->reader[3], 0);
	assert_int_equal(b->reader[3].error.code, -ECANCELED);
	assert_int_equal(b->reader[0].tokens_count[0], 0);
	assert_int_equal(engine_abort(b->engine, "first"), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].finish[0], REQUEST_FINISH_ABORTED);
	assert_int_equal(b->reader[0].tokens_count[0], 0);
	wait_reader(&b->reader[1], 5); // it decodes now
	assert_int_equal(engine_abort(b->engine, "id-1"), 0);
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[1].error.code, -ECANCELED);
	assert_int_equal(engine_abort(b->engine, "id-1"), -ENOENT);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.rejected_total, 2);
	bench_destroy(b); // with id-4 still running
}

/* A rank of another build is named at once, and not started again and again. */
static void test_another_build(void **state)
{
	struct bench *b = bench_create();
	struct engine_load load;
	b->ranks.other_build = true;
	start(b);
	engine_get_load(b->engine, &load);
	assert_non_null(strstr(load.failure, "thawd and thaw-rank are of different builds"));
	assert_int_equal(load.failure_code, -EPROTONOSUPPORT);
	assert_int_equal(b->ranks.starts, 1);
	bench_destroy(b);
}

/* The queue is bounded by bytes, too, and says which bound it was. */
static void test_queue_memory(void **state)
{
	struct bench *b = bench_create();
	struct engine_load load;
	struct base_error e = {0};
	uint64_t retry = 0;
	b->config.max_running = 1;
	b->config.max_waiting_bytes = 1; // so that one request is too many beside another, and fine alone
	b->ranks.delay_ns = 20000000;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 200)), 0);
	wait_reader(&b->reader[0], 3); // it runs: the queue is empty
	assert_int_equal(submit(b, make_request(b, 3, 600, 10)), -E2BIG);
	assert_int_equal(submit(b, make_request(b, 4, 0, 10)), -EINVAL);
	engine_drain(b->engine, true);
	assert_int_equal(submit(b, make_request(b, 5, 10, 10)), -EHOSTDOWN);
	engine_drain(b->engine, false);
	assert_int_equal(submit(b, make_request(b, 1, 100, 100)), 0);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.waiting, 1);
	assert_true(load.waiting_bytes > 100 * 4 + 200 * 4 && load.waiting_bytes < 64 << 10);
	struct request *r = make_request(b, 2, 10, 10);
	assert_int_equal(engine_submit(b->engine, r, &retry, &e), -EAGAIN);
	request_destroy(r);
	assert_true(retry > 0);
	assert_non_null(strstr(e.message, "scheduler.max_waiting_memory"));
	assert_non_null(strstr(e.message, "1 requests wait with"));
	engine_get_load(b->engine, &load);
	assert_int_equal(load.rejected[ENGINE_REJECT_QUEUE_MEMORY], 1);
	assert_int_equal(load.rejected[ENGINE_REJECT_QUEUE_FULL], 0);
	assert_int_equal(load.rejected[ENGINE_REJECT_TOO_LONG], 1);
	assert_int_equal(load.rejected[ENGINE_REJECT_INVALID], 1);
	assert_int_equal(load.rejected[ENGINE_REJECT_DRAINING], 1);
	assert_int_equal(load.rejected_total, 4);
	engine_abort_all(b->engine);
	wait_reader(&b->reader[1], 0);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.waiting_bytes, 0);
	assert_true(load.link_sent_bytes > 300 && load.link_received_bytes > 100);
	bench_destroy(b);
}

static void test_slow_reader(void **state)
{
	struct bench *b = bench_create();
	start(b);
	b->reader[0].refuse_after = 5;
	assert_int_equal(submit(b, make_request(b, 0, 10, 100)), 0);
	assert_int_equal(submit(b, make_request(b, 1, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].error.code, -ENOBUFS);
	wait_reader(&b->reader[1], 0);
	check_hash_output(b, 1, 10, 30);
	bench_destroy(b);
}

static void test_data_loss_hits_one(void **state)
{
	struct bench *b = bench_create();
	b->config.batch_wait_ns = SECOND;
	b->config.max_running = 2;
	b->ranks.cold_bytes = 1 << 20;
	b->ranks.corrupt_at = 12;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	assert_int_equal(submit(b, make_request(b, 1, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[0].error.code, -EBADMSG);
	assert_non_null(strstr(b->reader[0].error.message, "layer 5: /store/layer-0005: checksum"));
	check_hash_output(b, 1, 10, 30);
	struct engine_load load;
	engine_get_load(b->engine, &load);
	assert_string_equal(load.data_loss, ""); // passes after it were whole
	assert_true(b->reader[1].timing.nvme_read_bytes > 0);
	assert_true(b->reader[1].timing.achieved_ratio > 0.49 && b->reader[1].timing.achieved_ratio < 0.51);
	assert_string_equal(b->reader[1].timing.binding, "disk");
	bench_destroy(b);
}

/* What an operator sees while each pass fails. */
static void test_data_loss_is_told(void **state)
{
	struct bench *b = bench_create();
	b->ranks.corrupt_at = 1;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	struct engine_load load;
	engine_get_load(b->engine, &load);
	assert_string_equal(load.data_loss, b->reader[0].error.message);
	assert_non_null(strstr(load.data_loss, "/store/layer-0005"));
	bench_destroy(b);
}

/* One event for a place, however many requests meet it. */
static void test_data_loss_is_told_once(void **state)
{
	struct bench *b = bench_create();
	b->ranks.corrupt_always = true;
	start(b);
	for (uint32_t i = 0; i < 5; i++) {
		assert_int_equal(submit(b, make_request(b, i, 10, 30)), 0);
		wait_reader(&b->reader[i], 0);
		assert_int_equal(b->reader[i].error.code, -EBADMSG);
	}
	assert_int_equal(atomic_load(&b->losses), 1);
	bench_destroy(b);
}

/* Ranks that are started anew on request: they have opened the files anew, and what runs goes on. */
static void test_regather_on_one_host(void **state)
{
	struct bench *b = bench_create();
	struct engine_load load;
	b->ranks.corrupt_at = 1;
	b->ranks.delay_ns = 5000000;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	engine_get_load(b->engine, &load);
	assert_string_not_equal(load.data_loss, "");
	engine_regather(b->engine, "mended");
	while (b->ranks.starts < 2)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	wait_state(b, ENGINE_READY);
	engine_get_load(b->engine, &load);
	assert_string_equal(load.data_loss, "");
	assert_int_equal(submit(b, make_request(b, 1, 10, 60)), 0);
	wait_reader(&b->reader[1], 10);
	engine_regather(b->engine, "again");
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[1].error.code, 0);
	check_hash_output(b, 1, 10, 60);
	assert_int_equal(b->ranks.starts, 3);
	bench_destroy(b);
}

/* An I/O engine that died fails what needs it; the next requests find a new rank. */
static void test_reads_that_fail_for_good(void **state)
{
	struct bench *b = bench_create();
	b->ranks.io_dies_at = 2;
	start(b);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(submit(b, make_request(b, i, 10, 30)), 0);
		wait_reader(&b->reader[i], 0);
		assert_int_equal(b->reader[i].error.code, -EBADMSG);
	}
	assert_int_equal(submit(b, make_request(b, 3, 10, 30)), 0);
	wait_reader(&b->reader[3], 0);
	check_hash_output(b, 3, 10, 30);
	assert_int_equal(b->ranks.starts, 2);
	bench_destroy(b);
}

/* The head has more rows than the tokenizer has tokens: whoever draws one of those ends, and nobody else is disturbed. */
static void test_token_without_text(void **state)
{
	struct bench *b = bench_create();
	uint32_t *script = calloc(5, sizeof *script);
	for (uint32_t i = 0; i < 4; i++)
		script[i] = 10;
	script[4] = b->ranks.vocab + 5;
	b->ranks.script = script;
	b->ranks.script_count = 5;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	assert_int_equal(submit(b, make_request(b, 1, 10, 3)), 0);
	wait_reader(&b->reader[0], 0);
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[0].error.code, -EPROTO);
	assert_non_null(strstr(b->reader[0].error.message, "and its tokenizer has"));
	assert_int_equal(b->reader[1].error.code, 0);
	assert_int_equal(b->reader[1].tokens_count[0], 3);
	assert_int_equal(b->ranks.starts, 1);
	bench_destroy(b);
}

/* What makes everything slower is said, not only shown to who looks; and once, not at each restart. */
static void test_poor_machine_is_told(void **state)
{
	for (int poor = 0; poor < 2; poor++) {
		struct bench *b = bench_create();
		b->ranks.poor = poor;
		start(b);
		for (int i = 0; i < 3; i++)
			assert_int_equal(b->poor[i][0] != 0, poor);
		assert_true(!poor || strstr(b->poor[0], "io_uring: not permitted"));
		bench_destroy(b);
	}
}

/* One request kills its rank, and ends for it; nobody else sees more than a pause. */
static void one_kills(uint32_t stages, uint32_t position, uint32_t batch_tokens)
{
	struct bench *b = bench_create();
	b->config.stages = stages;
	b->config.batch_tokens = batch_tokens;
	b->ranks.die_prompt = 13;
	b->ranks.die_position = position;
	start(b);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(submit(b, make_request(b, i, 10 + i, 40)), 0);
	for (uint32_t i = 0; i < 8; i++) {
		wait_reader(&b->reader[i], 0);
		if (i != 3)
			check_hash_output(b, i, 10 + i, 40);
	}
	assert_int_equal(b->reader[3].error.code, -EOWNERDEAD);
	assert_non_null(strstr(b->reader[3].error.message, "the rank died 3 times"));
	assert_int_equal(b->reader[3].tokens_count[0], position < 13 ? 0 : position - 12);
	wait_state(b, ENGINE_READY);
	assert_int_equal(b->ranks.starts, 4 * stages);
	bench_destroy(b);
}

static void test_one_request_kills(void **state)
{
	one_kills(1, 0, 128); // in the pass that carries all prompts
	one_kills(1, 12, 8); // in the last chunk of its prompt
	one_kills(1, 20, 64); // among tokens
	one_kills(2, 0, 64);
	one_kills(2, 20, 64);
}

static void test_gives_up(void **state)
{
	struct bench *b = bench_create();
	b->ranks.die_always = true;
	b->config.max_restarts = 2;
	start(b);
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(submit(b, make_request(b, i, 10, 30)), 0);
		wait_reader(&b->reader[i], 0);
		assert_int_equal(b->reader[i].error.code, -EOWNERDEAD);
	}
	wait_state(b, ENGINE_FAILED); // it is not the requests
	assert_int_equal(submit(b, make_request(b, 3, 10, 30)), -ENOTRECOVERABLE);
	assert_int_equal(b->ranks.starts, 9);
	bench_destroy(b);
	for (int i = 0; i < 2; i++) {
		b = bench_create();
		b->ranks.fail_assign = i == 0;
		b->ranks.refuse_starts = i;
		start(b);
		struct engine_load load;
		engine_get_load(b->engine, &load);
		assert_non_null(strstr(load.failure, i == 0 ? "12 bytes short" : "thaw-rank"));
		assert_int_equal(submit(b, make_request(b, 1, 10, 30)), -ENOTRECOVERABLE);
		bench_destroy(b);
	}
}

/* New ranks that do not start: tried again after a while, and not for ever. */
static void test_restarts_that_fail(void **state)
{
	for (uint32_t refused = 2; refused <= 9; refused += 7) {
		struct bench *b = bench_create();
		b->ranks.die_at = 5;
		start(b);
		b->ranks.refuse_starts = refused;
		uint64_t begin = base_clock_now_ns();
		assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
		wait_reader(&b->reader[0], 0);
		if (refused == 2) {
			check_hash_output(b, 0, 10, 30);
			assert_true(base_clock_now_ns() - begin > SECOND / 2);
		} else {
			assert_int_equal(b->reader[0].error.code, -ENOTRECOVERABLE);
			assert_non_null(strstr(b->reader[0].error.message, "not there"));
			assert_int_equal(b->ranks.starts, 4);
		}
		bench_destroy(b);
	}
}

static void test_bad_answers_are_a_lost_rank(void **state)
{
	struct bench *b = bench_create();
	b->ranks.garbage_at = 6;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	check_hash_output(b, 0, 10, 30);
	assert_int_equal(b->ranks.starts, 2);
	bench_destroy(b);
}

/* No bar: the figure is for people. What a pass costs beside the rank's own work, one sequence. */
static void test_overhead(void **state)
{
	struct bench *b = bench_create();
	start(b);
	struct request *r = make_request(b, 0, 10, 250);
	uint64_t from = base_clock_now_ns();
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[0], 0);
	uint64_t ns = base_clock_now_ns() - from;
	print_message("%u passes, %.1f us each\n", b->ranks.passes, (double)ns / 1e3 / b->ranks.passes);
	bench_destroy(b);
}

static int take_trace(struct bench *b, struct engine_trace **ret_trace)
{
	struct base_error e = {0};
	for (uint64_t end = base_clock_now_ns() + 20 * SECOND; base_clock_now_ns() < end;) {
		int r = engine_trace_take(b->engine, ret_trace, &e);
		if (r != -EAGAIN)
			return r;
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	return -ETIMEDOUT;
}

/* Spans of every rank come whole, in the engine's clock as far as that can be known; passes are the engine's own. */
static void test_trace(void **state)
{
	struct bench *b = bench_create();
	struct engine_trace *t = NULL;
	struct base_error e = {0};
	b->config.stages = 2;
	start(b);
	assert_int_equal(engine_trace_take(b->engine, &t, &e), -ENOENT);
	assert_int_equal(engine_trace_start(b->engine, 0, &e), -EINVAL);
	assert_int_equal(engine_trace_start(b->engine, ENGINE_TRACE_MOST_NS + 1, &e), -EINVAL);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(engine_trace_start(b->engine, 30 * SECOND, &e), 0);
		assert_int_equal(engine_trace_start(b->engine, SECOND, &e), -EBUSY);
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
		assert_int_equal(submit(b, make_request(b, (uint32_t)round, 20, 10)), 0);
		wait_reader(&b->reader[round], 0);
		assert_int_equal(take_trace(b, &t), 0); // ends it
		assert_int_equal(t->processes, 3);
		assert_true(t->process[0].same_clock && t->process[0].count >= 10);
		for (uint32_t i = 0; i < t->process[0].count; i++)
			assert_int_equal(t->process[0].events[i].kind, BASE_TRACE_PASS);
		for (uint32_t i = 1; i < 3; i++) {
			struct engine_trace_process *p = &t->process[i];
			assert_int_equal(p->count, FAKE_SPANS);
			for (uint32_t k = 0; k < FAKE_SPANS; k++)
				assert_int_equal(p->events[k].place, k);
			assert_int_equal(p->lost, 7);
			assert_string_equal(p->host, "node-a");
			assert_false(p->same_clock); // of another boot
		}
		engine_trace_destroy(t);
		assert_int_equal(engine_trace_take(b->engine, &t, &e), -ENOENT); // once
	}
	assert_int_equal(engine_trace_start(b->engine, 1, &e), 0); // over at once, and not taken: destroy has it
	bench_destroy(b);
}

static void test_trace_of_lost_ranks(void **state)
{
	struct bench *b = bench_create();
	struct engine_trace *t = NULL;
	struct base_error e = {0};
	start(b);
	assert_int_equal(engine_trace_start(b->engine, 30 * SECOND, &e), 0);
	atomic_store(&b->ranks.die_at, 5);
	assert_int_equal(submit(b, make_request(b, 0, 20, 10)), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].error.code, 0); // the request is none the worse
	assert_int_equal(take_trace(b, &t), -ECANCELED);
	assert_int_equal(engine_trace_start(b->engine, SECOND / 10, &e), 0); // the new ranks can be traced
	assert_int_equal(take_trace(b, &t), 0);
	engine_trace_destroy(t);
	bench_destroy(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_eight_streams),
		cmocka_unit_test(test_killed_rank_is_a_pause),
		cmocka_unit_test(test_two_stages),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_gathered_ranks),
		cmocka_unit_test(test_gathered_ranks_often_lost),
		cmocka_unit_test(test_hung_rank_is_replaced),
		cmocka_unit_test(test_queue_memory),
		cmocka_unit_test(test_another_build),
		cmocka_unit_test(test_few_blocks),
		cmocka_unit_test(test_stop_strings),
		cmocka_unit_test(test_several_outputs),
		cmocka_unit_test(test_scores),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_queue_abort_deadline),
		cmocka_unit_test(test_slow_reader),
		cmocka_unit_test(test_data_loss_hits_one),
		cmocka_unit_test(test_data_loss_is_told),
		cmocka_unit_test(test_data_loss_is_told_once),
		cmocka_unit_test(test_regather_on_one_host),
		cmocka_unit_test(test_reads_that_fail_for_good),
		cmocka_unit_test(test_token_without_text),
		cmocka_unit_test(test_poor_machine_is_told),
		cmocka_unit_test(test_one_request_kills),
		cmocka_unit_test(test_gives_up),
		cmocka_unit_test(test_restarts_that_fail),
		cmocka_unit_test(test_bad_answers_are_a_lost_rank),
		cmocka_unit_test(test_overhead),
		cmocka_unit_test(test_trace),
		cmocka_unit_test(test_trace_of_lost_ranks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
