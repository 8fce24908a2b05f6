/* SPDX-License-Identifier: Apache-2.0
 * What protobuf-c leaves to its caller: bounded decoding and checked strings.
 *
 * protobuf-c takes bad UTF-8 and embedded NUL bytes, and a few bytes on the wire can become many in memory (an empty
 * message in a list costs two bytes there and a struct here). So every decode runs with an allocator that has a budget,
 * and the strings of the result are checked at once. Any thread.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <protobuf-c/protobuf-c.h>

#include "base/error.h"

#define PROTO_MAX_MESSAGE_BYTES (16u << 20)
#define PROTO_BUDGET_BASE_BYTES (64u << 10)
#define PROTO_BUDGET_FACTOR 8u // packed token ids grow by 4, a chat message by less

struct proto_budget {
	ProtobufCAllocator allocator; // hand &budget.allocator to protobuf-c
	size_t left_bytes;
	bool exhausted;
};

/* A budget for decoding a message of that many bytes. It is moved by nobody: allocator points to it. */
void proto_budget_init(struct proto_budget *b, size_t wire_bytes);

/* Decodes and checks. The message is freed with protobuf_c_message_free_unpacked(m, &budget->allocator), and the budget
 * outlives it. -EBADMSG: not a message of this type. -E2BIG: larger than PROTO_MAX_MESSAGE_BYTES, or its budget.
 * -EILSEQ: a string that is not UTF-8 or has a NUL byte; field (64 bytes, may be NULL) gets its path. */
int proto_unpack(const ProtobufCMessageDescriptor *descriptor, const void *data, size_t bytes,
	struct proto_budget *budget, ProtobufCMessage **ret_message, char *field, struct base_error *e);

#define PROTO_FIELD_BYTES 64u

/* FileDescriptorSet of all our .proto files, for reflection. */
extern const uint8_t proto_descriptor_set[];
extern const size_t proto_descriptor_set_bytes;
