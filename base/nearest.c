// SPDX-License-Identifier: Apache-2.0
#include "base/nearest.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

// Levenshtein distance of two short words; words too long to be a slip of the finger are far away.
static unsigned distance(const char *a, const char *b)
{
	size_t la = strlen(a), lb = strlen(b);
	if (la >= BASE_NEAREST_BYTES || lb >= BASE_NEAREST_BYTES)
		return UINT8_MAX;
	uint8_t row[BASE_NEAREST_BYTES];
	for (size_t j = 0; j <= lb; j++)
		row[j] = (uint8_t)j;
	for (size_t i = 1; i <= la; i++) {
		uint8_t diagonal = row[0];
		row[0] = (uint8_t)i;
		for (size_t j = 1; j <= lb; j++) {
			uint8_t change = (uint8_t)(diagonal + (a[i - 1] != b[j - 1]));
			diagonal = row[j];
			uint8_t shorter = (uint8_t)((row[j - 1] < row[j] ? row[j - 1] : row[j]) + 1);
			row[j] = change < shorter ? change : shorter;
		}
	}
	return row[lb];
}

void base_nearest_init(struct base_nearest *n, const char *word)
{
	// About one slip in three letters; more than that is another word.
	size_t far = strlen(word) / 3 + 2;
	*n = (struct base_nearest){.word = word, .far = far > 4 ? 4 : (unsigned)far};
}

void base_nearest_consider(struct base_nearest *n, const char *candidate, const char *shown)
{
	unsigned d = distance(n->word, candidate);
	if (d >= n->far)
		return;
	n->far = d;
	snprintf(n->best, sizeof n->best, "%s", shown);
}
