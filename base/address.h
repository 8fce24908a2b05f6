/* SPDX-License-Identifier: Apache-2.0
 * HOST:PORT as people write it: 127.0.0.1:50151, localhost:50151, [::1]:50151. The one place that takes it apart. Any
 * thread.
 */
#pragma once

#include <netdb.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

#define BASE_ADDRESS_HOST_BYTES 256u

struct base_address {
	char host[BASE_ADDRESS_HOST_BYTES]; // never empty, an IPv6 address without its brackets
	char port[6]; // decimal, as it was written
	uint16_t number; // of the port; 0: any that is free
	bool six; // an IPv6 address in brackets
};

/* -EINVAL with text that has the address: no host, no port, a port beyond 65535, an IPv6 address without brackets, or
 * brackets around something else. Asks no resolver. */
int base_address_parse(const char *text, struct base_address *ret_address, struct base_error *e);
/* 127.0.0.0/8, ::1, or the name localhost. Asks no resolver either. */
bool base_address_is_loopback(const struct base_address *a);
/* For listening (numeric port, wildcard allowed). freeaddrinfo(*ret_list). -EINVAL with the resolver's words. */
int base_address_resolve(const struct base_address *a, struct addrinfo **ret_list, struct base_error *e);
