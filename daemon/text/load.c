// SPDX-License-Identifier: Apache-2.0
// A tokenizer from the metadata of a GGUF file.
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "daemon/text/vocabulary.h"

static int get_string(
	const struct format_gguf *g, const char *key, struct format_gguf_string *ret, struct base_error *e)
{
	int r = format_gguf_get_string(g, key, ret, e);
	return r == -ENOENT ? base_error_set(e, -EINVAL, "%s is missing: the file carries no tokenizer", key) : r;
}

// TEXT_NO_TOKEN if the key is missing
static int get_token(const struct format_gguf *g, const char *key, uint32_t *ret, struct base_error *e)
{
	*ret = TEXT_NO_TOKEN;
	return format_gguf_has(g, key) ? format_gguf_get_u32(g, key, ret, e) : 0;
}

static int get_strings(const struct format_gguf *g, const char *key, uint32_t most, struct format_gguf_string **ret,
	uint32_t *ret_count, struct base_error *e)
{
	uint64_t count;
	int r = format_gguf_get_array(g, key, FORMAT_GGUF_STRING, &count, e);
	if (r == -ENOENT)
		return base_error_set(e, -EINVAL, "%s is missing: the file carries no usable tokenizer", key);
	if (r < 0)
		return r;
	if (count > most)
		return base_error_set(e, -EINVAL, "%s has %llu entries; at most %u are supported", key,
			(unsigned long long)count, most);
	struct format_gguf_string *strings = calloc(count ? count : 1, sizeof *strings);
	if (!strings)
		return base_error_set(e, -ENOMEM, "%s: out of memory", key);
	for (uint64_t i = 0; i < count; i++)
		strings[i] = format_gguf_array_string(g, key, i);
	*ret = strings;
	*ret_count = (uint32_t)count;
	return 0;
}

static int get_types(const struct format_gguf *g, uint32_t tokens, uint32_t **ret, struct base_error *e)
{
	static const char key[] = "tokenizer.ggml.token_type";
	uint64_t count;
	if (!format_gguf_has(g, key))
		return 0;
	int r = format_gguf_get_array(g, key, FORMAT_GGUF_I32, &count, e);
	if (r < 0)
		return r;
	if (count != tokens)
		return base_error_set(e, -EINVAL, "%s has %llu entries, but tokenizer.ggml.tokens has %u", key,
			(unsigned long long)count, tokens);
	uint32_t *types = calloc(count ? count : 1, sizeof *types);
	if (!types)
		return base_error_set(e, -ENOMEM, "%s: out of memory", key);
	r = format_gguf_array_u32s(g, key, types, count);
	if (r < 0) {
		free(types);
		return base_error_set(e, r, "%s holds a negative type", key);
	}
	*ret = types;
	return 0;
}

static int get_settings(const struct format_gguf *g, struct text_vocabulary *v, struct base_error *e)
{
	int r = get_string(g, "tokenizer.ggml.model", &v->model, e);
	if (r == 0 && v->model.bytes == 4 && format_gguf_has(g, "tokenizer.ggml.pre"))
		r = get_string(g, "tokenizer.ggml.pre", &v->pre, e);
	else if (r == 0)
		v->pre = (struct format_gguf_string){"", 0}; // build names the model, or the missing pre
	if (r == 0)
		r = get_token(g, "tokenizer.ggml.bos_token_id", &v->bos, e);
	if (r == 0)
		r = get_token(g, "tokenizer.ggml.eos_token_id", &v->eos, e);
	if (r == 0)
		r = get_token(g, "tokenizer.ggml.eot_token_id", &v->eot, e);
	if (r == 0)
		r = get_token(g, "tokenizer.ggml.eom_token_id", &v->eom, e);
	v->add_bos = -1;
	bool add_bos;
	if (r == 0 && format_gguf_has(g, "tokenizer.ggml.add_bos_token")) {
		r = format_gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &add_bos, e);
		v->add_bos = r == 0 && add_bos;
	}
	if (r == 0 && format_gguf_has(g, "tokenizer.ggml.add_space_prefix"))
		r = format_gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &v->add_space_prefix, e);
	return r;
}

int text_tokenizer_create(const struct format_gguf *g, struct text_tokenizer **ret_tokenizer, struct base_error *e)
{
	struct text_vocabulary v = {0};
	_cleanup_free_ struct format_gguf_string *tokens = NULL;
	_cleanup_free_ struct format_gguf_string *merges = NULL;
	_cleanup_free_ uint32_t *types = NULL;
	int r = get_settings(g, &v, e);
	if (r == 0)
		r = text_vocabulary_check(&v, e);
	if (r == 0)
		r = get_strings(g, "tokenizer.ggml.tokens", TEXT_MAX_VOCABULARY, &tokens, &v.tokens_count, e);
	if (r == 0)
		r = get_strings(g, "tokenizer.ggml.merges", TEXT_MAX_MERGES, &merges, &v.merges_count, e);
	if (r == 0)
		r = get_types(g, v.tokens_count, &types, e);
	if (r < 0)
		return r;
	v.tokens = tokens;
	v.merges = merges;
	v.types = types;
	return text_tokenizer_build(&v, ret_tokenizer, e);
}
