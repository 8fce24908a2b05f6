// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/server_internal.h"

void server_cond_init(pthread_cond_t *c)
{
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(c, &attributes);
	pthread_condattr_destroy(&attributes);
}

int server_events_init(struct server *s)
{
	pthread_mutex_init(&s->events_lock, NULL);
	server_cond_init(&s->events_changed);
	s->events = calloc(SERVER_EVENTS, sizeof *s->events);
	return s->events ? 0 : -ENOMEM;
}

void server_events_finish(struct server *s)
{
	pthread_cond_destroy(&s->events_changed);
	pthread_mutex_destroy(&s->events_lock);
	free(s->events);
}

static enum base_log_level level_of(const char *severity)
{
	enum base_log_level level;
	return base_log_parse_level(severity, &level) < 0 ? BASE_LOG_NOTICE : level;
}

void server_emit_event(struct server *s, const char *severity, const char *kind, const char *model, const char *text)
{
	base_log_write(s->log, level_of(severity), "%s%s%s: %s event=%s", model && model[0] ? "model " : "",
		model ? model : "", model && model[0] ? "" : "server", text, kind);
	pthread_mutex_lock(&s->events_lock);
	struct server_event *v = &s->events[s->events_last % SERVER_EVENTS];
	v->sequence = ++s->events_last;
	v->wall_ns = base_clock_wall_ns();
	snprintf(v->severity, sizeof v->severity, "%s", severity);
	snprintf(v->kind, sizeof v->kind, "%s", kind);
	snprintf(v->model, sizeof v->model, "%s", model ? model : "");
	snprintf(v->text, sizeof v->text, "%s", text);
	pthread_cond_broadcast(&s->events_changed);
	pthread_mutex_unlock(&s->events_lock);
}

uint32_t server_read_events(
	struct server *s, uint64_t after, struct server_event *ret_events, uint32_t room, uint64_t timeout_ns)
{
	uint64_t until = base_clock_now_ns() + timeout_ns;
	struct timespec t = {
		.tv_sec = (time_t)(until / BASE_NS_PER_SECOND), .tv_nsec = (long)(until % BASE_NS_PER_SECOND)};
	uint32_t n = 0;
	pthread_mutex_lock(&s->events_lock);
	while (timeout_ns && s->events_last <= after &&
		pthread_cond_timedwait(&s->events_changed, &s->events_lock, &t) == 0)
		;
	uint64_t first = s->events_last > SERVER_EVENTS ? s->events_last - SERVER_EVENTS + 1 : 1;
	for (uint64_t i = after + 1 > first ? after + 1 : first; i <= s->events_last && n < room; i++)
		ret_events[n++] = s->events[(i - 1) % SERVER_EVENTS];
	pthread_mutex_unlock(&s->events_lock);
	return n;
}
