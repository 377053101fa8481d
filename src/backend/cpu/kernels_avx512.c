/*
 * Kernels for AVX-512 with VBMI2 and VNNI (Intel Ice Lake, AMD Zen 4 and later).
 *
 * Weights arrive compressed: a register of packed codes is expanded under the block's mask to 64
 * bytes, widened to 16 bits and multiplied with 16-bit activations by vpdpwssd. Every function
 * adds in the order that cpu.h promises, so the results equal the scalar kernels' bit for bit.
 */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/*
 * How far ahead of use values and masks are requested. The hardware prefetcher does not follow
 * two long streams of uneven pace; shorter distances than 8 KB leave bandwidth unused.
 */
#define PREFETCH_BYTES 8192

/* A 32-bit lane takes at most 4 products of a block, each below 127 * 32768: 64 blocks fit. */
#define SEGMENT_BLOCKS 64

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static bool supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni");
}

/* lanes_sum on a register. */
ALWAYS_INLINE float sum16(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}

/* Exact sum of 16 int32 lanes. */
ALWAYS_INLINE int64_t sum16_i64(__m512i v) {
    __m512i low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v));
    __m512i high = _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(v, 1));
    return _mm512_reduce_add_epi64(_mm512_add_epi64(low, high));
}

/*
 * Expands v in its own register. The instruction waits for the old value of its destination even
 * where zero-masking ignores it, and compilers like to choose a register that is still being
 * computed: that is five times slower.
 */
ALWAYS_INLINE __m512i expand_bytes(__mmask64 mask, __m512i v) {
    __asm__("vpexpandb %0, %0%{%1%}%{z%}" : "+v"(v) : "Yk"(mask));
    return v;
}

/* ---- products with integer activations ------------------------------------------------- */

/* Where a tile's next codes are; LUT4 has one position per nibble stream. */
struct cursor {
    const uint8_t *low;
    const uint8_t *high;
};

/* The next codes of row r as 64 signed bytes at their columns, zero elsewhere. */
ALWAYS_INLINE __m512i next_codes(struct cursor *c, enum cpu_kind kind, bool dense, int r,
                                 const uint64_t *mask, __m512i table) {
    size_t n = dense ? BLOCK_COLS : (size_t)_mm_popcnt_u64(*mask);
    __m512i v;
    if (kind == CPU_INT8) {
        v = _mm512_loadu_si512(c->low);
        c->low += n;
    } else if (r < 2) {
        v = _mm512_permutexvar_epi8(_mm512_loadu_si512(c->low), table);
        c->low += n;
    } else {
        v = _mm512_loadu_si512(c->high);
        v = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), table);
        c->high += n;
    }
    return dense ? v : expand_bytes(*mask, v);
}

ALWAYS_INLINE void expand_tile(const struct cpu_matrix *m, int64_t tile, enum cpu_kind kind,
                               bool dense, int64_t block0, int64_t block1, int8_t *out,
                               int64_t stride) {
    const uint64_t *masks = dense ? NULL : m->masks + tile * m->n_blocks * TILE_ROWS;
    const uint8_t *values = m->values + m->offsets[tile];
    struct cursor cursor = {values, values};
    const __m512i table = kind == CPU_LUT4 ? _mm512_load_si512(m->table4) : _mm512_setzero_si512();
    for (int64_t block = 0; block < block1; block++) {
        _mm_prefetch((const char *)cursor.low + PREFETCH_BYTES, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int r = 0; r < TILE_ROWS; r++) {
            const uint64_t *mask = dense ? NULL : masks + block * TILE_ROWS + r;
            __m512i w = next_codes(&cursor, kind, dense, r, mask, table);
            if (block >= block0)
                _mm512_storeu_si512(out + r * stride + (block - block0) * BLOCK_COLS, w);
        }
    }
}

static void expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out, int64_t stride) {
    if (m->kind == CPU_INT8 && m->dense)
        expand_tile(m, tile, CPU_INT8, true, block0, block1, out, stride);
    else if (m->kind == CPU_INT8)
        expand_tile(m, tile, CPU_INT8, false, block0, block1, out, stride);
    else if (m->dense)
        expand_tile(m, tile, CPU_LUT4, true, block0, block1, out, stride);
    else
        expand_tile(m, tile, CPU_LUT4, false, block0, block1, out, stride);
}

