// SPDX-License-Identifier: Apache-2.0
// The llama family: llama, SmolLM2, mistral; qwen2 differs in the order of its rotation and in biases.
#include "shard/program/internal.h"

static uint32_t attention(struct program_builder *b, uint32_t x)
{
	const struct program_config *c = &b->p->config;
	uint32_t h = program_norm(b, x, "attn_norm");
	uint32_t q = program_matmul(b, h, "attn_q", c->heads * c->head_dim, PROGRAM_SPLIT_HEADS);
	uint32_t k = program_matmul(b, h, "attn_k", c->kv_heads * c->head_dim, PROGRAM_SPLIT_KV_HEADS);
	uint32_t v = program_matmul(b, h, "attn_v", c->kv_heads * c->head_dim, PROGRAM_SPLIT_KV_HEADS);
	q = program_rope(b, q, c->heads);
	k = program_rope(b, k, c->kv_heads);
	uint32_t a = program_attend(b, q, k, v);
	return program_add(b, x, program_matmul(b, a, "attn_output", c->width, PROGRAM_SPLIT_INPUT));
}

static uint32_t feed_forward(struct program_builder *b, uint32_t x)
{
	const struct program_config *c = &b->p->config;
	uint32_t h = program_norm(b, x, "ffn_norm");
	uint32_t gate = program_matmul(b, h, "ffn_gate", c->ffn_width, PROGRAM_SPLIT_OUTPUT);
	uint32_t up = program_matmul(b, h, "ffn_up", c->ffn_width, PROGRAM_SPLIT_OUTPUT);
	uint32_t y = program_silu_gate(b, gate, up);
	return program_add(b, x, program_matmul(b, y, "ffn_down", c->width, PROGRAM_SPLIT_INPUT));
}

int program_llama_build(struct program_builder *b)
{
	b->status = program_config_read(b);
	const struct program_config *c = &b->p->config;
	uint32_t x = program_embed(b, "token_embd");
	for (b->layer = 0; b->layer < c->layers && !b->status; b->layer++) {
		x = attention(b, x);
		x = feed_forward(b, x);
	}
	b->layer = PROGRAM_NONE;
	// Logits are wanted of few positions only, so the last norm sees those alone.
	uint32_t h = program_norm(b, program_select(b, x), "output_norm");
	b->p->logits = program_matmul(b, h, c->tied_head ? "token_embd" : "output", c->vocab, PROGRAM_SPLIT_OUTPUT);
	return b->status;
}

int program_qwen2_build(struct program_builder *b)
{
	b->p->config.rope_halves = true;
	return program_llama_build(b);
}
