/*
 * Products of int8 and LUT4 weights with integer activations, for AVX-512.
 *
 * A micro-block is one register: its packed codes are expanded under its mask to 64 unsigned bytes
 * (code + 128; 128 where nothing is stored), and vpdpbusd multiplies them with the digits of the
 * same 4 activations in every lane. Lane r collects row r, so there are no sums across lanes; what
 * the 128 contributed is subtracted at the end (cpu_act.bias). Expanding is what takes the time:
 * two operations on port 5, and one for moving the mask; the rest fits beside it, but for LUT4's table,
 * which is one more. Where the table is evenly spaced, shifting does without it (enum coding).
 */
#include "backend/cpu/avx512.h"

#include <string.h>

/*
 * A lane grows by at most 4 * 255 * 128 per micro-block. Rows with more than this many are summed
 * in 64 bits piece by piece.
 */
#define PIECE_MICROS 8192

/* Micro-blocks of a tile between two prefetches. */
#define STEP 4

/*
 * A pass takes 4 tiles for one token, one tile for 4 tokens (an expansion serves them all), or one
 * tile for one token: what is left over. CHAINS sums each of high and low digits keep the
 * additions to one from waiting for each other, which take 5 cycles.
 */
#define CHAINS 4

/*
 * How a stream's codes become unsigned bytes: as they are (INT8), by a table (LUT4), or, where its entries
 * are evenly spaced, by shifting, which leaves port 5 alone. FOURS: SELL.
 */
enum coding { BYTES, TABLE4, LINEAR4, FOURS };

/* What becoming bytes needs. A code stands for factor * (byte - zero). */
struct decoder {
    __m512i even; /* TABLE4: the table. LINEAR4: bit matrices that select and shift a nibble */
    __m512i odd;
    __m512i gap; /* zero: the byte of a position where nothing is stored */
    int32_t zero;
    int32_t factor;
};

/* Where a tile's next codes are; LUT4 has one position for each nibble. */
struct cursor {
    const uint64_t *masks; /* NULL: dense */
    const uint8_t *next[2];
    int64_t col; /* SELL: first column of the last step's block */
};

/*
 * `gap` and `v` expanded over it. Only into a register that has just been written: the
 * instruction waits for the old value of its destination.
 */
ALWAYS_INLINE __m512i expand_bytes(uint64_t mask, __m512i v, __m512i gap) {
    __asm__("vpexpandb %1, %0%{%2%}" : "+v"(gap) : "v"(v), "Yk"((__mmask64)mask));
    return gap;
}

/* The same with 32-bit elements, and in v's own register over zeros. */
ALWAYS_INLINE __m512i expand_fours(uint32_t mask, __m512i v, __m512i c128) {
    __asm__("vpexpandd %1, %0%{%2%}" : "+v"(c128) : "v"(v), "Yk"((__mmask16)mask));
    return c128;
}

ALWAYS_INLINE __m512i expand_fours_zero(uint32_t mask, __m512i v) {
    __asm__("vpexpandd %0, %0%{%1%}%{z%}" : "+v"(v) : "Yk"((__mmask16)mask));
    return v;
}

/* acc += products of unsigned and signed bytes. As assembly, because gcc 12 copies accumulators around
 * the intrinsic. */
ALWAYS_INLINE __m512i add_products(__m512i acc, __m512i w, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}

/* The same 4 bytes in every lane. */
ALWAYS_INLINE __m512i broadcast4(const int8_t *x) {
    int32_t v;
    memcpy(&v, x, sizeof v);
    return _mm512_set1_epi32(v);
}

/* The codes of micro-block i as unsigned bytes. */
ALWAYS_INLINE __m512i next_codes(struct cursor *c, enum coding coding, bool dense, bool odd,
                                 int64_t i, const struct decoder *d) {
    const uint8_t **p = &c->next[coding != BYTES && odd];
    uint64_t mask = dense ? 0 : c->masks[i];
    __m512i v = _mm512_loadu_si512(*p);
    *p += dense ? 64 : _mm_popcnt_u64(mask);
    if (coding == TABLE4) v = _mm512_permutexvar_epi8(odd ? _mm512_srli_epi16(v, 4) : v, d->even);
    if (coding == LINEAR4) v = _mm512_gf2p8affine_epi64_epi8(v, odd ? d->odd : d->even, 0);
    return dense ? v : expand_bytes(mask, v, d->gap);
}

