/**
 * What attention reads and writes: rows of the cache, heads of a vector and their rotation (Su et al.
 * 2021), and which slots a token sees.
 */
#ifndef PDVM_KERNELS_ATTN_ROWS_H
#define PDVM_KERNELS_ATTN_ROWS_H

#include "act.h"

#define PER_LANE 8 /* elements of a row that a lane holds */

/* ---- the cache --------------------------------------------------------------------------- */

FN uint64_t row_index(const struct Ctx *c, LOCAL const struct gpu_kv *kv, uint32_t layer,
                      uint32_t head, uint32_t slot) {
    return ((uint64_t)layer * SH(plan).n_kv_heads + head) * kv->capacity + slot;
}

/** From a row to INT8 codes; 0 if it has none. */
FN float inverse_of(float amax) {
    return amax >= 1e-30f && float_bits(amax) < 0x7f800000u ? 127.0f / amax : 0.0f;
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

/** The factor that an RMSNorm of a head multiplies by, for a warp: the same bits wherever it is taken. */
FN float head_scale(const struct Ctx *c, uint64_t in) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    float squares = 0.0f;
    UNROLL
    for (uint32_t k = 0; k < PAIRS_OF_LANE; k++) {
        uint32_t i = c->lane + k * GPU_LANES;
        if (i >= pairs) continue;
        float a = G(float, in + 4 * i), b = G(float, in + 4 * (i + pairs));
        squares += a * a + b * b;
    }
    return fast_rsqrt(lane_sum(squares) * fast_inverse((float)n) + SH(plan).rms_norm_eps);
}

/**
 * A warp brings a head into group memory: norm if it has one, RoPE if it is turned, zeros up to a
 * multiple of 8. All loads are under way before the first is used.
 */
FN void prepare_head(const struct Ctx *c, uint32_t head, uint64_t norm, int turned, uint32_t out) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    uint64_t in = SH(plan).qkv + 4 * (uint64_t)head * n;
    float a[PAIRS_OF_LANE], b[PAIRS_OF_LANE];
    float scale = norm != GPU_NONE ? head_scale(c, in) : 1.0f;
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

/**
 * A warp stores row[head_dim] of floats, in group memory, as a key or a value, if `store`; the row
 * becomes what will come back from the cache: what was computed before and after agrees.
 */
FN void put_row(const struct Ctx *c, LOCAL const struct gpu_kv *kv, int value, uint64_t index,
                uint32_t row, int store) {
    uint32_t type = value ? kv->type_v : kv->type_k, n = SH(plan).head_dim;
    uint64_t to = value ? kv->v + index * kv->pitch_v : kv->k + index * kv->pitch_k;
    float scale = 0.0f, inverse = 0.0f;
    if (type == GPU_KV_INT8) {
        uint32_t largest = 0;
        NO_UNROLL
        for (uint32_t i = c->lane; i < n; i += GPU_LANES)
            largest = max_u(largest, L(uint32_t, row + 4 * i) & 0x7fffffffu);
        float amax = bits_float(lane_max_u(largest));
        scale = amax / 127.0f;
        inverse = inverse_of(amax);
        if (store && c->lane == 0)
            K(float, (value ? kv->v_scales : kv->k_scales) + 4 * index) = scale;
    }
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        float v = L(float, row + 4 * i);
        if (type == GPU_KV_F32 && store) K(float, to + 4 * i) = v;
        if (type == GPU_KV_F16) {
            uint32_t bits = float_to_f16(v);
            if (store) K(uint16_t, to + 2 * i) = (uint16_t)bits;
            v = f16_to_float(bits);
        }
        if (type == GPU_KV_INT8) {
            int8_t code = inverse > 0.0f ? (int8_t)rint_f(v * inverse) : (int8_t)0;
            if (store) K(int8_t, to + i) = code;
            v = (float)code * scale;
        }
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

#endif
