// SPDX-License-Identifier: Apache-2.0
// The search: a graph of which devices are used up, and over it dynamic programming along the layers.
//
// A state says which devices the stages so far have taken, and which of them is last; an edge takes a group of equal
// devices for one more stage, or passes devices over. f[state][layer] is the least sum of active times and hops of the
// stages that hold the layers before it, no stage and no hop being busier than a threshold. Since a period is the
// larger of k times the busiest and the sum, halving the threshold finds the best of both.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "topology/fleet/internal.h"

// Edges times runs of layers: up to here every order is searched. About half a second, and a plan is several searches.
#define EXACT_WORK 1e7
#define MAX_OF_KIND 256u
#define MAX_STATES (1u << 18)
#define MAX_CELLS (1u << 23) // of remembered costs, where they are asked for
#define MAX_DP_CELLS (1u << 24)
#define PRECISION 1e-8
#define ROUNDS 48
#define RANK_NS 1.0 // a rank more must bring at least this
#define SWAPS 64u // tries to improve an order

struct edge {
	uint32_t from, to;
	uint32_t device; // the first of the group, in the order of the mode
	uint8_t tp; // 0: only moves
	uint8_t hop; // link class, HOP_NONE
};
#define HOP_NONE 255u

struct kind { // of equal devices
	uint32_t device, count, usable; // the first of them
	uint32_t first; // in `members`
};

struct search {
	const struct fleet_work *f;
	const struct fleet_limits *limits;
	uint32_t devices; // that are searched
	uint32_t *order; // (devices)
	uint32_t wanted; // where limits->use is in it, FLEET_NONE
	uint32_t *kind_of; // (fleet's devices)
	struct kind *kinds;
	uint32_t *members; // (fleet's devices), by kind
	uint32_t kinds_count;
	bool tp[FLEET_TP + 1];
	bool exact, capped; // capped: of a kind only the first MAX_OF_KIND
	struct edge *edges; // by from
	uint32_t edges_count, edges_room, states;
	struct fleet_run *cells; // remembered costs; of disk the value + 1, so that 0 is not known and -1 does not fit
	uint8_t tp_index[FLEET_TP + 1];
	uint32_t tp_count;
	double *sum; // (states, layers + 1)
	uint32_t *came_edge, *came_layer;
};

/* ---- kinds of devices ---- */

static int find_kinds(struct search *s)
{
	uint32_t n = s->f->in->devices_count;
	s->kind_of = calloc(n, sizeof *s->kind_of);
	s->kinds = calloc(n, sizeof *s->kinds);
	s->members = calloc(n, sizeof *s->members);
	if (!s->kind_of || !s->kinds || !s->members)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = 0;
		while (k < s->kinds_count && !fleet_same_kind(s->f, s->kinds[k].device, i))
			k++;
		if (k == s->kinds_count)
			s->kinds[s->kinds_count++] = (struct kind){.device = i};
		s->kinds[k].count++;
		s->kind_of[i] = k;
	}
	uint32_t at = 0;
	for (uint32_t k = 0; k < s->kinds_count; k++) {
		s->kinds[k].first = at;
		for (uint32_t i = 0; i < n; i++) {
			if (s->kind_of[i] == k)
				s->members[at++] = i;
		}
	}
	return 0;
}

/* ---- graphs ---- */

static int add_edge(struct search *s, struct edge e)
{
	if (s->edges_count == s->edges_room) {
		uint32_t room = s->edges_room ? s->edges_room * 2 : 256;
		struct edge *edges = reallocarray(s->edges, room, sizeof *edges);
		if (!edges)
			return -ENOMEM;
		s->edges = edges;
		s->edges_room = room;
	}
	s->edges[s->edges_count++] = e;
	return 0;
}

static uint8_t hop_of(const struct search *s, uint32_t a, uint32_t b)
{
	return (uint8_t)fleet_link_between(s->f, a, b);
}

