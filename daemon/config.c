// SPDX-License-Identifier: Apache-2.0
#include "daemon/config.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "daemon/cluster/identity.h"
#include "daemon/config_table.h"

#define MAIN_FILE "/etc/thaw/thaw.yaml"
#define CONF_DIR "/etc/thaw/conf.d"
#define MAX_CONF_FILES 64u
#define MAX_FILE_BYTES (1u << 20)
#define ENVIRONMENT_PREFIX "THAW_"

extern char **environ;

void config_defaults(struct config *ret_config)
{
	memset(ret_config, 0, sizeof *ret_config);
	for (size_t i = 0; i < config_keys_count; i++)
		config_key_assign(&config_keys[i], config_keys[i].value, ret_config, NULL);
}

int config_model_finish(struct config_model *m, struct base_error *e)
{
	if (!m->path[0])
		return base_error_set(e, -EINVAL, "a model has no path");
	if (m->name[0])
		return 0;
	const char *file = strrchr(m->path, '/');
	file = file ? file + 1 : m->path;
	size_t length = strlen(file);
	if (length > 5 && strcmp(file + length - 5, ".gguf") == 0)
		length -= 5;
	if (length == 0)
		return base_error_set(e, -EINVAL, "models.path: \"%.200s\" names no file", m->path);
	if (length >= sizeof m->name)
		return base_error_set(e, -EINVAL, "the file's name is too long for a model's name; set models.name");
	memcpy(m->name, file, length);
	m->name[length] = '\0';
	return 0;
}

int config_model_put(struct config *c, struct config_origins *o, const struct config_model *m, const char *where,
	struct base_error *e)
{
	uint32_t i = 0;
	while (i < c->models_count && strcmp(c->models[i].name, m->name) != 0)
		i++;
	if (i == CONFIG_MAX_MODELS)
		return base_error_set(e, -ENOSPC, "more than %u models", CONFIG_MAX_MODELS);
	c->models[i] = *m;
	if (o)
		snprintf(o->model[i], CONFIG_ORIGIN_BYTES, "%s", where);
	if (i == c->models_count)
		c->models_count++;
	return 0;
}

/* Addresses */

static int check_host_port(const char *key, const char *text, bool *ret_loopback, struct base_error *e)
{
	struct base_address a;
	int r = base_address_parse(text, &a, e);
	if (r < 0) {
		base_error_prefix(e, "%s", key);
		return r;
	}
	*ret_loopback = base_address_is_loopback(&a);
	return 0;
}

/* Several, with commas between. ret_loopback: all of them are. */
static int check_host_ports(const char *key, const char *list, bool *ret_loopback, struct base_error *e)
{
	char one[CONFIG_TEXT_BYTES];
	bool loopback;
	*ret_loopback = true;
	for (const char *at = list;; at++) {
		size_t n = strcspn(at, ",");
		snprintf(one, sizeof one, "%.*s", (int)n, at);
		int r = check_host_port(key, one, &loopback, e);
		if (r < 0)
			return r;
		*ret_loopback = *ret_loopback && loopback;
		at += n;
		if (!*at)
			return 0;
	}
}

static int check_unix(const char *key, const char *text, struct base_error *e)
{
	static const char scheme[] = "unix:";
	if (strncmp(text, scheme, strlen(scheme)) != 0 || text[strlen(scheme)] != '/')
		return base_error_set(e, -EINVAL, "%s: \"%.200s\" is not unix:/absolute/path", key, text);
	// The server keeps room for a suffix: what is good here must be good there.
	size_t length = strlen(text + strlen(scheme)), most = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 9;
	if (length > most)
		return base_error_set(
			e, -EINVAL, "%s: the socket's path has %zu bytes, at most %zu fit", key, length, most);
	return 0;
}

