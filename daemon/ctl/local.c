// SPDX-License-Identifier: Apache-2.0
// A private daemon for one command: its own socket and configuration in a temporary folder, the store in the user's
// cache. It gets SIGTERM when we die, however that happens.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/v1/inference.pb-c.h"

#define FOLDER_PREFIX "thaw-local-"
#define STOP_NS (10 * BASE_NS_PER_SECOND)
#define MAX_SETS (CTL_MAX_LIST + 8)
#define POLL_TIMEOUT_NS (5 * BASE_NS_PER_SECOND)
#define LOG_TAIL_BYTES 2048

struct ctl_local {
	pid_t pid;
	char folder[128];
	pthread_mutex_t lock; // of stopped and exited: the signal thread stops, too
	bool exited, stopped;
	int wait_status;
};

static const char *const files[] = {"thawd.log", "thaw.sock", "thaw.sock.lock", "conf.d"};

static void remove_folder(const char *folder)
{
	for (size_t i = 0; i < base_array_size(files); i++) {
		char path[PATH_MAX];
		int n = snprintf(path, sizeof path, "%s/%s", folder, files[i]);
		if (n < 0 || (size_t)n >= sizeof path)
			continue;
		if (unlink(path) < 0 && (errno == EISDIR || errno == EPERM))
			rmdir(path);
	}
	rmdir(folder);
}

static const char *runtime_base(void)
{
	const char *base = getenv("XDG_RUNTIME_DIR");
	// The socket's path must stay short.
	return base && base[0] == '/' && strlen(base) < 48 && access(base, W_OK) == 0 ? base : "/tmp";
}

// What is left of a thawctl that was killed.
static void remove_stale(const char *base)
{
	DIR *d = opendir(base);
	if (!d)
		return;
	for (struct dirent *entry; (entry = readdir(d));) {
		if (strncmp(entry->d_name, FOLDER_PREFIX, strlen(FOLDER_PREFIX)) != 0)
			continue;
		char path[PATH_MAX];
		struct stat st;
		long pid = strtol(entry->d_name + strlen(FOLDER_PREFIX), NULL, 10);
		snprintf(path, sizeof path, "%s/%s", base, entry->d_name);
		if (pid > 0 && kill((pid_t)pid, 0) < 0 && errno == ESRCH && lstat(path, &st) == 0 &&
			S_ISDIR(st.st_mode) && st.st_uid == getuid())
			remove_folder(path);
	}
	closedir(d);
}

static int make_folders(const char *path)
{
	char part[PATH_MAX];
	for (const char *slash = path; slash; slash = strchr(slash + 1, '/')) {
		if (slash == path)
			continue;
		snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
		if (mkdir(part, 0700) < 0 && errno != EEXIST)
			return -errno;
	}
	return mkdir(path, 0700) < 0 && errno != EEXIST ? -errno : 0;
}

static int store_folder(struct ctl *c, char *out, size_t room)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
	if (cache && cache[0] == '/')
		snprintf(out, room, "%s/thaw", cache);
	else if (home && home[0] == '/')
		snprintf(out, room, "%s/.cache/thaw", home);
	else
		return ctl_fail(c, CTL_ERROR, "--local: set XDG_CACHE_HOME or HOME, for the store");
	int r = make_folders(out);
	return r < 0 ? ctl_fail(c, CTL_ERROR, "%s: %s", out, strerrordesc_np(-r)) : CTL_OK;
}

// Beside thawctl (installed), one level up (build tree), or by PATH.
static void find_daemon(char *out, size_t room)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	self[n > 0 ? n : 0] = '\0';
	static const char *const places[] = {"thawd", "../thawd"};
	char *slash = strrchr(self, '/');
	for (size_t i = 0; slash && i < base_array_size(places); i++) {
		snprintf(out, room, "%.*s/%s", (int)(slash - self), self, places[i]);
		struct stat st;
		if (stat(out, &st) == 0 && S_ISREG(st.st_mode) && access(out, X_OK) == 0)
			return;
	}
	snprintf(out, room, "thawd");
}

