// SPDX-License-Identifier: Apache-2.0
#include "daemon/ctl/prompt.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define MAX_TEXT_BYTES (16u << 20) // the server takes no larger message

int ctl_read_file(struct ctl *c, FILE *f, const char *name, char **ret_text)
{
	size_t room = 64 << 10, at = 0;
	_cleanup_free_ char *text = malloc(room);
	while (text) {
		at += fread(text + at, 1, room - 1 - at, f);
		if (ferror(f))
			return ctl_fail(c, CTL_ERROR, "%s: %s", name, strerrordesc_np(errno));
		if (at < room - 1)
			break;
		if (room > MAX_TEXT_BYTES)
			return ctl_fail(c, CTL_ERROR, "%s: more than %u bytes", name, MAX_TEXT_BYTES);
		char *larger = realloc(text, room *= 2);
		if (!larger)
			free(base_steal(text));
		else
			text = larger;
	}
	if (!text)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	if (memchr(text, '\0', at))
		return ctl_fail(c, CTL_ERROR, "%s: has NUL bytes; it is not text", name);
	text[at] = '\0';
	*ret_text = base_steal(text);
	return CTL_OK;
}

int ctl_read_text(struct ctl *c, char **ret_text)
{
	if (c->args_count && strcmp(c->args[0], "-") != 0) {
		*ret_text = strdup(c->args[0]);
		return *ret_text ? CTL_OK : ctl_fail(c, CTL_ERROR, "out of memory");
	}
	if (c->in_terminal && !c->args_count)
		ctl_say(c, "thawctl: reading from the terminal; end with Ctrl-D");
	return ctl_read_file(c, c->in, "standard input", ret_text);
}

int ctl_parse_ids(struct ctl *c, const char *text, uint32_t **ret_ids, size_t *ret_count)
{
	_cleanup_free_ uint32_t *ids = calloc(strlen(text) / 2 + 1, sizeof *ids);
	size_t count = 0;
	if (!ids)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	static const char separators[] = " ,\t\r\n[]";
	for (const char *at = text + strspn(text, separators); *at; at += strspn(at, separators)) {
		char *end;
		errno = 0;
		unsigned long long v = strtoull(at, &end, 10);
		if (*at < '0' || *at > '9' || errno == ERANGE || v > UINT32_MAX || (*end && !strchr(separators, *end)))
			return ctl_fail(c, CTL_USAGE, "\"%.20s\" is not a token id", at);
		ids[count++] = (uint32_t)v;
		at = end;
	}
	*ret_ids = base_steal(ids);
	*ret_count = count;
	return CTL_OK;
}

static void add_message(struct ctl_prompt *p, const char *role, const char *content)
{
	size_t n = p->chat.n_messages++;
	thaw__v1__chat_message__init(&p->messages[n]);
	p->messages[n].role = (char *)role;
	p->messages[n].content = (char *)content;
	p->list[n] = &p->messages[n];
}

int ctl_prompt_make(struct ctl *c, char *text, struct ctl_prompt *p)
{
	memset(p, 0, sizeof *p);
	p->text = text;
	thaw__v1__prompt__init(&p->prompt);
	if (c->options.chat + c->options.token_ids > 1)
		return ctl_fail(c, CTL_USAGE, "--chat and --token-ids exclude each other");
	if (c->options.system && !c->options.chat)
		return ctl_fail(c, CTL_USAGE, "--system is for --chat");
	if (c->options.token_ids) {
		thaw__v1__token_ids__init(&p->ids);
		int r = ctl_parse_ids(c, text, &p->tokens, &p->ids.n_ids);
		p->ids.ids = p->tokens;
		p->prompt.source_case = THAW__V1__PROMPT__SOURCE_TOKEN_IDS;
		p->prompt.token_ids = &p->ids;
		return r;
	}
	if (c->options.chat) {
		thaw__v1__chat__init(&p->chat);
		if (c->options.system)
			add_message(p, "system", c->options.system);
		add_message(p, "user", text);
		p->chat.messages = p->list;
		p->prompt.source_case = THAW__V1__PROMPT__SOURCE_CHAT;
		p->prompt.chat = &p->chat;
		return CTL_OK;
	}
	p->prompt.source_case = THAW__V1__PROMPT__SOURCE_TEXT;
	p->prompt.text = text;
	p->prompt.parse_special = c->options.special;
	if (c->options.no_bos) {
		p->prompt.add_bos_opt_case = THAW__V1__PROMPT__ADD_BOS_OPT_ADD_BOS;
		p->prompt.add_bos = false;
	}
	return CTL_OK;
}

void ctl_prompt_free(struct ctl_prompt *p)
{
	free(p->text);
	free(p->tokens);
	p->text = NULL;
	p->tokens = NULL;
}

