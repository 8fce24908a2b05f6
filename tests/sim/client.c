// SPDX-License-Identifier: Apache-2.0
#include "tests/sim/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "daemon/engine.h"
#include "tests/sim/fate.h"
#include "tests/sim/node.h"

#define VOCABULARY 320u
#define RETRY_NS (200 * SIM_MS)
#define LOOK_NS (20 * SIM_MS)

struct attempt {
	uint32_t client, kind;
	bool final;
	struct base_error error;
	struct sim_answer got;
	uint32_t groups; // when it was submitted
	uint32_t shares[SIM_MAX_OUTPUTS]; // the numbers of ranks that the last tokens may have come from: bits
	uint32_t changes[SIM_MAX_OUTPUTS]; // of that
};

struct client {
	uint32_t number, kind, most; // requests
	uint64_t after_ns;
};

static struct sim_answer (*answers)[SIM_KINDS]; // (SIM_MAX_TENSOR)
static uint32_t shared; // by how many ranks, at most
static bool learning, loss_expected;
static uint32_t started, ended;
struct sim_client_counts sim_client_counts;

void sim_clients_init(struct sim_answer (*known)[SIM_KINDS], uint32_t tensor, bool learn)
{
	answers = known;
	shared = tensor;
	learning = learn;
}

void sim_clients_expect_loss(void)
{
	loss_expected = true;
}

uint32_t sim_clients_left(void)
{
	return started - ended;
}

// ---- what is asked

/* The same for every run: draws of its own. */
static struct request *make_request(uint32_t kind, uint32_t number, struct attempt *a)
{
	uint64_t x = sim_mix(kind + 1);
	struct request *r = calloc(1, sizeof *r);
	if (!r)
		sim_fail("no memory for a request");
	snprintf(r->id, sizeof r->id, "c%u", number);
	r->prompt_tokens = kind % 4 == 3 ? 40 + (uint32_t)(x % 60) : 1 + (uint32_t)(x % 40);
	r->prompt = malloc(r->prompt_tokens * sizeof *r->prompt);
	for (uint32_t i = 0; i < r->prompt_tokens; i++)
		r->prompt[i] = (uint32_t)(3 + sim_mix(x + i) % (VOCABULARY - 3));
	bool greedy = kind % 2 == 0;
	r->sampling = (struct sample_params){.temperature = greedy ? 0 : 0.9f,
		.top_p = greedy ? 1 : 0.95f,
		.repetition_penalty = 1,
		.seed = x,
		.logprobs = 1};
	r->num_sequences = kind % 5 == 4 ? 2 : 1;
	r->max_new_tokens = 6 + (uint32_t)((x >> 20) % 40);
	r->ignore_eos = true;
	r->priority = (enum request_priority)(kind % 3);
	(void)a;
	return r;
}

static bool is_of(const struct sim_answer *want, const struct request_event *v, uint32_t at)
{
	uint32_t bits;
	memcpy(&bits, &v->logprob, sizeof bits);
	return at < want->count[v->output] && want->token[v->output][at] == v->token &&
	       want->logprob[v->output][at] == bits;
}

static void check_token(struct attempt *a, const struct request_event *v, uint32_t at)
{
	const struct sim_answer *want = &answers[0][a->kind];
	uint32_t shares = 0, *last = &a->shares[v->output];
	if (learning)
		return;
	if (at >= want->count[v->output])
		sim_fail("request of client %u (kind %u): a token more than the %u that were due", a->client, a->kind,
			want->count[v->output]);
	for (uint32_t n = 1; n <= shared; n++) {
		if (sim_group_parts() & 1u << n && is_of(&answers[n - 1][a->kind], v, at))
			shares |= 1u << n;
	}
	if (!shares)
		sim_fail("request of client %u (kind %u), output %u, token %u: %u, and not %u as without faults%s",
			a->client, a->kind, v->output, at, v->token, want->token[v->output][at],
			want->token[v->output][at] == v->token ? ": its probability differs" : "");
	if (*last && !(*last & shares))
		a->changes[v->output]++;
	*last = *last & shares ? *last & shares : shares;
	if (a->changes[v->output] > sim_groups() - a->groups + 1)
		sim_fail("request of client %u (kind %u), output %u, token %u: of %u ranks that share layers, without "
			 "a new group",
			a->client, a->kind, v->output, at, (uint32_t)__builtin_ctz(shares));
}

/* Where the references go different ways, what is right depends on when a group changed. */
static bool is_comparable(uint32_t kind)
{
	const struct sim_answer *x = &answers[0][kind];
	bool same = true;
	for (uint32_t n = 2; n <= shared; n *= 2) {
		const struct sim_answer *y = &answers[n - 1][kind];
		same = same && memcmp(x->count, y->count, sizeof x->count) == 0 &&
		       memcmp(x->token, y->token, sizeof x->token) == 0;
	}
	return same;
}

