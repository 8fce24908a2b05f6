// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "tests/lib/fleet.h"
#include "tests/unit/rank_message/toy_rank.h"

#define LAYERS 6u
#define BATCH 64u

static const struct link_ops *const ops = &link_local_ops;

static struct rank_message assignment(const struct fleet *f, uint32_t stage, const char *settings)
{
	struct rank_message m = {.type = RANK_MESSAGE_ASSIGN};
	uint32_t each = LAYERS / f->shape.stages;
	m.assign = (struct rank_assign){.epoch = EPOCH,
		.stage = stage,
		.shape = f->shape,
		.config = {.slice = {stage * each, each, 0, 1},
			.batch_tokens = BATCH,
			.logits_rows = 32,
			.sequences = 8,
			.context_tokens = 512}};
	snprintf(m.assign.config.model_path, sizeof m.assign.config.model_path, "layers=%u %s", LAYERS, settings);
	return m;
}

static void fleet_load(struct fleet *f, const char *settings)
{
	for (uint32_t i = 0; i < f->shape.stages; i++) {
		struct rank_message m = assignment(f, i, settings);
		fleet_tell(f, i, &m);
	}
	for (uint32_t i = 0; i < f->shape.stages; i++) {
		assert_int_equal(fleet_hear(f, i), 0);
		assert_int_equal(f->in.type, RANK_MESSAGE_READY);
		assert_string_equal(f->in.ready.engine, "toy");
	}
}

static void open_sequence(struct fleet *f, uint32_t sequence, uint32_t prompt_tokens)
{
	struct rank_message m = {.type = RANK_MESSAGE_OPEN};
	m.open.sequence = sequence;
	m.open.prompt_tokens = prompt_tokens;
	fleet_tell_all(f, &m);
}

/* Sequence s has the 16 blocks from 16 s on, in reverse. */
static void send_pass(struct fleet *f, uint64_t number, const struct rank_entry *entries, uint32_t entries_count,
	const uint32_t *tokens, uint32_t tokens_count)
{
	uint32_t blocks[4 * 16];
	for (uint32_t i = 0; i < 64; i++)
		blocks[i] = i / 16 * 16 + 15 - i % 16;
	struct rank_message m = {.type = RANK_MESSAGE_PASS};
	m.pass = (struct rank_pass){.pass = number,
		.entries = entries,
		.entries_count = entries_count,
		.tokens = tokens,
		.tokens_count = tokens_count,
		.blocks = blocks,
		.blocks_count = 64};
	fleet_tell_all(f, &m);
}

static struct rank_entry entry(uint32_t sequence, uint32_t position, uint32_t tokens, uint32_t first_token)
{
	return (struct rank_entry){.sequence = sequence,
		.first_position = position,
		.tokens = tokens,
		.first_token = first_token,
		.first_block = sequence * 16,
		.blocks = 16,
		.want = RANK_WANT_SAMPLE};
}

/* Two sequences, prompts in one pass, then tokens one by one; the right tokens are known. */
static void generate(struct fleet *f)
{
	enum { MAKE = 20 };
	uint32_t text[2][5 + MAKE] = {{1, 2, 3, 4, 5}, {9, 8, 7}}, lengths[2] = {5, 3};
	uint32_t tokens[BATCH] = {1, 2, 3, 4, 5, 9, 8, 7};
	open_sequence(f, 1, 5);
	open_sequence(f, 3, 3);
	struct rank_entry entries[2] = {entry(1, 0, 5, 0), entry(3, 0, 3, 5)};
	send_pass(f, 1, entries, 2, tokens, 8);
	for (uint64_t pass = 1; pass <= MAKE; pass++) {
		assert_int_equal(fleet_hear(f, f->shape.stages - 1), 0);
		assert_int_equal(f->in.type, RANK_MESSAGE_RESULT);
		assert_int_equal(f->in.result.pass, pass);
		assert_int_equal(f->in.result.status, 0);
		assert_int_equal(f->in.result.entries_count, 2);
		assert_int_equal(f->in.result.outputs_count, 2);
		for (uint32_t i = 0; i < 2; i++) {
			uint32_t right = toy_rank_next(258, LAYERS, 8, text[i], lengths[i]);
			assert_int_equal(f->in.result.entry_status[i], 0);
			assert_int_equal(f->in.result.outputs[i].entry, i);
			assert_int_equal(f->in.result.outputs[i].result.token, right);
			tokens[i] = text[i][lengths[i]++] = right;
			entries[i] = entry(i ? 3 : 1, lengths[i] - 1, 1, i);
		}
		if (pass < MAKE)
			send_pass(f, pass + 1, entries, 2, tokens, 2);
	}
}

static void test_stages(void **state)
{
	static struct fleet f;
	for (uint32_t stages = 1; stages <= STAGES; stages++) {
		for (size_t ring = 4096; ring <= 65536; ring *= 16) {
			fleet_start(&f, stages, ring);
			fleet_load(&f, "width=8 cold=7");
			generate(&f);
			assert_int_equal(f.in.result.cold_bytes, 7 * stages); // of all stages
			fleet_stop(&f, 0);
		}
	}
}

