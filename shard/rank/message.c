// SPDX-License-Identifier: Apache-2.0
#include "shard/rank/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

#define MAX_BLOCKS (RANK_MAX_MESSAGE_BYTES / 4)

struct rank_message_scratch {
	struct rank_entry entries[RANK_MAX_SEQUENCES];
	struct rank_output outputs[RANK_MAX_BATCH_TOKENS];
	struct base_trace_event trace[RANK_TRACE_PIECE_EVENTS];
};

/* One walk over the fields serves both directions, so that they cannot disagree. */
struct walk {
	bool writing;
	struct base_reader in;
	struct base_writer out;
	struct rank_message_scratch *scratch; // reading
	const char *bad; // the first field that is out of range
	uint32_t version; // of the other end, if that is what is bad
};

static bool ok(const struct walk *w)
{
	return !w->bad && !w->in.status && !w->out.status;
}

static void require(struct walk *w, bool good, const char *field)
{
	if (!good && ok(w))
		w->bad = field;
}

static void u32(struct walk *w, uint32_t *v)
{
	if (w->writing)
		base_writer_u32(&w->out, *v);
	else
		*v = base_reader_u32(&w->in);
}

static void u32_below(struct walk *w, uint32_t *v, uint32_t end, const char *field)
{
	u32(w, v);
	require(w, *v < end, field);
	if (!ok(w) && !w->writing)
		*v = 0;
}

static void i32(struct walk *w, int *v)
{
	uint32_t u = (uint32_t)*v;
	u32(w, &u);
	*v = (int)u;
}

static void u64(struct walk *w, uint64_t *v)
{
	if (w->writing)
		base_writer_u64(&w->out, *v);
	else
		*v = base_reader_u64(&w->in);
}

static void f32(struct walk *w, float *v)
{
	if (w->writing)
		base_writer_f32(&w->out, *v);
	else
		*v = base_reader_f32(&w->in);
}

static void flag(struct walk *w, bool *v, const char *field)
{
	uint32_t u = *v;
	u32_below(w, &u, 2, field);
	*v = u != 0;
}

/* Bytes padded with zeros to a multiple of 4. */
static void padded(struct walk *w, void *data, size_t n, const char *field)
{
	uint8_t zeros[4] = {0};
	size_t pad = (4 - n % 4) % 4;
	if (w->writing) {
		base_writer_bytes(&w->out, data, n);
		base_writer_bytes(&w->out, zeros, pad);
	} else {
		base_reader_copy(&w->in, data, n);
		base_reader_copy(&w->in, zeros, pad);
		require(w, !zeros[0] && !zeros[1] && !zeros[2], field);
	}
}

static void text(struct walk *w, char *s, size_t room, const char *field)
{
	uint32_t n = w->writing ? (uint32_t)strnlen(s, room) : 0;
	u32_below(w, &n, (uint32_t)room, field);
	if (!ok(w))
		n = 0;
	padded(w, s, n, field);
	if (w->writing)
		return;
	memset(s + n, 0, room - n);
	require(w, strlen(s) == n, field);
}

static void words(struct walk *w, const uint32_t **words, uint32_t *count, uint32_t most, const char *field)
{
	u32_below(w, count, most + 1, field);
	if (w->writing) {
		if (ok(w))
			base_writer_bytes(&w->out, *words, (size_t)*count * sizeof **words);
		return;
	}
	*words = base_reader_bytes(&w->in, (uint64_t)*count * sizeof **words);
	if (!ok(w))
		*count = 0;
}

static void walk_slice(struct walk *w, struct pack_slice *s)
{
	u32(w, &s->first_layer);
	u32(w, &s->layers);
	u32(w, &s->tp_rank);
	u32(w, &s->tp_size);
	require(w, s->first_layer < PROGRAM_MAX_LAYERS && s->layers <= PROGRAM_MAX_LAYERS - s->first_layer,
		"slice.layers");
	require(w, s->tp_rank < s->tp_size, "slice.tp_rank");
}