static int check_listen(const struct config *c, struct base_error *e)
{
	bool loopback = true;
	int r = check_unix("listen.grpc", c->listen.grpc, e);
	if (r == 0 && c->listen.metrics[0])
		r = check_host_port("listen.metrics", c->listen.metrics, &loopback, e);
	if (r < 0)
		return r;
	bool any = c->listen.tls_cert[0] || c->listen.tls_key[0] || c->listen.tls_ca[0];
	bool all = c->listen.tls_cert[0] && c->listen.tls_key[0] && c->listen.tls_ca[0];
	if (any && !all)
		return base_error_set(e, -EINVAL, "listen.%s is not set; tls_cert, tls_key and tls_ca go together",
			!c->listen.tls_cert[0]  ? "tls_cert"
			: !c->listen.tls_key[0] ? "tls_key"
						: "tls_ca");
	if (!c->listen.tcp[0])
		return any ? base_error_set(
				     e, -EINVAL, "listen.tls_cert is set, but listen.tcp is not: nothing would use it")
			   : 0;
	r = check_host_port("listen.tcp", c->listen.tcp, &loopback, e);
	if (r < 0)
		return r;
	if (!loopback && !all && !c->listen.insecure_tcp)
		return base_error_set(e, -EINVAL,
			"listen.tcp: %.200s can be reached from other hosts and has no TLS; set listen.tls_cert, "
			"tls_key and "
			"tls_ca, or listen.insecure_tcp: true to accept that",
			c->listen.tcp);
	return 0;
}

static int check_models(const struct config *c, struct base_error *e)
{
	for (uint32_t i = 0; i < c->models_count; i++)
		for (uint32_t j = 0; j < i; j++)
			if (strcmp(c->models[i].name, c->models[j].name) == 0)
				return base_error_set(e, -EINVAL, "two models are named \"%s\"; give one another name",
					c->models[i].name);
	return 0;
}

/* Who can write there is who coordinates: etcd beyond this host is asked for its certificate, and has ours. */
static int check_etcd(const struct config *c, struct base_error *e)
{
	bool any = c->cluster.etcd_tls_cert[0] || c->cluster.etcd_tls_key[0] || c->cluster.etcd_tls_ca[0];
	bool all = c->cluster.etcd_tls_cert[0] && c->cluster.etcd_tls_key[0] && c->cluster.etcd_tls_ca[0];
	bool etcd = strcmp(c->cluster.state, "etcd") == 0;
	if (!etcd && c->cluster.etcd[0])
		return base_error_set(e, -EINVAL, "cluster.etcd: is set, and cluster.state is %s", c->cluster.state);
	if (!etcd)
		return 0;
	if (!c->cluster.etcd[0])
		return base_error_set(e, -EINVAL, "cluster.etcd: cluster.state is etcd: its endpoints are wanted");
	if (any && !all)
		return base_error_set(
			e, -EINVAL, "cluster.etcd_tls_cert: etcd_tls_cert, etcd_tls_key and etcd_tls_ca go together");
	bool loopback;
	int r = check_host_ports("cluster.etcd", c->cluster.etcd, &loopback, e);
	if (r == 0 && !loopback && !all)
		return base_error_set(e, -EINVAL,
			"cluster.etcd: %.200s is not all on this host: set etcd_tls_cert, etcd_tls_key and etcd_tls_ca",
			c->cluster.etcd);
	return r;
}

/* What shows without a model and its nodes. */
static int check_map(const struct config *c, struct base_error *e)
{
	bool is_explicit = strcmp(c->cluster.device_map, "explicit") == 0;
	uint32_t parts = 1;
	if (is_explicit && !c->cluster.map[0])
		return base_error_set(
			e, -EINVAL, "cluster.map: cluster.device_map is explicit: modules and their nodes are wanted");
	if (c->cluster.map[0] && !is_explicit)
		return base_error_set(e, -EINVAL, "cluster.map: is set, and cluster.device_map is %s, not explicit",
			c->cluster.device_map);
	if (c->cluster.pins[0] && strcmp(c->cluster.device_map, "auto") != 0)
		return base_error_set(e, -EINVAL, "cluster.pins: is set, and cluster.device_map is %s, not auto",
			c->cluster.device_map);
	int r = is_explicit ? config_map_check(c->cluster.map, "cluster.map", 0, &parts, e) : 0;
	if (r == 0 && c->cluster.pins[0])
		r = config_map_check_pins(c->cluster.pins, "cluster.pins", e);
	if (r == 0 && is_explicit && c->compute.tensor && !parts)
		return base_error_set(e, -EINVAL,
			"cluster.map: not all of its layers are on as many nodes, and compute.tensor is %" PRIu32
			": leave that out",
			c->compute.tensor);
	if (r == 0 && is_explicit && c->compute.tensor && c->compute.tensor != parts)
		return base_error_set(e, -EINVAL,
			"cluster.map: its layers are on %" PRIu32 " node%s each, and "
			"compute.tensor is %" PRIu32,
			parts, parts == 1 ? "" : "s", c->compute.tensor);
	return r;
}

