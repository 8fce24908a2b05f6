// SPDX-License-Identifier: Apache-2.0
// The planner: against every placement there is on small random fleets, and what people would notice of larger ones.
#include "tests/lib/testing.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "tests/unit/topology/fleet_scene.h"

#define CASES 600u
#define MOST_LAYERS 8u
#define MOST_DEVICES 8u

struct brute {
	const struct scene *s;
	struct fleet_map_entry stages[MOST_LAYERS];
	bool used[MOST_DEVICES];
	double best;
	unsigned tried;
};

static unsigned on_host(const struct scene *s, const char *host)
{
	unsigned n = 0;
	for (uint32_t d = 0; d < s->in.devices_count; d++)
		n += strcmp(s->devices[d].host, host) == 0;
	return n;
}

static bool may_share(const struct scene *s, uint32_t a, uint32_t b)
{
	const struct fleet_device *x = &s->devices[a], *y = &s->devices[b];
	bool same_host = strcmp(x->host, y->host) == 0;
	if (x->memory_bytes != y->memory_bytes || strcmp(x->rack, y->rack) != 0 ||
		x->bandwidths.drive_bytes_per_s != y->bandwidths.drive_bytes_per_s)
		return false;
	if (!same_host && (on_host(s, x->host) > 1 || on_host(s, y->host) > 1))
		return false;
	// Unmeasured links cannot carry it; those of a host fall back to those of the rack and so on.
	for (int c = same_host ? 0 : 1; c < FLEET_LINK_CLASSES; c++) {
		if (s->in.links[c].bytes_per_s > 0)
			return true;
	}
	return false;
}

static void try_stages(struct brute *b, uint32_t stages)
{
	struct fleet_plan p;
	if (fleet_plan_evaluate(&b->s->in, b->stages, stages, &p, NULL) < 0)
		return;
	double t = b->s->in.objective == FLEET_OBJECTIVE_ONE ? p.one.period_ns : p.full.period_ns;
	b->best = t < b->best ? t : b->best;
	b->tried++;
	fleet_plan_finish(&p);
}

static void brute_force(struct brute *b, uint32_t stages, uint32_t layer);

static void grow_group(struct brute *b, uint32_t stages, uint32_t layer, uint32_t from)
{
	struct fleet_map_entry *x = &b->stages[stages];
	for (uint32_t end = layer; x->devices_count && end < b->s->model.layers_count; end++) {
		x->first_layer = layer;
		x->last_layer = end;
		brute_force(b, stages + 1, end + 1);
	}
	for (uint32_t d = from; d < b->s->in.devices_count; d++) {
		if (b->used[d] || (x->devices_count && !may_share(b->s, x->devices[0], d)))
			continue;
		b->used[d] = true;
		x->devices[x->devices_count++] = d;
		grow_group(b, stages, layer, d + 1);
		x->devices_count--;
		b->used[d] = false;
	}
}

static void brute_force(struct brute *b, uint32_t stages, uint32_t layer)
{
	if (layer == b->s->model.layers_count) {
		try_stages(b, stages);
		return;
	}
	if (stages < MOST_LAYERS) {
		struct fleet_map_entry before = b->stages[stages];
		b->stages[stages] = (struct fleet_map_entry){.module = FLEET_MODULE_LAYERS};
		grow_group(b, stages, layer, 0);
		b->stages[stages] = before;
	}
}

static void no_placement_is_better_than_the_plan(void **state)
{
	unsigned fit = 0, parallel = 0, several = 0, micro = 0;
	struct scene *s = calloc(1, sizeof *s);
	for (uint64_t seed = 1; seed <= CASES; seed++) {
		make_scene(seed, s);
		struct brute b = {.s = s, .best = INFINITY};
		struct fleet_plan p;
		struct base_error e = {0};
		brute_force(&b, 0, 0);
		int r = fleet_plan_build(&s->in, &p, &e);
		if (isinf(b.best)) {
			assert_int_equal(r, -ENOMEM);
			assert_non_null(strstr(e.message, "bytes"));
			continue;
		}
		if (r < 0)
			fail_msg("seed %lu: %s", (unsigned long)seed, base_error_text(&e));
		double t = s->in.objective == FLEET_OBJECTIVE_ONE ? p.one.period_ns : p.full.period_ns;
		// A rank more counts 1 ns in the search, so that ties go to fewer.
		if (fabs(t - b.best) > 1e-7 * b.best + 8)
			fail_msg("seed %lu: planned %.3f ns, best of %u is %.3f ns", (unsigned long)seed, t, b.tried,
				b.best);
		assert_true(p.order_exact);
		fit++;
		parallel += p.ranks_count > p.stages_count;
		several += p.stages_count > 1;
		micro += p.full.micro_batches > 1;
		fleet_plan_finish(&p);
	}
	free(s);
	assert_true(fit > CASES / 2 && fit < CASES && parallel > 40 && several > 100 && micro > 25);
}

