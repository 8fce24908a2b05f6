// SPDX-License-Identifier: Apache-2.0
/* The way of a pass: build -> OPEN, CLOSE, PASS -> RESULT -> tokens -> the next pass -> text and events. The next pass
 * goes out before the text of the last one is made, so that the rank computes meanwhile; so whether a token ends a
 * sequence by its number is known before (sequence_peek), and by a stop string one pass later, whose result is
 * dropped. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "daemon/engine_internal.h"

#define MAX_IO_FAILURES 3u // passes in a row of which every entry could not be read
#define SEED_STEP 0x9e3779b97f4a7c15ull // between the outputs of one request

/* ---- out ---- */

static void fill_open(struct engine *e, const struct scheduler_sequence *q)
{
	const struct engine_stream *s = q->job->user;
	const struct request *r = s->request;
	e->out = (struct rank_message){
		.type = RANK_MESSAGE_OPEN,
		.open = {.sequence = q->slot, .prompt_tokens = q->prompt_tokens, .params = r->sampling},
	};
	struct sample_params *p = &e->out.open.params;
	p->seed += q->output * SEED_STEP;
	if (r->score)
		*p = (struct sample_params){.top_p = 1, .repetition_penalty = 1};
	p->banned_count = 0;
	if (!p->min_new_tokens)
		return;
	uint32_t stops;
	const uint32_t *stop = text_tokenizer_stops(e->config.tokenizer, &stops);
	for (uint32_t i = 0; !r->ignore_eos && i < stops && p->banned_count < SAMPLE_MAX_BANNED; i++)
		p->banned[p->banned_count++] = stop[i];
	for (uint32_t i = 0; i < r->stop_token_count && p->banned_count < SAMPLE_MAX_BANNED; i++)
		p->banned[p->banned_count++] = r->stop_tokens[i];
}

static bool send_pass(struct engine *e, struct scheduler_pass *p)
{
	uint32_t closes = scheduler_take_closes(e->scheduler, e->closes);
	for (uint32_t i = 0; i < closes; i++) {
		e->out = (struct rank_message){.type = RANK_MESSAGE_CLOSE, .close = e->closes[i]};
		if (!engine_link_send(e, false))
			return false;
	}
	for (uint32_t i = 0; i < p->pass.entries_count; i++) {
		struct scheduler_sequence *q = p->entries[i].sequence;
		struct engine_stream *s = q->job->user;
		if (s->counted)
			engine_uncount(e, s);
		if (q->opened)
			continue;
		fill_open(e, q);
		q->opened = true;
		if (!engine_link_send(e, false))
			return false;
	}
	e->out = (struct rank_message){.type = RANK_MESSAGE_PASS, .pass = p->pass};
	return engine_link_send(e, true);
}

uint64_t engine_pass_pump(struct engine *e)
{
	uint64_t wake = SCHEDULER_NEVER;
	struct scheduler_pass *p;
	while (e->state == ENGINE_READY && e->group &&
		(p = scheduler_build(e->scheduler, base_clock_now_ns(), &wake))) {
		if (!send_pass(e, p))
			break;
	}
	return wake;
}

/* ---- results ---- */

static void mark_over(struct engine *e, struct engine_stream *s, int status, const char *reason)
{
	if (s->over)
		return;
	s->over = true;
	s->status = status;
	snprintf(s->reason, sizeof s->reason, "%s", reason);
	s->next_over = e->over;
	e->over = s;
}

/* What the pass cost goes to its requests by their share of the positions; its time to each of them. */
static void account(struct engine *e, const struct scheduler_pass *p, uint64_t round_ns)
{
	uint32_t positions = p->pass.tokens_count, generated = 0, prompt = 0;
	enum engine_binding binding;
	double bound = engine_stats_bound(e, positions, &binding), total = (double)e->in.result.total_ns;
	double bytes = (double)e->in.result.cold_bytes; // of all ranks
	for (uint32_t i = 0; i < p->pass.entries_count; i++) {
		const struct scheduler_pass_entry *n = &p->entries[i];
		if (n->want == RANK_WANT_SAMPLE)
			generated++;
		if (!n->sequence)
			continue;
		if (p->rank_entries[i].first_position < n->sequence->prompt_tokens)
			prompt += n->tokens;
		struct engine_stream *s = n->sequence->job->user;
		s->read_bytes += bytes * n->tokens / positions;
		s->bound_ns += bound;
		s->pass_ns += total;
		s->bindings[binding]++;
		s->stall_ns += e->in.result.stall_ns;
		if (round_ns > e->in.result.total_ns)
			s->network_ns += round_ns - e->in.result.total_ns;
	}
	engine_stats_pass(e, positions, generated, prompt, bound, total);
}

