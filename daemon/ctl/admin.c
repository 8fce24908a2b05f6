// SPDX-License-Identifier: Apache-2.0
// status, models, load, unload, drain, undrain, reload, events.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"

static const char *phase_name(Thaw__V1__ModelPhase p)
{
	static const char *const names[] = {"queued", "digest", "pack", "load", "ready", "failed", "unloaded"};
	return p < base_array_size(names) ? names[p] : "?";
}

static int list_models(struct ctl *c, Thaw__V1__ListModelsReply **ret_reply)
{
	Thaw__V1__ListModelsRequest request = THAW__V1__LIST_MODELS_REQUEST__INIT;
	return ctl_call(c, "Inference/ListModels", &request, &thaw__v1__list_models_reply__descriptor, ret_reply);
}

static void print_models(struct ctl *c, const void *message)
{
	const Thaw__V1__ListModelsReply *reply = message;
	static const struct ctl_column columns[] = {{"MODEL", false, false}, {"STATE", false, false},
		{"ARCH", false, false}, {"LAYERS", true, false}, {"CONTEXT", true, false}, {"WEIGHTS", true, false},
		{"VOCAB", true, true}, {"CHAT", false, true}, {"DIGEST", false, true}, {"PATH", false, true},
		{"DETAIL", false, false}};
	struct ctl_table t;
	char size[CTL_SIZE_BYTES];
	ctl_table_init(&t, columns, base_array_size(columns));
	for (size_t i = 0; i < reply->n_models; i++) {
		const Thaw__V1__Model *m = reply->models[i];
		ctl_table_cell(&t, "%s", m->name);
		bool failing = m->phase == THAW__V1__MODEL_PHASE__MODEL_PHASE_READY && m->error[0];
		ctl_table_cell(&t, "%s", failing ? "degraded" : phase_name(m->phase));
		ctl_table_cell(&t, "%s", m->architecture[0] ? m->architecture : "-");
		ctl_table_cell(&t, "%" PRIu32, m->layers);
		ctl_table_cell(&t, "%" PRIu32, m->context_tokens);
		ctl_table_cell(&t, "%s", ctl_size(m->weights_bytes, size));
		ctl_table_cell(&t, "%" PRIu32, m->vocabulary_tokens);
		ctl_table_cell(&t, "%s", m->chat_template);
		ctl_table_cell(&t, "%s", m->digest);
		ctl_table_cell(&t, "%s", m->path);
		bool busy = m->phase < THAW__V1__MODEL_PHASE__MODEL_PHASE_READY && m->total_bytes;
		if (busy)
			ctl_table_cell(&t, "%.0f %%", 100.0 * (double)m->done_bytes / (double)m->total_bytes);
		else
			ctl_table_cell(&t, "%s", m->error);
	}
	ctl_table_print(&t, c);
}

int ctl_verb_models(struct ctl *c)
{
	Thaw__V1__ListModelsReply *reply = NULL;
	int r = list_models(c, &reply);
	return r == CTL_OK ? ctl_show(c, reply, print_models) : r;
}

static void print_status(
	struct ctl *c, const Thaw__Admin__V1__GetServerInfoReply *info, const Thaw__V1__ListModelsReply *models)
{
	char size[CTL_SIZE_BYTES], up[CTL_SIZE_BYTES];
	bool failing = false;
	for (size_t i = 0; i < models->n_models; i++)
		failing |= models->models[i]->error[0] != '\0';
	const char *state = info->draining ? "draining" : !info->ready ? "not ready" : failing ? "degraded" : "ready";
	double seconds = info->now_wall_ns > info->started_wall_ns
				 ? (double)(info->now_wall_ns - info->started_wall_ns) / 1e9
				 : 0;
	fprintf(c->out, "thawd %s on %s: %s, up %s, memory %s, pid %" PRIu32 "\n", info->version, info->host, state,
		ctl_seconds(seconds, up), ctl_size(info->memory_bytes, size), info->pid);
	if (c->output == CTL_OUTPUT_WIDE)
		fprintf(c->out, "store %s, epoch %" PRIu64 ", log level %s, gRPC %s, %s\n", info->store_path,
			info->epoch, info->log_level, info->grpc_version, c->address);
	if (models->n_models)
		print_models(c, models);
}

