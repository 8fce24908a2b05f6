// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_wire.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"

_Static_assert(REQUEST_ID_BYTES >= 32, "ids that are made up fit");

static int invalid(struct rpc_fault *f, const char *field, const char *text)
{
	return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", field, "%s: %s", field, text);
}

/* Prompts. */

static int check_tokens(
	const uint32_t *ids, size_t count, const struct server_model *m, const char *field, struct rpc_fault *f)
{
	uint32_t vocab = text_tokenizer_vocab(m->tokenizer);
	for (size_t i = 0; i < count; i++) {
		char path[RPC_FIELD_BYTES];
		if (ids[i] < vocab)
			continue;
		snprintf(path, sizeof(path), "%s[%zu]", field, i);
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", path,
			"%s: token %u is not below the vocabulary of %u", path, ids[i], vocab);
	}
	return 0;
}

static int render_chat(const Thaw__V1__Chat *chat, const struct server_model *m, char **ret_text, struct rpc_fault *f)
{
	static const char *const roles[] = {"system", "user", "assistant"};
	if (chat->n_messages == 0)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "EMPTY_PROMPT", "prompt.chat.messages",
			"prompt.chat.messages: the prompt is empty");
	if (chat->n_messages > TEXT_MAX_CHAT_MESSAGES)
		return invalid(f, "prompt.chat.messages", "more than 1024 messages");
	_cleanup_free_ struct text_chat_message *messages = calloc(chat->n_messages, sizeof(*messages));
	if (!messages)
		return rpc_fault_set(f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the chat");
	for (size_t i = 0; i < chat->n_messages; i++) {
		size_t role = 0;
		while (role < base_array_size(roles) && strcmp(chat->messages[i]->role, roles[role]))
			role++;
		if (role == base_array_size(roles)) {
			char path[RPC_FIELD_BYTES];
			snprintf(path, sizeof(path), "prompt.chat.messages[%zu].role", i);
			return invalid(f, path, "system, user or assistant is wanted");
		}
		messages[i] = (struct text_chat_message){roles[role], chat->messages[i]->content};
	}
	struct base_error e = {0};
	int r = text_chat_render(&m->chat, messages, chat->n_messages, m->specials, ret_text, &e);
	return r < 0 ? rpc_fault_from(f, r, &e, 0, "prompt.chat") : 0;
}

