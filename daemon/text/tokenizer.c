// SPDX-License-Identifier: Apache-2.0
#include "daemon/text/tokenizer.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "daemon/text/bpe.h"
#include "daemon/text/split.h"
#include "base/utf8.h"
#include "daemon/text/vocabulary.h"

#define ALPHABET 324 // GPT-2 shows 188 bytes as themselves and the other 68 as U+0100 to U+0143

struct text_tokenizer {
	enum text_split split;
	bool ignore_merges, add_bos, add_space_prefix;
	uint32_t vocab, bos, eos;
	char *blob; // bytes of all tokens, one after the other
	uint32_t *offsets; // (vocab + 1) into blob
	uint8_t *types; // (vocab)
	uint32_t *stops, stops_count;
	uint32_t *specials, specials_count; // tokens that are found in text as a whole, sorted by their bytes
	bool special_starts[256];
	struct text_bpe bpe;
};

static const char *const well_known_stops[] = {
	"<|im_end|>",
	"<|eot_id|>",
	"<|eom_id|>",
	"<|endoftext|>",
	"<|end_of_text|>",
	"<|end|>",
	"</s>",
	"<end_of_turn>",
	"<|return|>",
	"<EOT>",
	"[EOT]",
	"<end_of_utterance>",
};

// (ALPHABET) code point -> byte, -1 where none
static void alphabet_init(int16_t *byte_of)
{
	memset(byte_of, 0xff, ALPHABET * sizeof *byte_of);
	int16_t hidden = 256;
	for (int16_t b = 0; b < 256; b++) {
		bool shown = (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
		byte_of[shown ? b : hidden++] = b;
	}
}

// One or two bytes of UTF-8 are all that the alphabet needs. Returns the byte, -1 if this is no character of it.
static int alphabet_read(const int16_t *byte_of, const char *text, size_t bytes, size_t *ret_used)
{
	const uint8_t *p = (const uint8_t *)text;
	enum base_utf8 kind;
	*ret_used = base_utf8_sequence(p, bytes, &kind);
	if (kind != BASE_UTF8_VALID || *ret_used > 2)
		return -1;
	uint32_t point = *ret_used == 1 ? p[0] : (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
	return point < ALPHABET ? byte_of[point] : -1;
}

// To raw bytes (no more than the text has). Characters outside of the alphabet stay as they are, and *ret_exact is
// false.
static size_t alphabet_decode(const int16_t *byte_of, struct format_gguf_string s, char *out, bool *ret_exact)
{
	size_t n = 0, used;
	*ret_exact = true;
	for (size_t at = 0; at < s.bytes; at += used) {
		int byte = alphabet_read(byte_of, s.data + at, s.bytes - at, &used);
		if (byte >= 0) {
			out[n++] = (char)byte;
		} else {
			*ret_exact = false;
			memcpy(out + n, s.data + at, used);
			n += used;
		}
	}
	return n;
}

static int byte_token(struct format_gguf_string s) // "<0x0A>" -> 10, or -1
{
	static const char digits[] = "0123456789ABCDEF";
	if (s.bytes != 6 || memcmp(s.data, "<0x", 3) != 0 || s.data[5] != '>' || !s.data[3] || !s.data[4])
		return -1;
	const char *high = strchr(digits, s.data[3]), *low = strchr(digits, s.data[4]);
	return high && low ? (int)(high - digits) << 4 | (int)(low - digits) : -1;
}

static bool found_whole(uint8_t type)
{
	return type == TEXT_TOKEN_CONTROL || type == TEXT_TOKEN_UNKNOWN || type == TEXT_TOKEN_USER_DEFINED;
}

static int add_tokens(
	struct text_tokenizer *t, const struct text_vocabulary *v, const int16_t *byte_of, struct base_error *e)
{
	uint32_t at = 0;
	for (uint32_t i = 0; i < v->tokens_count; i++) {
		uint8_t type = t->types[i];
		bool exact = true;
		size_t n = v->tokens[i].bytes;
		t->offsets[i] = at;
		if (found_whole(type)) {
			if (n > TEXT_MAX_SPECIAL_BYTES)
				return base_error_set(e, -EINVAL,
					"tokenizer.ggml.tokens: special token %u has %zu bytes; at most %u are "
					"supported",
					i, n, TEXT_MAX_SPECIAL_BYTES);
			memcpy(t->blob + at, v->tokens[i].data, n);
		} else if (type == TEXT_TOKEN_BYTE && byte_token(v->tokens[i]) >= 0) {
			t->blob[at] = (char)byte_token(v->tokens[i]);
			n = 1;
		} else {
			n = alphabet_decode(byte_of, v->tokens[i], t->blob + at, &exact);
		}
		at += (uint32_t)n;
		t->offsets[i + 1] = at;
		// Text reaches a normal token by merging; control tokens must not be reached in this way.
		if (!exact || n == 0 || found_whole(type) || type == TEXT_TOKEN_BYTE)
			continue;
		uint32_t other;
		if (text_bpe_add_token(&t->bpe, i, &other) < 0)
			return base_error_set(
				e, -EINVAL, "tokenizer.ggml.tokens: tokens %u and %u have the same bytes", other, i);
	}
	return 0;
}

// After all normal tokens: user-defined ones whose bytes no normal token has, and <0xXX> for bytes without a token.
static void add_leftovers(struct text_tokenizer *t)
{
	for (uint32_t i = 0; i < t->vocab; i++) {
		uint32_t other, n = t->offsets[i + 1] - t->offsets[i];
		if (n > 0 && (t->types[i] == TEXT_TOKEN_USER_DEFINED || (t->types[i] == TEXT_TOKEN_BYTE && n == 1)))
			text_bpe_add_token(&t->bpe, i, &other);
	}
}

static int add_merges(
	struct text_tokenizer *t, const struct text_vocabulary *v, const int16_t *byte_of, struct base_error *e)
{
	_cleanup_free_ char *joined = malloc(2 * TEXT_MAX_TOKEN_BYTES);
	if (!joined)
		return -ENOMEM;
	for (uint32_t i = 0; i < v->merges_count; i++) {
		struct format_gguf_string m = v->merges[i];
		// A space cannot be part of a token in this alphabet, except the malformed one at the very start.
		const char *gap = m.bytes > 2 ? memchr(m.data + 1, ' ', m.bytes - 1) : NULL;
		if (!gap || m.bytes > 2 * TEXT_MAX_TOKEN_BYTES)
			return base_error_set(e, -EINVAL, "tokenizer.ggml.merges: merge %u is not \"left right\"", i);
		struct format_gguf_string left = {m.data, (size_t)(gap - m.data)};
		struct format_gguf_string right = {gap + 1, m.bytes - left.bytes - 1};
		bool left_exact, right_exact;
		size_t a = alphabet_decode(byte_of, left, joined, &left_exact);
		size_t b = alphabet_decode(byte_of, right, joined + a, &right_exact);
		uint32_t l = text_bpe_find(&t->bpe, joined, a), r = text_bpe_find(&t->bpe, joined + a, b);
		uint32_t result = text_bpe_find(&t->bpe, joined, a + b);
		if (!left_exact || !right_exact || l == TEXT_BPE_NONE || r == TEXT_BPE_NONE || result == TEXT_BPE_NONE)
			return base_error_set(e, -EINVAL,
				"tokenizer.ggml.merges: merge %u joins or makes a token that tokenizer.ggml.tokens "
				"lacks",
				i);
		text_bpe_add_merge(&t->bpe, l, r, result);
	}
	return 0;
}

static int compare_bytes(const struct text_tokenizer *t, uint32_t a, uint32_t b)
{
	uint32_t na = t->offsets[a + 1] - t->offsets[a], nb = t->offsets[b + 1] - t->offsets[b];
	int r = memcmp(t->blob + t->offsets[a], t->blob + t->offsets[b], na < nb ? na : nb);
	if (r == 0 && na != nb)
		r = na < nb ? -1 : 1;
	return r ? r : (a < b ? -1 : a > b);
}

static int compare_specials(const void *a, const void *b, void *tokenizer)
{
	return compare_bytes(tokenizer, *(const uint32_t *)a, *(const uint32_t *)b);
}

static int add_specials(struct text_tokenizer *t)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < t->vocab; i++)
		count += found_whole(t->types[i]);
	t->specials = calloc(count ? count : 1, sizeof *t->specials);
	if (!t->specials)
		return -ENOMEM;
	for (uint32_t i = 0; i < t->vocab; i++) {
		if (!found_whole(t->types[i]) || t->offsets[i] == t->offsets[i + 1])
			continue;
		t->specials[t->specials_count++] = i;
		t->special_starts[(uint8_t)t->blob[t->offsets[i]]] = true;
	}
	qsort_r(t->specials, t->specials_count, sizeof *t->specials, compare_specials, t);
	return 0;
}