/* A matrix may have more rows than the tokenizer has tokens. Another rank would draw the same again: only this one
 * pays. */
static void no_such_token(struct engine *e, struct scheduler_sequence *q, uint32_t token)
{
	char reason[160];
	snprintf(reason, sizeof reason, "the model chose token %u, and its tokenizer has %u", token, e->vocab);
	mark_over(e, q->job->user, -EPROTO, reason);
	scheduler_finish(e->scheduler, q);
}

static bool take_output(struct engine *e, const struct scheduler_pass *p, const struct rank_output *o)
{
	if (o->entry >= p->pass.entries_count || e->fresh_count == e->config.logits_rows)
		return false;
	const struct scheduler_pass_entry *n = &p->entries[o->entry];
	struct scheduler_sequence *q = n->sequence;
	if (n->want == RANK_WANT_NOTHING || o->token_index >= (n->want == RANK_WANT_SCORES ? n->tokens : 1) ||
		o->result.top_count > SAMPLE_MAX_LOGPROBS)
		return false;
	if (!q || q->state == SCHEDULER_DONE)
		return true;
	struct engine_stream *s = q->job->user;
	if (o->result.token >= e->vocab) {
		no_such_token(e, q, o->result.token);
		return true;
	}
	struct engine_fresh *f = &e->fresh[e->fresh_count++];
	*f = (struct engine_fresh){.stream = s, .sequence = q, .result = &o->result};
	if (n->want == RANK_WANT_SCORES) {
		q->losses = 0;
		f->score = true;
		f->position = p->rank_entries[o->entry].first_position + o->token_index + 1;
		return true;
	}
	if (q->sent != q->tokens_count)
		return false; // a second token for the same place
	enum request_finish finish = sequence_peek(&s->outputs[q->output].text, o->result.token);
	if (!scheduler_append(q, o->result.token) || finish)
		scheduler_finish(e->scheduler, q);
	return true;
}

/* One event for each place in a while, not for each request that meets it. */
static void tell_loss(struct engine *e, const struct engine_stream *s, const char *kind, const char *reason)
{
	uint64_t place = 0xcbf29ce484222325ull, now = base_clock_now_ns();
	for (const char *c = reason; *c; c++)
		place = (place ^ (uint8_t)*c) * 0x100000001b3ull;
	uint32_t at = 0;
	for (uint32_t i = 0; i < ENGINE_LOSSES; i++) {
		if (e->losses[i].place == place) {
			at = i;
			break;
		}
		if (e->losses[i].told_ns < e->losses[at].told_ns)
			at = i;
	}
	bool known = e->losses[at].place == place;
	if (known && now < e->losses[at].told_ns + ENGINE_LOSS_NS) {
		e->losses[at].quiet++;
		return;
	}
	uint32_t quiet = known ? e->losses[at].quiet : 0;
	e->losses[at].place = place;
	e->losses[at].told_ns = now;
	e->losses[at].quiet = 0;
	char others[48] = "";
	if (quiet)
		snprintf(others, sizeof others, " (and %u since the last event)", quiet);
	engine_emit_event(e, "error", kind, "request %s%s: %s", s->request->id, others, reason);
}

/* What is bad, or has a place that cannot be read, can be mended, and the model is not ready until then. Of a drive
 * that does not answer nothing is known, and reading the whole store would hang, too: a new rank is tried
 * (check_reads). */
