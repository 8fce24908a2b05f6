// SPDX-License-Identifier: Apache-2.0
// nodes, and drain and undrain of one.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"

#define LOOK_NS 200000000

static void describe_work(const Thaw__Admin__V1__Node *n, char *out, size_t room)
{
	size_t at = 0;
	out[0] = '\0';
	for (size_t i = 0; i < n->n_work && at < room - 1; i++) {
		const Thaw__Admin__V1__NodeWork *w = n->work[i];
		bool busy = strcmp(w->phase, "running") != 0;
		at += (size_t)snprintf(out + at, room - at, "%s%s %" PRIu32 "-%" PRIu32, at ? ", " : "", w->model,
			w->first_layer, w->layers ? w->first_layer + w->layers - 1 : w->first_layer);
		if (w->tp_size > 1 && at < room - 1)
			at += (size_t)snprintf(
				out + at, room - at, " part %" PRIu32 "/%" PRIu32, w->tp_rank, w->tp_size);
		if (busy && w->total_bytes && at < room - 1)
			at += (size_t)snprintf(out + at, room - at, " (%s %.0f %%)", w->phase,
				100.0 * (double)w->done_bytes / (double)w->total_bytes);
		else if (busy && at < room - 1)
			at += (size_t)snprintf(out + at, room - at, " (%s)", w->phase);
	}
}

void ctl_print_links(struct ctl *c, Thaw__Admin__V1__NodeLink *const *links, size_t count)
{
	static const struct ctl_column columns[] = {{"LINK", false, false}, {"", false, false}, {"CLASS", false, false},
		{"LATENCY", true, false}, {"BANDWIDTH", true, false}, {"MEASURED", false, false},
		{"ERROR", false, false}};
	struct ctl_table t;
	char size[CTL_SIZE_BYTES];
	uint64_t now = base_clock_wall_ns();
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < count; i++) {
		const Thaw__Admin__V1__NodeLink *l = links[i];
		uint64_t age = now > l->measured_wall_ns ? now - l->measured_wall_ns : 0;
		bool known = l->bytes_per_second > 0;
		ctl_table_cell(&t, "%s", l->node_a);
		ctl_table_cell(&t, "%s", l->node_b);
		ctl_table_cell(&t, "%s", l->class_[0] ? l->class_ : "-");
		ctl_table_cell(&t, "%s", known ? ctl_seconds(l->latency_ns / 1e9, size) : "-");
		ctl_table_cell(&t, "%s", ctl_rate(l->bytes_per_second, size));
		if (known && !l->measured_wall_ns)
			ctl_table_cell(&t, "as the file says");
		else if (known)
			ctl_table_cell(&t, "%s ago", ctl_seconds((double)age / 1e9, size));
		else
			ctl_table_cell(&t, "not: assumed");
		ctl_table_cell(&t, "%s", l->error);
	}
	ctl_table_print(&t, c);
}

static void print_plan_link(struct ctl *c, const Thaw__Admin__V1__PlanLink *p, bool others)
{
	char latency[CTL_SIZE_BYTES], rate[CTL_SIZE_BYTES];
	fprintf(c->out, "plans count %s and %s for every link%s%s: ", ctl_seconds(p->latency_ns / 1e9, latency),
		ctl_rate(p->bytes_per_second, rate), p->class_[0] ? " of class " : "", p->class_);
	if (p->measured)
		fprintf(c->out, "the slowest of %" PRIu32 " that were measured, of %" PRIu32 "\n", p->measured,
			p->links);
	else
		fprintf(c->out, "%s, none of %" PRIu32 " was measured\n", others ? "as of the others" : "assumed",
			p->links);
}

void ctl_print_plan_links(
	struct ctl *c, const Thaw__Admin__V1__PlanLink *all, Thaw__Admin__V1__PlanLink *const *classes, size_t count)
{
	if (!count && all)
		print_plan_link(c, all, false);
	for (size_t i = 0; i < count; i++)
		print_plan_link(c, classes[i], all && all->measured);
}

/* The slowest that a node has. */
static void describe_link(const Thaw__Admin__V1__GetNodesReply *reply, const char *node, char *out, size_t room)
{
	char latency[CTL_SIZE_BYTES], rate[CTL_SIZE_BYTES];
	const Thaw__Admin__V1__NodeLink *slowest = NULL;
	for (size_t i = 0; i < reply->n_links; i++) {
		const Thaw__Admin__V1__NodeLink *l = reply->links[i];
		bool own = strcmp(l->node_a, node) == 0 || strcmp(l->node_b, node) == 0;
		if (own && l->bytes_per_second > 0 && (!slowest || l->bytes_per_second < slowest->bytes_per_second))
			slowest = l;
	}
	snprintf(out, room, "-");
	if (slowest)
		snprintf(out, room, "%s %s", ctl_seconds(slowest->latency_ns / 1e9, latency),
			ctl_rate(slowest->bytes_per_second, rate));
}