static void run_daemon(const char *program, char **argv, const char *folder, pid_t parent)
{
	sigset_t none;
	char log[160];
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		return; // it died before the line above
	setpgid(0, 0); // Ctrl-C is for thawctl, which then stops us
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	snprintf(log, sizeof log, "%s/thawd.log", folder);
	int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (in < 0 || out < 0 || dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 ||
		dup2(out, STDERR_FILENO) < 0)
		return;
	execvp(program, argv);
	dprintf(STDERR_FILENO, "%s: %s\n", program, strerrordesc_np(errno));
}

// The command line: no file of the system's configuration, then ours, then the user's --set.
struct command {
	char program[PATH_MAX], conf_dir[160], sets[8][PATH_MAX + 64];
	char *argv[2 * MAX_SETS + 8];
	size_t count;
};

static void add_set(struct command *m, char *set)
{
	m->argv[m->count++] = (char *)"--set";
	m->argv[m->count++] = set;
}

static int build_command(struct ctl *c, const char *folder, const char *model, struct command *m)
{
	char store[PATH_MAX - 64];
	int r = store_folder(c, store, sizeof store);
	if (r != CTL_OK)
		return r;
	find_daemon(m->program, sizeof m->program);
	snprintf(m->conf_dir, sizeof m->conf_dir, "%s/conf.d", folder);
	if (mkdir(m->conf_dir, 0700) < 0)
		return ctl_fail(c, CTL_ERROR, "%s: %s", m->conf_dir, strerrordesc_np(errno));
	m->argv[m->count++] = m->program;
	m->argv[m->count++] = (char *)"--config";
	m->argv[m->count++] = (char *)"/dev/null";
	m->argv[m->count++] = (char *)"--conf-dir";
	m->argv[m->count++] = m->conf_dir;
	snprintf(m->sets[0], sizeof m->sets[0], "listen.grpc=unix:%s/thaw.sock", folder);
	snprintf(m->sets[1], sizeof m->sets[1], "listen.metrics=");
	snprintf(m->sets[2], sizeof m->sets[2], "store.path=%s", store);
	snprintf(m->sets[3], sizeof m->sets[3], "models.0.path=%s", model);
	snprintf(m->sets[4], sizeof m->sets[4], "daemon.drain=1s");
	for (size_t i = 0; i < 5; i++)
		add_set(m, m->sets[i]);
	for (uint32_t i = 0; i < c->options.sets.count; i++)
		add_set(m, (char *)c->options.sets.items[i]);
	m->argv[m->count] = NULL;
	return CTL_OK;
}

int ctl_local_start(struct ctl *c)
{
	char model[PATH_MAX];
	if (!realpath(c->options.local, model))
		return ctl_fail(c, CTL_NOT_FOUND, "%s: %s", c->options.local, strerrordesc_np(errno));
	struct ctl_local *l = calloc(1, sizeof *l);
	_cleanup_free_ struct command *m = calloc(1, sizeof *m);
	if (!l || !m) {
		free(l);
		return ctl_fail(c, CTL_ERROR, "out of memory");
	}
	pthread_mutex_init(&l->lock, NULL);
	c->local = l;
	remove_stale(runtime_base());
	snprintf(l->folder, sizeof l->folder, "%s/" FOLDER_PREFIX "%d-XXXXXX", runtime_base(), getpid());
	if (!mkdtemp(l->folder)) {
		l->folder[0] = '\0';
		return ctl_fail(c, CTL_ERROR, "%s: %s", runtime_base(), strerrordesc_np(errno));
	}
	int r = build_command(c, l->folder, model, m);
	if (r != CTL_OK)
		return r;
	snprintf(c->address, sizeof c->address, "unix:%s/thaw.sock", l->folder);
	pid_t parent = getpid();
	l->pid = fork();
	if (l->pid == 0) {
		run_daemon(m->program, m->argv, l->folder, parent);
		_exit(127);
	}
	if (l->pid < 0)
		return ctl_fail(c, CTL_ERROR, "fork: %s", strerrordesc_np(errno));
	return CTL_OK;
}

