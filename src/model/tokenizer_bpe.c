#include "base/alloc.h"
#include "base/hash.h"
#include "base/utf8.h"
#include "model/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

/* Words of up to this many symbols are merged by scanning for the best pair, longer by a heap. */
#define SCAN_MAX 32
/* Words that the cache remembers are at most so long. */
#define CACHED_BYTES 24
#define CACHE_SLOTS 4096u
/* A shorter text repeats too few words to pay for the cache. */
#define CACHE_MIN_TEXT 4096

#define NO_RANK UINT32_MAX
#define NONE UINT32_MAX

struct bpe_symbol {
    uint32_t id;
    uint32_t prev, next;   /* NONE at the ends */
    uint32_t rank, merged; /* of the pair with the next symbol; NO_RANK if it does not merge */
};

/* A word seen before: its ids stand in the output from `at` on. */
struct bpe_cached {
    size_t at;
    uint32_t len, n_ids; /* len 0: empty */
    char word[CACHED_BYTES];
};

static uint64_t mix(uint64_t key) {
    key = (key ^ (key >> 31)) * 0x9e3779b97f4a7c15u;
    key = (key ^ (key >> 29)) * 0xbf58476d1ce4e5b9u;
    return key ^ (key >> 32);
}

static uint64_t pair_key(uint32_t left, uint32_t right) {
    return (uint64_t)left << 32 | right;
}

pdvm_status tokenizer_merges_init(struct tokenizer_merges *m, size_t n, pdvm_error *err) {
    size_t slots = 8;
    while (slots < 2 * n) slots *= 2;
    PD_TRY(pd_calloc(&m->slots, slots, sizeof *m->slots, "the tokenizer's merges", err));
    for (size_t i = 0; i < slots; i++) m->slots[i].key = TOKENIZER_NO_PAIR;
    m->mask = slots - 1;
    return PDVM_OK;
}

pdvm_status tokenizer_merges_add(struct tokenizer_merges *m, uint32_t left, uint32_t right,
                                 uint32_t rank, uint32_t id, pdvm_error *err) {
    uint64_t key = pair_key(left, right);
    size_t i = (size_t)mix(key) & m->mask;
    for (int probes = 0; probes < TOKENIZER_MAX_PROBES; probes++, i = (i + 1) & m->mask) {
        if (m->slots[i].key != TOKENIZER_NO_PAIR && m->slots[i].key != key) continue;
        m->slots[i] = (struct tokenizer_merge){.key = key, .rank = rank, .id = id};
        return PDVM_OK;
    }
    return pd_fail(err, PDVM_ERR_FORMAT, "the merges collide in a hash table");
}

static void look_up(const struct tokenizer_merges *m, struct bpe_symbol *left, uint32_t right_id) {
    uint64_t key = pair_key(left->id, right_id);
    size_t i = (size_t)mix(key) & m->mask;
    while (m->slots[i].key != key) {
        if (m->slots[i].key == TOKENIZER_NO_PAIR) {
            left->rank = NO_RANK;
            return;
        }
        i = (i + 1) & m->mask;
    }
    left->rank = m->slots[i].rank;
    left->merged = m->slots[i].id;
}

pdvm_status tokenizer_bpe_init(struct tokenizer_bpe *b, size_t len, pdvm_error *err) {
    if (len < CACHE_MIN_TEXT) return PDVM_OK;
    return pd_calloc(&b->cache, CACHE_SLOTS, sizeof *b->cache, "the tokenizer's cache", err);
}

void tokenizer_bpe_clear(struct tokenizer_bpe *b) {
    free(b->symbols);
    free(b->heap);
    free(b->cache);
}

static bool starts_with_metaspace(const char *s, size_t n) {
    return n >= 3 && memcmp(s, TOKENIZER_METASPACE, 3) == 0;
}

static bool ends_with_metaspace(const char *s, size_t n) {
    return n >= 3 && memcmp(s + n - 3, TOKENIZER_METASPACE, 3) == 0;
}

bool tokenizer_bpe_can_cut(const struct tokenizer *t) {
    if (t->byte_level || t->ignore_merges ||
        tokenizer_find_vocab(t, TOKENIZER_METASPACE, 3, "", 0) < 0)
        return false;
    // A character that is left out brings its neighbours together.
    for (int byte = 0; t->unk_id < 0 && byte < 0xf5; byte++)
        if (t->byte_ids[byte] < 0 && byte != 0xc0 && byte != 0xc1) return false;
    const char *text = t->text.data;
    // An unknown character merges like the piece that it becomes.
    if (t->unk_id >= 0 &&
        ends_with_metaspace(text + t->pieces[t->unk_id].content, t->pieces[t->unk_id].content_len))
        return false;
    for (size_t i = 0; i <= t->merges.mask; i++) {
        uint64_t key = t->merges.slots[i].key;
        if (key == TOKENIZER_NO_PAIR) continue;
        const struct tokenizer_piece *left = &t->pieces[key >> 32];
        const struct tokenizer_piece *right = &t->pieces[(uint32_t)key];
        if (starts_with_metaspace(text + right->content, right->content_len) &&
            !ends_with_metaspace(text + left->content, left->content_len))
            return false;
    }
    return true;
}