/* Passes queued at once: all stages work at the same time. */
static void test_overlap(void **state)
{
	static struct fleet f;
	enum { PASSES = 8 };
	fleet_start(&f, 3, 65536);
	fleet_load(&f, "meet=3"); // in passes 0 to 2
	uint32_t token = 1;
	struct rank_entry e[1];
	for (uint32_t i = 0; i < 3; i++)
		open_sequence(&f, i, 1);
	for (uint32_t i = 0; i < PASSES; i++) {
		e[0] = entry(i % 3, i / 3, 1, 0);
		send_pass(&f, i, e, 1, &token, 1);
	}
	for (uint32_t i = 0; i < PASSES; i++) {
		assert_int_equal(fleet_hear(&f, 2), 0);
		assert_int_equal(f.in.result.pass, i);
		if (f.in.result.status)
			fail_msg("%s", f.in.result.e.message);
	}
	fleet_stop(&f, 0);
}

static void test_errors_travel(void **state)
{
	static struct fleet f;
	uint32_t tokens[BATCH + 1] = {1, 2, 66, 4};
	for (uint32_t stages = 1; stages <= STAGES; stages++) {
		char settings[64];
		for (uint32_t at = 0; at < stages; at++) { // the stage that fails
			snprintf(settings, sizeof settings, "fail_token=66 fail_layer=%u", at * (LAYERS / stages));
			fleet_start(&f, stages, 16384);
			fleet_load(&f, settings);
			open_sequence(&f, 0, 2);
			open_sequence(&f, 1, 2);
			struct rank_entry entries[2] = {entry(0, 0, 2, 0), entry(1, 0, 2, 2)};
			send_pass(&f, 1, entries, 2, tokens, 4);
			assert_int_equal(fleet_hear(&f, stages - 1), 0);
			assert_int_equal(f.in.result.status, 0);
			assert_int_equal(f.in.result.entry_status[0], 0);
			assert_int_equal(f.in.result.entry_status[1], -EIO);
			assert_int_equal(f.in.result.outputs[0].result.token, toy_rank_next(258, LAYERS, 8, tokens, 2));
			// not well-formed: refused by the first stage, reported by the last, and the next pass is fine
			entries[0].sequence = 7;
			send_pass(&f, 2, entries, 2, tokens, 4);
			assert_int_equal(fleet_hear(&f, stages - 1), 0);
			assert_int_equal(f.in.result.pass, 2);
			assert_int_equal(f.in.result.status, -EINVAL);
			assert_string_equal(f.in.result.e.message, "entry 0: sequence 7 is not open");
			send_pass(&f, 3, entries, 1, tokens, BATCH + 1);
			assert_int_equal(fleet_hear(&f, stages - 1), 0);
			assert_int_equal(f.in.result.status, -EINVAL);
			entries[0] = entry(0, 2, 1, 0);
			send_pass(&f, 4, entries, 1, tokens, 1);
			assert_int_equal(fleet_hear(&f, stages - 1), 0);
			assert_int_equal(f.in.result.pass, 4);
			assert_int_equal(f.in.result.status, 0);
			fleet_stop(&f, 0);
		}
	}
}

static void test_failed_assign(void **state)
{
	static struct fleet f;
	fleet_start(&f, 1, 16384);
	struct rank_message m = assignment(&f, 0, "fail_load=1");
	fleet_tell(&f, 0, &m);
	assert_int_equal(fleet_hear(&f, 0), 0);
	assert_int_equal(f.in.type, RANK_MESSAGE_FAILED);
	assert_int_equal(f.in.failed.code, -ENOMEM);
	assert_non_null(strstr(f.in.failed.message, "told to fail"));
	assert_int_equal(fleet_hear(&f, 0), -ECONNRESET);
	fleet_stop(&f, -ENOMEM);

	fleet_start(&f, 1, 16384);
	m = assignment(&f, 0, "");
	m.assign.epoch++;
	fleet_tell(&f, 0, &m);
	assert_int_equal(fleet_hear(&f, 0), 0);
	assert_int_equal(f.in.type, RANK_MESSAGE_FAILED);
	assert_non_null(strstr(f.in.failed.message, "epoch 6"));
	fleet_stop(&f, -EINVAL);
}

static void test_stop_while_loading(void **state)
{
	static struct fleet f;
	fleet_start(&f, 1, 16384);
	struct rank_message m = assignment(&f, 0, "load_ms=60000");
	fleet_tell(&f, 0, &m);
	struct link_request r;
	ops->receive(f.group, 1, RANK_TAG_REPLY, f.room, sizeof f.room, &r);
	assert_int_equal(ops->wait(f.group, &r, SECONDS(60)), 0);
	assert_int_equal(rank_message_decode(f.room, r.bytes, f.scratch, &f.in, NULL), 0);
	assert_int_equal(f.in.type, RANK_MESSAGE_PROGRESS);
	assert_int_equal(f.in.progress.total_bytes, 60000);
	uint64_t start = base_clock_now_ns();
	fleet_stop(&f, 0);
	assert_true(base_clock_now_ns() - start < 30 * BASE_NS_PER_SECOND); // and not for the 60 s

	fleet_start(&f, 1, 16384); // and when the coordinator goes away instead
	fleet_tell(&f, 0, &m);
	fleet_stop(&f, -ECONNRESET);
}

