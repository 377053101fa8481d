/*
 * Attention of many tokens at once: a chunk of the cache is brought into floats once, its keys
 * transposed, and serves all queries of a kv head and a row of tokens. Every query goes through the
 * same steps in the same order as it does alone.
 */
#include "backend/cpu/attention.h"

#include <math.h>
#include <string.h>

/* What a worker needs, cut from its memory. */
struct work {
    float *keys;    /* [d][KV_CHUNK] */
    float *values;  /* [KV_CHUNK][d] */
    float *q;       /* [ATTN_QUERIES][d] */
    float *q_sink;  /* the same, rotated for the sinks */
    float *scores;  /* [ATTN_QUERIES][KV_CHUNK] */
    float *sinks;   /* the same with q_sink */
    float *acc;     /* [ATTN_QUERIES][d] */
    float *partial; /* [pieces][ATTN_QUERIES][2 + d] */
    float state[ATTN_QUERIES][2];
};

/* Some tokens' queries of one kv head: token after token, head after head. */
struct item {
    const struct batch *batch;
    const struct phase *phase;
    uint32_t kv_head;
    uint32_t head0, n_heads; /* heads of the group, or a part of it where it is large */
    uint32_t token0, n_tokens;
};

size_t attn_batch_floats(uint32_t head_dim) {
    return (size_t)2 * KV_CHUNK * head_dim + (size_t)ATTN_QUERIES * (3 * head_dim + 2 * KV_CHUNK);
}

size_t attn_batch_partial(uint32_t head_dim) {
    return (size_t)ATTN_QUERIES * (2 + head_dim);
}

static void open_work(struct work *w, float *memory, float *partial, uint32_t d) {
    w->keys = memory;
    w->values = w->keys + KV_CHUNK * d;
    w->q = w->values + KV_CHUNK * d;
    w->q_sink = w->q + ATTN_QUERIES * d;
    w->acc = w->q_sink + ATTN_QUERIES * d;
    w->scores = w->acc + ATTN_QUERIES * d;
    w->sinks = w->scores + ATTN_QUERIES * KV_CHUNK;
    w->partial = partial;
}

static void load_queries(const struct cpu_backend *b, const struct item *it, struct work *w) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim;
    for (uint32_t t = 0; t < it->n_tokens; t++) {
        size_t head = (size_t)(it->token0 + t) * plan->n_heads + it->head0;
        memcpy(w->q + (size_t)t * it->n_heads * d, b->q + head * d,
               (size_t)it->n_heads * d * sizeof(float));
    }
    if (it->batch->n_dropped)
        for (uint32_t j = 0; j < it->n_tokens * it->n_heads; j++)
            attn_rotate(w->q + j * d, b->rope_sink, b->rope_sink + d / 2, d, w->q_sink + j * d);
}

/* Scores of all queries with the first n slots of a chunk. */
static void chunk_scores(const struct cpu_backend *b, const struct item *it, struct work *w,
                         uint32_t chunk, uint32_t n) {
    const struct backend_kv *kv = it->batch->kv;
    const struct cpu_attention_kernels *k = b->kernels->attention;
    uint32_t d = b->plan->head_dim, queries = it->n_tokens * it->n_heads;
    uint32_t layer = it->phase->layer, first = chunk * KV_CHUNK;
    k->keys[kv->shape.type_k](cpu_kv_rows(kv, chunk, layer, false, it->kv_head), kv->row_bytes[0],
                              n, d, w->keys);
    k->values[kv->shape.type_v](cpu_kv_rows(kv, chunk, layer, true, it->kv_head), kv->row_bytes[1],
                                n, d, w->values);
    k->scores(w->q, queries, w->keys, d, w->scores);
    if (it->batch->n_dropped && first < it->batch->n_sink) {
        uint32_t sinks =
            it->batch->n_sink - first < KV_CHUNK ? it->batch->n_sink - first : KV_CHUNK;
        k->scores(w->q_sink, queries, w->keys, d, w->sinks);
        for (uint32_t j = 0; j < queries; j++)
            memcpy(w->scores + j * KV_CHUNK, w->sinks + j * KV_CHUNK, sinks * sizeof(float));
    }
    if (kv->shape.type_k != PDVM_KV_INT8) return;
    const float *scales = cpu_kv_scales(kv, chunk, layer, false, it->kv_head);
    for (uint32_t j = 0; j < queries; j++)
        for (uint32_t i = 0; i < n; i++) w->scores[j * KV_CHUNK + i] *= scales[i];
}

