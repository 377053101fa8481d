/**
 * Pruning: choosing the weights that become zero. Methods stand in one table; each gets one matrix
 * at a time and zeroes weights in place.
 */
#ifndef PDVM_COMPRESS_PRUNE_H
#define PDVM_COMPRESS_PRUNE_H

#include "base/threads.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Within what the share of zeros is reached. */
enum prune_scope {
    PRUNE_ROW,    /**< in every row (output) alone */
    PRUNE_MATRIX, /**< in the matrix as a whole; its rows may differ */
    PRUNE_BLOCK,  /**< in all rows of each block of columns: SparseGPT's way */
    PRUNE_N_SCOPES,
    PRUNE_SCOPE_DEFAULT = PRUNE_N_SCOPES /**< as the method has it */
};

/** One matrix to prune. */
struct prune_task {
    float *w; /**< row-major [rows, cols], finite; changed in place */
    int64_t rows;
    int64_t cols;
    double sparsity; /**< share of zeros to reach, in [0, 1] */
    enum prune_scope scope;
    struct pd_threads *threads; /**< may be NULL */
};

/** What pruning did. */
struct prune_result {
    double error_squares; /**< sum of (weight before - weight after)^2 */
};

struct solver_task;
struct solver_result;

/** What a method has to know of a matrix's inputs on calibration text. */
enum prune_calibration {
    PRUNE_NO_CALIBRATION,
    PRUNE_NEEDS_NORMS,  /**< their norms, column by column: the diagonal of the Hessian */
    PRUNE_NEEDS_HESSIAN /**< the whole Hessian */
};

/** A way of choosing. The result must not depend on the number of threads. */
struct prune_method {
    const char *name;  /**< as on the command line */
    const char *help;  /**< one line, lower case */
    bool has_sparsity; /**< takes a target share of zeros, and needs one */
    enum prune_calibration calibration;
    enum prune_scope scope; /**< where nothing else was asked for */
    unsigned scopes;        /**< those that it knows, bit by bit: 1 << PRUNE_ROW, ... */
    /** With a Hessian: products of the matrix with it that solving takes; for the progress. */
    double products;
    /** Without calibration; NULL for methods that need it. */
    pdvm_status (*prune)(const struct prune_task *task, struct prune_result *out, pdvm_error *err);
    /** With calibration, see compress/solver.h; else NULL. */
    pdvm_status (*solve)(const struct solver_task *task, struct solver_result *out,
                         pdvm_error *err);
};

/** The methods in the table, ended by NULL; the first is the default. */
const struct prune_method *prune_method_at(size_t i);

/** The method of that name, or NULL. */
const struct prune_method *prune_method_find(const char *name);

/** Name of a scope, "row", "matrix" or "block". */
const char *prune_scope_name(enum prune_scope scope);

/**
 * Zeros that `sparsity` asks for among n weights: the nearest whole number, halves up. Zeros that
 * are there already count.
 */
int64_t prune_target(double sparsity, int64_t n);

/** What a matrix holds before anything is done to it. */
struct prune_count {
    int64_t n_zeros;
    double sum_squares;
};

/**
 * Counts a matrix's zeros and adds up its squares. The sum does not depend on the number of
 * threads. NaN and infinity are PDVM_ERR_FORMAT with their row and column.
 */
pdvm_status prune_count(const float *w, int64_t rows, int64_t cols, struct pd_threads *threads,
                        struct prune_count *out, pdvm_error *err);

#endif
