// SPDX-License-Identifier: Apache-2.0
#include "shard/rank/serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/size.h"
#include "shard/rank/message.h"

#define SLICE_NS (BASE_NS_PER_SECOND / 5) // longest sleep without a look at *stop
#define STATS_NS BASE_NS_PER_SECOND
#define PROGRESS_NS (BASE_NS_PER_SECOND / 10)
#define LAST_WORDS_NS BASE_NS_PER_SECOND // for FAILED to be read before the process ends
#define SMALL_BYTES 2048u // any reply but RESULT and TRACE_PIECE
#define TRACE_BYTES (256u + RANK_TRACE_PIECE_EVENTS * 32u)
#define OUTPUT_BYTES (20u + SAMPLE_MAX_LOGPROBS * 8u)

struct sending {
	struct link_request request;
	uint64_t begin_ns; // traced until its end is seen; 0: it is not
};

struct outgoing { // one message, on its way to so many members
	struct sending to[RANK_MAX_PARTS];
	uint32_t count;
	uint8_t *data;
	size_t room_bytes;
};

struct serve {
	const struct link_ops *link;
	struct link_group *group, *tensor;
	struct base_log *log;
	const _Atomic bool *stop;
	struct base_error *error;
	struct rank_message_scratch *scratch, *hidden_scratch;

	// The next command is always being received, so that STOP is seen while the present one is worked on.
	uint8_t *command_data[2]; // (RANK_MAX_MESSAGE_BYTES), touched as far as messages are long
	struct link_request command[2];
	uint32_t turn; // which of the two is the present one
	bool stopping;

	struct outgoing small, result, hidden_head[2], hidden_rows[2], trace_piece;
	struct base_trace_event *spans; // (RANK_TRACE_PIECE_EVENTS), NULL before the first TRACE
	uint32_t hidden_turn;
	uint64_t next_stats_ns, next_progress_ns;

	struct rank *rank;
	struct rank_assign assign;
	uint32_t width;
	bool first, last; // of the stages
	bool answers; // the first rank of the last stage
	uint32_t before, after[RANK_MAX_PARTS], after_count; // members: who sends hidden rows to this one, who has its
	struct link_request hidden_in;
	uint8_t *head_in; // HIDDEN of the stage before
	float *rows_in; // (batch_tokens, width)
	struct rank_output *outputs; // (logits_rows)
	int entry_status[RANK_MAX_SEQUENCES];
};

#define HEAD_BYTES (1024u + RANK_MAX_SEQUENCES * 4u)

// ---- waiting

static void post_command(struct serve *s, uint32_t which)
{
	s->link->receive(
		s->group, 0, RANK_TAG_COMMAND, s->command_data[which], RANK_MAX_MESSAGE_BYTES, &s->command[which]);
}

/* -ECANCELED when it is time to end: the flag, or a STOP that is next in line. */
static int check_stop(struct serve *s)
{
	struct link_request *next = &s->command[1 - s->turn];
	if (s->stop && atomic_load(s->stop))
		s->stopping = true;
	if (!s->stopping && next->status == 0) {
		struct rank_message m;
		// A message of one kind needs no scratch to be known; STOP is the shortest there is.
		if (next->bytes == 8 &&
			!rank_message_decode(s->command_data[1 - s->turn], 8, s->hidden_scratch, &m, NULL))
			s->stopping = m.type == RANK_MESSAGE_STOP;
	}
	return s->stopping ? -ECANCELED : 0;
}

static void send_stats_if_due(struct serve *s, bool now);

static struct base_trace *tracing(struct serve *s)
{
	return s->rank ? rank_trace(s->rank) : NULL;
}

/* A member of the group as the trace names it: the number of the rank. */
static uint32_t peer(uint32_t member)
{
	return member ? member - 1 : BASE_TRACE_COORDINATOR;
}

/* Until r has ended: 0 or its -errno; -ECANCELED when it is time to end. */
static int wait_for(struct serve *s, struct link_request *r)
{
	for (;;) {
		int status = s->link->wait(s->group, r, base_clock_now_ns() + SLICE_NS);
		if (status != -ETIMEDOUT)
			return status;
		status = check_stop(s);
		if (status)
			return status;
		send_stats_if_due(s, false);
	}
}

/* The same, traced as what came from a member. */
static int wait_received(struct serve *s, struct link_request *r)
{
	struct base_trace *trace = tracing(s);
	uint64_t begin = base_trace_begin(trace);
	int status = wait_for(s, r);
	if (!status)
		base_trace_end(trace, begin, BASE_TRACE_RECEIVE, peer(r->peer), r->bytes);
	return status;
}

