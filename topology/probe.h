/* SPDX-License-Identifier: Apache-2.0
 * Measures what the planner needs: drive (O_DIRECT through a caller's reader), memory and compute bandwidth. Short and
 * bounded (drive <= 300 ms, one below 500 MB/s 1.8 s; memory <= 100 ms and the time to get the memory); cached in
 * STORE/probe.json with date and a digest of the machine. Drive and compute are measured by functions that the caller
 * gives, because offload and the backends own those.
 */
#pragma once

#include "base/error.h"
#include "topology/machine.h"

struct topology_probe_source {
	/* Bytes per second of the drive that holds the store; 0 return and 0.0 when there is nothing to read yet. */
	int (*drive)(void *context, double *ret_bytes_per_s);
	int (*compute)(void *context, double *ret_macs_per_s);
	double (*busy)(void *context); // tests: instead of topology_probe_busy
	void *context;
};

/* Plain streaming reads of `threads` (0: one for each usable CPU) threads, bound to the CPUs of m in their order, over
 * buffers of 256 MiB in all, or larger than the caches where those are larger, and at most a sixteenth of what is
 * available: the best of a few windows, 100 ms in all, after the kernel gave the memory (1 s at most). -ENOMEM. */
int topology_probe_memory(
	const struct topology_machine *m, uint32_t threads, double *ret_bytes_per_s, struct base_error *e);
/* How much of all CPUs others use, in 60 ms of /proc/stat: 0 to 1, steal by other guests included; 0 where that cannot
 * be read. */
double topology_probe_busy(void);
#define TOPOLOGY_PROBE_BUSY 0.25 // from there on what is measured is too low to keep
/* All of it. cache_path (may be NULL: no cache) holds the last result as JSON: used if it is of this machine and of the
 * last 24 hours, else measured again and written atomically; what was measured on a busy machine is measured again once
 * the machine is idle; a cache that cannot be read or written is not an error. A drive that had nothing to read last
 * time is asked again. */
int topology_probe(const struct topology_machine *m, const char *cache_path, const struct topology_probe_source *source,
	struct topology_bandwidths *ret_bandwidths, struct base_error *e);
