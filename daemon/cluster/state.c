// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/state.h"

#include <errno.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#define FORMAT 1

/* ---- out ---- */

static void put_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

static void put_number(struct json_object *o, const char *key, uint64_t n)
{
	json_object_object_add(o, key, json_object_new_uint64(n));
}

static struct json_object *print_plan(const struct cluster_state_plan *p)
{
	struct json_object *o = json_object_new_object(), *stages = json_object_new_array();
	char digest[2 * CLUSTER_DIGEST_BYTES + 1];
	for (uint32_t i = 0; i < CLUSTER_DIGEST_BYTES; i++)
		snprintf(digest + 2 * i, 3, "%02x", p->digest[i]);
	put_text(o, "model", p->model);
	put_text(o, "digest", digest);
	for (uint32_t i = 0; i < p->stages_count; i++) {
		const struct cluster_state_stage *s = &p->stages[i];
		struct json_object *x = json_object_new_object();
		put_text(x, "node", s->node);
		put_number(x, "first_layer", s->slice.first_layer);
		put_number(x, "layers", s->slice.layers);
		put_number(x, "tp_rank", s->slice.tp_rank);
		put_number(x, "tp_size", s->slice.tp_size);
		json_object_array_add(stages, x);
	}
	json_object_object_add(o, "stages", stages);
	return o;
}

char *cluster_record_print(const struct cluster_record *r)
{
	struct json_object *o = json_object_new_object(), *nodes = json_object_new_array(),
			   *plans = json_object_new_array();
	put_number(o, "format", FORMAT);
	put_text(o, "cluster", r->cluster);
	put_text(o, "coordinator", r->coordinator);
	put_number(o, "epoch", r->epoch);
	for (uint32_t i = 0; i < r->nodes_count; i++) {
		struct json_object *x = json_object_new_object();
		put_text(x, "name", r->nodes[i].name);
		json_object_object_add(x, "draining", json_object_new_boolean(r->nodes[i].draining));
		json_object_array_add(nodes, x);
	}
	json_object_object_add(o, "nodes", nodes);
	for (uint32_t i = 0; i < r->plans_count; i++)
		json_object_array_add(plans, print_plan(&r->plans[i]));
	json_object_object_add(o, "plans", plans);
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
	char *copy = text ? strdup(text) : NULL;
	json_object_put(o);
	return copy;
}

/* ---- in ---- */

static int bad(struct base_error *e, const char *key, const char *why)
{
	return base_error_set(e, -EBADMSG, "%s: %s", key, why);
}

static int get_text(struct json_object *o, const char *key, char *out, size_t room, struct base_error *e)
{
	struct json_object *x;
	if (!json_object_object_get_ex(o, key, &x) || !json_object_is_type(x, json_type_string))
		return bad(e, key, "a text is wanted");
	size_t n = (size_t)json_object_get_string_len(x);
	if (n >= room || memchr(json_object_get_string(x), '\0', n))
		return bad(e, key, "too long");
	memcpy(out, json_object_get_string(x), n);
	out[n] = '\0';
	return 0;
}

static int get_name(struct json_object *o, const char *key, char out[static CLUSTER_NAME_BYTES], struct base_error *e)
{
	int status = get_text(o, key, out, CLUSTER_NAME_BYTES, e);
	return status ? status : cluster_name_check(key, out, e) < 0 ? -EBADMSG : 0;
}

static int get_number(struct json_object *o, const char *key, uint64_t most, uint64_t *ret, struct base_error *e)
{
	struct json_object *x;
	if (!json_object_object_get_ex(o, key, &x) || !json_object_is_type(x, json_type_int) ||
		json_object_get_int64(x) < 0)
		return bad(e, key, "a whole number is wanted");
	uint64_t v = json_object_get_uint64(x);
	if (v > most)
		return bad(e, key, "too large");
	*ret = v;
	return 0;
}

static int get_small(struct json_object *o, const char *key, uint32_t most, uint32_t *ret, struct base_error *e)
{
	uint64_t v = 0;
	int status = get_number(o, key, most, &v, e);
	if (!status)
		*ret = (uint32_t)v;
	return status;
}

static int get_list(struct json_object *o, const char *key, size_t most, struct json_object **ret, struct base_error *e)
{
	if (!json_object_object_get_ex(o, key, ret) || !json_object_is_type(*ret, json_type_array))
		return bad(e, key, "a list is wanted");
	return json_object_array_length(*ret) <= most ? 0 : bad(e, key, "too many");
}

