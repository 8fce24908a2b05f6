// SPDX-License-Identifier: Apache-2.0
// Any bytes as a stream of one-byte tokens: what comes out is UTF-8 at every step, and the bytes themselves if they are
// valid.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "daemon/text/tokenizer.h"
#include "tests/unit/text/small_vocabulary.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(bool ok)
{
	if (!ok)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct small_vocabulary s;
	struct text_tokenizer *t = NULL;
	struct text_detokenizer d = {0};
	size_t at = 0;
	small_vocabulary_init(&s, "gpt-2");
	if (bytes > 1u << 20 || text_tokenizer_build(&s.v, &t, NULL) < 0)
		return 0;
	char *out = malloc(3 * bytes + 16);
	for (size_t i = 0; out && i < bytes; i++) {
		int n = text_detokenizer_push(&d, t, data[i], false, out + at, TEXT_DETOKENIZER_ROOM(1));
		check(n >= 0 && base_utf8_prefix(out + at, (size_t)n) == (size_t)n);
		at += (size_t)n;
	}
	if (out) {
		int n = text_detokenizer_flush(&d, out + at, 3);
		check(n == 0 || n == 3);
		at += (size_t)n;
		if (base_utf8_prefix(data, bytes) == bytes)
			check(at == bytes && memcmp(out, data, bytes) == 0);
	}
	free(out);
	text_tokenizer_destroy(t);
	return 0;
}
