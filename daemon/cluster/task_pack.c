// SPDX-License-Identifier: Apache-2.0
/* The layers of an assignment in the store: packed from this node's copy of the model, if it is the coordinator's, else
 * from bytes that another node sends. Then of the model's own file only metadata is kept here, in
 * STORE/DIGEST/header.gguf, which has its length and holes for the tensors: a rank opens it as it would the file. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/units.h"
#include "daemon/cluster/pull.h"
#include "daemon/cluster/worker_internal.h"
#include "offload/hash.h"
#include "shard/format/gguf.h"
#include "shard/pack/pack.h"
#include "shard/program/program.h"

#define HEADER "header.gguf"
#define MAX_PROGRAM_DATA_BYTES (1u << 20)
#define PIECE_BYTES (1u << 20)
#define SPARE_MIB_PER_S 64u // at most: drives and links are busy with passes
#define SPARE_NICE 19
#define SPARE_PAUSE_NS 200000000 // between two layers
#define SETTLE_NS BASE_NS_PER_SECOND // that one that is over waits for a packer: the next one that is over looks again

static int on_progress(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes)
{
	static const char *const names[] = {"digest", "pack", "wait"};
	struct cluster_task *t = context;
	pthread_mutex_lock(&t->worker->lock);
	const char *name = phase == PACK_PHASE_PACK && t->pulls ? "pull" : names[phase];
	bool begins_to_wait = phase == PACK_PHASE_WAIT && strcmp(t->phase, name) != 0;
	snprintf(t->phase, sizeof t->phase, "%s", name);
	t->done_bytes = done_bytes;
	t->total_bytes = total_bytes;
	pthread_mutex_unlock(&t->worker->lock);
	if (begins_to_wait)
		base_log_info(t->worker->config.log, "%s is packed once another model is packed into %s",
			t->assign.model, t->worker->config.store_path);
	if (t->assign.spare && phase == PACK_PHASE_PACK) // about once for each MiB
		nanosleep(&(struct timespec){.tv_nsec = (long)(BASE_NS_PER_SECOND / SPARE_MIB_PER_S)}, NULL);
	return atomic_load(&t->release);
}

static void tell(struct cluster_task *t, const char *severity, const char *kind, const char *text)
{
	const struct cluster_events *v = &t->worker->config.events;
	if (v->event)
		v->event(v->context, severity, kind, t->assign.model, text);
}

static void on_dropped(void *context, uint32_t files, uint64_t bytes)
{
	struct cluster_task *t = context;
	char size[BASE_UNITS_TEXT_BYTES], text[160];
	snprintf(text, sizeof text, "%s, %u files: %s", base_units_format_bytes(bytes, size), files,
		t->assign.forget ? "its spare layers, since it was unloaded"
				 : "spare layers, of this model or others, whose room its own needed");
	tell(t, "notice", "spares_dropped", text);
}

/* ---- files that no rank has had ---- */

/* Lock held; loose_count: it is not there. */
static uint32_t find_loose(
	const struct cluster_worker *w, const uint8_t digest[static CLUSTER_DIGEST_BYTES], const char *name)
{
	uint32_t i = 0;
	while (i < w->loose_count &&
		(strcmp(w->loose[i].name, name) != 0 || memcmp(w->loose[i].digest, digest, CLUSTER_DIGEST_BYTES) != 0))
		i++;
	return i;
}

/* Lock held. The last one takes its place. */
static void drop_loose(struct cluster_worker *w, uint32_t i)
{
	w->loose[i] = w->loose[--w->loose_count];
}

static void on_relied(void *context, const uint8_t digest[16], const char *name, bool loose)
{
	struct cluster_worker *w = ((struct cluster_task *)context)->worker;
	pthread_mutex_lock(&w->lock);
	if (loose && find_loose(w, digest, name) == w->loose_count && w->loose_count < CLUSTER_MAX_LOOSE) {
		struct cluster_loose *x = &w->loose[w->loose_count++];
		memcpy(x->digest, digest, sizeof x->digest);
		snprintf(x->name, sizeof x->name, "%s", name);
	}
	pthread_mutex_unlock(&w->lock);
}

