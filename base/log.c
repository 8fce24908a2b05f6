// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"", "", "", "error", "warning", "notice", "info", "debug"};

void base_log_init(struct base_log *log, const char *name, enum base_log_level level)
{
	log->fd = STDERR_FILENO;
	log->name = name;
	log->journal = getenv("JOURNAL_STREAM") && !isatty(STDERR_FILENO);
	atomic_init(&log->level, (int)level);
}

int base_log_parse_level(const char *text, enum base_log_level *ret_level)
{
	for (int i = BASE_LOG_ERROR; i <= BASE_LOG_DEBUG; i++) {
		if (strcmp(text, level_names[i]) == 0) {
			*ret_level = (enum base_log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *base_log_level_name(int level)
{
	return level >= BASE_LOG_ERROR && level <= BASE_LOG_DEBUG ? level_names[level] : "unknown";
}

static size_t prefix(const struct base_log *log, enum base_log_level level, char *out, size_t room)
{
	if (log->journal)
		return (size_t)snprintf(out, room, "<%d>", (int)level);
	struct timespec t;
	struct tm tm;
	clock_gettime(CLOCK_REALTIME, &t);
	gmtime_r(&t.tv_sec, &tm);
	return (size_t)snprintf(out, room, "%02d:%02d:%02d.%03ld %s %s: ", tm.tm_hour, tm.tm_min, tm.tm_sec,
		t.tv_nsec / 1000000, log->name, level_names[level]);
}

void base_log_write(struct base_log *log, enum base_log_level level, const char *fmt, ...)
{
	if (!log || (int)level > atomic_load_explicit(&log->level, memory_order_relaxed))
		return;
	int saved = errno;
	char line[1024];
	size_t n = prefix(log, level, line, sizeof line - 1);
	va_list ap;
	va_start(ap, fmt);
	int m = vsnprintf(line + n, sizeof line - 1 - n, fmt, ap);
	va_end(ap);
	if (m > 0)
		n += (size_t)m;
	if (n > sizeof line - 2)
		n = sizeof line - 2;
	line[n++] = '\n';
	ssize_t written = write(log->fd, line, n);
	(void)written; // nowhere left to complain
	errno = saved;
}
