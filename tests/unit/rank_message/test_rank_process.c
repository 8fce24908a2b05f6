// SPDX-License-Identifier: Apache-2.0
// thaw-rank as a process, with the toy rank inside. argv[1]: the program.
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/link/link.h"
#include "shard/rank/message.h"

#define SECONDS(n) (base_clock_now_ns() + (n)*BASE_NS_PER_SECOND)

static const struct link_ops *const ops = &link_local_ops;
static const char *program;

/* Runs it with these options; fd 10 to 12 are kept. */
static pid_t start(const char *const *arguments, int *ret_output)
{
	int out[2];
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		const char *argv[20] = {program};
		for (int i = 0; arguments[i]; i++)
			argv[i + 1] = arguments[i];
		dup2(out[1], STDOUT_FILENO);
		dup2(out[1], STDERR_FILENO);
		execv(program, (char **)argv);
		_exit(99);
	}
	close(out[1]);
	*ret_output = out[0];
	return pid;
}

static int finish(pid_t pid, int output, char *text, size_t room)
{
	int status;
	ssize_t n;
	size_t at = 0;
	while ((n = read(output, text + at, room - 1 - at)) > 0)
		at += (size_t)n;
	text[at] = 0;
	close(output);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void expect_usage(const char *const *arguments, const char *words)
{
	char text[8192];
	int output;
	pid_t pid = start(arguments, &output);
	int status = finish(pid, output, text, sizeof text);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 2);
	assert_non_null(strstr(text, words));
}

static void test_usage(void **state)
{
	char text[8192];
	int output;
	pid_t pid = start((const char *[]){"--version", NULL}, &output);
	assert_int_equal(finish(pid, output, text, sizeof text), 0);
	assert_string_equal(text, "thaw-rank " THAW_VERSION "\n");
	pid = start((const char *[]){"--help", NULL}, &output);
	assert_int_equal(finish(pid, output, text, sizeof text), 0);
	assert_non_null(strstr(text, "--previous-fd"));
	expect_usage((const char *[]){NULL}, "--fd is needed");
	expect_usage((const char *[]){"--fd", "x", NULL}, "--fd: \"x\"");
	expect_usage((const char *[]){"--fd", "0", NULL}, "not a unix stream socket");
	expect_usage((const char *[]){"--fd", "999", NULL}, "not a unix stream socket");
	expect_usage((const char *[]){"--wrong", NULL}, "wrong");
	expect_usage((const char *[]){"--stage", "2", "--shape", "1,3", NULL}, "--stage 2 --part 0 of --shape 1,3");
	expect_usage((const char *[]){"--part", "1", "--shape", "1,3", NULL}, "--stage 0 --part 1 of --shape 1,3");
	expect_usage((const char *[]){"--shape", "1,,3", NULL}, "--shape: \"1,,3\"");
	expect_usage((const char *[]){"--shape", "3,17", NULL}, "--shape: \"3,17\"");
	expect_usage((const char *[]){"--log-level", "loud", NULL}, "loud");
}

struct process {
	pid_t pid;
	int output;
	struct link_group *group;
	uint32_t room[1 << 14];
	struct rank_message_scratch *scratch;
	struct rank_message in;
};

static void tell(struct process *p, const struct rank_message *m)
{
	struct link_request r;
	int64_t n = rank_message_encode(m, p->room, sizeof p->room);
	assert_true(n > 0);
	ops->send(p->group, 1, RANK_TAG_COMMAND, p->room, (size_t)n, &r);
	assert_int_equal(ops->wait(p->group, &r, SECONDS(60)), 0);
}

static int hear(struct process *p)
{
	struct link_request r;
	do {
		ops->receive(p->group, 1, RANK_TAG_REPLY, p->room, sizeof p->room, &r);
		int status = ops->wait(p->group, &r, SECONDS(60));
		if (status)
			return status;
		assert_int_equal(rank_message_decode(p->room, r.bytes, p->scratch, &p->in, NULL), 0);
	} while (p->in.type == RANK_MESSAGE_STATS || p->in.type == RANK_MESSAGE_PROGRESS);
	return 0;
}

