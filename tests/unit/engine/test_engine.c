// SPDX-License-Identifier: Apache-2.0
/* The engine with ranks that are threads of this process: real messages, real link, a hash for a model. */
#include "tests/lib/testing.h"

#include "tests/unit/engine/bench.h"

static void eight_streams(uint32_t stages, uint32_t parts, uint32_t die_at, uint32_t hang_at, uint32_t kv_blocks)
{
	struct bench *b = bench_create();
	b->config.stages = stages;
	b->config.parts = parts;
	b->ranks.kv_blocks = kv_blocks;
	b->ranks.die_at = die_at;
	b->ranks.hang_at = hang_at;
	if (hang_at)
		b->config.stuck_ns = 2 * SECOND; // a busy machine may be as late as that, then it is one restart more
	start(b);
	b->ranks.hold = !die_at && !hang_at; // until all are there: they share the blocks
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(submit(b, make_request(b, i, 10 + i * 20, 40)), 0);
	b->ranks.hold = false;
	for (uint32_t i = 0; i < 8; i++) {
		wait_reader(&b->reader[i], 0);
		check_hash_output(b, i, 10 + i * 20, 40);
	}
	struct engine_load load;
	engine_get_load(b->engine, &load);
	assert_true(hang_at ? load.restarts >= 1 : load.restarts == (die_at != 0));
	assert_int_equal(load.requests_total[REQUEST_FINISH_LENGTH], 8);
	assert_int_equal(load.ranks, stages * parts);
	assert_int_equal(load.slice[load.ranks - 1].tp_rank, parts - 1);
	assert_int_equal(load.waiting, 0);
	// The counters are as of the engine's last turn, perhaps as of the one before.
	uint64_t end = base_clock_now_ns() + 60 * SECOND;
	while (kv_blocks < 50 && !die_at && !load.preemptions_total && base_clock_now_ns() < end) {
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		engine_get_load(b->engine, &load);
	}
	assert_true(kv_blocks >= 50 || die_at || load.preemptions_total > 0);
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

/* With slow passes: the queue fills, ids are unique, aborts work in the queue, in prefill and in decode, deadlines
 * count queueing. */
static void test_queue_abort_deadline(void **state)
{
	struct bench *b = bench_create();
	b->ranks.delay_ns = 20000000;
	b->config.max_running = 1;
	b->config.max_waiting = 4;
	b->config.batch_tokens = 1;
	start(b);
	struct request *r = make_request(b, 0, 400, 10); // 400 passes of prefill, and they wait until it is aborted
	snprintf(r->id, sizeof r->id, "first");
	assert_int_equal(submit(b, r), 0);
	r = make_request(b, 1, 10, 10);
	snprintf(r->id, sizeof r->id, "first");
	assert_int_equal(submit(b, r), -EEXIST);
	struct engine_load load = {0};
	while (!load.running)
		engine_get_load(b->engine, &load);
	b->ranks.hold = true;
	for (uint32_t i = 1; i <= 5; i++) {
		r = make_request(b, i, 10, 500);
		snprintf(r->id, sizeof r->id, "id-%u", i);
		assert_int_equal(submit(b, r), i < 5 ? 0 : -EAGAIN);
	}
	assert_int_equal(engine_abort(b->engine, "id-2"), 0);
	wait_reader(&b->reader[2], 0);
	assert_int_equal(b->reader[2].error.code, -ECANCELED);
	reader_reset(&b->reader[2]);
	r = make_request(b, 2, 10, 50);
	r->deadline_ns = base_clock_now_ns() + 50000000;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[2], 0);
	assert_int_equal(b->reader[2].error.code, -ETIME);
	assert_int_equal(engine_abort(b->engine, "id-3"), 0);
	wait_reader(&b->reader[3], 0);
	assert_int_equal(b->reader[3].error.code, -ECANCELED);
	assert_int_equal(b->reader[0].tokens_count[0], 0);
	assert_int_equal(engine_abort(b->engine, "first"), 0);
	b->ranks.hold = false;
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
	testing_wait_until(b->ranks.starts == 2);
	wait_state(b, ENGINE_READY);
	engine_get_load(b->engine, &load);
	assert_string_equal(load.data_loss, "");
	assert_int_equal(submit(b, make_request(b, 1, 10, 60)), 0);
	wait_reader(&b->reader[1], 10);
	engine_regather(b->engine, "again");
	testing_wait_until(b->ranks.starts == 3);
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[1].error.code, 0);
	check_hash_output(b, 1, 10, 60);
	assert_int_equal(b->ranks.starts, 3);
	bench_destroy(b);
}

