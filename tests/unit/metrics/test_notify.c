// SPDX-License-Identifier: Apache-2.0
// notify: what a service manager receives on its socket.
#include "tests/lib/testing.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/notify.h"

static int manager(char *path, size_t room)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	snprintf(path, room, "/tmp/thaw-notify-%d", getpid());
	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	unlink(path);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	setenv("NOTIFY_SOCKET", path, 1);
	return fd;
}

static void expect(int fd, const char *message)
{
	char got[1024] = "";
	ssize_t n = recv(fd, got, sizeof got - 1, 0);
	assert_true(n > 0);
	assert_string_equal(got, message);
}

static void the_manager_hears_each_state(void **state)
{
	char path[64];
	int fd = manager(path, sizeof path);
	notify_status("loading %s: %d %%\nREADY=1", "m", 40);
	expect(fd, "STATUS=loading m: 40 % READY=1");
	notify_extend_timeout(30 * BASE_NS_PER_SECOND);
	expect(fd, "EXTEND_TIMEOUT_USEC=30000000");
	notify_ready("serving");
	expect(fd, "READY=1\nSTATUS=serving");
	notify_watchdog();
	expect(fd, "WATCHDOG=1");
	notify_stopping("draining");
	expect(fd, "STOPPING=1\nSTATUS=draining");
	notify_reloading();
	char got[128] = "";
	assert_true(recv(fd, got, sizeof got - 1, 0) > 0);
	assert_int_equal(strncmp(got, "RELOADING=1\nMONOTONIC_USEC=", 27), 0);
	unsetenv("NOTIFY_SOCKET");
	notify_ready(NULL);
	assert_true(recv(fd, got, sizeof got, 0) < 0);
	close(fd);
	unlink(path);
}

static void the_watchdog_is_fed_twice_as_often(void **state)
{
	unsetenv("WATCHDOG_USEC");
	assert_int_equal(notify_watchdog_interval_ns(), 0);
	setenv("WATCHDOG_USEC", "20000000", 1);
	assert_int_equal(notify_watchdog_interval_ns(), 10 * BASE_NS_PER_SECOND);
	unsetenv("WATCHDOG_USEC");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_manager_hears_each_state),
		cmocka_unit_test(the_watchdog_is_fed_twice_as_often),
	};
	return cmocka_run_group_tests_name("notify", tests, NULL, NULL);
}
