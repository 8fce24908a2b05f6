// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/fake_rank.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "shard/kv/kv.h"
#include "shard/link/link.h"
#include "shard/rank/message.h"

#define MESSAGE_BYTES (1u << 20)

struct life { // of one rank
	struct fake_rank *me;
	struct link_group *group;
	struct rank_message_scratch *scratch;
	uint8_t *in, *out;
	uint32_t *memory; // (kv_blocks * KV_BLOCK_TOKENS)
	uint32_t prompt[RANK_MAX_SEQUENCES];
	bool open[RANK_MAX_SEQUENCES];
	bool hung, io_dead;
	struct rank_message command, reply;
};

uint32_t fake_rank_next(const struct fake_ranks *f, const uint32_t *tokens, uint32_t count)
{
	uint64_t h = 1469598103934665603ull;
	for (uint32_t i = 0; i < count; i++)
		h = (h ^ tokens[i]) * 1099511628211ull;
	return 3 + (uint32_t)(h >> 32) % (f->vocab - 3); // not one of the special tokens
}

static bool stopped(struct life *l)
{
	struct pollfd p = {.fd = l->me->stop_pipe[0], .events = POLLIN};
	return poll(&p, 1, 0) > 0;
}

/* Until the message is gone or the test stops the rank. */
static bool wait_for(struct life *l, struct link_request *r)
{
	for (;;) {
		int status = l->group->ops->wait(l->group, r, base_clock_now_ns() + 20000000);
		if (status != -ETIMEDOUT)
			return status == 0;
		if (stopped(l))
			return false;
	}
}

static bool send_reply(struct life *l)
{
	int64_t n = rank_message_encode(&l->reply, l->out, MESSAGE_BYTES);
	assert(n > 0);
	if (l->me->all->other_build)
		memcpy(l->out, &(uint32_t){RANK_MESSAGE_VERSION + 1}, sizeof(uint32_t));
	struct link_request r;
	l->group->ops->send(l->group, 0, RANK_TAG_REPLY, l->out, (size_t)n, &r);
	return wait_for(l, &r);
}

static bool assign(struct life *l)
{
	struct fake_ranks *f = l->me->all;
	if (f->fail_assign) {
		l->reply = (struct rank_message){.type = RANK_MESSAGE_FAILED};
		base_error_set(&l->reply.failed, -ENOMEM, "memory.weights: 12 bytes short");
		send_reply(l);
		return false;
	}
	l->reply = (struct rank_message){
		.type = RANK_MESSAGE_PROGRESS, .progress = {.done_bytes = 50, .total_bytes = 100}};
	if (!send_reply(l))
		return false;
	l->reply = (struct rank_message){.type = RANK_MESSAGE_READY,
		.ready = {.kv_blocks = f->kv_blocks,
			.cold_bytes = f->cold_bytes,
			.engine = "none",
			.direct_io = !f->poor,
			.extents = 1,
			.isa = "none"}};
	snprintf(l->reply.ready.pages, sizeof l->reply.ready.pages, f->poor ? "small" : "transparent");
	if (f->poor)
		snprintf(l->reply.ready.fallback, sizeof l->reply.ready.fallback, "io_uring: not permitted");
	return send_reply(l);
}

static void draw(struct life *l, const struct rank_entry *e, struct rank_output *ret_output)
{
	struct fake_ranks *f = l->me->all;
	const struct rank_pass *p = &l->command.pass;
	uint32_t count = e->first_position + e->tokens, *history = calloc(count, sizeof *history);
	for (uint32_t i = 0; i < count; i++)
		history[i] = l->memory[p->blocks[e->first_block + i / KV_BLOCK_TOKENS] * KV_BLOCK_TOKENS +
				       i % KV_BLOCK_TOKENS];
	uint32_t index = count - l->prompt[e->sequence];
	ret_output->result = (struct sample_result){
		.token = f->script ? f->script[index % f->script_count] : fake_rank_next(f, history, count),
		.logprob = -1};
	free(history);
}

static void compute(struct life *l, struct rank_output *outputs, uint32_t *ret_count)
{
	const struct rank_pass *p = &l->command.pass;
	for (uint32_t i = 0; i < p->entries_count; i++) {
		const struct rank_entry *e = &p->entries[i];
		assert(e->sequence < RANK_MAX_SEQUENCES && l->open[e->sequence]);
		for (uint32_t t = 0; t < e->tokens; t++) {
			uint32_t at = e->first_position + t, block = p->blocks[e->first_block + at / KV_BLOCK_TOKENS];
			assert(block < l->me->all->kv_blocks);
			l->memory[block * KV_BLOCK_TOKENS + at % KV_BLOCK_TOKENS] = p->tokens[e->first_token + t];
		}
		if (e->want == RANK_WANT_SAMPLE) {
			outputs[*ret_count] = (struct rank_output){.entry = i};
			draw(l, e, &outputs[(*ret_count)++]);
		}
		for (uint32_t t = 0; e->want == RANK_WANT_SCORES && t < e->tokens; t++)
			outputs[(*ret_count)++] = (struct rank_output){.entry = i,
				.token_index = t,
				.result = {.token = p->targets[e->first_target + t], .logprob = -2}};
	}
}