/* Requests what STEP micro-blocks from i on will take later. */
ALWAYS_INLINE void prefetch_step(const struct cursor *c, enum coding coding, bool dense,
                                 int64_t i) {
    if (!dense) prefetch_lines(c->masks + i, 1);
    prefetch_lines(c->next[0], !dense || coding != BYTES ? 2 : STEP);
}

/*
 * Adds micro-blocks [begin, end) of the tiles at the cursors up to sums of each digit: high[k] and
 * low[k] are of tile k or token k, whichever there are several of. The latter start from low[k].
 */
ALWAYS_INLINE void add_micros(struct cursor *c, int tiles, enum coding coding, bool dense,
                              int64_t begin, int64_t end, const struct decoder *d,
                              const struct cpu_act *act, int tokens, __m512i high[],
                              __m512i low[]) {
    const bool single = tiles == 1 && tokens == 1;
    __m512i acc[2][CHAINS];
#pragma GCC unroll 4
    for (int k = 0; k < CHAINS; k++) {
        acc[0][k] = _mm512_setzero_si512();
        acc[1][k] = single && k > 0 ? _mm512_setzero_si512() : low[k];
    }
    for (int64_t i = begin; i < end; i += STEP) {
#pragma GCC unroll 4
        for (int k = 0; k < tiles; k++) prefetch_step(&c[k], coding, dense, i);
#pragma GCC unroll 4
        for (int j = 0; j < STEP; j++) {
            const int64_t col = 4 * (i + j);
#pragma GCC unroll 4
            for (int k = 0; k < tiles; k++) {
                __m512i w = next_codes(&c[k], coding, dense, j % 2, i + j, d);
#pragma GCC unroll 4
                for (int t = 0; t < tokens; t++) {
                    int chain = single ? j % CHAINS : tiles > 1 ? k : t;
                    acc[0][chain] = add_products(acc[0][chain], w, broadcast4(act[t].high + col));
                    acc[1][chain] = add_products(acc[1][chain], w, broadcast4(act[t].low + col));
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int k = 1; single && k < CHAINS; k++) {
        acc[0][0] = _mm512_add_epi32(acc[0][0], acc[0][k]);
        acc[1][0] = _mm512_add_epi32(acc[1][0], acc[1][k]);
    }
    for (int k = 0; k < (single ? 1 : CHAINS); k++) {
        high[k] = acc[0][k];
        low[k] = acc[1][k];
    }
}

/*
 * The same with `steps` steps of SELL. Columns are looked up in the block's activations. Here the 128
 * count only where there are entries: that is summed up beside the products.
 */
ALWAYS_INLINE void add_steps(struct cursor *c, int tiles, uint32_t steps, const struct cpu_act *act,
                             int tokens, __m512i high[], __m512i low[]) {
    const __m512i c128 = _mm512_set1_epi8((char)0x80);
    const int n = tiles * tokens;
    __m512i acc[4][CHAINS];
#pragma GCC unroll 4
    for (int k = 0; k < n; k++)
        acc[0][k] = acc[1][k] = acc[2][k] = acc[3][k] = _mm512_setzero_si512();
    for (uint32_t i = 0; i < steps; i++) {
#pragma GCC unroll 4
        for (int k = 0; k < tiles; k++) {
            const uint8_t *p = c[k].next[0];
            uint32_t head;
            memcpy(&head, p, sizeof head);
            const uint32_t rows = head & 0xffff;
            const int64_t bytes = 4 * (int64_t)_mm_popcnt_u32(rows);
            prefetch_lines(p, 2);
            __m512i cols = expand_fours_zero(rows, _mm512_loadu_si512(p + 4));
            __m512i w = expand_fours(rows, _mm512_loadu_si512(p + 4 + bytes), c128);
            c[k].next[0] = p + 4 + 2 * bytes;
            c[k].col += (int64_t)(head >> 16) * BLOCK_COLS;
#pragma GCC unroll 4
            for (int t = 0; t < tokens; t++) {
                int at = tiles > 1 ? k : t;
                __m512i h =
                    _mm512_permutexvar_epi8(cols, _mm512_loadu_si512(act[t].high + c[k].col));
                __m512i l =
                    _mm512_permutexvar_epi8(cols, _mm512_loadu_si512(act[t].low + c[k].col));
                acc[0][at] = add_products(acc[0][at], w, h);
                acc[1][at] = add_products(acc[1][at], w, l);
                acc[2][at] = add_products(acc[2][at], c128, h);
                acc[3][at] = add_products(acc[3][at], c128, l);
            }
        }
    }
#pragma GCC unroll 4
    for (int k = 0; k < n; k++) {
        high[k] = _mm512_sub_epi32(acc[0][k], acc[2][k]);
        low[k] = _mm512_sub_epi32(acc[1][k], acc[3][k]);
    }
}

/* 256 * high + low in 64 bits: rows 0 to 7, or 8 to 15. */
ALWAYS_INLINE __m512i wide_sum(__m512i high, __m512i low, int half) {
    __m512i h = _mm512_cvtepi32_epi64(half ? _mm512_extracti64x4_epi64(high, 1)
                                           : _mm512_castsi512_si256(high));
    __m512i l = _mm512_cvtepi32_epi64(half ? _mm512_extracti64x4_epi64(low, 1)
                                           : _mm512_castsi512_si256(low));
    return _mm512_add_epi64(_mm512_slli_epi64(h, 8), l);
}

/* One scale per row. result[k] is of tile k or token k. */
ALWAYS_INLINE void products_of_tiles(const struct cpu_matrix *m, struct cursor *c, int64_t tile,
                                     int tiles, enum coding coding, bool dense,
                                     const struct decoder *d, const struct cpu_act *act,
                                     const int64_t *bias, int tokens, __m512 result[]) {
    const int64_t micros = cpu_stream_micros(m);
    const int n = tiles * tokens;
    __m512i sums[CHAINS][2];
    for (int k = 0; k < n; k++)
        sums[k][0] = sums[k][1] =
            _mm512_set1_epi64(coding == FOURS ? 0 : -bias[tokens > 1 ? k : 0]);
    for (int64_t begin = 0; begin < micros; begin += PIECE_MICROS) {
        int64_t end = begin + PIECE_MICROS < micros ? begin + PIECE_MICROS : micros;
        __m512i high[CHAINS], low[CHAINS];
        for (int k = 0; k < n; k++) low[k] = _mm512_setzero_si512();
        if (coding == FOURS) /* one piece: SELL_MAX_COLS */
            add_steps(c, tiles, cpu_tile_steps(m, tile)[0], act, tokens, high, low);
        else
            add_micros(c, tiles, coding, dense, begin, end, d, act, tokens, high, low);
        for (int k = 0; k < n; k++)
            for (int half = 0; half < 2; half++)
                sums[k][half] = _mm512_add_epi64(sums[k][half], wide_sum(high[k], low[k], half));
    }
    for (int k = 0; coding == LINEAR4 && k < n; k++)
        for (int half = 0; half < 2; half++)
            sums[k][half] = _mm512_mullo_epi64(sums[k][half], _mm512_set1_epi64(d->factor));
    for (int k = 0; k < n; k++) {
        __m512 sum = _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtepi64_ps(sums[k][0])),
                                        _mm512_cvtepi64_ps(sums[k][1]), 1);
        __m512 scales = _mm512_loadu_ps(cpu_tile_scales(m, tiles > 1 ? tile + k : tile));
        __m512 scale = _mm512_set1_ps(act[tokens > 1 ? k : 0].scale);
        result[k] = _mm512_mul_ps(sum, _mm512_mul_ps(scales, scale));
    }
}

/* Minus what `zero` in every position contributes between two columns of a group. */
ALWAYS_INLINE __m512i minus_bias(const struct cpu_act *act, int64_t begin, int64_t end,
                                 int32_t zero) {
    int32_t sum = 0; /* of 128 q: below 2^31 */
    for (int64_t i = begin / BIAS_COLS; i < end / BIAS_COLS; i++) sum += act->bias[i];
    return _mm512_set1_epi32(-(sum / 128 * zero));
}

/* A scale per group of columns: its sums fit 32 bits, 256 columns * 127 * ACT_MAX < 2^31. */
ALWAYS_INLINE void grouped_products_of_tiles(const struct cpu_matrix *m, struct cursor *c,
                                             int64_t tile, int tiles, enum coding coding,
                                             bool dense, const struct decoder *d,
                                             const struct cpu_act *act, int tokens,
                                             __m512 result[]) {
    const int64_t micros = cpu_stream_micros(m), group_micros = m->group / 4;
    const int n = tiles * tokens;
    const uint16_t *scales[CHAINS];
    __m512 lanes[16][CHAINS];
    for (int k = 0; k < tiles; k++) scales[k] = cpu_tile_group_scales(m, tile + k);
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < n; k++) lanes[i][k] = _mm512_setzero_ps();
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t begin = g * group_micros;
        int64_t end = begin + group_micros < micros ? begin + group_micros : micros;
        __m512i high[CHAINS], low[CHAINS];
        low[0] = minus_bias(act, 4 * begin, 4 * end, d->zero);
#pragma GCC unroll 4
        for (int k = 1; k < n; k++)
            low[k] = tokens > 1 ? minus_bias(&act[k], 4 * begin, 4 * end, d->zero) : low[0];
#pragma GCC unroll 4
        for (int k = 0; k < tiles; k++) prefetch_lines(scales[k] + g * TILE_ROWS, 1);
        if (coding == FOURS)
            add_steps(c, tiles, cpu_tile_steps(m, tile)[g], act, tokens, high, low);
        else
            add_micros(c, tiles, coding, dense, begin, end, d, act, tokens, high, low);
#pragma GCC unroll 4
        for (int k = 0; k < n; k++) {
            __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[k], 8), low[k]);
            if (coding == LINEAR4 && d->factor > 1)
                sum = _mm512_mullo_epi32(sum, _mm512_set1_epi32(d->factor));
            __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(sum),
                                     load_group_scales(scales[tiles > 1 ? k : 0], g));
            lanes[g % 16][k] = _mm512_add_ps(lanes[g % 16][k], v);
        }
    }
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            for (int k = 0; k < n; k++)
                lanes[i][k] = _mm512_add_ps(lanes[i][k], lanes[i + half][k]);
    for (int k = 0; k < n; k++)
        result[k] = _mm512_mul_ps(lanes[0][k], _mm512_set1_ps(act[tokens > 1 ? k : 0].scale));
}

