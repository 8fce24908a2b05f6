// SPDX-License-Identifier: Apache-2.0
// Memory limits out of a made-up /proc and /sys.
#include "tests/lib/testing.h"

#include <errno.h>
#include <ftw.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "topology/cgroup.h"

#define MIB (1ull << 20)

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

static int setup(void **state)
{
	char *root = strdup("/tmp/thaw-cgroup-XXXXXX");
	*state = root;
	return root && mkdtemp(root) ? 0 : -1;
}

static int teardown(void **state)
{
	nftw(*state, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
	free(*state);
	return 0;
}

static void put(const char *root, const char *path, const char *text)
{
	char name[1024];
	snprintf(name, sizeof name, "%s/%s", root, path);
	for (char *slash = name + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		assert_true(mkdir(name, 0700) == 0 || errno == EEXIST);
		*slash = '/';
	}
	_cleanup_fclose_ FILE *f = fopen(name, "w");
	assert_non_null(f);
	fputs(text, f);
}

static const char mount_v2[] = "24 30 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

static void nothing_there_means_no_limit(void **state)
{
	assert_int_equal(topology_cgroup_limit(*state), UINT64_MAX);
	assert_int_equal(topology_cgroup_available(*state), 0);
}

static void v2_takes_the_smallest_of_all_levels(void **state)
{
	put(*state, "proc/self/cgroup", "0::/system.slice/thaw.service\n");
	put(*state, "proc/self/mountinfo", mount_v2);
	put(*state, "sys/fs/cgroup/system.slice/thaw.service/memory.max", "max\n");
	put(*state, "sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
	assert_int_equal(topology_cgroup_limit(*state), 1024 * MIB);
	put(*state, "sys/fs/cgroup/system.slice/thaw.service/memory.max", "536870912\n");
	assert_int_equal(topology_cgroup_limit(*state), 512 * MIB);
	put(*state, "sys/fs/cgroup/system.slice/thaw.service/memory.high", "268435456\n");
	assert_int_equal(topology_cgroup_limit(*state), 256 * MIB);
}

static void v1_finds_its_memory_controller(void **state)
{
	put(*state, "proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n");
	put(*state, "proc/self/mountinfo",
		"31 30 0:27 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
		"32 30 0:28 /docker/abc /sys/fs/cgroup/memory rw master:3 - cgroup cgroup rw,memory\n");
	put(*state, "sys/fs/cgroup/memory/memory.limit_in_bytes", "209715200\n");
	assert_int_equal(topology_cgroup_limit(*state), 200 * MIB);
	put(*state, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
	assert_true(topology_cgroup_limit(*state) > 1ull << 60);
}

static void apply_lowers_and_never_raises(void **state)
{
	struct topology_machine m = {.memory_bytes = 8192 * MIB};
	m.memory_limit_bytes = m.memory_available_bytes = m.memory_bytes;
	put(*state, "proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB\n");
	assert_int_equal(topology_cgroup_available(*state), 4096 * MIB);
	topology_cgroup_apply(*state, &m);
	assert_int_equal(m.memory_limit_bytes, 8192 * MIB);
	assert_int_equal(m.memory_available_bytes, 4096 * MIB);
	m.memory_bytes = m.memory_limit_bytes = 4096 * MIB; // nodes that do not tell of all
	topology_cgroup_apply(*state, &m);
	assert_int_equal(m.memory_bytes, 8192 * MIB);
	assert_int_equal(m.memory_limit_bytes, 8192 * MIB);
	put(*state, "proc/self/cgroup", "0::/\n");
	put(*state, "proc/self/mountinfo", mount_v2);
	put(*state, "sys/fs/cgroup/memory.max", "1073741824\n");
	assert_int_equal(topology_cgroup_available(*state), 1024 * MIB);
	topology_cgroup_apply(*state, &m);
	assert_int_equal(m.memory_limit_bytes, 1024 * MIB);
	assert_int_equal(m.memory_available_bytes, 1024 * MIB);
	put(*state, "sys/fs/cgroup/memory.max", "107374182400\n");
	topology_cgroup_apply(*state, &m);
	assert_int_equal(m.memory_limit_bytes, 1024 * MIB);
}

static void odd_files_are_no_limit(void **state)
{
	put(*state, "proc/self/cgroup", "nonsense\n::\n0:\n0::/../../..\n");
	put(*state, "proc/self/mountinfo", "x - y\n - cgroup2 a b\n");
	assert_int_equal(topology_cgroup_limit(*state), UINT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(nothing_there_means_no_limit, setup, teardown),
		cmocka_unit_test_setup_teardown(v2_takes_the_smallest_of_all_levels, setup, teardown),
		cmocka_unit_test_setup_teardown(v1_finds_its_memory_controller, setup, teardown),
		cmocka_unit_test_setup_teardown(apply_lowers_and_never_raises, setup, teardown),
		cmocka_unit_test_setup_teardown(odd_files_are_no_limit, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
