// SPDX-License-Identifier: Apache-2.0
// Decoding with bounds, the ring between threads, and faults: what needs no socket.
#include "tests/lib/testing.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/utf8.h"
#include "daemon/rpc/rpc_ring.h"
#include "daemon/rpc/rpc_status.h"
#include "proto/check.h"
#include "proto/google/rpc/error_details.pb-c.h"
#include "proto/google/rpc/status.pb-c.h"
#include "proto/grpc/health/v1/health.pb-c.h"
#include "proto/grpc/reflection/v1/reflection.pb-c.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"
#include "proto/thaw/v1/inference.pb-c.h"

static void utf8_is_checked_to_the_byte(void **state)
{
	static const struct {
		const char *text;
		size_t good;
	} cases[] = {
		{"plain ascii that is longer than eight", 37},
		{"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 9},
		{"12345678\xff", 8},
		{"\xc0\x80", 0}, // overlong
		{"\xe0\x9f\xbf", 0}, // overlong
		{"a\xed\xa0\x80", 1}, // surrogate
		{"\xf4\x90\x80\x80", 0}, // beyond U+10FFFF
		{"ab\xe2\x82", 2}, // cut
		{"\x80", 0},
	};
	for (size_t i = 0; i < base_array_size(cases); i++)
		assert_int_equal(base_utf8_prefix(cases[i].text, strlen(cases[i].text)), cases[i].good);
}

/* protobuf-c decodes with the stack and has no limit: a type that contains itself would let a client choose the
 * depth. */
static unsigned depth_of(const ProtobufCMessageDescriptor *d, const ProtobufCMessageDescriptor **above, unsigned n)
{
	unsigned deepest = 0;
	for (unsigned i = 0; i < n; i++)
		assert_ptr_not_equal(above[i], d);
	above[n] = d;
	assert_true(n < 15);
	for (unsigned i = 0; i < d->n_fields; i++) {
		if (d->fields[i].type != PROTOBUF_C_TYPE_MESSAGE)
			continue;
		unsigned below = depth_of(d->fields[i].descriptor, above, n + 1);
		deepest = below > deepest ? below : deepest;
	}
	return deepest + 1;
}

static void no_message_contains_itself(void **state)
{
	const ProtobufCServiceDescriptor *services[] = {&thaw__v1__inference__descriptor,
		&thaw__admin__v1__admin__descriptor, &grpc__health__v1__health__descriptor,
		&grpc__reflection__v1__server_reflection__descriptor};
	for (size_t s = 0; s < base_array_size(services); s++) {
		for (unsigned m = 0; m < services[s]->n_methods; m++) {
			const ProtobufCMessageDescriptor *above[16];
			assert_in_range(depth_of(services[s]->methods[m].input, above, 0), 1, 6);
			assert_in_range(depth_of(services[s]->methods[m].output, above, 0), 1, 6);
		}
	}
}

static void decoding_keeps_to_its_budget(void **state)
{
	struct proto_budget budget;
	ProtobufCMessage *m;
	struct base_error e = {0};
	const size_t bytes = 1u << 20;
	_cleanup_free_ uint8_t *p = malloc(bytes);
	for (size_t i = 0; i < bytes; i += 3) // unknown fields: three bytes each there, a struct and a copy here
		memcpy(p + i, "\xf8\x7f\x01", i + 3 <= bytes ? 3 : bytes - i);
	assert_int_equal(
		proto_unpack(&thaw__v1__generate_request__descriptor, p, bytes - bytes % 3, &budget, &m, NULL, &e),
		-E2BIG);
	assert_non_null(strstr(e.message, "too many"));
	/* What is honest fits: packed token ids grow by four. */
	memcpy(p, "\x1a\xf8\xff\x3f\x12\xf4\xff\x3f\x0a\xf0\xff\x3f", 12);
	memset(p + 12, 1, bytes - 12);
	assert_int_equal(
		proto_unpack(&thaw__v1__generate_request__descriptor, p, 4 + 0xffff8, &budget, &m, NULL, &e), 0);
	assert_int_equal(((Thaw__V1__GenerateRequest *)m)->prompt->token_ids->n_ids, 0xffff0);
	size_t before = budget.left_bytes;
	protobuf_c_message_free_unpacked(m, &budget.allocator);
	assert_true(budget.left_bytes > before);
	assert_int_equal(
		budget.left_bytes, PROTO_BUDGET_BASE_BYTES + PROTO_BUDGET_FACTOR * (4 + 0xffff8)); // all came back
	assert_int_equal(proto_unpack(&thaw__v1__generate_request__descriptor, p, PROTO_MAX_MESSAGE_BYTES + 1, &budget,
				 &m, NULL, &e),
		-E2BIG);
}

static void faults_carry_their_details(void **state)
{
	struct rpc_fault f;
	struct base_error e = {0};
	base_error_set(&e, -EAGAIN, "the queue is full");
	assert_int_equal(rpc_fault_from(&f, -EAGAIN, &e, 1500000000, NULL), -1);
	grpc_slice s = rpc_fault_pack(&f);
	Google__Rpc__Status *m = google__rpc__status__unpack(NULL, GRPC_SLICE_LENGTH(s), GRPC_SLICE_START_PTR(s));
	assert_int_equal(m->code, GRPC_STATUS_RESOURCE_EXHAUSTED);
	assert_int_equal(m->n_details, 2);
	assert_string_equal(m->details[0]->type_url, "type.googleapis.com/google.rpc.ErrorInfo");
	Google__Rpc__ErrorInfo *info =
		google__rpc__error_info__unpack(NULL, m->details[0]->value.len, m->details[0]->value.data);
	assert_string_equal(info->domain, "thaw");
	Google__Rpc__RetryInfo *retry =
		google__rpc__retry_info__unpack(NULL, m->details[1]->value.len, m->details[1]->value.data);
	assert_int_equal(retry->retry_delay->seconds, 1);
	assert_int_equal(retry->retry_delay->nanos, 500000000);
	google__rpc__retry_info__free_unpacked(retry, NULL);
	google__rpc__error_info__free_unpacked(info, NULL);
	google__rpc__status__free_unpacked(m, NULL);
	grpc_slice_unref(s);
	/* The longest there is still fits a header. */
	char longest[BASE_ERROR_BYTES];
	memset(longest, '%', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = 0;
	rpc_fault_set(&f, GRPC_STATUS_INVALID_ARGUMENT, "INVALID", longest, "%s", longest);
	s = rpc_fault_pack(&f);
	assert_in_range(GRPC_SLICE_LENGTH(s), 1024, 2048);
	grpc_slice_unref(s);
	rpc_fault_from(&f, -EXDEV, NULL, 0, NULL);
	assert_int_equal(f.status, GRPC_STATUS_INTERNAL);
}

#define RECORDS 200000u

static void *write_records(void *context)
{
	struct rpc_ring *r = context;
	for (uint32_t i = 0; i < RECORDS;) {
		uint32_t bytes = 4 + i * 7 % 300;
		uint8_t *p = rpc_ring_reserve(r, bytes);
		if (!p) {
			sched_yield();
			continue;
		}
		memcpy(p, &i, 4);
		memset(p + 4, (int)(i & 0xff), bytes - 4);
		rpc_ring_commit(r, bytes);
		i++;
	}
	return NULL;
}

static void the_ring_keeps_order_and_bytes_between_threads(void **state)
{
	struct rpc_ring r;
	pthread_t writer;
	assert_int_equal(rpc_ring_init(&r, 4096), 0);
	assert_null(rpc_ring_reserve(&r, 4000)); // never fits
	assert_int_equal(pthread_create(&writer, NULL, write_records, &r), 0);
	for (uint32_t i = 0; i < RECORDS;) {
		uint32_t bytes, number;
		const uint8_t *p = rpc_ring_peek(&r, &bytes);
		if (!p) {
			sched_yield();
			continue;
		}
		memcpy(&number, p, 4);
		if (number != i || bytes != 4 + i * 7 % 300 || (bytes > 4 && p[bytes - 1] != (i & 0xff)))
			fail_msg("record %u came as %u with %u bytes", i, number, bytes);
		rpc_ring_release(&r);
		i++;
	}
	pthread_join(writer, NULL);
	assert_int_equal(rpc_ring_used(&r), 0);
	rpc_ring_finish(&r);
}

static void a_full_ring_says_so(void **state)
{
	struct rpc_ring r;
	uint32_t n = 0, bytes;
	assert_int_equal(rpc_ring_init(&r, 1), 0);
	for (void *p; (p = rpc_ring_reserve(&r, 100)); n++)
		rpc_ring_commit(&r, 100);
	assert_int_equal(n, 4096 / 112);
	assert_non_null(rpc_ring_peek(&r, &bytes));
	assert_false(rpc_ring_is_last(&r));
	rpc_ring_release(&r);
	assert_non_null(rpc_ring_reserve(&r, 100));
	rpc_ring_finish(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(utf8_is_checked_to_the_byte),
		cmocka_unit_test(no_message_contains_itself),
		cmocka_unit_test(decoding_keeps_to_its_budget),
		cmocka_unit_test(faults_carry_their_details),
		cmocka_unit_test(the_ring_keeps_order_and_bytes_between_threads),
		cmocka_unit_test(a_full_ring_says_so),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
