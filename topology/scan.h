/* SPDX-License-Identifier: Apache-2.0
 * hwloc to a plain machine. The only place that includes hwloc. Any thread; a scan takes milliseconds.
 */
#pragma once

#include <stdio.h>

#include "base/error.h"
#include "topology/machine.h"

/* xml: NULL for this machine, else a file recorded by `lstopo --of xml` (limits of cgroups are then not applied). */
int topology_scan(const char *xml, struct topology_machine *ret_machine, struct base_error *e);
void topology_machine_print(const struct topology_machine *m, FILE *out); // table for people and golden tests
