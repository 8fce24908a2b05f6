// SPDX-License-Identifier: Apache-2.0
// thawctl: what a shell sees (output, messages, exit codes) and what the server is asked, against a table of answers.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"
#include "tests/unit/ctl/fake_client.h"

struct shown {
	char *out, *err;
	int exit;
};

static struct shown run_with(const char *input, const char *const *words)
{
	struct shown s = {0};
	size_t out_bytes, err_bytes, count = 0;
	char *argv[32] = {(char *)"thawctl"};
	while (words[count]) {
		argv[count + 1] = (char *)words[count];
		count++;
	}
	struct ctl c = {.in = input[0] ? fmemopen((void *)input, strlen(input), "r") : fopen("/dev/null", "r"),
		.out = open_memstream(&s.out, &out_bytes),
		.err = open_memstream(&s.err, &err_bytes)};
	fake.requests_count = 0;
	s.exit = ctl_run(&c, (int)count + 1, argv);
	fclose(c.in);
	fclose(c.out);
	fclose(c.err);
	return s;
}

#define RUN(...) run_with("", (const char *const[]){__VA_ARGS__, NULL})

static void drop(struct shown *s)
{
	free(s->out);
	free(s->err);
}

static void expect(struct shown s, int exit, const char *out, const char *err)
{
	if (s.exit != exit || strcmp(s.out, out) != 0 || strcmp(s.err, err) != 0)
		fail_msg("exit %d\nout:\n%s\nerr:\n%s\nwanted %d\n%s\n%s", s.exit, s.out, s.err, exit, out, err);
	drop(&s);
}

static struct json_object *parse_json(struct shown s)
{
	struct json_object *o = json_tokener_parse(s.out);
	if (s.exit != CTL_OK || !o)
		fail_msg("exit %d\n%s\n%s", s.exit, s.out, s.err);
	drop(&s);
	assert_int_equal(json_object_get_int(json_object_object_get(o, "schema_version")), 1);
	return o;
}

static void answer(const char *method, const void *message)
{
	fake.answers[fake.answers_count++] = (struct fake_answer){.method = method, .messages = {message}, .count = 1};
}

static void answer_status(const char *method, int code, const char *reason, const char *message)
{
	fake.answers[fake.answers_count++] =
		(struct fake_answer){.method = method, .code = code, .reason = reason, .message = message};
}

static int forget(void **state)
{
	memset(&fake, 0, sizeof fake);
	unsetenv("THAW_SERVER");
	return 0;
}

static void wrong_command_lines_end_with_2(void **state)
{
	static const struct {
		const char *words[6];
		const char *err;
	} cases[] = {
		{{"frobnicate"}, "thawctl: no verb \"frobnicate\"; see thawctl help\n"},
		{{"stauts"}, "thawctl: no verb \"stauts\"; did you mean \"status\"?\n"},
		{{"help", "modles"}, "thawctl: no verb \"modles\"; did you mean \"models\"?\n"},
		{{"plan"}, "thawctl: plan needs FILE; see thawctl help plan\n"},
		{{"status", "now"}, "thawctl: status takes no arguments; see thawctl help status\n"},
		{{"generate", "a", "b"}, "thawctl: generate takes at most 1 argument (quote a text with spaces)\n"},
		{{"status", "--seed", "1"}, "thawctl: status does not take --seed; see thawctl help status\n"},
		{{"generate", "--sead", "1"}, "thawctl: unknown option --sead; did you mean --seed?\n"},
		{{"generate", "--max-token=3"}, "thawctl: unknown option --max-token=3; did you mean --max-tokens?\n"},
		{{"status", "--frobnicate"}, "thawctl: unknown option --frobnicate; see thawctl help status\n"},
		{{"status", "-Q"}, "thawctl: unknown option -Q; see thawctl help status\n"},
		{{"trace", "-o", "json"}, "thawctl: --output: of trace it names the file, and \"json\" is a format; "
					  "./json is a file of that name\n"},
		{{"generate", "--seed"}, "thawctl: --seed needs a value: N\n"},
		{{"generate", "--seed", "x"}, "thawctl: --seed: \"x\" is not a whole number\n"},
		{{"generate", "--temperature=hot"}, "thawctl: --temperature: \"hot\" is not a number\n"},
		{{"generate", "--chat=yes"}, "thawctl: --chat takes no value\n"},
		{{"status", "-o", "xml"}, "thawctl: --output: \"xml\" is none of table, wide, json\n"},
		{{"plan", "x", "--weights", "70"},
			"thawctl: --weights: \"70\" is not a size; write 700MiB, for example\n"},
		{{"status", "--watch=0s"}, "thawctl: --watch: \"0s\" is not a time; write 5s, for example\n"},
		{{"status", "--set", "a=b"}, "thawctl: --set is for --local; a running daemon reads its own files\n"},
		{{"generate", "--token-ids", "1 two"}, "thawctl: \"two\" is not a token id\n"},
		{{"generate", "--token-ids", "4294967296"}, "thawctl: \"4294967296\" is not a token id\n"},
		{{"generate", "--priority", "urgent", "x"},
			"thawctl: --priority: \"urgent\" is none of high, normal, low\n"},
		{{"eval"}, "thawctl: eval needs --text FILE; see thawctl help eval\n"},
		{{"completion", "tcsh"}, "thawctl: completion: \"tcsh\" is none of bash, zsh, fish\n"},
		{{"config", "chek"}, "thawctl: config: \"chek\" is none of check, show, keys\n"},
	};
	for (size_t i = 0; i < base_array_size(cases); i++)
		expect(run_with("", cases[i].words), CTL_USAGE, "", cases[i].err);
}

static void failures_have_their_exit_codes(void **state)
{
	expect(RUN("models", "--server", "unix:/x"), CTL_UNREACHABLE, "", "thawctl: no daemon answers at unix:/x\n");
	setenv("THAW_SERVER", "localhost:1", 1);
	expect(RUN("models"), CTL_UNREACHABLE, "", "thawctl: no daemon answers at localhost:1\n");
	answer_status("/thaw.admin.v1.Admin/UnloadModel", 5, "NOT_FOUND", "no model \"x\"");
	expect(RUN("unload", "x"), CTL_NOT_FOUND, "", "thawctl: no model \"x\"\n");
	answer_status("/thaw.admin.v1.Admin/PlanPlacement", 9, "DOES_NOT_FIT", "12 MiB short");
	expect(RUN("plan", "/m.gguf"), CTL_DOES_NOT_FIT, "", "thawctl: 12 MiB short\n");
	answer_status("/thaw.v1.Inference/Score", 14, "NOT_READY", "loading");
	expect(RUN("score", "text"), CTL_DEGRADED, "", "thawctl: loading\n");
	answer_status("/thaw.v1.Inference/Tokenize", 3, "INVALID", "empty text");
	expect(RUN("tokenize", ""), CTL_ERROR, "", "thawctl: empty text\n");
	expect(RUN("--local", "/nowhere/m.gguf", "generate", "x"), CTL_NOT_FOUND, "",
		"thawctl: /nowhere/m.gguf: No such file or directory\n");
}

