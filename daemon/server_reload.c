// SPDX-License-Identifier: Apache-2.0
// Reading the configuration again, asked for by a call: main does it on its own thread, as it does for SIGHUP.
#include <errno.h>
#include <stdio.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/server_internal.h"

#define RELOAD_NS (10 * BASE_NS_PER_SECOND)

int server_reload(struct server *s, char *ret_text, size_t room, struct base_error *e)
{
	uint64_t until = base_clock_now_ns() + RELOAD_NS;
	const struct timespec t = {
		.tv_sec = (time_t)(until / BASE_NS_PER_SECOND), .tv_nsec = (long)(until % BASE_NS_PER_SECOND)};
	int status = 0;
	pthread_mutex_lock(&s->events_lock);
	uint64_t mine = ++s->reloads_wanted;
	while (s->reloads_done < mine && !status)
		status = -pthread_cond_timedwait(&s->events_changed, &s->events_lock, &t);
	if (s->reloads_done >= mine) {
		status = s->reload_status;
		snprintf(ret_text, room, "%s", s->reload_text);
		if (status)
			base_error_set(e, status, "%s", s->reload_text);
	} else {
		status = base_error_set(e, -ETIMEDOUT, "the configuration was not read within %llu s",
			(unsigned long long)(RELOAD_NS / BASE_NS_PER_SECOND));
	}
	pthread_mutex_unlock(&s->events_lock);
	return status;
}

bool server_reload_wanted(struct server *s)
{
	pthread_mutex_lock(&s->events_lock);
	bool wanted = s->reloads_done < s->reloads_wanted;
	s->reloads_taken = s->reloads_wanted;
	pthread_mutex_unlock(&s->events_lock);
	return wanted;
}

void server_reload_done(struct server *s, int status, const char *text)
{
	pthread_mutex_lock(&s->events_lock);
	s->reloads_done = s->reloads_taken;
	s->reload_status = status;
	snprintf(s->reload_text, sizeof s->reload_text, "%s", text);
	pthread_cond_broadcast(&s->events_changed);
	pthread_mutex_unlock(&s->events_lock);
}