static int check_cluster(const struct config *c, struct base_error *e)
{
	enum cluster_role role = CLUSTER_ROLE_NONE;
	cluster_role_find(c->cluster.role, &role);
	if (c->store.sources[0] && c->store.sources[0] != '/')
		return base_error_set(e, -EINVAL, "store.sources: \"%s\" is not an absolute path", c->store.sources);
	if (role == CLUSTER_ROLE_NONE) {
		const char *set = c->cluster.join[0]      ? "cluster.join"
				  : c->cluster.rack[0]    ? "cluster.rack"
				  : c->cluster.listen[0]  ? "cluster.listen"
				  : c->cluster.map[0]     ? "cluster.map"
				  : c->cluster.pins[0]    ? "cluster.pins"
				  : c->cluster.reserve[0] ? "cluster.reserve"
							  : NULL;
		return set ? base_error_set(e, -EINVAL,
				     "%s: is set, and cluster.role is none: coordinator, worker or both is wanted", set)
			   : 0;
	}
	int r = cluster_name_check("cluster.name", c->cluster.name, e);
	if (r == 0 && c->cluster.node[0])
		r = cluster_name_check("cluster.node", c->cluster.node, e);
	if (r == 0 && c->cluster.rack[0])
		r = cluster_name_check("cluster.rack", c->cluster.rack, e);
	bool loopback;
	if (r == 0 && c->cluster.listen[0])
		r = check_host_port("cluster.listen", c->cluster.listen, &loopback, e);
	if (r == 0 && c->cluster.join[0])
		r = check_host_ports("cluster.join", c->cluster.join, &loopback, e);
	if (r == 0 && cluster_role_coordinates(role))
		r = check_etcd(c, e);
	if (r == 0)
		r = check_map(c, e);
	if (r < 0)
		return r;
	if (cluster_role_coordinates(role) && !c->cluster.listen[0])
		return base_error_set(e, -EINVAL, "cluster.listen: a coordinator needs it");
	bool others = role == CLUSTER_ROLE_BOTH && strcmp(c->cluster.state, "etcd") == 0; // may coordinate instead
	if (role == CLUSTER_ROLE_WORKER && !c->cluster.join[0])
		return base_error_set(e, -EINVAL,
			"cluster.join: a worker needs it: where its coordinator listens (cluster.listen there)");
	if (role != CLUSTER_ROLE_WORKER && c->cluster.join[0] && !others)
		return base_error_set(e, -EINVAL,
			"cluster.join: is set, and cluster.role is %s: only a worker joins another node, or both where "
			"cluster.state is etcd",
			c->cluster.role);
	if (!c->cluster.tls_cert[0] || !c->cluster.tls_key[0] || !c->cluster.tls_ca[0])
		return base_error_set(e, -EINVAL,
			"cluster.tls_cert: a node needs tls_cert, tls_key and tls_ca; `thawctl pki` makes them");
	if (role == CLUSTER_ROLE_WORKER && c->models_count)
		return base_error_set(e, -EINVAL, "models: a worker has none: the coordinator says what it computes");
	if (c->compute.stages > 1)
		return base_error_set(e, -EINVAL, "compute.stages: a cluster's plan chooses the stages: leave it at 1");
	return 0;
}

