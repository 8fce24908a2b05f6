// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"

#define ADMIN_TIMEOUT_NS (30 * BASE_NS_PER_SECOND)

enum { GRPC_OK = 0, GRPC_CANCELLED = 1, GRPC_DEADLINE = 4, GRPC_NOT_FOUND = 5, GRPC_UNAVAILABLE = 14 };

int ctl_connect(struct ctl *c, struct rpc_client **ret_client)
{
	struct rpc_client_tls tls = {.ca = c->options.tls_ca, .cert = c->options.tls_cert, .key = c->options.tls_key};
	struct base_error e = {0};
	int r = rpc_client_create(c->address, tls.ca ? &tls : NULL, ret_client, &e);
	return r < 0 ? ctl_fail(c, CTL_USAGE, "%s", base_error_text(&e)) : CTL_OK;
}

int ctl_daemon_path(struct ctl *c, const char *path, char **ret_path)
{
	bool local = strncmp(c->address, "unix:", strlen("unix:")) == 0;
	const char *slash = strrchr(path, '/');
	struct stat st;
	if (path[0] == '/') { // as the daemon sees it, which may be in a container
		*ret_path = strdup(path);
		return *ret_path ? CTL_OK : ctl_fail(c, CTL_ERROR, "no memory");
	}
	if (stat(path, &st) < 0) {
		int exit = errno == ENOENT || errno == ENOTDIR ? CTL_NOT_FOUND : CTL_ERROR;
		return ctl_fail(c, exit, "%s: %s%s%s%s", path, strerrordesc_np(errno), local ? "" : "; of a file that ",
			local ? "" : c->address, local ? "" : " has, give the absolute path");
	}
	// Of the folder alone: a link to the file has the name that the model gets.
	_cleanup_free_ char *folder = slash ? strndup(path, (size_t)(slash - path)) : strdup(".");
	_cleanup_free_ char *whole = folder ? realpath(folder, NULL) : NULL;
	if (!whole || asprintf(ret_path, "%s/%s", whole[1] ? whole : "", slash ? slash + 1 : path) < 0)
		return ctl_fail(c, CTL_ERROR, "%s: %s", path, strerrordesc_np(errno));
	return CTL_OK;
}

// "Admin/GetLoad" -> "/thaw.admin.v1.Admin/GetLoad"
static void method_path(const char *method, char *out, size_t room)
{
	snprintf(out, room, "/thaw.%sv1.%s", strncmp(method, "Admin/", 6) == 0 ? "admin." : "", method);
}

static uint8_t *pack(const void *request, size_t *ret_bytes)
{
	size_t bytes = protobuf_c_message_get_packed_size(request);
	uint8_t *packed = malloc(bytes ? bytes : 1);
	if (packed)
		*ret_bytes = protobuf_c_message_pack(request, packed);
	return packed;
}

int ctl_call_quiet(struct rpc_client *client, const char *method, const void *request, uint64_t timeout_ns,
	const ProtobufCMessageDescriptor *reply_type, void *ret_reply, struct rpc_client_status *ret_status)
{
	char path[96];
	size_t bytes = 0, reply_bytes = 0;
	_cleanup_free_ uint8_t *reply = NULL;
	_cleanup_free_ uint8_t *packed = pack(request, &bytes);
	*ret_status = (struct rpc_client_status){0};
	if (!packed)
		return -ENOMEM;
	method_path(method, path, sizeof path);
	int r = rpc_client_call(client, path, packed, bytes, timeout_ns, &reply, &reply_bytes, ret_status);
	if (r < 0 || ret_status->code != GRPC_OK)
		return r;
	ProtobufCMessage *m = protobuf_c_message_unpack(reply_type, NULL, reply_bytes, reply);
	if (!m)
		return -EBADMSG;
	*(ProtobufCMessage **)ret_reply = m;
	return 0;
}

void ctl_free(void *message)
{
	if (message)
		protobuf_c_message_free_unpacked(message, NULL);
}

