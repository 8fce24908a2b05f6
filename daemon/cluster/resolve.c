// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"

static int print(const struct sockaddr *a, char out[static CLUSTER_RESOLVED_BYTES])
{
	const void *bytes = a->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)a)->sin_addr
						    : &((const struct sockaddr_in6 *)a)->sin6_addr;
	return inet_ntop(a->sa_family, bytes, out, CLUSTER_RESOLVED_BYTES) ? 0 : -errno;
}

/* getaddrinfo waits as long as resolv.conf says, and cannot be stopped: a thread asks, which is left behind when it
 * takes too long. */
struct question {
	pthread_mutex_t lock;
	pthread_cond_t changed; // CLOCK_MONOTONIC
	bool done, left; // who comes second frees
	int result;
	struct addrinfo *list;
	char host[256];
};

static void question_free(struct question *q)
{
	pthread_cond_destroy(&q->changed);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

static void *asker(void *question)
{
	struct question *q = question;
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	struct addrinfo *list = NULL;
	int result = getaddrinfo(q->host, "9", &hints, &list);
	pthread_mutex_lock(&q->lock);
	bool left = q->left;
	q->done = true;
	q->result = result;
	q->list = list;
	pthread_cond_signal(&q->changed);
	pthread_mutex_unlock(&q->lock);
	if (!left)
		return NULL;
	if (result == 0)
		freeaddrinfo(list);
	question_free(q);
	return NULL;
}

static struct question *question_create(const char *host)
{
	pthread_condattr_t monotonic;
	struct question *q = calloc(1, sizeof *q);
	if (!q)
		return NULL;
	snprintf(q->host, sizeof q->host, "%s", host);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return q;
}

static int start(struct question *q)
{
	pthread_attr_t detached;
	pthread_t thread;
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	int r = pthread_create(&thread, &detached, asker, q);
	pthread_attr_destroy(&detached);
	return -r;
}

struct looker { // what the thread that waits has to do meanwhile; look NULL: nothing
	int (*look)(void *context, struct base_error *e);
	void *context;
};

/* Lock held, and dropped for look(). 0: the answer is there, whatever look() says by then. */
static int wait_for_answer(struct question *q, const struct looker *l, struct base_error *e)
{
	uint64_t until = base_clock_now_ns() + CLUSTER_RESOLVE_NS, now;
	int status = 0;
	while (!q->done && !status && (now = base_clock_now_ns()) < until) {
		uint64_t next =
			l->look && now + CLUSTER_RESOLVE_LOOK_NS < until ? now + CLUSTER_RESOLVE_LOOK_NS : until;
		const struct timespec at = {
			.tv_sec = (time_t)(next / BASE_NS_PER_SECOND), .tv_nsec = (long)(next % BASE_NS_PER_SECOND)};
		pthread_cond_timedwait(&q->changed, &q->lock, &at);
		if (q->done || !l->look)
			continue;
		pthread_mutex_unlock(&q->lock);
		status = l->look(l->context, e);
		pthread_mutex_lock(&q->lock);
	}
	if (q->done || status)
		return q->done ? 0 : status;
	return base_error_set(e, -ETIMEDOUT,
		"host %.200s: no answer from the resolver; write a numeric address, or mend DNS", q->host);
}

static int ask(const char *host, const struct looker *l, struct addrinfo **ret_list, struct base_error *e)
{
	struct question *q = question_create(host);
	int status = q ? start(q) : -ENOMEM;
	if (status) {
		if (q)
			question_free(q);
		return base_error_set(e, status, "host %.200s: no thread to ask for it", host);
	}
	pthread_mutex_lock(&q->lock);
	status = wait_for_answer(q, l, e);
	q->left = status != 0;
	pthread_mutex_unlock(&q->lock);
	if (status)
		return status;
	int r = q->result;
	*ret_list = r ? NULL : q->list;
	question_free(q);
	return r ? base_error_set(e, -EINVAL, "host %.200s: %s", host, gai_strerror(r)) : 0;
}

static int look_up(const char *host, const struct looker *l, struct addrinfo **ret_list, struct base_error *e)
{
	const struct addrinfo numeric = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST};
	return getaddrinfo(host, "9", &numeric, ret_list) == 0 ? 0 : ask(host, l, ret_list, e);
}

int cluster_resolve_looking(const char *host, int (*look)(void *context, struct base_error *e), void *context,
	char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	const struct looker l = {look, context};
	struct addrinfo *list = NULL;
	int status = look_up(host, &l, &list, e);
	if (status)
		return status;
	status = print(list->ai_addr, out);
	freeaddrinfo(list);
	return status ? base_error_set(e, status, "host %.200s: no address", host) : 0;
}

int cluster_resolve(const char *host, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	return cluster_resolve_looking(host, NULL, NULL, out, e);
}

/* A datagram socket that is connected sends nothing, but has chosen its source. */
int cluster_resolve_own(const char *towards, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	struct addrinfo *list = NULL;
	struct sockaddr_storage own;
	socklen_t n = sizeof own;
	int status = look_up(towards, &(const struct looker){0}, &list, e);
	if (status)
		return status;
	_cleanup_close_ int fd = socket(list->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, list->ai_addr, list->ai_addrlen) < 0 ||
		getsockname(fd, (struct sockaddr *)&own, &n) < 0)
		status = base_error_set(e, -errno, "no way to host %.200s: %s", towards, strerrordesc_np(errno));
	else
		status = print((struct sockaddr *)&own, out);
	freeaddrinfo(list);
	return status;
}

bool cluster_resolve_is_here(const char *number)
{
	const struct addrinfo numeric = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST};
	struct addrinfo *list = NULL;
	if (getaddrinfo(number, "0", &numeric, &list) != 0)
		return false;
	_cleanup_close_ int fd = socket(list->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool gone = fd >= 0 && bind(fd, list->ai_addr, list->ai_addrlen) < 0 && errno == EADDRNOTAVAIL;
	freeaddrinfo(list);
	return !gone;
}
