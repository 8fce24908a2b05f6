/* SPDX-License-Identifier: Apache-2.0
 * Scoped temporaries: `_cleanup_free_ char *p = ...;` is freed when the scope ends.
 * Use base_steal() to hand the value on. Any thread.
 */
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void base_cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void base_cleanup_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void base_cleanup_fclose(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_(f) __attribute__((cleanup(f)))
#define _cleanup_free_ _cleanup_(base_cleanup_free)
#define _cleanup_close_ _cleanup_(base_cleanup_close)
#define _cleanup_fclose_ _cleanup_(base_cleanup_fclose)

#define base_steal(p)                                                                                                  \
	({                                                                                                             \
		__typeof__(p) base_stolen_ = (p);                                                                      \
		(p) = NULL;                                                                                            \
		base_stolen_;                                                                                          \
	})

#define base_steal_fd(fd)                                                                                              \
	({                                                                                                             \
		int base_stolen_ = (fd);                                                                               \
		(fd) = -1;                                                                                             \
		base_stolen_;                                                                                          \
	})

#define base_array_size(a) (sizeof(a) / sizeof((a)[0]))
#define base_container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))
