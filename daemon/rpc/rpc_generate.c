// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_generate.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "daemon/rpc/rpc_ring.h"
#include "daemon/rpc/rpc_wire.h"

/* Several hundred tokens ahead of the reader, and of what HTTP/2 holds besides. */
#define GENERATE_RING_BYTES (32u << 10)
#define GENERATE_RING_MAX_BYTES (512u << 10)

struct generation {
	struct rpc_call *call;
	struct server *daemon;
	const struct server_model *model;
	char id[REQUEST_ID_BYTES];
	struct rpc_wire_options options;
	bool submitted, named; // named: the first chunk with the request's id is out
	struct rpc_ring ring;
	struct rpc_back back;
	atomic_bool overflow;
	atomic_bool final; // end is set, and nothing comes after
	struct {
		struct base_error error;
		uint64_t retry_after_ns;
		struct request_timing timing;
	} end;
	/* Generate: records so far, each behind its length, aligned to 8. */
	uint8_t *records;
	size_t records_bytes, records_room;
	uint32_t top, scores; // Score: likeliest of each position, and positions at most
};

/* Engine's thread. */
static bool generation_emit(void *context, const struct request_event *e)
{
	struct generation *g = context;
	struct rpc_call *c = g->call;
	bool follows = !atomic_load(&c->closed);
	if (follows && rpc_record_wanted(e)) {
		uint32_t bytes = rpc_record_bytes(e);
		void *p = rpc_ring_reserve(&g->ring, bytes);
		if (p) {
			rpc_record_write(e, p);
			rpc_ring_commit(&g->ring, bytes);
		} else {
			atomic_store(&g->overflow, true);
			follows = false;
		}
	}
	if (!e->final) {
		rpc_call_wake(c);
		return follows;
	}
	g->end.error = e->error;
	g->end.retry_after_ns = e->retry_after_ns;
	g->end.timing = e->timing;
	atomic_store(&g->final, true);
	rpc_call_hand_back(c, &g->back);
	return follows;
}

uint32_t rpc_sink_room_bytes(const struct request_sink *sink)
{
	const struct generation *g = sink->context;
	return g->ring.bytes - rpc_ring_used(&g->ring);
}

/* Starting. */

const struct server_model *rpc_generate_acquire(struct rpc_call *c, const char *name)
{
	struct server *daemon = c->queue->server->daemon;
	const struct server_model *model = NULL;
	uint64_t retry_ns = 0;
	struct base_error e = {0};
	struct rpc_fault f;
	int r = server_acquire_model(daemon, name, &model, &retry_ns, &e);
	if (r == 0)
		return model;
	if (!e.message[0] && r == -ENOENT)
		base_error_set(&e, r, "there is no model \"%s\"", name);
	rpc_fault_from(&f, r, &e, retry_ns, "model");
	if (r == -ENOENT)
		f.reason = "MODEL_NOT_FOUND";
	else if (r == -EHOSTDOWN && server_draining(daemon))
		f.reason = "DRAINING";
	rpc_call_fail(c, &f);
	return NULL;
}

static struct generation *generation_new(struct rpc_call *c, const char *model_name)
{
	const struct server_model *model = rpc_generate_acquire(c, model_name);
	if (!model)
		return NULL;
	struct generation *g = calloc(1, sizeof(*g));
	if (!g) {
		struct rpc_fault f;
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the call");
		rpc_call_fail(c, &f);
		server_release_model(c->queue->server->daemon, model);
		return NULL;
	}
	g->call = c;
	g->daemon = c->queue->server->daemon;
	g->model = model;
	c->context = g;
	return g;
}

static uint64_t random_seed(void)
{
	uint64_t seed = 0;
	return getrandom(&seed, sizeof(seed), 0) == sizeof(seed) ? seed : 0;
}

/* Takes q over. */
static void generation_submit(struct generation *g, struct request *q, uint64_t ring_bytes)
{
	struct rpc_call *c = g->call;
	struct base_error e = {0};
	struct rpc_fault f;
	uint64_t retry_ns = 0;
	snprintf(g->id, sizeof(g->id), "%s", q->id);
	snprintf(c->request_id, sizeof(c->request_id), "%s", q->id);
	q->deadline_ns = rpc_call_deadline_ns(c);
	q->sink = (struct request_sink){generation_emit, g};
	int r = rpc_ring_init(&g->ring, ring_bytes);
	if (r < 0) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the answer");
	} else {
		rpc_call_ref(c); // the engine's, until its last event
		g->submitted = true;
		r = engine_submit(g->model->engine, q, &retry_ns, &e);
		if (r == 0)
			return;
		g->submitted = false;
		rpc_call_drop(c);
		rpc_fault_from(&f, r, &e, retry_ns, r == -E2BIG ? "prompt" : "request");
		if (r == -E2BIG)
			f.reason = "PROMPT_TOO_LONG";
		else if (r == -EEXIST)
			f.reason = "REQUEST_ID_IN_USE";
		else if (r == -EHOSTDOWN && server_draining(g->daemon))
			f.reason = "DRAINING";
	}
	request_destroy(q);
	rpc_call_fail(c, &f);
}

