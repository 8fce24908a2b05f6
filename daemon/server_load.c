// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "base/trace.h"
#include "base/units.h"
#include "daemon/cluster/worker.h"
#include "daemon/server_internal.h"
#include "topology/probe.h"
#include "topology/scan.h"

#define LOOK_NS 10000000 // between looks at an engine that loads
#define LOGITS_ROWS 64u // of a pass at most, when memory.workspace has room: what scores can fill
#define MAX_RESTARTS 5u
/* What the processes hold beside weights, KV and a rank's workspace: heaps, stacks, code, gRPC, page tables, the file's
 * metadata; the vocabulary's tables grow with it. Measured: 25 MiB for one stage and 49,000 tokens, 12 of them page
 * cache. */
#define DAEMON_BYTES (16ull << 20)
#define RANK_BYTES (8ull << 20)
#define TOKEN_BYTES 128ull
/* Spans, once somebody traces: the engine's own ring and the copy that is handed out, and the same for each rank. */
#define TRACE_BYTES (2 * BASE_TRACE_RING_BYTES)

/* ---- entries ---- */

struct server_entry *server_entry_create(struct server *s, const struct config_model *model)
{
	struct server_entry *x = calloc(1, sizeof *x);
	struct server_model_info *info = calloc(1, sizeof *info);
	if (!x || !info) {
		free(x);
		free(info);
		return NULL;
	}
	x->server = s;
	x->info = info;
	x->config = *model;
	x->phase_ns = base_clock_now_ns();
	snprintf(info->name, sizeof info->name, "%s", model->name);
	snprintf(info->path, sizeof info->path, "%s", model->path);
	snprintf(x->model.name, sizeof x->model.name, "%s", info->name);
	return x;
}

void server_entry_destroy(struct server_entry *x)
{
	if (!x)
		return;
	engine_destroy(x->model.engine);
	supervisor_destroy(x->supervisor);
	server_fleet_destroy(x->fleet);
	for (uint32_t i = 0; x->specials && x->specials[i]; i++)
		free(x->specials[i]);
	free(x->specials);
	text_tokenizer_destroy(x->tokenizer);
	program_destroy(x->program);
	format_gguf_close(x->gguf);
	free(x->info);
	free(x);
}

void server_set_phase(struct server_entry *x, enum server_phase phase, const struct base_error *error)
{
	pthread_mutex_lock(&x->server->lock);
	x->info->phase = phase;
	x->info->done_bytes = x->info->total_bytes = x->info->eta_ns = 0;
	x->phase_ns = base_clock_now_ns();
	if (error)
		x->info->error = *error;
	if (phase == SERVER_PHASE_FAILED)
		server_count_daemon(x->server);
	pthread_mutex_unlock(&x->server->lock);
}

/* ---- what the file says ---- */

static int check_path(const char *path, struct base_error *e)
{
	struct stat st;
	if (!path[0])
		return base_error_set(e, -EINVAL, "no path given");
	if (stat(path, &st) < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode))
		return base_error_set(e, -EINVAL, "%s: not a regular file", path);
	return 0;
}

/* The text of a token that is found in text as a whole, NULL for others. */
static const char *special_text(const struct server_entry *x, uint32_t token, size_t *ret_bytes)
{
	size_t plain = 0;
	*ret_bytes = 0;
	text_tokenizer_piece(x->tokenizer, token, false, &plain);
	const char *text = text_tokenizer_piece(x->tokenizer, token, true, ret_bytes);
	return plain || !*ret_bytes ? NULL : text;
}

/* Texts that a message of a chat must not contain: all of them, since one that is left out can be forged. */
static int collect_specials(struct server_entry *x)
{
	uint32_t vocab = text_tokenizer_vocab(x->tokenizer), count = 0, n = 0;
	size_t bytes;
	for (uint32_t i = 0; i < vocab; i++)
		count += special_text(x, i, &bytes) != NULL;
	x->specials = calloc((size_t)count + 1, sizeof *x->specials);
	if (!x->specials)
		return -ENOMEM;
	for (uint32_t i = 0; i < vocab; i++) {
		const char *text = special_text(x, i, &bytes);
		if (!text)
			continue;
		x->specials[n] = strndup(text, bytes);
		if (!x->specials[n++])
			return -ENOMEM;
	}
	return 0;
}

static int choose_template(struct server_entry *x, struct base_error *e)
{
	struct format_gguf_string s;
	_cleanup_free_ char *jinja = NULL;
	if (format_gguf_get_string(x->gguf, "tokenizer.chat_template", &s, NULL) == 0)
		jinja = strndup(s.data, s.bytes);
	text_chat_recognise(jinja, &x->model.chat);
	if (x->config.chat_template[0]) {
		enum text_chat kind;
		int status = text_chat_find(x->config.chat_template, &kind);
		if (status)
			return base_error_set(e, status,
				"models[].chat_template: %s is none of chatml, llama2, llama3, mistral",
				x->config.chat_template);
		if (kind != x->model.chat.kind)
			x->model.chat = (struct text_chat_template){.kind = kind};
	}
	const char *name = x->model.chat.kind == TEXT_CHAT_UNKNOWN ? "unknown" : text_chat_name(x->model.chat.kind);
	snprintf(x->info->chat_template, sizeof x->info->chat_template, "%s", name);
	return 0;
}

