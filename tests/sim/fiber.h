/* SPDX-License-Identifier: Apache-2.0
 * Threads of production code as fibers of one thread, under virtual time.
 *
 * The linker gives production code our pthread_*, poll, clock_gettime... (libc.c). A thread is a fiber, which runs
 * until it waits, or until a seeded draw takes the processor from it at one of those calls; which fiber goes on is
 * drawn, too. When all wait, time goes to the next moment at which one does not. So nothing happens by chance: a seed
 * is a schedule.
 *
 * Each fiber belongs to a node, whose clock may run fast or slow and jump, and which may be frozen, as by SIGSTOP.
 */
#pragma once

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define SIM_MAX_NODES 6u
#define SIM_NOWHERE UINT32_MAX // a fiber of the simulator itself
#define SIM_NEVER UINT64_MAX
#define SIM_MS 1000000ull
#define SIM_SECOND 1000000000ull

struct sim_fiber;

/* Runs main_fiber and all that it starts, until it returns. */
void sim_run(uint64_t seed, void (*main_fiber)(void *context), void *context);
bool sim_running(void);

/* ---- draws: one stream for the schedule, one for everything else ---- */
uint64_t sim_draw(uint64_t below); // 0 to below - 1
uint64_t sim_between(uint64_t least, uint64_t most);
bool sim_chance(uint32_t of_a_thousand);
uint64_t sim_mix(uint64_t z);

/* ---- time ---- */
uint64_t sim_now(void); // ns since the start
uint64_t sim_node_clock(uint32_t node, clockid_t id); // as that node sees it
void sim_node_jump(uint32_t node, uint64_t forward_ns); // of its monotonic clock
void sim_node_slew(uint32_t node, int32_t ppm);
void sim_node_wall(uint32_t node, int64_t ahead_ns);
void sim_node_freeze(uint32_t node, bool on);
void sim_limit(uint64_t at_ns); // beyond it the run is a failure

/* ---- fibers ---- */
struct sim_fiber *sim_start(uint32_t node, const char *name, void *(*start)(void *), void *argument);
void *sim_join(struct sim_fiber *f);
void sim_detach(struct sim_fiber *f);
bool sim_over(const struct sim_fiber *f);
uint32_t sim_here(void); // the node of the fiber that runs
void sim_go(uint32_t node); // from here on it runs there

/* A process: nodes die and start again, and what is left of a dead one is of an earlier life. */
struct sim_place {
	uint32_t node, life;
};
struct sim_place sim_place(void); // of the fiber that runs; threads that it starts are of the same
void sim_new_life(uint32_t node);
/* What SIGSTOP reaches as one: threads that its threads start are of the same. The caller's; outlives its fibers. */
struct sim_process {
	bool stopped; // none of its fibers gets a turn
};
void sim_of_process(struct sim_fiber *f, struct sim_process *p);
void sim_name(struct sim_fiber *f, const char *name); // NULL: the one that runs
const char *sim_own_name(void);
/* A point where another fiber may go on. */
void sim_step(void);
void sim_yield(void);
void sim_sleep(uint64_t ns);
/* Until sim_wake(on), one of the fds is ready, or until (of the clock of this fiber's node). Wakes may be spurious.
 * False: it is too late. */
bool sim_wait(const void *on, const struct pollfd *fds, uint32_t count, uint64_t until_ns);
bool sim_wait_for(const void *on, uint64_t ns);
void sim_wake(const void *on, bool all);
void sim_fds_changed(void); // somebody wrote to one, or closed it

/* ---- what is told ---- */
extern bool sim_verbose;
void sim_say(const char *fmt, ...) __attribute__((format(printf, 1, 2))); // with --verbose, with time and fiber
/* The property does not hold: ends the process with what is known. */
_Noreturn void sim_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
uint64_t sim_digest(void); // of the schedule up to here
uint64_t sim_switches(void);
