// SPDX-License-Identifier: Apache-2.0
// The measurement of a drive that stops answering: it ends, and what the kernel may still write to stays.
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/server_internal.h"
#include "tests/fault/engine_faulty.h"
#include "tests/lib/wait.h"

#define FILE_BYTES (512u << 10)

static void a_drive_that_hangs_is_left_alone(void **state)
{
	char folder[] = "/tmp/thaw-probe-XXXXXX", path[64];
	const struct faulty_plan plan = {.seed = 1, .reads_to_silence = 20};
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/layer", folder);
	int fd = open(path, O_CREAT | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
	bool direct = fd >= 0 && ftruncate(fd, FILE_BYTES) == 0;
	close(fd);
	if (direct) {
		struct server_drive_config c = {
			.directory = folder, .ops = &faulty_ops, .patience_ns = BASE_NS_PER_SECOND / 20};
		struct server_drive *left = NULL;
		double rate;
		int status;
		faulty_set(&plan);
		assert_int_equal(server_probe_drive(&c, &left, &rate), -ETIMEDOUT);
		assert_non_null(left);
		const struct server_drive *first = left;
		for (int i = 0; i < 3; i++) { // no more is left behind, and nothing is waited for
			assert_int_equal(server_probe_drive(&c, &left, &rate), -ETIMEDOUT);
			assert_ptr_equal(left, first);
		}
		faulty_speak();
		c.patience_ns = TESTING_PATIENCE_NS;
		testing_wait_until((status = server_probe_drive(&c, &left, &rate)) != -ETIMEDOUT);
		assert_int_equal(status, 0);
		assert_null(left);
		assert_true(rate > 0);
	}
	unlink(path);
	rmdir(folder);
	if (!direct) {
		print_message("skipped: no direct reads here\n");
		skip();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_drive_that_hangs_is_left_alone)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
