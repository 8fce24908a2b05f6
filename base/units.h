/* SPDX-License-Identifier: Apache-2.0
 * Sizes and durations as people write them: "70GiB", "512MiB", "4096B", "250ms", "2s", "5m".
 * The unit is required (a bare "0" is accepted): a number without a unit is -EINVAL, one that does not
 * fit 64 bits -ERANGE. Fractions are accepted ("1.5GiB"). Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

int base_units_parse_bytes(const char *text, uint64_t *ret_bytes); // B KiB MiB GiB TiB, KB MB GB TB
int base_units_parse_duration(const char *text, uint64_t *ret_ns); // ns us ms s m h

#define BASE_UNITS_TEXT_BYTES 32
/* "1.5 GiB", "512 B"; returns out. */
char *base_units_format_bytes(uint64_t bytes, char out[static BASE_UNITS_TEXT_BYTES]);
/* "1536MiB", "0B": in the largest unit up to TiB that divides it, so that it reads back as the same; returns out. */
char *base_units_exact_bytes(uint64_t bytes, char out[static BASE_UNITS_TEXT_BYTES]);
/* "1.2 s", "250 ms"; returns out. */
char *base_units_format_duration(uint64_t ns, char out[static BASE_UNITS_TEXT_BYTES]);
