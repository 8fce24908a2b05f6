// SPDX-License-Identifier: Apache-2.0
/* Sockets. We bind and accept ourselves and hand connections over, because gRPC-core 1.51 takes a live server's unix
 * socket away from it, and stops to accept for good after it once met EMFILE (CVE-2023-4785). Only TLS listens through
 * gRPC-core: connections that are handed over cannot have it. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "daemon/rpc/rpc_core.h"

#define LISTEN_MAX_SOCKETS 5u // one unix, and what a name such as localhost resolves to
#define LISTEN_BACKLOG 128
#define LISTEN_PAUSE_MS 100

struct socket {
	int fd;
	struct rpc_listener *listener;
};

struct rpc_accept {
	struct base_log *log;
	pthread_t thread;
	bool thread_runs;
	int stop_fd;
	int spare_fd; // given up for a moment when there are no others
	int lock_fd;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; // of the unix socket
	struct socket sockets[LISTEN_MAX_SOCKETS];
	uint32_t sockets_count;
	uint16_t tcp_port, cluster_port;
};

/* Addresses. */

static int resolve(
	const char *address, struct base_address *ret_parts, struct addrinfo **ret_list, struct base_error *e)
{
	int r = base_address_parse(address, ret_parts, e);
	if (r == 0)
		r = base_address_resolve(ret_parts, ret_list, e);
	if (r < 0)
		base_error_prefix(e, "listen.tcp");
	return r;
}

static bool is_loopback(const struct sockaddr *a)
{
	if (a->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
	return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

int rpc_listen_is_loopback(const char *address, bool *ret_loopback, struct base_error *e)
{
	struct base_address parts;
	struct addrinfo *list = NULL;
	int r = resolve(address, &parts, &list, e);
	if (r < 0)
		return r;
	bool all = true;
	for (const struct addrinfo *a = list; a; a = a->ai_next)
		all = all && is_loopback(a->ai_addr);
	freeaddrinfo(list);
	*ret_loopback = all;
	return 0;
}

/* The unix socket. */

static void read_pid(int fd, char *out, size_t room)
{
	ssize_t n = pread(fd, out, room - 1, 0);
	out[n > 0 ? n : 0] = 0;
	out[strspn(out, "0123456789")] = 0;
}

static int take_lock(struct rpc_accept *a, struct base_error *e)
{
	char path[sizeof(a->path) + 8], pid[16];
	snprintf(path, sizeof(path), "%s.lock", a->path);
	_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640);
	if (fd < 0 && errno == ENOENT)
		return base_error_set(e, -ENOENT, "the folder of %s is not there", a->path);
	if (fd < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		read_pid(fd, pid, sizeof(pid));
		return base_error_set(e, -EADDRINUSE, "unix:%s is in use by another thawd (pid %s)", a->path,
			pid[0] ? pid : "unknown");
	}
	int n = snprintf(pid, sizeof(pid), "%ld\n", (long)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)n, 0) != n)
		return base_error_set(e, -EIO, "%s: the pid cannot be written: %s", path, strerrordesc_np(errno));
	a->lock_fd = base_steal_fd(fd);
	return 0;
}

/* With the lock held, a socket that is there is nobody's of ours. Another program's answers. */
static int clear_path(const struct sockaddr_un *address, struct base_error *e)
{
	struct stat st;
	if (lstat(address->sun_path, &st) < 0)
		return errno == ENOENT ? 0
				       : base_error_set(e, -errno, "%s: %s", address->sun_path, strerrordesc_np(errno));
	if (!S_ISSOCK(st.st_mode))
		return base_error_set(e, -EEXIST, "%s is there and is no socket: remove it, or choose another path",
			address->sun_path);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN))
		return base_error_set(e, -EADDRINUSE, "unix:%s is in use by another program", address->sun_path);
	if (unlink(address->sun_path) < 0 && errno != ENOENT)
		return base_error_set(e, -errno, "%s: %s", address->sun_path, strerrordesc_np(errno));
	return 0;
}

static int bind_unix(struct rpc_accept *a, struct rpc_listener *l, const char *path, struct base_error *e)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (path[0] != '/' || strlen(path) >= sizeof(address.sun_path) - 8)
		return base_error_set(e, -EINVAL,
			"listen.grpc: unix:%s: an absolute path of at most %zu bytes is wanted", path,
			sizeof(address.sun_path) - 9);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	snprintf(a->path, sizeof(a->path), "%s", path);
	int r = take_lock(a, e);
	if (r == 0)
		r = clear_path(&address, e);
	if (r < 0) {
		a->path[0] = 0; // not ours to remove
		base_error_prefix(e, "listen.grpc");
		return r;
	}
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Linux makes the file with the mode of the socket's own inode: never wider than 0660, and without touching the
	 * umask, which belongs to the whole process. What the umask then takes away comes back with chmod. */
	if (fd < 0 || fchmod(fd, 0660) < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return base_error_set(e, -errno, "listen.grpc: unix:%s: %s", path, strerrordesc_np(errno));
	if (chmod(path, 0660) < 0 || listen(fd, LISTEN_BACKLOG) < 0)
		return base_error_set(e, -errno, "listen.grpc: unix:%s: %s", path, strerrordesc_np(errno));
	a->sockets[a->sockets_count++] = (struct socket){base_steal_fd(fd), l};
	return 0;
}

