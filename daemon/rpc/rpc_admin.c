// SPDX-License-Identifier: Apache-2.0
// thaw.admin.v1.Admin
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/rpc/rpc.h"
#include "daemon/rpc/rpc_convert.h"
#include "daemon/rpc/rpc_core.h"
#include "daemon/rpc/rpc_trace.h"

#define ADMIN_EVENTS 8u // read at once; a message each, and the outbox holds them

static struct server *daemon_of(const struct rpc_call *c)
{
	return c->queue->server->daemon;
}

static void *admin_alloc(struct rpc_call *c, size_t count, size_t bytes)
{
	void *p = calloc(count, bytes);
	struct rpc_fault f;
	if (!p) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the reply");
		rpc_call_fail(c, &f);
	}
	return p;
}

/* Over TLS an operator has a name: what is changed is logged with it. */
static void log_change(const struct rpc_call *c, const char *what, const char *name)
{
	char who[128];
	rpc_call_identity(c, who, sizeof(who));
	base_log_notice(
		c->queue->server->log, "admin: %s%s%s by=%s", what, name[0] ? " " : "", name, who[0] ? who : "unix");
}

static int log_level(const struct rpc_call *c)
{
	struct base_log *log = c->queue->server->log;
	return log ? atomic_load(&log->level) : 0;
}

static void get_server_info(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct server *daemon = daemon_of(c);
	Thaw__Admin__V1__GetServerInfoReply m = THAW__ADMIN__V1__GET_SERVER_INFO_REPLY__INIT;
	_cleanup_free_ struct server_model_info *infos = admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*infos));
	if (!infos)
		return;
	m.models = server_list_models(daemon, infos, CONFIG_MAX_MODELS);
	for (uint32_t i = 0; i < m.models && i < CONFIG_MAX_MODELS; i++)
		if (infos[i].load.epoch > m.epoch)
			m.epoch = infos[i].load.epoch;
	m.version = (char *)THAW_VERSION;
	m.host = (char *)server_machine(daemon)->host;
	m.pid = (uint32_t)getpid();
	m.started_wall_ns = server_started_wall_ns(daemon);
	m.now_wall_ns = base_clock_wall_ns();
	m.memory_bytes = server_memory_bytes(daemon);
	m.ready = server_ready(daemon);
	m.draining = server_draining(daemon);
	m.log_level = (char *)base_log_level_name(log_level(c));
	m.grpc_version = (char *)grpc_version_string();
	m.store_path = (char *)server_config(daemon)->store.path;
	rpc_call_reply(c, &m.base);
}

/* One model, or all of them for "". Returns how many, or -1 when the call has failed. */
static int find_models(struct rpc_call *c, const char *name, struct server_model_info *infos)
{
	if (name[0])
		return rpc_convert_find_model(c, name, infos) < 0 ? -1 : 1;
	uint32_t n = server_list_models(daemon_of(c), infos, CONFIG_MAX_MODELS);
	return n < CONFIG_MAX_MODELS ? (int)n : (int)CONFIG_MAX_MODELS;
}

static bool find_histograms(struct rpc_call *c, const struct server_model_info *i, struct engine_histograms *out)
{
	const struct server_model *model;
	uint64_t retry_ns;
	if (i->phase != SERVER_PHASE_READY || server_acquire_model(daemon_of(c), i->name, &model, &retry_ns, NULL) < 0)
		return false;
	engine_get_histograms(model->engine, out);
	server_release_model(daemon_of(c), model);
	return true;
}

static void get_load(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__GetLoadRequest *m = (const Thaw__Admin__V1__GetLoadRequest *)request;
	Thaw__Admin__V1__GetLoadReply reply = THAW__ADMIN__V1__GET_LOAD_REPLY__INIT;
	Thaw__Admin__V1__ModelLoad *list[CONFIG_MAX_MODELS];
	_cleanup_free_ struct server_model_info *infos = admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*infos));
	_cleanup_free_ struct rpc_convert_load *loads =
		infos ? admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*loads)) : NULL;
	int count = loads ? find_models(c, m->model, infos) : -1;
	if (count < 0)
		return;
	for (int i = 0; i < count; i++) {
		struct engine_histograms h;
		bool known = find_histograms(c, &infos[i], &h);
		rpc_convert_load(&infos[i], known ? &h : NULL, server_machine(daemon_of(c)), &loads[i]);
		list[i] = &loads[i].load;
	}
	reply.n_models = (size_t)count;
	reply.models = list;
	reply.wall_ns = base_clock_wall_ns();
	rpc_call_reply(c, &reply.base);
}

