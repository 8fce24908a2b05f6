// SPDX-License-Identifier: Apache-2.0
#include "shard/pack/layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/store.h"
#include "shard/quant/quant.h"

#define PIECE_ALIGN 64u
#define MIN_EXTENT_BYTES (64u << 10)
#define MAX_EXTENT_BYTES (1u << 20)
#define EXTENTS_PER_LAYER 16u

// The matmul step that reads a weight, NULL for other weights.
static const struct program_step *matmul_of(const struct program *p, uint32_t weight)
{
	const struct program_step *step = &p->steps[p->weights[weight].step];
	return step->op == PROGRAM_MATMUL ? step : NULL;
}

/* ---- sizes ---- */

static bool is_looked_up(const struct program *p, uint32_t weight)
{
	for (uint32_t s = 0; s < p->steps_count && p->steps[s].layer == PROGRAM_NONE; s++) {
		if (p->steps[s].op == PROGRAM_EMBED && p->steps[s].weight == weight)
			return true;
	}
	return false;
}

uint32_t pack_weight_file(const struct program *p, uint32_t weight)
{
	const struct program_weight *w = &p->weights[weight];
	if (w->layer != PROGRAM_NONE)
		return w->layer;
	return matmul_of(p, weight) || !is_looked_up(p, weight) ? PACK_LAYER_HEAD : PACK_LAYER_EMBED;
}

// Of one row group of a matrix, or of a whole vector.
static uint64_t unit_bytes(const struct program_weight *w, uint32_t cols)
{
	uint64_t row = 0;
	if (w->rows == 1)
		return (uint64_t)cols * sizeof(float);
	return quant_row_bytes(w->type, cols, &row) ? 0 : row * QUANT_GROUP_ROWS;
}

uint32_t pack_extent_bytes(const struct program *p)
{
	uint64_t layer = 0, unit = 0;
	for (uint32_t l = 0; l < p->config.layers && l < 2; l++) { // layers of one family are alike
		uint64_t bytes = program_layer_bytes(p, l);
		layer = bytes > layer ? bytes : layer;
	}
	for (uint32_t i = 0; i < p->weights_count; i++) {
		uint64_t bytes = unit_bytes(&p->weights[i], p->weights[i].cols);
		if (bytes % PIECE_ALIGN && is_looked_up(p, i))
			bytes *= 2;
		unit = bytes > unit ? bytes : unit;
	}
	uint32_t bytes = MAX_EXTENT_BYTES;
	while (bytes > MIN_EXTENT_BYTES && bytes > layer / EXTENTS_PER_LAYER)
		bytes /= 2;
	while (bytes < unit && bytes < OFFLOAD_STORE_MAX_EXTENT_BYTES)
		bytes *= 2;
	return bytes;
}

struct pack_slice pack_file_slice(uint32_t layer, const struct pack_slice *slice)
{
	struct pack_slice s = *slice;
	if (layer == PACK_LAYER_EMBED) {
		s.tp_rank = 0;
		s.tp_size = 1;
	}
	return s;
}

char *pack_file_name(uint32_t layer, uint32_t tp_rank, uint32_t tp_size, char out[static 64])
{
	if (layer == PACK_LAYER_EMBED)
		snprintf(out, 64, "embed.tp0of1");
	else if (layer == PACK_LAYER_HEAD)
		snprintf(out, 64, "head.tp%uof%u", tp_rank, tp_size);
	else
		snprintf(out, 64, "layer-%04u.tp%uof%u", layer, tp_rank, tp_size);
	return out;
}

static bool skip(const char **at, const char *text)
{
	size_t n = strlen(text);
	if (strncmp(*at, text, n) != 0)
		return false;
	*at += n;
	return true;
}

// Digits, at least one, of a number of at most four.
static bool take_number(const char **at, uint32_t *ret)
{
	uint32_t v = 0, digits = 0;
	for (; **at >= '0' && **at <= '9' && digits < 5; digits++)
		v = v * 10 + (uint32_t)(*(*at)++ - '0');
	*ret = v;
	return digits > 0 && digits < 5;
}

