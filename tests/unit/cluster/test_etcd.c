// SPDX-License-Identifier: Apache-2.0
// The client of etcd against an etcd that answers wrongly, late, or not at all: its services stand where thaw.admin.v1
// stands otherwise, on the server core of daemon/rpc. What a real etcd does: tests/integration/test_etcd.c.
#include "tests/lib/testing.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/etcd/etcd.h"
#include "daemon/cluster/etcd/state.h"
#include "daemon/rpc/rpc_core.h"
#include "proto/etcd/etcd.pb-c.h"
#include "tests/lib/wait.h"
#include "tests/unit/rpc/fixture.h"

#define MS 1000000ull
#define TIMEOUT_NS TESTING_PATIENCE_NS
#define HANG_NS (300 * MS) // where nothing answers

enum mode {
	ANSWER, // as etcd would
	AWAY, // UNAVAILABLE
	REFUSE, // PERMISSION_DENIED
	HANG,
	BARE, // a message without any field
	OTHER_KEY,
	WILD, // a time to live that is none
	OVER, // the lease is not known any more
	STRANGE, // about another lease; a watch that is cancelled
	END, // of the stream
	WORLD, // by what is in `world`
};

static _Atomic enum mode mode;
static atomic_uint calls;

/* One claim, and the leases of this node and of another one. */
#define OWN_LEASE 7
#define OTHERS_LEASE 9
static struct {
	atomic_int key_lease; // that the claim is had by; 0: nobody has it
	atomic_bool lives; // the other's lease
	atomic_int others_s, own_s; // their lengths
	atomic_bool range_refused;
	atomic_int revoke_fails; // so many times
	atomic_uint ranges, takes, lengths, revokes; // that were asked for
} world;

static void refuse(struct rpc_call *c, grpc_status_code code, const char *text)
{
	struct rpc_fault f;
	rpc_fault_set(&f, code, "FAKE", NULL, "%s", text);
	rpc_call_fail(c, &f);
}

/* True: the mode was the answer. */
static bool common(struct rpc_call *c)
{
	atomic_fetch_add(&calls, 1);
	switch (atomic_load(&mode)) {
	case AWAY:
		refuse(c, GRPC_STATUS_UNAVAILABLE, "etcdserver: no leader");
		return true;
	case REFUSE:
		refuse(c, GRPC_STATUS_PERMISSION_DENIED, "etcdserver: permission denied");
		return true;
	case HANG:
		return true;
	default:
		return false;
	}
}

static ProtobufCBinaryData text(const char *t)
{
	return (ProtobufCBinaryData){strlen(t), (uint8_t *)t};
}

static void range_of_world(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__RangeResponse r = ETCDSERVERPB__RANGE_RESPONSE__INIT;
	Etcdserverpb__KeyValue kv = ETCDSERVERPB__KEY_VALUE__INIT, *list = &kv;
	atomic_fetch_add(&world.ranges, 1);
	if (atomic_load(&world.range_refused)) {
		refuse(c, GRPC_STATUS_PERMISSION_DENIED, "etcdserver: permission denied");
		return;
	}
	kv.key = ((const Etcdserverpb__RangeRequest *)request)->key;
	kv.value = text("{\"node\":\"b\",\"address\":\"10.0.0.2:1\"}");
	kv.create_revision = 3;
	kv.lease = atomic_load(&world.key_lease);
	r.kvs = &list;
	r.n_kvs = kv.lease != 0;
	rpc_call_reply(c, &r.base);
}

static void range(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__RangeResponse r = ETCDSERVERPB__RANGE_RESPONSE__INIT;
	Etcdserverpb__KeyValue kv = ETCDSERVERPB__KEY_VALUE__INIT, *list = &kv;
	if (common(c))
		return;
	if (atomic_load(&mode) == WORLD) {
		range_of_world(c, request);
		return;
	}
	kv.key = atomic_load(&mode) == OTHER_KEY ? text("/other") : ((const Etcdserverpb__RangeRequest *)request)->key;
	kv.value = text("value");
	kv.create_revision = 3;
	r.kvs = &list;
	r.n_kvs = atomic_load(&mode) != BARE;
	rpc_call_reply(c, &r.base);
}

