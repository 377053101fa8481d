/**
 * What the batch kernels with 512-bit registers share: the steps around the exact sums of 8-bit
 * products, which AMX and VNNI form each in their way.
 *
 * Activations x = 256 * high + low, both digits signed bytes, are packed per block of 64 columns
 * and digit (low first) as 16 tokens x 64 columns. Behind the blocks stand the sums of the digits
 * over all columns before each multiple of 32: [2 * n_blocks + 1][2][16] int32.
 */
#ifndef PDVM_BACKEND_CPU_BATCH_AVX512_H
#define PDVM_BACKEND_CPU_BATCH_AVX512_H

#include "backend/cpu/avx512.h"
#include "backend/cpu/batch.h"

#include <string.h>

/** Exact sums over columns for 16 tokens and two tiles of 16 rows, by digit. */
struct batch_sums {
    _Alignas(64) int32_t c[2][2][BATCH_TOKENS][16]; /* [digit][tile][token][row] */
};

/** Accumulators of 16 tokens and two tiles of 16 rows. */
typedef __m512 batch_floats[BATCH_TOKENS][2];

/** Sums over columns [begin, end), multiples of 64, or of 32 for groups of 32. */
typedef void (*batch_dots_fn)(const struct cpu_panel *panel, int64_t row,
                              const struct cpu_token_tile *tokens, int64_t begin, int64_t end,
                              struct batch_sums *sums);

/** A panel's codes from a row (a multiple of 16) and a column (a multiple of 32) on. */
ALWAYS_INLINE const int8_t *batch_codes(const struct cpu_panel *panel, int64_t row,
                                        int64_t column) {
    return panel->codes + row / 16 * panel->stride + column * 16;
}

/** Low digits of 16 tokens from a column (a multiple of 32) on; the high ones are 1024 bytes on. */
ALWAYS_INLINE const int8_t *batch_digits(const struct cpu_token_tile *tokens, int64_t column) {
    return (const int8_t *)tokens->packed + column / BLOCK_COLS * tokens->digits * 1024 +
           column % BLOCK_COLS;
}

/** Sums of the digits over the columns before `column`: [2][16]. */
ALWAYS_INLINE const int32_t *batch_prefix(const struct cpu_panel *panel,
                                          const struct cpu_token_tile *tokens, int64_t column) {
    int64_t bytes = panel->m->n_blocks * tokens->digits * 1024;
    const void *base = (const int8_t *)tokens->packed + bytes;
    return (const int32_t *)base + column / 32 * 2 * BATCH_TOKENS;
}

/** Rows of tile i of two (16 rows from `row` + 16 i) that exist. */
ALWAYS_INLINE __mmask16 batch_rows(const struct cpu_panel *panel, int64_t row, int i) {
    int64_t left = panel->rows - row - 16 * i;
    return left >= 16 ? (__mmask16)0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
}

/** Exact 64-bit sums 256 * high + low of rows 0 to 7 or 8 to 15. */
ALWAYS_INLINE __m512i batch_wide(const struct batch_sums *sums, int digits, int i, int t,
                                 int half) {
    const __m256i *low = (const __m256i *)(const void *)sums->c[0][i][t];
    const __m256i *high = (const __m256i *)(const void *)sums->c[1][i][t];
    __m512i l = _mm512_cvtepi32_epi64(_mm256_load_si256(low + half));
    if (digits == 1) return l;
    __m512i h = _mm512_cvtepi32_epi64(_mm256_load_si256(high + half));
    return _mm512_add_epi64(_mm512_slli_epi64(h, 8), l);
}

/** One scale per row: the exact sum of all products, rounded once, as in one token's product. */
ALWAYS_INLINE void batch_row_scaled(const struct cpu_panel *panel, int64_t row,
                                    const struct cpu_token_tile *tokens, batch_dots_fn dots,
                                    float *out, int64_t stride) {
    const struct cpu_matrix *m = panel->m;
    const int64_t cols = m->n_blocks * BLOCK_COLS;
    const int digits = tokens->digits;
    struct batch_sums sums;
    _Alignas(64) int64_t wide[2][BATCH_TOKENS][2][8]; /* only for the widest matrices */
    for (int64_t begin = 0; begin < cols; begin += BATCH_SEGMENT) {
        int64_t end = begin + BATCH_SEGMENT < cols ? begin + BATCH_SEGMENT : cols;
        dots(panel, row, tokens, begin, end, &sums);
        if (cols <= BATCH_SEGMENT) break;
        for (int i = 0; i < 2; i++)
            for (int t = 0; t < BATCH_TOKENS; t++)
                for (int half = 0; half < 2; half++) {
                    __m512i s = batch_wide(&sums, digits, i, t, half);
                    if (begin) s = _mm512_add_epi64(s, _mm512_load_si512(wide[i][t][half]));
                    _mm512_store_si512(wide[i][t][half], s);
                }
    }
    for (int i = 0; i < 2; i++) {
        const __mmask16 k = batch_rows(panel, row, i);
        if (!k) break;
        const int64_t tile = panel->tile0 + row / TILE_ROWS + i;
        const __m512 row_scales = _mm512_loadu_ps(cpu_tile_scales(m, tile));
        for (uint32_t t = 0; t < tokens->n; t++) {
            __m256 halves[2];
            for (int half = 0; half < 2; half++)
                halves[half] = _mm512_cvtepi64_ps(cols > BATCH_SEGMENT
                                                      ? _mm512_load_si512(wide[i][t][half])
                                                      : batch_wide(&sums, digits, i, (int)t, half));
            __m512 s = _mm512_insertf32x8(_mm512_castps256_ps512(halves[0]), halves[1], 1);
            __m512 scale = _mm512_mul_ps(row_scales, _mm512_set1_ps(tokens->scales[t]));
            _mm512_mask_storeu_ps(out + t * stride + row + 16 * i, k, _mm512_mul_ps(s, scale));
        }
    }
}