/* The same as 16-bit integers: columns 0 to 31 of the block, and 32 to 63. */
ALWAYS_INLINE void next_weights(struct cursor *c, enum cpu_kind kind, bool dense, int r,
                                const uint64_t *masks, int64_t block, __m512i table, __m512i *low,
                                __m512i *high) {
    const uint64_t *mask = dense ? NULL : masks + block * TILE_ROWS + r;
    __m512i w = next_codes(c, kind, dense, r, mask, table);
    *low = _mm512_cvtepi8_epi16(_mm512_castsi512_si256(w));
    *high = _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64(w, 1));
}

/* Requests what is to be used PREFETCH_BYTES later: a block of masks, and of values as many lines as
 * a block may take, which is two for half of the places or for nibbles. */
ALWAYS_INLINE void prefetch_block(const struct cursor *c, enum cpu_kind kind, const uint64_t *masks,
                                  int64_t block) {
    const char *values = (const char *)c->low + PREFETCH_BYTES;
    _mm_prefetch(values, _MM_HINT_T0);
    _mm_prefetch(values + 64, _MM_HINT_T0);
    if (masks) {
        _mm_prefetch((const char *)(masks + block * TILE_ROWS) + PREFETCH_BYTES, _MM_HINT_T0);
    } else if (kind == CPU_INT8) {
        _mm_prefetch(values + 128, _MM_HINT_T0);
        _mm_prefetch(values + 192, _MM_HINT_T0);
    }
}

ALWAYS_INLINE void products_of_tile(const struct cpu_matrix *m, int64_t tile, enum cpu_kind kind,
                                    bool dense, uint32_t nt, const struct cpu_act *act,
                                    float result[][TILE_ROWS]) {
    const uint64_t *masks = dense ? NULL : m->masks + tile * m->n_blocks * TILE_ROWS;
    const float *scales = m->scales + tile * m->n_groups * TILE_ROWS;
    const uint8_t *values = m->values + m->offsets[tile];
    struct cursor cursor = {values, values};
    const __m512i table = kind == CPU_LUT4 ? _mm512_load_si512(m->table4) : _mm512_setzero_si512();
    __m512i acc[TILE_ROWS][4];
    int64_t sums[TILE_ROWS][4];
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++) sums[r][t] = 0;

    for (int64_t begin = 0; begin < m->n_blocks; begin += SEGMENT_BLOCKS) {
        int64_t end = begin + SEGMENT_BLOCKS < m->n_blocks ? begin + SEGMENT_BLOCKS : m->n_blocks;
        for (int r = 0; r < TILE_ROWS; r++)
            for (uint32_t t = 0; t < nt; t++) acc[r][t] = _mm512_setzero_si512();
        for (int64_t block = begin; block < end; block++) {
            prefetch_block(&cursor, kind, masks, block);
#pragma GCC unroll 4
            for (int r = 0; r < TILE_ROWS; r++) {
                __m512i low, high;
                next_weights(&cursor, kind, dense, r, masks, block, table, &low, &high);
#pragma GCC unroll 4
                for (uint32_t t = 0; t < nt; t++) {
                    const int16_t *x = act[t].q + block * BLOCK_COLS;
                    acc[r][t] = _mm512_dpwssd_epi32(acc[r][t], low, _mm512_loadu_si512(x));
                    acc[r][t] = _mm512_dpwssd_epi32(acc[r][t], high, _mm512_loadu_si512(x + 32));
                }
            }
        }
        for (int r = 0; r < TILE_ROWS; r++)
            for (uint32_t t = 0; t < nt; t++) sums[r][t] += sum16_i64(acc[r][t]);
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++)
            result[t][r] = (float)sums[r][t] * (scales[r] * act[t].scale);
}

