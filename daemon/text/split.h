/* SPDX-License-Identifier: Apache-2.0
 * Pre-tokenizers: where byte-level BPE may not merge across. Internal to daemon/text (and its tests).
 * Pure functions, any thread, no allocation.
 */
#pragma once

#include <stddef.h>

enum text_split { TEXT_SPLIT_GPT2, TEXT_SPLIT_SMOLLM, TEXT_SPLIT_LLAMA_BPE, TEXT_SPLIT_QWEN2 };

/* tokenizer.ggml.pre -> kind: "gpt-2", "smollm", "llama-bpe" (also "llama3", "llama-v3"), "qwen2" (also
 * "deepseek-r1-qwen"). -EINVAL for any other. */
int text_split_find(const char *name, size_t bytes, enum text_split *ret_kind);
/* Bytes of the first piece of a text that is not empty and valid UTF-8. The pieces, one after the other, are the whole
 * text; finding all of them takes time linear in the text. */
size_t text_split_next(enum text_split kind, const char *text, size_t bytes);
