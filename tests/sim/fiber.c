// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/fiber.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ASAN 1
#endif
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#endif
#ifdef WITH_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef WITH_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#define MAX_FIBERS 1024u
#define MAX_FDS 8u // of one wait
#define STACK_BYTES ((size_t)4 << 20)
#define MONOTONIC_BASE (1000 * SIM_SECOND)
#define WALL_BASE (1700000000ull * SIM_SECOND)
#define STEP_NS 500u // a call costs that much at most
#define PREEMPT 40u // of a thousand calls
#define STARVED 2u // of a thousand of those: the fiber waits for a processor
#define SPURIOUS 15u // wakes of a thousand waits
#define MAX_SWITCHES 20000000ull // of a run: the most that was ever seen is a tenth of that, so something spins

enum state { FREE, READY, WAITING, OVER };

struct sim_fiber {
	uint32_t id;
	enum state state;
	uint32_t node, life;
	struct sim_process *process; // NULL: the node's thawd, or the simulator
	char name[16];
	ucontext_t context;
	void *stack;
	void *(*start)(void *);
	void *argument, *result;
	bool detached;
	int saved_errno;
	/* WAITING: */
	const void *on;
	struct pollfd fds[MAX_FDS];
	uint32_t fds_count;
	uint64_t until_ns; // of the node's clock
	bool late; // why it goes on
#ifdef WITH_TSAN
	void *tsan;
#endif
#ifdef WITH_ASAN
	void *fake_stack;
#endif
};

struct clock {
	uint64_t since_ns, at_since_ns; // of the simulation, of the clock
	int32_t ppm;
	int64_t wall_ns; // ahead
	bool frozen;
	uint32_t life;
};

static struct {
	bool running;
	uint64_t now_ns, limit_ns;
	uint64_t schedule, random; // states of the draws
	uint64_t digest, switches;
	struct sim_fiber *fiber[MAX_FIBERS];
	uint32_t fibers; // highest place in use
	struct sim_fiber *current, *dead; // dead: its stack is free once another runs
	bool fds_changed; // since they were looked at
	struct clock clock[SIM_MAX_NODES];
	void *stacks[MAX_FIBERS]; // for the next ones
	uint32_t stacks_count;
	ucontext_t outside;
	void (*main_fiber)(void *);
	void *main_context;
#ifdef WITH_TSAN
	void *tsan_outside;
#endif
#ifdef WITH_ASAN
	const void *outside_stack;
	size_t outside_bytes;
#endif
} s;

bool sim_verbose;

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);

// ---- draws

