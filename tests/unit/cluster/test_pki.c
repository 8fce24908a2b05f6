// SPDX-License-Identifier: Apache-2.0
// pki: what is made belongs together and has the mode 0600; what does not belong together is told apart.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/pki.h"

static char folder[64];

static int setup(void **state)
{
	snprintf(folder, sizeof folder, "/tmp/thaw-pki-XXXXXX");
	return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
	char command[96];
	snprintf(command, sizeof command, "rm -r %s", folder);
	FILE *p = popen(command, "r");
	return p && pclose(p) == 0 ? 0 : -1;
}

static const char *at(const char *name, char out[static 128])
{
	snprintf(out, 128, "%s/%s", folder, name);
	return out;
}

static uint64_t now_s(void)
{
	return base_clock_wall_ns() / BASE_NS_PER_SECOND;
}

static int check(const char *ca, const char *cert, const char *key, uint64_t when, struct cluster_pki_info *info,
	struct base_error *e)
{
	char a[128], b[128], c[128];
	return cluster_pki_check(at(ca, a), at(cert, b), at(key, c), when, info, e);
}

static int issue(const char *directory, const char *name, enum cluster_role role, struct base_error *e)
{
	static const char *const addresses[] = {"10.1.2.3", "fd00::7", "node-a.example.org"};
	const struct cluster_pki_node n = {
		.name = name, .role = role, .addresses = addresses, .addresses_count = 3, .days = 30};
	return cluster_pki_issue(directory, &n, e);
}

static void whole_way(void **state)
{
	static const char *const files[] = {"ca.crt", "ca.key", "node-a.crt", "node-a.key"};
	struct cluster_pki_info info;
	struct base_error e = {0};
	struct stat st;
	char path[128];
	assert_int_equal(cluster_pki_init(folder, "lab", 3650, &e), 0);
	assert_int_equal(issue(folder, "node-a", CLUSTER_ROLE_WORKER, &e), 0);
	for (size_t i = 0; i < base_array_size(files); i++) {
		assert_int_equal(stat(at(files[i], path), &st), 0);
		assert_int_equal(st.st_mode & 07777, 0600);
	}
	assert_int_equal(check("ca.crt", "node-a.crt", "node-a.key", now_s(), &info, &e), 0);
	assert_string_equal(info.identity.cluster, "lab");
	assert_string_equal(info.identity.name, "node-a");
	assert_int_equal(info.identity.role, CLUSTER_ROLE_WORKER);
	assert_true(info.not_after_s > now_s() + 29 * 86400ull && info.not_after_s < now_s() + 31 * 86400ull);
}

static void nothing_is_overwritten(void **state)
{
	struct base_error e = {0};
	char path[128];
	assert_int_equal(cluster_pki_init(folder, "lab", 10, &e), 0);
	assert_int_equal(cluster_pki_init(folder, "lab", 10, &e), -EEXIST);
	assert_non_null(strstr(e.message, "ca."));
	assert_int_equal(issue(folder, "n", CLUSTER_ROLE_BOTH, &e), 0);
	assert_int_equal(issue(folder, "n", CLUSTER_ROLE_BOTH, &e), -EEXIST);
	/* Half a pair that is left is told, and not completed with a key that fits no certificate. */
	unlink(at("n.key", path));
	assert_int_equal(issue(folder, "n", CLUSTER_ROLE_BOTH, &e), -EEXIST);
	assert_non_null(strstr(e.message, "n.crt"));
	assert_int_equal(access(at("n.key", path), F_OK), -1);
}

static void what_does_not_belong_together(void **state)
{
	struct base_error e = {0};
	struct cluster_pki_info info;
	char other[128];
	assert_int_equal(cluster_pki_init(folder, "lab", 100, &e), 0);
	assert_int_equal(cluster_pki_init(at("other", other), "lab", 100, &e), 0);
	assert_int_equal(issue(folder, "a", CLUSTER_ROLE_BOTH, &e), 0);
	assert_int_equal(issue(folder, "b", CLUSTER_ROLE_BOTH, &e), 0);
	assert_int_equal(issue(other, "c", CLUSTER_ROLE_BOTH, &e), 0);
	assert_int_equal(check("ca.crt", "a.crt", "b.key", now_s(), &info, &e), -EKEYREJECTED);
	assert_non_null(strstr(e.message, "is not the key of"));
	assert_int_equal(check("ca.crt", "other/c.crt", "other/c.key", now_s(), &info, &e), -EKEYREJECTED);
	assert_non_null(strstr(e.message, "is not signed by"));
	assert_int_equal(check("ca.crt", "a.crt", "a.key", now_s() + 40 * 86400ull, &info, &e), -EKEYEXPIRED);
	assert_non_null(strstr(e.message, "expired on"));
	assert_int_equal(check("ca.crt", "a.crt", "a.key", now_s() - 86400ull, &info, &e), -EKEYREJECTED);
	assert_non_null(strstr(e.message, "look at the clock"));
	assert_int_equal(check("ca.crt", "none.crt", "a.key", now_s(), &info, &e), -ENOENT);
	assert_int_equal(check("ca.key", "a.crt", "a.key", now_s(), &info, &e), -EINVAL);
	assert_non_null(strstr(e.message, "holds no certificate"));
}

