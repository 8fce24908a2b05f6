// SPDX-License-Identifier: Apache-2.0
// thaw.admin.v1.Admin: this daemon's machine, and at a coordinator those of the cluster.
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/machine_message.h"
#include "daemon/rpc/rpc_core.h"

#define MACHINES (CLUSTER_MAX_NODES + 1u) // its own, if the coordinator is none of the nodes

struct fleet {
	struct server *daemon;
	struct cluster_node_info infos[CLUSTER_MAX_NODES];
	struct topology_machine machines[MACHINES];
	struct machine_message messages[MACHINES];
	Thaw__Admin__V1__Machine *list[MACHINES];
	size_t count;
};

static Thaw__Admin__V1__Machine *add(
	struct fleet *f, const struct topology_machine *m, const struct topology_bandwidths *b)
{
	struct machine_message *x = &f->messages[f->count];
	machine_message_fill(m, b, x);
	return f->list[f->count++] = &x->machine;
}

static Thaw__Admin__V1__Machine *add_own(struct fleet *f)
{
	const struct topology_bandwidths b = server_bandwidths(f->daemon);
	return add(f, server_machine(f->daemon), &b);
}

static void add_node(struct fleet *f, struct cluster_coordinator *coordinator, const struct cluster_node_info *i)
{
	struct topology_machine *m = &f->machines[f->count];
	Thaw__Admin__V1__Machine *x;
	if (i->self) {
		x = add_own(f); // as it is now
	} else {
		cluster_coordinator_machine(coordinator, i->name, m); // left empty when it was never seen
		x = add(f, m, &i->facts.bandwidths);
	}
	x->name = (char *)i->name;
	x->state = (char *)cluster_node_state_name(i->state);
	x->why = (char *)i->why;
	x->rack = (char *)i->facts.rack;
	x->coordinator = i->self;
}

static void add_nodes(struct fleet *f, struct cluster_coordinator *coordinator)
{
	uint32_t n = cluster_coordinator_nodes(coordinator, f->infos, CLUSTER_MAX_NODES);
	bool self = false;
	for (uint32_t i = 0; i < n; i++)
		self = self || f->infos[i].self;
	if (!self) { // it does not compute, or has not joined itself yet
		Thaw__Admin__V1__Machine *x = add_own(f);
		x->name = (char *)server_config(f->daemon)->cluster.node;
		x->coordinator = true;
	}
	for (uint32_t i = 0; i < n; i++)
		add_node(f, coordinator, &f->infos[i]);
}

void rpc_admin_get_topology(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct server *daemon = c->queue->server->daemon;
	struct cluster_coordinator *coordinator = server_coordinator(daemon);
	Thaw__Admin__V1__GetTopologyReply reply = THAW__ADMIN__V1__GET_TOPOLOGY_REPLY__INIT;
	struct machine_message own;
	const struct topology_bandwidths b = server_bandwidths(daemon);
	_cleanup_free_ struct fleet *f = calloc(1, sizeof *f); // pages that nobody touches cost nothing
	struct rpc_fault fault;
	if (!f) {
		rpc_fault_set(&fault, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the reply");
		rpc_call_fail(c, &fault);
		return;
	}
	f->daemon = daemon;
	machine_message_fill(server_machine(daemon), &b, &own);
	machine_message_fill_own(server_machine(daemon), &own, &reply);
	if (coordinator) {
		add_nodes(f, coordinator);
		reply.cluster = (char *)server_config(daemon)->cluster.name;
	} else {
		add_own(f)->rack = (char *)server_config(daemon)->cluster.rack;
	}
	reply.n_machines = f->count;
	reply.machines = f->list;
	struct rpc_admin_links *links = rpc_admin_links_create(coordinator);
	if (links) {
		reply.links = links->list;
		reply.n_links = links->count;
		reply.plan_link = links->plan;
		reply.plan_links = links->plans;
		reply.n_plan_links = links->plans_count;
	}
	rpc_call_reply(c, &reply.base);
	free(links);
}