void rpc_generate_start(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__GenerateRequest *m = (const Thaw__V1__GenerateRequest *)request;
	struct generation *g = generation_new(c, m->model);
	struct request *q = NULL;
	struct rpc_fault f;
	if (!g)
		return;
	if (rpc_wire_generate(m, g->model, c->request_id, c->priority, random_seed(), &q, &g->options, &f) < 0) {
		rpc_call_fail(c, &f);
		return;
	}
	uint64_t bytes = GENERATE_RING_BYTES * (uint64_t)(1 + q->num_sequences / 2) * (q->sampling.logprobs ? 4 : 1);
	generation_submit(g, q, bytes < GENERATE_RING_MAX_BYTES ? bytes : GENERATE_RING_MAX_BYTES);
}

void rpc_generate_score_start(struct rpc_call *c, const ProtobufCMessage *request)
{
	const Thaw__V1__ScoreRequest *m = (const Thaw__V1__ScoreRequest *)request;
	struct generation *g = generation_new(c, m->model);
	struct request *q = NULL;
	struct rpc_fault f;
	if (!g)
		return;
	if (rpc_wire_score(m, g->model, c->request_id, c->priority, random_seed(), &q, &f) < 0) {
		rpc_call_fail(c, &f);
		return;
	}
	g->top = q->score_top;
	g->scores = q->prompt_tokens - q->score_first;
	/* A pass gives hundreds of scores at once: the ring holds them all. */
	uint64_t each = sizeof(struct rpc_record) + sizeof(struct sample_logprob) * (uint64_t)q->score_top + 16;
	generation_submit(g, q, GENERATE_RING_BYTES + each * q->prompt_tokens);
}

void rpc_generate_closed(struct rpc_call *c)
{
	struct generation *g = c->context;
	if (g->submitted && !atomic_load(&g->final))
		engine_abort(g->model->engine, g->id);
}

void rpc_generate_destroy(struct rpc_call *c)
{
	struct generation *g = c->context;
	if (!g)
		return;
	server_release_model(g->daemon, g->model);
	rpc_ring_finish(&g->ring);
	free(g->records);
	free(g);
}

/* Ending. */

static void generation_end(struct generation *g, struct rpc_next *out)
{
	struct rpc_call *c = g->call;
	struct rpc_fault f;
	if (atomic_load(&g->overflow)) {
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "SLOW_READER", NULL,
			"the reader is %u bytes of tokens behind, which is the limit", g->ring.bytes);
		rpc_call_fail(c, &f);
	} else if (g->end.error.code < 0) {
		rpc_fault_from(&f, g->end.error.code, &g->end.error, g->end.retry_after_ns, "prompt");
		if (g->end.error.code == -EHOSTDOWN && server_draining(g->daemon))
			f.reason = "DRAINING";
		rpc_call_fail(c, &f);
	} else {
		rpc_call_end(c);
	}
	out->end = true;
	out->more = false;
}

static bool generation_good(struct generation *g)
{
	return !atomic_load(&g->overflow) && g->end.error.code >= 0;
}

/* Log probabilities of a record. */

struct tops {
	Thaw__V1__TopLogprob *tops;
	Thaw__V1__TopLogprob **list;
};

static void fill_tops(const struct rpc_record *r, struct tops *t, size_t *ret_count, Thaw__V1__TopLogprob ***ret_list)
{
	for (uint32_t i = 0; i < r->top_count; i++) {
		thaw__v1__top_logprob__init(&t->tops[i]);
		t->tops[i].token_id = r->top[i].token;
		t->tops[i].logprob = r->top[i].logprob;
		t->list[i] = &t->tops[i];
	}
	*ret_count = r->top_count;
	*ret_list = t->list;
	t->tops += r->top_count;
	t->list += r->top_count;
}

static void fill_logprob(const struct rpc_record *r, struct tops *t, Thaw__V1__TokenLogprob *out)
{
	thaw__v1__token_logprob__init(out);
	out->token_id = r->token;
	out->logprob = r->logprob;
	fill_tops(r, t, &out->n_top, &out->top);
}

