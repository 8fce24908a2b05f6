// SPDX-License-Identifier: Apache-2.0
#include "daemon/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/worker.h"
#include "daemon/server_internal.h"
#include "topology/scan.h"

#define RETRY_NS (2 * BASE_NS_PER_SECOND)
#define LOCK_NAME "thawd.lock"
#define REPAIR_PAUSE_NS (600 * BASE_NS_PER_SECOND)
#define STALE_TURN_NS (60 * BASE_NS_PER_SECOND) // an engine that did not come round for that long hangs

const char *server_phase_name(enum server_phase p)
{
	static const char *const names[] = {"queued", "digest", "pack", "load", "ready", "failed", "unloaded"};
	return (unsigned)p < base_array_size(names) ? names[p] : "unknown";
}

/* ---- the store's lock ---- */

int server_check_store(const char *path, struct base_error *e)
{
	char parent[CONFIG_TEXT_BYTES];
	struct stat st;
	if (stat(path, &st) == 0)
		return S_ISDIR(st.st_mode) ? 0 : base_error_set(e, -ENOTDIR, "store.path %s: not a directory", path);
	snprintf(parent, sizeof parent, "%s", path);
	size_t n = strlen(parent);
	while (n > 1 && parent[n - 1] == '/')
		parent[--n] = '\0';
	char *slash = strrchr(parent, '/');
	if (errno != ENOENT || !slash)
		return base_error_set(e, -errno, "store.path %s: %s", path, strerrordesc_np(errno));
	slash[slash == parent] = '\0';
	if (stat(parent, &st) < 0)
		return base_error_set(e, -errno,
			"store.path %s: %s: %s; only the last directory is made, so make that one, or correct the path",
			path, parent, strerrordesc_np(errno));
	return S_ISDIR(st.st_mode) ? 0
				   : base_error_set(e, -ENOTDIR, "store.path %s: %s is not a directory", path, parent);
}

/* Its parent is there: a mistyped path, or a drive that is not mounted, must not fill another file system. */
static int make_store(struct server *s, struct base_error *e)
{
	const char *path = s->config.store.path;
	int status = server_check_store(path, e);
	if (status)
		return status;
	if (mkdir(path, 0755) == 0)
		base_log_notice(s->log, "store.path %s: was not there and was made", path);
	else if (errno != EEXIST)
		return base_error_set(e, -errno, "store.path %s: cannot be made: %s", path, strerrordesc_np(errno));
	return 0;
}

/* Held as long as the process lives. The number in it is for people. */
static int lock_store(struct server *s, struct base_error *e)
{
	const char *path = s->config.store.path;
	char name[CONFIG_TEXT_BYTES + 32], text[24] = {0};
	int status = make_store(s, e);
	if (status)
		return status;
	snprintf(name, sizeof name, "%s/" LOCK_NAME, path);
	s->lock_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (s->lock_fd < 0)
		return base_error_set(e, -errno, "store.path: cannot open %s: %s", name, strerrordesc_np(errno));
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		ssize_t n = errno == EWOULDBLOCK ? pread(s->lock_fd, text, sizeof text - 1, 0) : -1;
		if (n < 0)
			return base_error_set(
				e, -errno, "store.path: cannot lock %s: %s", name, strerrordesc_np(errno));
		text[strcspn(text, "\n")] = '\0';
		return base_error_set(e, -EBUSY,
			"store.path %s is in use by another thawd, pid %s: stop it, or give this one a store of its "
			"own",
			path, text[0] ? text : "unknown");
	}
	snprintf(text, sizeof text, "%d\n", (int)getpid());
	if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, text, strlen(text), 0) < 0)
		return base_error_set(e, -errno, "store.path: cannot write %s: %s", name, strerrordesc_np(errno));
	return 0;
}

/* The disk of the store, not its partition: what topology lists. */
static void find_drive(struct server *s)
{
	struct stat st;
	char link[64], path[PATH_MAX], partition[PATH_MAX + 16];
	snprintf(s->drive, sizeof s->drive, "unknown");
	if (stat(s->config.store.path, &st) < 0)
		return;
	snprintf(link, sizeof link, "/sys/dev/block/%u:%u", major(st.st_dev), minor(st.st_dev));
	if (!realpath(link, path))
		return;
	snprintf(partition, sizeof partition, "%s/partition", path);
	if (access(partition, F_OK) == 0)
		*strrchr(path, '/') = '\0';
	snprintf(s->drive, sizeof s->drive, "%.*s", (int)sizeof s->drive - 1, strrchr(path, '/') + 1);
}