static uint32_t comparable(uint32_t kind)
{
	for (uint32_t i = 0; i < SIM_KINDS && !learning; i++) {
		if (is_comparable((kind + i) % SIM_KINDS))
			return (kind + i) % SIM_KINDS;
	}
	if (!learning)
		sim_fail("ranks that share layers answer each request otherwise");
	return kind;
}

static bool on_event(void *context, const struct request_event *v)
{
	struct attempt *a = context;
	if (a->final)
		sim_fail("an event after the last one");
	if (v->token_count && !v->score) {
		uint32_t at = a->got.count[v->output]++;
		if (v->output >= SIM_MAX_OUTPUTS || at >= SIM_MAX_TOKENS)
			sim_fail("output %u has token %u", v->output, at);
		check_token(a, v, at);
		a->got.token[v->output][at] = v->token;
		memcpy(&a->got.logprob[v->output][at], &v->logprob, sizeof v->logprob);
	}
	if (v->final) {
		a->final = true;
		a->error = v->error;
		sim_wake(a, true);
	}
	return true;
}

// ---- one try

static bool may_come_later(int status)
{
	return status == -EHOSTDOWN || status == -EAGAIN || status == -ENOENT;
}

static void wait_for_end(struct attempt *a, struct engine *engine, uint32_t life)
{
	char id[REQUEST_ID_BYTES];
	bool aborted = false;
	snprintf(id, sizeof id, "c%u", a->client);
	while (!a->final) {
		sim_wait_for(a, LOOK_NS);
		if (!aborted && (!sim_node_up(0) || sim_node_place(0).life != life)) { // as rpc_server_stop
			aborted = true;
			sim_client_counts.aborted++;
			engine_abort(engine, id);
		}
	}
	if (aborted && a->error.code)
		a->error.code = -EHOSTDOWN;
}

/* 0: answered; else why not, and that another try is due. */
static int try_once(struct client *c, struct attempt *a)
{
	uint32_t life;
	uint64_t retry_ns;
	const struct server_model *model;
	struct base_error e = {0};
	*a = (struct attempt){.client = c->number, .kind = c->kind, .groups = sim_groups()};
	struct server *server = sim_server_acquire(&life);
	if (!server)
		return -EAGAIN;
	sim_go(0);
	int status = server_acquire_model(server, SIM_MODEL, &model, &retry_ns, &e);
	if (!status) {
		struct request *r = make_request(c->kind, c->number, a);
		r->sink.emit = on_event;
		r->sink.context = a;
		status = engine_submit(model->engine, r, &retry_ns, &e);
		if (status)
			request_destroy(r);
		else
			wait_for_end(a, model->engine, life);
		server_release_model(server, model);
	}
	sim_server_release(life);
	sim_go(SIM_NOWHERE);
	if (status && !may_come_later(status))
		sim_fail("client %u is refused: %s", c->number, base_error_text(&e));
	if (status)
		sim_client_counts.refused++;
	return status ? -EAGAIN : a->error.code;
}

static void check_whole(const struct client *c, const struct attempt *a)
{
	struct sim_answer *want = &answers[learning ? shared - 1 : 0][c->kind];
	if (learning)
		*want = a->got;
	for (uint32_t i = 0; i < SIM_MAX_OUTPUTS; i++) {
		if (a->got.count[i] != want->count[i])
			sim_fail("request of client %u (kind %u), output %u: %u tokens of %u", c->number, c->kind, i,
				a->got.count[i], want->count[i]);
	}
}

static void ask(struct client *c, struct attempt *a)
{
	int status;
	while ((status = try_once(c, a)) != 0) {
		bool bad_data = status == -EBADMSG || status == -EIO;
		if (status != -EAGAIN)
			sim_say("client %u: %s", c->number, base_error_text(&a->error));
		if (status == -EHOSTDOWN)
			sim_client_counts.unavailable++;
		else if (bad_data && loss_expected)
			sim_client_counts.lost++;
		else if (status != -EAGAIN)
			sim_fail("the request of client %u is lost: %s", c->number, base_error_text(&a->error));
		sim_sleep(RETRY_NS);
	}
	check_whole(c, a);
	sim_client_counts.answers++;
	sim_say("client %u has its answer", c->number);
}

static void *client_run(void *argument)
{
	struct client *c = argument;
	struct attempt *a = calloc(1, sizeof *a);
	if (!a)
		sim_fail("no memory for a request");
	sim_sleep(c->after_ns);
	for (uint32_t i = 0; i < c->most && (!i || !sim_fate_over()); i++) {
		ask(c, a);
		sim_sleep(sim_draw(300 * SIM_MS));
		c->kind = c->most > 1 ? comparable((uint32_t)sim_draw(SIM_KINDS)) : c->kind;
	}
	free(a);
	free(c);
	ended++;
	return NULL;
}

void sim_client_start(uint32_t kind, uint32_t most, uint64_t after_ns)
{
	struct client *c = calloc(1, sizeof *c);
	if (!c)
		sim_fail("no memory for a client");
	*c = (struct client){started++, comparable(kind), most, after_ns};
	sim_detach(sim_start(SIM_NOWHERE, "client", client_run, c));
}
