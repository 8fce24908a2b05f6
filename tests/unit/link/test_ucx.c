// SPDX-License-Identifier: Apache-2.0
/* What only the ucx engine can get wrong: deaths with data under way, strangers at its ports, hellos, leaks. */
#include "tests/lib/testing.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/ucx_internal.h"

#define SECONDS(n) (base_clock_now_ns() + (n)*BASE_NS_PER_SECOND)
#define BIG (64u << 20)

static const struct link_ops *const ops = &link_ucx_ops;

struct half {
	int fd;
	uint32_t me;
	struct link_group *group;
	int status;
	struct base_error e;
};

static void *half_main(void *arg)
{
	struct half *h = arg;
	int fds[2];
	fds[h->me] = -1;
	fds[1 - h->me] = h->fd;
	h->status = ops->create(fds, 2, h->me, 3, 1 << 20, LINK_UNTIL(SECONDS(60)), &h->group, &h->e);
	return NULL;
}

static void pair_create_over(struct half h[2], const int pair[2])
{
	pthread_t t;
	for (uint32_t i = 0; i < 2; i++)
		h[i] = (struct half){.fd = pair[i], .me = i};
	assert_int_equal(pthread_create(&t, NULL, half_main, &h[1]), 0);
	half_main(&h[0]);
	pthread_join(t, NULL);
	if (h[0].status || h[1].status)
		fail_msg("%s; %s", base_error_text(&h[0].e), base_error_text(&h[1].e));
}

static void pair_create(struct half h[2])
{
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	pair_create_over(h, pair);
}

/* Member 1 is a process that streams to member 0 and takes what it sends, for ever. */
static pid_t streaming_peer(struct link_group **ret_group)
{
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct half h = {.fd = pair[1], .me = 1};
		close(pair[0]);
		half_main(&h);
		uint8_t *in = malloc(BIG), *out = calloc(1, BIG);
		struct link_request r[2];
		while (h.status == 0) {
			ops->receive(h.group, 0, 1, in, BIG, &r[0]);
			ops->send(h.group, 0, 1, out, BIG, &r[1]);
			if (ops->wait(h.group, &r[0], SECONDS(60)) || ops->wait(h.group, &r[1], SECONDS(60)))
				break;
		}
		_exit(0);
	}
	struct half h = {.fd = pair[0], .me = 0};
	close(pair[1]);
	half_main(&h);
	assert_int_equal(h.status, 0);
	*ret_group = h.group;
	return pid;
}

/* Until a message is on its way in and another out. One call of progress may see a whole message through when the peer
 * is quick: then the next ones are tried. */
static void stream_a_while(struct link_group *g, uint8_t *in, uint8_t *out, struct link_request r[2])
{
	for (int i = 0; i < 200; i++) {
		ops->receive(g, 1, 1, in, BIG, &r[0]);
		ops->send(g, 1, 1, out, BIG, &r[1]);
		while (r[0].bytes < BIG / 4 && r[0].status == -EINPROGRESS)
			ops->progress(g, 1);
		if (r[0].status == -EINPROGRESS && r[1].status == -EINPROGRESS)
			return;
		assert_int_equal(ops->wait(g, &r[0], SECONDS(60)), 0);
		assert_int_equal(ops->wait(g, &r[1], SECONDS(60)), 0);
	}
	fail_msg("every message was through at once");
}

/* Waits for one of the two, and lets the next message follow where one was through before the link's end: what is under
 * way may be near its own end. */
static int wait_for_end(
	struct link_group *g, uint8_t *in, uint8_t *out, struct link_request r[2], uint32_t which, uint64_t deadline_ns)
{
	int status;
	while ((status = ops->wait(g, &r[which], deadline_ns)) == 0) {
		if (r[0].status == 0)
			ops->receive(g, 1, 1, in, BIG, &r[0]);
		if (r[1].status == 0)
			ops->send(g, 1, 1, out, BIG, &r[1]);
	}
	return status;
}

/* After the end nothing may write to what was being received, nor read what was being sent: both are taken away. */
static void end_and_take_away(struct link_group *g, uint8_t *in, uint8_t *out, struct link_request r[2])
{
	assert_int_equal(wait_for_end(g, in, out, r, 0, SECONDS(60)), -ECONNRESET);
	assert_int_equal(wait_for_end(g, in, out, r, 1, SECONDS(60)), -ECONNRESET);
	munmap(in, BIG);
	munmap(out, BIG);
	for (int i = 0; i < 20; i++)
		ops->progress(g, 8);
	ops->close(g); // ends
}