int pack_file_parse(const char *name, uint32_t *ret_layer, uint32_t *ret_tp_rank, uint32_t *ret_tp_size)
{
	const char *at = name;
	uint32_t layer, rank, size;
	char same[64];
	if (skip(&at, "embed"))
		layer = PACK_LAYER_EMBED;
	else if (skip(&at, "head"))
		layer = PACK_LAYER_HEAD;
	else if (!skip(&at, "layer-") || !take_number(&at, &layer) || layer >= PROGRAM_MAX_LAYERS)
		return -EINVAL;
	if (!skip(&at, ".tp") || !take_number(&at, &rank) || !skip(&at, "of") || !take_number(&at, &size) ||
		size > PROGRAM_MAX_PARTS || rank >= size)
		return -EINVAL;
	if (strcmp(pack_file_name(layer, rank, size, same), name) != 0) // other zeros, or more behind it
		return -EINVAL;
	*ret_layer = layer;
	*ret_tp_rank = rank;
	*ret_tp_size = size;
	return 0;
}

/* ---- layout ---- */

struct layout_builder {
	const struct program *p;
	struct pack_layout *l;
	uint32_t extents_room, pieces_room;
	uint32_t used; // bytes of the open extent; 0: none is open
};

static int grow(void **table, uint32_t count, uint32_t *room, size_t size)
{
	if (count < *room)
		return 0;
	uint32_t more = *room ? 2 * *room : 256;
	void *table_now = reallocarray(*table, more, size);
	if (!table_now)
		return -ENOMEM;
	*table = table_now;
	*room = more;
	return 0;
}

static void close_extent(struct layout_builder *b)
{
	struct pack_layout *l = b->l;
	if (!b->used)
		return;
	uint32_t bytes = (uint32_t)base_size_align(b->used, BASE_PAGE_BYTES);
	l->extents[l->extents_count - 1].length_bytes = bytes;
	l->files[l->files_count - 1].data_bytes += bytes;
	b->used = 0;
}

static int add_piece(struct layout_builder *b, uint32_t weight, uint32_t first_row, uint32_t rows, uint32_t bytes)
{
	struct pack_layout *l = b->l;
	struct pack_layout_file *file = &l->files[l->files_count - 1];
	uint32_t at = (uint32_t)base_size_align(b->used, PIECE_ALIGN);
	if (b->used && at + (uint64_t)bytes > l->extent_bytes) {
		close_extent(b);
		at = 0;
	}
	if (l->pieces_count == OFFLOAD_STORE_MAX_PIECES || l->extents_count == OFFLOAD_STORE_MAX_EXTENTS)
		return -EOVERFLOW;
	if (grow((void **)&l->pieces, l->pieces_count, &b->pieces_room, sizeof *l->pieces) ||
		grow((void **)&l->extents, l->extents_count, &b->extents_room, sizeof *l->extents))
		return -ENOMEM;
	if (!b->used) {
		l->extents[l->extents_count++] = (struct pack_layout_extent){
			.file = l->files_count - 1,
			.first_piece = l->pieces_count,
			.pinned = b->p->weights[weight].rows == 1,
		};
		file->extents++;
	}
	l->pieces[l->pieces_count++] = (struct pack_layout_piece){
		.weight = weight,
		.extent = l->extents_count - 1,
		.offset_bytes = at,
		.length_bytes = bytes,
		.first_row = first_row,
		.rows = rows,
	};
	l->extents[l->extents_count - 1].pieces++;
	file->pieces++;
	b->used = at + bytes;
	return 0;
}

static int add_matrix(struct layout_builder *b, uint32_t weight)
{
	const struct program_cut *cut = &b->l->cuts[weight];
	uint64_t group = unit_bytes(&b->p->weights[weight], cut->cols);
	uint32_t groups = (uint32_t)base_size_div_up(cut->rows, QUANT_GROUP_ROWS);
	uint32_t most = is_looked_up(b->p, weight) ? (group % PIECE_ALIGN ? 2 : 1) : UINT32_MAX;
	for (uint32_t g = 0; g < groups;) {
		uint64_t at = base_size_align(b->used, PIECE_ALIGN);
		uint64_t room = at < b->l->extent_bytes ? b->l->extent_bytes - at : 0;
		uint64_t count = (room >= group ? room : b->l->extent_bytes) / group;
		count = count < most ? count : most;
		count = count < groups - g ? count : groups - g;
		uint32_t rows = (g + count) * QUANT_GROUP_ROWS < cut->rows ? (uint32_t)count * QUANT_GROUP_ROWS
									   : cut->rows - g * QUANT_GROUP_ROWS;
		int status = add_piece(b, weight, g * QUANT_GROUP_ROWS, rows, (uint32_t)(count * group));
		if (status)
			return status;
		g += (uint32_t)count;
	}
	return 0;
}

