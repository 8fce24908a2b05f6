// SPDX-License-Identifier: Apache-2.0
// Any bytes as STORE/probe.json, where the first "@" stands for the time: what is used of it are figures that a planner
// can compute with. The machine has nothing, and nothing can be measured on it, so all that comes is from the file.
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "tests/fuzz/folder.h"
#include "topology/probe.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int no_drive(void *context, double *ret_bytes_per_s)
{
	return -EIO;
}

static double always_busy(void *context)
{
	return 1;
}

static void write_file(const uint8_t *data, size_t bytes)
{
	const uint8_t *at = bytes ? memchr(data, '@', bytes) : NULL;
	_cleanup_free_ char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	if (!out)
		abort();
	fwrite(data, 1, at ? (size_t)(at - data) : bytes, out);
	if (at) {
		fprintf(out, "%llu", (unsigned long long)base_clock_wall_ns());
		fwrite(at + 1, 1, bytes - (size_t)(at - data) - 1, out);
	}
	if (fclose(out))
		abort();
	folder_put(0, "probe.json", text, size);
}

static bool is_figure(double x)
{
	return isfinite(x) && x >= 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const struct topology_machine machine;
	static const struct topology_probe_source source = {.drive = no_drive, .busy = always_busy};
	struct topology_bandwidths b;
	struct base_error e = {0};
	write_file(data, bytes);
	int r = topology_probe(&machine, folder_file[0], &source, &b, &e);
	if (r < 0 ? !e.message[0]
		  : !is_figure(b.busy_ratio) || !is_figure(b.compute_macs_per_s) || !is_figure(b.memory_bytes_per_s) ||
				b.memory_bytes_per_s == 0 || !is_figure(b.drive_bytes_per_s) ||
				b.drive_bytes_per_s == 0 || b.measured_wall_ns > base_clock_wall_ns())
		abort();
	return 0;
}
