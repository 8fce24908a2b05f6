// SPDX-License-Identifier: Apache-2.0
/* The engine while its ranks come and go: those of several hosts, and those that are there and say nothing. */
#include "tests/lib/testing.h"

#include <unistd.h>

#include "tests/unit/engine/bench.h"

/* Ranks of several hosts: another shape in each life. */
struct fleet {
	struct bench *bench;
	uint32_t lives, scattered;
	uint32_t max_running; // 0: many
	_Atomic uint32_t questions;
	_Atomic bool away;
	_Atomic bool unlucky; // nobody can be connected
	_Atomic bool deaf; // they are connected, and read nothing
	struct rank_assign assign[FAKE_RANKS];
};

/* ---- ranks that are connected and read nothing ---- */

#define DEAF_STAGES 4u // of two parts: more than there are small messages for one sequence
#define DEAF_RANKS (2 * DEAF_STAGES)

static _Atomic uint32_t deaf_waits;

static void deaf_send(
	struct link_group *g, uint32_t to, uint32_t tag, const void *data, size_t n, struct link_request *r)
{
	r->status = -EINPROGRESS;
}

static void deaf_receive(
	struct link_group *g, uint32_t from, uint32_t tag, void *data, size_t n, struct link_request *r)
{
	r->status = -EINPROGRESS;
}

static int deaf_test(struct link_group *g, struct link_request *r)
{
	return -EINPROGRESS;
}

static int deaf_wait(struct link_group *g, struct link_request *r, uint64_t deadline_ns)
{
	atomic_fetch_add(&deaf_waits, 1);
	while (base_clock_now_ns() < deadline_ns)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	return -ETIMEDOUT;
}

static int deaf_progress(struct link_group *g, uint32_t budget)
{
	return 0;
}

static int deaf_event_fd(struct link_group *g)
{
	return -1;
}

static void deaf_end(struct link_group *g)
{
}

static const struct link_ops deaf_ops = {.send = deaf_send,
	.receive = deaf_receive,
	.test = deaf_test,
	.wait = deaf_wait,
	.progress = deaf_progress,
	.event_fd = deaf_event_fd,
	.revoke = deaf_end,
	.close = deaf_end};

static int gather_deaf(struct fleet *f, struct engine_gathered *ret_gathered)
{
	static struct link_group group = {.ops = &deaf_ops, .members = 1 + DEAF_RANKS};
	static struct rank_assign assign[DEAF_RANKS];
	for (uint32_t i = 0; i < DEAF_RANKS; i++)
		assign[i].config.slice = (struct pack_slice){.layers = 1, .tp_rank = i % 2, .tp_size = 2};
	group.epoch = 100 + f->lives++;
	*ret_gathered = (struct engine_gathered){.group = &group, .epoch = group.epoch, .assign = assign};
	assert_int_equal(rank_shape_even(DEAF_STAGES, 2, &ret_gathered->shape), 0);
	return 0;
}

/* ---- */

static int gather(
	void *context, const struct link_patience *patience, struct engine_gathered *ret_gathered, struct base_error *e)
{
	static const struct rank_shape shapes[] = {{2, {1, 1}}, {2, {1, 3}}, {1, {1}}, {2, {3, 1}}};
	struct fleet *f = context;
	struct fake_ranks *ranks = &f->bench->ranks;
	struct engine_starter one = fake_ranks_starter(ranks);
	int fds[1 + FAKE_RANKS] = {-1};
	atomic_fetch_add(&f->questions, 1);
	if (f->away)
		return base_error_set(e, -EHOSTDOWN, "node-b is missing");
	if (f->unlucky)
		return base_error_set(e, -ECONNRESET, "node-b does not come");
	if (f->deaf)
		return gather_deaf(f, ret_gathered);
	if (f->questions < 3)
		return base_error_set(e, -EAGAIN, "node-b packs");
	for (uint32_t i = 0; i < FAKE_RANKS; i++)
		one.stop(one.context, i);
	ranks->shape = shapes[f->lives % 4];
	uint32_t count = rank_shape_ranks(&ranks->shape);
	for (uint32_t i = 0; i < count; i++) {
		struct rank_place p = rank_shape_place(&ranks->shape, i);
		assert_int_equal(one.start(one.context, i, &fds[1 + i], e), 0);
		f->assign[i] = (struct rank_assign){
			.config.slice = {.tp_rank = p.part, .tp_size = ranks->shape.parts[p.stage]}};
	}
	uint64_t epoch = 100 + f->lives++;
	*ret_gathered = (struct engine_gathered){.epoch = epoch, .shape = ranks->shape, .assign = f->assign};
	int status = link_local_ops.create(fds, 1 + count, 0, epoch, 65536, patience, &ret_gathered->group, e);
	for (uint32_t i = 1; status && i <= count; i++)
		close(fds[i]);
	f->scattered += status != 0;
	return status;
}

