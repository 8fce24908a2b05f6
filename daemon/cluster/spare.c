// SPDX-License-Identifier: Apache-2.0
/* Spare copies: while a group runs, nodes have layers packed that others compute, so that the plan after a loss finds
 * what it needs. What that is, is not guessed: plan() is asked what it would say without each of the nodes, and with
 * more replicas without each two of them, and so on. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/units.h"
#include "daemon/cluster/coordinator_internal.h"

/* ---- what a node needs ---- */

static bool same_part(const struct cluster_slice *a, const struct cluster_slice *b)
{
	return a->tp_rank == b->tp_rank && a->tp_size == b->tp_size;
}

static uint32_t end_of(const struct cluster_slice *s)
{
	return s->first_layer + s->layers;
}

/* Ranges that touch become one. */
static void merge(struct fleet_keeper *k, struct cluster_slice x)
{
	for (uint32_t i = 0; i < k->slices; i++) {
		const struct cluster_slice *y = &k->slice[i];
		if (!same_part(y, &x) || y->first_layer > end_of(&x) || x.first_layer > end_of(y))
			continue;
		uint32_t end = end_of(y) > end_of(&x) ? end_of(y) : end_of(&x);
		x.first_layer = y->first_layer < x.first_layer ? y->first_layer : x.first_layer;
		x.layers = end - x.first_layer;
		k->slice[i] = k->slice[--k->slices];
		i = UINT32_MAX; // those before may touch it by now
	}
	if (k->slices < CLUSTER_MAX_SPARES)
		k->slice[k->slices++] = x;
	else
		k->cut = true;
}

/* All of x but what the node computes itself, of that the group's parts from `part` on. */
static void add(const struct cluster_fleet *f, struct fleet_keeper *k, struct cluster_slice x, uint32_t part)
{
	for (uint32_t i = part; i < f->running.parts; i++) {
		const struct cluster_slice *own = &f->running.part[i].slice;
		if (f->running.part[i].node != k->node || !same_part(own, &x) || own->first_layer >= end_of(&x) ||
			x.first_layer >= end_of(own))
			continue;
		struct cluster_slice before = x;
		before.layers = own->first_layer > x.first_layer ? own->first_layer - x.first_layer : 0;
		if (before.layers)
			add(f, k, before, i + 1);
		if (end_of(&x) <= end_of(own))
			return;
		x.layers = end_of(&x) - end_of(own);
		x.first_layer = end_of(own);
	}
	merge(k, x);
}

static struct fleet_keeper *keeper_of(struct fleet_spares *s, struct cluster_node *n)
{
	uint32_t i = 0;
	while (i < s->keepers && s->keeper[i].node != n)
		i++;
	if (i == s->keepers)
		s->keeper[s->keepers++] = (struct fleet_keeper){.node = n};
	return &s->keeper[i];
}

/* ---- which losses ---- */

/* How many at once: of larger sets there are too many. */
static uint32_t most_losses(uint32_t members, uint32_t wanted)
{
	uint64_t sets = 0, of_size = 1; // all; of the size `most`
	uint32_t most = 0;
	_Static_assert(CLUSTER_MAX_STAGES * (CLUSTER_MAX_STAGES + 1) / 2 <= CLUSTER_MAX_AHEAD);
	for (; most < wanted && most < members; most++) {
		of_size = of_size * (members - most) / (most + 1);
		sets += of_size;
		if (sets > CLUSTER_MAX_AHEAD)
			break;
	}
	return most;
}

static bool is_refused(const struct fleet_spares *s, uint32_t lost)
{
	uint32_t i = 0;
	while (i < s->refused_count && (s->refused[i] & lost) != s->refused[i])
		i++;
	return i < s->refused_count;
}

/* The next set of as many, then of one more; 0: there is none. */
static uint32_t after(const struct fleet_spares *s, uint32_t lost)
{
	uint32_t lowest = lost & -lost, carried = lost + lowest;
	uint32_t next = carried | ((lost ^ carried) >> 2) / lowest;
	uint32_t count = (uint32_t)__builtin_popcount(lost) + 1;
	if (next < 1u << s->members)
		return next;
	return count <= s->most ? (1u << count) - 1 : 0;
}

static bool is_as_seen(const struct cluster_fleet *f)
{
	const struct cluster_coordinator *c = f->coordinator;
	const struct fleet_spares *s = &f->spares;
	uint32_t n = 0;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		const struct cluster_node *x = &c->nodes[i];
		if (!cluster_fleet_usable(f, x))
			continue;
		if (n == s->seen_count || s->seen[n].node != x || s->seen[n].incarnation != x->facts->incarnation)
			return false;
		n++;
	}
	return n == s->seen_count;
}