/* ---- create, destroy ---- */

static void server_free(struct server *s)
{
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++)
		server_entry_destroy(s->entry[i]);
	server_cluster_stop(s);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	server_events_finish(s);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->plan_lock);
	pthread_mutex_destroy(&s->probe_lock);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static void stop_loader(struct server *s)
{
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->loader, NULL);
}

static int start_threads(struct server *s, struct base_error *e)
{
	int status = -pthread_create(&s->loader, NULL, server_loader_thread, s);
	if (status)
		return base_error_set(e, status, "loader thread: %s", strerrordesc_np(-status));
	status = -pthread_create(&s->unloader, NULL, server_unloader_thread, s);
	if (status) {
		stop_loader(s);
		return base_error_set(e, status, "unloader thread: %s", strerrordesc_np(-status));
	}
	return 0;
}

/* What the loader has at hand is given up first, then every model is unloaded. */
static void stop_threads(struct server *s)
{
	stop_loader(s);
	pthread_mutex_lock(&s->lock);
	s->loader_gone = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->unloader, NULL);
}

int server_create(const struct config *config, struct base_log *log, struct server **ret_server, struct base_error *e)
{
	struct server *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory");
	s->config = *config;
	atomic_init(&s->drain_ns, config->daemon.drain_ns);
	atomic_init(&s->repair_pause_ns, REPAIR_PAUSE_NS);
	s->log = log;
	s->lock_fd = -1;
	s->started_wall_ns = base_clock_wall_ns();
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->plan_lock, NULL);
	pthread_mutex_init(&s->probe_lock, NULL);
	server_cond_init(&s->changed);
	int status = server_events_init(s);
	if (status)
		base_error_set(e, status, "no memory");
	if (!status)
		status = supervisor_find_rank(s->rank_path, sizeof s->rank_path, e);
	if (!status)
		status = topology_scan(NULL, &s->machine, e);
	if (!status)
		status = lock_store(s, e);
	if (!status)
		status = server_cluster_start(s, e);
	if (!status)
		find_drive(s);
	if (!status)
		status = start_threads(s, e);
	if (status) {
		server_free(s);
		return status;
	}
	*ret_server = s;
	return 0;
}

void server_destroy(struct server *s)
{
	if (!s)
		return;
	stop_threads(s);
	server_free(s);
}

/* ---- the table ---- */

/* Lock held. name "": the only one. */
static struct server_entry *find(struct server *s, const char *name)
{
	struct server_entry *found = NULL;
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		struct server_entry *x = s->entry[i];
		if (!x || x->hidden || x->preparing)
			continue;
		if (name[0] && strcmp(x->info->name, name) == 0)
			return x;
		if (!name[0] && !x->unload) {
			if (found)
				return NULL;
			found = x;
		}
	}
	return name[0] ? NULL : found;
}

/* Lock held. */
static void copy_info(struct server_entry *x, struct server_model_info *ret_info)
{
	*ret_info = *x->info;
	if (x->model.engine)
		engine_get_load(x->model.engine, &ret_info->load);
	for (uint32_t i = 0; i < ENGINE_REJECTS; i++) {
		ret_info->load.rejected[i] += x->rejected[i];
		ret_info->load.rejected_total += x->rejected[i];
	}
	if (ret_info->phase == SERVER_PHASE_LOAD) {
		ret_info->done_bytes = ret_info->load.load_done_bytes;
		/* Ranks need a while to open and check files before they know: until then it is what the plan says. */
		ret_info->total_bytes =
			ret_info->load.load_total_bytes ? ret_info->load.load_total_bytes : ret_info->plan.hot_bytes;
	}
	if (ret_info->phase == SERVER_PHASE_READY && ret_info->load.state == ENGINE_FAILED) {
		ret_info->phase = SERVER_PHASE_FAILED;
		base_error_set(&ret_info->error, -ENOTRECOVERABLE, "%s", ret_info->load.failure);
	}
	if (ret_info->phase == SERVER_PHASE_READY && ret_info->load.data_loss[0])
		base_error_set(&ret_info->error, -EBADMSG, "%s", ret_info->load.data_loss);
	uint64_t spent = base_clock_now_ns() - x->phase_ns;
	if (ret_info->done_bytes && ret_info->done_bytes < ret_info->total_bytes)
		ret_info->eta_ns = (uint64_t)((double)spent * (double)(ret_info->total_bytes - ret_info->done_bytes) /
					      (double)ret_info->done_bytes);
}