static Thaw__V1__Model smol(void)
{
	Thaw__V1__Model m = THAW__V1__MODEL__INIT;
	m.name = (char *)"smol";
	m.architecture = (char *)"llama";
	m.chat_template = (char *)"chatml";
	m.phase = THAW__V1__MODEL_PHASE__MODEL_PHASE_READY;
	m.context_tokens = 8192;
	m.vocabulary_tokens = 49152;
	m.layers = 30;
	m.weights_bytes = UINT64_C(9007199254740993);
	return m;
}

static void models_are_a_table_or_json(void **state)
{
	Thaw__V1__Model a = smol(), b = smol(), *list[] = {&a, &b};
	a.weights_bytes = 100 << 20;
	b.name = (char *)"a longer name";
	b.phase = THAW__V1__MODEL_PHASE__MODEL_PHASE_PACK;
	b.done_bytes = 1;
	b.total_bytes = 4;
	Thaw__V1__ListModelsReply reply = THAW__V1__LIST_MODELS_REPLY__INIT;
	reply.models = list;
	reply.n_models = 2;
	answer("/thaw.v1.Inference/ListModels", &reply);
	expect(RUN("models"), CTL_OK,
		"MODEL          STATE  ARCH   LAYERS  CONTEXT  WEIGHTS  DETAIL\n"
		"smol           ready  llama      30     8192     100M  \n"
		"a longer name  pack   llama      30     8192     8.0P  25 %\n",
		"");
	expect(RUN("models", "--no-headers"), CTL_OK,
		"smol           ready  llama  30  8192  100M  \n"
		"a longer name  pack   llama  30  8192  8.0P  25 %\n",
		"");
	struct json_object *o = parse_json(RUN("models", "-o", "json"));
	struct json_object *m = json_object_array_get_idx(json_object_object_get(o, "models"), 1);
	struct json_object *weights = json_object_object_get(m, "weights_bytes");
	assert_int_equal(json_object_get_type(weights), json_type_int);
	assert_true(json_object_get_uint64(weights) == UINT64_C(9007199254740993));
	assert_string_equal(json_object_get_string(json_object_object_get(m, "phase")), "pack");
	assert_null(json_object_object_get(m, "bos_token_id")); // a oneof that is not set
	json_object_put(o);
}

static void status_ends_with_6_when_degraded(void **state)
{
	Thaw__Admin__V1__GetServerInfoReply info = THAW__ADMIN__V1__GET_SERVER_INFO_REPLY__INIT;
	Thaw__V1__ListModelsReply models = THAW__V1__LIST_MODELS_REPLY__INIT;
	info.version = (char *)"0.1.0";
	info.host = (char *)"node1";
	info.started_wall_ns = 1;
	info.now_wall_ns = 90000000001;
	info.memory_bytes = 3 << 20;
	info.pid = 7;
	info.ready = true;
	answer("/thaw.admin.v1.Admin/GetServerInfo", &info);
	answer("/thaw.v1.Inference/ListModels", &models);
	expect(RUN("status"), CTL_OK, "thawd 0.1.0 on node1: ready, up 90.0s, memory 3.0M, pid 7\n", "");
	info.draining = true;
	expect(RUN("status"), CTL_DEGRADED, "thawd 0.1.0 on node1: draining, up 90.0s, memory 3.0M, pid 7\n", "");
}

struct chunks {
	Thaw__V1__GenerateChunk chunks[4];
	Thaw__V1__Output outputs[3], *lists[3];
	Thaw__V1__PromptInfo info;
	Thaw__V1__Timing timing;
	uint32_t ids[3];
};

static void answer_generation(struct chunks *k)
{
	static const char *const texts[] = {" Paris", "", "."};
	struct fake_answer *a = &fake.answers[fake.answers_count++];
	*a = (struct fake_answer){.method = "/thaw.v1.Inference/GenerateStream", .count = 4};
	for (size_t i = 0; i < 4; i++) {
		thaw__v1__generate_chunk__init(&k->chunks[i]);
		a->messages[i] = &k->chunks[i];
	}
	for (size_t i = 0; i < 3; i++) {
		thaw__v1__output__init(&k->outputs[i]);
		k->ids[i] = (uint32_t)(100 + i);
		k->outputs[i].text = (char *)texts[i];
		k->outputs[i].token_ids = &k->ids[i];
		k->outputs[i].n_token_ids = 1;
		k->lists[i] = &k->outputs[i];
		k->chunks[i].outputs = &k->lists[i];
		k->chunks[i].n_outputs = 1;
	}
	k->outputs[2].finish = THAW__V1__FINISH_REASON__STOP;
	thaw__v1__prompt_info__init(&k->info);
	k->info.num_prompt_tokens = 5;
	k->chunks[0].prompt_info = &k->info;
	k->chunks[0].request_id = (char *)"r1";
	thaw__v1__timing__init(&k->timing);
	k->timing.nvme_read_bytes = 3 * 1000;
	k->timing.achieved_ratio = 0.5;
	k->timing.binding = (char *)"disk";
	k->chunks[3].timing = &k->timing;
}

static Thaw__V1__GenerateRequest *sent_request(void)
{
	assert_int_equal(fake.requests_count, 1);
	return thaw__v1__generate_request__unpack(NULL, fake.requests[0].count, fake.requests[0].bytes);
}

static void generate_streams_text_and_sends_its_options(void **state)
{
	struct chunks k;
	answer_generation(&k);
	expect(RUN("generate", "The capital is", "-n", "7", "--temperature", "0.5", "--top-k=40", "--seed", "0",
		       "--stop", "a", "--stop", "b", "--ignore-eos", "--priority", "low", "-m", "smol"),
		CTL_OK, " Paris.\n", "");
	Thaw__V1__GenerateRequest *q = sent_request();
	assert_string_equal(q->prompt->text, "The capital is");
	assert_int_equal(q->prompt->add_bos_opt_case, THAW__V1__PROMPT__ADD_BOS_OPT__NOT_SET);
	assert_string_equal(q->model, "smol");
	assert_int_equal(q->stopping->max_new_tokens, 7);
	assert_true(q->sampling->temperature == 0.5f);
	assert_int_equal(q->sampling->top_k, 40);
	assert_int_equal(q->sampling->seed_opt_case, THAW__V1__SAMPLING__SEED_OPT_SEED); // 0 was given
	assert_int_equal(q->stopping->n_stop, 2);
	assert_string_equal(q->stopping->stop[1], "b");
	assert_true(q->stopping->ignore_eos);
	assert_int_equal(q->priority, THAW__V1__PRIORITY__PRIORITY_LOW);
	assert_int_equal(q->response->logprobs_opt_case, THAW__V1__RESPONSE_OPTIONS__LOGPROBS_OPT__NOT_SET);
	thaw__v1__generate_request__free_unpacked(q, NULL);
}

