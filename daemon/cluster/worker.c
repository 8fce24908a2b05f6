// SPDX-License-Identifier: Apache-2.0
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/pull.h"
#include "daemon/cluster/resolve.h"
#include "daemon/cluster/worker_internal.h"
#include "proto/check.h"
#include "shard/pack/pack.h"

#define JOIN "/thaw.node.v1.Coordinator/Join"
#define SEND_NS (2 * BASE_NS_PER_SECOND)
#define ACCEPT_NS (10 * BASE_NS_PER_SECOND)
#define RETRY_FIRST_NS (100 * 1000000ull)
#define RETRY_MOST_NS (2 * BASE_NS_PER_SECOND)
#define RETRY_SEVERAL_NS                                                                                               \
	(250 * 1000000ull) // the most between rounds over several coordinators: one takes over within seconds
#define MEMORY_NS BASE_NS_PER_SECOND
#define TOLD_FAILURES 4u
#define TOLD_EVERY 101u // not a multiple of the ways that people have
#define WAKES_NS (250 * 1000000ull) // the longest wait without a look around
#define PROGRESS_SHARE 100u // of the bytes: told when that much more is done

static void emit(struct cluster_worker *w, const char *severity, const char *kind, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static void emit(struct cluster_worker *w, const char *severity, const char *kind, const char *fmt, ...)
{
	char text[384];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (w->config.events.event)
		w->config.events.event(w->config.events.context, severity, kind, "", text);
}

void cluster_worker_wake(struct cluster_worker *w)
{
	pthread_mutex_lock(&w->lock);
	if (w->stream)
		rpc_client_stream_wake(w->stream);
	pthread_mutex_unlock(&w->lock);
}

/* ---- tasks; the worker's thread ---- */

void cluster_worker_sources(
	const struct cluster_worker *w, const struct cluster_assign *a, char out[static CLUSTER_SOURCES_BYTES])
{
	const char *list = w->config.join;
	size_t at = (size_t)snprintf(out, CLUSTER_SOURCES_BYTES, "%s", w->join);
	for (uint32_t i = 0; i < a->sources_count && at < CLUSTER_SOURCES_BYTES; i++) {
		const struct cluster_pull_source *s = &a->sources[i];
		at += (size_t)snprintf(out + at, CLUSTER_SOURCES_BYTES - at,
			strchr(s->host, ':') ? ",[%s]:%u=%s" : ",%s:%u=%s", s->host, s->port, s->node);
	}
	while (*list && at < CLUSTER_SOURCES_BYTES) {
		size_t n = strcspn(list, ",");
		if (n != strlen(w->join) || strncmp(list, w->join, n) != 0)
			at += (size_t)snprintf(out + at, CLUSTER_SOURCES_BYTES - at, ",%.*s", (int)n, list);
		list += n + (list[n] == ',');
	}
}

static struct cluster_task *find_task(struct cluster_worker *w, uint64_t assignment)
{
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++) {
		if (w->task[i] && w->task[i]->assign.assignment == assignment && !atomic_load(&w->task[i]->release))
			return w->task[i];
	}
	return NULL;
}

static void collect(struct cluster_worker *w, bool all)
{
	for (uint32_t i = 0; all && i < CLUSTER_MAX_TASKS; i++) { // all at once: ranks take seconds to stop
		if (w->task[i])
			cluster_task_release(w->task[i]);
	}
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++) {
		struct cluster_task *t = w->task[i];
		if (!t)
			continue;
		pthread_mutex_lock(&w->lock);
		bool over = all || t->finished;
		pthread_mutex_unlock(&w->lock);
		if (!over)
			continue;
		pthread_join(t->thread, NULL);
		pthread_mutex_lock(&w->lock);
		w->task[i] = NULL; // from here on its pids are not asked for
		pthread_mutex_unlock(&w->lock);
		cluster_task_destroy(t);
	}
}

