/*
 * RoPE (Su et al. 2021) and attention with online softmax (Milakov and Gimelshein 2018), over all
 * of the cache or a sliding window (Beltagy et al. 2020).
 *
 * Work items are (kv head, piece of the cache). The worker that owns the piece in which a new key
 * and value belong also rotates and appends them, so no barrier is needed between the append and
 * the attention: nobody else reads those rows in this pass.
 */
#include "backend/cpu/attention.h"
#include "backend/cpu/exp.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

/* A piece's result for one head. */
struct partial {
    float state[2]; /* running maximum, sum of exponentials */
    float *acc;     /* weighted values */
};

void attn_rotate(const float *in, const float *cos, const float *sin, uint32_t head_dim,
                 float *out) {
    uint32_t half = head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = in[i], b = in[i + half];
        out[i] = a * cos[i] - b * sin[i];
        out[i + half] = b * cos[i] + a * sin[i];
    }
}

static const float *rope_of(const struct cpu_backend *b, uint32_t token) {
    return b->rope + (size_t)token * b->plan->head_dim;
}

/* Norm, if the model has one, and rotation of one head; out may be the input. */
static void prepare_head(const struct cpu_backend *b, const float *in, const float *norm,
                         uint32_t token, float *out) {
    uint32_t d = b->plan->head_dim;
    const float *cos = rope_of(b, token);
    if (norm) {
        b->kernels->rms_norm(in, norm, d, b->plan->rms_norm_eps, out);
        in = out;
    }
    attn_rotate(in, cos, cos + d / 2, d, out);
}

/* Heads [begin, end) of all tokens' q and k, counted token by token. */
static void rotate_heads(struct cpu_backend *b, const struct phase *phase, size_t begin,
                         size_t end) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, heads = plan->n_heads + plan->n_kv_heads;
    for (size_t i = begin; i < end; i++) {
        uint32_t t = (uint32_t)(i / heads), head = (uint32_t)(i % heads);
        bool key = head >= plan->n_heads;
        float *row = key ? b->k + ((size_t)t * plan->n_kv_heads + head - plan->n_heads) * d
                         : b->q + ((size_t)t * plan->n_heads + head) * d;
        prepare_head(b, row, phase->head_norm[key], t, row);
    }
}

void cpu_rope_step(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                   int worker, int n_workers) {
    size_t n = (size_t)batch->n_tokens * (b->plan->n_heads + b->plan->n_kv_heads);
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, (int64_t)n, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        rotate_heads(b, phase, (size_t)begin, (size_t)end);
}

/* ---- what a token sees ----------------------------------------------------------------- */

/*
 * Without a window, everything. A window counts positions as they appear to the query: after a
 * rolling cache has dropped some, the sinks lie just in front of the ring, and are the first to
 * fall out of the window.
 */
struct attn_spans attn_visible(const struct batch *batch, uint32_t window, uint32_t token) {
    uint32_t visible = batch->n_visible + token;
    uint32_t hidden = window > 0 && visible > window ? visible - window : 0;
    struct attn_spans s = {.begin = {hidden}, .end = {visible}, .n = 1};
    if (hidden <= batch->n_sink || batch->n_dropped == 0) return s;
    /* In the ring, the new token's slot is the end of the window. */
    uint32_t end = batch->slot + 1;
    if (end - batch->n_sink >= window) {
        s.begin[0] = end - window;
        s.end[0] = end;
        return s;
    }
    s.n = 2;
    s.begin[0] = batch->n_sink;
    s.end[0] = end;
    s.begin[1] = visible - (window - (end - batch->n_sink));
    s.end[1] = visible;
    return s;
}

bool attn_in_piece(const struct attn_spans *s, uint32_t piece) {
    uint32_t begin, end;
    for (int i = 0; i < s->n; i++)
        if (attn_cut(s, i, piece * ATTN_PIECE, (piece + 1) * ATTN_PIECE, &begin, &end)) return true;
    return false;
}

void attn_pass_pieces(const struct batch *batch, uint32_t window, uint32_t *first, uint32_t *n) {
    struct attn_spans begin = attn_visible(batch, window, 0);
    struct attn_spans end = attn_visible(batch, window, batch->n_tokens - 1);
    *first = attn_piece_of(begin.begin[0]);
    *n = attn_piece_of(end.end[end.n - 1] - 1) - *first + 1;
}

