// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/node.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/coordinator.h"
#include "daemon/cluster/pki.h"
#include "daemon/cluster/resolve.h"
#include "daemon/supervisor.h"
#include "shard/rank/message.h"
#include "shard/rank/serve.h"
#include "tests/sim/libc.h"
#include "topology/cgroup.h"
#include "topology/probe.h"
#include "topology/scan.h"

#define PORT "7070"
#define MEMORY_BYTES (4ull << 30)
#define DRAIN_NS (20 * SIM_SECOND)
#define STUCK_NS (4 * SIM_SECOND)
#define STOP_NS (300 * SIM_MS) // as supervisor.c gives a rank
#define STOP_ROUND_NS (5 * SIM_MS)
#define LOOKED_AT_NS SIM_SECOND // STOPPED_NS of task.c
#define TENSOR_RING_BYTES (256u << 10) // as thaw-rank's main
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

/* Spares are asked for early: groups do not live long here. */
__typeof__(cluster_coordinator_create) __wrap_cluster_coordinator_create, __real_cluster_coordinator_create;
int __wrap_cluster_coordinator_create(const struct cluster_coordinator_config *config, struct cluster_state *state,
	struct cluster_coordinator **ret_coordinator, struct base_error *e)
{
	struct cluster_coordinator_config c = *config;
	c.spare_ns = setup.spare_ns;
	return __real_cluster_coordinator_create(&c, state, ret_coordinator, e);
}

/* Planning takes a while, in which nodes come and go. */
static int (*real_plan)(void *, const struct cluster_view *, struct cluster_plan *, struct base_error *);

static int slow_plan(
	void *context, const struct cluster_view *view, struct cluster_plan *ret_plan, struct base_error *e)
{
	sim_sleep(sim_draw(setup.plan_ns));
	return real_plan(context, view, ret_plan, e);
}

__typeof__(cluster_fleet_create) __wrap_cluster_fleet_create, __real_cluster_fleet_create;
int __wrap_cluster_fleet_create(struct cluster_coordinator *c, const struct cluster_fleet_config *config,
	struct cluster_fleet **ret_fleet, struct base_error *e)
{
	struct cluster_fleet_config x = *config;
	real_plan = x.plan;
	x.plan = slow_plan;
	return __real_cluster_fleet_create(c, &x, ret_fleet, e);
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
	uint64_t id;
	bool runs, killed;
	struct rank_shape shape;
	struct rank_place me;
	int fds[1 + ENGINE_MAX_RANKS]; // to members of the group; -1: it has none, or not any more
	int part_fds[ENGINE_MAX_RANKS]; // to the parts of its stage, as fds
	int ended_fd;
	_Atomic bool stop;
	struct sim_fiber *fiber;
	struct sim_process process;
	uint64_t seen_stopped_ns; // by its node, of that one's clock; 0: not
	uint32_t seen_for_long; // looks
};

static struct supervisor *supervisors;
static uint64_t supervisors_ever;
static uint32_t groups, group_parts;

__typeof__(supervisor_find_rank) __wrap_supervisor_find_rank;
int __wrap_supervisor_find_rank(char *out, size_t room_bytes, struct base_error *e)
{
	snprintf(out, room_bytes, "thaw-rank");
	return 0;
}

__typeof__(supervisor_create) __wrap_supervisor_create;
int __wrap_supervisor_create(
	const char *rank_path, const struct rank_shape *shape, struct base_log *log, struct supervisor **ret_supervisor)
{
	struct supervisor *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->id = ++supervisors_ever;
	s->place = sim_place();
	s->shape = *shape;
	memset(s->fds, 0xff, sizeof s->fds);
	memset(s->part_fds, 0xff, sizeof s->part_fds);
	s->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->next = supervisors;
	supervisors = s;
	*ret_supervisor = s;
	return 0;
}

/* What thaw-rank's main does: the coordinator and who has hidden rows of whom, then the other parts of the same
 * layers. */
static int connect_all(struct supervisor *s, struct link_group **ret_group, struct base_error *e)
{
	uint32_t rank = rank_shape_rank(&s->shape, s->me), ranks = rank_shape_ranks(&s->shape);
	uint64_t until = base_clock_now_ns() + RANK_CONNECT_NS;
	return sim_link_ops.create(
		s->fds, rank_member(ranks), rank_member(rank), 0, 0, LINK_UNTIL(until), ret_group, e);
}

static int connect_parts(struct supervisor *s, uint64_t epoch, struct link_group **ret_group, struct base_error *e)
{
	uint64_t until = base_clock_now_ns() + RANK_CONNECT_NS;
	return sim_link_ops.create(s->part_fds, s->shape.parts[s->me.stage], s->me.part, epoch, TENSOR_RING_BYTES,
		LINK_UNTIL(until), ret_group, e);
}

static void forget_sockets(int *fds, uint32_t count, bool owned)
{
	for (uint32_t i = 0; i < count; i++) {
		int fd = fds[i];
		fds[i] = -1;
		if (owned && fd >= 0)
			close(fd);
	}
}

static void *rank_main(void *argument)
{
	struct supervisor *s = argument;
	struct link_group *g = NULL, *tensor = NULL;
	struct base_error e = {0};
	int r = connect_all(s, &g, &e);
	if (!r && s->shape.parts[s->me.stage] > 1)
		r = connect_parts(s, g->epoch, &tensor, &e);
	if (!r)
		r = rank_serve_until(&sim_link_ops, g, tensor, NULL, &s->stop, &e);
	forget_sockets(s->fds, base_array_size(s->fds), !g);
	forget_sockets(s->part_fds, base_array_size(s->part_fds), !tensor);
	sim_link_ops.close(tensor);
	sim_link_ops.close(g);
	sim_say("rank of stage %u, part %u ends: %d %s", s->me.stage, s->me.part, r, r ? base_error_text(&e) : "");
	s->runs = false;
	(void)eventfd_write(s->ended_fd, 1);
	return NULL;
}

