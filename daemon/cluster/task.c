// SPDX-License-Identifier: Apache-2.0
/* One assignment on a node: have its layers packed (task_pack.c), listen; when told to start, connect the group, hand
 * the sockets to a rank, and watch it. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/resolve.h"
#include "daemon/cluster/worker_internal.h"
#include "shard/link/rendezvous.h"
#include "shard/rank/shape.h"

#define CONNECT_NS (20 * BASE_NS_PER_SECOND)
#define OLD_RANK_NS (7 * BASE_NS_PER_SECOND) // for the rank of the plan before to give its memory back
#define NOT_REAPED_MS 50 // a debugger may hold what has ended
#define LOOK_MS 250 // whether a signal has stopped the rank
#define STOPPED_NS BASE_NS_PER_SECOND // a rank that long is as good as dead: the others wait for it

static void set_state(struct cluster_task *t, enum task_state state)
{
	pthread_mutex_lock(&t->worker->lock);
	t->state = state;
	pthread_mutex_unlock(&t->worker->lock);
	cluster_worker_wake(t->worker);
}

static void fail(struct cluster_task *t, int status, const struct base_error *e)
{
	pthread_mutex_lock(&t->worker->lock);
	t->code = status;
	snprintf(t->text, sizeof t->text, "%.250s", base_error_text(e));
	pthread_mutex_unlock(&t->worker->lock);
	set_state(t, TASK_FAILED);
}

static int prepare(struct cluster_task *t, struct base_error *e)
{
	_cleanup_free_ struct cluster_prepared *p = calloc(1, sizeof *p);
	struct pack_result packed = {0};
	char address[CLUSTER_RESOLVED_BYTES];
	uint16_t port = 0;
	if (!p)
		return base_error_set(e, -ENOMEM, "no memory");
	int status = cluster_task_pack(t, p->model_path, &packed, e);
	if (!status)
		status = cluster_resolve(t->worker->address, address, e);
	if (!status)
		status = link_rendezvous_listen(address, 0, 0, &t->listen_fd, &port, e);
	if (status)
		return status;
	if (t->worker->config.probe(t->worker->config.context, packed.directory, &p->bandwidths, NULL) < 0)
		p->bandwidths = (struct topology_bandwidths){0};
	p->assignment = t->assign.assignment;
	p->port = port;
	p->copy = !t->pulls;
	snprintf(p->store_directory, sizeof p->store_directory, "%s", packed.directory);
	p->threads = topology_machine_share(
		t->worker->config.machine, 0, 1, t->worker->config.threads, p->cpus, &p->cpus_count);
	snprintf(p->repaired, sizeof p->repaired, "%.*s", (int)sizeof p->repaired - 1, packed.repaired);
	pthread_mutex_lock(&t->worker->lock);
	t->prepared = *p;
	pthread_mutex_unlock(&t->worker->lock);
	return 0;
}

/* ---- the rank ---- */

/* Of the plan before: it has the memory that this one needs. Lock held. */
static bool old_rank_is_there(const struct cluster_task *t)
{
	const struct cluster_worker *w = t->worker;
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++) {
		const struct cluster_task *o = w->task[i];
		if (o && o != t && !o->finished && o->supervisor && strcmp(o->assign.model, t->assign.model) == 0)
			return true;
	}
	return false;
}

static int wait_for_old_rank(struct cluster_task *t, struct base_error *e)
{
	struct cluster_worker *w = t->worker;
	uint64_t until = base_clock_now_ns() + OLD_RANK_NS;
	struct timespec at = {
		.tv_sec = (time_t)(until / BASE_NS_PER_SECOND), .tv_nsec = (long)(until % BASE_NS_PER_SECOND)};
	int r = 0;
	pthread_mutex_lock(&w->lock);
	while (old_rank_is_there(t) && !atomic_load(&t->release) && r == 0)
		r = pthread_cond_timedwait(&w->changed, &w->lock, &at);
	bool there = old_rank_is_there(t);
	pthread_mutex_unlock(&w->lock);
	return there ? base_error_set(e, -EBUSY, "the rank of the plan before does not end") : 0;
}

