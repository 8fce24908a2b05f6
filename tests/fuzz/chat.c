// SPDX-License-Identifier: Apache-2.0
// NUL-separated strings: a template, then role and content of each message. What is rendered holds no special text of a
// content.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/text/chat.h"

#define MAX_MESSAGES 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static size_t count_of(const char *text, const char *what)
{
	size_t n = 0;
	for (; (text = strstr(text, what)); text += strlen(what))
		n++;
	return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const char *const specials[] = {"<|im_start|>", "<|im_end|>", "<|eot_id|>", NULL};
	static const char *const roles[] = {"system", "user", "assistant", "tool"};
	struct text_chat_message messages[MAX_MESSAGES];
	char *copy = malloc(bytes + 2), *text = NULL;
	if (!copy)
		return 0;
	memcpy(copy, data, bytes);
	copy[bytes] = copy[bytes + 1] = '\0';
	size_t count = 0, at = strlen(copy) + 1;
	while (at < bytes && count < MAX_MESSAGES) {
		messages[count].role = roles[(uint8_t)copy[at] % 4];
		messages[count].content = copy + at + (copy[at] != '\0');
		at += strlen(copy + at) + 1;
		count++;
	}
	struct text_chat_template t;
	struct base_error e = {0};
	text_chat_recognise(copy, &t);
	if (text_chat_render(&t, messages, count, specials, &text, &e) < 0) {
		if (!e.message[0])
			abort();
	} else if (t.kind == TEXT_CHAT_CHATML &&
		   count_of(text, "<|im_start|>") >
			   count + 1 + (t.default_system[0] ? 1 + count_of(t.default_system, "<|im_start|>") : 0)) {
		abort();
	}
	free(text);
	free(copy);
	return 0;
}
