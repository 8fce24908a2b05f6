// SPDX-License-Identifier: Apache-2.0
// Events are arrivals of a micro-batch at a stage. What a stage does with it is played at once: nothing that happens
// elsewhere can change it, since ranks share neither drives nor rings.
#include "topology/fleet/simulate.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "base/units.h"
#include "topology/fleet/internal.h"

#define DEFAULT_ROUNDS 64u
#define MOST_MICRO 1024u
#define LEAST_READS 16u // of a rank's pass, however many ranks there are
#define LEAST_SLOTS 2u

struct rank { // of a simulation
	uint32_t reads, slots; // in a pass; of the ring
	double read_ns; // of an extent
	double layer_ns; // of computing
	double drive_free; // when the last read ends
	double *freed; // (slots): when the slot's extent was computed with, a ring
	double *arrived; // (slots): when its read ends
	uint64_t issued, taken; // extents since the start
	double at; // its clock within a pass
	double drive_busy;
};

struct stage {
	double free_at, busy, stall, link_free, link_busy;
	double allreduce_ns; // one of a layer
	double gather_ns; // beside those of layers: rows of the embedding, logits
	double hop_busy_ns, hop_latency_ns;
};

struct event {
	double at;
	uint32_t stage, micro;
};

struct simulation {
	const struct fleet_input *in;
	const struct fleet_plan *p;
	struct rank *ranks;
	struct stage *stages;
	struct event *heap;
	uint32_t heap_count;
	struct fleet_simulation out;
	double from; // when measuring begins
	bool measuring;
};

/* ---- a heap of events ---- */

static bool before(const struct event *a, const struct event *b)
{
	return a->at != b->at ? a->at < b->at : a->micro < b->micro;
}