static int open_model(struct server_entry *x, struct base_error *e)
{
	int status = check_path(x->config.path, e);
	if (!status)
		status = format_gguf_open(x->config.path, &x->gguf, e);
	if (!status)
		status = program_build(x->gguf, &x->program, e);
	if (!status)
		status = text_tokenizer_create(x->gguf, &x->tokenizer, e);
	if (!status)
		status = choose_template(x, e);
	if (!status && (status = collect_specials(x)) < 0)
		base_error_set(e, status, "no memory");
	if (status)
		return status;
	const struct program_config *c = &x->program->config;
	struct server_model_info *info = x->info;
	snprintf(info->architecture, sizeof info->architecture, "%s", c->architecture);
	info->vocab = c->vocab;
	info->layers = c->layers;
	info->weights_bytes = program_weight_bytes(x->program);
	info->bos = text_tokenizer_bos(x->tokenizer);
	info->eos = text_tokenizer_eos(x->tokenizer);
	if (text_tokenizer_vocab(x->tokenizer) > c->vocab)
		return base_error_set(e, -EINVAL, "%s: its tokenizer has %u tokens, its matrices %u", x->config.path,
			text_tokenizer_vocab(x->tokenizer), c->vocab);
	x->model.tokenizer = x->tokenizer;
	x->model.specials = (const char *const *)x->specials;
	return 0;
}

/* ---- the plan ---- */

void server_fill_rank_config(struct server_entry *x, uint32_t context_tokens)
{
	const struct config *c = &x->server->config;
	struct rank_config *r = &x->rank;
	*r = (struct rank_config){
		.header_hash = format_gguf_header_hash(x->gguf),
		.slice = {.layers = x->program->config.layers, .tp_size = 1},
		.weights_budget_bytes = c->memory.weights_bytes,
		.kv_type = strcmp(c->compute.kv_type, "q8") == 0 ? KV_Q8 : KV_F16,
		.batch_tokens = c->scheduler.batch_tokens,
		.sequences = c->scheduler.max_sequences,
		.context_tokens = context_tokens,
		.slots = c->offload.slots,
		.depth = c->offload.depth,
		.verify_every = c->offload.verify_every,
	};
	if (r->batch_tokens < r->sequences)
		r->batch_tokens = r->sequences;
	r->logits_rows = r->sequences > LOGITS_ROWS ? r->sequences : LOGITS_ROWS;
	if (r->logits_rows > r->batch_tokens)
		r->logits_rows = r->batch_tokens;
	snprintf(r->model_path, sizeof r->model_path, "%s", x->config.path);
	snprintf(r->backend, sizeof r->backend, "%s", c->compute.backend);
	snprintf(r->engine, sizeof r->engine, "%s", c->offload.engine);
}

uint64_t server_process_bytes(const struct server_entry *x)
{
	return DAEMON_BYTES + RANK_BYTES + 2 * TRACE_BYTES + x->program->config.vocab * TOKEN_BYTES;
}

/* On this host. */
static uint32_t parts_of(const struct server_entry *x)
{
	uint32_t tensor = x->server->config.compute.tensor;
	return tensor && !x->server->coordinator ? tensor : 1;
}

static uint32_t ranks_of(const struct server_entry *x)
{
	return x->server->config.compute.stages * parts_of(x);
}

static struct pack_slice rank_slice(const struct server_entry *x, uint32_t rank)
{
	uint32_t stages = x->server->config.compute.stages, layers = x->program->config.layers;
	struct rank_shape shape = {0};
	(void)rank_shape_even(stages, parts_of(x), &shape); // check_ranks() has looked
	struct rank_place p = rank_shape_place(&shape, rank);
	uint32_t first = (uint32_t)((uint64_t)layers * p.stage / stages),
		 end = (uint32_t)((uint64_t)layers * (p.stage + 1) / stages);
	return (struct pack_slice){
		.first_layer = first, .layers = end - first, .tp_rank = p.part, .tp_size = parts_of(x)};
}

static int check_ranks(const struct server_entry *x, struct base_error *e)
{
	uint32_t stages = x->server->config.compute.stages, parts = x->server->config.compute.tensor;
	parts = parts ? parts : 1; // in a cluster, too
	if (stages > x->program->config.layers)
		return base_error_set(
			e, -EINVAL, "compute.stages is %u, the model has %u layers", stages, x->program->config.layers);
	if (ranks_of(x) > ENGINE_MAX_RANKS)
		return base_error_set(e, -EINVAL, "compute.stages is %u and compute.tensor %u: %u ranks, at most %u",
			stages, parts, ranks_of(x), ENGINE_MAX_RANKS);
	return program_check_parts(x->program, parts, e) ? base_error_prefix(e, "compute.tensor") : 0;
}

