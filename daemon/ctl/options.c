// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/nearest.h"
#include "base/units.h"
#include "daemon/ctl/ctl.h"

#define AT(member) offsetof(struct ctl_options, member)
#define DEFAULT_WATCH_NS (2 * BASE_NS_PER_SECOND)

// clang-format off
const struct ctl_option ctl_option_table[] = {
	{"server", 's', CTL_OPTION_TEXT, AT(server), true, "ADDRESS", "unix:PATH or HOST:PORT (default: $THAW_SERVER, unix:/run/thaw/thaw.sock)"},
	{"tls-ca", 0, CTL_OPTION_TEXT, AT(tls_ca), true, "FILE", "PEM file of the authority of the server's certificate"},
	{"tls-cert", 0, CTL_OPTION_TEXT, AT(tls_cert), true, "FILE", "PEM file of our certificate"},
	{"tls-key", 0, CTL_OPTION_TEXT, AT(tls_key), true, "FILE", "PEM file of our private key"},
	{"local", 0, CTL_OPTION_TEXT, AT(local), true, "FILE", "start a private daemon with this model for the one command"},
	{"set", 0, CTL_OPTION_LIST, AT(sets), true, "KEY=VALUE", "a setting of the private daemon, of `config` or `doctor`; can be repeated"},
	{"output", 'o', CTL_OPTION_TEXT, AT(output), true, "FORMAT", "table, wide or json; svg for drawings; of trace: a file"},
	{"no-headers", 0, CTL_OPTION_FLAG, AT(no_headers), true, NULL, "tables without their first line"},
	{"watch", 'w', CTL_OPTION_WATCH, AT(watch_ns), true, "TIME", "again and again, every 2s or TIME"},
	{"timeout", 0, CTL_OPTION_TIME, AT(timeout_ns), true, "TIME", "give up after TIME"},
	{"help", 'h', CTL_OPTION_FLAG, AT(help), true, NULL, "help for the verb"},

	{"model", 'm', CTL_OPTION_TEXT, AT(model), false, "NAME", "which model (default: the only one)"},
	{"token-ids", 0, CTL_OPTION_FLAG, AT(token_ids), false, NULL, "the text given is token ids, and so is what is printed"},
	{"special", 0, CTL_OPTION_FLAG, AT(special), false, NULL, "special tokens are read, or shown, as such"},
	{"no-bos", 0, CTL_OPTION_FLAG, AT(no_bos), false, NULL, "no beginning-of-sequence token"},
	{"chat", 0, CTL_OPTION_FLAG, AT(chat), false, NULL, "put the prompt into the model's chat template"},
	{"system", 0, CTL_OPTION_TEXT, AT(system), false, "TEXT", "system message of the chat"},
	{"max-tokens", 'n', CTL_OPTION_COUNT, AT(max_tokens), false, "N", "generate at most N tokens; 0: what scheduler.max_new_tokens and the context allow"},
	{"temperature", 't', CTL_OPTION_REAL, AT(temperature), false, "X", "0: always the likeliest token (default)"},
	{"top-k", 0, CTL_OPTION_COUNT, AT(top_k), false, "N", "draw from the N likeliest; 0: from all"},
	{"top-p", 0, CTL_OPTION_REAL, AT(top_p), false, "X", "draw from the likeliest that make up X together"},
	{"min-p", 0, CTL_OPTION_REAL, AT(min_p), false, "X", "draw from those at least X times as likely as the likeliest"},
	{"presence-penalty", 0, CTL_OPTION_REAL, AT(presence_penalty), false, "X", "-2 to 2"},
	{"frequency-penalty", 0, CTL_OPTION_REAL, AT(frequency_penalty), false, "X", "-2 to 2"},
	{"repetition-penalty", 0, CTL_OPTION_REAL, AT(repetition_penalty), false, "X", "1: none"},
	{"seed", 0, CTL_OPTION_NUMBER, AT(seed), false, "N", "same seed, same tokens"},
	{"stop", 0, CTL_OPTION_LIST, AT(stops), false, "TEXT", "end before this text; can be repeated"},
	{"ignore-eos", 0, CTL_OPTION_FLAG, AT(ignore_eos), false, NULL, "go on after the model's end token"},
	{"logprobs", 0, CTL_OPTION_COUNT, AT(logprobs), false, "N", "log probabilities of each token and of the N likeliest"},
	{"num-sequences", 0, CTL_OPTION_COUNT, AT(num_sequences), false, "N", "that many answers"},
	{"truncate", 0, CTL_OPTION_COUNT, AT(truncate), false, "N", "keep the last N tokens of a long prompt"},
	{"priority", 0, CTL_OPTION_TEXT, AT(priority), false, "CLASS", "high, normal or low"},
	{"stats", 0, CTL_OPTION_FLAG, AT(stats), false, NULL, "figures of the run on stderr"},
	{"top", 0, CTL_OPTION_COUNT, AT(top), false, "N", "also the N likeliest at each position"},
	{"first", 0, CTL_OPTION_COUNT, AT(first), false, "N", "position of the first token that is scored"},
	{"pieces", 0, CTL_OPTION_FLAG, AT(pieces), false, NULL, "the text of each token"},
	{"text", 0, CTL_OPTION_TEXT, AT(text), false, "FILE", "the text"},
	{"context", 0, CTL_OPTION_COUNT, AT(context), false, "N", "eval: tokens of a chunk (default: 512); plan --fleet: of a sequence (default: the model's)"},
	{"weights", 0, CTL_OPTION_BYTES, AT(weights_bytes), false, "SIZE", "budget for weights, 700MiB for example"},
	{"kv", 0, CTL_OPTION_BYTES, AT(kv_bytes), false, "SIZE", "budget for the KV cache"},
	{"fleet", 0, CTL_OPTION_TEXT, AT(fleet), false, "FILE", "plan for, or show, the machines of this file, without a daemon; see thaw-fleet.yaml(5)"},
	{"topology", 0, CTL_OPTION_LIST, AT(topologies), false, "FILE", "a machine that lstopo recorded as XML, without a daemon; can be repeated"},
	{"device-map", 0, CTL_OPTION_TEXT, AT(device_map), false, "MODE", "auto, balanced or sequential, instead of what the file or the coordinator says; explicit: its cluster.map"},
	{"max-memory", 0, CTL_OPTION_LIST, AT(max_memory), false, "DEVICE=SIZE", "memory that a device may use; can be repeated"},
	{"pin", 0, CTL_OPTION_LIST, AT(pins), false, "MODULES=DEVICE", "layers.0-3=node-a, for example; can be repeated"},
	{"one-stream", 0, CTL_OPTION_FLAG, AT(one_stream), false, NULL, "plan for the speed of one stream instead of a full batch"},
	{"simulate", 0, CTL_OPTION_FLAG, AT(simulate), false, NULL, "play the plan's passes event by event"},
	{"explain", 0, CTL_OPTION_FLAG, AT(explain), false, NULL, "how the numbers come about"},
	{"name", 0, CTL_OPTION_TEXT, AT(name), false, "NAME", "as clients call the model (default: the file's name)"},
	{"chat-template", 0, CTL_OPTION_TEXT, AT(chat_template), false, "NAME", "chatml, llama2, llama3 or mistral"},
	{"no-wait", 0, CTL_OPTION_FLAG, AT(no_wait), false, NULL, "do not wait for the end"},
	{"after", 0, CTL_OPTION_NUMBER, AT(after), false, "N", "only events after number N"},
	{"once", 0, CTL_OPTION_FLAG, AT(once), false, NULL, "print once and end"},
	{"seconds", 0, CTL_OPTION_REAL, AT(seconds), false, "N", "trace for that long, up to 60 (default: 1)"},
	{"streams", 0, CTL_OPTION_COUNT, AT(streams), false, "N", "bench: requests at a time (default: 1); plan --fleet: sequences of a full batch (default: 8)"},
	{"prompt-tokens", 0, CTL_OPTION_COUNT, AT(prompt_tokens), false, "N", "length of each prompt (default: 16)"},
	{"config", 0, CTL_OPTION_TEXT, AT(config), false, "FILE", "main file (default: /etc/thaw/thaw.yaml)"},
	{"conf-dir", 0, CTL_OPTION_TEXT, AT(conf_dir), false, "DIR", "folder of further files (default: /etc/thaw/conf.d)"},
	{"dir", 0, CTL_OPTION_TEXT, AT(directory), false, "DIR", "where the files are (default: /etc/thaw/pki)"},
	{"cluster", 0, CTL_OPTION_TEXT, AT(cluster), false, "NAME", "the cluster's name (default: thaw)"},
	{"role", 0, CTL_OPTION_TEXT, AT(role), false, "ROLE", "coordinator, worker, both (default) or client"},
	{"address", 0, CTL_OPTION_LIST, AT(addresses), false, "ADDRESS", "an IP address or host name of the node; can be repeated"},
	{"days", 0, CTL_OPTION_COUNT, AT(days), false, "N", "valid for that long (default: 3650 for the CA, 365 for others)"},
	{"origin", 0, CTL_OPTION_FLAG, AT(origin), false, NULL, "where each value comes from"},
};
// clang-format on
const size_t ctl_option_count = base_array_size(ctl_option_table);
static_assert(base_array_size(ctl_option_table) <= CTL_MAX_OPTIONS);

