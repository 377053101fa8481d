/* Norms, quantisation and rows of the KV cache for AVX2. */
#include "backend/cpu/avx2.h"

#include <float.h>
#include <math.h>

/* Elements i to i + 7 of n, zero behind the end. */
ALWAYS_INLINE __m256i lanes_of(int64_t n, int64_t i) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int64_t left = n - i < 8 ? n - i : 8;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)left), lane);
}

ALWAYS_INLINE __m256 load_floats(const float *x, int64_t n, int64_t i) {
    return n - i >= 8 ? _mm256_loadu_ps(x + i) : _mm256_maskload_ps(x + i, lanes_of(n, i));
}

ALWAYS_INLINE void store_floats(float *x, int64_t n, int64_t i, __m256 v) {
    if (n - i >= 8)
        _mm256_storeu_ps(x + i, v);
    else
        _mm256_maskstore_ps(x + i, lanes_of(n, i), v);
}

void avx2_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    struct lanes sum = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
    for (int64_t i = 0; i < n; i += 8) {
        __m256 v = load_floats(x, n, i), *half = &sum.half[i / 8 % 2];
        *half = _mm256_add_ps(*half, _mm256_mul_ps(v, v));
    }
    float scale = 1.0f / sqrtf(sum16(sum) / (float)n + eps);
    for (int64_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_mul_ps(load_floats(x, n, i), _mm256_set1_ps(scale));
        store_floats(out, n, i, _mm256_mul_ps(v, load_floats(weight, n, i)));
    }
}

/* The largest magnitude of x[n], NaN if one is not finite. */
static float largest(const float *x, int64_t n) {
    const __m256 sign = _mm256_set1_ps(-0.0f), limit = _mm256_set1_ps(FLT_MAX);
    __m256 max = _mm256_setzero_ps(), bad = _mm256_setzero_ps();
    for (int64_t i = 0; i < n; i += 8) {
        __m256 a = _mm256_andnot_ps(sign, load_floats(x, n, i));
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(a, limit, _CMP_NLE_UQ));
        max = _mm256_max_ps(max, a);
    }
    if (_mm256_movemask_ps(bad)) return NAN;
    float lanes[8], result = 0;
    _mm256_storeu_ps(lanes, max);
    for (int i = 0; i < 8; i++) result = lanes[i] > result ? lanes[i] : result;
    return result;
}

/* Eight 32-bit integers that fit 16 bits. */
ALWAYS_INLINE __m128i narrow(__m256i v) {
    return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

/* Stores 8 integers and their digits. */
ALWAYS_INLINE void store_quantised(__m256i q, int64_t i, struct cpu_act *act) {
    __m256i high = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(128)), 8);
    __m128i high16 = narrow(high), low16 = narrow(_mm256_sub_epi32(q, _mm256_slli_epi32(high, 8)));
    _mm_storeu_si128((__m128i *)(void *)(act->q + i), narrow(q));
    _mm_storel_epi64((__m128i *)(void *)(act->high + i), _mm_packs_epi16(high16, high16));
    _mm_storel_epi64((__m128i *)(void *)(act->low + i), _mm_packs_epi16(low16, low16));
}

static int32_t sum8(__m256i v) {
    int32_t lanes[8], sum = 0;
    store32(lanes, v);
    for (int i = 0; i < 8; i++) sum += lanes[i];
    return sum;
}

void avx2_quantise(const float *x, int64_t n, struct cpu_act *act) {
    int64_t padded = (n + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    float amax = largest(x, n);
    bool bad = isnan(amax), zero = bad || amax < 1e-30f; /* below, ACT_MAX / amax overflows */
    const __m256 inverse = _mm256_set1_ps(zero ? 0 : ACT_MAX / amax);
    const __m256i limit = _mm256_set1_epi32(ACT_MAX), least = _mm256_set1_epi32(-ACT_MAX);
    act->scale = bad ? NAN : zero ? 0 : amax / ACT_MAX;
    for (int64_t i = 0; i < padded; i += BIAS_COLS) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t j = i; j < i + BIAS_COLS; j += 8) {
            __m256i q = _mm256_setzero_si256();
            if (!zero && j < n)
                q = _mm256_cvtps_epi32(_mm256_mul_ps(load_floats(x, n, j), inverse));
            q = _mm256_max_epi32(_mm256_min_epi32(q, limit), least);
            store_quantised(q, j, act);
            sum = _mm256_add_epi32(sum, q);
        }
        act->bias[i / BIAS_COLS] = 128 * sum8(sum);
    }
}

/* Bytes behind the end of a cache row's tail are not to be read. */
ALWAYS_INLINE __m128i load_tail(const void *p, size_t bytes) {
    uint8_t buffer[16] = {0};
    memcpy(buffer, p, bytes);
    return load16(buffer);
}

/* 8 elements of a cache row as floats. */
ALWAYS_INLINE __m256 load_row(const void *row, pdvm_kv_type type, uint32_t n, uint32_t i) {
    if (type == PDVM_KV_F32) return load_floats(row, n, i);
    size_t left = n - i, size = type == PDVM_KV_F16 ? 2 : 1;
    const uint8_t *p = (const uint8_t *)row + i * size;
    __m128i v = left < 8 ? load_tail(p, left * size) : size == 2 ? load16(p) : load8(p);
    return type == PDVM_KV_F16 ? _mm256_cvtph_ps(v) : _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
}

ALWAYS_INLINE float dot(const float *a, const void *row, uint32_t n, pdvm_kv_type type) {
    struct lanes sum = {{_mm256_setzero_ps(), _mm256_setzero_ps()}};
    for (uint32_t i = 0; i < n; i += 16)
        for (uint32_t h = 0; h < 2 && i + 8 * h < n; h++) {
            __m256 v = load_row(row, type, n, i + 8 * h);
            v = _mm256_mul_ps(load_floats(a, n, i + 8 * h), v);
            sum.half[h] = _mm256_add_ps(sum.half[h], v);
        }
    return sum16(sum);
}

ALWAYS_INLINE void add_scaled(float *acc, float p, const void *row, uint32_t n, pdvm_kv_type type) {
    const __m256 scale = _mm256_set1_ps(p);
    for (uint32_t i = 0; i < n; i += 8) {
        __m256 v = _mm256_mul_ps(scale, load_row(row, type, n, i));
        store_floats(acc, n, i, _mm256_add_ps(load_floats(acc, n, i), v));
    }
}

#define ROW_KERNELS(SUFFIX, TYPE)                                                                  \
    float avx2_dot_##SUFFIX(const float *a, const void *row, uint32_t n) {                         \
        return dot(a, row, n, TYPE);                                                               \
    }                                                                                              \
    void avx2_add_##SUFFIX(float *acc, float p, const void *row, uint32_t n) {                     \
        add_scaled(acc, p, row, n, TYPE);                                                          \
    }
ROW_KERNELS(f32, PDVM_KV_F32)
ROW_KERNELS(f16, PDVM_KV_F16)
ROW_KERNELS(i8, PDVM_KV_INT8)
