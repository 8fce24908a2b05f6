// SPDX-License-Identifier: Apache-2.0
// thawd: starts everything, then waits for signals and tells the service manager how it goes.
#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/metrics.h"
#include "daemon/notify.h"
#include "daemon/rpc/rpc.h"
#include "daemon/server.h"

#define MAX_SETS 64
#define TICK_NS (200 * 1000000ull)
#define LARGE_BYTES (256 << 10)
#define STOP_EXTRA_NS (2 * BASE_NS_PER_SECOND) // for calls to end after their requests did

enum { EXIT_USAGE = 64, EXIT_CONFIG = 78 }; // as in sysexits(3); the unit file knows the second

struct arguments {
	struct config_source source;
	const char *sets[MAX_SETS + 1];
	size_t sets_count;
	char level[48];
	bool check;
};

struct daemon {
	struct arguments arguments;
	struct config config;
	struct base_log log;
	struct server *server;
	struct rpc_server *rpc;
	struct metrics_server *metrics;
	int signal_fd;
	bool stopping; // the first signal came
	uint64_t stop_at_ns;
	struct server_model_info *infos; // (CONFIG_MAX_MODELS), scratch
	uint64_t health; // hash of what the health service shows
	uint64_t progress; // hash of loading
	uint64_t next_watchdog_ns;
	char status[256];
};

static void usage(FILE *out)
{
	fprintf(out, "Usage: thawd [OPTIONS]\n"
		     "Serves language models over gRPC.\n\n"
		     "  --config FILE      configuration (/etc/thaw/thaw.yaml if it is there)\n"
		     "  --conf-dir DIR     directory of more, *.yaml in name order (/etc/thaw/conf.d)\n"
		     "  --set KEY=VALUE    one setting; wins over files and environment; may be repeated\n"
		     "  --log-level WORD   error, warning, notice, info or debug: as --set daemon.log_level=WORD\n"
		     "  --check            check the configuration and the store's place, and stop\n"
		     "  --help, --version\n\n"
		     "SIGTERM and SIGINT drain, then stop; a second one stops at once. SIGHUP reads the configuration "
		     "again.\n"
		     "Exit status: 0 stopped, 1 could not start or run, 64 usage, 78 bad configuration.\n");
}

static int add_set(struct arguments *a, const char *set)
{
	if (a->sets_count == MAX_SETS) {
		fprintf(stderr, "thawd: more than %d --set\n", MAX_SETS);
		return -E2BIG;
	}
	a->sets[a->sets_count++] = set;
	return 0;
}

