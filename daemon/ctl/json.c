// SPDX-License-Identifier: Apache-2.0
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/ctl/ctl.h"

struct json_object *ctl_json_new(void)
{
	struct json_object *o = json_object_new_object();
	json_object_object_add(o, "schema_version", json_object_new_int(CTL_SCHEMA_VERSION));
	return o;
}

static struct json_object *real(double v, int digits)
{
	if (!isfinite(v))
		return NULL;
	char text[40];
	snprintf(text, sizeof text, "%.*g", digits, v);
	return json_object_new_double_s(v, text);
}

struct json_object *ctl_json_real(double v)
{
	return real(v, 9);
}

// MODEL_PHASE_READY of enum ModelPhase -> "ready": what all names of the enum begin with is left out.
static struct json_object *enum_name(const ProtobufCEnumDescriptor *d, int v)
{
	const ProtobufCEnumValue *value = protobuf_c_enum_descriptor_get_value(d, v);
	if (!value)
		return json_object_new_int(v);
	size_t common = strlen(d->values[0].name);
	for (unsigned i = 1; i < d->n_values; i++) {
		size_t n = 0;
		while (n < common && d->values[i].name[n] == d->values[0].name[n])
			n++;
		common = n;
	}
	while (common > 0 && d->values[0].name[common - 1] != '_')
		common--;
	char text[64];
	size_t at = 0;
	for (const char *p = value->name + common; *p && at + 1 < sizeof text; p++)
		text[at++] = (char)tolower((unsigned char)*p);
	text[at] = '\0';
	// FINISH_REASON_UNSPECIFIED stands alone beside LENGTH and STOP.
	const char *end = strstr(text, "_unspecified");
	return json_object_new_string(end || strcmp(text, "unspecified") == 0 ? "unspecified" : text);
}

static struct json_object *base64(const ProtobufCBinaryData *b)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *text = malloc(b->len / 3 * 4 + 5), *at = text;
	if (!text)
		return NULL;
	for (size_t i = 0; i < b->len; i += 3) {
		size_t left = b->len - i;
		uint32_t v = (uint32_t)b->data[i] << 16 | (left > 1 ? (uint32_t)b->data[i + 1] << 8 : 0) |
			     (left > 2 ? b->data[i + 2] : 0);
		*at++ = alphabet[v >> 18];
		*at++ = alphabet[v >> 12 & 63];
		*at++ = left > 1 ? alphabet[v >> 6 & 63] : '=';
		*at++ = left > 2 ? alphabet[v & 63] : '=';
	}
	struct json_object *o = json_object_new_string_len(text, (int)(at - text));
	free(text);
	return o;
}

static size_t value_bytes(ProtobufCType type)
{
	switch (type) {
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	default:
		return 4;
	}
}

static struct json_object *one_value(const ProtobufCFieldDescriptor *f, const void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		return json_object_new_int(*(const int32_t *)at);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		return json_object_new_int64(*(const uint32_t *)at);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return json_object_new_int64(*(const int64_t *)at);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return json_object_new_uint64(*(const uint64_t *)at);
	case PROTOBUF_C_TYPE_FLOAT:
		return real((double)*(const float *)at, 9);
	case PROTOBUF_C_TYPE_DOUBLE:
		return real(*(const double *)at, 17);
	case PROTOBUF_C_TYPE_BOOL:
		return json_object_new_boolean(*(const protobuf_c_boolean *)at);
	case PROTOBUF_C_TYPE_ENUM:
		return enum_name(f->descriptor, *(const int32_t *)at);
	case PROTOBUF_C_TYPE_STRING: {
		const char *text = *(const char *const *)at;
		return json_object_new_string(text ? text : "");
	}
	case PROTOBUF_C_TYPE_BYTES:
		return base64(at);
	case PROTOBUF_C_TYPE_MESSAGE: {
		const void *m = *(const void *const *)at;
		return m ? ctl_json_message(m) : NULL;
	}
	}
	return NULL;
}

struct json_object *ctl_json_message(const void *message)
{
	const ProtobufCMessage *m = message;
	struct json_object *o = json_object_new_object();
	for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		const char *at = (const char *)m + f->offset, *quantifier = (const char *)m + f->quantifier_offset;
		if (f->label == PROTOBUF_C_LABEL_REPEATED) {
			size_t n = *(const size_t *)quantifier;
			const char *values = *(const char *const *)at;
			struct json_object *list = json_object_new_array_ext((int)n);
			for (size_t v = 0; v < n; v++)
				json_object_array_add(list, one_value(f, values + v * value_bytes(f->type)));
			json_object_object_add(o, f->name, list);
		} else if (!(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) || *(const uint32_t *)quantifier == f->id) {
			json_object_object_add(o, f->name, one_value(f, at));
		}
	}
	return o;
}

void ctl_json_merge(struct json_object *into, struct json_object *from)
{
	json_object_object_foreach(from, key, value)
	{
		json_object_object_add(into, key, json_object_get(value));
	}
	json_object_put(from);
}

int ctl_json_print(struct ctl *c, struct json_object *o)
{
	fprintf(c->out, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE));
	json_object_put(o);
	return CTL_OK;
}

int ctl_json_line(struct ctl *c, struct json_object *o)
{
	fprintf(c->out, "%s\n",
		json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE));
	fflush(c->out);
	json_object_put(o);
	return CTL_OK;
}
