/* SPDX-License-Identifier: Apache-2.0
 * Drawings as SVG: a machine as nested boxes in the manner of lstopo, and a placement as bars of bytes. Any thread.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "topology/machine.h"

#define TOPOLOGY_DRAW_SHARDS 1024u // that are drawn; of more, a line says how many

struct topology_draw_shard { // a rank, in the order of the pipeline
	const char *host, *device;
	uint32_t stage, tp_rank, tp, first_layer, last_layer;
	uint64_t hot_bytes, rows_bytes, pinned_bytes, ring_bytes, kv_bytes, workspace_bytes,
		free_bytes; // in memory; rows: of the embedding, beside what a pass reads
	uint64_t cold_bytes; // on the drive
	char link[64]; // to the next one, "" for none
};

void topology_draw_machine(const struct topology_machine *m, FILE *out);
void topology_draw_placement(
	const char *title, const char *note, const struct topology_draw_shard *shards, uint32_t count, FILE *out);
