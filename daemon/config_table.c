// SPDX-License-Identifier: Apache-2.0
#include "daemon/config_table.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/nearest.h"
#include "base/units.h"

#define KIB 1024ull
#define MIB (1024 * KIB)
#define TIB (1024 * 1024 * MIB)
#define MS 1000000ull
#define SECOND (1000 * MS)
#define HOUR (3600 * SECOND)

#define AT(member) .offset = offsetof(struct config, member), .room = sizeof(((struct config *)NULL)->member)
#define MODEL_AT(member)                                                                                               \
	.offset = offsetof(struct config_model, member), .room = sizeof(((struct config_model *)NULL)->member)

static const char *const backends[] = {"cpu", "reference", NULL};
static const char *const kv_types[] = {"f16", "q8", NULL};
static const char *const engines[] = {"auto", "uring", "sync", NULL};
static const char *const device_maps[] = {"auto", "balanced", "sequential", "explicit", NULL};
static const char *const states[] = {"file", "etcd", NULL};
static const char *const roles[] = {"none", "coordinator", "worker", "both", NULL};
static const char *const log_levels[] = {"error", "warning", "notice", "info", "debug", NULL};
static const char *const templates[] = {"", "chatml", "llama2", "llama3", "mistral", NULL};

// clang-format off
const struct config_key config_keys[] = {
	{.path = "listen.grpc", .type = CONFIG_TYPE_TEXT, AT(listen.grpc), .value = "unix:/run/thaw/thaw.sock",
		.help = "Unix socket of the gRPC server, for local clients and thawctl: unix:/absolute/path."},
	{.path = "listen.tcp", .type = CONFIG_TYPE_TEXT, AT(listen.tcp), .value = "",
		.help = "HOST:PORT to serve gRPC on TCP too. Beyond loopback it needs the three tls_ keys."},
	{.path = "listen.tls_cert", .type = CONFIG_TYPE_TEXT, AT(listen.tls_cert), .value = "",
		.help = "PEM file with the server's certificate chain."},
	{.path = "listen.tls_key", .type = CONFIG_TYPE_TEXT, AT(listen.tls_key), .value = "",
		.help = "PEM file with its private key."},
	{.path = "listen.tls_ca", .type = CONFIG_TYPE_TEXT, AT(listen.tls_ca), .value = "",
		.help = "PEM file with the authorities that client certificates must come from."},
	{.path = "listen.insecure_tcp", .type = CONFIG_TYPE_BOOL, AT(listen.insecure_tcp), .value = "false",
		.help = "Accept plaintext, unauthenticated TCP beyond loopback."},
	{.path = "listen.metrics", .type = CONFIG_TYPE_TEXT, AT(listen.metrics), .value = "127.0.0.1:9151",
		.help = "HOST:PORT of /metrics, /healthz and /readyz; \"\" for none."},

	{.path = "store.path", .type = CONFIG_TYPE_PATH, AT(store.path), .value = "/var/lib/thaw",
		.help = "Directory of the packed shards, on the NVMe drive to stream from; made if only it is missing."},
	{.path = "store.sources", .type = CONFIG_TYPE_TEXT, AT(store.sources), .value = "",
		.help = "Directory where a worker looks for a model's file by its name, when the coordinator's path is not here. "
			"Without a copy it pulls its layers from a node that has one."},
	{.path = "store.replicas", .type = CONFIG_TYPE_COUNT, AT(store.replicas), .value = "1", .min = 1, .max = 16,
		.help = "Coordinator: 2 has nodes keep in their stores what the plan after the loss of any one of a model's nodes "
			"would give them, so that the loss needs no transfer; 3 of any two at once, and so on, as far as these "
			"are 136 plans at most. 1: nodes keep what they compute."},

	{.path = "cluster.role", .type = CONFIG_TYPE_CHOICE, AT(cluster.role), .value = "none", .choices = roles,
		.help = "What this node does in a cluster: coordinator, worker (computes), both, or none for one machine."},
	{.path = "cluster.name", .type = CONFIG_TYPE_TEXT, AT(cluster.name), .value = "thaw",
		.help = "The cluster's name, as in its certificates."},
	{.path = "cluster.node", .type = CONFIG_TYPE_TEXT, AT(cluster.node), .value = "",
		.help = "This node's name, as in its certificate. Default: the host's name."},
	{.path = "cluster.rack", .type = CONFIG_TYPE_TEXT, AT(cluster.rack), .value = "",
		.help = "Where this node stands: nodes of one rack share layers over the links that were measured inside racks."},
	{.path = "cluster.listen", .type = CONFIG_TYPE_TEXT, AT(cluster.listen), .value = "",
		.help = "HOST:PORT for other nodes, over mutual TLS. Coordinator: where they join. Worker: where nodes without a model pull "
			"from its copy; without it they pull from others."},
	{.path = "cluster.join", .type = CONFIG_TYPE_TEXT, AT(cluster.join), .value = "",
		.help = "Worker: HOST:PORT of the coordinator; of all of them, with commas between, where some stand by."},
	{.path = "cluster.address", .type = CONFIG_TYPE_TEXT, AT(cluster.address), .value = "",
		.help = "IP address or host name of this node for the data of other nodes. Default: the one it joins with."},
	{.path = "cluster.tls_cert", .type = CONFIG_TYPE_TEXT, AT(cluster.tls_cert), .value = "",
		.help = "PEM file with this node's certificate; thawctl pki makes one."},
	{.path = "cluster.tls_key", .type = CONFIG_TYPE_TEXT, AT(cluster.tls_key), .value = "",
		.help = "PEM file with its private key."},
	{.path = "cluster.tls_ca", .type = CONFIG_TYPE_TEXT, AT(cluster.tls_ca), .value = "",
		.help = "PEM file with the authority that the nodes' certificates come from."},
	{.path = "cluster.device_map", .type = CONFIG_TYPE_CHOICE, AT(cluster.device_map), .value = "auto",
		.choices = device_maps, .help = "Coordinator: how layers go to nodes. auto: what is fastest, which may leave nodes out."},
	{.path = "cluster.map", .type = CONFIG_TYPE_MAP, AT(cluster.map), .value = "",
		.help = "Coordinator, device_map explicit: modules to nodes, as in thaw-fleet.yaml(5): {layers.0-9: a, layers.10-29: b}."},
	{.path = "cluster.pins", .type = CONFIG_TYPE_MAP, AT(cluster.pins), .value = "",
		.help = "Coordinator, device_map auto: modules that must be on a node, written in the same way."},
	{.path = "cluster.reserve", .type = CONFIG_TYPE_SIZES, AT(cluster.reserve), .value = "",
		.help = "Coordinator: memory that plans leave free on a node: {node-a: 4GiB}."},
	{.path = "cluster.nodes", .type = CONFIG_TYPE_COUNT, AT(cluster.nodes), .value = "1", .min = 1, .max = 64,
		.help = "Coordinator: nodes that compute which have to be there before a model is loaded."},
	{.path = "cluster.state", .type = CONFIG_TYPE_CHOICE, AT(cluster.state), .value = "file", .choices = states,
		.help = "Coordinator: where members, plan and epoch are kept. file: in the store. etcd: with others that stand by."},
	{.path = "cluster.etcd", .type = CONFIG_TYPE_TEXT, AT(cluster.etcd), .value = "",
		.help = "etcd's endpoints, HOST:PORT with commas between. Beyond loopback they need the etcd_tls_ keys."},
	{.path = "cluster.etcd_tls_cert", .type = CONFIG_TYPE_TEXT, AT(cluster.etcd_tls_cert), .value = "",
		.help = "PEM file with the certificate that etcd lets this node in with."},
	{.path = "cluster.etcd_tls_key", .type = CONFIG_TYPE_TEXT, AT(cluster.etcd_tls_key), .value = "",
		.help = "PEM file with its private key."},
	{.path = "cluster.etcd_tls_ca", .type = CONFIG_TYPE_TEXT, AT(cluster.etcd_tls_ca), .value = "",
		.help = "PEM file with the authority that etcd's certificates come from."},
	{.path = "cluster.etcd_lease", .json = "etcd_lease_ns", .type = CONFIG_TYPE_DURATION, AT(cluster.etcd_lease_ns),
		.value = "2s", .min = 2 * SECOND, .max = 60 * SECOND,
		.help = "How long after the end of a coordinator one that stands by takes over."},

	{.path = "memory.weights", .json = "weights_bytes", .type = CONFIG_TYPE_BYTES, AT(memory.weights_bytes),
		.value = "auto", .automatic = "auto", .min = 1 * MIB, .max = 1024 * TIB,
		.help = "For weights that stay in memory and the buffers of the stream. auto: what the others leave."},
	{.path = "memory.kv", .json = "kv_bytes", .type = CONFIG_TYPE_BYTES, AT(memory.kv_bytes),
		.value = "auto", .automatic = "auto", .min = 64 * KIB, .max = 1024 * TIB,
		.help = "For the KV cache. auto: enough for scheduler.max_sequences of the context, if memory allows."},
	{.path = "memory.workspace", .json = "workspace_bytes", .type = CONFIG_TYPE_BYTES, AT(memory.workspace_bytes),
		.value = "auto", .automatic = "auto", .min = 64 * KIB, .max = 1024 * TIB,
		.help = "For activations, logits, sampling and the processes. auto: what scheduler.batch_tokens needs."},

	{.path = "compute.backend", .type = CONFIG_TYPE_CHOICE, AT(compute.backend), .value = "cpu", .choices = backends,
		.help = "cpu: kernels for this machine's instruction sets. reference: plain C, float32, slow."},
	{.path = "compute.threads", .type = CONFIG_TYPE_COUNT, AT(compute.threads), .value = "auto", .automatic = "auto",
		.min = 1, .max = 1024, .help = "Compute threads of a rank. auto: one for each CPU that may be used."},
	{.path = "compute.kv_type", .type = CONFIG_TYPE_CHOICE, AT(compute.kv_type), .value = "f16", .choices = kv_types,
		.help = "How keys and values are kept: f16, or q8 in about half of the memory."},
	{.path = "compute.stages", .type = CONFIG_TYPE_COUNT, AT(compute.stages), .value = "1", .min = 1, .max = 16,
		.help = "Pipeline stages on this host. More than 1 is for tests."},
	{.path = "compute.tensor", .type = CONFIG_TYPE_COUNT, AT(compute.tensor), .value = "auto", .automatic = "auto", .min = 1, .max = 16,
		.help = "Ranks that share the layers of each stage. auto: in a cluster what is fastest, else 1. On one host more are for tests."},

	{.path = "offload.engine", .type = CONFIG_TYPE_CHOICE, AT(offload.engine), .value = "auto", .choices = engines,
		.help = "How cold weights are read. auto: io_uring, or threads where it is refused."},
	{.path = "offload.verify_every", .type = CONFIG_TYPE_COUNT, AT(offload.verify_every), .value = "1", 
		.max = 1000000, .help = "Check the checksum of every n-th read of a cold extent; 1: of each, 0: of none."},
	{.path = "offload.slots", .type = CONFIG_TYPE_COUNT, AT(offload.slots), .value = "auto", .automatic = "auto",
		.min = 2, .max = 4096, .help = "Buffers of the stream. auto: chosen from the extents' size."},
	{.path = "offload.depth", .type = CONFIG_TYPE_COUNT, AT(offload.depth), .value = "auto", .automatic = "auto",
		.min = 1, .max = 1024, .help = "Reads in flight. auto: chosen."},

	{.path = "scheduler.max_sequences", .type = CONFIG_TYPE_COUNT, AT(scheduler.max_sequences), .value = "8", .min = 1,
		.max = 256, .help = "Sequences that share a pass."},
	{.path = "scheduler.window", .json = "window_ns", .type = CONFIG_TYPE_DURATION, AT(scheduler.window_ns),
		.value = "20ms", .max = 10 * SECOND,
		.help = "How long a pass over cold weights waits for company. Hot ones never wait."},
	{.path = "scheduler.max_waiting", .type = CONFIG_TYPE_COUNT, AT(scheduler.max_waiting), .value = "256", .min = 1,
		.max = 65536, .help = "Requests in the queue; more are refused with RESOURCE_EXHAUSTED."},
	{.path = "scheduler.max_waiting_memory", .json = "max_waiting_memory_bytes", .type = CONFIG_TYPE_BYTES,
		AT(scheduler.max_waiting_memory_bytes), .value = "64MiB", .min = 64 * KIB, .max = 1 * TIB,
		.help = "Memory of the requests in the queue of a model, beside the budgets; more are refused likewise."},
	{.path = "scheduler.batch_tokens", .type = CONFIG_TYPE_COUNT, AT(scheduler.batch_tokens), .value = "256", .min = 8,
		.max = 4096, .help = "Token positions of a pass: decode and prefill chunks together."},
	{.path = "scheduler.context_tokens", .type = CONFIG_TYPE_COUNT, AT(scheduler.context_tokens), .value = "auto",
		.automatic = "auto", .min = 16, .max = 16777216, .help = "Longest sequence. auto: what the model was made for."},
	{.path = "scheduler.max_new_tokens", .type = CONFIG_TYPE_COUNT, AT(scheduler.max_new_tokens), .value = "4096",
		.min = 1, .max = 16777216, .help = "Most tokens that one request can generate."},
	{.path = "scheduler.stuck", .json = "stuck_ns", .type = CONFIG_TYPE_DURATION, AT(scheduler.stuck_ns),
		.value = "120s", .min = 1 * SECOND, .max = 24 * HOUR,
		.help = "A rank without a result for that long is started again. More where the plan predicts slow passes."},

	{.path = "daemon.drain", .json = "drain_ns", .type = CONFIG_TYPE_DURATION, AT(daemon.drain_ns), .value = "30s",
		.max = 24 * HOUR, .reloadable = true,
		.help = "How long SIGTERM lets running requests finish. Keep systemd's TimeoutStopSec 15 s longer."},
	{.path = "daemon.log_level", .type = CONFIG_TYPE_CHOICE, AT(daemon.log_level), .value = "info",
		.choices = log_levels, .reloadable = true, .help = "Lines above it are dropped."},
};
const size_t config_keys_count = base_array_size(config_keys);

