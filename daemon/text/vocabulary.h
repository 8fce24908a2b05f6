/* SPDX-License-Identifier: Apache-2.0
 * A tokenizer's metadata as plain data: what load.c reads from a GGUF file, and what tests write by hand.
 * Internal to daemon/text (and its tests).
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "daemon/text/tokenizer.h"

#define TEXT_MAX_VOCABULARY (1u << 22)
#define TEXT_MAX_MERGES (1u << 23)
#define TEXT_MAX_TOKEN_BYTES 65536u
#define TEXT_MAX_SPECIAL_BYTES 512u

enum text_token_type { // of the GGUF format
	TEXT_TOKEN_UNDEFINED,
	TEXT_TOKEN_NORMAL,
	TEXT_TOKEN_UNKNOWN,
	TEXT_TOKEN_CONTROL,
	TEXT_TOKEN_USER_DEFINED,
	TEXT_TOKEN_UNUSED,
	TEXT_TOKEN_BYTE,
	TEXT_TOKEN_TYPES,
};

struct text_vocabulary {
	struct format_gguf_string model, pre;
	const struct format_gguf_string
		*tokens; // (tokens_count), normal ones in GPT-2's alphabet of visible characters
	const uint32_t *types; // (tokens_count) enum text_token_type, NULL: all normal
	const struct format_gguf_string *merges; // (merges_count) "left right", best first
	uint32_t tokens_count, merges_count;
	uint32_t bos, eos, eot, eom; // TEXT_NO_TOKEN: none
	int add_bos; // -1: what the pre-tokenizer's family does
	bool add_space_prefix;
};

/* -EINVAL, by name, if model or pre is not supported. */
int text_vocabulary_check(const struct text_vocabulary *v, struct base_error *e);
/* Copies what it needs. -EINVAL: not supported or not consistent, e names the key; -ENOMEM. */
int text_tokenizer_build(const struct text_vocabulary *v, struct text_tokenizer **ret_tokenizer, struct base_error *e);
