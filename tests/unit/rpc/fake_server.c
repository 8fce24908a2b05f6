// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/rpc/fake_server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/rpc/rpc_core.h"

struct text_tokenizer {
	bool add_bos;
};

struct running {
	struct request *request;
	uint32_t step;
	uint64_t due_ns;
	bool informed;
	bool aborted;
};

struct engine {
	struct fake *fake;
	pthread_t thread;
	pthread_mutex_t lock;
	struct running running[FAKE_RUNNING];
	bool stop;
	struct request last;
};

struct server {
	struct fake fake;
	struct config config;
	struct cluster_coordinator *coordinator;
	fake_open_source *open_source;
	struct topology_machine machine;
	struct text_tokenizer tokenizer;
	struct server_model model;
	struct engine engine;
	struct server_event events[8];
	atomic_uint events_count;
};

static const char *const fake_specials[] = {"<|s|>", NULL};

const double engine_bucket_seconds[ENGINE_BUCKETS] = {
	.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 20, 50, 100};

struct fake *fake_of(struct server *s)
{
	return &s->fake;
}

struct request fake_last(struct server *s)
{
	pthread_mutex_lock(&s->engine.lock);
	struct request last = s->engine.last;
	pthread_mutex_unlock(&s->engine.lock);
	return last;
}

/* Tokenizer. */

uint32_t text_tokenizer_vocab(const struct text_tokenizer *t)
{
	return FAKE_VOCAB;
}

uint32_t text_tokenizer_bos(const struct text_tokenizer *t)
{
	return FAKE_BOS;
}

bool text_tokenizer_add_bos(const struct text_tokenizer *t)
{
	return t->add_bos;
}

int text_tokenizer_encode(const struct text_tokenizer *t, const char *text, size_t bytes, bool parse_special,
	uint32_t **ret_tokens, size_t *ret_count, struct base_error *e)
{
	uint32_t *tokens = malloc((bytes + 1) * sizeof(*tokens));
	size_t n = 0;
	if (!tokens)
		return -ENOMEM;
	for (size_t i = 0; i < bytes;) {
		if (parse_special && bytes - i >= 5 && memcmp(text + i, "<|s|>", 5) == 0) {
			tokens[n++] = FAKE_SPECIAL;
			i += 5;
		} else {
			tokens[n++] = (uint8_t)text[i++];
		}
	}
	*ret_tokens = tokens;
	*ret_count = n;
	return 0;
}

const char *text_tokenizer_piece(const struct text_tokenizer *t, uint32_t token, bool special, size_t *ret_bytes)
{
	static char bytes[256];
	if (token < 256) {
		bytes[token] = (char)token;
		*ret_bytes = 1;
		return bytes + token;
	}
	*ret_bytes = special && token == FAKE_SPECIAL ? 5 : 0;
	return fake_specials[0];
}

int text_detokenizer_push(struct text_detokenizer *d, const struct text_tokenizer *t, uint32_t token, bool special,
	char *out, size_t room_bytes)
{
	size_t n;
	const char *piece = text_tokenizer_piece(t, token, special, &n);
	if (room_bytes < n + 16)
		return -ENOBUFS;
	memcpy(out, piece, n);
	return (int)n;
}

int text_detokenizer_flush(struct text_detokenizer *d, char *out, size_t room_bytes)
{
	return 0;
}

int text_chat_render(const struct text_chat_template *t, const struct text_chat_message *messages, size_t count,
	const char *const *specials, char **ret_text, struct base_error *e)
{
	size_t bytes = 1, at = 0;
	for (size_t i = 0; i < count; i++) {
		if (strstr(messages[i].content, specials[0]))
			return base_error_set(e, -EINVAL, "message %zu has the special token %s", i, specials[0]);
		bytes += strlen(messages[i].role) + strlen(messages[i].content) + 8;
	}
	char *text = malloc(bytes);
	if (!text)
		return -ENOMEM;
	text[0] = 0;
	for (size_t i = 0; i < count; i++)
		at += (size_t)snprintf(text + at, bytes - at, "<|s|>%s:%s", messages[i].role, messages[i].content);
	*ret_text = text;
	return 0;
}

/* Engine. */

void request_destroy(struct request *r)
{
	if (!r)
		return;
	free(r->prompt);
	free(r);
}

