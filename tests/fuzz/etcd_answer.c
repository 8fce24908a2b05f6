// SPDX-License-Identifier: Apache-2.0
/* What etcd answers. The first byte says to what: r (Range, for the coordinator's key), s (Range, for the record), p
 * (Put), t (Txn), g (LeaseGrant), k (LeaseKeepAlive), l (LeaseTimeToLive), v (LeaseRevoke), w (Watch). It is refused
 * with a message, or what comes of it is within what the rest of thaw counts on. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/cluster/etcd/answer.h"

#define LEASE                                                                                                          \
	0x349ba206a525290fll // of the corpus, which etcd 3.4.23 has answered but for grant-refused and watch-canceled
#define COORDINATOR "/thaw/lab/coordinator"
#define RECORD "/thaw/lab/record"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool what)
{
	if (!what)
		abort();
}

static void check_text(const char *text, size_t room)
{
	size_t n = strnlen(text, room);
	require(n < room);
	for (size_t i = 0; i < n; i++)
		require(text[i] > ' ' && text[i] <= '~');
}

static void check_holder(const struct etcd_value *v)
{
	struct cluster_claim claim = {0};
	etcd_answer_holder(v, &claim);
	require(claim.holder[0]);
	check_text(claim.holder, sizeof claim.holder);
	check_text(claim.address, sizeof claim.address);
}

static void check_record(const struct etcd_value *v)
{
	struct base_error e = {0};
	_cleanup_free_ struct cluster_record *r = malloc(sizeof *r);
	if (cluster_record_parse(v->data, v->bytes, r, &e) < 0) {
		require(e.message[0]);
		return;
	}
	_cleanup_free_ char *printed = cluster_record_print(r);
	require(printed && strlen(printed) <= ETCD_MAX_VALUE_BYTES);
}

static int range(const uint8_t *data, size_t bytes, const char *key, struct base_error *e)
{
	struct etcd_value v = {0};
	int64_t revision = 0;
	int status = etcd_answer_range(data, bytes, key, &v, &revision, e);
	if (status)
		return status;
	require(v.bytes <= ETCD_MAX_VALUE_BYTES && v.data[v.bytes] == '\0');
	if (strcmp(key, COORDINATOR) == 0)
		check_holder(&v);
	else
		check_record(&v);
	free(v.data);
	return 0;
}

static int ttl(int status, uint64_t ns)
{
	require(status || (ns >= BASE_NS_PER_SECOND && ns <= ETCD_MAX_TTL_S * BASE_NS_PER_SECOND));
	return status;
}

static int answer(uint8_t kind, const uint8_t *data, size_t bytes, struct base_error *e)
{
	int64_t number = 0;
	uint64_t ns = 0;
	bool succeeded;
	struct etcd_watched w;
	int status;
	switch (kind) {
	case 'r':
		return range(data, bytes, COORDINATOR, e);
	case 's':
		return range(data, bytes, RECORD, e);
	case 'p':
		return etcd_answer_put(data, bytes, e);
	case 't':
		return etcd_answer_txn(data, bytes, &succeeded, &number, e);
	case 'g':
		status = etcd_answer_grant(data, bytes, &number, &ns, e);
		require(status || number);
		return ttl(status, ns);
	case 'k':
		status = etcd_answer_keep(data, bytes, LEASE, &ns, e);
		return ttl(status, ns);
	case 'l':
		status = etcd_answer_length(data, bytes, LEASE, &ns, e);
		return ttl(status, ns);
	case 'v':
		return etcd_answer_revoke(data, bytes, e);
	case 'w':
		return etcd_answer_watch(data, bytes, &w, e);
	default:
		return 0;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct base_error e = {0};
	int status = bytes ? answer(data[0], data + 1, bytes - 1, &e) : 0;
	require(!status || (e.code == status && e.message[0]));
	require(status == 0 || status == -EBADMSG || status == -ENOENT || status == -EREMOTEIO || status == -ENOMEM);
	return 0;
}