static void entry_failed(struct engine *e, struct scheduler_sequence *q, int status)
{
	struct base_error reason = e->in.result.e;
	bool bad = status == -EBADMSG, silent = status == -ETIMEDOUT;
	if (!reason.message[0])
		base_error_set(&reason, status, "%s",
			bad ? "their checksum does not match, also when read again" : strerrordesc_np(-status));
	base_error_prefix(&reason, bad ? "weights on the drive are bad" : "weights on the drive cannot be read");
	if (!silent)
		memcpy(e->data_loss, reason.message, sizeof e->data_loss);
	mark_over(e, q->job->user, bad ? -EBADMSG : -EIO, reason.message);
	tell_loss(e, q->job->user, silent ? "drive_silent" : "data_loss", reason.message);
	scheduler_finish(e->scheduler, q);
}

static void publish_data_loss(struct engine *e)
{
	bool over = e->load.data_loss[0] && !e->data_loss[0];
	if (over)
		engine_emit_event(e, "notice", "data_whole", "cold weights are read well again");
	pthread_mutex_lock(&e->lock);
	memcpy(e->load.data_loss, e->data_loss, sizeof e->load.data_loss);
	pthread_mutex_unlock(&e->lock);
}

/* The whole pass was refused: a bug somewhere, and only its requests pay. */
static void pass_refused(struct engine *e, const struct scheduler_pass *p)
{
	engine_emit_event(e, "error", "pass_refused", "pass %llu: %s", (unsigned long long)e->in.result.pass,
		base_error_text(&e->in.result.e));
	for (uint32_t i = 0; i < p->pass.entries_count; i++) {
		if (p->entries[i].sequence)
			mark_over(e, p->entries[i].sequence->job->user, -EPROTO, base_error_text(&e->in.result.e));
	}
}

/* An I/O engine that is gone, or a drive, fails every pass from now on. A new rank opens both anew; if that does not
 * help, the restarts run out, and the model says that it is not ready. True: the rank was given up. */
static bool check_reads(struct engine *e, const struct scheduler_pass *p)
{
	bool all = !e->in.result.status;
	for (uint32_t i = 0; i < p->pass.entries_count && all; i++)
		all = e->in.result.entry_status[i] == -EIO || e->in.result.entry_status[i] == -ETIMEDOUT;
	e->io_failures = all ? e->io_failures + 1 : 0;
	if (!all)
		e->restarts_in_a_row = e->killers_in_a_row = 0;
	if (e->io_failures < MAX_IO_FAILURES)
		return false;
	engine_link_lost(e, "it cannot read cold weights any more");
	return true;
}

void engine_pass_result(struct engine *e)
{
	struct scheduler_pass *p = scheduler_oldest_pass(e->scheduler);
	if (!p || p->number != e->in.result.pass ||
		(!e->in.result.status && e->in.result.entries_count != p->pass.entries_count)) {
		engine_link_lost(e, "it answered a pass that it was not sent");
		return;
	}
	account(e, p, base_clock_now_ns() - p->sent_ns);
	if (base_trace_on(&e->spans))
		base_trace_end(&e->spans, p->sent_ns, BASE_TRACE_PASS, (uint32_t)p->number, p->pass.tokens_count);
	scheduler_complete(e->scheduler, p);
	e->fresh_count = 0;
	e->data_loss[0] = '\0';
	bool good = true, silent = false;
	if (e->in.result.status) {
		pass_refused(e, p);
	} else {
		for (uint32_t i = 0; i < p->pass.entries_count; i++) {
			struct scheduler_sequence *q = p->entries[i].sequence;
			silent = silent || e->in.result.entry_status[i] == -ETIMEDOUT;
			if (e->in.result.entry_status[i] && q && q->state != SCHEDULER_DONE)
				entry_failed(e, q, e->in.result.entry_status[i]);
		}
		if (!silent) // else nothing is known that was not before
			publish_data_loss(e);
		for (uint32_t i = 0; i < e->in.result.outputs_count && good; i++)
			good = take_output(e, p, &e->in.result.outputs[i]);
	}
	if (!good)
		engine_link_lost(e, "its result does not fit the pass");
	else if (!check_reads(e, p))
		engine_pass_pump(e);
	engine_pass_flush(e);
}

/* ---- text and events ---- */