static void scatter(void *context)
{
	((struct fleet *)context)->scattered++;
}

static struct bench *fleet_create(struct fleet *f)
{
	struct bench *b = f->bench = bench_create();
	b->config.stages = FAKE_RANKS;
	b->config.max_restarts = 1;
	if (f->max_running) {
		b->config.max_running = f->max_running;
		b->config.stuck_ns = 600 * SECOND; // they are never given up
	}
	b->config.starter = (struct engine_starter){.gather = gather, .scatter = scatter, .context = f};
	b->ranks.delay_ns = 1000000;
	assert_int_equal(engine_create(&b->config, &b->engine, NULL), 0);
	wait_state(b, ENGINE_READY);
	return b;
}

static void fleet_destroy(struct fleet *f)
{
	struct engine_starter one = fake_ranks_starter(&f->bench->ranks);
	engine_destroy(f->bench->engine);
	f->bench->engine = NULL;
	assert_int_equal(f->scattered, f->lives);
	for (uint32_t i = 0; i < FAKE_RANKS; i++)
		one.stop(one.context, i);
	bench_destroy(f->bench);
}

/* Hosts that are lost again and again are as none: requests are refused, but the model is there when the hosts are. */
static void test_gathered_ranks_often_lost(void **state)
{
	struct fleet f = {0};
	struct bench *b = fleet_create(&f);
	assert_int_equal(submit(b, make_request(b, 0, 10, 60)), 0);
	f.unlucky = true;
	engine_regather(b->engine, "node-b is lost");
	testing_wait_until(load_of(b).down);
	struct request *r = make_request(b, 1, 10, 5);
	struct base_error e = {0};
	assert_int_equal(engine_submit(b->engine, r, NULL, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "node-b does not come"));
	f.unlucky = false;
	wait_state(b, ENGINE_READY);
	assert_int_equal(submit(b, r), 0);
	for (uint32_t i = 0; i < 2; i++)
		wait_reader(&b->reader[i], 0);
	check_hash_output(b, 0, 10, 60);
	check_hash_output(b, 1, 10, 5);
	fleet_destroy(&f);
}

