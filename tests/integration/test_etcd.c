// SPDX-License-Identifier: Apache-2.0
// The fleet's state in a real etcd, which is started here in a folder of its own, killed, stopped and started again.
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/etcd/etcd.h"
#include "daemon/cluster/etcd/state.h"
#include "tests/lib/port.h"
#include "tests/lib/wait.h"

#define MS 1000000ull
#define LEASE_NS (2000 * MS)
#define LONG_LEASE_NS (4000 * MS) // where another coordinator waits for the first one as long as that
#define MAX_OPEN 4u
#define SKIP 77
#define KEY "/thaw/lab/coordinator"

extern char **environ;

struct world {
	char folder[64], endpoint[32], client_url[48], peer_url[48], cluster[64];
	pid_t pid;
};

static struct world w;
/* What a test has opened: left behind by one that fails it would go on to hold the claim. */
static struct cluster_state *opened[MAX_OPEN];
static pid_t holder;

static void rest(uint64_t ns)
{
	nanosleep(&(struct timespec){.tv_sec = (time_t)(ns / BASE_NS_PER_SECOND),
			  .tv_nsec = (long)(ns % BASE_NS_PER_SECOND)},
		NULL);
}

/* 0, or the error of finding it. */
static int etcd_start(void)
{
	char log[96];
	posix_spawn_file_actions_t actions;
	const char *argv[] = {"etcd", "--data-dir", w.folder, "--listen-client-urls", w.client_url,
		"--advertise-client-urls", w.client_url, "--listen-peer-urls", w.peer_url,
		"--initial-advertise-peer-urls", w.peer_url, "--initial-cluster", w.cluster, "--logger", "zap",
		"--log-level", "error", NULL};
	snprintf(log, sizeof log, "%s.log", w.folder);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	posix_spawn_file_actions_adddup2(&actions, 1, 2);
	int status = posix_spawnp(&w.pid, "etcd", &actions, NULL, (char **)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	return status;
}

static void etcd_kill(void)
{
	kill(w.pid, SIGCONT);
	kill(w.pid, SIGKILL);
	waitpid(w.pid, NULL, 0);
}

/* All of it: a thread that had not heard of the signal yet could still answer. */
static void etcd_stop(void)
{
	int status;
	kill(w.pid, SIGSTOP);
	assert_int_equal(waitpid(w.pid, &status, WUNTRACED), w.pid);
	assert_true(WIFSTOPPED(status));
}

static struct etcd_client *client(void)
{
	struct etcd_client *c;
	struct base_error e = {0};
	const struct etcd_config config = {.endpoints = w.endpoint, .timeout_ns = TESTING_PATIENCE_NS};
	if (etcd_client_create(&config, &c, &e))
		fail_msg("%s", base_error_text(&e));
	return c;
}

static void etcd_wait(void)
{
	struct etcd_client *c = client();
	struct etcd_value v;
	struct base_error e = {0};
	int64_t revision;
	testing_wait_until(etcd_get(c, "/none", &v, &revision, &e) == -ENOENT);
	etcd_client_destroy(c);
}

static struct cluster_state *open_with(const char *who, uint64_t lease_ns)
{
	struct cluster_state *s;
	struct base_error e = {0};
	const struct cluster_state_config config = {.who = who,
		.cluster = "lab",
		.address = "10.0.0.7:50152",
		.endpoints = w.endpoint,
		.ca = "",
		.cert = "",
		.key = "",
		.lease_ns = lease_ns};
	if (etcd_state_ops.open(&config, &s, &e))
		fail_msg("%s", base_error_text(&e));
	for (size_t i = 0; i < MAX_OPEN; i++) {
		if (!opened[i]) {
			opened[i] = s;
			return s;
		}
	}
	etcd_state_ops.close(s);
	fail_msg("at most %u at once", MAX_OPEN);
	return NULL;
}

static void close_state(struct cluster_state *s)
{
	for (size_t i = 0; i < MAX_OPEN; i++) {
		if (opened[i] == s)
			opened[i] = NULL;
	}
	etcd_state_ops.close(s);
}

static struct cluster_state *open_as(const char *who)
{
	return open_with(who, LEASE_NS);
}

/* How long it took. */
static uint64_t expect(struct cluster_state *s, enum cluster_claim_kind kind, struct cluster_claim *ret)
{
	struct cluster_claim claim;
	uint64_t started = base_clock_now_ns();
	do {
		etcd_state_ops.claim(s, &claim);
		if (claim.kind == kind) {
			if (ret)
				*ret = claim;
			return base_clock_now_ns() - started;
		}
		rest(5 * MS);
	} while (base_clock_now_ns() < started + TESTING_PATIENCE_NS);
	fail_msg("the claim is %d, not %d: %s", (int)claim.kind, (int)kind, claim.why);
	return 0;
}

/* A machine that is busy may be in doubt for a moment, however well all is. */
static void write_epoch(struct cluster_state *s, const char *who, uint64_t epoch)
{
	static struct cluster_record r;
	struct base_error e = {0};
	r = (struct cluster_record){
		.cluster = "lab", .epoch = epoch, .nodes_count = 1, .nodes = {{.name = "n1", .draining = true}}};
	snprintf(r.coordinator, sizeof r.coordinator, "%s", who);
	testing_wait_until(etcd_state_ops.write(s, &r, &e) == 0);
}

static void expect_epoch(struct cluster_state *s, const char *who, uint64_t epoch)
{
	static struct cluster_record r;
	struct base_error e = {0};
	testing_wait_until(etcd_state_ops.read(s, &r, &e) == 0);
	assert_int_equal(r.epoch, epoch);
	assert_string_equal(r.coordinator, who);
	assert_string_equal(r.nodes[0].name, "n1");
	assert_true(r.nodes[0].draining);
}

/* ---- tests ---- */

static void keys_and_transactions(void **state)
{
	struct etcd_client *c = client();
	struct etcd_value v = {0};
	struct base_error e = {0};
	int64_t revision = 0, born = 0, again = 0;
	assert_int_equal(etcd_get(c, "/t/a", &v, &revision, &e), -ENOENT);
	assert_true(revision > 0);
	assert_int_equal(etcd_create(c, "/t/a", "one", 3, 0, &born, &e), 0);
	assert_int_equal(etcd_create(c, "/t/a", "two", 3, 0, &again, &e), -EEXIST);
	assert_int_equal(etcd_get(c, "/t/a", &v, &revision, &e), 0);
	assert_string_equal(v.data, "one");
	assert_int_equal(v.create_revision, born);
	free(v.data);
	assert_int_equal(etcd_put_guarded(c, "/t/a", born + 1, "/t/b", "x", 1, &e), -ESTALE);
	assert_int_equal(etcd_get(c, "/t/b", &v, &revision, &e), -ENOENT);
	assert_int_equal(etcd_put_guarded(c, "/t/a", born, "/t/b", "x", 1, &e), 0);
	assert_int_equal(etcd_get(c, "/t/b", &v, &revision, &e), 0);
	free(v.data);
	assert_int_equal(etcd_watch(c, "/t/b", revision, 200 * MS, &e), 0);
	assert_int_equal(etcd_put(c, "/t/b", "y", 1, 0, &e), 0);
	assert_int_equal(etcd_watch(c, "/t/b", revision, TESTING_PATIENCE_NS, &e), 1);
	assert_int_equal(etcd_watch(c, "/t/b", revision, 200 * MS, &e), 0); // it was said once
	etcd_client_destroy(c);
}

static void leases(void **state)
{
	struct etcd_client *c = client();
	struct etcd_value v = {0};
	struct base_error e = {0};
	int64_t lease = 0, revision = 0;
	uint64_t until = 0, later = 0, length = 0;
	assert_int_equal(etcd_lease_grant(c, 2 * TESTING_PATIENCE_NS, &lease, &until, &e), 0);
	assert_int_equal(etcd_put(c, "/t/l", "v", 1, lease, &e), 0);
	rest(300 * MS);
	assert_int_equal(etcd_lease_keep(c, lease, &later, &e), 0);
	assert_true(later > until);
	assert_int_equal(etcd_lease_length(c, lease, &length, &e), 0);
	assert_int_equal(length, 2 * TESTING_PATIENCE_NS);
	assert_int_equal(etcd_get(c, "/t/l", &v, &revision, &e), 0);
	assert_int_equal(v.lease, lease);
	free(v.data);
	assert_int_equal(etcd_lease_revoke(c, lease, &e), 0);
	assert_int_equal(etcd_get(c, "/t/l", &v, &revision, &e), -ENOENT);
	assert_int_equal(etcd_lease_keep(c, lease, &later, &e), -ENOENT);
	assert_int_equal(etcd_lease_length(c, lease, &length, &e), -ENOENT);
	assert_int_equal(etcd_lease_revoke(c, lease, &e), -ENOENT);
	etcd_client_destroy(c);
}

static void handed_over_in_good_order(void **state)
{
	struct cluster_claim claim;
	struct cluster_state *a = open_with("a", TESTING_PATIENCE_NS / 4), *b;
	expect(a, CLUSTER_CLAIM_HELD, NULL);
	write_epoch(a, "a", 41);
	b = open_as("b");
	expect(b, CLUSTER_CLAIM_OTHER, &claim);
	assert_string_equal(claim.holder, "a");
	assert_string_equal(claim.address, "10.0.0.7:50152");
	expect_epoch(b, "a", 41); // who stands by may read
	static struct cluster_record r = {.cluster = "lab", .coordinator = "b", .epoch = 99};
	assert_int_equal(etcd_state_ops.write(b, &r, NULL), -ESTALE); // and no more
	close_state(a);
	print_message("closed: the standby has it after %.3f s\n", (double)expect(b, CLUSTER_CLAIM_HELD, NULL) / 1e9);
	expect_epoch(b, "a", 41);
	write_epoch(b, "b", 42);
	close_state(b);
}

/* A process that holds the claim until it is killed: this program, once more. */
static int hold(const char *endpoint)
{
	snprintf(w.endpoint, sizeof w.endpoint, "%s", endpoint);
	struct cluster_state *s = open_as("first");
	expect(s, CLUSTER_CLAIM_HELD, NULL);
	write_epoch(s, "first", 50);
	if (write(1, "!", 1) != 1)
		return 1;
	for (;;)
		pause();
}

static void start_holder(void)
{
	int pipe_fd[2];
	char held;
	posix_spawn_file_actions_t actions;
	const char *argv[] = {"test_etcd", "hold", w.endpoint, NULL};
	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC), 0);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], 1);
	assert_int_equal(posix_spawn(&holder, "/proc/self/exe", &actions, NULL, (char **)argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(pipe_fd[1]);
	assert_int_equal(read(pipe_fd[0], &held, 1), 1);
	close(pipe_fd[0]);
}

static void kill_holder(void)
{
	if (!holder)
		return;
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	holder = 0;
}

static void holder_is_killed(void **state)
{
	start_holder();
	struct cluster_state *s = open_as("spare");
	expect(s, CLUSTER_CLAIM_OTHER, NULL);
	kill_holder();
	uint64_t ns = expect(s, CLUSTER_CLAIM_HELD, NULL);
	print_message("killed: the standby has it after %.3f s\n", (double)ns / 1e9);
	expect_epoch(s, "first", 50);
	close_state(s);
}

/* Who stands by cannot know that the holder will not come back, and leaves it the length of its lease: not the own one,
 * which is over no sooner than the patience of this test, and not nothing, since the own one says that etcd need not be
 * asked for a while. */
static void etcd_hangs_and_the_holder_is_killed(void **state)
{
	struct cluster_claim claim;
	start_holder();
	struct cluster_state *s = open_with("spare", ETCD_MAX_LEASE_NS);
	testing_wait_until((expect(s, CLUSTER_CLAIM_OTHER, &claim), !claim.why[0]));
	etcd_stop();
	kill_holder();
	rest(LEASE_NS + 1000 * MS);
	uint64_t back_ns = base_clock_now_ns();
	kill(w.pid, SIGCONT);
	expect(s, CLUSTER_CLAIM_HELD, NULL);
	uint64_t ns = base_clock_now_ns() - back_ns;
	print_message("etcd is back: the standby has it after %.3f s\n", (double)ns / 1e9);
	assert_true(ns >= LEASE_NS + 1000 * MS);
	close_state(s);
}

static void etcd_is_killed_and_started(void **state)
{
	struct cluster_claim before, after;
	struct base_error e = {0};
	static struct cluster_record r = {.cluster = "lab", .coordinator = "a", .epoch = 61};
	struct cluster_state *s = open_as("a");
	expect(s, CLUSTER_CLAIM_HELD, &before);
	write_epoch(s, "a", 60);
	etcd_kill();
	int status = etcd_state_ops.write(s, &r, &e);
	assert_true(status == -EHOSTUNREACH || status == -ETIMEDOUT || status == -ESTALE); // the last: in doubt already
	assert_true(status == -ESTALE || strstr(e.message, w.endpoint));
	expect(s, CLUSTER_CLAIM_DOUBT, &after);
	assert_non_null(strstr(after.why, w.endpoint));
	assert_int_equal(after.term, before.term);
	assert_int_equal(etcd_state_ops.write(s, &r, &e), -ESTALE);
	assert_int_equal(etcd_start(), 0);
	print_message("started again: held again after %.3f s\n", (double)expect(s, CLUSTER_CLAIM_HELD, &after) / 1e9);
	/* The lease may be renewed a moment before the key has been looked at: until then the claim says what was
	 * wrong. */
	testing_wait_until((expect(s, CLUSTER_CLAIM_HELD, &after), !after.why[0]));
	expect_epoch(s, "a", 60);
	write_epoch(s, "a", 62);
	close_state(s);
}

/* Either one has the claim again. On a machine that is too busy for the first to come for it that is the spare one, but
 * not before it has left it the first one's lease and a second. */
static void expect_left_alone(struct cluster_state *s, struct cluster_state *spare, uint64_t back_ns)
{
	struct cluster_claim first, second = {0};
	testing_wait_until((etcd_state_ops.claim(s, &first), etcd_state_ops.claim(spare, &second),
		first.kind == CLUSTER_CLAIM_HELD || second.kind == CLUSTER_CLAIM_HELD));
	if (second.kind == CLUSTER_CLAIM_HELD) {
		assert_true(base_clock_now_ns() - back_ns >= LONG_LEASE_NS + 1000 * MS);
		print_message("the spare one has it: a busy machine\n");
		return;
	}
	expect(spare, CLUSTER_CLAIM_OTHER, &second);
	assert_string_equal(second.holder, "a");
	write_epoch(s, "a", 72);
}

/* Nothing answers, and nothing is refused either. */
static void etcd_hangs(void **state)
{
	struct cluster_claim claim;
	struct base_error e = {0};
	static struct cluster_record r = {.cluster = "lab", .coordinator = "a", .epoch = 71};
	struct cluster_state *s = open_with("a", LONG_LEASE_NS), *spare;
	expect(s, CLUSTER_CLAIM_HELD, NULL);
	spare = open_with("spare", ETCD_MAX_LEASE_NS);
	testing_wait_until((expect(spare, CLUSTER_CLAIM_OTHER, &claim), !claim.why[0]));
	etcd_stop();
	int status = etcd_state_ops.write(s, &r, &e);
	expect(s, CLUSTER_CLAIM_DOUBT, &claim);
	rest(1000 * MS); // the lease is over, and etcd sees that as soon as it goes on
	uint64_t back_ns = base_clock_now_ns();
	kill(w.pid, SIGCONT);
	if (status != -ETIMEDOUT && status != -ESTALE)
		fail_msg("%d: %s", status, e.message);
	expect_left_alone(s, spare, back_ns);
	close_state(spare);
	close_state(s);
}

static void lease_is_taken_away(void **state)
{
	struct cluster_claim before, after;
	struct etcd_value v = {0};
	int64_t revision;
	struct base_error e = {0};
	struct etcd_client *c = client();
	struct cluster_state *s = open_as("a");
	expect(s, CLUSTER_CLAIM_HELD, &before);
	assert_int_equal(etcd_get(c, KEY, &v, &revision, &e), 0);
	assert_int_equal(etcd_lease_revoke(c, v.lease, &e), 0);
	free(v.data);
	/* Who follows the claim sees that it was somebody else's for a while. */
	testing_wait_until((expect(s, CLUSTER_CLAIM_HELD, &after), after.term > before.term));
	close_state(s);
	etcd_client_destroy(c);
}

static void what_stands_there_is_no_record(void **state)
{
	struct cluster_claim claim;
	static struct cluster_record r;
	struct base_error e = {0};
	struct etcd_client *c = client();
	assert_int_equal(etcd_put(c, "/thaw/lab/record", "\x01{]", 3, 0, &e), 0);
	assert_int_equal(etcd_put(c, KEY, "\xff\xfe not JSON", 11, 0, &e), 0);
	struct cluster_state *s = open_as("a");
	expect(s, CLUSTER_CLAIM_OTHER, &claim);
	assert_string_equal(claim.holder, "another");
	assert_int_equal(etcd_state_ops.read(s, &r, &e), -EBADMSG);
	assert_non_null(strstr(e.message, "/thaw/lab/record"));
	close_state(s);
	etcd_client_destroy(c);
}

static int close_all(void **state)
{
	kill_holder();
	kill(w.pid, SIGCONT); // so that etcd hears of it
	for (size_t i = 0; i < MAX_OPEN; i++)
		close_state(opened[i]);
	return 0;
}

static int setup(void **state)
{
	snprintf(w.folder, sizeof w.folder, "/tmp/thaw-etcd-XXXXXX");
	assert_non_null(mkdtemp(w.folder));
	snprintf(w.endpoint, sizeof w.endpoint, "127.0.0.1:%u", (unsigned)port_claim());
	snprintf(w.client_url, sizeof w.client_url, "http://%s", w.endpoint);
	snprintf(w.peer_url, sizeof w.peer_url, "http://127.0.0.1:%u", (unsigned)port_claim());
	snprintf(w.cluster, sizeof w.cluster, "default=%s", w.peer_url);
	if (etcd_start()) {
		print_message("etcd is not installed (apt install etcd-server): nothing is tested\n");
		_exit(SKIP);
	}
	etcd_wait();
	return 0;
}

static int teardown(void **state)
{
	char command[160];
	etcd_kill();
	snprintf(command, sizeof command, "rm -r %s %s.log", w.folder, w.folder);
	FILE *p = popen(command, "r");
	return p && pclose(p) == 0 ? 0 : -1;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "hold") == 0)
		return hold(argv[2]);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(keys_and_transactions, close_all),
		cmocka_unit_test_teardown(leases, close_all),
		cmocka_unit_test_teardown(handed_over_in_good_order, close_all),
		cmocka_unit_test_teardown(holder_is_killed, close_all),
		cmocka_unit_test_teardown(etcd_is_killed_and_started, close_all),
		cmocka_unit_test_teardown(etcd_hangs, close_all),
		cmocka_unit_test_teardown(etcd_hangs_and_the_holder_is_killed, close_all),
		cmocka_unit_test_teardown(lease_is_taken_away, close_all),
		cmocka_unit_test_teardown(what_stands_there_is_no_record, close_all),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
