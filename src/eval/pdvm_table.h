/**
 * The comparison that the PDVM document makes (docs/pdvm-terms.md): how long a token of one model takes
 * in plain NumPy, on the CPU with one thread and with all, and on a GPU with less and less between its
 * kernels: six launches a layer with a wait after each, without waits, one launch a layer, one a token.
 */
#ifndef PDVM_EVAL_PDVM_TABLE_H
#define PDVM_EVAL_PDVM_TABLE_H

#include "eval/bench.h"

enum pdvm_table_way {
    PDVM_TABLE_PYTHON, /**< one layer, times the layers: no head and no embedding */
    PDVM_TABLE_CPU_ONE,
    PDVM_TABLE_CPU_ALL,
    PDVM_TABLE_GPU_WAITS,
    PDVM_TABLE_GPU_UNFUSED,
    PDVM_TABLE_GPU_LAYER,
    PDVM_TABLE_GPU_TOKEN,
    PDVM_TABLE_N_WAYS
};

struct pdvm_table_row {
    double seconds;    /**< per token: the median; 0: not measured */
    double dispatches; /**< per token */
    int threads;
    char backend[64];
    char why[256]; /**< why it was not measured */
};

struct pdvm_table {
    struct bench_model_info model;
    struct pd_machine machine;
    struct pdvm_table_row rows[PDVM_TABLE_N_WAYS];
};

/**
 * Measures models[0] of the options, a synthetic one; of the others, only repetitions, seed, n_batch,
 * KV types, per_launch and notify count. n_gen: tokens of a sample on the GPU; the CPU computes at most
 * four. What a machine does not have is left out and says so.
 */
pdvm_status pdvm_table_run(const struct bench_options *options, uint32_t n_gen,
                           struct pdvm_table *out, pdvm_error *err);

#endif
