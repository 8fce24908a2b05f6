// SPDX-License-Identifier: Apache-2.0
#include "shard/pack/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <json-c/json.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/size.h"
#include "base/units.h"
#include "offload/hash.h"
#include "offload/store.h"
#include "shard/pack/layout.h"
#include "shard/pack/sources.h"
#include "shard/pack/spares.h"
#include "shard/quant/quant.h"

#define LOCK_NAME "pack.lock"
// What the tables of a store file take for each entry, rounded up, and for the file itself.
#define TABLE_ENTRY_BYTES 96u
#define FILE_BYTES (64u << 10)
#define PROGRESS_BYTES (1u << 20)
#define LOCK_ROUND_NS (50 * 1000000)
#define FREED_NS (5 * BASE_NS_PER_SECOND) // that a file system gets to free what was deleted

struct packer {
	const struct format_gguf *g;
	const struct program *p;
	const struct pack_config *config;
	struct pack_result *result;
	struct pack_layout *layout;
	struct base_error *e;
	int store_fd, dir_fd, lock_fd;
	bool *whole; // (files): there already
	uint64_t done_bytes, reported_bytes, total_bytes;
	uint8_t *source, *packed; // room for the longest piece: as it is in the file, as it is written
};

/* ---- store directory and lock ---- */

