// SPDX-License-Identifier: Apache-2.0
#include "topology/scan.h"

#include <errno.h>
#include <hwloc.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "topology/cgroup.h"

#define PCI_VENDOR_NVIDIA 0x10de
#define PCI_VENDOR_AMD 0x1002
#define PCI_CLASS_VGA 0x0300
#define PCI_CLASS_3D 0x0302
#define PCI_CLASS_DISPLAY 0x0380
#define PCI_CLASS_ACCELERATOR 0x1200

// These texts travel as strings of messages, which others refuse whole if they are no UTF-8: a cut must not part a
// character.
static void copy(char *out, size_t room, const char *text)
{
	snprintf(out, room, "%s", text ? text : "");
	out[base_utf8_prefix(out, strlen(out))] = '\0';
}

static const char *info(hwloc_obj_t o, const char *name)
{
	return o ? hwloc_obj_get_info_by_name(o, name) : NULL;
}

static hwloc_obj_t pci_parent(hwloc_obj_t o)
{
	while (o && o->type != HWLOC_OBJ_PCI_DEVICE)
		o = o->parent;
	return o;
}

// Where a device hangs: its NUMA node, if there is only one that is as near.
static int32_t numa_node(hwloc_topology_t t, hwloc_obj_t o)
{
	hwloc_obj_t near = hwloc_get_non_io_ancestor_obj(t, o);
	if (!near || !near->nodeset || hwloc_bitmap_weight(near->nodeset) != 1)
		return -1;
	return hwloc_bitmap_first(near->nodeset);
}

static void fill_place(hwloc_topology_t t, hwloc_obj_t o, struct topology_device *d)
{
	hwloc_obj_t pci = pci_parent(o);
	d->numa_node = numa_node(t, o);
	if (!pci)
		return;
	const struct hwloc_pcidev_attr_s *a = &pci->attr->pcidev;
	snprintf(d->pci_path, sizeof d->pci_path, "%04x:%02x:%02x.%x", a->domain, a->bus, a->dev, a->func);
	copy(d->model, sizeof d->model, info(pci, "PCIDevice"));
}

static uint64_t number(const char *text, uint64_t unit_bytes)
{
	char *end;
	if (!text)
		return 0;
	errno = 0;
	unsigned long long v = strtoull(text, &end, 10);
	return errno || end == text || v > UINT64_MAX / unit_bytes ? 0 : v * unit_bytes;
}

static void add_drive(hwloc_topology_t t, hwloc_obj_t o, struct topology_machine *m)
{
	static const char *const kinds[] = {"Removable Media Device", "Tape", "Removable"};
	for (size_t i = 0; o->subtype && i < sizeof kinds / sizeof kinds[0]; i++) {
		if (strcmp(o->subtype, kinds[i]) == 0)
			return;
	}
	if (!o->name || strncmp(o->name, "sr", 2) == 0 || m->drives_count == TOPOLOGY_MAX_DRIVES)
		return;
	struct topology_device *d = &m->drives[m->drives_count++];
	fill_place(t, o, d);
	copy(d->name, sizeof d->name, o->name);
	if (info(o, "Model"))
		copy(d->model, sizeof d->model, info(o, "Model"));
	d->size_bytes = number(info(o, "Size"), 1024);
}

static bool has_child(hwloc_obj_t pci, hwloc_obj_osdev_type_t type)
{
	for (hwloc_obj_t c = pci ? pci->io_first_child : NULL; c; c = c->next_sibling) {
		if (c->type == HWLOC_OBJ_OS_DEVICE && c->attr->osdev.type == type)
			return true;
	}
	return false;
}

static void add_nic(hwloc_topology_t t, hwloc_obj_t o, struct topology_machine *m)
{
	// An InfiniBand port has both names where it has a network interface: one line is enough.
	if (o->attr->osdev.type == HWLOC_OBJ_OSDEV_OPENFABRICS && has_child(pci_parent(o), HWLOC_OBJ_OSDEV_NETWORK))
		return;
	if (m->nics_count == TOPOLOGY_MAX_NICS)
		return;
	struct topology_device *d = &m->nics[m->nics_count++];
	fill_place(t, o, d);
	copy(d->name, sizeof d->name, o->name);
}

