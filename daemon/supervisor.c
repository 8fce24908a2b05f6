// SPDX-License-Identifier: Apache-2.0
#include "daemon/supervisor.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define GRACE_MS 300 // for a rank that was told to stop, before SIGKILL
#define KILL_MS 5000 // for the kernel to end it, which it does not while a read hangs in a driver
#define KILL_ROUND_NS 10000000
#define FIRST_CHILD_FD 3

extern char **environ;

struct child {
	pid_t pid; // 0: none; lock
	int pidfd;
	char end[64]; // how the last one ended
	bool killed; // and waited for: it outlived SIGKILL
	int kept_fd[ENGINE_MAX_RANKS]; // of a rank that started before: this one's end of their socket; -1
};

struct supervisor {
	char rank_path[PATH_MAX];
	struct rank_shape shape;
	uint32_t ranks;
	struct base_log *log;
	pthread_mutex_t lock; // pids
	struct child child[ENGINE_MAX_RANKS];
};

int supervisor_create(
	const char *rank_path, const struct rank_shape *shape, struct base_log *log, struct supervisor **ret_supervisor)
{
	if (rank_shape_check(shape, ENGINE_MAX_RANKS) < 0 || strlen(rank_path) >= PATH_MAX)
		return -EINVAL;
	struct supervisor *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	snprintf(s->rank_path, sizeof s->rank_path, "%s", rank_path);
	s->shape = *shape;
	s->ranks = rank_shape_ranks(shape);
	s->log = log;
	pthread_mutex_init(&s->lock, NULL);
	for (uint32_t i = 0; i < ENGINE_MAX_RANKS; i++) {
		s->child[i].pidfd = -1;
		memset(s->child[i].kept_fd, 0xff, sizeof s->child[i].kept_fd);
	}
	*ret_supervisor = s;
	return 0;
}

static const char *rank_name(const struct supervisor *s, uint32_t rank, char out[static 24])
{
	struct rank_place p = rank_shape_place(&s->shape, rank);
	if (s->shape.parts[p.stage] > 1)
		snprintf(out, 24, "%u.%u", p.stage, p.part);
	else
		snprintf(out, 24, "%u", p.stage);
	return out;
}

static void say_exit(const siginfo_t *info, char *out, size_t room)
{
	if (info->si_code == CLD_EXITED)
		snprintf(out, room, "ended with exit code %d", info->si_status);
	else
		snprintf(out, room, "was ended by signal %d (%s)", info->si_status, sigdescr_np(info->si_status));
}

/* Ready for being reaped, mostly. */
static bool wait_end(const struct child *c, uint64_t until_ns)
{
	struct pollfd p = {.fd = c->pidfd, .events = POLLIN};
	int n;
	do {
		uint64_t now = base_clock_now_ns();
		n = poll(&p, 1, now < until_ns ? (int)((until_ns - now) / 1000000) + 1 : 0);
	} while (n < 0 && errno == EINTR);
	return n != 0;
}