static void on_refused(void *context, const struct base_error *e)
{
	struct cluster_task *t = context;
	const struct cluster_events *v = &t->worker->config.events;
	if (v->event)
		v->event(v->context, "warning", "link_refused", t->assign.model, base_error_text(e));
}

/* While a member's name is asked for. */
static int look(void *context, struct base_error *e)
{
	const struct cluster_task *t = context;
	return atomic_load(&t->release) ? base_error_set(e, -ECANCELED, "the assignment is over") : 0;
}

static int connect_group(struct cluster_task *t, const struct cluster_start *s, int *fds, struct base_error *e)
{
	char address[CLUSTER_MAX_MEMBERS][CLUSTER_RESOLVED_BYTES];
	struct link_rendezvous_member list[CLUSTER_MAX_MEMBERS];
	struct link_rendezvous_group g = {.epoch = s->epoch,
		.members = s->members_count,
		.me = rank_member(rank_shape_rank(&s->shape, s->place)),
		.list = list,
		.refused = on_refused,
		.context = t};
	memcpy(g.secret, s->secret, sizeof g.secret);
	for (uint32_t i = 0; i < s->members_count; i++) {
		int status = cluster_resolve_looking(s->members[i].host, look, t, address[i], e);
		if (status)
			return status;
		list[i] = (struct link_rendezvous_member){address[i], s->members[i].port};
	}
	return link_rendezvous_connect(t->listen_fd, &g, t->cancel_fd, base_clock_now_ns() + CONNECT_NS, fds, e);
}

