// SPDX-License-Identifier: Apache-2.0
// thaw.node.v1 over real TLS, with peers that are made up: who may join, what each other one is told, and that the
// coordinator goes on.
#include "tests/lib/testing.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/pki.h"
#include "daemon/cluster/pull.h"
#include "daemon/cluster/worker.h"
#include "proto/check.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "shard/pack/sources.h"
#include "tests/lib/wait.h"
#include "tests/unit/rpc/fixture.h"

#define JOIN "/thaw.node.v1.Coordinator/Join"
#define MS 1000000ull
#define LOST_NS (3000 * MS) // in the tests that are about it; never in the others
#define PATIENCE_NS TESTING_PATIENCE_NS

struct world {
	struct fixture rpc;
	struct cluster_coordinator *coordinator;
	char folder[64], other[80], events[8192];
	pthread_mutex_t lock;
};

static struct world w;

static const char *at(const char *name, char out[static 160])
{
	snprintf(out, 160, "%s/%s", w.folder, name);
	return out;
}

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	pthread_mutex_lock(&w.lock);
	size_t n = strlen(w.events);
	snprintf(w.events + n, sizeof w.events - n, "%s: %s\n", kind, text);
	pthread_mutex_unlock(&w.lock);
}

static bool had_event(const char *text)
{
	pthread_mutex_lock(&w.lock);
	bool found = strstr(w.events, text) != NULL;
	pthread_mutex_unlock(&w.lock);
	return found;
}

static void expect_event(const char *text)
{
	testing_wait_until(had_event(text));
}

static void issue(const char *directory, const char *name, enum cluster_role role)
{
	static const char *const addresses[] = {"127.0.0.1"};
	const struct cluster_pki_node n = {
		.name = name, .role = role, .addresses = addresses, .addresses_count = 1, .days = 3};
	struct base_error e = {0};
	if (cluster_pki_issue(directory, &n, &e))
		fail_msg("%s", base_error_text(&e));
}

/* A certificate of the CA that ended yesterday. */
static void issue_expired(const char *name)
{
	char path[160];
	issue(w.folder, name, CLUSTER_ROLE_WORKER);
	FILE *f = fopen(at("ca.key", path), "re");
	EVP_PKEY *key = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	snprintf(path, sizeof path, "%s/%s.crt", w.folder, name);
	f = fopen(path, "r+e");
	X509 *cert = PEM_read_X509(f, NULL, NULL, NULL);
	assert_non_null(key);
	assert_non_null(cert);
	X509_gmtime_adj(X509_getm_notBefore(cert), -3 * 86400);
	X509_gmtime_adj(X509_getm_notAfter(cert), -86400);
	assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
	rewind(f);
	assert_int_equal(PEM_write_X509(f, cert), 1);
	fclose(f);
	X509_free(cert);
	EVP_PKEY_free(key);
}

static int setup_with(uint64_t lost_ns)
{
	static char cert[160], key[160], ca[160];
	struct cluster_state *s;
	struct base_error e = {0};
	pthread_mutex_init(&w.lock, NULL);
	snprintf(w.folder, sizeof w.folder, "/tmp/thaw-node-XXXXXX");
	assert_non_null(mkdtemp(w.folder));
	snprintf(w.other, sizeof w.other, "%s/other", w.folder);
	assert_int_equal(cluster_pki_init(w.folder, "lab", 10, &e), 0);
	assert_int_equal(cluster_pki_init(w.other, "zoo", 10, &e), 0);
	issue(w.folder, "head", CLUSTER_ROLE_COORDINATOR);
	const struct cluster_coordinator_config c = {.cluster = "lab",
		.node = "head",
		.version = "1.2",
		.host = "127.0.0.1",
		.nodes = 1,
		.heartbeat_ns = 50 * MS,
		.lost_ns = lost_ns,
		.events = {.event = on_event}};
	const struct cluster_state_config file = {.who = "head", .directory = w.folder};
	if (cluster_state_file_ops.open(&file, &s, &e) || cluster_coordinator_create(&c, s, &w.coordinator, &e))
		fail_msg("%s", base_error_text(&e));
	const struct fake_options o = {.cluster_listen = "127.0.0.1:0",
		.cert = at("head.crt", cert),
		.key = at("head.key", key),
		.ca = at("ca.crt", ca),
		.coordinator = w.coordinator};
	return fixture_open(&w.rpc, &o);
}

static int setup(void **state)
{
	return setup_with(10 * PATIENCE_NS);
}

static int setup_impatient(void **state)
{
	return setup_with(LOST_NS);
}

static int teardown(void **state)
{
	char command[96];
	fixture_close(&w.rpc);
	cluster_coordinator_destroy(w.coordinator);
	snprintf(command, sizeof command, "rm -r %s", w.folder);
	FILE *p = popen(command, "r");
	return p && pclose(p) == 0 ? 0 : -1;
}

