// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "shard/link/socket.h"
#include "shard/link/ucx_internal.h"

#define HELLO_MAGIC 0x7863756cu // "lucx"
#define HELLO_VERSION 1u

/* The lower member of a pair speaks first; the higher one takes over epoch and ring where it has none, as with the
 * local engine: members go through their peers in ascending order. */

int link_ucx_check_hello(struct link_ucx_group *g, const struct link_ucx_hello *h, uint32_t peer, struct base_error *e)
{
	const struct link_core_hello common = {
		h->magic, h->version, h->members, h->from, h->to, 0, h->epoch, h->ring_bytes};
	int r = link_core_agree(&g->core, peer, &common, HELLO_MAGIC, HELLO_VERSION, e);
	if (r < 0)
		return r;
	if (h->ucx_version != g->version)
		return base_error_set(e, -EPROTO, "link: member %u has UCX %u.%u, here it is %u.%u: install the same",
			peer, h->ucx_version >> 16, h->ucx_version >> 8 & 255, g->version >> 16, g->version >> 8 & 255);
	if (h->address_bytes == 0 || h->address_bytes > LINK_UCX_MAX_ADDRESS_BYTES || h->zero)
		return base_error_set(e, -EPROTO, "link: member %u has an address of %u bytes, at most %u", peer,
			h->address_bytes, LINK_UCX_MAX_ADDRESS_BYTES);
	g->pairs[peer].its_token = h->token;
	return 0;
}

static int say(
	struct link_ucx_group *g, uint32_t peer, int fd, const struct link_patience *patience, struct base_error *e)
{
	const struct link_core *c = &g->core;
	struct link_ucx_hello h = {
		.magic = HELLO_MAGIC,
		.version = HELLO_VERSION,
		.ucx_version = g->version,
		.members = c->group.members,
		.from = c->group.me,
		.to = peer,
		.epoch = c->group.epoch,
		.ring_bytes = c->ring_bytes,
		.token = g->pairs[peer].my_token,
		.address_bytes = (uint32_t)g->address_bytes,
	};
	int r = link_socket_write(fd, peer, &h, sizeof h, patience, e);
	return r < 0 ? r : link_socket_write(fd, peer, g->address, g->address_bytes, patience, e);
}

static int hear(struct link_ucx_group *g, uint32_t peer, int fd,
	int (*connect)(struct link_ucx_group *g, uint32_t peer, const void *address, struct base_error *e),
	const struct link_patience *patience, struct base_error *e)
{
	struct link_ucx_hello h;
	_Alignas(16) uint8_t address[LINK_UCX_MAX_ADDRESS_BYTES];
	int r = link_socket_read(fd, peer, &h, sizeof h, patience, e);
	if (r == 0)
		r = link_ucx_check_hello(g, &h, peer, e);
	if (r == 0)
		r = link_socket_read(fd, peer, address, h.address_bytes, patience, e);
	return r < 0 ? r : connect(g, peer, address, e);
}

int link_ucx_hello(struct link_ucx_group *g, const int *fds,
	int (*connect)(struct link_ucx_group *g, uint32_t peer, const void *address, struct base_error *e),
	const struct link_patience *patience, struct base_error *e)
{
	uint32_t me = g->core.group.me, members = g->core.group.members;
	int r;
	for (uint32_t i = 0; i < members; i++) {
		uint64_t *token = &g->pairs[i].my_token;
		if (getrandom(token, sizeof *token, 0) != sizeof *token)
			return base_error_set(e, -EIO, "link: no random bytes");
	}
	for (uint32_t i = 0; i < me; i++) {
		if (fds[i] >= 0 && ((r = hear(g, i, fds[i], connect, patience, e)) < 0 ||
					   (r = say(g, i, fds[i], patience, e)) < 0))
			return r;
	}
	if (g->core.group.epoch == 0 || g->core.ring_bytes == 0)
		return base_error_set(e, -EINVAL, "link: no lower member says the epoch and the ring's size");
	for (uint32_t i = me + 1; i < members; i++) {
		if (fds[i] >= 0 && (r = say(g, i, fds[i], patience, e)) < 0)
			return r;
	}
	for (uint32_t i = me + 1; i < members; i++) {
		if (fds[i] >= 0 && (r = hear(g, i, fds[i], connect, patience, e)) < 0)
			return r;
	}
	return 0;
}
