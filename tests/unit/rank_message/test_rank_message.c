// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "shard/rank/message.h"

static const struct rank_entry entries[] = {
	{.sequence = 3,
		.first_position = 40,
		.tokens = 2,
		.first_token = 0,
		.first_block = 0,
		.blocks = 3,
		.want = RANK_WANT_SAMPLE},
	{.sequence = 255,
		.tokens = 3,
		.first_token = 2,
		.first_block = 3,
		.blocks = 1,
		.want = RANK_WANT_SCORES,
		.first_target = 0,
		.score_top = 20},
};
static const uint32_t tokens[] = {1, 2, 3, 4, 5}, blocks[] = {9, 8, 7, 0}, targets[] = {2, 3, 4};
static const struct base_trace_event spans[] = {
	{1, 2, 3, BASE_TRACE_MATMUL, 4}, {5, 5, 1ull << 40, BASE_TRACE_SEND, BASE_TRACE_COORDINATOR}};
static const int32_t entry_status[] = {0, -EBADMSG};
static const struct rank_output outputs[] = {
	{.entry = 0, .result = {.token = 77, .logprob = -0.5f, .top_count = 1, .top = {{77, -0.5f}}}},
	{.entry = 1, .token_index = 2, .result = {.token = 5, .logprob = -9}},
};

static void fill_request(struct rank_message *m)
{
	switch (m->type) {
	case RANK_MESSAGE_ASSIGN:
		m->assign = (struct rank_assign){.epoch = 1ull << 40,
			.shape = {2, {3, 1}},
			.stage = 1,
			.patience_ns = 77,
			.config = {.store_directory = "/var/lib/thaw/store/0123",
				.model_path = "/m.gguf",
				.digest = {1, 2, 3, 255},
				.slice = {15, 15, 0, 1},
				.backend = "cpu",
				.engine = "auto",
				.weights_budget_bytes = 1ull << 33,
				.kv_type = KV_Q8,
				.batch_tokens = 4096,
				.logits_rows = 64,
				.sequences = 256,
				.context_tokens = 8192,
				.cpus_count = 3,
				.cpus = {0, 2, 4}}};
		break;
	case RANK_MESSAGE_OPEN:
		m->open.sequence = 9;
		m->open.prompt_tokens = 11;
		m->open.params = (struct sample_params){.temperature = 0.7f,
			.top_p = 1,
			.repetition_penalty = 1,
			.seed = ~0ull,
			.logprobs = 20,
			.bias_count = 2,
			.bias = {{1, -1}, {2, 5}},
			.banned_count = 1,
			.banned = {2}};
		break;
	case RANK_MESSAGE_CLOSE:
		m->close = 255;
		break;
	case RANK_MESSAGE_PASS:
		m->pass = (struct rank_pass){.pass = 7,
			.entries = entries,
			.entries_count = 2,
			.tokens = tokens,
			.tokens_count = 5,
			.blocks = blocks,
			.blocks_count = 4,
			.targets = targets,
			.targets_count = 3};
		break;
	case RANK_MESSAGE_TRACE:
		m->trace = (struct rank_trace){RANK_TRACE_READ, 1024};
		break;
	default:
		break;
	}
}

static void fill_reply(struct rank_message *m)
{
	switch (m->type) {
	case RANK_MESSAGE_PROGRESS:
		m->progress.done_bytes = 5;
		m->progress.total_bytes = 6;
		break;
	case RANK_MESSAGE_READY:
		m->ready = (struct rank_placement){.hot_bytes = 1,
			.kv_blocks = 2,
			.engine = "uring",
			.pages = "hugetlb",
			.isa = "avx512_vnni",
			.direct_io = true,
			.fallback = "io_uring: not permitted"};
		break;
	case RANK_MESSAGE_FAILED:
		base_error_set(&m->failed, -ENOMEM, "weights: 12 MiB short");
		break;
	case RANK_MESSAGE_HIDDEN:
	case RANK_MESSAGE_RESULT:
		m->result = (struct rank_outcome){
			.pass = 7, .entries_count = 2, .entry_status = entry_status, .total_ns = 1, .cold_bytes = 3};
		if (m->type == RANK_MESSAGE_RESULT) {
			m->result.outputs = outputs;
			m->result.outputs_count = 2;
		}
		break;
	case RANK_MESSAGE_TRACE_PIECE:
		m->trace_piece = (struct rank_trace_piece){.first = 1024,
			.total = 1026,
			.lost = 3,
			.now_ns = 4,
			.wall_ns = 5,
			.boot = 6,
			.host = "node-a",
			.events_count = 2,
			.events = spans};
		break;
	case RANK_MESSAGE_STATS:
		m->stats = (struct rank_stats){.stream = {.read_bytes = 1, .read_latency_ns = 10, .inflight = 4},
			.passes = 11,
			.embed_read_bytes = 14};
		break;
	default:
		break;
	}
}