/* ---- a node that is made up ---- */

struct peer {
	struct rpc_client *client;
	struct rpc_client_stream *stream;
	struct cluster_facts facts;
	const struct topology_machine *machine; // NULL: it says nothing of its devices
	struct rpc_client_status status;
	uint32_t heartbeats;
};

static void peer_open(struct peer *p, const char *directory, const char *name)
{
	char ca[160], cert[160], key[160], address[64];
	struct base_error e = {0};
	snprintf(ca, sizeof ca, "%s/ca.crt", w.folder);
	snprintf(cert, sizeof cert, "%s/%s.crt", directory, name);
	snprintf(key, sizeof key, "%s/%s.key", directory, name);
	snprintf(address, sizeof address, "127.0.0.1:%u", rpc_server_cluster_port(w.rpc.rpc));
	const struct rpc_client_tls tls = {.ca = ca, .cert = cert, .key = key};
	*p = (struct peer){.facts = {.version = "1.2", .cluster = "lab", .incarnation = 7, .cpus = 2}};
	snprintf(p->facts.node, sizeof p->facts.node, "%s", name);
	snprintf(p->facts.address, sizeof p->facts.address, "127.0.0.1");
	p->facts.wall_ns = base_clock_wall_ns();
	if (rpc_client_create(address, &tls, &p->client, &e) ||
		rpc_client_stream_open_both(p->client, JOIN, &p->stream))
		fail_msg("%s", base_error_text(&e));
}

static void peer_close(struct peer *p)
{
	rpc_client_stream_close(p->stream);
	rpc_client_destroy(p->client);
}

static void peer_send_register(struct peer *p)
{
	_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
	size_t bytes;
	cluster_fill_register(&p->facts, m);
	if (p->machine)
		cluster_fill_machine(p->machine, m);
	_cleanup_free_ uint8_t *data = cluster_pack_node(&m->message, &bytes);
	rpc_client_stream_send(p->stream, data, bytes, PATIENCE_NS);
}

static void peer_beat(struct peer *p)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Heartbeat h = THAW__NODE__V1__HEARTBEAT__INIT;
	size_t bytes;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_HEARTBEAT;
	m.heartbeat = &h;
	_cleanup_free_ uint8_t *data = cluster_pack_node(&m, &bytes);
	rpc_client_stream_send(p->stream, data, bytes, PATIENCE_NS);
}

/* The next message that is no heartbeat: its case; 0 at the end, with the status; -1 after ns. */
static int peer_next(struct peer *p, uint64_t ns)
{
	const uint8_t *data;
	size_t bytes;
	uint64_t until = base_clock_now_ns() + ns;
	while (base_clock_now_ns() < until) {
		int r = rpc_client_stream_wait(p->stream, 20 * MS, &data, &bytes, &p->status);
		if (r == -ETIMEDOUT)
			continue;
		if (r != 1)
			return 0;
		struct proto_budget budget;
		ProtobufCMessage *m;
		assert_int_equal(proto_unpack(&thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget,
					 &m, NULL, NULL),
			0);
		int what = (int)((Thaw__Node__V1__CoordinatorMessage *)m)->what_case;
		protobuf_c_message_free_unpacked(m, &budget.allocator);
		if (what != THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_HEARTBEAT)
			return what;
		p->heartbeats++;
	}
	return -1;
}

static void peer_join(struct peer *p, const char *name)
{
	peer_open(p, w.folder, name);
	peer_send_register(p);
	if (peer_next(p, PATIENCE_NS) != THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ACCEPTED)
		fail_msg("%s: %s", name, p->status.message);
}

static void expect_refusal(struct peer *p, const char *reason, const char *text)
{
	peer_send_register(p);
	int r = peer_next(p, PATIENCE_NS);
	if (r != 0 || strcmp(p->status.reason, reason) != 0 || !strstr(p->status.message, text))
		fail_msg("%d: %s: %s; wanted %s: %s", r, p->status.reason, p->status.message, reason, text);
	peer_close(p);
}

static struct cluster_node_info *node_of(const char *name)
{
	static struct cluster_node_info infos[CLUSTER_MAX_NODES];
	uint32_t n = cluster_coordinator_nodes(w.coordinator, infos, CLUSTER_MAX_NODES);
	for (uint32_t i = 0; i < n; i++) {
		if (strcmp(infos[i].name, name) == 0)
			return &infos[i];
	}
	return NULL;
}

