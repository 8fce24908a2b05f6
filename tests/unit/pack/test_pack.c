// SPDX-License-Identifier: Apache-2.0
// The packer: what is in the store equals the source, in any slicing; reuse, resume, refusals.
#include "tests/lib/testing.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "offload/store.h"
#include "shard/pack/layout.h"
#include "shard/pack/pack.h"
#include "shard/quant/quant.h"
#include "tests/lib/model_fixture.h"
#include "tests/lib/tiny_gguf.h"

static uint64_t small_bytes; // what is free, as fstatvfs says it; 0: what is
static uint32_t small_looks; // that it says so

/* In the place of libc's: a file system that frees what was deleted late. */
int fstatvfs(int fd, struct statvfs *ret)
{
	__typeof__(fstatvfs) *real;
	*(void **)&real = dlsym(RTLD_NEXT, "fstatvfs");
	int status = real(fd, ret);
	if (status || !small_bytes || !small_looks)
		return status;
	ret->f_bavail = small_bytes / ret->f_frsize;
	small_looks--;
	return 0;
}

struct source { // a model in a temporary directory
	char directory[64], store[128], path[128];
	struct format_gguf *g;
	struct program *p;
};

static void source_init(struct source *s, struct tiny_model *m)
{
	struct base_error e = {0};
	snprintf(s->directory, sizeof s->directory, "/tmp/thaw-pack.XXXXXX");
	assert_non_null(mkdtemp(s->directory));
	snprintf(s->store, sizeof s->store, "%s/store", s->directory);
	snprintf(s->path, sizeof s->path, "%s/tiny.gguf", s->directory);
	assert_int_equal(tiny_model_save(m, s->path), 0);
	if (format_gguf_open(s->path, &s->g, &e) || program_build(s->g, &s->p, &e))
		fail_msg("%s", base_error_text(&e));
}

static void source_finish(struct source *s)
{
	program_destroy(s->p);
	format_gguf_close(s->g);
	model_remove_tree(s->directory);
}

static int pack(struct source *s, uint32_t tp_rank, uint32_t tp_size, struct pack_result *ret, struct base_error *e)
{
	struct pack_config config = {
		.store_path = s->store, .slice = {0, s->p->config.layers, tp_rank, tp_size}, .wait_ns = 1};
	return pack_model(s->g, s->p, &config, ret, e);
}

static struct pack_result pack_well(struct source *s, uint32_t tp_rank, uint32_t tp_size)
{
	struct base_error e = {0};
	struct pack_result result;
	if (pack(s, tp_rank, tp_size, &result, &e))
		fail_msg("%s", base_error_text(&e));
	return result;
}

/* ---- contents ---- */

static float *source_matrix(const struct source *s, const struct program_weight *w)
{
	float *out = malloc((size_t)w->rows * w->cols * sizeof *out);
	uint64_t row_bytes = 0;
	assert_int_equal(quant_row_bytes(w->type, w->cols, &row_bytes), 0);
	uint8_t *row = malloc(row_bytes);
	for (uint32_t r = 0; r < w->rows; r++) {
		assert_int_equal(format_gguf_read(s->g, w->source, r * row_bytes, row, row_bytes, NULL), 0);
		assert_int_equal(quant_dequantize_row(w->type, row, w->cols, out + (size_t)r * w->cols), 0);
	}
	free(row);
	return out;
}

// A tensor of a store file as floats, (rows, cols).
static float *store_matrix(const struct offload_store *store, uint32_t tensor)
{
	uint32_t count, tensors;
	const struct offload_store_tensor *t = &offload_store_tensors(store, &tensors)[tensor];
	const struct offload_store_piece *pieces = offload_store_pieces(store, &count);
	float *out = malloc(t->rows * t->cols * sizeof *out);
	uint64_t row_bytes = 0, seen = 0;
	assert_int_equal(quant_row_bytes(t->type, t->cols, &row_bytes), 0);
	for (uint32_t i = 0; i < count; i++) {
		if (pieces[i].tensor != tensor)
			continue;
		uint32_t n;
		const struct offload_store_extent *x = &offload_store_extents(store, &n)[pieces[i].extent];
		uint8_t *data = aligned_alloc(4096, x->length_bytes);
		assert_int_equal(
			pread(offload_store_fd(store), data, x->length_bytes, (off_t)x->offset_bytes), x->length_bytes);
		assert_int_equal(pieces[i].first_row, seen);
		for (uint32_t r = 0; r < pieces[i].rows; r++, seen++) {
			const uint8_t *at = data + pieces[i].offset_bytes;
			if (t->rows == 1)
				memcpy(out, at, t->cols * sizeof *out);
			else
				assert_int_equal(quant_dequantize_r16(t->type, at + r / 16 * 16 * row_bytes, r % 16,
							 (uint32_t)t->cols, out + seen * t->cols),
					0);
		}
		free(data);
	}
	assert_int_equal(seen, t->rows);
	return out;
}

