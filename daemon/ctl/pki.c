// SPDX-License-Identifier: Apache-2.0
// pki: a CA for a cluster, and certificates for its nodes and clients.
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/cluster/pki.h"
#include "daemon/ctl/ctl.h"

#define DEFAULT_DIRECTORY "/etc/thaw/pki"
#define DEFAULT_CLUSTER "thaw"

static const char *directory_of(const struct ctl *c)
{
	return c->options.directory ? c->options.directory : DEFAULT_DIRECTORY;
}

static int exit_of(int status)
{
	return status == -ENOENT ? CTL_NOT_FOUND : status == -EINVAL ? CTL_USAGE : CTL_ERROR;
}

/* What was made, and what is to be done with it. */
static int report(struct ctl *c, const char *name, const char *what)
{
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		char path[512];
		snprintf(path, sizeof path, "%s/%s.crt", directory_of(c), name);
		json_object_object_add(o, "certificate", json_object_new_string(path));
		snprintf(path, sizeof path, "%s/%s.key", directory_of(c), name);
		json_object_object_add(o, "key", json_object_new_string(path));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "%s/%s.crt\n%s/%s.key\n", directory_of(c), name, directory_of(c), name);
	ctl_say(c, "%s", what);
	return CTL_OK;
}

static int init(struct ctl *c)
{
	struct base_error e = {0};
	if (c->args_count != 1)
		return ctl_fail(c, CTL_USAGE, "pki init: nothing may follow");
	int status = cluster_pki_init(directory_of(c), c->options.cluster ? c->options.cluster : DEFAULT_CLUSTER,
		c->options.days ? c->options.days : CLUSTER_PKI_CA_DAYS, &e);
	if (status)
		return ctl_fail(c, exit_of(status), "pki init: %s", base_error_text(&e));
	return report(c, "ca", "ca.key makes certificates: keep it off the nodes, and safe. Every node needs ca.crt.");
}

static int issue(struct ctl *c)
{
	struct base_error e = {0};
	struct cluster_pki_node node = {
		.role = CLUSTER_ROLE_BOTH,
		.addresses = c->options.addresses.items,
		.addresses_count = c->options.addresses.count,
		.days = c->options.days ? c->options.days : CLUSTER_PKI_NODE_DAYS,
	};
	if (c->args_count != 2)
		return ctl_fail(c, CTL_USAGE, "pki node: a name is wanted: pki node NAME [--address ADDRESS]...");
	node.name = c->args[1];
	if (c->options.role && (cluster_role_find(c->options.role, &node.role) < 0 || node.role == CLUSTER_ROLE_NONE))
		return ctl_fail(
			c, CTL_USAGE, "--role: \"%s\" is none of coordinator, worker, both, client", c->options.role);
	int status = cluster_pki_issue(directory_of(c), &node, &e);
	if (status)
		return ctl_fail(c, exit_of(status), "pki node: %s", base_error_text(&e));
	return report(c, node.name, "Give the node these two and ca.crt, readable for thawd's user alone.");
}

static int show(struct ctl *c)
{
	struct cluster_pki_info info;
	struct base_error e = {0};
	char path[3][512], from[32], until[32];
	struct tm tm;
	if (c->args_count != 2)
		return ctl_fail(c, CTL_USAGE, "pki check: a name is wanted");
	snprintf(path[0], sizeof path[0], "%s/ca.crt", directory_of(c));
	snprintf(path[1], sizeof path[1], "%s/%s.crt", directory_of(c), c->args[1]);
	snprintf(path[2], sizeof path[2], "%s/%s.key", directory_of(c), c->args[1]);
	int status = cluster_pki_check(path[0], path[1], path[2], base_clock_wall_ns() / BASE_NS_PER_SECOND, &info, &e);
	if (status)
		return ctl_fail(c, exit_of(status), "pki check: %s", base_error_text(&e));
	strftime(from, sizeof from, "%F", gmtime_r(&(time_t){(time_t)info.not_before_s}, &tm));
	strftime(until, sizeof until, "%F", gmtime_r(&(time_t){(time_t)info.not_after_s}, &tm));
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "cluster", json_object_new_string(info.identity.cluster));
		json_object_object_add(o, "name", json_object_new_string(info.identity.name));
		json_object_object_add(o, "role", json_object_new_string(cluster_role_name(info.identity.role)));
		json_object_object_add(o, "not_before_s", json_object_new_uint64(info.not_before_s));
		json_object_object_add(o, "not_after_s", json_object_new_uint64(info.not_after_s));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "%s of cluster %s, role %s, valid from %s to %s\n", info.identity.name, info.identity.cluster,
		cluster_role_name(info.identity.role), from, until);
	return CTL_OK;
}

int ctl_verb_pki(struct ctl *c)
{
	if (strcmp(c->args[0], "init") == 0)
		return init(c);
	if (strcmp(c->args[0], "node") == 0)
		return issue(c);
	if (strcmp(c->args[0], "check") == 0)
		return show(c);
	return ctl_fail(c, CTL_USAGE, "pki: \"%s\" is none of init, node, check", c->args[0]);
}