/* Until it was heard and has heard, often. */
static void beat_until_heard(struct peer *p, const char *name)
{
	uint64_t end = base_clock_now_ns() + PATIENCE_NS;
	for (uint32_t times = 0; times < 3 || p->heartbeats < 3;) {
		uint64_t heard = node_of(name)->heard_ns;
		peer_beat(p);
		if (peer_next(p, 50 * MS) != -1)
			fail_msg("%s: %s", name, p->status.message);
		times += node_of(name)->heard_ns > heard;
		if (base_clock_now_ns() > end)
			fail_msg("%s was heard %u times, and heard %u", name, times, p->heartbeats);
	}
	assert_int_equal(node_of(name)->state, CLUSTER_NODE_READY);
}

/* ---- tests ---- */

static void join_beat_and_come_back(void **state)
{
	struct peer p, again;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	peer_join(&p, "a");
	beat_until_heard(&p, "a");
	peer_close(&p); // its connection ends: at once
	expect_event("node a: its connection ended");
	testing_wait_until(node_of("a")->state == CLUSTER_NODE_LOST);
	/* Another process of the same name. */
	peer_join(&again, "a");
	assert_int_equal(node_of("a")->state, CLUSTER_NODE_READY);
	peer_close(&again);
	testing_wait_until(node_of("a")->losses == 2);
}

/* Silent, with an open connection: told so, and lost, but only after that time without a word. A node that beats is
 * there for longer than that, unless the machine does so many other things that it is silent, too. */
static void silence_is_a_loss(void **state)
{
	struct peer p;
	double silent_s = 0;
	int what = -1;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	peer_join(&p, "a");
	uint64_t until = node_of("a")->since_ns + LOST_NS * 5 / 4;
	while (what == -1 && node_of("a")->heard_ns < until) {
		peer_beat(&p);
		what = peer_next(&p, 50 * MS);
	}
	assert_int_equal(what == -1 ? peer_next(&p, PATIENCE_NS) : what, 0);
	assert_string_equal(p.status.reason, "SILENT");
	assert_int_equal(node_of("a")->state, CLUSTER_NODE_LOST);
	if (sscanf(node_of("a")->why, "no heartbeat for %lf s", &silent_s) != 1 || silent_s < (double)LOST_NS / 1e9)
		fail_msg("%s", node_of("a")->why);
	peer_close(&p);
}

static void leave(void **state)
{
	struct peer p;
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Leave l = THAW__NODE__V1__LEAVE__INIT;
	size_t bytes;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	peer_join(&p, "a");
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_LEAVE;
	m.leave = &l;
	_cleanup_free_ uint8_t *data = cluster_pack_node(&m, &bytes);
	rpc_client_stream_send(p.stream, data, bytes, PATIENCE_NS);
	assert_int_equal(peer_next(&p, PATIENCE_NS), 0);
	assert_int_equal(p.status.code, 0);
	assert_int_equal(node_of("a")->state, CLUSTER_NODE_LEFT);
	peer_close(&p);
}

static Thaw__Admin__V1__GetTopologyReply *ask_topology(void)
{
	Thaw__Admin__V1__GetTopologyRequest q = THAW__ADMIN__V1__GET_TOPOLOGY_REQUEST__INIT;
	struct rpc_client_status s;
	ProtobufCMessage *m = fixture_call(w.rpc.client, "/thaw.admin.v1.Admin/GetTopology", &q.base,
		&thaw__admin__v1__get_topology_reply__descriptor, &s);
	if (!m)
		fail_msg("%s", s.message);
	return (Thaw__Admin__V1__GetTopologyReply *)m;
}

static const Thaw__Admin__V1__Machine *machine_of(const Thaw__Admin__V1__GetTopologyReply *t, const char *name)
{
	for (size_t i = 0; i < t->n_machines; i++) {
		if (strcmp(t->machines[i]->name, name) == 0)
			return t->machines[i];
	}
	return NULL;
}