static int add_file(struct layout_builder *b, uint32_t layer, uint32_t first_weight, uint32_t end_weight)
{
	struct pack_layout *l = b->l;
	l->files[l->files_count++] = (struct pack_layout_file){
		.layer = layer,
		.first_extent = l->extents_count,
		.first_piece = l->pieces_count,
	};
	for (uint32_t pass = 0; pass < 2; pass++) { // vectors, then matrices
		for (uint32_t i = first_weight; i < end_weight; i++) {
			bool vector = b->p->weights[i].rows == 1;
			if (pack_weight_file(b->p, i) != layer || vector != (pass == 0))
				continue;
			int status =
				vector ? add_piece(b, i, 0, 1, (uint32_t)unit_bytes(&b->p->weights[i], l->cuts[i].cols))
				       : add_matrix(b, i);
			if (status)
				return status;
		}
		close_extent(b);
	}
	return 0;
}

static int add_files(struct layout_builder *b, const struct pack_slice *s)
{
	const struct program *p = b->p;
	bool first = s->first_layer == 0, last = s->first_layer + s->layers == p->config.layers;
	int status = 0;
	if (first && !p->config.tied_head)
		status = add_file(b, PACK_LAYER_EMBED, 0, p->weights_count);
	uint32_t at = 0; // a layer's weights lie together
	for (uint32_t layer = s->first_layer; layer < s->first_layer + s->layers && !status; layer++) {
		while (at < p->weights_count && p->weights[at].layer != layer)
			at++;
		uint32_t end = at;
		while (end < p->weights_count && p->weights[end].layer == layer)
			end++;
		status = add_file(b, layer, at, end);
		at = end;
	}
	if ((last || (first && p->config.tied_head)) && !status)
		status = add_file(b, PACK_LAYER_HEAD, 0, p->weights_count);
	return status;
}

int pack_layout_build(
	const struct program *p, const struct pack_slice *slice, struct pack_layout **ret_layout, struct base_error *e)
{
	if (slice->layers == 0 || slice->first_layer >= p->config.layers ||
		slice->layers > p->config.layers - slice->first_layer || slice->tp_size == 0 ||
		slice->tp_rank >= slice->tp_size)
		return base_error_set(e, -EINVAL, "layers %u to %u, part %u of %u, are not of a model of %u layers",
			slice->first_layer, slice->first_layer + slice->layers, slice->tp_rank, slice->tp_size,
			p->config.layers);
	int status = program_check_parts(p, slice->tp_size, e);
	if (status)
		return status;
	struct pack_layout *l = calloc(1, sizeof *l);
	if (!l)
		return base_error_set(e, -ENOMEM, "no memory for the layout");
	l->extent_bytes = pack_extent_bytes(p);
	l->files = calloc(slice->layers + 2, sizeof *l->files);
	l->cuts = calloc(p->weights_count, sizeof *l->cuts);
	status = l->files && l->cuts ? 0 : base_error_set(e, -ENOMEM, "no memory for the layout");
	for (uint32_t i = 0; i < p->weights_count && !status; i++)
		program_cut_weight(p, slice->tp_rank, slice->tp_size, i, &l->cuts[i]);
	struct layout_builder b = {.p = p, .l = l};
	if (!status) {
		status = add_files(&b, slice);
		if (status)
			base_error_set(e, status,
				status == -ENOMEM ? "no memory for the layout"
						  : "the model has more extents than a store file may have");
	}
	if (status) {
		pack_layout_destroy(l);
		return status;
	}
	*ret_layout = l;
	return 0;
}

void pack_layout_destroy(struct pack_layout *l)
{
	if (!l)
		return;
	free(l->files);
	free(l->extents);
	free(l->pieces);
	free(l->cuts);
	free(l);
}