__typeof__(supervisor_start_linked) __wrap_supervisor_start_linked;
int __wrap_supervisor_start_linked(
	struct supervisor *s, uint32_t rank, const int *fds, const char *link, struct base_error *e)
{
	uint32_t after[RANK_MAX_PARTS], count = rank_shape_receivers(&s->shape, rank, after);
	s->me = rank_shape_place(&s->shape, rank);
	s->fds[0] = dup(fds[0]);
	if (s->me.stage) {
		uint32_t before = rank_member(rank_shape_sender(&s->shape, s->me));
		s->fds[before] = dup(fds[before]);
	}
	for (uint32_t i = 0; i < count; i++)
		s->fds[rank_member(after[i])] = dup(fds[rank_member(after[i])]);
	for (uint32_t i = 0; i < s->shape.parts[s->me.stage]; i++) {
		if (i != s->me.part)
			s->part_fds[i] = dup(fds[rank_member(rank - s->me.part + i)]);
	}
	groups += rank == 0;
	group_parts |= 1u << s->shape.parts[s->me.stage];
	s->runs = true;
	s->fiber = sim_start(sim_here(), "rank", rank_main, s);
	sim_of_process(s->fiber, &s->process);
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

/* Whoever saw that it has been stopped for a second has to end it, and not to ask again: but its clock is read before
 * it asks. */
__typeof__(supervisor_stopped) __wrap_supervisor_stopped;
bool __wrap_supervisor_stopped(const struct supervisor *given, uint32_t rank)
{
	struct supervisor *s = (struct supervisor *)given; // it notes who asked
	uint64_t now = sim_node_clock(sim_here(), CLOCK_MONOTONIC);
	if (!s->process.stopped || s->killed) {
		s->seen_stopped_ns = s->seen_for_long = 0;
		return false;
	}
	if (s->seen_for_long > 1)
		sim_fail("the rank of stage %u on node %u is stopped, and its node goes on looking at it", s->me.stage,
			s->place.node);
	s->seen_stopped_ns = s->seen_stopped_ns ? s->seen_stopped_ns : now;
	s->seen_for_long += now >= s->seen_stopped_ns + LOOKED_AT_NS;
	return true;
}

__typeof__(supervisor_pidfd) __wrap_supervisor_pidfd;
int __wrap_supervisor_pidfd(const struct supervisor *s, uint32_t rank)
{
	return s->ended_fd;
}

/* Its fiber runs on, as a ghost that reaches nobody, to give back what a kernel would. */
static void sigkill(struct supervisor *s)
{
	sim_say("kill -9 of the rank of stage %u, part %u on node %u", s->me.stage, s->me.part, s->place.node);
	s->killed = true;
	s->process.stopped = false;
	atomic_store(&s->stop, true);
	for (uint32_t i = 0; i < base_array_size(s->fds); i++)
		sim_net_reset_socket(s->fds[i]);
	for (uint32_t i = 0; i < base_array_size(s->part_fds); i++)
		sim_net_reset_socket(s->part_fds[i]);
}

__typeof__(supervisor_stop) __wrap_supervisor_stop;
void __wrap_supervisor_stop(struct supervisor *s, uint32_t rank)
{
	if (!s || !s->fiber)
		return;
	uint64_t until = sim_now() + STOP_NS;
	while (!sim_over(s->fiber) && !s->killed && sim_now() < until)
		sim_sleep(STOP_ROUND_NS);
	if (!sim_over(s->fiber) && !s->killed)
		sigkill(s);
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
	__wrap_supervisor_stop(s, rank_shape_rank(&s->shape, s->me));
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

static struct supervisor *find(uint32_t which)
{
	struct supervisor *s = supervisors;
	while (s && (!counts(s) || which--))
		s = s->next;
	return s;
}

static struct supervisor *find_stopped(uint64_t id)
{
	struct supervisor *s = supervisors;
	while (s && s->id != id)
		s = s->next;
	return s && counts(s) && s->process.stopped ? s : NULL;
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
	struct supervisor *s = find(which);
	if (!s)
		return false;
	sigkill(s);
	(void)eventfd_write(s->ended_fd, 1);
	return true;
}

uint64_t sim_rank_stop(uint32_t which, uint32_t *ret_node)
{
	struct supervisor *s = find(which);
	sim_say("SIGSTOP of the rank of stage %u, part %u on node %u", s->me.stage, s->me.part, s->place.node);
	s->process.stopped = true;
	*ret_node = s->place.node;
	return s->id;
}

bool sim_rank_stopped(uint64_t id)
{
	return find_stopped(id);
}

void sim_rank_continue(uint64_t id)
{
	struct supervisor *s = find_stopped(id);
	sim_say("SIGCONT of %s", s ? "a rank" : "a rank that is not there any more");
	if (s)
		s->process.stopped = false;
}

uint32_t sim_groups(void)
{
	return groups;
}

uint32_t sim_group_parts(void)
{
	return group_parts;
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
	c->compute.tensor = setup.tensor;
	c->store.replicas = setup.replicas;
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
	server_cluster_drain(x->server);
	uint64_t until = base_clock_now_ns() + DRAIN_NS;
	while ((x->references[x->life % MAX_LIFE] || server_cluster_leaves(x->server)) && base_clock_now_ns() < until)
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