static void generate_takes_and_prints_token_ids(void **state)
{
	struct chunks k;
	answer_generation(&k);
	expect(RUN("generate", "--token-ids", "[1, 2 3]"), CTL_OK, "100 101 102 \n", "");
	Thaw__V1__GenerateRequest *q = sent_request();
	assert_int_equal(q->prompt->source_case, THAW__V1__PROMPT__SOURCE_TOKEN_IDS);
	assert_int_equal(q->prompt->token_ids->n_ids, 3);
	assert_int_equal(q->prompt->token_ids->ids[2], 3);
	assert_int_equal(q->sampling->seed_opt_case, THAW__V1__SAMPLING__SEED_OPT__NOT_SET);
	thaw__v1__generate_request__free_unpacked(q, NULL);
}

static void generate_reads_standard_input_and_tells_figures(void **state)
{
	struct chunks k;
	answer_generation(&k);
	struct shown s = run_with("from a pipe\n", (const char *const[]){"generate", "-", "--stats", NULL});
	assert_int_equal(s.exit, CTL_OK);
	assert_non_null(strstr(s.err, "prompt 5 tokens, first token after "));
	assert_non_null(strstr(s.err, "tokens/s, ended by stop\n"));
	assert_non_null(strstr(s.err, "\nNVMe 1.0K per token, achieved/bound 0.50, binding resource: disk\n"));
	drop(&s);
	Thaw__V1__GenerateRequest *q = sent_request();
	assert_string_equal(q->prompt->text, "from a pipe\n");
	thaw__v1__generate_request__free_unpacked(q, NULL);
}

static void generate_json_has_everything(void **state)
{
	struct chunks k;
	answer_generation(&k);
	struct json_object *o = parse_json(RUN("generate", "x", "-o", "json"));
	struct json_object *first = json_object_array_get_idx(json_object_object_get(o, "outputs"), 0);
	assert_string_equal(json_object_get_string(json_object_object_get(first, "text")), " Paris.");
	assert_string_equal(json_object_get_string(json_object_object_get(first, "finish")), "stop");
	assert_int_equal(json_object_array_length(json_object_object_get(first, "token_ids")), 3);
	struct json_object *figures = json_object_object_get(o, "figures");
	assert_int_equal(json_object_get_int64(json_object_object_get(figures, "nvme_bytes_per_token")), 1000);
	assert_string_equal(json_object_get_string(json_object_object_get(figures, "binding")), "disk");
	json_object_put(o);
}

static void an_answer_that_is_cut_by_the_context_says_so(void **state)
{
	struct chunks k;
	answer_generation(&k);
	k.outputs[2].finish = THAW__V1__FINISH_REASON__LENGTH;
	k.info.max_new_tokens = 3;
	expect(RUN("generate", "x", "-n", "5000"), CTL_OK, " Paris.\n",
		"thawctl: cut after 3 of 5000 tokens: the context or scheduler.max_new_tokens has no room for more\n");
	forget(NULL);
	answer_generation(&k);
	k.outputs[2].finish = THAW__V1__FINISH_REASON__LENGTH;
	k.info.max_new_tokens = 3;
	expect(RUN("generate", "x", "-n", "3"), CTL_OK, " Paris.\n", "");
}

static void progress_in_a_log_repeats_no_words(void **state)
{
	char *text = NULL;
	size_t bytes = 0;
	struct ctl c = {.err = open_memstream(&text, &bytes)};
	struct ctl_progress p = {.ctl = &c};
	static const uint64_t done[][2] = {{0, 0}, {0, 0}, {512, 1024}, {0, 0}};
	for (size_t i = 0; i < base_array_size(done); i++) {
		p.shown_ns = 1; // long ago
		ctl_progress_show(&p, i < 3 ? "load" : "ready", done[i][0], done[i][1], 0);
	}
	fclose(c.err);
	assert_string_equal(text, "load\nload  50 % 512B of 1.0K\nready\n");
	free(text);
}

static void a_stream_that_breaks_shows_what_came_and_fails(void **state)
{
	struct chunks k;
	answer_generation(&k);
	fake.answers[0].count = 1;
	fake.answers[0].code = 15;
	fake.answers[0].message = "extent 7 does not match its checksum";
	expect(RUN("generate", "x"), CTL_ERROR, " Paris\n", "thawctl: extent 7 does not match its checksum\n");
}

static void chat_keeps_the_conversation(void **state)
{
	struct chunks k;
	answer_generation(&k);
	struct shown s = run_with(
		"first\n\nsecond\n/exit\nnot sent\n", (const char *const[]){"chat", "--system", "be brief", NULL});
	assert_int_equal(s.exit, CTL_OK);
	assert_string_equal(s.out, " Paris.\n Paris.\n");
	drop(&s);
	assert_int_equal(fake.requests_count, 2);
	Thaw__V1__GenerateRequest *q =
		thaw__v1__generate_request__unpack(NULL, fake.requests[1].count, fake.requests[1].bytes);
	static const char *const wanted[][2] = {
		{"system", "be brief"}, {"user", "first"}, {"assistant", " Paris."}, {"user", "second"}};
	assert_int_equal(q->prompt->chat->n_messages, base_array_size(wanted));
	for (size_t i = 0; i < base_array_size(wanted); i++) {
		assert_string_equal(q->prompt->chat->messages[i]->role, wanted[i][0]);
		assert_string_equal(q->prompt->chat->messages[i]->content, wanted[i][1]);
	}
	thaw__v1__generate_request__free_unpacked(q, NULL);
}

