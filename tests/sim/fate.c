// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/fate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cluster/coordinator.h"
#include "tests/sim/client.h"
#include "tests/sim/net.h"
#include "tests/sim/node.h"

#define NOTICED_NS (3 * SIM_SECOND) // that a rank is stopped: a second, two looks at it, and what its end takes

enum kind {
	RANK_DIES,
	RANK_STOPS, // SIGSTOP; goes on again if it is still there
	NODE_DIES, // its thawd, ranks with it
	HOST_DIES,
	NODE_STOPS, // SIGSTOP
	NODE_LEAVES, // in good order, and comes back
	NODE_DRAINS,
	PATH_BLOCKED, // both ways
	PATH_HALF_OPEN,
	PATH_SLOW,
	WIRES_CUT,
	CALLS_CUT,
	MESSAGE_REPLAYED,
	CLOCK_JUMPS,
	CLOCK_SLEWS,
	WALL_JUMPS,
	DRIVE_FAILS, // now and then: the next try succeeds
	DRIVE_SLOW,
	DRIVE_BAD, // again and again: data is lost
	HEAD_DIES,
	HEAD_RESTARTS,
	KINDS
};

static const struct {
	const char *name;
	uint32_t weight;
} kinds[KINDS] = {
	[RANK_DIES] = {"rank dies", 6},
	[RANK_STOPS] = {"rank stops", 7},
	[NODE_DIES] = {"node dies", 5},
	[HOST_DIES] = {"host dies", 4},
	[NODE_STOPS] = {"node stops", 5},
	[NODE_LEAVES] = {"node leaves", 3},
	[NODE_DRAINS] = {"node drains", 3},
	[PATH_BLOCKED] = {"path blocked", 5},
	[PATH_HALF_OPEN] = {"path half open", 4},
	[PATH_SLOW] = {"path slow", 3},
	[WIRES_CUT] = {"wires cut", 5},
	[CALLS_CUT] = {"calls cut", 4},
	[MESSAGE_REPLAYED] = {"message replayed", 5},
	[CLOCK_JUMPS] = {"clock jumps", 3},
	[CLOCK_SLEWS] = {"clock slews", 2},
	[WALL_JUMPS] = {"wall clock jumps", 2},
	[DRIVE_FAILS] = {"drive fails", 5},
	[DRIVE_SLOW] = {"drive slow", 3},
	[DRIVE_BAD] = {"drive bad", 2},
	[HEAD_DIES] = {"head dies", 2},
	[HEAD_RESTARTS] = {"head restarts", 1},
};

struct fault {
	enum kind kind;
	uint32_t node, other;
	uint64_t at_ns, lasts_ns;
};

static struct {
	uint32_t nodes, left;
	bool busy[SIM_MAX_NODES]; // somebody kills, starts or freezes it
	bool drive_busy[SIM_MAX_NODES];
	uint32_t taken[SIM_MAX_NODES]; // so often
} fate;

/* Drives are read all the time where weights are cold. */
static uint32_t weight(uint32_t kind, bool cold, const char *only)
{
	if (only && strncmp(kinds[kind].name, only, strlen(only)) != 0)
		return 0;
	bool drive = kind == DRIVE_FAILS || kind == DRIVE_SLOW || kind == DRIVE_BAD;
	return kinds[kind].weight * (cold && drive ? 2 : 1);
}

static enum kind draw_kind(bool cold, const char *only)
{
	uint32_t sum = 0, k;
	for (k = 0; k < KINDS; k++)
		sum += weight(k, cold, only);
	if (!sum)
		sim_fail("no fault is called %s", only);
	uint32_t at = (uint32_t)sim_draw(sum);
	for (k = 0; at >= weight(k, cold, only); k++)
		at -= weight(k, cold, only);
	return (enum kind)k;
}

static uint64_t draw_length(void)
{
	static const uint64_t most_ms[] = {20, 300, 2500, 4000, 12000};
	return sim_between(1, most_ms[sim_draw(5)]) * SIM_MS + sim_draw(SIM_MS);
}

/* A node that nobody else has in hand, or false. */
static bool take(uint32_t node)
{
	if (fate.busy[node] || !sim_node_up(node))
		return false;
	fate.busy[node] = true;
	fate.taken[node]++;
	return true;
}

