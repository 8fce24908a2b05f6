/* SPDX-License-Identifier: Apache-2.0
 * A rank for tests of what is around ranks: rank.h's functions without weights, kernels or files. Linked
 * instead of lib_rank, beside lib_rank_serve.
 *
 * It computes with small integers, so results are exact: a token depends on all tokens of its sequence, read through
 * the KV blocks that the pass names, on every layer, and on nothing else; so wrong blocks, positions or hidden rows
 * give other tokens. toy_rank_next() says what is right. Sampling ignores its parameters but for min_new_tokens with
 * banned (a banned token is moved on to the next one that is not).
 *
 * config.model_path is a list of settings, "vocab=258 layers=4 width=8 blocks=64 load_ms=0 pass_ms=0 cold=0 fail_load=0
 * fail_token=-1 fail_layer=0 crash_token=-1" (these are the defaults):
 * blocks: KV blocks that the placement says; pass_ms: how long each pass takes; cold: cold_bytes of the placement;
 * fail_load: rank_create fails; fail_token: an entry with this token fails with -EIO in the stage that has fail_layer;
 * crash_token: the process (or thread's process) gets SIGKILL when it runs this token.
 */
#pragma once

#include <stdint.h>

/* The token that follows, of a model with these settings. */
uint32_t toy_rank_next(uint32_t vocab, uint32_t layers, uint32_t width, const uint32_t *tokens, uint32_t count);