static const struct fleet_alternative *find_alternative(const struct fleet_plan *p, const char *name)
{
	for (uint32_t i = 0; i < p->alternatives_count; i++) {
		if (strcmp(p->alternatives[i].name, name) == 0)
			return &p->alternatives[i];
	}
	fail_msg("no alternative \"%s\"", name);
	return NULL;
}

static void one_machine_is_a_fleet_of_one(void **state)
{
	struct scene *s = small_model(1, 0);
	for (uint64_t mib = 20; mib < 400; mib += 5) {
		s->devices[0].memory_bytes = mib * MIB;
		uint64_t pass = 30 * (800000 + 1800000 + 8192) + 30 * MIB + 4096, huge = 2 * MIB;
		struct topology_plan_input in = {.pass_bytes = pass,
			.weights_all_bytes = (pass + huge - 1) / huge * huge,
			.weights_min_bytes = 2 * huge,
			.slots_bytes = huge,
			.slots_share = 8,
			.slots_most_bytes = 24 * MIB,
			.workspace_bytes = s->model.workspace_bytes,
			.kv_block_bytes = 30 * s->model.kv_block_bytes,
			.kv_block_tokens = 16,
			.context_tokens = 2048,
			.sequences = 8,
			.token_macs = 30 * 3500000 + 28000000,
			.memory_bytes = mib * MIB,
			.bandwidths = s->devices[0].bandwidths};
		struct topology_plan one;
		struct fleet_plan p;
		struct base_error a = {0}, b = {0};
		int r = topology_plan_build(&in, &one, &a);
		assert_int_equal(fleet_plan_build(&s->in, &p, &b), r);
		if (r < 0) {
			assert_string_equal(a.message, b.message);
			continue;
		}
		assert_int_equal(p.stages_count, 1);
		assert_int_equal(p.kv_blocks, one.kv_blocks);
		// What rounding KV to whole blocks leaves goes to the weights.
		uint64_t more = p.ranks[0].share.weights_bytes - one.weights_bytes;
		assert_true(more < in.kv_block_bytes);
		assert_true(p.ranks[0].share.hot_bytes - one.hot_bytes <= more);
		assert_int_equal(p.ranks[0].share.kv_bytes, one.kv_bytes);
		fleet_plan_finish(&p);
	}
	free(s);
}

static void heads_decide_how_many_share_a_stage(void **state)
{
	struct scene *s = small_model(3, 300 * MIB);
	struct fleet_plan p;
	char reason[192];
	assert_false(fleet_tp_possible(&s->model, 2, reason, sizeof reason));
	assert_string_equal(reason, "its 9 heads share 3 KV heads, which do not divide by 2");
	assert_true(fleet_tp_possible(&s->model, 3, reason, sizeof reason));
	s->model.block_columns = 256;
	assert_false(fleet_tp_possible(&s->model, 3, reason, sizeof reason));
	assert_non_null(strstr(reason, "blocks of 256"));
	s->model.block_columns = 32;
	// Everything hot, memory binds one stream: three hosts read a third each, when the link is quick.
	s->in.objective = FLEET_OBJECTIVE_ONE;
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c] = (struct fleet_link){.latency_ns = 2000, .bytes_per_s = 10e9};
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.stages_count, 1);
	assert_int_equal(p.stages[0].tp, 3);
	assert_string_equal(find_alternative(&p, "2 ranks in a stage")->reason,
		reason[0] ? "its 9 heads share 3 KV heads, which do not divide by 2" : "");
	fleet_plan_finish(&p);
	// A slow link does not carry it.
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c].latency_ns = 300000;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.stages[0].tp, 1);
	assert_non_null(strstr(find_alternative(&p, "3 ranks in a stage")->reason, "slower: link of"));
	fleet_plan_finish(&p);
	free(s);
}