static void txn(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__TxnResponse r = ETCDSERVERPB__TXN_RESPONSE__INIT;
	if (common(c))
		return;
	if (atomic_load(&mode) == WORLD) {
		atomic_fetch_add(&world.takes, 1);
		r.succeeded = atomic_load(&world.key_lease) == 0;
		if (r.succeeded)
			atomic_store(&world.key_lease, OWN_LEASE);
	}
	rpc_call_reply(c, &r.base); // elsewhere it does not succeed
}

static void put(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__PutResponse r = ETCDSERVERPB__PUT_RESPONSE__INIT;
	if (!common(c))
		rpc_call_reply(c, &r.base);
}

static void grant(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__LeaseGrantResponse r = ETCDSERVERPB__LEASE_GRANT_RESPONSE__INIT;
	if (common(c))
		return;
	r.id = atomic_load(&mode) == BARE ? 0 : OWN_LEASE;
	r.ttl = atomic_load(&mode) == WILD ? INT64_MAX : 2;
	if (atomic_load(&mode) == WORLD) {
		r.ttl = ((const Etcdserverpb__LeaseGrantRequest *)request)->ttl;
		atomic_store(&world.own_s, (int)r.ttl);
	}
	rpc_call_reply(c, &r.base);
}

static void length(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__LeaseTimeToLiveResponse r = ETCDSERVERPB__LEASE_TIME_TO_LIVE_RESPONSE__INIT;
	enum mode m = atomic_load(&mode);
	if (common(c))
		return;
	bool over = m == OVER || (m == WORLD && !atomic_load(&world.lives));
	r.id = m == STRANGE ? 8 : ((const Etcdserverpb__LeaseTimeToLiveRequest *)request)->id;
	r.ttl = over ? -1 : 0; // the last second
	r.grantedttl = over ? 0 : m == WILD ? INT64_MAX : m == WORLD ? atomic_load(&world.others_s) : 2;
	atomic_fetch_add(&world.lengths, 1);
	rpc_call_reply(c, &r.base);
}

static void revoke_lease(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__LeaseRevokeResponse r = ETCDSERVERPB__LEASE_REVOKE_RESPONSE__INIT;
	if (common(c))
		return;
	atomic_fetch_add(&world.revokes, 1);
	if (atomic_fetch_sub(&world.revoke_fails, 1) > 0) {
		refuse(c, GRPC_STATUS_UNAVAILABLE, "etcdserver: no leader");
		return;
	}
	if (((const Etcdserverpb__LeaseRevokeRequest *)request)->id == OWN_LEASE)
		atomic_store(&world.key_lease, 0);
	rpc_call_reply(c, &r.base);
}

static void keep(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__LeaseKeepAliveResponse r = ETCDSERVERPB__LEASE_KEEP_ALIVE_RESPONSE__INIT;
	if (!request) {
		rpc_call_end(c);
		return;
	}
	if (common(c))
		return;
	if (atomic_load(&mode) == END) {
		rpc_call_end(c);
		return;
	}
	r.id = atomic_load(&mode) == STRANGE ? 8 : ((const Etcdserverpb__LeaseKeepAliveRequest *)request)->id;
	enum mode m = atomic_load(&mode);
	r.ttl = m == OVER ? 0 : m == WILD ? -1 : m == WORLD ? atomic_load(&world.own_s) : 2;
	rpc_call_send(c, &r.base);
}

static void watch(struct rpc_call *c, const ProtobufCMessage *request)
{
	Etcdserverpb__WatchResponse r = ETCDSERVERPB__WATCH_RESPONSE__INIT;
	if (!request) {
		rpc_call_end(c);
		return;
	}
	if (common(c))
		return;
	if (atomic_load(&mode) == END) {
		rpc_call_end(c);
		return;
	}
	r.created = true;
	rpc_call_send(c, &r.base);
	if (atomic_load(&mode) == STRANGE) {
		r.canceled = true;
		rpc_call_send(c, &r.base);
	}
}

