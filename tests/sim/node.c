// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/node.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/pki.h"
#include "daemon/cluster/resolve.h"
#include "daemon/supervisor.h"
#include "shard/rank/serve.h"
#include "tests/sim/libc.h"
#include "topology/cgroup.h"
#include "topology/probe.h"
#include "topology/scan.h"

#define PORT "7070"
#define MEMORY_BYTES (4ull << 30)
#define DRAIN_NS (20 * SIM_SECOND)
#define STUCK_NS (4 * SIM_SECOND)
#define STOP_NS (5 * SIM_SECOND) // as supervisor.c gives a rank
#define RANK_CONNECT_NS (20 * SIM_SECOND)
#define MAX_LIFE 64u

struct node {
	bool up, dark;
	uint32_t life;
	struct server *server;
	struct base_log log;
	char name[16];
	uint32_t references[MAX_LIFE]; // calls of clients, by life
};

static struct sim_setup setup;
static struct node nodes[SIM_MAX_NODES];
static struct config configs[SIM_MAX_NODES];

struct sim_drives sim_drives[SIM_MAX_NODES];
uint64_t sim_drive_faults;

// ---- drives

void sim_drive_read(uint32_t node, size_t bytes, struct sim_drive_fault *ret_fault)
{
	const struct sim_drives *d = &sim_drives[node];
	struct sim_drive_fault f = {.delay_ns = 20000 + sim_draw(100000)};
	if (sim_chance(d->slow))
		f.delay_ns += sim_draw(d->slow_ns);
	if (sim_chance(d->error))
		f.error = EIO;
	else if (sim_chance(d->cut) && bytes > 4096)
		f.bytes = 4096 * sim_between(1, bytes / 4096 - 1);
	else if (sim_chance(d->flip))
		f.flip = true;
	sim_drive_faults += f.error || f.flip;
	*ret_fault = f;
}

bool sim_file_there(uint32_t node, const char *path)
{
	return node == 0 || node == SIM_NOWHERE || setup.copies || strcmp(path, setup.model_path) != 0;
}

// ---- what a node finds of its machine

__typeof__(topology_scan) __wrap_topology_scan;
int __wrap_topology_scan(const char *xml, struct topology_machine *ret_machine, struct base_error *e)
{
	memset(ret_machine, 0, sizeof *ret_machine);
	snprintf(ret_machine->host, sizeof ret_machine->host, "host%u", sim_here());
	snprintf(ret_machine->cpu_model, sizeof ret_machine->cpu_model, "simulated");
	ret_machine->packages = ret_machine->cores = ret_machine->cpus = 1;
	ret_machine->memory_bytes = ret_machine->memory_limit_bytes = MEMORY_BYTES;
	ret_machine->memory_available_bytes = MEMORY_BYTES / 2;
	return 0;
}

__typeof__(topology_probe) __wrap_topology_probe;
int __wrap_topology_probe(const struct topology_machine *m, const char *cache_path,
	const struct topology_probe_source *source, struct topology_bandwidths *ret_bandwidths, struct base_error *e)
{
	*ret_bandwidths = (struct topology_bandwidths){.drive_bytes_per_s = 1e9,
		.memory_bytes_per_s = 1e10,
		.compute_macs_per_s = 1e10,
		.measured_wall_ns = 1};
	return 0;
}

__typeof__(topology_cgroup_available) __wrap_topology_cgroup_available;
uint64_t __wrap_topology_cgroup_available(const char *root)
{
	return MEMORY_BYTES / 2;
}

/* Certificates here are their own names. */
__typeof__(cluster_pki_check) __wrap_cluster_pki_check;
int __wrap_cluster_pki_check(const char *ca_path, const char *cert_path, const char *key_path, uint64_t now_s,
	struct cluster_pki_info *ret_info, struct base_error *e)
{
	*ret_info = (struct cluster_pki_info){.not_after_s = now_s + 1};
	return cluster_identity_parse(cert_path, strlen(cert_path), &ret_info->identity);
}

static char *address_of(uint32_t node, char out[static 32])
{
	snprintf(out, 32, "10.0.0.%u", 1 + node);
	return out;
}