static bool is_well_known_stop(const char *text, size_t bytes)
{
	for (size_t i = 0; i < base_array_size(well_known_stops); i++) {
		if (strlen(well_known_stops[i]) == bytes && memcmp(well_known_stops[i], text, bytes) == 0)
			return true;
	}
	return false;
}

static int add_stops(struct text_tokenizer *t, const struct text_vocabulary *v)
{
	t->stops = calloc((size_t)t->specials_count + 3, sizeof *t->stops);
	if (!t->stops)
		return -ENOMEM;
	const uint32_t named[] = {v->eos, v->eot, v->eom};
	for (size_t i = 0; i < base_array_size(named); i++) {
		if (named[i] != TEXT_NO_TOKEN && !text_tokenizer_is_stop(t, named[i]))
			t->stops[t->stops_count++] = named[i];
	}
	for (uint32_t i = 0; i < t->specials_count; i++) {
		uint32_t s = t->specials[i];
		if (is_well_known_stop(t->blob + t->offsets[s], t->offsets[s + 1] - t->offsets[s]) &&
			!text_tokenizer_is_stop(t, s))
			t->stops[t->stops_count++] = s;
	}
	return 0;
}

static int check_id(const char *key, uint32_t id, uint32_t vocab, struct base_error *e)
{
	if (id != TEXT_NO_TOKEN && id >= vocab)
		return base_error_set(e, -EINVAL, "%s is %u, but there are only %u tokens", key, id, vocab);
	return 0;
}

