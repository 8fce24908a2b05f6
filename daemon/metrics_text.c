// SPDX-License-Identifier: Apache-2.0
// The text of /metrics from one snapshot: tables say which field of it becomes which family.
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/metrics.h"

#define MAX_LABEL_BYTES 512

struct snapshot {
	struct server *server;
	uint32_t count;
	struct server_model_info models[CONFIG_MAX_MODELS];
	bool have_histograms[CONFIG_MAX_MODELS];
	struct engine_histograms histograms[CONFIG_MAX_MODELS];
};

enum field_kind { FIELD_U32, FIELD_U64, FIELD_DOUBLE, FIELD_NS /* u64 nanoseconds, shown as seconds */ };

struct field {
	const char *name, *type, *help;
	enum field_kind kind;
	size_t offset;
};

#define LOAD(member) offsetof(struct engine_load, member)
static const struct field model_fields[] = {
	// of struct engine_load
	{"requests_running", "gauge", "Requests that hold sequences.", FIELD_U32, LOAD(running)},
	{"requests_waiting", "gauge", "Requests in the queue.", FIELD_U32, LOAD(waiting)},
	{"waiting_tokens", "gauge", "Prompt tokens of the requests in the queue.", FIELD_U64, LOAD(waiting_tokens)},
	{"waiting_bytes", "gauge", "Memory of the requests in the queue.", FIELD_U64, LOAD(waiting_bytes)},
	{"kv_blocks", "gauge", "KV blocks there are.", FIELD_U32, LOAD(kv_blocks)},
	{"kv_blocks_used", "gauge", "KV blocks in use.", FIELD_U32, LOAD(kv_blocks_used)},
	{"tokens_per_second", "gauge", "Tokens generated per second, lately.", FIELD_DOUBLE, LOAD(tokens_per_second)},
	{"achieved_ratio", "gauge", "Bound divided by time of the last passes: 1 is the hardware's limit.",
		FIELD_DOUBLE, LOAD(achieved_ratio)},
	{"plan_epoch", "gauge", "Epoch of the plan in use.", FIELD_U64, LOAD(epoch)},
	{"last_pass_timestamp_seconds", "gauge", "When the last pass ended, since 1970; 0: none yet.", FIELD_NS,
		LOAD(last_pass_wall_ns)},
	{"prompt_tokens_total", "counter", "Prompt tokens computed.", FIELD_U64, LOAD(prompt_tokens_total)},
	{"generated_tokens_total", "counter", "Tokens generated.", FIELD_U64, LOAD(generated_tokens_total)},
	{"preemptions_total", "counter", "Sequences that gave their KV blocks back.", FIELD_U64,
		LOAD(preemptions_total)},
	{"link_errors_total", "counter", "Links to ranks that broke.", FIELD_U64, LOAD(link_errors)},
	{"requests_failed_total", "counter", "Requests that ended with an error.", FIELD_U64, LOAD(failed_total)},
	{"rank_restarts_total", "counter", "Ranks started again after a loss.", FIELD_U64, LOAD(restarts)},
};

#define STATS(member) offsetof(struct rank_stats, member)
static const struct field stage_fields[] = {
	// of struct rank_stats
	{"stage_passes_total", "counter", "Passes computed.", FIELD_U64, STATS(passes)},
	{"stage_pass_seconds_total", "counter", "Time in passes.", FIELD_NS, STATS(pass_ns)},
	{"stage_busy_seconds_total", "counter", "Time computing.", FIELD_NS, STATS(compute_ns)},
	{"offload_read_bytes_total", "counter", "Cold bytes read.", FIELD_U64, STATS(stream.read_bytes)},
	{"offload_reads_total", "counter", "Reads of cold extents.", FIELD_U64, STATS(stream.reads)},
	{"offload_stall_seconds_total", "counter", "Time that compute waited for reads.", FIELD_NS,
		STATS(stream.stall_ns)},
	{"prefetch_late_total", "counter", "Extents that were not there when needed.", FIELD_U64, STATS(stream.late)},
	{"offload_inflight_reads", "gauge", "Reads in flight.", FIELD_U32, STATS(stream.inflight)},
	{"offload_errors_total", "counter", "Reads that failed, or data that did not match its checksum.", FIELD_U64,
		STATS(stream.errors)},
	{"offload_rereads_total", "counter", "Extents read once more.", FIELD_U64, STATS(stream.rereads)},
	{"offload_verify_bytes_total", "counter", "Bytes checked against their checksum.", FIELD_U64,
		STATS(stream.verify_bytes)},
	{"offload_verify_seconds_total", "counter", "CPU time of checksums.", FIELD_NS, STATS(stream.verify_ns)},
	{"offload_cpu_seconds_total", "counter", "CPU time of reading, checksums included.", FIELD_NS,
		STATS(stream.io_cpu_ns)},
	{"embedding_read_bytes_total", "counter", "Bytes of single embedding rows read.", FIELD_U64,
		STATS(embed_read_bytes)},
};

