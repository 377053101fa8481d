/* Products of 16-bit, 32-bit and 8-bit codebook values with float activations, for AVX-512. */
#include "backend/cpu/avx512.h"
#include "backend/cpu/float_products.h"

#include <string.h>

/* The next up to 16 entries as floats at their columns, zero elsewhere. */
ALWAYS_INLINE __m512 next_values(const uint8_t **p, enum cpu_kind kind, bool dense, __mmask16 mask,
                                 const float *table, float scale) {
    size_t n = dense ? 16 : (size_t)__builtin_popcount(mask);
    __m512 v;
    if (kind == CPU_F32) {
        v = _mm512_loadu_ps(*p);
        *p += 4 * n;
        return dense ? v : _mm512_maskz_expand_ps(mask, v);
    }
    if (kind == CPU_LUT8) {
        __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)*p);
        *p += n;
        if (!dense) codes = _mm_maskz_expand_epi8(mask, codes);
        v = _mm512_i32gather_ps(_mm512_cvtepu8_epi32(codes), table, 4);
        v = _mm512_mul_ps(v, _mm512_set1_ps(scale));
        return dense ? v : _mm512_maskz_mov_ps(mask, v);
    }
    __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)*p);
    *p += 2 * n;
    if (!dense) h = _mm256_maskz_expand_epi16(mask, h);
    if (kind == CPU_F16) return _mm512_cvtph_ps(h);
    return widen_bf16(h);
}

/* Four rows, one stream. */
ALWAYS_INLINE void products_of_stream(const struct cpu_matrix *m, int64_t stream,
                                      enum cpu_kind kind, bool dense, uint32_t nt,
                                      const struct cpu_act *act, float result[][4]) {
    const int64_t micros = cpu_stream_micros(m);
    const uint64_t *masks = cpu_stream_masks(m, stream);
    const uint8_t *p = cpu_stream_values(m, stream);
    __m512 acc[4][4];
    for (int r = 0; r < 4; r++)
        for (uint32_t t = 0; t < nt; t++) acc[r][t] = _mm512_setzero_ps();
    for (int64_t i = 0; i < micros; i++) {
        uint64_t mask = dense ? 0 : masks[i];
        prefetch_lines(p, 1);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            float scale = stream_scale(m, stream, i, r, kind);
            __m512 w = next_values(&p, kind, dense, (__mmask16)(mask >> (16 * r)), m->table, scale);
#pragma GCC unroll 4
            for (uint32_t t = 0; t < nt; t++)
                acc[r][t] =
                    _mm512_add_ps(acc[r][t], _mm512_mul_ps(w, _mm512_loadu_ps(act[t].x + 16 * i)));
        }
    }
    for (int r = 0; r < 4; r++)
        for (uint32_t t = 0; t < nt; t++) result[t][r] = sum16(acc[r][t]);
}

ALWAYS_INLINE void expand_tile(const struct cpu_matrix *m, int64_t tile, enum cpu_kind kind,
                               float *out, int64_t stride) {
    for (int64_t stream = 4 * tile; stream < 4 * tile + 4; stream++, out += 4 * stride) {
        const uint64_t *masks = cpu_stream_masks(m, stream);
        const uint8_t *p = cpu_stream_values(m, stream);
        for (int64_t i = 0; i < cpu_stream_micros(m); i++) {
            uint64_t mask = masks ? masks[i] : ~(uint64_t)0;
            prefetch_lines(p, 1);
            for (int r = 0; r < 4; r++) {
                float scale = stream_scale(m, stream, i, r, kind);
                __m512 w =
                    next_values(&p, kind, false, (__mmask16)(mask >> (16 * r)), m->table, scale);
                _mm512_storeu_ps(out + r * stride + 16 * i, w);
            }
        }
    }
}

void avx512_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    switch (m->kind) {
    case CPU_F32: expand_tile(m, tile, CPU_F32, out, stride); break;
    case CPU_BF16: expand_tile(m, tile, CPU_BF16, out, stride); break;
    case CPU_F16: expand_tile(m, tile, CPU_F16, out, stride); break;
    default: expand_tile(m, tile, CPU_LUT8, out, stride); break;
    }
}

/* Tokens are taken 4 at a time, so that one expansion serves 4 products. */
ALWAYS_INLINE void product(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    for (int64_t row = tile0 * TILE_ROWS; row < tile1 * TILE_ROWS && row < m->rows; row += 4) {
        size_t size = (size_t)(m->rows - row < 4 ? m->rows - row : 4) * sizeof *out;
        float *dst = out + row - tile0 * TILE_ROWS;
        float result[4][4];
        uint32_t t = 0;
        for (; t + 4 <= n; t += 4) {
            products_of_stream(m, row / 4, kind, dense, 4, act + t, result);
            for (uint32_t i = 0; i < 4; i++) memcpy(dst + (t + i) * stride, result[i], size);
        }
        for (; t < n; t++) {
            products_of_stream(m, row / 4, kind, dense, 1, act + t, result);
            memcpy(dst + t * stride, result[0], size);
        }
    }
}

#define PRODUCT(NAME, KIND, DENSE)                                                                 \
    AVX512_PRODUCT(NAME) {                                                                         \
        product(m, KIND, DENSE, tile0, tile1, act, n, out, stride);                                \
    }
PRODUCT(avx512_f32_bitmap, CPU_F32, false)
PRODUCT(avx512_f32_dense, CPU_F32, true)
PRODUCT(avx512_bf16_bitmap, CPU_BF16, false)
PRODUCT(avx512_bf16_dense, CPU_BF16, true)
PRODUCT(avx512_f16_bitmap, CPU_F16, false)
PRODUCT(avx512_f16_dense, CPU_F16, true)
PRODUCT(avx512_lut8_bitmap, CPU_LUT8, false)
PRODUCT(avx512_lut8_dense, CPU_LUT8, true)
