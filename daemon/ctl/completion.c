// SPDX-License-Identifier: Apache-2.0
// completion for three shells, printed from the tables of verbs and options.
#include <string.h>

#include "daemon/ctl/ctl.h"

static bool is_output(const struct ctl_option *o)
{
	return strcmp(o->name, "output") == 0;
}

static bool is_file(const struct ctl_option *o, const struct ctl_verb *v)
{
	if (is_output(o) && v->file)
		return true;
	return o->value && (strcmp(o->value, "FILE") == 0 || strcmp(o->value, "DIR") == 0);
}

static const char *option_words(const struct ctl_option *o, const struct ctl_verb *v)
{
	if (is_output(o))
		return v->file ? NULL : v->svg ? "table wide json svg" : "table wide json";
	if (strcmp(o->name, "chat-template") == 0)
		return "chatml llama2 llama3 mistral";
	if (strcmp(o->name, "device-map") == 0)
		return "auto balanced sequential explicit";
	if (strcmp(o->name, "priority") == 0)
		return "high normal low";
	return NULL;
}

#define BASH_FILES "mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return ;;\n"

static void print_bash_words(const char *words, FILE *out)
{
	fprintf(out, ") mapfile -t COMPREPLY < <(compgen -W \"%s\" -- \"$cur\"); return ;;\n", words);
}

// What -o takes depends on the verb.
static void print_bash_output(const struct ctl_option *o, FILE *out)
{
	static const struct ctl_verb plain;
	fprintf(out, ") case $verb in\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		const struct ctl_verb *v = &ctl_verbs[i];
		if (!v->file && !v->svg)
			continue;
		fprintf(out, "\t\t%s", v->name);
		if (v->file)
			fprintf(out, ") " BASH_FILES);
		else
			print_bash_words(option_words(o, v), out);
	}
	fprintf(out, "\t\t*");
	print_bash_words(option_words(o, &plain), out);
	fprintf(out, "\t\tesac ;;\n");
}

static void print_bash(FILE *out)
{
	static const struct ctl_verb plain;
	fprintf(out, "# bash completion for thawctl\n_thawctl()\n{\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} "
		     "prev=${COMP_WORDS[COMP_CWORD-1]} verb=\"\" word\n\tCOMPREPLY=()\n\tfor word in "
		     "\"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
		     "\t\tcase $word in -*) ;; *) verb=$word; break ;; esac\n\tdone\n\tcase $prev in\n");
	for (size_t i = 0; i < ctl_option_count; i++) {
		const struct ctl_option *o = &ctl_option_table[i];
		if (o->kind == CTL_OPTION_FLAG || o->kind == CTL_OPTION_WATCH)
			continue;
		fprintf(out, "\t--%s", o->name);
		if (o->letter)
			fprintf(out, " | -%c", o->letter);
		if (is_output(o))
			print_bash_output(o, out);
		else if (is_file(o, &plain))
			fprintf(out, ") " BASH_FILES);
		else if (option_words(o, &plain))
			print_bash_words(option_words(o, &plain), out);
		else
			fprintf(out, ") return ;;\n");
	}
	fprintf(out, "\tesac\n\tcase $verb in\n\t\"\") word=\"");
	for (size_t i = 0; i < ctl_verbs_count; i++)
		fprintf(out, "%s%s", i ? " " : "", ctl_verbs[i].name);
	fprintf(out, "\" ;;\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		const struct ctl_verb *v = &ctl_verbs[i];
		fprintf(out, "\t%s) word=\"%s", v->name, v->words ? v->words : "");
		for (size_t k = 0; k < ctl_option_count; k++)
			if (ctl_option_of_verb(&ctl_option_table[k], v))
				fprintf(out, " --%s", ctl_option_table[k].name);
		fprintf(out, "\" ;;\n");
	}
	fprintf(out, "\tesac\n\tmapfile -t COMPREPLY < <(compgen -W \"$word\" -- \"$cur\")\n"
		     "\tif [[ ${#COMPREPLY[@]} -eq 0 && $cur != -* ]]; then\n"
		     "\t\tmapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\tfi\n}\n"
		     "complete -o filenames -F _thawctl thawctl\n");
}

// Inside '...[...]' of _arguments brackets, colons and quotes would end the text.
static void print_zsh_text(const char *text, FILE *out)
{
	for (; *text; text++) {
		if (strchr("[]:", *text))
			fputc('\\', out);
		if (*text == '\'')
			fprintf(out, "'\\''");
		else
			fputc(*text, out);
	}
}

