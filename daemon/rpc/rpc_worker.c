// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "daemon/rpc/rpc_core.h"

struct job {
	struct rpc_call *call;
	void (*work)(struct rpc_call *c);
};

struct rpc_worker {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct job jobs[RPC_WORKER_QUEUE];
	uint32_t first, count;
	bool stop;
};

static void *worker_run(void *context)
{
	struct rpc_worker *w = context;
	pthread_setname_np(pthread_self(), "rpc-worker");
	pthread_mutex_lock(&w->lock);
	for (;;) {
		while (w->count == 0 && !w->stop)
			pthread_cond_wait(&w->wake, &w->lock);
		if (w->count == 0)
			break;
		struct job job = w->jobs[w->first];
		w->first = (w->first + 1) % RPC_WORKER_QUEUE;
		w->count--;
		pthread_mutex_unlock(&w->lock);
		job.work(job.call);
		rpc_call_hand_back(job.call, &job.call->worker_back);
		pthread_mutex_lock(&w->lock);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

int rpc_worker_create(struct rpc_worker **ret_worker)
{
	struct rpc_worker *w = calloc(1, sizeof(*w));
	if (!w)
		return -ENOMEM;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	int r = pthread_create(&w->thread, NULL, worker_run, w);
	if (r) {
		free(w);
		return -r;
	}
	*ret_worker = w;
	return 0;
}

void rpc_worker_destroy(struct rpc_worker *w)
{
	if (!w)
		return;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
	pthread_join(w->thread, NULL);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->lock);
	free(w);
}

int rpc_worker_submit(struct rpc_worker *w, struct rpc_call *c, void (*work)(struct rpc_call *c))
{
	pthread_mutex_lock(&w->lock);
	int r = w->count == RPC_WORKER_QUEUE ? -EAGAIN : 0;
	if (r == 0) {
		w->jobs[(w->first + w->count++) % RPC_WORKER_QUEUE] = (struct job){c, work};
		pthread_cond_signal(&w->wake);
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}
