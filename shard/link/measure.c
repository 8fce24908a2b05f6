// SPDX-License-Identifier: Apache-2.0
#include "shard/link/measure.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"

#define TAG 1u
#define TURN_BYTES 64u
#define LEAST_TURNS 8u // also over slow links; the first half of all is not counted
#define LEAST_BLOCKS 4u
#define WARM_NS 20000000ull
#define ROOM LINK_MEASURE_BLOCK_BYTES

enum { LAST, MORE }; // the first byte of a message

struct measuring {
	struct link_group *g;
	uint32_t peer;
	uint64_t deadline_ns;
	uint8_t *data; // (ROOM)
};

/* The request is the caller's: it ends before the caller returns, whatever happens. */
static int await(const struct measuring *m, struct link_request *r)
{
	int status = m->g->ops->wait(m->g, r, m->deadline_ns);
	if (status != -ETIMEDOUT)
		return status;
	m->g->ops->revoke(m->g);
	m->g->ops->wait(m->g, r, LINK_NO_DEADLINE);
	return status;
}

static int put(const struct measuring *m, size_t bytes)
{
	struct link_request r;
	m->g->ops->send(m->g, m->peer, TAG, m->data, bytes, &r);
	return await(m, &r);
}

/* -EPROTO: of another length. */
static int get(const struct measuring *m, size_t bytes)
{
	struct link_request r;
	m->g->ops->receive(m->g, m->peer, TAG, m->data, bytes, &r);
	int status = await(m, &r);
	return status ? status : r.bytes == bytes ? 0 : -EPROTO;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* ---- member 0 ---- */

static int time_turns(const struct measuring *m, double *ret_latency_ns)
{
	uint64_t ns[LINK_MEASURE_TURNS], start = base_clock_now_ns();
	uint32_t n = 0;
	int status = 0;
	for (bool last = false; !last && !status; n++) {
		uint64_t from = base_clock_now_ns();
		last = n + 1 == LINK_MEASURE_TURNS || (n + 1 >= LEAST_TURNS && from > start + LINK_MEASURE_TURNS_NS);
		m->data[0] = last ? LAST : MORE;
		status = put(m, TURN_BYTES);
		if (!status)
			status = get(m, TURN_BYTES);
		ns[n] = base_clock_now_ns() - from;
	}
	if (status)
		return status;
	uint32_t counted = n - n / 2;
	qsort(ns + n / 2, counted, sizeof ns[0], by_value);
	*ret_latency_ns = (double)ns[n / 2 + counted / 2] / 2;
	return 0;
}

static int send_blocks(const struct measuring *m)
{
	uint64_t start = base_clock_now_ns();
	int status = 0;
	bool last = false;
	for (uint32_t n = 1; !last && !status; n++) {
		last = n >= LEAST_BLOCKS && base_clock_now_ns() > start + LINK_MEASURE_NS;
		m->data[0] = last ? LAST : MORE;
		status = put(m, LINK_MEASURE_BLOCK_BYTES);
	}
	return status;
}

static int lead(const struct measuring *m, struct link_measured *ret)
{
	int status = time_turns(m, &ret->latency_ns);
	if (!status)
		status = send_blocks(m);
	if (!status)
		status = get(m, sizeof ret->bytes_per_s);
	if (status)
		return status;
	memcpy(&ret->bytes_per_s, m->data, sizeof ret->bytes_per_s);
	memcpy(m->data, ret, sizeof *ret);
	return put(m, sizeof *ret); // also: nobody closes before the other one has all
}

/* ---- member 1 ---- */

static int take_blocks(const struct measuring *m, double *ret_bytes_per_s)
{
	uint64_t first_ns = 0, from_ns = 0, now = 0;
	uint32_t blocks = 0, from = 0;
	do {
		int status = get(m, LINK_MEASURE_BLOCK_BYTES);
		if (status)
			return status;
		now = base_clock_now_ns();
		if (!blocks++)
			first_ns = now;
		if (!from && now >= first_ns + WARM_NS) {
			from = blocks;
			from_ns = now;
		}
	} while (m->data[0] != LAST);
	if (blocks < from + 2 || now <= from_ns) {
		from = 1;
		from_ns = first_ns;
	}
	*ret_bytes_per_s =
		now > from_ns ? (double)(blocks - from) * LINK_MEASURE_BLOCK_BYTES * 1e9 / (double)(now - from_ns) : 0;
	return 0;
}

static int follow(const struct measuring *m, struct link_measured *ret)
{
	int status = 0;
	double rate = 0;
	do {
		status = get(m, TURN_BYTES);
		uint8_t said = m->data[0];
		if (!status)
			status = put(m, TURN_BYTES);
		if (said == LAST)
			break;
	} while (!status);
	if (!status)
		status = take_blocks(m, &rate);
	memcpy(m->data, &rate, sizeof rate);
	if (!status)
		status = put(m, sizeof rate);
	if (!status)
		status = get(m, sizeof *ret);
	memcpy(ret, m->data, sizeof *ret);
	return status;
}

int link_measure(struct link_group *g, uint64_t deadline_ns, struct link_measured *ret_measured, struct base_error *e)
{
	_cleanup_free_ uint8_t *data = calloc(1, ROOM);
	struct link_measured v = {0};
	if (!data || g->members != 2)
		return base_error_set(
			e, data ? -EINVAL : -ENOMEM, "link: two members measure a link, with memory for a message");
	const struct measuring m = {.g = g, .peer = 1 - g->me, .deadline_ns = deadline_ns, .data = data};
	int status = g->me == 0 ? lead(&m, &v) : follow(&m, &v);
	if (!status && !(isfinite(v.latency_ns) && v.latency_ns > 0 && isfinite(v.bytes_per_s) && v.bytes_per_s > 0))
		status = -EPROTO;
	if (status)
		return base_error_set(e, status, "link: it cannot be measured: %s", strerrordesc_np(-status));
	*ret_measured = v;
	return 0;
}
