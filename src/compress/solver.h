/**
 * Layer-wise pruning and quantisation: given a matrix W and what its inputs x looked like on
 * calibration text, find a sparse W' on the grid of its coding that changes the outputs little:
 *
 *     error(W') = tr((W - W') H (W - W')^T),   H = (2 / N) sum of x x^T over N tokens.
 *
 * Solvers know matrices, not models or files. Their results must not depend on the number of
 * threads: work is cut into blocks of fixed size and sums are added up in a fixed order.
 */
#ifndef PDVM_COMPRESS_SOLVER_H
#define PDVM_COMPRESS_SOLVER_H

#include "base/notify.h"
#include "base/threads.h"
#include "compress/prune.h"
#include "mdcsr/mdcsr.h"

struct matmul_device;
struct solver_factor;

/**
 * The second moments of the inputs of one or more matrices (q, k and v share one). Filled by the
 * calibration; solvers only read h, and may leave a factorisation in `factor` for the next matrix.
 */
struct solver_hessian {
    int64_t n;                    /**< columns of the matrices */
    double *h;                    /**< [n, n] symmetric, both halves filled; finite */
    struct solver_factor *factor; /**< NULL until a solver makes it; belongs to its maker */
    void (*factor_free)(struct solver_factor *factor); /**< set together with `factor` */
};

/** What the user may choose. */
struct solver_options {
    double damping;    /**< added to the diagonal of H, as a share of its mean */
    int64_t block;     /**< columns that SparseGPT decides on together */
    bool act_order;    /**< SparseGPT: columns in falling order of their diag(H) */
    int iterations;    /**< ADMM: steps of the search for the support */
    int cg_iterations; /**< ADMM: most conjugate gradient steps on the support */
};

/** damping 0.01, blocks of 128, no activation order, 30 and 10 iterations. */
struct solver_options solver_options_default(void);

/** One matrix to solve. */
struct solver_task {
    float *w; /**< row-major [rows, cols], finite; replaced by W' */
    int64_t rows;
    int64_t cols;
    const double *diagonal;         /**< [cols] diag(H); always there */
    struct solver_hessian *hessian; /**< NULL for methods that need the diagonal only */
    double sparsity;                /**< share of zeros to reach, in [0, 1]; 0: only quantise */
    enum prune_scope scope;
    /** How the matrix will be stored. For int8, lut8 and lut4 the solver chooses the grid (see
     * solver_result.grid) and returns weights that are on it; floats stay as they are. NULL: the
     * same as floats. */
    const struct mdcsr_options *coding;
    const struct solver_options *options;
    struct pd_threads *threads;     /**< may be NULL */
    struct matmul_device *device;   /**< for large products in float32; may be NULL */
    const struct pd_notify *notify; /**< may be NULL; progress in [0, 1] of this matrix, cancels */
};

/** What came of it. Zero-initialise, free with solver_result_free. */
struct solver_result {
    /** tr(W H W^T), and error(W') as above with the rounding to the grid; with the diagonal only:
     * its part of them. NAN where it would take another product: see solver_output_error. */
    double output_squares;
    double output_error;
    double pruning_squares; /**< sum of the squares of weights that became zero */
    /** Scales and codebook that W' is on: every W'[r, c] is exactly scale * entry in float32, or 0.
     * `scales` is NULL if there is none; then the encoder fits one itself. */
    struct mdcsr_grid grid;
    double damping;     /**< what was added to the diagonal */
    int damping_raised; /**< times that it had to be made ten times larger to factor H */
    int64_t n_dead;     /**< columns whose inputs were always 0; their weights became 0 */
};

/** Frees the grid. */
void solver_result_free(struct solver_result *r);

/** Allocates h (zeros). Freed with solver_hessian_free. */
pdvm_status solver_hessian_create(int64_t n, struct solver_hessian *out, pdvm_error *err);

/** Frees h and the factorisation. */
void solver_hessian_free(struct solver_hessian *h);

/**
 * tr(D H D^T) for D = a - b, or D = a where b is NULL; both row-major [rows, hessian->n].
 * PDVM_ERR_UNSUPPORTED without OpenBLAS.
 */
pdvm_status solver_output_error(const struct solver_hessian *hessian, const float *a,
                                const float *b, int64_t rows, struct pd_threads *threads,
                                double *out, pdvm_error *err);

/**
 * Wanda (Sun et al. 2023, "A simple and effective pruning approach for large language models"):
 * within each row zeroes the weights of least |W_ij| * ||x_j||_2. Needs the diagonal only. Ties go
 * to the lower column. Does not touch the other weights.
 */
pdvm_status solver_wanda(const struct solver_task *task, struct solver_result *out,
                         pdvm_error *err);

/**
 * SparseGPT (Frantar, Alistarh 2023) with GPTQ's quantisation (Frantar et al. 2022) in the same
 * loop. PRUNE_BLOCK, the paper's, chooses within all rows of a block of columns.
 */
pdvm_status solver_sparsegpt(const struct solver_task *task, struct solver_result *out,
                             pdvm_error *err);

/** ALPS (Meng et al. 2024): the support by ADMM, the weights by conjugate gradients. */
pdvm_status solver_admm(const struct solver_task *task, struct solver_result *out, pdvm_error *err);

/**
 * The best weights for a support that is given: w says where it is (zeros stay zeros) and where to
 * start, target[rows, cols] are the weights whose outputs are to be matched. Conjugate gradients, at
 * most options->cg_iterations of them, after masks of any method; rounded as `coding` says. The
 * errors in *out are against the target; sparsity and scope of the task are not looked at.
 */
pdvm_status solver_refine(const struct solver_task *task, const float *target,
                          struct solver_result *out, pdvm_error *err);

/**
 * Fits scales and codebook of `coding` to the weights that are not zero, with column c's squared
 * errors counted diagonal[c] times (NULL: once), and rounds w to them: for methods that do not
 * quantise in their own loop. Nothing happens for float codings (out->scales is NULL then).
 */
pdvm_status solver_fit_grid(float *w, int64_t rows, int64_t cols, const double *diagonal,
                            const struct mdcsr_options *coding, struct pd_threads *threads,
                            struct mdcsr_grid *out, pdvm_error *err);

#endif
