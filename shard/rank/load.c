// SPDX-License-Identifier: Apache-2.0
// Store files, residency, reading of hot extents, the stream.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/size.h"
#include "offload/check.h"
#include "offload/residency.h"
#include "shard/quant/quant.h"
#include "shard/rank/internal.h"

#define LOAD_DEPTH 16u // of each loader
#define MAX_LOADERS 8u
#define CLAIM_BYTES (8u << 20) // what a loader takes to itself at a time

/* ---- files ---- */

static int mismatch(const struct rank *r, uint32_t layer, const char *what, struct base_error *e)
{
	char name[64];
	return base_error_set(e, -EBADMSG,
		"store file %s/%s: its %s are not those of this model: remove the file, and it will be packed again",
		r->config.store_directory,
		pack_file_name(layer, r->config.slice.tp_rank, r->config.slice.tp_size, name), what);
}

static bool same_tensor(const struct rank *r, const struct offload_store_tensor *t, uint32_t weight)
{
	const struct program_weight *w = &r->program->weights[weight];
	const struct program_cut *cut = &r->layout->cuts[weight];
	return strcmp(t->name, w->name) == 0 && t->rows == cut->rows && t->cols == cut->cols &&
	       t->type == (w->rows == 1 ? QUANT_F32 : w->type);
}

// The file's tables must say what the layout says; then the layout's numbers are used and the file's are not.
static int check_tables(
	const struct rank *r, const struct pack_layout_file *file, const struct offload_store *s, struct base_error *e)
{
	uint32_t tensors_count, extents_count, pieces_count, tensor = UINT32_MAX, last = PROGRAM_NONE;
	const struct offload_store_tensor *tensors = offload_store_tensors(s, &tensors_count);
	const struct offload_store_extent *extents = offload_store_extents(s, &extents_count);
	const struct offload_store_piece *pieces = offload_store_pieces(s, &pieces_count);
	if (extents_count != file->extents || pieces_count != file->pieces)
		return mismatch(r, file->layer, "extents", e);
	for (uint32_t i = 0; i < extents_count; i++) {
		const struct pack_layout_extent *x = &r->layout->extents[file->first_extent + i];
		if (extents[i].length_bytes != x->length_bytes || extents[i].pieces != x->pieces ||
			extents[i].first_piece != x->first_piece - file->first_piece)
			return mismatch(r, file->layer, "extents", e);
	}
	for (uint32_t i = 0; i < pieces_count; i++) {
		const struct pack_layout_piece *piece = &r->layout->pieces[file->first_piece + i];
		if (piece->weight != last) {
			last = piece->weight;
			tensor++;
			if (tensor >= tensors_count || !same_tensor(r, &tensors[tensor], last))
				return mismatch(r, file->layer, "tensors", e);
		}
		if (pieces[i].tensor != tensor || pieces[i].extent != piece->extent - file->first_extent ||
			pieces[i].offset_bytes != piece->offset_bytes ||
			pieces[i].length_bytes != piece->length_bytes || pieces[i].first_row != piece->first_row ||
			pieces[i].rows != piece->rows)
			return mismatch(r, file->layer, "pieces", e);
	}
	return tensor + 1 == tensors_count ? 0 : mismatch(r, file->layer, "tensors", e);
}

