/* SPDX-License-Identifier: Apache-2.0
 * What the files of this folder share. Not for other rooms.
 */
#pragma once

#include "shard/program/program.h"

/* Reads the keys that all families have, "<architecture>.block_count" and so on, into b->p->config. */
int program_config_read(struct program_builder *b);

/* Values of the same width whose lives do not meet share one buffer. */
int program_share_values(struct program *p, struct base_error *e);

/* The families. */
int program_llama_build(struct program_builder *b);
int program_qwen2_build(struct program_builder *b);
