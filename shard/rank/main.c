// SPDX-License-Identifier: Apache-2.0
// thaw-rank: one device running one shard. thawd starts it, with a connected socket to itself and one to each
// rank that it talks to; what it shall load comes over the link. See usage() and serve.h.
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "shard/link/measure.h"
#include "shard/rank/message.h"
#include "shard/rank/serve.h"

#define CONNECT_NS (30 * BASE_NS_PER_SECOND)
#define MEASURE_NS (3 * BASE_NS_PER_SECOND) // most, with the time to connect
#define MEASURE_RING_BYTES (1u << 20)
#define TENSOR_RING_BYTES (256u << 10)
#define OOM_SCORE "500" // a rank can be started again and its requests go on; thawd cannot

enum exit_code { // the parent looks at these only to tell people
	EXIT_STOPPED = 0,
	EXIT_FAILED = 1, // ASSIGN could not be done, or the protocol was broken
	EXIT_USAGE = 2,
	EXIT_GONE = 3, // the coordinator or a neighbour ended the group
};

struct arguments {
	int fd, previous_fd;
	int next_fds[RANK_MAX_PARTS]; // in the order of rank_shape_receivers
	uint32_t next_fds_count;
	const struct link_ops *link;
	int tensor_fds[RANK_MAX_PARTS]; // in the order of the parts, without its own
	uint32_t tensor_fds_count;
	struct rank_shape shape;
	struct rank_place me;
	int measure, report_fd; // as which member of two; -1: it computes
	const char *name;
	enum base_log_level level;
};

static void usage(FILE *out)
{
	fprintf(out,
		"Usage: thaw-rank --fd N [OPTIONS]\n"
		"Computes one shard of a model. thawd starts it; there is nothing to run by hand.\n\n"
		"  --fd N             socket to the coordinator (an inherited, connected unix stream socket, as "
		"below)\n"
		"  --stage N          which pipeline stage this is (0)\n"
		"  --part N           which part of its layers this is (0)\n"
		"  --shape N[,N...]   how many ranks share the layers of each stage (1)\n"
		"  --previous-fd N    socket to the rank of the stage before that sends to this one; all but the "
		"first stage need it\n"
		"  --next-fd N        socket to a rank of the stage after that this one sends to; once for each, in "
		"their order\n"
		"  --link NAME        local (default), or ucx: then these sockets may be TCP, to other hosts\n"
		"  --part-fd N        socket to another part of these layers; once for each, in their order\n"
		"  --measure N        measure the link to the other end of --fd, as member 0 or 1 of two, and end\n"
		"  --report-fd N      where the figures go: ns and bytes per second, or ! and what went wrong\n"
		"  --name TEXT        what the process is called in lists and logs (rank-STAGE, rank-STAGE.PART)\n"
		"  --log-level WORD   error, warning, notice, info or debug (info)\n"
		"  --help, --version\n\n"
		"SIGTERM ends it after the pass under way; SIGINT and SIGHUP are left to thawd. It dies with thawd.\n"
		"Exit status: 0 stopped, 1 could not do what it was assigned, 2 usage, 3 the coordinator or a "
		"neighbour is gone.\n");
}

static int parse_number(const char *option, const char *text, long most, int *ret_value)
{
	char *end;
	errno = 0;
	long v = strtol(text, &end, 10);
	if (errno || end == text || *end || v < 0 || v > most) {
		fprintf(stderr, "thaw-rank: --%s: \"%s\" is not a number from 0 to %ld\n", option, text, most);
		return -EINVAL;
	}
	*ret_value = (int)v;
	return 0;
}

