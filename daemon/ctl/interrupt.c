// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "daemon/ctl/ctl.h"

struct ctl_interrupt {
	struct ctl *ctl;
	sigset_t before; // mask of the verb's thread
	pthread_t thread;
	pthread_mutex_t lock; // of stream
	struct rpc_client_stream *stream;
	_Atomic bool interrupted, stopping;
};

static void wanted(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGHUP);
}

void ctl_interrupt_block(void)
{
	sigset_t set;
	wanted(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN); // `| head`: writing fails, and the daemon of --local is still stopped
}

// Ends the process as the signal would have.
static void die_of(struct ctl_interrupt *i, int number)
{
	sigset_t set;
	ctl_local_stop(i->ctl);
	signal(number, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, number);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	raise(number);
}

static void *wait_for_signals(void *context)
{
	struct ctl_interrupt *i = context;
	sigset_t set;
	wanted(&set);
	for (;;) {
		int number = 0;
		if (sigwait(&set, &number) != 0)
			continue;
		if (atomic_load(&i->stopping))
			return NULL;
		bool cancelled = false;
		pthread_mutex_lock(&i->lock);
		if (i->stream && !atomic_load(&i->interrupted)) {
			rpc_client_stream_cancel(i->stream);
			cancelled = true;
		}
		atomic_store(&i->interrupted, true);
		pthread_mutex_unlock(&i->lock);
		if (!cancelled)
			die_of(i, number);
	}
}

int ctl_interrupt_start(struct ctl *c)
{
	struct ctl_interrupt *i = calloc(1, sizeof *i);
	if (!i)
		return -ENOMEM;
	i->ctl = c;
	pthread_mutex_init(&i->lock, NULL);
	c->interrupt = i;
	sigset_t set;
	wanted(&set);
	pthread_sigmask(SIG_BLOCK, &set, &i->before); // all threads to come inherit it
	int r = pthread_create(&i->thread, NULL, wait_for_signals, i);
	if (r != 0) {
		pthread_sigmask(SIG_SETMASK, &i->before, NULL);
		c->interrupt = NULL;
		pthread_mutex_destroy(&i->lock);
		free(i);
	}
	return -r;
}

void ctl_interrupt_stop(struct ctl *c)
{
	struct ctl_interrupt *i = c->interrupt;
	if (!i)
		return;
	atomic_store(&i->stopping, true);
	pthread_kill(i->thread, SIGTERM);
	pthread_join(i->thread, NULL);
	pthread_sigmask(SIG_SETMASK, &i->before, NULL);
	pthread_mutex_destroy(&i->lock);
	free(i);
	c->interrupt = NULL;
}

void ctl_interrupt_watch(struct ctl *c, struct rpc_client_stream *s)
{
	struct ctl_interrupt *i = c->interrupt;
	if (!i)
		return;
	pthread_mutex_lock(&i->lock);
	i->stream = s;
	if (s)
		atomic_store(&i->interrupted, false);
	pthread_mutex_unlock(&i->lock);
}

bool ctl_interrupted(const struct ctl *c)
{
	return c->interrupt && atomic_load(&c->interrupt->interrupted);
}
