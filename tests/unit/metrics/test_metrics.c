// SPDX-License-Identifier: Apache-2.0
// metrics: what a scraper and a probe get, over a server made of fixed numbers. The text is checked with a small parser
// of the exposition format that knows nothing of how it was written.
#include "tests/lib/testing.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "daemon/metrics.h"

/* The fake */

struct server {
	bool ready, draining, loading, failing, worker, fleet;
	uint32_t count;
};

static struct engine *const fake_engine = (struct engine *)0x1000;
const double engine_bucket_seconds[ENGINE_BUCKETS] = {
	.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100};

const char *server_phase_name(enum server_phase p)
{
	static const char *const names[] = {"queued", "digest", "pack", "load", "ready", "failed", "unloaded"};
	return names[p];
}

uint32_t server_list_models(struct server *s, struct server_model_info *ret_infos, uint32_t room)
{
	memset(ret_infos, 0, sizeof *ret_infos * s->count);
	for (uint32_t i = 0; i < s->count && i < room; i++) {
		struct server_model_info *m = &ret_infos[i];
		snprintf(m->name, sizeof m->name, i ? "odd \"name\"\\ with\nall" : "plain");
		snprintf(m->architecture, sizeof m->architecture, "llama");
		m->phase = s->loading ? SERVER_PHASE_LOAD : SERVER_PHASE_READY;
		m->load.state = ENGINE_READY;
		if (s->failing && i == 0) {
			m->phase = SERVER_PHASE_FAILED;
			base_error_set(&m->error, -EINVAL, "no such type");
		}
		if (s->failing && i == 3) {
			snprintf(m->load.data_loss, sizeof m->load.data_loss, "layer 5: bad");
			m->phase = SERVER_PHASE_READY;
		}
		if (s->failing && i == 1) {
			m->phase = SERVER_PHASE_READY;
			m->load.state = ENGINE_RECOVERING;
			snprintf(m->load.failure, sizeof m->load.failure, "the process is gone");
		}
		m->done_bytes = 25;
		m->total_bytes = 100;
		m->load.running = 3;
		m->load.kv_blocks = 8;
		m->load.kv_blocks_used = 2;
		m->load.requests_total[REQUEST_FINISH_STOP] = 7;
		m->load.generated_tokens_total = UINT64_C(9007199254740993);
		m->load.last_pass_wall_ns = UINT64_C(1700000000123456789);
		m->load.shape = (struct rank_shape){2, {1, 1}};
		m->load.ranks = 2;
		if (s->fleet) {
			snprintf(m->node[0], sizeof m->node[0], "head");
			snprintf(m->node[1], sizeof m->node[1], "other");
		}
		m->load.stats[1].stream.read_bytes = 4096;
		m->load.stats[1].compute_ns = 1500000000;
		m->load.stats[1].pass_ns = 2000000000;
		m->load.stats[1].stream.reads = 5;
		m->load.stats[1].stream.read_latency_ns = 250000000;
		m->load.placement[1].kv_bytes = 4321;
		m->load.rejected[ENGINE_REJECT_TOO_LONG] = 6;
		m->load.waiting_bytes = 8765;
		m->load.link_sent_bytes = 111;
		m->load.link_received_bytes = 222;
		m->load.link_errors = 2;
		snprintf(m->load.placement[1].engine, sizeof m->load.placement[1].engine, "sync");
		m->plan.kv_bytes = 77;
	}
	return s->count;
}

int server_acquire_model(struct server *s, const char *name, const struct server_model **ret_model,
	uint64_t *ret_retry_after_ns, struct base_error *e)
{
	static const struct server_model model = {.engine = (struct engine *)0x1000};
	if (s->loading)
		return -EHOSTDOWN;
	*ret_model = &model;
	return 0;
}

void server_release_model(struct server *s, const struct server_model *m)
{
}

