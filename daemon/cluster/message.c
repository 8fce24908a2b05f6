// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/message.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"
#include "offload/hash.h"
#include "shard/format/gguf.h"

/* ---- checks ---- */

static int take_name(const char *field, const char *text, char out[static CLUSTER_NAME_BYTES], struct base_error *e)
{
	if (cluster_name_check(field, text, e) < 0)
		return -EBADMSG;
	return machine_message_take_text(field, text, out, CLUSTER_NAME_BYTES, e);
}

static int take_path(const char *field, const char *text, char out[static CLUSTER_PATH_BYTES], struct base_error *e)
{
	if (text[0] != '/')
		return base_error_set(e, -EBADMSG, "%s: \"%.80s\" is not an absolute path", field, text);
	return machine_message_take_text(field, text, out, CLUSTER_PATH_BYTES, e);
}

/* What getaddrinfo may be asked for; no port, no brackets. */
static int take_host(const char *field, const char *text, char out[static CLUSTER_HOST_BYTES], struct base_error *e)
{
	size_t n = strlen(text);
	if (strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:%") != n)
		return base_error_set(e, -EBADMSG, "%s: \"%.80s\" is not a host", field, text);
	return machine_message_take_text(field, text, out, CLUSTER_HOST_BYTES, e);
}

static int take_bytes(const char *field, const ProtobufCBinaryData *b, uint8_t *out, size_t bytes, struct base_error *e)
{
	if (b->len != bytes)
		return base_error_set(e, -EBADMSG, "%s: %zu bytes, %zu are wanted", field, b->len, bytes);
	memcpy(out, b->data, bytes);
	return 0;
}

static int take_rate(const char *field, double v, double *out, struct base_error *e)
{
	if (!isfinite(v) || v < 0 || v > 1e18)
		return base_error_set(e, -EBADMSG, "%s: %g is no rate", field, v);
	*out = v;
	return 0;
}

static int take_bandwidths(const Thaw__Admin__V1__Bandwidths *m, struct topology_bandwidths *out, struct base_error *e)
{
	*out = (struct topology_bandwidths){0};
	if (!m)
		return 0;
	out->measured_wall_ns = m->measured_wall_ns;
	int status = take_rate("bandwidths.drive", m->drive_bytes_per_second, &out->drive_bytes_per_s, e);
	if (!status)
		status = take_rate("bandwidths.memory", m->memory_bytes_per_second, &out->memory_bytes_per_s, e);
	if (!status)
		status = take_rate("bandwidths.compute", m->compute_macs_per_second, &out->compute_macs_per_s, e);
	return status;
}

static int take_machine(const Thaw__Node__V1__Machine *m, struct cluster_facts *f, struct base_error *e)
{
	if (!m)
		return base_error_set(e, -EBADMSG, "machine: is missing");
	if (!m->cpus || m->cpus > TOPOLOGY_MAX_CPUS)
		return base_error_set(e, -EBADMSG, "machine.cpus: %u, 1 to %u", m->cpus, TOPOLOGY_MAX_CPUS);
	f->packages = m->packages;
	f->cores = m->cores;
	f->cpus = m->cpus;
	f->drives = m->drives;
	f->gpus = m->gpus;
	f->nics = m->nics;
	f->memory_bytes = m->memory_bytes;
	f->memory_limit_bytes = m->memory_limit_bytes;
	f->memory_available_bytes = m->memory_available_bytes;
	int status = machine_message_take_text("machine.host", m->host, f->host, sizeof f->host, e);
	return status ? status
		      : machine_message_take_text(
				"machine.cpu_model", m->cpu_model, f->cpu_model, sizeof f->cpu_model, e);
}

static int take_store(const Thaw__Node__V1__Register *m, struct cluster_facts *f, struct base_error *e)
{
	if (m->n_store > CLUSTER_MAX_STORED)
		return base_error_set(e, -EBADMSG, "store: %zu models, at most %u", m->n_store, CLUSTER_MAX_STORED);
	f->store_count = (uint32_t)m->n_store;
	f->store_free_bytes = m->store_free_bytes;
	if (m->pull_port > UINT16_MAX)
		return base_error_set(e, -EBADMSG, "pull_port: %u is none", m->pull_port);
	f->pull_port = (uint16_t)m->pull_port;
	for (size_t i = 0; i < m->n_store; i++) {
		f->store[i].files = m->store[i]->files;
		f->store[i].bytes = m->store[i]->bytes;
		f->store[i].copy = m->store[i]->copy;
		int status =
			take_bytes("store[].digest", &m->store[i]->digest, f->store[i].digest, CLUSTER_DIGEST_BYTES, e);
		if (status)
			return status;
	}
	return 0;
}

int cluster_read_register(const Thaw__Node__V1__Register *m, struct cluster_facts *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->incarnation = m->incarnation;
	ret->wall_ns = m->wall_ns;
	if (m->protocol != CLUSTER_PROTOCOL)
		return base_error_set(e, -EBADMSG,
			"protocol: the node speaks version %u, this is %u: run the same thaw on all nodes", m->protocol,
			CLUSTER_PROTOCOL);
	int status = machine_message_take_text("version", m->version, ret->version, sizeof ret->version, e);
	if (!status)
		status = take_name("cluster", m->cluster, ret->cluster, e);
	if (!status)
		status = take_name("node", m->node, ret->node, e);
	if (!status && m->rack[0])
		status = take_name("rack", m->rack, ret->rack, e);
	if (!status)
		status = take_host("address", m->address, ret->address, e);
	if (!status)
		status = take_machine(m->machine, ret, e);
	if (!status)
		status = take_bandwidths(m->bandwidths, &ret->bandwidths, e);
	if (!status && m->budgets)
		ret->budgets = (struct cluster_budgets){
			m->budgets->weights_bytes, m->budgets->kv_bytes, m->budgets->workspace_bytes};
	return status ? status : take_store(m, ret, e);
}

int cluster_read_machine(const Thaw__Node__V1__Register *m, struct topology_machine *ret, struct base_error *e)
{
	struct cluster_facts f = {0};
	int status = take_machine(m->machine, &f, e);
	if (status)
		return status;
	memset(ret, 0, sizeof *ret);
	memcpy(ret->host, f.host, sizeof ret->host);
	memcpy(ret->cpu_model, f.cpu_model, sizeof ret->cpu_model);
	ret->packages = f.packages;
	ret->cores = f.cores;
	ret->cpus = f.cpus;
	ret->memory_bytes = f.memory_bytes;
	ret->memory_limit_bytes = f.memory_limit_bytes;
	ret->memory_available_bytes = f.memory_available_bytes;
	status = machine_message_read_nodes(m->machine->numa_nodes, m->machine->n_numa_nodes, ret, e);
	if (!status)
		status = machine_message_read_devices(m->machine->devices, m->machine->n_devices, ret, e);
	if (status)
		base_error_prefix(e, "machine");
	return status;
}

static int take_source(const Thaw__Node__V1__Source *m, struct cluster_pull_source *out, struct base_error *e)
{
	if (!m->port || m->port > UINT16_MAX || !m->host[0])
		return base_error_set(e, -EBADMSG, "sources[]: host \"%.80s\", port %u", m->host, m->port);
	out->port = (uint16_t)m->port;
	int status = take_name("sources[].node", m->node, out->node, e);
	return status ? status : take_host("sources[].host", m->host, out->host, e);
}

static int take_sources(const Thaw__Node__V1__Assign *m, struct cluster_assign *ret, struct base_error *e)
{
	int status = 0;
	if (m->n_sources > CLUSTER_MAX_SOURCES)
		return base_error_set(e, -EBADMSG, "sources: %zu, at most %u", m->n_sources, CLUSTER_MAX_SOURCES);
	ret->sources_count = (uint32_t)m->n_sources;
	for (size_t i = 0; i < m->n_sources && !status; i++)
		status = take_source(m->sources[i], &ret->sources[i], e);
	return status;
}

int cluster_read_assign(const Thaw__Node__V1__Assign *m, struct cluster_assign *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->assignment = m->assignment;
	ret->epoch = m->epoch;
	ret->header_hash = m->header_hash;
	ret->header_bytes = m->header_bytes;
	ret->file_bytes = m->file_bytes;
	ret->check = m->check;
	ret->spare = m->spare;
	ret->slice = (struct cluster_slice){m->first_layer, m->layers, m->tp_rank, m->tp_size};
	int status = machine_message_take_text("model", m->model, ret->model, sizeof ret->model, e);
	if (!status)
		status = take_path("path", m->path, ret->path, e);
	if (!status)
		status = take_bytes("digest", &m->digest, ret->digest, CLUSTER_DIGEST_BYTES, e);
	if (!status && (!m->tp_size || m->tp_rank >= m->tp_size || m->tp_size > CLUSTER_MAX_MEMBERS))
		status = base_error_set(e, -EBADMSG, "tp_rank: %u of %u", m->tp_rank, m->tp_size);
	if (!status && (!m->layers || m->first_layer > UINT32_MAX - m->layers))
		status = base_error_set(e, -EBADMSG, "layers: %u from %u on", m->layers, m->first_layer);
	if (!status && (!m->header_bytes || m->header_bytes > m->file_bytes ||
			       m->header_bytes > FORMAT_GGUF_MAX_HEADER_BYTES || m->file_bytes > INT64_MAX))
		status = base_error_set(e, -EBADMSG, "header_bytes: %llu of a file of %llu",
			(unsigned long long)m->header_bytes, (unsigned long long)m->file_bytes);
	return status ? status : take_sources(m, ret, e);
}

int cluster_read_forget(const Thaw__Node__V1__Forget *m, struct cluster_assign *ret, struct base_error *e)
{
	*ret = (struct cluster_assign){.forget = true};
	int status = machine_message_take_text("model", m->model, ret->model, sizeof ret->model, e);
	return status ? status : take_bytes("digest", &m->digest, ret->digest, CLUSTER_DIGEST_BYTES, e);
}

int cluster_read_pull(const Thaw__Node__V1__PullRequest *m, struct cluster_pull *ret, struct base_error *e)
{
	uint64_t all, span, end;
	*ret = (struct cluster_pull){
		.runs = {m->offset_bytes, m->run_bytes, m->stride_bytes, m->runs}, .skip_bytes = m->skip_bytes};
	int status = take_bytes("digest", &m->digest, ret->digest, CLUSTER_DIGEST_BYTES, e);
	if (status)
		return status;
	if (!m->run_bytes || !m->runs || m->stride_bytes < m->run_bytes || base_size_mul(m->run_bytes, m->runs, &all) ||
		base_size_mul(m->stride_bytes, m->runs - 1, &span) || base_size_add(m->offset_bytes, span, &end) ||
		base_size_add(end, m->run_bytes, &end))
		return base_error_set(e, -EBADMSG, "runs: %llu of %llu bytes, %llu apart, from %llu on",
			(unsigned long long)m->runs, (unsigned long long)m->run_bytes,
			(unsigned long long)m->stride_bytes, (unsigned long long)m->offset_bytes);
	if (m->skip_bytes >= all)
		return base_error_set(e, -EBADMSG, "skip_bytes: %llu of %llu", (unsigned long long)m->skip_bytes,
			(unsigned long long)all);
	return 0;
}

int cluster_check_chunk(const Thaw__Node__V1__PullChunk *m, uint64_t left_bytes, struct base_error *e)
{
	uint64_t most = left_bytes < CLUSTER_CHUNK_BYTES ? left_bytes : CLUSTER_CHUNK_BYTES;
	if (m->data.len != most) // less than all that fits is a trickle
		return base_error_set(
			e, -EBADMSG, "it sent %zu bytes where %llu are wanted", m->data.len, (unsigned long long)most);
	if (offload_hash(m->data.data, m->data.len) != m->xxh3)
		return base_error_set(e, -EBADMSG, "the checksum of %zu bytes does not match", m->data.len);
	return 0;
}

int cluster_read_prepared(const Thaw__Node__V1__Prepared *m, struct cluster_prepared *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->assignment = m->assignment;
	ret->threads = m->threads;
	ret->port = m->port;
	ret->copy = m->copy;
	int status = machine_message_take_text("repaired", m->repaired, ret->repaired, sizeof ret->repaired, e);
	if (!status)
		status = take_path("store_directory", m->store_directory, ret->store_directory, e);
	if (!status)
		status = take_path("model_path", m->model_path, ret->model_path, e);
	if (!status && (!m->port || m->port > UINT16_MAX))
		status = base_error_set(e, -EBADMSG, "port: %u is none", m->port);
	if (!status && (!m->n_cpus || m->n_cpus > TOPOLOGY_MAX_CPUS || !m->threads || m->threads > m->n_cpus))
		status = base_error_set(
			e, -EBADMSG, "cpus: %zu for %u threads, 1 to %u", m->n_cpus, m->threads, TOPOLOGY_MAX_CPUS);
	for (size_t i = 0; i < m->n_cpus && !status; i++) {
		ret->cpus[i] = m->cpus[i];
		if (m->cpus[i] >= 65536)
			status = base_error_set(e, -EBADMSG, "cpus: %u is none", m->cpus[i]);
	}
	ret->cpus_count = (uint32_t)m->n_cpus;
	return status ? status : take_bandwidths(m->bandwidths, &ret->bandwidths, e);
}

static int take_member(const Thaw__Node__V1__Member *m, struct cluster_member *out, struct base_error *e)
{
	if (m->port > UINT16_MAX)
		return base_error_set(e, -EBADMSG, "members[].port: %u is none", m->port);
	out->port = (uint16_t)m->port;
	return take_host("members[].host", m->host, out->host, e);
}

static int take_shape(const Thaw__Node__V1__Start *m, struct rank_shape *out, struct base_error *e)
{
	*out = (struct rank_shape){.stages = (uint32_t)m->n_parts};
	bool good = m->n_parts > 0 && m->n_parts < CLUSTER_MAX_MEMBERS;
	for (size_t i = 0; i < m->n_parts && good; i++) {
		good = m->parts[i] <= RANK_MAX_PARTS;
		out->parts[i] = (uint8_t)(good ? m->parts[i] : 0);
	}
	if (!good || rank_shape_check(out, CLUSTER_MAX_MEMBERS - 1) < 0)
		return base_error_set(e, -EBADMSG, "parts: of %zu stages; 1 to %u in each, %u ranks at most",
			m->n_parts, RANK_MAX_PARTS, CLUSTER_MAX_MEMBERS - 1);
	return 0;
}

int cluster_read_start(const Thaw__Node__V1__Start *m, struct cluster_start *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->assignment = m->assignment;
	ret->epoch = m->epoch;
	ret->place = (struct rank_place){m->stage, m->part};
	int good = take_shape(m, &ret->shape, e);
	if (good < 0)
		return good;
	if (!m->epoch || m->stage >= ret->shape.stages)
		return base_error_set(e, -EBADMSG, "stage: %u of %u in epoch %llu", m->stage, ret->shape.stages,
			(unsigned long long)m->epoch);
	if (m->part >= ret->shape.parts[m->stage])
		return base_error_set(
			e, -EBADMSG, "part: %u of %u in stage %u", m->part, ret->shape.parts[m->stage], m->stage);
	if (m->n_members != rank_member(rank_shape_ranks(&ret->shape)))
		return base_error_set(
			e, -EBADMSG, "members: %zu for %u ranks", m->n_members, rank_shape_ranks(&ret->shape));
	ret->members_count = (uint32_t)m->n_members;
	for (size_t i = 0; i < m->n_members; i++) {
		int status = take_member(m->members[i], &ret->members[i], e);
		if (status)
			return status;
	}
	return take_bytes("secret", &m->secret, ret->secret, CLUSTER_SECRET_BYTES, e);
}

int cluster_read_probe(const Thaw__Node__V1__Probe *m, struct cluster_probe *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->probe = m->probe;
	ret->me = m->me;
	if (!m->probe || m->me > 1 || m->n_members != 2)
		return base_error_set(e, -EBADMSG, "me: %u of %zu in probe %llu, 0 or 1 of 2", m->me, m->n_members,
			(unsigned long long)m->probe);
	int status = take_member(m->members[0], &ret->members[0], e);
	if (!status)
		status = take_member(m->members[1], &ret->members[1], e);
	if (!status && m->me == 1 && !ret->members[0].port)
		status = base_error_set(e, -EBADMSG, "members[].port: 0 is none");
	return status ? status : take_bytes("secret", &m->secret, ret->secret, CLUSTER_SECRET_BYTES, e);
}

int cluster_read_probe_ready(
	const Thaw__Node__V1__ProbeReady *m, uint64_t *ret_probe, uint16_t *ret_port, struct base_error *e)
{
	if (!m->port || m->port > UINT16_MAX)
		return base_error_set(e, -EBADMSG, "port: %u is none", m->port);
	*ret_probe = m->probe;
	*ret_port = (uint16_t)m->port;
	return 0;
}

int cluster_read_probe_done(const Thaw__Node__V1__ProbeDone *m, struct cluster_probe_done *ret, struct base_error *e)
{
	memset(ret, 0, sizeof *ret);
	ret->probe = m->probe;
	snprintf(ret->error, sizeof ret->error, "%.250s", m->error);
	if (ret->error[0])
		return 0;
	int status = take_rate("latency_ns", m->latency_ns, &ret->latency_ns, e);
	if (!status)
		status = take_rate("bytes_per_second", m->bytes_per_second, &ret->bytes_per_s, e);
	if (!status && !(ret->latency_ns > 0 && ret->bytes_per_s > 0))
		status = base_error_set(e, -EBADMSG, "bytes_per_second: %g after %g ns is no measure", ret->bytes_per_s,
			ret->latency_ns);
	return status;
}

/* ---- packing ---- */

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_bytes)
{
	size_t n = protobuf_c_message_get_packed_size(m);
	uint8_t *out = malloc(n ? n : 1);
	if (out)
		*ret_bytes = protobuf_c_message_pack(m, out);
	return out;
}