/* One bit matrix for 8 bytes: the nibble from bit `from` on, shifted to the left. */
ALWAYS_INLINE __m512i nibble_matrix(int from, int shift) {
    uint64_t rows = 0; /* byte 7 - i says which bits are added up to bit i */
    for (int bit = 0; bit < 4; bit++) rows |= (uint64_t)1 << (8 * (7 - bit - shift) + from + bit);
    return _mm512_set1_epi64((int64_t)rows);
}

ALWAYS_INLINE struct decoder decoder_of(const struct cpu_matrix *m, enum coding coding) {
    const __m512i c128 = _mm512_set1_epi8((char)0x80);
    struct decoder d = {.gap = c128, .zero = 128, .factor = 1};
    if (coding == TABLE4) d.even = _mm512_xor_si512(_mm512_load_si512(m->table4), c128);
    if (coding == LINEAR4) {
        d.even = nibble_matrix(0, m->linear4.shift);
        d.odd = nibble_matrix(4, m->linear4.shift);
        d.gap = _mm512_set1_epi8((char)m->linear4.zero);
        d.zero = m->linear4.zero;
        d.factor = m->linear4.factor;
    }
    return d;
}

ALWAYS_INLINE struct cursor tile_cursor(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *values = cpu_stream_values(m, tile);
    return (struct cursor){cpu_stream_masks(m, tile), {values, values}, 0};
}