static void test_gathered_ranks(void **state)
{
	struct fleet f = {0};
	struct bench *b = fleet_create(&f);
	struct engine_load load;
	assert_true(f.questions >= 3);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.epoch, 100);
	assert_int_equal(load.shape.stages, 2);
	for (uint32_t i = 0; i < 8; i++)
		assert_int_equal(submit(b, make_request(b, i, 10 + i * 20, 60)), 0);
	wait_reader(&b->reader[0], 5);
	engine_regather(b->engine, "node-c joined");
	testing_wait_until(load_of(b).epoch == 101);
	b->ranks.die_next = true;
	assert_int_equal(submit(b, make_request(b, 9, 10, 5)), 0); // the others may be over by then
	for (uint32_t i = 0; i < 8; i++) {
		wait_reader(&b->reader[i], 0);
		check_hash_output(b, i, 10 + i * 20, 60);
	}
	wait_reader(&b->reader[9], 0);
	check_hash_output(b, 9, 10, 5);
	engine_get_load(b->engine, &load);
	assert_int_equal(load.epoch, 102);
	assert_int_equal(load.shape.stages, 1);
	/* Nothing can hold the model: requests are refused with the reason until it can. */
	f.away = true;
	engine_regather(b->engine, "node-b is lost");
	testing_wait_until(load_of(b).down);
	struct request *r = make_request(b, 8, 10, 5);
	struct base_error e = {0};
	uint64_t retry = 0;
	assert_int_equal(engine_submit(b->engine, r, &retry, &e), -EHOSTDOWN);
	assert_non_null(strstr(e.message, "node-b is missing"));
	assert_true(retry > 0);
	f.away = false;
	wait_state(b, ENGINE_READY);
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[8], 0);
	check_hash_output(b, 8, 10, 5);
	fleet_destroy(&f);
}

/* While no pass can be sent: a request with a deadline ends in time, and so does "held", which is request 0, when it is
 * aborted. */
static void end_late_and_held(struct bench *b)
{
	struct request *r = make_request(b, 1, 10, 5);
	r->deadline_ns = base_clock_now_ns() + 50000000;
	assert_int_equal(submit(b, r), 0);
	wait_reader(&b->reader[1], 0);
	assert_int_equal(b->reader[1].error.code, -ETIME);
	assert_int_equal(engine_abort(b->engine, "held"), 0);
	wait_reader(&b->reader[0], 0);
	assert_int_equal(b->reader[0].error.code, -ECANCELED);
}

/* The rank dies while it computes the first request, and the next one is there but says nothing, not even hello.
 * Whoever waits for it meanwhile is heeded: nothing of this comes after it was given up, which an event would say. */
static void wait_for_mute_rank(struct bench *b)
{
	b->ranks.mute_starts = 1;
	b->ranks.die_at = b->ranks.passes + 8;
	struct request *r = make_request(b, 0, 10, 60);
	snprintf(r->id, sizeof r->id, "held");
	assert_int_equal(submit(b, r), 0);
	testing_wait_until(b->ranks.mutes);
	assert_int_equal(b->ranks.mutes, 1);
	uint32_t events = b->events;
	end_late_and_held(b);
	assert_int_equal(submit(b, make_request(b, 2, 10, 5)), 0);
	assert_int_equal(b->events, events);
	engine_destroy(b->engine);
	b->engine = NULL;
	wait_reader(&b->reader[2], 0);
	assert_int_equal(b->reader[2].error.code, -EHOSTDOWN);
	assert_int_equal(b->events, events);
}

static void test_nobody_waits_for_a_mute_rank(void **state)
{
	struct bench *b = bench_create();
	start(b);
	wait_for_mute_rank(b);
	bench_destroy(b);
	struct fleet f = {0};
	b = fleet_create(&f);
	wait_for_mute_rank(b);
	fleet_destroy(&f);
}

/* While the ranks of the next life do not even read what they are to load, requests end in time, and so does the
 * engine. */
static void test_nobody_waits_for_deaf_ranks(void **state)
{
	struct fleet f = {.max_running = 1};
	struct bench *b = fleet_create(&f);
	f.deaf = true;
	engine_regather(b->engine, "node-c joined");
	testing_wait_until(atomic_load(&deaf_waits));
	struct request *r = make_request(b, 0, 10, 5);
	snprintf(r->id, sizeof r->id, "held");
	assert_int_equal(submit(b, r), 0);
	end_late_and_held(b);
	assert_int_equal(load_of(b).epoch, 101); // still these ranks
	fleet_destroy(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gathered_ranks),
		cmocka_unit_test(test_gathered_ranks_often_lost),
		cmocka_unit_test(test_nobody_waits_for_a_mute_rank),
		cmocka_unit_test(test_nobody_waits_for_deaf_ranks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
