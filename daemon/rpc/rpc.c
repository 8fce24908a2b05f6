// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/rpc/rpc_core.h"

#define RPC_KEEPALIVE_MS 60000
#define RPC_KEEPALIVE_TIMEOUT_MS 20000
#define RPC_PING_INTERVAL_MS 10000 // clients that ping more often are told to go away
#define RPC_CANCEL_NS (10 * BASE_NS_PER_SECOND) // after cancelling, for engines to hand calls back

static void on_down(struct rpc_tag *tag, bool ok)
{
	struct rpc_listener *l = base_container_of(tag, struct rpc_listener, tag_down);
	atomic_store(&l->down, true);
}

static int add_methods(struct rpc_server *r)
{
	const struct {
		const struct rpc_method *methods;
		uint32_t count;
	} services[] = {
		{rpc_inference_methods, rpc_inference_methods_count},
		{rpc_admin_methods, rpc_admin_methods_count},
		{rpc_node_methods, rpc_node_methods_count},
		{rpc_health_methods, rpc_health_methods_count},
		{rpc_reflection_methods, rpc_reflection_methods_count},
	};
	for (size_t s = 0; s < base_array_size(services); s++) {
		for (uint32_t m = 0; m < services[s].count; m++) {
			if (r->methods_count == RPC_MAX_METHODS)
				return -ENOBUFS;
			r->methods[r->methods_count++] = &services[s].methods[m];
		}
	}
	return 0;
}

static int add_listener(struct rpc_server *r, bool admin, bool node)
{
	grpc_arg args[] = {
		rpc_arg_int(RPC_ARG_COMPRESSIONS, RPC_COMPRESSIONS_IDENTITY),
		rpc_arg_int(GRPC_ARG_ALLOW_REUSEPORT, 0),
		rpc_arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)RPC_MAX_MESSAGE_BYTES),
		rpc_arg_int(GRPC_ARG_MAX_CONCURRENT_STREAMS, RPC_MAX_STREAMS),
		rpc_arg_int(GRPC_ARG_MAX_METADATA_SIZE, RPC_MAX_METADATA_BYTES),
		rpc_arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, RPC_PING_INTERVAL_MS),
		rpc_arg_int(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2),
		rpc_arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, RPC_KEEPALIVE_MS),
		rpc_arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, RPC_KEEPALIVE_TIMEOUT_MS),
		rpc_arg_int(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
		rpc_arg_int(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10000),
		rpc_arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
	};
	const grpc_channel_args channel_args = {base_array_size(args), args};
	struct rpc_listener *l = &r->listeners[r->listeners_count++];
	l->server = r;
	l->admin = admin;
	l->node = node;
	l->tag_down = (struct rpc_tag){on_down, NULL};
	l->grpc = grpc_server_create(&channel_args, NULL);
	for (uint32_t i = 0; i < RPC_QUEUES; i++)
		grpc_server_register_completion_queue(l->grpc, r->queues[i].grpc, NULL);
	for (uint32_t m = 0; m < r->methods_count; m++) {
		l->registered[m] = grpc_server_register_method(l->grpc, r->methods[m]->path, NULL,
			r->methods[m]->flags & RPC_BIDI ? GRPC_SRM_PAYLOAD_NONE
							: GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER,
			0);
		if (!l->registered[m])
			return -EINVAL;
	}
	return 0;
}

/* Half-built servers too. No calls are left. */
static void server_free(struct rpc_server *r)
{
	rpc_listen_stop(r);
	for (uint32_t i = 0; i < r->listeners_count; i++)
		grpc_server_destroy(r->listeners[i].grpc);
	rpc_worker_destroy(r->worker);
	rpc_worker_destroy(r->reader);
	for (uint32_t i = 0; i < RPC_QUEUES; i++)
		rpc_queue_stop(&r->queues[i]);
	if (r->lame)
		grpc_channel_destroy(r->lame);
	rpc_listen_finish(r);
	rpc_grpc_finish();
	free(r);
}

