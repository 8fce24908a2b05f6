// SPDX-License-Identifier: Apache-2.0
// score, eval, tokenize, detokenize.
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/prompt.h"

#define EVAL_CONTEXT 512u

static void print_scores(struct ctl *c, const Thaw__V1__ScoreReply *reply)
{
	static const struct ctl_column columns[] = {{"POSITION", true, false}, {"TOKEN", true, false},
		{"LOGPROB", true, false}, {"LIKELIEST", false, false}};
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < reply->n_scores; i++) {
		const Thaw__V1__TokenScore *s = reply->scores[i];
		char line[640] = "";
		size_t at = 0;
		for (size_t k = 0; k < s->n_top && at < sizeof line; k++)
			at += (size_t)snprintf(line + at, sizeof line - at, "%s%" PRIu32 ":%.4f", k ? " " : "",
				s->top[k]->token_id, (double)s->top[k]->logprob);
		ctl_table_cell(&t, "%" PRIu32, s->position);
		ctl_table_cell(&t, "%" PRIu32, s->token_id);
		ctl_table_cell(&t, "%.4f", (double)s->logprob);
		ctl_table_cell(&t, "%s", line);
	}
	ctl_table_print(&t, c);
	fprintf(c->out, "sum %.4f, %zu tokens, perplexity %.4f\n", reply->sum_logprob, reply->n_scores,
		reply->n_scores ? exp(-reply->sum_logprob / (double)reply->n_scores) : 0);
}

int ctl_verb_score(struct ctl *c)
{
	char *text = NULL;
	struct ctl_prompt prompt;
	int r = ctl_read_text(c, &text);
	if (r != CTL_OK)
		return r;
	r = ctl_prompt_make(c, text, &prompt);
	if (r == CTL_OK) {
		Thaw__V1__ScoreRequest request = THAW__V1__SCORE_REQUEST__INIT;
		Thaw__V1__ScoreReply *reply = NULL;
		if (c->options.model)
			request.model = (char *)c->options.model;
		request.prompt = &prompt.prompt;
		request.first_token = c->options.first;
		request.top = c->options.top;
		request.truncate_prompt_tokens = c->options.truncate;
		r = ctl_call(c, "Inference/Score", &request, &thaw__v1__score_reply__descriptor, &reply);
		if (r == CTL_OK && c->output == CTL_OUTPUT_JSON) {
			struct json_object *o = ctl_json_new();
			ctl_json_merge(o, ctl_json_message(reply));
			ctl_json_print(c, o);
		} else if (r == CTL_OK) {
			print_scores(c, reply);
		}
		ctl_free(reply);
	}
	ctl_prompt_free(&prompt);
	return r;
}

/* eval: as llama.cpp's perplexity tool counts. The text is cut into chunks of `context` tokens; where the tokenizer
 * adds a beginning-of-sequence token, it takes the place of each chunk's first token. Positions context/2 to context-2
 * predict the one after them. */

struct eval {
	uint32_t context;
	uint32_t *tokens; // of the reply
	size_t count;
	bool add_bos;
	uint32_t bos;
	double sum, squares; // of -log p
	size_t counted;
};

static int tokenize(struct ctl *c, const char *text, Thaw__V1__TokenizeReply **ret_reply)
{
	Thaw__V1__TokenizeRequest request = THAW__V1__TOKENIZE_REQUEST__INIT;
	Thaw__V1__Prompt prompt = THAW__V1__PROMPT__INIT;
	prompt.source_case = THAW__V1__PROMPT__SOURCE_TEXT;
	prompt.text = (char *)text;
	request.prompt = &prompt;
	if (c->options.model)
		request.model = (char *)c->options.model;
	return ctl_call(c, "Inference/Tokenize", &request, &thaw__v1__tokenize_reply__descriptor, ret_reply);
}

// Whether the tokenizer's own rule puts a beginning-of-sequence token in front.
static int find_bos(struct ctl *c, struct eval *v)
{
	Thaw__V1__GetModelRequest request = THAW__V1__GET_MODEL_REQUEST__INIT;
	Thaw__V1__Model *model = NULL;
	if (c->options.model)
		request.name = (char *)c->options.model;
	int r = ctl_call(c, "Inference/GetModel", &request, &thaw__v1__model__descriptor, &model);
	if (r != CTL_OK)
		return r;
	if (model->bos_opt_case == THAW__V1__MODEL__BOS_OPT_BOS_TOKEN_ID) {
		v->bos = model->bos_token_id;
		v->add_bos = v->count > 0 && v->tokens[0] == v->bos;
	}
	ctl_free(model);
	return CTL_OK;
}

