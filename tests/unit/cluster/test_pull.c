// SPDX-License-Identifier: Apache-2.0
// Pulling from a node that sends what it should, and from one that does not: its service stands where thaw.node.v1
// stands otherwise, on the server core of daemon/rpc.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/pull.h"
#include "daemon/rpc/rpc_core.h"
#include "offload/hash.h"
#include "tests/unit/rpc/fixture.h"

#define MS 1000000ull
#define FILE_BYTES (5u << 20)

enum mode {
	HONEST,
	CHECKSUM, // of the chunk that begins at `from`, `times` times
	ALTERED, // a bit of it, `times` times
	SHORT, // one byte less than what is wanted
	LONG, // one more
	EARLY, // ends after `from` bytes
	ENDLESS, // goes on after all
	SILENT,
	REFUSED,
	NO_MESSAGE,
};

static _Atomic enum mode mode;
static atomic_uint times, calls;
static _Atomic uint64_t from, sent_bytes;
static uint8_t file[FILE_BYTES];

struct pull {
	struct cluster_pull what;
	uint64_t total_bytes;
};

static void start(struct rpc_call *c, const ProtobufCMessage *request)
{
	struct pull *p = calloc(1, sizeof *p);
	struct rpc_fault f;
	atomic_fetch_add(&calls, 1);
	assert_int_equal(cluster_read_pull((const Thaw__Node__V1__PullRequest *)request, &p->what, NULL), 0);
	p->total_bytes = p->what.runs.run_bytes * p->what.runs.runs;
	c->context = p;
	if (atomic_load(&mode) == REFUSED) {
		rpc_fault_set(&f, GRPC_STATUS_NOT_FOUND, "FAKE", NULL, "no such model");
		rpc_call_fail(c, &f);
	}
}

/* True: this chunk is to be spoilt. */
static bool spoil(enum mode m, uint64_t at)
{
	if (atomic_load(&mode) != m || at != atomic_load(&from) || !atomic_load(&times))
		return false;
	atomic_fetch_sub(&times, 1);
	return true;
}

static void fill(uint8_t *out, const struct pull *p, uint64_t at, size_t bytes)
{
	const struct pack_runs *r = &p->what.runs;
	for (size_t i = 0; i < bytes; i++, at++)
		out[i] = file[(r->offset_bytes + at / r->run_bytes * r->stride_bytes + at % r->run_bytes) % FILE_BYTES];
}

static void next(struct rpc_call *c, struct rpc_next *out)
{
	static uint8_t data[2][CLUSTER_CHUNK_BYTES + 1]; // a queue each
	struct pull *p = c->context;
	uint8_t *d = data[c->queue - c->queue->server->queues];
	Thaw__Node__V1__PullChunk m = THAW__NODE__V1__PULL_CHUNK__INIT;
	enum mode now = atomic_load(&mode);
	uint64_t at = p->what.skip_bytes, left = p->total_bytes - at;
	if (now == SILENT)
		return;
	if ((now == EARLY && at >= atomic_load(&from)) || (!left && now != ENDLESS)) {
		rpc_call_end(c);
		out->end = true;
		return;
	}
	m.data.data = d;
	m.data.len = left < CLUSTER_CHUNK_BYTES && left ? (size_t)left : CLUSTER_CHUNK_BYTES;
	m.data.len += now == LONG;
	m.data.len -= now == SHORT;
	fill(d, p, at, m.data.len);
	m.xxh3 = offload_hash(d, m.data.len) ^ spoil(CHECKSUM, at);
	if (spoil(ALTERED, at))
		d[m.data.len / 2] ^= 1;
	p->what.skip_bytes += m.data.len < left ? m.data.len : left;
	atomic_fetch_add(&sent_bytes, m.data.len);
	out->message = now == NO_MESSAGE ? grpc_slice_from_copied_string("\xff\xff\xff\xff") : rpc_pack(&m.base);
	out->has_message = true;
}

static void destroy(struct rpc_call *c)
{
	free(c->context);
}

const struct rpc_method rpc_node_methods[] = {
	{.path = "/thaw.node.v1.Coordinator/Pull",
		.flags = RPC_STREAM | RPC_NODE,
		.request = &thaw__node__v1__pull_request__descriptor,
		.start = start,
		.next = next,
		.destroy = destroy},
};
const uint32_t rpc_node_methods_count = base_array_size(rpc_node_methods);

/* ---- */

static struct fixture f;
static struct cluster_puller *p;
static struct base_error e;
static bool cancel;
static unsigned retries;
static char last_retry[BASE_ERROR_BYTES];
static _Atomic uint64_t pulled;

static bool cancelled(void *context)
{
	return cancel;
}

static void retried(void *context, const struct base_error *why)
{
	retries++;
	snprintf(last_retry, sizeof last_retry, "%s", base_error_text(why));
}

