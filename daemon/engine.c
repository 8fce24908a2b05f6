// SPDX-License-Identifier: Apache-2.0
#include "daemon/engine.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/engine_internal.h"

#define IDLE_NS (1000000000ull) // the loop looks around at least that often

void request_destroy(struct request *r)
{
	if (!r)
		return;
	free(r->prompt);
	free(r);
}

/* ---- streams ---- */

static void stream_destroy(struct engine_stream *s)
{
	if (!s)
		return;
	for (uint32_t i = 0; s->outputs && i < s->job->sequences_count; i++)
		sequence_finish(&s->outputs[i].text);
	free(s->outputs);
	scheduler_job_destroy(s->job);
	free(s);
}

static int stream_create(struct request *r, const struct request *view, uint32_t max_new_tokens,
	const struct text_tokenizer *tokenizer, struct engine_stream **ret_stream)
{
	struct engine_stream *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	int status = scheduler_job_create(view, max_new_tokens, &s->job);
	if (!status && !(s->outputs = calloc(s->job->sequences_count, sizeof *s->outputs)))
		status = -ENOMEM;
	for (uint32_t i = 0; !status && i < s->job->sequences_count; i++)
		status = sequence_init(&s->outputs[i].text, r, tokenizer, max_new_tokens);
	if (status) {
		stream_destroy(s);
		return status;
	}
	s->request = r;
	s->bytes = sizeof *s + sizeof *r + (uint64_t)r->prompt_tokens * sizeof *r->prompt + scheduler_job_bytes(s->job);
	for (uint32_t i = 0; i < s->job->sequences_count; i++)
		s->bytes += sizeof *s->outputs + s->outputs[i].text.room_bytes;
	s->job->user = s;
	s->submitted_ns = base_clock_now_ns();
	*ret_stream = s;
	return 0;
}

/* Lock held. */
static void uncount(struct engine *e, struct engine_stream *s)
{
	if (!s->counted)
		return;
	e->waiting--;
	e->waiting_bytes -= s->bytes;
	s->counted = false;
}

void engine_uncount(struct engine *e, struct engine_stream *s)
{
	pthread_mutex_lock(&e->lock);
	uncount(e, s);
	pthread_mutex_unlock(&e->lock);
}

static void forget(struct engine *e, struct engine_stream *s)
{
	pthread_mutex_lock(&e->lock);
	*(s->previous ? &s->previous->next : &e->live) = s->next;
	if (s->next)
		s->next->previous = s->previous;
	e->live_count--;
	uncount(e, s);
	pthread_mutex_unlock(&e->lock);
}

static void fill_timing(const struct engine_stream *s, uint64_t now, struct request_timing *ret_timing)
{
	uint64_t admitted = s->job->admitted_ns ? s->job->admitted_ns : now;
	uint64_t first = s->first_token_ns ? s->first_token_ns : now;
	*ret_timing = (struct request_timing){
		.queue_ns = admitted - s->submitted_ns,
		.prefill_ns = first > admitted ? first - admitted : 0,
		.decode_ns = now - first,
		.nvme_stall_ns = s->stall_ns,
		.network_ns = s->network_ns,
		.nvme_read_bytes = (uint64_t)s->read_bytes,
		.achieved_ratio = s->pass_ns > 0 ? s->bound_ns / s->pass_ns : 0,
	};
	if (ret_timing->achieved_ratio > 1)
		ret_timing->achieved_ratio = 1;
	enum engine_binding most = ENGINE_BINDING_DISK;
	for (uint32_t i = 1; i < 3; i++) {
		if (s->bindings[i] > s->bindings[most])
			most = (enum engine_binding)i;
	}
	if (s->bindings[most])
		snprintf(ret_timing->binding, sizeof ret_timing->binding, "%s", engine_binding_name(most));
}

