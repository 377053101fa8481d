/** Activations on their way into a product: norm, quantisation, and what is known about them. */
#ifndef PDVM_KERNELS_ACT_H
#define PDVM_KERNELS_ACT_H

#include "parts.h"
#include "product.h"

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

/** What the parts in group memory say of the phase's vector. */
FN struct Quantiser phase_quantiser(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    return quantiser(c, parts_join(c), ph->norm != GPU_NONE);
}

/**
 * `rounds` rounds of the vector as integers, from column `base`: no thread asks where the end is,
 * since a branch costs more than what it would save (gpu_x_pad). All loads are under way before the
 * parts are joined and before the ring is filled up, whose pages would be in front of them.
 */
FN void load_integers(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t base,
                      const uint32_t rounds, uint32_t ahead, struct Quantiser *q) {
    uint32_t first = base + 4 * c->thread, round = 4 * c->n_threads;
    GLOBAL const uint8_t *from = c->g + ph->in + 4 * (uint64_t)first;
    uint32_t to = SH(at_x) + 2 * first;
    u32x4 v[GPU_ACT_MANY];
    UNROLL
    for (uint32_t k = 0; k < rounds; k++)
        v[k] = *(GLOBAL const u32x4 *)(from + 4 * (uint64_t)round * k);
    if (base == 0) {
        stream_fill_up(c);
        if (ahead) stream_look_ahead(c, ahead);
        *q = phase_quantiser(c, ph);
    }
    UNROLL
    for (uint32_t k = 0; k < rounds; k++)
        L(u32x2, to + 2 * round * k) = quantise4(v[k], q->inverse);
}

/** The vector as floats: of float weights, whose bytes take so long that this does not matter. */
FN void load_floats(const struct Ctx *c, LOCAL const struct gpu_phase *ph, float norm) {
    uint32_t to = SH(at_x) + (ph->act & GPU_ACT_INT ? 2 * ph->x_pad : 0);
    NO_UNROLL
    for (uint32_t i = 4 * c->thread; i < ph->x_cols; i += 4 * c->n_threads)
        L(u32x4, to + 4 * i) = times4(G(u32x4, ph->in + 4 * (uint64_t)i), norm);
}

/**
 * Fills group memory with the phase's vector, in the form(s) that its matrices multiply. `ahead`: the
 * next product phase or 0, whose streams are looked for meanwhile.
 */
FN void load_activations(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t ahead) {
    uint32_t round = 4 * c->n_threads, pad = ph->x_pad;
    struct Quantiser q;
    if (ph->act != GPU_ACT_INT) {
        stream_fill_up(c);
        if (ahead) stream_look_ahead(c, ahead);
        q = phase_quantiser(c, ph);
        if (ph->act & GPU_ACT_FLOAT) load_floats(c, ph, q.norm);
        NO_UNROLL
        for (uint32_t i = 4 * c->thread; ph->act & GPU_ACT_INT && i < pad; i += round)
            L(u32x2, SH(at_x) + 2 * i) = quantise4(G(u32x4, ph->in + 4 * (uint64_t)i), q.inverse);
    } else if (pad == GPU_ACT_FEW * round) {
        load_integers(c, ph, 0, GPU_ACT_FEW, ahead, &q);
    } else if (pad == GPU_ACT_SOME * round) {
        load_integers(c, ph, 0, GPU_ACT_SOME, ahead, &q);
    } else {
        NO_UNROLL
        for (uint32_t base = 0; base < pad; base += GPU_ACT_MANY * round)
            load_integers(c, ph, base, GPU_ACT_MANY, ahead, &q);
    }
    if (c->thread != 0) return;
    SH(vector).scale = q.scale;
    SH(vector).amax = q.amax;
}

/** GPU_NORM, unfused: each group prepares a piece of the vector for all. */
FN void norm_part(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    struct Quantiser q = phase_quantiser(c, ph);
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
FN void load_prepared(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t ahead) {
    uint64_t from = SH(plan).xq + (uint32_t)sizeof(struct gpu_quantised);
    uint32_t n = round_up_u(ph->n_in, 4), act = ph->act;
    uint32_t floats = SH(at_x) + (act & GPU_ACT_INT ? 2 * ph->x_pad : 0);
    stream_fill_up(c);
    if (ahead) stream_look_ahead(c, ahead);
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

/** Writes an element of x; `norm`: its weight in the norm that comes next. */
FN void put_x(const struct Ctx *c, struct gpu_part *part, uint32_t i, float v, float norm) {
    float scaled = v * norm;
    G(float, SH(plan).x + 4 * (uint64_t)i) = v;
    G(float, SH(plan).xn + 4 * (uint64_t)i) = scaled;
    part->squares += v * v;
    part->largest = max_u(part->largest, float_bits(scaled) & 0x7fffffffu);
}

#endif
