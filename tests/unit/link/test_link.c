// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/measure.h"

#define SECONDS(n) (base_clock_now_ns() + (n)*BASE_NS_PER_SECOND)
#define MOST 7u

/* Each test runs over every row. */
struct engine {
	const struct link_ops *ops;
	bool tcp; // connected by TCP sockets
};

static const struct engine local = {&link_local_ops, false}, ucx = {&link_ucx_ops, false},
			   ucx_tcp = {&link_ucx_ops, true};
static const struct link_ops *ops; // of the engine under test
static bool tcp_sockets;

static int use_engine(void **state)
{
	const struct engine *e = *state;
	ops = e->ops;
	tcp_sockets = e->tcp;
	return 0;
}

static void connect_pair(int pair[2])
{
	if (!tcp_sockets) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		return;
	}
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof at;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&at, n), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &n), 0);
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(pair[0], (struct sockaddr *)&at, n), 0);
	pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(pair[1] >= 0);
	close(listener);
}

// ---- a group of threads or processes, each running the same function

struct member {
	uint32_t members, me;
	size_t ring_bytes;
	int fds[MOST];
	int (*run)(struct link_group *g, void *context);
	void *context;
	int status;
	pthread_barrier_t *before_close; // closing ends the group, also for members that still talk to others
};

static void connect_all(struct member *m, uint32_t members)
{
	for (uint32_t i = 0; i < members; i++)
		m[i].fds[i] = -1;
	for (uint32_t i = 0; i < members; i++) {
		for (uint32_t k = i + 1; k < members; k++) {
			int pair[2];
			connect_pair(pair);
			m[i].fds[k] = pair[0];
			m[k].fds[i] = pair[1];
		}
	}
}

static void *member_main(void *arg)
{
	struct member *m = arg;
	struct link_group *g = NULL;
	struct base_error e = {0};
	// Members above 0 learn epoch and ring from the lowest.
	m->status = ops->create(
		m->fds, m->members, m->me, m->me ? 0 : 7, m->me ? 0 : m->ring_bytes, LINK_UNTIL(SECONDS(60)), &g, &e);
	if (m->status < 0) {
		fprintf(stderr, "member %u: %s\n", m->me, base_error_text(&e));
		return NULL;
	}
	m->status = g->epoch == 7 ? m->run(g, m->context) : -EPROTO;
	if (m->before_close)
		pthread_barrier_wait(m->before_close);
	ops->close(g);
	return NULL;
}

static void run_threads(uint32_t members, size_t ring_bytes, int (*run)(struct link_group *, void *), void *context)
{
	struct member m[MOST] = {0};
	pthread_t threads[MOST];
	pthread_barrier_t before_close;
	connect_all(m, members);
	pthread_barrier_init(&before_close, NULL, members);
	for (uint32_t i = 0; i < members; i++) {
		m[i].before_close = &before_close;
		m[i].members = members;
		m[i].me = i;
		m[i].ring_bytes = ring_bytes;
		m[i].run = run;
		m[i].context = context;
		assert_int_equal(pthread_create(&threads[i], NULL, member_main, &m[i]), 0);
	}
	for (uint32_t i = 0; i < members; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&before_close);
	for (uint32_t i = 0; i < members; i++)
		assert_int_equal(m[i].status, 0);
}

/* Member 0 is this process. */
static void run_processes(uint32_t members, size_t ring_bytes, int (*run)(struct link_group *, void *), void *context)
{
	struct member m[MOST] = {0};
	pid_t pids[MOST] = {0};
	connect_all(m, members);
	for (uint32_t i = 0; i < members; i++) {
		m[i].members = members;
		m[i].me = i;
		m[i].ring_bytes = ring_bytes;
		m[i].run = run;
		m[i].context = context;
	}
	for (uint32_t i = 1; i < members; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i])
			continue;
		for (uint32_t k = 0; k < members; k++) {
			for (uint32_t j = 0; k != i && j < members; j++) {
				if (j != k)
					close(m[k].fds[j]);
			}
		}
		member_main(&m[i]);
		_exit(m[i].status ? 1 : 0);
	}
	for (uint32_t k = 1; k < members; k++) {
		for (uint32_t j = 0; j < members; j++) {
			if (j != k)
				close(m[k].fds[j]);
		}
	}
	member_main(&m[0]);
	assert_int_equal(m[0].status, 0);
	for (uint32_t i = 1; i < members; i++) {
		int status = -1;
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
}

