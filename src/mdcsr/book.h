/** Codebooks of LUT8 and LUT4: making them, and turning values into codes and scales. */
#ifndef PDVM_MDCSR_BOOK_H
#define PDVM_MDCSR_BOOK_H

#include "mdcsr/mdcsr.h"

/**
 * Smaller scales are stored as 0: beside them a reciprocal and its products leave the range of
 * normal floats, and what they would scale is nothing.
 */
#define MDCSR_SMALLEST_SCALE 0x1p-100f

/** Cells of the tables that find the nearest entry. */
#define MDCSR_BOOK_CELLS 4096

/** A codebook ready for encoding. */
struct mdcsr_book {
    int n;                /**< 16 or 256; 255 for INT8's whole numbers */
    float entry[256];     /**< ascending */
    float bound[256];     /**< bound[i]: midpoint of entries i and i + 1; the last is infinity */
    float max;            /**< largest magnitude */
    float cells_per_unit; /**< of an entry's value */
    bool symmetric;       /**< entry[i] == -entry[n - 1 - i] */
    uint8_t first[MDCSR_BOOK_CELLS]; /**< a code at or below the nearest one, for each cell */
    float value[MDCSR_BOOK_CELLS];   /**< the entry nearest to the middle of each cell */
};

/** Values to fit a codebook to: groups that share a scale, one after the other, without zeros. */
struct mdcsr_sample {
    int64_t n_groups;
    int64_t *begin; /**< [n_groups + 1] */
    float *x;
    float *weight; /**< [begin[n_groups]] how often each squared error counts; NULL: once */
    float *scale;  /**< [n_groups] found by mdcsr_book_make, kept here as scratch */
    double *error; /**< [n_groups] likewise */
    bool bf16_scales;
};

/**
 * Copies the values of a row w[cols] that are not zero to x, their columns' weights (unless NULL)
 * to x_weight, and the end of each group to ends; returns their number. x and x_weight need room
 * for one more.
 */
int64_t mdcsr_pack_row(const float *w, const float *weight, int64_t cols, uint32_t group, float *x,
                       float *x_weight, int64_t *ends);

/**
 * Takes an even sample of the rows of w[rows, cols], of whose values `entries` are not zero.
 * weight[cols] tells how often the squared errors of each column count; NULL: once.
 */
pdvm_status mdcsr_sample_make(const float *w, int64_t rows, int64_t cols, uint32_t group,
                              const float *weight, int64_t entries, struct mdcsr_sample *out,
                              pdvm_error *err);

/** Frees what a sample holds. */
void mdcsr_sample_free(struct mdcsr_sample *s);

/**
 * Makes the codebook of `values` (LUT8 or LUT4) and `kind` for the values of the sample. With
 * `zero` one entry is exactly 0. The result does not depend on the number of threads. INT8 gives
 * its codes -127..127 as a codebook, whatever the rest says.
 */
pdvm_status mdcsr_book_make(enum mdcsr_values values, enum mdcsr_codebook kind, bool zero,
                            struct mdcsr_sample *sample, struct pd_threads *threads,
                            struct mdcsr_book *out, pdvm_error *err);

/**
 * Makes a codebook of the `n` given entries (16 or 256): ascending, finite, not all zero, and whole
 * numbers in -127..127 for 16. PDVM_ERR_ARGUMENT otherwise.
 */
pdvm_status mdcsr_book_given(int n, const float *entries, struct mdcsr_book *out, pdvm_error *err);

/**
 * The scale, of a few around the one that maps the largest |x| to the largest entry and one least
 * squares step from the best of them, that gives x[n] the least squared error, each counted
 * `weight` times (NULL: once). 0 for values that are all zero or too small for a normal scale.
 */
float mdcsr_book_scale(const struct mdcsr_book *b, const float *x, const float *weight, int64_t n,
                       bool bf16);

/** The code of the entry nearest to t = x / scale. */
static inline unsigned mdcsr_book_code(const struct mdcsr_book *b, float t) {
    float f = (t + b->max) * b->cells_per_unit;
    f = f > 0 ? f : 0;
    f = f < MDCSR_BOOK_CELLS - 1 ? f : MDCSR_BOOK_CELLS - 1;
    unsigned code = b->first[(int)f];
    while (t > b->bound[code]) code++;
    return code;
}

/**
 * Writes the codes nearest to x / scale (`codes` may be NULL); returns the squared error. Where the
 * book has a zero, exact zeros get it.
 */
double mdcsr_book_encode(const struct mdcsr_book *b, const float *x, int64_t n, float scale,
                         uint8_t *codes);

/** Rounds a scale to bfloat16, away from zero but never to infinity. */
float mdcsr_bf16_up(float scale);

#endif
