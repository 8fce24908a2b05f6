/* SPDX-License-Identifier: Apache-2.0
 * What the service manager is told: a thin layer over sd_notify(3).
 *
 * Every call is a no-op without NOTIFY_SOCKET, so the daemon runs the same from a shell. None of them fails the
 * caller: a manager that cannot be told is not a reason to stop serving. Any thread; no state of ours.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* READY=1 with a status line. Once after the start, and again at the end of a reload. */
void notify_ready(const char *status);
/* STATUS=: one line, formatted; newlines become spaces. */
void notify_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* RELOADING=1 with the monotonic time that systemd 253 and later wants. notify_ready ends it. */
void notify_reloading(void);
void notify_stopping(const char *status);
/* WATCHDOG=1: call it only while passes advance or the engine is known to be idle. */
void notify_watchdog(void);
/* EXTEND_TIMEOUT_USEC=: start or stop may take that much longer, from now. Call it when load progress was made. */
void notify_extend_timeout(uint64_t ns);
/* How often the watchdog must be fed, halved as sd_watchdog_enabled(3) advises; 0: there is none. */
uint64_t notify_watchdog_interval_ns(void);