static uint8_t *map_big(void)
{
	void *p = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(p != MAP_FAILED);
	return p;
}

static void test_killed_with_data_under_way(void **state)
{
	struct link_group *g;
	struct link_request r[2];
	pid_t pid = streaming_peer(&g);
	uint8_t *in = map_big(), *out = map_big();
	stream_a_while(g, in, out, r);
	uint64_t start = base_clock_now_ns();
	kill(pid, SIGKILL);
	assert_int_equal(wait_for_end(g, in, out, r, 0, SECONDS(60)), -ECONNRESET);
	uint64_t took = base_clock_now_ns() - start;
	printf("death with data under way seen after %.2f ms\n", (double)took / 1e6);
	end_and_take_away(g, in, out, r);
	waitpid(pid, NULL, 0);
}

/* A stopped process is alive as far as the link can tell: waits end by their deadline, revoke and close work. */
static void test_stopped(void **state)
{
	struct link_group *g;
	struct link_request r[2];
	pid_t pid = streaming_peer(&g);
	uint8_t *in = map_big(), *out = map_big();
	stream_a_while(g, in, out, r);
	kill(pid, SIGSTOP);
	uint64_t deadline = base_clock_now_ns() + 300000000;
	assert_int_equal(wait_for_end(g, in, out, r, 1, deadline), -ETIMEDOUT);
	assert_true(base_clock_now_ns() >= deadline);
	ops->revoke(g);
	end_and_take_away(g, in, out, r);
	kill(pid, SIGCONT);
	int status = -1;
	assert_int_equal(waitpid(pid, &status, 0), pid); // it sees the end, too
	assert_int_equal(status, 0);
}

static void *revoke_soon(void *arg)
{
	usleep(3000);
	ops->revoke(arg);
	return NULL;
}

