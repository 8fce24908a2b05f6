// SPDX-License-Identifier: Apache-2.0
#include "shard/rank/shape.h"

#include <errno.h>
#include <stdio.h>

int rank_shape_check(const struct rank_shape *s, uint32_t most)
{
	uint32_t ranks = 0;
	if (!s->stages || s->stages > RANK_MAX_RANKS)
		return -EINVAL;
	for (uint32_t i = 0; i < s->stages; i++) {
		if (!s->parts[i] || s->parts[i] > RANK_MAX_PARTS)
			return -EINVAL;
		ranks += s->parts[i];
	}
	return ranks > most || ranks > RANK_MAX_RANKS ? -EINVAL : 0;
}

int rank_shape_even(uint32_t stages, uint32_t parts, struct rank_shape *ret_shape)
{
	struct rank_shape s = {.stages = stages};
	if (stages > RANK_MAX_RANKS || parts > RANK_MAX_PARTS)
		return -EINVAL;
	for (uint32_t i = 0; i < stages; i++)
		s.parts[i] = (uint8_t)parts;
	if (rank_shape_check(&s, RANK_MAX_RANKS) < 0)
		return -EINVAL;
	*ret_shape = s;
	return 0;
}

static uint32_t first_of(const struct rank_shape *s, uint32_t stage)
{
	uint32_t first = 0;
	for (uint32_t i = 0; i < stage; i++)
		first += s->parts[i];
	return first;
}

uint32_t rank_shape_ranks(const struct rank_shape *s)
{
	return first_of(s, s->stages);
}

uint32_t rank_shape_rank(const struct rank_shape *s, struct rank_place place)
{
	return first_of(s, place.stage) + place.part;
}

struct rank_place rank_shape_place(const struct rank_shape *s, uint32_t rank)
{
	struct rank_place p = {.part = rank};
	while (p.stage + 1 < s->stages && p.part >= s->parts[p.stage])
		p.part -= s->parts[p.stage++];
	return p;
}

uint32_t rank_shape_answers(const struct rank_shape *s)
{
	return first_of(s, s->stages - 1);
}

uint32_t rank_shape_sender(const struct rank_shape *s, struct rank_place to)
{
	return first_of(s, to.stage - 1) + to.part % s->parts[to.stage - 1];
}

uint32_t rank_shape_receivers(const struct rank_shape *s, uint32_t rank, uint32_t ret_ranks[static RANK_MAX_PARTS])
{
	struct rank_place from = rank_shape_place(s, rank);
	uint32_t next = from.stage + 1, count = 0;
	for (uint32_t j = from.part; next < s->stages && j < s->parts[next]; j += s->parts[from.stage])
		ret_ranks[count++] = rank_shape_rank(s, (struct rank_place){next, j});
	return count;
}

const char *rank_shape_print(const struct rank_shape *s, char out[static RANK_SHAPE_TEXT_BYTES])
{
	size_t at = 0;
	out[0] = '\0';
	for (uint32_t i = 0; i < s->stages && at < RANK_SHAPE_TEXT_BYTES; i++)
		at += (size_t)snprintf(out + at, RANK_SHAPE_TEXT_BYTES - at, "%s%u", i ? "," : "", s->parts[i]);
	return out;
}

int rank_shape_parse(const char *text, struct rank_shape *ret_shape)
{
	struct rank_shape s = {0};
	for (const char *at = text;; at++) {
		uint32_t n = 0;
		if (*at < '1' || *at > '9' || s.stages == RANK_MAX_RANKS)
			return -EINVAL;
		for (; *at >= '0' && *at <= '9' && n <= RANK_MAX_PARTS; at++)
			n = n * 10 + (uint32_t)(*at - '0');
		if (n > RANK_MAX_PARTS)
			return -EINVAL;
		s.parts[s.stages++] = (uint8_t)n;
		if (*at == '\0')
			break;
		if (*at != ',')
			return -EINVAL;
	}
	if (rank_shape_check(&s, RANK_MAX_RANKS) < 0)
		return -EINVAL;
	*ret_shape = s;
	return 0;
}