static bool emit(struct running *u, const struct request_event *e)
{
	return u->request->sink.emit(u->request->sink.context, e);
}

static void finish(struct engine *g, struct running *u, int error)
{
	struct request_event e = {.final = true};
	if (error < 0)
		base_error_set(&e.error, error, "the fake engine ends with %d", error);
	e.timing = (struct request_timing){
		.queue_ns = 1, .prefill_ns = 2, .decode_ns = 3, .achieved_ratio = 0.5, .binding = "disk"};
	emit(u, &e);
	request_destroy(u->request);
	u->request = NULL;
	atomic_fetch_add(&g->fake->ended, 1);
}

static bool run_score(struct running *u)
{
	const struct request *q = u->request;
	for (uint32_t i = q->score_first; i < q->prompt_tokens; i++) {
		struct request_event e = {.score = true,
			.score_position = i,
			.token = q->prompt[i],
			.logprob = -1,
			.top_count = q->score_top};
		for (uint32_t t = 0; t < q->score_top; t++)
			e.top[t] = (struct sample_logprob){t, -(float)t};
		if (!emit(u, &e))
			return false;
	}
	return true;
}

static bool run_step(struct engine *g, struct running *u)
{
	const struct request *q = u->request;
	uint32_t limit = q->max_new_tokens ? q->max_new_tokens : 16;
	bool last = u->step + 1 >= limit, good = true;
	for (uint32_t s = 0; s < q->num_sequences && good; s++) {
		uint32_t token = q->prompt[u->step % q->prompt_tokens];
		struct request_event e = {.output = s,
			.token_count = 1,
			.token = token,
			.logprob = -0.5f,
			.top_count = q->sampling.logprobs,
			.finish = last ? REQUEST_FINISH_LENGTH : REQUEST_FINISH_NONE};
		for (uint32_t t = 0; t < e.top_count; t++)
			e.top[t] = (struct sample_logprob){t, -(float)t};
		if (token < 256) {
			e.text[0] = (char)token;
			e.text_bytes = 1;
		}
		good = emit(u, &e);
		atomic_fetch_add(&g->fake->emitted, 1);
	}
	u->step++;
	return good;
}

/* Returns whether there was something to do. */
static bool run_one(struct engine *g, struct running *u, uint64_t now)
{
	struct fake *f = g->fake;
	const struct request *q = u->request;
	if (!q)
		return false;
	if (u->aborted) {
		finish(g, u, -ECANCELED);
		return true;
	}
	if (q->deadline_ns && now > q->deadline_ns) {
		finish(g, u, -ETIME);
		return true;
	}
	if (atomic_load(&f->hold) || now < u->due_ns)
		return false;
	if (atomic_load(&f->paced) && rpc_sink_room_bytes(&q->sink) < 8192)
		return false;
	uint32_t pause = atomic_load(&f->pause_after);
	if (pause && u->step >= pause)
		return false;
	if (!u->informed) {
		const struct request_event e = {.prompt_info = true, .prompt_tokens = q->prompt_tokens};
		u->informed = true;
		emit(u, &e);
	}
	u->due_ns = now + atomic_load(&f->step_ns);
	int error = atomic_load(&f->final_error);
	uint32_t limit = q->max_new_tokens ? q->max_new_tokens : 16;
	bool good = q->score ? run_score(u) : run_step(g, u);
	if (!good)
		finish(g, u, -ECANCELED);
	else if (error)
		finish(g, u, error);
	else if (q->score || u->step >= limit)
		finish(g, u, 0);
	return true;
}

static void *engine_run(void *context)
{
	struct engine *g = context;
	for (;;) {
		bool some = false;
		pthread_mutex_lock(&g->lock);
		uint64_t now = base_clock_now_ns();
		for (uint32_t i = 0; i < FAKE_RUNNING; i++)
			some |= run_one(g, &g->running[i], now);
		bool stop = g->stop;
		pthread_mutex_unlock(&g->lock);
		if (stop)
			return NULL;
		if (!some)
			nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
	}
}

