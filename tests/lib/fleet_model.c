// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include "tests/lib/fleet_model.h"

#include <errno.h>
#include <ftw.h>
#include <string.h>
#include <unistd.h>

#include "shard/kv/kv.h"

#define BLOCKS 64u // of the one sequence

static void check(int status, const struct base_error *e)
{
	if (status)
		fail_msg("%s", base_error_text(e));
}

void fleet_model_init(struct fleet_model *m, const char *gguf_path)
{
	memset(m, 0, sizeof *m);
	snprintf(m->directory, sizeof m->directory, "/tmp/thaw-fleet.XXXXXX");
	assert_non_null(mkdtemp(m->directory));
	snprintf(m->store, sizeof m->store, "%s/store", m->directory);
	snprintf(m->path, sizeof m->path, "%s", gguf_path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void fleet_model_release(struct fleet_model *m)
{
	nftw(m->directory, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void prepare_rank(struct fleet_model *m, const struct format_gguf *g, const struct program *p,
	const struct fleet_run *run, uint32_t rank)
{
	struct base_error e = {0};
	struct rank_config *c = &m->config[rank];
	uint32_t layers = p->config.layers, stages = run->shape.stages;
	struct rank_place me = rank_shape_place(&run->shape, rank);
	uint32_t first = layers * me.stage / stages;
	struct pack_config pack = {.store_path = m->store,
		.slice = {first, layers * (me.stage + 1) / stages - first, me.part, run->shape.parts[me.stage]}};
	struct pack_result packed;
	struct rank_needs needs;
	check(pack_model(g, p, &pack, &packed, &e), &e);
	memset(c, 0, sizeof *c);
	snprintf(c->store_directory, sizeof c->store_directory, "%s", packed.directory);
	snprintf(c->model_path, sizeof c->model_path, "%s", m->path);
	snprintf(c->backend, sizeof c->backend, "%s", run->backend);
	snprintf(c->engine, sizeof c->engine, "sync");
	memcpy(c->digest, packed.digest, sizeof c->digest);
	c->slice = pack.slice;
	c->batch_tokens = run->batch_tokens;
	c->logits_rows = run->batch_tokens < 16 ? run->batch_tokens : 16;
	c->sequences = 2;
	c->context_tokens = run->context_tokens;
	c->verify_every = 1;
	c->threads = 1;
	check(rank_get_needs(p, c, &needs, &e), &e);
	c->weights_budget_bytes = run->cold ? needs.weights_min_bytes : needs.weights_all_bytes;
	c->workspace_budget_bytes = needs.workspace_bytes;
	c->kv_budget_bytes = needs.kv_block_bytes * BLOCKS;
}

static void load(struct fleet_model *m, const struct fleet_run *run, struct fleet *f)
{
	for (uint32_t i = 0; i < f->ranks; i++) {
		struct rank_message a = {.type = RANK_MESSAGE_ASSIGN};
		a.assign = (struct rank_assign){.epoch = EPOCH,
			.shape = f->shape,
			.stage = rank_shape_place(&f->shape, i).stage,
			.patience_ns = 100 * BASE_NS_PER_SECOND,
			.config = m->config[i]};
		fleet_tell(f, i, &a);
	}
	for (uint32_t i = 0; i < f->ranks; i++) {
		assert_int_equal(fleet_hear(f, i), 0);
		if (f->in.type == RANK_MESSAGE_FAILED)
			fail_msg("rank %u: %s", i, f->in.failed.message);
		assert_int_equal(f->in.type, RANK_MESSAGE_READY);
		m->placement[i] = f->in.ready;
		assert_true(run->cold || !f->in.ready.cold_bytes);
		assert_true(
			!run->cold || f->ranks > 3 || f->in.ready.cold_bytes); // a small share may fit the least budget
	}
}

void fleet_model_start(struct fleet_model *m, const struct fleet_run *run, struct fleet *f)
{
	struct base_error e = {0};
	struct format_gguf *g;
	struct program *p;
	check(format_gguf_open(m->path, &g, &e), &e);
	check(program_build(g, &p, &e), &e);
	for (uint32_t i = 0; i < rank_shape_ranks(&run->shape); i++)
		prepare_rank(m, g, p, run, i);
	program_destroy(p);
	format_gguf_close(g);
	fleet_start_shape(f, run->link ? run->link : &link_local_ops, &run->shape, 65536);
	load(m, run, f);
}

void fleet_model_open(struct fleet *f, uint32_t prompt_tokens)
{
	struct rank_message m = {.type = RANK_MESSAGE_OPEN};
	m.open.prompt_tokens = prompt_tokens;
	m.open.params = (struct sample_params){.top_p = 1, .repetition_penalty = 1, .logprobs = SAMPLE_MAX_LOGPROBS};
	fleet_tell_all(f, &m);
}

void fleet_model_close(struct fleet *f)
{
	fleet_tell_all(f, &(struct rank_message){.type = RANK_MESSAGE_CLOSE});
}

void fleet_model_pass(struct fleet *f, uint64_t number, uint32_t position, const uint32_t *tokens, uint32_t count,
	enum rank_want want)
{
	uint32_t blocks[BLOCKS], used = (position + count + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	const struct rank_entry entry = {
		.first_position = position, .tokens = count, .blocks = used, .want = want, .score_top = 2};
	struct rank_message m = {.type = RANK_MESSAGE_PASS};
	assert_true(used <= BLOCKS / 2); // a rank takes what its context needs for two sequences
	for (uint32_t i = 0; i < used; i++)
		blocks[i] = i ^ 1;
	m.pass = (struct rank_pass){.pass = number,
		.entries = &entry,
		.entries_count = 1,
		.tokens = tokens,
		.tokens_count = count,
		.blocks = blocks,
		.blocks_count = used,
		.targets = tokens,
		.targets_count = want == RANK_WANT_SCORES ? count : 0};
	fleet_tell_all(f, &m);
}

void fleet_model_hear(struct fleet *f, uint64_t number)
{
	assert_int_equal(fleet_hear(f, fleet_last(f)), 0);
	assert_int_equal(f->in.type, RANK_MESSAGE_RESULT);
	assert_int_equal(f->in.result.pass, number);
	if (f->in.result.status || f->in.result.entry_status[0])
		fail_msg("pass %u: %s", (unsigned)number, f->in.result.e.message);
}

uint64_t fleet_model_generate(struct fleet *f, uint64_t number, const uint32_t *prompt, uint32_t prompt_tokens,
	uint32_t chunk, struct sample_result *out, uint32_t count)
{
	fleet_model_open(f, prompt_tokens);
	for (uint32_t at = 0, n; at < prompt_tokens; at += n) {
		n = prompt_tokens - at < chunk ? prompt_tokens - at : chunk;
		enum rank_want want = at + n == prompt_tokens ? RANK_WANT_SAMPLE : RANK_WANT_NOTHING;
		fleet_model_pass(f, number, at, prompt + at, n, want);
		fleet_model_hear(f, number++);
	}
	for (uint32_t made = 0; made < count; made++) {
		assert_int_equal(f->in.result.outputs_count, 1);
		out[made] = f->in.result.outputs[0].result;
		if (made + 1 == count)
			break;
		fleet_model_pass(f, number, prompt_tokens + made, &out[made].token, 1, RANK_WANT_SAMPLE);
		fleet_model_hear(f, number++);
	}
	fleet_model_close(f);
	return number;
}