void engine_get_histograms(struct engine *e, struct engine_histograms *ret_histograms)
{
	assert_ptr_equal(e, fake_engine);
	memset(ret_histograms, 0, sizeof *ret_histograms);
	ret_histograms->inter_token =
		(struct engine_histogram){.count = 6, .buckets = {1, 2, [ENGINE_BUCKETS] = 3}, .sum = 400.5};
}

bool server_draining(const struct server *s)
{
	return s->draining;
}

void server_get_transfer(struct server *s, struct server_transfer *ret_transfer)
{
	*ret_transfer = (struct server_transfer){true, true, 1234567890123, 42};
}

bool server_cluster_load(struct server *s, struct server_cluster_load *ret_load)
{
	*ret_load = (struct server_cluster_load){.ready = 2,
		.lost = 1,
		.epoch = 17,
		.losses = 3,
		.peers = {{"head", true}, {"other", false}},
		.peers_count = 2};
	return true;
}

const struct config *server_config(const struct server *s)
{
	static const struct config config = {.cluster.node = "head"};
	return &config;
}

const struct topology_machine *server_machine(const struct server *s)
{
	static const struct topology_machine machine = {.host = "host1"};
	return &machine;
}

bool server_worker_text(struct server *s, char *out, size_t room)
{
	snprintf(out, room, "worker of lab: not joined: no coordinator");
	return s->worker;
}

bool server_ready(struct server *s)
{
	return s->ready;
}

struct topology_bandwidths server_bandwidths(struct server *s)
{
	return (struct topology_bandwidths){.drive_bytes_per_s = 2.5e9};
}

uint64_t server_started_wall_ns(const struct server *s)
{
	return UINT64_C(1600000000000000001);
}

const char *server_store_drive(const struct server *s)
{
	return "nvme0n1";
}

uint64_t server_memory_bytes(struct server *s)
{
	return 12345;
}

/* The checker */

#define MAX_FAMILIES 256

struct checker {
	char names[MAX_FAMILIES][96];
	char types[MAX_FAMILIES][16];
	size_t count;
	char bucket_series[512]; // of the bucket line before, without le
	double bucket_value;
};

static bool ends_with(const char *text, const char *end)
{
	size_t a = strlen(text), b = strlen(end);
	return a >= b && strcmp(text + a - b, end) == 0;
}

// NAME{label="value",...} VALUE; returns where the value begins.
static const char *check_labels(const char *line, const char *at)
{
	if (*at == '{') {
		at++;
		while (*at != '}') {
			size_t n = strspn(at, "abcdefghijklmnopqrstuvwxyz_");
			if (n == 0 || at[n] != '=' || at[n + 1] != '"')
				fail_msg("bad label: %s", line);
			for (at += n + 2; *at != '"'; at++) {
				if (!*at || (*at == '\\' && !strchr("\\\"n", *++at)))
					fail_msg("bad escape: %s", line);
			}
			at++;
			if (*at == ',')
				at++;
		}
		at++;
	}
	if (*at != ' ')
		fail_msg("no value: %s", line);
	return at + 1;
}

static void check_bucket(struct checker *c, const char *line, double v)
{
	char series[512];
	const char *le = strstr(line, ",le=\"");
	assert_non_null(le);
	snprintf(series, sizeof series, "%.*s", (int)(le - line), line);
	if (strcmp(series, c->bucket_series) == 0 && v < c->bucket_value)
		fail_msg("buckets fall: %s", line);
	snprintf(c->bucket_series, sizeof c->bucket_series, "%s", series);
	c->bucket_value = v;
}