int config_validate(const struct config *c, struct base_error *e)
{
	int r = check_listen(c, e);
	if (r == 0)
		r = check_cluster(c, e);
	if (r == 0)
		r = check_models(c, e);
	if (r < 0)
		return r;
	if (c->scheduler.batch_tokens < c->scheduler.max_sequences)
		return base_error_set(e, -EINVAL,
			"scheduler.batch_tokens (%" PRIu32 ") is less than scheduler.max_sequences (%" PRIu32
			"): a pass could not hold one token of each",
			c->scheduler.batch_tokens, c->scheduler.max_sequences);
	if (c->offload.slots && c->offload.depth > c->offload.slots)
		return base_error_set(e, -EINVAL,
			"offload.depth (%" PRIu32 ") is more than offload.slots (%" PRIu32 ")", c->offload.depth,
			c->offload.slots);
	return 0;
}

int config_check_files(const struct config *c, struct base_error *e)
{
	struct stat st;
	for (uint32_t i = 0; i < c->models_count; i++)
		if (stat(c->models[i].path, &st) == 0 && S_ISDIR(st.st_mode))
			return base_error_set(e, -EISDIR, "models: path %s is a directory: the GGUF file is wanted",
				c->models[i].path);
	return 0;
}

int config_parse(const char *text, size_t bytes, const char *name, struct config *in_out_config, struct base_error *e)
{
	struct config c = *in_out_config;
	int r = config_yaml_apply(text, bytes, name, &c, NULL, e);
	if (r == 0) {
		r = config_validate(&c, e);
		if (r < 0)
			base_error_prefix(e, "%s", name);
	}
	if (r == 0)
		*in_out_config = c;
	return r;
}

/* Sources */