static struct offload_store *open_store(
	const struct pack_result *result, uint32_t layer, uint32_t tp_rank, uint32_t tp_size)
{
	char name[64];
	struct base_error e = {0};
	struct offload_store *store = NULL;
	int dir = open(result->directory, O_RDONLY | O_DIRECTORY);
	assert_true(dir >= 0);
	if (offload_store_open(dir, pack_file_name(layer, tp_rank, tp_size, name), NULL, &store, &e))
		fail_msg("%s", base_error_text(&e));
	close(dir);
	return store;
}

// Every weight of the model, put together from the slices, equals the source.
static void contents_equal_the_source(struct source *s, uint32_t tp_size)
{
	struct pack_result result = {0};
	for (uint32_t rank = 0; rank < tp_size; rank++)
		result = pack_well(s, rank, tp_size);
	for (uint32_t i = 0; i < s->p->weights_count; i++) {
		const struct program_weight *w = &s->p->weights[i];
		float *want = source_matrix(s, w);
		uint64_t covered = 0;
		for (uint32_t rank = 0; rank < tp_size; rank++) {
			struct program_cut cut;
			program_cut_weight(s->p, rank, tp_size, i, &cut);
			struct offload_store *store = open_store(&result, pack_weight_file(s->p, i), rank, tp_size);
			uint32_t tensors, at = 0;
			const struct offload_store_tensor *t = offload_store_tensors(store, &tensors);
			while (at < tensors && strcmp(t[at].name, w->name) != 0)
				at++;
			assert_true(at < tensors);
			assert_int_equal(t[at].rows, cut.rows);
			assert_int_equal(t[at].cols, cut.cols);
			float *have = store_matrix(store, at);
			for (uint32_t r = 0; r < cut.rows; r++)
				assert_memory_equal(have + (size_t)r * cut.cols,
					want + (size_t)(cut.first_row + r) * w->cols + cut.first_col,
					cut.cols * sizeof *have);
			covered += (uint64_t)cut.rows * cut.cols;
			free(have);
			offload_store_close(store);
		}
		// Split weights are covered once; others are on every rank.
		assert_int_equal(covered, (uint64_t)w->rows * w->cols * (w->split == PROGRAM_SPLIT_NONE ? tp_size : 1));
		free(want);
	}
}

static void every_type_packs_to_what_it_was(void **state)
{
	static const uint32_t types[] = {0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 30};
	for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
		struct tiny_model m = {.type = types[i],
			.layers = 2,
			.width = 256,
			.heads = 4,
			.vocab = 300,
			.tied = i % 2,
			.seed = i,
			.biases = true};
		struct source s;
		source_init(&s, &m);
		contents_equal_the_source(&s, 1);
		source_finish(&s);
	}
}

static void slices_put_together_are_the_model(void **state)
{
	// Head borders at borders of blocks: 128 columns for each of two ranks; 256 for K-quants.
	struct tiny_model small = {
		.type = 8, .width = 256, .heads = 4, .kv_heads = 2, .head_dim = 64, .ffn_width = 416};
	struct tiny_model large = {
		.type = 12, .width = 512, .heads = 4, .kv_heads = 2, .head_dim = 128, .ffn_width = 768};
	struct tiny_model *models[] = {&small, &large};
	for (int i = 0; i < 2; i++) {
		struct source s;
		source_init(&s, models[i]);
		contents_equal_the_source(&s, 2);
		source_finish(&s);
	}
}

static void cuts_that_cannot_be_are_refused(void **state)
{
	struct tiny_model m = {.type = 12, .width = 256, .heads = 4, .kv_heads = 2, .head_dim = 64};
	struct source s;
	struct pack_result result;
	struct base_error e = {0};
	source_init(&s, &m);
	assert_int_equal(pack(&s, 0, 3, &result, &e), -EINVAL);
	assert_non_null(strstr(e.message,
		"cannot be cut into 3 parts: its 4 heads, which share 2 KV heads, do not divide by 3 (possible: 1)"));
	assert_int_equal(pack(&s, 0, 2, &result, &e), -EINVAL);
	assert_non_null(strstr(e.message, "the 128 columns of attn_output for 2 heads do not end at a border of its "
					  "type's blocks of 256"));
	assert_int_equal(pack(&s, 2, 2, &result, &e), -EINVAL);
	source_finish(&s);
}

static void ranks_beyond_the_kv_heads_share_them(void **state)
{
	struct tiny_model m = {.type = 0, .width = 64, .heads = 4, .kv_heads = 2, .head_dim = 16};
	struct source s;
	source_init(&s, &m);
	for (uint32_t rank = 0; rank < 4; rank++) {
		struct program_cut cut;
		for (uint32_t i = 0; i < s.p->weights_count; i++) {
			const struct program_weight *w = &s.p->weights[i];
			program_cut_weight(s.p, rank, 4, i, &cut);
			if (w->split == PROGRAM_SPLIT_KV_HEADS) {
				assert_int_equal(cut.first_row, rank / 2 * 16);
				assert_int_equal(cut.rows, 16);
			}
			if (w->split == PROGRAM_SPLIT_HEADS)
				assert_int_equal(cut.first_row, rank * 16);
		}
	}
	source_finish(&s);
}

