/*
 * Products of int8 and LUT4 weights with integer activations, for NEON with dot products.
 *
 * A micro-block is four registers of 4 rows x 4 signed bytes, which sdot multiplies with the digits of
 * the same 4 activations in every lane: each lane collects a row.
 */
#include "backend/cpu/neon.h"

/* A lane grows by at most 4 * 128 * 128 per micro-block; longer rows are summed in 64 bits. */
#define PIECE_MICROS 8192

/* Tiles of a pass: each has 8 registers of sums. */
#define TEAM 2

/* Where a tile's next codes are; LUT4 has one position for each nibble. */
struct cursor {
    const uint64_t *masks; /* NULL: dense */
    const uint8_t *next[2];
};

/* One micro-block, or its sums of one digit: 4 rows in each. */
struct rows {
    int32x4_t v[4];
};

struct sums {
    struct rows high;
    struct rows low;
};

/* 16 packed codes as signed bytes. */
ALWAYS_INLINE uint8x16_t decode(uint8x16_t v, enum cpu_kind kind, bool odd, uint8x16_t table) {
    if (kind == CPU_INT8) return veorq_u8(v, vdupq_n_u8(0x80));
    return vqtbl1q_u8(table, odd ? vshrq_n_u8(v, 4) : vandq_u8(v, vdupq_n_u8(15)));
}

/* The 8 bytes' numbers of set bits. */
ALWAYS_INLINE uint64_t count_bytes(uint64_t mask) {
    return vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(vcreate_u8(mask))), 0);
}

/* The codes of micro-block i as signed bytes. */
ALWAYS_INLINE struct rows next_codes(struct cursor *c, enum cpu_kind kind, bool dense, bool odd,
                                     int64_t i, uint8x16_t table) {
    const uint8_t **next = &c->next[kind == CPU_LUT4 && odd], *p = *next;
    struct rows w;
    if (dense) {
        for (int k = 0; k < 4; k++)
            w.v[k] = vreinterpretq_s32_u8(decode(vld1q_u8(p + 16 * k), kind, odd, table));
        *next = p + 64;
        return w;
    }
    uint64_t mask = c->masks[i], counts = count_bytes(mask);
    uint64_t sums = counts * 0x0101010101010101; /* byte k: entries of bytes 0 to k */
    for (int k = 0; k < 4; k++) {
        const uint8_t *from = k ? p + (sums >> (16 * k - 8) & 255) : p;
        uint8x16_t shuffle = vcombine_u8(vld1_u8(cpu_expand_table[mask >> 16 * k & 255]),
                                         vld1_u8(cpu_expand_table[mask >> (16 * k + 8) & 255]));
        shuffle = vaddq_u8(shuffle, vld1q_u8(cpu_expand_second[counts >> 16 * k & 255]));
        w.v[k] =
            vreinterpretq_s32_u8(vqtbl1q_u8(decode(vld1q_u8(from), kind, odd, table), shuffle));
    }
    *next = p + (sums >> 56);
    return w;
}

ALWAYS_INLINE void add_micro(struct rows *acc, struct rows w, const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    int8x16_t v = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int k = 0; k < 4; k++) acc->v[k] = vdotq_s32(acc->v[k], vreinterpretq_s8_s32(w.v[k]), v);
}

/* Sums of micro-blocks [begin, end), an even number, of the tiles at the cursors. */
ALWAYS_INLINE void add_micros(struct cursor *c, int tiles, enum cpu_kind kind, bool dense,
                              int64_t begin, int64_t end, uint8x16_t table,
                              const struct cpu_act *act, struct sums sums[]) {
    struct sums acc[TEAM];
    for (int k = 0; k < tiles; k++)
        for (int j = 0; j < 4; j++) acc[k].high.v[j] = acc[k].low.v[j] = vdupq_n_s32(0);
    for (int64_t i = begin; i < end; i += 2) {
        for (int k = 0; k < tiles; k++) {
            prefetch_line(c[k].next[0]);
            if (dense && kind == CPU_INT8) prefetch_line(c[k].next[0] + 64);
            if (!dense) prefetch_line(c[k].masks + i);
        }
        for (int j = 0; j < 2; j++) {
            for (int k = 0; k < tiles; k++) {
                struct rows w = next_codes(&c[k], kind, dense, j, i + j, table);
                add_micro(&acc[k].high, w, act->high + 4 * (i + j));
                add_micro(&acc[k].low, w, act->low + 4 * (i + j));
            }
        }
    }
    for (int k = 0; k < tiles; k++) sums[k] = acc[k];
}

/* One scale per row. */
ALWAYS_INLINE void products_of_tiles(const struct cpu_matrix *m, struct cursor *c, int64_t tile,
                                     int tiles, enum cpu_kind kind, bool dense, uint8x16_t table,
                                     const struct cpu_act *act, float result[][TILE_ROWS]) {
    const int64_t micros = cpu_stream_micros(m);
    int64_t wide[TEAM][TILE_ROWS] = {{0}};
    for (int64_t begin = 0; begin < micros; begin += PIECE_MICROS) {
        int64_t end = begin + PIECE_MICROS < micros ? begin + PIECE_MICROS : micros;
        struct sums sums[TEAM];
        add_micros(c, tiles, kind, dense, begin, end, table, act, sums);
        for (int k = 0; k < tiles; k++) {
            int32_t high[TILE_ROWS], low[TILE_ROWS];
            memcpy(high, &sums[k].high, sizeof high);
            memcpy(low, &sums[k].low, sizeof low);
            for (int r = 0; r < TILE_ROWS; r++) wide[k][r] += 256 * (int64_t)high[r] + low[r];
        }
    }
    for (int k = 0; k < tiles; k++) {
        const float *scales = cpu_tile_scales(m, tile + k);
        for (int r = 0; r < TILE_ROWS; r++)
            result[k][r] = (float)wide[k][r] * (scales[r] * act->scale);
    }
}

