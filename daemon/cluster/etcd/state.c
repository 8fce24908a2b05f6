// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/etcd/state.h"

#include <errno.h>
#include <json-c/json.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/claim.h"
#include "daemon/cluster/etcd/answer.h"
#include "daemon/cluster/etcd/etcd.h"

#define KEY_BYTES 160u
#define CALL_NS BASE_NS_PER_SECOND
#define PAUSE_NS (50 * 1000000ull) // between rounds, whatever etcd says
#define RETRY_FIRST_NS (100 * 1000000ull)
#define RETRY_MOST_NS CLUSTER_CLAIM_RETURN_NS
#define GIVE_BACK_TRIES 2u

struct etcd_state {
	struct cluster_state state;
	char who[CLUSTER_NAME_BYTES], address[CLUSTER_ADDRESS_BYTES];
	char key_coordinator[KEY_BYTES], key_record[KEY_BYTES], key_member[KEY_BYTES];
	uint64_t lease_ns;
	struct etcd_client *kv; // of read and write

	pthread_t thread;
	atomic_bool stop;
	/* The thread's. */
	struct etcd_client *keeper;
	int64_t lease, revision; // lease 0: none
	bool listed; // key_member is under this lease
	uint64_t kept_ns, lease_until_ns; // when the lease was asked to live on, and how long it does
	struct cluster_claim_watch watch; // of another's claim

	pthread_mutex_t lock;
	struct cluster_claim claim; // DOUBT is not in here: it comes with time
	uint64_t until_ns; // HELD: nobody else has it before
};

/* ---- the claim ---- */

static void set_claim(struct etcd_state *s, const struct cluster_claim *claim)
{
	pthread_mutex_lock(&s->lock);
	s->claim = *claim;
	s->until_ns = s->lease_until_ns;
	pthread_mutex_unlock(&s->lock);
}

/* The lease that `coordinator` was made with, if it is ours, lives until then. */
static void set_until(struct etcd_state *s, uint64_t until_ns)
{
	pthread_mutex_lock(&s->lock);
	s->until_ns = s->lease_until_ns = until_ns;
	pthread_mutex_unlock(&s->lock);
}

/* If it was ours, it is gone, and whether we get it again is not known: nothing new begins. */
static void set_doubt(struct etcd_state *s)
{
	pthread_mutex_lock(&s->lock);
	if (s->claim.kind == CLUSTER_CLAIM_HELD) {
		s->until_ns = 0;
		snprintf(s->claim.why, sizeof s->claim.why, "etcd has dropped it");
	}
	pthread_mutex_unlock(&s->lock);
}

static void set_why(struct etcd_state *s, const char *why)
{
	pthread_mutex_lock(&s->lock);
	snprintf(s->claim.why, sizeof s->claim.why, "%.255s", why);
	pthread_mutex_unlock(&s->lock);
}

static void etcd_claim(struct cluster_state *state, struct cluster_claim *ret_claim)
{
	struct etcd_state *s = base_container_of(state, struct etcd_state, state);
	pthread_mutex_lock(&s->lock);
	*ret_claim = s->claim;
	if (ret_claim->kind == CLUSTER_CLAIM_HELD && base_clock_now_ns() >= s->until_ns)
		ret_claim->kind = CLUSTER_CLAIM_DOUBT;
	pthread_mutex_unlock(&s->lock);
}

/* ---- who holds it ---- */

