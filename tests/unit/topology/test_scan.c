// SPDX-License-Identifier: Apache-2.0
// Scanning this machine and files. What recorded machines look like is in tests/golden/topologies.
#include "tests/lib/testing.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "topology/scan.h"

static void this_machine_has_what_it_runs_on(void **state)
{
	struct topology_machine *m = calloc(1, sizeof *m);
	struct base_error e = {0};
	if (topology_scan(NULL, m, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	cpu_set_t set;
	assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
	assert_int_equal(m->cpus, CPU_COUNT(&set));
	for (uint32_t i = 0; i < m->cpus; i++)
		assert_true(CPU_ISSET(m->cpu[i], &set));
	assert_true(m->cores >= 1 && m->cores <= m->cpus && m->packages >= 1);
	assert_true(m->memory_bytes > 0 && m->memory_limit_bytes <= m->memory_bytes);
	assert_true(m->memory_available_bytes > 0 && m->memory_available_bytes <= m->memory_limit_bytes);
	assert_true(m->host[0] != '\0');
	free(m);
}

static void an_affinity_mask_is_kept_to(void **state)
{
	cpu_set_t before, one;
	assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
	int cpu = 0;
	while (!CPU_ISSET(cpu, &before))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
	struct topology_machine *m = calloc(1, sizeof *m);
	assert_int_equal(topology_scan(NULL, m, NULL), 0);
	assert_int_equal(m->cpus, 1);
	assert_int_equal(m->cpu[0], cpu);
	assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
	free(m);
}

static void cores_come_before_their_second_threads(void **state)
{
	struct topology_machine *m = calloc(1, sizeof *m);
	assert_int_equal(topology_scan(THAW_GOLDEN "/topologies/2s8g8n.xml", m, NULL), 0);
	assert_int_equal(m->cores, 32);
	for (uint32_t i = 0; i < 64; i++)
		assert_int_equal(m->cpu[i], i);
	assert_int_equal(m->gpus[0].size_bytes, 83054592ull * 1024);
	assert_int_equal(m->drives[7].size_bytes, 3750738264ull * 1024);
	free(m);
}

static void bad_files_are_refused_and_leave_the_output(void **state)
{
	struct topology_machine *m = calloc(1, sizeof *m);
	struct base_error e = {0};
	m->cpus = 77;
	assert_int_equal(topology_scan("/nonexistent.xml", m, &e), -ENOENT);
	assert_non_null(strstr(e.message, "/nonexistent.xml"));
	char path[] = "/tmp/thaw-scan-XXXXXX";
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "<topology><object", 17), 17);
	close(fd);
	assert_true(topology_scan(path, m, &e) < 0);
	assert_non_null(strstr(e.message, path));
	unlink(path);
	assert_int_equal(m->cpus, 77);
	free(m);
}

static void processes_share_the_cpus_of_the_largest_machine(void **state)
{
	struct topology_machine *m = calloc(1, sizeof *m);
	uint32_t cpus[TOPOLOGY_MAX_CPUS], count, next = 0;
	m->cpus = TOPOLOGY_MAX_CPUS;
	for (uint32_t i = 0; i < m->cpus; i++)
		m->cpu[i] = i;
	assert_int_equal(topology_machine_share(m, 0, 1, 0, cpus, &count), TOPOLOGY_MAX_CPUS);
	assert_int_equal(count, TOPOLOGY_MAX_CPUS);
	assert_int_equal(cpus[count - 1], TOPOLOGY_MAX_CPUS - 1);
	for (uint32_t part = 0; part < 3; part++) {
		assert_int_equal(topology_machine_share(m, part, 3, 4, cpus, &count), 4);
		assert_int_equal(cpus[0], next);
		next += count;
	}
	assert_int_equal(next, TOPOLOGY_MAX_CPUS);
	m->cpus = 2;
	assert_int_equal(topology_machine_share(m, 2, 3, 0, cpus, &count), 1);
	assert_int_equal(count, 0);
	free(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(this_machine_has_what_it_runs_on),
		cmocka_unit_test(an_affinity_mask_is_kept_to),
		cmocka_unit_test(cores_come_before_their_second_threads),
		cmocka_unit_test(bad_files_are_refused_and_leave_the_output),
		cmocka_unit_test(processes_share_the_cpus_of_the_largest_machine),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
