// SPDX-License-Identifier: Apache-2.0
// What the ranks that share layers do together: sums in member order, agreement about a pass, and what member 0
// collects.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "shard/rank/internal.h"

#define TAG_TAIL 1u
#define TAG_LOGITS 2u

/* ---- memory ---- */

static bool collects(const struct program *p, const struct pack_slice *s)
{
	return s->tp_size > 1 && s->tp_rank == 0 && s->first_layer + s->layers == p->config.layers;
}

uint64_t rank_tensor_bytes(const struct program *p, const struct rank_config *c)
{
	uint64_t bytes = 0;
	if (c->slice.tp_size > 1)
		bytes += p->config.width * sizeof(float) + c->batch_tokens * sizeof(uint32_t) + RANK_TAIL_BYTES;
	if (collects(p, &c->slice))
		bytes += (uint64_t)c->logits_rows * p->config.vocab * sizeof(float);
	return bytes;
}

int rank_tensor_create(struct rank *r)
{
	const struct rank_config *c = &r->config;
	if (c->slice.tp_size == 1)
		return 0;
	r->head = r->layout->cuts[r->program->steps[0].weight]; // of a tied embedding; that of a head of its own:
	for (uint32_t i = 0; i < r->program->steps_count; i++) {
		if (r->program->steps[i].out == r->program->logits && r->program->steps[i].op == PROGRAM_MATMUL)
			r->head = r->layout->cuts[r->program->steps[i].weight];
	}
	r->zeros = calloc(r->program->config.width, sizeof *r->zeros);
	r->embed_tokens = calloc(c->batch_tokens, sizeof *r->embed_tokens);
	r->tail = calloc(1, RANK_TAIL_BYTES);
	if (!r->zeros || !r->embed_tokens || !r->tail)
		return -ENOMEM;
	if (!collects(r->program, &c->slice))
		return 0;
	r->gathered = calloc((size_t)c->logits_rows * r->program->config.vocab, sizeof *r->gathered);
	r->logits_host = r->gathered;
	return r->gathered ? 0 : -ENOMEM;
}

int rank_join(struct rank *r, struct link_group *tensor, uint64_t patience_ns, struct base_error *e)
{
	const struct pack_slice *s = &r->config.slice;
	if (tensor->members != s->tp_size || tensor->me != s->tp_rank)
		return base_error_set(e, -EINVAL, "member %u of a group of %u computes part %u of %u", tensor->me,
			tensor->members, s->tp_rank, s->tp_size);
	if (!tensor->ops->capabilities.host_memory)
		return base_error_set(
			e, -EINVAL, "the link %s does not take host memory", tensor->ops->capabilities.name);
	r->tensor = tensor;
	r->patience_ns = patience_ns;
	return 0;
}

/* ---- together ---- */

static uint64_t deadline(const struct rank *r)
{
	return r->patience_ns ? base_clock_now_ns() + r->patience_ns : LINK_NO_DEADLINE;
}

static int ended(const struct rank *r, int status, const char *what, struct base_error *e)
{
	if (status)
		base_error_set(e, status, "part %u of %u: %s: %s", r->config.slice.tp_rank, r->config.slice.tp_size,
			what,
			status == -ECONNRESET ? "another part of these layers is gone" : strerrordesc_np(-status));
	return status;
}

int rank_tensor_sum(struct rank *r, float *x, size_t count, struct base_error *e)
{
	r->ops->wait(r->backend, r->ops->fence(r->backend));
	uint64_t begin = base_trace_begin(&r->trace);
	int status = r->tensor->ops->allreduce(r->tensor, x, count, deadline(r));
	base_trace_end(&r->trace, begin, BASE_TRACE_ALLREDUCE, BASE_TRACE_NO_PLACE, count * sizeof *x);
	return ended(r, status, "sum", e);
}

int rank_tensor_agree(struct rank *r, bool refuse, bool *ret_refuse, struct base_error *e)
{
	float refusals = refuse;
	uint64_t begin = base_trace_begin(&r->trace);
	int status = r->tensor->ops->allreduce(r->tensor, &refusals, 1, deadline(r));
	base_trace_end(&r->trace, begin, BASE_TRACE_ALLREDUCE, BASE_TRACE_NO_PLACE, sizeof refusals);
	*ret_refuse = refusals > 0;
	return ended(r, status, "start of a pass", e);
}

/* The member's memory is used again by the next pass, and a request must end before it is forgotten. */
static int wait_end(struct rank *r, struct link_request *request)
{
	int status = r->tensor->ops->wait(r->tensor, request, deadline(r));
	if (status == -ETIMEDOUT) {
		r->tensor->ops->revoke(r->tensor);
		r->tensor->ops->wait(r->tensor, request, LINK_NO_DEADLINE);
	}
	return status;
}

static int send_to_first(struct rank *r, uint32_t tag, const void *data, size_t bytes)
{
	struct link_request request;
	uint64_t begin = base_trace_begin(&r->trace);
	r->tensor->ops->send(r->tensor, 0, tag, data, bytes, &request);
	int status = wait_end(r, &request);
	base_trace_end(&r->trace, begin, BASE_TRACE_SEND_PART, 0, bytes);
	return status;
}

