// SPDX-License-Identifier: Apache-2.0
#include "shard/backend/backend.h"

#include <string.h>

const struct backend_ops *const backend_all[] = {&backend_reference_ops, &backend_cpu_ops, NULL};

const struct backend_ops *backend_find(const char *name)
{
	for (size_t i = 0; backend_all[i]; i++)
		if (strcmp(backend_all[i]->name, name) == 0)
			return backend_all[i];
	return NULL;
}