/* One of each type. */
static struct rank_message sample(size_t i)
{
	struct rank_message m;
	memset(&m, 0, sizeof m);
	static const enum rank_message_type types[] = {RANK_MESSAGE_ASSIGN, RANK_MESSAGE_OPEN, RANK_MESSAGE_CLOSE,
		RANK_MESSAGE_PASS, RANK_MESSAGE_STATS_REQUEST, RANK_MESSAGE_STOP, RANK_MESSAGE_PROGRESS,
		RANK_MESSAGE_READY, RANK_MESSAGE_FAILED, RANK_MESSAGE_RESULT, RANK_MESSAGE_STATS, RANK_MESSAGE_HIDDEN,
		RANK_MESSAGE_TRACE, RANK_MESSAGE_TRACE_PIECE};
	m.type = i < sizeof types / sizeof types[0] ? types[i] : 0;
	fill_request(&m);
	fill_reply(&m);
	return m;
}

static uint32_t room[1 << 16];

static void test_round_trip(void **state)
{
	struct rank_message_scratch *scratch;
	struct base_error e;
	assert_int_equal(rank_message_scratch_create(&scratch), 0);
	size_t count = 0;
	for (struct rank_message m; (m = sample(count)).type; count++) {
		static uint32_t again[1 << 16];
		struct rank_message d;
		int64_t n = rank_message_encode(&m, room, sizeof room);
		assert_true(n > 0 && n % 4 == 0);
		assert_int_equal(rank_message_encode(&m, again, (size_t)n - 1), -ENOBUFS);
		assert_int_equal(rank_message_decode(room, (size_t)n, scratch, &d, &e), 0);
		assert_int_equal(d.type, m.type);
		assert_int_equal(rank_message_encode(&d, again, sizeof again), n);
		assert_memory_equal(room, again, (size_t)n);
		// every shorter or longer message is refused, naming its type
		for (size_t cut = 0; cut < (size_t)n; cut++)
			assert_int_equal(rank_message_decode(room, cut, scratch, &d, &e), -EBADMSG);
		assert_int_equal(rank_message_decode(room, (size_t)n + 4, scratch, &d, &e), -EBADMSG);
		assert_non_null(strstr(e.message, rank_message_name(m.type)));
	}
	assert_int_equal(count, 14);
	rank_message_scratch_destroy(scratch);
}

static struct rank_message decoded(size_t i, struct rank_message_scratch *scratch)
{
	struct rank_message m = sample(i), d;
	int64_t n = rank_message_encode(&m, room, sizeof room);
	assert_true(n > 0);
	assert_int_equal(rank_message_decode(room, (size_t)n, scratch, &d, NULL), 0);
	return d;
}

