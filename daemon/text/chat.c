// SPDX-License-Identifier: Apache-2.0
#include "daemon/text/chat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/tokenizer.h"

static const struct {
	const char *name;
	enum text_chat kind;
} names[] = {
	{"chatml", TEXT_CHAT_CHATML},
	{"llama2", TEXT_CHAT_LLAMA2},
	{"llama3", TEXT_CHAT_LLAMA3},
	{"mistral", TEXT_CHAT_MISTRAL},
};

int text_chat_find(const char *name, enum text_chat *ret_kind)
{
	for (size_t i = 0; i < base_array_size(names); i++) {
		if (strcmp(names[i].name, name) == 0) {
			*ret_kind = names[i].kind;
			return 0;
		}
	}
	return -EINVAL;
}

const char *text_chat_name(enum text_chat kind)
{
	for (size_t i = 0; i < base_array_size(names); i++) {
		if (names[i].kind == kind)
			return names[i].name;
	}
	return "unknown";
}

// Copies the literal p[0..n) of a Jinja string, with its escapes resolved. False if it is no literal, or too long.
static bool unescape(const char *p, size_t n, char *out, size_t room)
{
	size_t at = 0;
	for (size_t i = 0; i < n; i++) {
		char c = p[i];
		if (c == '\'' || c == '"' || c == '{')
			return false; // the string ends, or an expression begins: the prompt is not written out here
		if (c == '\\' && i + 1 < n) {
			c = p[++i];
			c = c == 'n' ? '\n' : c == 't' ? '\t' : c;
		}
		if (at + 1 >= room)
			return false;
		out[at++] = c;
	}
	out[at] = '\0';
	return at > 0;
}

// The system prompt that a ChatML template writes out in full: <|im_start|>system\nTEXT<|im_end|> inside one string.
static void find_default_system(const char *jinja, char *out, size_t room)
{
	static const char open[] = "<|im_start|>system", close[] = "<|im_end|>";
	for (const char *p = jinja; (p = strstr(p, open));) {
		p += strlen(open);
		if (p[0] == '\n')
			p += 1;
		else if (p[0] == '\\' && p[1] == 'n')
			p += 2;
		else
			continue;
		const char *end = strstr(p, close);
		if (end && unescape(p, (size_t)(end - p), out, room))
			return;
	}
	out[0] = '\0';
}

void text_chat_recognise(const char *jinja, struct text_chat_template *ret_template)
{
	struct text_chat_template t = {.kind = TEXT_CHAT_UNKNOWN};
	if (!jinja) {
		*ret_template = t;
		return;
	}
	if (strstr(jinja, "<|im_start|>") && strstr(jinja, "<|im_end|>") && !strstr(jinja, "<|im_sep|>")) {
		t.kind = TEXT_CHAT_CHATML;
		find_default_system(jinja, t.default_system, sizeof t.default_system);
	} else if (strstr(jinja, "<|start_header_id|>") && strstr(jinja, "<|eot_id|>")) {
		t.kind = TEXT_CHAT_LLAMA3;
	} else if (strstr(jinja, "[INST]") && strstr(jinja, "<<SYS>>")) {
		t.kind = TEXT_CHAT_LLAMA2;
	} else if (strstr(jinja, "[INST]") && !strstr(jinja, "[SYSTEM_PROMPT]")) {
		t.kind = TEXT_CHAT_MISTRAL;
		t.tight_open = !strstr(jinja, "[INST] ");
		t.tight_close = !strstr(jinja, " [/INST]");
	}
	*ret_template = t;
}

static bool role_is(const struct text_chat_message *m, const char *role)
{
	return strcmp(m->role, role) == 0;
}

static int check_message(const struct text_chat_template *t, const struct text_chat_message *m, size_t index,
	size_t count, const char *const *specials, struct base_error *e)
{
	if (!role_is(m, "system") && !role_is(m, "user") && !role_is(m, "assistant"))
		return base_error_set(
			e, -EINVAL, "messages[%zu].role \"%.32s\" is not system, user or assistant", index, m->role);
	for (size_t i = 0; specials && specials[i]; i++) {
		if (specials[i][0] && strstr(m->content, specials[i]))
			return base_error_set(e, -EINVAL, "messages[%zu].content holds the special token \"%.64s\"",
				index, specials[i]);
	}
	if (t->kind != TEXT_CHAT_LLAMA2 && t->kind != TEXT_CHAT_MISTRAL)
		return 0;
	if (role_is(m, "system"))
		return index == 0 ? 0
				  : base_error_set(e, -EINVAL,
					    "messages[%zu]: %s takes a system message only as the first", index,
					    text_chat_name(t->kind));
	if (index + 1 == count && !role_is(m, "user"))
		return base_error_set(e, -EINVAL, "messages[%zu]: with %s the last one is the user's", index,
			text_chat_name(t->kind));
	return 0;
}

