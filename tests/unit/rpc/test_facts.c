// SPDX-License-Identifier: Apache-2.0
// What is known of gRPC-core 1.51, each with what a user would notice if it were forgotten.
#include "tests/lib/testing.h"

#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/rpc/rpc_core.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"
#include "tests/lib/wait.h"
#include "tests/unit/rpc/fixture.h"

#define STREAM "/thaw.v1.Inference/GenerateStream"
#define WATCH "/grpc.health.v1.Health/Watch"

static void release(void *m)
{
	protobuf_c_message_free_unpacked(m, NULL);
}

static size_t pack_ask(uint32_t tokens, uint8_t *out)
{
	Thaw__V1__GenerateRequest q = THAW__V1__GENERATE_REQUEST__INIT;
	Thaw__V1__Prompt p = THAW__V1__PROMPT__INIT;
	Thaw__V1__Stopping s = THAW__V1__STOPPING__INIT;
	p.source_case = THAW__V1__PROMPT__SOURCE_TEXT;
	p.text = (char *)"abcd";
	s.max_new_tokens = tokens;
	q.prompt = &p;
	q.stopping = &s;
	return thaw__v1__generate_request__pack(&q, out);
}

static struct rpc_client_stream *ask(struct fixture *f, uint32_t tokens)
{
	uint8_t packed[256];
	struct rpc_client_stream *s = NULL;
	size_t n = pack_ask(tokens, packed);
	rpc_client_stream_open(f->client, STREAM, packed, n, FIXTURE_TIMEOUT_NS, &s);
	return s;
}

/* Reads to the end; returns how many messages there were. */
static uint32_t drain(struct rpc_client_stream *s, struct rpc_client_status *status)
{
	const uint8_t *m;
	size_t n;
	uint32_t count = 0;
	while (rpc_client_stream_next(s, &m, &n, status) == 1)
		count++;
	rpc_client_stream_close(s);
	return count;
}

static bool serves(struct fixture *f)
{
	struct rpc_client_status s = {.code = -1};
	uint32_t n = drain(ask(f, 3), &s);
	return s.code == 0 && n >= 4;
}

static void unknown_methods_are_answered_every_time(void **state)
{
	struct fixture *f = *state;
	for (int i = 0; i < 5; i++) {
		struct rpc_client_status s;
		uint8_t *reply;
		size_t n;
		assert_int_equal(rpc_client_call(f->client, "/thaw.v1.Inference/Dream", "", 0, FIXTURE_TIMEOUT_NS,
					 &reply, &n, &s),
			0);
		assert_int_equal(s.code, GRPC_STATUS_UNIMPLEMENTED);
		assert_string_equal(s.reason, "UNKNOWN_METHOD");
		assert_non_null(strstr(s.message, "Dream"));
	}
}

static void malformed_and_bad_text_are_named(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *bytes;
		size_t n;
		const char *reason, *field;
	} cases[] = {
		{"\x0a\xff", 2, "MALFORMED", ""}, // a length beyond the end
		{"\x0b", 1, "MALFORMED", ""}, // a group
		{"\x1a\x04\x0a\x02\xc3\x28", 6, "NOT_UTF8", "prompt.text"},
		{"\x1a\x05\x0a\x03\x61\x00\x62", 7, "NOT_UTF8", "prompt.text"}, // NUL in it
		{"\x0a\x02\xed\xa0", 4, "NOT_UTF8", "request_id"}, // a surrogate
	};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct rpc_client_status s;
		uint8_t *reply;
		size_t n;
		assert_int_equal(rpc_client_call(f->client, "/thaw.v1.Inference/Generate", cases[i].bytes, cases[i].n,
					 FIXTURE_TIMEOUT_NS, &reply, &n, &s),
			0);
		assert_int_equal(s.code, GRPC_STATUS_INVALID_ARGUMENT);
		assert_string_equal(s.reason, cases[i].reason);
		assert_string_equal(s.field, cases[i].field);
	}
	assert_true(serves(f));
}

