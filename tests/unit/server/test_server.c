// SPDX-License-Identifier: Apache-2.0
/* The server with real ranks (processes) and tiny models: what is loaded, what is refused and in which words. */
#include "tests/lib/testing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/trace.h"
#include "daemon/server.h"
#include "tests/lib/tiny_gguf.h"
#include "tests/lib/wait.h"

#define SECOND BASE_NS_PER_SECOND

struct house {
	char folder[64], model[96];
	struct config config;
	struct server *server;
};

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void house_open_with(struct house *h, uint64_t weights_bytes, uint64_t kv_bytes)
{
	struct tiny_model m = {.layers = 4, .vocab = 320};
	*h = (struct house){.folder = "/tmp/thaw-server-XXXXXX"};
	assert_non_null(mkdtemp(h->folder));
	snprintf(h->model, sizeof h->model, "%s/tiny.gguf", h->folder);
	assert_int_equal(tiny_model_save(&m, h->model), 0);
	config_defaults(&h->config);
	snprintf(h->config.store.path, sizeof h->config.store.path, "%s/store", h->folder);
	snprintf(h->config.compute.backend, sizeof h->config.compute.backend, "reference");
	h->config.compute.threads = 1;
	h->config.daemon.drain_ns = 60 * SECOND;
	h->config.memory.weights_bytes = weights_bytes;
	h->config.memory.kv_bytes = kv_bytes;
	struct base_error e = {0};
	int status = server_create(&h->config, NULL, &h->server, &e);
	if (status)
		fail_msg("%s", e.message);
}

static void house_open(struct house *h)
{
	house_open_with(h, 0, 0);
}

static void house_close(struct house *h)
{
	char command[128];
	server_destroy(h->server);
	snprintf(command, sizeof command, "%s", h->folder);
	pid_t pid = fork();
	if (pid == 0) {
		execlp("rm", "rm", "-rf", command, (char *)NULL);
		_exit(127);
	}
}

static int load(struct house *h, const char *path, const char *name, struct base_error *e)
{
	struct config_model m = {0};
	snprintf(m.path, sizeof m.path, "%s", path);
	snprintf(m.name, sizeof m.name, "%s", name);
	return server_load_model(h->server, &m, e);
}

static enum server_phase wait_phase(struct house *h, const char *name, enum server_phase want)
{
	static struct server_model_info info;
	for (uint64_t end = base_clock_now_ns() + 60 * SECOND; base_clock_now_ns() < end; pause_ms(5)) {
		if (server_get_model(h->server, name, &info) < 0)
			return SERVER_PHASE_UNLOADED;
		if (info.phase == want || info.phase == SERVER_PHASE_FAILED)
			return info.phase;
	}
	return info.phase;
}

static void wait_gone(struct house *h, const char *name)
{
	static struct server_model_info info;
	for (uint64_t end = base_clock_now_ns() + 60 * SECOND; server_get_model(h->server, name, &info) == 0;
		pause_ms(5))
		assert_true(base_clock_now_ns() < end);
}

/* Processes that this one started and that are called rank-0. */
static void kill_ranks(void)
{
	DIR *d = opendir("/proc");
	uint32_t killed = 0;
	for (struct dirent *n; (n = readdir(d));) {
		char path[300], name[32];
		int pid, parent;
		snprintf(path, sizeof path, "/proc/%s/stat", n->d_name);
		FILE *f = fopen(path, "re");
		if (f && fscanf(f, "%d (%31[^)]) %*c %d", &pid, name, &parent) == 3 && parent == getpid() &&
			strcmp(name, "rank-0") == 0)
			killed += kill(pid, SIGKILL) == 0;
		if (f)
			fclose(f);
	}
	closedir(d);
	assert_int_equal(killed, 1);
}

struct answer {
	_Atomic uint32_t tokens, finals;
	_Atomic int status;
};

static bool emit(void *context, const struct request_event *v)
{
	struct answer *a = context;
	atomic_fetch_add(&a->tokens, v->token_count);
	if (v->final) {
		atomic_store(&a->status, v->error.code);
		atomic_fetch_add(&a->finals, 1);
	}
	return true;
}