#define CHECK(x)                                                                                                       \
	do {                                                                                                           \
		if (!(x)) {                                                                                            \
			fprintf(stderr, "%s:%d: member %u: %s\n", __FILE__, __LINE__, g->me, #x);                      \
			return -EIO;                                                                                   \
		}                                                                                                      \
	} while (0)

static uint8_t pattern(size_t i, uint32_t salt)
{
	return (uint8_t)((i * 2654435761u + salt * 97u) >> 13);
}

// ---- what a link carries

static int measure(struct link_group *g, void *context)
{
	struct link_measured *all = context;
	struct base_error e = {0};
	CHECK(link_measure(g, SECONDS(60), &all[g->me], &e) == 0);
	return 0;
}

static void test_measure(void **state)
{
	struct link_measured m[2] = {0};
	run_threads(2, 1 << 20, measure, m);
	// Loopback and shared memory, or a machine that is busy; no other units.
	assert_true(m[0].latency_ns > 10 && m[0].latency_ns < 60e9);
	assert_true(m[0].bytes_per_s > 1e3 && m[0].bytes_per_s < 1e12);
	assert_memory_equal(&m[0], &m[1], sizeof m[0]);
}

static int measure_alone(struct link_group *g, void *context)
{
	struct link_measured m;
	struct base_error e = {0};
	if (g->me)
		return 0; // it never answers
	CHECK(link_measure(g, base_clock_now_ns() + BASE_NS_PER_SECOND / 10, &m, &e) == -ETIMEDOUT);
	CHECK(strstr(e.message, "cannot be measured"));
	return 0;
}

static void test_measure_alone(void **state)
{
	run_threads(2, 1 << 20, measure_alone, NULL);
}

// ---- messages

static int exchange(struct link_group *g, void *context)
{
	static const size_t lengths[] = {0, 1, 23, 4096, 5000, 70000, 3000001};
	uint32_t peer = 1 - g->me;
	for (uint32_t k = 0; k < sizeof lengths / sizeof lengths[0]; k++) {
		size_t n = lengths[k];
		uint8_t *out = malloc(n + 1), *in = calloc(1, n + 1);
		CHECK(out && in);
		for (size_t i = 0; i < n; i++)
			out[i] = pattern(i, k + g->me);
		struct link_request send, receive;
		// Both send first: with messages larger than the ring this only ends if a wait moves both ways.
		ops->send(g, peer, 5, out, n, &send);
		ops->receive(g, peer, 5, in, n, &receive);
		CHECK(ops->wait(g, &send, SECONDS(60)) == 0);
		CHECK(ops->wait(g, &receive, SECONDS(60)) == 0);
		CHECK(receive.bytes == n && in[n] == 0);
		for (size_t i = 0; i < n; i++)
			CHECK(in[i] == pattern(i, k + peer));
		free(out);
		free(in);
	}
	return 0;
}

static void test_exchange(void **state)
{
	run_threads(2, 4096, exchange, NULL);
	run_threads(2, 1 << 20, exchange, NULL);
	run_processes(2, 4096, exchange, NULL);
	run_processes(2, 1 << 20, exchange, NULL);
}

/* Many messages of three tags, taken tag by tag in another order than they were sent in. */
static int tags(struct link_group *g, void *context)
{
	enum { COUNT = 300 };
	uint64_t value;
	struct link_request r;
	if (g->me == 0) {
		for (uint64_t i = 0; i < COUNT; i++) {
			for (uint32_t tag = 1; tag <= 3; tag++) {
				value = i * 10 + tag;
				ops->send(g, 1, tag, &value, sizeof value, &r);
				CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
			}
			if (i % 8 == 7) { // keep what must be set aside within its bound
				ops->receive(g, 1, 9, &value, sizeof value, &r);
				CHECK(ops->wait(g, &r, SECONDS(60)) == 0 && value == i);
			}
		}
		return 0;
	}
	for (uint64_t base = 0; base < COUNT; base += 8) {
		uint64_t end = base + 8 < COUNT ? base + 8 : COUNT;
		for (uint32_t tag = 3; tag >= 1; tag--) {
			for (uint64_t i = base; i < end; i++) {
				ops->receive(g, 0, tag, &value, sizeof value, &r);
				CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
				CHECK(r.bytes == sizeof value && value == i * 10 + tag);
			}
		}
		if (end - base == 8) {
			value = end - 1;
			ops->send(g, 0, 9, &value, sizeof value, &r);
			CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
		}
	}
	return 0;
}

static void test_tags(void **state)
{
	run_threads(2, 4096, tags, NULL);
	run_processes(2, 4096, tags, NULL);
}

static int several_posted(struct link_group *g, void *context)
{
	uint32_t in[4] = {0};
	struct link_request r[4];
	if (g->me == 0) {
		for (uint32_t k = 0; k < 4; k++)
			ops->receive(g, 1, 10 + k, &in[k], sizeof in[k], &r[k]);
		ops->send(g, 1, 1, "go", 2, &(struct link_request){0});
		for (uint32_t k = 4; k-- > 0;) {
			CHECK(ops->wait(g, &r[k], SECONDS(60)) == 0);
			CHECK(in[k] == 100 + k);
		}
		return 0;
	}
	char go[2];
	ops->receive(g, 0, 1, go, 2, &r[0]);
	CHECK(ops->wait(g, &r[0], SECONDS(60)) == 0);
	for (uint32_t k = 0; k < 4; k++) {
		in[k] = 100 + k;
		ops->send(g, 0, 10 + k, &in[k], sizeof in[k], &r[k]);
		CHECK(ops->wait(g, &r[k], SECONDS(60)) == 0);
	}
	return 0;
}

static void test_several_posted(void **state)
{
	run_threads(2, 4096, several_posted, NULL);
}

static int too_long(struct link_group *g, void *context)
{
	char text[64] = "a message that is longer than the room that waits for it";
	struct link_request r;
	if (g->me == 0) {
		ops->send(g, 1, 1, text, sizeof text, &r);
		ops->send(g, 1, 1, "ok", 2, &(struct link_request){0});
		ops->receive(g, 1, 2, text, 1, &r);
		return ops->wait(g, &r, SECONDS(60));
	}
	char room[16] = {0};
	ops->receive(g, 0, 1, room, sizeof room, &r);
	CHECK(ops->wait(g, &r, SECONDS(60)) == -EMSGSIZE);
	CHECK(r.bytes == sizeof text && room[0] == 0);
	size_t next = 0;
	while (ops->peek(g, 0, 1, &next) == -EAGAIN)
		sched_yield();
	CHECK(next == 2);
	ops->receive(g, 0, 1, room, sizeof room, &r);
	CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
	CHECK(r.bytes == 2 && memcmp(room, "ok", 2) == 0);
	ops->receive(g, 0, 77, room, sizeof room, &r);
	CHECK(ops->wait(g, &r, base_clock_now_ns() + 20000000) == -ETIMEDOUT);
	CHECK(r.status == -EINPROGRESS);
	ops->cancel(g, &r);
	CHECK(r.status == -ECANCELED);
	ops->receive(g, 1, 1, room, 1, &r);
	CHECK(r.status == -ENOTCONN);
	ops->send(g, 0, 2, "x", 1, &r);
	return ops->wait(g, &r, SECONDS(60));
}

static void test_too_long_and_deadline(void **state)
{
	run_threads(2, 4096, too_long, NULL);
}

/* The loop of a process that sleeps on the event fd: no wake may be lost. */
static int by_event_fd(struct link_group *g, void *context)
{
	enum { COUNT = 3000 };
	uint32_t peer = 1 - g->me;
	uint64_t sent = 0, got = 0, none;
	static _Thread_local uint64_t in[1500];
	static _Thread_local uint64_t out[1500]; // now and then larger than the ring
	struct link_request idle;
	ops->receive(g, peer, 2, &none, sizeof none, &idle); // never ends
	struct link_request send = {.status = 0}, receive;
	ops->receive(g, peer, 1, in, sizeof in, &receive);
	while (sent < COUNT || got < COUNT || send.status == -EINPROGRESS) {
		ops->progress(g, 8);
		bool more = false;
		if (got % 2)
			ops->test(g, &idle); // may end the others' requests and take their wakes
		if (send.status == 0 && sent < COUNT) {
			out[0] = sent++;
			ops->send(g, peer, 1, out, sent % 16 ? 8 : sizeof out, &send);
			more = true;
		}
		if (receive.status == 0 && got < COUNT) {
			CHECK(in[0] == got);
			if (++got < COUNT)
				ops->receive(g, peer, 1, in, sizeof in, &receive);
			more = true;
		}
		CHECK(send.status == 0 || send.status == -EINPROGRESS);
		CHECK(receive.status == 0 || receive.status == -EINPROGRESS);
		struct pollfd p = {.fd = ops->event_fd(g), .events = POLLIN};
		if (!more && (sent < COUNT || got < COUNT || send.status == -EINPROGRESS))
			CHECK(poll(&p, 1, 60000) == 1);
	}
	ops->cancel(g, &idle);
	return 0;
}

static void test_event_fd(void **state)
{
	run_threads(2, 4096, by_event_fd, NULL);
	run_processes(2, 4096, by_event_fd, NULL);
}

// ---- allreduce

#define SUM_COUNT 20011u

static float term(uint32_t member, size_t i)
{
	return (float)((int)((i * 7919u + member * 104729u) % 20011u) - 10000) * (member ? 0.37f : 1.0e-3f);
}

static int allreduce(struct link_group *g, void *context)
{
	float(*out)[SUM_COUNT] = context;
	float *x = malloc(SUM_COUNT * sizeof *x);
	CHECK(x);
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < SUM_COUNT; i++)
			x[i] = term(g->me, i);
		CHECK(ops->allreduce(g, x, SUM_COUNT, SECONDS(60)) == 0);
	}
	memcpy(out[g->me], x, SUM_COUNT * sizeof *x);
	free(x);
	return 0;
}