static void fail_to_read(struct bench *b, uint32_t i)
{
	assert_int_equal(submit(b, make_request(b, i, 10, 30)), 0);
	wait_reader(&b->reader[i], 0);
	assert_int_equal(b->reader[i].error.code, -EIO);
	assert_non_null(strstr(b->reader[i].error.message, "cannot be read: layer 5"));
}

static void read_with_new_rank(struct bench *b)
{
	assert_int_equal(submit(b, make_request(b, 3, 10, 30)), 0);
	wait_reader(&b->reader[3], 0);
	check_hash_output(b, 3, 10, 30);
	assert_int_equal(b->ranks.starts, 2);
}

/* An I/O engine that died fails what needs it; the next requests find a new rank. */
static void test_reads_that_fail_for_good(void **state)
{
	struct bench *b = bench_create();
	b->ranks.io_dies_at = 2;
	start(b);
	for (uint32_t i = 0; i < 3; i++)
		fail_to_read(b, i);
	read_with_new_rank(b);
	assert_int_equal(atomic_load(&b->losses), 1); // which the server mends
	bench_destroy(b);
}

/* Nobody knows that data is lost, so nothing is mended, and requests still come, so that a new rank is tried. */
static void test_drive_that_is_silent(void **state)
{
	struct bench *b = bench_create();
	struct engine_load load;
	b->ranks.io_dies_at = 2;
	b->ranks.io_error = -ETIMEDOUT;
	start(b);
	for (uint32_t i = 0; i < 3; i++) {
		fail_to_read(b, i);
		engine_get_load(b->engine, &load);
		assert_string_equal(load.data_loss, "");
	}
	read_with_new_rank(b);
	assert_int_equal(atomic_load(&b->losses), 0);
	bench_destroy(b);
}

/* A bug, and no data that is lost: the requests of the pass end with it, and the next ones find everything well. */
static void test_pass_is_refused(void **state)
{
	struct bench *b = bench_create();
	struct engine_load load;
	b->ranks.refuse_at = 2;
	start(b);
	assert_int_equal(submit(b, make_request(b, 0, 10, 30)), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].error.code, -EPROTO); // INTERNAL
	assert_non_null(strstr(b->reader[0].error.message, "sequence 0 is not open"));
	assert_int_equal(submit(b, make_request(b, 1, 10, 30)), 0);
	wait_reader(&b->reader[1], 0);
	check_hash_output(b, 1, 10, 30);
	engine_get_load(b->engine, &load);
	assert_string_equal(load.data_loss, "");
	assert_int_equal(atomic_load(&b->losses), 0);
	assert_int_equal(b->ranks.starts, 1);
	bench_destroy(b);
}

/* The head has more rows than the tokenizer has tokens: whoever draws one of those ends, and nobody else is
 * disturbed. */
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

static int take_trace(struct bench *b, struct engine_trace **ret_trace)
{
	struct base_error e = {0};
	int r;
	testing_wait_until((r = engine_trace_take(b->engine, ret_trace, &e)) != -EAGAIN);
	return r;
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
		assert_int_equal(submit(b, make_request(b, 2 + (uint32_t)round, 20, 1)), 0);
		wait_reader(&b->reader[2 + round], 0); // its pass may begin before the trace does
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
		cmocka_unit_test(test_drive_that_is_silent),
		cmocka_unit_test(test_pass_is_refused),
		cmocka_unit_test(test_token_without_text),
		cmocka_unit_test(test_poor_machine_is_told),
		cmocka_unit_test(test_one_request_kills),
		cmocka_unit_test(test_gives_up),
		cmocka_unit_test(test_restarts_that_fail),
		cmocka_unit_test(test_bad_answers_are_a_lost_rank),
		cmocka_unit_test(test_trace),
		cmocka_unit_test(test_trace_of_lost_ranks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
