/**
 * Phase ATTN: norms of heads, RoPE (Su et al. 2021), the new key and value into the cache, and
 * attention with online softmax (Milakov and Gimelshein 2018).
 *
 * Groups take items: (kv head, split of the visible positions). The one whose split has the new
 * row appends it, so nobody waits for it. A group's warps take strips of the split (and up to
 * GPU_HEADS_AT_ONCE query heads each, so a key is read once for them); strips, and then splits, are
 * joined in their order, whoever comes last.
 */
#ifndef PDVM_KERNELS_ATTN_H
#define PDVM_KERNELS_ATTN_H

#include "act.h"

#define PER_LANE 8 /* elements of a row that a lane holds */
#define MINUS_INFINITY bits_float(0xff800000u)

/* ---- the cache --------------------------------------------------------------------------- */

FN uint64_t row_index(const struct Ctx *c, LOCAL const struct gpu_kv *kv, uint32_t layer,
                      uint32_t head, uint32_t slot) {
    return ((uint64_t)layer * SH(plan).n_kv_heads + head) * kv->capacity + slot;
}

/** From a row to INT8 codes; 0 if it has none. */
FN float inverse_of(float amax) {
    return amax >= 1e-30f && float_bits(amax) < 0x7f800000u ? 127.0f / amax : 0.0f;
}

/** A warp stores row[head_dim] of floats, in group memory, as a key or a value. */
FN void store_row(const struct Ctx *c, LOCAL const struct gpu_kv *kv, int value, uint64_t index,
                  uint32_t row) {
    uint32_t type = value ? kv->type_v : kv->type_k, n = SH(plan).head_dim;
    uint64_t to = value ? kv->v + index * kv->pitch_v : kv->k + index * kv->pitch_k;
    float inverse = 0.0f;
    if (type == GPU_KV_INT8) {
        uint32_t largest = 0;
        NO_UNROLL
        for (uint32_t i = c->lane; i < n; i += GPU_LANES)
            largest = max_u(largest, L(uint32_t, row + 4 * i) & 0x7fffffffu);
        float amax = bits_float(lane_max_u(largest));
        if (c->lane == 0)
            K(float, (value ? kv->v_scales : kv->k_scales) + 4 * index) = amax / 127.0f;
        inverse = inverse_of(amax);
    }
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        float v = L(float, row + 4 * i);
        if (type == GPU_KV_F32) K(float, to + 4 * i) = v;
        if (type == GPU_KV_F16) K(uint16_t, to + 2 * i) = (uint16_t)float_to_f16(v);
        if (type == GPU_KV_INT8)
            K(int8_t, to + i) = inverse > 0.0f ? (int8_t)rint_f(v * inverse) : (int8_t)0;
    }
}

/** Eight elements of a row, raw: 8, 16 or 32 bytes. */
struct Raw {
    u32x4 a, b;
};

FN struct Raw load_raw(const struct Ctx *c, uint64_t row, uint32_t type, uint32_t first) {
    struct Raw r;
    r.b = MAKE_X4(0, 0, 0, 0);
    if (type == GPU_KV_F16) {
        r.a = K(u32x4, row + 2 * first);
    } else if (type == GPU_KV_INT8) {
        u32x2 v = K(u32x2, row + first);
        r.a = MAKE_X4(v.x, v.y, 0, 0);
    } else {
        r.a = K(u32x4, row + 4 * first);
        r.b = K(u32x4, row + 4 * first + 16);
    }
    return r;
}

FN float signed_byte(uint32_t v, uint32_t i) {
    return (float)(int8_t)(v >> (8 * i) & 0xffu);
}

FN void unpack(const struct Raw *r, uint32_t type, float out[PER_LANE]) {
    uint32_t w[8];
    w[0] = r->a.x, w[1] = r->a.y, w[2] = r->a.z, w[3] = r->a.w;
    w[4] = r->b.x, w[5] = r->b.y, w[6] = r->b.z, w[7] = r->b.w;
    UNROLL
    for (uint32_t i = 0; i < PER_LANE; i++) {
        if (type == GPU_KV_F16) out[i] = f16_to_float(w[i / 2] >> (16 * (i & 1)) & 0xffffu);
        if (type == GPU_KV_INT8) out[i] = signed_byte(w[i / 4], i & 3);
        if (type == GPU_KV_F32) out[i] = bits_float(w[i]);
    }
}

