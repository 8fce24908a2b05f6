// SPDX-License-Identifier: Apache-2.0
// Recorded machines, scanned and printed (tests/golden/topologies).
#include "tests/lib/testing.h"

#include <errno.h>
#include <unistd.h>

#include "tests/golden/compare.h"
#include "topology/draw.h"
#include "topology/scan.h"

static void check_machine(const char *stem)
{
	char path[1100], *text = NULL;
	size_t bytes;
	struct topology_machine *m = calloc(1, sizeof *m);
	struct base_error e = {0};
	snprintf(path, sizeof path, "%s.xml", stem);
	assert_non_null(m);
	if (topology_scan(path, m, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	FILE *out = open_memstream(&text, &bytes);
	assert_non_null(out);
	topology_machine_print(m, out);
	fclose(out);
	snprintf(path, sizeof path, "%s.txt", stem);
	golden_compare(path, text);
	free(text);
	snprintf(path, sizeof path, "%s.svg", stem);
	if (access(path, F_OK) == 0) { // not all are drawn
		out = open_memstream(&text, &bytes);
		assert_non_null(out);
		const struct topology_draw_machine one = {.machine = m, .name = "", .note = ""};
		assert_int_equal(topology_draw_fleet("", &one, 1, NULL, 0, out), 0);
		fclose(out);
		golden_compare(path, text);
		free(text);
	}
	free(m);
}

static void machines_are_scanned_as_recorded(void **state)
{
	assert_int_equal(golden_each(THAW_GOLDEN "/topologies", ".xml", check_machine), 7);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(machines_are_scanned_as_recorded)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
