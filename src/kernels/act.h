/** Activations on their way into a product: norm, quantisation, and what is known about them. */
#ifndef PDVM_KERNELS_ACT_H
#define PDVM_KERNELS_ACT_H

#include "product.h"

/**
 * Sum of squares and largest magnitude of a vector from its parts, in their order, by every warp for
 * itself: cheaper than a barrier.
 */
FN struct gpu_part join_parts(const struct Ctx *c, uint64_t parts, uint32_t n) {
    struct gpu_part all;
    all.squares = 0.0f;
    all.largest = 0;
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        u32x2 part = G(u32x2, parts + 8 * (uint64_t)i);
        all.squares += bits_float(part.x);
        all.largest = max_u(all.largest, part.y);
    }
    all.squares = lane_sum(all.squares);
    all.largest = lane_max_u(all.largest);
    return all;
}

/** What turns a vector into the integers that products take. */
struct Quantiser {
    float norm;    /* multiplies first: 1 / rms, or 1 */
    float inverse; /* then this */
    float scale;   /* of the result: NaN if the vector isn't finite */
    float amax;
};

FN struct Quantiser quantiser(const struct Ctx *c, struct gpu_part part, uint32_t n, int norm) {
    struct Quantiser q;
    q.norm = norm ? 1.0f / sqrt_f(part.squares / (float)n + SH(plan).rms_norm_eps) : 1.0f;
    q.amax = bits_float(part.largest) * q.norm;
    int finite = (float_bits(q.amax) & 0x7fffffffu) < 0x7f800000u &&
                 (float_bits(part.squares) & 0x7fffffffu) < 0x7f800000u;
    int usable = finite && q.amax >= 1e-30f; /* below, 32767 / amax overflows */
    q.inverse = usable ? 32767.0f / q.amax : 0.0f;
    q.scale = usable ? q.amax / 32767.0f : finite ? 0.0f : bits_float(0x7fc00000u);
    if (!usable) q.amax = 0.0f;
    return q;
}

FN uint32_t quantise(float v, const struct Quantiser *q) {
    float r = rint_f(v * q->inverse);
    r = r > 32767.0f ? 32767.0f : r < -32767.0f ? -32767.0f : r;
    /* NaN, which only a vector with scale NaN has, becomes something. */
    return (uint32_t)(int32_t)(r == r ? r : 0.0f) & 0xffffu;
}

/** Four elements of the vector that a phase takes, normalised. */
FN u32x4 normalised(const struct Ctx *c, uint64_t in, uint64_t norm, float factor, uint32_t i) {
    u32x4 v = G(u32x4, in + 4 * (uint64_t)i);
    if (norm == GPU_NONE) return v;
    u32x4 w = W(u32x4, norm + 4 * (uint64_t)i);
    return MAKE_X4(float_bits(bits_float(v.x) * factor * bits_float(w.x)),
                   float_bits(bits_float(v.y) * factor * bits_float(w.y)),
                   float_bits(bits_float(v.z) * factor * bits_float(w.z)),
                   float_bits(bits_float(v.w) * factor * bits_float(w.w)));
}

FN u32x2 quantise4(u32x4 v, const struct Quantiser *q) {
    return MAKE_X2(quantise(bits_float(v.x), q) | quantise(bits_float(v.y), q) << 16,
                   quantise(bits_float(v.z), q) | quantise(bits_float(v.w), q) << 16);
}

/** Where a phase's vector comes from. */
struct Source {
    uint64_t in;
    uint64_t parts;
    uint32_t n_parts;
};

FN struct Source source_of(const struct Ctx *c, uint32_t kind) {
    struct Source s;
    s.in = SH(plan).x;
    s.parts = SH(plan).x_part;
    s.n_parts = SH(plan).n_blocks;
    if (kind == GPU_OUT) {
        s.in = SH(plan).attn;
        s.parts = SH(plan).attn_max;
        s.n_parts = SH(plan).n_kv_heads;
    }
    if (kind == GPU_DOWN) {
        s.in = SH(plan).hidden;
        s.parts = SH(plan).hidden_part;
    }
    return s;
}

