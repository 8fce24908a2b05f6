/* SPDX-License-Identifier: Apache-2.0
 * HTTP for machines that watch: /metrics (Prometheus text, prefix thaw_), /healthz (the process lives), /readyz (some
 * model can answer: 200, else 503 with the reason).
 *
 * One thread of libmicrohttpd answers from snapshots (server_list_models, engine_get_histograms), so a scrape takes no
 * lock that a pass waits for, and works while models load. Connections are bounded.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/server.h"

struct metrics_server;

/* listen: HOST:PORT as in listen.metrics, [ADDRESS]:PORT for IPv6. `server` outlives the metrics server. -EADDRINUSE,
 * -EINVAL with text. "" is the caller's to skip. */
int metrics_server_start(struct server *server, const char *listen, struct base_log *log,
	struct metrics_server **ret_metrics, struct base_error *e);
void metrics_server_stop(struct metrics_server *m); // NULL is fine; waits for the scrape in progress
uint16_t metrics_server_port(const struct metrics_server *m); // the one in use, also when port 0 was asked for

/* The text of /metrics. Any thread. -ENOMEM. */
int metrics_write(struct server *server, FILE *out);
