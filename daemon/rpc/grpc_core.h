/* SPDX-License-Identifier: Apache-2.0
 * gRPC-core's headers, whichever version, and what server and client share. Only daemon/rpc includes this.
 *
 * Built against 1.51 (Debian 12) and later: credentials moved from grpc_security.h to credentials.h. gpr_log, which
 * later versions lack, is not used at all.
 */
#pragma once

#include <grpc/grpc.h>
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#if defined(__has_include)
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#endif
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/slice.h>
#include <grpc/status.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RPC_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define RPC_TSAN 1
#endif
#ifdef RPC_TSAN
#include <sanitizer/tsan_interface.h>
#else
#define __tsan_acquire(address) ((void)0)
#define __tsan_release(address) ((void)0)
#endif

#define RPC_MAX_MESSAGE_BYTES (16u << 20)
#define RPC_MAX_PEM_BYTES (1u << 20)
/* Accepted encodings: a bit set with identity alone. gRPC-core inflates before it looks at the size limit, so a small
 * message could become gigabytes. There is no public name for this argument in the C headers of every version. */
#define RPC_ARG_COMPRESSIONS "grpc.compression_enabled_algorithms_bitset"
#define RPC_COMPRESSIONS_IDENTITY 1

/* grpc_init with all signals blocked, so that its threads never take one that the process waits for. */
void rpc_grpc_init(void);
void rpc_grpc_finish(void);

/* The whole of a message. One slice (the usual case) is not copied. The caller unrefs. */
grpc_slice rpc_buffer_slice(grpc_byte_buffer *b);

/* A PEM file as text, at most RPC_MAX_PEM_BYTES; the caller's to free. -errno with the path. */
int rpc_read_pem(const char *path, char **ret_text, struct base_error *e);

static inline grpc_arg rpc_arg_int(const char *key, int value)
{
	return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

/* What is written before a batch starts is seen by whichever thread takes its tag from the queue: gRPC-core orders the
 * two with atomics that ThreadSanitizer does not see, because the library is not built with it. These tell it. Every
 * tag goes through rpc_tag_started, and every wait for one is rpc_queue_next. */
static inline void *rpc_tag_started(void *tag)
{
	__tsan_release(tag);
	return tag;
}

static inline grpc_event rpc_queue_next(grpc_completion_queue *q, gpr_timespec until)
{
	grpc_event event = grpc_completion_queue_next(q, until, NULL);
	if (event.type == GRPC_OP_COMPLETE)
		__tsan_acquire(event.tag);
	return event;
}