static int ask(const struct server_model *m, uint32_t tokens, const char *id, struct answer *a)
{
	struct request *r = calloc(1, sizeof *r);
	struct base_error e = {0};
	uint64_t retry;
	r->prompt = calloc(8, sizeof *r->prompt);
	r->prompt_tokens = 8;
	for (uint32_t i = 0; i < 8; i++)
		r->prompt[i] = 10 + i;
	r->num_sequences = 1;
	r->max_new_tokens = tokens;
	r->ignore_eos = true;
	r->sampling = (struct sample_params){.top_p = 1, .repetition_penalty = 1};
	r->sink = (struct request_sink){.emit = emit, .context = a};
	snprintf(r->id, sizeof r->id, "%s", id);
	int status = engine_submit(m->engine, r, &retry, &e);
	if (status)
		request_destroy(r);
	return status;
}

static void wait_final(struct answer *a)
{
	testing_wait_until(atomic_load(&a->finals));
}

static bool answers(const struct server_model *m, uint32_t tokens)
{
	struct answer a = {0};
	if (ask(m, tokens, "", &a))
		return false;
	wait_final(&a);
	return !a.status;
}

static uint64_t restarts(const struct server_model *m)
{
	static struct engine_load load;
	engine_get_load(m->engine, &load);
	return load.restarts;
}

static uint32_t count_events(struct house *h, const char *kind, const char *word)
{
	static struct server_event events[256];
	uint32_t n = server_read_events(h->server, 0, events, 256, 0), count = 0;
	for (uint32_t i = 0; i < n; i++)
		count += strcmp(events[i].kind, kind) == 0 && strstr(events[i].text, word);
	return count;
}

static bool had_event(struct house *h, const char *kind, const char *word)
{
	return count_events(h, kind, word) > 0;
}

/* A control token that a user may write would end a turn for him, whichever of thousands it is. */
static void test_every_special_is_held(void **state)
{
	struct house h;
	struct base_error e = {0};
	const struct server_model *m;
	uint64_t retry = 0;
	uint32_t count = 0;
	house_open(&h);
	struct tiny_model many = {.layers = 1, .vocab = 6000, .control_rest = true};
	assert_int_equal(tiny_model_save(&many, h.model), 0);
	if (load(&h, h.model, "", &e))
		fail_msg("%s", e.message);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_acquire_model(h.server, "", &m, &retry, &e), 0);
	while (m->specials[count])
		count++;
	assert_int_equal(count, 3 + 6000 - 259 - 676);
	assert_string_equal(m->specials[count - 1], "<unused5999>");
	server_release_model(h.server, m);
	house_close(&h);
}

static void test_load_ask_unload(void **state)
{
	struct house h;
	struct base_error e = {0};
	const struct server_model *m;
	uint64_t retry = 0;
	house_open(&h);
	assert_false(server_ready(h.server));
	assert_int_equal(server_acquire_model(h.server, "", &m, &retry, &e), -ENOENT);
	if (load(&h, h.model, "", &e))
		fail_msg("%s", e.message);
	assert_int_equal(load(&h, h.model, "tiny", &e), -EEXIST);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_true(server_ready(h.server));
	assert_true(server_healthy(h.server));
	assert_int_equal(server_acquire_model(h.server, "other", &m, &retry, &e), -ENOENT);
	assert_non_null(strstr(e.message, "tiny"));
	assert_int_equal(server_acquire_model(h.server, "", &m, &retry, &e), 0);
	struct answer a = {0}, b = {0};
	assert_int_equal(ask(m, 20, "", &a), 0);
	wait_final(&a);
	assert_int_equal(a.status, 0);
	assert_int_equal(a.tokens, 20);
	assert_true(server_memory_bytes(h.server) > 1 << 20);
	static struct server_model_info info;
	assert_int_equal(server_get_model(h.server, "tiny", &info), 0);
	assert_int_equal(strlen(info.digest), 32);
	assert_string_equal(info.chat_template, "chatml");
	assert_true(info.load.placement[0].hot_bytes > 0 && info.plan.weights_bytes > 0);
	assert_int_equal(ask(m, 30, "b", &b), 0);
	assert_int_equal(server_unload_model(h.server, "tiny", &e), 0);
	assert_int_equal(server_acquire_model(h.server, "tiny", &m, &retry, &e), -EHOSTDOWN);
	wait_final(&b); // it was allowed to finish
	assert_int_equal(b.status, 0);
	pause_ms(50);
	assert_int_equal(server_get_model(h.server, "tiny", &info), 0); // this call still holds it
	server_release_model(h.server, m);
	wait_gone(&h, "tiny");
	testing_wait_until(had_event(&h, "model_unloaded", ""));
	struct server_event events[32];
	uint32_t n = server_read_events(h.server, 0, events, 32, SECOND);
	assert_true(n >= 4);
	assert_string_equal(events[n - 1].kind, "model_unloaded");
	for (uint32_t i = 1; i < n; i++)
		assert_int_equal(events[i].sequence, events[i - 1].sequence + 1);
	house_close(&h);
}

