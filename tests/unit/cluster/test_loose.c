// SPDX-License-Identifier: Apache-2.0
// Layers that a node packs for plans that never run: they are spare again, unless somebody else has them.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/cluster/worker_internal.h"
#include "shard/pack/pack.h"
#include "tests/lib/model_fixture.h"
#include "tests/lib/tiny_gguf.h"

#define LAYERS 6u

struct scene {
	char folder[64], store[80], model[80];
	struct format_gguf *gguf;
	struct program *program;
	struct pack_result packed;
	struct cluster_worker worker;
	struct cluster_task task[3];
};

static struct scene *scene_create(void)
{
	struct scene *s = calloc(1, sizeof *s);
	struct tiny_model m = {.width = 256, .layers = LAYERS};
	struct base_error e = {0};
	snprintf(s->folder, sizeof s->folder, "/tmp/thaw-loose-XXXXXX");
	assert_non_null(mkdtemp(s->folder));
	snprintf(s->store, sizeof s->store, "%s/store", s->folder);
	snprintf(s->model, sizeof s->model, "%s/tiny.gguf", s->folder);
	assert_int_equal(tiny_model_save(&m, s->model), 0);
	if (format_gguf_open(s->model, &s->gguf, &e) || program_build(s->gguf, &s->program, &e))
		fail_msg("%s", base_error_text(&e));
	s->worker.config.store_path = s->store;
	s->worker.config.sources = "";
	pthread_mutex_init(&s->worker.lock, NULL);
	pthread_mutex_init(&s->worker.header_lock, NULL);
	return s;
}

static void scene_destroy(struct scene *s)
{
	program_destroy(s->program);
	format_gguf_close(s->gguf);
	model_remove_tree(s->folder);
	free(s);
}

static int pack_layers(struct scene *s, uint32_t first, uint32_t layers, bool spare)
{
	const struct pack_config c = {
		.store_path = s->store, .slice = {first, layers, 0, 1}, .spare = spare, .wait_ns = 1};
	return pack_model(s->gguf, s->program, &c, &s->packed, NULL);
}

/* A plan's layers, packed. */
static struct cluster_task *prepare(struct scene *s, uint32_t i, uint32_t first, uint32_t layers)
{
	struct cluster_task *t = s->worker.task[i] = &s->task[i];
	struct pack_result r;
	struct base_error e = {0};
	char path[CLUSTER_PATH_BYTES];
	*t = (struct cluster_task){.worker = &s->worker, .state = TASK_PREPARING};
	t->assign.slice = (struct cluster_slice){first, layers, 0, 1};
	t->assign.header_hash = format_gguf_header_hash(s->gguf);
	snprintf(t->assign.path, sizeof t->assign.path, "%s", s->model);
	memcpy(t->assign.digest, s->packed.digest, sizeof t->assign.digest);
	if (cluster_task_pack(t, path, &r, &e))
		fail_msg("%s", base_error_text(&e));
	t->state = TASK_PREPARED;
	return t;
}

static void run(struct cluster_task *t)
{
	t->state = TASK_RUNNING;
	pthread_mutex_lock(&t->worker->lock);
	cluster_task_used(t);
	pthread_mutex_unlock(&t->worker->lock);
}

static void end(struct cluster_task *t)
{
	atomic_store(&t->release, true);
	cluster_task_settle(t);
	t->finished = true;
}

/* The layers that are listed as spare: "0 1 5 ". */
static void expect(struct scene *s, const char *layers)
{
	char path[700], list[64] = "", line[80];
	bool is[LAYERS] = {0};
	unsigned layer;
	snprintf(path, sizeof path, "%s/spares", s->packed.directory);
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "layer-%u", &layer) == 1 && layer < LAYERS)
			is[layer] = true;
	}
	if (f)
		fclose(f);
	for (uint32_t i = 0, at = 0; i < LAYERS; i++)
		at += is[i] ? (uint32_t)snprintf(list + at, sizeof list - at, "%u ", i) : 0;
	assert_string_equal(list, layers);
}

static void plans_that_never_run_leave_spares(void **state)
{
	struct scene *s = scene_create();
	int status = pack_layers(s, 0, 4, true);
	if (status == -ENOSPC) { // a tenth of the drive is not free here
		scene_destroy(s);
		skip();
	}
	assert_int_equal(status, 0);
	expect(s, "0 1 2 3 ");
	struct cluster_task *a = prepare(s, 0, 1, 2); // of what is spare
	expect(s, "0 3 ");
	struct cluster_task *b = prepare(s, 1, 2, 3); // with a layer of that, and one that was not there
	expect(s, "0 ");
	end(a);
	expect(s, "0 1 "); // the other plan still has 2
	struct cluster_task *c = prepare(s, 2, 0, 2);
	run(c);
	end(b);
	expect(s, "2 3 4 "); // 0 and 1 are what a rank has
	end(c);
	expect(s, "2 3 4 "); // and had
	/* A load that is not the coordinator's has them from now on. */
	a = prepare(s, 0, 3, 2);
	cluster_worker_relied(&s->worker, s->packed.digest, "layer-0003.tp0of1");
	end(a);
	expect(s, "2 4 ");
	/* What a rank may still have is none, though it was released. */
	a = prepare(s, 0, 4, 2);
	b = prepare(s, 1, 5, 1);
	b->state = TASK_RUNNING;
	atomic_store(&b->release, true);
	end(a);
	expect(s, "2 4 ");
	b->state = TASK_PREPARED;
	end(b);
	expect(s, "2 4 5 ");
	scene_destroy(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(plans_that_never_run_leave_spares),
	};
	return cmocka_run_group_tests_name("cluster_loose", tests, NULL, NULL);
}
