// SPDX-License-Identifier: Apache-2.0
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/etcd/state.h"
#include "daemon/cluster/pki.h"
#include "daemon/cluster/resolve.h"
#include "daemon/cluster/worker.h"
#include "daemon/server_internal.h"
#include "topology/cgroup.h"

struct cluster_coordinator *server_coordinator(struct server *s)
{
	return s->coordinator;
}

static_assert(SERVER_MAX_PEERS == CLUSTER_MAX_NODES &&
	      sizeof((struct server_cluster_load *)NULL)->peers[0].name == CLUSTER_NAME_BYTES);

bool server_cluster_load(struct server *s, struct server_cluster_load *ret_load)
{
	if (!s->coordinator)
		return false;
	_cleanup_free_ struct cluster_node_info *infos = calloc(CLUSTER_MAX_NODES, sizeof *infos);
	uint32_t n = infos ? cluster_coordinator_nodes(s->coordinator, infos, CLUSTER_MAX_NODES) : 0;
	*ret_load = (struct server_cluster_load){.epoch = cluster_coordinator_epoch(s->coordinator)};
	for (uint32_t i = 0; i < n; i++) {
		ret_load->ready += infos[i].state == CLUSTER_NODE_READY;
		ret_load->lost += infos[i].state == CLUSTER_NODE_LOST;
		ret_load->draining += infos[i].draining;
		ret_load->losses += infos[i].losses;
		if (infos[i].state == CLUSTER_NODE_LEFT)
			continue;
		ret_load->peers[ret_load->peers_count].up = infos[i].state == CLUSTER_NODE_READY;
		memcpy(ret_load->peers[ret_load->peers_count++].name, infos[i].name, sizeof infos[i].name);
	}
	return true;
}

void server_get_transfer(struct server *s, struct server_transfer *ret_transfer)
{
	struct cluster_worker_status w = {0};
	pthread_mutex_lock(&s->lock);
	bool pulls = s->worker != NULL;
	if (pulls)
		cluster_worker_get_status(s->worker, &w);
	pthread_mutex_unlock(&s->lock);
	*ret_transfer = (struct server_transfer){.pulls = pulls,
		.serves = s->config.cluster.listen[0],
		.pulled_bytes = w.pulled_bytes,
		.served_bytes = atomic_load(&s->served_bytes)};
	if (s->coordinator)
		ret_transfer->served_bytes += cluster_coordinator_served(s->coordinator);
}

int server_open_source(struct server *s, const struct cluster_identity *peer, const struct cluster_pull *pull,
	struct cluster_source *ret_source, struct base_error *e)
{
	const struct config *c = &s->config;
	const struct cluster_copies copies = {.cluster = c->cluster.name,
		.node = c->cluster.node,
		.store_path = c->store.path,
		.served_bytes = &s->served_bytes};
	struct base_error own;
	if (strcmp(c->cluster.role, "none") == 0)
		return base_error_set(e, -EPERM, "this thawd is in no cluster: see cluster.role");
	int status = s->coordinator ? cluster_source_open(s->coordinator, peer, pull, ret_source, e) : -ENOENT;
	if (status != -ENOENT)
		return status;
	status = cluster_copy_open(&copies, peer, pull, ret_source, &own);
	if (status && e && (status != -ENOENT || !s->coordinator))
		*e = own;
	return status;
}

/* Before anyone connects: what is wrong with our own files is said here, in words, and not by TLS at the other end. */
static int check_identity(const struct server *s, const char *node, enum cluster_role role, struct base_error *e)
{
	const struct config *c = &s->config;
	struct cluster_pki_info info;
	int status = cluster_pki_check(c->cluster.tls_ca, c->cluster.tls_cert, c->cluster.tls_key,
		base_clock_wall_ns() / BASE_NS_PER_SECOND, &info, e);
	if (status) {
		base_error_prefix(e, "cluster.tls_cert");
		return status;
	}
	const struct cluster_identity *i = &info.identity;
	if (!i->name[0])
		return base_error_set(e, -EKEYREJECTED,
			"cluster.tls_cert: %s names no node: `thawctl pki node` makes one that does",
			c->cluster.tls_cert);
	if (strcmp(i->cluster, c->cluster.name) != 0)
		return base_error_set(e, -EKEYREJECTED, "cluster.tls_cert: %s is for cluster %s, cluster.name is %s",
			c->cluster.tls_cert, i->cluster, c->cluster.name);
	if (strcmp(i->name, node) != 0)
		return base_error_set(e, -EKEYREJECTED,
			"cluster.tls_cert: %s is for node %s, this is node %s (cluster.node, or the host's name)",
			c->cluster.tls_cert, i->name, node);
	if ((cluster_role_coordinates(role) && !cluster_role_coordinates(i->role)) ||
		(cluster_role_works(role) && !cluster_role_works(i->role)))
		return base_error_set(e, -EKEYREJECTED, "cluster.tls_cert: %s is for the role %s, cluster.role is %s",
			c->cluster.tls_cert, cluster_role_name(i->role), c->cluster.role);
	return 0;
}

