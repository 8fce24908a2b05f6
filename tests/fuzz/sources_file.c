// SPDX-License-Identifier: Apache-2.0
// Any bytes as STORE/sources.json: what it says of files is taken or left, only a file that is as it says is opened, and
// another one can be put to what was taken.
#include <stdint.h>
#include <string.h>

#include "base/cleanup.h"
#include "shard/pack/pack.h"
#include "shard/pack/sources.h"
#include "tests/fuzz/folder.h"

#define MAX_BYTES (16u << 10) // that, printed with all spaces, is still read back
#define ROOM 8u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool what)
{
	if (!what)
		abort();
}

static void open_all(uint8_t (*digests)[16], uint32_t count)
{
	char path[64];
	for (uint32_t i = 0; i < count; i++) {
		_cleanup_close_ int fd = -1;
		if (pack_open_copy(folder_path, digests[i], path, sizeof path, &fd) == 0)
			require(fd >= 0 && strlen(path) < sizeof path);
		for (uint32_t k = 0; k < i; k++)
			require(memcmp(digests[k], digests[i], sizeof digests[i]) != 0);
	}
}

static void put_another(const char *model)
{
	static const uint8_t digest[16] = "another digest.";
	uint8_t digests[ROOM][16], found[16];
	char path[64];
	struct stat st;
	struct base_error e = {0};
	_cleanup_close_ int store = open(folder_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd = -1;
	require(store >= 0 && stat(model, &st) == 0);
	require(pack_sources_put(store, model, &st, digest, &e) == 0);
	require(pack_sources_find(store, model, &st, found) && memcmp(found, digest, sizeof digest) == 0);
	require(pack_list_copies(folder_path, digests, ROOM) > 0 && memcmp(digests[0], digest, sizeof digest) == 0);
	require(pack_open_copy(folder_path, digest, path, sizeof path, &fd) == 0 && strcmp(path, model) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	uint8_t digests[ROOM][16];
	if (bytes > MAX_BYTES)
		return 0;
	folder_put(0, "sources.json", data, bytes);
	uint32_t n = pack_list_copies(folder_path, digests, ROOM);
	require(n <= ROOM);
	open_all(digests, n);
	if (n > 0)
		put_another(folder_put(1, "model.gguf", "GGUF", 4));
	return 0;
}
