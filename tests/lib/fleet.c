// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include "tests/lib/fleet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "shard/rank/serve.h"

static void *stage_main(void *arg)
{
	struct stage *s = arg;
	const struct link_ops *ops = s->ops;
	struct link_group *g = NULL, *parts = NULL;
	s->status = ops->create(s->fds, s->members, s->me, 0, 0, LINK_UNTIL(SECONDS(100)), &g, &s->error);
	if (!s->status && s->parts > 1)
		s->status = ops->create(
			s->part_fds, s->parts, s->part, g->epoch, 65536, LINK_UNTIL(SECONDS(100)), &parts, &s->error);
	if (!s->status)
		s->status = rank_serve_until(ops, g, parts, NULL, &s->stop, &s->error);
	ops->close(parts);
	ops->close(g);
	return NULL;
}

static void connect_pair(int *a, int *b)
{
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	*a = pair[0];
	*b = pair[1];
}

void fleet_start(struct fleet *f, uint32_t stages, size_t ring_bytes)
{
	struct rank_shape shape;
	assert_int_equal(rank_shape_even(stages, 1, &shape), 0);
	fleet_start_shape(f, &link_local_ops, &shape, ring_bytes);
}

void fleet_start_shape(struct fleet *f, const struct link_ops *ops, const struct rank_shape *shape, size_t ring_bytes)
{
	int fds[1 + RANKS];
	struct base_error e;
	memset(f, 0, sizeof *f);
	memset(fds, 0xff, sizeof fds);
	f->ops = ops;
	f->shape = *shape;
	f->ranks = rank_shape_ranks(shape);
	assert_true(f->ranks <= RANKS);
	for (uint32_t i = 0; i < f->ranks; i++) {
		memset(f->stage[i].fds, 0xff, sizeof f->stage[i].fds);
		memset(f->stage[i].part_fds, 0xff, sizeof f->stage[i].part_fds);
	}
	for (uint32_t i = 0; i < f->ranks; i++) {
		struct stage *s = &f->stage[i];
		struct rank_place me = rank_shape_place(shape, i);
		uint32_t after[RANK_MAX_PARTS], count = rank_shape_receivers(shape, i, after);
		s->ops = ops;
		s->parts = shape->parts[me.stage];
		s->part = me.part;
		s->members = 1 + f->ranks;
		s->me = 1 + i;
		connect_pair(&fds[1 + i], &s->fds[0]);
		for (uint32_t k = 0; k < count; k++)
			connect_pair(&s->fds[rank_member(after[k])], &f->stage[after[k]].fds[rank_member(i)]);
		for (uint32_t part = s->part + 1; part < s->parts; part++)
			connect_pair(&s->part_fds[part], &f->stage[i + part - s->part].part_fds[s->part]);
	}
	for (uint32_t i = 0; i < f->ranks; i++)
		assert_int_equal(pthread_create(&f->stage[i].thread, NULL, stage_main, &f->stage[i]), 0);
	assert_int_equal(
		ops->create(fds, 1 + f->ranks, 0, EPOCH, ring_bytes, LINK_UNTIL(SECONDS(100)), &f->group, &e), 0);
	assert_int_equal(rank_message_scratch_create(&f->scratch), 0);
}

uint32_t fleet_last(const struct fleet *f)
{
	return rank_shape_answers(&f->shape);
}

void fleet_tell(struct fleet *f, uint32_t rank, const struct rank_message *m)
{
	struct link_request r;
	int64_t n = rank_message_encode(m, f->out, sizeof f->out);
	assert_true(n > 0);
	f->ops->send(f->group, 1 + rank, RANK_TAG_COMMAND, f->out, (size_t)n, &r);
	assert_int_equal(f->ops->wait(f->group, &r, SECONDS(100)), 0);
}

void fleet_tell_all(struct fleet *f, const struct rank_message *m)
{
	for (uint32_t i = 0; i < f->ranks; i++)
		fleet_tell(f, i, m);
}

static int hear_any(struct fleet *f, uint32_t rank)
{
	struct link_request r;
	struct base_error e;
	f->ops->receive(f->group, 1 + rank, RANK_TAG_REPLY, f->room, sizeof f->room, &r);
	int status = f->ops->wait(f->group, &r, SECONDS(100)); // sanitizers on a busy machine
	if (status == -ETIMEDOUT)
		f->ops->cancel(f->group, &r);
	if (!status)
		assert_int_equal(rank_message_decode(f->room, r.bytes, f->scratch, &f->in, &e), 0);
	return status;
}

int fleet_hear(struct fleet *f, uint32_t rank)
{
	for (;;) {
		int status = hear_any(f, rank);
		if (status)
			return status;
		if (f->in.type == RANK_MESSAGE_STATS)
			f->stats++;
		else if (f->in.type == RANK_MESSAGE_PROGRESS)
			f->progress++;
		else
			return 0;
	}
}

void fleet_hear_stats(struct fleet *f, uint32_t rank)
{
	do {
		assert_int_equal(hear_any(f, rank), 0);
	} while (f->in.type != RANK_MESSAGE_STATS);
}

void fleet_stop(struct fleet *f, int expected)
{
	struct link_request r[RANKS];
	int64_t n = rank_message_encode(&(struct rank_message){.type = RANK_MESSAGE_STOP}, f->out, sizeof f->out);
	for (uint32_t i = 0; i < f->ranks && expected == 0; i++)
		f->ops->send(f->group, 1 + i, RANK_TAG_COMMAND, f->out, (size_t)n, &r[i]);
	if (expected)
		f->ops->revoke(f->group);
	bool stopped = false;
	for (uint32_t i = 0; i < f->ranks; i++) {
		pthread_join(f->stage[i].thread, NULL);
		stopped |= f->stage[i].status == expected;
		if (f->ranks == 1 || f->stage[i].status != -ECONNRESET) // or a neighbour's end came before the STOP
			assert_int_equal(f->stage[i].status, expected);
	}
	assert_true(stopped);
	f->ops->close(f->group);
	rank_message_scratch_destroy(f->scratch);
}
