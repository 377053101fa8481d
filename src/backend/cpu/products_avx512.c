/*
 * Products of int8 and LUT4 weights with integer activations, for AVX-512.
 *
 * A micro-block is one register: its packed codes are expanded under its mask to 64 unsigned bytes
 * (code + 128; 128 where nothing is stored), and vpdpbusd multiplies them with the digits of the
 * same 4 activations in every lane. Lane r collects row r, so there are no sums across lanes; what
 * the 128 contributed is subtracted at the end (cpu_act.bias). Expanding is what takes the time:
 * two operations on port 5, and one for moving the mask. The rest fits beside it.
 */
#include "backend/cpu/avx512.h"

#include <string.h>

/*
 * A lane grows by at most 4 * 255 * 128 per micro-block. Rows with more than this many are summed
 * in 64 bits piece by piece.
 */
#define PIECE_MICROS 8192

/* Micro-blocks of one step: their products go to accumulators of their own, because an addition to
 * one of them takes 5 cycles. */
#define STEP 4

/* Where a tile's next codes are; LUT4 has one position for each nibble. */
struct cursor {
    const uint8_t *next[2];
};

/*
 * 128 in all bytes and `v` expanded over them. Only into a register that has just been written: the
 * instruction waits for the old value of its destination.
 */
ALWAYS_INLINE __m512i expand_bytes(uint64_t mask, __m512i v, __m512i c128) {
    __asm__("vpexpandb %1, %0%{%2%}" : "+v"(c128) : "v"(v), "Yk"((__mmask64)mask));
    return c128;
}

/* acc += products of unsigned bytes with the same 4 signed bytes in every lane. As assembly, because
 * gcc 12 copies accumulators around the intrinsic. */
ALWAYS_INLINE __m512i add_products(__m512i acc, __m512i w, const int8_t x[4]) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int8_t(*)[4])x));
    return acc;
}

/* The codes of micro-block i as unsigned bytes. */
ALWAYS_INLINE __m512i next_codes(struct cursor *c, enum cpu_kind kind, bool dense, bool odd,
                                 uint64_t mask, __m512i table, __m512i c128) {
    const uint8_t **p = &c->next[kind == CPU_LUT4 && odd];
    __m512i v = _mm512_loadu_si512(*p);
    *p += dense ? 64 : _mm_popcnt_u64(mask);
    if (kind == CPU_LUT4) v = _mm512_permutexvar_epi8(odd ? _mm512_srli_epi16(v, 4) : v, table);
    return dense ? v : expand_bytes(mask, v, c128);
}

/* Requests what STEP micro-blocks will take later. */
ALWAYS_INLINE void prefetch_step(const struct cursor *c, enum cpu_kind kind,
                                 const uint64_t *masks) {
    if (masks) prefetch_lines(masks, 1);
    prefetch_lines(c->next[0], masks || kind == CPU_LUT4 ? 2 : STEP);
}

/* Adds micro-blocks [begin, end) of the tile at the cursor to one sum of each digit per token. */
ALWAYS_INLINE void add_micros(struct cursor *c, enum cpu_kind kind, const uint64_t *masks,
                              int64_t begin, int64_t end, __m512i table, const struct cpu_act *act,
                              uint32_t nt, __m512i high[], __m512i low[]) {
    const __m512i c128 = _mm512_set1_epi8((char)0x80);
    const int chains = nt == 1 ? STEP : 1;
    __m512i acc[2][4];
    for (int i = 0; i < 4; i++) acc[0][i] = acc[1][i] = _mm512_setzero_si512();
    for (int64_t i = begin; i < end; i += STEP) {
        prefetch_step(c, kind, masks ? masks + i : NULL);
#pragma GCC unroll 4
        for (int j = 0; j < STEP; j++) {
            __m512i w = next_codes(c, kind, !masks, j % 2, masks ? masks[i + j] : 0, table, c128);
#pragma GCC unroll 4
            for (uint32_t t = 0; t < nt; t++) {
                int a = (int)t * chains + j % chains;
                acc[0][a] = add_products(acc[0][a], w, act[t].high + 4 * (i + j));
                acc[1][a] = add_products(acc[1][a], w, act[t].low + 4 * (i + j));
            }
        }
    }
    if (nt == 1) {
        high[0] = _mm512_add_epi32(_mm512_add_epi32(acc[0][0], acc[0][1]),
                                   _mm512_add_epi32(acc[0][2], acc[0][3]));
        low[0] = _mm512_add_epi32(_mm512_add_epi32(acc[1][0], acc[1][1]),
                                  _mm512_add_epi32(acc[1][2], acc[1][3]));
        return;
    }
    for (uint32_t t = 0; t < nt; t++) {
        high[t] = acc[0][t];
        low[t] = acc[1][t];
    }
}

