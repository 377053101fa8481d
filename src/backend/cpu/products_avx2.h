/**
 * Products of int8 and LUT4 weights with integer activations in 256-bit registers. Compiled twice, by
 * products_avx2.c and products_avxvnni.c, which define first
 *   NAME(x)               the name of kernel x
 *   ADD_PAIRS(acc, w, x)  acc plus the sums of w's and x's products of 16-bit pairs
 *
 * A micro-block is two registers of 8 rows x 4 unsigned bytes (code + 128). Its columns 0 and 2 are the
 * low bytes of 16-bit words and columns 1 and 3 the high bytes, so that a mask and a shift are enough to
 * widen them, and the products of pairs add up to one sum for each row. What the 128 contributed is
 * subtracted at the end (cpu_act.bias).
 */
#include "backend/cpu/avx2.h"

/*
 * Micro-blocks whose sums fit 32 bits: a lane grows by at most 4 * 255 * ACT_MAX in each, and no
 * group is longer.
 */
#define PIECE_MICROS 64

/* Micro-blocks of a tile between two prefetches. */
#define STEP 4

/* A pass takes 4 tiles, or one with 4 chains of additions, so that none waits for the other. */
#define CHAINS 4

/* Where a tile's next codes are; LUT4 has one position for each nibble. */
struct cursor {
    const uint64_t *masks; /* NULL: dense */
    const uint8_t *next[2];
};

/* One micro-block, or its sums: rows 0 to 7 and 8 to 15. */
struct rows {
    __m256i half[2];
};

/* The table's entries for 32 packed codes. */
ALWAYS_INLINE __m256i look_up(__m256i v, bool odd, __m256i table) {
    if (odd) v = _mm256_srli_epi16(v, 4);
    return _mm256_shuffle_epi8(table, _mm256_and_si256(v, _mm256_set1_epi8(15)));
}

/* Which of 16 packed bytes each of 16 positions takes. */
ALWAYS_INLINE __m128i shuffle_of(uint32_t mask) {
    uint32_t first = mask & 255, second = mask >> 8 & 255;
    __m128d rows = _mm_load_sd((const double *)(const void *)cpu_expand_table[first]);
    rows = _mm_loadh_pd(rows, (const double *)(const void *)cpu_expand_table[second]);
    return _mm_add_epi8(_mm_castpd_si128(rows),
                        load16(cpu_expand_second[(uint32_t)_mm_popcnt_u32(first)]));
}

/* 32 positions of a bitmap as unsigned bytes. */
ALWAYS_INLINE __m256i expand32(const uint8_t *p, uint32_t mask, enum cpu_kind kind, bool odd,
                               __m256i table) {
    const __m256i c128 = _mm256_set1_epi8((char)0x80);
    __m256i v = _mm256_inserti128_si256(_mm256_castsi128_si256(load16(p)),
                                        load16(p + _mm_popcnt_u32(mask & 0xffff)), 1);
    __m256i shuffle = _mm256_inserti128_si256(_mm256_castsi128_si256(shuffle_of(mask)),
                                              shuffle_of(mask >> 16), 1);
    /* Signed for a while, because the shuffle's gaps are 0. */
    v = kind == CPU_LUT4 ? look_up(v, odd, table) : _mm256_xor_si256(v, c128);
    return _mm256_xor_si256(_mm256_shuffle_epi8(v, shuffle), c128);
}

/* The codes of micro-block i as unsigned bytes. `table`: signed if there are masks. */
ALWAYS_INLINE struct rows next_codes(struct cursor *c, enum cpu_kind kind, bool dense, bool odd,
                                     int64_t i, __m256i table) {
    const uint8_t **next = &c->next[kind == CPU_LUT4 && odd], *p = *next;
    struct rows w;
    if (dense) {
        w.half[0] = load32(p);
        w.half[1] = load32(p + 32);
        *next = p + 64;
        if (kind == CPU_LUT4)
            for (int h = 0; h < 2; h++) w.half[h] = look_up(w.half[h], odd, table);
        return w;
    }
    uint64_t mask = c->masks[i];
    w.half[0] = expand32(p, (uint32_t)mask, kind, odd, table);
    w.half[1] =
        expand32(p + _mm_popcnt_u32((uint32_t)mask), (uint32_t)(mask >> 32), kind, odd, table);
    *next = p + _mm_popcnt_u64(mask);
    return w;
}

/* Requests what STEP micro-blocks from i on will take later. */
ALWAYS_INLINE void prefetch_step(const struct cursor *c, enum cpu_kind kind, bool dense,
                                 int64_t i) {
    if (!dense) prefetch_lines(c->masks + i, 1);
    prefetch_lines(c->next[0], !dense || kind == CPU_LUT4 ? 2 : STEP);
}