/* What the stages need together, and the processes: a budget is for all of thaw's memory. */
static int sum_needs(struct server_entry *x, struct rank_needs *ret_sum, struct base_error *e)
{
	uint32_t ranks = ranks_of(x);
	struct rank_needs sum = {
		.workspace_bytes = (x->counts_daemon ? DAEMON_BYTES : 0) + TRACE_BYTES +
				   ranks * (RANK_BYTES + TRACE_BYTES) + x->program->config.vocab * TOKEN_BYTES,
	};
	int status = check_ranks(x, e);
	if (status)
		return status;
	for (uint32_t i = 0; i < ranks; i++) {
		struct rank_config c = x->rank;
		struct rank_needs *n = &x->needs[i];
		c.slice = rank_slice(x, i);
		c.weights_budget_bytes /= ranks;
		status = rank_get_needs(x->program, &c, n, e);
		if (status)
			return status;
		sum.weights_all_bytes += n->weights_all_bytes;
		sum.weights_min_bytes += n->weights_min_bytes;
		sum.slots_bytes += n->slots_bytes;
		sum.rows_bytes += n->rows_bytes;
		sum.workspace_bytes += n->workspace_bytes;
		sum.kv_block_bytes += n->kv_block_bytes;
		sum.pass_bytes += n->pass_bytes;
		sum.token_macs = n->token_macs;
	}
	*ret_sum = sum;
	return 0;
}

static bool holds_memory(const struct server_entry *x)
{
	return x && x->info->plan.workspace_bytes && x->info->phase != SERVER_PHASE_FAILED;
}

void server_count_daemon(struct server *s)
{
	struct server_entry *first = NULL;
	for (uint32_t i = 0; !s->coordinator && i < SERVER_MAX_ENTRIES; i++) { // else every node has a thawd to count
		struct server_entry *x = s->entry[i];
		if (!holds_memory(x))
			continue;
		if (x->counts_daemon)
			return;
		first = first ? first : x;
	}
	if (!first)
		return;
	first->counts_daemon = true;
	first->info->plan.workspace_bytes += DAEMON_BYTES;
	first->info->plan_input.workspace_bytes += DAEMON_BYTES;
}

/* Budgets that other models hold. What thawd itself holds is counted with one of them. */
static void sum_others(struct server_entry *x, struct topology_plan *ret_others)
{
	struct server *s = x->server;
	*ret_others = (struct topology_plan){0};
	pthread_mutex_lock(&s->lock);
	x->counts_daemon = true;
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		const struct server_entry *y = s->entry[i];
		if (y == x || !holds_memory(y))
			continue;
		if (y->counts_daemon)
			x->counts_daemon = false;
		ret_others->weights_bytes += y->info->plan.weights_bytes;
		ret_others->kv_bytes += y->info->plan.kv_bytes;
		ret_others->workspace_bytes += y->info->plan.workspace_bytes;
	}
	pthread_mutex_unlock(&s->lock);
}

/* What is left of a budget for this model; one that is used up must not look like "choose one" (0). */
uint64_t server_left_of(uint64_t asked, uint64_t budget, uint64_t used)
{
	return asked ? asked : !budget ? 0 : budget > used ? budget - used : 1;
}

/* A budget of the config that the loaded models left too little of. */
static int check_left(const char *name, uint64_t budget, uint64_t used, uint64_t least, struct base_error *e)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], c[BASE_UNITS_TEXT_BYTES], d[BASE_UNITS_TEXT_BYTES];
	uint64_t left = budget > used ? budget - used : 0;
	if (!budget || !used || least <= left)
		return 0;
	return base_error_set(e, -ENOMEM,
		"does not fit: of memory.%s (%s) the loaded models hold %s, and at least %s are needed: %llu bytes "
		"short; "
		"unload one, or raise memory.%s by %s",
		name, base_units_format_bytes(budget, a), base_units_format_bytes(used, b),
		base_units_format_bytes(least, c), (unsigned long long)(least - left), name,
		base_units_format_bytes(least - left, d));
}

static int check_budgets_left(const struct server *s, const struct topology_plan_input *in,
	const struct topology_plan *others, bool own_weights, bool own_kv, struct base_error *e)
{
	uint64_t weights =
		in->weights_min_bytes < in->weights_all_bytes ? in->weights_min_bytes : in->weights_all_bytes;
	uint64_t kv = base_size_div_up(in->context_tokens, in->kv_block_tokens) * in->kv_block_bytes;
	int status = 0;
	if (!own_weights)
		status = check_left("weights", s->config.memory.weights_bytes, others->weights_bytes, weights, e);
	if (!status && !own_kv)
		status = check_left("kv", s->config.memory.kv_bytes, others->kv_bytes, kv, e);
	if (!status)
		status = check_left(
			"workspace", s->config.memory.workspace_bytes, others->workspace_bytes, in->workspace_bytes, e);
	return status;
}