/* ---- rotation ---------------------------------------------------------------------------- */

#define PAIRS_OF_LANE (GPU_MAX_HEAD_DIM / 2 / GPU_LANES)

/**
 * A warp brings a head into group memory: norm if it has one, RoPE if it is turned, zeros up to a
 * multiple of 8. All loads are under way before the first is used.
 */
FN void prepare_head(const struct Ctx *c, uint32_t head, uint64_t norm, int turned, uint32_t out) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    uint64_t in = SH(plan).qkv + 4 * (uint64_t)head * n;
    float a[PAIRS_OF_LANE], b[PAIRS_OF_LANE], scale = 1.0f, squares = 0.0f;
    u32x2 turn[PAIRS_OF_LANE];
    UNROLL
    for (uint32_t k = 0; k < PAIRS_OF_LANE; k++) {
        uint32_t i = c->lane + k * GPU_LANES;
        a[k] = b[k] = 0.0f;
        turn[k] = MAKE_X2(0x3f800000u, 0); /* not at all */
        if (i >= pairs) continue;
        a[k] = G(float, in + 4 * i);
        b[k] = G(float, in + 4 * (i + pairs));
        if (turned) turn[k] = G(u32x2, SH(plan).rope + 8 * i);
    }
    if (norm != GPU_NONE) {
        UNROLL
        for (uint32_t k = 0; k < PAIRS_OF_LANE; k++) squares += a[k] * a[k] + b[k] * b[k];
        scale = 1.0f / sqrt_f(lane_sum(squares) / (float)n + SH(plan).rms_norm_eps);
    }
    UNROLL
    for (uint32_t k = 0; k < PAIRS_OF_LANE; k++) {
        uint32_t i = c->lane + k * GPU_LANES;
        float cos = bits_float(turn[k].x), sin = bits_float(turn[k].y);
        if (i >= pairs) continue;
        if (norm != GPU_NONE) {
            a[k] = a[k] * scale * W(float, norm + 4 * i);
            b[k] = b[k] * scale * W(float, norm + 4 * (i + pairs));
        }
        L(float, out + 4 * i) = a[k] * cos - b[k] * sin;
        L(float, out + 4 * (i + pairs)) = b[k] * cos + a[k] * sin;
    }
    if (c->lane < round_up_u(n, PER_LANE) - n) L(float, out + 4 * (n + c->lane)) = 0.0f;
}

/** Turns a head that is in group memory back by the positions that were dropped. */
FN void turn_head(const struct Ctx *c, uint32_t in, uint32_t out) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    NO_UNROLL
    for (uint32_t i = c->lane; i < pairs; i += GPU_LANES) {
        float a = L(float, in + 4 * i), b = L(float, in + 4 * (i + pairs));
        u32x2 turn = G(u32x2, SH(plan).rope + 8 * (pairs + i));
        float cos = bits_float(turn.x), sin = bits_float(turn.y);
        L(float, out + 4 * i) = a * cos - b * sin;
        L(float, out + 4 * (i + pairs)) = b * cos + a * sin;
    }
    NO_UNROLL
    for (uint32_t i = n + c->lane; i < round_up_u(n, PER_LANE); i += GPU_LANES)
        L(float, out + 4 * i) = 0.0f;
}

/** A row in group memory as it comes back from the cache: what was computed before and after agrees. */
FN void round_row(const struct Ctx *c, uint32_t type, uint32_t row) {
    uint32_t n = SH(plan).head_dim, largest = 0;
    float scale = 0.0f, inverse = 0.0f;
    if (type == GPU_KV_F32) return;
    if (type == GPU_KV_INT8) {
        NO_UNROLL
        for (uint32_t i = c->lane; i < n; i += GPU_LANES)
            largest = max_u(largest, L(uint32_t, row + 4 * i) & 0x7fffffffu);
        float amax = bits_float(lane_max_u(largest));
        scale = amax / 127.0f;
        inverse = inverse_of(amax);
    }
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        float v = L(float, row + 4 * i);
        if (type == GPU_KV_F16) v = f16_to_float(float_to_f16(v));
        if (type == GPU_KV_INT8) v = inverse > 0.0f ? rint_f(v * inverse) * scale : 0.0f * scale;
        L(float, row + 4 * i) = v;
    }
}

