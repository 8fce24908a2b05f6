/* SPDX-License-Identifier: Apache-2.0
 * thawctl: what its verbs share. One table (verbs.c) has every verb with its arguments, options and function; help
 * and completion are printed from it. Data goes to `out`, everything said to a person to `err`.
 *
 * One thread runs the verb; interrupt.c has a second one that waits for signals. bench.c starts its own, each with
 * its own client.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <json-c/json.h>
#include <protobuf-c/protobuf-c.h>

#include "base/error.h"
#include "daemon/rpc/client.h"

#define CTL_MAX_LIST 32u
#define CTL_MAX_ARGS 64u
#define CTL_SCHEMA_VERSION 1

enum ctl_exit {
	CTL_OK,
	CTL_ERROR,
	CTL_USAGE,
	CTL_UNREACHABLE,
	CTL_NOT_FOUND,
	CTL_DOES_NOT_FIT, // memory or disk
	CTL_DEGRADED, // the daemon is there, but not ready
};

enum ctl_output { CTL_OUTPUT_TABLE, CTL_OUTPUT_WIDE, CTL_OUTPUT_JSON, CTL_OUTPUT_SVG };

struct ctl_list {
	const char *items[CTL_MAX_LIST + 1]; // NULL-terminated
	uint32_t count;
};

struct ctl_options { // as options.c fills them; zero: not given, unless a default is named there
	/* for all verbs */
	const char *server, *tls_ca, *tls_cert, *tls_key;
	const char *output;
	const char *local;
	struct ctl_list sets;
	bool no_headers, help;
	uint64_t watch_ns, timeout_ns;
	/* for some */
	const char *model, *name, *chat_template, *system, *text, *config, *conf_dir, *stops_file;
	struct ctl_list stops;
	bool token_ids, special, no_bos, chat, ignore_eos, stats, explain, origin, no_wait, pieces, once;
	uint32_t max_tokens, top_k, logprobs, num_sequences, top, first, context, streams, prompt_tokens, truncate;
	uint64_t seed, weights_bytes, kv_bytes, after;
	float seconds, temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
	const char *priority, *fleet, *device_map;
	struct ctl_list topologies, max_memory, pins;
	bool one_stream, simulate;
	/* pki */
	const char *directory, *cluster, *role;
	struct ctl_list addresses;
	uint32_t days;
};

#define CTL_MAX_OPTIONS 80u

struct ctl;

struct ctl_verb {
	const char *name;
	const char *args; // "PROMPT", "[TEXT]"
	const char *help; // one line
	const char *more; // paragraph for `help VERB`, may be NULL
	const char *options; // space separated names of options.c
	unsigned min_args, max_args;
	bool server; // needs one: --server and --local apply
	bool watch; // --watch repeats it
	const char *words; // space separated first arguments, for completion: "check show keys"
	int (*run)(struct ctl *c); // enum ctl_exit
	bool svg; // -o svg draws it
	bool file; // -o names a file
};

extern const struct ctl_verb ctl_verbs[];
extern const size_t ctl_verbs_count;
const struct ctl_verb *ctl_verb_find(const char *name);
int ctl_refuse_verb(struct ctl *c, const char *word); // CTL_USAGE, and what may have been meant

enum ctl_option_kind {
	CTL_OPTION_FLAG, // bool
	CTL_OPTION_TEXT, // const char *
	CTL_OPTION_LIST, // struct ctl_list, can be repeated
	CTL_OPTION_COUNT, // uint32_t
	CTL_OPTION_NUMBER, // uint64_t
	CTL_OPTION_REAL, // float
	CTL_OPTION_BYTES, // uint64_t, with unit
	CTL_OPTION_TIME, // uint64_t nanoseconds, with unit
	CTL_OPTION_WATCH, // like TIME; the value is optional (--watch, --watch=2s)
};

struct ctl_option {
	const char *name; // without --
	char letter; // 0: none
	enum ctl_option_kind kind;
	size_t offset; // in struct ctl_options
	bool global; // for all verbs
	const char *value; // "FILE": for help and completion
	const char *help;
};

extern const struct ctl_option ctl_option_table[];
extern const size_t ctl_option_count;
bool ctl_option_of_verb(const struct ctl_option *o, const struct ctl_verb *v);

struct ctl_interrupt;
struct ctl_local;

