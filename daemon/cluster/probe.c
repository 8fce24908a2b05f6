// SPDX-License-Identifier: Apache-2.0
/* A link between two nodes is measured with the transport that ranks use, in a process of its own at both ends
 * (thaw-rank
 * --measure): what goes wrong in there ends that process and no more. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/resolve.h"
#include "daemon/cluster/worker_internal.h"
#include "shard/link/rendezvous.h"

#define CONNECT_NS (5 * BASE_NS_PER_SECOND)
#define REPORT_NS (5 * BASE_NS_PER_SECOND) // the process ends within 3 s
#define REPORT_BYTES 512u
#define CHILD_PEER_FD 3
#define CHILD_REPORT_FD 4

extern char **environ;

/* ---- the process ---- */

/* In two steps, so that no dup2 hits a descriptor that is still needed; nothing else is inherited. */
static int add_files(posix_spawn_file_actions_t *actions, int peer_fd, int report_fd)
{
	int spare = peer_fd > report_fd ? peer_fd + 1 : report_fd + 1;
	spare = spare > CHILD_REPORT_FD ? spare : CHILD_REPORT_FD + 1;
	int status = posix_spawn_file_actions_adddup2(actions, peer_fd, spare);
	if (!status)
		status = posix_spawn_file_actions_adddup2(actions, report_fd, spare + 1);
	if (!status)
		status = posix_spawn_file_actions_adddup2(actions, spare, CHILD_PEER_FD);
	if (!status)
		status = posix_spawn_file_actions_adddup2(actions, spare + 1, CHILD_REPORT_FD);
	return status ? -status : -posix_spawn_file_actions_addclosefrom_np(actions, CHILD_REPORT_FD + 1);
}

static int spawn(const char *path, uint32_t me, int peer_fd, int report_fd, pid_t *ret_pid)
{
	char peer[12], report[12];
	const char *const argv[] = {path, "--link", "ucx", "--name", "link-probe", "--measure", me ? "1" : "0", "--fd",
		peer, "--report-fd", report, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	snprintf(peer, sizeof peer, "%d", CHILD_PEER_FD);
	snprintf(report, sizeof report, "%d", CHILD_REPORT_FD);
	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
	int status = add_files(&actions, peer_fd, report_fd);
	if (!status)
		status = -posix_spawn(ret_pid, path, &actions, &attributes, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	return status;
}

/* All that comes until the other end is closed. */
static int read_report(int fd, int cancel_fd, char out[static REPORT_BYTES])
{
	uint64_t until = base_clock_now_ns() + REPORT_NS, now;
	size_t n = 0;
	while ((now = base_clock_now_ns()) < until) {
		struct pollfd p[] = {{.fd = cancel_fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
		if (poll(p, 2, (int)((until - now) / 1000000) + 1) <= 0)
			continue;
		if (p[0].revents)
			return -ECANCELED;
		ssize_t k = read(fd, out + n, REPORT_BYTES - 1 - n);
		if (k < 0 && errno != EINTR)
			return -errno;
		n += k > 0 ? (size_t)k : 0;
		out[n] = '\0';
		if (k == 0 || n == REPORT_BYTES - 1)
			return 0;
	}
	return -ETIMEDOUT;
}

static int take_report(char *text, struct cluster_probe_done *done, struct base_error *e)
{
	text[strcspn(text, "\n")] = '\0';
	if (sscanf(text, "%lf %lf", &done->latency_ns, &done->bytes_per_s) == 2 && done->latency_ns > 0 &&
		done->bytes_per_s > 0)
		return 0;
	return base_error_set(e, -EPROTO, "%.200s", text[0] == '!' ? text + 2 : "the process that measures it died");
}

static int run(const struct cluster_probing *p, int peer_fd, struct cluster_probe_done *done, struct base_error *e)
{
	char text[REPORT_BYTES] = "";
	int pipes[2];
	pid_t pid = 0;
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return base_error_set(e, -errno, "pipe: %s", strerrordesc_np(errno));
	int status = spawn(p->worker->config.rank_path, p->probe.me, peer_fd, pipes[1], &pid);
	close(pipes[1]);
	if (status) {
		base_error_set(e, status, "%s: %s", p->worker->config.rank_path, strerrordesc_np(-status));
	} else {
		status = read_report(pipes[0], p->cancel_fd, text);
		if (status)
			base_error_set(e, status, "nothing came of it: %s", strerrordesc_np(-status));
		else
			status = take_report(text, done, e);
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close(pipes[0]);
	return status;
}

/* ---- the thread ---- */

static void publish_port(struct cluster_probing *p, uint16_t port)
{
	pthread_mutex_lock(&p->worker->lock);
	p->port = port;
	pthread_mutex_unlock(&p->worker->lock);
	cluster_worker_wake(p->worker);
}

static int connect_pair(struct cluster_probing *p, int *ret_fd, struct base_error *e)
{
	char address[2][CLUSTER_RESOLVED_BYTES];
	struct link_rendezvous_member list[2];
	struct link_rendezvous_group g = {.epoch = p->probe.probe, .members = 2, .me = p->probe.me, .list = list};
	_cleanup_close_ int listen_fd = -1;
	uint16_t port;
	int fds[2] = {-1, -1}, status = 0;
	memcpy(g.secret, p->probe.secret, sizeof g.secret);
	for (uint32_t i = 0; i < 2 && !status; i++) {
		status = cluster_resolve(p->probe.members[i].host, address[i], e);
		list[i] = (struct link_rendezvous_member){address[i], p->probe.members[i].port};
	}
	if (!status && p->probe.me == 0) {
		status = link_rendezvous_listen(address[0], 0, 0, &listen_fd, &port, e);
		if (!status)
			publish_port(p, port);
	}
	if (!status)
		status = link_rendezvous_connect(listen_fd, &g, p->cancel_fd, base_clock_now_ns() + CONNECT_NS, fds, e);
	if (!status)
		*ret_fd = fds[1 - p->probe.me];
	return status;
}

static void *probing_thread(void *argument)
{
	struct cluster_probing *p = argument;
	struct cluster_probe_done done = {.probe = p->probe.probe};
	struct base_error e = {0};
	int fd = -1;
	pthread_setname_np(pthread_self(), "link-probe");
	int status = connect_pair(p, &fd, &e);
	if (!status)
		status = run(p, fd, &done, &e);
	if (fd >= 0)
		close(fd);
	if (status)
		snprintf(done.error, sizeof done.error, "%.250s", base_error_text(&e));
	pthread_mutex_lock(&p->worker->lock);
	p->done = done;
	p->finished = true;
	pthread_mutex_unlock(&p->worker->lock);
	cluster_worker_wake(p->worker);
	return NULL;
}

int cluster_probing_create(
	struct cluster_worker *w, const struct cluster_probe *probe, struct cluster_probing **ret_probing)
{
	struct cluster_probing *p = calloc(1, sizeof *p);
	if (!p)
		return -ENOMEM;
	p->worker = w;
	p->probe = *probe;
	p->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int status = p->cancel_fd < 0 ? -errno : -pthread_create(&p->thread, NULL, probing_thread, p);
	if (status) {
		if (p->cancel_fd >= 0)
			close(p->cancel_fd);
		free(p);
		return status;
	}
	*ret_probing = p;
	return 0;
}

void cluster_probing_destroy(struct cluster_probing *p)
{
	if (!p)
		return;
	(void)eventfd_write(p->cancel_fd, 1);
	pthread_join(p->thread, NULL);
	close(p->cancel_fd);
	free(p);
}
