// SPDX-License-Identifier: Apache-2.0
/* The simulator: several nodes in one process, production code under virtual time, faults by seed. fiber.h says how.
 *
 * What a seed fixes: which thread goes on at each lock, wait, clock and descriptor, all times, all bytes of the network
 * and of the drives, all faults, all random numbers. --twice shows that: the digests of two runs are the same. It does
 * so for one build: other code draws otherwise.
 *
 * Production code is: server, coordinator, fleets, planner, worker and tasks, engine, scheduler, packer, store,
 * link_core, ranks, offload stream with the sync engine, cpu backend with one thread. Simulated are: threads and clocks
 * (libc.c), the bytes' way under link_core and the rendezvous (net.c), gRPC (control.c), processes (a rank is a fiber),
 * certificates, measured bandwidths, the machine (node.c). So not seen here: etcd and a standby, UCX, TCP, TLS, gRPC,
 * io_uring, thread races within one core's instruction stream (TSan's), loss of what was not synced.
 *
 * What must hold: each request that was accepted ends with the tokens of a run without faults, bit for bit, or with
 * UNAVAILABLE, after which another try succeeds; tokens that came before are those, too. Where ranks share layers
 * (compute.tensor), a plan with another number of them goes on in the last bits of a run with that number (client.h).
 * When all is well again, all ends within bounded time, KV blocks and queues are empty, and after the end no descriptor
 * and no memory is left. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <getopt.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tests/lib/tiny_gguf.h"
#include "tests/sim/client.h"
#include "tests/sim/fate.h"
#include "tests/sim/fiber.h"
#include "tests/sim/net.h"
#include "tests/sim/node.h"

#define LIMIT_NS (150 * SIM_SECOND) // of virtual time
#define RUN_S 1200u // of a run of real time: then it hangs
#define HOT_KV_BYTES (SIM_CONTEXT_TOKENS * 768u) // of one sequence, in all layers
#define COLD_KV_BYTES (SIM_CONTEXT_TOKENS * 3072u)
#define MOST_REQUESTS 5u // of a client
#define EXIT_MISSING 3 // of a run that has nothing to be compared with yet
#define LEFT_BYTES (4u << 10) // more than after a run without faults

static const struct {
	uint64_t seed;
	const char *only; // all faults of the run are of these kinds
} fixed_seeds[] = {
	{140}, // ranks lost six times in a row: the fleet's model was FAILED for good
	{3169}, // ranks lost three times under a request, by hosts and links: it was ended
	{202},
	{3232}, // the head restarts while a node is away without which nothing fits: FAILED, and not waiting for it
	{184}, // a drive is bad for a while: FAILED
	{9},
	{20}, // as 140
	/* What was planted: old messages taken, tokens not sent again, no checksums, a plan with old nodes, stopped
	 * ranks left alone (11). */
	{2},
	{5},
	{16},
	{57},
	{11},
	{14}, // an answer that two ranks a layer begin and one ends
	/* What code does with bad reads, and with nodes that go while a plan is made that uses them: these are not by
	 * luck in one seed. */
	{1, "drive"},
	{2, "drive"},
	{1, "node drains"},
	{4, "node leaves"},
	{1, "node dies"},
	{2, "node dies"},
	{3, "node dies"},
};

struct result { // shared with the parent
	struct sim_answer answers[2][SIM_MAX_TENSOR][SIM_KINDS]; // of the small and the large model
	bool known[2][SIM_MAX_TENSOR]; // of those
	uint32_t missing_tensor; // a run ended for want of this one, of missing_cold
	bool missing_cold;
	size_t kept_bytes; // by libc and the like, after the run without faults
	uint64_t digest, switches, end_ns;
	struct sim_client_counts counts;
	uint64_t drive_faults, epochs, preemptions; // the last two: of the last life of the head
};

struct options {
	uint64_t seed;
	bool seed_given, twice, fixed;
	const char *only; // NULL: all kinds of faults
	uint32_t count, fresh, most;
	int faults; // -1: drawn
};

struct run {
	const struct options *options;
	struct result *result;
	uint64_t seed;
	const char *only;
	bool learn, learn_cold;
	uint32_t learn_tensor;
	int null_fd;
	char directory[64], model[2][96];
};

// ---- a run

static uint32_t open_fds(void)
{
	uint32_t count = 0;
	DIR *d = opendir("/proc/self/fd");
	while (d && readdir(d))
		count++;
	if (d)
		closedir(d);
	return count;
}