static void test_refusals(void **state)
{
	struct house h;
	struct base_error e = {0};
	char path[128];
	house_open(&h);
	snprintf(path, sizeof path, "%s/no.gguf", h.folder);
	assert_int_equal(load(&h, path, "", &e), -ENOENT);
	assert_non_null(strstr(e.message, path));
	assert_int_equal(load(&h, h.folder, "", &e), -EINVAL);
	snprintf(path, sizeof path, "%s/cut.gguf", h.folder);
	int from = open(h.model, O_RDONLY), to = open(path, O_WRONLY | O_CREAT, 0600);
	char data[2000];
	assert_int_equal(read(from, data, sizeof data), sizeof data);
	assert_int_equal(write(to, data, sizeof data), sizeof data);
	close(from);
	close(to);
	assert_true(load(&h, path, "", &e) < 0);
	assert_non_null(strstr(e.message, "cut.gguf"));
	struct server *second;
	assert_int_equal(server_create(&h.config, NULL, &second, &e), -EBUSY);
	char pid[16];
	snprintf(pid, sizeof pid, "%d", (int)getpid());
	assert_non_null(strstr(e.message, pid));
	static struct server_model_info info;
	assert_int_equal(server_check_map(h.server, "", &e), 0);
	assert_int_equal(server_check_map(h.server, "balanced", &e), -EINVAL);
	assert_non_null(strstr(e.message, "the coordinator's of a cluster"));
	assert_int_equal(server_plan_model(h.server, h.model, "", 4096, 0, &info, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "short"));
	assert_int_equal(server_plan_model(h.server, h.model, "", 0, 0, &info, &e), 0);
	assert_int_equal(info.layers, 4);
	assert_true(info.plan.kv_blocks > 0);
	assert_int_equal(server_list_models(h.server, &info, 1), 0);
	assert_int_equal(server_unload_model(h.server, "tiny", &e), -ENOENT);
	house_close(&h);
}

/* A mistyped store.path, or one on a drive that is not mounted, is refused; only the last directory is made. */
static void test_store_needs_its_parent(void **state)
{
	struct house h;
	struct base_error e = {0};
	struct server *second;
	house_open(&h); // its store was made
	struct config c = h.config;
	snprintf(c.store.path, sizeof c.store.path, "%s/missing/store", h.folder);
	assert_int_equal(server_check_store(c.store.path, &e), -ENOENT);
	assert_int_equal(server_create(&c, NULL, &second, &e), -ENOENT);
	assert_non_null(strstr(e.message, "/missing: "));
	snprintf(c.store.path, sizeof c.store.path, "%s/tiny.gguf", h.folder);
	assert_int_equal(server_check_store(c.store.path, &e), -ENOTDIR);
	house_close(&h);
}