static void begin(struct cluster_fleet *f)
{
	struct cluster_coordinator *c = f->coordinator;
	struct fleet_spares *s = &f->spares;
	cluster_spares_cancel(f);
	s->epoch = f->running_epoch;
	s->quiet_ns = base_clock_now_ns();
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		const struct cluster_node *x = &c->nodes[i];
		if (cluster_fleet_usable(f, x))
			s->seen[s->seen_count++] = (struct fleet_seen){x, x->facts->incarnation};
	}
	for (uint32_t i = 0; i < f->running.parts; i++) {
		uint32_t k = 0;
		while (k < s->members && s->member[k] != f->running.part[i].node)
			k++;
		s->member[k] = f->running.part[i].node;
		s->members += k == s->members;
	}
	uint32_t wanted = c->config.replicas - 1, left = s->seen_count ? s->seen_count - 1 : 0;
	wanted = wanted < left ? wanted : left; // somebody has to be there to keep them
	s->most = most_losses(s->members, wanted);
	s->lost = s->most > 0;
	if (s->most < wanted && s->most < s->members)
		cluster_coordinator_emit(c, "notice", "spares_skipped", f->model,
			"store.replicas is %u: spare layers are kept for the loss of any %u nodes of %u, not of more",
			c->config.replicas, s->most, s->members);
}

/* ---- what the nodes are asked for ---- */

static void send_next(struct cluster_fleet *f, struct fleet_keeper *k)
{
	k->assignment = 0;
	if (k->asked == k->slices)
		return;
	k->assignment = cluster_fleet_send(f, k->node, &k->slice[k->asked++], true);
	if (!k->node->session) // it did not read, and is lost
		k->assignment = 0;
}

static void tell_refused(struct cluster_fleet *f)
{
	const struct fleet_spares *s = &f->spares;
	char text[200] = "";
	size_t at = 0;
	for (uint32_t i = 0; i < s->refused_count && at < sizeof text; i++) {
		const char *between = i ? "; " : "";
		for (uint32_t k = 0; k < s->members && at < sizeof text; k++) {
			if (!(s->refused[i] >> k & 1))
				continue;
			at += (size_t)snprintf(text + at, sizeof text - at, "%s%s", between, s->member[k]->name);
			between = " and ";
		}
	}
	if (s->refused_count)
		cluster_coordinator_emit(f->coordinator, "warning", "spares_skipped", f->model,
			"no spare layers for losses that no plan would follow: %s%s: %.250s", text,
			at < sizeof text ? "" : "...", s->why.message);
}

/* One plan: drops the lock. */
static void ask(struct cluster_fleet *f)
{
	struct fleet_spares *s = &f->spares;
	struct cluster_node *lost[CLUSTER_MAX_STAGES];
	struct fleet_ahead ahead;
	struct base_error e = {0};
	uint32_t count = 0;
	for (uint32_t i = 0; i < s->members; i++) {
		if (s->lost >> i & 1)
			lost[count++] = s->member[i];
	}
	int status = cluster_fleet_foresee(f, lost, count, &ahead, &e);
	if (status == -ESTALE || f->broken || !f->running.parts || !is_as_seen(f))
		return; // the same again, or it begins anew
	if (status) {
		s->why = s->refused_count ? s->why : e;
		s->refused[s->refused_count++] = s->lost;
	}
	for (uint32_t i = 0; !status && i < ahead.parts; i++)
		add(f, keeper_of(s, ahead.node[i]), ahead.slice[i], 0);
	do
		s->lost = after(s, s->lost);
	while (s->lost && is_refused(s, s->lost));
	if (s->lost)
		return;
	tell_refused(f);
	for (uint32_t i = 0; i < s->keepers; i++)
		send_next(f, &s->keeper[i]);
}

bool cluster_spares_step(struct cluster_fleet *f)
{
	const struct cluster_coordinator *c = f->coordinator;
	struct fleet_spares *s = &f->spares;
	if (c->config.replicas < 2 || f->coming.parts || f->state != FLEET_IDLE || cluster_claim_check(c, NULL))
		return false;
	if (s->epoch != f->running_epoch || !is_as_seen(f)) {
		begin(f);
		return false;
	}
	if (!s->lost || base_clock_now_ns() < s->quiet_ns + c->config.spare_ns)
		return false;
	ask(f);
	return true;
}

