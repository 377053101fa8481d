/**
 * The phases around a product: QKV, OUT and DOWN (which add to the residual), GATE_UP, HEAD. All
 * have the same shape: the vector into group memory, the streams, then each row's owner finishes it.
 */
#ifndef PDVM_KERNELS_MATRIX_PHASES_H
#define PDVM_KERNELS_MATRIX_PHASES_H

#include "act.h"
#include "top.h"

FN float bias_at(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row) {
    return ph->bias == GPU_NONE ? 0.0f : W(float, ph->bias + 4 * (uint64_t)row);
}

/** q, k and v one behind the other; RoPE and the cache come in the next phase. */
FN void finish_qkv(const struct Ctx *c, const struct Run *run, LOCAL const struct gpu_phase *ph,
                   uint32_t row0, uint32_t rows) {
    for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
        float v = row_result(c, run, ph, row0, r) + bias_at(c, ph, row0 + r);
        G(float, SH(plan).qkv + 4 * (uint64_t)(row0 + r)) = v;
    }
    sync();
}

/** x += W * in (+ bias) */
FN void finish_residual(const struct Ctx *c, const struct Run *run,
                        LOCAL const struct gpu_phase *ph, uint32_t row0, uint32_t rows) {
    struct gpu_part part;
    part.squares = 0.0f;
    part.largest = 0;
    for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
        GLOBAL float *x = &G(float, SH(plan).x + 4 * (uint64_t)(row0 + r));
        float v = row_result(c, run, ph, row0, r) + bias_at(c, ph, row0 + r);
        v = *x + v;
        *x = v;
        part_add(&part, v, W(float, ph->next_norm + 4 * (uint64_t)(row0 + r)));
    }
    write_part(c, SH(plan).x_part, part);
}

/** hidden = silu(gate) * up; the two alternate. */
FN void finish_gate_up(const struct Ctx *c, const struct Run *run, LOCAL const struct gpu_phase *ph,
                       uint32_t row0, uint32_t rows) {
    struct gpu_part part;
    part.squares = 0.0f;
    part.largest = 0;
    for (uint32_t r = 2 * c->thread; r < rows; r += 2 * c->n_threads) {
        float gate = row_result(c, run, ph, row0, r);
        float up = row_result(c, run, ph, row0, r + 1);
        float v = gate / (1.0f + exp_f(-gate)) * up;
        G(float, SH(plan).hidden + 4 * (uint64_t)((row0 + r) / 2)) = v;
        part.largest = max_u(part.largest, float_bits(v) & 0x7fffffffu);
    }
    write_part(c, SH(plan).hidden_part, part);
}

/** Logits, and the block's best of them. */
FN void finish_head(const struct Ctx *c, const struct gpu_launch *p, const struct Run *run,
                    LOCAL const struct gpu_phase *ph, uint32_t row0, uint32_t rows) {
    uint64_t line = p->n_logit_rows == 1 ? 0 : run->step.index - p->first_logits;
    uint64_t to = SH(plan).logits + 4 * line * SH(plan).n_vocab;
    for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
        float v = row_result(c, run, ph, row0, r);
        G(float, to + 4 * (uint64_t)(row0 + r)) = v;
        L(uint32_t, SUMS_LO + 4 * r) = order_of(v); /* the sum is not needed any more */
    }
    sync();
    block_top(c, run, row0, rows);
}

/** L2 prefetch of what the end of the phase will read: units, biases and norms of the rows. */
FN void prefetch_rows(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                      uint32_t rows) {
    uint32_t per_line = GPU_LINE / 4;
    for (uint32_t i = c->thread * per_line; i < rows + per_line; i += c->n_threads * per_line) {
        uint32_t r = min_u(row0 + i, ph->rows - 1);
        prefetch(c->w + ph->units + 4 * (uint64_t)r);
        if (ph->bias != GPU_NONE) prefetch(c->w + ph->bias + 4 * (uint64_t)r);
        if (ph->next_norm != GPU_NONE) prefetch(c->w + ph->next_norm + 4 * (uint64_t)r);
    }
}

FN void matrix_phase(const struct Ctx *c, const struct gpu_launch *p, struct Run *run,
                     LOCAL const struct gpu_phase *ph, uint32_t next) {
    uint32_t row0 = W(uint32_t, ph->block_rows + 4 * (uint64_t)c->block);
    uint32_t rows = W(uint32_t, ph->block_rows + 4 * (uint64_t)c->block + 4) - row0;
    uint32_t kind = ph->kind;
    clear_sums(c, run, rows);
    if (kind == GPU_QKV && p->flags & GPU_PREPARED)
        load_prepared(c, run, ph);
    else
        load_activations(c, run, ph);
    if (next) stream_look_ahead(c, run, next);
    prefetch_rows(c, ph, row0, rows);
    stream_fill(c, run, &run->stream, GPU_RING_PAGES);
    sync();
    run_tasks(c, run, ph);
    if (next) {
        stream_open(c, run, next);
        stream_fill(c, run, &run->stream, BARRIER_PAGES);
    }
    sync();
    if (kind == GPU_QKV) finish_qkv(c, run, ph, row0, rows);
    if (kind == GPU_OUT || kind == GPU_DOWN) finish_residual(c, run, ph, row0, rows);
    if (kind == GPU_GATE_UP) finish_gate_up(c, run, ph, row0, rows);
    if (kind == GPU_HEAD) finish_head(c, p, run, ph, row0, rows);
}

#endif
