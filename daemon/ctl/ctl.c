// SPDX-License-Identifier: Apache-2.0
#include "daemon/ctl/ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define DEFAULT_SERVER "unix:/run/thaw/thaw.sock"

int ctl_fail(struct ctl *c, int exit, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fprintf(c->err, "thawctl: ");
	vfprintf(c->err, fmt, ap);
	fputc('\n', c->err);
	va_end(ap);
	return exit;
}

void ctl_say(struct ctl *c, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	vfprintf(c->err, fmt, ap);
	fputc('\n', c->err);
	va_end(ap);
}

static int run_watched(struct ctl *c)
{
	struct timespec pause = {.tv_sec = (time_t)(c->options.watch_ns / BASE_NS_PER_SECOND),
		.tv_nsec = (long)(c->options.watch_ns % BASE_NS_PER_SECOND)};
	for (;;) {
		if (c->out_terminal)
			fprintf(c->out, "\033[H\033[2J");
		int r = c->verb->run(c);
		if (fflush(c->out) != 0 || ferror(c->out))
			return CTL_ERROR;
		if (r != CTL_OK && r != CTL_DEGRADED)
			return r;
		nanosleep(&pause, NULL);
	}
}

// events and top go on by themselves.
static bool watches_itself(const struct ctl_verb *v)
{
	return v->run == ctl_verb_events || v->run == ctl_verb_top;
}

static int run_verb(struct ctl *c)
{
	if (c->verb->server && !ctl_offline(c)) {
		int r = ctl_connect(c, &c->client);
		if (r != CTL_OK)
			return r;
		if (c->local && (r = ctl_local_wait(c)) != CTL_OK)
			return r;
	}
	c->started_ns = base_clock_now_ns();
	return c->options.watch_ns && !watches_itself(c->verb) ? run_watched(c) : c->verb->run(c);
}

int ctl_run(struct ctl *c, int argc, char **argv)
{
	int r = ctl_parse(c, argc, argv);
	if (r != CTL_OK)
		return r;
	if (c->options.help && c->verb->run == ctl_verb_help)
		return ctl_verb_help(c);
	if (c->options.help) {
		ctl_print_verb_help(c->verb, c->out);
		return CTL_OK;
	}
	const char *server = c->options.server ? c->options.server : getenv("THAW_SERVER");
	snprintf(c->address, sizeof c->address, "%s", server && server[0] ? server : DEFAULT_SERVER);
	if (c->options.local && c->verb->server && !ctl_offline(c))
		r = ctl_local_start(c); // forks: before any thread
	if (r == CTL_OK && ctl_interrupt_start(c) < 0)
		r = ctl_fail(c, CTL_ERROR, "no thread for signals");
	if (r == CTL_OK)
		r = run_verb(c);
	rpc_client_destroy(c->client);
	c->client = NULL;
	ctl_interrupt_stop(c);
	ctl_local_stop(c);
	ctl_local_free(c);
	if ((fflush(c->out) != 0 || ferror(c->out)) && r == CTL_OK)
		r = errno == EPIPE ? CTL_ERROR : ctl_fail(c, CTL_ERROR, "output: %s", strerrordesc_np(errno));
	return r;
}
