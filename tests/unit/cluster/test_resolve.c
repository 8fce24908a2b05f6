// SPDX-License-Identifier: Apache-2.0
// Names to addresses, with a resolver that never answers in time.
#include "tests/lib/testing.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <netdb.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include "daemon/cluster/resolve.h"
#include "tests/lib/wait.h"

static _Atomic uint32_t asked, answered;
static _Atomic bool silent;

/* In the place of libc's. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **ret_list)
{
	static struct sockaddr_in six = {.sin_family = AF_INET};
	static struct addrinfo info = {
		.ai_family = AF_INET, .ai_addrlen = sizeof six, .ai_addr = (struct sockaddr *)&six};
	bool numeric = inet_pton(AF_INET, host, &six.sin_addr) == 1;
	if (!numeric && hints->ai_flags & AI_NUMERICHOST)
		return EAI_NONAME;
	if (!numeric)
		six.sin_addr.s_addr = htonl(0x0a000006);
	*ret_list = &info;
	if (numeric)
		return 0;
	atomic_fetch_add(&asked, 1);
	while (strcmp(host, "slow.test") == 0 && atomic_load(&silent))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	atomic_fetch_add(&answered, 1);
	return strcmp(host, "unknown.test") == 0 ? EAI_NONAME : 0;
}

void freeaddrinfo(struct addrinfo *list)
{
}

static void a_number_asks_nobody(void **state)
{
	char text[CLUSTER_RESOLVED_BYTES];
	struct base_error e = {0};
	assert_int_equal(cluster_resolve("10.0.0.6", text, &e), 0);
	assert_string_equal(text, "10.0.0.6");
	assert_int_equal(atomic_load(&asked), 0);
	assert_int_equal(cluster_resolve("six.test", text, &e), 0);
	assert_string_equal(text, "10.0.0.6");
	assert_int_equal(atomic_load(&asked), 1);
	assert_int_equal(cluster_resolve("unknown.test", text, &e), -EINVAL);
	assert_non_null(strstr(e.message, "host unknown.test: "));
}

static void an_address_is_here_or_not(void **state)
{
	uint32_t before = atomic_load(&asked);
	assert_true(cluster_resolve_is_here("127.0.0.1"));
	assert_false(cluster_resolve_is_here("192.0.2.1")); // of no network that there is
	assert_false(cluster_resolve_is_here("six.test"));
	assert_int_equal(atomic_load(&asked), before);
}

static uint32_t threads(void)
{
	uint32_t n = 0;
	DIR *d = opendir("/proc/self/task");
	assert_non_null(d);
	for (struct dirent *x; (x = readdir(d));)
		n += x->d_name[0] != '.';
	closedir(d);
	return n;
}

static void a_resolver_that_is_silent_is_not_waited_for(void **state)
{
	char text[CLUSTER_RESOLVED_BYTES] = "as it was";
	struct base_error e = {0};
	uint32_t before = atomic_load(&answered);
	atomic_store(&silent, true);
	assert_int_equal(cluster_resolve("slow.test", text, &e), -ETIMEDOUT);
	assert_int_equal(atomic_load(&answered), before);
	assert_string_equal(text, "as it was");
	assert_non_null(strstr(e.message, "host slow.test: no answer from the resolver"));
	uint32_t most = threads();
	atomic_store(&silent, false);
	testing_wait_until(atomic_load(&answered) > before);
	testing_wait_until(threads() < most); // its thread has freed what it had
}

static int look(void *context, struct base_error *e)
{
	uint32_t *looks = context;
	return ++*looks == 3 ? base_error_set(e, -ECANCELED, "the model is being unloaded") : 0;
}

/* Who waits looks up, and may end the wait. */
static void a_wait_looks_up(void **state)
{
	char text[CLUSTER_RESOLVED_BYTES] = "as it was";
	struct base_error e = {0};
	uint32_t looks = 0, before = atomic_load(&answered), most;
	assert_int_equal(cluster_resolve_looking("10.0.0.6", look, &looks, text, &e), 0); // nothing to wait for
	assert_int_equal(looks, 0);
	memcpy(text, "as it was", 10);
	atomic_store(&silent, true);
	assert_int_equal(cluster_resolve_looking("slow.test", look, &looks, text, &e), -ECANCELED);
	assert_int_equal(looks, 3);
	assert_int_equal(atomic_load(&answered), before);
	assert_string_equal(text, "as it was");
	assert_string_equal(e.message, "the model is being unloaded");
	most = threads();
	atomic_store(&silent, false);
	testing_wait_until(threads() < most);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_number_asks_nobody),
		cmocka_unit_test(an_address_is_here_or_not),
		cmocka_unit_test(a_resolver_that_is_silent_is_not_waited_for),
		cmocka_unit_test(a_wait_looks_up),
	};
	return cmocka_run_group_tests_name("cluster_resolve", tests, NULL, NULL);
}