static int eval_chunk(struct ctl *c, struct eval *v, size_t chunk)
{
	Thaw__V1__ScoreRequest request = THAW__V1__SCORE_REQUEST__INIT;
	Thaw__V1__Prompt prompt = THAW__V1__PROMPT__INIT;
	Thaw__V1__TokenIds ids = THAW__V1__TOKEN_IDS__INIT;
	Thaw__V1__ScoreReply *reply = NULL;
	_cleanup_free_ uint32_t *tokens = calloc(v->context, sizeof *tokens);
	if (!tokens)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	memcpy(tokens, v->tokens + chunk * v->context, v->context * sizeof *tokens);
	if (v->add_bos)
		tokens[0] = v->bos;
	ids.ids = tokens;
	ids.n_ids = v->context;
	prompt.source_case = THAW__V1__PROMPT__SOURCE_TOKEN_IDS;
	prompt.token_ids = &ids;
	request.prompt = &prompt;
	request.first_token = v->context / 2 + 1;
	if (c->options.model)
		request.model = (char *)c->options.model;
	int r = ctl_call(c, "Inference/Score", &request, &thaw__v1__score_reply__descriptor, &reply);
	if (r != CTL_OK)
		return r;
	for (size_t i = 0; i < reply->n_scores; i++) {
		double loss = -(double)reply->scores[i]->logprob;
		v->sum += loss;
		v->squares += loss * loss;
	}
	v->counted += reply->n_scores;
	if (reply->n_scores != v->context - 1 - v->context / 2)
		r = ctl_fail(c, CTL_ERROR, "%zu scores came back for a chunk of %" PRIu32 " tokens", reply->n_scores,
			v->context);
	ctl_free(reply);
	return r;
}

static int print_eval(struct ctl *c, const struct eval *v, size_t chunks, double seconds)
{
	double n = (double)v->counted, mean = v->sum / n, variance = v->squares / n - mean * mean;
	double perplexity = exp(mean), error = n > 1 && variance > 0 ? sqrt(variance / (n - 1)) * perplexity : 0;
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "perplexity", ctl_json_real(perplexity));
		json_object_object_add(o, "standard_error", ctl_json_real(error));
		json_object_object_add(o, "sum_logprob", ctl_json_real(-v->sum));
		json_object_object_add(o, "counted_tokens", json_object_new_int64((int64_t)v->counted));
		json_object_object_add(o, "chunks", json_object_new_int64((int64_t)chunks));
		json_object_object_add(o, "context_tokens", json_object_new_int64(v->context));
		json_object_object_add(o, "seconds", ctl_json_real(seconds));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "perplexity %.4f +/- %.4f (%zu chunks of %" PRIu32 " tokens, %zu counted, %.1f s)\n",
		perplexity, error, chunks, v->context, v->counted, seconds);
	return CTL_OK;
}

static int eval_tokens(struct ctl *c, struct eval *v)
{
	int r = find_bos(c, v);
	if (r != CTL_OK)
		return r;
	size_t chunks = v->count / v->context;
	if (chunks == 0)
		return ctl_fail(c, CTL_ERROR, "%s has %zu tokens, less than one chunk of %" PRIu32, c->options.text,
			v->count, v->context);
	uint64_t started = base_clock_now_ns();
	for (size_t i = 0; i < chunks; i++) {
		r = eval_chunk(c, v, i);
		if (r != CTL_OK)
			return r;
		if (c->err_terminal)
			fprintf(c->err, "\r\033[K%zu of %zu chunks, perplexity %.4f", i + 1, chunks,
				exp(v->sum / (double)v->counted));
		fflush(c->err);
	}
	if (c->err_terminal)
		fprintf(c->err, "\r\033[K");
	return print_eval(c, v, chunks, (double)(base_clock_now_ns() - started) / 1e9);
}

