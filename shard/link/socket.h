/* SPDX-License-Identifier: Apache-2.0
 * Connected stream sockets to members, for the hellos of the engines: bounded waits, errors that name the member.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"
#include "shard/link/link.h"

/* For poll(): milliseconds to the deadline, rounded up, at most a minute; -1 for LINK_NO_DEADLINE. */
int link_socket_timeout_ms(uint64_t deadline_ns);
/* The same, but no longer than to the next look. */
int link_socket_patience_ms(const struct link_patience *patience);
int link_socket_look(const struct link_patience *patience, struct base_error *e);
int link_socket_wait(int fd, short events, uint32_t peer, const struct link_patience *patience, struct base_error *e);
int link_socket_write(
	int fd, uint32_t peer, const void *data, size_t n, const struct link_patience *patience, struct base_error *e);
int link_socket_read(
	int fd, uint32_t peer, void *out, size_t n, const struct link_patience *patience, struct base_error *e);

/* A TCP socket is set to send at once, and to fail within 3 s when the peer's host falls silent, with data under way or
 * without. Other sockets are left alone. */
int link_socket_tune(int fd);