static void test_allreduce(void **state)
{
	static float out[MOST][SUM_COUNT];
	for (uint32_t members = 2; members <= MOST; members += members < 5 ? 1 : 2) {
		run_threads(members, 16384, allreduce, out);
		for (size_t i = 0; i < SUM_COUNT; i++) {
			float sum = term(0, i);
			for (uint32_t m = 1; m < members; m++)
				sum += term(m, i);
			for (uint32_t m = 0; m < members; m++)
				assert_memory_equal(&out[m][i], &sum, sizeof sum);
		}
	}
}

// ---- ends

static void *pair_half(void *arg)
{
	struct member *m = arg;
	struct base_error e;
	struct link_group *g = NULL;
	m->status = ops->create(m->fds, 2, m->me, 3, 8192, LINK_UNTIL(SECONDS(60)), &g, &e);
	m->context = g;
	return NULL;
}

static void pair_create(struct link_group *g[2])
{
	struct member m[2] = {{.me = 0}, {.me = 1}};
	connect_all(m, 2);
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, pair_half, &m[1]), 0);
	pair_half(&m[0]);
	pthread_join(t, NULL);
	assert_int_equal(m[0].status, 0);
	assert_int_equal(m[1].status, 0);
	g[0] = m[0].context;
	g[1] = m[1].context;
}

