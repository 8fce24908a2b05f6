// SPDX-License-Identifier: Apache-2.0
/* Links between nodes: which pairs are measured, one after the other, and what came of it. Of few nodes all pairs are,
 * of many those with the first one and with two neighbours each, and of a rack each with the next one; the rest is
 * taken to be like the slowest of these of its class: within a rack, or not.
 * What was measured is kept in a file with its date and digests of both machines, for a day. A pair that cannot be
 * measured stays at what is assumed, with an event. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "daemon/cluster/coordinator_internal.h"

#define FILE_NAME "links.json"
#define FILE_VERSION 1
#define FILE_MOST_BYTES (1u << 20)
#define PROBE_NS (8 * BASE_NS_PER_SECOND) // for both to connect, measure and say so
#define WAIT_NS (3 * BASE_NS_PER_SECOND)
#define LOOK_NS BASE_NS_PER_SECOND
#define STALE_NS (24 * 3600 * BASE_NS_PER_SECOND)
#define TRIES 3u
#define AGAIN_NS (30 * BASE_NS_PER_SECOND)
#define ALL_PAIRS 8u // nodes, of which every pair is measured
#define NEIGHBOURS 2u

struct link { // between two nodes, a before b in the alphabet
	struct cluster_link_info info;
	uint64_t machine[2];
	uint32_t tries; // that failed
	uint64_t again_ns; // then
};

struct cluster_links {
	char directory[CLUSTER_PATH_BYTES];
	struct link list[CLUSTER_MAX_LINKS];
	uint32_t count;
	bool dirty, pending; // pending: a pair is there that was never tried
	uint64_t look_ns, joined_ns; // when to look for pairs next; when a node joined last

	uint64_t number; // of the probe that is under way; 0: none
	struct cluster_node *node[2];
	uint64_t incarnation[2], until_ns;
	uint8_t secret[CLUSTER_SECRET_BYTES];
};

/* ---- the list ---- */