static void die(const struct fault *f, enum sim_death how)
{
	if (!take(f->node))
		return;
	sim_node_freeze(f->node, false);
	sim_node_kill(f->node, how);
	sim_sleep(f->lasts_ns);
	sim_node_start(f->node);
	fate.busy[f->node] = false;
}

static void leave(const struct fault *f)
{
	if (!take(f->node))
		return;
	sim_node_stop(f->node);
	sim_sleep(f->lasts_ns);
	sim_node_start(f->node);
	fate.busy[f->node] = false;
}

static void stop(const struct fault *f)
{
	if (!take(f->node))
		return;
	sim_node_freeze(f->node, true);
	sim_sleep(f->lasts_ns);
	sim_node_freeze(f->node, false);
	fate.busy[f->node] = false;
}

static void stop_rank(uint64_t lasts_ns)
{
	uint32_t ranks = sim_ranks(), node;
	if (!ranks)
		return;
	uint64_t id = sim_rank_stop((uint32_t)sim_draw(ranks), &node);
	uint32_t taken = fate.taken[node];
	bool well = !fate.busy[node];
	uint64_t first_ns = lasts_ns < NOTICED_NS ? lasts_ns : NOTICED_NS;
	sim_sleep(first_ns);
	if (first_ns == NOTICED_NS && well && taken == fate.taken[node] && sim_rank_stopped(id))
		sim_fail("node %u has not ended a rank that is stopped for %.1f s", node, NOTICED_NS / 1e9);
	sim_sleep(lasts_ns - first_ns);
	sim_rank_continue(id);
}

static void drain(uint32_t node, bool on)
{
	char name[16];
	uint32_t life;
	struct server *s = sim_server_acquire(&life);
	struct base_error e = {0};
	if (!s)
		return;
	snprintf(name, sizeof name, "n%u", node);
	sim_go(0);
	int status = cluster_coordinator_drain(server_coordinator(s), name, on, &e);
	sim_server_release(life);
	sim_go(SIM_NOWHERE);
	sim_say("%s of node %u: %s", on ? "drain" : "undrain", node, status ? base_error_text(&e) : "ok");
	if (status && status != -EHOSTDOWN && status != -ENOENT)
		sim_fail("drain of node %u: %s", node, base_error_text(&e));
}

static void drive(const struct fault *f)
{
	struct sim_drives *d = &sim_drives[f->node];
	struct sim_drives was = *d;
	if (fate.drive_busy[f->node]) // else the one that ends last would bring back what the other has ended
		return;
	fate.drive_busy[f->node] = true;
	if (f->kind == DRIVE_SLOW) {
		d->slow = (uint32_t)sim_between(50, 1000);
		d->slow_ns = sim_between(1, 200) * SIM_MS;
	} else if (f->kind == DRIVE_BAD) {
		sim_clients_expect_loss();
		d->error = d->flip = (uint32_t)sim_between(100, 500);
	} else {
		d->cut = (uint32_t)sim_between(0, 300);
		sim_clients_expect_loss(); // two in a row are rare, and are a loss
		d->error = (uint32_t)sim_between(0, 10);
		d->flip = (uint32_t)sim_between(0, 10);
	}
	sim_sleep(f->lasts_ns);
	*d = was;
	fate.drive_busy[f->node] = false;
}

static void block(const struct fault *f)
{
	if (f->node == f->other)
		return;
	sim_net_block(f->node, f->other, true);
	if (f->kind == PATH_BLOCKED)
		sim_net_block(f->other, f->node, true);
	sim_sleep(f->lasts_ns);
	sim_net_block(f->node, f->other, false);
	sim_net_block(f->other, f->node, false);
}

static void slow(const struct fault *f)
{
	uint64_t more = sim_between(1, 60) * SIM_MS;
	sim_net_slow(f->node, f->other, more);
	sim_net_slow(f->other, f->node, more);
	sim_sleep(f->lasts_ns);
	sim_net_slow(f->node, f->other, 0);
	sim_net_slow(f->other, f->node, 0);
}