// ---- sending

static void trace_sent(struct serve *s, struct sending *x)
{
	base_trace_end(tracing(s), x->begin_ns, BASE_TRACE_SEND, peer(x->request.peer), x->request.room_bytes);
	x->begin_ns = 0;
}

/* The buffer is free: what was sent from it last has gone. */
static int wait_sent(struct serve *s, struct outgoing *o)
{
	int status = 0;
	for (uint32_t i = 0; i < o->count && !status; i++) {
		status = wait_for(s, &o->to[i].request);
		if (!status && o->to[i].begin_ns)
			trace_sent(s, &o->to[i]);
	}
	return status;
}

static void send_bytes(
	struct serve *s, struct outgoing *o, const uint32_t *members, uint32_t count, uint32_t tag, size_t bytes)
{
	o->count = count;
	for (uint32_t i = 0; i < count; i++) {
		struct sending *x = &o->to[i];
		x->begin_ns = base_trace_begin(tracing(s));
		s->link->send(s->group, members[i], tag, o->data, bytes, &x->request);
		if (x->begin_ns && x->request.status == 0)
			trace_sent(s, x);
	}
}

/* Waits for the buffer to be free, encodes, starts the send. */
static int send_message(struct serve *s, struct outgoing *o, const uint32_t *members, uint32_t count, uint32_t tag,
	const struct rank_message *m)
{
	int status = wait_sent(s, o);
	if (status)
		return status;
	int64_t n = rank_message_encode(m, o->data, o->room_bytes);
	if (n < 0)
		return base_error_set(s->error, (int)n, "rank: %s of this rank does not encode in %zu bytes",
			rank_message_name(m->type), o->room_bytes);
	send_bytes(s, o, members, count, tag, (size_t)n);
	return 0;
}

static const uint32_t coordinator = 0; // the member

static int send_reply(struct serve *s, struct outgoing *o, const struct rank_message *m)
{
	return send_message(s, o, &coordinator, 1, RANK_TAG_REPLY, m);
}

/* What may be left out when the one before is still under way. */
static void send_small(struct serve *s, const struct rank_message *m)
{
	struct link_request *last = &s->small.to[0].request;
	if (last->status == -EINPROGRESS && s->link->test(s->group, last) == -EINPROGRESS)
		return;
	int64_t n = rank_message_encode(m, s->small.data, s->small.room_bytes);
	if (n > 0)
		send_bytes(s, &s->small, &coordinator, 1, RANK_TAG_REPLY, (size_t)n);
}

static void send_stats_if_due(struct serve *s, bool now)
{
	uint64_t t = base_clock_now_ns();
	if (!s->rank || (!now && t < s->next_stats_ns))
		return;
	s->next_stats_ns = t + STATS_NS;
	struct rank_message m = {.type = RANK_MESSAGE_STATS};
	rank_get_stats(s->rank, &m.stats);
	send_small(s, &m);
}

// ---- loading

static int on_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
	struct serve *s = context;
	uint64_t t = base_clock_now_ns();
	if (t < s->next_progress_ns && done_bytes < total_bytes)
		return 0;
	s->next_progress_ns = t + PROGRESS_NS;
	struct link_request *next = &s->command[1 - s->turn];
	s->link->progress(s->group, 16);
	if (next->status < 0 && next->status != -EINPROGRESS)
		return next->status;
	struct rank_message m = {.type = RANK_MESSAGE_PROGRESS};
	m.progress.done_bytes = done_bytes;
	m.progress.total_bytes = total_bytes;
	send_small(s, &m);
	return check_stop(s);
}

