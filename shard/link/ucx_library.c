// SPDX-License-Identifier: Apache-2.0
/* UCX is loaded when the first link between hosts is made, and not before: loading it takes signals over and patches
 * mmap, madvise and others in the C library, to follow memory that it registers. Here it registers none. Only the
 * environment keeps it from that, so that is set before.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <ucs/debug/debug.h>

#include "base/cleanup.h"
#include "shard/link/ucx_internal.h"

#define LIBRARY "libucp.so.0"

/* The library is the process's, and so is this: two threads that load it at once would both take its signals away,
 * which it complains of the second time. */
static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;

/* With `loading` held. */
static void *load(struct base_error *e)
{
	static const int signals[] = {SIGHUP, SIGILL, SIGBUS, SIGFPE, SIGSEGV};
	void *h = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
	if (h)
		return h;
	/* One variable, and none is taken away: readers of the environment in other threads see the old or the new
	 * one. */
	setenv("UCX_MEM_EVENTS", "n", 0);
	h = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); // it cannot be unloaded
	if (!h) {
		base_error_set(e, -ENOENT,
			"link: hosts are linked by UCX, and there is none here: %s (Debian's package is libucx0)",
			dlerror());
		return NULL;
	}
	__typeof__(ucs_debug_disable_signal) *disable = dlsym(h, "ucs_debug_disable_signal");
	for (size_t i = 0; disable && i < base_array_size(signals); i++)
		disable(signals[i]);
	return h;
}

int link_ucx_library_load(struct link_ucx_library *ret_library, struct base_error *e)
{
	pthread_mutex_lock(&loading);
	void *h = load(e);
	pthread_mutex_unlock(&loading);
	if (!h)
		return -ENOENT;
	const struct {
		const char *name;
		void *place;
	} functions[] = {
#define FUNCTION(prefix, name) {#prefix #name, &ret_library->name},
		LINK_UCX_FUNCTIONS(FUNCTION)
#undef FUNCTION
	};
	for (size_t i = 0; i < base_array_size(functions); i++) {
		void *f = dlsym(h, functions[i].name);
		if (!f)
			return base_error_set(e, -ENOENT, "link: %s has no %s: UCX 1.13 or later is needed", LIBRARY,
				functions[i].name);
		*(void **)functions[i].place = f;
	}
	return 0;
}