static void machines_of_all_nodes_are_shown(void **state)
{
	static struct topology_machine scanned = {.nodes_count = 2,
		.nodes = {{0, 1 << 20, 1}, {1, 1 << 21, 1}},
		.gpus_count = 1,
		.gpus = {{.name = "gpu0",
			.model = "H\xc3\xa9",
			.pci_path = "0000:01:00.0",
			.numa_node = 1,
			.size_bytes = 7}},
		.nics_count = 1,
		.nics = {{.name = "eth0", .numa_node = -1}}};
	struct peer a, b;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	peer_open(&a, w.folder, "a");
	a.machine = &scanned;
	snprintf(a.facts.host, sizeof a.facts.host, "hosta");
	snprintf(a.facts.rack, sizeof a.facts.rack, "r1");
	a.facts.bandwidths.drive_bytes_per_s = 3e9;
	peer_send_register(&a);
	assert_int_equal(peer_next(&a, PATIENCE_NS), THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ACCEPTED);
	peer_join(&b, "b"); // an older one, which does not tell

	/* Lost or not: it is a busy machine's business. What they have stays known. */
	Thaw__Admin__V1__GetTopologyReply *t = ask_topology();
	assert_int_equal(t->n_machines, 3);
	assert_true(t->machines[0]->coordinator); // head, which does not compute
	assert_string_equal(t->machines[0]->host, "testhost");
	assert_string_equal(t->machines[0]->state, "");
	assert_string_equal(t->host, "testhost");
	const Thaw__Admin__V1__Machine *m = machine_of(t, "a");
	assert_non_null(m);
	assert_false(m->coordinator);
	assert_string_equal(m->host, "hosta");
	assert_string_equal(m->rack, "r1");
	assert_string_equal(machine_of(t, "b")->rack, "");
	assert_true(strcmp(m->state, "ready") == 0 || strcmp(m->state, "lost") == 0);
	assert_int_equal(m->n_numa_nodes, 2);
	assert_int_equal(m->numa_nodes[1]->memory_bytes, 1 << 21);
	assert_int_equal(m->n_devices, 2);
	assert_int_equal(m->devices[0]->kind, THAW__ADMIN__V1__DEVICE_KIND__DEVICE_KIND_GPU);
	assert_string_equal(m->devices[0]->model, "H\xc3\xa9");
	assert_int_equal(m->devices[0]->numa_node, 1);
	assert_int_equal(m->devices[1]->numa_node, -1);
	assert_true(m->bandwidths->drive_bytes_per_second == 3e9);
	assert_int_equal(machine_of(t, "b")->n_devices, 0);
	protobuf_c_message_free_unpacked(&t->base, NULL);
	peer_close(&a);
	testing_wait_until(node_of("a")->state == CLUSTER_NODE_LOST);
	t = ask_topology();
	assert_string_equal(machine_of(t, "a")->state, "lost");
	assert_int_equal(machine_of(t, "a")->n_devices, 2);
	protobuf_c_message_free_unpacked(&t->base, NULL);
	peer_close(&b);
}

/* More than there is room for is refused by name, and takes nothing with it. */
static void machines_of_any_size_are_bounded(void **state)
{
	static const char *const errors[] = {"machine: numa_nodes: 17, at most 16",
		"machine: devices: more than 64 drives", "machine: devices[].kind: 9 is none",
		"machine: devices[].model: 64 bytes, at most 63"};
	Thaw__Admin__V1__NumaNode node = THAW__ADMIN__V1__NUMA_NODE__INIT, *nodes[17];
	Thaw__Admin__V1__Device drive = THAW__ADMIN__V1__DEVICE__INIT, odd = drive, wordy = drive, *drives[65];
	char model[65];
	memset(model, 'x', 64);
	model[64] = '\0';
	wordy.model = model;
	odd.kind = (Thaw__Admin__V1__DeviceKind)9;
	for (size_t i = 0; i < base_array_size(nodes); i++)
		nodes[i] = &node;
	for (size_t i = 0; i < base_array_size(drives); i++)
		drives[i] = &drive;
	Thaw__Admin__V1__Device *odds[] = {&odd}, *wordies[] = {&wordy};
	for (size_t i = 0; i < base_array_size(errors); i++) {
		_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
		_cleanup_free_ struct topology_machine *ret = calloc(1, sizeof *ret);
		const struct cluster_facts f = {.cpus = 1};
		struct base_error e = {0};
		cluster_fill_register(&f, m);
		m->machine.n_numa_nodes = i == 0 ? base_array_size(nodes) : 0;
		m->machine.numa_nodes = nodes;
		m->machine.n_devices = i == 0 ? 0 : i == 1 ? base_array_size(drives) : 1;
		m->machine.devices = i == 1 ? drives : i == 2 ? odds : wordies;
		assert_int_equal(cluster_read_machine(&m->reg, ret, &e), -EBADMSG);
		assert_string_equal(base_error_text(&e), errors[i]);
	}
}

static void racks_have_names(void **state)
{
	static const char *const good[] = {"", "r1", "row-3.rack-7"};
	static const char *const bad[] = {"../r1", "R1", "-r", "r ", "r\n1", "\xc3\xa9",
		"0123456789012345678901234567890123456789012345678901234567890123"};
	const struct cluster_facts f = {.version = "1", .cluster = "lab", .node = "a", .cpus = 1};
	_cleanup_free_ struct cluster_register_message *m = calloc(1, sizeof *m);
	_cleanup_free_ struct cluster_facts *ret = calloc(1, sizeof *ret);
	struct base_error e = {0};
	cluster_fill_register(&f, m);
	for (size_t i = 0; i < base_array_size(good); i++) {
		m->reg.rack = (char *)good[i];
		if (cluster_read_register(&m->reg, ret, &e))
			fail_msg("%s", base_error_text(&e));
		assert_string_equal(ret->rack, good[i]);
	}
	for (size_t i = 0; i < base_array_size(bad); i++) {
		m->reg.rack = (char *)bad[i];
		assert_int_equal(cluster_read_register(&m->reg, ret, &e), -EBADMSG);
		assert_memory_equal(base_error_text(&e), "rack: \"", 7);
	}
}

