// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/rendezvous.h"
#include "tests/lib/port.h"

#define MS(n) (base_clock_now_ns() + (n)*1000000ull)
#define MOST 5u

struct side {
	struct link_rendezvous_group group;
	int listen_fd, cancel_fd;
	uint32_t delay_ms, limit_ms;
	int fds[MOST];
	int status;
	struct base_error e;
	uint32_t refused, looks;
	char reasons[32768];
};

static void on_refused(void *context, const struct base_error *e)
{
	struct side *s = context;
	s->refused++;
	size_t n = strlen(s->reasons);
	snprintf(s->reasons + n, sizeof s->reasons - n, "%s\n", e->message);
}

static void *side_main(void *arg)
{
	struct side *s = arg;
	usleep(s->delay_ms * 1000);
	s->status = link_rendezvous_connect(s->listen_fd, &s->group, s->cancel_fd, MS(s->limit_ms), s->fds, &s->e);
	return NULL;
}

static void sides_init(struct side *s, struct link_rendezvous_member *list, uint32_t members)
{
	for (uint32_t i = 0; i < members; i++) {
		struct base_error e;
		list[i].address = "127.0.0.1";
		s[i] = (struct side){
			.group = {.epoch = 7, .members = members, .me = i, .list = list, .refused = on_refused},
			.cancel_fd = -1,
			.limit_ms = 60000};
		s[i].group.context = &s[i];
		memset(s[i].group.secret, 0x42, sizeof s[i].group.secret);
		uint16_t port = port_claim(); // some are closed, opened again, and tried meanwhile
		assert_int_equal(
			link_rendezvous_listen("127.0.0.1", port, port, &s[i].listen_fd, &list[i].port, &e), 0);
	}
}

static void sides_finish(struct side *s, uint32_t members)
{
	for (uint32_t i = 0; i < members; i++) {
		for (uint32_t k = 0; k < members && s[i].status == 0; k++) {
			if (s[i].fds[k] >= 0)
				close(s[i].fds[k]);
		}
		close(s[i].listen_fd);
	}
}

static void run_all(struct side *s, uint32_t members)
{
	pthread_t t[MOST];
	for (uint32_t i = 0; i < members; i++)
		assert_int_equal(pthread_create(&t[i], NULL, side_main, &s[i]), 0);
	for (uint32_t i = 0; i < members; i++)
		pthread_join(t[i], NULL);
}

static void assert_all_met(struct side *s, uint32_t members)
{
	for (uint32_t i = 0; i < members; i++) {
		if (s[i].status)
			fail_msg("member %u: %s", i, base_error_text(&s[i].e));
		assert_int_equal(s[i].fds[i], -1);
		for (uint32_t k = 0; k < members; k++) {
			if (k != i)
				assert_int_equal(send(s[i].fds[k], &(uint8_t){(uint8_t)(i * 16 + k)}, 1, 0), 1);
		}
	}
	for (uint32_t i = 0; i < members; i++) {
		for (uint32_t k = 0; k < members; k++) {
			uint8_t byte = 0;
			int value = 0;
			if (k == i)
				continue;
			struct pollfd p = {.fd = s[i].fds[k], .events = POLLIN};
			assert_int_equal(poll(&p, 1, 60000), 1);
			assert_int_equal(recv(s[i].fds[k], &byte, 1, 0), 1);
			assert_int_equal(byte, k * 16 + i); // each socket leads where its place says
			assert_int_equal(
				getsockopt(s[i].fds[k], IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &(socklen_t){4}), 0);
			assert_in_range(value, 500, 3000);
		}
	}
}

static void test_all_meet(void **state)
{
	struct side s[MOST];
	struct link_rendezvous_member list[MOST];
	sides_init(s, list, MOST);
	s[0].delay_ms = 120; // its connections wait in the backlog
	s[3].delay_ms = 60;
	run_all(s, MOST);
	assert_all_met(s, MOST);
	sides_finish(s, MOST);
}