static void test_last_words(void **state)
{
	struct link_group *g[2];
	pair_create(g);
	struct link_request r[3];
	char in[8] = {0};
	ops->send(g[1], 0, 1, "first", 5, &r[0]);
	ops->send(g[1], 0, 1, "second", 6, &r[1]);
	ops->close(g[1]);
	ops->receive(g[0], 1, 1, in, sizeof in, &r[0]);
	assert_int_equal(ops->wait(g[0], &r[0], SECONDS(60)), 0);
	assert_memory_equal(in, "first", 5);
	ops->send(g[0], 1, 1, "stop", 4, &r[2]); // its failing must not lose the second message
	ops->progress(g[0], 1);
	ops->receive(g[0], 1, 1, in, sizeof in, &r[1]);
	assert_int_equal(ops->wait(g[0], &r[1], SECONDS(60)), 0);
	assert_memory_equal(in, "second", 6);
	ops->receive(g[0], 1, 1, in, sizeof in, &r[0]);
	assert_int_equal(ops->wait(g[0], &r[0], SECONDS(60)), -ECONNRESET);
	ops->send(g[0], 1, 1, "x", 1, &r[0]);
	assert_int_equal(r[0].status, -ECONNRESET);
	ops->close(g[0]);
}

static void test_kill(void **state)
{
	struct member m[2] = {{.me = 0}, {.me = 1}};
	connect_all(m, 2);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(m[0].fds[1]);
		pair_half(&m[1]);
		struct link_group *g = m[1].context;
		struct link_request r;
		ops->send(g, 0, 1, "up", 2, &r);
		for (;;)
			pause();
	}
	close(m[1].fds[0]);
	pair_half(&m[0]);
	assert_int_equal(m[0].status, 0);
	struct link_group *g = m[0].context;
	struct link_request r, stuck;
	char in[8];
	static uint8_t big[1 << 20];
	ops->receive(g, 1, 1, in, sizeof in, &r);
	assert_int_equal(ops->wait(g, &r, SECONDS(60)), 0);
	ops->send(g, 1, 2, big, sizeof big, &stuck); // larger than the ring: under way for ever
	ops->receive(g, 1, 1, in, sizeof in, &r);
	assert_int_equal(ops->wait(g, &r, base_clock_now_ns() + 10000000), -ETIMEDOUT);
	uint64_t start = base_clock_now_ns();
	kill(pid, SIGKILL);
	assert_int_equal(ops->wait(g, &r, SECONDS(60)), -ECONNRESET);
	uint64_t took = base_clock_now_ns() - start;
	assert_int_equal(stuck.status, -ECONNRESET);
	printf("death of the peer seen after %.2f ms\n", (double)took / 1e6);
	assert_true(ops->progress(g, 8) == 0);
	struct pollfd p = {.fd = ops->event_fd(g), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 1);
	ops->close(g);
	waitpid(pid, NULL, 0);
}