/* One scale per row. sums = 256 * high + low - bias in 64 bits: 8 rows and 8 rows. */
ALWAYS_INLINE void products_of_tile(const struct cpu_matrix *m, int64_t tile, struct cursor c,
                                    enum cpu_kind kind, const uint64_t *masks, __m512i table,
                                    const struct cpu_act *act, const int64_t *bias, uint32_t nt,
                                    __m512 result[]) {
    const int64_t micros = m->n_blocks * BLOCK_MICROS;
    __m512i sums[4][2];
    for (uint32_t t = 0; t < nt; t++) sums[t][0] = sums[t][1] = _mm512_set1_epi64(-bias[t]);
    for (int64_t begin = 0; begin < micros; begin += PIECE_MICROS) {
        int64_t end = begin + PIECE_MICROS < micros ? begin + PIECE_MICROS : micros;
        __m512i high[4], low[4];
        add_micros(&c, kind, masks, begin, end, table, act, nt, high, low);
        for (uint32_t t = 0; t < nt; t++) {
            for (int i = 0; i < 2; i++) {
                __m512i h = _mm512_cvtepi32_epi64(i ? _mm512_extracti64x4_epi64(high[t], 1)
                                                    : _mm512_castsi512_si256(high[t]));
                __m512i l = _mm512_cvtepi32_epi64(i ? _mm512_extracti64x4_epi64(low[t], 1)
                                                    : _mm512_castsi512_si256(low[t]));
                h = _mm512_add_epi64(_mm512_slli_epi64(h, 8), l);
                sums[t][i] = _mm512_add_epi64(sums[t][i], h);
            }
        }
    }
    const __m512 scales = _mm512_loadu_ps(m->scales + tile * TILE_ROWS);
    for (uint32_t t = 0; t < nt; t++) {
        __m512 sum = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtepi64_ps(sums[t][0])),
                                        _mm512_cvtepi64_ps(sums[t][1]), 1);
        result[t] = _mm512_mul_ps(sum, _mm512_mul_ps(scales, _mm512_set1_ps(act[t].scale)));
    }
}

/* A scale per group of columns: its sums fit 32 bits, 256 columns * 127 * ACT_MAX < 2^31. */
ALWAYS_INLINE void grouped_products_of_tile(const struct cpu_matrix *m, int64_t tile,
                                            struct cursor c, enum cpu_kind kind,
                                            const uint64_t *masks, __m512i table,
                                            const struct cpu_act *act, uint32_t nt,
                                            __m512 result[]) {
    const int64_t micros = m->n_blocks * BLOCK_MICROS, group_micros = m->group / 4;
    const float *scales = m->scales + tile * m->n_groups * TILE_ROWS;
    __m512 lanes[4][16];
    for (uint32_t t = 0; t < nt; t++)
        for (int i = 0; i < 16; i++) lanes[t][i] = _mm512_setzero_ps();
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t begin = g * group_micros;
        int64_t end = begin + group_micros < micros ? begin + group_micros : micros;
        __m512i high[4], low[4];
        prefetch_lines(scales + g * TILE_ROWS, 1);
        add_micros(&c, kind, masks, begin, end, table, act, nt, high, low);
        for (uint32_t t = 0; t < nt; t++) {
            __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[t], 8), low[t]);
            for (int64_t b = 4 * begin; b < 4 * end; b += BIAS_COLS)
                sum = _mm512_sub_epi32(sum, _mm512_set1_epi32(act[t].bias[b / BIAS_COLS]));
            __m512 v =
                _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(scales + g * TILE_ROWS));
            lanes[t][g % 16] = _mm512_add_ps(lanes[t][g % 16], v);
        }
    }
    for (uint32_t t = 0; t < nt; t++) {
        for (int half = 8; half > 0; half /= 2)
            for (int i = 0; i < half; i++)
                lanes[t][i] = _mm512_add_ps(lanes[t][i], lanes[t][i + half]);
        result[t] = _mm512_mul_ps(lanes[t][0], _mm512_set1_ps(act[t].scale));
    }
}

