// SPDX-License-Identifier: Apache-2.0
/* Links. Each prints lines `link-WHAT ratio=R ...`; lower is better except for bandwidth.
 *   bench_link hosts ADDRESS PORT ME   one of two hosts (member 0 listens there): ucx / a spinning TCP socket, in turns
 *   bench_link shm local|ucx           two processes of one host: round trips of 8 KiB / 3 us, allreduce of 16 KiB / 6 us
 *   bench_link idle local|ucx          CPU share of two processes that wait for messages / 1 %
 *   bench_link crowd local|ucx         four processes on two CPUs, two pairs: worst round trip of 8 KiB / 500 us
 * Times are medians of round trips, and medians of rounds.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/rendezvous.h"

#define ROUNDS 7
#define MIB (1u << 20)
#define STREAM_COUNT 96u
#define DEADLINE (base_clock_now_ns() + 30 * BASE_NS_PER_SECOND)

static const struct link_ops *ops;
static uint8_t data[2][MIB];

static void check(int r, const char *what)
{
	if (r >= 0)
		return;
	fprintf(stderr, "bench_link: %s: %s\n", what, strerror(-r));
	_exit(1);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double median(double *v, size_t n)
{
	qsort(v, n, sizeof *v, by_value);
	return v[n / 2];
}

// ---- the two ways to move bytes; a message is n bytes on both sides

struct way {
	struct link_group *group; // or
	int fd;
	uint32_t peer;
};

static void move_tcp(int fd, uint8_t *p, size_t n, bool out)
{
	for (size_t done = 0; done < n;) {
		ssize_t k = out ? send(fd, p + done, n - done, MSG_DONTWAIT | MSG_NOSIGNAL)
				: recv(fd, p + done, n - done, MSG_DONTWAIT);
		if (k > 0)
			done += (size_t)k;
		else if (k == 0 || errno != EAGAIN)
			check(k == 0 ? -ECONNRESET : -errno, "tcp");
	}
}

static void put(struct way *w, size_t n)
{
	struct link_request r;
	if (!w->group) {
		move_tcp(w->fd, data[0], n, true);
		return;
	}
	ops->send(w->group, w->peer, 1, data[0], n, &r);
	check(ops->wait(w->group, &r, DEADLINE), "send");
}

static void get(struct way *w, size_t n)
{
	struct link_request r;
	if (!w->group) {
		move_tcp(w->fd, data[1], n, false);
		return;
	}
	ops->receive(w->group, w->peer, 1, data[1], n, &r);
	check(ops->wait(w->group, &r, DEADLINE), "receive");
}

static double round_trip_us(struct way *w, bool first, size_t n, size_t count)
{
	static double us[20000];
	for (size_t i = 0; i < count; i++) {
		uint64_t start = base_clock_now_ns();
		if (first)
			put(w, n);
		get(w, n);
		if (!first)
			put(w, n);
		us[i] = (double)(base_clock_now_ns() - start) / 1e3;
	}
	return median(us, count);
}

/* One way, messages of 1 MiB, and a byte back. */
static double stream_gb_s(struct way *w, bool first)
{
	uint64_t start = base_clock_now_ns();
	for (uint32_t i = 0; i < STREAM_COUNT; i++) {
		if (first)
			put(w, MIB);
		else
			get(w, MIB);
	}
	if (first)
		get(w, 1);
	else
		put(w, 1);
	return (double)MIB * STREAM_COUNT / (double)(base_clock_now_ns() - start);
}

// ---- two hosts

static void meet(const char *address, uint16_t port, uint32_t me, int listener, uint64_t epoch, int *fds)
{
	struct link_rendezvous_member list[2] = {{address, port}, {address, port}};
	struct link_rendezvous_group g = {.epoch = epoch, .members = 2, .me = me, .list = list};
	struct base_error e;
	if (link_rendezvous_connect(listener, &g, -1, base_clock_now_ns() + 10 * BASE_NS_PER_SECOND, fds, &e) < 0) {
		fprintf(stderr, "bench_link: %s\n", e.message);
		exit(1);
	}
}

