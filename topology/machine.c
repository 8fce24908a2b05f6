// SPDX-License-Identifier: Apache-2.0
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/units.h"
#include "topology/scan.h"

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static void print_cpu_list(const struct topology_machine *m, FILE *out) // "0-7,16"
{
	uint32_t sorted[TOPOLOGY_MAX_CPUS];
	memcpy(sorted, m->cpu, m->cpus * sizeof *sorted);
	qsort(sorted, m->cpus, sizeof *sorted, compare);
	for (uint32_t first = 0, last; first < m->cpus; first = last + 1) {
		for (last = first; last + 1 < m->cpus && sorted[last + 1] == sorted[last] + 1;)
			last++;
		fprintf(out, first == 0 ? "%" PRIu32 : ",%" PRIu32, sorted[first]);
		if (last > first)
			fprintf(out, "-%" PRIu32, sorted[last]);
	}
}

static void print_devices(const char *title, const struct topology_device *d, uint32_t count, FILE *out)
{
	char size[BASE_UNITS_TEXT_BYTES], node[16];
	if (count == 0)
		return;
	int width = (int)strlen(title);
	for (uint32_t i = 0; i < count; i++)
		width = (int)strlen(d[i].name) > width ? (int)strlen(d[i].name) : width;
	fprintf(out, "\n%-*s  NUMA  PCI           SIZE       MODEL\n", width, title);
	for (uint32_t i = 0; i < count; i++) {
		snprintf(node, sizeof node, "%" PRId32, d[i].numa_node);
		fprintf(out, "%-*s  %-4s  %-12s  %-9s  %s\n", width, d[i].name, d[i].numa_node < 0 ? "-" : node,
			d[i].pci_path[0] ? d[i].pci_path : "-",
			d[i].size_bytes ? base_units_format_bytes(d[i].size_bytes, size) : "-",
			d[i].model[0] ? d[i].model : "-");
	}
}

void topology_machine_print(const struct topology_machine *m, FILE *out)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES];
	fprintf(out, "host    %s\n", m->host[0] ? m->host : "-");
	fprintf(out, "cpu     %s\n", m->cpu_model[0] ? m->cpu_model : "-");
	fprintf(out, "cpus    %" PRIu32 " usable (", m->cpus);
	print_cpu_list(m, out);
	fprintf(out, ") in %" PRIu32 " core%s, %" PRIu32 " package%s\n", m->cores, m->cores == 1 ? "" : "s",
		m->packages, m->packages == 1 ? "" : "s");
	fprintf(out, "memory  %s installed, %s may be used, %s available\n",
		base_units_format_bytes(m->memory_bytes, a), base_units_format_bytes(m->memory_limit_bytes, b),
		base_units_format_bytes(m->memory_available_bytes, c));
	fprintf(out, "\nNUMA  MEMORY     CPUS\n");
	for (uint32_t i = 0; i < m->nodes_count; i++)
		fprintf(out, "%-4" PRIu32 "  %-9s  %" PRIu32 "\n", m->nodes[i].os_index,
			base_units_format_bytes(m->nodes[i].memory_bytes, a), m->nodes[i].cpus);
	print_devices("DRIVE", m->drives, m->drives_count, out);
	print_devices("GPU", m->gpus, m->gpus_count, out);
	print_devices("NIC", m->nics, m->nics_count, out);
}

uint32_t topology_machine_share(const struct topology_machine *m, uint32_t part, uint32_t parts, uint32_t most,
	uint32_t cpus[TOPOLOGY_MAX_CPUS], uint32_t *ret_cpus_count)
{
	if (m->cpus < parts) {
		*ret_cpus_count = 0;
		return 1;
	}
	uint32_t first = m->cpus * part / parts, count = m->cpus * (part + 1) / parts - first;
	memcpy(cpus, m->cpu + first, count * sizeof *cpus);
	*ret_cpus_count = count;
	return most && most < count ? most : count;
}
