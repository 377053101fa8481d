/**
 * What the files of the AVX2 kernels share. They need AVX2, FMA, BMI2 and F16C (Intel
 * Haswell, AMD Zen and later); the products of the *_avxvnni.c files need AVX-VNNI besides.
 * Every function adds in the order that cpu.h promises, so the results equal the scalar kernels' bit
 * for bit.
 */
#ifndef PDVM_BACKEND_CPU_AVX2_H
#define PDVM_BACKEND_CPU_AVX2_H

#include "backend/cpu/cpu.h"
#include "backend/cpu/expand_table.h"

#include <immintrin.h>
#include <string.h>

/** How far ahead of use values and masks are requested. */
#define PREFETCH_BYTES 4096

/** Requests the cache line that `p` will have reached PREFETCH_BYTES later, and the n - 1 behind. */
ALWAYS_INLINE void prefetch_lines(const void *p, int n) {
    for (int i = 0; i < n; i++)
        _mm_prefetch((const char *)p + PREFETCH_BYTES + 64 * i, _MM_HINT_T0);
}

/** Sixteen lanes of floats. */
struct lanes {
    __m256 half[2];
};

/** lanes_sum on registers. */
ALWAYS_INLINE float sum16(struct lanes v) {
    __m256 a = _mm256_add_ps(v.half[0], v.half[1]);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/** Eight bytes. */
ALWAYS_INLINE __m128i load8(const void *p) {
    return _mm_loadl_epi64((const __m128i *)p);
}

ALWAYS_INLINE __m128i load16(const void *p) {
    return _mm_loadu_si128((const __m128i *)p);
}

/** 8 bfloat16 numbers as floats. */
ALWAYS_INLINE __m256 widen_bf16(__m128i v) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}

ALWAYS_INLINE __m256i load32(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

ALWAYS_INLINE void store32(void *p, __m256i v) {
    _mm256_storeu_si256((__m256i *)p, v);
}

/* products_avx2.c */
CPU_PRODUCT(avx2_int8_bitmap);
CPU_PRODUCT(avx2_int8_dense);
CPU_PRODUCT(avx2_lut4_bitmap);
CPU_PRODUCT(avx2_lut4_dense);
void avx2_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                 int8_t *out);

/* products_avxvnni.c */
CPU_PRODUCT(avxvnni_int8_bitmap);
CPU_PRODUCT(avxvnni_int8_dense);
CPU_PRODUCT(avxvnni_lut4_bitmap);
CPU_PRODUCT(avxvnni_lut4_dense);

/* float_products_avx2.c */
CPU_PRODUCT(avx2_f32_bitmap);
CPU_PRODUCT(avx2_f32_dense);
CPU_PRODUCT(avx2_bf16_bitmap);
CPU_PRODUCT(avx2_bf16_dense);
CPU_PRODUCT(avx2_f16_bitmap);
CPU_PRODUCT(avx2_f16_dense);
CPU_PRODUCT(avx2_lut8_bitmap);
CPU_PRODUCT(avx2_lut8_dense);
void avx2_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride);

/* vectors_avx2.c */
void avx2_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out);
void avx2_quantise(const float *x, int64_t n, struct cpu_act *act);
float avx2_dot_f32(const float *a, const void *row, uint32_t n);
float avx2_dot_f16(const float *a, const void *row, uint32_t n);
float avx2_dot_i8(const float *a, const void *row, uint32_t n);
void avx2_add_f32(float *acc, float p, const void *row, uint32_t n);
void avx2_add_f16(float *acc, float p, const void *row, uint32_t n);
void avx2_add_i8(float *acc, float p, const void *row, uint32_t n);

#endif