void cluster_worker_relied(
	struct cluster_worker *w, const uint8_t digest[static CLUSTER_DIGEST_BYTES], const char *name)
{
	pthread_mutex_lock(&w->lock);
	uint32_t i = find_loose(w, digest, name);
	if (i < w->loose_count)
		drop_loose(w, i);
	pthread_mutex_unlock(&w->lock);
}

/* Embedding and head count as everybody's. */
static bool has_file(const struct cluster_task *t, const struct cluster_loose *x)
{
	const struct cluster_slice *s = &t->assign.slice;
	uint32_t layer, part, parts;
	if (t->assign.spare || t->assign.forget || memcmp(t->assign.digest, x->digest, sizeof x->digest) != 0)
		return false;
	if (pack_file_parse(x->name, &layer, &part, &parts) < 0 || layer == PACK_LAYER_EMBED ||
		layer == PACK_LAYER_HEAD)
		return true;
	return layer >= s->first_layer && layer - s->first_layer < s->layers && part == s->tp_rank &&
	       parts == s->tp_size;
}

void cluster_task_used(const struct cluster_task *t)
{
	struct cluster_worker *w = t->worker;
	for (uint32_t i = 0; i < w->loose_count; i++) {
		if (has_file(t, &w->loose[i]))
			drop_loose(w, i--);
	}
}

/* Lock held. Has another task it, or will it? One that is released has it as long as its rank is there. */
static bool is_active(const struct cluster_task *t)
{
	if (t->finished || t->state == TASK_FAILED)
		return false;
	return !atomic_load(&t->release) || t->state == TASK_STARTING || t->state == TASK_RUNNING ||
	       t->state == TASK_ENDED;
}

static bool is_wanted(const struct cluster_task *me, const struct cluster_loose *x)
{
	const struct cluster_worker *w = me->worker;
	for (uint32_t i = 0; i < CLUSTER_MAX_TASKS; i++) {
		const struct cluster_task *o = w->task[i];
		if (o && o != me && is_active(o) && has_file(o, x))
			return true;
	}
	return false;
}

static uint32_t take_loose(void *context, char (*ret_names)[64], uint32_t room)
{
	const struct cluster_task *t = context;
	struct cluster_worker *w = t->worker;
	uint32_t n = 0;
	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < w->loose_count && n < room; i++) {
		const struct cluster_loose *x = &w->loose[i];
		if (memcmp(x->digest, t->assign.digest, sizeof x->digest) != 0 || is_wanted(t, x))
			continue;
		memcpy(ret_names[n++], x->name, sizeof x->name);
		drop_loose(w, i--);
	}
	pthread_mutex_unlock(&w->lock);
	return n;
}

static int worker_stops(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes)
{
	return atomic_load(&((struct cluster_task *)context)->worker->stop);
}

static bool has_loose(struct cluster_task *t)
{
	struct cluster_worker *w = t->worker;
	bool any = false;
	pthread_mutex_lock(&w->lock);
	for (uint32_t i = 0; i < w->loose_count && !any; i++)
		any = memcmp(w->loose[i].digest, t->assign.digest, CLUSTER_DIGEST_BYTES) == 0;
	pthread_mutex_unlock(&w->lock);
	return any;
}

static void settle(struct cluster_task *t, uint64_t wait_ns)
{
	const struct pack_config c = {.store_path = t->worker->config.store_path,
		.digest = t->assign.digest,
		.wait_ns = wait_ns,
		.progress = worker_stops,
		.context = t};
	struct base_error e = {0};
	if (has_loose(t) && pack_spare_again(&c, take_loose, &e))
		base_log_info(t->worker->config.log, "layers of %s that no rank has had: %s", t->assign.model,
			base_error_text(&e));
}

void cluster_task_settle(struct cluster_task *t)
{
	settle(t, SETTLE_NS);
}

/* ---- packing ---- */

static struct pack_config config_of(struct cluster_task *t)
{
	const struct cluster_slice *s = &t->assign.slice;
	return (struct pack_config){.store_path = t->worker->config.store_path,
		.slice = {s->first_layer, s->layers, s->tp_rank, s->tp_size},
		.progress = on_progress,
		.relied = on_relied,
		.dropped = on_dropped,
		.context = t};
}