/* 1: help or version was printed. */
static int parse_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {{"config", required_argument, NULL, 'c'},
		{"conf-dir", required_argument, NULL, 'd'}, {"set", required_argument, NULL, 's'},
		{"log-level", required_argument, NULL, 'l'}, {"check", no_argument, NULL, 'k'},
		{"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {0}};
	int c, status = 0;
	*a = (struct arguments){.source = {.environment = true}};
	while (!status && (c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (c) {
		case 'c':
			a->source.main_file = optarg;
			break;
		case 'd':
			a->source.conf_dir = optarg;
			break;
		case 's':
			status = add_set(a, optarg);
			break;
		case 'l':
			snprintf(a->level, sizeof a->level, "daemon.log_level=%s", optarg);
			status = add_set(a, a->level);
			break;
		case 'k':
			a->check = true;
			break;
		case 'h':
			usage(stdout);
			return 1;
		case 'V':
			printf("thawd %s\n", THAW_VERSION);
			return 1;
		default:
			fprintf(stderr, "thawd: try --help\n"); // getopt has said why
			status = -EINVAL;
		}
	}
	if (!status && optind < argc) {
		fprintf(stderr, "thawd: \"%s\" is not an option; try --help\n", argv[optind]);
		status = -EINVAL;
	}
	a->source.sets = a->sets;
	return status;
}

static int read_config(const struct arguments *a, struct config *ret_config, struct base_error *e)
{
	struct config_origins *origins = NULL;
	int status = config_load(&a->source, ret_config, &origins, e);
	config_origins_free(origins);
	return status;
}

/* Before any thread starts: gRPC's threads inherit the mask, and signals come through the descriptor alone. */
static int block_signals(int *ret_fd)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	signal(SIGPIPE, SIG_IGN);
	if (pthread_sigmask(SIG_BLOCK, &set, NULL))
		return -EINVAL;
	*ret_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return *ret_fd < 0 ? -errno : 0;
}

/* ---- what is told to others ---- */

static uint64_t mix(uint64_t h, uint64_t v)
{
	return (h ^ v) * 0x100000001b3ull;
}

static void describe(struct daemon *d, uint32_t count, uint32_t *ret_busy)
{
	uint32_t ready = 0, running = 0, waiting = 0;
	const struct server_model_info *loading = NULL;
	uint64_t progress = 0;
	*ret_busy = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct server_model_info *m = &d->infos[i];
		ready += m->phase == SERVER_PHASE_READY;
		running += m->load.running;
		waiting += m->load.waiting;
		progress = mix(mix(progress, m->phase), m->done_bytes);
		if (m->phase < SERVER_PHASE_READY && !loading)
			loading = m;
	}
	*ret_busy = running + waiting + (d->stopping && server_cluster_leaves(d->server));
	char text[sizeof d->status];
	if (d->stopping && server_cluster_leaves(d->server))
		snprintf(text, sizeof text, "draining: its layers go to other nodes");
	else if (d->stopping)
		snprintf(text, sizeof text, "draining: %u requests left", running + waiting);
	else if (server_worker_text(d->server, text, sizeof text))
		; // that is all there is to say
	else if (loading)
		snprintf(text, sizeof text, "loading %s: %s %u%%", loading->name, server_phase_name(loading->phase),
			loading->total_bytes
				? (unsigned)(100.0 * (double)loading->done_bytes / (double)loading->total_bytes)
				: 0);
	else
		snprintf(text, sizeof text, "%u of %u models ready, %u requests running, %u waiting", ready, count,
			running, waiting);
	if (strcmp(text, d->status) != 0) {
		snprintf(d->status, sizeof d->status, "%s", text);
		notify_status("%s", text);
	}
	if (loading && progress != d->progress)
		notify_extend_timeout(60 * BASE_NS_PER_SECOND);
	d->progress = progress;
}

static void tell_health(struct daemon *d, uint32_t count)
{
	uint64_t h = mix(1, server_ready(d->server));
	for (uint32_t i = 0; i < count; i++) {
		h = mix(mix(mix(h, d->infos[i].phase), d->infos[i].load.state), d->infos[i].load.data_loss[0] != 0);
		for (const char *p = d->infos[i].name; *p; p++)
			h = mix(h, (uint64_t)*p);
	}
	if (h != d->health)
		rpc_server_update_health(d->rpc);
	d->health = h;
}

static void feed_watchdog(struct daemon *d, uint64_t now)
{
	uint64_t interval = notify_watchdog_interval_ns();
	if (!interval || now < d->next_watchdog_ns || !server_healthy(d->server))
		return;
	notify_watchdog();
	d->next_watchdog_ns = now + interval;
}

/* Returns how many requests are in the house, and whether others still take over what this worker computes. */
static uint32_t tick(struct daemon *d)
{
	uint32_t busy, count = server_list_models(d->server, d->infos, CONFIG_MAX_MODELS);
	describe(d, count, &busy);
	tell_health(d, count);
	feed_watchdog(d, base_clock_now_ns());
	return busy;
}

/* ---- signals ---- */

static void reload(struct daemon *d)
{
	struct base_error e = {0};
	_cleanup_free_ struct config *fresh = calloc(1, sizeof *fresh);
	notify_reloading();
	int status = fresh ? read_config(&d->arguments, fresh, &e) : -ENOMEM;
	if (status) {
		server_emit_event(d->server, "error", "reload_failed", "", base_error_text(&e));
		server_reload_done(d->server, status, base_error_text(&e));
	} else {
		const char *fixed = config_first_fixed_change(&d->config, fresh);
		enum base_log_level level;
		char text[192];
		if (base_log_parse_level(fresh->daemon.log_level, &level) == 0)
			atomic_store(&d->log.level, (int)level);
		server_set_drain(d->server, fresh->daemon.drain_ns);
		d->config.daemon = fresh->daemon;
		snprintf(text, sizeof text, fixed ? "%s has changed too: that needs a restart" : "done", fixed);
		server_emit_event(d->server, fixed ? "warning" : "notice", "reloaded", "", text);
		server_reload_done(d->server, 0, text);
	}
	notify_ready(d->status);
}