uint32_t server_list_models(struct server *s, struct server_model_info *ret_infos, uint32_t room)
{
	uint32_t n = 0;
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES && n < room; i++) {
		if (s->entry[i] && !s->entry[i]->hidden && !s->entry[i]->preparing)
			copy_info(s->entry[i], &ret_infos[n++]);
	}
	pthread_mutex_unlock(&s->lock);
	return n;
}

int server_get_model(struct server *s, const char *name, struct server_model_info *ret_info)
{
	pthread_mutex_lock(&s->lock);
	struct server_entry *x = find(s, name);
	if (x)
		copy_info(x, ret_info);
	pthread_mutex_unlock(&s->lock);
	return x ? 0 : -ENOENT;
}

/* Lock held: why there is no such model, in words that help. */
static int not_found(struct server *s, const char *name, struct base_error *e)
{
	char names[300] = "";
	size_t at = 0;
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i] && !s->entry[i]->hidden && !s->entry[i]->preparing && at < sizeof names - 1)
			at += (size_t)snprintf(
				names + at, sizeof names - at, "%s%s", at ? ", " : "", s->entry[i]->info->name);
	}
	if (!at)
		return base_error_set(e, -ENOENT, "no model is loaded");
	if (!name[0])
		return base_error_set(e, -ENOENT, "several models are loaded, name one: %s", names);
	return base_error_set(e, -ENOENT, "no model is called %s; there are: %s", name, names);
}

int server_acquire_model(struct server *s, const char *name, const struct server_model **ret_model,
	uint64_t *ret_retry_after_ns, struct base_error *e)
{
	int status = 0;
	pthread_mutex_lock(&s->lock);
	struct server_entry *x = find(s, name);
	if (!x)
		status = not_found(s, name, e);
	else if (x->unload)
		status = base_error_set(e, -EHOSTDOWN, "model %s is being unloaded", x->info->name);
	else if (x->info->phase == SERVER_PHASE_FAILED)
		status = base_error_set(e, -ENOTRECOVERABLE, "model %s failed to load and needs to be loaded again: %s",
			x->info->name, base_error_text(&x->info->error));
	else if (x->info->phase != SERVER_PHASE_READY)
		status = base_error_set(
			e, -EHOSTDOWN, "model %s is loading: %s", x->info->name, server_phase_name(x->info->phase));
	if (!status) {
		x->references++;
		*ret_model = &x->model;
	} else if (x && e) { // metrics looks without a place for words, and is no request
		x->rejected[status == -EHOSTDOWN ? ENGINE_REJECT_NOT_READY : ENGINE_REJECT_FAILED]++;
	}
	pthread_mutex_unlock(&s->lock);
	if (status == -EHOSTDOWN && ret_retry_after_ns)
		*ret_retry_after_ns = RETRY_NS;
	return status;
}

