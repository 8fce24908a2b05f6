// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/rpc/fixture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

int fixture_open(struct fixture *f, const struct fake_options *options)
{
	struct fake_options o = options ? *options : (struct fake_options){0};
	struct base_error e = {0};
	memset(f, 0, sizeof(*f));
	snprintf(f->directory, sizeof(f->directory), "/tmp/thaw-rpc-XXXXXX");
	if (!mkdtemp(f->directory))
		return -1;
	snprintf(f->socket, sizeof(f->socket), "%s/thaw.sock", f->directory);
	snprintf(f->address, sizeof(f->address), "unix:%s", f->socket);
	o.socket = f->socket;
	base_log_init(&f->log, "test", BASE_LOG_ERROR);
	f->daemon = fake_server_create(&o);
	f->fake = fake_of(f->daemon);
	if (rpc_server_start(f->daemon, &f->log, &f->rpc, &e) < 0) {
		fprintf(stderr, "%s\n", base_error_text(&e));
		return -1;
	}
	return rpc_client_create(f->address, NULL, &f->client, &e);
}

void fixture_close(struct fixture *f)
{
	char lock[128];
	rpc_client_destroy(f->client);
	rpc_server_stop(f->rpc, 1000000000);
	fake_server_destroy(f->daemon);
	snprintf(lock, sizeof(lock), "%s.lock", f->socket);
	unlink(lock);
	rmdir(f->directory);
}

int fixture_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	*state = f;
	return f ? fixture_open(f, NULL) : -1;
}

int fixture_teardown(void **state)
{
	fixture_close(*state);
	free(*state);
	return 0;
}

ProtobufCMessage *fixture_call(struct rpc_client *c, const char *method, const ProtobufCMessage *request,
	const ProtobufCMessageDescriptor *reply, struct rpc_client_status *ret_status)
{
	uint8_t *packed = malloc(protobuf_c_message_get_packed_size(request) + 1), *bytes = NULL;
	size_t n = protobuf_c_message_pack(request, packed), got = 0;
	memset(ret_status, 0, sizeof(*ret_status));
	int r = rpc_client_call(c, method, packed, n, FIXTURE_TIMEOUT_NS, &bytes, &got, ret_status);
	free(packed);
	ProtobufCMessage *m = r == 0 && bytes ? protobuf_c_message_unpack(reply, NULL, got, bytes) : NULL;
	free(bytes);
	return m;
}

struct rpc_client_stream *fixture_stream(
	struct rpc_client *c, const char *method, const ProtobufCMessage *request, uint64_t timeout_ns)
{
	struct rpc_client_stream *s = NULL;
	uint8_t *packed = malloc(protobuf_c_message_get_packed_size(request) + 1);
	size_t n = protobuf_c_message_pack(request, packed);
	int r = rpc_client_stream_open(c, method, packed, n, timeout_ns, &s);
	free(packed);
	return r == 0 ? s : NULL;
}

ProtobufCMessage *fixture_next(
	struct rpc_client_stream *s, const ProtobufCMessageDescriptor *d, struct rpc_client_status *ret_status)
{
	const uint8_t *bytes;
	size_t n;
	return rpc_client_stream_next(s, &bytes, &n, ret_status) == 1 ? protobuf_c_message_unpack(d, NULL, n, bytes)
								      : NULL;
}

bool fixture_wait(atomic_uint *count, unsigned want)
{
	uint64_t end = base_clock_now_ns() + FIXTURE_TIMEOUT_NS;
	while (atomic_load(count) != want && base_clock_now_ns() < end)
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	return atomic_load(count) == want;
}