static void *revoke_later(void *arg)
{
	usleep(30000);
	ops->revoke(arg);
	return NULL;
}

static void test_revoke(void **state)
{
	struct link_group *g[2];
	pair_create(g);
	struct link_request r[3];
	char in[8];
	pthread_t t;
	ops->receive(g[0], 1, 1, in, sizeof in, &r[0]);
	ops->receive(g[0], 1, 2, in, sizeof in, &r[1]);
	ops->receive(g[1], 0, 1, in, sizeof in, &r[2]);
	assert_int_equal(pthread_create(&t, NULL, revoke_later, g[0]), 0);
	assert_int_equal(ops->wait(g[0], &r[0], LINK_NO_DEADLINE), -ECONNRESET);
	assert_int_equal(r[1].status, -ECONNRESET);
	assert_int_equal(ops->wait(g[1], &r[2], SECONDS(60)), -ECONNRESET);
	float x = 1;
	assert_int_equal(ops->allreduce(g[0], &x, 1, SECONDS(60)), -ECONNRESET);
	pthread_join(t, NULL);
	ops->close(g[0]);
	ops->close(g[1]);
}

// ---- hostile peers

struct hello { // as in local_hello.c
	uint32_t magic, version, members, from, to, zero;
	uint64_t epoch, ring_bytes;
};

static int say(int fd, const void *data, size_t n, int memfd)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = {0};
	struct iovec iov = {(void *)data, n};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	if (memfd >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof control;
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &memfd, sizeof memfd);
	}
	return sendmsg(fd, &m, MSG_NOSIGNAL) == (ssize_t)n ? 0 : -errno;
}

static void hear(const void *data, size_t n, int memfd, int want)
{
	struct member m[2] = {{.me = 0}, {.me = 1}};
	struct link_group *g = NULL;
	struct base_error e = {0};
	connect_all(m, 2);
	assert_int_equal(say(m[0].fds[1], data, n, memfd), 0);
	uint64_t deadline = want == -ETIMEDOUT ? base_clock_now_ns() + 50000000 : SECONDS(60);
	int r = ops->create(m[1].fds, 2, 1, 0, 0, LINK_UNTIL(deadline), &g, &e);
	assert_int_equal(r, want);
	assert_int_equal(e.code, r);
	assert_non_null(strstr(e.message, "member 0"));
	close(m[0].fds[1]);
	close(m[1].fds[0]);
}

