/** Phase EMBED: x = the token's row of the embedding, or activations from the host. */
#ifndef PDVM_KERNELS_EMBED_H
#define PDVM_KERNELS_EMBED_H

#include "act.h"

FN float embedding_at(const struct Ctx *c, uint32_t token, uint32_t i) {
    uint64_t row = SH(plan).embed + token * SH(plan).embed_row_bytes;
    uint32_t kind = SH(plan).embed_kind;
    if (kind == GPU_EMBED_F32) return W(float, row + 4 * (uint64_t)i);
    if (kind == GPU_EMBED_F16) return f16_to_float(W(uint16_t, row + 2 * (uint64_t)i));
    if (kind == GPU_EMBED_BF16) return bf16_to_float(W(uint16_t, row + 2 * (uint64_t)i));
    uint32_t group = SH(plan).embed_group, n = SH(plan).hidden_size;
    uint64_t groups = group ? (n + group - 1) / group : 1;
    float scale = W(float, SH(plan).embed_scales + 4 * (token * groups + (group ? i / group : 0)));
    return scale * W(float, SH(plan).embed_table + 4 * (uint64_t)W(uint8_t, row + i));
}

/** The norm in front of a phase that is not staged. */
FN uint64_t phase_norm(const struct Ctx *c, uint32_t i) {
    uint64_t record = SH(plan).phases + (uint64_t)i * (uint32_t)sizeof(struct gpu_phase);
    u32x2 norm = W(u32x2, record + GPU_PHASE_NORM);
    return (uint64_t)norm.y << 32 | norm.x;
}

/** cos and sin of pair i at a position: the angle is reduced in double, exactly enough. */
FN u32x2 rope_at(const struct Ctx *c, uint32_t i, double position, float factor) {
    float cos, sin;
    double turns = position * (double)W(float, SH(plan).inv_freq + 4 * i) * 0.15915494309189533577;
    turns -= rint_d(turns);
    sincospi_f((float)(2.0 * turns), &sin, &cos);
    return MAKE_X2(float_bits(cos * factor), float_bits(sin * factor));
}

/** The step's rotations, once for all heads and layers; a pair by one thread of one group. */
FN void embed_rope(const struct Ctx *c) {
    uint32_t pairs = SH(plan).head_dim / 2, n = SH(step).n_dropped ? 2 * pairs : pairs;
    if (c->thread + 1 != c->n_threads) return;
    NO_UNROLL
    for (uint32_t i = c->block; i < n; i += c->n_blocks) {
        u32x2 turn = i < pairs ? rope_at(c, i, (double)SH(step).position, SH(plan).rope_factor)
                               : rope_at(c, i - pairs, -(double)SH(step).n_dropped, 1.0f);
        G(u32x2, SH(plan).rope + 8 * (uint64_t)i) = turn;
    }
}

FN void embed_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                    LOCAL const struct gpu_phase *ph, struct gpu_part *part) {
    uint32_t n = SH(plan).hidden_size;
    uint32_t begin = (uint32_t)((uint64_t)n * c->block / c->n_blocks);
    uint32_t end = (uint32_t)((uint64_t)n * (c->block + 1) / c->n_blocks);
    uint32_t token = 0;
    uint64_t norm = ph->next_norm;
    if (p->flags & GPU_X_IN)
        norm = phase_norm(c, p->x_phase);
    else
        token = G(uint32_t, SH(plan).tokens + 4 * (uint64_t)SH(step).index);
    NO_UNROLL
    for (uint32_t i = begin + c->thread; i < end; i += c->n_threads) {
        float v = p->flags & GPU_X_IN ? G(float, SH(plan).x_in + 4 * (uint64_t)i)
                                      : embedding_at(c, token, i);
        put_x(c, part, i, v, W(float, norm + 4 * (uint64_t)i));
    }
    embed_rope(c);
}

#endif
