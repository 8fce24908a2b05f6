/* SPDX-License-Identifier: Apache-2.0
 * A bounded ring of records between two threads: one writes (the engine's), one reads (the call's queue). No locks.
 *
 * A record is contiguous; where it would wrap, the rest of the ring is skipped. Memory is taken once.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define RPC_RING_ALIGN 8u

struct rpc_ring {
	uint8_t *data;
	uint32_t bytes; // a power of two
	_Alignas(64) _Atomic uint32_t head; // written up to here; the writer's
	uint32_t tail_seen; // the writer's last look at tail
	_Alignas(64) _Atomic uint32_t tail; // read up to here; the reader's
};

/* Room for at least that many bytes: -ENOMEM, -EINVAL beyond 1 GiB. */
int rpc_ring_init(struct rpc_ring *r, uint64_t bytes);
void rpc_ring_finish(struct rpc_ring *r);

/* Writer: memory for a record of that many bytes, or NULL when it does not fit now; then commit with the same number.
 */
void *rpc_ring_reserve(struct rpc_ring *r, uint32_t bytes);
void rpc_ring_commit(struct rpc_ring *r, uint32_t bytes);

/* Reader: the oldest record (valid until release), or NULL. */
const void *rpc_ring_peek(struct rpc_ring *r, uint32_t *ret_bytes);
void rpc_ring_release(struct rpc_ring *r);
/* Reader, after a peek that gave a record: is it the newest? */
bool rpc_ring_is_last(const struct rpc_ring *r);
/* Any thread: bytes in use now, about. */
uint32_t rpc_ring_used(const struct rpc_ring *r);