static Thaw__V1__FinishReason wire_finish(uint8_t finish)
{
	switch ((enum request_finish)finish) {
	case REQUEST_FINISH_NONE:
		break;
	case REQUEST_FINISH_LENGTH:
		return THAW__V1__FINISH_REASON__LENGTH;
	case REQUEST_FINISH_STOP:
		return THAW__V1__FINISH_REASON__STOP;
	case REQUEST_FINISH_ABORTED:
		return THAW__V1__FINISH_REASON__ABORTED;
	}
	return THAW__V1__FINISH_REASON__FINISH_REASON_UNSPECIFIED;
}

/* GenerateStream. */

struct chunk { // a chunk and all that it points to
	Thaw__V1__GenerateChunk chunk;
	Thaw__V1__PromptInfo info;
	Thaw__V1__Output output, *outputs[1];
	Thaw__V1__TokenLogprob logprob, *logprobs[1];
	Thaw__V1__TopLogprob tops[SAMPLE_MAX_LOGPROBS], *top_list[SAMPLE_MAX_LOGPROBS];
	Thaw__V1__Timing timing;
	uint32_t token;
	char text[REQUEST_MAX_TEXT_BYTES + 1];
};

static void chunk_record(const struct generation *g, const struct rpc_record *r, struct chunk *k)
{
	if (r->flags & RPC_RECORD_PROMPT_INFO) {
		thaw__v1__prompt_info__init(&k->info);
		k->info.num_prompt_tokens = r->prompt_tokens;
		k->info.cached_tokens = r->cached_tokens;
		k->info.max_new_tokens = r->max_new_tokens;
		k->chunk.prompt_info = &k->info;
	}
	if (!(r->flags & RPC_RECORD_TOKEN) && !r->text_bytes && !r->finish)
		return;
	Thaw__V1__Output *o = &k->output;
	thaw__v1__output__init(o);
	o->index = r->output;
	o->finish = wire_finish(r->finish);
	if (!g->options.omit_text && r->text_bytes) {
		memcpy(k->text, rpc_record_text(r), r->text_bytes);
		k->text[r->text_bytes] = 0;
		o->text = k->text;
	}
	if (r->flags & RPC_RECORD_TOKEN) {
		k->token = r->token;
		o->n_token_ids = g->options.token_ids;
		o->token_ids = &k->token;
		if (g->options.logprobs) {
			struct tops t = {k->tops, k->top_list};
			fill_logprob(r, &t, &k->logprob);
			k->logprobs[0] = &k->logprob;
			o->n_logprobs = 1;
			o->logprobs = k->logprobs;
		}
	}
	k->outputs[0] = o;
	k->chunk.n_outputs = 1;
	k->chunk.outputs = k->outputs;
}

void rpc_generate_stream_next(struct rpc_call *c, struct rpc_next *out)
{
	struct generation *g = c->context;
	struct chunk k;
	uint32_t bytes;
	bool final = atomic_load(&g->final); // before the ring: what is written before it is seen
	const struct rpc_record *r = rpc_ring_peek(&g->ring, &bytes);
	if (!r && !final)
		return;
	bool last = final && (!r || rpc_ring_is_last(&g->ring));
	thaw__v1__generate_chunk__init(&k.chunk);
	if (r)
		chunk_record(g, r, &k);
	if (last && generation_good(g)) {
		rpc_wire_timing(&g->end.timing, &k.timing);
		k.chunk.timing = &k.timing;
	}
	if (r || k.chunk.timing) {
		if (!g->named)
			k.chunk.request_id = g->id;
		g->named = true;
		out->message = rpc_pack(&k.chunk.base);
		out->has_message = true;
	}
	if (r)
		rpc_ring_release(&g->ring);
	if (last)
		generation_end(g, out);
	else
		out->more = final || rpc_ring_used(&g->ring) > 0;
}

/* Generate. */

static int keep_record(struct generation *g, const struct rpc_record *r, uint32_t bytes)
{
	size_t need = 8 + ((size_t)bytes + 7) / 8 * 8;
	if (g->records_bytes + need > RPC_WIRE_MAX_REPLY_BYTES)
		return -E2BIG;
	if (g->records_bytes + need > g->records_room) {
		size_t room = 2 * g->records_room + need + 4096;
		uint8_t *grown = realloc(g->records, room);
		if (!grown)
			return -ENOMEM;
		g->records = grown;
		g->records_room = room;
	}
	memcpy(g->records + g->records_bytes, &bytes, sizeof(bytes));
	memcpy(g->records + g->records_bytes + 8, r, bytes);
	g->records_bytes += need;
	return 0;
}

