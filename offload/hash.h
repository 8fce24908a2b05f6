/* SPDX-License-Identifier: Apache-2.0
 * XXH3-64 with the widest vectors that the CPU has (xxHash's own code, compiled per instruction set).
 * Any thread.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

uint64_t offload_hash(const void *data, size_t bytes);
