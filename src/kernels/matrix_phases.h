/**
 * The phases around a product: QKV, OUT and DOWN (which add to the residual), GATE_UP, HEAD. All
 * have the same shape: the vector into group memory, the streams, then each row's owner finishes it.
 */
#ifndef PDVM_KERNELS_MATRIX_PHASES_H
#define PDVM_KERNELS_MATRIX_PHASES_H

#include "act.h"
#include "top.h"

/** What the end of a phase needs of a row, loaded before the weights are read. */
struct RowIn {
    float unit;
    float unit2; /* GATE_UP: of the row of up */
    float bias;
    float norm; /* OUT, DOWN: the weight of the norm that comes next */
    float x;    /* and the residual */
};

FN struct RowIn row_in(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row) {
    struct RowIn in;
    uint32_t kind = ph->kind;
    in.unit = W(float, ph->units + 4 * (uint64_t)row);
    in.unit2 = kind == GPU_GATE_UP ? W(float, ph->units + 4 * (uint64_t)row + 4) : 0.0f;
    in.bias = ph->bias == GPU_NONE ? 0.0f : W(float, ph->bias + 4 * (uint64_t)row);
    in.norm = 0.0f;
    in.x = 0.0f;
    if (kind == GPU_OUT || kind == GPU_DOWN) {
        in.norm = W(float, ph->next_norm + 4 * (uint64_t)row);
        in.x = G(float, SH(plan).x + 4 * (uint64_t)row);
    }
    return in;
}

/** The rows of a block from a thread's first on: most often there is no other. */
#define FOR_ROWS(step)                                                                             \
    for (uint32_t r = (step)*c->thread; r < rows;                                                  \
         r += (step)*c->n_threads, in = r < rows ? row_in(c, ph, row0 + r) : in)

/** q, k and v one behind the other; RoPE and the cache come in the next phase. */
FN void finish_qkv(const struct Ctx *c, LOCAL const struct gpu_phase *ph, struct Scale x,
                   uint32_t row0, uint32_t rows, struct RowIn in) {
    FOR_ROWS(1) {
        float v = row_result(c, ph, x, row0, r, in.unit) + in.bias;
        G(float, SH(plan).qkv + 4 * (uint64_t)(row0 + r)) = v;
    }
    sync();
}

/** x += W * in (+ bias) */
FN void finish_residual(const struct Ctx *c, LOCAL const struct gpu_phase *ph, struct Scale x,
                        uint32_t row0, uint32_t rows,
                        struct RowIn in) {
    struct gpu_part part = part_start();
    FOR_ROWS(1) {
        float v = in.x + (row_result(c, ph, x, row0, r, in.unit) + in.bias);
        put_x(c, &part, row0 + r, v, in.norm);
    }
    write_part(c, SH(plan).x_part, part);
}

/** hidden = silu(gate) * up; the two alternate. */
FN void finish_gate_up(const struct Ctx *c, LOCAL const struct gpu_phase *ph, struct Scale x,
                       uint32_t row0, uint32_t rows, struct RowIn in) {
    struct gpu_part part = part_start();
    FOR_ROWS(2) {
        float gate = row_result(c, ph, x, row0, r, in.unit);
        float up = row_result(c, ph, x, row0, r + 1, in.unit2);
        float v = gate / (1.0f + exp_f(-gate)) * up;
        G(float, SH(plan).hidden + 4 * (uint64_t)((row0 + r) / 2)) = v;
        part.largest = max_u(part.largest, float_bits(v) & 0x7fffffffu);
    }
    write_part(c, SH(plan).hidden_part, part);
}

/** Logits, and the block's best of them. */
FN void finish_head(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                    LOCAL const struct gpu_phase *ph, struct Scale x, uint32_t row0, uint32_t rows,
                    struct RowIn in) {
    uint64_t line = p->n_logit_rows == 1 ? 0 : SH(step).index - p->first_logits;
    uint64_t to = SH(plan).logits + 4 * line * SH(plan).n_vocab;
    FOR_ROWS(1) {
        float v = row_result(c, ph, x, row0, r, in.unit);
        G(float, to + 4 * (uint64_t)(row0 + r)) = v;
        L(uint32_t, SUMS_LO + 4 * r) = order_of(v); /* the sum is not needed any more */
    }
    block_top(c, row0, rows);
}

FN void matrix_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Run *run,
                     LOCAL const struct gpu_phase *ph, uint32_t next) {
    uint32_t kind = ph->kind, at = run->walked % STAGED;
    uint32_t row0 = SH(rows)[at][0], rows = SH(rows)[at][1] - row0;
    uint32_t first = kind == GPU_GATE_UP ? 2 * c->thread : c->thread;
    struct RowIn in = row_in(c, ph, row0 + (first < rows ? first : 0));
    struct Extent extent = {0, 0};
    struct Scale x;
    clear_sums(c, rows);
    if (kind == GPU_QKV && p->flags & GPU_PREPARED)
        x = load_prepared(c, ph);
    else
        x = load_activations(c, ph);
    if (next) extent = stream_look_ahead(c, run, next);
    sync();
    take_time(c, p, run, 1);
    run_tasks(c, ph, x.amax);
    if (next) stream_open(c, run, next, extent);
    sync();
    take_time(c, p, run, 2);
    if (kind == GPU_QKV) finish_qkv(c, ph, x, row0, rows, in);
    if (kind == GPU_OUT || kind == GPU_DOWN) finish_residual(c, ph, x, row0, rows, in);
    if (kind == GPU_GATE_UP) finish_gate_up(c, ph, x, row0, rows, in);
    if (kind == GPU_HEAD) finish_head(c, p, ph, x, row0, rows, in);
}

#endif