/* Of devices that were measured: drives that bind are worth sharing layers, hosts of about the same figures are equal. */
static void measured_devices_share_layers(void **state)
{
	struct scene *s = small_model(3, 40 * MIB);
	struct fleet_device planned[6];
	struct fleet_plan p;
	struct base_error e = {0};
	for (uint32_t d = 0; d < 3; d++)
		s->devices[d].bandwidths.drive_bytes_per_s = 1e8 * (1 + 0.2 * d);
	s->devices[1].memory_bytes = 43 * MIB;
	for (int one = 0; one < 2; one++) {
		s->in.objective = one ? FLEET_OBJECTIVE_ONE : FLEET_OBJECTIVE_FULL;
		assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
		assert_int_equal(p.stages_count, 1);
		assert_int_equal(p.stages[0].tp, 3);
		for (uint32_t d = 0; d < 3; d++) {
			assert_int_equal(planned[d].memory_bytes, 40 * MIB);
			assert_true(planned[d].bandwidths.drive_bytes_per_s == 1e8);
		}
		assert_non_null(strstr(find_alternative(&p, "1 rank in every stage")->reason, "slower"));
		assert_non_null(strstr(find_alternative(&p, "2 ranks in every stage")->reason, "its 9 heads share"));
		fleet_plan_finish(&p);
	}
	/* What is wanted, or why not. */
	s->in.tp_least = s->in.tp_most = 2;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), -EINVAL);
	assert_string_equal(e.message, "2 ranks in a stage: its 9 heads share 3 KV heads, which do not divide by 2");
	s->in.tp_least = s->in.tp_most = 9;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), -ENOMEM);
	assert_string_equal(e.message, "9 ranks in a stage: there are 3 devices that are alike, not 9");
	s->in.tp_least = s->in.tp_most = 3;
	s->devices[2].bandwidths.drive_bytes_per_s = 1e10; // far from the others: no reason not to do what is wanted
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	assert_int_equal(p.stages[0].tp, 3);
	fleet_plan_finish(&p);
	/* Memory for everything and a link that is slow: layers stay whole, and nobody is asked to give anything up. */
	s->in.tp_least = s->in.tp_most = 0;
	for (uint32_t d = 0; d < 3; d++)
		s->devices[d].memory_bytes = (300 + d) * MIB;
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c].latency_ns = 300000;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	for (uint32_t i = 0; i < p.stages_count; i++)
		assert_int_equal(p.stages[i].tp, 1);
	assert_int_equal(planned[2].memory_bytes, 302 * MIB);
	fleet_plan_finish(&p);
	free(s);
}

static void put_in_racks(struct scene *s, const uint32_t *racks)
{
	for (uint32_t d = 0; d < s->in.devices_count; d++) {
		s->devices[d].bandwidths.drive_bytes_per_s = 1e8;
		snprintf(s->devices[d].rack, FLEET_NAME_BYTES, "r%u", racks[d]);
	}
}

/* One slow link between racks keeps no rack from sharing layers. */
static void parts_stay_in_a_rack(void **state)
{
	static const uint32_t racks[] = {0, 1, 0, 1, 1, 0};
	struct scene *s = small_model(6, 24 * MIB);
	struct fleet_device planned[6];
	struct fleet_plan p;
	struct base_error e = {0};
	put_in_racks(s, racks);
	s->in.links[FLEET_LINK_RACK] = (struct fleet_link){.latency_ns = 2000, .bytes_per_s = 10e9};
	s->in.links[FLEET_LINK_CLUSTER] = (struct fleet_link){.latency_ns = 1e7, .bytes_per_s = 1e8};
	for (int one = 0; one < 2; one++) {
		s->in.objective = one ? FLEET_OBJECTIVE_ONE : FLEET_OBJECTIVE_FULL;
		if (fleet_plan_build_racks(&s->in, planned, &p, &e))
			fail_msg("%s", base_error_text(&e));
		assert_int_equal(p.stages_count, 2);
		assert_int_equal(p.ranks_count, 6);
		for (uint32_t i = 0; i < p.ranks_count; i++)
			assert_int_equal(racks[p.ranks[i].device], racks[p.ranks[i / 3 * 3].device]);
		assert_true(racks[p.ranks[0].device] != racks[p.ranks[3].device]);
		assert_int_equal(p.stages[0].link, FLEET_LINK_RACK);
		assert_int_equal(p.stages[0].link_next, FLEET_LINK_CLUSTER);
		assert_string_equal(planned[1].rack, "r1");
		double aside = find_alternative(&p, "racks left aside")->tokens_per_s_full;
		assert_true(aside > 0 && aside < 1.2 * p.full.tokens_per_s);
		fleet_plan_finish(&p);
	}
	/* As it was without racks: the slowest of all links is that of all, and nobody shares. */
	s->in.links[FLEET_LINK_RACK] = s->in.links[FLEET_LINK_CLUSTER];
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	assert_int_equal(p.stages[0].tp, 1);
	fleet_plan_finish(&p);
	free(s);
}

