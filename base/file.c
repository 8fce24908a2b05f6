// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"

int base_file_write(int fd, const void *data, size_t bytes)
{
	const char *at = data;
	while (bytes) {
		ssize_t n = write(fd, at, bytes);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		at += n;
		bytes -= (size_t)n;
	}
	return 0;
}

int base_file_replace(int dirfd, const char *name, const void *data, size_t bytes)
{
	char tmp[NAME_MAX + 8];
	if (snprintf(tmp, sizeof tmp, "%s.tmp", name) > NAME_MAX)
		return -ENAMETOOLONG;
	_cleanup_close_ int fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return -errno;
	int status = base_file_write(fd, data, bytes);
	if (!status && fsync(fd) < 0)
		status = -errno;
	if (!status && renameat(dirfd, tmp, dirfd, name) < 0)
		status = -errno;
	if (!status)
		return fsync(dirfd) < 0 ? -errno : 0;
	unlinkat(dirfd, tmp, 0);
	return status;
}
