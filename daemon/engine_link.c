// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "daemon/engine_internal.h"
#include "shard/kv/kv.h"

#define SMALL_MESSAGE_BYTES (8u << 10) // ASSIGN, OPEN, CLOSE
#define STOP_NS (200 * 1000000ull) // that a rank gets to read its STOP
#define POLL_ROUNDS 64u
#define GATHER_NS (20 * 1000000ull) // between questions whether the hosts are there
#define BACKOFF_NS (100 * 1000000ull)
#define BACKOFF_MOST 6u // doublings

static const char *rank_name(const struct engine *e, uint32_t rank, char out[static 48])
{
	struct rank_place p = rank_shape_place(&e->shape, rank);
	if (e->shape.parts[p.stage] > 1)
		snprintf(out, 48, "stage %u part %u", p.stage, p.part);
	else
		snprintf(out, 48, "stage %u", p.stage);
	return out;
}

/* ---- memory ---- */

/* Room for the largest PASS that the scheduler can build. */
static size_t pass_bytes(const struct engine_config *c)
{
	size_t table = base_size_div_up(c->context_tokens, KV_BLOCK_TOKENS);
	return 4096 + (size_t)c->max_running * (64 + 4 * table) + (size_t)c->batch_tokens * 8;
}

static size_t reply_bytes(const struct engine_config *c)
{
	return (64u << 10) + (size_t)c->max_running * 8 + (size_t)c->logits_rows * (64 + 8 * SAMPLE_MAX_LOGPROBS);
}

void engine_link_set_ranks(struct engine *e, const struct rank_shape *shape)
{
	e->shape = *shape;
	e->passes = shape->stages;
	e->ranks = rank_shape_ranks(shape);
	pthread_mutex_lock(&e->lock);
	e->load.shape = *shape;
	e->load.ranks = e->ranks;
	for (uint32_t i = 0; i < e->ranks; i++)
		e->load.slice[i] = e->config.assign[i].config.slice;
	pthread_mutex_unlock(&e->lock);
}

/* The first stages + 1 messages are for passes, the others small: an OPEN and a CLOSE for every slot. */
int engine_link_init(struct engine *e)
{
	const struct engine_config *c = &e->config;
	int status = rank_message_scratch_create(&e->scratch);
	if (status)
		return status;
	uint32_t large = c->stages + 1;
	e->large_count = large;
	e->messages_count = large + 2 * c->max_running + 2;
	e->messages = calloc(e->messages_count, sizeof *e->messages);
	if (!e->messages)
		return -ENOMEM;
	for (uint32_t i = 0; i < e->messages_count; i++) {
		e->messages[i].room_bytes = i < large ? pass_bytes(c) : SMALL_MESSAGE_BYTES;
		e->messages[i].data = malloc(e->messages[i].room_bytes);
		if (!e->messages[i].data)
			return -ENOMEM;
	}
	e->reply_bytes = reply_bytes(c);
	uint32_t replies = c->starter.gather ? ENGINE_MAX_RANKS : e->ranks; // plans differ
	for (uint32_t i = 0; i < replies; i++) {
		e->reply[i] = malloc(e->reply_bytes);
		if (!e->reply[i])
			return -ENOMEM;
	}
	return 0;
}

void engine_link_finish(struct engine *e)
{
	for (uint32_t i = 0; e->messages && i < e->messages_count; i++)
		free(e->messages[i].data);
	free(e->messages);
	for (uint32_t i = 0; i < ENGINE_MAX_RANKS; i++)
		free(e->reply[i]);
	rank_message_scratch_destroy(e->scratch);
}

/* ---- sending ---- */

static void count_link(struct engine *e, uint64_t sent_bytes, uint64_t received_bytes, uint64_t errors)
{
	pthread_mutex_lock(&e->lock);
	e->load.link_sent_bytes += sent_bytes;
	e->load.link_received_bytes += received_bytes;
	e->load.link_errors += errors;
	pthread_mutex_unlock(&e->lock);
}