static bool has_exited(struct ctl_local *l)
{
	pthread_mutex_lock(&l->lock);
	if (!l->exited && l->pid > 0 && waitpid(l->pid, &l->wait_status, WNOHANG) == l->pid)
		l->exited = true;
	bool exited = l->exited;
	pthread_mutex_unlock(&l->lock);
	return exited;
}

// The end of its log says why.
static int fail_with_log(struct ctl *c, const char *what)
{
	char path[160], tail[LOG_TAIL_BYTES + 1];
	snprintf(path, sizeof path, "%s/thawd.log", c->local->folder);
	_cleanup_fclose_ FILE *f = fopen(path, "r");
	size_t n = 0;
	if (f) {
		if (fseek(f, -(long)LOG_TAIL_BYTES, SEEK_END) < 0)
			rewind(f);
		n = fread(tail, 1, LOG_TAIL_BYTES, f);
	}
	tail[n] = '\0';
	while (n > 0 && tail[n - 1] == '\n')
		tail[--n] = '\0';
	bool bad_config = WIFEXITED(c->local->wait_status) && WEXITSTATUS(c->local->wait_status) == 78;
	return ctl_fail(c, bad_config ? CTL_USAGE : CTL_ERROR, "%s%s%s", what, n ? "; its last lines:\n" : "", tail);
}

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

int ctl_local_wait(struct ctl *c)
{
	static const char *const phases[] = {"queued", "digest", "pack", "load", "ready", "failed", "unloaded"};
	struct ctl_progress progress = {.ctl = c};
	Thaw__V1__GetModelRequest request = THAW__V1__GET_MODEL_REQUEST__INIT;
	for (long ms = 5;; ms = ms < 100 ? ms * 2 : 100) {
		Thaw__V1__Model *m = NULL;
		struct rpc_client_status status;
		int r = ctl_call_quiet(c->client, "Inference/GetModel", &request, POLL_TIMEOUT_NS,
			&thaw__v1__model__descriptor, &m, &status);
		if (r == 0 && status.code == 0) {
			Thaw__V1__ModelPhase phase = m->phase;
			if (phase == THAW__V1__MODEL_PHASE__MODEL_PHASE_FAILED) {
				ctl_progress_end(&progress);
				bool short_of = strcmp(m->error_reason, "DOES_NOT_FIT") == 0;
				r = ctl_fail(c, short_of ? CTL_DOES_NOT_FIT : CTL_ERROR, "%s", m->error);
				ctl_free(m);
				return r;
			}
			if (phase < base_array_size(phases))
				ctl_progress_show(&progress, phases[phase], m->done_bytes, m->total_bytes, m->eta_ns);
			ctl_free(m);
			if (phase == THAW__V1__MODEL_PHASE__MODEL_PHASE_READY) {
				ctl_progress_end(&progress);
				return CTL_OK;
			}
		}
		if (has_exited(c->local)) {
			ctl_progress_end(&progress);
			return fail_with_log(c, "the private daemon ended");
		}
		pause_ms(ms);
	}
}

void ctl_local_stop(struct ctl *c)
{
	struct ctl_local *l = c->local;
	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	if (!l->stopped && l->pid > 0 && !l->exited) {
		kill(l->pid, SIGTERM);
		uint64_t until = base_clock_now_ns() + STOP_NS;
		while (waitpid(l->pid, &l->wait_status, WNOHANG) == 0) {
			if (base_clock_now_ns() > until) {
				kill(l->pid, SIGKILL);
				waitpid(l->pid, &l->wait_status, 0);
				break;
			}
			pause_ms(5);
		}
		l->exited = true;
	}
	if (!l->stopped && l->folder[0])
		remove_folder(l->folder);
	l->stopped = true;
	pthread_mutex_unlock(&l->lock);
}

void ctl_local_free(struct ctl *c)
{
	if (!c->local)
		return;
	pthread_mutex_destroy(&c->local->lock);
	free(c->local);
	c->local = NULL;
}
