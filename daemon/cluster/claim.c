// SPDX-License-Identifier: Apache-2.0
/* When a claim may be taken (claim.h), and whether this node coordinates. `active` follows the state's claim:
 *
 *   the claim is had          -> the record is read, active: nodes may join, plans may be made
 *   the claim is in doubt     -> still active: what runs goes on, with the nodes that are there. Nothing new is let in, planned,
 *                                assigned or started, because somebody else may be doing that by now
 *   it is had again           -> if nobody else was active meanwhile, as if nothing had happened
 *   another has it            -> not active: all nodes are sent away, to where they find the other
 *
 * An epoch is on the record before anyone hears of it, and the record takes nothing from whoever has not the claim: two
 * coordinators never start groups with the same epoch. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/claim.h"
#include "daemon/cluster/coordinator_internal.h"

#define TAKE_AGAIN_NS (500 * 1000000ull)

int cluster_claim_check(const struct cluster_coordinator *c, struct base_error *e)
{
	const struct cluster_claim *x = &c->claim;
	const char *why = x->why[0] ? x->why : "it takes over";
	if (x->kind == CLUSTER_CLAIM_OTHER)
		return base_error_set(e, -EAGAIN, "node %s%s%s%s coordinates cluster %s: this one stands by", x->holder,
			x->address[0] ? " (" : "", x->address, x->address[0] ? ")" : "", c->cluster);
	if (!c->active)
		return base_error_set(e, -EAGAIN, "node %s does not coordinate yet: %s", c->node_name, why);
	if (x->kind == CLUSTER_CLAIM_HELD && x->term == c->term)
		return 0;
	return base_error_set(e, -EAGAIN, "node %s may have lost its claim to coordinate, and begins nothing new: %s",
		c->node_name, why);
}

/* ---- when it is free ---- */

static uint64_t length(const struct cluster_claim_watch *w)
{
	return w->lease_ns ? w->lease_ns : w->own_ns;
}

void cluster_claim_watch_missed(struct cluster_claim_watch *w)
{
	w->missed = true;
}

/* A holder that renews four times in its lease loses it to an etcd that is away for three quarters of it, less what it
 * needs to try once more. Two answers are a quarter apart; five eighths are what a machine that is busy may take
 * without being suspected. */
void cluster_claim_watch_heard(struct cluster_claim_watch *w, uint64_t now_ns)
{
	if (w->missed || (w->heard_ns && now_ns - w->heard_ns >= length(w) / 8 * 5))
		w->back_ns = now_ns;
	w->missed = false;
	w->heard_ns = now_ns;
}

void cluster_claim_watch_seen(struct cluster_claim_watch *w, int64_t lease, uint64_t lease_ns)
{
	w->lease = lease;
	w->lease_ns = lease_ns;
}

void cluster_claim_watch_held(struct cluster_claim_watch *w, uint64_t now_ns)
{
	if (w->back_ns && now_ns >= w->back_ns + length(w))
		w->back_ns = 0;
}

void cluster_claim_watch_over(struct cluster_claim_watch *w)
{
	w->lease = 0;
}

bool cluster_claim_watch_free(const struct cluster_claim_watch *w, uint64_t now_ns)
{
	return !w->lease && !w->missed && (!w->back_ns || now_ns >= w->back_ns + length(w) + CLUSTER_CLAIM_RETURN_NS);
}

uint64_t cluster_claim_watch_period(const struct cluster_claim_watch *w)
{
	return (length(w) < w->own_ns ? length(w) : w->own_ns) / CLUSTER_CLAIM_ROUNDS;
}

/* ---- taking over ---- */

static int check_record(const struct cluster_coordinator *c, const struct cluster_record *r, struct base_error *e)
{
	if (strcmp(r->cluster, c->cluster) == 0)
		return 0;
	return base_error_set(e, -EINVAL,
		"the store has the state of cluster %s, this is cluster %s: give it a store of its own", r->cluster,
		c->cluster);
}

/* Nobody else has written since: what this node knows is the record. */
static bool still_own(const struct cluster_coordinator *c, const struct cluster_record *r)
{
	return c->active && strcmp(r->coordinator, c->node_name) == 0 && r->epoch <= c->record.epoch;
}

