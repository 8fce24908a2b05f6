// SPDX-License-Identifier: Apache-2.0
// Metadata to config: the keys that the families share.
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/program/internal.h"
#include "shard/quant/quant.h"

// Bounds of what is computed with: products of any two stay far from 64 bits. A matrix has at least two rows: one of a
// single row would be taken for a vector, which is kept in another way.
#define MAX_WIDTH (1u << 20)
#define MAX_HEADS 4096u
#define MAX_HEAD_DIM 4096u
#define MAX_VOCAB (1u << 24)
#define MAX_CONTEXT (1u << 28)

#define KEY_BYTES 96u

static const char *key_of(const struct program_builder *b, const char *key, char out[static KEY_BYTES])
{
	snprintf(out, KEY_BYTES, "%s.%s", b->p->config.architecture, key);
	return out;
}

static int read_u32(struct program_builder *b, const char *key, uint32_t least, uint32_t most, uint32_t *ret)
{
	char name[KEY_BYTES];
	uint32_t v;
	int status = format_gguf_get_u32(b->source, key_of(b, key, name), &v, b->error);
	if (status)
		return status;
	if (v < least || v > most)
		return base_error_set(b->error, -EINVAL, "%s: %s is %u; %u to %u are allowed",
			format_gguf_path(b->source), name, v, least, most);
	*ret = v;
	return 0;
}

// Leaves *ret as it is when the key is missing.
static int read_u32_or(struct program_builder *b, const char *key, uint32_t least, uint32_t most, uint32_t *ret)
{
	char name[KEY_BYTES];
	return format_gguf_has(b->source, key_of(b, key, name)) ? read_u32(b, key, least, most, ret) : 0;
}

static int read_f32_or(struct program_builder *b, const char *key, float least, float most, float *ret)
{
	char name[KEY_BYTES];
	float v;
	if (!format_gguf_has(b->source, key_of(b, key, name)))
		return 0;
	int status = format_gguf_get_f32(b->source, name, &v, b->error);
	if (status)
		return status;
	if (!(v >= least && v <= most))
		return base_error_set(b->error, -EINVAL, "%s: %s is %g; %g to %g are allowed",
			format_gguf_path(b->source), name, (double)v, (double)least, (double)most);
	*ret = v;
	return 0;
}

static int read_shape(struct program_builder *b)
{
	struct program_config *c = &b->p->config;
	const struct format_gguf_tensor *embedding = format_gguf_find_tensor(b->source, "token_embd.weight");
	int status;
	if ((status = read_u32(b, "block_count", 1, PROGRAM_MAX_LAYERS, &c->layers)) ||
		(status = read_u32(b, "embedding_length", 2, MAX_WIDTH, &c->width)) ||
		(status = read_u32(b, "feed_forward_length", 2, MAX_WIDTH, &c->ffn_width)) ||
		(status = read_u32(b, "attention.head_count", 1, MAX_HEADS, &c->heads)) ||
		(status = read_u32(b, "context_length", 1, MAX_CONTEXT, &c->context_tokens)))
		return status;
	c->kv_heads = c->heads;
	if ((status = read_u32_or(b, "attention.head_count_kv", 1, MAX_HEADS, &c->kv_heads)))
		return status;
	if (c->heads % c->kv_heads)
		return base_error_set(b->error, -EINVAL, "%s: %u heads cannot share %u KV heads",
			format_gguf_path(b->source), c->heads, c->kv_heads);
	c->head_dim = c->width / c->heads;
	uint32_t value_dim;
	if ((status = read_u32_or(b, "attention.key_length", 2, MAX_HEAD_DIM, &c->head_dim)))
		return status;
	value_dim = c->head_dim;
	if ((status = read_u32_or(b, "attention.value_length", 2, MAX_HEAD_DIM, &value_dim)))
		return status;
	if (value_dim != c->head_dim)
		return base_error_set(b->error, -ENOTSUP,
			"%s: keys of %u and values of %u elements: different lengths are not supported",
			format_gguf_path(b->source), c->head_dim, value_dim);
	if (c->head_dim < 2 || c->head_dim > MAX_HEAD_DIM || c->heads * c->head_dim > MAX_WIDTH)
		return base_error_set(b->error, -EINVAL, "%s: %u heads of %u elements cannot be",
			format_gguf_path(b->source), c->heads, c->head_dim);
	if (!embedding)
		return base_error_set(b->error, -EINVAL,
			"%s: tensor token_embd.weight, which every model needs, is missing",
			format_gguf_path(b->source));
	if (embedding->dims[1] < 2 || embedding->dims[1] > MAX_VOCAB)
		return base_error_set(b->error, -EINVAL, "%s: a vocabulary of %llu tokens; 2 to %u are allowed",
			format_gguf_path(b->source), (unsigned long long)embedding->dims[1], MAX_VOCAB);
	c->vocab = (uint32_t)embedding->dims[1];
	c->tied_head = !format_gguf_find_tensor(b->source, "output.weight");
	return 0;
}

