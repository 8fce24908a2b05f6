// SPDX-License-Identifier: Apache-2.0
// doctor: what this machine, its configuration and the daemon lack. It looks, and changes nothing.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/config.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/admin/v1/admin.pb-c.h"

#define MIB (1024.0 * 1024)
#define MIN_MEMLOCK_BYTES (64ull << 20)
#define CALL_NS (3 * BASE_NS_PER_SECOND)
#define MAX_FINDINGS (16u + CONFIG_MAX_MODELS)

enum state { STATE_OK, STATE_WARN, STATE_FAIL };
static const char *const state_names[] = {"ok", "warn", "fail"};

struct finding {
	const char *check;
	enum state state;
	char text[384], help[256];
};

struct doctor {
	struct ctl *ctl;
	struct config config;
	char store[CONFIG_TEXT_BYTES]; // that is there: store.path, or the directory that it will be made in
	uint32_t count;
	struct finding findings[MAX_FINDINGS];
};

/* help: NULL or what would help. */
__attribute__((format(printf, 5, 6))) static void add(
	struct doctor *d, const char *check, enum state state, const char *help, const char *fmt, ...)
{
	if (d->count == MAX_FINDINGS)
		return;
	struct finding *f = &d->findings[d->count++];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(f->text, sizeof f->text, fmt, ap);
	va_end(ap);
	f->check = check;
	f->state = state;
	snprintf(f->help, sizeof f->help, "%s", help ? help : "");
}

static bool read_line(const char *path, char *out, size_t room)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");
	if (!f || !fgets(out, (int)room, f))
		return false;
	out[strcspn(out, "\n")] = '\0';
	return true;
}

/* ---- configuration ---- */

static void check_config(struct doctor *d)
{
	struct base_error e = {0};
	const struct config_source source = {
		.main_file = d->ctl->options.config,
		.conf_dir = d->ctl->options.conf_dir,
		.sets = d->ctl->options.sets.items,
		.environment = true,
	};
	if (config_load(&source, &d->config, NULL, &e) < 0) {
		add(d, "config", STATE_FAIL, "mend that line; the checks below use the defaults", "%s",
			base_error_text(&e));
		config_defaults(&d->config);
	} else {
		add(d, "config", STATE_OK, NULL, "valid, %u models", d->config.models_count);
	}
	for (uint32_t i = 0; i < d->config.models_count; i++) {
		const struct config_model *m = &d->config.models[i];
		struct stat st;
		if (stat(m->path, &st) < 0)
			add(d, "model", STATE_FAIL, "correct models[].path, or copy the file there", "%s: %s: %s",
				m->name, m->path, strerrordesc_np(errno));
		else if (!S_ISREG(st.st_mode) || access(m->path, R_OK) < 0)
			add(d, "model", STATE_FAIL, "it has to be a file that thawd may read", "%s: %s cannot be read",
				m->name, m->path);
		else
			add(d, "model", STATE_OK, NULL, "%s: %s, %.0f MiB", m->name, m->path, (double)st.st_size / MIB);
	}
}

/* ---- the drive ---- */

static void check_store(struct doctor *d)
{
	const char *path = d->config.store.path;
	struct stat st;
	snprintf(d->store, sizeof d->store, "%s", path);
	bool there = stat(path, &st) == 0;
	char *slash = there ? NULL : strrchr(d->store, '/');
	if (slash)
		slash[slash == d->store] = '\0';
	if ((!there && stat(d->store, &st) < 0) || !S_ISDIR(st.st_mode)) {
		add(d, "store", STATE_FAIL, "make it, mount its drive, or correct store.path", "%s: %s", d->store,
			strerrordesc_np(there ? ENOTDIR : ENOENT));
		d->store[0] = '\0';
	} else if (access(d->store, W_OK | X_OK) < 0) {
		add(d, "store", STATE_WARN, "run this as the user of thawd, or give that user the directory",
			"%s: this user may not write there", d->store);
	} else {
		add(d, "store", STATE_OK, NULL, "%s%s", path, there ? "" : ": not there yet, and will be made");
	}
}