int rank_open_files(struct rank *r, struct base_error *e)
{
	const struct pack_layout *l = r->layout;
	_cleanup_close_ int dir = open(r->config.store_directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return base_error_set(e, -errno, "cannot open the store directory %s: %s", r->config.store_directory,
			strerrordesc_np(errno));
	r->stores = calloc(l->files_count, sizeof *r->stores);
	r->fds = calloc(l->files_count, sizeof *r->fds);
	if (!r->stores || !r->fds)
		return base_error_set(e, -ENOMEM, "no memory for the store's files");
	r->placement.direct_io = true;
	for (uint32_t i = 0; i < l->files_count; i++) {
		char name[64];
		const struct pack_slice slice = pack_file_slice(l->files[i].layer, &r->config.slice);
		struct offload_store_identity want = {
			.layer = l->files[i].layer,
			.tp_rank = slice.tp_rank,
			.tp_size = slice.tp_size,
			.layout = PACK_LAYOUT_R16,
			.extent_bytes = l->extent_bytes,
		};
		memcpy(want.source_digest, r->config.digest, sizeof want.source_digest);
		int status = offload_store_open(
			dir, pack_file_name(want.layer, slice.tp_rank, slice.tp_size, name), &want, &r->stores[i], e);
		if (!status)
			status = check_tables(r, &l->files[i], r->stores[i], e);
		if (status)
			return status;
		r->fds[i] = offload_store_fd(r->stores[i]);
		r->placement.direct_io &= offload_store_direct(r->stores[i]);
	}
	return 0;
}

/* ---- residency ---- */

// Extents of the pass, or those that only look-ups read, within a budget.
static int choose(struct rank *r, bool pass, uint64_t budget, bool *hot, struct base_error *e)
{
	const struct pack_layout *l = r->layout;
	_cleanup_free_ struct offload_residency_extent *extents = calloc(l->extents_count, sizeof *extents);
	_cleanup_free_ bool *chosen = calloc(l->extents_count, sizeof *chosen);
	uint32_t count = 0, next = 0;
	uint64_t bytes = 0;
	if (!extents || !chosen)
		return base_error_set(e, -ENOMEM, "no memory for the table of extents");
	for (uint32_t i = 0; i < l->extents_count; i++) {
		uint32_t layer = l->files[l->extents[i].file].layer;
		if (rank_file_in_pass(r->program, &r->config.slice, layer) == pass)
			extents[count++] = (struct offload_residency_extent){
				.bytes = l->extents[i].length_bytes,
				.group = l->extents[i].file,
				.pinned = pass && l->extents[i].pinned,
			};
	}
	int status = offload_residency_choose(extents, count, budget, chosen, &bytes);
	if (status)
		return base_error_set(e, -ENOMEM, "the weights budget is too small for the norms");
	for (uint32_t i = 0; i < l->extents_count; i++) {
		uint32_t layer = l->files[l->extents[i].file].layer;
		if (rank_file_in_pass(r->program, &r->config.slice, layer) == pass)
			hot[i] = chosen[next++];
	}
	return 0;
}

/* ---- reading ----
 * Several threads do the same: take a run of hot extents, have the kernel give pages to the next one (which zeroes
 * them), read it, check what has come back. While one touches or checks, its own reads and those of the others are in
 * flight. */

struct loading { // what the loaders share
	struct rank *r;
	struct offload_memory *memory;
	uint32_t next; // extent to look at; under lock
	pthread_mutex_t lock;
	int status; // of the first that failed, with its text in e; under lock
	struct base_error *e;
	char engine[16];
	struct base_error fallback;
	_Atomic bool stop;
	_Atomic uint64_t done_bytes;
	uint64_t total_bytes;
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
	void *context;
};

struct loader {
	struct loading *all;
	struct rank *r;
	pthread_t thread;
	struct offload_engine *engine;
	struct offload_read reads[LOAD_DEPTH];
	uint32_t extents[LOAD_DEPTH]; // what each read reads
	uint8_t tries[LOAD_DEPTH];
	uint32_t spare[LOAD_DEPTH], spare_count; // reads that are free
	uint32_t next, end; // what it has claimed
	bool first; // the caller's thread
	struct base_error e;
};

// Takes the next hot extents; false when there are none left.
static bool claim(struct loader *k)
{
	struct loading *a = k->all;
	uint32_t count = a->r->layout->extents_count;
	uint64_t bytes = 0;
	pthread_mutex_lock(&a->lock);
	k->next = a->next;
	while (a->next < count && bytes < CLAIM_BYTES) {
		bytes += a->r->hot[a->next] ? a->r->layout->extents[a->next].length_bytes : 0;
		a->next++;
	}
	k->end = a->next;
	pthread_mutex_unlock(&a->lock);
	return k->next < k->end;
}

static bool next_extent(struct loader *k, uint32_t *ret_extent)
{
	do {
		for (; k->next < k->end; k->next++) {
			if (k->r->hot[k->next]) {
				*ret_extent = k->next++;
				return true;
			}
		}
	} while (claim(k));
	return false;
}

static const char *file_path(const struct rank *r, uint32_t file, char *out, size_t room)
{
	char name[64];
	pack_file_name(r->layout->files[file].layer, r->config.slice.tp_rank, r->config.slice.tp_size, name);
	snprintf(out, room, "%s/%s", r->config.store_directory, name);
	return out;
}

/* The engine did not take a read, or gives none back. */
static int engine_error(struct loader *k, const struct offload_read *read, int status)
{
	char path[sizeof k->r->config.store_directory + 64];
	return base_error_set(&k->e, status, "%s: cannot read %u bytes at %llu: %s",
		file_path(k->r, read->file, path, sizeof path), read->length_bytes,
		(unsigned long long)read->offset_bytes,
		status == -ETIMEDOUT ? "no answer: the drive hangs" : strerrordesc_np(-status));
}

static int submit(struct loader *k, uint32_t slot)
{
	struct offload_read *read = &k->reads[slot];
	int n = k->engine->ops->submit(k->engine, &read, 1), status = n == 1 ? 0 : n < 0 ? n : -EIO;
	return status ? engine_error(k, read, status) : 0;
}

/* One of those that are in flight. */
static const struct offload_read *some_read(const struct loader *k)
{
	bool spare[LOAD_DEPTH] = {0};
	uint32_t i = 0;
	for (uint32_t s = 0; s < k->spare_count; s++)
		spare[k->spare[s]] = true;
	while (i + 1 < LOAD_DEPTH && spare[i])
		i++;
	return &k->reads[i];
}

static int start_read(struct loader *k, uint32_t extent)
{
	struct rank *r = k->r;
	const struct pack_layout_extent *x = &r->layout->extents[extent];
	uint32_t count, slot = k->spare[--k->spare_count];
	const struct offload_store_extent *extents = offload_store_extents(r->stores[x->file], &count);
	size_t at = (size_t)(r->hot[extent] - (const uint8_t *)k->all->memory->data);
	k->extents[slot] = extent;
	k->tries[slot] = 0;
	k->reads[slot] = (struct offload_read){
		.file = x->file,
		.length_bytes = x->length_bytes,
		.offset_bytes = extents[extent - r->layout->files[x->file].first_extent].offset_bytes,
		.buffer = (void *)r->hot[extent],
	};
	int status = offload_memory_touch(k->all->memory, at, x->length_bytes, &k->e);
	return status ? status : submit(k, slot);
}

// A read came back: right, or once more, or for good an error that names the place.
static int finish_read(struct loader *k, struct offload_read *read)
{
	struct rank *r = k->r;
	uint32_t slot = (uint32_t)(read - k->reads), extent = k->extents[slot], count;
	const struct pack_layout_file *file = &r->layout->files[read->file];
	const struct offload_store_extent *x =
		&offload_store_extents(r->stores[read->file], &count)[extent - file->first_extent];
	bool again;
	int why = offload_check_read(read, read->buffer, read->length_bytes, x->xxh3, &k->tries[slot], &again);
	if (again)
		return submit(k, slot);
	k->spare[k->spare_count++] = slot;
	if (why == 0) {
		atomic_fetch_add(&k->all->done_bytes, read->length_bytes);
		return 0;
	}
	char path[sizeof r->config.store_directory + 64];
	return offload_check_error(
		file_path(r, read->file, path, sizeof path), x->offset_bytes, x->length_bytes, why, &k->e);
}

// One read more if there is one, then what came back; -ECANCELED when a loader failed or the caller gave up.
static int turn(struct loader *k, bool *ret_more)
{
	struct loading *a = k->all;
	struct offload_read *back[LOAD_DEPTH];
	uint32_t extent;
	if (atomic_load(&a->stop))
		return -ECANCELED;
	bool started = k->spare_count && next_extent(k, &extent);
	int status = started ? start_read(k, extent) : 0;
	if (status)
		return status;
	*ret_more = k->spare_count < LOAD_DEPTH;
	if (!*ret_more)
		return 0;
	int n = k->engine->ops->reap(k->engine, back, LOAD_DEPTH, started ? 0 : OFFLOAD_CHECK_PATIENCE_NS);
	if (n == 0 && !started)
		n = -ETIMEDOUT;
	if (n < 0)
		return engine_error(k, some_read(k), n);
	for (int i = 0; i < n && !status; i++)
		status = finish_read(k, back[i]);
	if (!status && n && k->first && a->progress &&
		a->progress(a->context, atomic_load(&a->done_bytes), a->total_bytes))
		status = base_error_set(&k->e, -ECANCELED, "loading was cancelled");
	return status;
}

static void *loader_main(void *arg)
{
	struct loader *k = arg;
	struct loading *a = k->all;
	struct base_error fallback = {0};
	struct offload_engine_config config = {
		.depth = LOAD_DEPTH,
		.files = a->r->fds,
		.files_count = a->r->layout->files_count,
	};
	bool more = true;
	int status = offload_engine_create(a->r->config.engine, &config, &k->engine, &fallback, &k->e);
	for (uint32_t i = 0; i < LOAD_DEPTH; i++)
		k->spare[k->spare_count++] = i;
	while (!status && more)
		status = turn(k, &more);
	if (k->engine && k->first) {
		snprintf(a->engine, sizeof a->engine, "%s", k->engine->ops->name);
		a->fallback = fallback;
	}
	if (k->engine)
		k->engine->ops->destroy(k->engine);
	if (status) {
		pthread_mutex_lock(&a->lock);
		if (!a->status) {
			a->status = status;
			*a->e = k->e;
		}
		pthread_mutex_unlock(&a->lock);
		atomic_store(&a->stop, true);
	}
	return NULL;
}

// The calling thread is a loader too, and the only one if no other can be started.
static int read_all(struct loading *a)
{
	uint32_t cpus = a->r->config.threads ? a->r->config.threads : (uint32_t)get_nprocs();
	uint32_t count = cpus < 1 ? 1 : cpus > MAX_LOADERS ? MAX_LOADERS : cpus, started = 1;
	_cleanup_free_ struct loader *k = calloc(count, sizeof *k);
	if (!k)
		return base_error_set(a->e, -ENOMEM, "no memory to load with");
	sigset_t all, old;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old); // signals are for the process's own threads
	for (; started < count; started++) {
		k[started].all = a;
		k[started].r = a->r;
		if (pthread_create(&k[started].thread, NULL, loader_main, &k[started]))
			break;
		pthread_setname_np(k[started].thread, "thaw-load");
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	k->all = a;
	k->r = a->r;
	k->first = true;
	loader_main(k);
	while (--started)
		pthread_join(k[started].thread, NULL);
	if (!a->status && a->progress && a->progress(a->context, a->done_bytes, a->total_bytes))
		a->status = base_error_set(a->e, -ECANCELED, "loading was cancelled");
	return a->status;
}

// Gives each hot extent its place, rows after them.
static uint64_t place_hot(struct rank *r, const bool *hot)
{
	uint64_t at = 0;
	for (uint32_t i = 0; i < r->layout->extents_count; i++) {
		r->hot[i] = hot[i] ? (const uint8_t *)r->memory.data + at : NULL;
		at += hot[i] ? r->layout->extents[i].length_bytes : 0;
	}
	r->row_memory = (uint8_t *)r->memory.data + at;
	return at;
}

static uint64_t report_placement(struct rank *r, const bool *hot)
{
	struct rank_placement *p = &r->placement;
	p->extents = r->layout->extents_count;
	for (uint32_t i = 0; i < p->extents; i++) {
		const struct pack_layout_extent *x = &r->layout->extents[i];
		bool pass = rank_file_in_pass(r->program, &r->config.slice, r->layout->files[x->file].layer);
		p->hot_extents += hot[i];
		p->hot_bytes += hot[i] ? x->length_bytes : 0;
		p->cold_bytes += !hot[i] && pass ? x->length_bytes : 0;
	}
	return p->hot_bytes + r->budget.row_bytes;
}

static int fill(struct rank *r, const bool *hot, uint64_t bytes, bool hugetlb, struct loading *a)
{
	int status = offload_memory_reserve(bytes, hugetlb, &r->memory, a->e);
	if (status)
		return status;
	a->r = r;
	a->memory = &r->memory;
	a->total_bytes = place_hot(r, hot);
	pthread_mutex_init(&a->lock, NULL);
	status = read_all(a);
	pthread_mutex_destroy(&a->lock);
	if (!status && r->budget.row_bytes)
		status = offload_memory_touch(&r->memory, a->total_bytes, r->budget.row_bytes, a->e);
	return status;
}

static void set_fallback(struct rank *r, const struct base_error *why)
{
	snprintf(r->placement.fallback, sizeof r->placement.fallback, "%.*s", (int)sizeof r->placement.fallback - 1,
		why->message);
}

int rank_load(struct rank *r, struct base_error *e,
	int (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes), void *context)
{
	uint32_t count = r->layout->extents_count;
	_cleanup_free_ bool *hot = calloc(count, sizeof *hot);
	r->hot = calloc(count, sizeof *r->hot);
	if (!hot || !r->hot)
		return base_error_set(e, -ENOMEM, "no memory for the table of extents");
	int status = choose(r, true, r->budget.hot_budget_bytes, hot, e);
	if (!status && r->budget.lookup_budget_bytes)
		status = choose(r, false, r->budget.lookup_budget_bytes, hot, e);
	if (status)
		return status;
	uint64_t bytes = report_placement(r, hot);
	struct loading a = {.e = e, .progress = progress, .context = context};
	status = fill(r, hot, bytes, true, &a);
	if (status == -ENOMEM && r->memory.pages == OFFLOAD_PAGES_HUGETLB) {
		// A cgroup's or node's share of them is smaller than what is free: ordinary memory then.
		offload_memory_unmap(&r->memory);
		a = (struct loading){.e = e, .progress = progress, .context = context};
		status = fill(r, hot, bytes, false, &a);
	}
	if (status)
		return status;
	offload_memory_look(&r->memory);
	snprintf(r->placement.engine, sizeof r->placement.engine, "%s", a.engine);
	set_fallback(r, &a.fallback);
	return 0;
}

int rank_start_stream(struct rank *r, struct base_error *e)
{
	if (r->ring_count == 0)
		return 0;
	uint32_t slots = r->budget.slots;
	struct offload_stream_config config = {
		.engine = r->config.engine,
		.files = r->fds,
		.files_count = r->layout->files_count,
		.items = r->ring,
		.items_count = r->ring_count,
		.slots = slots,
		.slot_bytes = r->sizes.longest_bytes,
		.depth = r->budget.depth,
		.verify_every = r->config.verify_every,
		.trace = &r->trace,
	};
	struct base_error fallback = {0};
	int status = offload_stream_create(&config, &r->stream, &fallback, e);
	if (status)
		return status;
	snprintf(r->placement.engine, sizeof r->placement.engine, "%s", offload_stream_engine(r->stream));
	set_fallback(r, &fallback);
	r->placement.slot_bytes = r->budget.slots_bytes;
	return 0;
}