/* Of a spare assignment layer by layer, as far as the drive has room. */
static int pack_spares(struct cluster_task *t, const struct format_gguf *gguf, const struct program *program,
	const struct pack_config *config, struct base_error *e)
{
	struct pack_config c = *config;
	struct pack_result result;
	c.spare = true;
	c.slice.layers = 1;
	for (uint32_t i = 0; i < t->assign.slice.layers; i++) {
		c.slice.first_layer = t->assign.slice.first_layer + i;
		if (atomic_load(&t->release))
			return base_error_set(e, -ECANCELED, "packing was cancelled");
		int status = pack_model(gguf, program, &c, &result, e);
		if (status == -ENOSPC) {
			snprintf(t->text, sizeof t->text, "%.*s", (int)sizeof t->text - 1, base_error_text(e));
			return 0;
		}
		if (status)
			return status;
		t->stored_layers++;
		t->stored_bytes += result.written_bytes;
		if (result.written_bytes) // who waits for the store's lock asks every 50 ms
			nanosleep(&(struct timespec){.tv_nsec = SPARE_PAUSE_NS}, NULL);
	}
	return 0;
}

static int pack_layers(struct cluster_task *t, const struct format_gguf *gguf, const struct program *program,
	const struct pack_config *c, struct pack_result *ret_result, struct base_error *e)
{
	if (t->assign.spare)
		return pack_spares(t, gguf, program, c, e);
	return pack_model(gguf, program, c, ret_result, e);
}

/* ---- a copy of its own ---- */

/* The coordinator's path, or the file's name in store.sources. -ENOENT with text. */
static int find_model(const struct cluster_task *t, char out[static CLUSTER_PATH_BYTES], struct base_error *e)
{
	const char *path = t->assign.path, *name = strrchr(path, '/'), *sources = t->worker->config.sources;
	if (access(path, R_OK) == 0) {
		snprintf(out, CLUSTER_PATH_BYTES, "%s", path);
		return 0;
	}
	if (sources[0]) {
		int n = snprintf(out, CLUSTER_PATH_BYTES, "%s/%s", sources, name ? name + 1 : path);
		if (n > 0 && (size_t)n < CLUSTER_PATH_BYTES && access(out, R_OK) == 0)
			return 0;
	}
	return base_error_set(e, -ENOENT, "model %s is not there%s%s", path, sources[0] ? ", nor in " : "", sources);
}

static int pack_file(
	struct cluster_task *t, struct format_gguf *gguf, struct pack_result *ret_result, struct base_error *e)
{
	struct pack_config c = config_of(t);
	struct program *program = NULL;
	int status = 0;
	if (format_gguf_header_hash(gguf) != t->assign.header_hash)
		return base_error_set(e, -ESTALE, "%s is another file than the coordinator's", format_gguf_path(gguf));
	status = program_build(gguf, &program, e);
	if (status)
		return status;
	c.digest_only = true;
	status = pack_model(gguf, program, &c, ret_result, e);
	if (!status && memcmp(ret_result->digest, t->assign.digest, CLUSTER_DIGEST_BYTES) != 0)
		status =
			base_error_set(e, -ESTALE, "%s is another file than the coordinator's", format_gguf_path(gguf));
	c.digest_only = false;
	c.repair = t->assign.check ? t->assign.digest : NULL;
	if (!status)
		status = pack_layers(t, gguf, program, &c, ret_result, e);
	program_destroy(program);
	return status;
}

/* ---- pulling ---- */

static bool is_released(void *context)
{
	return atomic_load(&((struct cluster_task *)context)->release);
}

static void on_retried(void *context, const struct base_error *why)
{
	tell(context, "warning", "pull_retry", base_error_text(why));
}

/* Of one length into the file, from `at` on. */
static int pull_into(
	struct cluster_puller *p, int fd, uint64_t at, uint64_t bytes, const char *what, struct base_error *e)
{
	const struct pack_runs runs = {at, bytes, bytes, 1};
	_cleanup_free_ uint8_t *piece = malloc(PIECE_BYTES);
	int status = piece ? cluster_puller_source.begin(p, &runs, what, e) : base_error_set(e, -ENOMEM, "no memory");
	if (status)
		return status;
	if (lseek(fd, (off_t)at, SEEK_SET) < 0)
		return base_error_set(e, -errno, "%s: %s", HEADER, strerrordesc_np(errno));
	for (uint64_t left = bytes; left && !status;) {
		size_t n = left < PIECE_BYTES ? (size_t)left : PIECE_BYTES;
		status = cluster_puller_source.read(p, piece, n, e);
		if (!status && (status = base_file_write(fd, piece, n)) < 0)
			base_error_set(e, status, "cannot write %s in the store: %s", HEADER, strerrordesc_np(-status));
		left -= n;
	}
	return status;
}

