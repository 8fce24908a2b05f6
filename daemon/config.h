/* SPDX-License-Identifier: Apache-2.0
 * Configuration: YAML, strict, one table (config_table.c) that knows every key: type, default, limits, help, reloadable
 * or not.
 *
 * Precedence: defaults < main file < conf.d/<name>.yaml in name order < environment THAW_<KEY_WITH_UNDERSCORES> < flags
 * --set key=value (models.N.path for models). A model of a later file replaces the one of its name, else it is added.
 * Unknown or duplicate keys, anchors, tags and a second document are refused with file:line:column. Sizes and times
 * need a unit. The origin of every value is kept for `thawctl config show --origin`. Built once, then read-only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "daemon/config_map.h"

#define CONFIG_MAX_MODELS 16u
#define CONFIG_TEXT_BYTES 512u

struct config_model {
	char name[128]; // as clients call it; default: the file's name without .gguf
	char path[CONFIG_TEXT_BYTES];
	char chat_template[32]; // "": from the file
};

struct config {
	struct {
		char grpc[CONFIG_TEXT_BYTES]; // unix:/run/thaw/thaw.sock
		char tcp[CONFIG_TEXT_BYTES]; // "" or 127.0.0.1:50151; beyond loopback needs mTLS
		char tls_cert[CONFIG_TEXT_BYTES], tls_key[CONFIG_TEXT_BYTES], tls_ca[CONFIG_TEXT_BYTES];
		bool insecure_tcp; // "yes, plaintext beyond loopback": said in words
		char metrics[CONFIG_TEXT_BYTES]; // 127.0.0.1:9151, "" for none
	} listen;
	struct {
		char path[CONFIG_TEXT_BYTES]; // /var/lib/thaw
		char sources[CONFIG_TEXT_BYTES]; // where a worker looks for model files, "" for nowhere else
		uint32_t replicas; // nodes keep what plans after replicas - 1 losses need
	} store;
	struct {
		char role[16]; // none, coordinator, worker, both
		char name[64]; // of the cluster
		char node[64]; // this node's name in it; "": the host's
		char rack[64]; // where it stands; "": in none
		char listen[CONFIG_TEXT_BYTES]; // coordinator: HOST:PORT for nodes
		char join[CONFIG_TEXT_BYTES]; // worker: HOST:PORT of the coordinators, with commas between
		char address[256]; // of this node, for the other nodes' data; "": the one that it joins with
		char tls_cert[CONFIG_TEXT_BYTES], tls_key[CONFIG_TEXT_BYTES], tls_ca[CONFIG_TEXT_BYTES];
		char device_map[16]; // auto, balanced, sequential, explicit
		char map[CONFIG_MAP_BYTES]; // of explicit: a line of YAML, see config_map.h; "" for none
		char pins[CONFIG_MAP_BYTES]; // of auto, likewise
		char reserve[CONFIG_MAP_BYTES]; // nodes and bytes that stay free there
		uint32_t nodes; // that compute, before a model is loaded
		char state[8]; // coordinator: file or etcd
		char etcd[CONFIG_TEXT_BYTES]; // its endpoints, HOST:PORT with commas between
		char etcd_tls_cert[CONFIG_TEXT_BYTES], etcd_tls_key[CONFIG_TEXT_BYTES], etcd_tls_ca[CONFIG_TEXT_BYTES];
		uint64_t etcd_lease_ns; // how long after a coordinator's end another takes over
	} cluster;
	struct {
		uint64_t weights_bytes; // hot weights and stream slots; 0: all that is free after the others
		uint64_t kv_bytes;
		uint64_t workspace_bytes;
	} memory;
	struct {
		char backend[16]; // cpu, reference
		uint32_t threads; // 0: all CPUs of the cpuset
		char kv_type[8]; // f16, q8
		uint32_t stages; // pipeline stages on this host (processes); 1 unless testing
		uint32_t tensor; // ranks that share the layers of each stage
	} compute;
	struct {
		char engine[16]; // auto, uring, sync
		uint32_t verify_every; // 1: every read of a cold extent is checked
		uint32_t slots, depth; // 0: chosen
	} offload;
	struct {
		uint32_t max_sequences; // 8
		uint64_t window_ns; // 20ms
		uint32_t max_waiting; // 256
		uint64_t max_waiting_memory_bytes; // 64MiB
		uint32_t batch_tokens; // 256
		uint32_t context_tokens; // 0: the model's
		uint32_t max_new_tokens; // 4096
		uint64_t stuck_ns; // 120s
	} scheduler;
	struct {
		uint64_t drain_ns; // 30s
		char log_level[16];
	} daemon;
	struct config_model models[CONFIG_MAX_MODELS];
	uint32_t models_count;
};

struct config_source { // where values come from
	const char *main_file; // NULL: /etc/thaw/thaw.yaml if it is there
	const char *conf_dir; // NULL: /etc/thaw/conf.d
	const char *const *sets; // "key=value", NULL-terminated; may be NULL
	bool environment;
};

struct config_origins; // for show --origin
int config_load(const struct config_source *source, struct config *ret_config, struct config_origins **ret_origins,
	struct base_error *e);
void config_origins_free(struct config_origins *o);
/* From text in memory (tests, fuzzing); name is for messages. Checked like config_load; in_out_config is unchanged on
 * failure. */
int config_parse(const char *text, size_t bytes, const char *name, struct config *in_out_config, struct base_error *e);
void config_defaults(struct config *ret_config);
/* A model's name, where it has none, from its path. -EINVAL: no path, or no name can be made. */
int config_model_finish(struct config_model *m, struct base_error *e);
/* Combinations that no single key shows: addresses, TLS beyond loopback, names of models. */
int config_validate(const struct config *c, struct base_error *e);
/* What models name: a file that is not there may still come, but a directory is none. -EISDIR. */
int config_check_files(const struct config *c, struct base_error *e);
/* As YAML that config_load reads back to the same values; origins as comments if given. */
void config_print(const struct config *c, const struct config_origins *o, FILE *out);
void config_print_json(const struct config *c, const struct config_origins *o, FILE *out);
/* All keys with type, default and help: for the manual and `thawctl config keys`. */
void config_print_keys(FILE *out);
void config_print_keys_json(FILE *out);
/* The first changed key that is not reloadable, or NULL. */
const char *config_first_fixed_change(const struct config *from, const struct config *to);