/* ---- layout ---- */

static void vectors_lie_in_extents_of_their_own(void **state)
{
	struct tiny_model m = {.type = 8, .width = 256, .layers = 3, .biases = true, .tied = true};
	struct source s;
	struct pack_layout *l = NULL;
	source_init(&s, &m);
	struct pack_slice slice = {0, 3, 0, 1};
	assert_int_equal(pack_layout_build(s.p, &slice, &l, NULL), 0);
	assert_int_equal(l->files_count, 4);
	for (uint32_t i = 0; i < l->extents_count; i++) {
		const struct pack_layout_extent *x = &l->extents[i];
		assert_true(x->length_bytes <= l->extent_bytes && x->length_bytes % 4096 == 0 && x->pieces > 0);
		assert_int_equal(x->pinned, i == l->files[x->file].first_extent);
		for (uint32_t j = x->first_piece; j < x->first_piece + x->pieces; j++)
			assert_int_equal(s.p->weights[l->pieces[j].weight].rows == 1, x->pinned);
	}
	pack_layout_destroy(l);
	// A stage in the middle has its layers alone; the first one needs the tied head for look-ups.
	slice = (struct pack_slice){1, 1, 0, 1};
	assert_int_equal(pack_layout_build(s.p, &slice, &l, NULL), 0);
	assert_int_equal(l->files_count, 1);
	pack_layout_destroy(l);
	slice = (struct pack_slice){0, 1, 0, 1};
	assert_int_equal(pack_layout_build(s.p, &slice, &l, NULL), 0);
	assert_int_equal(l->files_count, 2);
	assert_int_equal(l->files[1].layer, PACK_LAYER_HEAD);
	pack_layout_destroy(l);
	source_finish(&s);
}

/* ---- reuse, resume ---- */

static void a_second_run_writes_nothing(void **state)
{
	struct tiny_model m = {.type = 8};
	struct source s;
	source_init(&s, &m);
	struct pack_result first = pack_well(&s, 0, 1), second = pack_well(&s, 0, 1);
	assert_true(first.written_bytes > 0 && first.reused_bytes == 0);
	assert_int_equal(second.written_bytes, 0);
	assert_int_equal(second.reused_bytes, first.written_bytes);
	assert_memory_equal(first.digest, second.digest, 16);
	// A file of another model goes to another directory, also under the same name.
	struct tiny_model other = {.type = 8, .seed = 5};
	assert_int_equal(tiny_model_save(&other, s.path), 0);
	format_gguf_close(s.g);
	assert_int_equal(format_gguf_open(s.path, &s.g, NULL), 0);
	program_destroy(s.p);
	assert_int_equal(program_build(s.g, &s.p, NULL), 0);
	struct pack_result third = pack_well(&s, 0, 1);
	assert_int_not_equal(memcmp(first.digest, third.digest, 16), 0);
	assert_int_equal(third.reused_bytes, 0);
	source_finish(&s);
}

// Between opening a model and digesting it another file of the same size takes its name: neither may get the other's
// digest.
static void a_replaced_source_is_noticed(void **state)
{
	struct tiny_model m = {.layers = 1, .type = 2, .seed = 3}, other = m;
	struct source s;
	struct pack_result result;
	struct base_error e = {0};
	char path[200];
	source_init(&s, &m);
	snprintf(path, sizeof path, "%s/other.gguf", s.directory);
	other.seed = 4;
	assert_int_equal(tiny_model_save(&other, path), 0);
	assert_int_equal(rename(path, s.path), 0);
	assert_int_equal(pack(&s, 0, 1, &result, &e), -ESTALE);
	assert_non_null(strstr(e.message, "was replaced"));
	program_destroy(s.p);
	format_gguf_close(s.g);
	assert_int_equal(format_gguf_open(s.path, &s.g, &e), 0);
	assert_int_equal(program_build(s.g, &s.p, &e), 0);
	uint8_t digest[16];
	assert_int_equal(format_gguf_digest(s.g, digest, NULL, NULL, &e), 0);
	result = pack_well(&s, 0, 1);
	assert_memory_equal(result.digest, digest, 16);
	source_finish(&s);
}

static void a_damaged_file_is_packed_again(void **state)
{
	struct tiny_model m = {.type = 8, .layers = 3};
	struct source s;
	char path[640];
	source_init(&s, &m);
	struct pack_result first = pack_well(&s, 0, 1);
	snprintf(path, sizeof path, "%s/layer-0001.tp0of1", first.directory);
	assert_int_equal(truncate(path, 5000), 0);
	struct pack_result again = pack_well(&s, 0, 1);
	assert_true(again.written_bytes > 0 && again.written_bytes < first.written_bytes);
	assert_int_equal(again.written_bytes + again.reused_bytes, first.written_bytes);
	contents_equal_the_source(&s, 1);
	source_finish(&s);
}

