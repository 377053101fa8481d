#include "eval/bench_stats.h"

#include <math.h>

/* The k-th smallest, by counting: there are a handful of samples. */
static double ranked(const double *x, size_t n, size_t k) {
    for (size_t i = 0; i < n; i++) {
        size_t below = 0, equal = 0;
        for (size_t j = 0; j < n; j++) {
            below += x[j] < x[i];
            equal += x[j] == x[i];
        }
        if (below <= k && k < below + equal) return x[i];
    }
    return NAN; /* only with samples that are not numbers */
}

struct bench_stats bench_stats_of(const double *x, size_t n) {
    struct bench_stats s = {0};
    if (n == 0) return s;
    double squares = 0;
    s.best = x[0];
    for (size_t i = 0; i < n; i++) {
        s.mean += x[i] / (double)n;
        if (x[i] > s.best) s.best = x[i];
    }
    for (size_t i = 0; i < n; i++) squares += (x[i] - s.mean) * (x[i] - s.mean);
    s.deviation = n > 1 ? sqrt(squares / (double)(n - 1)) : 0;
    s.median = 0.5 * (ranked(x, n, (n - 1) / 2) + ranked(x, n, n / 2));
    return s;
}