static bool idle(struct engine *e, struct engine_message *m)
{
	for (uint32_t i = 0; i < m->requests; i++) {
		if (m->request[i].status == -EINPROGRESS &&
			e->group->ops->test(e->group, &m->request[i]) == -EINPROGRESS)
			return false;
	}
	m->requests = 0;
	return true;
}

/* While a rank does not read. Who is READY may be on its way through a pass whose requests must not end under it: then
 * only the engine's end is looked at. */
static bool go_on_waiting(struct engine *e)
{
	return !atomic_load(&e->stop) && (e->state == ENGINE_READY || engine_look_up(e, NULL) == 0);
}

static int wait_for_send(struct engine *e, struct link_request *r, uint64_t deadline)
{
	for (;;) {
		uint64_t next = base_clock_now_ns() + LINK_LOOK_NS;
		int status = e->group->ops->wait(e->group, r, next < deadline ? next : deadline);
		if (status != -ETIMEDOUT || next >= deadline || !go_on_waiting(e))
			return status;
	}
}

/* NULL: the ranks do not read for stuck_ns, or the engine is to end. */
static struct engine_message *take_message(struct engine *e, bool large)
{
	uint32_t first = large ? 0 : e->large_count, end = large ? e->large_count : e->messages_count;
	uint64_t deadline = base_clock_now_ns() + (e->config.stuck_ns ? e->config.stuck_ns : ENGINE_CONNECT_NS);
	for (uint32_t i = first; i < end; i++) {
		if (idle(e, &e->messages[i]))
			return &e->messages[i];
	}
	/* The ranks have not read what they were sent long ago; the oldest is not known, but any will do. */
	struct engine_message *m = &e->messages[first];
	for (uint32_t i = 0; i < m->requests; i++) {
		if (wait_for_send(e, &m->request[i], deadline) == -ETIMEDOUT)
			return NULL;
	}
	m->requests = 0;
	return m;
}

bool engine_link_send(struct engine *e, bool large)
{
	struct engine_message *m = take_message(e, large);
	if (!m) {
		engine_link_lost(e, "the rank does not read its messages");
		return false;
	}
	int64_t n = rank_message_encode(&e->out, m->data, m->room_bytes);
	if (n < 0) {
		char why[96];
		snprintf(why, sizeof why, "message %d does not fit %zu bytes: %s", (int)e->out.type, m->room_bytes,
			strerrordesc_np((int)-n));
		engine_link_lost(e, why);
		return false;
	}
	m->requests = e->ranks;
	count_link(e, (uint64_t)n * m->requests, 0, 0);
	for (uint32_t i = 0; i < m->requests; i++)
		e->group->ops->send(e->group, 1 + i, RANK_TAG_COMMAND, m->data, (size_t)n, &m->request[i]);
	return true;
}

/* ---- life of the ranks ---- */

static void close_group(struct engine *e)
{
	if (e->group) {
		e->group->ops->revoke(e->group);
		e->group->ops->close(e->group);
		if (e->config.starter.scatter)
			e->config.starter.scatter(e->config.starter.context);
	}
	e->group = NULL;
	for (uint32_t i = 0; i < e->messages_count; i++)
		e->messages[i].requests = 0;
}

bool engine_link_often_lost(const struct engine *e)
{
	return e->restarts_in_a_row > e->config.max_restarts;
}

/* No hosts can hold the model, or those that should lose it again and again: requests are refused, and those that wait
 * end after a while. */
static void set_down(struct engine *e, bool down, const char *why)
{
	if (down && !e->down_ns)
		engine_emit_event(e, "error", "fleet_down", "%s", why);
	if (!down || !e->down_ns)
		e->down_ns = down ? base_clock_now_ns() : 0;
	pthread_mutex_lock(&e->lock);
	e->load.down = down;
	pthread_mutex_unlock(&e->lock);
}

