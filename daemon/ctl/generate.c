// SPDX-License-Identifier: Apache-2.0
// generate, chat.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/prompt.h"

#define GENERATE_TOKENS 256u
#define CHAT_TOKENS 1024u
#define CHAT_MAX_MESSAGES 1024u

// What can be shown at once: the answer is one, and is text or ids.
static bool show_live(struct ctl *c, const Thaw__V1__GenerateChunk *chunk)
{
	bool shown = false;
	for (size_t i = 0; i < chunk->n_outputs; i++) {
		const Thaw__V1__Output *o = chunk->outputs[i];
		shown |= o->n_token_ids || o->text[0] ||
			 (o->finish && o->finish != THAW__V1__FINISH_REASON__ABORTED); // an empty answer is a line
		if (!c->options.token_ids)
			fputs(o->text, c->out);
		for (size_t t = 0; c->options.token_ids && t < o->n_token_ids; t++)
			fprintf(c->out, "%" PRIu32 " ", o->token_ids[t]);
	}
	fflush(c->out);
	return shown;
}

// An answer that ends because there is no room for more is no answer that is complete.
static void say_cut(struct ctl *c, const struct ctl_run *run)
{
	bool cut = false;
	for (uint32_t i = 0; i < run->answers_count; i++)
		cut |= run->answers[i].finish == THAW__V1__FINISH_REASON__LENGTH;
	if (cut && run->max_new_tokens && run->max_new_tokens < c->options.max_tokens)
		ctl_say(c,
			"thawctl: cut after %" PRIu32 " of %" PRIu32
			" tokens: the context or scheduler.max_new_tokens has no room for more",
			run->max_new_tokens, c->options.max_tokens);
}

// Runs the request; `live`: answers go to out as they come.
static int run_request(struct ctl *c, const Thaw__V1__GenerateRequest *request, bool live, struct ctl_run *run)
{
	struct ctl_stream s;
	run->started_ns = base_clock_now_ns();
	int r = ctl_stream_open(c, "Inference/GenerateStream", request, &thaw__v1__generate_chunk__descriptor, &s);
	if (r != CTL_OK)
		return r;
	s.quiet = true;
	Thaw__V1__GenerateChunk *chunk;
	int failed = CTL_OK;
	bool shown = false;
	while (failed == CTL_OK && (r = ctl_stream_next(&s, &chunk)) == 1) {
		if (live)
			shown |= show_live(c, chunk);
		failed = ctl_run_take(c, run, chunk);
		ctl_free(chunk);
		if (ferror(c->out)) // nobody reads any more
			failed = CTL_ERROR;
	}
	if (live && shown)
		fputc('\n', c->out);
	fflush(c->out);
	if (failed == CTL_OK && r < 0)
		failed = ctl_fail_status(c, s.code, &s.status);
	ctl_stream_close(&s);
	if (failed == CTL_OK)
		say_cut(c, run);
	return failed;
}

static struct json_object *answer_json(const struct ctl_answer *a, uint32_t index)
{
	struct json_object *o = json_object_new_object(), *ids = json_object_new_array();
	json_object_object_add(o, "index", json_object_new_int((int)index));
	json_object_object_add(o, "text", json_object_new_string(a->text ? a->text : ""));
	for (size_t i = 0; i < a->ids_count; i++)
		json_object_array_add(ids, json_object_new_int64(a->ids[i]));
	json_object_object_add(o, "token_ids", ids);
	if (a->logprobs)
		json_object_object_add(o, "logprobs", json_object_get(a->logprobs));
	json_object_object_add(o, "finish", json_object_new_string(ctl_finish_name(a->finish)));
	return o;
}

static void print_run_json(struct ctl *c, const struct ctl_run *run)
{
	struct json_object *o = ctl_json_new(), *outputs = json_object_new_array();
	json_object_object_add(o, "request_id", json_object_new_string(run->request_id));
	json_object_object_add(o, "num_prompt_tokens", json_object_new_int64(run->prompt_tokens));
	json_object_object_add(o, "cached_tokens", json_object_new_int64(run->cached_tokens));
	for (uint32_t i = 0; i < run->answers_count; i++)
		json_object_array_add(outputs, answer_json(&run->answers[i], i));
	json_object_object_add(o, "outputs", outputs);
	json_object_object_add(o, "figures", ctl_run_figures(run));
	ctl_json_print(c, o);
}

static void print_logprobs(struct ctl *c, const struct ctl_answer *a)
{
	static const struct ctl_column columns[] = {
		{"TOKEN", true, false}, {"LOGPROB", true, false}, {"LIKELIEST", false, false}};
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	size_t count = json_object_array_length(a->logprobs);
	for (size_t i = 0; i < count; i++) {
		struct json_object *o = json_object_array_get_idx(a->logprobs, i),
				   *top = json_object_object_get(o, "top");
		char line[640] = "";
		size_t at = 0;
		for (size_t k = 0; top && k < json_object_array_length(top) && at < sizeof line; k++) {
			struct json_object *one = json_object_array_get_idx(top, k);
			at += (size_t)snprintf(line + at, sizeof line - at, "%s%" PRId64 ":%.4f", k ? " " : "",
				json_object_get_int64(json_object_object_get(one, "token_id")),
				json_object_get_double(json_object_object_get(one, "logprob")));
		}
		ctl_table_cell(&t, "%" PRId64, json_object_get_int64(json_object_object_get(o, "token_id")));
		ctl_table_cell(&t, "%.4f", json_object_get_double(json_object_object_get(o, "logprob")));
		ctl_table_cell(&t, "%s", line);
	}
	ctl_table_print(&t, c);
}