/* False: it lives, or a debugger holds it. */
static bool reap(struct supervisor *s, uint32_t rank)
{
	struct child *c = &s->child[rank];
	siginfo_t info = {0};
	int r;
	while ((r = waitid(P_PIDFD, (id_t)c->pidfd, &info, WEXITED | WNOHANG)) < 0 && errno == EINTR)
		;
	if (r == 0 && !info.si_pid)
		return false;
	if (r == 0) {
		char name[24];
		bool well = info.si_code == CLD_EXITED && info.si_status == 0;
		say_exit(&info, c->end, sizeof c->end);
		base_log_write(s->log, well ? BASE_LOG_DEBUG : BASE_LOG_WARNING, "rank %s %s pid=%d",
			rank_name(s, rank, name), c->end, (int)c->pid);
	}
	close(c->pidfd);
	c->pidfd = -1;
	c->killed = false;
	pthread_mutex_lock(&s->lock);
	c->pid = 0;
	pthread_mutex_unlock(&s->lock);
	return true;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* One that outlives SIGKILL keeps its place: the next stop or start reaps it, or says that it is there. */
static void stop(void *context, uint32_t rank)
{
	struct supervisor *s = context;
	struct child *c = &s->child[rank];
	char name[24];
	for (uint32_t i = 0; i < s->ranks; i++)
		close_fd(&c->kept_fd[i]);
	if (!c->pid || reap(s, rank) || c->killed)
		return;
	if (!wait_end(c, base_clock_now_ns() + GRACE_MS * 1000000ull))
		pidfd_send_signal(c->pidfd, SIGKILL, NULL, 0);
	uint64_t until = base_clock_now_ns() + KILL_MS * 1000000ull;
	while (wait_end(c, until) && !reap(s, rank)) {
		if (base_clock_now_ns() >= until)
			break;
		nanosleep(&(struct timespec){.tv_nsec = KILL_ROUND_NS}, NULL);
	}
	if (!c->pid)
		return;
	c->killed = true;
	base_log_error(s->log, "rank %s does not end %u s after SIGKILL: it hangs in the kernel pid=%d",
		rank_name(s, rank, name), KILL_MS / 1000, (int)c->pid);
}

void supervisor_destroy(struct supervisor *s)
{
	if (!s)
		return;
	for (uint32_t i = 0; i < s->ranks; i++)
		stop(s, i);
	for (uint32_t i = 0; i < s->ranks; i++) {
		if (s->child[i].pidfd >= 0)
			close(s->child[i].pidfd); // a zombie until thawd ends
	}
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const char *level_name(const struct base_log *log)
{
	return base_log_level_name(log ? atomic_load(&log->level) : BASE_LOG_WARNING);
}

/* A rank's sockets, in the order of their descriptors: the kinds, and of some one for each rank, by its number. */
enum {
	TO_THAWD,
	TO_PREVIOUS,
	TO_NEXT,
	TO_PARTS = TO_NEXT + ENGINE_MAX_RANKS,
	SOCKETS = TO_PARTS + ENGINE_MAX_RANKS,
};

/* The child's sockets get the numbers from 3 on, in two steps, so that no dup2 hits one that is still needed. Nothing
 * else is inherited, whatever a library opened without O_CLOEXEC, or thawd itself was given. */
static int add_sockets(posix_spawn_file_actions_t *actions, const int *fds)
{
	int spare = FIRST_CHILD_FD + SOCKETS, status = 0;
	for (int i = 0; i < SOCKETS; i++)
		spare = fds[i] >= spare ? fds[i] + 1 : spare;
	for (int i = 0; i < SOCKETS && !status; i++) {
		if (fds[i] >= 0)
			status = posix_spawn_file_actions_adddup2(actions, fds[i], spare + i);
	}
	for (int i = 0; i < SOCKETS && !status; i++) {
		if (fds[i] >= 0)
			status = posix_spawn_file_actions_adddup2(actions, spare + i, FIRST_CHILD_FD + i);
		else
			status = posix_spawn_file_actions_addclose(actions, FIRST_CHILD_FD + i);
	}
	if (!status)
		status = posix_spawn_file_actions_addclosefrom_np(actions, FIRST_CHILD_FD + SOCKETS);
	return -status;
}

static int set_attributes(posix_spawnattr_t *attributes)
{
	sigset_t none, normal;
	sigemptyset(&none);
	sigemptyset(&normal);
	const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGCHLD};
	for (size_t i = 0; i < base_array_size(signals); i++)
		sigaddset(&normal, signals[i]);
	posix_spawnattr_setsigmask(attributes, &none);
	posix_spawnattr_setsigdefault(attributes, &normal);
	posix_spawnattr_setpgroup(attributes, 0);
	return -posix_spawnattr_setflags(
		attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
}

struct command { // of a rank
	char shape[RANK_SHAPE_TEXT_BYTES], text[8 + SOCKETS][32];
	const char *argv[14 + 2 * SOCKETS];
	uint32_t texts, count;
};

static void add_option(struct command *c, const char *option, uint32_t number)
{
	snprintf(c->text[c->texts], sizeof c->text[0], "%u", number);
	c->argv[c->count++] = option;
	c->argv[c->count++] = c->text[c->texts++];
}

static const char *option_of(uint32_t socket)
{
	return socket == TO_THAWD  ? "--fd"
	       : socket < TO_NEXT  ? "--previous-fd"
	       : socket < TO_PARTS ? "--next-fd"
				   : "--part-fd";
}

static void write_command(
	const struct supervisor *s, uint32_t rank, const int *fds, const char *link, struct command *ret)
{
	struct rank_place me = rank_shape_place(&s->shape, rank);
	char name[24];
	ret->argv[ret->count++] = s->rank_path;
	add_option(ret, "--stage", me.stage);
	add_option(ret, "--part", me.part);
	ret->argv[ret->count++] = "--shape";
	ret->argv[ret->count++] = rank_shape_print(&s->shape, ret->shape);
	ret->argv[ret->count++] = "--name";
	snprintf(ret->text[ret->texts], sizeof ret->text[0], "rank-%s", rank_name(s, rank, name));
	ret->argv[ret->count++] = ret->text[ret->texts++];
	if (link) {
		ret->argv[ret->count++] = "--link";
		ret->argv[ret->count++] = link;
	}
	ret->argv[ret->count++] = "--log-level";
	ret->argv[ret->count++] = level_name(s->log);
	for (uint32_t i = 0; i < SOCKETS; i++) {
		if (fds[i] >= 0)
			add_option(ret, option_of(i), FIRST_CHILD_FD + i);
	}
}

static int spawn(struct supervisor *s, uint32_t rank, const int *fds, const char *link, struct base_error *e)
{
	struct command command = {0};
	char name[24];
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	write_command(s, rank, fds, link, &command);
	int status = add_sockets(&actions, fds);
	if (!status)
		status = set_attributes(&attributes);
	pid_t pid = 0;
	if (!status)
		status = -posix_spawn(&pid, s->rank_path, &actions, &attributes, (char *const *)command.argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	if (status)
		return base_error_set(e, status, "%s: cannot be started: %s", s->rank_path, strerrordesc_np(-status));
	struct child *c = &s->child[rank];
	c->pidfd = pidfd_open(pid, 0);
	if (c->pidfd < 0) {
		status = -errno;
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return base_error_set(e, status, "pidfd_open of rank %d: %s", (int)pid, strerrordesc_np(-status));
	}
	pthread_mutex_lock(&s->lock);
	c->pid = pid;
	pthread_mutex_unlock(&s->lock);
	base_log_debug(s->log, "rank %s started pid=%d", rank_name(s, rank, name), (int)pid);
	return 0;
}

/* Where a rank's socket to another one goes, or -1: they do not talk. */
static int socket_to(const struct supervisor *s, uint32_t rank, uint32_t other)
{
	struct rank_place a = rank_shape_place(&s->shape, rank), b = rank_shape_place(&s->shape, other);
	if (a.stage == b.stage)
		return rank == other ? -1 : TO_PARTS + (int)other;
	if (a.stage == b.stage + 1 && rank_shape_sender(&s->shape, a) == other)
		return TO_PREVIOUS;
	return b.stage == a.stage + 1 && rank_shape_sender(&s->shape, b) == rank ? TO_NEXT + (int)other : -1;
}

/* Its ends of all sockets: to those that run the kept ones, to those that come new ones. */
static int take_sockets(struct supervisor *s, uint32_t rank, int *fds)
{
	for (uint32_t i = 0; i < s->ranks; i++) {
		int at = socket_to(s, rank, i), pair[2];
		if (at < 0)
			continue;
		if (i < rank) {
			fds[at] = s->child[rank].kept_fd[i];
			s->child[rank].kept_fd[i] = -1;
			continue;
		}
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
			return -errno;
		fds[at] = pair[0];
		close_fd(&s->child[i].kept_fd[rank]);
		s->child[i].kept_fd[rank] = pair[1];
	}
	return 0;
}

static int check_free(struct supervisor *s, uint32_t rank, struct base_error *e)
{
	const struct child *c = &s->child[rank];
	char name[24];
	if (!c->pid || reap(s, rank))
		return 0;
	return base_error_set(e, -EBUSY,
		"the last rank %s, process %d, does not end: it hangs in the kernel, and has its memory; dmesg may say "
		"which drive",
		rank_name(s, rank, name), (int)c->pid);
}

static int start(void *context, uint32_t rank, int *ret_fd, struct base_error *e)
{
	struct supervisor *s = context;
	int mine[2] = {-1, -1}, fds[SOCKETS];
	char name[24];
	memset(fds, 0xff, sizeof fds);
	int status = check_free(s, rank, e);
	if (status)
		return status;
	status = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, mine) < 0 ? -errno : 0;
	fds[TO_THAWD] = mine[1];
	if (!status)
		status = take_sockets(s, rank, fds);
	if (status)
		base_error_set(
			e, status, "socketpair for rank %s: %s", rank_name(s, rank, name), strerrordesc_np(-status));
	else
		status = spawn(s, rank, fds, NULL, e);
	for (int i = 0; i < SOCKETS; i++)
		close_fd(&fds[i]);
	if (status)
		close_fd(&mine[0]);
	else
		*ret_fd = mine[0];
	return status;
}

struct engine_starter supervisor_starter(struct supervisor *s)
{
	return (struct engine_starter){.start = start, .stop = stop, .context = s};
}

int supervisor_start_linked(struct supervisor *s, uint32_t rank, const int *fds, const char *link, struct base_error *e)
{
	int own[SOCKETS];
	memset(own, 0xff, sizeof own);
	own[TO_THAWD] = fds[0];
	for (uint32_t i = 0; i < s->ranks; i++) {
		int at = socket_to(s, rank, i);
		if (at >= 0)
			own[at] = fds[rank_member(i)];
	}
	int status = check_free(s, rank, e);
	return status ? status : spawn(s, rank, own, link, e);
}

bool supervisor_ended(struct supervisor *s, uint32_t rank, char *text, size_t room)
{
	struct child *c = &s->child[rank];
	if (!c->pid || (wait_end(c, 0) && reap(s, rank))) {
		snprintf(text, room, "%s", c->end);
		return true;
	}
	return false;
}

bool supervisor_stopped(const struct supervisor *s, uint32_t rank)
{
	const struct child *c = &s->child[rank];
	siginfo_t info = {0};
	return c->pid && waitid(P_PIDFD, (id_t)c->pidfd, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 && info.si_pid &&
	       info.si_code == CLD_STOPPED;
}

int supervisor_pidfd(const struct supervisor *s, uint32_t rank)
{
	return s->child[rank].pidfd;
}

void supervisor_stop(struct supervisor *s, uint32_t rank)
{
	stop(s, rank);
}

uint32_t supervisor_pids(struct supervisor *s, pid_t *ret_pids, uint32_t room)
{
	uint32_t n = 0;
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < s->ranks && n < room; i++) {
		if (s->child[i].pid)
			ret_pids[n++] = s->child[i].pid;
	}
	pthread_mutex_unlock(&s->lock);
	return n;
}

int supervisor_find_rank(char *out, size_t room_bytes, struct base_error *e)
{
	/* Installed beside it, from the build tree (thawd, then a test), installed. */
	static const char *const places[] = {"", "/../shard/rank", "/../../../shard/rank", "/../libexec/thaw"};
	char self[PATH_MAX], path[PATH_MAX + 64], real[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	if (n < 0)
		return base_error_set(e, -errno, "/proc/self/exe: %s", strerrordesc_np(errno));
	self[n] = '\0';
	char *slash = strrchr(self, '/');
	*(slash ? slash : self) = '\0';
	for (size_t i = 0; i <= base_array_size(places); i++) {
		if (i < base_array_size(places))
			snprintf(path, sizeof path, "%s%s/thaw-rank", self, places[i]);
		else
			snprintf(path, sizeof path, "%s/thaw-rank", THAW_LIBEXEC);
		if (access(path, X_OK) == 0 && realpath(path, real) && strlen(real) < room_bytes) {
			snprintf(out, room_bytes, "%s", real);
			return 0;
		}
	}
	return base_error_set(
		e, -ENOENT, "thaw-rank is neither beside this program in %s nor in %s", self, THAW_LIBEXEC);
}