static void refusals(void **state)
{
	struct peer p, first;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	issue(w.folder, "c", CLUSTER_ROLE_COORDINATOR);
	issue(w.folder, "d", CLUSTER_ROLE_CLIENT);
	peer_join(&first, "b");

	peer_open(&p, w.folder, "b");
	p.facts.incarnation = 99;
	expect_refusal(&p, "SAME_NAME", "a node called b is here already");
	peer_open(&p, w.folder, "a");
	snprintf(p.facts.version, sizeof p.facts.version, "1.3");
	expect_refusal(&p, "DOES_NOT_MATCH", "node a runs thaw 1.3, its coordinator 1.2");
	peer_open(&p, w.folder, "a");
	p.facts.wall_ns -= 3600 * 1000 * MS;
	expect_refusal(&p, "DOES_NOT_MATCH", " s behind that of head");
	peer_open(&p, w.folder, "a");
	snprintf(p.facts.cluster, sizeof p.facts.cluster, "zoo");
	expect_refusal(&p, "WRONG_IDENTITY", "node a is of cluster zoo, this is cluster lab");
	peer_open(&p, w.folder, "a");
	snprintf(p.facts.node, sizeof p.facts.node, "q");
	expect_refusal(&p, "WRONG_IDENTITY", "node q has the certificate of a");
	peer_open(&p, w.folder, "c");
	expect_refusal(&p, "WRONG_IDENTITY", "has the role coordinator");
	peer_open(&p, w.folder, "d");
	expect_refusal(&p, "WRONG_IDENTITY", "has the role client");
	peer_open(&p, w.folder, "a");
	p.facts.cpus = 0;
	expect_refusal(&p, "MALFORMED", "machine.cpus");
	peer_open(&p, w.folder, "a");
	snprintf(p.facts.rack, sizeof p.facts.rack, "../r1");
	expect_refusal(&p, "MALFORMED", "rack: \"../r1\" is no name");
	peer_open(&p, w.folder, "a");
	peer_beat(&p);
	expect_refusal(&p, "OUT_OF_TURN", "before Register");
	expect_event("node_refused: node a runs thaw 1.3");
	/* And it goes on. */
	peer_beat(&first);
	assert_int_equal(node_of("b")->state, CLUSTER_NODE_READY);
	assert_null(node_of("a"));
	peer_close(&first);
}

/* Its end may be handled before its first message: the coordinator's end, in teardown, finds no session then. */
static void gone_at_once(void **state)
{
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	for (int i = 0; i < 60; i++) {
		struct peer p;
		peer_open(&p, w.folder, "a");
		peer_send_register(&p);
		peer_close(&p);
	}
}

/* The text of gRPC alone: the server has not seen a call. */
static void expect_no_way(struct peer *p)
{
	peer_send_register(p);
	assert_int_equal(peer_next(p, PATIENCE_NS), 0);
	assert_int_not_equal(p->status.code, 0);
	assert_string_equal(p->status.reason, "");
	assert_true(p->status.message[0]);
	peer_close(p);
}

static void certificates(void **state)
{
	struct peer p, good;
	issue(w.other, "a", CLUSTER_ROLE_WORKER);
	issue_expired("old");
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	peer_open(&p, w.other, "a"); // of another CA
	expect_no_way(&p);
	peer_open(&p, w.folder, "old");
	expect_no_way(&p);
	peer_join(&good, "b");
	peer_close(&good);
}

