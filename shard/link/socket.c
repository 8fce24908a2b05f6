// SPDX-License-Identifier: Apache-2.0
#include "shard/link/socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"

int link_socket_timeout_ms(uint64_t deadline_ns)
{
	if (deadline_ns == LINK_NO_DEADLINE)
		return -1;
	uint64_t now = base_clock_now_ns();
	if (now >= deadline_ns)
		return 0;
	uint64_t ms = (deadline_ns - now + 999999) / 1000000;
	return ms > 60000 ? 60000 : (int)ms;
}

int link_socket_patience_ms(const struct link_patience *patience)
{
	int ms = link_socket_timeout_ms(patience->deadline_ns), look = (int)(LINK_LOOK_NS / 1000000);
	return patience->look && (ms < 0 || ms > look) ? look : ms;
}

int link_socket_look(const struct link_patience *patience, struct base_error *e)
{
	return patience->look ? patience->look(patience->context, e) : 0;
}

int link_socket_wait(int fd, short events, uint32_t peer, const struct link_patience *patience, struct base_error *e)
{
	for (;;) {
		struct pollfd p = {.fd = fd, .events = events};
		int n = poll(&p, 1, link_socket_patience_ms(patience));
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return base_error_set(e, -errno, "link: poll for member %u: %s", peer, strerrordesc_np(errno));
		if (n == 0 && base_clock_now_ns() >= patience->deadline_ns)
			return base_error_set(
				e, -ETIMEDOUT, "link: member %u did not say hello before the deadline", peer);
		int r = link_socket_look(patience, e);
		if (r)
			return r;
	}
}

int link_socket_write(
	int fd, uint32_t peer, const void *data, size_t n, const struct link_patience *patience, struct base_error *e)
{
	for (size_t done = 0; done < n;) {
		ssize_t k = send(fd, (const uint8_t *)data + done, n - done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k >= 0) {
			done += (size_t)k;
		} else if (errno == EAGAIN) {
			int r = link_socket_wait(fd, POLLOUT, peer, patience, e);
			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			int code = errno == EPIPE ? -ECONNRESET : -errno;
			return base_error_set(e, code, "link: hello to member %u: %s", peer, strerrordesc_np(-code));
		}
	}
	return 0;
}

int link_socket_read(
	int fd, uint32_t peer, void *out, size_t n, const struct link_patience *patience, struct base_error *e)
{
	for (size_t done = 0; done < n;) {
		ssize_t k = recv(fd, (uint8_t *)out + done, n - done, MSG_DONTWAIT);
		if (k > 0) {
			done += (size_t)k;
		} else if (k == 0 || errno == ECONNRESET) {
			return base_error_set(e, -ECONNRESET, "link: member %u closed before its hello", peer);
		} else if (errno == EAGAIN) {
			int r = link_socket_wait(fd, POLLIN, peer, patience, e);
			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			return base_error_set(e, -errno, "link: hello of member %u: %s", peer, strerrordesc_np(errno));
		}
	}
	return 0;
}

int link_socket_tune(int fd)
{
	int domain, protocol;
	socklen_t n = sizeof domain, m = sizeof protocol;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) < 0 ||
		getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &m) < 0)
		return -errno;
	if ((domain != AF_INET && domain != AF_INET6) || protocol != IPPROTO_TCP)
		return 0;
	// Probes after 1 s of silence and each second; the user timeout ends it at the first of them past 1.8 s, and
	// unacknowledged data at 1.8 s.
	static const struct {
		int level, name, value;
	} options[] = {
		{IPPROTO_TCP, TCP_NODELAY, 1},
		{SOL_SOCKET, SO_KEEPALIVE, 1},
		{IPPROTO_TCP, TCP_KEEPIDLE, 1},
		{IPPROTO_TCP, TCP_KEEPINTVL, 1},
		{IPPROTO_TCP, TCP_KEEPCNT, 2},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, 1800},
	};
	for (size_t i = 0; i < sizeof options / sizeof options[0]; i++) {
		if (setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof(int)) < 0)
			return -errno;
	}
	return 0;
}
