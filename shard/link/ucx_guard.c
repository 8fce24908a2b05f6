// SPDX-License-Identifier: Apache-2.0
/* UCX listens at a TCP port, and some bytes that a stranger sends there end the process (1.13 asserts what it reads).
 * So the port is chosen here, to be found again, and gets a socket filter: until all members are connected it lets
 * their hosts' packets through, from then on none, since nobody has to connect any more. Accepted connections keep the
 * filter that they came through.
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

#define MAX_INSTRUCTIONS (1u + 3u * LINK_MAX_MEMBERS)
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

/* The IPv4 address that a peer's packets come from, in host order. Peers that are connected by unix sockets are on this
 * host. */
static bool peer_address(int fd, uint32_t *ret_address)
{
	union {
		struct sockaddr_storage any;
		struct sockaddr_in in;
		struct sockaddr_in6 in6;
	} a = {0};
	socklen_t n = sizeof a;
	if (getpeername(fd, (struct sockaddr *)&a.any, &n) < 0)
		return false;
	if (a.any.ss_family == AF_UNIX)
		*ret_address = INADDR_LOOPBACK;
	else if (a.any.ss_family == AF_INET)
		*ret_address = ntohl(a.in.sin_addr.s_addr);
	else if (a.any.ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a.in6.sin6_addr))
		*ret_address = ntohl(a.in6.sin6_addr.s6_addr32[3]);
	else
		return false;
	return true;
}

/* Lets through what comes from the hosts of the peers. Where one is reached by IPv6, everything until all are
 * connected: UCX may well take IPv4 between the same hosts, whose addresses nobody knows here. */
static unsigned short write_filter(const int *fds, uint32_t members, struct sock_filter *out)
{
	unsigned short n = 0;
	for (uint32_t i = 0; i < members; i++) {
		uint32_t address;
		if (fds[i] < 0)
			continue;
		if (!peer_address(fds[i], &address)) {
			out[0] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
			return 1;
		}
		out[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, NET(12)); // the source
		out[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, address, 0, 1);
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
