/* SPDX-License-Identifier: Apache-2.0
 * A server that is a table of answers: it stands where daemon/rpc/client.c would. Tests set the answers and look at
 * the requests.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include <protobuf-c/protobuf-c.h>

#define FAKE_MAX_MESSAGES 8u
#define FAKE_MAX_REQUESTS 16u

struct fake_answer {
	const char *method; // whole path
	const void *messages[FAKE_MAX_MESSAGES]; // protobuf, packed when asked for
	size_t count;
	int code; // gRPC status after them
	const char *message, *reason;
	int r; // errno of the call
};

struct fake_request {
	char method[96];
	unsigned char bytes[8192];
	size_t count;
};

struct fake {
	struct fake_answer answers[8];
	size_t answers_count;
	struct fake_request requests[FAKE_MAX_REQUESTS];
	size_t requests_count;
	char address[128];
};

extern struct fake fake;