int ctl_verb_eval(struct ctl *c)
{
	struct eval v = {.context = ctl_given(c, "context") ? c->options.context : EVAL_CONTEXT};
	_cleanup_free_ char *text = NULL;
	Thaw__V1__TokenizeReply *reply = NULL;
	if (!c->options.text)
		return ctl_fail(c, CTL_USAGE, "eval needs --text FILE; see thawctl help eval");
	if (v.context < 4)
		return ctl_fail(c, CTL_USAGE, "--context: at least 4 tokens");
	_cleanup_fclose_ FILE *f = fopen(c->options.text, "r");
	if (!f)
		return ctl_fail(c, errno == ENOENT ? CTL_NOT_FOUND : CTL_ERROR, "%s: %s", c->options.text,
			strerrordesc_np(errno));
	int r = ctl_read_file(c, f, c->options.text, &text);
	if (r == CTL_OK)
		r = tokenize(c, text, &reply);
	if (r == CTL_OK) {
		v.tokens = reply->token_ids;
		v.count = reply->n_token_ids;
		r = eval_tokens(c, &v);
	}
	ctl_free(reply);
	return r;
}

static void print_pieces(struct ctl *c, const Thaw__V1__TokenizeReply *reply)
{
	static const struct ctl_column columns[] = {{"TOKEN", true, false}, {"TEXT", false, false}};
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < reply->n_token_ids && i < reply->n_pieces; i++) {
		char text[512];
		size_t at = 0;
		const ProtobufCBinaryData *p = &reply->pieces[i];
		for (size_t k = 0; k < p->len && at + 5 < sizeof text; k++) {
			bool plain = p->data[k] >= 0x20 && p->data[k] < 0x7f && p->data[k] != '\\';
			at += (size_t)snprintf(text + at, sizeof text - at, plain ? "%c" : "\\x%02x", p->data[k]);
		}
		text[at] = '\0';
		ctl_table_cell(&t, "%" PRIu32, reply->token_ids[i]);
		ctl_table_cell(&t, "\"%s\"", text);
	}
	ctl_table_print(&t, c);
}

int ctl_verb_tokenize(struct ctl *c)
{
	char *text = NULL;
	struct ctl_prompt prompt;
	int r = ctl_read_text(c, &text);
	if (r != CTL_OK)
		return r;
	r = ctl_prompt_make(c, text, &prompt);
	Thaw__V1__TokenizeRequest request = THAW__V1__TOKENIZE_REQUEST__INIT;
	Thaw__V1__TokenizeReply *reply = NULL;
	request.prompt = &prompt.prompt;
	request.pieces = c->options.pieces;
	if (c->options.model)
		request.model = (char *)c->options.model;
	if (r == CTL_OK)
		r = ctl_call(c, "Inference/Tokenize", &request, &thaw__v1__tokenize_reply__descriptor, &reply);
	if (r == CTL_OK && c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(reply));
		ctl_json_print(c, o);
	} else if (r == CTL_OK && c->options.pieces) {
		print_pieces(c, reply);
	} else if (r == CTL_OK) {
		for (size_t i = 0; i < reply->n_token_ids; i++)
			fprintf(c->out, "%s%" PRIu32, i ? " " : "", reply->token_ids[i]);
		fputc('\n', c->out);
	}
	ctl_free(reply);
	ctl_prompt_free(&prompt);
	return r;
}

int ctl_verb_detokenize(struct ctl *c)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_free_ uint32_t *ids = NULL;
	size_t count = 0;
	int r = CTL_OK;
	if (c->args_count > 1) { // ids may come as words
		size_t bytes = 0;
		FILE *out = open_memstream(&text, &bytes);
		for (unsigned i = 0; out && i < c->args_count; i++)
			fprintf(out, "%s ", c->args[i]);
		if (!out || fclose(out) != 0)
			return ctl_fail(c, CTL_ERROR, "out of memory");
	} else {
		r = ctl_read_text(c, &text);
	}
	if (r == CTL_OK)
		r = ctl_parse_ids(c, text, &ids, &count);
	if (r != CTL_OK)
		return r;
	Thaw__V1__DetokenizeRequest request = THAW__V1__DETOKENIZE_REQUEST__INIT;
	Thaw__V1__DetokenizeReply *reply = NULL;
	request.token_ids = ids;
	request.n_token_ids = count;
	request.special = c->options.special;
	if (c->options.model)
		request.model = (char *)c->options.model;
	r = ctl_call(c, "Inference/Detokenize", &request, &thaw__v1__detokenize_reply__descriptor, &reply);
	if (r == CTL_OK && c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(reply));
		ctl_json_print(c, o);
	} else if (r == CTL_OK) {
		fprintf(c->out, "%s\n", reply->text);
	}
	ctl_free(reply);
	return r;
}