int ctl_verb_status(struct ctl *c)
{
	Thaw__Admin__V1__GetServerInfoRequest request = THAW__ADMIN__V1__GET_SERVER_INFO_REQUEST__INIT;
	Thaw__Admin__V1__GetServerInfoReply *info = NULL;
	Thaw__V1__ListModelsReply *models = NULL;
	int r = ctl_call(
		c, "Admin/GetServerInfo", &request, &thaw__admin__v1__get_server_info_reply__descriptor, &info);
	if (r == CTL_OK)
		r = list_models(c, &models);
	if (r == CTL_OK) {
		bool degraded = !info->ready || info->draining;
		for (size_t i = 0; i < models->n_models; i++)
			degraded |= models->models[i]->error[0] != '\0'; // failed, or its requests do
		if (c->output == CTL_OUTPUT_JSON) {
			struct json_object *o = ctl_json_new();
			json_object_object_add(o, "server", ctl_json_message(info));
			ctl_json_merge(o, ctl_json_message(models));
			json_object_object_add(o, "degraded", json_object_new_boolean(degraded));
			ctl_json_print(c, o);
		} else {
			print_status(c, info, models);
		}
		r = degraded ? CTL_DEGRADED : CTL_OK;
	}
	ctl_free(info);
	ctl_free(models);
	return r;
}

static int print_loaded(struct ctl *c, const char *model, const char *phase)
{
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "model", json_object_new_string(model));
		json_object_object_add(o, "phase", json_object_new_string(phase));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "%s: %s\n", model, phase);
	return CTL_OK;
}

int ctl_verb_load(struct ctl *c)
{
	_cleanup_free_ char *path = NULL;
	int r = ctl_daemon_path(c, c->args[0], &path);
	if (r != CTL_OK)
		return r;
	Thaw__Admin__V1__LoadModelRequest request = THAW__ADMIN__V1__LOAD_MODEL_REQUEST__INIT;
	request.path = path;
	if (c->options.name)
		request.name = (char *)c->options.name;
	if (c->options.chat_template)
		request.chat_template = (char *)c->options.chat_template;
	struct ctl_stream s;
	r = ctl_stream_open(c, "Admin/LoadModel", &request, &thaw__admin__v1__load_model_progress__descriptor, &s);
	if (r != CTL_OK)
		return r;
	struct ctl_progress progress = {.ctl = c};
	char model[192] = "", phase[32] = "";
	s.quiet = true;
	for (Thaw__Admin__V1__LoadModelProgress *m; (r = ctl_stream_next(&s, &m)) == 1; ctl_free(m)) {
		snprintf(model, sizeof model, "%s", m->model);
		snprintf(phase, sizeof phase, "%s", m->phase);
		ctl_progress_show(&progress, m->phase, m->done_bytes, m->total_bytes, m->eta_ns);
		if (c->options.no_wait) {
			ctl_free(m);
			r = 0;
			break;
		}
	}
	ctl_progress_end(&progress);
	if (r < 0)
		r = ctl_fail_status(c, s.code, &s.status);
	else
		r = print_loaded(c, model, phase);
	ctl_stream_close(&s);
	if (ctl_interrupted(c))
		ctl_say(c, "thawctl: the daemon goes on loading; thawctl unload %s gives up", model);
	return r;
}

int ctl_verb_unload(struct ctl *c)
{
	Thaw__Admin__V1__UnloadModelRequest request = THAW__ADMIN__V1__UNLOAD_MODEL_REQUEST__INIT;
	Thaw__Admin__V1__UnloadModelReply *reply = NULL;
	request.name = (char *)c->args[0];
	int r = ctl_call(c, "Admin/UnloadModel", &request, &thaw__admin__v1__unload_model_reply__descriptor, &reply);
	ctl_free(reply);
	return r == CTL_OK ? print_loaded(c, c->args[0], "unloaded") : r;
}