/* True: stop now. */
static bool on_signal(struct daemon *d, uint32_t number)
{
	if (number == SIGHUP) {
		reload(d);
		return false;
	}
	base_log_notice(&d->log, "%s: %s", sigdescr_np((int)number), d->stopping ? "stopping at once" : "draining");
	if (d->stopping)
		return true;
	d->stopping = true;
	d->stop_at_ns = base_clock_now_ns() + d->config.daemon.drain_ns;
	notify_stopping("draining");
	notify_extend_timeout(d->config.daemon.drain_ns + 15 * BASE_NS_PER_SECOND);
	server_drain(d->server, true);
	server_cluster_drain(d->server);
	rpc_server_update_health(d->rpc);
	return false;
}

static void run(struct daemon *d)
{
	for (;;) {
		struct pollfd p = {.fd = d->signal_fd, .events = POLLIN};
		struct signalfd_siginfo info;
		poll(&p, 1, (int)(TICK_NS / 1000000));
		while (read(d->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
			if (on_signal(d, info.ssi_signo))
				return;
		}
		if (server_reload_wanted(d->server))
			reload(d);
		uint32_t busy = tick(d);
		if (d->stopping && (!busy || base_clock_now_ns() >= d->stop_at_ns))
			return;
	}
}

/* ---- life ---- */

static int start(struct daemon *d, struct base_error *e)
{
	int status = server_create(&d->config, &d->log, &d->server, e);
	if (!status)
		status = rpc_server_start(d->server, &d->log, &d->rpc, e);
	if (!status && d->config.listen.metrics[0])
		status = metrics_server_start(d->server, d->config.listen.metrics, &d->log, &d->metrics, e);
	if (!status)
		status = server_cluster_join(d->server, e);
	if (status)
		return status;
	notify_ready("listening");
	base_log_notice(
		&d->log, "listening on %s version=%s pid=%d", d->config.listen.grpc, THAW_VERSION, (int)getpid());
	server_load_configured(d->server);
	return 0;
}

static void stop(struct daemon *d)
{
	if (d->server)
		server_cluster_leave(d->server);
	bool quiet = !d->rpc || rpc_server_stop(d->rpc, STOP_EXTRA_NS);
	if (d->metrics)
		metrics_server_stop(d->metrics);
	if (quiet) // else the exit that follows ends the threads that still use it, and the ranks with this process
		server_destroy(d->server);
	free(d->infos);
}

int main(int argc, char **argv)
{
	struct daemon d = {0};
	struct base_error e = {0};
	enum base_log_level level = BASE_LOG_INFO;
	/* Large blocks go back to the system when they are freed; else each of malloc's many arenas keeps the largest
	 * it ever had. */
	mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
	int status = parse_arguments(argc, argv, &d.arguments);
	if (status)
		return status > 0 ? EXIT_SUCCESS : EXIT_USAGE;
	status = read_config(&d.arguments, &d.config, &e);
	if (!status && d.arguments.check)
		status = server_check_store(d.config.store.path, &e);
	if (!status && d.arguments.check)
		status = config_check_files(&d.config, &e);
	if (status || d.arguments.check) {
		fprintf(status ? stderr : stdout, "thawd: %s\n",
			status ? base_error_text(&e) : "the configuration is good");
		return status ? EXIT_CONFIG : EXIT_SUCCESS;
	}
	base_log_parse_level(d.config.daemon.log_level, &level);
	base_log_init(&d.log, "thawd", level);
	d.infos = calloc(CONFIG_MAX_MODELS, sizeof *d.infos);
	if (!d.infos || block_signals(&d.signal_fd) < 0) {
		base_log_error(&d.log, "no memory or no signalfd");
		return EXIT_FAILURE;
	}
	status = start(&d, &e);
	if (status)
		base_log_error(&d.log, "%s", base_error_text(&e));
	else
		run(&d);
	stop(&d);
	if (!status)
		base_log_notice(&d.log, "stopped");
	return status ? EXIT_FAILURE : EXIT_SUCCESS;
}