uint8_t *cluster_pack_node(Thaw__Node__V1__NodeMessage *m, size_t *ret_bytes)
{
	return pack(&m->base, ret_bytes);
}

uint8_t *cluster_pack_coordinator(Thaw__Node__V1__CoordinatorMessage *m, size_t *ret_bytes)
{
	return pack(&m->base, ret_bytes);
}

static void fill_machine(const struct cluster_facts *f, Thaw__Node__V1__Machine *m)
{
	thaw__node__v1__machine__init(m);
	m->host = (char *)f->host;
	m->cpu_model = (char *)f->cpu_model;
	m->packages = f->packages;
	m->cores = f->cores;
	m->cpus = f->cpus;
	m->drives = f->drives;
	m->gpus = f->gpus;
	m->nics = f->nics;
	m->memory_bytes = f->memory_bytes;
	m->memory_limit_bytes = f->memory_limit_bytes;
	m->memory_available_bytes = f->memory_available_bytes;
}

void cluster_fill_register(const struct cluster_facts *f, struct cluster_register_message *ret)
{
	thaw__node__v1__node_message__init(&ret->message);
	thaw__node__v1__register__init(&ret->reg);
	thaw__node__v1__budgets__init(&ret->budgets);
	fill_machine(f, &ret->machine);
	machine_message_fill_bandwidths(&f->bandwidths, &ret->bandwidths);
	ret->budgets.weights_bytes = f->budgets.weights_bytes;
	ret->budgets.kv_bytes = f->budgets.kv_bytes;
	ret->budgets.workspace_bytes = f->budgets.workspace_bytes;
	Thaw__Node__V1__Register *r = &ret->reg;
	r->protocol = CLUSTER_PROTOCOL;
	r->version = (char *)f->version;
	r->cluster = (char *)f->cluster;
	r->node = (char *)f->node;
	r->rack = (char *)f->rack;
	r->incarnation = f->incarnation;
	r->wall_ns = f->wall_ns;
	r->address = (char *)f->address;
	r->machine = &ret->machine;
	r->bandwidths = &ret->bandwidths;
	r->budgets = &ret->budgets;
	for (uint32_t i = 0; i < f->store_count; i++) {
		thaw__node__v1__stored_model__init(&ret->stored[i]);
		ret->stored[i].digest = (ProtobufCBinaryData){CLUSTER_DIGEST_BYTES, (uint8_t *)f->store[i].digest};
		ret->stored[i].files = f->store[i].files;
		ret->stored[i].bytes = f->store[i].bytes;
		ret->stored[i].copy = f->store[i].copy;
		ret->list[i] = &ret->stored[i];
	}
	r->n_store = f->store_count;
	r->store = ret->list;
	r->store_free_bytes = f->store_free_bytes;
	r->pull_port = f->pull_port;
	ret->message.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_REGISTER;
	ret->message.register_ = r;
}

