/**
 * Factorisations for the solvers: blocked forms over tiles of fixed size, shared out to threads, so
 * that the bits of the result do not depend on the number of threads.
 */
#ifndef PDVM_COMPRESS_FACTOR_H
#define PDVM_COMPRESS_FACTOR_H

#include "base/threads.h"
#include "compress/blas.h"
#include "compress/solver.h"

#include <stdbool.h>
#include <stdint.h>

/** What SparseGPT and GPTQ need to know of a Hessian. */
struct solver_factor {
    int64_t n;
    double share;       /**< damping that was asked for, as a share of the mean diagonal */
    bool act_order;     /**< columns in falling order of the diagonal */
    double mean;        /**< of the diagonal, without dead columns */
    double damping;     /**< what was added to the diagonal */
    int damping_raised; /**< times that it had to be made ten times larger */
    int64_t n_dead;     /**< columns whose diagonal is 0 */
    int32_t *order;     /**< [n] order[k]: the column that comes k-th */
    /**
     * [n, n] in that order, row-major, upper triangular, zeros below:
     * inverse(H + damping I) = U^T U. Dead columns have the mean of the others on their diagonal.
     */
    double *u;
};

/**
 * The factorisation of a Hessian for the given options, made now or found in hessian->factor.
 * If H + damping I cannot be factored, the damping is raised tenfold up to FACTOR_MOST_DAMPING
 * times the mean; after that, and for a Hessian that is all zero or not finite, it is
 * PDVM_ERR_FORMAT. PDVM_ERR_UNSUPPORTED without OpenBLAS.
 */
pdvm_status factor_hessian(struct solver_hessian *hessian, const struct solver_options *options,
                           struct pd_threads *threads, const struct solver_factor **out,
                           pdvm_error *err);

/** The largest damping, as a share of the mean diagonal, that is tried. */
#define FACTOR_MOST_DAMPING 10.0

/**
 * Damping and dead columns of a Hessian: *mean is the mean of the diagonal over the columns that
 * are not dead. PDVM_ERR_FORMAT if the Hessian holds anything that is not finite, a negative
 * diagonal, or zeros only.
 */
pdvm_status factor_check(const struct solver_hessian *hessian, double *mean, int64_t *n_dead,
                         pdvm_error *err);

/**
 * Cholesky factorisation in place: a[n, n], row-major, lower half given, becomes L with
 * A = L L^T; the upper half is not looked at and holds scratch afterwards. False if A is not
 * positive definite.
 */
bool factor_cholesky(const struct blas *blas, double *a, int64_t n, struct pd_threads *threads);

/**
 * The inverse of a lower triangular matrix in place; the upper half becomes zeros. False if it is
 * singular. `panel` is scratch, [n + workers of threads * FACTOR_TILE, FACTOR_TILE].
 */
bool factor_invert(const struct blas *blas, double *l, int64_t n, double *panel,
                   struct pd_threads *threads);

/**
 * The inverse of L L^T from the inverse of L, both halves: out = l^T l with l[n, n] lower triangular
 * and zeros above, as factor_invert leaves it.
 */
void factor_product(const struct blas *blas, double *l, int64_t n, double *out,
                    struct pd_threads *threads);

/** Rows and columns of a tile. */
#define FACTOR_TILE ((int64_t)256)

#endif