static int check_assign(const struct serve *s, struct base_error *e)
{
	const struct rank_assign *a = &s->assign;
	if (a->epoch != s->group->epoch)
		return base_error_set(e, -EINVAL, "rank: assigned for epoch %llu, its group is of epoch %llu",
			(unsigned long long)a->epoch, (unsigned long long)s->group->epoch);
	const struct pack_slice *slice = &a->config.slice;
	char shape[RANK_SHAPE_TEXT_BYTES];
	if (slice->tp_size != a->shape.parts[a->stage] ||
		rank_member(rank_shape_ranks(&a->shape)) != s->group->members ||
		rank_member(rank_shape_rank(&a->shape, (struct rank_place){a->stage, slice->tp_rank})) != s->group->me)
		return base_error_set(e, -EINVAL,
			"rank: assigned as part %u of %u of stage %u of %s, it is member %u of %u", slice->tp_rank,
			slice->tp_size, a->stage, rank_shape_print(&a->shape, shape), s->group->me, s->group->members);
	if (slice->tp_size > 1 && !s->tensor)
		return base_error_set(e, -EINVAL, "rank: assigned part %u of %u, it has no link to the other parts",
			slice->tp_rank, slice->tp_size);
	if (a->config.batch_tokens == 0 || a->config.sequences == 0)
		return base_error_set(e, -EINVAL, "rank: assigned with no tokens or no sequences in a pass");
	return 0;
}

static int take(void **ret_data, uint64_t count, uint64_t each_bytes, const char *what, struct base_error *e)
{
	uint64_t bytes;
	void *data =
		base_size_mul(count, each_bytes, &bytes) < 0 || bytes > SIZE_MAX / 2 ? NULL : malloc(bytes ? bytes : 1);
	if (!data)
		return base_error_set(e, -ENOMEM, "rank: no memory for %s of %llu x %llu bytes", what,
			(unsigned long long)count, (unsigned long long)each_bytes);
	*ret_data = data;
	return 0;
}

static int take_pass_buffers(struct serve *s, struct base_error *e)
{
	const struct rank_config *c = &s->assign.config;
	uint64_t row_bytes = s->width * sizeof(float);
	int r = 0;
	s->result.room_bytes = HEAD_BYTES + (size_t)c->logits_rows * OUTPUT_BYTES;
	if (s->answers) {
		r = take((void **)&s->result.data, 1, s->result.room_bytes, "a result", e);
		if (!r)
			r = take((void **)&s->outputs, c->logits_rows, sizeof *s->outputs, "outputs", e);
	}
	for (uint32_t i = 0; i < 2 && !s->last && !r; i++) {
		s->hidden_head[i].room_bytes = HEAD_BYTES;
		s->hidden_rows[i].room_bytes = c->batch_tokens * row_bytes;
		r = take((void **)&s->hidden_head[i].data, 1, HEAD_BYTES, "hidden rows", e);
		if (!r)
			r = take((void **)&s->hidden_rows[i].data, c->batch_tokens, row_bytes, "hidden rows", e);
	}
	if (!s->first && !r)
		r = take((void **)&s->head_in, 1, HEAD_BYTES, "hidden rows", e);
	if (!s->first && !r)
		r = take((void **)&s->rows_in, c->batch_tokens, row_bytes, "hidden rows", e);
	return r;
}

/* Who this rank talks to. */
static void find_place(struct serve *s)
{
	const struct rank_shape *shape = &s->assign.shape;
	const struct rank_place me = {s->assign.stage, s->assign.config.slice.tp_rank};
	s->first = me.stage == 0;
	s->last = me.stage + 1 == shape->stages;
	s->answers = s->last && me.part == 0;
	if (!s->first)
		s->before = rank_member(rank_shape_sender(shape, me));
	s->after_count = rank_shape_receivers(shape, rank_shape_rank(shape, me), s->after);
	for (uint32_t i = 0; i < s->after_count; i++)
		s->after[i] = rank_member(s->after[i]);
}

static int load(struct serve *s, struct base_error *e)
{
	int r = check_assign(s, e);
	if (!r)
		r = rank_create(&s->assign.config, &s->rank, e, on_progress, s);
	if (!r && s->tensor)
		r = rank_join(s->rank, s->tensor, s->assign.patience_ns, e);
	if (r)
		return r;
	find_place(s);
	s->width = rank_program(s->rank)->config.width;
	return take_pass_buffers(s, e);
}

static int handle_assign(struct serve *s, const struct rank_assign *assign)
{
	struct rank_message m = {.type = RANK_MESSAGE_FAILED};
	if (s->rank)
		return base_error_set(s->error, -EPROTO, "rank: the coordinator sent a second ASSIGN");
	s->assign = *assign;
	int r = load(s, &m.failed);
	if (r == 0) {
		m.type = RANK_MESSAGE_READY;
		rank_get_placement(s->rank, &m.ready);
		s->next_stats_ns = base_clock_now_ns() + STATS_NS;
		return send_reply(s, &s->small, &m);
	}
	if (s->stopping)
		return -ECANCELED;
	if (s->command[1 - s->turn].status == -ECONNRESET)
		return -ECONNRESET; // that is why the loading was given up
	m.failed.code = r;
	if (!m.failed.message[0])
		base_error_set(&m.failed, r, "rank: %s", base_error_text(&m.failed));
	base_error_set(s->error, r, "%s", m.failed.message);
	struct base_error text = *s->error;
	if (send_reply(s, &s->small, &m) == 0)
		s->link->wait(s->group, &s->small.to[0].request, base_clock_now_ns() + LAST_WORDS_NS);
	*s->error = text;
	return r;
}

