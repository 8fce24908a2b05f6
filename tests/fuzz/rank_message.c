// SPDX-License-Identifier: Apache-2.0
// Messages between coordinator and ranks: what decodes has exactly one encoding.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shard/rank/message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct rank_message_scratch *scratch;
	struct rank_message m;
	struct base_error e;
	uint8_t *copy = malloc(bytes + 1), *again = malloc(bytes + 1);
	if (!copy || !again || rank_message_scratch_create(&scratch) < 0)
		abort();
	if (bytes)
		memcpy(copy, data, bytes);
	if (rank_message_decode(copy, bytes, scratch, &m, &e) == 0) {
		if (rank_message_encode(&m, again, bytes) != (int64_t)bytes || memcmp(copy, again, bytes) != 0)
			abort();
	} else if (e.code >= 0 || !e.message[0]) {
		abort();
	}
	rank_message_scratch_destroy(scratch);
	free(copy);
	free(again);
	return 0;
}