static void test_fields(void **state)
{
	struct rank_message_scratch *scratch;
	assert_int_equal(rank_message_scratch_create(&scratch), 0);
	struct rank_message m = decoded(0, scratch), want = sample(0);
	assert_memory_equal(&m.assign, &want.assign, sizeof m.assign);
	m = decoded(1, scratch);
	assert_int_equal(m.open.sequence, 9);
	assert_true(m.open.params.temperature == 0.7f && m.open.params.seed == ~0ull);
	assert_int_equal(m.open.params.bias[1].token, 2);
	assert_int_equal(m.open.params.banned[0], 2);
	m = decoded(3, scratch);
	assert_int_equal(m.pass.entries_count, 2);
	assert_memory_equal(m.pass.entries, entries, sizeof entries);
	assert_memory_equal(m.pass.tokens, tokens, sizeof tokens);
	assert_memory_equal(m.pass.blocks, blocks, sizeof blocks);
	assert_memory_equal(m.pass.targets, targets, sizeof targets);
	assert_null(m.pass.hidden_in);
	m = decoded(7, scratch);
	assert_string_equal(m.ready.isa, "avx512_vnni");
	assert_true(m.ready.direct_io);
	assert_string_equal(m.ready.fallback, "io_uring: not permitted");
	m = decoded(8, scratch);
	assert_int_equal(m.failed.code, -ENOMEM);
	assert_string_equal(m.failed.message, "weights: 12 MiB short");
	m = decoded(9, scratch);
	assert_int_equal(m.result.outputs_count, 2);
	assert_memory_equal(m.result.outputs, outputs, sizeof outputs);
	assert_int_equal(m.result.entry_status[1], -EBADMSG);
	m = decoded(10, scratch);
	assert_int_equal(m.stats.embed_read_bytes, 14);
	assert_int_equal(m.stats.stream.inflight, 4);
	m = decoded(12, scratch);
	assert_int_equal(m.trace.step, RANK_TRACE_READ);
	assert_int_equal(m.trace.first, 1024);
	m = decoded(13, scratch);
	assert_int_equal(m.trace_piece.total, 1026);
	assert_string_equal(m.trace_piece.host, "node-a");
	assert_memory_equal(m.trace_piece.events, spans, sizeof spans);
	rank_message_scratch_destroy(scratch);
}

static void refused(struct rank_message m)
{
	assert_int_equal(rank_message_encode(&m, room, sizeof room), -EINVAL);
}

static void test_limits(void **state)
{
	struct rank_entry e = entries[1];
	struct rank_message m = sample(3);
	m.pass.entries = &e;
	m.pass.entries_count = 1;
	assert_true(rank_message_encode(&m, room, sizeof room) > 0);
#define BAD(change)                                                                                                    \
	do {                                                                                                           \
		e = entries[1];                                                                                        \
		change;                                                                                                \
		refused(m);                                                                                            \
	} while (0)
	BAD(e.tokens = 0);
	BAD(e.tokens = 4);
	BAD(e.first_token = UINT32_MAX);
	BAD(e.blocks = 2);
	BAD(e.first_block = 5);
	BAD(e.first_target = 1);
	BAD(e.sequence = RANK_MAX_SEQUENCES);
	BAD(e.first_position = UINT32_MAX);
	BAD(e.score_top = SAMPLE_MAX_LOGPROBS + 1);
	BAD(e.want = (enum rank_want)3);
	m = sample(3);
	m.pass.tokens_count = RANK_MAX_BATCH_TOKENS + 1;
	refused(m);
	m = sample(0);
	m.assign.stage = 2;
	refused(m);
	static const struct rank_shape bad[] = {{0}, {2, {3, 0}}, {2, {RANK_MAX_PARTS + 1, 1}}, {RANK_MAX_RANKS, {2}},
		{RANK_MAX_RANKS + 1, {1}}, {UINT32_MAX, {1}}, {4, {16, 16, 16, 16}}};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		m = sample(0);
		m.assign.shape = bad[i];
		m.assign.stage = 0;
		refused(m);
	}
	m = sample(0);
	m.assign.config.slice.layers = UINT32_MAX;
	refused(m);
	m = sample(9);
	m.result.entries_count = 1; // an output names entry 1
	refused(m);
	m = sample(13);
	struct base_trace_event span = spans[0];
	m.trace_piece.events = &span;
	m.trace_piece.events_count = 1;
	assert_true(rank_message_encode(&m, room, sizeof room) > 0);
	span.kind = BASE_TRACE_KINDS;
	refused(m);
	span = spans[0];
	span.end_ns = 0;
	refused(m);
	m = sample(13);
	m.trace_piece.total = 1025; // of which it has more
	refused(m);
	m = sample(13);
	m.trace_piece.first = m.trace_piece.total = BASE_TRACE_EVENTS + 1;
	refused(m);
}

