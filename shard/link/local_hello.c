// SPDX-License-Identifier: Apache-2.0
#include "shard/link/local_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "shard/link/socket.h"

#define HELLO_MAGIC 0x6b6e696cu // "link"
#define HELLO_VERSION 1u
#define HELLO_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)

/* The lower member of a pair sends it with the memfd; the higher one sends it back as its agreement. Members go through
 * their peers in ascending order, so whoever takes over epoch and ring from member 0 knows them before it leads a
 * pair. */
static int send_hello(int fd, uint32_t peer, const struct link_core_hello *h, int memfd,
	const struct link_patience *patience, struct base_error *e)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec iov = {.iov_base = (void *)h, .iov_len = sizeof *h};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	if (memfd >= 0) {
		m.msg_control = control.bytes;
		m.msg_controllen = sizeof control.bytes;
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &memfd, sizeof memfd);
	}
	for (;;) {
		ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n == (ssize_t)sizeof *h)
			return 0;
		if (n >= 0)
			return base_error_set(e, -EPROTO, "link: hello to member %u was cut short", peer);
		if (errno == EAGAIN) {
			int r = link_socket_wait(fd, POLLOUT, peer, patience, e);
			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			int code = errno == EPIPE ? -ECONNRESET : -errno;
			return base_error_set(e, code, "link: hello to member %u: %s", peer, strerrordesc_np(-code));
		}
	}
}

/* Keeps the first descriptor that came and closes all others. */
static void take_fds(struct msghdr *m, int *fd)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int got;
			memcpy(&got, CMSG_DATA(c) + i * sizeof got, sizeof got);
			if (*fd < 0)
				*fd = got;
			else
				close(got);
		}
	}
}

static int receive_hello(int fd, uint32_t peer, const struct link_patience *patience, struct link_core_hello *ret_hello,
	int *ret_memfd, struct base_error *e)
{
	_cleanup_close_ int memfd = -1;
	uint8_t bytes[sizeof(struct link_core_hello)];
	size_t got = 0;
	while (got < sizeof bytes) {
		union {
			char bytes[CMSG_SPACE(4 * sizeof(int))];
			struct cmsghdr align;
		} control;
		struct iovec iov = {.iov_base = bytes + got, .iov_len = sizeof bytes - got};
		struct msghdr m = {.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control.bytes,
			.msg_controllen = sizeof control.bytes};
		ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n > 0) {
			take_fds(&m, &memfd);
			got += (size_t)n;
		} else if (n == 0 || errno == ECONNRESET) {
			return base_error_set(e, -ECONNRESET, "link: member %u closed before its hello", peer);
		} else if (errno == EAGAIN) {
			int r = link_socket_wait(fd, POLLIN, peer, patience, e);
			if (r < 0)
				return r;
		} else if (errno != EINTR) {
			return base_error_set(e, -errno, "link: hello of member %u: %s", peer, strerrordesc_np(errno));
		}
	}
	memcpy(ret_hello, bytes, sizeof bytes);
	*ret_memfd = base_steal_fd(memfd);
	return 0;
}

static int map_pair(struct link_local_group *g, uint32_t peer, int memfd, struct base_error *e)
{
	struct link_local_pair *p = &g->pairs[peer];
	size_t bytes = 4096 + 2 * g->core.ring_bytes;
	// Without the seals the peer could shrink the file under the mapping, which is a SIGBUS here.
	struct stat st;
	int seals = fcntl(memfd, F_GET_SEALS);
	if (seals < 0 || (seals & HELLO_SEALS) != HELLO_SEALS || fstat(memfd, &st) < 0 || st.st_size != (off_t)bytes)
		return base_error_set(
			e, -EPROTO, "link: the memory of member %u is not sealed or not of %zu bytes", peer, bytes);
	void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (m == MAP_FAILED)
		return base_error_set(e, -errno, "link: mapping %zu bytes shared with member %u: %s", bytes, peer,
			strerrordesc_np(errno));
	p->shared = m;
	p->map_bytes = bytes;
	bool lower = g->core.group.me < peer;
	uint8_t *rings = (uint8_t *)m + 4096;
	p->out = &p->shared->ring[lower ? 0 : 1];
	p->in = &p->shared->ring[lower ? 1 : 0];
	p->out_data = rings + (lower ? 0 : g->core.ring_bytes);
	p->in_data = rings + (lower ? g->core.ring_bytes : 0);
	p->my_asleep = &p->shared->asleep[lower ? 0 : 1].bits;
	p->its_asleep = &p->shared->asleep[lower ? 1 : 0].bits;
	return 0;
}

static int make_memory(size_t bytes, int *ret_fd, struct base_error *e)
{
	_cleanup_close_ int fd = memfd_create("thaw-link", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0 || fcntl(fd, F_ADD_SEALS, HELLO_SEALS | F_SEAL_SEAL) < 0)
		return base_error_set(e, -errno, "link: shared memory of %zu bytes: %s", bytes, strerrordesc_np(errno));
	*ret_fd = base_steal_fd(fd);
	return 0;
}

static int follow(
	struct link_local_group *g, uint32_t peer, int fd, const struct link_patience *patience, struct base_error *e)
{
	struct link_core_hello h;
	_cleanup_close_ int memfd = -1;
	int r = receive_hello(fd, peer, patience, &h, &memfd, e);
	if (r < 0)
		return r;
	r = link_core_agree(&g->core, peer, &h, HELLO_MAGIC, HELLO_VERSION, e);
	if (r < 0)
		return r;
	r = map_pair(g, peer, memfd, e);
	if (r < 0)
		return r;
	h.from = g->core.group.me;
	h.to = peer;
	return send_hello(fd, peer, &h, -1, patience, e);
}

static int lead(
	struct link_local_group *g, uint32_t peer, int fd, const struct link_patience *patience, struct base_error *e)
{
	_cleanup_close_ int memfd = -1;
	int r = make_memory(4096 + 2 * g->core.ring_bytes, &memfd, e);
	if (r < 0)
		return r;
	r = map_pair(g, peer, memfd, e);
	if (r < 0)
		return r;
	struct link_core_hello h = {HELLO_MAGIC, HELLO_VERSION, g->core.group.members, g->core.group.me, peer, 0,
		g->core.group.epoch, g->core.ring_bytes};
	return send_hello(fd, peer, &h, memfd, patience, e);
}

int link_local_hello(
	struct link_local_group *g, const int *fds, const struct link_patience *patience, struct base_error *e)
{
	uint32_t me = g->core.group.me;
	int r;
	for (uint32_t i = 0; i < me; i++) {
		if (fds[i] >= 0 && (r = follow(g, i, fds[i], patience, e)) < 0)
			return r;
	}
	if (g->core.group.epoch == 0 || g->core.ring_bytes == 0)
		return base_error_set(e, -EINVAL, "link: no lower member says the epoch and the ring's size");
	for (uint32_t i = me + 1; i < g->core.group.members; i++) {
		if (fds[i] >= 0 && (r = lead(g, i, fds[i], patience, e)) < 0)
			return r;
	}
	for (uint32_t i = me + 1; i < g->core.group.members; i++) {
		struct link_core_hello h;
		_cleanup_close_ int none = -1;
		if (fds[i] < 0)
			continue;
		if ((r = receive_hello(fds[i], i, patience, &h, &none, e)) < 0 ||
			(r = link_core_agree(&g->core, i, &h, HELLO_MAGIC, HELLO_VERSION, e)) < 0)
			return r;
	}
	return 0;
}
