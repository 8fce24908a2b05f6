// SPDX-License-Identifier: Apache-2.0
// bench_model OUT.gguf TYPE LAYERS WIDTH FFN HEADS KV_HEADS: a llama model with random weights, for speed only.
// TYPE: Q4_0, Q8_0, ... Its text is noise; its sizes are those of a real model.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "shard/quant/quant.h"
#include "tests/lib/tiny_gguf.h"

static int find_type(const char *name, uint32_t *ret_type)
{
	for (uint32_t t = 0; t < 64; t++) {
		const struct quant_traits *q = quant_traits(t);
		if (q && strcmp(q->name, name) == 0) {
			*ret_type = t;
			return 0;
		}
	}
	return -EINVAL;
}

int main(int argc, char **argv)
{
	struct tiny_model m = {.vocab = 32000, .context = 4096, .seed = 7};
	if (argc != 8 || find_type(argv[2], &m.type)) {
		fprintf(stderr, "usage: bench_model OUT.gguf TYPE LAYERS WIDTH FFN HEADS KV_HEADS\n");
		return 2;
	}
	m.layers = (uint32_t)strtoul(argv[3], NULL, 10);
	m.width = (uint32_t)strtoul(argv[4], NULL, 10);
	m.ffn_width = (uint32_t)strtoul(argv[5], NULL, 10);
	m.heads = (uint32_t)strtoul(argv[6], NULL, 10);
	m.kv_heads = (uint32_t)strtoul(argv[7], NULL, 10);
	m.head_dim = m.heads ? m.width / m.heads : 0;
	int r = tiny_model_save(&m, argv[1]);
	if (r)
		fprintf(stderr, "bench_model: %s: %s\n", argv[1], strerror(-r));
	return r ? 1 : 0;
}