__typeof__(cluster_resolve_own) __wrap_cluster_resolve_own;
int __wrap_cluster_resolve_own(const char *towards, char out[static CLUSTER_RESOLVED_BYTES], struct base_error *e)
{
	char text[32];
	snprintf(out, CLUSTER_RESOLVED_BYTES, "%s", address_of(sim_here(), text));
	return 0;
}

uint32_t sim_node_at(const char *address)
{
	char text[32];
	for (uint32_t i = 0; i < setup.nodes; i++) {
		address_of(i, text);
		if (strncmp(address, text, strlen(text)) == 0 && address[strlen(text)] == ':')
			return i;
	}
	sim_fail("nobody has the address %s", address);
}

// ---- ranks: daemon/supervisor.h

struct supervisor {
	struct sim_place place;
	struct supervisor *next;
	bool runs, killed;
	uint32_t stage, stages;
	int fds[3]; // coordinator, previous, next
	int ended_fd;
	_Atomic bool stop;
	struct sim_fiber *fiber;
};

static struct supervisor *supervisors;

__typeof__(supervisor_find_rank) __wrap_supervisor_find_rank;
int __wrap_supervisor_find_rank(char *out, size_t room_bytes, struct base_error *e)
{
	snprintf(out, room_bytes, "thaw-rank");
	return 0;
}

__typeof__(supervisor_create) __wrap_supervisor_create;
int __wrap_supervisor_create(const char *rank_path, uint32_t stages, uint32_t parts, struct base_log *log,
	struct supervisor **ret_supervisor)
{
	struct supervisor *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->place = sim_place();
	s->stages = stages;
	s->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->next = supervisors;
	supervisors = s;
	*ret_supervisor = s;
	return 0;
}

/* What thaw-rank's main does. */
static void *rank_main(void *argument)
{
	struct supervisor *s = argument;
	struct link_group *g = NULL;
	struct base_error e = {0};
	int fds[LINK_MAX_MEMBERS];
	uint32_t me = 1 + s->stage;
	memset(fds, 0xff, sizeof fds);
	fds[0] = s->fds[0];
	if (s->stage)
		fds[me - 1] = s->fds[1];
	if (s->stage + 1 < s->stages)
		fds[me + 1] = s->fds[2];
	uint64_t until = base_clock_now_ns() + RANK_CONNECT_NS;
	int r = sim_link_ops.create(fds, 1 + s->stages, me, 0, 0, LINK_UNTIL(until), &g, &e);
	for (uint32_t i = 0; r && i < 3; i++) {
		if (s->fds[i] >= 0)
			close(s->fds[i]);
	}
	if (!r)
		r = rank_serve_until(&sim_link_ops, g, NULL, NULL, &s->stop, &e);
	sim_link_ops.close(g);
	sim_say("rank of stage %u ends: %d %s", s->stage, r, r ? base_error_text(&e) : "");
	s->runs = false;
	(void)eventfd_write(s->ended_fd, 1);
	return NULL;
}

__typeof__(supervisor_start_linked) __wrap_supervisor_start_linked;
int __wrap_supervisor_start_linked(struct supervisor *s, uint32_t rank, const struct supervisor_sockets *sockets,
	const char *link, struct base_error *e)
{
	const int given[] = {sockets->coordinator, sockets->previous, sockets->next};
	for (uint32_t i = 0; i < 3; i++)
		s->fds[i] = given[i] < 0 ? -1 : dup(given[i]);
	s->stage = rank;
	s->runs = true;
	s->fiber = sim_start(sim_here(), "rank", rank_main, s);
	return 0;
}

__typeof__(supervisor_ended) __wrap_supervisor_ended;
bool __wrap_supervisor_ended(struct supervisor *s, uint32_t rank, char *text, size_t room)
{
	bool over = s->fiber && (s->killed || !s->runs);
	if (over)
		snprintf(text, room, "%s", s->killed ? "was killed" : "ended");
	return over;
}

