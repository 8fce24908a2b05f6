// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_convert.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "daemon/machine_message.h"
#include "daemon/rpc/rpc_status.h"

static Thaw__V1__ModelPhase phase_of(enum server_phase p)
{
	switch (p) {
	case SERVER_PHASE_QUEUED:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_QUEUED;
	case SERVER_PHASE_DIGEST:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_DIGEST;
	case SERVER_PHASE_PACK:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_PACK;
	case SERVER_PHASE_LOAD:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_LOAD;
	case SERVER_PHASE_READY:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_READY;
	case SERVER_PHASE_FAILED:
		return THAW__V1__MODEL_PHASE__MODEL_PHASE_FAILED;
	case SERVER_PHASE_UNLOADED:
		break;
	}
	return THAW__V1__MODEL_PHASE__MODEL_PHASE_UNLOADED;
}

void rpc_convert_model(const struct server_model_info *i, Thaw__V1__Model *ret_model)
{
	Thaw__V1__Model m = THAW__V1__MODEL__INIT;
	m.name = (char *)i->name;
	m.path = (char *)i->path;
	m.digest = (char *)i->digest;
	m.architecture = (char *)i->architecture;
	m.chat_template = (char *)i->chat_template;
	m.phase = phase_of(i->phase);
	m.done_bytes = i->done_bytes;
	m.total_bytes = i->total_bytes;
	m.eta_ns = i->eta_ns;
	if (i->phase == SERVER_PHASE_FAILED || (i->phase == SERVER_PHASE_READY && i->error.code)) {
		m.error = (char *)base_error_text(&i->error);
		m.error_reason = (char *)rpc_fault_reason(i->error.code);
	}
	m.context_tokens = i->context_tokens;
	m.vocabulary_tokens = i->vocab;
	m.layers = i->layers;
	m.weights_bytes = i->weights_bytes;
	if (i->bos != TEXT_NO_TOKEN) {
		m.bos_opt_case = THAW__V1__MODEL__BOS_OPT_BOS_TOKEN_ID;
		m.bos_token_id = i->bos;
	}
	if (i->eos != TEXT_NO_TOKEN) {
		m.eos_opt_case = THAW__V1__MODEL__EOS_OPT_EOS_TOKEN_ID;
		m.eos_token_id = i->eos;
	}
	*ret_model = m;
}

int rpc_convert_find_model(struct rpc_call *c, const char *name, struct server_model_info *ret_info)
{
	int r = server_get_model(c->queue->server->daemon, name, ret_info);
	if (r == 0)
		return 0;
	struct rpc_fault f;
	rpc_fault_set(&f, GRPC_STATUS_NOT_FOUND, "MODEL_NOT_FOUND", NULL,
		name[0] ? "there is no model \"%s\"" : "there is not just one model%s: name one", name);
	rpc_call_fail(c, &f);
	return -1;
}

static Thaw__Admin__V1__EngineState state_of(enum engine_state s)
{
	switch (s) {
	case ENGINE_LOADING:
		return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_LOADING;
	case ENGINE_READY:
		return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_READY;
	case ENGINE_RECOVERING:
		return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_RECOVERING;
	case ENGINE_DRAINING:
		return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_DRAINING;
	case ENGINE_FAILED:
		return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_FAILED;
	case ENGINE_STOPPED:
		break;
	}
	return THAW__ADMIN__V1__ENGINE_STATE__ENGINE_STATE_STOPPED;
}

/* The upper bound of the bucket that holds the quantile; what is beyond the last one is given as the last one. */
static double quantile(const struct engine_histogram *h, double q)
{
	uint64_t want = (uint64_t)(q * (double)h->count), sum = 0;
	for (uint32_t i = 0; i < ENGINE_BUCKETS; i++) {
		sum += h->buckets[i];
		if (h->count && sum > want)
			return engine_bucket_seconds[i];
	}
	return h->count ? engine_bucket_seconds[ENGINE_BUCKETS - 1] : 0;
}