/** The row of a slot, from the cache. */
FN void fetch_row(const struct Ctx *c, LOCAL const struct gpu_kv *kv, int value, uint64_t index,
                  uint32_t row) {
    uint32_t type = value ? kv->type_v : kv->type_k, n = SH(plan).head_dim;
    uint64_t from = value ? kv->v + index * kv->pitch_v : kv->k + index * kv->pitch_k;
    float scale = 1.0f;
    if (type == GPU_KV_INT8) scale = K(float, (value ? kv->v_scales : kv->k_scales) + 4 * index);
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        float v = 0.0f;
        if (type == GPU_KV_F32) v = K(float, from + 4 * i);
        if (type == GPU_KV_F16) v = f16_to_float(K(uint16_t, from + 2 * i));
        if (type == GPU_KV_INT8) v = (float)K(int8_t, from + i) * scale;
        L(float, row + 4 * i) = v;
    }
}

/* ---- what a token sees ------------------------------------------------------------------- */

/** Slots in ascending order, one range or two, as in the CPU's attention. */
struct Seen {
    uint32_t begin, n;   /* the first range */
    uint32_t begin2, n2; /* n2 is 0 if there is no second */
};

FN struct Seen seen_slots(LOCAL const struct gpu_launch *p, LOCAL const struct Step *st,
                          uint32_t window) {
    struct Seen s;
    uint32_t hidden = window > 0 && st->n_visible > window ? st->n_visible - window : 0;
    s.begin = hidden;
    s.n = st->n_visible - hidden;
    s.begin2 = 0;
    s.n2 = 0;
    if (hidden <= p->n_sink || st->n_dropped == 0) return s;
    uint32_t end = st->slot + 1; /* of the window in the ring */
    if (end - p->n_sink >= window) {
        s.begin = end - window;
        s.n = window;
        return s;
    }
    s.begin = p->n_sink;
    s.n = end - p->n_sink;
    s.n2 = window - s.n;
    s.begin2 = st->n_visible - s.n2;
    return s;
}

FN uint32_t seen_slot(const struct Seen *s, uint32_t i) {
    return i < s->n ? s->begin + i : s->begin2 + i - s->n;
}

/** Where a slot is in that order. */
FN uint32_t seen_index(const struct Seen *s, uint32_t slot) {
    if (slot >= s->begin && slot < s->begin + s->n) return slot - s->begin;
    return s->n + slot - s->begin2;
}

/** Contexts of so few rows are not split, and every query head is a unit of its own. */
#define SHORT_CONTEXT 256u

/** How many splits cost least: rounds of the groups times rows of a split and some for joining. */
FN uint32_t split_count(const struct Ctx *c, uint32_t total) {
    uint32_t best = 0xffffffffu;
    uint32_t most = min_u(SH(plan).max_splits, (total + 127) / 128);
    for (uint32_t s = 1 + c->lane; s <= most; s += GPU_LANES) {
        uint32_t rounds = (SH(plan).n_kv_heads * s + c->n_blocks - 1) / c->n_blocks;
        uint32_t cost = rounds * ((total + s - 1) / s + 64) + (s > 1 ? 96 : 0);
        best = min_u(best, min_u(cost, 0xffffffu) << 8 | s);
    }
    return ~lane_max_u(~best) & 255u;
}

/* ---- attention --------------------------------------------------------------------------- */

/** Sum over the lanes of a row; `width` is a power of two. */
FN float row_sum(float v, uint32_t width) {
    if (width > 16) v += lane_xor_f(v, 16);
    if (width > 8) v += lane_xor_f(v, 8);
    if (width > 4) v += lane_xor_f(v, 4);
    if (width > 2) v += lane_xor_f(v, 2);
    if (width > 1) v += lane_xor_f(v, 1);
    return v;
}

FN float larger(float a, float b) {
    return b > a ? b : a;
}

/** 2^(a - b) where a may be minus infinity: scores are in units of log 2. */
FN float weight_of(float a, float b) {
    return a == MINUS_INFINITY ? 0.0f : exp2_f(a - b);
}

FN float score_scale(const struct Ctx *c) {
    return 1.44269504088896f / sqrt_f((float)SH(plan).head_dim);
}

/** A warp's work: `heads` queries against the cached rows [begin, end) of what is seen. */
struct Job {
    uint64_t base;      /* row_index of slot 0 */
    uint32_t q, q_sink; /* L: rows of floats, `stride` bytes apart */
    uint32_t stride;
    uint32_t begin, end;
    uint32_t fresh; /* place of the new row among what is seen: it is left out */
    uint32_t out;   /* L: partial results */
    uint32_t out_stride;
};