/* No fault of the simulator stops a rank by a signal. */
__typeof__(supervisor_stopped) __wrap_supervisor_stopped;
bool __wrap_supervisor_stopped(const struct supervisor *s, uint32_t rank)
{
	(void)s;
	(void)rank;
	return false;
}

__typeof__(supervisor_pidfd) __wrap_supervisor_pidfd;
int __wrap_supervisor_pidfd(const struct supervisor *s, uint32_t rank)
{
	return s->ended_fd;
}

__typeof__(supervisor_stop) __wrap_supervisor_stop;
void __wrap_supervisor_stop(struct supervisor *s, uint32_t rank)
{
	if (!s || !s->fiber)
		return;
	atomic_store(&s->stop, true);
	uint64_t until = sim_now() + STOP_NS;
	while (!sim_over(s->fiber) && sim_now() < until)
		sim_sleep(20 * SIM_MS);
	if (!sim_over(s->fiber)) {
		sim_say("rank of stage %u is killed", s->stage);
		sim_net_reset_socket(s->fds[0]);
	}
	sim_join(s->fiber);
	s->fiber = NULL;
}

__typeof__(supervisor_pids) __wrap_supervisor_pids;
uint32_t __wrap_supervisor_pids(struct supervisor *s, pid_t *ret_pids, uint32_t room)
{
	return 0;
}

__typeof__(supervisor_destroy) __wrap_supervisor_destroy;
void __wrap_supervisor_destroy(struct supervisor *s)
{
	if (!s)
		return;
	__wrap_supervisor_stop(s, s->stage);
	struct supervisor **at = &supervisors;
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	close(s->ended_fd);
	free(s);
}

static bool counts(const struct supervisor *s)
{
	return s->runs && !s->killed && sim_net_alive(s->place);
}

uint32_t sim_ranks(void)
{
	uint32_t n = 0;
	for (struct supervisor *s = supervisors; s; s = s->next)
		n += counts(s);
	return n;
}

bool sim_rank_kill(uint32_t which)
{
	for (struct supervisor *s = supervisors; s; s = s->next) {
		if (!counts(s) || which--)
			continue;
		s->killed = true;
		sim_say("kill -9 of the rank of stage %u on node %u", s->stage, s->place.node);
		for (uint32_t i = 0; i < 3; i++)
			sim_net_reset_socket(s->fds[i]);
		(void)eventfd_write(s->ended_fd, 1);
		return true;
	}
	return false;
}

// ---- the life of a node, as main.c

static void configure(uint32_t node)
{
	struct config *c = &configs[node];
	char own[32], head[32];
	address_of(node, own);
	address_of(0, head);
	const char *role = node ? "worker" : setup.head_computes ? "both" : "coordinator";
	config_defaults(c);
	snprintf(c->listen.grpc, sizeof c->listen.grpc, "unix:/n%u", node);
	c->listen.metrics[0] = '\0';
	snprintf(c->store.path, sizeof c->store.path, "%s/n%u", setup.directory, node);
	snprintf(c->cluster.role, sizeof c->cluster.role, "%s", role);
	snprintf(c->cluster.name, sizeof c->cluster.name, SIM_CLUSTER);
	snprintf(c->cluster.node, sizeof c->cluster.node, "n%u", node);
	snprintf(c->cluster.address, sizeof c->cluster.address, "%s", own);
	if (node)
		snprintf(c->cluster.join, sizeof c->cluster.join, "%s:" PORT, head);
	else
		snprintf(c->cluster.listen, sizeof c->cluster.listen, "%s:" PORT, own);
	snprintf(c->cluster.tls_cert, sizeof c->cluster.tls_cert, "thaw://" SIM_CLUSTER "/%s/n%u", role, node);
	snprintf(c->cluster.device_map, sizeof c->cluster.device_map, "%s", setup.device_map);
	c->cluster.nodes = setup.nodes - !setup.head_computes;
	c->memory.weights_bytes = setup.cold ? SIM_COLD_BYTES : 0;
	c->memory.kv_bytes = setup.kv_bytes;
	snprintf(c->compute.backend, sizeof c->compute.backend, "cpu");
	c->compute.threads = 1;
	c->compute.tensor = 1; // parts add in another order than the run that all is compared with
	snprintf(c->offload.engine, sizeof c->offload.engine, "sync");
	c->offload.depth = 4;
	c->scheduler.max_sequences = setup.max_sequences;
	c->scheduler.batch_tokens = setup.batch_tokens;
	c->scheduler.context_tokens = SIM_CONTEXT_TOKENS;
	c->scheduler.stuck_ns = STUCK_NS;
	c->daemon.drain_ns = DRAIN_NS;
	if (!node) {
		snprintf(c->models[0].name, sizeof c->models[0].name, SIM_MODEL);
		snprintf(c->models[0].path, sizeof c->models[0].path, "%s", setup.model_path);
		c->models_count = 1;
	}
}