static void lost(struct engine *e, const char *why)
{
	close_group(e);
	if (e->state == ENGINE_READY)
		scheduler_lost(e->scheduler);
	uint32_t doublings = e->restarts_in_a_row < BACKOFF_MOST ? e->restarts_in_a_row : BACKOFF_MOST;
	e->retry_ns = base_clock_now_ns() + (e->restarts_in_a_row ? BACKOFF_NS << doublings : 0);
	e->restarts_in_a_row++;
	engine_emit_event(e, "warning", "rank_lost", "epoch %llu: %s; its requests wait for a new one",
		(unsigned long long)e->epoch, why);
	if (e->config.starter.gather && engine_link_often_lost(e))
		set_down(e, true, why);
	engine_set_state(e, ENGINE_RECOVERING, why);
}

void engine_link_lost(struct engine *e, const char *why)
{
	if (e->group || e->state != ENGINE_RECOVERING) // else it is known
		lost(e, why);
}

/* What runs goes on in the next group: as after a loss, but nobody is suspected, and the first load is still the
 * first. */
void engine_link_leave(struct engine *e, const char *why)
{
	if (!e->group)
		return;
	close_group(e);
	e->retry_ns = 0;
	engine_emit_event(e, "notice", "regather", "epoch %llu: %s", (unsigned long long)e->epoch, why);
	if (e->state == ENGINE_READY)
		engine_set_state(e, ENGINE_RECOVERING, why);
}

/* The first load ends here when it fails: what failed once with the same file and the same budgets fails again. */
static void start_failed(struct engine *e, const struct base_error *error)
{
	if (e->state == ENGINE_LOADING && !e->config.starter.gather) {
		close_group(e);
		pthread_mutex_lock(&e->lock);
		e->load.failure_code = error->code;
		pthread_mutex_unlock(&e->lock);
		engine_emit_event(e, "error", "engine_failed", "%s", base_error_text(error));
		engine_set_state(e, ENGINE_FAILED, base_error_text(error));
	} else {
		if (error->code == -EBADMSG) // in the next group nodes look at their stores
			engine_emit_event(e, "error", "store_corrupt", "%s", base_error_text(error));
		lost(e, base_error_text(error));
	}
}

static int connect_ranks(struct engine *e, const struct link_patience *patience, struct base_error *error)
{
	int fds[1 + ENGINE_MAX_RANKS];
	int status = 0;
	for (uint32_t i = 0; i <= ENGINE_MAX_RANKS; i++)
		fds[i] = -1;
	for (uint32_t i = 0; i < e->ranks; i++) {
		if (e->starts > 1)
			e->config.starter.stop(e->config.starter.context, i);
	}
	for (uint32_t i = 0; i < e->ranks && !status; i++)
		status = e->config.starter.start(e->config.starter.context, i, &fds[1 + i], error);
	if (!status)
		status = link_local_ops.create(
			fds, 1 + e->ranks, 0, e->epoch, ENGINE_RING_BYTES, patience, &e->group, error);
	if (status) {
		for (uint32_t i = 0; i < e->ranks; i++) {
			if (fds[1 + i] >= 0)
				close(fds[1 + i]);
		}
	}
	return status;
}

/* Hosts say what there is now: so all of it is new in each epoch. */
static int gather_ranks(struct engine *e, const struct link_patience *patience, struct base_error *error)
{
	struct engine_gathered g = {0};
	int status = e->config.starter.gather(e->config.starter.context, patience, &g, error);
	if (status)
		return status;
	e->group = g.group;
	if (rank_shape_check(&g.shape, ENGINE_MAX_RANKS) < 0 || g.shape.stages > e->config.stages ||
		g.epoch <= e->epoch)
		return base_error_set(error, -EPROTO,
			"the plan has %u stages, at most %u and %u ranks, and epoch %llu after %llu", g.shape.stages,
			e->config.stages, ENGINE_MAX_RANKS, (unsigned long long)g.epoch, (unsigned long long)e->epoch);
	e->epoch = g.epoch;
	memcpy(e->config.assign, g.assign, rank_shape_ranks(&g.shape) * sizeof *g.assign);
	engine_link_set_ranks(e, &g.shape);
	if (g.passes)
		e->passes = g.passes < e->config.stages ? g.passes : e->config.stages;
	e->config.bound_pass_ns_disk = g.bound_pass_ns_disk;
	e->config.bound_pass_ns_memory = g.bound_pass_ns_memory;
	e->config.bound_token_ns_compute = g.bound_token_ns_compute;
	return 0;
}