static void check_room(struct doctor *d)
{
	struct statvfs fs;
	uint64_t need = 0;
	if (!d->store[0] || statvfs(d->store, &fs) < 0)
		return;
	uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
	for (uint32_t i = 0; i < d->config.models_count; i++) {
		struct stat st;
		need += stat(d->config.models[i].path, &st) == 0 ? (uint64_t)st.st_size : 0;
	}
	bool tight = room < need;
	add(d, "space", tight ? STATE_WARN : STATE_OK,
		tight ? "enough if the models are packed already; else free space, or another store.path" : NULL,
		"%.0f MiB free in %s; the configured models have %.0f MiB", (double)room / MIB, d->store,
		(double)need / MIB);
}

static void check_direct(struct doctor *d)
{
	if (!d->store[0] || access(d->store, W_OK | X_OK) < 0)
		return;
	_cleanup_close_ int fd = open(d->store, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
	if (fd >= 0)
		add(d, "direct_io", STATE_OK, NULL, "O_DIRECT works in %s", d->store);
	else
		add(d, "direct_io", STATE_WARN,
			"put store.path on a local ext4 or XFS; else reads go through the page cache",
			"O_DIRECT is refused in %s: %s", d->store, strerrordesc_np(errno));
}

/* ---- kernel and machine ---- */

static void check_kernel(struct doctor *d)
{
	struct utsname u;
	unsigned major = 0, minor = 0;
	if (uname(&u) < 0 || sscanf(u.release, "%u.%u", &major, &minor) != 2)
		return;
	bool old = major < 6 || (major == 6 && minor < 1);
	add(d, "kernel", old ? STATE_WARN : STATE_OK, old ? "6.1 or later reads with less CPU time" : NULL, "Linux %s",
		u.release);
}

static void check_uring(struct doctor *d)
{
	uint8_t parameters[256] = {0}; // struct io_uring_params has 120
	char disabled[16] = "";
	long fd = syscall(SYS_io_uring_setup, 4, parameters);
	if (fd >= 0) {
		close((int)fd);
		add(d, "io_uring", STATE_OK, NULL, "may be used");
		return;
	}
	read_line("/proc/sys/kernel/io_uring_disabled", disabled, sizeof disabled);
	add(d, "io_uring", STATE_WARN,
		disabled[0] && disabled[0] != '0'
			? "sysctl kernel.io_uring_disabled=0; until then threads read, which costs CPU and bandwidth"
			: "allow io_uring_setup, io_uring_enter, io_uring_register in the seccomp profile; until then "
			  "threads read",
		"refused: %s%s%s", strerrordesc_np(errno), disabled[0] ? ", kernel.io_uring_disabled is " : "",
		disabled);
}

static void check_huge_pages(struct doctor *d)
{
	char thp[96] = "unknown", line[128];
	unsigned long long pages = 0;
	_cleanup_fclose_ FILE *f = fopen("/proc/meminfo", "re");
	while (f && fgets(line, sizeof line, f) && sscanf(line, "HugePages_Total: %llu", &pages) != 1)
		;
	read_line("/sys/kernel/mm/transparent_hugepage/enabled", thp, sizeof thp);
	bool good = pages || strstr(thp, "[always]") || strstr(thp, "[madvise]");
	add(d, "huge_pages", good ? STATE_OK : STATE_WARN,
		good ? NULL
		     : "set /sys/kernel/mm/transparent_hugepage/enabled to madvise, or vm.nr_hugepages; small pages "
		       "may halve "
		       "the drive's bandwidth",
		"transparent: %s; hugetlb pages: %llu", thp, pages);
}

static void check_memlock(struct doctor *d)
{
	struct rlimit r;
	if (getrlimit(RLIMIT_MEMLOCK, &r) < 0)
		return;
	bool small = r.rlim_cur != RLIM_INFINITY && r.rlim_cur < MIN_MEMLOCK_BYTES, low = small && geteuid() != 0;
	if (r.rlim_cur == RLIM_INFINITY)
		add(d, "memlock", STATE_OK, NULL, "unlimited");
	else if (small && !low) // root locks what it likes: this says nothing of thawd's user
		add(d, "memlock", STATE_OK, NULL,
			"%.0f MiB here, which does not bind root; as the user of thawd doctor sees that user's limit",
			(double)r.rlim_cur / MIB);
	else
		add(d, "memlock", low ? STATE_WARN : STATE_OK,
			low ? "LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited: the ring's buffers count "
			      "against it"
			    : NULL,
			"%.0f MiB for this user", (double)r.rlim_cur / MIB);
}

static void check_cpu(struct doctor *d)
{
#ifdef __x86_64__
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512vnni"))
		add(d, "cpu", STATE_OK, NULL, "AVX-512 VNNI");
	else if (__builtin_cpu_supports("avx2"))
		add(d, "cpu", STATE_OK, NULL, "AVX2");
	else
#endif
		add(d, "cpu", STATE_WARN,
			"a CPU with AVX2 is several times faster; in a guest, pass the host's CPU through",
			"no AVX2: plain C computes");
}

/* ---- the daemon ---- */

static void check_daemon(struct doctor *d)
{
	Thaw__Admin__V1__GetServerInfoRequest request = THAW__ADMIN__V1__GET_SERVER_INFO_REQUEST__INIT;
	Thaw__Admin__V1__GetServerInfoReply *info = NULL;
	struct rpc_client_status status;
	int r = ctl_call_quiet(d->ctl->client, "Admin/GetServerInfo", &request, CALL_NS,
		&thaw__admin__v1__get_server_info_reply__descriptor, &info, &status);
	if (r < 0 || !info)
		add(d, "daemon", STATE_WARN,
			"systemctl status thawd; or --server, if it listens elsewhere; the socket needs its group",
			"no daemon answers at %s", d->ctl->address);
	else if (strcmp(info->version, THAW_VERSION) != 0)
		add(d, "daemon", STATE_WARN, "restart thawd after an upgrade",
			"thawd %s answers, and this is thawctl %s", info->version, THAW_VERSION);
	else if (!info->ready)
		add(d, "daemon", STATE_WARN, "thawctl status and thawctl events say why",
			"thawd %s answers and is not ready", info->version);
	else
		add(d, "daemon", STATE_OK, NULL, "thawd %s is ready at %s", info->version, d->ctl->address);
	ctl_free(info);
}

static void print_json(struct doctor *d, bool failed)
{
	struct json_object *o = ctl_json_new(), *list = json_object_new_array();
	for (uint32_t i = 0; i < d->count; i++) {
		struct json_object *f = json_object_new_object();
		json_object_object_add(f, "check", json_object_new_string(d->findings[i].check));
		json_object_object_add(f, "state", json_object_new_string(state_names[d->findings[i].state]));
		json_object_object_add(f, "text", json_object_new_string(d->findings[i].text));
		json_object_object_add(f, "help", json_object_new_string(d->findings[i].help));
		json_object_array_add(list, f);
	}
	json_object_object_add(o, "checks", list);
	json_object_object_add(o, "failed", json_object_new_boolean(failed));
	ctl_json_print(d->ctl, o);
}

int ctl_verb_doctor(struct ctl *c)
{
	static void (*const checks[])(struct doctor *) = {check_config, check_store, check_room, check_direct,
		check_kernel, check_uring, check_huge_pages, check_memlock, check_cpu, check_daemon};
	static const struct ctl_column columns[] = {
		{"CHECK", false, false}, {"STATE", false, false}, {"FOUND", false, false}};
	_cleanup_free_ struct doctor *d = calloc(1, sizeof *d);
	bool failed = false;
	if (!d)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	d->ctl = c;
	for (size_t i = 0; i < base_array_size(checks); i++)
		checks[i](d);
	for (uint32_t i = 0; i < d->count; i++)
		failed |= d->findings[i].state == STATE_FAIL;
	if (c->output == CTL_OUTPUT_JSON) {
		print_json(d, failed);
		return failed ? CTL_ERROR : CTL_OK;
	}
	struct ctl_table t;
	ctl_table_init(&t, columns, base_array_size(columns));
	for (uint32_t i = 0; i < d->count; i++) {
		const struct finding *f = &d->findings[i];
		ctl_table_cell(&t, "%s", f->check);
		ctl_table_cell(&t, "%s", state_names[f->state]);
		ctl_table_cell(&t, "%s%s%s", f->text, f->help[0] ? "; " : "", f->help);
	}
	ctl_table_print(&t, c);
	return failed ? CTL_ERROR : CTL_OK;
}