static int apply_file(const char *path, struct config *c, struct config_origins *o, struct base_error *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	_cleanup_free_ char *text = malloc(MAX_FILE_BYTES + 1);
	if (!text)
		return base_error_set(e, -ENOMEM, "%s: out of memory", path);
	size_t at = 0;
	for (;;) {
		ssize_t n = read(fd, text + at, MAX_FILE_BYTES + 1 - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
		if (n == 0)
			break;
		at += (size_t)n;
		if (at > MAX_FILE_BYTES)
			return base_error_set(e, -EFBIG, "%s: larger than %u bytes", path, MAX_FILE_BYTES);
	}
	return config_yaml_apply(text, at, path, c, o, e);
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int apply_directory(
	const char *directory, bool required, struct config *c, struct config_origins *o, struct base_error *e)
{
	DIR *d = opendir(directory);
	if (!d)
		return errno == ENOENT && !required
			       ? 0
			       : base_error_set(e, -errno, "%s: %s", directory, strerrordesc_np(errno));
	char *names[MAX_CONF_FILES];
	size_t count = 0;
	int r = 0;
	for (struct dirent *entry; r == 0 && (entry = readdir(d));) {
		size_t length = strlen(entry->d_name);
		if (entry->d_name[0] == '.' || length <= 5 || strcmp(entry->d_name + length - 5, ".yaml") != 0)
			continue;
		if (count == MAX_CONF_FILES)
			r = base_error_set(e, -E2BIG, "%s: more than %u files", directory, MAX_CONF_FILES);
		else if (asprintf(&names[count], "%s/%s", directory, entry->d_name) < 0)
			r = base_error_set(e, -ENOMEM, "%s: out of memory", directory);
		else
			count++;
	}
	closedir(d);
	qsort(names, count, sizeof names[0], by_name);
	for (size_t i = 0; i < count; i++) {
		if (r == 0)
			r = apply_file(names[i], c, o, e);
		free(names[i]);
	}
	return r;
}

// models.N.KEY: an entry that is there, or the next one.
static int set_model(const char *path, const char *value, const char *where, struct config *c, struct config_origins *o,
	struct base_error *e)
{
	const char *digits = path + strlen("models.");
	size_t n = strspn(digits, "0123456789");
	unsigned long index = strtoul(digits, NULL, 10);
	if (n == 0 || n > 4 || digits[n] != '.')
		return base_error_set(e, -EINVAL, "\"%.80s\" is not models.NUMBER.KEY", path);
	if (index > c->models_count || index >= CONFIG_MAX_MODELS)
		return base_error_set(e, -EINVAL, "models.%lu: there are %" PRIu32 " models before it, at most %u fit",
			index, c->models_count, CONFIG_MAX_MODELS);
	const struct config_key *k = config_model_key_find(digits + n + 1);
	if (!k) {
		char hint[96];
		config_key_suggest(digits + n + 1, "models", hint, sizeof hint);
		return base_error_set(e, -EINVAL, "unknown key \"%.80s\"%s", path, hint);
	}
	struct config_model *m = &c->models[index];
	if (index == c->models_count)
		memset(m, 0, sizeof *m);
	struct base_error inner = {0};
	int r = config_key_assign(k, value, m, &inner);
	if (r < 0)
		return base_error_set(e, r, "models.%lu.%.400s", index, inner.message); // which begins with the key
	if (index == c->models_count)
		c->models_count++;
	snprintf(o->model[index], CONFIG_ORIGIN_BYTES, "%s", where);
	return 0;
}

static int set_one(const char *path, const char *value, const char *where, struct config *c, struct config_origins *o,
	struct base_error *e)
{
	if (strncmp(path, "models.", strlen("models.")) == 0)
		return set_model(path, value, where, c, o, e);
	const struct config_key *k = config_key_find(path);
	if (!k) {
		char hint[96];
		config_key_suggest(path, NULL, hint, sizeof hint);
		return base_error_set(e, -EINVAL, "unknown key \"%.80s\"%s", path, hint);
	}
	int r = config_key_assign(k, value, c, e);
	if (r == 0)
		snprintf(o->key[k - config_keys], CONFIG_ORIGIN_BYTES, "%s", where);
	return r;
}

// THAW_MEMORY_WEIGHTS: no key has an underscore before its dot, so the first one is the dot.
static void environment_to_path(const char *name, size_t bytes, char *out, size_t room)
{
	size_t at = 0;
	bool dotted = false;
	for (size_t i = 0; i < bytes && at + 1 < room; i++) {
		char ch = name[i];
		if (ch >= 'A' && ch <= 'Z')
			ch = (char)(ch - 'A' + 'a');
		if (ch == '_' && !dotted) {
			ch = '.';
			dotted = true;
		}
		out[at++] = ch;
	}
	out[at] = '\0';
	// THAW_MODELS_0_CHAT_TEMPLATE: here the second one is, too.
	if (strncmp(out, "models.", strlen("models.")) == 0) {
		char *second = strchr(out, '_');
		if (second)
			*second = '.';
	}
}

static int apply_environment(struct config *c, struct config_origins *o, struct base_error *e)
{
	// Sorted, so that models.0.name comes before models.1.path whatever the environment's order.
	char *found[CONFIG_MAX_KEYS + CONFIG_MAX_MODELS * CONFIG_MODEL_KEYS];
	size_t count = 0;
	for (char **v = environ; *v; v++) {
		if (strncmp(*v, ENVIRONMENT_PREFIX, strlen(ENVIRONMENT_PREFIX)) != 0)
			continue;
		char path[64];
		const char *equals = strchr(*v, '=');
		const char *name = *v + strlen(ENVIRONMENT_PREFIX);
		if (!equals || equals < name)
			continue;
		environment_to_path(name, (size_t)(equals - name), path, sizeof path);
		const char *dot = strchr(path, '.');
		// THAW_ALONE and THAW_OTHERTOOL_X are not ours; THAW_MEMORY_WIEGHTS is, and is wrong.
		if (!dot || !config_section_exists(path, (size_t)(dot - path)))
			continue;
		if (count == base_array_size(found))
			return base_error_set(e, -E2BIG, "environment: too many " ENVIRONMENT_PREFIX " variables");
		found[count++] = *v;
	}
	qsort(found, count, sizeof found[0], by_name);
	for (size_t i = 0; i < count; i++) {
		char path[64], where[96];
		const char *equals = strchr(found[i], '=');
		const char *name = found[i] + strlen(ENVIRONMENT_PREFIX);
		environment_to_path(name, (size_t)(equals - name), path, sizeof path);
		snprintf(where, sizeof where, "environment %.*s", (int)(equals - found[i]), found[i]);
		int r = set_one(path, equals + 1, where, c, o, e);
		if (r < 0) {
			base_error_prefix(e, "%s", where);
			return r;
		}
	}
	return 0;
}

static int apply_sets(const char *const *sets, struct config *c, struct config_origins *o, struct base_error *e)
{
	for (; sets && *sets; sets++) {
		const char *equals = strchr(*sets, '=');
		if (!equals || equals == *sets || equals - *sets >= 80)
			return base_error_set(e, -EINVAL, "--set %.80s: expected KEY=VALUE", *sets);
		char path[80];
		snprintf(path, sizeof path, "%.*s", (int)(equals - *sets), *sets);
		int r = set_one(path, equals + 1, "--set", c, o, e);
		if (r < 0) {
			base_error_prefix(e, "--set");
			return r;
		}
	}
	return 0;
}

// Models that came in pieces (environment, --set) get their names, and errors their place, when all is known.
static int finish_models(struct config *c, const struct config_origins *o, struct base_error *e)
{
	for (uint32_t i = 0; i < c->models_count; i++) {
		int r = config_model_finish(&c->models[i], e);
		if (r < 0) {
			base_error_prefix(e, "%s: models.%" PRIu32, o->model[i], i);
			return r;
		}
	}
	return 0;
}

// What validate says begins with the key: put where it was set in front.
static void prefix_origin(const struct config_origins *o, struct base_error *e)
{
	for (size_t i = 0; e && i < config_keys_count; i++) {
		size_t n = strlen(config_keys[i].path);
		if (strncmp(e->message, config_keys[i].path, n) == 0 && strchr(": ", e->message[n]) && o->key[i][0]) {
			base_error_prefix(e, "%s", o->key[i]);
			return;
		}
	}
}

int config_load(const struct config_source *source, struct config *ret_config, struct config_origins **ret_origins,
	struct base_error *e)
{
	_cleanup_free_ struct config *c = calloc(1, sizeof *c);
	_cleanup_free_ struct config_origins *o = calloc(1, sizeof *o);
	if (!c || !o)
		return base_error_set(e, -ENOMEM, "out of memory");
	config_defaults(c);
	int r = 0;
	if (source->main_file)
		r = apply_file(source->main_file, c, o, e);
	else if (access(MAIN_FILE, F_OK) == 0)
		r = apply_file(MAIN_FILE, c, o, e);
	if (r == 0)
		r = apply_directory(source->conf_dir ? source->conf_dir : CONF_DIR, source->conf_dir != NULL, c, o, e);
	if (r == 0 && source->environment)
		r = apply_environment(c, o, e);
	if (r == 0)
		r = apply_sets(source->sets, c, o, e);
	if (r == 0)
		r = finish_models(c, o, e);
	if (r < 0)
		return r;
	r = config_validate(c, e);
	if (r < 0) {
		prefix_origin(o, e);
		return r;
	}
	*ret_config = *c;
	if (ret_origins)
		*ret_origins = base_steal(o);
	return 0;
}

void config_origins_free(struct config_origins *o)
{
	free(o);
}

const char *config_first_fixed_change(const struct config *from, const struct config *to)
{
	for (size_t i = 0; i < config_keys_count; i++)
		if (!config_keys[i].reloadable && !config_key_equal(&config_keys[i], from, to))
			return config_keys[i].path;
	if (from->models_count != to->models_count)
		return "models";
	for (uint32_t i = 0; i < from->models_count; i++)
		for (size_t k = 0; k < CONFIG_MODEL_KEYS; k++)
			if (!config_key_equal(&config_model_keys[k], &from->models[i], &to->models[i]))
				return "models";
	return NULL;
}