static bool equals(struct format_gguf_string s, const char *text)
{
	return s.bytes == strlen(text) && memcmp(s.data, text, s.bytes) == 0;
}

int text_vocabulary_check(const struct text_vocabulary *v, struct base_error *e)
{
	enum text_split split;
	if (!equals(v->model, "gpt2"))
		return base_error_set(e, -EINVAL,
			"tokenizer.ggml.model \"%.*s\" is not supported: this build knows \"gpt2\" (byte-level BPE)",
			(int)(v->model.bytes < 64 ? v->model.bytes : 64), v->model.data);
	if (v->pre.bytes == 0)
		return base_error_set(e, -EINVAL, "tokenizer.ggml.pre is missing: it says how text is cut into words");
	if (text_split_find(v->pre.data, v->pre.bytes, &split) < 0)
		return base_error_set(e, -EINVAL,
			"tokenizer.ggml.pre \"%.*s\" is not supported: this build knows gpt-2, smollm, llama-bpe and "
			"qwen2",
			(int)(v->pre.bytes < 64 ? v->pre.bytes : 64), v->pre.data);
	return 0;
}

static int check_counts(const struct text_vocabulary *v, struct base_error *e)
{
	if (v->tokens_count == 0 || v->tokens_count > TEXT_MAX_VOCABULARY)
		return base_error_set(e, -EINVAL, "tokenizer.ggml.tokens has %u entries; 1 to %u are supported",
			v->tokens_count, TEXT_MAX_VOCABULARY);
	if (v->merges_count > TEXT_MAX_MERGES)
		return base_error_set(e, -EINVAL, "tokenizer.ggml.merges has %u entries; at most %u are supported",
			v->merges_count, TEXT_MAX_MERGES);
	int r = check_id("tokenizer.ggml.bos_token_id", v->bos, v->tokens_count, e);
	if (r == 0)
		r = check_id("tokenizer.ggml.eos_token_id", v->eos, v->tokens_count, e);
	if (r == 0)
		r = check_id("tokenizer.ggml.eot_token_id", v->eot, v->tokens_count, e);
	return r < 0 ? r : check_id("tokenizer.ggml.eom_token_id", v->eom, v->tokens_count, e);
}