static bool poisoned(const struct life *l)
{
	const struct fake_ranks *f = l->me->all;
	const struct rank_pass *p = &l->command.pass;
	uint32_t at = atomic_load(&f->die_position);
	for (uint32_t i = 0; i < p->entries_count; i++) {
		const struct rank_entry *e = &p->entries[i];
		if (l->prompt[e->sequence] == atomic_load(&f->die_prompt) && e->first_position <= at &&
			at < e->first_position + e->tokens)
			return true;
	}
	return false;
}

static bool pass(struct life *l)
{
	struct fake_ranks *f = l->me->all;
	const struct rank_pass *p = &l->command.pass;
	struct timespec delay = {
		.tv_sec = (time_t)(f->delay_ns / 1000000000), .tv_nsec = (long)(f->delay_ns % 1000000000)};
	if (!l->me->answers)
		return true;
	uint32_t number = atomic_fetch_add(&f->passes, 1) + 1;
	atomic_fetch_add(&f->positions, p->tokens_count);
	if (p->entries_count > atomic_load(&f->largest_batch))
		atomic_store(&f->largest_batch, p->entries_count);
	if (number == atomic_load(&f->die_at) || atomic_load(&f->die_always) || atomic_exchange(&f->die_next, false) ||
		poisoned(l))
		return false;
	l->hung = l->hung || number == atomic_load(&f->hang_at);
	if (l->hung)
		return true;
	while (atomic_load(&f->hold) && !stopped(l))
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	if (f->delay_ns)
		nanosleep(&delay, NULL);
	struct rank_output *outputs = calloc(p->tokens_count + 1, sizeof *outputs);
	int32_t *status = calloc(p->entries_count, sizeof *status);
	uint32_t count = 0;
	compute(l, outputs, &count);
	if (number == atomic_load(&f->corrupt_at) || f->corrupt_always) {
		status[0] = -EBADMSG;
		count = 0;
		for (uint32_t i = 1; i < p->entries_count; i++) {
			if (p->entries[i].want != RANK_WANT_SAMPLE)
				continue;
			outputs[count] = (struct rank_output){.entry = i};
			draw(l, &p->entries[i], &outputs[count++]);
		}
	}
	l->io_dead = l->io_dead || number == atomic_load(&f->io_dies_at);
	for (uint32_t i = 0; i < p->entries_count && l->io_dead; i++)
		status[i] = f->io_error ? f->io_error : -EIO;
	if (l->io_dead)
		count = 0;
	l->reply = (struct rank_message){.type = RANK_MESSAGE_RESULT,
		.result = {.pass = p->pass + (number == atomic_load(&f->garbage_at) ? 7 : 0),
			.entries_count = p->entries_count,
			.entry_status = status,
			.outputs_count = count,
			.outputs = outputs,
			.total_ns = 1000,
			.cold_bytes = f->cold_bytes}};
	if (number == atomic_load(&f->refuse_at)) {
		l->reply.result.entries_count = l->reply.result.outputs_count = 0;
		l->reply.result.status = base_error_set(&l->reply.result.e, -EINVAL, "sequence 0 is not open");
	}
	if (status[0])
		base_error_set(&l->reply.result.e, status[0], "layer 5: /store/layer-0005: checksum does not match");
	bool good = send_reply(l);
	free(outputs);
	free(status);
	return good;
}

/* FAKE_SPANS of them, which are more than a piece has. */
static bool trace(struct life *l)
{
	struct base_trace_event spans[RANK_TRACE_PIECE_EVENTS];
	uint32_t first = l->command.trace.first, n = first < FAKE_SPANS ? FAKE_SPANS - first : 0;
	if (l->command.trace.step != RANK_TRACE_READ)
		return true;
	n = n < RANK_TRACE_PIECE_EVENTS ? n : RANK_TRACE_PIECE_EVENTS;
	for (uint32_t i = 0; i < n; i++)
		spans[i] = (struct base_trace_event){first + i, first + i + 1, 4096, BASE_TRACE_READ, first + i};
	l->reply = (struct rank_message){.type = RANK_MESSAGE_TRACE_PIECE,
		.trace_piece = {.first = first,
			.total = FAKE_SPANS,
			.lost = 7,
			.now_ns = 5000,
			.wall_ns = 1000005000,
			.boot = 1 + l->me->rank,
			.host = "node-a",
			.events_count = n,
			.events = spans}};
	return send_reply(l);
}