void sim_nodes_init(const struct sim_setup *s)
{
	setup = *s;
	for (uint32_t i = 0; i < setup.nodes; i++)
		configure(i);
}

void sim_node_start(uint32_t node)
{
	struct node *x = &nodes[node];
	struct base_error e = {0};
	uint32_t from = sim_here();
	sim_new_life(node);
	sim_go(node);
	x->life = sim_place().life;
	snprintf(x->name, sizeof x->name, "n%u", node);
	base_log_init(&x->log, x->name, BASE_LOG_DEBUG); // always: lines read the clock, which is a turn
	x->log.journal = false;
	x->log.fd = sim_verbose ? STDERR_FILENO : setup.null_fd;
	int status = server_create(&configs[node], &x->log, &x->server, &e);
	if (status)
		sim_fail("node %u does not start: %s", node, base_error_text(&e));
	x->dark = false;
	x->up = true;
	sim_control_open(node, true);
	status = server_cluster_join(x->server, &e);
	if (status)
		sim_fail("node %u does not join: %s", node, base_error_text(&e));
	server_load_configured(x->server);
	sim_go(from);
}

/* What main.c's stop() does; dead: it does so as a ghost. */
static void end(uint32_t node)
{
	struct node *x = &nodes[node];
	uint32_t life = x->life;
	server_cluster_leave(x->server);
	sim_control_open(node, false);
	while (sim_control_calls((struct sim_place){node, life}) || x->references[life % MAX_LIFE])
		sim_sleep(SIM_MS);
	server_destroy(x->server);
	x->server = NULL;
}

void sim_node_stop(uint32_t node)
{
	struct node *x = &nodes[node];
	uint32_t from = sim_here();
	sim_say("node %u stops", node);
	sim_go(node);
	server_drain(x->server, true);
	uint64_t until = base_clock_now_ns() + DRAIN_NS;
	while (x->references[x->life % MAX_LIFE] && base_clock_now_ns() < until)
		sim_sleep(20 * SIM_MS);
	x->up = false;
	end(node);
	sim_go(from);
	sim_say("node %u has stopped", node);
}

void sim_node_kill(uint32_t node, enum sim_death how)
{
	struct node *x = &nodes[node];
	uint32_t from = sim_here();
	sim_say("node %u is %s", node, how == SIM_KILLED ? "killed" : "gone");
	x->up = false;
	x->dark = how == SIM_GONE;
	sim_net_die((struct sim_place){node, x->life}, how);
	sim_go(node);
	server_set_drain(x->server, 0);
	end(node);
	sim_go(from);
	sim_say("nothing is left of node %u", node);
}

bool sim_node_up(uint32_t node)
{
	return nodes[node].up;
}

bool sim_node_dark(uint32_t node)
{
	return nodes[node].dark;
}

struct sim_place sim_node_place(uint32_t node)
{
	return (struct sim_place){node, nodes[node].life};
}

struct cluster_coordinator *sim_node_coordinator(uint32_t node)
{
	return server_coordinator(nodes[node].server);
}

struct server *sim_server_acquire(uint32_t *ret_life)
{
	struct node *x = &nodes[0];
	if (!x->up)
		return NULL;
	*ret_life = x->life;
	x->references[x->life % MAX_LIFE]++;
	return x->server;
}

void sim_server_release(uint32_t life)
{
	nodes[0].references[life % MAX_LIFE]--;
}