static void draw_setup(const struct run *r, struct sim_setup *s)
{
	static const char *const maps[] = {"balanced", "balanced", "balanced", "balanced", "auto", "sequential"};
	*s = (struct sim_setup){.directory = r->directory,
		.nodes = (uint32_t)sim_between(2, 4),
		.head_computes = sim_chance(600),
		.device_map = maps[sim_draw(6)],
		.copies = sim_chance(500),
		.cold = sim_chance(250) || (r->only && strncmp(r->only, "drive", 5) == 0),
		.max_sequences = (uint32_t)sim_between(1, 6),
		.batch_tokens = sim_chance(500) ? 32 : 16};
	if (s->nodes == 2 && (!s->head_computes || s->cold))
		s->nodes = 3;
	uint64_t one = s->cold ? COLD_KV_BYTES : HOT_KV_BYTES;
	s->kv_bytes = one * sim_between(4, 16) / 4;
	if (strcmp(s->device_map, "balanced") == 0 && sim_chance(250))
		s->kv_bytes = one * 7 / 10; // too little for one node alone
	s->tensor = sim_chance(250) ? 2 : 1;
	if (s->tensor > 1 && s->nodes - !s->head_computes == 4 && !s->cold && sim_chance(500))
		s->tensor = 4;
	s->replicas = sim_chance(500) ? 1 : (uint32_t)sim_between(2, 3);
	s->spare_ns = sim_between(50, 2000) * SIM_MS;
	s->plan_ns = sim_between(1, 300) * SIM_MS;
	if (r->learn)
		*s = (struct sim_setup){.directory = r->directory,
			.nodes = r->learn_tensor > 2 ? r->learn_tensor : 2,
			.head_computes = true,
			.device_map = r->learn_tensor > 1 ? "balanced" : "sequential",
			.tensor = r->learn_tensor,
			.replicas = 1,
			.plan_ns = SIM_MS,
			.max_sequences = 4,
			.batch_tokens = 32,
			.kv_bytes = 4 << 20};
	s->null_fd = r->null_fd;
	s->model_path = r->model[r->learn ? r->learn_cold : s->cold];
	sim_clients_init(r->result->answers[r->learn ? r->learn_cold : s->cold], s->tensor, r->learn);
	sim_say("%u nodes, head %s, map %s, %s, %u ranks share layers, %u shares kept, %u sequences, %llu bytes of KV, "
		"%s",
		s->nodes, s->head_computes ? "computes" : "does not compute", s->device_map, s->cold ? "cold" : "hot",
		s->tensor, s->replicas, s->max_sequences, (unsigned long long)s->kv_bytes,
		s->copies ? "copies" : "pulled");
}

/* Answers without faults are found when a run first needs them: most need one set of five. */
static void check_known(const struct run *r, const struct sim_setup *s)
{
	for (uint32_t n = 1; n <= s->tensor && !r->learn; n *= 2) {
		if (r->result->known[s->cold][n - 1])
			continue;
		r->result->missing_tensor = n;
		r->result->missing_cold = s->cold;
		_exit(EXIT_MISSING);
	}
}

/* Nothing is left of what was asked for. */
static void check_idle(const struct run *r)
{
	static struct server_model_info info;
	uint32_t life;
	struct server *s = sim_server_acquire(&life);
	if (!s)
		sim_fail("the head is down");
	sim_go(0);
	int status = server_get_model(s, SIM_MODEL, &info);
	sim_server_release(life);
	sim_go(SIM_NOWHERE);
	if (status || info.phase != SERVER_PHASE_READY)
		sim_fail("the model is not ready in the end: %s", status ? "not there" : server_phase_name(info.phase));
	r->result->epochs = info.load.epoch;
	r->result->preemptions = info.load.preemptions_total;
	if (info.load.running || info.load.waiting || info.load.waiting_bytes || info.load.kv_blocks_used)
		sim_fail("left in the end: %u requests, %u waiting with %llu bytes, %u KV blocks", info.load.running,
			info.load.waiting, (unsigned long long)info.load.waiting_bytes, info.load.kv_blocks_used);
}

static void wait_for_clients(void)
{
	while (sim_clients_left())
		sim_sleep(20 * SIM_MS);
}