static int read_rope_scaling(struct program_builder *b)
{
	char name[KEY_BYTES];
	struct program_config *c = &b->p->config;
	struct format_gguf_string type = {.data = "none", .bytes = 4};
	float factor = 1;
	int status;
	c->rope_scale = 1;
	if ((status = read_f32_or(b, "rope.scale_linear", 1, 1e6f, &factor)))
		return status; // what files had before rope.scaling
	c->rope_scale = 1 / factor;
	if (!format_gguf_has(b->source, key_of(b, "rope.scaling.type", name)))
		return 0;
	status = format_gguf_get_string(b->source, name, &type, b->error);
	if (status)
		return status;
	if (type.bytes == 4 && memcmp(type.data, "none", 4) == 0) {
		c->rope_scale = 1;
		return 0;
	}
	if (type.bytes != 6 || memcmp(type.data, "linear", 6) != 0) {
		char text[33] = {0};
		for (size_t i = 0; i < type.bytes && i < sizeof text - 1; i++)
			text[i] = type.data[i] > 0x20 && type.data[i] < 0x7f ? type.data[i] : '?';
		return base_error_set(b->error, -ENOTSUP,
			"%s: rope scaling '%s' is not supported (supported: none, linear, and llama 3's by "
			"rope_freqs.weight)",
			format_gguf_path(b->source), text);
	}
	if ((status = read_f32_or(b, "rope.scaling.factor", 1, 1e6f, &factor)))
		return status;
	c->rope_scale = 1 / factor;
	return 0;
}

static int read_rope(struct program_builder *b)
{
	struct program_config *c = &b->p->config;
	int status;
	c->rope_dims = c->head_dim;
	c->rope_base = 10000;
	if ((status = read_u32_or(b, "rope.dimension_count", 2, c->head_dim, &c->rope_dims)) ||
		(status = read_f32_or(b, "rope.freq_base", 1, 1e12f, &c->rope_base)))
		return status;
	if (c->rope_dims % 2)
		return base_error_set(b->error, -EINVAL, "%s: rope.dimension_count is %u; an even number is needed",
			format_gguf_path(b->source), c->rope_dims);
	return read_rope_scaling(b);
}

// Divisors of the frequencies, which converters write for llama 3's scaling.
static int read_rope_factors(struct program_builder *b)
{
	struct program *p = b->p;
	const struct format_gguf_tensor *t = format_gguf_find_tensor(b->source, PROGRAM_ROPE_FREQS);
	uint32_t count = p->config.rope_dims / 2;
	if (!t)
		return 0;
	if (t->type != QUANT_F32 || t->dims_count != 1 || t->dims[0] != count)
		return base_error_set(b->error, -EINVAL, "%s: tensor rope_freqs.weight must be %u numbers of type F32",
			format_gguf_path(b->source), count);
	p->rope_factors = malloc(count * sizeof *p->rope_factors);
	if (!p->rope_factors)
		return base_error_set(b->error, -ENOMEM, "no memory for the program");
	int status = format_gguf_read(b->source, t, 0, p->rope_factors, count * sizeof *p->rope_factors, b->error);
	for (uint32_t i = 0; i < count && !status; i++) {
		if (!(p->rope_factors[i] > 0 && isfinite(p->rope_factors[i])))
			status = base_error_set(b->error, -EINVAL,
				"%s: rope_freqs.weight[%u] is %g; a positive number is needed",
				format_gguf_path(b->source), i, (double)p->rope_factors[i]);
	}
	return status;
}

static void read_name(struct program_builder *b)
{
	struct program_config *c = &b->p->config;
	struct format_gguf_string s;
	if (format_gguf_get_string(b->source, "general.name", &s, NULL))
		s = (struct format_gguf_string){.data = c->architecture, .bytes = strlen(c->architecture)};
	size_t n = s.bytes < sizeof c->name - 1 ? s.bytes : sizeof c->name - 1;
	for (size_t i = 0; i < n; i++)
		c->name[i] = s.data[i] >= 0x20 && s.data[i] < 0x7f ? s.data[i] : '?';
	c->name[n] = '\0';
}

int program_config_read(struct program_builder *b)
{
	struct program_config *c = &b->p->config;
	uint32_t experts = 0;
	int status;
	read_name(b);
	if ((status = read_u32_or(b, "expert_count", 0, UINT32_MAX, &experts)))
		return status;
	if (experts)
		return base_error_set(b->error, -ENOTSUP, "%s: a mixture of %u experts: not supported",
			format_gguf_path(b->source), experts);
	c->norm_eps = 1e-5f;
	if ((status = read_shape(b)) ||
		(status = read_f32_or(b, "attention.layer_norm_rms_epsilon", 0, 1, &c->norm_eps)) ||
		(status = read_u32_or(b, "attention.sliding_window", 0, UINT32_MAX, &c->window)) ||
		(status = read_rope(b)))
		return status;
	return read_rope_factors(b);
}
