// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "base/cleanup.h"
#include "base/nearest.h"
#include "daemon/ctl/ctl.h"

#define SAMPLING                                                                                                       \
	"max-tokens temperature top-k top-p min-p presence-penalty frequency-penalty repetition-penalty seed stop "    \
	"ignore-eos priority truncate stats"

// clang-format off
const struct ctl_verb ctl_verbs[] = {
	{"status", "", "is it up, ready, and with which models", "Ends with 6 when the daemon is not ready.",
		"", 0, 0, true, true, NULL, ctl_verb_status},
	{"models", "", "the models and their state", NULL, "", 0, 0, true, true, NULL, ctl_verb_models},
	{"topology", "", "the machine, or all of a cluster and their links: CPUs, memory, GPUs, drives, NICs, what was measured",
		"The coordinator shows all nodes, and has the * in the list. -o svg draws them. With --topology or --fleet no daemon is asked.",
		"topology fleet", 0, 0, true, true, NULL, ctl_verb_topology, true},
	{"placement", "[MODEL]", "where the bytes of the models are", NULL,
		"explain", 0, 1, true, true, NULL, ctl_verb_placement, true},
	{"explain", "[MODEL]", "how the numbers of a model's plan come about", NULL, "", 0, 1, true, false, NULL, ctl_verb_explain},
	{"plan", "FILE", "what loading this file would do; nothing is loaded",
		"Ends with 5 when it does not fit, and says what would help. With --fleet it plans for the machines of a file, "
		"and no daemon is asked; -o svg and --simulate are for that.",
		"weights kv explain fleet device-map max-memory pin one-stream simulate context streams", 1, 1, true, false, NULL,
		ctl_verb_plan, true},
	{"load", "FILE", "load a model and wait until it is ready", NULL,
		"name chat-template no-wait", 1, 1, true, false, NULL, ctl_verb_load},
	{"unload", "MODEL", "give a model's memory back; its store stays", NULL, "", 1, 1, true, false, NULL, ctl_verb_unload},
	{"generate", "[PROMPT]", "go on from a prompt",
		"Without PROMPT, or with -, the prompt is read from standard input. With --token-ids the prompt is token ids, "
		"separated by spaces or commas, and ids are printed.",
		"model chat system token-ids special no-bos logprobs num-sequences " SAMPLING, 0, 1, true, false, NULL,
		ctl_verb_generate},
	{"chat", "[MESSAGE]", "talk to a model; without MESSAGE line by line", "The conversation ends with the input, or with /exit.",
		"model system " SAMPLING, 0, 1, true, false, NULL, ctl_verb_chat},
	{"score", "[TEXT]", "log probabilities of the tokens of a text", NULL,
		"model token-ids special no-bos top first truncate", 0, 1, true, false, NULL, ctl_verb_score},
	{"eval", "", "perplexity of a text file",
		"The text is cut into chunks of --context tokens; the second half of each is counted.",
		"model text context", 0, 0, true, false, NULL, ctl_verb_eval},
	{"tokenize", "[TEXT]", "the token ids of a text", NULL,
		"model special no-bos chat system pieces", 0, 1, true, false, NULL, ctl_verb_tokenize},
	{"detokenize", "[IDS]", "the text of token ids", NULL, "model special", 0, CTL_MAX_ARGS, true, false, NULL,
		ctl_verb_detokenize},
	{"nodes", "", "the nodes of the cluster and what they compute", "Asks the coordinator, which has the * in the list.",
		"", 0, 0, true, true, NULL, ctl_verb_nodes},
	{"drain", "[NODE]", "take no new requests and wait for the running ones",
		"With NODE: move the work of this node of the cluster to the others, and wait until it has none.", "no-wait", 0, 1, true, false, NULL,
		ctl_verb_drain},
	{"undrain", "[NODE]", "take requests again; with NODE: let it have work again", NULL, "", 0, 1, true, false, NULL, ctl_verb_undrain},
	{"events", "", "what happened; with --watch also what happens", NULL, "after", 0, 0, true, true, NULL,
		ctl_verb_events},
	{"top", "", "load, latencies and the bound, once a second", NULL, "once", 0, 0, true, true, NULL, ctl_verb_top},
	{"trace", "[MODEL]", "a second of compute, drives and links of every rank, for ui.perfetto.dev",
		"-o names the file; without it the JSON goes to standard output. Tracing costs the ranks little, and memory: 1 MiB each.",
		"seconds", 0, 1, true, false, NULL, ctl_verb_trace, .file = true},
	{"bench", "", "load of a number of streams, with figures",
		"Prompts are random token ids. Prints tokens/s, time to the first token, time between tokens, NVMe bytes per token "
		"and how close the passes came to their bound.",
		"model streams prompt-tokens max-tokens", 0, 0, true, false, NULL, ctl_verb_bench},
	{"config", "check|show|keys", "check or show a configuration, or list its keys", NULL,
		"config conf-dir origin", 1, 1, false, false, "check show keys", ctl_verb_config},
	{"pki", "init|node|check [NAME]", "make or look at the certificates of a cluster",
		"init makes a CA, node NAME a certificate and a key for a node or, with --role client, for a program; check NAME says "
		"whether they are valid. Nothing is overwritten; files have mode 0600.",
		"dir cluster role address days", 1, 2, false, false, "init node check", ctl_verb_pki},
	{"reload", "", "have the daemon read its configuration again, as SIGHUP does", NULL, "", 0, 0, true, false, NULL,
		ctl_verb_reload},
	{"doctor", "", "what this machine, its configuration and the daemon lack",
		"Changes nothing. Ends with 1 when something will not work; warnings say what would be faster. Run it as the user of thawd.",
		"config conf-dir", 0, 0, true, false, NULL, ctl_verb_doctor},
	{"completion", "SHELL", "completion for bash, zsh or fish",
		"For bash: source <(thawctl completion bash)", "", 1, 1, false, false, "bash zsh fish", ctl_verb_completion},
	{"version", "", "the version of thawctl", NULL, "", 0, 0, false, false, NULL, ctl_verb_version},
	{"help", "[VERB]", "this list, or help for one verb", NULL, "", 0, 1, false, false, NULL, ctl_verb_help},
};
// clang-format on
const size_t ctl_verbs_count = base_array_size(ctl_verbs);

