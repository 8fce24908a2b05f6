// SPDX-License-Identifier: Apache-2.0
// bench: a number of streams at once, each on a thread and a connection of its own.
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "daemon/ctl/ctl.h"
#include "proto/thaw/v1/inference.pb-c.h"

#define MAX_STREAMS 256u
#define MAX_TOKENS (1u << 20)
#define DEFAULT_TOKENS 64u
#define DEFAULT_PROMPT 16u

struct stream { // one thread
	struct ctl *ctl;
	pthread_t thread;
	uint32_t vocabulary, prompt_tokens, max_tokens, number;
	uint64_t started_ns;
	uint64_t *at_ns; // (max_tokens): when each token came
	uint32_t count;
	uint64_t read_bytes; // its share of what its passes read
	double achieved_ratio;
	char binding[24];
	int r;
	struct rpc_client_status status;
};

struct figures {
	double seconds, tokens_per_second, ttft_p50, ttft_p95, itl_mean, itl_p50, itl_p95, itl_p99, bytes_per_token,
		achieved;
	uint64_t tokens, read_bytes;
	const char *binding;
};

static void take_chunk(struct stream *s, const Thaw__V1__GenerateChunk *chunk)
{
	uint64_t now = base_clock_now_ns();
	for (size_t i = 0; i < chunk->n_outputs; i++)
		for (size_t t = 0; t < chunk->outputs[i]->n_token_ids && s->count < s->max_tokens; t++)
			s->at_ns[s->count++] = now;
	if (chunk->timing) {
		s->read_bytes = chunk->timing->nvme_read_bytes;
		s->achieved_ratio = chunk->timing->achieved_ratio;
		snprintf(s->binding, sizeof s->binding, "%s", chunk->timing->binding);
	}
}

static int read_stream(struct stream *s, struct rpc_client *client, const uint8_t *packed, size_t bytes)
{
	struct rpc_client_stream *stream;
	const uint8_t *data;
	size_t size;
	int r = rpc_client_stream_open(
		client, "/thaw.v1.Inference/GenerateStream", packed, bytes, s->ctl->options.timeout_ns, &stream);
	if (r < 0)
		return r;
	while ((r = rpc_client_stream_next(stream, &data, &size, &s->status)) == 1) {
		Thaw__V1__GenerateChunk *chunk = thaw__v1__generate_chunk__unpack(NULL, size, data);
		if (!chunk) {
			r = -EBADMSG;
			break;
		}
		take_chunk(s, chunk);
		thaw__v1__generate_chunk__free_unpacked(chunk, NULL);
	}
	rpc_client_stream_close(stream);
	return r;
}