/* silent_ns: only as short as that where the source is silent indeed. */
static struct cluster_puller *puller(const char *sources, uint64_t silent_ns)
{
	struct cluster_puller *x;
	const struct cluster_puller_config c = {.cluster = "lab",
		.sources = sources,
		.path = "/m.gguf",
		.silent_ns = silent_ns,
		.pause_ns = MS,
		.cancelled = cancelled,
		.retried = retried,
		.pulled_bytes = &pulled};
	if (cluster_puller_create(&c, &x, &e))
		fail_msg("%s", base_error_text(&e));
	return x;
}

static int setup_all(void **state)
{
	for (uint32_t i = 0, v = 1; i < FILE_BYTES; i++, v = v * 1664525 + 1013904223)
		file[i] = (uint8_t)(v >> 24);
	return fixture_open(&f, NULL);
}

static int teardown_all(void **state)
{
	fixture_close(&f);
	return 0;
}

static int setup(void **state)
{
	atomic_store(&mode, HONEST);
	atomic_store(&times, UINT32_MAX);
	atomic_store(&from, 0);
	atomic_store(&calls, 0);
	atomic_store(&sent_bytes, 0);
	atomic_store(&pulled, 0);
	memset(&e, 0, sizeof e);
	retries = 0;
	cancel = false;
	p = puller(f.address, 100000 * MS);
	return 0;
}

static int teardown(void **state)
{
	cluster_puller_destroy(p);
	return 0;
}

/* In pieces of many sizes. */
static int pull_all(const struct pack_runs *r, uint8_t *out)
{
	uint64_t total = r->run_bytes * r->runs, piece = 1;
	int status = cluster_puller_source.begin(p, r, "blk.0.attn_q.weight", &e);
	for (uint64_t at = 0; at < total && !status; at += piece, piece = piece * 3 + 1) {
		piece = piece < total - at ? piece : total - at;
		status = cluster_puller_source.read(p, out + at, piece, &e);
	}
	return status;
}

static const struct pack_runs whole = {100, 3u << 20, 3u << 20, 1};

static void expect_whole(void)
{
	_cleanup_free_ uint8_t *out = malloc(whole.run_bytes);
	if (pull_all(&whole, out))
		fail_msg("%s", base_error_text(&e));
	assert_memory_equal(out, file + 100, whole.run_bytes);
}

static void expect_failure(const char *text)
{
	_cleanup_free_ uint8_t *out = malloc(whole.run_bytes);
	assert_int_equal(pull_all(&whole, out), -EREMOTEIO);
	if (!strstr(e.message, text) || !strstr(e.message, "blk.0.attn_q.weight of /m.gguf") ||
		!strstr(e.message, f.address))
		fail_msg("%s", e.message);
	assert_int_equal(retries, CLUSTER_PULL_TRIES - 1);
	if (atomic_load(&mode) != SILENT) // whose calls may be over before they begin
		assert_int_equal(atomic_load(&calls), CLUSTER_PULL_TRIES);
}

static void ranges_and_columns(void **state)
{
	static const struct pack_runs cases[] = {
		{0, 1, 1, 1}, {7, 1000, 1000, 1}, {3, 700, 2100, 1500}, {0, 1 << 20, 1 << 21, 2}, {5, 1, 3, 1000}};
	expect_whole();
	for (size_t i = 0; i < base_array_size(cases); i++) {
		const struct pack_runs *r = &cases[i];
		_cleanup_free_ uint8_t *out = malloc(r->run_bytes * r->runs);
		if (pull_all(r, out))
			fail_msg("%s", base_error_text(&e));
		for (uint64_t k = 0; k < r->runs; k++)
			assert_memory_equal(
				out + k * r->run_bytes, file + r->offset_bytes + k * r->stride_bytes, r->run_bytes);
	}
	assert_int_equal(retries, 0);
	uint8_t byte;
	assert_int_equal(cluster_puller_source.read(p, &byte, 1, &e), -EINVAL); // beyond the range
}

/* What is right is kept: only the chunk that is wrong is sent again. */
static void what_is_altered_is_pulled_again(void **state)
{
	static const enum mode modes[] = {CHECKSUM, ALTERED};
	for (size_t i = 0; i < base_array_size(modes); i++) {
		atomic_store(&mode, modes[i]);
		atomic_store(&from, 2 * CLUSTER_CHUNK_BYTES);
		atomic_store(&times, 3);
		retries = 0;
		atomic_store(&pulled, 0);
		expect_whole();
		assert_int_equal(retries, 3);
		assert_non_null(strstr(last_retry, "bytes 1048576 to 3145728"));
		assert_non_null(strstr(last_retry, "checksum"));
		assert_int_equal(atomic_load(&pulled), whole.run_bytes);
	}
}

static void what_stays_wrong_is_given_up(void **state)
{
	static const struct {
		enum mode mode;
		const char *text;
	} cases[] = {{CHECKSUM, "checksum"}, {ALTERED, "checksum"}, {SHORT, "524287 bytes where 524288"},
		{LONG, "524289 bytes where 524288"}, {EARLY, "ended early"}, {SILENT, "silent"},
		{REFUSED, "no such model"}, {NO_MESSAGE, "PullChunk"}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		atomic_store(&mode, cases[i].mode);
		atomic_store(&calls, 0);
		retries = 0;
		cluster_puller_destroy(p);
		p = puller(f.address, cases[i].mode == SILENT ? 300 * MS : 100000 * MS);
		expect_failure(cases[i].text);
	}
	/* And it goes on with what comes next. */
	atomic_store(&mode, HONEST);
	retries = 0;
	expect_whole();
	assert_int_equal(retries, 0);
}