static void hosts(const char *address, uint16_t port, uint32_t me)
{
	struct base_error e;
	int listener = -1, fds[2], plain[2];
	ops = &link_ucx_ops;
	if (me == 0 && link_rendezvous_listen(address, port, port, &listener, &port, &e) < 0) {
		fprintf(stderr, "bench_link: %s\n", e.message);
		exit(1);
	}
	meet(address, port, me, listener, 1, fds);
	meet(address, port, me, listener, 2, plain);
	struct way ucx = {.peer = 1 - me}, tcp = {.fd = plain[1 - me]};
	if (ops->create(fds, 2, me, 1, 4 * MIB, LINK_UNTIL(DEADLINE), &ucx.group, &e) < 0) {
		fprintf(stderr, "bench_link: %s\n", e.message);
		exit(1);
	}
	double v[3][3][ROUNDS]; // what; ratio, ucx, tcp
	for (int round = 0; round < ROUNDS; round++) {
		for (int what = 0; what < 2; what++) {
			size_t n = what ? 64 << 10 : 8 << 10, count = what ? 1500 : 4000;
			v[what][2][round] = round_trip_us(&tcp, me == 0, n, count);
			v[what][1][round] = round_trip_us(&ucx, me == 0, n, count);
		}
		v[2][2][round] = stream_gb_s(&tcp, me == 0);
		v[2][1][round] = stream_gb_s(&ucx, me == 0);
		for (int what = 0; what < 3; what++)
			v[what][0][round] = v[what][1][round] / v[what][2][round];
	}
	ops->close(ucx.group);
	if (me)
		return;
	static const char *const names[] = {"8KiB", "64KiB", "1MiB"};
	for (int what = 0; what < 3; what++)
		printf("link-%s ratio=%.2f ucx_%s=%.2f tcp_%s=%.2f\n", names[what], median(v[what][0], ROUNDS),
			what < 2 ? "us" : "gb_s", median(v[what][1], ROUNDS), what < 2 ? "us" : "gb_s",
			median(v[what][2], ROUNDS));
}

// ---- processes of one host

struct job {
	uint32_t members;
	int results, release; // pipes
	double (*run)(struct link_group *g);
};

static void member(const struct job *j, int pairs[4][4], uint32_t me)
{
	int fds[4];
	struct link_group *g;
	struct base_error e;
	for (uint32_t i = 0; i < j->members; i++) {
		fds[i] = i == me ? -1 : pairs[me][i];
		for (uint32_t k = 0; k < j->members; k++) {
			if (i != me && k != i)
				close(pairs[i][k]);
		}
	}
	if (ops->create(fds, j->members, me, 1, MIB, LINK_UNTIL(DEADLINE), &g, &e) < 0) {
		fprintf(stderr, "bench_link: %s\n", e.message);
		_exit(1);
	}
	double result = j->run(g);
	// Closing ends the group also for members that still talk to others.
	check(write(j->results, &result, sizeof result) == sizeof result ? 0 : -EIO, "result");
	char byte;
	check((int)read(j->release, &byte, 1), "release");
	ops->close(g);
}

/* The worst of what the members return. */
static double processes(uint32_t members, double (*run)(struct link_group *g))
{
	int pairs[4][4], results[2], release[2];
	memset(pairs, -1, sizeof pairs);
	check(pipe(results), "pipe");
	check(pipe(release), "pipe");
	struct job j = {members, results[1], release[0], run};
	for (uint32_t i = 0; i < members; i++) {
		for (uint32_t k = i + 1; k < members; k++) {
			int pair[2];
			check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
			pairs[i][k] = pair[0];
			pairs[k][i] = pair[1];
		}
	}
	for (uint32_t i = 0; i < members; i++) {
		pid_t pid = fork();
		check(pid, "fork");
		if (pid)
			continue;
		close(release[1]);
		member(&j, pairs, i);
		_exit(0);
	}
	for (uint32_t i = 0; i < members; i++) {
		for (uint32_t k = 0; k < members; k++) {
			if (pairs[i][k] >= 0)
				close(pairs[i][k]);
		}
	}
	close(results[1]);
	double worst = 0, v;
	uint32_t came = 0;
	for (; came < members && read(results[0], &v, sizeof v) == sizeof v; came++)
		worst = v > worst ? v : worst;
	close(release[1]);
	for (uint32_t i = 0; i < members; i++) {
		int status;
		if (wait(&status) < 0 || status || came < members)
			check(-EIO, "a member failed");
	}
	close(results[0]);
	close(release[0]);
	return worst;
}