/* eval: 11 tokens, the first one BOS, context 4: chunks 0-3 and 4-7; each counts one score (position 3). */
static void eval_counts_the_second_half_of_each_chunk(void **state)
{
	Thaw__V1__Model m = smol();
	m.bos_opt_case = THAW__V1__MODEL__BOS_OPT_BOS_TOKEN_ID;
	m.bos_token_id = 1;
	uint32_t ids[] = {1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19};
	Thaw__V1__TokenizeReply tokens = THAW__V1__TOKENIZE_REPLY__INIT;
	tokens.token_ids = ids;
	tokens.n_token_ids = base_array_size(ids);
	Thaw__V1__TokenScore score = THAW__V1__TOKEN_SCORE__INIT, *scores[] = {&score};
	score.position = 3;
	score.logprob = -2;
	Thaw__V1__ScoreReply reply = THAW__V1__SCORE_REPLY__INIT;
	reply.scores = scores;
	reply.n_scores = 1;
	answer("/thaw.v1.Inference/GetModel", &m);
	answer("/thaw.v1.Inference/Tokenize", &tokens);
	answer("/thaw.v1.Inference/Score", &reply);
	struct json_object *o = parse_json(RUN("eval", "--text", "/etc/os-release", "--context", "4", "-o", "json"));
	double perplexity = json_object_get_double(json_object_object_get(o, "perplexity"));
	assert_true(perplexity > 7.3890 && perplexity < 7.3891); // e^2
	assert_int_equal(json_object_get_int(json_object_object_get(o, "counted_tokens")), 2);
	json_object_put(o);

	static const uint32_t chunks[2][4] = {{1, 10, 11, 12}, {1, 14, 15, 16}}; // BOS takes the first place
	assert_int_equal(fake.requests_count, 4);
	for (size_t i = 0; i < 2; i++) {
		Thaw__V1__ScoreRequest *q =
			thaw__v1__score_request__unpack(NULL, fake.requests[2 + i].count, fake.requests[2 + i].bytes);
		assert_int_equal(q->first_token, 3);
		assert_int_equal(q->prompt->token_ids->n_ids, 4);
		assert_memory_equal(q->prompt->token_ids->ids, chunks[i], sizeof chunks[i]);
		thaw__v1__score_request__free_unpacked(q, NULL);
	}
	expect(RUN("eval", "--text", "/etc/os-release"), CTL_ERROR, "",
		"thawctl: /etc/os-release has 11 tokens, less than one chunk of 512\n");
	expect(RUN("eval", "--text", "/nowhere"), CTL_NOT_FOUND, "", "thawctl: /nowhere: No such file or directory\n");
}

static void tokenize_and_detokenize(void **state)
{
	uint32_t ids[] = {5, 6};
	uint8_t bytes[] = {0xc3, 'a'};
	ProtobufCBinaryData pieces[] = {{1, bytes}, {1, bytes + 1}};
	Thaw__V1__TokenizeReply tokens = THAW__V1__TOKENIZE_REPLY__INIT;
	tokens.token_ids = ids;
	tokens.n_token_ids = 2;
	tokens.pieces = pieces;
	tokens.n_pieces = 2;
	answer("/thaw.v1.Inference/Tokenize", &tokens);
	expect(RUN("tokenize", "--", "-x"), CTL_OK, "5 6\n", "");
	expect(RUN("tokenize", "x", "--pieces"), CTL_OK, "TOKEN  TEXT\n    5  \"\\xc3\"\n    6  \"a\"\n", "");
	Thaw__V1__DetokenizeReply text = THAW__V1__DETOKENIZE_REPLY__INIT;
	text.text = (char *)"hello";
	answer("/thaw.v1.Inference/Detokenize", &text);
	expect(RUN("detokenize", "5", "6,7"), CTL_OK, "hello\n", "");
	Thaw__V1__DetokenizeRequest *q =
		thaw__v1__detokenize_request__unpack(NULL, fake.requests[0].count, fake.requests[0].bytes);
	assert_int_equal(q->n_token_ids, 3);
	assert_int_equal(q->token_ids[2], 7);
	thaw__v1__detokenize_request__free_unpacked(q, NULL);
}

static void placement_shows_where_the_bytes_are(void **state)
{
	Thaw__Admin__V1__Shard shard = THAW__ADMIN__V1__SHARD__INIT, *shards[] = {&shard};
	Thaw__Admin__V1__Plan plan = THAW__ADMIN__V1__PLAN__INIT;
	Thaw__Admin__V1__PlanInput input = THAW__ADMIN__V1__PLAN_INPUT__INIT;
	Thaw__Admin__V1__Placement p = THAW__ADMIN__V1__PLACEMENT__INIT, *list[] = {&p};
	Thaw__Admin__V1__GetPlacementReply reply = THAW__ADMIN__V1__GET_PLACEMENT_REPLY__INIT;
	shard.last_layer = 29;
	shard.device = (char *)"cpu";
	shard.hot_bytes = 40 << 20;
	shard.cold_bytes = 60 << 20;
	shard.slot_bytes = 8 << 20;
	shard.kv_bytes = 1 << 30;
	shard.engine = (char *)"uring";
	shard.direct_io = true;
	plan.tokens_per_second_one = 25;
	plan.tokens_per_second_full = 100;
	plan.binding_one = (char *)"disk";
	plan.binding_full = (char *)"compute";
	plan.lift = (char *)"60 MiB more for weights";
	input.sequences = 8;
	p.model = (char *)"smol";
	p.plan = &plan;
	p.input = &input;
	p.shards = shards;
	p.n_shards = 1;
	p.explanation = (char *)"because\n";
	reply.placements = list;
	reply.n_placements = 1;
	answer("/thaw.admin.v1.Admin/GetPlacement", &reply);
	expect(RUN("placement", "--explain"), CTL_OK,
		"MODEL  STAGE  TP  LAYERS  DEV    HOT   COLD  STREAM    KV  WORKSPACE  HOT%  ENGINE\n"
		"smol       0   0  0-29    cpu  40.0M  60.0M    8.0M  1.0G          -  40 %  uring+direct\n"
		"smol: 25.0 tokens/s for one stream (disk), 100.0 for 8 (compute); 60 MiB more for weights\n"
		"because\n",
		"");
	Thaw__Admin__V1__Shard there = shard, *both[] = {&shard, &there};
	shard.node = (char *)"a";
	there.node = (char *)"b";
	there.stage = 1;
	p.shards = both;
	p.n_shards = 2;
	answer("/thaw.admin.v1.Admin/GetPlacement", &reply);
	expect(RUN("placement"), CTL_OK,
		"MODEL  STAGE  TP  LAYERS  NODE  DEV    HOT   COLD  STREAM    KV  WORKSPACE  HOT%  ENGINE\n"
		"smol       0   0  0-29    a     cpu  40.0M  60.0M    8.0M  1.0G          -  40 %  uring+direct\n"
		"smol       1   0  0-29    b     cpu  40.0M  60.0M    8.0M  1.0G          -  40 %  uring+direct\n"
		"smol: 25.0 tokens/s for one stream (disk), 100.0 for 8 (compute); 60 MiB more for weights\n",
		"");
	answer("/thaw.admin.v1.Admin/GetPlacement", &reply);
	struct shown s = RUN("placement", "-o", "svg");
	assert_int_equal(s.exit, CTL_OK);
	assert_int_equal(strncmp(s.out, "<svg ", 5), 0);
	assert_non_null(strstr(s.out, "stage 0, layers 0-29"));
	assert_non_null(strstr(s.out, "<title>on the drive 60.0 MiB</title>"));
	drop(&s);
	Thaw__Admin__V1__Placement *two[] = {&p, &p};
	reply.placements = two;
	reply.n_placements = 2;
	answer("/thaw.admin.v1.Admin/GetPlacement", &reply);
	expect(RUN("placement", "-o", "svg"), CTL_USAGE, "",
		"thawctl: -o svg draws one model, and 2 are loaded: name it\n");
}

