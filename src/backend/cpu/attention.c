/*
 * RoPE (Su et al. 2021) and attention with online softmax (Milakov and Gimelshein 2018), over all
 * of the cache or a sliding window (Beltagy et al. 2020).
 *
 * Work items are (kv head, piece of the cache). The worker that owns the piece in which a new key
 * and value belong also rotates and appends them, so no barrier is needed between the append and
 * the attention: nobody else reads those rows in this pass.
 */
#include "backend/cpu/cpu.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

/* A piece's result for one head: running maximum, sum of exponentials, weighted values. */
struct partial {
    float max;
    float sum;
    float *acc;
};

/* Hugging Face's "rotate half": pairs are (i, i + head_dim / 2). */
static void rotate(const float *in, const float *cos, const float *sin, uint32_t head_dim,
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
    rotate(in, cos, cos + d / 2, d, out);
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

/* Slots in ascending order: one range, or two where a window in a ring wraps around. */
struct spans {
    uint32_t begin[2];
    uint32_t end[2];
    int n;
};

/*
 * Without a window, everything. A window counts positions as they appear to the query: after a
 * rolling cache has dropped some, the sinks lie just in front of the ring, and are the first to
 * fall out of the window.
 */
static struct spans visible_slots(const struct batch *batch, uint32_t window, uint32_t token) {
    uint32_t visible = batch->n_visible + token;
    uint32_t hidden = window > 0 && visible > window ? visible - window : 0;
    struct spans s = {.begin = {hidden}, .end = {visible}, .n = 1};
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

static uint32_t piece_of(uint32_t slot) {
    return slot / ATTN_PIECE;
}

/* The part of a range that lies in a piece; false if there is none. */
static bool cut(const struct spans *s, int i, uint32_t piece, uint32_t *begin, uint32_t *end) {
    uint32_t first = piece * ATTN_PIECE;
    *begin = s->begin[i] > first ? s->begin[i] : first;
    *end = s->end[i] < first + ATTN_PIECE ? s->end[i] : first + ATTN_PIECE;
    return *begin < *end;
}

static bool in_piece(const struct spans *s, uint32_t piece) {
    uint32_t begin, end;
    for (int i = 0; i < s->n; i++)
        if (cut(s, i, piece, &begin, &end)) return true;
    return false;
}

/* Whether all of it lies in one piece, which then writes the result. */
static bool in_one_piece(const struct spans *s) {
    return piece_of(s->begin[0]) == piece_of(s->end[s->n - 1] - 1);
}

/* The first piece that a pass reads, and how many, those of the new rows among them. */
static void pass_pieces(const struct batch *batch, uint32_t window, uint32_t *first, uint32_t *n) {
    struct spans begin = visible_slots(batch, window, 0);
    struct spans end = visible_slots(batch, window, batch->n_tokens - 1);
    *first = piece_of(begin.begin[0]);
    *n = piece_of(end.end[end.n - 1] - 1) - *first + 1;
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
        float max = out->max;
        for (uint32_t i = 0; i < n; i++) {
            const float *query = slot + i < batch->n_sink && batch->n_dropped ? q_sink : q;
            float score = b->kernels->dot[s->type_k](query, k + (first + i) * kv->row_bytes[0], d);
            if (s->type_k == PDVM_KV_INT8) score *= k_scales[first + i];
            scores[i] = score * scale;
            if (!(scores[i] <= max)) max = scores[i];
        }
        if (!(max <= out->max)) {
            float shrink = expf(out->max - max);
            out->sum *= shrink;
            for (uint32_t c = 0; c < d; c++) out->acc[c] *= shrink;
            out->max = max;
        }
        for (uint32_t i = 0; i < n; i++) {
            float p = expf(scores[i] - max);
            out->sum += p;
            if (s->type_v == PDVM_KV_INT8) p *= v_scales[first + i];
            b->kernels->add_scaled[s->type_v](out->acc, p, v + (first + i) * kv->row_bytes[1], d);
        }
        slot += n;
    }
}

/* Rows of the attention output are padded to whole blocks, as products want their input. */
static float *attn_of(const struct cpu_backend *b, uint32_t token, uint32_t head) {
    const struct plan *plan = b->plan;
    size_t width = pd_round_up((size_t)plan->n_heads * plan->head_dim, BLOCK_COLS);
    return b->attn + token * width + (size_t)head * plan->head_dim;
}

static float *partial_of(const struct cpu_backend *b, uint32_t piece, uint32_t token,
                         uint32_t head) {
    const struct plan *plan = b->plan;
    size_t i = ((size_t)piece * plan->max_batch + token) * plan->n_heads + head;
    return b->partial + i * (plan->head_dim + 2);
}

/* Joins the pieces of a kv head's group for all tokens, always in the order of the pieces. */
static void merge(struct cpu_backend *b, const struct batch *batch, uint32_t window,
                  uint32_t kv_head) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, group = plan->n_heads / plan->n_kv_heads;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        struct spans spans = visible_slots(batch, window, t);
        if (in_one_piece(&spans)) continue; /* it wrote the result */
        uint32_t first = piece_of(spans.begin[0]), end = piece_of(spans.end[spans.n - 1] - 1) + 1;
        for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
            float *out = attn_of(b, t, head);
            float max = -INFINITY, sum = 0;
            for (uint32_t p = first; p < end; p++) {
                if (!in_piece(&spans, p)) continue;
                float m = partial_of(b, p, t, head)[0];
                if (!(m <= max)) max = m;
            }
            memset(out, 0, d * sizeof *out);
            for (uint32_t p = first; p < end; p++) {
                if (!in_piece(&spans, p)) continue;
                const float *partial = partial_of(b, p, t, head);
                float weight = expf(partial[0] - max);
                sum += partial[1] * weight;
                for (uint32_t c = 0; c < d; c++) out[c] += partial[2 + c] * weight;
            }
            for (uint32_t c = 0; c < d; c++) out[c] /= sum;
        }
    }
}