#define UNARY(p, d, f)                                                                                                 \
	{                                                                                                              \
		.path = "/etcdserverpb." p, .request = &etcdserverpb__##d##__descriptor, .start = f                    \
	}
#define BOTH(p, d, f)                                                                                                  \
	{                                                                                                              \
		.path = "/etcdserverpb." p, .flags = RPC_BIDI, .request = &etcdserverpb__##d##__descriptor,            \
		.message = f                                                                                           \
	}
const struct rpc_method rpc_admin_methods[] = {
	UNARY("KV/Range", range_request, range),
	UNARY("KV/Txn", txn_request, txn),
	UNARY("KV/Put", put_request, put),
	UNARY("Lease/LeaseGrant", lease_grant_request, grant),
	UNARY("Lease/LeaseTimeToLive", lease_time_to_live_request, length),
	UNARY("Lease/LeaseRevoke", lease_revoke_request, revoke_lease),
	BOTH("Lease/LeaseKeepAlive", lease_keep_alive_request, keep),
	BOTH("Watch/Watch", watch_request, watch),
};
const uint32_t rpc_admin_methods_count = base_array_size(rpc_admin_methods);

/* ---- */

static struct fixture f;
static char endpoint[32];
static struct etcd_client *c;
static struct cluster_state *engine;
static struct base_error e;

static struct etcd_client *client(const char *endpoints, uint64_t timeout_ns)
{
	struct etcd_client *x;
	const struct etcd_config config = {.endpoints = endpoints, .timeout_ns = timeout_ns};
	if (etcd_client_create(&config, &x, &e))
		fail_msg("%s", base_error_text(&e));
	return x;
}

static int setup_all(void **state)
{
	const struct fake_options o = {.tcp = "127.0.0.1:0"};
	if (fixture_open(&f, &o))
		return -1;
	snprintf(endpoint, sizeof endpoint, "127.0.0.1:%u", rpc_server_tcp_port(f.rpc));
	return 0;
}

static int teardown_all(void **state)
{
	fixture_close(&f);
	return 0;
}

static int setup(void **state)
{
	atomic_store(&mode, ANSWER);
	memset(&e, 0, sizeof e);
	c = client(endpoint, TIMEOUT_NS);
	return 0;
}

static int teardown(void **state)
{
	etcd_state_ops.close(engine); // of a test that failed
	engine = NULL;
	etcd_client_destroy(c);
	return 0;
}

static void set_mode(enum mode m)
{
	if ((m == HANG) != (atomic_load(&mode) == HANG)) {
		etcd_client_destroy(c);
		c = client(endpoint, m == HANG ? HANG_NS : TIMEOUT_NS);
	}
	atomic_store(&mode, m);
}

static int get(void)
{
	struct etcd_value v = {0};
	int64_t revision;
	int status = etcd_get(c, "/k", &v, &revision, &e);
	free(v.data);
	return status;
}

static void expect_text(const char *what)
{
	if (!strstr(e.message, endpoint) || !strstr(e.message, what))
		fail_msg("\"%s\" should have %s and \"%s\"", e.message, endpoint, what);
}

static void addresses(void **state)
{
	static const struct {
		const char *endpoints, *text;
	} bad[] = {{"", ""}, {"host", "host"}, {"127.0.0.1:0", "port"}, {"a:1,", ""}, {"a:1,,b:2", ""},
		{"a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1,a:1", "at most 8"}, {"unix:/x", "unix"}};
	for (size_t i = 0; i < base_array_size(bad); i++) {
		struct etcd_client *x;
		const struct etcd_config config = {.endpoints = bad[i].endpoints, .timeout_ns = TIMEOUT_NS};
		memset(&e, 0, sizeof e);
		if (etcd_client_create(&config, &x, &e) != -EINVAL || !strstr(e.message, bad[i].text))
			fail_msg("%s: %s", bad[i].endpoints, e.message);
	}
	struct etcd_client *x;
	const struct etcd_config config = {.endpoints = "a:1",
		.ca = "/none/ca.pem",
		.cert = "/none/c",
		.key = "/none/k",
		.timeout_ns = TIMEOUT_NS};
	assert_int_equal(etcd_client_create(&config, &x, &e), -ENOENT);
	assert_non_null(strstr(e.message, "/none/ca.pem"));
}