const struct config_key config_model_keys[CONFIG_MODEL_KEYS] = {
	{.path = "path", .type = CONFIG_TYPE_PATH, MODEL_AT(path), .value = "", .help = "The GGUF file."},
	{.path = "name", .type = CONFIG_TYPE_TEXT, MODEL_AT(name), .value = "",
		.help = "As clients call it. Default: the file's name without .gguf."},
	{.path = "chat_template", .type = CONFIG_TYPE_CHOICE, MODEL_AT(chat_template), .value = "", .choices = templates,
		.help = "Chat template to use instead of the one that the file names."},
};
// clang-format on
static_assert(base_array_size(config_keys) <= CONFIG_MAX_KEYS);

const char *config_type_name(enum config_type t)
{
	switch (t) {
	case CONFIG_TYPE_TEXT:
		return "text";
	case CONFIG_TYPE_PATH:
		return "absolute path";
	case CONFIG_TYPE_CHOICE:
		return "choice";
	case CONFIG_TYPE_BOOL:
		return "true or false";
	case CONFIG_TYPE_COUNT:
		return "number";
	case CONFIG_TYPE_BYTES:
		return "size";
	case CONFIG_TYPE_DURATION:
		return "time";
	case CONFIG_TYPE_MAP:
		return "map";
	case CONFIG_TYPE_SIZES:
		return "map of sizes";
	}
	return "";
}

