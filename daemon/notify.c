// SPDX-License-Identifier: Apache-2.0
#include "daemon/notify.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include <systemd/sd-daemon.h>

#include "base/clock.h"

#define STATUS_BYTES 512

// A newline would start the next assignment of the message.
static void one_line(char *text)
{
	for (; *text; text++)
		if (*text == '\n' || *text == '\r')
			*text = ' ';
}

static void send_with_status(const char *assignment, const char *status)
{
	if (!status) {
		sd_notify(0, assignment);
		return;
	}
	char line[STATUS_BYTES];
	snprintf(line, sizeof line, "%s", status);
	one_line(line);
	sd_notifyf(0, "%s\nSTATUS=%s", assignment, line);
}

void notify_ready(const char *status)
{
	send_with_status("READY=1", status);
}

void notify_stopping(const char *status)
{
	send_with_status("STOPPING=1", status);
}

void notify_status(const char *fmt, ...)
{
	char line[STATUS_BYTES];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(line, sizeof line, fmt, ap);
	va_end(ap);
	one_line(line);
	sd_notifyf(0, "STATUS=%s", line);
}

void notify_reloading(void)
{
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64, base_clock_now_ns() / 1000);
}

void notify_watchdog(void)
{
	sd_notify(0, "WATCHDOG=1");
}

void notify_extend_timeout(uint64_t ns)
{
	sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, ns / 1000);
}

uint64_t notify_watchdog_interval_ns(void)
{
	uint64_t usec = 0;
	if (sd_watchdog_enabled(0, &usec) <= 0)
		return 0;
	return usec * 1000 / 2;
}
