// SPDX-License-Identifier: Apache-2.0
// thaw.v1.Inference: the table of methods, and those that need no engine.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/rpc/rpc_convert.h"
#include "daemon/rpc/rpc_core.h"
#include "daemon/rpc/rpc_generate.h"
#include "daemon/rpc/rpc_wire.h"
#include "proto/thaw/v1/inference.pb-c.h"

static void no_memory(struct rpc_call *c)
{
	struct rpc_fault f;
	rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the reply");
	rpc_call_fail(c, &f);
}

static void reply_tokens(
	struct rpc_call *c, const struct server_model *model, uint32_t *tokens, size_t count, bool pieces)
{
	Thaw__V1__TokenizeReply reply = THAW__V1__TOKENIZE_REPLY__INIT;
	_cleanup_free_ ProtobufCBinaryData *list = NULL;
	reply.n_token_ids = count;
	reply.token_ids = tokens;
	if (pieces) {
		list = calloc(count, sizeof(*list));
		if (!list) {
			no_memory(c);
			return;
		}
		for (size_t i = 0; i < count; i++)
			list[i].data = (uint8_t *)text_tokenizer_piece(model->tokenizer, tokens[i], true, &list[i].len);
		reply.n_pieces = count;
		reply.pieces = list;
	}
	rpc_call_reply(c, &reply.base);
}

static void tokenize(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__TokenizeRequest *m = (const Thaw__V1__TokenizeRequest *)request;
	const struct server_model *model = rpc_generate_acquire(c, m->model);
	_cleanup_free_ uint32_t *tokens = NULL;
	size_t count = 0;
	struct rpc_fault f;
	if (!model)
		return;
	if (rpc_wire_prompt(m->prompt, model, &tokens, &count, &f) < 0)
		rpc_call_fail(c, &f);
	else
		reply_tokens(c, model, tokens, count, m->pieces);
	server_release_model(c->queue->server->daemon, model);
}