static void walk_config(struct walk *w, struct rank_config *c)
{
	text(w, c->store_directory, sizeof c->store_directory, "store_directory");
	text(w, c->model_path, sizeof c->model_path, "model_path");
	u64(w, &c->header_hash);
	padded(w, c->digest, sizeof c->digest, "digest");
	walk_slice(w, &c->slice);
	text(w, c->backend, sizeof c->backend, "backend");
	text(w, c->engine, sizeof c->engine, "engine");
	u64(w, &c->weights_budget_bytes);
	u64(w, &c->workspace_budget_bytes);
	u64(w, &c->kv_budget_bytes);
	uint32_t kv = (uint32_t)c->kv_type;
	u32_below(w, &kv, KV_Q8 + 1, "kv_type");
	c->kv_type = (enum kv_type)kv;
	u32_below(w, &c->batch_tokens, RANK_MAX_BATCH_TOKENS + 1, "batch_tokens");
	u32_below(w, &c->logits_rows, RANK_MAX_BATCH_TOKENS + 1, "logits_rows");
	u32_below(w, &c->sequences, RANK_MAX_SEQUENCES + 1, "sequences");
	u32(w, &c->context_tokens);
	u32(w, &c->slots);
	u32(w, &c->depth);
	u32(w, &c->verify_every);
	u32(w, &c->threads);
	u32_below(w, &c->cpus_count, (uint32_t)(sizeof c->cpus / sizeof c->cpus[0]) + 1, "cpus_count");
	for (uint32_t i = 0; i < c->cpus_count && ok(w); i++)
		u32(w, &c->cpus[i]);
}

static void walk_shape(struct walk *w, struct rank_shape *s)
{
	u32_below(w, &s->stages, RANK_MAX_RANKS + 1, "stages");
	for (uint32_t i = 0; i < s->stages && ok(w); i++) {
		uint32_t parts = s->parts[i];
		u32_below(w, &parts, RANK_MAX_PARTS + 1, "parts");
		s->parts[i] = (uint8_t)parts;
	}
	require(w, rank_shape_check(s, RANK_MAX_RANKS) == 0, "parts");
}

static void walk_assign(struct walk *w, struct rank_assign *a)
{
	u64(w, &a->epoch);
	walk_shape(w, &a->shape);
	u32_below(w, &a->stage, a->shape.stages, "stage");
	u64(w, &a->patience_ns);
	walk_config(w, &a->config);
}

static void walk_params(struct walk *w, struct sample_params *p)
{
	f32(w, &p->temperature);
	u32(w, &p->top_k);
	f32(w, &p->top_p);
	f32(w, &p->min_p);
	f32(w, &p->presence_penalty);
	f32(w, &p->frequency_penalty);
	f32(w, &p->repetition_penalty);
	u64(w, &p->seed);
	u32_below(w, &p->logprobs, SAMPLE_MAX_LOGPROBS + 1, "logprobs");
	u32_below(w, &p->bias_count, SAMPLE_MAX_BIAS + 1, "bias_count");
	for (uint32_t i = 0; i < p->bias_count && ok(w); i++) {
		u32(w, &p->bias[i].token);
		f32(w, &p->bias[i].bias);
	}
	u32(w, &p->min_new_tokens);
	u32_below(w, &p->banned_count, SAMPLE_MAX_BANNED + 1, "banned_count");
	for (uint32_t i = 0; i < p->banned_count && ok(w); i++)
		u32(w, &p->banned[i]);
}

static bool inside(uint32_t first, uint32_t count, uint32_t total)
{
	return first <= total && count <= total - first;
}