void engine_end(struct engine *e, struct engine_stream *s, int status, const char *fmt, ...)
{
	struct base_error error = {.code = status};
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(error.message, sizeof error.message, fmt, ap);
	va_end(ap);
	scheduler_remove(e->scheduler, s->job);
	for (uint32_t i = 0; status && !s->request->score && i < s->job->sequences_count; i++) {
		if (s->outputs[i].ended)
			continue;
		e->event = (struct request_event){.output = i, .finish = REQUEST_FINISH_ABORTED};
		engine_pass_emit(e, s);
	}
	e->event = (struct request_event){.final = true, .error = error};
	if (status == -EHOSTDOWN)
		e->event.retry_after_ns = ENGINE_RETRY_NS;
	fill_timing(s, base_clock_now_ns(), &e->event.timing);
	engine_stats_ended(e, s, status);
	forget(e, s); // before the last event: whoever sees that may use the id again
	engine_pass_emit(e, s);
	request_destroy(s->request);
	stream_destroy(s);
}

static void end_all(struct engine *e, int status, const char *why)
{
	struct scheduler_job *j;
	engine_pass_flush(e); // those that are over have their own reason
	while ((j = scheduler_first_job(e->scheduler)))
		engine_end(e, j->user, status, "%s", why);
}

/* ---- states ---- */

void engine_emit_event(struct engine *e, const char *severity, const char *kind, const char *fmt, ...)
{
	if (!e->config.events.event)
		return;
	char text[BASE_ERROR_BYTES];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	e->config.events.event(e->config.events.context, severity, kind, text);
}

void engine_set_state(struct engine *e, enum engine_state state, const char *failure)
{
	e->state = state;
	pthread_mutex_lock(&e->lock);
	e->load.state = state;
	if (failure != e->load.failure)
		snprintf(e->load.failure, sizeof e->load.failure, "%s", failure ? failure : "");
	pthread_mutex_unlock(&e->lock);
}

/* A request that costs a rank each time it is tried ends alone, and the restarts were its; but if it is every
 * request, it is the rank. Not -EHOSTDOWN, which clients try again. */
static void end_killers(struct engine *e)
{
	bool any = false;
	uint32_t limit = e->config.starter.gather ? ENGINE_FLEET_LOSSES : SCHEDULER_MAX_LOSSES;
	engine_pass_flush(e);
	for (struct scheduler_job *j = scheduler_first_job(e->scheduler), *next; j; j = next) {
		uint32_t most = 0;
		next = j->next;
		for (uint32_t i = 0; i < j->sequences_count; i++)
			most = j->sequences[i].losses > most ? j->sequences[i].losses : most;
		if (most < limit)
			continue;
		struct engine_stream *s = j->user;
		engine_emit_event(e, "error", "request_kills_rank", "request %s: the rank died %u times on it: %s",
			s->request->id, most, e->load.failure);
		engine_end(e, s, -EOWNERDEAD, "the rank died %u times while it computed this request", most);
		any = true;
	}
	if (any && ++e->killers_in_a_row <= e->config.max_restarts)
		e->restarts_in_a_row = 0;
}

/* Between two lives of the ranks: starts new ones, or gives up. Over several hosts it is never given up, since hosts
 * and links come back; see engine_link.c's set_down. */
static void recover(struct engine *e)
{
	if (engine_link_often_lost(e) && e->state == ENGINE_RECOVERING && !e->config.starter.gather) {
		engine_emit_event(e, "error", "engine_failed",
			"gave up after %u restarts of the rank without a pass in between: %s", e->config.max_restarts,
			e->load.failure);
		engine_set_state(e, ENGINE_FAILED, e->load.failure);
		return;
	}
	engine_link_start(e);
}

/* ---- the thread ---- */

static void take_regather(struct engine *e)
{
	char why[sizeof e->regather_why];
	pthread_mutex_lock(&e->lock);
	bool wanted = e->regather;
	e->regather = false;
	memcpy(why, e->regather_why, sizeof why);
	pthread_mutex_unlock(&e->lock);
	if (wanted)
		engine_link_leave(e, why);
}