static const struct {
	const char *component, *tier;
	size_t offset; // of struct rank_placement
} memory_parts[] = {
	{"weights", "host", offsetof(struct rank_placement, hot_bytes)},
	{"weights", "nvme", offsetof(struct rank_placement, cold_bytes)},
	{"stream", "host", offsetof(struct rank_placement, slot_bytes)},
	{"kv", "host", offsetof(struct rank_placement, kv_bytes)},
	{"workspace", "host", offsetof(struct rank_placement, workspace_bytes)},
};

static void family(FILE *out, const char *name, const char *type, const char *help)
{
	fprintf(out, "# HELP thaw_%s %s\n# TYPE thaw_%s %s\n", name, help, name, type);
}

// In a label's value a backslash, a quote and a newline are written with a backslash.
static const char *escape(const char *text, char out[static MAX_LABEL_BYTES * 2])
{
	size_t at = 0;
	for (; *text && at + 3 < MAX_LABEL_BYTES * 2; text++) {
		if (*text == '\\' || *text == '"' || *text == '\n')
			out[at++] = '\\';
		out[at++] = *text == '\n' ? 'n' : *text;
	}
	out[at] = '\0';
	return out;
}

static void value(FILE *out, double v)
{
	if (isnan(v))
		fprintf(out, " NaN\n");
	else if (isinf(v))
		fprintf(out, v > 0 ? " +Inf\n" : " -Inf\n");
	else if (v == floor(v) && fabs(v) < 0x1p53)
		fprintf(out, " %.0f\n", v);
	else
		fprintf(out, " %.9g\n", v);
}

static void field_value(FILE *out, const struct field *f, const void *base)
{
	const void *at = (const char *)base + f->offset;
	switch (f->kind) {
	case FIELD_U32:
		fprintf(out, " %" PRIu32 "\n", *(const uint32_t *)at);
		return;
	case FIELD_U64:
		fprintf(out, " %" PRIu64 "\n", *(const uint64_t *)at);
		return;
	case FIELD_DOUBLE:
		value(out, *(const double *)at);
		return;
	case FIELD_NS: {
		uint64_t ns = *(const uint64_t *)at; // exact: a double would lose the end of wall times
		fprintf(out, " %" PRIu64 ".%09" PRIu64 "\n", ns / 1000000000, ns % 1000000000);
		return;
	}
	}
}

static void write_server(const struct snapshot *s, FILE *out)
{
	family(out, "build_info", "gauge", "The version that runs.");
	fprintf(out, "thaw_build_info{version=\"%s\"} 1\n", THAW_VERSION);
	family(out, "start_time_seconds", "gauge", "When the daemon started, since 1970.");
	uint64_t started = server_started_wall_ns(s->server);
	fprintf(out, "thaw_start_time_seconds %" PRIu64 ".%09" PRIu64 "\n", started / 1000000000, started % 1000000000);
	family(out, "ready", "gauge", "1: some model can answer.");
	fprintf(out, "thaw_ready %d\n", server_ready(s->server));
	family(out, "draining", "gauge", "1: new requests are refused.");
	fprintf(out, "thaw_draining %d\n", server_draining(s->server));
	family(out, "resident_bytes", "gauge", "Memory of the daemon and its ranks, huge pages included.");
	fprintf(out, "thaw_resident_bytes %" PRIu64 "\n", server_memory_bytes(s->server));
	struct topology_bandwidths b = server_bandwidths(s->server);
	family(out, "measured_bytes_per_second", "gauge", "Bandwidth that the probe measured; 0: not measured.");
	fprintf(out, "thaw_measured_bytes_per_second{resource=\"disk\"}");
	value(out, b.drive_bytes_per_s);
	fprintf(out, "thaw_measured_bytes_per_second{resource=\"memory\"}");
	value(out, b.memory_bytes_per_s);
	family(out, "measured_macs_per_second", "gauge", "Multiply-adds per second that the probe measured.");
	fprintf(out, "thaw_measured_macs_per_second");
	value(out, b.compute_macs_per_s);
}