/* The tokens with room for one more in front. */
static int encode(const char *text, size_t bytes, bool special, const struct server_model *m, const char *field,
	uint32_t **ret_tokens, size_t *ret_count, struct rpc_fault *f)
{
	struct base_error e = {0};
	_cleanup_free_ uint32_t *tokens = NULL;
	size_t count = 0;
	int r = text_tokenizer_encode(m->tokenizer, text, bytes, special, &tokens, &count, &e);
	if (r < 0)
		return rpc_fault_from(f, r, &e, 0, field);
	uint32_t *roomy = count < UINT32_MAX / sizeof(*roomy) ? malloc((count + 1) * sizeof(*roomy)) : NULL;
	if (!roomy)
		return rpc_fault_set(f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", field, "no memory for the prompt");
	if (count)
		memcpy(roomy + 1, tokens, count * sizeof(*roomy));
	*ret_tokens = roomy;
	*ret_count = count;
	return 0;
}

/* Puts the beginning-of-sequence token in front where it is wanted and not there already (some chat templates write
 * it). */
static int add_bos(
	uint32_t *tokens, size_t *count, bool wanted, bool asked, const struct server_model *m, struct rpc_fault *f)
{
	uint32_t bos = text_tokenizer_bos(m->tokenizer);
	if (asked && wanted && bos == TEXT_NO_TOKEN)
		return invalid(f, "prompt.add_bos", "the model has no beginning-of-sequence token");
	if (wanted && bos != TEXT_NO_TOKEN && (*count == 0 || tokens[1] != bos)) {
		tokens[0] = bos;
		(*count)++;
	} else {
		memmove(tokens, tokens + 1, *count * sizeof(*tokens));
	}
	return 0;
}

static int prompt_text(const Thaw__V1__Prompt *p, const struct server_model *m, uint32_t **ret_tokens,
	size_t *ret_count, struct rpc_fault *f)
{
	bool chat = p->source_case == THAW__V1__PROMPT__SOURCE_CHAT;
	bool asked = !chat && p->add_bos_opt_case == THAW__V1__PROMPT__ADD_BOS_OPT_ADD_BOS;
	_cleanup_free_ char *rendered = NULL;
	if (chat && render_chat(p->chat, m, &rendered, f) < 0)
		return -1;
	const char *text = chat ? rendered : p->text, *field = chat ? "prompt.chat" : "prompt.text";
	if (!text[0])
		return rpc_fault_set(
			f, GRPC_STATUS_INVALID_ARGUMENT, "EMPTY_PROMPT", field, "%s: the prompt is empty", field);
	_cleanup_free_ uint32_t *tokens = NULL;
	if (encode(text, strlen(text), chat || p->parse_special, m, field, &tokens, ret_count, f) < 0)
		return -1;
	bool wanted = asked ? p->add_bos : text_tokenizer_add_bos(m->tokenizer);
	if (add_bos(tokens, ret_count, wanted, asked, m, f) < 0)
		return -1;
	*ret_tokens = base_steal(tokens);
	return 0;
}

int rpc_wire_prompt(const Thaw__V1__Prompt *p, const struct server_model *m, uint32_t **ret_tokens, size_t *ret_count,
	struct rpc_fault *f)
{
	if (!p || p->source_case == THAW__V1__PROMPT__SOURCE__NOT_SET)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "EMPTY_PROMPT", "prompt",
			"prompt: text, token_ids or chat is wanted");
	if (p->source_case != THAW__V1__PROMPT__SOURCE_TOKEN_IDS)
		return prompt_text(p, m, ret_tokens, ret_count, f);
	size_t n = p->token_ids->n_ids;
	if (n == 0)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "EMPTY_PROMPT", "prompt.token_ids.ids",
			"prompt.token_ids.ids: the prompt is empty");
	if (n > RPC_WIRE_MAX_TOKENS)
		return invalid(f, "prompt.token_ids.ids", "more than 4194304 tokens");
	if (check_tokens(p->token_ids->ids, n, m, "prompt.token_ids.ids", f) < 0)
		return -1;
	uint32_t *tokens = malloc(n * sizeof(*tokens));
	if (!tokens)
		return rpc_fault_set(f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the prompt");
	memcpy(tokens, p->token_ids->ids, n * sizeof(*tokens));
	*ret_tokens = tokens;
	*ret_count = n;
	return 0;
}

/* Sampling and stopping. */

static int check_range(struct rpc_fault *f, const char *field, float v, float low, float high)
{
	if (isfinite(v) && v >= low && v <= high)
		return 0;
	return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", field, "%s: %g is not within %g to %g", field,
		(double)v, (double)low, (double)high);
}

static int wire_bias(
	const Thaw__V1__Sampling *s, const struct server_model *m, struct sample_params *out, struct rpc_fault *f)
{
	if (s->n_logit_bias > SAMPLE_MAX_BIAS)
		return invalid(f, "sampling.logit_bias", "more than 256 entries");
	for (size_t i = 0; i < s->n_logit_bias; i++) {
		char path[RPC_FIELD_BYTES];
		const Thaw__V1__LogitBias *b = s->logit_bias[i];
		snprintf(path, sizeof(path), "sampling.logit_bias[%zu].bias", i);
		if (check_range(f, path, b->bias, -100, 100) < 0)
			return -1;
		snprintf(path, sizeof(path), "sampling.logit_bias[%zu].token_id", i);
		if (b->token_id >= text_tokenizer_vocab(m->tokenizer))
			return invalid(f, path, "not below the vocabulary");
		out->bias[i] = (struct sample_bias){b->token_id, b->bias};
	}
	out->bias_count = (uint32_t)s->n_logit_bias;
	return 0;
}

