/* SPDX-License-Identifier: Apache-2.0
 * Between messages and plain data: requests are checked field by field here, and a fault names the field.
 *
 * No gRPC calls, no I/O: any thread. Strings of messages have been checked by proto_unpack.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/request.h"
#include "daemon/rpc/rpc_status.h"
#include "daemon/server.h"
#include "proto/thaw/v1/inference.pb-c.h"

#define RPC_WIRE_MAX_TOKENS (4u << 20) // of a prompt: what fits a message
#define RPC_WIRE_MAX_REPLY_BYTES (15u << 20)

/* Token ids of a prompt, never empty; the caller frees. Returns 0, or -1 with the fault. */
int rpc_wire_prompt(const Thaw__V1__Prompt *p, const struct server_model *m, uint32_t **ret_tokens, size_t *ret_count,
	struct rpc_fault *f);

struct rpc_wire_options { // of the answer
	bool omit_text, token_ids, logprobs;
};

/* A request without sink and deadline; request_destroy frees it. id: from x-request-id, "" if none; where neither gives
 * one it is made up. seed: for a request without one. */
int rpc_wire_generate(const Thaw__V1__GenerateRequest *g, const struct server_model *m, const char *id,
	enum request_priority priority, uint64_t seed, struct request **ret_request,
	struct rpc_wire_options *ret_options, struct rpc_fault *f);
int rpc_wire_score(const Thaw__V1__ScoreRequest *s, const struct server_model *m, const char *id,
	enum request_priority priority, uint64_t seed, struct request **ret_request, struct rpc_fault *f);
/* What a client calls its request: printable ASCII without spaces. */
int rpc_wire_check_id(const char *id, struct rpc_fault *f);
void rpc_wire_timing(const struct request_timing *t, Thaw__V1__Timing *ret_timing);

/* protobuf-c's strings end at a NUL byte: one in a text becomes SUB, which ASCII has for that. */
void rpc_wire_no_nul(char *text, size_t bytes);

/* A record: what a ring carries of an event, without the room that it does not use. */
enum rpc_record_flags { RPC_RECORD_TOKEN = 1, RPC_RECORD_PROMPT_INFO = 2, RPC_RECORD_SCORE = 4 };
struct rpc_record {
	uint32_t output, token, position;
	float logprob;
	uint32_t prompt_tokens, cached_tokens, max_new_tokens;
	uint8_t flags, finish, top_count;
	uint16_t text_bytes;
	struct sample_logprob top[]; // top_count, then the text
};
uint32_t rpc_record_bytes(const struct request_event *e);
void rpc_record_write(const struct request_event *e, struct rpc_record *out);
static inline const char *rpc_record_text(const struct rpc_record *r)
{
	return (const char *)(r->top + r->top_count);
}
/* Does the event say anything beside its end? */
bool rpc_record_wanted(const struct request_event *e);