// ---- passes

static int receive_from_before(struct serve *s, void *data, size_t room_bytes)
{
	s->link->receive(s->group, s->before, RANK_TAG_HIDDEN, data, room_bytes, &s->hidden_in);
	return wait_received(s, &s->hidden_in);
}

/* What the stages before made of this pass, and its rows. The outcome's arrays stay valid for the pass. */
static int receive_hidden(struct serve *s, const struct rank_pass *pass, struct rank_outcome *ret_so_far)
{
	uint32_t before = s->assign.stage - 1;
	struct rank_message m;
	int status = receive_from_before(s, s->head_in, HEAD_BYTES);
	if (!status)
		status = rank_message_decode(s->head_in, s->hidden_in.bytes, s->hidden_scratch, &m, s->error);
	if (status)
		return status;
	if (m.type != RANK_MESSAGE_HIDDEN || m.result.pass != pass->pass ||
		m.result.entries_count != (m.result.status ? 0 : pass->entries_count))
		return base_error_set(s->error, -EPROTO, "rank: stage %u sent %s of pass %llu, pass %llu was due",
			before, rank_message_name(m.type), (unsigned long long)m.result.pass,
			(unsigned long long)pass->pass);
	*ret_so_far = m.result;
	if (m.result.status)
		return 0;
	size_t bytes = (size_t)pass->tokens_count * s->width * sizeof(float);
	if (pass->tokens_count > s->assign.config.batch_tokens)
		return base_error_set(s->error, -EPROTO, "rank: stage %u ran a pass of %u tokens, at most %u fit here",
			before, pass->tokens_count, s->assign.config.batch_tokens);
	status = receive_from_before(s, s->rows_in, bytes);
	if (status == -EMSGSIZE || (!status && s->hidden_in.bytes != bytes))
		return base_error_set(s->error, -EPROTO, "rank: stage %u sent %zu bytes of hidden rows, %zu were due",
			before, s->hidden_in.bytes, bytes);
	return status;
}

/* Runs the pass and joins its outcome with that of the stages before. An error: the ranks of this stage have come
 * apart. */
static int run_pass(struct serve *s, struct rank_pass *pass, float *rows_out, struct rank_outcome *o)
{
	struct rank_pass_result result = {
		.outputs = s->outputs, .hidden_out = rows_out, .entry_status = s->entry_status};
	pass->hidden_in = s->rows_in;
	memset(s->entry_status, 0, sizeof s->entry_status);
	struct base_error e = {0};
	o->status = rank_run(s->rank, pass, &result, &e);
	if (o->status && o->status != -EINVAL)
		return base_error_set(s->error, o->status, "rank: %s", base_error_text(&e));
	if (o->status || !o->e.message[0]) // the first stage's failure counts
		o->e = e;
	if (o->status) {
		o->entries_count = 0;
		o->e.code = o->status;
		if (!o->e.message[0])
			base_error_set(&o->e, o->status, "stage %u: %s", s->assign.stage, base_error_text(&o->e));
		return 0;
	}
	for (uint32_t i = 0; i < pass->entries_count && o->entry_status; i++) {
		if (o->entry_status[i])
			s->entry_status[i] = o->entry_status[i];
	}
	o->entries_count = pass->entries_count;
	o->entry_status = s->entry_status;
	o->outputs = result.outputs;
	o->outputs_count = s->answers ? result.outputs_count : 0;
	o->total_ns = result.total_ns > o->total_ns ? result.total_ns : o->total_ns;
	o->stall_ns += result.stall_ns;
	o->cold_bytes += result.cold_bytes;
	return 0;
}

