// SPDX-License-Identifier: Apache-2.0
// Any bytes as a GGUF: refused with a message, or everything that is in it can be asked for, built and laid out.
#include <stdint.h>
#include <stdlib.h>

#include "shard/format/gguf.h"
#include "shard/pack/layout.h"
#include "shard/program/program.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_tensors(const struct format_gguf *g)
{
	uint8_t last;
	for (uint32_t i = 0; i < format_gguf_tensor_count(g); i++) {
		const struct format_gguf_tensor *t = format_gguf_tensor(g, i);
		if (format_gguf_find_tensor(g, t->name) != t)
			abort();
		if (t->size_bytes && format_gguf_read(g, t, t->size_bytes - 1, &last, 1, NULL))
			abort();
	}
}

static void read_arrays(const struct format_gguf *g, const char *data, size_t bytes)
{
	uint64_t count = 0;
	if (format_gguf_get_array(g, "tokenizer.ggml.tokens", FORMAT_GGUF_STRING, &count, NULL))
		return;
	for (uint64_t i = 0; i < count; i++) {
		struct format_gguf_string s = format_gguf_array_string(g, "tokenizer.ggml.tokens", i);
		if (s.bytes > bytes || s.data < data || s.data + s.bytes > data + bytes)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct base_error e = {0};
	struct format_gguf *g = NULL;
	struct program *p = NULL;
	struct pack_layout *l = NULL;
	if (format_gguf_open_memory(data, bytes, "fuzz.gguf", &g, &e)) {
		if (!e.message[0])
			abort();
		return 0;
	}
	read_tensors(g);
	read_arrays(g, (const char *)data, bytes);
	e.message[0] = '\0';
	if (program_build(g, &p, &e)) {
		if (!e.message[0])
			abort();
	} else {
		struct pack_slice slice = {0, p->config.layers, 0, 1};
		if (!pack_layout_build(p, &slice, &l, NULL) && l->pieces_count == 0)
			abort();
	}
	pack_layout_destroy(l);
	program_destroy(p);
	format_gguf_close(g);
	return 0;
}
