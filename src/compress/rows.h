/**
 * What the forward pass of calibration does to rows of numbers between its products, in float32. Compiled
 * for several instruction sets; all give the same bits.
 */
#ifndef PDVM_COMPRESS_ROWS_H
#define PDVM_COMPRESS_ROWS_H

#include <stdint.h>

/** The functions. */
struct rows {
    /** out[n] = x / sqrt(mean of x^2 + eps) * weight; out may be x. */
    void (*norm)(const float *x, const float *weight, int64_t n, float eps, float *out);
    /** Softmax of scale * s[begin, end) of a row of n, begin < end; what lies outside becomes 0. */
    void (*softmax)(float *s, int64_t begin, int64_t end, int64_t n, float scale);
    /** x[n] = x / (1 + e^-x) * y. */
    void (*silu_times)(float *x, const float *y, int64_t n);
};

/** The fastest that this processor can run. */
const struct rows *rows_best(void);

/** The i-th that it can run, from the plainest to the fastest; NULL behind the last. */
const struct rows *rows_at(int i);

#endif
