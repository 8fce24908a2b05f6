// SPDX-License-Identifier: Apache-2.0
#include "tests/lib/port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FIRST 12000u // up to FIRST + COUNT: below net.ipv4.ip_local_port_range
#define COUNT 18000u

/* The claim is an abstract socket: it goes with the process, however that ends. */
static bool claim(uint32_t port)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int n = snprintf(a.sun_path + 1, sizeof a.sun_path - 1, "thaw-test-port-%u", port);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		abort();
	if (bind(fd, (struct sockaddr *)&a, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1) + (socklen_t)n) ==
		0)
		return true;
	close(fd);
	return false;
}

static bool is_free(uint32_t port)
{
	struct sockaddr_in a = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool good = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
	if (fd >= 0)
		close(fd);
	return good;
}

uint16_t port_claim(void)
{
	uint32_t start = (uint32_t)getpid() * 37u;
	for (uint32_t i = 0; i < COUNT; i++) {
		uint32_t port = FIRST + (start + i) % COUNT;
		if (claim(port) && is_free(port))
			return (uint16_t)port;
	}
	abort();
}
