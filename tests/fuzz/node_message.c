// SPDX-License-Identifier: Apache-2.0
/* What a node or a coordinator may be sent: the first byte says which of the two, what is pulled and what comes of it
 * (p, c), and the record of the cluster's state. What is accepted comes
 * back the same when it is written again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/cluster/message.h"
#include "daemon/cluster/state.h"
#include "proto/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void node_message(const Thaw__Node__V1__NodeMessage *m)
{
	_cleanup_free_ struct cluster_facts *f = malloc(sizeof *f);
	struct cluster_prepared p;
	if (m->what_case == THAW__NODE__V1__NODE_MESSAGE__WHAT_REGISTER &&
		cluster_read_register(m->register_, f, NULL) == 0) {
		_cleanup_free_ struct cluster_register_message *r = malloc(sizeof *r);
		size_t n;
		_cleanup_free_ struct topology_machine *machine = malloc(sizeof *machine);
		cluster_fill_register(f, r);
		if (cluster_read_machine(m->register_, machine, NULL) == 0)
			cluster_fill_machine(machine, r);
		free(cluster_pack_node(&r->message, &n));
	}
	if (m->what_case == THAW__NODE__V1__NODE_MESSAGE__WHAT_PREPARED &&
		cluster_read_prepared(m->prepared, &p, NULL) == 0) {
		size_t n;
		free(cluster_pack_prepared(&p, &n));
	}
	struct cluster_probe_done d;
	if (m->what_case == THAW__NODE__V1__NODE_MESSAGE__WHAT_PROBE_DONE &&
		cluster_read_probe_done(m->probe_done, &d, NULL) == 0 && !d.error[0] && !(d.bytes_per_s > 0))
		abort();
}

static void coordinator_message(const Thaw__Node__V1__CoordinatorMessage *m)
{
	struct cluster_assign a;
	struct cluster_start s;
	struct cluster_probe p;
	size_t n;
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_ASSIGN &&
		cluster_read_assign(m->assign, &a, NULL) == 0)
		free(cluster_pack_assign(&a, &n));
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_START &&
		cluster_read_start(m->start, &s, NULL) == 0) {
		uint32_t ranks = rank_shape_ranks(&s.shape);
		if (s.members_count != 1 + ranks || rank_shape_rank(&s.shape, s.place) >= ranks)
			abort();
		free(cluster_pack_start(&s, &n));
	}
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_PROBE &&
		cluster_read_probe(m->probe, &p, NULL) == 0)
		free(cluster_pack_probe(&p, &n));
	if (m->what_case == THAW__NODE__V1__COORDINATOR_MESSAGE__WHAT_FORGET &&
		cluster_read_forget(m->forget, &a, NULL) == 0)
		free(cluster_pack_forget(a.model, a.digest, &n));
}

static void pull_message(const Thaw__Node__V1__PullRequest *m)
{
	struct cluster_pull p;
	size_t n;
	if (cluster_read_pull(m, &p, NULL) < 0)
		return;
	if (p.skip_bytes >= p.runs.run_bytes * p.runs.runs)
		abort();
	free(cluster_pack_pull(&p, &n));
}

static void record(const char *text, size_t bytes)
{
	_cleanup_free_ struct cluster_record *r = malloc(sizeof *r), *again = malloc(sizeof *again);
	if (cluster_record_parse(text, bytes, r, NULL) < 0)
		return;
	_cleanup_free_ char *printed = cluster_record_print(r);
	if (cluster_record_parse(printed, strlen(printed), again, NULL) < 0 || memcmp(r, again, sizeof *r) != 0)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct proto_budget budget;
	ProtobufCMessage *m;
	struct cluster_identity i;
	if (!bytes)
		return 0;
	const ProtobufCMessageDescriptor *const kinds[] = {
		&thaw__node__v1__node_message__descriptor, &thaw__node__v1__coordinator_message__descriptor};
	cluster_identity_parse((const char *)data + 1, bytes - 1, &i);
	if (data[0] == '{') {
		record((const char *)data, bytes);
		return 0;
	}
	const ProtobufCMessageDescriptor *kind = data[0] == 'p'   ? &thaw__node__v1__pull_request__descriptor
						 : data[0] == 'c' ? &thaw__node__v1__pull_chunk__descriptor
								  : kinds[data[0] & 1];
	if (proto_unpack(kind, data + 1, bytes - 1, &budget, &m, NULL, NULL) < 0)
		return 0;
	if (data[0] == 'p')
		pull_message((const Thaw__Node__V1__PullRequest *)m);
	else if (data[0] == 'c')
		cluster_check_chunk((const Thaw__Node__V1__PullChunk *)m, bytes, NULL);
	else if (kind == kinds[0])
		node_message((const Thaw__Node__V1__NodeMessage *)m);
	else
		coordinator_message((const Thaw__Node__V1__CoordinatorMessage *)m);
	protobuf_c_message_free_unpacked(m, &budget.allocator);
	return 0;
}
