// SPDX-License-Identifier: Apache-2.0
/* What nodes without a copy of a model pull its bytes from: the file that the coordinator has open. Others' copies:
 * copy.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/cluster/coordinator_internal.h"

int cluster_source_check_peer(const char *cluster, const struct cluster_identity *peer, struct base_error *e)
{
	if (!peer || (strcmp(peer->cluster, cluster) == 0 && cluster_role_works(peer->role)))
		return 0;
	return base_error_set(e, -EPERM,
		"the certificate of %s is for the role %s of cluster %s: models are for nodes of cluster %s that "
		"compute",
		peer->name, cluster_role_name(peer->role), peer->cluster, cluster);
}

int cluster_source_check_end(const struct cluster_source *s, const struct pack_runs *r, struct base_error *e)
{
	uint64_t end = r->offset_bytes + r->stride_bytes * (r->runs - 1) +
		       r->run_bytes; // does not overflow: cluster_read_pull
	if (end <= s->file_bytes)
		return 0;
	return base_error_set(e, -EBADMSG, "runs: they end at byte %llu, %s has %llu", (unsigned long long)end, s->path,
		(unsigned long long)s->file_bytes);
}

int cluster_source_open(struct cluster_coordinator *c, const struct cluster_identity *peer,
	const struct cluster_pull *pull, struct cluster_source *ret_source, struct base_error *e)
{
	struct cluster_source s = {.served_bytes = &c->served_bytes, .fd = -1};
	int status = cluster_source_check_peer(c->cluster, peer, e);
	if (status)
		return status;
	pthread_mutex_lock(&c->lock);
	for (struct cluster_fleet *f = c->fleets; f && s.fd < 0; f = f->next) {
		if (f->config.file_fd < 0 || memcmp(f->config.digest, pull->digest, sizeof pull->digest) != 0)
			continue;
		s.fd = fcntl(f->config.file_fd, F_DUPFD_CLOEXEC, 0);
		status = s.fd < 0 ? -errno : 0;
		s.file_bytes = f->config.file_bytes;
		s.changed = f->changed;
		memcpy(s.path, f->path, sizeof s.path);
	}
	pthread_mutex_unlock(&c->lock);
	if (status)
		return base_error_set(e, -EAGAIN, "no descriptor for a model's file: %s", strerrordesc_np(-status));
	if (s.fd < 0)
		return base_error_set(e, -ENOENT, "no model with this digest is loaded at %s", c->node_name);
	status = cluster_source_check_end(&s, &pull->runs, e);
	if (status)
		cluster_source_close(&s);
	else
		*ret_source = s;
	return status;
}

void cluster_source_close(struct cluster_source *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static int read_all(const struct cluster_source *s, uint64_t at, uint8_t *out, size_t bytes, struct base_error *e)
{
	while (bytes) {
		ssize_t n = pread(s->fd, out, bytes, (off_t)at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return base_error_set(e, -EIO, "%s at byte %llu: %s", s->path, (unsigned long long)at,
				n < 0 ? strerrordesc_np(errno) : "the file became shorter");
		at += (uint64_t)n;
		out += n;
		bytes -= (size_t)n;
	}
	return 0;
}

/* After reading: what was read is of the file whose digest is known. */
static int check_unchanged(const struct cluster_source *s, struct base_error *e)
{
	struct stat st;
	if (fstat(s->fd, &st) == 0 && (uint64_t)st.st_size == s->file_bytes &&
		memcmp(&st.st_mtim, &s->changed, sizeof st.st_mtim) == 0)
		return 0;
	return base_error_set(e, -ESTALE, "%s changed since it was loaded: load it again", s->path);
}

int cluster_source_read(const struct cluster_source *s, const struct pack_runs *r, uint64_t skip_bytes, void *out,
	size_t room, size_t *ret_bytes, struct base_error *e)
{
	uint64_t run = skip_bytes / r->run_bytes, within = skip_bytes % r->run_bytes;
	size_t have = 0;
	while (have < room && run < r->runs) {
		uint64_t left = r->run_bytes - within;
		size_t n = left < room - have ? (size_t)left : room - have;
		int status = read_all(s, r->offset_bytes + run * r->stride_bytes + within, (uint8_t *)out + have, n, e);
		if (status)
			return status;
		have += n;
		within = 0;
		run++;
	}
	if (r->runs == 1) // others may want columns of the same rows
		posix_fadvise(s->fd, (off_t)(r->offset_bytes + skip_bytes), (off_t)have, POSIX_FADV_DONTNEED);
	int status = check_unchanged(s, e);
	if (status)
		return status;
	atomic_fetch_add(s->served_bytes, have);
	*ret_bytes = have;
	return 0;
}

/* ---- which nodes have a copy ---- */

static struct cluster_stored *find_stored(struct cluster_facts *f, const uint8_t digest[static CLUSTER_DIGEST_BYTES])
{
	for (uint32_t i = 0; i < f->store_count; i++) {
		if (memcmp(f->store[i].digest, digest, CLUSTER_DIGEST_BYTES) == 0)
			return &f->store[i];
	}
	return NULL;
}

void cluster_sources_note(struct cluster_node *n, const uint8_t digest[static CLUSTER_DIGEST_BYTES], bool copy)
{
	struct cluster_stored *s = find_stored(n->facts, digest);
	if (!s && copy && n->facts->store_count < CLUSTER_MAX_STORED) {
		s = &n->facts->store[n->facts->store_count++];
		*s = (struct cluster_stored){0};
		memcpy(s->digest, digest, CLUSTER_DIGEST_BYTES);
	}
	if (s)
		s->copy = copy;
}

/* Each assignment begins with another one of them, so that not all pull from the same. */
void cluster_sources_fill(
	const struct cluster_coordinator *c, const struct cluster_node *to, struct cluster_assign *assign)
{
	for (uint32_t i = 0; i < c->nodes_count && assign->sources_count < CLUSTER_MAX_SOURCES; i++) {
		const struct cluster_node *n = &c->nodes[(assign->assignment + i) % c->nodes_count];
		if (n == to || n->state != CLUSTER_NODE_READY || !n->facts->pull_port || !n->facts->address[0] ||
			strcmp(n->name, c->node_name) == 0) // who is asked first, anyway
			continue;
		const struct cluster_stored *s = find_stored(n->facts, assign->digest);
		if (!s || !s->copy)
			continue;
		struct cluster_pull_source *x = &assign->sources[assign->sources_count++];
		memcpy(x->node, n->name, sizeof x->node);
		memcpy(x->host, n->facts->address, sizeof x->host);
		x->port = n->facts->pull_port;
	}
}

uint64_t cluster_coordinator_served(struct cluster_coordinator *c)
{
	return atomic_load(&c->served_bytes);
}
