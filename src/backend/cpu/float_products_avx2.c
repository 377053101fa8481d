/* Products of 16-bit, 32-bit and 8-bit codebook values with float activations, for AVX2. */
#include "backend/cpu/avx2.h"
#include "backend/cpu/float_products.h"

/* Eight entries as floats, as they stand. */
ALWAYS_INLINE __m256 load_values(const uint8_t *p, enum cpu_kind kind, const float *table,
                                 float scale) {
    switch (kind) {
    case CPU_F32: return _mm256_loadu_ps((const float *)(const void *)p);
    case CPU_F16: return _mm256_cvtph_ps(load16(p));
    case CPU_BF16:
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16));
    default:
        return _mm256_mul_ps(_mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(load8(p)), 4),
                             _mm256_set1_ps(scale));
    }
}

/* The next up to 8 entries at their columns, zero elsewhere. */
ALWAYS_INLINE __m256 next_values(const uint8_t **p, enum cpu_kind kind, bool dense, uint32_t mask,
                                 const float *table, float scale) {
    const size_t size = kind == CPU_F32 ? 4 : kind == CPU_LUT8 ? 1 : 2;
    __m256 v = load_values(*p, kind, table, scale);
    *p += size * (dense ? 8 : (size_t)_mm_popcnt_u32(mask));
    if (dense) return v;
    __m256i from = _mm256_cvtepi8_epi32(load8(cpu_expand_table[mask])); /* gaps are negative */
    v = _mm256_permutevar8x32_ps(v, from);
    return _mm256_blendv_ps(v, _mm256_setzero_ps(), _mm256_castsi256_ps(from));
}

/* Four rows, one stream. */
ALWAYS_INLINE void products_of_stream(const struct cpu_matrix *m, int64_t stream,
                                      enum cpu_kind kind, bool dense, const float *x,
                                      float result[4]) {
    const int64_t micros = cpu_stream_micros(m);
    const uint64_t *masks = cpu_stream_masks(m, stream);
    const uint8_t *p = cpu_stream_values(m, stream);
    struct lanes acc[4];
    for (int r = 0; r < 4; r++) acc[r].half[0] = acc[r].half[1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < micros; i++) {
        uint64_t mask = dense ? 0 : masks[i];
        prefetch_lines(p, kind == CPU_LUT8 ? 1 : 2);
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            float scale = stream_scale(m, stream, i, r, kind);
            for (int h = 0; h < 2; h++, mask >>= 8) {
                __m256 w = next_values(&p, kind, dense, mask & 255, m->table, scale);
                w = _mm256_mul_ps(w, _mm256_loadu_ps(x + 16 * i + 8 * h));
                acc[r].half[h] = _mm256_add_ps(acc[r].half[h], w);
            }
        }
    }
    for (int r = 0; r < 4; r++) result[r] = sum16(acc[r]);
}

FLOAT_PRODUCTS(avx2, products_of_stream)

ALWAYS_INLINE void expand_tile(const struct cpu_matrix *m, int64_t tile, enum cpu_kind kind,
                               float *out, int64_t stride) {
    for (int64_t stream = 4 * tile; stream < 4 * tile + 4; stream++, out += 4 * stride) {
        const uint64_t *masks = cpu_stream_masks(m, stream);
        const uint8_t *p = cpu_stream_values(m, stream);
        for (int64_t i = 0; i < cpu_stream_micros(m); i++) {
            uint64_t mask = masks ? masks[i] : ~(uint64_t)0;
            for (int r = 0; r < 4; r++) {
                float scale = stream_scale(m, stream, i, r, kind);
                for (int h = 0; h < 2; h++, mask >>= 8)
                    _mm256_storeu_ps(out + r * stride + 16 * i + 8 * h,
                                     next_values(&p, kind, false, mask & 255, m->table, scale));
            }
        }
    }
}

void avx2_expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    switch (m->kind) {
    case CPU_F32: expand_tile(m, tile, CPU_F32, out, stride); break;
    case CPU_BF16: expand_tile(m, tile, CPU_BF16, out, stride); break;
    case CPU_F16: expand_tile(m, tile, CPU_F16, out, stride); break;
    default: expand_tile(m, tile, CPU_LUT8, out, stride); break;
    }
}
