// SPDX-License-Identifier: Apache-2.0
// Streamed messages through the gRPC server: an engine that makes one-byte tokens as fast as the rings take them, a
// unix socket, and a client of the same library in another process. Prints, last:
//   grpc-stream ratio=R messages_per_s=N server_cpu_us_per_message=C
// where R is messages per second / 50,000. The server's CPU time is that of its whole process, engine included.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/rpc/client.h"
#include "daemon/rpc/rpc.h"
#include "proto/thaw/v1/inference.pb-c.h"
#include "tests/unit/rpc/fake_server.h"

#define BENCH_MAX_STREAMS 32u
#define BENCH_BAR_PER_S 50000.0

struct options {
	uint32_t streams, messages, rounds;
};

static double cpu_seconds(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static struct rpc_client_stream *open_stream(struct rpc_client *c, uint32_t messages)
{
	Thaw__V1__GenerateRequest q = THAW__V1__GENERATE_REQUEST__INIT;
	Thaw__V1__Prompt p = THAW__V1__PROMPT__INIT;
	Thaw__V1__Stopping s = THAW__V1__STOPPING__INIT;
	struct rpc_client_stream *stream = NULL;
	uint8_t packed[256];
	p.source_case = THAW__V1__PROMPT__SOURCE_TEXT;
	p.text = (char *)"thaw";
	s.max_new_tokens = messages;
	q.prompt = &p;
	q.stopping = &s;
	size_t n = thaw__v1__generate_request__pack(&q, packed);
	rpc_client_stream_open(c, "/thaw.v1.Inference/GenerateStream", packed, n, 0, &stream);
	return stream;
}

/* Reads all streams, one message of each in turn; returns how many messages came, 0 on any failure. */
static uint64_t read_streams(struct rpc_client *c, const struct options *o)
{
	struct rpc_client_stream *streams[BENCH_MAX_STREAMS];
	struct rpc_client_status status;
	uint64_t total = 0, good = 1;
	uint32_t open = o->streams;
	for (uint32_t i = 0; i < o->streams; i++)
		streams[i] = open_stream(c, o->messages / o->streams);
	while (open) {
		for (uint32_t i = 0; i < o->streams; i++) {
			const uint8_t *m;
			size_t n;
			if (!streams[i])
				continue;
			if (rpc_client_stream_next(streams[i], &m, &n, &status) == 1) {
				total++;
				continue;
			}
			good &= status.code == 0;
			rpc_client_stream_close(streams[i]);
			streams[i] = NULL;
			open--;
		}
	}
	return good ? total : 0;
}

/* The other process: a round for each byte that comes, answered with how long it took and how many messages came. */
static int client_run(const char *address, const struct options *o, int in, int out)
{
	struct rpc_client *c = NULL;
	struct base_error e = {0};
	char go;
	while (read(in, &go, 1) == 1) {
		if (!c && rpc_client_create(address, NULL, &c, &e) < 0)
			return 1;
		uint64_t start = base_clock_now_ns(), result[2];
		result[1] = read_streams(c, o);
		result[0] = base_clock_now_ns() - start;
		if (write(out, result, sizeof(result)) != sizeof(result))
			return 1;
	}
	rpc_client_destroy(c);
	return 0;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static int server_run(const char *socket, const struct options *o, int out, int in)
{
	struct base_log log;
	struct base_error e = {0};
	struct rpc_server *rpc;
	double rates[16], costs[16];
	base_log_init(&log, "bench", BASE_LOG_WARNING);
	struct server *daemon = fake_server_create(&(struct fake_options){.socket = socket});
	atomic_store(&fake_of(daemon)->paced, true);
	if (rpc_server_start(daemon, &log, &rpc, &e) < 0) {
		fprintf(stderr, "grpc-stream: %s\n", base_error_text(&e));
		return 1;
	}
	for (uint32_t r = 0; r <= o->rounds; r++) { // the first one warms up
		uint64_t result[2];
		double before = cpu_seconds();
		if (write(out, "g", 1) != 1 || read(in, result, sizeof(result)) != sizeof(result) || !result[1]) {
			fprintf(stderr, "grpc-stream: the client failed\n");
			return 1;
		}
		double cost = (cpu_seconds() - before) / (double)result[1] * 1e6;
		double rate = (double)result[1] / ((double)result[0] * 1e-9);
		if (r == 0)
			continue;
		rates[r - 1] = rate;
		costs[r - 1] = cost;
		printf("round %u: %.0f messages/s, %.2f us of server CPU each\n", r, rate, cost);
	}
	close(out);
	rpc_server_stop(rpc, 0);
	fake_server_destroy(daemon);
	qsort(rates, o->rounds, sizeof(rates[0]), compare);
	qsort(costs, o->rounds, sizeof(costs[0]), compare);
	double rate = rates[o->rounds / 2];
	printf("grpc-stream ratio=%.3f messages_per_s=%.0f server_cpu_us_per_message=%.2f streams=%u\n",
		rate / BENCH_BAR_PER_S, rate, costs[o->rounds / 2], o->streams);
	return 0;
}

int main(int argc, char **argv)
{
	struct options o = {.streams = 8, .messages = 200000, .rounds = 3};
	static const struct option long_options[] = {{"streams", required_argument, NULL, 's'},
		{"messages", required_argument, NULL, 'm'}, {"rounds", required_argument, NULL, 'r'}, {0}};
	for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
		uint32_t v = optarg ? (uint32_t)strtoul(optarg, NULL, 10) : 0;
		if (c == '?' || v == 0 || (c == 's' && v > BENCH_MAX_STREAMS) || (c == 'r' && v > 16)) {
			fprintf(stderr, "usage: grpc-stream [--streams 1..32] [--messages N] [--rounds 1..16]\n");
			return 2;
		}
		*(c == 's' ? &o.streams : c == 'm' ? &o.messages : &o.rounds) = v;
	}
	char directory[] = "/tmp/thaw-bench-XXXXXX", socket[64], address[80], lock[80];
	int go[2], done[2];
	if (!mkdtemp(directory) || pipe(go) < 0 || pipe(done) < 0)
		return 1;
	snprintf(socket, sizeof(socket), "%s/s", directory);
	snprintf(address, sizeof(address), "unix:%s", socket);
	snprintf(lock, sizeof(lock), "%s.lock", socket);
	pid_t child = fork(); // before gRPC is there: it does not like forks
	if (child == 0) {
		close(go[1]);
		close(done[0]);
		_exit(client_run(address, &o, go[0], done[1]));
	}
	close(go[0]);
	close(done[1]);
	int r = server_run(socket, &o, go[1], done[0]);
	waitpid(child, NULL, 0);
	unlink(lock);
	rmdir(directory);
	return r;
}
