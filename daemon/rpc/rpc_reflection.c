// SPDX-License-Identifier: Apache-2.0
// grpc.reflection v1 and v1alpha, which are the same bytes under two names. The answers are cut out of the descriptor
// set that is built in; it is ours, but is read as carefully as a stranger's, because that costs nothing.
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/rpc/rpc_core.h"
#include "proto/check.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"

#define REFLECTION_MAX_FILES 32u
#define REFLECTION_MAX_SERVICES 16u
#define REFLECTION_NAME_BYTES 192u
#define REFLECTION_DEPTH 8u

/* Field numbers of google.protobuf.FileDescriptorSet and what it holds. */
enum {
	SET_FILE = 1,
	FILE_NAME = 1,
	FILE_PACKAGE = 2,
	FILE_DEPENDENCY = 3,
	FILE_MESSAGE = 4,
	FILE_ENUM = 5,
	FILE_SERVICE = 6,
	MESSAGE_NAME = 1,
	MESSAGE_FIELD = 2,
	MESSAGE_NESTED = 3,
	MESSAGE_ENUM = 4,
	SERVICE_NAME = 1,
	SERVICE_METHOD = 2,
};

struct span {
	const uint8_t *at;
	size_t bytes;
};

static bool varint(struct span *s, uint64_t *ret)
{
	*ret = 0;
	for (unsigned shift = 0; shift < 64 && s->bytes; shift += 7) {
		uint8_t byte = *s->at++;
		s->bytes--;
		*ret |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return true;
	}
	return false;
}

/* The next field that has a length; others are stepped over. */
static bool next_field(struct span *s, uint32_t *ret_number, struct span *ret_value)
{
	uint64_t key, n;
	while (s->bytes && varint(s, &key)) {
		if ((key & 7) == 0) {
			if (!varint(s, &n))
				return false;
			continue;
		}
		if ((key & 7) == 2 ? !varint(s, &n) : (n = (key & 7) == 1 ? 8 : 4, false))
			return false;
		if (n > s->bytes)
			return false;
		*ret_value = (struct span){s->at, n};
		s->at += n;
		s->bytes -= n;
		if ((key & 7) != 2)
			continue;
		*ret_number = (uint32_t)(key >> 3);
		return true;
	}
	return false;
}

static struct span field(struct span s, uint32_t number)
{
	uint32_t n;
	struct span v;
	while (next_field(&s, &n, &v))
		if (n == number)
			return v;
	return (struct span){0};
}

static bool span_is(struct span s, const char *text)
{
	return strlen(text) == s.bytes && memcmp(s.at, text, s.bytes) == 0;
}

static void join(char *out, const char *scope, struct span name)
{
	size_t n = strlen(scope), dot = n > 0;
	if (n + dot + name.bytes >= REFLECTION_NAME_BYTES)
		name.bytes = n = dot = 0; // no such names in our files
	memmove(out, scope, n);
	if (dot)
		out[n] = '.';
	if (name.bytes)
		memcpy(out + n + dot, name.at, name.bytes);
	out[n + dot + name.bytes] = 0;
}

static bool member_is(const char *scope, struct span member, const char *symbol)
{
	char full[REFLECTION_NAME_BYTES];
	join(full, scope, field(member, 1)); // the name is field 1 of all of them
	return strcmp(full, symbol) == 0;
}

static bool message_has(struct span m, const char *scope, const char *symbol, unsigned depth)
{
	char full[REFLECTION_NAME_BYTES];
	uint32_t n;
	struct span v;
	join(full, scope, field(m, MESSAGE_NAME));
	if (strcmp(full, symbol) == 0)
		return true;
	while (depth && next_field(&m, &n, &v)) {
		if (n == MESSAGE_NESTED && message_has(v, full, symbol, depth - 1))
			return true;
		if ((n == MESSAGE_ENUM || n == MESSAGE_FIELD) && member_is(full, v, symbol))
			return true;
	}
	return false;
}

static bool service_has(struct span s, const char *scope, const char *symbol)
{
	char full[REFLECTION_NAME_BYTES];
	uint32_t n;
	struct span v;
	join(full, scope, field(s, SERVICE_NAME));
	if (strcmp(full, symbol) == 0)
		return true;
	while (next_field(&s, &n, &v))
		if (n == SERVICE_METHOD && member_is(full, v, symbol))
			return true;
	return false;
}

static bool file_has(struct span file, const char *symbol)
{
	char package[REFLECTION_NAME_BYTES];
	uint32_t n;
	struct span v;
	join(package, "", field(file, FILE_PACKAGE));
	while (next_field(&file, &n, &v)) {
		if (n == FILE_MESSAGE && message_has(v, package, symbol, REFLECTION_DEPTH))
			return true;
		if (n == FILE_ENUM && member_is(package, v, symbol))
			return true;
		if (n == FILE_SERVICE && service_has(v, package, symbol))
			return true;
	}
	return false;
}

struct files {
	struct span files[REFLECTION_MAX_FILES];
	uint32_t count;
};

static void read_files(struct files *f)
{
	struct span set = {proto_descriptor_set, proto_descriptor_set_bytes}, v;
	uint32_t n;
	f->count = 0;
	while (f->count < REFLECTION_MAX_FILES && next_field(&set, &n, &v))
		if (n == SET_FILE)
			f->files[f->count++] = v;
}