static void on_cluster_event(void *context, const char *severity, const char *kind, const char *model, const char *text)
{
	server_emit_event(context, severity, kind, model, text);
}

static int on_probe(
	void *context, const char *directory, struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	return server_probe(context, directory, ret_bandwidths, e);
}

/* What plans can divide: what is available, and what ranks hold. The coordinator takes off what other models have of
 * it. */
static uint64_t on_memory(void *context, const pid_t *pids, uint32_t count)
{
	uint64_t bytes = topology_cgroup_available("");
	for (uint32_t i = 0; i < count; i++)
		bytes += server_process_memory(pids[i]);
	return bytes;
}

/* A name that nobody knows yet stays one: it is asked for again when a group connects. */
static void find_number(struct server *s)
{
	const char *address = s->config.cluster.address;
	char number[CLUSTER_RESOLVED_BYTES];
	struct base_error e = {0};
	snprintf(s->address, sizeof s->address, "%s", address);
	if (!address[0])
		return;
	if (cluster_resolve(address, number, &e) < 0)
		server_emit_event(s, "warning", "address_unknown", "", base_error_text(&e));
	else
		snprintf(s->address, sizeof s->address, "%s", number);
}

static int start_worker(struct server *s, struct base_error *e)
{
	const struct config *c = &s->config;
	bool both = s->coordinator != NULL;
	struct base_address listen = {0};
	if (c->cluster.listen[0])
		(void)base_address_parse(c->cluster.listen, &listen, NULL); // the configuration was checked
	snprintf(s->join, sizeof s->join, "%s%s%s", both ? c->listen.grpc : "", both && c->cluster.join[0] ? "," : "",
		c->cluster.join);
	const struct cluster_worker_config w = {
		.cluster = c->cluster.name,
		.node = c->cluster.node,
		.rack = c->cluster.rack,
		.version = THAW_VERSION,
		.join = s->join,
		.tls = {.ca = c->cluster.tls_ca, .cert = c->cluster.tls_cert, .key = c->cluster.tls_key},
		.address = c->cluster.address,
		.pull_port = listen.number,
		.store_path = c->store.path,
		.sources = c->store.sources,
		.rank_path = s->rank_path,
		.machine = &s->machine,
		.budgets = {c->memory.weights_bytes, c->memory.kv_bytes, c->memory.workspace_bytes},
		.threads = c->compute.threads,
		.probe = on_probe,
		.memory = on_memory,
		.context = s,
		.events = {.event = on_cluster_event, .context = s},
		.log = s->log,
	};
	return cluster_worker_start(&w, &s->worker, e);
}

static int find_node_name(struct server *s, struct base_error *e)
{
	char host[CLUSTER_NAME_BYTES] = "";
	if (s->config.cluster.node[0])
		return 0;
	gethostname(host, sizeof host - 1);
	for (char *p = host; *p; p++)
		*p = *p >= 'A' && *p <= 'Z' ? (char)(*p - 'A' + 'a') : *p;
	if (cluster_name_check("the host's name", host, e) < 0) {
		base_error_prefix(e, "cluster.node is not set");
		return -EINVAL;
	}
	memcpy(s->config.cluster.node, host, sizeof host);
	return 0;
}

/* Where nodes that join from this host are reached: what cluster.address says, or the address that is listened on. */
static int find_address(struct server *s, struct base_error *e)
{
	struct base_address a;
	if (s->config.cluster.address[0])
		return 0;
	int status = base_address_parse(s->config.cluster.listen, &a, e);
	if (status)
		return status;
	if (strcmp(a.host, "0.0.0.0") == 0 || strcmp(a.host, "::") == 0)
		return base_error_set(e, -EINVAL,
			"cluster.address: cluster.listen is %s, any address: say which one other nodes reach this one "
			"at",
			s->config.cluster.listen);
	snprintf(s->config.cluster.address, sizeof s->config.cluster.address, "%s", a.host);
	return 0;
}