/* Adds a micro-block's products with q[4]; x: its columns 0 and 2, and 1 and 3, in every lane. */
ALWAYS_INLINE void add_micro(struct rows *acc, struct rows w, const __m256i x[2]) {
    for (int h = 0; h < 2; h++) {
        __m256i even = _mm256_and_si256(w.half[h], _mm256_set1_epi16(255));
        __m256i odd = _mm256_srli_epi16(w.half[h], 8);
        acc->half[h] = ADD_PAIRS(acc->half[h], even, x[0]);
        acc->half[h] = ADD_PAIRS(acc->half[h], odd, x[1]);
    }
}

/* Sums of micro-blocks [begin, end) of the tiles at the cursors. */
ALWAYS_INLINE void add_micros(struct cursor *c, int tiles, enum cpu_kind kind, bool dense,
                              int64_t begin, int64_t end, __m256i table, const struct cpu_act *act,
                              struct rows sums[]) {
    const __m256i pick[2] = {_mm256_set1_epi32(0x05040100), _mm256_set1_epi32(0x07060302)};
    struct rows acc[CHAINS];
    for (int k = 0; k < CHAINS; k++) acc[k].half[0] = acc[k].half[1] = _mm256_setzero_si256();
    for (int64_t i = begin; i < end; i += STEP) {
        for (int k = 0; k < tiles; k++) prefetch_step(&c[k], kind, dense, i);
#pragma GCC unroll 4
        for (int j = 0; j < STEP; j++) {
            int64_t four;
            memcpy(&four, act->q + 4 * (i + j), sizeof four);
            __m256i q = _mm256_set1_epi64x(four);
            const __m256i x[2] = {_mm256_shuffle_epi8(q, pick[0]), _mm256_shuffle_epi8(q, pick[1])};
#pragma GCC unroll 4
            for (int k = 0; k < tiles; k++)
                add_micro(&acc[tiles > 1 ? k : j],
                          next_codes(&c[k], kind, dense, j % 2, i + j, table), x);
        }
    }
    for (int k = 1; tiles == 1 && k < CHAINS; k++)
        for (int h = 0; h < 2; h++)
            acc[0].half[h] = _mm256_add_epi32(acc[0].half[h], acc[k].half[h]);
    for (int k = 0; k < tiles; k++) sums[k] = acc[k];
}

/* One scale per row. */
ALWAYS_INLINE void products_of_tiles(const struct cpu_matrix *m, struct cursor *c, int64_t tile,
                                     int tiles, enum cpu_kind kind, bool dense, __m256i table,
                                     const struct cpu_act *act, int64_t bias,
                                     float result[][TILE_ROWS]) {
    const int64_t micros = cpu_stream_micros(m);
    __m256i wide[CHAINS][4];
    for (int k = 0; k < tiles; k++)
        for (int i = 0; i < 4; i++) wide[k][i] = _mm256_set1_epi64x(-bias);
    for (int64_t begin = 0; begin < micros; begin += PIECE_MICROS) {
        int64_t end = begin + PIECE_MICROS < micros ? begin + PIECE_MICROS : micros;
        struct rows sums[CHAINS];
        add_micros(c, tiles, kind, dense, begin, end, table, act, sums);
        for (int k = 0; k < tiles; k++)
            for (int i = 0; i < 4; i++) {
                __m256i half = sums[k].half[i / 2];
                __m128i four =
                    i % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
                wide[k][i] = _mm256_add_epi64(wide[k][i], _mm256_cvtepi32_epi64(four));
            }
    }
    for (int k = 0; k < tiles; k++) {
        const float *scales = cpu_tile_scales(m, tile + k);
        int64_t sums[TILE_ROWS];
        memcpy(sums, wide[k], sizeof sums);
        for (int r = 0; r < TILE_ROWS; r++)
            result[k][r] = (float)sums[r] * (scales[r] * act->scale);
    }
}

