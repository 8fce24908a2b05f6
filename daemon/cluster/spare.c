// SPDX-License-Identifier: Apache-2.0
/* Spare copies: while a group runs, its nodes have layers packed that others compute, as many as store.replicas says
 * and their drives have room for. A plan after a loss cuts the layers anew in the same order, so what a node will need
 * lies next to what it has: of equal nodes it moves by one node's share at most. So each keeps (replicas - 1) shares
 * more, half before and half behind its own. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/units.h"
#include "daemon/cluster/coordinator_internal.h"

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

void cluster_spare_range(const struct cluster_slice *stages, uint32_t count, uint32_t at, uint32_t replicas,
	struct cluster_slice *ret_slice)
{
	const struct cluster_slice *own = &stages[at];
	uint32_t share = 0, uneven = 0, all = stages[count - 1].first_layer + stages[count - 1].layers;
	for (uint32_t i = 0; i < count; i++)
		share = stages[i].layers > share ? stages[i].layers : share;
	for (uint32_t i = 0; i < count; i++)
		uneven |= stages[i].layers != share; // then borders move by one more
	uint32_t copies = replicas < count ? replicas : count;
	uint32_t side = (uint32_t)(((uint64_t)share * (copies - 1) + 1) / 2) + (copies > 1 ? uneven : 0);
	uint32_t room_before = own->first_layer, room_behind = all - own->first_layer - own->layers;
	uint32_t before = least(room_before, side), behind = least(room_behind, side);
	uint32_t more_before = side - behind, more_behind = side - before; // what one end has no layers for
	before = least(room_before, before + more_before);
	behind = least(room_behind, behind + more_behind);
	*ret_slice = (struct cluster_slice){
		own->first_layer - before, own->layers + before + behind, own->tp_rank, own->tp_size};
}

static bool is_pipeline(const struct fleet_try *t)
{
	for (uint32_t i = 0; i < t->parts; i++) {
		if (t->part[i].slice.tp_size != 1)
			return false; // another plan would cut its layers otherwise
	}
	return t->parts > 1;
}

void cluster_spares_step(struct cluster_fleet *f)
{
	const struct cluster_coordinator *c = f->coordinator;
	struct cluster_slice stages[CLUSTER_MAX_STAGES];
	if (c->config.replicas < 2 || f->spared_epoch == f->running_epoch || f->coming.parts ||
		f->state != FLEET_IDLE || base_clock_now_ns() < f->running_ns + c->config.spare_ns)
		return;
	f->spared_epoch = f->running_epoch;
	f->spares.parts = 0;
	if (!is_pipeline(&f->running)) {
		if (f->running.parts > 1)
			cluster_coordinator_emit(f->coordinator, "warning", "spares_skipped", f->model,
				"store.replicas is %u, and nodes keep no spare layers: they have parts of layers, "
				"which another plan would cut otherwise",
				c->config.replicas);
		return;
	}
	for (uint32_t i = 0; i < f->running.parts; i++)
		stages[i] = f->running.part[i].slice;
	for (uint32_t i = 0; i < f->running.parts; i++) {
		struct fleet_part *p = &f->spares.part[f->spares.parts++];
		*p = (struct fleet_part){.node = f->running.part[i].node};
		cluster_spare_range(stages, f->running.parts, i, c->config.replicas, &p->slice);
		cluster_fleet_send(f, p, true);
	}
}

static struct fleet_part *find_spare(struct cluster_coordinator *c, const struct cluster_node *n, uint64_t assignment,
	struct cluster_fleet **ret_fleet)
{
	for (struct cluster_fleet *f = c->fleets; f && assignment; f = f->next) {
		for (uint32_t i = 0; i < f->spares.parts; i++) {
			struct fleet_part *p = &f->spares.part[i];
			if (p->node != n || p->assignment != assignment)
				continue;
			*ret_fleet = f;
			return p;
		}
	}
	return NULL;
}

/* The node may forget it. */
static void finish(struct fleet_part *p)
{
	cluster_fleet_release_part(p);
	p->assignment = 0;
}

void cluster_spares_stored(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Stored *m)
{
	struct cluster_fleet *f;
	struct fleet_part *p = find_spare(c, n, m->assignment, &f);
	char written[BASE_UNITS_TEXT_BYTES];
	if (!p)
		return;
	cluster_coordinator_emit(c, m->text[0] ? "warning" : "notice", "spares_stored", f->model,
		"node %s has %u of layers %u to %u, %s of them new%s%.200s", n->name, least(m->layers, p->slice.layers),
		p->slice.first_layer, p->slice.first_layer + p->slice.layers - 1,
		base_units_format_bytes(m->written_bytes, written), m->text[0] ? ": " : "", m->text);
	finish(p);
}

bool cluster_spares_failed(struct cluster_coordinator *c, struct cluster_node *n, const Thaw__Node__V1__Failed *m)
{
	struct cluster_fleet *f;
	struct fleet_part *p = find_spare(c, n, m->assignment, &f);
	if (!p)
		return false;
	cluster_coordinator_emit(
		c, "warning", "spares_failed", f->model, "node %s keeps no spare layers: %.250s", n->name, m->text);
	finish(p);
	return true;
}

void cluster_spares_node_lost(struct cluster_fleet *f, const struct cluster_node *n)
{
	for (uint32_t i = 0; i < f->spares.parts; i++) {
		if (f->spares.part[i].node == n)
			f->spares.part[i].assignment = 0; // gone with its connection
	}
}

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