void server_release_model(struct server *s, const struct server_model *m)
{
	if (!m)
		return;
	struct server_entry *x = base_container_of(m, struct server_entry, model);
	pthread_mutex_lock(&s->lock);
	x->references--;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

/* ---- load, unload ---- */

/* Lock held. Takes name and place, so that of two that load the same model one does, and the other is told before it
 * reads anything. A failed model gives its name up, later. */
static int reserve(struct server *s, struct server_entry *x, struct base_error *e)
{
	const struct server_entry *old = find(s, x->info->name);
	uint32_t place = SERVER_MAX_ENTRIES, shown = 0;
	if (s->stop)
		return base_error_set(e, -EHOSTDOWN, "thawd is stopping");
	if (old && old->info->phase != SERVER_PHASE_FAILED)
		return base_error_set(e, -EEXIST,
			"a model called %s is there already (%s): unload it, or choose another name", x->info->name,
			server_phase_name(old->info->phase));
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		const struct server_entry *y = s->entry[i];
		if (y && y->preparing && strcmp(y->info->name, x->info->name) == 0)
			return base_error_set(
				e, -EEXIST, "a model called %s is being loaded by another call", x->info->name);
		if (!y)
			place = place < i ? place : i;
		else if (!y->hidden && y != old)
			shown++;
	}
	if (place == SERVER_MAX_ENTRIES || shown >= CONFIG_MAX_MODELS)
		return base_error_set(e, -ENOSPC, "%u models are loaded, which is the most: unload one", shown);
	x->preparing = true;
	s->entry[place] = x;
	return 0;
}

/* Lock held. It is seen from now on, or forgotten. */
static void settle(struct server *s, struct server_entry *x, bool stays)
{
	struct server_entry *old = find(s, x->info->name);
	x->preparing = false;
	for (uint32_t i = 0; !stays && i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i] == x)
			s->entry[i] = NULL;
	}
	if (stays && old) {
		old->hidden = old->unload = true;
		server_fleet_replace(x, old);
	}
	x->queued = ++s->queued;
	pthread_cond_broadcast(&s->changed);
}

/* keep: a model that cannot be loaded stays in the table, FAILED, for people to see. */
static int load_model(struct server *s, const struct config_model *wanted, bool keep, struct base_error *e)
{
	struct config_model model = *wanted;
	int status = config_model_finish(&model, e);
	struct server_entry *x = status ? NULL : server_entry_create(s, &model);
	if (!x)
		return status ? status : base_error_set(e, -ENOMEM, "no memory for model %s", model.path);
	pthread_mutex_lock(&s->lock);
	status = reserve(s, x, e);
	pthread_mutex_unlock(&s->lock);
	if (status) {
		server_entry_destroy(x);
		return status;
	}
	status = server_entry_prepare(x, 0, 0, e);
	bool stays = !status || keep;
	pthread_mutex_lock(&s->lock);
	if (status && keep) {
		x->info->phase = SERVER_PHASE_FAILED;
		x->info->error = *e;
		x->info->error.code = status;
	}
	settle(s, x, stays);
	pthread_mutex_unlock(&s->lock);
	if (!stays)
		server_entry_destroy(x);
	return status;
}

int server_load_model(struct server *s, const struct config_model *model, struct base_error *e)
{
	return load_model(s, model, false, e);
}

void server_load_configured(struct server *s)
{
	for (uint32_t i = 0; i < s->config.models_count; i++) {
		struct base_error e = {0};
		if (load_model(s, &s->config.models[i], true, &e) < 0)
			server_emit_event(s, "error", "model_failed", s->config.models[i].name, base_error_text(&e));
	}
}

int server_unload_model(struct server *s, const char *name, struct base_error *e)
{
	pthread_mutex_lock(&s->lock);
	struct server_entry *x = find(s, name);
	int status = x ? 0 : not_found(s, name, e);
	if (!status && x->unload)
		status = base_error_set(e, -EALREADY, "model %s is being unloaded", x->info->name);
	if (!status) {
		x->unload = true;
		pthread_cond_broadcast(&s->changed);
	}
	pthread_mutex_unlock(&s->lock);
	return status;
}

int server_plan_model(struct server *s, const char *path, const char *device_map, uint64_t weights_bytes,
	uint64_t kv_bytes, struct server_model_info *ret_info, struct base_error *e)
{
	struct config_model model = {0};
	if (strlen(path) >= sizeof model.path)
		return base_error_set(e, -ENAMETOOLONG, "path: longer than %zu bytes", sizeof model.path - 1);
	snprintf(model.path, sizeof model.path, "%s", path);
	int status = config_model_finish(&model, e);
	struct server_entry *x = status ? NULL : server_entry_create(s, &model);
	if (!x)
		return status ? status : base_error_set(e, -ENOMEM, "no memory for model %s", path);
	status = server_entry_prepare(x, weights_bytes, kv_bytes, e);
	if (!status && s->coordinator)
		status = server_fleet_plan(x, device_map, weights_bytes, kv_bytes, e);
	if (!status)
		*ret_info = *x->info;
	server_entry_destroy(x);
	return status;
}