static int open_state(struct server *s, struct cluster_state **ret_state, struct base_error *e)
{
	const struct config *c = &s->config;
	char join[CLUSTER_ADDRESS_BYTES];
	struct base_address listen;
	bool etcd = strcmp(c->cluster.state, "etcd") == 0;
	int status = base_address_parse(c->cluster.listen, &listen, e);
	if (status)
		return status;
	snprintf(join, sizeof join, strchr(c->cluster.address, ':') ? "[%s]:%s" : "%s:%s", c->cluster.address,
		listen.port);
	const struct cluster_state_config x = {
		.who = c->cluster.node,
		.directory = c->store.path,
		.cluster = c->cluster.name,
		.address = join,
		.endpoints = c->cluster.etcd,
		.ca = c->cluster.etcd_tls_ca,
		.cert = c->cluster.etcd_tls_cert,
		.key = c->cluster.etcd_tls_key,
		.lease_ns = c->cluster.etcd_lease_ns,
	};
	status = (etcd ? &etcd_state_ops : &cluster_state_file_ops)->open(&x, ret_state, e);
	if (status && etcd)
		base_error_prefix(e, "cluster.etcd");
	return status;
}

static int start_coordinator(struct server *s, struct base_error *e)
{
	struct cluster_state *state;
	const struct cluster_coordinator_config c = {
		.cluster = s->config.cluster.name,
		.node = s->config.cluster.node,
		.version = THAW_VERSION,
		.host = s->address,
		.nodes = s->config.cluster.nodes,
		.links = s->config.store.path,
		.replicas = s->config.store.replicas,
		.events = {.event = on_cluster_event, .context = s},
	};
	int status = find_address(s, e);
	if (!status)
		find_number(s);
	if (!status)
		status = open_state(s, &state, e);
	if (status)
		return status;
	status = cluster_coordinator_create(&c, state, &s->coordinator, e);
	if (status)
		state->ops->close(state);
	return status;
}

int server_cluster_start(struct server *s, struct base_error *e)
{
	enum cluster_role role = CLUSTER_ROLE_NONE;
	cluster_role_find(s->config.cluster.role, &role);
	if (role == CLUSTER_ROLE_NONE)
		return 0;
	int status = find_node_name(s, e);
	if (!status)
		status = check_identity(s, s->config.cluster.node, role, e);
	if (!status && cluster_role_coordinates(role))
		status = start_coordinator(s, e);
	return status;
}

int server_cluster_join(struct server *s, struct base_error *e)
{
	enum cluster_role role = CLUSTER_ROLE_NONE;
	cluster_role_find(s->config.cluster.role, &role);
	return cluster_role_works(role) ? start_worker(s, e) : 0;
}

bool server_worker_text(struct server *s, char *out, size_t room)
{
	struct cluster_worker_status w = {0};
	pthread_mutex_lock(&s->lock);
	bool worker = s->worker && !s->coordinator;
	if (worker)
		cluster_worker_get_status(s->worker, &w);
	pthread_mutex_unlock(&s->lock);
	if (worker && w.joined)
		snprintf(out, room, "worker of %s: joined %s, %u rank%s", s->config.cluster.name, w.coordinator,
			w.ranks, w.ranks == 1 ? "" : "s");
	else if (worker)
		snprintf(out, room, "worker of %s: not joined: %.120s", s->config.cluster.name,
			w.why[0] ? w.why : "it is being dialled");
	return worker;
}

void server_cluster_drain(struct server *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->worker && !s->coordinator)
		cluster_worker_drain(s->worker);
	pthread_mutex_unlock(&s->lock);
}

bool server_cluster_leaves(struct server *s)
{
	struct cluster_worker_status w = {.left = true};
	pthread_mutex_lock(&s->lock);
	if (s->worker && !s->coordinator)
		cluster_worker_get_status(s->worker, &w);
	pthread_mutex_unlock(&s->lock);
	return !w.left;
}

void server_cluster_leave(struct server *s)
{
	struct cluster_worker *w = s->worker;
	if (s->coordinator)
		cluster_coordinator_quiet(s->coordinator);
	pthread_mutex_lock(&s->lock);
	s->worker = NULL;
	pthread_mutex_unlock(&s->lock);
	cluster_worker_stop(w);
}

void server_cluster_stop(struct server *s)
{
	cluster_coordinator_destroy(s->coordinator);
	s->coordinator = NULL;
}
