// SPDX-License-Identifier: Apache-2.0
#include "shard/backend/backend.h"

#include <string.h>

const struct backend_ops *backend_find(const char *name)
{
	static const struct backend_ops *const all[] = {&backend_reference_ops, &backend_cpu_ops};
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	return NULL;
}