/* Racks whose links are no slower than those inside, or that alone have too few devices, keep nobody from sharing. */
static void racks_are_left_aside_where_that_is_better(void **state)
{
	static const uint32_t racks[] = {0, 0, 1, 2};
	struct scene *s = small_model(3, 40 * MIB);
	struct fleet_device planned[4];
	struct fleet_plan p;
	struct base_error e = {0};
	put_in_racks(s, racks);
	s->in.links[FLEET_LINK_RACK] = (struct fleet_link){.latency_ns = 2000, .bytes_per_s = 10e9};
	s->in.links[FLEET_LINK_CLUSTER] = (struct fleet_link){.latency_ns = 5000, .bytes_per_s = 5e9};
	for (int wanted = 0; wanted < 2; wanted++) {
		s->in.tp_least = s->in.tp_most = wanted ? 3 : 0;
		if (fleet_plan_build_racks(&s->in, planned, &p, &e))
			fail_msg("%s", base_error_text(&e));
		assert_int_equal(p.stages_count, 1);
		assert_int_equal(p.stages[0].tp, 3);
		assert_int_equal(p.stages[0].link, FLEET_LINK_CLUSTER);
		for (uint32_t d = 0; d < 3; d++)
			assert_string_equal(planned[d].rack, "");
		const struct fleet_alternative *a = find_alternative(&p, "parts of a stage in one rack");
		assert_string_equal(a->reason, wanted ? "does not fit" : "slower");
		fleet_plan_finish(&p);
	}
	/* What is refused is refused as without racks. */
	s->in.tp_least = s->in.tp_most = 9;
	assert_int_equal(fleet_plan_build_racks(&s->in, planned, &p, &e), -ENOMEM);
	assert_string_equal(e.message, "9 ranks in a stage: there are 3 devices that are alike, not 9");
	s->in.tp_least = s->in.tp_most = 2;
	assert_int_equal(fleet_plan_build_racks(&s->in, planned, &p, &e), -EINVAL);
	/* A map says who shares, in whatever rack. */
	const struct fleet_map_entry entry = {.last_layer = 29, .devices = {0, 2, 1}, .devices_count = 3};
	s->in.map = FLEET_MAP_EXPLICIT;
	s->in.entries = &entry;
	s->in.entries_count = 1;
	s->in.tp_least = s->in.tp_most = 3;
	if (fleet_plan_build_racks(&s->in, planned, &p, &e))
		fail_msg("%s", base_error_text(&e));
	assert_int_equal(p.ranks[1].device, 2);
	fleet_plan_finish(&p);
	free(s);
}

/* One strong device and three weak ones, all bound by their drives: the strong one does not come down to the weak ones, and
 * these read at the same time. */