/* ---- all models ---- */

/* Engines live as long as their entry holds them, which only the loader thread ends, under the lock. */
int server_abort(struct server *s, const char *request_id)
{
	int status = -ENOENT;
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES && status; i++) {
		if (s->entry[i] && s->entry[i]->model.engine)
			status = engine_abort(s->entry[i]->model.engine, request_id);
	}
	pthread_mutex_unlock(&s->lock);
	return status;
}

void server_drain(struct server *s, bool on)
{
	bool was = atomic_exchange(&s->draining, on);
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		struct server_entry *x = s->entry[i];
		if (x && x->model.engine && !x->unload)
			engine_drain(x->model.engine, on);
	}
	pthread_mutex_unlock(&s->lock);
	if (was != on)
		server_emit_event(s, "notice", on ? "drain" : "undrain", "",
			on ? "no new requests; those that run are finished" : "requests are taken again");
}

bool server_draining(const struct server *s)
{
	return atomic_load(&s->draining);
}

bool server_ready(struct server *s)
{
	struct cluster_worker_status w = {0};
	pthread_mutex_lock(&s->lock);
	if (s->worker && !s->coordinator)
		cluster_worker_get_status(s->worker, &w);
	bool ready = w.joined;
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES && !ready; i++) {
		struct server_entry *x = s->entry[i];
		struct engine_load load;
		if (!x || x->unload || x->info->phase != SERVER_PHASE_READY)
			continue;
		engine_get_load(x->model.engine, &load);
		ready = load.state == ENGINE_READY && !load.data_loss[0];
	}
	pthread_mutex_unlock(&s->lock);
	return ready && !server_draining(s);
}

bool server_healthy(struct server *s)
{
	bool healthy = true;
	uint64_t now = base_clock_now_ns();
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES && healthy; i++) {
		struct engine_load load;
		if (!s->entry[i] || !s->entry[i]->model.engine)
			continue;
		engine_get_load(s->entry[i]->model.engine, &load);
		healthy = !load.last_turn_ns || now < load.last_turn_ns + STALE_TURN_NS;
	}
	pthread_mutex_unlock(&s->lock);
	return healthy;
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
	pthread_mutex_lock(&s->lock);
	struct topology_bandwidths b = s->bandwidths;
	pthread_mutex_unlock(&s->lock);
	return b;
}

void server_set_drain(struct server *s, uint64_t drain_ns)
{
	atomic_store(&s->drain_ns, drain_ns);
}

void server_set_repair_pause(struct server *s, uint64_t pause_ns)
{
	atomic_store(&s->repair_pause_ns, pause_ns);
}

const char *server_store_drive(const struct server *s)
{
	return s->drive;
}

uint64_t server_started_wall_ns(const struct server *s)
{
	return s->started_wall_ns;
}

/* VmRSS leaves hugetlb pages out. */
uint64_t server_process_memory(pid_t pid)
{
	char path[48], line[256];
	uint64_t kib = 0;
	snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f)) {
		unsigned long long n;
		if (sscanf(line, "VmRSS: %llu kB", &n) == 1 || sscanf(line, "HugetlbPages: %llu kB", &n) == 1)
			kib += n;
	}
	return kib * 1024;
}

uint64_t server_memory_bytes(struct server *s)
{
	pid_t pids[SERVER_MAX_ENTRIES * 16];
	uint32_t n = 0;
	pthread_mutex_lock(&s->lock);
	for (uint32_t i = 0; i < SERVER_MAX_ENTRIES; i++) {
		if (s->entry[i] && s->entry[i]->supervisor)
			n += supervisor_pids(s->entry[i]->supervisor, &pids[n], (uint32_t)base_array_size(pids) - n);
	}
	if (s->worker)
		n += cluster_worker_pids(s->worker, &pids[n], (uint32_t)base_array_size(pids) - n);
	pthread_mutex_unlock(&s->lock);
	uint64_t bytes = server_process_memory(getpid());
	for (uint32_t i = 0; i < n; i++)
		bytes += server_process_memory(pids[i]);
	return bytes;
}
