// SPDX-License-Identifier: Apache-2.0
#include "offload/engine.h"

#include <errno.h>
#include <string.h>

static bool refused(int r)
{
	return r == -EPERM || r == -EACCES || r == -ENOSYS || r == -EOPNOTSUPP || r == -ENOMEM || r == -EINVAL;
}

static int create_uring(const struct offload_engine_config *config, struct offload_engine **ret_engine,
	struct base_error *ret_fallback, struct base_error *e)
{
	int r = offload_engine_uring.create(config, ret_engine, e), why = r == 0 ? (*ret_engine)->buffers_refused : 0;
	if (why && ret_fallback)
		base_error_set(ret_fallback, why,
			"io_uring registers no buffers: %s; set LimitMEMLOCK (RLIMIT_MEMLOCK) to %zu bytes or more",
			strerrordesc_np(-why), config->buffers_bytes);
	return r;
}

int offload_engine_create(const char *name, const struct offload_engine_config *config,
	struct offload_engine **ret_engine, struct base_error *ret_fallback, struct base_error *e)
{
	if (ret_fallback)
		*ret_fallback = (struct base_error){0};
	if (strcmp(name, "sync") == 0)
		return offload_engine_sync.create(config, ret_engine, e);
	if (strcmp(name, "uring") == 0)
		return create_uring(config, ret_engine, ret_fallback, e);
	if (strcmp(name, "auto") != 0)
		return base_error_set(e, -EINVAL, "no engine is called '%.40s': auto, uring or sync", name);

	struct base_error why = {0};
	int r = create_uring(config, ret_engine, ret_fallback, &why);
	if (r == 0)
		return 0;
	if (!refused(r)) {
		if (e)
			*e = why;
		return r;
	}
	r = offload_engine_sync.create(config, ret_engine, e);
	if (r == 0 && ret_fallback)
		*ret_fallback = why;
	return r;
}