static int connect_raw(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_port = htons(rpc_server_cluster_port(w.rpc.rpc)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	return fd;
}

static void random_bytes_on_the_port(void **state)
{
	struct peer good;
	uint32_t seed = 1;
	int fds[32];
	for (int i = 0; i < 32; i++) {
		uint8_t bytes[512];
		for (size_t k = 0; k < sizeof bytes; k++)
			bytes[k] = (uint8_t)((seed = seed * 1664525 + 1013904223) >> 24);
		fds[i] = connect_raw();
		(void)!send(fds[i], bytes, sizeof bytes, MSG_NOSIGNAL);
	}
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	peer_join(&good, "a");
	for (int i = 0; i < 32; i++)
		close(fds[i]);
	/* A message that is none, from a node with a certificate. */
	struct peer bad;
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	peer_open(&bad, w.folder, "b");
	rpc_client_stream_send(bad.stream, "\xff\xff\xff\xff\xff", 5, PATIENCE_NS);
	assert_int_equal(peer_next(&bad, PATIENCE_NS), 0);
	assert_string_equal(bad.status.reason, "MALFORMED");
	peer_close(&bad);
	peer_beat(&good);
	assert_int_equal(node_of("a")->state, CLUSTER_NODE_READY);
	peer_close(&good);
}

static void only_nodes_are_served_there(void **state)
{
	struct peer p;
	uint8_t *reply = NULL;
	size_t bytes = 0;
	struct rpc_client_status s;
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	peer_open(&p, w.folder, "a");
	rpc_client_stream_close(p.stream);
	assert_int_equal(
		rpc_client_call(p.client, "/thaw.admin.v1.Admin/GetServerInfo", "", 0, PATIENCE_NS, &reply, &bytes, &s),
		0);
	assert_string_equal(s.reason, "NODES_ONLY");
	assert_int_equal(
		rpc_client_call(p.client, "/grpc.health.v1.Health/Check", "", 0, PATIENCE_NS, &reply, &bytes, &s), 0);
	assert_int_equal(s.code, 0);
	free(reply);
	rpc_client_destroy(p.client);
	/* Over the unix socket only the coordinator's own name joins. */
	p = (struct peer){.facts = {.version = "1.2", .cluster = "lab", .node = "a", .cpus = 1}};
	p.facts.wall_ns = base_clock_wall_ns();
	assert_int_equal(rpc_client_create(w.rpc.address, NULL, &p.client, NULL), 0);
	assert_int_equal(rpc_client_stream_open_both(p.client, JOIN, &p.stream), 0);
	expect_refusal(&p, "WRONG_IDENTITY", "over the unix socket");
}

/* ---- models' files ---- */

#define PULL "/thaw.node.v1.Coordinator/Pull"
#define MODEL_BYTES (3u << 20)

static int no_plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	return -ENOMEM;
}

static struct cluster_fleet *model_open(int fd)
{
	struct cluster_fleet *f;
	const struct cluster_fleet_config c = {.model = "m",
		.path = "/models/m.gguf",
		.digest = {1, 2, 3},
		.file_bytes = MODEL_BYTES,
		.header_bytes = 1,
		.file_fd = fd,
		.plan = no_plan};
	assert_int_equal(cluster_fleet_create(w.coordinator, &c, &f, NULL), 0);
	return f;
}

/* Runs of 1000 bytes each 3000, or what is refused: its reason. Returns what came. */
static uint64_t pull(struct peer *p, uint8_t first, uint64_t runs, const uint8_t *file)
{
	const struct cluster_pull x = {.digest = {first, 2, 3}, .runs = {17, 1000, 3000, runs}};
	struct rpc_client_stream *s;
	const uint8_t *data;
	size_t bytes;
	uint64_t at = 0;
	_cleanup_free_ uint8_t *request = cluster_pack_pull(&x, &bytes);
	assert_int_equal(rpc_client_stream_open(p->client, PULL, request, bytes, PATIENCE_NS, &s), 0);
	while (rpc_client_stream_next(s, &data, &bytes, &p->status) == 1) {
		struct proto_budget budget;
		ProtobufCMessage *u;
		assert_int_equal(
			proto_unpack(&thaw__node__v1__pull_chunk__descriptor, data, bytes, &budget, &u, NULL, NULL), 0);
		const Thaw__Node__V1__PullChunk *m = (const Thaw__Node__V1__PullChunk *)u;
		assert_int_equal(cluster_check_chunk(m, runs * 1000 - at, NULL), 0);
		for (size_t i = 0; i < m->data.len; i++, at++)
			assert_int_equal(m->data.data[i], file[17 + at / 1000 * 3000 + at % 1000]);
		protobuf_c_message_free_unpacked(u, &budget.allocator);
	}
	rpc_client_stream_close(s);
	return at;
}