// Display chips of the board's controller are no GPUs: 3D controllers and accelerators are, VGA only of NVIDIA or with
// a compute driver.
static bool is_gpu(hwloc_obj_t o)
{
	const struct hwloc_pcidev_attr_s *a = &o->attr->pcidev;
	if (a->class_id == PCI_CLASS_3D || has_child(o, HWLOC_OBJ_OSDEV_COPROC))
		return true;
	if (a->vendor_id == PCI_VENDOR_AMD)
		return a->class_id == PCI_CLASS_DISPLAY || a->class_id == PCI_CLASS_ACCELERATOR;
	return a->vendor_id == PCI_VENDOR_NVIDIA && a->class_id == PCI_CLASS_VGA;
}

static void add_gpu(hwloc_topology_t t, hwloc_obj_t o, struct topology_machine *m)
{
	if (m->gpus_count == TOPOLOGY_MAX_GPUS)
		return;
	struct topology_device *d = &m->gpus[m->gpus_count];
	fill_place(t, o, d);
	snprintf(d->name, sizeof d->name, "gpu%u", m->gpus_count++);
	for (hwloc_obj_t c = o->io_first_child; c; c = c->next_sibling) {
		if (info(c, "GPUModel"))
			copy(d->model, sizeof d->model, info(c, "GPUModel"));
		uint64_t cuda = number(info(c, "CUDAGlobalMemorySize"), 1024);
		uint64_t rsmi = number(info(c, "RSMIVRAMSize"), 1024);
		d->size_bytes = cuda ? cuda : rsmi ? rsmi : d->size_bytes;
	}
}

static void add_devices(hwloc_topology_t t, struct topology_machine *m)
{
	for (hwloc_obj_t o = NULL; (o = hwloc_get_next_osdev(t, o));) {
		hwloc_obj_osdev_type_t type = o->attr->osdev.type;
		if (type == HWLOC_OBJ_OSDEV_BLOCK)
			add_drive(t, o, m);
		else if (type == HWLOC_OBJ_OSDEV_NETWORK || type == HWLOC_OBJ_OSDEV_OPENFABRICS)
			add_nic(t, o, m);
	}
	for (hwloc_obj_t o = NULL; (o = hwloc_get_next_pcidev(t, o));) {
		if (is_gpu(o))
			add_gpu(t, o, m);
	}
}

// The first usable CPU of each core, then the second ones: the first n are n cores for as long as there are so many.
static int add_cpus(hwloc_topology_t t, hwloc_const_bitmap_t usable, struct topology_machine *m, struct base_error *e)
{
	int cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE);
	int total = hwloc_bitmap_weight(usable);
	if (total <= 0)
		return base_error_set(e, -ENODEV, "topology: there is no CPU that may be used");
	if (total > (int)TOPOLOGY_MAX_CPUS)
		return base_error_set(
			e, -E2BIG, "topology: %d CPUs; at most %u are supported", total, TOPOLOGY_MAX_CPUS);
	hwloc_bitmap_t left = hwloc_bitmap_dup(usable), one = hwloc_bitmap_alloc();
	bool found = left && one;
	for (unsigned round = 0; found; round++) {
		found = false;
		for (int i = 0; i < cores; i++) {
			hwloc_bitmap_and(one, hwloc_get_obj_by_type(t, HWLOC_OBJ_CORE, (unsigned)i)->cpuset, left);
			int cpu = hwloc_bitmap_first(one);
			if (cpu < 0)
				continue;
			found = true;
			m->cores += round == 0;
			m->cpu[m->cpus++] = (uint32_t)cpu;
			hwloc_bitmap_clr(left, (unsigned)cpu);
		}
	}
	int cpu; // of machines whose cores are not known
	for (cpu = left ? hwloc_bitmap_first(left) : -1; cpu >= 0; cpu = hwloc_bitmap_next(left, cpu))
		m->cpu[m->cpus++] = (uint32_t)cpu;
	m->cores = m->cores ? m->cores : m->cpus;
	int r = left && one ? 0 : base_error_set(e, -ENOMEM, "topology: out of memory");
	hwloc_bitmap_free(left);
	hwloc_bitmap_free(one);
	return r;
}

