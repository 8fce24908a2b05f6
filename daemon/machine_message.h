/* SPDX-License-Identifier: Apache-2.0
 * NUMA nodes and devices of a machine as messages, and back: what a node says of itself, what the Admin service shows,
 * what thawctl draws. Pure functions: any thread.
 */
#pragma once

#include <stddef.h>

#include "base/error.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "topology/machine.h"

#define MACHINE_MESSAGE_DEVICES (TOPOLOGY_MAX_DRIVES + TOPOLOGY_MAX_GPUS + TOPOLOGY_MAX_NICS)

struct machine_message_lists { // their texts are those of the machine
	Thaw__Admin__V1__NumaNode nodes[TOPOLOGY_MAX_NODES], *node_list[TOPOLOGY_MAX_NODES];
	Thaw__Admin__V1__Device devices[MACHINE_MESSAGE_DEVICES], *device_list[MACHINE_MESSAGE_DEVICES];
	size_t nodes_count, devices_count;
};
void machine_message_fill_lists(const struct topology_machine *m, struct machine_message_lists *ret);

/* A text that a peer sent, into room bytes, its end included. -EBADMSG. */
int machine_message_take_text(const char *field, const char *text, char *out, size_t room, struct base_error *e);

/* What a peer sent: -EBADMSG names what is too much or too long. Fills in nodes, drives, gpus and nics alone. */
int machine_message_read_nodes(
	Thaw__Admin__V1__NumaNode *const *nodes, size_t count, struct topology_machine *ret, struct base_error *e);
int machine_message_read_devices(
	Thaw__Admin__V1__Device *const *devices, size_t count, struct topology_machine *ret, struct base_error *e);

struct machine_message { // `machine` points into the rest, and to the texts of the topology_machine
	Thaw__Admin__V1__Machine machine;
	Thaw__Admin__V1__Bandwidths bandwidths;
	struct machine_message_lists lists;
};
/* b: NULL for none. name, state, why and coordinator are the caller's. */
void machine_message_fill(
	const struct topology_machine *m, const struct topology_bandwidths *b, struct machine_message *ret);
void machine_message_fill_bandwidths(const struct topology_bandwidths *b, Thaw__Admin__V1__Bandwidths *ret);
/* The reply's fields of the daemon's own machine. */
void machine_message_fill_own(
	const struct topology_machine *m, struct machine_message *message, Thaw__Admin__V1__GetTopologyReply *ret);
/* All but the numbers of the CPUs, which stay as they are. */
int machine_message_read(const Thaw__Admin__V1__Machine *message, struct topology_machine *ret,
	struct topology_bandwidths *ret_bandwidths, struct base_error *e);
