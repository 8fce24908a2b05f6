/* SPDX-License-Identifier: Apache-2.0
 * Inside of config: the table of keys and what each source does with it. Nobody but config*.c includes this.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/config.h"

enum config_type {
	CONFIG_TYPE_TEXT,
	CONFIG_TYPE_PATH, // absolute
	CONFIG_TYPE_CHOICE, // text, one of choices
	CONFIG_TYPE_BOOL,
	CONFIG_TYPE_COUNT, // uint32_t
	CONFIG_TYPE_BYTES, // uint64_t, written with a unit
	CONFIG_TYPE_DURATION, // uint64_t nanoseconds, written with a unit
	CONFIG_TYPE_MAP, // of modules to nodes, as a line of text: config_map.h
	CONFIG_TYPE_SIZES, // of nodes, likewise
};

struct config_key {
	const char *path; // "memory.weights"
	const char *json; // last part in JSON, with the unit: "weights_bytes"; NULL: as in path
	enum config_type type;
	size_t offset; // in struct config, or in struct config_model for model keys
	size_t room; // TEXT, PATH, CHOICE: bytes with the NUL
	const char *value; // default, as written
	const char *automatic; // the word for 0, if 0 means "chosen"
	uint64_t min, max; // COUNT, BYTES, DURATION; 0 is always accepted with `automatic`
	const char *const *choices; // NULL-terminated
	bool reloadable;
	const char *help;
};

extern const struct config_key config_keys[];
extern const size_t config_keys_count;
extern const struct config_key config_model_keys[]; // path without the "models." part
#define CONFIG_MODEL_KEYS 3u

#define CONFIG_MAX_KEYS 80u
#define CONFIG_ORIGIN_BYTES 288u

struct config_origins { // where a value stands, for messages too: "file:line:col", "environment THAW_X", "--set"
	char key[CONFIG_MAX_KEYS][CONFIG_ORIGIN_BYTES]; // "" is the default
	char model[CONFIG_MAX_MODELS][CONFIG_ORIGIN_BYTES];
};

const struct config_key *config_key_find(const char *path);
const struct config_key *config_model_key_find(const char *name);
/* Fills hint with `; did you mean "x"?` or "" . section NULL: all keys with their full path. */
void config_key_suggest(const char *word, const char *section, char *hint, size_t room);
bool config_section_exists(const char *name, size_t bytes);

/* Checks text by the key's type and limits and stores it in base (struct config or struct config_model). */
int config_key_assign(const struct config_key *k, const char *text, void *base, struct base_error *e);
/* The value as config files write it; quoted for YAML where that is needed. */
void config_key_format(const struct config_key *k, const void *base, char *out, size_t room);
bool config_key_equal(const struct config_key *k, const void *a, const void *b);
/* "size with a unit, ..." for messages and the manual. */
const char *config_type_name(enum config_type t);

/* Adds m, or replaces the model with its name. -ENOSPC. */
int config_model_put(struct config *c, struct config_origins *o, const struct config_model *m, const char *where,
	struct base_error *e);

/* One YAML document over *c; o may be NULL. */
int config_yaml_apply(const char *text, size_t bytes, const char *name, struct config *c, struct config_origins *o,
	struct base_error *e);
