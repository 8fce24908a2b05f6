// SPDX-License-Identifier: Apache-2.0
// config: what a file, the environment and flags may say, and what each mistake is told.
#include "tests/lib/testing.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "daemon/config.h"

#define COORDINATOR "cluster:\n  role: both\n  listen: localhost:1\n  tls_cert: /c\n  tls_key: /k\n  tls_ca: /a\n"

static const struct {
	const char *what;
	const char *yaml;
	const char *message; // all of it
} refused[] = {
	{"unknown key", "memory:\n  wieghts: 1GiB\n",
		"t.yaml:2:3: unknown key \"wieghts\" in \"memory\"; did you mean \"weights\"?"},
	{"unknown section", "memroy:\n  weights: 1GiB\n",
		"t.yaml:1:1: unknown key \"memroy\"; did you mean \"memory\"?"},
	{"key of another section", "store:\n  weights: 1GiB\n",
		"t.yaml:2:3: unknown key \"weights\" in \"store\"; did you mean \"memory.weights\"?"},
	{"nothing like it", "memory:\n  colour: red\n", "t.yaml:2:3: unknown key \"colour\" in \"memory\""},
	{"duplicate key", "memory:\n  kv: 1GiB\n  weights: 1GiB\n  kv: 2GiB\n",
		"t.yaml:4:3: duplicate key \"memory.kv\""},
	{"duplicate section", "memory:\n  kv: 1GiB\nmemory:\n  weights: 1GiB\n",
		"t.yaml:3:1: duplicate key \"memory\""},
	{"size without a unit", "memory:\n  weights: 70\n",
		"t.yaml:2:12: memory.weights: \"70\" has no unit; write 70MiB or GiB, for example"},
	{"time without a unit", "scheduler:\n  window: 250\n",
		"t.yaml:2:11: scheduler.window: \"250\" has no unit; write 250ms or s, for example"},
	{"unit of another kind", "scheduler:\n  window: 250MiB\n",
		"t.yaml:2:11: scheduler.window: \"250MiB\" is not a time: a number and one of ns us ms s m h"},
	{"size too large", "memory:\n  weights: 99999999TiB\n",
		"t.yaml:2:12: memory.weights: 99999999TiB does not fit 64 bits"},
	{"size too small", "memory:\n  weights: 12B\n",
		"t.yaml:2:12: memory.weights: 12B is outside of 1.0 MiB to 1.0 PiB"},
	{"negative", "compute:\n  threads: -1\n",
		"t.yaml:2:12: compute.threads: \"-1\" is not a whole number (or auto)"},
	{"too many stages", "compute:\n  stages: 17\n", "t.yaml:2:11: compute.stages: 17 is outside of 1 to 16"},
	{"number of 30 digits", "compute:\n  threads: 100000000000000000000000000000\n",
		"t.yaml:2:12: compute.threads: 100000000000000000000000000000 is outside of 1 to 1024"},
	{"choice", "offload:\n  engine: io_uring\n",
		"t.yaml:2:11: offload.engine: \"io_uring\" is none of: auto, uring, sync"},
	{"boolean", "listen:\n  insecure_tcp: yes\n",
		"t.yaml:2:17: listen.insecure_tcp: \"yes\" is neither true nor false"},
	{"relative path", "store:\n  path: data\n", "t.yaml:2:9: store.path: \"data\" is not an absolute path"},
	{"no value", "listen:\n  tcp:\n",
		"t.yaml:2:7: listen.tcp: no value; leave the key out for the default, or write \"\" for none"},
	{"list for a value", "listen:\n  tcp: [a, b]\n", "t.yaml:2:8: listen.tcp: expected one value (text)"},
	{"value for a section", "memory: 3GiB\n",
		"t.yaml:1:9: \"memory\" must hold keys, each on its own indented line"},
	{"list at the top", "- memory\n", "t.yaml:1:1: expected sections such as \"listen:\" at the top"},
	{"anchor", "memory: &m\n  kv: 1GiB\n", "t.yaml:1:9: anchors (&m) are not accepted"},
	{"alias", "memory:\n  kv: *m\n", "t.yaml:2:7: aliases (*m) are not accepted"},
	{"tag", "memory:\n  kv: !!str 1GiB\n", "t.yaml:2:7: tags (tag:yaml.org,2002:str) are not accepted"},
	{"two documents", "memory:\n  kv: 1GiB\n---\nstore:\n  path: /x\n",
		"t.yaml:3:1: a second document; one file holds one"},
	{"directive", "%YAML 1.1\n---\nmemory:\n  kv: 1GiB\n",
		"t.yaml:1:1: %YAML and %TAG directives are not accepted"},
	{"not YAML", "memory:\n\tkv: 1GiB\n",
		"t.yaml:2:1: found character that cannot start any token while scanning for the next token"},
	{"control character", "store:\n  path: \"/x\\x07\"\n",
		"t.yaml:2:9: store.path: control character in the value"},
	{"NUL", "store:\n  path: \"/x\\0y\"\n", "t.yaml:2:9: NUL character in the value"},
	{"models is not a list", "models:\n  path: /x\n",
		"t.yaml:2:3: \"models\" must be a list: lines that start with \"- path: /...\""},
	{"model without a path", "models:\n  - name: x\n", "t.yaml:2:5: a model has no path"},
	{"unknown key of a model", "models:\n  - pth: /x\n",
		"t.yaml:2:5: unknown key \"pth\" in \"models\"; did you mean \"path\"?"},
	{"duplicate key of a model", "models:\n  - path: /x\n    path: /y\n",
		"t.yaml:3:5: duplicate key \"path\" in a model"},
	{"chat template", "models:\n  - path: /x\n    chat_template: alpaca\n",
		"t.yaml:3:20: chat_template: \"alpaca\" is none of: chatml, llama2, llama3, mistral"},
	{"TCP beyond loopback", "listen:\n  tcp: 0.0.0.0:50151\n",
		"t.yaml: listen.tcp: 0.0.0.0:50151 can be reached from other hosts and has no TLS; set "
		"listen.tls_cert, tls_key "
		"and tls_ca, or listen.insecure_tcp: true to accept that"},
	{"TCP on a name", "listen:\n  tcp: node1:50151\n",
		"t.yaml: listen.tcp: node1:50151 can be reached from other hosts and has no TLS; set listen.tls_cert, "
		"tls_key "
		"and tls_ca, or listen.insecure_tcp: true to accept that"},
	{"half of TLS", "listen:\n  tcp: 0.0.0.0:50151\n  tls_cert: /c\n  tls_key: /k\n",
		"t.yaml: listen.tls_ca is not set; tls_cert, tls_key and tls_ca go together"},
	{"no port", "listen:\n  tcp: localhost\n",
		"t.yaml: listen.tcp: \"localhost\" is not HOST:PORT, nor [IPV6]:PORT"},
	{"port too large", "listen:\n  tcp: localhost:65536\n",
		"t.yaml: listen.tcp: \"localhost:65536\": \"65536\" is not a port"},
	{"bare IPv6", "listen:\n  tcp: ::1:50151\n",
		"t.yaml: listen.tcp: \"::1:50151\": write an IPv6 address in brackets: [::1]:50151"},
	{"socket that is no path", "listen:\n  grpc: unix:thaw.sock\n",
		"t.yaml: listen.grpc: \"unix:thaw.sock\" is not unix:/absolute/path"},
	{"socket path too long",
		"listen:\n  grpc: "
		"unix:/123456789/123456789/123456789/123456789/123456789/123456789/123456789/123456789/"
		"123456789/123456789/12345678\n",
		"t.yaml: listen.grpc: the socket's path has 109 bytes, at most 99 fit"},
	{"join without a role", "cluster:\n  join: a:1\n",
		"t.yaml: cluster.join: is set, and cluster.role is none: coordinator, worker or both is wanted"},
	{"coordinator that does not listen", "cluster:\n  role: both\n",
		"t.yaml: cluster.listen: a coordinator needs it"},
	{"worker that joins nobody", "cluster:\n  role: worker\n",
		"t.yaml: cluster.join: a worker needs it: where its coordinator listens (cluster.listen there)"},
	{"coordinator that joins", "cluster:\n  role: coordinator\n  listen: 127.0.0.1:1\n  join: a:1\n",
		"t.yaml: cluster.join: is set, and cluster.role is coordinator: only a worker joins another node, or "
		"both "
		"where cluster.state is etcd"},
	{"node without certificates", "cluster:\n  role: worker\n  join: a:1\n",
		"t.yaml: cluster.tls_cert: a node needs tls_cert, tls_key and tls_ca; `thawctl pki` makes them"},
	{"node's name", "cluster:\n  role: worker\n  join: a:1\n  node: A_b\n",
		"t.yaml: cluster.node: \"A_b\" is no name: 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at "
		"both ends"},
	{"rack's name", "cluster:\n  role: worker\n  join: a:1\n  rack: ../r1\n",
		"t.yaml: cluster.rack: \"../r1\" is no name: 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit "
		"at "
		"both ends"},
	{"rack without a role", "cluster:\n  rack: r1\n",
		"t.yaml: cluster.rack: is set, and cluster.role is none: coordinator, worker or both is wanted"},
	{"no port to join", "cluster:\n  role: worker\n  join: a\n",
		"t.yaml: cluster.join: \"a\" is not HOST:PORT, nor [IPV6]:PORT"},
	{"worker with a model",
		"cluster:\n  role: worker\n  join: a:1\n  tls_cert: /c\n  tls_key: /k\n  tls_ca: /a\n"
		"models:\n  - path: /m.gguf\n",
		"t.yaml: models: a worker has none: the coordinator says what it computes"},
	{"sources that are no path", "store:\n  sources: models\n",
		"t.yaml: store.sources: \"models\" is not an absolute path"},
	{"map without a role", "cluster:\n  device_map: explicit\n  map: {layers: a}\n",
		"t.yaml: cluster.map: is set, and cluster.role is none: coordinator, worker or both is wanted"},
	{"map that is a list", "cluster:\n  map: [a, b]\n",
		"t.yaml:2:8: cluster.map must hold modules: \"layers.0-9: NAME\""},
	{"map without a value", "cluster:\n  map:\n",
		"t.yaml:2:7: cluster.map: no value; leave the key out for the default"},
	{"module of a map", "cluster:\n  map:\n    layers.0-3: a\n    blocks.4: b\n",
		"t.yaml:4:5: device_map: module \"blocks.4\" is none of embed, layers.N, layers.N-M, head"},
	{"node of a map", "cluster:\n  map:\n    layers.0-3: A_b\n",
		"t.yaml:3:5: layers.0-3: \"A_b\" is no name: 1 to 63 of a-z, 0-9, '-' and '.', with a letter or "
		"digit at both ends"},
	{"tier of a map", "cluster:\n  map:\n    head: {device: a, tier: tape}\n",
		"t.yaml:3:29: tier \"tape\" is none of auto, device, host, nvme"},
	{"key of an entry", "cluster:\n  map:\n    head: {node: a}\n",
		"t.yaml:3:12: unknown key \"node\"; devices and tier are known"},
	{"module twice", "cluster:\n  map:\n    head: a\n    head: b\n", "t.yaml:4:5: duplicate key \"head\""},
	{"anchor in a map", "cluster:\n  map:\n    head: &x a\n", "t.yaml:3:11: anchors (&x) are not accepted"},
	{"map that is deep", "cluster:\n  map: {head: {devices: [[[a]]]}}\n", "t.yaml:2:27: nested too deeply"},
	{"key after a map", "cluster:\n  map: {head: a}\n  nod: 2\n",
		"t.yaml:3:3: unknown key \"nod\" in \"cluster\"; did you mean \"node\"?"},
	{"explicit without a map", COORDINATOR "  device_map: explicit\n",
		"t.yaml: cluster.map: cluster.device_map is explicit: modules and their nodes are wanted"},
	{"map of another mode", COORDINATOR "  device_map: balanced\n  map: {layers: a}\n",
		"t.yaml: cluster.map: is set, and cluster.device_map is balanced, not explicit"},
	{"pins of another mode", COORDINATOR "  device_map: balanced\n  pins: {head: a}\n",
		"t.yaml: cluster.pins: is set, and cluster.device_map is balanced, not auto"},
	{"pin on two", COORDINATOR "  pins: {layers.3: [a, b]}\n",
		"t.yaml: cluster.pins: layers.3: a pin names one node"},
	{"map with a gap", COORDINATOR "  device_map: explicit\n  map: {layers.0-3: a, layers.6-9: b}\n",
		"t.yaml: cluster.map: device_map: layers 4-5 are on no device"},
	{"map with an overlap", COORDINATOR "  device_map: explicit\n  map: {layers.0-3: a, layers.3-9: b}\n",
		"t.yaml: cluster.map: device_map: layer 3 is on a and on b"},
	{"map of no layers", COORDINATOR "  device_map: explicit\n  map: {head: a}\n",
		"t.yaml: cluster.map: device_map: layers 0-0 are on no device"},
	{"map with the head elsewhere", COORDINATOR "  device_map: explicit\n  map: {layers.0-3: a, head: b}\n",
		"t.yaml: cluster.map: device_map: head is on b, but it goes with layer 3, on a"},
	{"uneven map against tensor",
		"compute:\n  tensor: 2\n" COORDINATOR
		"  device_map: explicit\n  map: {layers.0-3: a, layers.4-5: [b, c]}\n",
		"t.yaml: cluster.map: not all of its layers are on as many nodes, and compute.tensor is 2: leave that "
		"out"},
	{"map against compute.tensor",
		"compute:\n  tensor: 2\n" COORDINATOR "  device_map: explicit\n  map: {layers.0-3: a}\n",
		"t.yaml: cluster.map: its layers are on 1 node each, and compute.tensor is 2"},
	{"reserve without a unit", "cluster:\n  reserve: {a: 4}\n",
		"t.yaml:2:16: a: \"4\" is not a size, 4GiB for example"},
	{"reserve of no name", "cluster:\n  reserve:\n    A_b: 4GiB\n",
		"t.yaml:3:5: cluster.reserve: \"A_b\" is no name: 1 to 63 of a-z, 0-9, '-' and '.', with a letter or "
		"digit at both ends"},
	{"reserve that is a list", "cluster:\n  reserve: [4GiB]\n",
		"t.yaml:2:12: cluster.reserve must hold nodes: \"NAME: 4GiB\""},
	{"batch smaller than sequences", "scheduler:\n  batch_tokens: 8\n  max_sequences: 16\n",
		"t.yaml: scheduler.batch_tokens (8) is less than scheduler.max_sequences (16): a pass could not hold "
		"one token "
		"of each"},
};

