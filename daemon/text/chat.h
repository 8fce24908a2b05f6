/* SPDX-License-Identifier: Apache-2.0
 * Chat templates, recognised from the template in the file: ChatML, llama 2, llama 3, mistral.
 * No Jinja: a template that is not recognised is an error that names the setting (models[].chat_template) that chooses
 * one. Pure functions, any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define TEXT_MAX_CHAT_MESSAGES 1024u

enum text_chat { TEXT_CHAT_UNKNOWN, TEXT_CHAT_CHATML, TEXT_CHAT_LLAMA2, TEXT_CHAT_LLAMA3, TEXT_CHAT_MISTRAL };

struct text_chat_template {
	enum text_chat kind;
	char default_system[512]; // that the template puts in front when there is no system message; "" for none
	// Mistral: both for "[INST]text[/INST]" (tekken), close for "[INST] text[/INST]" (v3), none for "[INST] text
	// [/INST]".
	bool tight_open, tight_close;
};

struct text_chat_message {
	const char *role; // system, user, assistant
	const char *content;
};

/* name: "chatml", "llama2", "llama3", "mistral" -> kind; -EINVAL. */
int text_chat_find(const char *name, enum text_chat *ret_kind);
const char *text_chat_name(enum text_chat kind);
/* From the model's own template (may be NULL). Unknown ones: kind TEXT_CHAT_UNKNOWN, which render() refuses. */
void text_chat_recognise(const char *jinja, struct text_chat_template *ret_template);
/* The prompt text, ready for encode with parse_special (and a BOS in front where the tokenizer wants one: it is not
 * part of the text), ending where the assistant's answer begins. Text of special
 * tokens inside a message's content is refused (-EINVAL, naming message and token): content cannot forge turns.
 * Roles are system, user and assistant; llama 2 and mistral know only one system message, the first, and turns that
 * alternate and end with the user's (-EINVAL, naming the message). -E2BIG beyond TEXT_MAX_CHAT_MESSAGES or
 * TEXT_MAX_INPUT_BYTES. specials: the texts to refuse, NULL-terminated. ret_text is the caller's to free. */
int text_chat_render(const struct text_chat_template *t, const struct text_chat_message *messages, size_t count,
	const char *const *specials, char **ret_text, struct base_error *e);
