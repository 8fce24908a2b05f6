// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include "tests/lib/model_fixture.h"

#include <ftw.h>
#include <string.h>
#include <unistd.h>

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

void model_remove_tree(const char *path)
{
	nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void model_fixture_init(struct model_fixture *f, const char *gguf_path)
{
	struct base_error e = {0};
	struct format_gguf *g = NULL;
	struct program *p = NULL;
	memset(f, 0, sizeof *f);
	snprintf(f->store, sizeof f->store, "/tmp/thaw-test.XXXXXX");
	assert_non_null(mkdtemp(f->store));
	snprintf(f->path, sizeof f->path, "%s", gguf_path);
	if (format_gguf_open(gguf_path, &g, &e) || program_build(g, &p, &e))
		fail_msg("%s", base_error_text(&e));
	struct pack_config pack = {.store_path = f->store, .slice = {0, p->config.layers, 0, 1}};
	if (pack_model(g, p, &pack, &f->packed, &e))
		fail_msg("%s", base_error_text(&e));
	f->config = (struct rank_config){
		.slice = pack.slice,
		.backend = "reference",
		.engine = "auto",
		.weights_budget_bytes = UINT64_MAX / 4,
		.workspace_budget_bytes = UINT64_MAX / 4,
		.kv_budget_bytes = UINT64_MAX / 4,
		.kv_type = KV_F16,
		.batch_tokens = 128,
		.logits_rows = 64,
		.sequences = 8,
		.context_tokens = p->config.context_tokens < 512 ? p->config.context_tokens : 512,
		.verify_every = 1,
	};
	snprintf(f->config.store_directory, sizeof f->config.store_directory, "%s", f->packed.directory);
	snprintf(f->config.model_path, sizeof f->config.model_path, "%s", gguf_path);
	memcpy(f->config.digest, f->packed.digest, sizeof f->config.digest);
	program_destroy(p);
	format_gguf_close(g);
}

void model_fixture_release(struct model_fixture *f)
{
	model_remove_tree(f->store);
}

struct rank *model_rank(const struct model_fixture *f)
{
	struct base_error e = {0};
	struct rank *r = NULL;
	if (rank_create(&f->config, &r, &e, NULL, NULL))
		fail_msg("%s", base_error_text(&e));
	return r;
}

struct sample_params model_greedy(void)
{
	return (struct sample_params){.top_p = 1, .repetition_penalty = 1};
}

uint32_t model_step(struct rank *r, const uint32_t *tokens, uint32_t count, uint32_t position)
{
	uint32_t blocks[512], blocks_count = (position + count + KV_BLOCK_TOKENS - 1) / KV_BLOCK_TOKENS;
	int status = 0;
	struct rank_output output;
	struct base_error e = {0};
	for (uint32_t i = 0; i < blocks_count; i++)
		blocks[i] = i;
	struct rank_entry entry = {
		.first_position = position, .tokens = count, .blocks = blocks_count, .want = RANK_WANT_SAMPLE};
	struct rank_pass pass = {
		.entries = &entry,
		.entries_count = 1,
		.tokens = tokens,
		.tokens_count = count,
		.blocks = blocks,
		.blocks_count = blocks_count,
	};
	struct rank_pass_result result = {.outputs = &output, .entry_status = &status};
	if (rank_run(r, &pass, &result, &e))
		fail_msg("%s", base_error_text(&e));
	assert_int_equal(status, 0);
	assert_int_equal(result.outputs_count, 1);
	return output.result.token;
}