/* The softmax's step of one query over slots [begin, end) of a chunk. */
static void step(const struct cpu_backend *b, const struct item *it, struct work *w, uint32_t chunk,
                 uint32_t query, uint32_t begin, uint32_t end) {
    const struct backend_kv *kv = it->batch->kv;
    uint32_t d = b->plan->head_dim;
    float *p = w->scores + query * KV_CHUNK, *acc = w->acc + query * d;
    float shrink = b->kernels->attention->softmax(p + begin, end - begin, 1.0f / sqrtf((float)d),
                                                  w->state[query]);
    if (shrink != 1)
        for (uint32_t c = 0; c < d; c++) acc[c] *= shrink;
    if (kv->shape.type_v != PDVM_KV_INT8) return;
    const float *scales = cpu_kv_scales(kv, chunk, it->phase->layer, true, it->kv_head);
    for (uint32_t i = begin; i < end; i++) p[i] *= scales[i];
}

/* A range of each token's slots in a chunk: softmax, then the weighted values, four queries at a
 * time as far as they see the same. */
static void attend_chunk(const struct cpu_backend *b, const struct item *it, struct work *w,
                         const struct attn_spans *spans, int range, uint32_t chunk) {
    const struct cpu_attention_kernels *k = b->kernels->attention;
    uint32_t d = b->plan->head_dim, queries = it->n_tokens * it->n_heads;
    uint32_t first = chunk * KV_CHUNK;
    uint32_t begin[ATTN_QUERIES], end[ATTN_QUERIES];
    for (uint32_t j = 0; j < queries; j++) {
        const struct attn_spans *s = &spans[j / it->n_heads];
        if (range >= s->n || !attn_cut(s, range, first, first + KV_CHUNK, &begin[j], &end[j])) {
            begin[j] = end[j] = 0;
            continue;
        }
        begin[j] -= first;
        end[j] -= first;
        step(b, it, w, chunk, j, begin[j], end[j]);
    }
    for (uint32_t j = 0; j < queries;) {
        uint32_t n = 1, shortest = end[j];
        for (; n < 4 && j + n < queries && begin[j + n] == begin[j]; n++)
            if (end[j + n] < shortest) shortest = end[j + n];
        if (shortest < begin[j]) shortest = begin[j];
        if (n < 4) n = 1, shortest = begin[j];
        if (shortest > begin[j])
            k->mix(w->scores + j * KV_CHUNK, n, begin[j], shortest, w->values, d, w->acc + j * d);
        for (uint32_t i = 0; i < n; i++)
            if (shortest < end[j + i])
                k->mix(w->scores + (j + i) * KV_CHUNK, 1, shortest, end[j + i], w->values, d,
                       w->acc + (j + i) * d);
        j += n;
    }
}

/* The slots that any of the tokens sees in a piece, as the smallest range around them. */
static bool piece_range(const struct attn_spans *spans, uint32_t n, uint32_t piece, uint32_t *first,
                        uint32_t *last) {
    *first = UINT32_MAX;
    *last = 0;
    for (uint32_t t = 0; t < n; t++) {
        for (int i = 0; i < spans[t].n; i++) {
            uint32_t begin, end;
            if (!attn_cut(&spans[t], i, piece * ATTN_PIECE, (piece + 1) * ATTN_PIECE, &begin, &end))
                continue;
            if (begin < *first) *first = begin;
            if (end > *last) *last = end;
        }
    }
    return *first < *last;
}

static bool sees(const struct attn_spans *spans, uint32_t n, uint32_t begin, uint32_t end) {
    for (uint32_t t = 0; t < n; t++)
        for (int i = 0; i < spans[t].n; i++)
            if (spans[t].begin[i] < end && spans[t].end[i] > begin) return true;
    return false;
}

