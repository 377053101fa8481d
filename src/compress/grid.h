/** Grids of values, scale * entry, fitted to the weights of a matrix before they are rounded. */
#ifndef PDVM_COMPRESS_GRID_H
#define PDVM_COMPRESS_GRID_H

#include "mdcsr/book.h"

/** A codebook, with a scale for each row or group of columns. Zero-initialise. */
struct grid {
    struct mdcsr_book book;
    uint32_t group;   /**< columns per scale; 0: one scale per row */
    int64_t n_groups; /**< scales per row */
    float *scales;    /**< [rows, n_groups] */
};

/** Whether a coding has a grid: int8, lut8 and lut4. NULL is none. */
bool grid_wanted(const struct mdcsr_options *coding);

/**
 * Fits codebook and scales to the weights of w[rows, cols] that are not zero, the squared errors of
 * column c counted weight[c] times (NULL: once). Freed with grid_free. The result does not depend
 * on the number of threads.
 */
pdvm_status grid_fit(const float *w, int64_t rows, int64_t cols, const float *weight,
                     const struct mdcsr_options *coding, struct pd_threads *threads,
                     struct grid *out, pdvm_error *err);

/** How much errors count for each column: diag(H) over its mean, lifted a little. Freed by free(). */
pdvm_status grid_weights(const double *diagonal, int64_t cols, float **out, pdvm_error *err);

/** Rounds the weights of w[rows, cols] that are not zero to the grid. */
void grid_round_matrix(const struct grid *g, float *w, int64_t rows, int64_t cols,
                       struct pd_threads *threads);

/** The point of the grid nearest to x. */
static inline float grid_round(const struct mdcsr_book *book, float x, float scale) {
    if (scale == 0) return 0;
    return scale * book->entry[mdcsr_book_code(book, x / scale)];
}

/** Hands the grid over to *out, for the encoder. */
void grid_give(struct grid *g, struct mdcsr_grid *out);

/** Frees the scales. */
void grid_free(struct grid *g);

#endif