void cluster_spares_cancel(struct cluster_fleet *f)
{
	struct fleet_spares *s = &f->spares;
	for (uint32_t i = 0; i < s->keepers; i++)
		cluster_fleet_release_node(s->keeper[i].node, s->keeper[i].assignment);
	s->epoch = 0;
	s->seen_count = s->members = s->lost = s->refused_count = s->keepers = 0;
}

/* ---- what nodes say ---- */

static struct fleet_keeper *find_keeper(struct cluster_coordinator *c, const struct cluster_node *n,
	uint64_t assignment, struct cluster_fleet **ret_fleet)
{
	for (struct cluster_fleet *f = c->fleets; f && assignment; f = f->next) {
		for (uint32_t i = 0; i < f->spares.keepers; i++) {
			struct fleet_keeper *k = &f->spares.keeper[i];
			if (k->node != n || k->assignment != assignment)
				continue;
			*ret_fleet = f;
			return k;
		}
	}
	return NULL;
}

static void tell_stored(struct cluster_fleet *f, const struct fleet_keeper *k, const char *why)
{
	char written[BASE_UNITS_TEXT_BYTES], text[200] = "";
	uint32_t layers = 0;
	size_t at = 0;
	for (uint32_t i = 0; i < k->slices; i++) {
		const struct cluster_slice *x = &k->slice[i];
		layers += x->layers;
		if (at < sizeof text)
			at += (size_t)snprintf(text + at, sizeof text - at, "%s%u to %u", i ? ", " : "", x->first_layer,
				end_of(x) - 1);
		if (at < sizeof text && x->tp_size > 1)
			at += (size_t)snprintf(
				text + at, sizeof text - at, " part %u of %u", x->tp_rank + 1, x->tp_size);
	}
	cluster_coordinator_emit(f->coordinator, why[0] ? "warning" : "notice", "spares_stored", f->model,
		"node %s has %u of %u layers that plans after losses need (%s%s), %s of them new%s%.200s%s",
		k->node->name, k->stored_layers, layers, text, at < sizeof text ? "" : "...",
		base_units_format_bytes(k->written_bytes, written), why[0] ? ": " : "", why,
		k->cut ? "; others are too many ranges" : "");
}

void cluster_spares_stored(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Stored *m)
{
	struct cluster_fleet *f;
	struct fleet_keeper *k = find_keeper(c, n, m->assignment, &f);
	if (!k)
		return;
	uint32_t layers = k->slice[k->asked - 1].layers;
	k->stored_layers += m->layers < layers ? m->layers : layers;
	k->written_bytes += m->written_bytes;
	cluster_fleet_release_node(n, k->assignment);
	if (m->text[0] || k->asked == k->slices) {
		k->assignment = 0;
		tell_stored(f, k, m->text);
	} else {
		send_next(f, k);
	}
}

bool cluster_spares_failed(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Failed *m)
{
	struct cluster_fleet *f;
	struct fleet_keeper *k = find_keeper(c, n, m->assignment, &f);
	if (!k)
		return false;
	cluster_coordinator_emit(c, "warning", "spares_failed", f->model, "node %s keeps no more spare layers: %.250s",
		n->name, m->text);
	cluster_fleet_release_node(n, k->assignment);
	k->assignment = 0;
	return true;
}

void cluster_spares_node_lost(struct cluster_fleet *f, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < f->spares.keepers; i++) {
		struct fleet_keeper *k = &f->spares.keeper[i];
		if (k->node == n) { // gone with its connection
			k->assignment = 0;
			k->asked = k->slices;
		}
	}
}

/* ---- models that are gone ---- */

static bool has_fleet(const struct cluster_coordinator *c, const uint8_t digest[static CLUSTER_DIGEST_BYTES])
{
	for (const struct cluster_fleet *f = c->fleets; f; f = f->next) {
		if (memcmp(f->config.digest, digest, CLUSTER_DIGEST_BYTES) == 0)
			return true;
	}
	return false;
}

/* Whoever is away does not hear of it, and deletes them when it needs the room. */
void cluster_coordinator_forget(
	struct cluster_coordinator *c, const char *model, const uint8_t digest[static CLUSTER_DIGEST_BYTES])
{
	pthread_mutex_lock(&c->lock);
	bool wanted = has_fleet(c, digest); // the same under another name
	for (uint32_t i = 0; !wanted && i < c->nodes_count; i++) {
		size_t bytes = 0;
		if (!c->nodes[i].session)
			continue;
		uint8_t *data = cluster_pack_forget(model, digest, &bytes);
		cluster_session_post(c->nodes[i].session, data, bytes);
	}
	pthread_mutex_unlock(&c->lock);
}
