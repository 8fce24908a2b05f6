// SPDX-License-Identifier: Apache-2.0
// Any bytes as the file in which a coordinator keeps what it has measured of links: what it takes of them can be planned
// with.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "daemon/cluster/coordinator_internal.h"
#include "tests/fuzz/folder.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool what)
{
	if (!what)
		abort();
}

static void check(const struct cluster_link_info *list, uint32_t i)
{
	const struct cluster_link_info *x = &list[i];
	for (uint32_t k = 0; k < 2; k++)
		require(cluster_name_check("node", x->node[k], NULL) == 0);
	require(strcmp(x->node[0], x->node[1]) < 0);
	require(isfinite(x->latency_ns) && x->latency_ns > 0);
	require(isfinite(x->bytes_per_s) && x->bytes_per_s > 0);
	require(!x->error[0]);
	for (uint32_t k = 0; k < i; k++)
		require(strcmp(list[k].node[0], x->node[0]) != 0 || strcmp(list[k].node[1], x->node[1]) != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static struct cluster_coordinator c = {.lock = PTHREAD_MUTEX_INITIALIZER};
	static struct cluster_link_info list[CLUSTER_MAX_LINKS + 1];
	folder_put(0, "links.json", data, bytes);
	require(cluster_links_create(folder_path, &c.links) == 0);
	uint32_t n = cluster_coordinator_links(&c, list, CLUSTER_MAX_LINKS + 1);
	require(n <= CLUSTER_MAX_LINKS);
	for (uint32_t i = 0; i < n; i++)
		check(list, i);
	free(c.links);
	return 0;
}
