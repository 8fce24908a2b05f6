// SPDX-License-Identifier: Apache-2.0
/* What production code calls in place of libc: the linker's --wrap makes f of its objects __wrap_f. What is not here is
 * the real one: files are real files, sockets of the simulated links are real unix sockets that never wait. */
#include "tests/sim/libc.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/sim/fiber.h"

#define WRAP(name) __typeof__(name) __wrap_##name, __real_##name

// ---- clocks

WRAP(clock_gettime);
int __wrap_clock_gettime(clockid_t id, struct timespec *t)
{
	if (!sim_running())
		return __real_clock_gettime(id, t);
	sim_step();
	uint64_t ns = sim_node_clock(sim_here(), id);
	*t = (struct timespec){.tv_sec = (time_t)(ns / SIM_SECOND), .tv_nsec = (long)(ns % SIM_SECOND)};
	return 0;
}

WRAP(nanosleep);
int __wrap_nanosleep(const struct timespec *t, struct timespec *left)
{
	if (!sim_running())
		return __real_nanosleep(t, left);
	sim_sleep((uint64_t)t->tv_sec * SIM_SECOND + (uint64_t)t->tv_nsec);
	return 0;
}

WRAP(sched_yield);
int __wrap_sched_yield(void)
{
	sim_step();
	sim_yield();
	return 0;
}

/* One processor: then nobody spins, which would be a wait that time does not pass in. */
WRAP(sched_getaffinity);
int __wrap_sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t *set)
{
	memset(set, 0, bytes);
	CPU_SET(0, set);
	return pid ? -1 : 0;
}

WRAP(getrandom);
ssize_t __wrap_getrandom(void *data, size_t bytes, unsigned flags)
{
	if (!sim_running())
		return __real_getrandom(data, bytes, flags);
	for (size_t i = 0; i < bytes; i++)
		((uint8_t *)data)[i] = (uint8_t)sim_draw(256);
	return (ssize_t)bytes;
}

// ---- threads

WRAP(pthread_create);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument)
{
	int detached = PTHREAD_CREATE_JOINABLE;
	if (attributes)
		pthread_attr_getdetachstate(attributes, &detached);
	struct sim_fiber *f = sim_start(sim_here(), "thread", start, argument);
	*thread = (pthread_t)f;
	if (detached == PTHREAD_CREATE_DETACHED)
		sim_detach(f);
	sim_step();
	return 0;
}

WRAP(pthread_join);
int __wrap_pthread_join(pthread_t thread, void **ret_result)
{
	void *result = sim_join((struct sim_fiber *)thread);
	if (ret_result)
		*ret_result = result;
	return 0;
}

WRAP(pthread_detach);
int __wrap_pthread_detach(pthread_t thread)
{
	sim_detach((struct sim_fiber *)thread);
	return 0;
}

WRAP(pthread_self);
pthread_t __wrap_pthread_self(void)
{
	return 0; // sim_name takes that for the fiber that runs
}

WRAP(pthread_setname_np);
int __wrap_pthread_setname_np(pthread_t thread, const char *name)
{
	sim_name((struct sim_fiber *)thread, name);
	return 0;
}

WRAP(pthread_setaffinity_np);
int __wrap_pthread_setaffinity_np(pthread_t thread, size_t bytes, const cpu_set_t *set)
{
	return 0;
}

WRAP(pthread_getcpuclockid);
int __wrap_pthread_getcpuclockid(pthread_t thread, clockid_t *ret_clock)
{
	*ret_clock = CLOCK_THREAD_CPUTIME_ID;
	return 0;
}

// ---- mutexes and conditions: a mutex's first bytes say whether it is taken

static int *taken(pthread_mutex_t *m)
{
	return (int *)m;
}

WRAP(pthread_mutex_init);
int __wrap_pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *attributes)
{
	*taken(m) = 0;
	return 0;
}

WRAP(pthread_mutex_destroy);
int __wrap_pthread_mutex_destroy(pthread_mutex_t *m)
{
	if (*taken(m))
		sim_fail("a mutex is destroyed that is taken");
	return 0;
}

WRAP(pthread_mutex_lock);
int __wrap_pthread_mutex_lock(pthread_mutex_t *m)
{
	if (!sim_running())
		return 0;
	sim_step();
	while (*taken(m))
		sim_wait(m, NULL, 0, SIM_NEVER);
	*taken(m) = 1;
	return 0;
}

WRAP(pthread_mutex_trylock);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *m)
{
	if (*taken(m))
		return EBUSY;
	*taken(m) = 1;
	return 0;
}

WRAP(pthread_mutex_unlock);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *m)
{
	if (!sim_running())
		return 0;
	if (!*taken(m))
		sim_fail("a mutex is given back that nobody has");
	*taken(m) = 0;
	sim_wake(m, false);
	sim_step();
	return 0;
}

WRAP(pthread_cond_init);
int __wrap_pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *attributes)
{
	return 0;
}

WRAP(pthread_cond_destroy);
int __wrap_pthread_cond_destroy(pthread_cond_t *c)
{
	return 0;
}

WRAP(pthread_cond_signal);
int __wrap_pthread_cond_signal(pthread_cond_t *c)
{
	sim_wake(c, false);
	return 0;
}

