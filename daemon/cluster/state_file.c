// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/file.h"
#include "daemon/cluster/state.h"

#define NAME "cluster.json"
#define LOCK_NAME "cluster.lock"
#define MAX_BYTES (1 << 20)

struct state_file {
	struct cluster_state state;
	int directory_fd, lock_fd;
	char where[CLUSTER_PATH_BYTES];
};

static void file_close(struct cluster_state *state)
{
	if (!state)
		return;
	struct state_file *s = base_container_of(state, struct state_file, state);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	if (s->directory_fd >= 0)
		close(s->directory_fd);
	free(s);
}

static int take_lock(struct state_file *s, const char *who, struct base_error *e)
{
	char holder[CLUSTER_NAME_BYTES + 1] = "";
	s->lock_fd = openat(s->directory_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (s->lock_fd < 0)
		return base_error_set(e, -errno, "%s/" LOCK_NAME ": %s", s->where, strerrordesc_np(errno));
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
		int status = errno == EWOULDBLOCK ? -EBUSY : -errno;
		ssize_t n = pread(s->lock_fd, holder, sizeof holder - 1, 0);
		holder[n > 0 ? n : 0] = '\0';
		return base_error_set(e, status, "%s/" LOCK_NAME ": %s coordinates this cluster already", s->where,
			holder[0] ? holder : "another process");
	}
	if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, who, strlen(who), 0) < 0)
		return base_error_set(e, -errno, "%s/" LOCK_NAME ": %s", s->where, strerrordesc_np(errno));
	return 0;
}

static int file_open(const struct cluster_state_config *config, struct cluster_state **ret_state, struct base_error *e)
{
	const char *where = config->directory;
	struct state_file *s = calloc(1, sizeof *s);
	if (!s || strlen(where) >= sizeof s->where) {
		free(s);
		return base_error_set(e, s ? -ENAMETOOLONG : -ENOMEM, "%.80s: cannot hold the cluster's state", where);
	}
	s->state.ops = &cluster_state_file_ops;
	s->lock_fd = -1;
	memcpy(s->where, where, strlen(where) + 1);
	s->directory_fd = open(where, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int status = s->directory_fd < 0 ? base_error_set(e, -errno, "%s: %s", where, strerrordesc_np(errno))
					 : take_lock(s, config->who, e);
	if (status)
		file_close(&s->state);
	else
		*ret_state = &s->state;
	return status;
}

static int file_read(struct cluster_state *state, struct cluster_record *ret_record, struct base_error *e)
{
	struct state_file *s = base_container_of(state, struct state_file, state);
	struct stat st;
	_cleanup_close_ int fd = openat(s->directory_fd, NAME, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return base_error_set(e, -errno, "%s/" NAME ": %s", s->where, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode) || st.st_size > MAX_BYTES)
		return base_error_set(
			e, -EBADMSG, "%s/" NAME ": a file of at most %d bytes is wanted", s->where, MAX_BYTES);
	_cleanup_free_ char *text = malloc((size_t)st.st_size + 1);
	ssize_t n = text ? read(fd, text, (size_t)st.st_size) : -1;
	if (n < 0)
		return base_error_set(e, text ? -errno : -ENOMEM, "%s/" NAME ": cannot be read", s->where);
	text[n] = '\0';
	int status = cluster_record_parse(text, (size_t)n, ret_record, e);
	return status ? base_error_prefix(e, "%s/" NAME, s->where) : 0;
}

static int file_write(struct cluster_state *state, const struct cluster_record *record, struct base_error *e)
{
	struct state_file *s = base_container_of(state, struct state_file, state);
	_cleanup_free_ char *text = cluster_record_print(record);
	if (!text)
		return base_error_set(e, -ENOMEM, "%s/" NAME ": no memory", s->where);
	int status = base_file_replace(s->directory_fd, NAME, text, strlen(text));
	return status ? base_error_set(e, status, "%s/" NAME ": %s", s->where, strerrordesc_np(-status)) : 0;
}

static void file_claim(struct cluster_state *state, struct cluster_claim *ret_claim)
{
	*ret_claim =
		(struct cluster_claim){.kind = CLUSTER_CLAIM_HELD, .term = 1}; // a lock lives as long as its process
}

const struct cluster_state_ops cluster_state_file_ops = {
	.name = "file",
	.open = file_open,
	.close = file_close,
	.read = file_read,
	.write = file_write,
	.claim = file_claim,
};