static void get_placement(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__GetPlacementRequest *m = (const Thaw__Admin__V1__GetPlacementRequest *)request;
	Thaw__Admin__V1__GetPlacementReply reply = THAW__ADMIN__V1__GET_PLACEMENT_REPLY__INIT;
	Thaw__Admin__V1__Placement *list[CONFIG_MAX_MODELS];
	_cleanup_free_ struct server_model_info *infos = admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*infos));
	_cleanup_free_ struct rpc_convert_placement *places =
		infos ? admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*places)) : NULL;
	int count = places ? find_models(c, m->model, infos) : -1;
	if (count < 0)
		return;
	for (int i = 0; i < count; i++) {
		rpc_convert_placement(&infos[i], server_machine(daemon_of(c)), &places[i]);
		list[i] = &places[i].placement;
	}
	reply.n_placements = (size_t)count;
	reply.placements = list;
	rpc_call_reply(c, &reply.base);
	for (int i = 0; i < count; i++)
		rpc_convert_placement_finish(&places[i]);
}

static int check_path(struct rpc_call *c, const char *path)
{
	struct rpc_fault f;
	if (path[0] == '/' && strlen(path) < CONFIG_TEXT_BYTES)
		return 0;
	rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", "path",
		"path: an absolute path of at most %u bytes is wanted, as the daemon sees it", CONFIG_TEXT_BYTES - 1);
	rpc_call_fail(c, &f);
	return -1;
}

static void fail_from(struct rpc_call *c, int r, const struct base_error *e, const char *field)
{
	struct rpc_fault f;
	rpc_fault_from(&f, r, e, 0, field);
	rpc_call_fail(c, &f);
}

static void plan_placement(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__PlanPlacementRequest *m = (const Thaw__Admin__V1__PlanPlacementRequest *)request;
	Thaw__Admin__V1__PlanPlacementReply reply = THAW__ADMIN__V1__PLAN_PLACEMENT_REPLY__INIT;
	struct base_error e = {0};
	if (check_path(c, m->path) < 0)
		return;
	_cleanup_free_ struct server_model_info *info = admin_alloc(c, 1, sizeof(*info));
	_cleanup_free_ struct rpc_convert_placement *place = info ? admin_alloc(c, 1, sizeof(*place)) : NULL;
	if (!place)
		return;
	int r = server_check_map(daemon_of(c), m->device_map, &e);
	if (r < 0) {
		fail_from(c, r, &e, "device_map");
		return;
	}
	r = server_plan_model(daemon_of(c), m->path, m->device_map, m->weights_bytes, m->kv_bytes, info, &e);
	if (r < 0) {
		fail_from(c, r, &e, "path");
		return;
	}
	rpc_convert_placement(info, server_machine(daemon_of(c)), place);
	reply.placement = &place->placement;
	rpc_call_reply(c, &reply.base);
	rpc_convert_placement_finish(place);
}

/* LoadModel: starts the loading, then looks at the model at every tick. */

struct loading {
	char name[128];
	enum server_phase phase;
	uint64_t done_bytes;
	bool told;
};

static void load_model(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__LoadModelRequest *m = (const Thaw__Admin__V1__LoadModelRequest *)request;
	struct base_error e = {0};
	if (check_path(c, m->path) < 0)
		return;
	_cleanup_free_ struct config_model *model = admin_alloc(c, 1, sizeof(*model));
	if (!model)
		return;
	if (strlen(m->name) >= sizeof(model->name) || strlen(m->chat_template) >= sizeof(model->chat_template)) {
		bool name = strlen(m->name) >= sizeof(model->name);
		base_error_set(&e, -EINVAL, "%s: too long", name ? "name" : "chat_template");
		fail_from(c, -EINVAL, &e, name ? "name" : "chat_template");
		return;
	}
	snprintf(model->name, sizeof(model->name), "%s", m->name);
	snprintf(model->path, sizeof(model->path), "%s", m->path);
	snprintf(model->chat_template, sizeof(model->chat_template), "%s", m->chat_template);
	if (config_model_finish(model, &e) < 0) {
		fail_from(c, -EINVAL, &e, "path");
		return;
	}
	struct loading *l = admin_alloc(c, 1, sizeof(*l));
	if (!l)
		return;
	snprintf(l->name, sizeof(l->name), "%s", model->name);
	c->context = l;
	log_change(c, "load", model->path);
	int r = server_load_model(daemon_of(c), model, &e);
	if (r < 0)
		fail_from(c, r, &e, "path");
}