WRAP(pthread_cond_broadcast);
int __wrap_pthread_cond_broadcast(pthread_cond_t *c)
{
	sim_wake(c, true);
	return 0;
}

static int wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
	*taken(m) = 0;
	sim_wake(m, false);
	bool in_time = sim_wait(c, NULL, 0, until_ns);
	while (*taken(m))
		sim_wait(m, NULL, 0, SIM_NEVER);
	*taken(m) = 1;
	return in_time ? 0 : ETIMEDOUT;
}

WRAP(pthread_cond_wait);
int __wrap_pthread_cond_wait(pthread_cond_t *c, pthread_mutex_t *m)
{
	return wait_until(c, m, SIM_NEVER);
}

/* Of CLOCK_MONOTONIC, as all of ours are. */
WRAP(pthread_cond_timedwait);
int __wrap_pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *at)
{
	return wait_until(c, m, (uint64_t)at->tv_sec * SIM_SECOND + (uint64_t)at->tv_nsec);
}

// ---- descriptors

static uint64_t until(int64_t timeout_ns)
{
	return timeout_ns < 0 ? SIM_NEVER : sim_node_clock(sim_here(), CLOCK_MONOTONIC) + (uint64_t)timeout_ns;
}

WRAP(poll);
static int wait_for_fds(struct pollfd *fds, nfds_t count, int64_t timeout_ns)
{
	uint64_t at = until(timeout_ns);
	for (;;) {
		int n = __real_poll(fds, count, 0);
		if (n || timeout_ns == 0) {
			sim_step();
			return n;
		}
		if (!sim_wait(NULL, fds, (uint32_t)count, at))
			timeout_ns = 0;
	}
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	if (!sim_running())
		return __real_poll(fds, count, timeout_ms);
	return wait_for_fds(fds, count, timeout_ms * (int64_t)SIM_MS);
}

WRAP(ppoll);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *t, const sigset_t *mask)
{
	return wait_for_fds(fds, count, t ? t->tv_sec * (int64_t)SIM_SECOND + t->tv_nsec : -1);
}

WRAP(epoll_wait);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int room, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	if (timeout_ms)
		wait_for_fds(&p, 1, timeout_ms * (int64_t)SIM_MS);
	return __real_epoll_wait(fd, events, room, 0);
}

WRAP(eventfd_write);
int __wrap_eventfd_write(int fd, eventfd_t value)
{
	sim_fds_changed();
	return __real_eventfd_write(fd, value);
}

WRAP(write);
ssize_t __wrap_write(int fd, const void *data, size_t bytes)
{
	sim_fds_changed();
	return __real_write(fd, data, bytes);
}

WRAP(send);
ssize_t __wrap_send(int fd, const void *data, size_t bytes, int flags)
{
	sim_fds_changed();
	return __real_send(fd, data, bytes, flags);
}

WRAP(shutdown);
int __wrap_shutdown(int fd, int how)
{
	sim_fds_changed();
	return __real_shutdown(fd, how);
}

WRAP(close);
int __wrap_close(int fd)
{
	sim_fds_changed();
	return __real_close(fd);
}

// ---- processes: the one that measures a link, which says at once what it found

static int last_pipe; // its end to write to

WRAP(pipe2);
int __wrap_pipe2(int fds[2], int flags)
{
	int r = __real_pipe2(fds, flags);
	last_pipe = fds[1];
	return r;
}

WRAP(posix_spawn);
int __wrap_posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
	const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	static const char report[] = "100000 1e9\n";
	*pid = 1 << 22;
	return __real_write(last_pipe, report, sizeof report - 1) < 0 ? errno : 0;
}

WRAP(kill);
int __wrap_kill(pid_t pid, int number)
{
	return 0;
}

WRAP(waitpid);
pid_t __wrap_waitpid(pid_t pid, int *ret_status, int options)
{
	return sim_running() ? pid : __real_waitpid(pid, ret_status, options);
}

/* A file that was written is safe from everything that happens here. */
WRAP(fsync);
int __wrap_fsync(int fd)
{
	sim_step();
	return 0;
}

WRAP(fdatasync);
int __wrap_fdatasync(int fd)
{
	sim_step();
	return 0;
}

/* A node without a copy of the model. */
WRAP(access);
int __wrap_access(const char *path, int mode)
{
	if (sim_running() && !sim_file_there(sim_here(), path)) {
		errno = ENOENT;
		return -1;
	}
	return __real_access(path, mode);
}

// ---- drives: reads of the offload engine's threads (off_t has 64 bits, so pread is pread64)

WRAP(pread64);
ssize_t __wrap_pread64(int fd, void *data, size_t bytes, off_t at)
{
	struct sim_drive_fault fault = {0};
	if (!sim_running() || strcmp(sim_own_name(), "thaw-read") != 0)
		return __real_pread64(fd, data, bytes, at);
	sim_drive_read(sim_here(), bytes, &fault);
	if (fault.delay_ns)
		sim_sleep(fault.delay_ns);
	if (fault.error) {
		errno = fault.error;
		return -1;
	}
	ssize_t n = __real_pread64(fd, data, fault.bytes && fault.bytes < bytes ? fault.bytes : bytes, at);
	if (n > 0 && fault.flip)
		((uint8_t *)data)[sim_draw((uint64_t)n)] ^= (uint8_t)(1u << sim_draw(8));
	return n;
}