/*
 * The symbols of characters. One without a piece becomes its bytes, if all of them have pieces, or
 * the unknown token, or is left out. As in the reference an unknown token waits for the next
 * character that has a piece: bytes of others go before it.
 */
static pdvm_status start_characters(struct tokenizer_run *run, const char *word, size_t n,
                                    uint32_t *count) {
    const struct tokenizer *t = run->t;
    struct tokenizer_bpe *b = &run->bpe;
    PD_TRY(pd_grow(&b->symbols, &b->symbols_capacity, n, sizeof *b->symbols, "a word", run->err));
    uint32_t k = 0;
    bool waiting = false;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        int length = pd_utf8_decode(word + i, n - i, &c);
        size_t size = length > 0 ? (size_t)length : 1;
        int32_t id = c < 0x80 ? t->ascii_ids[c] : tokenizer_find_vocab(t, word + i, size, "", 0);
        if (id >= 0) {
            if (waiting) b->symbols[k++].id = (uint32_t)t->unk_id;
            waiting = false;
            b->symbols[k++].id = (uint32_t)id;
        } else {
            bool all = t->byte_fallback;
            for (size_t j = 0; all && j < size; j++) all = t->byte_ids[(uint8_t)word[i + j]] >= 0;
            if (all) {
                for (size_t j = 0; j < size; j++)
                    b->symbols[k++].id = (uint32_t)t->byte_ids[(uint8_t)word[i + j]];
            } else if (t->unk_id >= 0) {
                if (waiting && !t->fuse_unk) b->symbols[k++].id = (uint32_t)t->unk_id;
                waiting = true;
            }
        }
        i += size;
    }
    if (waiting) b->symbols[k++].id = (uint32_t)t->unk_id;
    *count = k;
    return PDVM_OK;
}

/* The symbols of single bytes. A byte without a piece is the unknown token, or left out. */
static pdvm_status start_symbols(struct tokenizer_run *run, const char *word, size_t n,
                                 uint32_t *count) {
    const struct tokenizer *t = run->t;
    struct tokenizer_bpe *b = &run->bpe;
    PD_TRY(pd_grow(&b->symbols, &b->symbols_capacity, n, sizeof *b->symbols, "a word", run->err));
    uint32_t k = 0;
    bool after_unk = false;
    for (size_t i = 0; i < n; i++) {
        int32_t id = t->byte_ids[(uint8_t)word[i]];
        bool unk = id < 0;
        if (unk) {
            if (t->unk_id < 0 || (after_unk && t->fuse_unk)) continue;
            // The reference sees a character of the byte alphabet here, so this is one unknown.
            id = t->unk_id;
        }
        after_unk = unk;
        b->symbols[k++].id = (uint32_t)id;
    }
    *count = k;
    return PDVM_OK;
}

static uint32_t merge_by_scan(const struct tokenizer_merges *m, struct bpe_symbol *s, uint32_t n) {
    for (uint32_t i = 0; i + 1 < n; i++) look_up(m, &s[i], s[i + 1].id);
    for (;;) {
        uint32_t best = NO_RANK, at = 0;
        for (uint32_t i = 0; i + 1 < n; i++) {
            if (s[i].rank < best) {
                best = s[i].rank;
                at = i;
            }
        }
        if (best == NO_RANK) return n;
        s[at].id = s[at].merged;
        n--;
        memmove(&s[at + 1], &s[at + 2], (n - at - 1) * sizeof *s);
        if (at + 1 < n) look_up(m, &s[at], s[at + 1].id);
        if (at > 0) look_up(m, &s[at - 1], s[at].id);
    }
}