/* A scale per group of columns: its sums fit 32 bits, 256 columns * 127 * ACT_MAX < 2^31. */
ALWAYS_INLINE void grouped_products_of_tiles(const struct cpu_matrix *m, struct cursor *c,
                                             int64_t tile, int tiles, enum cpu_kind kind,
                                             bool dense, uint8x16_t table,
                                             const struct cpu_act *act, float result[][TILE_ROWS]) {
    const int64_t micros = cpu_stream_micros(m), group_micros = m->group / 4;
    const uint16_t *scales[TEAM];
    float32x4_t lanes[TEAM][16][4];
    for (int k = 0; k < tiles; k++) {
        scales[k] = cpu_tile_group_scales(m, tile + k);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 4; j++) lanes[k][i][j] = vdupq_n_f32(0);
    }
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t begin = g * group_micros;
        int64_t end = begin + group_micros < micros ? begin + group_micros : micros;
        struct sums sums[TEAM];
        add_micros(c, tiles, kind, dense, begin, end, table, act, sums);
        for (int k = 0; k < tiles; k++)
            for (int j = 0; j < 4; j++) {
                int32x4_t sum = vaddq_s32(vshlq_n_s32(sums[k].high.v[j], 8), sums[k].low.v[j]);
                float32x4_t scale = widen_bf16(vld1_u16(scales[k] + g * TILE_ROWS + 4 * j));
                lanes[k][g % 16][j] =
                    vaddq_f32(lanes[k][g % 16][j], vmulq_f32(vcvtq_f32_s32(sum), scale));
            }
    }
    for (int k = 0; k < tiles; k++)
        for (int j = 0; j < 4; j++) {
            for (int half = 8; half > 0; half /= 2)
                for (int i = 0; i < half; i++)
                    lanes[k][i][j] = vaddq_f32(lanes[k][i][j], lanes[k][i + half][j]);
            vst1q_f32(result[k] + 4 * j, vmulq_n_f32(lanes[k][0][j], act->scale));
        }
}

ALWAYS_INLINE struct cursor tile_cursor(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *values = cpu_stream_values(m, tile);
    return (struct cursor){cpu_stream_masks(m, tile), {values, values}};
}

ALWAYS_INLINE uint8x16_t byte_table(const struct cpu_matrix *m) {
    return vreinterpretq_u8_s8(vld1q_s8(m->table4));
}

/* Tiles from `tile` on. */
ALWAYS_INLINE void pass(const struct cpu_matrix *m, enum cpu_kind kind, bool dense, int64_t tile,
                        int tiles, const struct cpu_act *act, uint8x16_t table, float *out) {
    struct cursor c[TEAM];
    float result[TEAM][TILE_ROWS];
    for (int k = 0; k < tiles; k++) c[k] = tile_cursor(m, tile + k);
    if (m->group)
        grouped_products_of_tiles(m, c, tile, tiles, kind, dense, table, act, result);
    else
        products_of_tiles(m, c, tile, tiles, kind, dense, table, act, result);
    int64_t rows = m->rows - tile * TILE_ROWS, most = (int64_t)tiles * TILE_ROWS;
    memcpy(out, result, (size_t)(rows < most ? rows : most) * sizeof *out);
}

ALWAYS_INLINE void product(const struct cpu_matrix *m, enum cpu_kind kind, bool dense,
                           int64_t tile0, int64_t tile1, const struct cpu_act *act, uint32_t n,
                           float *out, int64_t stride) {
    const uint8x16_t table = byte_table(m);
    for (uint32_t t = 0; t < n; t++) {
        float *dst = out + t * stride;
        int64_t tile = tile0;
        for (; tile + TEAM <= tile1; tile += TEAM, dst += TEAM * TILE_ROWS)
            pass(m, kind, dense, tile, TEAM, act + t, table, dst);
        for (; tile < tile1; tile++, dst += TILE_ROWS)
            pass(m, kind, dense, tile, 1, act + t, table, dst);
    }
}

#define PRODUCT(NAME, KIND, DENSE)                                                                 \
    CPU_PRODUCT(NAME) {                                                                            \
        product(m, KIND, DENSE, tile0, tile1, act, n, out, stride);                                \
    }
PRODUCT(neon_int8_bitmap, CPU_INT8, false)
PRODUCT(neon_int8_dense, CPU_INT8, true)
PRODUCT(neon_lut4_bitmap, CPU_LUT4, false)
PRODUCT(neon_lut4_dense, CPU_LUT4, true)

void neon_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                 int8_t *out) {
    if (m->kind == CPU_SELL) {
        cpu_sell_expand(m, tile, block0, block1, out);
        return;
    }
    const uint8x16_t table = byte_table(m);
    struct cursor c = tile_cursor(m, tile);
    const bool dense = !c.masks;
    for (int64_t i = 0; i < block0 * BLOCK_MICROS; i++)
        c.next[m->kind == CPU_LUT4 && i % 2] += dense ? 64 : __builtin_popcountll(c.masks[i]);
    for (int64_t i = block0 * BLOCK_MICROS; i < block1 * BLOCK_MICROS; i++, out += 64) {
        struct rows w = next_codes(&c, m->kind, dense, i % 2, i, table);
        for (int k = 0; k < 4; k++) vst1q_s8(out + 16 * k, vreinterpretq_s8_s32(w.v[k]));
    }
}