const struct config_key *config_key_find(const char *path)
{
	for (size_t i = 0; i < config_keys_count; i++)
		if (strcmp(config_keys[i].path, path) == 0)
			return &config_keys[i];
	return NULL;
}

const struct config_key *config_model_key_find(const char *name)
{
	for (size_t i = 0; i < CONFIG_MODEL_KEYS; i++)
		if (strcmp(config_model_keys[i].path, name) == 0)
			return &config_model_keys[i];
	return NULL;
}

bool config_section_exists(const char *name, size_t bytes)
{
	for (size_t i = 0; i < config_keys_count; i++)
		if (strncmp(config_keys[i].path, name, bytes) == 0 && config_keys[i].path[bytes] == '.')
			return true;
	return bytes == strlen("models") && memcmp(name, "models", bytes) == 0;
}

void config_key_suggest(const char *word, const char *section, char *hint, size_t room)
{
	struct base_nearest n;
	base_nearest_init(&n, word);
	hint[0] = '\0';
	if (section && strcmp(section, "models") == 0) {
		for (size_t i = 0; i < CONFIG_MODEL_KEYS; i++)
			base_nearest_consider(&n, config_model_keys[i].path, config_model_keys[i].path);
	} else if (section && !section[0]) {
		for (size_t i = 0; i < config_keys_count; i++) {
			char name[BASE_NEAREST_BYTES];
			snprintf(
				name, sizeof name, "%.*s", (int)strcspn(config_keys[i].path, "."), config_keys[i].path);
			base_nearest_consider(&n, name, name);
		}
		base_nearest_consider(&n, "models", "models");
	} else {
		size_t s = section ? strlen(section) : 0;
		for (size_t i = 0; section && i < config_keys_count; i++)
			if (strncmp(config_keys[i].path, section, s) == 0 && config_keys[i].path[s] == '.')
				base_nearest_consider(&n, config_keys[i].path + s + 1, config_keys[i].path + s + 1);
		for (size_t i = 0; !section && i < config_keys_count; i++)
			base_nearest_consider(&n, config_keys[i].path, config_keys[i].path);
	}
	// The right word in the wrong place.
	for (size_t i = 0; !n.best[0] && i < config_keys_count; i++) {
		const char *leaf = strchr(config_keys[i].path, '.') + 1;
		if (strcmp(leaf, word) == 0)
			snprintf(n.best, sizeof n.best, "%s", config_keys[i].path);
	}
	if (n.best[0])
		snprintf(hint, room, "; did you mean \"%s\"?", n.best);
}