static bool has_racks(const Thaw__Admin__V1__GetNodesReply *reply)
{
	for (size_t i = 0; i < reply->n_nodes; i++) {
		if (reply->nodes[i]->rack[0])
			return true;
	}
	return false;
}

static void print_nodes(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__GetNodesReply *reply = message;
	struct ctl_column columns[] = {{"NODE", false, false}, {"RACK", false, !has_racks(reply)},
		{"STATE", false, false}, {"CPUS", true, false}, {"MEMORY", true, false}, {"FREE", true, false},
		{"DRIVE", true, false}, {"LINK", false, false}, {"COMPUTE", true, true}, {"ADDRESS", false, true},
		{"LOSSES", true, true}, {"LAYERS", false, false}, {"DETAIL", false, false}};
	struct ctl_table t;
	char size[CTL_SIZE_BYTES], work[512], link[2 * CTL_SIZE_BYTES];
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < reply->n_nodes; i++) {
		const Thaw__Admin__V1__Node *n = reply->nodes[i];
		describe_work(n, work, sizeof work);
		ctl_table_cell(&t, "%s%s", n->name, n->coordinator ? "*" : "");
		ctl_table_cell(&t, "%s", n->rack[0] ? n->rack : "-");
		ctl_table_cell(&t, "%s", n->drained ? "drained" : n->draining ? "draining" : n->state);
		ctl_table_cell(&t, "%" PRIu32, n->cpus);
		ctl_table_cell(&t, "%s", ctl_size(n->memory_bytes, size));
		ctl_table_cell(&t, "%s", ctl_size(n->memory_available_bytes, size));
		ctl_table_cell(&t, "%s", ctl_rate(n->bandwidths ? n->bandwidths->drive_bytes_per_second : 0, size));
		describe_link(reply, n->name, link, sizeof link);
		ctl_table_cell(&t, "%s", link);
		ctl_table_cell(&t, "%.0fG", n->bandwidths ? n->bandwidths->compute_macs_per_second / 1e9 : 0.0);
		ctl_table_cell(&t, "%s", n->address);
		ctl_table_cell(&t, "%" PRIu32, n->losses);
		ctl_table_cell(&t, "%s", work[0] ? work : "-");
		ctl_table_cell(&t, "%s", n->why);
	}
	ctl_table_print(&t, c);
	if (c->output == CTL_OUTPUT_WIDE && (reply->n_links || reply->plan_link)) {
		fprintf(c->out, "\n");
		if (reply->n_links)
			ctl_print_links(c, reply->links, reply->n_links);
		ctl_print_plan_links(c, reply->plan_link, reply->plan_links, reply->n_plan_links);
		fprintf(c->out, "\n");
	}
	if (c->output == CTL_OUTPUT_WIDE)
		fprintf(c->out, "cluster %s, epoch %" PRIu64 "\n", reply->cluster, reply->epoch);
}

int ctl_verb_nodes(struct ctl *c)
{
	Thaw__Admin__V1__GetNodesRequest request = THAW__ADMIN__V1__GET_NODES_REQUEST__INIT;
	return ctl_call_show(c, "Admin/GetNodes", &request, &thaw__admin__v1__get_nodes_reply__descriptor, print_nodes);
}

/* 1: nothing runs there any more, 0: something does, -(enum ctl_exit) after a message. */
static int look(struct ctl *c, const char *name)
{
	Thaw__Admin__V1__GetNodesRequest request = THAW__ADMIN__V1__GET_NODES_REQUEST__INIT;
	Thaw__Admin__V1__GetNodesReply *reply = NULL;
	int drained = 0;
	int r = ctl_call(c, "Admin/GetNodes", &request, &thaw__admin__v1__get_nodes_reply__descriptor, &reply);
	if (r != CTL_OK)
		return -r;
	for (size_t i = 0; i < reply->n_nodes; i++) {
		if (strcmp(reply->nodes[i]->name, name) == 0)
			drained = reply->nodes[i]->n_work == 0;
	}
	ctl_free(reply);
	return drained;
}

int ctl_drain_node(struct ctl *c, const char *name, bool on)
{
	Thaw__Admin__V1__DrainNodeRequest request = THAW__ADMIN__V1__DRAIN_NODE_REQUEST__INIT;
	Thaw__Admin__V1__DrainNodeReply *reply = NULL;
	request.node = (char *)name;
	request.undrain = !on;
	int r = ctl_call(c, "Admin/DrainNode", &request, &thaw__admin__v1__drain_node_reply__descriptor, &reply);
	ctl_free(reply);
	if (r != CTL_OK || !on || c->options.no_wait)
		return r;
	int drained;
	while ((drained = look(c, name)) == 0 && !ctl_interrupted(c))
		nanosleep(&(struct timespec){.tv_nsec = LOOK_NS}, NULL);
	return drained < 0 ? -drained : CTL_OK;
}