const struct ctl_verb *ctl_verb_find(const char *name)
{
	for (size_t i = 0; i < ctl_verbs_count; i++)
		if (strcmp(ctl_verbs[i].name, name) == 0)
			return &ctl_verbs[i];
	return NULL;
}

int ctl_refuse_verb(struct ctl *c, const char *word)
{
	struct base_nearest n;
	base_nearest_init(&n, word);
	for (size_t i = 0; i < ctl_verbs_count; i++)
		base_nearest_consider(&n, ctl_verbs[i].name, ctl_verbs[i].name);
	if (n.best[0])
		return ctl_fail(c, CTL_USAGE, "no verb \"%s\"; did you mean \"%s\"?", word, n.best);
	return ctl_fail(c, CTL_USAGE, "no verb \"%s\"; see thawctl help", word);
}

static void print_option(const struct ctl_option *o, FILE *out)
{
	char left[48];
	int n = snprintf(left, sizeof left, "%c%c%s--%s", o->letter ? '-' : ' ', o->letter ? o->letter : ' ',
		o->letter ? ", " : "  ", o->name);
	if (o->value && n > 0 && (size_t)n < sizeof left)
		snprintf(left + n, sizeof left - (size_t)n, o->kind == CTL_OPTION_WATCH ? "[=%s]" : " %s", o->value);
	fprintf(out, "  %-28s %s\n", left, o->help);
}

void ctl_print_help(FILE *out)
{
	fprintf(out, "usage: thawctl VERB [ARGUMENTS] [OPTIONS]\n\nVerbs:\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		char left[48];
		snprintf(left, sizeof left, "%s %s", ctl_verbs[i].name, ctl_verbs[i].args);
		fprintf(out, "  %-24s %s\n", left, ctl_verbs[i].help);
	}
	fprintf(out, "\nOptions of all verbs:\n");
	for (size_t i = 0; i < ctl_option_count; i++)
		if (ctl_option_table[i].global)
			print_option(&ctl_option_table[i], out);
	fprintf(out, "\nExit status: 0 ok, 1 error, 2 usage, 3 unreachable, 4 not found, 5 does not fit, 6 degraded.\n"
		     "thawctl help VERB has the rest.\n");
}

void ctl_print_verb_help(const struct ctl_verb *v, FILE *out)
{
	fprintf(out, "usage: thawctl %s%s%s [OPTIONS]\n\n%s.\n", v->name, v->args[0] ? " " : "", v->args, v->help);
	if (v->more)
		fprintf(out, "%s\n", v->more);
	fprintf(out, "\nOptions:\n");
	for (size_t pass = 0; pass < 2; pass++) // its own first
		for (size_t i = 0; i < ctl_option_count; i++)
			if (ctl_option_table[i].global == (pass == 1) && ctl_option_of_verb(&ctl_option_table[i], v))
				print_option(&ctl_option_table[i], out);
}

int ctl_verb_help(struct ctl *c)
{
	if (c->args_count == 0) {
		ctl_print_help(c->out);
		return CTL_OK;
	}
	const struct ctl_verb *v = ctl_verb_find(c->args[0]);
	if (!v)
		return ctl_refuse_verb(c, c->args[0]);
	ctl_print_verb_help(v, c->out);
	return CTL_OK;
}

int ctl_verb_version(struct ctl *c)
{
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "version", json_object_new_string(THAW_VERSION));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "thawctl %s\n", THAW_VERSION);
	return CTL_OK;
}
