/* SPDX-License-Identifier: Apache-2.0
 * A machine as plain data: what the scan found and the probe measured. No pointers: copy it (about 45 KiB: not on a
 * small stack). Of devices, the first TOPOLOGY_MAX_* are kept. GPUs are 3D controllers and accelerators, and VGA ones
 * of NVIDIA: a server board's own display chip is none.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define TOPOLOGY_MAX_NODES 16u
#define TOPOLOGY_MAX_CPUS 1024u
#define TOPOLOGY_MAX_DRIVES 64u
#define TOPOLOGY_MAX_GPUS 32u
#define TOPOLOGY_MAX_NICS 32u

struct topology_numa_node {
	uint32_t os_index;
	uint64_t memory_bytes;
	uint32_t cpus;
};

struct topology_device { // drive, GPU or NIC
	char name[64]; // nvme0n1, vda, eth0
	char model[64];
	char pci_path[32]; // 0000:01:00.0, "" if not PCI
	int32_t numa_node; // -1: unknown
	uint64_t size_bytes;
};

struct topology_machine {
	char host[64];
	char cpu_model[96];
	uint32_t packages, cores, cpus; // cpus: those that we may use (cgroup cpuset, affinity)
	uint32_t cpu[TOPOLOGY_MAX_CPUS]; // their OS numbers: the first one of each core, then the second ones...
	uint64_t memory_bytes; // all that the system has; of a recorded machine, the sum of its nodes
	uint64_t memory_limit_bytes; // smallest of that and the cgroup limits (v1 and v2)
	uint64_t memory_available_bytes; // now
	struct topology_numa_node nodes[TOPOLOGY_MAX_NODES];
	uint32_t nodes_count;
	struct topology_device drives[TOPOLOGY_MAX_DRIVES], gpus[TOPOLOGY_MAX_GPUS], nics[TOPOLOGY_MAX_NICS];
	uint32_t drives_count, gpus_count, nics_count;
};

struct topology_bandwidths { // measured by the probe; 0: not measured
	double drive_bytes_per_s;
	double memory_bytes_per_s;
	double compute_macs_per_s; // of the cpu backend's 8-bit kernels, all threads
	uint64_t measured_wall_ns;
	double busy_ratio; // how much of the CPUs others used right before, steal included: figures taken then are low
};

/* Process `part` of `parts`: its threads, at most `most` (0: one for each CPU), and the CPUs that they are bound to.
 * Each process has CPUs of its own; where there are fewer CPUs than processes, each takes one thread that the kernel
 * moves about. */
uint32_t topology_machine_share(const struct topology_machine *m, uint32_t part, uint32_t parts, uint32_t most,
	uint32_t cpus[TOPOLOGY_MAX_CPUS], uint32_t *ret_cpus_count); // 0: not bound