static void walk_entry(struct walk *w, struct rank_entry *e, const struct rank_pass *p)
{
	u32_below(w, &e->sequence, RANK_MAX_SEQUENCES, "entry.sequence");
	u32(w, &e->first_position);
	u32(w, &e->tokens);
	u32(w, &e->first_token);
	u32(w, &e->first_block);
	u32(w, &e->blocks);
	uint32_t want = (uint32_t)e->want;
	u32_below(w, &want, RANK_WANT_SCORES + 1, "entry.want");
	e->want = (enum rank_want)want;
	u32(w, &e->first_target);
	u32_below(w, &e->score_top, SAMPLE_MAX_LOGPROBS + 1, "entry.score_top");
	require(w, e->tokens > 0 && inside(e->first_token, e->tokens, p->tokens_count), "entry.tokens");
	require(w, e->first_position <= UINT32_MAX - e->tokens, "entry.first_position");
	require(w, inside(e->first_block, e->blocks, p->blocks_count), "entry.blocks");
	require(w, e->want != RANK_WANT_SCORES || inside(e->first_target, e->tokens, p->targets_count),
		"entry.first_target");
}

static void walk_pass(struct walk *w, struct rank_pass *p)
{
	u64(w, &p->pass);
	words(w, &p->tokens, &p->tokens_count, RANK_MAX_BATCH_TOKENS, "tokens_count");
	words(w, &p->blocks, &p->blocks_count, MAX_BLOCKS, "blocks_count");
	words(w, &p->targets, &p->targets_count, RANK_MAX_BATCH_TOKENS, "targets_count");
	u32_below(w, &p->entries_count, RANK_MAX_SEQUENCES + 1, "entries_count");
	if (!w->writing) {
		p->entries = w->scratch->entries;
		p->hidden_in = NULL;
	}
	for (uint32_t i = 0; i < p->entries_count && ok(w); i++) {
		struct rank_entry e = {0};
		if (w->writing)
			e = p->entries[i];
		walk_entry(w, &e, p);
		if (!w->writing)
			w->scratch->entries[i] = e;
	}
}

static void walk_sample(struct walk *w, struct sample_result *r)
{
	u32(w, &r->token);
	f32(w, &r->logprob);
	u32_below(w, &r->top_count, SAMPLE_MAX_LOGPROBS + 1, "output.top_count");
	for (uint32_t i = 0; i < r->top_count && ok(w); i++) {
		u32(w, &r->top[i].token);
		f32(w, &r->top[i].logprob);
	}
}

static void walk_error(struct walk *w, struct base_error *e)
{
	i32(w, &e->code);
	require(w, e->code <= 0, "error.code");
	text(w, e->message, sizeof e->message, "error.message");
}

static void walk_outcome(struct walk *w, struct rank_outcome *o, bool outputs)
{
	u64(w, &o->pass);
	i32(w, &o->status);
	require(w, o->status <= 0, "status");
	walk_error(w, &o->e);
	words(w, (const uint32_t **)&o->entry_status, &o->entries_count, RANK_MAX_SEQUENCES, "entries_count");
	for (uint32_t i = 0; i < o->entries_count && ok(w); i++)
		require(w, o->entry_status[i] <= 0, "entry_status");
	u64(w, &o->total_ns);
	u64(w, &o->stall_ns);
	u64(w, &o->cold_bytes);
	u32_below(w, &o->outputs_count, outputs ? RANK_MAX_BATCH_TOKENS + 1 : 1, "outputs_count");
	if (!w->writing)
		o->outputs = w->scratch->outputs;
	for (uint32_t i = 0; i < o->outputs_count && ok(w); i++) {
		struct rank_output x = {0};
		if (w->writing)
			x = o->outputs[i];
		u32_below(w, &x.entry, o->entries_count, "output.entry");
		u32_below(w, &x.token_index, RANK_MAX_BATCH_TOKENS, "output.token_index");
		walk_sample(w, &x.result);
		if (!w->writing)
			w->scratch->outputs[i] = x;
	}
}

static void walk_placement(struct walk *w, struct rank_placement *p)
{
	u64(w, &p->hot_bytes);
	u64(w, &p->cold_bytes);
	u64(w, &p->slot_bytes);
	u64(w, &p->workspace_bytes);
	u64(w, &p->kv_bytes);
	u32(w, &p->kv_blocks);
	u32(w, &p->extents);
	u32(w, &p->hot_extents);
	text(w, p->engine, sizeof p->engine, "engine");
	text(w, p->pages, sizeof p->pages, "pages");
	text(w, p->isa, sizeof p->isa, "isa");
	flag(w, &p->direct_io, "direct_io");
	text(w, p->fallback, sizeof p->fallback, "fallback");
}

