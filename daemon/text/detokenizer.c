// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>

#include "base/utf8.h"
#include "daemon/text/tokenizer.h"

static const char replacement[] = "\xef\xbf\xbd";
#define REPLACEMENT_BYTES 3u

// Writes what is complete of held + piece to out, if there is an out. Returns its bytes; *ret_rest: bytes left over.
static size_t decode(
	const struct text_detokenizer *d, const uint8_t *piece, size_t piece_bytes, char *out, size_t *ret_rest)
{
	size_t total = d->held_bytes + piece_bytes, written = 0, at = 0;
	while (at < total) {
		uint8_t window[4];
		size_t n = 0;
		for (; n < sizeof window && at + n < total; n++)
			window[n] = at + n < d->held_bytes ? d->held[at + n] : piece[at + n - d->held_bytes];
		enum base_utf8 kind;
		size_t used = base_utf8_sequence(window, n, &kind);
		if (kind == BASE_UTF8_PARTIAL)
			break;
		size_t emit = kind == BASE_UTF8_VALID ? used : REPLACEMENT_BYTES;
		if (out)
			memcpy(out + written, kind == BASE_UTF8_VALID ? (const char *)window : replacement, emit);
		written += emit;
		at += used;
	}
	*ret_rest = total - at;
	return written;
}

int text_detokenizer_push(struct text_detokenizer *d, const struct text_tokenizer *t, uint32_t token, bool special,
	char *out, size_t room_bytes)
{
	size_t bytes, rest;
	const uint8_t *piece = (const uint8_t *)text_tokenizer_piece(t, token, special, &bytes);
	size_t need = decode(d, piece, bytes, NULL, &rest);
	if (need > room_bytes || need > INT32_MAX)
		return -ENOBUFS;
	decode(d, piece, bytes, out, &rest);
	if (rest <= bytes) {
		memcpy(d->held, piece + bytes - rest, rest);
	} else { // the piece is too short to end what was held
		size_t kept = rest - bytes;
		memmove(d->held, d->held + d->held_bytes - kept, kept);
		memcpy(d->held + kept, piece, bytes);
	}
	d->held_bytes = (uint32_t)rest;
	return (int)need;
}

int text_detokenizer_flush(struct text_detokenizer *d, char *out, size_t room_bytes)
{
	if (d->held_bytes == 0)
		return 0;
	if (room_bytes < REPLACEMENT_BYTES)
		return -ENOBUFS;
	memcpy(out, replacement, REPLACEMENT_BYTES);
	d->held_bytes = 0;
	return REPLACEMENT_BYTES;
}
