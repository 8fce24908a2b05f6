// SPDX-License-Identifier: Apache-2.0
// trace: what ranks and engine do for some time, as a file for ui.perfetto.dev.
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"

#define MOST_SECONDS 60.0

static int start(struct ctl *c, const char *model, double seconds)
{
	Thaw__Admin__V1__StartTraceRequest request = THAW__ADMIN__V1__START_TRACE_REQUEST__INIT;
	Thaw__Admin__V1__StartTraceReply *reply = NULL;
	request.model = (char *)model;
	request.duration_ns = (uint64_t)(seconds * 1e9);
	int r = ctl_call(c, "Admin/StartTrace", &request, &thaw__admin__v1__start_trace_reply__descriptor, &reply);
	ctl_free(reply);
	return r;
}

static int fetch(struct ctl *c, const char *model, FILE *out, uint64_t *ret_bytes)
{
	Thaw__Admin__V1__StopTraceRequest request = THAW__ADMIN__V1__STOP_TRACE_REQUEST__INIT;
	struct ctl_stream s;
	request.model = (char *)model;
	int r = ctl_stream_open(c, "Admin/StopTrace", &request, &thaw__admin__v1__trace_chunk__descriptor, &s);
	if (r != CTL_OK)
		return r;
	*ret_bytes = 0;
	for (Thaw__Admin__V1__TraceChunk *m; (r = ctl_stream_next(&s, &m)) == 1; ctl_free(m)) {
		*ret_bytes += m->data.len;
		fwrite(m->data.data, 1, m->data.len, out); // looked at once, with ferror
	}
	ctl_stream_close(&s);
	return -r;
}

int ctl_verb_trace(struct ctl *c)
{
	const char *model = c->args_count ? c->args[0] : "", *name = c->options.output;
	double seconds = ctl_given(c, "seconds") ? (double)c->options.seconds : 1;
	bool to_file = name && strcmp(name, "-") != 0;
	uint64_t bytes = 0;
	if (!(seconds > 0 && seconds <= MOST_SECONDS))
		return ctl_fail(c, CTL_USAGE, "--seconds: more than 0 and at most %.0f", MOST_SECONDS);
	if (!to_file && c->out_terminal)
		return ctl_fail(c, CTL_USAGE, "a trace is megabytes of JSON: name a file with -o");
	FILE *out = to_file ? fopen(name, "we") : c->out; // before anything is traced for nothing
	if (!out)
		return ctl_fail(c, CTL_ERROR, "%s: %s", name, strerrordesc_np(errno));
	int r = start(c, model, seconds);
	if (r == CTL_OK) {
		poll(NULL, 0, (int)(seconds * 1000));
		r = fetch(c, model, out, &bytes);
	}
	bool bad = ferror(out) != 0;
	if (to_file ? fclose(out) != 0 : fflush(out) != 0)
		bad = true;
	if (r == CTL_OK && bad)
		r = ctl_fail(c, CTL_ERROR, "%s: not all of the trace could be written", to_file ? name : "output");
	if (r != CTL_OK && to_file)
		unlink(name); // half a file loads as nothing
	if (r == CTL_OK && to_file)
		ctl_say(c, "%" PRIu64 " bytes in %s: open it at https://ui.perfetto.dev", bytes, name);
	return r;
}