/* A buffered write that nothing follows would sit there: tokens come out while the engine pauses, the first one too. */
static void tokens_do_not_wait_for_those_after_them(void **state)
{
	struct fixture *f = *state;
	const uint8_t *m;
	size_t n;
	struct rpc_client_status s;
	atomic_store(&f->fake->pause_after, 3);
	struct rpc_client_stream *stream = ask(f, 10);
	for (int i = 0; i < 4; i++) // prompt info and three tokens
		assert_int_equal(rpc_client_stream_next(stream, &m, &n, &s), 1);
	atomic_store(&f->fake->pause_after, 0);
	drain(stream, &s);
	assert_int_equal(s.code, 0);
}

[[maybe_unused]] static void a_reader_far_behind_ends_with_resource_exhausted(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	struct rpc_client_stream *stream = ask(f, UINT32_MAX); // as fast as it goes, and nobody reads
	assert_true(fixture_wait(&f->fake->submitted, 1));
	assert_true(fixture_wait(&f->fake->ended, 1)); // the engine was told, and works for nobody
	drain(stream, &s);
	assert_int_equal(s.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
	assert_true(serves(f));
}

[[maybe_unused]] static void a_stalled_reader_is_cancelled_after_a_time(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	f->rpc->stall_ns = 500000000;
	atomic_store(&f->fake->paced, true); // the engine waits for room, so nothing overruns: only time can tell
	struct rpc_client_stream *stream = ask(f, UINT32_MAX);
	assert_true(fixture_wait(&f->fake->submitted, 1));
	assert_true(fixture_wait(&f->fake->models_held, 0));
	assert_int_equal(atomic_load(&f->fake->aborts), 1);
	drain(stream, &s);
	assert_int_equal(s.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
	assert_true(serves(f));
}

static void a_message_beyond_the_limit_is_refused(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	uint8_t *reply, *big = calloc(1, 17u << 20);
	size_t n;
	assert_int_equal(rpc_client_call(f->client, "/thaw.v1.Inference/Tokenize", big, 17u << 20, FIXTURE_TIMEOUT_NS,
				 &reply, &n, &s),
		0);
	assert_int_equal(s.code, GRPC_STATUS_RESOURCE_EXHAUSTED);
	free(big);
	assert_true(serves(f));
}

/* Two bytes on the wire are an empty message in a list, and a struct in memory. */
[[maybe_unused]] static void a_message_that_unfolds_is_refused(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	const size_t bytes = 8u << 20;
	uint8_t *reply, *p = malloc(bytes + 16);
	size_t n;
	/* prompt { chat { messages {} messages {} ... } } */
	static const uint8_t head[] = {0x12, 0x87, 0x80, 0x80, 0x04, 0x1a, 0x82, 0x80, 0x80, 0x04};
	memcpy(p, head, sizeof(head));
	const size_t inner = 0x800002;
	for (size_t i = 0; i < inner; i += 2)
		memcpy(p + sizeof(head) + i, "\x0a", 2);
	assert_int_equal(rpc_client_call(f->client, "/thaw.v1.Inference/Tokenize", p, sizeof(head) + inner,
				 FIXTURE_TIMEOUT_NS, &reply, &n, &s),
		0);
	assert_int_equal(s.code, GRPC_STATUS_INVALID_ARGUMENT);
	assert_string_equal(s.reason, "TOO_LONG");
	free(p);
	assert_true(serves(f));
}

/* One call by hand, for what the client does not do. */
[[maybe_unused]] static int call_compressed(const char *address, grpc_slice message, char *text, size_t room)
{
	grpc_arg args[] = {{.type = GRPC_ARG_INTEGER,
				   .key = (char *)GRPC_COMPRESSION_CHANNEL_DEFAULT_ALGORITHM,
				   .value.integer = GRPC_COMPRESS_GZIP},
		rpc_arg_int(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1)};
	grpc_channel_args channel_args = {base_array_size(args), args};
	grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
	grpc_channel *channel = grpc_channel_create(address, credentials, &channel_args);
	grpc_channel_credentials_release(credentials);
	grpc_completion_queue *q = grpc_completion_queue_create_for_next(NULL);
	gpr_timespec deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(60, GPR_TIMESPAN));
	grpc_call *call = grpc_channel_create_call(channel, NULL, GRPC_PROPAGATE_DEFAULTS, q,
		grpc_slice_from_static_string("/thaw.v1.Inference/Tokenize"), NULL, deadline, NULL);
	grpc_metadata_array initial, trailing;
	grpc_metadata_array_init(&initial);
	grpc_metadata_array_init(&trailing);
	grpc_status_code status = GRPC_STATUS_OK;
	grpc_slice details = grpc_empty_slice();
	grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&message, 1), *reply = NULL;
	grpc_op ops[] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
		{.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer},
		{.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
		{.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &initial},
		{.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &reply},
		{.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
			.data.recv_status_on_client = {
				.trailing_metadata = &trailing, .status = &status, .status_details = &details}}};
	grpc_call_start_batch(call, ops, base_array_size(ops), NULL, NULL);
	rpc_queue_next(q, gpr_inf_future(GPR_CLOCK_REALTIME));
	snprintf(text, room, "%.*s", (int)GRPC_SLICE_LENGTH(details), (const char *)GRPC_SLICE_START_PTR(details));
	grpc_byte_buffer_destroy(buffer);
	if (reply)
		grpc_byte_buffer_destroy(reply);
	grpc_slice_unref(details);
	grpc_metadata_array_destroy(&initial);
	grpc_metadata_array_destroy(&trailing);
	grpc_call_unref(call);
	grpc_channel_destroy(channel);
	grpc_completion_queue_shutdown(q);
	while (rpc_queue_next(q, gpr_inf_future(GPR_CLOCK_REALTIME)).type != GRPC_QUEUE_SHUTDOWN)
		;
	grpc_completion_queue_destroy(q);
	return (int)status;
}