static void happen(const struct fault *f)
{
	uint32_t ranks = sim_ranks();
	switch (f->kind) {
	case RANK_DIES:
		if (ranks)
			sim_rank_kill((uint32_t)sim_draw(ranks));
		return;
	case RANK_STOPS:
		stop_rank(f->lasts_ns);
		return;
	case NODE_DIES:
	case HEAD_DIES:
		die(f, SIM_KILLED);
		return;
	case HOST_DIES:
		die(f, SIM_GONE);
		return;
	case NODE_STOPS:
		stop(f);
		return;
	case NODE_LEAVES:
	case HEAD_RESTARTS:
		leave(f);
		return;
	case NODE_DRAINS:
		drain(f->node, true);
		sim_sleep(f->lasts_ns);
		drain(f->node, false);
		return;
	case PATH_BLOCKED:
	case PATH_HALF_OPEN:
		block(f);
		return;
	case PATH_SLOW:
		slow(f);
		return;
	case WIRES_CUT:
		sim_net_cut(f->node, f->other);
		return;
	case CALLS_CUT:
		sim_control_cut(f->node, f->other);
		return;
	case MESSAGE_REPLAYED:
		for (uint32_t i = 0; i < 60 && !sim_net_replay(); i++)
			sim_sleep(50 * SIM_MS); // until there is an earlier epoch, and a group
		return;
	case CLOCK_JUMPS:
		sim_node_jump(f->node, f->lasts_ns);
		return;
	case CLOCK_SLEWS:
		sim_node_slew(f->node, (int32_t)sim_between(0, 1000) - 500);
		return;
	case WALL_JUMPS:
		sim_node_wall(f->node, (int64_t)sim_between(0, 20 * SIM_SECOND) - (int64_t)(10 * SIM_SECOND));
		return;
	case DRIVE_FAILS:
	case DRIVE_SLOW:
	case DRIVE_BAD:
		drive(f);
		return;
	case KINDS:
		return;
	}
}

static void *fault_run(void *argument)
{
	struct fault *f = argument;
	sim_sleep(f->at_ns);
	sim_say("---- %s: node %u, %u, %.3f s", kinds[f->kind].name, f->node, f->other, (double)f->lasts_ns / 1e9);
	happen(f);
	sim_say("---- over: %s, node %u", kinds[f->kind].name, f->node);
	free(f);
	fate.left--;
	return NULL;
}

/* All of them: whatever a seed draws, there are bad reads, and some are so twice. */
static void make_drives(struct sim_drives how)
{
	for (uint32_t i = 0; i < fate.nodes; i++)
		sim_drives[i] = how;
	if (how.error)
		sim_clients_expect_loss();
}

void sim_fate_start(const struct sim_setup *setup, uint32_t faults, const char *only)
{
	uint32_t nodes = setup->nodes;
	uint64_t at = sim_between(0, 2000) * SIM_MS;
	fate.nodes = nodes;
	if (only && strncmp(only, "drive", 5) == 0)
		make_drives((struct sim_drives){.error = 70, .cut = 50, .flip = 70});
	for (uint32_t i = 0; i < faults; i++) {
		struct fault *f = calloc(1, sizeof *f);
		if (!f)
			sim_fail("no memory for a fault");
		f->kind = draw_kind(setup->cold, only);
		bool head = f->kind == HEAD_DIES || f->kind == HEAD_RESTARTS;
		bool worker = f->kind == NODE_DIES || f->kind == HOST_DIES || f->kind == NODE_LEAVES;
		f->node = head ? 0 : worker ? 1 + (uint32_t)sim_draw(nodes - 1) : (uint32_t)sim_draw(nodes);
		f->other = (f->node + 1 + (uint32_t)sim_draw(nodes - 1)) % nodes;
		f->at_ns = at;
		f->lasts_ns = draw_length();
		fate.left++;
		sim_detach(sim_start(SIM_NOWHERE, "fate", fault_run, f));
		at += sim_chance(400) ? sim_draw(60 * SIM_MS) : sim_between(0, 2500) * SIM_MS;
	}
}

bool sim_fate_over(void)
{
	return !fate.left;
}

void sim_fate_wait(void)
{
	while (fate.left)
		sim_sleep(50 * SIM_MS);
	make_drives((struct sim_drives){0});
	for (uint32_t i = 0; i < fate.nodes; i++)
		drain(i, false);
}