/* The first model holds the budgets: a dry run says so, and takes budgets that it is given at their word. */
static void test_plan_beside_a_model(void **state)
{
	struct house h;
	struct base_error e = {0};
	static struct server_model_info info;
	house_open(&h);
	assert_int_equal(server_plan_model(h.server, h.model, "", 0, 0, &info, &e), 0);
	uint64_t all = info.plan_input.weights_all_bytes;
	house_close(&h);
	house_open_with(&h, all, 0);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_plan_model(h.server, h.model, "", 0, 0, &info, &e), -ENOMEM);
	assert_non_null(strstr(e.message, "of memory.weights ("));
	assert_non_null(strstr(e.message, "the loaded models hold "));
	assert_int_equal(server_plan_model(h.server, h.model, "", all, 0, &info, &e), 0);
	assert_int_equal(info.plan.weights_bytes, all);
	house_close(&h);
}

/* A damaged layer file is packed again; a damaged header never reaches a rank. */
static void test_corrupt_store(void **state)
{
	struct house h;
	struct base_error e = {0};
	static struct server_model_info info;
	house_open(&h);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_get_model(h.server, "tiny", &info), 0);
	assert_int_equal(server_unload_model(h.server, "tiny", &e), 0);
	wait_gone(&h, "tiny");
	char path[1024];
	snprintf(path, sizeof path, "%s/%s/layer-0001.tp0of1", h.config.store.path, info.digest);
	assert_int_equal(truncate(path, 5000), 0);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	house_close(&h);
}

