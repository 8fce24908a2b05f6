// SPDX-License-Identifier: Apache-2.0
#include "daemon/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <microhttpd.h>

#include "base/address.h"
#include "base/cleanup.h"

#define MAX_CONNECTIONS 32u
#define CONNECTION_MEMORY_BYTES 16384u
#define CONNECTION_TIMEOUT_S 10u
#define BACKLOG 64

struct metrics_server {
	struct server *server;
	struct base_log *log;
	struct MHD_Daemon *http;
	uint16_t port;
};

static enum MHD_Result answer(
	struct MHD_Connection *connection, unsigned status, const char *type, char *text, size_t bytes)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(bytes, text, MHD_RESPMEM_MUST_FREE);
	if (!response) {
		free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
	enum MHD_Result r = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return r;
}

static enum MHD_Result answer_text(struct MHD_Connection *connection, unsigned status, const char *text)
{
	char *copy = strdup(text);
	return copy ? answer(connection, status, "text/plain; charset=utf-8", copy, strlen(copy)) : MHD_NO;
}

static enum MHD_Result answer_metrics(struct metrics_server *m, struct MHD_Connection *connection)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	if (!out)
		return MHD_NO;
	int r = metrics_write(m->server, out);
	bool bad = ferror(out) || r < 0;
	if (fclose(out) != 0 || bad) {
		free(text);
		return answer_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
	}
	return answer(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", text, bytes);
}

static int explain_model(const struct server_model_info *m, char *out, size_t room)
{
	if (m->phase == SERVER_PHASE_FAILED || (m->phase == SERVER_PHASE_READY && m->load.state == ENGINE_FAILED))
		return snprintf(out, room, "model %s failed: %s\n", m->name,
			m->load.failure[0] ? m->load.failure : base_error_text(&m->error));
	if (m->phase == SERVER_PHASE_READY && m->load.state != ENGINE_READY)
		return snprintf(out, room, "model %s has no rank for now: %s\n", m->name, m->load.failure);
	if (m->phase == SERVER_PHASE_READY && m->load.data_loss[0])
		return snprintf(out, room, "model %s fails its requests: %s\n", m->name, m->load.data_loss);
	return snprintf(out, room, "model %s: %s, %" PRIu64 " of %" PRIu64 " bytes\n", m->name,
		server_phase_name(m->phase), m->done_bytes, m->total_bytes);
}

// Why nothing can be answered: a line for each model.
static void explain_not_ready(struct server *s, char *out, size_t room)
{
	char worker[256];
	if (!server_draining(s) && server_worker_text(s, worker, sizeof worker)) {
		snprintf(out, room, "%s\n", worker);
		return;
	}
	_cleanup_free_ struct server_model_info *models = calloc(CONFIG_MAX_MODELS, sizeof *models);
	uint32_t count = models ? server_list_models(s, models, CONFIG_MAX_MODELS) : 0;
	if (server_draining(s) || !count) {
		snprintf(out, room, count ? "draining\n" : "no model is loaded\n");
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		int n = explain_model(&models[i], out, room);
		if (n < 0 || (size_t)n >= room)
			return;
		out += n;
		room -= (size_t)n;
	}
}

static enum MHD_Result handle(void *context, struct MHD_Connection *connection, const char *url, const char *method,
	const char *version, const char *upload, size_t *upload_bytes, void **request)
{
	struct metrics_server *m = context;
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
		return answer_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD\n");
	if (strcmp(url, "/metrics") == 0)
		return answer_metrics(m, connection);
	if (strcmp(url, "/healthz") == 0)
		return answer_text(connection, MHD_HTTP_OK, "ok\n");
	if (strcmp(url, "/readyz") == 0) {
		if (server_ready(m->server) && !server_draining(m->server))
			return answer_text(connection, MHD_HTTP_OK, "ready\n");
		char text[8192];
		explain_not_ready(m->server, text, sizeof text);
		return answer_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
	}
	return answer_text(connection, MHD_HTTP_NOT_FOUND, "try /metrics, /healthz or /readyz\n");
}

__attribute__((format(printf, 2, 0))) static void log_http(void *context, const char *fmt, va_list ap)
{
	struct metrics_server *m = context;
	char line[512];
	int n = vsnprintf(line, sizeof line, fmt, ap);
	while (n > 0 && (size_t)n < sizeof line && line[n - 1] == '\n')
		line[--n] = '\0';
	base_log_debug(m->log, "metrics: %s", line);
}

static int open_listener(const char *listen_on, uint16_t *ret_port, struct base_error *e)
{
	struct base_address address;
	struct addrinfo *list = NULL;
	int r = base_address_parse(listen_on, &address, e);
	if (r == 0)
		r = base_address_resolve(&address, &list, e);
	if (r < 0) {
		base_error_prefix(e, "listen.metrics");
		return r;
	}
	int fd = -1, code = -EADDRNOTAVAIL;
	for (struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
		fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		int on = 1;
		if (fd >= 0)
			setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
		if (fd < 0 || bind(fd, a->ai_addr, a->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
			code = -errno;
			if (fd >= 0)
				close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(list);
	if (fd < 0)
		return base_error_set(e, code, "listen.metrics: %.200s: %s", listen_on, strerrordesc_np(-code));
	struct sockaddr_storage bound;
	socklen_t length = sizeof bound;
	char port[8] = "0";
	if (getsockname(fd, (struct sockaddr *)&bound, &length) == 0)
		getnameinfo((struct sockaddr *)&bound, length, NULL, 0, port, sizeof port, NI_NUMERICSERV);
	*ret_port = (uint16_t)strtoul(port, NULL, 10);
	return fd;
}

int metrics_server_start(struct server *server, const char *listen_on, struct base_log *log,
	struct metrics_server **ret_metrics, struct base_error *e)
{
	_cleanup_free_ struct metrics_server *m = calloc(1, sizeof *m);
	if (!m)
		return base_error_set(e, -ENOMEM, "out of memory");
	m->server = server;
	m->log = log;
	int fd = open_listener(listen_on, &m->port, e);
	if (fd < 0)
		return fd;
	// Its thread must not take the signals that the daemon waits for.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	// clang-format off
	m->http = MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC | MHD_USE_ERROR_LOG,
		0, NULL, NULL, handle, m,
		MHD_OPTION_EXTERNAL_LOGGER, log_http, m,
		MHD_OPTION_LISTEN_SOCKET, fd,
		MHD_OPTION_CONNECTION_LIMIT, MAX_CONNECTIONS,
		MHD_OPTION_CONNECTION_TIMEOUT, CONNECTION_TIMEOUT_S,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY_BYTES,
		MHD_OPTION_END);
	// clang-format on
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!m->http) {
		close(fd);
		return base_error_set(e, -EIO, "listen.metrics: the HTTP server did not start");
	}
	*ret_metrics = base_steal(m);
	return 0;
}

uint16_t metrics_server_port(const struct metrics_server *m)
{
	return m->port;
}

void metrics_server_stop(struct metrics_server *m)
{
	if (!m)
		return;
	MHD_stop_daemon(m->http); // closes the listener
	free(m);
}
