/* SPDX-License-Identifier: Apache-2.0
 * What the files of the planner share: fleet.c (the whole), cost.c (what a run of layers costs), search.c (the
 * search), level.c (devices that are measured), racks.c (the same in several racks), map.c (device maps), alternatives.c
 * (what was not chosen), refuse.c and explain.c (words). Not for other rooms.
 */
#pragma once

#include "topology/fleet/fleet.h"

#define FLEET_NONE UINT32_MAX

struct fleet_work {
	const struct fleet_input *given; // by the caller
	const struct fleet_input *in; // the same, or `filled`
	struct fleet_input filled; // with a rate for everything that was not measured
	struct fleet_device *devices; // of filled
	uint32_t layers;
	uint64_t *attention, *mlp, *whole, *macs; // (layers + 1): sums of what comes before
	uint64_t *streamed, *kept; // (layers + 1): the same of matrices that a map sends to the drive, keeps in memory
	uint32_t *pin; // (layers): the device that a pin names, FLEET_NONE
	uint32_t *host, *rack; // (devices): equal numbers, equal names
	uint32_t *on_host; // (hosts): devices
	bool *pinned; // (devices): a pin names it
	uint64_t kv_blocks; // that every rank has room for
};

int fleet_work_init(struct fleet_work *f, const struct fleet_input *in, struct base_error *e);
void fleet_work_finish(struct fleet_work *f);

enum fleet_link_class fleet_link_between(const struct fleet_work *f, uint32_t a, uint32_t b);
/* The same numbers, and the same links to all others. */
bool fleet_same_kind(const struct fleet_work *f, uint32_t first, uint32_t second);
uint64_t fleet_blocks_of_sequence(const struct fleet_model *m);

/* ---- costs ---- */

struct fleet_run { // parts of the cost of a run of layers on a device with its slice; ns
	double disk, ring, memory, token; // c / B, S / B, max(memory, PCIe), compute of one position
};
/* The planner's input for a device with layers [first, end) cut for tp ranks. kv_blocks 0: its own choice. */
void fleet_share_input(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end, uint32_t tp,
	uint64_t kv_blocks, struct topology_plan_input *ret);
uint64_t fleet_kv_block_bytes(const struct fleet_work *f, uint32_t first, uint32_t end, uint32_t tp);
/* -ENOMEM if it does not fit, -EXDEV against a pin or a tier; e may be NULL. share may be NULL. */
int fleet_run_cost(const struct fleet_work *f, uint32_t device, uint32_t first, uint32_t end, uint32_t tp,
	struct fleet_run *ret_run, struct topology_plan *ret_share, struct base_error *e);
double fleet_reduce_ns(const struct fleet_work *f, const struct fleet_link *link, uint32_t tp, uint32_t positions);
double fleet_allreduce_ns(const struct fleet_work *f, const struct fleet_link *link, uint32_t tp, uint32_t first,
	uint32_t end, uint32_t positions);
/* service and active of a run, its allreduces included */
void fleet_run_time(
	const struct fleet_run *r, double allreduce_ns, uint32_t positions, double *ret_service, double *ret_active);
double fleet_hop_busy_ns(const struct fleet_work *f, enum fleet_link_class c, uint32_t positions);

/* ---- placements ---- */

struct fleet_cut {
	uint32_t first, end, tp;
	uint32_t devices[FLEET_TP];
};
#define FLEET_STAGES FLEET_LAYERS

/* Of what the input's objective asks for. */
double fleet_plan_period(const struct fleet_input *in, const struct fleet_plan *p);
/* All of a plan but epoch, alternatives and text. */
int fleet_cut_plan(const struct fleet_work *f, const struct fleet_cut *stages, uint32_t count,
	struct fleet_plan *ret_plan, struct base_error *e);
/* KV blocks that all ranks of a placement would choose by themselves, at most. */
uint64_t fleet_choose_blocks(const struct fleet_work *f, const struct fleet_cut *stages, uint32_t count);

/* Sequences of a batch go in k micro-batches: the k to try, in order; returns how many. */
#define FLEET_MICRO 16u
uint32_t fleet_micro_batches(const struct fleet_input *in, uint32_t ret_k[FLEET_MICRO]);
uint32_t fleet_sequences(const struct fleet_input *in);

struct fleet_found {
	double period_ns; // of the micro-batches that it is best for
	uint32_t micro_batches, count;
	bool order_exact;
};
struct fleet_limits {
	uint32_t use; // a device that must be used, or more than use_least of its kind; FLEET_NONE
	uint32_t use_least;
	uint32_t tp_least, tp_most;
	bool one_stage;
	bool quick; // of many kinds: one order is enough
};
struct fleet_limits fleet_limits_of(const struct fleet_input *in);
/* The best placement for f->kv_blocks. -ENOMEM: none fits. ret_stages: (FLEET_STAGES). */
int fleet_search(const struct fleet_work *f, const struct fleet_limits *limits, struct fleet_cut *ret_stages,
	struct fleet_found *ret_found);

/* ---- maps: stages out of modes other than auto; by name what is wrong ---- */
int fleet_map_check(const struct fleet_input *in, struct base_error *e);
int fleet_map_explicit(
	const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count, struct base_error *e);
void fleet_map_balanced(const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count);
void fleet_map_sequential(const struct fleet_work *f, struct fleet_cut *ret_stages, uint32_t *ret_count);

/* Says why nothing fits: -ENOMEM. */
int fleet_refuse(const struct fleet_work *f, struct base_error *e);
/* One more of p's, with its name; NULL: there is no room. */
struct fleet_alternative *fleet_alternative_add(struct fleet_plan *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* What was not chosen, and what would lift what binds: alternatives.c. */
void fleet_add_alternatives(const struct fleet_work *f, struct fleet_plan *p);
void fleet_advise(const struct fleet_work *f, struct fleet_plan *p);
/* Service and active time of a stage for n positions, and what binds it. */
struct fleet_stage_time {
	double service, active, work; // work: of active, what is not waiting for the drive
	enum topology_resource binding;
};
struct fleet_stage_time fleet_time_stage(
	const struct fleet_work *f, const struct fleet_plan *p, uint32_t number, uint32_t n);