// Devices of a kind that follow each other: another member stands for the second one.
static uint8_t hop_of_kinds(const struct search *s, uint32_t a, uint32_t b)
{
	const struct kind *k = &s->kinds[a];
	uint32_t other = s->kinds[b].device;
	if (a == b && k->count > 1)
		other = s->members[k->first + 1];
	return hop_of(s, k->device, other);
}

// A group may share a stage: the link among it is measured.
static bool group_has_link(const struct search *s, uint32_t a, uint32_t b)
{
	return s->f->in->links[fleet_link_between(s->f, a, b)].bytes_per_s > 0;
}

// Products of (usable + 1): how many counts there are; 0: too many.
static uint32_t count_states(struct search *s, double runs)
{
	uint32_t tps = 0;
	for (uint32_t t = 1; t <= FLEET_TP; t++)
		tps += s->tp[t];
	double most = (double)s->f->layers * (s->limits->tp_most ? s->limits->tp_most : 1), states = 1;
	for (uint32_t k = 0; k < s->kinds_count; k++) {
		s->kinds[k].usable = s->kinds[k].count < most ? s->kinds[k].count : (uint32_t)most;
		if (s->kinds[k].usable > MAX_OF_KIND) {
			s->kinds[k].usable = MAX_OF_KIND;
			s->capped = true;
		}
		states *= s->kinds[k].usable + 1;
		if (states * s->kinds_count > MAX_STATES)
			return 0;
	}
	return states * s->kinds_count * s->kinds_count * tps * runs <= EXACT_WORK ? (uint32_t)states : 0;
}

// States: counts * kinds + the kind of the last device, and one for nothing yet. Edges add devices, so that numbers
// grow.
static int build_exact(struct search *s, uint32_t counts)
{
	uint32_t kinds = s->kinds_count, start = counts * kinds;
	s->states = start + 1;
	for (uint32_t c = 0; c < counts; c++) {
		for (uint32_t last = 0; last < (c ? kinds : 1); last++) {
			uint32_t stride = 1, rest = c, from = c ? c * kinds + last : start;
			for (uint32_t k = 0; k < kinds; k++) {
				uint32_t used = rest % (s->kinds[k].usable + 1);
				rest /= s->kinds[k].usable + 1;
				for (uint32_t t = 1; t <= FLEET_TP && used + t <= s->kinds[k].usable; t++) {
					const uint32_t *m = &s->members[s->kinds[k].first];
					if (!s->tp[t] || (t > 1 && !group_has_link(s, m[0], m[1])))
						continue;
					struct edge e = {.from = from,
						.to = (c + t * stride) * kinds + k,
						.device = s->kinds[k].device,
						.tp = (uint8_t)t,
						.hop = c ? hop_of_kinds(s, last, k) : (uint8_t)HOP_NONE};
					if (add_edge(s, e) < 0)
						return -ENOMEM;
				}
				stride *= s->kinds[k].usable + 1;
			}
		}
	}
	return 0;
}

// States 2p: the p devices before are used or passed over, the last one used; 2p + 1: device p comes next.
static int build_ordered(struct search *s)
{
	uint32_t n = s->devices;
	s->states = 2 * n + 1;
	s->edges_count = 0;
	s->wanted = FLEET_NONE;
	for (uint32_t i = 0; i < n; i++) {
		if (s->order[i] == s->limits->use)
			s->wanted = i;
	}
	for (uint32_t p = 0; p <= n; p++) {
		for (uint32_t q = p; q < n; q++) {
			if (p <= s->wanted && s->wanted < q)
				break;
			struct edge e = {.from = 2 * p,
				.to = 2 * q + 1,
				.hop = p ? hop_of(s, s->order[p - 1], s->order[q]) : (uint8_t)HOP_NONE};
			if (add_edge(s, e) < 0)
				return -ENOMEM;
		}
		for (uint32_t t = 1; t <= FLEET_TP && p + t <= n; t++) {
			uint32_t last = s->order[p + t - 1];
			if (s->kind_of[last] != s->kind_of[s->order[p]])
				break;
			if (!s->tp[t] || (t > 1 && !group_has_link(s, s->order[p], last)))
				continue;
			struct edge e = {
				.from = 2 * p + 1, .to = 2 * (p + t), .device = p, .tp = (uint8_t)t, .hop = HOP_NONE};
			if (add_edge(s, e) < 0)
				return -ENOMEM;
		}
	}
	return 0;
}