/* The same with a scale per group of columns: lanes become floats at the end of each group. */
ALWAYS_INLINE void grouped_products_of_tile(const struct cpu_matrix *m, int64_t tile,
                                            enum cpu_kind kind, bool dense, uint32_t nt,
                                            const struct cpu_act *act, float result[][TILE_ROWS]) {
    const uint64_t *masks = dense ? NULL : m->masks + tile * m->n_blocks * TILE_ROWS;
    const float *scales = m->scales + tile * m->n_groups * TILE_ROWS;
    const uint8_t *values = m->values + m->offsets[tile];
    struct cursor cursor = {values, values};
    const __m512i table = kind == CPU_LUT4 ? _mm512_load_si512(m->table4) : _mm512_setzero_si512();
    const bool halves = m->group == 32;
    const int64_t blocks_per_group = m->group > BLOCK_COLS ? m->group / BLOCK_COLS : 1;
    __m512i acc[TILE_ROWS][4];
    __m512 sums[TILE_ROWS][4];
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++) sums[r][t] = _mm512_setzero_ps();

    for (int64_t begin = 0; begin < m->n_blocks; begin += blocks_per_group) {
        int64_t end =
            begin + blocks_per_group < m->n_blocks ? begin + blocks_per_group : m->n_blocks;
        for (int r = 0; r < TILE_ROWS; r++)
            for (uint32_t t = 0; t < nt; t++) acc[r][t] = _mm512_setzero_si512();
        for (int64_t block = begin; block < end; block++) {
            prefetch_block(&cursor, kind, masks, block);
#pragma GCC unroll 4
            for (int r = 0; r < TILE_ROWS; r++) {
                __m512i low, high;
                next_weights(&cursor, kind, dense, r, masks, block, table, &low, &high);
#pragma GCC unroll 4
                for (uint32_t t = 0; t < nt; t++) {
                    const int16_t *x = act[t].q + block * BLOCK_COLS;
                    acc[r][t] = _mm512_dpwssd_epi32(acc[r][t], low, _mm512_loadu_si512(x));
                    if (halves) {
                        __m512 s = _mm512_set1_ps(scales[2 * block * TILE_ROWS + r]);
                        sums[r][t] = _mm512_add_ps(sums[r][t],
                                                   _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][t]), s));
                        acc[r][t] = _mm512_setzero_si512();
                    }
                    acc[r][t] = _mm512_dpwssd_epi32(acc[r][t], high, _mm512_loadu_si512(x + 32));
                }
            }
        }
        int64_t g = halves ? 2 * begin + 1 : begin / blocks_per_group;
        for (int r = 0; r < TILE_ROWS; r++) {
            __m512 s = _mm512_set1_ps(scales[g * TILE_ROWS + r]);
            for (uint32_t t = 0; t < nt; t++)
                sums[r][t] =
                    _mm512_add_ps(sums[r][t], _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][t]), s));
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++) result[t][r] = sum16(sums[r][t]) * act[t].scale;
}

/* ---- products with float activations --------------------------------------------------- */

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
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

ALWAYS_INLINE void expand_float_tile(const struct cpu_matrix *m, int64_t tile, enum cpu_kind kind,
                                     float *out, int64_t stride) {
    const uint64_t *masks = m->dense ? NULL : m->masks + tile * m->n_blocks * TILE_ROWS;
    const float *scales = m->scales ? m->scales + tile * m->n_groups * TILE_ROWS : NULL;
    const uint8_t *p = m->values + m->offsets[tile];
    for (int64_t block = 0; block < m->n_blocks; block++) {
        _mm_prefetch((const char *)p + PREFETCH_BYTES, _MM_HINT_T0);
        for (int r = 0; r < TILE_ROWS; r++) {
            uint64_t mask = m->dense ? ~(uint64_t)0 : masks[block * TILE_ROWS + r];
            for (int i = 0; i < 4; i++) {
                int64_t column = block * BLOCK_COLS + 16 * i;
                float scale = 1;
                if (kind == CPU_LUT8)
                    scale = scales[(m->group ? column / m->group : 0) * TILE_ROWS + r];
                __m512 w = next_values(&p, kind, false, (__mmask16)(mask >> (16 * i)), m->table,
                                       scale);
                _mm512_storeu_ps(out + r * stride + column, w);
            }
        }
    }
}

