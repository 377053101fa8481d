/* The reference kernels, in plain C. They add in the order that cpu.h promises. */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "backend/cpu/sell.h"
#include "base/half.h"

#include <float.h>
#include <math.h>
#include <string.h>

static bool always(void) {
    return true;
}

/* ---- products with integer activations ------------------------------------------------------ */

/* Where a tile's next codes are; LUT4 has one position per nibble. */
struct cursor {
    const uint8_t *next[2];
};

static uint64_t mask_at(const uint64_t *masks, int64_t i) {
    return masks ? masks[i] : ~(uint64_t)0;
}

/* Expands micro-block i to 64 signed bytes. */
static void expand_micro(const struct cpu_matrix *m, struct cursor *s, uint64_t mask, int64_t i,
                         int8_t out[64]) {
    bool high = m->kind == CPU_LUT4 && i % 2;
    const uint8_t *p = s->next[high];
    memset(out, 0, 64);
    for (; mask; mask &= mask - 1) {
        uint8_t code = *p++;
        if (m->kind == CPU_LUT4)
            out[__builtin_ctzll(mask)] = m->table4[high ? code >> 4 : code & 15];
        else
            out[__builtin_ctzll(mask)] = (int8_t)(code ^ 0x80);
    }
    s->next[high] = p;
}

static struct cursor tile_cursor(const struct cpu_matrix *m, int64_t tile) {
    const uint8_t *p = cpu_stream_values(m, tile);
    return (struct cursor){{p, p}};
}

static void expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                   int8_t *out) {
    if (m->kind == CPU_SELL) {
        cpu_sell_expand(m, tile, block0, block1, out);
        return;
    }
    const uint64_t *masks = cpu_stream_masks(m, tile);
    struct cursor s = tile_cursor(m, tile);
    int64_t i = 0;
    for (; i < block0 * BLOCK_MICROS; i++)
        s.next[m->kind == CPU_LUT4 && i % 2] += __builtin_popcountll(mask_at(masks, i));
    for (; i < block1 * BLOCK_MICROS; i++, out += 64)
        expand_micro(m, &s, mask_at(masks, i), i, out);
}

/* sums[r] += the products of row r of a micro-block. */
static void add_micro(const int8_t w[64], const int16_t x[4], int64_t sums[TILE_ROWS]) {
    for (int r = 0; r < TILE_ROWS; r++) {
        const int8_t *row = w + 4 * r;
        sums[r] += row[0] * x[0] + row[1] * x[1] + row[2] * x[2] + row[3] * x[3];
    }
}

/* The sums of group g of a tile: from the micro-blocks at the cursor, or from steps. */
static void add_group(const struct cpu_matrix *m, int64_t tile, int64_t g, struct cursor *s,
                      const int16_t *x, int64_t sums[TILE_ROWS]) {
    const uint64_t *masks = cpu_stream_masks(m, tile);
    int64_t micros = cpu_stream_micros(m), group_micros = m->group ? m->group / 4 : micros;
    for (int64_t i = g * group_micros; i < (g + 1) * group_micros && i < micros; i++) {
        int8_t w[64];
        expand_micro(m, s, mask_at(masks, i), i, w);
        add_micro(w, x + 4 * i, sums);
    }
}

static void add_steps(struct sell_walk *w, uint32_t n, const int16_t *x, int64_t sums[TILE_ROWS]) {
    for (uint32_t i = 0; i < n; i++) {
        struct sell_step s;
        sell_next(w, &s);
        for (int k = 0; k < 4 * s.n; k++)
            sums[s.row[k / 4]] += (s.values[k] - 128) * x[w->block * BLOCK_COLS + s.cols[k]];
    }
}

