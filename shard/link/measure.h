/* SPDX-License-Identifier: Apache-2.0
 * What a link between two hosts carries, measured with the messages that ranks send: a group of two members, who both
 * call it. Member 0 sends small messages back and forth, then large ones one way for LINK_MEASURE_NS; member 1 says how
 * fast they came, since the first of them are what buffers on the way take. The group is good for nothing else
 * afterwards. The group's thread.
 */
#pragma once

#include "shard/link/link.h"

#define LINK_MEASURE_TURNS 200u // round trips at most
#define LINK_MEASURE_TURNS_NS 50000000ull // of them together
#define LINK_MEASURE_BLOCK_BYTES (256u << 10)
#define LINK_MEASURE_NS 150000000ull // of sending blocks; what is under way then still has to arrive

struct link_measured { // a message takes latency_ns + bytes / bytes_per_s
	double latency_ns, bytes_per_s;
};

/* Both members get the figures. -ETIMEDOUT, -ECONNRESET, -EPROTO. */
int link_measure(struct link_group *g, uint64_t deadline_ns, struct link_measured *ret_measured, struct base_error *e);