static void bad_arguments(void **state)
{
	static const char *const names[] = {"", "A", "a b", "../x", "-a", "a.", "ca",
		"0123456789012345678901234567890123456789012345678901234567890123"};
	static const char *const addresses[] = {"10.0.0.1:50152", "[::1]", "a b", "-x", ""};
	struct base_error e = {0};
	assert_int_equal(issue(folder, "n", CLUSTER_ROLE_BOTH, &e), -ENOENT);
	assert_non_null(strstr(e.message, "thawctl pki init"));
	assert_int_equal(cluster_pki_init(folder, "no good", 10, &e), -EINVAL);
	assert_int_equal(cluster_pki_init(folder, "lab", 0, &e), -EINVAL);
	assert_int_equal(cluster_pki_init("/no/such/place/at/all", "lab", 10, &e), -ENOENT);
	assert_int_equal(cluster_pki_init(folder, "lab", 10, &e), 0);
	for (size_t i = 0; i < base_array_size(names); i++)
		assert_int_equal(issue(folder, names[i], CLUSTER_ROLE_BOTH, &e), -EINVAL);
	for (size_t i = 0; i < base_array_size(addresses); i++) {
		const struct cluster_pki_node n = {.name = "n",
			.role = CLUSTER_ROLE_BOTH,
			.addresses = &addresses[i],
			.addresses_count = 1,
			.days = 3};
		assert_int_equal(cluster_pki_issue(folder, &n, &e), -EINVAL);
	}
}

static void a_node_ends_with_its_ca(void **state)
{
	struct cluster_pki_info info;
	struct base_error e = {0};
	assert_int_equal(cluster_pki_init(folder, "lab", 3, &e), 0);
	assert_int_equal(issue(folder, "a", CLUSTER_ROLE_CLIENT, &e), 0);
	assert_int_equal(check("ca.crt", "a.crt", "a.key", now_s(), &info, &e), 0);
	assert_true(info.not_after_s <= now_s() + 3 * 86400ull);
	assert_int_equal(info.identity.role, CLUSTER_ROLE_CLIENT);
}

static void identities(void **state)
{
	static const char *const bad[] = {"", "thaw://", "thaw://a/worker", "thaw://a/none/b", "thaw://a/king/b",
		"thaw://a//b", "thaw:///worker/b", "thaw://a/worker/", "thaw://a/worker/b/c", "http://a/worker/b",
		"thaw://A/worker/b", "thaw://a/workerworkerworker/b"};
	struct cluster_identity i = {.cluster = "lab", .name = "n-1.b", .role = CLUSTER_ROLE_BOTH}, back;
	char uri[CLUSTER_URI_BYTES];
	assert_string_equal(cluster_identity_print(&i, uri), "thaw://lab/both/n-1.b");
	assert_int_equal(cluster_identity_parse(uri, strlen(uri), &back), 0);
	assert_string_equal(back.cluster, "lab");
	assert_string_equal(back.name, "n-1.b");
	assert_int_equal(back.role, CLUSTER_ROLE_BOTH);
	for (size_t k = 0; k < base_array_size(bad); k++)
		assert_int_equal(cluster_identity_parse(bad[k], strlen(bad[k]), &back), -EINVAL);
	/* A NUL in the middle is no end. */
	assert_int_equal(cluster_identity_parse("thaw://lab/both/n\0x", 19, &back), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(whole_way, setup, teardown),
		cmocka_unit_test_setup_teardown(nothing_is_overwritten, setup, teardown),
		cmocka_unit_test_setup_teardown(what_does_not_belong_together, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_arguments, setup, teardown),
		cmocka_unit_test_setup_teardown(a_node_ends_with_its_ca, setup, teardown),
		cmocka_unit_test(identities),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
