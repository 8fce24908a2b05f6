// SPDX-License-Identifier: Apache-2.0
// device_map: the modes that are not searched for, and what is wrong with a map, by name.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "topology/fleet/internal.h"

static const char *const map_names[] = {"auto", "balanced", "sequential", "explicit"};
static const char *const tier_names[] = {"auto", "device", "host", "nvme"};

int fleet_map_find(const char *name, enum fleet_map *ret_map)
{
	for (size_t i = 0; i < base_array_size(map_names); i++) {
		if (strcmp(name, map_names[i]) == 0) {
			*ret_map = (enum fleet_map)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *fleet_map_name(enum fleet_map m)
{
	return (unsigned)m < base_array_size(map_names) ? map_names[m] : "?";
}

int fleet_map_parse_tier(const char *text, enum fleet_tier *ret_tier, struct base_error *e)
{
	for (size_t i = 0; i < base_array_size(tier_names); i++) {
		if (strcmp(text, tier_names[i]) == 0) {
			*ret_tier = (enum fleet_tier)i;
			return 0;
		}
	}
	return base_error_set(e, -EINVAL, "tier \"%.40s\" is none of auto, device, host, nvme", text);
}

const char *fleet_tier_name(enum fleet_tier t)
{
	return (unsigned)t < base_array_size(tier_names) ? tier_names[t] : "?";
}

static bool parse_number(const char **at, uint32_t *ret)
{
	uint32_t v = 0;
	const char *p = *at;
	for (; *p >= '0' && *p <= '9' && p - *at < 9; p++)
		v = v * 10 + (uint32_t)(*p - '0');
	bool any = p != *at;
	*at = p;
	*ret = v;
	return any;
}

int fleet_map_parse_modules(const char *text, uint32_t layers, struct fleet_map_entry *ret, struct base_error *e)
{
	struct fleet_map_entry x = {.module = FLEET_MODULE_LAYERS, .last_layer = layers ? layers - 1 : 0};
	const char *name = strncmp(text, "model.", 6) == 0 ? text + 6 : text;
	if (strcmp(name, "embed") == 0 || strcmp(name, "embed_tokens") == 0) {
		x.module = FLEET_MODULE_EMBED;
	} else if (strcmp(name, "head") == 0 || strcmp(name, "lm_head") == 0 || strcmp(name, "norm") == 0) {
		x.module = FLEET_MODULE_HEAD;
	} else if (name[0] && strcmp(name, "layers") != 0) {
		const char *at = name + 7;
		bool ok = strncmp(name, "layers.", 7) == 0 && parse_number(&at, &x.first_layer);
		x.last_layer = x.first_layer;
		if (ok && *at == '-') {
			at++;
			ok = parse_number(&at, &x.last_layer);
		}
		if (!ok || *at)
			return base_error_set(e, -EINVAL,
				"device_map: module \"%.60s\" is none of embed, layers.N, layers.N-M, head", text);
		if (x.first_layer > x.last_layer || x.last_layer >= layers)
			return base_error_set(e, -EINVAL, "device_map: %.60s: the model has layers 0 to %" PRIu32, text,
				layers ? layers - 1 : 0);
	}
	ret->module = x.module;
	ret->first_layer = x.first_layer;
	ret->last_layer = x.last_layer;
	return 0;
}

/* ---- what any map must hold to ---- */

static int check_entry(const struct fleet_input *in, const struct fleet_map_entry *x, struct base_error *e)
{
	uint32_t layers = in->model->layers_count;
	if (x->module == FLEET_MODULE_LAYERS && (x->first_layer > x->last_layer || x->last_layer >= layers))
		return base_error_set(e, -EINVAL,
			"device_map: layers %" PRIu32 "-%" PRIu32 ": the model has layers 0 to %" PRIu32,
			x->first_layer, x->last_layer, layers - 1);
	if (x->devices_count > FLEET_TP)
		return base_error_set(e, -EINVAL, "device_map: more than %u devices for one layer", FLEET_TP);
	for (uint32_t i = 0; i < x->devices_count; i++) {
		if (x->devices[i] >= in->devices_count)
			return base_error_set(
				e, -EINVAL, "device_map: there is no device number %" PRIu32, x->devices[i]);
		for (uint32_t k = 0; k < i; k++) {
			if (x->devices[k] == x->devices[i])
				return base_error_set(e, -EINVAL,
					"device_map: %s is named twice for layers %" PRIu32 "-%" PRIu32,
					in->devices[x->devices[i]].name, x->first_layer, x->last_layer);
		}
	}
	if (in->map == FLEET_MAP_AUTO && x->devices_count > 1)
		return base_error_set(e, -EINVAL, "a pin names one device");
	if (in->map == FLEET_MAP_EXPLICIT && x->devices_count == 0)
		return base_error_set(e, -EINVAL, "device_map: an entry without a device");
	return 0;
}

int fleet_map_check(const struct fleet_input *in, struct base_error *e)
{
	if (in->entries_count > FLEET_ENTRIES)
		return base_error_set(e, -E2BIG, "device_map: more than %u entries", FLEET_ENTRIES);
	for (uint32_t i = 0; i < in->entries_count; i++) {
		int r = check_entry(in, &in->entries[i], e);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- explicit ---- */

static bool same_devices(const struct fleet_map_entry *a, const struct fleet_map_entry *b)
{
	return a->devices_count == b->devices_count &&
	       memcmp(a->devices, b->devices, a->devices_count * sizeof *a->devices) == 0;
}

static const char *device_name(const struct fleet_work *f, const struct fleet_map_entry *x)
{
	return f->in->devices[x->devices[0]].name;
}

// Which entry has each layer.
static int own_layers(const struct fleet_work *f, const struct fleet_map_entry **owner, struct base_error *e)
{
	for (uint32_t i = 0; i < f->in->entries_count; i++) {
		const struct fleet_map_entry *x = &f->in->entries[i];
		for (uint32_t l = x->first_layer; x->module == FLEET_MODULE_LAYERS && l <= x->last_layer; l++) {
			if (owner[l])
				return base_error_set(e, -EINVAL, "device_map: layer %" PRIu32 " is on %s and on %s", l,
					device_name(f, owner[l]), device_name(f, x));
			owner[l] = x;
		}
	}
	for (uint32_t l = 0; l < f->layers; l++) {
		if (owner[l])
			continue;
		uint32_t last = l;
		while (last + 1 < f->layers && !owner[last + 1])
			last++;
		return base_error_set(
			e, -EINVAL, "device_map: layers %" PRIu32 "-%" PRIu32 " are on no device", l, last);
	}
	return 0;
}

static int check_tp(const struct fleet_work *f, const struct fleet_map_entry *x, struct base_error *e)
{
	char reason[192];
	if (x->devices_count > 1 && !fleet_tp_possible(f->in->model, x->devices_count, reason, sizeof reason))
		return base_error_set(e, -EINVAL,
			"device_map: layers %" PRIu32 "-%" PRIu32 " on %" PRIu32 " devices, tensor parallel: %s",
			x->first_layer, x->last_layer, x->devices_count, reason);
	return 0;
}

// Rows of the embedding are looked up by the first stage, logits computed by the last.
static int check_ends(const struct fleet_work *f, const struct fleet_map_entry *const *owner, struct base_error *e)
{
	for (uint32_t i = 0; i < f->in->entries_count; i++) {
		const struct fleet_map_entry *x = &f->in->entries[i];
		if (x->module == FLEET_MODULE_LAYERS)
			continue;
		bool head = x->module == FLEET_MODULE_HEAD;
		const struct fleet_map_entry *with = owner[head ? f->layers - 1 : 0];
		if (!same_devices(x, with))
			return base_error_set(e, -EINVAL,
				"device_map: %s is on %s, but it goes with layer %" PRIu32 ", on %s",
				head ? "head" : "embed", device_name(f, x), head ? f->layers - 1 : 0,
				device_name(f, with));
	}
	return 0;
}

static int check_contiguous(
	const struct fleet_work *f, const struct fleet_cut *stages, uint32_t count, struct base_error *e)
{
	_cleanup_free_ uint32_t *stage_of = calloc(f->in->devices_count, sizeof *stage_of);
	if (!stage_of)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	for (uint32_t i = 0; i < count; i++) {
		for (uint32_t t = 0; t < stages[i].tp; t++) {
			uint32_t d = stages[i].devices[t], before = stage_of[d];
			if (before)
				return base_error_set(e, -EINVAL,
					"device_map: %s has layers %" PRIu32 "-%" PRIu32 " and %" PRIu32 "-%" PRIu32
					": a device has one run of layers, with the same partners",
					f->in->devices[d].name, stages[before - 1].first, stages[before - 1].end - 1,
					stages[i].first, stages[i].end - 1);
			stage_of[d] = i + 1;
		}
	}
	return 0;
}

// sizes: there is a model beyond its number of layers.
static int cut(
	const struct fleet_work *f, bool sizes, struct fleet_cut *ret_stages, uint32_t *ret_count, struct base_error *e)
{
	const struct fleet_map_entry *owner[FLEET_LAYERS] = {NULL};
	uint32_t count = 0;
	int r = own_layers(f, owner, e);
	if (r == 0)
		r = check_ends(f, owner, e);
	for (uint32_t l = 0; l < f->layers && r == 0; l++) {
		if (l && same_devices(owner[l], owner[l - 1])) {
			ret_stages[count - 1].end = l + 1;
			continue;
		}
		r = sizes ? check_tp(f, owner[l], e) : 0;
		struct fleet_cut *s = &ret_stages[count++];
		*s = (struct fleet_cut){.first = l, .end = l + 1, .tp = owner[l]->devices_count};
		memcpy(s->devices, owner[l]->devices, sizeof s->devices);
	}
	if (r == 0)
		r = check_contiguous(f, ret_stages, count, e);
	if (r == 0)
		*ret_count = count;
	return r;
}

int fleet_map_explicit(
	const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count, struct base_error *e)
{
	return cut(f, true, ret_stages, ret_count, e);
}

int fleet_map_check_layers(const struct fleet_input *in, uint32_t layers, struct base_error *e)
{
	const struct fleet_model model = {.layers_count = layers};
	struct fleet_input given = *in;
	struct fleet_work f = {.given = &given, .in = &given, .layers = layers};
	_cleanup_free_ struct fleet_cut *stages = calloc(FLEET_STAGES, sizeof *stages);
	uint32_t count = 0;
	if (!stages)
		return base_error_set(e, -ENOMEM, "plan: out of memory");
	if (layers == 0 || layers > FLEET_LAYERS)
		return base_error_set(e, -EINVAL, "plan: a model of 1 to %u layers is needed", FLEET_LAYERS);
	given.model = &model;
	given.map = FLEET_MAP_EXPLICIT;
	int r = fleet_map_check(&given, e);
	return r == 0 ? cut(&f, false, stages, &count, e) : r;
}

/* ---- balanced and sequential ---- */

// Memory that a device would use with everything hot, to what it has; or one sequence's KV cache to the device's
// budget for it, where that is too small: no stage can run without it.
static double fullness(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end, uint32_t tp)
{
	struct topology_plan_input in;
	fleet_share_input(f, device, first, end, tp, f->kv_blocks, &in);
	double used = (double)in.weights_all_bytes + (double)in.kv_budget_bytes + (double)in.workspace_bytes;
	double full = used / ((double)in.memory_bytes + 1), budget = (double)f->in->devices[device].kv_budget_bytes;
	double kv = budget > 0 ? (double)in.kv_budget_bytes / budget : 0;
	return kv > 1 && kv > full ? kv : full;
}

// A stage is a device, or as many in a row as tp_least says. What is left over is left out.
static uint32_t ranks_of_stage(const struct fleet_work *f)
{
	uint32_t tp = f->in->tp_least > 1 ? f->in->tp_least : 1;
	return tp < FLEET_TP ? tp : FLEET_TP;
}

static struct fleet_cut stage_of(const struct fleet_work *f, uint32_t number, uint32_t first, uint32_t end)
{
	struct fleet_cut s = {.first = first, .end = end, .tp = ranks_of_stage(f)};
	for (uint32_t t = 0; t < s.tp; t++)
		s.devices[t] = number * s.tp + t;
	return s;
}

static double fullest(const struct fleet_work *f, const struct fleet_cut *s)
{
	double most = 0;
	for (uint32_t t = 0; t < s->tp; t++) {
		double x = fullness(f, s->devices[t], s->first, s->end, s->tp);
		most = x > most ? x : most;
	}
	return most;
}

// Runs of which none is fuller than most; false if layers are left. Each stage gets at least one.
static bool deal(const struct fleet_work *f, uint32_t count, double most, struct fleet_cut *stages)
{
	uint32_t first = 0;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t left = count - 1 - i;
		struct fleet_cut s = stage_of(f, i, first, first + 2);
		while (s.end <= f->layers - left && fullest(f, &s) <= most)
			s.end++;
		s.end--;
		stages[i] = s;
		if (fullest(f, &s) > most)
			return false;
		first = s.end;
	}
	return first == f->layers;
}

void fleet_map_balanced(const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count)
{
	uint32_t count = f->in->devices_count / ranks_of_stage(f);
	double low = 0, high = 1;
	count = count < f->layers ? count : f->layers;
	while (!deal(f, count, high, ret_stages) && high < 1e18)
		high *= 2;
	for (unsigned i = 0; i < 50; i++) {
		double middle = (low + high) / 2;
		if (deal(f, count, middle, ret_stages))
			high = middle;
		else
			low = middle;
	}
	deal(f, count, high, ret_stages);
	*ret_count = count;
}

void fleet_map_sequential(const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count)
{
	uint32_t first = 0, count = 0, groups = f->in->devices_count / ranks_of_stage(f);
	for (uint32_t i = 0; i < groups && first < f->layers; i++) {
		struct fleet_cut s = stage_of(f, i, first, first + 1);
		while (s.end <= f->layers && fullest(f, &s) <= 1)
			s.end++;
		s.end--;
		if (s.end == first && i + 1 < groups)
			continue; // not even one layer
		if (i + 1 == groups)
			s.end = f->layers; // what is left is streamed there
		ret_stages[count++] = s;
		first = s.end;
	}
	*ret_count = count;
}