static void product_of_tile(const struct cpu_matrix *m, int64_t tile, const struct cpu_act *act,
                            float result[TILE_ROWS]) {
    float lanes[TILE_ROWS][16] = {{0}};
    struct cursor cursor = tile_cursor(m, tile);
    struct sell_walk walk = sell_walk(m, tile);
    for (int64_t g = 0; g < m->n_groups; g++) {
        int64_t sums[TILE_ROWS] = {0};
        if (m->kind == CPU_SELL)
            add_steps(&walk, cpu_tile_steps(m, tile)[g], act->q, sums);
        else
            add_group(m, tile, g, &cursor, act->q, sums);
        for (int r = 0; r < TILE_ROWS; r++) {
            float scale = cpu_scale(m, tile, g, r);
            if (m->group)
                lanes[r][g % 16] += (float)sums[r] * scale;
            else
                result[r] = (float)sums[r] * (scale * act->scale);
        }
    }
    for (int r = 0; r < TILE_ROWS && m->group; r++) result[r] = lanes_sum(lanes[r]) * act->scale;
}

void cpu_product_integer(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,
                         const struct cpu_act *act, uint32_t n, float *out, int64_t stride) {
    for (uint32_t t = 0; t < n; t++) {
        for (int64_t tile = tile0; tile < tile1; tile++) {
            float result[TILE_ROWS];
            int64_t rows = m->rows - tile * TILE_ROWS;
            product_of_tile(m, tile, &act[t], result);
            memcpy(out + t * stride + (tile - tile0) * TILE_ROWS, result,
                   (size_t)(rows < TILE_ROWS ? rows : TILE_ROWS) * sizeof *result);
        }
    }
}

/* ---- products with float activations -------------------------------------------------------- */

static float entry_value(const struct cpu_matrix *m, const uint8_t *p, float scale) {
    uint16_t h;
    float f;
    switch (m->kind) {
    case CPU_F32: memcpy(&f, p, 4); return f;
    case CPU_BF16: memcpy(&h, p, 2); return pd_bf16_to_float(h);
    case CPU_F16: memcpy(&h, p, 2); return pd_f16_to_float(h);
    default: return m->table[*p] * scale;
    }
}

static size_t entry_size(const struct cpu_matrix *m) {
    return m->kind == CPU_F32 ? 4 : m->kind == CPU_LUT8 ? 1 : 2;
}

static void expand_float(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride) {
    for (int64_t stream = 4 * tile; stream < 4 * tile + 4; stream++, out += 4 * stride) {
        const uint64_t *masks = cpu_stream_masks(m, stream);
        const uint8_t *p = cpu_stream_values(m, stream);
        for (int r = 0; r < 4; r++)
            memset(out + r * stride, 0, (size_t)m->n_blocks * BLOCK_COLS * sizeof *out);
        for (int64_t i = 0; i < cpu_stream_micros(m); i++) {
            uint64_t mask = mask_at(masks, i);
            for (; mask; mask &= mask - 1, p += entry_size(m)) {
                int k = __builtin_ctzll(mask), r = k / 16;
                int64_t c = 16 * i + k % 16, g = m->group ? c / m->group : 0;
                float scale = cpu_scale(m, stream / 4, g, stream % 4 * 4 + r);
                out[r * stride + c] = entry_value(m, p, scale);
            }
        }
    }
}

/* Four rows: one stream. */
static void product_of_stream(const struct cpu_matrix *m, int64_t stream, const float *x,
                              float result[4]) {
    const size_t size = entry_size(m);
    const uint64_t *masks = cpu_stream_masks(m, stream);
    const uint8_t *p = cpu_stream_values(m, stream);
    float lanes[4][16] = {{0}};
    for (int64_t i = 0; i < cpu_stream_micros(m); i++) {
        uint64_t mask = mask_at(masks, i);
        for (; mask; mask &= mask - 1, p += size) {
            int k = __builtin_ctzll(mask), r = k / 16;
            int64_t c = 16 * i + k % 16, g = m->group ? c / m->group : 0;
            float scale = cpu_scale(m, stream / 4, g, stream % 4 * 4 + r);
            lanes[r][k % 16] += entry_value(m, p, scale) * x[c];
        }
    }
    for (int r = 0; r < 4; r++) result[r] = lanes_sum(lanes[r]);
}

