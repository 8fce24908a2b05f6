/* SPDX-License-Identifier: Apache-2.0
 * The word that was meant by one with a slip of the finger, for `did you mean "x"?`. Pure; the caller's memory.
 */
#pragma once

#include <stddef.h>

#define BASE_NEAREST_BYTES 48u // longer words are taken for no slip

struct base_nearest {
	const char *word; // what was written; not copied
	char best[BASE_NEAREST_BYTES]; // as shown; "": nothing is near
	unsigned far;
};

void base_nearest_init(struct base_nearest *n, const char *word);
/* Takes it if it is nearer than all before. shown: how to say it. */
void base_nearest_consider(struct base_nearest *n, const char *candidate, const char *shown);