static void launch(struct process *p, const char *settings)
{
	int pair[2];
	char number[16];
	struct base_error e;
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	fcntl(pair[1], F_SETFD, 0);
	snprintf(number, sizeof number, "%d", pair[1]);
	p->pid = start((const char *[]){"--fd", number, "--name", "rank-toy", NULL}, &p->output);
	close(pair[1]);
	assert_int_equal(ops->create((int[]){-1, pair[0]}, 2, 0, 3, 65536, LINK_UNTIL(SECONDS(60)), &p->group, &e), 0);
	assert_int_equal(rank_message_scratch_create(&p->scratch), 0);
	struct rank_message m = {.type = RANK_MESSAGE_ASSIGN};
	m.assign = (struct rank_assign){.epoch = 3,
		.shape = {1, {1}},
		.config = {.slice = {0, 4, 0, 1},
			.batch_tokens = 64,
			.logits_rows = 8,
			.sequences = 4,
			.context_tokens = 64}};
	snprintf(m.assign.config.model_path, sizeof m.assign.config.model_path, "%s", settings);
	tell(p, &m);
	assert_int_equal(hear(p), 0);
}

static int end(struct process *p)
{
	char text[4096];
	int status = finish(p->pid, p->output, text, sizeof text);
	ops->close(p->group);
	rank_message_scratch_destroy(p->scratch);
	return status;
}

static void read_proc(pid_t pid, const char *name, char *text, size_t room)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
	FILE *f = fopen(path, "r");
	assert_non_null(f);
	assert_non_null(fgets(text, (int)room, f));
	fclose(f);
}

static void test_stop(void **state)
{
	static struct process p;
	char text[64];
	launch(&p, "");
	assert_int_equal(p.in.type, RANK_MESSAGE_READY);
	read_proc(p.pid, "comm", text, sizeof text);
	assert_string_equal(text, "rank-toy\n");
	read_proc(p.pid, "oom_score_adj", text, sizeof text);
	assert_true(atoi(text) >= 500);
	kill(p.pid, SIGINT); // not its business
	tell(&p, &(struct rank_message){.type = RANK_MESSAGE_STATS_REQUEST});
	tell(&p, &(struct rank_message){.type = RANK_MESSAGE_STOP});
	assert_int_equal(hear(&p), -ECONNRESET);
	assert_int_equal(end(&p), 0);
}

/* SIGTERM in the middle of a pass: its result still comes. */
static void test_sigterm(void **state)
{
	static struct process p;
	char text[8] = "";
	launch(&p, "pass_ms=300 say=1");
	struct rank_message m = {.type = RANK_MESSAGE_OPEN};
	m.open.prompt_tokens = 1;
	tell(&p, &m);
	const uint32_t token = 1, block = 0;
	const struct rank_entry entry = {.tokens = 1, .blocks = 1, .want = RANK_WANT_SAMPLE};
	m = (struct rank_message){.type = RANK_MESSAGE_PASS};
	m.pass = (struct rank_pass){.pass = 1,
		.entries = &entry,
		.entries_count = 1,
		.tokens = &token,
		.tokens_count = 1,
		.blocks = &block,
		.blocks_count = 1};
	tell(&p, &m);
	assert_int_equal(read(p.output, text, 5), 5);
	assert_string_equal(text, "pass\n");
	kill(p.pid, SIGTERM);
	assert_int_equal(hear(&p), 0);
	assert_int_equal(p.in.type, RANK_MESSAGE_RESULT);
	assert_int_equal(p.in.result.outputs_count, 1);
	assert_int_equal(hear(&p), -ECONNRESET);
	assert_int_equal(end(&p), 0);
}

static void test_failures(void **state)
{
	static struct process p;
	launch(&p, "fail_load=1");
	assert_int_equal(p.in.type, RANK_MESSAGE_FAILED);
	int status = end(&p);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	launch(&p, "");
	ops->revoke(p.group);
	status = end(&p);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_usage),
		cmocka_unit_test(test_stop),
		cmocka_unit_test(test_sigterm),
		cmocka_unit_test(test_failures),
	};
	if (argc != 2)
		return 2;
	program = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