static void test_revoked_with_data_under_way(void **state)
{
	for (int round = 0; round < 4; round++) {
		struct link_group *g;
		struct link_request r[2];
		pthread_t t;
		pid_t pid = streaming_peer(&g);
		uint8_t *in = map_big(), *out = map_big();
		stream_a_while(g, in, out, r);
		assert_int_equal(pthread_create(&t, NULL, revoke_soon, g), 0);
		assert_int_equal(wait_for_end(g, in, out, r, 0, LINK_NO_DEADLINE), -ECONNRESET);
		pthread_join(t, NULL);
		end_and_take_away(g, in, out, r);
		int status = -1;
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

// ---- strangers

/* Ports that this process listens at. */
static size_t own_ports(uint16_t *ports, size_t room)
{
	char line[512];
	size_t n = 0;
	FILE *f = fopen("/proc/self/net/tcp", "r");
	assert_non_null(f);
	DIR *d = opendir("/proc/self/fd");
	assert_non_null(d);
	while (fgets(line, sizeof line, f)) {
		unsigned port, state;
		unsigned long inode;
		if (sscanf(line, " %*d: %*8x:%4x %*8x:%*4x %2x %*x:%*x %*x:%*x %*x %*u %*u %lu", &port, &state,
			    &inode) != 3 ||
			state != 10)
			continue;
		char want[64], have[300], path[300];
		snprintf(want, sizeof want, "socket:[%lu]", inode);
		rewinddir(d);
		for (struct dirent *entry; (entry = readdir(d));) {
			snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
			ssize_t k = readlink(path, have, sizeof have - 1);
			if (k > 0 && n < room && (have[k] = 0, strcmp(have, want) == 0))
				ports[n++] = (uint16_t)port;
		}
	}
	closedir(d);
	fclose(f);
	return n;
}

static void assert_works(struct half h[2])
{
	struct link_request r[2];
	char in[6] = {0};
	ops->receive(h[0].group, 1, 4, in, sizeof in, &r[0]);
	ops->send(h[1].group, 0, 4, "hello", 6, &r[1]);
	while (r[0].status == -EINPROGRESS || r[1].status == -EINPROGRESS) {
		ops->test(h[0].group, &r[0]);
		ops->test(h[1].group, &r[1]);
	}
	assert_int_equal(r[0].status, 0);
	assert_string_equal(in, "hello");
}

/* UCX 1.13 ends the process on some bytes. Its ports take no connection once the group is there, from whoever. */
static void test_strangers_at_data_ports(void **state)
{
	struct half h[2];
	uint16_t ports[8];
	pair_create(h);
	size_t count = own_ports(ports, 8);
	assert_in_range(count, 1, 8);
	for (size_t i = 0; i < count; i++) {
		struct sockaddr_in to = {
			.sin_family = AF_INET, .sin_port = htons(ports[i]), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)!connect(fd, (struct sockaddr *)&to, sizeof to);
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		assert_int_equal(poll(&p, 1, 200), 0); // no answer
		assert_works(h);
		close(fd);
	}
	ops->close(h[0].group);
	ops->close(h[1].group);
}

static void hear(const struct link_ucx_hello *hello, size_t bytes, int want, const char *text)
{
	int pair[2];
	struct link_group *g;
	struct base_error e = {0};
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(send(pair[0], hello, bytes, 0), bytes);
	int fds[2] = {pair[1], -1};
	uint64_t deadline = want == -ETIMEDOUT ? base_clock_now_ns() + 100000000 : SECONDS(60);
	assert_int_equal(ops->create(fds, 2, 1, 0, 0, LINK_UNTIL(deadline), &g, &e), want);
	assert_non_null(strstr(e.message, text));
	close(pair[0]);
	close(pair[1]);
}

static void test_hostile_hello(void **state)
{
	struct link_ucx_library library;
	unsigned major, minor, release;
	assert_int_equal(link_ucx_library_load(&library, NULL), 0);
	library.get_version(&major, &minor, &release);
	const struct link_ucx_hello good = {0x7863756c, 1, major << 16 | minor << 8, 2, 0, 1, 3, 8192, 5, 50, 0};
	struct link_ucx_hello h;
	memset(&h, 0x5a, sizeof h);
	hear(&h, sizeof h, -EPROTO, "member 0");
	hear(&good, sizeof good - 1, -ETIMEDOUT, "member 0");
	hear(&good, sizeof good, -ETIMEDOUT, "member 0"); // no address
	h = good, h.version = 2;
	hear(&h, sizeof h, -EPROTO, "version 2");
	h = good, h.ucx_version = 1 << 16 | 20 << 8;
	hear(&h, sizeof h, -EPROTO, "UCX 1.20");
	h = good, h.to = 0;
	hear(&h, sizeof h, -EPROTO, "to 0");
	h = good, h.epoch = 0;
	hear(&h, sizeof h, -EPROTO, "epoch 0");
	h = good, h.ring_bytes = 1ull << 62;
	hear(&h, sizeof h, -EPROTO, "rings");
	h = good, h.address_bytes = 1u << 31;
	hear(&h, sizeof h, -EPROTO, "address");
}

/* Whoever does not know the token, or is of another epoch, is not heard; a known peer that breaks the rules ends the
 * group. */
static void test_forged_messages(void **state)
{
	struct half h[2];
	pair_create(h);
	struct link_ucx_group *forger = (struct link_ucx_group *)h[1].group;
	struct link_ucx_pair *p = &forger->pairs[0];
	struct link_request r, s;
	char in[8];
	uint64_t token = p->its_token, sent = p->sent;
	ops->receive(h[0].group, 1, 1, in, sizeof in, &r);

	p->its_token ^= 1;
	ops->send(h[1].group, 0, 1, "forged", 6, &s);
	p->its_token = token;
	forger->core.group.epoch = 2;
	ops->send(h[1].group, 0, 1, "old", 3, &s);
	forger->core.group.epoch = 3;
	p->sent = sent;
	p->out_head = 0;
	ops->send(h[1].group, 0, 1, "true", 4, &s);
	for (uint64_t end = SECONDS(60); r.status == -EINPROGRESS && base_clock_now_ns() < end;) {
		ops->progress(h[1].group, 8);
		ops->test(h[0].group, &r);
	}
	assert_int_equal(r.status, 0);
	assert_memory_equal(in, "true", 4);

	ops->receive(h[0].group, 1, 1, in, sizeof in, &r);
	p->sent += 5; // messages are missing
	ops->send(h[1].group, 0, 1, "later", 5, &s);
	ops->progress(h[1].group, 8);
	assert_int_equal(ops->wait(h[0].group, &r, SECONDS(60)), -ECONNRESET);
	ops->close(h[0].group);
	ops->close(h[1].group);
}

// ---- resources

static size_t count_fds(void)
{
	size_t n = 0;
	DIR *d = opendir("/proc/self/fd");
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void test_many_epochs(void **state)
{
	struct half h[2];
	size_t fds = 0;
	for (int i = 0; i < 40; i++) {
		pair_create(h);
		assert_works(h);
		if (i % 2)
			ops->revoke(h[0].group);
		ops->close(h[0].group);
		ops->close(h[1].group);
		if (i == 10)
			fds = count_fds();
	}
	assert_int_equal(count_fds(), fds);
}

static void test_ipv6_sockets(void **state)
{
	struct half h[2];
	struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	socklen_t n = sizeof at;
	int pair[2], listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, n) < 0) {
		printf("no IPv6 here\n");
		skip();
	}
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &n), 0);
	pair[0] = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(pair[0], (struct sockaddr *)&at, n), 0);
	pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	close(listener);
	pair_create_over(h, pair);
	assert_works(h);
	ops->close(h[0].group);
	ops->close(h[1].group);
}