static int wire_sampling(const Thaw__V1__Sampling *s, const struct server_model *m, uint64_t seed, struct request *out,
	struct rpc_fault *f)
{
	static const Thaw__V1__Sampling none = THAW__V1__SAMPLING__INIT;
	struct sample_params *p = &out->sampling;
	if (!s)
		s = &none;
	if (check_range(f, "sampling.temperature", s->temperature, 0, 100) < 0 ||
		check_range(f, "sampling.top_p", s->top_p, 0, 1) < 0 ||
		check_range(f, "sampling.min_p", s->min_p, 0, 1) < 0 ||
		check_range(f, "sampling.presence_penalty", s->presence_penalty, -2, 2) < 0 ||
		check_range(f, "sampling.frequency_penalty", s->frequency_penalty, -2, 2) < 0 ||
		check_range(f, "sampling.repetition_penalty", s->repetition_penalty, 0, 100) < 0)
		return -1;
	if (s->num_sequences > REQUEST_MAX_SEQUENCES)
		return invalid(f, "sampling.num_sequences", "more than 16");
	p->temperature = s->temperature;
	p->top_k = s->top_k;
	p->top_p = s->top_p > 0 ? s->top_p : 1;
	p->min_p = s->min_p;
	p->presence_penalty = s->presence_penalty;
	p->frequency_penalty = s->frequency_penalty;
	p->repetition_penalty = s->repetition_penalty > 0 ? s->repetition_penalty : 1;
	p->seed = s->seed_opt_case == THAW__V1__SAMPLING__SEED_OPT_SEED ? s->seed : seed;
	out->num_sequences = s->num_sequences ? s->num_sequences : 1;
	return wire_bias(s, m, p, f);
}

static int wire_stop_strings(const Thaw__V1__Stopping *s, struct request *out, struct rpc_fault *f)
{
	if (s->n_stop > REQUEST_MAX_STOPS)
		return invalid(f, "stopping.stop", "more than 16 strings");
	for (size_t i = 0; i < s->n_stop; i++) {
		char path[RPC_FIELD_BYTES];
		size_t n = strlen(s->stop[i]);
		snprintf(path, sizeof(path), "stopping.stop[%zu]", i);
		if (n == 0 || n >= REQUEST_MAX_STOP_BYTES)
			return invalid(f, path, "1 to 255 bytes are wanted");
		memcpy(out->stops[i], s->stop[i], n + 1);
	}
	out->stop_count = (uint32_t)s->n_stop;
	return 0;
}

static int wire_stopping(
	const Thaw__V1__Stopping *s, const struct server_model *m, struct request *out, struct rpc_fault *f)
{
	if (!s)
		return 0;
	if (s->n_stop_token_ids > SAMPLE_MAX_BANNED / 2)
		return invalid(f, "stopping.stop_token_ids", "more than 32");
	if (s->max_new_tokens && s->min_new_tokens > s->max_new_tokens)
		return invalid(f, "stopping.min_new_tokens", "more than max_new_tokens");
	if (check_tokens(s->stop_token_ids, s->n_stop_token_ids, m, "stopping.stop_token_ids", f) < 0 ||
		wire_stop_strings(s, out, f) < 0)
		return -1;
	out->max_new_tokens = s->max_new_tokens;
	out->ignore_eos = s->ignore_eos;
	out->include_stop = s->include_stop;
	out->stop_token_count = (uint32_t)s->n_stop_token_ids;
	for (size_t i = 0; i < s->n_stop_token_ids; i++)
		out->stop_tokens[i] = s->stop_token_ids[i];
	out->sampling.min_new_tokens = s->min_new_tokens; // what is banned until then, the engine fills in
	return 0;
}

/* Requests. */