/* What is there is a file of metadata of that model. */
static int open_header(
	const struct cluster_task *t, const char *path, struct format_gguf **ret_gguf, struct base_error *e)
{
	struct format_gguf *g;
	int status = format_gguf_open(path, &g, e);
	if (status)
		return status;
	if (format_gguf_header_hash(g) == t->assign.header_hash &&
		format_gguf_header_bytes(g) == t->assign.header_bytes &&
		format_gguf_file_bytes(g) == t->assign.file_bytes) {
		*ret_gguf = g;
		return 0;
	}
	format_gguf_close(g);
	return base_error_set(
		e, -EREMOTEIO, "the metadata of %s that was pulled is not the coordinator's", t->assign.path);
}

static int fill_header(struct cluster_task *t, struct cluster_puller *p, int fd, const char *path, struct base_error *e)
{
	struct format_gguf *g;
	int status = pull_into(p, fd, 0, t->assign.header_bytes, "the metadata", e);
	if (!status && ftruncate(fd, (off_t)t->assign.file_bytes) < 0)
		status = base_error_set(e, -errno, "cannot write %s in the store: %s", HEADER, strerrordesc_np(errno));
	if (!status)
		status = open_header(t, path, &g, e);
	if (status)
		return status;
	const struct format_gguf_tensor *x = format_gguf_find_tensor(g, PROGRAM_ROPE_FREQS);
	if (x && x->size_bytes > MAX_PROGRAM_DATA_BYTES)
		status = base_error_set(e, -EBADMSG, "%s: %s has %llu bytes", t->assign.path, x->name,
			(unsigned long long)x->size_bytes);
	else if (x && x->size_bytes)
		status = pull_into(p, fd, x->offset_bytes, x->size_bytes, x->name, e);
	format_gguf_close(g);
	if (!status && fsync(fd) < 0)
		status = base_error_set(e, -errno, "cannot write %s in the store: %s", HEADER, strerrordesc_np(errno));
	return status;
}

static int make_directory(const char *path, struct base_error *e)
{
	if (mkdir(path, 0755) == 0 || errno == EEXIST)
		return 0;
	return base_error_set(e, -errno, "cannot create the store directory %s: %s", path, strerrordesc_np(errno));
}

/* header_lock held. */
static int get_header(struct cluster_task *t, struct cluster_puller *p, const char *directory, const char *path,
	struct format_gguf **ret_gguf, struct base_error *e)
{
	char tmp[CLUSTER_PATH_BYTES];
	if (open_header(t, path, ret_gguf, NULL) == 0)
		return 0;
	int status = make_directory(t->worker->config.store_path, e);
	if (!status)
		status = make_directory(directory, e);
	if (status)
		return status;
	if ((size_t)snprintf(tmp, sizeof tmp, "%s.tmp", path) >= sizeof tmp)
		return base_error_set(e, -ENAMETOOLONG, "the path of the store is too long: %s", directory);
	_cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return base_error_set(e, -errno, "cannot write %s: %s", tmp, strerrordesc_np(errno));
	status = fill_header(t, p, fd, tmp, e);
	if (!status && rename(tmp, path) < 0)
		status = base_error_set(e, -errno, "cannot write %s: %s", path, strerrordesc_np(errno));
	if (status) {
		unlink(tmp);
		return status;
	}
	return open_header(t, path, ret_gguf, e);
}