static void expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    switch (m->kind) {
    case CPU_F32: expand_float_tile(m, tile, CPU_F32, out, stride); break;
    case CPU_BF16: expand_float_tile(m, tile, CPU_BF16, out, stride); break;
    case CPU_F16: expand_float_tile(m, tile, CPU_F16, out, stride); break;
    default: expand_float_tile(m, tile, CPU_LUT8, out, stride); break;
    }
}

ALWAYS_INLINE void float_products_of_tile(const struct cpu_matrix *m, int64_t tile,
                                          enum cpu_kind kind, bool dense, uint32_t nt,
                                          const struct cpu_act *act, float result[][TILE_ROWS]) {
    const uint64_t *masks = dense ? NULL : m->masks + tile * m->n_blocks * TILE_ROWS;
    const float *scales = m->scales ? m->scales + tile * m->n_groups * TILE_ROWS : NULL;
    const uint8_t *p = m->values + m->offsets[tile];
    __m512 acc[TILE_ROWS][4];
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++) acc[r][t] = _mm512_setzero_ps();
    for (int64_t block = 0; block < m->n_blocks; block++) {
        _mm_prefetch((const char *)p + PREFETCH_BYTES, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int r = 0; r < TILE_ROWS; r++) {
            uint64_t mask = dense ? 0 : masks[block * TILE_ROWS + r];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                float scale = 1;
                if (kind == CPU_LUT8) {
                    int64_t g = m->group ? (block * BLOCK_COLS + 16 * i) / m->group : 0;
                    scale = scales[g * TILE_ROWS + r];
                }
                __m512 w =
                    next_values(&p, kind, dense, (__mmask16)(mask >> (16 * i)), m->table, scale);
#pragma GCC unroll 4
                for (uint32_t t = 0; t < nt; t++) {
                    const float *x = act[t].x + block * BLOCK_COLS + 16 * i;
                    acc[r][t] = _mm512_add_ps(acc[r][t], _mm512_mul_ps(w, _mm512_loadu_ps(x)));
                }
            }
        }
    }
    for (int r = 0; r < TILE_ROWS; r++)
        for (uint32_t t = 0; t < nt; t++) result[t][r] = sum16(acc[r][t]);
}

/* ---- products -------------------------------------------------------------------------- */

/* Only one of the three remains in each kernel: `kind` is a constant there. */
ALWAYS_INLINE void any_products_of_tile(const struct cpu_matrix *m, int64_t tile,
                                        enum cpu_kind kind, bool dense, uint32_t nt,
                                        const struct cpu_act *act, float result[][TILE_ROWS]) {
    if (!cpu_kind_is_integer(kind))
        float_products_of_tile(m, tile, kind, dense, nt, act, result);
    else if (m->group)
        grouped_products_of_tile(m, tile, kind, dense, nt, act, result);
    else
        products_of_tile(m, tile, kind, dense, nt, act, result);
}

/* Tokens are taken 4 at a time, so that one expansion serves 4 products. */
ALWAYS_INLINE void product(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    for (int64_t tile = tile0; tile < tile1; tile++) {
        int64_t left = m->rows - tile * TILE_ROWS;
        size_t size = (size_t)(left < TILE_ROWS ? left : TILE_ROWS) * sizeof *out;
        float *dst = out + (tile - tile0) * TILE_ROWS;
        float result[4][TILE_ROWS];
        uint32_t t = 0;
        for (; t + 4 <= n; t += 4) {
            any_products_of_tile(m, tile, kind, dense, 4, act + t, result);
            for (uint32_t i = 0; i < 4; i++) memcpy(dst + (t + i) * stride, result[i], size);
        }
        for (; t < n; t++) {
            any_products_of_tile(m, tile, kind, dense, 1, act + t, result);
            memcpy(dst + t * stride, result[0], size);
        }
    }
}

#define PRODUCT(NAME, KIND, DENSE)                                                                 \
    static void NAME(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,                     \
                     const struct cpu_act *act, uint32_t n, float *out, int64_t stride) {          \
        product(m, KIND, DENSE, tile0, tile1, act, n, out, stride);                                \
    }