static void load_tick(struct rpc_call *c)
{
	struct loading *l = c->context;
	struct base_error e = {0};
	if (!l || c->outbox_count) // a reader that is slow gets fewer messages
		return;
	_cleanup_free_ struct server_model_info *info = admin_alloc(c, 1, sizeof(*info));
	if (!info)
		return;
	if (server_get_model(daemon_of(c), l->name, info) < 0) {
		base_error_set(&e, -ECANCELED, "%s was unloaded before it was ready", l->name);
		fail_from(c, -ECANCELED, &e, NULL);
		return;
	}
	if (info->phase == SERVER_PHASE_FAILED) {
		fail_from(c, info->error.code ? info->error.code : -EIO, &info->error, "path");
		return;
	}
	bool ready = info->phase == SERVER_PHASE_READY;
	if (ready || !l->told || info->phase != l->phase || info->done_bytes != l->done_bytes) {
		Thaw__Admin__V1__LoadModelProgress m = THAW__ADMIN__V1__LOAD_MODEL_PROGRESS__INIT;
		m.model = info->name;
		m.phase = (char *)server_phase_name(info->phase);
		m.done_bytes = info->done_bytes;
		m.total_bytes = info->total_bytes;
		m.eta_ns = info->eta_ns;
		rpc_call_send(c, &m.base);
		*l = (struct loading){.phase = info->phase, .done_bytes = info->done_bytes, .told = true};
		snprintf(l->name, sizeof(l->name), "%s", info->name);
	}
	if (ready)
		rpc_call_end(c);
}

static void context_free(struct rpc_call *c)
{
	free(c->context);
}

static void unload_model(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__UnloadModelRequest *m = (const Thaw__Admin__V1__UnloadModelRequest *)request;
	Thaw__Admin__V1__UnloadModelReply reply = THAW__ADMIN__V1__UNLOAD_MODEL_REPLY__INIT;
	struct base_error e = {0};
	log_change(c, "unload", m->name);
	int r = server_unload_model(daemon_of(c), m->name, &e);
	if (r < 0)
		fail_from(c, r, &e, "name");
	else
		rpc_call_reply(c, &reply.base);
}

/* Drain. */

struct draining {
	Thaw__Admin__V1__DrainProgress last;
	bool told, no_wait;
};

static void drain_tick(struct rpc_call *c)
{
	struct draining *d = c->context;
	if (!d || c->outbox_count)
		return;
	Thaw__Admin__V1__DrainProgress m = THAW__ADMIN__V1__DRAIN_PROGRESS__INIT;
	_cleanup_free_ struct server_model_info *infos = admin_alloc(c, CONFIG_MAX_MODELS, sizeof(*infos));
	if (!infos)
		return;
	uint32_t count = server_list_models(daemon_of(c), infos, CONFIG_MAX_MODELS);
	for (uint32_t i = 0; i < count && i < CONFIG_MAX_MODELS; i++) {
		m.running += infos[i].load.running;
		m.waiting += infos[i].load.waiting;
	}
	bool end = d->no_wait || m.running + m.waiting == 0;
	if (end || !d->told || m.running != d->last.running || m.waiting != d->last.waiting)
		rpc_call_send(c, &m.base);
	d->last = m;
	d->told = true;
	if (end) {
		rpc_call_end(c);
	} else if (!server_draining(daemon_of(c))) {
		struct base_error e = {0};
		base_error_set(
			&e, -ECANCELED, "the drain was taken back while %u requests were left", m.running + m.waiting);
		fail_from(c, -ECANCELED, &e, NULL);
	}
}

static void drain(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__DrainRequest *m = (const Thaw__Admin__V1__DrainRequest *)request;
	struct draining *d = admin_alloc(c, 1, sizeof(*d));
	if (!d)
		return;
	d->no_wait = m->no_wait;
	c->context = d;
	log_change(c, "drain", "");
	server_drain(daemon_of(c), true);
	rpc_server_update_health(c->queue->server);
}

static void undrain(struct rpc_call *c, const ProtobufCMessage *request)
{
	Thaw__Admin__V1__UndrainReply reply = THAW__ADMIN__V1__UNDRAIN_REPLY__INIT;
	log_change(c, "undrain", "");
	server_drain(daemon_of(c), false);
	rpc_server_update_health(c->queue->server);
	rpc_call_reply(c, &reply.base);
}

/* WatchEvents. */

struct watching {
	uint64_t after;
	bool no_wait;
};