/* Hosts are missing, or busy packing. True: that is all there is to do for now. */
static bool gather_later(struct engine *e, int status, const struct base_error *error)
{
	if (!e->config.starter.gather || (status != -EAGAIN && status != -EHOSTDOWN))
		return false;
	e->retry_ns = base_clock_now_ns() + GATHER_NS;
	set_down(e, status == -EHOSTDOWN || engine_link_often_lost(e), base_error_text(error));
	engine_set_state(e, e->state, base_error_text(error));
	return true;
}

static void post_receive(struct engine *e, uint32_t rank)
{
	e->group->ops->receive(e->group, 1 + rank, RANK_TAG_REPLY, e->reply[rank], e->reply_bytes, &e->receive[rank]);
}

/* Each rank gets its own ASSIGN. */
static bool send_assign(struct engine *e, uint32_t rank)
{
	struct engine_message *m = take_message(e, false);
	if (!m)
		return false;
	e->out = (struct rank_message){.type = RANK_MESSAGE_ASSIGN, .assign = e->config.assign[rank]};
	e->out.assign.epoch = e->epoch;
	e->out.assign.shape = e->shape;
	e->out.assign.stage = rank_shape_place(&e->shape, rank).stage;
	e->out.assign.patience_ns = e->config.stuck_ns;
	int64_t n = rank_message_encode(&e->out, m->data, m->room_bytes);
	if (n < 0)
		return false;
	m->requests = 1;
	count_link(e, (uint64_t)n, 0, 0);
	e->group->ops->send(e->group, 1 + rank, RANK_TAG_COMMAND, m->data, (size_t)n, &m->request[0]);
	return true;
}

void engine_link_start(struct engine *e)
{
	uint64_t connect_ns = e->config.connect_ns ? e->config.connect_ns : ENGINE_CONNECT_NS;
	const struct link_patience patience = {base_clock_now_ns() + connect_ns, engine_look_up, e};
	struct base_error error = {0};
	char name[48];
	int status;
	if (e->config.starter.gather) {
		status = gather_ranks(e, &patience, &error);
		e->starts += !status;
	} else {
		e->epoch++;
		e->starts++;
		status = connect_ranks(e, &patience, &error);
	}
	if (status && atomic_load(&e->stop)) // nobody is to blame
		return;
	if (gather_later(e, status, &error))
		return;
	if (status) {
		error.code = status;
		start_failed(e, &error);
		return;
	}
	set_down(e, e->config.starter.gather && engine_link_often_lost(e), e->load.failure);
	e->heard_ns = base_clock_now_ns();
	e->io_failures = 0;
	for (uint32_t i = 0; i < e->ranks; i++) {
		e->ready[i] = false;
		e->rank_done[i] = e->rank_total[i] = 0;
		post_receive(e, i);
	}
	for (uint32_t i = 0; i < e->ranks; i++) {
		if (send_assign(e, i))
			continue;
		if (atomic_load(&e->stop))
			return;
		base_error_set(&error, -EPROTO, "%s could not be told what to load", rank_name(e, i, name));
		start_failed(e, &error);
		return;
	}
}