static void each_failure_of_a_call(void **state)
{
	static const struct {
		enum mode mode;
		int status;
		const char *text;
	} cases[] = {{ANSWER, 0, NULL}, {AWAY, -EHOSTUNREACH, "Range: etcdserver: no leader"},
		{REFUSE, -EREMOTEIO, "Range: etcdserver: permission denied"}, {HANG, -ETIMEDOUT, "no answer in time"},
		{OTHER_KEY, -EBADMSG, "another key"}, {BARE, -ENOENT, "/k"}, {ANSWER, 0, NULL}};
	for (size_t i = 0; i < base_array_size(cases); i++) {
		set_mode(cases[i].mode);
		int status = get();
		if (status != cases[i].status)
			fail_msg("case %zu: %d: %s", i, status, e.message);
		if (status)
			expect_text(cases[i].text);
	}
}

static void a_value_that_is_too_large_is_not_sent(void **state)
{
	_cleanup_free_ char *big = calloc(1, ETCD_MAX_VALUE_BYTES + 1);
	unsigned before = atomic_load(&calls);
	assert_int_equal(etcd_put_guarded(c, "/g", 1, "/k", big, ETCD_MAX_VALUE_BYTES + 1, &e), -EMSGSIZE);
	assert_int_equal(atomic_load(&calls), before);
	assert_int_equal(etcd_put_guarded(c, "/g", 1, "/k", big, 10, &e), -ESTALE); // this one says no to all
	expect_text("/g is another's now");
}

static void nobody_is_there_and_the_next_endpoint_is(void **state)
{
	char list[64];
	snprintf(list, sizeof list, "127.0.0.1:1,%s", endpoint);
	etcd_client_destroy(c);
	c = client(list, TIMEOUT_NS);
	assert_int_equal(get(), -EHOSTUNREACH);
	assert_non_null(strstr(e.message, "127.0.0.1:1, Range"));
	assert_string_equal(etcd_client_endpoint(c), endpoint);
	assert_int_equal(get(), 0);
	atomic_store(&mode, AWAY);
	assert_int_equal(get(), -EHOSTUNREACH);
	assert_string_equal(etcd_client_endpoint(c), "127.0.0.1:1");
}

static void leases_that_go_wrong(void **state)
{
	static const struct {
		enum mode mode;
		int status;
		const char *text;
	} keeps[] = {{ANSWER, 0, NULL}, {ANSWER, 0, NULL}, {STRANGE, -EBADMSG, "another lease"},
		{WILD, -EBADMSG, "time to live"}, {OVER, -ENOENT, "the lease is over"},
		{END, -EHOSTUNREACH, "ended the stream"}, {HANG, -ETIMEDOUT, "in time"},
		{AWAY, -EHOSTUNREACH, "no leader"}, {ANSWER, 0, NULL}},
	  lengths[] = {{ANSWER, 0, NULL}, {STRANGE, -EBADMSG, "another lease"}, {WILD, -EBADMSG, "time to live"},
		  {OVER, -ENOENT, "the lease is over"}, {AWAY, -EHOSTUNREACH, "no leader"}, {ANSWER, 0, NULL}},
	  grants[] = {{WILD, -EBADMSG, "time to live"}, {BARE, -EREMOTEIO, "no lease came"},
		  {HANG, -ETIMEDOUT, "in time"}, {ANSWER, 0, NULL}};
	int64_t lease = 0;
	uint64_t until = 0;
	for (size_t i = 0; i < base_array_size(grants); i++) {
		set_mode(grants[i].mode);
		assert_int_equal(etcd_lease_grant(c, 2000 * MS, &lease, &until, &e), grants[i].status);
		if (grants[i].status)
			expect_text(grants[i].text);
	}
	for (size_t i = 0; i < base_array_size(keeps); i++) {
		set_mode(keeps[i].mode);
		int status = etcd_lease_keep(c, lease, &until, &e);
		if (status != keeps[i].status)
			fail_msg("case %zu: %d: %s", i, status, e.message);
		if (status)
			expect_text(keeps[i].text);
	}
	for (size_t i = 0; i < base_array_size(lengths); i++) {
		uint64_t ns = 0;
		set_mode(lengths[i].mode);
		int status = etcd_lease_length(c, lease, &ns, &e);
		if (status != lengths[i].status)
			fail_msg("length %zu: %d: %s", i, status, e.message);
		if (status)
			expect_text(lengths[i].text);
		else
			assert_int_equal(ns, 2000 * MS);
	}
}