/* ---- dynamic programming ---- */

struct way { // to run: k micro-batches of n positions
	uint32_t k, n;
	double hop[FLEET_LINK_CLASSES], busy[FLEET_LINK_CLASSES];
};

static uint32_t device_of(const struct search *s, const struct edge *e)
{
	return s->exact ? e->device : s->order[e->device];
}

// False: it does not fit.
static bool cost(struct search *s, uint32_t device, uint32_t tp, uint32_t first, uint32_t end, struct fleet_run *ret)
{
	uint32_t l = s->f->layers + 1;
	struct fleet_run *cell = NULL;
	if (s->cells) {
		size_t group = (size_t)s->kind_of[device] * s->tp_count + s->tp_index[tp];
		cell = &s->cells[(group * l + first) * l + end];
		if (cell->disk != 0) {
			*ret = *cell;
			ret->disk -= 1;
			return cell->disk > 0;
		}
	}
	if (fleet_run_cost(s->f, device, first, end, tp, ret, NULL, NULL) < 0)
		ret->disk = -2;
	if (cell) {
		*cell = *ret;
		cell->disk += 1;
	}
	return ret->disk >= 0;
}

static void relax_edge(struct search *s, const struct way *w, uint32_t number, uint32_t i, double tau, double bound)
{
	const struct edge *e = &s->edges[number];
	uint32_t l = s->f->layers;
	double base = s->sum[(size_t)e->from * (l + 1) + i];
	if (e->hop != HOP_NONE) {
		if (w->busy[e->hop] > tau)
			return;
		base += w->hop[e->hop];
	}
	if (e->tp == 0) {
		size_t to = (size_t)e->to * (l + 1) + i;
		if (base < s->sum[to]) {
			s->sum[to] = base;
			s->came_edge[to] = number;
			s->came_layer[to] = i;
		}
		return;
	}
	uint32_t device = device_of(s, e), peer = device;
	if (e->tp > 1)
		peer = s->exact ? s->members[s->kinds[s->kind_of[device]].first + 1] : s->order[e->device + 1];
	const struct fleet_link *link = &s->f->in->links[fleet_link_between(s->f, device, peer)];
	for (uint32_t j = i + 1; j <= l; j++) {
		struct fleet_run run;
		double service, active;
		if (!cost(s, device, e->tp, i, j, &run)) {
			if (s->f->in->entries_count == 0)
				break; // more layers fit no better
			continue;
		}
		fleet_run_time(&run, fleet_allreduce_ns(s->f, link, e->tp, i, j, w->n), w->n, &service, &active);
		double sum = base + active + e->tp * RANK_NS;
		if (service > tau || sum >= bound)
			break;
		size_t to = (size_t)e->to * (l + 1) + j;
		if (sum < s->sum[to]) {
			s->sum[to] = sum;
			s->came_edge[to] = number;
			s->came_layer[to] = i;
		}
	}
}

// Whether the stages that led to a state have what limits->use wants.
static bool uses_wanted(const struct search *s, uint32_t state)
{
	if (s->limits->use == FLEET_NONE)
		return true;
	if (!s->exact) // edges do not pass it over
		return state / 2 > s->wanted;
	uint32_t c = state / s->kinds_count, kind = s->kind_of[s->limits->use];
	for (uint32_t k = 0; k < kind; k++)
		c /= s->kinds[k].usable + 1;
	return c % (s->kinds[kind].usable + 1) > s->limits->use_least;
}