static void walk_stats(struct walk *w, struct rank_stats *s)
{
	struct offload_stream_stats *o = &s->stream;
	uint64_t *const fields[] = {&o->read_bytes, &o->reads, &o->stall_ns, &o->late, &o->verify_bytes, &o->verify_ns,
		&o->io_cpu_ns, &o->errors, &o->rereads, &o->read_latency_ns, &s->passes, &s->pass_ns, &s->compute_ns,
		&s->embed_read_bytes};
	for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
		u64(w, fields[i]);
	u32(w, &o->inflight);
}

static void walk_trace(struct walk *w, struct rank_trace *t)
{
	uint32_t step = (uint32_t)t->step;
	u32_below(w, &step, RANK_TRACE_END + 1, "trace.step");
	t->step = (enum rank_trace_step)step;
	u32_below(w, &t->first, BASE_TRACE_EVENTS + 1, "trace.first");
}

static void walk_trace_piece(struct walk *w, struct rank_trace_piece *t)
{
	u32_below(w, &t->first, BASE_TRACE_EVENTS + 1, "first");
	u32_below(w, &t->total, BASE_TRACE_EVENTS + 1, "total");
	u64(w, &t->lost);
	u64(w, &t->now_ns);
	u64(w, &t->wall_ns);
	u64(w, &t->boot);
	text(w, t->host, sizeof t->host, "host");
	u32_below(w, &t->events_count, RANK_TRACE_PIECE_EVENTS + 1, "events_count");
	require(w, inside(t->first, t->events_count, t->total) || (!t->events_count && t->first >= t->total),
		"events_count");
	if (!w->writing)
		t->events = w->scratch->trace;
	for (uint32_t i = 0; i < t->events_count && ok(w); i++) {
		struct base_trace_event x = {0};
		if (w->writing)
			x = t->events[i];
		u64(w, &x.start_ns);
		u64(w, &x.end_ns);
		u64(w, &x.amount);
		u32_below(w, &x.kind, BASE_TRACE_KINDS, "event.kind");
		u32(w, &x.place);
		require(w, x.start_ns <= x.end_ns, "event.end_ns");
		if (!w->writing)
			w->scratch->trace[i] = x;
	}
}

static void walk_message(struct walk *w, struct rank_message *m)
{
	uint32_t version = RANK_MESSAGE_VERSION, type = (uint32_t)m->type;
	u32(w, &version);
	if (!w->writing && ok(w) && version != RANK_MESSAGE_VERSION) {
		w->version = version;
		require(w, false, "version");
	}
	u32(w, &type);
	m->type = (enum rank_message_type)type;
	if (!ok(w))
		return;
	switch (m->type) {
	case RANK_MESSAGE_ASSIGN:
		return walk_assign(w, &m->assign);
	case RANK_MESSAGE_OPEN:
		u32_below(w, &m->open.sequence, RANK_MAX_SEQUENCES, "sequence");
		u32(w, &m->open.prompt_tokens);
		return walk_params(w, &m->open.params);
	case RANK_MESSAGE_CLOSE:
		return u32_below(w, &m->close, RANK_MAX_SEQUENCES, "sequence");
	case RANK_MESSAGE_PASS:
		return walk_pass(w, &m->pass);
	case RANK_MESSAGE_STATS_REQUEST:
	case RANK_MESSAGE_STOP:
		return;
	case RANK_MESSAGE_PROGRESS:
		u64(w, &m->progress.done_bytes);
		return u64(w, &m->progress.total_bytes);
	case RANK_MESSAGE_READY:
		return walk_placement(w, &m->ready);
	case RANK_MESSAGE_FAILED:
		return walk_error(w, &m->failed);
	case RANK_MESSAGE_RESULT:
	case RANK_MESSAGE_HIDDEN:
		return walk_outcome(w, &m->result, m->type == RANK_MESSAGE_RESULT);
	case RANK_MESSAGE_STATS:
		return walk_stats(w, &m->stats);
	case RANK_MESSAGE_TRACE:
		return walk_trace(w, &m->trace);
	case RANK_MESSAGE_TRACE_PIECE:
		return walk_trace_piece(w, &m->trace_piece);
	}
	require(w, false, "type");
}

