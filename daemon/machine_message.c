// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine_message.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"

/* ---- to messages ---- */

static void add_devices(struct machine_message_lists *l, Thaw__Admin__V1__DeviceKind kind,
	const struct topology_device *from, uint32_t count, uint32_t most)
{
	for (uint32_t i = 0; i < count && i < most; i++) {
		Thaw__Admin__V1__Device *m = &l->devices[l->devices_count];
		thaw__admin__v1__device__init(m);
		m->kind = kind;
		m->name = (char *)from[i].name;
		m->model = (char *)from[i].model;
		m->pci_path = (char *)from[i].pci_path;
		m->numa_node = from[i].numa_node;
		m->size_bytes = from[i].size_bytes;
		l->device_list[l->devices_count++] = m;
	}
}

void machine_message_fill_lists(const struct topology_machine *m, struct machine_message_lists *ret)
{
	ret->nodes_count = ret->devices_count = 0;
	for (uint32_t i = 0; i < m->nodes_count && i < TOPOLOGY_MAX_NODES; i++) {
		thaw__admin__v1__numa_node__init(&ret->nodes[i]);
		ret->nodes[i].os_index = m->nodes[i].os_index;
		ret->nodes[i].memory_bytes = m->nodes[i].memory_bytes;
		ret->nodes[i].cpus = m->nodes[i].cpus;
		ret->node_list[ret->nodes_count++] = &ret->nodes[i];
	}
	add_devices(
		ret, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_DRIVE, m->drives, m->drives_count, TOPOLOGY_MAX_DRIVES);
	add_devices(ret, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_GPU, m->gpus, m->gpus_count, TOPOLOGY_MAX_GPUS);
	add_devices(ret, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_NIC, m->nics, m->nics_count, TOPOLOGY_MAX_NICS);
}

void machine_message_fill_bandwidths(const struct topology_bandwidths *b, Thaw__Admin__V1__Bandwidths *ret)
{
	thaw__admin__v1__bandwidths__init(ret);
	ret->drive_bytes_per_second = b->drive_bytes_per_s;
	ret->memory_bytes_per_second = b->memory_bytes_per_s;
	ret->compute_macs_per_second = b->compute_macs_per_s;
	ret->measured_wall_ns = b->measured_wall_ns;
}

void machine_message_fill(
	const struct topology_machine *m, const struct topology_bandwidths *b, struct machine_message *ret)
{
	Thaw__Admin__V1__Machine *x = &ret->machine;
	thaw__admin__v1__machine__init(x);
	machine_message_fill_lists(m, &ret->lists);
	x->host = (char *)m->host;
	x->cpu_model = (char *)m->cpu_model;
	x->packages = m->packages;
	x->cores = m->cores;
	x->cpus = m->cpus;
	x->memory_bytes = m->memory_bytes;
	x->memory_limit_bytes = m->memory_limit_bytes;
	x->memory_available_bytes = m->memory_available_bytes;
	x->n_numa_nodes = ret->lists.nodes_count;
	x->numa_nodes = ret->lists.node_list;
	x->n_devices = ret->lists.devices_count;
	x->devices = ret->lists.device_list;
	if (b) {
		machine_message_fill_bandwidths(b, &ret->bandwidths);
		x->bandwidths = &ret->bandwidths;
	}
}

void machine_message_fill_own(
	const struct topology_machine *m, struct machine_message *message, Thaw__Admin__V1__GetTopologyReply *ret)
{
	const Thaw__Admin__V1__Machine *x = &message->machine;
	ret->host = x->host;
	ret->cpu_model = x->cpu_model;
	ret->packages = x->packages;
	ret->cores = x->cores;
	ret->cpus = x->cpus;
	ret->n_cpu_ids = m->cpus < TOPOLOGY_MAX_CPUS ? m->cpus : TOPOLOGY_MAX_CPUS;
	ret->cpu_ids = (uint32_t *)m->cpu;
	ret->memory_bytes = x->memory_bytes;
	ret->memory_limit_bytes = x->memory_limit_bytes;
	ret->memory_available_bytes = x->memory_available_bytes;
	ret->n_numa_nodes = x->n_numa_nodes;
	ret->numa_nodes = x->numa_nodes;
	ret->n_devices = x->n_devices;
	ret->devices = x->devices;
	ret->bandwidths = x->bandwidths;
}

/* ---- from messages ---- */