static void take_incoming(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	struct engine_stream *s = e->incoming_first;
	e->incoming_first = e->incoming_last = NULL;
	bool aborts = e->aborts;
	e->aborts = false;
	pthread_mutex_unlock(&e->lock);
	for (; s; s = s->next_incoming)
		scheduler_add(e->scheduler, s->job, s->submitted_ns);
	for (struct scheduler_job *j = aborts ? scheduler_first_job(e->scheduler) : NULL, *next; j; j = next) {
		next = j->next;
		s = j->user;
		pthread_mutex_lock(&e->lock);
		bool abort = s->abort;
		pthread_mutex_unlock(&e->lock);
		if (abort)
			engine_end(e, s, -ECANCELED, "the request was aborted");
	}
}

static void expire(struct engine *e, uint64_t now)
{
	struct scheduler_job *j;
	while ((j = scheduler_expired(e->scheduler, now))) {
		uint64_t waited = now - j->arrival_ns;
		engine_end(e, j->user, -ETIME, "the deadline passed after %.3f s%s", (double)waited / 1e9,
			j->admitted_ns ? "" : ", all of it in the queue");
	}
}

static void end_if_down(struct engine *e, uint64_t now)
{
	if (e->down_ns && now >= e->down_ns + ENGINE_DOWN_NS)
		end_all(e, -EHOSTDOWN, e->load.failure);
}

int engine_look_up(void *context, struct base_error *error)
{
	struct engine *e = context;
	uint64_t now = base_clock_now_ns();
	take_incoming(e);
	expire(e, now);
	end_if_down(e, now);
	engine_stats_publish(e);
	return atomic_load(&e->stop) ? base_error_set(error, -ECANCELED, "the model is being unloaded") : 0;
}

/* Ranks that say nothing while they owe something are as good as dead. */
static uint64_t check_stuck(struct engine *e, uint64_t now)
{
	struct scheduler_pass *p = scheduler_oldest_pass(e->scheduler);
	bool owes = e->group && (e->state == ENGINE_LOADING || e->state == ENGINE_RECOVERING || p);
	if (!owes || !e->config.stuck_ns)
		return SCHEDULER_NEVER;
	uint64_t since = e->heard_ns;
	if (e->state == ENGINE_READY && p->sent_ns > since)
		since = p->sent_ns;
	if (now < since + e->config.stuck_ns)
		return since + e->config.stuck_ns;
	char why[96];
	snprintf(why, sizeof why, "no word from the rank for %.3f s", (double)(now - since) / 1e9);
	engine_link_lost(e, why);
	return now;
}