struct ctl {
	FILE *in, *out, *err;
	bool out_terminal, err_terminal, in_terminal;
	const struct ctl_verb *verb;
	struct ctl_options options;
	bool given[CTL_MAX_OPTIONS]; // by index of ctl_option_table
	const char *args[CTL_MAX_ARGS];
	unsigned args_count;
	enum ctl_output output;
	char address[512];
	struct rpc_client *client;
	struct ctl_interrupt *interrupt;
	struct ctl_local *local;
	uint64_t started_ns;
};

/* The whole program but for main(). argv[0] is skipped. Returns enum ctl_exit. */
int ctl_run(struct ctl *c, int argc, char **argv);
/* Fills options, verb and args. CTL_OK, or CTL_USAGE after a message. */
int ctl_parse(struct ctl *c, int argc, char **argv);
bool ctl_given(const struct ctl *c, const char *option);

/* verbs.c */
void ctl_print_help(FILE *out);
void ctl_print_verb_help(const struct ctl_verb *v, FILE *out);

/* "thawctl: ..." on err; returns exit. */
int ctl_fail(struct ctl *c, int exit, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* A line on err, not an error. */
void ctl_say(struct ctl *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* call.c: RPCs. Methods are "Inference/Generate", "Admin/GetLoad". */
/* The path of a model's file as the daemon wants it, absolute: one that is relative is a file of this machine.
 * CTL_NOT_FOUND, CTL_ERROR after a message. ret_path: free it. */
int ctl_daemon_path(struct ctl *c, const char *path, char **ret_path);
int ctl_connect(struct ctl *c, struct rpc_client **ret_client); // another client, for another thread
/* CTL_OK with the reply (ctl_free it), or the exit code after a message. */
int ctl_call(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *reply_type,
	void *ret_reply);
/* The reply as JSON or by print, as -o asks; frees it. CTL_OK. */
int ctl_show(struct ctl *c, void *reply, void (*print)(struct ctl *c, const void *reply));
/* Both: what most verbs are. */
int ctl_call_show(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *reply_type,
	void (*print)(struct ctl *c, const void *reply));
/* The same without a message: -errno or 0, and the status. */
int ctl_call_quiet(struct rpc_client *client, const char *method, const void *request, uint64_t timeout_ns,
	const ProtobufCMessageDescriptor *reply_type, void *ret_reply, struct rpc_client_status *ret_status);
void ctl_free(void *message);
/* What a status that is not OK means to a shell. */
int ctl_exit_of(int r, const struct rpc_client_status *status);
int ctl_fail_status(struct ctl *c, int r, const struct rpc_client_status *status);

struct ctl_stream {
	struct ctl *ctl;
	struct rpc_client_stream *stream;
	const ProtobufCMessageDescriptor *type;
	bool quiet; // the caller reports
	int code; // errno of the end
	struct rpc_client_status status;
};
int ctl_stream_open(struct ctl *c, const char *method, const void *request, const ProtobufCMessageDescriptor *type,
	struct ctl_stream *ret_stream);
/* 1 with a message (ctl_free it); 0 at the good end; -(enum ctl_exit) otherwise, after a message unless quiet. */
int ctl_stream_next(struct ctl_stream *s, void *ret_message);
void ctl_stream_close(struct ctl_stream *s);

/* interrupt.c: SIGINT and SIGTERM. With a stream in progress they cancel it; else the private daemon is stopped and
 * the process ends as the signal wants. block() is called before any thread is there. */
void ctl_interrupt_block(void);
int ctl_interrupt_start(struct ctl *c);
void ctl_interrupt_stop(struct ctl *c);
void ctl_interrupt_watch(struct ctl *c, struct rpc_client_stream *s); // NULL: none any more
bool ctl_interrupted(const struct ctl *c);

/* offline.c: `plan --fleet`, without a daemon. */
int ctl_plan_offline(struct ctl *c);
bool ctl_offline(const struct ctl *c); // the verb works on files that the options name
/* The recorded machine that an entry of --fleet names, beside that file. */
struct config_machine;
struct topology_machine;
int ctl_fleet_scan(struct ctl *c, const struct config_machine *m, struct topology_machine *ret_machine);

/* local.c: a private daemon for one command. start() forks, so it comes before gRPC and threads. wait() shows the
 * loading and returns when the model is ready. stop() may be called twice and from the signal thread. */
int ctl_local_start(struct ctl *c);
int ctl_local_wait(struct ctl *c);
void ctl_local_stop(struct ctl *c);
void ctl_local_free(struct ctl *c);

/* progress.c: "load 34 % 120M of 350M, 3 s left" on err: on a terminal rewritten in place, else once in 2 s. */
struct ctl_progress {
	struct ctl *ctl;
	uint64_t shown_ns;
	char phase[16]; // that was shown last
	bool line_open;
};
void ctl_progress_show(
	struct ctl_progress *p, const char *phase, uint64_t done_bytes, uint64_t total_bytes, uint64_t eta_ns);
void ctl_progress_end(struct ctl_progress *p);

/* table.c */
struct ctl_column {
	const char *title;
	bool right, wide; // wide: only with -o wide
};
struct ctl_table {
	const struct ctl_column *columns;
	size_t columns_count, cells_count, cells_room;
	char **cells;
};
void ctl_table_init(struct ctl_table *t, const struct ctl_column *columns, size_t count);
void ctl_table_cell(struct ctl_table *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ctl_table_print(struct ctl_table *t, struct ctl *c); // and frees the cells

#define CTL_SIZE_BYTES 24
char *ctl_size(uint64_t bytes, char out[static CTL_SIZE_BYTES]); // "1.5G", "-" for 0
char *ctl_rate(double per_second, char out[static CTL_SIZE_BYTES]); // bytes per second, decimal: "2.5GB/s"
struct Thaw__Admin__V1__NodeLink;
void ctl_print_links(struct ctl *c, struct Thaw__Admin__V1__NodeLink *const *links,
	size_t count); // a table, and when they were measured
struct Thaw__Admin__V1__PlanLink;
/* A line for each class, or where there are none, for `all`; NULL: nothing. */
void ctl_print_plan_links(struct ctl *c, const struct Thaw__Admin__V1__PlanLink *all,
	struct Thaw__Admin__V1__PlanLink *const *classes, size_t count);
char *ctl_seconds(double seconds, char out[static CTL_SIZE_BYTES]); // "1.2s", "35ms"

/* json.c */
struct json_object *ctl_json_new(void); // with schema_version
struct json_object *ctl_json_message(const void *message); // protobuf: every field, integers as integers
struct json_object *ctl_json_real(double v); // shortest text that reads back as a float; null for NaN and infinities
void ctl_json_merge(struct json_object *into, struct json_object *from); // moves the members; frees from
int ctl_json_print(struct ctl *c, struct json_object *o); // frees it; CTL_OK
int ctl_json_line(struct ctl *c, struct json_object *o); // on one line

/* The verbs */
int ctl_verb_doctor(struct ctl *c);
int ctl_verb_explain(struct ctl *c);
int ctl_verb_reload(struct ctl *c);
int ctl_verb_status(struct ctl *c);
int ctl_verb_models(struct ctl *c);
int ctl_verb_topology(struct ctl *c);
int ctl_verb_placement(struct ctl *c);
int ctl_verb_plan(struct ctl *c);
int ctl_verb_load(struct ctl *c);
int ctl_verb_unload(struct ctl *c);
int ctl_verb_drain(struct ctl *c);
int ctl_verb_undrain(struct ctl *c);
int ctl_verb_events(struct ctl *c);
int ctl_verb_top(struct ctl *c);
int ctl_verb_trace(struct ctl *c);
int ctl_verb_generate(struct ctl *c);
int ctl_verb_chat(struct ctl *c);
int ctl_verb_score(struct ctl *c);
int ctl_verb_eval(struct ctl *c);
int ctl_verb_tokenize(struct ctl *c);
int ctl_verb_detokenize(struct ctl *c);
int ctl_verb_bench(struct ctl *c);
int ctl_verb_config(struct ctl *c);
int ctl_verb_pki(struct ctl *c);
int ctl_verb_nodes(struct ctl *c);
/* nodes.c: of one node; waits until nothing runs there any more, unless --no-wait. */
int ctl_drain_node(struct ctl *c, const char *name, bool on);
int ctl_verb_completion(struct ctl *c);
int ctl_verb_version(struct ctl *c);
int ctl_verb_help(struct ctl *c);
