// SPDX-License-Identifier: Apache-2.0
/* UCX listens at a TCP port, and some bytes that a stranger sends there end the process (1.13 asserts what it reads). So
 * the port is chosen here, to be found again, and gets a socket filter: until all members are connected it lets their hosts' packets
 * through, from then on none, since nobody has to connect any more. Accepted connections keep the filter that they came through.
 */
#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "shard/link/ucx_internal.h"

#define MAX_INSTRUCTIONS (8u + 9u * LINK_MAX_MEMBERS)
#define NET(at) ((uint32_t)(SKF_NET_OFF + (at))) // in the IP header

static bool can_bind(uint16_t port, uint16_t *ret_port)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
	socklen_t n = sizeof at;
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, n) < 0 || getsockname(fd, (struct sockaddr *)&at, &n) < 0)
		return false;
	*ret_port = ntohs(at.sin_port);
	return true;
}

int link_ucx_guard_pick_port(uint16_t *ret_port)
{
	unsigned first = 0, last = 0;
	const char *range = getenv("UCX_TCP_PORT_RANGE");
	if (!range || strcmp(range, "0") == 0)
		return can_bind(0, ret_port) ? 0 : -EADDRINUSE;
	int n = sscanf(range, "%u-%u", &first, &last);
	if (n < 1 || first == 0 || first > 65535)
		return -EINVAL;
	for (unsigned port = first; port <= (n == 2 ? last : first) && port <= 65535; port++) {
		if (can_bind((uint16_t)port, ret_port))
			return 0;
	}
	return -EADDRINUSE;
}

/* The IP address of the other end, IPv4 in the last 4 bytes; the family that its packets have, 0 for unix sockets. */
static int peer_address(int fd, uint8_t out[16])
{
	union {
		struct sockaddr_storage any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = {0};
	socklen_t n = sizeof a;
	if (fd < 0 || getpeername(fd, (struct sockaddr *)&a.any, &n) < 0)
		return 0;
	memset(out, 0, 16);
	if (a.any.ss_family == AF_INET) {
		memcpy(out + 12, &a.in.sin_addr, 4);
		return AF_INET;
	}
	if (a.any.ss_family != AF_INET6)
		return 0;
	memcpy(out, &a.in6.sin6_addr, 16);
	return IN6_IS_ADDR_V4MAPPED(&a.in6.sin6_addr) ? AF_INET : AF_INET6;
}

static uint32_t word(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Lets through what comes from the hosts of the peers. Peers that are connected by unix sockets are on this host. */
static unsigned short write_filter(const int *fds, uint32_t members, struct sock_filter *out)
{
	unsigned short n = 0;
	for (uint32_t i = 0; i < members; i++) {
		uint8_t a[16];
		int family = peer_address(fds[i], a);
		if (fds[i] < 0)
			continue;
		if (family == AF_INET6) {
			for (uint32_t k = 0; k < 4; k++) { // a word that differs: to the next peer
				out[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NET(8 + 4 * k));
				out[n] = (struct sock_filter)BPF_JUMP(
					BPF_JMP | BPF_JEQ | BPF_K, word(a + 4 * k), 0, (uint8_t)(7 - 2 * k));
				n++;
			}
		} else {
			out[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NET(12));
			out[n] = (struct sock_filter)BPF_JUMP(
				BPF_JMP | BPF_JEQ | BPF_K, family == AF_INET ? word(a + 12) : INADDR_LOOPBACK, 0, 1);
			n++;
		}
		out[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
	}
	out[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
	return n;
}

static bool listens_at(int fd, uint16_t port)
{
	union {
		struct sockaddr_storage any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = {0};
	socklen_t n = sizeof a, m = sizeof(int);
	int listens = 0;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &m) < 0 || !listens ||
		getsockname(fd, (struct sockaddr *)&a.any, &n) < 0)
		return false;
	return (a.any.ss_family == AF_INET && a.in.sin_port == htons(port)) ||
	       (a.any.ss_family == AF_INET6 && a.in6.sin6_port == htons(port));
}

int link_ucx_guard(uint16_t port, const int *fds, uint32_t members)
{
	struct sock_filter filter[MAX_INSTRUCTIONS];
	struct sock_fprog program = {.filter = filter};
	if (fds) {
		program.len = write_filter(fds, members, filter);
	} else {
		filter[0] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
		program.len = 1;
	}
	DIR *d = opendir("/proc/self/fd");
	if (!d)
		return -errno;
	int r = 0;
	for (struct dirent *entry; r == 0 && (entry = readdir(d));) {
		char *end;
		int fd = (int)strtol(entry->d_name, &end, 10);
		if (*end == 0 && listens_at(fd, port) &&
			setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0)
			r = -errno;
	}
	closedir(d);
	return r;
}