static void adopt(struct cluster_coordinator *c, const struct cluster_record *r)
{
	struct base_error e = {0};
	uint64_t epoch = c->record.epoch;
	if (c->active) {
		base_error_set(&e, -EHOSTDOWN, "another coordinated cluster %s meanwhile", c->cluster);
		cluster_coordinator_dismiss(c, &e);
	}
	c->record = *r;
	if (c->record.epoch < epoch)
		c->record.epoch = epoch;
	memcpy(c->record.cluster, c->cluster, sizeof c->record.cluster);
	memcpy(c->record.coordinator, c->node_name, sizeof c->record.coordinator);
	for (uint32_t i = 0; i < r->nodes_count; i++)
		cluster_coordinator_know(c, &r->nodes[i]);
	cluster_fleets_forget(c);
	c->started_ns = base_clock_now_ns();
	c->active = true;
}

/* Lock held, dropped to read. */
static int take_over(struct cluster_coordinator *c, const struct cluster_claim *claim, struct base_error *e)
{
	_cleanup_free_ struct cluster_record *r = calloc(1, sizeof *r);
	if (!r)
		return base_error_set(e, -ENOMEM, "no memory for the cluster's record");
	pthread_mutex_unlock(&c->lock);
	pthread_mutex_lock(&c->state_lock);
	int status = c->state->ops->read(c->state, r, e);
	pthread_mutex_unlock(&c->state_lock);
	pthread_mutex_lock(&c->lock);
	bool empty = status == -ENOENT;
	if (!status)
		status = check_record(c, r, e);
	if (status && !empty)
		return status;
	if (!(empty ? c->active : still_own(c, r)))
		adopt(c, r);
	c->term = claim->term;
	c->claim = *claim;
	c->dirty = true;
	c->save_after_ns = 0;
	return 0;
}

int cluster_claim_start(struct cluster_coordinator *c, struct base_error *e)
{
	struct cluster_claim claim;
	c->state->ops->claim(c->state, &claim);
	if (claim.kind != CLUSTER_CLAIM_HELD)
		return 0;
	pthread_mutex_lock(&c->lock);
	int status = take_over(c, &claim, e);
	pthread_mutex_unlock(&c->lock);
	return status;
}

/* ---- following it; lock held ---- */

static void step_down(struct cluster_coordinator *c)
{
	struct base_error e = {0};
	c->active = false;
	base_error_set(&e, -EHOSTDOWN, "node %s coordinates cluster %s now", c->claim.holder, c->cluster);
	cluster_coordinator_emit(c, "warning", "coordinator_lost", "", "%s: this one sends its nodes there", e.message);
	cluster_coordinator_dismiss(c, &e);
}

static void tell(struct cluster_coordinator *c, const struct cluster_claim *before)
{
	const struct cluster_claim *now = &c->claim;
	if (now->kind == CLUSTER_CLAIM_OTHER && (before->kind != now->kind || strcmp(before->holder, now->holder) != 0))
		cluster_coordinator_emit(c, "notice", "coordinator_standby", "",
			"node %s%s%s coordinates cluster %s; this one stands by", now->holder,
			now->address[0] ? " at " : "", now->address, c->cluster);
	if (now->kind == CLUSTER_CLAIM_DOUBT && before->kind == CLUSTER_CLAIM_HELD)
		cluster_coordinator_emit(c, "error", "coordinator_doubt", "",
			"the claim to coordinate cluster %s could not be renewed: what runs goes on, nothing new "
			"begins: %s",
			c->cluster, now->why);
	if (now->why[0] && !c->told_wrong && now->kind != CLUSTER_CLAIM_DOUBT)
		cluster_coordinator_emit(c, "warning", "cluster_state", "", "%s", now->why);
	if (!now->why[0] && c->told_wrong)
		cluster_coordinator_emit(
			c, "notice", "cluster_state", "", "the state of cluster %s can be reached again", c->cluster);
	c->told_wrong = now->why[0] != '\0';
}

void cluster_claim_follow(struct cluster_coordinator *c)
{
	struct cluster_claim claim, before = c->claim;
	struct base_error e = {0};
	c->state->ops->claim(c->state, &claim);
	c->claim = claim;
	tell(c, &before);
	if (claim.kind == CLUSTER_CLAIM_OTHER && c->active)
		step_down(c);
	if (claim.kind != CLUSTER_CLAIM_HELD || (c->active && claim.term == c->term) ||
		base_clock_now_ns() < c->take_after_ns)
		return;
	bool was = c->active;
	int status = take_over(c, &claim, &e);
	c->take_after_ns = status ? base_clock_now_ns() + TAKE_AGAIN_NS : 0;
	if (status)
		cluster_coordinator_emit(
			c, "error", "cluster_state", "", "this node cannot take over: %s", base_error_text(&e));
	else
		cluster_coordinator_emit(c, "notice", "coordinator_active", "", "this node %s cluster %s, epoch %llu",
			was ? "goes on to coordinate" : "coordinates", c->cluster, (unsigned long long)c->record.epoch);
}