void engine_link_stop(struct engine *e)
{
	if (e->group) {
		e->out = (struct rank_message){.type = RANK_MESSAGE_STOP};
		uint64_t deadline = base_clock_now_ns() + STOP_NS;
		if (engine_link_send(e, false)) {
			for (uint32_t i = 0; i < e->messages_count; i++) {
				for (uint32_t k = 0; k < e->messages[i].requests; k++)
					e->group->ops->wait(e->group, &e->messages[i].request[k], deadline);
			}
			/* A rank that stops closes its end: until then it may still be reading. */
			for (uint32_t i = 0; i < e->ranks; i++) {
				while (e->group->ops->wait(e->group, &e->receive[i], deadline) == 0)
					post_receive(e, i);
			}
		}
	}
	close_group(e);
	for (uint32_t i = 0; !e->config.starter.gather && i < e->ranks; i++)
		e->config.starter.stop(e->config.starter.context, i);
}

/* ---- messages in ---- */

/* What makes everything slower and can be mended. Once: a restart finds the same. */
static void tell_placement(struct engine *e, uint32_t rank)
{
	const struct rank_placement *p = &e->load.placement[rank];
	char name[48];
	if (e->starts > 1)
		return;
	if (p->fallback[0] && strcmp(p->engine, "uring") == 0)
		engine_emit_event(e, "warning", "buffers_not_registered",
			"%s reads with more CPU time than it must: %s", rank_name(e, rank, name), p->fallback);
	else if (p->fallback[0])
		engine_emit_event(e, "warning", "io_uring_refused",
			"%s reads with threads, which costs CPU and bandwidth: %s; allow io_uring_setup, "
			"io_uring_enter "
			"and io_uring_register",
			rank_name(e, rank, name), p->fallback);
	if (strcmp(p->pages, "small") == 0)
		engine_emit_event(e, "warning", "huge_pages_refused",
			"%s has its weights in small pages, which makes passes slower: set "
			"/sys/kernel/mm/transparent_hugepage/enabled to madvise, or vm.nr_hugepages",
			rank_name(e, rank, name));
	if (p->extents && !p->direct_io)
		engine_emit_event(e, "warning", "direct_io_refused",
			"%s reads through the page cache, which takes memory and bandwidth: the store's file "
			"system has no O_DIRECT; put store.path on a local ext4 or XFS",
			rank_name(e, rank, name));
}

/* All ranks are ready: passes may go. */
static void all_ready(struct engine *e)
{
	uint32_t blocks = UINT32_MAX;
	uint64_t cold = 0;
	for (uint32_t i = 0; i < e->ranks; i++) {
		const struct rank_placement *p = &e->load.placement[i];
		blocks = p->kv_blocks < blocks ? p->kv_blocks : blocks;
		cold += p->cold_bytes;
		tell_placement(e, i);
	}
	struct base_error error = {0};
	/* Fewer hosts may have fewer blocks; what was promised is that one sequence of the longest length fits. */
	uint32_t needed = e->kv_blocks;
	if (e->config.starter.gather)
		needed = (uint32_t)base_size_div_up(e->limit_tokens, KV_BLOCK_TOKENS);
	if (blocks < needed || !blocks)
		base_error_set(
			&error, -ENOMEM, "the rank has %u KV blocks, %u are needed", blocks, needed ? needed : 1);
	else if (scheduler_reset(e->scheduler, blocks, e->passes, cold > 0) < 0)
		base_error_set(&error, -ENOMEM, "no memory for %u KV blocks", blocks);
	if (error.code) {
		start_failed(e, &error);
		return;
	}
	if (!e->kv_blocks)
		e->kv_blocks = blocks;
	set_down(e, false, "");
	pthread_mutex_lock(&e->lock);
	e->limit_tokens = scheduler_limit_tokens(e->scheduler);
	e->load.data_loss[0] = '\0'; // these opened the files anew
	pthread_mutex_unlock(&e->lock);
	memset(e->losses, 0, sizeof e->losses); // what is bad in them is told again: it may have been mended
	engine_emit_event(e, "notice", e->starts > 1 ? "rank_restarted" : "engine_ready", "epoch %llu, %u KV blocks",
		(unsigned long long)e->epoch, blocks);
	engine_set_state(e, ENGINE_READY, NULL);
}

