/**
 * Finding the smallest magnitudes of a matrix, exactly: ties are settled by position, so that the
 * wanted number is met and the result does not depend on the number of threads.
 */
#ifndef PDVM_COMPRESS_SELECT_H
#define PDVM_COMPRESS_SELECT_H

#include "base/threads.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/** Counters that a selection needs for each worker. */
#define SELECT_COUNTERS 2048

/** Where the selection of a row ends: magnitudes below `limit`, and the first `ties` of those at it. */
struct select_end {
    uint64_t limit; /**< bits of a double */
    int64_t ties;
};

/** What is chosen from: one of the two is set. */
struct select_values {
    const double *d;
    const float *f;
};

/** Magnitudes as whole numbers of the same order. */
static inline uint64_t select_key(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & (UINT64_MAX >> 1);
}

/** Whether x is among the smallest of its row. To be asked once for each column, ascending. */
static inline bool select_takes(struct select_end *end, double x) {
    uint64_t key = select_key(x);
    return key < end->limit || (key == end->limit && end->ties-- > 0);
}

/**
 * Finds the k smallest magnitudes of x[n], 0 <= k <= n. `counters` is scratch, [SELECT_COUNTERS].
 * No x may be NaN.
 */
struct select_end select_row(struct select_values x, int64_t n, int64_t k, int64_t *counters);

/**
 * The same over a row-major matrix x[rows, cols], `stride` elements from row to row; ends[rows]
 * tells each row's part. Ties go by row, then column. `counters` is scratch,
 * [workers of threads, SELECT_COUNTERS]. Call it outside of runs.
 */
void select_matrix(struct select_values x, int64_t rows, int64_t cols, int64_t stride, int64_t k,
                   struct pd_threads *threads, int64_t *counters, struct select_end *ends);

#endif
