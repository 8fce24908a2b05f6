/* SPDX-License-Identifier: Apache-2.0
 * Runs a function in a child process whose kernel refuses io_uring, opens with O_DIRECT, or flock, as hardened
 * containers and some file systems do. The refusal is a seccomp filter.
 */
#pragma once

#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct refuse {
	bool io_uring; // -EPERM
	bool direct; // open with O_DIRECT: -EINVAL
	bool flock; // -ENOLCK, as a network file system without its lock manager
};

static inline int refuse_install(struct refuse r)
{
	enum { nr = 0, third_argument = 32 }; // offsets in struct seccomp_data, low halves
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, nr),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r.io_uring ? SYS_io_uring_setup : UINT32_MAX, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r.flock ? SYS_flock : UINT32_MAX, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOLCK),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r.direct ? SYS_openat : UINT32_MAX, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, third_argument),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_DIRECT, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -errno;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0 ? -errno : 0;
}

/* body returns NULL, or what is wrong. */
static inline void refuse_run(struct refuse r, const char *(*body)(void *), void *argument)
{
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		if (refuse_install(r) < 0)
			_exit(77);
		const char *wrong = body(argument);
		if (wrong)
			fprintf(stderr, "with refusals: %s\n", wrong);
		_exit(wrong ? 1 : 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		print_message("skipped: seccomp filters are not allowed here\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}