static void story(void *context)
{
	struct run *r = context;
	struct sim_setup setup;
	draw_setup(r, &setup);
	check_known(r, &setup);
	sim_net_init(setup.nodes, setup.tensor > 1);
	sim_nodes_init(&setup);
	for (uint32_t i = 0; i < setup.nodes; i++) {
		sim_node_start(i);
		sim_sleep(sim_draw(200 * SIM_MS));
	}
	uint32_t clients = r->learn ? SIM_KINDS : (uint32_t)sim_between(2, 8);
	for (uint32_t i = 0; i < clients; i++)
		sim_client_start(r->learn ? i : (uint32_t)sim_draw(SIM_KINDS), r->learn ? 1 : MOST_REQUESTS,
			sim_draw(SIM_SECOND));
	uint32_t faults = r->options->faults >= 0 ? (uint32_t)r->options->faults : (uint32_t)sim_between(2, 14);
	if (!r->learn)
		sim_fate_start(&setup, faults, r->only);
	sim_fate_wait();
	uint64_t well_ns = sim_now();
	sim_limit(well_ns + LIMIT_NS);
	wait_for_clients();
	sim_client_start((uint32_t)sim_draw(SIM_KINDS), 1, 0); // it serves
	wait_for_clients();
	if (r->learn && sim_group_parts() != 1u << setup.tensor)
		sim_fail("no reference: ranks did not share layers by %u", setup.tensor);
	sim_say("all answered %.3f s after the last fault", (double)(sim_now() - well_ns) / 1e9);
	check_idle(r);
	for (uint32_t i = setup.nodes; i-- > 0;)
		sim_node_stop(i);
	sim_sleep(10 * SIM_SECOND); // what was cut notices it
	sim_net_finish();
	sim_control_finish();
}

static int run_here(struct run *r)
{
	uint32_t fds = open_fds();
	struct mallinfo2 before = mallinfo2();
	sim_limit(20 * LIMIT_NS);
	alarm(RUN_S);
	sim_run(r->seed, story, r);
	r->result->digest = sim_digest();
	r->result->switches = sim_switches();
	r->result->end_ns = sim_now();
	r->result->counts = sim_client_counts;
	r->result->drive_faults = sim_drive_faults;
	struct mallinfo2 after = mallinfo2();
	if (open_fds() != fds)
		return fprintf(stderr, "FAILED: %u descriptors at the end, %u at the start\n", open_fds(), fds), 1;
	size_t kept = after.uordblks > before.uordblks ? after.uordblks - before.uordblks : 0;
	if (r->learn && kept > r->result->kept_bytes)
		r->result->kept_bytes = kept;
	if (kept > r->result->kept_bytes + LEFT_BYTES)
		return fprintf(stderr, "FAILED: %zu bytes are not given back, %zu without faults\n", kept,
			       r->result->kept_bytes),
		       1;
	return 0;
}

// ---- runs

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