/* The lowest member comes last and its port is not even open at first. */
static void test_port_opens_later(void **state)
{
	struct side s[2];
	struct link_rendezvous_member list[2];
	struct base_error e;
	sides_init(s, list, 2);
	close(s[0].listen_fd);
	pthread_t t;
	assert_int_equal(pthread_create(&t, NULL, side_main, &s[1]), 0);
	usleep(200000);
	uint16_t port = 0;
	assert_int_equal(
		link_rendezvous_listen("127.0.0.1", list[0].port, list[0].port, &s[0].listen_fd, &port, &e), 0);
	assert_int_equal(port, list[0].port);
	side_main(&s[0]);
	pthread_join(t, NULL);
	assert_all_met(s, 2);
	// A port that is taken: the next one of the range.
	int fd;
	assert_int_equal(link_rendezvous_listen("127.0.0.1", port, port, &fd, &port, &e), -EADDRINUSE);
	assert_non_null(strstr(e.message, "127.0.0.1"));
	uint16_t next;
	assert_int_equal(link_rendezvous_listen("127.0.0.1", port, (uint16_t)(port + 20), &fd, &next, &e), 0);
	assert_in_range(next, port + 1, port + 20);
	close(fd);
	sides_finish(s, 2);
}

static int dial(uint16_t port)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	return fd;
}

/* The first member waits for as long as it takes the other one to hear from it. */
static void run_until(struct side *s, int want, uint32_t limit_ms)
{
	do {
		s[0].limit_ms = limit_ms;
		run_all(s, 2);
		limit_ms *= 10;
	} while (s[1].status != want && limit_ms < 100000);
	assert_int_equal(s[1].status, want);
	assert_int_equal(s[0].status, -ETIMEDOUT);
}

/* Strangers of all kinds come first; the listener says what each was, and the member still gets in. */
static void test_strangers(void **state)
{
	struct side s[3];
	struct link_rendezvous_member list[3];
	sides_init(s, list, 2);
	pthread_t t, other;
	assert_int_equal(pthread_create(&t, NULL, side_main, &s[0]), 0);

	uint8_t noise[4096];
	for (size_t i = 0; i < sizeof noise; i++)
		noise[i] = (uint8_t)(i * 2654435761u >> 11);
	int random = dial(list[0].port), zeros = dial(list[0].port), silent = dial(list[0].port),
	    half = dial(list[0].port), gone = dial(list[0].port), web = dial(list[0].port);
	assert_int_equal(send(random, noise, sizeof noise, MSG_NOSIGNAL), sizeof noise);
	assert_int_equal(send(zeros, (uint8_t[200]){0}, 200, MSG_NOSIGNAL), 200);
	assert_int_equal(send(half, "thawlink\1\0\0\0", 12, MSG_NOSIGNAL), 12);
	const char *get = "GET / HTTP/1.1\r\nHost: somewhere\r\nAccept: */*\r\nUser-Agent: test\r\n\r\n";
	assert_true(send(web, get, strlen(get), MSG_NOSIGNAL) > 0);
	close(gone);
	for (int i = 0; i < 100; i++) // more than it keeps
		close(dial(list[0].port));

	// One with another secret: told so, and the listener says which.
	s[2] = s[1];
	s[2].group.context = &s[2];
	s[2].group.secret[31] ^= 1;
	assert_int_equal(pthread_create(&other, NULL, side_main, &s[2]), 0);
	pthread_join(other, NULL);
	assert_int_equal(s[2].status, -EACCES);
	assert_non_null(strstr(s[2].e.message, "secret"));
	assert_non_null(strstr(s[2].e.message, "member 0"));
	// One with the right words and no proof.
	struct base_error e;
	struct link_rendezvous_answer answer;
	uint8_t hello[LINK_RENDEZVOUS_HELLO_BYTES] = "thawlink\1\0\0\0\2\0\0\0\1\0\0\0\0\0\0\0\7",
		said[LINK_RENDEZVOUS_ANSWER_BYTES];
	int liar = dial(list[0].port);
	assert_int_equal(send(liar, hello, sizeof hello, 0), sizeof hello);
	assert_int_equal(recv(liar, said, sizeof said, MSG_WAITALL), sizeof said);
	assert_int_equal(link_rendezvous_read_answer(said, &answer, &e), 0);
	assert_int_equal(send(liar, answer.proof, 32, 0), 32); // its own proof, sent back
	assert_int_equal(recv(liar, said, 1, 0), 0);

	side_main(&s[1]);
	pthread_join(t, NULL);
	assert_all_met(s, 2);
	assert_non_null(strstr(s[0].reasons, "no hello"));
	assert_non_null(strstr(s[0].reasons, "127.0.0.1:"));
	assert_non_null(strstr(s[0].reasons, "does not know this group's secret"));
	assert_int_equal(s[1].refused, 0);
	int open[] = {random, zeros, silent, half, web, liar};
	for (size_t i = 0; i < sizeof open / sizeof open[0]; i++)
		close(open[i]);
	sides_finish(s, 2);
}