static int check_socket(const struct link_ops *link, const char *option, int fd, bool wanted)
{
	int domain = 0, type = 0;
	socklen_t n = sizeof domain;
	if (!wanted) {
		if (fd >= 0)
			fprintf(stderr, "thaw-rank: --%s: this stage has none\n", option);
		return fd >= 0 ? -EINVAL : 0;
	}
	if (fd < 0) {
		fprintf(stderr, "thaw-rank: --%s is needed (thawd starts thaw-rank; see --help)\n", option);
		return -EINVAL;
	}
	bool tcp = link == &link_ucx_ops;
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) < 0 ||
		(domain != AF_UNIX && !(tcp && (domain == AF_INET || domain == AF_INET6))) ||
		getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) < 0 || type != SOCK_STREAM) {
		fprintf(stderr, "thaw-rank: --%s: descriptor %d is not a %s socket\n", option, fd,
			tcp ? "unix or TCP stream" : "unix stream");
		return -EINVAL;
	}
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return 0;
}

static int check_sockets(const struct arguments *a, const char *option, const int *fds, uint32_t count, uint32_t wanted)
{
	char shape[RANK_SHAPE_TEXT_BYTES];
	int r = 0;
	if (count != wanted) {
		fprintf(stderr, "thaw-rank: %u times --%s, %u are needed for --stage %u --part %u of --shape %s\n",
			count, option, wanted, a->me.stage, a->me.part, rank_shape_print(&a->shape, shape));
		return -EINVAL;
	}
	for (uint32_t i = 0; i < count && !r; i++)
		r = check_socket(a->link, option, fds[i], true);
	return r;
}

static int check_arguments(const struct arguments *a)
{
	uint32_t ranks[RANK_MAX_PARTS];
	char shape[RANK_SHAPE_TEXT_BYTES];
	if (a->me.stage >= a->shape.stages || a->me.part >= a->shape.parts[a->me.stage]) {
		fprintf(stderr, "thaw-rank: --stage %u --part %u of --shape %s\n", a->me.stage, a->me.part,
			rank_shape_print(&a->shape, shape));
		return -EINVAL;
	}
	if (a->measure >= 0 && a->report_fd < 0) {
		fprintf(stderr, "thaw-rank: --measure needs --report-fd\n");
		return -EINVAL;
	}
	int r = check_socket(a->link, "fd", a->fd, true);
	if (!r)
		r = check_socket(a->link, "previous-fd", a->previous_fd, a->me.stage > 0);
	if (!r)
		r = check_sockets(a, "next-fd", a->next_fds, a->next_fds_count,
			rank_shape_receivers(&a->shape, rank_shape_rank(&a->shape, a->me), ranks));
	if (!r)
		r = check_sockets(a, "part-fd", a->tensor_fds, a->tensor_fds_count, a->shape.parts[a->me.stage] - 1u);
	return r;
}

static int parse_link(const char *text, const struct link_ops **ret_link)
{
	static const struct link_ops *const all[] = {&link_local_ops, &link_ucx_ops};
	for (size_t i = 0; i < base_array_size(all); i++) {
		if (strcmp(text, all[i]->capabilities.name) == 0) {
			*ret_link = all[i];
			return 0;
		}
	}
	fprintf(stderr, "thaw-rank: --link: \"%s\" is none of local, ucx\n", text);
	return -EINVAL;
}

static int parse_shape(const char *text, struct rank_shape *ret_shape)
{
	if (rank_shape_parse(text, ret_shape) == 0)
		return 0;
	fprintf(stderr, "thaw-rank: --shape: \"%s\" is no list of 1 to %u for each stage, %u ranks at most\n", text,
		RANK_MAX_PARTS, RANK_MAX_RANKS);
	return -EINVAL;
}

/* One more socket of a kind. */
static int parse_socket(const char *option, const char *text, int *fds, uint32_t *count)
{
	if (*count == RANK_MAX_PARTS) {
		fprintf(stderr, "thaw-rank: --%s: more than %u\n", option, RANK_MAX_PARTS);
		return -EINVAL;
	}
	return parse_number(option, text, 1 << 20, &fds[(*count)++]);
}