static int add_nodes(hwloc_topology_t t, hwloc_const_bitmap_t usable, struct topology_machine *m, struct base_error *e)
{
	for (hwloc_obj_t n = NULL; (n = hwloc_get_next_obj_by_type(t, HWLOC_OBJ_NUMANODE, n));) {
		if (m->nodes_count == TOPOLOGY_MAX_NODES)
			return base_error_set(e, -E2BIG, "topology: more than %u NUMA nodes", TOPOLOGY_MAX_NODES);
		struct topology_numa_node *node = &m->nodes[m->nodes_count++];
		node->os_index = n->os_index;
		node->memory_bytes = n->attr->numanode.local_memory;
		m->memory_bytes += node->memory_bytes;
		for (int cpu = hwloc_bitmap_first(n->cpuset); cpu >= 0; cpu = hwloc_bitmap_next(n->cpuset, cpu))
			node->cpus += hwloc_bitmap_isset(usable, (unsigned)cpu) != 0;
	}
	return 0;
}

static int fill(hwloc_topology_t t, bool live, struct topology_machine *m, struct base_error *e)
{
	hwloc_obj_t root = hwloc_get_root_obj(t), package = hwloc_get_obj_by_type(t, HWLOC_OBJ_PACKAGE, 0);
	hwloc_bitmap_t usable = hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(t));
	hwloc_bitmap_t bound = hwloc_bitmap_alloc();
	int r = usable && bound ? 0 : base_error_set(e, -ENOMEM, "topology: out of memory");
	if (r == 0) {
		hwloc_bitmap_and(usable, usable, hwloc_topology_get_topology_cpuset(t));
		if (live && hwloc_get_cpubind(t, bound, HWLOC_CPUBIND_PROCESS) == 0)
			hwloc_bitmap_and(usable, usable, bound);
		copy(m->host, sizeof m->host, info(root, "HostName"));
		const char *model = info(package, "CPUModel");
		copy(m->cpu_model, sizeof m->cpu_model, model ? model : info(root, "CPUModel"));
		int packages = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PACKAGE);
		m->packages = packages > 0 ? (uint32_t)packages : 1;
		r = add_cpus(t, usable, m, e);
	}
	if (r == 0)
		r = add_nodes(t, usable, m, e);
	if (r == 0)
		add_devices(t, m);
	hwloc_bitmap_free(usable);
	hwloc_bitmap_free(bound);
	return r;
}

static int load(const char *xml, hwloc_topology_t t, struct base_error *e)
{
	if (xml && hwloc_topology_set_xml(t, xml) < 0)
		return base_error_set(
			e, errno == ENOENT ? -ENOENT : -EINVAL, "%s: cannot be read as an hwloc topology", xml);
	hwloc_topology_set_io_types_filter(t, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
	hwloc_topology_set_icache_types_filter(t, HWLOC_TYPE_FILTER_KEEP_NONE);
	if (hwloc_topology_load(t) < 0)
		return base_error_set(e, -EINVAL, "%s: not a topology that hwloc can load", xml ? xml : "this machine");
	return 0;
}

int topology_scan(const char *xml, struct topology_machine *ret_machine, struct base_error *e)
{
	hwloc_topology_t t;
	struct topology_machine *m = calloc(1, sizeof *m); // about 40 KiB: not on the stack of any thread
	if (!m || hwloc_topology_init(&t) < 0) {
		free(m);
		return base_error_set(e, -ENOMEM, "topology: out of memory");
	}
	int r = load(xml, t, e);
	if (r == 0)
		r = fill(t, xml == NULL, m, e);
	hwloc_topology_destroy(t);
	if (r == 0) {
		m->memory_limit_bytes = m->memory_available_bytes = m->memory_bytes;
		if (!xml)
			topology_cgroup_apply("", m);
		*ret_machine = *m;
	}
	free(m);
	return r;
}
