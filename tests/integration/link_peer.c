// SPDX-License-Identifier: Apache-2.0
/* One member of a group of hosts, for test_links.py:
 *   link_peer PORT ME idle|stream ADDRESS...
 * Prints what its endpoints use, `up NS`, and at the end of the group `lost NS TEXT`, with the time of CLOCK_MONOTONIC.
 * idle: waits for a message on the event fd. stream: 1 MiB messages to the next member and from the one before, without
 * end; `round` whenever 50 more have come.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "shard/link/rendezvous.h"
#include "shard/link/ucx_internal.h"

#define MIB (1u << 20)

static const struct link_ops *const ops = &link_ucx_ops;

static void idle(struct link_group *g)
{
	struct link_request r[LINK_MAX_MEMBERS];
	uint8_t byte[LINK_MAX_MEMBERS];
	bool lost = false;
	for (uint32_t i = 0; i < g->members; i++) {
		if (i != g->me)
			ops->receive(g, i, 1, &byte[i], 1, &r[i]);
	}
	while (!lost) {
		struct pollfd p = {.fd = ops->event_fd(g), .events = POLLIN};
		ops->progress(g, 8);
		for (uint32_t i = 0; i < g->members; i++)
			lost |= i != g->me && r[i].status == -ECONNRESET;
		if (!lost)
			poll(&p, 1, -1);
	}
}

static int stream(struct link_group *g)
{
	uint8_t *out = calloc(1, MIB), *in = malloc(MIB);
	uint32_t to = (g->me + 1) % g->members, from = (g->me + g->members - 1) % g->members;
	for (uint32_t count = 0;; count++) {
		struct link_request r[2];
		ops->receive(g, from, 1, in, MIB, &r[0]);
		ops->send(g, to, 1, out, MIB, &r[1]);
		for (int i = 0; i < 2; i++) {
			int status = ops->wait(g, &r[i], LINK_NO_DEADLINE);
			if (status < 0) {
				ops->revoke(g);
				ops->progress(g, 8); // ends the other one, too
				free(in);
				free(out);
				return status;
			}
		}
		if (count % 50 == 49) {
			printf("round\n");
			fflush(stdout);
		}
	}
}

int main(int argc, char **argv)
{
	struct link_rendezvous_member list[LINK_MAX_MEMBERS];
	struct link_group *group;
	struct base_error e = {0};
	int listener, fds[LINK_MAX_MEMBERS];
	uint16_t port;
	if (argc < 6) {
		fprintf(stderr, "usage: link_peer PORT ME idle|stream ADDRESS...\n");
		return 2;
	}
	struct link_rendezvous_group g = {
		.epoch = 5, .members = (uint32_t)argc - 4, .me = (uint32_t)atoi(argv[2]), .list = list};
	for (uint32_t i = 0; i < g.members; i++)
		list[i] = (struct link_rendezvous_member){argv[4 + i], (uint16_t)atoi(argv[1])};
	uint64_t deadline = base_clock_now_ns() + 100 * BASE_NS_PER_SECOND;
	if (link_rendezvous_listen(list[g.me].address, list[g.me].port, list[g.me].port, &listener, &port, &e) < 0 ||
		link_rendezvous_connect(listener, &g, -1, deadline, fds, &e) < 0 ||
		ops->create(fds, g.members, g.me, g.epoch, MIB, LINK_UNTIL(deadline), &group, &e) < 0) {
		printf("failed %s\n", base_error_text(&e));
		return 1;
	}
	struct link_ucx_group *ucx = (struct link_ucx_group *)group;
	for (uint32_t i = 0; i < g.members; i++) {
		if (i != g.me)
			ucx->ucp.ep_print_info(ucx->pairs[i].ep, stdout);
	}
	printf("port %u\n", ucx->port);
	printf("up %llu\n", (unsigned long long)base_clock_now_ns());
	fflush(stdout);
	int status = -ECONNRESET;
	if (strcmp(argv[3], "idle") == 0)
		idle(group);
	else
		status = stream(group);
	printf("lost %llu %s\n", (unsigned long long)base_clock_now_ns(), strerrorname_np(-status));
	ops->close(group);
	printf("closed %llu\n", (unsigned long long)base_clock_now_ns());
	return 0;
}