static int parse_priority(struct ctl *c, Thaw__V1__Priority *ret)
{
	static const char *const names[] = {NULL, "high", "normal", "low"};
	*ret = THAW__V1__PRIORITY__PRIORITY_UNSPECIFIED;
	if (!c->options.priority)
		return CTL_OK;
	for (unsigned i = 1; i < base_array_size(names); i++) {
		if (strcmp(names[i], c->options.priority) == 0) {
			*ret = (Thaw__V1__Priority)i;
			return CTL_OK;
		}
	}
	return ctl_fail(c, CTL_USAGE, "--priority: \"%s\" is none of high, normal, low", c->options.priority);
}

int ctl_request_make(struct ctl *c, Thaw__V1__Prompt *prompt, struct ctl_request *q)
{
	const struct ctl_options *o = &c->options;
	thaw__v1__generate_request__init(&q->request);
	thaw__v1__sampling__init(&q->sampling);
	thaw__v1__stopping__init(&q->stopping);
	thaw__v1__response_options__init(&q->response);
	q->request.prompt = prompt;
	q->request.sampling = &q->sampling;
	q->request.stopping = &q->stopping;
	q->request.response = &q->response;
	if (o->model)
		q->request.model = (char *)o->model;
	q->request.truncate_prompt_tokens = o->truncate;
	q->sampling.temperature = o->temperature;
	q->sampling.top_k = o->top_k;
	q->sampling.top_p = o->top_p;
	q->sampling.min_p = o->min_p;
	q->sampling.presence_penalty = o->presence_penalty;
	q->sampling.frequency_penalty = o->frequency_penalty;
	q->sampling.repetition_penalty = o->repetition_penalty;
	q->sampling.num_sequences = o->num_sequences;
	if (ctl_given(c, "seed")) {
		q->sampling.seed_opt_case = THAW__V1__SAMPLING__SEED_OPT_SEED;
		q->sampling.seed = o->seed;
	}
	q->stopping.max_new_tokens = o->max_tokens;
	q->stopping.ignore_eos = o->ignore_eos;
	q->stopping.stop = (char **)o->stops.items;
	q->stopping.n_stop = o->stops.count;
	q->response.token_ids = true;
	if (ctl_given(c, "logprobs")) {
		q->response.logprobs_opt_case = THAW__V1__RESPONSE_OPTIONS__LOGPROBS_OPT_LOGPROBS;
		q->response.logprobs = o->logprobs;
	}
	if (o->num_sequences > CTL_MAX_SEQUENCES)
		return ctl_fail(c, CTL_USAGE, "--num-sequences: at most %u", CTL_MAX_SEQUENCES);
	return parse_priority(c, &q->request.priority);
}

static int append_text(struct ctl_answer *a, const char *text)
{
	size_t n = strlen(text);
	if (a->text_bytes + n + 1 > a->text_room) {
		size_t room = 2 * (a->text_bytes + n + 1);
		char *larger = realloc(a->text, room);
		if (!larger)
			return -ENOMEM;
		a->text = larger;
		a->text_room = room;
	}
	memcpy(a->text + a->text_bytes, text, n + 1);
	a->text_bytes += n;
	return 0;
}

static int append_ids(struct ctl_answer *a, const uint32_t *ids, size_t n)
{
	if (a->ids_count + n > a->ids_room) {
		size_t room = 2 * (a->ids_count + n);
		uint32_t *larger = reallocarray(a->ids, room, sizeof *ids);
		if (!larger)
			return -ENOMEM;
		a->ids = larger;
		a->ids_room = room;
	}
	if (n)
		memcpy(a->ids + a->ids_count, ids, n * sizeof *ids);
	a->ids_count += n;
	return 0;
}

static int take_output(struct ctl_run *run, const Thaw__V1__Output *o)
{
	if (o->index >= CTL_MAX_SEQUENCES)
		return -EPROTO;
	if (o->index >= run->answers_count)
		run->answers_count = o->index + 1;
	struct ctl_answer *a = &run->answers[o->index];
	int r = append_text(a, o->text);
	if (r == 0)
		r = append_ids(a, o->token_ids, o->n_token_ids);
	if (o->n_logprobs && !a->logprobs)
		a->logprobs = json_object_new_array();
	for (size_t i = 0; i < o->n_logprobs; i++)
		json_object_array_add(a->logprobs, ctl_json_message(o->logprobs[i]));
	if (o->finish)
		a->finish = o->finish;
	return r;
}

const char *ctl_finish_name(Thaw__V1__FinishReason f)
{
	static const char *const names[] = {"unspecified", "length", "stop", "aborted"};
	return f < base_array_size(names) ? names[f] : "?";
}

