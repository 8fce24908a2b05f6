/* SPDX-License-Identifier: Apache-2.0
 * From drawn tokens to the text that a client gets: detokenizer, stop strings across the borders of tokens, and the
 * reasons to finish. One output of a request. A pure object of the engine's thread; no allocation after init.
 *
 * Text that may be the beginning of a stop string is held back until it is decided. All that is
 * given out is whole code points.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/request.h"
#include "daemon/text/tokenizer.h"

struct sequence {
	const struct request *request; // of whom the output is; outlives this
	const struct text_tokenizer *tokenizer;
	uint32_t generated; // tokens
	uint32_t max_new_tokens;
	struct text_detokenizer detokenizer;
	char *buffer; // held back text, then text that may go out; (room_bytes)
	size_t held_bytes, room_bytes;
	char *ready; // what may go out, in buffer
	size_t ready_bytes;
	enum request_finish finish;
};

int sequence_init(struct sequence *s, const struct request *r, const struct text_tokenizer *t, uint32_t max_new_tokens);
void sequence_finish(struct sequence *s);

/* Whether this token would end the output, without its text: what the scheduler has to know before the next pass. */
enum request_finish sequence_peek(const struct sequence *s, uint32_t token);
/* Takes a token. Afterwards `ready` (ready_bytes) is the text to give out, valid until the next push, and `finish` says
 * whether this was the last one (then nothing is held back any more). -ENOMEM, -EIO for a token without a piece. */
int sequence_push(struct sequence *s, uint32_t token);
/* Bytes of the longest part of text, at most room, that ends between two code points. */
size_t sequence_cut(const char *text, size_t bytes, size_t room);