static int handle_pass(struct serve *s, struct rank_pass *pass)
{
	struct rank_message m = {.type = s->last ? RANK_MESSAGE_RESULT : RANK_MESSAGE_HIDDEN};
	struct outgoing *head = s->last ? &s->result : &s->hidden_head[s->hidden_turn];
	struct outgoing *rows = &s->hidden_rows[s->hidden_turn];
	int status = 0;
	if (!s->first)
		status = receive_hidden(s, pass, &m.result);
	else if (pass->tokens_count > s->assign.config.batch_tokens) // before it is written past the rows' room
		m.result.status = base_error_set(&m.result.e, -EINVAL, "pass of %u tokens, at most %u",
			pass->tokens_count, s->assign.config.batch_tokens);
	if (!status)
		status = wait_sent(s, head);
	if (!status && !s->last)
		status = wait_sent(s, rows);
	if (status)
		return status;
	m.result.pass = pass->pass;
	if (!m.result.status)
		status = run_pass(s, pass, s->last ? NULL : (float *)rows->data, &m.result);
	if (status || (s->last && !s->answers))
		return status;
	if (s->last)
		return send_reply(s, head, &m);
	status = send_message(s, head, s->after, s->after_count, RANK_TAG_HIDDEN, &m);
	if (!status && !m.result.status)
		send_bytes(s, rows, s->after, s->after_count, RANK_TAG_HIDDEN,
			(size_t)pass->tokens_count * s->width * sizeof(float));
	s->hidden_turn = 1 - s->hidden_turn;
	return status;
}

// ---- tracing

static int send_piece(struct serve *s, uint32_t first)
{
	struct rank_message m = {.type = RANK_MESSAGE_TRACE_PIECE};
	struct rank_trace_piece *p = &m.trace_piece;
	if (!s->spans)
		s->spans = calloc(RANK_TRACE_PIECE_EVENTS, sizeof *s->spans);
	if (!s->trace_piece.data) {
		s->trace_piece.data = malloc(TRACE_BYTES);
		s->trace_piece.room_bytes = TRACE_BYTES;
	}
	if (!s->spans || !s->trace_piece.data)
		return base_error_set(s->error, -ENOMEM, "rank: no memory for a trace");
	p->first = first;
	p->events_count =
		base_trace_read(rank_trace(s->rank), first, s->spans, RANK_TRACE_PIECE_EVENTS, &p->total, &p->lost);
	p->events = s->spans;
	p->now_ns = base_clock_now_ns();
	p->wall_ns = base_clock_wall_ns();
	p->boot = base_clock_boot();
	if (gethostname(p->host, sizeof p->host - 1) < 0)
		p->host[0] = '\0';
	return send_reply(s, &s->trace_piece, &m);
}

/* Without memory nothing is recorded, and the pieces are empty: no reason to stop computing. */
static int handle_trace(struct serve *s, const struct rank_trace *t)
{
	int r;
	switch (t->step) {
	case RANK_TRACE_START:
		r = base_trace_start(rank_trace(s->rank), BASE_TRACE_EVENTS);
		if (r)
			base_log_warning(s->log, "cannot trace: %s", strerrordesc_np(-r));
		return 0;
	case RANK_TRACE_STOP:
		base_trace_stop(rank_trace(s->rank));
		return 0;
	case RANK_TRACE_READ:
		return send_piece(s, t->first);
	case RANK_TRACE_END:
		base_trace_clear(rank_trace(s->rank));
		return 0;
	}
	return 0;
}

// ---- the loop

static int handle(struct serve *s, struct rank_message *m)
{
	int r;
	if (!s->rank && m->type != RANK_MESSAGE_ASSIGN && m->type != RANK_MESSAGE_STOP &&
		m->type != RANK_MESSAGE_STATS_REQUEST)
		return base_error_set(
			s->error, -EPROTO, "rank: the coordinator sent %s before ASSIGN", rank_message_name(m->type));
	switch (m->type) {
	case RANK_MESSAGE_ASSIGN:
		return handle_assign(s, &m->assign);
	case RANK_MESSAGE_OPEN:
		r = rank_sequence_open(s->rank, m->open.sequence, &m->open.params, m->open.prompt_tokens);
		if (r) // the passes that name it will be refused, with text
			base_log_warning(
				s->log, "sequence %u cannot be opened: %s", m->open.sequence, strerrordesc_np(-r));
		return 0;
	case RANK_MESSAGE_CLOSE:
		rank_sequence_close(s->rank, m->close);
		return 0;
	case RANK_MESSAGE_PASS:
		return handle_pass(s, &m->pass);
	case RANK_MESSAGE_STATS_REQUEST:
		send_stats_if_due(s, true);
		return 0;
	case RANK_MESSAGE_TRACE:
		return handle_trace(s, &m->trace);
	case RANK_MESSAGE_STOP:
		return -ECANCELED;
	default:
		return base_error_set(s->error, -EPROTO, "rank: the coordinator sent %s", rank_message_name(m->type));
	}
}