static const char *const reject_names[] = {
	[ENGINE_REJECT_QUEUE_FULL] = "queue_full",
	[ENGINE_REJECT_QUEUE_MEMORY] = "queue_memory",
	[ENGINE_REJECT_NOT_READY] = "not_ready",
	[ENGINE_REJECT_DRAINING] = "draining",
	[ENGINE_REJECT_FAILED] = "failed",
	[ENGINE_REJECT_TOO_LONG] = "too_long",
	[ENGINE_REJECT_INVALID] = "invalid",
	[ENGINE_REJECT_DUPLICATE] = "duplicate",
	[ENGINE_REJECT_NO_MEMORY] = "no_memory",
};
static_assert(base_array_size(reject_names) == ENGINE_REJECTS);

static void write_states(const struct snapshot *s, FILE *out)
{
	char name[MAX_LABEL_BYTES * 2], text[MAX_LABEL_BYTES * 2], chat[MAX_LABEL_BYTES * 2];
	family(out, "model_info", "gauge", "What each model is.");
	for (uint32_t i = 0; i < s->count; i++)
		fprintf(out,
			"thaw_model_info{model_name=\"%s\",architecture=\"%s\",digest=\"%s\",chat_template=\"%s\"} 1\n",
			escape(s->models[i].name, name), escape(s->models[i].architecture, text), s->models[i].digest,
			escape(s->models[i].chat_template, chat));
	family(out, "model_state", "gauge", "1 for the phase that a model is in.");
	for (uint32_t i = 0; i < s->count; i++)
		for (enum server_phase p = SERVER_PHASE_QUEUED; p <= SERVER_PHASE_UNLOADED; p++)
			fprintf(out, "thaw_model_state{model_name=\"%s\",state=\"%s\"} %d\n",
				escape(s->models[i].name, name), server_phase_name(p), s->models[i].phase == p);
	family(out, "model_load_progress_ratio", "gauge", "How far the phase has come.");
	for (uint32_t i = 0; i < s->count; i++) {
		const struct server_model_info *m = &s->models[i];
		double ratio = m->phase == SERVER_PHASE_READY ? 1
			       : m->total_bytes               ? (double)m->done_bytes / (double)m->total_bytes
							      : 0;
		fprintf(out, "thaw_model_load_progress_ratio{model_name=\"%s\"}", escape(m->name, name));
		value(out, ratio);
	}
	family(out, "model_weights_bytes", "gauge", "Weight bytes that a pass reads.");
	for (uint32_t i = 0; i < s->count; i++)
		fprintf(out, "thaw_model_weights_bytes{model_name=\"%s\"} %" PRIu64 "\n",
			escape(s->models[i].name, name), s->models[i].weights_bytes);
	family(out, "kv_cache_usage_ratio", "gauge", "Share of the KV blocks in use.");
	for (uint32_t i = 0; i < s->count; i++) {
		const struct engine_load *l = &s->models[i].load;
		fprintf(out, "thaw_kv_cache_usage_ratio{model_name=\"%s\"}", escape(s->models[i].name, name));
		value(out, l->kv_blocks ? (double)l->kv_blocks_used / l->kv_blocks : 0);
	}
	family(out, "binding_info", "gauge", "The resource that bounds the last passes.");
	for (uint32_t i = 0; i < s->count; i++)
		if (s->models[i].load.binding[0])
			fprintf(out, "thaw_binding_info{model_name=\"%s\",resource=\"%s\"} 1\n",
				escape(s->models[i].name, name), escape(s->models[i].load.binding, text));
	family(out, "requests_total", "counter", "Requests that ended, by reason.");
	static const char *const reasons[] = {[REQUEST_FINISH_LENGTH] = "length", "stop", "aborted"};
	for (uint32_t i = 0; i < s->count; i++)
		for (size_t f = REQUEST_FINISH_LENGTH; f <= REQUEST_FINISH_ABORTED; f++)
			fprintf(out, "thaw_requests_total{model_name=\"%s\",reason=\"%s\"} %" PRIu64 "\n",
				escape(s->models[i].name, name), reasons[f], s->models[i].load.requests_total[f]);
	family(out, "requests_rejected_total", "counter", "Requests refused at the door, by reason.");
	for (uint32_t i = 0; i < s->count; i++)
		for (size_t r = 0; r < ENGINE_REJECTS; r++)
			fprintf(out, "thaw_requests_rejected_total{model_name=\"%s\",reason=\"%s\"} %" PRIu64 "\n",
				escape(s->models[i].name, name), reject_names[r], s->models[i].load.rejected[r]);
	family(out, "link_bytes_total", "counter", "Bytes of messages between the daemon and its ranks.");
	for (uint32_t i = 0; i < s->count; i++) {
		escape(s->models[i].name, name);
		fprintf(out, "thaw_link_bytes_total{model_name=\"%s\",op=\"send\"} %" PRIu64 "\n", name,
			s->models[i].load.link_sent_bytes);
		fprintf(out, "thaw_link_bytes_total{model_name=\"%s\",op=\"receive\"} %" PRIu64 "\n", name,
			s->models[i].load.link_received_bytes);
	}
}