static void wait_for_work(struct engine *e, uint64_t until)
{
	struct pollfd fds[2] = {{.fd = e->wake_fd, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
	if (e->group) {
		if (e->group->ops->progress(e->group, 16) != 0)
			return;
		fds[1].fd = e->group->ops->event_fd(e->group);
	}
	uint64_t now = base_clock_now_ns();
	uint64_t wait = until > now ? until - now : 0;
	if (wait > IDLE_NS)
		wait = IDLE_NS;
	struct timespec t = {
		.tv_sec = (time_t)(wait / BASE_NS_PER_SECOND), .tv_nsec = (long)(wait % BASE_NS_PER_SECOND)};
	if (ppoll(fds, 2, &t, NULL) > 0 && fds[0].revents) {
		uint64_t n;
		ssize_t got = read(e->wake_fd, &n, sizeof n);
		(void)got; // nonblocking: another read was faster, which cannot be, or it is empty, which is fine
	}
}

static uint64_t turn(struct engine *e)
{
	uint64_t until = SCHEDULER_NEVER, now = base_clock_now_ns(), next;
	take_incoming(e);
	expire(e, now);
	take_regather(e);
	if (e->group)
		engine_link_poll(e);
	if (e->state == ENGINE_READY)
		until = engine_pass_pump(e);
	if ((next = check_stuck(e, now)) < until)
		until = next;
	if ((next = engine_trace_pump(e)) < until)
		until = next;
	if ((e->state == ENGINE_RECOVERING || e->state == ENGINE_LOADING) && !e->group) {
		end_killers(e);
		end_if_down(e, now);
		if (now >= e->retry_ns)
			recover(e);
		if (!e->group && e->state != ENGINE_FAILED && e->retry_ns < until)
			until = e->retry_ns;
	}
	if (e->state == ENGINE_FAILED)
		end_all(e, -ENOTRECOVERABLE, e->load.failure);
	next = scheduler_next_deadline(e->scheduler);
	engine_stats_publish(e);
	return next < until ? next : until;
}

static void *engine_thread(void *argument)
{
	struct engine *e = argument;
	pthread_setname_np(pthread_self(), "engine");
	engine_link_start(e);
	while (!atomic_load(&e->stop))
		wait_for_work(e, turn(e));
	take_incoming(e);
	end_all(e, -EHOSTDOWN, "the model is being unloaded");
	engine_link_stop(e);
	engine_set_state(e, ENGINE_STOPPED, NULL);
	return NULL;
}

/* ---- create, destroy ---- */

static int check_config(const struct engine_config *c, struct rank_shape *ret_shape, struct base_error *error)
{
	uint32_t parts = c->parts ? c->parts : 1;
	if (rank_shape_even(c->stages, parts, ret_shape) < 0 || rank_shape_check(ret_shape, ENGINE_MAX_RANKS) < 0 ||
		!c->tokenizer || (!c->starter.gather && (!c->starter.start || !c->starter.stop)))
		return base_error_set(error, -EINVAL, "engine: %u stages of %u ranks each, at most %u ranks", c->stages,
			parts, ENGINE_MAX_RANKS);
	if (!c->max_running || c->max_running > RANK_MAX_SEQUENCES)
		return base_error_set(
			error, -EINVAL, "engine: %u sequences at once, 1 to %u", c->max_running, RANK_MAX_SEQUENCES);
	if (c->batch_tokens < c->max_running || c->batch_tokens > RANK_MAX_BATCH_TOKENS)
		return base_error_set(error, -EINVAL,
			"engine: scheduler.batch_tokens is %u; it has to be at least scheduler.max_sequences (%u) and "
			"at most %u",
			c->batch_tokens, c->max_running, RANK_MAX_BATCH_TOKENS);
	if (c->logits_rows < c->max_running || !c->context_tokens || !c->max_waiting)
		return base_error_set(error, -EINVAL,
			"engine: %u rows of logits for %u sequences, context %u, queue %u", c->logits_rows,
			c->max_running, c->context_tokens, c->max_waiting);
	return 0;
}

static int take_memory(struct engine *e)
{
	const struct engine_config *c = &e->config;
	const struct scheduler_config s = {
		.max_running = c->max_running,
		.batch_tokens = c->batch_tokens,
		.logits_rows = c->logits_rows,
		.context_tokens = c->context_tokens,
		.stages = c->stages,
		.batch_wait_ns = c->batch_wait_ns,
		.aging_ns = ENGINE_AGING_NS,
	};
	e->fresh = calloc(c->logits_rows, sizeof *e->fresh);
	e->closes = calloc(c->max_running, sizeof *e->closes);
	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->wake_fd < 0)
		return -errno;
	if (!e->fresh || !e->closes)
		return -ENOMEM;
	int status = scheduler_create(&s, &e->scheduler);
	return status ? status : engine_link_init(e);
}

static void engine_free(struct engine *e)
{
	engine_link_finish(e);
	engine_trace_finish(e);
	scheduler_destroy(e->scheduler);
	if (e->wake_fd >= 0)
		close(e->wake_fd);
	pthread_mutex_destroy(&e->lock);
	free(e->fresh);
	free(e->closes);
	free(e);
}

int engine_create(const struct engine_config *config, struct engine **ret_engine, struct base_error *error)
{
	struct rank_shape shape;
	int status = check_config(config, &shape, error);
	if (status)
		return status;
	struct engine *e = calloc(1, sizeof *e);
	if (!e)
		return base_error_set(error, -ENOMEM, "engine: no memory");
	e->config = *config;
	e->wake_fd = -1;
	snprintf(e->model_name, sizeof e->model_name, "%s", config->model_name ? config->model_name : "");
	e->config.model_name = e->model_name;
	e->vocab = text_tokenizer_vocab(config->tokenizer);
	e->state = e->load.state = ENGINE_LOADING;
	pthread_mutex_init(&e->lock, NULL);
	base_trace_init(&e->spans);
	engine_link_set_ranks(e, &shape);
	status = take_memory(e);
	if (!status)
		status = -pthread_create(&e->thread, NULL, engine_thread, e);
	if (status) {
		engine_free(e);
		return base_error_set(error, status, "engine: %s", strerrordesc_np(-status));
	}
	*ret_engine = e;
	return 0;
}

void engine_wake(struct engine *e)
{
	uint64_t one = 1;
	ssize_t n = write(e->wake_fd, &one, sizeof one);
	(void)n; // full means that it is awake
}

void engine_destroy(struct engine *e)
{
	if (!e)
		return;
	atomic_store(&e->stop, true);
	engine_wake(e);
	pthread_join(e->thread, NULL);
	engine_free(e);
}

/* ---- submit ---- */

static int check_request(const struct engine *e, const struct request *r, struct base_error *error)
{
	if (!r->prompt || !r->prompt_tokens)
		return base_error_set(error, -EINVAL, "prompt: empty");
	for (uint32_t i = 0; i < r->prompt_tokens; i++) {
		if (r->prompt[i] >= e->vocab)
			return base_error_set(error, -EINVAL,
				"prompt: token %u at position %u is beyond the vocabulary of %u", r->prompt[i], i,
				e->vocab);
	}
	if (!r->sink.emit)
		return base_error_set(error, -EINVAL, "request: no sink");
	if (r->priority > REQUEST_PRIORITY_LOW)
		return base_error_set(error, -EINVAL, "priority: %d is none", (int)r->priority);
	if (r->stop_count > REQUEST_MAX_STOPS || r->stop_token_count > SAMPLE_MAX_BANNED)
		return base_error_set(error, -EINVAL, "stopping: %u stop strings and %u stop tokens, at most %u and %u",
			r->stop_count, r->stop_token_count, REQUEST_MAX_STOPS, SAMPLE_MAX_BANNED);
	if (!memchr(r->id, '\0', sizeof r->id))
		return base_error_set(error, -EINVAL, "request_id: longer than %u bytes", REQUEST_ID_BYTES - 1);
	if (r->score) {
		if (r->score_top > SAMPLE_MAX_LOGPROBS)
			return base_error_set(
				error, -EINVAL, "logprobs: %u, at most %u", r->score_top, SAMPLE_MAX_LOGPROBS);
		if (!r->score_first || r->score_first >= r->prompt_tokens)
			return base_error_set(error, -EINVAL,
				"score: the first position scored is %u; of %u tokens, 1 to %u can be", r->score_first,
				r->prompt_tokens, r->prompt_tokens - 1);
		return 0;
	}
	uint32_t stops;
	text_tokenizer_stops(e->config.tokenizer, &stops);
	if (r->sampling.min_new_tokens && (r->ignore_eos ? 0 : stops) + r->stop_token_count > SAMPLE_MAX_BANNED)
		return base_error_set(error, -EINVAL, "min_new_tokens: with %u stop tokens, at most %u",
			stops + r->stop_token_count, SAMPLE_MAX_BANNED);
	if (!r->num_sequences || r->num_sequences > REQUEST_MAX_SEQUENCES)
		return base_error_set(
			error, -EINVAL, "num_sequences: %u, 1 to %u", r->num_sequences, REQUEST_MAX_SEQUENCES);
	return sample_params_check(&r->sampling, e->vocab, error);
}

struct refusal {
	enum engine_reject why;
	uint64_t retry_ns;
};

/* Lock held: what can be said without the engine's thread. bytes: of the request, 0 while that is not known. */
static int check_state(struct engine *e, const struct request *r, uint64_t bytes, struct refusal *ret_refusal,
	struct base_error *error)
{
	enum engine_state state = e->load.state;
	*ret_refusal = (struct refusal){.why = ENGINE_REJECT_NOT_READY, .retry_ns = ENGINE_RETRY_NS};
	if (state == ENGINE_FAILED) {
		*ret_refusal = (struct refusal){.why = ENGINE_REJECT_FAILED};
		return base_error_set(error, -ENOTRECOVERABLE, "model %s failed and needs to be loaded again: %s",
			e->model_name, e->load.failure);
	}
	if (state == ENGINE_STOPPED)
		return base_error_set(error, -EHOSTDOWN, "model %s is stopped", e->model_name);
	if (state == ENGINE_LOADING)
		return base_error_set(error, -EHOSTDOWN, "model %s is still loading", e->model_name);
	if (e->load.down)
		return base_error_set(error, -EHOSTDOWN, "model %s cannot run now: %s", e->model_name, e->load.failure);
	ret_refusal->why = ENGINE_REJECT_DRAINING;
	if (e->draining)
		return base_error_set(
			error, -EHOSTDOWN, "model %s is draining and takes no new requests", e->model_name);
	ret_refusal->why = ENGINE_REJECT_QUEUE_FULL;
	if (e->waiting >= e->config.max_waiting)
		return base_error_set(
			error, -EAGAIN, "the queue is full: %u requests wait (scheduler.max_waiting)", e->waiting);
	ret_refusal->why = ENGINE_REJECT_QUEUE_MEMORY;
	if (e->config.max_waiting_bytes && e->waiting &&
		(bytes > e->config.max_waiting_bytes || e->waiting_bytes > e->config.max_waiting_bytes - bytes))
		return base_error_set(error, -EAGAIN,
			"the queue's memory is full: %u requests wait with %llu bytes, this one needs %llu, of %llu "
			"(scheduler.max_waiting_memory)",
			e->waiting, (unsigned long long)e->waiting_bytes, (unsigned long long)bytes,
			(unsigned long long)e->config.max_waiting_bytes);
	*ret_refusal = (struct refusal){.why = ENGINE_REJECT_DUPLICATE};
	for (const struct engine_stream *s = e->live; s && r->id[0]; s = s->next) {
		if (strcmp(s->request->id, r->id) == 0)
			return base_error_set(error, -EEXIST, "request_id: %s is running", r->id);
	}
	return 0;
}

/* Cuts the prompt as asked, or refuses; says how many tokens may be generated. */
static int fit(
	const struct engine *e, uint32_t limit, struct request *view, uint32_t *ret_max_new, struct base_error *error)
{
	if (view->truncate_prompt_tokens && view->prompt_tokens > view->truncate_prompt_tokens) {
		view->prompt += view->prompt_tokens - view->truncate_prompt_tokens;
		view->prompt_tokens = view->truncate_prompt_tokens;
		if (view->score && view->score_first >= view->prompt_tokens)
			return base_error_set(error, -EINVAL,
				"score: nothing is left to score of a prompt cut to %u tokens", view->prompt_tokens);
	}
	uint32_t most = view->score ? limit : limit - 1;
	if (view->prompt_tokens > most)
		return base_error_set(error, -E2BIG,
			"the prompt has %u tokens; at most %u fit (context %u, KV cache %u positions): shorten it or "
			"set "
			"truncate_prompt_tokens",
			view->prompt_tokens, most, e->config.context_tokens, limit);
	uint32_t n = view->max_new_tokens;
	if (!n || n > e->config.max_new_tokens)
		n = e->config.max_new_tokens;
	if (n > limit - view->prompt_tokens)
		n = limit - view->prompt_tokens;
	*ret_max_new = n;
	return 0;
}

static void enqueue(struct engine *e, struct engine_stream *s)
{
	if (!s->request->id[0])
		snprintf(s->request->id, sizeof s->request->id, "thaw-%llu", (unsigned long long)++e->next_id);
	s->next = e->live;
	if (s->next)
		s->next->previous = s;
	e->live = s;
	e->live_count++;
	s->counted = true;
	e->waiting++;
	e->waiting_bytes += s->bytes;
	*(e->incoming_last ? &e->incoming_last->next_incoming : &e->incoming_first) = s;
	e->incoming_last = s;
}

/* Everything up to the queue. */
static int admit(struct engine *e, struct request *r, struct refusal *ret_refusal, struct base_error *error)
{
	*ret_refusal = (struct refusal){.why = ENGINE_REJECT_INVALID};
	int status = check_request(e, r, error);
	if (status)
		return status;
	pthread_mutex_lock(&e->lock);
	status = check_state(e, r, 0, ret_refusal, error);
	uint32_t limit = e->limit_tokens, max_new = 0;
	pthread_mutex_unlock(&e->lock);
	struct request view = *r;
	struct engine_stream *s = NULL;
	if (status)
		return status;
	status = fit(e, limit, &view, &max_new, error);
	*ret_refusal = (struct refusal){.why = status == -E2BIG ? ENGINE_REJECT_TOO_LONG : ENGINE_REJECT_INVALID};
	if (status)
		return status;
	*ret_refusal = (struct refusal){.why = ENGINE_REJECT_NO_MEMORY};
	if ((status = stream_create(r, &view, max_new, e->config.tokenizer, &s)) < 0)
		return base_error_set(
			error, status, "no memory for a request of %u tokens", view.prompt_tokens + max_new);
	/* Again: what was true before the memory was taken may not be any more. */
	pthread_mutex_lock(&e->lock);
	status = check_state(e, r, s->bytes, ret_refusal, error);
	if (!status)
		enqueue(e, s);
	pthread_mutex_unlock(&e->lock);
	if (status)
		stream_destroy(s);
	return status;
}

int engine_submit(struct engine *e, struct request *r, uint64_t *ret_retry_after_ns, struct base_error *error)
{
	struct refusal refusal;
	int status = admit(e, r, &refusal, error);
	if (!status) {
		engine_wake(e);
		return 0;
	}
	pthread_mutex_lock(&e->lock);
	e->load.rejected_total++;
	e->load.rejected[refusal.why]++;
	pthread_mutex_unlock(&e->lock);
	if (ret_retry_after_ns)
		*ret_retry_after_ns = refusal.retry_ns;
	return status;
}

int engine_abort(struct engine *e, const char *id)
{
	int status = -ENOENT;
	pthread_mutex_lock(&e->lock);
	for (struct engine_stream *s = e->live; s; s = s->next) {
		if (strcmp(s->request->id, id) == 0) {
			s->abort = e->aborts = true;
			status = 0;
			break;
		}
	}
	pthread_mutex_unlock(&e->lock);
	if (!status)
		engine_wake(e);
	return status;
}

void engine_abort_all(struct engine *e)
{
	pthread_mutex_lock(&e->lock);
	for (struct engine_stream *s = e->live; s; s = s->next)
		s->abort = e->aborts = true;
	pthread_mutex_unlock(&e->lock);
	engine_wake(e);
}

void engine_drain(struct engine *e, bool on)
{
	pthread_mutex_lock(&e->lock);
	e->draining = on;
	pthread_mutex_unlock(&e->lock);
	engine_wake(e);
}

void engine_regather(struct engine *e, const char *why)
{
	pthread_mutex_lock(&e->lock);
	e->regather = true;
	snprintf(e->regather_why, sizeof e->regather_why, "%s", why);
	pthread_mutex_unlock(&e->lock);
	engine_wake(e);
}