static void events_tick(struct rpc_call *c)
{
	struct watching *w = c->context;
	if (!w)
		return;
	uint32_t count = 0;
	do {
		struct server_event events[ADMIN_EVENTS];
		uint32_t room = RPC_OUTBOX - c->outbox_count;
		room = room < ADMIN_EVENTS ? room : ADMIN_EVENTS;
		count = room ? server_read_events(daemon_of(c), w->after, events, room, 0) : 0;
		for (uint32_t i = 0; i < count; i++) {
			Thaw__Admin__V1__Event m = THAW__ADMIN__V1__EVENT__INIT;
			m.sequence = w->after = events[i].sequence;
			m.wall_ns = events[i].wall_ns;
			m.severity = events[i].severity;
			m.kind = events[i].kind;
			m.model = events[i].model;
			m.text = events[i].text;
			rpc_call_send(c, &m.base);
		}
	} while (count);
	if (c->outbox_count < RPC_OUTBOX && (w->no_wait || atomic_load(&c->queue->server->stopping)))
		rpc_call_end(c);
}

static void watch_events(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__WatchEventsRequest *m = (const Thaw__Admin__V1__WatchEventsRequest *)request;
	struct watching *w = admin_alloc(c, 1, sizeof(*w));
	if (!w)
		return;
	*w = (struct watching){m->after, m->no_wait};
	c->context = w;
	events_tick(c);
}

static void set_log_level(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Admin__V1__SetLogLevelRequest *m = (const Thaw__Admin__V1__SetLogLevelRequest *)request;
	Thaw__Admin__V1__SetLogLevelReply reply = THAW__ADMIN__V1__SET_LOG_LEVEL_REPLY__INIT;
	struct base_log *log = c->queue->server->log;
	enum base_log_level level;
	struct base_error e = {0};
	if (base_log_parse_level(m->level, &level) < 0) {
		base_error_set(&e, -EINVAL, "level: error, warning, notice, info or debug is wanted");
		fail_from(c, -EINVAL, &e, "level");
		return;
	}
	reply.previous = (char *)base_log_level_name(log_level(c));
	log_change(c, "log level", m->level);
	if (log)
		atomic_store(&log->level, (int)level);
	rpc_call_reply(c, &reply.base);
}

static void reload_config(struct rpc_call *c, const ProtobufCMessage *request)
{
	Thaw__Admin__V1__ReloadConfigReply reply = THAW__ADMIN__V1__RELOAD_CONFIG_REPLY__INIT;
	struct base_error e = {0};
	char text[BASE_ERROR_BYTES] = "";
	log_change(c, "reload", "");
	int r = server_reload(daemon_of(c), text, sizeof(text), &e);
	reply.text = text;
	if (r < 0)
		fail_from(c, r == -ETIMEDOUT ? r : -EINVAL, &e, "config");
	else
		rpc_call_reply(c, &reply.base);
}

#define ADMIN(name, type, more, ...)                                                                                   \
	{                                                                                                              \
		.path = "/thaw.admin.v1.Admin/" name, .request = &thaw__admin__v1__##type##__descriptor,               \
		.flags = RPC_ADMIN | (more), __VA_ARGS__                                                               \
	}

const struct rpc_method rpc_admin_methods[] = {
	ADMIN("GetServerInfo", get_server_info_request, RPC_WORKER, .start = get_server_info),
	ADMIN("GetLoad", get_load_request, 0, .start = get_load),
	ADMIN("GetTopology", get_topology_request, 0, .start = rpc_admin_get_topology),
	ADMIN("GetPlacement", get_placement_request, 0, .start = get_placement),
	ADMIN("PlanPlacement", plan_placement_request, RPC_WORKER, .start = plan_placement),
	ADMIN("LoadModel", load_model_request, RPC_STREAM | RPC_WORKER, .start = load_model, .tick = load_tick,
		.destroy = context_free),
	ADMIN("UnloadModel", unload_model_request, RPC_WORKER, .start = unload_model),
	ADMIN("Drain", drain_request, RPC_STREAM | RPC_WORKER, .start = drain, .tick = drain_tick,
		.destroy = context_free),
	ADMIN("Undrain", undrain_request, RPC_WORKER, .start = undrain),
	ADMIN("WatchEvents", watch_events_request, RPC_STREAM, .start = watch_events, .tick = events_tick,
		.destroy = context_free),
	ADMIN("GetNodes", get_nodes_request, 0, .start = rpc_admin_get_nodes),
	ADMIN("DrainNode", drain_node_request, RPC_WORKER, .start = rpc_admin_drain_node),
	ADMIN("StartTrace", start_trace_request, 0, .start = rpc_trace_start),
	ADMIN("StopTrace", stop_trace_request, RPC_STREAM, .start = rpc_trace_stop, .next = rpc_trace_next,
		.destroy = rpc_trace_destroy),
	ADMIN("SetLogLevel", set_log_level_request, 0, .start = set_log_level),
	ADMIN("ReloadConfig", reload_config_request, RPC_WORKER, .start = reload_config),
};
const uint32_t rpc_admin_methods_count = base_array_size(rpc_admin_methods);