#define RANK_LABELS_BYTES (MAX_LABEL_BYTES * 2 + 64)

static const char *rank_labels(
	const struct snapshot *s, uint32_t model, uint32_t rank, char out[static RANK_LABELS_BYTES])
{
	const struct server_model_info *m = &s->models[model];
	struct rank_place p = rank_shape_place(&m->load.shape, rank);
	char node[MAX_LABEL_BYTES * 2];
	escape(m->node[rank][0] ? m->node[rank] : server_machine(s->server)->host, node);
	snprintf(out, RANK_LABELS_BYTES, "node=\"%s\",stage=\"%" PRIu32 "\",tp_rank=\"%" PRIu32 "\"", node, p.stage,
		p.part);
	return out;
}

// Of this node the drive's name is known. A rank elsewhere has the label of its node alone.
static const char *drive_label(
	const struct snapshot *s, uint32_t model, uint32_t rank, char out[static MAX_LABEL_BYTES * 2 + 16])
{
	const char *node = s->models[model].node[rank];
	char drive[MAX_LABEL_BYTES * 2];
	out[0] = '\0';
	if (!node[0] || strcmp(node, server_config(s->server)->cluster.node) == 0)
		snprintf(out, MAX_LABEL_BYTES * 2 + 16, ",device=\"%s\"", escape(server_store_drive(s->server), drive));
	return out;
}

static void write_fields(const struct snapshot *s, FILE *out)
{
	char name[MAX_LABEL_BYTES * 2], labels[RANK_LABELS_BYTES], drive[MAX_LABEL_BYTES * 2 + 16];
	for (size_t f = 0; f < base_array_size(model_fields); f++) {
		family(out, model_fields[f].name, model_fields[f].type, model_fields[f].help);
		for (uint32_t i = 0; i < s->count; i++) {
			fprintf(out, "thaw_%s{model_name=\"%s\"}", model_fields[f].name,
				escape(s->models[i].name, name));
			field_value(out, &model_fields[f], &s->models[i].load);
		}
	}
	for (size_t f = 0; f < base_array_size(stage_fields); f++) {
		bool offload = strncmp(stage_fields[f].name, "offload_", 8) == 0;
		family(out, stage_fields[f].name, stage_fields[f].type, stage_fields[f].help);
		for (uint32_t i = 0; i < s->count; i++) {
			for (uint32_t rank = 0; rank < s->models[i].load.ranks; rank++) {
				fprintf(out, "thaw_%s{model_name=\"%s\",%s%s}", stage_fields[f].name,
					escape(s->models[i].name, name), rank_labels(s, i, rank, labels),
					offload ? drive_label(s, i, rank, drive) : "");
				field_value(out, &stage_fields[f], &s->models[i].load.stats[rank]);
			}
		}
	}
}