static void print_zsh(FILE *out)
{
	fprintf(out, "#compdef thawctl\n_thawctl() {\n\tlocal -a verbs\n\tlocal verb=${${words[2,CURRENT-1]:#-*}[1]}\n"
		     "\tverbs=(\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		fprintf(out, "\t\t'%s:", ctl_verbs[i].name);
		print_zsh_text(ctl_verbs[i].help, out);
		fprintf(out, "'\n");
	}
	fprintf(out, "\t)\n\tif [[ -z $verb ]]; then\n\t\t_describe verb verbs\n\t\treturn\n\tfi\n"
		     // To _arguments the verb is the command, so that it is not offered as its own first word.
		     "\tlocal -i at=${words[(i)$verb]}\n\twords=(\"${(@)words[at,-1]}\")\n\t(( CURRENT -= at - 1 ))\n"
		     "\tcase $verb in\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		const struct ctl_verb *v = &ctl_verbs[i];
		fprintf(out, "\t%s) _arguments \\\n", v->name);
		for (size_t k = 0; k < ctl_option_count; k++) {
			const struct ctl_option *o = &ctl_option_table[k];
			if (!ctl_option_of_verb(o, v))
				continue;
			fprintf(out, "\t\t'%s--%s%s[", o->kind == CTL_OPTION_LIST ? "*" : "", o->name,
				o->kind == CTL_OPTION_FLAG || o->kind == CTL_OPTION_WATCH ? "" : "=");
			print_zsh_text(o->help, out);
			fprintf(out, "]");
			if (is_file(o, v))
				fprintf(out, ":file:_files");
			else if (option_words(o, v))
				fprintf(out, ":%s:(%s)", o->name, option_words(o, v));
			else if (o->value && o->kind != CTL_OPTION_WATCH)
				fprintf(out, ":%s:", o->name);
			fprintf(out, "' \\\n");
		}
		if (v->words)
			fprintf(out, "\t\t'*:word:(%s)' ;;\n", v->words);
		else
			fprintf(out, "\t\t'*:file:_files' ;;\n");
	}
	// Autoloaded, the file is the body of the function that the first TAB calls; sourced, it only defines it.
	fprintf(out, "\tesac\n}\nif [[ $funcstack[1] == _thawctl ]]; then\n\t_thawctl \"$@\"\nelse\n"
		     "\tcompdef _thawctl thawctl\nfi\n");
}

static void print_fish_text(const char *text, FILE *out)
{
	fputc('\'', out);
	for (; *text; text++) {
		if (*text == '\'' || *text == '\\')
			fputc('\\', out);
		fputc(*text, out);
	}
	fputc('\'', out);
}

static void print_fish(FILE *out)
{
	fprintf(out, "# fish completion for thawctl\n");
	for (size_t i = 0; i < ctl_verbs_count; i++) {
		const struct ctl_verb *v = &ctl_verbs[i];
		fprintf(out, "complete -c thawctl -n __fish_use_subcommand -f -a %s -d ", v->name);
		print_fish_text(v->help, out);
		fputc('\n', out);
		if (v->words)
			fprintf(out, "complete -c thawctl -n '__fish_seen_subcommand_from %s' -f -a '%s'\n", v->name,
				v->words);
		for (size_t k = 0; k < ctl_option_count; k++) {
			const struct ctl_option *o = &ctl_option_table[k];
			if (!ctl_option_of_verb(o, v))
				continue;
			fprintf(out, "complete -c thawctl -n '__fish_seen_subcommand_from %s' -l %s", v->name, o->name);
			if (o->letter)
				fprintf(out, " -s %c", o->letter);
			if (o->kind != CTL_OPTION_FLAG && o->kind != CTL_OPTION_WATCH)
				fprintf(out, is_file(o, v) ? " -r -F" : " -x");
			if (option_words(o, v))
				fprintf(out, " -a '%s'", option_words(o, v));
			fprintf(out, " -d ");
			print_fish_text(o->help, out);
			fputc('\n', out);
		}
	}
}

int ctl_verb_completion(struct ctl *c)
{
	if (strcmp(c->args[0], "bash") == 0)
		print_bash(c->out);
	else if (strcmp(c->args[0], "zsh") == 0)
		print_zsh(c->out);
	else if (strcmp(c->args[0], "fish") == 0)
		print_fish(c->out);
	else
		return ctl_fail(c, CTL_USAGE, "completion: \"%s\" is none of bash, zsh, fish", c->args[0]);
	return CTL_OK;
}