static int check(const struct text_chat_template *t, const struct text_chat_message *messages, size_t count,
	const char *const *specials, struct base_error *e)
{
	if (t->kind == TEXT_CHAT_UNKNOWN)
		return base_error_set(e, -EINVAL,
			"the model's chat template is not one that is known here; set models[].chat_template to "
			"chatml, llama2, "
			"llama3 or mistral, or send plain text");
	if (count == 0)
		return base_error_set(e, -EINVAL, "messages is empty");
	if (count > TEXT_MAX_CHAT_MESSAGES)
		return base_error_set(
			e, -E2BIG, "messages has %zu entries; at most %u are taken", count, TEXT_MAX_CHAT_MESSAGES);
	size_t bytes = 0;
	bool alternate = t->kind == TEXT_CHAT_LLAMA2 || t->kind == TEXT_CHAT_MISTRAL;
	const char *expected = "user";
	for (size_t i = 0; i < count; i++) {
		int r = check_message(t, &messages[i], i, count, specials, e);
		if (r < 0)
			return r;
		if (alternate && !role_is(&messages[i], "system")) {
			if (!role_is(&messages[i], expected))
				return base_error_set(e, -EINVAL,
					"messages[%zu]: with %s user and assistant take turns; expected %s", i,
					text_chat_name(t->kind), expected);
			expected = role_is(&messages[i], "user") ? "assistant" : "user";
		}
		bytes += strlen(messages[i].content);
		if (bytes > TEXT_MAX_INPUT_BYTES)
			return base_error_set(
				e, -E2BIG, "messages have more than %u bytes of content", TEXT_MAX_INPUT_BYTES);
	}
	if (alternate && role_is(&messages[count - 1], "system"))
		return base_error_set(e, -EINVAL, "messages has no message of the user");
	return 0;
}

static void put_trimmed(const char *text, FILE *out)
{
	static const char blank[] = " \t\r\n\v\f";
	text += strspn(text, blank);
	size_t n = strlen(text);
	while (n > 0 && strchr(blank, text[n - 1]))
		n--;
	fwrite(text, 1, n, out);
}

static void chatml_turn(const char *role, const char *content, FILE *out)
{
	fprintf(out, "<|im_start|>%s\n%s<|im_end|>\n", role, content);
}

static void render_chatml(
	const struct text_chat_template *t, const struct text_chat_message *messages, size_t count, FILE *out)
{
	if (t->default_system[0] && !role_is(&messages[0], "system"))
		chatml_turn("system", t->default_system, out);
	for (size_t i = 0; i < count; i++)
		chatml_turn(messages[i].role, messages[i].content, out);
	fputs("<|im_start|>assistant\n", out);
}

static void render_llama3(const struct text_chat_message *messages, size_t count, FILE *out)
{
	for (size_t i = 0; i < count; i++) {
		fprintf(out, "<|start_header_id|>%s<|end_header_id|>\n\n", messages[i].role);
		put_trimmed(messages[i].content, out);
		fputs("<|eot_id|>", out);
	}
	fputs("<|start_header_id|>assistant<|end_header_id|>\n\n", out);
}

static void render_llama2(const struct text_chat_message *messages, size_t count, FILE *out)
{
	bool opened = false;
	for (size_t i = 0; i < count; i++) {
		if (role_is(&messages[i], "system")) {
			fputs("[INST] <<SYS>>\n", out);
			put_trimmed(messages[i].content, out);
			fputs("\n<</SYS>>\n\n", out);
			opened = true;
		} else if (role_is(&messages[i], "user")) {
			fputs(opened ? "" : i == 0 ? "[INST] " : "<s>[INST] ", out);
			put_trimmed(messages[i].content, out);
			fputs(" [/INST]", out);
			opened = false;
		} else {
			fputc(' ', out);
			put_trimmed(messages[i].content, out);
			fputs(" </s>", out);
		}
	}
}

static void render_mistral(
	const struct text_chat_template *t, const struct text_chat_message *messages, size_t count, FILE *out)
{
	const char *open = t->tight_open ? "[INST]" : "[INST] ", *close = t->tight_close ? "[/INST]" : " [/INST]";
	const char *system = NULL; // goes in front of the first turn of the user
	for (size_t i = 0; i < count; i++) {
		if (role_is(&messages[i], "system")) {
			system = messages[i].content;
		} else if (role_is(&messages[i], "user")) {
			fprintf(out, "%s%s%s%s%s", open, system ? system : "", system ? "\n\n" : "",
				messages[i].content, close);
			system = NULL;
		} else {
			fputs(t->tight_open ? "" : " ", out);
			put_trimmed(messages[i].content, out);
			fputs("</s>", out);
		}
	}
}

int text_chat_render(const struct text_chat_template *t, const struct text_chat_message *messages, size_t count,
	const char *const *specials, char **ret_text, struct base_error *e)
{
	int r = check(t, messages, count, specials, e);
	if (r < 0)
		return r;
	char *text = NULL;
	size_t bytes;
	FILE *out = open_memstream(&text, &bytes);
	if (!out)
		return base_error_set(e, -ENOMEM, "chat: out of memory");
	if (t->kind == TEXT_CHAT_CHATML)
		render_chatml(t, messages, count, out);
	else if (t->kind == TEXT_CHAT_LLAMA3)
		render_llama3(messages, count, out);
	else if (t->kind == TEXT_CHAT_LLAMA2)
		render_llama2(messages, count, out);
	else
		render_mistral(t, messages, count, out);
	bool failed = ferror(out) != 0;
	failed |= fclose(out) != 0;
	if (failed || !text) {
		free(text);
		return base_error_set(e, -ENOMEM, "chat: out of memory");
	}
	*ret_text = text;
	return 0;
}