static void stages_have_numbers_of_ranks_of_their_own(void **state)
{
	struct scene *s = small_model(4, 30 * MIB);
	struct fleet_device planned[4];
	struct fleet_plan p, mean;
	struct base_error e = {0};
	for (uint32_t d = 1; d < 4; d++)
		s->devices[d].bandwidths.drive_bytes_per_s = 1e8 * (1 + 0.05 * d);
	s->devices[0].memory_bytes = 80 * MIB;
	for (int one = 0; one < 2; one++) {
		s->in.objective = one ? FLEET_OBJECTIVE_ONE : FLEET_OBJECTIVE_FULL;
		assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
		assert_int_equal(p.stages_count, 2);
		uint32_t strong = p.stages[0].tp == 1 ? 0 : 1;
		assert_int_equal(p.stages[strong].tp, 1);
		assert_int_equal(p.stages[1 - strong].tp, 3);
		assert_int_equal(p.ranks[p.stages[strong].first_rank].device, 0);
		assert_int_equal(planned[0].memory_bytes, 80 * MIB);
		assert_true(planned[0].bandwidths.drive_bytes_per_s == 1e9);
		for (uint32_t d = 1; d < 4; d++)
			assert_true(planned[d].bandwidths.drive_bytes_per_s == 1.05e8);
		assert_non_null(strstr(find_alternative(&p, "1 rank in every stage")->reason, "slower"));
		assert_non_null(strstr(find_alternative(&p, "3 ranks in every stage")->reason, "slower"));
		fleet_plan_finish(&p);
	}
	/* As many in each, where that is asked for; and not at all where it brings too little. */
	s->in.tp_even = true;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	for (uint32_t i = 1; i < p.stages_count; i++)
		assert_int_equal(p.stages[i].tp, p.stages[0].tp);
	fleet_plan_finish(&p);
	s->in.tp_even = false;
	for (uint32_t d = 1; d < 4; d++)
		s->devices[d].bandwidths.drive_bytes_per_s *= 100;
	for (int c = 0; c < FLEET_LINK_CLASSES; c++)
		s->in.links[c].latency_ns = 300000;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	for (uint32_t i = 0; i < p.stages_count; i++)
		assert_int_equal(p.stages[i].tp, 1);
	fleet_plan_finish(&p);
	/* An explicit map may say the same, and its devices are what they are. */
	const struct fleet_map_entry map[] = {
		{.module = FLEET_MODULE_LAYERS, .first_layer = 0, .last_layer = 19, .devices = {0}, .devices_count = 1},
		{.module = FLEET_MODULE_LAYERS,
			.first_layer = 20,
			.last_layer = 29,
			.devices = {1, 2, 3},
			.devices_count = 3}};
	s->in.map = FLEET_MAP_EXPLICIT;
	s->in.entries = map;
	s->in.entries_count = 2;
	assert_int_equal(fleet_plan_build_levelled(&s->in, planned, &p, &e), 0);
	assert_int_equal(p.stages_count, 2);
	assert_int_equal(p.stages[1].tp, 3);
	assert_int_equal(p.stages[1].layers, 10);
	assert_memory_equal(planned, s->devices, sizeof planned);
	assert_int_equal(fleet_plan_build(&s->in, &mean, &e), 0);
	assert_true(mean.full.period_ns == p.full.period_ns);
	fleet_plan_finish(&mean);
	fleet_plan_finish(&p);
	free(s);
}

static void maps_of_several_ranks(void **state)
{
	struct scene *s = small_model(7, 60 * MIB);
	struct fleet_plan p;
	s->in.tp_least = s->in.tp_most = 3;
	for (int m = 0; m < 2; m++) {
		s->in.map = m ? FLEET_MAP_SEQUENTIAL : FLEET_MAP_BALANCED;
		assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
		assert_int_equal(p.stages_count, m ? 1 : 2);
		for (uint32_t i = 0; i < p.ranks_count; i++) {
			assert_int_equal(p.ranks[i].device, i);
			assert_int_equal(p.ranks[i].tp_rank, i % 3);
		}
		fleet_plan_finish(&p);
	}
	free(s);
}

static void a_device_that_slows_is_left_out(void **state)
{
	struct scene *s = small_model(2, 80 * MIB);
	struct fleet_plan p;
	add_device(s, "slow", 40 * MIB, 1e7);
	s->devices[2].bandwidths.memory_bytes_per_s = 1e8;
	s->in.tp_most = 1;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.left_out_count, 1);
	for (uint32_t i = 0; i < p.ranks_count; i++)
		assert_true(p.ranks[i].device != 2);
	const struct fleet_alternative *a = find_alternative(&p, "with slow");
	assert_true(a->tokens_per_s_full > 0 && a->tokens_per_s_full < p.full.tokens_per_s);
	assert_non_null(strstr(a->reason, "slower"));
	fleet_plan_finish(&p);
	free(s);
}

static void uneven_hosts_get_uneven_stages(void **state)
{
	struct scene *s = small_model(2, 60 * MIB);
	struct fleet_plan p;
	s->devices[1].memory_bytes = 110 * MIB;
	s->in.tp_most = 1;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.stages_count, 2);
	uint32_t small = p.ranks[0].device == 0 ? 0 : 1;
	assert_true(p.stages[small].layers < p.stages[1 - small].layers);
	for (uint32_t i = 0; i < 2; i++) {
		const struct topology_plan *x = &p.ranks[i].share;
		assert_true(x->weights_bytes + x->kv_bytes + x->workspace_bytes <=
			    s->devices[p.ranks[i].device].memory_bytes);
		assert_int_equal(x->kv_bytes, p.kv_blocks * p.ranks[i].kv_block_bytes);
	}
	fleet_plan_finish(&p);
	free(s);
}