/* Huge pages that are set aside are not part of what the system calls available. */
static uint64_t free_huge_bytes(void)
{
	char line[128];
	unsigned long long pages = 0, kib = 0;
	_cleanup_fclose_ FILE *f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "HugePages_Free: %llu", &pages) == 1)
			continue;
		(void)!sscanf(line, "Hugepagesize: %llu kB", &kib);
	}
	return pages * kib * 1024;
}

/* Explicit budgets are taken at their word, against the limit; without them we take of what is free now, and leave
 * some. */
static uint64_t usable_memory(const struct topology_plan_input *in, const struct topology_plan *others)
{
	struct topology_machine now;
	if (topology_scan(NULL, &now, NULL) < 0)
		return 0;
	uint64_t taken = others->weights_bytes + others->kv_bytes + others->workspace_bytes;
	uint64_t huge = free_huge_bytes();
	if (in->weights_budget_bytes && in->kv_budget_bytes)
		return (now.memory_limit_bytes > taken ? now.memory_limit_bytes - taken : 0) + huge;
	return now.memory_available_bytes - now.memory_available_bytes / 16 + huge;
}

static int plan_with_context(
	struct server_entry *x, uint32_t context, uint64_t weights_bytes, uint64_t kv_bytes, struct base_error *e)
{
	struct server *s = x->server;
	struct topology_plan others;
	struct rank_needs sum = {0};
	server_fill_rank_config(x, context);
	sum_others(x, &others);
	struct topology_plan_input in = {
		.kv_block_tokens = KV_BLOCK_TOKENS,
		.context_tokens = context,
		.sequences = x->rank.sequences,
		.weights_budget_bytes =
			server_left_of(weights_bytes, s->config.memory.weights_bytes, others.weights_bytes),
		.kv_budget_bytes = server_left_of(kv_bytes, s->config.memory.kv_bytes, others.kv_bytes),
		.workspace_budget_bytes = server_left_of(0, s->config.memory.workspace_bytes, others.workspace_bytes),
		.bandwidths = server_bandwidths(s),
	};
	in.memory_bytes = usable_memory(&in, &others);
	x->rank.weights_budget_bytes = in.weights_budget_bytes ? in.weights_budget_bytes : in.memory_bytes;
	for (;;) {
		int status = sum_needs(x, &sum, e);
		if (status)
			return status;
		/* Rows of logits are the one part of the workspace that nobody asked for: fewer make scores slower. */
		if (!in.workspace_budget_bytes || sum.workspace_bytes <= in.workspace_budget_bytes ||
			x->rank.logits_rows / 2 < x->rank.sequences)
			break;
		x->rank.logits_rows /= 2;
	}
	in.pass_bytes = sum.pass_bytes;
	in.weights_all_bytes = sum.weights_all_bytes;
	in.weights_min_bytes = sum.weights_min_bytes;
	in.slots_bytes = sum.slots_bytes;
	in.rows_bytes = sum.rows_bytes;
	if (!s->config.offload.slots) {
		in.slots_share = RANK_SLOTS_SHARE;
		in.slots_most_bytes = (uint64_t)ranks_of(x) * RANK_SLOTS_MOST_BYTES;
	}
	in.workspace_bytes = sum.workspace_bytes;
	in.kv_block_bytes = sum.kv_block_bytes;
	in.token_macs = sum.token_macs;
	struct topology_plan plan;
	int status = check_budgets_left(s, &in, &others, weights_bytes != 0, kv_bytes != 0, e);
	if (status)
		return status;
	status = topology_plan_build(&in, &plan, e);
	if (status)
		return others.weights_bytes ? base_error_prefix(e, "beside the models that are loaded") : status;
	pthread_mutex_lock(&s->lock);
	x->info->plan_input = in;
	x->info->plan = plan;
	x->info->context_tokens = x->model.context_tokens = context;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* The context of the config, or else the model's own, or else what its KV cache leaves room for. */
static int plan_entry(struct server_entry *x, uint64_t weights_bytes, uint64_t kv_bytes, struct base_error *e)
{
	uint32_t own = x->program->config.context_tokens, wanted = x->server->config.scheduler.context_tokens;
	uint32_t context = wanted && wanted < own ? wanted : own;
	int status = plan_with_context(x, context, weights_bytes, kv_bytes, e);
	struct base_error later;
	for (; status == -ENOMEM && !wanted && context / 2 >= SERVER_MIN_AUTO_CONTEXT; context /= 2) {
		if (plan_with_context(x, context / 2, weights_bytes, kv_bytes, &later) == 0)
			return 0;
	}
	return status;
}

int server_entry_prepare(struct server_entry *x, uint64_t weights_bytes, uint64_t kv_bytes, struct base_error *e)
{
	int status = open_model(x, e);
	if (status || !x->server->coordinator)
		return status ? status : plan_entry(x, weights_bytes, kv_bytes, e);
	uint32_t own = x->program->config.context_tokens, wanted = x->server->config.scheduler.context_tokens;
	server_fill_rank_config(x, wanted && wanted < own ? wanted : own); // the plan is made when the nodes are there
	return 0;
}

/* ---- loading: the loader thread ---- */

static bool cancelled(struct server_entry *x)
{
	pthread_mutex_lock(&x->server->lock);
	bool yes = x->unload || x->server->stop;
	pthread_mutex_unlock(&x->server->lock);
	return yes;
}

static int on_pack_progress(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes)
{
	struct server_entry *x = context;
	enum server_phase p = phase == PACK_PHASE_DIGEST ? SERVER_PHASE_DIGEST : SERVER_PHASE_PACK;
	uint64_t parts = p == SERVER_PHASE_PACK ? parts_of(x) : 1; // about the same for each
	pthread_mutex_lock(&x->server->lock);
	bool stop = x->unload || x->server->stop, changed = x->info->phase != p;
	x->info->done_bytes = done_bytes + (parts > 1 ? x->packing_part * total_bytes : 0);
	x->info->total_bytes = total_bytes * parts;
	x->info->phase = p;
	if (changed)
		x->phase_ns = base_clock_now_ns();
	pthread_mutex_unlock(&x->server->lock);
	return stop ? 1 : 0;
}

static void on_pack_dropped(void *context, uint32_t files, uint64_t bytes)
{
	struct server_entry *x = context;
	char size[BASE_UNITS_TEXT_BYTES], text[160];
	snprintf(text, sizeof text, "%s, %u files: spare layers whose room its own needed",
		base_units_format_bytes(bytes, size), files);
	server_emit_event(x->server, "notice", "spares_dropped", x->info->name, text);
}

/* A node that computes for a coordinator may have had it for a plan that never ran. */
static void on_pack_relied(void *context, const uint8_t digest[16], const char *name, bool loose)
{
	struct server *s = ((struct server_entry *)context)->server;
	pthread_mutex_lock(&s->lock);
	if (s->worker)
		cluster_worker_relied(s->worker, digest, name);
	pthread_mutex_unlock(&s->lock);
}

/* repair: the digest of the store whose files are to be read and mended, or NULL. */
static int pack(struct server_entry *x, const uint8_t *repair, struct pack_result *ret_result, struct base_error *e)
{
	struct pack_config c = {
		.store_path = x->server->config.store.path,
		.slice = x->rank.slice,
		.repair = repair,
		.digest_only = x->server->coordinator != NULL,
		.progress = on_pack_progress,
		.relied = on_pack_relied,
		.dropped = on_pack_dropped,
		.context = x,
	};
	uint64_t written = 0, reused = 0;
	struct pack_result repaired = {0}; // of the parts before
	c.slice.tp_size = parts_of(x);
	for (uint32_t part = 0; part < c.slice.tp_size; part++) {
		c.slice.tp_rank = x->packing_part = part;
		int status = pack_model(x->gguf, x->program, &c, ret_result, e);
		if (status)
			return status;
		written += ret_result->written_bytes;
		reused += ret_result->reused_bytes;
		if (!ret_result->repaired_files)
			continue;
		size_t used = strlen(repaired.repaired);
		snprintf(repaired.repaired + used, sizeof repaired.repaired - used, "%s%s", used ? ", " : "",
			ret_result->repaired);
		repaired.repaired_files += ret_result->repaired_files;
	}
	ret_result->repaired_files = repaired.repaired_files;
	memcpy(ret_result->repaired, repaired.repaired, sizeof repaired.repaired);
	memcpy(x->rank.digest, ret_result->digest, sizeof x->rank.digest);
	pthread_mutex_lock(&x->server->lock);
	for (int i = 0; i < 16; i++)
		snprintf(x->info->digest + 2 * i, 3, "%02x", ret_result->digest[i]);
	pthread_mutex_unlock(&x->server->lock);
	if (written && !repair) {
		char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], text[128];
		snprintf(text, sizeof text, "%s written, %s there already", base_units_format_bytes(written, a),
			base_units_format_bytes(reused, b));
		server_emit_event(x->server, "notice", "model_packed", x->info->name, text);
	}
	return 0;
}