static void models_are_for_nodes_that_compute(void **state)
{
	_cleanup_free_ uint8_t *file = malloc(MODEL_BYTES);
	char path[160];
	struct peer a, c;
	int fd = open(at("m.gguf", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (uint32_t i = 0, v = 1; i < MODEL_BYTES; i++, v = v * 1664525 + 1013904223)
		file[i] = (uint8_t)(v >> 24);
	assert_int_equal(write(fd, file, MODEL_BYTES), MODEL_BYTES);
	struct cluster_fleet *f = model_open(fd);
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	issue(w.folder, "c", CLUSTER_ROLE_CLIENT);
	peer_open(&a, w.folder, "a");
	peer_open(&c, w.folder, "c");

	assert_int_equal(pull(&a, 1, 1000, file), 1000000);
	assert_int_equal(a.status.code, 0);
	assert_int_equal(cluster_coordinator_served(w.coordinator), 1000000);
	assert_int_equal(pull(&c, 1, 1, file), 0);
	assert_string_equal(c.status.reason, "WRONG_IDENTITY");
	assert_int_equal(pull(&a, 7, 1, file), 0);
	assert_string_equal(a.status.reason, "NOT_FOUND");
	assert_int_equal(pull(&a, 1, 2000, file), 0);
	assert_string_equal(a.status.reason, "MALFORMED");
	assert_non_null(strstr(a.status.message, "m.gguf has 3145728"));
	/* Its name is another file's by now, or none's: what was loaded is still there. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(pull(&a, 1, 10, file), 10000);
	/* But not when it was written to. */
	assert_int_equal(pwrite(fd, "x", 1, 3000000), 1);
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1}};
	assert_int_equal(futimens(fd, times), 0);
	assert_int_equal(pull(&a, 1, 10, file), 0);
	assert_string_equal(a.status.reason, "FILE_CHANGED");
	assert_int_equal(ftruncate(fd, 1000), 0);
	assert_int_equal(pull(&a, 1, 10, file), 0);
	assert_string_equal(a.status.reason, "DATA_LOSS");
	cluster_fleet_destroy(f);
	assert_int_equal(pull(&a, 1, 1, file), 0);
	assert_string_equal(a.status.reason, "NOT_FOUND");
	peer_close(&a);
	peer_close(&c);
	close(fd);
}

/* ---- copies of nodes that compute ---- */

static _Atomic uint64_t copy_served;

static int open_copy(const struct cluster_identity *peer, const struct cluster_pull *what,
	struct cluster_source *ret_source, struct base_error *e)
{
	const struct cluster_copies c = {
		.cluster = "lab", .node = "b", .store_path = w.folder, .served_bytes = &copy_served};
	return cluster_copy_open(&c, peer, what, ret_source, e);
}

static int setup_worker(void **state)
{
	static char cert[160], key[160], ca[160];
	struct base_error e = {0};
	pthread_mutex_init(&w.lock, NULL);
	snprintf(w.folder, sizeof w.folder, "/tmp/thaw-node-XXXXXX");
	assert_non_null(mkdtemp(w.folder));
	assert_int_equal(cluster_pki_init(w.folder, "lab", 10, &e), 0);
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	w.coordinator = NULL;
	const struct fake_options o = {.cluster_listen = "127.0.0.1:0",
		.cert = at("b.crt", cert),
		.key = at("b.key", key),
		.ca = at("ca.crt", ca),
		.open_source = open_copy};
	return fixture_open(&w.rpc, &o);
}

static bool never(void *context)
{
	return false;
}

/* Of a model with this digest, from the node that is said to be `name`. */
static int pull_from(const char *who, const char *name, uint8_t first, const struct pack_runs *runs, uint8_t *out,
	struct base_error *e)
{
	char sources[128], ca[160], cert[160], key[160];
	struct cluster_puller *p;
	snprintf(sources, sizeof sources, "127.0.0.1:%u%s%s", rpc_server_cluster_port(w.rpc.rpc), name[0] ? "=" : "",
		name);
	snprintf(ca, sizeof ca, "%s/ca.crt", w.folder);
	snprintf(cert, sizeof cert, "%s/%s.crt", w.folder, who);
	snprintf(key, sizeof key, "%s/%s.key", w.folder, who);
	const struct cluster_puller_config c = {.cluster = "lab",
		.sources = sources,
		.tls = {.ca = ca, .cert = cert, .key = key},
		.digest = {first, 2, 3},
		.path = "/m.gguf",
		.pause_ns = MS,
		.cancelled = never};
	assert_int_equal(cluster_puller_create(&c, &p, e), 0);
	int status = cluster_puller_source.begin(p, runs, "x", e);
	if (!status)
		status = cluster_puller_source.read(p, out, runs->run_bytes * runs->runs, e);
	cluster_puller_destroy(p);
	return status;
}

static void expect_no_pull(const char *who, const char *name, uint8_t first, const char *text)
{
	uint8_t byte;
	struct base_error e = {0};
	assert_int_equal(pull_from(who, name, first, &(struct pack_runs){0, 1, 1, 1}, &byte, &e), -EREMOTEIO);
	if (!strstr(e.message, text))
		fail_msg("\"%s\" is not in: %s", text, e.message);
}

/* To nodes of the cluster that know its name, by what sources.json remembers, as long as that file is what was
 * digested. */
