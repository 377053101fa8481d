/** Activations on their way into a product: norm, quantisation, and what is known about them. */
#ifndef PDVM_KERNELS_ACT_H
#define PDVM_KERNELS_ACT_H

#include "product.h"

#define PARTS_AT_ONCE 5 /* parts that a lane loads before it uses the first: 132 blocks in one go */

/**
 * Sum of squares and largest magnitude of a vector from its parts, in their order, by every warp for
 * itself: cheaper than a barrier.
 */
FN struct gpu_part join_parts(const struct Ctx *c, uint64_t parts, uint32_t n, int fill) {
    struct gpu_part all;
    all.squares = 0.0f;
    all.largest = 0;
    NO_UNROLL
    for (uint32_t base = 0; base < n; base += PARTS_AT_ONCE * GPU_LANES) {
        u32x2 part[PARTS_AT_ONCE];
        UNROLL
        for (uint32_t k = 0; k < PARTS_AT_ONCE; k++) {
            uint32_t i = base + k * GPU_LANES + c->lane;
            part[k] = MAKE_X2(0, 0);
            if (i < n) part[k] = G(u32x2, parts + 8 * (uint64_t)i);
        }
        if (fill && base == 0) stream_fill_up(c);
        UNROLL
        for (uint32_t k = 0; k < PARTS_AT_ONCE; k++) {
            all.squares += bits_float(part[k].x);
            all.largest = max_u(all.largest, part[k].y);
        }
    }
    all.squares = lane_sum(all.squares);
    all.largest = lane_max_u(all.largest);
    return all;
}

/** What turns a vector into the integers that products take. */
struct Quantiser {
    float norm;    /* 1 / rms, or 1 */
    float inverse; /* from the vector as it is to integers */
    float scale;   /* of the result: NaN if the vector isn't finite */
    float amax;
};

FN struct Quantiser quantiser(const struct Ctx *c, struct gpu_part part, int norm) {
    struct Quantiser q;
    q.norm = norm ? fast_rsqrt(part.squares * SH(plan).inv_hidden + SH(plan).rms_norm_eps) : 1.0f;
    q.amax = bits_float(part.largest) * q.norm;
    int finite = (float_bits(q.amax) & 0x7fffffffu) < 0x7f800000u &&
                 (float_bits(part.squares) & 0x7fffffffu) < 0x7f800000u;
    int usable = finite && q.amax >= 1e-30f; /* below, GPU_ACT_MAX / amax overflows */
    q.inverse = usable ? GPU_ACT_MAX * fast_inverse(q.amax) * q.norm : 0.0f;
    q.scale = usable ? q.amax * (1.0f / GPU_ACT_MAX) : finite ? 0.0f : bits_float(0x7fc00000u);
    if (!usable) q.amax = 0.0f;
    return q;
}

/**
 * Two numbers as 16-bit integers, nearest, ties to even: 1.5 * 2^23 has them in the low bits of the
 * sum. |v * inverse| is at most GPU_ACT_MAX but for rounding. NaN, which only a vector with scale NaN has,
 * becomes something.
 */
FN uint32_t quantise2(uint32_t a, uint32_t b, float inverse) {
    uint32_t x = float_bits(fma_f(bits_float(a), inverse, 12582912.0f));
    uint32_t y = float_bits(fma_f(bits_float(b), inverse, 12582912.0f));
    return bytes(x, y, 0x5410);
}

FN u32x2 quantise4(u32x4 v, float inverse) {
    return MAKE_X2(quantise2(v.x, v.y, inverse), quantise2(v.z, v.w, inverse));
}

FN u32x4 times4(u32x4 v, float f) {
    return MAKE_X4(float_bits(bits_float(v.x) * f), float_bits(bits_float(v.y) * f),
                   float_bits(bits_float(v.z) * f), float_bits(bits_float(v.w) * f));
}

/** Where a phase's vector comes from. */
struct Source {
    uint64_t in;
    uint64_t parts;
    uint32_t n_parts;
};

FN struct Source source_of(const struct Ctx *c, uint32_t kind) {
    struct Source s;
    s.in = SH(plan).xn;
    s.parts = SH(plan).x_part;
    s.n_parts = SH(plan).n_blocks;
    if (kind == GPU_OUT) {
        s.in = SH(plan).attn;
        s.parts = SH(plan).attn_max;
        s.n_parts = SH(plan).n_heads;
    }
    if (kind == GPU_DOWN) {
        s.in = SH(plan).hidden;
        s.parts = SH(plan).hidden_part;
    }
    return s;
}

#define ACT_AT_ONCE 8 /* times four elements that a thread loads before it uses the first */

/**
 * Fills group memory with the phase's vector, in the form(s) that its matrices multiply. All loads
 * are under way before the first is used: each takes a good part of a microsecond behind the weights.
 */