int rpc_wire_check_id(const char *id, struct rpc_fault *f)
{
	size_t n = strlen(id);
	bool good = n < REQUEST_ID_BYTES;
	for (size_t i = 0; i < n; i++)
		good = good && isgraph((unsigned char)id[i]);
	return good ? 0
		    : invalid(f, "request_id", "at most 63 characters of printable ASCII without spaces are wanted");
}

static int wire_id(const char *field, const char *metadata, struct request *out, struct rpc_fault *f)
{
	uint64_t random[2];
	if (rpc_wire_check_id(field, f) < 0)
		return -1;
	if (field[0] || metadata[0]) {
		snprintf(out->id, sizeof(out->id), "%s", field[0] ? field : metadata);
		return 0;
	}
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return rpc_fault_set(f, GRPC_STATUS_INTERNAL, "INTERNAL", NULL, "no random bytes for a request id");
	snprintf(out->id, sizeof(out->id), "%016llx%08llx", (unsigned long long)random[0],
		(unsigned long long)random[1] & 0xffffffff);
	return 0;
}

static int wire_priority(Thaw__V1__Priority p, enum request_priority metadata, struct request *out, struct rpc_fault *f)
{
	switch (p) {
	case THAW__V1__PRIORITY__PRIORITY_UNSPECIFIED:
		out->priority = metadata;
		return 0;
	case THAW__V1__PRIORITY__PRIORITY_HIGH:
		out->priority = REQUEST_PRIORITY_HIGH;
		return 0;
	case THAW__V1__PRIORITY__PRIORITY_NORMAL:
		out->priority = REQUEST_PRIORITY_NORMAL;
		return 0;
	case THAW__V1__PRIORITY__PRIORITY_LOW:
		out->priority = REQUEST_PRIORITY_LOW;
		return 0;
	default: // a newer client's
		return invalid(f, "priority", "not a priority that this server knows");
	}
}

static struct request *request_new(struct rpc_fault *f)
{
	struct request *q = calloc(1, sizeof(*q));
	if (!q)
		rpc_fault_set(f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the request");
	return q;
}

static void request_free(struct request **q)
{
	if (*q)
		request_destroy(*q);
}

static int wire_tokens(
	const Thaw__V1__Prompt *p, const struct server_model *m, struct request *out, struct rpc_fault *f)
{
	size_t count = 0;
	if (rpc_wire_prompt(p, m, &out->prompt, &count, f) < 0)
		return -1;
	out->prompt_tokens = (uint32_t)count;
	return 0;
}

int rpc_wire_generate(const Thaw__V1__GenerateRequest *g, const struct server_model *m, const char *id,
	enum request_priority priority, uint64_t seed, struct request **ret_request,
	struct rpc_wire_options *ret_options, struct rpc_fault *f)
{
	_cleanup_(request_free) struct request *q = request_new(f);
	struct rpc_wire_options options = {0};
	if (!q || wire_id(g->request_id, id, q, f) < 0 || wire_priority(g->priority, priority, q, f) < 0 ||
		wire_sampling(g->sampling, m, seed, q, f) < 0 || wire_stopping(g->stopping, m, q, f) < 0)
		return -1;
	const Thaw__V1__ResponseOptions *o = g->response;
	if (o) {
		options = (struct rpc_wire_options){.omit_text = o->omit_text,
			.token_ids = o->token_ids,
			.logprobs = o->logprobs_opt_case == THAW__V1__RESPONSE_OPTIONS__LOGPROBS_OPT_LOGPROBS};
		if (options.logprobs && o->logprobs > SAMPLE_MAX_LOGPROBS)
			return invalid(f, "response.logprobs", "more than 20");
		q->sampling.logprobs = options.logprobs ? o->logprobs : 0;
	}
	q->truncate_prompt_tokens = g->truncate_prompt_tokens;
	if (wire_tokens(g->prompt, m, q, f) < 0)
		return -1;
	*ret_request = base_steal(q);
	*ret_options = options;
	return 0;
}

int rpc_wire_score(const Thaw__V1__ScoreRequest *s, const struct server_model *m, const char *id,
	enum request_priority priority, uint64_t seed, struct request **ret_request, struct rpc_fault *f)
{
	_cleanup_(request_free) struct request *q = request_new(f);
	if (!q || wire_id(s->request_id, id, q, f) < 0 || wire_priority(s->priority, priority, q, f) < 0 ||
		wire_sampling(NULL, m, seed, q, f) < 0)
		return -1;
	if (s->top > SAMPLE_MAX_LOGPROBS)
		return invalid(f, "top", "more than 20");
	if (wire_tokens(s->prompt, m, q, f) < 0)
		return -1;
	q->score = true;
	q->score_top = s->top;
	q->score_first = s->first_token ? s->first_token : 1;
	q->truncate_prompt_tokens = s->truncate_prompt_tokens;
	uint32_t kept = q->prompt_tokens;
	if (q->truncate_prompt_tokens && q->truncate_prompt_tokens < kept)
		kept = q->truncate_prompt_tokens;
	if (kept < 2)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", "prompt",
			"prompt: %u token%s: a score needs two, as the first comes after nothing", kept,
			kept == 1 ? "" : "s");
	if (q->score_first >= kept)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", "first_token",
			"first_token: %u of a prompt of %u tokens leaves nothing to score", q->score_first, kept);
	/* At most 26 bytes for a score and 13 for each of the likeliest on the wire. */
	if ((uint64_t)(kept - q->score_first) * (26 + 13 * (uint64_t)s->top) > RPC_WIRE_MAX_REPLY_BYTES)
		return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "TOO_LONG", "top",
			"top: %u log probabilities of %u tokens do not fit a reply: ask for fewer, or in parts with "
			"first_token",
			s->top, kept - q->score_first);
	*ret_request = base_steal(q);
	return 0;
}

