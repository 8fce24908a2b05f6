// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include "daemon/ctl/ctl.h"

int main(int argc, char **argv)
{
	ctl_interrupt_block();
	struct ctl c = {
		.in = stdin,
		.out = stdout,
		.err = stderr,
		.in_terminal = isatty(STDIN_FILENO),
		.out_terminal = isatty(STDOUT_FILENO),
		.err_terminal = isatty(STDERR_FILENO),
	};
	return ctl_run(&c, argc, argv);
}
