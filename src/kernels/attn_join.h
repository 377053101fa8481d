/**
 * Attention's result from its parts: each has its own largest score, and is weighed by it when parts
 * are joined (Milakov and Gimelshein 2018), always in their order. First those of a group's warps,
 * then those of the groups that share a head's positions, by whoever comes last. A warp joins a head.
 */
#ifndef PDVM_KERNELS_ATTN_JOIN_H
#define PDVM_KERNELS_ATTN_JOIN_H

#include "attn_rows.h"

#define MINUS_INFINITY bits_float(0xff800000u)
#define PARTS_AT_ONCE_NEAR 4 /* parts that a lane loads before it uses the first */
#define PARTS_AT_ONCE_FAR 8

FN float larger(float a, float b) {
    return b > a ? b : a;
}

/** 2^(a - b) where a may be minus infinity: scores are in units of log 2. */
FN float weight_of(float a, float b) {
    return a == MINUS_INFINITY ? 0.0f : exp2_f(a - b);
}

FN float score_scale(const struct Ctx *c) {
    return 1.44269504088896f * fast_rsqrt((float)SH(plan).head_dim);
}

/** A unit of work: `n` query heads from `head` on, which share a kv head. */
struct Unit {
    uint32_t kv_head;
    uint32_t head;
    uint32_t n;
};

/**
 * At most GPU_LANES parts of a head's result, in group memory (near) or in the state (far): a pair of
 * floats, largest score and sum of the weights, and a row of floats, the weighted sum of the values.
 */
struct Parts {
    uint64_t sums, rows;             /* L or G: those of the first part */
    uint32_t sums_pitch, rows_pitch; /* bytes to the next part's */
    uint32_t n;
};

FN struct Parts near_parts(const struct Ctx *c, struct Unit u, uint32_t g, uint32_t at,
                           uint32_t n) {
    uint32_t row = 4 * round_up_u(SH(plan).head_dim, PER_LANE);
    struct Parts p;
    p.n = n;
    p.rows = at + g * row;
    p.rows_pitch = u.n * row;
    p.sums = at + n * u.n * row + 8 * g;
    p.sums_pitch = 8 * u.n;
    return p;
}

FN struct Parts far_parts(const struct Ctx *c, uint32_t head, uint32_t n) {
    uint64_t first = (uint64_t)head * SH(plan).max_splits;
    struct Parts p;
    p.n = n;
    p.rows_pitch = 4 * SH(plan).head_dim;
    p.rows = SH(plan).attn_part + first * p.rows_pitch;
    p.sums_pitch = 8;
    p.sums = SH(plan).attn_part + (uint64_t)SH(plan).n_heads * SH(plan).max_splits * p.rows_pitch +
             8 * first;
    return p;
}

/** What parts weigh: this lane's part, and all of them. */
struct Weights {
    float mine;
    float max, sum;
};

FN struct Weights weigh_parts(const struct Ctx *c, const struct Parts *p, const int far) {
    struct Weights w;
    u32x2 part = MAKE_X2(0xff800000u, 0);
    uint64_t at = p->sums + (uint64_t)c->lane * p->sums_pitch;
    if (c->lane < p->n) part = far ? G(u32x2, at) : L(u32x2, (uint32_t)at);
    w.max = lane_max_f(bits_float(part.x));
    w.mine = weight_of(bits_float(part.x), w.max);
    w.sum = lane_sum(w.mine * bits_float(part.y));
    return w;
}