static void check_sample(struct checker *c, const char *line)
{
	char name[96], *end;
	size_t n = strspn(line, "abcdefghijklmnopqrstuvwxyz_0123456789");
	snprintf(name, sizeof name, "%.*s", (int)n, line);
	if (c->count == 0)
		fail_msg("sample before any family: %s", line);
	const char *family = c->names[c->count - 1], *type = c->types[c->count - 1];
	const char *text = check_labels(line, line + n);
	double v = strtod(text, &end);
	if (end == text || *end)
		fail_msg("bad value: %s", line);
	if (strcmp(type, "histogram") == 0) {
		size_t f = strlen(family);
		if (strncmp(name, family, f) != 0 ||
			(strcmp(name + f, "_bucket") && strcmp(name + f, "_sum") && strcmp(name + f, "_count")))
			fail_msg("not of family %s: %s", family, line);
		if (strcmp(name + f, "_bucket") == 0)
			check_bucket(c, line, v);
		if (strcmp(name + f, "_count") == 0)
			assert_true(v == c->bucket_value);
		return;
	}
	if (strcmp(type, "summary") == 0) { // without quantiles
		size_t f = strlen(family);
		if (strncmp(name, family, f) != 0 || (strcmp(name + f, "_sum") && strcmp(name + f, "_count")))
			fail_msg("not of family %s: %s", family, line);
		return;
	}
	if (strcmp(name, family) != 0)
		fail_msg("not of family %s: %s", family, line);
	if (strcmp(type, "counter") == 0 && (!ends_with(name, "_total") || v < 0))
		fail_msg("counter: %s", line);
	if (strcmp(type, "gauge") == 0 && ends_with(name, "_total"))
		fail_msg("gauge named as a counter: %s", line);
}

static void check_text(const char *text)
{
	struct checker *c = calloc(1, sizeof *c);
	char help[96] = "", word[96], type[16];
	_cleanup_free_ char *copy = strdup(text);
	size_t samples = 0;
	for (char *line = copy, *end; *line; line = end + 1) {
		end = strchr(line, '\n');
		if (!end)
			fail_msg("last line has no end: %s", line);
		*end = '\0';
		if (sscanf(line, "# HELP %95s", help) == 1)
			continue;
		if (sscanf(line, "# TYPE %95s %15s", word, type) == 2) {
			assert_string_equal(word, help); // HELP is right before
			for (size_t i = 0; i < c->count; i++)
				if (strcmp(c->names[i], word) == 0)
					fail_msg("family twice: %s", word);
			assert_true(c->count < MAX_FAMILIES);
			snprintf(c->names[c->count], sizeof c->names[0], "%s", word);
			snprintf(c->types[c->count++], sizeof c->types[0], "%s", type);
			if (strncmp(word, "thaw_", 5) != 0)
				fail_msg("prefix: %s", word);
			continue;
		}
		check_sample(c, line);
		samples++;
	}
	assert_true(c->count >= 40 && samples > c->count);
	free(c);
}

static char *render(struct server *s)
{
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	assert_int_equal(metrics_write(s, out), 0);
	fclose(out);
	return text;
}

static void expect_line(const char *text, const char *line)
{
	char whole[512];
	snprintf(whole, sizeof whole, "\n%s\n", line);
	if (!strstr(text, whole))
		fail_msg("missing: %s\n%s", line, text);
}