static int start(struct cluster_task *t, struct base_error *e)
{
	struct cluster_worker *w = t->worker;
	_cleanup_free_ struct cluster_start *s = malloc(sizeof *s);
	struct supervisor *supervisor = NULL;
	int fds[LINK_MAX_MEMBERS];
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory");
	pthread_mutex_lock(&w->lock);
	*s = t->start;
	pthread_mutex_unlock(&w->lock);
	int status = wait_for_old_rank(t, e);
	if (!status)
		status = connect_group(t, s, fds, e);
	if (status)
		return status;
	status = supervisor_create(w->config.rank_path, &s->shape, w->config.log, &supervisor);
	if (status)
		base_error_set(e, status, "no memory for a rank");
	else
		status = supervisor_start_linked(supervisor, rank_shape_rank(&s->shape, s->place), fds, "ucx", e);
	for (uint32_t i = 0; i < s->members_count; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	if (status) {
		supervisor_destroy(supervisor);
		return status;
	}
	pthread_mutex_lock(&w->lock);
	t->supervisor = supervisor;
	pthread_mutex_unlock(&w->lock);
	return 0;
}

/* ---- the thread ---- */

/* True: told to start. */
static bool wait_for_start(struct cluster_task *t)
{
	struct cluster_worker *w = t->worker;
	pthread_mutex_lock(&w->lock);
	while (!t->start_wanted && !atomic_load(&t->release))
		pthread_cond_wait(&w->changed, &w->lock);
	bool go = !atomic_load(&t->release);
	if (go) {
		t->state = TASK_STARTING;
		cluster_task_used(t);
	}
	pthread_mutex_unlock(&w->lock);
	return go;
}

/* True: the rank does nothing any more, though it is there. */
static bool stopped_for_long(const struct cluster_task *t, uint32_t rank, uint64_t *since_ns)
{
	uint64_t now = base_clock_now_ns();
	if (!supervisor_stopped(t->supervisor, rank)) {
		*since_ns = 0;
		return false;
	}
	*since_ns = *since_ns ? *since_ns : now;
	return now >= *since_ns + STOPPED_NS;
}

static void say_ended(struct cluster_task *t, const char *how)
{
	pthread_mutex_lock(&t->worker->lock);
	snprintf(t->text, sizeof t->text, "its rank %.200s", how);
	pthread_mutex_unlock(&t->worker->lock);
	set_state(t, TASK_ENDED);
}

static void watch(struct cluster_task *t)
{
	uint64_t stopped_ns = 0;
	uint32_t rank = rank_shape_rank(&t->start.shape, t->start.place);
	struct pollfd p[] = {{.fd = t->cancel_fd, .events = POLLIN},
		{.fd = supervisor_pidfd(t->supervisor, rank), .events = POLLIN}};
	char text[CLUSTER_TEXT_BYTES];
	while (!atomic_load(&t->release)) {
		int n = poll(p, 2, p[1].fd < 0 ? -1 : LOOK_MS);
		if (n == 0 && stopped_for_long(t, rank, &stopped_ns)) {
			p[1].fd = -1;
			base_log_warning(t->worker->config.log,
				"rank %u was stopped by a signal: it is ended event=rank_stopped", rank);
			say_ended(
				t, "was stopped by a signal, and is ended"); // before the others see a link that breaks
			supervisor_stop(t->supervisor, rank);
		}
		if (n <= 0 || !p[1].revents)
			continue;
		if (supervisor_ended(t->supervisor, rank, text, sizeof text)) {
			p[1].fd = -1;
			say_ended(t, text);
		} else {
			poll(p, 1, NOT_REAPED_MS);
		}
	}
	supervisor_stop(t->supervisor, rank);
}

static void *task_thread(void *argument)
{
	struct cluster_task *t = argument;
	struct cluster_worker *w = t->worker;
	struct base_error e = {0};
	pthread_setname_np(pthread_self(), "task");
	int status = t->assign.forget  ? cluster_task_forget(t, &e)
		     : t->assign.spare ? cluster_task_spare(t, &e)
				       : prepare(t, &e);
	if (t->assign.forget) {
		if (status)
			base_log_warning(w->config.log, "spare layers of %s: %s", t->assign.model, base_error_text(&e));
		atomic_store(&t->release, true); // nobody else does
	} else if (!status && t->assign.spare) {
		set_state(t, TASK_STORED);
	} else if (!status) {
		set_state(t, TASK_PREPARED);
		if (wait_for_start(t)) {
			status = start(t, &e);
			if (!status) {
				set_state(t, TASK_RUNNING);
				watch(t);
			}
		}
	}
	if (status && !atomic_load(&t->release))
		fail(t, status, &e);
	if (!t->assign.forget && !t->assign.spare)
		cluster_task_settle(t);
	pthread_mutex_lock(&w->lock);
	while (!atomic_load(&t->release))
		pthread_cond_wait(&w->changed, &w->lock);
	t->finished = true;
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

/* ---- life ---- */

void cluster_task_release(struct cluster_task *t)
{
	pthread_mutex_lock(&t->worker->lock);
	atomic_store(&t->release, true);
	(void)eventfd_write(t->cancel_fd, 1);
	pthread_cond_broadcast(&t->worker->changed);
	pthread_mutex_unlock(&t->worker->lock);
}

void cluster_task_destroy(struct cluster_task *t)
{
	supervisor_destroy(t->supervisor);
	if (t->listen_fd >= 0)
		close(t->listen_fd);
	close(t->cancel_fd);
	free(t);
}

int cluster_task_create(struct cluster_worker *w, const struct cluster_assign *a, struct cluster_task **ret_task)
{
	struct cluster_task *t = calloc(1, sizeof *t);
	if (!t)
		return -ENOMEM;
	t->worker = w;
	t->assign = *a;
	cluster_worker_sources(w, a, t->sources);
	t->listen_fd = -1;
	snprintf(t->phase, sizeof t->phase, "open");
	t->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int status = t->cancel_fd < 0 ? -errno : -pthread_create(&t->thread, NULL, task_thread, t);
	if (status) {
		if (t->cancel_fd >= 0)
			close(t->cancel_fd);
		free(t);
		return status;
	}
	*ret_task = t;
	return 0;
}