int ctl_run_take(struct ctl *c, struct ctl_run *run, const Thaw__V1__GenerateChunk *chunk)
{
	int r = 0;
	if (chunk->prompt_info) {
		run->prompt_tokens = chunk->prompt_info->num_prompt_tokens;
		run->cached_tokens = chunk->prompt_info->cached_tokens;
		run->max_new_tokens = chunk->prompt_info->max_new_tokens;
	}
	if (chunk->request_id[0])
		snprintf(run->request_id, sizeof run->request_id, "%s", chunk->request_id);
	for (size_t i = 0; r == 0 && i < chunk->n_outputs; i++) {
		if (chunk->outputs[i]->n_token_ids) {
			run->last_ns = base_clock_now_ns();
			if (!run->first_ns)
				run->first_ns = run->last_ns;
		}
		r = take_output(run, chunk->outputs[i]);
	}
	if (chunk->timing) {
		const Thaw__V1__Timing *t = chunk->timing;
		run->have_timing = true;
		run->queue_ns = t->queue_ns;
		run->prefill_ns = t->prefill_ns;
		run->decode_ns = t->decode_ns;
		run->stall_ns = t->nvme_stall_ns;
		run->read_bytes = t->nvme_read_bytes;
		run->achieved_ratio = t->achieved_ratio;
		snprintf(run->binding, sizeof run->binding, "%s", t->binding);
	}
	return r < 0 ? ctl_fail(c, CTL_ERROR, "%s",
			       r == -ENOMEM ? "out of memory" : "the server sent more outputs than asked for")
		     : CTL_OK;
}

void ctl_run_free(struct ctl_run *run)
{
	for (uint32_t i = 0; i < CTL_MAX_SEQUENCES; i++) {
		free(run->answers[i].text);
		free(run->answers[i].ids);
		json_object_put(run->answers[i].logprobs);
	}
	memset(run, 0, sizeof *run);
}

static size_t generated(const struct ctl_run *run)
{
	size_t n = 0;
	for (uint32_t i = 0; i < run->answers_count; i++)
		n += run->answers[i].ids_count;
	return n;
}

// The first token belongs to the prefill.
static double decode_rate(const struct ctl_run *run)
{
	size_t n = generated(run);
	size_t firsts = run->answers_count < n ? run->answers_count : n;
	return run->last_ns > run->first_ns && n > firsts
		       ? (double)(n - firsts) * 1e9 / (double)(run->last_ns - run->first_ns)
		       : 0;
}

static double bytes_per_token(const struct ctl_run *run)
{
	size_t n = generated(run);
	return n ? (double)run->read_bytes / (double)n : 0;
}

struct json_object *ctl_run_figures(const struct ctl_run *run)
{
	struct json_object *o = json_object_new_object();
	json_object_object_add(o, "generated_tokens", json_object_new_int64((int64_t)generated(run)));
	json_object_object_add(o, "tokens_per_second", ctl_json_real(decode_rate(run)));
	json_object_object_add(o, "time_to_first_token_ns",
		json_object_new_uint64(run->first_ns ? run->first_ns - run->started_ns : 0));
	json_object_object_add(o, "queue_ns", json_object_new_uint64(run->queue_ns));
	json_object_object_add(o, "prefill_ns", json_object_new_uint64(run->prefill_ns));
	json_object_object_add(o, "decode_ns", json_object_new_uint64(run->decode_ns));
	json_object_object_add(o, "nvme_stall_ns", json_object_new_uint64(run->stall_ns));
	json_object_object_add(o, "nvme_read_bytes", json_object_new_uint64(run->read_bytes));
	json_object_object_add(o, "nvme_bytes_per_token", json_object_new_uint64((uint64_t)bytes_per_token(run)));
	json_object_object_add(o, "achieved_ratio", ctl_json_real(run->achieved_ratio));
	json_object_object_add(o, "binding", json_object_new_string(run->binding));
	return o;
}

void ctl_run_say_figures(struct ctl *c, const struct ctl_run *run)
{
	char first[CTL_SIZE_BYTES], size[CTL_SIZE_BYTES];
	double bytes = bytes_per_token(run);
	ctl_say(c, "prompt %" PRIu32 " tokens, first token after %s; %zu tokens, %.1f tokens/s, ended by %s",
		run->prompt_tokens,
		ctl_seconds(run->first_ns ? (double)(run->first_ns - run->started_ns) / 1e9 : 0, first), generated(run),
		decode_rate(run), ctl_finish_name(run->answers[0].finish));
	if (run->have_timing)
		ctl_say(c, "NVMe %s per token, achieved/bound %.2f, binding resource: %s",
			ctl_size((uint64_t)bytes, size), run->achieved_ratio,
			run->binding[0] ? run->binding : "unknown");
}