static void each_mistake_gets_its_line(void **state)
{
	for (size_t i = 0; i < base_array_size(refused); i++) {
		struct config c, before;
		config_defaults(&c);
		before = c;
		struct base_error e = {0};
		int r = config_parse(refused[i].yaml, strlen(refused[i].yaml), "t.yaml", &c, &e);
		if (r >= 0)
			fail_msg("%s was accepted", refused[i].what);
		assert_string_equal(base_error_text(&e), refused[i].message);
		assert_memory_equal(&c, &before, sizeof c);
	}
}

static const char good[] = "# all sections\n"
			   "listen:\n"
			   "  tcp: \"[::1]:50151\"\n"
			   "  metrics: \"\"\n"
			   "memory:\n"
			   "  weights: 1.5GiB\n"
			   "  kv: auto\n"
			   "scheduler:\n"
			   "  window: 0\n"
			   "offload:\n"
			   "  # verify_every: 4\n"
			   "daemon:\n"
			   "  drain: 5m\n"
			   "models:\n"
			   "  - path: /models/a b.gguf\n"
			   "  - path: /models/two.gguf\n"
			   "    name: second\n"
			   "    chat_template: chatml\n";

static void a_good_file_sets_what_it_says(void **state)
{
	struct config c;
	config_defaults(&c);
	struct base_error e = {0};
	if (config_parse(good, sizeof good - 1, "t.yaml", &c, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	assert_string_equal(c.listen.tcp, "[::1]:50151");
	assert_string_equal(c.listen.metrics, "");
	assert_string_equal(c.listen.grpc, "unix:/run/thaw/thaw.sock");
	assert_int_equal(c.memory.weights_bytes, 3ull << 29);
	assert_int_equal(c.memory.kv_bytes, 0);
	assert_int_equal(c.scheduler.window_ns, 0);
	assert_int_equal(c.scheduler.max_sequences, 8);
	assert_int_equal(c.offload.verify_every, 1);
	assert_int_equal(c.daemon.drain_ns, 300000000000);
	assert_int_equal(c.models_count, 2);
	assert_string_equal(c.models[0].name, "a b");
	assert_string_equal(c.models[1].name, "second");
	assert_string_equal(c.models[1].chat_template, "chatml");
}

static void empty_files_are_the_defaults(void **state)
{
	static const char *const texts[] = {"", "# nothing\n", "---\n", "memory:\nmodels:\n"};
	struct config defaults;
	config_defaults(&defaults);
	for (size_t i = 0; i < base_array_size(texts); i++) {
		struct config c;
		config_defaults(&c);
		struct base_error e = {0};
		if (config_parse(texts[i], strlen(texts[i]), "t.yaml", &c, &e) < 0)
			fail_msg("%s", base_error_text(&e));
		assert_memory_equal(&c, &defaults, sizeof c);
	}
}

static void what_is_printed_reads_back(void **state)
{
	struct config c, again;
	config_defaults(&c);
	assert_int_equal(config_parse(good, sizeof good - 1, "t.yaml", &c, NULL), 0);
	snprintf(c.models[0].name, sizeof c.models[0].name, "%s", "quote \" and \\ and # hash");
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	config_print(&c, NULL, out);
	fclose(out);
	config_defaults(&again);
	struct base_error e = {0};
	if (config_parse(text, bytes, "printed", &again, &e) < 0)
		fail_msg("%s\n%s", base_error_text(&e), text);
	assert_memory_equal(&c, &again, sizeof c);
	free(text);
}

static void maps_are_kept_as_a_line(void **state)
{
	static const char text[] = COORDINATOR "  device_map: explicit\n"
					       "  reserve: {a: 4GiB, b: 1.5MiB}\n"
					       "  map:\n"
					       "    embed: [a, b]\n"
					       "    model.layers.0-3: [a, b]  # Accelerate's name\n"
					       "    \"layers.4-9\": {devices: [c, d], tier: nvme}\n";
	static const char line[] =
		"{embed: [a, b], model.layers.0-3: [a, b], layers.4-9: {devices: [c, d], tier: nvme}}";
	struct config c, again;
	struct base_error e = {0};
	config_defaults(&c);
	if (config_parse(text, sizeof text - 1, "t.yaml", &c, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	assert_string_equal(c.cluster.map, line);
	assert_string_equal(c.cluster.reserve, "{a: 4GiB, b: 1536KiB}");
	char *printed = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&printed, &bytes);
	config_print(&c, NULL, out);
	fclose(out);
	config_defaults(&again);
	if (config_parse(printed, bytes, "printed", &again, &e) < 0)
		fail_msg("%s\n%s", base_error_text(&e), printed);
	free(printed);
	assert_string_equal(again.cluster.map, line);
	struct config_size sizes[CONFIG_SIZES];
	uint32_t count = 0;
	assert_int_equal(config_sizes_parse(again.cluster.reserve, "cluster.reserve", sizes, &count, &e), 0);
	assert_int_equal(count, 2);
	assert_int_equal(sizes[1].bytes, 3 << 19);
	assert_null(config_first_fixed_change(&c, &again));
	snprintf(again.cluster.map, sizeof again.cluster.map, "{layers: a}");
	assert_string_equal(config_first_fixed_change(&c, &again), "cluster.map");

	/* As --set and the environment give it; with the model's layers. */
	uint32_t parts = 0;
	assert_int_equal(config_map_normalise("layers.0-3: a", "cluster.map", again.cluster.map, &e), 0);
	assert_string_equal(again.cluster.map, "{layers.0-3: a}");
	assert_int_equal(config_map_check(again.cluster.map, "cluster.map", 4, &parts, &e), 0);
	assert_int_equal(parts, 1);
	assert_int_equal(config_map_check(again.cluster.map, "cluster.map", 6, &parts, &e), -EINVAL);
	assert_string_equal(e.message, "cluster.map: device_map: layers 4-5 are on no device");
	assert_int_equal(config_map_check(again.cluster.map, "cluster.map", 3, &parts, &e), -EINVAL);
	assert_string_equal(e.message, "cluster.map: device_map: layers.0-3: the model has layers 0 to 2");
	assert_int_equal(config_map_normalise("{layers.0-3: [a", "cluster.map", again.cluster.map, &e), -EINVAL);
	assert_memory_equal(e.message, "cluster.map:", 12);
}

struct place {
	char directory[32], main[64], conf[64];
};

static void put(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static int make_place(void **state)
{
	struct place *p = calloc(1, sizeof *p);
	snprintf(p->directory, sizeof p->directory, "%s", "/tmp/thaw-config-XXXXXX");
	if (!mkdtemp(p->directory))
		return -1;
	snprintf(p->main, sizeof p->main, "%s/thaw.yaml", p->directory);
	snprintf(p->conf, sizeof p->conf, "%s/conf.d", p->directory);
	mkdir(p->conf, 0700);
	*state = p;
	return 0;
}

static int drop_place(void **state)
{
	struct place *p = *state;
	static const char *const names[] = {"10-a.yaml", "20-b.yaml", "ignored.txt"};
	for (size_t i = 0; i < base_array_size(names); i++) {
		char path[160];
		snprintf(path, sizeof path, "%s/%s", p->conf, names[i]);
		unlink(path);
	}
	unlink(p->main);
	rmdir(p->conf);
	rmdir(p->directory);
	free(p);
	return 0;
}

static void later_sources_win_and_origins_tell(void **state)
{
	struct place *p = *state;
	char path[160];
	put(p->main, "memory:\n  weights: 1GiB\n  kv: 1GiB\n  workspace: 1GiB\nmodels:\n  - path: /m/a.gguf\n");
	snprintf(path, sizeof path, "%s/20-b.yaml", p->conf);
	put(path, "memory:\n  kv: 3GiB\nmodels:\n  - path: /other/a.gguf\n  - path: /m/b.gguf\n");
	snprintf(path, sizeof path, "%s/10-a.yaml", p->conf);
	put(path, "memory:\n  kv: 2GiB\n");
	snprintf(path, sizeof path, "%s/ignored.txt", p->conf);
	put(path, "not: yaml: at all");
	setenv("THAW_MEMORY_WORKSPACE", "4GiB", 1);
	setenv("THAW_COMPUTE_KV_TYPE", "q8", 1);
	setenv("THAW_MODELS_2_PATH", "/env/c.gguf", 1);
	setenv("THAW_SOMETHING", "else", 1);
	setenv("THAW_LISTEN_METRICS", "", 1);
	const char *const sets[] = {"compute.threads=3", "memory.workspace=5GiB", "models.2.name=third", NULL};
	struct config_source source = {.main_file = p->main, .conf_dir = p->conf, .sets = sets, .environment = true};
	struct config c;
	struct config_origins *o = NULL;
	struct base_error e = {0};
	if (config_load(&source, &c, &o, &e) < 0)
		fail_msg("%s", base_error_text(&e));
	assert_int_equal(c.memory.weights_bytes, 1ull << 30);
	assert_int_equal(c.memory.kv_bytes, 3ull << 30);
	assert_int_equal(c.memory.workspace_bytes, 5ull << 30);
	assert_string_equal(c.compute.kv_type, "q8");
	assert_string_equal(c.listen.metrics, "");
	assert_int_equal(c.compute.threads, 3);
	assert_int_equal(c.models_count, 3);
	assert_string_equal(c.models[0].path, "/other/a.gguf"); // same name: replaced
	assert_string_equal(c.models[2].path, "/env/c.gguf");
	assert_string_equal(c.models[2].name, "third");

	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	config_print(&c, o, out);
	fclose(out);
	char line[256];
	snprintf(line, sizeof line, "  weights: 1GiB  # %s:2:3\n", p->main);
	assert_non_null(strstr(text, line));
	snprintf(line, sizeof line, "  kv: 3GiB  # %s/20-b.yaml:2:3\n", p->conf);
	assert_non_null(strstr(text, line));
	assert_non_null(strstr(text, "  kv_type: q8  # environment THAW_COMPUTE_KV_TYPE\n"));
	assert_non_null(strstr(text, "  threads: 3  # --set\n"));
	assert_non_null(strstr(text, "  stages: 1  # default\n"));
	free(text);
	config_origins_free(o);
	unsetenv("THAW_MEMORY_WORKSPACE");
	unsetenv("THAW_COMPUTE_KV_TYPE");
	unsetenv("THAW_MODELS_2_PATH");
	unsetenv("THAW_LISTEN_METRICS");
}

static void check_load(const struct config_source *source, const char *message)
{
	struct config c;
	struct base_error e = {0};
	assert_true(config_load(source, &c, NULL, &e) < 0);
	assert_string_equal(base_error_text(&e), message);
}

static void other_sources_are_as_strict(void **state)
{
	struct place *p = *state;
	put(p->main, "listen:\n  tcp: 10.0.0.1:1\n");
	char message[256];
	snprintf(message, sizeof message,
		"%s:2:3: listen.tcp: 10.0.0.1:1 can be reached from other hosts and has no TLS; set listen.tls_cert, "
		"tls_key "
		"and tls_ca, or listen.insecure_tcp: true to accept that",
		p->main);
	check_load(&(struct config_source){.main_file = p->main, .conf_dir = p->conf}, message);
	put(p->main, "");
	check_load(&(struct config_source){.main_file = "/nowhere/thaw.yaml"},
		"/nowhere/thaw.yaml: No such file or directory");
	const char *sets[] = {"memory.wieghts=1GiB", NULL};
	struct config_source source = {.main_file = p->main, .conf_dir = p->conf, .sets = sets, .environment = true};
	check_load(&source, "--set: unknown key \"memory.wieghts\"; did you mean \"memory.weights\"?");
	sets[0] = "memory.weights";
	check_load(&source, "--set memory.weights: expected KEY=VALUE");
	sets[0] = "models.1.path=/x";
	check_load(&source, "--set: models.1: there are 0 models before it, at most 16 fit");
	sets[0] = "models.0.path=rel.gguf";
	check_load(&source, "--set: models.0.path: \"rel.gguf\" is not an absolute path");
	sets[0] = "models.0.name=x";
	check_load(&source, "--set: models.0: a model has no path");
	sets[0] = NULL;
	setenv("THAW_MEMORY_KV", "12", 1);
	check_load(
		&source, "environment THAW_MEMORY_KV: memory.kv: \"12\" has no unit; write 12MiB or GiB, for example");
	unsetenv("THAW_MEMORY_KV");
	setenv("THAW_MEMORY_KW", "12MiB", 1);
	check_load(&source, "environment THAW_MEMORY_KW: unknown key \"memory.kw\"; did you mean \"memory.kv\"?");
	unsetenv("THAW_MEMORY_KW");
}

static void two_models_of_one_name_are_refused(void **state)
{
	const char *const sets[] = {"models.0.path=/a/x.gguf", "models.1.path=/b/x.gguf", NULL};
	check_load(&(struct config_source){.main_file = "/dev/null", .sets = sets},
		"two models are named \"x\"; give one another name");
}

static void json_has_integers_and_origins(void **state)
{
	struct config c;
	config_defaults(&c);
	assert_int_equal(config_parse(good, sizeof good - 1, "t.yaml", &c, NULL), 0);
	char *text = NULL;
	size_t bytes = 0;
	FILE *out = open_memstream(&text, &bytes);
	config_print_json(&c, NULL, out);
	fclose(out);
	struct json_object *root = json_tokener_parse(text), *config, *memory, *weights, *version;
	assert_true(json_object_object_get_ex(root, "schema_version", &version));
	assert_true(json_object_object_get_ex(root, "config", &config));
	assert_true(json_object_object_get_ex(config, "memory", &memory));
	assert_true(json_object_object_get_ex(memory, "weights_bytes", &weights));
	assert_int_equal(json_object_get_type(weights), json_type_int);
	assert_int_equal(json_object_get_uint64(weights), 3ull << 29);
	json_object_put(root);
	free(text);
}

static void only_reloadable_keys_may_change(void **state)
{
	struct config a, b;
	config_defaults(&a);
	b = a;
	b.daemon.drain_ns = 1;
	snprintf(b.daemon.log_level, sizeof b.daemon.log_level, "debug");
	assert_null(config_first_fixed_change(&a, &b));
	b.memory.kv_bytes = 1;
	assert_string_equal(config_first_fixed_change(&a, &b), "memory.kv");
	b = a;
	snprintf(b.models[0].path, sizeof b.models[0].path, "/x");
	b.models_count = 1;
	assert_string_equal(config_first_fixed_change(&a, &b), "models");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_mistake_gets_its_line),
		cmocka_unit_test(a_good_file_sets_what_it_says),
		cmocka_unit_test(empty_files_are_the_defaults),
		cmocka_unit_test(what_is_printed_reads_back),
		cmocka_unit_test(maps_are_kept_as_a_line),
		cmocka_unit_test_setup_teardown(later_sources_win_and_origins_tell, make_place, drop_place),
		cmocka_unit_test_setup_teardown(other_sources_are_as_strict, make_place, drop_place),
		cmocka_unit_test(two_models_of_one_name_are_refused),
		cmocka_unit_test(json_has_integers_and_origins),
		cmocka_unit_test(only_reloadable_keys_may_change),
	};
	return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
