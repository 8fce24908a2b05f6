// SPDX-License-Identifier: Apache-2.0
#include <string.h>

#include "base/clock.h"
#include "daemon/ctl/ctl.h"

#define TERMINAL_NS (BASE_NS_PER_SECOND / 10)
#define PIPE_NS (2 * BASE_NS_PER_SECOND)

void ctl_progress_show(
	struct ctl_progress *p, const char *phase, uint64_t done_bytes, uint64_t total_bytes, uint64_t eta_ns)
{
	struct ctl *c = p->ctl;
	uint64_t now = base_clock_now_ns();
	if (!p->shown_ns && !c->err_terminal)
		p->shown_ns = now; // what is over in two seconds is not worth a line in a log
	if (p->shown_ns && now - p->shown_ns < (c->err_terminal ? TERMINAL_NS : PIPE_NS))
		return;
	bool same = strcmp(p->phase, phase) == 0;
	if (!c->err_terminal && same && !total_bytes)
		return; // the word alone, again
	snprintf(p->phase, sizeof p->phase, "%s", phase);
	p->shown_ns = now;
	char done[CTL_SIZE_BYTES], total[CTL_SIZE_BYTES], eta[CTL_SIZE_BYTES];
	if (c->err_terminal)
		fprintf(c->err, "\r\033[K");
	fprintf(c->err, "%s", phase);
	if (total_bytes)
		fprintf(c->err, " %3.0f %% %s of %s", 100.0 * (double)done_bytes / (double)total_bytes,
			ctl_size(done_bytes, done), ctl_size(total_bytes, total));
	if (eta_ns && done_bytes >= total_bytes / 100) // before that it is a guess
		fprintf(c->err, ", %s left", ctl_seconds((double)eta_ns / 1e9, eta));
	if (!c->err_terminal)
		fputc('\n', c->err);
	fflush(c->err);
	p->line_open = c->err_terminal;
}

void ctl_progress_end(struct ctl_progress *p)
{
	if (p->line_open)
		fprintf(p->ctl->err, "\r\033[K");
	fflush(p->ctl->err);
	p->line_open = false;
}