static void test_epochs_and_lists(void **state)
{
	struct side s[2];
	struct link_rendezvous_member list[2];
	sides_init(s, list, 2);
	s[0].group.epoch = 9; // the other one is behind
	s[1].limit_ms = 2000;
	run_until(s, -ESTALE, 700);
	assert_non_null(strstr(s[1].e.message, "epoch 9"));
	assert_non_null(strstr(s[0].e.message, "member 1"));
	assert_non_null(strstr(s[0].e.message, "epoch 7"));

	s[0].group.epoch = 6; // ... or ahead: it may still come, and here it does not
	s[1].limit_ms = 500;
	run_until(s, -ESTALE, 700);

	s[0].group.epoch = 7;
	s[1].group.members = 3; // an old list
	s[1].group.me = 2;
	s[1].group.list = (struct link_rendezvous_member[3]){list[0], list[1]};
	run_until(s, -EPROTO, 700);
	assert_non_null(strstr(s[1].e.message, "list of members"));
	sides_finish(s, 2);
}

static int look(void *context, struct base_error *e)
{
	struct side *s = context;
	return ++s->looks < 3 ? 0 : base_error_set(e, -ESTALE, "another plan");
}

static void test_nobody_and_cancel(void **state)
{
	struct side s[2];
	struct link_rendezvous_member list[2];
	sides_init(s, list, 2);
	s[0].limit_ms = 100;
	side_main(&s[0]);
	assert_int_equal(s[0].status, -ETIMEDOUT);
	assert_non_null(strstr(s[0].e.message, "member 1"));
	close(s[0].listen_fd);
	s[1].limit_ms = 300;
	side_main(&s[1]);
	assert_int_equal(s[1].status, -ETIMEDOUT);
	assert_non_null(strstr(s[1].e.message, "refused"));
	list[0].address = "no.address";
	side_main(&s[1]);
	assert_int_equal(s[1].status, -EINVAL);
	assert_non_null(strstr(s[1].e.message, "no.address"));
	list[0].address = "127.0.0.1";
	s[1].cancel_fd = eventfd(1, EFD_CLOEXEC);
	s[1].limit_ms = 60000;
	side_main(&s[1]);
	assert_int_equal(s[1].status, -ECANCELED);
	close(s[1].cancel_fd);
	s[1].cancel_fd = -1;
	s[1].group.look = look;
	side_main(&s[1]);
	assert_int_equal(s[1].status, -ESTALE);
	assert_string_equal(s[1].e.message, "another plan");
	assert_int_equal(s[1].looks, 3);
	close(s[1].listen_fd);
}

