/* SPDX-License-Identifier: Apache-2.0
 * Log lines for processes (daemon, rank, ctl). Libraries return errors instead; they may log at debug.
 *
 * One line per call, written with one write(2): "<6>" prefixes for journald, or "time level subsystem: text"
 * on a terminal. Fields follow the text as key=value. A `struct base_log` is set up once before threads
 * start and then only read, apart from its level, which is atomic. NULL logs nothing. Any thread.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

enum base_log_level {
	BASE_LOG_ERROR = 3,
	BASE_LOG_WARNING = 4,
	BASE_LOG_NOTICE = 5,
	BASE_LOG_INFO = 6,
	BASE_LOG_DEBUG = 7
};

struct base_log {
	_Atomic int level; // enum base_log_level: lines above it are dropped
	bool journal; // "<N>" prefixes instead of time and level
	int fd;
	const char *name; // of the process, for terminal lines
};

/* Logs to stderr; journal is chosen when JOURNAL_STREAM says that stderr is the journal. */
void base_log_init(struct base_log *log, const char *name, enum base_log_level level);
/* "error" ... "debug" to a level; -EINVAL for other words. */
int base_log_parse_level(const char *text, enum base_log_level *ret_level);
/* The word of a level; "unknown" beyond them. */
const char *base_log_level_name(int level);
void base_log_write(struct base_log *log, enum base_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define base_log_error(log, ...) base_log_write(log, BASE_LOG_ERROR, __VA_ARGS__)
#define base_log_warning(log, ...) base_log_write(log, BASE_LOG_WARNING, __VA_ARGS__)
#define base_log_notice(log, ...) base_log_write(log, BASE_LOG_NOTICE, __VA_ARGS__)
#define base_log_info(log, ...) base_log_write(log, BASE_LOG_INFO, __VA_ARGS__)
#define base_log_debug(log, ...) base_log_write(log, BASE_LOG_DEBUG, __VA_ARGS__)