/*
 * A row is held by `width` lanes, eight elements each, so a warp reads 32 / width rows at a time,
 * and DEPTH times that before it uses the first. Each row place has a softmax of its own; they are
 * joined at the end.
 */
FN void attend(const struct Ctx *c, LOCAL const struct gpu_launch *p, const struct Seen *seen,
               const struct Job *job, uint32_t type_k, uint32_t type_v, const uint32_t heads,
               const uint32_t depth) {
    LOCAL const struct gpu_kv *kv = &p->kv;
    uint32_t n = SH(plan).head_dim, lanes = (n + PER_LANE - 1) / PER_LANE, width = 1;
    while (width < lanes) width *= 2;
    uint32_t places = GPU_LANES / width, place = c->lane / width;
    uint32_t first = c->lane % width * PER_LANE;
    int active = first < n;
    float scale = score_scale(c);
    float max[GPU_HEADS_AT_ONCE], sum[GPU_HEADS_AT_ONCE], acc[GPU_HEADS_AT_ONCE][PER_LANE];
    if (!active) first = 0;
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        max[h] = MINUS_INFINITY;
        sum[h] = 0.0f;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] = 0.0f;
    }
    NO_UNROLL
    for (uint32_t at = job->begin; at < job->end; at += places * depth) {
        struct Raw k[4], v[4];
        float k_scale[4], v_scale[4];
        uint32_t slot[4];
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            uint32_t i = at + u * places + place;
            i = min_u(i, job->end - 1);
            slot[u] = seen_slot(seen, i + (i >= job->fresh ? 1u : 0u));
            uint64_t row = job->base + slot[u];
            k[u] = load_raw(c, kv->k + row * kv->pitch_k, type_k, first);
            v[u] = load_raw(c, kv->v + row * kv->pitch_v, type_v, first);
            k_scale[u] = type_k == GPU_KV_INT8 ? K(float, kv->k_scales + 4 * row) * scale : scale;
            v_scale[u] = type_v == GPU_KV_INT8 ? K(float, kv->v_scales + 4 * row) : 1.0f;
        }
        float score[GPU_HEADS_AT_ONCE][4];
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            float key[PER_LANE];
            unpack(&k[u], type_k, key);
            int sink = SH(step).n_dropped && slot[u] < p->n_sink;
            uint32_t q = (sink ? job->q_sink : job->q) + 4 * first;
            int valid = at + u * places + place < job->end;
            UNROLL
            for (uint32_t h = 0; h < heads; h++) {
                u32x4 a = L(u32x4, q + h * job->stride), b = L(u32x4, q + h * job->stride + 16);
                float dot = bits_float(a.x) * key[0];
                dot = fma_f(bits_float(a.y), key[1], dot);
                dot = fma_f(bits_float(a.z), key[2], dot);
                dot = fma_f(bits_float(a.w), key[3], dot);
                dot = fma_f(bits_float(b.x), key[4], dot);
                dot = fma_f(bits_float(b.y), key[5], dot);
                dot = fma_f(bits_float(b.z), key[6], dot);
                dot = fma_f(bits_float(b.w), key[7], dot);
                dot = row_sum(active ? dot : 0.0f, width) * k_scale[u];
                score[h][u] = valid ? dot : MINUS_INFINITY;
            }
        }
        UNROLL
        for (uint32_t h = 0; h < heads; h++) {
            float m = max[h];
            UNROLL
            for (uint32_t u = 0; u < depth; u++) m = larger(m, score[h][u]);
            float shrink = weight_of(max[h], m);
            max[h] = m;
            sum[h] *= shrink;
            UNROLL
            for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] *= shrink;
        }
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            float value[PER_LANE];
            unpack(&v[u], type_v, value);
            UNROLL
            for (uint32_t h = 0; h < heads; h++) {
                float w = weight_of(score[h][u], max[h]);
                sum[h] += w;
                w *= v_scale[u];
                UNROLL
                for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] = fma_f(w, value[i], acc[h][i]);
            }
        }
    }
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        float all = max[h];
        for (uint32_t m = 16; m >= width; m /= 2) all = larger(all, lane_xor_f(all, m));
        float mine = weight_of(max[h], all);
        max[h] = all;
        sum[h] *= mine;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] *= mine;
        NO_UNROLL
        for (uint32_t m = 16; m >= width; m /= 2) {
            sum[h] += lane_xor_f(sum[h], m);
            UNROLL
            for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] += lane_xor_f(acc[h][i], m);
        }
        if (place != 0 || !active) continue;
        uint32_t out = job->out + h * job->out_stride;
        if (c->lane == 0) {
            L(float, out) = max[h];
            L(float, out + 4) = sum[h];
        }
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++)
            if (first + i < n) L(float, out + 8 + 4 * (first + i)) = acc[h][i];
    }
}

