// SPDX-License-Identifier: Apache-2.0
// topology: of the daemon's machine, or of a recorded one; the drawing wants it as plain data, table and JSON as a reply.
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "topology/draw.h"
#include "topology/scan.h"

static void print_topology(struct ctl *c, const void *message)
{
	const Thaw__Admin__V1__GetTopologyReply *t = message;
	static const char *const kinds[] = {"drive", "gpu", "nic"};
	static const struct ctl_column columns[] = {{"KIND", false, false}, {"NAME", false, false},
		{"NUMA", true, false}, {"SIZE", true, false}, {"CPUS", true, false}, {"PCI", false, true},
		{"MODEL", false, false}};
	char a[CTL_SIZE_BYTES], b[CTL_SIZE_BYTES], d[CTL_SIZE_BYTES];
	fprintf(c->out, "%s: %s, %" PRIu32 " package%s, %" PRIu32 " cores, %" PRIu32 " CPUs to use\n", t->host,
		t->cpu_model, t->packages, t->packages == 1 ? "" : "s", t->cores, t->cpus);
	fprintf(c->out, "memory: %s in all, %s may be used, %s available now\n", ctl_size(t->memory_bytes, a),
		ctl_size(t->memory_limit_bytes, b), ctl_size(t->memory_available_bytes, d));
	if (t->bandwidths && t->bandwidths->measured_wall_ns)
		fprintf(c->out, "measured: drive %s, memory %s, compute %.1f G multiply-adds/s\n",
			ctl_rate(t->bandwidths->drive_bytes_per_second, a),
			ctl_rate(t->bandwidths->memory_bytes_per_second, b),
			t->bandwidths->compute_macs_per_second / 1e9);
	else
		fprintf(c->out, "measured: nothing yet\n");
	struct ctl_table table;
	ctl_table_init(&table, columns, base_array_size(columns));
	for (size_t i = 0; i < t->n_numa_nodes; i++) {
		ctl_table_cell(&table, "numa");
		ctl_table_cell(&table, "node%" PRIu32, t->numa_nodes[i]->os_index);
		ctl_table_cell(&table, "%" PRIu32, t->numa_nodes[i]->os_index);
		ctl_table_cell(&table, "%s", ctl_size(t->numa_nodes[i]->memory_bytes, a));
		ctl_table_cell(&table, "%" PRIu32, t->numa_nodes[i]->cpus);
		ctl_table_cell(&table, "-");
		ctl_table_cell(&table, "-");
	}
	for (size_t i = 0; i < t->n_devices; i++) {
		const Thaw__Admin__V1__Device *v = t->devices[i];
		ctl_table_cell(&table, "%s", v->kind < base_array_size(kinds) ? kinds[v->kind] : "?");
		ctl_table_cell(&table, "%s", v->name);
		if (v->numa_node >= 0)
			ctl_table_cell(&table, "%" PRId32, v->numa_node);
		else
			ctl_table_cell(&table, "-");
		ctl_table_cell(&table, "%s", ctl_size(v->size_bytes, a));
		ctl_table_cell(&table, "-");
		ctl_table_cell(&table, "%s", v->pci_path[0] ? v->pci_path : "-");
		ctl_table_cell(&table, "%s", v->model[0] ? v->model : "-");
	}
	ctl_table_print(&table, c);
	if (t->n_links) {
		fprintf(c->out, "\n");
		ctl_print_links(c, t->links, t->n_links);
	}
}

#define MAX_DEVICES (TOPOLOGY_MAX_DRIVES + TOPOLOGY_MAX_GPUS + TOPOLOGY_MAX_NICS)

/* ---- a machine as a reply ---- */

struct recorded { // a machine and the messages that point into it
	struct topology_machine machine;
	Thaw__Admin__V1__GetTopologyReply reply;
	Thaw__Admin__V1__NumaNode nodes[TOPOLOGY_MAX_NODES], *node_list[TOPOLOGY_MAX_NODES];
	Thaw__Admin__V1__Device devices[MAX_DEVICES], *device_list[MAX_DEVICES];
};

static void add_devices(
	struct recorded *r, Thaw__Admin__V1__DeviceKind kind, struct topology_device *devices, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		Thaw__Admin__V1__Device *d = &r->devices[r->reply.n_devices];
		thaw__admin__v1__device__init(d);
		d->kind = kind;
		d->name = devices[i].name;
		d->model = devices[i].model;
		d->pci_path = devices[i].pci_path;
		d->numa_node = devices[i].numa_node;
		d->size_bytes = devices[i].size_bytes;
		r->device_list[r->reply.n_devices++] = d;
	}
}

