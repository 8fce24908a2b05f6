// SPDX-License-Identifier: Apache-2.0
// thaw.admin.v1.Admin: the nodes of the cluster.
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/machine_message.h"
#include "daemon/rpc/rpc_convert.h"
#include "daemon/rpc/rpc_core.h"

static struct cluster_coordinator *coordinator_of(struct rpc_call *c)
{
	struct cluster_coordinator *coordinator = server_coordinator(c->queue->server->daemon);
	struct rpc_fault f;
	if (coordinator)
		return coordinator;
	rpc_fault_set(&f, GRPC_STATUS_FAILED_PRECONDITION, "NO_COORDINATOR", NULL,
		"this thawd coordinates no cluster (cluster.role): ask its coordinator");
	rpc_call_fail(c, &f);
	return NULL;
}

struct links {
	struct rpc_admin_links out;
	struct cluster_link_info infos[CLUSTER_MAX_LINKS];
	Thaw__Admin__V1__NodeLink links[CLUSTER_MAX_LINKS], *list[CLUSTER_MAX_LINKS];
	Thaw__Admin__V1__PlanLink all, classes[FLEET_LINK_CLASSES], *class_list[FLEET_LINK_CLASSES];
};

static void fill_plan_link(const struct cluster_view_link *v, const char *class, Thaw__Admin__V1__PlanLink *ret)
{
	thaw__admin__v1__plan_link__init(ret);
	ret->latency_ns = v->latency_ns;
	ret->bytes_per_second = v->bytes_per_s;
	ret->links = v->pairs;
	ret->measured = v->measured;
	ret->class_ = (char *)class;
}

static void fill_plan_links(struct cluster_coordinator *coordinator, struct links *l)
{
	struct cluster_view_links v;
	cluster_coordinator_plan_link(coordinator, &v);
	fill_plan_link(&v.all, "", &l->all);
	l->out.plan = v.all.pairs ? &l->all : NULL;
	l->out.plans = l->class_list;
	for (int i = 0; i < FLEET_LINK_CLASSES; i++) {
		if (v.of[i].pairs == 0 || v.of[i].pairs == v.all.pairs)
			continue;
		fill_plan_link(&v.of[i], fleet_link_class_name((enum fleet_link_class)i), &l->classes[i]);
		l->class_list[l->out.plans_count++] = &l->classes[i];
	}
}

struct rpc_admin_links *rpc_admin_links_create(struct cluster_coordinator *coordinator)
{
	struct links *l = coordinator ? calloc(1, sizeof *l) : NULL;
	if (!l)
		return NULL;
	l->out.list = l->list;
	l->out.count = cluster_coordinator_links(coordinator, l->infos, CLUSTER_MAX_LINKS);
	for (size_t i = 0; i < l->out.count; i++) {
		Thaw__Admin__V1__NodeLink *m = &l->links[i];
		thaw__admin__v1__node_link__init(m);
		m->node_a = l->infos[i].node[0];
		m->node_b = l->infos[i].node[1];
		m->latency_ns = l->infos[i].latency_ns;
		m->bytes_per_second = l->infos[i].bytes_per_s;
		m->measured_wall_ns = l->infos[i].measured_wall_ns;
		m->error = l->infos[i].error;
		m->class_ = (char *)fleet_link_class_name(l->infos[i].class);
		l->list[i] = m;
	}
	fill_plan_links(coordinator, l);
	return &l->out;
}

struct shown_node {
	Thaw__Admin__V1__Node node;
	Thaw__Admin__V1__Bandwidths bandwidths;
	Thaw__Admin__V1__NodeWork work[CLUSTER_MAX_PLANS], *list[CLUSTER_MAX_PLANS];
};

