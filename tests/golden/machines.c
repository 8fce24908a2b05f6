// SPDX-License-Identifier: Apache-2.0
// Pictures of fleets as `thawctl topology` makes them of files: tests/golden/machines/NAME.yaml (thaw-fleet.yaml(5))
// with machines of tests/golden/topologies gives NAME.txt and NAME.svg; recorded.txt and recorded.svg are of several
// --topology.
#include "tests/lib/testing.h"

#include <string.h>

#include "daemon/ctl/ctl.h"
#include "tests/golden/compare.h"

#define MACHINES THAW_GOLDEN "/topologies/"

static void check(const char *const *words, const char *output, const char *stem, const char *ending)
{
	char *out = NULL, *err = NULL, path[1100], *argv[16] = {(char *)"thawctl", (char *)"topology"};
	size_t out_bytes, err_bytes;
	int count = 2;
	while (*words)
		argv[count++] = (char *)*words++;
	argv[count++] = (char *)"-o";
	argv[count++] = (char *)output;
	struct ctl c = {.in = fopen("/dev/null", "re"),
		.out = open_memstream(&out, &out_bytes),
		.err = open_memstream(&err, &err_bytes)};
	int exit = ctl_run(&c, count, argv);
	fclose(c.in);
	fclose(c.out);
	fclose(c.err);
	if (exit != CTL_OK || err[0])
		fail_msg("exit %d\n%s", exit, err);
	snprintf(path, sizeof path, "%s.%s", stem, ending);
	golden_compare(path, out);
	free(out);
	free(err);
}

static void check_fleet(const char *stem)
{
	char file[1100];
	snprintf(file, sizeof file, "%s.yaml", stem);
	const char *const words[] = {"--fleet", file, NULL};
	check(words, "wide", stem, "txt");
	check(words, "svg", stem, "svg");
}

static void fleets_of_files_are_shown_as_recorded(void **state)
{
	assert_int_equal(golden_each(THAW_GOLDEN "/machines", ".yaml", check_fleet), 4);
}

static void recorded_machines_are_shown_together(void **state)
{
	static const char *const words[] = {"--topology", MACHINES "1s4n4g.xml", "--topology",
		MACHINES "32em64t-2n8c2t-pci-normalio.xml", "--topology", MACHINES "small-vm.xml", NULL};
	check(words, "wide", THAW_GOLDEN "/machines/recorded", "txt");
	check(words, "svg", THAW_GOLDEN "/machines/recorded", "svg");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(fleets_of_files_are_shown_as_recorded),
		cmocka_unit_test(recorded_machines_are_shown_together),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
