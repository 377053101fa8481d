/**
 * Products of calibration on a GPU, real or stand-in: against sums in double precision, and on
 * different numbers of threads.
 */
#ifndef PDVM_TESTS_CUDA_PRODUCTS_H
#define PDVM_TESTS_CUDA_PRODUCTS_H

#include "compress/matmul.h"

/** A device for windows of `seq` rows and at most `widest` columns, with room for four b of that size. */
struct matmul_device *cuda_products_open(int64_t seq, int64_t widest, int n_workers);

/**
 * `n` products of one random a[m, k] with matrices of `outputs` rows and more, rows apart from each
 * other, some added to what is there; from all workers at once. Every number must be right to float32's
 * rounding of its terms.
 */
void cuda_products_check(struct matmul_device *d, int64_t m, int64_t outputs, int64_t k, int n,
                         uint64_t seed);

/**
 * Moments of `windows` windows, on one thread and on several, in one call and in several: the same bits,
 * right within `tolerance` * |x_i| |x_j|, and nothing below the diagonal.
 */
void cuda_products_check_gram(struct matmul_device *d, int64_t windows, int64_t seq, int64_t cols,
                              double tolerance, uint64_t seed);

#endif
