/* SPDX-License-Identifier: Apache-2.0
 * How a call fails: a gRPC status with google.rpc details. The one place where -errno becomes a status.
 *
 * Every fault carries an ErrorInfo {reason, domain "thaw"}; a RetryInfo where waiting helps; a BadRequest where a field
 * is wrong. Any thread.
 */
#pragma once

#include <stdint.h>

#include "base/error.h"
#include "daemon/rpc/grpc_core.h"

#define RPC_FIELD_BYTES 64u

struct rpc_fault {
	grpc_status_code status; // OK: no fault
	const char *reason; // UPPER_SNAKE_CASE literal
	char field[RPC_FIELD_BYTES]; // path in the request, "" if none
	uint64_t retry_after_ns; // 0: none
	char message[BASE_ERROR_BYTES];
};

/* Returns -1, so that `return rpc_fault_set(...)` reads well. field may be NULL. */
int rpc_fault_set(struct rpc_fault *f, grpc_status_code status, const char *reason, const char *field, const char *fmt,
	...) __attribute__((format(printf, 5, 6)));

/* From a function of the daemon that returned r < 0 with e. -EINVAL and the like name `field` (may be NULL). Returns
 * -1. */
int rpc_fault_from(struct rpc_fault *f, int r, const struct base_error *e, uint64_t retry_after_ns, const char *field);

/* The ErrorInfo reason of that -errno. */
const char *rpc_fault_reason(int r);

/* google.rpc.Status, packed, for grpc-status-details-bin. An empty slice when there is no memory. */
grpc_slice rpc_fault_pack(const struct rpc_fault *f);