static int get_digest(struct json_object *o, uint8_t out[static CLUSTER_DIGEST_BYTES], struct base_error *e)
{
	char text[2 * CLUSTER_DIGEST_BYTES + 1];
	int status = get_text(o, "digest", text, sizeof text, e);
	if (status)
		return status;
	if (strspn(text, "0123456789abcdef") != sizeof text - 1)
		return bad(e, "digest", "32 hexadecimal digits are wanted");
	for (uint32_t i = 0; i < CLUSTER_DIGEST_BYTES; i++) {
		unsigned byte = 0;
		(void)sscanf(text + 2 * i, "%2x", &byte);
		out[i] = (uint8_t)byte;
	}
	return 0;
}

static int parse_stage(struct json_object *o, struct cluster_state_stage *s, struct base_error *e)
{
	int status = get_name(o, "node", s->node, e);
	if (!status)
		status = get_small(o, "first_layer", UINT16_MAX, &s->slice.first_layer, e);
	if (!status)
		status = get_small(o, "layers", UINT16_MAX, &s->slice.layers, e);
	if (!status)
		status = get_small(o, "tp_rank", CLUSTER_MAX_MEMBERS, &s->slice.tp_rank, e);
	if (!status)
		status = get_small(o, "tp_size", CLUSTER_MAX_MEMBERS, &s->slice.tp_size, e);
	return status;
}

static int parse_plan(struct json_object *o, struct cluster_state_plan *p, struct base_error *e)
{
	struct json_object *stages = NULL;
	int status = get_text(o, "model", p->model, sizeof p->model, e);
	if (!status)
		status = get_digest(o, p->digest, e);
	if (!status)
		status = get_list(o, "stages", CLUSTER_MAX_STAGES, &stages, e);
	for (size_t i = 0; !status && i < json_object_array_length(stages); i++)
		status = parse_stage(json_object_array_get_idx(stages, i), &p->stages[p->stages_count++], e);
	return status;
}

static int parse_node(struct json_object *o, struct cluster_state_node *n, struct base_error *e)
{
	struct json_object *x;
	int status = get_name(o, "name", n->name, e);
	if (!status && (!json_object_object_get_ex(o, "draining", &x) || !json_object_is_type(x, json_type_boolean)))
		status = bad(e, "draining", "true or false is wanted");
	if (!status)
		n->draining = json_object_get_boolean(x);
	return status;
}

static int parse_record(struct json_object *o, struct cluster_record *r, struct base_error *e)
{
	struct json_object *nodes = NULL, *plans = NULL;
	uint64_t format;
	int status = get_number(o, "format", UINT64_MAX, &format, e);
	if (!status && format != FORMAT)
		status = bad(e, "format", "another version of thaw wrote this");
	if (!status)
		status = get_name(o, "cluster", r->cluster, e);
	if (!status)
		status = get_name(o, "coordinator", r->coordinator, e);
	if (!status)
		status = get_number(o, "epoch", INT64_MAX, &r->epoch, e);
	if (!status)
		status = get_list(o, "nodes", CLUSTER_MAX_NODES, &nodes, e);
	if (!status)
		status = get_list(o, "plans", CLUSTER_MAX_PLANS, &plans, e);
	for (size_t i = 0; !status && i < json_object_array_length(nodes); i++)
		status = parse_node(json_object_array_get_idx(nodes, i), &r->nodes[r->nodes_count++], e);
	for (size_t i = 0; !status && i < json_object_array_length(plans); i++)
		status = parse_plan(json_object_array_get_idx(plans, i), &r->plans[r->plans_count++], e);
	return status;
}

int cluster_record_parse(const char *text, size_t bytes, struct cluster_record *ret_record, struct base_error *e)
{
	struct json_tokener *t = json_tokener_new_ex(8);
	struct json_object *o = t && bytes < INT32_MAX ? json_tokener_parse_ex(t, text, (int)bytes) : NULL;
	int status;
	memset(ret_record, 0, sizeof *ret_record);
	if (!o || !json_object_is_type(o, json_type_object))
		status = base_error_set(
			e, -EBADMSG, "not a JSON object at byte %zu", t ? json_tokener_get_parse_end(t) : (size_t)0);
	else
		status = parse_record(o, ret_record, e);
	json_object_put(o);
	if (t)
		json_tokener_free(t);
	return status;
}