/* Each attempt brings something: it ends. */
static void an_early_end_is_gone_on_from(void **state)
{
	atomic_store(&mode, EARLY);
	atomic_store(&from, 3 * CLUSTER_CHUNK_BYTES);
	_cleanup_free_ uint8_t *out = malloc(whole.run_bytes);
	assert_int_equal(cluster_puller_source.begin(p, &whole, "x", &e), 0);
	assert_int_equal(cluster_puller_source.read(p, out, 3 * CLUSTER_CHUNK_BYTES, &e), 0);
	atomic_store(&mode, HONEST);
	assert_int_equal(cluster_puller_source.read(
				 p, out + 3 * CLUSTER_CHUNK_BYTES, whole.run_bytes - 3 * CLUSTER_CHUNK_BYTES, &e),
		0);
	assert_memory_equal(out, file + 100, whole.run_bytes);
	assert_in_range(retries, 0, 1);
}

/* Nothing is read of what nobody asked for, however much comes. */
static void an_endless_stream_is_cut_off(void **state)
{
	atomic_store(&mode, ENDLESS);
	expect_whole();
	assert_int_equal(retries, 0);
	assert_int_equal(atomic_load(&pulled), whole.run_bytes);
	uint64_t most = whole.run_bytes + (64u << 20); // windows and what lay in them
	assert_true(atomic_load(&sent_bytes) < most);
	atomic_store(&mode, HONEST);
	expect_whole();
}

static void another_source_is_asked(void **state)
{
	char sources[256];
	cluster_puller_destroy(p);
	snprintf(sources, sizeof sources, "unix:/nowhere/thaw.sock,%s", f.address);
	p = puller(sources, 100000 * MS);
	expect_whole();
	assert_int_equal(retries, 1);
	assert_non_null(strstr(last_retry, "unix:/nowhere/thaw.sock: bytes 0 to 3145728"));
}

static void it_can_be_cancelled(void **state)
{
	static const enum mode modes[] = {SILENT, REFUSED};
	_cleanup_free_ uint8_t *out = malloc(whole.run_bytes);
	cancel = true;
	for (size_t i = 0; i < base_array_size(modes); i++) {
		atomic_store(&mode, modes[i]);
		assert_int_equal(pull_all(&whole, out), -ECANCELED);
	}
}

static void requests_that_are_none(void **state)
{
	static uint8_t digest[CLUSTER_DIGEST_BYTES];
	static const struct {
		uint64_t offset, run, stride, runs, skip;
	} bad[] = {{0, 0, 0, 1, 0}, {0, 1, 1, 0, 0}, {0, 2, 1, 1, 0}, {0, UINT64_MAX, UINT64_MAX, 2, 0},
		{UINT64_MAX, 1, 1, 1, 0}, {0, 1, UINT64_MAX, 3, 0}, {1, 1, UINT64_MAX, 2, 0}, {0, 8, 8, 1, 8},
		{0, 1ull << 33, 1ull << 33, 1ull << 31, 0}};
	struct cluster_pull out;
	Thaw__Node__V1__PullRequest m = THAW__NODE__V1__PULL_REQUEST__INIT;
	for (size_t i = 0; i < base_array_size(bad); i++) {
		m.digest = (ProtobufCBinaryData){sizeof digest, digest};
		m.offset_bytes = bad[i].offset;
		m.run_bytes = bad[i].run;
		m.stride_bytes = bad[i].stride;
		m.runs = bad[i].runs;
		m.skip_bytes = bad[i].skip;
		if (cluster_read_pull(&m, &out, &e) != -EBADMSG)
			fail_msg("case %zu", i);
	}
	m.offset_bytes = m.skip_bytes = 0;
	m.run_bytes = m.stride_bytes = m.runs = 1;
	assert_int_equal(cluster_read_pull(&m, &out, &e), 0);
	m.digest.len = 15;
	assert_int_equal(cluster_read_pull(&m, &out, &e), -EBADMSG);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(ranges_and_columns, setup, teardown),
		cmocka_unit_test_setup_teardown(what_is_altered_is_pulled_again, setup, teardown),
		cmocka_unit_test_setup_teardown(what_stays_wrong_is_given_up, setup, teardown),
		cmocka_unit_test_setup_teardown(an_early_end_is_gone_on_from, setup, teardown),
		cmocka_unit_test_setup_teardown(an_endless_stream_is_cut_off, setup, teardown),
		cmocka_unit_test_setup_teardown(another_source_is_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(it_can_be_cancelled, setup, teardown),
		cmocka_unit_test(requests_that_are_none),
	};
	return cmocka_run_group_tests(tests, setup_all, teardown_all);
}