struct probe {
	struct server *server;
	const char *directory;
};

static int probe_drive(void *context, double *ret_bytes_per_s)
{
	const struct probe *p = context;
	const struct server_drive_config c = {.directory = p->directory, .engine = p->server->config.offload.engine};
	return server_probe_drive(&c, &p->server->drive_left, ret_bytes_per_s);
}

static int probe_compute(void *context, double *ret_macs_per_s)
{
	const struct probe *p = context;
	return server_probe_compute(&p->server->machine, p->server->config.compute.backend,
		p->server->config.compute.threads, ret_macs_per_s);
}

int server_probe(
	struct server *s, const char *directory, struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	struct probe p = {.server = s, .directory = directory[0] ? directory : s->config.store.path};
	const struct topology_probe_source source = {.drive = probe_drive, .compute = probe_compute, .context = &p};
	char cache[CONFIG_TEXT_BYTES + 32];
	snprintf(cache, sizeof cache, "%s/probe.json", s->config.store.path);
	pthread_mutex_lock(&s->probe_lock);
	int status = topology_probe(&s->machine, cache, &source, ret_bandwidths, e);
	pthread_mutex_unlock(&s->probe_lock);
	if (status)
		return status;
	pthread_mutex_lock(&s->lock);
	s->bandwidths = *ret_bandwidths;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* What could not be measured is zero in the plan, and said. */
static void probe(struct server_entry *x, const char *directory)
{
	struct topology_bandwidths b;
	struct base_error e = {0};
	if (server_probe(x->server, directory, &b, &e) < 0) {
		server_emit_event(x->server, "warning", "probe_failed", x->info->name, base_error_text(&e));
	} else if (b.busy_ratio >= TOPOLOGY_PROBE_BUSY) {
		snprintf(e.message, sizeof e.message,
			"others used %.0f %% of the CPUs when drive, memory and compute were measured: predictions are "
			"low; a start on an idle machine measures again",
			100 * b.busy_ratio);
		server_emit_event(x->server, "warning", "probe_busy", x->info->name, e.message);
	}
}

static void on_engine_event(void *context, const char *severity, const char *kind, const char *text)
{
	struct server_entry *x = context;
	server_emit_event(x->server, severity, kind, x->info->name, text);
	if (x->fleet && strcmp(kind, "store_corrupt") == 0)
		server_fleet_mend(x->fleet);
	bool loss = strcmp(kind, "data_loss") == 0;
	if (!loss &&
		strcmp(kind, "rank_restarted") != 0) // these open the files anew, and tell anew what is bad in them
		return;
	pthread_mutex_lock(&x->server->lock);
	x->damaged = loss;
	pthread_cond_broadcast(&x->server->changed);
	pthread_mutex_unlock(&x->server->lock);
}

/* Each rank's part of the budgets: by what it holds. */
static void fill_assign(
	const struct server_entry *x, const char *directory, uint32_t rank, struct rank_config *ret_config)
{
	const struct topology_plan *p = &x->info->plan;
	const struct rank_needs *n = &x->needs[rank];
	uint32_t ranks = ranks_of(x);
	struct rank_config *r = ret_config;
	*r = x->rank;
	r->slice = rank_slice(x, rank);
	snprintf(r->store_directory, sizeof r->store_directory, "%s", directory);
	double share = (double)n->weights_all_bytes / (double)x->info->plan_input.weights_all_bytes;
	r->weights_budget_bytes = ranks == 1 ? p->weights_bytes : (uint64_t)((double)p->weights_bytes * share);
	if (r->weights_budget_bytes < n->weights_min_bytes)
		r->weights_budget_bytes = n->weights_min_bytes;
	r->kv_budget_bytes = p->kv_blocks * n->kv_block_bytes;
	r->workspace_budget_bytes = ranks == 1 ? p->workspace_bytes : n->workspace_bytes;
	r->threads = topology_machine_share(
		&x->server->machine, rank, ranks, x->server->config.compute.threads, r->cpus, &r->cpus_count);
}

static int start_engine(struct server_entry *x, const char *directory, struct base_error *e)
{
	struct server *s = x->server;
	const struct config *c = &s->config;
	const struct topology_plan *p = &x->info->plan;
	_cleanup_free_ struct engine_config *g = calloc(1, sizeof *g);
	struct supervisor *supervisor = NULL;
	struct engine *engine;
	if (!g)
		return base_error_set(e, -ENOMEM, "no memory");
	*g = (struct engine_config){
		.model_name = x->info->name,
		.stages = c->compute.stages,
		.parts = parts_of(x),
		.tokenizer = x->tokenizer,
		.max_waiting = c->scheduler.max_waiting,
		.max_waiting_bytes = c->scheduler.max_waiting_memory_bytes,
		.max_running = x->rank.sequences,
		.batch_tokens = x->rank.batch_tokens,
		.logits_rows = x->rank.logits_rows,
		.context_tokens = x->info->context_tokens,
		.max_new_tokens = c->scheduler.max_new_tokens,
		.batch_wait_ns = c->scheduler.window_ns,
		.stuck_ns = topology_plan_patience_ns(p, x->rank.batch_tokens, c->scheduler.stuck_ns),
		.max_restarts = MAX_RESTARTS,
		.bound_pass_ns_disk = p->pass_ns_disk,
		.bound_pass_ns_memory = p->pass_ns_memory,
		.bound_token_ns_compute = p->token_ns_compute,
		.events = {.event = on_engine_event, .context = x},
		.log = s->log,
	};
	int status = 0;
	if (x->fleet) {
		g->stages = ENGINE_MAX_RANKS;
		g->starter = server_fleet_starter(x->fleet);
	} else {
		for (uint32_t i = 0; i < ranks_of(x); i++)
			fill_assign(x, directory, i, &g->assign[i].config);
		struct rank_shape shape = {0}; // a bad one is refused
		(void)rank_shape_even(c->compute.stages, parts_of(x), &shape);
		status = supervisor_create(s->rank_path, &shape, s->log, &supervisor);
		if (status)
			return base_error_set(e, status, "no memory");
		g->starter = supervisor_starter(supervisor);
	}
	status = engine_create(g, &engine, e);
	if (status) {
		supervisor_destroy(supervisor);
		return status;
	}
	pthread_mutex_lock(&s->lock);
	x->supervisor = supervisor;
	x->model.engine = engine;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* Ends engine and ranks of an entry. Nobody holds a reference. */
void server_stop_engine(struct server_entry *x)
{
	pthread_mutex_lock(&x->server->lock);
	struct engine *engine = x->model.engine;
	struct supervisor *supervisor = x->supervisor;
	x->model.engine = NULL;
	x->supervisor = NULL;
	pthread_mutex_unlock(&x->server->lock);
	engine_destroy(engine);
	supervisor_destroy(supervisor);
	server_fleet_destroy(x->fleet);
	x->fleet = NULL;
}

static void pause_ns(long ns)
{
	nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

static int wait_for_engine(struct server_entry *x, struct base_error *e)
{
	_cleanup_free_ struct engine_load *load = calloc(1, sizeof *load);
	if (!load)
		return base_error_set(e, -ENOMEM, "no memory");
	for (;; pause_ns(LOOK_NS)) {
		engine_get_load(x->model.engine, load);
		if (load->state == ENGINE_READY || load->state == ENGINE_DRAINING)
			return 0;
		if (load->state == ENGINE_FAILED || load->state == ENGINE_STOPPED)
			return base_error_set(e, load->failure_code ? load->failure_code : -EIO, "%s", load->failure);
		if (cancelled(x))
			return -ECANCELED;
	}
}

/* ---- repair: store files whose data is not what was written ---- */

static int repair(struct server_entry *x, const struct base_error *why, struct base_error *e)
{
	struct pack_result packed;
	char text[BASE_ERROR_BYTES + 320];
	uint8_t digest[16];
	memcpy(digest, x->rank.digest, sizeof digest);
	server_emit_event(x->server, "error", "store_corrupt", x->info->name, base_error_text(why));
	int status = pack(x, digest, &packed, e);
	if (status) {
		struct base_error own = *e;
		return base_error_set(e, status, "%s; %s", base_error_text(why), base_error_text(&own));
	}
	if (packed.repaired_files)
		snprintf(text, sizeof text, "packed anew from %s: %s; look at the drive's health", x->config.path,
			packed.repaired);
	else
		snprintf(text, sizeof text, "all files of the store were read and match their checksums now");
	server_emit_event(x->server, "warning", "store_repaired", x->info->name, text);
	return 0;
}

static int start_and_wait(struct server_entry *x, const char *directory, struct base_error *e)
{
	server_set_phase(x, SERVER_PHASE_LOAD, NULL);
	int status = start_engine(x, directory, e);
	if (!status)
		status = wait_for_engine(x, e);
	if (status)
		server_stop_engine(x);
	return status;
}

/* The nodes of the cluster pack and load. */
static int load_fleet(struct server_entry *x, struct base_error *e)
{
	server_set_phase(x, SERVER_PHASE_LOAD, NULL);
	int status = server_fleet_create(x, "", &x->fleet, e);
	if (!status)
		status = server_fleet_wait(x->fleet, cancelled, e);
	if (!status)
		return start_and_wait(x, "", e);
	server_fleet_destroy(x->fleet);
	x->fleet = NULL;
	return status;
}

static int load(struct server_entry *x, struct base_error *e)
{
	struct pack_result packed;
	struct base_error why;
	struct topology_bandwidths b;
	if (x->server->coordinator) // a drive that is read for the digest would be measured as a slow one
		server_probe(x->server, "", &b, NULL);
	server_set_phase(x, SERVER_PHASE_DIGEST, NULL);
	int status = pack(x, NULL, &packed, e);
	if (status)
		return status;
	if (x->server->coordinator)
		server_fleet_keep(x);
	if (cancelled(x))
		return -ECANCELED;
	if (x->server->coordinator)
		return load_fleet(x, e);
	probe(x, packed.directory);
	/* Again, with what was measured and with the memory that is free now. */
	status = plan_entry(x, 0, 0, e);
	if (status)
		return status;
	memcpy(x->rank.digest, packed.digest, sizeof x->rank.digest);
	status = start_and_wait(x, packed.directory, e);
	if (status != -EBADMSG || cancelled(x))
		return status;
	why = *e;
	status = repair(x, &why, e);
	if (status)
		return status;
	status = start_and_wait(x, packed.directory, e);
	if (status == -EBADMSG)
		base_error_prefix(e, "the store was packed anew, and is bad again: the drive loses data");
	return status;
}

static void load_entry(struct server_entry *x)
{
	struct server *s = x->server;
	struct base_error e = {0};
	uint64_t from = base_clock_now_ns();
	int status = load(x, &e);
	if (status == -ECANCELED && cancelled(x))
		return;
	if (status) {
		e.code = status;
		server_set_phase(x, SERVER_PHASE_FAILED, &e);
		server_emit_event(s, "error", "model_failed", x->info->name, base_error_text(&e));
		return;
	}
	if (server_draining(s))
		engine_drain(x->model.engine, true);
	server_set_phase(x, SERVER_PHASE_READY, NULL);
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], t[BASE_UNITS_TEXT_BYTES], text[160];
	snprintf(text, sizeof text, "ready after %s: %s hot, %s cold in every pass, context %u",
		base_units_format_duration(base_clock_now_ns() - from, t),
		base_units_format_bytes(x->info->plan.hot_bytes, a),
		base_units_format_bytes(x->info->plan.cold_bytes, b), x->info->context_tokens);
	server_emit_event(s, "notice", "model_ready", x->info->name, text);
}

/* Of a model that serves: its requests are refused for a while instead of failed, and those that run go on
 * afterwards. */
static void repair_entry(struct server_entry *x)
{
	struct server *s = x->server;
	struct base_error e = {0}, why = {0};
	_cleanup_free_ struct engine_load *load = calloc(1, sizeof *load);
	if (!load)
		return;
	engine_get_load(x->model.engine, load);
	base_error_set(&why, -EBADMSG, "%s", load->data_loss[0] ? load->data_loss : "cold weights could not be read");
	if (x->fleet) { // what runs goes on in another group, when the nodes have read their stores
		server_emit_event(s, "error", "store_corrupt", x->info->name, base_error_text(&why));
		server_fleet_mend(x->fleet);
		engine_regather(x->model.engine, "the nodes check their stores");
		return;
	}
	server_set_phase(x, SERVER_PHASE_PACK, NULL);
	int status = repair(x, &why, &e);
	if (status && cancelled(x))
		return;
	if (status)
		server_emit_event(s, "error", "store_repair_failed", x->info->name, base_error_text(&e));
	else
		engine_regather(x->model.engine, "the store was checked and mended");
	server_set_phase(x, SERVER_PHASE_READY, NULL);
}

/* ---- the thread ---- */

/* Lock held. Unloading comes first, since it makes room; but it does not wait for a load that is under way. With NULL:
 * when a repair is due, or UINT64_MAX. */
static struct server_entry *next_work(struct server *s, uint64_t *ret_wake_ns)
{
	struct server_entry *load = NULL, *damaged = NULL;
	uint64_t now = base_clock_now_ns();
	bool room = true;
	*ret_wake_ns = UINT64_MAX;
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		struct server_entry *x = s->entry[i];
		if (!x || x->preparing)
			continue;
		if (x->unload)
			room = false;
		else if (x->info->phase == SERVER_PHASE_QUEUED && (!load || x->queued < load->queued))
			load = x;
		else if (!x->damaged || x->info->phase != SERVER_PHASE_READY)
			continue;
		else if (now >= x->repair_after_ns)
			damaged = x;
		else if (x->repair_after_ns < *ret_wake_ns)
			*ret_wake_ns = x->repair_after_ns;
	}
	return load && room ? load : damaged;
}

/* Lock held. Nobody else ends the wait for a repair: a model that is not ready gets no requests, which would fail
 * again. */
static void wait_for_work(struct server *s, uint64_t wake_ns)
{
	struct timespec t = {
		.tv_sec = (time_t)(wake_ns / BASE_NS_PER_SECOND), .tv_nsec = (long)(wake_ns % BASE_NS_PER_SECOND)};
	if (wake_ns == UINT64_MAX)
		pthread_cond_wait(&s->changed, &s->lock);
	else
		pthread_cond_timedwait(&s->changed, &s->lock, &t);
}

void *server_loader_thread(void *server)
{
	struct server *s = server;
	uint64_t wake_ns;
	pthread_setname_np(pthread_self(), "loader");
	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		struct server_entry *x = next_work(s, &wake_ns);
		if (!x) {
			wait_for_work(s, wake_ns);
			continue;
		}
		bool damaged = x->info->phase == SERVER_PHASE_READY;
		x->busy = true;
		x->damaged = false;
		pthread_mutex_unlock(&s->lock);
		if (damaged)
			repair_entry(x);
		else
			load_entry(x);
		pthread_mutex_lock(&s->lock);
		if (damaged)
			x->repair_after_ns = base_clock_now_ns() + atomic_load(&s->repair_pause_ns);
		x->busy = false;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}