/* -1 with the fault, or the text. */
static int detokenize_text(
	const Thaw__V1__DetokenizeRequest *m, const struct text_tokenizer *t, char **ret_text, struct rpc_fault *f)
{
	struct text_detokenizer d = {0};
	uint64_t room = 32;
	for (size_t i = 0; i < m->n_token_ids; i++) {
		size_t bytes = 0;
		if (m->token_ids[i] >= text_tokenizer_vocab(t))
			return rpc_fault_set(f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", "token_ids",
				"token_ids[%zu]: token %u is not below the vocabulary of %u", i, m->token_ids[i],
				text_tokenizer_vocab(t));
		text_tokenizer_piece(t, m->token_ids[i], m->special, &bytes);
		room += 3 * (uint64_t)bytes + 16; // a byte that is not UTF-8 becomes three
	}
	if (room > 4ull * RPC_MAX_MESSAGE_BYTES * 3)
		return rpc_fault_set(
			f, GRPC_STATUS_INVALID_ARGUMENT, "TOO_LONG", "token_ids", "token_ids: too many for a reply");
	_cleanup_free_ char *text = malloc(room);
	if (!text)
		return rpc_fault_set(f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the reply");
	size_t at = 0;
	for (size_t i = 0; i < m->n_token_ids; i++) {
		int n = text_detokenizer_push(&d, t, m->token_ids[i], m->special, text + at, room - at);
		if (n < 0)
			return rpc_fault_set(
				f, GRPC_STATUS_INTERNAL, "INTERNAL", NULL, "token %u does not fit", m->token_ids[i]);
		at += (size_t)n;
	}
	int n = text_detokenizer_flush(&d, text + at, room - at - 1);
	at += n > 0 ? (size_t)n : 0;
	rpc_wire_no_nul(text, at);
	text[at] = 0;
	*ret_text = base_steal(text);
	return 0;
}

static void detokenize(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__DetokenizeRequest *m = (const Thaw__V1__DetokenizeRequest *)request;
	const struct server_model *model = rpc_generate_acquire(c, m->model);
	_cleanup_free_ char *text = NULL;
	struct rpc_fault f;
	if (!model)
		return;
	if (detokenize_text(m, model->tokenizer, &text, &f) < 0) {
		rpc_call_fail(c, &f);
	} else {
		Thaw__V1__DetokenizeReply reply = THAW__V1__DETOKENIZE_REPLY__INIT;
		reply.text = text;
		rpc_call_reply(c, &reply.base);
	}
	server_release_model(c->queue->server->daemon, model);
}

static void abort_request(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__AbortRequest *m = (const Thaw__V1__AbortRequest *)request;
	Thaw__V1__AbortReply reply = THAW__V1__ABORT_REPLY__INIT;
	struct rpc_fault f;
	if (rpc_wire_check_id(m->request_id, &f) < 0) {
		rpc_call_fail(c, &f);
		return;
	}
	int r = server_abort(c->queue->server->daemon, m->request_id);
	if (r < 0) {
		struct base_error e = {0};
		base_error_set(&e, r, "no request \"%s\" runs or waits", m->request_id);
		rpc_fault_from(&f, r, &e, 0, "request_id");
		rpc_call_fail(c, &f);
		return;
	}
	rpc_call_reply(c, &reply.base);
}

static void list_models(struct rpc_call *c, const ProtobufCMessage *request)
{
	Thaw__V1__ListModelsReply reply = THAW__V1__LIST_MODELS_REPLY__INIT;
	_cleanup_free_ struct server_model_info *infos = calloc(CONFIG_MAX_MODELS, sizeof(*infos));
	Thaw__V1__Model models[CONFIG_MAX_MODELS], *list[CONFIG_MAX_MODELS];
	if (!infos) {
		no_memory(c);
		return;
	}
	uint32_t count = server_list_models(c->queue->server->daemon, infos, CONFIG_MAX_MODELS);
	for (uint32_t i = 0; i < count && i < CONFIG_MAX_MODELS; i++) {
		rpc_convert_model(&infos[i], &models[i]);
		list[i] = &models[i];
	}
	reply.n_models = count < CONFIG_MAX_MODELS ? count : CONFIG_MAX_MODELS;
	reply.models = list;
	rpc_call_reply(c, &reply.base);
}

static void get_model(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__GetModelRequest *m = (const Thaw__V1__GetModelRequest *)request;
	_cleanup_free_ struct server_model_info *info = calloc(1, sizeof(*info));
	Thaw__V1__Model model;
	if (!info) {
		no_memory(c);
		return;
	}
	if (rpc_convert_find_model(c, m->name, info) < 0)
		return;
	rpc_convert_model(info, &model);
	rpc_call_reply(c, &model.base);
}

const struct rpc_method rpc_inference_methods[] = {
	{.path = "/thaw.v1.Inference/Generate",
		.request = &thaw__v1__generate_request__descriptor,
		.start = rpc_generate_start,
		.next = rpc_generate_unary_next,
		.closed = rpc_generate_closed,
		.destroy = rpc_generate_destroy},
	{.path = "/thaw.v1.Inference/GenerateStream",
		.flags = RPC_STREAM,
		.request = &thaw__v1__generate_request__descriptor,
		.start = rpc_generate_start,
		.next = rpc_generate_stream_next,
		.closed = rpc_generate_closed,
		.destroy = rpc_generate_destroy},
	{.path = "/thaw.v1.Inference/Score",
		.request = &thaw__v1__score_request__descriptor,
		.start = rpc_generate_score_start,
		.next = rpc_generate_score_next,
		.closed = rpc_generate_closed,
		.destroy = rpc_generate_destroy},
	{.path = "/thaw.v1.Inference/Tokenize", .request = &thaw__v1__tokenize_request__descriptor, .start = tokenize},
	{.path = "/thaw.v1.Inference/Detokenize",
		.request = &thaw__v1__detokenize_request__descriptor,
		.start = detokenize},
	{.path = "/thaw.v1.Inference/Abort", .request = &thaw__v1__abort_request__descriptor, .start = abort_request},
	{.path = "/thaw.v1.Inference/ListModels",
		.request = &thaw__v1__list_models_request__descriptor,
		.start = list_models},
	{.path = "/thaw.v1.Inference/GetModel",
		.request = &thaw__v1__get_model_request__descriptor,
		.start = get_model},
};
const uint32_t rpc_inference_methods_count = base_array_size(rpc_inference_methods);