static void *run_stream(void *context)
{
	struct stream *s = context;
	struct rpc_client *client = NULL;
	Thaw__V1__GenerateRequest request = THAW__V1__GENERATE_REQUEST__INIT;
	Thaw__V1__Prompt prompt = THAW__V1__PROMPT__INIT;
	Thaw__V1__TokenIds ids = THAW__V1__TOKEN_IDS__INIT;
	Thaw__V1__Stopping stopping = THAW__V1__STOPPING__INIT;
	Thaw__V1__ResponseOptions response = THAW__V1__RESPONSE_OPTIONS__INIT;
	_cleanup_free_ uint32_t *tokens = calloc(s->prompt_tokens, sizeof *tokens);
	s->r = -ENOMEM;
	if (!tokens)
		return NULL;
	// Different prompts, the same in every run.
	uint64_t state = s->number * UINT64_C(0x9e3779b97f4a7c15) + 1;
	for (uint32_t i = 0; i < s->prompt_tokens; i++) {
		state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		tokens[i] = (uint32_t)((state >> 33) % s->vocabulary);
	}
	ids.ids = tokens;
	ids.n_ids = s->prompt_tokens;
	prompt.source_case = THAW__V1__PROMPT__SOURCE_TOKEN_IDS;
	prompt.token_ids = &ids;
	stopping.max_new_tokens = s->max_tokens;
	stopping.ignore_eos = true;
	response.token_ids = true;
	response.omit_text = true;
	request.prompt = &prompt;
	request.stopping = &stopping;
	request.response = &response;
	if (s->ctl->options.model)
		request.model = (char *)s->ctl->options.model;
	size_t bytes = thaw__v1__generate_request__get_packed_size(&request);
	_cleanup_free_ uint8_t *packed = malloc(bytes);
	if (!packed || ctl_connect(s->ctl, &client) != CTL_OK)
		return NULL;
	thaw__v1__generate_request__pack(&request, packed);
	s->started_ns = base_clock_now_ns();
	s->r = read_stream(s, client, packed, bytes);
	rpc_client_destroy(client);
	return NULL;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

static double percentile(const double *sorted, size_t n, double p)
{
	return n ? sorted[(size_t)(p * (double)(n - 1) + 0.5)] : 0;
}

static int summarise(const struct stream *streams, uint32_t count, struct figures *f)
{
	uint64_t first = UINT64_MAX, last = 0;
	size_t gaps = 0;
	for (uint32_t i = 0; i < count; i++) {
		f->tokens += streams[i].count;
		f->read_bytes += streams[i].read_bytes;
	}
	_cleanup_free_ double *itl = calloc(f->tokens + 1, sizeof *itl), *ttft = calloc(count, sizeof *ttft);
	if (!itl || !ttft)
		return -ENOMEM;
	size_t answered = 0;
	for (uint32_t i = 0; i < count; i++) {
		const struct stream *s = &streams[i];
		if (s->started_ns && s->started_ns < first)
			first = s->started_ns;
		if (!s->count)
			continue;
		ttft[answered++] = (double)(s->at_ns[0] - s->started_ns) / 1e9;
		for (uint32_t t = 1; t < s->count; t++)
			itl[gaps++] = (double)(s->at_ns[t] - s->at_ns[t - 1]) / 1e9;
		if (s->at_ns[s->count - 1] > last)
			last = s->at_ns[s->count - 1];
		f->achieved += s->achieved_ratio;
		f->binding = s->binding;
	}
	qsort(itl, gaps, sizeof *itl, by_value);
	qsort(ttft, answered, sizeof *ttft, by_value);
	f->seconds = last > first ? (double)(last - first) / 1e9 : 0;
	f->tokens_per_second = f->seconds > 0 ? (double)f->tokens / f->seconds : 0;
	f->ttft_p50 = percentile(ttft, answered, 0.5);
	f->ttft_p95 = percentile(ttft, answered, 0.95);
	for (size_t i = 0; i < gaps; i++)
		f->itl_mean += itl[i] / (double)gaps;
	f->itl_p50 = percentile(itl, gaps, 0.5);
	f->itl_p95 = percentile(itl, gaps, 0.95);
	f->itl_p99 = percentile(itl, gaps, 0.99);
	f->bytes_per_token = f->tokens ? (double)f->read_bytes / (double)f->tokens : 0;
	f->achieved = answered ? f->achieved / (double)answered : 0;
	return 0;
}

static int print_figures(struct ctl *c, const struct figures *f, uint32_t streams, uint32_t prompt_tokens)
{
	char a[CTL_SIZE_BYTES], b[CTL_SIZE_BYTES], d[CTL_SIZE_BYTES], e[CTL_SIZE_BYTES], g[CTL_SIZE_BYTES],
		h[CTL_SIZE_BYTES];
	if (c->output == CTL_OUTPUT_JSON) {
		struct json_object *o = ctl_json_new();
		json_object_object_add(o, "streams", json_object_new_int64(streams));
		json_object_object_add(o, "prompt_tokens", json_object_new_int64(prompt_tokens));
		json_object_object_add(o, "generated_tokens", json_object_new_uint64(f->tokens));
		json_object_object_add(o, "seconds", ctl_json_real(f->seconds));
		json_object_object_add(o, "tokens_per_second", ctl_json_real(f->tokens_per_second));
		json_object_object_add(o, "ttft_p50_seconds", ctl_json_real(f->ttft_p50));
		json_object_object_add(o, "ttft_p95_seconds", ctl_json_real(f->ttft_p95));
		json_object_object_add(o, "itl_mean_seconds", ctl_json_real(f->itl_mean));
		json_object_object_add(o, "itl_p50_seconds", ctl_json_real(f->itl_p50));
		json_object_object_add(o, "itl_p95_seconds", ctl_json_real(f->itl_p95));
		json_object_object_add(o, "itl_p99_seconds", ctl_json_real(f->itl_p99));
		json_object_object_add(o, "nvme_read_bytes", json_object_new_uint64(f->read_bytes));
		json_object_object_add(o, "nvme_bytes_per_token", json_object_new_uint64((uint64_t)f->bytes_per_token));
		json_object_object_add(o, "achieved_ratio", ctl_json_real(f->achieved));
		json_object_object_add(o, "binding", json_object_new_string(f->binding ? f->binding : ""));
		return ctl_json_print(c, o);
	}
	fprintf(c->out, "streams %" PRIu32 ", prompts of %" PRIu32 " tokens, %" PRIu64 " tokens in %.2f s\n", streams,
		prompt_tokens, f->tokens, f->seconds);
	fprintf(c->out, "tokens/s %.2f\n", f->tokens_per_second);
	fprintf(c->out, "time to first token: p50 %s, p95 %s\n", ctl_seconds(f->ttft_p50, a),
		ctl_seconds(f->ttft_p95, b));
	fprintf(c->out, "between tokens: p50 %s, p95 %s, p99 %s\n", ctl_seconds(f->itl_p50, d),
		ctl_seconds(f->itl_p95, e), ctl_seconds(f->itl_p99, g));
	fprintf(c->out, "NVMe per token %s\n", ctl_size((uint64_t)f->bytes_per_token, h));
	fprintf(c->out, "achieved/bound %.3f, binding resource: %s\n", f->achieved,
		f->binding && f->binding[0] ? f->binding : "unknown");
	return CTL_OK;
}

static int run_streams(struct ctl *c, struct stream *streams, uint32_t count)
{
	uint32_t running = 0;
	int r = CTL_OK;
	for (; running < count; running++)
		if (pthread_create(&streams[running].thread, NULL, run_stream, &streams[running]) != 0)
			break;
	for (uint32_t i = 0; i < running; i++)
		pthread_join(streams[i].thread, NULL);
	if (running < count)
		return ctl_fail(c, CTL_ERROR, "only %" PRIu32 " threads could be started", running);
	for (uint32_t i = 0; i < count && r == CTL_OK; i++)
		if (streams[i].r < 0 || streams[i].status.code != 0)
			r = ctl_fail_status(c, streams[i].r, &streams[i].status);
	return r;
}

static int measure(struct ctl *c, struct stream *streams, uint32_t count)
{
	struct figures f = {0};
	int r = run_streams(c, streams, count);
	if (r != CTL_OK)
		return r;
	if (summarise(streams, count, &f) < 0)
		return ctl_fail(c, CTL_ERROR, "out of memory");
	return print_figures(c, &f, count, streams[0].prompt_tokens);
}

int ctl_verb_bench(struct ctl *c)
{
	uint32_t count = ctl_given(c, "streams") ? c->options.streams : 1;
	uint32_t tokens = ctl_given(c, "max-tokens") ? c->options.max_tokens : DEFAULT_TOKENS;
	uint32_t prompt = ctl_given(c, "prompt-tokens") ? c->options.prompt_tokens : DEFAULT_PROMPT;
	if (count < 1 || count > MAX_STREAMS || tokens < 1 || tokens > MAX_TOKENS || prompt < 1 || prompt > MAX_TOKENS)
		return ctl_fail(c, CTL_USAGE, "bench: 1 to %u streams, 1 to %u tokens", MAX_STREAMS, MAX_TOKENS);
	Thaw__V1__GetModelRequest request = THAW__V1__GET_MODEL_REQUEST__INIT;
	Thaw__V1__Model *model = NULL;
	if (c->options.model)
		request.name = (char *)c->options.model;
	int r = ctl_call(c, "Inference/GetModel", &request, &thaw__v1__model__descriptor, &model);
	if (r != CTL_OK)
		return r;
	struct stream *streams = calloc(count, sizeof *streams);
	r = streams && model->vocabulary_tokens ? CTL_OK : ctl_fail(c, CTL_DEGRADED, "%s is not loaded", model->name);
	for (uint32_t i = 0; streams && i < count; i++) {
		streams[i] = (struct stream){.ctl = c,
			.vocabulary = model->vocabulary_tokens,
			.prompt_tokens = prompt,
			.max_tokens = tokens,
			.number = i,
			.at_ns = calloc(tokens, sizeof(uint64_t))};
		if (!streams[i].at_ns && r == CTL_OK)
			r = ctl_fail(c, CTL_ERROR, "out of memory");
	}
	if (r == CTL_OK)
		r = measure(c, streams, count);
	for (uint32_t i = 0; streams && i < count; i++)
		free(streams[i].at_ns);
	free(streams);
	ctl_free(model);
	return r;
}