/* ---- messages out ---- */

static int send_node(struct rpc_client_stream *s, Thaw__Node__V1__NodeMessage *m)
{
	size_t bytes;
	_cleanup_free_ uint8_t *data = cluster_pack_node(m, &bytes);
	return data ? rpc_client_stream_send(s, data, bytes, SEND_NS) : -ENOMEM;
}

static int send_failed(struct rpc_client_stream *s, uint64_t assignment, int code, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Failed f = THAW__NODE__V1__FAILED__INIT;
	f.assignment = assignment;
	f.code = code;
	f.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_FAILED;
	m.failed = &f;
	return send_node(s, &m);
}

static int send_ended(struct rpc_client_stream *s, const struct cluster_task *t, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__RankEnded r = THAW__NODE__V1__RANK_ENDED__INIT;
	r.assignment = t->assign.assignment;
	r.epoch = t->start.epoch;
	r.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_RANK_ENDED;
	m.rank_ended = &r;
	return send_node(s, &m);
}

static int send_stored(struct rpc_client_stream *s, const struct cluster_task *t, const char *text)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Stored x = THAW__NODE__V1__STORED__INIT;
	x.assignment = t->assign.assignment;
	x.layers = t->stored_layers; // its thread does no more
	x.written_bytes = t->stored_bytes;
	x.text = (char *)text;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_STORED;
	m.stored = &x;
	return send_node(s, &m);
}

static int send_progress(
	struct rpc_client_stream *s, const struct cluster_task *t, const char *phase, uint64_t done, uint64_t total)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Progress p = THAW__NODE__V1__PROGRESS__INIT;
	p.assignment = t->assign.assignment;
	p.phase = (char *)phase;
	p.done_bytes = done;
	p.total_bytes = total;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROGRESS;
	m.progress = &p;
	return send_node(s, &m);
}

/* What is new of one task. */
static int tell_task(struct cluster_worker *w, struct rpc_client_stream *s, struct cluster_task *t)
{
	_cleanup_free_ struct cluster_prepared *p = malloc(sizeof *p);
	char text[CLUSTER_TEXT_BYTES], phase[sizeof t->phase];
	if (!p)
		return -ENOMEM;
	pthread_mutex_lock(&w->lock);
	enum task_state state = t->state;
	bool fresh = state != t->told;
	uint64_t done = t->done_bytes, total = t->total_bytes;
	bool moved = state == TASK_PREPARING && (done < t->told_bytes || done - t->told_bytes > total / PROGRESS_SHARE);
	t->told = state;
	t->told_bytes = moved ? done : t->told_bytes;
	*p = t->prepared;
	memcpy(text, t->text, sizeof text);
	memcpy(phase, t->phase, sizeof phase);
	int code = t->code;
	pthread_mutex_unlock(&w->lock);
	if (moved)
		return send_progress(s, t, phase, done, total);
	if (!fresh)
		return 0;
	size_t bytes;
	_cleanup_free_ uint8_t *data = NULL;
	switch (state) {
	case TASK_PREPARED:
		data = cluster_pack_prepared(p, &bytes);
		return data ? rpc_client_stream_send(s, data, bytes, SEND_NS) : -ENOMEM;
	case TASK_STORED:
		return send_stored(s, t, text);
	case TASK_ENDED:
		return send_ended(s, t, text);
	case TASK_FAILED:
		cluster_task_release(t); // whoever assigned it counts it as forgotten
		return send_failed(s, t->assign.assignment, code, text);
	default:
		return 0;
	}
}

static int send_probe_done(struct rpc_client_stream *s, const struct cluster_probe_done *done)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__ProbeDone d = THAW__NODE__V1__PROBE_DONE__INIT;
	d.probe = done->probe;
	d.latency_ns = done->latency_ns;
	d.bytes_per_second = done->bytes_per_s;
	d.error = (char *)done->error;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE;
	m.probe_done = &d;
	return send_node(s, &m);
}