void cluster_fill_machine(const struct topology_machine *m, struct cluster_register_message *ret)
{
	machine_message_fill_lists(m, &ret->lists);
	ret->machine.n_numa_nodes = ret->lists.nodes_count;
	ret->machine.numa_nodes = ret->lists.node_list;
	ret->machine.n_devices = ret->lists.devices_count;
	ret->machine.devices = ret->lists.device_list;
}

uint8_t *cluster_pack_assign(const struct cluster_assign *a, size_t *ret_bytes)
{
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Assign x = THAW__NODE__V1__ASSIGN__INIT;
	Thaw__Node__V1__Source sources[CLUSTER_MAX_SOURCES], *list[CLUSTER_MAX_SOURCES];
	for (uint32_t i = 0; i < a->sources_count; i++) {
		thaw__node__v1__source__init(&sources[i]);
		sources[i].node = (char *)a->sources[i].node;
		sources[i].host = (char *)a->sources[i].host;
		sources[i].port = a->sources[i].port;
		list[i] = &sources[i];
	}
	x.assignment = a->assignment;
	x.epoch = a->epoch;
	x.model = (char *)a->model;
	x.path = (char *)a->path;
	x.digest = (ProtobufCBinaryData){CLUSTER_DIGEST_BYTES, (uint8_t *)a->digest};
	x.header_hash = a->header_hash;
	x.header_bytes = a->header_bytes;
	x.file_bytes = a->file_bytes;
	x.check = a->check;
	x.spare = a->spare;
	x.first_layer = a->slice.first_layer;
	x.layers = a->slice.layers;
	x.tp_rank = a->slice.tp_rank;
	x.tp_size = a->slice.tp_size;
	x.n_sources = a->sources_count;
	x.sources = list;
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN;
	m.assign = &x;
	return pack(&m.base, ret_bytes);
}

