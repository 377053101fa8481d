/** Layers for the tests of solvers: weights, and the Hessian of correlated inputs. */
#ifndef PDVM_TESTS_SOLVER_LAYER_H
#define PDVM_TESTS_SOLVER_LAYER_H

#include "compress/solver.h"

/** A layer with everything that a solver is told. */
struct solver_layer {
    int64_t rows, cols;
    float *source;    /**< [rows, cols] the weights */
    float *w;         /**< [rows, cols] a copy, for the solver to change */
    double *diagonal; /**< [cols] diag(H) */
    struct solver_hessian hessian;
    struct solver_options options; /**< the default ones */
    struct solver_task task;       /**< all of it; sparsity 0.5 by blocks */
    struct solver_result result;
};

/** OpenBLAS; skips the test without it. */
const struct blas *solver_layer_blas(void);

/**
 * Makes the layer that tests/golden/solvers/make.py makes from the same numbers. `dead`: a column
 * whose inputs are all zero; -1: none. Skips the test without OpenBLAS.
 */
void solver_layer_make(struct solver_layer *l, int64_t rows, int64_t cols, int64_t tokens,
                       uint64_t seed, int64_t dead);

/** Back to the source's weights; frees the result. */
void solver_layer_reset(struct solver_layer *l);

/** Runs a solver from the source's weights and asserts that it succeeds. */
void solver_layer_solve(struct solver_layer *l,
                        pdvm_status (*solve)(const struct solver_task *, struct solver_result *,
                                             pdvm_error *));

/** tr((W - W') H (W - W')^T) of the weights in l->w, over tr(W H W^T). */
double solver_layer_error(const struct solver_layer *l);

/** Zeros in rows [begin, end) and columns [first, last) of l->w. */
int64_t solver_layer_zeros(const struct solver_layer *l, int64_t begin, int64_t end, int64_t first,
                           int64_t last);

/** Frees it. */
void solver_layer_free(struct solver_layer *l);

#endif