static void what_a_refusal_offers_is_enough(void **state)
{
	struct scene *s = small_model(3, 10 * MIB);
	struct fleet_plan p;
	struct base_error e = {0};
	unsigned context;
	s->model.context_tokens = 8192;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "bytes"));
	const char *more = strstr(e.message, "would help: "), *shorter = strstr(e.message, "a context of ");
	assert_non_null(more);
	assert_non_null(shorter);
	double mib = strtod(more + strlen("would help: "), NULL);
	assert_int_equal(sscanf(shorter, "a context of %u", &context), 1);
	s->model.context_tokens = context;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), 0);
	fleet_plan_finish(&p);
	s->model.context_tokens = 8192;
	for (unsigned i = 0; i < 3; i++)
		s->devices[i].memory_bytes += (uint64_t)(mib * (double)MIB) + MIB / 16; // the text is rounded
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), 0);
	fleet_plan_finish(&p);
	free(s);
}

/* ---- maps ---- */

struct map_case {
	const char *modules[6];
	uint32_t devices[6][3];
	const char *error; // NULL: accepted
};

static int build_map(struct scene *s, const struct map_case *c, struct fleet_plan *p, struct base_error *e)
{
	struct fleet_map_entry map[6] = {0};
	uint32_t count = 0;
	for (; count < 6 && c->modules[count]; count++) {
		int r = fleet_map_parse_modules(c->modules[count], 30, &map[count], e);
		if (r < 0)
			return r;
		for (unsigned k = 0; k < 3 && (k == 0 || c->devices[count][k]); k++)
			map[count].devices[map[count].devices_count++] = c->devices[count][k];
	}
	s->in.map = FLEET_MAP_EXPLICIT;
	s->in.entries = map;
	s->in.entries_count = count;
	return fleet_plan_build(&s->in, p, e);
}

static void maps_are_taken_or_refused_by_name(void **state)
{
	static const struct map_case cases[] = {
		{{"layers.0-9", "layers.10-29"}, {{0}, {1}}, NULL},
		{{"model.layers.10-29", "embed", "layers.0-9", "head"}, {{1}, {0}, {0}, {1}}, NULL},
		{{""}, {{2}}, NULL},
		{{"layers"}, {{0, 1, 2}}, NULL},
		{{"layers.0-9", "layers.9-29"}, {{0}, {1}}, "device_map: layer 9 is on na and on nb"},
		{{"layers.0-9", "layers.12-29"}, {{0}, {1}}, "device_map: layers 10-11 are on no device"},
		{{"layers.0-9", "layers.10-30"}, {{0}, {1}}, "device_map: layers.10-30: the model has layers 0 to 29"},
		{{"layers.0-9", "layers.10-19", "layers.20-29"}, {{0}, {1}, {0}},
			"device_map: na has layers 0-9 and 20-29: a device has one run of layers, with the same "
			"partners"},
		{{"layers.0-9", "layers.10-29", "head"}, {{0}, {1}, {0}},
			"device_map: head is on na, but it goes with layer 29, on nb"},
		{{"embed", "layers"}, {{1}, {0}}, "device_map: embed is on nb, but it goes with layer 0, on na"},
		{{"layers.0-9", "layers.10-29"}, {{0}, {1, 2}},
			"device_map: layers 10-29 on 2 devices, tensor parallel: its 9 heads share 3 KV heads, which "
			"do not "
			"divide by 2"},
		{{"blocks.3"}, {{0}}, "device_map: module \"blocks.3\" is none of embed, layers.N, layers.N-M, head"},
		{{"layers.9-3"}, {{0}}, "device_map: layers.9-3: the model has layers 0 to 29"},
		{{"layers.0-9", "layers.10-29"}, {{0}, {7}}, "device_map: there is no device number 7"},
	};
	struct scene *s = small_model(3, 200 * MIB);
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
		struct fleet_plan p;
		struct base_error e = {0};
		int r = build_map(s, &cases[i], &p, &e);
		if (cases[i].error) {
			assert_int_equal(r, -EINVAL);
			assert_string_equal(e.message, cases[i].error);
			continue;
		}
		if (r < 0)
			fail_msg("case %zu: %s", i, base_error_text(&e));
		fleet_plan_finish(&p);
	}
	free(s);
}