bool engine_pass_emit(struct engine *e, struct engine_stream *s)
{
	const struct request_sink *sink = &s->request->sink;
	if (!s->told_prompt) {
		s->told_prompt = true;
		const struct scheduler_sequence *q = &s->job->sequences[0];
		struct request_event info = {
			.prompt_info = true,
			.prompt_tokens = q->prompt_tokens,
			.max_new_tokens = q->limit_tokens - q->prompt_tokens,
		};
		if (!sink->emit(sink->context, &info) && !e->event.final)
			return false;
	}
	return sink->emit(sink->context, &e->event);
}

static bool emit_score(struct engine *e, const struct engine_fresh *f)
{
	e->event = (struct request_event){
		.score = true,
		.score_position = f->position,
		.token = f->result->token,
		.logprob = f->result->logprob,
		.top_count = f->result->top_count,
	};
	memcpy(e->event.top, f->result->top, f->result->top_count * sizeof e->event.top[0]);
	return engine_pass_emit(e, f->stream);
}

/* The token with its text; text that is too long for one event goes on in events without a token. */
static bool emit_token(struct engine *e, const struct engine_fresh *f, const struct sequence *text)
{
	const char *at = text->ready;
	size_t left = text->ready_bytes;
	e->event = (struct request_event){
		.output = f->sequence->output,
		.token_count = 1,
		.token = f->result->token,
		.logprob = f->result->logprob,
		.top_count = f->result->top_count,
	};
	memcpy(e->event.top, f->result->top, f->result->top_count * sizeof e->event.top[0]);
	for (;;) {
		size_t n = sequence_cut(at, left, REQUEST_MAX_TEXT_BYTES);
		memcpy(e->event.text, at, n);
		e->event.text_bytes = (uint32_t)n;
		at += n;
		left -= n;
		e->event.finish = left ? REQUEST_FINISH_NONE : text->finish;
		if (!engine_pass_emit(e, f->stream))
			return false;
		if (!left)
			return true;
		e->event = (struct request_event){.output = f->sequence->output};
	}
}

static void flush_token(struct engine *e, const struct engine_fresh *f)
{
	struct engine_stream *s = f->stream;
	struct engine_output *o = &s->outputs[f->sequence->output];
	uint64_t now = base_clock_now_ns();
	int status = sequence_push(&o->text, f->result->token);
	if (status) {
		mark_over(e, s, status, "the text of a token could not be made");
		return;
	}
	if (!s->first_token_ns) {
		s->first_token_ns = now;
		engine_stats_first_token(e, s);
	}
	if (o->last_token_ns)
		engine_stats_token(e, now - o->last_token_ns);
	o->last_token_ns = now;
	bool sent = emit_token(e, f, &o->text);
	if (o->text.finish) {
		o->ended = true;
		if (f->sequence->output == 0)
			s->finish = o->text.finish;
		scheduler_finish(e->scheduler, f->sequence);
		s->ended_count++;
	}
	if (!sent)
		mark_over(e, s, -ENOBUFS, "the reader is too slow: what it did not take fills its buffer");
	else if (s->ended_count == s->job->sequences_count)
		mark_over(e, s, 0, "");
}

static void flush_score(struct engine *e, const struct engine_fresh *f)
{
	if (f->position < f->stream->next_score)
		return;
	f->stream->next_score = f->position + 1;
	if (!f->stream->first_token_ns) {
		f->stream->first_token_ns = base_clock_now_ns();
		engine_stats_first_token(e, f->stream);
	}
	if (!emit_score(e, f)) {
		mark_over(e, f->stream, -ENOBUFS, "the reader is too slow: what it did not take fills its buffer");
	} else if (f->position == f->sequence->prompt_tokens - 1) {
		f->stream->finish = REQUEST_FINISH_STOP;
		mark_over(e, f->stream, 0, "");
	}
}

void engine_pass_flush(struct engine *e)
{
	for (uint32_t i = 0; i < e->fresh_count; i++) {
		const struct engine_fresh *f = &e->fresh[i];
		if (f->stream->over)
			continue;
		if (f->score)
			flush_score(e, f);
		else if (!f->stream->outputs[f->sequence->output].ended)
			flush_token(e, f);
	}
	e->fresh_count = 0;
	while (e->over) {
		struct engine_stream *s = e->over;
		e->over = s->next_over;
		engine_end(e, s, s->status, "%s", s->reason);
	}
}
