// SPDX-License-Identifier: Apache-2.0
// One YAML document over a config: libyaml's events, walked by the shape of the key table (sections of scalars, and
// the list of models), so that nothing deeper or of another kind gets in.
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <yaml.h>

#include "base/cleanup.h"
#include "daemon/config_table.h"

#define MAX_BYTES (1u << 20)
#define SECTION_BYTES 32
#define MAX_DEEP 3u // of a map: its entries, what an entry holds, a list of nodes

struct walk {
	yaml_parser_t parser;
	yaml_event_t event; // the current one
	bool have_event;
	const char *name; // for messages
	struct config *config;
	struct config_origins *origins; // may be NULL
	bool seen[CONFIG_MAX_KEYS];
	char sections[16][SECTION_BYTES]; // that were seen
	size_t sections_count;
	struct base_error *e;
};

static int fail(struct walk *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int fail_at(struct walk *w, yaml_mark_t mark, int code, const char *text)
{
	return base_error_set(w->e, code, "%s:%zu:%zu: %s", w->name, mark.line + 1, mark.column + 1, text);
}

// At the current event.
static int fail(struct walk *w, const char *fmt, ...)
{
	char text[BASE_ERROR_BYTES];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return fail_at(w, w->event.start_mark, -EINVAL, text);
}

static int check_plain(struct walk *w)
{
	const yaml_event_t *v = &w->event;
	const yaml_char_t *anchor = NULL, *tag = NULL;
	switch (v->type) {
	case YAML_ALIAS_EVENT:
		return fail(w, "aliases (*%.40s) are not accepted", (const char *)v->data.alias.anchor);
	case YAML_SCALAR_EVENT:
		anchor = v->data.scalar.anchor, tag = v->data.scalar.tag;
		if (strlen((const char *)v->data.scalar.value) != v->data.scalar.length)
			return fail(w, "NUL character in the value");
		break;
	case YAML_MAPPING_START_EVENT:
		anchor = v->data.mapping_start.anchor, tag = v->data.mapping_start.tag;
		break;
	case YAML_SEQUENCE_START_EVENT:
		anchor = v->data.sequence_start.anchor, tag = v->data.sequence_start.tag;
		break;
	case YAML_DOCUMENT_START_EVENT:
		if (v->data.document_start.version_directive ||
			v->data.document_start.tag_directives.start != v->data.document_start.tag_directives.end)
			return fail(w, "%%YAML and %%TAG directives are not accepted");
		break;
	default:
		break;
	}
	if (anchor)
		return fail(w, "anchors (&%.40s) are not accepted", (const char *)anchor);
	if (tag)
		return fail(w, "tags (%.40s) are not accepted", (const char *)tag);
	return 0;
}

static int next(struct walk *w)
{
	if (w->have_event)
		yaml_event_delete(&w->event);
	w->have_event = false;
	if (!yaml_parser_parse(&w->parser, &w->event)) {
		const char *problem = w->parser.problem ? w->parser.problem : "not YAML";
		if (w->parser.error == YAML_MEMORY_ERROR)
			return base_error_set(w->e, -ENOMEM, "%s: out of memory", w->name);
		if (w->parser.error == YAML_READER_ERROR)
			return base_error_set(
				w->e, -EINVAL, "%s: byte %zu: %s", w->name, w->parser.problem_offset, problem);
		char text[200];
		snprintf(text, sizeof text, "%s%s%s", problem, w->parser.context ? " " : "",
			w->parser.context ? w->parser.context : "");
		return fail_at(w, w->parser.problem_mark, -EINVAL, text);
	}
	w->have_event = true;
	return check_plain(w);
}

static const char *scalar(const struct walk *w)
{
	return (const char *)w->event.data.scalar.value;
}

static bool is_empty_plain(const struct walk *w)
{
	return w->event.type == YAML_SCALAR_EVENT && w->event.data.scalar.length == 0 &&
	       w->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
}

static void origin_here(const struct walk *w, yaml_mark_t mark, char *out)
{
	snprintf(out, CONFIG_ORIGIN_BYTES, "%.256s:%zu:%zu", w->name, mark.line + 1, mark.column + 1);
}

static int assign_here(struct walk *w, const struct config_key *k, void *base)
{
	if (w->event.type != YAML_SCALAR_EVENT)
		return fail(w, "%s: expected one value (%s)", k->path, config_type_name(k->type));
	if (is_empty_plain(w))
		return fail(w, "%s: no value; leave the key out for the default%s", k->path,
			k->type == CONFIG_TYPE_TEXT ? ", or write \"\" for none" : "");
	struct base_error inner = {0};
	if (config_key_assign(k, scalar(w), base, &inner) < 0)
		return fail_at(w, w->event.start_mark, inner.code, inner.message);
	return 0;
}

/* The value at the current event as a tree, for what is deeper than a key and its value. */
static int take_node(struct walk *w, yaml_document_t *d, unsigned deep, int *ret_id);

static int take_items(struct walk *w, yaml_document_t *d, unsigned deep, bool mapping, int id)
{
	for (;;) {
		int first = 0, second = 0;
		int r = next(w);
		if (r == 0 && w->event.type == (mapping ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT))
			return 0;
		r = r < 0 ? r : take_node(w, d, deep + 1, &first);
		r = r < 0 || !mapping ? r : next(w);
		r = r < 0 || !mapping ? r : take_node(w, d, deep + 1, &second);
		if (r < 0)
			return r;
		if (!(mapping ? yaml_document_append_mapping_pair(d, id, first, second)
			      : yaml_document_append_sequence_item(d, id, first)))
			return base_error_set(w->e, -ENOMEM, "%s: out of memory", w->name);
	}
}

static int take_node(struct walk *w, yaml_document_t *d, unsigned deep, int *ret_id)
{
	const yaml_event_t *v = &w->event;
	bool mapping = v->type == YAML_MAPPING_START_EVENT;
	if (deep > MAX_DEEP)
		return fail(w, "nested too deeply");
	int id = v->type == YAML_SCALAR_EVENT ? yaml_document_add_scalar(d, NULL, v->data.scalar.value,
							(int)v->data.scalar.length, v->data.scalar.style)
		 : mapping                    ? yaml_document_add_mapping(d, NULL, YAML_ANY_MAPPING_STYLE)
					      : yaml_document_add_sequence(d, NULL, YAML_ANY_SEQUENCE_STYLE);
	if (!id)
		return base_error_set(w->e, -ENOMEM, "%s: out of memory", w->name);
	yaml_document_get_node(d, id)->start_mark = v->start_mark;
	*ret_id = id;
	return v->type == YAML_SCALAR_EVENT ? 0 : take_items(w, d, deep, mapping, id);
}

static int assign_map(struct walk *w, const struct config_key *k)
{
	yaml_document_t document;
	int id = 0;
	if (is_empty_plain(w))
		return fail(w, "%s: no value; leave the key out for the default", k->path);
	if (!yaml_document_initialize(&document, NULL, NULL, NULL, 1, 1))
		return base_error_set(w->e, -ENOMEM, "%s: out of memory", w->name);
	const struct config_tree t = {&document, w->name, w->e};
	int r = take_node(w, &document, 0, &id);
	char *at = (char *)w->config + k->offset;
	yaml_node_t *n = r == 0 ? yaml_document_get_node(&document, id) : NULL;
	if (r == 0)
		r = k->type == CONFIG_TYPE_SIZES ? config_sizes_take(&t, n, k->path, at)
						 : config_map_take(&t, n, k->path, at);
	yaml_document_delete(&document);
	return r;
}

// At a key scalar of a section; leaves the value's event current.
static int walk_key(struct walk *w, const char *section)
{
	if (w->event.type != YAML_SCALAR_EVENT)
		return fail(w, "a key of \"%s\" must be a word", section);
	char path[128];
	snprintf(path, sizeof path, "%s.%.64s", section, scalar(w));
	const struct config_key *k = config_key_find(path);
	if (!k) {
		char hint[96];
		config_key_suggest(scalar(w), section, hint, sizeof hint);
		return fail(w, "unknown key \"%.64s\" in \"%s\"%s", scalar(w), section, hint);
	}
	size_t index = (size_t)(k - config_keys);
	if (w->seen[index])
		return fail(w, "duplicate key \"%s\"", k->path);
	w->seen[index] = true;
	yaml_mark_t mark = w->event.start_mark;
	int r = next(w);
	if (r < 0)
		return r;
	r = k->type == CONFIG_TYPE_MAP || k->type == CONFIG_TYPE_SIZES ? assign_map(w, k)
								       : assign_here(w, k, w->config);
	if (r == 0 && w->origins)
		origin_here(w, mark, w->origins->key[index]);
	return r;
}

static int walk_section(struct walk *w, const char *section)
{
	if (is_empty_plain(w)) // all of its keys are comments
		return 0;
	if (w->event.type != YAML_MAPPING_START_EVENT)
		return fail(w, "\"%s\" must hold keys, each on its own indented line", section);
	for (;;) {
		int r = next(w);
		if (r < 0)
			return r;
		if (w->event.type == YAML_MAPPING_END_EVENT)
			return 0;
		r = walk_key(w, section);
		if (r < 0)
			return r;
	}
}

static int walk_model(struct walk *w)
{
	if (w->event.type != YAML_MAPPING_START_EVENT)
		return fail(w, "an entry of \"models\" must hold keys: path, name, chat_template");
	yaml_mark_t mark = w->event.start_mark;
	struct config_model model = {0};
	bool seen[CONFIG_MODEL_KEYS] = {false};
	for (;;) {
		int r = next(w);
		if (r < 0)
			return r;
		if (w->event.type == YAML_MAPPING_END_EVENT)
			break;
		if (w->event.type != YAML_SCALAR_EVENT)
			return fail(w, "a key of a model must be a word");
		const struct config_key *k = config_model_key_find(scalar(w));
		if (!k) {
			char hint[96];
			config_key_suggest(scalar(w), "models", hint, sizeof hint);
			return fail(w, "unknown key \"%.64s\" in \"models\"%s", scalar(w), hint);
		}
		bool *again = &seen[k - config_model_keys];
		if (*again)
			return fail(w, "duplicate key \"%s\" in a model", k->path);
		*again = true;
		r = next(w);
		if (r < 0)
			return r;
		r = assign_here(w, k, &model);
		if (r < 0)
			return r;
	}
	char where[CONFIG_ORIGIN_BYTES];
	origin_here(w, mark, where);
	struct base_error inner = {0};
	int r = config_model_finish(&model, &inner);
	if (r == 0)
		r = config_model_put(w->config, w->origins, &model, where, &inner);
	return r < 0 ? fail_at(w, mark, r, inner.message) : 0;
}

static int walk_models(struct walk *w)
{
	if (is_empty_plain(w))
		return 0;
	if (w->event.type != YAML_SEQUENCE_START_EVENT)
		return fail(w, "\"models\" must be a list: lines that start with \"- path: /...\"");
	for (;;) {
		int r = next(w);
		if (r < 0)
			return r;
		if (w->event.type == YAML_SEQUENCE_END_EVENT)
			return 0;
		r = walk_model(w);
		if (r < 0)
			return r;
	}
}

static int walk_top_key(struct walk *w)
{
	if (w->event.type != YAML_SCALAR_EVENT)
		return fail(w, "a key must be a word");
	char section[SECTION_BYTES];
	if (w->event.data.scalar.length >= sizeof section || !config_section_exists(scalar(w), strlen(scalar(w)))) {
		char hint[96];
		config_key_suggest(scalar(w), "", hint, sizeof hint);
		return fail(w, "unknown key \"%.64s\"%s", scalar(w), hint);
	}
	snprintf(section, sizeof section, "%s", scalar(w));
	for (size_t i = 0; i < w->sections_count; i++)
		if (strcmp(w->sections[i], section) == 0)
			return fail(w, "duplicate key \"%s\"", section);
	if (w->sections_count == base_array_size(w->sections))
		return fail(w, "too many sections");
	snprintf(w->sections[w->sections_count++], SECTION_BYTES, "%s", section);
	int r = next(w);
	if (r < 0)
		return r;
	return strcmp(section, "models") == 0 ? walk_models(w) : walk_section(w, section);
}

static int walk_document(struct walk *w)
{
	int r = next(w); // stream start
	if (r == 0)
		r = next(w);
	if (r < 0)
		return r;
	if (w->event.type == YAML_STREAM_END_EVENT) // nothing but comments
		return 0;
	r = next(w);
	if (r < 0)
		return r;
	if (is_empty_plain(w)) {
		r = next(w); // "---" alone: document end follows
		if (r < 0)
			return r;
	} else if (w->event.type != YAML_MAPPING_START_EVENT) {
		return fail(w, "expected sections such as \"listen:\" at the top");
	} else {
		for (;;) {
			r = next(w);
			if (r < 0)
				return r;
			if (w->event.type == YAML_MAPPING_END_EVENT)
				break;
			r = walk_top_key(w);
			if (r < 0)
				return r;
		}
		r = next(w); // document end
		if (r < 0)
			return r;
	}
	r = next(w);
	if (r < 0)
		return r;
	if (w->event.type != YAML_STREAM_END_EVENT)
		return fail(w, "a second document; one file holds one");
	return 0;
}

int config_yaml_apply(const char *text, size_t bytes, const char *name, struct config *c, struct config_origins *o,
	struct base_error *e)
{
	if (bytes > MAX_BYTES)
		return base_error_set(e, -EFBIG, "%s: larger than %u bytes", name, MAX_BYTES);
	struct walk w = {.name = name, .config = c, .origins = o, .e = e};
	if (!yaml_parser_initialize(&w.parser))
		return base_error_set(e, -ENOMEM, "%s: out of memory", name);
	yaml_parser_set_input_string(&w.parser, (const unsigned char *)text, bytes);
	int r = walk_document(&w);
	if (w.have_event)
		yaml_event_delete(&w.event);
	yaml_parser_delete(&w.parser);
	return r;
}
