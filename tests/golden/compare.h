/* SPDX-License-Identifier: Apache-2.0
 * Compares a text with a recorded file, or with THAW_GOLDEN_UPDATE=1 in the environment records it.
 */
#pragma once

#include <dirent.h>
#include <stdbool.h>
#include <string.h>

#include "base/cleanup.h"

#define GOLDEN_MAX_BYTES (1u << 20)

static inline void golden_compare(const char *path, const char *text)
{
	if (getenv("THAW_GOLDEN_UPDATE")) {
		_cleanup_fclose_ FILE *f = fopen(path, "we");
		assert_non_null(f);
		fputs(text, f);
		return;
	}
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	if (!f)
		fail_msg("%s is missing", path);
	_cleanup_free_ char *want = malloc(GOLDEN_MAX_BYTES);
	assert_non_null(want);
	size_t n = fread(want, 1, GOLDEN_MAX_BYTES - 1, f);
	want[n] = '\0';
	if (strcmp(want, text) != 0)
		fail_msg("%s differs; now it is:\n%s", path, text);
}

/* Calls run with "FOLDER/NAME" (without the ending) for each file of the folder that ends so; returns how many. */
static inline unsigned golden_each(const char *folder, const char *ending, void (*run)(const char *stem))
{
	struct dirent **names;
	unsigned count = 0;
	int n = scandir(folder, &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		size_t length = strlen(names[i]->d_name), end = strlen(ending);
		if (length > end && strcmp(names[i]->d_name + length - end, ending) == 0) {
			char stem[1024];
			snprintf(stem, sizeof stem, "%s/%.*s", folder, (int)(length - end), names[i]->d_name);
			run(stem);
			count++;
		}
		free(names[i]);
	}
	if (n >= 0)
		free(names);
	return count;
}
