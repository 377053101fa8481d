/** What a few noisy samples say. */
#ifndef PDVM_EVAL_BENCH_STATS_H
#define PDVM_EVAL_BENCH_STATS_H

#include <stddef.h>

/** Summary of samples. */
struct bench_stats {
    double mean;
    double deviation; /**< of the sample (divided by n - 1), 0 for one sample */
    double median;    /**< the mean of the two in the middle where n is even */
    double best;      /**< the largest */
};

/** Summarises x[n], n >= 1; all 0 for n == 0. The order of x is not changed. */
struct bench_stats bench_stats_of(const double *x, size_t n);

#endif