static int receive(struct rank *r, uint32_t from, uint32_t tag, void *data, size_t room, size_t *ret_bytes)
{
	struct link_request request;
	uint64_t begin = base_trace_begin(&r->trace);
	r->tensor->ops->receive(r->tensor, from, tag, data, room, &request);
	int status = wait_end(r, &request);
	base_trace_end(&r->trace, begin, BASE_TRACE_RECEIVE_PART, from, request.bytes);
	*ret_bytes = request.bytes;
	return status;
}

static size_t encode_tail(const struct rank_tail *t, uint8_t *out)
{
	struct base_writer w;
	size_t length = strnlen(t->e.message, sizeof t->e.message);
	base_writer_init(&w, out, RANK_TAIL_BYTES);
	base_writer_u32(&w, (uint32_t)t->status);
	base_writer_u64(&w, t->total_ns);
	base_writer_u64(&w, t->stall_ns);
	base_writer_u64(&w, t->cold_bytes);
	base_writer_u32(&w, (uint32_t)length);
	base_writer_bytes(&w, t->e.message, length);
	return w.at;
}

static int decode_tail(const uint8_t *in, size_t bytes, struct rank_tail *ret_tail)
{
	struct base_reader b;
	struct rank_tail t = {0};
	base_reader_init(&b, in, bytes);
	t.status = (int)base_reader_u32(&b);
	t.total_ns = base_reader_u64(&b);
	t.stall_ns = base_reader_u64(&b);
	t.cold_bytes = base_reader_u64(&b);
	uint32_t length = base_reader_u32(&b);
	if (b.status || length >= sizeof t.e.message || length != base_reader_left(&b) || t.status > 0)
		return -EPROTO;
	base_reader_copy(&b, t.e.message, length);
	t.e.code = t.status;
	*ret_tail = t;
	return 0;
}

static void join_tail(struct rank_tail *all, const struct rank_tail *one)
{
	if (!all->status) {
		all->status = one->status;
		all->e = one->e;
	}
	all->total_ns = one->total_ns > all->total_ns ? one->total_ns : all->total_ns;
	all->stall_ns += one->stall_ns;
	all->cold_bytes += one->cold_bytes;
}

int rank_tensor_tails(struct rank *r, struct rank_tail *tail, struct base_error *e)
{
	int status = 0;
	if (r->tensor->me)
		status = send_to_first(r, TAG_TAIL, r->tail, encode_tail(tail, r->tail));
	for (uint32_t i = 1; i < r->tensor->members && !r->tensor->me && !status; i++) {
		struct rank_tail other = {0};
		size_t bytes = 0;
		status = receive(r, i, TAG_TAIL, r->tail, RANK_TAIL_BYTES, &bytes);
		if (!status)
			status = decode_tail(r->tail, bytes, &other);
		join_tail(tail, &other);
	}
	return ended(r, status, "end of a pass", e);
}

int rank_tensor_leave(struct rank *r, struct base_error *e)
{
	return ended(r, r->tensor->ops->flush(r->tensor, deadline(r)), "end of a pass", e);
}

// Row by row, so that each one lands where it belongs.
int rank_tensor_gather(struct rank *r, uint32_t rows, struct base_error *e)
{
	const float *own = r->values[r->program->logits];
	uint32_t vocab = r->program->config.vocab, members = r->tensor->members, first = r->head.first_row;
	int status = 0;
	r->ops->wait(r->backend, r->ops->fence(r->backend));
	for (uint32_t row = 0; row < rows && r->tensor->me && !status; row++)
		status = send_to_first(r, TAG_LOGITS, own + (size_t)row * r->head.rows, r->head.rows * sizeof(float));
	if (r->tensor->me)
		return ended(r, status, "logits", e);
	for (uint32_t row = 0; row < rows && !status; row++) {
		float *to = r->logits_host + (size_t)row * vocab;
		memcpy(to + first, own + (size_t)row * r->head.rows, r->head.rows * sizeof(float));
		uint32_t at = r->head.rows;
		for (uint32_t i = 1; i < members && !status; i++) {
			size_t bytes = 0;
			status = receive(r, i, TAG_LOGITS, to + at, (vocab - at) * sizeof(float), &bytes);
			at += (uint32_t)(bytes / sizeof(float));
		}
		if (!status && at != vocab)
			status = -EPROTO;
	}
	return ended(r, status, "logits", e);
}

/* ---- look-ups ---- */

// Another part's token stands for the row of one of this part meanwhile, so that all rows are read at once.
int rank_tensor_embed(struct rank *r, const uint32_t *tokens, uint32_t count, float *y, struct base_error *e)
{
	uint32_t width = r->program->config.width, stand_in = PROGRAM_NONE;
	for (uint32_t i = 0; i < count && stand_in == PROGRAM_NONE; i++) {
		if (tokens[i] - r->head.first_row < r->head.rows)
			stand_in = tokens[i] - r->head.first_row;
	}
	for (uint32_t i = 0; i < count; i++) {
		uint32_t own = tokens[i] - r->head.first_row;
		r->embed_tokens[i] = own < r->head.rows ? own : stand_in;
	}
	int status = stand_in == PROGRAM_NONE ? 0 : rank_rows_embed(r, r->embed_tokens, count, y, e);
	for (uint32_t i = 0; i < count; i++) {
		if (tokens[i] - r->head.first_row >= r->head.rows)
			r->ops->upload(r->backend, y + (size_t)i * width, r->zeros, width * sizeof(float));
	}
	return status;
}
