#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

static int compare_added(const void *a, const void *b) {
    const struct tokenizer_added *x = a, *y = b;
    uint32_t n = x->len < y->len ? x->len : y->len;
    int order = memcmp(x->pattern, y->pattern, n);
    if (order != 0) return order;
    if (x->len != y->len) return x->len < y->len ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

void tokenizer_added_prepare(struct tokenizer_added_set *set) {
    memset(set->first, 0, sizeof set->first);
    if (set->n == 0) return;
    qsort(set->items, set->n, sizeof *set->items, compare_added);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < set->n; i++) {
        const struct tokenizer_added *item = &set->items[i];
        if (kept > 0 && set->items[kept - 1].len == item->len &&
            memcmp(set->items[kept - 1].pattern, item->pattern, item->len) == 0)
            continue;
        set->items[kept++] = *item;
    }
    set->n = kept;
    for (uint32_t i = 0; i < kept; i++) set->first[(uint8_t)set->items[i].pattern[0] + 1]++;
    for (int b = 0; b < 256; b++) set->first[b + 1] += set->first[b];
}

/* First item in [low, high) whose byte `depth` is at least `byte`; all are longer than depth. */
static uint32_t lower_bound(const struct tokenizer_added_set *set, uint32_t low, uint32_t high,
                            size_t depth, unsigned byte) {
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((uint8_t)set->items[middle].pattern[depth] < byte) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The longest item that s[0..n) starts with, or NULL. */
static const struct tokenizer_added *longest_at(const struct tokenizer_added_set *set,
                                                const char *s, size_t n) {
    const struct tokenizer_added *best = NULL;
    uint32_t low = set->first[(uint8_t)s[0]], high = set->first[(uint8_t)s[0] + 1];
    for (size_t depth = 1; low < high; depth++) {
        if (set->items[low].len == depth) best = &set->items[low++];
        if (depth == n) break;
        unsigned byte = (uint8_t)s[depth];
        low = lower_bound(set, low, high, depth, byte);
        high = lower_bound(set, low, high, depth, byte + 1);
    }
    return best;
}

/* Start of the character that ends before s + i. */
static size_t previous_char(const char *s, size_t i) {
    do i--;
    while (i > 0 && ((uint8_t)s[i] & 0xc0) == 0x80);
    return i;
}

static bool is_single_word(const char *s, size_t n, size_t begin, size_t end) {
    uint32_t c;
    if (begin > 0) {
        size_t before = previous_char(s, begin);
        if (pd_utf8_decode(s + before, begin - before, &c) > 0 && tokenizer_is_word(c))
            return false;
    }
    return end == n || pd_utf8_decode(s + end, n - end, &c) <= 0 || !tokenizer_is_word(c);
}

static size_t skip_spaces_left(const char *s, size_t limit, size_t begin) {
    while (begin > limit) {
        uint32_t c;
        size_t before = previous_char(s, begin);
        if (pd_utf8_decode(s + before, begin - before, &c) <= 0 || !tokenizer_is_space(c)) break;
        begin = before;
    }
    return begin;
}

static size_t skip_spaces_right(const char *s, size_t n, size_t end) {
    while (end < n) {
        uint32_t c;
        int length = pd_utf8_decode(s + end, n - end, &c);
        if (length <= 0 || !tokenizer_is_space(c)) break;
        end += (size_t)length;
    }
    return end;
}

/*
 * The reference's search, literally: leftmost-longest matches that do not overlap; a match that is
 * turned down (special, or not a single word) hides what overlaps it all the same; the spaces that
 * rstrip takes may contain the next match.
 */
pdvm_status tokenizer_added_split(struct tokenizer_run *run, const struct tokenizer_added_set *set,
                                  const char *s, size_t n, tokenizer_part_fn fn) {
    if (set->n == 0) return n > 0 ? fn(run, -1, s, n) : PDVM_OK;
    size_t start = 0;
    // End of the spaces behind the last rstrip token: a run of them is not walked twice.
    size_t spaces_end = 0;
    for (size_t i = 0; i < n;) {
        const struct tokenizer_added *token = longest_at(set, s + i, n - i);
        if (!token) {
            i++;
            continue;
        }
        size_t begin = i, end = i + token->len;
        i = end;
        if (token->special && !run->parse_special) continue;
        if (token->single_word && !is_single_word(s, n, begin, end)) continue;
        if (token->lstrip) {
            begin = skip_spaces_left(s, start, begin);
            if (begin < start) begin = start;
        }
        if (token->rstrip) {
            if (spaces_end < end) spaces_end = skip_spaces_right(s, n, end);
            end = spaces_end;
        }
        if (start < begin) PD_TRY(fn(run, -1, s + start, begin - start));
        // Of two tokens that want the same spaces the second may be left with nothing, and goes.
        if (begin < end) PD_TRY(fn(run, token->id, s + begin, end - begin));
        start = end;
    }
    return start < n ? fn(run, -1, s + start, n - start) : PDVM_OK;
}