static int die_in_the_middle(void *context, enum pack_phase phase, uint64_t done, uint64_t total)
{
	if (phase == PACK_PHASE_PACK && done > total / 2)
		raise(SIGKILL);
	return 0;
}

static void a_killed_run_is_resumed(void **state)
{
	struct tiny_model m = {.type = 8, .layers = 6, .width = 512};
	struct source s;
	source_init(&s, &m);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		struct pack_config config = {
			.store_path = s.store, .slice = {0, 6, 0, 1}, .progress = die_in_the_middle};
		struct pack_result result;
		pack_model(s.g, s.p, &config, &result, NULL);
		_exit(1);
	}
	int status;
	waitpid(child, &status, 0);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	struct pack_result result = pack_well(&s, 0, 1);
	assert_true(result.reused_bytes > 0 && result.written_bytes > 0);
	contents_equal_the_source(&s, 1);
	source_finish(&s);
}

static int stop_at_once(void *context, enum pack_phase phase, uint64_t done, uint64_t total)
{
	return phase == PACK_PHASE_PACK && done > 0;
}

static void cancelling_leaves_no_half_file(void **state)
{
	struct tiny_model m = {.type = 8, .width = 512};
	struct source s;
	struct base_error e = {0};
	struct pack_result result;
	source_init(&s, &m);
	struct pack_config config = {.store_path = s.store, .slice = {0, 2, 0, 1}, .progress = stop_at_once};
	assert_int_equal(pack_model(s.g, s.p, &config, &result, &e), -ECANCELED);
	struct pack_result rest = pack_well(&s, 0, 1);
	assert_true(rest.written_bytes > rest.reused_bytes);
	contents_equal_the_source(&s, 1);
	source_finish(&s);
}

/* ---- refusals ---- */

static void a_second_packer_is_kept_out(void **state)
{
	struct tiny_model m = {0};
	struct source s;
	char path[160];
	struct base_error e = {0};
	struct pack_result result;
	source_init(&s, &m);
	struct pack_result first = pack_well(&s, 0, 1);
	snprintf(path, sizeof path, "%s/pack.lock", s.store);
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0 && flock(fd, LOCK_EX) == 0);
	assert_int_equal(pack(&s, 0, 1, &result, &e), -EBUSY);
	char want[64];
	snprintf(want, sizeof want, "process %ld is packing into it", (long)getpid());
	assert_non_null(strstr(e.message, want));
	/* What is known already, it may be asked for. */
	struct pack_config config = {.store_path = s.store, .digest_only = true, .wait_ns = 1};
	config.slice = (struct pack_slice){0, s.p->config.layers, 0, 1};
	assert_int_equal(pack_model(s.g, s.p, &config, &result, &e), 0);
	assert_memory_equal(result.digest, first.digest, sizeof first.digest);
	close(fd);
	source_finish(&s);
}

struct waiting {
	int fd; // that has the lock
	uint32_t rounds, most;
	bool cancel;
};

static int while_waiting(void *context, enum pack_phase phase, uint64_t done, uint64_t total)
{
	struct waiting *x = context;
	if (phase != PACK_PHASE_WAIT || ++x->rounds < x->most)
		return 0;
	if (!x->cancel)
		flock(x->fd, LOCK_UN);
	return x->cancel;
}

static void a_second_packer_waits(void **state)
{
	struct tiny_model m = {0};
	struct source s;
	char path[160];
	struct base_error e = {0};
	struct pack_result result;
	struct waiting x = {.most = 3};
	source_init(&s, &m);
	assert_int_equal(mkdir(s.store, 0755), 0);
	snprintf(path, sizeof path, "%s/pack.lock", s.store);
	x.fd = open(path, O_RDWR | O_CREAT, 0644);
	assert_true(x.fd >= 0 && flock(x.fd, LOCK_EX) == 0);
	struct pack_config config = {.store_path = s.store, .progress = while_waiting, .context = &x};
	config.slice = (struct pack_slice){0, s.p->config.layers, 0, 1};
	if (pack_model(s.g, s.p, &config, &result, &e))
		fail_msg("%s", base_error_text(&e));
	assert_true(result.written_bytes > 0);
	assert_int_equal(flock(x.fd, LOCK_EX), 0);
	x.rounds = 0;
	x.cancel = true;
	assert_int_equal(pack_model(s.g, s.p, &config, &result, &e), -ECANCELED);
	close(x.fd);
	source_finish(&s);
}