int engine_submit(struct engine *g, struct request *r, uint64_t *ret_retry_after_ns, struct base_error *error)
{
	struct fake *f = g->fake;
	int code = atomic_load(&f->submit_error);
	if (code) {
		*ret_retry_after_ns = 250000000;
		return base_error_set(error, code, "the fake engine refuses with %d", code);
	}
	code = base_error_set(error, -EAGAIN, "the fake engine is full");
	pthread_mutex_lock(&g->lock);
	for (uint32_t i = 0; i < FAKE_RUNNING && code; i++) {
		if (g->running[i].request)
			continue;
		g->running[i] = (struct running){.request = r};
		g->last = *r;
		g->last.prompt = NULL;
		atomic_store(&f->deadline_ns, r->deadline_ns);
		atomic_fetch_add(&f->submitted, 1);
		code = 0;
	}
	pthread_mutex_unlock(&g->lock);
	return code;
}

int engine_abort(struct engine *g, const char *id)
{
	int r = -ENOENT;
	pthread_mutex_lock(&g->lock);
	for (uint32_t i = 0; i < FAKE_RUNNING; i++) {
		if (!g->running[i].request || strcmp(g->running[i].request->id, id))
			continue;
		g->running[i].aborted = true;
		atomic_fetch_add(&g->fake->aborts, 1);
		r = 0;
	}
	pthread_mutex_unlock(&g->lock);
	return r;
}

void engine_get_histograms(struct engine *e, struct engine_histograms *ret_histograms)
{
	*ret_histograms =
		(struct engine_histograms){.time_to_first_token = {.count = 1, .buckets = {[3] = 1}, .sum = .009}};
}

/* A trace with a name that would break the file, spans that overlap and one of a host whose clock is far behind. */

int engine_trace_start(struct engine *e, uint64_t duration_ns, struct base_error *error)
{
	return duration_ns > ENGINE_TRACE_MOST_NS ? base_error_set(error, -EINVAL, "duration: too long") : 0;
}

int engine_trace_take(struct engine *e, struct engine_trace **ret_trace, struct base_error *error)
{
	static const struct base_trace_event spans[] = {{5000, 9000, 1 << 20, BASE_TRACE_READ, 1},
		{1000, 3000, 0, BASE_TRACE_MATMUL, 7}, {4000, 6500, 4096, BASE_TRACE_READ, UINT32_MAX},
		{3000, 3500, 0, BASE_TRACE_NORM, 7}, {1000, 2000, 64, BASE_TRACE_SEND, BASE_TRACE_COORDINATOR}};
	static atomic_uint asked;
	if (atomic_fetch_add(&asked, 1) % 2 == 0)
		return -EAGAIN;
	struct engine_trace *t = calloc(1, sizeof(*t));
	*t = (struct engine_trace){.model = "a\"b\\c\n\x80", .started_ns = 1000, .shape = {1, {1}}, .processes = 2};
	t->process[0].same_clock = true;
	t->process[1] = (struct engine_trace_process){.host = "\t\"", .lost = 3, .ahead_ns = -(uint64_t)500};
	t->process[1].count = FAKE_SPANS;
	t->process[1].events = calloc(FAKE_SPANS, sizeof(spans[0]));
	for (uint32_t i = 0; i < FAKE_SPANS; i++) {
		t->process[1].events[i] = i < 5 ? spans[i] : spans[1];
		t->process[1].events[i].start_ns += i < 5 ? 0 : i * 3000;
		t->process[1].events[i].end_ns += i < 5 ? 0 : i * 3000;
	}
	*ret_trace = t;
	return 0;
}

void engine_trace_destroy(struct engine_trace *t)
{
	for (uint32_t i = 0; t && i < t->processes; i++)
		free(t->process[i].events);
	free(t);
}

/* Server. */