static void push(struct simulation *s, struct event e)
{
	uint32_t i = s->heap_count++;
	for (; i && before(&e, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
		s->heap[i] = s->heap[(i - 1) / 2];
	s->heap[i] = e;
}

static struct event pop(struct simulation *s)
{
	struct event first = s->heap[0], last = s->heap[--s->heap_count];
	uint32_t i = 0;
	for (;;) {
		uint32_t child = 2 * i + 1;
		if (child >= s->heap_count)
			break;
		if (child + 1 < s->heap_count && before(&s->heap[child + 1], &s->heap[child]))
			child++;
		if (!before(&s->heap[child], &last))
			break;
		s->heap[i] = s->heap[child];
		i = child;
	}
	s->heap[i] = last;
	return first;
}

/* ---- a stage's pass ---- */

// Reads as far ahead as there are free slots.
static void read_ahead(struct simulation *s, struct rank *r)
{
	while (r->issued < r->taken + r->slots) {
		uint32_t slot = (uint32_t)(r->issued % r->slots);
		double start = r->drive_free > r->freed[slot] ? r->drive_free : r->freed[slot];
		r->drive_free = r->arrived[slot] = start + r->read_ns;
		r->drive_busy += s->measuring ? r->read_ns : 0;
		r->issued++;
		s->out.reads++;
	}
}

// A layer of a rank: its extents, each waited for and then computed with; layer: in the stage, of layers. Returns the
// wait.
static double run_layer(struct simulation *s, struct rank *r, uint32_t layer, uint32_t layers)
{
	uint32_t first = (uint32_t)((uint64_t)r->reads * layer / layers);
	uint32_t count = (uint32_t)((uint64_t)r->reads * (layer + 1) / layers) - first;
	double waited = 0;
	if (!count) {
		r->at += r->layer_ns;
		return 0;
	}
	for (uint32_t i = 0; i < count; i++) {
		uint32_t slot = (uint32_t)(r->taken % r->slots);
		if (r->arrived[slot] > r->at) {
			waited += r->arrived[slot] - r->at;
			r->at = r->arrived[slot];
		}
		r->at += r->layer_ns / count;
		r->freed[slot] = r->at;
		r->taken++;
		read_ahead(s, r);
	}
	return waited;
}

static double latest(const struct rank *ranks, uint32_t count)
{
	double at = 0;
	for (uint32_t i = 0; i < count; i++)
		at = ranks[i].at > at ? ranks[i].at : at;
	return at;
}

// Returns when the pass that arrives at `at` leaves the stage.
static double run_stage(struct simulation *s, uint32_t number, double at)
{
	const struct fleet_stage *plan = &s->p->stages[number];
	struct stage *stage = &s->stages[number];
	struct rank *ranks = &s->ranks[plan->first_rank];
	double start = at > stage->free_at ? at : stage->free_at, wait = 0;
	for (uint32_t i = 0; i < plan->tp; i++)
		ranks[i].at = start;
	for (uint32_t l = 0; l < plan->layers; l++) {
		double waited = 0;
		for (uint32_t i = 0; i < plan->tp; i++) {
			double w = run_layer(s, &ranks[i], l, plan->layers);
			waited = w > waited ? w : waited;
		}
		wait += waited;
		double together = latest(ranks, plan->tp) + 2 * stage->allreduce_ns;
		for (uint32_t i = 0; i < plan->tp; i++)
			ranks[i].at = together;
	}
	stage->free_at = latest(ranks, plan->tp) + stage->gather_ns;
	if (s->measuring) {
		stage->busy += stage->free_at - start;
		stage->stall += wait;
	}
	return stage->free_at;
}

/* ---- before ---- */

static double share_work_ns(const struct fleet_rank *r, uint32_t positions)
{
	double memory =
		r->share.pass_ns_memory > r->share.pass_ns_pcie ? r->share.pass_ns_memory : r->share.pass_ns_pcie;
	double compute = positions * r->share.token_ns_compute;
	return memory > compute ? memory : compute;
}

static int make_rank(struct simulation *s, uint32_t number, uint64_t most_reads)
{
	const struct fleet_rank *plan = &s->p->ranks[number];
	const struct topology_plan *share = &plan->share;
	struct rank *r = &s->ranks[number];
	double drive = s->in->devices[plan->device].bandwidths.drive_bytes_per_s;
	r->layer_ns = share_work_ns(plan, s->out.positions) / s->p->stages[plan->stage].layers;
	if (share->cold_bytes == 0 || drive <= 0)
		return 0;
	uint64_t extent = s->in->model->extent_bytes ? s->in->model->extent_bytes : 1u << 20;
	uint64_t reads = base_size_div_up(share->cold_bytes, extent);
	reads = reads < most_reads ? reads : most_reads;
	uint64_t bytes = base_size_div_up(share->cold_bytes, reads), slots = share->slots_bytes / bytes;
	r->reads = (uint32_t)reads;
	r->slots = slots < LEAST_SLOTS ? LEAST_SLOTS : slots > reads ? (uint32_t)reads : (uint32_t)slots;
	r->slots = r->slots < LEAST_SLOTS ? LEAST_SLOTS : r->slots;
	r->read_ns = share->pass_ns_disk / (double)reads;
	s->out.extent_bytes = bytes > s->out.extent_bytes ? bytes : s->out.extent_bytes;
	r->freed = calloc(r->slots, sizeof *r->freed);
	r->arrived = calloc(r->slots, sizeof *r->arrived);
	return r->freed && r->arrived ? 0 : -ENOMEM;
}

static void make_stage(struct simulation *s, uint32_t number)
{
	const struct fleet_stage *plan = &s->p->stages[number];
	const struct fleet_work f = {.in = s->in, .layers = s->in->model->layers_count};
	uint32_t n = s->out.positions, end = plan->first_layer + plan->layers;
	const struct fleet_link *link = &s->in->links[plan->link];
	struct stage *stage = &s->stages[number];
	stage->allreduce_ns = fleet_reduce_ns(&f, link, plan->tp, n);
	stage->gather_ns = fleet_allreduce_ns(&f, link, plan->tp, plan->first_layer, end, n) -
			   2.0 * plan->layers * stage->allreduce_ns;
	if (number + 1 < s->p->stages_count) {
		stage->hop_busy_ns = fleet_hop_busy_ns(&f, plan->link_next, n);
		stage->hop_latency_ns = s->in->links[plan->link_next].latency_ns;
	}
}

static int prepare(struct simulation *s)
{
	const struct fleet_plan *p = s->p;
	s->ranks = calloc(p->ranks_count, sizeof *s->ranks);
	s->stages = calloc(p->stages_count, sizeof *s->stages);
	s->heap = calloc(s->out.micro_batches, sizeof *s->heap);
	s->out.stages = calloc(p->stages_count, sizeof *s->out.stages);
	if (!s->ranks || !s->stages || !s->heap || !s->out.stages)
		return -ENOMEM;
	uint64_t passes = (uint64_t)p->ranks_count * s->out.micro_batches * s->out.rounds;
	uint64_t most = FLEET_SIMULATE_STEPS / passes;
	most = most < LEAST_READS ? LEAST_READS : most;
	for (uint32_t i = 0; i < p->stages_count; i++)
		make_stage(s, i);
	for (uint32_t i = 0; i < p->ranks_count; i++) {
		int r = make_rank(s, i, most);
		if (r < 0)
			return r;
		if (s->ranks[i].slots)
			read_ahead(s, &s->ranks[i]);
	}
	return 0;
}

static void release(struct simulation *s)
{
	for (uint32_t i = 0; s->ranks && i < s->p->ranks_count; i++) {
		free(s->ranks[i].freed);
		free(s->ranks[i].arrived);
	}
	free(s->ranks);
	free(s->stages);
	free(s->heap);
}

/* ---- the run ---- */

// The first micro-batch counts the rounds.
static void run(struct simulation *s)
{
	uint32_t stages = s->p->stages_count, round = 0, half = s->out.rounds / 2;
	double last = 0;
	for (uint32_t m = 0; m < s->out.micro_batches; m++)
		push(s, (struct event){.micro = m});
	while (s->heap_count) {
		struct event e = pop(s);
		struct stage *stage = &s->stages[e.stage];
		double done = run_stage(s, e.stage, e.at);
		s->out.events++;
		if (e.stage + 1 < stages) {
			double sent = (done > stage->link_free ? done : stage->link_free) + stage->hop_busy_ns;
			stage->link_busy += s->measuring ? stage->hop_busy_ns : 0;
			stage->link_free = sent;
			push(s, (struct event){sent + stage->hop_latency_ns, e.stage + 1, e.micro});
			continue;
		}
		double back = done + s->in->overhead_ns;
		if (e.micro == 0) {
			last = back;
			if (++round == half) {
				s->from = back;
				s->measuring = true;
			}
			if (round == s->out.rounds)
				break;
		}
		push(s, (struct event){back, 0, e.micro});
	}
	double time = last - s->from;
	s->out.period_ns = time / (s->out.rounds - half);
	for (uint32_t i = 0; i < stages && time > 0; i++) {
		const struct fleet_stage *plan = &s->p->stages[i];
		struct fleet_simulate_stage *x = &s->out.stages[i];
		*x = (struct fleet_simulate_stage){.busy = fmin(s->stages[i].busy / time, 1),
			.stall = fmin(s->stages[i].stall / time, 1),
			.link = fmin(s->stages[i].link_busy / time, 1)};
		x->bubble = 1 - x->busy;
		for (uint32_t r = 0; r < plan->tp; r++)
			x->drive = fmax(x->drive, fmin(s->ranks[plan->first_rank + r].drive_busy / time, 1));
	}
}

int fleet_simulate(const struct fleet_input *in, const struct fleet_plan *p, uint32_t micro_batches, uint32_t positions,
	uint32_t rounds, struct fleet_simulation *ret, struct base_error *e)
{
	rounds = rounds ? rounds : DEFAULT_ROUNDS;
	if (rounds < 2 || rounds > FLEET_SIMULATE_ROUNDS || micro_batches == 0 || micro_batches > MOST_MICRO ||
		positions == 0)
		return base_error_set(e, -EINVAL,
			"simulate: %" PRIu32 " rounds of %" PRIu32 " micro-batches of %" PRIu32
			" positions; 2 to %u, 1 to %u and at least 1 are possible",
			rounds, micro_batches, positions, FLEET_SIMULATE_ROUNDS, MOST_MICRO);
	struct simulation s = {
		.in = in, .p = p, .out = {.micro_batches = micro_batches, .positions = positions, .rounds = rounds}};
	struct fleet_timing predicted;
	int r = prepare(&s);
	if (r == 0)
		run(&s);
	release(&s);
	if (r < 0) {
		free(s.out.stages);
		return base_error_set(e, r, "simulate: out of memory");
	}
	fleet_plan_time(in, p, micro_batches, positions, &predicted);
	s.out.predicted_ns = predicted.period_ns;
	// A last micro-batch may be short of positions.
	double tokens = fmin((double)micro_batches * positions, fleet_sequences(in));
	s.out.tokens_per_s = s.out.period_ns > 0 ? 1e9 / s.out.period_ns * tokens : 0;
	*ret = s.out;
	return 0;
}

void fleet_simulate_finish(struct fleet_simulation *s)
{
	free(s->stages);
	*s = (struct fleet_simulation){0};
}

#define PRINTED_STAGES 64u

void fleet_simulate_print(
	const struct fleet_input *in, const struct fleet_plan *p, const struct fleet_simulation *s, FILE *out)
{
	char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES];
	fprintf(out,
		"simulated: %.2f tokens/s, %s a round of %" PRIu32 " micro-batch%s of %" PRIu32
		"; predicted %s, ratio %.3f\n",
		s->tokens_per_s, base_units_format_duration((uint64_t)s->period_ns, a), s->micro_batches,
		s->micro_batches == 1 ? "" : "es", s->positions,
		base_units_format_duration((uint64_t)s->predicted_ns, b),
		s->predicted_ns > 0 ? s->period_ns / s->predicted_ns : 0);
	fprintf(out, "STAGE  BUSY%%  STALL%%  BUBBLE%%  DRIVE%%  LINK%%\n");
	for (uint32_t i = 0; i < p->stages_count && i < PRINTED_STAGES; i++) {
		const struct fleet_simulate_stage *x = &s->stages[i];
		fprintf(out, "%-5" PRIu32 "  %5.1f  %6.1f  %7.1f  %6.1f  %5.1f\n", i, 100 * x->busy, 100 * x->stall,
			100 * x->bubble, 100 * x->drive, 100 * x->link);
	}
	if (p->stages_count > PRINTED_STAGES)
		fprintf(out, "and %" PRIu32 " more\n", p->stages_count - PRINTED_STAGES);
}