/* It waits for one, and says what is wrong; a loop that is told at once again and again would burn the CPU. */
static void test_no_descriptors(void **state)
{
	struct side s[2];
	struct link_rendezvous_member list[2];
	struct rlimit before, none;
	struct timespec cpu;
	sides_init(s, list, 2);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(list[0].port)};
	inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
	none = (struct rlimit){64, before.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	int taken[64], count = 0;
	while (count < 64 && (taken[count] = dup(fd)) >= 0)
		count++;
	s[0].limit_ms = 600;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
	uint64_t used = (uint64_t)cpu.tv_sec * 1000000000ull + (uint64_t)cpu.tv_nsec;
	side_main(&s[0]);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu);
	used = (uint64_t)cpu.tv_sec * 1000000000ull + (uint64_t)cpu.tv_nsec - used;
	while (count)
		close(taken[--count]);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
	assert_int_equal(s[0].status, -ETIMEDOUT);
	assert_non_null(strstr(s[0].e.message, "cannot be accepted"));
	assert_true(used < 100 * 1000000ull); // of 600 ms; the machine's other work is not counted
	close(fd);
	close(s[0].listen_fd);
	close(s[1].listen_fd);
}

// ---- a recorder in the middle

struct proxy {
	int listen_fd;
	uint16_t to;
	uint8_t said[512]; // by the one that connects
	size_t bytes;
};

static void *proxy_main(void *arg)
{
	struct proxy *x = arg;
	struct pollfd caller = {.fd = x->listen_fd, .events = POLLIN};
	poll(&caller, 1, 60000);
	int in = accept(x->listen_fd, NULL, NULL), out = dial(x->to);
	for (;;) {
		struct pollfd p[2] = {{.fd = in, .events = POLLIN}, {.fd = out, .events = POLLIN}};
		uint8_t bytes[512];
		if (poll(p, 2, 60000) <= 0)
			break;
		int from = p[0].revents ? in : out;
		ssize_t n = recv(from, bytes, sizeof bytes, 0);
		if (n <= 0)
			break;
		if (from == in && x->bytes + (size_t)n <= sizeof x->said) {
			memcpy(x->said + x->bytes, bytes, (size_t)n);
			x->bytes += (size_t)n;
		}
		(void)!send(from == in ? out : in, bytes, (size_t)n, MSG_NOSIGNAL);
	}
	close(in);
	close(out);
	return NULL;
}

/* Who has heard a whole handshake cannot repeat it. */
static void test_replay(void **state)
{
	struct side s[2];
	struct link_rendezvous_member list[2], direct;
	struct base_error e;
	pthread_t t;
	sides_init(s, list, 2);
	direct = list[0];
	struct proxy x = {.to = list[0].port};
	assert_int_equal(link_rendezvous_listen("127.0.0.1", 0, 0, &x.listen_fd, &list[0].port, &e), 0);
	assert_int_equal(pthread_create(&t, NULL, proxy_main, &x), 0);
	run_all(s, 2);
	assert_int_equal(s[0].status, 0);
	assert_int_equal(s[1].status, 0);
	close(s[0].fds[1]);
	close(s[1].fds[0]);
	pthread_join(t, NULL);
	assert_int_equal(x.bytes, LINK_RENDEZVOUS_HELLO_BYTES + 32);

	list[0] = direct;
	s[0].limit_ms = 1000;
	s[0].reasons[0] = 0;
	int fd = dial(direct.port); // it lies there when the member begins to look
	assert_int_equal(send(fd, x.said, x.bytes, 0), x.bytes);
	side_main(&s[0]);
	assert_int_equal(s[0].status, -ETIMEDOUT);
	assert_non_null(strstr(s[0].reasons, "does not know this group's secret"));
	close(fd);
	close(x.listen_fd);
	s[1].status = -1;
	sides_finish(s, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_meet),
		cmocka_unit_test(test_port_opens_later),
		cmocka_unit_test(test_strangers),
		cmocka_unit_test(test_epochs_and_lists),
		cmocka_unit_test(test_nobody_and_cancel),
		cmocka_unit_test(test_no_descriptors),
		cmocka_unit_test(test_replay),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