static void the_text_is_well_formed(void **state)
{
	struct server s = {.ready = true, .count = 2};
	_cleanup_free_ char *text = render(&s);
	check_text(text);
	expect_line(text, "thaw_requests_running{model_name=\"plain\"} 3");
	expect_line(text, "thaw_requests_running{model_name=\"odd \\\"name\\\"\\\\ with\\nall\"} 3");
	expect_line(text, "thaw_requests_total{model_name=\"plain\",reason=\"stop\"} 7");
	expect_line(text, "thaw_kv_cache_usage_ratio{model_name=\"plain\"} 0.25");
	expect_line(text, "thaw_generated_tokens_total{model_name=\"plain\"} 9007199254740993");
	expect_line(text, "thaw_last_pass_timestamp_seconds{model_name=\"plain\"} 1700000000.123456789");
	expect_line(text,
		"thaw_offload_read_bytes_total{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank=\"0\",device="
		"\"nvme0n1\"} 4096");
	expect_line(text,
		"thaw_offload_read_seconds_sum{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank=\"0\",device="
		"\"nvme0n1\"} 0.250000000");
	expect_line(text, "thaw_offload_read_seconds_count{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank="
			  "\"0\",device=\"nvme0n1\"} 5");
	expect_line(text, "thaw_stage_bubble_seconds_total{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank="
			  "\"0\"} 0.500000000");
	expect_line(text, "thaw_memory_bytes{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank=\"0\",device="
			  "\"CPU1\",tier=\"host\","
			  "component=\"kv\"} 4321");
	expect_line(text, "thaw_requests_rejected_total{model_name=\"plain\",reason=\"queue_full\"} 0");
	expect_line(text, "thaw_requests_rejected_total{model_name=\"plain\",reason=\"too_long\"} 6");
	expect_line(text, "thaw_waiting_bytes{model_name=\"plain\"} 8765");
	expect_line(text, "thaw_link_bytes_total{model_name=\"plain\",op=\"send\"} 111");
	expect_line(text, "thaw_link_bytes_total{model_name=\"plain\",op=\"receive\"} 222");
	expect_line(text, "thaw_link_errors_total{model_name=\"plain\"} 2");
	expect_line(text, "thaw_stage_busy_seconds_total{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank=\"0\"}"
			  " 1.500000000");
	expect_line(text, "thaw_io_uring_available{model_name=\"plain\",node=\"host1\",stage=\"1\",tp_rank=\"0\"} 0");
	expect_line(text, "thaw_memory_plan_bytes{model_name=\"plain\",component=\"kv\"} 77");
	expect_line(text, "thaw_inter_token_latency_seconds_bucket{model_name=\"plain\",le=\"0.001\"} 1");
	expect_line(text, "thaw_inter_token_latency_seconds_bucket{model_name=\"plain\",le=\"100\"} 3");
	expect_line(text, "thaw_inter_token_latency_seconds_bucket{model_name=\"plain\",le=\"+Inf\"} 6");
	expect_line(text, "thaw_inter_token_latency_seconds_sum{model_name=\"plain\"} 400.5");
	expect_line(text, "thaw_pulled_bytes_total 1234567890123");
	expect_line(text, "thaw_served_bytes_total 42");
	expect_line(text, "thaw_measured_bytes_per_second{resource=\"disk\"} 2500000000");
}

static void a_rank_has_the_drive_of_its_own_node(void **state)
{
	struct server s = {.ready = true, .count = 1, .fleet = true};
	_cleanup_free_ char *text = render(&s);
	check_text(text);
	expect_line(text, "thaw_offload_reads_total{model_name=\"plain\",node=\"head\",stage=\"0\",tp_rank=\"0\","
			  "device=\"nvme0n1\"} 0");
	expect_line(text, "thaw_offload_reads_total{model_name=\"plain\",node=\"other\",stage=\"1\",tp_rank=\"0\"} 5");
	expect_line(text,
		"thaw_offload_read_seconds_count{model_name=\"plain\",node=\"other\",stage=\"1\",tp_rank=\"0\"} 5");
	expect_line(text,
		"thaw_stage_busy_seconds_total{model_name=\"plain\",node=\"other\",stage=\"1\",tp_rank=\"0\"} "
		"1.500000000");
	expect_line(text, "thaw_peer_up{peer=\"head\"} 1");
	expect_line(text, "thaw_peer_up{peer=\"other\"} 0");
}

static void a_scrape_works_while_loading_and_with_no_model(void **state)
{
	struct server s = {.loading = true, .count = 1};
	_cleanup_free_ char *text = render(&s);
	check_text(text);
	expect_line(text, "thaw_model_state{model_name=\"plain\",state=\"load\"} 1");
	expect_line(text, "thaw_model_load_progress_ratio{model_name=\"plain\"} 0.25");
	expect_line(text, "thaw_ready 0");
	s.count = 0;
	_cleanup_free_ char *none = render(&s);
	expect_line(none, "thaw_ready 0");
}

static char *fetch(uint16_t port, const char *request)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in a = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(write(fd, request, strlen(request)), strlen(request));
	size_t room = 1 << 20, at = 0;
	char *reply = malloc(room);
	for (ssize_t n; (n = read(fd, reply + at, room - 1 - at)) > 0;)
		at += (size_t)n;
	reply[at] = '\0';
	close(fd);
	return reply;
}