static void a_worker_gives_what_it_has_a_copy_of(void **state)
{
	static const struct pack_runs runs = {17, 1000, 3000, 1000};
	static const uint8_t digest[16] = {1, 2, 3};
	_cleanup_free_ uint8_t *file = malloc(MODEL_BYTES), *out = malloc(runs.run_bytes * runs.runs);
	char path[160];
	struct stat st;
	struct base_error e = {0};
	int fd = open(at("m.gguf", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	for (uint32_t i = 0, v = 1; i < MODEL_BYTES; i++, v = v * 1664525 + 1013904223)
		file[i] = (uint8_t)(v >> 24);
	assert_int_equal(write(fd, file, MODEL_BYTES), MODEL_BYTES);
	issue(w.folder, "a", CLUSTER_ROLE_BOTH);
	issue(w.folder, "c", CLUSTER_ROLE_CLIENT);
	expect_no_pull("a", "b", 1, "no copy of a model with this digest is at b");
	_cleanup_close_ int store = open(w.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(pack_sources_put(store, path, &st, digest, &e), 0);
	if (pull_from("a", "b", 1, &runs, out, &e))
		fail_msg("%s", base_error_text(&e));
	for (uint64_t k = 0; k < runs.runs; k++)
		assert_memory_equal(out + k * runs.run_bytes, file + runs.offset_bytes + k * runs.stride_bytes, 1000);
	assert_int_equal(atomic_load(&copy_served), 1000000);
	expect_no_pull("a", "b", 7, "no copy of a model with this digest is at b");
	expect_no_pull("a", "zebra", 1, "127.0.0.1"); // another node than that is there
	expect_no_pull("a", "", 1, "that is not this cluster's coordinator");
	expect_no_pull("c", "b", 1, "role client");
	const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1}};
	assert_int_equal(futimens(fd, times), 0);
	expect_no_pull("a", "b", 1, "no copy of a model with this digest is at b");
	assert_int_equal(unlink(path), 0);
	expect_no_pull("a", "b", 1, "no copy of a model with this digest is at b");
	close(fd);
}

/* As many as may be, all left unread: a node joins and beats meanwhile. */
static void pulls_do_not_hold_heartbeats_up(void **state)
{
	struct rpc_client_stream *s[70];
	char path[160];
	struct peer a, b;
	size_t bytes;
	int fd = open(at("m.gguf", path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, MODEL_BYTES), 0);
	struct cluster_fleet *f = model_open(fd);
	const struct cluster_pull x = {.digest = {1, 2, 3}, .runs = {0, MODEL_BYTES, MODEL_BYTES, 1}};
	_cleanup_free_ uint8_t *request = cluster_pack_pull(&x, &bytes);
	issue(w.folder, "a", CLUSTER_ROLE_WORKER);
	issue(w.folder, "b", CLUSTER_ROLE_WORKER);
	peer_open(&a, w.folder, "a");
	for (size_t i = 0; i < base_array_size(s); i++)
		assert_int_equal(rpc_client_stream_open(a.client, PULL, request, bytes, 0, &s[i]), 0);
	peer_join(&b, "b");
	beat_until_heard(&b, "b");
	uint32_t refused = 0;
	for (size_t i = 0; i < base_array_size(s); i++) {
		const uint8_t *data;
		size_t n;
		struct rpc_client_status status = {0};
		refused += rpc_client_stream_wait(s[i], 60000 * MS, &data, &n, &status) == 0 &&
			   strcmp(status.reason, "QUEUE_FULL") == 0;
	}
	assert_true(refused >= 70 - 64);
	for (size_t i = 0; i < base_array_size(s); i++)
		rpc_client_stream_close(s[i]);
	peer_close(&b);
	peer_close(&a);
	cluster_fleet_destroy(f);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(join_beat_and_come_back, setup, teardown),
		cmocka_unit_test_setup_teardown(silence_is_a_loss, setup_impatient, teardown),
		cmocka_unit_test_setup_teardown(leave, setup, teardown),
		cmocka_unit_test_setup_teardown(machines_of_all_nodes_are_shown, setup, teardown),
		cmocka_unit_test(machines_of_any_size_are_bounded),
		cmocka_unit_test(racks_have_names),
		cmocka_unit_test_setup_teardown(refusals, setup, teardown),
		cmocka_unit_test_setup_teardown(gone_at_once, setup, teardown),
		cmocka_unit_test_setup_teardown(certificates, setup, teardown),
		cmocka_unit_test_setup_teardown(random_bytes_on_the_port, setup, teardown),
		cmocka_unit_test_setup_teardown(only_nodes_are_served_there, setup, teardown),
		cmocka_unit_test_setup_teardown(models_are_for_nodes_that_compute, setup, teardown),
		cmocka_unit_test_setup_teardown(a_worker_gives_what_it_has_a_copy_of, setup_worker, teardown),
		cmocka_unit_test_setup_teardown(pulls_do_not_hold_heartbeats_up, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
