/* SPDX-License-Identifier: Apache-2.0
 * Names of hosts to numeric addresses. What is one already costs nothing; for a name the resolver is asked, for
 * CLUSTER_RESOLVE_NS at most: not for a thread that must not block, unless it looks up meanwhile.
 */
#pragma once

#include <stdbool.h>

#include "base/error.h"

#define CLUSTER_RESOLVED_BYTES 46u
#define CLUSTER_RESOLVE_NS (2 * 1000000000ull)
#define CLUSTER_RESOLVE_LOOK_NS (20 * 1000000ull)

/* The first address of a host. -EINVAL with the resolver's words, -ETIMEDOUT. */
int cluster_resolve(const char *host, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e);
/* The same for a thread that has more to do: look() is called every CLUSTER_RESOLVE_LOOK_NS while the resolver is
 * waited for; other than 0 ends that with it and its text. */
int cluster_resolve_looking(const char *host, int (*look)(void *context, struct base_error *e), void *context,
	char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e);
/* Which of this machine's addresses reaches that host, as the routes are now. */
int cluster_resolve_own(const char *towards, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e);
/* Whether that numeric address is one of this machine's, now. A name is none. Does not block. */
bool cluster_resolve_is_here(const char *number);
