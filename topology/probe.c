// SPDX-License-Identifier: Apache-2.0
#include "topology/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"

#define CACHE_VERSION 2
#define BUSY_NS 60000000
#define CACHE_MAX_BYTES 65536u
#define DIGEST_TEXT 33
#define STALE_NS (24 * 3600 * BASE_NS_PER_SECOND) // what was measured on a busy machine must not stay for good

// Of what the figures depend on; memory that is free at the moment does not belong to it.
static void digest_machine(const struct topology_machine *m, char out[static DIGEST_TEXT])
{
	XXH3_state_t *s = XXH3_createState();
	XXH128_hash_t h = {0};
	if (s) {
		XXH3_128bits_reset(s);
		XXH3_128bits_update(s, m->host, strlen(m->host));
		XXH3_128bits_update(s, m->cpu_model, strlen(m->cpu_model));
		XXH3_128bits_update(s, &m->cpus, sizeof m->cpus);
		XXH3_128bits_update(s, m->cpu, m->cpus * sizeof *m->cpu);
		XXH3_128bits_update(s, &m->memory_bytes, sizeof m->memory_bytes);
		for (uint32_t i = 0; i < m->drives_count; i++) {
			XXH3_128bits_update(s, m->drives[i].name, strlen(m->drives[i].name) + 1);
			XXH3_128bits_update(s, m->drives[i].model, strlen(m->drives[i].model) + 1);
			XXH3_128bits_update(s, &m->drives[i].size_bytes, sizeof m->drives[i].size_bytes);
		}
		h = XXH3_128bits_digest(s);
		XXH3_freeState(s);
	}
	snprintf(out, DIGEST_TEXT, "%016" PRIx64 "%016" PRIx64, h.high64, h.low64);
}

static bool get_rate(struct json_object *o, const char *key, double *ret)
{
	struct json_object *v;
	if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_double))
		return false;
	*ret = json_object_get_double(v);
	return isfinite(*ret) && *ret >= 0 && *ret < 1e18;
}

static bool cache_parse(struct json_object *o, const char *digest, struct topology_bandwidths *ret)
{
	struct json_object *version, *machine, *wall;
	if (!json_object_object_get_ex(o, "version", &version) || json_object_get_int(version) != CACHE_VERSION ||
		!json_object_object_get_ex(o, "machine", &machine) || !json_object_is_type(machine, json_type_string) ||
		strcmp(json_object_get_string(machine), digest) != 0 ||
		!json_object_object_get_ex(o, "measured_wall_ns", &wall) || !json_object_is_type(wall, json_type_int))
		return false;
	ret->measured_wall_ns = json_object_get_uint64(wall);
	return get_rate(o, "busy_ratio", &ret->busy_ratio) &&
	       get_rate(o, "drive_bytes_per_s", &ret->drive_bytes_per_s) &&
	       get_rate(o, "memory_bytes_per_s", &ret->memory_bytes_per_s) && ret->memory_bytes_per_s > 0 &&
	       get_rate(o, "compute_macs_per_s", &ret->compute_macs_per_s);
}

static bool cache_read(const char *path, const char *digest, struct topology_bandwidths *ret)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *text = f ? malloc(CACHE_MAX_BYTES + 1) : NULL;
	if (!text)
		return false;
	size_t n = fread(text, 1, CACHE_MAX_BYTES + 1, f);
	if (n > CACHE_MAX_BYTES)
		return false;
	text[n] = '\0';
	struct json_object *o = json_tokener_parse(text);
	struct topology_bandwidths b = {0};
	bool good = o && json_object_is_type(o, json_type_object) && cache_parse(o, digest, &b);
	uint64_t now = base_clock_wall_ns();
	good = good && b.measured_wall_ns <= now && now - b.measured_wall_ns < STALE_NS;
	json_object_put(o);
	if (good)
		*ret = b;
	return good;
}