struct server *fake_server_create(const struct fake_options *o)
{
	struct server *s = calloc(1, sizeof(*s));
	snprintf(s->config.listen.grpc, CONFIG_TEXT_BYTES, "unix:%s", o->socket);
	snprintf(s->config.listen.tcp, CONFIG_TEXT_BYTES, "%s", o->tcp ? o->tcp : "");
	snprintf(s->config.listen.tls_cert, CONFIG_TEXT_BYTES, "%s", o->cert ? o->cert : "");
	snprintf(s->config.listen.tls_key, CONFIG_TEXT_BYTES, "%s", o->key ? o->key : "");
	snprintf(s->config.listen.tls_ca, CONFIG_TEXT_BYTES, "%s", o->ca ? o->ca : "");
	s->coordinator = o->coordinator;
	s->open_source = o->open_source;
	if (o->cluster_listen) {
		snprintf(s->config.cluster.listen, CONFIG_TEXT_BYTES, "%s", o->cluster_listen);
		snprintf(s->config.cluster.tls_cert, CONFIG_TEXT_BYTES, "%s", o->cert);
		snprintf(s->config.cluster.tls_key, CONFIG_TEXT_BYTES, "%s", o->key);
		snprintf(s->config.cluster.tls_ca, CONFIG_TEXT_BYTES, "%s", o->ca);
	}
	s->config.listen.insecure_tcp = o->insecure_tcp;
	s->tokenizer.add_bos = o->add_bos;
	snprintf(s->machine.host, sizeof(s->machine.host), "testhost");
	s->machine.cpus = 2;
	s->machine.drives_count = 1;
	snprintf(s->machine.drives[0].name, sizeof(s->machine.drives[0].name), "nvme0n1");
	s->model = (struct server_model){.tokenizer = &s->tokenizer,
		.specials = fake_specials,
		.engine = &s->engine,
		.name = "fake",
		.context_tokens = 1024};
	atomic_store(&s->fake.ready, true);
	atomic_store(&s->fake.phase, SERVER_PHASE_READY);
	s->engine.fake = &s->fake;
	pthread_mutex_init(&s->engine.lock, NULL);
	pthread_create(&s->engine.thread, NULL, engine_run, &s->engine);
	return s;
}

void fake_server_destroy(struct server *s)
{
	pthread_mutex_lock(&s->engine.lock);
	s->engine.stop = true;
	pthread_mutex_unlock(&s->engine.lock);
	pthread_join(s->engine.thread, NULL);
	pthread_mutex_destroy(&s->engine.lock);
	free(s);
}

static void fill_info(struct server *s, struct server_model_info *i)
{
	memset(i, 0, sizeof(*i));
	snprintf(i->name, sizeof(i->name), "fake");
	snprintf(i->path, sizeof(i->path), "/models/fake.gguf");
	snprintf(i->chat_template, sizeof(i->chat_template), "chatml");
	i->phase = (enum server_phase)atomic_load(&s->fake.phase);
	i->layers = 4;
	i->vocab = FAKE_VOCAB;
	i->bos = FAKE_BOS;
	i->eos = TEXT_NO_TOKEN;
	i->load.state = ENGINE_READY;
	i->load.shape = (struct rank_shape){1, {1}};
	i->load.ranks = 1;
	i->load.slice[0] = (struct pack_slice){.layers = 4, .tp_size = 1};
	if (atomic_load(&s->fake.data_loss))
		snprintf(i->load.data_loss, sizeof(i->load.data_loss), "layer 5: bad");
	i->load.epoch = 7;
	i->load.placement[0] = (struct rank_placement){.hot_bytes = 60, .cold_bytes = 40, .engine = "uring"};
	pthread_mutex_lock(&s->engine.lock);
	for (uint32_t r = 0; r < FAKE_RUNNING; r++)
		i->load.running += s->engine.running[r].request != NULL;
	pthread_mutex_unlock(&s->engine.lock);
	if (i->phase == SERVER_PHASE_FAILED)
		base_error_set(&i->error, -EBADMSG, "/models/fake.gguf: truncated");
}

uint32_t server_list_models(struct server *s, struct server_model_info *ret_infos, uint32_t room)
{
	fill_info(s, &ret_infos[0]);
	return 1;
}

int server_get_model(struct server *s, const char *name, struct server_model_info *ret_info)
{
	if (name[0] && strcmp(name, "fake"))
		return -ENOENT;
	fill_info(s, ret_info);
	return 0;
}

int server_acquire_model(struct server *s, const char *name, const struct server_model **ret_model,
	uint64_t *ret_retry_after_ns, struct base_error *e)
{
	int code = atomic_load(&s->fake.acquire_error);
	if (code) {
		*ret_retry_after_ns = 2500000000;
		return base_error_set(e, code, "fake: not ready");
	}
	if (name[0] && strcmp(name, "fake"))
		return base_error_set(e, -ENOENT, "there is no model \"%s\"", name);
	atomic_fetch_add(&s->fake.models_held, 1);
	*ret_model = &s->model;
	return 0;
}

