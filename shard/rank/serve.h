/* SPDX-License-Identifier: Apache-2.0
 * The life of a rank behind a link: waits for ASSIGN, loads, then runs passes until STOP or until the group is revoked.
 * `thaw-rank` calls it with the socket it inherited; tests call it in threads of one process.
 * Several passes may be queued on the link; they run in order. Stage 0 reads tokens, later stages receive hidden rows.
 * Returns 0 after STOP, -ECONNRESET when the group ended, or the error of ASSIGN (which was also sent as FAILED).
 */
#pragma once

#include "base/error.h"
#include "base/log.h"
#include "shard/link/link.h"

int rank_serve(const struct link_ops *link, struct link_group *group, struct base_log *log, struct base_error *e);