int machine_message_take_text(const char *field, const char *text, char *out, size_t room, struct base_error *e)
{
	size_t n = strlen(text);
	if (n >= room)
		return base_error_set(e, -EBADMSG, "%s: %zu bytes, at most %zu", field, n, room - 1);
	memcpy(out, text, n + 1);
	return 0;
}

int machine_message_read_nodes(
	Thaw__Admin__V1__NumaNode *const *nodes, size_t count, struct topology_machine *ret, struct base_error *e)
{
	if (count > TOPOLOGY_MAX_NODES)
		return base_error_set(e, -EBADMSG, "numa_nodes: %zu, at most %u", count, TOPOLOGY_MAX_NODES);
	for (size_t i = 0; i < count; i++)
		ret->nodes[i] = (struct topology_numa_node){
			.os_index = nodes[i]->os_index, .memory_bytes = nodes[i]->memory_bytes, .cpus = nodes[i]->cpus};
	ret->nodes_count = (uint32_t)count;
	return 0;
}

static int read_device(const Thaw__Admin__V1__Device *m, struct topology_device *ret, struct base_error *e)
{
	*ret = (struct topology_device){.numa_node = m->numa_node < 0 ? -1 : m->numa_node, .size_bytes = m->size_bytes};
	int status = machine_message_take_text("devices[].name", m->name, ret->name, sizeof ret->name, e);
	if (!status)
		status = machine_message_take_text("devices[].model", m->model, ret->model, sizeof ret->model, e);
	return status ? status
		      : machine_message_take_text(
				"devices[].pci_path", m->pci_path, ret->pci_path, sizeof ret->pci_path, e);
}

int machine_message_read_devices(
	Thaw__Admin__V1__Device *const *devices, size_t count, struct topology_machine *ret, struct base_error *e)
{
	struct {
		const char *name;
		struct topology_device *list;
		uint32_t *count, most;
	} kinds[] = {{"drives", ret->drives, &ret->drives_count, TOPOLOGY_MAX_DRIVES},
		{"GPUs", ret->gpus, &ret->gpus_count, TOPOLOGY_MAX_GPUS},
		{"NICs", ret->nics, &ret->nics_count, TOPOLOGY_MAX_NICS}};
	ret->drives_count = ret->gpus_count = ret->nics_count = 0;
	for (size_t i = 0; i < count; i++) {
		uint32_t k = (uint32_t)devices[i]->kind; // anything
		if (k >= base_array_size(kinds))
			return base_error_set(e, -EBADMSG, "devices[].kind: %u is none", k);
		if (*kinds[k].count == kinds[k].most)
			return base_error_set(e, -EBADMSG, "devices: more than %u %s", kinds[k].most, kinds[k].name);
		int status = read_device(devices[i], &kinds[k].list[*kinds[k].count], e);
		if (status)
			return status;
		++*kinds[k].count;
	}
	return 0;
}

static double rate(double v)
{
	return isfinite(v) && v > 0 && v < 1e18 ? v : 0;
}

int machine_message_read(const Thaw__Admin__V1__Machine *message, struct topology_machine *ret,
	struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	const Thaw__Admin__V1__Bandwidths *b = message->bandwidths;
	int status = machine_message_take_text("host", message->host, ret->host, sizeof ret->host, e);
	if (!status)
		status = machine_message_take_text(
			"cpu_model", message->cpu_model, ret->cpu_model, sizeof ret->cpu_model, e);
	if (!status)
		status = machine_message_read_nodes(message->numa_nodes, message->n_numa_nodes, ret, e);
	if (!status)
		status = machine_message_read_devices(message->devices, message->n_devices, ret, e);
	if (status)
		return status;
	ret->packages = message->packages;
	ret->cores = message->cores;
	ret->cpus = message->cpus < TOPOLOGY_MAX_CPUS ? message->cpus : TOPOLOGY_MAX_CPUS;
	ret->memory_bytes = message->memory_bytes;
	ret->memory_limit_bytes = message->memory_limit_bytes;
	ret->memory_available_bytes = message->memory_available_bytes;
	*ret_bandwidths = (struct topology_bandwidths){0};
	if (b)
		*ret_bandwidths = (struct topology_bandwidths){.drive_bytes_per_s = rate(b->drive_bytes_per_second),
			.memory_bytes_per_s = rate(b->memory_bytes_per_second),
			.compute_macs_per_s = rate(b->compute_macs_per_second),
			.measured_wall_ns = b->measured_wall_ns};
	return 0;
}
