// SPDX-License-Identifier: Apache-2.0
// What a worker says of itself each time it joins. A service that hangs up on who registers stands where thaw.node.v1
// stands otherwise, on the server core of daemon/rpc.
#include "tests/lib/testing.h"

#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/worker.h"
#include "daemon/rpc/rpc_core.h"
#include "tests/unit/rpc/fixture.h"

#define MOST 64u

static atomic_uint last_number; // of me.test's address, 0: it has none

/* In the place of libc's, for one name. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **ret_list)
{
	__typeof__(getaddrinfo) *real;
	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	char number[32];
	unsigned last = atomic_load(&last_number);
	if (!host || strcmp(host, "me.test") != 0)
		return real(host, port, hints, ret_list);
	if (!last || (hints && hints->ai_flags & AI_NUMERICHOST))
		return EAI_NONAME;
	snprintf(number, sizeof number, "10.0.0.%u", last);
	return real(number, port, hints, ret_list);
}

/* ---- the service ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char addresses[MOST][64]; // lock
static char rack[64]; // lock
static uint32_t registered; // lock

static void message(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__Node__V1__NodeMessage *m = (const Thaw__Node__V1__NodeMessage *)request;
	struct rpc_fault f;
	pthread_mutex_lock(&lock);
	if (m->what_case == THAW__NODE__V1__NODE_MESSAGE__WHAT_REGISTER && registered < MOST) {
		snprintf(addresses[registered++], sizeof addresses[0], "%s", m->register_->address);
		snprintf(rack, sizeof rack, "%s", m->register_->rack);
	}
	pthread_mutex_unlock(&lock);
	rpc_fault_set(&f, GRPC_STATUS_UNAVAILABLE, "FAKE", NULL, "come back later");
	rpc_call_fail(c, &f);
}

static void next(struct rpc_call *c, struct rpc_next *out)
{
}

const struct rpc_method rpc_node_methods[] = {
	{.path = "/thaw.node.v1.Coordinator/Join",
		.flags = RPC_BIDI | RPC_NODE,
		.request = &thaw__node__v1__node_message__descriptor,
		.message = message,
		.next = next},
};
const uint32_t rpc_node_methods_count = base_array_size(rpc_node_methods);

/* ---- */

static int probe(void *context, const char *directory, struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	*ret_bandwidths = (struct topology_bandwidths){0};
	return 0;
}

static uint64_t memory(void *context, const pid_t *pids, uint32_t count)
{
	return 1ull << 30;
}

/* Events that say so. The resolver's thread may be late on a busy machine, which is told too: only those count that
 * come while the name has no address. */
static atomic_uint unknown;

static void on_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	if (strcmp(kind, "address_unknown") == 0 && !atomic_load(&last_number))
		atomic_fetch_add(&unknown, 1);
}

/* The worker registers with that address sometime. */
static void wait_for_address(const char *want)
{
	bool found = false;
	pthread_mutex_lock(&lock);
	registered = 0;
	pthread_mutex_unlock(&lock);
	for (uint64_t end = base_clock_now_ns() + 60 * BASE_NS_PER_SECOND; !found && base_clock_now_ns() < end;) {
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
		pthread_mutex_lock(&lock);
		for (uint32_t i = 0; i < registered; i++)
			found |= strcmp(addresses[i], want) == 0;
		pthread_mutex_unlock(&lock);
	}
	if (!found)
		fail_msg("the worker does not join with the address %s", want);
}

/* A node that comes back with another address, and whose name says so, is reached there. */
static void a_name_is_asked_for_at_each_join(void **state)
{
	static struct topology_machine machine;
	struct fixture f;
	struct cluster_worker *w;
	struct base_error e = {0};
	assert_int_equal(fixture_open(&f, NULL), 0);
	const struct cluster_worker_config c = {
		.cluster = "lab",
		.node = "node-a",
		.rack = "r1",
		.version = "0",
		.join = f.address,
		.address = "me.test",
		.store_path = f.directory,
		.sources = "",
		.rank_path = "",
		.machine = &machine,
		.probe = probe,
		.memory = memory,
		.events = {.event = on_event},
	};
	atomic_store(&last_number, 7);
	assert_int_equal(cluster_worker_start(&c, &w, &e), 0);
	wait_for_address("10.0.0.7");
	atomic_store(&last_number, 8);
	wait_for_address("10.0.0.8");
	atomic_store(&last_number, 0);
	wait_for_address("me.test"); // whoever connects may know it
	wait_for_address("me.test");
	assert_int_equal(unknown, 1);
	atomic_store(&last_number, 9);
	wait_for_address("10.0.0.9");
	cluster_worker_stop(w);
	assert_string_equal(rack, "r1");
	fixture_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_name_is_asked_for_at_each_join),
	};
	return cmocka_run_group_tests_name("cluster_worker", tests, NULL, NULL);
}