static int allocate(struct text_tokenizer *t, const struct text_vocabulary *v, struct base_error *e)
{
	uint64_t blob_bytes = 1;
	for (uint32_t i = 0; i < v->tokens_count; i++) {
		if (v->tokens[i].bytes > TEXT_MAX_TOKEN_BYTES)
			return base_error_set(e, -EINVAL,
				"tokenizer.ggml.tokens: token %u has %zu bytes; at most %u are supported", i,
				v->tokens[i].bytes, TEXT_MAX_TOKEN_BYTES);
		blob_bytes += v->tokens[i].bytes;
	}
	if (blob_bytes > UINT32_MAX)
		return base_error_set(e, -EINVAL, "tokenizer.ggml.tokens: more than 4 GiB of text");
	t->vocab = v->tokens_count;
	t->blob = malloc(blob_bytes);
	t->offsets = calloc((size_t)t->vocab + 1, sizeof *t->offsets);
	t->types = malloc(t->vocab);
	if (!t->blob || !t->offsets || !t->types)
		return -ENOMEM;
	for (uint32_t i = 0; i < t->vocab; i++) {
		uint32_t type = v->types ? v->types[i] : TEXT_TOKEN_NORMAL;
		if (type >= TEXT_TOKEN_TYPES)
			return base_error_set(
				e, -EINVAL, "tokenizer.ggml.token_type: token %u has the unknown type %u", i, type);
		t->types[i] = (uint8_t)type;
	}
	return text_bpe_init(&t->bpe, t->blob, t->offsets, v->tokens_count, v->merges_count);
}

static int fill(struct text_tokenizer *t, const struct text_vocabulary *v, struct base_error *e)
{
	int16_t byte_of[ALPHABET];
	alphabet_init(byte_of);
	int r = text_vocabulary_check(v, e);
	if (r == 0)
		r = check_counts(v, e);
	if (r == 0)
		r = text_split_find(v->pre.data, v->pre.bytes, &t->split);
	if (r < 0)
		return r;
	// Llama 3's files rely on both: whole words are looked up before merging, and the prompt begins with BOS.
	t->ignore_merges = t->split == TEXT_SPLIT_LLAMA_BPE;
	t->add_bos = v->add_bos >= 0 ? v->add_bos > 0 : t->split == TEXT_SPLIT_LLAMA_BPE;
	t->add_space_prefix = v->add_space_prefix;
	t->bos = v->bos;
	t->eos = v->eos;
	if (t->add_bos && t->bos == TEXT_NO_TOKEN)
		return base_error_set(
			e, -EINVAL, "tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing");
	r = allocate(t, v, e);
	if (r == 0)
		r = add_tokens(t, v, byte_of, e);
	if (r < 0)
		return r;
	add_leftovers(t);
	r = add_merges(t, v, byte_of, e);
	if (r == 0)
		r = add_specials(t);
	return r < 0 ? r : add_stops(t, v);
}

int text_tokenizer_build(const struct text_vocabulary *v, struct text_tokenizer **ret_tokenizer, struct base_error *e)
{
	struct text_tokenizer *t = calloc(1, sizeof *t);
	int r = t ? fill(t, v, e) : -ENOMEM;
	if (r < 0) {
		text_tokenizer_destroy(t);
		return r == -ENOMEM ? base_error_set(e, r, "tokenizer: out of memory") : r;
	}
	*ret_tokenizer = t;
	return 0;
}

void text_tokenizer_destroy(struct text_tokenizer *t)
{
	if (!t)
		return;
	text_bpe_finish(&t->bpe);
	free(t->blob);
	free(t->offsets);
	free(t->types);
	free(t->stops);
	free(t->specials);
	free(t);
}

uint32_t text_tokenizer_vocab(const struct text_tokenizer *t)
{
	return t->vocab;
}

uint32_t text_tokenizer_bos(const struct text_tokenizer *t)
{
	return t->bos;
}

uint32_t text_tokenizer_eos(const struct text_tokenizer *t)
{
	return t->eos;
}

bool text_tokenizer_add_bos(const struct text_tokenizer *t)
{
	return t->add_bos;
}

bool text_tokenizer_is_stop(const struct text_tokenizer *t, uint32_t token)
{
	for (uint32_t i = 0; i < t->stops_count; i++) {
		if (t->stops[i] == token)
			return true;
	}
	return false;
}

const uint32_t *text_tokenizer_stops(const struct text_tokenizer *t, uint32_t *ret_count)
{
	*ret_count = t->stops_count;
	return t->stops;
}

const char *text_tokenizer_piece(const struct text_tokenizer *t, uint32_t token, bool special, size_t *ret_bytes)
{
	*ret_bytes = 0;
	if (token >= t->vocab)
		return "";
	bool hidden = t->types[token] == TEXT_TOKEN_CONTROL || t->types[token] == TEXT_TOKEN_UNKNOWN;
	if (!hidden || special)
		*ret_bytes = t->offsets[token + 1] - t->offsets[token];
	return t->blob + t->offsets[token];
}