static void print_run(struct ctl *c, const struct ctl_run *run, bool shown)
{
	for (uint32_t i = 0; i < run->answers_count; i++) {
		const struct ctl_answer *a = &run->answers[i];
		if (!shown && run->answers_count > 1)
			fprintf(c->out, "--- %" PRIu32 " (%s)\n", i, ctl_finish_name(a->finish));
		for (size_t t = 0; !shown && c->options.token_ids && t < a->ids_count; t++)
			fprintf(c->out, "%" PRIu32 " ", a->ids[t]);
		if (!shown)
			fprintf(c->out, "%s\n", c->options.token_ids || !a->text ? "" : a->text);
		if (a->logprobs)
			print_logprobs(c, a);
	}
}

int ctl_verb_generate(struct ctl *c)
{
	char *text = NULL;
	struct ctl_prompt prompt;
	struct ctl_request request;
	struct ctl_run run = {0};
	if (!ctl_given(c, "max-tokens"))
		c->options.max_tokens = GENERATE_TOKENS;
	int r = ctl_read_text(c, &text);
	if (r != CTL_OK)
		return r;
	r = ctl_prompt_make(c, text, &prompt);
	if (r == CTL_OK)
		r = ctl_request_make(c, &prompt.prompt, &request);
	if (r == CTL_OK) {
		bool live = c->output != CTL_OUTPUT_JSON && c->options.num_sequences <= 1;
		r = run_request(c, &request.request, live, &run);
		if (c->output == CTL_OUTPUT_JSON && r == CTL_OK)
			print_run_json(c, &run);
		else if (c->output != CTL_OUTPUT_JSON)
			print_run(c, &run, live);
		if (c->options.stats && r == CTL_OK)
			ctl_run_say_figures(c, &run);
	}
	ctl_run_free(&run);
	ctl_prompt_free(&prompt);
	return r;
}

/* chat */

struct talk {
	Thaw__V1__ChatMessage messages[CHAT_MAX_MESSAGES], *list[CHAT_MAX_MESSAGES];
	size_t count;
};

static int say(struct talk *t, const char *role, char *content)
{
	if (t->count == CHAT_MAX_MESSAGES || !content) {
		free(content);
		return -ENOSPC;
	}
	Thaw__V1__ChatMessage *m = &t->messages[t->count];
	thaw__v1__chat_message__init(m);
	m->role = (char *)role;
	m->content = content;
	t->list[t->count++] = m;
	return 0;
}

static int take_turn(struct ctl *c, struct talk *t, const char *message)
{
	struct ctl_request request;
	struct ctl_run run = {0};
	if (say(t, "user", strdup(message)) < 0)
		return ctl_fail(c, CTL_ERROR, "the conversation has %u messages; start another one", CHAT_MAX_MESSAGES);
	Thaw__V1__Chat chat = THAW__V1__CHAT__INIT;
	chat.messages = t->list;
	chat.n_messages = t->count;
	Thaw__V1__Prompt prompt = THAW__V1__PROMPT__INIT;
	prompt.source_case = THAW__V1__PROMPT__SOURCE_CHAT;
	prompt.chat = &chat;
	int r = ctl_request_make(c, &prompt, &request);
	if (r == CTL_OK) {
		r = run_request(c, &request.request, c->output != CTL_OUTPUT_JSON, &run);
		if (c->output == CTL_OUTPUT_JSON && r == CTL_OK)
			print_run_json(c, &run);
		if (c->options.stats && r == CTL_OK)
			ctl_run_say_figures(c, &run);
	}
	// What was said before an interruption stays part of the conversation.
	if (r == CTL_OK || run.answers[0].text_bytes)
		say(t, "assistant", base_steal(run.answers[0].text));
	else
		free(t->messages[--t->count].content);
	ctl_run_free(&run);
	return r;
}

static int talk_on(struct ctl *c, struct talk *t)
{
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	int r = CTL_OK;
	for (;;) {
		if (c->in_terminal) {
			fprintf(c->err, "> ");
			fflush(c->err);
		}
		ssize_t n = getline(&line, &room, c->in);
		if (n < 0 || strcmp(line, "/exit\n") == 0)
			break;
		while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
			line[--n] = '\0';
		if (n == 0)
			continue;
		r = take_turn(c, t, line);
		if (r == CTL_UNREACHABLE || ferror(c->out) || (r != CTL_OK && !c->in_terminal))
			return r;
	}
	if (c->in_terminal)
		fputc('\n', c->err);
	return CTL_OK;
}

int ctl_verb_chat(struct ctl *c)
{
	_cleanup_free_ struct talk *t = calloc(1, sizeof *t);
	if (!t)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	if (!ctl_given(c, "max-tokens"))
		c->options.max_tokens = CHAT_TOKENS;
	if (c->options.system)
		say(t, "system", strdup(c->options.system));
	int r = c->args_count ? take_turn(c, t, c->args[0]) : talk_on(c, t);
	for (size_t i = 0; i < t->count; i++)
		free(t->messages[i].content);
	return r;
}