[[maybe_unused]] static void compressed_messages_are_refused_before_they_are_inflated(void **state)
{
	struct fixture *f = *state;
	char text[512];
	grpc_slice bomb = grpc_slice_malloc(64u << 20); // 64 KiB on the wire
	memset(GRPC_SLICE_START_PTR(bomb), 0, GRPC_SLICE_LENGTH(bomb));
	int status = call_compressed(f->address, bomb, text, sizeof(text));
	grpc_slice_unref(bomb);
	assert_int_equal(status, GRPC_STATUS_UNIMPLEMENTED);
	assert_non_null(strstr(text, "gzip")); // refused for its encoding, not for its size
	assert_true(serves(f));
}

[[maybe_unused]] static void streams_of_a_connection_are_bounded(void **state)
{
	struct fixture *f = *state;
	enum { STREAMS = RPC_MAX_STREAMS + 40 };
	struct rpc_client_stream *streams[STREAMS];
	for (int i = 0; i < STREAMS; i++)
		assert_int_equal(rpc_client_stream_open(f->client, WATCH, "", 0, FIXTURE_TIMEOUT_NS, &streams[i]), 0);
	assert_true(fixture_wait(&f->rpc->calls_open, RPC_MAX_STREAMS));
	poll(NULL, 0, 200);
	assert_int_equal(atomic_load(&f->rpc->calls_open), RPC_MAX_STREAMS);
	for (int i = 0; i < STREAMS; i++)
		rpc_client_stream_close(streams[i]);
	assert_true(fixture_wait(&f->rpc->calls_open, 0));
}

[[maybe_unused]] static void many_cancelled_streams_leave_nothing_behind(void **state)
{
	struct fixture *f = *state;
	uint32_t armed = atomic_load(&f->rpc->calls_all); // nothing has been called yet
	assert_true(serves(f));
	for (int i = 0; i < 2000; i++)
		rpc_client_stream_close(ask(f, 1000));
	assert_true(fixture_wait(&f->fake->models_held, 0));
	assert_true(fixture_wait(&f->rpc->calls_open, 0));
	assert_true(fixture_wait(&f->rpc->calls_all, armed));
	assert_true(serves(f));
}

/* Raw connections. */

static int connect_unix(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Until the other side closes, 60 s at most; true when it did and said `text` before, if given. */
static bool closes(int fd, const char *text)
{
	char buffer[8192];
	size_t at = 0;
	bool said = !text;
	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		if (poll(&p, 1, 60000) <= 0)
			return false;
		ssize_t n = read(fd, buffer + at, sizeof(buffer) - at);
		if (n <= 0)
			return said;
		at += (size_t)n;
		said = said || memmem(buffer, at, text, strlen(text));
		if (at == sizeof(buffer))
			at = 0;
	}
}

static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";