// The longest special token at the start of the text, or TEXT_NO_TOKEN: a walk down the sorted list, one byte at a
// time.
static uint32_t special_at(const struct text_tokenizer *t, const char *text, size_t bytes, bool parse_special)
{
	uint32_t low = 0, high = t->specials_count, found = TEXT_NO_TOKEN;
	for (size_t depth = 0; low < high; depth++) {
		uint32_t first = t->specials[low];
		while (t->offsets[first + 1] - t->offsets[first] == depth) {
			if ((parse_special || t->types[first] == TEXT_TOKEN_USER_DEFINED) &&
				(found == TEXT_NO_TOKEN || t->offsets[found + 1] - t->offsets[found] < depth))
				found = first;
			if (++low == high)
				return found;
			first = t->specials[low];
		}
		if (depth == bytes)
			break;
		uint8_t byte = (uint8_t)text[depth];
		uint32_t bounds[2];
		for (unsigned side = 0; side < 2; side++) { // first entry with >= byte, then first with > byte
			uint32_t a = low, b = high;
			while (a < b) {
				uint32_t middle = a + (b - a) / 2;
				if ((uint8_t)t->blob[t->offsets[t->specials[middle]] + depth] < byte + side)
					a = middle + 1;
				else
					b = middle;
			}
			bounds[side] = a;
		}
		low = bounds[0];
		high = bounds[1];
	}
	return found;
}

static int encode_raw(const struct text_tokenizer *t, const char *text, size_t bytes, struct text_bpe_work *w)
{
	for (size_t at = 0, n; at < bytes; at += n) {
		n = text_split_next(t->split, text + at, bytes - at);
		uint32_t whole = t->ignore_merges ? text_bpe_find(&t->bpe, text + at, n) : TEXT_BPE_NONE;
		int r = whole != TEXT_BPE_NONE ? text_bpe_append(w, whole) : text_bpe_word(&t->bpe, text + at, n, w);
		if (r < 0)
			return r;
	}
	return 0;
}

static int encode_all(
	const struct text_tokenizer *t, const char *text, size_t bytes, bool parse_special, struct text_bpe_work *w)
{
	size_t raw = 0; // start of the text since the last special token
	for (size_t at = 0; at < bytes;) {
		uint32_t special = TEXT_NO_TOKEN;
		if (t->special_starts[(uint8_t)text[at]])
			special = special_at(t, text + at, bytes - at, parse_special);
		if (special == TEXT_NO_TOKEN) {
			at++;
			continue;
		}
		int r = encode_raw(t, text + raw, at - raw, w);
		if (r == 0)
			r = text_bpe_append(w, special);
		if (r < 0)
			return r;
		at += t->offsets[special + 1] - t->offsets[special];
		raw = at;
	}
	return encode_raw(t, text + raw, bytes - raw, w);
}

int text_tokenizer_encode(const struct text_tokenizer *t, const char *text, size_t bytes, bool parse_special,
	uint32_t **ret_tokens, size_t *ret_count, struct base_error *e)
{
	if (bytes > TEXT_MAX_INPUT_BYTES)
		return base_error_set(
			e, -E2BIG, "text has %zu bytes; at most %u are taken", bytes, TEXT_MAX_INPUT_BYTES);
	size_t good = base_utf8_prefix(text, bytes);
	if (good < bytes)
		return base_error_set(e, -EILSEQ, "text is not UTF-8 at byte %zu", good);
	_cleanup_free_ char *prefixed = NULL;
	if (t->add_space_prefix && bytes > 0 && text[0] != ' ') {
		prefixed = malloc(bytes + 1);
		if (!prefixed)
			return base_error_set(e, -ENOMEM, "text: out of memory");
		prefixed[0] = ' ';
		memcpy(prefixed + 1, text, bytes);
		text = prefixed;
		bytes++;
	}
	struct text_bpe_work w = {0};
	int r = encode_all(t, text, bytes, parse_special, &w);
	if (r == 0) {
		*ret_count = w.tokens_count;
		*ret_tokens = base_steal(w.tokens);
	} else {
		base_error_set(e, r, "text of %zu bytes: out of memory", bytes);
	}
	text_bpe_work_finish(&w);
	return r;
}