// The least sum below bound with nothing busier than tau; INFINITY if there is none.
static double solve(struct search *s, const struct way *w, double tau, double bound, uint32_t *ret_state)
{
	uint32_t l = s->f->layers;
	size_t cells = (size_t)s->states * (l + 1);
	for (size_t i = 0; i < cells; i++)
		s->sum[i] = INFINITY;
	uint32_t start = s->exact ? s->states - 1 : 0;
	s->sum[(size_t)start * (l + 1)] = 0;
	for (uint32_t e = 0; e < s->edges_count; e++) {
		const double *from = &s->sum[(size_t)s->edges[e].from * (l + 1)];
		for (uint32_t i = 0; i < l; i++) {
			if (from[i] < bound && !(s->limits->one_stage && i > 0))
				relax_edge(s, w, e, i, tau, bound);
		}
	}
	double best = INFINITY;
	for (uint32_t state = 0; state < s->states; state++) {
		double sum = s->sum[(size_t)state * (l + 1) + l];
		if (sum < best && uses_wanted(s, state)) {
			best = sum;
			*ret_state = state;
		}
	}
	return best;
}

struct step { // of a way back
	uint32_t edge, first, end;
};

static uint32_t trace(const struct search *s, uint32_t state, struct step *steps)
{
	uint32_t l = s->f->layers, at = l, count = 0, start = s->exact ? s->states - 1 : 0;
	while (state != start) {
		size_t cell = (size_t)state * (l + 1) + at;
		const struct edge *e = &s->edges[s->came_edge[cell]];
		if (e->tp)
			steps[count++] = (struct step){s->came_edge[cell], s->came_layer[cell], at};
		at = s->came_layer[cell];
		state = e->from;
	}
	return count;
}

static uint32_t read_stages(const struct search *s, uint32_t state, struct fleet_cut *ret)
{
	struct step steps[FLEET_STAGES];
	_cleanup_free_ uint32_t *taken = calloc(s->kinds_count, sizeof *taken);
	uint32_t count = trace(s, state, steps);
	for (uint32_t i = 0; i < count && taken; i++) {
		const struct step *step = &steps[count - 1 - i];
		const struct edge *e = &s->edges[step->edge];
		struct fleet_cut *stage = &ret[i];
		*stage = (struct fleet_cut){.first = step->first, .end = step->end, .tp = e->tp};
		for (uint32_t t = 0; t < e->tp; t++) {
			uint32_t kind = s->kind_of[s->exact ? e->device : 0];
			stage->devices[t] =
				s->exact ? s->members[s->kinds[kind].first + taken[kind]++] : s->order[e->device + t];
		}
	}
	return taken ? count : 0;
}

// The busiest of a placement, hops included.
static double busiest(const struct search *s, const struct way *w, uint32_t state)
{
	struct step steps[FLEET_STAGES];
	uint32_t count = trace(s, state, steps);
	double most = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct edge *e = &s->edges[steps[i].edge];
		uint32_t device = device_of(s, e), peer = device;
		struct fleet_run run;
		double service, active;
		if (e->tp > 1)
			peer = s->exact ? s->members[s->kinds[s->kind_of[device]].first + 1] : s->order[e->device + 1];
		if (fleet_run_cost(s->f, device, steps[i].first, steps[i].end, e->tp, &run, NULL, NULL) < 0)
			return INFINITY;
		const struct fleet_link *link = &s->f->in->links[fleet_link_between(s->f, device, peer)];
		fleet_run_time(&run, fleet_allreduce_ns(s->f, link, e->tp, steps[i].first, steps[i].end, w->n), w->n,
			&service, &active);
		most = service > most ? service : most;
		if (i + 1 < count) {
			const struct edge *before = &s->edges[steps[i + 1].edge];
			uint32_t last =
				s->exact ? s->kind_of[before->device] : s->order[before->device + before->tp - 1];
			uint8_t hop = s->exact ? hop_of_kinds(s, last, s->kind_of[device]) : hop_of(s, last, device);
			most = w->busy[hop] > most ? w->busy[hop] : most;
		}
	}
	return most;
}