static void pings_without_end_are_told_to_go_away(void **state)
{
	struct fixture *f = *state;
	int fd = connect_unix(f->socket);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, preface, sizeof(preface)), sizeof(preface)); // the last zero ends the empty SETTINGS
	for (int i = 0; i < 10; i++) {
		static const char ping[17] = {0, 0, 8, 6};
		if (send(fd, ping, sizeof(ping), MSG_NOSIGNAL) < 0)
			break;
	}
	assert_true(closes(fd, "too_many_pings"));
	close(fd);
	assert_true(serves(f));
}

static void noise_on_the_socket_harms_nobody(void **state)
{
	struct fixture *f = *state;
	struct rpc_client_status s;
	struct rpc_client_stream *stream = ask(f, 200);
	uint32_t x = 1;
	for (int i = 0; i < 50; i++) {
		uint8_t noise[512];
		size_t head = i % 2 ? sizeof(preface) : 0; // some begin as HTTP/2 does
		for (size_t b = 0; b < sizeof(noise); b++)
			noise[b] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
		memcpy(noise, preface, head);
		int fd = connect_unix(f->socket);
		assert_true(fd >= 0);
		send(fd, noise, i % 3 ? sizeof(noise) : 17, MSG_NOSIGNAL);
		close(fd);
	}
	assert_int_equal(drain(stream, &s) >= 200, 1);
	assert_int_equal(s.code, 0);
	assert_true(serves(f));
}

static void the_socket_has_its_mode_whatever_the_umask(void **state)
{
	static const mode_t masks[] = {0, 077, 0777};
	for (size_t i = 0; i < base_array_size(masks); i++) {
		struct fixture f;
		struct stat st;
		mode_t before = umask(0022);
		umask(i == 2 ? 0177 : masks[i]);
		assert_int_equal(fixture_open(&f, NULL), 0);
		umask(before);
		assert_int_equal(stat(f.socket, &st), 0);
		assert_int_equal(st.st_mode & 07777, 0660);
		assert_true(S_ISSOCK(st.st_mode));
		fixture_close(&f);
	}
}

static int start_second(struct fixture *f, const struct fake_options *o, struct base_error *e)
{
	struct fake_options options = *o;
	char path[128];
	snprintf(path, sizeof(path), "%s/second", f->directory);
	options.socket = o->socket ? o->socket : path;
	struct server *daemon = fake_server_create(&options);
	struct rpc_server *rpc = NULL;
	int r = rpc_server_start(daemon, &f->log, &rpc, e);
	if (r == 0)
		rpc_server_stop(rpc, 0);
	fake_server_destroy(daemon);
	snprintf(path, sizeof(path), "%s/second.lock", f->directory);
	unlink(path);
	return r;
}

static void a_second_daemon_is_told_who_holds_the_socket(void **state)
{
	struct fixture *f = *state;
	struct base_error e = {0};
	char pid[32];
	assert_int_equal(start_second(f, &(struct fake_options){.socket = f->socket}, &e), -EADDRINUSE);
	snprintf(pid, sizeof(pid), "pid %d", getpid());
	assert_non_null(strstr(e.message, pid));
	assert_non_null(strstr(e.message, f->socket));
	assert_true(serves(f)); // and the first one keeps its socket
}

static void what_is_at_the_path_is_looked_at(void **state)
{
	struct fixture *f = *state;
	struct base_error e = {0};
	char path[80];
	struct stat st;
	snprintf(path, sizeof(path), "%s/second", f->directory);
	/* A socket that a killed daemon left behind: replaced. */
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	close(fd);
	assert_int_equal(start_second(f, &(struct fake_options){0}, &e), 0);
	assert_int_equal(stat(path, &st), -1); // and removed at the end
	/* A file: kept. */
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	close(fd);
	assert_int_equal(start_second(f, &(struct fake_options){0}, &e), -EEXIST);
	assert_int_equal(stat(path, &st), 0);
	unlink(path);
	/* Another program's live socket: kept. */
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(start_second(f, &(struct fake_options){0}, &e), -EADDRINUSE);
	close(fd);
	unlink(path);
}