/* Of what a link depends on at one end. */
static uint64_t digest(const struct cluster_facts *f)
{
	char text[512];
	int n = snprintf(text, sizeof text, "%s|%s|%u|%u|%" PRIu64 "|%s", f->host, f->cpu_model, f->cpus, f->nics,
		f->memory_bytes, f->address);
	return XXH3_64bits(text, n > 0 && (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

static struct link *find(struct cluster_links *l, const char *a, const char *b)
{
	bool swap = strcmp(a, b) > 0;
	for (uint32_t i = 0; i < l->count; i++) {
		if (strcmp(l->list[i].info.node[swap], a) == 0 && strcmp(l->list[i].info.node[!swap], b) == 0)
			return &l->list[i];
	}
	return NULL;
}

static struct link *oldest(struct cluster_links *l)
{
	struct link *x = &l->list[0];
	for (uint32_t i = 1; i < l->count; i++)
		x = l->list[i].info.measured_wall_ns < x->info.measured_wall_ns ? &l->list[i] : x;
	return x;
}

/* A place for a pair; that of the oldest when there is none. */
static struct link *add(struct cluster_links *l, const struct cluster_node *a, const struct cluster_node *b)
{
	bool swap = strcmp(a->name, b->name) > 0;
	const struct cluster_node *const n[2] = {swap ? b : a, swap ? a : b};
	struct link *x = find(l, a->name, b->name);
	if (!x && l->count < CLUSTER_MAX_LINKS)
		x = &l->list[l->count++];
	else if (!x)
		x = oldest(l);
	*x = (struct link){0};
	for (uint32_t i = 0; i < 2; i++) {
		memcpy(x->info.node[i], n[i]->name, sizeof x->info.node[i]);
		x->machine[i] = digest(n[i]->facts);
	}
	return x;
}

/* As the machines are now. */
static bool holds(const struct link *x, const struct cluster_node *a, const struct cluster_node *b)
{
	bool swap = strcmp(a->name, b->name) > 0;
	return x->machine[swap] == digest(a->facts) && x->machine[!swap] == digest(b->facts);
}

static bool is_measured(const struct link *x, const struct cluster_node *a, const struct cluster_node *b)
{
	return x && x->info.bytes_per_s > 0 && holds(x, a, b);
}

/* ---- which pairs ---- */

static uint32_t ready_nodes(struct cluster_coordinator *c, struct cluster_node *ret_nodes[static CLUSTER_MAX_NODES])
{
	uint32_t n = 0;
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		if (c->nodes[i].state == CLUSTER_NODE_READY && c->nodes[i].session)
			ret_nodes[n++] = &c->nodes[i];
	}
	return n;
}

static bool is_wanted(uint32_t nodes, uint32_t a, uint32_t b)
{
	uint32_t apart = b - a; // a < b
	return nodes <= ALL_PAIRS || a == 0 || apart <= NEIGHBOURS || nodes - apart <= NEIGHBOURS;
}

static enum fleet_link_class class_of(const struct cluster_node *a, const struct cluster_node *b)
{
	bool same = a->facts && b->facts && a->facts->rack[0] && strcmp(a->facts->rack, b->facts->rack) == 0;
	return same ? FLEET_LINK_RACK : FLEET_LINK_CLUSTER;
}

/* No rack is taken to be like another of which more was measured. */
static bool is_next_of_rack(struct cluster_node *const *nodes, uint32_t a, uint32_t b)
{
	if (class_of(nodes[a], nodes[b]) != FLEET_LINK_RACK)
		return false;
	for (uint32_t i = a + 1; i < b; i++) {
		if (class_of(nodes[a], nodes[i]) == FLEET_LINK_RACK)
			return false;
	}
	return true;
}

static bool is_due(const struct link *x, const struct cluster_node *a, const struct cluster_node *b, uint64_t now)
{
	if (!x || !holds(x, a, b))
		return true;
	if (x->info.bytes_per_s > 0) {
		uint64_t wall = base_clock_wall_ns();
		return x->info.measured_wall_ns > wall || wall - x->info.measured_wall_ns > STALE_NS;
	}
	return x->tries < TRIES && now >= x->again_ns;
}

/* ---- one probe ---- */

static void send_probe(struct cluster_links *l, uint32_t me, uint16_t port)
{
	struct cluster_probe p = {.probe = l->number, .me = me};
	size_t bytes = 0;
	for (uint32_t i = 0; i < 2; i++)
		memcpy(p.members[i].host, l->node[i]->facts->address, sizeof p.members[i].host);
	p.members[0].port = port;
	memcpy(p.secret, l->secret, sizeof p.secret);
	uint8_t *data = cluster_pack_probe(&p, &bytes);
	cluster_session_post(l->node[me]->session, data, bytes);
}

static bool is_there(const struct cluster_links *l, uint32_t i)
{
	const struct cluster_node *n = l->node[i];
	return n->state == CLUSTER_NODE_READY && n->session && n->facts->incarnation == l->incarnation[i];
}

static void start(struct cluster_coordinator *c, struct cluster_node *a, struct cluster_node *b, uint64_t now)
{
	struct cluster_links *l = c->links;
	if (getrandom(l->secret, sizeof l->secret, 0) != (ssize_t)sizeof l->secret)
		return;
	l->number = ++c->last_assignment;
	l->node[0] = a;
	l->node[1] = b;
	l->incarnation[0] = a->facts->incarnation;
	l->incarnation[1] = b->facts->incarnation;
	l->until_ns = now + PROBE_NS;
	send_probe(l, 0, 0);
}

static void failed(struct cluster_coordinator *c, uint64_t now, const char *why)
{
	struct cluster_links *l = c->links;
	struct link *x = find(l, l->node[0]->name, l->node[1]->name);
	uint32_t tries = x && holds(x, l->node[0], l->node[1]) ? x->tries : 0;
	bool had = x && is_measured(x, l->node[0], l->node[1]);
	if (!had)
		x = add(l, l->node[0], l->node[1]);
	x->tries = tries + 1;
	x->again_ns = now + (AGAIN_NS << tries);
	x->info.measured_wall_ns = had ? base_clock_wall_ns() : 0; // once more in a day
	snprintf(x->info.error, sizeof x->info.error, "%.250s", why);
	cluster_coordinator_emit(c, "warning", "link_not_measured", "",
		"between nodes %s and %s: %.200s; planned with %s%s", l->node[0]->name, l->node[1]->name, why,
		had ? "what was measured before" : "the slowest other link, or 50 us and 1 GB/s",
		x->tries < TRIES ? ", tried again" : "");
	l->number = l->look_ns = 0;
}

void cluster_links_ready(struct cluster_coordinator *c, const struct cluster_node *n, uint64_t probe, uint16_t port)
{
	struct cluster_links *l = c->links;
	if (l && l->number && l->number == probe && n == l->node[0] && is_there(l, 1))
		send_probe(l, 1, port);
}

void cluster_links_done(struct cluster_coordinator *c, const struct cluster_node *n, const struct cluster_probe_done *d)
{
	struct cluster_links *l = c->links;
	uint64_t now = base_clock_now_ns();
	if (!l || !l->number || l->number != d->probe || !is_there(l, 0) || !is_there(l, 1))
		return;
	if (d->error[0]) {
		char why[CLUSTER_TEXT_BYTES + CLUSTER_NAME_BYTES + 4];
		snprintf(why, sizeof why, "%s: %s", n->name, d->error);
		failed(c, now, why);
		return;
	}
	struct link *x = add(l, l->node[0], l->node[1]);
	x->info.latency_ns = d->latency_ns;
	x->info.bytes_per_s = d->bytes_per_s;
	x->info.measured_wall_ns = base_clock_wall_ns();
	cluster_coordinator_emit(c, "notice", "link_measured", "", "between nodes %s and %s: %.1f us, %.3f GB/s",
		x->info.node[0], x->info.node[1], d->latency_ns / 1e3, d->bytes_per_s / 1e9);
	l->dirty = true;
	l->number = l->look_ns = 0;
	pthread_cond_broadcast(&c->changed);
}

void cluster_links_joined(struct cluster_coordinator *c, const struct cluster_node *n)
{
	struct cluster_links *l = c->links;
	if (!l)
		return;
	l->look_ns = 0;
	l->joined_ns = base_clock_now_ns();
	l->pending = true; // until somebody has looked
	for (uint32_t i = 0; i < l->count; i++) { // whatever kept it from being measured may be gone
		struct link *x = &l->list[i];
		if (strcmp(x->info.node[0], n->name) == 0 || strcmp(x->info.node[1], n->name) == 0)
			x->tries = 0;
	}
}

static void look(struct cluster_coordinator *c, uint64_t now)
{
	struct cluster_links *l = c->links;
	struct cluster_node *nodes[CLUSTER_MAX_NODES];
	uint32_t n = ready_nodes(c, nodes);
	l->look_ns = now + LOOK_NS;
	l->pending = false;
	for (uint32_t a = 0; a < n; a++) {
		for (uint32_t b = a + 1; b < n; b++) {
			bool wanted = is_wanted(n, a, b) || is_next_of_rack(nodes, a, b);
			const struct link *x = wanted ? find(l, nodes[a]->name, nodes[b]->name) : NULL;
			if (!wanted || !is_due(x, nodes[a], nodes[b], now))
				continue;
			l->pending = l->pending || !x || !holds(x, nodes[a], nodes[b]);
			if (!l->number)
				start(c, nodes[a], nodes[b], now);
		}
	}
}

/* ---- the file ---- */

static struct json_object *print_link(const struct link *x)
{
	char text[32] = "";
	time_t seconds = (time_t)(x->info.measured_wall_ns / BASE_NS_PER_SECOND);
	struct tm tm;
	struct json_object *o = json_object_new_object(), *nodes = json_object_new_array(),
			   *machines = json_object_new_array();
	for (uint32_t i = 0; i < 2; i++) {
		snprintf(text, sizeof text, "%016" PRIx64, x->machine[i]);
		json_object_array_add(nodes, json_object_new_string(x->info.node[i]));
		json_object_array_add(machines, json_object_new_string(text));
	}
	if (gmtime_r(&seconds, &tm))
		strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm);
	json_object_object_add(o, "nodes", nodes);
	json_object_object_add(o, "machines", machines);
	json_object_object_add(o, "date", json_object_new_string(text));
	json_object_object_add(o, "measured_wall_ns", json_object_new_uint64(x->info.measured_wall_ns));
	json_object_object_add(o, "latency_ns", json_object_new_double(x->info.latency_ns));
	json_object_object_add(o, "bytes_per_s", json_object_new_double(x->info.bytes_per_s));
	return o;
}

static char *print(const struct cluster_links *l)
{
	struct json_object *o = json_object_new_object(), *list = json_object_new_array();
	json_object_object_add(o, "version", json_object_new_int(FILE_VERSION));
	json_object_object_add(o, "links", list);
	for (uint32_t i = 0; i < l->count; i++) {
		if (l->list[i].info.bytes_per_s > 0)
			json_object_array_add(list, print_link(&l->list[i]));
	}
	const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
	char *copy = text ? strdup(text) : NULL;
	json_object_put(o);
	return copy;
}

static const char *get_text(struct json_object *o, const char *key, size_t i)
{
	struct json_object *list = json_object_object_get(o, key);
	struct json_object *v = json_object_is_type(list, json_type_array) ? json_object_array_get_idx(list, i) : NULL;
	return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : "";
}

static double get_real(struct json_object *o, const char *key)
{
	struct json_object *v = json_object_object_get(o, key);
	double x = json_object_is_type(v, json_type_double) ? json_object_get_double(v) : 0;
	return isfinite(x) && x > 0 && x < 1e18 ? x : 0;
}

static bool parse_link(struct json_object *o, struct link *ret)
{
	struct link x = {0};
	if (!json_object_is_type(o, json_type_object))
		return false;
	for (uint32_t i = 0; i < 2; i++) {
		const char *name = get_text(o, "nodes", i), *machine = get_text(o, "machines", i);
		if (cluster_name_check("node", name, NULL) < 0 || strlen(machine) != 16)
			return false;
		snprintf(x.info.node[i], sizeof x.info.node[i], "%s", name);
		x.machine[i] = strtoull(machine, NULL, 16);
	}
	x.info.latency_ns = get_real(o, "latency_ns");
	x.info.bytes_per_s = get_real(o, "bytes_per_s");
	x.info.measured_wall_ns = json_object_get_uint64(json_object_object_get(o, "measured_wall_ns"));
	*ret = x;
	return x.info.latency_ns > 0 && x.info.bytes_per_s > 0 && strcmp(x.info.node[0], x.info.node[1]) < 0;
}

/* What cannot be read is measured again. */
static void read_file(struct cluster_links *l)
{
	char path[sizeof l->directory + sizeof FILE_NAME + 1];
	snprintf(path, sizeof path, "%s/" FILE_NAME, l->directory);
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	_cleanup_free_ char *text = f ? malloc(FILE_MOST_BYTES + 1) : NULL;
	size_t n = text ? fread(text, 1, FILE_MOST_BYTES + 1, f) : 0;
	if (!text || n > FILE_MOST_BYTES)
		return;
	text[n] = '\0';
	struct json_object *o = json_tokener_parse(text), *list = NULL;
	if (json_object_is_type(o, json_type_object) &&
		json_object_get_int(json_object_object_get(o, "version")) == FILE_VERSION)
		list = json_object_object_get(o, "links");
	for (size_t i = 0; json_object_is_type(list, json_type_array) && i < json_object_array_length(list); i++) {
		struct link x;
		if (l->count < CLUSTER_MAX_LINKS && parse_link(json_object_array_get_idx(list, i), &x) &&
			!find(l, x.info.node[0], x.info.node[1]))
			l->list[l->count++] = x;
	}
	json_object_put(o);
}

/* Lock held, and dropped. Best effort: without it the next start measures again. */
static void write_file(struct cluster_coordinator *c)
{
	struct cluster_links *l = c->links;
	_cleanup_free_ char *text = print(l);
	l->dirty = false;
	pthread_mutex_unlock(&c->lock);
	_cleanup_close_ int fd = open(l->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0 && text)
		base_file_replace(fd, FILE_NAME, text, strlen(text));
	pthread_mutex_lock(&c->lock);
}

/* ---- for others ---- */

void cluster_links_step(struct cluster_coordinator *c, uint64_t now)
{
	struct cluster_links *l = c->links;
	if (!l || !c->active)
		return;
	if (l->number && (!is_there(l, 0) || !is_there(l, 1)))
		l->number = l->look_ns = 0;
	else if (l->number && now > l->until_ns)
		failed(c, now, "no figures came in time");
	if (!l->number && now >= l->look_ns)
		look(c, now);
	if (l->dirty && !l->number)
		write_file(c);
}

bool cluster_links_pending(const struct cluster_coordinator *c)
{
	const struct cluster_links *l = c->links;
	return l && l->pending && base_clock_now_ns() < l->joined_ns + WAIT_NS;
}

static void count(struct cluster_view_link *v, const struct cluster_link_info *i)
{
	v->latency_ns = i->latency_ns > v->latency_ns ? i->latency_ns : v->latency_ns;
	v->bytes_per_s = !v->measured || i->bytes_per_s < v->bytes_per_s ? i->bytes_per_s : v->bytes_per_s;
	v->oldest_wall_ns =
		!v->measured || i->measured_wall_ns < v->oldest_wall_ns ? i->measured_wall_ns : v->oldest_wall_ns;
	v->measured++;
}

void cluster_links_view(struct cluster_coordinator *c, struct cluster_node *const *nodes, uint32_t nodes_count,
	struct cluster_view_links *ret_links)
{
	struct cluster_view_links v = {0};
	for (uint32_t a = 0; a < nodes_count; a++) {
		for (uint32_t b = a + 1; b < nodes_count; b++) {
			struct cluster_view_link *of = &v.of[class_of(nodes[a], nodes[b])];
			const struct link *x = c->links ? find(c->links, nodes[a]->name, nodes[b]->name) : NULL;
			v.all.pairs++;
			of->pairs++;
			if (is_measured(x, nodes[a], nodes[b])) {
				count(&v.all, &x->info);
				count(of, &x->info);
			}
		}
	}
	if (!v.all.measured) {
		v.all.latency_ns = CLUSTER_LINK_LATENCY_NS;
		v.all.bytes_per_s = CLUSTER_LINK_BYTES_PER_S;
	}
	const struct cluster_view_link *wider = &v.all;
	for (int i = FLEET_LINK_CLASSES - 1; i >= 0; i--) {
		if (v.of[i].measured)
			wider = &v.of[i];
		v.of[i].latency_ns = wider->latency_ns;
		v.of[i].bytes_per_s = wider->bytes_per_s;
	}
	*ret_links = v;
}

void cluster_coordinator_plan_link(struct cluster_coordinator *c, struct cluster_view_links *ret_links)
{
	struct cluster_node *nodes[CLUSTER_MAX_NODES];
	uint32_t n = 0;
	pthread_mutex_lock(&c->lock);
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		struct cluster_node *x = &c->nodes[i];
		if (x->state == CLUSTER_NODE_READY && !x->draining && !x->leaving)
			nodes[n++] = x;
	}
	cluster_links_view(c, nodes, n, ret_links);
	pthread_mutex_unlock(&c->lock);
}

static const struct cluster_node *find_node(const struct cluster_coordinator *c, const char *name)
{
	for (uint32_t i = 0; i < c->nodes_count; i++) {
		if (strcmp(c->nodes[i].name, name) == 0)
			return &c->nodes[i];
	}
	return NULL;
}

uint32_t cluster_coordinator_links(struct cluster_coordinator *c, struct cluster_link_info *ret_links, uint32_t room)
{
	uint32_t n = 0;
	pthread_mutex_lock(&c->lock);
	for (uint32_t i = 0; c->links && i < c->links->count && n < room; i++) {
		struct cluster_link_info *x = &ret_links[n++];
		*x = c->links->list[i].info;
		const struct cluster_node *a = find_node(c, x->node[0]), *b = find_node(c, x->node[1]);
		x->class = a && b ? class_of(a, b) : FLEET_LINK_CLUSTER;
	}
	pthread_mutex_unlock(&c->lock);
	return n;
}

int cluster_links_create(const char *directory, struct cluster_links **ret_links)
{
	struct cluster_links *l = calloc(1, sizeof *l);
	if (!l)
		return -ENOMEM;
	snprintf(l->directory, sizeof l->directory, "%s", directory);
	read_file(l);
	*ret_links = l;
	return 0;
}