static void on_progress(struct engine *e, uint32_t rank)
{
	e->rank_done[rank] = e->in.progress.done_bytes;
	e->rank_total[rank] = e->in.progress.total_bytes;
	uint64_t done = 0, total = 0;
	for (uint32_t i = 0; i < e->ranks; i++) {
		done += e->rank_done[i];
		total += e->rank_total[i];
	}
	pthread_mutex_lock(&e->lock);
	e->load.load_done_bytes = done;
	e->load.load_total_bytes = total;
	pthread_mutex_unlock(&e->lock);
}

static void on_ready(struct engine *e, uint32_t rank)
{
	pthread_mutex_lock(&e->lock);
	e->load.placement[rank] = e->in.ready;
	pthread_mutex_unlock(&e->lock);
	e->ready[rank] = true;
	for (uint32_t i = 0; i < e->ranks; i++) {
		if (!e->ready[i])
			return;
	}
	all_ready(e);
}

static void on_message(struct engine *e, uint32_t rank)
{
	char why[96], name[48];
	bool loading = e->state != ENGINE_READY;
	switch (e->in.type) {
	case RANK_MESSAGE_PROGRESS:
		if (loading)
			on_progress(e, rank);
		return;
	case RANK_MESSAGE_READY:
		if (loading && !e->ready[rank]) {
			on_ready(e, rank);
			return;
		}
		break;
	case RANK_MESSAGE_FAILED:
		if (loading) {
			start_failed(e, &e->in.failed);
			return;
		}
		break;
	case RANK_MESSAGE_RESULT:
		if (!loading && rank == rank_shape_answers(&e->shape)) {
			engine_pass_result(e);
			return;
		}
		break;
	case RANK_MESSAGE_TRACE_PIECE:
		if (!loading && engine_trace_piece(e, rank))
			return;
		break;
	case RANK_MESSAGE_STATS:
		pthread_mutex_lock(&e->lock);
		e->load.stats[rank] = e->in.stats;
		pthread_mutex_unlock(&e->lock);
		return;
	default:
		break;
	}
	snprintf(why, sizeof why, "%s sent message %d out of turn", rank_name(e, rank, name), (int)e->in.type);
	engine_link_lost(e, why);
}

/* One finished receive of a rank: decodes, handles, and posts the next. */
static void take_reply(struct engine *e, uint32_t rank)
{
	struct base_error error = {0};
	char why[BASE_ERROR_BYTES + 64], name[48];
	e->heard_ns = base_clock_now_ns();
	count_link(e, 0, e->receive[rank].bytes, 0);
	int status = rank_message_decode(e->reply[rank], e->receive[rank].bytes, e->scratch, &e->in, &error);
	if (status == -EPROTONOSUPPORT) { // another try would find the same program
		error.code = status;
		start_failed(e, &error);
		return;
	}
	if (status) {
		snprintf(why, sizeof why, "%s: %s", rank_name(e, rank, name), base_error_text(&error));
		engine_link_lost(e, why);
		return;
	}
	on_message(e, rank);
	if (e->group)
		post_receive(e, rank);
}

void engine_link_poll(struct engine *e)
{
	for (uint32_t round = 0; round < POLL_ROUNDS; round++) {
		bool any = false;
		e->group->ops->progress(e->group, 16);
		for (uint32_t i = 0; i < e->ranks; i++) {
			int status = e->group->ops->test(e->group, &e->receive[i]);
			if (status == -EINPROGRESS)
				continue;
			if (status < 0) {
				char why[96], name[48];
				snprintf(why, sizeof why, "%s: %s", rank_name(e, i, name),
					status == -ECONNRESET ? "the process is gone" : strerrordesc_np(-status));
				count_link(e, 0, 0, 1);
				engine_link_lost(e, why);
			} else {
				take_reply(e, i);
				any = true;
			}
			if (!e->group)
				return;
		}
		if (!any)
			return;
	}
}