void server_release_model(struct server *s, const struct server_model *m)
{
	atomic_fetch_sub(&s->fake.models_held, 1);
}

int server_load_model(struct server *s, const struct config_model *model, struct base_error *e)
{
	int code = atomic_load(&s->fake.load_error);
	return code ? base_error_set(e, code, "%s: does not load", model->path) : 0;
}

int server_unload_model(struct server *s, const char *name, struct base_error *e)
{
	return strcmp(name, "fake") ? base_error_set(e, -ENOENT, "there is no model \"%s\"", name) : 0;
}

int server_check_map(const struct server *s, const char *device_map, struct base_error *e)
{
	return strcmp(device_map, "diagonal") ? 0 : base_error_set(e, -EINVAL, "\"diagonal\" is no map");
}

int server_plan_model(struct server *s, const char *path, const char *device_map, uint64_t weights_bytes,
	uint64_t kv_bytes, struct server_model_info *ret_info, struct base_error *e)
{
	int code = atomic_load(&s->fake.plan_error);
	if (code)
		return base_error_set(e, code, "memory.weights is 12 bytes short");
	fill_info(s, ret_info);
	ret_info->load.ranks = 0;
	ret_info->plan.weights_bytes = weights_bytes;
	snprintf(ret_info->explanation, sizeof(ret_info->explanation), "an explanation\n");
	return 0;
}

int server_reload(struct server *s, char *ret_text, size_t room, struct base_error *e)
{
	int code = atomic_load(&s->fake.load_error);
	snprintf(ret_text, room, "done");
	return code ? base_error_set(e, code, "/etc/thaw/thaw.yaml:3:1: unknown key") : 0;
}

int server_abort(struct server *s, const char *request_id)
{
	return engine_abort(&s->engine, request_id);
}

void server_drain(struct server *s, bool on)
{
	atomic_store(&s->fake.draining, on);
}

bool server_draining(const struct server *s)
{
	return atomic_load(&s->fake.draining);
}

bool server_ready(struct server *s)
{
	return atomic_load(&s->fake.ready);
}

struct cluster_coordinator *server_coordinator(struct server *s)
{
	return s->coordinator;
}

int server_open_source(struct server *s, const struct cluster_identity *peer, const struct cluster_pull *pull,
	struct cluster_source *ret_source, struct base_error *e)
{
	return s->open_source ? s->open_source(peer, pull, ret_source, e)
			      : cluster_source_open(s->coordinator, peer, pull, ret_source, e);
}

const struct config *server_config(const struct server *s)
{
	return &s->config;
}

const struct topology_machine *server_machine(const struct server *s)
{
	return &s->machine;
}

struct topology_bandwidths server_bandwidths(struct server *s)
{
	return (struct topology_bandwidths){.drive_bytes_per_s = 2e9};
}

uint64_t server_started_wall_ns(const struct server *s)
{
	return 5;
}

uint64_t server_memory_bytes(struct server *s)
{
	return 4096;
}

uint32_t server_read_events(
	struct server *s, uint64_t after, struct server_event *ret_events, uint32_t room, uint64_t timeout_ns)
{
	uint32_t n = 0, count = atomic_load(&s->events_count);
	for (uint32_t i = 0; i < count && n < room; i++)
		if (s->events[i].sequence > after)
			ret_events[n++] = s->events[i];
	return n;
}

void server_emit_event(struct server *s, const char *severity, const char *kind, const char *model, const char *text)
{
	uint32_t i = atomic_load(&s->events_count);
	if (i == 8)
		return;
	s->events[i] = (struct server_event){.sequence = i + 1, .wall_ns = 1};
	snprintf(s->events[i].severity, sizeof(s->events[i].severity), "%s", severity);
	snprintf(s->events[i].kind, sizeof(s->events[i].kind), "%s", kind);
	snprintf(s->events[i].model, sizeof(s->events[i].model), "%s", model);
	snprintf(s->events[i].text, sizeof(s->events[i].text), "%s", text);
	atomic_store(&s->events_count, i + 1);
}

const char *server_phase_name(enum server_phase p)
{
	static const char *const names[] = {"queued", "digest", "pack", "load", "ready", "failed", "unloaded"};
	return names[p];
}