static int open_directory(int at, const char *path, struct base_error *e, int *ret_fd)
{
	if (mkdirat(at, path, 0755) && errno != EEXIST)
		return base_error_set(
			e, -errno, "cannot create the store directory %s: %s", path, strerrordesc_np(errno));
	int fd = openat(at, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return base_error_set(
			e, -errno, "cannot open the store directory %s: %s", path, strerrordesc_np(errno));
	*ret_fd = fd;
	return 0;
}

/* -EWOULDBLOCK: another had it all the time. flock cannot be cancelled, so it is asked again and again. */
static int wait_for_lock(struct packer *k)
{
	uint64_t until = base_clock_now_ns() + (k->config->wait_ns ? k->config->wait_ns : PACK_WAIT_NS);
	while (flock(k->lock_fd, LOCK_EX | LOCK_NB)) {
		if (errno != EINTR && (errno != EWOULDBLOCK || base_clock_now_ns() >= until))
			return -errno;
		if (k->config->progress && k->config->progress(k->config->context, PACK_PHASE_WAIT, 0, 0))
			return -ECANCELED;
		nanosleep(&(struct timespec){.tv_nsec = LOCK_ROUND_NS}, NULL);
	}
	return 0;
}

static int take_lock(struct packer *k)
{
	char text[32] = {0};
	k->lock_fd = openat(k->store_fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (k->lock_fd < 0)
		return base_error_set(k->e, -errno, "cannot open %s/" LOCK_NAME ": %s", k->config->store_path,
			strerrordesc_np(errno));
	int status = wait_for_lock(k);
	if (status == -ECANCELED)
		return base_error_set(k->e, status, "packing was cancelled");
	if (status && status != -EWOULDBLOCK)
		return base_error_set(k->e, status, "cannot lock %s/" LOCK_NAME ": %s", k->config->store_path,
			strerrordesc_np(-status));
	if (status) {
		ssize_t n = pread(k->lock_fd, text, sizeof text - 1, 0);
		text[n > 0 ? strspn(text, "0123456789") : 0] = '\0';
		return base_error_set(k->e, -EBUSY, "store %s: process %s is packing into it", k->config->store_path,
			text[0] ? text : "(unknown)");
	}
	// The number is for people; the lock itself goes with the process.
	snprintf(text, sizeof text, "%ld\n", (long)getpid());
	if (ftruncate(k->lock_fd, 0) || pwrite(k->lock_fd, text, strlen(text), 0) < 0)
		return base_error_set(k->e, -errno, "cannot write %s/" LOCK_NAME ": %s", k->config->store_path,
			strerrordesc_np(errno));
	return 0;
}

/* ---- digest ---- */

static int digest_progress(void *context, uint64_t done, uint64_t total)
{
	const struct packer *k = context;
	return k->config->progress ? k->config->progress(k->config->context, PACK_PHASE_DIGEST, done, total) : 0;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static bool is_remembered(struct packer *k)
{
	struct stat named, mine;
	int fd = format_gguf_fd(k->g);
	_cleanup_free_ char *path = realpath(format_gguf_path(k->g), NULL);
	return fd >= 0 && path && !stat(path, &named) && !fstat(fd, &mine) && same_file(&mine, &named) &&
	       pack_sources_find(k->store_fd, path, &mine, k->result->digest);
}

/* What is remembered under a path is what that path names now, and what is digested and packed is what was opened: when
 * they are not the same file, the old digest would stand for the new file for ever. */
static int find_digest(struct packer *k)
{
	struct stat mine = {0}, named = {0}, now;
	int fd = format_gguf_fd(k->g);
	if (k->config->source) {
		memcpy(k->result->digest, k->config->digest, sizeof k->result->digest);
		return 0;
	}
	if (fd < 0)
		return format_gguf_digest(k->g, k->result->digest, digest_progress, k, k->e);
	_cleanup_free_ char *path = realpath(format_gguf_path(k->g), NULL);
	if (!path || stat(path, &named) || fstat(fd, &mine) || !same_file(&mine, &named))
		return base_error_set(k->e, -ESTALE, "model %s was replaced while it was loaded: load it again",
			format_gguf_path(k->g));
	if (pack_sources_find(k->store_fd, path, &mine, k->result->digest))
		return 0;
	int status = format_gguf_digest(k->g, k->result->digest, digest_progress, k, k->e);
	if (status)
		return status;
	if (fstat(fd, &now) || !same_file(&mine, &now))
		return base_error_set(k->e, -ESTALE, "model %s changed while it was read: load it again", path);
	return pack_sources_put(k->store_fd, path, &mine, k->result->digest, k->e);
}

/* ---- pieces ---- */

/* Bytes of a weight's row in the file, of the slice's cut of it, and of what is before the cut. */
static int cut_bytes_of(struct packer *k, uint32_t weight, uint64_t *ret_row, uint64_t *ret_cut, uint64_t *ret_before)
{
	const struct program_weight *w = &k->p->weights[weight];
	const struct program_cut *cut = &k->layout->cuts[weight];
	int status;
	if ((status = quant_row_bytes(w->type, w->cols, ret_row)) ||
		(status = quant_row_bytes(w->type, cut->cols, ret_cut)) ||
		(status = quant_row_bytes(w->type, cut->first_col, ret_before)))
		return base_error_set(k->e, status, "tensor %s: its columns do not fit its type's blocks", w->name);
	return 0;
}

/* Where in the file the cut of a weight lies. A vector is one row. */
static int find_runs(struct packer *k, uint32_t weight, struct pack_runs *ret_runs)
{
	const struct program_weight *w = &k->p->weights[weight];
	const struct program_cut *cut = &k->layout->cuts[weight];
	uint64_t row_bytes = 0, cut_bytes = 0, before = 0;
	int status = cut_bytes_of(k, weight, &row_bytes, &cut_bytes, &before);
	if (status)
		return status;
	*ret_runs = (struct pack_runs){
		.offset_bytes = w->source->offset_bytes + (uint64_t)cut->first_row * row_bytes + before,
		.run_bytes = cut_bytes,
		.stride_bytes = row_bytes,
		.runs = cut->rows,
	};
	if (cut_bytes == row_bytes) {
		ret_runs->run_bytes *= ret_runs->runs;
		ret_runs->stride_bytes = ret_runs->run_bytes;
		ret_runs->runs = 1;
	}
	return 0;
}

static int begin_weight(struct packer *k, uint32_t weight)
{
	const struct pack_source *s = k->config->source;
	struct pack_runs runs;
	if (!s)
		return 0;
	int status = find_runs(k, weight, &runs);
	return status ? status : s->begin(s->context, &runs, k->p->weights[weight].name, k->e);
}

/* Pieces come in the order of their rows, so a source that is no file gives what is next. */
static int read_weight(struct packer *k, const struct program_weight *w, uint64_t offset, void *out, uint64_t bytes)
{
	const struct pack_source *s = k->config->source;
	return s ? s->read(s->context, out, bytes, k->e) : format_gguf_read(k->g, w->source, offset, out, bytes, k->e);
}

static int pack_vector(struct packer *k, const struct pack_layout_piece *piece)
{
	const struct program_weight *w = &k->p->weights[piece->weight];
	const struct program_cut *cut = &k->layout->cuts[piece->weight];
	uint64_t element = 0;
	int status = quant_row_bytes(w->type, 1, &element);
	if (!status)
		status = read_weight(k, w, cut->first_col * element, k->source, cut->cols * element);
	if (!status)
		status = quant_dequantize_row(w->type, k->source, cut->cols, (float *)(void *)k->packed);
	return status;
}

// Rows of the source, cut to the columns of the slice, to groups.
static int pack_rows(struct packer *k, const struct pack_layout_piece *piece)
{
	const struct program_weight *w = &k->p->weights[piece->weight];
	const struct program_cut *cut = &k->layout->cuts[piece->weight];
	uint64_t row_bytes = 0, cut_bytes = 0, before = 0;
	int status = cut_bytes_of(k, piece->weight, &row_bytes, &cut_bytes, &before);
	if (status)
		return status;
	uint64_t first = ((uint64_t)cut->first_row + piece->first_row) * row_bytes;
	if (cut_bytes == row_bytes) {
		status = read_weight(k, w, first, k->source, piece->rows * row_bytes);
	} else {
		for (uint32_t r = 0; r < piece->rows && !status; r++)
			status =
				read_weight(k, w, first + r * row_bytes + before, k->source + r * cut_bytes, cut_bytes);
	}
	for (uint32_t r = 0; r < piece->rows && !status; r += QUANT_GROUP_ROWS) {
		uint32_t rows = piece->rows - r < QUANT_GROUP_ROWS ? piece->rows - r : QUANT_GROUP_ROWS;
		status = quant_pack_r16(w->type, k->source + r * cut_bytes, rows, cut->cols, k->packed + r * cut_bytes);
		if (status)
			base_error_set(k->e, status, "tensor %s cannot be packed", w->name);
	}
	return status;
}

static int report(struct packer *k)
{
	k->reported_bytes = k->done_bytes;
	if (k->config->progress &&
		k->config->progress(k->config->context, PACK_PHASE_PACK, k->done_bytes, k->total_bytes))
		return base_error_set(k->e, -ECANCELED, "packing was cancelled");
	return 0;
}

// About once a megabyte, and at the end.
static int progress(struct packer *k)
{
	if (k->done_bytes < k->reported_bytes + PROGRESS_BYTES && k->done_bytes < k->total_bytes)
		return 0;
	return report(k);
}

static int declare_tensor(struct packer *k, struct offload_store_writer *w, uint32_t weight, uint32_t *ret_tensor)
{
	const struct program_weight *from = &k->p->weights[weight];
	const struct program_cut *cut = &k->layout->cuts[weight];
	struct offload_store_tensor t = {
		.type = from->rows == 1 ? QUANT_F32 : from->type,
		.step = from->step,
		.rows = cut->rows,
		.cols = cut->cols,
	};
	snprintf(t.name, sizeof t.name, "%s", from->name);
	return offload_store_writer_tensor(w, &t, ret_tensor, k->e);
}

static int write_pieces(struct packer *k, const struct pack_layout_file *file, struct offload_store_writer *w)
{
	uint32_t tensor = 0, last = PROGRAM_NONE;
	int status = 0;
	for (uint32_t i = file->first_piece; i < file->first_piece + file->pieces && !status; i++) {
		const struct pack_layout_piece *piece = &k->layout->pieces[i];
		const struct pack_layout_extent *extent = &k->layout->extents[piece->extent];
		bool vector = k->p->weights[piece->weight].rows == 1;
		if (i == extent->first_piece)
			offload_store_writer_break(w);
		if (piece->weight != last) {
			if (last != PROGRAM_NONE)
				format_gguf_forget(k->g, k->p->weights[last].source);
			last = piece->weight;
			status = declare_tensor(k, w, last, &tensor);
			if (!status)
				status = begin_weight(k, last);
		}
		if (!status)
			status = vector ? pack_vector(k, piece) : pack_rows(k, piece);
		if (!status)
			status = offload_store_writer_piece(
				w, tensor, piece->first_row, piece->rows, k->packed, piece->length_bytes, k->e);
		k->done_bytes += i + 1 == extent->first_piece + extent->pieces ? extent->length_bytes : 0;
		if (!status)
			status = progress(k);
	}
	if (last != PROGRAM_NONE)
		format_gguf_forget(k->g, k->p->weights[last].source);
	return status;
}

/* ---- files ---- */

static struct offload_store_identity identity_of(const struct packer *k, const struct pack_layout_file *file)
{
	struct pack_slice part = pack_file_slice(file->layer, &k->config->slice);
	struct offload_store_identity id = {
		.layer = file->layer,
		.tp_rank = part.tp_rank,
		.tp_size = part.tp_size,
		.layout = PACK_LAYOUT_R16,
		.extent_bytes = k->layout->extent_bytes,
	};
	memcpy(id.source_digest, k->result->digest, sizeof id.source_digest);
	return id;
}

static const char *name_of(const struct packer *k, const struct pack_layout_file *file, char out[static 64])
{
	return pack_file_name(file->layer, k->config->slice.tp_rank, k->config->slice.tp_size, out);
}

static int pack_file(struct packer *k, const struct pack_layout_file *file)
{
	char name[64];
	struct offload_store_identity id = identity_of(k, file);
	struct offload_store_writer *w = NULL;
	int status = offload_store_writer_create(k->dir_fd, name_of(k, file, name), &id, &w, k->e);
	if (!status)
		status = write_pieces(k, file, w);
	if (!status)
		status = offload_store_writer_commit(w, k->e);
	offload_store_writer_destroy(w);
	return status;
}

// All extents as they are on the drive. -EBADMSG: some are not what was written, or cannot be read.
static int check_data(struct packer *k, const struct offload_store *s)
{
	uint32_t count;
	const struct offload_store_extent *x = offload_store_extents(s, &count);
	_cleanup_free_ uint8_t *data =
		aligned_alloc(BASE_PAGE_BYTES, base_size_align(k->layout->extent_bytes, BASE_PAGE_BYTES));
	if (!data)
		return base_error_set(k->e, -ENOMEM, "no memory to check the store with");
	for (uint32_t i = 0; i < count; i++) {
		ssize_t n = 0;
		for (uint32_t at = 0; at < x[i].length_bytes; at += (uint32_t)n) {
			n = pread(offload_store_fd(s), data + at, x[i].length_bytes - at,
				(off_t)(x[i].offset_bytes + at));
			if (n < 0 && errno == EINTR) {
				n = 0;
				continue;
			}
			if (n > 0 && at + (uint32_t)n < x[i].length_bytes)
				n -= n % (ssize_t)BASE_PAGE_BYTES; // where a direct read may go on
			if (n <= 0)
				return -EBADMSG;
		}
		if (offload_hash(data, x[i].length_bytes) != x[i].xxh3)
			return -EBADMSG;
		if (k->config->progress &&
			k->config->progress(k->config->context, PACK_PHASE_PACK, k->done_bytes, k->total_bytes))
			return base_error_set(k->e, -ECANCELED, "checking the store was cancelled");
	}
	return 0;
}

static void note_repaired(struct packer *k, const char *name)
{
	char *list = k->result->repaired;
	size_t used = strlen(list);
	snprintf(list + used, sizeof k->result->repaired - used, "%s%s", used ? ", " : "", name);
	k->result->repaired_files++;
}

// Which files are there and whole; one that is damaged or of another layout is not.
static int look_at_files(struct packer *k)
{
	char name[64];
	for (uint32_t i = 0; i < k->layout->files_count; i++) {
		const struct pack_layout_file *file = &k->layout->files[i];
		struct offload_store_identity id = identity_of(k, file);
		struct offload_store *s = NULL;
		k->total_bytes += file->data_bytes;
		int status = offload_store_open(k->dir_fd, name_of(k, file, name), &id, &s, k->e);
		if (!status && offload_store_data_bytes(s) != file->data_bytes)
			status = -EBADMSG;
		if (!status && k->config->repair)
			status = check_data(k, s);
		offload_store_close(s);
		if (!status) {
			k->whole[i] = true;
			k->done_bytes += file->data_bytes;
			k->result->reused_bytes += file->data_bytes;
		} else if (status != -EBADMSG && status != -ESTALE && status != -ENOENT) {
			return status;
		} else if (k->config->repair) {
			note_repaired(k, name);
		}
	}
	return 0;
}

static int remove_damaged(struct packer *k)
{
	char name[64];
	for (uint32_t i = 0; i < k->layout->files_count; i++) {
		if (k->whole[i])
			continue;
		if (unlinkat(k->dir_fd, name_of(k, &k->layout->files[i], name), 0) && errno != ENOENT)
			return base_error_set(k->e, -errno, "cannot remove %s/%s, which cannot be used: %s",
				k->result->directory, name, strerrordesc_np(errno));
	}
	return 0;
}

/* Nothing that was remembered counts: the drive that lost data may hold the source, too. */
static int check_source(struct packer *k)
{
	uint8_t now[16];
	struct stat mine, named;
	int fd = format_gguf_fd(k->g);
	if (!k->config->repair || !k->result->repaired_files || k->config->source)
		return 0;
	const char *path = format_gguf_path(k->g);
	if (fd >= 0 && (fstat(fd, &mine) || stat(path, &named) || !same_file(&mine, &named)))
		return base_error_set(k->e, -ESTALE,
			"the store's %s cannot be packed anew: the source %s is gone, or was replaced or changed",
			k->result->repaired, path);
	int status = format_gguf_digest(k->g, now, digest_progress, k, k->e);
	if (status || memcmp(now, k->config->repair, sizeof now) == 0)
		return status;
	return base_error_set(k->e, -ESTALE,
		"the store's %s cannot be packed anew: the source %s has changed since the store was packed from it",
		k->result->repaired, path);
}

/* ---- room on the drive ---- */

/* Names of the files of the slice; only_missing: that are to be written. */
static int list_files(struct packer *k, bool only_missing, char (**ret_names)[64], uint32_t *ret_count)
{
	uint32_t count = 0;
	char(*names)[64] = calloc(k->layout->files_count, sizeof *names);
	if (!names)
		return base_error_set(k->e, -ENOMEM, "no memory to pack with");
	for (uint32_t i = 0; i < k->layout->files_count; i++) {
		if (!only_missing || !k->whole[i])
			name_of(k, &k->layout->files[i], names[count++]);
	}
	*ret_names = names;
	*ret_count = count;
	return 0;
}

static int ask_room(struct packer *k, uint64_t *ret_free_bytes, uint64_t *ret_all_bytes)
{
	struct statvfs fs;
	if (fstatvfs(k->dir_fd, &fs))
		return base_error_set(k->e, -errno, "cannot ask for the room in %s: %s", k->config->store_path,
			strerrordesc_np(errno));
	*ret_free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	*ret_all_bytes = (uint64_t)fs.f_blocks * fs.f_frsize;
	return 0;
}

static int make_room(struct packer *k, uint64_t bytes, bool *ret_dropped)
{
	struct pack_dropped dropped = {0};
	_cleanup_free_ char(*keep)[64] = NULL;
	char hex[33];
	uint32_t count;
	int status = list_files(k, false, &keep, &count);
	if (!status)
		status = pack_spares_make_room(
			k->store_fd, pack_hex(k->result->digest, hex), keep, count, bytes, &dropped, k->e);
	if (!status && dropped.files && k->config->dropped)
		k->config->dropped(k->config->context, dropped.files, dropped.bytes);
	*ret_dropped = dropped.files > 0;
	return status;
}

/* Room of deleted files is there late: XFS frees it in the background, btrfs with its next transaction, which syncfs
 * brings about. */
static int wait_for_room(struct packer *k, uint64_t need, uint64_t *free_bytes, uint64_t *all_bytes)
{
	uint64_t until = base_clock_now_ns() + FREED_NS;
	int status = ask_room(k, free_bytes, all_bytes);
	if (!status && need > *free_bytes)
		(void)syncfs(k->dir_fd);
	while (!status && need > *free_bytes && base_clock_now_ns() < until) {
		status = report(k);
		if (status)
			return status;
		nanosleep(&(struct timespec){.tv_nsec = LOCK_ROUND_NS}, NULL);
		status = ask_room(k, free_bytes, all_bytes);
	}
	return status;
}

/* Spare files are listed before they are there, and no longer once others than spares rely on them. */
static int mark_spares(struct packer *k)
{
	_cleanup_free_ char(*names)[64] = NULL;
	uint32_t count;
	int status = list_files(k, k->config->spare, &names, &count);
	if (status)
		return status;
	if (k->config->spare)
		return pack_spares_add(k->dir_fd, names, count, k->e);
	_cleanup_free_ bool *loose = calloc(count, sizeof *loose);
	if (!loose)
		return base_error_set(k->e, -ENOMEM, "no memory to pack with");
	pack_spares_look(k->dir_fd, names, count, loose);
	status = pack_spares_remove(k->dir_fd, names, count, k->e);
	for (uint32_t i = 0; i < count && !status && k->config->relied; i++) // in the order of k->whole
		k->config->relied(k->config->context, k->result->digest, names[i], loose[i] || !k->whole[i]);
	return status;
}

static int check_room(struct packer *k)
{
	uint64_t need = 0, free_bytes = 0, all_bytes = 0;
	for (uint32_t i = 0; i < k->layout->files_count; i++) {
		const struct pack_layout_file *file = &k->layout->files[i];
		if (!k->whole[i])
			need += file->data_bytes + FILE_BYTES +
				(uint64_t)(file->pieces + file->extents) * TABLE_ENTRY_BYTES;
	}
	int status = ask_room(k, &free_bytes, &all_bytes);
	if (!status && need > free_bytes && !k->config->spare) {
		bool dropped = false;
		status = make_room(k, need - free_bytes, &dropped);
		if (!status && dropped)
			status = wait_for_room(k, need, &free_bytes, &all_bytes);
	}
	if (status)
		return status;
	uint64_t kept_bytes = k->config->spare ? all_bytes / 10 : 0;
	if (!need || need + kept_bytes <= free_bytes)
		return 0;
	if (need <= free_bytes)
		return base_error_set(k->e, -ENOSPC, "store %s: spare layers leave a tenth of their drive free",
			k->config->store_path);
	char needed[BASE_UNITS_TEXT_BYTES], left[BASE_UNITS_TEXT_BYTES];
	return base_error_set(k->e, -ENOSPC,
		"store %s: packing needs %s, but its drive has %s left: %llu bytes short; free them or set another "
		"store directory",
		k->config->store_path, base_units_format_bytes(need, needed), base_units_format_bytes(free_bytes, left),
		(unsigned long long)(need - free_bytes));
}

static int take_buffers(struct packer *k)
{
	uint64_t source = 0;
	for (uint32_t i = 0; i < k->p->weights_count; i++) {
		uint64_t bytes = (uint64_t)k->layout->cuts[i].cols * sizeof(float); // of a vector in any type
		source = k->p->weights[i].rows == 1 && bytes > source ? bytes : source;
	}
	source = source > k->layout->extent_bytes ? source : k->layout->extent_bytes;
	k->source = malloc(source);
	k->packed = aligned_alloc(64, base_size_align(k->layout->extent_bytes, 64));
	return k->source && k->packed ? 0 : base_error_set(k->e, -ENOMEM, "no memory to pack with");
}

/* ---- model.json ---- */

static void add_number(json_object *o, const char *key, int64_t v)
{
	json_object_object_add(o, key, json_object_new_int64(v));
}

static json_object *tensors_json(const struct program *p)
{
	json_object *list = json_object_new_array();
	for (uint32_t i = 0; i < p->weights_count; i++) {
		char type[16];
		json_object *o = json_object_new_object();
		json_object_object_add(o, "name", json_object_new_string(p->weights[i].name));
		json_object_object_add(o, "type", json_object_new_string(quant_type_name(p->weights[i].type, type)));
		add_number(o, "rows", p->weights[i].rows);
		add_number(o, "cols", p->weights[i].cols);
		json_object_array_add(list, o);
	}
	return list;
}

static int write_model_json(struct packer *k)
{
	const struct program_config *c = &k->p->config;
	char hex[33];
	_cleanup_free_ char *path = realpath(format_gguf_path(k->g), NULL);
	json_object *root = json_object_new_object(), *config = json_object_new_object();
	json_object_object_add(root, "source", json_object_new_string(path ? path : format_gguf_path(k->g)));
	json_object_object_add(root, "digest", json_object_new_string(pack_hex(k->result->digest, hex)));
	add_number(root, "layout", PACK_LAYOUT_R16);
	add_number(root, "extent_bytes", k->layout->extent_bytes);
	json_object_object_add(config, "architecture", json_object_new_string(c->architecture));
	json_object_object_add(config, "name", json_object_new_string(c->name));
	add_number(config, "layers", c->layers);
	add_number(config, "width", c->width);
	add_number(config, "ffn_width", c->ffn_width);
	add_number(config, "heads", c->heads);
	add_number(config, "kv_heads", c->kv_heads);
	add_number(config, "head_dim", c->head_dim);
	add_number(config, "vocab", c->vocab);
	add_number(config, "context_tokens", c->context_tokens);
	add_number(config, "window", c->window);
	json_object_object_add(config, "tied_head", json_object_new_boolean(c->tied_head));
	json_object_object_add(root, "config", config);
	json_object_object_add(root, "tensors", tensors_json(k->p));
	int status = pack_write_file(
		k->dir_fd, "model.json", json_object_to_json_string_ext(root, JSON_C_TO_STRING_PRETTY), k->e);
	json_object_put(root);
	return status;
}

/* ---- all ---- */

static int run(struct packer *k)
{
	char hex[33];
	int status;
	if ((status = open_directory(AT_FDCWD, k->config->store_path, k->e, &k->store_fd)))
		return status;
	// sources.json is replaced as a whole: to read it nobody has to wait for a packer.
	bool known = k->config->digest_only && !k->config->repair && is_remembered(k);
	if (!known && (status = take_lock(k)))
		return status;
	if (k->config->repair)
		memcpy(k->result->digest, k->config->repair, sizeof k->result->digest);
	else if (!known && (status = find_digest(k)))
		return status;
	pack_hex(k->result->digest, hex);
	int n = snprintf(k->result->directory, sizeof k->result->directory, "%s/%s", k->config->store_path, hex);
	if (n < 0 || (size_t)n >= sizeof k->result->directory)
		return base_error_set(
			k->e, -ENAMETOOLONG, "the path of the store is too long: %s", k->config->store_path);
	if (k->config->digest_only)
		return 0;
	if ((status = open_directory(k->store_fd, hex, k->e, &k->dir_fd)) || (status = look_at_files(k)) ||
		(status = check_source(k)) || (status = remove_damaged(k)) || (status = check_room(k)) ||
		(status = mark_spares(k)) || (status = take_buffers(k)) || (status = progress(k)))
		return status;
	for (uint32_t i = 0; i < k->layout->files_count && !status; i++) {
		if (k->whole[i])
			continue;
		status = pack_file(k, &k->layout->files[i]);
		k->result->written_bytes += status ? 0 : k->layout->files[i].data_bytes;
	}
	if (!status && (k->result->written_bytes || faccessat(k->dir_fd, "model.json", F_OK, 0)))
		status = write_model_json(k);
	return status;
}

/* The store and its model, and the lock; dir_fd -1: there is none. */
static int open_model(struct packer *k)
{
	char hex[33];
	k->store_fd = open(k->config->store_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (k->store_fd < 0)
		return errno == ENOENT ? 0
				       : base_error_set(k->e, -errno, "cannot open the store directory %s: %s",
						 k->config->store_path, strerrordesc_np(errno));
	int status = take_lock(k);
	if (status)
		return status;
	k->dir_fd =
		openat(k->store_fd, pack_hex(k->config->digest, hex), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	return 0;
}

static int drop_spares(struct packer *k)
{
	struct pack_dropped dropped = {0};
	int status = open_model(k);
	if (status || k->dir_fd < 0)
		return status;
	status = pack_spares_drop(k->dir_fd, &dropped, k->e);
	if (!status && dropped.files && k->config->dropped)
		k->config->dropped(k->config->context, dropped.files, dropped.bytes);
	return status;
}

static void close_all(struct packer *k)
{
	int fds[] = {k->dir_fd, k->store_fd, k->lock_fd};
	for (size_t i = 0; i < base_array_size(fds); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
}

int pack_drop_spares(const struct pack_config *config, struct base_error *e)
{
	struct packer k = {.config = config, .e = e, .store_fd = -1, .dir_fd = -1, .lock_fd = -1};
	int status = drop_spares(&k);
	close_all(&k);
	return status;
}

int pack_spare_again(const struct pack_config *config,
	uint32_t (*names)(void *context, char (*ret_names)[64], uint32_t room), struct base_error *e)
{
	struct packer k = {.config = config, .e = e, .store_fd = -1, .dir_fd = -1, .lock_fd = -1};
	_cleanup_free_ char(*list)[64] = calloc(PACK_MAX_SPARES, sizeof *list);
	int status = list ? open_model(&k) : base_error_set(e, -ENOMEM, "no memory to list spare files with");
	if (!status && k.dir_fd >= 0)
		status = pack_spares_add(k.dir_fd, list, names(config->context, list, PACK_MAX_SPARES), e);
	close_all(&k);
	return status;
}

int pack_model(const struct format_gguf *g, const struct program *p, const struct pack_config *config,
	struct pack_result *ret_result, struct base_error *e)
{
	struct pack_result result = {0};
	struct packer k = {.g = g,
		.p = p,
		.config = config,
		.result = &result,
		.e = e,
		.store_fd = -1,
		.dir_fd = -1,
		.lock_fd = -1};
	int status = pack_layout_build(p, &config->slice, &k.layout, e);
	if (status)
		return status;
	result.extent_bytes = k.layout->extent_bytes;
	k.whole = calloc(k.layout->files_count, sizeof *k.whole);
	status = k.whole ? run(&k) : base_error_set(e, -ENOMEM, "no memory to pack with");
	close_all(&k);
	free(k.whole);
	free(k.source);
	free(k.packed);
	pack_layout_destroy(k.layout);
	if (!status)
		*ret_result = result;
	return status;
}
