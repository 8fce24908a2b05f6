// SPDX-License-Identifier: Apache-2.0
// Embedding rows: from hot extents, or read one by one, a piece of one or two row groups each.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "offload/check.h"
#include "shard/quant/quant.h"
#include "shard/rank/internal.h"

static int index_groups(struct rank *r, uint32_t weight)
{
	const struct program_cut *cut = &r->layout->cuts[weight];
	uint64_t row_bytes = 0;
	int status = quant_row_bytes(r->program->weights[weight].type, cut->cols, &row_bytes);
	r->lookup_group_bytes = row_bytes * QUANT_GROUP_ROWS;
	r->lookup_piece = calloc(base_size_div_up(cut->rows, QUANT_GROUP_ROWS), sizeof *r->lookup_piece);
	if (status || !r->lookup_piece)
		return status ? status : -ENOMEM;
	for (uint32_t i = 0; i < r->layout->pieces_count; i++) {
		const struct pack_layout_piece *piece = &r->layout->pieces[i];
		if (piece->weight != weight)
			continue;
		for (uint32_t row = 0; row < piece->rows; row += QUANT_GROUP_ROWS)
			r->lookup_piece[(piece->first_row + row) / QUANT_GROUP_ROWS] = i;
	}
	return 0;
}

int rank_rows_create(struct rank *r, struct base_error *e)
{
	struct base_error fallback = {0};
	r->lookup_weight = PROGRAM_NONE;
	if (!r->first_stage)
		return 0;
	r->lookup_weight = r->program->steps[0].weight;
	int status = index_groups(r, r->lookup_weight);
	if (status)
		return base_error_set(e, status, "no memory for the table of embedding rows");
	if (!r->budget.row_bytes)
		return 0;
	r->row_slots = calloc(r->sizes.row_slots, sizeof *r->row_slots);
	if (!r->row_slots)
		return base_error_set(e, -ENOMEM, "no memory for reads of embedding rows");
	struct offload_engine_config config = {
		.depth = r->sizes.row_slots,
		.files = r->fds,
		.files_count = r->layout->files_count,
	};
	return offload_engine_create(r->config.engine, &config, &r->row_engine, &fallback, e);
}

static const struct offload_store_piece *store_piece(const struct rank *r, uint32_t piece, uint64_t *ret_offset)
{
	uint32_t count;
	const struct pack_layout_piece *p = &r->layout->pieces[piece];
	const struct pack_layout_file *file = &r->layout->files[r->layout->extents[p->extent].file];
	const struct offload_store *s = r->stores[r->layout->extents[p->extent].file];
	*ret_offset = offload_store_extents(s, &count)[p->extent - file->first_extent].offset_bytes + p->offset_bytes;
	return &offload_store_pieces(s, &count)[piece - file->first_piece];
}

// The pages that a piece touches.
static void set_read(struct rank *r, struct rank_row_slot *slot, uint32_t index)
{
	uint64_t offset;
	const struct offload_store_piece *piece = store_piece(r, slot->piece, &offset);
	uint64_t first = offset / BASE_PAGE_BYTES * BASE_PAGE_BYTES;
	slot->read = (struct offload_read){
		.file = r->layout->extents[r->layout->pieces[slot->piece].extent].file,
		.offset_bytes = first,
		.length_bytes = (uint32_t)(base_size_align(offset + piece->length_bytes, BASE_PAGE_BYTES) - first),
		.buffer = r->row_memory + (size_t)index * r->sizes.row_span_bytes,
		.user = slot,
	};
	slot->tries = 0;
}

static const uint8_t *piece_data(const struct rank *r, const struct rank_row_slot *slot)
{
	uint64_t offset;
	store_piece(r, slot->piece, &offset);
	return (const uint8_t *)slot->read.buffer + offset % BASE_PAGE_BYTES;
}

static int check_read(const struct rank *r, struct rank_row_slot *slot, bool *ret_again)
{
	uint64_t offset;
	const struct offload_store_piece *piece = store_piece(r, slot->piece, &offset);
	return offload_check_read(
		&slot->read, piece_data(r, slot), piece->length_bytes, piece->xxh3, &slot->tries, ret_again);
}

static int row_error(const struct rank *r, const struct rank_row_slot *slot, int why, struct base_error *e)
{
	uint64_t offset;
	char name[64], path[sizeof r->config.store_directory + sizeof name];
	const struct offload_store_piece *piece = store_piece(r, slot->piece, &offset);
	const struct pack_layout_file *file = &r->layout->files[slot->read.file];
	pack_file_name(file->layer, r->config.slice.tp_rank, r->config.slice.tp_size, name);
	snprintf(path, sizeof path, "%s/%s", r->config.store_directory, name);
	return offload_check_error(path, offset, piece->length_bytes, why, e);
}

static int send_read(struct rank *r, struct rank_row_slot *slot)
{
	struct offload_read *read = &slot->read;
	int n = r->row_engine->ops->submit(r->row_engine, &read, 1);
	r->rows_flying += n == 1;
	return n == 1 ? 0 : n < 0 ? n : -EIO;
}