/** Elements d to d + 3 of the parts' weighted sum; all lanes together. */
FN u32x4 add_parts(const struct Ctx *c, const struct Parts *p, float weight, uint32_t d,
                   const int far) {
    const uint32_t at_once = far ? PARTS_AT_ONCE_FAR : PARTS_AT_ONCE_NEAR;
    float x = 0.0f, y = 0.0f, z = 0.0f, t = 0.0f;
    NO_UNROLL
    for (uint32_t s = 0; s < p->n; s += at_once) {
        u32x4 part[PARTS_AT_ONCE_FAR];
        UNROLL
        for (uint32_t k = 0; k < at_once; k++) {
            uint64_t at = p->rows + (uint64_t)min_u(s + k, p->n - 1) * p->rows_pitch + 4 * d;
            part[k] = far ? G(u32x4, at) : L(u32x4, (uint32_t)at);
        }
        UNROLL
        for (uint32_t k = 0; k < at_once; k++) { /* lanes from n on weigh nothing */
            float w = bits_float(lane_get_u(float_bits(weight), s + k));
            x = fma_f(w, bits_float(part[k].x), x);
            y = fma_f(w, bits_float(part[k].y), y);
            z = fma_f(w, bits_float(part[k].z), z);
            t = fma_f(w, bits_float(part[k].w), t);
        }
    }
    return MAKE_X4(float_bits(x), float_bits(y), float_bits(z), float_bits(t));
}

/** The joined parts become the result of `head`; `largest`: bits of the largest |v| of the thread. */
FN void put_head(const struct Ctx *c, uint32_t head, const struct Parts *p, const int far,
                 uint32_t *largest) {
    uint32_t n = SH(plan).head_dim;
    uint64_t out = SH(plan).attn + 4 * (uint64_t)head * n;
    struct Weights w = weigh_parts(c, p, far);
    float inverse = fast_inverse(w.sum);
    NO_UNROLL
    for (uint32_t base = 0; base < n; base += 4 * GPU_LANES) {
        uint32_t d = base + 4 * c->lane;
        u32x4 v = times4(add_parts(c, p, w.mine, d < n ? d : 0, far), inverse);
        if (d >= n) continue;
        *largest = max_u(*largest, max_u(v.x & 0x7fffffffu, v.y & 0x7fffffffu));
        if (n % 4 == 0) {
            *largest = max_u(*largest, max_u(v.z & 0x7fffffffu, v.w & 0x7fffffffu));
            G(u32x4, out + 4 * d) = v;
            continue;
        }
        G(u32x2, out + 4 * d) = MAKE_X2(v.x, v.y);
        if (d + 2 >= n) continue;
        *largest = max_u(*largest, max_u(v.z & 0x7fffffffu, v.w & 0x7fffffffu));
        G(u32x2, out + 4 * d + 8) = MAKE_X2(v.z, v.w);
    }
}

/** A warp joins head g's near parts; in the last of `splits` groups to come, also what all made of it. */
FN void join_head(const struct Ctx *c, struct Unit u, uint32_t g, const struct Parts *near,
                  uint32_t split, uint32_t splits, uint32_t *largest) {
    uint32_t n = SH(plan).head_dim, head = u.head + g, last = 0;
    if (splits == 1) {
        put_head(c, head, near, 0, largest);
        return;
    }
    struct Parts far = far_parts(c, head, splits);
    struct Weights w = weigh_parts(c, near, 0);
    NO_UNROLL
    for (uint32_t base = 0; base < n; base += 4 * GPU_LANES) {
        uint32_t d = base + 4 * c->lane;
        u32x4 v = add_parts(c, near, w.mine, d < n ? d : 0, 0);
        if (d < n) G(u32x4, far.rows + (uint64_t)split * far.rows_pitch + 4 * d) = v;
    }
    if (c->lane == 0)
        G(u32x2, far.sums + 8 * split) = MAKE_X2(float_bits(w.max), float_bits(w.sum));
    lane_sync();
    uint32_t word = head - u.kv_head * SH(plan).group;
    GLOBAL uint32_t *done =
        &G(uint32_t, SH(plan).attn_done + GPU_LINE * (uint64_t)u.kv_head + 4 * word);
    if (c->lane == 0) last = grid_add_both(done) + 1 == splits;
    last = lane_get_u(last, 0);
    lane_sync();
    if (!last) return;
    put_head(c, head, &far, 1, largest);
    if (c->lane == 0) *done = 0;
}

#endif