static void write_stage_sums(const struct snapshot *s, FILE *out)
{
	char name[MAX_LABEL_BYTES * 2], labels[RANK_LABELS_BYTES], drive[MAX_LABEL_BYTES * 2 + 16];
	family(out, "stage_bubble_seconds_total", "counter",
		"Time in passes without computing: waits for reads and others.");
	for (uint32_t i = 0; i < s->count; i++) {
		for (uint32_t rank = 0; rank < s->models[i].load.ranks; rank++) {
			const struct rank_stats *r = &s->models[i].load.stats[rank];
			uint64_t ns = r->pass_ns > r->compute_ns ? r->pass_ns - r->compute_ns : 0;
			fprintf(out,
				"thaw_stage_bubble_seconds_total{model_name=\"%s\",%s} %" PRIu64 ".%09" PRIu64 "\n",
				escape(s->models[i].name, name), rank_labels(s, i, rank, labels), ns / 1000000000,
				ns % 1000000000);
		}
	}
	family(out, "offload_read_seconds", "summary", "Latencies of the reads of cold extents.");
	for (uint32_t i = 0; i < s->count; i++) {
		for (uint32_t rank = 0; rank < s->models[i].load.ranks; rank++) {
			const struct offload_stream_stats *o = &s->models[i].load.stats[rank].stream;
			escape(s->models[i].name, name);
			rank_labels(s, i, rank, labels);
			drive_label(s, i, rank, drive);
			fprintf(out,
				"thaw_offload_read_seconds_sum{model_name=\"%s\",%s%s} %" PRIu64 ".%09" PRIu64 "\n",
				name, labels, drive, o->read_latency_ns / 1000000000, o->read_latency_ns % 1000000000);
			fprintf(out, "thaw_offload_read_seconds_count{model_name=\"%s\",%s%s} %" PRIu64 "\n", name,
				labels, drive, o->reads);
		}
	}
}

static void write_memory(const struct snapshot *s, FILE *out)
{
	char name[MAX_LABEL_BYTES * 2], labels[RANK_LABELS_BYTES];
	family(out, "memory_bytes", "gauge", "Where the bytes of each rank live.");
	for (uint32_t i = 0; i < s->count; i++)
		for (uint32_t rank = 0; rank < s->models[i].load.ranks; rank++)
			for (size_t p = 0; p < base_array_size(memory_parts); p++)
				fprintf(out,
					"thaw_memory_bytes{model_name=\"%s\",%s,device=\"CPU%" PRIu32
					"\",tier=\"%s\",component=\"%s\"} %" PRIu64 "\n",
					escape(s->models[i].name, name), rank_labels(s, i, rank, labels), rank,
					memory_parts[p].tier, memory_parts[p].component,
					*(const uint64_t *)((const char *)&s->models[i].load.placement[rank] +
							    memory_parts[p].offset));
	family(out, "memory_plan_bytes", "gauge", "Budgets that the plan decided.");
	for (uint32_t i = 0; i < s->count; i++) {
		const struct topology_plan *p = &s->models[i].plan;
		escape(s->models[i].name, name);
		fprintf(out, "thaw_memory_plan_bytes{model_name=\"%s\",component=\"weights\"} %" PRIu64 "\n", name,
			p->weights_bytes);
		fprintf(out, "thaw_memory_plan_bytes{model_name=\"%s\",component=\"kv\"} %" PRIu64 "\n", name,
			p->kv_bytes);
		fprintf(out, "thaw_memory_plan_bytes{model_name=\"%s\",component=\"workspace\"} %" PRIu64 "\n", name,
			p->workspace_bytes);
	}
	family(out, "io_uring_available", "gauge", "1: cold weights are read with io_uring.");
	for (uint32_t i = 0; i < s->count; i++)
		for (uint32_t rank = 0; rank < s->models[i].load.ranks; rank++)
			if (s->models[i].load.placement[rank].engine[0])
				fprintf(out, "thaw_io_uring_available{model_name=\"%s\",%s} %d\n",
					escape(s->models[i].name, name), rank_labels(s, i, rank, labels),
					strcmp(s->models[i].load.placement[rank].engine, "uring") == 0);
}

static void write_histogram(
	const struct engine_histogram *h, const char *family_name, const char *model, bool seconds, FILE *out)
{
	uint64_t sum = 0;
	for (size_t b = 0; b < ENGINE_BUCKETS; b++) {
		sum += h->buckets[b];
		fprintf(out, "thaw_%s_bucket{model_name=\"%s\",le=\"%.9g\"} %" PRIu64 "\n", family_name, model,
			seconds ? engine_bucket_seconds[b] : (double)(1u << b), sum);
	}
	sum += h->buckets[ENGINE_BUCKETS];
	fprintf(out, "thaw_%s_bucket{model_name=\"%s\",le=\"+Inf\"} %" PRIu64 "\n", family_name, model, sum);
	fprintf(out, "thaw_%s_sum{model_name=\"%s\"}", family_name, model);
	value(out, h->sum);
	// Not h->count: a scrape between two updates must still be a histogram.
	fprintf(out, "thaw_%s_count{model_name=\"%s\"} %" PRIu64 "\n", family_name, model, sum);
}

