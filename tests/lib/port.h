/* SPDX-License-Identifier: Apache-2.0
 * TCP ports for servers that a test starts, stops and starts again, and that others must know beforehand.
 */
#pragma once

#include <stdint.h>

/* A port of 127.0.0.1 that is this process's until it ends, as far as tests are concerned (tests/lib/cluster.py has the
 * same claims). It is none that the kernel would give to a connection by itself: such a port may be taken while its
 * server is away, even by a client that tries to reach it. Aborts when there is none. */
uint16_t port_claim(void);
