// SPDX-License-Identifier: Apache-2.0
// What a pass does, worked out once: ops, the runs of each matmul, the parts of each run, and the ring of cold
// extents in the order in which the runs take them. At run time only addresses of cold data are filled in.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "offload/store.h"
#include "shard/quant/quant.h"
#include "shard/rank/internal.h"

struct planner {
	struct rank *r;
	uint32_t *first_piece, *end_piece; // (weights): of the layout
	bool *selected; // (values)
	uint32_t held; // cold extent that is held, PROGRAM_NONE if none
	uint32_t held_left; // pieces of it that are still to come
};

static bool step_on_stage(const struct rank *r, uint32_t s)
{
	const struct program_step *step = &r->program->steps[s];
	const struct pack_slice *slice = &r->config.slice;
	if (step->layer != PROGRAM_NONE)
		return step->layer >= slice->first_layer && step->layer - slice->first_layer < slice->layers;
	bool embeds = step->op == PROGRAM_EMBED || step->op == PROGRAM_REDUCE; // the sum of looked-up rows
	return embeds ? r->first_stage : r->last_stage;
}

static int index_pieces(struct planner *k)
{
	struct rank *r = k->r;
	k->first_piece = calloc(r->program->weights_count, sizeof *k->first_piece);
	k->end_piece = calloc(r->program->weights_count, sizeof *k->end_piece);
	k->selected = calloc(r->program->values_count, sizeof *k->selected);
	r->vectors = calloc(r->program->weights_count, sizeof *r->vectors);
	if (!k->first_piece || !k->end_piece || !k->selected || !r->vectors)
		return -ENOMEM;
	for (uint32_t i = 0; i < r->layout->pieces_count; i++) {
		const struct pack_layout_piece *piece = &r->layout->pieces[i];
		if (k->end_piece[piece->weight] == 0)
			k->first_piece[piece->weight] = i;
		k->end_piece[piece->weight] = i + 1;
		if (r->program->weights[piece->weight].rows == 1 && r->hot[piece->extent])
			r->vectors[piece->weight] =
				(const float *)(const void *)(r->hot[piece->extent] + piece->offset_bytes);
	}
	rank_mark_selected(r->program, k->selected);
	return 0;
}

static struct rank_run *open_run(struct planner *k, bool cold, bool acquire)
{
	struct rank *r = k->r;
	struct rank_run *run = &r->runs[r->runs_count++];
	*run = (struct rank_run){.first_part = r->parts_count, .cold = cold, .acquire = acquire};
	return run;
}

static void add_part(
	struct planner *k, const struct program_step *step, const struct pack_layout_piece *piece, struct rank_run *run)
{
	struct rank *r = k->r;
	const struct program_weight *w = &r->program->weights[step->weight];
	const uint8_t *hot = r->hot[piece->extent];
	float *y = r->values[step->out] + piece->first_row;
	if (run->parts) { // pieces that lie side by side are one part
		struct backend_part *last = &r->parts[r->parts_count - 1];
		uint64_t row_bytes = 0;
		quant_row_bytes(w->type, r->layout->cuts[step->weight].cols, &row_bytes); // fits: checked by the layout
		uint64_t length = last->rows * row_bytes;
		bool beside = hot ? (const uint8_t *)last->weights + length == hot + piece->offset_bytes
				  : r->part_offsets[r->parts_count - 1] + length == piece->offset_bytes;
		if (beside && last->rows % QUANT_GROUP_ROWS == 0 && last->y + last->rows == y &&
			last->type == w->type) {
			last->rows += piece->rows;
			return;
		}
	}
	r->parts[r->parts_count] = (struct backend_part){
		.type = w->type,
		.rows = piece->rows,
		.weights = hot ? hot + piece->offset_bytes : NULL,
		.y = y,
		.y_stride = r->program->values[step->out].width,
	};
	r->part_offsets[r->parts_count++] = piece->offset_bytes;
	run->parts++;
}

static void add_ring_item(struct planner *k, uint32_t extent)
{
	struct rank *r = k->r;
	const struct pack_layout_extent *x = &r->layout->extents[extent];
	uint32_t count;
	const struct offload_store_extent *extents = offload_store_extents(r->stores[x->file], &count);
	r->ring[r->ring_count++] = (struct offload_stream_item){
		.file = x->file,
		.extent = &extents[extent - r->layout->files[x->file].first_extent],
		.layer = r->layout->files[x->file].layer,
	};
	k->held = extent;
	k->held_left = x->pieces;
}

static void add_matmul(struct planner *k, struct rank_op *op)
{
	struct rank *r = k->r;
	struct rank_run *run = NULL;
	for (uint32_t s = 0; s < op->steps; s++) {
		const struct program_step *step = &op->step[s];
		for (uint32_t i = k->first_piece[step->weight]; i < k->end_piece[step->weight]; i++) {
			const struct pack_layout_piece *piece = &r->layout->pieces[i];
			bool cold = !r->hot[piece->extent], acquire = cold && k->held != piece->extent;
			if (!run || run->cold != cold || acquire)
				run = open_run(k, cold, acquire);
			if (acquire)
				add_ring_item(k, piece->extent);
			add_part(k, step, piece, run);
			if (cold && --k->held_left == 0) {
				run->release = true;
				k->held = PROGRAM_NONE;
				run = NULL;
			}
		}
	}
	op->runs = r->runs_count - op->first_run;
}

static bool shares_input(const struct program_step *a, const struct program_step *b)
{
	return b->op == PROGRAM_MATMUL && b->in[0] == a->in[0] && b->layer == a->layer;
}

static void add_op(struct planner *k, uint32_t first, uint32_t *ret_next)
{
	struct rank *r = k->r;
	const struct program_step *step = &r->program->steps[first];
	struct rank_op *op = &r->op[r->op_count++];
	*op = (struct rank_op){
		.step = step,
		.steps = 1,
		.first_run = r->runs_count,
		.selected = k->selected[step->out],
	};
	if (step->op == PROGRAM_MATMUL) {
		while (first + op->steps < r->program->steps_count && shares_input(step, step + op->steps))
			op->steps++;
		add_matmul(k, op);
	}
	*ret_next = first + op->steps;
}

static int plan(struct planner *k)
{
	struct rank *r = k->r;
	uint32_t pieces = r->layout->pieces_count;
	int status = index_pieces(k);
	if (status)
		return status;
	r->op = calloc(r->program->steps_count, sizeof *r->op);
	r->runs = calloc(pieces + 1, sizeof *r->runs);
	r->parts = calloc(pieces + 1, sizeof *r->parts);
	r->part_offsets = calloc(pieces + 1, sizeof *r->part_offsets);
	r->ring = calloc(r->layout->extents_count + 1, sizeof *r->ring);
	if (!r->op || !r->runs || !r->parts || !r->part_offsets || !r->ring)
		return -ENOMEM;
	for (uint32_t s = 0; s < r->program->steps_count;) {
		if (step_on_stage(r, s))
			add_op(k, s, &s);
		else
			s++;
	}
	return 0;
}

int rank_plan_pass(struct rank *r, struct base_error *e)
{
	struct planner k = {.r = r, .held = PROGRAM_NONE};
	int status = plan(&k);
	free(k.first_piece);
	free(k.end_piece);
	free(k.selected);
	return status ? base_error_set(e, status, "no memory for the plan of a pass") : 0;
}