static void convert_latency(const struct engine_histogram *h, Thaw__Admin__V1__Latency *out)
{
	thaw__admin__v1__latency__init(out);
	out->count = h->count;
	out->mean_seconds = h->count ? h->sum / (double)h->count : 0;
	out->p50_seconds = quantile(h, 0.50);
	out->p95_seconds = quantile(h, 0.95);
	out->p99_seconds = quantile(h, 0.99);
}

static void convert_rank(const struct rank_stats *s, Thaw__Admin__V1__RankLoad *out)
{
	thaw__admin__v1__rank_load__init(out);
	out->passes = s->passes;
	out->pass_ns = s->pass_ns;
	out->compute_ns = s->compute_ns;
	out->embed_read_bytes = s->embed_read_bytes;
	out->read_bytes = s->stream.read_bytes;
	out->reads = s->stream.reads;
	out->stall_ns = s->stream.stall_ns;
	out->verify_ns = s->stream.verify_ns;
}

static const char *node_of(const struct server_model_info *i, uint32_t rank, const struct topology_machine *machine)
{
	return i->node[rank][0] ? i->node[rank] : machine->host;
}

void rpc_convert_load(const struct server_model_info *i, const struct engine_histograms *h,
	const struct topology_machine *machine, struct rpc_convert_load *out)
{
	const struct engine_load *l = &i->load;
	Thaw__Admin__V1__ModelLoad *m = &out->load;
	thaw__admin__v1__model_load__init(m);
	m->model = (char *)i->name;
	m->state = state_of(l->state);
	m->failure = (char *)l->failure;
	m->load_done_bytes = l->load_done_bytes;
	m->load_total_bytes = l->load_total_bytes;
	m->epoch = l->epoch;
	m->restarts = l->restarts;
	m->running = l->running;
	m->waiting = l->waiting;
	m->waiting_tokens = l->waiting_tokens;
	m->kv_usage_ratio = l->kv_blocks ? (double)l->kv_blocks_used / (double)l->kv_blocks : 0;
	m->kv_blocks = l->kv_blocks;
	m->kv_blocks_used = l->kv_blocks_used;
	m->last_pass_wall_ns = l->last_pass_wall_ns;
	m->prompt_tokens_total = l->prompt_tokens_total;
	m->generated_tokens_total = l->generated_tokens_total;
	m->requests_length_total = l->requests_total[REQUEST_FINISH_LENGTH];
	m->requests_stop_total = l->requests_total[REQUEST_FINISH_STOP];
	m->requests_aborted_total = l->requests_total[REQUEST_FINISH_ABORTED];
	m->preemptions_total = l->preemptions_total;
	m->rejected_total = l->rejected_total;
	m->failed_total = l->failed_total;
	m->tokens_per_second = l->tokens_per_second;
	m->achieved_ratio = l->achieved_ratio;
	m->binding = (char *)l->binding;
	m->n_ranks = l->ranks < 16 ? l->ranks : 16;
	m->ranks = out->rank_list;
	for (size_t s = 0; s < m->n_ranks; s++) {
		convert_rank(&l->stats[s], &out->ranks[s]);
		struct rank_place place = rank_shape_place(&l->shape, (uint32_t)s);
		out->ranks[s].stage = place.stage;
		out->ranks[s].tp_rank = place.part;
		out->ranks[s].node = (char *)node_of(i, (uint32_t)s, machine);
		out->rank_list[s] = &out->ranks[s];
	}
	if (h) {
		convert_latency(&h->time_to_first_token, &out->first_token);
		convert_latency(&h->inter_token, &out->inter_token);
		m->time_to_first_token = &out->first_token;
		m->inter_token = &out->inter_token;
	}
}

static void convert_input(const struct topology_plan_input *i, struct rpc_convert_placement *out)
{
	Thaw__Admin__V1__PlanInput *m = &out->input;
	thaw__admin__v1__plan_input__init(m);
	m->pass_bytes = i->pass_bytes;
	m->weights_all_bytes = i->weights_all_bytes;
	m->weights_min_bytes = i->weights_min_bytes;
	m->slots_bytes = i->slots_bytes;
	m->workspace_bytes = i->workspace_bytes;
	m->kv_block_bytes = i->kv_block_bytes;
	m->kv_block_tokens = i->kv_block_tokens;
	m->context_tokens = i->context_tokens;
	m->sequences = i->sequences;
	m->token_macs = i->token_macs;
	m->weights_budget_bytes = i->weights_budget_bytes;
	m->kv_budget_bytes = i->kv_budget_bytes;
	m->workspace_budget_bytes = i->workspace_budget_bytes;
	m->memory_bytes = i->memory_bytes;
	machine_message_fill_bandwidths(&i->bandwidths, &out->bandwidths);
	m->bandwidths = &out->bandwidths;
}