static void test_tcp_only(void **state)
{
	struct half h[2];
	char *text = NULL;
	size_t n;
	pair_create(h);
	FILE *f = open_memstream(&text, &n);
	struct link_ucx_group *g = (struct link_ucx_group *)h[0].group;
	g->ucp.ep_print_info(g->pairs[1].ep, f);
	fclose(f);
	assert_non_null(strstr(text, "tcp/lo")); // the interface of the sockets
	assert_null(strstr(text, "sysv"));
	assert_null(strstr(text, "posix"));
	assert_null(strstr(text, "cma"));
	free(text);
	ops->close(h[0].group);
	ops->close(h[1].group);
}

/* Loading UCX must not leave its handler of SIGHUP, nor using it a patched C library. (Sanitizers have handlers of
 * their own for the others.) */
static void test_process_is_left_alone(void **state)
{
	struct sigaction a;
	uint8_t before[16], after[16];
	struct half h[2];
	memcpy(before, (const void *)(uintptr_t)madvise, sizeof before);
	pair_create(h);
	memcpy(after, (const void *)(uintptr_t)madvise, sizeof after);
	assert_memory_equal(before, after, sizeof before);
	assert_int_equal(sigaction(SIGHUP, NULL, &a), 0);
	assert_true(a.sa_handler == SIG_DFL);
	ops->close(h[0].group);
	ops->close(h[1].group);
}

#define LOADERS 4u

static void *load_main(void *arg)
{
	struct link_ucx_library library;
	pthread_barrier_wait(arg);
	return link_ucx_library_load(&library, NULL) ? arg : NULL;
}

/* In a process of its own, which has no UCX yet; its exit status is the number of threads that did not get it. */
static _Noreturn void load_at_once(int out)
{
	pthread_t t[LOADERS];
	pthread_barrier_t all;
	int failed = 0;
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	pthread_barrier_init(&all, NULL, LOADERS);
	for (uint32_t i = 0; i < LOADERS; i++)
		failed += pthread_create(&t[i], NULL, load_main, &all) != 0;
	for (uint32_t i = 0; i < LOADERS && !failed; i++) {
		void *r;
		pthread_join(t[i], &r);
		failed += r != NULL;
	}
	fflush(stdout);
	_exit(failed);
}

/* Models whose first links are made at the same time: UCX says nothing about being loaded twice. First of all tests,
 * before this process has it. */
static void test_loaded_by_threads_at_once(void **state)
{
	for (int i = 0; i < 12; i++) {
		int out[2], status;
		char said[512];
		size_t n = 0;
		assert_int_equal(pipe(out), 0);
		pid_t pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			load_at_once(out[1]);
		close(out[1]);
		for (ssize_t k = 1; k > 0 && n<sizeof said - 1; n += k> 0 ? (size_t)k : 0)
			k = read(out[0], said + n, sizeof said - 1 - n);
		said[n] = '\0';
		close(out[0]);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFEXITED(status));
		assert_int_equal(WEXITSTATUS(status), 0);
		assert_string_equal(said, "");
	}
}

int main(void)
{
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_DFL); // nohup ignores it
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_loaded_by_threads_at_once),
		cmocka_unit_test(test_process_is_left_alone),
		cmocka_unit_test(test_tcp_only),
		cmocka_unit_test(test_ipv6_sockets),
		cmocka_unit_test(test_killed_with_data_under_way),
		cmocka_unit_test(test_stopped),
		cmocka_unit_test(test_revoked_with_data_under_way),
		cmocka_unit_test(test_strangers_at_data_ports),
		cmocka_unit_test(test_hostile_hello),
		cmocka_unit_test(test_forged_messages),
		cmocka_unit_test(test_many_epochs),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