/* 0, EXIT_MISSING, or 1 with what is wrong on stderr. */
static int run_once(struct run *r)
{
	int status;
	snprintf(r->directory, sizeof r->directory, "%s/thaw-sim.XXXXXX",
		access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	if (!mkdtemp(r->directory))
		return fprintf(stderr, "sim: %s: %s\n", r->directory, strerrordesc_np(errno)), 1;
	fflush(NULL);
	pid_t pid = fork();
	if (pid == 0) {
		status = run_here(r);
		fflush(NULL);
		exit(status);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return fprintf(stderr, "sim: no process: %s\n", strerrordesc_np(errno)), 1;
	nftw(r->directory, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	if (WIFSIGNALED(status))
		fprintf(stderr, "FAILED: %s\n", WTERMSIG(status) == SIGALRM ? "it hangs" : strsignal(WTERMSIG(status)));
	if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_MISSING)
		return EXIT_MISSING;
	return status ? 1 : 0;
}

static int learn(const struct run *r)
{
	struct run x = *r;
	x.learn = true;
	x.seed = 0;
	x.learn_cold = r->result->missing_cold;
	x.learn_tensor = r->result->missing_tensor;
	if (run_once(&x))
		return fprintf(stderr, "sim: the run without faults failed\n"), 1;
	r->result->known[x.learn_cold][x.learn_tensor - 1] = true;
	return 0;
}

static int run_in_child(struct run *r)
{
	int status;
	while ((status = run_once(r)) == EXIT_MISSING) {
		if (learn(r))
			return 1;
	}
	return status;
}

static int run_seed(struct run *r, uint64_t seed, const char *only)
{
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	r->seed = seed;
	r->only = only;
	int status = run_in_child(r);
	uint64_t digest = r->result->digest;
	if (!status && r->options->twice) {
		status = run_in_child(r);
		if (!status && r->result->digest != digest) {
			fprintf(stderr, "FAILED: the second run went otherwise: %016llx, %016llx\n",
				(unsigned long long)digest, (unsigned long long)r->result->digest);
			status = 1;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	const struct sim_client_counts *c = &r->result->counts;
	printf("seed %llu: %s", (unsigned long long)seed, status ? "FAILED" : "ok");
	if (!status)
		printf(", %.1f s in %.2f s, %llu switches, %u answers, %u refused, %u unavailable, %u lost data, %llu "
		       "bad reads, "
		       "epoch %llu, %llu preemptions, digest %016llx",
			(double)r->result->end_ns / 1e9,
			(double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9,
			(unsigned long long)r->result->switches, c->answers, c->refused, c->unavailable, c->lost,
			(unsigned long long)r->result->drive_faults, (unsigned long long)r->result->epochs,
			(unsigned long long)r->result->preemptions, (unsigned long long)digest);
	else
		printf(" (again: sim --seed %llu%s%s%s --verbose)", (unsigned long long)seed, only ? " --only '" : "",
			only ? only : "", only ? "'" : "");
	printf("\n");
	fflush(stdout);
	return status;
}

static int run_all(struct run *r)
{
	const struct options *o = r->options;
	int failed = 0;
	for (uint32_t i = 0; o->fixed && i < base_array_size(fixed_seeds) && i < o->most; i++)
		failed += run_seed(r, fixed_seeds[i].seed, fixed_seeds[i].only);
	for (uint32_t i = 0; o->seed_given && i < o->count; i++)
		failed += run_seed(r, o->seed + i, o->only);
	for (uint32_t i = 0; i < o->fresh; i++) {
		uint64_t seed = 0;
		if (getrandom(&seed, sizeof seed, 0) < 0)
			return 1;
		failed += run_seed(r, seed >> 16, o->only);
	}
	if (failed)
		printf("%d seeds FAILED\n", failed);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static void usage(FILE *out)
{
	fprintf(out, "sim [OPTION]...\n\nSeveral nodes in one process, under virtual time, with faults by seed.\n\n"
		     "  --seed N      run this seed\n"
		     "  --count N     and the N - 1 that follow\n"
		     "  --fixed       run the fixed set of seeds\n"
		     "  --most N      but only N of them\n"
		     "  --fresh N     run N seeds that nobody has seen\n"
		     "  --faults N    instead of a drawn number\n"
		     "  --only KIND   only faults whose names begin so: 'drive', 'rank dies', 'message' ...\n"
		     "  --twice       each seed twice: both must go the same way\n"
		     "  --verbose     tell what happens\n");
}

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option options[] = {{"seed", required_argument, NULL, 's'},
		{"count", required_argument, NULL, 'c'}, {"fixed", no_argument, NULL, 'f'},
		{"most", required_argument, NULL, 'm'}, {"fresh", required_argument, NULL, 'n'},
		{"faults", required_argument, NULL, 'k'}, {"only", required_argument, NULL, 'o'},
		{"twice", no_argument, NULL, 't'}, {"verbose", no_argument, NULL, 'v'},
		{"help", no_argument, NULL, 'h'}, {0}};
	*o = (struct options){.count = 1, .most = UINT32_MAX, .faults = -1};
	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
		switch (c) {
		case 's':
			o->seed = strtoull(optarg, NULL, 0);
			o->seed_given = true;
			break;
		case 'c':
			o->count = (uint32_t)strtoul(optarg, NULL, 0);
			break;
		case 'f':
			o->fixed = true;
			break;
		case 'm':
			o->most = (uint32_t)strtoul(optarg, NULL, 0);
			break;
		case 'n':
			o->fresh = (uint32_t)strtoul(optarg, NULL, 0);
			break;
		case 'k':
			o->faults = atoi(optarg);
			break;
		case 'o':
			o->only = optarg;
			break;
		case 't':
			o->twice = true;
			break;
		case 'v':
			sim_verbose = true;
			break;
		default:
			usage(c == 'h' ? stdout : stderr);
			return c == 'h' ? 1 : -1;
		}
	}
	return 0;
}

/* Freed memory that malloc keeps for its thread counts as used: with none of that, what is used is what is lost. */
static void settle_malloc(char **argv)
{
	static const char name[] = "GLIBC_TUNABLES", value[] = "glibc.malloc.tcache_count=0";
	const char *has = getenv(name);
	if (has && strcmp(has, value) == 0)
		return;
	setenv(name, value, 1);
	execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
	settle_malloc(argv);
	struct options o;
	struct tiny_model m[] = {
		{.layers = 6, .width = 64, .ffn_width = 160, .vocab = 320, .context = 512, .seed = 7},
		{.layers = 12, .width = 128, .ffn_width = 384, .vocab = 320, .context = 512, .seed = 8},
	};
	int status = parse(argc, argv, &o);
	if (status)
		return status > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
	struct run r = {.options = &o};
	r.result = mmap(NULL, sizeof *r.result, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	r.null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (r.result == MAP_FAILED || r.null_fd < 0)
		return fprintf(stderr, "sim: no memory\n"), EXIT_FAILURE;
	for (uint32_t i = 0; i < 2 && !status; i++) {
		snprintf(r.model[i], sizeof r.model[i], "/tmp/thaw-sim-%d-%u.gguf", (int)getpid(), i);
		status = tiny_model_save(&m[i], r.model[i]);
	}
	if (!status)
		status = run_all(&r);
	unlink(r.model[0]);
	unlink(r.model[1]);
	return status ? EXIT_FAILURE : EXIT_SUCCESS;
}
