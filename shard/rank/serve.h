/* SPDX-License-Identifier: Apache-2.0
 * The life of a rank behind a link: waits for ASSIGN, loads, then runs passes until STOP or until the group is revoked.
 * `thaw-rank` calls it with the sockets it inherited; tests call it in threads of one process.
 *
 * Groups: `group` has the coordinator as member 0 and all ranks (shape.h); `tensor` has the ranks of this stage, by
 * tp_rank, and is NULL where the stage is one rank. The coordinator sends OPEN, CLOSE and PASS to every
 * rank, in the same order. Several passes may be queued on the link; they run in order. Stage 0 reads tokens, later
 * stages receive hidden rows from the stage before, each rank from one that has them (shape.h), so that no rank waits
 * for a second hop; the first rank of a stage collects what the others have to say, and has from the first one of the
 * stage before what was collected there. A stage goes on to its next pass while
 * the next stage still computes: its rows are buffered twice here and in the link's ring, so a ring with room for the
 * rows of a pass (batch_tokens * width * 4 bytes) lets all stages work at the same time.
 * A pass that one stage refuses is skipped by the later ones, and the last one reports it; an entry that failed in one
 * stage is computed on but reported as failed, with the status of the first stage that said so.
 * STOP counts between passes and while waiting, also while loading; STATS go out between passes, about once a second.
 *
 * One thread, the stage thread. The groups are revoked at the end; the caller closes them. Returns 0 after STOP (or
 * *stop), -ECONNRESET when the group ended (also when the end of a neighbour that stopped first overtakes STOP),
 * -EBADMSG or -EPROTO with text for a peer that breaks the protocol, or the error of ASSIGN (which was also sent as
 * FAILED).
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/log.h"
#include "shard/link/link.h"

/* Ends also after the pass under way when *stop becomes true (noticed within 200 ms); stop may be NULL. */
int rank_serve_until(const struct link_ops *link, struct link_group *group, struct link_group *tensor,
	struct base_log *log, const _Atomic bool *stop, struct base_error *e);