static void sift_down(uint64_t *heap, size_t n, size_t i) {
    uint64_t key = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static void sift_up(uint64_t *heap, size_t i) {
    uint64_t key = heap[i];
    while (i > 0 && heap[(i - 1) / 2] > key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = key;
}

/*
 * The same by a linked list and a heap of rank << 32 | position: best rank first, leftmost first
 * among equals. An entry is stale when the pair at its position has another rank now.
 */
static pdvm_status merge_by_heap(struct tokenizer_run *run, uint32_t *count) {
    const struct tokenizer_merges *m = &run->t->merges;
    struct tokenizer_bpe *b = &run->bpe;
    struct bpe_symbol *s = b->symbols;
    uint32_t n = *count;
    // Each merge takes one entry out and puts at most two in.
    PD_TRY(
        pd_grow(&b->heap, &b->heap_capacity, 2 * (size_t)n, sizeof *b->heap, "a word", run->err));
    uint64_t *heap = b->heap;
    size_t size = 0;
    for (uint32_t i = 0; i < n; i++) {
        s[i].prev = i == 0 ? NONE : i - 1;
        s[i].next = i + 1 == n ? NONE : i + 1;
        s[i].rank = NO_RANK;
        if (i + 1 < n) look_up(m, &s[i], s[i + 1].id);
        if (s[i].rank != NO_RANK) heap[size++] = (uint64_t)s[i].rank << 32 | i;
    }
    for (size_t i = size / 2; i-- > 0;) sift_down(heap, size, i);
    while (size > 0) {
        uint32_t at = (uint32_t)heap[0], rank = (uint32_t)(heap[0] >> 32);
        heap[0] = heap[--size];
        if (size > 0) sift_down(heap, size, 0);
        if (s[at].rank != rank) continue;
        uint32_t dead = s[at].next;
        s[at].id = s[at].merged;
        s[at].rank = NO_RANK;
        s[at].next = s[dead].next;
        s[dead].rank = NO_RANK;
        if (s[at].next != NONE) {
            s[s[at].next].prev = at;
            look_up(m, &s[at], s[s[at].next].id);
            if (s[at].rank != NO_RANK) {
                heap[size] = (uint64_t)s[at].rank << 32 | at;
                sift_up(heap, size++);
            }
        }
        uint32_t before = s[at].prev;
        if (before != NONE) {
            look_up(m, &s[before], s[at].id);
            if (s[before].rank != NO_RANK) {
                heap[size] = (uint64_t)s[before].rank << 32 | before;
                sift_up(heap, size++);
            }
        }
    }
    uint32_t k = 0;
    for (uint32_t i = 0; i != NONE; i = s[i].next) s[k++].id = s[i].id;
    *count = k;
    return PDVM_OK;
}

static pdvm_status emit_merged(struct tokenizer_run *run, const char *word, size_t n) {
    if (n == 1 && run->t->byte_level && run->t->byte_ids[(uint8_t)word[0]] >= 0)
        return tokenizer_emit(run, run->t->byte_ids[(uint8_t)word[0]]);
    uint32_t count;
    PD_TRY(run->t->byte_level ? start_symbols(run, word, n, &count)
                              : start_characters(run, word, n, &count));
    if (count > SCAN_MAX) {
        PD_TRY(merge_by_heap(run, &count));
    } else {
        count = merge_by_scan(&run->t->merges, run->bpe.symbols, count);
    }
    for (uint32_t i = 0; i < count; i++)
        PD_TRY(tokenizer_emit(run, (int32_t)run->bpe.symbols[i].id));
    return PDVM_OK;
}

static pdvm_status encode_word(struct tokenizer_run *run, const char *word, size_t n) {
    struct token_list *out = run->out;
    if (run->t->ignore_merges) {
        int32_t id = run->t->byte_level ? tokenizer_index_find(run->t, true, word, n, "", 0)
                                        : tokenizer_find_vocab(run->t, word, n, "", 0);
        if (id >= 0) return tokenizer_emit(run, id);
    }
    if (!run->bpe.cache || n == 1 || n > CACHED_BYTES) return emit_merged(run, word, n);
    struct bpe_cached *slot =
        &run->bpe.cache[mix(pd_hash(PD_HASH_INIT, word, n)) & (CACHE_SLOTS - 1)];
    if (slot->len == n && memcmp(slot->word, word, n) == 0) {
        for (uint32_t i = 0; i < slot->n_ids; i++)
            PD_TRY(tokenizer_emit(run, out->ids[slot->at + i]));
        return PDVM_OK;
    }
    size_t at = out->n;
    PD_TRY(emit_merged(run, word, n));
    slot->at = at;
    slot->n_ids = (uint32_t)(out->n - at);
    slot->len = (uint32_t)n;
    memcpy(slot->word, word, n);
    return PDVM_OK;
}

pdvm_status tokenizer_bpe_word(struct tokenizer_run *run, const char *word, size_t n) {
    if (!run->t->can_cut) return encode_word(run, word, n);
    const char *end = word + n, *p = word;
    while ((p = memchr(p, 0xe2, (size_t)(end - p)))) {
        if (!starts_with_metaspace(p, (size_t)(end - p))) {
            p++;
            continue;
        }
        if (p > word && !ends_with_metaspace(word, (size_t)(p - word))) {
            PD_TRY(encode_word(run, word, (size_t)(p - word)));
            word = p;
        }
        p += 3;
    }
    return encode_word(run, word, (size_t)(end - word));
}