static int assign_text(const struct config_key *k, const char *text, char *out, struct base_error *e)
{
	size_t length = strlen(text);
	if (length >= k->room)
		return base_error_set(
			e, -EINVAL, "%s: text of %zu bytes, at most %zu fit", k->path, length, k->room - 1);
	for (size_t i = 0; i < length; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return base_error_set(e, -EINVAL, "%s: control character in the value", k->path);
	if (k->type == CONFIG_TYPE_PATH && text[0] != '/')
		return base_error_set(e, -EINVAL, "%s: \"%.200s\" is not an absolute path", k->path, text);
	memcpy(out, text, length + 1);
	return 0;
}

static int assign_choice(const struct config_key *k, const char *text, char *out, struct base_error *e)
{
	char list[128] = "";
	size_t at = 0;
	for (const char *const *c = k->choices; *c; c++) {
		if (strcmp(*c, text) == 0) {
			snprintf(out, k->room, "%s", text);
			return 0;
		}
		if (**c && at < sizeof list)
			at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", at ? ", " : "", *c);
	}
	return base_error_set(e, -EINVAL, "%s: \"%.64s\" is none of: %s", k->path, text, list);
}

static int assign_count(const struct config_key *k, const char *text, uint32_t *out, struct base_error *e)
{
	if (!text[0] || text[strspn(text, "0123456789")])
		return base_error_set(e, -EINVAL, "%s: \"%.64s\" is not a whole number%s", k->path, text,
			k->automatic ? " (or auto)" : "");
	errno = 0;
	unsigned long long v = strtoull(text, NULL, 10);
	bool zero = k->automatic && v == 0 && errno == 0;
	if (errno == ERANGE || ((v < k->min || v > k->max) && !zero))
		return base_error_set(
			e, -ERANGE, "%s: %.64s is outside of %" PRIu64 " to %" PRIu64, k->path, text, k->min, k->max);
	*out = (uint32_t)v;
	return 0;
}

static int assign_measure(const struct config_key *k, const char *text, uint64_t *out, struct base_error *e)
{
	bool bytes = k->type == CONFIG_TYPE_BYTES;
	uint64_t v;
	int r = bytes ? base_units_parse_bytes(text, &v) : base_units_parse_duration(text, &v);
	if (r == -EINVAL && text[0] && !text[strspn(text, "0123456789.")])
		return base_error_set(e, -EINVAL, "%s: \"%.64s\" has no unit; write %.64s%s", k->path, text, text,
			bytes ? "MiB or GiB, for example" : "ms or s, for example");
	if (r == -EINVAL)
		return base_error_set(e, -EINVAL, "%s: \"%.64s\" is not a %s: a number and one of %s", k->path, text,
			config_type_name(k->type), bytes ? "B KiB MiB GiB TiB KB MB GB TB" : "ns us ms s m h");
	if (r < 0)
		return base_error_set(e, r, "%s: %.64s does not fit 64 bits", k->path, text);
	if ((v < k->min || v > k->max) && !(k->automatic && v == 0)) {
		char low[BASE_UNITS_TEXT_BYTES], high[BASE_UNITS_TEXT_BYTES];
		if (bytes)
			base_units_format_bytes(k->min, low), base_units_format_bytes(k->max, high);
		else
			base_units_format_duration(k->min, low), base_units_format_duration(k->max, high);
		return base_error_set(e, -ERANGE, "%s: %.64s is outside of %s to %s", k->path, text, low, high);
	}
	*out = v;
	return 0;
}

int config_key_assign(const struct config_key *k, const char *text, void *base, struct base_error *e)
{
	void *at = (char *)base + k->offset;
	if (k->automatic && strcmp(text, k->automatic) == 0)
		text = "0";
	switch (k->type) {
	case CONFIG_TYPE_TEXT:
	case CONFIG_TYPE_PATH:
		return assign_text(k, text, at, e);
	case CONFIG_TYPE_CHOICE:
		return assign_choice(k, text, at, e);
	case CONFIG_TYPE_BOOL:
		if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
			return base_error_set(e, -EINVAL, "%s: \"%.64s\" is neither true nor false", k->path, text);
		*(bool *)at = text[0] == 't';
		return 0;
	case CONFIG_TYPE_COUNT:
		return assign_count(k, text, at, e);
	case CONFIG_TYPE_BYTES:
	case CONFIG_TYPE_DURATION:
		return assign_measure(k, text, at, e);
	case CONFIG_TYPE_MAP:
		return config_map_normalise(text, k->path, at, e);
	case CONFIG_TYPE_SIZES:
		return config_sizes_normalise(text, k->path, at, e);
	}
	return base_error_set(e, -EINVAL, "%s: no such type", k->path);
}

// The largest unit that divides the value: what is printed reads back to the same number.
static void format_measure(uint64_t v, bool bytes, char *out, size_t room)
{
	static const struct {
		const char *name;
		uint64_t factor;
	} times[] = {{"h", HOUR}, {"m", 60 * SECOND}, {"s", SECOND}, {"ms", MS}, {"us", 1000}, {"ns", 1}};
	char size[BASE_UNITS_TEXT_BYTES];
	if (bytes && v) {
		snprintf(out, room, "%s", base_units_exact_bytes(v, size));
		return;
	}
	for (size_t i = 0; !bytes && i < base_array_size(times); i++) {
		if (v % times[i].factor == 0 && v >= times[i].factor) {
			snprintf(out, room, "%" PRIu64 "%s", v / times[i].factor, times[i].name);
			return;
		}
	}
	snprintf(out, room, "0");
}

static void quote(const char *text, char *out, size_t room)
{
	size_t at = 0;
	out[at++] = '"';
	for (; *text && at + 3 < room; text++) {
		if (*text == '"' || *text == '\\')
			out[at++] = '\\';
		out[at++] = *text;
	}
	out[at++] = '"';
	out[at] = '\0';
}

void config_key_format(const struct config_key *k, const void *base, char *out, size_t room)
{
	const void *at = (const char *)base + k->offset;
	uint64_t number = 0;
	if (k->type == CONFIG_TYPE_COUNT)
		number = *(const uint32_t *)at;
	else if (k->type == CONFIG_TYPE_BYTES || k->type == CONFIG_TYPE_DURATION)
		number = *(const uint64_t *)at;
	switch (k->type) {
	case CONFIG_TYPE_TEXT:
	case CONFIG_TYPE_PATH:
		quote(at, out, room);
		return;
	case CONFIG_TYPE_CHOICE:
		snprintf(out, room, "%s", *(const char *)at ? (const char *)at : "\"\"");
		return;
	case CONFIG_TYPE_BOOL:
		snprintf(out, room, "%s", *(const bool *)at ? "true" : "false");
		return;
	case CONFIG_TYPE_COUNT:
	case CONFIG_TYPE_BYTES:
	case CONFIG_TYPE_DURATION:
		if (k->automatic && number == 0)
			snprintf(out, room, "%s", k->automatic);
		else if (k->type == CONFIG_TYPE_COUNT)
			snprintf(out, room, "%" PRIu64, number);
		else
			format_measure(number, k->type == CONFIG_TYPE_BYTES, out, room);
		return;
	case CONFIG_TYPE_MAP:
	case CONFIG_TYPE_SIZES:
		snprintf(out, room, "%s", *(const char *)at ? (const char *)at : "{}");
		return;
	}
}

bool config_key_equal(const struct config_key *k, const void *a, const void *b)
{
	const char *x = (const char *)a + k->offset, *y = (const char *)b + k->offset;
	switch (k->type) {
	case CONFIG_TYPE_TEXT:
	case CONFIG_TYPE_PATH:
	case CONFIG_TYPE_CHOICE:
	case CONFIG_TYPE_MAP:
	case CONFIG_TYPE_SIZES:
		return strcmp(x, y) == 0;
	case CONFIG_TYPE_BOOL:
		return *(const bool *)x == *(const bool *)y;
	case CONFIG_TYPE_COUNT:
		return *(const uint32_t *)x == *(const uint32_t *)y;
	case CONFIG_TYPE_BYTES:
	case CONFIG_TYPE_DURATION:
		return *(const uint64_t *)x == *(const uint64_t *)y;
	}
	return false;
}