static void write_histograms(const struct snapshot *s, FILE *out)
{
	static const struct {
		const char *name, *help;
		size_t offset;
		bool seconds;
	} families[] = {
		{"time_to_first_token_seconds", "From a request's arrival to its first token.",
			offsetof(struct engine_histograms, time_to_first_token), true},
		{"inter_token_latency_seconds", "Between two tokens of a sequence.",
			offsetof(struct engine_histograms, inter_token), true},
		{"request_duration_seconds", "From arrival to the end.", offsetof(struct engine_histograms, duration),
			true},
		{"request_queue_seconds", "From arrival to the first pass.", offsetof(struct engine_histograms, queue),
			true},
		{"batch_tokens", "Token positions of a pass.", offsetof(struct engine_histograms, batch_tokens), false},
	};
	char name[MAX_LABEL_BYTES * 2];
	for (size_t f = 0; f < base_array_size(families); f++) {
		family(out, families[f].name, "histogram", families[f].help);
		for (uint32_t i = 0; i < s->count; i++)
			if (s->have_histograms[i])
				write_histogram((const void *)((const char *)&s->histograms[i] + families[f].offset),
					families[f].name, escape(s->models[i].name, name), families[f].seconds, out);
	}
}

static void write_transfer(const struct snapshot *s, FILE *out)
{
	struct server_transfer t;
	server_get_transfer(s->server, &t);
	if (t.pulls)
		fprintf(out,
			"# HELP thaw_pulled_bytes_total Bytes of models' files that came from other nodes.\n"
			"# TYPE thaw_pulled_bytes_total counter\nthaw_pulled_bytes_total %llu\n",
			(unsigned long long)t.pulled_bytes);
	if (t.serves)
		fprintf(out,
			"# HELP thaw_served_bytes_total Bytes of models' files that other nodes were given.\n"
			"# TYPE thaw_served_bytes_total counter\nthaw_served_bytes_total %llu\n",
			(unsigned long long)t.served_bytes);
}

/* Of a coordinator only. */
static void write_cluster(const struct snapshot *s, FILE *out)
{
	struct server_cluster_load c;
	char name[MAX_LABEL_BYTES * 2];
	if (!server_cluster_load(s->server, &c))
		return;
	fprintf(out, "# HELP thaw_cluster_nodes Nodes of the cluster by state.\n# TYPE thaw_cluster_nodes gauge\n");
	fprintf(out, "thaw_cluster_nodes{state=\"ready\"} %u\nthaw_cluster_nodes{state=\"lost\"} %u\n", c.ready,
		c.lost);
	fprintf(out, "thaw_cluster_nodes{state=\"draining\"} %u\n", c.draining);
	fprintf(out, "# HELP thaw_cluster_epoch Number of the last plan.\n# TYPE thaw_cluster_epoch gauge\n");
	fprintf(out, "thaw_cluster_epoch %llu\n", (unsigned long long)c.epoch);
	fprintf(out, "# HELP thaw_cluster_node_losses_total Nodes that were lost since the coordinator started.\n"
		     "# TYPE thaw_cluster_node_losses_total counter\n");
	fprintf(out, "thaw_cluster_node_losses_total %llu\n", (unsigned long long)c.losses);
	family(out, "peer_up", "gauge", "1: the cluster hears of the node. One that left by itself is not listed.");
	for (uint32_t i = 0; i < c.peers_count; i++)
		fprintf(out, "thaw_peer_up{peer=\"%s\"} %d\n", escape(c.peers[i].name, name), c.peers[i].up);
}

int metrics_write(struct server *server, FILE *out)
{
	_cleanup_free_ struct snapshot *s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	s->server = server;
	s->count = server_list_models(server, s->models, CONFIG_MAX_MODELS);
	for (uint32_t i = 0; i < s->count; i++) {
		const struct server_model *m;
		uint64_t retry;
		if (server_acquire_model(server, s->models[i].name, &m, &retry, NULL) < 0)
			continue; // not loaded yet
		engine_get_histograms(m->engine, &s->histograms[i]);
		s->have_histograms[i] = true;
		server_release_model(server, m);
	}
	write_server(s, out);
	write_cluster(s, out);
	write_transfer(s, out);
	write_states(s, out);
	write_fields(s, out);
	write_stage_sums(s, out);
	write_memory(s, out);
	write_histograms(s, out);
	return 0;
}
