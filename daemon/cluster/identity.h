/* SPDX-License-Identifier: Apache-2.0
 * Who a peer of the cluster is: the name of the cluster, its role and its own name, as its certificate says. A
 * certificate carries them as one URI: thaw://CLUSTER/ROLE/NAME. Pure functions: any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

#define CLUSTER_NAME_BYTES 64u
#define CLUSTER_URI_BYTES 160u
#define CLUSTER_ADDRESS_BYTES 288u // HOST:PORT

enum cluster_role {
	CLUSTER_ROLE_NONE, // one machine
	CLUSTER_ROLE_COORDINATOR, // owns requests and the plan, computes nothing
	CLUSTER_ROLE_WORKER, // computes
	CLUSTER_ROLE_BOTH,
	CLUSTER_ROLE_CLIENT, // of certificates: an operator or a program, no node
};

const char *cluster_role_name(enum cluster_role role); // "none", "coordinator", ...
int cluster_role_find(const char *name, enum cluster_role *ret_role); // -EINVAL
static inline bool cluster_role_coordinates(enum cluster_role r)
{
	return r == CLUSTER_ROLE_COORDINATOR || r == CLUSTER_ROLE_BOTH;
}
static inline bool cluster_role_works(enum cluster_role r)
{
	return r == CLUSTER_ROLE_WORKER || r == CLUSTER_ROLE_BOTH;
}

struct cluster_identity {
	char cluster[CLUSTER_NAME_BYTES], name[CLUSTER_NAME_BYTES];
	enum cluster_role role;
};

/* 1 to 63 of a-z, 0-9, '-' and '.', neither of the two at an end: a name is a file's and a host's, too. -EINVAL. */
int cluster_name_check(const char *what, const char *name, struct base_error *e);
char *cluster_identity_print(const struct cluster_identity *i, char out[static CLUSTER_URI_BYTES]);
/* From `bytes` bytes that a peer sent. -EINVAL for what is no such URI. */
int cluster_identity_parse(const char *uri, size_t bytes, struct cluster_identity *ret_identity);
