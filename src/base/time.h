/** Monotonic time. */
#ifndef PDVM_BASE_TIME_H
#define PDVM_BASE_TIME_H

#include <time.h>

/** Seconds since some fixed moment, never going back. */
static inline double pd_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