static void attend_item(struct cpu_backend *b, const struct item *it, struct work *w,
                        uint32_t first_piece, uint32_t pieces) {
    const uint32_t d = b->plan->head_dim, queries = it->n_tokens * it->n_heads;
    const size_t stride = attn_batch_partial(d);
    struct attn_spans spans[ATTN_QUERIES];
    for (uint32_t t = 0; t < it->n_tokens; t++)
        spans[t] = attn_visible(it->batch, it->phase->window, it->token0 + t);
    load_queries(b, it, w);
    for (uint32_t piece = first_piece; piece < first_piece + pieces; piece++) {
        uint32_t first, last;
        if (!piece_range(spans, it->n_tokens, piece, &first, &last)) continue;
        memset(w->acc, 0, queries * d * sizeof *w->acc);
        for (uint32_t j = 0; j < queries; j++) {
            w->state[j][0] = -INFINITY;
            w->state[j][1] = 0;
        }
        for (uint32_t chunk = first / KV_CHUNK; chunk * KV_CHUNK < last; chunk++) {
            uint32_t begin = chunk * KV_CHUNK;
            uint32_t end = begin + KV_CHUNK < last ? begin + KV_CHUNK : last;
            if (!sees(spans, it->n_tokens, begin, end)) continue;
            chunk_scores(b, it, w, chunk, end - begin);
            attend_chunk(b, it, w, spans, 0, chunk);
            attend_chunk(b, it, w, spans, 1, chunk);
        }
        for (uint32_t j = 0; j < queries; j++) {
            uint32_t t = j / it->n_heads;
            const float *acc = w->acc + j * d;
            float *partial = w->partial + (piece - first_piece) * stride + j * (d + 2);
            if (!attn_in_piece(&spans[t], piece)) continue;
            if (attn_in_one_piece(&spans[t])) {
                float *out = attn_out(b, it->token0 + t, it->head0 + j % it->n_heads);
                for (uint32_t c = 0; c < d; c++) out[c] = acc[c] / w->state[j][1];
            } else {
                memcpy(partial, w->state[j], 2 * sizeof *partial);
                memcpy(partial + 2, acc, d * sizeof *partial);
            }
        }
    }
    for (uint32_t j = 0; j < queries; j++) {
        uint32_t t = j / it->n_heads;
        if (!attn_in_one_piece(&spans[t]))
            attn_merge(&spans[t], w->partial + j * (d + 2), stride, first_piece, d,
                       attn_out(b, it->token0 + t, it->head0 + j % it->n_heads));
    }
}

void attn_batch(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                int worker, int n_workers) {
    const struct plan *plan = b->plan;
    const uint32_t group = plan->n_heads / plan->n_kv_heads;
    const uint32_t heads = group < ATTN_QUERIES ? group : ATTN_QUERIES;
    const uint32_t parts = (group + heads - 1) / heads;
    const uint32_t tokens = ATTN_QUERIES / heads;
    const uint32_t blocks = (batch->n_tokens + tokens - 1) / tokens;
    uint32_t first, pieces;
    struct work w;
    attn_pass_pieces(batch, phase->window, &first, &pieces);
    open_work(&w, b->workers[worker].attn,
              b->partial + (size_t)worker * pieces * attn_batch_partial(plan->head_dim),
              plan->head_dim);
    /* Head after head, so that every worker gets early tokens and late ones, which see more; the late
     * ones first, so that what is shared out last is little. */
    struct pd_share share = pd_share_items(b->threads, worker, n_workers,
                                           (int64_t)blocks * plan->n_kv_heads * parts, 1);
    for (int64_t from, to; pd_share_next(&share, &from, &to);) {
        for (int64_t i = from; i < to; i++) {
            uint32_t part = (uint32_t)(i / blocks);
            uint32_t block = blocks - 1 - (uint32_t)(i % blocks);
            struct item it = {.batch = batch,
                              .phase = phase,
                              .kv_head = part / parts,
                              .head0 = part / parts * group + part % parts * heads,
                              .token0 = block * tokens};
            uint32_t heads_left = (it.kv_head + 1) * group - it.head0;
            uint32_t tokens_left = batch->n_tokens - it.token0;
            it.n_heads = heads_left < heads ? heads_left : heads;
            it.n_tokens = tokens_left < tokens ? tokens_left : tokens;
            attend_item(b, &it, &w, first, pieces);
        }
    }
}
