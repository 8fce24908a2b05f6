// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <string.h>

#include <json-c/json.h>

#include "daemon/config.h"
#include "daemon/config_table.h"

#define VALUE_BYTES CONFIG_MAP_BYTES
// Every character of a text can need a backslash.
_Static_assert(VALUE_BYTES >= 2 * CONFIG_TEXT_BYTES + 8);

static int section_bytes(const char *path)
{
	return (int)strcspn(path, ".");
}

static const char *origin_of(const struct config_origins *o, size_t key)
{
	return o->key[key][0] ? o->key[key] : "default";
}

static void print_line(FILE *out, const char *lead, const struct config_key *k, const void *base, const char *origin)
{
	char value[VALUE_BYTES];
	config_key_format(k, base, value, sizeof value);
	const char *leaf = strchr(k->path, '.');
	fprintf(out, "%s%s: %s", lead, leaf ? leaf + 1 : k->path, value);
	if (origin)
		fprintf(out, "  # %s", origin);
	fputc('\n', out);
}

void config_print(const struct config *c, const struct config_origins *o, FILE *out)
{
	const char *section = "";
	for (size_t i = 0; i < config_keys_count; i++) {
		const struct config_key *k = &config_keys[i];
		if (strncmp(section, k->path, (size_t)section_bytes(k->path) + 1) != 0)
			fprintf(out, "%.*s:\n", section_bytes(k->path), k->path);
		section = k->path;
		print_line(out, "  ", k, c, o ? origin_of(o, i) : NULL);
	}
	if (c->models_count)
		fprintf(out, "models:\n");
	for (uint32_t i = 0; i < c->models_count; i++)
		for (size_t k = 0; k < CONFIG_MODEL_KEYS; k++)
			print_line(out, k ? "    " : "  - ", &config_model_keys[k], &c->models[i],
				o && !k ? o->model[i] : NULL);
}

static struct json_object *json_value(const struct config_key *k, const void *base)
{
	const void *at = (const char *)base + k->offset;
	switch (k->type) {
	case CONFIG_TYPE_TEXT:
	case CONFIG_TYPE_PATH:
	case CONFIG_TYPE_CHOICE:
	case CONFIG_TYPE_MAP:
	case CONFIG_TYPE_SIZES:
		return json_object_new_string(at);
	case CONFIG_TYPE_BOOL:
		return json_object_new_boolean(*(const bool *)at);
	case CONFIG_TYPE_COUNT:
		return json_object_new_uint64(*(const uint32_t *)at);
	case CONFIG_TYPE_BYTES:
	case CONFIG_TYPE_DURATION:
		return json_object_new_uint64(*(const uint64_t *)at);
	}
	return NULL;
}

void config_print_json(const struct config *c, const struct config_origins *o, FILE *out)
{
	struct json_object *root = json_object_new_object(), *values = json_object_new_object();
	struct json_object *section = NULL, *origins = json_object_new_object(), *models = json_object_new_array();
	const char *last = "";
	for (size_t i = 0; i < config_keys_count; i++) {
		const struct config_key *k = &config_keys[i];
		if (strncmp(last, k->path, (size_t)section_bytes(k->path) + 1) != 0) {
			char name[32];
			snprintf(name, sizeof name, "%.*s", section_bytes(k->path), k->path);
			section = json_object_new_object();
			json_object_object_add(values, name, section);
		}
		last = k->path;
		json_object_object_add(section, k->json ? k->json : strchr(k->path, '.') + 1, json_value(k, c));
		if (o)
			json_object_object_add(origins, k->path, json_object_new_string(origin_of(o, i)));
	}
	for (uint32_t i = 0; i < c->models_count; i++) {
		struct json_object *m = json_object_new_object();
		for (size_t k = 0; k < CONFIG_MODEL_KEYS; k++)
			json_object_object_add(
				m, config_model_keys[k].path, json_value(&config_model_keys[k], &c->models[i]));
		if (o)
			json_object_object_add(m, "origin", json_object_new_string(o->model[i]));
		json_object_array_add(models, m);
	}
	json_object_object_add(values, "models", models);
	json_object_object_add(root, "schema_version", json_object_new_int(1));
	json_object_object_add(root, "config", values);
	if (o)
		json_object_object_add(root, "origins", origins);
	else
		json_object_put(origins);
	fprintf(out, "%s\n",
		json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(root);
}

static void print_key(const struct config_key *k, const char *prefix, FILE *out)
{
	char path[64];
	snprintf(path, sizeof path, "%s%s", prefix, k->path);
	fprintf(out, "%-26s %-14s %-26s %s", path, config_type_name(k->type), k->value[0] ? k->value : "\"\"", k->help);
	if (k->choices) {
		fprintf(out, " One of:");
		for (const char *const *c = k->choices; *c; c++)
			if (**c)
				fprintf(out, " %s", *c);
		fputc('.', out);
	}
	if (k->reloadable)
		fprintf(out, " SIGHUP rereads it.");
	fputc('\n', out);
}

void config_print_keys(FILE *out)
{
	for (size_t i = 0; i < config_keys_count; i++)
		print_key(&config_keys[i], "", out);
	for (size_t i = 0; i < CONFIG_MODEL_KEYS; i++)
		print_key(&config_model_keys[i], "models[].", out);
}

static struct json_object *key_json(const struct config_key *k, const char *prefix)
{
	struct json_object *o = json_object_new_object();
	char path[64];
	snprintf(path, sizeof path, "%s%s", prefix, k->path);
	json_object_object_add(o, "key", json_object_new_string(path));
	json_object_object_add(o, "type", json_object_new_string(config_type_name(k->type)));
	json_object_object_add(o, "default", json_object_new_string(k->value));
	if (k->choices) {
		struct json_object *choices = json_object_new_array();
		for (const char *const *c = k->choices; *c; c++)
			if (**c)
				json_object_array_add(choices, json_object_new_string(*c));
		json_object_object_add(o, "choices", choices);
	}
	json_object_object_add(o, "reloadable", json_object_new_boolean(k->reloadable));
	json_object_object_add(o, "help", json_object_new_string(k->help));
	return o;
}

void config_print_keys_json(FILE *out)
{
	struct json_object *root = json_object_new_object(), *keys = json_object_new_array();
	json_object_object_add(root, "schema_version", json_object_new_int(1));
	for (size_t i = 0; i < config_keys_count; i++)
		json_object_array_add(keys, key_json(&config_keys[i], ""));
	for (size_t i = 0; i < CONFIG_MODEL_KEYS; i++)
		json_object_array_add(keys, key_json(&config_model_keys[i], "models[]."));
	json_object_object_add(root, "keys", keys);
	fprintf(out, "%s\n",
		json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(root);
}
