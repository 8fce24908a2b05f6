// SPDX-License-Identifier: Apache-2.0
// Which spare layers nodes are told to delete as models come and go under one name.
#include "tests/lib/testing.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/server_internal.h"
#include "tests/lib/world.h"

struct scene {
	struct world world;
	struct server server;
	struct server_model_info info;
	struct server_entry entry[2];
	char told[64]; // first bytes of the digests
};

static int plan(void *context, const struct cluster_view *view, struct cluster_plan *ret, struct base_error *e)
{
	return base_error_set(e, -ENOMEM, "1 byte short");
}

static void hear(void *context, uint32_t i, const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct scene *s = context;
	struct cluster_assign a;
	if (m->what_case != THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET)
		return;
	assert_int_equal(cluster_read_forget(m->forget, &a, NULL), 0);
	assert_string_equal(a.model, "large");
	size_t n = strlen(s->told);
	snprintf(s->told + n, sizeof s->told - n, "%u ", a.digest[0]);
}

static void expect(struct scene *s, const char *told)
{
	s->told[0] = '\0';
	world_hear(&s->world, 0, hear, s);
	assert_string_equal(s->told, told);
}

/* The entry's file was digested. */
static void digested(struct server_entry *x, uint8_t digest)
{
	x->rank.digest[0] = digest;
	server_fleet_keep(x);
}

static void failed_models_keep_no_spares(void **state)
{
	struct scene *s = calloc(1, sizeof *s);
	struct server_entry *a = &s->entry[0], *b = &s->entry[1];
	world_init(&s->world, plan, s);
	world_open(&s->world); // with a model of another digest
	world_join(&s->world, 0, "n0", 1);
	s->server.coordinator = s->world.coordinator;
	pthread_mutex_init(&s->server.lock, NULL);
	snprintf(s->info.name, sizeof s->info.name, "large");
	a->server = b->server = &s->server;
	a->info = b->info = &s->info;

	server_fleet_forget(a); // nothing was digested
	expect(s, "");
	digested(a, 7);
	server_fleet_replace(b, a); // it failed, and the same is loaded again
	digested(b, 7);
	expect(s, "");
	*a = (struct server_entry){.server = &s->server, .info = &s->info};
	server_fleet_replace(a, b); // another file, which fails before it is digested
	*b = *a;
	server_fleet_replace(b, a);
	digested(b, 8); // another one
	expect(s, "7 ");
	server_fleet_forget(b);
	expect(s, "8 ");
	server_fleet_forget(b);
	expect(s, "");
	digested(a, s->world.model.digest[0]);
	memcpy(a->spares, s->world.model.digest, sizeof a->spares); // the fleet of another name has it
	server_fleet_forget(a);
	expect(s, "7 "); // what a had before it
	pthread_mutex_destroy(&s->server.lock);
	world_finish(&s->world);
	free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(failed_models_keep_no_spares),
	};
	return cmocka_run_group_tests_name("server_spares", tests, NULL, NULL);
}