static void product_float(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,
                          const struct cpu_act *act, uint32_t n, float *out, int64_t stride) {
    for (uint32_t t = 0; t < n; t++) {
        for (int64_t row = tile0 * TILE_ROWS; row < tile1 * TILE_ROWS && row < m->rows; row += 4) {
            float result[4];
            product_of_stream(m, row / 4, act[t].x, result);
            memcpy(out + t * stride + row - tile0 * TILE_ROWS, result,
                   (size_t)(m->rows - row < 4 ? m->rows - row : 4) * sizeof *result);
        }
    }
}

/* ---- vectors -------------------------------------------------------------------------------- */

static void rms_norm(const float *x, const float *weight, int64_t n, float eps, float *out) {
    float lanes[16] = {0};
    for (int64_t i = 0; i < n; i++) lanes[i % 16] += x[i] * x[i];
    float scale = 1.0f / sqrtf(lanes_sum(lanes) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

static void quantise(const float *x, int64_t n, struct cpu_act *act) {
    int64_t padded = (n + BLOCK_COLS - 1) / BLOCK_COLS * BLOCK_COLS;
    float amax = 0;
    bool finite = true;
    for (int64_t i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (a > amax) amax = a;
        finite &= a <= FLT_MAX;
    }
    bool zero = !finite || amax < 1e-30f; /* below, ACT_MAX / amax overflows */
    float inverse = zero ? 0 : ACT_MAX / amax;
    act->scale = !finite ? NAN : zero ? 0 : amax / ACT_MAX;
    for (int64_t i = 0; i < padded; i++) {
        float v = zero || i >= n ? 0 : rintf(x[i] * inverse);
        int q = (int)(v > ACT_MAX ? ACT_MAX : v < -ACT_MAX ? -ACT_MAX : v);
        int high = (q + 128 + 32768) / 256 - 128; /* rounds down */
        act->q[i] = (int16_t)q;
        act->high[i] = (int8_t)high;
        act->low[i] = (int8_t)(q - 256 * high);
        if (i % BIAS_COLS == 0) act->bias[i / BIAS_COLS] = 0;
        act->bias[i / BIAS_COLS] += 128 * q;
    }
}

static float dot_f32(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const float *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * b[i];
    return lanes_sum(lanes);
}

static float dot_f16(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const uint16_t *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * pd_f16_to_float(b[i]);
    return lanes_sum(lanes);
}

static float dot_i8(const float *a, const void *row, uint32_t n) {
    float lanes[16] = {0};
    const int8_t *b = row;
    for (uint32_t i = 0; i < n; i++) lanes[i % 16] += a[i] * (float)b[i];
    return lanes_sum(lanes);
}

static void add_f32(float *acc, float p, const void *row, uint32_t n) {
    const float *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * b[i];
}

static void add_f16(float *acc, float p, const void *row, uint32_t n) {
    const uint16_t *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * pd_f16_to_float(b[i]);
}

static void add_i8(float *acc, float p, const void *row, uint32_t n) {
    const int8_t *b = row;
    for (uint32_t i = 0; i < n; i++) acc[i] += p * (float)b[i];
}

const struct cpu_kernels cpu_kernels_scalar = {
    .name = "scalar",
    .supported = always,
    .product = {[CPU_INT8] = {cpu_product_integer, cpu_product_integer},
                [CPU_LUT4] = {cpu_product_integer, cpu_product_integer},
                [CPU_SELL] = {cpu_product_integer, NULL},
                [CPU_F32] = {product_float, product_float},
                [CPU_BF16] = {product_float, product_float},
                [CPU_F16] = {product_float, product_float},
                [CPU_LUT8] = {product_float, product_float}},
    .fast_sparse = true,
    .expand = expand,
    .expand_float = expand_float,
    .batch = &cpu_batch_scalar,
    .attention = &cpu_attention_scalar,
    .rms_norm = rms_norm,
    .quantise = quantise,
    .dot = {[PDVM_KV_F32] = dot_f32, [PDVM_KV_F16] = dot_f16, [PDVM_KV_INT8] = dot_i8},
    .add_scaled = {[PDVM_KV_F32] = add_f32, [PDVM_KV_F16] = add_f16, [PDVM_KV_INT8] = add_i8},
};
