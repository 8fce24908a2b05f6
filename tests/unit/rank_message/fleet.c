// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/testing.h"

#include "tests/unit/rank_message/fleet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "shard/rank/serve.h"

static const struct link_ops *const ops = &link_local_ops;

static void *stage_main(void *arg)
{
	struct stage *s = arg;
	struct link_group *g;
	s->status = ops->create(s->fds, s->members, s->me, 0, 0, SECONDS(10), &g, &s->error);
	if (s->status)
		return NULL;
	s->status = rank_serve_until(ops, g, NULL, &s->stop, &s->error);
	ops->close(g);
	return NULL;
}

void fleet_start(struct fleet *f, uint32_t stages, size_t ring_bytes)
{
	int fds[1 + STAGES] = {-1, -1, -1, -1}, pair[2];
	struct base_error e;
	memset(f, 0, sizeof *f);
	f->stages = stages;
	for (uint32_t i = 0; i < stages; i++)
		memset(f->stage[i].fds, 0xff, sizeof f->stage[i].fds);
	for (uint32_t i = 0; i < stages; i++) {
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		fds[1 + i] = pair[0];
		f->stage[i].fds[0] = pair[1];
		if (i + 1 == stages)
			break;
		assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
		f->stage[i].fds[2 + i] = pair[0];
		f->stage[i + 1].fds[1 + i] = pair[1];
	}
	for (uint32_t i = 0; i < stages; i++) {
		f->stage[i].members = 1 + stages;
		f->stage[i].me = 1 + i;
		assert_int_equal(pthread_create(&f->stage[i].thread, NULL, stage_main, &f->stage[i]), 0);
	}
	assert_int_equal(ops->create(fds, 1 + stages, 0, EPOCH, ring_bytes, SECONDS(10), &f->group, &e), 0);
	assert_int_equal(rank_message_scratch_create(&f->scratch), 0);
}

void fleet_tell(struct fleet *f, uint32_t stage, const struct rank_message *m)
{
	struct link_request r;
	int64_t n = rank_message_encode(m, f->out, sizeof f->out);
	assert_true(n > 0);
	ops->send(f->group, 1 + stage, RANK_TAG_COMMAND, f->out, (size_t)n, &r);
	assert_int_equal(ops->wait(f->group, &r, SECONDS(10)), 0);
}

void fleet_tell_all(struct fleet *f, const struct rank_message *m)
{
	for (uint32_t i = 0; i < f->stages; i++)
		fleet_tell(f, i, m);
}

int fleet_hear(struct fleet *f, uint32_t stage)
{
	for (;;) {
		struct link_request r;
		struct base_error e;
		ops->receive(f->group, 1 + stage, RANK_TAG_REPLY, f->room, sizeof f->room, &r);
		int status = ops->wait(f->group, &r, SECONDS(10));
		if (status == -ETIMEDOUT)
			ops->cancel(f->group, &r);
		if (status)
			return status;
		assert_int_equal(rank_message_decode(f->room, r.bytes, f->scratch, &f->in, &e), 0);
		if (f->in.type == RANK_MESSAGE_STATS)
			f->stats++;
		else if (f->in.type == RANK_MESSAGE_PROGRESS)
			f->progress++;
		else
			return 0;
	}
}

void fleet_stop(struct fleet *f, int expected)
{
	struct link_request r[STAGES];
	int64_t n = rank_message_encode(&(struct rank_message){.type = RANK_MESSAGE_STOP}, f->out, sizeof f->out);
	for (uint32_t i = 0; i < f->stages && expected == 0; i++)
		ops->send(f->group, 1 + i, RANK_TAG_COMMAND, f->out, (size_t)n, &r[i]);
	if (expected)
		ops->revoke(f->group);
	bool stopped = false;
	for (uint32_t i = 0; i < f->stages; i++) {
		pthread_join(f->stage[i].thread, NULL);
		stopped |= f->stage[i].status == expected;
		if (f->stages == 1 || f->stage[i].status != -ECONNRESET) // or a neighbour's end came before the STOP
			assert_int_equal(f->stage[i].status, expected);
	}
	assert_true(stopped);
	ops->close(f->group);
	rank_message_scratch_destroy(f->scratch);
}