PRODUCT(int8_bitmap, CPU_INT8, false)
PRODUCT(int8_dense, CPU_INT8, true)
PRODUCT(lut4_bitmap, CPU_LUT4, false)
PRODUCT(lut4_dense, CPU_LUT4, true)
PRODUCT(f32_bitmap, CPU_F32, false)
PRODUCT(f32_dense, CPU_F32, true)
PRODUCT(bf16_bitmap, CPU_BF16, false)
PRODUCT(bf16_dense, CPU_BF16, true)
PRODUCT(f16_bitmap, CPU_F16, false)
PRODUCT(f16_dense, CPU_F16, true)
PRODUCT(lut8_bitmap, CPU_LUT8, false)
PRODUCT(lut8_dense, CPU_LUT8, true)

/* ---- vectors --------------------------------------------------------------------------- */

/* Mask of the lanes that exist at position i of n. */
ALWAYS_INLINE __mmask16 tail(int64_t n, int64_t i) {
    return n - i >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << (n - i)) - 1);
}

static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
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

static float quantise(const float *x, int64_t n, int16_t *out) {
    const __m512 largest = _mm512_set1_ps(3.40282347e38f);
    __m512 max = _mm512_setzero_ps();
    __mmask16 bad = 0;
    for (int64_t i = 0; i < n; i += 16) {
        __m512 a = _mm512_abs_ps(_mm512_maskz_loadu_ps(tail(n, i), x + i));
        bad |= _mm512_cmp_ps_mask(a, largest, _CMP_NLE_UQ);
        max = _mm512_max_ps(max, a);
    }
    float amax = _mm512_reduce_max_ps(max);
    if (bad || amax < 1e-30f) {
        memset(out, 0, (size_t)n * sizeof *out);
        return bad ? NAN : 0.0f;
    }
    __m512 inverse = _mm512_set1_ps(32767.0f / amax);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 k = tail(n, i);
        __m512i v = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(k, x + i), inverse));
        v = _mm512_max_epi32(v, _mm512_set1_epi32(-32767));
        _mm256_mask_storeu_epi16(out + i, k, _mm512_cvtsepi32_epi16(v));
    }
    return amax / 32767.0f;
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
    static float dot_##SUFFIX(const float *a, const void *row, uint32_t n) {                       \
        return dot(a, row, n, TYPE);                                                               \
    }                                                                                              \
    static void add_##SUFFIX(float *acc, float p, const void *row, uint32_t n) {                   \
        add_scaled(acc, p, row, n, TYPE);                                                          \
    }
ROW_KERNELS(f32, PDVM_KV_F32)
ROW_KERNELS(f16, PDVM_KV_F16)
ROW_KERNELS(i8, PDVM_KV_INT8)

#define AVX512_KERNELS                                                                             \
    .product = {[CPU_INT8] = {int8_bitmap, int8_dense},                                            \
                [CPU_LUT4] = {lut4_bitmap, lut4_dense},                                            \
                [CPU_F32] = {f32_bitmap, f32_dense},                                               \
                [CPU_BF16] = {bf16_bitmap, bf16_dense},                                            \
                [CPU_F16] = {f16_bitmap, f16_dense},                                               \
                [CPU_LUT8] = {lut8_bitmap, lut8_dense}},                                           \
    .attention = &cpu_attention_avx512, .expand = expand, .expand_float = expand_float, .rms_norm = rms_norm, .quantise = quantise,    \
    .dot = {[PDVM_KV_F32] = dot_f32, [PDVM_KV_F16] = dot_f16, [PDVM_KV_INT8] = dot_i8},            \
    .add_scaled = {[PDVM_KV_F32] = add_f32, [PDVM_KV_F16] = add_f16, [PDVM_KV_INT8] = add_i8}

const struct cpu_kernels cpu_kernels_avx512 = {
    .name = "avx512", .supported = supported, .batch = &cpu_batch_avx512, AVX512_KERNELS};

#ifdef PDVM_HAVE_AMX
static bool supported_with_amx(void) {
    return supported() && cpu_amx_supported();
}

const struct cpu_kernels cpu_kernels_amx = {
    .name = "amx", .supported = supported_with_amx, .batch = &cpu_batch_amx, AVX512_KERNELS};
#endif