bool ctl_option_of_verb(const struct ctl_option *o, const struct ctl_verb *v)
{
	if (o->global) {
		bool server = strcmp(o->name, "server") == 0 || strcmp(o->name, "local") == 0 ||
			      strcmp(o->name, "timeout") == 0 || strncmp(o->name, "tls-", 4) == 0;
		if (strcmp(o->name, "watch") == 0)
			return v->watch;
		return v->server || !server;
	}
	size_t n = strlen(o->name);
	for (const char *at = v->options; at && (at = strstr(at, o->name)); at += n)
		if ((at == v->options || at[-1] == ' ') && (at[n] == ' ' || at[n] == '\0'))
			return true;
	return false;
}

bool ctl_given(const struct ctl *c, const char *option)
{
	for (size_t i = 0; i < ctl_option_count; i++)
		if (strcmp(ctl_option_table[i].name, option) == 0)
			return c->given[i];
	return false;
}

static int parse_whole(const char *text, uint64_t most, uint64_t *ret)
{
	if (!text[0] || text[strspn(text, "0123456789")])
		return -EINVAL;
	errno = 0;
	unsigned long long v = strtoull(text, NULL, 10);
	if (errno == ERANGE || v > most)
		return -ERANGE;
	*ret = v;
	return 0;
}

