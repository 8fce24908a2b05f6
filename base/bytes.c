// SPDX-License-Identifier: Apache-2.0
#include "base/bytes.h"

#include <errno.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file formats and messages are little-endian");

void base_reader_init(struct base_reader *r, const void *data, size_t size_bytes)
{
	*r = (struct base_reader){.data = data, .size_bytes = size_bytes};
}

size_t base_reader_left(const struct base_reader *r)
{
	return r->status ? 0 : r->size_bytes - r->at;
}

const void *base_reader_bytes(struct base_reader *r, uint64_t n)
{
	if (r->status)
		return NULL;
	if (n > r->size_bytes - r->at) {
		r->status = -EBADMSG;
		return NULL;
	}
	const void *p = r->data + r->at;
	r->at += (size_t)n;
	return p;
}

void base_reader_copy(struct base_reader *r, void *out, size_t n)
{
	const void *p = base_reader_bytes(r, n);
	if (p)
		memcpy(out, p, n);
	else
		memset(out, 0, n);
}

#define READ(name, type)                                                                                               \
	type base_reader_##name(struct base_reader *r)                                                                 \
	{                                                                                                              \
		type v;                                                                                                \
		base_reader_copy(r, &v, sizeof v);                                                                     \
		return v;                                                                                              \
	}
READ(u8, uint8_t)
READ(u32, uint32_t)
READ(u64, uint64_t)
READ(f32, float)

void base_writer_init(struct base_writer *w, void *data, size_t room_bytes)
{
	*w = (struct base_writer){.data = data, .room_bytes = room_bytes};
}

void base_writer_bytes(struct base_writer *w, const void *data, size_t n)
{
	if (w->status)
		return;
	if (n > w->room_bytes - w->at) {
		w->status = -ENOBUFS;
		return;
	}
	if (n)
		memcpy(w->data + w->at, data, n);
	w->at += n;
}

#define WRITE(name, type)                                                                                              \
	void base_writer_##name(struct base_writer *w, type v)                                                         \
	{                                                                                                              \
		base_writer_bytes(w, &v, sizeof v);                                                                    \
	}
WRITE(u32, uint32_t)
WRITE(u64, uint64_t)
WRITE(f32, float)
