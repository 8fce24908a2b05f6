// SPDX-License-Identifier: Apache-2.0
// What any client can send: the first byte chooses the message type, the rest is its bytes, which are decoded, checked
// and, where there is an engine behind, turned into a request. What is accepted is within the limits that the engine
// counts on.
#include <stdlib.h>
#include <string.h>

#include "daemon/rpc/rpc_wire.h"
#include "proto/check.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "tests/unit/rpc/fake_server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* In this order for good: the corpus counts on it. */
static const ProtobufCMessageDescriptor *const types[] = {
	&thaw__v1__generate_request__descriptor,
	&thaw__v1__score_request__descriptor,
	&thaw__v1__tokenize_request__descriptor,
	&thaw__v1__detokenize_request__descriptor,
	&thaw__v1__abort_request__descriptor,
	&thaw__v1__list_models_request__descriptor,
	&thaw__v1__get_model_request__descriptor,
	&thaw__admin__v1__get_server_info_request__descriptor,
	&thaw__admin__v1__get_load_request__descriptor,
	&thaw__admin__v1__get_topology_request__descriptor,
	&thaw__admin__v1__get_placement_request__descriptor,
	&thaw__admin__v1__plan_placement_request__descriptor,
	&thaw__admin__v1__load_model_request__descriptor,
	&thaw__admin__v1__unload_model_request__descriptor,
	&thaw__admin__v1__drain_request__descriptor,
	&thaw__admin__v1__undrain_request__descriptor,
	&thaw__admin__v1__watch_events_request__descriptor,
	&thaw__admin__v1__set_log_level_request__descriptor,
	&grpc__health__v1__health_check_request__descriptor,
	&grpc__reflection__v1__server_reflection_request__descriptor,
	&google__rpc__status__descriptor, // what a server can send to our client
	&google__rpc__error_info__descriptor,
	&google__rpc__retry_info__descriptor,
	&google__rpc__bad_request__descriptor,
	&thaw__admin__v1__start_trace_request__descriptor,
	&thaw__admin__v1__stop_trace_request__descriptor,
	&thaw__admin__v1__reload_config_request__descriptor,
	&thaw__admin__v1__get_nodes_request__descriptor,
	&thaw__admin__v1__drain_node_request__descriptor,
};

static void check(bool holds)
{
	if (!holds)
		abort();
}

static void check_request(const struct request *q)
{
	const struct sample_params *p = &q->sampling;
	check(q->prompt && q->prompt_tokens > 0 && q->id[0]);
	for (uint32_t i = 0; i < q->prompt_tokens; i++)
		check(q->prompt[i] < FAKE_VOCAB);
	check(q->num_sequences >= 1 && q->num_sequences <= REQUEST_MAX_SEQUENCES);
	check(p->temperature >= 0 && p->top_p > 0 && p->top_p <= 1 && p->min_p >= 0 && p->min_p <= 1);
	check(p->repetition_penalty > 0 && p->logprobs <= SAMPLE_MAX_LOGPROBS && q->score_top <= SAMPLE_MAX_LOGPROBS);
	check(p->bias_count <= SAMPLE_MAX_BIAS && p->banned_count <= SAMPLE_MAX_BANNED);
	check(q->stop_count <= REQUEST_MAX_STOPS && q->stop_token_count <= SAMPLE_MAX_BANNED);
	for (uint32_t i = 0; i < q->stop_count; i++)
		check(q->stops[i][0] && memchr(q->stops[i], 0, REQUEST_MAX_STOP_BYTES));
	check(!q->score || (q->score_first >= 1 && q->score_first < q->prompt_tokens));
}

static void convert(const ProtobufCMessage *m, const struct server_model *model)
{
	struct request *q = NULL;
	struct rpc_wire_options options;
	struct rpc_fault f = {0};
	uint32_t *tokens = NULL;
	size_t count = 0;
	int r = 0;
	if (m->descriptor == types[0])
		r = rpc_wire_generate(
			(const Thaw__V1__GenerateRequest *)m, model, "", REQUEST_PRIORITY_NORMAL, 1, &q, &options, &f);
	else if (m->descriptor == types[1])
		r = rpc_wire_score((const Thaw__V1__ScoreRequest *)m, model, "id", REQUEST_PRIORITY_LOW, 1, &q, &f);
	else if (m->descriptor == types[2])
		r = rpc_wire_prompt(((const Thaw__V1__TokenizeRequest *)m)->prompt, model, &tokens, &count, &f);
	else
		return;
	if (r < 0) {
		check(f.status != GRPC_STATUS_OK && f.reason && f.message[0]);
		grpc_slice_unref(rpc_fault_pack(&f));
	} else if (q) {
		check_request(q);
	} else {
		check(tokens && count > 0);
	}
	request_destroy(q);
	free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static struct server *server;
	static const struct server_model *model;
	uint64_t retry_ns;
	if (!server) {
		server = fake_server_create(&(struct fake_options){.socket = "/nowhere", .add_bos = true});
		check(server_acquire_model(server, "", &model, &retry_ns, NULL) == 0);
	}
	if (bytes == 0)
		return 0;
	struct proto_budget budget;
	ProtobufCMessage *m = NULL;
	char field[PROTO_FIELD_BYTES];
	struct base_error e = {0};
	int r = proto_unpack(
		types[data[0] % (sizeof(types) / sizeof(types[0]))], data + 1, bytes - 1, &budget, &m, field, &e);
	if (r < 0) {
		check(e.message[0] != 0);
		return 0;
	}
	convert(m, model);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
	check(budget.left_bytes == PROTO_BUDGET_BASE_BYTES + PROTO_BUDGET_FACTOR * (bytes - 1));
	return 0;
}