static void show_node(const struct cluster_node_info *i, uint64_t now, struct shown_node *out)
{
	Thaw__Admin__V1__Node *m = &out->node;
	thaw__admin__v1__node__init(m);
	machine_message_fill_bandwidths(&i->facts.bandwidths, &out->bandwidths);
	m->name = (char *)i->name;
	m->state = (char *)cluster_node_state_name(i->state);
	m->why = (char *)i->why;
	m->draining = i->draining;
	m->drained = i->drained;
	m->coordinator = i->self;
	m->host = (char *)i->facts.host;
	m->rack = (char *)i->facts.rack;
	m->address = (char *)i->facts.address;
	m->cpus = i->facts.cpus;
	m->memory_bytes = i->facts.memory_limit_bytes;
	m->memory_available_bytes = i->memory_available_bytes;
	m->bandwidths = &out->bandwidths;
	m->heard_ago_ns = i->heard_ns ? now - i->heard_ns : 0;
	m->since_ns = i->since_ns ? now - i->since_ns : 0;
	m->losses = i->losses;
	m->work = out->list;
	for (uint32_t k = 0; k < i->work_count; k++) {
		Thaw__Admin__V1__NodeWork *w = &out->work[k];
		thaw__admin__v1__node_work__init(w);
		w->model = (char *)i->work[k].model;
		w->stage = i->work[k].stage;
		w->first_layer = i->work[k].slice.first_layer;
		w->layers = i->work[k].slice.layers;
		w->tp_rank = i->work[k].slice.tp_rank;
		w->tp_size = i->work[k].slice.tp_size;
		w->phase = (char *)i->work[k].phase;
		w->done_bytes = i->work[k].done_bytes;
		w->total_bytes = i->work[k].total_bytes;
		out->list[m->n_work++] = w;
	}
}

void rpc_admin_get_nodes(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct cluster_coordinator *coordinator = coordinator_of(c);
	Thaw__Admin__V1__GetNodesReply reply = THAW__ADMIN__V1__GET_NODES_REPLY__INIT;
	Thaw__Admin__V1__Node *list[CLUSTER_MAX_NODES];
	if (!coordinator)
		return;
	_cleanup_free_ struct cluster_node_info *infos = calloc(CLUSTER_MAX_NODES, sizeof(*infos));
	_cleanup_free_ struct shown_node *shown = calloc(CLUSTER_MAX_NODES, sizeof(*shown));
	struct rpc_fault f;
	if (!infos || !shown) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the reply");
		rpc_call_fail(c, &f);
		return;
	}
	struct rpc_admin_links *links = rpc_admin_links_create(coordinator);
	if (links) {
		reply.links = links->list;
		reply.n_links = links->count;
		reply.plan_link = links->plan;
		reply.plan_links = links->plans;
		reply.n_plan_links = links->plans_count;
	}
	uint64_t now = base_clock_now_ns();
	reply.cluster = (char *)server_config(c->queue->server->daemon)->cluster.name;
	reply.epoch = cluster_coordinator_epoch(coordinator);
	reply.n_nodes = cluster_coordinator_nodes(coordinator, infos, CLUSTER_MAX_NODES);
	reply.nodes = list;
	for (size_t i = 0; i < reply.n_nodes; i++) {
		show_node(&infos[i], now, &shown[i]);
		list[i] = &shown[i].node;
	}
	rpc_call_reply(c, &reply.base);
	free(links);
}

void rpc_admin_drain_node(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__DrainNodeRequest *m = (const Thaw__Admin__V1__DrainNodeRequest *)request;
	struct cluster_coordinator *coordinator = coordinator_of(c);
	Thaw__Admin__V1__DrainNodeReply reply = THAW__ADMIN__V1__DRAIN_NODE_REPLY__INIT;
	struct base_error e = {0};
	struct rpc_fault f;
	if (!coordinator)
		return;
	int status = cluster_coordinator_drain(coordinator, m->node, !m->undrain, &e);
	if (status < 0) {
		rpc_fault_from(&f, status, &e, 0, "node");
		rpc_call_fail(c, &f);
	} else {
		rpc_call_reply(c, &reply.base);
	}
}