static int64_t sum_of_bias(const struct cpu_act *act, int64_t n_blocks, int32_t zero) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n_blocks * (BLOCK_COLS / BIAS_COLS); i++) sum += act->bias[i];
    return sum / 128 * zero;
}

/* One pass: tiles from `tile` on, and tokens. */
ALWAYS_INLINE void pass(const struct cpu_matrix *m, enum coding coding, bool dense, int64_t tile,
                        int tiles, const struct cpu_act *act, const int64_t *bias, int tokens,
                        const struct decoder *d, float *out, int64_t stride) {
    struct cursor c[CHAINS];
    __m512 result[CHAINS];
    for (int k = 0; k < tiles; k++) c[k] = tile_cursor(m, tile + k);
    if (m->group)
        grouped_products_of_tiles(m, c, tile, tiles, coding, dense, d, act, tokens, result);
    else
        products_of_tiles(m, c, tile, tiles, coding, dense, d, act, bias, tokens, result);
    for (int k = 0; k < tiles * tokens; k++) {
        int64_t at = tiles > 1 ? k * TILE_ROWS : k * stride;
        _mm512_mask_storeu_ps(out + at, tail(m->rows, (tile + (tiles > 1 ? k : 0)) * TILE_ROWS),
                              result[k]);
    }
}