static int tell_probing(struct cluster_worker *w, struct rpc_client_stream *s)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__ProbeReady r = THAW__NODE__V1__PROBE_READY__INIT;
	struct cluster_probing *p = w->probing;
	if (!p)
		return 0;
	pthread_mutex_lock(&w->lock);
	bool finished = p->finished, ready = p->port && !p->told_port;
	p->told_port = p->port != 0;
	r.probe = p->probe.probe;
	r.port = p->port;
	pthread_mutex_unlock(&w->lock);
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_READY;
	m.probe_ready = &r;
	int status = ready && !finished ? send_node(s, &m) : 0;
	if (!finished || status)
		return status;
	status = send_probe_done(s, &p->done);
	w->probing = NULL;
	cluster_probing_destroy(p);
	return status;
}

static int tell_tasks(struct cluster_worker *w, struct rpc_client_stream *s)
{
	int status = 0;
	collect(w, false);
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS && !status; i++) {
		if (w->task[i] && !atomic_load(&w->task[i]->release))
			status = tell_task(w, s, w->task[i]);
	}
	return status;
}

static int beat(struct cluster_worker *w, struct rpc_client_stream *s, uint64_t now)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Heartbeat h = THAW__NODE__V1__HEARTBEAT__INIT;
	if (now < w->next_beat_ns)
		return 0;
	w->next_beat_ns = now + w->heartbeat_ns;
	if (now >= w->next_memory_ns) {
		pid_t pids[CLUSTER_MAX_TASKS];
		w->memory_bytes =
			w->config.memory(w->config.context, pids, cluster_worker_pids(w, pids, CLUSTER_MAX_TASKS));
		w->next_memory_ns = now + MEMORY_NS;
	}
	h.epoch = w->epoch;
	h.sequence = ++w->beats;
	h.memory_available_bytes = w->memory_bytes;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_HEARTBEAT;
	m.heartbeat = &h;
	return send_node(s, &m);
}

/* ---- messages in ---- */

static int add_task(struct cluster_worker *w, const struct cluster_assign *a, struct base_error *e)
{
	struct cluster_task *t;
	uint32_t place = 0;
	while (place < CLUSTER_MAX_TASKS && w->task[place])
		place++;
	if (place == CLUSTER_MAX_TASKS)
		return base_error_set(e, -ENOSPC, "too many assignments");
	pthread_mutex_lock(&w->lock); // others see it before it packs
	int status = cluster_task_create(w, a, &t);
	if (!status)
		w->task[place] = t;
	pthread_mutex_unlock(&w->lock);
	return status ? base_error_set(e, status, "%s", strerrordesc_np(-status)) : 0;
}

static int on_assign(struct cluster_worker *w, struct rpc_client_stream *s, const Thaw__Node__V1__Assign *m)
{
	_cleanup_free_ struct cluster_assign *a = malloc(sizeof *a);
	struct base_error e = {0};
	if (!a)
		return -ENOMEM;
	int status = cluster_read_assign(m, a, &e);
	if (status)
		return send_failed(s, m->assignment, status, base_error_text(&e));
	if (a->epoch < w->epoch)
		return 0; // of a plan that is over
	status = add_task(w, a, &e);
	if (status)
		return send_failed(s, a->assignment, status, base_error_text(&e));
	base_log_info(w->config.log, "%s layers %u to %u of %s", a->spare ? "to keep" : "assigned",
		a->slice.first_layer, a->slice.first_layer + a->slice.layers - 1, a->model);
	return 0;
}