uint8_t *cluster_pack_forget(const char *model, const uint8_t digest[static CLUSTER_DIGEST_BYTES], size_t *ret_bytes)
{
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Forget f = THAW__NODE__V1__FORGET__INIT;
	f.digest = (ProtobufCBinaryData){CLUSTER_DIGEST_BYTES, (uint8_t *)digest};
	f.model = (char *)model;
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET;
	m.forget = &f;
	return pack(&m.base, ret_bytes);
}

uint8_t *cluster_pack_pull(const struct cluster_pull *p, size_t *ret_bytes)
{
	Thaw__Node__V1__PullRequest m = THAW__NODE__V1__PULL_REQUEST__INIT;
	m.digest = (ProtobufCBinaryData){CLUSTER_DIGEST_BYTES, (uint8_t *)p->digest};
	m.offset_bytes = p->runs.offset_bytes;
	m.run_bytes = p->runs.run_bytes;
	m.stride_bytes = p->runs.stride_bytes;
	m.runs = p->runs.runs;
	m.skip_bytes = p->skip_bytes;
	return pack(&m.base, ret_bytes);
}

uint8_t *cluster_pack_prepared(const struct cluster_prepared *p, size_t *ret_bytes)
{
	Thaw__Node__V1__NodeMessage m = THAW__NODE__V1__NODE_MESSAGE__INIT;
	Thaw__Node__V1__Prepared x = THAW__NODE__V1__PREPARED__INIT;
	Thaw__Admin__V1__Bandwidths b;
	machine_message_fill_bandwidths(&p->bandwidths, &b);
	x.assignment = p->assignment;
	x.store_directory = (char *)p->store_directory;
	x.model_path = (char *)p->model_path;
	x.port = p->port;
	x.threads = p->threads;
	x.n_cpus = p->cpus_count;
	x.cpus = (uint32_t *)p->cpus;
	x.repaired = (char *)p->repaired;
	x.copy = p->copy;
	x.bandwidths = &b;
	m.what_case = THAW__NODE__V1__NODE_MESSAGE__WHAT_PREPARED;
	m.prepared = &x;
	return pack(&m.base, ret_bytes);
}