struct best {
	struct fleet_cut *stages;
	struct fleet_found found;
};

// Better ways with w than best, which is replaced. What solve finds under a threshold is also the least sum of all that
// could be better, so `low` rises with every success and with every failure.
static void improve(struct search *s, const struct way *w, struct best *best)
{
	double low = 0, overhead = s->f->in->overhead_ns;
	for (unsigned round = 0; round < ROUNDS; round++) {
		double high = best->found.period_ns, target = round ? low + (high - low) / 2 : high;
		uint32_t state = 0;
		double sum = solve(s, w, target / w->k, target - overhead, &state) + overhead;
		if (!isinf(sum)) {
			double busy = w->k * busiest(s, w, state);
			best->found.period_ns = busy > sum ? busy : sum;
			best->found.micro_batches = w->k;
			best->found.count = read_stages(s, state, best->stages);
			low = sum > low ? sum : low;
		} else if (round == 0) {
			return;
		} else {
			low = target;
		}
		if (best->found.period_ns - low <= PRECISION * best->found.period_ns)
			return;
	}
}

// only: this number of micro-batches, 0: all that are to be tried.
static void search_graph(struct search *s, struct best *best, uint32_t only)
{
	const struct fleet_input *in = s->f->in;
	uint32_t k[FLEET_MICRO], count = fleet_micro_batches(in, k);
	if (in->objective == FLEET_OBJECTIVE_ONE)
		count = 1;
	for (uint32_t i = 0; i < count; i++) {
		struct way w = {.k = k[i], .n = (fleet_sequences(in) + k[i] - 1) / k[i]};
		if (in->objective == FLEET_OBJECTIVE_ONE)
			w.k = w.n = 1;
		if (only && only != w.k)
			continue;
		for (int c = 0; c < FLEET_LINK_CLASSES; c++) {
			w.busy[c] = fleet_hop_busy_ns(s->f, (enum fleet_link_class)c, w.n);
			w.hop[c] = w.busy[c] + in->links[c].latency_ns;
		}
		improve(s, &w, best);
	}
}

static int make_room(struct search *s)
{
	size_t cells = (size_t)s->states * (s->f->layers + 1);
	if (cells > MAX_DP_CELLS)
		return -E2BIG;
	free(s->sum);
	free(s->came_edge);
	free(s->came_layer);
	s->sum = malloc(cells * sizeof *s->sum);
	s->came_edge = calloc(cells, sizeof *s->came_edge);
	s->came_layer = calloc(cells, sizeof *s->came_layer);
	return s->sum && s->came_edge && s->came_layer ? 0 : -ENOMEM;
}

static int remember_costs(struct search *s)
{
	for (uint32_t t = 1; t <= FLEET_TP; t++) {
		if (s->tp[t])
			s->tp_index[t] = (uint8_t)s->tp_count++;
	}
	size_t l = s->f->layers + 1, groups = (size_t)s->kinds_count * s->tp_count;
	if (groups * l * l > MAX_CELLS)
		return 0;
	s->cells = calloc(groups * l * l, sizeof *s->cells); // what is never asked for is never touched
	return s->cells ? 0 : -ENOMEM;
}

/* ---- orders, where there are too many kinds for all of them ---- */

// Which devices are worth a search: much memory first, then fast drives and memory.
static double speed(const struct search *s, uint32_t device)
{
	const struct fleet_device *d = &s->f->in->devices[device];
	double drive = d->bandwidths.drive_bytes_per_s, memory = d->bandwidths.memory_bytes_per_s;
	return (double)d->memory_bytes / (double)(1u << 20) + drive / 1e7 + memory / 1e8;
}

struct ranked {
	uint32_t device, rack, host, kind;
	double speed;
};

static int by_speed(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;
	if (x->speed != y->speed)
		return x->speed < y->speed ? 1 : -1;
	return x->device < y->device ? -1 : x->device > y->device;
}