static int on_start(struct cluster_worker *w, struct rpc_client_stream *s, const Thaw__Node__V1__Start *m)
{
	_cleanup_free_ struct cluster_start *x = malloc(sizeof *x);
	struct base_error e = {0};
	if (!x)
		return -ENOMEM;
	int status = cluster_read_start(m, x, &e);
	if (status)
		return send_failed(s, m->assignment, status, base_error_text(&e));
	struct cluster_task *t = find_task(w, x->assignment);
	if (!t)
		return 0; // released meanwhile
	if (x->epoch < t->assign.epoch) { // other models' starts may overtake this one: their epochs say nothing here
		base_error_set(&e, -ESTALE, "told to start in epoch %llu what was assigned in epoch %llu",
			(unsigned long long)x->epoch, (unsigned long long)t->assign.epoch);
		return send_failed(s, x->assignment, -ESTALE, base_error_text(&e));
	}
	w->epoch = x->epoch > w->epoch ? x->epoch : w->epoch;
	pthread_mutex_lock(&w->lock);
	w->status.epoch = w->epoch;
	if (t->state == TASK_PREPARED && !t->start_wanted) {
		t->start = *x;
		t->start_wanted = true;
		pthread_cond_broadcast(&w->changed);
	}
	pthread_mutex_unlock(&w->lock);
	return 0;
}

/* What cannot be done stays: spare layers are deleted, too, when their room is needed. */
static int on_forget(struct cluster_worker *w, const Thaw__Node__V1__Forget *m)
{
	_cleanup_free_ struct cluster_assign *a = malloc(sizeof *a);
	struct base_error e = {0};
	if (!a)
		return -ENOMEM;
	int status = cluster_read_forget(m, a, &e);
	if (!status)
		status = add_task(w, a, &e);
	if (status)
		base_log_warning(w->config.log, "spare layers of %.100s stay: %s", m->model, base_error_text(&e));
	return 0;
}

/* A new one: the coordinator has given the last one up. */
static int on_probe(struct cluster_worker *w, struct rpc_client_stream *s, const Thaw__Node__V1__Probe *m)
{
	struct cluster_probe_done done = {.probe = m->probe};
	struct cluster_probe p;
	struct base_error e = {0};
	cluster_probing_destroy(w->probing);
	w->probing = NULL;
	int status = cluster_read_probe(m, &p, &e);
	if (!status && (status = cluster_probing_create(w, &p, &w->probing)) < 0)
		base_error_set(&e, status, "%s", strerrordesc_np(-status));
	snprintf(done.error, sizeof done.error, "%.250s", e.message);
	return status ? send_probe_done(s, &done) : 0;
}

static int on_message(
	struct cluster_worker *w, struct rpc_client_stream *s, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct cluster_task *t;
	switch (m->what_case) {
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ACCEPTED: {
		const Thaw__Node__V1__Accepted *a = m->accepted;
		if (a->heartbeat_ns >= 10000000 && a->heartbeat_ns <= 60 * BASE_NS_PER_SECOND)
			w->heartbeat_ns = a->heartbeat_ns;
		if (a->lost_ns >= w->heartbeat_ns && a->lost_ns <= 3600 * BASE_NS_PER_SECOND)
			w->lost_ns = a->lost_ns;
		w->epoch = a->epoch;
		pthread_mutex_lock(&w->lock);
		w->status.joined = true;
		w->status.epoch = a->epoch;
		snprintf(w->status.coordinator, sizeof w->status.coordinator, "%.63s", a->coordinator);
		pthread_mutex_unlock(&w->lock);
		emit(w, "notice", "joined", "cluster %s, coordinator %.63s, epoch %llu", w->config.cluster,
			a->coordinator, (unsigned long long)a->epoch);
		return 0;
	}
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN:
		return on_assign(w, s, m->assign);
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START:
		return on_start(w, s, m->start);
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_RELEASE:
		t = find_task(w, m->release->assignment);
		if (t)
			cluster_task_release(t);
		return 0;
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE:
		return on_probe(w, s, m->probe);
	case THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET:
		return on_forget(w, m->forget);
	default:
		return 0; // heartbeats, and what a later version may say
	}
}