static int pull_layers(struct cluster_task *t, struct cluster_puller *p, char path[static CLUSTER_PATH_BYTES],
	struct pack_result *ret_result, struct base_error *e)
{
	struct pack_source source = cluster_puller_source;
	struct pack_config c = config_of(t);
	struct format_gguf *gguf = NULL;
	struct program *program = NULL;
	char directory[CLUSTER_PATH_BYTES], hex[2 * CLUSTER_DIGEST_BYTES + 1];
	for (uint32_t i = 0; i < CLUSTER_DIGEST_BYTES; i++)
		snprintf(hex + 2 * i, 3, "%02x", t->assign.digest[i]);
	int n = snprintf(directory, sizeof directory, "%s/%s", t->worker->config.store_path, hex);
	int m = snprintf(path, CLUSTER_PATH_BYTES, "%.*s/" HEADER, (int)sizeof directory - 1, directory);
	if ((size_t)n >= sizeof directory || (size_t)m >= CLUSTER_PATH_BYTES)
		return base_error_set(
			e, -ENAMETOOLONG, "the path of the store is too long: %s", t->worker->config.store_path);
	pthread_mutex_lock(&t->worker->header_lock);
	int status = get_header(t, p, directory, path, &gguf, e);
	pthread_mutex_unlock(&t->worker->header_lock);
	if (!status)
		status = program_build(gguf, &program, e);
	source.context = p;
	c.source = &source;
	c.digest = t->assign.digest;
	c.repair = t->assign.check ? t->assign.digest : NULL;
	if (!status)
		status = pack_layers(t, gguf, program, &c, ret_result, e);
	program_destroy(program);
	format_gguf_close(gguf);
	return status;
}

static int pull(struct cluster_task *t, char path[static CLUSTER_PATH_BYTES], struct pack_result *ret_result,
	struct base_error *e)
{
	struct cluster_worker *w = t->worker;
	struct cluster_puller *p;
	struct cluster_puller_config c = {.cluster = w->config.cluster,
		.sources = t->sources,
		.tls = w->config.tls,
		.path = t->assign.path,
		.cancelled = is_released,
		.retried = on_retried,
		.context = t,
		.pulled_bytes = &w->pulled_bytes};
	memcpy(c.digest, t->assign.digest, sizeof c.digest);
	int status = cluster_puller_create(&c, &p, e);
	if (status)
		return status;
	pthread_mutex_lock(&w->lock);
	t->pulls = true;
	pthread_mutex_unlock(&w->lock);
	status = pull_layers(t, p, path, ret_result, e);
	cluster_puller_destroy(p);
	if (!status && ret_result->written_bytes) {
		char a[BASE_UNITS_TEXT_BYTES], b[BASE_UNITS_TEXT_BYTES], text[160];
		snprintf(text, sizeof text, "layers %u to %u: %s written, %s there already",
			t->assign.slice.first_layer, t->assign.slice.first_layer + t->assign.slice.layers - 1,
			base_units_format_bytes(ret_result->written_bytes, a),
			base_units_format_bytes(ret_result->reused_bytes, b));
		tell(t, "notice", "model_pulled", text);
	}
	return status;
}

int cluster_task_pack(struct cluster_task *t, char ret_path[static CLUSTER_PATH_BYTES], struct pack_result *ret_result,
	struct base_error *e)
{
	struct base_error why = {0};
	struct format_gguf *gguf;
	memset(ret_result, 0, sizeof *ret_result);
	int status = find_model(t, ret_path, &why);
	if (!status) {
		status = format_gguf_open(ret_path, &gguf, &why);
		if (!status) {
			status = pack_file(t, gguf, ret_result, &why);
			format_gguf_close(gguf);
		} else {
			status = -ESTALE; // no model, or one that cannot be read
		}
		if (status == -ESTALE)
			tell(t, "warning", "model_differs", base_error_text(&why));
	}
	if (status != -ENOENT && status != -ESTALE) {
		if (status && e)
			*e = why;
		return status;
	}
	status = pull(t, ret_path, ret_result, e);
	if (status && status != -ECANCELED)
		base_error_prefix(e, "%s, and its layers cannot be pulled", base_error_text(&why));
	return status;
}

int cluster_task_spare(struct cluster_task *t, struct base_error *e)
{
	char path[CLUSTER_PATH_BYTES];
	struct pack_result result;
	setpriority(PRIO_PROCESS, (id_t)gettid(), SPARE_NICE); // of this thread; without it there is the pace
	return cluster_task_pack(t, path, &result, e);
}

static int is_over(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes)
{
	return atomic_load(&((struct cluster_task *)context)->release);
}

int cluster_task_forget(struct cluster_task *t, struct base_error *e)
{
	const struct pack_config c = {.store_path = t->worker->config.store_path,
		.digest = t->assign.digest,
		.progress = is_over,
		.dropped = on_dropped,
		.context = t};
	settle(t, PACK_WAIT_NS); // whoever packs for a plan that was called off lets go of the lock soon
	return pack_drop_spares(&c, e);
}