static void tiers_of_a_map_hold(void **state)
{
	struct scene *s = small_model(1, 300 * MIB);
	struct fleet_plan p;
	struct base_error e = {0};
	struct fleet_map_entry map[2] = {{.last_layer = 19, .devices_count = 1, .tier = FLEET_TIER_NVME},
		{.first_layer = 20, .last_layer = 29, .devices_count = 1}};
	s->in.map = FLEET_MAP_EXPLICIT;
	s->in.entries = map;
	s->in.entries_count = 2;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), 0);
	assert_true(p.ranks[0].share.cold_bytes >= 20ull * 2600000);
	fleet_plan_finish(&p);
	map[0].tier = FLEET_TIER_DEVICE;
	s->devices[0].memory_bytes = 100 * MIB;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "for what the device_map keeps in memory"));
	free(s);
}

static void pins_hold(void **state)
{
	struct scene *s = small_model(3, 200 * MIB);
	struct fleet_plan p;
	struct base_error e = {0};
	const struct fleet_map_entry pins[2] = {{.first_layer = 4, .last_layer = 5, .devices = {2}, .devices_count = 1},
		{.module = FLEET_MODULE_HEAD, .devices = {1}, .devices_count = 1}};
	s->in.entries = pins;
	s->in.entries_count = 2;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), 0);
	for (uint32_t i = 0; i < p.stages_count; i++) {
		const struct fleet_stage *x = &p.stages[i];
		if (x->first_layer <= 4 && x->first_layer + x->layers > 4)
			assert_int_equal(p.ranks[x->first_rank].device, 2);
	}
	assert_int_equal(p.ranks[p.ranks_count - 1].device, 1);
	fleet_plan_finish(&p);
	free(s);
}

static void balanced_and_sequential_are_what_they_say(void **state)
{
	struct scene *s = small_model(3, 120 * MIB);
	struct fleet_plan p;
	s->devices[1].memory_bytes = 240 * MIB;
	s->in.map = FLEET_MAP_BALANCED;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.stages_count, 3);
	assert_true(p.stages[1].layers > p.stages[0].layers && p.stages[1].layers > p.stages[2].layers);
	fleet_plan_finish(&p);
	s->in.map = FLEET_MAP_SEQUENTIAL;
	s->devices[0].memory_bytes = 70 * MIB;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_int_equal(p.stages_count, 2); // the second one holds the rest
	assert_int_equal(p.ranks[0].share.cold_bytes, 0);
	fleet_plan_finish(&p);
	free(s);
}

/* A device is full when its memory.kv is: the next one has the other layers. */
static void a_kv_budget_fills_a_device(void **state)
{
	struct scene *s = small_model(3, 120 * MIB);
	uint64_t layer = s->model.kv_block_bytes * (s->model.context_tokens / s->model.kv_block_tokens);
	assert_true(layer > 0);
	struct fleet_plan p;
	struct base_error e = {0};
	s->in.map = FLEET_MAP_SEQUENTIAL;
	s->devices[0].kv_budget_bytes = 7 * layer;
	s->devices[1].kv_budget_bytes = 8 * layer + layer / 2;
	if (fleet_plan_build(&s->in, &p, &e))
		fail_msg("%s", e.message);
	assert_int_equal(p.stages_count, 3);
	assert_int_equal(p.stages[0].layers, 7);
	assert_int_equal(p.stages[1].layers, 8);
	assert_int_equal(p.stages[2].layers, 15);
	fleet_plan_finish(&p);
	s->in.map = FLEET_MAP_BALANCED;
	if (fleet_plan_build(&s->in, &p, &e))
		fail_msg("%s", e.message);
	assert_true(p.stages[0].layers <= 7 && p.stages[1].layers <= 8);
	fleet_plan_finish(&p);
	/* The last one has to take what is left. */
	s->in.map = FLEET_MAP_SEQUENTIAL;
	s->devices[2].kv_budget_bytes = 14 * layer;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "memory.kv is"));
	free(s);
}

