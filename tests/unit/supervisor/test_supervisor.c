// SPDX-License-Identifier: Apache-2.0
/* The supervisor with shell scripts for ranks. */
#include "tests/lib/testing.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/supervisor.h"

static void write_rank(char *path, size_t room, const char *script)
{
	snprintf(path, room, "/tmp/thaw-supervisor-%d", (int)getpid());
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fprintf(f, "#!/bin/sh\n%s\n", script);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0700), 0);
}

static double stop_seconds(struct engine_starter *starter)
{
	uint64_t begin = base_clock_now_ns();
	starter->stop(starter->context, 0);
	return (double)(base_clock_now_ns() - begin) / 1e9;
}

static void start_rank(struct engine_starter *starter)
{
	struct base_error e = {0};
	int fd;
	if (starter->start(starter->context, 0, &fd, &e))
		fail_msg("%s", e.message);
	close(fd);
}

/* A rank that does not listen is killed, and one that ended by itself costs no time. */
static void test_stop(void **state)
{
	static const char *const scripts[] = {"exec sleep 600", "trap '' TERM; while :; do sleep 1; done", "exit 3"};
	for (int i = 0; i < 3; i++) {
		char path[64];
		struct supervisor *s;
		pid_t pid;
		write_rank(path, sizeof path, scripts[i]);
		assert_int_equal(supervisor_create(path, &(struct rank_shape){1, {1}}, NULL, &s), 0);
		struct engine_starter starter = supervisor_starter(s);
		start_rank(&starter);
		assert_int_equal(supervisor_pids(s, &pid, 1), 1);
		assert_true(stop_seconds(&starter) < 100); // of 600 and more
		assert_int_equal(supervisor_pids(s, &pid, 1), 0);
		assert_int_equal(kill(pid, 0), -1);
		supervisor_destroy(s);
		unlink(path);
	}
}

/* A process that traces another holds it back from its parent when it dies, as a hanging driver would. -1: not
 * permitted. */
static pid_t hold(pid_t pid)
{
	int told[2];
	char good = 0;
	assert_int_equal(pipe(told), 0);
	pid_t holder = fork();
	if (holder == 0) {
		good = ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0;
		if (write(told[1], &good, 1) == 1)
			pause();
		_exit(0);
	}
	assert_int_equal(read(told[0], &good, 1), 1);
	close(told[0]);
	close(told[1]);
	if (good)
		return holder;
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	return -1;
}

static void test_outlives_sigkill(void **state)
{
	char path[64];
	struct supervisor *s;
	struct base_error e = {0};
	pid_t pid;
	int fd;
	write_rank(path, sizeof path, "exec sleep 600");
	assert_int_equal(supervisor_create(path, &(struct rank_shape){1, {1}}, NULL, &s), 0);
	struct engine_starter starter = supervisor_starter(s);
	start_rank(&starter);
	assert_int_equal(supervisor_pids(s, &pid, 1), 1);
	pid_t holder = hold(pid);
	if (holder > 0) {
		double waited = stop_seconds(&starter);
		assert_true(stop_seconds(&starter) < waited); // not again
		assert_int_equal(supervisor_pids(s, &pid, 1), 1);
		assert_int_equal(starter.start(starter.context, 0, &fd, &e), -EBUSY);
		assert_non_null(strstr(e.message, "does not end"));
		kill(holder, SIGKILL);
		waitpid(holder, NULL, 0);
		start_rank(&starter);
	} else {
		print_message("skipped: ptrace is not permitted here\n");
	}
	supervisor_destroy(s);
	unlink(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stop),
		cmocka_unit_test(test_outlives_sigkill),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