/* The bytes that codes stand for. */
ALWAYS_INLINE __m512i unsigned_table(const struct cpu_matrix *m) {
    return _mm512_xor_si512(_mm512_load_si512(m->table4), _mm512_set1_epi8((char)0x80));
}

ALWAYS_INLINE struct cursor tile_cursor(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *values = m->values + m->offsets[tile];
    return (struct cursor){{values, values}};
}

static int64_t sum_of_bias(const struct cpu_act *act, int64_t n_blocks) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n_blocks * (BLOCK_COLS / BIAS_COLS); i++) sum += act->bias[i];
    return sum;
}

/* Up to 4 tokens: one expansion serves them all. */
ALWAYS_INLINE void product_few(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                               int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t nt,
                               float *out, int64_t stride) {
    const __m512i table = kind == CPU_LUT4 ? unsigned_table(m) : _mm512_setzero_si512();
    int64_t bias[4];
    for (uint32_t t = 0; t < nt; t++) bias[t] = sum_of_bias(&act[t], m->n_blocks);
    for (int64_t tile = tile0; tile < tile1; tile++) {
        const uint64_t *masks = dense ? NULL : m->masks + tile * m->n_blocks * BLOCK_MICROS;
        struct cursor c = tile_cursor(m, tile);
        __m512 result[4];
        if (m->group)
            grouped_products_of_tile(m, tile, c, kind, masks, table, act, nt, result);
        else
            products_of_tile(m, tile, c, kind, masks, table, act, bias, nt, result);
        __mmask16 rows = tail(m->rows, tile * TILE_ROWS);
        for (uint32_t t = 0; t < nt; t++)
            _mm512_mask_storeu_ps(out + t * stride + (tile - tile0) * TILE_ROWS, rows, result[t]);
    }
}

ALWAYS_INLINE void product(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    uint32_t t = 0;
    for (; t + 4 <= n; t += 4)
        product_few(m, kind, dense, tile0, tile1, act + t, 4, out + t * stride, stride);
    for (; t < n; t++)
        product_few(m, kind, dense, tile0, tile1, act + t, 1, out + t * stride, stride);
}

#define PRODUCT(NAME, KIND, DENSE)                                                                 \
    AVX512_PRODUCT(NAME) {                                                                         \
        product(m, KIND, DENSE, tile0, tile1, act, n, out, stride);                                \
    }
PRODUCT(avx512_int8_bitmap, CPU_INT8, false)
PRODUCT(avx512_int8_dense, CPU_INT8, true)
PRODUCT(avx512_lut4_bitmap, CPU_LUT4, false)
PRODUCT(avx512_lut4_dense, CPU_LUT4, true)

void avx512_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out) {
    const __m512i c128 = _mm512_set1_epi8((char)0x80), table = unsigned_table(m);
    const uint64_t *masks = m->masks ? m->masks + tile * m->n_blocks * BLOCK_MICROS : NULL;
    struct cursor c = tile_cursor(m, tile);
    for (int64_t i = 0; i < block0 * BLOCK_MICROS; i++)
        c.next[m->kind == CPU_LUT4 && i % 2] += masks ? _mm_popcnt_u64(masks[i]) : 64;
    for (int64_t i = block0 * BLOCK_MICROS; i < block1 * BLOCK_MICROS; i += 2) {
        for (int j = 0; j < 2; j++, out += 64) {
            uint64_t mask = masks ? masks[i + j] : 0;
            __m512i w = m->kind == CPU_LUT4
                            ? next_codes(&c, CPU_LUT4, !masks, j, mask, table, c128)
                            : next_codes(&c, CPU_INT8, !masks, j, mask, table, c128);
            _mm512_storeu_si512(out, _mm512_xor_si512(w, c128)); /* signed again */
        }
    }
}