static const struct rpc_record *kept_record(const struct generation *g, size_t *at)
{
	uint32_t bytes;
	if (*at >= g->records_bytes)
		return NULL;
	memcpy(&bytes, g->records + *at, sizeof(bytes));
	const struct rpc_record *r = (const struct rpc_record *)(g->records + *at + 8);
	*at += 8 + ((size_t)bytes + 7) / 8 * 8;
	return r;
}

struct reply { // sums over the records of one output, then where to write
	size_t text_bytes, tokens, logprobs;
	char *text;
	uint32_t *ids;
	Thaw__V1__TokenLogprob **list;
	Thaw__V1__Output output;
	bool there;
};

/* All that a reply points to, in one piece of memory: the sizes are known from the first walk over the records. */
struct reply_memory {
	struct reply outputs[REQUEST_MAX_SEQUENCES];
	Thaw__V1__Output *list[REQUEST_MAX_SEQUENCES];
	Thaw__V1__TokenLogprob *logprobs, **logprob_list;
	struct tops tops;
	void *block;
};

static bool record_has_logprob(const struct generation *g, const struct rpc_record *r)
{
	return g->options.logprobs && (r->flags & RPC_RECORD_TOKEN);
}

static int reply_memory(const struct generation *g, struct reply_memory *m)
{
	size_t at = 0, text = 0, tokens = 0, tops = 0;
	for (const struct rpc_record *r; (r = kept_record(g, &at));) {
		if (r->output >= REQUEST_MAX_SEQUENCES)
			continue;
		struct reply *o = &m->outputs[r->output];
		o->there = true;
		o->text_bytes += r->text_bytes;
		o->tokens += (r->flags & RPC_RECORD_TOKEN) != 0;
		tops += record_has_logprob(g, r) ? r->top_count : 0;
	}
	for (uint32_t i = 0; i < REQUEST_MAX_SEQUENCES; i++) {
		text += m->outputs[i].text_bytes + 1;
		tokens += m->outputs[i].tokens;
	}
	/* Bounded by the records, and so by RPC_WIRE_MAX_REPLY_BYTES. In the order of alignment. */
	m->block = malloc(tokens * (sizeof(*m->logprobs) + sizeof(*m->logprob_list)) +
			  tops * (sizeof(*m->tops.tops) + sizeof(*m->tops.list)) + tokens * sizeof(uint32_t) + text);
	if (!m->block)
		return -ENOMEM;
	m->logprobs = m->block;
	m->tops.tops = (Thaw__V1__TopLogprob *)(m->logprobs + tokens);
	m->logprob_list = (Thaw__V1__TokenLogprob **)(m->tops.tops + tops);
	m->tops.list = (Thaw__V1__TopLogprob **)(m->logprob_list + tokens);
	uint32_t *ids = (uint32_t *)(m->tops.list + tops);
	char *texts = (char *)(ids + tokens);
	for (uint32_t i = 0; i < REQUEST_MAX_SEQUENCES; i++) {
		struct reply *o = &m->outputs[i];
		o->ids = ids;
		o->text = texts;
		o->list = m->logprob_list;
		ids += o->tokens;
		texts += o->text_bytes + 1;
		m->logprob_list += o->tokens;
		thaw__v1__output__init(&o->output);
		o->output.index = i;
		o->output.text = o->text;
		o->output.token_ids = o->ids;
		o->output.logprobs = o->list;
		o->text_bytes = o->tokens = 0;
	}
	return 0;
}

static void reply_record(const struct generation *g, const struct rpc_record *r, struct reply_memory *m,
	Thaw__V1__GenerateReply *reply, Thaw__V1__PromptInfo *info)
{
	if (r->flags & RPC_RECORD_PROMPT_INFO) {
		info->num_prompt_tokens = r->prompt_tokens;
		info->cached_tokens = r->cached_tokens;
		info->max_new_tokens = r->max_new_tokens;
		reply->prompt_info = info;
	}
	if (r->output >= REQUEST_MAX_SEQUENCES)
		return;
	struct reply *o = &m->outputs[r->output];
	if (!g->options.omit_text) {
		memcpy(o->text + o->text_bytes, rpc_record_text(r), r->text_bytes);
		o->text_bytes += r->text_bytes;
	}
	if (r->flags & RPC_RECORD_TOKEN)
		o->ids[o->tokens++] = r->token;
	if (record_has_logprob(g, r)) {
		fill_logprob(r, &m->tops, m->logprobs);
		o->list[o->logprobs++] = m->logprobs++;
	}
	if (r->finish)
		o->output.finish = wire_finish(r->finish);
}