/* The usual types have loops of their own. */
FN void attend_heads(const struct Ctx *c, LOCAL const struct gpu_launch *p, const struct Seen *seen,
                     const struct Job *job, const uint32_t heads, const uint32_t depth) {
    uint32_t k = p->kv.type_k, v = p->kv.type_v;
    if (k == GPU_KV_F16 && v == GPU_KV_F16)
        attend(c, p, seen, job, GPU_KV_F16, GPU_KV_F16, heads, depth);
    else if (k == GPU_KV_INT8 && v == GPU_KV_INT8)
        attend(c, p, seen, job, GPU_KV_INT8, GPU_KV_INT8, heads, depth);
    else
        attend(c, p, seen, job, k, v, heads, 1); /* rare: no more registers than the others need */
}

/** A warp's part of the result for a head that sees the new row alone. */
FN void attend_new(const struct Ctx *c, uint32_t q, uint32_t key, uint32_t value, uint32_t out) {
    uint32_t n = SH(plan).head_dim;
    float dot = 0.0f;
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES)
        dot = fma_f(L(float, q + 4 * i), L(float, key + 4 * i), dot);
    dot = lane_sum(dot) * score_scale(c);
    if (c->lane == 0) {
        L(float, out) = dot;
        L(float, out + 4) = 1.0f;
    }
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES)
        L(float, out + 8 + 4 * i) = L(float, value + 4 * i);
}

FN uint64_t part_of(const struct Ctx *c, uint32_t head, uint32_t split) {
    uint64_t i = (uint64_t)head * SH(plan).max_splits + split;
    return SH(plan).attn_part + 4 * i * (SH(plan).head_dim + 2);
}

/** A unit of work: `n` query heads from `head` on, which share a kv head. */
struct Unit {
    uint32_t kv_head;
    uint32_t head;
    uint32_t n;
};

FN void put_head(const struct Ctx *c, uint32_t head, uint32_t d, float v, uint32_t *largest) {
    G(float, SH(plan).attn + 4 * ((uint64_t)head * SH(plan).head_dim + d)) = v;
    *largest = max_u(*largest, float_bits(v) & 0x7fffffffu);
}

/** The last group of a unit joins its splits, in their order. */
FN void join_splits(const struct Ctx *c, struct Unit u, uint32_t splits, uint32_t *largest) {
    uint32_t n = SH(plan).head_dim;
    uint64_t done = SH(plan).attn_done + (uint64_t)GPU_LINE * u.kv_head;
    sync();
    if (c->thread == 0) SH(found)[0] = grid_add_both(&G(uint32_t, done)) + 1 == splits;
    sync();
    if (!SH(found)[0]) return;
    /* Each part's maximum becomes its weight. */
    NO_UNROLL
    for (uint32_t g = c->warp; g < u.n; g += c->n_warps) {
        float max = MINUS_INFINITY, sum = 0.0f;
        NO_UNROLL
        for (uint32_t s = c->lane; s < splits; s += GPU_LANES)
            max = larger(max, G(float, part_of(c, u.head + g, s)));
        max = lane_max_f(max);
        NO_UNROLL
        for (uint32_t s = c->lane; s < splits; s += GPU_LANES) {
            uint64_t part = part_of(c, u.head + g, s);
            sum += G(float, part + 4) * weight_of(G(float, part), max);
        }
        sum = 1.0f / lane_sum(sum);
        NO_UNROLL
        for (uint32_t s = c->lane; s < splits; s += GPU_LANES) {
            uint64_t part = part_of(c, u.head + g, s);
            G(float, part) = weight_of(G(float, part), max) * sum;
        }
    }
    sync();
    NO_UNROLL
    for (uint32_t e = c->thread; e < u.n * n; e += c->n_threads) {
        uint32_t head = u.head + e / n, d = e % n;
        float v = 0.0f;
        NO_UNROLL
        for (uint32_t s = 0; s < splits; s++) {
            uint64_t part = part_of(c, head, s);
            v = fma_f(G(float, part), G(float, part + 8 + 4 * d), v);
        }
        put_head(c, head, d, v, largest);
    }
    if (c->thread == 0) G(uint32_t, done) = 0;
}