/* 1: help or version was printed. */
static int parse_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {{"fd", required_argument, NULL, 'f'},
		{"stage", required_argument, NULL, 's'}, {"shape", required_argument, NULL, 'S'},
		{"previous-fd", required_argument, NULL, 'p'}, {"next-fd", required_argument, NULL, 'n'},
		{"part", required_argument, NULL, 't'}, {"part-fd", required_argument, NULL, 'P'},
		{"measure", required_argument, NULL, 'm'}, {"report-fd", required_argument, NULL, 'r'},
		{"name", required_argument, NULL, 'N'}, {"link", required_argument, NULL, 'L'},
		{"log-level", required_argument, NULL, 'l'}, {"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'}, {0}};
	int c, r = 0, at = 0, stage = 0, part = 0;
	*a = (struct arguments){.fd = -1,
		.previous_fd = -1,
		.shape = {1, {1}},
		.measure = -1,
		.report_fd = -1,
		.link = &link_local_ops,
		.level = BASE_LOG_INFO};
	while (!r && (c = getopt_long(argc, argv, "", options, &at)) >= 0) {
		if (c == 'f')
			r = parse_number("fd", optarg, 1 << 20, &a->fd);
		else if (c == 's')
			r = parse_number("stage", optarg, LINK_MAX_MEMBERS, &stage);
		else if (c == 'S')
			r = parse_shape(optarg, &a->shape);
		else if (c == 'p')
			r = parse_number("previous-fd", optarg, 1 << 20, &a->previous_fd);
		else if (c == 'n')
			r = parse_socket("next-fd", optarg, a->next_fds, &a->next_fds_count);
		else if (c == 't')
			r = parse_number("part", optarg, LINK_MAX_MEMBERS, &part);
		else if (c == 'P')
			r = parse_socket("part-fd", optarg, a->tensor_fds, &a->tensor_fds_count);
		else if (c == 'm')
			r = parse_number("measure", optarg, 1, &a->measure);
		else if (c == 'r')
			r = parse_number("report-fd", optarg, 1 << 20, &a->report_fd);
		else if (c == 'N')
			a->name = optarg;
		else if (c == 'L')
			r = parse_link(optarg, &a->link);
		else if (c == 'l')
			r = base_log_parse_level(optarg, &a->level);
		else if (c == 'h')
			return usage(stdout), 1;
		else if (c == 'V')
			return printf("thaw-rank %s\n", THAW_VERSION), 1;
		else
			r = -EINVAL; // getopt has said why
		if (r && c == 'l')
			fprintf(stderr,
				"thaw-rank: --log-level: \"%s\" is none of error, warning, notice, info, debug\n",
				optarg);
	}
	if (!r && optind < argc) {
		fprintf(stderr, "thaw-rank: \"%s\" is not an option\n", argv[optind]);
		r = -EINVAL;
	}
	a->me = (struct rank_place){(uint32_t)stage, (uint32_t)part};
	return r ? r : check_arguments(a);
}

/* Nothing here is needed for right results, so nothing here fails. */
static void settle_process(const char *name)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, name);
	_cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)!write(fd, OOM_SCORE, strlen(OOM_SCORE));
}

static void *wait_for_sigterm(void *arg)
{
	_Atomic bool *stop = arg;
	sigset_t set;
	int signal_number;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	while (sigwait(&set, &signal_number) != 0)
		;
	atomic_store(stop, true);
	return NULL;
}

/* SIGTERM is blocked in all threads, so that only the one that waits for it sees it. */
static int start_signal_thread(_Atomic bool *stop)
{
	sigset_t set;
	pthread_t thread;
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	int r = pthread_create(&thread, NULL, wait_for_sigterm, stop);
	if (r == 0)
		pthread_detach(thread);
	return -r;
}

/* The coordinator, and who this rank has hidden rows from and sends them to. */
static int connect_all(const struct arguments *a, struct link_group **ret_group, struct base_error *e)
{
	int fds[LINK_MAX_MEMBERS];
	uint32_t rank = rank_shape_rank(&a->shape, a->me), after[RANK_MAX_PARTS];
	uint32_t count = rank_shape_receivers(&a->shape, rank, after);
	for (uint32_t i = 0; i < LINK_MAX_MEMBERS; i++)
		fds[i] = -1;
	fds[0] = a->fd;
	if (a->me.stage > 0)
		fds[rank_member(rank_shape_sender(&a->shape, a->me))] = a->previous_fd;
	for (uint32_t i = 0; i < count; i++)
		fds[rank_member(after[i])] = a->next_fds[i];
	return a->link->create(fds, rank_member(rank_shape_ranks(&a->shape)), rank_member(rank), 0, 0,
		LINK_UNTIL(base_clock_now_ns() + CONNECT_NS), ret_group, e);
}