/* Until no read is in flight; with ret_failed NULL only that, else what came back is checked and sent once more where
 * the rule says so. The reads' buffers are the kernel's until then, so the next look-up after a failure begins here. */
static int reap_rows(struct rank *r, struct rank_row_slot **ret_failed)
{
	const struct offload_engine_ops *ops = r->row_engine->ops;
	uint64_t until = base_clock_now_ns() + OFFLOAD_CHECK_PATIENCE_NS;
	struct offload_read *back[8];
	int status = 0;
	while (r->rows_flying) {
		uint64_t now = base_clock_now_ns();
		int n = now < until ? ops->reap(r->row_engine, back, base_array_size(back), until - now) : -ETIMEDOUT;
		if (n < 0)
			return n;
		r->rows_flying -= (uint32_t)n;
		for (int i = 0; i < n; i++) {
			struct rank_row_slot *slot = back[i]->user;
			bool again = false;
			atomic_fetch_add_explicit(&r->embed_read_bytes, back[i]->length_bytes, memory_order_relaxed);
			if (base_trace_on(&r->trace))
				base_trace_record(
					&r->trace, &(struct base_trace_event){.start_ns = back[i]->submitted_ns,
							   .end_ns = back[i]->completed_ns,
							   .amount = back[i]->length_bytes,
							   .kind = back[i]->result < 0 ? BASE_TRACE_READ_FAILED
										       : BASE_TRACE_READ_ROWS,
							   .place = BASE_TRACE_NO_PLACE});
			int bad = ret_failed ? check_read(r, slot, &again) : 0;
			if (again && !status)
				bad = send_read(r, slot);
			if (bad && !status) {
				status = bad;
				*ret_failed = slot;
			}
		}
	}
	return status;
}

// Reads the pieces of the first `count` slots.
static int read_slots(struct rank *r, uint32_t count, struct base_error *e)
{
	struct rank_row_slot *failed = r->row_slots;
	int status = reap_rows(r, NULL); // what a look-up that failed left behind
	for (uint32_t i = 0; i < count && !status; i++) {
		set_read(r, &r->row_slots[i], i);
		failed = &r->row_slots[i];
		status = send_read(r, failed);
	}
	if (!status)
		status = reap_rows(r, &failed);
	return status ? row_error(r, failed, status, e) : 0;
}

// The slot that has or will have a piece; PROGRAM_NONE when there is no room for one more.
static uint32_t slot_of(struct rank *r, uint32_t piece, uint32_t *count)
{
	for (uint32_t i = 0; i < *count; i++) {
		if (r->row_slots[i].piece == piece)
			return i;
	}
	if (*count == r->sizes.row_slots)
		return PROGRAM_NONE;
	r->row_slots[*count].piece = piece;
	return (*count)++;
}

// As many tokens as the slots hold pieces for; their rows' places in the pieces stand in embed_rows as offsets.
static uint32_t gather(struct rank *r, const uint32_t *tokens, uint32_t count, uint32_t *ret_slots)
{
	uint32_t n = 0;
	*ret_slots = 0;
	for (; n < count; n++) {
		uint32_t piece = r->lookup_piece[tokens[n] / QUANT_GROUP_ROWS];
		if (!r->hot[r->layout->pieces[piece].extent] && slot_of(r, piece, ret_slots) == PROGRAM_NONE)
			break;
	}
	return n;
}

static void address_rows(struct rank *r, const uint32_t *tokens, uint32_t count, uint32_t slots)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t group = tokens[i] / QUANT_GROUP_ROWS, index = r->lookup_piece[group];
		const struct pack_layout_piece *piece = &r->layout->pieces[index];
		const uint8_t *hot = r->hot[piece->extent];
		const uint8_t *data =
			hot ? hot + piece->offset_bytes : piece_data(r, &r->row_slots[slot_of(r, index, &slots)]);
		r->embed_rows[i] = (struct backend_embed_row){
			.group = data + (group - piece->first_row / QUANT_GROUP_ROWS) * r->lookup_group_bytes,
			.row = tokens[i] % QUANT_GROUP_ROWS,
		};
	}
}

int rank_rows_embed(struct rank *r, const uint32_t *tokens, uint32_t count, float *y, struct base_error *e)
{
	uint32_t width = r->program->config.width, type = r->program->weights[r->lookup_weight].type;
	for (uint32_t done = 0; done < count;) {
		uint32_t slots, n = gather(r, tokens + done, count - done, &slots);
		int status = slots ? read_slots(r, slots, e) : 0;
		if (status)
			return status;
		address_rows(r, tokens + done, n, slots);
		r->ops->embed(r->backend, type, width, r->embed_rows, n, y + (size_t)done * width);
		if (slots) // before the buffers are read into again
			r->ops->wait(r->backend, r->ops->fence(r->backend));
		done += n;
	}
	return 0;
}