static void test_hostile_hello(void **state)
{
	const struct hello good = {0x6b6e696c, 1, 2, 0, 1, 0, 3, 8192};
	struct hello h;
	uint8_t noise[sizeof h];
	memset(noise, 0x5a, sizeof noise);
	hear(noise, sizeof noise, -1, -EPROTO);
	hear(&good, sizeof good - 1, -1, -ETIMEDOUT);
	hear(&good, sizeof good, -1, -EPROTO); // no memory
	int unsealed = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(unsealed, 4096 + 2 * 8192), 0);
	hear(&good, sizeof good, unsealed, -EPROTO);
	assert_int_equal(fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	h = good;
	h.ring_bytes = 16384; // not what the memory has
	hear(&h, sizeof h, unsealed, -EPROTO);
	h.ring_bytes = 1ull << 62;
	hear(&h, sizeof h, unsealed, -EPROTO);
	h = good;
	h.version = 2;
	hear(&h, sizeof h, unsealed, -EPROTO);
	h = good;
	h.to = 0;
	hear(&h, sizeof h, unsealed, -EPROTO);
	h = good;
	h.epoch = 0;
	hear(&h, sizeof h, unsealed, -EPROTO);
	close(unsealed);
}

static void test_other_epoch(void **state)
{
	struct member m[2] = {{.me = 0}, {.me = 1}};
	struct link_group *g = NULL;
	struct base_error e = {0};
	connect_all(m, 2);
	const struct hello old = {0x6b6e696c, 1, 2, 0, 1, 0, 3, 8192};
	assert_int_equal(say(m[0].fds[1], &old, sizeof old, -1), 0);
	assert_int_equal(ops->create(m[1].fds, 2, 1, 4, 8192, LINK_UNTIL(SECONDS(60)), &g, &e), -EPROTO);
	assert_non_null(strstr(e.message, "epoch 3"));
	close(m[0].fds[1]);
	close(m[1].fds[0]);
}

/* The peer says a good hello and then writes noise over cursors, headers and data. Whatever it does, nothing here is
 * read or written out of bounds (the sanitizers watch) and every wait ends. */
