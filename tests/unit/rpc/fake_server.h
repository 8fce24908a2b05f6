/* SPDX-License-Identifier: Apache-2.0
 * A daemon for tests of rpc: the functions of server.h, engine.h and text that rpc calls, with knobs instead of a
 * model.
 *
 * One model "fake" with a tokenizer whose tokens are bytes (256 beginning, 257 end, 258 "<|s|>"); the engine answers
 * with the prompt's own tokens, again and again, one for each sequence and step.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/server.h"

#define FAKE_VOCAB 300u
#define FAKE_BOS 256u
#define FAKE_EOS 257u
#define FAKE_SPECIAL 258u
#define FAKE_SPANS 5000u // of a trace: some chunks
#define FAKE_RUNNING 64u

typedef int fake_open_source(const struct cluster_identity *peer, const struct cluster_pull *pull,
	struct cluster_source *ret_source, struct base_error *e);

struct fake_options {
	const char *socket; // path
	const char *tcp, *cert, *key, *ca; // may be NULL
	bool insecure_tcp;
	const char *cluster_listen; // NULL: none; with cert, key and ca
	struct cluster_coordinator *coordinator;
	fake_open_source *open_source; // NULL: of files that the coordinator has loaded
	bool add_bos;
};

struct fake {
	/* Knobs, read at each use. */
	_Atomic int submit_error, final_error, acquire_error, load_error, plan_error;
	_Atomic uint64_t step_ns; // between tokens; 0: as fast as it goes
	atomic_bool paced; // the engine waits while a ring has little room, instead of overrunning it
	atomic_bool hold; // requests run, but get no tokens
	atomic_uint pause_after; // tokens; then as hold. 0: no pause
	atomic_bool ready, draining, data_loss;
	atomic_int phase; // enum server_phase
	/* What happened. */
	atomic_uint aborts, models_held, submitted, ended;
	_Atomic uint64_t deadline_ns, emitted;
};

struct server *fake_server_create(const struct fake_options *o);
void fake_server_destroy(struct server *s);
struct fake *fake_of(struct server *s);
/* What was submitted last, without pointers. */
struct request fake_last(struct server *s);