static void names_cannot_play_with_the_terminal(void **state)
{
	Thaw__V1__Model a = smol(), *list[] = {&a};
	a.name = (char *)"x\033[2Jy\nz";
	Thaw__V1__ListModelsReply reply = THAW__V1__LIST_MODELS_REPLY__INIT;
	reply.models = list;
	reply.n_models = 1;
	answer("/thaw.v1.Inference/ListModels", &reply);
	struct shown s = RUN("models", "--no-headers");
	assert_int_equal(strncmp(s.out, "x?[2Jy?z  ready", 15), 0);
	drop(&s);
}

static void bench_counts_what_came(void **state)
{
	struct chunks k;
	Thaw__V1__Model m = smol();
	answer_generation(&k);
	answer("/thaw.v1.Inference/GetModel", &m);
	struct json_object *o = parse_json(RUN("bench", "--streams", "4", "-n", "3", "-o", "json"));
	assert_int_equal(json_object_get_int(json_object_object_get(o, "generated_tokens")), 12);
	assert_int_equal(json_object_get_int(json_object_object_get(o, "streams")), 4);
	// From the answers, which are whole when they end: the daemon's own counters are a second old.
	assert_int_equal(json_object_get_int64(json_object_object_get(o, "nvme_read_bytes")), 4 * 3 * 1000);
	assert_string_equal(json_object_get_string(json_object_object_get(o, "binding")), "disk");
	json_object_put(o);
	expect(RUN("bench", "--streams", "0"), CTL_USAGE, "",
		"thawctl: bench: 1 to 256 streams, 1 to 1048576 tokens\n");
}

static void events_are_lines_or_json_lines(void **state)
{
	Thaw__Admin__V1__Event e = THAW__ADMIN__V1__EVENT__INIT;
	e.sequence = 3;
	e.severity = (char *)"warning";
	e.kind = (char *)"rank-lost";
	e.model = (char *)"smol";
	e.text = (char *)"rank 0 died of signal 9";
	fake.answers[fake.answers_count++] =
		(struct fake_answer){.method = "/thaw.admin.v1.Admin/WatchEvents", .messages = {&e, &e}, .count = 2};
	struct shown s = RUN("events", "-o", "json");
	assert_int_equal(s.exit, CTL_OK);
	char *second = strchr(s.out, '\n') + 1;
	struct json_object *o = json_tokener_parse(second);
	assert_string_equal(json_object_get_string(json_object_object_get(o, "kind")), "rank-lost");
	assert_int_equal(strchr(second, '\n')[1], '\0');
	json_object_put(o);
	drop(&s);
	s = RUN("events");
	assert_non_null(strstr(s.out, "  warning  rank-lost        smol: rank 0 died of signal 9\n"));
	drop(&s);
}

static void every_verb_has_help_and_known_options(void **state)
{
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		struct shown s = RUN("help", ctl_verbs[i].name);
		assert_int_equal(s.exit, CTL_OK);
		assert_non_null(strstr(s.out, ctl_verbs[i].help));
		drop(&s);
		s = RUN(ctl_verbs[i].name, "--help");
		assert_int_equal(s.exit, CTL_OK);
		drop(&s);
		char names[512];
		snprintf(names, sizeof names, "%s", ctl_verbs[i].options);
		char *save = NULL;
		for (char *name = strtok_r(names, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
			size_t k = 0;
			while (k < ctl_option_count && strcmp(ctl_option_table[k].name, name) != 0)
				k++;
			if (k == ctl_option_count)
				fail_msg("%s: no option %s", ctl_verbs[i].name, name);
			assert_true(ctl_option_of_verb(&ctl_option_table[k], &ctl_verbs[i]));
		}
	}
}

static void help_without_a_verb_is_the_list(void **state)
{
	struct shown list = RUN("help"), s = RUN("--help");
	assert_int_equal(s.exit, CTL_OK);
	assert_string_equal(s.out, list.out);
	assert_non_null(strstr(s.out, "Verbs:"));
	drop(&s);
	drop(&list);
	s = run_with("", (const char *const[]){NULL}); // no verb at all is a mistake, in a script above all
	assert_int_equal(s.exit, CTL_USAGE);
	assert_string_equal(s.out, "");
	assert_non_null(strstr(s.err, "Verbs:"));
	drop(&s);
	s = RUN("help", "plan");
	assert_non_null(strstr(s.out, "plan --fleet: sequences of a full batch (default: 8)"));
	assert_non_null(strstr(s.out, "plan --fleet: of a sequence"));
	drop(&s);
}

static void pki_makes_certificates_once(void **state)
{
	char folder[] = "/tmp/thaw-ctl-XXXXXX", want[128];
	assert_non_null(mkdtemp(folder));
	struct shown s = RUN("pki", "init", "--dir", folder, "--cluster", "lab");
	snprintf(want, sizeof want, "%s/ca.crt\n%s/ca.key\n", folder, folder);
	assert_int_equal(s.exit, CTL_OK);
	assert_string_equal(s.out, want);
	drop(&s);
	s = RUN("pki", "init", "--dir", folder);
	assert_int_equal(s.exit, CTL_ERROR);
	assert_non_null(strstr(s.err, "there already"));
	drop(&s);
	json_object_put(parse_json(
		RUN("pki", "node", "a", "--dir", folder, "--address", "10.0.0.1", "--role", "worker", "-o", "json")));
	struct json_object *o = parse_json(RUN("pki", "check", "a", "--dir", folder, "-o", "json"));
	assert_string_equal(json_object_get_string(json_object_object_get(o, "cluster")), "lab");
	assert_string_equal(json_object_get_string(json_object_object_get(o, "role")), "worker");
	json_object_put(o);
	s = RUN("pki", "node", "b", "--dir", folder, "--address", "10.0.0.1:5");
	assert_int_equal(s.exit, CTL_USAGE);
	drop(&s);
	s = RUN("pki", "check", "b", "--dir", folder);
	assert_int_equal(s.exit, CTL_NOT_FOUND);
	drop(&s);
	static const char *const files[] = {"ca.crt", "ca.key", "a.crt", "a.key"};
	for (size_t i = 0; i < base_array_size(files); i++) {
		snprintf(want, sizeof want, "%s/%s", folder, files[i]);
		assert_int_equal(remove(want), 0);
	}
	assert_int_equal(remove(folder), 0);
}