// A node that joined a moment ago has no figures yet: it gets no more than a slow one would.
static void what_was_not_measured_is_not_fast(void **state)
{
	struct scene *s = small_model(2, 120 * MIB);
	struct fleet_plan p, q;
	s->in.tp_most = 1;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	s->devices[1].bandwidths = (struct topology_bandwidths){0};
	assert_int_equal(fleet_plan_build(&s->in, &q, NULL), 0);
	assert_true(p.measured && !q.measured && p.one.tokens_per_s > 0 && q.one.tokens_per_s == 0);
	assert_int_equal(p.stages_count, q.stages_count);
	for (uint32_t i = 0; i < p.stages_count; i++)
		assert_int_equal(p.stages[i].layers, q.stages[i].layers);
	for (uint32_t i = 0; i < q.ranks_count; i++)
		assert_true((q.ranks[i].share.pass_ns_memory > 0) == (q.ranks[i].device == 0));
	fleet_plan_finish(&p);
	fleet_plan_finish(&q);
	free(s);
}

static void hostile_input_is_refused(void **state)
{
	struct scene *s = small_model(2, 100 * MIB);
	struct fleet_plan p;
	struct base_error e = {0};
	snprintf(s->devices[1].name, sizeof s->devices[1].name, "na");
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EEXIST);
	assert_string_equal(e.message, "plan: two devices are called \"na\"");
	snprintf(s->devices[1].name, sizeof s->devices[1].name, "nb");
	s->layers[3].mlp_bytes = UINT64_MAX - 5;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EOVERFLOW);
	s->layers[3].mlp_bytes = 0;
	s->model.kv_block_bytes = UINT64_MAX / 3;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EOVERFLOW);
	s->model.kv_block_bytes = 1024;
	s->in.links[1].latency_ns = -1;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EINVAL);
	s->in.links[1].latency_ns = 0;
	s->in.devices_count = 0;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EINVAL);
	s->model.layers_count = 100000;
	assert_int_equal(fleet_plan_build(&s->in, &p, &e), -EINVAL);
	free(s);
}

// 126 layers on 64 equal devices, then on 64 that all differ: the first exact in every order, the second in its cuts.
static void large_fleets_are_planned(void **state)
{
	struct scene *s = small_model(0, 0);
	struct fleet_plan p;
	for (unsigned l = 0; l < 126; l++)
		s->layers[l] = (struct fleet_layer){.attention_bytes = 600 * MIB,
			.mlp_bytes = 2400 * MIB,
			.whole_bytes = 65536,
			.macs = 3100000000};
	s->model.layers_count = 126;
	s->model.heads = 128;
	s->model.kv_heads = 8;
	s->model.mlp_blocks = 208;
	s->model.width = 16384;
	for (unsigned d = 0; d < 64; d++) {
		char name[16];
		snprintf(name, sizeof name, "n%u", d);
		add_device(s, name, 8192 * MIB, 3e9);
	}
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_true(p.order_exact && p.full.tokens_per_s > 0);
	fleet_plan_finish(&p);
	for (unsigned d = 0; d < 64; d++)
		s->devices[d].memory_bytes += d * 64 * MIB;
	s->in.tp_most = 1;
	assert_int_equal(fleet_plan_build(&s->in, &p, NULL), 0);
	assert_false(p.order_exact);
	fleet_plan_finish(&p);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_placement_is_better_than_the_plan),
		cmocka_unit_test(one_machine_is_a_fleet_of_one),
		cmocka_unit_test(heads_decide_how_many_share_a_stage),
		cmocka_unit_test(measured_devices_share_layers),
		cmocka_unit_test(stages_have_numbers_of_ranks_of_their_own),
		cmocka_unit_test(parts_stay_in_a_rack),
		cmocka_unit_test(racks_are_left_aside_where_that_is_better),
		cmocka_unit_test(maps_of_several_ranks),
		cmocka_unit_test(a_device_that_slows_is_left_out),
		cmocka_unit_test(uneven_hosts_get_uneven_stages),
		cmocka_unit_test(what_a_refusal_offers_is_enough),
		cmocka_unit_test(maps_are_taken_or_refused_by_name),
		cmocka_unit_test(tiers_of_a_map_hold),
		cmocka_unit_test(pins_hold),
		cmocka_unit_test(balanced_and_sequential_are_what_they_say),
		cmocka_unit_test(a_kv_budget_fills_a_device),
		cmocka_unit_test(what_was_not_measured_is_not_fast),
		cmocka_unit_test(hostile_input_is_refused),
		cmocka_unit_test(large_fleets_are_planned),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