const char *rank_message_name(enum rank_message_type type)
{
	static const struct {
		enum rank_message_type type;
		const char *name;
	} names[] = {{RANK_MESSAGE_ASSIGN, "ASSIGN"}, {RANK_MESSAGE_OPEN, "OPEN"}, {RANK_MESSAGE_CLOSE, "CLOSE"},
		{RANK_MESSAGE_PASS, "PASS"}, {RANK_MESSAGE_STATS_REQUEST, "STATS_REQUEST"}, {RANK_MESSAGE_STOP, "STOP"},
		{RANK_MESSAGE_PROGRESS, "PROGRESS"}, {RANK_MESSAGE_READY, "READY"}, {RANK_MESSAGE_FAILED, "FAILED"},
		{RANK_MESSAGE_RESULT, "RESULT"}, {RANK_MESSAGE_STATS, "STATS"}, {RANK_MESSAGE_HIDDEN, "HIDDEN"},
		{RANK_MESSAGE_TRACE, "TRACE"}, {RANK_MESSAGE_TRACE_PIECE, "TRACE_PIECE"}};
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (names[i].type == type)
			return names[i].name;
	}
	return "?";
}

int rank_message_scratch_create(struct rank_message_scratch **ret_scratch)
{
	struct rank_message_scratch *s = malloc(sizeof *s);
	if (!s)
		return -ENOMEM;
	*ret_scratch = s;
	return 0;
}

void rank_message_scratch_destroy(struct rank_message_scratch *s)
{
	free(s);
}

int64_t rank_message_encode(const struct rank_message *m, void *out, size_t room_bytes)
{
	struct rank_message copy = *m; // the walk wants to write, in the other direction
	struct walk w = {.writing = true};
	base_writer_init(&w.out, out, room_bytes < RANK_MAX_MESSAGE_BYTES ? room_bytes : RANK_MAX_MESSAGE_BYTES);
	walk_message(&w, &copy);
	if (w.bad)
		return -EINVAL;
	return w.out.status ? w.out.status : (int64_t)w.out.at;
}

int rank_message_decode(const void *data, size_t bytes, struct rank_message_scratch *scratch,
	struct rank_message *ret_message, struct base_error *e)
{
	struct walk w = {.scratch = scratch};
	struct rank_message m;
	memset(&m, 0, sizeof m);
	if ((uintptr_t)data % 4)
		return base_error_set(e, -EINVAL, "message: not aligned");
	if (bytes > RANK_MAX_MESSAGE_BYTES)
		return base_error_set(e, -EBADMSG, "message: %zu bytes, at most %u", bytes, RANK_MAX_MESSAGE_BYTES);
	base_reader_init(&w.in, data, bytes);
	walk_message(&w, &m);
	const char *name = rank_message_name(m.type);
	if (w.bad && strcmp(w.bad, "version") == 0)
		return base_error_set(e, -EPROTONOSUPPORT,
			"the messages of the other end are of version %u, of this one %u: thawd and thaw-rank are of "
			"different builds; install both from the same one and restart thawd",
			w.version, RANK_MESSAGE_VERSION);
	if (w.bad)
		return base_error_set(e, -EBADMSG, "message %s: bad %s before byte %zu", name, w.bad, w.in.at);
	if (w.in.status)
		return base_error_set(
			e, -EBADMSG, "message %s: cut short after %zu of %zu bytes", name, w.in.at, bytes);
	if (base_reader_left(&w.in))
		return base_error_set(e, -EBADMSG, "message %s: %zu bytes too many", name, base_reader_left(&w.in));
	*ret_message = m;
	return 0;
}