static bool handle(struct life *l)
{
	struct fake_ranks *f = l->me->all;
	switch (l->command.type) {
	case RANK_MESSAGE_ASSIGN:
		return assign(l);
	case RANK_MESSAGE_OPEN:
		assert(!l->open[l->command.open.sequence]);
		l->open[l->command.open.sequence] = true;
		l->prompt[l->command.open.sequence] = l->command.open.prompt_tokens;
		atomic_fetch_add(&f->opens, 1);
		return true;
	case RANK_MESSAGE_CLOSE:
		assert(l->open[l->command.close]);
		l->open[l->command.close] = false;
		atomic_fetch_add(&f->closes, 1);
		return true;
	case RANK_MESSAGE_PASS:
		return pass(l);
	case RANK_MESSAGE_TRACE:
		return trace(l);
	default:
		return false;
	}
}

static void *rank_thread(void *argument)
{
	struct fake_rank *me = argument;
	int fds[1 + FAKE_RANKS];
	struct life l = {.me = me};
	for (uint32_t i = 0; i <= FAKE_RANKS; i++)
		fds[i] = i == 0 ? me->fd : -1;
	uint64_t deadline = base_clock_now_ns() + 100 * BASE_NS_PER_SECOND;
	if (me->mute) {
		struct pollfd p = {.fd = me->stop_pipe[0], .events = POLLIN};
		atomic_fetch_add(&me->all->mutes, 1);
		while (poll(&p, 1, -1) < 0)
			;
		close(me->fd);
		return NULL;
	}
	if (link_local_ops.create(fds, 1 + me->ranks, 1 + me->rank, 0, 0, LINK_UNTIL(deadline), &l.group, NULL) < 0) {
		close(me->fd);
		return NULL;
	}
	l.in = malloc(MESSAGE_BYTES);
	l.out = malloc(MESSAGE_BYTES);
	l.memory = calloc((size_t)me->all->kv_blocks * KV_BLOCK_TOKENS, sizeof *l.memory);
	rank_message_scratch_create(&l.scratch);
	for (bool go = true; go;) {
		struct link_request r;
		struct base_error e = {0};
		l.group->ops->receive(l.group, 0, RANK_TAG_COMMAND, l.in, MESSAGE_BYTES, &r);
		go = wait_for(&l, &r);
		if (go) {
			int status = rank_message_decode(l.in, r.bytes, l.scratch, &l.command, &e);
			assert(status == 0);
			(void)status;
			go = handle(&l);
		}
	}
	l.group->ops->close(l.group);
	rank_message_scratch_destroy(l.scratch);
	free(l.in);
	free(l.out);
	free(l.memory);
	return NULL;
}

static int start(void *context, uint32_t rank, int *ret_fd, struct base_error *e)
{
	struct fake_ranks *f = context;
	int fds[2];
	atomic_fetch_add(&f->starts, 1);
	if (f->refuse_starts) {
		f->refuse_starts--;
		return base_error_set(e, -ENOENT, "thaw-rank: not there");
	}
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0 || pipe(f->rank[rank].stop_pipe) < 0)
		abort();
	f->rank[rank].all = f;
	f->rank[rank].rank = rank;
	f->rank[rank].ranks = rank_shape_ranks(&f->shape);
	f->rank[rank].answers = rank == rank_shape_answers(&f->shape);
	f->rank[rank].fd = fds[1];
	f->rank[rank].running = true;
	f->rank[rank].mute = f->mute_starts > 0;
	if (f->rank[rank].mute)
		atomic_fetch_sub(&f->mute_starts, 1);
	if (pthread_create(&f->rank[rank].thread, NULL, rank_thread, &f->rank[rank]))
		abort();
	*ret_fd = fds[0];
	return 0;
}

static void stop(void *context, uint32_t rank)
{
	struct fake_rank *r = &((struct fake_ranks *)context)->rank[rank];
	if (!r->running)
		return;
	close(r->stop_pipe[1]);
	pthread_join(r->thread, NULL);
	close(r->stop_pipe[0]);
	r->running = false;
}

struct engine_starter fake_ranks_starter(struct fake_ranks *f)
{
	return (struct engine_starter){.start = start, .stop = stop, .context = f};
}