static void test_stop_while_waiting_for_rows(void **state)
{
	static struct fleet f;
	uint32_t token = 1;
	fleet_start(&f, 2, 16384);
	fleet_load(&f, "");
	open_sequence(&f, 0, 1);
	struct rank_entry e = entry(0, 0, 1, 0);
	struct rank_message m = {.type = RANK_MESSAGE_PASS};
	uint32_t blocks[16] = {0};
	m.pass = (struct rank_pass){.pass = 1,
		.entries = &e,
		.entries_count = 1,
		.tokens = &token,
		.tokens_count = 1,
		.blocks = blocks,
		.blocks_count = 16};
	fleet_tell(&f, 1, &m); // stage 0 never hears of it
	fleet_stop(&f, 0);
}

static void test_stop_flag_and_revoke(void **state)
{
	static struct fleet f;
	fleet_start(&f, 2, 16384);
	fleet_load(&f, "");
	atomic_store(&f.stage[0].stop, true);
	atomic_store(&f.stage[1].stop, true);
	assert_int_equal(fleet_hear(&f, 0), -ECONNRESET);
	ops->revoke(f.group);
	for (uint32_t i = 0; i < 2; i++) {
		pthread_join(f.stage[i].thread, NULL);
		// the flag or the neighbour's end, whichever is seen first
		assert_true(f.stage[i].status == 0 || f.stage[i].status == -ECONNRESET);
	}
	ops->close(f.group);
	rank_message_scratch_destroy(f.scratch);

	fleet_start(&f, 2, 16384);
	fleet_load(&f, "");
	fleet_stop(&f, -ECONNRESET);
}

static void test_stats(void **state)
{
	static struct fleet f;
	struct link_request r;
	fleet_start(&f, 2, 16384);
	fleet_load(&f, "");
	generate(&f);
	fleet_tell_all(&f, &(struct rank_message){.type = RANK_MESSAGE_STATS_REQUEST});
	for (uint32_t i = 0; i < 2; i++) {
		for (int k = 0; k < 2; k++) { // asked for, then on its own
			ops->receive(f.group, 1 + i, RANK_TAG_REPLY, f.room, sizeof f.room, &r);
			assert_int_equal(ops->wait(f.group, &r, SECONDS(60)), 0);
			assert_int_equal(rank_message_decode(f.room, r.bytes, f.scratch, &f.in, NULL), 0);
			assert_int_equal(f.in.type, RANK_MESSAGE_STATS);
			assert_int_equal(f.in.stats.passes, 20);
		}
	}
	fleet_stop(&f, 0);
}

static void test_protocol(void **state)
{
	static struct fleet f;
	struct link_request r;
	static const struct rank_message early = {.type = RANK_MESSAGE_CLOSE};
	fleet_start(&f, 1, 16384);
	fleet_tell(&f, 0, &early);
	assert_int_equal(fleet_hear(&f, 0), -ECONNRESET);
	fleet_stop(&f, -EPROTO);
	assert_non_null(strstr(f.stage[0].error.message, "CLOSE before ASSIGN"));

	fleet_start(&f, 1, 16384);
	fleet_load(&f, "");
	static const uint32_t noise[] = {RANK_MESSAGE_VERSION, 12345};
	ops->send(f.group, 1, RANK_TAG_COMMAND, noise, sizeof noise, &r);
	assert_int_equal(fleet_hear(&f, 0), -ECONNRESET);
	fleet_stop(&f, -EBADMSG);
}

/* A coordinator of another build: the rank says so in a message, which shows its own version to the other end, and
 * ends. */
static void test_another_build(void **state)
{
	static struct fleet f;
	static const uint32_t assign[] = {RANK_MESSAGE_VERSION + 1, RANK_MESSAGE_ASSIGN, 1, 2, 3};
	struct link_request r;
	fleet_start(&f, 1, 16384);
	ops->send(f.group, 1, RANK_TAG_COMMAND, assign, sizeof assign, &r);
	assert_int_equal(fleet_hear(&f, 0), 0);
	assert_int_equal(f.in.type, RANK_MESSAGE_FAILED);
	assert_non_null(strstr(f.in.failed.message, "different builds"));
	fleet_stop(&f, -EPROTONOSUPPORT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stages),
		cmocka_unit_test(test_overlap),
		cmocka_unit_test(test_errors_travel),
		cmocka_unit_test(test_failed_assign),
		cmocka_unit_test(test_stop_while_loading),
		cmocka_unit_test(test_stop_while_waiting_for_rows),
		cmocka_unit_test(test_stop_flag_and_revoke),
		cmocka_unit_test(test_stats),
		cmocka_unit_test(test_protocol),
		cmocka_unit_test(test_another_build),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
