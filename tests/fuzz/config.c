// SPDX-License-Identifier: Apache-2.0
// Any bytes as a config file: accepted or refused with a message, and what is accepted prints as YAML that reads back.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct config c, again;
	struct base_error e = {0};
	config_defaults(&c);
	if (config_parse((const char *)data, bytes, "fuzz.yaml", &c, &e) < 0) {
		if (!e.message[0])
			abort();
		return 0;
	}
	char *text = NULL;
	size_t size = 0;
	FILE *out = open_memstream(&text, &size);
	if (!out)
		return 0;
	config_print(&c, NULL, out);
	fclose(out);
	config_defaults(&again);
	if (config_parse(text, size, "printed.yaml", &again, &e) < 0) {
		fprintf(stderr, "%s\n%s\n", base_error_text(&e), text);
		abort();
	}
	free(text);
	return 0;
}
