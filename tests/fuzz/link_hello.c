// SPDX-License-Identifier: Apache-2.0
// What members of a group tell each other before anything else: the rendezvous' frames and the hello of the ucx engine.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "shard/link/rendezvous.h"
#include "shard/link/ucx_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void check(int r, const struct base_error *e)
{
	if (r > 0 || (r < 0 && (e->code != r || !e->message[0])))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct base_error e = {0};
	if (bytes == 0)
		return 0;
	uint8_t what = data[0] % 3, frame[LINK_RENDEZVOUS_ANSWER_BYTES] = {0};
	data++;
	bytes--;
	if (what < 2) {
		struct link_rendezvous_hello h;
		struct link_rendezvous_answer a;
		memcpy(frame, data, bytes < sizeof frame ? bytes : sizeof frame);
		check(what ? link_rendezvous_read_answer(frame, &a, &e) : link_rendezvous_read_hello(frame, &h, &e),
			&e);
		return 0;
	}
	struct link_ucx_group *g = aligned_alloc(64, (sizeof *g + 63) & ~(size_t)63);
	if (!g)
		abort();
	memset(g, 0, sizeof *g);
	g->core.group = (struct link_group){.members = 2, .me = 1};
	g->version = 1u << 16 | 13u << 8;
	struct link_ucx_hello h = {0};
	memcpy(&h, data, bytes < sizeof h ? bytes : sizeof h);
	int r = link_ucx_check_hello(g, &h, 0, &e);
	check(r, &e);
	if (r == 0 && (g->core.group.epoch == 0 || g->core.ring_bytes < LINK_MIN_RING_BYTES ||
			      g->core.ring_bytes > LINK_MAX_RING_BYTES || h.address_bytes > LINK_UCX_MAX_ADDRESS_BYTES))
		abort();
	free(g);
	return 0;
}
