// SPDX-License-Identifier: Apache-2.0
#include "daemon/rpc/grpc_core.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

void rpc_grpc_init(void)
{
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	grpc_init();
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void rpc_grpc_finish(void)
{
	grpc_shutdown();
}

grpc_slice rpc_buffer_slice(grpc_byte_buffer *b)
{
	grpc_byte_buffer_reader reader;
	if (!b || !grpc_byte_buffer_reader_init(&reader, b))
		return grpc_empty_slice();
	grpc_slice first = grpc_empty_slice();
	if (grpc_byte_buffer_reader_next(&reader, &first) && GRPC_SLICE_LENGTH(first) == grpc_byte_buffer_length(b)) {
		grpc_byte_buffer_reader_destroy(&reader);
		return first;
	}
	grpc_slice_unref(first);
	grpc_byte_buffer_reader_destroy(&reader);
	if (!grpc_byte_buffer_reader_init(&reader, b))
		return grpc_empty_slice();
	grpc_slice whole = grpc_byte_buffer_reader_readall(&reader);
	grpc_byte_buffer_reader_destroy(&reader);
	return whole;
}

int rpc_read_pem(const char *path, char **ret_text, struct base_error *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode) || st.st_size == 0 || st.st_size > RPC_MAX_PEM_BYTES)
		return base_error_set(e, -EINVAL, "%s: a PEM file of 1 to %u bytes is wanted", path, RPC_MAX_PEM_BYTES);
	_cleanup_free_ char *text = calloc(1, (size_t)st.st_size + 1);
	if (!text)
		return base_error_set(e, -ENOMEM, "%s: no memory", path);
	ssize_t n = read(fd, text, (size_t)st.st_size);
	if (n < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (!strstr(text, "-----BEGIN "))
		return base_error_set(e, -EINVAL, "%s: not a PEM file", path);
	*ret_text = base_steal(text);
	return 0;
}