int ctl_exit_of(int r, const struct rpc_client_status *status)
{
	if (r == -EHOSTUNREACH)
		return CTL_UNREACHABLE;
	if (r < 0)
		return CTL_ERROR;
	if (status->code == GRPC_OK)
		return CTL_OK;
	if (status->code == GRPC_NOT_FOUND)
		return CTL_NOT_FOUND;
	if (status->code == GRPC_UNAVAILABLE)
		return CTL_DEGRADED;
	if (strcmp(status->reason, "DOES_NOT_FIT") == 0 || strcmp(status->reason, "DISK_FULL") == 0)
		return CTL_DOES_NOT_FIT;
	return CTL_ERROR;
}

int ctl_fail_status(struct ctl *c, int r, const struct rpc_client_status *status)
{
	int exit = ctl_exit_of(r, status);
	if (exit == CTL_UNREACHABLE)
		return ctl_fail(c, exit, "no daemon answers at %s%s%s", c->address, status->message[0] ? ": " : "",
			status->message);
	if (r == -EBADMSG)
		return ctl_fail(c, exit, "the reply of %s is not understood; is it another version?", c->address);
	if (r < 0)
		return ctl_fail(c, exit, "%s", strerrordesc_np(-r));
	if (status->code == GRPC_CANCELLED && ctl_interrupted(c))
		return exit;
	if (status->code == GRPC_DEADLINE && !status->reason[0])
		return ctl_fail(c, exit, "no answer in time from %s", c->address);
	if (status->retry_after_ns)
		return ctl_fail(
			c, exit, "%s (try again in %.1f s)", status->message, (double)status->retry_after_ns / 1e9);
	return ctl_fail(c, exit, "%s", status->message[0] ? status->message : "the daemon gave no reason");
}

int ctl_call(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *reply_type,
	void *ret_reply)
{
	uint64_t timeout_ns = c->options.timeout_ns;
	if (!timeout_ns && strncmp(method, "Admin/", 6) == 0)
		timeout_ns = ADMIN_TIMEOUT_NS;
	struct rpc_client_status status;
	int r = ctl_call_quiet(c->client, method, request, timeout_ns, reply_type, ret_reply, &status);
	return r < 0 || status.code != GRPC_OK ? ctl_fail_status(c, r, &status) : CTL_OK;
}

int ctl_show(struct ctl *c, void *reply, void (*print)(struct ctl *c, const void *reply))
{
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		ctl_json_merge(o, ctl_json_message(reply));
		ctl_json_print(c, o);
	} else {
		print(c, reply);
	}
	ctl_free(reply);
	return CTL_OK;
}

int ctl_call_show(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *reply_type,
	void (*print)(struct ctl *c, const void *reply))
{
	void *reply = NULL;
	int r = ctl_call(c, method, request, reply_type, &reply);
	return r == CTL_OK ? ctl_show(c, reply, print) : r;
}

int ctl_stream_open(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *type,
	struct ctl_stream *ret_stream)
{
	char path[96];
	size_t bytes = 0;
	_cleanup_free_ uint8_t *packed = pack(request, &bytes);
	if (!packed)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	method_path(method, path, sizeof path);
	*ret_stream = (struct ctl_stream){.ctl = c, .type = type};
	int r = rpc_client_stream_open(c->client, path, packed, bytes, c->options.timeout_ns, &ret_stream->stream);
	if (r < 0)
		return ctl_fail(c, CTL_ERROR, "%s", strerrordesc_np(-r));
	ctl_interrupt_watch(c, ret_stream->stream);
	return CTL_OK;
}

int ctl_stream_next(struct ctl_stream *s, void *ret_message)
{
	const uint8_t *data;
	size_t bytes;
	int r = rpc_client_stream_next(s->stream, &data, &bytes, &s->status);
	if (r == 1) {
		ProtobufCMessage *m = protobuf_c_message_unpack(s->type, NULL, bytes, data);
		if (m) {
			*(ProtobufCMessage **)ret_message = m;
			return 1;
		}
		r = -EBADMSG;
	}
	s->code = r;
	if (r == 0 && s->status.code == GRPC_OK)
		return 0;
	return -(s->quiet ? ctl_exit_of(r, &s->status) : ctl_fail_status(s->ctl, r, &s->status));
}

void ctl_stream_close(struct ctl_stream *s)
{
	ctl_interrupt_watch(s->ctl, NULL);
	rpc_client_stream_close(s->stream);
	s->stream = NULL;
}