// Devices of a rack and of a host stay together, and its equal ones: a hop inside is the cheapest.
static int by_host(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;
	if (x->rack != y->rack)
		return x->rack < y->rack ? -1 : 1;
	if (x->host != y->host)
		return x->host < y->host ? -1 : 1;
	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return x->device < y->device ? -1 : x->device > y->device;
}

static int choose_order(struct search *s)
{
	uint32_t n = s->f->in->devices_count;
	_cleanup_free_ struct ranked *r = calloc(n, sizeof *r);
	s->order = calloc(n, sizeof *s->order);
	if (!r || !s->order)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++)
		r[i] = (struct ranked){i, s->f->rack[i], s->f->host[i], s->kind_of[i],
			speed(s, i) + 1e18 * (s->f->pinned[i] || i == s->limits->use)};
	qsort(r, n, sizeof *r, by_speed);
	s->devices = n < FLEET_SEARCHED ? n : FLEET_SEARCHED;
	qsort(r, s->devices, sizeof *r, by_host);
	for (uint32_t i = 0; i < s->devices; i++)
		s->order[i] = r[i].device;
	return 0;
}

static int search_order(struct search *s, struct best *best, uint32_t only)
{
	int r = build_ordered(s);
	if (r == 0)
		r = make_room(s);
	if (r == 0)
		search_graph(s, best, only);
	return r;
}

static void swap(uint32_t *a, uint32_t *b)
{
	uint32_t c = *a;
	*a = *b;
	*b = c;
}

// Swaps of two devices of different kinds, kept when they help; which ones is fixed, so that plans are repeatable.
static int search_orders(struct search *s, struct best *best)
{
	int r = choose_order(s);
	if (r == 0)
		r = search_order(s, best, 0);
	uint32_t tries = s->limits->quick || isinf(best->found.period_ns) ? SWAPS : 0;
	for (uint32_t distance = 1; r == 0 && distance < s->devices && tries < SWAPS; distance++) {
		for (uint32_t i = 0; r == 0 && i + distance < s->devices && tries < SWAPS; i++) {
			if (s->kind_of[s->order[i]] == s->kind_of[s->order[i + distance]])
				continue;
			double before = best->found.period_ns;
			swap(&s->order[i], &s->order[i + distance]);
			r = search_order(s, best, best->found.micro_batches);
			tries++;
			if (best->found.period_ns >= before)
				swap(&s->order[i], &s->order[i + distance]);
		}
	}
	return r;
}

static void finish(struct search *s)
{
	free(s->order);
	free(s->kind_of);
	free(s->kinds);
	free(s->members);
	free(s->edges);
	free(s->cells);
	free(s->sum);
	free(s->came_edge);
	free(s->came_layer);
}

int fleet_search(const struct fleet_work *f, const struct fleet_limits *limits, struct fleet_cut *ret_stages,
	struct fleet_found *ret_found)
{
	struct search s = {.f = f, .limits = limits};
	struct best best = {.stages = ret_stages, .found.period_ns = INFINITY};
	for (uint32_t t = 1; t <= FLEET_TP; t++)
		s.tp[t] = t >= limits->tp_least && t <= limits->tp_most && fleet_tp_possible(f->in->model, t, NULL, 0);
	int r = find_kinds(&s);
	uint32_t counts = r == 0 ? count_states(&s, (double)f->layers * f->layers / 2) : 0;
	if (r == 0)
		r = remember_costs(&s);
	s.exact = counts > 0;
	if (r == 0 && s.exact) {
		r = build_exact(&s, counts);
		if (r == 0)
			r = make_room(&s);
		if (r == 0)
			search_graph(&s, &best, 0);
	} else if (r == 0) {
		r = search_orders(&s, &best);
	}
	best.found.order_exact = s.exact && !s.capped;
	if (r == 0 && isinf(best.found.period_ns))
		r = -ENOMEM;
	if (r == 0)
		*ret_found = best.found;
	finish(&s);
	return r;
}