static void watches_that_go_wrong(void **state)
{
	assert_int_equal(etcd_watch(c, "/k", 1, 50 * MS, &e), 0);
	assert_int_equal(etcd_watch(c, "/k", 1, 50 * MS, &e), 0);
	atomic_store(&mode, STRANGE);
	assert_int_equal(etcd_watch(c, "/other", 1, TIMEOUT_NS, &e), 1); // cancelled: look, and watch anew
	atomic_store(&mode, END);
	assert_int_equal(etcd_watch(c, "/k", 1, TIMEOUT_NS, &e), -EHOSTUNREACH);
	expect_text("Watch");
	set_mode(HANG);
	assert_int_equal(etcd_watch(c, "/k", 1, 50 * MS, &e), 0); // as one on which nothing happens
	set_mode(AWAY);
	assert_int_equal(etcd_watch(c, "/other", 1, TIMEOUT_NS, &e), -EHOSTUNREACH);
	expect_text("no leader");
}

/* ---- the engine ---- */

static struct cluster_state_config engine_config(uint64_t lease_ns)
{
	return (struct cluster_state_config){.who = "a",
		.cluster = "lab",
		.address = "10.0.0.1:1",
		.endpoints = endpoint,
		.ca = "",
		.cert = "",
		.key = "",
		.lease_ns = lease_ns};
}

static void engine_open(uint64_t lease_ns)
{
	const struct cluster_state_config config = engine_config(lease_ns);
	if (etcd_state_ops.open(&config, &engine, &e))
		fail_msg("%s", base_error_text(&e));
}

static void engine_close(void)
{
	etcd_state_ops.close(engine);
	engine = NULL;
}

static struct cluster_claim claim_now(void)
{
	struct cluster_claim claim;
	etcd_state_ops.claim(engine, &claim);
	return claim;
}

/* Another has the claim, and this node stands by. */
static void stand_by(uint64_t own_lease_ns, int others_s)
{
	memset(&world, 0, sizeof world);
	world.key_lease = OTHERS_LEASE;
	world.lives = true;
	world.others_s = others_s;
	atomic_store(&mode, WORLD);
	engine_open(own_lease_ns);
	testing_wait_until(claim_now().kind == CLUSTER_CLAIM_OTHER && atomic_load(&world.lengths));
	assert_string_equal(claim_now().holder, "b");
}

/* By whoever deletes it by hand: its holder takes it back. */
static void a_key_that_is_gone_is_not_taken_while_its_lease_lives(void **state)
{
	stand_by(ETCD_MIN_LEASE_NS, 2);
	unsigned asked = atomic_load(&world.lengths);
	atomic_store(&world.key_lease, 0);
	testing_wait_until(atomic_load(&world.lengths) >= asked + 3);
	assert_int_equal(claim_now().kind, CLUSTER_CLAIM_NONE);
	assert_int_equal(atomic_load(&world.takes), 0);
	atomic_store(&world.lives, false);
	testing_wait_until(claim_now().kind == CLUSTER_CLAIM_HELD);
	engine_close();
}

