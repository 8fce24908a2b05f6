// SPDX-License-Identifier: Apache-2.0
// config check, show, keys.
#include <string.h>

#include "daemon/config.h"
#include "daemon/ctl/ctl.h"

static int load(struct ctl *c, struct config *ret_config, struct config_origins **ret_origins, struct base_error *e)
{
	struct config_source source = {
		.main_file = c->options.config,
		.conf_dir = c->options.conf_dir,
		.sets = c->options.sets.items,
		.environment = true,
	};
	return config_load(&source, ret_config, ret_origins, e);
}

static int check(struct ctl *c)
{
	struct config config;
	struct base_error e = {0};
	int r = load(c, &config, NULL, &e);
	if (r == 0)
		r = config_check_files(&config, &e);
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "valid", json_object_new_boolean(r == 0));
		if (r < 0)
			json_object_object_add(o, "error", json_object_new_string(base_error_text(&e)));
		ctl_json_print(c, o);
		return r < 0 ? CTL_ERROR : CTL_OK;
	}
	if (r < 0)
		return ctl_fail(c, CTL_ERROR, "%s", base_error_text(&e));
	fprintf(c->out, "ok\n");
	return CTL_OK;
}

static int show(struct ctl *c)
{
	struct config config;
	struct config_origins *origins = NULL;
	struct base_error e = {0};
	if (load(c, &config, &origins, &e) < 0)
		return ctl_fail(c, CTL_ERROR, "%s", base_error_text(&e));
	const struct config_origins *shown = c->options.origin ? origins : NULL;
	if (c->output == CTL_OUTPUT_JSON)
		config_print_json(&config, shown, c->out);
	else
		config_print(&config, shown, c->out);
	config_origins_free(origins);
	return CTL_OK;
}

int ctl_verb_config(struct ctl *c)
{
	if (strcmp(c->args[0], "check") == 0)
		return check(c);
	if (strcmp(c->args[0], "show") == 0)
		return show(c);
	if (strcmp(c->args[0], "keys") != 0)
		return ctl_fail(c, CTL_USAGE, "config: \"%s\" is none of check, show, keys", c->args[0]);
	if (c->output == CTL_OUTPUT_JSON)
		config_print_keys_json(c->out);
	else
		config_print_keys(c->out);
	return CTL_OK;
}