static int assign(struct ctl *c, const struct ctl_option *o, const char *text)
{
	void *at = (char *)&c->options + o->offset;
	uint64_t whole = 0;
	switch (o->kind) {
	case CTL_OPTION_FLAG:
		*(bool *)at = true;
		return CTL_OK;
	case CTL_OPTION_TEXT:
		*(const char **)at = text;
		return CTL_OK;
	case CTL_OPTION_LIST: {
		struct ctl_list *list = at;
		if (list->count == CTL_MAX_LIST)
			return ctl_fail(c, CTL_USAGE, "--%s: at most %u times", o->name, CTL_MAX_LIST);
		list->items[list->count++] = text;
		return CTL_OK;
	}
	case CTL_OPTION_COUNT:
		if (parse_whole(text, UINT32_MAX, &whole) < 0)
			return ctl_fail(c, CTL_USAGE, "--%s: \"%s\" is not a whole number", o->name, text);
		*(uint32_t *)at = (uint32_t)whole;
		return CTL_OK;
	case CTL_OPTION_NUMBER:
		if (parse_whole(text, UINT64_MAX, (uint64_t *)at) < 0)
			return ctl_fail(c, CTL_USAGE, "--%s: \"%s\" is not a whole number", o->name, text);
		return CTL_OK;
	case CTL_OPTION_REAL: {
		char *end;
		float v = strtof(text, &end);
		if (end == text || *end || !isfinite(v))
			return ctl_fail(c, CTL_USAGE, "--%s: \"%s\" is not a number", o->name, text);
		*(float *)at = v;
		return CTL_OK;
	}
	case CTL_OPTION_BYTES:
		if (base_units_parse_bytes(text, at) < 0)
			return ctl_fail(
				c, CTL_USAGE, "--%s: \"%s\" is not a size; write 700MiB, for example", o->name, text);
		return CTL_OK;
	case CTL_OPTION_WATCH:
		if (!text) {
			*(uint64_t *)at = DEFAULT_WATCH_NS;
			return CTL_OK;
		}
		__attribute__((fallthrough));
	case CTL_OPTION_TIME:
		if (base_units_parse_duration(text, at) < 0 || *(uint64_t *)at == 0)
			return ctl_fail(
				c, CTL_USAGE, "--%s: \"%s\" is not a time; write 5s, for example", o->name, text);
		return CTL_OK;
	}
	return CTL_ERROR;
}