static bool enter_namespace(void)
{
	char map[32];
	int n = snprintf(map, sizeof map, "0 %u 1", getuid());
	if (unshare(CLONE_NEWNS)) { // not root
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			return false;
		int fd = open("/proc/self/uid_map", O_WRONLY);
		if (fd < 0 || write(fd, map, (size_t)n) != n)
			return false;
		close(fd);
	}
	return mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

// In a mount namespace of its own, on a drive of 300 KiB.
static int pack_on_a_small_drive(struct source *s)
{
	struct base_error e = {0};
	struct pack_result result;
	if (!enter_namespace() || mkdir(s->store, 0755) || mount("none", s->store, "tmpfs", 0, "size=300k"))
		return 77;
	int status = pack(s, 0, 1, &result, &e);
	unsigned long long missing = 0;
	const char *text = strstr(e.message, " left: ");
	if (status != -ENOSPC || !text || sscanf(text, " left: %llu bytes short", &missing) != 1 || missing == 0) {
		fprintf(stderr, "%d %s\n", status, e.message);
		return 1;
	}
	return 0;
}

static void a_full_drive_is_refused_before_it_is_filled(void **state)
{
	struct tiny_model m = {.width = 256};
	struct source s;
	int status;
	source_init(&s, &m);
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(pack_on_a_small_drive(&s));
	waitpid(child, &status, 0);
	source_finish(&s);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- spare files ---- */

struct drops {
	uint32_t files;
	uint64_t bytes;
};

static void on_dropped(void *context, uint32_t files, uint64_t bytes)
{
	struct drops *d = context;
	d->files += files;
	d->bytes += bytes;
}

static int pack_layers(struct source *s, const char *store, uint32_t first, uint32_t layers, bool spare,
	struct drops *drops, struct pack_result *ret, struct base_error *e)
{
	const struct pack_config c = {.store_path = store,
		.slice = {first, layers, 0, 1},
		.spare = spare,
		.wait_ns = 1,
		.dropped = on_dropped,
		.context = drops};
	return pack_model(s->g, s->p, &c, ret, e);
}

static bool is_there(const struct pack_result *r, const char *name)
{
	char path[700];
	snprintf(path, sizeof path, "%s/%s", r->directory, name);
	return access(path, F_OK) == 0;
}

/* Those that a plan has had since stay; a list that names other things deletes none of them. */
static void spare_files_are_dropped_unless_a_plan_has_them(void **state)
{
	struct tiny_model m = {.width = 256, .layers = 4};
	struct source s;
	struct drops drops = {0};
	struct pack_result r;
	struct base_error e = {0};
	source_init(&s, &m);
	struct pack_config c = {.store_path = s.store, .dropped = on_dropped, .context = &drops};
	int status = pack_layers(&s, s.store, 0, 4, true, &drops, &r, &e);
	if (status == -ENOSPC) { // a tenth of the drive is not free here
		source_finish(&s);
		skip();
	}
	assert_int_equal(status, 0);
	assert_int_equal(pack_layers(&s, s.store, 1, 2, false, &drops, &r, &e), 0); // a plan has these two
	assert_int_equal(r.written_bytes, 0);
	assert_int_equal(pack_layers(&s, s.store, 0, 4, true, &drops, &r, &e), 0); // spares of that plan: all there
	assert_int_equal(r.written_bytes, 0);
	assert_int_equal(drops.files, 0);
	char path[700];
	snprintf(path, sizeof path, "%s/spares", r.directory);
	FILE *f = fopen(path, "a");
	fputs("../victim\nmodel.json\nlayer-0002.tp0of1/../model.json\n\n", f);
	fclose(f);
	snprintf(path, sizeof path, "%s/victim", s.store);
	assert_int_equal(close(open(path, O_WRONLY | O_CREAT, 0600)), 0);
	c.digest = r.digest;
	assert_int_equal(pack_drop_spares(&c, &e), 0);
	assert_int_equal(access(path, F_OK), 0);
	assert_true(is_there(&r, "model.json"));
	assert_true(is_there(&r, "layer-0001.tp0of1"));
	assert_true(is_there(&r, "layer-0002.tp0of1"));
	assert_false(is_there(&r, "layer-0000.tp0of1"));
	assert_false(is_there(&r, "layer-0003.tp0of1"));
	assert_false(is_there(&r, "spares"));
	assert_true(drops.files >= 2 && drops.bytes > 0);
	drops = (struct drops){0};
	assert_int_equal(pack_drop_spares(&c, &e), 0); // and again
	assert_int_equal(drops.files, 0);
	source_finish(&s);
}

#define DEMAND(x)                                                                                                      \
	if (!(x)) {                                                                                                    \
		fprintf(stderr, "not so: %s; %s\n", #x, e.message);                                                    \
		return 1;                                                                                              \
	}

/* On a drive with room for one model and a half. */
static int make_room_on_a_small_drive(struct source *a, struct source *b, uint64_t bytes)
{
	struct base_error e = {0};
	struct pack_result ra, rb, r;
	struct drops drops = {0};
	char options[32];
	snprintf(options, sizeof options, "size=%lluk", (unsigned long long)bytes * 3 / 2 / 1024);
	if (!enter_namespace() || mkdir(a->store, 0755) || mount("none", a->store, "tmpfs", 0, options))
		return 77;
	DEMAND(pack_layers(a, a->store, 0, 4, true, &drops, &ra, &e) == 0);
	DEMAND(pack_layers(a, a->store, 0, 1, false, &drops, &ra, &e) == 0);
	DEMAND(pack_layers(b, a->store, 0, 4, false, &drops, &rb, &e) == 0);
	DEMAND(drops.files > 0 && drops.bytes > 0);
	DEMAND(is_there(&ra, "layer-0000.tp0of1"));
	DEMAND(!is_there(&ra, "layer-0003.tp0of1"));
	/* What is not enough stays, too. */
	drops = (struct drops){0};
	DEMAND(pack_layers(a, a->store, 0, 4, false, &drops, &r, &e) == -ENOSPC);
	DEMAND(drops.files == 0);
	DEMAND(pack_layers(b, a->store, 0, 4, false, &drops, &r, &e) == 0 && r.written_bytes == 0);
	return 0;
}

static void spare_files_make_room(void **state)
{
	struct tiny_model m = {.width = 256, .layers = 4}, other = {.width = 256, .layers = 4, .seed = 7};
	struct source a, b;
	int status;
	source_init(&a, &m);
	source_init(&b, &other);
	uint64_t bytes = pack_well(&b, 0, 1).written_bytes;
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0)
		_exit(make_room_on_a_small_drive(&a, &b, bytes));
	waitpid(child, &status, 0);
	source_finish(&a);
	source_finish(&b);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		skip();
	assert_int_equal(WEXITSTATUS(status), 0);
}

static int give_up(void *context, enum pack_phase phase, uint64_t done_bytes, uint64_t total_bytes)
{
	return small_bytes && small_looks < UINT32_MAX - 2; // the second look after they were deleted
}

/* The room of spare files is there some time after they were deleted, or never, which who waits may cut short. */
static void room_that_comes_late_is_waited_for(void **state)
{
	struct tiny_model m = {.width = 256, .layers = 4}, other = {.width = 256, .layers = 4, .seed = 7};
	struct source a, b;
	struct drops drops = {0};
	struct pack_result r;
	struct base_error e = {0};
	source_init(&a, &m);
	source_init(&b, &other);
	uint64_t bytes = pack_well(&b, 0, 1).written_bytes;
	for (uint32_t never = 0; never < 2; never++) {
		struct pack_config c = {.store_path = a.store,
			.slice = {0, 4, 0, 1},
			.dropped = on_dropped,
			.progress = give_up,
			.context = &drops};
		drops = (struct drops){0};
		model_remove_tree(a.store);
		int status = pack_layers(&a, a.store, 0, 4, true, &drops, &r, &e);
		if (status == -ENOSPC) { // a tenth of the drive is not free here
			source_finish(&a);
			source_finish(&b);
			skip();
		}
		assert_int_equal(status, 0);
		small_bytes = bytes / 4 * 3;
		small_looks = never ? UINT32_MAX : 4;
		if (!never)
			c.progress = NULL;
		status = pack_model(b.g, b.p, &c, &r, &e);
		assert_true(drops.files > 0);
		assert_int_equal(status, never ? -ECANCELED : 0);
		assert_int_equal(never || small_looks == 0, 1);
		small_bytes = 0;
	}
	source_finish(&a);
	source_finish(&b);
}

/* ---- repair ---- */

static void flip(const struct pack_result *r, const char *name, long at)
{
	char path[700];
	uint8_t byte;
	snprintf(path, sizeof path, "%s/%s", r->directory, name);
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 4;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
}

static ino_t inode(const struct pack_result *r, const char *name)
{
	char path[700];
	struct stat st;
	snprintf(path, sizeof path, "%s/%s", r->directory, name);
	assert_int_equal(stat(path, &st), 0);
	return st.st_ino;
}

static int repair(struct source *s, const struct pack_result *of, struct pack_result *ret, struct base_error *e)
{
	struct pack_config config = {
		.store_path = s->store, .slice = {0, s->p->config.layers, 0, 1}, .repair = of->digest};
	return pack_model(s->g, s->p, &config, ret, e);
}

/* A bit that changed in one file: that file alone is packed again, and not from a source that changed, too. */
static void only_what_is_damaged_is_packed_anew(void **state)
{
	struct source s;
	struct tiny_model m = {.layers = 3};
	struct base_error e = {0};
	struct pack_result r, again = {0};
	source_init(&s, &m);
	r = pack_well(&s, 0, 1);
	assert_int_equal(repair(&s, &r, &again, &e), 0);
	assert_int_equal(again.repaired_files, 0);
	assert_int_equal(again.written_bytes, 0);
	ino_t one = inode(&r, "layer-0000.tp0of1");
	flip(&r, "layer-0001.tp0of1", 4096 + 700);
	assert_int_equal(pack(&s, 0, 1, &again, &e), 0); // files that open are trusted
	assert_int_equal(again.written_bytes, 0);
	assert_int_equal(repair(&s, &r, &again, &e), 0);
	assert_int_equal(again.repaired_files, 1);
	assert_string_equal(again.repaired, "layer-0001.tp0of1");
	assert_true(again.written_bytes > 0 && again.reused_bytes > again.written_bytes);
	assert_int_equal(inode(&r, "layer-0000.tp0of1"), one);
	assert_int_equal(repair(&s, &r, &again, &e), 0);
	assert_int_equal(again.repaired_files, 0);

	flip(&r, "layer-0002.tp0of1", 4096 + 1);
	ino_t two = inode(&r, "layer-0002.tp0of1");
	int fd = open(s.path, O_RDWR);
	struct stat st;
	uint8_t byte;
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(pread(fd, &byte, 1, st.st_size - 40), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, st.st_size - 40), 1);
	close(fd);
	assert_int_equal(repair(&s, &r, &again, &e), -ESTALE);
	assert_non_null(strstr(e.message, "layer-0002.tp0of1 cannot be packed anew: the source "));
	assert_int_equal(inode(&r, "layer-0002.tp0of1"), two); // still there to be looked at
	assert_int_equal(unlink(s.path), 0);
	assert_int_equal(repair(&s, &r, &again, &e), -ESTALE);
	assert_non_null(strstr(e.message, "is gone"));
	source_finish(&s);
}

/* ---- a source that is no file ---- */

struct far { // gives what is in the file, run by run, and remembers how much that was
	int fd;
	struct pack_runs runs;
	uint64_t at, given_bytes;
};

static int far_begin(void *context, const struct pack_runs *runs, const char *what, struct base_error *e)
{
	struct far *f = context;
	f->runs = *runs;
	f->at = 0;
	assert_true(what[0] && runs->run_bytes <= runs->stride_bytes);
	return 0;
}

static int far_read(void *context, void *out, uint64_t bytes, struct base_error *e)
{
	struct far *f = context;
	for (uint64_t done = 0; done < bytes;) {
		uint64_t run = f->at / f->runs.run_bytes, within = f->at % f->runs.run_bytes;
		uint64_t left = f->runs.run_bytes - within, n = left < bytes - done ? left : bytes - done;
		assert_true(run < f->runs.runs);
		assert_int_equal(pread(f->fd, (uint8_t *)out + done, n,
					 (off_t)(f->runs.offset_bytes + run * f->runs.stride_bytes + within)),
			n);
		done += n;
		f->at += n;
	}
	f->given_bytes += bytes;
	return 0;
}

static void same_files(const char *a, const char *b, const char *name)
{
	char command[1200];
	snprintf(command, sizeof command, "cmp %s/%s %s/%s", a, name, b, name);
	FILE *p = popen(command, "r");
	if (!p || pclose(p) != 0)
		fail_msg("%s differs", name);
}

/* Metadata in a file with holes for the tensors, their bytes from elsewhere: the same store, and no byte is asked for
 * twice. */
static void pulled_layers_are_those_of_the_file(void **state)
{
	struct tiny_model m = {.type = 8, .width = 256, .heads = 4, .kv_heads = 2, .head_dim = 64, .ffn_width = 416};
	struct source s;
	char header[200], far_store[200], name[64];
	source_init(&s, &m);
	snprintf(header, sizeof header, "%s/header.gguf", s.directory);
	snprintf(far_store, sizeof far_store, "%s/far", s.directory);
	struct far f = {.fd = open(s.path, O_RDONLY)};
	int fd = open(header, O_WRONLY | O_CREAT, 0644);
	char *bytes = malloc(format_gguf_header_bytes(s.g));
	ssize_t n = pread(f.fd, bytes, format_gguf_header_bytes(s.g), 0);
	assert_int_equal(write(fd, bytes, (size_t)n), format_gguf_header_bytes(s.g));
	assert_int_equal(ftruncate(fd, (off_t)format_gguf_file_bytes(s.g)), 0);
	free(bytes);
	close(fd);
	struct format_gguf *g;
	struct program *p;
	assert_int_equal(format_gguf_open(header, &g, NULL), 0);
	assert_int_equal(format_gguf_header_hash(g), format_gguf_header_hash(s.g));
	assert_int_equal(program_build(g, &p, NULL), 0);
	const struct pack_source source = {.begin = far_begin, .read = far_read, .context = &f};
	uint64_t all = 0;
	for (uint32_t i = 0; i < s.p->weights_count; i++)
		all += s.p->weights[i].source->size_bytes;
	for (uint32_t parts = 1; parts <= 2; parts++) {
		for (uint32_t part = 0; part < parts; part++) {
			struct pack_result near = pack_well(&s, part, parts), result;
			const struct pack_config c = {.store_path = far_store,
				.slice = {0, p->config.layers, part, parts},
				.source = &source,
				.digest = near.digest};
			f.given_bytes = 0;
			assert_int_equal(pack_model(g, p, &c, &result, NULL), 0);
			assert_memory_equal(result.digest, near.digest, sizeof near.digest);
			if (parts == 1)
				assert_int_equal(f.given_bytes, all);
			else
				assert_in_range(f.given_bytes, all / 3, all * 2 / 3);
			for (uint32_t l = 0; l < p->config.layers; l++)
				same_files(near.directory, result.directory, pack_file_name(l, part, parts, name));
			same_files(
				near.directory, result.directory, pack_file_name(PACK_LAYER_HEAD, part, parts, name));
			f.given_bytes = 0; // and what is there is not asked for again
			assert_int_equal(pack_model(g, p, &c, &result, NULL), 0);
			assert_int_equal(f.given_bytes + result.written_bytes, 0);
		}
	}
	/* Data that failed is asked for again: that file's alone. */
	struct pack_result result = pack_well(&s, 0, 1);
	struct pack_config c = {.store_path = far_store,
		.slice = {0, p->config.layers, 0, 1},
		.source = &source,
		.digest = result.digest,
		.repair = result.digest};
	char far_directory[256];
	snprintf(far_directory, sizeof far_directory, "%s%s", far_store, strrchr(result.directory, '/'));
	memcpy(result.directory, far_directory, sizeof far_directory);
	flip(&result, "layer-0001.tp0of1", 4096 + 1);
	f.given_bytes = 0;
	assert_int_equal(pack_model(g, p, &c, &result, NULL), 0);
	assert_string_equal(result.repaired, "layer-0001.tp0of1");
	assert_in_range(f.given_bytes, 1, all / 2);
	struct pack_result near = pack_well(&s, 0, 1);
	same_files(near.directory, result.directory, "layer-0001.tp0of1");
	program_destroy(p);
	format_gguf_close(g);
	close(f.fd);
	source_finish(&s);
}

static void names_of_files_read_back(void **state)
{
	static const uint32_t layers[] = {0, 7, 999, PROGRAM_MAX_LAYERS - 1, PACK_LAYER_EMBED, PACK_LAYER_HEAD};
	static const char *const others[] = {"", "embed", "embed.tp0of2", "embed.tp0of1.tmp", "head", "head.tp",
		"head.tp0", "head.tp0of", "head.tp0of0", "head.tp1of1", "head.tp0of17", "head.tp00of1", "head.tp0of01",
		"head.tp-1of1", "head.tp0of+1", "head.tp 0of1", "head.tp0of1 ", "head.tp0of1\n", "head.tp0of1.tmp",
		"Head.tp0of1", "heads.tp0of1", "../head.tp0of1", "layer-0001", "layer-0001.tp0of1x",
		"layer-0001.tp0of1/../model.json", "layer-1.tp0of1", "layer-00001.tp0of1", "layer-0x01.tp0of1",
		"layer--001.tp0of1", "layer-.tp0of1", "layer-1024.tp0of1", "layer-4294967297.tp0of1",
		"layer-0001.tp4294967296of1", "layer-0001.tp0of4294967297", "model.json", "spares", "header.gguf",
		"x.tp0of1"};
	uint32_t layer = 1, rank = 2, size = 3;
	char name[64];
	for (size_t i = 0; i < base_array_size(others); i++) {
		if (pack_file_parse(others[i], &layer, &rank, &size) != -EINVAL)
			fail_msg("\"%s\" is taken for a file of the store", others[i]);
	}
	assert_true(layer == 1 && rank == 2 && size == 3);
	for (size_t i = 0; i < base_array_size(layers); i++) {
		for (uint32_t parts = 1; parts <= PROGRAM_MAX_PARTS; parts++) {
			for (uint32_t part = 0; part < parts; part++) {
				bool whole = layers[i] == PACK_LAYER_EMBED;
				pack_file_name(layers[i], part, parts, name);
				assert_int_equal(pack_file_parse(name, &layer, &rank, &size), 0);
				assert_int_equal(layer, layers[i]);
				assert_int_equal(rank, whole ? 0 : part);
				assert_int_equal(size, whole ? 1 : parts);
			}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_of_files_read_back),
		cmocka_unit_test(every_type_packs_to_what_it_was),
		cmocka_unit_test(slices_put_together_are_the_model),
		cmocka_unit_test(cuts_that_cannot_be_are_refused),
		cmocka_unit_test(ranks_beyond_the_kv_heads_share_them),
		cmocka_unit_test(vectors_lie_in_extents_of_their_own),
		cmocka_unit_test(a_second_run_writes_nothing),
		cmocka_unit_test(a_replaced_source_is_noticed),
		cmocka_unit_test(a_damaged_file_is_packed_again),
		cmocka_unit_test(a_killed_run_is_resumed),
		cmocka_unit_test(cancelling_leaves_no_half_file),
		cmocka_unit_test(a_second_packer_is_kept_out),
		cmocka_unit_test(a_second_packer_waits),
		cmocka_unit_test(a_full_drive_is_refused_before_it_is_filled),
		cmocka_unit_test(spare_files_are_dropped_unless_a_plan_has_them),
		cmocka_unit_test(spare_files_make_room),
		cmocka_unit_test(room_that_comes_late_is_waited_for),
		cmocka_unit_test(only_what_is_damaged_is_packed_anew),
		cmocka_unit_test(pulled_layers_are_those_of_the_file),
	};
	return cmocka_run_group_tests_name("pack", tests, NULL, NULL);
}