/* TCP. */

static int bind_tcp(struct rpc_accept *a, struct rpc_listener *l, const char *address, struct base_error *e)
{
	struct base_address parts;
	struct addrinfo *list = NULL;
	int r = resolve(address, &parts, &list, e);
	if (r < 0)
		return r;
	for (const struct addrinfo *i = list; i && r == 0 && a->sockets_count < LISTEN_MAX_SOCKETS; i = i->ai_next) {
		const int on = 1;
		_cleanup_close_ int fd = socket(i->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (fd < 0 && errno == EAFNOSUPPORT)
			continue; // a host without IPv6
		/* REUSEADDR is for TIME_WAIT; never REUSEPORT, with which a second daemon would share the port
		 * silently. */
		if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
			(i->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
			bind(fd, i->ai_addr, i->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
			if (errno == EADDRNOTAVAIL && i->ai_next)
				continue;
			r = base_error_set(e, -errno, "listen.tcp: %s: %s", address, strerrordesc_np(errno));
			break;
		}
		struct sockaddr_in6 bound;
		socklen_t n = sizeof(bound);
		if (getsockname(fd, (struct sockaddr *)&bound, &n) == 0 && !a->tcp_port)
			a->tcp_port = ntohs(bound.sin6_port); // at the same place in both families
		a->sockets[a->sockets_count++] = (struct socket){base_steal_fd(fd), l};
		if (!parts.number)
			break; // a port that the system chooses is chosen once
	}
	freeaddrinfo(list);
	return r;
}

struct tls_listen {
	const char *key_name; // of the configuration
	const char *address, *cert, *key, *ca;
};

static int listen_tls(struct rpc_listener *l, const struct tls_listen *t, uint16_t *ret_port, struct base_error *e)
{
	_cleanup_free_ char *cert = NULL, *key = NULL, *ca = NULL;
	int r = rpc_read_pem(t->cert, &cert, e);
	if (r == 0)
		r = rpc_read_pem(t->key, &key, e);
	if (r == 0)
		r = rpc_read_pem(t->ca, &ca, e);
	if (r < 0)
		return base_error_prefix(e, "%s", t->key_name);
	grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
	grpc_server_credentials *credentials = grpc_ssl_server_credentials_create_ex(
		ca, &pair, 1, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, NULL);
	int port = credentials ? grpc_server_add_http2_port(l->grpc, t->address, credentials) : 0;
	if (credentials)
		grpc_server_credentials_release(credentials);
	if (port <= 0)
		return base_error_set(e, -EADDRINUSE,
			"%s: %s cannot be listened on: the port is in use, the address is not of this host, or "
			"%s, %s and %s do not belong together",
			t->key_name, t->address, t->cert, t->key, t->ca);
	*ret_port = (uint16_t)port;
	return 0;
}

/* Where nodes join. */
static int listen_cluster(struct rpc_server *r, const struct config *c, struct base_error *e)
{
	const struct tls_listen t = {
		"cluster.listen", c->cluster.listen, c->cluster.tls_cert, c->cluster.tls_key, c->cluster.tls_ca};
	return listen_tls(&r->listeners[2], &t, &r->accept->cluster_port, e);
}

static int listen_tcp(struct rpc_server *r, const struct config *c, struct base_error *e)
{
	bool some = c->listen.tls_cert[0] || c->listen.tls_key[0] || c->listen.tls_ca[0];
	bool all = c->listen.tls_cert[0] && c->listen.tls_key[0] && c->listen.tls_ca[0];
	bool loopback;
	int status = rpc_listen_is_loopback(c->listen.tcp, &loopback, e);
	if (status < 0)
		return status;
	if (some && !all)
		return base_error_set(e, -EINVAL, "listen: tls_cert, tls_key and tls_ca come together");
	if (all)
		return listen_tls(&r->listeners[0],
			&(struct tls_listen){
				"listen.tcp", c->listen.tcp, c->listen.tls_cert, c->listen.tls_key, c->listen.tls_ca},
			&r->accept->tcp_port, e);
	if (!loopback && !c->listen.insecure_tcp)
		return base_error_set(e, -EINVAL,
			"listen.tcp: %s is not on the loopback: set listen.tls_cert, tls_key and tls_ca, or "
			"listen.insecure_tcp for plaintext that everybody on the network can read and use (gRPC-core "
			"%s%s)",
			c->listen.tcp, grpc_version_string(), " and older have no defence against rapid reset there");
	return bind_tcp(r->accept, &r->listeners[1], c->listen.tcp, e);
}

int rpc_listen_start(struct rpc_server *r, struct base_error *e)
{
	const struct config *c = server_config(r->daemon);
	struct rpc_accept *a = calloc(1, sizeof(*a));
	if (!a)
		return base_error_set(e, -ENOMEM, "no memory to listen");
	r->accept = a;
	a->log = r->log;
	a->lock_fd = -1;
	a->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	a->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (a->stop_fd < 0 || a->spare_fd < 0)
		return base_error_set(e, -errno, "no descriptors to listen: %s", strerrordesc_np(errno));
	if (strncmp(c->listen.grpc, "unix:", 5))
		return base_error_set(e, -EINVAL, "listen.grpc: %s is not unix:PATH", c->listen.grpc);
	int status = bind_unix(a, &r->listeners[0], c->listen.grpc + 5, e);
	if (status == 0 && c->listen.tcp[0])
		status = listen_tcp(r, c, e);
	if (status == 0 && c->cluster.listen[0])
		status = listen_cluster(r, c, e);
	return status;
}

uint16_t rpc_listen_tcp_port(const struct rpc_server *r)
{
	return r->accept ? r->accept->tcp_port : 0;
}

uint16_t rpc_listen_cluster_port(const struct rpc_server *r)
{
	return r->accept ? r->accept->cluster_port : 0;
}

/* The accepting thread. */

/* Out of descriptors: the client that waits is told by a closed connection, and the thread goes on. */
static void shed_client(struct rpc_accept *a, int fd)
{
	if (a->spare_fd >= 0) {
		close(a->spare_fd);
		int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (client >= 0)
			close(client);
		a->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (client >= 0)
			return;
	}
	struct pollfd stop = {.fd = a->stop_fd, .events = POLLIN};
	poll(&stop, 1, LISTEN_PAUSE_MS);
	if (a->spare_fd < 0)
		a->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void accept_one(struct rpc_accept *a, const struct socket *s, grpc_server_credentials *credentials)
{
	struct sockaddr_storage peer;
	socklen_t n = sizeof(peer);
	int fd = accept4(s->fd, (struct sockaddr *)&peer, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0) {
		const int on = 1;
		if (peer.ss_family != AF_UNIX)
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		grpc_server_add_channel_from_fd(s->listener->grpc, fd, credentials);
		return;
	}
	if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
		base_log_warning(a->log, "rpc: a client was turned away: %s", strerrordesc_np(errno));
		shed_client(a, s->fd);
	}
	/* The rest (EAGAIN, ECONNABORTED, errors of a network that accept passes on) concerns that client alone. */
}

static void *accept_run(void *context)
{
	struct rpc_accept *a = context;
	struct pollfd polls[LISTEN_MAX_SOCKETS + 1];
	grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
	pthread_setname_np(pthread_self(), "rpc-accept");
	for (uint32_t i = 0; i < a->sockets_count; i++)
		polls[i] = (struct pollfd){.fd = a->sockets[i].fd, .events = POLLIN};
	polls[a->sockets_count] = (struct pollfd){.fd = a->stop_fd, .events = POLLIN};
	for (;;) {
		if (poll(polls, a->sockets_count + 1, -1) < 0 && errno != EINTR)
			poll(NULL, 0, LISTEN_PAUSE_MS); // ENOMEM
		else if (polls[a->sockets_count].revents)
			break;
		for (uint32_t i = 0; i < a->sockets_count; i++)
			if (polls[i].revents)
				accept_one(a, &a->sockets[i], credentials);
	}
	grpc_server_credentials_release(credentials);
	return NULL;
}

int rpc_listen_accept(struct rpc_server *r, struct base_error *e)
{
	int status = pthread_create(&r->accept->thread, NULL, accept_run, r->accept);
	if (status)
		return base_error_set(e, -status, "a thread to accept: %s", strerrordesc_np(status));
	r->accept->thread_runs = true;
	return 0;
}

void rpc_listen_stop(struct rpc_server *r)
{
	struct rpc_accept *a = r->accept;
	if (!a)
		return;
	const uint64_t one = 1;
	if (a->thread_runs && write(a->stop_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(a->thread, NULL);
	a->thread_runs = false;
	/* The name goes before the lock does, so that it is never another daemon's. */
	if (a->sockets_count && a->path[0])
		unlink(a->path);
	for (uint32_t i = 0; i < a->sockets_count; i++)
		close(a->sockets[i].fd);
	a->sockets_count = 0;
	if (a->lock_fd >= 0)
		close(a->lock_fd);
	a->lock_fd = -1;
}

void rpc_listen_finish(struct rpc_server *r)
{
	struct rpc_accept *a = r->accept;
	if (!a)
		return;
	rpc_listen_stop(r);
	if (a->stop_fd >= 0)
		close(a->stop_fd);
	if (a->spare_fd >= 0)
		close(a->spare_fd);
	free(a);
	r->accept = NULL;
}