/* The other end cannot read it either, but sees the version, and says whose fault it is. */
static void tell_version(struct serve *s)
{
	struct rank_message m = {.type = RANK_MESSAGE_FAILED, .failed = *s->error};
	send_reply(s, &s->small, &m);
	s->link->wait(s->group, &s->small.to[0].request, base_clock_now_ns() + LAST_WORDS_NS);
}

static int loop(struct serve *s)
{
	s->turn = 1;
	post_command(s, 0);
	for (;;) {
		uint32_t turn = 1 - s->turn; // not yet the present one: wait_for looks for STOP in it, too
		int r = wait_received(s, &s->command[turn]);
		if (r == -EMSGSIZE)
			return base_error_set(s->error, -EBADMSG, "rank: a command of %zu bytes, at most %u",
				s->command[turn].bytes, RANK_MAX_MESSAGE_BYTES);
		if (r)
			return r;
		s->turn = turn;
		struct rank_message m;
		r = rank_message_decode(s->command_data[turn], s->command[turn].bytes, s->scratch, &m, s->error);
		if (r == -EPROTONOSUPPORT)
			tell_version(s);
		if (r)
			return r;
		post_command(s, 1 - turn);
		r = check_stop(s);
		if (!r)
			r = handle(s, &m);
		if (r)
			return r;
		send_stats_if_due(s, false);
	}
}

static int take_command_buffers(struct serve *s)
{
	for (uint32_t i = 0; i < 2; i++) {
		s->command_data[i] = malloc(RANK_MAX_MESSAGE_BYTES);
		if (!s->command_data[i])
			return base_error_set(s->error, -ENOMEM, "rank: no memory for messages");
	}
	s->small.room_bytes = SMALL_BYTES;
	s->small.data = malloc(SMALL_BYTES);
	if (!s->small.data || rank_message_scratch_create(&s->scratch) < 0 ||
		rank_message_scratch_create(&s->hidden_scratch) < 0)
		return base_error_set(s->error, -ENOMEM, "rank: no memory for messages");
	return 0;
}

/* Requests under way hold pointers into these buffers, so what is sent gets its time, and then the group ends. */
static void finish(struct serve *s, int status)
{
	struct outgoing *const all[] = {&s->small, &s->result, &s->hidden_head[0], &s->hidden_rows[0],
		&s->hidden_head[1], &s->hidden_rows[1], &s->trace_piece};
	uint64_t deadline = base_clock_now_ns() + LAST_WORDS_NS;
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		for (uint32_t k = 0; k < all[i]->count && status == 0; k++) {
			if (all[i]->to[k].request.status == -EINPROGRESS)
				s->link->wait(s->group, &all[i]->to[k].request, deadline);
		}
	}
	s->link->revoke(s->group);
	s->link->progress(s->group, UINT32_MAX);
	if (s->tensor)
		s->tensor->ops->revoke(s->tensor);
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
		free(all[i]->data);
	rank_destroy(s->rank);
	rank_message_scratch_destroy(s->scratch);
	rank_message_scratch_destroy(s->hidden_scratch);
	free(s->command_data[0]);
	free(s->command_data[1]);
	free(s->head_in);
	free(s->rows_in);
	free(s->outputs);
	free(s->spans);
	free(s);
}

int rank_serve_until(const struct link_ops *link, struct link_group *group, struct link_group *tensor,
	struct base_log *log, const _Atomic bool *stop, struct base_error *e)
{
	struct serve *s = calloc(1, sizeof *s);
	struct base_error own;
	if (!s)
		return base_error_set(e, -ENOMEM, "rank: no memory");
	s->link = link;
	s->group = group;
	s->tensor = tensor;
	s->log = log;
	s->stop = stop;
	s->error = e ? e : &own;
	*s->error = (struct base_error){0};
	s->command[0].status = s->command[1].status = -EINVAL;
	int r = take_command_buffers(s);
	if (!r)
		r = loop(s);
	if (r == -ECANCELED && (s->stopping || !s->error->message[0]))
		r = 0;
	if (r && !s->error->message[0])
		base_error_set(s->error, r, "rank: %s",
			r == -ECONNRESET ? "the coordinator or another rank is gone" : strerrordesc_np(-r));
	finish(s, r);
	return r;
}