void rpc_wire_timing(const struct request_timing *t, Thaw__V1__Timing *ret_timing)
{
	Thaw__V1__Timing out = THAW__V1__TIMING__INIT;
	out.queue_ns = t->queue_ns;
	out.prefill_ns = t->prefill_ns;
	out.decode_ns = t->decode_ns;
	out.nvme_stall_ns = t->nvme_stall_ns;
	out.network_ns = t->network_ns;
	out.nvme_read_bytes = t->nvme_read_bytes;
	out.achieved_ratio = t->achieved_ratio;
	out.binding = (char *)t->binding;
	*ret_timing = out;
}

void rpc_wire_no_nul(char *text, size_t bytes)
{
	for (char *p = text; (p = memchr(p, 0, bytes - (size_t)(p - text)));)
		*p = 0x1a;
}

/* Records. */

bool rpc_record_wanted(const struct request_event *e)
{
	return e->prompt_info || e->score || e->token_count || e->text_bytes || e->finish != REQUEST_FINISH_NONE;
}

uint32_t rpc_record_bytes(const struct request_event *e)
{
	return (uint32_t)(sizeof(struct rpc_record) + e->top_count * sizeof(e->top[0]) + e->text_bytes);
}

void rpc_record_write(const struct request_event *e, struct rpc_record *out)
{
	*out = (struct rpc_record){.output = e->output,
		.token = e->token,
		.position = e->score_position,
		.logprob = e->logprob,
		.prompt_tokens = e->prompt_tokens,
		.cached_tokens = e->cached_tokens,
		.max_new_tokens = e->max_new_tokens,
		.flags = (uint8_t)((e->token_count ? RPC_RECORD_TOKEN : 0) |
				   (e->prompt_info ? RPC_RECORD_PROMPT_INFO : 0) | (e->score ? RPC_RECORD_SCORE : 0)),
		.finish = (uint8_t)e->finish,
		.top_count = (uint8_t)e->top_count,
		.text_bytes = (uint16_t)e->text_bytes};
	memcpy(out->top, e->top, e->top_count * sizeof(e->top[0]));
	char *text = (char *)(out->top + e->top_count);
	memcpy(text, e->text, e->text_bytes);
	rpc_wire_no_nul(text, e->text_bytes);
}