/* ---- attention ------------------------------------------------------------------------- */

/* Attention of one query over slots [begin, end), on top of what `out` holds. */
static void attend(const struct cpu_backend *b, const struct batch *batch, uint32_t layer,
                   uint32_t kv_head, uint32_t begin, uint32_t end, const float *q,
                   const float *q_sink, struct partial *out) {
    const struct backend_kv *kv = batch->kv;
    const struct kv_shape *s = &kv->shape;
    uint32_t d = s->head_dim;
    const float scale = 1.0f / sqrtf((float)d);
    for (uint32_t slot = begin; slot < end;) {
        size_t chunk = slot / KV_CHUNK;
        uint32_t first = slot % KV_CHUNK;
        uint32_t n = KV_CHUNK - first < end - slot ? KV_CHUNK - first : end - slot;
        const uint8_t *k = cpu_kv_rows(kv, chunk, layer, false, kv_head);
        const uint8_t *v = cpu_kv_rows(kv, chunk, layer, true, kv_head);
        const float *k_scales = cpu_kv_scales(kv, chunk, layer, false, kv_head);
        const float *v_scales = cpu_kv_scales(kv, chunk, layer, true, kv_head);
        float scores[KV_CHUNK];
        for (uint32_t i = 0; i < n; i++) {
            const float *query = slot + i < batch->n_sink && batch->n_dropped ? q_sink : q;
            scores[i] = b->kernels->dot[s->type_k](query, k + (first + i) * kv->row_bytes[0], d);
            if (s->type_k == PDVM_KV_INT8) scores[i] *= k_scales[first + i];
        }
        float shrink = b->kernels->attention->softmax(scores, n, scale, out->state);
        if (shrink != 1)
            for (uint32_t c = 0; c < d; c++) out->acc[c] *= shrink;
        for (uint32_t i = 0; i < n; i++) {
            float p = scores[i];
            if (s->type_v == PDVM_KV_INT8) p *= v_scales[first + i];
            b->kernels->add_scaled[s->type_v](out->acc, p, v + (first + i) * kv->row_bytes[1], d);
        }
        slot += n;
    }
}

float *attn_out(const struct cpu_backend *b, uint32_t token, uint32_t head) {
    const struct plan *plan = b->plan;
    size_t width = pd_round_up((size_t)plan->n_heads * plan->head_dim, BLOCK_COLS);
    return b->attn + token * width + (size_t)head * plan->head_dim;
}

void attn_merge(const struct attn_spans *spans, const float *partial, size_t stride, uint32_t first,
                uint32_t d, float *out) {
    uint32_t begin = attn_piece_of(spans->begin[0]);
    uint32_t end = attn_piece_of(spans->end[spans->n - 1] - 1) + 1;
    float max = -INFINITY, sum = 0;
    for (uint32_t p = begin; p < end; p++) {
        if (!attn_in_piece(spans, p)) continue;
        float m = partial[(p - first) * stride];
        if (!(m <= max)) max = m;
    }
    memset(out, 0, d * sizeof *out);
    for (uint32_t p = begin; p < end; p++) {
        if (!attn_in_piece(spans, p)) continue;
        const float *of = partial + (p - first) * stride;
        float weight = exp_f32(of[0] - max);
        sum += of[1] * weight;
        for (uint32_t c = 0; c < d; c++) out[c] += of[2 + c] * weight;
    }
    for (uint32_t c = 0; c < d; c++) out[c] /= sum;
}

/* One token's partial results: piece after piece, head after head. */
static float *partial_of(const struct cpu_backend *b, uint32_t piece, uint32_t head) {
    const struct plan *plan = b->plan;
    return b->partial + ((size_t)piece * plan->n_heads + head) * (plan->head_dim + 2);
}

static void store(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                  uint32_t token, uint32_t kv_head, const float *k) {
    size_t i = ((size_t)token * b->plan->n_kv_heads + kv_head) * b->plan->head_dim;
    cpu_kv_store(batch->kv, phase->layer, false, kv_head, batch->slot + token, k);
    cpu_kv_store(batch->kv, phase->layer, true, kv_head, batch->slot + token, b->v + i);
}

