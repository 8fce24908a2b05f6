// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/identity.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

#define SCHEME "thaw://"

static const char *const roles[] = {"none", "coordinator", "worker", "both", "client"};

const char *cluster_role_name(enum cluster_role role)
{
	return (size_t)role < base_array_size(roles) ? roles[role] : "?";
}

int cluster_role_find(const char *name, enum cluster_role *ret_role)
{
	for (size_t i = 0; i < base_array_size(roles); i++) {
		if (strcmp(roles[i], name) == 0) {
			*ret_role = (enum cluster_role)i;
			return 0;
		}
	}
	return -EINVAL;
}

static bool is_name(const char *name, size_t bytes)
{
	if (!bytes || bytes >= CLUSTER_NAME_BYTES)
		return false;
	for (size_t i = 0; i < bytes; i++) {
		bool inner = i > 0 && i + 1 < bytes && (name[i] == '-' || name[i] == '.');
		if (!inner && !(name[i] >= 'a' && name[i] <= 'z') && !(name[i] >= '0' && name[i] <= '9'))
			return false;
	}
	return true;
}

int cluster_name_check(const char *what, const char *name, struct base_error *e)
{
	if (is_name(name, strlen(name)))
		return 0;
	return base_error_set(e, -EINVAL,
		"%s: \"%.80s\" is no name: 1 to %u of a-z, 0-9, '-' and '.', with a letter or digit at both ends", what,
		name, CLUSTER_NAME_BYTES - 1);
}

char *cluster_identity_print(const struct cluster_identity *i, char out[static CLUSTER_URI_BYTES])
{
	snprintf(out, CLUSTER_URI_BYTES, SCHEME "%s/%s/%s", i->cluster, cluster_role_name(i->role), i->name);
	return out;
}

int cluster_identity_parse(const char *uri, size_t bytes, struct cluster_identity *ret_identity)
{
	struct cluster_identity i = {0};
	const size_t scheme = strlen(SCHEME);
	char role[16] = "";
	if (bytes <= scheme || bytes >= CLUSTER_URI_BYTES || memcmp(uri, SCHEME, scheme) != 0)
		return -EINVAL;
	const char *cluster = uri + scheme, *end = uri + bytes;
	const char *slash = memchr(cluster, '/', (size_t)(end - cluster));
	const char *second = slash ? memchr(slash + 1, '/', (size_t)(end - slash - 1)) : NULL;
	if (!second || (size_t)(second - slash) > sizeof role || !is_name(cluster, (size_t)(slash - cluster)) ||
		!is_name(second + 1, (size_t)(end - second - 1)))
		return -EINVAL;
	memcpy(role, slash + 1, (size_t)(second - slash - 1));
	memcpy(i.cluster, cluster, (size_t)(slash - cluster));
	memcpy(i.name, second + 1, (size_t)(end - second - 1));
	if (cluster_role_find(role, &i.role) < 0 || i.role == CLUSTER_ROLE_NONE)
		return -EINVAL;
	*ret_identity = i;
	return 0;
}