/* The other parts of the same layers, of the epoch that the coordinator said. */
static int connect_parts(const struct arguments *a, uint64_t epoch, struct link_group **ret_group, struct base_error *e)
{
	int fds[RANK_MAX_PARTS];
	uint32_t parts = a->shape.parts[a->me.stage];
	for (uint32_t i = 0, next = 0; i < parts; i++)
		fds[i] = i == a->me.part ? -1 : a->tensor_fds[next++];
	return a->link->create(fds, parts, a->me.part, epoch, TENSOR_RING_BYTES,
		LINK_UNTIL(base_clock_now_ns() + CONNECT_NS), ret_group, e);
}

static int serve(const struct arguments *a, struct base_log *log, const _Atomic bool *stop)
{
	struct link_group *group = NULL, *tensor = NULL;
	struct base_error e = {0};
	char shape[RANK_SHAPE_TEXT_BYTES];
	int r = connect_all(a, &group, &e);
	if (r == 0 && a->shape.parts[a->me.stage] > 1)
		r = connect_parts(a, group->epoch, &tensor, &e);
	if (r == 0) {
		base_log_debug(log, "connected epoch=%llu stage=%u part=%u shape=%s", (unsigned long long)group->epoch,
			a->me.stage, a->me.part, rank_shape_print(&a->shape, shape));
		r = rank_serve_until(a->link, group, tensor, log, stop, &e);
	}
	a->link->close(tensor);
	a->link->close(group);
	if (r == -ECONNRESET)
		base_log_notice(log, "ends: %s", base_error_text(&e));
	else if (r)
		base_log_error(log, "%s", base_error_text(&e));
	return r == 0 ? EXIT_STOPPED : r == -ECONNRESET ? EXIT_GONE : EXIT_FAILED;
}

/* A process of its own, so that whatever the transport does to it leaves thawd alone. */
static int measure(const struct arguments *a)
{
	struct link_group *group = NULL;
	struct link_measured v = {0};
	struct base_error e = {0};
	int fds[2] = {-1, -1};
	uint64_t until = base_clock_now_ns() + MEASURE_NS;
	bool first = a->measure == 0;
	fds[1 - a->measure] = a->fd;
	int r = a->link->create(
		fds, 2, (uint32_t)a->measure, first, first ? MEASURE_RING_BYTES : 0, LINK_UNTIL(until), &group, &e);
	if (r == 0)
		r = link_measure(group, until, &v, &e);
	a->link->close(group);
	if (r)
		dprintf(a->report_fd, "! %s\n", base_error_text(&e));
	else
		dprintf(a->report_fd, "%.0f %.0f\n", v.latency_ns, v.bytes_per_s);
	return r ? EXIT_FAILED : EXIT_STOPPED;
}

int main(int argc, char **argv)
{
	static _Atomic bool stop; // outlives main's frame: the signal thread is never joined
	struct arguments a;
	struct base_log log;
	char name[64];
	int r = parse_arguments(argc, argv, &a);
	if (r)
		return r > 0 ? EXIT_SUCCESS : EXIT_USAGE;
	snprintf(name, sizeof name, a.shape.parts[a.me.stage] > 1 ? "rank-%u.%u" : "rank-%u", a.me.stage, a.me.part);
	if (!a.name)
		a.name = name;
	settle_process(a.name);
	base_log_init(&log, a.name, a.level);
	if (a.measure >= 0)
		return measure(&a);
	r = start_signal_thread(&stop);
	if (r) {
		base_log_error(&log, "no thread for signals: %s", strerrordesc_np(-r));
		return EXIT_FAILED;
	}
	return serve(&a, &log, &stop);
}
