/* SPDX-License-Identifier: Apache-2.0
 * Rank processes: posix_spawn of thaw-rank with its sockets, and making sure that one is gone and reaped.
 *
 * The engine's thread starts and stops through the starter; pids may be read by any thread. Ranks run in a process
 * group of their own, so that ^C at a terminal reaches thawd alone, which drains first. The death of a rank shows as
 * the end of its socket; its exit status is logged when it is reaped, in stop. That takes 5.3 s at most: a rank that
 * hangs in the kernel outlives SIGKILL, and until it is gone it cannot be started again (-EBUSY).
 *
 * A rank has sockets to thawd, to the rank that it has hidden rows from, to those that have its own (shard/rank/shape.h),
 * and to the other parts of its stage, with descriptors in that order from 3 (thawd) and 4 on. Ranks are started in
 * order: a socket between two of them is made with the first and kept for the second.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"
#include "daemon/engine.h"

struct supervisor;
/* rank_path: the program. Starts nothing yet. */
int supervisor_create(const char *rank_path, const struct rank_shape *shape, struct base_log *log,
	struct supervisor **ret_supervisor);
void supervisor_destroy(struct supervisor *s); // kills what is left; NULL is fine
struct engine_starter supervisor_starter(struct supervisor *s);
/* A rank of a group over several hosts: its sockets, fds[i] to member i of the group, are connected already, and stay
 * the caller's; -1: none, and those that it does not need are not looked at. link: the name of the engine that is to
 * use them. The thread that calls it has to live as long as the rank: ranks die
 * with it. */
int supervisor_start_linked(
	struct supervisor *s, uint32_t rank, const int *fds, const char *link, struct base_error *e);
/* True once it has ended by itself; it is reaped then, and why is in text. */
bool supervisor_ended(struct supervisor *s, uint32_t rank, char *text, size_t room);
/* A signal has stopped it (SIGSTOP, SIGTSTP): it is there, and does nothing. Not so what a debugger holds. */
bool supervisor_stopped(const struct supervisor *s, uint32_t rank);
int supervisor_pidfd(
	const struct supervisor *s, uint32_t rank); // to poll for its end; the supervisor's; -1: it does not run
void supervisor_stop(struct supervisor *s, uint32_t rank); // as the starter's stop
uint32_t supervisor_pids(struct supervisor *s, pid_t *ret_pids, uint32_t room);
/* Where thaw-rank is: beside this program, in the build tree, or installed. -ENOENT names the places. */
int supervisor_find_rank(char *out, size_t room_bytes, struct base_error *e);
