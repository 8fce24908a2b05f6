// SPDX-License-Identifier: Apache-2.0
#include "daemon/plan_model.h"

#include <errno.h>
#include <stdlib.h>

#include "base/size.h"
#include "shard/pack/layout.h"
#include "shard/quant/quant.h"

// Bytes of matrices of a layer that go with the heads, and of the others.
struct cut {
	uint64_t heads_bytes, others_bytes;
};

static bool is_matrix(const struct program *p, uint32_t weight)
{
	return p->weights[weight].rows > 1 && p->steps[p->weights[weight].step].op == PROGRAM_MATMUL;
}

static bool with_heads(const struct program *p, uint32_t weight)
{
	const struct program_weight *w = &p->weights[weight];
	if (w->split == PROGRAM_SPLIT_INPUT)
		return program_follows_attention(p, weight);
	return w->split == PROGRAM_SPLIT_HEADS || w->split == PROGRAM_SPLIT_KV_HEADS;
}

static uint64_t weight_bytes(const struct program_weight *w)
{
	uint64_t row = 0;
	return quant_row_bytes(w->type, w->cols, &row) ? 0 : row * w->rows; // fits: the layout was built of it
}

static void sum_weights(const struct program *p, struct plan_model *m, struct cut *cuts)
{
	struct fleet_model *sizes = &m->sizes;
	for (uint32_t i = 0; i < p->weights_count; i++) {
		const struct program_weight *w = &p->weights[i];
		if (!is_matrix(p, i))
			continue;
		uint64_t macs = (uint64_t)w->rows * w->cols;
		if (w->layer == PROGRAM_NONE) {
			sizes->head.macs += macs;
			continue;
		}
		m->layers[w->layer].macs += macs;
		*(with_heads(p, i) ? &cuts[w->layer].heads_bytes : &cuts[w->layer].others_bytes) += weight_bytes(w);
	}
}

static void sum_files(
	const struct program *p, const struct pack_layout *l, struct plan_model *m, const struct cut *cuts)
{
	struct fleet_model *sizes = &m->sizes;
	for (uint32_t f = 0; f < l->files_count; f++) {
		const struct pack_layout_file *file = &l->files[f];
		uint64_t whole = 0, matrices = 0;
		for (uint32_t i = file->first_extent; i < file->first_extent + file->extents; i++)
			*(l->extents[i].pinned ? &whole : &matrices) += l->extents[i].length_bytes;
		if (file->layer == PACK_LAYER_EMBED) {
			sizes->lookup_bytes = whole + matrices;
		} else if (file->layer == PACK_LAYER_HEAD) {
			sizes->head.whole_bytes = whole;
			sizes->head.mlp_bytes = matrices;
		} else if (file->layer < p->config.layers) {
			const struct cut *cut = &cuts[file->layer];
			uint64_t all = cut->heads_bytes + cut->others_bytes;
			struct fleet_layer *x = &m->layers[file->layer];
			x->whole_bytes = whole;
			x->attention_bytes = all ? (uint64_t)((unsigned __int128)matrices * cut->heads_bytes / all) : 0;
			x->mlp_bytes = matrices - x->attention_bytes;
		}
	}
	sizes->tied = p->config.tied_head;
	if (sizes->tied)
		sizes->lookup_bytes = sizes->head.mlp_bytes + sizes->head.whole_bytes;
}

static void fill_shapes(
	const struct program *p, const struct rank_config *c, const struct rank_needs *n, struct fleet_model *m)
{
	m->layers_count = p->config.layers;
	m->rows_bytes = n->rows_bytes;
	m->extent_bytes = n->extent_bytes;
	m->slots_most_bytes = c->slots ? c->slots * n->extent_bytes : RANK_SLOTS_MOST_BYTES;
	m->slots_share = c->slots ? 1 : RANK_SLOTS_SHARE;
	m->workspace_bytes = n->workspace_bytes;
	m->kv_block_tokens = KV_BLOCK_TOKENS;
	m->context_tokens = c->context_tokens;
	m->width = p->config.width;
	m->vocab = p->config.vocab;
	struct program_shape shape;
	program_get_shape(p, &shape);
	m->heads = shape.heads;
	m->kv_heads = shape.kv_heads;
	m->head_dim = shape.head_dim;
	m->block_columns = shape.attention_block;
	m->mlp_blocks = (uint32_t)base_size_div_up(shape.ffn_width, shape.ffn_block);
}

// Ranks that share layers have less of some buffers, and others beside: to exchange sums.
static int fill_workspaces(
	const struct program *p, const struct rank_config *config, struct fleet_model *m, struct base_error *e)
{
	for (uint32_t t = 2; t <= FLEET_TP; t++) {
		if (program_check_parts(p, t, NULL))
			continue;
		for (uint32_t rank = 0; rank < t;
			rank += t - 1) { // the first collects logits, the last has the most columns
			struct rank_config c = *config;
			struct rank_needs needs;
			c.slice.tp_size = t;
			c.slice.tp_rank = rank;
			int status = rank_get_needs(p, &c, &needs, e);
			if (status)
				return status;
			if (needs.workspace_bytes > m->tp_workspace_bytes[t])
				m->tp_workspace_bytes[t] = needs.workspace_bytes;
		}
	}
	return 0;
}

int plan_model_init(const struct program *p, const struct rank_config *config, uint64_t process_bytes,
	struct plan_model *ret_model, struct base_error *e)
{
	struct rank_config whole = *config;
	struct rank_needs needs;
	struct pack_layout *layout = NULL;
	struct plan_model m = {.sizes.process_bytes = process_bytes};
	whole.slice = (struct pack_slice){.layers = p->config.layers, .tp_size = 1};
	int status = rank_get_needs(p, &whole, &needs, e);
	if (!status)
		status = pack_layout_build(p, &whole.slice, &layout, e);
	if (status)
		return status;
	struct cut *cuts = calloc(p->config.layers, sizeof *cuts);
	m.layers = calloc(p->config.layers, sizeof *m.layers);
	if (!cuts || !m.layers) {
		free(cuts);
		free(m.layers);
		pack_layout_destroy(layout);
		return base_error_set(e, -ENOMEM, "no memory for the plan");
	}
	sum_weights(p, &m, cuts);
	sum_files(p, layout, &m, cuts);
	fill_shapes(p, config, &needs, &m.sizes);
	m.sizes.layers = m.layers;
	m.sizes.kv_block_bytes = needs.kv_block_bytes / p->config.layers;
	free(cuts);
	pack_layout_destroy(layout);
	status = fill_workspaces(p, &whole, &m.sizes, e);
	if (status) {
		plan_model_finish(&m);
		return status;
	}
	*ret_model = m;
	return 0;
}

void plan_model_finish(struct plan_model *m)
{
	free(m->layers);
	*m = (struct plan_model){0};
}