/** Joins the warps' parts of each head, in their order: into the result, or the split's part of it. */
FN void join_parts_of_unit(const struct Ctx *c, struct Unit u, uint32_t parts, uint32_t n_parts,
                           uint32_t split, uint32_t splits, uint32_t *largest) {
    uint32_t n = SH(plan).head_dim, part_bytes = 4 * (n + 2);
    /* Each part's maximum becomes its weight: a lane is a part. */
    NO_UNROLL
    for (uint32_t g = c->warp; g < u.n; g += c->n_warps) {
        uint32_t part = parts + (c->lane * u.n + g) * part_bytes;
        int mine = c->lane < n_parts;
        float max = mine ? L(float, part) : MINUS_INFINITY;
        float all = lane_max_f(max), weight = weight_of(max, all);
        float sum = lane_sum(mine ? L(float, part + 4) * weight : 0.0f);
        if (splits == 1) weight *= 1.0f / sum;
        if (mine) L(float, part) = weight;
        if (splits == 1 || c->lane != 0) continue;
        uint64_t out = part_of(c, u.head + g, split);
        G(float, out) = all;
        G(float, out + 4) = sum;
    }
    sync();
    NO_UNROLL
    for (uint32_t e = c->thread; e < u.n * n; e += c->n_threads) {
        uint32_t g = u.n == 1 ? 0 : e / n, d = e - g * n;
        uint32_t part = parts + g * part_bytes;
        float v = 0.0f;
        NO_UNROLL
        for (uint32_t s = 0; s < n_parts; s++, part += u.n * part_bytes)
            v = fma_f(L(float, part), L(float, part + 8 + 4 * d), v);
        if (splits == 1)
            put_head(c, u.head + g, d, v, largest);
        else
            G(float, part_of(c, u.head + g, split) + 8 + 4 * d) = v;
    }
    if (splits > 1) join_splits(c, u, splits, largest);
}

