// SPDX-License-Identifier: Apache-2.0
// grpc.health.v1.Health: "" is the process, thaw.v1.Inference is ready, model/NAME one model. A full queue changes none
// of them. A model whose last pass could not read its weights is not serving: the next pass reads the same.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/rpc/rpc_core.h"
#include "proto/grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving;
#define SERVING(x) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##x

static serving health_of(const struct rpc_call *c, const char *service)
{
	struct rpc_server *r = c->queue->server;
	bool up = !atomic_load(&r->stopping);
	if (!service[0])
		return up ? SERVING(SERVING) : SERVING(NOT_SERVING);
	if (strcmp(service, "thaw.v1.Inference") == 0)
		return up && !server_draining(r->daemon) && server_ready(r->daemon) ? SERVING(SERVING)
										    : SERVING(NOT_SERVING);
	if (strcmp(service, "thaw.admin.v1.Admin") == 0)
		return up && c->listener->admin ? SERVING(SERVING) : SERVING(NOT_SERVING);
	if (strncmp(service, "model/", 6))
		return SERVING(SERVICE_UNKNOWN);
	_cleanup_free_ struct server_model_info *info = calloc(1, sizeof(*info));
	if (!info || server_get_model(r->daemon, service + 6, info) < 0 || !service[6])
		return SERVING(SERVICE_UNKNOWN);
	bool ready = info->phase == SERVER_PHASE_READY && info->load.state == ENGINE_READY && !info->load.data_loss[0];
	return up && ready && !server_draining(r->daemon) ? SERVING(SERVING) : SERVING(NOT_SERVING);
}

static void check(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Grpc__Health__V1__HealthCheckRequest *m = (const Grpc__Health__V1__HealthCheckRequest *)request;
	Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
	reply.status = health_of(c, m->service);
	if (reply.status == SERVING(SERVICE_UNKNOWN)) {
		struct rpc_fault f;
		rpc_fault_set(&f, GRPC_STATUS_NOT_FOUND, "UNKNOWN_SERVICE", NULL,
			"no health of \"%.128s\": there is \"\", thaw.v1.Inference, thaw.admin.v1.Admin and model/NAME",
			m->service);
		rpc_call_fail(c, &f);
		return;
	}
	rpc_call_reply(c, &reply.base);
}

struct watch {
	serving last;
	bool told;
	char service[192];
};

static void watch_tick(struct rpc_call *c)
{
	struct watch *w = c->context;
	if (!w || c->outbox_count)
		return;
	serving now = health_of(c, w->service);
	if (!w->told || now != w->last) {
		Grpc__Health__V1__HealthCheckResponse m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
		m.status = now;
		rpc_call_send(c, &m.base);
		w->told = true;
		w->last = now;
	}
	if (atomic_load(&c->queue->server->stopping)) {
		struct rpc_fault f;
		rpc_fault_set(&f, GRPC_STATUS_UNAVAILABLE, "STOPPING", NULL, "the daemon is stopping");
		f.retry_after_ns = 1000000000;
		rpc_call_fail(c, &f);
	}
}

static void watch(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Grpc__Health__V1__HealthCheckRequest *m = (const Grpc__Health__V1__HealthCheckRequest *)request;
	struct watch *w = calloc(1, sizeof(*w));
	if (!w || strlen(m->service) >= sizeof(w->service)) {
		struct rpc_fault f;
		free(w);
		rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", "service", "service: too long a name");
		rpc_call_fail(c, &f);
		return;
	}
	snprintf(w->service, sizeof(w->service), "%s", m->service);
	c->context = w;
	watch_tick(c);
}

static void watch_free(struct rpc_call *c)
{
	free(c->context);
}

const struct rpc_method rpc_health_methods[] = {
	{.path = "/grpc.health.v1.Health/Check",
		.flags = RPC_ANYWHERE,
		.request = &grpc__health__v1__health_check_request__descriptor,
		.start = check},
	{.path = "/grpc.health.v1.Health/Watch",
		.flags = RPC_STREAM | RPC_ANYWHERE,
		.request = &grpc__health__v1__health_check_request__descriptor,
		.start = watch,
		.tick = watch_tick,
		.destroy = watch_free},
};
const uint32_t rpc_health_methods_count = base_array_size(rpc_health_methods);
