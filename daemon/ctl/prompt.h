/* SPDX-License-Identifier: Apache-2.0
 * Prompts, answers and figures, for the verbs that send text.
 */
#pragma once

#include "daemon/ctl/ctl.h"
#include "proto/thaw/v1/inference.pb-c.h"

/* A prompt made from the command line with the memory that it points to. */
struct ctl_prompt {
	Thaw__V1__Prompt prompt;
	Thaw__V1__TokenIds ids;
	Thaw__V1__Chat chat;
	Thaw__V1__ChatMessage messages[2];
	Thaw__V1__ChatMessage *list[2];
	char *text;
	uint32_t *tokens;
};

/* Argument 0, or standard input when there is none or it is "-". CTL_OK; ret_text is the caller's to free. */
int ctl_read_text(struct ctl *c, char **ret_text);
int ctl_read_file(struct ctl *c, FILE *f, const char *name, char **ret_text);
/* "1 2,3" -> ids. */
int ctl_parse_ids(struct ctl *c, const char *text, uint32_t **ret_ids, size_t *ret_count);
/* By --token-ids, --chat, --special, --no-bos. Takes text over. */
int ctl_prompt_make(struct ctl *c, char *text, struct ctl_prompt *ret_prompt);
void ctl_prompt_free(struct ctl_prompt *p);

#define CTL_MAX_SEQUENCES 16u

struct ctl_answer { // of one output
	char *text;
	size_t text_bytes, text_room;
	uint32_t *ids;
	size_t ids_count, ids_room;
	struct json_object *logprobs; // array or NULL
	Thaw__V1__FinishReason finish;
};

struct ctl_run { // of one request
	struct ctl_answer answers[CTL_MAX_SEQUENCES];
	uint32_t answers_count;
	uint32_t prompt_tokens, cached_tokens, max_new_tokens;
	bool have_timing;
	uint64_t queue_ns, prefill_ns, decode_ns, stall_ns, read_bytes;
	double achieved_ratio;
	char binding[24], request_id[72];
	uint64_t started_ns, first_ns, last_ns; // ours
};

struct ctl_request { // with the memory that its options need
	Thaw__V1__GenerateRequest request;
	Thaw__V1__Sampling sampling;
	Thaw__V1__Stopping stopping;
	Thaw__V1__ResponseOptions response;
};
int ctl_request_make(struct ctl *c, Thaw__V1__Prompt *prompt, struct ctl_request *ret_request);

const char *ctl_finish_name(Thaw__V1__FinishReason f);

/* Takes a chunk into run; CTL_OK or CTL_ERROR (memory, a server that breaks its bounds). */
int ctl_run_take(struct ctl *c, struct ctl_run *run, const Thaw__V1__GenerateChunk *chunk);
void ctl_run_free(struct ctl_run *run);
struct json_object *ctl_run_figures(const struct ctl_run *run);
void ctl_run_say_figures(struct ctl *c, const struct ctl_run *run);
