/**
 * The phases around a product: QKV, OUT and DOWN (which add to the residual), GATE_UP, HEAD. All
 * have the same shape: the vector into group memory, the streams, then each row's owner finishes it.
 */
#ifndef PDVM_KERNELS_MATRIX_PHASES_H
#define PDVM_KERNELS_MATRIX_PHASES_H

#include "act.h"
#include "top.h"

/** What the end of a phase needs of its rows: arrays of max_rows floats at at_rows. */
enum { ROW_UNIT, ROW_BIAS, ROW_NORM, ROW_X };

FN uint32_t row_at(const struct Ctx *c, uint32_t what, uint32_t r) {
    return SH(at_rows) + 4 * (what * SH(plan).max_rows + r);
}

/** Asks for them. */
FN void rows_look_ahead(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                        uint32_t rows, uint32_t first, uint32_t n_threads) {
    int residual = ph->kind == GPU_OUT || ph->kind == GPU_DOWN;
    for (uint32_t r = first; r < rows; r += n_threads) {
        uint64_t row = 4 * (uint64_t)(row0 + r);
        async_word(c, row_at(c, ROW_UNIT, r), c->w + ph->units + row);
        if (ph->bias != GPU_NONE) async_word(c, row_at(c, ROW_BIAS, r), c->w + ph->bias + row);
        if (!residual) continue;
        async_word(c, row_at(c, ROW_NORM, r), c->w + ph->next_norm + row);
        async_word(c, row_at(c, ROW_X, r), c->g + SH(plan).x + row);
    }
}

FN float row_bias(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t r) {
    return ph->bias == GPU_NONE ? 0.0f : L(float, row_at(c, ROW_BIAS, r));
}

/** q, k and v one behind the other; RoPE and the cache come in the next phase. */
FN void finish_qkv(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                   uint32_t rows, uint32_t n_threads) {
    for (uint32_t r = c->thread; r < rows; r += n_threads) {
        float v = row_result(c, ph, row0, r, L(float, row_at(c, ROW_UNIT, r))) + row_bias(c, ph, r);
        G(float, SH(plan).qkv + 4 * (uint64_t)(row0 + r)) = v;
    }
}

/** x += W * in (+ bias) */
FN void finish_residual(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                        uint32_t rows, uint32_t n_threads, struct gpu_part *part) {
    for (uint32_t r = c->thread; r < rows; r += n_threads) {
        float v =
            L(float, row_at(c, ROW_X, r)) +
            (row_result(c, ph, row0, r, L(float, row_at(c, ROW_UNIT, r))) + row_bias(c, ph, r));
        put_x(c, part, row0 + r, v, L(float, row_at(c, ROW_NORM, r)));
    }
}

/** hidden = silu(gate) * up; the two alternate. */
FN void finish_gate_up(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                       uint32_t rows, uint32_t n_threads, struct gpu_part *part) {
    for (uint32_t r = 2 * c->thread; r < rows; r += 2 * n_threads) {
        float gate = row_result(c, ph, row0, r, L(float, row_at(c, ROW_UNIT, r)));
        float up = row_result(c, ph, row0, r + 1, L(float, row_at(c, ROW_UNIT, r + 1)));
        float v = gate / (1.0f + exp_f(-gate)) * up;
        G(float, SH(plan).hidden + 4 * (uint64_t)((row0 + r) / 2)) = v;
        part->largest = max_u(part->largest, float_bits(v) & 0x7fffffffu);
    }
}

/** Logits, and the block's best of them. */
FN void finish_head(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                    LOCAL const struct gpu_phase *ph, uint32_t row0, uint32_t rows) {
    uint64_t line = p->n_logit_rows == 1 ? 0 : SH(step).index - p->first_logits;
    uint64_t to = SH(plan).logits + 4 * line * SH(plan).n_vocab;
    for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
        float v = row_result(c, ph, row0, r, L(float, row_at(c, ROW_UNIT, r)));
        G(float, to + 4 * (uint64_t)(row0 + r)) = v;
        L(uint32_t, SUMS_LO + 4 * r) = order_of(v); /* the sum is not needed any more */
    }
    if (p->flags & (GPU_SAMPLING | GPU_LIST)) block_top(c, p, row0, rows);
}

/** What a product phase needs of its rows, before it begins. */
FN void rows_prepare(const struct Ctx *c, uint32_t number) {
    uint32_t row0 = SH(rows)[number % STAGED][0], rows = SH(rows)[number % STAGED][1] - row0;
    uint32_t first = c->thread - first_aside(c), n_threads = c->n_threads - first_aside(c);
    clear_sums(c, rows, first, n_threads);
    rows_look_ahead(c, record(c, number), row0, rows, first, n_threads);
}

/** Returns whether warp 0 finished all rows: few are done sooner so than together. */
FN int matrix_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                    LOCAL const struct gpu_phase *ph, uint32_t next, struct gpu_part *part) {
    uint32_t kind = ph->kind, ahead = next ? walked + next : 0;
    if (kind == GPU_QKV && p->flags & GPU_PREPARED)
        load_prepared(c, ph, ahead);
    else
        load_activations(c, ph, ahead);
    sync();
    take_time(c, p, walked, 1);
    run_tasks(c, ph);
    async_wait();
    if (next) stream_open(c, ahead);
    sync();
    take_time(c, p, walked, 2);
    uint32_t row0 = SH(rows)[walked % STAGED][0], rows = SH(rows)[walked % STAGED][1] - row0;
    kind = ph->kind;
    int alone = kind != GPU_HEAD && rows <= (kind == GPU_GATE_UP ? 4 : 2) * GPU_LANES;
    uint32_t n_threads = alone ? GPU_LANES : c->n_threads;
    if (alone && c->warp > 0) return alone;
    if (kind == GPU_QKV) finish_qkv(c, ph, row0, rows, n_threads);
    if (kind == GPU_OUT || kind == GPU_DOWN) finish_residual(c, ph, row0, rows, n_threads, part);
    if (kind == GPU_GATE_UP) finish_gate_up(c, ph, row0, rows, n_threads, part);
    if (kind == GPU_HEAD) finish_head(c, p, ph, row0, rows);
    return alone;
}

#endif