/* A scale per group of columns. */
ALWAYS_INLINE void grouped_products_of_tiles(const struct cpu_matrix *m, struct cursor *c,
                                             int64_t tile, int tiles, enum cpu_kind kind,
                                             bool dense, __m256i table, const struct cpu_act *act,
                                             float result[][TILE_ROWS]) {
    const int64_t micros = cpu_stream_micros(m), group_micros = m->group / 4;
    const uint16_t *scales[CHAINS];
    __m256 lanes[CHAINS][16][2];
    for (int k = 0; k < tiles; k++) {
        scales[k] = cpu_tile_group_scales(m, tile + k);
        for (int i = 0; i < 16; i++) lanes[k][i][0] = lanes[k][i][1] = _mm256_setzero_ps();
    }
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t begin = g * group_micros;
        int64_t end = begin + group_micros < micros ? begin + group_micros : micros;
        struct rows sums[CHAINS];
        int32_t bias = 0;
        for (int k = 0; k < tiles; k++) prefetch_lines(scales[k] + g * TILE_ROWS, 1);
        for (int64_t b = 4 * begin; b < 4 * end; b += BIAS_COLS) bias += act->bias[b / BIAS_COLS];
        add_micros(c, tiles, kind, dense, begin, end, table, act, sums);
        for (int k = 0; k < tiles; k++)
            for (int h = 0; h < 2; h++) {
                __m256i sum = _mm256_sub_epi32(sums[k].half[h], _mm256_set1_epi32(bias));
                __m256 scale = widen_bf16(load16(scales[k] + g * TILE_ROWS + 8 * h));
                lanes[k][g % 16][h] = _mm256_add_ps(lanes[k][g % 16][h],
                                                    _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale));
            }
    }
    for (int k = 0; k < tiles; k++)
        for (int h = 0; h < 2; h++) {
            for (int half = 8; half > 0; half /= 2)
                for (int i = 0; i < half; i++)
                    lanes[k][i][h] = _mm256_add_ps(lanes[k][i][h], lanes[k][i + half][h]);
            _mm256_storeu_ps(result[k] + 8 * h,
                             _mm256_mul_ps(lanes[k][0][h], _mm256_set1_ps(act->scale)));
        }
}

/* The bytes that codes stand for, twice; unsigned if nothing will be expanded. */
ALWAYS_INLINE __m256i byte_table(const struct cpu_matrix *m, bool dense) {
    __m256i table = load32(m->table4);
    return dense ? _mm256_xor_si256(table, _mm256_set1_epi8((char)0x80)) : table;
}

ALWAYS_INLINE struct cursor tile_cursor(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *values = cpu_stream_values(m, tile);
    return (struct cursor){cpu_stream_masks(m, tile), {values, values}};
}

static int64_t sum_of_bias(const struct cpu_act *act, int64_t n_blocks) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n_blocks * (BLOCK_COLS / BIAS_COLS); i++) sum += act->bias[i];
    return sum;
}

/* Tiles from `tile` on. */
ALWAYS_INLINE void pass(const struct cpu_matrix *m, enum cpu_kind kind, bool dense, int64_t tile,
                        int tiles, const struct cpu_act *act, int64_t bias, __m256i table,
                        float *out) {
    struct cursor c[CHAINS];
    float result[CHAINS][TILE_ROWS];
    for (int k = 0; k < tiles; k++) c[k] = tile_cursor(m, tile + k);
    if (m->group)
        grouped_products_of_tiles(m, c, tile, tiles, kind, dense, table, act, result);
    else
        products_of_tiles(m, c, tile, tiles, kind, dense, table, act, bias, result);
    int64_t rows = m->rows - tile * TILE_ROWS, most = (int64_t)tiles * TILE_ROWS;
    memcpy(out, result, (size_t)(rows < most ? rows : most) * sizeof *out);
}

ALWAYS_INLINE void product(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    const __m256i table = kind == CPU_LUT4 ? byte_table(m, dense) : _mm256_setzero_si256();
    for (uint32_t t = 0; t < n; t++) {
        int64_t bias = sum_of_bias(&act[t], m->n_blocks);
        float *dst = out + t * stride;
        int64_t tile = tile0, tiles;
        for (; tile < tile1; tile += tiles, dst += tiles * TILE_ROWS) {
            /* Four that are on different lines of memory, and go on where the last four ended. */
            tiles = tile % STREAM_TEAM == 0 && tile + STREAM_TEAM <= tile1 ? STREAM_TEAM : 1;
            if (tiles == STREAM_TEAM)
                pass(m, kind, dense, tile, STREAM_TEAM, act + t, bias, table, dst);
            else
                pass(m, kind, dense, tile, 1, act + t, bias, table, dst);
        }
    }
}

#define PRODUCT(SUFFIX, KIND, DENSE)                                                               \
    CPU_PRODUCT(NAME(SUFFIX)) {                                                                    \
        product(m, KIND, DENSE, tile0, tile1, act, n, out, stride);                                \
    }
PRODUCT(int8_bitmap, CPU_INT8, false)
PRODUCT(int8_dense, CPU_INT8, true)
PRODUCT(lut4_bitmap, CPU_LUT4, false)
PRODUCT(lut4_dense, CPU_LUT4, true)