ALWAYS_INLINE void product(const struct cpu_matrix *m, enum coding coding, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    const struct decoder d = decoder_of(m, coding);
    uint32_t t = 0;
    for (; t + 4 <= n; t += 4) {
        int64_t bias[4];
        for (int i = 0; i < 4; i++)
            bias[i] = sum_of_bias(&act[t + (uint32_t)i], m->n_blocks, d.zero);
        for (int64_t tile = tile0; tile < tile1; tile++)
            pass(m, coding, dense, tile, 1, act + t, bias, 4, &d,
                 out + t * stride + (tile - tile0) * TILE_ROWS, stride);
    }
    for (; t < n; t++) {
        int64_t bias = sum_of_bias(&act[t], m->n_blocks, d.zero);
        float *dst = out + t * stride;
        int64_t tile = tile0, tiles;
        for (; tile < tile1; tile += tiles, dst += tiles * TILE_ROWS) {
            /* Four that are on different lines of memory, and go on where the last four ended. */
            tiles = tile % STREAM_TEAM == 0 && tile + STREAM_TEAM <= tile1 ? STREAM_TEAM : 1;
            if (tiles == STREAM_TEAM)
                pass(m, coding, dense, tile, STREAM_TEAM, act + t, &bias, 1, &d, dst, stride);
            else
                pass(m, coding, dense, tile, 1, act + t, &bias, 1, &d, dst, stride);
        }
    }
}

#define PRODUCT(NAME, CODING, DENSE)                                                               \
    AVX512_PRODUCT(NAME) {                                                                         \
        product(m, CODING, DENSE, tile0, tile1, act, n, out, stride);                              \
    }
PRODUCT(avx512_int8_bitmap, BYTES, false)
PRODUCT(avx512_int8_dense, BYTES, true)
PRODUCT(avx512_lut4_dense, TABLE4, true)
PRODUCT(avx512_sell, FOURS, false)
static PRODUCT(table4_bitmap, TABLE4, false) static PRODUCT(linear4_bitmap, LINEAR4, false)

    AVX512_PRODUCT(avx512_lut4_bitmap) {
    (m->linear4.factor ? linear4_bitmap : table4_bitmap)(m, tile0, tile1, act, n, out, stride);
}

void avx512_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out) {
    if (m->kind == CPU_SELL) {
        cpu_sell_expand(m, tile, block0, block1, out);
        return;
    }
    const enum coding coding = m->kind == CPU_LUT4 ? TABLE4 : BYTES;
    const __m512i c128 = _mm512_set1_epi8((char)0x80);
    const struct decoder d = decoder_of(m, coding);
    struct cursor c = tile_cursor(m, tile);
    const bool dense = !c.masks;
    for (int64_t i = 0; i < block0 * BLOCK_MICROS; i++)
        c.next[coding == TABLE4 && i % 2] += dense ? 64 : _mm_popcnt_u64(c.masks[i]);
    for (int64_t i = block0 * BLOCK_MICROS; i < block1 * BLOCK_MICROS; i += 2) {
        for (int j = 0; j < 2; j++, out += 64) {
            __m512i w = coding == TABLE4 ? next_codes(&c, TABLE4, dense, j, i + j, &d)
                                         : next_codes(&c, BYTES, dense, j, i + j, &d);
            _mm512_storeu_si512(out, _mm512_xor_si512(w, c128)); /* signed again */
        }
    }
}