static void flip(struct house *h, const char *file, long at)
{
	static struct server_model_info info;
	char path[1024];
	uint8_t byte;
	assert_int_equal(server_get_model(h->server, "tiny", &info), 0);
	snprintf(path, sizeof path, "%s/%s/%s", h->config.store.path, info.digest, file);
	int fd = open(path, O_RDWR);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 8;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

/* Hot data that is bad when a model is loaded: the one file is packed anew, and it serves. Without its source:
 * refused. */
static void test_hot_data_is_mended_at_load(void **state)
{
	struct house h;
	struct base_error e = {0};
	house_open(&h);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	flip(&h, "layer-0002.tp0of1", 4096 + 77);
	assert_int_equal(server_unload_model(h.server, "tiny", &e), 0);
	wait_gone(&h, "tiny");
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_true(had_event(&h, "store_corrupt", "layer-0002"));
	assert_true(had_event(&h, "store_repaired", "packed anew from "));
	assert_true(had_event(&h, "store_repaired", "layer-0002.tp0of1;"));
	const struct server_model *m;
	uint64_t retry;
	struct answer a = {0};
	assert_int_equal(server_acquire_model(h.server, "tiny", &m, &retry, &e), 0);
	assert_int_equal(ask(m, 5, "", &a), 0);
	wait_final(&a);
	assert_int_equal(a.status, 0);
	server_release_model(h.server, m);
	house_close(&h);
}

/* Whichever extents are cold. */
static void flip_layers(struct house *h)
{
	char file[64];
	for (int i = 0; i < 8; i++) {
		snprintf(file, sizeof file, "layer-%04d.tp0of1", i);
		for (long at = 4096 + 5; at < 3 << 20; at += 64 << 10)
			flip(h, file, at);
	}
}

/* Cold data that goes bad under a model that serves: not ready, mended, ready. And again, soon after: when the pause is
 * over, though no request comes meanwhile. */
static void test_cold_data_is_mended(void **state)
{
	struct house h;
	struct base_error e = {0};
	static struct server_model_info info;
	struct tiny_model large = {.layers = 8, .vocab = 320, .width = 256, .ffn_width = 1024};
	char path[128];
	house_open(&h);
	assert_int_equal(tiny_model_save(&large, h.model), 0);
	assert_int_equal(server_plan_model(h.server, h.model, "", 0, 0, &info, &e), 0);
	uint64_t least = info.plan_input.weights_min_bytes;
	house_close(&h);
	house_open_with(&h, least, 0);
	snprintf(path, sizeof path, "%s/tiny.gguf", h.folder);
	assert_int_equal(tiny_model_save(&large, path), 0);
	assert_int_equal(load(&h, path, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_get_model(h.server, "tiny", &info), 0);
	assert_true(info.load.placement[0].cold_bytes > 10 << 20);
	const struct server_model *m;
	uint64_t retry;
	server_set_repair_pause(h.server, 4 * SECOND);
	flip_layers(&h);
	struct answer a = {0}, b = {0}, c = {0};
	assert_int_equal(server_acquire_model(h.server, "tiny", &m, &retry, &e), 0);
	assert_int_equal(ask(m, 20, "", &a), 0);
	wait_final(&a);
	assert_int_equal(a.status, -EBADMSG);
	testing_wait_until(had_event(&h, "store_repaired", "packed anew from "));
	assert_true(had_event(&h, "data_loss", "layer"));
	testing_wait_until(server_ready(h.server));
	testing_wait_until(answers(m, 20)); // the new rank is there
	assert_int_equal(ask(m, 20, "", &b), 0);
	wait_final(&b);
	assert_int_equal(b.status, 0);
	flip_layers(&h);
	assert_int_equal(ask(m, 20, "", &c), 0);
	wait_final(&c);
	assert_int_equal(c.status, -EBADMSG);
	testing_wait_until(count_events(&h, "store_repaired", "packed anew from ") >= 2);
	testing_wait_until(server_ready(h.server));
	testing_wait_until(answers(m, 20));
	server_release_model(h.server, m);
	house_close(&h);
}

struct call {
	struct house *h;
	pthread_t thread;
	int status;
};

static void *load_twin(void *argument)
{
	struct call *c = argument;
	struct base_error e = {0};
	c->status = load(c->h, c->h->model, "twin", &e);
	if (c->status && !strstr(e.message, "twin"))
		c->status = -EINVAL;
	return NULL;
}

/* Eight that load the same at the same time: one does, and the others are told that the name is taken. */
static void test_one_of_many_loads(void **state)
{
	struct house h;
	struct call calls[8];
	uint32_t loaded = 0, refused = 0;
	house_open(&h);
	for (int i = 0; i < 8; i++) {
		calls[i] = (struct call){.h = &h};
		assert_int_equal(pthread_create(&calls[i].thread, NULL, load_twin, &calls[i]), 0);
	}
	for (int i = 0; i < 8; i++) {
		pthread_join(calls[i].thread, NULL);
		loaded += calls[i].status == 0;
		refused += calls[i].status == -EEXIST;
	}
	assert_int_equal(loaded, 1);
	assert_int_equal(refused, 7);
	assert_int_equal(wait_phase(&h, "twin", SERVER_PHASE_READY), SERVER_PHASE_READY);
	house_close(&h);
}

/* A model whose packing takes long: another one is unloaded meanwhile, and unloading it ends the packing. */
static void test_unload_does_not_wait(void **state)
{
	struct house h;
	struct base_error e = {0};
	static struct server_model_info info;
	struct tiny_model large = {.layers = 8, .vocab = 2000, .width = 512, .ffn_width = 2048};
	char path[128];
	house_open(&h);
	snprintf(path, sizeof path, "%s/large.gguf", h.folder);
	assert_int_equal(tiny_model_save(&large, path), 0);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(load(&h, path, "large", &e), 0);
	assert_int_equal(wait_phase(&h, "large", SERVER_PHASE_PACK), SERVER_PHASE_PACK);
	assert_int_equal(server_unload_model(h.server, "tiny", &e), 0);
	wait_gone(&h, "tiny");
	assert_int_equal(server_get_model(h.server, "large", &info), 0);
	assert_true(info.phase < SERVER_PHASE_READY);
	assert_int_equal(server_unload_model(h.server, "large", &e), 0);
	wait_gone(&h, "large");
	house_close(&h);
}

/* kill -9 of the rank process: the request that runs ends as if nothing had been. Then drain. */
static void test_rank_is_killed(void **state)
{
	struct house h;
	struct base_error e = {0};
	const struct server_model *m;
	uint64_t retry;
	house_open(&h);
	assert_int_equal(load(&h, h.model, "tiny", &e), 0);
	assert_int_equal(wait_phase(&h, "tiny", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_acquire_model(h.server, "tiny", &m, &retry, &e), 0);
	struct answer a = {0};
	assert_int_equal(ask(m, 200, "long", &a), 0);
	while (atomic_load(&a.tokens) < 20)
		pause_ms(1);
	kill_ranks();
	wait_final(&a);
	assert_int_equal(a.status, 0);
	assert_int_equal(a.tokens, 200);
	testing_wait_until(restarts(m) == 1); // the request may have been over
	testing_wait_until(server_ready(h.server));
	server_drain(h.server, true);
	assert_false(server_ready(h.server));
	assert_int_equal(ask(m, 10, "", &a), -EHOSTDOWN);
	server_drain(h.server, false);
	testing_wait_until(server_ready(h.server));
	assert_int_equal(server_abort(h.server, "nobody"), -ENOENT);
	server_release_model(h.server, m);
	house_close(&h);
}

/* What thawd holds itself is in the plan of one model, whichever is there. */
static void test_daemon_memory_is_counted_once(void **state)
{
	static struct server_model_info a, b;
	struct house h;
	struct base_error e = {0};
	house_open_with(&h, 8ull << 20, 8ull << 20);
	h.config.memory.workspace_bytes = 0;
	assert_int_equal(load(&h, h.model, "a", &e), 0);
	assert_int_equal(wait_phase(&h, "a", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(load(&h, h.model, "b", &e), 0);
	assert_int_equal(wait_phase(&h, "b", SERVER_PHASE_READY), SERVER_PHASE_READY);
	assert_int_equal(server_get_model(h.server, "a", &a), 0);
	assert_int_equal(server_get_model(h.server, "b", &b), 0);
	assert_int_equal(a.plan.workspace_bytes, b.plan.workspace_bytes + (16ull << 20));
	uint64_t with = a.plan.workspace_bytes;
	assert_int_equal(server_unload_model(h.server, "a", &e), 0);
	wait_gone(&h, "a");
	assert_int_equal(server_get_model(h.server, "b", &b), 0);
	assert_int_equal(b.plan.workspace_bytes, with);
	house_close(&h);
}

static uint64_t workspace_of(uint32_t stages)
{
	static struct server_model_info info;
	struct house h;
	struct base_error e = {0};
	house_open(&h);
	server_destroy(h.server);
	h.config.compute.stages = stages;
	assert_int_equal(server_create(&h.config, NULL, &h.server, &e), 0);
	assert_int_equal(server_plan_model(h.server, h.model, "", 0, 0, &info, &e), 0);
	house_close(&h);
	return info.plan.workspace_bytes;
}

/* What `thawctl trace` takes while it runs is in the budget before it does: a ring for each rank, one for the engine,
 * and the copy of each that is handed out. */
static void test_traces_are_counted(void **state)
{
	const uint64_t daemon = 16ull << 20, rank = 8ull << 20, ring = BASE_TRACE_RING_BYTES;
	const uint64_t own = 3ull << 19; // at most, of a rank of the tiny model
	uint64_t one = workspace_of(1), two = workspace_of(2);
	assert_in_range(one, daemon + rank + 4 * ring, daemon + rank + 4 * ring + own);
	assert_in_range(two - one, rank + 2 * ring, rank + 2 * ring + own);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_load_ask_unload),
		cmocka_unit_test(test_every_special_is_held),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_store_needs_its_parent),
		cmocka_unit_test(test_plan_beside_a_model),
		cmocka_unit_test(test_daemon_memory_is_counted_once),
		cmocka_unit_test(test_traces_are_counted),
		cmocka_unit_test(test_corrupt_store),
		cmocka_unit_test(test_hot_data_is_mended_at_load),
		cmocka_unit_test(test_cold_data_is_mended),
		cmocka_unit_test(test_one_of_many_loads),
		cmocka_unit_test(test_unload_does_not_wait),
		cmocka_unit_test(test_rank_is_killed),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