static void make_reply(struct recorded *r)
{
	struct topology_machine *m = &r->machine;
	thaw__admin__v1__get_topology_reply__init(&r->reply);
	for (uint32_t i = 0; i < m->nodes_count; i++) {
		thaw__admin__v1__numa_node__init(&r->nodes[i]);
		r->nodes[i].os_index = m->nodes[i].os_index;
		r->nodes[i].memory_bytes = m->nodes[i].memory_bytes;
		r->nodes[i].cpus = m->nodes[i].cpus;
		r->node_list[r->reply.n_numa_nodes++] = &r->nodes[i];
	}
	add_devices(r, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_DRIVE, m->drives, m->drives_count);
	add_devices(r, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_GPU, m->gpus, m->gpus_count);
	add_devices(r, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_NIC, m->nics, m->nics_count);
	r->reply.numa_nodes = r->node_list;
	r->reply.devices = r->device_list;
	r->reply.host = m->host;
	r->reply.cpu_model = m->cpu_model;
	r->reply.packages = m->packages;
	r->reply.cores = m->cores;
	r->reply.cpus = m->cpus;
	r->reply.cpu_ids = m->cpu;
	r->reply.n_cpu_ids = m->cpus;
	r->reply.memory_bytes = m->memory_bytes;
	r->reply.memory_limit_bytes = m->memory_limit_bytes;
	r->reply.memory_available_bytes = m->memory_available_bytes;
}

/* ---- a reply as a machine ---- */

static void take_device(const Thaw__Admin__V1__Device *d, struct topology_machine *m)
{
	struct topology_device *lists[] = {m->drives, m->gpus, m->nics};
	uint32_t *counts[] = {&m->drives_count, &m->gpus_count, &m->nics_count};
	static const uint32_t rooms[] = {TOPOLOGY_MAX_DRIVES, TOPOLOGY_MAX_GPUS, TOPOLOGY_MAX_NICS};
	if (d->kind >= base_array_size(rooms) || *counts[d->kind] == rooms[d->kind])
		return;
	struct topology_device *out = &lists[d->kind][(*counts[d->kind])++];
	snprintf(out->name, sizeof out->name, "%s", d->name);
	snprintf(out->model, sizeof out->model, "%s", d->model);
	snprintf(out->pci_path, sizeof out->pci_path, "%s", d->pci_path);
	out->numa_node = d->numa_node;
	out->size_bytes = d->size_bytes;
}

static void take_reply(const Thaw__Admin__V1__GetTopologyReply *r, struct topology_machine *m)
{
	snprintf(m->host, sizeof m->host, "%s", r->host);
	snprintf(m->cpu_model, sizeof m->cpu_model, "%s", r->cpu_model);
	m->packages = r->packages;
	m->cores = r->cores;
	m->cpus = r->cpus;
	m->memory_bytes = r->memory_bytes;
	m->memory_limit_bytes = r->memory_limit_bytes;
	m->memory_available_bytes = r->memory_available_bytes;
	for (size_t i = 0; i < r->n_numa_nodes && m->nodes_count < TOPOLOGY_MAX_NODES; i++)
		m->nodes[m->nodes_count++] = (struct topology_numa_node){.os_index = r->numa_nodes[i]->os_index,
			.memory_bytes = r->numa_nodes[i]->memory_bytes,
			.cpus = r->numa_nodes[i]->cpus};
	for (size_t i = 0; i < r->n_devices; i++)
		take_device(r->devices[i], m);
}

// Table or drawing.
static void show(struct ctl *c, const void *reply)
{
	if (c->output != CTL_OUTPUT_SVG) {
		print_topology(c, reply);
		return;
	}
	_cleanup_free_ struct topology_machine *m = calloc(1, sizeof *m);
	if (m) {
		take_reply(reply, m);
		topology_draw_machine(m, c->out);
	}
}

static int show_recorded(struct ctl *c)
{
	struct base_error e = {0};
	_cleanup_free_ struct recorded *r = calloc(1, sizeof *r);
	if (!r)
		return ctl_fail(c, CTL_ERROR, "no memory");
	int status = topology_scan(c->options.topology, &r->machine, &e);
	if (status < 0)
		return ctl_fail(c, status == -ENOENT ? CTL_NOT_FOUND : CTL_ERROR, "%s", base_error_text(&e));
	make_reply(r);
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(&r->reply));
		return ctl_json_print(c, o);
	}
	show(c, &r->reply);
	return CTL_OK;
}

int ctl_verb_topology(struct ctl *c)
{
	Thaw__Admin__V1__GetTopologyRequest request = THAW__ADMIN__V1__GET_TOPOLOGY_REQUEST__INIT;
	if (c->options.topology)
		return show_recorded(c);
	return ctl_call_show(c, "Admin/GetTopology", &request, &thaw__admin__v1__get_topology_reply__descriptor, show);
}