FN void attn_unit(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                  LOCAL const struct gpu_phase *ph, const struct Seen *seen, struct Unit u,
                  uint32_t split, uint32_t splits, uint32_t *largest) {
    uint32_t n = SH(plan).head_dim, row = 4 * round_up_u(n, PER_LANE), part_bytes = 4 * (n + 2);
    uint32_t cached = seen->n + seen->n2 - 1; /* and the new row, in the last split */
    uint64_t slot = row_index(c, &p->kv, ph->layer, u.kv_head, SH(step).slot);
    int last = split + 1 == splits, prepared = (p->flags & GPU_PREPARED) != 0;
    uint32_t begin = 0, end = cached;
    if (splits > 1) {
        uint32_t each = cached / splits, rest = cached % splits;
        begin = each * split + min_u(split, rest);
        end = begin + each + (split < rest ? 1 : 0);
    }
    uint32_t q = SH(at_x), q_sink = q + u.n * row, key = q_sink + u.n * row, value = key + row;
    uint32_t parts = value + row;
    /* Queries and the new row's key and value, by whole warps. */
    NO_UNROLL
    for (uint32_t j = c->warp; j < u.n + (last ? 2 : 0); j += c->n_warps) {
        int query = j < u.n, is_value = j == u.n + 1;
        uint32_t out = query ? q + j * row : is_value ? value : key;
        if (!query && prepared) {
            fetch_row(c, &p->kv, is_value, slot, out);
            continue;
        }
        uint32_t head = query      ? u.head + j
                        : is_value ? SH(plan).n_heads + SH(plan).n_kv_heads + u.kv_head
                                   : SH(plan).n_heads + u.kv_head;
        int turned = !prepared && !is_value;
        prepare_head(c, head, turned ? ph->head_norm[query ? 0 : 1] : GPU_NONE, turned, out);
        if (query && SH(step).n_dropped == 0) continue;
        lane_sync();
        if (query) {
            turn_head(c, out, q_sink + j * row);
            continue;
        }
        if (u.head == u.kv_head * SH(plan).group) store_row(c, &p->kv, is_value, slot, out);
        lane_sync();
        round_row(c, is_value ? p->kv.type_v : p->kv.type_k, out);
    }
    sync();
    take_time(c, p, walked, 1);
    uint32_t chunks = (u.n + GPU_HEADS_AT_ONCE - 1) / GPU_HEADS_AT_ONCE, rows = end - begin;
    uint32_t strips = min_u(chunks < c->n_warps ? c->n_warps / chunks : 1, GPU_LANES - 1);
    uint32_t each = 8;
    if (rows <= 8 * strips)
        strips = (rows + 7) / 8;
    else
        each = (rows + strips - 1) / strips;
    for (uint32_t i = c->warp; i < chunks * strips; i += c->n_warps) {
        uint32_t strip = chunks == 1 ? i : i / chunks;
        uint32_t g = (i - strip * chunks) * GPU_HEADS_AT_ONCE;
        uint32_t heads = min_u(u.n - g, GPU_HEADS_AT_ONCE);
        struct Job job;
        job.base = row_index(c, &p->kv, ph->layer, u.kv_head, 0);
        job.q = q + g * row;
        job.q_sink = q_sink + g * row;
        job.stride = row;
        job.begin = min_u(begin + each * strip, end);
        job.end = min_u(job.begin + each, end);
        job.fresh = seen_index(seen, SH(step).slot);
        job.out = parts + (strip * u.n + g) * part_bytes;
        job.out_stride = part_bytes;
        if (heads == 4) {
            attend_heads(c, p, seen, &job, 4, 1);
            continue;
        }
        if (heads >= 2) {
            attend_heads(c, p, seen, &job, 2, 2);
            job.q += 2 * row;
            job.q_sink += 2 * row;
            job.out += 2 * part_bytes;
        }
        if (heads & 1) attend_heads(c, p, seen, &job, 1, 4);
    }
    /* The new row, by the warps that have least to do. */
    for (uint32_t g = c->n_warps - 1 - c->warp; last && g < u.n; g += c->n_warps)
        attend_new(c, q + g * row, key, value, parts + (strips * u.n + g) * part_bytes);
    sync();
    take_time(c, p, walked, 2);
    join_parts_of_unit(c, u, parts, strips + (last ? 1 : 0), split, splits, largest);
    sync();
}

FN void attn_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                   LOCAL const struct gpu_phase *ph, struct gpu_part *part) {
    struct Seen seen = seen_slots(p, &SH(step), ph->window);
    uint32_t group = SH(plan).group, splits = 1;
    struct Unit u;
    u.n = group;
    if (seen.n + seen.n2 <= SHORT_CONTEXT)
        u.n = 1;
    else
        splits = split_count(c, seen.n + seen.n2);
    uint32_t units = u.n == 1 ? SH(plan).n_heads : SH(plan).n_kv_heads;
    for (uint32_t i = c->block; i < units * splits; i += c->n_blocks) {
        uint32_t unit = splits == 1 ? i : i / splits;
        u.head = unit * u.n;
        u.kv_head = group == 1 || u.n > 1 ? unit : unit / group;
        attn_unit(c, p, walked, ph, &seen, u, i - unit * splits, splits, &part->largest);
    }
}

/** GPU_ROPE, unfused: rotates q in place and appends k and v. */
FN void rope_part(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                  LOCAL const struct gpu_phase *ph) {
    uint32_t n = SH(plan).head_dim, row = SH(at_x) + c->warp * 4 * round_up_u(n, PER_LANE);
    uint32_t heads = SH(plan).n_heads, kv_heads = SH(plan).n_kv_heads;
    NO_UNROLL
    for (uint32_t i = c->block * c->n_warps + c->warp; i < heads + 2 * kv_heads;
         i += c->n_blocks * c->n_warps) {
        int query = i < heads, is_value = i >= heads + kv_heads;
        uint32_t kv_head = query ? 0 : i - heads - (is_value ? kv_heads : 0);
        prepare_head(c, i, is_value ? GPU_NONE : ph->head_norm[query ? 0 : 1], !is_value, row);
        lane_sync();
        for (uint32_t d = c->lane; query && d < n; d += GPU_LANES)
            G(float, SH(plan).qkv + 4 * ((uint64_t)i * n + d)) = L(float, row + 4 * d);
        if (!query)
            store_row(c, &p->kv, is_value, row_index(c, &p->kv, ph->layer, kv_head, SH(step).slot),
                      row);
        lane_sync();
    }
}

#endif