static void print_reloaded(struct ctl *c, const void *message)
{
	fprintf(c->out, "%s\n", ((const Thaw__Admin__V1__ReloadConfigReply *)message)->text);
}

int ctl_verb_reload(struct ctl *c)
{
	Thaw__Admin__V1__ReloadConfigRequest request = THAW__ADMIN__V1__RELOAD_CONFIG_REQUEST__INIT;
	return ctl_call_show(
		c, "Admin/ReloadConfig", &request, &thaw__admin__v1__reload_config_reply__descriptor, print_reloaded);
}

static int print_state(struct ctl *c, const char *state)
{
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "state", json_object_new_string(state));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "%s\n", state);
	return CTL_OK;
}

int ctl_verb_drain(struct ctl *c)
{
	Thaw__Admin__V1__DrainRequest request = THAW__ADMIN__V1__DRAIN_REQUEST__INIT;
	if (c->args_count) {
		int status = ctl_drain_node(c, c->args[0], true);
		return status == CTL_OK ? print_state(c, c->options.no_wait ? "draining" : "drained") : status;
	}
	request.no_wait = c->options.no_wait;
	struct ctl_stream s;
	int r = ctl_stream_open(c, "Admin/Drain", &request, &thaw__admin__v1__drain_progress__descriptor, &s);
	if (r != CTL_OK)
		return r;
	uint32_t left = 0, shown = UINT32_MAX;
	for (Thaw__Admin__V1__DrainProgress *m; (r = ctl_stream_next(&s, &m)) == 1; ctl_free(m)) {
		left = m->running + m->waiting;
		if (left != shown && left)
			ctl_say(c, "%" PRIu32 " running, %" PRIu32 " waiting", m->running, m->waiting);
		shown = left;
	}
	ctl_stream_close(&s);
	return r < 0 ? -r : print_state(c, left ? "draining" : "drained");
}

int ctl_verb_undrain(struct ctl *c)
{
	Thaw__Admin__V1__UndrainRequest request = THAW__ADMIN__V1__UNDRAIN_REQUEST__INIT;
	if (c->args_count) {
		int status = ctl_drain_node(c, c->args[0], false);
		return status == CTL_OK ? print_state(c, "serving") : status;
	}
	Thaw__Admin__V1__UndrainReply *reply = NULL;
	int r = ctl_call(c, "Admin/Undrain", &request, &thaw__admin__v1__undrain_reply__descriptor, &reply);
	ctl_free(reply);
	return r == CTL_OK ? print_state(c, "serving") : r;
}

static void print_event(struct ctl *c, const Thaw__Admin__V1__Event *e)
{
	char when[40] = "";
	time_t seconds = (time_t)(e->wall_ns / BASE_NS_PER_SECOND);
	struct tm tm;
	if (localtime_r(&seconds, &tm))
		strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S", &tm);
	fprintf(c->out, "%6" PRIu64 "  %s.%03u  %-8s %-16s %s%s%s\n", e->sequence, when,
		(unsigned)(e->wall_ns / 1000000 % 1000), e->severity, e->kind, e->model, e->model[0] ? ": " : "",
		e->text);
	fflush(c->out);
}

int ctl_verb_events(struct ctl *c)
{
	Thaw__Admin__V1__WatchEventsRequest request = THAW__ADMIN__V1__WATCH_EVENTS_REQUEST__INIT;
	request.after = c->options.after;
	request.no_wait = c->options.watch_ns == 0;
	struct ctl_stream s;
	int r = ctl_stream_open(c, "Admin/WatchEvents", &request, &thaw__admin__v1__event__descriptor, &s);
	if (r != CTL_OK)
		return r;
	for (Thaw__Admin__V1__Event *e; (r = ctl_stream_next(&s, &e)) == 1; ctl_free(e)) {
		if (c->output == CTL_OUTPUT_JSON) { // one object on each line: the stream has no end
			struct json_object *o = ctl_json_new();
			ctl_json_merge(o, ctl_json_message(e));
			ctl_json_line(c, o);
		} else {
			print_event(c, e);
		}
	}
	ctl_stream_close(&s);
	return ctl_interrupted(c) ? CTL_OK : -r;
}