static void test_random_bytes(void **state)
{
	const size_t ring = 8192, bytes = 4096 + 2 * ring;
	uint64_t seed = 42;
	for (int round = 0; round < 200; round++) {
		struct member m[2] = {{.me = 0}, {.me = 1}};
		struct link_group *g = NULL;
		struct base_error e = {0};
		const struct hello good = {0x6b6e696c, 1, 2, 0, 1, 0, 3, ring};
		connect_all(m, 2);
		int memfd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		assert_int_equal(ftruncate(memfd, (off_t)bytes), 0);
		assert_int_equal(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
		uint8_t *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
		assert_true(shared != MAP_FAILED);
		assert_int_equal(say(m[0].fds[1], &good, sizeof good, memfd), 0);
		assert_int_equal(ops->create(m[1].fds, 2, 1, 0, 0, LINK_UNTIL(SECONDS(60)), &g, &e), 0);
		for (int step = 0; step < 20; step++) {
			for (size_t i = round & 1 ? 256 : 0; i < bytes; i += 8) {
				seed = seed * 6364136223846793005u + 1442695040888963407u;
				uint64_t v = seed >> (seed >> 58);
				memcpy(shared + i, &v, 8);
			}
			if (round & 1) { // plausible cursors and a header that names plausible sizes
				uint64_t head = (seed >> 20) % (ring + 100),
					 header[3] = {3, (seed >> 30) % 20000, 1 + (seed >> 50) % 2};
				memcpy(shared, &head, 8);
				memcpy(shared + 4096, header, sizeof header);
			}
			struct link_request r[2];
			uint8_t in[512], out[512] = {0};
			size_t next;
			ops->send(g, 0, 1, out, sizeof out, &r[0]);
			ops->receive(g, 0, 1, in, sizeof in, &r[1]);
			ops->peek(g, 0, 2, &next);
			ops->progress(g, 4);
			ops->cancel(g, &r[1]);
			if (r[0].status == -EINPROGRESS || r[1].status == -EINPROGRESS)
				ops->revoke(g);
			ops->progress(g, 4);
			assert_int_not_equal(r[0].status, -EINPROGRESS);
			assert_int_not_equal(r[1].status, -EINPROGRESS);
		}
		ops->close(g);
		munmap(shared, bytes);
		close(memfd);
		close(m[0].fds[1]);
	}
}

static int look(void *context, struct base_error *e)
{
	uint32_t *looks = context;
	return ++*looks < 3 ? 0 : base_error_set(e, -ECANCELED, "nobody wants it any more");
}

/* Whoever waits for a peer that is there and says nothing looks up now and then, and that can end it. */
static void test_mute_peer(void **state)
{
	for (uint32_t me = 0; me < 2; me++) { // the one speaks first, the other listens
		struct member m[2] = {{.me = 0}, {.me = 1}};
		struct link_group *g = NULL;
		struct base_error e = {0};
		uint32_t looks = 0;
		const struct link_patience patience = {LINK_NO_DEADLINE, look, &looks};
		connect_all(m, 2);
		assert_int_equal(ops->create(m[me].fds, 2, me, 7, 8192, &patience, &g, &e), -ECANCELED);
		assert_int_equal(looks, 3);
		assert_string_equal(e.message, "nobody wants it any more");
		close(m[0].fds[1]);
		close(m[1].fds[0]);
	}
}

/* After a flush nothing waits for the member that sent to call again, and the flush itself does not wait for the peer
 * to do so. The message is larger than the buffers of both sockets and complete at once, so most of it is then inside
 * the engine; the peer calls nothing before the flush has begun, and nothing after it has the message. */
enum { QUIET_ROUNDS = 30, QUIET_BYTES = 60000 };
struct quiet {
	_Atomic int sent, taken; // rounds
};

static bool reached(const _Atomic int *counter, int round)
{
	uint64_t end = SECONDS(60);
	while (atomic_load(counter) < round && base_clock_now_ns() < end)
		nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
	return atomic_load(counter) >= round;
}

static int send_and_be_quiet(struct link_group *g, struct quiet *q)
{
	static uint8_t data[QUIET_BYTES];
	for (int round = 1; round <= QUIET_ROUNDS; round++) {
		struct link_request r;
		ops->send(g, 1, 1, data, sizeof data, &r);
		CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
		atomic_store(&q->sent, round);
		CHECK(ops->flush(g, SECONDS(60)) == 0);
		CHECK(reached(&q->taken, round));
	}
	return 0;
}

static int read_late(struct link_group *g, void *context)
{
	struct quiet *q = context;
	if (g->me == 0)
		return send_and_be_quiet(g, q);
	static uint8_t data[QUIET_BYTES];
	for (int round = 1; round <= QUIET_ROUNDS; round++) {
		struct link_request r;
		CHECK(reached(&q->sent, round));
		ops->receive(g, 0, 1, data, sizeof data, &r);
		CHECK(ops->wait(g, &r, SECONDS(60)) == 0);
		atomic_store(&q->taken, round);
	}
	return 0;
}

static void test_flush(void **state)
{
	struct quiet q = {0};
	setenv("UCX_TCP_SNDBUF", "8K", 1);
	setenv("UCX_TCP_RCVBUF", "8K", 1);
	run_threads(2, 1 << 20, read_late, &q);
	unsetenv("UCX_TCP_SNDBUF");
	unsetenv("UCX_TCP_RCVBUF");
}

#define ON(engine, f)                                                                                                  \
	{                                                                                                              \
#engine ": " #f, f, use_engine, NULL, (void *)&engine                                                  \
	}
#define EACH_ENGINE(f) ON(local, f), ON(ucx, f), ON(ucx_tcp, f)

int main(void)
{
	const struct CMUnitTest tests[] = {
		EACH_ENGINE(test_measure),
		EACH_ENGINE(test_measure_alone),
		EACH_ENGINE(test_exchange),
		EACH_ENGINE(test_tags),
		EACH_ENGINE(test_several_posted),
		EACH_ENGINE(test_too_long_and_deadline),
		EACH_ENGINE(test_event_fd),
		EACH_ENGINE(test_allreduce),
		EACH_ENGINE(test_flush),
		EACH_ENGINE(test_mute_peer),
		EACH_ENGINE(test_last_words),
		EACH_ENGINE(test_kill),
		EACH_ENGINE(test_revoke),
		ON(local, test_hostile_hello),
		ON(local, test_other_epoch),
		ON(local, test_random_bytes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
