// SPDX-License-Identifier: Apache-2.0
// Header and tables of a store file. The input is the header's fields (96 bytes, without its padding) and then the
// tables (without theirs); the checksums are put right, so that the checks behind them are reached.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "offload/store_format.h"

#define FIELDS_BYTES 96u
#define TABLES_AT 72u // of tables_offset_bytes; tables_bytes follows
#define MAX_TABLES_BYTES (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// What was accepted can be used without another look, and says the same when written again.
static void use(const struct store_header *h, const struct store_tables *t, const uint8_t *tables)
{
	for (uint32_t i = 0; i < h->pieces_count; i++) {
		const struct offload_store_piece *p = &t->pieces[i];
		if (p->extent >= h->extents_count || p->tensor >= h->tensors_count)
			abort();
		const struct offload_store_extent *x = &t->extents[p->extent];
		if ((uint64_t)p->offset_bytes + p->length_bytes > x->length_bytes || i < x->first_piece ||
			i - x->first_piece >= x->pieces || p->first_row + p->rows > t->tensors[p->tensor].rows)
			abort();
	}
	for (uint32_t i = 0; i < h->tensors_count; i++) {
		if (strlen(t->tensors[i].name) >= OFFLOAD_STORE_NAME_BYTES)
			abort();
	}
	uint8_t *again = calloc(1, h->tables_bytes);
	if (!again)
		return;
	offload_store_tables_encode(h, t, again);
	if (memcmp(again, tables, h->tables_bytes) != 0)
		abort();
	free(again);
}

static uint64_t u64(const uint8_t *bytes)
{
	struct base_reader r;
	base_reader_init(&r, bytes, 8);
	return base_reader_u64(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	uint8_t header[STORE_HEADER_BYTES] = {0};
	size_t fields = bytes < FIELDS_BYTES ? bytes : FIELDS_BYTES;
	if (fields > 0)
		memcpy(header, data, fields);
	uint64_t tables_at = u64(header + TABLES_AT), tables_bytes = u64(header + TABLES_AT + 8);
	uint8_t *tables = NULL;
	if (tables_bytes <= MAX_TABLES_BYTES) {
		tables = calloc(1, tables_bytes + 1);
		size_t rest = bytes - fields < tables_bytes ? bytes - fields : (size_t)tables_bytes;
		if (tables && rest > 0)
			memcpy(tables, data + fields, rest);
	}
	offload_store_format_seal(header, tables, tables ? tables_bytes : 0);

	struct store_header h;
	struct store_tables t = {0};
	struct base_error e = {0};
	int r = offload_store_header_decode(header, tables_at + tables_bytes, &h, &e);
	if (r == 0 && tables) {
		r = offload_store_tables_decode(&h, tables, &t, &e);
		if (r == 0)
			use(&h, &t, tables);
	}
	if (r < 0 && !e.message[0])
		abort();
	offload_store_tables_finish(&t);
	free(tables);
	return 0;
}