/** acc += (float)(256 * high + low) * scale of one group; the sums of a group fit 32 bits. */
ALWAYS_INLINE void batch_add_group(const struct cpu_panel *panel, int64_t row, int64_t group,
                                   const struct batch_sums *sums, int digits, batch_floats acc) {
    const struct cpu_matrix *m = panel->m;
    for (int i = 0; i < 2; i++) {
        int64_t tile = panel->tile0 + row / TILE_ROWS + i;
        if (tile >= m->n_tiles) break;
        const __m512 scale = load_group_scales(cpu_tile_group_scales(m, tile), group);
        for (int t = 0; t < BATCH_TOKENS; t++) {
            __m512i s = _mm512_load_si512(sums->c[0][i][t]);
            if (digits > 1)
                s = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(sums->c[1][i][t]), 8), s);
            acc[t][i] = _mm512_add_ps(acc[t][i], _mm512_mul_ps(_mm512_cvtepi32_ps(s), scale));
        }
    }
}

/** Ends a lane: joins the finished subtrees of lanes_sum's tree on top of a stack. */
ALWAYS_INLINE int batch_join(batch_floats *stack, int top, unsigned lane) {
    for (unsigned bit = lane; bit & 1; bit >>= 1, top--)
        for (int t = 0; t < BATCH_TOKENS; t++)
            for (int i = 0; i < 2; i++)
                stack[top - 1][t][i] = _mm512_add_ps(stack[top - 1][t][i], stack[top][t][i]);
    return top;
}

/**
 * Scales of groups: group g is added to lane g % 16, and the lanes are summed by halving. Here
 * lane after lane is finished, in the order in which lanes_sum's tree can grow on a stack. The
 * next group's sums are begun before a group's are used, because they take long to arrive.
 */
ALWAYS_INLINE void batch_grouped(const struct cpu_panel *panel, int64_t row,
                                 const struct cpu_token_tile *tokens, batch_dots_fn dots,
                                 float *out, int64_t stride) {
    static const uint8_t order[17] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15, 0};
    const struct cpu_matrix *m = panel->m;
    const int64_t cols = m->n_blocks * BLOCK_COLS;
    batch_floats stack[5];
    struct batch_sums sums[2];
    int64_t g = 0, next;
    int top = 0, turn = 0;
    dots(panel, row, tokens, 0, m->group < cols ? m->group : cols, &sums[0]);
    memset(stack[0], 0, sizeof stack[0]);
    for (unsigned lane = 0; lane < 16; g = next, turn ^= 1) {
        unsigned next_lane = lane;
        for (next = g + 16; next >= m->n_groups && next_lane < 16;) next = order[++next_lane];
        if (next_lane < 16) {
            int64_t begin = next * m->group;
            int64_t end = begin + m->group < cols ? begin + m->group : cols;
            dots(panel, row, tokens, begin, end, &sums[turn ^ 1]);
        }
        batch_add_group(panel, row, g, &sums[turn], tokens->digits, stack[top]);
        for (; lane < next_lane; lane++) {
            top = batch_join(stack, top, lane);
            if (lane < 15) memset(stack[++top], 0, sizeof stack[top]);
        }
    }
    for (int i = 0; i < 2; i++)
        for (uint32_t t = 0; t < tokens->n; t++)
            _mm512_mask_storeu_ps(out + t * stride + row + 16 * i, batch_rows(panel, row, i),
                                  _mm512_mul_ps(stack[0][t][i], _mm512_set1_ps(tokens->scales[t])));
}

/** cpu_batch_kernels.pack */
void batch_pack_avx512(const int16_t *q, int64_t n_blocks, int digits, uint32_t t, void *out);

/** cpu_batch_kernels.floats */
void batch_floats_avx512(const struct cpu_panel *panel, const struct cpu_token_tile *tokens,
                         float *out, int64_t stride);

#endif
