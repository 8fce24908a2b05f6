// SPDX-License-Identifier: Apache-2.0
#include <errno.h>
#include <stdio.h>

#include "base/clock.h"
#include "daemon/engine_internal.h"

#define RECENT_DECAY 0.97 // of the sums behind achieved_ratio, each pass

const double engine_bucket_seconds[ENGINE_BUCKETS] = {
	0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300};

const char *engine_binding_name(enum engine_binding b)
{
	static const char *const names[] = {"disk", "memory", "compute"};
	return names[b];
}

double engine_stats_bound(const struct engine *e, uint32_t positions, enum engine_binding *ret_binding)
{
	const double parts[] = {e->config.bound_pass_ns_disk, e->config.bound_pass_ns_memory,
		e->config.bound_token_ns_compute * positions};
	enum engine_binding most = ENGINE_BINDING_DISK;
	for (int i = 1; i < 3; i++) {
		if (parts[i] > parts[most])
			most = (enum engine_binding)i;
	}
	*ret_binding = most;
	return parts[most];
}

static void count(struct engine_histogram *h, double value, const double *bounds)
{
	uint32_t i = 0;
	while (i < ENGINE_BUCKETS && value > (bounds ? bounds[i] : (double)(1u << i)))
		i++;
	h->buckets[i]++;
	h->count++;
	h->sum += value;
}

static void count_seconds(struct engine *e, struct engine_histogram *h, uint64_t ns)
{
	pthread_mutex_lock(&e->lock);
	count(h, (double)ns / 1e9, engine_bucket_seconds);
	pthread_mutex_unlock(&e->lock);
}

void engine_stats_first_token(struct engine *e, const struct engine_stream *s)
{
	uint64_t admitted = s->job->admitted_ns;
	count_seconds(e, &e->histograms.time_to_first_token, s->first_token_ns - s->submitted_ns);
	count_seconds(e, &e->histograms.queue, admitted > s->submitted_ns ? admitted - s->submitted_ns : 0);
}

void engine_stats_token(struct engine *e, uint64_t gap_ns)
{
	count_seconds(e, &e->histograms.inter_token, gap_ns);
}

void engine_stats_ended(struct engine *e, struct engine_stream *s, int status)
{
	uint64_t now = base_clock_now_ns();
	pthread_mutex_lock(&e->lock);
	count(&e->histograms.duration, (double)(now - s->submitted_ns) / 1e9, engine_bucket_seconds);
	e->load.requests_total[status ? REQUEST_FINISH_ABORTED : s->finish]++;
	if (status && status != -ECANCELED && status != -ETIME)
		e->load.failed_total++;
	pthread_mutex_unlock(&e->lock);
}

void engine_stats_pass(
	struct engine *e, uint32_t positions, uint32_t generated, uint32_t prompt, double bound_ns, double pass_ns)
{
	uint64_t wall = base_clock_wall_ns(), second = base_clock_now_ns() / BASE_NS_PER_SECOND;
	enum engine_binding binding;
	engine_stats_bound(e, positions, &binding);
	e->recent_bound_ns = e->recent_bound_ns * RECENT_DECAY + bound_ns;
	e->recent_pass_ns = e->recent_pass_ns * RECENT_DECAY + pass_ns;
	pthread_mutex_lock(&e->lock);
	uint32_t slot = (uint32_t)(second % ENGINE_RATE_SLOTS);
	if (e->rate_second[slot] != second)
		e->rate[slot] = 0;
	e->rate_second[slot] = second;
	e->rate[slot] += generated;
	count(&e->histograms.batch_tokens, positions, NULL);
	e->load.prompt_tokens_total += prompt;
	e->load.generated_tokens_total += generated;
	e->load.last_pass_wall_ns = wall;
	double ratio = e->recent_pass_ns > 0 ? e->recent_bound_ns / e->recent_pass_ns : 0;
	e->load.achieved_ratio = ratio > 1 ? 1 : ratio;
	snprintf(e->load.binding, sizeof e->load.binding, "%s", bound_ns > 0 ? engine_binding_name(binding) : "");
	pthread_mutex_unlock(&e->lock);
}

void engine_stats_publish(struct engine *e)
{
	struct scheduler_counts c;
	scheduler_get_counts(e->scheduler, &c);
	uint64_t now = base_clock_now_ns();
	pthread_mutex_lock(&e->lock);
	e->load.last_turn_ns = now;
	e->load.epoch = e->epoch;
	e->load.restarts = e->starts ? e->starts - 1 : 0;
	e->load.running = c.running_jobs;
	e->load.waiting_tokens = c.waiting_tokens;
	e->load.kv_blocks = c.blocks;
	e->load.kv_blocks_used = c.blocks_used;
	e->load.preemptions_total = c.preemptions;
	pthread_mutex_unlock(&e->lock);
}

/* The seconds that are over, and the one under way as far as it got. */
static double rate(const struct engine *e)
{
	uint64_t now = base_clock_now_ns(), second = now / BASE_NS_PER_SECOND, tokens = 0, first = second;
	for (uint32_t i = 0; i < ENGINE_RATE_SLOTS; i++) {
		if (e->rate_second[i] + ENGINE_RATE_SLOTS <= second || !e->rate[i])
			continue;
		tokens += e->rate[i];
		first = e->rate_second[i] < first ? e->rate_second[i] : first;
	}
	double span = (double)(now - first * BASE_NS_PER_SECOND) / 1e9;
	return tokens ? (double)tokens / (span > 0.1 ? span : 0.1) : 0;
}

void engine_get_load(struct engine *e, struct engine_load *ret_load)
{
	pthread_mutex_lock(&e->lock);
	*ret_load = e->load;
	ret_load->waiting = e->waiting;
	ret_load->waiting_bytes = e->waiting_bytes;
	ret_load->tokens_per_second = rate(e);
	if (ret_load->state == ENGINE_READY && e->draining)
		ret_load->state = ENGINE_DRAINING;
	pthread_mutex_unlock(&e->lock);
}

void engine_get_histograms(struct engine *e, struct engine_histograms *ret_histograms)
{
	pthread_mutex_lock(&e->lock);
	*ret_histograms = e->histograms;
	pthread_mutex_unlock(&e->lock);
}