uint8_t *cluster_pack_start(const struct cluster_start *s, size_t *ret_bytes)
{
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Start x = THAW__NODE__V1__START__INIT;
	Thaw__Node__V1__Member members[CLUSTER_MAX_MEMBERS], *list[CLUSTER_MAX_MEMBERS];
	uint32_t parts[RANK_MAX_RANKS];
	for (uint32_t i = 0; i < s->members_count; i++) {
		thaw__node__v1__member__init(&members[i]);
		members[i].host = (char *)s->members[i].host;
		members[i].port = s->members[i].port;
		list[i] = &members[i];
	}
	x.assignment = s->assignment;
	x.epoch = s->epoch;
	for (uint32_t i = 0; i < s->shape.stages; i++)
		parts[i] = s->shape.parts[i];
	x.stage = s->place.stage;
	x.part = s->place.part;
	x.n_parts = s->shape.stages;
	x.parts = parts;
	x.n_members = s->members_count;
	x.members = list;
	x.secret = (ProtobufCBinaryData){CLUSTER_SECRET_BYTES, (uint8_t *)s->secret};
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START;
	m.start = &x;
	return pack(&m.base, ret_bytes);
}

uint8_t *cluster_pack_probe(const struct cluster_probe *p, size_t *ret_bytes)
{
	Thaw__Node__V1__CoordinatorMessage m = THAW__NODE__V1__COORDINATOR_MESSAGE__INIT;
	Thaw__Node__V1__Probe x = THAW__NODE__V1__PROBE__INIT;
	Thaw__Node__V1__Member members[2], *list[2];
	for (uint32_t i = 0; i < 2; i++) {
		thaw__node__v1__member__init(&members[i]);
		members[i].host = (char *)p->members[i].host;
		members[i].port = p->members[i].port;
		list[i] = &members[i];
	}
	x.probe = p->probe;
	x.me = p->me;
	x.n_members = 2;
	x.members = list;
	x.secret = (ProtobufCBinaryData){CLUSTER_SECRET_BYTES, (uint8_t *)p->secret};
	m.what_case = THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE;
	m.probe = &x;
	return pack(&m.base, ret_bytes);
}
