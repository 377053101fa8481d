/**
 * What the files of the AVX-512 kernels share. They need AVX-512 F, BW, VL and DQ, VBMI, VBMI2 and
 * VNNI, and GFNI (Intel Ice Lake, AMD Zen 4 and later). Every function adds in the order that cpu.h promises,
 * so the results equal the scalar kernels' bit for bit.
 */
#ifndef PDVM_BACKEND_CPU_AVX512_H
#define PDVM_BACKEND_CPU_AVX512_H

#include "backend/cpu/cpu.h"

#include <immintrin.h>

/**
 * How far ahead of use values and masks are requested, along each of the four lines that a product
 * walks. The hardware prefetcher does not follow streams of uneven pace. Not 4096: what is requested
 * would fall into the cache sets of what is in use.
 */
#define PREFETCH_BYTES 2048

/** Requests the cache line that `p` will have reached PREFETCH_BYTES later, and the n - 1 behind. */
ALWAYS_INLINE void prefetch_lines(const void *p, int n) {
    for (int i = 0; i < n; i++)
        _mm_prefetch((const char *)p + PREFETCH_BYTES + 64 * i, _MM_HINT_T0);
}

/** lanes_sum on a register. */
ALWAYS_INLINE float sum16(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/** 16 bfloat16 numbers as floats. */
ALWAYS_INLINE __m512 widen_bf16(__m256i v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
}

/** The scales of a group of a tile's columns. */
ALWAYS_INLINE __m512 load_group_scales(const uint16_t *scales, int64_t group) {
    return widen_bf16(_mm256_loadu_si256((const void *)(scales + group * TILE_ROWS)));
}

/** Mask of the lanes that exist at position i of n. */
ALWAYS_INLINE __mmask16 tail(int64_t n, int64_t i) {
    return n - i >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (n - i)) - 1);
}

/** Declares a product kernel. */
#define AVX512_PRODUCT(NAME) CPU_PRODUCT(NAME)

/* products_avx512.c */
AVX512_PRODUCT(avx512_int8_bitmap);
AVX512_PRODUCT(avx512_int8_dense);
AVX512_PRODUCT(avx512_lut4_bitmap);
AVX512_PRODUCT(avx512_lut4_dense);
AVX512_PRODUCT(avx512_sell);
void avx512_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out);

/* float_products_avx512.c */
AVX512_PRODUCT(avx512_f32_bitmap);
AVX512_PRODUCT(avx512_f32_dense);
AVX512_PRODUCT(avx512_bf16_bitmap);
AVX512_PRODUCT(avx512_bf16_dense);
AVX512_PRODUCT(avx512_f16_bitmap);
AVX512_PRODUCT(avx512_f16_dense);
AVX512_PRODUCT(avx512_lut8_bitmap);
AVX512_PRODUCT(avx512_lut8_dense);
void avx512_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride);

/* vectors_avx512.c */
void avx512_rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out);
void avx512_quantise(const float *x, int64_t n, struct cpu_act *act);
float avx512_dot_f32(const float *a, const void *row, uint32_t n);
float avx512_dot_f16(const float *a, const void *row, uint32_t n);
float avx512_dot_i8(const float *a, const void *row, uint32_t n);
void avx512_add_f32(float *acc, float p, const void *row, uint32_t n);
void avx512_add_f16(float *acc, float p, const void *row, uint32_t n);
void avx512_add_i8(float *acc, float p, const void *row, uint32_t n);

#endif