static void convert_plan(const struct topology_plan *p, Thaw__Admin__V1__Plan *m)
{
	thaw__admin__v1__plan__init(m);
	m->epoch = p->epoch;
	m->hot_bytes = p->hot_bytes;
	m->cold_bytes = p->cold_bytes;
	m->weights_bytes = p->weights_bytes;
	m->kv_bytes = p->kv_bytes;
	m->workspace_bytes = p->workspace_bytes;
	m->kv_blocks = p->kv_blocks;
	m->pass_ns_disk = p->pass_ns_disk;
	m->pass_ns_memory = p->pass_ns_memory;
	m->token_ns_compute = p->token_ns_compute;
	m->tokens_per_second_one = p->tokens_per_s_one;
	m->tokens_per_second_full = p->tokens_per_s_full;
	m->binding_one = (char *)topology_resource_name(p->binding_one);
	m->binding_full = (char *)topology_resource_name(p->binding_full);
	m->lift = (char *)p->lift;
}

static void convert_shard(const struct server_model_info *i, uint32_t rank, const struct topology_machine *machine,
	struct rpc_convert_placement *out)
{
	const struct rank_placement *p = &i->load.placement[rank];
	const struct pack_slice *slice = &i->load.slice[rank];
	Thaw__Admin__V1__Shard *m = &out->shards[rank];
	thaw__admin__v1__shard__init(m);
	snprintf(out->devices[rank], sizeof(out->devices[rank]), "CPU%u", rank);
	m->stage = rank_shape_place(&i->load.shape, rank).stage;
	m->tp_rank = slice->tp_rank;
	m->node = (char *)node_of(i, rank, machine);
	m->device = out->devices[rank];
	m->first_layer = slice->first_layer;
	m->last_layer = slice->first_layer + slice->layers - (slice->layers > 0);
	m->hot_bytes = p->hot_bytes;
	m->cold_bytes = p->cold_bytes;
	m->slot_bytes = p->slot_bytes;
	m->kv_bytes = p->kv_bytes;
	m->workspace_bytes = p->workspace_bytes;
	m->kv_blocks = p->kv_blocks;
	m->extents = p->extents;
	m->hot_extents = p->hot_extents;
	m->engine = (char *)p->engine;
	m->pages = (char *)p->pages;
	m->isa = (char *)p->isa;
	m->direct_io = p->direct_io;
	m->fallback = (char *)p->fallback;
	out->shard_list[rank] = m;
}

void rpc_convert_placement(
	const struct server_model_info *i, const struct topology_machine *machine, struct rpc_convert_placement *out)
{
	Thaw__Admin__V1__Placement *m = &out->placement;
	thaw__admin__v1__placement__init(m);
	m->model = (char *)i->name;
	m->path = (char *)i->path;
	m->layers = i->layers;
	convert_input(&i->plan_input, out);
	convert_plan(&i->plan, &out->plan);
	m->input = &out->input;
	m->plan = &out->plan;
	m->n_shards = i->load.ranks < 16 ? i->load.ranks : 16;
	m->shards = out->shard_list;
	for (uint32_t s = 0; s < m->n_shards; s++)
		convert_shard(i, s, machine, out);
	out->explanation = NULL;
	size_t bytes = 0;
	FILE *text = open_memstream(&out->explanation, &bytes);
	if (text) {
		if (i->explanation[0])
			fputs(i->explanation, text);
		else
			topology_plan_explain(&i->plan_input, &i->plan, text);
		fclose(text);
	}
	if (out->explanation)
		m->explanation = out->explanation;
}

void rpc_convert_placement_finish(struct rpc_convert_placement *p)
{
	free(p->explanation);
	p->explanation = NULL;
}