static void append(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                   struct cpu_worker *w, uint32_t kv_head, uint32_t begin, uint32_t end) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t slot = batch->slot + t;
        if (slot < begin || slot >= end) continue;
        size_t i = ((size_t)t * plan->n_kv_heads + kv_head) * d;
        const float *k = b->k + i;
        if (!step->prepared) {
            prepare_head(b, k, step->phase->head_norm[1], t, w->k);
            k = w->k;
        }
        cpu_kv_store(batch->kv, step->phase->layer, false, kv_head, slot, k);
        cpu_kv_store(batch->kv, step->phase->layer, true, kv_head, slot, b->v + i);
    }
}

static void attend_piece(struct cpu_backend *b, const struct batch *batch,
                         const struct cpu_step *step, struct cpu_worker *w, uint32_t kv_head,
                         uint32_t piece) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, group = plan->n_heads / plan->n_kv_heads;
    append(b, batch, step, w, kv_head, piece * ATTN_PIECE, (piece + 1) * ATTN_PIECE);
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        struct spans spans = visible_slots(batch, step->phase->window, t);
        if (!in_piece(&spans, piece)) continue;
        for (uint32_t g = 0; g < group; g++) {
            uint32_t head = kv_head * group + g;
            const float *q = b->q + ((size_t)t * plan->n_heads + head) * d;
            if (!step->prepared) {
                prepare_head(b, q, step->phase->head_norm[0], t, w->q);
                q = w->q;
            }
            if (batch->n_dropped) rotate(q, b->rope_sink, b->rope_sink + d / 2, d, w->q_sink);
            struct partial result = {.max = -INFINITY, .acc = w->acc};
            memset(w->acc, 0, d * sizeof *w->acc);
            for (int i = 0; i < spans.n; i++) {
                uint32_t begin, end;
                if (cut(&spans, i, piece, &begin, &end))
                    attend(b, batch, step->phase->layer, kv_head, begin, end, q, w->q_sink,
                           &result);
            }
            if (in_one_piece(&spans)) {
                float *out = attn_of(b, t, head);
                for (uint32_t c = 0; c < d; c++) out[c] = result.acc[c] / result.sum;
            } else {
                float *out = partial_of(b, piece, t, head);
                out[0] = result.max;
                out[1] = result.sum;
                memcpy(out + 2, result.acc, d * sizeof *out);
            }
        }
    }
}

/* One kv head's share of one piece; the last of its pieces to be done joins them. */
static void attn_item(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                      int worker, uint32_t kv_head, uint32_t piece, uint32_t n_pieces) {
    attend_piece(b, batch, step, &b->workers[worker], kv_head, piece);
    if (n_pieces == 1) return;
    unsigned arrived = atomic_fetch_add_explicit(&b->merge[kv_head], 1, memory_order_acq_rel) + 1;
    if (arrived < n_pieces) return;
    merge(b, batch, step->phase->window, kv_head);
    atomic_store_explicit(&b->merge[kv_head], 0, memory_order_relaxed);
}

void cpu_attn_step(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                   int worker, int n_workers) {
    uint32_t first, pieces;
    pass_pieces(batch, step->phase->window, &first, &pieces);
    if (pieces == 0) return; /* cannot be, but analysers don't see it */
    int64_t n = (int64_t)b->plan->n_kv_heads * pieces;
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, n, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (int64_t i = begin; i < end; i++)
            attn_item(b, batch, step, worker, (uint32_t)(i / pieces),
                      first + (uint32_t)(i % pieces), pieces);
}
