// SPDX-License-Identifier: Apache-2.0
// Unloading: the thread that drains and ends models. It waits for no load of another model, however long that packs.
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/server_internal.h"

#define LOOK_NS 10000000 // between looks at an engine that drains
#define REFERENCES_NS (10 * BASE_NS_PER_SECOND) // that calls get to let go of a model whose requests have ended

static void pause_ns(long ns)
{
	nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

static void drain_engine(struct server_entry *x)
{
	struct server *s = x->server;
	uint64_t until = base_clock_now_ns() + atomic_load(&s->drain_ns);
	_cleanup_free_ struct engine_load *load = calloc(1, sizeof *load);
	engine_drain(x->model.engine, true);
	while (load && base_clock_now_ns() < until) {
		engine_get_load(x->model.engine, load);
		pthread_mutex_lock(&s->lock);
		bool stop = s->stop;
		pthread_mutex_unlock(&s->lock);
		if (stop || load->state == ENGINE_FAILED || load->running + load->waiting == 0)
			break;
		pause_ns(LOOK_NS);
	}
	engine_abort_all(x->model.engine);
}

static bool wait_for_references(struct server_entry *x)
{
	uint64_t until = base_clock_now_ns() + REFERENCES_NS;
	for (; base_clock_now_ns() < until; pause_ns(LOOK_NS)) {
		pthread_mutex_lock(&x->server->lock);
		bool free = x->references == 0;
		pthread_mutex_unlock(&x->server->lock);
		if (free)
			return true;
	}
	return false;
}

static void unload_entry(struct server_entry *x)
{
	struct server *s = x->server;
	server_set_phase(x, SERVER_PHASE_UNLOADED, NULL);
	if (x->model.engine)
		drain_engine(x);
	while (!wait_for_references(x)) {
		base_log_error(s->log, "model %s: %u calls do not let go of it", x->info->name, x->references);
		pthread_mutex_lock(&s->lock);
		bool stop = s->stop;
		pthread_mutex_unlock(&s->lock);
		if (stop)
			return; // its memory stays: better than to pull it from under them
	}
	if (!x->hidden)
		server_emit_event(s, "notice", "model_unloaded", x->info->name, "its memory is free");
	pthread_mutex_lock(&s->lock);
	bool for_good = x->unload && !x->hidden && !s->stop;
	pthread_mutex_unlock(&s->lock);
	server_stop_engine(x);
	if (for_good)
		server_fleet_forget(x);
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i] == x)
			s->entry[i] = NULL;
	}
	server_count_daemon(s);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	server_entry_destroy(x);
}

/* Lock held. One that is being loaded or repaired is left alone until the loader has noticed. */
static struct server_entry *next_work(struct server *s)
{
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		struct server_entry *x = s->entry[i];
		if (x && x->unload && !x->busy && !x->preparing)
			return x;
	}
	return NULL;
}

void *server_unloader_thread(void *server)
{
	struct server *s = server;
	pthread_setname_np(pthread_self(), "unloader");
	pthread_mutex_lock(&s->lock);
	while (!s->loader_gone) {
		struct server_entry *x = next_work(s);
		if (!x) {
			pthread_cond_wait(&s->changed, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		unload_entry(x);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i])
			unload_entry(s->entry[i]);
	}
	return NULL;
}