/** Fills group memory with the phase's vector, in the form(s) that its matrices multiply. */
FN void load_activations(const struct Ctx *c, struct Run *run, LOCAL const struct gpu_phase *ph) {
    struct Source s = source_of(c, ph->kind);
    struct gpu_part part = join_parts(c, s.parts, s.n_parts);
    struct Quantiser q = quantiser(c, part, ph->n_in, ph->norm != GPU_NONE);
    uint32_t n = round_up_u(ph->n_in, 4), act = ph->act;
    uint32_t floats = run->x + (act & GPU_ACT_INT ? 2 * ph->x_cols : 0);
    for (uint32_t i = 4 * c->thread; i < ph->x_cols; i += 4 * c->n_threads) {
        u32x4 v = MAKE_X4(0, 0, 0, 0);
        if (i < n) v = normalised(c, s.in, ph->norm, q.norm, i);
        if (act & GPU_ACT_INT) L(u32x2, run->x + 2 * i) = quantise4(v, &q);
        if (act & GPU_ACT_FLOAT) L(u32x4, floats + 4 * i) = v;
    }
    run->scale = q.scale;
    run->amax = q.amax;
}

/** GPU_NORM, unfused: each group prepares a piece of the vector for all. */
FN void norm_part(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    struct gpu_part part = join_parts(c, SH(plan).x_part, SH(plan).n_blocks);
    struct Quantiser q = quantiser(c, part, ph->n_in, ph->norm != GPU_NONE);
    uint64_t to = SH(plan).xq + (uint32_t)sizeof(struct gpu_quantised);
    if (c->block == 0 && c->thread == 0) {
        G(float, SH(plan).xq) = q.scale;
        G(float, SH(plan).xq + 4) = q.amax;
    }
    for (uint32_t i = 4 * (c->block * c->n_threads + c->thread); i < ph->n_in;
         i += 4 * c->n_blocks * c->n_threads) {
        u32x4 v = normalised(c, SH(plan).x, ph->norm, q.norm, i);
        G(u32x2, to + 2 * (uint64_t)i) = quantise4(v, &q);
        G(u32x4, SH(plan).xf + 4 * (uint64_t)i) = v;
    }
}

/** load_activations after norm_part. */
FN void load_prepared(const struct Ctx *c, struct Run *run, LOCAL const struct gpu_phase *ph) {
    uint64_t from = SH(plan).xq + (uint32_t)sizeof(struct gpu_quantised);
    uint32_t n = round_up_u(ph->n_in, 4), act = ph->act;
    uint32_t floats = run->x + (act & GPU_ACT_INT ? 2 * ph->x_cols : 0);
    for (uint32_t i = 4 * c->thread; i < ph->x_cols; i += 4 * c->n_threads) {
        u32x2 q = MAKE_X2(0, 0);
        u32x4 v = MAKE_X4(0, 0, 0, 0);
        if (i < n) q = G(u32x2, from + 2 * (uint64_t)i);
        if (i < n) v = G(u32x4, SH(plan).xf + 4 * (uint64_t)i);
        if (act & GPU_ACT_INT) L(u32x2, run->x + 2 * i) = q;
        if (act & GPU_ACT_FLOAT) L(u32x4, floats + 4 * i) = v;
    }
    run->scale = G(float, SH(plan).xq);
    run->amax = G(float, SH(plan).xq + 4);
}

/** What a new element of x adds to the group's part; `norm`: of the phase that reads x next. */
FN void part_add(struct gpu_part *part, float v, float norm) {
    part->squares += v * v;
    part->largest = max_u(part->largest, float_bits(v * norm) & 0x7fffffffu);
}

/** Writes the group's part; all that the group wrote before is done when thread 0 returns. */
FN void write_part(const struct Ctx *c, uint64_t parts, struct gpu_part part) {
    group_reduce(c, &part.squares, &part.largest);
    if (c->thread == 0)
        G(u32x2, parts + 8 * (uint64_t)c->block) = MAKE_X2(float_bits(part.squares), part.largest);
}

#endif