/* A file and what it imports, each once. */
static void add_file(const struct files *f, uint32_t i, uint32_t *taken,
	Grpc__Reflection__V1__FileDescriptorResponse *out, ProtobufCBinaryData *list)
{
	struct span file = f->files[i], v;
	uint32_t n;
	if (*taken & (1u << i))
		return;
	*taken |= 1u << i;
	list[out->n_file_descriptor_proto++] = (ProtobufCBinaryData){file.bytes, (uint8_t *)file.at};
	while (next_field(&file, &n, &v)) {
		if (n != FILE_DEPENDENCY)
			continue;
		char name[REFLECTION_NAME_BYTES];
		join(name, "", v);
		for (uint32_t j = 0; j < f->count; j++)
			if (span_is(field(f->files[j], FILE_NAME), name))
				add_file(f, j, taken, out, list);
	}
}

static void reply_file(
	struct rpc_call *c, Grpc__Reflection__V1__ServerReflectionResponse *reply, const char *name, const char *symbol)
{
	struct files f;
	Grpc__Reflection__V1__FileDescriptorResponse found = GRPC__REFLECTION__V1__FILE_DESCRIPTOR_RESPONSE__INIT;
	Grpc__Reflection__V1__ErrorResponse missing = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
	ProtobufCBinaryData list[REFLECTION_MAX_FILES];
	uint32_t taken = 0;
	read_files(&f);
	for (uint32_t i = 0; i < f.count && !taken; i++)
		if (name ? span_is(field(f.files[i], FILE_NAME), name) : file_has(f.files[i], symbol))
			add_file(&f, i, &taken, &found, list);
	found.file_descriptor_proto = list;
	if (taken) {
		reply->message_response_case =
			GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
		reply->file_descriptor_response = &found;
	} else {
		missing.error_code = GRPC_STATUS_NOT_FOUND;
		missing.error_message = (char *)(name ? "no such file" : "no such symbol");
		reply->message_response_case =
			GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
		reply->error_response = &missing;
	}
	rpc_call_send(c, &reply->base);
}

static void reply_services(struct rpc_call *c, Grpc__Reflection__V1__ServerReflectionResponse *reply)
{
	struct files f;
	char names[REFLECTION_MAX_SERVICES][REFLECTION_NAME_BYTES];
	Grpc__Reflection__V1__ServiceResponse services[REFLECTION_MAX_SERVICES], *list[REFLECTION_MAX_SERVICES];
	Grpc__Reflection__V1__ListServiceResponse all = GRPC__REFLECTION__V1__LIST_SERVICE_RESPONSE__INIT;
	read_files(&f);
	for (uint32_t i = 0; i < f.count; i++) {
		char package[REFLECTION_NAME_BYTES];
		struct span file = f.files[i], v;
		uint32_t n;
		join(package, "", field(file, FILE_PACKAGE));
		while (next_field(&file, &n, &v)) {
			if (n != FILE_SERVICE || all.n_service == REFLECTION_MAX_SERVICES)
				continue;
			size_t s = all.n_service++;
			grpc__reflection__v1__service_response__init(&services[s]);
			join(names[s], package, field(v, SERVICE_NAME));
			services[s].name = names[s];
			list[s] = &services[s];
		}
	}
	all.service = list;
	reply->message_response_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
	reply->list_services_response = &all;
	rpc_call_send(c, &reply->base);
}

static void reply_error(struct rpc_call *c, Grpc__Reflection__V1__ServerReflectionResponse *reply, const char *text)
{
	Grpc__Reflection__V1__ErrorResponse e = GRPC__REFLECTION__V1__ERROR_RESPONSE__INIT;
	e.error_code = GRPC_STATUS_NOT_FOUND;
	e.error_message = (char *)text;
	reply->message_response_case =
		GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
	reply->error_response = &e;
	rpc_call_send(c, &reply->base);
}

static void reflect(struct rpc_call *c, const ProtobufCMessage *request)
{
	if (!request) {
		rpc_call_end(c);
		return;
	}
	Grpc__Reflection__V1__ServerReflectionRequest *m = (Grpc__Reflection__V1__ServerReflectionRequest *)request;
	Grpc__Reflection__V1__ServerReflectionResponse reply = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
	reply.valid_host = m->host;
	reply.original_request = m;
	switch (m->message_request_case) {
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
		reply_file(c, &reply, m->file_by_filename, NULL);
		break;
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
		reply_file(c, &reply, NULL, m->file_containing_symbol);
		break;
	case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
		reply_services(c, &reply);
		break;
	default:
		reply_error(c, &reply, "no extensions are there, and nothing else is known");
	}
}

const struct rpc_method rpc_reflection_methods[] = {
	{.path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
		.flags = RPC_BIDI,
		.request = &grpc__reflection__v1__server_reflection_request__descriptor,
		.message = reflect},
	{.path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		.flags = RPC_BIDI,
		.request = &grpc__reflection__v1__server_reflection_request__descriptor,
		.message = reflect},
};
const uint32_t rpc_reflection_methods_count = base_array_size(rpc_reflection_methods);
