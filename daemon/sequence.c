// SPDX-License-Identifier: Apache-2.0
#include "daemon/sequence.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Room for a token of n bytes, and the flush after it, behind what is held back. */
static int reserve(struct sequence *s, size_t n)
{
	size_t need = s->held_bytes + TEXT_DETOKENIZER_ROOM(n) + TEXT_DETOKENIZER_ROOM(0);
	if (need <= s->room_bytes)
		return 0;
	char *p = realloc(s->buffer, need);
	if (!p)
		return -ENOMEM;
	s->buffer = p;
	s->room_bytes = need;
	return 0;
}

int sequence_init(struct sequence *s, const struct request *r, const struct text_tokenizer *t, uint32_t max_new_tokens)
{
	*s = (struct sequence){.request = r, .tokenizer = t, .max_new_tokens = max_new_tokens};
	return reserve(s, REQUEST_MAX_STOP_BYTES + REQUEST_MAX_TEXT_BYTES);
}

void sequence_finish(struct sequence *s)
{
	free(s->buffer);
	*s = (struct sequence){0};
}

static bool stop_token(const struct sequence *s, uint32_t token)
{
	const struct request *r = s->request;
	for (uint32_t i = 0; i < r->stop_token_count; i++) {
		if (r->stop_tokens[i] == token)
			return true;
	}
	return !r->ignore_eos && text_tokenizer_is_stop(s->tokenizer, token);
}

enum request_finish sequence_peek(const struct sequence *s, uint32_t token)
{
	if (stop_token(s, token))
		return REQUEST_FINISH_STOP;
	return s->generated + 1 >= s->max_new_tokens ? REQUEST_FINISH_LENGTH : REQUEST_FINISH_NONE;
}

/* The first stop string in text (the longest of those that begin at the same place), or false. */
static bool find_stop(const struct request *r, const char *text, size_t bytes, size_t *ret_at, size_t *ret_length)
{
	bool found = false;
	for (uint32_t i = 0; i < r->stop_count; i++) {
		size_t n = strnlen(r->stops[i], REQUEST_MAX_STOP_BYTES);
		const char *p = n ? memmem(text, bytes, r->stops[i], n) : NULL;
		if (!p)
			continue;
		size_t at = (size_t)(p - text);
		if (found && (at > *ret_at || (at == *ret_at && n <= *ret_length)))
			continue;
		found = true;
		*ret_at = at;
		*ret_length = n;
	}
	return found;
}

/* Bytes at the end of text that may be the beginning of a stop string. */
static size_t undecided(const struct request *r, const char *text, size_t bytes)
{
	size_t most = 0;
	for (uint32_t i = 0; i < r->stop_count; i++) {
		size_t n = strnlen(r->stops[i], REQUEST_MAX_STOP_BYTES);
		for (size_t k = n ? (n - 1 < bytes ? n - 1 : bytes) : 0; k > most; k--) {
			if (memcmp(text + bytes - k, r->stops[i], k) == 0)
				most = k;
		}
	}
	return most;
}

/* Decides what of the buffer's first `bytes` goes out. */
static void decide(struct sequence *s, size_t bytes)
{
	const struct request *r = s->request;
	size_t at = 0, length = 0;
	/* Before min_new_tokens a stop string is ordinary text. */
	bool early = s->generated < r->sampling.min_new_tokens;
	s->ready = s->buffer;
	if (!early && find_stop(r, s->buffer, bytes, &at, &length)) {
		s->finish = REQUEST_FINISH_STOP;
		s->ready_bytes = at + (r->include_stop ? length : 0);
		s->held_bytes = 0;
		return;
	}
	s->held_bytes = early || s->finish ? 0 : undecided(r, s->buffer, bytes);
	s->ready_bytes = bytes - s->held_bytes;
}

int sequence_push(struct sequence *s, uint32_t token)
{
	size_t piece;
	memmove(s->buffer, s->ready ? s->ready + s->ready_bytes : s->buffer, s->held_bytes);
	s->ready = s->buffer;
	s->ready_bytes = 0;
	if (!text_tokenizer_piece(s->tokenizer, token, false, &piece))
		return -EIO;
	int n = reserve(s, piece);
	if (n < 0)
		return n;
	s->finish = sequence_peek(s, token);
	s->generated++;
	size_t bytes = s->held_bytes;
	/* The text of a token that stops is not part of the answer. */
	if (s->finish != REQUEST_FINISH_STOP) {
		n = text_detokenizer_push(
			&s->detokenizer, s->tokenizer, token, false, s->buffer + bytes, s->room_bytes - bytes);
		if (n < 0)
			return n;
		bytes += (size_t)n;
	}
	if (s->finish) {
		n = text_detokenizer_flush(&s->detokenizer, s->buffer + bytes, s->room_bytes - bytes);
		if (n < 0)
			return n;
		bytes += (size_t)n;
	}
	decide(s, bytes);
	return 0;
}

size_t sequence_cut(const char *text, size_t bytes, size_t room)
{
	if (bytes <= room)
		return bytes;
	size_t n = room;
	while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
		n--;
	return n ? n : room;
}
