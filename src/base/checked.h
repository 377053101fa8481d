/** Arithmetic on sizes that come from files: every operation tells whether it overflowed. */
#ifndef PDVM_BASE_CHECKED_H
#define PDVM_BASE_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** *out = a * b; false on overflow. */
static inline bool pd_mul_size(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/** *out = a + b; false on overflow. */
static inline bool pd_add_size(size_t a, size_t b, size_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/** *out = a * b; false on overflow or if an operand is negative. */
static inline bool pd_mul_i64(int64_t a, int64_t b, int64_t *out) {
    return a >= 0 && b >= 0 && !__builtin_mul_overflow(a, b, out);
}

/** Smallest multiple of `align` (a power of two) that is >= n; n must be far from SIZE_MAX. */
static inline size_t pd_round_up(size_t n, size_t align) {
    return (n + align - 1) & ~(align - 1);
}

#endif