static const char *state_of(struct json_object *o, const char *check)
{
	struct json_object *list = json_object_object_get(o, "checks");
	for (size_t i = 0; i < json_object_array_length(list); i++) {
		struct json_object *f = json_object_array_get_idx(list, i);
		const char *state = json_object_get_string(json_object_object_get(f, "state"));
		if (strcmp(json_object_get_string(json_object_object_get(f, "check")), check) != 0)
			continue;
		// whatever is not well says what would help
		assert_int_equal(
			strcmp(state, "ok") != 0, json_object_get_string_len(json_object_object_get(f, "help")) > 0);
		return state;
	}
	return "missing";
}

static void doctor_says_what_is_wrong_and_what_helps(void **state)
{
	static const char *const checks[] = {
		"store", "space", "direct_io", "kernel", "io_uring", "huge_pages", "memlock", "cpu", "daemon"};
	Thaw__Admin__V1__GetServerInfoReply info = THAW__ADMIN__V1__GET_SERVER_INFO_REPLY__INIT;
	char folder[] = "/tmp/thaw-doctor-XXXXXX";
	assert_non_null(mkdtemp(folder));
	info.version = (char *)THAW_VERSION;
	info.ready = true;
	answer("/thaw.admin.v1.Admin/GetServerInfo", &info);
	struct json_object *o = parse_json(
		RUN("doctor", "-o", "json", "--config", "/dev/null", "--conf-dir", folder, "--set", "store.path=/tmp"));
	assert_string_equal(state_of(o, "config"), "ok");
	assert_string_equal(state_of(o, "store"), "ok");
	assert_string_equal(state_of(o, "daemon"), "ok");
	for (size_t i = 0; i < sizeof checks / sizeof *checks; i++)
		assert_string_not_equal(state_of(o, checks[i]), "missing");
	json_object_put(o);

	answer_status("/thaw.admin.v1.Admin/GetServerInfo", 14, "", "nobody");
	struct shown s = RUN("doctor", "--config", "/dev/null", "--conf-dir", folder, "--set",
		"store.path=/not/there/at-all", "--set", "models.0.path=/not/there.gguf");
	assert_int_equal(s.exit, CTL_ERROR);
	assert_non_null(strstr(s.out, "mount its drive, or correct store.path"));
	assert_non_null(strstr(s.out, "/not/there.gguf: No such file"));
	assert_non_null(strstr(s.out, "no daemon answers"));
	drop(&s);
	answer_status("/thaw.admin.v1.Admin/GetServerInfo", 14, "", "nobody");
	s = RUN("doctor", "--config", "/dev/null", "--conf-dir", folder, "--set", "stroe.path=/tmp");
	assert_int_equal(s.exit, CTL_ERROR);
	assert_non_null(strstr(s.out, "stroe"));
	drop(&s);
	rmdir(folder);
}

static void reload_and_explain_print_what_the_daemon_says(void **state)
{
	Thaw__Admin__V1__ReloadConfigReply reply = THAW__ADMIN__V1__RELOAD_CONFIG_REPLY__INIT;
	reply.text = (char *)"store.path has changed too: that needs a restart";
	answer("/thaw.admin.v1.Admin/ReloadConfig", &reply);
	struct shown s = RUN("reload");
	assert_int_equal(s.exit, CTL_OK);
	assert_string_equal(s.out, "store.path has changed too: that needs a restart\n");
	drop(&s);
	Thaw__Admin__V1__Placement p = THAW__ADMIN__V1__PLACEMENT__INIT, *list[] = {&p};
	Thaw__Admin__V1__GetPlacementReply places = THAW__ADMIN__V1__GET_PLACEMENT_REPLY__INIT;
	p.model = (char *)"m";
	p.explanation = (char *)"weights 12 MiB hot\n";
	places.n_placements = 1;
	places.placements = list;
	answer("/thaw.admin.v1.Admin/GetPlacement", &places);
	s = RUN("explain", "m");
	assert_int_equal(s.exit, CTL_OK);
	assert_string_equal(s.out, "weights 12 MiB hot\n");
	drop(&s);
}

static void relative_paths_are_of_this_machine(void **state)
{
	char folder[] = "/tmp/thaw-ctl-XXXXXX", was[512], want[64];
	assert_non_null(getcwd(was, sizeof was));
	assert_non_null(mkdtemp(folder));
	assert_int_equal(chdir(folder), 0);
	assert_int_equal(symlink("/dev/null", "m.gguf"), 0);
	answer_status("/thaw.admin.v1.Admin/PlanPlacement", 9, "DOES_NOT_FIT", "12 MiB short");
	const char *const words[] = {"plan", "load"};
	for (size_t i = 0; i < 2; i++) {
		expect(RUN(words[i], "typo.gguf"), CTL_NOT_FOUND, "",
			"thawctl: typo.gguf: No such file or directory\n");
		assert_int_equal(fake.requests_count, 0);
	}
	expect(RUN("plan", "typo.gguf", "--server", "far:1"), CTL_NOT_FOUND, "",
		"thawctl: typo.gguf: No such file or directory; of a file that far:1 has, give the absolute path\n");
	static const char *const cases[][2] = {{"m.gguf", NULL}, {"./m.gguf", NULL}, {"/typo.gguf", "/typo.gguf"}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		snprintf(want, sizeof want, "%s/m.gguf", folder);
		expect(RUN("plan", cases[i][0]), CTL_DOES_NOT_FIT, "", "thawctl: 12 MiB short\n");
		assert_int_equal(fake.requests_count, 1);
		Thaw__Admin__V1__PlanPlacementRequest *q = thaw__admin__v1__plan_placement_request__unpack(
			NULL, fake.requests[0].count, fake.requests[0].bytes);
		assert_string_equal(q->path, cases[i][1] ? cases[i][1] : want);
		thaw__admin__v1__plan_placement_request__free_unpacked(q, NULL);
	}
	unlink("m.gguf");
	assert_int_equal(chdir(was), 0);
	rmdir(folder);
}

