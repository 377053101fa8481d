#include "compress/rows.h"

#include "base/half.h"

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/*
 * Texts need billions of these numbers, so it is all written for compilers to turn into vector code:
 * float comparisons would prevent that, comparisons of their bits do not. Sums are taken in eight lanes, so
 * that vectors of any length add up in the same order.
 */
#define INLINE __attribute__((always_inline)) static inline

/* e^x within about 2e-7 of its value for |x| <= 80. */
INLINE float exponential(float x) {
    float shifted = x * 0x1.715476p0f + 0x1.8p23f; /* log2 e; the low bits are a whole number */
    float n = shifted - 0x1.8p23f;
    float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f; /* ln 2 in two parts */
    float p = 0x1.6c16c2p-10f;                              /* 1/6!, 1/5!, ... */
    p = p * r + 0x1.111112p-7f;
    p = p * r + 0x1.555556p-5f;
    p = p * r + 0x1.555556p-3f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * pd_bits_float((pd_float_bits(shifted) + 127u) << 23);
}

/* x / (1 + e^-x), times y. */
INLINE void any_silu_times(float *x, const float *y, int64_t n) {
    const int32_t most = 0x42a00000; /* 80.0f */
    for (int64_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)pd_float_bits(x[i]), magnitude = bits & 0x7fffffff;
        magnitude = magnitude < most ? magnitude : most;
        float t = pd_bits_float((uint32_t)(magnitude | (bits & INT32_MIN)) ^ 0x80000000u);
        x[i] = x[i] / (1.0f + exponential(t)) * y[i];
    }
}

INLINE void any_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    float lanes[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int k = 0; k < 8; k++) lanes[k] += x[i + k] * x[i + k];
    float sum = 0;
    for (int k = 0; k < 8; k++) sum += lanes[k];
    for (; i < n; i++) sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / (float)n + eps);
    for (i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

/* The largest of x[n], n > 0: as whole numbers that are in the same order. */
INLINE float largest(const float *x, int64_t n) {
    uint32_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = pd_float_bits(x[i]);
        bits ^= bits >> 31 ? UINT32_MAX : UINT32_C(1) << 31;
        most = bits > most ? bits : most;
    }
    return pd_bits_float(most >> 31 ? most ^ UINT32_C(1) << 31 : ~most);
}

/*
 * Softmax of scale * s[begin, end) of a row of n; what lies outside becomes 0. So does what is
 * below e^-60 of the largest: it changes nothing, but its products would be subnormal numbers,
 * which processors multiply a hundred times slower.
 */
INLINE void any_softmax(float *s, int64_t begin, int64_t end, int64_t n, float scale) {
    const int32_t least = 0x42700000; /* 60.0f */
    float max = largest(s + begin, end - begin), lanes[8] = {0}, sum = 0;
    int64_t i;
    for (i = begin; i < end; i++) {
        float x = (s[i] - max) * scale;
        uint32_t keep = ((int32_t)pd_float_bits(x) & 0x7fffffff) < least ? 0xffffffffu : 0;
        x = pd_bits_float(pd_float_bits(x) & keep);
        s[i] = pd_bits_float(pd_float_bits(exponential(x)) & keep);
    }
    for (i = begin; i + 8 <= end; i += 8)
        for (int k = 0; k < 8; k++) lanes[k] += s[i + k];
    for (; i < end; i++) sum += s[i];
    for (int k = 0; k < 8; k++) sum += lanes[k];
    float inverse = 1.0f / sum;
    for (i = begin; i < end; i++) s[i] *= inverse;
    memset(s, 0, (size_t)begin * sizeof *s);
    memset(s + end, 0, (size_t)(n - end) * sizeof *s);
}

/* ---- for each instruction set ---------------------------------------------------------- */

/* NOLINTBEGIN(bugprone-macro-parentheses): attributes, not an expression */
/* The functions under names of their own, compiled with the given attributes. */
#define ROWS(name, attributes)                                                                     \
    attributes static void norm_##name(const float *x, const float *weight, int64_t n, float eps,  \
                                       float *out) {                                               \
        any_norm(x, weight, n, eps, out);                                                          \
    }                                                                                              \
    attributes static void softmax_##name(float *s, int64_t begin, int64_t end, int64_t n,         \
                                          float scale) {                                           \
        any_softmax(s, begin, end, n, scale);                                                      \
    }                                                                                              \
    attributes static void silu_times_##name(float *x, const float *y, int64_t n) {                \
        any_silu_times(x, y, n);                                                                   \
    }                                                                                              \
    static const struct rows rows_##name = {norm_##name, softmax_##name, silu_times_##name};
/* NOLINTEND(bugprone-macro-parentheses) */

ROWS(plain, )
#if defined(__x86_64__)
ROWS(avx2, __attribute__((target("avx2"))))
ROWS(avx512, __attribute__((target("avx512f"))))
#endif

const struct rows *rows_at(int i) {
#if defined(__x86_64__)
    bool has[] = {true, __builtin_cpu_supports("avx2"), __builtin_cpu_supports("avx512f")};
    static const struct rows *const all[] = {&rows_plain, &rows_avx2, &rows_avx512};
    return i < 3 && has[i] ? all[i] : NULL;
#else
    return i == 0 ? &rows_plain : NULL;
#endif
}

const struct rows *rows_best(void) {
    const struct rows *best = rows_at(0), *next;
    for (int i = 1; (next = rows_at(i)) != NULL; i++) best = next;
    return best;
}