static struct json_object *cache_object(const char *digest, const struct topology_bandwidths *b)
{
	char date[32] = "";
	time_t seconds = (time_t)(b->measured_wall_ns / BASE_NS_PER_SECOND);
	struct tm tm;
	struct json_object *o = json_object_new_object();
	if (gmtime_r(&seconds, &tm))
		strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &tm);
	json_object_object_add(o, "version", json_object_new_int(CACHE_VERSION));
	json_object_object_add(o, "machine", json_object_new_string(digest));
	json_object_object_add(o, "date", json_object_new_string(date));
	json_object_object_add(o, "measured_wall_ns", json_object_new_uint64(b->measured_wall_ns));
	json_object_object_add(o, "busy_ratio", json_object_new_double(b->busy_ratio));
	json_object_object_add(o, "drive_bytes_per_s", json_object_new_double(b->drive_bytes_per_s));
	json_object_object_add(o, "memory_bytes_per_s", json_object_new_double(b->memory_bytes_per_s));
	json_object_object_add(o, "compute_macs_per_s", json_object_new_double(b->compute_macs_per_s));
	return o;
}

// Best effort: without it the next start measures again.
static void cache_write(const char *path, const char *digest, const struct topology_bandwidths *b)
{
	char directory[PATH_MAX];
	const char *slash = strrchr(path, '/');
	if (snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".") >=
		(int)sizeof directory)
		return;
	_cleanup_close_ int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct json_object *o = fd < 0 ? NULL : cache_object(digest, b);
	const char *text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY) : NULL;
	if (text)
		base_file_replace(fd, slash ? slash + 1 : path, text, strlen(text));
	json_object_put(o);
}

struct ticks {
	unsigned long long all, idle;
};

static bool read_ticks(struct ticks *ret)
{
	unsigned long long v[8] = {0};
	_cleanup_fclose_ FILE *f = fopen("/proc/stat", "re");
	/* user nice system idle iowait irq softirq steal */
	if (!f || fscanf(f, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5],
			  &v[6], &v[7]) < 4)
		return false;
	*ret = (struct ticks){.idle = v[3] + v[4]};
	for (size_t i = 0; i < base_array_size(v); i++)
		ret->all += v[i];
	return true;
}

double topology_probe_busy(void)
{
	struct ticks before, after;
	if (!read_ticks(&before))
		return 0;
	nanosleep(&(struct timespec){.tv_nsec = BUSY_NS}, NULL);
	if (!read_ticks(&after) || after.all <= before.all)
		return 0;
	double idle = after.idle > before.idle ? (double)(after.idle - before.idle) : 0;
	double busy = 1 - idle / (double)(after.all - before.all);
	return busy < 0 ? 0 : busy;
}

static double busy_now(const struct topology_probe_source *source)
{
	return source && source->busy ? source->busy(source->context) : topology_probe_busy();
}

static int measure(const struct topology_machine *m, const struct topology_probe_source *source, bool drive_only,
	struct topology_bandwidths *b, struct base_error *e)
{
	int r = 0;
	if (source && source->drive)
		r = source->drive(source->context, &b->drive_bytes_per_s);
	if (r < 0)
		return base_error_set(e, r, "probe: drive: %s",
			r == -ETIMEDOUT ? "no answer to a read: it hangs" : strerrordesc_np(-r));
	if (drive_only)
		return 0;
	r = topology_probe_memory(m, 0, &b->memory_bytes_per_s, e);
	if (r < 0)
		return r;
	if (source && source->compute)
		r = source->compute(source->context, &b->compute_macs_per_s);
	return r < 0 ? base_error_set(e, r, "probe: compute: %s", strerrordesc_np(-r)) : 0;
}

int topology_probe(const struct topology_machine *m, const char *cache_path, const struct topology_probe_source *source,
	struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	char digest[DIGEST_TEXT];
	struct topology_bandwidths b = {0};
	bool has_drive = source && source->drive, has_compute = source && source->compute;
	digest_machine(m, digest);
	bool cached = cache_path && cache_read(cache_path, digest, &b);
	if (cached && has_compute && b.compute_macs_per_s == 0)
		cached = false;
	if (cached && b.busy_ratio >= TOPOLOGY_PROBE_BUSY && busy_now(source) < TOPOLOGY_PROBE_BUSY)
		cached = false;
	if (!cached)
		b = (struct topology_bandwidths){.busy_ratio = busy_now(source)};
	if (!cached || (has_drive && b.drive_bytes_per_s == 0)) {
		double before = b.drive_bytes_per_s;
		int r = measure(m, source, cached, &b, e);
		if (r < 0)
			return r;
		if (!cached)
			b.measured_wall_ns = base_clock_wall_ns();
		if (cache_path && (!cached || b.drive_bytes_per_s != before))
			cache_write(cache_path, digest, &b);
	}
	*ret_bandwidths = b;
	return 0;
}
