/*
 * RoPE (Su et al. 2021) and attention with online softmax (Milakov and Gimelshein 2018).
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

void cpu_rope_step(struct cpu_backend *b, const struct batch *batch, int worker, int n_workers) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, heads = plan->n_heads + plan->n_kv_heads;
    size_t n = (size_t)batch->n_tokens * heads;
    size_t begin = n * (size_t)worker / (size_t)n_workers;
    size_t end = n * (size_t)(worker + 1) / (size_t)n_workers;
    for (size_t i = begin; i < end; i++) {
        uint32_t t = (uint32_t)(i / heads), head = (uint32_t)(i % heads);
        const float *cos = rope_of(b, t);
        float *row = head < plan->n_heads
                         ? b->q + ((size_t)t * plan->n_heads + head) * d
                         : b->k + ((size_t)t * plan->n_kv_heads + head - plan->n_heads) * d;
        rotate(row, cos, cos + d / 2, d, row);
    }
}

/* Attention of one query over slots [begin, end). */
static void attend(const struct cpu_backend *b, const struct batch *batch, uint32_t layer,
                   uint32_t kv_head, uint32_t begin, uint32_t end, const float *q,
                   const float *q_sink, struct partial *out) {
    const struct backend_kv *kv = batch->kv;
    const struct kv_shape *s = &kv->shape;
    uint32_t d = s->head_dim;
    const float scale = 1.0f / sqrtf((float)d);
    memset(out->acc, 0, d * sizeof *out->acc);
    out->max = -INFINITY;
    out->sum = 0;
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
static void merge(struct cpu_backend *b, const struct batch *batch, uint32_t kv_head) {
    const struct plan *plan = b->plan;
    uint32_t d = plan->head_dim, group = plan->n_heads / plan->n_kv_heads;
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t pieces = (batch->n_visible + t + ATTN_PIECE - 1) / ATTN_PIECE;
        if (pieces == 1) continue; /* its only piece wrote the result */
        for (uint32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
            float *out = attn_of(b, t, head);
            float max = -INFINITY, sum = 0;
            for (uint32_t p = 0; p < pieces; p++) {
                float m = partial_of(b, p, t, head)[0];
                if (!(m <= max)) max = m;
            }
            memset(out, 0, d * sizeof *out);
            for (uint32_t p = 0; p < pieces; p++) {
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
            rotate(k, rope_of(b, t), rope_of(b, t) + d / 2, d, w->k);
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
    uint32_t begin = piece * ATTN_PIECE;
    append(b, batch, step, w, kv_head, begin, begin + ATTN_PIECE);
    for (uint32_t t = 0; t < batch->n_tokens; t++) {
        uint32_t visible = batch->n_visible + t;
        if (begin >= visible) continue;
        uint32_t end = visible - begin < ATTN_PIECE ? visible : begin + ATTN_PIECE;
        for (uint32_t g = 0; g < group; g++) {
            uint32_t head = kv_head * group + g;
            const float *q = b->q + ((size_t)t * plan->n_heads + head) * d;
            if (!step->prepared) {
                rotate(q, rope_of(b, t), rope_of(b, t) + d / 2, d, w->q);
                q = w->q;
            }
            if (batch->n_dropped) rotate(q, b->rope_sink, b->rope_sink + d / 2, d, w->q_sink);
            struct partial result = {.acc = w->acc};
            attend(b, batch, step->phase->layer, kv_head, begin, end, q, w->q_sink, &result);
            if (visible <= ATTN_PIECE) {
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

void cpu_attn_step(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                   int worker, int n_workers) {
    uint32_t pieces = cpu_attn_pieces(batch);
    size_t n = (size_t)b->plan->n_kv_heads * pieces;
    size_t begin = n * (size_t)worker / (size_t)n_workers;
    size_t end = n * (size_t)(worker + 1) / (size_t)n_workers;
    for (size_t i = begin; i < end; i++) {
        uint32_t kv_head = (uint32_t)(i / pieces);
        attend_piece(b, batch, step, &b->workers[worker], kv_head, (uint32_t)(i % pieces));
        if (pieces == 1) continue;
        unsigned arrived =
            atomic_fetch_add_explicit(&b->merge[kv_head], 1, memory_order_acq_rel) + 1;
        if (arrived < pieces) continue;
        merge(b, batch, kv_head);
        atomic_store_explicit(&b->merge[kv_head], 0, memory_order_relaxed);
    }
}