static void top_has_a_row_for_each_rank_of_several(void **state)
{
	Thaw__Admin__V1__RankLoad ranks[2] = {THAW__ADMIN__V1__RANK_LOAD__INIT, THAW__ADMIN__V1__RANK_LOAD__INIT};
	Thaw__Admin__V1__RankLoad *list[] = {&ranks[0], &ranks[1]};
	Thaw__Admin__V1__ModelLoad model = THAW__ADMIN__V1__MODEL_LOAD__INIT, *models[] = {&model};
	Thaw__Admin__V1__GetLoadReply reply = THAW__ADMIN__V1__GET_LOAD_REPLY__INIT;
	for (uint32_t i = 0; i < 2; i++) {
		ranks[i].node = (char *)(i ? "other" : "head");
		ranks[i].stage = i;
		ranks[i].passes = 10;
		ranks[i].pass_ns = 1000000000;
		ranks[i].compute_ns = i ? 250000000 : 900000000;
	}
	ranks[1].tp_rank = 1;
	ranks[1].stall_ns = 500000000;
	ranks[1].read_bytes = 2500000000;
	model.model = (char *)"smol";
	model.state = THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_READY;
	model.ranks = list;
	model.n_ranks = 2;
	reply.models = models;
	reply.n_models = 1;
	reply.wall_ns = 7;
	answer("/thaw.admin.v1.Admin/GetLoad", &reply);
	static const char row[] =
		"MODEL  RUN  WAIT  TTFTp95  ITLp95  TOK/S  KV%  BUBBLE%  STALL%     NVMe  OF-BOUND  BINDS  STATE\n"
		"smol     0     0        -       -    0.0    0       42      25  1.2GB/s      0.00  -      ready\n";
	char both[1024];
	snprintf(both, sizeof both, "%s%s", row,
		"\nNODE   MODEL  STAGE  BUSY%  BUBBLE%  STALL%     NVMe\n"
		"head   smol   0.0       90       10       0        -\n"
		"other  smol   1.1       25       75      50  2.5GB/s\n");
	expect(RUN("top", "--once"), CTL_OK, both, "");
	struct json_object *o = parse_json(RUN("top", "--once", "-o", "json"));
	struct json_object *m = json_object_array_get_idx(json_object_object_get(o, "models"), 0);
	struct json_object *r = json_object_array_get_idx(json_object_object_get(m, "ranks"), 1);
	assert_string_equal(json_object_get_string(json_object_object_get(r, "node")), "other");
	assert_int_equal(json_object_get_int(json_object_object_get(r, "tp_rank")), 1);
	json_object_put(o);
	model.n_ranks = 1; // says no more than its model does
	struct shown s = RUN("top", "--once");
	assert_null(strstr(s.out, "BUSY%"));
	drop(&s);
}

static void topology_shows_all_nodes_of_a_cluster(void **state)
{
	Thaw__Admin__V1__Device gpu = THAW__ADMIN__V1__DEVICE__INIT, *devices[] = {&gpu};
	Thaw__Admin__V1__Machine a = THAW__ADMIN__V1__MACHINE__INIT, b = a, *machines[] = {&a, &b};
	Thaw__Admin__V1__NodeLink link = THAW__ADMIN__V1__NODE_LINK__INIT, *links[] = {&link};
	Thaw__Admin__V1__PlanLink plan = THAW__ADMIN__V1__PLAN_LINK__INIT;
	Thaw__Admin__V1__Bandwidths rates = THAW__ADMIN__V1__BANDWIDTHS__INIT;
	Thaw__Admin__V1__GetTopologyReply t = THAW__ADMIN__V1__GET_TOPOLOGY_REPLY__INIT;
	gpu.kind = THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_GPU;
	gpu.name = (char *)"gpu0";
	gpu.size_bytes = 80ull << 30;
	rates.drive_bytes_per_second = 2e9;
	rates.measured_wall_ns = 1;
	a.name = (char *)"node-a";
	a.host = (char *)"hosta";
	a.cpu_model = (char *)"EPYC";
	a.state = (char *)"ready";
	a.coordinator = true;
	a.packages = 1;
	a.cores = 8;
	a.cpus = 16;
	a.memory_bytes = a.memory_limit_bytes = a.memory_available_bytes = 8ull << 30;
	a.devices = devices;
	a.n_devices = 1;
	a.bandwidths = &rates;
	b.name = (char *)"node-b";
	b.state = (char *)"lost";
	b.why = (char *)"no heartbeat";
	link.node_a = a.name;
	link.node_b = b.name;
	link.class_ = (char *)"cluster";
	plan.latency_ns = 50e3;
	plan.bytes_per_second = 1e9;
	plan.links = 1;
	t.cluster = (char *)"lab";
	t.machines = machines;
	t.n_machines = 2;
	t.links = links;
	t.n_links = 1;
	t.plan_link = &plan;
	answer("/thaw.admin.v1.Admin/GetTopology", &t);
	expect(RUN("topology"), CTL_OK,
		"NODE     STATE  PACKAGES  CORES  CPUS  INSTALLED  USABLE  FREE    DRIVE  MEMORY  COMPUTE  CPU   "
		"DETAIL\n"
		"node-a*  ready         1      8    16       8.0G    8.0G  8.0G  2.0GB/s       -        -  EPYC  \n"
		"node-b   lost          -      -     -          -       -     -        -       -        -  -     no "
		"heartbeat\n"
		"\n"
		"NODE     KIND  NAME  NUMA   SIZE  CPUS  MODEL\n"
		"node-a*  gpu   gpu0     0  80.0G     -  -\n"
		"\n"
		"LINK            CLASS    LATENCY  BANDWIDTH  MEASURED      ERROR\n"
		"node-a  node-b  cluster        -          -  not: assumed  \n"
		"plans count 50us and 1.0GB/s for every link: assumed, none of 1 was measured\n",
		"");
	struct shown s = RUN("topology", "-o", "svg");
	assert_int_equal(s.exit, CTL_OK);
	static const char *const texts[] = {"cluster lab: 2 machines, 1 link<", ">node-a<", ">coordinator, ready<",
		">lost: no heartbeat<", ">gpu0  80.0 GiB<", ">cluster, not measured<", "class=\"wire assumed\""};
	for (size_t i = 0; i < base_array_size(texts); i++) {
		if (!strstr(s.out, texts[i]))
			fail_msg("no %s in\n%s", texts[i], s.out);
	}
	drop(&s);
	plan.measured = 1;
	link.latency_ns = plan.latency_ns = 20e3;
	link.bytes_per_second = plan.bytes_per_second = 2e9;
	answer("/thaw.admin.v1.Admin/GetTopology", &t);
	s = RUN("topology");
	assert_non_null(strstr(
		s.out, "\nplans count 20us and 2.0GB/s for every link: the slowest of 1 that were measured, of 1\n"));
	drop(&s);
	/* In racks: where each stands, and what counts inside and between them. */
	Thaw__Admin__V1__PlanLink inside = plan, between = plan, *plans[] = {&inside, &between};
	inside.class_ = (char *)"rack";
	between.class_ = (char *)"cluster";
	between.measured = 0;
	a.rack = (char *)"east";
	t.plan_links = plans;
	t.n_plan_links = 2;
	answer("/thaw.admin.v1.Admin/GetTopology", &t);
	s = RUN("topology");
	assert_non_null(strstr(s.out, "NODE     RACK  STATE "));
	assert_non_null(strstr(s.out, "\nnode-a*  east  ready "));
	assert_non_null(strstr(s.out, "\nnode-b   -     lost "));
	assert_non_null(
		strstr(s.out, "\nplans count 20us and 2.0GB/s for every link of class rack: the slowest of 1 that "
			      "were measured, of 1\nplans count 20us and 2.0GB/s for every link of class cluster: "
			      "as of the others, none of 1 was measured\n"));
	assert_null(strstr(s.out, "every link: "));
	drop(&s);
	s = RUN("topology", "-o", "svg");
	assert_non_null(strstr(s.out, ">rack east, coordinator, ready<"));
	drop(&s);
	Thaw__Admin__V1__Node node = THAW__ADMIN__V1__NODE__INIT, *nodes[] = {&node};
	Thaw__Admin__V1__GetNodesReply n = THAW__ADMIN__V1__GET_NODES_REPLY__INIT;
	node.name = (char *)"node-a";
	node.state = (char *)"ready";
	n.nodes = nodes;
	n.n_nodes = 1;
	answer("/thaw.admin.v1.Admin/GetNodes", &n);
	s = RUN("nodes");
	assert_memory_equal(s.out, "NODE    STATE ", 14);
	drop(&s);
	node.rack = (char *)"east";
	answer("/thaw.admin.v1.Admin/GetNodes", &n);
	s = RUN("nodes");
	assert_memory_equal(s.out, "NODE    RACK  STATE ", 20);
	assert_non_null(strstr(s.out, "\nnode-a  east  ready "));
	drop(&s);
}