static int generation_reply(struct generation *g, struct rpc_next *out)
{
	Thaw__V1__GenerateReply reply = THAW__V1__GENERATE_REPLY__INIT;
	Thaw__V1__PromptInfo info = THAW__V1__PROMPT_INFO__INIT;
	Thaw__V1__Timing timing;
	_cleanup_free_ struct reply_memory *m = calloc(1, sizeof(*m));
	if (!m || reply_memory(g, m) < 0)
		return -ENOMEM;
	size_t at = 0;
	for (const struct rpc_record *r; (r = kept_record(g, &at));)
		reply_record(g, r, m, &reply, &info);
	for (uint32_t i = 0; i < REQUEST_MAX_SEQUENCES; i++) {
		struct reply *o = &m->outputs[i];
		o->text[o->text_bytes] = 0;
		o->output.n_token_ids = g->options.token_ids ? o->tokens : 0;
		o->output.n_logprobs = o->logprobs;
		if (o->there)
			m->list[reply.n_outputs++] = &o->output;
	}
	reply.outputs = m->list;
	rpc_wire_timing(&g->end.timing, &timing);
	reply.timing = &timing;
	reply.request_id = g->id;
	out->message = rpc_pack(&reply.base);
	out->has_message = true;
	free(m->block);
	return 0;
}

static void generation_fail(struct generation *g, int r, struct rpc_next *out)
{
	struct rpc_fault f;
	if (r == -E2BIG)
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "REPLY_TOO_LARGE", NULL,
			"the answer is beyond %u bytes: use GenerateStream, or ask for less", RPC_WIRE_MAX_REPLY_BYTES);
	else
		rpc_fault_set(&f, GRPC_STATUS_RESOURCE_EXHAUSTED, "NO_MEMORY", NULL, "no memory for the answer");
	rpc_call_fail(g->call, &f);
	rpc_generate_closed(g->call);
	out->end = true;
}

void rpc_generate_unary_next(struct rpc_call *c, struct rpc_next *out)
{
	struct generation *g = c->context;
	bool final = atomic_load(&g->final);
	uint32_t bytes;
	int r = 0;
	for (const struct rpc_record *record; r == 0 && (record = rpc_ring_peek(&g->ring, &bytes));) {
		r = keep_record(g, record, bytes);
		rpc_ring_release(&g->ring);
	}
	if (r == 0 && final && generation_good(g))
		r = generation_reply(g, out);
	if (r < 0)
		generation_fail(g, r, out);
	else if (final)
		generation_end(g, out);
}

/* Score. */

static int score_reply(struct generation *g, struct rpc_next *out)
{
	Thaw__V1__ScoreReply reply = THAW__V1__SCORE_REPLY__INIT;
	Thaw__V1__Timing timing;
	size_t room = g->scores, top_room = room * (g->top ? g->top : 1);
	_cleanup_free_ Thaw__V1__TokenScore *scores = calloc(room, sizeof(*scores));
	_cleanup_free_ Thaw__V1__TokenScore **list = calloc(room, sizeof(*list));
	_cleanup_free_ Thaw__V1__TopLogprob *tops = malloc(top_room * sizeof(*tops));
	_cleanup_free_ Thaw__V1__TopLogprob **top_list = malloc(top_room * sizeof(*top_list));
	if (!scores || !list || !tops || !top_list)
		return -ENOMEM;
	struct tops t = {tops, top_list};
	uint32_t bytes;
	for (const struct rpc_record *r; (r = rpc_ring_peek(&g->ring, &bytes)); rpc_ring_release(&g->ring)) {
		if (r->flags & RPC_RECORD_PROMPT_INFO)
			reply.num_prompt_tokens = r->prompt_tokens;
		if (!(r->flags & RPC_RECORD_SCORE) || r->top_count > g->top || reply.n_scores == room)
			continue;
		Thaw__V1__TokenScore *s = &scores[reply.n_scores];
		thaw__v1__token_score__init(s);
		s->position = r->position;
		s->token_id = r->token;
		s->logprob = r->logprob;
		fill_tops(r, &t, &s->n_top, &s->top);
		reply.sum_logprob += (double)r->logprob;
		list[reply.n_scores++] = s;
	}
	reply.scores = list;
	reply.request_id = g->id;
	rpc_wire_timing(&g->end.timing, &timing);
	reply.timing = &timing;
	out->message = rpc_pack(&reply.base);
	out->has_message = true;
	return 0;
}

void rpc_generate_score_next(struct rpc_call *c, struct rpc_next *out)
{
	struct generation *g = c->context;
	if (!atomic_load(&g->final))
		return;
	if (generation_good(g) && score_reply(g, out) < 0)
		generation_fail(g, -ENOMEM, out);
	else
		generation_end(g, out);
}