static void running_out_of_descriptors_passes(void **state)
{
	struct fixture *f = *state;
	struct rlimit before, low;
	int fds[200], clients[64], n = 0, c = 0;
	assert_true(serves(f));
	for (; c < 8; c++) // sockets for the clients, made while there still are descriptors
		clients[c] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	getrlimit(RLIMIT_NOFILE, &before);
	low = before;
	low.rlim_cur = (rlim_t)clients[7] + 20;
	setrlimit(RLIMIT_NOFILE, &low);
	while (n < 200 && (fds[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
		n++;
	assert_int_equal(errno, EMFILE);
	for (int i = 0; i < c; i++) {
		struct sockaddr_un a = {.sun_family = AF_UNIX};
		snprintf(a.sun_path, sizeof(a.sun_path), "%s", f->socket);
		assert_int_equal(connect(clients[i], (struct sockaddr *)&a, sizeof(a)), 0);
		assert_true(closes(clients[i], NULL)); // turned away, not left waiting
	}
	for (int i = 0; i < n; i++)
		close(fds[i]);
	for (int i = 0; i < c; i++)
		close(clients[i]);
	setrlimit(RLIMIT_NOFILE, &before);
	struct base_error e;
	struct rpc_client *fresh;
	assert_int_equal(rpc_client_create(f->address, NULL, &fresh, &e), 0);
	rpc_client_destroy(f->client);
	f->client = fresh;
	assert_true(serves(f)); // over a new connection
}

/* How many of rpc's own there are. */
static uint32_t check_threads(void)
{
	DIR *tasks = opendir("/proc/self/task");
	uint32_t rpc_threads = 0;
	for (struct dirent *d; (d = readdir(tasks));) {
		char path[300], line[128], name[32] = "";
		unsigned long long blocked = 0;
		if (d->d_name[0] == '.' || atoi(d->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/self/task/%s/status", d->d_name);
		FILE *file = fopen(path, "re");
		if (!file)
			continue; // it has ended
		bool whole = false;
		while (fgets(line, sizeof(line), file)) {
			sscanf(line, "Name: %31s", name);
			whole |= sscanf(line, "SigBlk: %llx", &blocked) == 1;
		}
		fclose(file);
		/* gRPC's own threads and ours; the fake engine's is the test's. SIGTERM is 15, SIGINT 2. */
		if (!whole || strncmp(name, "test_rpc", 8) == 0)
			continue;
		rpc_threads += strncmp(name, "rpc", 3) == 0;
		assert_true((blocked >> 14) & 1);
		assert_true((blocked >> 1) & 1);
	}
	closedir(tasks);
	return rpc_threads;
}

static void threads_take_no_signals(void **state)
{
	struct fixture *f = *state;
	assert_true(serves(f));
	testing_wait_until(check_threads() ==
			   RPC_QUEUES + 3); // queues, worker, reader, accept, by the names that they give themselves
}

/* TCP. */

static void addresses_are_judged(void **state)
{
	static const struct {
		const char *address;
		int r;
		bool loopback;
	} cases[] = {{"127.0.0.1:1", 0, true}, {"127.9.9.9:1", 0, true}, {"[::1]:1", 0, true}, {"localhost:1", 0, true},
		{"0.0.0.0:1", 0, false}, {"[::]:1", 0, false}, {":1", -EINVAL, false}, {"10.0.0.1:1", 0, false},
		{"127.0.0.1", -EINVAL, false}, {"127.0.0.1:", -EINVAL, false}, {"127.0.0.1:http", -EINVAL, false}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		struct base_error e = {0};
		bool loopback = false;
		assert_int_equal(rpc_listen_is_loopback(cases[i].address, &loopback, &e), cases[i].r);
		assert_int_equal(loopback, cases[i].loopback);
	}
}

static void plaintext_beyond_loopback_must_be_asked_for_in_words(void **state)
{
	struct fixture *f = *state;
	struct base_error e = {0};
	assert_int_equal(start_second(f, &(struct fake_options){.tcp = "0.0.0.0:0"}, &e), -EINVAL);
	assert_non_null(strstr(e.message, "listen.insecure_tcp"));
	assert_int_equal(start_second(f, &(struct fake_options){.tcp = "0.0.0.0:0", .insecure_tcp = true}, &e), 0);
	assert_int_equal(start_second(f, &(struct fake_options){.tcp = "127.0.0.1:0", .cert = "/x.pem"}, &e), -EINVAL);
	assert_non_null(strstr(e.message, "come together"));
}

static void tcp_serves_inference_but_not_admin_and_shares_no_port(void **state)
{
	struct fixture f;
	struct rpc_client_status s;
	struct base_error e = {0};
	struct rpc_client *tcp;
	char address[32];
	assert_int_equal(fixture_open(&f, &(struct fake_options){.tcp = "127.0.0.1:0"}), 0);
	snprintf(address, sizeof(address), "127.0.0.1:%u", rpc_server_tcp_port(f.rpc));
	assert_int_equal(rpc_client_create(address, NULL, &tcp, &e), 0);
	Thaw__Admin__V1__DrainRequest q = THAW__ADMIN__V1__DRAIN_REQUEST__INIT;
	assert_null(fixture_call(
		tcp, "/thaw.admin.v1.Admin/Drain", &q.base, &thaw__admin__v1__drain_progress__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_PERMISSION_DENIED);
	assert_false(atomic_load(&f.fake->draining));
	Thaw__V1__ListModelsRequest l = THAW__V1__LIST_MODELS_REQUEST__INIT;
	release(fixture_call(
		tcp, "/thaw.v1.Inference/ListModels", &l.base, &thaw__v1__list_models_reply__descriptor, &s));
	assert_int_equal(s.code, 0);
	assert_int_equal(start_second(&f, &(struct fake_options){.tcp = address}, &e), -EADDRINUSE);
	assert_non_null(strstr(e.message, address));
	rpc_client_destroy(tcp);
	fixture_close(&f);
}

#ifdef TEST_TLS
#define TLS(file) TEST_TLS "/" file

static void tls_asks_for_a_certificate_and_then_serves_admin(void **state)
{
	struct fixture f;
	struct rpc_client_status s;
	struct base_error e = {0};
	struct rpc_client *c;
	char address[32];
	const struct fake_options o = {
		.tcp = "127.0.0.1:0", .cert = TLS("server.pem"), .key = TLS("server.key"), .ca = TLS("ca.pem")};
	assert_int_equal(fixture_open(&f, &o), 0);
	snprintf(address, sizeof(address), "127.0.0.1:%u", rpc_server_tcp_port(f.rpc));
	Thaw__Admin__V1__UndrainRequest q = THAW__ADMIN__V1__UNDRAIN_REQUEST__INIT;
	const struct rpc_client_tls all = {TLS("ca.pem"), TLS("client.pem"), TLS("client.key")},
				    none = {TLS("ca.pem"), NULL, NULL},
				    no_ca = {NULL, TLS("client.pem"), TLS("client.key")};
	assert_int_equal(rpc_client_create(address, &all, &c, &e), 0);
	release(fixture_call(
		c, "/thaw.admin.v1.Admin/Undrain", &q.base, &thaw__admin__v1__undrain_reply__descriptor, &s));
	assert_int_equal(s.code, 0);
	rpc_client_destroy(c);
	assert_int_equal(rpc_client_create(address, &none, &c, &e), 0);
	assert_null(fixture_call(
		c, "/thaw.admin.v1.Admin/Undrain", &q.base, &thaw__admin__v1__undrain_reply__descriptor, &s));
	assert_int_equal(s.code, GRPC_STATUS_UNAVAILABLE);
	rpc_client_destroy(c);
	assert_int_equal(rpc_client_create(address, &no_ca, &c, &e), -EINVAL); // gRPC would abort on it
	/* A port that TLS listens on is not shared either. */
	struct fake_options second = o;
	second.tcp = address;
	assert_int_equal(start_second(&f, &second, &e), -EADDRINUSE);
	fixture_close(&f);
}

static void files_that_are_no_certificates_are_named(void **state)
{
	struct fixture *f = *state;
	struct base_error e = {0};
	struct fake_options o = {
		.tcp = "127.0.0.1:0", .cert = TLS("server.pem"), .key = TLS("server.key"), .ca = "/nowhere.pem"};
	assert_int_equal(start_second(f, &o, &e), -ENOENT);
	assert_non_null(strstr(e.message, "/nowhere.pem"));
	o.ca = "/proc/version";
	assert_int_equal(start_second(f, &o, &e), -EINVAL);
}
#endif

/* The end. */

/* A server with a call that runs; its health is watched. */
static struct rpc_client_stream *running_call(struct fixture *f, uint32_t tokens, struct rpc_client_stream **ret_watch)
{
	struct rpc_client_status s;
	assert_int_equal(fixture_open(f, NULL), 0);
	Grpc__Health__V1__HealthCheckRequest h = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
	*ret_watch = fixture_stream(f->client, WATCH, &h.base, FIXTURE_TIMEOUT_NS);
	Grpc__Health__V1__HealthCheckResponse *m = (Grpc__Health__V1__HealthCheckResponse *)fixture_next(
		*ret_watch, &grpc__health__v1__health_check_response__descriptor, &s);
	assert_int_equal(m->status, GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING);
	release(m);
	atomic_store(&f->fake->step_ns, 20000000);
	struct rpc_client_stream *stream = ask(f, tokens);
	assert_true(fixture_wait(&f->fake->submitted, 1));
	return stream;
}

static void expect_stopped(struct fixture *f, struct rpc_client_stream *watch)
{
	struct rpc_client_status s;
	struct stat st;
	Grpc__Health__V1__HealthCheckResponse *m = (Grpc__Health__V1__HealthCheckResponse *)fixture_next(
		watch, &grpc__health__v1__health_check_response__descriptor, &s);
	assert_int_equal(m->status, GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING);
	release(m);
	rpc_client_stream_close(watch);
	assert_int_equal(atomic_load(&f->fake->models_held), 0);
	assert_int_equal(stat(f->socket, &st), -1);
	struct rpc_client_stream *late = ask(f, 1);
	const uint8_t *bytes;
	size_t n;
	assert_int_equal(rpc_client_stream_next(late, &bytes, &n, &s), -EHOSTUNREACH);
	rpc_client_stream_close(late);
	fixture_close(f);
}

static void stopping_waits_for_calls(void **state)
{
	struct fixture f;
	struct rpc_client_status s;
	struct rpc_client_stream *watch, *ends = running_call(&f, 10, &watch);
	uint64_t before = base_clock_now_ns();
	rpc_server_stop(f.rpc, 2 * FIXTURE_TIMEOUT_NS);
	f.rpc = NULL;
	assert_true(base_clock_now_ns() - before < FIXTURE_TIMEOUT_NS); // and no longer
	assert_in_range(drain(ends, &s), 11, 12); // timing alone or with the last
	assert_int_equal(s.code, 0);
	expect_stopped(&f, watch);
}

static void stopping_cancels_what_stays(void **state)
{
	struct fixture f;
	struct rpc_client_status s;
	struct rpc_client_stream *watch, *stays = running_call(&f, 1000000, &watch);
	uint64_t before = base_clock_now_ns();
	rpc_server_stop(f.rpc, 300000000);
	f.rpc = NULL;
	assert_true(base_clock_now_ns() - before >= 300000000);
	drain(stays, &s);
	assert_int_not_equal(s.code, 0);
	expect_stopped(&f, watch);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(unknown_methods_are_answered_every_time),
		CASE(malformed_and_bad_text_are_named),
		CASE(tokens_do_not_wait_for_those_after_them),
		CASE(a_message_beyond_the_limit_is_refused),
#ifndef __SANITIZE_THREAD__ // it makes gRPC-core some fifty times slower, and these send a hundred thousand messages
		CASE(a_reader_far_behind_ends_with_resource_exhausted),
		CASE(a_stalled_reader_is_cancelled_after_a_time),
		CASE(a_message_that_unfolds_is_refused),
		CASE(compressed_messages_are_refused_before_they_are_inflated),
		CASE(streams_of_a_connection_are_bounded),
		CASE(many_cancelled_streams_leave_nothing_behind),
#endif
		CASE(pings_without_end_are_told_to_go_away),
		CASE(noise_on_the_socket_harms_nobody),
		cmocka_unit_test(the_socket_has_its_mode_whatever_the_umask),
		CASE(a_second_daemon_is_told_who_holds_the_socket),
		CASE(what_is_at_the_path_is_looked_at),
		CASE(running_out_of_descriptors_passes),
		CASE(threads_take_no_signals),
		cmocka_unit_test(addresses_are_judged),
		CASE(plaintext_beyond_loopback_must_be_asked_for_in_words),
		cmocka_unit_test(tcp_serves_inference_but_not_admin_and_shares_no_port),
#ifdef TEST_TLS
		cmocka_unit_test(tls_asks_for_a_certificate_and_then_serves_admin),
		CASE(files_that_are_no_certificates_are_named),
#endif
		cmocka_unit_test(stopping_waits_for_calls),
		cmocka_unit_test(stopping_cancels_what_stays),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