uint64_t sim_mix(uint64_t z)
{
	z += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static uint64_t draw_from(uint64_t *state, uint64_t below)
{
	*state += 0x9e3779b97f4a7c15ull;
	return below ? sim_mix(*state) % below : 0;
}

uint64_t sim_draw(uint64_t below)
{
	return draw_from(&s.random, below);
}

uint64_t sim_between(uint64_t least, uint64_t most)
{
	return least + sim_draw(most - least + 1);
}

bool sim_chance(uint32_t of_a_thousand)
{
	return sim_draw(1000) < of_a_thousand;
}

static uint64_t schedule(uint64_t below)
{
	return draw_from(&s.schedule, below);
}

// ---- what is told

void sim_say(const char *fmt, ...)
{
	if (!sim_verbose)
		return;
	va_list ap;
	va_start(ap, fmt);
	fprintf(stderr, "%10.6f %-10s ", (double)s.now_ns / 1e9, s.current ? s.current->name : "-");
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
}

static void tell_fibers(void)
{
	for (uint32_t i = 0; i < s.fibers; i++) {
		const struct sim_fiber *f = s.fiber[i];
		if (!f || f->state == FREE || f->state == OVER)
			continue;
		fprintf(stderr, "  fiber %u %-16s node %d %s", f->id, f->name, (int)f->node,
			f->state == READY ? "ready" : "waits");
		if (f->state == WAITING && f->until_ns != SIM_NEVER)
			fprintf(stderr, " for %.3f s",
				((double)f->until_ns - (double)sim_node_clock(f->node, CLOCK_MONOTONIC)) / 1e9);
		if (f->state == WAITING && f->fds_count)
			fprintf(stderr, " on %u fds", f->fds_count);
		fprintf(stderr, "\n");
	}
}

_Noreturn void sim_fail(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fprintf(stderr, "FAILED at %.6f s in %s: ", (double)s.now_ns / 1e9, s.current ? s.current->name : "-");
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	if (sim_verbose)
		tell_fibers();
	fflush(NULL);
	_exit(1);
}

uint64_t sim_digest(void)
{
	return s.digest;
}

uint64_t sim_switches(void)
{
	return s.switches;
}

bool sim_running(void)
{
	return s.running;
}

// ---- time

uint64_t sim_now(void)
{
	return s.now_ns;
}

static uint64_t monotonic(uint32_t node)
{
	if (node == SIM_NOWHERE)
		return s.now_ns;
	const struct clock *c = &s.clock[node];
	int64_t gone = (int64_t)(s.now_ns - c->since_ns);
	return c->at_since_ns + (uint64_t)(gone + gone / 1000 * c->ppm / 1000);
}

uint64_t sim_node_clock(uint32_t node, clockid_t id)
{
	if (id == CLOCK_REALTIME)
		return (uint64_t)((int64_t)(WALL_BASE + s.now_ns) + (node == SIM_NOWHERE ? 0 : s.clock[node].wall_ns));
	if (id == CLOCK_MONOTONIC)
		return monotonic(node);
	return s.now_ns; // CPU time
}

/* When a node's clock shows that: the simulation's time, not before it. */
static uint64_t when(uint32_t node, uint64_t clock_ns)
{
	if (node == SIM_NOWHERE || clock_ns == SIM_NEVER)
		return clock_ns;
	uint64_t shown = monotonic(node);
	if (clock_ns <= shown)
		return s.now_ns;
	uint64_t left = clock_ns - shown;
	if (left > 1000000 * SIM_SECOND)
		return SIM_NEVER;
	int32_t ppm = s.clock[node].ppm;
	return s.now_ns + left + (ppm < 0 ? left / 1000000 * (uint64_t)-ppm + 1000000 : 0);
}

static void restart_clock(uint32_t node, uint64_t shows)
{
	s.clock[node].at_since_ns = shows;
	s.clock[node].since_ns = s.now_ns;
}

void sim_node_jump(uint32_t node, uint64_t forward_ns)
{
	restart_clock(node, monotonic(node) + forward_ns);
}

void sim_node_slew(uint32_t node, int32_t ppm)
{
	restart_clock(node, monotonic(node));
	s.clock[node].ppm = ppm;
}

void sim_node_wall(uint32_t node, int64_t ahead_ns)
{
	s.clock[node].wall_ns = ahead_ns;
}

void sim_node_freeze(uint32_t node, bool on)
{
	s.clock[node].frozen = on;
}

void sim_limit(uint64_t at_ns)
{
	s.limit_ns = at_ns;
}

// ---- switching

static bool frozen(const struct sim_fiber *f)
{
	if (f->process && f->process->stopped)
		return true;
	return f->node != SIM_NOWHERE && s.clock[f->node].frozen;
}

static void drop_stack(struct sim_fiber *f)
{
	if (f->stack && s.stacks_count < MAX_FIBERS)
		s.stacks[s.stacks_count++] = f->stack;
	f->stack = NULL;
}

static void forget(struct sim_fiber *f)
{
#ifdef WITH_TSAN
	__tsan_destroy_fiber(f->tsan);
#endif
	s.fiber[f->id % MAX_FIBERS] = NULL;
	free(f);
}

/* First thing on the stack of the fiber that goes on. */
static void arrived(void)
{
#ifdef WITH_ASAN
	bool first = !s.outside_stack;
	__sanitizer_finish_switch_fiber(
		s.current->fake_stack, first ? &s.outside_stack : NULL, first ? &s.outside_bytes : NULL);
#endif
	struct sim_fiber *dead = s.dead;
	s.dead = NULL;
	if (!dead)
		return;
	drop_stack(dead);
	if (dead->detached)
		forget(dead);
}

static void switch_to(struct sim_fiber *from, struct sim_fiber *to)
{
	s.switches++;
	s.digest = sim_mix(s.digest ^ to->id ^ s.now_ns << 16);
	if (from == to)
		return;
	from->saved_errno = errno;
	s.current = to;
	if (from->state == OVER)
		s.dead = from;
#ifdef WITH_ASAN
	__sanitizer_start_switch_fiber(from->state == OVER ? NULL : &from->fake_stack, to->stack, STACK_BYTES);
#endif
#ifdef WITH_TSAN
	__tsan_switch_to_fiber(to->tsan, 0);
#endif
	swapcontext(&from->context, &to->context);
	arrived();
	errno = from->saved_errno;
}

/* Fibers that wait for descriptors. */
static void look_at_fds(void)
{
	static struct pollfd all[MAX_FIBERS * MAX_FDS];
	nfds_t n = 0;
	s.fds_changed = false;
	for (uint32_t i = 0; i < s.fibers; i++) {
		struct sim_fiber *f = s.fiber[i];
		if (!f || f->state != WAITING)
			continue;
		for (uint32_t k = 0; k < f->fds_count; k++)
			all[n++] = f->fds[k];
	}
	if (!n || __real_poll(all, n, 0) <= 0)
		return;
	n = 0;
	for (uint32_t i = 0; i < s.fibers; i++) {
		struct sim_fiber *f = s.fiber[i];
		if (!f || f->state != WAITING)
			continue;
		for (uint32_t k = 0; k < f->fds_count; k++, n++) {
			if (all[n].revents) {
				f->state = READY;
				f->late = false;
			}
		}
	}
}

/* Those that can go on now, by the order of their places; and when the next one can, if none. */
static uint32_t find_ready(struct sim_fiber **ready, bool thorough, uint64_t *ret_next_ns)
{
	uint32_t n = 0;
	*ret_next_ns = SIM_NEVER;
	if (s.fds_changed || thorough)
		look_at_fds();
	for (uint32_t i = 0; i < s.fibers; i++) {
		struct sim_fiber *f = s.fiber[i];
		if (!f || frozen(f))
			continue;
		if (f->state == WAITING && f->until_ns != SIM_NEVER) {
			uint64_t at = when(f->node, f->until_ns);
			if (at <= s.now_ns) {
				f->state = READY;
				f->late = true;
			} else if (at < *ret_next_ns) {
				*ret_next_ns = at;
			}
		}
		if (f->state == READY)
			ready[n++] = f;
	}
	return n;
}

/* The fiber that runs stops here until it is its turn again. */
static void next_turn(void)
{
	static struct sim_fiber *ready[MAX_FIBERS];
	struct sim_fiber *from = s.current;
	uint64_t next;
	uint32_t n;
	if (s.switches > MAX_SWITCHES)
		sim_fail("%llu turns and no end", (unsigned long long)s.switches);
	while (!(n = find_ready(ready, false, &next)) && !(n = find_ready(ready, true, &next))) {
		if (next == SIM_NEVER) {
			sim_verbose = true;
			sim_fail("all wait for each other");
		}
		s.now_ns = next;
		if (s.limit_ns && s.now_ns > s.limit_ns) {
			sim_verbose = true;
			sim_fail("not over after %.0f s", (double)s.limit_ns / 1e9);
		}
	}
	switch_to(from, ready[schedule(n)]);
}

void sim_yield(void)
{
	if (s.running)
		next_turn();
}

void sim_step(void)
{
	if (!s.running)
		return;
	s.now_ns += 1 + schedule(STEP_NS);
	if (schedule(1000) >= PREEMPT)
		return;
	if (schedule(1000) < STARVED)
		sim_sleep(schedule(3 * SIM_MS));
	else
		next_turn();
}

void sim_fds_changed(void)
{
	s.fds_changed = true;
}

bool sim_wait(const void *on, const struct pollfd *fds, uint32_t count, uint64_t until_ns)
{
	struct sim_fiber *f = s.current;
	if (count > MAX_FDS)
		sim_fail("a wait on %u descriptors", count);
	if (on && schedule(1000) < SPURIOUS) {
		next_turn();
		return true;
	}
	f->state = WAITING;
	f->on = on;
	f->fds_count = count;
	if (count)
		memcpy(f->fds, fds, count * sizeof *fds);
	f->until_ns = until_ns;
	f->late = false;
	next_turn();
	f->on = NULL;
	f->fds_count = 0;
	return !f->late;
}

bool sim_wait_for(const void *on, uint64_t ns)
{
	return sim_wait(on, NULL, 0, ns == SIM_NEVER ? ns : monotonic(s.current->node) + ns);
}

void sim_sleep(uint64_t ns)
{
	uint64_t until = monotonic(s.current->node) + ns;
	while (sim_wait(NULL, NULL, 0, until))
		;
}

void sim_wake(const void *on, bool all)
{
	static struct sim_fiber *who[MAX_FIBERS];
	uint32_t n = 0;
	for (uint32_t i = 0; i < s.fibers; i++) {
		struct sim_fiber *f = s.fiber[i];
		if (f && f->state == WAITING && f->on == on)
			who[n++] = f;
	}
	uint32_t one = n ? (uint32_t)schedule(n) : 0;
	for (uint32_t i = 0; i < n; i++) {
		if (all || i == one)
			who[i]->state = READY;
	}
}

// ---- life

static void fiber_main(void)
{
	arrived();
	struct sim_fiber *f = s.current;
	f->result = f->start(f->argument);
	f->state = OVER;
	sim_wake(f, true);
	next_turn();
	abort(); // nobody goes on with what is over
}

static void *take_stack(void)
{
	if (s.stacks_count) {
		void *stack = s.stacks[--s.stacks_count];
#ifdef WITH_ASAN
		__asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
		return stack;
	}
	void *stack =
		mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (stack == MAP_FAILED)
		sim_fail("no memory for a stack");
	mprotect(stack, 4096, PROT_NONE);
	return stack;
}

struct sim_fiber *sim_start(uint32_t node, const char *name, void *(*start)(void *), void *argument)
{
	uint32_t at = 0;
	while (at < MAX_FIBERS && s.fiber[at])
		at++;
	if (at == MAX_FIBERS)
		sim_fail("more than %u threads", MAX_FIBERS);
	struct sim_fiber *f = calloc(1, sizeof *f);
	if (!f)
		sim_fail("no memory for a thread");
	f->id = at;
	f->state = READY;
	f->node = node;
	f->life = node == SIM_NOWHERE ? 0 : s.current && s.current->node == node ? s.current->life : s.clock[node].life;
	f->process = s.current && s.current->node == node ? s.current->process : NULL;
	f->start = start;
	f->argument = argument;
	sim_name(f, name);
	f->stack = take_stack();
	getcontext(&f->context);
	f->context.uc_stack.ss_sp = f->stack;
	f->context.uc_stack.ss_size = STACK_BYTES;
	makecontext(&f->context, fiber_main, 0);
#ifdef WITH_TSAN
	f->tsan = __tsan_create_fiber(0);
#endif
	s.fiber[at] = f;
	s.fibers = s.fibers > at + 1 ? s.fibers : at + 1;
	return f;
}

bool sim_over(const struct sim_fiber *f)
{
	return f->state == OVER;
}

void *sim_join(struct sim_fiber *f)
{
	while (f->state != OVER)
		sim_wait(f, NULL, 0, SIM_NEVER);
	void *result = f->result;
	forget(f);
	return result;
}

void sim_detach(struct sim_fiber *f)
{
	f->detached = true;
	if (f->state == OVER)
		forget(f);
}

uint32_t sim_here(void)
{
	return s.current ? s.current->node : SIM_NOWHERE;
}

void sim_go(uint32_t node)
{
	s.current->node = node;
	s.current->life = node == SIM_NOWHERE ? 0 : s.clock[node].life;
	sim_yield();
}

struct sim_place sim_place(void)
{
	return (struct sim_place){s.current->node, s.current->life};
}

void sim_new_life(uint32_t node)
{
	s.clock[node].life++;
}

void sim_of_process(struct sim_fiber *f, struct sim_process *p)
{
	f->process = p;
}

void sim_name(struct sim_fiber *f, const char *name)
{
	f = f ? f : s.current;
	snprintf(f->name, sizeof f->name, "%.15s", name);
}

const char *sim_own_name(void)
{
	return s.current ? s.current->name : "";
}

static void *main_start(void *argument)
{
	s.main_fiber(s.main_context);
	s.running = false;
#ifdef WITH_ASAN
	__sanitizer_start_switch_fiber(NULL, s.outside_stack, s.outside_bytes);
#endif
#ifdef WITH_TSAN
	__tsan_switch_to_fiber(s.tsan_outside, 0);
#endif
	setcontext(&s.outside);
	return argument;
}

void sim_run(uint64_t seed, void (*main_fiber)(void *context), void *context)
{
	volatile bool began = false;
	s.schedule = sim_mix(seed);
	s.random = sim_mix(seed ^ 0x5eed);
	s.main_fiber = main_fiber;
	s.main_context = context;
	for (uint32_t i = 0; i < SIM_MAX_NODES; i++)
		s.clock[i] = (struct clock){.at_since_ns = MONOTONIC_BASE * (i + 1)};
	s.current = sim_start(SIM_NOWHERE, "main", main_start, NULL);
	s.running = true;
#ifdef WITH_TSAN
	s.tsan_outside = __tsan_get_current_fiber();
#endif
	getcontext(&s.outside);
	if (!began) {
		began = true;
#ifdef WITH_ASAN
		void *fake;
		__sanitizer_start_switch_fiber(&fake, s.current->stack, STACK_BYTES);
#endif
#ifdef WITH_TSAN
		__tsan_switch_to_fiber(s.current->tsan, 0);
#endif
		setcontext(&s.current->context);
	}
	struct sim_fiber *main_one = s.current;
#ifdef WITH_ASAN
	__sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
	s.current = NULL;
	drop_stack(main_one);
	forget(main_one);
	while (s.stacks_count)
		munmap(s.stacks[--s.stacks_count], STACK_BYTES);
}