/* One token over one piece of the cache, for the heads that share a kv head. */
static void attend_piece(struct cpu_backend *b, const struct batch *batch,
                         const struct cpu_step *step, struct cpu_worker *w,
                         const struct attn_spans *spans, uint32_t kv_head, uint32_t piece) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, group = plan->n_heads / plan->n_kv_heads;
    if (attn_piece_of(batch->slot) == piece) {
        const float *k = b->k + (size_t)kv_head * d;
        if (!step->prepared) {
            prepare_head(b, k, step->phase->head_norm[1], 0, w->k);
            k = w->k;
        }
        store(b, batch, step->phase, 0, kv_head, k);
    }
    if (!attn_in_piece(spans, piece)) return;
    for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const float *q = b->q + (size_t)head * d;
        if (!step->prepared) {
            prepare_head(b, q, step->phase->head_norm[0], 0, w->q);
            q = w->q;
        }
        if (batch->n_dropped) attn_rotate(q, b->rope_sink, b->rope_sink + d / 2, d, w->q_sink);
        struct partial result = {.state = {-INFINITY, 0}, .acc = w->acc};
        memset(w->acc, 0, d * sizeof *w->acc);
        for (int i = 0; i < spans->n; i++) {
            uint32_t begin, end;
            if (attn_cut(spans, i, piece * ATTN_PIECE, (piece + 1) * ATTN_PIECE, &begin, &end))
                attend(b, batch, step->phase->layer, kv_head, begin, end, q, w->q_sink, &result);
        }
        if (attn_in_one_piece(spans)) {
            float *out = attn_out(b, 0, head);
            for (uint32_t c = 0; c < d; c++) out[c] = result.acc[c] / result.state[1];
        } else {
            float *out = partial_of(b, piece, head);
            memcpy(out, result.state, sizeof result.state);
            memcpy(out + 2, result.acc, d * sizeof *out);
        }
    }
}

/* One kv head's share of one piece; the last of its pieces to be done joins them. */
static void attn_item(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                      int worker, uint32_t kv_head, uint32_t first, uint32_t piece,
                      uint32_t n_pieces) {
    const struct plan *plan = b->plan;
    const uint32_t group = plan->n_heads / plan->n_kv_heads;
    struct attn_spans spans = attn_visible(batch, step->phase->window, 0);
    attend_piece(b, batch, step, &b->workers[worker], &spans, kv_head, piece);
    if (n_pieces == 1) return;
    unsigned arrived = atomic_fetch_add_explicit(&b->merge[kv_head], 1, memory_order_acq_rel) + 1;
    if (arrived < n_pieces) return;
    if (!attn_in_one_piece(&spans))
        for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            attn_merge(&spans, partial_of(b, first, head),
                       (size_t)plan->n_heads * (plan->head_dim + 2), first, plan->head_dim,
                       attn_out(b, 0, head));
    atomic_store_explicit(&b->merge[kv_head], 0, memory_order_relaxed);
}

/* Several tokens: first all of their rows are stored, then all of them attend. */
static void attend_batch(struct cpu_backend *b, const struct batch *batch,
                         const struct cpu_step *step, int worker, int n_workers) {
    const struct plan *plan = b->plan;
    if (!step->prepared) {
        cpu_rope_step(b, batch, step->phase, worker, n_workers);
        pd_threads_barrier(b->threads);
    }
    int64_t n = (int64_t)batch->n_tokens * plan->n_kv_heads;
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, n, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (int64_t i = begin; i < end; i++)
            store(b, batch, step->phase, (uint32_t)(i / plan->n_kv_heads),
                  (uint32_t)(i % plan->n_kv_heads), b->k + i * plan->head_dim);
    pd_threads_barrier(b->threads);
    attn_batch(b, batch, step->phase, worker, n_workers);
}

void cpu_attn_step(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                   int worker, int n_workers) {
    if (batch->n_tokens > 1) {
        attend_batch(b, batch, step, worker, n_workers);
        return;
    }
    uint32_t first, pieces;
    attn_pass_pieces(batch, step->phase->window, &first, &pieces);
    if (pieces == 0) return; /* cannot be, but analysers don't see it */
    int64_t n = (int64_t)b->plan->n_kv_heads * pieces;
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, n, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (int64_t i = begin; i < end; i++)
            attn_item(b, batch, step, worker, (uint32_t)(i / pieces), first,
                      first + (uint32_t)(i % pieces), pieces);
}