static void expect_reply(uint16_t port, const char *line, const char *status, const char *body)
{
	char request[256];
	snprintf(request, sizeof request, "%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", line);
	_cleanup_free_ char *reply = fetch(port, request);
	if (strncmp(reply, status, strlen(status)) != 0 || !strstr(reply, body))
		fail_msg("%s: %s", line, reply);
}

static void http_answers_probes_and_scrapes(void **state)
{
	struct server s = {.ready = true, .count = 1};
	struct metrics_server *m = NULL;
	struct base_error e = {0};
	if (metrics_server_start(&s, "127.0.0.1:0", NULL, &m, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	uint16_t port = metrics_server_port(m);
	assert_true(port > 0);
	expect_reply(port, "GET /healthz", "HTTP/1.1 200", "\r\n\r\nok\n");
	expect_reply(port, "GET /readyz", "HTTP/1.1 200", "\r\n\r\nready\n");
	s.draining = true;
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "draining");
	s = (struct server){.loading = true, .count = 1};
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "model plain: load, 25 of 100 bytes");
	s = (struct server){.loading = true, .failing = true, .count = 4};
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "model plain failed: no such type\n");
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "has no rank for now: the process is gone\n");
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "all: load, 25 of 100 bytes\n");
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "all fails its requests: layer 5: bad\n");
	s = (struct server){.worker = true};
	expect_reply(port, "GET /readyz", "HTTP/1.1 503", "\r\n\r\nworker of lab: not joined: no coordinator\n");
	s = (struct server){.loading = true, .count = 1};
	expect_reply(port, "GET /metrics", "HTTP/1.1 200", "# TYPE thaw_ready gauge\nthaw_ready 0\n");
	expect_reply(port, "GET /metrics", "HTTP/1.1 200", "Content-Type: text/plain; version=0.0.4");
	expect_reply(port, "GET /nothing", "HTTP/1.1 404", "/metrics");
	expect_reply(port, "DELETE /metrics", "HTTP/1.1 405", "Allow: GET, HEAD");

	char taken[32];
	snprintf(taken, sizeof taken, "127.0.0.1:%u", port);
	struct metrics_server *second = NULL;
	assert_int_equal(metrics_server_start(&s, taken, NULL, &second, &e), -EADDRINUSE);
	char message[96];
	snprintf(message, sizeof message, "listen.metrics: %s: Address already in use", taken);
	assert_string_equal(base_error_text(&e), message);
	metrics_server_stop(m);
	metrics_server_stop(NULL);
}

static void connections_are_bounded(void **state)
{
	struct server s = {.ready = true};
	struct metrics_server *m = NULL;
	assert_int_equal(metrics_server_start(&s, "127.0.0.1:0", NULL, &m, NULL), 0);
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_port = htons(metrics_server_port(m)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int idle[80];
	for (size_t i = 0; i < base_array_size(idle); i++) {
		idle[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		(void)connect(idle[i], (struct sockaddr *)&a, sizeof a);
	}
	usleep(100000);
	size_t fds = 0; // the idle peers' own ends and what the server accepted
	for (int fd = 3; fd < 1024; fd++) {
		struct sockaddr_in local;
		socklen_t length = sizeof local;
		fds += getsockname(fd, (struct sockaddr *)&local, &length) == 0 && local.sin_family == AF_INET &&
		       local.sin_port == a.sin_port;
	}
	assert_true(fds <= 33 + 1); // 32 connections, the listener
	for (size_t i = 0; i < base_array_size(idle); i++)
		close(idle[i]);
	metrics_server_stop(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_text_is_well_formed),
		cmocka_unit_test(a_rank_has_the_drive_of_its_own_node),
		cmocka_unit_test(a_scrape_works_while_loading_and_with_no_model),
		cmocka_unit_test(http_answers_probes_and_scrapes),
		cmocka_unit_test(connections_are_bounded),
	};
	return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}
