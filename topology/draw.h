/* SPDX-License-Identifier: Apache-2.0
 * Drawings as SVG: machines as nested boxes in the manner of lstopo, with the links between them at their side, and a
 * placement as bars of bytes. Texts that are too long for their place are cut, with the whole of it in a tooltip. Any
 * thread.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "topology/machine.h"

#define TOPOLOGY_DRAW_SHARDS 1024u // that are drawn; of more, a line says how many
#define TOPOLOGY_DRAW_MACHINES 64u // the same
#define TOPOLOGY_DRAW_LINKS 256u

struct topology_draw_machine { // of a fleet, from top to bottom
	const struct topology_machine *machine;
	const char *name; // "": the machine's host
	const char *note; // beside it: "coordinator, ready"
	const struct topology_bandwidths *bandwidths; // NULL: none are shown
};

struct topology_draw_link { // between two machines
	uint32_t ends[2];
	const char *label; // class, latency, bandwidth
	bool assumed; // not measured: dashed
};

struct topology_draw_shard { // a rank, in the order of the pipeline
	const char *host, *device;
	uint32_t stage, tp_rank, tp, first_layer, last_layer;
	uint64_t hot_bytes, rows_bytes, pinned_bytes, ring_bytes, kv_bytes, workspace_bytes,
		free_bytes; // in memory; rows: of the embedding, beside what a pass reads
	uint64_t cold_bytes; // on the drive
	char link[64]; // to the next one, "" for none
};

/* title "": a lone machine. Links whose ends are not among the machines, or the same, are left out. -ENOMEM */
int topology_draw_fleet(const char *title, const struct topology_draw_machine *machines, uint32_t count,
	const struct topology_draw_link *links, uint32_t links_count, FILE *out);
void topology_draw_placement(
	const char *title, const char *note, const struct topology_draw_shard *shards, uint32_t count, FILE *out);