static int take_message(struct cluster_worker *w, struct rpc_client_stream *s, const uint8_t *data, size_t bytes)
{
	struct proto_budget budget;
	struct base_error e = {0};
	ProtobufCMessage *m;
	if (proto_unpack(&thaw__node__v1__coordinator_message__descriptor, data, bytes, &budget, &m, NULL, &e) < 0) {
		emit(w, "error", "coordinator_message", "the coordinator sent what is no message: %s",
			base_error_text(&e));
		return -EBADMSG;
	}
	int status = on_message(w, s, (const Thaw__Node__V1__CoordinatorMessage *)m);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
	return status;
}

/* ---- one connection ---- */

/* The layer files of one model, STORE/DIGEST. */
static void count_files(int store_fd, const char *name, struct cluster_stored *s)
{
	int fd = openat(store_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	if (!d && fd >= 0)
		close(fd);
	for (struct dirent *n; d && (n = readdir(d));) {
		struct stat st;
		uint32_t layer, part, parts;
		if (pack_file_parse(n->d_name, &layer, &part, &parts) < 0 ||
			fstatat(dirfd(d), n->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
			continue;
		s->files++;
		s->bytes += (uint64_t)st.st_size;
	}
	if (d)
		closedir(d);
}

static struct cluster_stored *find_stored(struct cluster_facts *f, const uint8_t digest[static CLUSTER_DIGEST_BYTES])
{
	uint32_t i = 0;
	while (i < f->store_count && memcmp(f->store[i].digest, digest, CLUSTER_DIGEST_BYTES) != 0)
		i++;
	if (i == CLUSTER_MAX_STORED)
		return NULL;
	if (i == f->store_count) {
		f->store[f->store_count++] = (struct cluster_stored){0};
		memcpy(f->store[i].digest, digest, CLUSTER_DIGEST_BYTES);
	}
	return &f->store[i];
}

/* Which models' own files were here: others may pull from them, if they still are. */
static void take_copies(const char *store_path, struct cluster_facts *f)
{
	uint8_t digests[CLUSTER_MAX_STORED][CLUSTER_DIGEST_BYTES];
	uint32_t n = pack_list_copies(store_path, digests, CLUSTER_MAX_STORED);
	for (uint32_t i = 0; i < n; i++) {
		struct cluster_stored *s = find_stored(f, digests[i]);
		if (s)
			s->copy = true;
	}
}

/* What is in the store: plans may prefer where layers are already. */
static void take_inventory(const char *store_path, struct cluster_facts *f)
{
	struct statvfs v;
	DIR *d = opendir(store_path);
	for (struct dirent *n; d && f->store_count < CLUSTER_MAX_STORED && (n = readdir(d));) {
		struct cluster_stored *s = &f->store[f->store_count];
		if (strlen(n->d_name) != 2 * CLUSTER_DIGEST_BYTES ||
			strspn(n->d_name, "0123456789abcdef") != 2 * CLUSTER_DIGEST_BYTES)
			continue;
		*s = (struct cluster_stored){0};
		for (uint32_t i = 0; i < CLUSTER_DIGEST_BYTES; i++) {
			unsigned byte = 0;
			(void)sscanf(n->d_name + 2 * i, "%2x", &byte);
			s->digest[i] = (uint8_t)byte;
		}
		count_files(dirfd(d), n->d_name, s);
		f->store_count++;
	}
	if (d)
		closedir(d);
	if (statvfs(store_path, &v) == 0)
		f->store_free_bytes = (uint64_t)v.f_bavail * v.f_frsize;
}

static void fill_facts(struct cluster_worker *w, struct cluster_facts *f)
{
	const struct topology_machine *m = w->config.machine;
	*f = (struct cluster_facts){
		.incarnation = w->incarnation,
		.wall_ns = base_clock_wall_ns(),
		.packages = m->packages,
		.cores = m->cores,
		.cpus = m->cpus,
		.drives = m->drives_count,
		.gpus = m->gpus_count,
		.nics = m->nics_count,
		.memory_bytes = m->memory_bytes,
		.memory_limit_bytes = m->memory_limit_bytes,
		.memory_available_bytes = w->config.memory(w->config.context, NULL, 0),
		.bandwidths = w->bandwidths,
		.budgets = w->config.budgets,
	};
	take_inventory(w->config.store_path, f);
	take_copies(w->config.store_path, f);
	f->pull_port = w->config.pull_port;
	snprintf(f->version, sizeof f->version, "%s", w->config.version);
	snprintf(f->cluster, sizeof f->cluster, "%s", w->config.cluster);
	snprintf(f->node, sizeof f->node, "%s", w->config.node);
	snprintf(f->rack, sizeof f->rack, "%s", w->config.rack ? w->config.rack : "");
	snprintf(f->address, sizeof f->address, "%s", w->address);
	snprintf(f->host, sizeof f->host, "%s", m->host);
	snprintf(f->cpu_model, sizeof f->cpu_model, "%s", m->cpu_model);
}

static int send_register(struct cluster_worker *w, struct rpc_client_stream *s)
{
	_cleanup_free_ struct cluster_facts *f = malloc(sizeof *f);
	_cleanup_free_ struct cluster_register_message *m = malloc(sizeof *m);
	if (!f || !m)
		return -ENOMEM;
	fill_facts(w, f);
	cluster_fill_register(f, m);
	cluster_fill_machine(w->config.machine, m);
	return send_node(s, &m->message);
}

/* A name that nobody knows stays one: whoever connects asks for it again. No answer at all changes nothing. */
static void take_address(struct cluster_worker *w)
{
	char number[CLUSTER_RESOLVED_BYTES];
	struct base_error why = {0};
	int status = cluster_resolve(w->config.address, number, &why);
	if (status != -ETIMEDOUT || !w->address[0])
		snprintf(w->address, sizeof w->address, "%s", status ? w->config.address : number);
	if (status && !w->told_address)
		emit(w, "warning", "address_unknown", "%s", base_error_text(&why));
	w->told_address = status != 0;
}

/* Where other nodes reach this one, as names and routes are now. */
static int find_address(struct cluster_worker *w, bool local, struct base_error *e)
{
	struct base_address a;
	char own[CLUSTER_RESOLVED_BYTES];
	if (w->config.address[0])
		take_address(w);
	else
		w->address[0] = '\0';
	if (w->config.address[0] || local)
		return 0;
	int status = base_address_parse(w->join, &a, e);
	if (!status)
		status = cluster_resolve_own(a.host, own, e);
	if (!status)
		snprintf(w->address, sizeof w->address, "%s", own);
	return status;
}

static void set_why(struct cluster_worker *w, const char *why)
{
	bool several = strchr(w->config.join, ',') != NULL;
	pthread_mutex_lock(&w->lock);
	bool fresh = strcmp(w->status.why, why) != 0;
	snprintf(w->status.why, sizeof w->status.why, "%.250s", why);
	w->status.joined = false;
	pthread_mutex_unlock(&w->lock);
	/* Of several each says another thing, again and again: the first round is told, and then one line in a
	 * while. */
	if (fresh && why[0] && (!several || w->failures < TOLD_FAILURES || w->failures % TOLD_EVERY == 0))
		emit(w, "warning", "not_joined", "coordinator %s: %s", w->join, why);
}

static int send_leave(struct rpc_client_stream *s, bool when_free)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Leave l = THAW__NODE__V1__LEAVE__INIT;
	l.when_free = when_free;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_LEAVE;
	m.leave = &l;
	return send_node(s, &m);
}

/* What there is to say while it is joined. */
static int tell_all(struct cluster_worker *w, struct rpc_client_stream *s, uint64_t now, bool *told_leave)
{
	int status = tell_tasks(w, s);
	if (!status)
		status = tell_probing(w, s);
	if (!status)
		status = beat(w, s, now);
	if (!status && atomic_load(&w->drain) && !*told_leave) {
		*told_leave = true;
		status = send_leave(s, true);
	}
	return status;
}

static const char *say_end(const struct rpc_client_status *end)
{
	return end->message[0] ? end->message : "it ended the connection";
}

/* Until the connection ends, or w->stop, or w->drain before it has joined. True: it had joined. */
static bool converse(struct cluster_worker *w, struct rpc_client_stream *s)
{
	struct rpc_client_status end = {0};
	struct base_error e = {0};
	const uint8_t *data;
	size_t bytes;
	uint64_t heard = base_clock_now_ns();
	bool joined = false, told_leave = false;
	int status = send_register(w, s);
	while (!status && !atomic_load(&w->stop) && (joined || !atomic_load(&w->drain))) {
		uint64_t now = base_clock_now_ns(), wait = WAKES_NS;
		if (joined) {
			status = tell_all(w, s, now, &told_leave);
			wait = w->next_beat_ns > now ? w->next_beat_ns - now : 1;
			wait = wait < WAKES_NS ? wait : WAKES_NS;
		}
		if (status)
			break;
		int r = rpc_client_stream_wait(s, wait, &data, &bytes, &end);
		now = base_clock_now_ns();
		if (r == 1) {
			heard = now;
			if (!joined && (status = cluster_check_coordinator(w->config.cluster, w->join, s, &e)) < 0)
				break;
			status = take_message(w, s, data, bytes);
			pthread_mutex_lock(&w->lock);
			joined = w->status.joined;
			pthread_mutex_unlock(&w->lock);
		} else if (r != -ETIMEDOUT && r != -EAGAIN) {
			set_why(w, told_leave ? "" : say_end(&end));
			return joined;
		} else if (now > heard + (joined ? w->lost_ns : ACCEPT_NS)) {
			set_why(w, joined ? "it is silent" : "it does not answer");
			return joined;
		}
	}
	if (status == -EHOSTUNREACH && !told_leave) { // it ended before that was sent, and says why
		while (rpc_client_stream_wait(s, SEND_NS, &data, &bytes, &end) == 1)
			;
		set_why(w, say_end(&end));
	} else if (status) {
		set_why(w, told_leave ? "" : e.message[0] ? e.message : strerrordesc_np(-status));
	}
	if (atomic_load(&w->stop) && joined && send_leave(s, false) == 0) {
		while (rpc_client_stream_wait(s, SEND_NS / 4, &data, &bytes, &end) == 1)
			; // it ends the stream when it has read that
	}
	return joined;
}

/* True: it had joined. */
static bool connect_once(struct cluster_worker *w)
{
	struct rpc_client *client;
	struct rpc_client_stream *stream;
	struct base_error e = {0};
	bool local = strncmp(w->join, "unix:", 5) == 0;
	int status = find_address(w, local, &e);
	if (!status)
		status = rpc_client_create(w->join, local ? NULL : &w->config.tls, &client, &e);
	if (status) {
		set_why(w, base_error_text(&e));
		return false;
	}
	bool joined = false;
	if (rpc_client_stream_open_both(client, JOIN, &stream) == 0) {
		pthread_mutex_lock(&w->lock);
		w->stream = stream;
		pthread_mutex_unlock(&w->lock);
		joined = converse(w, stream);
		pthread_mutex_lock(&w->lock);
		w->stream = NULL;
		w->status.joined = false;
		pthread_mutex_unlock(&w->lock);
		rpc_client_stream_close(stream);
	}
	rpc_client_destroy(client);
	return joined;
}

/* The next way in. True: it is the first of the list. */
static bool choose_way(struct cluster_worker *w)
{
	const char *list = w->config.join;
	bool first = !list[w->join_at];
	if (first)
		w->join_at = 0;
	first = first || !w->join_at;
	size_t n = strcspn(list + w->join_at, ",");
	snprintf(w->join, sizeof w->join, "%.*s", (int)n, list + w->join_at);
	w->join_at += n;
	w->join_at += list[w->join_at] == ',';
	return first;
}

static bool ends(const struct cluster_worker *w)
{
	return atomic_load(&w->stop) || atomic_load(&w->drain);
}

static void *worker_thread(void *argument)
{
	struct cluster_worker *w = argument;
	uint64_t retry = 0, most = strchr(w->config.join, ',') ? RETRY_SEVERAL_NS : RETRY_MOST_NS;
	pthread_setname_np(pthread_self(), "worker");
	w->config.probe(w->config.context, "", &w->bandwidths, NULL);
	while (!ends(w)) {
		uint64_t until = base_clock_now_ns() + (choose_way(w) ? retry : 0);
		while (!ends(w) && base_clock_now_ns() < until)
			nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
		if (ends(w))
			break;
		bool joined = connect_once(w);
		cluster_probing_destroy(w->probing);
		w->probing = NULL;
		collect(w, true);
		w->failures = joined ? 0 : w->failures + 1;
		retry = joined ? RETRY_FIRST_NS : retry * 2 < most ? retry * 2 : most;
		retry = retry > RETRY_FIRST_NS ? retry : RETRY_FIRST_NS;
	}
	pthread_mutex_lock(&w->lock);
	w->status.left = true;
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

/* ---- outside ---- */

void cluster_worker_get_status(struct cluster_worker *w, struct cluster_worker_status *ret_status)
{
	pthread_mutex_lock(&w->lock);
	*ret_status = w->status;
	ret_status->pulled_bytes = atomic_load(&w->pulled_bytes);
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++)
		ret_status->ranks += w->task[i] && w->task[i]->state == TASK_RUNNING;
	pthread_mutex_unlock(&w->lock);
}

uint32_t cluster_worker_pids(struct cluster_worker *w, pid_t *ret_pids, uint32_t room)
{
	uint32_t n = 0;
	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++) {
		if (w->task[i] && w->task[i]->supervisor)
			n += supervisor_pids(w->task[i]->supervisor, ret_pids + n, room - n);
	}
	pthread_mutex_unlock(&w->lock);
	return n;
}

int cluster_worker_start(
	const struct cluster_worker_config *config, struct cluster_worker **ret_worker, struct base_error *e)
{
	pthread_condattr_t attributes;
	struct cluster_worker *w = calloc(1, sizeof *w);
	if (!w || getrandom(&w->incarnation, sizeof w->incarnation, 0) != (ssize_t)sizeof w->incarnation) {
		free(w);
		return base_error_set(e, -ENOMEM, "no memory for a worker");
	}
	w->config = *config;
	w->heartbeat_ns = CLUSTER_HEARTBEAT_NS;
	w->lost_ns = CLUSTER_LOST_NS;
	pthread_mutex_init(&w->lock, NULL);
	pthread_mutex_init(&w->header_lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&w->changed, &attributes);
	pthread_condattr_destroy(&attributes);
	int status = -pthread_create(&w->thread, NULL, worker_thread, w);
	if (status) {
		free(w);
		return base_error_set(e, status, "no thread for the worker: %s", strerrordesc_np(-status));
	}
	*ret_worker = w;
	return 0;
}

void cluster_worker_drain(struct cluster_worker *w)
{
	atomic_store(&w->drain, true);
	cluster_worker_wake(w);
}

void cluster_worker_stop(struct cluster_worker *w)
{
	if (!w)
		return;
	atomic_store(&w->stop, true);
	cluster_worker_wake(w);
	pthread_join(w->thread, NULL);
	pthread_cond_destroy(&w->changed);
	pthread_mutex_destroy(&w->header_lock);
	pthread_mutex_destroy(&w->lock);
	free(w);
}
