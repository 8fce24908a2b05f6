/* SPDX-License-Identifier: Apache-2.0
 * A request as the engine sees it: plain data, made from a checked protobuf message by rpc, or by a test.
 *
 * rpc's thread makes a struct request, hands it to engine_submit, and from then on the engine's thread owns it and
 * reports through `sink` until the event with final == true; after that the sink is never called again. A sink must
 * not block: rpc's writes into a bounded ring and wakes its queue.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/sample/sample.h"

#define REQUEST_MAX_STOPS 16u
#define REQUEST_MAX_STOP_BYTES 256u
#define REQUEST_MAX_SEQUENCES 16u
#define REQUEST_ID_BYTES 64u
#define REQUEST_MAX_TEXT_BYTES 512u

enum request_priority { REQUEST_PRIORITY_HIGH, REQUEST_PRIORITY_NORMAL, REQUEST_PRIORITY_LOW };
enum request_finish { REQUEST_FINISH_NONE, REQUEST_FINISH_LENGTH, REQUEST_FINISH_STOP, REQUEST_FINISH_ABORTED };

struct request_timing {
	uint64_t queue_ns, prefill_ns, decode_ns;
	uint64_t nvme_stall_ns, network_ns;
	uint64_t nvme_read_bytes; // this request's share: pass bytes divided by the positions in the pass
	double achieved_ratio; // bound / time over its passes, 0..1
	char binding[16]; // "disk", "memory", "compute"
};

struct request_event {
	uint32_t output; // which sequence of the request
	/* A token: token_count 1 and its text (may be empty while a code point is incomplete or a stop string may
	 * begin). */
	uint32_t token_count;
	uint32_t token;
	float logprob;
	uint32_t top_count;
	struct sample_logprob top[SAMPLE_MAX_LOGPROBS];
	char text[REQUEST_MAX_TEXT_BYTES];
	uint32_t text_bytes;
	enum request_finish finish; // of this output
	/* Once, first: */
	bool prompt_info;
	uint32_t prompt_tokens, cached_tokens;
	uint32_t max_new_tokens; // as asked for, cut to the server's limit and to the context
	/* Score: log probability of prompt token `token` at position score_position. */
	bool score;
	uint32_t score_position;
	/* Last one: status 0 or -errno with text (-ECANCELED, -ETIME deadline, -EBADMSG data loss, -EHOSTDOWN
	 * unavailable, -ENOBUFS emit() said false, -EOWNERDEAD each rank that computed it died,
	 * -EIO a bug). Outputs that had not finished get an event with ABORTED before. */
	bool final;
	struct base_error error;
	uint64_t retry_after_ns;
	struct request_timing timing;
};

struct request_sink {
	/* Engine's thread. Returns false when the reader has fallen too far behind: the engine then ends the
	 * request. */
	bool (*emit)(void *context, const struct request_event *event);
	void *context;
};

struct request {
	char id[REQUEST_ID_BYTES]; // unique among running ones; made up by engine_submit if empty
	uint32_t *prompt; // token ids, owned
	uint32_t prompt_tokens;
	bool score; // report log probabilities of the prompt's own tokens, generate nothing
	uint32_t score_first; // first position scored (>= 1)
	uint32_t score_top;
	struct sample_params sampling;
	uint32_t num_sequences;
	uint32_t max_new_tokens;
	bool ignore_eos;
	uint32_t stop_token_count;
	uint32_t stop_tokens[SAMPLE_MAX_BANNED];
	uint32_t stop_count;
	char stops[REQUEST_MAX_STOPS][REQUEST_MAX_STOP_BYTES];
	bool include_stop; // stop string in the text
	uint32_t truncate_prompt_tokens; // keep at most that many last tokens; 0: refuse a long prompt
	enum request_priority priority;
	uint64_t deadline_ns; // base_clock, 0: none; queue time counts
	struct request_sink sink;
};

void request_destroy(struct request *r);
