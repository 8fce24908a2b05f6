// SPDX-License-Identifier: Apache-2.0
/* What a node that computes gives to others: files of models that it has a copy of, as STORE/sources.json remembers
 * them. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "daemon/cluster/worker.h"
#include "shard/pack/pack.h"

int cluster_copy_open(const struct cluster_copies *c, const struct cluster_identity *peer,
	const struct cluster_pull *pull, struct cluster_source *ret_source, struct base_error *e)
{
	struct cluster_source s = {.served_bytes = c->served_bytes, .fd = -1};
	struct stat st;
	int status = cluster_source_check_peer(c->cluster, peer, e);
	if (status)
		return status;
	if (pack_open_copy(c->store_path, pull->digest, s.path, sizeof s.path, &s.fd) < 0 || fstat(s.fd, &st) < 0) {
		cluster_source_close(&s);
		return base_error_set(e, -ENOENT, "no copy of a model with this digest is at %s", c->node);
	}
	s.file_bytes = (uint64_t)st.st_size;
	s.changed = st.st_mtim;
	status = cluster_source_check_end(&s, &pull->runs, e);
	if (status)
		cluster_source_close(&s);
	else
		*ret_source = s;
	return status;
}