/* The engine's room for everything but passes is 8 KiB. */
static void test_the_cpus_of_a_large_machine_fit(void **state)
{
	struct rank_message_scratch *scratch;
	struct rank_message m = sample(0), d;
	struct rank_config *c = &m.assign.config;
	assert_int_equal(rank_message_scratch_create(&scratch), 0);
	memset(c->store_directory, 's', sizeof c->store_directory - 1);
	memset(c->model_path, 'm', sizeof c->model_path - 1);
	c->cpus_count = TOPOLOGY_MAX_CPUS;
	for (uint32_t i = 0; i < c->cpus_count; i++)
		c->cpus[i] = i;
	int64_t n = rank_message_encode(&m, room, 8192);
	assert_true(n > 0);
	assert_int_equal(rank_message_decode(room, (size_t)n, scratch, &d, NULL), 0);
	assert_memory_equal(&d.assign, &m.assign, sizeof m.assign);
	c->cpus_count++;
	assert_true(rank_message_encode(&m, room, sizeof room) < 0);
	rank_message_scratch_destroy(scratch);
}

/* A change of the format without another RANK_MESSAGE_VERSION would let two builds talk past each other: when this
 * fails, count the version up and put what it prints here. */
static void test_the_version_names_the_format(void **state)
{
	static const struct {
		uint32_t version;
		uint64_t format;
	} known = {5, 0xd4b69eb70ccc23b9ull};
	uint64_t h = 0xcbf29ce484222325ull;
	struct rank_message m;
	for (size_t i = 0; (m = sample(i)).type; i++) {
		int64_t n = rank_message_encode(&m, room, sizeof room);
		assert_true(n >= 8);
		room[0] = 0;
		for (int64_t k = 0; k < n; k++)
			h = (h ^ ((const uint8_t *)room)[k]) * 0x100000001b3ull;
	}
	if (known.version != RANK_MESSAGE_VERSION || known.format != h)
		fail_msg("version %u has format 0x%llxull", RANK_MESSAGE_VERSION, (unsigned long long)h);
}

static void test_another_version_is_named(void **state)
{
	struct rank_message_scratch *scratch;
	struct base_error e = {0};
	struct rank_message m = sample(0), d;
	assert_int_equal(rank_message_scratch_create(&scratch), 0);
	int64_t n = rank_message_encode(&m, room, sizeof room);
	room[0] = 1;
	assert_int_equal(rank_message_decode(room, (size_t)n, scratch, &d, &e), -EPROTONOSUPPORT);
	assert_non_null(strstr(e.message, "thawd and thaw-rank are of different builds"));
	rank_message_scratch_destroy(scratch);
}

/* Every word of every message replaced by values that break it: no crash, and what still decodes encodes to the
 * same. */
static void test_changed_words(void **state)
{
	static const uint32_t values[] = {0, 1, 0x7fffffff, 0x80000000, UINT32_MAX, 4097, 257};
	static uint32_t again[1 << 16];
	struct rank_message_scratch *scratch;
	struct base_error e;
	assert_int_equal(rank_message_scratch_create(&scratch), 0);
	size_t refusals = 0;
	struct rank_message m;
	for (size_t i = 0; (m = sample(i)).type; i++) {
		int64_t n = rank_message_encode(&m, room, sizeof room);
		for (size_t word = 0; word < (size_t)n / 4; word++) {
			for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
				struct rank_message d;
				uint32_t was = room[word];
				room[word] = values[v];
				int r = rank_message_decode(room, (size_t)n, scratch, &d, &e);
				refusals += r < 0;
				if (r == 0) {
					assert_int_equal(rank_message_encode(&d, again, sizeof again), n);
					assert_memory_equal(room, again, (size_t)n);
				}
				room[word] = was;
			}
		}
	}
	assert_true(refusals > 500);
	rank_message_scratch_destroy(scratch);
}

/* test_rank_message corpus DIR: one encoded message of each type, for tests/fuzz/corpus/rank_message. */
static int write_corpus(const char *directory)
{
	struct rank_message m;
	for (size_t i = 0; (m = sample(i)).type; i++) {
		char path[4096];
		snprintf(path, sizeof path, "%s/%s", directory, rank_message_name(m.type));
		FILE *f = fopen(path, "wb");
		int64_t n = rank_message_encode(&m, room, sizeof room);
		if (!f || fwrite(room, 1, (size_t)n, f) != (size_t)n || fclose(f) != 0)
			return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_fields),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_changed_words),
		cmocka_unit_test(test_the_cpus_of_a_large_machine_fit),
		cmocka_unit_test(test_the_version_names_the_format),
		cmocka_unit_test(test_another_version_is_named),
	};
	if (argc == 3 && strcmp(argv[1], "corpus") == 0)
		return write_corpus(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