static double run_round_trips(struct link_group *g)
{
	struct way w = {.group = g, .peer = g->me ^ 1};
	double v[ROUNDS];
	for (int i = 0; i < ROUNDS; i++)
		v[i] = round_trip_us(&w, g->me<w.peer, 8 << 10, g->members> 2 ? 1500 : 8000);
	return median(v, ROUNDS);
}

static double run_allreduce(struct link_group *g)
{
	static float x[4096];
	static double us[20000];
	double v[ROUNDS];
	for (int i = 0; i < ROUNDS; i++) {
		for (size_t k = 0; k < 8000; k++) {
			uint64_t start = base_clock_now_ns();
			check(ops->allreduce(g, x, 4096, DEADLINE), "allreduce");
			us[k] = (double)(base_clock_now_ns() - start) / 1e3;
		}
		v[i] = median(us, 8000);
	}
	return median(v, ROUNDS);
}

static double cpu_s(void)
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double run_idle(struct link_group *g)
{
	uint8_t byte;
	struct link_request r;
	ops->receive(g, 1 - g->me, 7, &byte, 1, &r);
	double before = cpu_s();
	uint64_t start = base_clock_now_ns(), end = start + 4 * BASE_NS_PER_SECOND, now;
	while ((now = base_clock_now_ns()) < end) { // half by the event fd, half in a wait
		if (now < start + (end - start) / 2) {
			ops->progress(g, 8);
			struct pollfd p = {.fd = ops->event_fd(g), .events = POLLIN};
			poll(&p, 1, (int)((start + (end - start) / 2 - now) / 1000000) + 1);
		} else {
			ops->wait(g, &r, end);
		}
	}
	double share = (cpu_s() - before) / ((double)(base_clock_now_ns() - start) / 1e9);
	ops->cancel(g, &r);
	return share;
}

static void use_cpus(int count)
{
	cpu_set_t have, want;
	CPU_ZERO(&want);
	sched_getaffinity(0, sizeof have, &have);
	for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&want) < count; i++) {
		if (CPU_ISSET(i, &have))
			CPU_SET(i, &want);
	}
	sched_setaffinity(0, sizeof want, &want);
}

int main(int argc, char **argv)
{
	memset(data, 1, sizeof data);
	if (argc == 5 && !strcmp(argv[1], "hosts")) {
		hosts(argv[2], (uint16_t)atoi(argv[3]), (uint32_t)atoi(argv[4]));
		return 0;
	}
	if (argc != 3) {
		fprintf(stderr, "usage: bench_link hosts ADDRESS PORT ME | shm|idle|crowd local|ucx\n");
		return 2;
	}
	ops = strcmp(argv[2], "ucx") ? &link_local_ops : &link_ucx_ops;
	const char *name = ops->capabilities.name;
	if (!strcmp(argv[1], "shm")) {
		double trip = processes(2, run_round_trips), sum = processes(2, run_allreduce);
		printf("link-shm-8KiB ratio=%.2f %s_us=%.2f\n", trip / 3, name, trip);
		printf("link-shm-allreduce-16KiB ratio=%.2f %s_us=%.2f\n", sum / 6, name, sum);
	} else if (!strcmp(argv[1], "idle")) {
		double share = processes(2, run_idle);
		printf("link-idle ratio=%.2f %s_cpu_share=%.5f\n", share / 0.01, name, share);
	} else {
		use_cpus(2);
		double trip = processes(4, run_round_trips);
		printf("link-crowd ratio=%.2f %s_us=%.2f\n", trip / 500, name, trip);
	}
	return 0;
}
