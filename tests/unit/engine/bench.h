/* SPDX-License-Identifier: Apache-2.0
 * An engine with ranks that are threads of this process, and readers that keep what it gives out: what the tests of
 * the engine share.
 */
#pragma once

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/engine.h"
#include "tests/lib/fake_rank.h"
#include "tests/lib/tiny_gguf.h"
#include "tests/lib/wait.h"

#define READERS 16
#define SECOND BASE_NS_PER_SECOND
#define LONG_NS (10 * TESTING_PATIENCE_NS) // what waits for that does not end in time

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

static inline bool emit(void *context, const struct request_event *v)
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
static inline void wait_reader(struct reader *r, uint32_t events)
{
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 60;
	pthread_mutex_lock(&r->lock);
	while (!r->finals && (!events || r->events < events))
		assert_int_equal(pthread_cond_timedwait(&r->changed, &r->lock, &until), 0);
	pthread_mutex_unlock(&r->lock);
}

/* For another request. */
static inline void reader_reset(struct reader *r)
{
	pthread_mutex_lock(&r->lock);
	r->finals = r->events = r->infos = 0;
	r->error = (struct base_error){0};
	memset(r->finish, 0, sizeof r->finish);
	pthread_mutex_unlock(&r->lock);
}

static inline void on_event(void *context, const char *severity, const char *kind, const char *text)
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

static inline struct bench *bench_create(void)
{
	struct bench *b = calloc(1, sizeof *b);
	struct tiny_model m = {0};
	tiny_model_build(&m, &b->file);
	assert_int_equal(format_gguf_open_memory(b->file.data, b->file.bytes, "tiny", &b->gguf, NULL), 0);
	assert_int_equal(text_tokenizer_create(b->gguf, &b->tokenizer, NULL), 0);
	b->ranks =
		(struct fake_ranks){.vocab = text_tokenizer_vocab(b->tokenizer), .kv_blocks = 200, .shape = {1, {1}}};
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
		.stuck_ns = LONG_NS,
		.connect_ns = LONG_NS,
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

static inline struct engine_load load_of(struct bench *b)
{
	struct engine_load load;
	engine_get_load(b->engine, &load);
	return load;
}

static inline void wait_state(struct bench *b, enum engine_state state)
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

static inline void start(struct bench *b)
{
	uint32_t parts = b->config.parts ? b->config.parts : 1;
	assert_int_equal(rank_shape_even(b->config.stages, parts, &b->ranks.shape), 0);
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

static inline void bench_destroy(struct bench *b)
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

static inline struct request *make_request(struct bench *b, uint32_t reader, uint32_t prompt, uint32_t max_new)
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

static inline int submit(struct bench *b, struct request *r)
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

static inline void check_hash_output(struct bench *b, uint32_t reader, uint32_t prompt, uint32_t max_new)
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
static inline void set_script(struct bench *b, const char *text)
{
	uint32_t *tokens;
	size_t count;
	assert_int_equal(text_tokenizer_encode(b->tokenizer, text, strlen(text), true, &tokens, &count, NULL), 0);
	b->ranks.script = tokens;
	b->ranks.script_count = (uint32_t)count;
}
