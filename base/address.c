// SPDX-License-Identifier: Apache-2.0
#include "base/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int parse_port(const char *text, const char *port, struct base_address *a, struct base_error *e)
{
	size_t digits = strspn(port, "0123456789");
	unsigned long number = digits && digits < sizeof a->port ? strtoul(port, NULL, 10) : UINT32_MAX;
	if (port[digits] || number > UINT16_MAX)
		return base_error_set(e, -EINVAL, "\"%.200s\": \"%.64s\" is not a port", text, port);
	snprintf(a->port, sizeof a->port, "%s", port);
	a->number = (uint16_t)number;
	return 0;
}

int base_address_parse(const char *text, struct base_address *ret_address, struct base_error *e)
{
	struct base_address a = {.six = text[0] == '['};
	const char *colon = strrchr(text, ':'), *close = a.six ? strchr(text, ']') : NULL;
	struct in6_addr six;
	if (!colon || colon == text || (a.six && (!close || close + 1 != colon)))
		return base_error_set(e, -EINVAL, "\"%.200s\" is not HOST:PORT, nor [IPV6]:PORT", text);
	size_t bytes = (size_t)(colon - text) - (a.six ? 2 : 0);
	if (bytes >= sizeof a.host)
		return base_error_set(e, -EINVAL, "\"%.64s...\": a host of %zu bytes, at most %zu fit", text, bytes,
			sizeof a.host - 1);
	memcpy(a.host, text + a.six, bytes);
	if (a.six && inet_pton(AF_INET6, a.host, &six) != 1)
		return base_error_set(e, -EINVAL, "\"%.200s\": \"%.200s\" is not an IPv6 address", text, a.host);
	if (!a.six && strchr(a.host, ':'))
		return base_error_set(e, -EINVAL, "\"%.200s\": write an IPv6 address in brackets: [%.200s]:%.64s", text,
			a.host, colon + 1);
	int r = parse_port(text, colon + 1, &a, e);
	if (r < 0)
		return r;
	*ret_address = a;
	return 0;
}

bool base_address_is_loopback(const struct base_address *a)
{
	struct in6_addr six;
	struct in_addr four;
	if (a->six)
		return inet_pton(AF_INET6, a->host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
	if (inet_pton(AF_INET, a->host, &four) == 1)
		return ntohl(four.s_addr) >> 24 == 127;
	return strcmp(a->host, "localhost") == 0;
}

int base_address_resolve(const struct base_address *a, struct addrinfo **ret_list, struct base_error *e)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	int r = getaddrinfo(a->host, a->port, &hints, ret_list);
	return r ? base_error_set(e, -EINVAL, "%s: %s", a->host, gai_strerror(r)) : 0;
}
