// SPDX-License-Identifier: Apache-2.0
#include "topology/cgroup.h"

#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"

#define NO_LIMIT UINT64_MAX
#define MAX_LEVELS 64u

struct mount {
	char root[PATH_MAX]; // what of the hierarchy is mounted
	char point[PATH_MAX];
};

static FILE *open_file(const char *root, const char *path)
{
	char name[2 * PATH_MAX];
	int n = snprintf(name, sizeof name, "%s%s", root, path);
	return n < (int)sizeof name ? fopen(name, "re") : NULL;
}

// True if a comma-separated list has the word.
static bool has_word(const char *list, const char *word)
{
	size_t n = strlen(word);
	for (const char *p = list; (p = strstr(p, word)); p += n) {
		if ((p == list || p[-1] == ',') && (p[n] == ',' || p[n] == '\0' || p[n] == '\n'))
			return true;
	}
	return false;
}

// "ID PARENT DEV ROOT POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER": the cgroup2 mount, or v1's with the memory
// controller.
static bool find_mount(const char *root, bool v2, struct mount *ret_mount)
{
	_cleanup_fclose_ FILE *f = open_file(root, "/proc/self/mountinfo");
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	while (f && getline(&line, &room, f) > 0) {
		char type[64], super[1024];
		const char *rest = strstr(line, " - ");
		if (!rest || sscanf(rest, " - %63s %*s %1023s", type, super) != 2)
			continue;
		if (v2 ? strcmp(type, "cgroup2") != 0 : strcmp(type, "cgroup") != 0 || !has_word(super, "memory"))
			continue;
		if (sscanf(line, "%*s %*s %*s %4095s %4095s", ret_mount->root, ret_mount->point) == 2)
			return true;
	}
	return false;
}

static uint64_t read_limit(const char *root, const char *folder, const char *name)
{
	char path[PATH_MAX + 64];
	unsigned long long v;
	if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
		return NO_LIMIT;
	_cleanup_fclose_ FILE *f = open_file(root, path);
	// "max", or v1's page-rounded LONG_MAX, which is far beyond any memory
	if (!f || fscanf(f, "%llu", &v) != 1)
		return NO_LIMIT;
	return v;
}

// The path of /proc/self/cgroup, seen from the mount: a container may see only its own part.
static const char *below(const char *path, const char *mounted)
{
	size_t n = strlen(mounted);
	if (strcmp(mounted, "/") == 0)
		return path;
	return strncmp(path, mounted, n) == 0 && (path[n] == '/' || path[n] == '\0') ? path + n : "";
}

static uint64_t limit_upwards(const char *root, const char *path, bool v2)
{
	_cleanup_free_ struct mount *m = malloc(sizeof *m);
	char folder[PATH_MAX];
	uint64_t limit = NO_LIMIT;
	if (!m || !find_mount(root, v2, m))
		return NO_LIMIT;
	int n = snprintf(folder, sizeof folder, "%s%s", m->point, below(path, m->root));
	if (n >= (int)sizeof folder)
		return NO_LIMIT;
	size_t top = strlen(m->point);
	for (unsigned level = 0; level < MAX_LEVELS; level++) {
		// Beyond memory.high the kernel reclaims and throttles: no budget should count on that.
		static const char *const names[2][2] = {{"memory.limit_in_bytes", NULL}, {"memory.max", "memory.high"}};
		for (unsigned i = 0; i < 2 && names[v2][i]; i++) {
			uint64_t v = read_limit(root, folder, names[v2][i]);
			limit = v < limit ? v : limit;
		}
		char *slash = strrchr(folder, '/');
		if (!slash || strlen(folder) <= top)
			break;
		*slash = '\0';
		if (strlen(folder) < top)
			break;
	}
	return limit;
}

uint64_t topology_cgroup_limit(const char *root)
{
	_cleanup_fclose_ FILE *f = open_file(root, "/proc/self/cgroup");
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	uint64_t limit = NO_LIMIT;
	while (f && getline(&line, &room, f) > 0) {
		line[strcspn(line, "\n")] = '\0';
		char *controllers = strchr(line, ':');
		char *path = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!path)
			continue;
		controllers++;
		*path++ = '\0';
		bool v2 = controllers[0] == '\0';
		if (!v2 && !has_word(controllers, "memory"))
			continue;
		uint64_t v = limit_upwards(root, path, v2);
		limit = v < limit ? v : limit;
	}
	return limit;
}

static uint64_t meminfo(const char *root, const char *key)
{
	_cleanup_fclose_ FILE *f = open_file(root, "/proc/meminfo");
	_cleanup_free_ char *line = NULL;
	size_t room = 0;
	unsigned long long kib;
	while (f && getline(&line, &room, f) > 0) {
		if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), ": %llu kB", &kib) == 1 &&
			kib < UINT64_MAX / 1024)
			return kib * 1024;
	}
	return NO_LIMIT;
}

uint64_t topology_cgroup_available(const char *root)
{
	uint64_t limit = topology_cgroup_limit(root), available = meminfo(root, "MemAvailable");
	return available == NO_LIMIT ? 0 : available < limit ? available : limit;
}

void topology_cgroup_apply(const char *root, struct topology_machine *m)
{
	uint64_t limit = topology_cgroup_limit(root), available = meminfo(root, "MemAvailable"),
		 total = meminfo(root, "MemTotal");
	// The nodes' own books may lag behind, or leave memory out that was added to a virtual machine.
	if (total != NO_LIMIT && m->memory_limit_bytes >= m->memory_bytes)
		m->memory_limit_bytes = m->memory_available_bytes = total;
	if (total != NO_LIMIT)
		m->memory_bytes = total;
	if (limit < m->memory_limit_bytes)
		m->memory_limit_bytes = limit;
	if (available < m->memory_available_bytes)
		m->memory_available_bytes = available;
	if (m->memory_limit_bytes < m->memory_available_bytes)
		m->memory_available_bytes = m->memory_limit_bytes;
}