/* This node's own lease is over long before; the other's may not be, by its own count. */
static void after_an_absence_the_claim_is_left_for_the_others_lease(void **state)
{
	stand_by(ETCD_MIN_LEASE_NS, 3600);
	atomic_store(&mode, AWAY);
	testing_wait_until(claim_now().why[0]);
	atomic_store(&world.key_lease, 0); // and etcd comes back without it
	atomic_store(&world.lives, false);
	atomic_store(&mode, WORLD);
	testing_wait_until(!claim_now().why[0]);
	unsigned asked = atomic_load(&world.ranges);
	testing_wait_until(atomic_load(&world.ranges) >= asked + 7); // more than its own lease, and a second
	assert_int_equal(claim_now().kind, CLUSTER_CLAIM_NONE);
	assert_int_equal(atomic_load(&world.takes), 0);
	engine_close();
}

/* Others would wait for the lease to run out, and it may be a long one. */
static void the_claim_is_given_back_though_etcd_fails(void **state)
{
	memset(&world, 0, sizeof world);
	atomic_store(&mode, WORLD);
	engine_open(2 * ETCD_MIN_LEASE_NS);
	testing_wait_until(claim_now().kind == CLUSTER_CLAIM_HELD);
	atomic_store(&world.range_refused, true);
	testing_wait_until(claim_now().why[0]);
	atomic_store(&world.revoke_fails, 1);
	engine_close();
	assert_int_equal(atomic_load(&world.revokes), 2);
	assert_int_equal(atomic_load(&world.key_lease), 0);
}

/* The engine never gives up, and never asks more often than it should. */
static void an_etcd_that_always_fails_is_asked_slowly(void **state)
{
	struct cluster_state *s;
	struct cluster_claim claim;
	const struct cluster_state_config config = engine_config(ETCD_MIN_LEASE_NS);
	atomic_store(&mode, REFUSE);
	unsigned before = atomic_load(&calls);
	uint64_t started = base_clock_now_ns();
	assert_int_equal(etcd_state_ops.open(&config, &s, &e), 0);
	testing_wait_until(atomic_load(&calls) - before >= 5);
	assert_true(base_clock_now_ns() - started >= 1500 * MS); // 0.1, 0.2, 0.4, 0.8 s between
	testing_wait_until((etcd_state_ops.claim(s, &claim), claim.why[0]));
	assert_int_equal(claim.kind, CLUSTER_CLAIM_NONE);
	assert_non_null(strstr(claim.why, "permission denied"));
	assert_non_null(strstr(claim.why, endpoint));
	etcd_state_ops.close(s);
	struct cluster_state_config other = config;
	other.lease_ns = 1000 * MS;
	assert_int_equal(etcd_state_ops.open(&other, &s, &e), -EINVAL);
	other = config;
	other.endpoints = "nowhere";
	assert_int_equal(etcd_state_ops.open(&other, &s, &e), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(addresses, setup, teardown),
		cmocka_unit_test_setup_teardown(each_failure_of_a_call, setup, teardown),
		cmocka_unit_test_setup_teardown(a_value_that_is_too_large_is_not_sent, setup, teardown),
		cmocka_unit_test_setup_teardown(nobody_is_there_and_the_next_endpoint_is, setup, teardown),
		cmocka_unit_test_setup_teardown(leases_that_go_wrong, setup, teardown),
		cmocka_unit_test_setup_teardown(watches_that_go_wrong, setup, teardown),
		cmocka_unit_test_setup_teardown(a_key_that_is_gone_is_not_taken_while_its_lease_lives, setup, teardown),
		cmocka_unit_test_setup_teardown(
			after_an_absence_the_claim_is_left_for_the_others_lease, setup, teardown),
		cmocka_unit_test_setup_teardown(the_claim_is_given_back_though_etcd_fails, setup, teardown),
		cmocka_unit_test_setup_teardown(an_etcd_that_always_fails_is_asked_slowly, setup, teardown),
	};
	return cmocka_run_group_tests(tests, setup_all, teardown_all);
}
