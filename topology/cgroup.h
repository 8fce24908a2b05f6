/* SPDX-License-Identifier: Apache-2.0
 * How much of the machine's memory this process may use: cgroup limits (v1 and v2, of every level) and MemAvailable.
 * Any thread.
 */
#pragma once

#include "topology/machine.h"

/* The smallest limit of the cgroups that the process is in, UINT64_MAX if there is none. root: "" or, for tests, a
 * folder with proc/self/cgroup, proc/self/mountinfo and the files that they lead to. */
uint64_t topology_cgroup_limit(const char *root);
/* What is available now, without a look at the whole machine: cheap enough for every second. 0: unknown. */
uint64_t topology_cgroup_available(const char *root);
/* Lowers memory_limit_bytes and memory_available_bytes of m to what is found. */
void topology_cgroup_apply(const char *root, struct topology_machine *m);