FN void load_activations(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    struct Source s = source_of(c, ph->kind);
    uint32_t act = ph->act, cols = ph->x_cols, end = round_up_u(ph->n_in, GPU_VECTOR);
    uint32_t floats = SH(at_x) + (act & GPU_ACT_INT ? 2 * cols : 0);
    struct Quantiser q;
    NO_UNROLL
    for (uint32_t base = 0; base < cols; base += 4 * ACT_AT_ONCE * c->n_threads) {
        uint32_t first = base + 4 * c->thread;
        GLOBAL const uint8_t *from = c->g + s.in + 4 * (uint64_t)first;
        u32x4 v[ACT_AT_ONCE];
        UNROLL
        for (uint32_t k = 0; k < ACT_AT_ONCE; k++) { /* zeros from n_in to `end` */
            v[k] = MAKE_X4(0, 0, 0, 0);
            if (first + 4 * k * c->n_threads < end)
                v[k] = *(GLOBAL const u32x4 *)(from + 16 * k * c->n_threads);
        }
        if (base == 0) {
            q = quantiser(c, join_parts(c, s.parts, s.n_parts, 1), ph->norm != GPU_NONE);
        }
        UNROLL
        for (uint32_t k = 0; k < ACT_AT_ONCE; k++) {
            uint32_t i = first + 4 * k * c->n_threads;
            if (i < cols && act & GPU_ACT_INT)
                L(u32x2, SH(at_x) + 2 * i) = quantise4(v[k], q.inverse);
            if (i < cols && act & GPU_ACT_FLOAT) L(u32x4, floats + 4 * i) = times4(v[k], q.norm);
        }
    }
    if (c->thread != 0) return;
    SH(vector).scale = q.scale;
    SH(vector).amax = q.amax;
}

/** GPU_NORM, unfused: each group prepares a piece of the vector for all. */
FN void norm_part(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    struct gpu_part part = join_parts(c, SH(plan).x_part, SH(plan).n_blocks, 0);
    struct Quantiser q = quantiser(c, part, ph->norm != GPU_NONE);
    uint64_t to = SH(plan).xq + (uint32_t)sizeof(struct gpu_quantised);
    if (c->block == 0 && c->thread == 0) {
        G(float, SH(plan).xq) = q.scale;
        G(float, SH(plan).xq + 4) = q.amax;
    }
    for (uint32_t i = 4 * (c->block * c->n_threads + c->thread); i < ph->n_in;
         i += 4 * c->n_blocks * c->n_threads) {
        u32x4 v = G(u32x4, SH(plan).xn + 4 * (uint64_t)i);
        G(u32x2, to + 2 * (uint64_t)i) = quantise4(v, q.inverse);
        G(u32x4, SH(plan).xf + 4 * (uint64_t)i) = times4(v, q.norm);
    }
}

/** load_activations after norm_part. */
FN void load_prepared(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    uint64_t from = SH(plan).xq + (uint32_t)sizeof(struct gpu_quantised);
    uint32_t n = round_up_u(ph->n_in, 4), act = ph->act;
    uint32_t floats = SH(at_x) + (act & GPU_ACT_INT ? 2 * ph->x_cols : 0);
    stream_fill_up(c);
    for (uint32_t i = 4 * c->thread; i < ph->x_cols; i += 4 * c->n_threads) {
        u32x2 q = MAKE_X2(0, 0);
        u32x4 v = MAKE_X4(0, 0, 0, 0);
        if (i < n) q = G(u32x2, from + 2 * (uint64_t)i);
        if (i < n) v = G(u32x4, SH(plan).xf + 4 * (uint64_t)i);
        if (act & GPU_ACT_INT) L(u32x2, SH(at_x) + 2 * i) = q;
        if (act & GPU_ACT_FLOAT) L(u32x4, floats + 4 * i) = v;
    }
    if (c->thread != 0) return;
    SH(vector).scale = G(float, SH(plan).xq);
    SH(vector).amax = G(float, SH(plan).xq + 4);
}

FN struct gpu_part part_start(void) {
    struct gpu_part part;
    part.squares = 0.0f;
    part.largest = 0;
    return part;
}

/** Writes an element of x; `norm`: its weight in the norm that comes next. */
FN void put_x(const struct Ctx *c, struct gpu_part *part, uint32_t i, float v, float norm) {
    float scaled = v * norm;
    G(float, SH(plan).x + 4 * (uint64_t)i) = v;
    G(float, SH(plan).xn + 4 * (uint64_t)i) = scaled;
    part->squares += v * v;
    part->largest = max_u(part->largest, float_bits(scaled) & 0x7fffffffu);
}

/** Writes the group's part; all that the group wrote before is done when thread 0 returns. */
FN void write_part(const struct Ctx *c, uint64_t parts, struct gpu_part part) {
    group_reduce(c, &part.squares, &part.largest);
    if (c->thread == 0)
        G(u32x2, parts + 8 * (uint64_t)c->block) = MAKE_X2(float_bits(part.squares), part.largest);
}

#endif