static const struct ctl_option *find_option(const char *name, size_t bytes, char letter)
{
	for (size_t i = 0; i < ctl_option_count; i++) {
		const struct ctl_option *o = &ctl_option_table[i];
		if (letter ? o->letter == letter : strncmp(o->name, name, bytes) == 0 && o->name[bytes] == '\0')
			return o;
	}
	return NULL;
}

static int refuse_option(struct ctl *c, const char *arg)
{
	char name[BASE_NEAREST_BYTES] = "";
	if (arg[1] == '-')
		snprintf(name, sizeof name, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
	struct base_nearest n;
	base_nearest_init(&n, name);
	for (size_t i = 0; name[0] && i < ctl_option_count; i++)
		if (!c->verb || ctl_option_of_verb(&ctl_option_table[i], c->verb))
			base_nearest_consider(&n, ctl_option_table[i].name, ctl_option_table[i].name);
	if (n.best[0])
		return ctl_fail(c, CTL_USAGE, "unknown option %s; did you mean --%s?", arg, n.best);
	return ctl_fail(c, CTL_USAGE, "unknown option %s; see thawctl help%s%s", arg, c->verb ? " " : "",
		c->verb ? c->verb->name : "");
}

// argv[*i] is an option: takes it and its value.
static int parse_option(struct ctl *c, int argc, char **argv, int *i)
{
	const char *arg = argv[*i], *value = NULL;
	const struct ctl_option *o;
	bool is_long = arg[1] == '-';
	if (is_long) {
		size_t n = strcspn(arg + 2, "=");
		o = find_option(arg + 2, n, 0);
		if (arg[2 + n] == '=')
			value = arg + 3 + n;
	} else {
		o = find_option(NULL, 0, arg[1]);
		if (arg[2])
			value = arg + 2 + (arg[2] == '=');
	}
	if (!o)
		return refuse_option(c, arg);
	if (o->kind == CTL_OPTION_FLAG && value)
		return ctl_fail(c, CTL_USAGE, "--%s takes no value", o->name);
	if (o->kind != CTL_OPTION_FLAG && o->kind != CTL_OPTION_WATCH && !value) {
		if (*i + 1 >= argc)
			return ctl_fail(c, CTL_USAGE, "--%s needs a value: %s", o->name, o->value);
		value = argv[++*i];
	}
	c->given[o - ctl_option_table] = true;
	return assign(c, o, value);
}

static bool is_format(const char *text)
{
	static const char *const formats[] = {"table", "wide", "json", "svg"};
	for (size_t i = 0; i < base_array_size(formats); i++)
		if (strcmp(formats[i], text) == 0)
			return true;
	return false;
}

static int check_options(struct ctl *c)
{
	for (size_t i = 0; i < ctl_option_count; i++)
		if (c->given[i] && !ctl_option_of_verb(&ctl_option_table[i], c->verb))
			return ctl_fail(c, CTL_USAGE, "%s does not take --%s; see thawctl help %s", c->verb->name,
				ctl_option_table[i].name, c->verb->name);
	if (c->verb->file && c->options.output && is_format(c->options.output))
		return ctl_fail(c, CTL_USAGE,
			"--output: of %s it names the file, and \"%s\" is a format; ./%s is a file of that name",
			c->verb->name, c->options.output, c->options.output);
	const char *output = c->verb->file ? NULL : c->options.output;
	if (output && strcmp(output, "json") == 0)
		c->output = CTL_OUTPUT_JSON;
	else if (output && strcmp(output, "wide") == 0)
		c->output = CTL_OUTPUT_WIDE;
	else if (output && strcmp(output, "svg") == 0 && c->verb->svg)
		c->output = CTL_OUTPUT_SVG;
	else if (output && strcmp(output, "table") != 0)
		return ctl_fail(c, CTL_USAGE, "--output: \"%s\" is none of table, wide, json%s", output,
			c->verb->svg ? ", svg" : "");
	if (c->options.sets.count && c->verb->server && c->verb->run != ctl_verb_doctor && !c->options.local)
		return ctl_fail(c, CTL_USAGE, "--set is for --local; a running daemon reads its own files");
	if (c->options.local && c->options.server)
		return ctl_fail(c, CTL_USAGE, "--local starts its own daemon; --server names another one");
	return CTL_OK;
}

static int take_word(struct ctl *c, const char *word)
{
	if (!c->verb) {
		c->verb = ctl_verb_find(word);
		return c->verb ? CTL_OK : ctl_refuse_verb(c, word);
	}
	if (c->args_count == CTL_MAX_ARGS)
		return ctl_fail(c, CTL_USAGE, "more than %u arguments", CTL_MAX_ARGS);
	c->args[c->args_count++] = word;
	return CTL_OK;
}

static int check_arguments(struct ctl *c)
{
	const struct ctl_verb *v = c->verb;
	if (c->args_count < v->min_args)
		return ctl_fail(c, CTL_USAGE, "%s needs %s; see thawctl help %s", v->name, v->args, v->name);
	if (c->args_count > v->max_args && v->max_args == 0)
		return ctl_fail(c, CTL_USAGE, "%s takes no arguments; see thawctl help %s", v->name, v->name);
	if (c->args_count > v->max_args)
		return ctl_fail(c, CTL_USAGE, "%s takes at most %u argument%s (quote a text with spaces)", v->name,
			v->max_args, v->max_args == 1 ? "" : "s");
	return check_options(c);
}

int ctl_parse(struct ctl *c, int argc, char **argv)
{
	bool ended = false; // after "--" nothing is an option
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i];
		int r = CTL_OK;
		if (!ended && strcmp(arg, "--") == 0)
			ended = true;
		else if (!ended && strcmp(arg, "--version") == 0)
			c->verb = ctl_verb_find("version");
		else if (!ended && arg[0] == '-' && arg[1])
			r = parse_option(c, argc, argv, &i);
		else
			r = take_word(c, arg);
		if (r != CTL_OK)
			return r;
	}
	if (!c->verb && !c->options.help) {
		ctl_print_help(c->err);
		return CTL_USAGE;
	}
	if (!c->verb)
		c->verb = ctl_verb_find("help");
	if (c->options.help)
		return CTL_OK;
	return check_arguments(c);
}