static char *print_holder(const struct etcd_state *s)
{
	struct json_object *o = json_object_new_object();
	json_object_object_add(o, "node", json_object_new_string(s->who));
	json_object_object_add(o, "address", json_object_new_string(s->address));
	char *text = strdup(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
	return text;
}

/* ---- the thread ---- */

/* A lease that lives. A new one says nothing about the claim: look() does. */
static int keep_lease(struct etcd_state *s, struct base_error *e)
{
	uint64_t now = base_clock_now_ns(), until = 0;
	int status = -ENOENT;
	if (s->lease && now < s->kept_ns + s->lease_ns / CLUSTER_CLAIM_ROUNDS)
		return 0;
	if (s->lease)
		status = etcd_lease_keep(s->keeper, s->lease, &until, e);
	if (!status) {
		set_until(s, until);
	} else if (status == -ENOENT) {
		set_doubt(s);
		s->lease = 0;
		s->listed = false;
		status = etcd_lease_grant(s->keeper, s->lease_ns, &s->lease, &s->lease_until_ns, e);
	}
	if (!status)
		s->kept_ns = now;
	return status;
}

static int list_member(struct etcd_state *s, struct base_error *e)
{
	if (s->listed)
		return 0;
	_cleanup_free_ char *text = print_holder(s);
	int status = text ? etcd_put(s->keeper, s->key_member, text, strlen(text), s->lease, e) : -ENOMEM;
	s->listed = !status;
	return status;
}

static int try_to_take(struct etcd_state *s, struct base_error *e)
{
	_cleanup_free_ char *text = print_holder(s);
	int64_t term = 0;
	int status =
		text ? etcd_create(s->keeper, s->key_coordinator, text, strlen(text), s->lease, &term, e) : -ENOMEM;
	if (status == -EEXIST) // another was faster; the next round says who
		return 0;
	if (!status) {
		s->revision = term;
		set_claim(s, &(struct cluster_claim){.kind = CLUSTER_CLAIM_HELD, .term = (uint64_t)term});
	}
	return status;
}

/* A claim that nobody has. Ours is taken back at once: nobody else has it. Another's is left to it by the rules of
 * claim.h. */
static int look_vacant(struct etcd_state *s, struct base_error *e)
{
	uint64_t ns;
	if (s->claim.kind == CLUSTER_CLAIM_HELD) {
		set_doubt(s);
		return try_to_take(s, e);
	}
	int status = s->watch.lease ? etcd_lease_length(s->keeper, s->watch.lease, &ns, e) : 0;
	if (status && status != -ENOENT)
		return status;
	if (status)
		cluster_claim_watch_over(&s->watch);
	if (cluster_claim_watch_free(&s->watch, base_clock_now_ns()))
		return try_to_take(s, e);
	set_claim(s, &(struct cluster_claim){0}); // nobody's, as far as is known
	return 0;
}

/* How long the lease is that another has the claim by. One that is over by now is not worth knowing: its key goes with
 * it. */
static int learn_lease(struct etcd_state *s, int64_t lease, struct base_error *e)
{
	uint64_t ns;
	if (!lease || lease == s->watch.lease)
		return 0;
	int status = etcd_lease_length(s->keeper, lease, &ns, e);
	if (!status)
		cluster_claim_watch_seen(&s->watch, lease, ns);
	return status == -ENOENT ? 0 : status;
}

/* Whose it is, by what etcd says now; a claim that is free is taken. */
static int look(struct etcd_state *s, struct base_error *e)
{
	struct etcd_value v = {0};
	struct cluster_claim claim = {0};
	int status = etcd_get(s->keeper, s->key_coordinator, &v, &s->revision, e);
	if (status && status != -ENOENT)
		return status;
	uint64_t now = base_clock_now_ns();
	cluster_claim_watch_heard(&s->watch, now);
	if (status)
		return look_vacant(s, e);
	if (v.lease == s->lease) {
		claim.kind = CLUSTER_CLAIM_HELD;
		claim.term = (uint64_t)v.create_revision;
	} else {
		claim.kind = CLUSTER_CLAIM_OTHER;
		etcd_answer_holder(&v, &claim);
	}
	free(v.data);
	set_claim(s, &claim);
	if (claim.kind == CLUSTER_CLAIM_HELD)
		return 0;
	cluster_claim_watch_held(&s->watch, now);
	return learn_lease(s, v.lease, e);
}

static void pause_ns(struct etcd_state *s, uint64_t ns)
{
	for (uint64_t until = base_clock_now_ns() + ns; !atomic_load(&s->stop) && base_clock_now_ns() < until;)
		nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* Until a change of the key, or until the lease wants to be kept or the claim to be looked at; in slices, so that a
 * stop is heard. */
static int wait_for_change(struct etcd_state *s, struct base_error *e)
{
	uint64_t until = s->kept_ns + s->lease_ns / CLUSTER_CLAIM_ROUNDS;
	uint64_t look_ns = s->watch.heard_ns + cluster_claim_watch_period(&s->watch);
	int status = 0;
	if (look_ns < until)
		until = look_ns;
	while (!status && !atomic_load(&s->stop) && base_clock_now_ns() < until)
		status = etcd_watch(s->keeper, s->key_coordinator, s->revision, 2 * PAUSE_NS, e);
	return status < 0 ? status : 0;
}

static void *keeper_thread(void *argument)
{
	struct etcd_state *s = argument;
	uint64_t retry = RETRY_FIRST_NS;
	pthread_setname_np(pthread_self(), "etcd");
	while (!atomic_load(&s->stop)) {
		struct base_error e = {0};
		int status = keep_lease(s, &e);
		if (!status)
			status = look(s, &e);
		if (!status)
			status = list_member(s, &e);
		if (!status) {
			set_why(s, "");
			status = wait_for_change(s, &e);
		}
		if (!status) {
			retry = RETRY_FIRST_NS;
			pause_ns(s, PAUSE_NS);
			continue;
		}
		set_why(s, base_error_text(&e));
		cluster_claim_watch_missed(&s->watch);
		s->kept_ns = 0; // whether the lease lived through this is to be asked first
		pause_ns(s, retry);
		retry = retry * 2 < RETRY_MOST_NS ? retry * 2 : RETRY_MOST_NS;
	}
	return NULL;
}

/* ---- the record ---- */

static int etcd_read(struct cluster_state *state, struct cluster_record *ret_record, struct base_error *e)
{
	struct etcd_state *s = base_container_of(state, struct etcd_state, state);
	struct etcd_value v = {0};
	int64_t revision;
	int status = etcd_get(s->kv, s->key_record, &v, &revision, e);
	if (status)
		return status;
	status = cluster_record_parse(v.data, v.bytes, ret_record, e);
	free(v.data);
	return status ? base_error_prefix(e, "etcd %s, %s", etcd_client_endpoint(s->kv), s->key_record) : 0;
}

static int etcd_write(struct cluster_state *state, const struct cluster_record *record, struct base_error *e)
{
	struct etcd_state *s = base_container_of(state, struct etcd_state, state);
	struct cluster_claim claim;
	etcd_claim(state, &claim);
	if (claim.kind != CLUSTER_CLAIM_HELD)
		return base_error_set(
			e, -ESTALE, "the claim to coordinate is not held%s%s", claim.why[0] ? ": " : "", claim.why);
	_cleanup_free_ char *text = cluster_record_print(record);
	if (!text)
		return base_error_set(e, -ENOMEM, "no memory for the cluster's record");
	return etcd_put_guarded(s->kv, s->key_coordinator, (int64_t)claim.term, s->key_record, text, strlen(text), e);
}

/* ---- life ---- */

static void state_free(struct etcd_state *s)
{
	etcd_client_destroy(s->kv);
	etcd_client_destroy(s->keeper);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* The thread has ended. With the lease go its keys, so that others need not wait for it to run out; etcd may be away,
 * or only late. */
static void give_back(struct etcd_state *s)
{
	int status = s->lease ? -EAGAIN : 0;
	for (unsigned i = 0; i < GIVE_BACK_TRIES && status && status != -ENOENT; i++)
		status = etcd_lease_revoke(s->keeper, s->lease, NULL);
}

static void etcd_close(struct cluster_state *state)
{
	if (!state)
		return;
	struct etcd_state *s = base_container_of(state, struct etcd_state, state);
	atomic_store(&s->stop, true);
	pthread_join(s->thread, NULL);
	give_back(s);
	state_free(s);
}

static int create_clients(struct etcd_state *s, const struct cluster_state_config *config, struct base_error *e)
{
	struct etcd_config c = {.endpoints = config->endpoints,
		.ca = config->ca,
		.cert = config->cert,
		.key = config->key,
		.timeout_ns = CALL_NS};
	int status = etcd_client_create(&c, &s->kv, e);
	return status ? status : etcd_client_create(&c, &s->keeper, e);
}

static int etcd_open(const struct cluster_state_config *config, struct cluster_state **ret_state, struct base_error *e)
{
	struct etcd_state *s = calloc(1, sizeof *s);
	if (!s)
		return base_error_set(e, -ENOMEM, "no memory for the cluster's state");
	s->state.ops = &etcd_state_ops;
	snprintf(s->who, sizeof s->who, "%s", config->who);
	snprintf(s->address, sizeof s->address, "%s", config->address);
	snprintf(s->key_coordinator, KEY_BYTES, "/thaw/%.63s/coordinator", config->cluster);
	snprintf(s->key_record, KEY_BYTES, "/thaw/%.63s/record", config->cluster);
	snprintf(s->key_member, KEY_BYTES, "/thaw/%.63s/members/%.63s", config->cluster, config->who);
	s->lease_ns = s->watch.own_ns = config->lease_ns;
	pthread_mutex_init(&s->lock, NULL);
	int status = s->lease_ns >= ETCD_MIN_LEASE_NS && s->lease_ns <= ETCD_MAX_LEASE_NS
			     ? create_clients(s, config, e)
			     : base_error_set(e, -EINVAL, "a lease of 2 s to 60 s is wanted");
	if (!status && (status = -pthread_create(&s->thread, NULL, keeper_thread, s)) < 0)
		base_error_set(e, status, "no thread for etcd: %s", strerrordesc_np(-status));
	if (status)
		state_free(s);
	else
		*ret_state = &s->state;
	return status;
}

const struct cluster_state_ops etcd_state_ops = {
	.name = "etcd",
	.open = etcd_open,
	.close = etcd_close,
	.read = etcd_read,
	.write = etcd_write,
	.claim = etcd_claim,
};
