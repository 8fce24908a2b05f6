// SPDX-License-Identifier: Apache-2.0
#include "proto/check.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/size.h"
#include "base/utf8.h"

#define CHECK_MAX_DEPTH 16u

enum { WIRE_VARINT, WIRE_64, WIRE_BYTES, WIRE_GROUP, WIRE_GROUP_END, WIRE_32 };

struct block { // stands before each allocation, so that free() knows what comes back
	_Alignas(16) size_t bytes;
};

static void *budget_alloc(void *context, size_t bytes)
{
	struct proto_budget *b = context;
	uint64_t total;
	if (base_size_add(bytes, sizeof(struct block), &total) < 0 || total > b->left_bytes) {
		b->exhausted = true;
		return NULL;
	}
	struct block *block = malloc(total);
	if (!block)
		return NULL;
	block->bytes = total;
	b->left_bytes -= total;
	return block + 1;
}

static void budget_free(void *context, void *p)
{
	if (!p)
		return;
	struct proto_budget *b = context;
	struct block *block = (struct block *)p - 1;
	b->left_bytes += block->bytes;
	free(block);
}

void proto_budget_init(struct proto_budget *b, size_t wire_bytes)
{
	size_t wire = wire_bytes < PROTO_MAX_MESSAGE_BYTES ? wire_bytes : PROTO_MAX_MESSAGE_BYTES;
	*b = (struct proto_budget){
		.allocator = {budget_alloc, budget_free, b},
		.left_bytes = PROTO_BUDGET_BASE_BYTES + PROTO_BUDGET_FACTOR * wire,
	};
}

struct wire {
	const uint8_t *at, *end;
};

static int wire_varint(struct wire *w, uint64_t *ret_value)
{
	uint64_t v = 0;
	for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
		uint8_t byte = *w->at++;
		v |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*ret_value = v;
			return 0;
		}
	}
	return -EBADMSG;
}

/* Steps over one value; for WIRE_BYTES the range is given. */
static int wire_value(struct wire *w, unsigned type, struct wire *ret_range)
{
	uint64_t n;
	switch (type) {
	case WIRE_VARINT:
		return wire_varint(w, &n);
	case WIRE_64:
		n = 8;
		break;
	case WIRE_32:
		n = 4;
		break;
	case WIRE_BYTES:
		if (wire_varint(w, &n) < 0)
			return -EBADMSG;
		break;
	default:
		return -EBADMSG; // groups nest without a bound, and nobody sends them
	}
	if (n > (uint64_t)(w->end - w->at))
		return -EBADMSG;
	*ret_range = (struct wire){w->at, w->at + n};
	w->at += n;
	return 0;
}

struct check {
	char *field; // PROTO_FIELD_BYTES, path of the string that is bad
	struct base_error *e;
};

static int check_string(const struct check *c, const char *path, const struct wire *s)
{
	size_t bytes = (size_t)(s->end - s->at), good = base_utf8_prefix(s->at, bytes);
	const uint8_t *nul = memchr(s->at, 0, good);
	if (!nul && good == bytes)
		return 0;
	if (c->field)
		snprintf(c->field, PROTO_FIELD_BYTES, "%s", path);
	if (nul)
		return base_error_set(c->e, -EILSEQ, "%s: NUL byte at offset %zu", path, (size_t)(nul - s->at));
	return base_error_set(c->e, -EILSEQ, "%s: not UTF-8 at byte offset %zu", path, good);
}

/* On the wire, because protobuf-c's strings have lost their length, and so a NUL byte within. The depth is that of the
 * types, none of which contains itself; the limit is for types to come. */
static int check_message(const struct check *c, const ProtobufCMessageDescriptor *descriptor, struct wire w,
	const char *prefix, unsigned depth)
{
	if (depth == 0)
		return base_error_set(c->e, -EBADMSG, "%s: nested too deeply", prefix);
	while (w.at < w.end) {
		uint64_t key;
		struct wire range = {0};
		if (wire_varint(&w, &key) < 0 || key >> 3 == 0 || key >> 3 > 0x1fffffff ||
			wire_value(&w, key & 7, &range) < 0)
			return base_error_set(c->e, -EBADMSG, "%s%sbytes that are not a %s", prefix,
				*prefix ? ": " : "", descriptor->name);
		if ((key & 7) != WIRE_BYTES)
			continue;
		const ProtobufCFieldDescriptor *f =
			protobuf_c_message_descriptor_get_field(descriptor, (unsigned)(key >> 3));
		if (!f || (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE))
			continue;
		char path[PROTO_FIELD_BYTES];
		snprintf(path, sizeof(path), "%s%s%s", prefix, *prefix ? "." : "", f->name);
		int r = f->type == PROTOBUF_C_TYPE_STRING ? check_string(c, path, &range)
							  : check_message(c, f->descriptor, range, path, depth - 1);
		if (r < 0)
			return r;
	}
	return 0;
}

int proto_unpack(const ProtobufCMessageDescriptor *descriptor, const void *data, size_t bytes,
	struct proto_budget *budget, ProtobufCMessage **ret_message, char *field, struct base_error *e)
{
	if (field)
		*field = 0;
	if (bytes > PROTO_MAX_MESSAGE_BYTES)
		return base_error_set(e, -E2BIG, "a %s of %zu bytes: the limit is %u", descriptor->name, bytes,
			PROTO_MAX_MESSAGE_BYTES);
	const struct check c = {field, e};
	const uint8_t *p = data;
	int r = check_message(&c, descriptor, (struct wire){p, p + bytes}, "", CHECK_MAX_DEPTH);
	if (r < 0)
		return r;
	proto_budget_init(budget, bytes);
	ProtobufCMessage *m = protobuf_c_message_unpack(descriptor, &budget->allocator, bytes, data);
	if (!m && budget->exhausted)
		return base_error_set(
			e, -E2BIG, "a %s of %zu bytes holds too many small or unknown fields", descriptor->name, bytes);
	if (!m)
		return base_error_set(e, -EBADMSG, "bytes that are not a %s", descriptor->name);
	*ret_message = m;
	return 0;
}
