// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/rpc_status.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"

#define STATUS_DETAIL_BYTES 1024u
#define STATUS_DEFAULT_RETRY_NS BASE_NS_PER_SECOND

int rpc_fault_set(
	struct rpc_fault *f, grpc_status_code status, const char *reason, const char *field, const char *fmt, ...)
{
	*f = (struct rpc_fault){.status = status, .reason = reason};
	if (field)
		snprintf(f->field, sizeof(f->field), "%s", field);
	va_list args;
	va_start(args, fmt);
	vsnprintf(f->message, sizeof(f->message), fmt, args);
	va_end(args);
	return -1;
}

static const struct {
	int error;
	grpc_status_code status;
	const char *reason;
	bool retry;
	bool bad_request;
} faults[] = {
	{-EAGAIN, GRPC_STATUS_RESOURCE_EXHAUSTED, "QUEUE_FULL", true, false},
	{-EHOSTDOWN, GRPC_STATUS_UNAVAILABLE, "NOT_READY", true, false},
	{-ENOTRECOVERABLE, GRPC_STATUS_FAILED_PRECONDITION, "MODEL_FAILED", false, false},
	{-ENOENT, GRPC_STATUS_NOT_FOUND, "NOT_FOUND", false, false},
	{-E2BIG, GRPC_STATUS_INVALID_ARGUMENT, "TOO_LONG", false, true},
	{-EINVAL, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", false, true},
	{-EILSEQ, GRPC_STATUS_INVALID_ARGUMENT, "NOT_UTF8", false, true},
	{-EBADMSG, GRPC_STATUS_DATA_LOSS, "DATA_LOSS", false, false},
	{-EIO, GRPC_STATUS_DATA_LOSS, "DATA_LOSS", false, false},
	{-ENOMEM, GRPC_STATUS_FAILED_PRECONDITION, "DOES_NOT_FIT", false, false},
	{-ENOSPC, GRPC_STATUS_FAILED_PRECONDITION, "DISK_FULL", false, false},
	{-EBUSY, GRPC_STATUS_FAILED_PRECONDITION, "BUSY", false, false},
	{-EEXIST, GRPC_STATUS_ALREADY_EXISTS, "ALREADY_EXISTS", false, false},
	{-ETIME, GRPC_STATUS_DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", false, false},
	{-ETIMEDOUT, GRPC_STATUS_DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", false, false},
	{-ECANCELED, GRPC_STATUS_ABORTED, "ABORTED", false, false},
	{-EACCES, GRPC_STATUS_FAILED_PRECONDITION, "NOT_PERMITTED", false, false},
	{-EPERM, GRPC_STATUS_FAILED_PRECONDITION, "NOT_PERMITTED", false, false},
	{-ENOTSUP, GRPC_STATUS_UNIMPLEMENTED, "NOT_SUPPORTED", false, false},
};

const char *rpc_fault_reason(int r)
{
	for (size_t i = 0; i < base_array_size(faults); i++) {
		if (faults[i].error == r)
			return faults[i].reason;
	}
	return "INTERNAL";
}

int rpc_fault_from(struct rpc_fault *f, int r, const struct base_error *e, uint64_t retry_after_ns, const char *field)
{
	struct base_error number = {.code = r};
	const char *text = base_error_text(e && e->message[0] ? e : &number);
	for (size_t i = 0; i < base_array_size(faults); i++) {
		if (faults[i].error != r)
			continue;
		rpc_fault_set(f, faults[i].status, faults[i].reason, faults[i].bad_request ? field : NULL, "%s", text);
		if (faults[i].retry)
			f->retry_after_ns = retry_after_ns ? retry_after_ns : STATUS_DEFAULT_RETRY_NS;
		return -1;
	}
	return rpc_fault_set(f, GRPC_STATUS_INTERNAL, "INTERNAL", NULL, "%s", text);
}

struct detail { // memory of one Any
	Google__Protobuf__Any any;
	uint8_t bytes[STATUS_DETAIL_BYTES];
};

static bool detail_set(struct detail *d, const char *url, const ProtobufCMessage *m)
{
	size_t bytes = protobuf_c_message_get_packed_size(m);
	if (bytes > sizeof(d->bytes))
		return false;
	google__protobuf__any__init(&d->any);
	d->any.type_url = (char *)url;
	d->any.value = (ProtobufCBinaryData){protobuf_c_message_pack(m, d->bytes), d->bytes};
	return true;
}

grpc_slice rpc_fault_pack(const struct rpc_fault *f)
{
	struct detail details[3];
	Google__Protobuf__Any *list[3];
	size_t count = 0;

	Google__Rpc__ErrorInfo info = GOOGLE__RPC__ERROR_INFO__INIT;
	info.reason = (char *)f->reason;
	info.domain = (char *)"thaw";
	if (detail_set(&details[count], "type.googleapis.com/google.rpc.ErrorInfo", &info.base))
		count++;

	Google__Protobuf__Duration delay = GOOGLE__PROTOBUF__DURATION__INIT;
	delay.seconds = (int64_t)(f->retry_after_ns / BASE_NS_PER_SECOND);
	delay.nanos = (int32_t)(f->retry_after_ns % BASE_NS_PER_SECOND);
	Google__Rpc__RetryInfo retry = GOOGLE__RPC__RETRY_INFO__INIT;
	retry.retry_delay = &delay;
	if (f->retry_after_ns && detail_set(&details[count], "type.googleapis.com/google.rpc.RetryInfo", &retry.base))
		count++;

	Google__Rpc__BadRequest__FieldViolation violation = GOOGLE__RPC__BAD_REQUEST__FIELD_VIOLATION__INIT;
	violation.field = (char *)f->field;
	violation.description = (char *)f->message;
	Google__Rpc__BadRequest__FieldViolation *violations[] = {&violation};
	Google__Rpc__BadRequest bad = GOOGLE__RPC__BAD_REQUEST__INIT;
	bad.n_field_violations = 1;
	bad.field_violations = violations;
	if (f->field[0] && detail_set(&details[count], "type.googleapis.com/google.rpc.BadRequest", &bad.base))
		count++;

	for (size_t i = 0; i < count; i++)
		list[i] = &details[i].any;
	Google__Rpc__Status status = GOOGLE__RPC__STATUS__INIT;
	status.code = (int32_t)f->status;
	status.message = (char *)f->message;
	status.n_details = count;
	status.details = list;
	grpc_slice out = grpc_slice_malloc(google__rpc__status__get_packed_size(&status));
	google__rpc__status__pack(&status, GRPC_SLICE_START_PTR(out));
	return out;
}
