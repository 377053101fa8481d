/* Norms, quantisation and rows of the KV cache for AVX-512. */
#include "backend/cpu/avx512.h"

#include <float.h>
#include <math.h>

void avx512_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(tail(n, i), x + i);
        sum = _mm512_add_ps(sum, _mm512_mul_ps(v, v));
    }
    float scale = 1.0f / sqrtf(sum16(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), _mm512_set1_ps(scale));
        _mm512_mask_storeu_ps(out + i, k, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(k, weight + i)));
    }
}

/* Stores 16 integers and their digits. */
ALWAYS_INLINE void store_quantised(__m512i q, int64_t i, struct cpu_act *act) {
    __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(128)), 8);
    _mm256_storeu_si256((__m256i *)(void *)(act->q + i), _mm512_cvtepi32_epi16(q));
    _mm_storeu_si128((__m128i *)(void *)(act->high + i), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128((__m128i *)(void *)(act->low + i), _mm512_cvtepi32_epi8(q)); /* q mod 256 */
}

void avx512_quantise(const float *x, int64_t n, struct cpu_act *act) {
    const __m512 largest = _mm512_set1_ps(FLT_MAX);
    int64_t padded = (n + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    __m512 max = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (int64_t i = 0; i < n; i += 16) {
        __m512 a = _mm512_abs_ps(_mm512_maskz_loadu_ps(tail(n, i), x + i));
        bad |= _mm512_cmp_ps_mask(a, largest, _CMP_NLE_UQ);
        max = _mm512_max_ps(max, a);
    }
    float amax = _mm512_reduce_max_ps(max);
    bool zero = bad || amax < 1e-30f; /* below, ACT_MAX / amax overflows */
    __m512 inverse = _mm512_set1_ps(zero ? 0 : ACT_MAX / amax);
    const __m512i limit = _mm512_set1_epi32(ACT_MAX);
    act->scale = bad ? NAN : zero ? 0 : amax / ACT_MAX;
    for (int64_t i = 0; i < padded; i += BIAS_COLS) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t j = i; j < i + BIAS_COLS; j += 16) {
            __mmask16 k = zero || j >= n ? 0 : tail(n, j);
            __m512i q = _mm512_maskz_cvtps_epi32(
                k, _mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + j), inverse));
            q = _mm512_max_epi32(_mm512_min_epi32(q, limit),
                                 _mm512_sub_epi32(_mm512_setzero_si512(), limit));
            store_quantised(q, j, act);
            sum = _mm512_add_epi32(sum, q);
        }
        act->bias[i / BIAS_COLS] = 128 * _mm512_reduce_add_epi32(sum);
    }
}

/* 16 elements of a cache row as floats. */
ALWAYS_INLINE __m512 load_row(const void *row, pdvm_kv_type type, uint32_t i, __mmask16 k) {
    if (type == PDVM_KV_F32) return _mm512_maskz_loadu_ps(k, (const float *)row + i);
    if (type == PDVM_KV_F16)
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(k, (const uint16_t *)row + i));
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(k, (const int8_t *)row + i)));
}

ALWAYS_INLINE float dot(const float *a, const void *row, uint32_t n, pdvm_kv_type type) {
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        sum = _mm512_add_ps(
            sum, _mm512_mul_ps(_mm512_maskz_loadu_ps(k, a + i), load_row(row, type, i, k)));
    }
    return sum16(sum);
}

ALWAYS_INLINE void add_scaled(float *acc, float p, const void *row, uint32_t n, pdvm_kv_type type) {
    __m512 scale = _mm512_set1_ps(p);
    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        __m512 v = _mm512_mul_ps(scale, load_row(row, type, i, k));
        _mm512_mask_storeu_ps(acc + i, k, _mm512_add_ps(_mm512_maskz_loadu_ps(k, acc + i), v));
    }
}

#define ROW_KERNELS(SUFFIX, TYPE)                                                                  \
    float avx512_dot_##SUFFIX(const float *a, const void *row, uint32_t n) {                       \
        return dot(a, row, n, TYPE);                                                               \
    }                                                                                              \
    void avx512_add_##SUFFIX(float *acc, float p, const void *row, uint32_t n) {                   \
        add_scaled(acc, p, row, n, TYPE);                                                          \
    }
ROW_KERNELS(f32, PDVM_KV_F32)
ROW_KERNELS(f16, PDVM_KV_F16)
ROW_KERNELS(i8, PDVM_KV_INT8)