static int server_build(struct rpc_server *r, struct base_error *e)
{
	r->lame = grpc_lame_client_channel_create("thaw", GRPC_STATUS_CANCELLED, "for waking only");
	for (uint32_t i = 0; i < RPC_QUEUES; i++)
		if (rpc_queue_create(r, &r->queues[i]) < 0)
			return base_error_set(e, -ENOMEM, "no memory for a gRPC queue");
	if (add_methods(r) < 0 || add_listener(r, true, false) < 0 || add_listener(r, false, false) < 0 ||
		add_listener(r, false, true) < 0)
		return base_error_set(e, -EINVAL, "gRPC does not take a method");
	int status = rpc_worker_create(&r->worker);
	if (status == 0)
		status = rpc_worker_create(&r->reader);
	if (status < 0)
		return base_error_set(e, status, "no thread for the gRPC server");
	return rpc_listen_start(r, e);
}

int rpc_server_start(struct server *server, struct base_log *log, struct rpc_server **ret_rpc, struct base_error *e)
{
	struct rpc_server *r = calloc(1, sizeof(*r));
	if (!r)
		return base_error_set(e, -ENOMEM, "no memory for the gRPC server");
	r->daemon = server;
	r->log = log;
	r->stall_ns = RPC_STALL_NS;
	sigset_t all, before; // our threads take no signals either
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rpc_grpc_init();
	int status = server_build(r, e);
	if (status == 0) {
		for (uint32_t i = 0; i < r->listeners_count; i++)
			grpc_server_start(r->listeners[i].grpc);
		for (uint32_t i = 0; i < r->listeners_count; i++)
			rpc_listener_arm(&r->listeners[i]);
		for (uint32_t i = 0; i < RPC_QUEUES && status == 0; i++)
			status = rpc_queue_run(&r->queues[i], e);
		if (status == 0)
			status = rpc_listen_accept(r, e);
		if (status < 0) {
			rpc_server_stop(r, 0);
			r = NULL;
		}
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (status < 0) {
		if (r)
			server_free(r);
		return status;
	}
	*ret_rpc = r;
	return 0;
}

static bool all_down(const struct rpc_server *r)
{
	for (uint32_t i = 0; i < r->listeners_count; i++)
		if (!atomic_load(&r->listeners[i].down))
			return false;
	return true;
}

static bool wait_until(struct rpc_server *r, uint64_t ns, bool (*met)(const struct rpc_server *r))
{
	uint64_t until = base_clock_now_ns() + ns;
	while (!met(r)) {
		if (base_clock_now_ns() >= until)
			return false;
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	}
	return true;
}

static bool all_gone(const struct rpc_server *r)
{
	return all_down(r) && atomic_load(&r->calls_all) == 0;
}

bool rpc_server_stop(struct rpc_server *r, uint64_t grace_ns)
{
	if (!r)
		return true;
	atomic_store(&r->stopping, true);
	rpc_server_update_health(r);
	rpc_listen_stop(r);
	for (uint32_t i = 0; i < r->listeners_count; i++)
		grpc_server_shutdown_and_notify(
			r->listeners[i].grpc, r->queues[0].grpc, rpc_tag_started(&r->listeners[i].tag_down));
	if (!wait_until(r, grace_ns, all_down)) {
		base_log_notice(r->log, "rpc: %u calls are cancelled", atomic_load(&r->calls_open));
		for (uint32_t i = 0; i < r->listeners_count; i++)
			grpc_server_cancel_all_calls(r->listeners[i].grpc);
	}
	if (!wait_until(r, RPC_CANCEL_NS, all_gone)) {
		/* Somebody still holds a call: freeing it under them would be worse than leaving it to the exit that
		 * follows. */
		base_log_error(r->log, "rpc: %u calls were not handed back", atomic_load(&r->calls_all));
		return false;
	}
	server_free(r);
	return true;
}

void rpc_server_update_health(struct rpc_server *r)
{
	for (uint32_t i = 0; i < RPC_QUEUES; i++) {
		atomic_store(&r->queues[i].tick_now, true);
		rpc_queue_wake(&r->queues[i]);
	}
}

uint16_t rpc_server_tcp_port(const struct rpc_server *r)
{
	return rpc_listen_tcp_port(r);
}

uint16_t rpc_server_cluster_port(const struct rpc_server *r)
{
	return rpc_listen_cluster_port(r);
}
