// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"

static int print(const struct sockaddr *a, char out[static CLUSTER_RESOLVED_BYTES])
{
	const void *bytes = a->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)a)->sin_addr
						    : &((const struct sockaddr_in6 *)a)->sin6_addr;
	return inet_ntop(a->sa_family, bytes, out, CLUSTER_RESOLVED_BYTES) ? 0 : -errno;
}

static int look_up(const char *host, struct addrinfo **ret_list, struct base_error *e)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	int r = getaddrinfo(host, "9", &hints, ret_list);
	return r ? base_error_set(e, -EINVAL, "host %.200s: %s", host, gai_strerror(r)) : 0;
}

int cluster_resolve(const char *host, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	struct addrinfo *list = NULL;
	int status = look_up(host, &list, e);
	if (status)
		return status;
	status = print(list->ai_addr, out);
	freeaddrinfo(list);
	return status ? base_error_set(e, status, "host %.200s: no address", host) : 0;
}

/* A datagram socket that is connected sends nothing, but has chosen its source. */
int cluster_resolve_own(const char *towards, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	struct addrinfo *list = NULL;
	struct sockaddr_storage own;
	socklen_t n = sizeof own;
	int status = look_up(towards, &list, e);
	if (status)
		return status;
	_cleanup_close_ int fd = socket(list->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, list->ai_addr, list->ai_addrlen) < 0 ||
		getsockname(fd, (struct sockaddr *)&own, &n) < 0)
		status = base_error_set(e, -errno, "no way to host %.200s: %s", towards, strerrordesc_np(errno));
	else
		status = print((struct sockaddr *)&own, out);
	freeaddrinfo(list);
	return status;
}