/* What a daemon that means ill may send: more machines, links and parts than there is room for, and names that lead
 * nowhere. */
static void a_drawing_is_bounded(void **state)
{
	enum { MACHINES = 70, LINKS = 300, PARTS = 65 };
	static Thaw__Admin__V1__Machine machines[MACHINES], *machine_list[MACHINES];
	static Thaw__Admin__V1__NodeLink links[LINKS], *link_list[LINKS];
	static char names[MACHINES][8];
	Thaw__Admin__V1__GetTopologyReply t = THAW__ADMIN__V1__GET_TOPOLOGY_REPLY__INIT;
	for (int i = 0; i < MACHINES; i++) {
		thaw__admin__v1__machine__init(machine_list[i] = &machines[i]);
		snprintf(names[i], sizeof names[i], "n%d", i);
		machines[i].name = names[i];
	}
	for (int i = 0; i < LINKS; i++) {
		thaw__admin__v1__node_link__init(link_list[i] = &links[i]);
		links[i].node_a = names[i % MACHINES];
		links[i].node_b =
			i < 20 ? (char *)"nobody" : names[i * 7 % MACHINES]; // some join a machine with itself
		links[i].bytes_per_second = i % 3 ? 1e300 : -1;
		links[i].latency_ns = i % 2 ? 1e300 : -1e300;
	}
	t.machines = machine_list;
	t.n_machines = MACHINES;
	t.links = link_list;
	t.n_links = LINKS;
	answer("/thaw.admin.v1.Admin/GetTopology", &t);
	struct shown s = RUN("topology", "-o", "svg");
	assert_int_equal(s.exit, CTL_OK);
	assert_non_null(strstr(s.out, ">n63<"));
	assert_null(strstr(s.out, ">n64<"));
	assert_non_null(strstr(s.out, ">and 6 more<"));
	drop(&s);

	Thaw__Admin__V1__Device drive = THAW__ADMIN__V1__DEVICE__INIT, *drives[PARTS];
	for (int i = 0; i < PARTS; i++)
		drives[i] = &drive;
	machines[0].devices = drives;
	machines[0].n_devices = PARTS;
	expect(RUN("topology", "-o", "svg"), CTL_ERROR, "",
		"thawctl: the machines cannot be drawn: devices: more than 64 drives\n");
}

static void completion_is_a_script_that_bash_reads(void **state)
{
	struct shown s = RUN("completion", "bash");
	FILE *bash = popen("bash -n", "w");
	if (!bash)
		skip();
	fputs(s.out, bash);
	assert_int_equal(pclose(bash), 0);
	for (size_t i = 0; i < ctl_verbs_count; i++)
		assert_non_null(strstr(s.out, ctl_verbs[i].name));
	drop(&s);
	s = RUN("completion", "fish");
	assert_non_null(strstr(s.out, "complete -c thawctl -n '__fish_seen_subcommand_from generate' -l seed"));
	drop(&s);
	s = RUN("completion", "zsh");
	assert_int_equal(strncmp(s.out, "#compdef thawctl\n", 17), 0);
	drop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(wrong_command_lines_end_with_2, forget),
		cmocka_unit_test_setup(failures_have_their_exit_codes, forget),
		cmocka_unit_test_setup(models_are_a_table_or_json, forget),
		cmocka_unit_test_setup(status_ends_with_6_when_degraded, forget),
		cmocka_unit_test_setup(generate_streams_text_and_sends_its_options, forget),
		cmocka_unit_test_setup(generate_takes_and_prints_token_ids, forget),
		cmocka_unit_test_setup(generate_reads_standard_input_and_tells_figures, forget),
		cmocka_unit_test_setup(generate_json_has_everything, forget),
		cmocka_unit_test(progress_in_a_log_repeats_no_words),
		cmocka_unit_test_setup(an_answer_that_is_cut_by_the_context_says_so, forget),
		cmocka_unit_test_setup(a_stream_that_breaks_shows_what_came_and_fails, forget),
		cmocka_unit_test_setup(chat_keeps_the_conversation, forget),
		cmocka_unit_test_setup(eval_counts_the_second_half_of_each_chunk, forget),
		cmocka_unit_test_setup(tokenize_and_detokenize, forget),
		cmocka_unit_test_setup(placement_shows_where_the_bytes_are, forget),
		cmocka_unit_test_setup(names_cannot_play_with_the_terminal, forget),
		cmocka_unit_test_setup(bench_counts_what_came, forget),
		cmocka_unit_test_setup(events_are_lines_or_json_lines, forget),
		cmocka_unit_test_setup(every_verb_has_help_and_known_options, forget),
		cmocka_unit_test_setup(help_without_a_verb_is_the_list, forget),
		cmocka_unit_test_setup(pki_makes_certificates_once, forget),
		cmocka_unit_test_setup(doctor_says_what_is_wrong_and_what_helps, forget),
		cmocka_unit_test_setup(reload_and_explain_print_what_the_daemon_says, forget),
		cmocka_unit_test_setup(relative_paths_are_of_this_machine, forget),
		cmocka_unit_test_setup(top_has_a_row_for_each_rank_of_several, forget),
		cmocka_unit_test_setup(topology_shows_all_nodes_of_a_cluster, forget),
		cmocka_unit_test_setup(a_drawing_is_bounded, forget),
		cmocka_unit_test_setup(completion_is_a_script_that_bash_reads, forget),
	};
	return cmocka_run_group_tests_name("ctl", tests, NULL, NULL);
}
